//! Restores into places that are not empty, and of paths that are no roots.

use super::{World, options};
use larder::ops::{Progress, backup, restore};
use larder::pure::id::SessionId;
use larder::repo::snapshots::Filter;
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::target::files::{MetaPolicy, Overwrite};
use std::fs;
use std::path::{Path, PathBuf};

/// Backs up these directories of the source, each as a root.
fn back_up(world: &World, below: &[&str]) -> SessionId {
    let input = backup::Input::Paths {
        roots: below.iter().map(|name| world.source().join(name)).collect(),
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let report = backup::run(&world.open("machine"), input, &options(), &Progress::default()).unwrap();
    report.snapshot.unwrap()
}

struct How<'p> {
    path: Option<&'p Path>,
    delete: bool,
    dry_run: bool,
}

fn restore_to(world: &World, snapshot: &SessionId, target: &Path, how: &How<'_>) -> restore::Report {
    let repo = world.open("machine");
    let snapshot = repo
        .resolve(&snapshot.to_string(), &Filter::default(), &|_| None)
        .unwrap();
    let options = restore::Options {
        snapshot,
        path: how.path.map(|path| path.as_os_str().as_encoded_bytes().to_vec()),
        target: target.to_owned(),
        selection: restore::Selection::default(),
        delete: how.delete,
        overwrite: Overwrite::IfChanged,
        verify: true,
        dry_run: how.dry_run,
        owners: restore::OwnerMap::default(),
        fetch: restore::fetch_share(true, 1),
        policy: MetaPolicy::sensible(),
    };
    let report = restore::run(&repo, &options, &Progress::default()).unwrap();
    assert_eq!(
        (report.damaged_total, report.failed_total, report.refused_total),
        (0, 0, 0),
        "{:?} {:?} {:?}",
        report.damaged,
        report.failed,
        report.refused
    );
    report
}

/// Every path below, with the content of files.
fn tree(root: &Path) -> Vec<(PathBuf, Option<String>)> {
    fn walk(root: &Path, below: &Path, found: &mut Vec<(PathBuf, Option<String>)>) {
        for entry in fs::read_dir(root.join(below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            if root.join(&path).is_dir() {
                found.push((path.clone(), None));
                walk(root, &path, found);
            } else {
                found.push((path.clone(), Some(fs::read_to_string(root.join(&path)).unwrap())));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, Path::new(""), &mut found);
    found.sort();
    found
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_directory_above_the_roots_names_what_is_below_it() {
    let world = World::in_memory();
    let source = world.source();
    write(source.join("home/ada/letter"), "dear");
    write(source.join("home/bob/sub/letter"), "sir");
    write(source.join("etc/fstab"), "none");
    let snapshot = back_up(&world, &["home/ada", "home/bob/sub", "etc"]);
    for (path, below) in [("home", "home"), ("home/bob", "home/bob"), ("", "")] {
        let target = world.dir.path().join(format!("target{}", path.len()));
        let asked = source.join(path);
        let how = How {
            path: Some(&asked),
            delete: false,
            dry_run: false,
        };
        restore_to(&world, &snapshot, &target, &how);
        assert_eq!(tree(&target), tree(&source.join(below)), "{path}");
    }
}

#[test]
fn a_root_within_another_survives_the_deletion_of_what_is_not_listed() {
    let world = World::in_memory();
    let source = world.source();
    write(source.join("outer/file"), "outer");
    write(source.join("outer/mount/deep/file"), "inner");
    let snapshot = back_up(&world, &["outer", "outer/mount"]);
    for path in [None, Some(source.join("outer"))] {
        let target = world.dir.path().join("target");
        let top = match &path {
            Some(_) => target.clone(),
            None => target.join(source.strip_prefix("/").unwrap()).join("outer"),
        };
        write(top.join("superfluous/file"), "x");
        write(top.join("mount/deep/superfluous"), "x");
        let how = How {
            path: path.as_deref(),
            delete: true,
            dry_run: false,
        };
        let report = restore_to(&world, &snapshot, &target, &how);
        assert_eq!(tree(&top), tree(&source.join("outer")));
        assert_eq!(report.removed, 3);
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn a_dry_run_says_what_the_restore_then_does() {
    let world = World::in_memory();
    let source = world.source();
    for number in 0..5 {
        write(source.join(format!("all/{number}/file")), &format!("content {number}"));
    }
    write(source.join("all/plain"), "a file");
    let snapshot = back_up(&world, &["all"]);
    let all = source.join("all");
    let how = |dry_run| How {
        path: Some(&all),
        delete: true,
        dry_run,
    };
    let target = world.dir.path().join("target");
    let nothing_there = restore_to(&world, &snapshot, &target, &how(true));
    assert!(!target.exists(), "a dry run made the target");
    assert_eq!((nothing_there.files, nothing_there.removed), (6, 0));
    restore_to(&world, &snapshot, &target, &how(false));

    // One file differs, one is missing, two things are too many, and a full directory stands where a file is to be.
    write(target.join("1/file"), "something else");
    fs::remove_file(target.join("2/file")).unwrap();
    write(target.join("3/further"), "x");
    write(target.join("further/file"), "x");
    fs::remove_file(target.join("plain")).unwrap();
    write(target.join("plain/in the way"), "x");
    let before = tree(&target);
    let would = restore_to(&world, &snapshot, &target, &how(true));
    assert_eq!(tree(&target), before, "a dry run changed the target");
    let did = restore_to(&world, &snapshot, &target, &how(false));
    assert_eq!(tree(&target), tree(&all));
    let figures = |report: &restore::Report| (report.files, report.files_unchanged, report.bytes, report.removed);
    assert_eq!(figures(&would), figures(&did));
    assert_eq!((did.files, did.files_unchanged, did.removed), (3, 3, 5));
}
