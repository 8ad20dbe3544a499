//! `repo repair index`: runs are missing or damaged.

use super::{Harm, Ward, back_up, harm, keys};
use crate::fault::{admin, assert_no_false_alarm, try_open, writer};
use crate::story::{noise, tree};
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Store, StoreKey};
use larder::ops::repair::index::{self, Plan, Report};
use larder::ops::{OpError, Progress, check, prune};
use larder::pure::base::{Explain, Kind};
use larder::testing::fault_store::{Fault, FaultStore};
use std::path::Path;
use std::sync::Arc;

fn repair(store: Arc<dyn Store>, cache: &Path) -> Result<(Plan, Report), OpError> {
    let repo = try_open(store, cache, &admin())?;
    let plan = index::plan(&repo, &Progress::default())?;
    let report = index::run(&repo, &plan, 1, &Progress::default())?;
    Ok((plan, report))
}

fn repaired(store: &MemoryStore, cache: &Path, when: &str) -> (Plan, Report) {
    repair(Arc::new(store.clone()), cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)))
}

/// No run is missed, here or on another machine: prune, which refuses if anything is in doubt, has nothing against it, and the next
/// backup stores nothing that is there.
fn assert_whole_index(ward: &Ward, store: &MemoryStore, cache: &Path, when: &str) {
    for cache in [cache.to_owned(), ward.fresh()] {
        let repo = ward.open(store, &cache);
        let plan = index::plan(&repo, &Progress::default()).unwrap();
        assert!(plan.is_empty(), "{when}: {plan:?}");
        drop(repo);
        let report = back_up(Arc::new(store.clone()), &cache, &admin(), &ward.source());
        assert_eq!(
            (report.stats.chunks_new, report.notes.len()),
            (0, 0),
            "{when}: {:?}",
            report.notes
        );
        let repo = ward.open(store, &cache);
        let options = prune::Options {
            threads: 1,
            uploads: 1,
            ..Default::default()
        };
        prune::run(&repo, &options, &Progress::default())
            .unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
    }
    ward.assert_sound(store, when);
}

#[test]
fn lost_runs_are_written_anew_from_the_packs() {
    let ward = Ward::with_nights();
    let runs = keys(&ward.store, "idx/");
    assert!(runs.len() >= 3, "{runs:?}");
    let mut cases: Vec<(Vec<&StoreKey>, Harm)> = vec![
        (runs.iter().collect(), Harm::Gone),
        (runs.iter().collect(), Harm::Rotten),
        (runs[1..].iter().collect(), Harm::Shorter),
    ];
    cases.push((vec![&runs[0]], Harm::Gone));
    cases.push((vec![&runs[1]], Harm::Rotten));
    for (lost, harmed) in cases {
        for knows in [true, false] {
            let when = format!("{harmed:?} {} of {}, knows it: {knows}", lost.len(), runs.len());
            let (store, cache) = ward.fork();
            for key in &lost {
                harm(&store, key, harmed);
            }
            assert!(!ward.check(&store).is_sound(), "{when}");
            let cache = if knows { cache } else { ward.fresh() };
            let before = keys(&store, "").len();
            let repo = ward.open(&store, &cache);
            let plan = index::plan(&repo, &Progress::default()).unwrap();
            let said = index::dry_run(&repo, &plan, &Progress::default()).unwrap();
            assert_eq!(keys(&store, "").len(), before, "{when}: a dry run writes nothing");
            drop(repo);
            let (plan, report) = repaired(&store, &cache, &when);
            assert_eq!(plan.lost.names().len(), lost.len(), "{when}: {plan:?}");
            assert_eq!(plan.lost.missing.is_empty(), harmed != Harm::Gone, "{when}: {plan:?}");
            assert_eq!((said.packs, said.blobs), (report.packs, report.blobs), "{when}");
            assert!(
                report.packs >= 1 && report.runs == 1 && report.unreadable.is_empty(),
                "{when}: {report:?}"
            );
            assert!(report.after.is_some_and(|check| check.is_sound()), "{when}");
            assert_whole_index(&ward, &store, &cache, &when);
        }
    }
}

#[test]
fn nothing_is_written_when_nothing_is_amiss() {
    let ward = Ward::with_nights();
    let before = keys(&ward.store, "").len();
    let (plan, _) = repaired(&ward.store, &ward.cache(), "sound");
    assert!(plan.is_empty());
    assert_eq!(keys(&ward.store, "").len(), before);
}

/// The packs of a writer who is not asked are listed too; he himself may not.
#[test]
fn packs_of_every_writer_are_listed_by_whoever_may_maintain() {
    let mut ward = Ward::with_nights();
    let other = ward.dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("file"), noise(70, 30_000)).unwrap();
    let theirs = ward.fresh();
    let report = back_up(Arc::new(ward.store.clone()), &theirs, &writer(), &other);
    ward.nights.push((report.snapshot.unwrap(), tree(&other)));
    for key in keys(&ward.store, "idx/") {
        harm(&ward.store, &key, Harm::Gone);
    }
    let repo = try_open(Arc::new(ward.store.clone()), &theirs, &writer()).unwrap();
    let refused = index::plan(&repo, &Progress::default()).unwrap_err();
    assert_eq!(refused.kind(), Kind::Auth, "{refused:?}");
    drop(repo);
    repaired(&ward.store, &ward.cache(), "two writers");
    let again = back_up(Arc::new(ward.store.clone()), &theirs, &writer(), &other);
    assert_eq!((again.stats.chunks_new, again.notes.len()), (0, 0), "{:?}", again.notes);
    ward.assert_sound(&ward.store, "two writers");
}

/// A pack that does not say what is in it is named, and everything else is listed.
#[test]
fn what_cannot_be_listed_is_named() {
    let ward = Ward::with_nights();
    for key in keys(&ward.store, "idx/") {
        harm(&ward.store, &key, Harm::Gone);
    }
    let pack = &keys(&ward.store, "data/")[0];
    harm(&ward.store, pack, Harm::RottenEnd);
    let (_, report) = repaired(&ward.store, &ward.cache(), "one pack is damaged");
    let named: Vec<String> = report.unreadable.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(named, [pack.as_str()]);
    let left = keys(&ward.store, "data/").len() + keys(&ward.store, "meta/").len() - 1;
    assert_eq!(report.packs as usize, left);
}

/// Every call fails once, and from then on: everything restores all the same, and running it again completes it.
#[test]
fn repair_of_the_index_may_stop_anywhere() {
    let ward = Ward::with_nights();
    let runs = keys(&ward.store, "idx/");
    harm(&ward.store, &runs[0], Harm::Gone);
    harm(&ward.store, &runs[1], Harm::Rotten);
    let (store, cache) = ward.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    repair(counted.clone(), &cache).unwrap();
    let mut cases = 0;
    for call in 0..counted.calls() {
        for fault in Fault::at(call) {
            let (store, cache) = ward.fork();
            let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
            let result = repair(faulty.clone(), &cache);
            if !faulty.has_failed() {
                continue;
            }
            cases += 1;
            let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
            assert_no_false_alarm(&result, &when);
            if fault.lasting {
                assert_eq!(ward.whole(&store, &when), [true; 3], "{when}");
            }
            repaired(&store, &cache, &when);
            ward.assert_sound(&store, &when);
            std::fs::remove_dir_all(&cache).unwrap();
        }
    }
    eprintln!("{cases} faults in {} calls", counted.calls());
}

/// A whole backup of the source between any two calls of a repair.
#[test]
fn backup_at_any_moment_of_a_repair_of_the_index_is_whole() {
    let mut ward = Ward::with_nights();
    for key in keys(&ward.store, "idx/") {
        harm(&ward.store, &key, Harm::Gone);
    }
    ward.write("of the night", &noise(13, 20_000));
    let (store, cache) = ward.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    repair(counted.clone(), &cache).unwrap();
    for call in 0..counted.calls() {
        let (store, cache) = ward.fork();
        let theirs = ward.fresh();
        let made = Arc::new(parking_lot::Mutex::new(None));
        let visit = {
            let (store, source, made) = (store.clone(), ward.source(), made.clone());
            move || *made.lock() = back_up(Arc::new(store), &theirs, &writer(), &source).snapshot
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let when = format!("visited at call {call}");
        repair(shared, &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        let new = made.lock().take().unwrap();
        ward.nights.push((new, tree(&ward.source())));
        ward.assert_sound(&store, &when);
        ward.nights.pop();
    }
}
