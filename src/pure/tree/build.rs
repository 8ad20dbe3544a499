//! Building a prolly tree from entries in ascending key order: the same entries give the same bytes, whatever the history.

use crate::pure::crypto::Secret;
use crate::pure::format::config::TreeParams;
use crate::pure::id::ChunkId;

/// Takes finished nodes; returns their ids. Called from the lowest level upwards, children before parents.
pub trait NodeSink {
    type Error;
    fn put_node(&mut self, level: u8, node: Vec<u8>) -> Result<ChunkId, Self::Error>;
}

/// A finished tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltTree { pub root: ChunkId, pub height: u8, pub entries: u64, pub bytes: u64 }

/// Streaming builder; memory is bounded by one open node per level.
pub struct TreeBuilder { _private: () }

impl TreeBuilder {
    pub fn new(_params: TreeParams, _split_key: Secret) -> TreeBuilder { todo!() }
    /// Adds an entry. Keys must ascend strictly (panics otherwise: a defect of the caller).
    pub fn push<S: NodeSink>(&mut self, _key: &[u8], _value: &[u8], _file_bytes: u64, _sink: &mut S) -> Result<(), S::Error> { todo!() }
    /// Closes every level. A tree without entries is one empty leaf.
    pub fn finish<S: NodeSink>(self, _sink: &mut S) -> Result<BuiltTree, S::Error> { todo!() }
    /// Closes a copy of the open spine without ending the build: the root of everything pushed so far (for checkpoints).
    pub fn snapshot<S: NodeSink>(&self, _sink: &mut S) -> Result<BuiltTree, S::Error> { todo!() }
}
