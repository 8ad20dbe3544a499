//! Blob frames (format-spec chapter on blobs): sealing and opening one chunk, node, list node or manifest.

use super::FormatError;
use crate::pure::compress::Decompressor;
use crate::pure::crypto::{BlobKey, KeyRing};
use crate::pure::id::{ChunkId, RepoId};

/// Bytes that a frame has beyond its payload: slot index, codec, length, tag.
pub const FRAME_OVERHEAD: usize = 2 + 5 + 16;
/// Largest plaintext of a blob.
pub const RAW_BYTES_MAX: usize = 16 << 20;

/// What a blob holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobType { Data = 0, Node = 1, List = 2, Manifest = 3 }

impl BlobType {
    pub fn from_byte(byte: u8) -> Option<BlobType> {
        Some(match byte { 0 => BlobType::Data, 1 => BlobType::Node, 2 => BlobType::List, 3 => BlobType::Manifest, _ => return None })
    }
}

/// How the payload of a blob is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec { Raw, Zstd, Delta(ChunkId) }

/// Whether frames are padded (config key 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding { None, Padme }

/// Appends one sealed frame to `out` and returns its length.
#[allow(clippy::too_many_arguments)]
pub fn seal_frame(_out: &mut Vec<u8>, _key: &BlobKey, _repo: &RepoId, _slot_index: u16, _ty: BlobType, _id: &ChunkId, _codec: Codec, _raw_len: u32, _payload: &[u8], _padding: Padding) -> usize { todo!() }

/// Reusable buffers for opening frames: one per worker thread.
pub struct Opener { pub decompressor: Decompressor, pub scratch: Vec<u8> }

impl Opener {
    pub fn new() -> Opener { todo!() }
}

/// A frame that has been opened.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// The plaintext is in `out` and its id has been verified.
    Done,
    /// A delta: call [`finish_delta`] with the plaintext of `base`.
    NeedsBase { base: ChunkId, raw_len: u32, frame: Vec<u8> },
}

/// Returns the slot index of a frame (unauthenticated; a wrong one makes the open fail).
pub fn slot_index(_frame: &[u8]) -> Result<u16, FormatError> { todo!() }

/// Opens a frame into `out`, decodes it and verifies its id. `raw_len`, where known, must match.
pub fn open_frame(_frame: &[u8], _key: &BlobKey, _keys: &KeyRing, _ty: BlobType, _id: &ChunkId, _opener: &mut Opener, _out: &mut Vec<u8>) -> Result<Opened, FormatError> { todo!() }

/// Decodes a delta against the plaintext of its base into `out` and verifies the id.
pub fn finish_delta(_opened: &Opened, _base: &[u8], _keys: &KeyRing, _id: &ChunkId, _opener: &mut Opener, _out: &mut Vec<u8>) -> Result<(), FormatError> { todo!() }
