//! The verbs: each takes an open repository, options and a [`Progress`], and returns a report.

pub mod backup;
pub mod check;
pub mod copy;
pub mod doctor;
pub mod dump;
pub mod error;
pub mod forget;
pub mod generate;
mod grants;
pub mod hold;
pub mod holders;
pub mod keys;
pub mod look;
mod node_key;
pub mod object_lock;
pub mod parity;
pub mod progress;
pub mod promote;
pub mod prune;
mod queue;
pub mod repair;
pub mod replicate;
pub mod restore;
pub mod revoke;
pub mod rotate;
pub mod tag;

pub use error::OpError;
pub use progress::Progress;
