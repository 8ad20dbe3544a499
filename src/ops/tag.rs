//! Changing the tags of a snapshot: what is published never changes, so a new snapshot with the same roots takes its
//! place and the old one is dropped (format-spec chapter 16).
//!
//! The new one comes first, so that there never is none. A run that dies in between leaves both: lists say of the old one
//! that it is replaced, `latest` means the new one, and the next change of tags of either drops what is left over.

use super::OpError;
use crate::edge::host;
use crate::pure::crypto::sign::role;
use crate::pure::format::session::SessionRole;
use crate::pure::id::SessionId;
use crate::repo::session::{OutcomeLabel, Session};
use crate::repo::snapshots::{Broken, Snapshot, replaced};
use crate::repo::{Repo, RepoError};
use std::time::Instant;

/// Adds and removes tags; returns the id under which the snapshot is found from now on (the old one when nothing
/// changes). Running it again after a failure completes it.
///
/// # Errors
/// When the key may not write and forget, the snapshot is held, or it has been dropped meanwhile.
pub fn run(repo: &Repo, snapshot: &Snapshot, add: &[String], remove: &[String]) -> Result<SessionId, OpError> {
    repo.require(role::FORGET, "replace a snapshot")?;
    let (newest, mut old) = versions(repo, snapshot)?;
    refuse_held(repo, &newest.id)?;
    let mut manifest = newest.manifest.clone();
    manifest.tags.retain(|tag| !remove.contains(tag));
    manifest.tags.extend(add.iter().cloned());
    manifest.tags.sort();
    manifest.tags.dedup();
    let mut id = newest.id;
    if manifest.tags != newest.manifest.tags {
        let mut session = Session::begin(repo, Some(newest.id), SessionRole::Backup, 1, Instant::now())?;
        // Only what is pinned and still there may be referenced.
        if session.parents() != [newest.id] {
            session.abandon();
            return Err(RepoError::NoSuchSnapshot(newest.id.to_string()).into());
        }
        let durable = session.make_durable()?;
        let label = OutcomeLabel {
            // A checkpoint stays one: tags do not complete it.
            kind: newest.kind,
            source: Some(manifest.source.id),
            flags: newest.flags,
        };
        id = session.publish(durable, &manifest, &label)?.session;
        old.push(newest.id);
    }
    for session in &old {
        repo.drop_snapshot(session, &format!("tags were changed; replaced by {id}"))?;
    }
    if !old.is_empty() {
        repo.sync_marks()?;
    }
    Ok(id)
}

/// A hold is on one snapshot as it is: it would stay beside the new one, which nothing would hold.
fn refuse_held(repo: &Repo, session: &SessionId) -> Result<(), OpError> {
    let holds = repo.holds_on(session, &mut Broken::new())?;
    if holds.iter().any(|hold| hold.is_active(host::now())) {
        let id = session.short();
        return Err(OpError::Refused {
            what: format!("snapshot {id} is held, and changing its tags would replace it"),
            hint: format!("`larder snapshot release {id}` ends that; give tags before holding"),
        });
    }
    Ok(())
}

/// Returns the newest version of a snapshot, and those that it replaces and that are still there.
fn versions(repo: &Repo, snapshot: &Snapshot) -> Result<(Snapshot, Vec<SessionId>), OpError> {
    // One that cannot be opened is no version of this one.
    let snapshots = repo.snapshots_noting(&mut Vec::new())?;
    let replaced = replaced(&snapshots);
    // A session pins what was there before it, so this ends.
    let newest_of = |mut id: SessionId| {
        while let Some(next) = replaced.get(&id) {
            id = *next;
        }
        id
    };
    let newest = newest_of(snapshot.id);
    let old = replaced
        .keys()
        .filter(|id| newest_of(**id) == newest)
        .copied()
        .collect();
    Ok((repo.snapshot(&newest)?, old))
}
