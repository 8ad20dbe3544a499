//! Changing the tags of a snapshot: what is published never changes, so a new snapshot with the same roots takes its
//! place and the old one is dropped (format-spec chapter 16). If the run dies in between, both are there.

use super::OpError;
use crate::edge::host;
use crate::pure::crypto::sign::role;
use crate::pure::format::mark::{Drop, DropKind};
use crate::pure::format::name::ObjectName;
use crate::pure::format::session::SessionRole;
use crate::pure::id::SessionId;
use crate::repo::error::object_error;
use crate::repo::open::create_new;
use crate::repo::session::{OutcomeLabel, Session};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, RepoError};
use std::time::Instant;

/// Adds and removes tags; returns the id under which the snapshot is found from now on (the old one when nothing
/// changes).
///
/// # Errors
/// When the key may not write and forget, or the snapshot has been dropped meanwhile.
pub fn run(repo: &Repo, snapshot: &Snapshot, add: &[String], remove: &[String]) -> Result<SessionId, OpError> {
    repo.require(role::FORGET, "replace a snapshot")?;
    let mut manifest = snapshot.manifest.clone();
    manifest.tags.retain(|tag| !remove.contains(tag));
    manifest.tags.extend(add.iter().cloned());
    manifest.tags.sort();
    manifest.tags.dedup();
    if manifest.tags == snapshot.manifest.tags {
        return Ok(snapshot.id);
    }
    let mut session = Session::begin(repo, Some(snapshot.id), SessionRole::Backup, 1, Instant::now())?;
    // Only what is pinned and still there may be referenced.
    if session.parents() != [snapshot.id] {
        session.abandon();
        return Err(RepoError::NoSuchSnapshot(snapshot.id.to_string()).into());
    }
    let durable = session.make_durable()?;
    let label = OutcomeLabel {
        // A checkpoint stays one: tags do not complete it.
        kind: snapshot.kind,
        source: Some(manifest.source.id),
        flags: snapshot.flags,
    };
    let published = session.publish(durable, &manifest, &label)?;
    let dropped = Drop {
        kid: repo.kid,
        created: host::now(),
        kind: DropKind::Forget,
        session: snapshot.id,
        reason: format!("tags were changed; replaced by {}", published.session),
    };
    let name = ObjectName::Drop(snapshot.id);
    let body = dropped
        .encode(&repo.keys, &repo.signer, host::random())
        .map_err(object_error("sealing", &name))?;
    create_new(&*repo.store, &name, body, "the mark that the old snapshot is replaced")?;
    repo.sync_drops()?;
    Ok(published.session)
}
