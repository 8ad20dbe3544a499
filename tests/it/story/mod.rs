//! Journeys of a user through the library: back up, change, back up again, look, restore, check.

mod first_night;
mod restoring;

use larder::edge::store::{Store, local::LocalStore, memory::MemoryStore};
use larder::ops::{Progress, backup, check, restore};
use larder::pure::base::memory::IndexShare;
use larder::pure::crypto::Secret;
use larder::pure::id::SessionId;
use larder::repo::Repo;
use larder::repo::open::{self, Credential, LocalOptions};
use larder::repo::snapshots::{Filter, Snapshot};
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::target::files::{MetaPolicy, Overwrite};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A repository, a cache, a source tree and room for restores.
pub struct World {
    pub dir: tempfile::TempDir,
    pub store: Arc<dyn Store>,
}

pub fn credential() -> Credential {
    Credential::KeyFile(Secret::new([7; 32]))
}

impl World {
    /// A repository in memory.
    pub fn in_memory() -> World {
        World::with(|_| Arc::new(MemoryStore::new()))
    }

    /// A repository in a directory.
    pub fn local() -> World {
        World::with(|dir| Arc::new(LocalStore::new(dir.join("repo"), true)))
    }

    fn with(make: impl FnOnce(&Path) -> Arc<dyn Store>) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        let store = make(dir.path());
        open::init(&*store, &credential(), larder::pure::crypto::kdf::Cost::DEFAULT).unwrap();
        World { dir, store }
    }

    pub fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// Opens with the cache named so; a new name is a new machine.
    pub fn open(&self, machine: &str) -> Repo {
        self.open_on(self.store.clone(), machine)
    }

    /// The same on another store.
    pub fn open_on(&self, store: Arc<dyn Store>, machine: &str) -> Repo {
        let options = LocalOptions {
            cache_dir: self.dir.path().join(machine),
            index: IndexShare::with_filter(1 << 20),
            node_cache_bytes_max: 64 << 20,
        };
        open::connect(store, options).unwrap().unlock(&credential()).unwrap()
    }

    /// Everything in the source.
    pub fn input(&self) -> backup::Input {
        backup::Input::Paths {
            roots: vec![self.source()],
            walk: WalkOptions::default(),
            excludes: ExcludesBuilder::default(),
        }
    }

    pub fn backup(&self, machine: &str) -> backup::Report {
        self.backup_with(machine, &options())
    }

    pub fn backup_with(&self, machine: &str, options: &backup::Options) -> backup::Report {
        backup::run(&self.open(machine), self.input(), options, &Progress::default()).unwrap()
    }

    pub fn restore(&self, machine: &str, snapshot: &SessionId, to: &str) -> (restore::Report, PathBuf) {
        let repo = self.open(machine);
        repo.sync_history().unwrap();
        let snapshot = repo
            .resolve(&snapshot.to_string(), &Filter::default(), &|_| None)
            .unwrap();
        let target = self.dir.path().join(to);
        let report = restore::run(
            &repo,
            &restore::Options {
                verify: true,
                fetch: restore::fetch_share(true, 2),
                ..restore_options(
                    snapshot,
                    Some(self.source().as_os_str().as_encoded_bytes().to_vec()),
                    target.clone(),
                )
            },
            &Progress::default(),
        )
        .unwrap();
        (report, target)
    }

    /// With all data.
    pub fn check(&self, machine: &str) -> check::Report {
        self.check_reading(machine, Some(check::Subset::All))
    }

    pub fn check_without_data(&self, machine: &str) -> check::Report {
        self.check_reading(machine, None)
    }

    fn check_reading(&self, machine: &str, read_data: Option<check::Subset>) -> check::Report {
        let repo = self.open(machine);
        let options = check::Options {
            read_data,
            threads: 2,
            ..check::Options::default()
        };
        check::run(&repo, &options, &Progress::default()).unwrap()
    }
}

/// Everything below `path` (all of it, where there is none) into `target`, as a person would have it.
pub fn restore_options(snapshot: Snapshot, path: Option<Vec<u8>>, target: PathBuf) -> restore::Options {
    restore::Options {
        snapshot,
        path,
        target,
        selection: restore::Selection::default(),
        delete: false,
        overwrite: Overwrite::IfChanged,
        verify: false,
        dry_run: false,
        owners: restore::OwnerMap::default(),
        fetch: restore::fetch_share(true, 1),
        policy: MetaPolicy::sensible(),
    }
}

pub fn options() -> backup::Options {
    backup::Options {
        host: "host".into(),
        label: "source".into(),
        tags: vec![],
        parent: backup::ParentChoice::Newest,
        threads: 2,
        uploads: 1,
        zstd_level: None,
        deltas: true,
        checkpoints: None,
        dry_run: false,
    }
}

/// Content of a tree: path below it and bytes (or link target) of everything.
pub fn tree(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let below = path.strip_prefix(dir).unwrap().to_path_buf();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                found.insert(below, b"<dir>".to_vec());
                open.push(path);
            } else if meta.is_symlink() {
                found.insert(
                    below,
                    std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                );
            } else {
                found.insert(below, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
