//! Uniting index runs (format-spec chapter 8.3), and tidying (16.4): there are few small objects then, and everybody finds everything that was found before.
//! That nothing is lost when it dies anywhere, and beside backups, is in `prune`, where every prune unites runs.

use crate::fault::{admin, copy_dir, try_open, writer};
use crate::prune::{Yard, back_up, every_call_may_fail_from, keys, other_source, prune_options, prune_with};
use larder::edge::host;
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Part, Store, StoreKey};
use larder::ops::holders::{self, Duty};
use larder::ops::{Progress, check, prune};
use larder::pure::base::Timestamp;
use larder::pure::crypto::{Secret, hash};
use larder::pure::format::mark::Hold;
use larder::pure::format::name::ObjectName;
use larder::pure::format::outcome::{Outcome, OutcomeKind, RunDescriptor};
use larder::pure::format::run::part::{self, PartContent, PartIdentity};
use larder::pure::format::session::SessionRole;
use larder::pure::id::{ChunkId, ObjectHash, SessionId};
use larder::repo::Repo;
use larder::repo::index::{ChunkPlace, PackState};
use larder::repo::locate::{IndexLocator, Locate, RunLocator};
use larder::repo::open::{Credential, create_new};
use larder::repo::runs::ListedRun;
use larder::repo::session::Session;
use larder::testing::fault_store::FaultStore;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    let described = |store: &MemoryStore| {
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

const DAY: i64 = 86_400_000_000_000;

fn count(yard: &Yard, under: &str) -> usize {
    crate::prune::keys(&yard.store, under).len()
}

/// Nights and prunes, a day apart by the store's clock, with something forgotten each time.
#[test]
fn small_objects_do_not_pile_up() {
    let mut yard = Yard::new(|_| {});
    let known = yard.fresh();
    for night in 0..16usize {
        yard.store.set_time(Timestamp(30_000 * DAY + night as i64 * DAY));
        yard.write("of the night", &crate::story::noise(night as u64, 60_000));
        yard.night();
        if night >= 2 {
            yard.forget(night - 2);
        }
        let report = yard.prune();
        assert_eq!(report.notes, [] as [String; 0]);
        eprintln!(
            "{night}: {} united, {} tidied; gc {} idx {} sess {}",
            report.runs_united,
            report.tidied,
            count(&yard, "gc/"),
            count(&yard, "idx/"),
            count(&yard, "sess/")
        );
        if night == 7 {
            open(&yard, &known).sync_index().unwrap();
        }
    }
    assert!(count(&yard, "gc/") <= 3, "{} condemnations", count(&yard, "gc/"));
    // Three or four sessions a night, two or three objects each, for eight days.
    let (said, runs) = (
        count(&yard, "sess/"),
        open(&yard, &yard.cache()).list_runs().unwrap().len(),
    );
    assert!(said <= 9 * 12, "{said} objects of sessions");
    assert!(runs <= 12, "{runs} runs");
    assert_eq!(yard.assert_sound(&yard.store, "after all nights"), yard.ids([14, 15]));
    // A machine that has not been there for half of the time.
    let repo = open(&yard, &known);
    let sync = repo.sync_index().unwrap();
    assert!(sync.broken.is_empty() && sync.missing.is_empty(), "{sync:?}");
    drop(repo);
    let again = back_up(Arc::new(yard.store.clone()), &known, &admin(), &yard.source()).unwrap();
    assert!(again.snapshot.is_some());
}

#[test]
fn nothing_is_tidied_before_its_time_or_without_a_clock() {
    for time in [None, Some(Timestamp(30_000 * DAY))] {
        let yard = Yard::with_nights();
        if let Some(time) = time {
            yard.store.set_time(time);
        }
        yard.forget(1);
        for _ in 0..3 {
            let report = yard.prune();
            assert_eq!(report.tidied, 0, "{time:?}: {report:?}");
        }
        assert!(count(&yard, "gc/") == 1 && count(&yard, "idx/0-") >= 3);
    }
}

#[test]
fn what_a_damaged_run_was_made_of_stays() {
    let yard = Yard::with_nights();
    yard.store.set_time(Timestamp(30_000 * DAY));
    yard.prune();
    let parts: Vec<StoreKey> = crate::prune::keys(&yard.store, "idx/1-").into_keys().collect();
    let mut bytes = yard.store.read(&parts[parts.len() / 2], Part::Whole).unwrap().to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    yard.store.overwrite(&parts[parts.len() / 2], bytes.into());
    yard.store.set_time(Timestamp(30_003 * DAY));
    let report = yard.prune();
    assert!(
        report.notes.iter().any(|note| note.contains("is damaged")),
        "{report:?}"
    );
    assert_eq!(report.damaged_runs.len(), 1, "{report:?}");
    assert_eq!(count(&yard, "idx/0-"), 3);
}

/// A repository in which everything that can be tidied is old enough: absorbed runs, an empty condemnation, ended sessions.
fn untidy() -> Yard {
    let yard = Yard::with_nights();
    yard.store.set_time(Timestamp(30_000 * DAY));
    yard.forget(1);
    let report = yard.prune();
    assert!(report.runs_united > 0 && report.deleted.packs > 0, "{report:?}");
    yard.store.set_time(Timestamp(30_010 * DAY));
    yard
}

fn prune(store: Arc<dyn Store>, cache: &Path) -> Result<(), larder::ops::OpError> {
    prune_with(store, cache, &prune_options()).map(drop)
}

/// What comes before is tried in `prune`.
fn first_call_of_tidying(yard: &Yard) -> u64 {
    let (store, cache) = yard.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    prune(counted.clone(), &cache).unwrap();
    counted.log().iter().rposition(|call| call == "listing meta/").unwrap() as u64
}

#[test]
fn tidying_that_dies_loses_nothing_and_can_be_repeated() {
    let yard = untidy();
    // The first one leaves an outcome of now, by which the second one tells the time.
    let (store, cache) = yard.fork();
    for _ in 0..2 {
        prune(Arc::new(store.clone()), &cache).unwrap();
    }
    let left = |store: &MemoryStore| {
        (
            crate::prune::keys(store, "gc/").len(),
            crate::prune::keys(store, "idx/0-").len(),
        )
    };
    assert_eq!(left(&yard.store), (1, 3));
    assert_eq!(left(&store), (0, 0));
    let done = |store: &MemoryStore, when: &str| assert_eq!(left(store), (0, 0), "{when}");
    every_call_may_fail_from(first_call_of_tidying(&yard), &yard, &yard.ids([0, 2]), &prune, &done);
}

/// A whole backup of a machine that knew the runs, between any two calls of a prune that tidies.
#[test]
fn backup_at_any_moment_of_tidying_is_whole() {
    let yard = untidy();
    let (other, content) = other_source(&yard);
    let known = yard.fresh();
    let repo = try_open(Arc::new(yard.store.clone()), &known, &writer()).unwrap();
    repo.sync_history().unwrap();
    repo.sync_index().unwrap();
    drop(repo);
    let (store, cache) = yard.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    prune(counted.clone(), &cache).unwrap();
    let log = counted.log();
    for call in first_call_of_tidying(&yard)..counted.calls() {
        let (store, cache) = yard.fork();
        let other_cache = yard.fresh();
        copy_dir(&known, &other_cache);
        let made = Arc::new(parking_lot::Mutex::new(None));
        let visit = {
            let (store, cache, source, made) = (store.clone(), other_cache.clone(), other.clone(), made.clone());
            move || {
                *made.lock() = Some(back_up(Arc::new(store), &cache, &writer(), &source).expect("the other machine"))
            }
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let when = format!("visited at call {call} ({})", log[call as usize]);
        prune(shared, &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        let new = made.lock().take().unwrap().snapshot.unwrap();
        let also = BTreeMap::from([(new, content.clone())]);
        assert!(yard.assert_restores(&store, &when, &also).contains(&new), "{when}");
        std::fs::remove_dir_all(&cache).unwrap();
        std::fs::remove_dir_all(&other_cache).unwrap();
    }
}

/// A whole prune of another machine, which removes the same things, between any two calls of a prune that tidies.
#[test]
fn prune_at_any_moment_of_tidying_is_no_failure() {
    let yard = untidy();
    let (store, cache) = yard.fork();
    let counted = Arc::new(FaultStore::new(store.clone(), None));
    prune(counted.clone(), &cache).unwrap();
    let removes = |under: &str| keys(&store, under).len() < keys(&yard.store, under).len();
    assert!(
        removes("gc/") && removes("idx/") && removes("sess/"),
        "all that a prune removes is removed"
    );
    let log = counted.log();
    for call in first_call_of_tidying(&yard)..counted.calls() {
        let (store, cache) = yard.fork();
        let other_cache = yard.fresh();
        let visit = {
            let (store, cache) = (store.clone(), other_cache.clone());
            move || {
                prune(Arc::new(store), &cache).expect("the other machine");
            }
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let when = format!("visited at call {call} ({})", log[call as usize]);
        prune(shared, &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        yard.assert_sound(&store, &when);
        std::fs::remove_dir_all(&cache).unwrap();
        std::fs::remove_dir_all(&other_cache).unwrap();
    }
}

/// A maintainer has read the runs while the packs that it describes were there, slept while they were condemned and deleted, and publishes its
/// run at the moment at which another one looks who is running: what its run describes stays condemned.
#[test]
fn a_run_that_comes_late_keeps_the_condemnation_of_its_packs() {
    let yard = Yard::with_nights();
    yard.store.set_time(Timestamp(30_000 * DAY));
    let key = Credential::KeyFile(Secret::new([9; 32]));
    let repo = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &admin()).unwrap();
    holders::add(&repo, "late", Duty::Maintainer, &key).unwrap();
    drop(repo);
    yard.forget(1);
    assert!(yard.prune().deleted.packs > 0);

    let late = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &key).unwrap();
    late.sync_history().unwrap();
    let session = Session::begin(&late, None, SessionRole::Compact, 1, Instant::now()).unwrap();
    let [generation] = session.acknowledged()[..] else {
        panic!("{:?}", session.acknowledged())
    };
    let gone = late.index.condemned_by(&generation).unwrap();
    let describes_it = |run: &ListedRun| {
        let (_, content) = late.fetch_run(run).unwrap();
        content
            .packs
            .iter()
            .any(|pack| gone.contains(&pack.pack))
            .then_some((run.name(), content))
    };
    let listed = late.list_runs().unwrap();
    let (input, content) = listed
        .iter()
        .filter(|run| run.level == 0)
        .find_map(describes_it)
        .unwrap();
    let identity = PartIdentity {
        kid: late.kid,
        created: host::now(),
        level: 1,
        session: session.id(),
        number: 0,
    };
    let contents = [
        PartContent::Slots {
            first: 0,
            slots: content.slots,
        },
        PartContent::Packs {
            first: 0,
            packs: content.packs,
        },
        PartContent::Chunks {
            chunks: content.chunks,
            deltas: content.deltas,
        },
    ];
    let parts = contents.map(|content| {
        let (suffix, bytes) = part::encode(&content, &identity, &late.keys, &late.signer, host::random()).unwrap();
        let written = (suffix.clone(), bytes.len() as u64, ObjectHash(hash(&bytes)));
        let name = ObjectName::RunPart(1, session.id(), suffix);
        create_new(&*late.store, &name, bytes, "a part").unwrap();
        written
    });
    let outcome = Outcome {
        kid: late.kid,
        created: host::now(),
        kind: OutcomeKind::Maintenance,
        session: session.id(),
        accepted: Vec::new(),
        run: Some(RunDescriptor {
            level: 1,
            parts: parts.to_vec(),
            inputs: vec![input],
            dropped_packs: Vec::new(),
        }),
        manifest: None,
        sequence: 0,
        previous: None,
        acked: vec![generation],
        pins: Vec::new(),
        source: None,
        flags: 0,
        chain_floors: Vec::new(),
    };
    let sealed = outcome.encode(None, &late.keys, &late.signer, host::random()).unwrap();
    let name = ObjectName::Outcome(session.id());
    // It sleeps: nobody ends it.
    std::mem::forget(session);

    yard.store.set_time(Timestamp(30_001 * DAY + DAY / 2));
    let (store, cache) = yard.fork();
    let counted = Arc::new(FaultStore::new(store.clone(), None));
    prune(counted.clone(), &cache).unwrap();
    assert_eq!(
        crate::prune::keys(&store, "gc/").len(),
        1,
        "it waits for who is running"
    );
    let looks = counted.log().iter().rposition(|call| call == "listing sess/").unwrap() as u64;
    for call in 0..=looks {
        let (store, cache) = yard.fork();
        let visit = {
            let (store, name, sealed) = (store.clone(), name.clone(), sealed.clone());
            move || create_new(&store, &name, sealed, "an outcome").unwrap()
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let when = format!("published at call {call}");
        prune(shared, &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        let repo = try_open(Arc::new(store.clone()), &yard.fresh(), &admin()).unwrap();
        repo.sync_history().unwrap();
        repo.sync_condemned().unwrap();
        repo.sync_index().unwrap();
        // What a new machine would refer to.
        let mut trusted = Vec::new();
        repo.index
            .packs(&mut |info| trusted.extend((info.state == PackState::Live).then_some(info.pack)))
            .unwrap();
        assert!(
            !trusted.iter().any(|pack| gone.contains(pack)),
            "{when}: a pack that was deleted is trusted"
        );
    }
}
