//! The envelope around every small sealed object and every run (format-spec chapter on envelopes).

use super::FormatError;
use crate::pure::crypto::Secret;
use crate::pure::id::RepoId;

/// Type byte of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EnvelopeKind { Run = 1, Outcome = 2, Session = 3, Gc = 4, Drop = 5, Hold = 6, Grant = 7, Attest = 8 }

/// Seals sections under KH(class_key, object_id). `object_id` is 16 random bytes; `name` is bound as AAD.
pub fn seal(_kind: EnvelopeKind, _epoch: u32, _repo: &RepoId, _object_id: [u8; 16], _class_key: &Secret, _name: &str, _sections: &[&[u8]]) -> Vec<u8> { todo!() }

/// An envelope whose frame has been checked: magic, kind, repo, section table, footer hash. Nothing is opened yet.
pub struct Envelope<'a> { _bytes: &'a [u8] }

impl<'a> Envelope<'a> {
    /// Checks a whole object.
    pub fn parse(_bytes: &'a [u8], _kind: EnvelopeKind, _repo: &RepoId) -> Result<Envelope<'a>, FormatError> { todo!() }
    pub fn epoch(&self) -> u32 { todo!() }
    pub fn object_id(&self) -> [u8; 16] { todo!() }
    pub fn sections(&self) -> usize { todo!() }
    /// Opens one section.
    pub fn open(&self, _section: usize, _class_key: &Secret, _name: &str) -> Result<Vec<u8>, FormatError> { todo!() }
}

/// The head of an envelope that is read by ranges (runs): header and section table from the first bytes of the object.
pub struct EnvelopeHead { _private: () }

impl EnvelopeHead {
    /// Parses a prefix of the object. Returns `Ok(None)` when more than `prefix.len()` bytes are needed for the table.
    pub fn parse(_prefix: &[u8], _kind: EnvelopeKind, _repo: &RepoId) -> Result<Option<EnvelopeHead>, FormatError> { todo!() }
    pub fn epoch(&self) -> u32 { todo!() }
    pub fn sections(&self) -> usize { todo!() }
    /// Byte range of a sealed section within the object.
    pub fn range(&self, _section: usize) -> std::ops::Range<u64> { todo!() }
    /// Opens the bytes of a section.
    pub fn open(&self, _section: usize, _sealed: &[u8], _class_key: &Secret, _name: &str) -> Result<Vec<u8>, FormatError> { todo!() }
}
