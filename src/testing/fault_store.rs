//! A store whose n-th call fails: before it has any effect, or after it (the reply is lost), once or from then on. Failing
//! from then on is what a crash looks like to the repository. Calls are numbered from 0 in the order in which they come;
//! every verb counts.

use crate::edge::store::{
    Abilities, Created, Failure, Listed, Lock, Part, Partial, Prefix, Refused, Retention, Stat, Store, StoreError,
    StoreKey, Version, Versions,
};
use crate::pure::base::LockMode;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// When calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The call that fails.
    pub call: u64,
    /// Whether that call has its effect before it fails.
    pub after_effect: bool,
    /// Whether every later call fails as well, without effect.
    pub lasting: bool,
}

impl Fault {
    /// All four ways in which a call can fail.
    pub fn at(call: u64) -> [Fault; 4] {
        [(false, false), (true, false), (false, true), (true, true)].map(|(after_effect, lasting)| Fault {
            call,
            after_effect,
            lasting,
        })
    }
}

/// What somebody else does in the middle of a run.
type Visit = Box<dyn FnOnce() + Send>;

/// Passes calls on to `inner`, except for those that are to fail.
pub struct FaultStore<S> {
    inner: S,
    fault: Option<Fault>,
    visit: Mutex<Option<(u64, Visit)>>,
    calls: AtomicU64,
    log: Mutex<Vec<String>>,
    acknowledged: Mutex<Vec<(StoreKey, u64)>>,
    /// Probing finds that the store cannot create conditionally.
    is_weak: bool,
    /// What was created through this store is not listed by it.
    is_lagging: bool,
    /// The first read of every object has a wrong bit; those that were read.
    flipped: Option<Mutex<HashSet<StoreKey>>>,
    /// What was set last, whether creating may rest on conditions.
    conditional: Mutex<Option<bool>>,
}

impl<S: Store> std::fmt::Debug for FaultStore<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultStore")
            .field("inner", &self.inner)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

/// What to do with a call.
enum Fate {
    Pass,
    Fail,
    FailAfter,
}

impl<S: Store> FaultStore<S> {
    /// Wraps a store.
    pub fn new(inner: S, fault: Option<Fault>) -> FaultStore<S> {
        FaultStore {
            inner,
            fault,
            visit: Mutex::new(None),
            calls: AtomicU64::new(0),
            log: Mutex::default(),
            acknowledged: Mutex::default(),
            is_weak: false,
            is_lagging: false,
            flipped: None,
            conditional: Mutex::new(None),
        }
    }

    /// Looks to whoever tries it out like a store that cannot create conditionally.
    pub fn weak(inner: S) -> FaultStore<S> {
        FaultStore {
            is_weak: true,
            ..FaultStore::new(inner, None)
        }
    }

    /// Does not list what was created through it, as a store whose listings come late.
    pub fn lagging(inner: S) -> FaultStore<S> {
        FaultStore {
            is_lagging: true,
            ..FaultStore::new(inner, None)
        }
    }

    /// Gives the first read of every object, or of a part of it, a wrong bit, as a bad network may.
    pub fn flipping(inner: S) -> FaultStore<S> {
        FaultStore {
            flipped: Some(Mutex::default()),
            ..FaultStore::new(inner, None)
        }
    }

    /// What comes of a read.
    fn received(&self, key: &StoreKey, bytes: Bytes) -> Bytes {
        let is_first = self
            .flipped
            .as_ref()
            .is_some_and(|read| read.lock().insert(key.clone()));
        if !is_first || bytes.is_empty() {
            return bytes;
        }
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        bytes.into()
    }

    /// Passes on the rows that are listed.
    fn listed<'e>(&'e self, each: &'e mut dyn FnMut(Listed)) -> impl FnMut(Listed) + 'e {
        move |row| {
            let is_new = || self.acknowledged.lock().iter().any(|(key, _)| *key == row.key);
            if !self.is_lagging || !is_new() {
                each(row);
            }
        }
    }

    /// Returns what was set last, whether creating may rest on conditions.
    pub fn conditional(&self) -> Option<bool> {
        *self.conditional.lock()
    }

    /// Runs `visit` just before the call with this number: another machine that works at the same time.
    pub fn visited_at(inner: S, call: u64, visit: impl FnOnce() + Send + 'static) -> FaultStore<S> {
        let store = FaultStore::new(inner, None);
        *store.visit.lock() = Some((call, Box::new(visit)));
        store
    }

    /// Returns how many calls have come.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Returns whether the fault has happened.
    pub fn has_failed(&self) -> bool {
        self.fault.is_some_and(|fault| fault.call < self.calls())
    }

    /// Returns the calls in order: verb and object.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    /// Returns the objects whose creation was acknowledged, with their sizes.
    pub fn acknowledged(&self) -> Vec<(StoreKey, u64)> {
        self.acknowledged.lock().clone()
    }

    fn fate(&self, verb: &str, object: &dyn std::fmt::Display) -> Fate {
        let number = {
            let mut log = self.log.lock();
            log.push(format!("{verb} {object}"));
            self.calls.fetch_add(1, Ordering::SeqCst)
        };
        let visit = self.visit.lock().take_if(|(call, _)| *call == number);
        if let Some((_, visit)) = visit {
            visit();
        }
        match self.fault {
            Some(fault) if number == fault.call && fault.after_effect => Fate::FailAfter,
            Some(fault) if number == fault.call || (fault.lasting && number > fault.call) => Fate::Fail,
            _ => Fate::Pass,
        }
    }

    fn run<T>(
        &self,
        verb: &'static str,
        object: &dyn std::fmt::Display,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed = || Err(StoreError::new(verb, object, Failure::Permanent).caused_by("a fault of the test"));
        match self.fate(verb, object) {
            Fate::Pass => call(),
            Fate::Fail => failed(),
            Fate::FailAfter => {
                call()?;
                failed()
            }
        }
    }
}

impl<S: Store> Store for FaultStore<S> {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        let size = body.len() as u64;
        let created = self.run("writing", key, || self.inner.create(key, body))?;
        if created == Created::New {
            self.acknowledged.lock().push((key.clone(), size));
        }
        Ok(created)
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        let bytes = self.run("reading", key, || self.inner.read(key, part))?;
        Ok(self.received(key, bytes))
    }

    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.run("reading", key, || self.inner.read_into(key, offset, buffer))?;
        let received = self.received(key, Bytes::copy_from_slice(buffer));
        buffer.copy_from_slice(&received);
        Ok(())
    }

    fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        self.run("reading", key, || self.inner.read_on(key, part, partial))
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.run("listing", &prefix.as_str(), || {
            self.inner.list(prefix, &mut self.listed(each))
        })
    }

    fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        self.run("listing", &prefix.as_str(), || {
            self.inner.list_after(prefix, after, &mut self.listed(each))
        })
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.run("looking at", key, || self.inner.stat(key))
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        self.run("deleting", &keys.len(), || self.inner.remove(keys))
    }

    fn put_back(&self, key: &StoreKey, body: Bytes) -> Result<(), StoreError> {
        self.run("putting back", key, || self.inner.put_back(key, body))
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.run("preparing", &"the place", || self.inner.prepare())
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        let mut abilities = self.run("trying out", &"the store", || self.inner.probe())?;
        abilities.conditional_create &= !self.is_weak;
        abilities.strong_listing &= !self.is_lagging;
        Ok(abilities)
    }

    fn set_conditional(&self, conditional: bool) {
        *self.conditional.lock() = Some(conditional);
        self.inner.set_conditional(conditional);
    }

    fn sweep(&self) -> Result<u64, StoreError> {
        self.inner.sweep()
    }

    fn give_up_reserve(&self) -> bool {
        self.inner.give_up_reserve()
    }

    fn set_lock(&self, lock: Option<Lock>) {
        self.inner.set_lock(lock);
    }

    fn try_lock(&self, mode: LockMode) -> Result<(), StoreError> {
        self.run("trying to lock", &mode, || self.inner.try_lock(mode))
    }

    fn retention(&self, key: &StoreKey, version: &Version) -> Result<Option<Retention>, StoreError> {
        self.run("looking at a lock", key, || self.inner.retention(key, version))
    }

    fn extend(&self, key: &StoreKey, version: &Version, retention: Retention) -> Result<(), StoreError> {
        self.run("locking", key, || self.inner.extend(key, version, retention))
    }

    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        self.run("deleting", &keys.len(), || self.inner.erase(keys))
    }

    fn list_versions(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        self.run("listing versions", &prefix.as_str(), || {
            self.inner.list_versions(prefix, after, each)
        })
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn requests(&self) -> u64 {
        self.inner.requests()
    }
}
