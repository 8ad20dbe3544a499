//! Chunks that are stored as deltas: nights of a file that changes a little everywhere (format-spec chapter on deltas).

use crate::fault::copy_dir;
use crate::story::{World, credential, noise, options, tree};
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Prefix, Store, StoreKey};
use larder::ops::{Progress, backup};
use larder::pure::crypto::kdf::Cost;
use larder::pure::format::run::StoredAs;
use larder::pure::format::session::SessionRole;
use larder::pure::id::ChunkId;
use larder::repo::Repo;
use larder::repo::open;
use larder::repo::pack_writer::Claim;
use larder::repo::session::Session;
use larder::source::stream::Stream;
use larder::testing::fault_store::{Fault, FaultStore};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// A dump of so many rows, of which every 97th is another one from night to night, and to which rows are added in front.
fn dump(rows: u32, night: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for row in 0..night * 400 {
        out.extend_from_slice(format!("added {row} {:?}\n", noise(u64::from(900_000 + row), 24)).as_bytes());
    }
    for row in 0..rows {
        let version = if row % 97 == 5 { night } else { 0 };
        let seed = u64::from(row) << 8 | u64::from(version);
        out.extend_from_slice(format!("{row}\t{:?}\n", noise(seed, 40)).as_bytes());
    }
    out
}

fn night(world: &World, machine: &str, deltas: bool) -> backup::Report {
    world.backup_with(machine, &backup::Options { deltas, ..options() })
}

fn data_packs(world: &World) -> BTreeSet<StoreKey> {
    let mut keys = BTreeSet::new();
    world
        .store
        .list(&Prefix::new("data/").unwrap(), &mut |row| {
            keys.insert(row.key);
        })
        .unwrap();
    keys
}

/// All chunks of the index that are stored as deltas, with their bases.
fn deltas_of(repo: &Repo) -> Vec<(ChunkId, ChunkId)> {
    let mut packs = Vec::new();
    repo.index.packs(&mut |pack| packs.push(pack.pack)).unwrap();
    let mut deltas = Vec::new();
    for pack in packs {
        let chunks = repo.index.chunks_of_pack(&pack).unwrap();
        for chunk in chunks.iter().filter(|chunk| chunk.stored_as == StoredAs::Delta) {
            deltas.push((chunk.id, repo.index.base_of(&chunk.id, &pack).unwrap().unwrap()));
        }
    }
    deltas
}

#[test]
fn nights_of_a_dump_are_small_and_come_back_from_any_machine() {
    let world = World::in_memory();
    let file = world.source().join("dump.sql");
    let mut nights = Vec::new();
    for number in 0..4 {
        let content = dump(30_000, number);
        std::fs::write(&file, &content).unwrap();
        nights.push((night(&world, "machine", true), content));
    }
    let first = nights[0].0.stats.bytes_stored;
    assert_eq!(nights[0].0.deltas, 0, "there is nothing to resemble");
    // Where the cuts fall depends on the key; a chunk that was cut elsewhere on both sides may resemble too little.
    let sum = |figure: fn(&backup::Report) -> u64| nights[1..].iter().map(|(report, _)| figure(report)).sum::<u64>();
    let (read, as_deltas) = (
        sum(|report| report.stats.bytes_read),
        sum(|report| report.stats.bytes_delta),
    );
    assert!(as_deltas > read / 2, "{as_deltas} of {read}");
    let stored = sum(|report| report.stats.bytes_stored);
    assert!(stored < first * 3 / 2, "{stored} in three nights after {first}");
    for (number, (report, content)) in nights.iter().enumerate() {
        let (restored, target) = world.restore(
            &format!("another machine {number}"),
            &report.snapshot.unwrap(),
            &format!("target {number}"),
        );
        assert_eq!(restored.damaged_total, 0);
        assert!(
            std::fs::read(target.join("dump.sql")).unwrap() == *content,
            "night {number}"
        );
    }
    let report = world.check("a third machine");
    assert_eq!(
        (report.findings_total, report.damaged_files_total),
        (0, 0),
        "{report:?}"
    );
}

#[test]
fn no_delta_is_a_base() {
    let world = World::in_memory();
    for number in 0..3 {
        std::fs::write(world.source().join("dump.sql"), dump(30_000, number)).unwrap();
        night(&world, "machine", true);
    }
    let repo = world.open("machine");
    let deltas = deltas_of(&repo);
    assert!(deltas.len() > 2, "{deltas:?}");
    for (id, base) in deltas {
        let full = repo.index.find(&base).unwrap().unwrap();
        assert_eq!(full.stored_as, StoredAs::Data, "{id} is a delta against {base}");
    }
}

#[test]
fn without_deltas_every_chunk_stands_by_itself() {
    let world = World::in_memory();
    for number in 0..2 {
        std::fs::write(world.source().join("dump.sql"), dump(30_000, number)).unwrap();
        assert_eq!(night(&world, "machine", false).deltas, 0);
    }
    assert_eq!(deltas_of(&world.open("machine")), []);
}

#[test]
fn streams_are_compared_with_the_last_stream_of_their_name() {
    let world = World::in_memory();
    let pipe = |content: Vec<u8>, name: &str| {
        let file = world.dir.path().join("piped");
        std::fs::write(&file, content).unwrap();
        let stream = Stream::command(name.as_bytes(), "cat", &[file.display().to_string()]).unwrap();
        let input = backup::Input::Stream(stream);
        backup::run(&world.open("machine"), input, &options(), &Progress::default()).unwrap()
    };
    pipe(dump(30_000, 0), "a.sql");
    let second = pipe(dump(30_000, 1), "a.sql");
    assert!(second.deltas > 0, "{second:?}");
}

/// What is deduplicated against a delta needs the base; when that is gone, the chunk is stored again.
#[test]
fn a_lost_base_heals_with_the_next_night() {
    let world = World::in_memory();
    let file = world.source().join("dump.sql");
    std::fs::write(&file, dump(30_000, 0)).unwrap();
    night(&world, "machine", true);
    let bases = data_packs(&world);
    std::fs::write(&file, dump(30_000, 1)).unwrap();
    let second = night(&world, "machine", true);
    assert!(second.deltas > 0);
    let lost: Vec<StoreKey> = bases.into_iter().collect();
    assert!(!lost.is_empty());
    world.store.remove(&lost).unwrap();
    // Same content, new times: it is read again, and every chunk is looked up.
    std::fs::write(&file, dump(30_000, 1)).unwrap();
    let third = night(&world, "machine", true);
    assert!(!third.notes.is_empty(), "it says what is missing");
    let (restored, target) = world.restore("another", &third.snapshot.unwrap(), "target");
    assert_eq!(restored.damaged_total, 0, "{:?}", restored.damaged);
    assert!(tree(&target) == tree(&world.source()));
    // The same ids: the second night has its content again, too.
    let (restored, _) = world.restore("one more", &second.snapshot.unwrap(), "target 2");
    assert_eq!(restored.damaged_total, 0, "{:?}", restored.damaged);
}

/// What an interrupted run has uploaded is of use only as long as the bases of its deltas are there.
#[test]
fn packs_of_an_interrupted_run_are_taken_over_with_their_bases_or_not_at_all() {
    for lose_base in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        let memory = MemoryStore::new();
        open::init(&memory, &credential(), Cost::DEFAULT).unwrap();
        let store = Arc::new(memory.clone());
        let world = World { dir, store };
        let file = world.source().join("dump.sql");
        std::fs::write(&file, dump(30_000, 0)).unwrap();
        night(&world, "machine", true);
        let bases: Vec<StoreKey> = data_packs(&world).into_iter().collect();
        std::fs::write(&file, dump(30_000, 1)).unwrap();
        let run = |store: Arc<dyn Store>, machine: &str| {
            let repo = world.open_on(store, machine);
            let one_thread = backup::Options {
                threads: 1,
                ..options()
            };
            backup::run(&repo, world.input(), &one_thread, &Progress::default())
        };
        // The run dies when its packs are stored and their index run is to be written.
        copy_dir(&world.dir.path().join("machine"), &world.dir.path().join("trial"));
        let trial = Arc::new(FaultStore::new(memory.fork(), None));
        run(trial.clone(), "trial").unwrap();
        let call = trial
            .log()
            .iter()
            .position(|call| call.starts_with("writing idx/"))
            .unwrap() as u64;
        let fault = Fault {
            call,
            after_effect: false,
            lasting: true,
        };
        assert!(run(Arc::new(FaultStore::new(memory.clone(), Some(fault))), "machine").is_err());
        assert!(data_packs(&world).len() > bases.len(), "it had stored something");
        if lose_base {
            world.store.remove(&bases).unwrap();
        }
        let next = night(&world, "machine", true);
        let (restored, target) = world.restore("another", &next.snapshot.unwrap(), "target");
        assert_eq!(restored.damaged_total, 0, "{lose_base}: {:?}", restored.damaged);
        assert!(tree(&target) == tree(&world.source()), "{lose_base}");
        let is_stored_again = next.stats.bytes_new > 1_000_000;
        assert_eq!(is_stored_again, lose_base, "{next:?}");
    }
}

/// Whoever refers to a delta depends on its base too: a generation that condemns the base must not be acknowledged.
#[test]
fn base_of_a_delta_that_was_looked_up_counts_as_used() {
    let world = World::in_memory();
    for number in 0..3 {
        std::fs::write(world.source().join("dump.sql"), dump(30_000, number)).unwrap();
        night(&world, "machine", true);
    }
    let repo = world.open("other");
    repo.sync_history().unwrap();
    let session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    let deltas = deltas_of(&repo);
    assert!(!deltas.is_empty());
    for (delta, base) in deltas {
        assert_eq!(session.writer().claim(&delta).unwrap(), Claim::Known);
        let base = repo.index.find(&base).unwrap().expect("a base is there").pack;
        assert!(session.writer().used().contains(&base), "{base:?}");
    }
    session.abandon();
}
