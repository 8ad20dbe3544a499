//! Giving space back (format-spec chapter 16.3): what no snapshot needs goes, whatever else goes on at the time, and nothing else does.

use crate::fault::{admin, assert_no_false_alarm, copy_dir, scratch, try_open, writer};
use crate::story::{noise, options, restore_options, tree};
use larder::edge::host;
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Part, Prefix, Store, StoreKey};
use larder::ops::holders::{self, Duty};
use larder::ops::prune::compact::{PartSizes, Uniting};
use larder::ops::{OpError, Progress, backup, check, hold, prune, restore};
use larder::pure::base::{Explain, Kind, Timestamp};
use larder::pure::chunk::Profile;
use larder::pure::crypto::Secret;
use larder::pure::format::config::Config;
use larder::pure::format::mark::{Drop, DropKind, Hold};
use larder::pure::format::name::{ObjectName, PackKind};
use larder::pure::format::session::SessionRole;
use larder::pure::id::{PackId, SessionId};
use larder::pure::plan::prune::RepackLimits;
use larder::repo::open::{Credential, create_new, store_key};
use larder::repo::session::Session;
use larder::repo::{Repo, RepoError};
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::fault_store::{Fault, FaultStore};
use larder::testing::small::SmallRepo;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) type Tree = BTreeMap<PathBuf, Vec<u8>>;

pub(crate) fn back_up(
    store: Arc<dyn Store>,
    cache: &Path,
    credential: &Credential,
    source: &Path,
) -> Result<backup::Report, OpError> {
    let repo = try_open(store, cache, credential)?;
    let input = backup::Input::Paths {
        roots: vec![source.to_owned()],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let label = source.file_name().unwrap().to_string_lossy().into_owned();
    let options = backup::Options {
        threads: 1,
        label,
        ..options()
    };
    backup::run(&repo, input, &options, &Progress::default())
}

pub(crate) fn prune_with(
    store: Arc<dyn Store>,
    cache: &Path,
    options: &prune::Options,
) -> Result<prune::Report, OpError> {
    let repo = try_open(store, cache, &admin())?;
    prune::run(&repo, options, &Progress::default())
}

fn prune_all(store: Arc<dyn Store>, cache: &Path) -> Result<prune::Report, OpError> {
    prune_with(store, cache, &prune_options())
}

/// Index runs are united as soon as there are two, so that every test of a prune is one of that as well.
pub(crate) fn prune_options() -> prune::Options {
    prune::Options {
        uniting: Uniting {
            level_0_runs: 2,
            sizes: PartSizes {
                slots: 2,
                packs: 2,
                chunks: 20,
            },
        },
        threads: 1,
        uploads: 1,
        ..Default::default()
    }
}

pub(crate) fn forget(store: &MemoryStore, cache: &Path, session: SessionId) {
    let repo = try_open(Arc::new(store.clone()), cache, &admin()).unwrap();
    let dropped = Drop {
        kid: repo.kid,
        created: host::now(),
        kind: DropKind::Forget,
        session,
        reason: String::new(),
    };
    let body = dropped.encode(&repo.keys, &repo.signer, host::random()).unwrap();
    create_new(store, &ObjectName::Drop(session), body, "a drop").unwrap();
}

pub(crate) fn keys(store: &MemoryStore, under: &str) -> BTreeMap<StoreKey, u64> {
    let mut keys = BTreeMap::new();
    store
        .list(&Prefix::new(under).unwrap(), &mut |row| {
            keys.insert(row.key, row.size);
        })
        .unwrap();
    keys
}

fn pack_bytes(store: &MemoryStore) -> u64 {
    ["data/", "meta/"]
        .iter()
        .flat_map(|under| keys(store, under).into_values())
        .sum()
}

/// A repository with a few nights, and what each snapshot has to give back.
pub(crate) struct Yard {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: MemoryStore,
    pub(crate) small: SmallRepo,
    pub(crate) caches: Cell<u32>,
    pub(crate) nights: Vec<(SessionId, Tree)>,
}

impl Yard {
    pub(crate) fn new(change: impl FnOnce(&mut Config)) -> Yard {
        let dir = scratch();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        let store = MemoryStore::new();
        let mut small = SmallRepo::init(&store, &admin()).unwrap();
        small.add_writer(&store, "other", &writer()).unwrap();
        small
            .change_config(&store, |config| {
                let profile = Profile::new(8 << 10, 16 << 10, 64 << 10, 0x3fff << 49, 0x3ff << 53);
                config.chunkers = vec![profile.unwrap()];
                config.data_pack_bytes = 1 << 20;
                config.meta_pack_bytes = 1 << 20;
                config.lanes = 1;
                change(config);
            })
            .unwrap();
        Yard {
            dir,
            store,
            small,
            caches: Cell::new(0),
            nights: Vec::new(),
        }
    }

    /// Three nights: something of each is in no other, something is in all, and something becomes deltas.
    pub(crate) fn with_nights() -> Yard {
        let mut yard = Yard::new(|_| {});
        let mut changing = noise(50, 60_000);
        yard.write("stays", &noise(1, 300_000));
        for night in 0..3u64 {
            for at in (3_000..60_000).step_by(9_000) {
                changing[at] ^= 1 + night as u8;
            }
            yard.write("changes", &changing);
            yard.write("of the night", &noise(10 + night, 700_000));
            yard.night();
        }
        yard
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.source().join(name), bytes).unwrap();
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub(crate) fn fresh(&self) -> PathBuf {
        self.caches.set(self.caches.get() + 1);
        self.dir.path().join(format!("cache{}", self.caches.get()))
    }

    /// A copy of the store and of the machine's cache.
    pub(crate) fn fork(&self) -> (MemoryStore, PathBuf) {
        let cache = self.fresh();
        copy_dir(&self.cache(), &cache);
        (self.store.fork(), cache)
    }

    pub(crate) fn night(&mut self) -> SessionId {
        let report = back_up(Arc::new(self.store.clone()), &self.cache(), &admin(), &self.source()).unwrap();
        let id = report.snapshot.unwrap();
        self.nights.push((id, tree(&self.source())));
        id
    }

    pub(crate) fn forget(&self, night: usize) {
        forget(&self.store, &self.cache(), self.nights[night].0);
    }

    pub(crate) fn prune(&self) -> prune::Report {
        prune_all(Arc::new(self.store.clone()), &self.cache())
            .unwrap_or_else(|error| panic!("{}", check::chain(&error)))
    }

    /// On a machine that has nothing but the key: everything that is listed checks and restores. Returns the snapshots.
    pub(crate) fn assert_sound(&self, store: &MemoryStore, when: &str) -> BTreeSet<SessionId> {
        self.assert_restores(store, when, &BTreeMap::new())
    }

    /// The same; `also` are snapshots that are not of the nights.
    pub(crate) fn assert_restores(
        &self,
        store: &MemoryStore,
        when: &str,
        also: &BTreeMap<SessionId, Tree>,
    ) -> BTreeSet<SessionId> {
        let cache = self.fresh();
        let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
        let everything = check::Options {
            read_data: Some(check::Subset::All),
            threads: 1,
            ..Default::default()
        };
        let report = check::run(&repo, &everything, &Progress::default()).unwrap();
        assert!(report.findings.is_empty(), "{when}: {:?}", report.findings);
        let mut found = BTreeSet::new();
        for snapshot in repo.snapshots().unwrap() {
            let id = snapshot.id;
            let root = snapshot.manifest.roots[0].path.clone();
            let target = cache.join("restored");
            let options = restore_options(snapshot, Some(root), target.clone());
            let report = restore::run(&repo, &options, &Progress::default()).unwrap();
            assert_eq!(
                (report.damaged_total, report.failed_total),
                (0, 0),
                "{when}: {:?}",
                report.damaged
            );
            let expected = self.nights.iter().find(|(night, _)| *night == id).map(|(_, tree)| tree);
            if let Some(expected) = expected.or(also.get(&id)) {
                assert!(tree(&target) == *expected, "{when}: snapshot {id} has changed");
            }
            std::fs::remove_dir_all(&target).unwrap();
            found.insert(id);
        }
        drop(repo);
        std::fs::remove_dir_all(&cache).unwrap();
        found
    }

    pub(crate) fn ids(&self, nights: impl IntoIterator<Item = usize>) -> BTreeSet<SessionId> {
        nights.into_iter().map(|night| self.nights[night].0).collect()
    }
}

#[test]
fn forgotten_snapshots_give_their_space_back_and_the_others_restore() {
    let yard = Yard::with_nights();
    let full = pack_bytes(&yard.store);
    let nothing = yard.prune();
    assert_eq!(
        (nothing.unused.packs, nothing.deleted.packs, nothing.snapshots),
        (0, 0, 3),
        "{nothing:?}"
    );
    assert_eq!(pack_bytes(&yard.store), full);
    yard.forget(0);
    yard.forget(1);
    let report = yard.prune();
    assert_eq!(report.snapshots, 1);
    assert!(
        report.deleted.packs > 0 && report.deleted == report.unused,
        "{report:?}"
    );
    assert_eq!((report.waiting.packs, report.rescued), (0, 0), "{report:?}");
    let left = pack_bytes(&yard.store);
    assert_eq!(full - left, report.deleted.bytes);
    assert!(full - left > 600_000, "{left} of {full}");
    assert_eq!(yard.assert_sound(&yard.store, "after"), yard.ids([2]));
    let again = yard.prune();
    assert_eq!((again.unused.packs, again.deleted.packs), (0, 0), "{again:?}");
    // The next night neither refers to what is gone nor stores anew what is there.
    let mut yard = yard;
    yard.write("of the night", &noise(11, 700_000));
    yard.night();
    assert_eq!(yard.assert_sound(&yard.store, "the next night"), yard.ids([2, 3]));
    let grown = pack_bytes(&yard.store) - left;
    assert!((600_000..900_000).contains(&grown), "{grown}");
}

#[test]
fn dry_run_says_the_same_and_writes_nothing() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let before = keys(&yard.store, "");
    let options = prune::Options {
        dry_run: true,
        ..prune_options()
    };
    let said = prune_with(Arc::new(yard.store.clone()), &yard.cache(), &options).unwrap();
    assert_eq!(keys(&yard.store, ""), before);
    assert_eq!(said.deleted.packs, 0);
    let done = yard.prune();
    assert_eq!(
        (said.unused, said.used, said.bytes_alive),
        (done.unused, done.used, done.bytes_alive)
    );
    // What was condemned and may be deleted by now is not either.
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let patient = prune::Options {
        grace: Duration::from_secs(3_600),
        ..prune_options()
    };
    yard.store.set_time(host::now());
    let waits = prune_with(Arc::new(yard.store.clone()), &yard.cache(), &patient).unwrap();
    assert!(waits.waiting.packs > 0 && waits.deleted.packs == 0, "{waits:?}");
    yard.store.set_time(Timestamp(host::now().0 + 2 * 3_600_000_000_000));
    let before = keys(&yard.store, "");
    let said = prune_with(Arc::new(yard.store.clone()), &yard.cache(), &options).unwrap();
    assert_eq!((keys(&yard.store, ""), said.deleted.packs), (before, 0));
    assert_eq!(yard.prune().deleted, waits.waiting);
}

/// A pack that nobody lists may belong to a session that nobody has seen yet.
#[test]
fn orphans_are_condemned_when_they_are_old() {
    let mut yard = Yard::with_nights();
    let age = 3_600;
    yard.small
        .change_config(&yard.store, |config| config.gc.pack_age_seconds = age)
        .unwrap();
    let start = host::now();
    yard.store.set_time(start);
    let any = keys(&yard.store, "data/").into_keys().next().unwrap();
    let bytes = yard.store.read(&any, Part::Whole).unwrap();
    let orphan = ObjectName::Pack(PackKind::Data, PackId([3; 16]), SessionId([9; 16]));
    create_new(&yard.store, &orphan, bytes.to_vec(), "an orphan").unwrap();
    for (seconds, expected) in [(1, 0), (age - 10, 0), (age + 10, 1)] {
        yard.store.set_time(Timestamp(start.0 + seconds as i64 * 1_000_000_000));
        assert_eq!(yard.prune().orphaned.packs, expected, "after {seconds} s");
    }
    assert!(!keys(&yard.store, "data/").contains_key(&store_key(&orphan)));
}

/// A prune that deletes only leaves a pack for what is alive in it. A delta in it that nobody needs may have lost its base: that is no
/// damage.
#[test]
fn delta_that_nobody_needs_may_lose_its_base() {
    let mut yard = Yard::new(|_| {});
    let mut changing = noise(50, 60_000);
    yard.write("changes", &changing);
    yard.night();
    for at in (3_000..60_000).step_by(9_000) {
        changing[at] ^= 1;
    }
    yard.write("changes", &changing);
    yard.write("stays", &noise(1, 30_000));
    let report = back_up(Arc::new(yard.store.clone()), &yard.cache(), &admin(), &yard.source()).unwrap();
    assert!(report.deltas > 0);
    yard.nights.push((report.snapshot.unwrap(), tree(&yard.source())));
    std::fs::remove_file(yard.source().join("changes")).unwrap();
    yard.night();
    yard.forget(0);
    yard.forget(1);
    let report = yard.prune();
    assert!(report.deleted.packs > 0, "{report:?}");
    assert_eq!(yard.assert_sound(&yard.store, "pruned"), yard.ids([2]));
}

#[test]
fn what_is_held_or_pinned_stays() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let repo = try_open(Arc::new(yard.store.clone()), &yard.cache(), &admin()).unwrap();
    let held = yard.nights[0].0;
    let hold = Hold {
        kid: repo.kid,
        created: host::now(),
        session: held,
        until: None,
        reason: "the auditors".into(),
    };
    let body = hold.encode("audit", &repo.keys, &repo.signer, host::random()).unwrap();
    create_new(&yard.store, &ObjectName::Hold(held, "audit".into()), body, "a hold").unwrap();
    drop(repo);
    let report = yard.prune();
    assert_eq!(report.snapshots, 2);
    assert_eq!(yard.assert_sound(&yard.store, "held"), yard.ids([0, 2]));
}

/// Every call of a prune fails once, and from then on: no snapshot suffers, and the next prune completes it.
#[test]
fn prune_that_dies_anywhere_loses_nothing_and_can_be_repeated() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let options = prune::Options {
        repack: Some(RepackLimits {
            unused_share: 0.05,
            copied_bytes_max: u64::MAX,
        }),
        ..prune_options()
    };
    let (store, cache) = yard.fork();
    let counted = Arc::new(FaultStore::new(store.clone(), None));
    let whole = prune_with(counted.clone(), &cache, &options).unwrap();
    assert!(
        whole.rewritten.packs > 0 && whole.deleted.packs > whole.unused.packs,
        "{whole:?}"
    );
    yard.assert_sound(&store, "without a fault");
    let best = pack_bytes(&store);
    let mut cases = 0;
    for call in 0..counted.calls() {
        for fault in Fault::at(call) {
            let (store, cache) = yard.fork();
            let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
            let result = prune_with(faulty.clone(), &cache, &options);
            if !faulty.has_failed() {
                continue;
            }
            cases += 1;
            let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
            assert_no_false_alarm(&result, &when);
            assert_eq!(yard.assert_sound(&store, &when), yard.ids([2]), "{when}");
            // The same machine, or one that knows nothing. A dead session of another machine is waited for.
            let other = store.fork();
            let again = prune_with(Arc::new(store.clone()), &cache, &options)
                .unwrap_or_else(|error| panic!("{when}, again: {}", check::chain(&error)));
            assert_eq!(again.waiting.packs, 0, "{when}: {again:?}");
            assert_eq!(yard.assert_sound(&store, &when), yard.ids([2]), "{when}");
            let left = pack_bytes(&store);
            // A copy that nobody has published may lie there for three days.
            assert!(left <= best + 500_000, "{when}: {left} bytes instead of {best}");
            if fault.lasting {
                let fresh = yard.fresh();
                prune_with(Arc::new(other.clone()), &fresh, &options)
                    .unwrap_or_else(|error| panic!("{when}, elsewhere: {}", check::chain(&error)));
                assert_eq!(yard.assert_sound(&other, &when), yard.ids([2]), "{when}");
            }
            std::fs::remove_dir_all(&cache).unwrap();
        }
    }
    eprintln!("{cases} faults in {} calls", counted.calls());
}

/// The other machine's files: what only forgotten snapshots have, so that it refers to what is condemned, and news.
pub(crate) fn other_source(yard: &Yard) -> (PathBuf, Tree) {
    let source = yard.dir.path().join("other");
    std::fs::write(source.join("old"), noise(11, 700_000)).unwrap();
    std::fs::write(source.join("new"), noise(77, 50_000)).unwrap();
    let content = tree(&source);
    (source, content)
}

/// A whole backup of another machine between any two calls of a prune.
#[test]
fn backup_at_any_moment_of_a_prune_is_whole() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let (other, content) = other_source(&yard);
    let (store, cache) = yard.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    prune_all(counted.clone(), &cache).unwrap();
    for call in 0..counted.calls() {
        let (store, cache) = yard.fork();
        let other_cache = yard.fresh();
        let made = Arc::new(parking_lot::Mutex::new(None));
        let visit = {
            let (store, cache, source, made) = (store.clone(), other_cache.clone(), other.clone(), made.clone());
            move || {
                *made.lock() = Some(back_up(Arc::new(store), &cache, &writer(), &source).expect("the other machine"))
            }
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let result = prune_all(shared.clone(), &cache);
        let when = format!("visited at call {call} ({})", shared.log()[call as usize]);
        result.unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        let new = made.lock().take().unwrap().snapshot.unwrap();
        let also = BTreeMap::from([(new, content.clone())]);
        assert_eq!(
            yard.assert_restores(&store, &when, &also),
            &yard.ids([2]) | &BTreeSet::from([new]),
            "{when}"
        );
        prune_all(Arc::new(store.clone()), &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        assert_eq!(
            yard.assert_restores(&store, &when, &also),
            &yard.ids([2]) | &BTreeSet::from([new]),
            "{when}"
        );
        std::fs::remove_dir_all(&cache).unwrap();
        std::fs::remove_dir_all(&other_cache).unwrap();
    }
}

/// A whole prune of another machine between any two calls of a prune.
#[test]
fn prune_at_any_moment_of_a_prune_is_no_failure() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let (store, cache) = yard.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    prune_all(counted.clone(), &cache).unwrap();
    for call in 0..counted.calls() {
        let (store, cache) = yard.fork();
        let other_cache = yard.fresh();
        let visit = {
            let (store, cache) = (store.clone(), other_cache.clone());
            move || drop(prune_all(Arc::new(store), &cache).expect("the other machine"))
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let result = prune_all(shared.clone(), &cache);
        let when = format!("visited at call {call} ({})", shared.log()[call as usize]);
        result.unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        assert_eq!(yard.assert_sound(&store, &when), yard.ids([2]), "{when}");
        std::fs::remove_dir_all(&cache).unwrap();
        std::fs::remove_dir_all(&other_cache).unwrap();
    }
}

/// A whole prune of another machine, which rewrites packs, between any two calls of a check: it finds nothing that is not so.
#[test]
fn prune_at_any_moment_of_a_check_is_no_damage() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let everything = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    let check = |store: Arc<dyn Store>, cache: &Path| {
        let repo = try_open(store, cache, &admin()).unwrap();
        check::run(&repo, &everything, &Progress::default())
    };
    let (store, cache) = yard.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    check(counted.clone(), &cache).unwrap();
    for call in 0..counted.calls() {
        let (store, cache) = yard.fork();
        let other_cache = yard.fresh();
        let visit = {
            let (store, cache) = (store.clone(), other_cache.clone());
            let options = prune::Options {
                repack: Some(RepackLimits {
                    unused_share: 0.0,
                    copied_bytes_max: u64::MAX,
                }),
                ..prune_options()
            };
            move || {
                let report = prune_with(Arc::new(store), &cache, &options).expect("the other machine");
                assert!(report.deleted.packs > 0);
            }
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let report = check(shared.clone(), &cache);
        let when = format!("visited at call {call} ({})", shared.log()[call as usize]);
        let report = report.unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        assert!(report.is_sound(), "{when}: {:?}", report.findings);
        std::fs::remove_dir_all(&cache).unwrap();
        std::fs::remove_dir_all(&other_cache).unwrap();
    }
}

/// A backup is stopped before any of its calls, a prune runs from beginning to end (or two do), and the backup goes on: its
/// snapshot is good.
#[test]
fn backup_that_sleeps_through_a_prune_is_whole() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let (other, content) = other_source(&yard);
    // The other machine knows the repository from before.
    let warm = yard.fresh();
    try_open(Arc::new(yard.store.clone()), &warm, &writer())
        .unwrap()
        .sync_history()
        .unwrap();
    let calls = {
        let (store, cache) = (yard.store.fork(), yard.fresh());
        copy_dir(&warm, &cache);
        let counted = Arc::new(FaultStore::new(store, None));
        back_up(counted.clone(), &cache, &writer(), &other).unwrap();
        counted.calls()
    };
    let (mut rescued, mut waited) = (0, 0);
    for call in 0..calls {
        for prunes in [1, 2] {
            let (store, cache) = yard.fork();
            let other_cache = yard.fresh();
            copy_dir(&warm, &other_cache);
            let reports = Arc::new(parking_lot::Mutex::new(Vec::new()));
            let visit = {
                let (store, cache, reports) = (store.clone(), cache.clone(), reports.clone());
                move || {
                    for _ in 0..prunes {
                        reports
                            .lock()
                            .push(prune_all(Arc::new(store.clone()), &cache).expect("the prune"));
                    }
                }
            };
            let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
            let result = back_up(shared.clone(), &other_cache, &writer(), &other);
            let when = format!("{prunes} prunes at call {call} ({})", shared.log()[call as usize]);
            let report = result.unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            waited += reports
                .lock()
                .iter()
                .filter(|report| !report.waiting_for.is_empty())
                .count();
            let new = report.snapshot.unwrap();
            let also = BTreeMap::from([(new, content.clone())]);
            let expected = &yard.ids([2]) | &BTreeSet::from([new]);
            assert_eq!(yard.assert_restores(&store, &when, &also), expected, "{when}");
            let last = prune_all(Arc::new(store.clone()), &cache)
                .unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            assert!(
                last.waiting_for.is_empty() && last.waiting.packs == 0,
                "{when}: {last:?}"
            );
            rescued += last.rescued;
            assert_eq!(yard.assert_restores(&store, &when, &also), expected, "{when}");
            std::fs::remove_dir_all(&cache).unwrap();
            std::fs::remove_dir_all(&other_cache).unwrap();
        }
    }
    eprintln!("{calls} calls: {waited} prunes waited, {rescued} chunks were rescued");
    assert!(waited > 0 && rescued > 0, "{waited} {rescued}");
}

#[test]
fn sweep_waits_for_a_session_that_has_not_taken_note() {
    let yard = Yard::with_nights();
    let writing = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &writer()).unwrap();
    let mut session = Session::begin(&writing, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    yard.forget(1);
    let report = yard.prune();
    assert_eq!(report.deleted.packs, 0);
    assert_eq!(report.waiting, report.unused);
    assert!(report.waiting.packs > 0);
    let waiting: Vec<SessionId> = report.waiting_for.iter().map(|other| other.state.session).collect();
    assert_eq!(waiting, [session.id()]);
    let (store, cache) = yard.fork();
    session.poll().unwrap();
    let report = yard.prune();
    assert!(report.deleted.packs > 0 && report.waiting.packs == 0, "{report:?}");
    // Somebody knows that the machine is gone.
    let options = prune::Options {
        end_sessions: vec![session.id()],
        ..prune_options()
    };
    let report = prune_with(Arc::new(store.clone()), &cache, &options).unwrap();
    assert_eq!(report.fenced, [session.id()]);
    assert!(report.deleted.packs > 0 && report.waiting.packs == 0, "{report:?}");
    session.abandon();
    yard.assert_sound(&yard.store, "after");
    yard.assert_sound(&store, "after, ended");
}

#[test]
fn packs_wait_for_their_time() {
    let yard = Yard::with_nights();
    yard.forget(1);
    let patient = prune::Options {
        grace: std::time::Duration::from_secs(7 * 86_400),
        ..prune_options()
    };
    for _ in 0..2 {
        let report = prune_with(Arc::new(yard.store.clone()), &yard.cache(), &patient).unwrap();
        assert_eq!(report.deleted.packs, 0);
        assert!(report.waiting.packs > 0 && report.deletable_at.is_some(), "{report:?}");
    }
    let report = yard.prune();
    assert!(report.deleted.packs > 0 && report.waiting.packs == 0, "{report:?}");
}

/// What was forgotten comes back as long as it is there: before a prune, and while its packs wait.
#[test]
fn forgotten_snapshot_comes_back_until_its_data_is_deleted() {
    let yard = Yard::with_nights();
    let night = yard.nights[1].0;
    yard.forget(1);
    let (store, cache) = yard.fork();
    let bring_back = |store: &MemoryStore, cache: &Path| {
        let repo = try_open(Arc::new(store.clone()), cache, &admin()).unwrap();
        let forgotten = prune::undelete::forgotten(&repo).unwrap();
        assert_eq!(
            forgotten.iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(),
            [night]
        );
        prune::undelete::run(&repo, &forgotten[0], 1, &Progress::default())
    };
    let before = pack_bytes(&store);
    let back = bring_back(&store, &cache).unwrap();
    assert_eq!(pack_bytes(&store), before, "nothing had to be copied");
    let also = BTreeMap::from([(back, yard.nights[1].1.clone())]);
    let all = &yard.ids([0, 2]) | &BTreeSet::from([back]);
    assert_eq!(yard.assert_restores(&store, "forgotten", &also), all);

    // Condemned, and not deleted yet; on a machine that knows nothing, too.
    let patient = prune::Options {
        grace: std::time::Duration::from_secs(7 * 86_400),
        ..prune_options()
    };
    let report = prune_with(Arc::new(yard.store.clone()), &yard.cache(), &patient).unwrap();
    assert!(report.waiting.packs > 0);
    let (deleted, deleted_cache) = yard.fork();
    for fresh in [true, false] {
        let (store, cache) = yard.fork();
        let machine = if fresh { yard.fresh() } else { cache.clone() };
        let back = bring_back(&store, &machine).unwrap();
        let also = BTreeMap::from([(back, yard.nights[1].1.clone())]);
        let all = &yard.ids([0, 2]) | &BTreeSet::from([back]);
        assert_eq!(yard.assert_restores(&store, "condemned", &also), all);
        let report = prune_all(Arc::new(store.clone()), &cache).unwrap();
        assert!(report.deleted.packs > 0 && report.rescued == 0, "{report:?}");
        assert_eq!(yard.assert_restores(&store, "pruned after all", &also), all);
    }

    // Deleted.
    prune_all(Arc::new(deleted.clone()), &deleted_cache).unwrap();
    let error = bring_back(&deleted, &deleted_cache).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{}", check::chain(&error));
    assert_eq!(yard.assert_sound(&deleted, "deleted"), yard.ids([0, 2]));
}

/// A session that has been silent for long is ended; what it had uploaded can be used or goes. If it wakes up, it publishes nothing.
#[test]
fn silent_session_is_fenced_and_its_orphans_go() {
    let mut yard = Yard::with_nights();
    let writing = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &writer()).unwrap();
    let mut session = Session::begin(&writing, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    let id = session.id();
    let durable = session.make_durable().unwrap();
    yard.forget(1);
    assert_eq!(yard.prune().fenced, []);
    yard.small
        .change_config(&yard.store, |config| {
            (config.gc.dead_seconds, config.gc.pack_age_seconds) = (0, 0)
        })
        .unwrap();
    // A pack of the dead session that it never listed.
    let source = yard.nights[2].0;
    let stray = keys(&yard.store, "data/").into_keys().next().unwrap();
    let bytes = yard.store.read(&stray, Part::Whole).unwrap();
    let orphan = ObjectName::Pack(PackKind::Data, PackId([3; 16]), id);
    create_new(&yard.store, &orphan, bytes.to_vec(), "an orphan").unwrap();
    yard.store.set_time(Timestamp(host::now().0 + 1_000_000_000));
    let report = yard.prune();
    assert_eq!(report.fenced, [id]);
    assert_eq!(report.orphaned.packs, 1, "{report:?}");
    assert!(report.deleted.packs > 1 && report.waiting.packs == 0, "{report:?}");
    assert!(!keys(&yard.store, "data/").contains_key(&store_key(&orphan)));
    let manifest = writing_manifest(&writing, &source);
    let label = larder::repo::session::OutcomeLabel {
        kind: larder::pure::format::outcome::OutcomeKind::Commit,
        source: Some(manifest.source.id),
        flags: 0,
    };
    let error = session.publish(durable, &manifest, &label).unwrap_err();
    assert!(matches!(error, RepoError::Fenced(fenced) if fenced == id), "{error}");
    assert_eq!(yard.assert_sound(&yard.store, "after"), yard.ids([0, 2]));
}

/// What a dead session has written and nobody can read stands in nobody's way when the session has been ended.
#[test]
fn broken_run_of_a_session_that_is_ended_does_not_count() {
    let mut yard = Yard::with_nights();
    let writing = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &writer()).unwrap();
    let mut session = Session::begin(&writing, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    session.make_durable().unwrap();
    let run = ObjectName::Run(session.id(), 0);
    create_new(&yard.store, &run, vec![7; 5_000], "a run that was cut short").unwrap();
    yard.small
        .change_config(&yard.store, |config| config.gc.dead_seconds = 0)
        .unwrap();
    yard.store.set_time(Timestamp(host::now().0 + 1_000_000_000));
    assert_eq!(yard.prune().fenced, [session.id()]);
    let repo = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &admin()).unwrap();
    repo.sync_history().unwrap();
    let sync = repo.sync_index().unwrap();
    assert!(sync.broken.is_empty() && sync.missing.is_empty(), "{sync:?}");
    drop(repo);
    assert_eq!(yard.prune().waiting_for.len(), 0);
    assert_eq!(yard.assert_sound(&yard.store, "after"), yard.ids([0, 1, 2]));
}

fn writing_manifest(repo: &Repo, of: &SessionId) -> larder::pure::format::manifest::Manifest {
    repo.sync_history().unwrap();
    repo.snapshot(of).unwrap().manifest
}

#[test]
fn badly_used_packs_are_rewritten_within_the_limits() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let before = yard.prune();
    assert!(before.used.bytes > before.bytes_alive, "{before:?}");
    let repack = |unused_share, copied_bytes_max| {
        let options = prune::Options {
            repack: Some(RepackLimits {
                unused_share,
                copied_bytes_max,
            }),
            ..prune_options()
        };
        prune_with(Arc::new(yard.store.clone()), &yard.cache(), &options).unwrap()
    };
    let none = repack(0.02, 0);
    assert_eq!((none.rewritten.packs, none.bytes_copied), (0, 0), "{none:?}");
    let held = pack_bytes(&yard.store);
    let done = repack(0.02, u64::MAX);
    assert!(done.rewritten.packs > 0 && done.bytes_copied > 0, "{done:?}");
    assert_eq!(done.deleted, done.rewritten, "{done:?}");
    assert!(pack_bytes(&yard.store) < held);
    assert_eq!(yard.assert_sound(&yard.store, "rewritten"), yard.ids([2]));
}

/// Doubt stops deletion: a missing outcome, a damaged node, a missing pack, a run that is gone.
#[test]
fn doubt_stops_deletion() {
    let yard = Yard::with_nights();
    yard.forget(0);
    let live = ObjectName::Outcome(yard.nights[1].0);
    // No other one leads to it.
    let newest = ObjectName::Outcome(yard.nights[2].0);
    let newest_meta = |store: &MemoryStore| {
        // Of what the last two nights need, and nobody else.
        keys(store, "meta/").into_keys().collect::<Vec<_>>()
    };
    let first = |store: &MemoryStore, under: &str| keys(store, under).into_keys().next_back().unwrap();
    type Harm<'h> = (&'h str, Box<dyn Fn(&MemoryStore) + 'h>);
    let rot = |store: &MemoryStore, key: &StoreKey| {
        let mut bytes = store.read(key, Part::Whole).unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        store.overwrite(key, bytes.into());
    };
    let tidy = |store: &MemoryStore| {
        store
            .remove(&keys(store, "sess/").into_keys().collect::<Vec<_>>())
            .unwrap();
    };
    let harms: [Harm<'_>; 7] = [
        (
            "an outcome",
            Box::new(|store| store.remove(&[store_key(&live)]).unwrap()),
        ),
        (
            // As it is when some days have passed: then nothing tells but what was seen before.
            "the newest outcome, whose session was tidied away",
            Box::new(|store| {
                store.remove(&[store_key(&newest)]).unwrap();
                tidy(store);
            }),
        ),
        (
            "rot in the newest outcome, whose session was tidied away",
            Box::new(|store| {
                rot(store, &store_key(&newest));
                tidy(store);
            }),
        ),
        (
            "rotten metadata",
            Box::new(|store| newest_meta(store).iter().for_each(|key| rot(store, key))),
        ),
        (
            "all metadata",
            Box::new(|store| store.remove(&newest_meta(store)).unwrap()),
        ),
        (
            "all data",
            Box::new(|store| {
                store
                    .remove(&keys(store, "data/").into_keys().collect::<Vec<_>>())
                    .unwrap()
            }),
        ),
        (
            "a run",
            Box::new(|store| store.remove(&[first(store, "idx/")]).unwrap()),
        ),
    ];
    for (what, harm) in harms {
        for knows in [true, false] {
            // What was read before needs not be read again, and what was never seen is not missed.
            if knows && what.starts_with("rot in the newest") || !knows && what.starts_with("the newest") {
                continue;
            }
            let (store, known) = yard.fork();
            let cache = if knows { known } else { yard.fresh() };
            harm(&store);
            let before = keys(&store, "data/");
            let before_meta = keys(&store, "meta/");
            let error = prune_all(Arc::new(store.clone()), &cache).expect_err(what);
            assert!(
                matches!(error.kind(), Kind::Damage | Kind::Tamper),
                "{what}, {knows}: {}",
                check::chain(&error)
            );
            assert!(error.hint().is_some());
            assert_eq!(
                (keys(&store, "data/"), keys(&store, "meta/")),
                (before, before_meta),
                "{what}"
            );
        }
    }
}

/// A bit that is wrong once is no damage: what has a wrong bit is read again, whatever it is.
#[test]
fn wrong_bits_that_do_not_stay_change_nothing() {
    let yard = Yard::with_nights();
    yard.forget(1);
    let flipping = || -> Arc<dyn Store> { Arc::new(FaultStore::flipping(yard.store.clone())) };
    for machine in [yard.cache(), yard.fresh()] {
        let repo = try_open(flipping(), &machine, &admin()).unwrap();
        repo.sync_history().unwrap().require_sound().unwrap();
        assert_eq!(repo.snapshots().unwrap().len(), 2);
    }
    let everything = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    let repo = try_open(flipping(), &yard.fresh(), &admin()).unwrap();
    let report = check::run(&repo, &everything, &Progress::default()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    // A machine without an index finds chunks straight in the runs.
    let repo = try_open(flipping(), &yard.fresh(), &admin()).unwrap();
    repo.sync_history().unwrap();
    for snapshot in repo.snapshots().unwrap() {
        let root = snapshot.manifest.roots[0].path.clone();
        let options = restore_options(snapshot, Some(root), yard.fresh());
        let report = restore::run(&repo, &options, &Progress::default()).unwrap();
        assert_eq!(
            (report.damaged_total, report.failed_total),
            (0, 0),
            "{:?}",
            report.damaged
        );
    }
    back_up(flipping(), &yard.fresh(), &admin(), &yard.source()).unwrap();
    let report = prune_all(flipping(), &yard.fresh()).unwrap();
    assert!(report.deleted.packs > 0, "{report:?}");
    assert!(
        yard.assert_sound(&yard.store, "afterwards")
            .is_superset(&yard.ids([0, 2]))
    );
}

/// A listing that comes late may lack a writer as well: prune notices by its own session.
#[test]
fn listings_that_come_late_stop_deletion() {
    let yard = Yard::with_nights();
    yard.forget(1);
    let before = pack_bytes(&yard.store);
    let lagging = Arc::new(FaultStore::lagging(yard.store.clone()));
    let error = prune_all(lagging, &yard.cache()).unwrap_err();
    assert!(matches!(error, OpError::InDoubt { .. }), "{}", check::chain(&error));
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(pack_bytes(&yard.store), before);
    assert!(yard.prune().deleted.packs > 0);
    assert_eq!(yard.assert_sound(&yard.store, "afterwards"), yard.ids([0, 2]));
}

/// A maintainer's key is enough for everything that prune does, and a backup key for none of it.
#[test]
fn each_key_does_its_duty_and_no_more() {
    let yard = Yard::with_nights();
    let key = |byte| Credential::KeyFile(Secret::new([byte; 32]));
    let repo = try_open(Arc::new(yard.store.clone()), &yard.cache(), &admin()).unwrap();
    holders::add(&repo, "cleaner", Duty::Maintainer, &key(20)).unwrap();
    drop(repo);
    // Each addition starts from the configuration that the one before has left.
    for (label, duty, byte) in [("web1", Duty::Backup, 21), ("auditor", Duty::Reader, 22)] {
        let repo = try_open(Arc::new(yard.store.clone()), &yard.cache(), &admin()).unwrap();
        holders::add(&repo, label, duty, &key(byte)).unwrap();
        let again = holders::add(&repo, label, duty, &key(99)).unwrap_err();
        assert!(
            matches!(again.kind(), Kind::Usage | Kind::Refused),
            "{}",
            check::chain(&again)
        );
    }
    let open = |byte| try_open(Arc::new(yard.store.clone()), &yard.fresh(), &key(byte)).unwrap();
    let (other, content) = other_source(&yard);
    let made = back_up(Arc::new(yard.store.clone()), &yard.fresh(), &key(21), &other)
        .unwrap()
        .snapshot
        .unwrap();
    let also = BTreeMap::from([(made, content)]);
    yard.assert_restores(&yard.store, "a key of its own", &also);
    for byte in [20, 22] {
        let error = back_up(Arc::new(yard.store.clone()), &yard.fresh(), &key(byte), &other).unwrap_err();
        assert_eq!(error.kind(), Kind::Auth, "{byte}: {}", check::chain(&error));
        let everything = check::Options {
            read_data: Some(check::Subset::All),
            threads: 1,
            ..Default::default()
        };
        let report = check::run(&open(byte), &everything, &Progress::default()).unwrap();
        assert!(report.findings.is_empty(), "{byte}: {:?}", report.findings);
    }
    for byte in [21, 22] {
        let error = prune::run(&open(byte), &prune_options(), &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Auth, "{byte}");
        let error = holders::add(&open(byte), "more", Duty::Admin, &key(98)).unwrap_err();
        assert_eq!(error.kind(), Kind::Auth, "{byte}");
    }
    yard.forget(0);
    yard.forget(1);
    let options = prune::Options {
        repack: Some(RepackLimits {
            unused_share: 0.2,
            copied_bytes_max: u64::MAX,
        }),
        ..prune_options()
    };
    for round in 0..2 {
        let report = prune::run(&open(20), &options, &Progress::default())
            .unwrap_or_else(|error| panic!("{round}: {}", check::chain(&error)));
        assert_eq!(report.deleted.packs > 0, round == 0, "{report:?}");
    }
    yard.assert_restores(&yard.store, "pruned by the maintainer", &also);
}

/// Every call of `run` fails once, and from then on. Whatever happens, the snapshots in `kept` are there and whole, and
/// running it again, here and (after a crash) on a machine that knows nothing, comes to `done`.
fn every_call_may_fail(
    yard: &Yard,
    kept: &BTreeSet<SessionId>,
    run: &dyn Fn(Arc<dyn Store>, &Path) -> Result<(), OpError>,
    done: &dyn Fn(&MemoryStore, &str),
) {
    every_call_may_fail_from(0, yard, kept, run, done);
}

/// The same, of the calls from `first` on.
pub(crate) fn every_call_may_fail_from(
    first: u64,
    yard: &Yard,
    kept: &BTreeSet<SessionId>,
    run: &dyn Fn(Arc<dyn Store>, &Path) -> Result<(), OpError>,
    done: &dyn Fn(&MemoryStore, &str),
) {
    let mut call = first;
    loop {
        let mut open = false;
        for fault in Fault::at(call) {
            let (store, cache) = yard.fork();
            let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
            let result = run(faulty.clone(), &cache);
            if !faulty.has_failed() {
                result.unwrap();
                continue;
            }
            open = true;
            let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
            assert_no_false_alarm(&result, &when);
            assert!(yard.assert_sound(&store, &when).is_superset(kept), "{when}");
            let mut machines = vec![cache.clone()];
            machines.extend(fault.lasting.then(|| yard.fresh()));
            for machine in machines {
                let store = store.fork();
                run(Arc::new(store.clone()), &machine)
                    .unwrap_or_else(|error| panic!("{when}, again: {}", check::chain(&error)));
                assert!(yard.assert_sound(&store, &when).is_superset(kept), "{when}, again");
                done(&store, &when);
            }
            std::fs::remove_dir_all(&cache).unwrap();
        }
        if !open {
            eprintln!("{} calls", call - first);
            assert!(call > first + 3);
            return;
        }
        call += 1;
    }
}

#[test]
fn undelete_that_dies_loses_nothing_and_can_be_repeated() {
    let yard = Yard::with_nights();
    yard.forget(1);
    let patient = prune::Options {
        grace: std::time::Duration::from_secs(7 * 86_400),
        ..prune_options()
    };
    prune_with(Arc::new(yard.store.clone()), &yard.cache(), &patient).unwrap();
    let run = |store: Arc<dyn Store>, cache: &Path| {
        let repo = try_open(store, cache, &admin())?;
        let forgotten = prune::undelete::forgotten(&repo)?;
        prune::undelete::run(&repo, &forgotten[0], 1, &Progress::default()).map(drop)
    };
    let done = |store: &MemoryStore, when: &str| {
        let cache = yard.fresh();
        let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
        repo.sync_history().unwrap();
        let roots = |id: &SessionId| repo.snapshot(id).unwrap().manifest.roots;
        let wanted = roots(&yard.nights[1].0);
        let back = repo.snapshots().unwrap();
        assert!(back.iter().any(|snapshot| roots(&snapshot.id) == wanted), "{when}");
    };
    every_call_may_fail(&yard, &yard.ids([0, 2]), &run, &done);
}

#[test]
fn fencing_that_dies_loses_nothing_and_can_be_repeated() {
    let yard = Yard::with_nights();
    let writing = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &writer()).unwrap();
    let session = Session::begin(&writing, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    yard.forget(1);
    let options = prune::Options {
        end_sessions: vec![session.id()],
        ..prune_options()
    };
    let run = |store: Arc<dyn Store>, cache: &Path| prune_with(store, cache, &options).map(drop);
    let done = |store: &MemoryStore, when: &str| {
        let name = store_key(&ObjectName::Outcome(session.id()));
        assert!(keys(store, "snap/").contains_key(&name), "{when}");
    };
    every_call_may_fail(&yard, &yard.ids([0, 2]), &run, &done);
}

#[test]
fn adding_a_key_that_dies_locks_nobody_out_and_can_be_repeated() {
    let yard = Yard::with_nights();
    let key = Credential::KeyFile(Secret::new([21; 32]));
    let run = |store: Arc<dyn Store>, cache: &Path| {
        let repo = try_open(store, cache, &admin())?;
        match holders::add(&repo, "web1", Duty::Backup, &key) {
            // The reply was lost: it was added.
            Err(OpError::Usage(_)) => Ok(()),
            added => added.map(drop),
        }
    };
    let (other, content) = other_source(&yard);
    let done = |store: &MemoryStore, when: &str| {
        let cache = yard.fresh();
        let made = back_up(Arc::new(store.clone()), &cache, &key, &other)
            .unwrap_or_else(|error| panic!("{when}, the new key: {}", check::chain(&error)));
        let also = BTreeMap::from([(made.snapshot.unwrap(), content.clone())]);
        yard.assert_restores(store, when, &also);
    };
    every_call_may_fail(&yard, &yard.ids([0, 1, 2]), &run, &done);
}

#[test]
fn holding_and_releasing_that_die_can_be_repeated() {
    let yard = Yard::with_nights();
    let night = yard.nights[0].0;
    let later = Timestamp(host::now().0 + 3_600_000_000_000);
    let open = |store: Arc<dyn Store>, cache: &Path| -> Result<Repo, OpError> {
        let repo = try_open(store, cache, &admin())?;
        repo.sync_history()?;
        Ok(repo)
    };
    let holds = |store: &MemoryStore| {
        let repo = open(Arc::new(store.clone()), &yard.fresh()).unwrap();
        let mut ends: Vec<_> = repo
            .holds(&mut Vec::new())
            .unwrap()
            .iter()
            .map(|hold| hold.until)
            .collect();
        ends.dedup();
        ends
    };
    let all = yard.ids([0, 1, 2]);
    let hold = |store: Arc<dyn Store>, cache: &Path| hold::hold(&open(store, cache)?, &night, None, "the auditors");
    every_call_may_fail(&yard, &all, &hold, &|store, when| {
        assert_eq!(holds(store), [None], "{when}")
    });
    hold(Arc::new(yard.store.clone()), &yard.cache()).unwrap();
    let release =
        |store: Arc<dyn Store>, cache: &Path| hold::release(&open(store, cache)?, &night, Some(later)).map(drop);
    every_call_may_fail(&yard, &all, &release, &|store, when| {
        assert_eq!(holds(store), [Some(later)], "{when}");
    });
}

/// Two machines with one key publish under one number: prune goes on if every link leads somewhere, and refuses if one does not.
/// Somebody forgets a snapshot while it is being held, and a sweep may have listed holds already: the hold is not said to be one.
#[test]
fn what_is_forgotten_meanwhile_is_not_held() {
    let yard = Yard::with_nights();
    let night = yard.nights[0].0;
    let open = |store: Arc<dyn Store>, cache: &Path| {
        let repo = try_open(store, cache, &admin()).unwrap();
        repo.sync_history().unwrap();
        repo
    };
    let counted = Arc::new(FaultStore::new(yard.store.fork(), None));
    hold::hold(&open(counted.clone(), &yard.fresh()), &night, None, "").unwrap();
    let log = counted.log();
    let write = log.iter().position(|call| call.starts_with("writing hold/")).unwrap() as u64;
    let (mut held, mut refused) = (0, 0);
    for call in write - 1..counted.calls() {
        let store = yard.store.fork();
        let visit = {
            let (store, cache) = (store.clone(), yard.fresh());
            move || forget(&store, &cache, night)
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        match hold::hold(&open(shared, &yard.fresh()), &night, None, "") {
            // Forgotten after the hold was there: everybody who sees the drop sees the hold.
            Ok(()) => held += 1,
            Err(error) => {
                assert_eq!(error.kind(), Kind::Refused, "call {call}: {}", check::chain(&error));
                assert_eq!(keys(&store, "hold/").len(), 0, "call {call}");
                refused += 1;
            }
        }
    }
    assert!(held > 0 && refused > 0, "{held} {refused}");
}

#[test]
fn forks_are_no_obstacle_as_long_as_nothing_is_missing() {
    let mut yard = Yard::with_nights();
    // The other machine is set back to where this one was: it gives the next number once more.
    let image = yard.fresh();
    copy_dir(&yard.cache(), &image);
    let before = yard.store.fork();
    yard.write("of the night", &noise(30, 100_000));
    yard.night();
    let (other, content) = other_source(&yard);
    let report = back_up(Arc::new(before.clone()), &image, &admin(), &other).unwrap();
    let twin = report.snapshot.unwrap();
    for (key, _) in keys(&before, "") {
        if !keys(&yard.store, "").contains_key(&key) {
            let bytes = before.read(&key, Part::Whole).unwrap();
            assert_eq!(
                yard.store.create(&key, bytes).unwrap(),
                larder::edge::store::Created::New
            );
        }
    }
    let also = BTreeMap::from([(twin, content)]);
    yard.forget(2);
    let pruned = yard.prune();
    assert_eq!(pruned.snapshots, 4);
    assert!(
        pruned.notes.iter().any(|note| note.contains("shared by several")),
        "{:?}",
        pruned.notes
    );
    yard.assert_restores(&yard.store, "with a fork", &also);
    // The twin's successor links to it. When the twin is taken away, its number is still there, and the link shows that it is missing.
    let repo = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &admin()).unwrap();
    repo.sync_history().unwrap();
    let linked: BTreeSet<_> = repo
        .index
        .outcomes()
        .unwrap()
        .iter()
        .filter_map(|known| repo.stored_outcome(&known.session).unwrap().unwrap().outcome.previous)
        .collect();
    let forked = repo.index.outcomes().unwrap();
    let number = forked.iter().find(|known| known.session == twin).unwrap().sequence;
    let victim = forked
        .iter()
        .find(|known| known.sequence == number && linked.contains(&known.hash))
        .unwrap();
    yard.store
        .remove(&[store_key(&ObjectName::Outcome(victim.session))])
        .unwrap();
    yard.forget(0);
    let error = prune_all(Arc::new(yard.store.clone()), &yard.fresh()).unwrap_err();
    assert_eq!(error.kind(), Kind::Tamper, "{}", check::chain(&error));
}

#[test]
fn a_key_without_the_role_may_not_prune() {
    let yard = Yard::with_nights();
    let repo = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &writer()).unwrap();
    let error = prune::run(&repo, &prune_options(), &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Auth);
}

/// Of two copies, the one in a pack that was damaged when it was read last is not the one that is kept.
#[test]
fn sound_copy_is_kept_and_not_the_damaged_one() {
    let yard = Yard::with_nights();
    let repo = try_open(Arc::new(yard.store.clone()), &yard.cache(), &admin()).unwrap();
    // Everything once more, by another session: two copies of each chunk.
    let other = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &writer()).unwrap();
    drop(repo);
    let blind = {
        let input = backup::Input::Paths {
            roots: vec![yard.source()],
            walk: WalkOptions::default(),
            excludes: ExcludesBuilder::default(),
        };
        let options = backup::Options {
            threads: 1,
            parent: backup::ParentChoice::None,
            deltas: false,
            ..options()
        };
        // What it cannot find it stores anew.
        other.index.set_incomplete();
        for pack in packs_of(&other) {
            other.index.mark_absent(&pack).unwrap();
        }
        backup::run(&other, input, &options, &Progress::default()).unwrap()
    };
    assert!(blind.snapshot.is_some());
    drop(other);
    let first: Vec<StoreKey> = keys(&yard.store, "data/").into_keys().collect();
    // Bits rot in every data pack of the first machine; a check sees it.
    let own: Vec<StoreKey> = first
        .iter()
        .filter(|key| key.as_str().contains(&tag_of(&yard.nights[0].0)))
        .cloned()
        .collect();
    assert!(
        !own.is_empty() && own.len() < first.len(),
        "{} of {}",
        own.len(),
        first.len()
    );
    for key in &own {
        let mut bytes = yard.store.read(key, Part::Whole).unwrap().to_vec();
        for at in (200..bytes.len().min(900_000)).step_by(5_000) {
            bytes[at] ^= 1;
        }
        yard.store.remove(std::slice::from_ref(key)).unwrap();
        assert_eq!(
            yard.store.create(key, bytes.into()).unwrap(),
            larder::edge::store::Created::New
        );
    }
    let everything = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    let repo = try_open(Arc::new(yard.store.clone()), &yard.cache(), &admin()).unwrap();
    let report = check::run(&repo, &everything, &Progress::default()).unwrap();
    assert!(!report.findings.is_empty());
    drop(repo);
    yard.forget(0);
    yard.forget(1);
    yard.prune();
    // What was sound stays: the newest night can be read as before.
    let repo = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &admin()).unwrap();
    let report = check::run(&repo, &everything, &Progress::default()).unwrap();
    assert_eq!(report.damaged_files_total, 0, "{:?}", report.damaged_files);
}

fn packs_of(repo: &Repo) -> Vec<larder::pure::id::PackId> {
    repo.sync_history().unwrap();
    repo.sync_index().unwrap();
    let mut packs = Vec::new();
    repo.index.packs(&mut |pack| packs.push(pack.pack)).unwrap();
    packs
}

/// How names show whose session made a pack.
fn tag_of(session: &SessionId) -> String {
    larder::pure::id::to_hex(&session.0[..4])
}
