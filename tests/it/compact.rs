//! Uniting index runs (format-spec chapter 8.3): there are few of them then, and everybody finds everything that was found before.
//! That nothing is lost when it dies anywhere, and beside backups, is in `prune`, where every prune unites runs.

use crate::fault::{admin, copy_dir, try_open, writer};
use crate::prune::{Yard, back_up, prune_options, prune_with};
use larder::edge::host;
use larder::edge::store::{Part, Store, StoreKey};
use larder::ops::{Progress, check, prune};
use larder::pure::format::mark::Hold;
use larder::pure::format::name::ObjectName;
use larder::pure::id::{ChunkId, SessionId};
use larder::repo::Repo;
use larder::repo::index::ChunkPlace;
use larder::repo::locate::{IndexLocator, Locate, RunLocator};
use larder::repo::open::create_new;
use larder::repo::runs::ListedRun;
use larder::testing::fault_store::FaultStore;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn runs(repo: &Repo) -> (Vec<ListedRun>, Vec<ListedRun>) {
    let valid = repo.valid_runs().unwrap();
    assert_eq!(valid.missing, [] as [String; 0]);
    (valid.tops, valid.absorbed)
}

fn open(yard: &Yard, cache: &Path) -> Repo {
    let repo = try_open(Arc::new(yard.store.clone()), cache, &admin()).unwrap();
    repo.sync_history().unwrap();
    repo.sync_condemned().unwrap();
    repo
}

/// A snapshot that was forgotten is needed after all.
fn hold(repo: &Repo, session: SessionId) {
    let hold = Hold {
        kid: repo.kid,
        created: host::now(),
        session,
        until: None,
        reason: String::new(),
    };
    let body = hold.encode("court", &repo.keys, &repo.signer, host::random()).unwrap();
    create_new(&*repo.store, &ObjectName::Hold(session, "court".into()), body, "a hold").unwrap();
}

/// Every chunk that the trees of all snapshots need.
fn needed(repo: &Repo) -> BTreeSet<ChunkId> {
    let valid = repo.valid_runs().unwrap();
    let level0 = valid.tops.iter().filter(|run| run.level == 0);
    let chunks = level0.flat_map(|run| repo.fetch_run(run).unwrap().1.chunks);
    chunks.map(|chunk| chunk.id).collect()
}

fn places(locator: &dyn Locate, repo: &Repo, id: &ChunkId) -> Vec<ChunkPlace> {
    let mut places = Vec::new();
    let each = &mut |place| {
        places.push(place);
        ControlFlow::Continue(())
    };
    locator.copies(repo, id, each).unwrap();
    places.sort_by_key(|place| (place.pack, place.offset));
    places
}

#[test]
fn united_runs_lead_everybody_to_every_copy() {
    let yard = Yard::with_nights();
    let known = yard.fresh();
    let before = open(&yard, &known);
    before.sync_index().unwrap();
    let ids = needed(&before);
    assert!(ids.len() > 100, "{}", ids.len());
    let expected: Vec<_> = ids.iter().map(|id| places(&IndexLocator, &before, id)).collect();
    assert!(expected.iter().all(|places| !places.is_empty()));
    drop(before);

    let report = yard.prune();
    assert_eq!(report.runs_united, 3, "{report:?}");
    assert_eq!(report.chunks_united, ids.len() as u64);
    let repo = open(&yard, &yard.fresh());
    let (tops, absorbed) = runs(&repo);
    assert_eq!((tops.len(), absorbed.len()), (1, 3));
    assert!(tops[0].objects.len() > 5, "parts of every kind: {:?}", tops[0].objects);

    // A machine that knew the runs, one that did not, and one that has no index.
    repo.sync_index().unwrap();
    let relabelled = open(&yard, &known);
    assert_eq!(relabelled.sync_index().unwrap().imported, 1);
    assert_eq!(relabelled.index.known_runs().unwrap(), [tops[0].name()].into());
    let bare = RunLocator::new(tops);
    for (id, expected) in ids.iter().zip(&expected) {
        assert_eq!(&places(&IndexLocator, &repo, id), expected, "{id}");
        assert_eq!(&places(&IndexLocator, &relabelled, id), expected, "{id}");
        assert_eq!(&places(&bare, &repo, id), expected, "{id}");
    }
    let nowhere = ChunkId([0x77; 32]);
    assert_eq!(places(&bare, &repo, &nowhere), []);
}

#[test]
fn a_machine_that_knows_what_was_united_downloads_nothing() {
    let yard = Yard::with_nights();
    let known = yard.fresh();
    open(&yard, &known).sync_index().unwrap();
    yard.prune();
    let counted = Arc::new(FaultStore::new(yard.store.clone(), None));
    let repo = try_open(counted.clone(), &known, &admin()).unwrap();
    repo.sync_history().unwrap();
    repo.sync_index().unwrap();
    let read: Vec<String> = counted
        .log()
        .into_iter()
        .filter(|call| call.starts_with("reading idx/"))
        .collect();
    assert_eq!(read, [] as [String; 0]);
    drop(repo);
    // And refers to what it knew: nothing is uploaded again.
    let again = back_up(counted.clone(), &known, &admin(), &yard.source()).unwrap();
    assert!(again.snapshot.is_some());
    let written: Vec<String> = counted
        .log()
        .into_iter()
        .filter(|call| call.starts_with("writing data/"))
        .collect();
    assert_eq!(written, [] as [String; 0]);
}

#[test]
fn what_is_gone_is_described_no_more_and_what_is_only_condemned_is() {
    let yard = Yard::with_nights();
    yard.forget(0);
    yard.forget(1);
    let (store, cache) = yard.fork();
    let kept = prune::Options {
        grace: Duration::from_secs(86_400),
        ..prune_options()
    };
    let report = prune_with(Arc::new(store.clone()), &cache, &kept).unwrap();
    assert!(report.waiting.packs > 0 && report.runs_united > 0, "{report:?}");
    let described = |store: &larder::edge::store::memory::MemoryStore| {
        let repo = try_open(Arc::new(store.clone()), &yard.fresh(), &admin()).unwrap();
        repo.sync_history().unwrap();
        repo.sync_condemned().unwrap();
        repo.sync_index().unwrap();
        let stats = repo.index.stats().unwrap();
        (stats.packs_live, stats.packs_condemned)
    };
    let (live, condemned) = described(&store);
    assert_eq!(condemned, report.waiting.packs, "a sweep may have to copy out of them");
    // A machine that knew nothing rescues through the united run: somebody refers to what was condemned.
    let held = store.fork();
    let repo = try_open(Arc::new(held.clone()), &yard.fresh(), &admin()).unwrap();
    hold(&repo, yard.nights[1].0);
    drop(repo);
    let rescue = prune_with(Arc::new(held.clone()), &yard.fresh(), &prune_options()).unwrap();
    assert!(rescue.rescued > 0, "{rescue:?}");
    assert!(yard.assert_sound(&held, "after a rescue").contains(&yard.nights[1].0));

    let report = prune_with(Arc::new(store.clone()), &cache, &prune_options()).unwrap();
    assert!(report.deleted.packs > 0 && report.runs_united > 0, "{report:?}");
    assert_eq!(described(&store), (live, 0));
    assert_eq!(yard.assert_sound(&store, "after all"), yard.ids([2]));
}

#[test]
fn a_damaged_part_is_told_and_what_it_was_made_of_serves_instead() {
    let yard = Yard::with_nights();
    yard.prune();
    let parts: Vec<StoreKey> = crate::prune::keys(&yard.store, "idx/1-").into_keys().collect();
    assert!(parts.len() > 5);
    for part in [&parts[0], &parts[parts.len() - 1], &parts[parts.len() / 2]] {
        let store = yard.store.fork();
        let mut bytes = store.read(part, Part::Whole).unwrap().to_vec();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        store.remove(std::slice::from_ref(part)).unwrap();
        let _ = store.create(part, bytes.into()).unwrap();
        let repo = try_open(Arc::new(store.clone()), &yard.fresh(), &admin()).unwrap();
        repo.sync_history().unwrap();
        let sync = repo.sync_index().unwrap();
        assert_eq!((sync.broken.len(), sync.imported), (1, 3), "{part}");
        let report = check::run(&repo, &check::Options::default(), &Progress::default()).unwrap();
        assert!(
            !report.findings.is_empty() && report.damaged_files.is_empty(),
            "{part}: {report:?}"
        );
        drop(repo);
        let new = back_up(Arc::new(store.clone()), &yard.fresh(), &writer(), &yard.source()).unwrap();
        assert!(new.snapshot.is_some());
    }
}

#[test]
fn many_nights_leave_few_runs() {
    let mut yard = Yard::new(|_| {});
    let mut most = 0;
    for night in 0..20u64 {
        yard.write("of the night", &crate::story::noise(night, 3_000));
        yard.night();
        let report = yard.prune();
        most = most.max(report.runs_united);
    }
    let repo = open(&yard, &yard.cache());
    let (tops, _) = runs(&repo);
    assert!(tops.len() <= 8, "{} runs", tops.len());
    assert!(most <= 9, "and a night unites few: {most}");
    drop(repo);
    let all = (0..20).collect::<Vec<_>>();
    assert_eq!(yard.assert_sound(&yard.store, "after twenty nights"), yard.ids(all));
}

#[test]
fn two_machines_that_unite_at_once_agree() {
    let yard = Yard::with_nights();
    let (store, cache) = yard.fork();
    let other = yard.fresh();
    copy_dir(&cache, &other);
    let visit = {
        let (store, other) = (store.clone(), other.clone());
        move || drop(prune_with(Arc::new(store), &other, &prune_options()).unwrap())
    };
    let counted = Arc::new(FaultStore::new(store.fork(), None));
    prune_with(counted.clone(), &yard.fresh(), &prune_options()).unwrap();
    let log = counted.log();
    let first = log.iter().position(|call| call.starts_with("writing idx/1-")).unwrap() as u64;
    let shared = Arc::new(FaultStore::visited_at(store.clone(), first, visit));
    prune_with(shared, &yard.fresh(), &prune_options()).unwrap();
    assert_eq!(yard.assert_sound(&store, "united twice"), yard.ids([0, 1, 2]));
    let sessions: BTreeSet<SessionId> = yard.nights.iter().map(|(id, _)| *id).collect();
    assert_eq!(sessions.len(), 3);
}
