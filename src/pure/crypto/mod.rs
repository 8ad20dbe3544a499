//! Keeping secrets: hashing, derivation, sealing, slots and signatures (format-spec chapters 1 and 2).

pub mod kdf;
pub mod keys;
pub mod seal;
pub mod secret;
pub mod sign;
pub mod slot;

pub use keys::{Domain, EpochSecrets, KeyRing, MissingKey, ObjectClass};
pub use seal::{BlobKey, CannotOpen, Sealer};
pub use secret::Secret;
pub use sign::{Signer, Verifier};
pub use slot::Slot;

/// H(x): BLAKE3.
pub fn hash(_bytes: &[u8]) -> [u8; 32] { todo!() }

/// KH(k, parts joined): keyed BLAKE3.
pub fn keyed_hash(_key: &Secret, _parts: &[&[u8]]) -> [u8; 32] { todo!() }

/// DK(context, parts joined): BLAKE3 `derive_key` mode, 32 bytes.
pub fn derive(_context: &str, _ikm: &[&[u8]]) -> Secret { todo!() }

/// DK with as many bytes as `out` holds (XOF).
pub fn derive_into(_context: &str, _ikm: &[&[u8]], _out: &mut [u8]) { todo!() }
