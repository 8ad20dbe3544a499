//! What a check found.

use crate::pure::base::{Explain, Kind};
use crate::repo::RepoError;

/// At most this many findings are kept; the count goes on. A repository of millions of packs may have lost all of them.
const FINDINGS_MAX: usize = 10_000;
/// At most this many unknown names are kept; the count goes on.
const UNKNOWN_NAMES_MAX: usize = 1000;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Object, chunk or path.
    pub object: String,
    pub what: String,
    /// Whether this says "tampering or rollback" rather than "damage".
    pub tamper: bool,
}

/// A file that cannot be restored whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DamagedFile {
    pub path: Vec<u8>,
    pub snapshots: Vec<String>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub snapshots: u64,
    pub trees_read: u64,
    /// Packs that valid runs describe and that are not condemned: what snapshots rely on.
    pub packs: u64,
    pub packs_read: u64,
    pub bytes_read: u64,
    pub chunks_verified: u64,
    /// Packs chosen for reading that the time limit left over.
    pub packs_left: u64,
    /// Oldest verification among all packs, if every pack was ever verified; nanoseconds since the epoch.
    pub oldest_verified: Option<i64>,
    pub never_verified: u64,
    /// The first thousand.
    pub unknown_objects: Vec<String>,
    pub unknown_objects_total: u64,
    /// Packs at the store that this machine knows nothing of.
    pub unreferenced_packs: u64,
    /// Objects without a parity sidecar; `None` where there are to be none.
    pub without_parity: Option<u64>,
    /// The first ten thousand.
    pub findings: Vec<Finding>,
    pub findings_total: u64,
    /// Whether any finding, kept or not, says "tampering or rollback".
    pub shows_tampering: bool,
    /// The first thousand.
    pub damaged_files: Vec<DamagedFile>,
    /// Different paths. Exact up to a million; beyond that, at least so many.
    pub damaged_files_total: u64,
    pub notes: Vec<String>,
}

impl Report {
    /// Whether nothing wrong was found in what was looked at.
    pub fn is_sound(&self) -> bool {
        self.findings_total == 0 && self.damaged_files_total == 0
    }

    pub(super) fn damage(&mut self, object: impl ToString, what: impl ToString) {
        self.add(object, what.to_string(), false);
    }

    pub(super) fn tamper(&mut self, object: impl ToString, what: impl ToString) {
        self.add(object, what.to_string(), true);
    }

    pub(super) fn error(&mut self, object: impl ToString, error: &RepoError) {
        self.add(object, chain(error), error.kind() == Kind::Tamper);
    }

    pub(super) fn unknown_name(&mut self, name: impl ToString) {
        self.unknown_objects_total += 1;
        if self.unknown_objects.len() < UNKNOWN_NAMES_MAX {
            self.unknown_objects.push(name.to_string());
        }
    }

    /// Takes over the findings of another report.
    pub(super) fn absorb(&mut self, other: Report) {
        self.findings_total += other.findings_total;
        self.shows_tampering |= other.shows_tampering;
        let room = FINDINGS_MAX.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.into_iter().take(room));
    }

    fn add(&mut self, object: impl ToString, what: String, tamper: bool) {
        self.findings_total += 1;
        self.shows_tampering |= tamper;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                object: object.to_string(),
                what,
                tamper,
            });
        }
    }
}

/// An error with everything below it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    crate::pure::base::with_causes(error)
}
