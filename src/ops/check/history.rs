//! Outcomes and their chains, sessions, marks, and the index runs that count.

use super::report::Report;
use crate::edge::host;
use crate::ops::OpError;
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::Outcome;
use crate::pure::id::{KeyId, ObjectHash, SessionId};
use crate::repo::Repo;
use crate::repo::error::object_error;
use crate::repo::index::KnownOutcome;
use crate::repo::open::list_names;
use crate::repo::snapshots::Snapshot;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Outcomes, their chains, sessions, condemnations and marks.
pub(super) fn check_history(repo: &Repo, report: &mut Report) -> Result<Vec<Snapshot>, OpError> {
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
    // What the mirror holds was verified when it was taken in; the objects themselves must still be what they were.
    let mut snapshots = Vec::new();
    let mut links = Vec::new();
    for known in repo.index.outcomes()? {
        let name = ObjectName::Outcome(known.session);
        match repo.fetch_outcome(&known.session) {
            Ok((stored, _)) if stored.hash != known.hash => {
                report.tamper(&name, "the object is not the one that was seen before");
            }
            Ok((stored, _)) => links.push((known.clone(), stored.outcome)),
            Err(error) => {
                report.error(&name, &error);
                continue;
            }
        }
        use crate::pure::format::outcome::OutcomeKind;
        if !known.dropped && matches!(known.kind, OutcomeKind::Commit | OutcomeKind::Checkpoint) {
            match repo.snapshot(&known.session) {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(error) => report.error(&name, &error),
            }
        }
    }
    snapshots.sort_by_key(|snapshot| snapshot.manifest.start);
    check_links(&links, report);
    let acknowledging = links
        .iter()
        .filter(|(_, outcome)| !outcome.acked.is_empty())
        .map(|(known, _)| known.session);
    check_sessions(repo, &acknowledging.collect(), report)?;
    Ok(snapshots)
}

/// Each outcome follows the one that it says it follows. Missing numbers are found without this; of two outcomes with one
/// number (a cloned host), only this finds that one was taken away.
fn check_links(outcomes: &[(KnownOutcome, Outcome)], report: &mut Report) {
    let mut by_number: HashMap<(KeyId, u64), Vec<ObjectHash>> = HashMap::new();
    for (known, _) in outcomes {
        by_number
            .entry((known.kid, known.sequence))
            .or_default()
            .push(known.hash);
    }
    for (known, outcome) in outcomes {
        let before = known
            .sequence
            .checked_sub(1)
            .and_then(|number| by_number.get(&(known.kid, number)));
        if let Some(before) = before
            && !outcome.previous.is_some_and(|hash| before.contains(&hash))
        {
            report.tamper(
                ObjectName::Outcome(known.session),
                "the outcome that it follows has been replaced or taken away",
            );
        }
    }
}

/// `acknowledging`: ended sessions whose outcome says that they acknowledged condemnations.
fn check_sessions(repo: &Repo, acknowledging: &HashSet<SessionId>, report: &mut Report) -> Result<(), OpError> {
    use crate::pure::format::condemn::Condemnation;
    use crate::pure::format::mark::{Drop, Hold};
    use crate::pure::format::session::{Acknowledgement, Registration};
    let mut registered = HashSet::new();
    let mut heartbeats: HashMap<SessionId, BTreeSet<u32>> = HashMap::new();
    for under in ["sess/", "gc/", "drop/", "hold/"] {
        for (name, _) in list_names(&*repo.store, under)? {
            let bytes = match crate::repo::open::read_whole(&*repo.store, &name, "an object") {
                Ok(bytes) => bytes,
                Err(error) => {
                    report.error(&name, &error);
                    continue;
                }
            };
            if let ObjectName::Session(session, number @ 1..) = &name {
                heartbeats.entry(*session).or_default().insert(*number);
            }
            let (keys, verifier) = (&repo.keys, &repo.verifier);
            let result = match &name {
                ObjectName::Session(session, 0) => {
                    registered.insert(*session);
                    Registration::decode(&bytes, session, keys, verifier).map(drop)
                }
                ObjectName::Session(session, number) => {
                    Acknowledgement::decode(&bytes, session, *number, keys, verifier).map(drop)
                }
                ObjectName::Condemnation(session) => Condemnation::decode(&bytes, session, keys, verifier).map(drop),
                ObjectName::Drop(session) => Drop::decode(&bytes, session, keys, verifier).map(drop),
                ObjectName::Hold(session, label) => Hold::decode(&bytes, session, label, keys, verifier).map(drop),
                _ => Ok(()),
            };
            if let Err(error) = result {
                report.error(&name, &object_error("opening", &name)(error));
            }
        }
    }
    // A registration is kept for at least a week after its session ended; without one, somebody has removed it.
    let week_ago = host::now().0 - 7 * 86_400 * 1_000_000_000;
    for known in repo.index.outcomes()? {
        if !registered.contains(&known.session) && known.created.0 > week_ago {
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
        if known.created.0 > week_ago
            && let Some(missing) = (1..=last).find(|number| !there.contains(number))
        {
            report.damage(
                ObjectName::Session(known.session, missing),
                "an acknowledgement of a recent session is missing",
            );
        }
    }
    let ended: HashSet<_> = repo.index.outcomes()?.into_iter().map(|known| known.session).collect();
    let open = registered.difference(&ended).count();
    if open > 0 {
        report.notes.push(format!(
            "{open} sessions are running, or were interrupted and have not been ended yet"
        ));
    }
    Ok(())
}

/// Every run that counts is there, decodes, and says what the local index says.
pub(super) fn check_runs(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    repo.sync_condemned()?;
    let valid = repo.valid_runs()?;
    for name in &valid.missing {
        report.damage(name, "an index run that a snapshot relies on is missing");
    }
    for (session, number, _) in &valid.level0 {
        let name = ObjectName::Run(*session, *number);
        let text = name.to_string();
        let result = crate::repo::open::read_whole(&*repo.store, &name, "an index run").and_then(|bytes| {
            crate::pure::format::run::decode_l0(&bytes, &text, &repo.keys, &repo.verifier)
                .map_err(object_error("opening", &text))
        });
        if let Err(error) = result {
            report.error(&text, &error);
        }
    }
    let sync = repo.sync_index()?;
    for (name, error) in sync.broken {
        if !report.findings.iter().any(|finding| finding.object == name) {
            report.error(name, &error);
        }
    }
    Ok(())
}
