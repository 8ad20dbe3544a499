//! Keeping a replica: every sealed object of a repository is copied to another place as it is, without any key (format-spec chapter
//! 16.7, docs/adr/0024-replicas.md). Backups and prunes go on meanwhile; nothing is locked.
//!
//! What a reader of the replica sees restores from the replica, at every moment and wherever the copying stops. An outcome makes a
//! snapshot visible, so it comes last:
//!
//! 1. Which place is the primary, and whether one history leads to the other, is looked at first (`look`).
//! 2. The outcomes of the source are listed. Then keys and configurations, packs, runs and sessions are listed and copied: all that
//!    these outcomes need was there before them.
//! 3. The outcomes are listed once more. A sweep publishes its outcome *before* it deletes, so if there is no new one of maintenance,
//!    everything that was deleted so far is needed by none of the outcomes of the first listing. Otherwise it begins again at 2.
//! 4. Condemnations, holds, drops of what is not there yet, and then the outcomes of step 2, oldest first (`publish`).
//!
//! Nothing is deleted; `remove` does that, and needs a key.

mod copy;
mod look;
mod pairs;
mod publish;
pub mod remove;
mod report;

pub use report::{Behind, Finding, Report};

use super::{OpError, Progress};
use crate::edge::store::{Part, Store};
use crate::pure::base::{Kind, Timestamp};
use crate::pure::format::name::ObjectName;
use crate::pure::format::sealed;
use crate::pure::id::SessionId;
use crate::repo::error::store_error;
use crate::repo::open::{prefix, store_key};
use copy::Copier;
use std::collections::BTreeMap;

/// How often it begins anew because a prune went on meanwhile.
const ROUNDS_MAX: u32 = 8;
/// As much of an outcome as tells whether it is a snapshot's.
const OUTCOME_HEAD_BYTES: u64 = 64;

/// How to replicate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Only say how far the replica is behind and what would be copied.
    pub dry_run: bool,
    /// Read everything that the replica has, compare it with the source, and replace what is damaged there.
    pub verify: bool,
    /// Objects that are copied at a time.
    pub threads: usize,
    /// Bytes of objects that may be in memory at a time. One larger than this is copied alone.
    pub bytes_in_memory: u64,
}

/// Outcomes as a store lists them.
type Outcomes = BTreeMap<SessionId, Listed>;

/// What is known of an outcome from its listing.
#[derive(Clone, Copy, Debug)]
struct Listed {
    size: u64,
    modified: Option<Timestamp>,
}

/// Brings the replica in `target` up to date with `source`.
///
/// # Errors
/// When one of the two is not what it must be, two histories have parted, a store fails, or it was told to stop. What was copied until
/// then is used by the next run.
pub fn run(source: &dyn Store, target: &dyn Store, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    let mut ground = look::look(source, target, options.dry_run)?;
    if !options.dry_run {
        ground.mark(source, target)?;
    }
    let copier = Copier::new(source, target, ground.repo(), options, progress);
    let there = outcomes(target, "the replica")?;
    let mut report = Report::default();
    let mut round = 0;
    let (listed, after) = loop {
        round += 1;
        let listed = outcomes(source, "the source")?;
        if round == 1 {
            report.behind_before = Behind::of(&listed, &there);
        }
        ground.copy_keys(&copier)?;
        copier.copy_all(&["data/", "meta/"])?;
        copier.copy_all(&["idx/"])?;
        copier.copy_all(&["sess/", "attest/"])?;
        let after = outcomes(source, "the source")?;
        if options.dry_run || !maintenance_since(source, &listed, &after)? {
            break (listed, after);
        }
        if round == ROUNDS_MAX {
            return Err(OpError::Copies {
                what: format!(
                    "a prune ended during each of {ROUNDS_MAX} attempts, so no new snapshot was made visible in the replica"
                ),
                kind: Kind::Busy,
                hint: "run it again when no prune is running: what was copied is used again".into(),
            });
        }
    };
    report.rounds = round;
    publish::publish(&copier, &listed, &there)?;
    report.lost_at_source = there.keys().filter(|id| !after.contains_key(*id)).copied().collect();
    report.behind_after = match options.dry_run {
        true => report.behind_before,
        false => Behind::of(&outcomes(source, "the source")?, &listed),
    };
    copier.finish(&mut report);
    report.published = listed.into_keys().collect();
    Ok(report)
}

/// Lists the outcomes of a store.
fn outcomes(store: &dyn Store, whose: &str) -> Result<Outcomes, OpError> {
    let mut outcomes = Outcomes::new();
    store
        .list(&prefix("snap/"), &mut |row| {
            if let Some(ObjectName::Outcome(id)) = ObjectName::parse(row.key.as_str()) {
                outcomes.insert(
                    id,
                    Listed {
                        size: row.size,
                        modified: row.modified.filter(|time| time.0 > 0),
                    },
                );
            }
        })
        .map_err(store_error(format!("listing the snapshots of {whose}")))?;
    Ok(outcomes)
}

/// Whether outcomes appeared between two listings that are not those of snapshots: a prune may have deleted something.
fn maintenance_since(source: &dyn Store, before: &Outcomes, after: &Outcomes) -> Result<bool, OpError> {
    for id in after.keys().filter(|id| !before.contains_key(*id)) {
        if !is_snapshot(source, id)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an outcome is that of a snapshot; in doubt it is not.
fn is_snapshot(source: &dyn Store, id: &SessionId) -> Result<bool, OpError> {
    let name = ObjectName::Outcome(*id);
    let head = source
        .read(&store_key(&name), Part::Range(0..OUTCOME_HEAD_BYTES))
        .map_err(store_error(format!("reading {name} of the source")))?;
    Ok(sealed::outcome_has_manifest(&head) == Some(true))
}
