//! What came of replicating.

use super::Outcomes;
pub use crate::ops::check::Finding;
use crate::pure::base::Timestamp;
use crate::pure::id::SessionId;
use std::collections::HashSet;

/// Findings that are kept.
const FINDINGS_MAX: usize = 1000;

/// How far a replica is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Outcomes that the source has and the replica has not.
    pub outcomes: u64,
    /// When the source received the first of them: until then the replica has everything.
    pub since: Option<Timestamp>,
    /// When it received the last of them.
    pub newest: Option<Timestamp>,
}

impl Behind {
    pub(super) fn of(source: &Outcomes, replica: &Outcomes) -> Behind {
        let mut behind = Behind::default();
        for (id, listed) in source {
            if replica.contains_key(id) {
                continue;
            }
            behind.outcomes += 1;
            behind.since = match (behind.since, listed.modified) {
                (Some(first), Some(time)) => Some(first.min(time)),
                (first, time) => first.or(time),
            };
            behind.newest = behind.newest.max(listed.modified);
        }
        behind
    }
}

/// What was copied, and what was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Objects that were copied, or would be.
    pub objects_copied: u64,
    pub bytes_copied: u64,
    /// Objects that the replica had already.
    pub objects_there: u64,
    pub bytes_there: u64,
    /// Objects of the replica that were read and compared.
    pub objects_verified: u64,
    /// Damaged objects of the replica that were replaced.
    pub objects_healed: u64,
    /// Objects that were deleted at the source while they were to be copied, by a prune. No snapshot needs them.
    pub vanished: u64,
    /// Packs that the replica has and the source does not.
    pub packs_beyond: u64,
    pub bytes_beyond: u64,
    /// Passwords and key files that open the replica and not the source any more.
    pub keys_beyond: u64,
    /// How often the listing and copying was begun, because a prune went on meanwhile.
    pub rounds: u32,
    pub behind_before: Behind,
    pub behind_after: Behind,
    /// Outcomes that the replica has and the source has lost.
    pub lost_at_source: Vec<SessionId>,
    /// The first thousand.
    pub findings: Vec<Finding>,
    pub findings_total: u64,
    /// Outcomes of the source that are in the replica now.
    pub(super) published: HashSet<SessionId>,
}

impl Report {
    /// Whether anything that was found looks like tampering or a rollback.
    pub fn shows_tampering(&self) -> bool {
        !self.lost_at_source.is_empty() || self.findings.iter().any(|finding| finding.tamper)
    }

    pub(super) fn find(&mut self, object: impl ToString, what: impl Into<String>, tamper: bool) {
        self.findings_total += 1;
        let finding = Finding {
            object: object.to_string(),
            what: what.into(),
            tamper,
        };
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else if tamper && let Some(last) = self.findings.last_mut() {
            // What no accident explains is never crowded out.
            *last = finding;
        }
    }
}
