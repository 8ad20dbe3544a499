//! Protectors (format-spec chapter on keys): a key holder's secret, wrapped for one password or key file.

use super::FormatError;
use crate::pure::base::Timestamp;
use crate::pure::crypto::{Secret, kdf::Cost};
use crate::pure::id::{KeyId, RepoId};

/// How the 32-byte input of a protector is obtained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtectorKind {
    Passphrase { salt: [u8; 16], cost: Cost },
    KeyFile,
    /// KMS (2), X25519 recipient (3) or external command (5): read and shown, not opened by this version.
    Other { kind: u8 },
}

/// A protector as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protector { pub kid: KeyId, pub created: Timestamp, pub kind: ProtectorKind, pub wrapped: Vec<u8>, pub commitment: [u8; 32], pub hint: Option<String> }

/// The password or key file is not the one of this protector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key does not fit this protector")]
pub struct WrongKey;

impl Protector {
    /// Wraps `kid_secret` with the 32 bytes `ikm`.
    pub fn wrap(_repo: &RepoId, _kid: KeyId, _created: Timestamp, _kind: ProtectorKind, _hint: Option<String>, _ikm: &Secret, _kid_secret: &Secret) -> Protector { todo!() }
    /// Compares the commitment in constant time, then opens.
    pub fn unwrap(&self, _repo: &RepoId, _ikm: &Secret) -> Result<Secret, WrongKey> { todo!() }
    pub fn encode(&self) -> Vec<u8> { todo!() }
    pub fn decode(_bytes: &[u8], _kid: &KeyId) -> Result<Protector, FormatError> { todo!() }
}
