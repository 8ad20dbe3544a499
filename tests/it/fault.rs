//! Faults and crashes: every single call to the store fails once, in every way a call can fail, and from then on.
//! Whatever happens, what was published before restores, the run that failed is in the repository completely or not at
//! all, and the next run succeeds and does not store again what was durable (format.md §9; reliability.md A1, A2, A10,
//! A12, I14).
//!
//! Failing "from then on" is a crash: the process writes nothing more. Its memory is gone with the `Repo`; its local
//! state stays (a crash) or goes as well (a new disk).

use crate::story::{noise, options, restore_options, tree};
use larder::edge::host;
use larder::edge::store::{Part, Prefix, Store, StoreKey, memory::MemoryStore};
use larder::ops::{OpError, Progress, backup, check, dump, forget, restore, tag};
use larder::pure::base::memory::IndexShare;
use larder::pure::base::{Explain, Kind};
use larder::pure::chunk::Profile;
use larder::pure::crypto::Secret;
use larder::pure::format::condemn::{CondemnKind, Condemnation};
use larder::pure::format::name::ObjectName;
use larder::pure::format::outcome::OutcomeKind;
use larder::pure::format::session::SessionRole;
use larder::pure::id::{RepoId, SessionId};
use larder::pure::plan::policy::Policy;
use larder::repo::Repo;
use larder::repo::error::RepoError;
use larder::repo::open::{self, Credential, LocalOptions, create_new};
use larder::repo::session::Session;
use larder::repo::snapshots::replaced;
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::fault_store::{Fault, FaultStore};
use larder::testing::small::SmallRepo;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

type Tree = BTreeMap<PathBuf, Vec<u8>>;

pub fn admin() -> Credential {
    Credential::KeyFile(Secret::new([7; 32]))
}

/// A key of another machine, which may write and read, and neither forget nor prune.
pub fn writer() -> Credential {
    Credential::KeyFile(Secret::new([8; 32]))
}

pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

pub fn try_open(store: Arc<dyn Store>, cache: &Path, credential: &Credential) -> Result<Repo, RepoError> {
    let options = LocalOptions {
        cache_dir: cache.to_owned(),
        index: IndexShare::with_filter(1 << 20),
        node_cache_bytes_max: 1 << 20,
    };
    open::connect(store, options)?.unlock(credential)
}

fn back_up(
    store: Arc<dyn Store>,
    cache: &Path,
    credential: &Credential,
    source: &Path,
) -> Result<backup::Report, OpError> {
    back_up_with(store, cache, credential, source, |_| {})
}

fn back_up_with(
    store: Arc<dyn Store>,
    cache: &Path,
    credential: &Credential,
    source: &Path,
    adjust: impl FnOnce(&mut backup::Options),
) -> Result<backup::Report, OpError> {
    let repo = try_open(store, cache, credential)?;
    let input = backup::Input::Paths {
        roots: vec![source.to_owned()],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let mut options = backup::Options {
        threads: 1,
        ..options()
    };
    adjust(&mut options);
    backup::run(&repo, input, &options, &Progress::default())
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Bytes in packs among some objects.
fn pack_bytes<'o>(objects: impl IntoIterator<Item = &'o (StoreKey, u64)>) -> u64 {
    let in_pack = |key: &StoreKey| key.as_str().starts_with("data/") || key.as_str().starts_with("meta/");
    objects
        .into_iter()
        .filter(|(key, _)| in_pack(key))
        .map(|(_, size)| size)
        .sum()
}

/// A repository after one night, with the source as it is in the next night.
struct Scene {
    dir: tempfile::TempDir,
    store: MemoryStore,
    first: SessionId,
    night1: Tree,
    night2: Tree,
    /// Bytes of the packs that a run without faults uploads.
    full: u64,
    /// Calls that such a run makes.
    calls: u64,
    /// When the runs that meet faults publish checkpoints.
    checkpoints: Option<backup::Interval>,
    cases: std::cell::Cell<u64>,
}

impl Scene {
    fn new() -> Scene {
        Scene::with_checkpoints(None)
    }

    fn with_checkpoints(checkpoints: Option<backup::Interval>) -> Scene {
        let dir = scratch();
        let source = dir.path().join("source");
        std::fs::create_dir_all(source.join("sub")).unwrap();
        std::fs::write(source.join("old"), noise(1, 200_000)).unwrap();
        std::fs::write(source.join("changes"), noise(2, 20_000)).unwrap();
        std::fs::write(source.join("sub/small"), b"small").unwrap();
        let night1 = tree(&source);
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
            })
            .unwrap();
        let cache = dir.path().join("cache");
        let first = back_up(Arc::new(store.clone()), &cache, &admin(), &source)
            .unwrap()
            .snapshot
            .unwrap();
        // A condemnation of nothing, so that sessions have something to acknowledge.
        let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
        let condemner = Session::begin(&repo, None, SessionRole::Condemn, 1, Instant::now()).unwrap();
        let generation = condemner.id();
        condemner.abandon();
        let condemnation = Condemnation {
            kid: repo.kid,
            created: host::now(),
            kind: CondemnKind::Reclaim,
            session: generation,
            reason: String::new(),
            packs: Vec::new(),
            lost: Vec::new(),
            is_accepted: false,
        };
        let body = condemnation.encode(&repo.keys, &repo.signer, host::random()).unwrap();
        create_new(&store, &ObjectName::Condemnation(generation), body, "a condemnation").unwrap();
        drop(repo);
        // A little other than before, so that it is stored as a delta, and longer.
        let mut changed = noise(2, 20_000);
        for at in [3_000, 9_000, 15_000] {
            changed[at] ^= 1;
        }
        changed.extend(noise(3, 10_000));
        std::fs::write(source.join("changes"), changed).unwrap();
        // The same content with new times: its chunks are looked up, and the pack that has them is looked for.
        std::fs::write(source.join("old"), noise(1, 200_000)).unwrap();
        std::fs::write(source.join("new"), noise(4, 1_400_000)).unwrap();
        std::fs::write(source.join("sub/new"), noise(5, 100_000)).unwrap();
        let night2 = tree(&source);
        let mut scene = Scene {
            dir,
            store,
            first,
            night1,
            night2,
            full: 0,
            calls: 0,
            checkpoints,
            cases: std::cell::Cell::new(0),
        };
        let (store, cache) = scene.fork();
        let counted = Arc::new(FaultStore::new(store.clone(), None));
        let report = back_up_with(counted.clone(), &cache, &admin(), &scene.source(), |options| {
            options.checkpoints = checkpoints;
        })
        .unwrap();
        assert_eq!(report.checkpoints.is_empty(), checkpoints.is_none(), "{report:?}");
        if checkpoints.is_none() {
            assert!(report.deltas > 0, "{report:?}");
        }
        scene.full = pack_bytes(&counted.acknowledged());
        scene.calls = counted.calls();
        assert!(scene.full > 1_500_000, "{}", scene.full);
        let packs = counted
            .acknowledged()
            .iter()
            .filter(|(key, _)| key.as_str().starts_with("data/"))
            .count();
        assert!(packs >= 2, "{packs} data packs");
        assert!(
            counted.log().iter().any(|call| call.ends_with("/0001")),
            "no acknowledgement: {:#?}",
            counted.log()
        );
        assert!(
            counted.log().iter().any(|call| call.starts_with("looking at data/")),
            "no pack is looked for: {:#?}",
            counted.log()
        );
        scene.assert_sound(&store, "without a fault");
        scene
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// A copy of the store, and of the machine that made the first backup.
    fn fork(&self) -> (MemoryStore, PathBuf) {
        let cache = self.fresh();
        copy_dir(&self.dir.path().join("cache"), &cache);
        (self.store.fork(), cache)
    }

    /// The path of a cache that is not there yet.
    fn fresh(&self) -> PathBuf {
        self.cases.set(self.cases.get() + 1);
        self.dir.path().join(format!("cache{}", self.cases.get()))
    }

    /// On a machine that has nothing but the key: `check` is content, every snapshot restores to what one of the two
    /// nights was, and the first is there. Returns how many show the second night.
    fn assert_sound(&self, store: &MemoryStore, when: &str) -> usize {
        let cache = self.fresh();
        let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
        let everything = check::Options {
            read_data: Some(check::Subset::All),
            threads: 1,
            ..Default::default()
        };
        let report = check::run(&repo, &everything, &Progress::default()).unwrap();
        assert!(report.findings.is_empty(), "{when}: {:?}", report.findings);
        let mut second_nights = 0;
        let snapshots = repo.snapshots().unwrap();
        assert!(
            snapshots.iter().any(|snapshot| snapshot.id == self.first),
            "{when}: the first snapshot is gone"
        );
        for snapshot in snapshots {
            let (id, is_partial) = (snapshot.id, snapshot.is_partial());
            let target = cache.join("restored");
            let options = restore_options(
                snapshot,
                Some(self.source().as_os_str().as_encoded_bytes().to_vec()),
                target.clone(),
            );
            let report = restore::run(&repo, &options, &Progress::default()).unwrap();
            assert_eq!(
                (report.damaged_total, report.failed_total),
                (0, 0),
                "{when}: {:?}",
                report.damaged
            );
            let found = tree(&target);
            if is_partial {
                let is_right = |(path, bytes): (&PathBuf, &Vec<u8>)| self.night2.get(path) == Some(bytes);
                assert!(
                    !found.is_empty() && found.iter().all(is_right),
                    "{when}: checkpoint {id} is not a part of what was backed up"
                );
            } else if id == self.first {
                assert!(found == self.night1, "{when}: the first snapshot has changed");
            } else {
                assert!(found == self.night2, "{when}: snapshot {id} is not what was backed up");
                second_nights += 1;
            }
            std::fs::remove_dir_all(&target).unwrap();
        }
        drop(repo);
        std::fs::remove_dir_all(&cache).unwrap();
        second_nights
    }

    /// Runs a backup that meets a fault. Returns what was acknowledged to it, or `None` when it was over before the
    /// fault.
    fn run_with(
        &self,
        store: &MemoryStore,
        cache: &Path,
        fault: Fault,
    ) -> Option<(Result<backup::Report, OpError>, Vec<(StoreKey, u64)>, Vec<String>)> {
        let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
        let result = back_up_with(faulty.clone(), cache, &admin(), &self.source(), |options| {
            options.checkpoints = self.checkpoints;
        });
        faulty
            .has_failed()
            .then(|| (result, faulty.acknowledged(), faulty.log()))
    }

    /// The next run on the machine with this cache succeeds. Returns bytes in packs that it uploaded.
    fn assert_next_run_works(&self, store: &MemoryStore, cache: &Path, when: &str) -> u64 {
        let counted = Arc::new(FaultStore::new(store.clone(), None));
        let report = back_up(counted.clone(), cache, &admin(), &self.source())
            .unwrap_or_else(|error| panic!("{when}: the next run: {}", check::chain(&error)));
        assert_eq!(report.problems_total, 0, "{when}: {:?}", report.problems);
        assert!(report.gaps.is_empty(), "{when}: {:?}", report.gaps);
        pack_bytes(&counted.acknowledged())
    }
}

/// Errors that no trouble of the store or of others may lead to: a defect of ours, damage, tampering.
pub fn is_false_alarm(error: &OpError) -> bool {
    matches!(error.kind(), Kind::Internal | Kind::Damage | Kind::Tamper)
}

/// What failed because of the store says so.
pub fn assert_no_false_alarm<T>(result: &Result<T, OpError>, when: &str) {
    if let Err(error) = result {
        assert!(!is_false_alarm(error), "{when}: {}", check::chain(error));
    }
}

/// What the failed run says is an error of the store, not a defect, and not "nothing wrong" for a snapshot that is not
/// there.
fn assert_honest(result: &Result<backup::Report, OpError>, second_nights: usize, when: &str) {
    match result {
        Ok(report) => assert!(
            report.snapshot.is_some() && second_nights == 1,
            "{when}: success without a snapshot"
        ),
        Err(_) => assert_no_false_alarm(result, when),
    }
}

#[test]
fn every_call_may_fail_and_the_next_run_goes_on_from_there() {
    every_call_may_fail(&Scene::new());
}

fn every_call_may_fail(scene: &Scene) {
    let started = Instant::now();
    let (mut cases, mut published, mut open) = (0, 0, true);
    let mut call = 0;
    while open {
        open = false;
        for fault in Fault::at(call) {
            let (store, cache) = scene.fork();
            let Some((result, acknowledged, log)) = scene.run_with(&store, &cache, fault) else {
                continue;
            };
            open = true;
            cases += 1;
            let when = format!("{fault:?} ({})", log[call as usize]);
            let second_nights = scene.assert_sound(&store, &when);
            assert!(second_nights <= 1, "{when}");
            published += second_nights;
            assert_honest(&result, second_nights, &when);
            // The machine lives on with its local state …
            let other_store = store.fork();
            let again = scene.assert_next_run_works(&store, &cache, &when);
            let durable = pack_bytes(&acknowledged);
            let allowed = if second_nights == 1 {
                0
            } else {
                scene.full - durable.min(scene.full)
            };
            assert!(
                again <= allowed + 64_000,
                "{when}: {again} bytes stored again, {durable} of {} were durable",
                scene.full
            );
            assert_eq!(scene.assert_sound(&store, &when), second_nights + 1, "{when}");
            assert_no_open_sessions(scene, &store, &when);
            // … or has lost it.
            if fault.lasting {
                scene.assert_next_run_works(&other_store, &scene.fresh(), &when);
                assert_eq!(scene.assert_sound(&other_store, &when), second_nights + 1, "{when}");
            }
            std::fs::remove_dir_all(&cache).unwrap();
        }
        call += 1;
    }
    eprintln!(
        "{cases} faults in {} calls ({} in a run without faults), {published} runs had published; {:.0} s",
        call - 1,
        scene.calls,
        started.elapsed().as_secs_f64()
    );
    assert!(call > scene.calls && published > 0);
}

/// The machine that crashed has ended its own sessions: nothing delays maintenance.
fn assert_no_open_sessions(scene: &Scene, store: &MemoryStore, when: &str) {
    let cache = scene.fresh();
    let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
    let report = check::run(
        &repo,
        &check::Options {
            threads: 1,
            ..Default::default()
        },
        &Progress::default(),
    )
    .unwrap();
    assert!(
        !report.notes.iter().any(|note| note.contains("interrupted")),
        "{when}: {:?}",
        report.notes
    );
    drop(repo);
    std::fs::remove_dir_all(&cache).unwrap();
}

/// A crash in the middle of clearing up after a crash.
#[test]
fn crash_during_recovery_is_only_one_more_crash() {
    let scene = Scene::new();
    let started = Instant::now();
    let (store, cache) = scene.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    back_up(counted.clone(), &cache, &admin(), &scene.source()).unwrap();
    let log = counted.log();
    let position = |text: &str| log.iter().position(|call| call.starts_with(text)).unwrap() as u64;
    // Registered; one pack is up; packs are up, no run; run is up, no outcome; outcome is up, reply lost.
    let firsts = ["writing sess/", "writing data/", "writing idx/", "writing snap/"];
    let mut cases = 0;
    for first in firsts.map(position) {
        for (first_after, second_after) in [(true, false), (true, true), (false, true)] {
            let mut call = 0;
            loop {
                let (store, cache) = scene.fork();
                let fault = Fault {
                    call: first,
                    after_effect: first_after,
                    lasting: true,
                };
                assert!(scene.run_with(&store, &cache, fault).is_some());
                let second = Fault {
                    call,
                    after_effect: second_after,
                    lasting: true,
                };
                let Some((result, _, log)) = scene.run_with(&store, &cache, second) else {
                    break;
                };
                cases += 1;
                let when = format!("{fault:?} then {second:?} ({})", log[call as usize]);
                assert_no_false_alarm(&result, &when);
                scene.assert_next_run_works(&store, &cache, &when);
                assert!((1..=3).contains(&scene.assert_sound(&store, &when)), "{when}");
                assert_no_open_sessions(&scene, &store, &when);
                std::fs::remove_dir_all(&cache).unwrap();
                call += 1;
            }
        }
    }
    eprintln!(
        "{cases} crashes during recovery; {:.0} s",
        started.elapsed().as_secs_f64()
    );
}

/// Changing tags writes a snapshot and drops another one. Wherever it dies, one of the two is there; a person sees which is
/// which; doing it again completes it.
#[test]
fn snapshot_tag_that_dies_loses_nothing_and_can_be_repeated() {
    let dir = scratch();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), noise(1, 50_000)).unwrap();
    let store = MemoryStore::new();
    SmallRepo::init(&store, &admin()).unwrap();
    let cache = dir.path().join("cache");
    let first = back_up(Arc::new(store.clone()), &cache, &admin(), &source)
        .unwrap()
        .snapshot
        .unwrap();
    let tags = [String::from("kept")];
    let tag = |store: Arc<dyn Store>, cache: &Path, name: &str| -> Result<SessionId, OpError> {
        let repo = try_open(store, cache, &admin())?;
        repo.sync_history()?;
        let snapshot = repo.resolve(name, &Default::default(), &|_| None)?;
        tag::run(&repo, &snapshot, &tags, &[])
    };
    let (mut call, mut open, mut cases, mut both_seen) = (0, true, 0, 0);
    while open {
        open = false;
        for fault in Fault::at(call) {
            cases += 1;
            let store = store.fork();
            let machine = dir.path().join(format!("machine{cases}"));
            copy_dir(&cache, &machine);
            let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
            let result = tag(faulty.clone(), &machine, &first.to_string());
            if !faulty.has_failed() {
                assert!(result.is_ok());
                continue;
            }
            open = true;
            let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
            // On another machine: what was backed up is there, and it is clear which one is meant.
            let other = dir.path().join(format!("other{cases}"));
            let repo = try_open(Arc::new(store.clone()), &other, &admin()).unwrap();
            let report = check::run(&repo, &check::Options::default(), &Progress::default()).unwrap();
            assert!(report.findings.is_empty(), "{when}: {:?}", report.findings);
            let snapshots = repo.snapshots().unwrap();
            assert!((1..=2).contains(&snapshots.len()), "{when}: {}", snapshots.len());
            for snapshot in &snapshots {
                let mut out = Vec::new();
                let path = source.join("file");
                let path = path.as_os_str().as_encoded_bytes();
                dump::file(&repo, snapshot, path, 1, &mut out, &Progress::default()).unwrap();
                assert!(out == noise(1, 50_000), "{when}");
            }
            let latest = repo.resolve("latest", &Default::default(), &|_| None).unwrap();
            let replaced = replaced(&snapshots);
            if snapshots.len() == 2 {
                both_seen += 1;
                assert_eq!(replaced.get(&first), Some(&latest.id), "{when}");
                assert_eq!(latest.manifest.tags, tags, "{when}");
            } else {
                assert!(replaced.is_empty(), "{when}");
                assert_eq!(latest.id, snapshots[0].id, "{when}");
            }
            drop(repo);
            // Again, by the old name and by the new one, here and there.
            let by_old = snapshots.iter().any(|snapshot| snapshot.id == first);
            let mut names = vec![String::from("latest")];
            names.extend(by_old.then(|| first.to_string()));
            for name in names {
                for machine in [&machine, &other] {
                    let store = store.fork();
                    let id = tag(Arc::new(store.clone()), machine, &name)
                        .unwrap_or_else(|error| panic!("{when}, again {name}: {}", check::chain(&error)));
                    let fresh = dir.path().join("fresh");
                    let repo = try_open(Arc::new(store), &fresh, &admin()).unwrap();
                    repo.sync_history().unwrap();
                    let left = repo.snapshots().unwrap();
                    let found: Vec<_> = left
                        .iter()
                        .map(|snapshot| (snapshot.id, &snapshot.manifest.tags))
                        .collect();
                    assert_eq!(found, [(id, &tags.to_vec())], "{when}, again {name}");
                    drop(repo);
                    std::fs::remove_dir_all(fresh).unwrap();
                    // The next round is on a store that has not seen this one.
                    std::fs::remove_dir_all(machine).unwrap();
                    copy_dir(&cache, machine);
                }
            }
        }
        call += 1;
    }
    eprintln!("{cases} cases, {both_seen} of them left both snapshots");
    assert!(both_seen > 0);
}

/// Forgetting writes a mark for each snapshot. Wherever it dies, what is to be kept is there and whole, and running it again
/// forgets the rest.
#[test]
fn forgetting_that_dies_loses_nothing_and_can_be_repeated() {
    let dir = scratch();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let store = MemoryStore::new();
    SmallRepo::init(&store, &admin()).unwrap();
    let cache = dir.path().join("cache");
    let nights: Vec<SessionId> = (0..4)
        .map(|night| {
            std::fs::write(source.join("file"), noise(night, 2_000)).unwrap();
            let report = back_up(Arc::new(store.clone()), &cache, &admin(), &source).unwrap();
            report.snapshot.unwrap()
        })
        .collect();
    let policy = Policy {
        last: Some(1),
        ..Policy::default()
    };
    let options = forget::Options {
        choice: forget::Choice::Policy(Box::new(policy)),
        filter: Default::default(),
        group_by: forget::GroupBy::SOURCE,
        removal_percent_max: 25,
        now: host::now(),
        zone: jiff::tz::TimeZone::UTC,
    };
    let forget = |store: Arc<dyn Store>, cache: &Path| -> Result<forget::Report, OpError> {
        let repo = try_open(store, cache, &admin())?;
        let history = repo.sync_history()?;
        let plan = forget::plan(&repo, history, &options)?;
        forget::carry_out(&repo, plan, &Progress::default())
    };
    let (mut call, mut open, mut cases, mut some_left) = (0, true, 0, 0);
    while open {
        open = false;
        for fault in Fault::at(call) {
            cases += 1;
            let store = store.fork();
            let machine = dir.path().join(format!("machine{cases}"));
            copy_dir(&cache, &machine);
            let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
            let result = forget(faulty.clone(), &machine);
            if !faulty.has_failed() {
                assert_eq!(result.unwrap().forgotten, nights[..3]);
                continue;
            }
            open = true;
            let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
            let other = dir.path().join("other");
            let repo = try_open(Arc::new(store.clone()), &other, &admin()).unwrap();
            let report = check::run(&repo, &check::Options::default(), &Progress::default()).unwrap();
            assert!(report.findings.is_empty(), "{when}: {:?}", report.findings);
            let snapshots = repo.snapshots().unwrap();
            some_left += usize::from((2..4).contains(&snapshots.len()));
            assert_eq!(snapshots.last().unwrap().id, nights[3], "{when}");
            for snapshot in &snapshots {
                let night = nights.iter().position(|id| *id == snapshot.id).unwrap();
                let mut out = Vec::new();
                let path = source.join("file");
                let path = path.as_os_str().as_encoded_bytes();
                dump::file(&repo, snapshot, path, 1, &mut out, &Progress::default()).unwrap();
                assert!(out == noise(night as u64, 2_000), "{when}");
            }
            drop(repo);
            for machine in [&machine, &other] {
                let store = store.fork();
                forget(Arc::new(store.clone()), machine)
                    .unwrap_or_else(|error| panic!("{when}, again: {}", check::chain(&error)));
                let repo = try_open(Arc::new(store), &dir.path().join("fresh"), &admin()).unwrap();
                repo.sync_history().unwrap();
                let left: Vec<SessionId> = repo.snapshots().unwrap().iter().map(|snapshot| snapshot.id).collect();
                assert_eq!(left, nights[3..], "{when}");
                drop(repo);
                std::fs::remove_dir_all(dir.path().join("fresh")).unwrap();
                std::fs::remove_dir_all(machine).unwrap();
            }
        }
        call += 1;
    }
    eprintln!("{cases} cases, {some_left} of them left some of what was to go");
    assert!(some_left > 0);
}

/// Another machine makes a whole backup between any two calls of this one: with a key of its own, and with the same
/// key.
#[test]
fn two_machines_at_once_both_publish() {
    let scene = Scene::new();
    for credential in [writer(), admin()] {
        for call in 0..scene.calls {
            let (store, cache) = scene.fork();
            let other_cache = scene.fresh();
            let visit = {
                let (store, cache, source) = (store.clone(), other_cache.clone(), scene.source());
                let credential = credential.clone();
                move || drop(back_up(Arc::new(store), &cache, &credential, &source).expect("the other machine"))
            };
            let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
            let when = format!("visited at call {call}");
            back_up(shared.clone(), &cache, &admin(), &scene.source())
                .unwrap_or_else(|error| panic!("{when} {:?}: {}", shared.log().last(), check::chain(&error)));
            let when = format!("{when} ({})", shared.log()[call as usize]);
            assert_eq!(scene.assert_sound(&store, &when), 2, "{when}");
            // Both go on with what they know.
            scene.assert_next_run_works(&store, &cache, &when);
            back_up(Arc::new(store.clone()), &other_cache, &credential, &scene.source()).unwrap();
            if call % 8 == 0 {
                assert_eq!(scene.assert_sound(&store, &when), 4, "{when}");
            }
            std::fs::remove_dir_all(&cache).unwrap();
            std::fs::remove_dir_all(&other_cache).unwrap();
        }
    }
}

/// Another machine works while this one lies dead.
#[test]
fn another_machine_goes_on_after_a_crash() {
    let scene = Scene::new();
    for call in 0..scene.calls {
        let (store, cache) = scene.fork();
        let fault = Fault {
            call,
            after_effect: true,
            lasting: true,
        };
        let Some((_, _, log)) = scene.run_with(&store, &cache, fault) else {
            continue;
        };
        let when = format!("{fault:?} ({})", log[call as usize]);
        back_up(Arc::new(store.clone()), &scene.fresh(), &writer(), &scene.source()).unwrap();
        scene.assert_sound(&store, &when);
        scene.assert_next_run_works(&store, &cache, &when);
        assert!(scene.assert_sound(&store, &when) >= 2, "{when}");
        std::fs::remove_dir_all(&cache).unwrap();
    }
}

/// Maintenance declares a running session dead: it publishes nothing, says so, and the next run uses what it uploaded.
#[test]
fn fenced_session_publishes_nothing_and_the_next_run_reuses_its_packs() {
    let scene = Scene::new();
    let (store, cache) = scene.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    back_up(counted.clone(), &cache, &admin(), &scene.source()).unwrap();
    let commit = counted
        .log()
        .iter()
        .position(|call| call.starts_with("writing snap/"))
        .unwrap() as u64;

    let (store, cache) = scene.fork();
    let fence = {
        let (store, cache) = (store.clone(), scene.fresh());
        move || {
            let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
            repo.sync_history().unwrap();
            let known = repo.index.outcomes().unwrap();
            let newest = known
                .iter()
                .filter(|known| known.kid == repo.kid)
                .max_by_key(|known| known.sequence)
                .unwrap();
            let mut sessions = Vec::new();
            store
                .list(&Prefix::new("sess/").unwrap(), &mut |listed| {
                    if let Some(ObjectName::Session(session, 0)) = ObjectName::parse(listed.key.as_str()) {
                        sessions.push(session);
                    }
                })
                .unwrap();
            let open = sessions
                .into_iter()
                .find(|session| known.iter().all(|known| known.session != *session))
                .unwrap();
            let outcome = larder::pure::format::outcome::Outcome {
                kid: repo.kid,
                created: host::now(),
                kind: OutcomeKind::Fence,
                session: open,
                accepted: vec![(0, 0)],
                run: None,
                manifest: None,
                sequence: newest.sequence + 1,
                previous: Some(newest.hash),
                acked: Vec::new(),
                pins: Vec::new(),
                source: None,
                flags: 0,
                chain_floors: Vec::new(),
            };
            let sealed = outcome.encode(None, &repo.keys, &repo.signer, host::random()).unwrap();
            create_new(&store, &ObjectName::Outcome(open), sealed, "a fence").unwrap();
        }
    };
    let shared = Arc::new(FaultStore::visited_at(store.clone(), commit, fence));
    let error = back_up(shared, &cache, &admin(), &scene.source()).unwrap_err();
    assert!(
        matches!(error, OpError::Repo(RepoError::Fenced(_))),
        "{}",
        check::chain(&error)
    );
    assert_eq!(error.kind(), Kind::Refused);
    assert_eq!(scene.assert_sound(&store, "fenced"), 0);
    let again = scene.assert_next_run_works(&store, &cache, "fenced");
    assert!(again < 64_000, "{again} bytes of {} stored again", scene.full);
    assert_eq!(scene.assert_sound(&store, "fenced"), 1);
}

mod checkpoints {
    //! Runs that end one session with a checkpoint and go on in the next.

    use super::*;
    use larder::pure::format::mark::{Drop, DropKind};
    use larder::repo::snapshots::Snapshot;

    /// The second night's work is the root, `changes`, `new`, `old`, `sub` and `sub/new`, in this order. A checkpoint
    /// comes after the second, the third and the fourth.
    const EVERY_LARGER_FILE: backup::Interval = backup::Interval {
        time: std::time::Duration::MAX,
        bytes: 25_000,
    };

    fn scene() -> Scene {
        Scene::with_checkpoints(Some(EVERY_LARGER_FILE))
    }

    #[test]
    fn every_call_of_a_run_with_checkpoints_may_fail() {
        every_call_may_fail(&scene());
    }

    fn with_checkpoints(options: &mut backup::Options) {
        options.checkpoints = Some(EVERY_LARGER_FILE);
    }

    /// The number of the call with which a run on this machine publishes its n-th outcome.
    fn publication(
        scene: &Scene,
        store: &MemoryStore,
        cache: &Path,
        n: usize,
        adjust: fn(&mut backup::Options),
    ) -> u64 {
        let trial = scene.fresh();
        if cache.exists() {
            copy_dir(cache, &trial);
        }
        let counted = Arc::new(FaultStore::new(store.fork(), None));
        back_up_with(counted.clone(), &trial, &admin(), &scene.source(), adjust).unwrap();
        let log = counted.log();
        let mut found = (0..).zip(&log).filter(|(_, call)| call.starts_with("writing snap/"));
        found.nth(n).unwrap().0
    }

    /// A run that dies when it has published its n-th outcome.
    fn die_after(scene: &Scene, store: &MemoryStore, cache: &Path, n: usize, adjust: fn(&mut backup::Options)) {
        let fault = Fault {
            call: publication(scene, store, cache, n, adjust),
            after_effect: true,
            lasting: true,
        };
        let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
        let result = back_up_with(faulty.clone(), cache, &admin(), &scene.source(), adjust);
        assert!(result.is_err() && faulty.has_failed());
    }

    fn snapshots(scene: &Scene, store: &MemoryStore) -> Vec<Snapshot> {
        let repo = try_open(Arc::new(store.clone()), &scene.fresh(), &admin()).unwrap();
        repo.sync_history().unwrap();
        repo.snapshots().unwrap()
    }

    /// A run dies after its second checkpoint. The next one reads what is in neither that nor the last complete
    /// snapshot.
    #[test]
    fn next_run_does_not_read_again_what_a_checkpoint_holds() {
        let scene = scene();
        for same_machine in [true, false] {
            let (store, cache) = scene.fork();
            die_after(&scene, &store, &cache, 1, with_checkpoints);
            assert_eq!(scene.assert_sound(&store, "died after a checkpoint"), 0);
            let before = snapshots(&scene, &store);
            let partial: Vec<_> = before.iter().filter(|snapshot| snapshot.is_partial()).collect();
            assert_eq!(partial.len(), 2);
            assert!(partial[0].manifest.roots[0].bytes < partial[1].manifest.roots[0].bytes);
            assert!(partial.iter().all(|snapshot| snapshot.manifest.resume.is_some()));
            let cache = if same_machine { cache } else { scene.fresh() };
            let report = back_up(Arc::new(store.clone()), &cache, &admin(), &scene.source()).unwrap();
            assert_eq!(report.resumed, [partial[1].id]);
            assert_eq!(report.parent, Some(scene.first));
            let stats = &report.stats;
            assert_eq!(
                (
                    stats.files_new,
                    stats.files_changed,
                    stats.files_unmodified,
                    stats.bytes_read
                ),
                (1, 1, 3, 300_000),
                "{stats:?}"
            );
            assert_eq!(scene.assert_sound(&store, "after the next run"), 1);
            // What is complete takes the place of the checkpoints.
            let after = snapshots(&scene, &store);
            assert_eq!(
                after.iter().filter(|snapshot| snapshot.is_superseded(&after)).count(),
                2
            );
            let report = back_up(Arc::new(store.clone()), &cache, &admin(), &scene.source()).unwrap();
            assert_eq!((report.resumed.len(), report.stats.bytes_read), (0, 0));
        }
    }

    /// A run that reads everything once more, and dies earlier than the one before, does not hide what that had done.
    #[test]
    fn next_run_goes_on_from_the_newest_and_from_the_largest_checkpoint() {
        let scene = scene();
        let (store, cache) = scene.fork();
        die_after(&scene, &store, &cache, 1, with_checkpoints);
        let largest = snapshots(&scene, &store).pop().unwrap();
        // Another machine, which has no crashed session to end first.
        die_after(&scene, &store, &scene.fresh(), 0, |options| {
            with_checkpoints(options);
            options.parent = backup::ParentChoice::None;
        });
        let newest = snapshots(&scene, &store).pop().unwrap();
        assert!(newest.is_partial() && newest.id != largest.id);
        assert!(newest.manifest.roots[0].bytes < largest.manifest.roots[0].bytes);
        let report = back_up(Arc::new(store), &cache, &admin(), &scene.source()).unwrap();
        assert_eq!(report.resumed, [newest.id, largest.id]);
        assert_eq!(report.stats.bytes_read, 300_000, "{:?}", report.stats);
    }

    /// Somebody forgets what the run builds on, just before or just after the checkpoint is published.
    #[test]
    fn run_ends_when_a_snapshot_that_it_builds_on_is_forgotten() {
        let scene = scene();
        for is_checkpoint in [false, true] {
            let (store, cache) = scene.fork();
            let call = publication(&scene, &store, &cache, 0, with_checkpoints) + u64::from(is_checkpoint);
            let forget = {
                let (store, cache) = (store.clone(), scene.fresh());
                move || {
                    let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
                    repo.sync_history().unwrap();
                    let newest = repo.snapshots().unwrap().pop().unwrap();
                    assert_eq!(newest.is_partial(), is_checkpoint);
                    let dropped = Drop {
                        kid: repo.kid,
                        created: host::now(),
                        kind: DropKind::Forget,
                        session: newest.id,
                        reason: String::new(),
                    };
                    let body = dropped.encode(&repo.keys, &repo.signer, host::random()).unwrap();
                    create_new(&store, &ObjectName::Drop(newest.id), body, "a drop").unwrap();
                }
            };
            let shared = Arc::new(FaultStore::visited_at(store.clone(), call, forget));
            let error = back_up_with(shared, &cache, &admin(), &scene.source(), with_checkpoints).unwrap_err();
            assert!(
                matches!(error, OpError::Repo(RepoError::Unpinned(_))),
                "{}",
                check::chain(&error)
            );
            assert_eq!(error.kind(), Kind::Refused);
            let left = snapshots(&scene, &store);
            assert_eq!(left.len(), 1);
            assert_eq!(left[0].is_partial(), !is_checkpoint);
            let report = back_up(Arc::new(store.clone()), &cache, &admin(), &scene.source()).unwrap();
            assert_eq!(report.resumed.is_empty(), is_checkpoint);
            assert_no_open_sessions(&scene, &store, "after the next run");
            assert_eq!(snapshots(&scene, &store).len(), 2);
        }
    }

    #[test]
    fn stream_has_no_checkpoints() {
        let scene = scene();
        let (store, cache) = scene.fork();
        let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
        let arguments = ["-c".to_owned(), "head -c 300000 /dev/zero".to_owned()];
        let stream = larder::source::stream::Stream::command(b"zeros", "sh", &arguments).unwrap();
        let options = backup::Options {
            checkpoints: Some(backup::Interval {
                time: std::time::Duration::ZERO,
                bytes: 0,
            }),
            ..options()
        };
        let report = backup::run(&repo, backup::Input::Stream(stream), &options, &Progress::default()).unwrap();
        assert!(report.snapshot.is_some() && report.checkpoints.is_empty());
        assert_eq!(snapshots(&scene, &store).len(), 2);
    }
}

/// Making a repository that fails leaves no repository, or a whole one.
#[test]
fn init_that_fails_leaves_nothing_that_opens_or_everything() {
    let cost = larder::testing::small::CHEAP;
    let (mut call, mut open) = (0, true);
    while open {
        open = false;
        for fault in Fault::at(call) {
            let store = MemoryStore::new();
            let faulty = FaultStore::new(store.clone(), Some(fault));
            let result = open::init(&faulty, &admin(), cost);
            if !faulty.has_failed() {
                continue;
            }
            open = true;
            let dir = scratch();
            match try_open(Arc::new(store.clone()), dir.path(), &admin()) {
                Ok(_) => assert!(result.is_ok() || faulty.log()[call as usize].starts_with("writing config")),
                Err(RepoError::NotARepository { .. }) => {
                    assert!(result.is_err());
                    open::init(&store, &admin(), cost).unwrap();
                    try_open(Arc::new(store), scratch().path(), &admin()).unwrap();
                }
                Err(error) => panic!("{fault:?}: {}", check::chain(&error)),
            }
        }
        call += 1;
    }
}

mod bad_input {
    //! What users and newer versions hand to larder by mistake: each is refused with its own kind of error and a next
    //! step.

    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        store: MemoryStore,
        small: SmallRepo,
    }

    fn place() -> Place {
        let store = MemoryStore::new();
        let small = SmallRepo::init(&store, &admin()).unwrap();
        Place {
            dir: scratch(),
            store,
            small,
        }
    }

    impl Place {
        fn open(&self, cache: &str, credential: &Credential) -> Result<Repo, RepoError> {
            try_open(Arc::new(self.store.clone()), &self.dir.path().join(cache), credential)
        }

        fn source(&self) -> PathBuf {
            let source = self.dir.path().join("source");
            std::fs::create_dir_all(&source).unwrap();
            std::fs::write(source.join("file"), noise(1, 3000)).unwrap();
            source
        }

        fn back_up(&self, cache: &str) -> Result<SessionId, OpError> {
            let cache = self.dir.path().join(cache);
            let report = back_up(Arc::new(self.store.clone()), &cache, &admin(), &self.source())?;
            Ok(report.snapshot.unwrap())
        }
    }

    /// The error has this kind, and says what to do next.
    fn assert_refused<T>(result: Result<T, RepoError>, kind: Kind) -> RepoError {
        let Err(error) = result else {
            panic!("it was not refused")
        };
        assert_eq!(error.kind(), kind, "{}", check::chain(&error));
        assert!(error.hint().is_some(), "no next step: {}", check::chain(&error));
        error
    }

    #[test]
    fn configuration_of_a_newer_version_is_refused() {
        let mut place = place();
        place.back_up("machine").unwrap();
        place
            .small
            .change_config(&place.store.clone(), |config| config.features.incompat = 1 << 9)
            .unwrap();
        for cache in ["machine", "new machine"] {
            let error = assert_refused(place.open(cache, &admin()), Kind::Usage);
            assert!(error.hint().unwrap().contains("newer version"), "{error}");
        }
    }

    #[test]
    fn repository_that_may_only_be_read_is_read_and_not_written() {
        let mut place = place();
        let snapshot = place.back_up("machine").unwrap();
        place
            .small
            .change_config(&place.store.clone(), |config| config.features.ro_compat = 1 << 9)
            .unwrap();
        let error = place.back_up("machine").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{}", check::chain(&error));
        let repo = place.open("machine", &admin()).unwrap();
        repo.sync_history().unwrap();
        assert_eq!(repo.snapshots().unwrap()[0].id, snapshot);
    }

    #[test]
    fn features_that_do_not_concern_this_version_are_ignored() {
        let mut place = place();
        place
            .small
            .change_config(&place.store.clone(), |config| {
                config.features.compat = 1 << 9;
                config.features.gc_compat = 1 << 9;
            })
            .unwrap();
        place.back_up("machine").unwrap();
    }

    #[test]
    fn wrong_key_and_wrong_sort_of_key_are_told_apart() {
        let place = place();
        let error = assert_refused(
            place.open("machine", &Credential::KeyFile(Secret::new([9; 32]))),
            Kind::Auth,
        );
        assert!(matches!(error, RepoError::WrongKey));
        let password = Credential::Password(zeroize::Zeroizing::new(b"secret".to_vec()));
        let error = assert_refused(place.open("machine", &password), Kind::Auth);
        assert!(matches!(error, RepoError::NoSuchProtector(_)));
    }

    #[test]
    fn place_without_a_repository_is_not_a_repository() {
        let store = MemoryStore::new();
        let error = assert_refused(try_open(Arc::new(store), scratch().path(), &admin()), Kind::Unavailable);
        assert!(matches!(error, RepoError::NotARepository { .. }));
    }

    #[test]
    fn second_init_is_refused() {
        let place = place();
        let error = assert_refused::<RepoId>(
            open::init(&place.store, &admin(), larder::testing::small::CHEAP),
            Kind::Usage,
        );
        assert!(matches!(error, RepoError::AlreadyARepository { .. }));
    }

    #[test]
    fn another_repository_at_the_same_address_is_noticed() {
        let (mine, other) = (place(), place());
        mine.back_up("machine").unwrap();
        let cache = mine.dir.path().join("machine");
        let error = assert_refused(try_open(Arc::new(other.store), &cache, &admin()), Kind::Tamper);
        assert!(matches!(error, RepoError::OtherRepository { .. }));
    }

    #[test]
    fn configuration_that_went_back_is_noticed() {
        let mut place = place();
        let old = place.store.fork();
        place.small.change_config(&place.store.clone(), |_| {}).unwrap();
        place.open("machine", &admin()).unwrap();
        let cache = place.dir.path().join("machine");
        let error = assert_refused(try_open(Arc::new(old), &cache, &admin()), Kind::Tamper);
        assert!(matches!(error, RepoError::ConfigRollback { seen: 1, found: 0 }));
    }

    /// The admin's grant says which configuration was there when it was made.
    #[test]
    fn configuration_older_than_the_grant_is_noticed_on_a_new_machine() {
        let mut place = place();
        place
            .small
            .add_writer(&place.store.clone(), "other", &writer())
            .unwrap();
        place
            .store
            .remove(&[StoreKey::new("config/00000001").unwrap()])
            .unwrap();
        let error = assert_refused(place.open("new machine", &admin()), Kind::Tamper);
        assert!(
            matches!(error, RepoError::ConfigRollback { seen: 1, found: 0 }),
            "{error}"
        );
    }

    #[test]
    fn configuration_by_somebody_else_is_noticed() {
        let (mine, other) = (place(), place());
        // Everything of another repository's, under the first one's name and with its key file.
        let name = StoreKey::new("config/00000000").unwrap();
        mine.store
            .overwrite(&name, other.store.read(&name, Part::Whole).unwrap());
        let Err(error) = mine.open("new machine", &admin()) else {
            panic!("it was not refused")
        };
        assert!(
            matches!(error.kind(), Kind::Tamper | Kind::Auth | Kind::Damage),
            "{}",
            check::chain(&error)
        );
    }

    #[test]
    fn gap_in_the_chain_is_tampering_and_a_backup_says_so() {
        let place = place();
        let gone = place.back_up("machine").unwrap();
        place.back_up("machine").unwrap();
        place
            .store
            .remove(&[StoreKey::new(format!("snap/{gone}")).unwrap()])
            .unwrap();
        for cache in ["machine", "new machine"] {
            let repo = place.open(cache, &admin()).unwrap();
            let report = check::run(
                &repo,
                &check::Options {
                    threads: 1,
                    ..Default::default()
                },
                &Progress::default(),
            );
            assert!(report.unwrap().findings.iter().any(|finding| finding.tamper), "{cache}");
        }
        let report = back_up(
            Arc::new(place.store.clone()),
            &place.dir.path().join("machine"),
            &admin(),
            &place.source(),
        )
        .unwrap();
        assert!(!report.gaps.is_empty());
    }

    #[test]
    fn unknown_and_ambiguous_snapshots_are_usage_errors() {
        let place = place();
        place.back_up("machine").unwrap();
        place.back_up("machine").unwrap();
        let repo = place.open("machine", &admin()).unwrap();
        repo.sync_history().unwrap();
        let find = |text: &str| repo.resolve(text, &Default::default(), &|_| None);
        assert!(matches!(
            assert_refused(find("ffffffff00"), Kind::Usage),
            RepoError::NoSuchSnapshot(_)
        ));
        // All snapshots of one key begin with the same four bytes.
        let tag = &repo.snapshots().unwrap()[0].id.to_string()[..8];
        assert!(matches!(
            assert_refused(find(tag), Kind::Usage),
            RepoError::AmbiguousSnapshot { .. }
        ));
    }

    #[test]
    fn a_truncated_object_that_opens_the_repository_is_damage() {
        let place = place();
        for (name, kind) in [
            ("config/00000000", Kind::Damage),
            ("keys/", Kind::Auth),
            ("grants/", Kind::Damage),
        ] {
            let store = place.store.fork();
            let mut key = None;
            store
                .list(&Prefix::new(name).unwrap(), &mut |listed| key = Some(listed.key))
                .unwrap();
            let key = key.unwrap();
            let body = store.read(&key, Part::Whole).unwrap();
            store.overwrite(&key, body.slice(..body.len() / 2));
            let Err(error) = try_open(Arc::new(store), scratch().path(), &admin()) else {
                panic!("{name} was accepted")
            };
            assert_eq!(error.kind(), kind, "{name}: {}", check::chain(&error));
        }
    }
}
