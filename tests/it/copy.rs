//! Copies of snapshots in a repository with other keys: what they restore is the same, and unchanged entries are not read again.

use crate::fault::{admin, scratch, try_open, writer};
use crate::story::{noise, options as backup_options, restore_options, tree};
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Prefix, Store, StoreKey};
use larder::ops::copy::{self, Options, Report};
use larder::ops::{OpError, Progress, backup, check, restore};
use larder::pure::base::{Explain, Kind};
use larder::pure::chunk::Profile;
use larder::pure::id::SessionId;
use larder::repo::Repo;
use larder::repo::open::Credential;
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::fault_store::{Fault, FaultStore};
use larder::testing::small::SmallRepo;
use std::cell::Cell;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OPTIONS: Options = Options {
    again: false,
    uploads: 1,
    zstd_level: None,
    dry_run: false,
};

/// Two repositories that have nothing in common, the second with larger chunks and another key.
struct Two {
    dir: tempfile::TempDir,
    first: MemoryStore,
    second: MemoryStore,
    caches: Cell<u32>,
}

impl Two {
    fn new() -> Two {
        let dir = scratch();
        let files = dir.path().join("files");
        std::fs::create_dir_all(files.join("sub")).unwrap();
        std::fs::write(files.join("large"), noise(1, 300_000)).unwrap();
        std::fs::write(files.join("sub/small"), b"a few bytes").unwrap();
        std::fs::write(files.join("empty"), b"").unwrap();
        let sparse = std::fs::File::create(files.join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(&noise(2, 5_000), 400_000).unwrap();
        symlink("sub/small", files.join("link")).unwrap();
        std::fs::hard_link(files.join("sub/small"), files.join("second name")).unwrap();
        std::fs::set_permissions(files.join("sub/small"), std::fs::Permissions::from_mode(0o640)).unwrap();
        let (first, second) = (MemoryStore::new(), MemoryStore::new());
        SmallRepo::init(&first, &admin()).unwrap();
        let mut other = SmallRepo::init(&second, &writer()).unwrap();
        other
            .change_config(&second, |config| {
                config.chunkers = vec![Profile::new(2 << 10, 4 << 10, 16 << 10, 0xfff << 51, 0xff << 55).unwrap()];
            })
            .unwrap();
        Two {
            dir,
            first,
            second,
            caches: Cell::new(0),
        }
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    fn fresh(&self) -> PathBuf {
        self.caches.set(self.caches.get() + 1);
        self.dir.path().join(format!("cache{}", self.caches.get()))
    }

    fn open(&self, store: Arc<dyn Store>, credential: &Credential) -> Repo {
        let repo = try_open(store, &self.fresh(), credential).unwrap();
        repo.sync_history().unwrap();
        repo
    }

    fn night(&self) -> SessionId {
        let repo = self.open(Arc::new(self.first.clone()), &admin());
        let input = backup::Input::Paths {
            roots: vec![self.files()],
            walk: WalkOptions::default(),
            excludes: ExcludesBuilder::default(),
        };
        let options = backup::Options {
            threads: 1,
            tags: vec!["night".into()],
            ..backup_options()
        };
        backup::run(&repo, input, &options, &Progress::default())
            .unwrap()
            .snapshot
            .unwrap()
    }

    fn copy_to(&self, second: Arc<dyn Store>, options: &Options) -> Result<Report, OpError> {
        let source = self.open(Arc::new(self.first.clone()), &admin());
        let target = try_open(second, &self.fresh(), &writer())?;
        target.sync_history()?;
        let snapshots = source.snapshots()?;
        copy::run(&source, &target, snapshots, options, &Progress::default())
    }

    fn copy(&self) -> Report {
        self.copy_to(Arc::new(self.second.clone()), &OPTIONS)
            .unwrap_or_else(|error| panic!("{}", check::chain(&error)))
    }

    fn restored(&self, store: &MemoryStore, credential: &Credential, id: &SessionId) -> PathBuf {
        let repo = self.open(Arc::new(store.clone()), credential);
        let snapshot = repo.snapshot(id).unwrap();
        let root = snapshot.manifest.roots[0].path.clone();
        let target = self.fresh().join("restored");
        let report = restore::run(
            &repo,
            &restore_options(snapshot, Some(root), target.clone()),
            &Progress::default(),
        )
        .unwrap();
        assert_eq!(
            (report.damaged_total, report.failed_total),
            (0, 0),
            "{:?}",
            report.damaged
        );
        target
    }
}

fn names(store: &MemoryStore, under: &str) -> Vec<StoreKey> {
    let mut names = Vec::new();
    store
        .list(&Prefix::new(under).unwrap(), &mut |row| names.push(row.key))
        .unwrap();
    names
}

/// Contents, permissions, times, holes and hard links, by what the kernel says.
fn assert_same_files(one: &Path, other: &Path) {
    use std::os::unix::fs::MetadataExt;
    assert!(tree(one) == tree(other));
    for name in ["large", "sub", "sub/small", "empty", "sparse", "link", "second name"] {
        let [a, b] = [one, other].map(|dir| std::fs::symlink_metadata(dir.join(name)).unwrap());
        assert_eq!(
            (a.mode(), a.uid(), a.size(), a.mtime(), a.mtime_nsec(), a.nlink()),
            (b.mode(), b.uid(), b.size(), b.mtime(), b.mtime_nsec(), b.nlink()),
            "{name}"
        );
        assert!(b.blocks() <= a.blocks() + 64, "{name}: holes are kept");
    }
}

#[test]
fn copies_restore_the_same_and_unchanged_entries_are_not_read() {
    let two = Two::new();
    let first = two.night();
    std::fs::write(two.files().join("sub/new"), noise(3, 20_000)).unwrap();
    let second = two.night();
    let report = two.copy();
    assert_eq!(
        (report.copies.len(), report.there, report.failed.len()),
        (2, 0, 0),
        "{report:?}"
    );
    let [one, other] = [0, 1].map(|number| report.copies[number].clone());
    assert_eq!((one.of, other.of), (first, second));
    assert_eq!(one.unchanged, 0);
    assert!(one.bytes_read >= 305_000, "{one:?}");
    // What is new, and the directories above it.
    assert_eq!(other.bytes_read, 20_000, "{other:?}");
    assert!(other.unchanged > other.copied, "{other:?}");
    for copied in [&one, &other] {
        let ours = two.restored(&two.first, &admin(), &copied.of);
        let theirs = two.restored(&two.second, &writer(), &copied.copy.unwrap());
        assert_same_files(&ours, &theirs);
    }
    // Its own keys, and everything in it is sound.
    let source = two.open(Arc::new(two.first.clone()), &admin());
    let target = two.open(Arc::new(two.second.clone()), &writer());
    assert!(try_open(Arc::new(two.second.clone()), &two.fresh(), &admin()).is_err());
    let everything = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    let checked = check::run(&target, &everything, &Progress::default()).unwrap();
    assert!(checked.is_sound(), "{:?}", checked.findings);
    // What is known of a snapshot goes with it.
    let [of, copy] = [
        source.snapshot(&second).unwrap(),
        target.snapshot(&other.copy.unwrap()).unwrap(),
    ];
    assert_eq!(
        (copy.manifest.start, copy.manifest.end),
        (of.manifest.start, of.manifest.end)
    );
    assert_eq!(
        (&copy.manifest.source.host, &copy.manifest.tags),
        (&of.manifest.source.host, &of.manifest.tags)
    );
    assert_eq!(copy.manifest.copied_from, Some((source.config.repo, second)));
    assert_ne!(copy.manifest.roots[0].node, of.manifest.roots[0].node);
    // Nothing is copied twice, and a copy that was forgotten comes back only if it is asked for.
    assert_eq!((two.copy().copies.len(), two.copy().there), (0, 2));
    target.drop_snapshot(&one.copy.unwrap(), "").unwrap();
    assert_eq!(two.copy().copies.len(), 0);
    let again = two
        .copy_to(Arc::new(two.second.clone()), &Options { again: true, ..OPTIONS })
        .unwrap();
    assert_eq!(again.copies.len(), 1);
}

#[test]
fn a_copy_that_dies_anywhere_publishes_nothing_half_and_the_next_run_completes_it() {
    let two = Two::new();
    let night = two.night();
    let expected = two.restored(&two.first, &admin(), &night);
    let counted = Arc::new(FaultStore::new(two.second.fork(), None));
    two.copy_to(counted.clone(), &OPTIONS).unwrap();
    // Uploads go on beside the rest, so the last calls do not always come: every third of them is enough.
    for call in (0..counted.calls()).step_by(3) {
        let store = two.second.fork();
        let fault = Fault {
            call,
            after_effect: true,
            lasting: true,
        };
        let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
        let result = two.copy_to(faulty.clone(), &OPTIONS);
        assert!(
            result.is_err() || !faulty.has_failed() || !names(&store, "snap/").is_empty(),
            "call {call}"
        );
        let after = Two {
            dir: scratch(),
            first: two.first.clone(),
            second: store,
            caches: Cell::new(0),
        };
        let report = after.copy();
        assert_eq!(report.copies.len() as u64 + report.there, 1, "call {call}: {report:?}");
        let repo = after.open(Arc::new(after.second.clone()), &writer());
        let snapshots = repo.snapshots().unwrap();
        assert_eq!(snapshots.len(), 1, "call {call}");
        let restored = after.restored(&after.second, &writer(), &snapshots[0].id);
        assert_same_files(&expected, &restored);
    }
}

#[test]
fn a_damaged_snapshot_is_left_out_and_named() {
    let two = Two::new();
    two.night();
    for pack in names(&two.first, "data/") {
        two.first.overwrite(&pack, bytes::Bytes::from_static(b"rot"));
    }
    let report = two.copy();
    assert_eq!((report.copies.len(), report.failed.len()), (0, 1), "{report:?}");
    let target = two.open(Arc::new(two.second.clone()), &writer());
    assert!(target.snapshots().unwrap().is_empty());
}

#[test]
fn a_repository_is_not_copied_into_itself() {
    let two = Two::new();
    two.night();
    let repo = two.open(Arc::new(two.first.clone()), &admin());
    let error = copy::run(&repo, &repo, repo.snapshots().unwrap(), &OPTIONS, &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
}
