//! `larder`: a content-addressed, deduplicating, encrypted backup repository.
//!
//! The source is laid out in rings; a module imports only from rings to its left:
//! **`pure ← edge ← repo | source | target ← ops ← cli`** (see `docs/architecture.md`).

pub mod cli;
pub mod edge;
pub mod ops;
pub mod pure;
pub mod repo;
pub mod source;
pub mod target;
#[cfg(feature = "testing")]
pub mod testing;
