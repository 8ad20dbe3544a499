//! Manifests (format-spec chapter on manifests): what a snapshot holds.

use super::FormatError;
use crate::pure::base::Timestamp;
use crate::pure::id::{ChunkId, PackId, SessionId, SourceId};
use std::collections::BTreeMap;

/// Who and what was backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source { pub id: SourceId, pub kind: u64, pub host: String, pub user: String, pub label: String }

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootKind { Posix = 0, ObjectMap = 1, StreamSet = 2, Windows = 3 }

/// One root tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root { pub path: Vec<u8>, pub kind: RootKind, pub node: ChunkId, pub height: u8, pub entries: u64, pub bytes: u64, pub chunker: u64 }

/// Where an inner node lies, so that one file is found with few requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint { pub pack: PackId, pub offset: u32, pub len: u32, pub node: ChunkId }

/// A source-side problem that was recorded: path, short code, text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceProblem { pub path: Vec<u8>, pub code: String, pub text: String }

/// Figures of the run that wrote the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats { pub files_new: u64, pub files_changed: u64, pub files_unmodified: u64, pub dirs: u64, pub bytes_processed: u64, pub bytes_read: u64, pub bytes_new: u64, pub bytes_stored: u64, pub chunks_new: u64, pub chunks_reused: u64, pub packs_uploaded: u64, pub requests: u64 }

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub source: Source,
    pub start: Timestamp,
    pub end: Timestamp,
    pub roots: Vec<Root>,
    /// `key=value` or plain words.
    pub tags: Vec<String>,
    pub parents: Vec<SessionId>,
    pub users: BTreeMap<u32, String>,
    pub groups: BTreeMap<u32, String>,
    pub problems_total: u64,
    /// At most 1000.
    pub problems: Vec<SourceProblem>,
    pub hints: Vec<Hint>,
    pub stats: Stats,
    /// Checkpoints: the last key that was completed, per root being written.
    pub resume: Option<Vec<u8>>,
    pub tool: String,
    pub options_digest: Option<[u8; 32]>,
}

impl Manifest {
    pub fn encode(&self) -> Vec<u8> { todo!() }
    pub fn decode(_bytes: &[u8]) -> Result<Manifest, FormatError> { todo!() }
}
