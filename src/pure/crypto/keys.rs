//! The secrets of each epoch and the keys derived from them (format-spec chapter 2).
//!
//! Everything is derived once, when the ring is made, so that the hot paths (ids, sealing) look a key up and no more.

use super::hpke::Recipient;
use super::sign::role;
use super::slot::{METHOD_HPKE, METHOD_SYMMETRIC};
use super::{BlobKey, CannotOpen, Sealer, Secret, Slot, derive, keyed_hash};
use crate::pure::crypto::gear;
use crate::pure::id::{ChunkId, RepoId};
use zeroize::Zeroize;

/// The two blob domains; each session draws an independent key for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    Data = 1,
    Meta = 2,
}

/// Classes of sealed objects with a key of their own under S_idx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectClass {
    Run,
    Outcome,
    Session,
    Gc,
    Drop,
    Hold,
    Attest,
    Trailer,
}

impl ObjectClass {
    /// In the order of the variants, so that a class is an index.
    const CONTEXTS: [&'static str; 8] = [
        "larder v1 object run",
        "larder v1 object outcome",
        "larder v1 object session",
        "larder v1 object gc",
        "larder v1 object drop",
        "larder v1 object hold",
        "larder v1 object attest",
        "larder v1 object trailer",
    ];
}

/// The seven secrets of an epoch, as far as the holder has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochSecrets {
    pub epoch: u32,
    pub id: Option<Secret>,
    pub cdc: Option<Secret>,
    pub split: Option<Secret>,
    pub idx: Option<Secret>,
    pub meta: Option<Secret>,
    pub data: Option<Secret>,
    pub psk: Option<Secret>,
    /// For writers without `S_meta`: what they wrap session keys for.
    pub pk_meta: Option<[u8; 32]>,
    /// The same without `S_data`.
    pub pk_data: Option<[u8; 32]>,
    /// `K_id_meta` for holders without `S_id`.
    pub id_meta: Option<Secret>,
}

impl EpochSecrets {
    /// Begins with no secret of an epoch.
    pub fn none(epoch: u32) -> EpochSecrets {
        EpochSecrets {
            epoch,
            id: None,
            cdc: None,
            split: None,
            idx: None,
            meta: None,
            data: None,
            psk: None,
            pk_meta: None,
            pk_data: None,
            id_meta: None,
        }
    }

    /// Returns what a configuration says of its current epoch (config key 21), so that secrets that were drawn for the same number by
    /// somebody else, or by a rotation that never came to its end, are not used.
    pub fn check(&self, repo: &RepoId) -> Option<[u8; 32]> {
        let idx = self.idx.as_ref()?;
        Some(*derive("larder v1 epoch check", &[idx.expose(), repo.as_bytes()]).expose())
    }

    /// Returns the part that a key holder with these role bits gets (format-spec chapter 3.4), and nothing else.
    pub fn for_roles(&self, repo: &RepoId, roles: u32) -> EpochSecrets {
        let has = |bits| roles & (bits | role::ADMIN) != 0;
        let writes = has(role::WRITE);
        let reads_data = has(role::READ_DATA | role::ATTEST);
        let reads_meta = reads_data || has(role::READ_META | role::MAINTAIN);
        let some = |secret: &Option<Secret>, held: bool| secret.clone().filter(|_| held);
        let derived = Epoch::new(repo, self);
        let public = |recipient: &Option<Recipient>, told: Option<[u8; 32]>| match recipient {
            Some(recipient) => Some(recipient.public_key()),
            None => told,
        };
        let id = some(&self.id, writes || reads_data);
        EpochSecrets {
            epoch: self.epoch,
            cdc: some(&self.cdc, writes),
            split: some(&self.split, writes),
            idx: self.idx.clone(),
            meta: some(&self.meta, reads_meta),
            data: some(&self.data, reads_data),
            // Without it, nobody opens what a writer without S_meta or S_data has wrapped.
            psk: some(&self.psk, writes || reads_meta),
            pk_meta: public(&derived.for_meta, self.pk_meta).filter(|_| writes && !reads_meta),
            pk_data: public(&derived.for_data, self.pk_data).filter(|_| writes && !reads_data),
            id_meta: derived.id_meta.clone().filter(|_| id.is_none() && reads_meta),
            id,
        }
    }
}

/// This holder does not have the key that is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingKey {
    #[error("this key does not hold the {secret} secret of epoch {epoch}")]
    Secret { epoch: u32, secret: &'static str },
    #[error("a session key is wrapped by method {method}, which this version does not read")]
    Method { method: u8 },
    #[error("a session key does not open")]
    CannotOpen(#[from] CannotOpen),
    #[error("a session key slot is malformed")]
    Malformed,
    #[error("the public key of epoch {epoch} is none")]
    PublicKey { epoch: u32 },
}

/// Every derived key that a holder has. Cheap to share (`Arc`), wiped on drop.
pub struct KeyRing {
    repo: RepoId,
    /// Where in `epochs` the current one is.
    current: usize,
    /// Sorted by number, each once.
    epochs: Vec<Epoch>,
    gear: Option<Box<[u64; 256]>>,
}

/// The derived keys of one epoch.
struct Epoch {
    number: u32,
    id_data: Option<Secret>,
    id_meta: Option<Secret>,
    split: Option<Secret>,
    objects: Option<[Secret; 8]>,
    kek_data: Option<Secret>,
    kek_meta: Option<Secret>,
    /// Open what writers without the domain's secret have wrapped.
    for_data: Option<Recipient>,
    for_meta: Option<Recipient>,
    psk: Option<Secret>,
    pk_data: Option<[u8; 32]>,
    pk_meta: Option<[u8; 32]>,
}

impl Epoch {
    fn new(repo: &RepoId, secrets: &EpochSecrets) -> Epoch {
        let derived = |secret: &Option<Secret>, context: &str| {
            secret
                .as_ref()
                .map(|secret| derive(context, &[secret.expose(), repo.as_bytes()]))
        };
        Epoch {
            number: secrets.epoch,
            id_data: derived(&secrets.id, "larder v1 chunk-id data"),
            id_meta: derived(&secrets.id, "larder v1 chunk-id meta").or_else(|| secrets.id_meta.clone()),
            split: derived(&secrets.split, "larder v1 tree split"),
            objects: secrets
                .idx
                .as_ref()
                .map(|idx| ObjectClass::CONTEXTS.map(|context| derive(context, &[idx.expose(), repo.as_bytes()]))),
            kek_data: derived(&secrets.data, "larder v1 slot kek data"),
            kek_meta: derived(&secrets.meta, "larder v1 slot kek meta"),
            for_data: derived(&secrets.data, "larder v1 hpke data")
                .as_ref()
                .map(Recipient::new),
            for_meta: derived(&secrets.meta, "larder v1 hpke meta")
                .as_ref()
                .map(Recipient::new),
            psk: secrets.psk.clone(),
            pk_data: secrets.pk_data,
            pk_meta: secrets.pk_meta,
        }
    }

    fn have<'a>(&self, key: &'a Option<Secret>, secret: &'static str) -> Result<&'a Secret, MissingKey> {
        key.as_ref().ok_or(MissingKey::Secret {
            epoch: self.number,
            secret,
        })
    }

    fn kek(&self, domain: Domain) -> Result<&Secret, MissingKey> {
        match domain {
            Domain::Data => self.have(&self.kek_data, secret_of(domain)),
            Domain::Meta => self.have(&self.kek_meta, secret_of(domain)),
        }
    }

    fn psk(&self) -> Result<&Secret, MissingKey> {
        self.have(&self.psk, "shared")
    }

    /// Opens a slot whose keyset and domain are known.
    fn open(&self, slot: &Slot, domain: Domain, repo: &RepoId) -> Result<Secret, MissingKey> {
        if slot.method() == METHOD_SYMMETRIC {
            return Ok(slot.unwrap(self.kek(domain)?, repo)?);
        }
        let recipient = match domain {
            Domain::Data => &self.for_data,
            Domain::Meta => &self.for_meta,
        };
        let recipient = recipient.as_ref().ok_or(MissingKey::Secret {
            epoch: self.number,
            secret: secret_of(domain),
        })?;
        Ok(slot.unwrap_for(recipient, self.psk()?, repo)?)
    }

    /// Wraps so that this holder can open the slot again, if it has the secret for that; else for those who have.
    fn wrap(&self, domain: Domain, repo: &RepoId, key: &Secret, chance: &[u8; 32]) -> Result<Slot, MissingKey> {
        let lacks = match self.kek(domain) {
            Ok(kek) => return Ok(Slot::wrap(domain, self.number, kek, repo, key, chance)),
            Err(lacks) => lacks,
        };
        let public_key = match domain {
            Domain::Data => &self.pk_data,
            Domain::Meta => &self.pk_meta,
        };
        let public_key = public_key.as_ref().ok_or(lacks)?;
        let slot = Slot::wrap_for((domain, self.number), public_key, self.psk()?, repo, key, chance);
        slot.map_err(|_| MissingKey::PublicKey { epoch: self.number })
    }
}

fn secret_of(domain: Domain) -> &'static str {
    match domain {
        Domain::Data => "data",
        Domain::Meta => "metadata",
    }
}

impl KeyRing {
    /// Derives the keys of each epoch; `current` is the epoch for new objects.
    ///
    /// # Errors
    /// [`MissingKey::Secret`] when nothing is held of the current epoch.
    pub fn new(repo: RepoId, epochs: Vec<EpochSecrets>, current: u32) -> Result<KeyRing, MissingKey> {
        let mut derived: Vec<Epoch> = epochs.iter().map(|secrets| Epoch::new(&repo, secrets)).collect();
        // A grant lists each epoch once (its decoder checks that); should a caller repeat one, the first stays.
        derived.sort_by_key(|epoch| epoch.number);
        derived.dedup_by_key(|epoch| epoch.number);
        let index = derived
            .binary_search_by_key(&current, |epoch| epoch.number)
            .map_err(|_| MissingKey::Secret {
                epoch: current,
                secret: "index",
            })?;
        let gear = epochs
            .iter()
            .find(|secrets| secrets.epoch == current)
            .and_then(|secrets| secrets.cdc.as_ref())
            .map(|cdc| gear::table(cdc, &repo));
        Ok(KeyRing {
            repo,
            current: index,
            epochs: derived,
            gear,
        })
    }

    /// Returns the repository that the keys are for.
    pub fn repo(&self) -> &RepoId {
        &self.repo
    }

    /// Returns the epoch for new objects.
    pub fn current_epoch(&self) -> u32 {
        self.current().number
    }

    /// Keyed id of data plaintext under the current epoch.
    ///
    /// # Errors
    /// A maintainer cannot compute ids of data.
    pub fn data_id(&self, raw: &[u8]) -> Result<ChunkId, MissingKey> {
        let epoch = self.current();
        Ok(ChunkId(keyed_hash(epoch.have(&epoch.id_data, "data id")?, &[raw])))
    }

    /// Keyed id of a node, list node or manifest.
    ///
    /// # Errors
    /// When neither S_id nor K_id_meta is held.
    pub fn meta_id(&self, raw: &[u8]) -> Result<ChunkId, MissingKey> {
        let epoch = self.current();
        Ok(ChunkId(keyed_hash(epoch.have(&epoch.id_meta, "metadata id")?, &[raw])))
    }

    /// Keyed id of plaintext under an epoch: what a blob that was sealed in that epoch must have.
    ///
    /// # Errors
    /// When the epoch is not held, or its secret for ids of that domain.
    pub fn id_in(&self, epoch: u32, domain: Domain, raw: &[u8]) -> Result<ChunkId, MissingKey> {
        let (key, secret): (fn(&Epoch) -> &Option<Secret>, _) = match domain {
            Domain::Data => (|epoch| &epoch.id_data, "data id"),
            Domain::Meta => (|epoch| &epoch.id_meta, "metadata id"),
        };
        let epoch = self.epoch(epoch).ok_or(MissingKey::Secret { epoch, secret })?;
        Ok(ChunkId(keyed_hash(epoch.have(key(epoch), secret)?, &[raw])))
    }

    /// Key of a class of objects.
    ///
    /// # Errors
    /// When S_idx of that epoch is not held.
    pub fn object_key(&self, epoch: u32, class: ObjectClass) -> Result<&Secret, MissingKey> {
        match self.epoch(epoch).and_then(|epoch| epoch.objects.as_ref()) {
            Some(keys) => Ok(&keys[class as usize]),
            None => Err(MissingKey::Secret { epoch, secret: "index" }),
        }
    }

    /// `K_split`.
    ///
    /// # Errors
    /// When S_split is not held.
    pub fn split_key(&self) -> Result<&Secret, MissingKey> {
        let epoch = self.current();
        epoch.have(&epoch.split, "tree split")
    }

    /// The gear table (format-spec chapter on chunking).
    ///
    /// # Errors
    /// When S_cdc is not held.
    pub fn gear(&self) -> Result<&[u64; 256], MissingKey> {
        self.gear.as_deref().ok_or(MissingKey::Secret {
            epoch: self.current_epoch(),
            secret: "chunk boundary",
        })
    }

    /// Wraps a session key in the current epoch. `chance` is 32 random bytes.
    ///
    /// # Errors
    /// When neither the domain's secret is held nor what a writer without it needs.
    pub fn wrap_session_key(
        &self,
        domain: Domain,
        session_key: &Secret,
        chance: &[u8; 32],
    ) -> Result<Slot, MissingKey> {
        self.current().wrap(domain, &self.repo, session_key, chance)
    }

    /// Whether blobs of a domain that were sealed in the current epoch can be opened. A writer that holds no more than it needs
    /// cannot open even its own.
    pub fn can_open(&self, domain: Domain) -> bool {
        self.current().kek(domain).is_ok()
    }

    /// Opens a slot and derives its blob key.
    ///
    /// # Errors
    /// When the slot is of another method, malformed, does not open, or its secret is not held.
    pub fn open_slot(&self, slot: &Slot) -> Result<(Domain, BlobKey), MissingKey> {
        if !matches!(slot.method(), METHOD_SYMMETRIC | METHOD_HPKE) {
            return Err(MissingKey::Method { method: slot.method() });
        }
        let domain = slot.domain().ok_or(MissingKey::Malformed)?;
        if slot.keyset() != 0 {
            return Err(MissingKey::Malformed);
        }
        let epoch = self.epoch(slot.epoch()).ok_or(MissingKey::Secret {
            epoch: slot.epoch(),
            secret: secret_of(domain),
        })?;
        let session_key = epoch.open(slot, domain, &self.repo)?;
        Ok((domain, self.blob_key_of(domain, epoch.number, &session_key)))
    }

    /// Derives the blob key of a session key of the current epoch that the caller still holds.
    pub fn blob_key(&self, domain: Domain, session_key: &Secret) -> BlobKey {
        self.blob_key_of(domain, self.current_epoch(), session_key)
    }

    fn blob_key_of(&self, domain: Domain, epoch: u32, session_key: &Secret) -> BlobKey {
        let context = match domain {
            Domain::Data => "larder v1 blob data",
            Domain::Meta => "larder v1 blob meta",
        };
        let key = derive(context, &[session_key.expose(), self.repo.as_bytes()]);
        BlobKey {
            domain,
            epoch,
            sealer: Sealer::new(&key),
        }
    }

    fn current(&self) -> &Epoch {
        &self.epochs[self.current]
    }

    fn epoch(&self, number: u32) -> Option<&Epoch> {
        let index = self.epochs.binary_search_by_key(&number, |epoch| epoch.number).ok()?;
        Some(&self.epochs[index])
    }
}

impl Drop for KeyRing {
    fn drop(&mut self) {
        if let Some(gear) = &mut self.gear {
            gear.zeroize();
        }
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({}, epoch {})", self.repo, self.current_epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors::*;
    use super::*;

    fn id(text: &str) -> ChunkId {
        text.parse().unwrap()
    }

    #[test]
    fn ids_are_the_published_ones() {
        let keys = keys();
        let of_data = |raw: &[u8]| keys.data_id(raw).unwrap();
        assert_eq!(
            of_data(b""),
            id("1346f89bc259b5af8d37cf955bf145ae8f632b905b25298bc3f7735b419ce115")
        );
        assert_eq!(
            of_data(b"hello larder\n"),
            id("51e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed")
        );
        assert_eq!(
            of_data(&[0; 1 << 20]),
            id("68bd2442dd740143e6a4b71d6436e900cb907a9d01eb15711a4842b40757d31d")
        );
        assert_eq!(
            keys.meta_id(b"hello larder\n").unwrap(),
            id("b0a375b3208136a11613bdcf2bddfc14be8ecd124a96893f587ce3cf792f99ab")
        );
    }

    #[test]
    fn split_key_gives_the_published_boundary_hash() {
        let hash = keyed_hash(keys().split_key().unwrap(), &[&[0], &hex("0061")]);
        assert_eq!(u64::from_le_bytes(hash[..8].try_into().unwrap()), 0x7a8f_8ccc_65f9_8c41);
    }

    #[test]
    fn a_holder_can_do_what_its_secrets_allow_and_nothing_else() {
        // A maintainer: S_idx, S_meta and K_id_meta.
        let id_meta = hex("771a1cedc1fdb8de66ec1fab17203cb8611f53ed60ac2367d0cfb3dff53adcc3");
        let held = EpochSecrets {
            psk: None,
            ..secrets(3).for_roles(&REPO, role::MAINTAIN)
        };
        assert_eq!(held.id_meta, Secret::from_slice(&id_meta));
        let keys = KeyRing::new(REPO, vec![held], 3).unwrap();
        assert_eq!(
            keys.meta_id(b"hello larder\n").unwrap(),
            id("b0a375b3208136a11613bdcf2bddfc14be8ecd124a96893f587ce3cf792f99ab")
        );
        let lacks = |secret| Some(MissingKey::Secret { epoch: 3, secret });
        assert_eq!(keys.data_id(b"x").err(), lacks("data id"));
        assert_eq!(keys.gear().err(), lacks("chunk boundary"));
        assert_eq!(keys.split_key().err(), lacks("tree split"));
        let session_key = session_key_data();
        assert_eq!(
            keys.wrap_session_key(Domain::Data, &session_key, &[0; 32]).err(),
            lacks("data")
        );
        let slot = keys.wrap_session_key(Domain::Meta, &session_key, &[0; 32]).unwrap();
        assert_eq!(slot.epoch(), 3);
        assert!(keys.open_slot(&slot).is_ok());
        assert!(keys.object_key(3, ObjectClass::Trailer).is_ok());
        assert_eq!(
            keys.object_key(2, ObjectClass::Trailer).err(),
            Some(MissingKey::Secret {
                epoch: 2,
                secret: "index"
            })
        );
    }

    #[test]
    fn a_writer_that_holds_no_more_than_it_needs_cannot_read_back_what_it_wraps() {
        let held = secrets(1).for_roles(&REPO, role::WRITE);
        // Nothing else than what format-spec chapter 3.4 lists.
        let all = [&held.id, &held.cdc, &held.split, &held.idx, &held.psk];
        assert!(all.iter().all(|secret| secret.is_some()));
        assert!(held.meta.is_none() && held.data.is_none() && held.id_meta.is_none());
        assert_eq!(
            held.pk_data.unwrap()[..],
            hex("a85c4203faca5c3c4534bc176862bb2ce73703aa973a28b7ac9c7fc8dfb22759")
        );
        let writer = KeyRing::new(REPO, vec![held.clone()], 1).unwrap();
        assert!(!writer.can_open(Domain::Data) && !writer.can_open(Domain::Meta));
        for domain in [Domain::Data, Domain::Meta] {
            let slot = writer
                .wrap_session_key(domain, &session_key_data(), &counting(0x40))
                .unwrap();
            assert_eq!((slot.method(), slot.epoch(), slot.domain()), (2, 1, Some(domain)));
            let lacks = MissingKey::Secret {
                epoch: 1,
                secret: secret_of(domain),
            };
            assert_eq!(writer.open_slot(&slot).err(), Some(lacks));
            let (opened, key) = keys().open_slot(&slot).unwrap();
            assert_eq!(opened, domain);
            let own = writer.blob_key(domain, &session_key_data());
            assert_eq!(
                key.sealer.seal(&[0; 12], b"x", b""),
                own.sealer.seal(&[0; 12], b"x", b"")
            );
        }
        // What is left out is missed by name, and a public key that nobody can have is refused.
        let without = |held: EpochSecrets| {
            let writer = KeyRing::new(REPO, vec![held], 1).unwrap();
            writer
                .wrap_session_key(Domain::Meta, &session_key_data(), &counting(0))
                .err()
        };
        let lacks = |secret| Some(MissingKey::Secret { epoch: 1, secret });
        assert_eq!(
            without(EpochSecrets {
                pk_meta: None,
                ..held.clone()
            }),
            lacks("metadata")
        );
        assert_eq!(
            without(EpochSecrets {
                psk: None,
                ..held.clone()
            }),
            lacks("shared")
        );
        let low = EpochSecrets {
            pk_meta: Some([0; 32]),
            ..held
        };
        assert_eq!(without(low), Some(MissingKey::PublicKey { epoch: 1 }));
    }

    #[test]
    fn every_role_gets_its_secrets_and_no_others() {
        let held = |roles| {
            let held = secrets(1).for_roles(&REPO, roles);
            let secrets = [
                &held.id,
                &held.cdc,
                &held.split,
                &held.idx,
                &held.meta,
                &held.data,
                &held.psk,
                &held.id_meta,
            ];
            let public = [held.pk_meta, held.pk_data];
            let bits = secrets
                .iter()
                .map(|secret| secret.is_some())
                .chain(public.map(|key| key.is_some()));
            bits.map(|held| if held { '1' } else { '0' }).collect::<String>()
        };
        // S_id S_cdc S_split S_idx S_meta S_data S_psk K_id_meta pk_meta pk_data
        assert_eq!(held(role::ADMIN), "1111111000");
        assert_eq!(held(role::WRITE), "1111001011");
        assert_eq!(held(role::WRITE | role::READ_META | role::READ_DATA), "1111111000");
        assert_eq!(held(role::WRITE | role::MAINTAIN), "1111101001");
        assert_eq!(held(role::READ_META), "0001101100");
        assert_eq!(held(role::READ_META | role::READ_DATA), "1001111000");
        assert_eq!(held(role::MAINTAIN), "0001101100");
        assert_eq!(held(role::FORGET | role::HOLD), "0001000000");
        assert_eq!(held(role::ATTEST), "1001111000");
    }

    #[test]
    fn old_epochs_stay_readable_and_new_objects_use_the_current_one() {
        let mut second = secrets(2);
        second.data = Some(Secret::new([66; 32]));
        second.idx = Some(Secret::new([44; 32]));
        let before = keys()
            .wrap_session_key(Domain::Data, &session_key_data(), &[7; 32])
            .unwrap();
        let keys = KeyRing::new(REPO, vec![second, secrets(1)], 2).unwrap();
        assert!(keys.open_slot(&before).is_ok());
        let after = keys
            .wrap_session_key(Domain::Data, &session_key_data(), &[7; 32])
            .unwrap();
        assert_eq!((before.epoch(), after.epoch()), (1, 2));
        assert!(keys.open_slot(&after).is_ok());
        assert_ne!(
            keys.object_key(1, ObjectClass::Run),
            keys.object_key(2, ObjectClass::Run)
        );
        assert!(KeyRing::new(REPO, vec![secrets(1)], 2).is_err());
    }

    #[test]
    fn every_class_has_a_key_of_its_own() {
        let keys = keys();
        let classes = [
            ObjectClass::Run,
            ObjectClass::Outcome,
            ObjectClass::Session,
            ObjectClass::Gc,
            ObjectClass::Drop,
            ObjectClass::Hold,
            ObjectClass::Attest,
            ObjectClass::Trailer,
        ];
        let mut seen: Vec<[u8; 32]> = classes
            .iter()
            .map(|class| *keys.object_key(1, *class).unwrap().expose())
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), classes.len());
    }
}
