//! Holds the bytes that pass to and from a store to a rate, for all threads together.
//!
//! Bytes are let through in slices, each when its turn comes, so that a small object is not kept waiting behind a large one
//! that another thread is sending. [`LimitedStore`] waits around whole calls: before an object is written, after bytes were
//! read. Where a store can do better it takes a [`Limiter`] itself: S3 paces every body while it is on its way.

use super::retry::Pace;
use super::{
    Abilities, Created, Failure, Listed, Lock, Part, Partial, Prefix, Refused, Retention, Stat, Store, StoreError,
    StoreKey, Version, Versions,
};
use crate::pure::base::LockMode;
use bytes::Bytes;
use parking_lot::Mutex;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How much unused time may be made up for: what a pause between two objects costs does not lower the average.
const CREDIT: Duration = Duration::from_secs(1);
/// How often a wait looks at the cancel flag.
pub const TICK: Duration = Duration::from_millis(50);
/// Bounds of a slice; within them it is a tenth of a second.
const SLICE_BYTES_MIN: u64 = 1 << 10;
const SLICE_BYTES_MAX: u64 = 128 << 10;

/// One direction's rate, shared by all threads.
#[derive(Debug)]
pub struct Limiter {
    bytes_per_second: NonZeroU64,
    pace: Arc<dyn Pace>,
    cancel: Arc<AtomicBool>,
    /// When everything that was let in so far is through.
    free_at: Mutex<Duration>,
}

impl Limiter {
    /// Starts with nothing in hand. Once `cancel` is set, waits end with `Failure::Cancelled`.
    pub fn new(bytes_per_second: NonZeroU64, pace: Arc<dyn Pace>, cancel: Arc<AtomicBool>) -> Limiter {
        let free_at = Mutex::new(pace.now());
        Limiter {
            bytes_per_second,
            pace,
            cancel,
            free_at,
        }
    }

    /// Returns how many bytes to [`Self::take`] at once.
    pub fn slice_bytes(&self) -> u64 {
        (self.bytes_per_second.get() / 10).clamp(SLICE_BYTES_MIN, SLICE_BYTES_MAX)
    }

    /// Lets `bytes` in, and returns how long to wait until they are through.
    pub fn take(&self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_second.get()));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock();
        let now = self.pace.now();
        *free_at = (*free_at).max(now.saturating_sub(CREDIT)).saturating_add(cost);
        free_at.saturating_sub(now)
    }

    /// Whether waiting is over because somebody wants to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` are through.
    ///
    /// # Errors
    /// `Failure::Cancelled`.
    pub fn pass(&self, what: &'static str, key: &StoreKey, bytes: u64) -> Result<(), StoreError> {
        let mut left = bytes;
        while left > 0 {
            let slice = left.min(self.slice_bytes());
            left -= slice;
            let mut wait = self.take(slice);
            while !wait.is_zero() {
                if self.is_cancelled() {
                    return Err(StoreError::new(what, key, Failure::Cancelled));
                }
                let step = wait.min(TICK);
                self.pace.sleep(step);
                wait -= step;
            }
        }
        Ok(())
    }
}

/// The rates of a store; a direction without one is not held back.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    pub upload: Option<Arc<Limiter>>,
    pub download: Option<Arc<Limiter>>,
}

impl Limits {
    /// Whether nothing is held back.
    pub fn is_empty(&self) -> bool {
        self.upload.is_none() && self.download.is_none()
    }
}

/// A store with limits. Listings and sizes are not counted: they are small.
#[derive(Debug)]
pub struct LimitedStore<S> {
    inner: S,
    limits: Limits,
}

impl<S: Store> LimitedStore<S> {
    /// Wraps a store.
    pub fn new(inner: S, limits: Limits) -> LimitedStore<S> {
        LimitedStore { inner, limits }
    }

    fn was_read(&self, key: &StoreKey, bytes: usize) -> Result<(), StoreError> {
        match &self.limits.download {
            Some(limiter) => limiter.pass("reading", key, bytes as u64),
            None => Ok(()),
        }
    }
}

impl<S: Store> Store for LimitedStore<S> {
    fn set_conditional(&self, conditional: bool) {
        self.inner.set_conditional(conditional);
    }

    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        if let Some(limiter) = &self.limits.upload {
            limiter.pass("writing", key, body.len() as u64)?;
        }
        self.inner.create(key, body)
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        let bytes = self.inner.read(key, part)?;
        self.was_read(key, bytes.len())?;
        Ok(bytes)
    }

    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_into(key, offset, buffer)?;
        self.was_read(key, buffer.len())
    }

    fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        let before = partial.bytes.len();
        let result = self.inner.read_on(key, part, partial);
        self.was_read(key, partial.bytes.len().saturating_sub(before))?;
        result
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.inner.list(prefix, each)
    }

    fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        self.inner.list_after(prefix, after, each)
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.inner.stat(key)
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        self.inner.remove(keys)
    }

    fn put_back(&self, key: &StoreKey, body: Bytes) -> Result<(), StoreError> {
        if let Some(limiter) = &self.limits.upload {
            limiter.pass("putting back", key, body.len() as u64)?;
        }
        self.inner.put_back(key, body)
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

    fn set_lock(&self, lock: Option<Lock>) {
        self.inner.set_lock(lock);
    }

    fn try_lock(&self, mode: LockMode) -> Result<(), StoreError> {
        self.inner.try_lock(mode)
    }

    fn retention(&self, key: &StoreKey, version: &Version) -> Result<Option<Retention>, StoreError> {
        self.inner.retention(key, version)
    }

    fn extend(&self, key: &StoreKey, version: &Version, retention: Retention) -> Result<(), StoreError> {
        self.inner.extend(key, version, retention)
    }

    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        self.inner.erase(keys)
    }

    fn list_versions(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        self.inner.list_versions(prefix, after, each)
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
    use crate::edge::store::retry::SystemPace;
    use std::sync::atomic::AtomicU64;

    /// A clock that only sleeping moves.
    #[derive(Debug, Default)]
    struct Clock {
        nanos: AtomicU64,
        /// Set while sleeping at or after this moment: somebody pressed Ctrl-C.
        cancel_at: Option<(Duration, Arc<AtomicBool>)>,
    }

    impl Pace for Clock {
        fn now(&self) -> Duration {
            Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
        }
        fn sleep(&self, wait: Duration) {
            self.nanos.fetch_add(wait.as_nanos() as u64, Ordering::Relaxed);
            if let Some((at, cancel)) = &self.cancel_at
                && self.now() >= *at
            {
                cancel.store(true, Ordering::Relaxed);
            }
        }
        fn jitter(&self, limit: Duration) -> Duration {
            limit
        }
    }

    fn limiter(bytes_per_second: u64, pace: Arc<dyn Pace>) -> Arc<Limiter> {
        let rate = NonZeroU64::new(bytes_per_second).unwrap();
        Arc::new(Limiter::new(rate, pace, Arc::default()))
    }

    fn key(text: &str) -> StoreKey {
        StoreKey::new(text).unwrap()
    }

    #[test]
    fn limited_stores_keep_the_contract() {
        use crate::edge::store::contract;
        let pace = Arc::new(SystemPace::new());
        let limits = Limits {
            upload: Some(limiter(1 << 40, pace.clone())),
            download: Some(limiter(1 << 40, pace)),
        };
        contract::check(
            &LimitedStore::new(MemoryStore::default(), limits),
            &contract::Options::default(),
        );
    }

    #[test]
    fn every_direction_keeps_its_own_rate() {
        let clock = Arc::new(Clock::default());
        let limits = Limits {
            upload: Some(limiter(500_000, clock.clone())),
            download: Some(limiter(2_000_000, clock.clone())),
        };
        let store = LimitedStore::new(MemoryStore::default(), limits);
        let took = |work: &dyn Fn()| {
            let start = clock.now();
            work();
            (clock.now() - start).as_secs_f64()
        };
        let large = Bytes::from(vec![1; 3_000_000]);
        let written = took(&|| assert_eq!(store.create(&key("a"), large.clone()).unwrap(), Created::New));
        assert!((written - 6.0).abs() < 0.01, "one large object: {written} s");
        let small = Bytes::from(vec![1; 700]);
        let written = took(&|| {
            for number in 0..1000 {
                assert_eq!(
                    store.create(&key(&format!("b/{number}")), small.clone()).unwrap(),
                    Created::New
                );
            }
        });
        assert!((written - 1.4).abs() < 0.01, "many small objects: {written} s");
        let read = took(&|| {
            // The second is free to make up for what the first left unused, no more.
            assert_eq!(store.read(&key("a"), Part::Whole).unwrap().len(), 3_000_000);
            let mut buffer = vec![0; 1_000_000];
            store.read_into(&key("a"), 5, &mut buffer).unwrap();
            store
                .read_on(&key("a"), &Part::Suffix(2_000_000), &mut Partial::default())
                .unwrap();
        });
        assert!((read - 2.0).abs() < 0.01, "6 MB, a second of it saved up: {read} s");
    }

    #[test]
    fn what_was_not_used_is_made_up_for_within_a_second_only() {
        let clock = Arc::new(Clock::default());
        let limiter = limiter(1000, clock.clone());
        assert_eq!(
            limiter.take(100),
            Duration::from_millis(100),
            "nothing in hand at first"
        );
        clock.sleep(Duration::from_secs(3600));
        assert_eq!(limiter.take(1000), Duration::ZERO);
        assert_eq!(limiter.take(100), Duration::from_millis(100));
    }

    #[test]
    fn threads_share_the_rate_and_a_small_object_waits_for_slices_only() {
        // Lanes that take a slice, wait as told, and take the next: played through in the order of their moments.
        let clock = Arc::new(Clock::default());
        let limiter = limiter(1_000_000, clock.clone());
        let slice = limiter.slice_bytes();
        let mut lanes = [(Duration::ZERO, 0u64); 8];
        let mut small_waited = Duration::ZERO;
        loop {
            let lane = lanes.iter_mut().min_by_key(|lane| lane.0).unwrap();
            clock.nanos.fetch_max(lane.0.as_nanos() as u64, Ordering::Relaxed);
            if lane.0 >= Duration::from_secs(60) {
                break;
            }
            if lane.1 == 5 * slice {
                small_waited = small_waited.max(limiter.take(100));
            }
            lane.0 = clock.now() + limiter.take(slice);
            lane.1 += slice;
        }
        let rate = lanes.iter().map(|lane| lane.1).sum::<u64>() as f64 / clock.now().as_secs_f64();
        assert!((rate / 1e6 - 1.0).abs() < 0.02, "{rate} bytes per second");
        assert!(small_waited < Duration::from_secs(1), "{small_waited:?}");
    }

    #[test]
    fn the_real_clock_keeps_the_rate_for_many_threads() {
        let limits = Limits {
            upload: Some(limiter(1_000_000, Arc::new(SystemPace::new()))),
            download: None,
        };
        let store = LimitedStore::new(MemoryStore::default(), limits);
        let started = std::time::Instant::now();
        std::thread::scope(|scope| {
            for lane in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    let body = Bytes::from(vec![lane; 250_000]);
                    store.create(&key(&format!("lane/{lane}")), body).unwrap()
                });
            }
        });
        // A busy machine only makes it later.
        assert!(
            started.elapsed() >= Duration::from_millis(990),
            "{:?}",
            started.elapsed()
        );
    }

    #[test]
    fn a_signal_ends_the_wait() {
        let cancel = Arc::new(AtomicBool::new(false));
        let clock = Arc::new(Clock {
            nanos: AtomicU64::new(0),
            cancel_at: Some((Duration::from_secs(2), cancel.clone())),
        });
        let rate = NonZeroU64::new(1000).unwrap();
        let upload = Some(Arc::new(Limiter::new(rate, clock.clone(), cancel)));
        let store = LimitedStore::new(MemoryStore::default(), Limits { upload, download: None });
        let error = store.create(&key("a"), Bytes::from(vec![1; 1_000_000])).unwrap_err();
        assert_eq!(error.class, Failure::Cancelled);
        assert!(clock.now() < Duration::from_millis(2100), "{:?}", clock.now());
        assert_eq!(
            store.stat(&key("a")).unwrap_err().class,
            Failure::NotFound,
            "nothing was written"
        );
    }
}
