//! Restores into real directories, from entries that a walk found.

use super::*;
use crate::edge::fs::Status;
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::{Attributes, Content, Entry, EntryKind};
use crate::source::files::{FileWalk, Found, Gathered, Piece, WalkEvent, WalkOptions};
use rustix::fs::{CWD, FileType, IFlags, Mode, XattrFlags};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: this test needs root");
    }
    is_root
}

fn everything() -> MetaPolicy {
    MetaPolicy {
        devices: true,
        ..MetaPolicy::sensible()
    }
}

fn open(path: &Path, overwrite: Overwrite) -> TargetDir {
    TargetDir::open(path, true, overwrite, everything()).unwrap()
}

/// An entry that belongs to whoever runs the test.
fn entry(kind: EntryKind, mode: u32) -> Entry {
    Entry {
        kind,
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: FileTime {
            seconds: 1_000_000_000,
            nanos: 123_456_789,
        },
        ctime: FileTime::default(),
        ino: 1,
        attributes: Attributes::default(),
    }
}

fn file(size: u64, mode: u32) -> Entry {
    entry(
        EntryKind::File {
            size,
            content: Content::Inline(Vec::new()),
        },
        mode,
    )
}

fn write(target: &TargetDir, directory: &Arc<DirHandle>, name: &[u8], content: &[u8], entry: &Entry) -> Restored {
    let temporary = target.create(directory, name, content.len() as u64).unwrap();
    temporary.write_at(0, content).unwrap();
    temporary.commit(&Meta::of(entry)).unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A whole backup and restore without a repository between.
fn copy(source: &Path, target: &TargetDir) -> Vec<TargetProblem> {
    let mut problems = Vec::new();
    let mut directories = Vec::new();
    let mut links: HashMap<(u64, u64), LinkSource> = HashMap::new();
    for event in FileWalk::open(source, WalkOptions::default()).unwrap() {
        let WalkEvent::Entry(mut found) = event else {
            panic!("{event:?}")
        };
        let mut gathered = found.attributes().unwrap();
        assert_eq!(gathered.problems, []);
        gathered.put_into(&mut found.entry.attributes);
        let path = found.path();
        let mut components: Vec<&[u8]> = path
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        if found.entry.kind == EntryKind::Dir {
            target.make_dir(&components).unwrap();
            directories.push((found, gathered));
            continue;
        }
        let name = components.pop().unwrap();
        let directory = target.make_dir(&components).unwrap();
        if let Some(source) = links.get(&(found.stat.dev, found.stat.ino)) {
            target.link(source, &directory, name).unwrap();
            continue;
        }
        let meta = Meta {
            entry: &found.entry,
            large_xattrs: &gathered.large_xattrs,
        };
        let restored = match found.entry.kind {
            EntryKind::File { size, .. } => {
                let temporary = target.create(&directory, name, size).unwrap();
                let mut opened = found.open().unwrap();
                let (mut offset, mut buffer) = (0, vec![0; 100_000]);
                while let Some(piece) = opened.next_piece().unwrap() {
                    if let Piece::Hole { len } = piece {
                        offset += len;
                        continue;
                    }
                    loop {
                        let length = opened.read(&mut buffer).unwrap();
                        if length == 0 {
                            break;
                        }
                        temporary.write_at(offset, &buffer[..length]).unwrap();
                        offset += length as u64;
                    }
                }
                temporary.commit(&meta).unwrap()
            }
            _ => target.make_node(&directory, name, &meta).unwrap(),
        };
        problems.extend(restored.problems);
        links.insert((found.stat.dev, found.stat.ino), restored.source.unwrap());
    }
    for (found, gathered) in directories.iter().rev() {
        let path = found.path();
        let components: Vec<&[u8]> = path
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        let meta = Meta {
            entry: &found.entry,
            large_xattrs: &gathered.large_xattrs,
        };
        problems.extend(target.set_meta(&target.open_dir(&components).unwrap(), &meta).unwrap());
    }
    problems.extend(target.finish().unwrap());
    problems
}

/// Everything about a tree that a restore has to bring back.
type Told = (Vec<u8>, Entry, Gathered, Option<u64>, Vec<u8>);

fn tell(root: &Path, skip_inline_below: u64) -> Vec<Told> {
    let mut numbers = HashMap::new();
    let tell = |event| {
        let WalkEvent::Entry(found): WalkEvent = event else {
            panic!("{event:?}")
        };
        let found: Found = found;
        let gathered = found.attributes().unwrap();
        let mut entry = found.entry.clone();
        let group = entry.attributes.hard_link.take().map(|link| {
            let next = numbers.len() as u64;
            *numbers.entry(found.stat.ino).or_insert(next) * 100 + link.links
        });
        entry.ctime = FileTime::default();
        entry.ino = 0;
        entry.attributes.born = None;
        let mut content = Vec::new();
        if matches!(entry.kind, EntryKind::File { .. }) && entry.size() < skip_inline_below {
            content = fs::read(root.join(OsStr::from_bytes(&found.path()))).unwrap();
        }
        (found.path(), entry, gathered, group, content)
    };
    FileWalk::open(root, WalkOptions::default())
        .unwrap()
        .map(tell)
        .collect()
}

fn clear_flags(paths: &[&Path]) {
    for path in paths {
        if let Ok(file) = fs::File::open(path) {
            let _ = rustix::fs::ioctl_setflags(&file, IFlags::empty());
        }
    }
}

#[test]
fn a_tree_of_everything_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let at = |name: &str| source.join(name);
    fs::create_dir_all(at("a/b/c")).unwrap();
    fs::create_dir_all(at("empty")).unwrap();
    fs::write(at("a/empty"), b"").unwrap();
    fs::write(at("a/b/file"), b"content").unwrap();
    fs::hard_link(at("a/b/file"), at("a/b/c/again")).unwrap();
    symlink("../nowhere\n", at("a/link")).unwrap();
    fs::hard_link(at("a/link"), at("link-again")).unwrap();
    fs::write(source.join(OsStr::from_bytes(&[0xff; 255])), b"x").unwrap();
    fs::write(source.join(OsStr::from_bytes(b"new\nline\x1b")), b"y").unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o604), 0).unwrap();
    rustix::fs::mknodat(CWD, at("socket"), FileType::Socket, Mode::from_raw_mode(0o640), 0).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(100 << 20).unwrap();
    sparse.write_all_at(b"island", 50 << 20).unwrap();
    fs::write(at("setuid"), b"#!").unwrap();
    fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    for (name, seconds) in [("a/empty", -1), ("sparse", 1 << 33), ("a/b", 5), ("fifo", 77)] {
        let stamp = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: 987_654_321,
        };
        let times = rustix::fs::Timestamps {
            last_access: stamp,
            last_modification: stamp,
        };
        rustix::fs::utimensat(CWD, at(name), &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    let has_xattrs = rustix::fs::lsetxattr(at("a/b/file"), "user.x", b"\0\xff", XattrFlags::empty()).is_ok();
    if has_xattrs {
        rustix::fs::lsetxattr(at("a"), "user.of-directory", b"1", XattrFlags::empty()).unwrap();
    }
    if is_root() {
        rustix::fs::lsetxattr(at("a/link"), "trusted.of-link", b"1", XattrFlags::empty()).unwrap();
        rustix::fs::lsetxattr(at("fifo"), "trusted.of-fifo", b"1", XattrFlags::empty()).unwrap();
        let device = rustix::fs::makedev(259, 1_000_000);
        rustix::fs::mknodat(
            CWD,
            at("device"),
            FileType::BlockDevice,
            Mode::from_raw_mode(0o660),
            device,
        )
        .unwrap();
        for (name, uid) in [
            ("a/b/file", 1234),
            ("setuid", 1),
            ("a", u32::MAX - 1),
            ("a/link", 77),
            ("fifo", 78),
        ] {
            std::os::unix::fs::lchown(at(name), Some(uid), Some(uid)).unwrap();
        }
        fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
        // cap_net_raw, effective; version 2.
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fs::write(at("capable"), b"x").unwrap();
        std::os::unix::fs::chown(at("capable"), Some(9), Some(9)).unwrap();
        rustix::fs::lsetxattr(at("capable"), "security.capability", &capability, XattrFlags::empty()).unwrap();
        for name in ["a/b/c/again", "empty"] {
            let file = fs::File::open(at(name)).unwrap();
            rustix::fs::ioctl_setflags(&file, IFlags::IMMUTABLE | IFlags::NODUMP).unwrap();
        }
    }
    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o1700)).unwrap_or_default();

    let restored = dir.path().join("target");
    let problems = copy(&source, &open(&restored, Overwrite::IfChanged));
    let (before, after) = (tell(&source, 1 << 20), tell(&restored, 1 << 20));
    let allocated = restored.join("sparse").metadata().unwrap().blocks() * 512;
    let island = fs::read(restored.join("sparse")).unwrap() == fs::read(at("sparse")).unwrap();
    clear_flags(&[
        &at("a/b/file"),
        &at("empty"),
        &restored.join("a/b/file"),
        &restored.join("empty"),
    ]);
    assert_eq!(problems, []);
    assert!(before.len() > 15);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before, after);
    }
    assert_eq!(before.len(), after.len());
    assert!(island && allocated < 1 << 20, "{allocated}");
}

#[test]
fn access_lists_come_back_and_inherited_ones_do_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let list = |default_user: u16| {
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in [
            (1_u16, 7_u16, u32::MAX),
            (2, default_user, 1000),
            (4, 5, u32::MAX),
            (16, 7, u32::MAX),
            (32, 0, u32::MAX),
        ] {
            list.extend([&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        list
    };
    let target = open(dir.path(), Overwrite::Always);
    if rustix::fs::lsetxattr(dir.path(), "system.posix_acl_default", &list(7), XattrFlags::empty()).is_err() {
        return eprintln!("SKIPPED: no access lists here");
    }
    let plain = file(1, 0o640);
    assert_eq!(write(&target, target.root(), b"plain", b"1", &plain).problems, []);
    let mut listed = file(1, 0o770);
    listed.attributes.xattrs = vec![(b"system.posix_acl_access".to_vec(), list(4))];
    assert_eq!(write(&target, target.root(), b"listed", b"1", &listed).problems, []);
    let sub = target.make_dir(&[b"sub"]).unwrap();
    assert_eq!(
        target.set_meta(&sub, &Meta::of(&entry(EntryKind::Dir, 0o750))).unwrap(),
        []
    );

    let told = tell(dir.path(), 100);
    let lists = |path: &[u8]| {
        let told = told.iter().find(|told| told.0 == path).unwrap();
        (told.1.mode, told.2.xattrs.clone())
    };
    assert_eq!(lists(b"plain"), (0o640, vec![]));
    assert_eq!(lists(b"listed"), (0o770, listed.attributes.xattrs.clone()));
    assert_eq!(lists(b"sub"), (0o750, vec![]));
}

#[test]
fn three_thousand_levels_come_back() {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let target = open(&dir.path().join("target"), Overwrite::Always);
    let components = vec![&b"directory"[..]; 3000];
    let bottom = target.make_dir(&components).unwrap();
    write(&target, &bottom, b"file", b"deep", &file(4, 0o600))
        .source
        .unwrap();
    // And once more from the top, by a way longer than any path.
    target.forget_recent();
    let again = target.make_dir(&components).unwrap();
    assert_eq!(
        Status::of(&again.fd).unwrap().identity(),
        Status::of(&bottom.fd).unwrap().identity()
    );
    let second = open(&dir.path().join("second"), Overwrite::Always);
    assert_eq!(copy(&dir.path().join("target"), &second), []);
    assert!(
        second
            .open_existing(&second.open_dir(&components).unwrap(), b"file")
            .unwrap()
            .is_some()
    );
    for target in [target, second] {
        let removed = target.remove_unlisted(target.root(), &|_| false).unwrap();
        assert_eq!((removed.count, removed.problems), (3001, vec![]));
    }
}

#[test]
fn links_in_the_target_are_never_followed() {
    for overwrite in [Overwrite::Always, Overwrite::Never] {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("deep")).unwrap();
        fs::write(outside.join("canary"), b"untouched").unwrap();
        let before = tell(&outside, 100);
        let root = dir.path().join("target");
        let target = open(&root, overwrite);
        symlink(&outside, root.join("directory")).unwrap();
        symlink(outside.join("canary"), root.join("file")).unwrap();

        assert!(target.open_dir(&[b"directory"]).is_err());
        assert!(target.open_dir(&[b"directory", b"deep"]).is_err());
        let made = target.make_dir(&[b"directory", b"deep"]);
        assert!(target.open_existing(target.root(), b"file").unwrap().is_none());
        let temporary = target.create(target.root(), b"file", 3).unwrap();
        temporary.write_at(0, b"new").unwrap();
        let written = temporary.commit(&Meta::of(&file(3, 0o777)));
        if overwrite == Overwrite::Never {
            assert!(matches!(made, Err(TargetError::InTheWay { .. })));
            assert!(matches!(written, Err(TargetError::InTheWay { .. })));
            assert_eq!(names(&root), ["directory", "file"]);
        } else {
            write(&target, &made.unwrap(), b"canary", b"new", &file(3, 0o777))
                .source
                .unwrap();
            assert_eq!(written.unwrap().problems, []);
            assert_eq!(fs::read(root.join("directory/deep/canary")).unwrap(), b"new");
            assert!(root.join("file").symlink_metadata().unwrap().is_file());
        }
        assert_eq!(tell(&outside, 100), before);
    }
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = open(dir.path(), Overwrite::Always);
    let root = target.root();
    for name in [&b""[..], b".", b"..", b"a/b", b"/etc", b"a\0b"] {
        assert!(matches!(target.make_dir(&[name]), Err(TargetError::BadName { .. })));
        assert!(matches!(
            target.open_dir(&[b"x", name]),
            Err(TargetError::BadName { .. })
        ));
        assert!(matches!(target.create(root, name, 0), Err(TargetError::BadName { .. })));
        assert!(matches!(
            target.make_node(root, name, &Meta::of(&entry(EntryKind::Fifo, 0))),
            Err(TargetError::BadName { .. })
        ));
        assert!(matches!(
            target.open_existing(root, name),
            Err(TargetError::BadName { .. })
        ));
        assert!(matches!(
            target.decide(root, name, &file(0, 0)),
            Err(TargetError::BadName { .. })
        ));
    }
    assert_eq!(target.make_dir(&[b".."]).unwrap_err().kind(), Kind::Damage);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn swapping_links_into_the_way_never_leads_outside() {
    // Goal: somebody who may write in the target exchanges a directory for a link, over and over, while we write.
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let root = dir.path().join("target");
    let target = open(&root, Overwrite::Always);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (victim, aside) = (root.join("directory"), root.join("aside"));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = fs::rename(&victim, &aside);
                let _ = symlink(&outside, &victim);
                let _ = fs::remove_file(&victim);
                let _ = fs::rename(&aside, &victim);
            }
        });
        let mut written = 0;
        for number in 0..4000 {
            target.forget_recent();
            let Ok(directory) = target.make_dir(&[b"directory", b"sub"]) else {
                continue;
            };
            let Ok(temporary) = target.create(&directory, b"file", 1) else {
                continue;
            };
            written += u64::from(temporary.commit(&Meta::of(&file(1, 0o600 + number % 8))).is_ok());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(written > 0);
    });
    assert!(names(&outside).is_empty());
}

#[test]
fn an_unfinished_file_is_private_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = open(dir.path(), Overwrite::Always);
    let temporary = target.create(target.root(), b"secret", 10).unwrap();
    temporary.write_at(0, b"0123456789").unwrap();
    let [name] = &names(dir.path())[..] else {
        panic!("one temporary")
    };
    assert!(name.starts_with(".larder-"));
    assert_eq!(dir.path().join(name).metadata().unwrap().mode() & 0o7777, 0o600);
    drop(temporary);
    assert!(names(dir.path()).is_empty());

    // Nor does one that cannot take its name.
    fs::create_dir_all(dir.path().join("secret/full")).unwrap();
    let temporary = target.create(target.root(), b"secret", 0).unwrap();
    assert!(matches!(
        temporary.commit(&Meta::of(&file(0, 0o666))),
        Err(TargetError::InTheWay { .. })
    ));
    let link = entry(EntryKind::Symlink { target: b"x".to_vec() }, 0o777);
    assert!(matches!(
        target.make_node(target.root(), b"secret", &Meta::of(&link)),
        Err(TargetError::InTheWay { .. })
    ));
    assert_eq!(names(dir.path()), ["secret"]);
    // An empty directory gives way.
    fs::remove_dir(dir.path().join("secret/full")).unwrap();
    write(&target, target.root(), b"secret", b"1", &file(1, 0o666))
        .source
        .unwrap();
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"1");
    assert_eq!(names(dir.path()), ["secret"]);
}

#[test]
fn what_is_not_written_is_a_hole_at_the_end_too() {
    let dir = tempfile::tempdir().unwrap();
    let target = open(dir.path(), Overwrite::IfChanged);
    for (name, size, written) in [
        ("end", 1 << 20, 4096..8192),
        ("all", 1 << 20, 0..0),
        ("none", 8192, 4096..8192),
    ] {
        let temporary = target.create(target.root(), name.as_bytes(), size).unwrap();
        if !written.is_empty() {
            temporary
                .write_at(written.start as u64, &vec![1; written.len()])
                .unwrap();
        }
        let restored = temporary.commit(&Meta::of(&file(size, 0o600))).unwrap();
        assert!(
            restored.problems.is_empty(),
            "the time is set after the size: {restored:?}"
        );
        let mut expected = vec![0; size as usize];
        expected[written].fill(1);
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), expected, "{name}");
    }
}

#[test]
fn only_directories_of_this_restore_are_taken_for_empty() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("old")).unwrap();
    for overwrite in [Overwrite::Never, Overwrite::IfChanged] {
        let target = open(dir.path(), overwrite);
        for (directory, is_looked_at) in [("old", true), ("new", overwrite == Overwrite::Never)] {
            let handle = target.make_dir(&[directory.as_bytes()]).unwrap();
            // Behind our back.
            let path = dir.path().join(directory).join("name");
            fs::write(&path, b"there").unwrap();
            let decision = target.decide(&handle, b"name", &file(5, 0o600)).unwrap();
            assert_eq!(
                !matches!(decision, Decision::Write),
                is_looked_at,
                "{directory} {overwrite:?}"
            );
            fs::remove_file(path).unwrap();
        }
        fs::remove_dir(dir.path().join("new")).unwrap();
    }
}

#[test]
fn directories_are_private_until_their_metadata_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let target = open(dir.path(), Overwrite::Always);
    let made = target.make_dir(&[b"a", b"b"]).unwrap();
    for path in ["a", "a/b"] {
        assert_eq!(dir.path().join(path).metadata().unwrap().mode() & 0o7777, 0o700);
    }
    assert_eq!(made.path(), b"a/b");
    assert_eq!(
        target
            .set_meta(&made, &Meta::of(&entry(EntryKind::Dir, 0o2755)))
            .unwrap(),
        []
    );
    let meta = dir.path().join("a/b").metadata().unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()),
        (0o2755, 1_000_000_000, 123_456_789)
    );
}

#[test]
fn what_is_there_is_treated_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"old").unwrap();
    fs::hard_link(dir.path().join("file"), dir.path().join("linked")).unwrap();
    fs::write(dir.path().join("single"), b"abc").unwrap();
    symlink("single", dir.path().join("link")).unwrap();
    let newer = {
        let mut newer = file(3, 0o600);
        newer.mtime.seconds = 1 << 33;
        newer
    };
    let decide = |overwrite, name: &[u8], entry: &Entry| {
        let target = open(dir.path(), overwrite);
        match target.decide(target.root(), name, entry).unwrap() {
            Decision::Write => "write",
            Decision::Keep => "keep",
            Decision::Compare(_) => "compare",
        }
    };
    let older = file(3, 0o600);
    assert_eq!(decide(Overwrite::Never, b"single", &newer), "keep");
    assert_eq!(decide(Overwrite::Never, b"absent", &newer), "write");
    assert_eq!(decide(Overwrite::Always, b"single", &older), "write");
    assert_eq!(decide(Overwrite::IfChanged, b"single", &older), "compare");
    assert_eq!(decide(Overwrite::IfChanged, b"single", &file(4, 0)), "write");
    assert_eq!(decide(Overwrite::IfChanged, b"linked", &older), "write");
    assert_eq!(decide(Overwrite::IfChanged, b"link", &older), "write");
    assert_eq!(decide(Overwrite::IfNewer, b"single", &older), "keep");
    assert_eq!(decide(Overwrite::IfNewer, b"single", &newer), "compare");

    // What is the same keeps its inode and gets the metadata; what is not is replaced, not written through.
    let target = open(dir.path(), Overwrite::IfChanged);
    let Decision::Compare(existing) = target.decide(target.root(), b"single", &older).unwrap() else {
        panic!()
    };
    let mut buffer = [0; 10];
    assert_eq!(existing.read_at(1, &mut buffer).unwrap(), 2);
    assert_eq!(&buffer[..2], b"bc");
    let inode = dir.path().join("single").metadata().unwrap().ino();
    assert_eq!(
        target
            .keep_existing(&existing, &Meta::of(&file(3, 0o640)))
            .unwrap()
            .problems,
        []
    );
    let meta = dir.path().join("single").metadata().unwrap();
    assert_eq!(
        (meta.ino(), meta.mode() & 0o7777, meta.mtime()),
        (inode, 0o640, 1_000_000_000)
    );
    write(&target, target.root(), b"linked", b"new", &older).source.unwrap();
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"old");
}

#[test]
fn links_are_only_made_to_what_this_restore_made() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::write(&outside, b"secret").unwrap();
    let root = dir.path().join("target");
    let target = open(&root, Overwrite::Always);
    let source = write(&target, target.root(), b"first", b"1", &file(1, 0o600))
        .source
        .unwrap();
    target.link(&source, target.root(), b"second").unwrap();
    target.link(&source, target.root(), b"second").unwrap();
    let sub = target.make_dir(&[b"sub"]).unwrap();
    fs::write(root.join("sub/third"), b"in the way").unwrap();
    target.link(&source, &sub, b"third").unwrap();
    assert_eq!(root.join("sub/third").metadata().unwrap().nlink(), 3);
    assert_eq!(
        (names(&root), names(&root.join("sub"))),
        (
            vec!["first".into(), "second".into(), "sub".into()],
            vec!["third".into()]
        )
    );

    fs::remove_file(root.join("first")).unwrap();
    symlink(&outside, root.join("first")).unwrap();
    assert!(matches!(
        target.link(&source, target.root(), b"fourth"),
        Err(TargetError::Replaced { .. })
    ));
    fs::remove_file(root.join("first")).unwrap();
    fs::hard_link(&outside, root.join("first")).unwrap();
    assert!(matches!(
        target.link(&source, target.root(), b"fourth"),
        Err(TargetError::Replaced { .. })
    ));
    assert!(!root.join("fourth").exists());
}

#[test]
fn devices_are_made_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let policy = MetaPolicy {
        devices: false,
        ..MetaPolicy::sensible()
    };
    let target = TargetDir::open(dir.path(), true, Overwrite::Always, policy).unwrap();
    let device = entry(EntryKind::CharDevice { major: 1, minor: 3 }, 0o666);
    let restored = target.make_node(target.root(), b"null", &Meta::of(&device)).unwrap();
    assert_eq!(restored.problems[0].kind, RefusedKind::Device);
    assert!(restored.source.is_none() && names(dir.path()).is_empty());
}

#[test]
fn removing_stays_inside_and_stops_at_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("target");
    let at = |name: &str| root.join(name);
    fs::create_dir_all(dir.path().join("outside/deep")).unwrap();
    fs::write(dir.path().join("outside/canary"), b"x").unwrap();
    fs::create_dir_all(at("gone/deep/er")).unwrap();
    fs::create_dir_all(at("kept")).unwrap();
    fs::write(at("gone/deep/file"), b"x").unwrap();
    fs::write(at("file"), b"x").unwrap();
    symlink(dir.path().join("outside"), at("gone/link")).unwrap();
    symlink(dir.path().join("outside"), at("link")).unwrap();
    let target = open(&root, Overwrite::Always);
    let removed = target.remove_unlisted(target.root(), &|name| name == b"kept").unwrap();
    assert_eq!((removed.count, removed.problems), (7, vec![]));
    assert_eq!(names(&root), ["kept"]);
    assert_eq!(names(&dir.path().join("outside")), ["canary", "deep"]);

    if !is_root() {
        return;
    }
    fs::create_dir_all(at("gone/mount")).unwrap();
    let run = |program: &str, arguments: &[&OsStr]| {
        std::process::Command::new(program)
            .args(arguments)
            .status()
            .is_ok_and(|status| status.success())
    };
    // A bind mount of the same file system: the device number does not tell.
    if !run(
        "mount",
        &[
            "--bind".as_ref(),
            dir.path().join("outside").as_ref(),
            at("gone/mount").as_ref(),
        ],
    ) {
        return eprintln!("SKIPPED: cannot mount here");
    }
    let removed = target.remove_unlisted(target.root(), &|name| name == b"kept").unwrap();
    run("umount", &["-l".as_ref(), at("gone/mount").as_ref()]);
    assert_eq!(
        removed.problems.iter().map(|problem| problem.kind).collect::<Vec<_>>(),
        [RefusedKind::MountPoint]
    );
    assert_eq!(names(&dir.path().join("outside")), ["canary", "deep"]);
}

/// The part of the next test that runs as somebody who may not give files away.
#[test]
#[ignore = "is run by another test, as nobody"]
fn as_nobody() {
    let Some(path) = std::env::var_os("LARDER_TEST_TARGET") else {
        return;
    };
    assert!(!rustix::process::geteuid().is_root());
    let path = Path::new(&path);
    let policy = MetaPolicy {
        chown: true,
        xattrs: true,
        flags: true,
        devices: true,
    };
    let target = TargetDir::open(path, false, Overwrite::Always, policy).unwrap();
    let mut setuid = file(1, 0o6755);
    (setuid.uid, setuid.gid) = (0, 0);
    setuid.attributes.xattrs = vec![(
        b"security.capability".to_vec(),
        vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )];
    let problems = write(&target, target.root(), b"setuid", b"1", &setuid).problems;
    let kinds: Vec<RefusedKind> = problems.iter().map(|problem| problem.kind).collect();
    assert_eq!(
        kinds,
        [RefusedKind::Owner, RefusedKind::Attribute, RefusedKind::SetIdBits]
    );
    let own = file(1, 0o4755);
    assert_eq!(write(&target, target.root(), b"own", b"1", &own).problems, []);
    let device = entry(EntryKind::BlockDevice { major: 8, minor: 0 }, 0o666);
    let restored = target.make_node(target.root(), b"device", &Meta::of(&device)).unwrap();
    assert_eq!(restored.problems[0].kind, RefusedKind::Device);
    // What an earlier restore has finished can be restored into again.
    let closed = target.make_dir(&[b"closed"]).unwrap();
    assert_eq!(
        target
            .set_meta(&closed, &Meta::of(&entry(EntryKind::Dir, 0o055)))
            .unwrap(),
        []
    );
    target.forget_recent();
    drop(closed);
    let inner = target.make_dir(&[b"closed", b"inner"]).unwrap();
    assert_eq!(
        target
            .set_meta(&inner, &Meta::of(&entry(EntryKind::Dir, 0o555)))
            .unwrap(),
        []
    );
    target.forget_recent();
    let inner = target.make_dir(&[b"closed", b"inner"]).unwrap();
    assert_eq!(write(&target, &inner, b"file", b"1", &file(1, 0o400)).problems, []);
    let meta = |name: &str| path.join(name).metadata().unwrap();
    assert_eq!(meta("setuid").mode() & 0o7777, 0o755);
    assert_eq!(meta("own").mode() & 0o7777, 0o4755);
}

#[test]
fn set_id_bits_and_capabilities_need_their_owner() {
    // As root, but told not to change owners.
    let dir = tempfile::tempdir().unwrap();
    let policy = MetaPolicy {
        chown: false,
        ..everything()
    };
    let target = TargetDir::open(dir.path(), true, Overwrite::Always, policy).unwrap();
    let mut entry = file(1, 0o6755);
    entry.uid += 1;
    let problems = write(&target, target.root(), b"file", b"1", &entry).problems;
    assert_eq!(
        problems.iter().map(|problem| problem.kind).collect::<Vec<_>>(),
        [RefusedKind::SetIdBits]
    );
    assert_eq!(dir.path().join("file").metadata().unwrap().mode() & 0o7777, 0o755);

    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    // The test program lies where nobody else may look, perhaps.
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.path().join("target")).unwrap();
    std::os::unix::fs::chown(dir.path().join("target"), Some(65534), Some(65534)).unwrap();
    let output = std::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
        ])
        .arg(&program)
        .args(["--ignored", "--exact", "target::files::tests::as_nobody"])
        .env("LARDER_TEST_TARGET", dir.path().join("target"))
        .output();
    let Ok(output) = output else {
        return eprintln!("SKIPPED: no setpriv here");
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_full_target_says_so() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: cannot mount here");
    }
    let target = open(dir.path(), Overwrite::Always);
    let free = target.free_bytes().unwrap();
    let temporary = target.create(target.root(), b"large", 4 << 20).unwrap();
    let outcome = temporary.write_at(0, &vec![1; 4 << 20]);
    drop(temporary);
    let left = names(dir.path());
    drop(target);
    std::process::Command::new("umount")
        .arg("-l")
        .arg(dir.path())
        .status()
        .unwrap();
    let error = outcome.unwrap_err();
    assert!(matches!(error, TargetError::Full { .. }) && error.is_final());
    assert_eq!((error.kind(), left.len(), free), (Kind::Unavailable, 0, 1 << 20));
}

#[test]
fn names_that_collide_in_the_target_are_refused() {
    // Where no file system folds names, a directory that is said to, and twice the same name, must do.
    let dir = tempfile::tempdir().unwrap();
    let target = open(dir.path(), Overwrite::Always);
    fs::write(dir.path().join("name"), b"before").unwrap();
    let fd = target.root().fd.try_clone().unwrap();
    let folding = Arc::new(DirHandle {
        fd,
        path: Vec::new(),
        is_folding: true,
        is_new: true,
    });
    write(&target, &folding, b"name", b"1", &file(1, 0o600)).source.unwrap();
    let again = target
        .create(&folding, b"name", 1)
        .unwrap()
        .commit(&Meta::of(&file(1, 0o600)));
    assert!(matches!(again, Err(TargetError::InTheWay { .. })));
    assert_eq!(fs::read(dir.path().join("name")).unwrap(), b"1");
    assert_eq!(names(dir.path()), ["name"]);

    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "casefold", "tmpfs"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: cannot mount a tmpfs that folds names here");
    }
    let path = dir.path().join("target");
    fs::create_dir(&path).unwrap();
    let folding = IFlags::from_bits_retain(0x4000_0000);
    rustix::fs::ioctl_setflags(fs::File::open(&path).unwrap(), folding).unwrap();
    fs::write(path.join("OLD"), b"before").unwrap();
    let target = open(&path, Overwrite::Always);
    write(&target, target.root(), b"name", b"1", &file(1, 0o600))
        .source
        .unwrap();
    let second = target
        .create(target.root(), b"NAME", 1)
        .unwrap()
        .commit(&Meta::of(&file(1, 0o600)));
    write(&target, target.root(), b"old", b"new", &file(3, 0o600))
        .source
        .unwrap();
    let contents = (
        fs::read(path.join("name")).unwrap(),
        fs::read(path.join("old")).unwrap(),
        names(&path).len(),
    );
    drop(target);
    std::process::Command::new("umount")
        .arg("-l")
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(matches!(second, Err(TargetError::InTheWay { .. })));
    assert_eq!(contents, (b"1".to_vec(), b"new".to_vec(), 2));
}

#[test]
fn without_openat2_the_same_is_opened() {
    use crate::edge::fs::{open_beneath, open_step_by_step};
    use rustix::fd::AsFd;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    symlink("a", dir.path().join("link")).unwrap();
    let base = fs::File::open(dir.path()).unwrap();
    let flags = super::directory::FLAGS;
    for components in [
        &[&b"a"[..], b"b"][..],
        &[b"link", b"b"],
        &[b"link"],
        &[b"a", b"absent"],
        &[],
    ] {
        let identity = |fd: rustix::fd::OwnedFd| Status::of(&fd).unwrap().identity();
        let with = open_beneath(&base, components, flags).map(identity);
        let without = open_step_by_step(base.as_fd(), components, flags).map(identity);
        assert_eq!(with.is_ok(), without.is_ok(), "{components:?}");
        assert_eq!(with.ok(), without.ok());
    }
}
