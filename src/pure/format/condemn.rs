//! Condemnations `gc/<sid>` (format-spec chapter on condemnations): packs that nobody may reference any more.

use super::{FormatError, name::PackKind};
use crate::pure::base::Timestamp;
use crate::pure::crypto::{KeyRing, Signer, Verifier};
use crate::pure::id::{ChunkId, KeyId, PackId, SessionId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CondemnKind { Reclaim = 0, Quarantine = 1, Rekey = 2 }

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CondemnedPack { pub pack: PackId, pub session: SessionId, pub kind: PackKind, pub orphan: bool, pub size: u32 }

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condemnation { pub kid: KeyId, pub created: Timestamp, pub kind: CondemnKind, pub session: SessionId, pub reason: String, pub packs: Vec<CondemnedPack>, pub lost: Vec<ChunkId> }

impl Condemnation {
    pub fn encode(&self, _keys: &KeyRing, _signer: &Signer, _object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> { todo!() }
    pub fn decode(_bytes: &[u8], _session: &SessionId, _keys: &KeyRing, _verifier: &Verifier) -> Result<Condemnation, FormatError> { todo!() }
}
