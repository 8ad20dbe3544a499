//! Replicas (format-spec chapters 4.1 and 16.7): whatever fails or dies, and whatever goes on at the source, every snapshot that a replica
//! shows restores from the replica alone, on a machine that has nothing but the key. Nothing is deleted in it that anybody needs, and
//! there is one primary.

use crate::fault::{admin, copy_dir, scratch, try_open, writer};
use crate::story::{noise, options as backup_options, restore_options, tree};
use bytes::Bytes;
use larder::edge::host;
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Prefix, Store, StoreKey};
use larder::ops::replicate::remove::{self, Removed};
use larder::ops::replicate::{self, Options, Report};
use larder::ops::{OpError, Progress, backup, check, promote, prune, restore};
use larder::pure::base::{Explain, Kind, Timestamp};
use larder::pure::chunk::Profile;
use larder::pure::crypto::Secret;
use larder::pure::crypto::Signer;
use larder::pure::crypto::sign::{WriterKey, role};
use larder::pure::format::config::Config;
use larder::pure::format::name::ObjectName;
use larder::pure::id::{KeyId, SessionId};
use larder::pure::plan::prune::RepackLimits;
use larder::repo::Repo;
use larder::repo::open::{Credential, store_key};
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::fault_store::{Fault, FaultStore};
use larder::testing::small::SmallRepo;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Tree = BTreeMap<PathBuf, Vec<u8>>;

const OPTIONS: Options = Options {
    dry_run: false,
    verify: false,
    threads: 1,
    bytes_in_memory: 1 << 20,
};

fn copy(source: &dyn Store, target: &dyn Store) -> Result<Report, OpError> {
    replicate::run(source, target, &OPTIONS, &Progress::default())
}

fn verify(source: &dyn Store, target: &dyn Store) -> Report {
    let options = Options {
        verify: true,
        ..OPTIONS
    };
    replicate::run(source, target, &options, &Progress::default()).unwrap()
}

fn back_up(store: Arc<dyn Store>, cache: &Path, credential: &Credential, source: &Path) -> Result<SessionId, OpError> {
    let repo = try_open(store, cache, credential)?;
    let input = backup::Input::Paths {
        roots: vec![source.to_owned()],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let options = backup::Options {
        threads: 1,
        ..backup_options()
    };
    Ok(backup::run(&repo, input, &options, &Progress::default())?
        .snapshot
        .expect("a whole backup has a snapshot"))
}

fn forget(store: &MemoryStore, cache: &Path, session: &SessionId) {
    let repo = try_open(Arc::new(store.clone()), cache, &admin()).unwrap();
    repo.drop_snapshot(session, "").unwrap();
}

/// Prunes, and moves what is alive out of packs of which a twentieth is not.
fn prune_and_rewrite(store: &MemoryStore, cache: &Path) -> prune::Report {
    let repo = try_open(Arc::new(store.clone()), cache, &admin()).unwrap();
    let options = prune::Options {
        threads: 1,
        uploads: 1,
        repack: Some(RepackLimits {
            unused_share: 0.05,
            copied_bytes_max: u64::MAX,
        }),
        ..Default::default()
    };
    prune::run(&repo, &options, &Progress::default()).unwrap_or_else(|error| panic!("{}", check::chain(&error)))
}

/// Everything in a store but the marks of replicas.
fn contents(store: &dyn Store, under: &str) -> BTreeMap<StoreKey, u64> {
    let mut keys = BTreeMap::new();
    store
        .list(&Prefix::new(under).unwrap(), &mut |row| {
            if !row.key.as_str().starts_with("config/replica-") {
                keys.insert(row.key, row.size);
            }
        })
        .unwrap();
    keys
}

fn assert_has_all(replica: &dyn Store, source: &dyn Store, when: &str) {
    let there = contents(replica, "");
    for (key, size) in contents(source, "") {
        assert_eq!(there.get(&key), Some(&size), "{when}: {key}");
    }
}

/// A repository with a few nights, a place for a replica, and what each snapshot has to give back.
struct Pair {
    dir: tempfile::TempDir,
    source: MemoryStore,
    replica: MemoryStore,
    small: SmallRepo,
    caches: Cell<u32>,
    nights: Vec<SessionId>,
    trees: BTreeMap<SessionId, Tree>,
}

impl Pair {
    fn new() -> Pair {
        let dir = scratch();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        let source = MemoryStore::new();
        let mut small = SmallRepo::init(&source, &admin()).unwrap();
        small.add_writer(&source, "other", &writer()).unwrap();
        small
            .change_config(&source, |config| {
                config.chunkers = vec![Profile::new(2 << 10, 4 << 10, 16 << 10, 0xfff << 51, 0xff << 55).unwrap()];
                config.data_pack_bytes = 64 << 10;
                config.lanes = 1;
            })
            .unwrap();
        let mut pair = Pair {
            dir,
            source,
            replica: MemoryStore::new(),
            small,
            caches: Cell::new(0),
            nights: Vec::new(),
            trees: BTreeMap::new(),
        };
        pair.night();
        pair.night();
        pair
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn fresh(&self) -> PathBuf {
        self.caches.set(self.caches.get() + 1);
        self.dir.path().join(format!("cache{}", self.caches.get()))
    }

    fn fork(&self) -> (MemoryStore, PathBuf) {
        let cache = self.fresh();
        copy_dir(&self.cache(), &cache);
        (self.source.fork(), cache)
    }

    /// Something of each night is in no other, and something is in all.
    fn night(&mut self) -> SessionId {
        let number = self.nights.len() as u64;
        self.source
            .set_time(Timestamp((1_700_000_000 + 86_400 * number as i64) * 1_000_000_000));
        std::fs::write(self.files().join("stays"), noise(1, 60_000)).unwrap();
        std::fs::write(self.files().join("of the night"), noise(10 + number, 60_000)).unwrap();
        let id = back_up(Arc::new(self.source.clone()), &self.cache(), &admin(), &self.files()).unwrap();
        self.nights.push(id);
        self.trees.insert(id, tree(&self.files()));
        id
    }

    fn copy(&self) -> Report {
        copy(&self.source, &self.replica).unwrap_or_else(|error| panic!("{}", check::chain(&error)))
    }

    /// Everything that a store shows restores on a machine that has nothing but the key. Returns the snapshots.
    fn assert_restores(&self, store: &dyn Store, when: &str) -> BTreeSet<SessionId> {
        if contents(store, "snap/").is_empty() {
            return BTreeSet::new();
        }
        // As another process would find it, whatever the first one was told.
        let copied = MemoryStore::new();
        store
            .list(&Prefix::new("").unwrap(), &mut |row| {
                let body = store.read(&row.key, larder::edge::store::Part::Whole).unwrap();
                let _ = copied.create(&row.key, body).unwrap();
            })
            .unwrap();
        let cache = self.fresh();
        let repo = try_open(Arc::new(copied), &cache, &admin())
            .unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        repo.sync_history().unwrap();
        let mut found = BTreeSet::new();
        for snapshot in repo.snapshots().unwrap() {
            let id = snapshot.id;
            let root = snapshot.manifest.roots[0].path.clone();
            let target = cache.join("restored");
            let report = restore::run(
                &repo,
                &restore_options(snapshot, Some(root), target.clone()),
                &Progress::default(),
            )
            .unwrap();
            assert_eq!(
                (report.damaged_total, report.failed_total),
                (0, 0),
                "{when}: {:?}",
                report.damaged
            );
            if let Some(expected) = self.trees.get(&id) {
                assert!(tree(&target) == *expected, "{when}: snapshot {id} has changed");
            }
            std::fs::remove_dir_all(&target).unwrap();
            found.insert(id);
        }
        drop(repo);
        std::fs::remove_dir_all(&cache).unwrap();
        found
    }

    fn ids(&self, nights: impl IntoIterator<Item = usize>) -> BTreeSet<SessionId> {
        nights.into_iter().map(|night| self.nights[night]).collect()
    }

    fn open_replica(&self) -> Repo {
        try_open(Arc::new(self.replica.clone()), &self.fresh(), &admin()).unwrap()
    }

    fn remove_with(&self, report: &Report) -> Result<Removed, OpError> {
        remove::run(&self.source, &self.open_replica(), report, &Progress::default())
    }

    /// Two nights in the replica; then a third, the first is forgotten, and what only that needed is gone at the source.
    fn moved_on() -> Pair {
        let mut pair = Pair::new();
        pair.copy();
        pair.night();
        forget(&pair.source, &pair.cache(), &pair.nights[0]);
        let report = prune_and_rewrite(&pair.source, &pair.cache());
        assert!(report.deleted.packs > 0, "{report:?}");
        pair
    }
}

#[test]
fn a_replica_restores_alone_and_only_what_is_new_is_copied() {
    let mut pair = Pair::new();
    let first = pair.copy();
    assert_eq!(first.objects_copied, contents(&pair.source, "").len() as u64);
    assert_eq!(pair.assert_restores(&pair.replica, "first"), pair.ids([0, 1]));
    assert_has_all(&pair.replica, &pair.source, "first");
    assert_eq!((first.behind_before.outcomes, first.behind_after.outcomes), (2, 0));
    let again = pair.copy();
    assert_eq!(
        (again.objects_copied, again.bytes_copied, again.behind_before.outcomes),
        (0, 0, 0)
    );
    let before = contents(&pair.source, "");
    pair.night();
    let new = contents(&pair.source, "").len() - before.len();
    let said = replicate::run(
        &pair.source,
        &pair.replica,
        &Options {
            dry_run: true,
            ..OPTIONS
        },
        &Progress::default(),
    )
    .unwrap();
    assert_eq!(pair.assert_restores(&pair.replica, "a dry run"), pair.ids([0, 1]));
    let second = pair.copy();
    assert_eq!(
        (said.objects_copied, said.bytes_copied),
        (second.objects_copied, second.bytes_copied)
    );
    assert_eq!(second.objects_copied, new as u64);
    // The night before last was received by the source at that time.
    let since = Timestamp((1_700_000_000 + 2 * 86_400) * 1_000_000_000);
    assert_eq!((said.behind_after.outcomes, said.behind_after.since), (1, Some(since)));
    assert_eq!(
        (second.behind_before.since, second.behind_after.outcomes),
        (Some(since), 0)
    );
    assert_eq!(pair.assert_restores(&pair.replica, "second"), pair.ids([0, 1, 2]));
    // A check of everything finds nothing wrong with it, the mark included.
    let everything = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    let report = check::run(&pair.open_replica(), &everything, &Progress::default()).unwrap();
    assert!(report.is_sound() && report.unknown_objects_total == 0, "{report:?}");
}

#[test]
fn a_run_that_dies_leaves_a_replica_that_restores() {
    die_at_every(3);
}

#[test]
#[ignore = "every call; run by scripts/nightly"]
fn replicating_that_dies_anywhere_leaves_a_replica_that_restores() {
    die_at_every(1);
}

/// Every call to either side (or every so many) fails for good, before or after its effect: what the replica shows restores, and the next
/// run completes it.
fn die_at_every(stride: usize) {
    let pair = Pair::moved_on();
    let fresh = MemoryStore::new();
    for (base, shown) in [(&fresh, pair.ids([])), (&pair.replica, pair.ids([0, 1]))] {
        let replica = base.fork();
        let (source, target) = (
            FaultStore::new(pair.source.clone(), None),
            FaultStore::new(replica, None),
        );
        copy(&source, &target).unwrap();
        let lasting = |call, after_effect| Fault {
            call,
            after_effect,
            lasting: true,
        };
        let of_source = (0..source.calls()).map(|call| (Some(lasting(call, false)), None));
        let of_target =
            (0..target.calls()).flat_map(|call| [false, true].map(|after| (None, Some(lasting(call, after)))));
        let mut cases = 0;
        for (source_fault, target_fault) in of_source.chain(of_target).step_by(stride) {
            let replica = base.fork();
            let source = FaultStore::new(pair.source.clone(), source_fault);
            let target = FaultStore::new(replica.clone(), target_fault);
            let result = copy(&source, &target);
            if !source.has_failed() && !target.has_failed() {
                continue;
            }
            cases += 1;
            let when = format!("{source_fault:?} {target_fault:?}");
            if let Err(error) = &result {
                assert_eq!(error.kind(), Kind::Unavailable, "{when}: {}", check::chain(error));
            }
            let found = pair.assert_restores(&replica, &when);
            // What was shown and is not forgotten does not vanish, not even for a while.
            assert!(
                shown
                    .iter()
                    .filter(|id| **id != pair.nights[0])
                    .all(|id| found.contains(id)),
                "{when}"
            );
            let again = copy(&pair.source, &replica).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            assert_eq!((again.behind_after.outcomes, again.findings_total), (0, 0), "{when}");
            assert_has_all(&replica, &pair.source, &when);
        }
        assert!(cases * stride > 40, "{cases}");
        let whole = base.fork();
        copy(&pair.source, &whole).unwrap();
        assert_eq!(pair.assert_restores(&whole, "in the end"), pair.ids([1, 2]));
    }
}

#[test]
fn whatever_goes_on_at_the_source_the_replica_restores() {
    visit_at_every(4);
}

#[test]
#[ignore = "every call; run by scripts/nightly"]
fn replicating_with_something_going_on_at_any_call_restores() {
    visit_at_every(1);
}

/// A prune that rewrites packs, or a backup, between any two calls of a run, or every so many.
fn visit_at_every(stride: usize) {
    let mut pair = Pair::new();
    pair.copy();
    pair.night();
    forget(&pair.source, &pair.cache(), &pair.nights[0]);
    let fresh = MemoryStore::new();
    let mut rounds = BTreeSet::new();
    for base in [&fresh, &pair.replica] {
        let counted = FaultStore::new(pair.source.clone(), None);
        copy(&counted, &base.fork()).unwrap();
        for call in (0..counted.calls()).step_by(stride) {
            for prunes in [true, false] {
                let (store, cache) = pair.fork();
                let visit = {
                    let (store, files) = (store.clone(), pair.files());
                    move || match prunes {
                        true => assert!(prune_and_rewrite(&store, &cache).deleted.packs > 0),
                        false => drop(back_up(Arc::new(store), &cache, &writer(), &files).expect("the other machine")),
                    }
                };
                let replica = base.fork();
                let visited = FaultStore::visited_at(store.clone(), call, visit);
                let report = copy(&visited, &replica);
                let when = format!(
                    "visited at call {call} ({}), prunes: {prunes}",
                    visited.log()[call as usize]
                );
                let report = report.unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
                assert_eq!(
                    (report.findings_total, report.lost_at_source.len()),
                    (0, 0),
                    "{when}: {report:?}"
                );
                rounds.insert((prunes, report.rounds));
                let found = pair.assert_restores(&replica, &when);
                assert!(found.is_superset(&pair.ids([1, 2])), "{when}: {found:?}");
            }
        }
    }
    // A backup is no reason to begin again, a prune is, and once is enough.
    assert_eq!(rounds, BTreeSet::from([(true, 1), (true, 2), (false, 1)]));
}

#[test]
fn deleting_takes_what_was_swept_and_leaves_everything_else() {
    let pair = Pair::moved_on();
    let copied = pair.copy();
    assert!(copied.packs_beyond > 0);
    let before = contents(&pair.replica, "");
    let whole = pair.replica.fork();
    let removed = pair.remove_with(&copied).unwrap();
    assert_eq!(
        (removed.packs, removed.bytes),
        (copied.packs_beyond, copied.bytes_beyond)
    );
    assert_eq!((removed.lost_at_source, removed.is_postponed), (0, false));
    assert_eq!(contents(&pair.replica, "data/"), contents(&pair.source, "data/"));
    assert_eq!(
        contents(&pair.replica, "").len() as u64,
        before.len() as u64 - removed.packs
    );
    assert_eq!(pair.assert_restores(&pair.replica, "after"), pair.ids([1, 2]));

    // Whatever fails: what is shown restores.
    let count = FaultStore::new(whole.fork(), None);
    let calls = {
        let counted = Arc::new(count);
        let repo = try_open(counted.clone(), &pair.fresh(), &admin()).unwrap();
        remove::run(&pair.source, &repo, &copied, &Progress::default()).unwrap();
        counted.calls()
    };
    for call in 0..calls {
        let store = whole.fork();
        let faulty = Arc::new(FaultStore::new(
            store.clone(),
            Some(Fault {
                call,
                after_effect: true,
                lasting: true,
            }),
        ));
        if let Ok(repo) = try_open(faulty, &pair.fresh(), &admin()) {
            let _ = remove::run(&pair.source, &repo, &copied, &Progress::default());
        }
        assert_eq!(pair.assert_restores(&store, &format!("call {call}")), pair.ids([1, 2]));
    }
}

#[test]
fn packs_that_the_source_has_lost_stay_in_the_replica() {
    let pair = Pair::new();
    let copied = pair.copy();
    let lost: Vec<StoreKey> = contents(&pair.source, "data/").into_keys().collect();
    pair.source.remove(&lost).unwrap();
    let removed = pair.remove_with(&copied).unwrap();
    assert_eq!((removed.packs, removed.lost_at_source), (0, lost.len() as u64));
    assert_eq!(pair.assert_restores(&pair.replica, "after"), pair.ids([0, 1]));
}

#[test]
fn a_prune_that_ends_after_the_copying_postpones_deleting() {
    let mut pair = Pair::new();
    pair.night();
    let copied = pair.copy();
    forget(&pair.source, &pair.cache(), &pair.nights[0]);
    prune_and_rewrite(&pair.source, &pair.cache());
    let removed = pair.remove_with(&copied).unwrap();
    assert_eq!(
        (removed.packs, removed.lost_at_source, removed.is_postponed),
        (0, 0, true)
    );
    assert_eq!(pair.assert_restores(&pair.replica, "after"), pair.ids([0, 1, 2]));
}

/// Whoever can write to the source, without a key, can have nothing deleted in the replica.
#[test]
fn an_emptied_or_rolled_back_source_is_noticed_and_nothing_is_deleted() {
    let pair = Pair::moved_on();
    let good = pair.copy();
    let all = contents(&pair.replica, "");
    let emptied = |under: &[&str]| {
        let source = pair.source.fork();
        for under in under {
            source
                .remove(&contents(&source, under).into_keys().collect::<Vec<_>>())
                .unwrap();
        }
        source
    };
    // Its snapshots are gone, with or without what belongs to them.
    for under in [
        &["snap/"][..],
        &["snap/", "data/", "meta/", "idx/", "drop/", "gc/", "sess/"][..],
    ] {
        let source = emptied(under);
        let report = copy(&source, &pair.replica).unwrap();
        assert_eq!(report.lost_at_source.len(), contents(&pair.replica, "snap/").len());
        assert!(report.shows_tampering());
        let error = remove::run(&source, &pair.open_replica(), &report, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Tamper);
        // Nor with the report of a run before.
        if under.contains(&"data/") {
            let removed = remove::run(&source, &pair.open_replica(), &good, &Progress::default());
            assert!(removed.is_ok_and(|removed| removed.lost_at_source > 0));
        }
    }
    // No key opens it any more.
    let error = remove::run(&emptied(&["keys/"]), &pair.open_replica(), &good, &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Tamper);
    // It has gone back to an earlier configuration.
    let source = pair.source.fork();
    let last = ObjectName::Config(pair.small.config.sequence);
    source.remove(&[store_key(&last)]).unwrap();
    assert_eq!(copy(&source, &pair.replica).unwrap_err().kind(), Kind::Tamper);
    let left = contents(&pair.replica, "");
    let swept = good.packs_beyond as usize;
    assert!(all.len() - left.len() <= swept, "only what a condemnation names");
    assert_eq!(pair.assert_restores(&pair.replica, "after"), pair.ids([1, 2]));
}

/// Somebody without a key signs a configuration of his own: in the replica it would lock everybody out.
#[test]
fn a_planted_configuration_goes_no_further() {
    let pair = Pair::new();
    pair.copy();
    let before = contents(&pair.replica, "");
    let mut config = pair.small.config.clone();
    let signer = Signer::new(KeyId([9; 16]), &Secret::new([9; 32]), &config.repo);
    config.previous = Some(Repo::object_hash(&pair.small.config.encode(&pair.small.signer(0))));
    config.sequence += 1;
    config.created = host::now();
    config.writers = vec![WriterKey {
        kid: KeyId([9; 16]),
        public_key: signer.public_key(),
        roles: role::ADMIN,
        from_config: config.sequence,
        revoked_at: None,
        chain_end: None,
    }];
    let bytes = config.encode(&signer);
    assert!(
        Config::decode(&bytes, config.sequence, None).is_ok(),
        "it verifies by itself"
    );
    let _ = pair
        .source
        .create(&store_key(&ObjectName::Config(config.sequence)), Bytes::from(bytes))
        .unwrap();
    let error = copy(&pair.source, &pair.replica).unwrap_err();
    assert_eq!(error.kind(), Kind::Tamper, "{}", check::chain(&error));
    assert_eq!(contents(&pair.replica, ""), before);
}

/// One object of each kind is damaged in the replica, and replaced from the source.
#[test]
fn verifying_heals_what_is_damaged_in_the_replica() {
    let pair = Pair::moved_on();
    pair.copy();
    let sound = verify(&pair.source, &pair.replica);
    assert_eq!((sound.objects_healed, sound.findings_total), (0, 0), "{sound:?}");
    assert_eq!(sound.objects_verified, contents(&pair.source, "").len() as u64);
    let mut damaged = 0;
    for under in [
        "keys/", "grants/", "data/", "meta/", "idx/", "sess/", "gc/", "drop/", "snap/",
    ] {
        let source = contents(&pair.source, under);
        let (key, size) = source.first_key_value().unwrap();
        let good = pair.source.read(key, larder::edge::store::Part::Whole).unwrap();
        let mut flipped = good.to_vec();
        flipped[*size as usize / 2] ^= 4;
        for bad in [flipped, good[..good.len() - 1].to_vec()] {
            let has_size = bad.len() == good.len();
            pair.replica.overwrite(key, Bytes::from(bad));
            let quick = pair.copy();
            assert_eq!(
                quick.findings_total,
                u64::from(!has_size),
                "{key}: only a size shows without reading"
            );
            let healed = verify(&pair.source, &pair.replica);
            assert_eq!(
                (healed.objects_healed, healed.findings_total),
                (1, 0),
                "{key}: {healed:?}"
            );
            assert_eq!(pair.replica.read(key, larder::edge::store::Part::Whole).unwrap(), good);
            damaged += 1;
        }
    }
    assert_eq!(damaged, 18);
    assert_eq!(pair.assert_restores(&pair.replica, "healed"), pair.ids([1, 2]));
}

#[test]
fn what_is_damaged_at_the_source_is_told_and_packs_are_copied_as_they_are() {
    let pair = Pair::new();
    for under in ["data/", "idx/"] {
        let source = pair.source.fork();
        let replica = MemoryStore::new();
        let (key, size) = contents(&source, under).pop_first().unwrap();
        let mut bytes = source.read(&key, larder::edge::store::Part::Whole).unwrap().to_vec();
        bytes[size as usize / 2] ^= 1;
        source.overwrite(&key, Bytes::from(bytes));
        let report = copy(&source, &replica).unwrap();
        assert_eq!(report.findings_total, 1, "{report:?}");
        assert_eq!(report.findings[0].object, key.to_string());
        assert_eq!(contents(&replica, under).contains_key(&key), under == "data/");
        assert_eq!(
            contents(&replica, "snap/"),
            contents(&source, "snap/"),
            "the rest is protected all the same"
        );
        // When the source is whole again, so is the replica.
        let healed = verify(&pair.source, &replica);
        assert_eq!(healed.findings_total, 0, "{healed:?}");
        assert_eq!(pair.assert_restores(&replica, under), pair.ids([0, 1]));
    }
    // A replica that is whole is not made worse by a source that is not.
    pair.copy();
    let (key, _) = contents(&pair.source, "data/").pop_first().unwrap();
    pair.source.overwrite(&key, Bytes::from_static(b"rot"));
    assert!(verify(&pair.source, &pair.replica).findings_total > 0);
    assert_eq!(pair.assert_restores(&pair.replica, "rot"), pair.ids([0, 1]));
}

#[test]
fn there_is_one_primary_and_two_that_grew_are_found_out() {
    let mut pair = Pair::new();
    pair.copy();
    let refused = |store: &MemoryStore, cache: &Path| {
        let error = back_up(Arc::new(store.clone()), cache, &admin(), &pair.files()).unwrap_err();
        assert!(contents(store, "sess/").len() < 100);
        error.kind()
    };
    // Nobody but `replicate` writes to a replica, whatever he knows.
    let before = contents(&pair.replica, "");
    assert_eq!(refused(&pair.replica, &pair.fresh()), Kind::Refused);
    assert_eq!(refused(&pair.replica, &pair.cache()), Kind::Refused);
    assert_eq!(contents(&pair.replica, ""), before);
    // The primary is no replica.
    assert_eq!(copy(&pair.replica, &pair.source).unwrap_err().kind(), Kind::Refused);

    let old = pair.source.fork();
    let promoted = promote::run(&pair.open_replica(), false).unwrap();
    assert_eq!(promoted.config, pair.small.config.sequence + 1);
    assert!(promote::run(&pair.open_replica(), false).is_err(), "once is enough");
    // The old primary does not overwrite what the new one does from now on.
    assert_eq!(copy(&pair.source, &pair.replica).unwrap_err().kind(), Kind::Tamper);
    // A machine that has seen the new one does not write to the old one any more.
    let machine = pair.fresh();
    let night = back_up(Arc::new(pair.replica.clone()), &machine, &admin(), &pair.files()).unwrap();
    pair.trees.insert(night, tree(&pair.files()));
    let error = back_up(Arc::new(pair.source.clone()), &machine, &admin(), &pair.files()).unwrap_err();
    assert_eq!(error.kind(), Kind::Tamper);

    // The old one comes back and becomes a replica; then nobody writes there.
    copy(&pair.replica, &pair.source).unwrap();
    assert_eq!(pair.assert_restores(&pair.source, "the old one").len(), 3);
    let error = back_up(Arc::new(pair.source.clone()), &pair.fresh(), &admin(), &pair.files()).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    // And the way back.
    let back = try_open(Arc::new(pair.source.clone()), &pair.fresh(), &admin()).unwrap();
    promote::run(&back, false).unwrap();
    drop(back);
    copy(&pair.source, &pair.replica).unwrap();
    let error = back_up(Arc::new(pair.replica.clone()), &pair.fresh(), &admin(), &pair.files()).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    back_up(Arc::new(pair.source.clone()), &pair.fresh(), &admin(), &pair.files()).unwrap();

    // An old primary that somebody went on writing to does not become a replica: what only it has would be hidden.
    let stray = back_up(Arc::new(old.clone()), &pair.fresh(), &admin(), &pair.files()).unwrap();
    let before = contents(&old, "");
    let error = copy(&pair.source, &old).unwrap_err();
    assert_eq!(error.kind(), Kind::Tamper, "{}", check::chain(&error));
    assert_eq!(contents(&old, ""), before);
    assert!(pair.assert_restores(&old, "kept").contains(&stray));
}

#[test]
fn a_replica_with_a_gap_is_promoted_only_if_somebody_insists() {
    let pair = Pair::new();
    pair.copy();
    pair.replica
        .remove(&[store_key(&ObjectName::Outcome(pair.nights[0]))])
        .unwrap();
    assert_eq!(
        promote::run(&pair.open_replica(), false).unwrap_err().kind(),
        Kind::Tamper
    );
    assert_eq!(promote::run(&pair.open_replica(), true).unwrap().gaps.len(), 1);
}

#[test]
fn a_store_without_conditions_is_noted_when_a_replica_in_it_is_promoted() {
    let pair = Pair::new();
    let weak = Arc::new(FaultStore::weak(pair.replica.clone()));
    copy(&pair.source, &*weak).unwrap();
    assert_eq!(weak.conditional(), Some(false));
    let repo = try_open(weak.clone(), &pair.fresh(), &admin()).unwrap();
    assert!(!promote::run(&repo, false).unwrap().conditional_writes);
    let config = pair.open_replica().config;
    assert!(!config.gc.conditional_writes && config.gc.grace_seconds >= 86_400);
}

#[test]
fn another_repository_or_somebody_elses_place_is_not_written_to() {
    let (pair, other) = (Pair::new(), Pair::new());
    for taken in [&other.source, &other.replica] {
        other.copy();
        let before = contents(taken, "");
        assert_eq!(copy(&pair.source, taken).unwrap_err().kind(), Kind::Refused);
        assert_eq!(contents(taken, ""), before);
    }
    let stray = MemoryStore::new();
    let (key, _) = contents(&other.source, "data/").pop_first().unwrap();
    let _ = stray.create(&key, Bytes::from_static(b"something")).unwrap();
    assert_eq!(copy(&pair.source, &stray).unwrap_err().kind(), Kind::Refused);
    assert_eq!(copy(&MemoryStore::new(), &stray).unwrap_err().kind(), Kind::Unavailable);
}

/// Between a directory and real servers, both ways, and from one server to another: `LARDER_TEST_S3_CEPH` and
/// `LARDER_TEST_S3_MINISTACK` are their addresses, credentials come from `AWS_*`.
#[cfg(feature = "s3")]
mod servers {
    use super::*;
    use larder::edge::store::location::{Location, StoreOptions, open};

    fn directory(dir: &Path) -> Arc<dyn Store> {
        open(&Location::Directory(dir.to_owned()), &StoreOptions::default()).unwrap()
    }

    fn bucket(endpoint: &str, name: &str) -> Arc<dyn Store> {
        let location = Location::S3 {
            bucket: std::env::var("LARDER_TEST_BUCKET").unwrap_or_else(|_| "larder-test".into()),
            prefix: format!("replicate-{name}-{:08x}", u32::from_le_bytes(host::random())),
        };
        let options = StoreOptions {
            endpoint: Some(endpoint.to_owned()),
            ..StoreOptions::default()
        };
        open(&location, &options).unwrap()
    }

    #[test]
    fn replicas_go_from_disk_to_server_to_server_to_disk() {
        let servers: Vec<String> = ["LARDER_TEST_S3_CEPH", "LARDER_TEST_S3_MINISTACK"]
            .iter()
            .filter_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .collect();
        if servers.is_empty() {
            eprintln!("SKIPPED: replicas on servers: neither LARDER_TEST_S3_CEPH nor LARDER_TEST_S3_MINISTACK is set");
            return;
        }
        let pair = Pair::moved_on();
        let mut places: Vec<Arc<dyn Store>> = vec![directory(&pair.dir.path().join("first"))];
        for (number, endpoint) in servers.iter().enumerate() {
            places.push(bucket(endpoint, &format!("a{number}")));
        }
        // Within one server, too.
        places.push(bucket(&servers[0], "b"));
        places.push(directory(&pair.dir.path().join("last")));
        let options = Options { threads: 4, ..OPTIONS };
        let mut source: Arc<dyn Store> = Arc::new(pair.source.clone());
        for place in &places {
            let when = format!("{} to {}", source.location(), place.location());
            let report = replicate::run(&*source, &**place, &options, &Progress::default())
                .unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            assert_eq!(
                (report.findings_total, report.behind_after.outcomes),
                (0, 0),
                "{when}: {report:?}"
            );
            assert_has_all(&**place, &pair.source, &when);
            assert_eq!(pair.assert_restores(&**place, &when), pair.ids([1, 2]));
            let again = replicate::run(
                &*source,
                &**place,
                &Options {
                    verify: true,
                    ..options
                },
                &Progress::default(),
            )
            .unwrap();
            assert_eq!(
                (again.objects_copied, again.objects_healed, again.findings_total),
                (0, 0, 0),
                "{when}: {again:?}"
            );
            // Straight from the store, as after the loss of everything else.
            let repo = try_open(place.clone(), &pair.fresh(), &admin()).unwrap();
            repo.sync_history().unwrap();
            assert_eq!(repo.snapshots().unwrap().len(), 2, "{when}");
            source = place.clone();
        }
    }
}
