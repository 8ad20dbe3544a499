//! Words that every ring uses.

pub mod explain;
pub mod memory;
pub mod size;
pub mod time;

pub use explain::{Explain, Kind};
pub use time::Timestamp;
