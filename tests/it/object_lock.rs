//! A repository whose objects are locked (ADR-0027), in buckets of real servers: `LARDER_TEST_S3_CEPH` and `LARDER_TEST_S3_MINISTACK`,
//! as in `doctor.rs`. What does not need a server is tried in memory.
#![cfg(feature = "s3")]

use crate::doctor::{Bucket, servers};
use crate::fault::{admin, scratch, try_open};
use crate::prune::{back_up, prune_options, prune_with};
use crate::story::{noise, restore_options, tree};
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};
use larder::edge::host;
use larder::edge::store::location::{Location, StoreOptions, open as open_store};
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Failure, Part, Prefix, Retention, Store, StoreKey, Version, Versions};
use larder::ops::doctor::{self, Level};
use larder::ops::forget;
use larder::ops::{OpError, Progress, check, keys, object_lock, promote, prune, replicate, restore};
use larder::pure::base::{Explain, Kind, LockMode, Timestamp};
use larder::pure::crypto::Secret;
use larder::pure::crypto::kdf::Cost;
use larder::pure::format::config::ObjectLock;
use larder::pure::format::name::ObjectName;
use larder::pure::id::SessionId;
use larder::pure::plan::lock::LOCKED;
use larder::repo::index::{PackInfo, PackState};
use larder::repo::open::{self, Credential, store_key};
use larder::repo::{Repo, RepoError};
use larder::testing::fault_store::{Fault, FaultStore};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const DAY_NS: i64 = 86_400_000_000_000;
const MINUTE_NS: i64 = 60_000_000_000;

fn lock(days: u32, below: u32) -> ObjectLock {
    ObjectLock::new(LockMode::Governance, days, Some(below)).unwrap()
}

/// A repository at a place, machines and sources.
struct Place {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
}

fn options(bucket: &Bucket) -> StoreOptions {
    StoreOptions {
        endpoint: Some(bucket.endpoint.clone()),
        ..StoreOptions::default()
    }
}

fn location(bucket: &Bucket) -> Location {
    Location::S3 {
        bucket: bucket.name.clone(),
        prefix: "some/where".into(),
    }
}

fn connect(bucket: &Bucket) -> Arc<dyn Store> {
    open_store(&location(bucket), &options(bucket)).unwrap()
}

impl Place {
    fn new(store: Arc<dyn Store>, lock: Option<ObjectLock>) -> Place {
        open::init_locked(&*store, &admin(), Cost::DEFAULT, lock).unwrap();
        let dir = scratch();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        Place { dir, store }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn open(&self) -> Repo {
        try_open(self.store.clone(), &self.cache(), &admin()).unwrap()
    }

    /// Files that share nothing with those of other nights.
    fn fill(&self, night: u64) {
        for number in 0..5 {
            let path = self.source().join(format!("file {number}"));
            std::fs::write(path, noise(night * 100 + number, 40_000)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }

    fn back_up(&self) -> SessionId {
        let report = back_up(self.store.clone(), &self.cache(), &admin(), &self.source()).unwrap();
        report.snapshot.unwrap()
    }

    fn forget(&self, snapshot: SessionId) {
        let repo = self.open();
        let history = repo.sync_history().unwrap();
        let options = forget::Options {
            choice: forget::Choice::Named {
                snapshots: vec![snapshot],
                allow_last: true,
            },
            filter: Default::default(),
            group_by: forget::GroupBy::SOURCE,
            removal_percent_max: 100,
            now: host::now(),
            zone: jiff::tz::TimeZone::UTC,
        };
        let plan = forget::plan(&repo, history, &options).unwrap();
        forget::carry_out(&repo, plan, &Progress::default()).unwrap();
    }

    fn prune(&self) -> Result<prune::Report, OpError> {
        prune_with(self.store.clone(), &self.cache(), &prune_options())
    }

    /// What a snapshot has, restored by a machine that knows nothing.
    fn restored(&self, store: &Arc<dyn Store>, snapshot: SessionId) -> BTreeMap<PathBuf, Vec<u8>> {
        let machine = scratch();
        let repo = try_open(store.clone(), machine.path(), &admin()).unwrap();
        repo.sync_history().unwrap();
        let target = machine.path().join("restored");
        let of = restore_options(repo.snapshot(&snapshot).unwrap(), None, target.clone());
        let report = restore::run(&repo, &of, &Progress::default()).unwrap();
        assert_eq!((report.damaged_total, report.failed_total), (0, 0), "{report:?}");
        tree(&target.join(self.source().strip_prefix("/").unwrap()))
    }

    fn versions(&self, under: &str) -> Vec<Versions> {
        let mut all = Vec::new();
        let prefix = Prefix::new(under).unwrap();
        self.store
            .list_versions(&prefix, None, &mut |row| all.push(row))
            .unwrap();
        all
    }

    /// Until when every object under the names that are locked is locked.
    fn locks(&self) -> BTreeMap<StoreKey, Timestamp> {
        let mut locks = BTreeMap::new();
        for row in LOCKED.iter().flat_map(|under| self.versions(under)) {
            let version = row.first().unwrap();
            let found = self.store.retention(&row.key, version).unwrap();
            let found = found.unwrap_or_else(|| panic!("{} is not locked", row.key));
            assert_eq!(found.mode, LockMode::Governance, "{}", row.key);
            locks.insert(row.key, found.until);
        }
        locks
    }
}

fn packs(place: &Place) -> Vec<StoreKey> {
    let listed = ["data/", "meta/"].into_iter().flat_map(|under| {
        let mut keys = Vec::new();
        let prefix = Prefix::new(under).unwrap();
        place.store.list(&prefix, &mut |row| keys.push(row.key)).unwrap();
        keys
    });
    listed.collect()
}

fn condemned(place: &Place) -> Vec<StoreKey> {
    let mut keys = Vec::new();
    let repo = place.open();
    let mut each = |info: PackInfo| {
        if info.state == PackState::Condemned {
            keys.push(store_key(&ObjectName::Pack(info.kind, info.pack, info.session)));
        }
    };
    repo.index.packs(&mut each).unwrap();
    keys
}

fn is_close(time: Timestamp, to: i64) -> bool {
    time.0.abs_diff(to) < 5 * MINUTE_NS as u64
}

#[test]
fn what_is_locked_is_left_told_and_deleted_when_its_lock_is_over() {
    for endpoint in servers("what_is_locked_is_left_told_and_deleted_when_its_lock_is_over") {
        let bucket = Bucket::make_with(&endpoint, true);
        let place = Place::new(connect(&bucket), Some(lock(1, 0)));
        place.fill(1);
        let first = place.back_up();
        let begun = host::now().0;
        for (key, until) in place.locks() {
            assert!(is_close(until, begun + DAY_NS), "{endpoint}: {key} {until:?}");
        }
        for row in place.versions("sess/") {
            let found = place.store.retention(&row.key, row.first().unwrap()).unwrap();
            assert_eq!(found, None, "{endpoint}: what sessions say is deleted by and by");
        }
        place.fill(2);
        let second = place.back_up();
        place.forget(first);
        let wanted = tree(&place.source());
        let mut old = Vec::new();
        for round in 0..2 {
            let report = place.prune().unwrap();
            old = condemned(&place);
            assert!(!old.is_empty(), "{endpoint}: {old:?}");
            assert_eq!(report.deleted.packs, 0, "{endpoint} {round}: {report:?}");
            assert_eq!(
                report.locked.objects,
                old.len() as u64,
                "{endpoint} {round}: {report:?}"
            );
            assert!(report.locked.bytes > 200_000, "{endpoint} {round}: {report:?}");
            assert!(
                is_close(report.locked.until.unwrap(), begun + DAY_NS),
                "{endpoint} {round}: {report:?}"
            );
            assert_eq!(report.waiting.packs, old.len() as u64, "{endpoint} {round}: {report:?}");
            assert_eq!(
                (report.extended.failed, report.extended.tampered),
                (0, 0),
                "{endpoint} {round}: {report:?}"
            );
            assert_eq!(report.notes, [""; 0], "{endpoint} {round}");
            let there = packs(&place);
            assert!(old.iter().all(|key| there.contains(key)), "{endpoint} {round}");
        }
        assert!(place.restored(&place.store, second) == wanted, "{endpoint}");
        // Somebody who may lifts the locks of half of them.
        let (free, kept) = old.split_at(old.len() / 2 + 1);
        free.iter().for_each(|key| lift(&bucket, key));
        std::thread::sleep(Duration::from_secs(3));
        let report = place.prune().unwrap();
        assert_eq!(report.deleted.packs, free.len() as u64, "{endpoint}: {report:?}");
        assert_eq!(report.waiting.packs, kept.len() as u64, "{endpoint}: {report:?}");
        let left: Vec<StoreKey> = ["data/", "meta/"]
            .iter()
            .flat_map(|under| place.versions(under))
            .map(|row| {
                assert!(!row.is_hidden() && row.all.len() == 1, "{endpoint}: {row:?}");
                row.key
            })
            .collect();
        assert!(
            free.iter().all(|key| !left.contains(key)),
            "{endpoint}: nothing is left of them"
        );
        assert!(kept.iter().all(|key| left.contains(key)), "{endpoint}");
        assert!(place.restored(&place.store, second) == wanted, "{endpoint}");
        eprintln!(
            "{endpoint}: {} packs were locked, {} of them erased",
            old.len(),
            free.len()
        );
    }
}

/// Ends a lock, as one may who has the right to.
fn lift(bucket: &Bucket, key: &StoreKey) {
    let until = aws_sdk_s3::primitives::DateTime::from_secs(host::now().0 / 1_000_000_000 + 2);
    let call = bucket
        .client
        .put_object_retention()
        .bucket(&bucket.name)
        .key(format!("some/where/{key}"))
        .bypass_governance_retention(true)
        .retention(
            ObjectLockRetention::builder()
                .mode(ObjectLockRetentionMode::Governance)
                .retain_until_date(until)
                .build(),
        );
    bucket.runtime.block_on(call.send()).unwrap();
}

#[test]
fn what_is_needed_is_locked_anew_and_asked_about_once() {
    for endpoint in servers("what_is_needed_is_locked_anew_and_asked_about_once") {
        let bucket = Bucket::make_with(&endpoint, true);
        // Extended by every prune.
        let place = Place::new(connect(&bucket), Some(lock(1, 1)));
        place.fill(1);
        let first = place.back_up();
        let before = place.locks();
        std::thread::sleep(Duration::from_secs(2));
        let report = place.prune().unwrap();
        let after = place.locks();
        assert_eq!(report.extended.failed, 0, "{endpoint}: {report:?}");
        assert!(
            report.extended.extended >= before.len() as u64,
            "{endpoint}: {report:?}"
        );
        for (key, until) in &before {
            assert!(after[key] > *until, "{endpoint}: {key} {until:?} {:?}", after[key]);
        }
        // What is condemned is let go.
        place.fill(2);
        let second = place.back_up();
        place.forget(first);
        let old: Vec<StoreKey> = packs(&place)
            .into_iter()
            .filter(|key| before.contains_key(key))
            .collect();
        std::thread::sleep(Duration::from_secs(2));
        place.prune().unwrap();
        let last = place.locks();
        assert!(old.iter().all(|key| last[key] == after[key]), "{endpoint}");
        let outcome = store_key(&ObjectName::Outcome(first));
        assert!(last[&outcome] > after[&outcome], "{endpoint}: the history is needed");

        // A lock that is not near its end: what is new is asked about once, and nothing is extended.
        let changed = object_lock::run(&place.open(), Some(lock(2, 1))).unwrap();
        assert_eq!((changed.before, changed.after), (Some(lock(1, 1)), Some(lock(2, 1))));
        let all = place.prune().unwrap().extended;
        assert!(all.asked >= last.len() as u64 - old.len() as u64, "{endpoint}: {all:?}");
        // Those of one day have less than what is wanted.
        assert!(all.extended > 0 && all.failed == 0, "{endpoint}: {all:?}");
        let again = place.prune().unwrap().extended;
        // Their age is below an hour, so they are asked about all the same; nothing has to be done.
        assert_eq!((again.extended, again.failed), (0, 0), "{endpoint}: {again:?}");
        let wanted = tree(&place.source());
        assert!(place.restored(&place.store, second) == wanted, "{endpoint}");
        eprintln!("{endpoint}: {} objects, {} asked about", last.len(), all.asked);
    }
}

#[test]
fn a_repository_that_was_not_locked_is_locked_by_the_next_prune() {
    for endpoint in servers("a_repository_that_was_not_locked_is_locked_by_the_next_prune") {
        let bucket = Bucket::make_with(&endpoint, true);
        let place = Place::new(connect(&bucket), None);
        place.fill(1);
        place.back_up();
        let is_locked = |row: &Versions| place.store.retention(&row.key, row.first().unwrap()).unwrap().is_some();
        assert!(!place.versions("data/").iter().any(is_locked), "{endpoint}");
        let repo = place.open();
        let changed = object_lock::run(&repo, Some(lock(30, 10))).unwrap();
        assert_eq!((changed.before, changed.config), (None, Some(1)), "{endpoint}");
        assert_eq!(
            object_lock::run(&place.open(), Some(lock(30, 10))).unwrap().config,
            None
        );
        let report = place.prune().unwrap();
        assert_eq!(report.extended.failed, 0, "{endpoint}: {report:?}");
        let month = host::now().0 + 30 * DAY_NS;
        for (key, until) in place.locks() {
            assert!(is_close(until, month), "{endpoint}: {key} {until:?}");
        }
        // The doctor agrees, and sees when it does not.
        let now = host::now();
        let findings = |repo: &Repo, now| doctor::repository(repo, None, now).unwrap();
        let repo = place.open();
        let level = |findings: &[doctor::Finding], subject: &str| {
            let found = findings.iter().find(|finding| finding.subject == subject);
            found.unwrap_or_else(|| panic!("{subject}: {findings:?}")).level
        };
        let well = findings(&repo, now);
        assert_eq!(level(&well, "locks"), Level::Ok, "{endpoint}: {well:?}");
        assert_eq!(level(&well, "tampering"), Level::Ok, "{endpoint}: {well:?}");
        let late = findings(&repo, Timestamp(now.0 + 27 * DAY_NS));
        assert_eq!(level(&late, "locks"), Level::Warning, "{endpoint}: {late:?}");
        let over = findings(&repo, Timestamp(now.0 + 31 * DAY_NS));
        assert_eq!(level(&over, "locks"), Level::Problem, "{endpoint}: {over:?}");
        let settings = larder::edge::store::s3::settings::read(&bucket.name, "some/where", &options(&bucket)).unwrap();
        let findings = doctor::bucket(&settings, repo.config.lock);
        assert_eq!(level(&findings, "object_lock"), Level::Ok, "{endpoint}: {findings:?}");
        assert_eq!(level(&findings, "old_versions"), Level::Ok, "{endpoint}: {findings:?}");
        // Turned off, what comes is not locked, and what is there stays so.
        let changed = object_lock::run(&place.open(), None).unwrap();
        assert_eq!((changed.after, changed.config), (None, Some(2)), "{endpoint}");
        place.fill(2);
        place.back_up();
        let (locked, free): (Vec<Versions>, Vec<Versions>) = place.versions("data/").into_iter().partition(is_locked);
        assert!(!locked.is_empty() && !free.is_empty(), "{endpoint}");
    }
}

#[test]
fn a_place_that_does_not_lock_is_refused_and_nothing_is_written() {
    let directory = scratch();
    let local = open_store(
        &Location::Directory(directory.path().join("repo")),
        &StoreOptions::default(),
    )
    .unwrap();
    let refused = open::init_locked(&*local, &admin(), Cost::DEFAULT, Some(lock(30, 10))).unwrap_err();
    assert!(refused.to_string().contains("locks"), "{refused}");
    let place = Place::new(local, None);
    let refused = object_lock::run(&place.open(), Some(lock(30, 10))).unwrap_err();
    assert_eq!(refused.kind(), Kind::Refused, "{refused}");
    assert!(refused.to_string().contains("directory"), "{refused}");
    for endpoint in servers("a_place_that_does_not_lock_is_refused_and_nothing_is_written") {
        let bucket = Bucket::make(&endpoint);
        let store = connect(&bucket);
        let refused = open::init_locked(&*store, &admin(), Cost::DEFAULT, Some(lock(30, 10))).unwrap_err();
        let RepoError::Store { source, .. } = &refused else {
            panic!("{refused}");
        };
        assert_eq!(source.class, Failure::Permanent, "{endpoint}: {refused}");
        assert!(source.hint.is_some(), "{endpoint}: {refused}");
        let place = Place::new(store, None);
        let refused = object_lock::run(&place.open(), Some(lock(30, 10))).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unavailable, "{endpoint}: {refused}");
        assert_eq!(place.open().config.lock, None, "{endpoint}");
        place.fill(1);
        place.back_up();
    }
}

#[test]
fn a_password_that_is_removed_is_hidden_while_it_is_locked_and_erased_afterwards() {
    for endpoint in servers("a_password_that_is_removed_is_hidden_while_it_is_locked_and_erased_afterwards") {
        let bucket = Bucket::make_with(&endpoint, true);
        let place = Place::new(connect(&bucket), Some(lock(1, 0)));
        place.fill(1);
        place.back_up();
        let other = Credential::KeyFile(Secret::new([9; 32]));
        let number = keys::add(&place.open(), &other, None).unwrap();
        assert!(try_open(place.store.clone(), scratch().path(), &other).is_ok());
        let removed = keys::remove(&place.open(), number, false).unwrap();
        assert!(
            is_close(removed.hidden_until.unwrap(), host::now().0 + DAY_NS),
            "{endpoint}: {removed:?}"
        );
        assert!(
            try_open(place.store.clone(), scratch().path(), &other).is_err(),
            "{endpoint}"
        );
        let hidden = |place: &Place| place.versions("keys/").into_iter().filter(Versions::is_hidden).count();
        place.prune().unwrap();
        assert_eq!(hidden(&place), 1, "{endpoint}: its lock is not over");
        let row = place.versions("keys/").into_iter().find(Versions::is_hidden).unwrap();
        lift_version(&bucket, &row);
        std::thread::sleep(Duration::from_secs(3));
        place.prune().unwrap();
        assert_eq!(hidden(&place), 0, "{endpoint}");
        assert_eq!(place.versions("keys/").len(), 1, "{endpoint}");
        let probes = place.versions("tmp/");
        assert!(probes.iter().all(|row| row.is_hidden()), "{endpoint}: {probes:?}");
    }
}

fn lift_version(bucket: &Bucket, row: &Versions) {
    let until = aws_sdk_s3::primitives::DateTime::from_secs(host::now().0 / 1_000_000_000 + 2);
    let call = bucket
        .client
        .put_object_retention()
        .bucket(&bucket.name)
        .key(format!("some/where/{}", row.key))
        .version_id(&row.first().unwrap().id)
        .bypass_governance_retention(true)
        .retention(
            ObjectLockRetention::builder()
                .mode(ObjectLockRetentionMode::Governance)
                .retain_until_date(until)
                .build(),
        );
    bucket.runtime.block_on(call.send()).unwrap();
}

/// In memory, where time can pass.
fn in_memory(lock: ObjectLock) -> (MemoryStore, Place) {
    let memory = MemoryStore::new();
    memory.allow_locks();
    memory.set_time(host::now());
    let place = Place::new(Arc::new(memory.clone()), Some(lock));
    place.fill(1);
    (memory, place)
}

#[test]
fn locks_that_cannot_be_extended_are_told_and_the_next_prune_tries_again() {
    let (memory, place) = in_memory(lock(1, 1));
    place.back_up();
    let before = memory.locked();
    // The calls of a prune, and which of them locks first.
    let (store, cache) = (memory.fork(), place.dir.path().join("one"));
    let faulty = Arc::new(FaultStore::new(store, None));
    memory.set_time(Timestamp(host::now().0 + 1_000_000_000));
    prune_with(faulty.clone(), &cache, &prune_options()).unwrap();
    let first = faulty
        .log()
        .iter()
        .position(|call| call.starts_with("locking"))
        .unwrap();
    let (store, cache) = (memory.fork(), place.dir.path().join("two"));
    let fault = Fault {
        call: first as u64,
        after_effect: false,
        lasting: false,
    };
    let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
    let report = prune_with(faulty, &cache, &prune_options()).unwrap();
    assert_eq!(report.extended.failed, 1, "{:?}", report.extended);
    assert_eq!(report.extended.failure.as_ref().unwrap().1, Kind::Unavailable);
    let after = store.locked();
    let same = before.iter().filter(|(key, until)| after[key] == **until).count();
    assert_eq!(same, 1, "all but one are extended");
    std::thread::sleep(Duration::from_millis(10));
    let report = prune_with(Arc::new(store.clone()), &cache, &prune_options()).unwrap();
    assert_eq!(report.extended.failed, 0);
    assert!(before.iter().all(|(key, until)| store.locked()[key] > *until));
}

#[test]
fn locks_are_extended_although_something_is_in_doubt_and_nothing_is_deleted() {
    let (memory, place) = in_memory(lock(30, 30));
    let first = place.back_up();
    let old = packs(&place);
    place.fill(2);
    let second = place.back_up();
    place.forget(first);
    // A pack that is needed is hidden by somebody who may delete.
    let wanted = tree(&place.source());
    let is_of = |key: &StoreKey| key.as_str().starts_with("data/") && !old.contains(key);
    let key = packs(&place).into_iter().find(is_of).unwrap();
    let before = memory.locked();
    memory.remove(std::slice::from_ref(&key)).unwrap();
    memory.set_time(Timestamp(host::now().0 + DAY_NS));
    let error = place.prune().unwrap_err();
    assert!(matches!(error.kind(), Kind::Damage | Kind::Tamper), "{error}");
    let after = memory.locked();
    for (outcome, until) in before.iter().filter(|(key, _)| key.as_str().starts_with("snap/")) {
        assert!(after[outcome] > *until, "{outcome}");
    }
    assert!(after[&key] > before[&key], "what was hidden is needed and kept");
    assert_eq!(
        place.versions("data/").len(),
        before.keys().filter(|key| key.as_str().starts_with("data/")).count()
    );
    // What was hidden comes back, and so does everything.
    let body = memory.unhide(&key);
    assert!(body && place.restored(&place.store, second) == wanted);
}

#[test]
fn when_its_lock_is_over_a_pack_goes_and_what_is_needed_has_been_extended() {
    let (memory, place) = in_memory(lock(10, 5));
    let first = place.back_up();
    place.fill(2);
    let second = place.back_up();
    place.forget(first);
    let wanted = tree(&place.source());
    let (mut asked, mut most) = (0, 0);
    let begun = host::now().0;
    // A prune each day, for two months.
    for day in 0..60 {
        memory.set_time(Timestamp(begun + day * DAY_NS));
        // The store's time is ahead of this machine's, which is what locks are compared with when a deletion is refused.
        let report = place.prune().unwrap();
        assert_eq!(report.extended.failed, 0, "day {day}: {report:?}");
        let needed = report.waiting.packs;
        assert_eq!(needed == 0, day >= 10, "day {day}: {report:?}");
        asked += report.extended.asked;
        most = most.max(report.extended.asked);
        let now = begun + day * DAY_NS;
        let there: Vec<StoreKey> = packs(&place);
        for (key, until) in memory.locked() {
            let is_condemned = day < 10 && key.as_str().starts_with("data/") || key.as_str().starts_with("meta/");
            if there.contains(&key) && !is_condemned {
                assert!(until.0 >= now + 5 * DAY_NS - MINUTE_NS, "day {day}: {key}");
            }
        }
    }
    assert!(place.restored(&place.store, second) == wanted);
    // Full passes are rare: without a memory it would be most of them each day.
    assert!(asked < 30 * most, "{asked} {most}");
}

/// The store of a bucket as it was.
fn as_of(bucket: &Bucket, time: Timestamp) -> Arc<dyn Store> {
    let options = StoreOptions {
        as_of: Some(time),
        ..options(bucket)
    };
    open_store(&location(bucket), &options).unwrap()
}

/// What somebody does who has the key names and the right to write and delete, and not to lift locks.
struct Attacker<'b>(&'b Bucket);

impl Attacker<'_> {
    fn name(key: &StoreKey) -> String {
        format!("some/where/{key}")
    }

    fn delete(&self, key: &StoreKey) {
        let call = self.0.client.delete_object().bucket(&self.0.name).key(Self::name(key));
        self.0.runtime.block_on(call.send()).unwrap();
    }

    fn overwrite(&self, key: &StoreKey, body: &[u8]) {
        let body = aws_sdk_s3::primitives::ByteStream::from(body.to_vec());
        let call = self.0.client.put_object().bucket(&self.0.name);
        self.0
            .runtime
            .block_on(call.key(Self::name(key)).body(body).send())
            .unwrap();
    }

    /// Deleting versions for good is refused, because they are locked.
    fn delete_version(&self, key: &StoreKey, version: &str) -> bool {
        let call = self.0.client.delete_object().bucket(&self.0.name);
        let call = call.key(Self::name(key)).version_id(version);
        self.0.runtime.block_on(call.send()).is_ok()
    }
}

fn all_keys(store: &Arc<dyn Store>) -> Vec<StoreKey> {
    let mut keys = Vec::new();
    store
        .list(&Prefix::new("").unwrap(), &mut |row| keys.push(row.key))
        .unwrap();
    keys
}

/// Stores tell times in whole seconds.
fn let_a_second_pass() -> Timestamp {
    std::thread::sleep(Duration::from_millis(1_200));
    let now = host::now();
    std::thread::sleep(Duration::from_millis(1_200));
    now
}

#[test]
fn what_somebody_deletes_and_overwrites_is_read_as_it_was_before() {
    for endpoint in servers("what_somebody_deletes_and_overwrites_is_read_as_it_was_before") {
        let bucket = Bucket::make_with(&endpoint, true);
        let place = Place::new(connect(&bucket), Some(lock(30, 10)));
        place.fill(1);
        let first = place.back_up();
        let wanted_first = tree(&place.source());
        let between = let_a_second_pass();
        place.fill(2);
        let second = place.back_up();
        let wanted = tree(&place.source());
        let before = let_a_second_pass();
        let keys = all_keys(&place.store);
        let attacker = Attacker(&bucket);
        let pack = packs(&place).remove(0);
        let config = StoreKey::new("config/00000000").unwrap();
        for key in [&pack, &config] {
            attacker.overwrite(key, b"somebody else's");
        }
        // One that is prepared well ahead: whoever looks at a later time still finds the first version.
        let _ = let_a_second_pass();
        let after_overwriting = let_a_second_pass();
        for row in place.versions("data/").iter().chain(&place.versions("snap/")) {
            let kept = !attacker.delete_version(&row.key, &row.first().unwrap().id);
            assert!(kept, "{endpoint}: {} was locked", row.key);
        }
        keys.iter().for_each(|key| attacker.delete(key));
        assert_eq!(all_keys(&place.store), [], "{endpoint}: nothing is left to see");
        assert!(
            try_open(place.store.clone(), scratch().path(), &admin()).is_err(),
            "{endpoint}"
        );

        let was = as_of(&bucket, before);
        assert_eq!(all_keys(&was), keys, "{endpoint}");
        assert!(place.restored(&was, second) == wanted, "{endpoint}");
        assert!(place.restored(&was, first) == wanted_first, "{endpoint}");
        assert!(
            place.restored(&as_of(&bucket, after_overwriting), second) == wanted,
            "{endpoint}: what was overwritten is what it was created as"
        );
        // Earlier, there was only the first night.
        let machine = scratch();
        let repo = try_open(as_of(&bucket, between), machine.path(), &admin()).unwrap();
        repo.sync_history().unwrap();
        let there: Vec<SessionId> = repo.snapshots().unwrap().iter().map(|known| known.id).collect();
        assert_eq!(there, [first], "{endpoint}");
        // A check finds nothing wrong with it.
        let machine = scratch();
        let repo = try_open(was.clone(), machine.path(), &admin()).unwrap();
        let everything = check::Options {
            read_data: Some(check::Subset::All),
            threads: 2,
            ..check::Options::default()
        };
        let report = check::run(&repo, &everything, &Progress::default()).unwrap();
        assert!(report.is_sound(), "{endpoint}: {report:?}");
        // Nothing is written.
        let refused = keys::add(&repo, &Credential::KeyFile(Secret::new([9; 32])), None).unwrap_err();
        assert!(
            check::chain(&refused).contains("only read"),
            "{endpoint}: {}",
            check::chain(&refused)
        );
        assert!(was.remove(&keys).is_err() && was.probe().is_err(), "{endpoint}");
        let early = as_of(&bucket, Timestamp(between.0 - 365 * DAY_NS));
        assert!(
            matches!(
                try_open(early, scratch().path(), &admin()),
                Err(RepoError::NotARepository { .. })
            ),
            "{endpoint}"
        );
        // It is copied from there to a place where one can go on.
        let copy: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let options = replicate::Options {
            dry_run: false,
            verify: false,
            threads: 2,
            bytes_in_memory: 64 << 20,
        };
        replicate::run(&*was, &*copy, &options, &Progress::default()).unwrap();
        assert!(place.restored(&copy, second) == wanted, "{endpoint}");
    }
}

#[test]
fn prune_and_doctor_name_what_somebody_has_written_again_or_hidden() {
    for endpoint in servers("prune_and_doctor_name_what_somebody_has_written_again_or_hidden") {
        let bucket = Bucket::make_with(&endpoint, true);
        let place = Place::new(connect(&bucket), Some(lock(30, 30)));
        place.fill(1);
        place.back_up();
        place.fill(2);
        place.back_up();
        let attacker = Attacker(&bucket);
        let old_outcome = {
            let repo = place.open();
            repo.sync_history().unwrap();
            store_key(&ObjectName::Outcome(repo.snapshots().unwrap()[0].id))
        };
        let body = place.store.read(&old_outcome, Part::Whole).unwrap();
        // The same bytes again: nothing else than the versions shows it.
        attacker.overwrite(&old_outcome, &body);
        let report = place.prune().unwrap();
        assert_eq!(report.extended.tampered_names, [old_outcome.to_string()], "{endpoint}");
        let findings = doctor::repository(&place.open(), None, host::now()).unwrap();
        let found = findings.iter().find(|finding| finding.subject == "tampering").unwrap();
        assert_eq!(found.level, Level::Problem, "{endpoint}: {findings:?}");
        assert!(found.what.contains(old_outcome.as_str()), "{endpoint}: {}", found.what);
        // What is extended is the version that counts.
        let versions = place.versions(old_outcome.as_str()).remove(0);
        assert_eq!(versions.all.len(), 2, "{endpoint}: {versions:?}");
        let of = |version: &Version| place.store.retention(&old_outcome, version).unwrap();
        assert!(of(versions.first().unwrap()).is_some(), "{endpoint}");
    }
}

#[test]
fn a_place_without_versions_says_so() {
    let options_as_of = |options: StoreOptions| StoreOptions {
        as_of: Some(host::now()),
        ..options
    };
    let directory = scratch();
    let location_there = Location::Directory(directory.path().to_owned());
    let refused = open_store(&location_there, &options_as_of(StoreOptions::default())).unwrap_err();
    assert!(
        check::chain(&refused).contains("keeps no versions"),
        "{}",
        check::chain(&refused)
    );
    for endpoint in servers("a_place_without_versions_says_so") {
        let bucket = Bucket::make(&endpoint);
        let place = Place::new(connect(&bucket), None);
        place.fill(1);
        place.back_up();
        let _ = let_a_second_pass();
        let was = open_store(&location(&bucket), &options_as_of(options(&bucket))).unwrap();
        let refused = try_open(was, scratch().path(), &admin()).unwrap_err();
        assert!(
            check::chain(&refused).contains("keeps no versions"),
            "{endpoint}: {}",
            check::chain(&refused)
        );
    }
}

#[test]
fn a_replica_that_does_not_lock_becomes_the_primary_without_locks_and_says_so() {
    for can_lock in [true, false] {
        let (_, place) = in_memory(lock(30, 10));
        let snapshot = place.back_up();
        let copy = MemoryStore::new();
        copy.set_time(host::now());
        if can_lock {
            copy.allow_locks();
        }
        let options = replicate::Options {
            dry_run: false,
            verify: false,
            threads: 1,
            bytes_in_memory: 64 << 20,
        };
        let shared: Arc<dyn Store> = Arc::new(copy.clone());
        replicate::run(&*place.store, &*shared, &options, &Progress::default()).unwrap();
        let cache = scratch();
        let repo = try_open(shared.clone(), cache.path(), &admin()).unwrap();
        repo.sync_history().unwrap();
        assert!(
            copy.locked().is_empty(),
            "what a replica does with locks is its own matter"
        );
        let promoted = promote::run(&repo, false).unwrap();
        assert_eq!(promoted.lock_ended, !can_lock);
        drop(repo);
        let repo = try_open(shared.clone(), cache.path(), &admin()).unwrap();
        assert_eq!(repo.config.lock, can_lock.then(|| lock(30, 10)));
        drop(repo);
        place.fill(2);
        back_up(shared.clone(), cache.path(), &admin(), &place.source()).unwrap();
        prune_with(shared.clone(), cache.path(), &prune_options()).unwrap();
        let is_locked = |key: &StoreKey| copy.locked().contains_key(key);
        let outcome = store_key(&ObjectName::Outcome(snapshot));
        assert_eq!(
            is_locked(&outcome),
            can_lock,
            "what was copied is locked by the first prune there"
        );
        assert_eq!(copy.locked().len() > 10, can_lock);
    }
}

/// Where a service does not let a lock become firmer (Ceph 20 wants the right to lift it), it is extended as it is.
#[test]
fn a_lock_becomes_firmer_when_it_is_extended_where_that_is_allowed_and_never_softer() {
    for endpoint in servers("a_lock_becomes_firmer_when_it_is_extended_where_that_is_allowed_and_never_softer") {
        let bucket = Bucket::make_with(&endpoint, true);
        let place = Place::new(connect(&bucket), Some(lock(1, 1)));
        place.fill(1);
        place.back_up();
        let firm = ObjectLock::new(LockMode::Compliance, 1, Some(1)).unwrap();
        let locks = || -> Vec<Retention> {
            let rows = ["data/", "meta/"].iter().flat_map(|under| place.versions(under));
            rows.map(|row| place.store.retention(&row.key, row.first().unwrap()).unwrap().unwrap())
                .collect()
        };
        let mut before = locks();
        assert!(
            before.iter().all(|lock| lock.mode == LockMode::Governance),
            "{endpoint}"
        );
        for wanted in [firm, lock(1, 1)] {
            object_lock::run(&place.open(), Some(wanted)).unwrap();
            std::thread::sleep(Duration::from_secs(2));
            let report = place.prune().unwrap();
            assert!(
                report.extended.failed == 0 && report.extended.extended > 0,
                "{endpoint}: {report:?}"
            );
            let after = locks();
            for (before, after) in before.iter().zip(&after) {
                assert!(after.until > before.until, "{endpoint}: {before:?} {after:?}");
                let is_softer = before.mode == LockMode::Compliance && after.mode == LockMode::Governance;
                assert!(!is_softer, "{endpoint}: {before:?} {after:?}");
            }
            before = after;
        }
        eprintln!("{endpoint}: {}", before[0].mode);
        // What is written anew is as the configuration has it.
        object_lock::run(&place.open(), Some(firm)).unwrap();
        place.fill(2);
        place.back_up();
        assert!(
            locks().iter().any(|lock| lock.mode == LockMode::Compliance),
            "{endpoint}"
        );
    }
}
