//! The repository: the format over a store. Opening, reading, writing packs, sessions and snapshots.

mod again;
pub mod at_once;
pub mod compacted;
mod erase;
pub mod error;
pub mod index;
pub mod locate;
pub mod lock;
pub mod maintain;
pub mod marks;
pub mod needed;
pub mod open;
pub mod pack_writer;
pub mod parity;
pub mod presence;
pub mod reader;
mod recent;
pub mod reindex;
pub mod runs;
pub mod session;
pub mod sidecars;
pub mod snapshots;
pub mod spans;
pub mod standing;
pub mod sync;
pub mod trailers;
mod windows;

pub use error::RepoError;
pub use open::Repo;
