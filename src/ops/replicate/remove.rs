//! Deleting from a replica what the source has deleted. Copying needs no key, this does: which packs may go is in the condemnations,
//! which are sealed, and which nobody without a maintainer's key can forge. Whoever empties the source empties no replica.

use super::pairs::{Pair, side_by_side};
use super::{Report, maintenance_since, outcomes};
use crate::edge::store::{Store, StoreKey};
use crate::ops::{OpError, Progress};
use crate::pure::base::Kind;
use crate::pure::format::name::ObjectName;
use crate::pure::id::PackId;
use crate::repo::Repo;
use crate::repo::error::store_error;
use crate::repo::index::PackState;
use crate::repo::open::{list_names, store_key};
use crate::repo::standing::Standing;
use std::collections::HashSet;

/// Objects deleted with one request.
const DELETED_AT_ONCE: usize = 1000;

/// What was deleted from a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub packs: u64,
    pub bytes: u64,
    pub holds: u64,
    pub keys: u64,
    /// Packs that the source has lost: runs list them, and no condemnation names them. They stay.
    pub lost_at_source: u64,
    /// A prune went on at the source, so nothing was deleted this time.
    pub is_postponed: bool,
}

/// Deletes packs that the source has swept, holds that were released there, and passwords that were removed there. `copied` is the
/// report of a run that has just brought the replica up to date.
///
/// # Errors
/// When the source has less than it should have, anything about the replica is in doubt, or a store fails. Nothing that a snapshot of
/// the replica needs is deleted, wherever it stops.
pub fn run(source: &dyn Store, replica: &Repo, copied: &Report, progress: &Progress) -> Result<Removed, OpError> {
    let target = &*replica.store;
    if !matches!(replica.standing, Standing::Replica(_)) {
        return Err(OpError::Refused {
            what: format!("{} is not a replica, so nothing was deleted", target.location()),
            hint: "a primary is pruned: `larder repo prune`".into(),
        });
    }
    if copied.shows_tampering() || copied.findings_total > 0 {
        return Err(in_doubt(
            format!(
                "the source has lost {} outcomes, and {} objects are not as they should be",
                copied.lost_at_source.len(),
                copied.findings_total
            ),
            if copied.shows_tampering() {
                Kind::Tamper
            } else {
                Kind::Damage
            },
        ));
    }
    // Gaps and what does not open.
    replica.all_snapshots_without_doubt()?;
    let opens_the_source = list_names(source, "keys/")?
        .iter()
        .any(|(name, _)| *name == replica.protector);
    if !opens_the_source {
        return Err(in_doubt(
            format!("{}, which opened the replica, is not at the source", replica.protector),
            Kind::Tamper,
        ));
    }
    let mut condemned: HashSet<PackId> = HashSet::new();
    for generation in replica.sync_condemned()? {
        condemned.extend(replica.index.condemned_by(&generation)?);
    }

    // A pack that no run lists any more is nobody's, though its condemnation was retired before it could be copied.
    replica.sync_index()?;
    let mut needed: HashSet<PackId> = HashSet::new();
    replica.index.packs(&mut |pack| {
        if matches!(pack.state, PackState::Live | PackState::Absent) {
            needed.insert(pack.pack);
        }
    })?;

    let mut removed = Removed::default();
    let mut doomed: Vec<(StoreKey, u64)> = Vec::new();
    for under in ["data/", "meta/"] {
        side_by_side(source, target, under, &mut |pair| {
            let Pair::Beyond(key, size) = pair else { return };
            match ObjectName::parse(key.as_str()) {
                Some(ObjectName::Pack(_, pack, _)) if condemned.contains(&pack) => doomed.push((key, size)),
                Some(ObjectName::Pack(_, pack, _)) if needed.contains(&pack) => removed.lost_at_source += 1,
                _ => {}
            }
        })?;
    }
    // After the listings. A sweep that ended after the outcomes were copied may have moved what was alive in these packs to others,
    // which the replica does not have yet.
    let published = copied.published.iter().map(|id| (*id, NOTHING)).collect();
    if maintenance_since(source, &published, &outcomes(source, "the source")?)? {
        return Ok(Removed {
            is_postponed: true,
            ..Removed::default()
        });
    }
    // A snapshot that was held and is not any more goes from sight before its packs go.
    removed.holds = remove_beyond(source, target, "hold/")?;
    removed.keys = remove_beyond(source, target, "keys/")?;
    for some in doomed.chunks(DELETED_AT_ONCE) {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        let keys: Vec<StoreKey> = some.iter().map(|(key, _)| key.clone()).collect();
        target
            .remove(&keys)
            .map_err(store_error("deleting packs of the replica that the source has swept"))?;
        removed.packs += some.len() as u64;
        removed.bytes += some.iter().map(|(_, size)| size).sum::<u64>();
    }
    Ok(removed)
}

/// Only that it is listed counts here.
const NOTHING: super::Listed = super::Listed {
    size: 0,
    modified: None,
};

/// Deletes the objects under a prefix that the source does not have.
fn remove_beyond(source: &dyn Store, target: &dyn Store, under: &str) -> Result<u64, OpError> {
    let ours: HashSet<ObjectName> = list_names(source, under)?.into_iter().map(|(name, _)| name).collect();
    let beyond: Vec<StoreKey> = list_names(target, under)?
        .into_iter()
        .filter(|(name, _)| !ours.contains(name))
        .map(|(name, _)| store_key(&name))
        .collect();
    if !beyond.is_empty() {
        target.remove(&beyond).map_err(store_error(format!(
            "deleting from {under} of the replica what the source has removed"
        )))?;
    }
    Ok(beyond.len() as u64)
}

fn in_doubt(what: String, kind: Kind) -> OpError {
    OpError::InDoubt {
        what,
        source: None,
        kind,
        hint: "look at the source first: it may have been set back, damaged or emptied; the replica still has what it had",
    }
}
