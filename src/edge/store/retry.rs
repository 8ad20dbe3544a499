//! Tries a store's calls again: full-jitter back-off within a budget of time without progress, and the answer to the one
//! question that trying again raises — was the object that is in the way put there by us? (format-spec, "S3 mapping".)
//!
//! Every attempt that failed may have happened all the same (a reply can be lost), so after the first failure `Exists` is
//! never believed: the object there is compared with ours by size and by its last 128 bytes, which are hashes of the
//! content in every object of the format.

use super::{
    Abilities, Created, Failure, Listed, Lock, Part, Partial, Prefix, Refused, Retention, Stat, Store, StoreError,
    StoreKey, Version, Versions,
};
use crate::pure::base::LockMode;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How patient to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    /// Upper bound of the first wait; it doubles with each failure.
    pub wait_first: Duration,
    /// Upper bound of every wait.
    pub wait_max: Duration,
    /// How long a call may go on without progress.
    pub patience: Duration,
    /// The same, as long as no call to this store has ever succeeded: a mistyped address should not cost a quarter of an hour.
    pub patience_at_first: Duration,
    /// How often an answer that breaks the protocol is asked for again.
    pub protocol_retries: u32,
}

impl Default for RetryOptions {
    fn default() -> RetryOptions {
        RetryOptions {
            wait_first: Duration::from_millis(100),
            wait_max: Duration::from_secs(20),
            patience: Duration::from_secs(15 * 60),
            patience_at_first: Duration::from_secs(2 * 60),
            protocol_retries: 3,
        }
    }
}

/// Time and chance, so that tests neither sleep nor roll dice.
pub trait Pace: Send + Sync + std::fmt::Debug {
    /// Returns the time since some fixed moment; it never goes back.
    fn now(&self) -> Duration;
    /// Waits.
    fn sleep(&self, wait: Duration);
    /// Returns a random wait of at most `limit`, evenly spread.
    fn jitter(&self, limit: Duration) -> Duration;
}

/// The machine's clock and random generator.
#[derive(Debug)]
pub struct SystemPace(std::time::Instant);

impl SystemPace {
    /// Starts a clock.
    pub fn new() -> SystemPace {
        SystemPace(std::time::Instant::now())
    }
}

impl Default for SystemPace {
    fn default() -> SystemPace {
        SystemPace::new()
    }
}

impl Pace for SystemPace {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, wait: Duration) {
        std::thread::sleep(wait);
    }

    fn jitter(&self, limit: Duration) -> Duration {
        // Without random numbers the full wait is the safe choice.
        limit.mul_f64(getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX)))
    }
}

/// How often a wait looks at the cancel flag.
const CANCEL_TICK: Duration = Duration::from_millis(50);
/// How many of the last bytes are compared; every object ends in hashes of its content.
const TAIL_BYTES: u64 = 128;
/// How many keys are removed in one call, so that a retry repeats little.
const REMOVE_BATCH: usize = 1000;

/// A store that tries again.
#[derive(Debug)]
pub struct RetryStore<S> {
    inner: S,
    options: RetryOptions,
    pace: Arc<dyn Pace>,
    cancel: Arc<AtomicBool>,
    succeeded: AtomicBool,
    retries: AtomicU64,
}

/// One call's history of failures.
struct Attempts {
    /// When the failures since the last progress began.
    since: Option<Duration>,
    failures: u32,
    protocol_failures: u32,
}

impl Attempts {
    fn new() -> Attempts {
        Attempts {
            since: None,
            failures: 0,
            protocol_failures: 0,
        }
    }
}

impl<S: Store> RetryStore<S> {
    /// Wraps a store. Once `cancel` is set, waits end with `Failure::Cancelled`; a request under way is let finish.
    pub fn new(inner: S, options: RetryOptions, pace: Arc<dyn Pace>, cancel: Arc<AtomicBool>) -> RetryStore<S> {
        RetryStore {
            inner,
            options,
            pace,
            cancel,
            succeeded: AtomicBool::new(false),
            retries: AtomicU64::new(0),
        }
    }

    /// Returns how often something had to be tried again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Waits before another attempt, or returns the error if there is not to be one.
    fn pause(&self, attempts: &mut Attempts, error: StoreError) -> Result<(), StoreError> {
        match error.class {
            Failure::Transient => {}
            Failure::Protocol => {
                attempts.protocol_failures += 1;
                if attempts.protocol_failures > self.options.protocol_retries {
                    return Err(error);
                }
            }
            _ => return Err(error),
        }
        let now = self.pace.now();
        let since = *attempts.since.get_or_insert(now);
        let succeeded = self.succeeded.load(Ordering::Relaxed);
        let patience = if succeeded {
            self.options.patience
        } else {
            self.options.patience.min(self.options.patience_at_first)
        };
        let left = patience.saturating_sub(now.saturating_sub(since));
        if left.is_zero() {
            let hint = format!(
                "gave up after {} s without progress; trying again later continues",
                patience.as_secs()
            );
            let hint = error
                .hint
                .as_ref()
                .map_or(hint.clone(), |first| format!("{first}; {hint}"));
            return Err(error.with_hint(hint));
        }
        let doubled = self
            .options
            .wait_first
            .saturating_mul(1u32 << attempts.failures.min(20));
        attempts.failures = attempts.failures.saturating_add(1);
        let mut wait = self.pace.jitter(doubled.min(self.options.wait_max)).min(left);
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                let cancelled = StoreError::new(error.what, &error.object, Failure::Cancelled);
                return Err(cancelled.caused_by(error));
            }
            if wait.is_zero() {
                break;
            }
            let step = wait.min(CANCEL_TICK);
            self.pace.sleep(step);
            wait -= step;
        }
        self.retries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn note_success(&self) {
        self.succeeded.store(true, Ordering::Relaxed);
    }

    /// Calls until it succeeds or is given up.
    fn persist<T>(&self, mut call: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut attempts = Attempts::new();
        loop {
            match call() {
                Ok(value) => {
                    self.note_success();
                    return Ok(value);
                }
                Err(error) => {
                    // An answer about one object shows that the store is there.
                    if error.class == Failure::NotFound {
                        self.note_success();
                    }
                    self.pause(&mut attempts, error)?;
                }
            }
        }
    }

    /// Says whether the object that is in the way holds our bytes. `None`: it is not there (any more).
    fn is_ours(&self, key: &StoreKey, body: &Bytes) -> Result<Option<bool>, StoreError> {
        let length = body.len() as u64;
        let tail = TAIL_BYTES.min(length);
        match self.stat(key).and_then(|stat| {
            if stat.size != length {
                return Ok(false);
            }
            let range = length - tail..length;
            Ok(self.read(key, Part::Range(range))? == body[(length - tail) as usize..])
        }) {
            Ok(ours) => Ok(Some(ours)),
            Err(error) if error.class == Failure::NotFound => Ok(None),
            // A put-only writer may not read packs. Their names hold 128 random bits that only we know, so the listed
            // size decides; for any other object the refusal stands.
            Err(error) if error.class == Failure::Denied && is_pack(key) => {
                let Some(prefix) = Prefix::new(key.as_str()) else {
                    return Err(error);
                };
                let mut size = None;
                self.list(&prefix, &mut |row| {
                    if row.key == *key {
                        size = Some(row.size);
                    }
                })?;
                Ok(size.map(|size| size == length))
            }
            Err(error) => Err(error),
        }
    }
}

fn is_pack(key: &StoreKey) -> bool {
    key.as_str().starts_with("data/") || key.as_str().starts_with("meta/")
}

impl<S: Store> Store for RetryStore<S> {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        let mut attempts = Attempts::new();
        loop {
            let error = match self.inner.create(key, body.clone()) {
                Ok(Created::New) => {
                    self.note_success();
                    return Ok(Created::New);
                }
                Ok(Created::Exists) => {
                    self.note_success();
                    if attempts.failures == 0 || chaos!("lost-reply-is-somebody-else") {
                        return Ok(Created::Exists);
                    }
                    match self.is_ours(key, &body)? {
                        Some(true) => return Ok(Created::New),
                        Some(false) => return Ok(Created::Exists),
                        // Gone between the two answers, or not visible yet.
                        None => StoreError::new("writing", key, Failure::Transient)
                            .caused_by("the name was taken, but nothing is there"),
                    }
                }
                Err(error) => error,
            };
            self.pause(&mut attempts, error)?;
        }
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        let mut partial = Partial::default();
        self.read_on(key, &part, &mut partial)?;
        Ok(Bytes::from(partial.bytes))
    }

    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let Some(end) = offset.checked_add(buffer.len() as u64) else {
            return Err(StoreError::new("reading", key, Failure::NotFound).caused_by("no object is that large"));
        };
        let bytes = self.read(key, Part::Range(offset..end))?;
        if bytes.len() != buffer.len() {
            return Err(StoreError::new("reading", key, Failure::Protocol).caused_by("not as many bytes as asked for"));
        }
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        // Bytes are progress, so a large object gets through a network that cuts every connection short.
        let mut attempts = Attempts::new();
        loop {
            let before = partial.bytes.len();
            let error = match self.inner.read_on(key, part, partial) {
                Ok(()) => {
                    self.note_success();
                    return Ok(());
                }
                Err(error) => error,
            };
            if partial.bytes.len() > before {
                attempts = Attempts::new();
            }
            // An answer about one object shows that the store is there.
            if partial.bytes.len() > before || error.class == Failure::NotFound {
                self.note_success();
            }
            self.pause(&mut attempts, error)?;
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
        // No row is delivered twice: a new attempt goes on after the last one. Rows are progress, so a long listing gets
        // through a store that fails every other page.
        let mut last = after.cloned();
        let mut attempts = Attempts::new();
        loop {
            let from = last.clone();
            let mut rows = 0u64;
            let result = self.inner.list_after(prefix, from.as_ref(), &mut |row| {
                rows += 1;
                last = Some(row.key.clone());
                each(row);
            });
            if rows > 0 {
                self.note_success();
                attempts = Attempts::new();
            }
            match result {
                Ok(()) => {
                    self.note_success();
                    return Ok(());
                }
                Err(error) => self.pause(&mut attempts, error)?,
            }
        }
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.persist(|| self.inner.stat(key))
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        keys.chunks(REMOVE_BATCH)
            .try_for_each(|batch| self.persist(|| self.inner.remove(batch)))
    }

    fn put_back(&self, key: &StoreKey, body: Bytes) -> Result<(), StoreError> {
        self.persist(|| self.inner.put_back(key, body.clone()))
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.persist(|| self.inner.prepare())
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        self.persist(|| self.inner.probe())
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
        self.persist(|| self.inner.try_lock(mode))
    }

    fn retention(&self, key: &StoreKey, version: &Version) -> Result<Option<Retention>, StoreError> {
        self.persist(|| self.inner.retention(key, version))
    }

    fn extend(&self, key: &StoreKey, version: &Version, retention: Retention) -> Result<(), StoreError> {
        self.persist(|| self.inner.extend(key, version, retention))
    }

    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        let mut refused = Vec::new();
        for batch in keys.chunks(REMOVE_BATCH) {
            refused.extend(self.persist(|| self.inner.erase(batch))?);
        }
        Ok(refused)
    }

    fn list_versions(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        // As `list_after`.
        let mut last = after.cloned();
        let mut attempts = Attempts::new();
        loop {
            let from = last.clone();
            let mut rows = 0u64;
            let result = self.inner.list_versions(prefix, from.as_ref(), &mut |row| {
                rows += 1;
                last = Some(row.key.clone());
                each(row);
            });
            if rows > 0 {
                self.note_success();
                attempts = Attempts::new();
            }
            match result {
                Ok(()) => {
                    self.note_success();
                    return Ok(());
                }
                Err(error) => self.pause(&mut attempts, error)?,
            }
        }
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
    use parking_lot::Mutex;
    use std::collections::VecDeque;

    /// Time that passes only by sleeping; the jitter is the whole limit.
    #[derive(Debug, Default)]
    struct TestPace {
        now: Mutex<Duration>,
        limits: Mutex<Vec<Duration>>,
        cancel_at: Mutex<Option<(Duration, Arc<AtomicBool>)>>,
    }

    impl Pace for TestPace {
        fn now(&self) -> Duration {
            *self.now.lock()
        }
        fn sleep(&self, wait: Duration) {
            let mut now = self.now.lock();
            *now += wait;
            if let Some((at, flag)) = &*self.cancel_at.lock()
                && *now >= *at
            {
                flag.store(true, Ordering::SeqCst);
            }
        }
        fn jitter(&self, limit: Duration) -> Duration {
            self.limits.lock().push(limit);
            limit
        }
    }

    /// What goes wrong with the next call.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        /// Fails before anything happened.
        Before(Failure),
        /// Happens, but the reply is lost.
        Lost,
        /// A listing breaks off after this many rows.
        Rows(usize),
        None,
    }

    /// A memory store that has bad days.
    #[derive(Debug)]
    struct Faulty {
        store: MemoryStore,
        faults: Mutex<VecDeque<Fault>>,
        forever: Option<Failure>,
        deny_reads: bool,
    }

    impl Faulty {
        fn next(&self) -> Fault {
            self.faults
                .lock()
                .pop_front()
                .unwrap_or(self.forever.map_or(Fault::None, Fault::Before))
        }
        fn run<T>(&self, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
            match self.next() {
                Fault::Before(class) => Err(StoreError::new("testing", "x", class)),
                Fault::Lost => {
                    let _ = call();
                    Err(StoreError::new("testing", "x", Failure::Transient))
                }
                _ => call(),
            }
        }
    }

    impl Store for Faulty {
        fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
            self.run(|| self.store.create(key, body))
        }
        fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
            if self.deny_reads {
                return Err(StoreError::new("reading", key, Failure::Denied));
            }
            self.run(|| self.store.read(key, part))
        }
        fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
            let limit = match self.next() {
                Fault::Rows(rows) => rows,
                Fault::None => usize::MAX,
                _ => 0,
            };
            let mut rows = 0;
            self.store.list(prefix, &mut |row| {
                if rows < limit {
                    each(row)
                }
                rows += 1;
            })?;
            if limit < usize::MAX {
                Err(StoreError::new("listing", prefix, Failure::Transient))
            } else {
                Ok(())
            }
        }
        // The default `list_after` skips what was delivered, so `Rows(n)` must count from the start.
        fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
            if self.deny_reads {
                return Err(StoreError::new("reading", key, Failure::Denied));
            }
            self.run(|| self.store.stat(key))
        }
        fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
            self.run(|| self.store.remove(keys))
        }
        fn prepare(&self) -> Result<(), StoreError> {
            Ok(())
        }
        fn probe(&self) -> Result<Abilities, StoreError> {
            self.store.probe()
        }
        fn set_conditional(&self, conditional: bool) {
            self.store.set_conditional(conditional);
        }

        fn location(&self) -> String {
            "faulty".to_string()
        }
    }

    struct World {
        memory: MemoryStore,
        pace: Arc<TestPace>,
        cancel: Arc<AtomicBool>,
        store: RetryStore<Faulty>,
    }

    fn world(faults: &[Fault], forever: Option<Failure>, deny_reads: bool) -> World {
        let memory = MemoryStore::new();
        let pace = Arc::new(TestPace::default());
        let cancel = Arc::new(AtomicBool::new(false));
        let faults = Mutex::new(faults.iter().copied().collect());
        let faulty = Faulty {
            store: memory.clone(),
            faults,
            forever,
            deny_reads,
        };
        let store = RetryStore::new(faulty, RetryOptions::default(), pace.clone(), cancel.clone());
        World {
            memory,
            pace,
            cancel,
            store,
        }
    }

    fn key(text: &str) -> StoreKey {
        StoreKey::new(text).expect("a key")
    }

    const TRANSIENT: Fault = Fault::Before(Failure::Transient);
    const PROTOCOL: Fault = Fault::Before(Failure::Protocol);

    #[test]
    fn a_create_whose_reply_was_lost_is_ours() {
        for key in [key("snap/00"), key("data/00/aa-bb")] {
            let world = world(&[Fault::Lost], None, false);
            let body = Bytes::from(vec![7u8; 1000]);
            assert_eq!(world.store.create(&key, body.clone()).expect("creating"), Created::New);
            assert_eq!(world.memory.read(&key, Part::Whole).expect("there"), body);
            assert_eq!(world.store.retries(), 1);
        }
    }

    #[test]
    fn a_name_taken_by_somebody_else_is_never_called_ours() {
        let ours = Bytes::from(vec![7u8; 1000]);
        let mut same_size = vec![7u8; 1000];
        same_size[999] = 8;
        for theirs in [same_size, vec![7u8; 1001], vec![7u8; 128]] {
            let world = world(&[TRANSIENT], None, false);
            assert_eq!(
                world.memory.create(&key("snap/00"), theirs.into()).expect("theirs"),
                Created::New
            );
            assert_eq!(
                world.store.create(&key("snap/00"), ours.clone()).expect("creating"),
                Created::Exists
            );
        }
    }

    #[test]
    fn without_a_failed_attempt_even_equal_bytes_are_not_ours() {
        let world = world(&[], None, false);
        let body = Bytes::from_static(b"the same bytes");
        assert_eq!(
            world.memory.create(&key("snap/00"), body.clone()).expect("theirs"),
            Created::New
        );
        assert_eq!(
            world.store.create(&key("snap/00"), body).expect("creating"),
            Created::Exists
        );
    }

    #[test]
    fn a_writer_that_may_not_read_recognises_its_packs_by_listing() {
        let body = Bytes::from(vec![7u8; 1000]);
        let world = world(&[Fault::Lost, Fault::None, Fault::None], None, true);
        assert_eq!(
            world
                .store
                .create(&key("data/00/aa-bb"), body.clone())
                .expect("creating"),
            Created::New
        );
        let world = self::world(&[Fault::Lost], None, true);
        let error = world.store.create(&key("snap/00"), body).expect_err("undecidable");
        assert_eq!(error.class, Failure::Denied);
    }

    #[test]
    fn waits_double_up_to_the_limit_and_end_with_the_patience() {
        let world = world(&[Fault::None], Some(Failure::Transient), false);
        world
            .store
            .list(&Prefix::new("").expect("a prefix"), &mut |_| {})
            .expect("one success");
        let error = world.store.stat(&key("snap/00")).expect_err("never succeeds");
        assert_eq!(error.class, Failure::Transient);
        assert!(error.hint.expect("a hint").contains("900 s"));
        assert_eq!(world.pace.now(), RetryOptions::default().patience);
        let limits = world.pace.limits.lock();
        assert_eq!(limits[0], Duration::from_millis(100));
        assert_eq!(limits[1], Duration::from_millis(200));
        assert_eq!(limits[limits.len() - 1], Duration::from_secs(20));
    }

    #[test]
    fn a_store_that_never_answered_is_given_up_sooner() {
        let world = world(&[], Some(Failure::Transient), false);
        world.store.stat(&key("snap/00")).expect_err("never succeeds");
        assert_eq!(world.pace.now(), RetryOptions::default().patience_at_first);
    }

    #[test]
    fn broken_answers_are_asked_for_three_more_times() {
        let body = Bytes::from_static(b"body");
        let three = world(&[PROTOCOL, PROTOCOL, PROTOCOL], None, false);
        assert_eq!(
            three.memory.create(&key("snap/00"), body.clone()).expect("creating"),
            Created::New
        );
        assert_eq!(three.store.read(&key("snap/00"), Part::Whole).expect("reading"), body);
        let four = world(&[PROTOCOL, PROTOCOL, PROTOCOL, PROTOCOL], None, false);
        assert_eq!(
            four.store
                .read(&key("snap/00"), Part::Whole)
                .expect_err("too often")
                .class,
            Failure::Protocol
        );
    }

    #[test]
    fn final_failures_are_not_tried_again() {
        for class in [
            Failure::NotFound,
            Failure::Denied,
            Failure::Full,
            Failure::ReadOnly,
            Failure::Unreachable,
            Failure::Permanent,
        ] {
            let world = world(&[Fault::Before(class)], None, false);
            assert_eq!(world.store.stat(&key("snap/00")).expect_err("fails").class, class);
            assert_eq!(world.pace.now(), Duration::ZERO);
        }
    }

    #[test]
    fn a_broken_listing_goes_on_after_the_last_row() {
        let faults: Vec<Fault> = (0..60)
            .map(|n| if n % 2 == 0 { TRANSIENT } else { Fault::Rows(n) })
            .collect();
        let world = world(&faults, None, false);
        for number in 0..100 {
            let key = key(&format!("snap/{number:04}"));
            assert_eq!(
                world.memory.create(&key, Bytes::from_static(b"x")).expect("creating"),
                Created::New
            );
        }
        let mut rows = Vec::new();
        world
            .store
            .list(&Prefix::new("snap/").expect("a prefix"), &mut |row| rows.push(row.key))
            .expect("listing");
        let expected: Vec<StoreKey> = (0..100).map(|number| key(&format!("snap/{number:04}"))).collect();
        assert_eq!(rows, expected);
    }

    /// Delivers ten bytes of the object per call, then fails.
    #[derive(Debug)]
    struct Dripping(MemoryStore);

    impl Store for Dripping {
        fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
            self.0.create(key, body)
        }
        fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
            self.0.read(key, part)
        }
        fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
            let body = self.0.read(key, part.clone())?;
            let end = body.len().min(partial.bytes.len() + 10);
            partial.bytes.extend_from_slice(&body[partial.bytes.len()..end]);
            if end < body.len() {
                Err(StoreError::new("reading", key, Failure::Transient))
            } else {
                Ok(())
            }
        }
        fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
            self.0.list(prefix, each)
        }
        fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
            self.0.stat(key)
        }
        fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
            self.0.remove(keys)
        }
        fn prepare(&self) -> Result<(), StoreError> {
            self.0.prepare()
        }
        fn probe(&self) -> Result<Abilities, StoreError> {
            self.0.probe()
        }
        fn set_conditional(&self, conditional: bool) {
            self.0.set_conditional(conditional);
        }

        fn location(&self) -> String {
            self.0.location()
        }
    }

    #[test]
    fn a_read_gets_through_connections_that_all_break() {
        let pace = Arc::new(TestPace::default());
        let cancel = Arc::new(AtomicBool::new(false));
        let memory = MemoryStore::new();
        let store = RetryStore::new(Dripping(memory.clone()), RetryOptions::default(), pace.clone(), cancel);
        // So long that it takes more than the patience in waits.
        let body: Bytes = (0..100_000u32).map(|number| number as u8).collect::<Vec<_>>().into();
        assert_eq!(
            memory.create(&key("snap/00"), body.clone()).expect("creating"),
            Created::New
        );
        assert!(store.read(&key("snap/00"), Part::Whole).expect("reading") == body);
        assert!(pace.now() > RetryOptions::default().patience);
        let mut buffer = [0u8; 100];
        store.read_into(&key("snap/00"), 50, &mut buffer).expect("reading");
        assert_eq!(buffer[..], body[50..150]);
    }

    #[test]
    fn a_cancelled_wait_ends_at_once() {
        let world = world(&[], Some(Failure::Transient), false);
        *world.pace.cancel_at.lock() = Some((Duration::from_secs(10), world.cancel.clone()));
        let error = world.store.stat(&key("snap/00")).expect_err("cancelled");
        assert_eq!(error.class, Failure::Cancelled);
        assert!(world.pace.now() < Duration::from_millis(10_100));
    }

    #[test]
    fn removing_is_done_in_batches() {
        let world = world(&[Fault::None, Fault::Lost], None, false);
        let keys: Vec<StoreKey> = (0..2500).map(|number| key(&format!("snap/{number:04}"))).collect();
        for key in &keys {
            assert_eq!(
                world.memory.create(key, Bytes::from_static(b"x")).expect("creating"),
                Created::New
            );
        }
        world.store.remove(&keys).expect("removing");
        let mut rows = 0;
        world
            .memory
            .list(&Prefix::new("").expect("a prefix"), &mut |_| rows += 1)
            .expect("listing");
        assert_eq!(rows, 0);
        assert_eq!(world.store.retries(), 1);
    }
}
