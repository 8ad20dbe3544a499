//! Bringing forgotten snapshots back, as long as what they need has not been deleted. What is published never changes and a mark is not
//! taken away, so a new snapshot with the same trees is published; chunks in condemned packs are copied out for it.
//!
//! Nothing protects the old snapshot meanwhile. So every chunk is either found where a new snapshot may refer to it, by the lookup that
//! backups use, or copied; if a sweep is faster, this one fails and publishes nothing.

use super::copy::rescue;
use super::mark::{Marker, Unreadable, no_room};
use super::survey::blob_type;
use crate::ops::{OpError, Progress};
use crate::pure::crypto::sign::role;
use crate::pure::format::blob::BlobType;
use crate::pure::format::outcome::OutcomeKind;
use crate::pure::format::session::SessionRole;
use crate::pure::id::{ChunkId, SessionId};
use crate::repo::Repo;
use crate::repo::pack_writer::Claim;
use crate::repo::session::{OutcomeLabel, Session};
use crate::repo::snapshots::Snapshot;
use std::time::Instant;

/// Returns the snapshots that are forgotten and still known, oldest first. Some of their data may be gone.
///
/// # Errors
/// When the repository cannot be listed.
pub fn forgotten(repo: &Repo) -> Result<Vec<Snapshot>, OpError> {
    repo.sync_history()?;
    let voided = repo.voided()?;
    let mut snapshots = Vec::new();
    for aged in repo.outcomes_by_age()? {
        let known = &aged.outcome;
        let is_snapshot = matches!(known.kind, OutcomeKind::Commit | OutcomeKind::Checkpoint);
        if is_snapshot && known.is_dropped() && !voided.contains(&known.session) {
            snapshots.push(repo.snapshot(&known.session)?);
        }
    }
    Ok(snapshots)
}

/// Publishes a forgotten snapshot again; returns its new id.
///
/// # Errors
/// When some of it is gone, the key may not, or the store fails: then nothing is published.
pub fn run(repo: &Repo, snapshot: &Snapshot, threads: usize, progress: &Progress) -> Result<SessionId, OpError> {
    repo.require(role::FORGET, "bring forgotten snapshots back")?;
    repo.require(role::WRITE, "write to this repository")?;
    let mut session = Session::begin(repo, None, SessionRole::Rescue, 1, Instant::now())?;
    if let Err(error) = gather(repo, snapshot, &mut session, threads, progress) {
        session.abandon();
        return Err(error);
    }
    let durable = match session.make_durable() {
        Ok(durable) => durable,
        Err(error) => {
            session.abandon();
            return Err(error.into());
        }
    };
    let label = OutcomeLabel {
        kind: snapshot.kind,
        source: Some(snapshot.manifest.source.id),
        flags: snapshot.flags,
    };
    Ok(session.publish(durable, &snapshot.manifest, &label)?.session)
}

/// Sees to it that everything the snapshot needs can be referred to.
fn gather(
    repo: &Repo,
    snapshot: &Snapshot,
    session: &mut Session<'_>,
    threads: usize,
    progress: &Progress,
) -> Result<(), OpError> {
    let is_gone = |_| OpError::Refused {
        what: format!(
            "snapshot {} cannot be brought back: some of it has been deleted",
            snapshot.id.short()
        ),
        hint: "restore what it held from an older or a newer snapshot, or from a copy of the repository".into(),
    };
    let mut marker = Marker::new(repo, threads, Unreadable::Refused);
    marker.mark(&[snapshot.id], progress).map_err(|error| match error {
        OpError::InDoubt { .. } => is_gone(()),
        error => error,
    })?;
    let mut condemned: Vec<(ChunkId, BlobType)> = Vec::new();
    let mut ids = marker.ids().sorted();
    while let Some(id) = ids.take().map_err(no_room)? {
        if session.writer().claim(&id)? == Claim::New {
            let copies = repo.index.find_condemned(&id)?;
            let copy = copies.first().ok_or(()).map_err(is_gone)?;
            condemned.push((id, blob_type(copy.stored_as)));
        }
    }
    drop(ids);
    let lost = rescue(marker.reader(), session, &condemned, progress).map_err(|error| match error {
        OpError::Repo(error) if error.is_damage() => is_gone(()),
        error => error,
    })?;
    match lost.is_empty() {
        true => Ok(()),
        false => Err(is_gone(())),
    }
}
