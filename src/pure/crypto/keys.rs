//! The secrets of each epoch and the keys derived from them (format-spec chapter 2).

use super::{BlobKey, CannotOpen, Secret, Slot};
use crate::pure::id::{ChunkId, RepoId};

/// The two blob domains; each session draws an independent key for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain { Data = 1, Meta = 2 }

/// Classes of sealed objects with a key of their own under S_idx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectClass { Run, Outcome, Session, Gc, Drop, Hold, Attest, Trailer }

/// The seven secrets of an epoch, as far as the holder has them.
#[derive(Clone, Debug)]
pub struct EpochSecrets {
    pub epoch: u32,
    pub id: Option<Secret>,
    pub cdc: Option<Secret>,
    pub split: Option<Secret>,
    pub idx: Option<Secret>,
    pub meta: Option<Secret>,
    pub data: Option<Secret>,
    pub psk: Option<Secret>,
    /// `K_id_meta` for holders without `S_id`.
    pub id_meta: Option<Secret>,
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
}

/// Every derived key that a holder has. Cheap to share (`Arc`), wiped on drop.
pub struct KeyRing { _private: () }

impl KeyRing {
    /// Derives the keys of each epoch; `current` is the epoch for new objects.
    pub fn new(_repo: RepoId, _epochs: Vec<EpochSecrets>, _current: u32) -> Result<KeyRing, MissingKey> { todo!() }
    pub fn repo(&self) -> &RepoId { todo!() }
    pub fn current_epoch(&self) -> u32 { todo!() }
    /// Keyed id of data plaintext under the current epoch.
    pub fn data_id(&self, _raw: &[u8]) -> Result<ChunkId, MissingKey> { todo!() }
    /// Keyed id of a node, list node or manifest.
    pub fn meta_id(&self, _raw: &[u8]) -> Result<ChunkId, MissingKey> { todo!() }
    /// Key of a class of objects.
    pub fn object_key(&self, _epoch: u32, _class: ObjectClass) -> Result<&Secret, MissingKey> { todo!() }
    /// `K_split`.
    pub fn split_key(&self) -> Result<&Secret, MissingKey> { todo!() }
    /// The gear table (format-spec chapter on chunking).
    pub fn gear(&self) -> Result<&[u64; 256], MissingKey> { todo!() }
    /// Wraps a session key by method 1 in the current epoch. `salt` is 32 random bytes.
    pub fn wrap_session_key(&self, _domain: Domain, _session_key: &Secret, _salt: &[u8; 32]) -> Result<Slot, MissingKey> { todo!() }
    /// Opens a slot and derives its blob key.
    pub fn open_slot(&self, _slot: &Slot) -> Result<(Domain, BlobKey), MissingKey> { todo!() }
    /// Derives the blob key of a session key that the caller still holds.
    pub fn blob_key(&self, _domain: Domain, _session_key: &Secret) -> BlobKey { todo!() }
}
