//! Outcomes and their chains, sessions, marks, and the index runs that count.

use super::keys::list;
use super::report::Report;
use super::side_by_side::{FETCHES, side_by_side};
use super::trees::SnapshotRoot;
use crate::edge::host;
use crate::ops::OpError;
use crate::pure::base::Timestamp;
use crate::pure::format::condemn::Condemnation;
use crate::pure::format::manifest::Root;
use crate::pure::format::mark::{Drop, Hold};
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::OutcomeKind;
use crate::pure::format::session::{Acknowledgement, Registration};
use crate::pure::id::{KeyId, ObjectHash, SessionId};
use crate::repo::compacted::read_through;
use crate::repo::error::object_error;
use crate::repo::index::KnownOutcome;
use crate::repo::open::read_whole;
use crate::repo::runs::ListedRun;
use crate::repo::snapshots::HistoryState;
use crate::repo::{Repo, RepoError};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Index runs in memory at a time: the largest have a million rows.
const RUNS_AT_ONCE: usize = 3;

/// A snapshot that is checked: what is needed of its manifest, which may be long.
pub(super) struct CheckedSnapshot {
    pub id: SessionId,
    start: Timestamp,
    roots: Vec<Root>,
}

impl CheckedSnapshot {
    pub(super) fn into_roots(self) -> impl Iterator<Item = SnapshotRoot> {
        let snapshot = self.id;
        self.roots.into_iter().map(move |root| SnapshotRoot { snapshot, root })
    }
}

/// What one outcome says, or what is wrong with it.
#[derive(Default)]
struct Looked {
    /// What links it to others; `None` if it cannot be read, or is not the one that was seen.
    link: Option<Link>,
    snapshot: Option<CheckedSnapshot>,
    is_another: bool,
    errors: Vec<RepoError>,
}

struct Link {
    session: SessionId,
    kid: KeyId,
    sequence: u64,
    hash: ObjectHash,
    previous: Option<ObjectHash>,
    acknowledges: bool,
}

/// Outcomes, their chains, sessions, condemnations and marks. Returns the snapshots, oldest first.
pub(super) fn check_history(repo: &Repo, report: &mut Report) -> Result<Vec<CheckedSnapshot>, OpError> {
    let state = repo.sync_history()?;
    for (name, error) in &state.broken {
        report.error(name, error);
    }
    for gap in state.gaps {
        report.tamper("history", gap);
    }
    report.notes.extend(
        state
            .forks
            .into_iter()
            .map(|fork| format!("{fork}: a host was cloned or set back")),
    );
    // What is voided may be damaged: that is why it was.
    let voided = repo.voided()?;
    let mut outcomes = repo.index.outcomes()?;
    outcomes.retain(|known| !voided.contains(&known.session));
    let mut snapshots = Vec::new();
    let mut links = Vec::new();
    let looked = side_by_side(&outcomes, FETCHES, |known| look_at(repo, known));
    for (known, looked) in outcomes.iter().zip(looked) {
        let name = ObjectName::Outcome(known.session);
        if looked.is_another {
            report.tamper(&name, "the object is not the one that was seen before");
        }
        looked.errors.iter().for_each(|error| report.error(&name, error));
        snapshots.extend(looked.snapshot);
        links.extend(looked.link);
    }
    snapshots.sort_by_key(|snapshot| snapshot.start);
    check_links(&links, report);
    let acknowledging = links.iter().filter(|link| link.acknowledges).map(|link| link.session);
    check_sessions(repo, &outcomes, &acknowledging.collect(), report)?;
    Ok(snapshots)
}

/// What the mirror holds was verified when it was taken in; the object itself must still be what it was.
fn look_at(repo: &Repo, known: &KnownOutcome) -> Looked {
    let mut looked = Looked::default();
    match repo.fetch_outcome(&known.session) {
        Ok((stored, _)) if stored.hash != known.hash => looked.is_another = true,
        Ok((stored, _)) => {
            looked.link = Some(Link {
                session: known.session,
                kid: known.kid,
                sequence: known.sequence,
                hash: known.hash,
                previous: stored.outcome.previous,
                acknowledges: !stored.outcome.acked.is_empty(),
            });
        }
        Err(error) => {
            looked.errors.push(error);
            return looked;
        }
    }
    if !known.is_dropped() && matches!(known.kind, OutcomeKind::Commit | OutcomeKind::Checkpoint) {
        match repo.snapshot(&known.session) {
            Ok(snapshot) => {
                looked.snapshot = Some(CheckedSnapshot {
                    id: snapshot.id,
                    start: snapshot.manifest.start,
                    roots: snapshot.manifest.roots,
                });
            }
            Err(error) => looked.errors.push(error),
        }
    }
    looked
}

/// Each outcome follows the one that it says it follows. Missing numbers are found without this; of two outcomes with one
/// number (a cloned host), only this finds that one was taken away.
fn check_links(links: &[Link], report: &mut Report) {
    let mut by_number: HashMap<(KeyId, u64), Vec<ObjectHash>> = HashMap::new();
    for link in links {
        by_number.entry((link.kid, link.sequence)).or_default().push(link.hash);
    }
    for link in links {
        let before = link
            .sequence
            .checked_sub(1)
            .and_then(|number| by_number.get(&(link.kid, number)));
        if let Some(before) = before
            && !link.previous.is_some_and(|hash| before.contains(&hash))
        {
            report.tamper(
                ObjectName::Outcome(link.session),
                "the outcome that it follows has been replaced or taken away",
            );
        }
    }
}

/// `acknowledging`: ended sessions whose outcome says that they acknowledged condemnations.
fn check_sessions(
    repo: &Repo,
    outcomes: &[KnownOutcome],
    acknowledging: &HashSet<SessionId>,
    report: &mut Report,
) -> Result<(), OpError> {
    let mut registered = HashSet::new();
    let mut heartbeats: HashMap<SessionId, BTreeSet<u32>> = HashMap::new();
    for under in ["sess/", "gc/", "drop/", "hold/"] {
        let names = list(repo, under, report)?;
        let opened = side_by_side(&names, FETCHES, |name| open_mark(repo, name));
        for (name, opened) in names.iter().zip(opened) {
            // What is there but does not open was not taken away.
            match name {
                ObjectName::Session(session, 0) => {
                    registered.insert(*session);
                }
                ObjectName::Session(session, number) => {
                    heartbeats.entry(*session).or_default().insert(*number);
                }
                _ => {}
            }
            if let Err(error) = opened {
                report.error(name, &error);
            }
        }
    }
    // A registration is kept for at least a week after its session ended; without one, somebody has removed it.
    let is_recent = recent(repo)?;
    for known in outcomes {
        if !registered.contains(&known.session) && is_recent(known) {
            report.damage(
                ObjectName::Session(known.session, 0),
                "the registration of a recent session is missing",
            );
        }
        // As far as their number is known: up to the last one that is there, and one at least where something was acknowledged.
        let there = heartbeats.remove(&known.session).unwrap_or_default();
        let last = there
            .last()
            .copied()
            .unwrap_or(0)
            .max(u32::from(acknowledging.contains(&known.session)));
        if is_recent(known)
            && let Some(missing) = (1..=last).find(|number| !there.contains(number))
        {
            report.damage(
                ObjectName::Session(known.session, missing),
                "an acknowledgement of a recent session is missing",
            );
        }
    }
    let mut ended = repo.voided()?;
    ended.extend(outcomes.iter().map(|known| known.session));
    let open = registered.difference(&ended).count();
    if open > 0 {
        report.notes.push(format!(
            "{open} sessions are running, or were interrupted and have not been ended yet"
        ));
    }
    Ok(())
}

/// Tells which outcomes are less than a week old: by the store's clock, which maintenance goes by too, and by that of whoever wrote
/// them where the store has none.
fn recent(repo: &Repo) -> Result<impl Fn(&KnownOutcome) -> bool + use<>, OpError> {
    const WEEK: i64 = 7 * 86_400 * 1_000_000_000;
    let received = repo.received()?;
    let newest = received.values().max().copied();
    let now = host::now();
    Ok(
        move |known: &KnownOutcome| match (received.get(&known.session), newest) {
            (Some(received), Some(newest)) => received.0 > newest.0.saturating_sub(WEEK),
            _ => known.created.0 > now.0.saturating_sub(WEEK),
        },
    )
}

/// Reads and verifies an object that belongs to sessions or snapshots.
fn open_mark(repo: &Repo, name: &ObjectName) -> Result<(), RepoError> {
    let bytes = read_whole(&*repo.store, name, "an object")?;
    let (keys, verifier) = (&repo.keys, &repo.verifier);
    match name {
        ObjectName::Session(session, 0) => Registration::decode(&bytes, session, keys, verifier).map(std::mem::drop),
        ObjectName::Session(session, number) => {
            Acknowledgement::decode(&bytes, session, *number, keys, verifier).map(std::mem::drop)
        }
        ObjectName::Condemnation(session) => Condemnation::decode(&bytes, session, keys, verifier).map(std::mem::drop),
        ObjectName::Drop(session) => Drop::decode(&bytes, session, keys, verifier).map(std::mem::drop),
        ObjectName::Hold(session, label) => Hold::decode(&bytes, session, label, keys, verifier).map(std::mem::drop),
        _ => Ok(()),
    }
    .map_err(object_error("opening", name))
}

/// Every run that counts is there and decodes. What the local index does not know yet is taken in, which is the same reading.
pub(super) fn check_runs(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    repo.sync_condemned()?;
    // After the condemnations: copies of what is condemned were published before.
    repo.sync_outcomes(&mut HistoryState::default())?;
    let sync = repo.sync_index()?;
    for (name, error) in &sync.broken {
        report.error(name, error);
    }
    let valid = repo.valid_runs()?;
    for name in &valid.missing {
        report.damage(name, "an index run that a snapshot relies on is missing");
    }
    let is_told: HashSet<&String> = sync.broken.iter().map(|(name, _)| name).collect();
    let not_read = valid
        .tops
        .iter()
        .filter(|run| !sync.read.contains(&run.name()) && !is_told.contains(&run.name()));
    let not_read: Vec<&ListedRun> = not_read.collect();
    let opened = side_by_side(&not_read, RUNS_AT_ONCE, |run| read_through(repo, run, &valid));
    for (run, opened) in not_read.iter().zip(opened) {
        if let Err(error) = opened {
            report.error(run.name(), &error);
        }
    }
    Ok(())
}
