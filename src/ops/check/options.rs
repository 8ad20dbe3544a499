//! What a check is asked to do.

use crate::pure::id::PackId;
use crate::repo::snapshots::Snapshot;
use std::collections::HashSet;
use std::time::Duration;

/// Which packs have their data read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subset {
    /// Every pack.
    All,
    /// Part `n` (1-based) of `m`: all parts together cover everything.
    Part { number: u32, of: u32 },
    /// The packs verified longest ago, up to this many bytes.
    Bytes(u64),
    /// The packs verified longest ago, up to this share of all bytes, in thousandths of a percent.
    Share(u32),
    /// Just these.
    These(HashSet<PackId>),
}

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Read packs, and which.
    pub read_data: Option<Subset>,
    /// Stop starting new packs after this long.
    pub max_time: Option<Duration>,
    /// Skip packs whose data was verified more recently than this.
    pub max_age: Option<Duration>,
    /// Only what this snapshot reaches.
    pub snapshot: Option<Snapshot>,
    pub threads: usize,
}
