//! Slots: wrapped session keys, 88 bytes (format-spec chapter 3.2). Method 1 is for who can open the slot again, method 2 for who
//! can only write; others are refused by name.

use super::hpke::{self, Context, Recipient};
use super::keys::Domain;
use super::{CannotOpen, Sealer, Secret, hash, keyed_hash};
use crate::pure::id::RepoId;

/// One slot exactly as stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub [u8; 88]);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", crate::pure::id::to_hex(&self.0[..8]))
    }
}

/// The key-encryption key is symmetric.
pub const METHOD_SYMMETRIC: u8 = 1;
/// The session key is wrapped for the public key of the domain.
pub const METHOD_HPKE: u8 = 2;

impl Slot {
    /// Bytes of a slot.
    pub const LEN: usize = 88;

    /// Takes a slot out of a slice of exactly the right length.
    pub fn from_slice(bytes: &[u8]) -> Option<Slot> {
        Some(Slot(bytes.try_into().ok()?))
    }

    /// Returns how the session key is wrapped: 1 symmetric, 2 HPKE.
    pub fn method(&self) -> u8 {
        self.0[0]
    }

    /// Returns the domain, if the byte names one.
    pub fn domain(&self) -> Option<Domain> {
        match self.0[1] {
            1 => Some(Domain::Data),
            2 => Some(Domain::Meta),
            _ => None,
        }
    }

    /// Returns the keyset; version 1 knows 0 only.
    pub fn keyset(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// Returns the epoch whose secret wraps the session key.
    pub fn epoch(&self) -> u32 {
        u32::from_le_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// Returns the name under which caches know the slot: the first 16 bytes of its hash.
    pub fn id(&self) -> [u8; 16] {
        let hash = hash(&self.0);
        std::array::from_fn(|index| hash[index])
    }

    /// Wraps by method 1 under the key-encryption key of the domain and epoch.
    pub(super) fn wrap(
        domain: Domain,
        epoch: u32,
        kek: &Secret,
        repo: &RepoId,
        session_key: &Secret,
        salt: &[u8; 32],
    ) -> Slot {
        let mut slot = [0; Slot::LEN];
        slot[0] = METHOD_SYMMETRIC;
        slot[1] = domain as u8;
        slot[4..8].copy_from_slice(&epoch.to_le_bytes());
        slot[8..40].copy_from_slice(salt);
        let sealed = wrapping_sealer(kek, salt).seal(&[0; 12], session_key.expose(), &aad(repo, &slot));
        slot[40..].copy_from_slice(&sealed);
        Slot(slot)
    }

    /// Wraps by method 2 for the public key of the domain and epoch. `chance` is 32 random bytes.
    pub(super) fn wrap_for(
        (domain, epoch): (Domain, u32),
        public_key: &[u8; 32],
        psk: &Secret,
        repo: &RepoId,
        session_key: &Secret,
        chance: &[u8; 32],
    ) -> Result<Slot, CannotOpen> {
        let mut slot = Slot([0; Slot::LEN]);
        slot.0[0] = METHOD_HPKE;
        slot.0[1] = domain as u8;
        slot.0[4..8].copy_from_slice(&epoch.to_le_bytes());
        let sealed = slot.bound(repo, |info, aad, psk_id| {
            let context = Context { psk, psk_id, info, aad };
            hpke::seal(public_key, &context, session_key, chance)
        });
        let (encapsulated, sealed) = sealed.ok_or(CannotOpen)?;
        slot.0[8..40].copy_from_slice(&encapsulated);
        slot.0[40..].copy_from_slice(&sealed);
        Ok(slot)
    }

    /// Unwraps method 2; the caller has looked at method, domain and keyset.
    pub(super) fn unwrap_for(&self, recipient: &Recipient, psk: &Secret, repo: &RepoId) -> Result<Secret, CannotOpen> {
        self.bound(repo, |info, aad, psk_id| {
            let context = Context { psk, psk_id, info, aad };
            recipient
                .open(&context, &self.0[8..40], &self.0[40..])
                .ok_or(CannotOpen)
        })
    }

    /// What method 2 is bound to: info, associated data, and the name of the shared secret.
    fn bound<T>(&self, repo: &RepoId, work: impl FnOnce(&[u8], &[u8], &[u8]) -> T) -> T {
        let head = &self.0[..8];
        let info = [b"larder v1 slot", &repo.as_bytes()[..], head].concat();
        let aad = [b"LSLT", &repo.as_bytes()[..], head].concat();
        let psk_id = [&repo.as_bytes()[..], &head[4..]].concat();
        work(&info, &aad, &psk_id)
    }

    /// Unwraps method 1; the caller has looked at method, domain and keyset.
    pub(super) fn unwrap(&self, kek: &Secret, repo: &RepoId) -> Result<Secret, CannotOpen> {
        let opened = wrapping_sealer(kek, &self.0[8..40]).open(&[0; 12], &self.0[40..], &aad(repo, &self.0))?;
        let opened = zeroize::Zeroizing::new(opened);
        Secret::from_slice(&opened).ok_or(CannotOpen)
    }
}

fn wrapping_sealer(kek: &Secret, salt: &[u8]) -> Sealer {
    Sealer::new(&Secret::new(keyed_hash(kek, &[b"larder v1 slot", salt])))
}

/// "LSLT" ‖ R ‖ slot[0..8] ‖ salt.
fn aad(repo: &RepoId, slot: &[u8; Slot::LEN]) -> [u8; 60] {
    let mut aad = [0; 60];
    aad[..4].copy_from_slice(b"LSLT");
    aad[4..20].copy_from_slice(repo.as_bytes());
    aad[20..].copy_from_slice(&slot[..40]);
    aad
}

#[cfg(test)]
mod tests {
    use super::super::vectors::*;
    use super::super::{Domain, MissingKey};
    use super::*;

    const VECTOR: &str = "0101000001000000404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5fcc41330a092e86823c1313d3b37505469597a94372f42ad5129a941c19c800dfaa12a77849e7d018d3a1303681f422c6";

    #[test]
    fn the_published_slot_is_made_and_opened() {
        let keys = keys();
        let slot = keys
            .wrap_session_key(Domain::Data, &session_key_data(), &counting(0x40))
            .unwrap();
        assert_eq!(slot.0[..], hex(VECTOR));
        assert_eq!(slot.id()[..], hex("845c4b5c5391169999de43fa20363f3f"));
        let (domain, key) = keys.open_slot(&slot).unwrap();
        assert_eq!(domain, Domain::Data);
        let expected = keys.blob_key(Domain::Data, &session_key_data());
        assert_eq!(
            key.sealer.seal(&[0; 12], b"x", b""),
            expected.sealer.seal(&[0; 12], b"x", b"")
        );
    }

    #[test]
    fn no_bit_of_a_slot_can_change() {
        let keys = keys();
        for bit in 0..Slot::LEN * 8 {
            let mut slot = Slot::from_slice(&hex(VECTOR)).unwrap();
            slot.0[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.open_slot(&slot).is_err(), "bit {bit}");
        }
    }

    /// Made by another implementation, with an ephemeral key that no key material leads to.
    const HPKE: &str = "02010000010000001cf579aba45a10ba1d1ef06d91fca2aa9ed0a1150515653155405d0b18cb9a6743c5cbbf0805341e06160323aa7ea1ba7295a428cac8a6336454df840a5a7f52680c0770e840371574302aa0bfff1581";

    #[test]
    fn the_published_slot_of_a_writer_that_cannot_read_is_opened() {
        let slot = Slot::from_slice(&hex(HPKE)).unwrap();
        let (domain, key) = keys().open_slot(&slot).unwrap();
        assert_eq!(domain, Domain::Data);
        let expected = keys().blob_key(Domain::Data, &session_key_data());
        assert_eq!(
            key.sealer.seal(&[0; 12], b"x", b""),
            expected.sealer.seal(&[0; 12], b"x", b"")
        );
        for bit in 0..Slot::LEN * 8 {
            let mut slot = slot;
            slot.0[bit / 8] ^= 1 << (bit % 8);
            // RFC 7748 ignores the highest bit of a public key, but what is derived names all of them.
            assert!(keys().open_slot(&slot).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn other_methods_and_keysets_are_refused_by_name() {
        let mut slot = Slot::from_slice(&hex(HPKE)).unwrap();
        slot.0[0] = 3;
        assert_eq!(keys().open_slot(&slot).err(), Some(MissingKey::Method { method: 3 }));
        let mut slot = Slot::from_slice(&hex(VECTOR)).unwrap();
        slot.0[2] = 1;
        assert_eq!(keys().open_slot(&slot).err(), Some(MissingKey::Malformed));
        assert_eq!(Slot::from_slice(&[0; 87]), None);
    }

    #[test]
    fn a_slot_belongs_to_one_domain_and_one_repository() {
        let slot = keys()
            .wrap_session_key(Domain::Meta, &session_key_data(), &[1; 32])
            .unwrap();
        let mut moved = slot;
        moved.0[1] = Domain::Data as u8;
        assert!(keys().open_slot(&moved).is_err());
        let elsewhere = super::super::KeyRing::new(crate::pure::id::RepoId([0; 16]), vec![secrets(1)], 1).unwrap();
        assert!(elsewhere.open_slot(&slot).is_err());
    }
}
