//! Holding a snapshot, so that nothing forgets it, and letting it go again, at once or later (format-spec chapter 9.5).

use super::OpError;
use crate::edge::host;
use crate::edge::store::Failure;
use crate::pure::base::Timestamp;
use crate::pure::crypto::sign::role;
use crate::pure::format::name::ObjectName;
use crate::pure::id::SessionId;
use crate::repo::error::store_error;
use crate::repo::open::store_key;
use crate::repo::snapshots::HistoryState;
use crate::repo::{Repo, RepoError};

/// What letting go came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Holds that were removed.
    pub removed: usize,
    /// Until when the snapshot is still held.
    pub until: Option<Timestamp>,
}

/// Holds a snapshot until a time, or for ever. Holds add up: the one that lasts longest counts.
///
/// # Errors
/// When the key may not hold, the time is past, or the snapshot is gone.
pub fn hold(repo: &Repo, session: &SessionId, until: Option<Timestamp>, reason: &str) -> Result<(), OpError> {
    repo.require(role::HOLD, "hold snapshots")?;
    if until.is_some_and(|until| until <= host::now()) {
        return Err(OpError::Usage("a hold ends in the future".into()));
    }
    let name = repo.hold_snapshot(session, until, reason)?;
    // Only what is there and not forgotten after the hold is held: a sweep that had listed holds before goes by the drop.
    let mut state = HistoryState::default();
    let (dropped, _) = repo.sync_drops(&mut state)?;
    state.require_sound()?;
    let outcome = ObjectName::Outcome(*session);
    let is_there = match repo.store.stat(&store_key(&outcome)) {
        Ok(_) => true,
        Err(error) if error.class == Failure::NotFound => false,
        Err(error) => return Err(store_error("looking for the snapshot that is held")(error).into()),
    };
    if is_there && !dropped.contains(session) {
        return Ok(repo.sync_marks()?);
    }
    let hold = ObjectName::Hold(*session, name);
    repo.erase_or_hide(&[store_key(&hold)], "removing a hold on what is gone")?;
    if is_there {
        return Err(OpError::Refused {
            what: format!("{session} has been forgotten, so it cannot be held"),
            hint: format!("`larder repo undelete {session}` brings it back, if its data is still there"),
        });
    }
    Err(RepoError::NoSuchSnapshot(session.to_string()).into())
}

/// Lets a snapshot go: at once, or at a time until which it is still held. Running it again after a failure completes it.
///
/// # Errors
/// When the key may not hold, or the store does not delete.
pub fn release(repo: &Repo, session: &SessionId, until: Option<Timestamp>) -> Result<Released, OpError> {
    repo.require(role::HOLD, "release snapshots")?;
    let is_held = !repo.holds_on(session, &mut Vec::new())?.is_empty();
    // The hold that ends comes before those that do not have gone.
    let last = match until.filter(|_| is_held) {
        Some(until) => Some(repo.hold_snapshot(session, Some(until), "released")?),
        None => None,
    };
    let removed = repo.remove_holds(session, last.as_deref())?;
    repo.sync_marks()?;
    Ok(Released {
        removed,
        until: last.and(until),
    })
}
