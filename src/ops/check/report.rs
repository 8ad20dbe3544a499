//! What a check found.

use crate::repo::RepoError;

/// One thing that is wrong.
#[derive(Clone, Debug)]
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
    pub packs: u64,
    pub packs_read: u64,
    pub bytes_read: u64,
    pub chunks_verified: u64,
    /// Packs chosen for reading that the time limit left over.
    pub packs_left: u64,
    /// Oldest verification among all packs, if every pack was ever verified; nanoseconds since the epoch.
    pub oldest_verified: Option<i64>,
    pub never_verified: u64,
    pub unknown_objects: Vec<String>,
    pub unreferenced_packs: u64,
    pub findings: Vec<Finding>,
    pub damaged_files: Vec<DamagedFile>,
    pub damaged_files_total: u64,
    pub notes: Vec<String>,
}

impl Report {
    pub(super) fn damage(&mut self, object: impl ToString, what: impl ToString) {
        self.findings.push(Finding {
            object: object.to_string(),
            what: what.to_string(),
            tamper: false,
        });
    }

    pub(super) fn tamper(&mut self, object: impl ToString, what: impl ToString) {
        self.findings.push(Finding {
            object: object.to_string(),
            what: what.to_string(),
            tamper: true,
        });
    }

    pub(super) fn error(&mut self, object: impl ToString, error: &RepoError) {
        use crate::pure::base::{Explain, Kind};
        let tamper = error.kind() == Kind::Tamper;
        self.findings.push(Finding {
            object: object.to_string(),
            what: chain(error),
            tamper,
        });
    }
}

/// An error with everything below it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
