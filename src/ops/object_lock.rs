//! Turning Object Lock on and off, and changing it (ADR-0027). From the next configuration on, whoever writes has the store lock what he
//! writes; what is there already is locked by the next prune.

use super::OpError;
use super::grants::Change;
use crate::pure::format::config::ObjectLock;
use crate::repo::Repo;
use crate::repo::error::store_error;
use crate::repo::open::lock_wish;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    pub before: Option<ObjectLock>,
    pub after: Option<ObjectLock>,
    /// The configuration that says so; `None` if it was so already.
    pub config: Option<u64>,
}

/// Has the objects of a repository locked, or not locked any more. Whether the store does it is tried out first.
///
/// # Errors
/// When the key is not an admin's, the store does not lock, or the configuration cannot be written.
pub fn run(repo: &Repo, lock: Option<ObjectLock>) -> Result<Changed, OpError> {
    let mut change = Change::begin(repo, "change Object Lock")?;
    let before = repo.config.lock;
    let mut changed = Changed {
        before,
        after: lock,
        config: None,
    };
    if let Some(lock) = lock {
        require_bucket(repo)?;
        // Also where it was on before: a bucket may have been changed.
        repo.store
            .try_lock(lock.mode)
            .map_err(store_error("trying out whether the store locks objects"))?;
    }
    if lock == before {
        return Ok(changed);
    }
    change.config.lock = lock;
    if lock.is_some() {
        // The configuration that says so is locked as well.
        repo.store.set_lock(lock.map(lock_wish));
    }
    let published = change.publish();
    let holds = match &published {
        Ok(true) => lock,
        _ => before,
    };
    repo.store.set_lock(holds.map(lock_wish));
    if !published? {
        return Err(OpError::Refused {
            what: "somebody else has changed the configuration at the same moment, so Object Lock was not changed"
                .into(),
            hint: "run the command again".into(),
        });
    }
    changed.config = Some(change.config.sequence);
    Ok(changed)
}

fn require_bucket(repo: &Repo) -> Result<(), OpError> {
    if !repo.store.is_local() {
        return Ok(());
    }
    Err(OpError::Refused {
        what: format!(
            "{} is a directory, and Object Lock is for buckets: whoever may write to a directory may delete in it",
            repo.store.location()
        ),
        hint: "keep a replica in a bucket with Object Lock, or one under another account: `larder repo replicate`"
            .into(),
    })
}
