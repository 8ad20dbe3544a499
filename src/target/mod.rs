//! Where restored data goes.

pub mod files;

pub use files::TargetError;
