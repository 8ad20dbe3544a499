//! Walking and comparing trees: entries in key order, skipping what two trees share.

use crate::pure::format::FormatError;
use crate::pure::id::ChunkId;
use std::sync::Arc;

/// Fetches verified node bytes by id.
pub trait NodeSource {
    type Error: From<FormatError>;
    fn node(&mut self, id: &ChunkId) -> Result<Arc<[u8]>, Self::Error>;
}

/// A position in a tree: yields (key, value) in ascending order. Checks levels, key order across nodes, entry and byte counts.
pub struct TreeWalk { _private: () }

impl TreeWalk {
    /// Starts at the first key ≥ `from`. `height` and totals are checked against what the nodes say.
    pub fn new(_root: ChunkId, _height: u8, _from: &[u8]) -> TreeWalk { todo!() }
    /// Returns the next entry, or `None` at the end.
    #[allow(clippy::type_complexity)]
    pub fn next<S: NodeSource>(&mut self, _source: &mut S) -> Result<Option<(Vec<u8>, Vec<u8>)>, S::Error> { todo!() }
    /// Moves forward to the first key ≥ `key` without visiting what lies between.
    pub fn seek<S: NodeSource>(&mut self, _key: &[u8], _source: &mut S) -> Result<(), S::Error> { todo!() }
}

/// Looks one key up.
pub fn lookup<S: NodeSource>(_root: ChunkId, _height: u8, _key: &[u8], _source: &mut S) -> Result<Option<Vec<u8>>, S::Error> { todo!() }

/// Visits every distinct node once, parents before children, skipping ids for which `enter` returns false.
pub fn for_each_node<S: NodeSource>(_root: ChunkId, _height: u8, _source: &mut S, _enter: &mut dyn FnMut(&ChunkId, u8) -> Result<bool, S::Error>) -> Result<(), S::Error> { todo!() }

/// A difference between two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference { Added { key: Vec<u8>, value: Vec<u8> }, Removed { key: Vec<u8>, value: Vec<u8> }, Changed { key: Vec<u8>, old: Vec<u8>, new: Vec<u8> } }

/// Calls `each` for every difference in key order; subtrees with equal ids are not read.
pub fn diff<S: NodeSource>(_old: (ChunkId, u8), _new: (ChunkId, u8), _source: &mut S, _each: &mut dyn FnMut(Difference) -> Result<(), S::Error>) -> Result<(), S::Error> { todo!() }
