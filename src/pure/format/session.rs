//! Session objects (format-spec chapter on sessions): registration, acknowledgement, heartbeat.

use super::FormatError;
use crate::pure::base::Timestamp;
use crate::pure::crypto::{KeyRing, Signer, Verifier};
use crate::pure::id::{KeyId, SessionId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionRole { Backup = 0, Condemn = 1, Sweep = 2, Compact = 3, Repair = 4, Rescue = 5, PinOnly = 6 }

/// `sess/<sid>/0000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration { pub kid: KeyId, pub created: Timestamp, pub role: SessionRole, pub pins: Vec<SessionId>, pub software: String, pub host: Option<String> }

/// `sess/<sid>/<n ≥ 1>`: cumulative acknowledgements, further pins, runs written so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement { pub kid: KeyId, pub created: Timestamp, pub pins: Vec<SessionId>, pub acked: Vec<SessionId>, pub runs: u32 }

impl Registration {
    pub fn encode(&self, _session: &SessionId, _keys: &KeyRing, _signer: &Signer, _object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> { todo!() }
    pub fn decode(_bytes: &[u8], _session: &SessionId, _keys: &KeyRing, _verifier: &Verifier) -> Result<Registration, FormatError> { todo!() }
}
impl Acknowledgement {
    pub fn encode(&self, _session: &SessionId, _number: u32, _keys: &KeyRing, _signer: &Signer, _object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> { todo!() }
    pub fn decode(_bytes: &[u8], _session: &SessionId, _number: u32, _keys: &KeyRing, _verifier: &Verifier) -> Result<Acknowledgement, FormatError> { todo!() }
}
