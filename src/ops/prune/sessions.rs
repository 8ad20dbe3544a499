//! The sessions of others, as maintenance sees them.

use super::{Options, Report};
use crate::edge::host;
use crate::ops::OpError;
use crate::pure::base::Timestamp;
use crate::pure::id::SessionId;
use crate::repo::Repo;
use crate::repo::maintain::OpenSession;
use std::time::Duration;

/// Lists the sessions that have not ended. Those that gave no sign of life for long, by the store's clock, and those that somebody says
/// are dead, are ended first.
///
/// # Errors
/// When what a session relies on cannot be read, or the store fails.
pub(super) fn sessions(
    repo: &Repo,
    options: &Options,
    own: &SessionId,
    report: &mut Report,
) -> Result<Vec<OpenSession>, OpError> {
    let open = repo.sessions_that_have_not_ended()?;
    let now = store_time(&open, own);
    let silence_max = nanos(Duration::from_secs(repo.config.gc.dead_seconds));
    let is_dead = |other: &&OpenSession| {
        let is_silent = other
            .last_seen
            .is_some_and(|seen| now.0.saturating_sub(seen.0) > silence_max);
        other.state.session != *own && (is_silent || options.end_sessions.contains(&other.state.session))
    };
    let dead: Vec<SessionId> = open.iter().filter(is_dead).map(|other| other.state.session).collect();
    if dead.is_empty() {
        return Ok(open);
    }
    for session in &dead {
        if repo.fence(session)? {
            report.fenced.push(*session);
        }
    }
    Ok(repo.sessions_that_have_not_ended()?)
}

/// What time it is for the store, as far as it tells: when it received the newest object of the session that runs now.
pub(super) fn store_time(open: &[OpenSession], own: &SessionId) -> Timestamp {
    let own = open.iter().find(|other| other.state.session == *own);
    own.and_then(|own| own.last_seen).unwrap_or_else(host::now)
}

/// As the format has it.
pub(super) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
