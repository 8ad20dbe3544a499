//! Defects that can be switched on, so that the tests can be tested: each `chaos!("name")` in the source is a place at which something
//! that somebody relies on is left out. `scripts/chaos-mutants` switches on one after the other and expects the tests to notice. Only
//! with the feature `chaos-mutants`, which does not build in a release; else a place is `false`, and costs nothing.

use std::sync::LazyLock;

/// The one that is switched on in this process.
static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("LARDER_CHAOS_MUTANT").ok());

/// Whether the defect with this name is switched on.
#[inline(always)]
pub fn on(name: &str) -> bool {
    cfg!(feature = "chaos-mutants") && CHOSEN.as_deref() == Some(name)
}
