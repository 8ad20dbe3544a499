//! One outside thing each; knows nothing of backup.

pub mod accounts;
pub mod disk;
pub mod fs;
pub mod host;
pub mod localdb;
pub mod process;
pub mod store;
