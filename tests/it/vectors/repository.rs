//! `repo/`: a complete small repository by the other implementation, and `expected.txt`, what a reader finds in it.

use super::spec;
use larder::edge::store::local::LocalStore;
use larder::ops::look::{Appetite, open_reader};
use larder::ops::{Progress, check, restore};
use larder::pure::base::memory::IndexShare;
use larder::pure::format::blob::{BlobType, Opener};
use larder::pure::format::entry::{Content, Entry, EntryKind};
use larder::pure::format::manifest::{Root, RootKind};
use larder::pure::id::{from_hex, to_hex};
use larder::pure::tree::key;
use larder::pure::tree::list::for_each_piece;
use larder::pure::tree::rules::{self, Ancestors};
use larder::pure::tree::walk::TreeWalk;
use larder::repo::Repo;
use larder::repo::open::{self, Credential, LocalOptions};
use larder::repo::reader::{BlobReader, TreeReader};
use larder::repo::snapshots::{Filter, Snapshot};
use larder::target::files::{MetaPolicy, Overwrite};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Snapshot, root, path in hex, hash of the content: a line of `expected.txt`.
type Line = (String, usize, String, String);

/// A copy, because larder may make directories where it opens a repository.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        copy(&spec("vectors/repo"), &dir.path().join("repo"));
        World { dir }
    }

    fn open(&self, machine: &str, credential: &Credential) -> Repo {
        let options = LocalOptions {
            cache_dir: self.dir.path().join(machine),
            index: IndexShare::with_filter(1 << 20),
            node_cache_bytes_max: 16 << 20,
        };
        let store = Arc::new(LocalStore::new(self.dir.path().join("repo"), true));
        let repo = open::connect(store, options).unwrap().unlock(credential).unwrap();
        let history = repo.sync_history().unwrap();
        assert!(history.broken.is_empty(), "{:?}", history.broken);
        assert_eq!((history.gaps, history.forks), (vec![], vec![]));
        repo
    }
}

fn key_file() -> Credential {
    Credential::from_key_file(&fs::read(spec("vectors/key-file")).unwrap()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Path and bytes of every object.
fn objects(dir: &Path) -> BTreeSet<(PathBuf, Vec<u8>)> {
    let mut found = BTreeSet::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert((path.strip_prefix(dir).unwrap().to_path_buf(), fs::read(&path).unwrap()));
            }
        }
    }
    found
}

fn expected() -> BTreeSet<Line> {
    let text = fs::read_to_string(spec("vectors/expected.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [snapshot, root, path, content] = words[..] else {
            panic!("{line:?}")
        };
        (
            snapshot.to_owned(),
            root.parse().unwrap(),
            path.to_owned(),
            content.to_owned(),
        )
    });
    lines.collect()
}

fn content_of(entry: &Entry, reader: &BlobReader<'_>, nodes: &mut TreeReader<'_, '_>) -> Option<Vec<u8>> {
    let content = entry.content()?;
    if let Content::Inline(bytes) = content {
        return Some(bytes.clone());
    }
    let (mut bytes, mut chunk, mut opener) = (Vec::new(), Vec::new(), Opener::new());
    for_each_piece(content, entry.size(), 0..u64::MAX, nodes, &mut |offset, piece| {
        assert_eq!(offset, bytes.len() as u64);
        if piece.is_hole() {
            bytes.resize(bytes.len() + piece.len as usize, 0);
        } else {
            reader.read(BlobType::Data, &piece.id, &mut opener, &mut chunk)?;
            assert_eq!(chunk.len() as u64, piece.len);
            bytes.extend_from_slice(&chunk);
        }
        Ok(())
    })
    .unwrap();
    Some(bytes)
}

fn read_root(repo: &Repo, snapshot: &Snapshot, number: usize, root: &Root) -> Vec<Line> {
    let reader = open_reader(repo, snapshot, Appetite::Much).unwrap();
    let (mut nodes, mut lists) = (TreeReader::new(&reader), TreeReader::new(&reader));
    let mut walk = TreeWalk::new(root.node, root.height, &[])
        .expecting(root.entries, root.bytes)
        .checking_sizes();
    let (mut lines, mut ancestors) = (Vec::new(), Ancestors::new());
    while let Some((tree_key, value)) = walk.next(&mut nodes).unwrap() {
        rules::check_key(root.kind, &tree_key).unwrap();
        let entry = rules::decode_entry(root.kind, &value).unwrap();
        let path = match root.kind {
            RootKind::Posix => {
                ancestors
                    .admit(&key::components(&tree_key).unwrap(), entry.kind == EntryKind::Dir)
                    .unwrap();
                key::path(&tree_key).unwrap()
            }
            _ => tree_key,
        };
        let path = if path.is_empty() { "-".to_owned() } else { to_hex(&path) };
        let content = content_of(&entry, &reader, &mut lists).map(|bytes| blake3::hash(&bytes).to_hex().to_string());
        lines.push((snapshot.id.to_string(), number, path, content.unwrap_or("-".into())));
    }
    lines
}

#[test]
fn published_repository_opens_and_gives_what_was_stored() {
    let world = World::new();
    let before = objects(&world.dir.path().join("repo"));
    let passphrase = Credential::Password(b"correct horse battery staple".to_vec().into());
    for (machine, credential) in [("first", key_file()), ("second", passphrase)] {
        let repo = world.open(machine, &credential);
        let snapshots = repo.snapshots().unwrap();
        // The fourth is forgotten.
        assert_eq!(snapshots.len(), 3);
        let mut found = BTreeSet::new();
        for snapshot in &snapshots {
            for (number, root) in snapshot.manifest.roots.iter().enumerate() {
                found.extend(read_root(&repo, snapshot, number, root));
            }
        }
        let expected = expected();
        let differences: Vec<_> = found.symmetric_difference(&expected).collect();
        assert!(differences.is_empty(), "{differences:#?}");
    }
    assert_eq!(
        objects(&world.dir.path().join("repo")),
        before,
        "reading changed the repository"
    );
}

#[test]
fn published_repository_passes_the_check() {
    let world = World::new();
    let repo = world.open("machine", &key_file());
    let options = check::Options {
        read_data: Some(check::Subset::All),
        threads: 2,
        ..check::Options::default()
    };
    let report = check::run(&repo, &options, &Progress::default()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.damaged_files_total, 0, "{:?}", report.damaged_files);
    assert_eq!((report.snapshots, report.packs_read), (3, 5));
}

#[test]
fn published_repository_is_restored_with_its_metadata() {
    let world = World::new();
    let repo = world.open("machine", &key_file());
    for number in 0..2u8 {
        let id = to_hex(&[&[0x11; 4][..], &[number; 12]].concat());
        let snapshot = repo.resolve(&id, &Filter::default(), &|_| None).unwrap();
        let target = world.dir.path().join(format!("restored{number}"));
        let options = restore::Options {
            snapshot,
            path: Some(b"/srv".to_vec()),
            target: target.clone(),
            selection: restore::Selection::default(),
            delete: false,
            overwrite: Overwrite::IfChanged,
            verify: true,
            dry_run: false,
            owners: restore::OwnerMap::default(),
            fetch: restore::fetch_share(true, 2),
            policy: MetaPolicy::sensible(),
        };
        let report = restore::run(&repo, &options, &Progress::default()).unwrap();
        assert_eq!(
            (report.failed_total, report.damaged_total),
            (0, 0),
            "{:?} {:?}",
            report.failed,
            report.damaged
        );
        let mut names = BTreeSet::new();
        for (_, _, path, content) in expected().iter().filter(|line| line.0 == id) {
            use std::os::unix::ffi::OsStrExt;
            let path = if path == "-" {
                Vec::new()
            } else {
                from_hex(path).unwrap()
            };
            let place = target.join(std::ffi::OsStr::from_bytes(&path));
            let status = place
                .symlink_metadata()
                .unwrap_or_else(|error| panic!("{}: {error}", place.display()));
            if content != "-" {
                assert_eq!(
                    blake3::hash(&fs::read(&place).unwrap()).to_hex().as_str(),
                    content,
                    "{}",
                    place.display()
                );
                assert!(status.is_file());
            }
            names.insert(place);
        }
        let at = |path: &str| target.join(path).symlink_metadata().unwrap();
        assert_eq!((at("a").mtime(), at("a").mtime_nsec()), (1_700_000_001, 999_999_999));
        assert_eq!((at("a/old").mtime(), at("a/old").mtime_nsec()), (-1, 500_000_000));
        assert_eq!((at("").mode() & 0o7777, at("a/hi.txt").mode() & 0o7777), (0o750, 0o640));
        assert_eq!(at("a/one").ino(), at("a/two").ino());
        assert_eq!(fs::read_link(target.join("a/link")).unwrap(), Path::new("../a/hi.txt"));
        assert!(at("a/sparse").blocks() * 512 < 100_000, "the hole has been filled");
        let mut there = 1;
        let mut open = vec![target.clone()];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let entry = entry.unwrap();
                assert!(
                    names.contains(&entry.path()),
                    "{} is not in the snapshot",
                    entry.path().display()
                );
                there += 1;
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                }
            }
        }
        assert_eq!(there, names.len());
    }
}
