//! Deleting where objects are locked (ADR-0027): what a lock keeps is no failure, and what is kept for another reason is.

use super::at_once::at_once;
use super::error::store_error;
use super::{Repo, RepoError};
use crate::edge::host;
use crate::edge::store::{Failure, Refused, StoreError, StoreKey};
use crate::pure::base::Timestamp;

impl Repo {
    /// Deletes objects for good, but for those that are locked: they stay as they are. Returns them, and until when they are locked.
    /// `remembers` says so of objects that need not be asked about.
    ///
    /// # Errors
    /// When the store fails, or does not delete what is not locked.
    pub fn erase(
        &self,
        keys: &[StoreKey],
        what: &str,
        remembers: impl Fn(&StoreKey) -> Option<Timestamp>,
    ) -> Result<Vec<(StoreKey, Timestamp)>, RepoError> {
        let refused = self.store.erase(keys).map_err(store_error(what))?;
        let (mut locked, mut asked): (Vec<(StoreKey, Timestamp)>, Vec<Refused>) = (Vec::new(), Vec::new());
        let now = host::now();
        for refused in refused {
            match remembers(&refused.key).filter(|until| *until > now) {
                Some(until) => locked.push((refused.key, until)),
                None => asked.push(refused),
            }
        }
        let ends = at_once(&asked, |refused| {
            Ok(self.store.retention(&refused.key, &refused.version))
        });
        for (refused, end) in asked.into_iter().zip(ends) {
            // One that ended between the two questions goes the next time.
            let is_close = |until: &Timestamp| until.0 > now.0.saturating_sub(60_000_000_000);
            match end?.map_err(store_error("looking at a lock"))? {
                Some(lock) if is_close(&lock.until) => locked.push((refused.key, lock.until)),
                _ => return Err(store_error(what)(not_deleted(&refused))),
            }
        }
        locked.sort_unstable();
        // One name may have several versions; the last to go decides.
        locked.reverse();
        locked.dedup_by(|earlier, later| earlier.0 == later.0);
        locked.reverse();
        Ok(locked)
    }

    /// Takes objects away for all who look: for good, or, while they are locked, by hiding them. Returns until when what is hidden is
    /// still there.
    ///
    /// # Errors
    /// When the store fails.
    pub fn erase_or_hide(&self, keys: &[StoreKey], what: &str) -> Result<Option<Timestamp>, RepoError> {
        let refused = match self.store.erase(keys) {
            Ok(refused) if refused.is_empty() => return Ok(None),
            Ok(refused) => refused,
            // Whoever may not delete versions may still hide.
            Err(error) if error.class == Failure::Denied => {
                return self.store.remove(keys).map(|()| None).map_err(store_error(what));
            }
            Err(error) => return Err(store_error(what)(error)),
        };
        let hidden: Vec<StoreKey> = refused.iter().map(|refused| refused.key.clone()).collect();
        self.store.remove(&hidden).map_err(store_error(what))?;
        let ends = at_once(&refused, |refused| {
            Ok(self.store.retention(&refused.key, &refused.version))
        });
        let mut last = None;
        for end in ends {
            // Not to be told is no reason to fail: it is hidden.
            if let Ok(Some(lock)) = end? {
                last = last.max(Some(lock.until));
            }
        }
        Ok(last)
    }
}

fn not_deleted(refused: &Refused) -> StoreError {
    StoreError::new("deleting", &refused.key, Failure::Denied)
        .caused_by(format!(
            "no lock is on it, and the store refuses all the same ({})",
            refused.said
        ))
        .with_hint("deleting for good needs s3:DeleteObjectVersion; or somebody has put a legal hold on it")
}
