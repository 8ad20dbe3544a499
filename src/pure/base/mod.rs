//! Words that every ring uses.

pub mod explain;
pub mod memory;
pub mod size;
pub mod time;

pub use explain::{Explain, Kind, with_causes};
pub use time::Timestamp;
