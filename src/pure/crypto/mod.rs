//! Keeping secrets: hashing, derivation, sealing, slots and signatures (format-spec chapters 1 and 2).

pub mod gear;
mod hpke;
pub mod kdf;
pub mod keys;
pub mod paper;
pub mod seal;
pub mod secret;
pub mod sign;
pub mod slot;

pub use keys::{Domain, EpochSecrets, KeyRing, MissingKey, ObjectClass};
pub use seal::{BlobKey, CannotOpen, Sealer};
pub use secret::Secret;
pub use sign::{Signer, Verifier};
pub use slot::Slot;

use zeroize::Zeroize;

/// H(x): BLAKE3.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    blake3::hash(bytes).into()
}

/// KH(k, parts joined): keyed BLAKE3.
pub fn keyed_hash(key: &Secret, parts: &[&[u8]]) -> [u8; 32] {
    // One part is the hot case (chunk ids): the one-shot function keeps its state in registers.
    if let [part] = parts {
        return blake3::keyed_hash(key.expose(), part).into();
    }
    let mut hasher = blake3::Hasher::new_keyed(key.expose());
    for part in parts {
        hasher.update(part);
    }
    let hash = hasher.finalize().into();
    hasher.zeroize();
    hash
}

/// DK(context, parts joined): BLAKE3 `derive_key` mode, 32 bytes.
pub fn derive(context: &str, ikm: &[&[u8]]) -> Secret {
    let mut out = [0; 32];
    derive_into(context, ikm, &mut out);
    let secret = Secret::new(out);
    out.zeroize();
    secret
}

/// DK with as many bytes as `out` holds (XOF).
pub fn derive_into(context: &str, ikm: &[&[u8]], out: &mut [u8]) {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in ikm {
        hasher.update(part);
    }
    let mut reader = hasher.finalize_xof();
    reader.fill(out);
    reader.zeroize();
    hasher.zeroize();
}

/// Key material that tests of several modules share: the secrets of the published vectors.
#[cfg(test)]
pub(crate) mod vectors {
    use super::*;
    use crate::pure::id::{KeyId, RepoId, SessionId, from_hex};

    pub(crate) const REPO: RepoId = RepoId([16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]);
    pub(crate) const SESSION: SessionId = SessionId([0x11; 16]);

    pub(crate) fn hex(text: &str) -> Vec<u8> {
        from_hex(text).expect("the vector is hex")
    }

    pub(crate) fn counting<const N: usize>(first: u8) -> [u8; N] {
        std::array::from_fn(|index| first + index as u8)
    }

    pub(crate) fn secrets(epoch: u32) -> EpochSecrets {
        let secret = |byte| Some(Secret::new([byte; 32]));
        EpochSecrets {
            epoch,
            id: secret(1),
            cdc: secret(2),
            split: secret(3),
            idx: secret(4),
            meta: secret(5),
            data: secret(6),
            psk: secret(7),
            ..EpochSecrets::none(epoch)
        }
    }

    pub(crate) fn keys() -> KeyRing {
        KeyRing::new(REPO, vec![secrets(1)], 1).expect("the epoch is there")
    }

    pub(crate) fn session_key_data() -> Secret {
        Secret::new(counting(0xa0))
    }

    pub(crate) fn kid() -> KeyId {
        let mut kid = [0x22; 16];
        kid[..4].fill(0x11);
        KeyId(kid)
    }

    pub(crate) fn signer() -> Signer {
        Signer::new(kid(), &Secret::new([8; 32]), &REPO)
    }

    /// Knows the vectors' signer with the given role bits.
    pub(crate) fn verifier(roles: u32) -> Verifier {
        Verifier {
            writers: vec![sign::WriterKey {
                kid: kid(),
                public_key: signer().public_key(),
                roles,
                from_config: 0,
                revoked_at: None,
                chain_end: None,
            }],
        }
    }

    /// BLAKE3 as a source of reproducible noise.
    pub(crate) fn noise(seed: &str, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new()
            .update(seed.as_bytes())
            .finalize_xof()
            .fill(&mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::vectors::*;
    use super::*;

    #[test]
    fn keyed_hash_of_parts_is_that_of_the_whole() {
        let key = Secret::new([9; 32]);
        assert_eq!(keyed_hash(&key, &[b"ab", b"", b"c"]), keyed_hash(&key, &[b"abc"]));
        assert_ne!(keyed_hash(&key, &[b"abc"]), hash(b"abc"));
    }

    #[test]
    fn derivation_gives_the_published_keys_and_a_longer_output_starts_with_the_shorter() {
        let ikm: [&[u8]; 2] = [&[1; 32], REPO.as_bytes()];
        let key = derive("larder v1 chunk-id data", &ikm);
        assert_eq!(
            key.expose()[..],
            hex("0bae6c152056b93398d9b7eb2e2f660b5408981675c23c8e32a07ae5d6c7c83f")
        );
        let mut long = [0; 100];
        derive_into("larder v1 chunk-id data", &ikm, &mut long);
        assert_eq!(long[..32], key.expose()[..]);
    }
}
