//! The first nights: everything comes back, only what is new travels, one file is found, damage is noticed.

use super::{World, noise, options, tree};
use larder::ops::{Progress, backup};
use larder::repo::Repo;
use larder::testing::fault_store::FaultStore;
use std::fs;
use std::sync::Arc;

fn fill(world: &World) {
    let source = world.source();
    fs::create_dir_all(source.join("a/b/c")).unwrap();
    fs::create_dir_all(source.join("empty")).unwrap();
    fs::write(source.join("tiny"), b"tiny").unwrap();
    fs::write(source.join("nothing"), b"").unwrap();
    fs::write(source.join("a/text"), "a line of text\n".repeat(10_000)).unwrap();
    fs::write(source.join("a/b/large"), noise(1, 9 << 20)).unwrap();
    fs::write(source.join("a/b/c/same as large"), noise(1, 9 << 20)).unwrap();
    for number in 0..500 {
        fs::write(
            source.join(format!("a/b/c/file {number}")),
            noise(number + 10, 700 + number as usize),
        )
        .unwrap();
    }
    std::os::unix::fs::symlink("a/text", source.join("link")).unwrap();
    fs::hard_link(source.join("a/text"), source.join("empty/hard")).unwrap();
}

fn nights(world: &World) {
    fill(world);
    let night1 = tree(&world.source());
    let first = world.backup("machine");
    let id1 = first.snapshot.unwrap();
    assert_eq!(first.problems_total, 0, "{:?}", first.problems);
    assert_eq!(first.stats.files_new, 506);
    // One of the two equal files was not stored again.
    assert!(first.stats.bytes_new < 11 << 20, "{:?}", first.stats);

    let second = world.backup("machine");
    assert_eq!(
        (second.stats.files_new, second.stats.files_changed),
        (0, 0),
        "{:?}",
        second.stats
    );
    assert_eq!(second.stats.files_unmodified, 506);
    assert_eq!(second.stats.packs_uploaded, 0);
    assert_eq!(second.parent, Some(id1));

    fs::write(world.source().join("a/b/c/file 7"), b"changed").unwrap();
    fs::remove_file(world.source().join("a/b/c/file 8")).unwrap();
    fs::write(world.source().join("a/new"), noise(99, 3 << 20)).unwrap();
    let night3 = tree(&world.source());
    let third = world.backup("machine");
    assert_eq!(
        (third.stats.files_new, third.stats.files_changed),
        (1, 1),
        "{:?}",
        third.stats
    );

    let (report, target) = world.restore("machine", &id1, "restored1");
    assert_eq!(
        (report.failed_total, report.damaged_total),
        (0, 0),
        "{:?} {:?}",
        report.failed,
        report.damaged
    );
    assert_eq!(tree(&target), night1);
    // Another machine has nothing but the store and the key.
    let (report, target) = world.restore("other machine", &third.snapshot.unwrap(), "restored3");
    assert_eq!(
        (report.failed_total, report.damaged_total),
        (0, 0),
        "{:?} {:?}",
        report.failed,
        report.damaged
    );
    assert_eq!(tree(&target), night3);
    assert_eq!(report.verified, 506);

    let check = world.check("a third machine");
    assert!(check.findings.is_empty(), "{:?}", check.findings);
    assert_eq!(check.snapshots, 3);
    assert_eq!(check.packs_read, check.packs);
}

#[test]
fn nights_come_back_from_memory() {
    nights(&World::in_memory());
}

#[test]
fn nights_come_back_from_a_directory() {
    nights(&World::local());
}

fn back_up(world: &World, repo: &Repo) -> backup::Report {
    backup::run(repo, world.input(), &options(), &Progress::default()).unwrap()
}

/// Its size is the same, its time was set back, and it happened before the run ended: only the time of its change tells.
#[test]
fn what_changes_behind_a_run_that_has_read_it_is_read_by_the_next() {
    let counted = World::in_memory();
    fs::write(counted.source().join("file"), noise(1, 50_000)).unwrap();
    let store = Arc::new(FaultStore::new(counted.store.clone(), None));
    back_up(&counted, &counted.open_on(store.clone(), "machine"));
    let log = store.log();
    let call = log.iter().position(|call| call.starts_with("writing data/")).unwrap();

    let world = World::in_memory();
    let path = world.source().join("file");
    fs::write(&path, noise(1, 50_000)).unwrap();
    let visit = {
        let path = path.clone();
        move || {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, noise(2, 50_000)).unwrap();
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(modified)
                .unwrap();
            // The clock of files goes in ticks, and the run shall end after the one in which this happened.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    let store = FaultStore::visited_at(world.store.clone(), call as u64, visit);
    let first = back_up(&world, &world.open_on(Arc::new(store), "machine"));
    let second = world.backup("machine");
    assert_eq!(
        (second.parent, second.stats.files_changed),
        (first.snapshot, 1),
        "{:?}",
        second.stats
    );
    let (_, target) = world.restore("machine", &first.snapshot.unwrap(), "first");
    assert_eq!(fs::read(target.join("file")).unwrap(), noise(1, 50_000));
    let (_, target) = world.restore("machine", &second.snapshot.unwrap(), "second");
    assert_eq!(fs::read(target.join("file")).unwrap(), noise(2, 50_000));
}
