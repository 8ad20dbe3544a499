//! Ed25519 signatures over named CBOR maps (format-spec chapter 2).

use super::Secret;
use crate::pure::id::{KeyId, RepoId};

/// Signs as one key holder.
pub struct Signer { _private: () }

impl Signer {
    /// Derives the signing key of a key holder: seed = DK("larder v1 ed25519 seed", kid_secret ‖ R).
    pub fn new(_kid: KeyId, _kid_secret: &Secret, _repo: &RepoId) -> Signer { todo!() }
    pub fn kid(&self) -> KeyId { todo!() }
    pub fn public_key(&self) -> [u8; 32] { todo!() }
    /// Signs `"larder v1 sign" ‖ 00 ‖ name ‖ 00 ‖ body`.
    pub fn sign(&self, _name: &str, _body: &[u8]) -> [u8; 64] { todo!() }
}

/// The signature does not fit the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    #[error("signed by key {0}, which the configuration does not name")]
    UnknownKey(KeyId),
    #[error("signed by key {0}, which has been revoked")]
    Revoked(KeyId),
    #[error("signed by key {0}, which does not have the role for it")]
    Role(KeyId),
    #[error("the signature of key {0} does not fit the object")]
    Wrong(KeyId),
}

/// What a configuration says about one writer key (config key 17).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterKey {
    pub kid: KeyId,
    pub public_key: [u8; 32],
    /// Role bits: 0 write, 1 read-meta, 2 read-data, 3 maintain, 4 forget, 5 hold, 6 admin, 7 attest.
    pub roles: u32,
    pub from_config: u64,
    pub revoked_at: Option<u64>,
}

/// Knows every public key and role of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Verifier { pub writers: Vec<WriterKey> }

/// Role bits (format-spec chapter 2).
pub mod role {
    pub const WRITE: u32 = 1;
    pub const READ_META: u32 = 1 << 1;
    pub const READ_DATA: u32 = 1 << 2;
    pub const MAINTAIN: u32 = 1 << 3;
    pub const FORGET: u32 = 1 << 4;
    pub const HOLD: u32 = 1 << 5;
    pub const ADMIN: u32 = 1 << 6;
    pub const ATTEST: u32 = 1 << 7;
}

impl Verifier {
    /// Checks a signature by `kid`, which must hold at least one of the `roles` bits (admin implies all).
    pub fn verify(&self, _kid: &KeyId, _roles: u32, _name: &str, _body: &[u8], _signature: &[u8; 64]) -> Result<(), BadSignature> { todo!() }
}
