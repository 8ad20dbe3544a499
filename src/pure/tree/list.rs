//! Building and reading list trees: the pieces of a large file, in order.

use crate::pure::format::{FormatError, config::TreeParams, entry::{ChunkRef, Content}};
use crate::pure::id::ChunkId;

/// Takes finished list nodes; returns their ids.
pub trait ListSink {
    type Error;
    fn put_list(&mut self, node: Vec<u8>) -> Result<ChunkId, Self::Error>;
}

/// Streaming builder of a file's content: inline list while it fits, list tree beyond.
pub struct ContentBuilder { _private: () }

impl ContentBuilder {
    pub fn new(_params: TreeParams) -> ContentBuilder { todo!() }
    pub fn push<S: ListSink>(&mut self, _piece: ChunkRef, _sink: &mut S) -> Result<(), S::Error> { todo!() }
    /// Returns total bytes and the content form.
    pub fn finish<S: ListSink>(self, _sink: &mut S) -> Result<(u64, Content), S::Error> { todo!() }
}

/// Fetches list nodes by id.
pub trait ListSource {
    type Error: From<FormatError>;
    fn list_node(&mut self, id: &ChunkId) -> Result<Vec<u8>, Self::Error>;
}

/// Calls `each(offset, piece)` for every piece of a content that overlaps `range`, in order; checks that sizes add up to `size`.
/// Inline content has no pieces.
pub fn for_each_piece<S: ListSource>(_content: &Content, _size: u64, _range: std::ops::Range<u64>, _source: &mut S, _each: &mut dyn FnMut(u64, ChunkRef) -> Result<(), S::Error>) -> Result<(), S::Error> { todo!() }
