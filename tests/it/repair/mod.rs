//! Mending what is damaged (format-spec chapter 16.8): nothing that could be restored before is lost by it, wherever it stops.

mod index;
mod packs;
mod parity;
mod snapshots;

use crate::fault::{admin, copy_dir, scratch, try_open, writer};
use crate::story::{noise, options, restore_options, tree};
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Created, Part, Prefix, Store, StoreKey};
use larder::ops::{OpError, Progress, backup, check, restore};
use larder::pure::chunk::Profile;
use larder::pure::id::SessionId;
use larder::repo::Repo;
use larder::repo::open::Credential;
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::small::SmallRepo;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Tree = BTreeMap<PathBuf, Vec<u8>>;

fn back_up(store: Arc<dyn Store>, cache: &Path, credential: &Credential, source: &Path) -> backup::Report {
    try_back_up(store, cache, credential, source).unwrap()
}

fn try_back_up(
    store: Arc<dyn Store>,
    cache: &Path,
    credential: &Credential,
    source: &Path,
) -> Result<backup::Report, OpError> {
    let repo = try_open(store, cache, credential)?;
    let input = backup::Input::Paths {
        roots: vec![source.to_owned()],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let options = backup::Options {
        threads: 1,
        label: source.file_name().unwrap().to_string_lossy().into_owned(),
        ..options()
    };
    backup::run(&repo, input, &options, &Progress::default())
}

fn keys(store: &dyn Store, under: &str) -> Vec<StoreKey> {
    let mut keys = Vec::new();
    store
        .list(&Prefix::new(under).unwrap(), &mut |row| keys.push(row.key))
        .unwrap();
    keys
}

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Gone,
    Shorter,
    /// One bit in the middle is another.
    Rotten,
    /// So is one near the end.
    RottenEnd,
}

fn harm(store: &dyn Store, key: &StoreKey, harm: Harm) {
    let body = store.read(key, Part::Whole).unwrap();
    store.remove(std::slice::from_ref(key)).unwrap();
    let flipped = |at: usize| {
        let mut bytes = body.to_vec();
        bytes[at] ^= 1;
        bytes.into()
    };
    let rest = match harm {
        Harm::Gone => return,
        Harm::Shorter => body.slice(..body.len() - 1),
        Harm::Rotten => flipped(body.len() / 2),
        Harm::RottenEnd => flipped(body.len() - 100),
    };
    assert_eq!(store.create(key, rest).unwrap(), Created::New);
}

/// A repository with a few nights, and what each snapshot has to give back.
struct Ward {
    dir: tempfile::TempDir,
    store: MemoryStore,
    caches: Cell<u32>,
    nights: Vec<(SessionId, Tree)>,
}

impl Ward {
    /// One night.
    fn with_one_night() -> Ward {
        let mut ward = Ward::empty();
        ward.write("large", &noise(1, 60_000));
        for number in 0..40 {
            ward.write(&format!("small {number}"), &noise(100 + number, 300));
        }
        ward.night();
        ward
    }

    /// Three nights: something is in all of them, something of each is in no other, and something becomes deltas.
    fn with_nights() -> Ward {
        let mut ward = Ward::empty();
        ward.write("stays", &noise(1, 40_000));
        let mut changing = noise(50, 30_000);
        for night in 0..3u64 {
            for at in (1_500..30_000).step_by(4_500) {
                changing[at] ^= 1 + night as u8;
            }
            ward.write("changes", &changing);
            ward.write("of the night", &noise(10 + night, 20_000));
            ward.night();
        }
        ward
    }

    fn empty() -> Ward {
        let dir = scratch();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        let store = MemoryStore::new();
        let mut small = SmallRepo::init(&store, &admin()).unwrap();
        small.add_writer(&store, "other", &writer()).unwrap();
        small
            .change_config(&store, |config| {
                let profile = Profile::new(2 << 10, 4 << 10, 16 << 10, 0xfff << 51, 0x3ff << 53);
                config.chunkers = vec![profile.unwrap()];
                config.data_pack_bytes = 1 << 20;
                config.meta_pack_bytes = 1 << 20;
                config.lanes = 1;
            })
            .unwrap();
        Ward {
            dir,
            store,
            caches: Cell::new(0),
            nights: Vec::new(),
        }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn fresh(&self) -> PathBuf {
        self.caches.set(self.caches.get() + 1);
        self.dir.path().join(format!("cache{}", self.caches.get()))
    }

    /// A copy of the store and of the machine's cache.
    fn fork(&self) -> (MemoryStore, PathBuf) {
        let cache = self.fresh();
        copy_dir(&self.cache(), &cache);
        (self.store.fork(), cache)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.source().join(name), bytes).unwrap();
    }

    fn night(&mut self) -> SessionId {
        let report = back_up(Arc::new(self.store.clone()), &self.cache(), &admin(), &self.source());
        let id = report.snapshot.unwrap();
        self.nights.push((id, tree(&self.source())));
        id
    }

    fn open(&self, store: &MemoryStore, cache: &Path) -> Repo {
        try_open(Arc::new(store.clone()), cache, &admin()).unwrap()
    }

    /// On a machine that has nothing but the key: how many of the nights' snapshots come back whole, oldest first. What does not is
    /// said, and no file has another content than it had.
    fn whole(&self, store: &MemoryStore, when: &str) -> Vec<bool> {
        let cache = self.fresh();
        let repo = self.open(store, &cache);
        repo.sync_history().unwrap();
        let mut whole = Vec::new();
        for (id, expected) in &self.nights {
            let snapshot = repo.snapshot(id).unwrap();
            let root = snapshot.manifest.roots[0].path.clone();
            let target = cache.join("restored");
            let options = restore_options(snapshot, Some(root), target.clone());
            let report = restore::run(&repo, &options, &Progress::default()).unwrap();
            assert_eq!(report.failed_total, 0, "{when}: {:?}", report.failed);
            let found = tree(&target);
            assert_eq!(
                found == *expected,
                report.damaged_total == 0,
                "{when}: {id} {:?}",
                report.damaged
            );
            for (path, content) in &found {
                assert!(expected[path] == *content, "{when}: {id} {}", path.display());
            }
            whole.push(report.damaged_total == 0);
            std::fs::remove_dir_all(&target).unwrap();
        }
        drop(repo);
        std::fs::remove_dir_all(&cache).unwrap();
        whole
    }

    /// Every file of every night that comes back as it was, on a machine that has nothing but the key.
    fn restorable(&self, store: &MemoryStore, when: &str) -> BTreeSet<(SessionId, PathBuf)> {
        let cache = self.fresh();
        let repo = self.open(store, &cache);
        repo.sync_history().unwrap();
        let mut restorable = BTreeSet::new();
        for (id, expected) in &self.nights {
            let snapshot = repo.snapshot(id).unwrap();
            let root = snapshot.manifest.roots[0].path.clone();
            let target = cache.join("restored");
            let options = restore_options(snapshot, Some(root), target.clone());
            restore::run(&repo, &options, &Progress::default()).unwrap();
            for (path, content) in tree(&target) {
                assert!(expected[&path] == content, "{when}: {id} {}", path.display());
                restorable.insert((*id, path));
            }
            std::fs::remove_dir_all(&target).unwrap();
        }
        drop(repo);
        std::fs::remove_dir_all(&cache).unwrap();
        restorable
    }

    /// Checks with all data, on a machine that knows nothing.
    fn check(&self, store: &MemoryStore) -> check::Report {
        let cache = self.fresh();
        let options = check::Options {
            read_data: Some(check::Subset::All),
            threads: 1,
            ..Default::default()
        };
        check::run(&self.open(store, &cache), &options, &Progress::default()).unwrap()
    }

    fn assert_sound(&self, store: &MemoryStore, when: &str) {
        assert_eq!(self.whole(store, when), vec![true; self.nights.len()], "{when}");
        let report = self.check(store);
        assert!(report.is_sound(), "{when}: {:?}", report.findings);
    }
}
