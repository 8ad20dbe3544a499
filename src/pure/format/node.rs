//! Tree nodes (format-spec chapter on trees): sorted entries with prefix-compressed keys.

use super::FormatError;
use crate::pure::id::ChunkId;

/// A decoded node: keys are rebuilt, values are ranges into the node's bytes.
#[derive(Clone, Debug)]
pub struct Node { pub level: u8, pub entries: Vec<(Vec<u8>, Vec<u8>)> }

/// Value of an inner entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child { pub id: ChunkId, pub leaf_entries: u64, pub file_bytes: u64 }

impl Node {
    /// Encodes a node from sorted entries.
    pub fn encode(_level: u8, _entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> { todo!() }
    /// Decodes and checks: version, sorted unique keys, canonical prefixes, bounds, nothing left over.
    pub fn decode(_bytes: &[u8]) -> Result<Node, FormatError> { todo!() }
}

impl Child {
    pub fn encode(&self) -> Vec<u8> { todo!() }
    pub fn decode(_bytes: &[u8]) -> Result<Child, FormatError> { todo!() }
}
