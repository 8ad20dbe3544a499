//! A store in memory, for tests: the contract without anything that can fail. Clones share their objects.

use super::{
    Abilities, Created, Failure, Listed, Part, Prefix, Stat, Store, StoreError, StoreKey, probe_key, refuse_empty,
    too_large,
};
use crate::pure::base::Timestamp;
use bytes::Bytes;
use parking_lot::RwLock;
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
        let now = Timestamp(self.now.load(Ordering::SeqCst));
        self.objects.write().insert(key.clone(), (body, now));
    }

    /// Returns a store with the same objects that shares nothing with this one.
    pub fn fork(&self) -> MemoryStore {
        MemoryStore {
            objects: Arc::new(RwLock::new(self.objects.read().clone())),
            now: Arc::new(AtomicI64::new(self.now.load(Ordering::SeqCst))),
        }
    }
}

impl Store for MemoryStore {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        refuse_empty(key, &body)?;
        let now = Timestamp(self.now.load(Ordering::SeqCst));
        match self.objects.write().entry(key.clone()) {
            Entry::Occupied(_) => Ok(Created::Exists),
            Entry::Vacant(place) => {
                place.insert((body, now));
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
        let mut objects = self.objects.write();
        for key in keys {
            objects.remove(key);
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
