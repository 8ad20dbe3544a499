//! The second half: deleting what was condemned, when nobody can refer to it any more.

use super::copy::rescue;
use super::locks;
use super::steps::{Ground, finish, nanos, publish, reach_ground, unexpected};
use super::survey::{ListedPack, Survey, all_condemned, list_packs};
use super::{Packs, Report, Work, refuse_homeless};
use crate::edge::store::StoreKey;
use crate::ops::OpError;
use crate::pure::base::Timestamp;
use crate::pure::format::name::ObjectName;
use crate::pure::format::session::SessionRole;
use crate::pure::id::{ChunkId, PackId, SessionId};
use crate::pure::protocol::maintain::{Action, Event, MaintenanceProtocol, Purpose};
use crate::repo::open::{list_names, store_key};
use crate::repo::session::Session;
use crate::repo::{Repo, RepoError};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Objects deleted with one request.
pub(super) const DELETED_AT_ONCE: usize = 1000;

/// What may be deleted: the generations whose time has come, and the packs as they were listed for this.
struct Ready {
    protocol: MaintenanceProtocol,
    old: HashSet<SessionId>,
    /// As listed, without those that are kept.
    listed: Vec<ListedPack>,
}

/// Deletes what every session has acknowledged to be condemned; or says how much that is. `listed` are the packs that there were a
/// moment ago. Returns those that there are now.
pub(super) fn run(work: &mut Work<'_, '_>, listed: Vec<ListedPack>) -> Result<Vec<ListedPack>, OpError> {
    let repo = work.repo;
    repo.sync_condemned()?;
    work.report.waiting = total_among(&listed, &all_condemned(repo)?);
    if work.report.waiting.packs == 0 || work.options.dry_run && !chaos!("dry-run-deletes") {
        return Ok(listed);
    }
    let mut session = Session::begin(repo, None, SessionRole::Sweep, work.options.uploads, Instant::now())?;
    let ready = match prepare(work, &mut session) {
        Ok(Some(ready)) => ready,
        Ok(None) => {
            session.abandon();
            return Ok(listed);
        }
        Err(error) => {
            session.abandon();
            return Err(error);
        }
    };
    drop(listed);
    let Ready {
        mut protocol,
        old,
        listed,
    } = ready;
    let left = match publish(session, &mut protocol, &mut work.report)? {
        Action::Delete { mut generations } => {
            generations.retain(|generation| old.contains(generation));
            delete_packs(work, &generations, listed)?
        }
        action => return Err(unexpected(&action)),
    };
    finish(&mut protocol, Event::Deleted)?;
    Ok(left)
}

/// Steps W3 to W8. `None` if there is something to wait for.
fn prepare(work: &mut Work<'_, '_>, session: &mut Session<'_>) -> Result<Option<Ready>, OpError> {
    let ground = reach_ground(work, Purpose::Sweep, Some(session))?;
    if ground.is_waiting {
        work.report.waiting_for = ground.open;
        return Ok(None);
    }
    let Work {
        repo,
        options,
        progress,
        marker,
        report,
    } = work;
    // After the index was synced: it serves until the packs are deleted, because nobody makes a pack that is condemned already.
    let mut listed = list_packs(repo)?;
    let grace = options.grace.max(Duration::from_secs(repo.config.gc.grace_seconds));
    let old = old_enough(repo, &session.acknowledged(), &listed, grace, &ground, report)?;
    if old.is_empty() {
        return Ok(None);
    }
    let mut survey = Survey::begin(repo, &listed)?;
    let homeless = survey.take_in(repo, marker.ids())?;
    refuse_homeless(&homeless)?;
    let lost = rescue(marker.reader(), session, &homeless.rescue, progress)?;
    report.rescued = (homeless.rescue.len() - lost.len()) as u64;
    report.lost = homeless.lost + lost.len() as u64;
    keep_damaged(repo, &lost, &mut listed, report)?;
    Ok(Some(Ready {
        protocol: ground.protocol,
        old,
        listed,
    }))
}

/// A condemned pack with the only copy of something that is alive and cannot be read stays, in case there is a way yet (a bad disk, a
/// copy of the repository), until it is stored again or an admin accepts the loss (I-11).
fn keep_damaged(
    repo: &Repo,
    lost: &[ChunkId],
    listed: &mut Vec<ListedPack>,
    report: &mut Report,
) -> Result<(), OpError> {
    let accepted = repo.index.accepted_losses()?;
    let mut kept: HashSet<PackId> = HashSet::new();
    for id in lost.iter().filter(|id| !accepted.contains(id)) {
        kept.extend(repo.index.find_condemned(id)?.iter().map(|place| place.pack));
    }
    report.kept_damaged = total_among(listed, &kept);
    listed.retain(|pack| !kept.contains(&pack.pack));
    Ok(())
}

/// When each generation was received by the store.
fn received(repo: &Repo) -> Result<HashMap<SessionId, Option<Timestamp>>, RepoError> {
    let mut received = HashMap::new();
    for (name, row) in list_names(&*repo.store, "gc/")? {
        if let ObjectName::Condemnation(generation) = name {
            received.insert(generation, row.modified);
        }
    }
    Ok(received)
}

/// Returns those of `generations` that were condemned at least `grace` ago, by the store's clock, and have packs that are there. The
/// report says when the next ones will be old enough.
fn old_enough(
    repo: &Repo,
    generations: &[SessionId],
    listed: &[ListedPack],
    grace: Duration,
    ground: &Ground,
    report: &mut Report,
) -> Result<HashSet<SessionId>, OpError> {
    let received = match grace.is_zero() {
        true => HashMap::new(),
        false => received(repo)?,
    };
    let mut old = HashSet::new();
    for generation in generations {
        let condemned = repo.index.condemned_by(generation)?;
        let is_there = |pack: &PackId| listed.binary_search_by_key(pack, |listed| listed.pack).is_ok();
        if !condemned.iter().any(is_there) {
            continue;
        }
        if grace.is_zero() {
            old.insert(*generation);
            continue;
        }
        // One without a time stays: there is no telling.
        let Some(then) = received.get(generation).copied().flatten() else {
            continue;
        };
        let end = Timestamp(then.0.saturating_add(nanos(grace)));
        if end <= ground.now {
            old.insert(*generation);
        } else {
            report.deletable_at = Some(report.deletable_at.map_or(end, |next| next.min(end)));
        }
    }
    Ok(old)
}

/// Deletes the packs of these generations that were listed, and looks whether they are gone. Returns what is left.
fn delete_packs(
    work: &mut Work<'_, '_>,
    generations: &[SessionId],
    listed: Vec<ListedPack>,
) -> Result<Vec<ListedPack>, OpError> {
    let repo = work.repo;
    let mut condemned: HashSet<PackId> = HashSet::new();
    for generation in generations {
        condemned.extend(repo.index.condemned_by(generation)?);
    }
    let mut doomed = listed;
    doomed.retain(|listed| condemned.contains(&listed.pack));
    let known = locks::recall(repo)?;
    let mut locked: HashMap<PackId, Timestamp> = HashMap::new();
    for some in doomed.chunks(DELETED_AT_ONCE) {
        if work.progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        let packs: Vec<(StoreKey, PackId, u64)> = some
            .iter()
            .map(|listed| (store_key(&listed.name()), listed.pack, listed.size))
            .collect();
        locked.extend(locks::erase_packs(work, &packs, &known)?);
        work.progress.files.fetch_add(some.len() as u64, Ordering::Relaxed);
    }
    locks::remember(repo, &locked)?;
    // What a store says it has deleted is believed when it does not list it any more.
    let left = list_packs(repo)?;
    let still: HashSet<PackId> = left.iter().map(|listed| listed.pack).collect();
    let gone: HashSet<PackId> = condemned.difference(&still).copied().collect();
    work.report.deleted = total_among(&doomed, &gone);
    let mut waiting = total_among(&left, &all_condemned(repo)?);
    waiting.packs = waiting.packs.saturating_sub(work.report.kept_damaged.packs);
    waiting.bytes = waiting.bytes.saturating_sub(work.report.kept_damaged.bytes);
    work.report.waiting = waiting;
    let is_undead = |listed: &&ListedPack| still.contains(&listed.pack) && !locked.contains_key(&listed.pack);
    let undead = doomed.iter().filter(is_undead).count();
    if undead > 0 {
        work.report.notes.push(format!(
            "the store still lists {undead} packs that it has deleted; the next prune tries again"
        ));
    }
    Ok(left)
}

/// How many of the packs are among these, and their bytes.
fn total_among(packs: &[ListedPack], among: &HashSet<PackId>) -> Packs {
    let mut total = Packs::default();
    for listed in packs.iter().filter(|listed| among.contains(&listed.pack)) {
        total.add(listed.size);
    }
    total
}
