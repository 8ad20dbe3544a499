//! What every store promises, as checks: run against memory, directories, real S3 servers, and any wrapper.
//!
//! A check panics with the promise that was broken. It works below names of its own and removes them at the end, so it may
//! be run against a store that holds other things.

use super::{Created, Failure, Part, Prefix, Store, StoreError, StoreKey, random_name};
use bytes::Bytes;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the store under test is spared or excused from.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Objects in the listing check (more than two pages of S3: 2500).
    pub listed_objects: usize,
    /// Bytes of the large object.
    pub large_bytes: usize,
    /// Rounds of the eight-thread race. 0: the store creates unconditionally (a weaker store), so races are not checked.
    pub race_rounds: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listed_objects: 2500,
            large_bytes: 40 << 20,
            race_rounds: 20,
        }
    }
}

/// Checks every promise.
///
/// # Panics
/// When one is broken.
pub fn check(store: &dyn Store, options: &Options) {
    let place = Place {
        store,
        name: random_name().expect("random bytes"),
    };
    place.an_object_is_created_once();
    place.parts_are_read_exactly();
    place.an_absent_object_is_not_found();
    place.removing_is_idempotent();
    place.an_empty_object_is_refused();
    place.names_are_kept_apart();
    place.many_names_are_listed_in_order(options.listed_objects);
    place.a_large_object_comes_back(options.large_bytes);
    place.a_race_has_one_winner(options.race_rounds);
    place.the_probe_leaves_nothing();
    place.clean();
}

/// Makes bytes that compress badly, repeat never, and differ for every seed.
pub fn noise(seed: u64, length: usize) -> Bytes {
    // SplitMix64.
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    Bytes::from(bytes)
}

/// A corner of the store that nobody else uses.
struct Place<'a> {
    store: &'a dyn Store,
    name: String,
}

fn class<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Failure {
    result.expect_err("this must fail").class
}

impl Place<'_> {
    fn key(&self, rest: &str) -> StoreKey {
        StoreKey::new(format!("hold/{}/{rest}", self.name)).expect("a key")
    }

    fn prefix(&self, rest: &str) -> Prefix {
        Prefix::new(format!("hold/{}/{rest}", self.name)).expect("a prefix")
    }

    fn create(&self, rest: &str, body: &Bytes) -> Created {
        self.store.create(&self.key(rest), body.clone()).expect("creating")
    }

    fn list(&self, rest: &str) -> Vec<(String, u64)> {
        let mut rows = Vec::new();
        let cut = format!("hold/{}/", self.name).len();
        self.store
            .list(&self.prefix(rest), &mut |row| {
                rows.push((row.key.as_str()[cut..].to_string(), row.size))
            })
            .expect("listing");
        rows
    }

    fn an_object_is_created_once(&self) {
        let first = noise(1, 1000);
        assert_eq!(self.create("once", &first), Created::New);
        assert_eq!(
            self.create("once", &noise(2, 1000)),
            Created::Exists,
            "a taken name must be refused"
        );
        assert_eq!(
            self.create("once", &noise(3, 10)),
            Created::Exists,
            "a taken name must be refused"
        );
        let read = self.store.read(&self.key("once"), Part::Whole).expect("reading");
        assert!(read == first, "the first object must not be overwritten");
    }

    fn parts_are_read_exactly(&self) {
        let body = noise(4, 100_000);
        assert_eq!(self.create("parts", &body), Created::New);
        let key = self.key("parts");
        let read = |part| self.store.read(&key, part);
        let size = body.len() as u64;
        for (start, end) in [
            (0, 1),
            (0, 100_000),
            (1, 2),
            (65_535, 65_537),
            (99_999, 100_000),
            (12_345, 54_321),
            (5, 5),
        ] {
            let expected = body.slice(start as usize..end as usize);
            assert_eq!(
                read(Part::Range(start..end)).expect("a range"),
                expected,
                "{start}..{end}"
            );
            let mut buffer = vec![0u8; (end - start) as usize];
            self.store.read_into(&key, start, &mut buffer).expect("a range");
            assert!(buffer == expected, "{start}..{end} into a buffer");
        }
        assert_eq!(read(Part::AtMost(size)).expect("not too large"), body);
        assert_eq!(class(read(Part::AtMost(size - 1))), Failure::Unreadable);
        for length in [1, 128, size - 1, size, size + 1, u64::MAX] {
            let from = size.saturating_sub(length) as usize;
            assert_eq!(
                read(Part::Suffix(length)).expect("a suffix"),
                body.slice(from..),
                "the last {length}"
            );
        }
        assert!(read(Part::Suffix(0)).expect("an empty suffix").is_empty());
        for (start, end) in [
            (0, size + 1),
            (size - 1, size + 1),
            (size, size + 1),
            (size + 10, size + 20),
        ] {
            assert_eq!(
                class(read(Part::Range(start..end))),
                Failure::NotFound,
                "{start}..{end} lies outside"
            );
            let mut buffer = vec![0u8; (end - start) as usize];
            assert_eq!(class(self.store.read_into(&key, start, &mut buffer)), Failure::NotFound);
        }
        let stat = self.store.stat(&key).expect("there");
        assert_eq!(stat.size, size);
        assert!(stat.modified.is_some(), "a store time");
    }

    fn an_absent_object_is_not_found(&self) {
        let key = self.key("absent");
        assert_eq!(class(self.store.read(&key, Part::Whole)), Failure::NotFound);
        assert_eq!(class(self.store.read(&key, Part::Range(0..1))), Failure::NotFound);
        assert_eq!(class(self.store.read(&key, Part::Suffix(1))), Failure::NotFound);
        assert_eq!(class(self.store.read_into(&key, 0, &mut [0])), Failure::NotFound);
        assert_eq!(class(self.store.stat(&key)), Failure::NotFound);
        assert_eq!(self.list("absent"), []);
    }

    fn removing_is_idempotent(&self) {
        let body = noise(5, 10);
        assert_eq!(self.create("removed", &body), Created::New);
        let keys = [self.key("removed"), self.key("never-there"), self.key("nor/this")];
        self.store.remove(&keys).expect("removing");
        self.store.remove(&keys).expect("removing again");
        self.store.remove(&keys[..1]).expect("removing one");
        self.store.remove(&[]).expect("removing none");
        assert_eq!(class(self.store.stat(&keys[0])), Failure::NotFound);
        assert_eq!(self.create("removed", &body), Created::New, "the name is free again");
    }

    fn an_empty_object_is_refused(&self) {
        assert_eq!(
            class(self.store.create(&self.key("empty"), Bytes::new())),
            Failure::Permanent
        );
        assert_eq!(class(self.store.stat(&self.key("empty"))), Failure::NotFound);
    }

    fn names_are_kept_apart(&self) {
        let names = ["n/a-b", "n/a.b", "n/a/x", "n/a0", "n/a_b", "n/aa"];
        for (number, name) in names.iter().enumerate().rev() {
            assert_eq!(self.create(name, &noise(6, number + 1)), Created::New);
        }
        let expected: Vec<(String, u64)> = names
            .iter()
            .enumerate()
            .map(|(number, name)| (name.to_string(), number as u64 + 1))
            .collect();
        assert_eq!(self.list("n/"), expected, "whole keys ascend byte by byte");
        assert_eq!(self.list("n/a"), expected, "the prefix may end within a component");
        assert_eq!(self.list("n/a/"), [("n/a/x".to_string(), 3)]);
        assert_eq!(self.list("n/a0"), [("n/a0".to_string(), 4)]);
        assert_eq!(self.list("m"), []);
        let mut rows = Vec::new();
        let after = self.key("n/a.b");
        self.store
            .list_after(&self.prefix("n/"), Some(&after), &mut |row| rows.push(row.size))
            .expect("listing");
        assert_eq!(rows, [3, 4, 5, 6], "a listing is taken up after a key");
    }

    fn many_names_are_listed_in_order(&self, count: usize) {
        let body = noise(7, 16);
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            break;
                        }
                        assert_eq!(self.create(&format!("many/{number:05}"), &body), Created::New);
                    }
                });
            }
        });
        let expected: Vec<(String, u64)> = (0..count).map(|number| (format!("many/{number:05}"), 16)).collect();
        assert_eq!(self.list("many/"), expected);
        let keys: Vec<StoreKey> = (0..count)
            .map(|number| self.key(&format!("many/{number:05}")))
            .collect();
        self.store.remove(&keys).expect("removing many");
        assert_eq!(self.list("many/"), []);
    }

    fn a_large_object_comes_back(&self, length: usize) {
        let body = noise(8, length);
        assert_eq!(self.create("large", &body), Created::New);
        let key = self.key("large");
        assert!(
            self.store.read(&key, Part::Whole).expect("reading") == body,
            "a large object comes back"
        );
        let mut buffer = vec![0u8; length / 2];
        self.store
            .read_into(&key, (length / 4) as u64, &mut buffer)
            .expect("reading");
        assert!(
            buffer == body[length / 4..length / 4 + length / 2],
            "so does its middle"
        );
        assert_eq!(self.store.stat(&key).expect("there").size, length as u64);
    }

    fn a_race_has_one_winner(&self, rounds: usize) {
        const THREADS: usize = 8;
        for round in 0..rounds {
            let name = format!("race/{round}");
            let barrier = Barrier::new(THREADS);
            let won: Vec<usize> = std::thread::scope(|scope| {
                let runners: Vec<_> = (0..THREADS)
                    .map(|runner| {
                        let (barrier, name) = (&barrier, &name);
                        scope.spawn(move || {
                            let body = noise(runner as u64, 2000);
                            barrier.wait();
                            self.create(name, &body) == Created::New
                        })
                    })
                    .collect();
                let results = runners.into_iter().map(|runner| runner.join().expect("a runner"));
                results
                    .enumerate()
                    .filter(|(_, won)| *won)
                    .map(|(runner, _)| runner)
                    .collect()
            });
            assert_eq!(won.len(), 1, "round {round} has exactly one winner");
            let read = self.store.read(&self.key(&name), Part::Whole).expect("reading");
            assert!(read == noise(won[0] as u64, 2000), "and its bytes are there");
        }
    }

    fn the_probe_leaves_nothing(&self) {
        self.store.probe().expect("probing");
        let mut rows = Vec::new();
        let prefix = Prefix::new("tmp/probe-").expect("a prefix");
        self.store
            .list(&prefix, &mut |row| rows.push(row.key))
            .expect("listing");
        assert_eq!(rows, []);
    }

    fn clean(&self) {
        let mut keys = Vec::new();
        self.store
            .list(&self.prefix(""), &mut |row| keys.push(row.key))
            .expect("listing");
        self.store.remove(&keys).expect("removing");
        assert_eq!(self.list(""), []);
    }
}
