//! What `repo check` says: every damage is a finding until it is healed, what is nobody's damage is none, and many snapshots
//! that share their trees cost little more than one.

use crate::story::{noise, options};
use bytes::Bytes;
use larder::edge::host;
use larder::edge::store::{Created, Part, Prefix, Store, StoreKey, local::LocalStore, memory::MemoryStore};
use larder::ops::{OpError, Progress, backup, check};
use larder::pure::crypto::Secret;
use larder::pure::format::condemn::{CondemnKind, Condemnation, CondemnedPack};
use larder::pure::format::name::{ObjectName, PackKind};
use larder::pure::format::run::StoredAs;
use larder::pure::format::session::SessionRole;
use larder::pure::id::SessionId;
use larder::repo::Repo;
use larder::repo::index::{ChunkPlace, PackState};
use larder::repo::open::{self, Credential, LocalOptions, create_new};
use larder::repo::reader::pack_name;
use larder::repo::session::Session;
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::fault_store::{Fault, FaultStore};
use larder::testing::small::SmallRepo;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn admin() -> Credential {
    Credential::KeyFile(Secret::new([7; 32]))
}

/// A repository with small chunks and nodes, and a source.
struct Place {
    dir: tempfile::TempDir,
    store: MemoryStore,
}

impl Place {
    fn new() -> Place {
        let store = MemoryStore::new();
        SmallRepo::init(&store, &admin()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        Place { dir, store }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn open_on(&self, store: Arc<dyn Store>, machine: &str) -> Repo {
        let options = LocalOptions {
            cache_dir: self.dir.path().join(machine),
            index: larder::pure::base::memory::IndexShare::with_filter(1 << 20),
            node_cache_bytes_max: 1 << 20,
        };
        open::connect(store, options).unwrap().unlock(&admin()).unwrap()
    }

    fn open(&self, machine: &str) -> Repo {
        self.open_on(Arc::new(self.store.clone()), machine)
    }

    fn back_up_on(&self, store: Arc<dyn Store>, machine: &str) -> Result<backup::Report, OpError> {
        let input = backup::Input::Paths {
            roots: vec![self.source()],
            walk: WalkOptions::default(),
            excludes: ExcludesBuilder::default(),
        };
        let options = backup::Options {
            threads: 1,
            ..options()
        };
        backup::run(&self.open_on(store, machine), input, &options, &Progress::default())
    }

    fn back_up(&self) -> SessionId {
        let report = self.back_up_on(Arc::new(self.store.clone()), "machine").unwrap();
        report.snapshot.unwrap()
    }

    fn check(&self, machine: &str, options: &check::Options) -> check::Report {
        check::run(&self.open(machine), options, &Progress::default()).unwrap()
    }

    /// Every copy that a new machine finds, of one type of blobs.
    fn places(&self, stored_as: StoredAs) -> Vec<ChunkPlace> {
        let repo = self.open("finder");
        repo.sync_history().unwrap();
        repo.sync_index().unwrap();
        let mut ids = Vec::new();
        repo.index
            .chunks_in_id_order(&mut |chunk| {
                if chunk.stored_as == stored_as {
                    ids.push(chunk.id);
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        ids.iter().flat_map(|id| repo.index.find_all(id).unwrap()).collect()
    }

    /// Flips a bit in the middle of a frame.
    fn damage(&self, place: &ChunkPlace) {
        let key = StoreKey::new(pack_name(place.kind, place.pack, place.session).to_string()).unwrap();
        let mut bytes = self.store.read(&key, Part::Whole).unwrap().to_vec();
        bytes[(place.offset + place.stored_len / 2) as usize] ^= 1;
        self.store.overwrite(&key, bytes.into());
    }

    fn copy_to(&self, other: &dyn Store) {
        other.prepare().unwrap();
        let mut keys = Vec::new();
        self.store
            .list(&Prefix::new("").unwrap(), &mut |listed| keys.push(listed.key))
            .unwrap();
        for key in keys {
            let created = other.create(&key, self.store.read(&key, Part::Whole).unwrap());
            assert_eq!(created.unwrap(), Created::New);
        }
    }

    /// Packs of data with their bytes.
    fn data_packs(&self) -> Vec<(StoreKey, Bytes)> {
        let mut keys = Vec::new();
        self.store
            .list(&Prefix::new("data/").unwrap(), &mut |listed| keys.push(listed.key))
            .unwrap();
        keys.into_iter()
            .map(|key| (key.clone(), self.store.read(&key, Part::Whole).unwrap()))
            .collect()
    }
}

fn structure() -> check::Options {
    check::Options {
        threads: 2,
        ..check::Options::default()
    }
}

fn everything() -> check::Options {
    check::Options {
        read_data: Some(check::Subset::All),
        ..structure()
    }
}

fn names(report: &check::Report) -> Vec<String> {
    report
        .damaged_files
        .iter()
        .map(|file| {
            let path = String::from_utf8_lossy(&file.path).into_owned();
            path.rsplit_once('/').map_or(path.clone(), |(_, name)| name.to_owned())
        })
        .collect()
}

#[test]
fn chunk_that_nothing_lists_is_damage_and_not_only_a_named_file() {
    let place = Place::new();
    std::fs::write(place.source().join("file"), noise(1, 3000)).unwrap();
    place.back_up();
    // All its chunks lie in packs that are condemned, though a snapshot needs them.
    let repo = place.open("condemner");
    repo.sync_history().unwrap();
    repo.sync_index().unwrap();
    let condemner = Session::begin(&repo, None, SessionRole::Condemn, 1, Instant::now()).unwrap();
    let session = condemner.id();
    condemner.abandon();
    let mut packs = Vec::new();
    repo.index
        .packs(&mut |pack| {
            if pack.kind == PackKind::Data {
                packs.push(CondemnedPack {
                    pack: pack.pack,
                    session: pack.session,
                    kind: pack.kind,
                    orphan: false,
                    size: pack.size,
                });
            }
        })
        .unwrap();
    let condemnation = Condemnation {
        kid: repo.kid,
        created: host::now(),
        kind: CondemnKind::Reclaim,
        session,
        reason: String::new(),
        packs,
        lost: Vec::new(),
        is_accepted: false,
    };
    let body = condemnation.encode(&repo.keys, &repo.signer, host::random()).unwrap();
    create_new(&place.store, &ObjectName::Condemnation(session), body, "a condemnation").unwrap();

    // As long as they are there, a restore reads them, and the next prune copies out what is needed.
    let report = place.check("a new machine", &structure());
    assert!(report.is_sound(), "{:?}", report.findings);
    let mut packs = Vec::new();
    let data = Prefix::new("data/").unwrap();
    place.store.list(&data, &mut |row| packs.push(row.key)).unwrap();
    place.store.remove(&packs).unwrap();
    let report = place.check("another new machine", &structure());
    assert!(!report.is_sound());
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.object.starts_with("chunk ")),
        "{:?}",
        report.findings
    );
    assert_eq!(names(&report), ["file"]);
}

#[test]
fn what_was_found_damaged_stays_damaged_until_it_is_read_again() {
    let place = Place::new();
    std::fs::write(place.source().join("file"), noise(1, 3000)).unwrap();
    place.back_up();
    let whole = place.data_packs();
    assert!(place.check("checker", &everything()).is_sound());
    place.damage(&place.places(StoredAs::Data)[0]);

    let report = place.check("checker", &everything());
    assert!(!report.is_sound());
    assert_eq!(names(&report), ["file"]);
    // It was read a moment ago, and is not young because of that.
    let nightly = check::Options {
        max_age: Some(Duration::from_secs(30 * 86_400)),
        ..everything()
    };
    let report = place.check("checker", &nightly);
    assert!(!report.is_sound());
    assert_eq!(report.packs_read, 1, "the damaged one and no other");
    // It comes first among a few.
    let few = check::Options {
        read_data: Some(check::Subset::Bytes(1)),
        ..structure()
    };
    let report = place.check("checker", &few);
    assert_eq!((report.packs_read, report.is_sound()), (1, false));
    // And when nothing is read, the ledger speaks.
    let report = place.check("checker", &structure());
    assert_eq!(report.findings_total, 1, "{:?}", report.findings);
    assert!(
        report.findings[0].what.contains("has not been read since"),
        "{:?}",
        report.findings
    );
    let no_time = check::Options {
        max_time: Some(Duration::ZERO),
        ..everything()
    };
    assert!(!place.check("checker", &no_time).is_sound());

    for (key, bytes) in whole {
        place.store.overwrite(&key, bytes);
    }
    assert!(place.check("checker", &everything()).is_sound());
    assert!(place.check("checker", &structure()).is_sound());
}

#[test]
fn leftovers_of_an_interrupted_backup_are_no_damage() {
    let place = Place::new();
    std::fs::write(place.source().join("file"), noise(1, 30_000)).unwrap();
    let counted = Arc::new(FaultStore::new(place.store.fork(), None));
    place.back_up_on(counted.clone(), "counting").unwrap();
    let uploading = |call: &String| call.starts_with("writing data/");
    let uploaded = counted.log().iter().position(uploading).unwrap() as u64;
    // The machine loses its store with a pack uploaded, and is asked before another backup clears up.
    let mut with_leftovers = 0;
    for call in uploaded..counted.calls() {
        let fault = Fault {
            call,
            after_effect: true,
            lasting: true,
        };
        let (machine, store) = (format!("machine {call}"), place.store.fork());
        let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
        // Whether it fails depends on the call; an outcome may have been written.
        let _ = place.back_up_on(faulty, &machine);
        let repo = place.open_on(Arc::new(store), &machine);
        let report = check::run(&repo, &everything(), &Progress::default()).unwrap();
        assert!(report.is_sound(), "call {call}: {:?}", report.findings);
        let mut mine = 0;
        repo.index
            .packs(&mut |pack| mine += u64::from(pack.state == PackState::Mine))
            .unwrap();
        with_leftovers += u64::from(mine > 0);
    }
    assert!(with_leftovers > 0, "no run left a pack behind");
}

#[test]
fn everything_beside_a_damaged_node_is_looked_at() {
    let place = Place::new();
    // Where nodes end is up to the key: 200 files were 10 nodes or fewer with every seventh.
    for number in 0..500 {
        std::fs::write(place.source().join(format!("file {number:03}")), noise(number, 300)).unwrap();
    }
    place.back_up();
    let chunks = place.places(StoredAs::Data);
    let nodes = place.places(StoredAs::Node);
    assert!(nodes.len() > 10, "{} nodes", nodes.len());
    // Every node is damaged in turn; the same chunk is always reported, unless it is below.
    place.damage(&chunks[0]);
    let broken_file = names(&place.check("plain", &everything()));
    assert_eq!(broken_file.len(), 1);
    let sound = place.store.fork();
    let (mut leaves, mut seen) = (0, 0);
    for (number, node) in nodes.iter().enumerate() {
        let damaged = Place {
            dir: tempfile::tempdir().unwrap(),
            store: sound.fork(),
        };
        damaged.damage(node);
        let report = damaged.check(&format!("machine {number}"), &everything());
        assert!(!report.is_sound());
        let files = names(&report);
        assert!(
            files.iter().any(|name| name.ends_with("(a part of its tree)")),
            "{files:?}"
        );
        leaves += 1;
        seen += u64::from(files.contains(&broken_file[0]));
    }
    // All but the nodes on the way to it.
    assert!(seen + 6 >= leaves && seen > 0, "{seen} of {leaves}");
}

#[test]
fn a_node_is_read_once_however_many_snapshots_share_it() {
    let place = Place::new();
    for number in 0..300 {
        std::fs::write(place.source().join(format!("file {number:03}")), noise(number, 100)).unwrap();
    }
    place.back_up();
    // A local store: from a remote one, whole windows of packs are read and kept.
    let reads = |machine: &str| {
        let copy = LocalStore::new(place.dir.path().join(format!("store of the {machine}")), true);
        place.copy_to(&copy);
        let counted = Arc::new(FaultStore::new(copy, None));
        let repo = place.open_on(counted.clone(), machine);
        let report = check::run(&repo, &structure(), &Progress::default()).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        let reads = counted.log().iter().filter(|call| call.contains(" meta/")).count() as u64;
        (reads, report)
    };
    let (one, report) = reads("first");
    assert!(report.trees_read > 10, "{} nodes", report.trees_read);
    for _ in 0..6 {
        place.back_up();
    }
    let (seven, report) = reads("second");
    assert_eq!(report.snapshots, 7);
    assert_eq!(one, seven, "unchanged trees are not read again");
    std::fs::write(place.source().join("file 150"), b"changed").unwrap();
    place.back_up();
    let (changed, _) = reads("third");
    assert!(changed - one < 12, "{} reads for one changed file", changed - one);
}

#[test]
fn packs_that_are_gone_name_their_files_without_a_search_for_each() {
    let place = Place::new();
    for number in 0..20 {
        std::fs::write(place.source().join(format!("file {number:02}")), noise(number, 2000)).unwrap();
        place.back_up();
    }
    let packs = place.data_packs();
    assert!(packs.len() >= 20, "{} packs", packs.len());
    let keys: Vec<StoreKey> = packs.into_iter().map(|(key, _)| key).collect();
    place.store.remove(&keys).unwrap();
    let report = place.check("a new machine", &everything());
    let missing = report
        .findings
        .iter()
        .filter(|finding| finding.what == "it is missing")
        .count();
    assert_eq!(missing, keys.len(), "{:?}", report.findings);
    assert_eq!(report.damaged_files_total, 20);
    assert_eq!(report.damaged_files.len(), 20);
}
