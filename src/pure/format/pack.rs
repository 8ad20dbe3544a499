//! Packs (format-spec chapter on packs): frames back to back, a sealed trailer that describes them, a plaintext footer.

use super::FormatError;
use super::blob::BlobType;
use super::name::PackKind;
use crate::pure::crypto::{Secret, Slot};
use crate::pure::id::{ChunkId, PackId, RepoId, SessionId};

pub const HEADER_LEN: usize = 64;
pub const FOOTER_LEN: usize = 88;

/// The 64 plaintext bytes at the start of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHeader { pub kind: PackKind, pub epoch: u32, pub repo: RepoId, pub pack: PackId, pub session: SessionId }

impl PackHeader {
    pub fn encode(&self) -> [u8; HEADER_LEN] { todo!() }
    pub fn decode(_bytes: &[u8]) -> Result<PackHeader, FormatError> { todo!() }
}

/// One blob of a pack, in frame order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRecord {
    pub ty: BlobType,
    pub id: ChunkId,
    /// Offset of the frame in the pack (implied by order; filled in on decode).
    pub offset: u32,
    /// Length of the whole frame.
    pub stored_len: u32,
    pub raw_len: u32,
    /// The base, if the frame is a delta.
    pub base: Option<ChunkId>,
}

/// Slots and records of a trailer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackTrailer { pub slots: Vec<Slot>, pub records: Vec<PackRecord> }

/// The 88 plaintext bytes at the end of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackFooter { pub trailer_offset: u64, pub trailer_len: u32, pub body_hash: [u8; 32], pub pack: PackId }

impl PackFooter {
    /// Decodes the last 88 bytes of a pack of `pack_len` bytes; checks the crc and that the trailer ends where the footer starts.
    pub fn decode(_bytes: &[u8], _pack_len: u64) -> Result<PackFooter, FormatError> { todo!() }
}

/// Opens a sealed trailer. `trailer_key` is the object key of class Trailer for the header's epoch.
pub fn open_trailer(_header: &[u8; HEADER_LEN], _sealed: &[u8], _trailer_key: &Secret) -> Result<PackTrailer, FormatError> { todo!() }

/// Parts of a whole pack whose frame checks have passed (header, footer, body hash).
pub struct PackParts<'a> { pub header: PackHeader, pub footer: PackFooter, pub sealed_trailer: &'a [u8] }

/// Checks a whole pack without keys: header, footer, body hash.
pub fn check_whole(_bytes: &[u8]) -> Result<PackParts<'_>, FormatError> { todo!() }

/// Builds a pack in one buffer.
pub struct PackBuilder { _private: () }

/// A finished pack.
pub struct SealedPack {
    pub header: PackHeader,
    pub bytes: Vec<u8>,
    pub slots: Vec<Slot>,
    pub records: Vec<PackRecord>,
    pub body_hash: [u8; 32],
    pub crc64nvme: u64,
}

impl PackBuilder {
    /// Starts a pack in `buffer` (cleared; its capacity is kept).
    pub fn new(_header: PackHeader, _slots: Vec<Slot>, _buffer: Vec<u8>) -> PackBuilder { todo!() }
    /// Appends a frame that is already sealed.
    pub fn push(&mut self, _ty: BlobType, _id: ChunkId, _raw_len: u32, _base: Option<ChunkId>, _frame: &[u8]) { todo!() }
    /// Bytes so far, header included, trailer not.
    pub fn len(&self) -> usize { todo!() }
    pub fn is_empty(&self) -> bool { todo!() }
    pub fn records(&self) -> &[PackRecord] { todo!() }
    /// Writes trailer and footer.
    pub fn seal(self, _trailer_key: &Secret) -> SealedPack { todo!() }
}
