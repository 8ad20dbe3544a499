//! Outcomes `snap/<sid>` (format-spec chapter on outcomes): the one commit point of a session.

use super::FormatError;
use super::manifest::Manifest;
use crate::pure::base::Timestamp;
use crate::pure::crypto::{KeyRing, Secret, Signer, Slot, Verifier};
use crate::pure::id::{ChunkId, KeyId, ObjectHash, PackId, SessionId, SourceId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeKind { Commit = 1, Checkpoint = 2, Maintenance = 3, Fence = 4, Abandon = 5 }

/// Flags of an outcome (key 14).
pub mod flag {
    pub const PARTIAL: u64 = 1;
    pub const ERRORS: u64 = 2;
    pub const SET: u64 = 4;
}

/// An L≥1 run, accepted by the maintenance outcome that describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDescriptor { pub level: u8, pub parts: Vec<(String, u64, ObjectHash)>, pub inputs: Vec<String>, pub dropped_packs: Vec<PackId> }

/// Section 0 of an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub kid: KeyId,
    pub created: Timestamp,
    pub kind: OutcomeKind,
    pub session: SessionId,
    /// Inclusive ranges of accepted L0 run numbers.
    pub accepted: Vec<(u32, u32)>,
    pub run: Option<RunDescriptor>,
    pub manifest: Option<(ChunkId, u64)>,
    pub sequence: u64,
    pub previous: Option<ObjectHash>,
    pub acked: Vec<SessionId>,
    pub pins: Vec<SessionId>,
    pub source: Option<SourceId>,
    pub flags: u64,
    pub chain_floors: Vec<(KeyId, u64, ObjectHash)>,
}

/// An outcome as read: section 0, and section 1 still sealed.
#[derive(Clone, Debug)]
pub struct StoredOutcome { pub outcome: Outcome, pub object_id: [u8; 16], pub hash: ObjectHash, pub sealed_manifest: Option<(Slot, Vec<u8>)> }

impl Outcome {
    /// Encodes, signs and seals. `manifest` comes with the meta slot and session key under which its frame is sealed; the
    /// outcome's `manifest` field must name its id and length.
    pub fn encode(&self, _manifest: Option<(&[u8], &Slot, &Secret)>, _keys: &KeyRing, _signer: &Signer, _object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> { todo!() }
    /// Opens and verifies section 0 (signature, role by kind, writer tag rule except for fences).
    pub fn decode(_bytes: &[u8], _session: &SessionId, _keys: &KeyRing, _verifier: &Verifier) -> Result<StoredOutcome, FormatError> { todo!() }
    pub fn accepts(&self, number: u32) -> bool { self.accepted.iter().any(|(first, last)| (*first..=*last).contains(&number)) }
}

impl StoredOutcome {
    /// Opens the manifest.
    pub fn manifest(&self, _keys: &KeyRing) -> Result<Option<Manifest>, FormatError> { todo!() }
}
