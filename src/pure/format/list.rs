//! List nodes (format-spec chapter on lists): the chunks of files with more than 64 pieces.

use super::{FormatError, entry::ChunkRef};
use crate::pure::id::ChunkId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListNode {
    Leaf(Vec<ChunkRef>),
    /// Level ≥ 1: child ids and the total bytes below each.
    Inner { level: u8, children: Vec<(ChunkId, u64)> },
}

impl ListNode {
    pub fn encode(&self) -> Vec<u8> { todo!() }
    pub fn decode(_bytes: &[u8]) -> Result<ListNode, FormatError> { todo!() }
}
