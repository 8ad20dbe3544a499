//! Making a replica the primary: the next configuration names its place (format-spec chapter 4.1). From then on writers write there, and
//! the old primary, as soon as it learns of that configuration, refuses.

use super::OpError;
use crate::edge::host;
use crate::edge::store::{Created, Failure};
use crate::pure::base::Kind;
use crate::pure::crypto::sign::role;
use crate::pure::format::FormatError;
use crate::pure::format::config::ObjectLock;
use crate::pure::format::name::ObjectName;
use crate::pure::format::replica::ReplicaMark;
use crate::pure::id::PlaceId;
use crate::repo::error::{object_error, store_error};
use crate::repo::open::{create_new, lock_wish, read_whole, store_key};
use crate::repo::standing::Standing;
use crate::repo::{Repo, RepoError};
use bytes::Bytes;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    pub place: PlaceId,
    /// Number of the configuration that says so.
    pub config: u64,
    /// Whether the store creates an object only if its name is free.
    pub conditional_writes: bool,
    /// The repository had its objects locked, and this store does not: it does not ask for that any more.
    pub lock_ended: bool,
    /// What is missing in the history of this place.
    pub gaps: Vec<String>,
}

/// Makes the place of this repository the primary. `despite_gaps` does so even if its history is not whole.
///
/// # Errors
/// When the key is not an admin's, the place is the primary already, its history is not whole, or the store fails.
pub fn run(repo: &Repo, despite_gaps: bool) -> Result<Promoted, OpError> {
    if repo.roles & role::ADMIN == 0 {
        return Err(RepoError::Role("make a replica the primary").into());
    }
    if !repo.config.writable() {
        return Err(object_error("changing", "the configuration")(FormatError::TooNew {
            what: "a feature that allows reading only".into(),
        })
        .into());
    }
    if repo.standing == Standing::Primary {
        return Err(OpError::Usage(format!(
            "{} is the primary already",
            repo.store.location()
        )));
    }
    let history = repo.sync_history()?;
    let broken = history.broken.iter().map(|(name, _)| format!("{name} cannot be used"));
    let gaps: Vec<String> = history.gaps.iter().cloned().chain(broken).collect();
    if let Some(first) = gaps.first()
        && !despite_gaps
    {
        return Err(OpError::Copies {
            what: format!("this replica is not whole: {first}"),
            kind: Kind::Tamper,
            hint: "if the old primary can still be read, run `larder repo replicate` once more; otherwise --force makes this the primary as it is. \
                   It restores and takes backups then, and nothing can be pruned in it"
                .into(),
        });
    }
    let abilities = repo
        .store
        .probe()
        .map_err(store_error("trying out what the store can do"))?;
    repo.store.set_conditional(abilities.conditional_create);
    let place = match repo.standing {
        Standing::Replica(place) => place,
        _ => mark(repo)?,
    };
    let current = ObjectName::Config(repo.config.sequence);
    let current = read_whole(&*repo.store, &current, "the configuration")?;
    let mut config = repo.config.clone();
    config.sequence += 1;
    config.previous = Some(Repo::object_hash(&current));
    config.created = host::now();
    config.primary = Some(place);
    config.lock = lock_here(repo)?;
    repo.store.set_lock(config.lock.map(lock_wish));
    config.gc.conditional_writes = abilities.conditional_create;
    if !abilities.conditional_create {
        // As for a repository that is made in such a store.
        config.gc.dead_seconds = config.gc.dead_seconds.max(14 * 86_400);
        config.gc.grace_seconds = config.gc.grace_seconds.max(86_400);
    }
    let created = repo
        .store
        .create(
            &store_key(&ObjectName::Config(config.sequence)),
            Bytes::from(config.encode(&repo.signer)),
        )
        .map_err(store_error("writing the configuration"))?;
    if created == Created::Exists {
        return Err(OpError::Copies {
            what: "somebody else has changed the configuration at this moment".into(),
            kind: Kind::Busy,
            hint: "look at what was changed, with `larder repo info`, and run it again".into(),
        });
    }
    Ok(Promoted {
        place,
        config: config.sequence,
        conditional_writes: abilities.conditional_create,
        lock_ended: config.lock != repo.config.lock,
        gaps,
    })
}

/// The lock of the repository, if this store can do it.
fn lock_here(repo: &Repo) -> Result<Option<ObjectLock>, RepoError> {
    let Some(lock) = repo.config.lock else {
        return Ok(None);
    };
    match repo.store.try_lock(lock.mode) {
        Ok(()) => Ok(Some(lock)),
        Err(error) if error.class == Failure::Permanent => Ok(None),
        Err(error) => Err(store_error("trying out whether the store locks objects")(error)),
    }
}

/// Gives the place a mark of its own, by which it can be named.
fn mark(repo: &Repo) -> Result<PlaceId, OpError> {
    let place = PlaceId(host::random());
    let mark = ReplicaMark {
        repo: repo.config.repo,
        created: host::now(),
        copied_from: repo.store.location(),
    };
    create_new(
        &*repo.store,
        &ObjectName::ReplicaMark(place),
        mark.encode(),
        "the mark of this place",
    )?;
    Ok(place)
}
