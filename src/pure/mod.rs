//! Values in, values out: no IO, no clock, no randomness, no threads.

pub mod base;
pub mod chunk;
pub mod compress;
pub mod crypto;
pub mod format;
pub mod id;
pub mod plan;
pub mod protocol;
pub mod tree;
