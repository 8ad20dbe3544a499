//! The second half: deleting what was condemned, when nobody can refer to it any more.

use super::copy::rescue;
use super::mark::Marker;
use super::sessions::{nanos, sessions, store_time};
use super::survey::{ListedPack, Survey, list_packs};
use super::{Options, Packs, Report, out_of_order, refuse_homeless, sync_index, unexpected};
use crate::edge::store::StoreKey;
use crate::ops::{OpError, Progress};
use crate::pure::base::Timestamp;
use crate::pure::format::name::ObjectName;
use crate::pure::format::session::SessionRole;
use crate::pure::id::{PackId, SessionId};
use crate::pure::protocol::maintain::{Action, Event, Finish, MaintenanceProtocol, Purpose};
use crate::repo::error::store_error;
use crate::repo::open::{list_names, store_key};
use crate::repo::session::Session;
use crate::repo::{Repo, RepoError};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Objects deleted with one request.
const DELETED_AT_ONCE: usize = 1000;

/// Deletes what every session has acknowledged to be condemned; or says how much that is.
pub(super) fn run(
    repo: &Repo,
    options: &Options,
    marker: &mut Marker<'_>,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), OpError> {
    let condemned = condemned_and_there(repo)?;
    report.waiting = total(&condemned);
    if condemned.is_empty() || options.dry_run {
        return Ok(());
    }
    let mut session = Session::begin(repo, None, SessionRole::Sweep, options.uploads, Instant::now())?;
    let mut protocol = MaintenanceProtocol::new(Purpose::Sweep, session.id());
    match prepare(repo, options, marker, &mut session, &mut protocol, report, progress) {
        Ok(old) if old.is_empty() => {
            session.abandon();
            Ok(())
        }
        Ok(old) => delete(repo, session, protocol, &old, report, progress),
        Err(error) => {
            session.abandon();
            Err(error)
        }
    }
}

/// Steps W3 to W8. Returns the generations whose time has come; none if there is something to wait for.
fn prepare(
    repo: &Repo,
    options: &Options,
    marker: &mut Marker<'_>,
    session: &mut Session<'_>,
    protocol: &mut MaintenanceProtocol,
    report: &mut Report,
    progress: &Progress,
) -> Result<HashSet<SessionId>, OpError> {
    let mut open = Vec::new();
    let mut event = Event::Begun {
        generations: session.acknowledged(),
    };
    loop {
        event = match protocol.step(event).map_err(out_of_order)? {
            Action::ListDrops => Event::Dropped {
                dropped: repo.forgotten()?.into_iter().collect(),
            },
            Action::ListSessions => {
                open = sessions(repo, options, &session.id(), report)?;
                Event::Sessions {
                    unended: open.iter().map(|other| other.state.clone()).collect(),
                }
            }
            Action::ListSnapshots => Event::Snapshots {
                snapshots: repo.all_snapshots_without_doubt()?,
            },
            Action::Mark { live } => {
                marker.mark(&live, progress)?;
                session.tick()?;
                Event::Marked
            }
            Action::SyncIndex => {
                sync_index(repo)?;
                Event::IndexSynced
            }
            Action::Resolve => {
                let grace = options.grace.max(Duration::from_secs(repo.config.gc.grace_seconds));
                let now = store_time(&open, &session.id());
                let old = old_enough(repo, &session.acknowledged(), grace, now, report)?;
                if old.is_empty() {
                    return Ok(old);
                }
                let mut survey = Survey::begin(repo, &list_packs(repo)?)?;
                let homeless = survey.take_in(repo, marker.ids())?;
                refuse_homeless(&homeless)?;
                rescue(marker.reader(), session, &homeless.rescue, progress)?;
                report.rescued = homeless.rescue.len() as u64;
                return Ok(old);
            }
            Action::Finish(Finish::Waiting(waiting)) => {
                open.retain(|other| waiting.contains(&other.state.session));
                report.waiting_for = open;
                return Ok(HashSet::new());
            }
            action => return Err(unexpected(&action)),
        };
    }
}

/// Steps W9 and W10.
fn delete(
    repo: &Repo,
    mut session: Session<'_>,
    mut protocol: MaintenanceProtocol,
    old: &HashSet<SessionId>,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), OpError> {
    let id = session.id();
    let durable = match session.make_durable() {
        Ok(durable) => durable,
        Err(error) => {
            session.abandon();
            return Err(error.into());
        }
    };
    report.notes.extend(session.take_notes());
    let mut ending = Some((session, durable));
    let mut event = Event::Resolved;
    loop {
        event = match protocol.step(event).map_err(out_of_order)? {
            Action::Publish => {
                let (session, durable) = ending.take().ok_or_else(|| unexpected(&Action::Publish))?;
                Event::Published {
                    ours: session.publish_maintenance(durable)?,
                }
            }
            Action::Delete { mut generations } => {
                generations.retain(|generation| old.contains(generation));
                delete_packs(repo, &generations, report, progress)?;
                Event::Deleted
            }
            Action::Finish(Finish::Done) => return Ok(()),
            Action::Finish(Finish::Fenced) => return Err(RepoError::Fenced(id).into()),
            action => return Err(unexpected(&action)),
        };
    }
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
    grace: Duration,
    now: Timestamp,
    report: &mut Report,
) -> Result<HashSet<SessionId>, OpError> {
    let there: HashSet<PackId> = condemned_and_there(repo)?.iter().map(|listed| listed.pack).collect();
    let received = received(repo)?;
    let mut old = HashSet::new();
    for generation in generations {
        if !repo
            .index
            .condemned_by(generation)?
            .iter()
            .any(|pack| there.contains(pack))
        {
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
        if end <= now {
            old.insert(*generation);
        } else {
            report.deletable_at = Some(report.deletable_at.map_or(end, |next| next.min(end)));
        }
    }
    Ok(old)
}

/// Deletes the packs of these generations that are there, and looks whether they are gone.
fn delete_packs(
    repo: &Repo,
    generations: &[SessionId],
    report: &mut Report,
    progress: &Progress,
) -> Result<(), OpError> {
    let condemned = condemned_by(repo, generations)?;
    let mut there = list_packs(repo)?;
    there.retain(|listed| condemned.contains(&listed.pack));
    for some in there.chunks(DELETED_AT_ONCE) {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        let keys: Vec<StoreKey> = some.iter().map(|listed| store_key(&listed.name())).collect();
        repo.store
            .remove(&keys)
            .map_err(store_error("deleting condemned packs"))?;
        progress
            .files
            .fetch_add(some.len() as u64, std::sync::atomic::Ordering::Relaxed);
    }
    // What a store says it has deleted is believed when it does not list it any more.
    let left = condemned_and_there(repo)?;
    let still: HashSet<PackId> = left.iter().map(|listed| listed.pack).collect();
    let gone: Vec<ListedPack> = there
        .iter()
        .filter(|listed| !still.contains(&listed.pack))
        .copied()
        .collect();
    report.deleted = total(&gone);
    report.waiting = total(&left);
    if gone.len() < there.len() {
        report.notes.push(format!(
            "the store still lists {} packs that it has deleted; the next prune tries again",
            there.len() - gone.len()
        ));
    }
    Ok(())
}

fn condemned_by(repo: &Repo, generations: &[SessionId]) -> Result<HashSet<PackId>, RepoError> {
    let mut condemned = HashSet::new();
    for generation in generations {
        condemned.extend(repo.index.condemned_by(generation)?);
    }
    Ok(condemned)
}

/// Packs that any generation condemns and that are there.
fn condemned_and_there(repo: &Repo) -> Result<Vec<ListedPack>, OpError> {
    let generations = repo.sync_condemned()?;
    let condemned = condemned_by(repo, &generations)?;
    if condemned.is_empty() {
        return Ok(Vec::new());
    }
    let mut packs = list_packs(repo)?;
    packs.retain(|listed| condemned.contains(&listed.pack));
    Ok(packs)
}

fn total(packs: &[ListedPack]) -> Packs {
    let mut total = Packs::default();
    packs.iter().for_each(|listed| total.add(listed.size));
    total
}
