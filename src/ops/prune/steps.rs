//! What condemning and sweeping have in common: the steps up to where they part, and publishing.

use super::mark::CHECK_HINT;
use super::{Options, Report, Work};
use crate::edge::host;
use crate::ops::OpError;
use crate::pure::base::{Explain, Kind, Timestamp};
use crate::pure::id::SessionId;
use crate::pure::protocol::maintain::{Action, Event, Finish, MaintenanceProtocol, Purpose};
use crate::repo::maintain::OpenSession;
use crate::repo::session::{Maintained, Session};
use crate::repo::{Repo, RepoError};
use std::time::Duration;

const LAGGING_HINT: &str = "if the store lists new objects late, prune again when nothing has been written for a while; or another \
    prune has ended this one with --end-session";

/// Where a session stands when everything that is alive is marked and the index is in sync.
pub(super) struct Ground {
    pub protocol: MaintenanceProtocol,
    /// Snapshots that are alive.
    pub live: usize,
    /// Sessions that have not ended; those that are waited for, if so.
    pub open: Vec<OpenSession>,
    pub is_waiting: bool,
    /// By the store's clock, as far as it tells.
    pub now: Timestamp,
}

/// Takes steps W3 to W7. Without a session, for a dry run, nobody is fenced.
///
/// # Errors
/// When something is in doubt or cannot be read, the store fails, or the user wants it to end.
pub(super) fn reach_ground(
    work: &mut Work<'_, '_>,
    purpose: Purpose,
    mut session: Option<&mut Session<'_>>,
) -> Result<Ground, OpError> {
    let repo = work.repo;
    let (own, generations) = match &session {
        Some(session) => (session.id(), session.acknowledged()),
        None => (SessionId([0; 16]), repo.sync_condemned()?),
    };
    let mut ground = Ground {
        protocol: MaintenanceProtocol::new(purpose, own),
        live: 0,
        open: Vec::new(),
        is_waiting: false,
        now: Timestamp::default(),
    };
    let mut event = Event::Begun { generations };
    loop {
        event = match step(&mut ground.protocol, event)? {
            Action::ListDrops => Event::Dropped {
                dropped: repo.forgotten()?.into_iter().collect(),
            },
            Action::ListSessions => {
                ground.open = match session {
                    Some(_) => sessions(repo, work.options, &own, &mut work.report)?,
                    None => repo.sessions_that_have_not_ended()?,
                };
                Event::Sessions {
                    unended: ground.open.iter().map(|other| other.state.clone()).collect(),
                }
            }
            Action::ListSnapshots => Event::Snapshots {
                snapshots: repo.all_snapshots_without_doubt()?,
            },
            Action::Mark { live } => {
                ground.live = live.len();
                work.marker.mark(&live, work.progress)?;
                if let Some(session) = &mut session {
                    session.tick()?;
                }
                Event::Marked
            }
            Action::SyncIndex => {
                sync_index(repo)?;
                Event::IndexSynced
            }
            Action::Resolve => {
                ground.now = store_time(&ground.open, &own);
                return Ok(ground);
            }
            Action::Finish(Finish::Waiting(waiting)) => {
                ground.open.retain(|other| waiting.contains(&other.state.session));
                ground.is_waiting = true;
                return Ok(ground);
            }
            action => return Err(unexpected(&action)),
        };
    }
}

/// Step W9: what the session has copied counts from here on. Returns what comes next.
///
/// # Errors
/// When it cannot be published, or somebody took the session for dead.
pub(super) fn publish(
    mut session: Session<'_>,
    protocol: &mut MaintenanceProtocol,
    report: &mut Report,
) -> Result<Action, OpError> {
    let id = session.id();
    let durable = match session.make_durable() {
        Ok(durable) => durable,
        Err(error) => {
            session.abandon();
            return Err(error.into());
        }
    };
    report.notes.extend(session.take_notes());
    match step(protocol, Event::Resolved)? {
        Action::Publish => {}
        action => return Err(unexpected(&action)),
    }
    let ours = session.publish_maintenance(durable, Maintained::default())?;
    match step(protocol, Event::Published { ours })? {
        Action::Finish(Finish::Fenced) => Err(RepoError::Fenced(id).into()),
        action => Ok(action),
    }
}

/// Takes the last step.
///
/// # Errors
/// When it is not the last one: a defect.
pub(super) fn finish(protocol: &mut MaintenanceProtocol, event: Event) -> Result<(), OpError> {
    match step(protocol, event)? {
        Action::Finish(Finish::Done) => Ok(()),
        action => Err(unexpected(&action)),
    }
}

fn step(protocol: &mut MaintenanceProtocol, event: Event) -> Result<Action, OpError> {
    protocol
        .step(event)
        .map_err(|error| RepoError::Internal(error.to_string()).into())
}

/// A step that does not belong here: a defect.
pub(super) fn unexpected(action: &Action) -> OpError {
    RepoError::Internal(format!("unexpected {action:?} in maintenance")).into()
}

/// Takes the index as it is in the repository; it has to be complete.
pub(super) fn sync_index(repo: &Repo) -> Result<(), OpError> {
    let mut sync = repo.sync_index()?;
    let (what, source) = match (sync.broken.pop(), sync.missing.pop()) {
        (Some((name, error)), _) => (format!("{name} cannot be used"), Some(error)),
        (None, Some(name)) => (format!("{name} is missing"), None),
        (None, None) => return Ok(()),
    };
    Err(OpError::InDoubt {
        what,
        kind: source.as_ref().map_or(Kind::Damage, RepoError::kind),
        source: source.map(Box::new),
        hint: CHECK_HINT,
    })
}

/// Lists the sessions that have not ended. Those that gave no sign of life for long, by the store's clock, those that somebody says
/// are dead, and those of keys that are revoked are ended first.
fn sessions(repo: &Repo, options: &Options, own: &SessionId, report: &mut Report) -> Result<Vec<OpenSession>, OpError> {
    let open = repo.sessions_that_have_not_ended()?;
    // The order of listings is worth nothing where they come late: a writer that registered before us would not be waited for.
    if !open.iter().any(|other| other.state.session == *own) {
        return Err(OpError::InDoubt {
            what: format!("sess/{own}, which this run has just created, is not listed"),
            source: None,
            kind: Kind::Unavailable,
            hint: LAGGING_HINT,
        });
    }
    let now = store_time(&open, own);
    let silence_max = nanos(Duration::from_secs(repo.config.gc.dead_seconds));
    let is_revoked = |session: &SessionId| {
        let mut writers = repo.verifier.writers.iter();
        writers.any(|writer| writer.revoked_at.is_some() && writer.kid.0[..4] == session.writer_tag()[..])
    };
    let is_dead = |other: &&OpenSession| {
        let is_silent = other
            .last_seen
            .is_some_and(|seen| now.0.saturating_sub(seen.0) > silence_max);
        let session = &other.state.session;
        session != own && (is_silent || options.end_sessions.contains(session) || is_revoked(session))
    };
    let dead: Vec<SessionId> = open.iter().filter(is_dead).map(|other| other.state.session).collect();
    if dead.is_empty() {
        return Ok(open);
    }
    for session in &dead {
        let is_ended = match is_revoked(session) {
            // Nobody counts what it would publish.
            true => repo.end_revoked(session)?,
            false => repo.fence(session)?,
        };
        if is_ended {
            report.fenced.push(*session);
        }
    }
    Ok(repo.sessions_that_have_not_ended()?)
}

/// What time it is for the store, as far as it tells: when it received the newest object of the session that runs now.
fn store_time(open: &[OpenSession], own: &SessionId) -> Timestamp {
    let own = open.iter().find(|other| other.state.session == *own);
    own.and_then(|own| own.last_seen)
        .filter(|_| !chaos!("grace-by-own-clock"))
        .unwrap_or_else(host::now)
}

/// As the format has it.
pub(super) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
