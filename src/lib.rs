//! `larder`: a content-addressed, deduplicating, encrypted backup repository.
//!
//! The source is laid out in rings; a module imports only from rings to its left:
//! **`pure ← edge ← repo | source | target ← ops ← cli`** (see `docs/architecture.md`).

/// Whether a defect is switched on, by its name. Constantly false, and gone, without the feature `chaos-mutants`: see [`chaos`].
macro_rules! chaos {
    ($name:literal) => {
        $crate::chaos::on($name)
    };
}

#[cfg(all(feature = "chaos-mutants", not(debug_assertions)))]
compile_error!("chaos-mutants compiles defects in, for tests of the tests; never in a release");

#[doc(hidden)]
pub mod chaos;
pub mod cli;
pub mod edge;
pub mod ops;
pub mod pure;
pub mod repo;
pub mod source;
pub mod target;
#[cfg(feature = "testing")]
pub mod testing;
