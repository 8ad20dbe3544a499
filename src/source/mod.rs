//! Where data comes from: entries in tree order, each with its metadata and a reader; or one stream.

pub mod files;
pub mod stream;

pub use files::SourceError;
pub use stream::StreamError;
