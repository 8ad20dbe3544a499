//! Trees that no larder would write: somebody with a key made them, or a defect did. They are refused as damage by everything that
//! reads them, and nothing is written outside of the target (format-spec chapter 12.1; catalogue H1, H2).

use crate::story::{World, credential, options, restore_options, tree};
use larder::edge::host;
use larder::edge::store::{Store, memory::MemoryStore};
use larder::ops::look::{self, Appetite};
use larder::ops::{OpError, Progress, backup, check, dump, restore};
use larder::pure::base::time::FileTime;
use larder::pure::base::{Explain, Kind};
use larder::pure::format::blob::{BlobType, Codec};
use larder::pure::format::entry::{Attributes, Content, Entry, EntryKind};
use larder::pure::format::manifest::{Manifest, Root, RootKind, Source, Stats};
use larder::pure::format::outcome::OutcomeKind;
use larder::pure::format::session::SessionRole;
use larder::pure::id::ChunkId;
use larder::pure::tree::build::{NodeSink, TreeBuilder};
use larder::pure::tree::key;
use larder::repo::Repo;
use larder::repo::error::RepoError;
use larder::repo::pack_writer::{Claim, CurrentWriter, PackWriter};
use larder::repo::reader::TreeReader;
use larder::repo::session::{OutcomeLabel, Session};
use larder::repo::snapshots::Snapshot;
use larder::target::files::Overwrite;
use larder::testing::small::SmallRepo;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    SmallRepo::init(&*store, &credential()).unwrap();
    World { dir, store }
}

fn entry(kind: EntryKind) -> Entry {
    let time = FileTime {
        seconds: 1_700_000_000,
        nanos: 0,
    };
    Entry {
        mode: if kind == EntryKind::Dir { 0o755 } else { 0o644 },
        kind,
        uid: 0,
        gid: 0,
        mtime: time,
        ctime: time,
        ino: 1,
        attributes: Attributes::default(),
    }
}

fn file() -> EntryKind {
    EntryKind::File {
        size: 4,
        content: Content::Inline(b"evil".to_vec()),
    }
}

fn link(target: &Path) -> EntryKind {
    EntryKind::Symlink {
        target: target.as_os_str().as_encoded_bytes().to_vec(),
    }
}

fn stream() -> EntryKind {
    EntryKind::Stream {
        size: 4,
        content: Content::Inline(b"evil".to_vec()),
    }
}

struct Nodes<'a>(&'a Repo, &'a CurrentWriter);

impl NodeSink for Nodes<'_> {
    type Error = RepoError;
    fn put_node(&mut self, _: u8, node: Vec<u8>) -> Result<ChunkId, RepoError> {
        let id = self.0.keys.meta_id(&node).unwrap();
        let writer = self.1.get();
        if writer.claim(&id)? == Claim::New {
            let size = node.len() as u32;
            let mut frame = Vec::new();
            PackWriter::begin(&mut frame, Codec::Raw, size);
            frame.extend_from_slice(&node);
            writer.add(BlobType::Node, &id, Codec::Raw, size, &mut frame)?;
        }
        Ok(id)
    }
}

/// Publishes a snapshot of one root with these entries, by tree key, whatever they are.
fn publish(world: &World, kind: RootKind, entries: &BTreeMap<Vec<u8>, EntryKind>) -> Snapshot {
    let repo = world.open("writer");
    let mut session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    let writer = session.current_writer();
    let mut builder = TreeBuilder::new(repo.config.tree, repo.keys.split_key().unwrap().clone());
    for (key, kind) in entries {
        let entry = entry(kind.clone());
        let mut value = Vec::new();
        entry.encode(&mut value);
        builder
            .push(key, &value, entry.size(), &mut Nodes(&repo, &writer))
            .unwrap();
    }
    let built = builder.finish(&mut Nodes(&repo, &writer)).unwrap();
    let now = host::now();
    let source = backup::source_id(&repo, "host", "source").unwrap();
    let manifest = Manifest {
        source: Source {
            id: source,
            kind: kind as u64,
            host: "host".into(),
            user: "user".into(),
            label: "source".into(),
        },
        start: now,
        end: now,
        roots: vec![Root {
            path: if kind == RootKind::StreamSet {
                Vec::new()
            } else {
                b"/tree".to_vec()
            },
            kind,
            node: built.root,
            height: built.height,
            entries: built.entries,
            bytes: built.bytes,
            chunker: 0,
        }],
        tags: Vec::new(),
        parents: Vec::new(),
        users: BTreeMap::new(),
        groups: BTreeMap::new(),
        problems_total: 0,
        problems: Vec::new(),
        hints: Vec::new(),
        stats: Stats::default(),
        resume: None,
        tool: options().label,
        options_digest: None,
        copied_from: None,
    };
    let durable = session.make_durable().unwrap();
    let label = OutcomeLabel {
        kind: OutcomeKind::Commit,
        source: Some(source),
        flags: 0,
    };
    let id = session.publish(durable, &manifest, &label).unwrap().session;
    repo.snapshot(&id).unwrap()
}

fn restored(repo: &Repo, snapshot: &Snapshot, path: Option<&[u8]>, target: &Path) -> Result<restore::Report, OpError> {
    let options = restore::Options {
        overwrite: Overwrite::Always,
        ..restore_options(snapshot.clone(), path.map(<[u8]>::to_vec), target.to_owned())
    };
    restore::run(repo, &options, &Progress::default())
}

fn list(repo: &Repo, snapshot: &Snapshot) -> Result<(), OpError> {
    let reader = look::open_reader(repo, snapshot, Appetite::Little)?;
    look::list(snapshot, None, true, &mut TreeReader::new(&reader), &mut |_, _| Ok(()))
}

fn assert_damage<T>(result: Result<T, OpError>, when: &str) {
    match result {
        Ok(_) => panic!("{when} was accepted"),
        Err(error) => {
            assert_eq!(error.kind(), Kind::Damage, "{when}: {}", check::chain(&error));
            let text = check::chain(&error);
            assert!(text.contains("tree") || text.contains("entry"), "{when}: {text}");
        }
    }
}

/// A restore goes on behind what is refused, and says so.
fn assert_told(result: Result<restore::Report, OpError>, when: &str) {
    match result {
        Ok(report) => {
            assert!(report.damaged_total > 0, "{when} was accepted");
            let said = |text: &String| text.contains("tree") || text.contains("entry");
            assert!(report.damaged.iter().all(said), "{when}: {:?}", report.damaged);
        }
        Err(error) => assert_damage::<()>(Err(error), when),
    }
}

fn path_tree(entries: &[(&[&[u8]], EntryKind)]) -> BTreeMap<Vec<u8>, EntryKind> {
    entries
        .iter()
        .map(|(components, kind)| (key::from_components(components), kind.clone()))
        .collect()
}

#[test]
fn trees_that_break_a_rule_are_refused_and_nothing_is_written_outside() {
    let world = world();
    let outside = world.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), b"precious").unwrap();
    let before = tree(&outside);
    let root = (&[][..], EntryKind::Dir);
    let away = link(&outside);
    let cases: Vec<(&str, RootKind, BTreeMap<Vec<u8>, EntryKind>)> = vec![
        (
            "a file below a link",
            RootKind::Posix,
            path_tree(&[root.clone(), (&[b"d"], away.clone()), (&[b"d", b"victim"], file())]),
        ),
        (
            "a file below a file",
            RootKind::Posix,
            path_tree(&[root.clone(), (&[b"d"], file()), (&[b"d", b"x"], file())]),
        ),
        (
            "a file without a parent",
            RootKind::Posix,
            path_tree(&[root.clone(), (&[b"d", b"x"], file())]),
        ),
        (
            "a deep file whose grandparent is a link",
            RootKind::Posix,
            path_tree(&[
                root.clone(),
                (&[b"d"], away.clone()),
                (&[b"d", b"e"], EntryKind::Dir),
                (&[b"d", b"e", b"victim"], file()),
            ]),
        ),
        (
            "something below a root that is a link",
            RootKind::Posix,
            path_tree(&[(&[], away.clone()), (&[b"victim"], file())]),
        ),
        ("no root", RootKind::Posix, path_tree(&[(&[b"victim"], file())])),
        (
            "a name that leads out",
            RootKind::Posix,
            path_tree(&[root.clone(), (&[b"..", b"outside", b"victim"], file())]),
        ),
        (
            "a name with a slash",
            RootKind::Posix,
            path_tree(&[root.clone(), (&[b"../outside/victim"], file())]),
        ),
        (
            "a stream in a path tree",
            RootKind::Posix,
            path_tree(&[root.clone(), (&[b"x"], stream())]),
        ),
        (
            "a link in a stream set",
            RootKind::StreamSet,
            BTreeMap::from([(b"name".to_vec(), away.clone())]),
        ),
        (
            "a directory in an object map",
            RootKind::ObjectMap,
            BTreeMap::from([(b"name".to_vec(), EntryKind::Dir)]),
        ),
    ];
    for (number, (what, kind, entries)) in cases.into_iter().enumerate() {
        let snapshot = publish(&world, kind, &entries);
        let repo = world.open("reader");
        repo.sync_history().unwrap();
        for (how, path) in [("all", None), ("one path", Some(&b"/tree"[..]))] {
            if kind != RootKind::Posix && path.is_some() {
                continue;
            }
            let target = world.dir.path().join(format!("target{number}{how}"));
            let result = restored(&repo, &snapshot, path, &target);
            assert_told(result, &format!("restore of {how}: {what}"));
            assert_eq!(tree(&outside), before, "{what}");
        }
        assert_damage(list(&repo, &snapshot), &format!("list of {what}"));
        let mut out = Vec::new();
        let archived = dump::tar(&repo, &snapshot, None, 1, &mut out, &Progress::default());
        assert_damage(archived, &format!("archive of {what}"));
        let report = check::run(
            &repo,
            &check::Options {
                snapshot: Some(snapshot.clone()),
                threads: 1,
                ..check::Options::default()
            },
            &Progress::default(),
        )
        .unwrap();
        assert!(!report.findings.is_empty(), "check is content with {what}");
        assert_eq!(tree(&outside), before, "{what}");
    }
}

/// Names of streams are raw bytes, so these may be in a tree. They lead nowhere all the same.
#[test]
fn names_of_streams_do_not_lead_out_of_the_target() {
    let world = world();
    let outside = world.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let names: [&[u8]; 4] = [b"../outside/x", b"a/../../outside/x", b"/outside/x", b"ordinary"];
    let entries = names.iter().map(|name| (name.to_vec(), stream())).collect();
    let snapshot = publish(&world, RootKind::StreamSet, &entries);
    let repo = world.open("reader");
    repo.sync_history().unwrap();
    let target = world.dir.path().join("target");
    let report = restored(&repo, &snapshot, None, &target).unwrap();
    assert_eq!(report.failed_total, 2, "{:?}", report.failed);
    assert!(tree(&outside).is_empty());
    assert_eq!(std::fs::read(target.join("ordinary")).unwrap(), b"evil");
    assert_eq!(std::fs::read(target.join("outside/x")).unwrap(), b"evil");
}

/// What the rules allow comes back: also below a single directory, and only what is directly in one.
#[test]
fn trees_that_break_no_rule_are_shown_and_restored() {
    let world = world();
    let entries = path_tree(&[
        (&[], EntryKind::Dir),
        (&[b"a"], EntryKind::Dir),
        (&[b"a", b"b"], EntryKind::Dir),
        (&[b"a", b"b", b"deep"], file()),
        (&[b"a", b"x"], file()),
        (&[b"top"], file()),
    ]);
    let snapshot = publish(&world, RootKind::Posix, &entries);
    let repo = world.open("reader");
    repo.sync_history().unwrap();
    let reader = look::open_reader(&repo, &snapshot, Appetite::Little).unwrap();
    let shown = |path: Option<&[u8]>, recursive: bool| {
        let mut paths = Vec::new();
        let mut nodes = TreeReader::new(&reader);
        look::list(&snapshot, path, recursive, &mut nodes, &mut |path, _| {
            paths.push(String::from_utf8(path.to_vec()).unwrap());
            Ok(())
        })
        .unwrap();
        paths.sort();
        paths
    };
    assert_eq!(shown(None, false), ["/tree", "/tree/a", "/tree/top"]);
    assert_eq!(shown(Some(b"/tree"), false), ["/tree/a", "/tree/top"]);
    assert_eq!(shown(Some(b"/tree/a"), false), ["/tree/a/b", "/tree/a/x"]);
    assert_eq!(
        shown(Some(b"/tree/a"), true),
        ["/tree/a/b", "/tree/a/b/deep", "/tree/a/x"]
    );
    assert_eq!(shown(Some(b"/tree/a/x"), true), ["/tree/a/x"]);
    assert_eq!(shown(None, true).len(), 6);
    let target = world.dir.path().join("target");
    restored(&repo, &snapshot, Some(b"/tree/a"), &target).unwrap();
    let names: Vec<_> = tree(&target).into_keys().collect();
    assert_eq!(names, ["b", "b/deep", "x"].map(std::path::PathBuf::from));
    let all = world.dir.path().join("all");
    restored(&repo, &snapshot, None, &all).unwrap();
    assert_eq!(tree(&all.join("tree")).len(), 5);
}
