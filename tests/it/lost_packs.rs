//! Packs that the store has lost, whole or in part: the next backup does not refer to them, and stores again what is still at
//! hand (invariant I-5; reliability.md A3, "ghost deduplication").

use crate::story::{World, credential, noise, options, restore_options, tree};
use bytes::Bytes;
use larder::edge::store::{
    Abilities, Created, Failure, Listed, Part, Prefix, Stat, Store, StoreError, StoreKey, local::LocalStore,
    memory::MemoryStore,
};
use larder::ops::{Progress, backup, check, restore};
use larder::pure::base::{Explain, Kind};
use larder::pure::compress::Compressor;
use larder::pure::format::blob::BlobType;
use larder::pure::format::session::SessionRole;
use larder::pure::id::{ChunkId, SessionId};
use larder::repo::Repo;
use larder::repo::error::RepoError;
use larder::repo::pack_writer::{Claim, PackWriter};
use larder::repo::session::Session;
use larder::testing::fault_store::FaultStore;
use larder::testing::small::SmallRepo;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// A repository with small chunks and nodes, so that a few files give piece lists and inner nodes.
fn world(local: bool) -> World {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("many")).unwrap();
    let store: Arc<dyn Store> = if local {
        let store = LocalStore::new(dir.path().join("repo"), true);
        store.prepare().unwrap();
        Arc::new(store)
    } else {
        Arc::new(MemoryStore::new())
    };
    SmallRepo::init(&*store, &credential()).unwrap();
    std::fs::write(source.join("list"), noise(1, 9000)).unwrap();
    std::fs::write(source.join("touched"), noise(2, 900)).unwrap();
    for number in 0..60 {
        std::fs::write(source.join(format!("many/{number}")), noise(100 + number, 300)).unwrap();
    }
    World { dir, store }
}

fn packs(store: &dyn Store, under: &str) -> Vec<StoreKey> {
    let mut keys = Vec::new();
    store
        .list(&Prefix::new(under).unwrap(), &mut |row| keys.push(row.key))
        .unwrap();
    keys
}

/// What happens to a pack.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Gone,
    Shorter,
    /// One bit is another.
    Rotten,
}

fn lose(store: &dyn Store, key: &StoreKey, loss: Loss) {
    let body = store.read(key, Part::Whole).unwrap();
    store.remove(std::slice::from_ref(key)).unwrap();
    let rest = match loss {
        Loss::Gone => return,
        Loss::Shorter => body.slice(..body.len() - 1),
        Loss::Rotten => {
            let mut bytes = body.to_vec();
            bytes[body.len() / 2] ^= 1;
            bytes.into()
        }
    };
    assert_eq!(store.create(key, rest).unwrap(), Created::New);
}

fn back_up(world: &World, machine: &str, parent: backup::ParentChoice) -> backup::Report {
    world.backup_with(machine, &backup::Options { parent, ..options() })
}

/// On a machine that knows nothing, the snapshot comes back as the source is.
fn assert_restores(world: &World, snapshot: &SessionId, name: &str) {
    let (report, target) = world.restore(&format!("reader of {name}"), snapshot, &format!("target of {name}"));
    assert_eq!(
        (report.damaged_total, report.failed_total),
        (0, 0),
        "{name}: {:?} {:?}",
        report.damaged,
        report.failed
    );
    assert!(tree(&target) == tree(&world.source()), "{name}");
}

/// Same content, new times: the file is read again, and its chunks are looked up.
fn touch(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn says_so(report: &backup::Report) -> bool {
    report
        .notes
        .iter()
        .any(|note| note.contains("data/") || note.contains("meta/"))
}

#[test]
fn everything_is_stored_again_when_everything_is_read() {
    for local in [false, true] {
        for under in ["data/", "meta/"] {
            for loss in [Loss::Gone, Loss::Shorter] {
                for machine in ["first", "second"] {
                    let name = format!("{local} {under} {loss:?} {machine}").replace('/', "");
                    let world = world(local);
                    let first = back_up(&world, "first", backup::ParentChoice::None);
                    for key in packs(&*world.store, under) {
                        lose(&*world.store, &key, loss);
                    }
                    let report = back_up(&world, machine, backup::ParentChoice::None);
                    assert!(says_so(&report), "{name}: {:?}", report.notes);
                    assert_restores(&world, &report.snapshot.unwrap(), &name);
                    // Same chunks, same ids: the old snapshot has them again as well.
                    assert_restores(&world, &first.snapshot.unwrap(), &format!("{name} old"));
                }
            }
        }
    }
}

/// One lookup that meets a lost pack is enough: entries that were taken over from the parent unread are looked at again.
#[test]
fn one_touched_file_heals_all_that_is_unchanged() {
    for local in [false, true] {
        for loss in [Loss::Gone, Loss::Shorter] {
            let name = format!("{local} {loss:?}");
            let world = world(local);
            let first = back_up(&world, "machine", backup::ParentChoice::Newest);
            for key in packs(&*world.store, "data/") {
                lose(&*world.store, &key, loss);
            }
            touch(&world.source().join("touched"));
            let report = back_up(&world, "machine", backup::ParentChoice::Newest);
            assert_eq!(report.parent, first.snapshot, "{name}");
            assert!(says_so(&report), "{name}: {:?}", report.notes);
            assert_restores(&world, &report.snapshot.unwrap(), &name);
            let check = world.check("another");
            assert_eq!(check.damaged_files_total, 0, "{name}: {:?}", check.damaged_files);
            // The next night knows nothing new and reads nothing.
            let next = back_up(&world, "machine", backup::ParentChoice::Newest);
            assert_eq!((next.stats.bytes_read, next.stats.chunks_new), (0, 0), "{name}");
            assert_restores(&world, &next.snapshot.unwrap(), &format!("{name} next"));
        }
    }
}

/// Nothing is looked up when nothing has changed. What `check` has found on this machine is stored again all the same.
#[test]
fn what_check_found_lost_is_stored_again_though_nothing_changed() {
    for under in ["data/", "meta/"] {
        for loss in [Loss::Gone, Loss::Rotten] {
            let name = format!("{loss:?} {}", under.replace('/', ""));
            let world = world(false);
            back_up(&world, "machine", backup::ParentChoice::Newest);
            std::fs::write(world.source().join("later"), noise(9, 2000)).unwrap();
            let second = back_up(&world, "machine", backup::ParentChoice::Newest);
            let lost = packs(&*world.store, under);
            assert!(lost.len() >= 2, "{lost:?}");
            for key in &lost {
                lose(&*world.store, key, loss);
            }
            assert!(!world.check("machine").findings.is_empty());
            // A check that does not read what was rotten does not take back what reading has shown.
            world.check_without_data("machine");
            let report = back_up(&world, "machine", backup::ParentChoice::Newest);
            assert_restores(&world, &report.snapshot.unwrap(), &name);
            assert_restores(&world, &second.snapshot.unwrap(), &format!("{name} old"));
            let check = world.check("machine");
            // Nodes that only the first snapshot has are nowhere else.
            assert!(
                check.damaged_files_total == 0 || under == "meta/",
                "{name}: {:?}",
                check.damaged_files
            );
            // What is rotten stays so, and is not stored a third time.
            let next = back_up(&world, "machine", backup::ParentChoice::None);
            assert_eq!(next.stats.chunks_new, 0, "{name}");
        }
    }
}

#[test]
fn run_with_nothing_changed_asks_for_no_pack_and_makes_few_requests() {
    let World { dir, store } = world(false);
    let counted = Arc::new(FaultStore::new(store, None));
    let world = World {
        dir,
        store: counted.clone(),
    };
    back_up(&world, "machine", backup::ParentChoice::Newest);
    let before = counted.log().len();
    back_up(&world, "machine", backup::ParentChoice::Newest);
    let log = counted.log().split_off(before);
    assert!(
        log.len() <= 10 && !log.iter().any(|call| call.contains("data/") || call.contains("meta/")),
        "{log:#?}"
    );
    eprintln!("{} requests: {log:#?}", log.len());
}

/// A pack that comes back (a disk that was not mounted whole) is read again, though it was marked absent, and `check` is content.
#[test]
fn pack_that_comes_back_is_used_again() {
    let world = world(false);
    let first = back_up(&world, "machine", backup::ParentChoice::None).snapshot.unwrap();
    let key = packs(&*world.store, "data/").remove(0);
    let body: Bytes = world.store.read(&key, Part::Whole).unwrap();
    lose(&*world.store, &key, Loss::Gone);
    let findings = world.check("machine").findings;
    assert!(
        findings.iter().any(|finding| finding.object == key.as_str()),
        "{findings:?}"
    );
    assert_eq!(world.store.create(&key, body).unwrap(), Created::New);
    let (report, target) = world.restore("machine", &first, "back");
    assert_eq!(
        (report.damaged_total, report.failed_total),
        (0, 0),
        "{:?}",
        report.damaged
    );
    assert!(tree(&target) == tree(&world.source()));
    assert!(world.check("machine").findings.is_empty());
    let again = back_up(&world, "machine", backup::ParentChoice::None);
    assert_eq!(again.stats.chunks_new, 0);
}

/// A store that gives no ends of packs, because it cannot be reached, or leaves everything out of the first listings of `idx/`.
#[derive(Debug)]
struct Moody {
    store: Arc<dyn Store>,
    is_without_ends: bool,
    short_listings: AtomicU32,
}

impl Store for Moody {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        self.store.create(key, body)
    }
    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        match part {
            Part::Suffix(_) if self.is_without_ends => Err(StoreError::new("reading", key, Failure::Unreachable)),
            part => self.store.read(key, part),
        }
    }
    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        let is_short = prefix.as_str() == "idx/"
            && self
                .short_listings
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok();
        match is_short {
            true => Ok(()),
            false => self.store.list(prefix, each),
        }
    }
    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.store.stat(key)
    }
    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        self.store.remove(keys)
    }
    fn prepare(&self) -> Result<(), StoreError> {
        self.store.prepare()
    }
    fn probe(&self) -> Result<Abilities, StoreError> {
        self.store.probe()
    }
    fn set_conditional(&self, conditional: bool) {
        self.store.set_conditional(conditional);
    }
    fn location(&self) -> String {
        self.store.location()
    }
}

fn moody(world: &World, is_without_ends: bool, short_listings: u32) -> Moody {
    Moody {
        store: world.store.clone(),
        is_without_ends,
        short_listings: AtomicU32::new(short_listings),
    }
}

/// Without an index, packs say what is in them. If the store is away while they are asked, that is what is said, and not that
/// chunks are missing.
#[test]
fn store_that_is_away_is_not_taken_for_lost_chunks() {
    let world = world(false);
    let snapshot = back_up(&world, "first", backup::ParentChoice::None).snapshot.unwrap();
    for run in packs(&*world.store, "idx/") {
        world.store.remove(&[run]).unwrap();
    }
    assert_restores(&world, &snapshot, "no index");
    let repo = world.open_on(Arc::new(moody(&world, true, 0)), "away");
    repo.sync_history().unwrap();
    let snapshot = repo.snapshots().unwrap().remove(0);
    let options = restore_options(snapshot, None, world.dir.path().join("nothing"));
    let error = restore::run(&repo, &options, &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", check::chain(&error));
}

/// What a listing lacks is listed once more before it counts as gone (I-8).
#[test]
fn run_that_one_listing_lacks_is_not_missing() {
    let world = world(false);
    back_up(&world, "first", backup::ParentChoice::None);
    let repo = world.open_on(Arc::new(moody(&world, false, 1)), "second");
    repo.sync_history().unwrap();
    let sync = repo.sync_index().unwrap();
    assert!(sync.missing.is_empty() && sync.imported > 0, "{sync:?}");
}

/// Adds a chunk under this id, or under its own.
fn add(session: &Session<'_>, repo: &Repo, id: Option<ChunkId>) {
    let plain = noise(77, 300);
    let id = id.unwrap_or_else(|| repo.keys.data_id(&plain).unwrap());
    let mut frame = Vec::new();
    let codec = PackWriter::begin_full(&mut frame, &mut Compressor::new(3), &plain);
    assert_eq!(session.writer().claim(&id).unwrap(), Claim::New);
    let length = plain.len() as u32;
    session
        .writer()
        .add(BlobType::Data, &id, codec, length, &mut frame)
        .unwrap();
}

/// Whatever went wrong before: a pack is opened before it is uploaded, and one that does not hold what it says is not (I-9).
#[test]
fn pack_that_does_not_hold_what_it_says_is_not_uploaded() {
    let world = world(false);
    let repo = world.open("machine");
    let mut session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    add(&session, &repo, Some(ChunkId([9; 32])));
    let error = session.make_durable().expect_err("the pack is not what it says");
    assert!(matches!(error, RepoError::PackDidNotVerify { .. }), "{error}");
    assert_eq!(packs(&*world.store, "data/"), []);
}

/// A run counts when its session has ended with it, and not because it is there (I-3).
#[test]
fn run_of_a_session_that_has_not_ended_does_not_count() {
    let world = world(false);
    let repo = world.open("machine");
    let mut session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    add(&session, &repo, None);
    session.make_durable().unwrap();
    let others = |machine: &str| {
        let repo = world.open(machine);
        repo.sync_history().unwrap();
        repo.sync_index().unwrap().imported
    };
    assert_eq!(packs(&*world.store, "idx/").len(), 1);
    assert_eq!(others("early"), 0);
    session.abandon();
    assert_eq!(others("late"), 1);
}
