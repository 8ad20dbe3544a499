//! Reading back when something is wrong: bad sectors, lost nodes, several copies, machines that know too little or too much.
//! What can be had comes back, what cannot is named, and an outage is never called damage.

use crate::story::{World, credential, noise, options, restore_options, tree};
use bytes::Bytes;
use larder::edge::store::{
    Abilities, Created, Failure, Listed, Part, Prefix, Stat, Store, StoreError, StoreKey, memory::MemoryStore,
};
use larder::ops::look::{self, Appetite};
use larder::ops::{Progress, backup, generate, restore};
use larder::pure::base::{Explain, Kind};
use larder::pure::format::blob::{BlobType, Opener};
use larder::pure::format::name::ObjectName;
use larder::pure::format::node::Node;
use larder::pure::id::{ChunkId, SessionId};
use larder::pure::tree::walk::{NodeSource, for_each_node};
use larder::repo::Repo;
use larder::repo::index::ChunkPlace;
use larder::repo::locate::RunLocator;
use larder::repo::open::{self, LocalOptions};
use larder::repo::reader::{BlobReader, TreeReader};
use larder::repo::snapshots::{Filter, Snapshot};
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::target::files::Overwrite;
use larder::testing::fault_store::FaultStore;
use larder::testing::small::SmallRepo;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A store in which some objects cannot be read, and that remembers what was read: keys and bytes.
#[derive(Debug, Default)]
struct Sick {
    inner: MemoryStore,
    failing: Mutex<BTreeMap<String, Failure>>,
    log: Mutex<Vec<(String, u64)>>,
}

impl Sick {
    /// From now on, reading what begins so fails.
    fn fail(&self, prefix: impl ToString, class: Failure) {
        self.failing.lock().insert(prefix.to_string(), class);
    }

    fn heal(&self) {
        self.failing.lock().clear();
    }

    /// Keys that begin so, and sizes.
    fn keys(&self, prefix: &str) -> Vec<(StoreKey, u64)> {
        let mut keys = Vec::new();
        let prefix = Prefix::new(prefix).unwrap();
        self.inner
            .list(&prefix, &mut |row| keys.push((row.key, row.size)))
            .unwrap();
        keys
    }

    fn flip(&self, key: &StoreKey, at: usize) {
        let mut body = self.inner.read(key, Part::Whole).unwrap().to_vec();
        body[at] ^= 1;
        self.inner.overwrite(key, Bytes::from(body));
    }
}

impl Store for Sick {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        self.inner.create(key, body)
    }
    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        let failing = self.failing.lock();
        if let Some((_, class)) = failing.iter().find(|(prefix, _)| key.as_str().starts_with(*prefix)) {
            return Err(StoreError::new("reading", key, *class).caused_by("a fault of the test"));
        }
        drop(failing);
        let bytes = self.inner.read(key, part)?;
        self.log.lock().push((key.to_string(), bytes.len() as u64));
        Ok(bytes)
    }
    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.inner.list(prefix, each)
    }
    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.inner.stat(key)
    }
    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        self.inner.remove(keys)
    }
    fn prepare(&self) -> Result<(), StoreError> {
        self.inner.prepare()
    }
    fn probe(&self) -> Result<Abilities, StoreError> {
        self.inner.probe()
    }
    fn set_conditional(&self, conditional: bool) {
        self.inner.set_conditional(conditional);
    }
    fn location(&self) -> String {
        "a sick store".into()
    }
}

/// A repository in a sick store, and a directory for everything else.
struct Ward {
    dir: tempfile::TempDir,
    store: Arc<Sick>,
}

impl Ward {
    /// With the sizes of a real repository.
    fn usual() -> Ward {
        let ward = Ward::empty();
        open::init(&*ward.store, &credential(), larder::pure::crypto::kdf::Cost::DEFAULT).unwrap();
        ward
    }

    /// With small chunks and nodes.
    fn small() -> Ward {
        let ward = Ward::empty();
        SmallRepo::init(&*ward.store, &credential()).unwrap();
        ward
    }

    fn empty() -> Ward {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        let store = Arc::new(Sick::default());
        Ward { dir, store }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.source().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn open(&self, machine: &str) -> Repo {
        open_at(self.store.clone(), &self.dir.path().join(machine))
    }

    fn backup(&self, machine: &str) -> SessionId {
        back_up(&self.open(machine), &self.source())
    }

    /// Restores as somebody who types `latest` does, who has nothing but the key unless the machine has worked before.
    fn restore(
        &self,
        machine: &str,
        to: &str,
        change: impl FnOnce(&mut restore::Options),
    ) -> (restore::Report, PathBuf) {
        let repo = self.open(machine);
        let snapshot = latest(&repo);
        let target = self.dir.path().join(to);
        let mut options = restore::Options {
            fetch: restore::fetch_share(true, 2),
            ..restore_options(snapshot, None, target.clone())
        };
        change(&mut options);
        let report = restore::run(&repo, &options, &Progress::default()).unwrap();
        let below = self.source().strip_prefix("/").unwrap().to_owned();
        (
            report,
            if options.path.is_some() {
                target
            } else {
                target.join(below)
            },
        )
    }
}

fn open_at(store: Arc<dyn Store>, cache: &Path) -> Repo {
    let options = LocalOptions {
        cache_dir: cache.to_owned(),
        index: larder::pure::base::memory::IndexShare::with_filter(1 << 20),
        node_cache_bytes_max: 64 << 20,
    };
    open::connect(store, options).unwrap().unlock(&credential()).unwrap()
}

fn back_up(repo: &Repo, source: &Path) -> SessionId {
    let input = backup::Input::Paths {
        roots: vec![source.to_owned()],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let report = backup::run(repo, input, &options(), &Progress::default()).unwrap();
    report.snapshot.unwrap()
}

fn latest(repo: &Repo) -> Snapshot {
    repo.find_snapshot("latest", &Filter::default(), &|_| None).unwrap().0
}

/// A leaf of the only root of a snapshot that has nothing but entries of the directory `1`.
fn leaf_of_directory_1(repo: &Repo, snapshot: &Snapshot) -> ChunkId {
    let reader = look::open_reader(repo, snapshot, Appetite::Much).unwrap();
    let mut nodes = TreeReader::new(&reader);
    let root = &snapshot.manifest.roots[0];
    let mut leaves = Vec::new();
    for_each_node(root.node, root.height, &mut nodes, &mut |id, level| {
        if level == 0 {
            leaves.push(*id);
        }
        Ok(true)
    })
    .unwrap();
    let mut is_inside = |id: &ChunkId| {
        let node = Node::decode(&nodes.node(id).unwrap()).unwrap();
        node.entries.len() < 100 && node.entries.iter().all(|(key, _)| key.starts_with(b"1\0\0"))
    };
    leaves
        .into_iter()
        .find(|id| is_inside(id))
        .expect("hundreds of entries are many leaves")
}

fn pack_key(place: &ChunkPlace) -> StoreKey {
    StoreKey::new(ObjectName::Pack(place.kind, place.pack, place.session).to_string()).unwrap()
}

#[test]
fn a_bad_sector_costs_the_files_on_it_and_nothing_else() {
    let ward = Ward::usual();
    for number in 0..60 {
        ward.write(&format!("{number:02}"), &noise(number, 20_000));
    }
    ward.backup("here");
    let (bad, _) = ward.store.keys("data/").swap_remove(0);
    ward.store.fail(&bad, Failure::Unreadable);
    let (report, target) = ward.restore("new machine", "out", |_| {});
    let source = tree(&ward.source());
    let restored = tree(&target);
    assert!(report.damaged_total > 0 && report.damaged_total < 60, "{report:?}");
    assert_eq!(restored.len() as u64, 60 - report.damaged_total);
    assert!(restored.iter().all(|(path, content)| source[path] == *content));
    for text in &report.damaged {
        let (path, why) = text.split_once(": ").unwrap();
        assert!(Path::new(path).exists() && why.contains(bad.as_str()), "{text}");
    }
    // The same when only the index is known to the machine.
    ward.store.heal();
    let (report, target) = ward.restore("new machine", "out", |_| {});
    assert_eq!((report.damaged_total, tree(&target)), (0, source));
}

#[test]
fn a_pack_that_lost_its_end_gives_every_chunk_that_it_has() {
    let ward = Ward::usual();
    for number in 0..60 {
        ward.write(&format!("{number:02}"), &noise(number, 20_000));
    }
    ward.backup("here");
    let (pack, size) = ward.store.keys("data/").swap_remove(0);
    let shorter = ward.store.inner.read(&pack, Part::Range(0..size - 1)).unwrap();
    ward.store.inner.overwrite(&pack, shorter);
    let (report, target) = ward.restore("new machine", "out", |_| {});
    assert_eq!((report.damaged_total, tree(&target)), (0, tree(&ward.source())));
}

#[test]
fn an_outage_is_not_damage_whatever_the_other_copy_is() {
    let ward = Ward::usual();
    ward.write("file", &noise(1, 100_000));
    let copies = two_copies(&ward);
    for (out, flipped) in [(0, 1), (1, 0)] {
        let ward_store = Sick {
            inner: ward.store.inner.fork(),
            ..Sick::default()
        };
        let place = &copies[flipped];
        ward_store.flip(&pack_key(place), place.offset as usize + 100);
        ward_store.fail(pack_key(&copies[out]), Failure::Denied);
        let repo = open_at(Arc::new(ward_store), &ward.dir.path().join("reader"));
        let snapshot = latest(&repo);
        let reader = look::open_reader(&repo, &snapshot, Appetite::Much).unwrap();
        let id = chunk_of(&repo, &snapshot);
        let error = reader
            .read(BlobType::Data, &id, &mut Opener::new(), &mut Vec::new())
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Auth, "{error:?}");
    }
}

/// The only chunk of the only file.
fn chunk_of(repo: &Repo, snapshot: &Snapshot) -> ChunkId {
    let reader = look::open_reader(repo, snapshot, Appetite::Much).unwrap();
    let mut nodes = TreeReader::new(&reader);
    let mut found = None;
    look::list(snapshot, None, true, &mut nodes, &mut |_, entry| {
        if let Some(larder::pure::format::entry::Content::Chunks(chunks)) = entry.content() {
            found = Some(chunks[0].id);
        }
        Ok(())
    })
    .unwrap();
    found.unwrap()
}

/// Two machines store the same file at the same time, so there are two copies of everything; the first machine's cache is
/// called `here` and knows the first only. Returns both copies of the file's chunk.
fn two_copies(ward: &Ward) -> Vec<ChunkPlace> {
    let (source, other) = (ward.source(), ward.dir.path().join("there"));
    let calls = {
        let counted = Arc::new(FaultStore::new(ward.store.inner.fork(), None));
        back_up(&open_at(counted.clone(), &ward.dir.path().join("counting")), &source);
        let log = counted.log();
        log.iter().position(|call| call.starts_with("writing data/")).unwrap() as u64
    };
    let visit = {
        let (store, source) = (ward.store.clone(), source.clone());
        move || {
            back_up(&open_at(store, &other), &source);
        }
    };
    let shared = Arc::new(FaultStore::visited_at(ward.store.inner.clone(), calls, visit));
    back_up(&open_at(shared, &ward.dir.path().join("here")), &source);
    let repo = ward.open("both");
    let snapshot = latest(&repo);
    let id = chunk_of(&repo, &snapshot);
    let copies = repo.index.find_all(&id).unwrap();
    assert_eq!(copies.len(), 2);
    copies
}

#[test]
fn a_machine_without_an_index_tries_every_copy_and_every_run() {
    let ward = Ward::usual();
    ward.write("file", &noise(1, 100_000));
    let copies = two_copies(&ward);
    let snapshot = latest(&ward.open("both"));
    let id = chunk_of(&ward.open("both"), &snapshot);
    let runs = ward.open("both").list_runs().unwrap();
    let read = |store: Sick| {
        let repo = open_at(Arc::new(store), &ward.dir.path().join("bare"));
        let reader = BlobReader::new(&repo, Box::new(RunLocator::new(runs.clone())));
        let mut plain = Vec::new();
        reader
            .read(BlobType::Data, &id, &mut Opener::new(), &mut plain)
            .map(|()| plain)
    };
    let forked = || Sick {
        inner: ward.store.inner.fork(),
        ..Sick::default()
    };
    for copy in &copies {
        let store = forked();
        store.inner.remove(&[pack_key(copy)]).unwrap();
        assert_eq!(read(store).unwrap(), noise(1, 100_000), "without {}", copy.pack);
        let store = forked();
        store.flip(&pack_key(copy), copy.offset as usize + 100);
        assert_eq!(read(store).unwrap(), noise(1, 100_000), "with a damaged {}", copy.pack);
        let run = ward.store.keys(&format!("idx/0-{}", copy.session)).swap_remove(0).0;
        let store = forked();
        store.fail(&run, Failure::Unreadable);
        assert_eq!(read(store).unwrap(), noise(1, 100_000), "without {run}");
    }
    let store = forked();
    store.fail("idx/", Failure::Unreadable);
    assert_eq!(read(store).unwrap(), noise(1, 100_000), "packs say what is in them");
    let store = forked();
    store.fail("idx/", Failure::Unreadable);
    for copy in &copies {
        store.inner.remove(&[pack_key(copy)]).unwrap();
    }
    let outcome = read(store);
    assert!(outcome.is_err_and(|error| error.is_damage()));
}

#[test]
fn a_machine_whose_index_is_old_looks_again_before_it_says_damage() {
    let ward = Ward::usual();
    ward.write("file", &noise(1, 100_000));
    let copies = two_copies(&ward);
    let repo = ward.open("here");
    let id = chunk_of(&ward.open("both"), &latest(&ward.open("both")));
    let known = repo.index.find_all(&id).unwrap();
    assert_eq!(known.len(), 1, "this machine knows its own copy");
    assert!(copies.iter().any(|copy| copy.pack == known[0].pack));
    // Somebody else has cleaned up.
    ward.store.inner.remove(&[pack_key(&known[0])]).unwrap();
    let snapshot = latest(&repo);
    let reader = look::open_reader(&repo, &snapshot, Appetite::Little).unwrap();
    let mut plain = Vec::new();
    reader
        .read(BlobType::Data, &id, &mut Opener::new(), &mut plain)
        .unwrap();
    assert_eq!(plain, noise(1, 100_000));
}

/// A small repository of 600 files in 3 directories with one damaged leaf from the middle of its tree.
fn with_a_lost_leaf() -> Ward {
    let ward = Ward::small();
    for number in 0..300 {
        ward.write(
            &format!("{}/{number:03}", number / 100),
            format!("content {number}").as_bytes(),
        );
    }
    // Where leaves end is up to the key: a hundred entries were one or two leaves with every eightieth.
    for number in 0..300 {
        ward.write(&format!("1/more {number:03}"), format!("more {number}").as_bytes());
    }
    ward.backup("here");
    let repo = ward.open("here");
    let leaf = leaf_of_directory_1(&repo, &latest(&repo));
    for place in repo.index.find_all(&leaf).unwrap() {
        ward.store.flip(&pack_key(&place), place.offset as usize + 30);
    }
    ward
}

#[test]
fn a_lost_node_costs_its_entries_and_nothing_behind_it() {
    let ward = with_a_lost_leaf();
    let source = tree(&ward.source());
    let (report, target) = ward.restore("new machine", "out", |_| {});
    let restored = tree(&target);
    assert!(report.damaged_total > 0 && report.damaged_total < 100, "{report:?}");
    assert_eq!(restored.len() as u64, source.len() as u64 - report.damaged_total);
    assert!(restored.iter().all(|(path, content)| source[path] == *content));
    assert!(restored.contains_key(Path::new("2/299")), "what follows is there");
    assert_eq!(report.damaged.len(), 1);
    let text = format!("{} entries, from {}/1/", report.damaged_total, ward.source().display());
    assert!(report.damaged[0].starts_with(&text), "{:?}", report.damaged);
    // Directories have their times although something in the tree is lost.
    let modified = |path: &Path| path.join("2").metadata().unwrap().modified().unwrap();
    assert_eq!(modified(&target), modified(&ward.source()));

    // Nothing is removed from a directory whose list is not whole; elsewhere it is.
    std::fs::write(target.join("1/new"), b"").unwrap();
    std::fs::write(target.join("2/new"), b"").unwrap();
    let (_, target) = ward.restore("new machine", "out", |options| options.delete = true);
    assert!(target.join("1/new").exists() && !target.join("2/new").exists());

    // A listing shows what there is, and then fails.
    let repo = ward.open("third machine");
    let snapshot = latest(&repo);
    let reader = look::open_reader(&repo, &snapshot, Appetite::Much).unwrap();
    let (mut nodes, mut count) = (TreeReader::new(&reader), 0);
    let listed = look::list(&snapshot, None, true, &mut nodes, &mut |_, _| {
        count += 1;
        Ok(())
    });
    assert_eq!(listed.unwrap_err().kind(), Kind::Damage);
    assert_eq!(count, restored.len() + 1);
}

#[test]
fn an_included_path_is_gone_to_directly() {
    let ward = with_a_lost_leaf();
    let source = ward.source().display().to_string();
    let include = |paths: &[&str]| {
        let patterns: Vec<String> = paths.iter().map(|path| format!("{source}/{path}")).collect();
        restore::Selection::new(&patterns, &[]).unwrap()
    };
    // Not one of these lies in the leaf that is lost, so nobody should notice it.
    let (report, target) = ward.restore("new machine", "out", |options| {
        options.selection = include(&["2/29?", "0/007", "0/008", "absent"]);
    });
    assert_eq!((report.damaged_total, report.files), (0, 12), "{report:?}");
    assert_eq!(std::fs::read(target.join("0/007")).unwrap(), b"content 7");
    // The same below a path, where names in the target are relative to that.
    let (report, target) = ward.restore("new machine", "below", |options| {
        options.path = Some(format!("{source}/2").into());
        options.selection = include(&["2/298", "0/007"]);
    });
    assert_eq!((report.damaged_total, report.files), (0, 1), "{report:?}");
    assert_eq!(std::fs::read(target.join("298")).unwrap(), b"content 298");
    // A directory brings everything below it.
    let (report, _) = ward.restore("new machine", "dir", |options| options.selection = include(&["2/"]));
    assert_eq!(
        (report.damaged_total, report.files, report.dirs),
        (0, 100, 1),
        "{report:?}"
    );
}

#[test]
fn one_file_on_a_new_machine_does_not_need_the_whole_index() {
    let ward = Ward::usual();
    ward.write("one/file", &noise(1, 100_000));
    ward.write("another", &noise(2, 100_000));
    generate::index_rows(&ward.open("here"), 120_000, &Progress::default()).unwrap();
    ward.backup("here");
    let index: u64 = ward.store.keys("idx/").iter().map(|(_, size)| size).sum();
    assert!(index > 5 << 20, "an index of {index} bytes");
    for by_include in [true, false] {
        ward.store.log.lock().clear();
        let path = ward.source().join("one/file").display().to_string();
        let machine = format!("new machine {by_include}");
        let (report, target) = ward.restore(&machine, &machine, |options| {
            if by_include {
                options.selection = restore::Selection::new(&[path], &[]).unwrap();
            } else {
                options.path = Some(path.into());
            }
        });
        assert_eq!((report.files, report.damaged_total), (1, 0), "{report:?}");
        let file = if by_include { "one/file" } else { "file" };
        assert_eq!(std::fs::read(target.join(file)).unwrap(), noise(1, 100_000));
        let log = ward.store.log.lock();
        let read: u64 = log
            .iter()
            .filter(|(key, _)| key.starts_with("idx/"))
            .map(|(_, size)| size)
            .sum();
        assert!(read < index / 4, "{read} of {index} bytes of the index were read");
    }
}

#[test]
fn what_was_searched_for_once_is_found_again_without_a_search() {
    let ward = Ward::usual();
    ward.write("file", &noise(1, 100_000));
    let copies = two_copies(&ward);
    generate::index_rows(&ward.open("both"), 120_000, &Progress::default()).unwrap();
    let snapshot = latest(&ward.open("both"));
    let id = chunk_of(&ward.open("both"), &snapshot);
    // Reads of the index on a machine that does not hold it.
    let look = |without: Option<&ChunkPlace>| {
        let store = Sick {
            inner: ward.store.inner.fork(),
            ..Sick::default()
        };
        if let Some(copy) = without {
            store.inner.remove(&[pack_key(copy)]).unwrap();
        }
        let store = Arc::new(store);
        let repo = open_at(store.clone(), &ward.dir.path().join("bare"));
        let mut plain = Vec::new();
        look::open_reader(&repo, &snapshot, Appetite::Little)
            .unwrap()
            .read(BlobType::Data, &id, &mut Opener::new(), &mut plain)
            .unwrap();
        assert_eq!(plain, noise(1, 100_000));
        let log = store.log.lock();
        log.iter().filter(|(key, _)| key.starts_with("idx/")).count()
    };
    assert!(look(None) > 0);
    assert_eq!(look(None), 0);
    // One of these is what was remembered: it is gone, and the other one is searched for.
    let searched = copies.iter().filter(|copy| look(Some(copy)) > 0).count();
    assert!(
        searched > 0,
        "whatever was remembered is believed only when it is there"
    );
}

/// Of a long history only the newest outcomes are read to find `latest`; the chunks of older ones are needed all the same.
#[test]
fn a_new_machine_restores_all_of_the_newest_of_many_snapshots() {
    let ward = Ward::small();
    ward.write("oldest", &noise(1, 3_000));
    for number in 0..30 {
        ward.write("newest", format!("{number:0100}").as_bytes());
        ward.backup("here");
    }
    let (report, target) = ward.restore("new machine", "out", |_| {});
    assert_eq!((report.damaged_total, report.failed_total), (0, 0), "{report:?}");
    assert_eq!(tree(&target), tree(&ward.source()));
    let oldest = ward.source().join("oldest");
    let (report, target) = ward.restore("another machine", "one", |options| {
        options.path = Some(oldest.as_os_str().as_encoded_bytes().to_vec());
    });
    assert_eq!(report.damaged_total, 0, "{report:?}");
    assert_eq!(std::fs::read(target.join("oldest")).unwrap(), noise(1, 3_000));
}

#[test]
fn holes_are_not_read_back_byte_by_byte() {
    let world = World::in_memory();
    let path = world.source().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    if file.set_len(8 << 40).is_err() {
        return println!("SKIPPED: this file system has no files of 8 TiB");
    }
    std::os::unix::fs::FileExt::write_all_at(&file, b"in the middle", 4 << 40).unwrap();
    drop(file);
    let snapshot = world.backup("here").snapshot.unwrap();
    let started = Instant::now();
    let (report, target) = world.restore("here", &snapshot, "out");
    assert_eq!((report.verified, report.failed_total), (1, 0), "{report:?}");
    // Somewhere in a hole there is a byte now: it is found, and taken back.
    let file = std::fs::File::options()
        .write(true)
        .open(target.join("sparse"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1 << 40).unwrap();
    drop(file);
    let (report, target) = world.restore("here", &snapshot, "out");
    assert_eq!(
        (report.files, report.files_unchanged, report.verified),
        (1, 0, 1),
        "{report:?}"
    );
    let mut byte = [1];
    let file = std::fs::File::open(target.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 1 << 40).unwrap();
    assert_eq!(byte, [0]);
    // Reading 8 TiB of zeros three times takes more than half an hour.
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
}

#[test]
fn further_names_link_to_a_file_that_was_left_alone_if_it_is_right() {
    let ward = Ward::usual();
    for (first, second) in [("a", "z/a"), ("b", "z/b")] {
        ward.write(first, &noise(first.len() as u64, 5_000));
        std::fs::create_dir_all(ward.source().join("z")).unwrap();
        std::fs::hard_link(ward.source().join(first), ward.source().join(second)).unwrap();
    }
    ward.backup("here");
    let (_, target) = ward.restore("here", "out", |_| {});
    std::fs::remove_dir_all(target.join("z")).unwrap();
    std::fs::write(target.join("b"), b"somebody's own").unwrap();
    let (report, target) = ward.restore("here", "out", |options| options.overwrite = Overwrite::Never);
    assert_eq!((report.damaged_total, report.failed_total), (0, 0), "{report:?}");
    use std::os::unix::fs::MetadataExt;
    let inode = |path: &str| target.join(path).metadata().unwrap().ino();
    assert_eq!(inode("a"), inode("z/a"), "the file that was there is the same one");
    assert_ne!(
        inode("b"),
        inode("z/b"),
        "a file that is another one must not get the name"
    );
    assert_eq!(std::fs::read(target.join("b")).unwrap(), b"somebody's own");
    assert_eq!(std::fs::read(target.join("z/b")).unwrap(), noise(1, 5_000));
}

/// Larger than a batch, so that its pieces are sent before all of them are known.
#[test]
fn a_file_of_many_chunks_comes_back_and_can_be_taken_up_again() {
    let ward = Ward::small();
    ward.write("file", &noise(1, 2_500_000));
    ward.backup("here");
    let (report, target) = ward.restore("here", "out", |options| options.verify = true);
    assert_eq!((report.files, report.verified), (1, 1), "{report:?}");
    let mut bytes = std::fs::read(target.join("file")).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(target.join("file"), &bytes).unwrap();
    let (report, target) = ward.restore("here", "out", |options| options.verify = true);
    assert_eq!((report.files, report.verified), (1, 1), "{report:?}");
    assert_eq!(std::fs::read(target.join("file")).unwrap(), noise(1, 2_500_000));
    let (report, _) = ward.restore("here", "out", |_| {});
    assert_eq!((report.files, report.files_unchanged), (0, 1), "{report:?}");

    let repo = ward.open("here");
    let path = ward.source().join("file");
    let mut out = Vec::new();
    let path = path.as_os_str().as_encoded_bytes();
    larder::ops::dump::file(&repo, &latest(&repo), path, 3, &mut out, &Progress::default()).unwrap();
    assert!(out == noise(1, 2_500_000));
    // A reader that goes away ends it.
    let error = larder::ops::dump::file(&repo, &latest(&repo), path, 3, &mut Closed, &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
}

struct Closed;

impl std::io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Files of the kernel that say they have 4096 bytes and cannot be read are stored as zeros, and that is not kept secret.
#[test]
fn an_archive_of_files_that_were_not_whole_is_an_error() {
    let source = Path::new("/sys/devices/virtual/net/lo");
    if std::fs::read(source.join("duplex")).is_ok() || !source.join("duplex").exists() {
        return println!("SKIPPED: there is no file here that cannot be read");
    }
    let ward = Ward::usual();
    let repo = ward.open("here");
    // Looking at a file of this sort changes its times, so each of them takes a while to settle.
    let mut excludes = ExcludesBuilder::default();
    excludes.add(b"*").add(b"!duplex");
    let input = backup::Input::Paths {
        roots: vec![source.to_owned()],
        walk: WalkOptions::default(),
        excludes,
    };
    backup::run(&repo, input, &options(), &Progress::default()).unwrap();
    let mut out = Vec::new();
    let snapshot = latest(&repo);
    let error = larder::ops::dump::tar(&repo, &snapshot, None, 2, &mut out, &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Damage);
    assert!(error.to_string().contains("net/lo/duplex"), "{error}");
    // What there is, is an archive to its end all the same.
    assert!(out.len() > 4096 && out.len().is_multiple_of(512) && out.ends_with(&[0; 1024]));
}
