//! Where restored data goes.

pub mod files;
