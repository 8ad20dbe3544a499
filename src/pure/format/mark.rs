//! Marks on snapshots: drops, holds and attestations (format-spec chapter on marks).

use super::FormatError;
use crate::pure::base::Timestamp;
use crate::pure::crypto::{KeyRing, Signer, Verifier};
use crate::pure::id::{KeyId, SessionId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropKind { Forget = 1, Void = 2 }

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop { pub kid: KeyId, pub created: Timestamp, pub kind: DropKind, pub session: SessionId, pub reason: String }

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold { pub kid: KeyId, pub created: Timestamp, pub session: SessionId, pub until: Option<Timestamp>, pub reason: String }

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest { pub kid: KeyId, pub created: Timestamp, pub session: SessionId, pub runs: Vec<(u32, u32)>, pub bytes_read: u64 }

impl Drop {
    pub fn encode(&self, _keys: &KeyRing, _signer: &Signer, _object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> { todo!() }
    pub fn decode(_bytes: &[u8], _session: &SessionId, _keys: &KeyRing, _verifier: &Verifier) -> Result<Drop, FormatError> { todo!() }
}
impl Hold {
    pub fn encode(&self, _name: &str, _keys: &KeyRing, _signer: &Signer, _object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> { todo!() }
    pub fn decode(_bytes: &[u8], _session: &SessionId, _name: &str, _keys: &KeyRing, _verifier: &Verifier) -> Result<Hold, FormatError> { todo!() }
}
impl Attest {
    pub fn encode(&self, _number: u32, _keys: &KeyRing, _signer: &Signer, _object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> { todo!() }
    pub fn decode(_bytes: &[u8], _session: &SessionId, _number: u32, _keys: &KeyRing, _verifier: &Verifier) -> Result<Attest, FormatError> { todo!() }
}
