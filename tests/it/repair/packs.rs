//! `repo repair packs`: packs are missing or damaged.

use super::{Harm, Ward, back_up, harm, keys};
use crate::fault::{admin, assert_no_false_alarm, try_open, writer};
use crate::story::{noise, tree};
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Store, StoreKey};
use larder::ops::repair::packs::{self, Options, Report};
use larder::ops::repair::{self, Bad};
use larder::ops::{OpError, Progress, check, prune};
use larder::testing::fault_store::{Fault, FaultStore};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

fn options() -> Options {
    Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        uploads: 1,
        ..Default::default()
    }
}

fn repair(store: Arc<dyn Store>, cache: &Path) -> Result<(Vec<Bad>, Report), OpError> {
    let repo = try_open(store, cache, &admin())?;
    let plan = packs::plan(&repo, &options(), &Progress::default())?;
    let bad = plan.packs.clone();
    let report = plan.carry_out(&repo, &options(), &Progress::default())?;
    Ok((bad, report))
}

fn repaired(store: &MemoryStore, cache: &Path, when: &str) -> (Vec<Bad>, Report) {
    repair(Arc::new(store.clone()), cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)))
}

fn prune_all(store: &MemoryStore, cache: &Path) -> Result<prune::Report, OpError> {
    let repo = try_open(Arc::new(store.clone()), cache, &admin())?;
    let options = prune::Options {
        threads: 1,
        uploads: 1,
        ..Default::default()
    };
    prune::run(&repo, &options, &Progress::default())
}

fn pack_keys(store: &MemoryStore) -> Vec<StoreKey> {
    let mut packs = keys(store, "data/");
    packs.extend(keys(store, "meta/"));
    packs
}

/// A pack is damaged; check says so; repair says what is lost; the next backup of the unchanged source, on this machine or on another
/// one, heals the old snapshot byte for byte.
#[test]
fn what_the_source_still_has_is_healed_in_every_snapshot() {
    let ward = Ward::with_one_night();
    for key in pack_keys(&ward.store) {
        for harmed in [Harm::Gone, Harm::Shorter, Harm::Rotten, Harm::RottenEnd] {
            for same in [true, false] {
                let when = format!("{harmed:?} {key}, same machine: {same}");
                let (store, cache) = ward.fork();
                harm(&store, &key, harmed);
                assert!(!ward.check(&store).is_sound(), "{when}");
                let before = keys(&store, "").len();
                // A machine that has no node of the snapshot at hand.
                let surgeon = ward.fresh();
                let repo = ward.open(&store, &surgeon);
                let plan = packs::plan(&repo, &options(), &Progress::default()).unwrap();
                let said = plan.dry_run(&repo, &Progress::default()).unwrap();
                assert_eq!(keys(&store, "").len(), before, "{when}: a dry run writes nothing");
                drop(repo);
                let (bad, report) = repaired(&store, &surgeon, &when);
                assert_eq!(bad.len(), 1, "{when}: {bad:?}");
                assert_eq!(bad[0].name().to_string(), key.as_str());
                assert_eq!((said.copied, &said.lost), (report.copied, &report.lost), "{when}");
                match harmed {
                    Harm::Gone => assert!(report.copied == 0 && !report.lost.is_empty(), "{when}: {report:?}"),
                    Harm::Rotten => assert!(report.copied > 0 && report.lost.len() == 1, "{when}: {report:?}"),
                    Harm::Shorter | Harm::RottenEnd => {
                        assert!(report.copied > 0 && report.lost.is_empty(), "{when}: {report:?}");
                        assert!(report.after.is_sound(), "{when}: {:?}", report.after.findings);
                        ward.assert_sound(&store, &when);
                    }
                }
                if !report.lost.is_empty() {
                    assert!(report.after.damaged_files_total > 0, "{when}");
                    assert!(
                        !ward.check(&store).is_sound(),
                        "{when}: nobody takes what is lost for sound"
                    );
                }
                let cache = if same { cache } else { ward.fresh() };
                let healed = back_up(Arc::new(store.clone()), &cache, &admin(), &ward.source());
                assert_eq!(healed.stats.chunks_new > 0, !report.lost.is_empty(), "{when}");
                ward.assert_sound(&store, &when);
                // No more is stored, and nothing is read again.
                let again = back_up(Arc::new(store.clone()), &cache, &admin(), &ward.source());
                assert_eq!((again.stats.chunks_new, again.stats.bytes_read), (0, 0), "{when}");
                let pruned =
                    prune_all(&store, &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
                assert_eq!((pruned.lost, pruned.waiting.packs), (0, 0), "{when}: {pruned:?}");
                ward.assert_sound(&store, &when);
                assert!(!keys(&store, "").contains(&key), "{when}: it is not needed any more");
                let (bad, report) = repaired(&store, &cache, &when);
                assert!(
                    bad.is_empty() && report.lost.is_empty() && report.after.is_sound(),
                    "{when}"
                );
            }
        }
    }
}

/// What later nights have as deltas is lost with its base, and what of it is the current state of the source comes back. The rest is
/// named and given up by an admin, and by nobody else.
#[test]
fn a_lost_base_takes_its_deltas_along_and_the_loss_is_accepted() {
    for harmed in [Harm::Gone, Harm::Rotten] {
        let when = format!("{harmed:?}");
        let ward = Ward::with_nights();
        let repo = ward.open(&ward.store, &ward.cache());
        assert!(repo.index.has_deltas().unwrap());
        let mut first = None;
        repo.index
            .packs(&mut |pack| {
                first = first
                    .take()
                    .or((pack.kind == larder::pure::format::name::PackKind::Data).then_some(pack));
            })
            .unwrap();
        let first = first.unwrap();
        drop(repo);
        let key = StoreKey::new(
            larder::pure::format::name::ObjectName::Pack(first.kind, first.pack, first.session).to_string(),
        )
        .unwrap();
        if harmed == Harm::Gone {
            harm(&ward.store, &key, harmed);
        } else {
            // In every kilobyte: most frames are lost, bases among them.
            let mut bytes = ward
                .store
                .read(&key, larder::edge::store::Part::Whole)
                .unwrap()
                .to_vec();
            let end = bytes.len() - 20_000;
            (1_000..end).step_by(1_000).for_each(|at| bytes[at] ^= 1);
            ward.store.remove(std::slice::from_ref(&key)).unwrap();
            let _ = ward.store.create(&key, bytes.into()).unwrap();
        }
        let before = ward.restorable(&ward.store, &when);
        let (_, report) = repaired(&ward.store, &ward.cache(), &when);
        assert!(!report.lost.is_empty() && !report.after.is_sound(), "{when}");
        assert!(ward.restorable(&ward.store, &when).is_superset(&before), "{when}");
        let mut ward = ward;
        ward.night();
        let whole = ward.whole(&ward.store, &when);
        assert_eq!(whole[2..], [true, true], "{when}: what the source has");
        assert!(!whole[0] && !whole[1], "{when}: {whole:?}");
        let cache = ward.cache();
        let named = check::run(
            &ward.open(&ward.store, &cache),
            &check::Options {
                threads: 1,
                ..Default::default()
            },
            &Progress::default(),
        )
        .unwrap();
        let files: BTreeSet<String> = named
            .damaged_files
            .iter()
            .map(|file| String::from_utf8_lossy(&file.path).into_owned())
            .collect();
        assert!(files.iter().any(|path| path.ends_with("changes")), "{when}: {files:?}");
        assert!(!files.iter().any(|path| path.ends_with("stays")), "{when}: {files:?}");
        // Prune goes on over what is known to be lost, and keeps the pack that has it.
        let pruned = prune_all(&ward.store, &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        assert!(pruned.lost > 0, "{when}: {pruned:?}");
        assert_eq!(keys(&ward.store, "").contains(&key), harmed == Harm::Rotten, "{when}");
        // Packs with deltas against what is lost are among them: should that come back, they can be read.
        assert!(pruned.kept_damaged.packs > 0, "{when}: {pruned:?}");
        assert!(ward.restorable(&ward.store, &when).is_superset(&before), "{when}");
        let repo = ward.open(&ward.store, &cache);
        let loss = repair::loss(&repo).unwrap();
        assert!(!loss.chunks.is_empty(), "{when}");
        repair::accept(&repo, &loss).unwrap();
        assert_eq!(repair::loss(&repo).unwrap().chunks, [], "{when}");
        drop(repo);
        let pruned = prune_all(&ward.store, &ward.fresh()).unwrap();
        assert_eq!(
            (pruned.kept_damaged.packs, pruned.waiting.packs),
            (0, 0),
            "{when}: {pruned:?}"
        );
        assert!(!keys(&ward.store, "").contains(&key), "{when}");
        assert_eq!(ward.whole(&ward.store, &when)[2..], [true, true], "{when}");
    }
}

/// Lost tree nodes: nothing is deleted until it is known what they referred to, or accepted that it is not.
#[test]
fn prune_refuses_while_nodes_are_lost_and_goes_on_when_that_is_accepted() {
    let ward = Ward::with_nights();
    let theirs = keys(&ward.store, "meta/");
    for key in &theirs {
        harm(&ward.store, key, Harm::Gone);
    }
    let surgeon = ward.fresh();
    let (bad, report) = repaired(&ward.store, &surgeon, "no metadata");
    assert_eq!((bad.len(), report.copied), (theirs.len(), 0));
    let refused = prune_all(&ward.store, &surgeon).unwrap_err();
    assert!(matches!(refused, OpError::InDoubt { .. }), "{refused:?}");
    // The machine of the source has the nodes of the newest snapshot, or makes them anew.
    let mut ward = ward;
    ward.night();
    let whole = ward.whole(&ward.store, "healed");
    assert_eq!(whole[2..], [true, true]);
    if whole[..2] != [true, true] {
        assert!(prune_all(&ward.store, &surgeon).is_err());
        let repo = ward.open(&ward.store, &surgeon);
        let loss = repair::loss(&repo).unwrap();
        repair::accept(&repo, &loss).unwrap();
        drop(repo);
        prune_all(&ward.store, &surgeon).unwrap();
        assert_eq!(ward.whole(&ward.store, "accepted")[2..], [true, true]);
    }
}

/// Every call fails once, and from then on: what could be restored can be, and running it again completes it.
#[test]
fn repair_of_packs_may_stop_anywhere() {
    let ward = Ward::with_one_night();
    harm(&ward.store, &keys(&ward.store, "data/")[0], Harm::Rotten);
    let before = ward.restorable(&ward.store, "before");
    assert!(before.len() > 20 && before.len() < ward.nights[0].1.len());
    let (store, cache) = ward.fork();
    let counted = Arc::new(FaultStore::new(store.clone(), None));
    repair(counted.clone(), &cache).unwrap();
    assert_eq!(ward.restorable(&store, "whole"), before);
    let mut cases = 0;
    for call in 0..counted.calls() {
        for fault in Fault::at(call).into_iter().filter(|fault| fault.lasting) {
            let (store, cache) = ward.fork();
            let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
            let result = repair(faulty.clone(), &cache);
            if !faulty.has_failed() {
                continue;
            }
            cases += 1;
            let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
            assert_no_false_alarm(&result, &when);
            assert_eq!(ward.restorable(&store, &when), before, "{when}");
            let (_, report) = repaired(&store, &cache, &when);
            assert!(report.after.damaged_files_total > 0, "{when}");
            assert_eq!(ward.restorable(&store, &when), before, "{when}");
            back_up(Arc::new(store.clone()), &cache, &admin(), &ward.source());
            ward.assert_sound(&store, &when);
            std::fs::remove_dir_all(&cache).unwrap();
        }
    }
    eprintln!("{cases} faults in {} calls", counted.calls());
}

/// A whole backup of another machine between any two calls of a repair: at worst the next one heals what it has relied on.
#[test]
fn backup_at_any_moment_of_a_repair_of_packs_is_healed_by_the_next() {
    let mut ward = Ward::with_one_night();
    harm(&ward.store, &keys(&ward.store, "data/")[0], Harm::Rotten);
    ward.write("new", &noise(77, 5_000));
    let (store, cache) = ward.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    repair(counted.clone(), &cache).unwrap();
    for call in 0..counted.calls() {
        let (store, cache) = ward.fork();
        let theirs = ward.fresh();
        let made = Arc::new(parking_lot::Mutex::new(None));
        let visit = {
            let (store, source, made, theirs) = (store.clone(), ward.source(), made.clone(), theirs.clone());
            move || *made.lock() = back_up(Arc::new(store), &theirs, &writer(), &source).snapshot
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let when = format!("visited at call {call} ({})", counted.log()[call as usize]);
        repair(shared, &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        let new = made.lock().take().unwrap();
        ward.nights.push((new, tree(&ward.source())));
        back_up(Arc::new(store.clone()), &theirs, &writer(), &ward.source());
        ward.assert_sound(&store, &when);
        ward.nights.pop();
    }
}
