//! A store in memory, for tests: the contract without anything that can fail. Clones share their objects. It can lock objects, as a
//! bucket does: what is removed then is hidden, and there until its lock is over and it is erased.

use super::{
    Abilities, Created, Failure, Listed, Lock, Part, Prefix, Refused, Retention, Stat, Store, StoreError, StoreKey,
    Version, Versions, no_locks, probe_key, refuse_empty, too_large,
};
use crate::pure::base::{LockMode, Timestamp};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Objects in a map. The store time of an object is what `set_time` last said.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    objects: Arc<RwLock<BTreeMap<StoreKey, (Bytes, Timestamp)>>>,
    now: Arc<AtomicI64>,
    locks: Arc<Mutex<Locks>>,
}

/// What a bucket with Object Lock has beside its objects.
#[derive(Clone, Debug, Default)]
struct Locks {
    /// Whether it can lock at all.
    is_able: bool,
    lock: Option<Lock>,
    until: BTreeMap<StoreKey, Retention>,
    /// What was removed and not erased.
    hidden: BTreeMap<StoreKey, (Bytes, Timestamp)>,
}

impl MemoryStore {
    /// Makes an empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Sets the store time that objects made from now on get.
    pub fn set_time(&self, now: Timestamp) {
        self.now.store(now.0, Ordering::SeqCst);
    }

    /// Puts bytes under a name whatever was there: how tests damage a repository.
    pub fn overwrite(&self, key: &StoreKey, body: Bytes) {
        self.objects.write().insert(key.clone(), (body, self.now()));
    }

    /// Returns a store with the same objects that shares nothing with this one.
    pub fn fork(&self) -> MemoryStore {
        MemoryStore {
            objects: Arc::new(RwLock::new(self.objects.read().clone())),
            now: Arc::new(AtomicI64::new(self.now.load(Ordering::SeqCst))),
            locks: Arc::new(Mutex::new(self.locks.lock().clone())),
        }
    }

    /// Lets it lock objects from now on, when it is asked to.
    pub fn allow_locks(&self) {
        self.locks.lock().is_able = true;
    }

    /// Brings back an object that was removed and not erased; whether there was one.
    pub fn unhide(&self, key: &StoreKey) -> bool {
        let hidden = self.locks.lock().hidden.remove(key);
        let is_there = hidden.is_some();
        self.objects.write().extend(hidden.map(|object| (key.clone(), object)));
        is_there
    }

    /// Returns until when objects are locked, of those that are.
    pub fn locked(&self) -> BTreeMap<StoreKey, Timestamp> {
        let locks = self.locks.lock();
        locks
            .until
            .iter()
            .map(|(key, lock)| (key.clone(), lock.until))
            .collect()
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }
}

fn version_of((body, modified): &(Bytes, Timestamp), is_marker: bool) -> Version {
    Version {
        id: if is_marker { "marker" } else { "1" }.to_owned(),
        size: if is_marker { 0 } else { body.len() as u64 },
        modified: Some(*modified),
        is_marker,
    }
}

impl Store for MemoryStore {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        refuse_empty(key, &body)?;
        let now = self.now();
        let mut locks = self.locks.lock();
        match self.objects.write().entry(key.clone()) {
            Entry::Occupied(_) => Ok(Created::Exists),
            Entry::Vacant(place) => {
                place.insert((body, now));
                if let Some(retention) = locks.lock.and_then(|lock| lock.of(key, now)) {
                    locks.until.insert(key.clone(), retention);
                }
                Ok(Created::New)
            }
        }
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        let absent = || StoreError::new("reading", key, Failure::NotFound);
        let body = self
            .objects
            .read()
            .get(key)
            .map(|(body, _)| body.clone())
            .ok_or_else(absent)?;
        match part {
            Part::AtMost(limit) if body.len() as u64 > limit => Err(too_large(key, body.len() as u64)),
            Part::Whole | Part::AtMost(_) => Ok(body),
            Part::Suffix(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(body.len());
                Ok(body.slice(body.len() - length..))
            }
            Part::Range(range) => match (usize::try_from(range.start), usize::try_from(range.end)) {
                (Ok(start), Ok(end)) if start <= end && end <= body.len() => Ok(body.slice(start..end)),
                _ => Err(absent()),
            },
        }
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.list_after(prefix, None, each)
    }

    fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        // The rows are copied first: `each` may call the store.
        let lower = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
        let with_tmp = prefix.as_str().starts_with("tmp");
        let rows: Vec<Listed> = self
            .objects
            .read()
            .range((lower, Bound::Unbounded))
            .filter(|(key, _)| key.as_str().starts_with(prefix.as_str()))
            .filter(|(key, _)| with_tmp || !key.as_str().starts_with("tmp/"))
            .map(|(key, (body, time))| Listed {
                key: key.clone(),
                size: body.len() as u64,
                modified: Some(*time),
            })
            .collect();
        rows.into_iter().for_each(each);
        Ok(())
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        match self.objects.read().get(key) {
            Some((body, time)) => Ok(Stat {
                size: body.len() as u64,
                modified: Some(*time),
            }),
            None => Err(StoreError::new("reading", key, Failure::NotFound)),
        }
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        let mut locks = self.locks.lock();
        let mut objects = self.objects.write();
        for key in keys {
            let removed = objects.remove(key);
            if let Some(object) = removed.filter(|_| locks.is_able) {
                locks.hidden.insert(key.clone(), object);
            }
        }
        Ok(())
    }

    fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        let key = probe_key()?;
        let body = Bytes::from_static(b"probe");
        let conditional_create =
            self.create(&key, body.clone())? == Created::New && self.create(&key, body)? == Created::Exists;
        self.remove(&[key])?;
        Ok(Abilities {
            conditional_create,
            verifies_checksums: true,
            strong_listing: true,
        })
    }

    /// Creating never depends on it here.
    fn set_conditional(&self, _conditional: bool) {}

    fn set_lock(&self, lock: Option<Lock>) {
        let mut locks = self.locks.lock();
        locks.lock = lock.filter(|_| locks.is_able);
    }

    fn try_lock(&self, _mode: LockMode) -> Result<(), StoreError> {
        match self.locks.lock().is_able {
            true => Ok(()),
            false => Err(no_locks("locking", &self.location())),
        }
    }

    fn retention(&self, key: &StoreKey, _version: &Version) -> Result<Option<Retention>, StoreError> {
        Ok(self.locks.lock().until.get(key).copied())
    }

    fn extend(&self, key: &StoreKey, _version: &Version, retention: Retention) -> Result<(), StoreError> {
        let mut locks = self.locks.lock();
        if locks.until.get(key).is_some_and(|lock| lock.until > retention.until) {
            return Err(StoreError::new("locking", key, Failure::Denied));
        }
        locks.until.insert(key.clone(), retention);
        Ok(())
    }

    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        let now = self.now();
        let mut locks = self.locks.lock();
        if locks.lock.is_none() {
            drop(locks);
            return self.remove(keys).map(|()| Vec::new());
        }
        let mut kept = Vec::new();
        for key in keys {
            if locks.until.get(key).is_some_and(|lock| lock.until > now) {
                let objects = self.objects.read();
                let object = objects.get(key).or(locks.hidden.get(key));
                kept.extend(object.map(|object| Refused {
                    key: key.clone(),
                    version: version_of(object, false),
                    said: "it is locked".to_owned(),
                }));
                continue;
            }
            self.objects.write().remove(key);
            locks.hidden.remove(key);
            locks.until.remove(key);
        }
        Ok(kept)
    }

    fn list_versions(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        let locks = self.locks.lock().clone();
        if !locks.is_able {
            return Err(no_locks("listing the versions of", prefix));
        }
        let mut all: BTreeMap<StoreKey, Vec<Version>> = BTreeMap::new();
        for (key, object) in &locks.hidden {
            all.insert(key.clone(), vec![version_of(object, true), version_of(object, false)]);
        }
        for (key, object) in self.objects.read().iter() {
            all.entry(key.clone()).or_default().insert(0, version_of(object, false));
        }
        let wanted =
            |key: &StoreKey| key.as_str().starts_with(prefix.as_str()) && after.is_none_or(|after| key > after);
        let rows = all.into_iter().filter(|(key, _)| wanted(key));
        rows.for_each(|(key, all)| each(Versions { key, all }));
        Ok(())
    }

    fn location(&self) -> String {
        "memory".to_string()
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::edge::store::contract;

    #[test]
    fn keeps_the_store_contract() {
        contract::check(&MemoryStore::new(), &contract::Options::default());
    }

    #[test]
    fn a_fork_shares_nothing() {
        let store = MemoryStore::new();
        let key = StoreKey::new("snap/00").expect("a key");
        assert_eq!(
            store.create(&key, Bytes::from_static(b"x")).expect("creating"),
            Created::New
        );
        let fork = store.fork();
        store.remove(std::slice::from_ref(&key)).expect("removing");
        assert_eq!(fork.stat(&key).expect("still there").size, 1);
    }
}
