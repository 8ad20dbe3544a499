//! Locked objects (ADR-0027). Deleting: what a lock keeps is left as it is until its lock is over, and counted. Keeping: a pass over all
//! names extends the locks of what is needed before they end. Which objects it asks about is [`crate::pure::plan::lock`].
//!
//! The pass needs no marks: needed is whatever is not condemned, not absorbed and not taken away, and to lock too much for some days loses
//! nothing. So it is made also where something in the repository is in doubt and nothing is deleted: while somebody finds out what has
//! happened, the locks must not run out. It can die anywhere: a lock is only ever made later, and the next pass asks again.

use super::{Report, Work};
use crate::edge::host;
use crate::edge::store::{Failure, Retention, StoreKey, Version, Versions};
use crate::ops::{OpError, Progress};
use crate::pure::base::{Explain, Kind, LockMode, Timestamp, with_causes};
use crate::pure::format::config::ObjectLock;
use crate::pure::id::PackId;
use crate::pure::plan::lock::{LOCKED, Memory, Pass};
use crate::repo::at_once::at_once;
use crate::repo::error::store_error;
use crate::repo::needed::Needed;
use crate::repo::open::prefix;
use crate::repo::{Repo, RepoError};
use std::collections::HashMap;

/// Where the local memory keeps what the last pass came to, and until when condemned packs are locked.
const PASS_MEMORY: &str = "lock-pass";
const PACKS_MEMORY: &str = "locked-packs";
/// Condemned packs that are remembered; others are asked about each time.
const REMEMBERED_MAX: usize = 100_000;
/// Locks that are asked about at a time.
const ASKED_AT_ONCE: usize = 512;
/// Objects that are named; the others are counted.
const NAMED_MAX: usize = 20;
/// A pass that fails so often is given up.
const FAILURES_MAX: u64 = 100;

/// What locks keep from being deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub objects: u64,
    pub bytes: u64,
    /// When the first of them can be deleted.
    pub until: Option<Timestamp>,
}

/// What the pass over all names came to.
#[derive(Clone, Debug, Default)]
pub struct Extended {
    /// Objects whose locks were asked for, and whose locks were extended.
    pub asked: u64,
    pub extended: u64,
    /// Objects whose locks could not be looked at or extended, and why the first could not.
    pub failed: u64,
    pub failure: Option<(String, Kind)>,
    /// Names that were written again, or deleted though nothing of ours deletes them: how many, and the first.
    pub tampered: u64,
    pub tampered_names: Vec<String>,
}

/// Until when condemned packs are locked, as far as they were asked about. Nobody extends their locks, so one answer is enough.
pub(super) fn recall(repo: &Repo) -> Result<HashMap<PackId, Timestamp>, RepoError> {
    let bytes = match repo.config.lock {
        Some(_) => repo.index.recall(PACKS_MEMORY)?.unwrap_or_default(),
        None => Vec::new(),
    };
    let row = |row: &[u8]| {
        let (id, until) = row.split_first_chunk::<16>()?;
        Some((PackId(*id), Timestamp(i64::from_le_bytes(until.try_into().ok()?))))
    };
    Ok(bytes.chunks_exact(24).filter_map(row).collect())
}

/// Deletes packs for good, but for those that are locked, which are counted; returns these.
pub(super) fn erase_packs(
    work: &mut Work<'_, '_>,
    packs: &[(StoreKey, PackId, u64)],
    known: &HashMap<PackId, Timestamp>,
) -> Result<HashMap<PackId, Timestamp>, OpError> {
    let keys: Vec<StoreKey> = packs.iter().map(|(key, ..)| key.clone()).collect();
    let ids: HashMap<&StoreKey, (PackId, u64)> = packs.iter().map(|(key, id, size)| (key, (*id, *size))).collect();
    let locked = work.repo.erase(&keys, "deleting condemned packs", |key| {
        ids.get(key).and_then(|(id, _)| known.get(id)).copied()
    })?;
    let mut kept = HashMap::new();
    for (key, until) in locked {
        let Some((id, size)) = ids.get(&key) else { continue };
        work.report.locked.add(*size, until);
        kept.insert(*id, until);
    }
    Ok(kept)
}

/// Remembers until when the condemned packs are locked that a sweep has not deleted.
pub(super) fn remember(repo: &Repo, kept: &HashMap<PackId, Timestamp>) -> Result<(), RepoError> {
    if repo.config.lock.is_none() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    for (id, until) in kept.iter().take(REMEMBERED_MAX) {
        bytes.extend(id.0);
        bytes.extend(until.0.to_le_bytes());
    }
    Ok(repo.index.remember(PACKS_MEMORY, &bytes)?)
}

/// Deletes small objects for good, but for those that are locked, which are counted. Returns how many are gone.
pub(super) fn erase(work: &mut Work<'_, '_>, objects: &[(StoreKey, u64)], what: &str) -> Result<u64, OpError> {
    let keys: Vec<StoreKey> = objects.iter().map(|(key, _)| key.clone()).collect();
    let locked = work.repo.erase(&keys, what, |_| None)?;
    for (key, until) in &locked {
        let size = objects
            .iter()
            .find(|(object, _)| object == key)
            .map_or(0, |(_, size)| *size);
        work.report.locked.add(size, *until);
    }
    Ok((objects.len() - locked.len()) as u64)
}

impl Held {
    fn add(&mut self, bytes: u64, until: Timestamp) {
        self.objects += 1;
        self.bytes += bytes;
        self.until = Some(self.until.map_or(until, |first| first.min(until)));
    }
}

/// Erases what was hidden under names that may be: passwords that were removed, holds that were released, and what was tried out below
/// `tmp/`. Their locks are over when that works.
pub(super) fn erase_hidden(repo: &Repo) -> Result<(), OpError> {
    if repo.config.lock.is_none() {
        return Ok(());
    }
    for under in ["hold/", "keys/", "tmp/"] {
        let mut hidden: Vec<StoreKey> = Vec::new();
        repo.store
            .list_versions(&prefix(under), None, &mut |row| {
                if row.is_hidden() {
                    hidden.push(row.key);
                }
            })
            .map_err(store_error(format!("listing what was removed from {under}")))?;
        repo.erase(&hidden, "erasing what was removed", |_| None)?;
    }
    Ok(())
}

/// Extends the locks that would end too soon. Does nothing where nothing is locked.
///
/// # Errors
/// When the names cannot be listed, or somebody wants it to end. That single locks cannot be extended is in the report.
pub(super) fn extend(repo: &Repo, report: &mut Report, progress: &Progress) -> Result<(), OpError> {
    let Some(lock) = repo.config.lock else {
        return Ok(());
    };
    progress.set_current("looking at locks");
    // The store's time is that of the newest outcome, which is one of ours. A clock that is far off the store would not be let in.
    let received = repo.received()?.into_values().max();
    let now = host::now().max(received.unwrap_or_default());
    let memory = repo.index.recall(PASS_MEMORY)?.and_then(|bytes| Memory::decode(&bytes));
    let mut keeper = Keeper {
        repo,
        lock,
        pass: Pass::plan(lock, memory, now),
        needed: Needed::of(repo)?,
        queue: Vec::new(),
        report: Extended::default(),
    };
    let mut failed = None;
    for under in LOCKED {
        repo.store
            .list_versions(&prefix(under), None, &mut |row| {
                // Whatever happened to one ends it: the listing goes on, and nothing more is done.
                if failed.is_none() {
                    failed = keeper.row(row, progress).err();
                }
            })
            .map_err(store_error(format!("listing the versions of {under}")))?;
    }
    let flushed = match failed {
        Some(error) => Err(error),
        None => keeper.flush(),
    };
    let is_whole = flushed.is_ok() && keeper.report.failed == 0;
    report.extended = keeper.report;
    if is_whole {
        repo.index.remember(PASS_MEMORY, &keeper.pass.memory().encode())?;
    }
    flushed
}

struct Keeper<'r> {
    repo: &'r Repo,
    lock: ObjectLock,
    pass: Pass,
    needed: Needed<'r>,
    queue: Vec<(StoreKey, Version)>,
    report: Extended,
}

impl Keeper<'_> {
    fn row(&mut self, row: Versions, progress: &Progress) -> Result<(), OpError> {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        let Some(found) = self.needed.judge(&row)? else {
            return Ok(());
        };
        if found.is_tampered {
            self.report.tampered += 1;
            if self.report.tampered_names.len() < NAMED_MAX {
                self.report.tampered_names.push(found.name.to_string());
            }
        }
        if self.pass.asks(found.version.modified) {
            self.queue.push((row.key, found.version));
            if self.queue.len() == ASKED_AT_ONCE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), OpError> {
        let queue = std::mem::take(&mut self.queue);
        if self.report.failed >= FAILURES_MAX {
            self.report.failed += queue.len() as u64;
            return Ok(());
        }
        let (repo, pass, mode) = (self.repo, self.pass, self.lock.mode);
        let done = at_once(&queue, |(key, version)| keep(repo, &pass, mode, key, version));
        for ((key, _), done) in queue.into_iter().zip(done) {
            self.report.asked += 1;
            match done {
                Ok(Some((until, is_extended))) => {
                    self.pass.note(until);
                    self.report.extended += u64::from(is_extended);
                }
                Ok(None) => {}
                Err(error) => {
                    self.report.failed += 1;
                    if self.report.failure.is_none() {
                        let text = format!("{key}: {}", with_causes(&error));
                        self.report.failure = Some((text, error.kind()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Looks at one lock and extends it if it is time. Returns until when it is now; `None` if the object is gone.
fn keep(
    repo: &Repo,
    pass: &Pass,
    mode: LockMode,
    key: &StoreKey,
    version: &Version,
) -> Result<Option<(Timestamp, bool)>, RepoError> {
    let found = match repo.store.retention(key, version) {
        Ok(found) => found,
        Err(error) if error.class == Failure::NotFound => return Ok(None),
        Err(error) => return Err(store_error("looking at a lock")(error)),
    };
    if !pass.extends(found.map(|lock| lock.until)) {
        return Ok(found.map(|lock| (lock.until, false)));
    }
    // The firmer of both: a lock that nobody can lift is not made one that somebody can.
    let held = found.map(|lock| lock.mode);
    let retention = Retention {
        mode: match held {
            Some(LockMode::Compliance) => LockMode::Compliance,
            _ => mode,
        },
        until: pass.until,
    };
    let mut extended = repo.store.extend(key, version, retention);
    if let Err(error) = &extended
        && error.class == Failure::Denied
        && held.is_some_and(|held| held != retention.mode)
    {
        // Some services let nobody but who may lift it make a lock firmer. It is not to end for that.
        let mode = held.unwrap_or(mode);
        extended = repo.store.extend(key, version, Retention { mode, ..retention });
    }
    match extended {
        Ok(()) => Ok(Some((retention.until, true))),
        Err(error) if error.class == Failure::NotFound => Ok(None),
        Err(error) => Err(store_error("extending a lock")(error)),
    }
}
