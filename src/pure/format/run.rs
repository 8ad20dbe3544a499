//! Index runs (format-spec chapter on runs): which chunk lies in which pack, sorted.

use super::FormatError;
use super::name::PackKind;
use crate::pure::base::Timestamp;
use crate::pure::crypto::{KeyRing, Signer, Slot, Verifier};
use crate::pure::id::{ChunkId, KeyId, PackId, SessionId};

/// What a chunk record says about the blob: type nibble of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredAs { Data = 0, Node = 1, List = 2, Manifest = 3, Delta = 8 }

/// One pack of a run (80 bytes stored).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPack {
    pub pack: PackId,
    pub session: SessionId,
    pub size: u32,
    pub blob_count: u32,
    pub kind: PackKind,
    /// Indexes into [`Run::slots`], in the pack's own slot order: a contiguous range.
    pub slots: std::ops::Range<u32>,
    pub crc64nvme: u64,
    pub body_hash24: [u8; 24],
}

/// One chunk of a run (44 bytes stored).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunChunk { pub id: ChunkId, pub pack_ix: u32, pub offset: u32, pub stored_as: StoredAs, pub stored_len: u32 }

/// A delta's base (68 bytes stored).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunDelta { pub id: ChunkId, pub pack_ix: u32, pub base: ChunkId }

/// Header fields beyond what the content decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunIdentity { pub kid: KeyId, pub created: Timestamp, pub session: SessionId, pub number: u32 }

/// The content of an L0 run. Packs sorted by id, chunks by (id, pack_ix), deltas by (id, pack_ix).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RunContent { pub slots: Vec<Slot>, pub packs: Vec<RunPack>, pub chunks: Vec<RunChunk>, pub deltas: Vec<RunDelta> }

/// Encodes, signs and seals an L0 run under its name. `object_id` is random.
pub fn encode_l0(_content: &RunContent, _identity: &RunIdentity, _keys: &KeyRing, _signer: &Signer, _object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> { todo!() }

/// Opens, verifies (digest, signature, writer tag rule, sortedness, index ranges) and decodes a whole L0 run. `name` is the object's name.
pub fn decode_l0(_bytes: &[u8], _name: &str, _keys: &KeyRing, _verifier: &Verifier) -> Result<(RunIdentity, RunContent), FormatError> { todo!() }

/// The head of a run that is read by ranges: enough to find the block that may hold an id.
pub struct RunHead { _private: () }

impl RunHead {
    /// Parses the first bytes of a run (64 KiB are normally enough). `Ok(None)`: more bytes are needed, see [`Self::prefix_needed`].
    pub fn parse(_prefix: &[u8], _name: &str, _keys: &KeyRing) -> Result<Option<RunHead>, FormatError> { todo!() }
    /// Bytes of prefix that [`Self::parse`] needs, judged from the first 64 bytes (upper bound).
    pub fn prefix_needed(_first_64: &[u8]) -> Result<usize, FormatError> { todo!() }
    /// Sections (with byte ranges) of the chunk blocks that may hold `id`, usually one.
    pub fn chunk_blocks(&self, _id: &ChunkId) -> Vec<(usize, std::ops::Range<u64>)> { todo!() }
    /// Section and byte range of the pack block that holds the pack with rank `pack_ix`.
    pub fn pack_block(&self, _pack_ix: u32) -> (usize, std::ops::Range<u64>) { todo!() }
    /// Sections and byte ranges of the slot blocks that hold `slots`.
    pub fn slot_blocks(&self, _slots: &std::ops::Range<u32>) -> Vec<(usize, std::ops::Range<u64>)> { todo!() }
    /// Sections of the delta blocks that may hold `id`.
    pub fn delta_blocks(&self, _id: &ChunkId) -> Vec<(usize, std::ops::Range<u64>)> { todo!() }
    pub fn open_chunks(&self, _section: usize, _sealed: &[u8], _keys: &KeyRing) -> Result<Vec<RunChunk>, FormatError> { todo!() }
    /// Opens a pack block; the rank of its first pack comes with it.
    pub fn open_packs(&self, _section: usize, _sealed: &[u8], _keys: &KeyRing) -> Result<(u32, Vec<RunPack>), FormatError> { todo!() }
    /// Opens a slot block; the index of its first slot comes with it.
    pub fn open_slots(&self, _section: usize, _sealed: &[u8], _keys: &KeyRing) -> Result<(u32, Vec<Slot>), FormatError> { todo!() }
    pub fn open_deltas(&self, _section: usize, _sealed: &[u8], _keys: &KeyRing) -> Result<Vec<RunDelta>, FormatError> { todo!() }
}
