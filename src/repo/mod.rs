//! The repository: the format over a store.

pub mod index;
