//! Parity beside packs (format-spec chapter 18): real directories, whose files are damaged as disks damage them.

use super::{Tree, back_up, keys, try_back_up};
use crate::fault::{admin, assert_no_false_alarm, copy_dir, scratch, try_open};
use crate::story::{noise, restore_options, tree};
use larder::edge::host;
use larder::edge::store::local::LocalStore;
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Store, StoreKey};
use larder::ops::repair::{index, packs, snapshots};
use larder::ops::{OpError, Progress, check, hold, parity, prune, replicate};
use larder::pure::chunk::Profile;
use larder::pure::format::mark::{Drop, DropKind};
use larder::pure::format::name::ObjectName;
use larder::pure::format::parity::has_sidecar;
use larder::pure::id::SessionId;
use larder::repo::Repo;
use larder::repo::open::create_new;
use larder::testing::fault_store::{Fault, FaultStore};
use larder::testing::small::SmallRepo;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A repository in a directory, with parity.
struct Vault {
    dir: tempfile::TempDir,
    copies: Cell<u32>,
    nights: Vec<(SessionId, Tree)>,
}

/// A place and a machine's cache.
struct Copy {
    place: PathBuf,
    cache: PathBuf,
}

fn store(place: &Path) -> Arc<dyn Store> {
    Arc::new(LocalStore::new(place, true))
}

fn open(store: Arc<dyn Store>, cache: &Path) -> Repo {
    try_open(store, cache, &admin()).unwrap()
}

impl Vault {
    /// Small chunks in packs of at most so many bytes.
    fn new(pack_bytes: u64) -> Vault {
        let vault = Vault {
            dir: scratch(),
            copies: Cell::new(0),
            nights: Vec::new(),
        };
        std::fs::create_dir(vault.source()).unwrap();
        let store = LocalStore::new(vault.place(), true);
        store.prepare().unwrap();
        let mut small = SmallRepo::init(&store, &admin()).unwrap();
        small
            .change_config(&store, |config| {
                let profile = Profile::new(2 << 10, 4 << 10, 16 << 10, 0xfff << 51, 0x3ff << 53);
                config.chunkers = vec![profile.unwrap()];
                config.data_pack_bytes = pack_bytes;
                config.lanes = 1;
            })
            .unwrap();
        vault
    }

    /// Two nights in packs of which every one is small enough to have a plain copy; something is held, something dropped.
    fn small() -> Vault {
        let mut vault = Vault::new(1 << 20);
        vault.turn_on();
        vault.write("a", &noise(1, 20_000));
        vault.night();
        vault.write("b", &noise(2, 12_000));
        vault.night();
        let repo = open(store(&vault.place()), &vault.cache());
        hold::hold(&repo, &vault.nights[1].0, None, "the auditors").unwrap();
        vault
    }

    /// One night, in one large pack.
    fn large(bytes: usize) -> Vault {
        let mut vault = Vault::new(16 << 20);
        vault.turn_on();
        vault.write("large", &noise(1, bytes));
        vault.night();
        vault
    }

    fn turn_on(&self) {
        let repo = open(store(&self.place()), &self.cache());
        let report = parity::run(&repo, parity::Options::default(), &Progress::default()).unwrap();
        assert!(report.turned_on && report.damaged.is_empty(), "{report:?}");
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("place")
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn fresh(&self) -> PathBuf {
        self.copies.set(self.copies.get() + 1);
        self.dir.path().join(format!("copy{}", self.copies.get()))
    }

    fn fork(&self) -> Copy {
        let (place, cache) = (self.fresh(), self.fresh());
        copy_dir(&self.place(), &place);
        copy_dir(&self.cache(), &cache);
        Copy { place, cache }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.source().join(name), bytes).unwrap();
    }

    fn night(&mut self) {
        let report = back_up(store(&self.place()), &self.cache(), &admin(), &self.source());
        self.nights.push((report.snapshot.unwrap(), tree(&self.source())));
    }

    /// The files that a machine with nothing but the key gets back as they were. None has another content.
    fn restorable(&self, place: &Path, when: &str) -> BTreeSet<(SessionId, PathBuf)> {
        let cache = self.fresh();
        let repo = open(store(place), &cache);
        let _ = repo.sync_history().unwrap();
        let mut restorable = BTreeSet::new();
        for (id, expected) in &self.nights {
            let Ok(snapshot) = repo.snapshot(id) else { continue };
            let root = snapshot.manifest.roots[0].path.clone();
            let target = cache.join("restored");
            let options = restore_options(snapshot, Some(root), target.clone());
            larder::ops::restore::run(&repo, &options, &Progress::default()).unwrap();
            for (path, content) in tree(&target) {
                assert!(expected[&path] == content, "{when}: {id} {}", path.display());
                restorable.insert((*id, path));
            }
            std::fs::remove_dir_all(&target).unwrap();
        }
        drop(repo);
        std::fs::remove_dir_all(&cache).unwrap();
        restorable
    }

    fn everything(&self) -> BTreeSet<(SessionId, PathBuf)> {
        let of_night =
            |(id, files): &(SessionId, Tree)| files.keys().map(|path| (*id, path.clone())).collect::<Vec<_>>();
        self.nights.iter().flat_map(of_night).collect()
    }

    /// Reads all data, on a machine that knows nothing.
    fn check(&self, place: &Path) -> check::Report {
        let cache = self.fresh();
        let report = check_on(&open(store(place), &cache));
        std::fs::remove_dir_all(&cache).unwrap();
        report
    }

    fn assert_sound(&self, place: &Path, when: &str) {
        let report = self.check(place);
        assert!(report.is_sound(), "{when}: {:?}", report.findings);
        assert_eq!(self.restorable(place, when), self.everything(), "{when}");
    }
}

impl Copy {
    fn gone(self) {
        std::fs::remove_dir_all(&self.place).unwrap();
        std::fs::remove_dir_all(&self.cache).unwrap();
    }
}

fn check_on(repo: &Repo) -> check::Report {
    let options = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    check::run(repo, &options, &Progress::default()).unwrap()
}

fn objects(place: &Path) -> BTreeMap<String, Vec<u8>> {
    let keys = keys(&*store(place), "").into_iter();
    keys.map(|key| (key.to_string(), std::fs::read(place.join(key.as_str())).unwrap()))
        .collect()
}

/// Every object that can have a sidecar has one, and there is none besides.
fn assert_sidecars(place: &Path, when: &str) {
    let all = objects(place);
    let expected: Vec<String> = all
        .keys()
        .filter(|name| ObjectName::parse(name).is_some_and(|name| has_sidecar(&name)))
        .map(|name| format!("par/{name}"))
        .collect();
    let there: Vec<&String> = all.keys().filter(|name| name.starts_with("par/")).collect();
    let mut expected: Vec<&String> = expected.iter().collect();
    expected.sort();
    assert_eq!(there, expected, "{when}");
}

fn repair_options() -> packs::Options {
    packs::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        uploads: 1,
        ..Default::default()
    }
}

fn repair_packs(repo: &Repo) -> Result<packs::Report, OpError> {
    let plan = packs::plan(repo, &repair_options(), &Progress::default())?;
    plan.carry_out(repo, &repair_options(), &Progress::default())
}

/// All that repair does, in the order in which somebody would; returns what parity has put back.
fn repair(store: Arc<dyn Store>, cache: &Path) -> Result<Vec<ObjectName>, OpError> {
    let repo = try_open(store, cache, &admin())?;
    let progress = Progress::default();
    let plan = snapshots::plan(&repo, 1, &progress)?;
    let mut healed = snapshots::put_back(&repo, &plan, &progress)?;
    let plan = index::plan(&repo, &progress)?;
    healed.extend(index::run(&repo, &plan, 1, &progress)?.healed);
    healed.extend(repair_packs(&repo)?.healed);
    Ok(healed)
}

fn largest_pack(place: &Path) -> String {
    let size = |key: &StoreKey| std::fs::metadata(place.join(key.as_str())).unwrap().len();
    keys(&*store(place), "data/")
        .into_iter()
        .max_by_key(size)
        .unwrap()
        .to_string()
}

fn damage(place: &Path, name: &str, harm: impl FnOnce(&mut Vec<u8>)) {
    let path = place.join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    harm(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}

/// What disks and people do to a file, and repair makes undone.
#[test]
fn flips_bursts_and_cuts_of_a_large_pack_are_healed_byte_for_byte() {
    let vault = Vault::large(15 << 20);
    let name = largest_pack(&vault.place());
    let before = objects(&vault.place());
    let bytes = before[&name].len();
    assert!(bytes > 14 << 20, "{bytes}");
    assert!(before[&format!("par/{name}")].len() * 100 < bytes * 5);
    type Harm = Box<dyn Fn(&mut Vec<u8>)>;
    let burst = |start: usize, length: usize| -> Harm { Box::new(move |bytes| bytes[start..start + length].fill(0)) };
    let harms: [(&str, Harm); 8] = [
        (
            "flipped bits",
            Box::new(|bytes| (0..40).for_each(|number| bytes[number * 350_001 + 77] ^= 1 << (number % 8))),
        ),
        ("a burst at the beginning", burst(0, 256 << 10)),
        ("a burst in the middle", burst(7_000_001, 256 << 10)),
        ("a burst at the end", burst(bytes - (256 << 10), 256 << 10)),
        (
            "the longest burst",
            burst(3 << 20, 4 * bytes.div_ceil(100 * 4096) * 4096),
        ),
        ("cut", Box::new(move |bytes| bytes.truncate(bytes.len() - 300_000))),
        ("longer", Box::new(|bytes| bytes.extend_from_slice(&noise(9, 10_000)))),
        ("one sector in ten megabytes", burst(9 << 20, 512)),
    ];
    for (when, harm) in harms {
        let copy = vault.fork();
        damage(&copy.place, &name, harm);
        assert!(!vault.check(&copy.place).is_sound(), "{when}");
        let cache = vault.fresh();
        let repo = open(store(&copy.place), &cache);
        let plan = packs::plan(&repo, &repair_options(), &Progress::default()).unwrap();
        let said = plan.dry_run(&repo, &Progress::default()).unwrap();
        assert_eq!(
            (said.healed.len(), said.lost.len(), said.copied),
            (1, 0, 0),
            "{when}: {said:?}"
        );
        assert_ne!(
            objects(&copy.place)[&name],
            before[&name],
            "{when}: a dry run writes nothing"
        );
        let report = repair_packs(&repo).unwrap();
        assert_eq!(report.healed.len(), 1, "{when}: {report:?}");
        assert_eq!(report.healed[0].to_string(), name, "{when}");
        assert_eq!((report.lost.len(), report.copied), (0, 0), "{when}");
        assert!(report.after.is_sound(), "{when}: {:?}", report.after.findings);
        assert!(
            objects(&copy.place) == before,
            "{when}: everything is as before, and nothing is condemned"
        );
        // This machine trusts the pack again.
        drop(repo);
        let again = back_up(store(&copy.place), &cache, &admin(), &vault.source());
        assert_eq!(again.stats.chunks_new, 0, "{when}");
        vault.assert_sound(&copy.place, when);
        copy.gone();
    }
}

/// Objects below 64 KiB have a copy: whatever becomes of them, it is put back.
#[test]
fn small_objects_come_back_even_if_they_are_gone() {
    let vault = Vault::small();
    let before = objects(&vault.place());
    assert_sidecars(&vault.place(), "before");
    let mut cases = 0;
    for (name, body) in &before {
        let under = name.split('/').next().unwrap();
        if !["data", "meta", "idx", "snap", "hold"].contains(&under) {
            continue;
        }
        assert!(body.len() < 65_536 && before[&format!("par/{name}")] == *body, "{name}");
        for harm in ["gone", "rotten", "shorter"] {
            let when = format!("{name} {harm}");
            let copy = vault.fork();
            match harm {
                "gone" => std::fs::remove_file(copy.place.join(name)).unwrap(),
                "rotten" => damage(&copy.place, name, |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }),
                _ => damage(&copy.place, name, |bytes| bytes.truncate(bytes.len() - 1)),
            }
            if under == "snap" {
                // Also the newest, of which no other one tells.
                assert!(!vault.check(&copy.place).is_sound(), "{when}");
            }
            let healed = repair(store(&copy.place), &vault.fresh())
                .unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            let healed: Vec<String> = healed.iter().map(ToString::to_string).collect();
            assert_eq!(healed, [name.as_str()], "{when}");
            assert!(objects(&copy.place) == before, "{when}: everything is as before");
            vault.assert_sound(&copy.place, &when);
            copy.gone();
            cases += 1;
        }
    }
    assert!(cases >= 3 * 9, "{cases}");
}

/// What parity cannot do is named as without it, and nothing that could be read before cannot afterwards.
#[test]
fn too_much_damage_is_named_and_nothing_is_made_worse() {
    let vault = Vault::large(3 << 20);
    vault.assert_sound(&vault.place(), "before");
    let name = largest_pack(&vault.place());
    let bytes = objects(&vault.place())[&name].len();
    for case in ["too long a burst", "gone", "most of the parity, too", "no parity"] {
        let copy = vault.fork();
        let beside = format!("par/{name}");
        match case {
            "too long a burst" => damage(&copy.place, &name, |object| object[bytes / 2..][..200_000].fill(0)),
            "gone" => std::fs::remove_file(copy.place.join(&name)).unwrap(),
            _ => damage(&copy.place, &name, |object| object[bytes / 2..][..50_000].fill(0)),
        }
        match case {
            "most of the parity, too" => damage(&copy.place, &beside, |sidecar| {
                let quarter = sidecar.len() / 4;
                sidecar[quarter..].fill(0);
            }),
            "no parity" => std::fs::remove_file(copy.place.join(&beside)).unwrap(),
            _ => {}
        }
        let before = objects(&copy.place);
        let cache = vault.fresh();
        let repo = open(store(&copy.place), &cache);
        let report = repair_packs(&repo).unwrap();
        assert!(
            report.healed.is_empty() && !report.lost.is_empty(),
            "{case}: {report:?}"
        );
        assert_eq!(report.copied > 0, case != "gone", "{case}");
        assert!(!report.after.is_sound(), "{case}");
        let after = objects(&copy.place);
        assert!(
            before.iter().all(|(name, body)| after.get(name) == Some(body)),
            "{case}: only added"
        );
        drop(repo);
        // The next backup heals it as ever.
        back_up(store(&copy.place), &cache, &admin(), &vault.source());
        assert_eq!(vault.restorable(&copy.place, case), vault.everything(), "{case}");
        copy.gone();
    }
}

/// Which calls fail: all, or those that write and a sample of the others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Calls {
    All,
    Sample,
}

impl Calls {
    fn of(self, log: &[String]) -> Vec<u64> {
        let reads = |call: &str| {
            ["reading", "listing", "looking"]
                .iter()
                .any(|verb| call.starts_with(verb))
        };
        let is_tried = |(at, call): &(usize, &String)| self == Calls::All || !reads(call) || at % 16 == 0;
        let tried = log.iter().enumerate().filter(is_tried);
        tried.map(|(at, _)| at as u64).collect()
    }
}

#[test]
fn a_sample_of_calls_may_fail() {
    writing_parity_may_stop(Calls::Sample);
    a_backup_that_dies_leaves_no_sidecar_alone(Calls::Sample);
    healing_may_stop(Calls::Sample);
}

#[test]
#[ignore = "every call; run by scripts/nightly"]
fn every_call_may_fail() {
    writing_parity_may_stop(Calls::All);
    a_backup_that_dies_leaves_no_sidecar_alone(Calls::All);
    healing_may_stop(Calls::All);
}

/// Turning it on and writing it dies at any call: nothing is lost, and running it again completes it.
fn writing_parity_may_stop(calls: Calls) {
    let mut vault = Vault::new(1 << 20);
    vault.write("large", &noise(3, 150_000));
    vault.write("small", &noise(4, 900));
    vault.night();
    let run = |store: Arc<dyn Store>, cache: &Path| -> Result<parity::Report, OpError> {
        let repo = try_open(store, cache, &admin())?;
        parity::run(&repo, parity::Options::default(), &Progress::default())
    };
    let copy = vault.fork();
    let counted = Arc::new(FaultStore::new(store(&copy.place), None));
    let report = run(counted.clone(), &copy.cache).unwrap();
    assert!(
        report.turned_on && report.written > 5 && report.written == report.objects,
        "{report:?}"
    );
    assert_sidecars(&copy.place, "whole");
    let again = run(store(&copy.place), &copy.cache).unwrap();
    assert!(!again.turned_on && again.written == 0, "{again:?}");
    copy.gone();
    for call in calls.of(&counted.log()) {
        for fault in Fault::at(call).into_iter().filter(|fault| fault.lasting) {
            let copy = vault.fork();
            let faulty = Arc::new(FaultStore::new(store(&copy.place), Some(fault)));
            let result = run(faulty.clone(), &copy.cache);
            let when = format!("{fault:?} ({:?})", faulty.log().get(call as usize));
            assert_no_false_alarm(&result, &when);
            run(store(&copy.place), &copy.cache).unwrap();
            assert_sidecars(&copy.place, &when);
            if call % 8 == 0 {
                vault.assert_sound(&copy.place, &when);
                assert_eq!(vault.check(&copy.place).without_parity, Some(0), "{when}");
            }
            copy.gone();
        }
    }
}

/// A backup that dies at any call leaves at most objects without parity, and no parity without its object.
fn a_backup_that_dies_leaves_no_sidecar_alone(calls: Calls) {
    let vault = Vault::small();
    vault.write("new", &noise(77, 90_000));
    let run = |store: Arc<dyn Store>, cache: &Path| try_back_up(store, cache, &admin(), &vault.source());
    let copy = vault.fork();
    let counted = Arc::new(FaultStore::new(store(&copy.place), None));
    run(counted.clone(), &copy.cache).unwrap();
    assert_sidecars(&copy.place, "whole");
    copy.gone();
    for call in calls.of(&counted.log()) {
        for fault in Fault::at(call).into_iter().filter(|fault| fault.lasting) {
            let copy = vault.fork();
            let faulty = Arc::new(FaultStore::new(store(&copy.place), Some(fault)));
            let result = run(faulty.clone(), &copy.cache);
            let when = format!("{fault:?} ({:?})", faulty.log().get(call as usize));
            assert_no_false_alarm(&result.map(drop), &when);
            let repo = open(store(&copy.place), &copy.cache);
            let report = parity::run(&repo, parity::Options::default(), &Progress::default()).unwrap();
            assert_eq!((report.alone, report.damaged.len()), (0, 0), "{when}");
            assert!(report.written <= 3, "{when}: {report:?}");
            drop(repo);
            run(store(&copy.place), &copy.cache).unwrap();
            assert_sidecars(&copy.place, &when);
            copy.gone();
        }
    }
}

/// Repair dies at any call: what could be restored can be, and running it again heals everything.
fn healing_may_stop(calls: Calls) {
    let vault = Vault::small();
    let victims: Vec<String> = ["data/", "idx/", "snap/"]
        .iter()
        .map(|under| keys(&*store(&vault.place()), under)[0].to_string())
        .collect();
    let harmed = || {
        let copy = vault.fork();
        damage(&copy.place, &victims[0], |bytes| bytes[500] ^= 8);
        std::fs::remove_file(copy.place.join(&victims[1])).unwrap();
        damage(&copy.place, &victims[2], |bytes| bytes[70] ^= 8);
        copy
    };
    let copy = harmed();
    let before = vault.restorable(&copy.place, "before");
    let counted = Arc::new(FaultStore::new(store(&copy.place), None));
    assert_eq!(repair(counted.clone(), &vault.fresh()).unwrap().len(), 3);
    vault.assert_sound(&copy.place, "whole");
    let put_back = counted
        .log()
        .iter()
        .filter(|call| call.starts_with("putting back"))
        .count();
    assert_eq!(put_back, 3);
    copy.gone();
    for call in calls.of(&counted.log()) {
        for fault in Fault::at(call).into_iter().filter(|fault| fault.lasting) {
            let copy = harmed();
            let cache = vault.fresh();
            let faulty = Arc::new(FaultStore::new(store(&copy.place), Some(fault)));
            let result = repair(faulty.clone(), &cache);
            let log = faulty.log();
            let when = format!("{fault:?} ({:?})", log.get(call as usize));
            assert_no_false_alarm(&result.map(drop), &when);
            let is_writing = log
                .get(call as usize)
                .is_some_and(|call| call.starts_with("putting") || call.starts_with("writing"));
            if is_writing || call % 16 == 0 {
                assert!(vault.restorable(&copy.place, &when).is_superset(&before), "{when}");
            }
            repair(store(&copy.place), &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            if is_writing || call % 16 == 0 {
                vault.assert_sound(&copy.place, &when);
            }
            copy.gone();
            std::fs::remove_dir_all(&cache).unwrap();
        }
    }
}

/// The sidecars of swept packs go, before them; those of packs that are only lost stay, until they have brought them back.
#[test]
fn prune_takes_the_sidecars_of_what_it_sweeps_and_no_others() {
    let mut vault = Vault::new(1 << 20);
    vault.turn_on();
    for night in 0..2 {
        vault.write("of the night", &noise(10 + night, 20_000));
        vault.night();
    }
    let prune_all = |store: Arc<dyn Store>, cache: &Path| {
        let repo = try_open(store, cache, &admin())?;
        let options = prune::Options {
            threads: 1,
            uploads: 1,
            ..Default::default()
        };
        prune::run(&repo, &options, &Progress::default())
    };
    let repo = open(store(&vault.place()), &vault.cache());
    let (forgotten, _) = vault.nights.remove(0);
    let dropped = Drop {
        kid: repo.kid,
        created: host::now(),
        kind: DropKind::Forget,
        session: forgotten,
        reason: String::new(),
    };
    let body = dropped.encode(&repo.keys, &repo.signer, host::random()).unwrap();
    create_new(&*repo.store, &ObjectName::Drop(forgotten), body, "a drop").unwrap();
    drop(repo);
    assert_sidecars(&vault.place(), "before");

    // A pack that is needed, and lost: prune stops, and its sidecar stays.
    let copy = vault.fork();
    let last = open(store(&copy.place), &copy.cache);
    last.sync_index().unwrap();
    let of_last = keys(&*store(&copy.place), "data/")
        .into_iter()
        .find(|key| key.as_str().ends_with(&vault.nights[0].0.to_string()))
        .unwrap();
    drop(last);
    let before = objects(&copy.place);
    std::fs::remove_file(copy.place.join(of_last.as_str())).unwrap();
    assert!(prune_all(store(&copy.place), &copy.cache).is_err());
    assert!(objects(&copy.place).contains_key(&format!("par/{of_last}")));
    assert_eq!(repair(store(&copy.place), &copy.cache).unwrap().len(), 1);
    assert!(objects(&copy.place)[of_last.as_str()] == before[of_last.as_str()]);
    assert!(prune_all(store(&copy.place), &copy.cache).unwrap().deleted.packs > 0);
    vault.assert_sound(&copy.place, "healed and pruned");
    copy.gone();

    let copy = vault.fork();
    let counted = Arc::new(FaultStore::new(store(&copy.place), None));
    let report = prune_all(counted.clone(), &copy.cache).unwrap();
    assert!(report.deleted.packs > 0 && report.waiting.packs == 0, "{report:?}");
    assert_sidecars(&copy.place, "pruned");
    vault.assert_sound(&copy.place, "pruned");
    copy.gone();
    for (call, what) in counted.log().iter().enumerate() {
        if !what.starts_with("deleting") && !what.starts_with("writing") {
            continue;
        }
        for fault in Fault::at(call as u64).into_iter().filter(|fault| fault.lasting) {
            let copy = vault.fork();
            let faulty = Arc::new(FaultStore::new(store(&copy.place), Some(fault)));
            let when = format!("{fault:?} ({what})");
            assert_no_false_alarm(&prune_all(faulty, &copy.cache).map(drop), &when);
            vault.assert_sound(&copy.place, &when);
            prune_all(store(&copy.place), &copy.cache).unwrap();
            let repo = open(store(&copy.place), &copy.cache);
            let report = parity::run(&repo, parity::Options::default(), &Progress::default()).unwrap();
            assert_eq!(report.alone, 0, "{when}");
            drop(repo);
            assert_sidecars(&copy.place, &when);
            vault.assert_sound(&copy.place, &when);
            copy.gone();
        }
    }
}

/// What is missing is a note of check; damaged sidecars are found and written anew; damaged objects get none; and all of it goes again.
#[test]
fn parity_is_completed_verified_and_taken_away() {
    let vault = Vault::large(1 << 20);
    let place = vault.place();
    let before = objects(&place);
    let name = largest_pack(&place);
    let beside = format!("par/{name}");
    let repo = open(store(&place), &vault.cache());
    let run = |options: parity::Options| parity::run(&repo, options, &Progress::default()).unwrap();
    let (plain, verify) = (
        parity::Options::default(),
        parity::Options {
            verify: true,
            ..Default::default()
        },
    );
    assert_eq!(check_on(&repo).without_parity, Some(0));
    std::fs::remove_file(place.join(&beside)).unwrap();
    let report = check_on(&repo);
    assert!(report.is_sound() && report.without_parity == Some(1), "{report:?}");
    let dry = run(parity::Options {
        dry_run: true,
        ..Default::default()
    });
    assert_eq!(
        (dry.written, keys(&*repo.store, "par/").len() as u64),
        (1, dry.objects - 1)
    );
    assert_eq!(run(plain).bytes_written, before[&beside].len() as u64);
    assert!(objects(&place) == before);
    // A rotten sidecar has the right size.
    damage(&place, &beside, |sidecar| sidecar[1000] ^= 1);
    assert_eq!(run(plain).written, 0);
    let report = run(verify);
    assert_eq!((report.written, report.replaced), (1, 1));
    assert!(objects(&place) == before);
    // One of a damaged object would keep the damage.
    damage(&place, &name, |bytes| bytes[4000] ^= 1);
    std::fs::remove_file(place.join(&beside)).unwrap();
    let report = run(plain);
    assert_eq!((report.written, report.damaged.len()), (0, 1), "{report:?}");
    assert_eq!(report.damaged[0].0.to_string(), name);
    std::fs::write(place.join(&name), &before[&name]).unwrap();
    run(plain);
    // A replica is a copy of the repository, not of its parity.
    let replica = vault.fresh();
    LocalStore::new(&replica, true).prepare().unwrap();
    let options = replicate::Options {
        dry_run: false,
        verify: false,
        threads: 1,
        bytes_in_memory: 64 << 20,
    };
    replicate::run(&*store(&place), &*store(&replica), &options, &Progress::default()).unwrap();
    assert!(keys(&*store(&replica), "par/").is_empty());
    let report = vault.check(&replica);
    assert!(report.is_sound() && report.without_parity.is_none(), "{report:?}");

    let dry = parity::remove(&repo, true, &Progress::default()).unwrap();
    assert!(objects(&place) == before && dry.turned_off);
    let removed = parity::remove(&repo, false, &Progress::default()).unwrap();
    assert_eq!(
        (removed.sidecars, removed.turned_off),
        (dry.sidecars + 1, true),
        "and that of the configuration"
    );
    drop(repo);
    let repo = open(store(&place), &vault.cache());
    assert!(repo.config.parity.is_none() && keys(&*repo.store, "par/").is_empty());
    let report = check_on(&repo);
    assert!(report.without_parity.is_none() && !report.notes.iter().any(|note| note.contains("parity")));
    back_up(store(&place), &vault.cache(), &admin(), &vault.source());
    assert!(keys(&*repo.store, "par/").is_empty());
}

#[test]
fn parity_is_refused_where_there_is_no_directory() {
    let dir = scratch();
    let memory = MemoryStore::new();
    SmallRepo::init(&memory, &admin()).unwrap();
    let repo = open(Arc::new(memory), dir.path());
    for refused in [
        parity::run(&repo, parity::Options::default(), &Progress::default()).map(drop),
        parity::remove(&repo, false, &Progress::default()).map(drop),
    ] {
        assert!(matches!(refused, Err(OpError::Refused { .. })), "{refused:?}");
    }
}
