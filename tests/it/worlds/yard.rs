//! A small repository with a past, machines that know it, and a source of a few small folders, made once and copied for every world or
//! crash: chunks of some hundred bytes, keys without stretching, everything in memory.

use crate::fault::{admin, copy_dir, scratch, writer};
use crate::story::{noise, options, restore_options, tree};
use larder::edge::host;
use larder::edge::store::{Store, memory::MemoryStore};
use larder::ops::holders::{self, Duty};
use larder::ops::{OpError, Progress, backup, check, forget, prune, restore};
use larder::pure::base::memory::IndexShare;
use larder::pure::crypto::Secret;
use larder::pure::id::SessionId;
use larder::pure::plan::prune::RepackLimits;
use larder::repo::Repo;
use larder::repo::open::{self, Credential, LocalOptions};
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::small::SmallRepo;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Folders, each of which a backup may take or leave.
pub const FOLDERS: usize = 5;
pub const MACHINES: usize = 4;
/// One more, whose key can only put: it takes part where a test asks for it.
pub const PUT_ONLY: usize = 4;

pub struct Yard {
    dir: tempfile::TempDir,
    pub store: MemoryStore,
    /// What each folder held in the first night, and what it holds now.
    before: Vec<Tree>,
    now: Vec<Tree>,
    pub first: BTreeSet<SessionId>,
    made: AtomicU64,
}

/// Who works on a machine.
pub fn key_of(machine: usize) -> Credential {
    match machine {
        0 => admin(),
        1 => writer(),
        _ => Credential::KeyFile(Secret::new([20 + machine as u8; 32])),
    }
}

/// Whether a machine's key may forget and prune.
pub fn is_admin(machine: usize) -> bool {
    machine == 0 || machine == 3
}

impl Yard {
    pub fn new() -> Yard {
        let dir = scratch();
        let store = MemoryStore::new();
        store.set_time(host::now());
        let mut small = SmallRepo::init(&store, &admin()).unwrap();
        small.add_writer(&store, "other", &writer()).unwrap();
        small
            .change_config(&store, |config| {
                config.data_pack_bytes = 1 << 20;
                config.meta_pack_bytes = 1 << 20;
                config.lanes = 1;
            })
            .unwrap();
        let mut yard = Yard {
            dir,
            store,
            before: Vec::new(),
            now: Vec::new(),
            first: BTreeSet::new(),
            made: AtomicU64::new(0),
        };
        for (machine, duty) in [(2, Duty::Backup), (3, Duty::Admin), (PUT_ONLY, Duty::PutOnly)] {
            let repo = yard.open(&yard.shared(), &yard.cache(0), 0).unwrap();
            holders::add(&repo, &format!("machine{machine}"), duty, &key_of(machine)).unwrap();
        }
        yard.write_folders(0);
        yard.before = (0..FOLDERS).map(|folder| tree(&yard.folder(folder))).collect();
        for (machine, folders) in [(0, vec![0, 1, 2]), (1, vec![1, 3])] {
            let report = yard
                .back_up(yard.shared(), &yard.cache(machine), machine, &folders)
                .unwrap();
            yard.first.insert(report.snapshot.unwrap());
        }
        yard.write_folders(1);
        yard.now = (0..FOLDERS).map(|folder| tree(&yard.folder(folder))).collect();
        // Old enough that nobody waits for their times to settle.
        std::thread::sleep(Duration::from_millis(60));
        for machine in 0..MACHINES {
            let repo = yard.open(&yard.shared(), &yard.cache(machine), machine).unwrap();
            repo.sync_history().unwrap();
            repo.sync_index().unwrap();
        }
        yard
    }

    /// Some files are in several folders; some change a little from the first night to now.
    fn write_folders(&self, night: u64) {
        for folder in 0..FOLDERS as u64 {
            let path = self.folder(folder as usize);
            std::fs::create_dir_all(path.join("sub")).unwrap();
            let mut changing = noise(100 + folder, 1_500);
            if night > 0 {
                for at in (200..1_500).step_by(400) {
                    changing[at] ^= 1;
                }
            }
            std::fs::write(path.join("changing"), changing).unwrap();
            std::fs::write(path.join("shared"), noise(1 + folder / 2, 1_200)).unwrap();
            std::fs::write(path.join("sub/own"), noise(200 + folder + 50 * night, 700)).unwrap();
            std::fs::write(path.join("sub/small"), format!("folder {folder}, night {night}")).unwrap();
        }
    }

    pub fn shared(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    fn folder(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("source/folder{number}"))
    }

    /// The cache of a machine as it was left.
    pub fn cache(&self, machine: usize) -> PathBuf {
        self.dir.path().join(format!("cache{machine}"))
    }

    /// A directory that is not there yet.
    pub fn fresh(&self) -> PathBuf {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        self.dir.path().join(format!("fresh{number}"))
    }

    pub fn copy_of(&self, cache: &Path) -> PathBuf {
        let copy = self.fresh();
        copy_dir(cache, &copy);
        copy
    }

    pub fn open(&self, store: &Arc<dyn Store>, cache: &Path, machine: usize) -> Result<Repo, OpError> {
        let options = LocalOptions {
            cache_dir: cache.to_owned(),
            index: IndexShare::with_filter(1 << 12),
            node_cache_bytes_max: 1 << 20,
        };
        Ok(open::connect(store.clone(), options)?.unlock(&key_of(machine))?)
    }

    pub fn back_up(
        &self,
        store: Arc<dyn Store>,
        cache: &Path,
        machine: usize,
        folders: &[usize],
    ) -> Result<backup::Report, OpError> {
        self.back_up_with(store, cache, machine, folders, None)
    }

    pub fn back_up_with(
        &self,
        store: Arc<dyn Store>,
        cache: &Path,
        machine: usize,
        folders: &[usize],
        checkpoints: Option<backup::Interval>,
    ) -> Result<backup::Report, OpError> {
        let repo = self.open(&store, cache, machine)?;
        let input = backup::Input::Paths {
            roots: folders.iter().map(|folder| self.folder(*folder)).collect(),
            walk: WalkOptions::default(),
            excludes: ExcludesBuilder::default(),
        };
        let options = backup::Options {
            host: format!("machine{machine}"),
            threads: 1,
            checkpoints,
            ..options()
        };
        backup::run(&repo, input, &options, &Progress::default())
    }

    pub fn prune(
        &self,
        store: Arc<dyn Store>,
        cache: &Path,
        machine: usize,
        grace: Duration,
        rewrites: bool,
    ) -> Result<prune::Report, OpError> {
        let options = prune::Options {
            grace,
            repack: rewrites.then_some(RepackLimits {
                unused_share: 0.05,
                copied_bytes_max: u64::MAX,
            }),
            ..crate::prune::prune_options()
        };
        self.prune_with(store, cache, machine, &options)
    }

    /// Everything that is sealed with secrets of before the last rotation is rewritten.
    pub fn rekey(&self, store: Arc<dyn Store>, cache: &Path, machine: usize) -> Result<prune::Report, OpError> {
        let options = prune::Options {
            repack: Some(RepackLimits {
                unused_share: 1.0,
                copied_bytes_max: u64::MAX,
            }),
            rekey: true,
            ..crate::prune::prune_options()
        };
        self.prune_with(store, cache, machine, &options)
    }

    fn prune_with(
        &self,
        store: Arc<dyn Store>,
        cache: &Path,
        machine: usize,
        options: &prune::Options,
    ) -> Result<prune::Report, OpError> {
        let repo = self.open(&store, cache, machine)?;
        prune::run(&repo, options, &Progress::default())
    }

    pub fn forget(
        &self,
        store: Arc<dyn Store>,
        cache: &Path,
        machine: usize,
        snapshots: Vec<SessionId>,
    ) -> Result<forget::Report, OpError> {
        let repo = self.open(&store, cache, machine)?;
        let history = repo.sync_history()?;
        let options = forget::Options {
            choice: forget::Choice::Named {
                snapshots,
                allow_last: true,
            },
            filter: Default::default(),
            group_by: forget::GroupBy::SOURCE,
            removal_percent_max: 100,
            now: host::now(),
            zone: jiff::tz::TimeZone::UTC,
        };
        let plan = forget::plan(&repo, history, &options)?;
        forget::carry_out(&repo, plan, &Progress::default())
    }

    pub fn check(&self, store: Arc<dyn Store>, cache: &Path, machine: usize) -> Result<check::Report, OpError> {
        let repo = self.open(&store, cache, machine)?;
        let everything = check::Options {
            read_data: Some(check::Subset::All),
            threads: 1,
            ..Default::default()
        };
        check::run(&repo, &everything, &Progress::default())
    }

    /// On a machine that has nothing but a key, every snapshot restores to what was backed up. Returns which there are.
    pub fn restore_all(&self, store: &MemoryStore, when: &dyn Fn() -> String) -> BTreeSet<SessionId> {
        let cache = self.fresh();
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let said = |error: &OpError| format!("{}: {}", when(), check::chain(error));
        let repo = self
            .open(&shared, &cache, 0)
            .unwrap_or_else(|error| panic!("{}", said(&error)));
        let history = repo
            .sync_history()
            .unwrap_or_else(|error| panic!("{}", said(&error.into())));
        assert!(history.broken.is_empty(), "{}: {:?}", when(), history.broken);
        let snapshots = repo.snapshots().unwrap();
        let found = snapshots.iter().map(|snapshot| snapshot.id).collect();
        for snapshot in snapshots {
            let id = snapshot.id;
            let is_partial = snapshot.is_partial();
            let roots: Vec<Vec<u8>> = snapshot.manifest.roots.iter().map(|root| root.path.clone()).collect();
            let target = cache.join("restored");
            let report = restore::run(
                &repo,
                &restore_options(snapshot, None, target.clone()),
                &Progress::default(),
            )
            .unwrap_or_else(|error| panic!("snapshot {id}, {}", said(&error)));
            assert_eq!(
                (report.damaged_total, report.failed_total),
                (0, 0),
                "snapshot {id}, {}: {:?}",
                when(),
                report.damaged
            );
            for folder in 0..FOLDERS {
                let path = self.folder(folder);
                if !roots.iter().any(|root| *root == path.as_os_str().as_encoded_bytes()) {
                    continue;
                }
                let below = target.join(path.strip_prefix("/").unwrap());
                let found = if below.exists() { tree(&below) } else { Tree::new() };
                let is_of = |expected: &Tree| match is_partial {
                    true => found.iter().all(|(path, bytes)| expected.get(path) == Some(bytes)),
                    false => found == *expected,
                };
                // One that was brought back has an id of its own.
                let is_old = is_of(&self.before[folder]);
                let is_right = is_old || !self.first.contains(&id) && is_of(&self.now[folder]);
                assert!(
                    is_right,
                    "snapshot {id}, folder {folder} is not what was backed up, {}",
                    when()
                );
            }
            std::fs::remove_dir_all(&target).unwrap();
        }
        drop(repo);
        std::fs::remove_dir_all(&cache).unwrap();
        found
    }
}
