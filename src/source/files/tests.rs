//! Walks and reads of real trees in a temporary directory.

use super::*;
use crate::edge::fs::{open_beneath, open_quietly};
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::EntryKind;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, IFlags, Mode, OFlags, XattrFlags};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: this test needs root");
    }
    is_root
}

fn walk(root: &Path, options: WalkOptions) -> (Vec<Found>, Vec<SourceProblem>, WalkCounts) {
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    let mut walk = FileWalk::open(root, options).unwrap();
    while let Some(event) = walk.next() {
        match event {
            WalkEvent::Entry(found) => entries.push(found),
            WalkEvent::Problem(problem) => problems.push(problem),
        }
    }
    (entries, problems, walk.counts())
}

fn paths(root: &Path, options: WalkOptions) -> Vec<String> {
    let (entries, problems, _) = walk(root, options);
    assert_eq!(problems, []);
    entries
        .iter()
        .map(|found| String::from_utf8(found.path()).unwrap())
        .collect()
}

fn find(root: &Path, path: &[u8]) -> Found {
    walk(root, WalkOptions::default())
        .0
        .into_iter()
        .find(|found| found.path() == path)
        .expect("it was made")
}

/// The key by the words of the format: `c1 00 … ck 00 00 name`.
fn key(components: &[&[u8]]) -> Vec<u8> {
    let Some((name, parents)) = components.split_last() else {
        return vec![0];
    };
    let mut key = Vec::new();
    for parent in parents {
        key.extend_from_slice(parent);
        key.push(0);
    }
    key.push(0);
    key.extend_from_slice(name);
    key
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// Old enough to be read without waiting.
fn settle(path: &Path) {
    let file = fs::File::open(path).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    file.set_modified(long_ago).unwrap();
}

fn read_all(file: &mut SourceFile) -> (Vec<u8>, Vec<Piece>) {
    let (mut bytes, mut pieces) = (Vec::new(), Vec::new());
    while let Some(piece) = file.next_piece().unwrap() {
        pieces.push(piece);
        match piece {
            Piece::Hole { len } => bytes.resize(bytes.len() + len as usize, 0),
            Piece::Data { .. } => {
                let mut buffer = vec![0; 70_000];
                loop {
                    let length = file.read(&mut buffer).unwrap();
                    if length == 0 {
                        break;
                    }
                    bytes.extend_from_slice(&buffer[..length]);
                }
            }
        }
    }
    (bytes, pieces)
}

#[test]
fn entries_come_in_the_order_of_their_keys() {
    // Goal: any tree, names chosen so that slashes, prefixes and bytes around the separators compare in every way.
    for seed in 1..=12_u64 {
        let dir = tempfile::tempdir().unwrap();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let alphabet = [1, b'\n', b' ', b'-', b'.', b'0', b'a', b'a', b'b', 0x7f, 0x80, 0xff];
        let mut directories: Vec<PathBuf> = vec![dir.path().into()];
        let mut expected: BTreeSet<Vec<u8>> = [vec![0]].into();
        for _ in 0..400 {
            let parent = directories[random(directories.len() as u64) as usize].clone();
            let name: Vec<u8> = (0..1 + random(4)).map(|_| alphabet[random(12) as usize]).collect();
            let path = parent.join(os(&name));
            if name == b"." || name == b".." || path.symlink_metadata().is_ok() {
                continue;
            }
            if random(3) == 0 {
                fs::create_dir(&path).unwrap();
                directories.push(path.clone());
            } else {
                fs::write(&path, b"x").unwrap();
            }
            let relative = path.strip_prefix(dir.path()).unwrap().as_os_str().as_bytes();
            expected.insert(key(&relative.split(|&byte| byte == b'/').collect::<Vec<_>>()));
        }
        let (entries, problems, counts) = walk(dir.path(), WalkOptions::default());
        let found: Vec<Vec<u8>> = entries.iter().map(|found| found.key.clone()).collect();
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "seed {seed}");
        assert_eq!((problems.len(), counts.entries), (0, found.len() as u64));
        // Threads that list ahead change nothing.
        let ahead = walk(
            dir.path(),
            WalkOptions {
                threads_ahead: 1 + seed as usize % 3,
                ..WalkOptions::default()
            },
        )
        .0;
        let told = |found: &Found| (found.key.clone(), found.stat, found.entry.clone());
        assert!(entries.iter().map(told).eq(ahead.iter().map(told)), "seed {seed}");
    }
}

#[test]
fn names_of_all_bytes_and_of_full_length_are_kept_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut names: Vec<Vec<u8>> = (1..=255)
        .filter(|&byte| byte != b'/' && byte != b'.')
        .map(|byte| vec![byte])
        .collect();
    names.push(vec![0xfe; 255]);
    names.push(b"...".to_vec());
    names.push(b"\x1b[31m\n".to_vec());
    names
        .iter()
        .for_each(|name| fs::write(dir.path().join(os(name)), name).unwrap());
    names.sort();
    let (entries, ..) = walk(dir.path(), WalkOptions::default());
    assert_eq!(entries[1..].iter().map(Found::path).collect::<Vec<_>>(), names);
    for found in &entries[1..] {
        assert_eq!(read_all(&mut found.open().unwrap()).0, found.path());
    }
}

/// In memory where that is possible: thousands of nested directories take a disk seconds.
fn scratch_for_deep() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Makes `d/d/…`, each level with a file, beyond what a path can name. Returns the deepest directory.
fn make_deep(base: &Path, levels: usize, is_branching: bool) -> OwnedFd {
    let mut fd = open_quietly(CWD, base.as_os_str().as_bytes(), OFlags::PATH | OFlags::DIRECTORY).unwrap();
    for _ in 0..levels {
        rustix::fs::mkdirat(&fd, c"directory", Mode::RWXU).unwrap();
        if is_branching {
            rustix::fs::mkdirat(&fd, c"e", Mode::RWXU).unwrap();
            rustix::fs::mknodat(&fd, c"e/x", FileType::RegularFile, Mode::RWXU, 0).unwrap();
        }
        fd = open_quietly(&fd, c"directory", OFlags::PATH | OFlags::DIRECTORY).unwrap();
    }
    rustix::fs::mknodat(&fd, c"bottom", FileType::RegularFile, Mode::RWXU, 0).unwrap();
    fd
}

fn remove_deep(base: &Path) {
    use crate::target::files::{MetaPolicy, Overwrite, TargetDir};
    let target = TargetDir::open(base, false, Overwrite::Always, MetaPolicy::sensible()).unwrap();
    let removed = target.remove_unlisted(target.root(), &|_| false).unwrap();
    assert_eq!(removed.problems, []);
}

fn open_descriptors(below: &Path) -> usize {
    let is_below = |link: PathBuf| link.starts_with(below);
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter(|entry| fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(is_below))
        .count()
}

#[test]
fn deep_trees_are_walked_with_few_descriptors_and_can_still_be_opened() {
    // Every level has a second sub-directory, so every level is waiting when the bottom is reached; all findings are
    // kept, so every directory is still needed at the end.
    let dir = scratch_for_deep();
    let levels = 1500;
    make_deep(dir.path(), levels, true);
    let options = WalkOptions {
        threads_ahead: 2,
        ..WalkOptions::default()
    };
    let mut walk = FileWalk::open(dir.path(), options).unwrap();
    let mut entries = Vec::new();
    let mut most_open = 0;
    while let Some(event) = walk.next() {
        let WalkEvent::Entry(found) = event else {
            panic!("{event:?}")
        };
        entries.push(found);
        if entries.len() % 100 == 0 {
            most_open = most_open.max(open_descriptors(dir.path()));
        }
    }
    assert_eq!(entries.len(), 1 + 3 * levels + 1);
    assert!(entries.is_sorted_by(|a, b| a.key < b.key));
    // Names beyond PATH_MAX cannot be seen in /proc, so this counts only a part; the limit is the walk's own.
    assert!(most_open <= 210, "{most_open}");
    let bottom = entries.iter().find(|found| found.key.ends_with(b"bottom")).unwrap();
    assert!(bottom.path().len() > 4096);
    bottom.open().unwrap();
    for found in entries.iter().filter(|found| found.key.ends_with(b"\0x")).step_by(97) {
        found.open().unwrap();
    }
    drop((walk, entries));
    remove_deep(dir.path());
}

#[test]
fn a_chain_of_3000_directories_is_walked() {
    let dir = scratch_for_deep();
    make_deep(dir.path(), 3000, false);
    let (entries, problems, _) = walk(dir.path(), WalkOptions::default());
    assert_eq!((entries.len(), problems.len()), (3002, 0));
    assert_eq!(entries.last().unwrap().path().len(), 3000 * 10 + 6);
    drop(entries);
    remove_deep(dir.path());
}

#[test]
fn trees_deeper_than_the_format_stores_are_reported() {
    let dir = scratch_for_deep();
    make_deep(dir.path(), 4100, false);
    let (entries, problems, _) = walk(dir.path(), WalkOptions::default());
    assert_eq!((entries.len(), problems.len()), (4097, 1));
    assert_eq!(problems[0].kind, ProblemKind::TooDeep);
    drop(entries);
    remove_deep(dir.path());
}

#[test]
fn roots_may_be_files_and_links() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    fs::write(dir.path().join("real/file"), b"content").unwrap();
    symlink("real", dir.path().join("link")).unwrap();

    let (entries, ..) = walk(&dir.path().join("real/file"), WalkOptions::default());
    assert_eq!((entries.len(), &entries[0].key[..]), (1, &[0][..]));
    assert_eq!(entries[0].path(), b"");
    assert_eq!(read_all(&mut entries[0].open().unwrap()).0, b"content");
    entries[0].attributes().unwrap();

    let (entries, ..) = walk(&dir.path().join("link"), WalkOptions::default());
    assert_eq!(entries.len(), 1);
    assert_eq!(
        entries[0].entry.kind,
        EntryKind::Symlink {
            target: b"real".to_vec()
        }
    );

    let (entries, ..) = walk(&dir.path().join("link/"), WalkOptions::default());
    assert_eq!(entries.iter().map(Found::path).collect::<Vec<_>>(), [&b""[..], b"file"]);
    assert_eq!(entries[0].entry.kind, EntryKind::Dir);
    entries[0].attributes().unwrap();

    let missing = FileWalk::open(&dir.path().join("missing"), WalkOptions::default())
        .err()
        .unwrap();
    assert!(matches!(
        missing,
        SourceError::Root {
            error: Errno::NOENT,
            ..
        }
    ));
    assert_eq!(missing.kind(), Kind::Incomplete);
}

#[test]
fn every_type_is_described() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    symlink(os(&[b'/', 0xff, b'x']), at("link")).unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    fs::write(at("file"), b"12345").unwrap();
    fs::hard_link(at("file"), at("again")).unwrap();
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o4751)).unwrap();

    let link = find(dir.path(), b"link");
    assert_eq!(
        link.entry.kind,
        EntryKind::Symlink {
            target: vec![b'/', 0xff, b'x']
        }
    );
    assert_eq!(link.attributes().unwrap(), Gathered::default());
    assert_eq!(find(dir.path(), b"fifo").entry.kind, EntryKind::Fifo);
    find(dir.path(), b"fifo").attributes().unwrap();
    assert!(find(dir.path(), b"fifo").open().is_err());
    assert_eq!(find(dir.path(), b"socket").entry.kind, EntryKind::Socket);
    find(dir.path(), b"socket").attributes().unwrap();

    let (file, again) = (find(dir.path(), b"file"), find(dir.path(), b"again"));
    let meta = at("file").metadata().unwrap();
    assert_eq!(file.entry.mode, 0o4751);
    assert_eq!(
        (file.entry.uid, file.entry.gid, file.entry.ino),
        (meta.uid(), meta.gid(), meta.ino())
    );
    assert_eq!(
        file.entry.mtime,
        FileTime {
            seconds: meta.mtime(),
            nanos: meta.mtime_nsec() as u32
        }
    );
    assert_eq!(
        file.entry.ctime,
        FileTime {
            seconds: meta.ctime(),
            nanos: meta.ctime_nsec() as u32
        }
    );
    let group = file.entry.attributes.hard_link.unwrap();
    assert_eq!((group.device, group.links), (meta.dev(), 2));
    assert_eq!((file.stat.ino, file.stat.dev), (again.stat.ino, again.stat.dev));
    assert_eq!(link.entry.attributes.hard_link, None);

    if is_root() {
        let device = rustix::fs::makedev(1, 300);
        rustix::fs::mknodat(CWD, at("device"), FileType::CharacterDevice, Mode::RWXU, device).unwrap();
        assert_eq!(
            find(dir.path(), b"device").entry.kind,
            EntryKind::CharDevice { major: 1, minor: 300 }
        );
    }
}

#[test]
fn times_long_ago_and_far_ahead_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for (name, seconds, nanos) in [
        ("old", -2, 999_999_999),
        ("far", 1 << 33, 1),
        ("edge", (1 << 31) - 1, 0),
    ] {
        fs::write(dir.path().join(name), b"").unwrap();
        let stamp = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        };
        let times = rustix::fs::Timestamps {
            last_access: stamp,
            last_modification: stamp,
        };
        rustix::fs::utimensat(CWD, dir.path().join(name), &times, rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(
            find(dir.path(), name.as_bytes()).entry.mtime,
            FileTime { seconds, nanos }
        );
    }
}

#[test]
fn attributes_flags_and_capabilities_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, b"").unwrap();
    let set = |name: &str, value: &[u8]| rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty());
    if let Err(error) = set("user.small", b"\0\xff") {
        return eprintln!("SKIPPED: no user attributes here: {error}");
    }
    set("user.empty", b"").unwrap();
    // Access list: owner rw, user 1000 r, group r, mask r, others none.
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend([&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    set("system.posix_acl_access", &list).unwrap();
    let found = find(dir.path(), b"file");
    let gathered = found.attributes().unwrap();
    let expected = [
        (b"system.posix_acl_access".to_vec(), list),
        (b"user.empty".to_vec(), vec![]),
        (b"user.small".to_vec(), b"\0\xff".to_vec()),
    ];
    let ours: Vec<_> = gathered
        .xattrs
        .iter()
        .filter(|(name, _)| !name.starts_with(b"security."))
        .cloned()
        .collect();
    assert_eq!(ours, expected);
    assert_eq!((gathered.problems.len(), gathered.large_xattrs.len()), (0, 0));
    assert_eq!(found.open().unwrap().attributes(), gathered);

    // tmpfs and xfs take large values; ext4 only with an extra feature.
    match set("user.large", &[7; 5000]) {
        Ok(()) => {
            let gathered = find(dir.path(), b"file").attributes().unwrap();
            assert_eq!(gathered.large_xattrs, [(b"user.large".to_vec(), vec![7; 5000])]);
        }
        Err(error) => eprintln!("SKIPPED: no large attributes here: {error}"),
    }

    if is_root() {
        symlink("nowhere", dir.path().join("link")).unwrap();
        rustix::fs::lsetxattr(dir.path().join("link"), "trusted.of-link", b"1", XattrFlags::empty()).unwrap();
        let gathered = find(dir.path(), b"link").attributes().unwrap();
        assert_eq!(gathered.xattrs, [(b"trusted.of-link".to_vec(), b"1".to_vec())]);

        let file = fs::File::open(&path).unwrap();
        let before = rustix::fs::ioctl_getflags(&file).unwrap();
        rustix::fs::ioctl_setflags(&file, before | IFlags::IMMUTABLE | IFlags::NODUMP).unwrap();
        let flags = find(dir.path(), b"file").attributes().unwrap().flags;
        rustix::fs::ioctl_setflags(&file, before).unwrap();
        assert_eq!(flags, Some(u64::from((IFlags::IMMUTABLE | IFlags::NODUMP).bits())));
        assert_eq!(find(dir.path(), b"file").attributes().unwrap().flags, None);
    }
}

#[test]
fn more_attributes_than_a_leaf_holds_go_out_of_line() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("file");
    fs::write(&path, b"").unwrap();
    for number in 10..30 {
        let set = rustix::fs::lsetxattr(&path, format!("user.{number}"), &[number; 4000], XattrFlags::empty());
        if let Err(error) = set {
            return eprintln!("SKIPPED: no user attributes on tmpfs: {error}");
        }
    }
    let gathered = find(dir.path(), b"file").attributes().unwrap();
    assert_eq!((gathered.xattrs.len(), gathered.large_xattrs.len()), (8, 12));
    assert!(gathered.xattrs.is_sorted() && gathered.large_xattrs.is_sorted());
}

#[test]
fn holes_are_found_and_content_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = fs::File::create(&path).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(b"middle", 5 << 20).unwrap();
    let (bytes, pieces) = read_all(&mut find(dir.path(), b"sparse").open().unwrap());
    assert_eq!(bytes, fs::read(&path).unwrap());
    assert!(
        matches!(pieces[..], [Piece::Hole { .. }, Piece::Data { .. }, Piece::Hole { .. }]),
        "{pieces:?}"
    );

    let huge = fs::File::create(dir.path().join("huge")).unwrap();
    if huge.set_len(8 << 40).is_ok() {
        let mut opened = find(dir.path(), b"huge").open().unwrap();
        assert_eq!(opened.next_piece().unwrap(), Some(Piece::Hole { len: 8 << 40 }));
        assert_eq!(opened.next_piece().unwrap(), None);
        assert_eq!(opened.recheck().unwrap(), Recheck::Unchanged);
    }

    fs::write(dir.path().join("empty"), b"").unwrap();
    assert_eq!(
        read_all(&mut find(dir.path(), b"empty").open().unwrap()),
        (vec![], vec![])
    );

    // Beyond the size from where the page cache is spared.
    let content: Vec<u8> = (0..9 << 20).map(|index: u32| (index / 7) as u8).collect();
    fs::write(dir.path().join("large"), &content).unwrap();
    let (bytes, pieces) = read_all(&mut find(dir.path(), b"large").open().unwrap());
    assert!(bytes == content);
    assert_eq!(pieces, [Piece::Data { len: 9 << 20 }]);
}

#[test]
fn changes_while_reading_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![1; 200_000]).unwrap();
    let found = find(dir.path(), b"file");

    let mut grown = found.open().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[2; 1000], 200_000).unwrap();
    assert_eq!(read_all(&mut grown).0.len(), 200_000);
    assert_eq!(grown.recheck().unwrap(), Recheck::Changed);

    let mut found = found;
    let mut shrunk = found.open().unwrap();
    shrunk.update(&mut found);
    assert_eq!(found.entry.size(), 201_000);
    assert_eq!(shrunk.next_piece().unwrap(), Some(Piece::Data { len: 201_000 }));
    let mut buffer = vec![0; 1000];
    assert_eq!(shrunk.read(&mut buffer).unwrap(), 1000);
    file.set_len(5_000).unwrap();
    let mut rest = vec![0; 300_000];
    assert_eq!(shrunk.read(&mut rest).unwrap(), 4_000);
    assert_eq!(shrunk.read(&mut rest).unwrap(), 0);
    assert_eq!(shrunk.next_piece().unwrap(), None);
    assert_eq!(shrunk.recheck().unwrap(), Recheck::Changed);

    let mut same = found.open().unwrap();
    read_all(&mut same);
    assert_eq!(same.recheck().unwrap(), Recheck::Unchanged);
}

#[test]
fn what_was_exchanged_since_the_walk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("canary"), b"secret").unwrap();
    fs::create_dir(at("tree")).unwrap();
    for name in ["a", "b", "c", "d"] {
        fs::write(at("tree").join(name), b"x").unwrap();
    }
    let (entries, ..) = walk(&at("tree"), WalkOptions::default());
    let open = |name: &[u8]| {
        entries
            .iter()
            .find(|found| found.path() == name)
            .unwrap()
            .open()
            .map(|_| ())
    };

    fs::remove_file(at("tree/a")).unwrap();
    symlink(at("canary"), at("tree/a")).unwrap();
    assert!(matches!(open(b"a"), Err(SourceError::Replaced { .. })));
    fs::remove_file(at("tree/b")).unwrap();
    rustix::fs::mknodat(CWD, at("tree/b"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(matches!(open(b"b"), Err(SourceError::Replaced { .. })));
    fs::rename(at("canary"), at("tree/c")).unwrap();
    assert!(matches!(open(b"c"), Err(SourceError::Replaced { .. })));
    fs::remove_file(at("tree/d")).unwrap();
    assert!(matches!(open(b"d"), Err(SourceError::Vanished { .. })));
}

#[test]
fn a_directory_that_becomes_a_link_is_not_entered() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("tree/sub")).unwrap();
    fs::create_dir_all(at("tree/other")).unwrap();
    fs::create_dir_all(at("outside")).unwrap();
    fs::write(at("outside/canary"), b"secret").unwrap();
    let mut walk = FileWalk::open(&at("tree"), WalkOptions::default()).unwrap();
    for _ in 0..3 {
        assert!(matches!(walk.next(), Some(WalkEvent::Entry(_))));
    }
    fs::remove_dir(at("tree/sub")).unwrap();
    symlink(at("outside"), at("tree/sub")).unwrap();
    fs::remove_dir(at("tree/other")).unwrap();
    fs::rename(at("outside"), at("tree/other")).unwrap();
    let rest: Vec<WalkEvent> = walk.collect();
    let is_replaced =
        |event: &WalkEvent| matches!(event, WalkEvent::Problem(problem) if problem.kind == ProblemKind::Replaced);
    assert_eq!(rest.len(), 2);
    assert!(rest.iter().all(is_replaced), "{rest:?}");
}

#[test]
fn what_vanishes_is_counted_and_harmless() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..300 {
        fs::create_dir(dir.path().join(format!("{number:03}"))).unwrap();
        fs::write(dir.path().join(format!("{number:03}/file")), b"x").unwrap();
    }
    let mut walk = FileWalk::open(dir.path(), WalkOptions::default()).unwrap();
    walk.next();
    for number in 100..300 {
        fs::remove_dir_all(dir.path().join(format!("{number:03}"))).unwrap();
    }
    let mut entries = 1;
    while let Some(event) = walk.next() {
        assert!(matches!(event, WalkEvent::Entry(_)), "{event:?}");
        entries += 1;
    }
    assert_eq!((entries, walk.counts().vanished), (201, 200));
}

#[test]
fn swapping_links_into_the_way_never_shows_what_is_outside() {
    // Goal: somebody exchanges a directory for a link, over and over, while the tree is walked and read.
    let dir = scratch_for_deep();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("tree/victim/sub")).unwrap();
    fs::write(at("tree/victim/sub/file"), b"inside").unwrap();
    fs::create_dir_all(at("outside/sub")).unwrap();
    fs::write(at("outside/sub/file"), b"secret").unwrap();
    fs::write(at("outside/canary"), b"secret").unwrap();
    settle(&at("tree/victim/sub/file"));
    settle(&at("outside/sub/file"));
    std::thread::sleep(Duration::from_millis(50));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = fs::rename(at("tree/victim"), at("aside"));
                let _ = symlink(at("outside"), at("tree/victim"));
                let _ = fs::remove_file(at("tree/victim"));
                let _ = fs::rename(at("aside"), at("tree/victim"));
            }
        });
        let mut read = 0;
        for round in 0..3000 {
            let options = WalkOptions {
                threads_ahead: round % 2,
                ..WalkOptions::default()
            };
            for event in FileWalk::open(&at("tree"), options).unwrap() {
                let WalkEvent::Entry(found) = event else { continue };
                assert!(!found.key.ends_with(b"canary"));
                if let (true, Ok(mut file)) = (found.key.ends_with(b"file"), found.open()) {
                    assert_eq!(read_all(&mut file).0, b"inside");
                    read += 1;
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(read > 0);
    });
}

/// The part of the next test that runs as somebody who may not read everything.
#[test]
#[ignore = "is run by another test, as nobody"]
fn as_nobody() {
    let Some(path) = std::env::var_os("LARDER_TEST_SOURCE") else {
        return;
    };
    let (entries, problems, _) = walk(Path::new(&path), WalkOptions::default());
    assert_eq!(
        entries.iter().map(Found::path).collect::<Vec<_>>(),
        [&b""[..], b"closed", b"file", b"open", b"open/file"]
    );
    assert_eq!(problems.len(), 1);
    assert_eq!(
        (problems[0].kind, &problems[0].path[..]),
        (ProblemKind::Directory, &b"closed"[..])
    );
    assert_eq!(problems[0].error, Some(Errno::ACCESS));
    let refused = entries[2].open().unwrap_err();
    assert!(matches!(
        refused,
        SourceError::Open {
            error: Errno::ACCESS,
            ..
        }
    ));
    assert!(refused.hint().is_some());
    entries[1].attributes().unwrap();
    entries[2].attributes().unwrap();
    // Not the owner's wish to leave the access time alone: no reason not to read.
    entries[4].open().unwrap();
}

#[test]
fn what_may_not_be_read_is_reported_and_the_rest_goes_on() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["tree/closed", "tree/open"] {
        fs::create_dir_all(at(name)).unwrap();
        fs::write(at(name).join("file"), b"x").unwrap();
    }
    fs::write(at("tree/file"), b"x").unwrap();
    fs::set_permissions(at("tree/file"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(at("tree/closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::copy(std::env::current_exe().unwrap(), at("program")).unwrap();
    fs::set_permissions(at("program"), fs::Permissions::from_mode(0o755)).unwrap();
    let output = std::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
        ])
        .arg(at("program"))
        .args(["--ignored", "--exact", "source::files::tests::as_nobody"])
        .env("LARDER_TEST_SOURCE", at("tree"))
        .output();
    let Ok(output) = output else {
        return eprintln!("SKIPPED: no setpriv here");
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn findings_go_to_other_threads() {
    fn goes<T: Send + Sync>() {}
    fn moves<T: Send>() {}
    goes::<Found>();
    moves::<FileWalk>();
    moves::<SourceFile>();
}

#[test]
fn rules_leave_out_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["keep", "cache", "tagged", "fake", "repository/deep"] {
        fs::create_dir_all(at(name)).unwrap();
        fs::write(at(name).join("file"), b"x").unwrap();
    }
    fs::write(
        at("tagged/CACHEDIR.TAG"),
        b"Signature: 8a477f597d28d172789f06886806bc55\n# made by a test\n",
    )
    .unwrap();
    fs::write(at("fake/CACHEDIR.TAG"), b"Signature: wrong").unwrap();
    fs::write(at("keep/large"), vec![0; 1001]).unwrap();
    fs::write(at("keep/limit"), vec![0; 1000]).unwrap();
    let mut builder = ExcludesBuilder::default();
    fs::write(at("keep/rules"), b"# rules\n/cache\n*ru*\n!rules\n").unwrap();
    builder.add_file(&at("keep/rules")).unwrap();
    let repository = at("repository").metadata().unwrap();
    let options = WalkOptions {
        excludes: builder.build(dir.path()).unwrap(),
        exclude_caches: true,
        exclude_larger_than: Some(1000),
        exclude_directories: vec![(repository.dev(), repository.ino())],
        ..WalkOptions::default()
    };
    let expected = [
        "",
        "fake",
        "keep",
        "tagged",
        "fake/CACHEDIR.TAG",
        "fake/file",
        "keep/file",
        "keep/limit",
        "keep/rules",
        "tagged/CACHEDIR.TAG",
    ];
    assert_eq!(paths(dir.path(), options.clone()), expected);
    assert_eq!(walk(dir.path(), options).2.excluded, 4);
}

#[test]
fn made_up_file_systems_are_not_entered_unless_named() {
    let (entries, problems, _) = walk(Path::new("/sys/kernel/mm"), WalkOptions::default());
    assert!(entries.len() > 1 && problems.is_empty());
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("proc")).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "proc", "proc"])
        .arg(dir.path().join("proc"))
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: cannot mount here");
    }
    let (entries, problems, _) = walk(dir.path(), WalkOptions::default());
    std::process::Command::new("umount")
        .arg("-l")
        .arg(dir.path().join("proc"))
        .status()
        .unwrap();
    assert_eq!((entries.len(), problems.len()), (2, 1));
    assert!(problems[0].is_note() && problems[0].path == b"proc");
}

#[test]
fn mounts_make_neither_loops_nor_surprises() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("a/loop")).unwrap();
    fs::create_dir_all(at("other")).unwrap();
    let mount = |arguments: &[&OsStr]| {
        std::process::Command::new("mount")
            .args(arguments)
            .status()
            .is_ok_and(|status| status.success())
    };
    if !mount(&[os(b"--bind"), dir.path().as_os_str(), at("a/loop").as_os_str()]) {
        return eprintln!("SKIPPED: cannot mount here");
    }
    let is_mounted = mount(&[os(b"-t"), os(b"tmpfs"), os(b"tmpfs"), at("other").as_os_str()]);
    fs::write(at("other/file"), b"x").unwrap();
    let (entries, problems, _) = walk(
        dir.path(),
        WalkOptions {
            threads_ahead: 2,
            ..WalkOptions::default()
        },
    );
    let one = walk(
        dir.path(),
        WalkOptions {
            one_file_system: true,
            ..WalkOptions::default()
        },
    )
    .0;
    for name in ["other", "a/loop"] {
        std::process::Command::new("umount")
            .arg("-l")
            .arg(at(name))
            .status()
            .unwrap();
    }
    assert!(is_mounted);
    assert_eq!(
        problems.iter().map(|problem| problem.kind).collect::<Vec<_>>(),
        [ProblemKind::Loop]
    );
    assert_eq!(problems[0].path, b"a/loop");
    assert_eq!(
        entries.iter().map(Found::path).collect::<Vec<_>>(),
        [&b""[..], b"a", b"other", b"a/loop", b"other/file"]
    );
    assert_eq!(
        one.iter().map(Found::path).collect::<Vec<_>>(),
        [&b""[..], b"a", b"other", b"a/loop"]
    );
}

#[test]
fn settling_waits_just_long_enough() {
    let time = |milliseconds: i64| FileTime {
        seconds: milliseconds.div_euclid(1000),
        nanos: milliseconds.rem_euclid(1000) as u32 * 1_000_000,
    };
    let wait = |now, mtime, ctime, fine| settle_wait(time(now), time(mtime), time(ctime), fine).as_millis();
    assert_eq!(wait(100_000, 50_000, 50_000, true), 0);
    assert_eq!(wait(100_000, 99_990, 99_990, true), 30);
    assert_eq!(wait(100_000, 99_960, 99_960, true), 0);
    assert_eq!(wait(100_000, 50_000, 99_500, false), 1500);
    assert_eq!(wait(100_000, 99_500, 50_000, false), 1500);
    // Times ahead count as just now, but a modification time can be set to anything.
    assert_eq!(wait(100_000, 50_000, 900_001, true), 40);
    assert_eq!(wait(100_000, 900_000, 50_000, true), 0);
    assert_eq!(wait(100_000, 900_000, 50_000, false), 2000);
    // Whole seconds are what ext4 with small inodes writes.
    assert_eq!(wait(100_400, 100_000, 100_000, true), 1600);
    assert_eq!(wait(-5_000, -5_010, -5_010, true), 30);
    let extreme = |seconds| FileTime { seconds, nanos: 0 };
    assert_eq!(
        settle_wait(extreme(i64::MAX), extreme(i64::MIN), extreme(i64::MIN), false),
        Duration::ZERO
    );
    assert_eq!(
        settle_wait(extreme(i64::MIN), extreme(i64::MAX), extreme(i64::MAX), false).as_secs(),
        2
    );
}

#[test]
fn opening_waits_until_a_later_edit_would_show() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, b"first").unwrap();
    let mut opened = find(dir.path(), b"file").open().unwrap();
    let told = opened.stat();
    assert_eq!(read_all(&mut opened).0, b"first");
    fs::write(&path, b"again").unwrap();
    let now = find(dir.path(), b"file").stat;
    assert_eq!(now.size, told.size);
    assert_ne!((now.mtime, now.ctime), (told.mtime, told.ctime));
    assert_eq!(opened.recheck().unwrap(), Recheck::Changed);
    settle(&path);
}

#[test]
fn paths_longer_than_a_system_call_takes_are_opened() {
    let dir = scratch_for_deep();
    let bottom = make_deep(dir.path(), 500, false);
    let path = dir.path().join(vec!["directory"; 500].join("/"));
    assert!(path.as_os_str().len() > 4096);
    let (entries, ..) = walk(&path, WalkOptions::default());
    assert_eq!(entries.len(), 2);
    let base = open_quietly(CWD, dir.path(), OFlags::PATH | OFlags::DIRECTORY).unwrap();
    let opened = open_beneath(&base, &[&b"directory"[..]; 500], OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    assert_eq!(
        rustix::fs::fstat(opened).unwrap().st_ino,
        rustix::fs::fstat(bottom).unwrap().st_ino
    );
    remove_deep(dir.path());
}

#[test]
#[ignore = "measures; run with --release --ignored --nocapture"]
fn speed_of_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    for directory in 0..1000 {
        fs::create_dir(dir.path().join(format!("{directory}"))).unwrap();
        for file in 0..300 {
            fs::write(dir.path().join(format!("{directory}/file-{file}")), b"").unwrap();
        }
    }
    for threads_ahead in [0, 1, 0, 1] {
        let start = std::time::Instant::now();
        let options = WalkOptions {
            threads_ahead,
            ..WalkOptions::default()
        };
        let count = FileWalk::open(dir.path(), options).unwrap().count();
        eprintln!(
            "{threads_ahead} ahead: {:.0} k/s",
            count as f64 / start.elapsed().as_secs_f64() / 1e3
        );
    }
    let cpu_seconds = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    for _ in 0..4 {
        let start = cpu_seconds();
        let count = FileWalk::open(dir.path(), WalkOptions::default()).unwrap().count();
        let walk = (cpu_seconds() - start) * 1e9 / count as f64;
        // What the same calls cost with nothing around them.
        let start = cpu_seconds();
        let mut buffer = crate::edge::fs::listing::ListingBuffer::default();
        let mut listing = crate::edge::fs::Listing::default();
        let mut count = 0;
        let base = open_quietly(CWD, dir.path(), OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        for directory in 0..1000 {
            let fd = open_quietly(&base, &*format!("{directory}"), OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
            listing.read(&fd, &mut buffer).unwrap();
            for index in 0..listing.len() {
                let mask = rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME;
                rustix::fs::statx(&fd, listing.name(index), rustix::fs::AtFlags::SYMLINK_NOFOLLOW, mask).unwrap();
                count += 1;
            }
        }
        let calls = (cpu_seconds() - start) * 1e9 / f64::from(count);
        eprintln!("{walk:.0} ns of processor time per entry, {calls:.0} of them for the calls alone");
    }
}
