//! What a machine keeps for itself may be old, shared by several processes, full, damaged or copied: that costs time and never
//! the backup, and it never makes larder say what is not so.

use crate::story::{credential, noise, options};
use larder::edge::host;
use larder::edge::store::{Part, Prefix, Store, StoreKey, memory::MemoryStore};
use larder::ops::{OpError, Progress, backup, check};
use larder::pure::base::Timestamp;
use larder::pure::crypto::{Secret, Slot};
use larder::pure::format::blob::{BlobType, Codec};
use larder::pure::format::condemn::{CondemnKind, Condemnation, CondemnedPack};
use larder::pure::format::name::{ObjectName, PackKind};
use larder::pure::format::outcome::{Outcome, OutcomeKind};
use larder::pure::format::run::{RunChunk, RunContent, RunDelta, RunPack, StoredAs};
use larder::pure::format::session::SessionRole;
use larder::pure::id::{ChunkId, KeyId, PackId, SessionId};
use larder::repo::open::{self, Credential, LocalOptions, create_new};
use larder::repo::pack_writer::{Claim, PackWriter, SessionKeys};
use larder::repo::session::{OutcomeLabel, Session};
use larder::repo::snapshots::Filter;
use larder::repo::{Repo, RepoError};
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::fault_store::FaultStore;
use larder::testing::small::SmallRepo;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A small repository in memory, caches by name, and a source.
struct Place {
    dir: tempfile::TempDir,
    store: MemoryStore,
}

fn second_key() -> Credential {
    Credential::KeyFile(Secret::new([8; 32]))
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = MemoryStore::new();
        let mut small = SmallRepo::init(&store, &credential()).unwrap();
        small.add_writer(&store, "second", &second_key()).unwrap();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        std::fs::write(dir.path().join("source/file"), noise(1, 5000)).unwrap();
        Place { dir, store }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn cache(&self, machine: &str) -> PathBuf {
        self.dir.path().join(machine)
    }

    fn try_open(&self, store: Arc<dyn Store>, machine: &str, key: &Credential) -> Result<Repo, RepoError> {
        let options = LocalOptions {
            cache_dir: self.cache(machine),
            index: larder::pure::base::memory::IndexShare::with_filter(1 << 20),
            node_cache_bytes_max: 1 << 20,
        };
        open::connect(store, options)?.unlock(key)
    }

    fn open(&self, machine: &str) -> Repo {
        self.try_open(Arc::new(self.store.clone()), machine, &credential())
            .unwrap()
    }

    fn back_up(&self, machine: &str, host: &str) -> backup::Report {
        back_up(&self.open(machine), &self.source(), host).unwrap()
    }

    /// A file of the cache of this repository on a machine.
    fn local(&self, machine: &str, name: &str) -> PathBuf {
        let repo = self.open(machine);
        repo.state_dir.join(name)
    }

    /// A check of all data on a machine that knows nothing finds nothing.
    fn assert_sound(&self, when: &str) {
        let repo = self.open(&format!("checker {when}"));
        let everything = check::Options {
            read_data: Some(check::Subset::All),
            threads: 1,
            ..Default::default()
        };
        let report = check::run(&repo, &everything, &Progress::default()).unwrap();
        assert!(report.findings.is_empty(), "{when}: {:?}", report.findings);
    }
}

fn back_up(repo: &Repo, source: &Path, host: &str) -> Result<backup::Report, OpError> {
    let input = backup::Input::Paths {
        roots: vec![source.to_owned()],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let options = backup::Options {
        host: host.into(),
        threads: 1,
        ..options()
    };
    backup::run(repo, input, &options, &Progress::default())
}

fn of_host(host: &str) -> Filter {
    Filter {
        host: Some(host.into()),
        ..Filter::default()
    }
}

fn find(repo: &Repo, text: &str, filter: &Filter) -> SessionId {
    let never = |time: &str| (time == "end").then_some(Timestamp(i64::MAX));
    repo.find_snapshot(text, filter, &never).unwrap().0.id
}

/// Stores again every object below a prefix, in the order of `names`: a copy, with times of its own.
fn copy_in_order(store: &MemoryStore, names: &[String]) {
    for (second, name) in names.iter().enumerate() {
        store.set_time(Timestamp(1_000_000_000 * second as i64));
        let key = StoreKey::new(name.clone()).unwrap();
        let body = store.read(&key, Part::Whole).unwrap();
        store.overwrite(&key, body);
    }
}

/// More snapshots than a machine reads for one answer.
const MANY: usize = 26;

#[test]
fn the_latest_snapshot_and_that_of_a_time_are_not_an_old_one_that_happens_to_be_known() {
    let place = Place::new();
    place.back_up("a", "a");
    find(&place.open("stale"), "latest", &Filter::default());
    std::fs::write(place.source().join("file"), noise(2, 5000)).unwrap();
    let second = place.back_up("a", "a").snapshot.unwrap();
    let mut newest = second;
    for _ in 0..MANY {
        newest = place.back_up("b", "b").snapshot.unwrap();
    }
    let stale = || {
        let machine = place.cache("stale copy");
        let _ = std::fs::remove_dir_all(&machine);
        copy_dir(&place.cache("stale"), &machine);
        place.open("stale copy")
    };
    assert_eq!(find(&stale(), "latest", &of_host("a")), second);
    assert_eq!(find(&stale(), "latest", &of_host("b")), newest);
    assert_eq!(find(&stale(), "latest", &Filter::default()), newest);
    assert_eq!(find(&stale(), "@end", &Filter::default()), newest);
    assert_eq!(find(&stale(), "@end", &of_host("a")), second);
    assert_eq!(find(&stale(), &second.to_string(), &Filter::default()), second);
}

#[test]
fn the_latest_snapshot_of_a_copied_repository_is_not_the_one_that_was_copied_last() {
    let place = Place::new();
    let published: Vec<SessionId> = (0..MANY + 4)
        .map(|_| place.back_up("a", "a").snapshot.unwrap())
        .collect();
    let names: Vec<String> = published.iter().rev().map(|id| format!("snap/{id}")).collect();
    copy_in_order(&place.store, &names);
    assert_eq!(
        find(&place.open("new"), "latest", &Filter::default()),
        published[MANY + 3]
    );
    // In the other order a few reads are enough.
    let names: Vec<String> = published.iter().map(|id| format!("snap/{id}")).collect();
    copy_in_order(&place.store, &names);
    let counted = Arc::new(FaultStore::new(place.store.clone(), None));
    let repo = place.try_open(counted.clone(), "counted", &credential()).unwrap();
    assert_eq!(find(&repo, "latest", &Filter::default()), published[MANY + 3]);
    let reads = counted
        .log()
        .iter()
        .filter(|call| call.starts_with("reading snap/"))
        .count();
    assert!(reads < MANY, "{reads}");
}

#[test]
fn a_forgotten_snapshot_is_not_the_latest_on_a_machine_that_has_read_little() {
    let place = Place::new();
    let published: Vec<SessionId> = (0..MANY + 4)
        .map(|_| place.back_up("a", "a").snapshot.unwrap())
        .collect();
    let names: Vec<String> = published.iter().map(|id| format!("snap/{id}")).collect();
    copy_in_order(&place.store, &names);
    let repo = place.open("a");
    let dropped = larder::pure::format::mark::Drop {
        kid: repo.kid,
        created: host::now(),
        kind: larder::pure::format::mark::DropKind::Forget,
        session: published[MANY + 3],
        reason: String::new(),
    };
    let body = dropped.encode(&repo.keys, &repo.signer, host::random()).unwrap();
    create_new(&place.store, &ObjectName::Drop(published[MANY + 3]), body, "a drop").unwrap();
    assert_eq!(
        find(&place.open("new"), "latest", &Filter::default()),
        published[MANY + 2]
    );
}

#[test]
fn an_outcome_that_cannot_be_read_is_no_obstacle_for_the_others() {
    let place = Place::new();
    let published: Vec<SessionId> = (0..MANY + 4)
        .map(|_| place.back_up("a", "a").snapshot.unwrap())
        .collect();
    let names: Vec<String> = published.iter().map(|id| format!("snap/{id}")).collect();
    copy_in_order(&place.store, &names);
    let name = StoreKey::new(format!("snap/{}", published[MANY + 3])).unwrap();
    place
        .store
        .overwrite(&name, bytes::Bytes::from_static(b"not an outcome"));
    let repo = place.open("new");
    let (found, history) = repo.find_snapshot("latest", &Filter::default(), &|_| None).unwrap();
    assert_eq!(found.id, published[MANY + 2]);
    assert_eq!(history.broken.len(), 1);
}

fn copy_dir(from: &Path, to: &Path) {
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

/// Publishes a condemnation.
fn condemn(repo: &Repo, packs: Vec<(PackKind, PackId, SessionId)>) -> SessionId {
    let session = Session::begin(repo, None, SessionRole::Condemn, 1, Instant::now()).unwrap();
    let generation = session.id();
    session.abandon();
    let packs = packs
        .into_iter()
        .map(|(kind, pack, session)| CondemnedPack {
            pack,
            session,
            kind,
            orphan: false,
            size: 1,
        })
        .collect();
    let condemnation = Condemnation {
        kid: repo.kid,
        created: host::now(),
        kind: CondemnKind::Reclaim,
        session: generation,
        reason: String::new(),
        packs,
        lost: Vec::new(),
        is_accepted: false,
    };
    let body = condemnation.encode(&repo.keys, &repo.signer, host::random()).unwrap();
    create_new(
        &*repo.store,
        &ObjectName::Condemnation(generation),
        body,
        "a condemnation",
    )
    .unwrap();
    generation
}

/// Two processes share a cache. The other one takes a condemnation in first; this one has used a pack that it condemns, and must
/// not say that it has not (mutation 10 of the model).
#[test]
fn a_condemnation_that_another_process_took_in_is_not_acknowledged_when_its_packs_are_used() {
    let place = Place::new();
    place.back_up("a", "a");
    let mine = place.open("a");
    let mut known = None;
    mine.index
        .chunks_in_id_order(&mut |chunk| {
            known = Some((chunk.id, chunk.pack));
            std::ops::ControlFlow::Break(())
        })
        .unwrap();
    let (chunk, handle) = known.unwrap();
    let mut pack = None;
    mine.index
        .packs(&mut |info| {
            if info.handle == handle {
                pack = Some((info.kind, info.pack, info.session));
            }
        })
        .unwrap();
    let mut session = Session::begin(&mine, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    assert_eq!(session.writer().claim(&chunk).unwrap(), Claim::Known);
    let (of_used, of_nothing) = {
        let other = place.open("a");
        let generations = (condemn(&other, vec![pack.unwrap()]), condemn(&other, vec![]));
        other.sync_condemned().unwrap();
        generations
    };
    session.poll().unwrap();
    let id = session.id();
    session.abandon();
    let (stored, _) = mine.fetch_outcome(&id).unwrap();
    assert_eq!(stored.outcome.acked, [of_nothing]);
    assert!(!stored.outcome.acked.contains(&of_used));
}

/// A chunk that is there as a delta only is there if its base is.
#[test]
fn a_delta_counts_as_known_with_its_base_and_both_packs_are_used() {
    let place = Place::new();
    let repo = place.open("a");
    let session_id = SessionId([3; 16]);
    let (delta, base, orphan) = (ChunkId([1; 32]), ChunkId([2; 32]), ChunkId([3; 32]));
    let run = |pack: u8, chunks: Vec<(ChunkId, Option<ChunkId>)>| RunContent {
        slots: vec![Slot([pack; 88])],
        packs: vec![RunPack {
            pack: PackId([pack; 16]),
            session: session_id,
            size: 1000,
            blob_count: chunks.len() as u32,
            kind: PackKind::Data,
            slots: 0..1,
            crc64nvme: 0,
            body_hash24: [0; 24],
        }],
        chunks: chunks
            .iter()
            .map(|(id, base)| RunChunk {
                id: *id,
                pack_ix: 0,
                offset: 64,
                stored_as: base.map_or(StoredAs::Data, |_| StoredAs::Delta),
                stored_len: 100,
            })
            .collect(),
        deltas: chunks
            .iter()
            .filter_map(|(id, base)| {
                Some(RunDelta {
                    id: *id,
                    pack_ix: 0,
                    base: (*base)?,
                })
            })
            .collect(),
    };
    for pack in [1, 2] {
        let name = ObjectName::Pack(PackKind::Data, PackId([pack; 16]), session_id);
        create_new(&place.store, &name, vec![0; 1000], "a pack").unwrap();
    }
    let session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    let import = |name: &str, content: &RunContent| {
        repo.index
            .import_run(name, 0, session_id, KeyId([3; 16]), content)
            .unwrap();
    };
    import(
        "idx/0-03030303030303030303030303030303-0000",
        &run(1, vec![(delta, Some(base)), (orphan, Some(ChunkId([9; 32])))]),
    );
    assert_eq!(session.writer().claim(&orphan).unwrap(), Claim::New);
    import(
        "idx/0-03030303030303030303030303030303-0001",
        &run(2, vec![(base, None)]),
    );
    assert_eq!(session.writer().claim(&delta).unwrap(), Claim::Known);
    assert_eq!(session.writer().used(), [PackId([1; 16]), PackId([2; 16])].into());
    session.writer().poison(RepoError::Interrupted);
}

/// Two backups on one machine at the same minute: neither sees the other's snapshot as one that was taken away.
#[test]
fn two_backups_with_one_cache_do_not_find_gaps() {
    let place = Place::new();
    place.back_up("a", "a");
    place.back_up("a", "b");
    let backed_up = |store: Arc<dyn Store>, machine: &str, host: &str| {
        let repo = place.try_open(store, machine, &credential()).unwrap();
        back_up(&repo, &place.source(), host).unwrap()
    };
    let counted = Arc::new(FaultStore::new(place.store.fork(), None));
    copy_dir(&place.cache("a"), &place.cache("count"));
    backed_up(counted.clone(), "count", "a");
    // Later the lock that keeps a writer's outcomes in a row is held.
    let commit = counted
        .log()
        .iter()
        .position(|call| call.starts_with("writing snap/"))
        .unwrap();
    for call in 0..commit as u64 {
        let (store, machine) = (place.store.fork(), format!("a{call}"));
        copy_dir(&place.cache("a"), &place.cache(&machine));
        let (options, source) = (
            LocalOptions {
                cache_dir: place.cache(&machine),
                index: larder::pure::base::memory::IndexShare::with_filter(1 << 20),
                node_cache_bytes_max: 1 << 20,
            },
            place.source(),
        );
        let visit = {
            let store = store.clone();
            move || {
                let repo = open::connect(Arc::new(store), options)
                    .unwrap()
                    .unlock(&credential())
                    .unwrap();
                back_up(&repo, &source, "b").unwrap();
            }
        };
        let shared = Arc::new(FaultStore::visited_at(store.clone(), call, visit));
        let report = backed_up(shared.clone(), &machine, "a");
        let when = &shared.log()[call as usize];
        assert!(
            report.gaps.is_empty() && report.notes.is_empty(),
            "visited before {when}: {report:?}"
        );
        let known = place
            .try_open(Arc::new(store), &machine, &credential())
            .unwrap()
            .index
            .outcomes()
            .unwrap();
        assert_eq!(known.len(), 4, "visited before {when}");
    }
}

/// Runs SQL in a file of the cache.
fn meddle(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

/// A cache disk that becomes full, or fails, in the middle of a backup: every statement that may fail then does.
#[test]
fn a_backup_survives_a_cache_that_takes_nothing_more() {
    let tables = [
        ("own_pack", "INSERT"),
        ("chunk", "INSERT"),
        ("run", "INSERT"),
        ("run", "UPDATE"),
        ("snap", "INSERT"),
        ("snap_object", "INSERT"),
        ("head", "INSERT"),
        ("mysession", "UPDATE"),
        ("mysession", "INSERT"),
    ];
    let mut place = Place::new();
    place.back_up("a", "a");
    std::fs::write(place.source().join("new"), noise(3, 300_000)).unwrap();
    let before = place.store.clone();
    for (table, verb) in tables {
        place.store = before.fork();
        let when = format!("{verb} {table}");
        let machine = format!("a {when}");
        copy_dir(&place.cache("a"), &place.cache(&machine));
        let index = place.local(&machine, "index.db");
        meddle(
            &index,
            &format!("CREATE TRIGGER full BEFORE {verb} ON {table} BEGIN SELECT RAISE(FAIL, 'full'); END"),
        );
        let report = place.back_up(&machine, "a");
        assert!(report.snapshot.is_some(), "{when}");
        assert!(report.gaps.is_empty(), "{when}: {:?}", report.gaps);
        assert!(!report.notes.is_empty(), "{when}: nothing was said");
        place.assert_sound(&when);
        let report = place.back_up(&machine, "a");
        assert!(report.gaps.is_empty(), "{when}: {:?}", report.gaps);
    }
}

#[test]
fn a_backup_survives_an_index_that_cannot_be_read_any_more() {
    let place = Place::new();
    place.back_up("a", "a");
    std::fs::write(place.source().join("new"), noise(3, 300_000)).unwrap();
    let repo = place.open("a");
    // In use, and gone from under it.
    let mut session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    let mut known = ChunkId([0; 32]);
    repo.index
        .chunks_in_id_order(&mut |chunk| {
            known = chunk.id;
            std::ops::ControlFlow::Break(())
        })
        .unwrap();
    meddle(
        &repo.state_dir.join("index.db"),
        "DROP TABLE chunk_dup; DROP TABLE chunk",
    );
    assert_eq!(session.writer().claim(&known).unwrap(), Claim::New);
    assert!(session.take_notes().iter().any(|note| note.contains("index")));
    session.writer().poison(RepoError::Interrupted);
}

#[test]
fn a_backup_needs_no_cache_of_nodes() {
    let place = Place::new();
    place.back_up("a", "a");
    std::fs::write(place.source().join("new"), noise(3, 3000)).unwrap();
    let nodes = place.local("a", "cache.db");
    meddle(
        &nodes,
        "CREATE TRIGGER full BEFORE INSERT ON node BEGIN SELECT RAISE(FAIL, 'full'); END",
    );
    assert!(place.back_up("a", "a").snapshot.is_some());
    for companion in ["", "-wal", "-shm", ".given-up"] {
        let _ = std::fs::remove_file(nodes.with_file_name(format!("cache.db{companion}")));
    }
    std::fs::create_dir(&nodes).unwrap();
    let repo = place.open("a");
    assert!(repo.notes.iter().any(|note| note.contains("nodes")), "{:?}", repo.notes);
    std::fs::write(place.source().join("new"), noise(4, 3000)).unwrap();
    assert!(back_up(&repo, &place.source(), "a").unwrap().snapshot.is_some());
    place.assert_sound("without a cache of nodes");
}

#[test]
fn bytes_that_were_damaged_on_this_machine_are_read_again() {
    let place = Place::new();
    let snapshot = place.back_up("a", "a").snapshot.unwrap();
    let index = place.local("a", "index.db");
    for what in [
        "UPDATE snap_object SET object = zeroblob(length(object))",
        "UPDATE meta SET v = zeroblob(length(v)) WHERE k LIKE 'm/config/%'",
        "UPDATE meta SET v = zeroblob(length(v)) WHERE k LIKE 'm/keys/%'",
        "UPDATE meta SET v = zeroblob(length(v)) WHERE k LIKE 'm/grant-%'",
    ] {
        meddle(&index, what);
        let repo = place.open("a");
        assert!(repo.sync_history().unwrap().broken.is_empty(), "{what}");
        assert_eq!(repo.snapshot(&snapshot).unwrap().id, snapshot, "{what}");
        repo.sync_index().unwrap();
    }
    assert!(place.back_up("a", "a").gaps.is_empty());
}

/// An outcome whose manifest is of a newer version, or is nonsense, hides itself and nothing else.
#[test]
fn a_manifest_that_does_not_open_is_told_and_the_others_are_listed() {
    let place = Place::new();
    let first = place.back_up("a", "a").snapshot.unwrap();
    let repo = place.open("a");
    let newest = repo.index.outcomes().unwrap().pop().unwrap();
    let mut id = SessionId([7; 16]);
    id.0[..4].copy_from_slice(&repo.kid.0[..4]);
    let nonsense = b"nonsense";
    let outcome = Outcome {
        kid: repo.kid,
        created: host::now(),
        kind: OutcomeKind::Commit,
        session: id,
        accepted: Vec::new(),
        run: None,
        manifest: Some((repo.keys.meta_id(nonsense).unwrap(), nonsense.len() as u64)),
        sequence: newest.sequence + 1,
        previous: Some(newest.hash),
        acked: Vec::new(),
        pins: Vec::new(),
        source: newest.source,
        flags: 0,
        chain_floors: Vec::new(),
    };
    let keys = SessionKeys::draw(&repo.keys).unwrap();
    let manifest = Some((&nonsense[..], &keys.meta.0, &keys.meta_secret));
    let sealed = outcome
        .encode(manifest, &repo.keys, &repo.signer, host::random())
        .unwrap();
    create_new(&place.store, &ObjectName::Outcome(id), sealed, "an outcome").unwrap();

    let repo = place.open("a");
    assert!(repo.sync_history().unwrap().broken.is_empty());
    let mut broken = Vec::new();
    let listed = repo.snapshots_noting(&mut broken).unwrap();
    assert_eq!(listed.iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(), [first]);
    assert_eq!(broken.len(), 1);
    // The latest is another one then, which must be said; asked for by name, it is the answer.
    let (found, history) = repo.find_snapshot("latest", &Filter::default(), &|_| None).unwrap();
    assert_eq!((found.id, history.broken.len()), (first, 1));
    let named = repo.find_snapshot(&id.to_string(), &Filter::default(), &|_| None);
    assert!(matches!(named, Err(RepoError::Object { .. })), "{named:?}");
}

/// Stores one chunk that nobody has yet.
fn store_something(repo: &Repo, session: &Session<'_>) {
    let raw = noise(99, 3000);
    let id = repo.keys.data_id(&raw).unwrap();
    assert_eq!(session.writer().claim(&id).unwrap(), Claim::New);
    let (ty, codec) = (BlobType::Data, Codec::Raw);
    let raw_len = raw.len() as u32;
    let mut frame = Vec::new();
    PackWriter::begin(&mut frame, codec, raw_len);
    frame.extend_from_slice(&raw);
    session.writer().add(ty, &id, codec, raw_len, &mut frame).unwrap();
}

/// A session that died after it had uploaded packs, before any run; returns their number.
fn leave_packs(place: &Place, machine: &str, key: &Credential) -> usize {
    let repo = place.try_open(Arc::new(place.store.clone()), machine, key).unwrap();
    let session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    store_something(&repo, &session);
    session.writer().finish().unwrap();
    let id = session.id();
    // Dropped without an end, as by a crash.
    drop(session);
    repo.index.unlisted_packs(&id).unwrap().len()
}

/// A fence that did not see the last runs of a session accepts none of them; what they list is taken over all the same.
#[test]
fn packs_in_runs_that_a_fence_did_not_accept_are_taken_over() {
    let place = Place::new();
    let snapshot = place.back_up("a", "a").snapshot.unwrap();
    let repo = place.open("a");
    let manifest = repo.snapshot(&snapshot).unwrap().manifest;
    let mut session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    store_something(&repo, &session);
    let durable = session.make_durable().unwrap();
    let newest = repo.index.outcomes().unwrap().pop().unwrap();
    let fence = Outcome {
        kid: repo.kid,
        created: host::now(),
        kind: OutcomeKind::Fence,
        session: session.id(),
        accepted: Vec::new(),
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
    let sealed = fence.encode(None, &repo.keys, &repo.signer, host::random()).unwrap();
    create_new(&place.store, &ObjectName::Outcome(session.id()), sealed, "a fence").unwrap();
    let label = OutcomeLabel {
        kind: OutcomeKind::Commit,
        source: Some(manifest.source.id),
        flags: 0,
    };
    let ended = session.publish(durable, &manifest, &label);
    assert!(matches!(ended, Err(RepoError::Fenced(_))), "{ended:?}");
    let report = back_up(&repo, &place.source(), "a").unwrap();
    assert!(
        report.notes.iter().any(|note| note.contains("took over")),
        "{:?}",
        report.notes
    );
    drop(repo);
    place.assert_sound("after a fence");
}

#[test]
fn an_outcome_from_the_future_is_noted_once() {
    let place = Place::new();
    // The store believes that it is 1970.
    place.store.set_time(Timestamp(1_000_000_000));
    place.back_up("a", "a");
    let repo = place.open("b");
    assert_eq!(repo.sync_history().unwrap().notes.len(), 1);
    place.store.set_time(host::now());
    place.back_up("a", "a");
    assert!(repo.sync_history().unwrap().notes.is_empty());
}

#[test]
fn packs_that_one_key_left_behind_are_not_listed_by_another_that_uses_the_same_cache() {
    let place = Place::new();
    assert_eq!(leave_packs(&place, "a", &second_key()), 1);
    let repo = place.open("a");
    let report = back_up(&repo, &place.source(), "a").unwrap();
    assert!(
        !report.notes.iter().any(|note| note.contains("took over")),
        "{:?}",
        report.notes
    );
    drop(repo);
    let repo = place
        .try_open(Arc::new(place.store.clone()), "a", &second_key())
        .unwrap();
    let report = back_up(&repo, &place.source(), "b").unwrap();
    assert!(
        report.notes.iter().any(|note| note.contains("took over")),
        "{:?}",
        report.notes
    );
    drop(repo);
    place.assert_sound("two keys with one cache");
}

#[test]
fn sessions_of_the_machine_that_a_state_was_copied_from_are_left_alone() {
    let place = Place::new();
    leave_packs(&place, "original", &credential());
    copy_dir(&place.cache("original"), &place.cache("clone"));
    let index = place.local("clone", "index.db");
    meddle(&index, "UPDATE mysession SET machine = randomblob(16)");
    let report = place.back_up("clone", "clone");
    assert!(
        !report.notes.iter().any(|note| note.contains("took over")),
        "{:?}",
        report.notes
    );
    let mut outcomes = 0;
    place
        .store
        .list(&Prefix::new("snap/").unwrap(), &mut |_| outcomes += 1)
        .unwrap();
    assert_eq!(outcomes, 1, "the original's session was ended");
    let report = place.back_up("original", "original");
    assert!(
        report.notes.iter().any(|note| note.contains("took over")),
        "{:?}",
        report.notes
    );
}

/// Whoever finds on the first day that listings come late keeps packs for a day after they were condemned.
#[test]
fn a_store_that_lists_late_gets_a_grace_time() {
    let dir = tempfile::tempdir().unwrap();
    for (name, seconds) in [("late", 86_400), ("at once", 0)] {
        let store = MemoryStore::new();
        let made = match seconds {
            0 => FaultStore::new(store.clone(), None),
            _ => FaultStore::lagging(store.clone()),
        };
        open::init(&made, &credential(), larder::testing::small::CHEAP).unwrap();
        let options = LocalOptions {
            cache_dir: dir.path().join(name),
            index: larder::pure::base::memory::IndexShare::with_filter(1 << 20),
            node_cache_bytes_max: 1 << 20,
        };
        let repo = open::connect(Arc::new(store), options)
            .unwrap()
            .unlock(&credential())
            .unwrap();
        assert_eq!(repo.config.gc.grace_seconds, seconds, "{name}");
        assert!(repo.config.gc.conditional_writes);
    }
}

#[test]
fn a_store_without_conditional_creation_is_used_as_one_from_the_first_object_on() {
    let dir = tempfile::tempdir().unwrap();
    for is_weak in [true, false] {
        let store = MemoryStore::new();
        let made = if is_weak {
            FaultStore::weak(store.clone())
        } else {
            FaultStore::new(store.clone(), None)
        };
        open::init(&made, &credential(), larder::testing::small::CHEAP).unwrap();
        assert_eq!(made.conditional(), Some(!is_weak));
        // Later it is the configuration that says so.
        let used = Arc::new(FaultStore::new(store, None));
        let options = LocalOptions {
            cache_dir: dir.path().join(is_weak.to_string()),
            index: larder::pure::base::memory::IndexShare::with_filter(1 << 20),
            node_cache_bytes_max: 1 << 20,
        };
        open::connect(used.clone(), options).unwrap();
        assert_eq!(used.conditional(), Some(!is_weak));
    }
}
