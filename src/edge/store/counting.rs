//! Counts the calls and bytes that pass through to a store, by verb: for summaries, and for tests that promise a number
//! of requests.

use super::{
    Abilities, Created, Listed, Lock, Part, Partial, Prefix, Refused, Retention, Stat, Store, StoreError, StoreKey,
    Version, Versions,
};
use crate::pure::base::LockMode;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Calls and bytes so far. A listing counts as one call and the rows it delivered; failed calls count, their bytes do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub creates: u64,
    /// Bytes of objects that were created.
    pub bytes_written: u64,
    pub reads: u64,
    pub bytes_read: u64,
    pub lists: u64,
    pub rows_listed: u64,
    pub stats: u64,
    /// Calls of `remove`.
    pub removes: u64,
    pub objects_removed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    creates: AtomicU64,
    bytes_written: AtomicU64,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    lists: AtomicU64,
    rows_listed: AtomicU64,
    stats: AtomicU64,
    removes: AtomicU64,
    objects_removed: AtomicU64,
}

/// Reads the counts of a store while somebody else uses it. Clones read the same counts.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Counters>);

impl Meter {
    /// Returns the counts so far. Not a snapshot: calls under way may be counted in one field and not yet in another.
    pub fn counts(&self) -> Counts {
        let counters = &*self.0;
        Counts {
            creates: counters.creates.load(Relaxed),
            bytes_written: counters.bytes_written.load(Relaxed),
            reads: counters.reads.load(Relaxed),
            bytes_read: counters.bytes_read.load(Relaxed),
            lists: counters.lists.load(Relaxed),
            rows_listed: counters.rows_listed.load(Relaxed),
            stats: counters.stats.load(Relaxed),
            removes: counters.removes.load(Relaxed),
            objects_removed: counters.objects_removed.load(Relaxed),
        }
    }
}

/// A store that counts.
#[derive(Debug)]
pub struct CountingStore<S> {
    inner: S,
    meter: Meter,
}

impl<S: Store> CountingStore<S> {
    /// Wraps a store; the counts start at zero.
    pub fn new(inner: S) -> CountingStore<S> {
        CountingStore {
            inner,
            meter: Meter::default(),
        }
    }

    /// Wraps a store and counts into a meter that the caller has already.
    pub fn with_meter(inner: S, meter: Meter) -> CountingStore<S> {
        CountingStore { inner, meter }
    }

    /// Returns the meter, which outlives the store.
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> Counts {
        self.meter.counts()
    }
}

impl<S: Store> Store for CountingStore<S> {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        let counters = &*self.meter.0;
        counters.creates.fetch_add(1, Relaxed);
        let length = body.len() as u64;
        let created = self.inner.create(key, body)?;
        if created == Created::New {
            counters.bytes_written.fetch_add(length, Relaxed);
        }
        Ok(created)
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        let counters = &*self.meter.0;
        counters.reads.fetch_add(1, Relaxed);
        let bytes = self.inner.read(key, part)?;
        counters.bytes_read.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes)
    }

    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let counters = &*self.meter.0;
        counters.reads.fetch_add(1, Relaxed);
        self.inner.read_into(key, offset, buffer)?;
        counters.bytes_read.fetch_add(buffer.len() as u64, Relaxed);
        Ok(())
    }

    fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        let counters = &*self.meter.0;
        counters.reads.fetch_add(1, Relaxed);
        let before = partial.bytes.len();
        let result = self.inner.read_on(key, part, partial);
        counters
            .bytes_read
            .fetch_add(partial.bytes.len().saturating_sub(before) as u64, Relaxed);
        result
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
        let counters = &*self.meter.0;
        counters.lists.fetch_add(1, Relaxed);
        self.inner.list_after(prefix, after, &mut |row| {
            counters.rows_listed.fetch_add(1, Relaxed);
            each(row)
        })
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.meter.0.stats.fetch_add(1, Relaxed);
        self.inner.stat(key)
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        let counters = &*self.meter.0;
        counters.removes.fetch_add(1, Relaxed);
        self.inner.remove(keys)?;
        counters.objects_removed.fetch_add(keys.len() as u64, Relaxed);
        Ok(())
    }

    fn put_back(&self, key: &StoreKey, body: Bytes) -> Result<(), StoreError> {
        let counters = &*self.meter.0;
        counters.creates.fetch_add(1, Relaxed);
        let length = body.len() as u64;
        self.inner.put_back(key, body)?;
        counters.bytes_written.fetch_add(length, Relaxed);
        Ok(())
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.inner.prepare()
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        self.inner.probe()
    }

    fn sweep(&self) -> Result<u64, StoreError> {
        self.inner.sweep()
    }

    fn give_up_reserve(&self) -> bool {
        self.inner.give_up_reserve()
    }

    fn set_conditional(&self, conditional: bool) {
        self.inner.set_conditional(conditional);
    }

    fn set_lock(&self, lock: Option<Lock>) {
        self.inner.set_lock(lock);
    }

    fn try_lock(&self, mode: LockMode) -> Result<(), StoreError> {
        self.inner.try_lock(mode)
    }

    fn retention(&self, key: &StoreKey, version: &Version) -> Result<Option<Retention>, StoreError> {
        self.meter.0.stats.fetch_add(1, Relaxed);
        self.inner.retention(key, version)
    }

    fn extend(&self, key: &StoreKey, version: &Version, retention: Retention) -> Result<(), StoreError> {
        self.inner.extend(key, version, retention)
    }

    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        let counters = &*self.meter.0;
        counters.removes.fetch_add(1, Relaxed);
        let refused = self.inner.erase(keys)?;
        let erased = keys.len().saturating_sub(refused.len());
        counters.objects_removed.fetch_add(erased as u64, Relaxed);
        Ok(refused)
    }

    fn list_versions(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        let counters = &*self.meter.0;
        counters.lists.fetch_add(1, Relaxed);
        self.inner.list_versions(prefix, after, &mut |row| {
            counters.rows_listed.fetch_add(1, Relaxed);
            each(row)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::store::memory::MemoryStore;

    #[test]
    fn calls_and_bytes_are_counted_by_verb() {
        let store = CountingStore::new(MemoryStore::new());
        let key = StoreKey::new("snap/00").expect("a key");
        assert_eq!(
            store.create(&key, Bytes::from_static(b"12345")).expect("creating"),
            Created::New
        );
        assert_eq!(
            store.create(&key, Bytes::from_static(b"123")).expect("creating"),
            Created::Exists
        );
        store.read(&key, Part::Suffix(2)).expect("reading");
        store.read_into(&key, 1, &mut [0; 3]).expect("reading");
        store
            .list(&Prefix::new("").expect("a prefix"), &mut |_| {})
            .expect("listing");
        store.stat(&key).expect("there");
        store.remove(&[key.clone(), key.clone()]).expect("removing");
        assert!(store.stat(&key).is_err());
        let expected = Counts {
            creates: 2,
            bytes_written: 5,
            reads: 2,
            bytes_read: 5,
            lists: 1,
            rows_listed: 1,
            stats: 2,
            removes: 1,
            objects_removed: 2,
        };
        assert_eq!(store.counts(), expected);
    }
}
