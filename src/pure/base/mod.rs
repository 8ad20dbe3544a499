//! Words that every ring uses.

pub mod explain;
pub mod lock;
pub mod memory;
pub mod size;
pub mod time;

pub use explain::{Explain, Kind, with_causes};
pub use lock::LockMode;
pub use time::Timestamp;
