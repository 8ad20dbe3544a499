//! Damage and tampering: every bit, every length, every deletion and every exchange of the objects of a small repository that
//! holds every kind of object. Whatever is done to it, larder either restores exactly what was backed up while `check` reports
//! the change, or fails with an error that says so (reliability.md §4.5: X1 to X6, A13, A15, A17, A19, H17).
//!
//! The repository is made anew by each run, with fresh keys: what is flipped differs from run to run, that everything is
//! flipped does not. `LARDER_DAMAGE_STRIDE=n` takes every n-th bit and length only (default 512 in the ordinary test, 1 in the
//! exhaustive one, which scripts/nightly runs); deletions and exchanges are always all done.

use crate::story::{noise, options, restore_options, tree};
use bytes::Bytes;
use larder::edge::host;
use larder::edge::store::{Part, Prefix, Store, StoreKey, memory::MemoryStore};
use larder::ops::{OpError, Progress, backup, check, dump, restore};
use larder::pure::base::memory::IndexShare;
use larder::pure::base::{Explain, Kind, Timestamp};
use larder::pure::crypto::Secret;
use larder::pure::format::condemn::{CondemnKind, Condemnation};
use larder::pure::format::mark::{Drop, DropKind, Hold};
use larder::pure::format::name::{ObjectName, PackKind};
use larder::pure::format::session::SessionRole;
use larder::pure::id::SessionId;
use larder::repo::Repo;
use larder::repo::error::RepoError;
use larder::repo::open::{self, Credential, LocalOptions, create_new};
use larder::repo::session::Session;
use larder::repo::snapshots::Filter;
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::small::SmallRepo;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

/// A case that takes longer than this hangs.
const HANG: Duration = Duration::from_secs(60);

fn admin() -> Credential {
    Credential::KeyFile(Secret::new([7; 32]))
}

fn writer() -> Credential {
    Credential::KeyFile(Secret::new([8; 32]))
}

/// Memory where there is some: a case makes and removes a local index.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn try_open(store: &MemoryStore, cache: &Path, credential: &Credential) -> Result<Repo, RepoError> {
    let options = LocalOptions {
        cache_dir: cache.to_owned(),
        index: IndexShare::with_filter(1 << 20),
        node_cache_bytes_max: 1 << 20,
    };
    open::connect(Arc::new(store.clone()), options)?.unlock(credential)
}

/// A snapshot as it must come back.
struct Expected {
    id: SessionId,
    tar: Vec<u8>,
    tree: BTreeMap<PathBuf, Vec<u8>>,
}

/// A repository with every kind of object that version 1 writes.
struct Golden {
    dir: tempfile::TempDir,
    store: MemoryStore,
    objects: Vec<(StoreKey, Bytes)>,
    snapshots: Vec<Expected>,
    dropped: SessionId,
    /// The repository as it was after the first two nights, on both machines.
    earlier: MemoryStore,
}

impl Golden {
    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn make() -> Golden {
        // Whether a tree has inner nodes and a piece list has levels is up to the keys.
        for _ in 0..20 {
            let golden = Golden::attempt();
            if golden.has_inner_nodes() {
                return golden;
            }
        }
        panic!("no tree of twenty repositories has an inner node");
    }

    fn attempt() -> Golden {
        let dir = scratch();
        let store = MemoryStore::new();
        let source = dir.path().join("source");
        std::fs::create_dir_all(source.join("many/empty")).unwrap();
        std::fs::write(source.join("list"), noise(1, 3600)).unwrap();
        std::fs::write(source.join("few pieces"), noise(2, 900)).unwrap();
        std::fs::write(source.join("text"), "a line of text\n".repeat(200)).unwrap();
        std::fs::write(source.join("tiny"), b"tiny").unwrap();
        std::fs::write(source.join("nothing"), b"").unwrap();
        for number in 0..40 {
            std::fs::write(
                source.join(format!("many/{number}")),
                noise(number, 8 + number as usize % 40),
            )
            .unwrap();
        }
        std::os::unix::fs::symlink("text", source.join("link")).unwrap();
        std::fs::hard_link(source.join("text"), source.join("many/hard")).unwrap();

        let mut small = SmallRepo::init(&store, &admin()).unwrap();
        let password = Credential::Password(zeroize::Zeroizing::new(b"correct horse".to_vec()));
        small.write_protector(&store, 0, 1, &password).unwrap();
        small.add_writer(&store, "other", &writer()).unwrap();
        let open_as =
            |machine: &str, credential: &Credential| try_open(&store, &dir.path().join(machine), credential).unwrap();
        let back_up = |machine: &str, credential: &Credential, label: &str| {
            let repo = open_as(machine, credential);
            let input = backup::Input::Paths {
                roots: vec![source.clone()],
                walk: WalkOptions::default(),
                excludes: ExcludesBuilder::default(),
            };
            let options = backup::Options {
                label: label.into(),
                threads: 1,
                ..options()
            };
            backup::run(&repo, input, &options, &Progress::default())
                .unwrap()
                .snapshot
                .unwrap()
        };
        let mut nights = Vec::new();
        let mut keep = |id| nights.push((id, tree(&source)));
        keep(back_up("admin", &admin(), "source"));
        std::fs::write(source.join("few pieces"), noise(3, 1000)).unwrap();
        keep(back_up("writer", &writer(), "other"));
        let earlier = store.fork();

        std::fs::write(source.join("many/7"), b"changed").unwrap();
        std::fs::write(
            source.join("list"),
            [noise(1, 2500), noise(4, 300), noise(1, 3600)[2500..].to_vec()].concat(),
        )
        .unwrap();
        keep(back_up("admin", &admin(), "source"));
        // A session that ends without a snapshot, and another one that condemns nothing.
        let repo = open_as("admin", &admin());
        repo.sync_history().unwrap();
        Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now())
            .unwrap()
            .abandon();
        let condemner = Session::begin(&repo, None, SessionRole::Condemn, 1, Instant::now()).unwrap();
        let generation = condemner.id();
        condemner.abandon();
        let condemnation = Condemnation {
            kid: repo.kid,
            created: host::now(),
            kind: CondemnKind::Reclaim,
            session: generation,
            reason: "nothing".into(),
            packs: Vec::new(),
            lost: Vec::new(),
            is_accepted: false,
        };
        let body = condemnation.encode(&repo.keys, &repo.signer, host::random()).unwrap();
        create_new(&store, &ObjectName::Condemnation(generation), body, "a condemnation").unwrap();
        std::fs::remove_file(source.join("many/8")).unwrap();
        // From here on sessions acknowledge the condemnation.
        let dropped = back_up("admin", &admin(), "source");
        let drop = Drop {
            kid: repo.kid,
            created: host::now(),
            kind: DropKind::Forget,
            session: dropped,
            reason: "old".into(),
        };
        let body = drop.encode(&repo.keys, &repo.signer, host::random()).unwrap();
        create_new(&store, &ObjectName::Drop(dropped), body, "a drop").unwrap();
        let hold = Hold {
            kid: repo.kid,
            created: host::now(),
            session: nights[0].0,
            until: Some(Timestamp(host::now().0 + 1_000_000_000_000)),
            reason: "court".into(),
        };
        let body = hold.encode("court", &repo.keys, &repo.signer, host::random()).unwrap();
        create_new(&store, &ObjectName::Hold(nights[0].0, "court".into()), body, "a hold").unwrap();
        std::fs::write(source.join("many/9"), b"changed as well").unwrap();
        nights.push((back_up("writer", &writer(), "other"), tree(&source)));
        nights.push((back_up("admin", &admin(), "source"), tree(&source)));
        std::mem::drop(repo);

        let mut golden = Golden {
            dir,
            objects: objects(&store),
            store,
            snapshots: Vec::new(),
            dropped,
            earlier,
        };
        let repo = try_open(&golden.store, &golden.dir.path().join("reader"), &admin()).unwrap();
        repo.sync_history().unwrap();
        for (id, tree) in nights {
            let tar = dump_tar(&repo, &id).unwrap();
            golden.snapshots.push(Expected { id, tar, tree });
        }
        let report = run_check(&repo).unwrap();
        assert!(
            report.findings.is_empty() && report.unknown_objects.is_empty(),
            "{:?}",
            report.findings
        );
        golden
    }

    fn has_inner_nodes(&self) -> bool {
        let repo = try_open(&self.store, &self.dir.path().join("reader"), &admin()).unwrap();
        repo.sync_history().unwrap();
        repo.snapshots()
            .unwrap()
            .iter()
            .any(|snapshot| snapshot.manifest.roots[0].height > 0)
    }

    fn bytes(&self) -> usize {
        self.objects.iter().map(|(_, body)| body.len()).sum()
    }

    /// Every kind of name is there, and both kinds of nodes.
    fn assert_complete(&self) {
        let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (key, body) in &self.objects {
            let count = kinds.entry(kind_of(key)).or_default();
            *count = (count.0 + 1, count.1 + body.len());
        }
        eprintln!(
            "golden repository: {} objects, {} bytes: {kinds:?}",
            self.objects.len(),
            self.bytes()
        );
        for kind in [
            "config",
            "keys",
            "grants",
            "data",
            "meta",
            "idx",
            "sess/0000",
            "sess/0001",
            "snap",
            "gc",
            "drop",
            "hold",
        ] {
            assert!(kinds.contains_key(kind), "{kind} is missing in {kinds:?}");
        }
        assert!(self.bytes() >= 32 << 10, "{} bytes", self.bytes());
        let repo = try_open(&self.store, &self.dir.path().join("reader"), &admin()).unwrap();
        repo.sync_history().unwrap();
        repo.sync_index().unwrap();
        let stored: Vec<String> = {
            let mut kinds = Vec::new();
            repo.index
                .chunks_in_id_order(&mut |chunk| {
                    kinds.push(format!("{:?}", chunk.stored_as));
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap();
            kinds
        };
        for kind in ["Data", "Node", "List"] {
            assert!(stored.iter().any(|stored| stored == kind), "no {kind} blob");
        }
    }
}

/// First part of the name; of sessions also whether it is a registration.
fn kind_of(key: &StoreKey) -> String {
    match ObjectName::parse(key.as_str()) {
        Some(ObjectName::Session(_, 0)) => "sess/0000".into(),
        Some(ObjectName::Session(_, _)) => "sess/0001".into(),
        _ => key.as_str().split('/').next().unwrap().to_owned(),
    }
}

fn objects(store: &MemoryStore) -> Vec<(StoreKey, Bytes)> {
    let mut keys = Vec::new();
    store
        .list(&Prefix::new("").unwrap(), &mut |listed| keys.push(listed.key))
        .unwrap();
    keys.into_iter()
        .map(|key| (key.clone(), store.read(&key, Part::Whole).unwrap()))
        .collect()
}

fn run_check(repo: &Repo) -> Result<check::Report, OpError> {
    let options = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..check::Options::default()
    };
    check::run(repo, &options, &Progress::default())
}

fn find(repo: &Repo, id: &SessionId) -> Result<larder::repo::snapshots::Snapshot, RepoError> {
    repo.resolve(&id.to_string(), &Filter::default(), &|_| None)
}

/// A snapshot restored into memory: everything that a restore would write, as a tar archive.
fn dump_tar(repo: &Repo, id: &SessionId) -> Result<Vec<u8>, OpError> {
    let snapshot = find(repo, id)?;
    let mut archive = Vec::new();
    dump::tar(repo, &snapshot, None, 1, &mut archive, &Progress::default())?;
    Ok(archive)
}

/// A snapshot restored into a directory.
fn restore_to(
    repo: &Repo,
    id: &SessionId,
    source: &Path,
    target: &Path,
    verify: bool,
) -> Result<restore::Report, OpError> {
    let options = restore::Options {
        verify,
        ..restore_options(
            find(repo, id)?,
            Some(source.as_os_str().as_encoded_bytes().to_vec()),
            target.to_owned(),
        )
    };
    restore::run(repo, &options, &Progress::default())
}

/// One thing that is done to the repository. Numbers are positions in `Golden::objects`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Flip {
        object: usize,
        bit: usize,
    },
    Truncate {
        object: usize,
        length: usize,
    },
    Extend {
        object: usize,
        byte: u8,
    },
    Delete {
        object: usize,
    },
    /// The first gets the bytes of the second, which stays.
    Copy {
        object: usize,
        from: usize,
    },
    Swap {
        one: usize,
        other: usize,
    },
}

impl Case {
    fn class(&self) -> &'static str {
        match self {
            Case::Flip { .. } => "bit flipped",
            Case::Truncate { .. } => "truncated",
            Case::Extend { .. } => "extended",
            Case::Delete { .. } => "deleted",
            Case::Copy { .. } => "replaced",
            Case::Swap { .. } => "swapped",
        }
    }

    /// The objects that change, with what becomes of them.
    fn changes(&self, objects: &[(StoreKey, Bytes)]) -> Vec<(usize, Option<Bytes>)> {
        let body = |number: usize| objects[number].1.clone();
        match *self {
            Case::Flip { object, bit } => {
                let mut bytes = body(object).to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                vec![(object, Some(bytes.into()))]
            }
            Case::Truncate { object, length } => vec![(object, Some(body(object).slice(..length)))],
            Case::Extend { object, byte } => vec![(object, Some([&body(object)[..], &[byte]].concat().into()))],
            Case::Delete { object } => vec![(object, None)],
            Case::Copy { object, from } => vec![(object, Some(body(from)))],
            Case::Swap { one, other } => vec![(one, Some(body(other))), (other, Some(body(one)))],
        }
    }

    fn describe(&self, golden: &Golden) -> String {
        let names: Vec<&str> = self
            .changes(&golden.objects)
            .iter()
            .map(|(number, _)| golden.objects[*number].0.as_str())
            .collect();
        format!("{self:?} {}", names.join(" "))
    }
}

/// What a machine that has never seen this repository cannot notice, each with the reason. Everything else must be noticed.
fn not_noticed_by_design(case: &Case, golden: &Golden) -> Option<&'static str> {
    let name = |number: usize| ObjectName::parse(golden.objects[number].0.as_str()).unwrap();
    match *case {
        Case::Delete { object } => match name(object) {
            ObjectName::Drop(_) => Some("without its drop a snapshot is live again: more is kept, nothing is lost"),
            ObjectName::Hold(..) => Some("holds end by being deleted; no chain covers them"),
            ObjectName::Condemnation(_) => Some("condemnations are deleted when they are done; no chain covers them"),
            ObjectName::Protector(..) if golden.protectors_of(object) > 1 => {
                Some("taking away one of several ways to unlock is how a password is changed")
            }
            ObjectName::Grant(..) if golden.is_superseded(object) => {
                Some("a newer grant has taken its place; nobody reads it any more")
            }
            ObjectName::Outcome(_) if golden.is_newest_outcome(object) => Some(
                "the newest end of a chain: its session looks unfinished. A machine that saw it notices (tested below)",
            ),
            _ => None,
        },
        Case::Swap { one, other } => match (name(one), name(other)) {
            (ObjectName::Protector(a, _), ObjectName::Protector(b, _)) if a == b => {
                Some("ways to unlock the same key are alternatives; their numbers mean nothing")
            }
            _ => None,
        },
        _ => None,
    }
}

impl Golden {
    fn protectors_of(&self, object: usize) -> usize {
        let folder = self.objects[object].0.as_str().rsplit_once('/').unwrap().0;
        self.objects
            .iter()
            .filter(|(key, _)| key.as_str().starts_with(folder))
            .count()
    }

    fn is_superseded(&self, object: usize) -> bool {
        let key = self.objects[object].0.as_str();
        let folder = key.rsplit_once('/').unwrap().0;
        self.objects
            .iter()
            .any(|(other, _)| other.as_str().starts_with(folder) && other.as_str() > key)
    }

    fn is_newest_outcome(&self, object: usize) -> bool {
        let repo = try_open(&self.store, &self.dir.path().join("reader"), &admin()).unwrap();
        let outcomes = repo.index.outcomes().unwrap();
        let known = |outcome: &&larder::repo::index::KnownOutcome| {
            format!("snap/{}", outcome.session) == self.objects[object].0.as_str()
        };
        let this = outcomes.iter().find(known).unwrap();
        outcomes
            .iter()
            .filter(|outcome| outcome.kid == this.kid)
            .all(|outcome| outcome.sequence <= this.sequence)
    }
}

/// What came of one case.
#[derive(Default, Debug)]
struct Verdict {
    /// Kind of the error that opening ended with.
    refused: Option<Kind>,
    /// `check` reported something, or ended with an error.
    noticed: bool,
    /// Snapshots that came back byte for byte.
    restored: u64,
    /// Snapshots that could not be restored, with an error that says so.
    failed: u64,
    /// What must not happen.
    wrong: Vec<String>,
}

impl Verdict {
    fn error(&mut self, doing: &str, error: &dyn Explain) -> Kind {
        let kind = error.kind();
        if kind == Kind::Internal {
            self.wrong
                .push(format!("{doing}: a defect of larder: {}", check::chain(error)));
        }
        kind
    }
}

/// What is looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    /// `check` with all data.
    Check,
    /// The list of snapshots as well, and every snapshot is restored into a directory.
    Restore,
    /// Every snapshot is also written as an archive.
    Everything,
}

/// Looks at a repository the way a user would.
fn judge(repo: Result<&Repo, &RepoError>, golden: &Golden, depth: Depth, scratch: &Path) -> Verdict {
    let mut verdict = Verdict::default();
    let repo = match repo {
        Ok(repo) => repo,
        Err(error) => {
            verdict.refused = Some(verdict.error("opening", error));
            return verdict;
        }
    };
    match run_check(repo) {
        Ok(report) => verdict.noticed = !report.findings.is_empty() || !report.unknown_objects.is_empty(),
        Err(error) => {
            verdict.error("checking", &error);
            verdict.noticed = true;
        }
    }
    if depth >= Depth::Restore {
        match repo.sync_history().map(|_| repo.snapshots()) {
            Ok(Ok(snapshots)) => {
                let known = |id: &SessionId| golden.snapshots.iter().any(|expected| expected.id == *id);
                if let Some(strange) = snapshots
                    .iter()
                    .find(|found| !known(&found.id) && found.id != golden.dropped)
                {
                    verdict
                        .wrong
                        .push(format!("a snapshot {} that nobody made", strange.id));
                }
            }
            Ok(Err(error)) | Err(error) => {
                verdict.error("listing snapshots", &error);
            }
        }
        for expected in &golden.snapshots {
            restore_and_compare(repo, golden, expected, scratch, &mut verdict);
        }
    }
    if depth >= Depth::Everything {
        for expected in &golden.snapshots {
            match dump_tar(repo, &expected.id) {
                Ok(tar) if tar == expected.tar => verdict.restored += 1,
                Ok(_) => verdict.wrong.push(format!("wrong bytes in snapshot {}", expected.id)),
                Err(error) => {
                    verdict.error("restoring", &error);
                    verdict.failed += 1;
                }
            }
        }
    }
    verdict
}

/// Restores into a directory: whatever has its final name is right, and a report without complaints means that all is there.
fn restore_and_compare(repo: &Repo, golden: &Golden, expected: &Expected, scratch: &Path, verdict: &mut Verdict) {
    let target = scratch.join("restored");
    let result = restore_to(repo, &expected.id, &golden.source(), &target, true);
    let found = if target.exists() {
        tree(&target)
    } else {
        BTreeMap::new()
    };
    for (path, bytes) in &found {
        if expected.tree.get(path) != Some(bytes) {
            verdict
                .wrong
                .push(format!("wrong bytes in {} of snapshot {}", path.display(), expected.id));
        }
    }
    match result {
        Ok(report) if report.damaged_total + report.failed_total == 0 => {
            if found.len() != expected.tree.len() {
                verdict
                    .wrong
                    .push(format!("snapshot {} lacks entries without a word", expected.id));
            }
            verdict.restored += 1;
        }
        Ok(_) => verdict.failed += 1,
        Err(error) => {
            verdict.error("restoring", &error);
            verdict.failed += 1;
        }
    }
    let _ = std::fs::remove_dir_all(&target);
}

/// Panics of any thread, also of those whose panic larder turns into an error.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Other tests of this process panic on purpose, always in their own files.
            if !info.location().is_some_and(|place| place.file().starts_with("tests/")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
    });
}

/// A thread's own copy of the repository, and a machine that knows it.
struct Bench<'g> {
    golden: &'g Golden,
    store: MemoryStore,
    dir: tempfile::TempDir,
    warm: Repo,
    fresh: u64,
}

impl<'g> Bench<'g> {
    fn new(golden: &'g Golden) -> Bench<'g> {
        let store = golden.store.fork();
        let dir = scratch();
        let warm = try_open(&store, &dir.path().join("warm"), &admin()).unwrap();
        let report = run_check(&warm).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        Bench {
            golden,
            store,
            dir,
            warm,
            fresh: 0,
        }
    }

    fn with<T>(&mut self, case: &Case, work: impl FnOnce(&mut Bench<'g>) -> T) -> T {
        let objects = &self.golden.objects;
        let changes = case.changes(objects);
        for (object, body) in &changes {
            let key = &objects[*object].0;
            match body {
                Some(body) => self.store.overwrite(key, body.clone()),
                None => self.store.remove(std::slice::from_ref(key)).unwrap(),
            }
        }
        let done = work(self);
        for (object, _) in &changes {
            let (key, body) = &objects[*object];
            self.store.overwrite(key, body.clone());
        }
        done
    }

    /// On a machine that has the index already.
    fn judge_warm(&mut self, case: &Case, depth: Depth) -> Verdict {
        self.with(case, |bench| {
            judge(Ok(&bench.warm), bench.golden, depth, bench.dir.path())
        })
    }

    /// On a machine that has never seen the repository.
    fn judge_fresh(&mut self, case: &Case, depth: Depth) -> Verdict {
        self.with(case, |bench| {
            bench.fresh += 1;
            let cache = bench.dir.path().join(format!("fresh{}", bench.fresh));
            let repo = try_open(&bench.store, &cache, &admin());
            let verdict = judge(repo.as_ref(), bench.golden, depth, bench.dir.path());
            drop(repo);
            let _ = std::fs::remove_dir_all(&cache);
            verdict
        })
    }
}

/// Figures of one class of cases.
#[derive(Default)]
struct Tally {
    cases: u64,
    refused: u64,
    noticed: u64,
    by_design: u64,
    restored: u64,
    failed: u64,
    slowest: Duration,
    spent: Duration,
}

fn all_cases(golden: &Golden, stride: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut position = 0usize;
    let mut chosen = |number: usize| {
        position += 1;
        // A multiplier that is odd and no neighbour of a power of two, so that all bits of a byte are met.
        stride == 1
            || (position.wrapping_mul(2_654_435_761) >> 8)
                .wrapping_add(number)
                .is_multiple_of(stride)
    };
    for (object, (_, body)) in golden.objects.iter().enumerate() {
        cases.extend(
            (0..body.len() * 8)
                .filter(|bit| chosen(*bit))
                .map(|bit| Case::Flip { object, bit }),
        );
        cases.extend(
            (0..body.len())
                .filter(|length| chosen(*length))
                .map(|length| Case::Truncate { object, length }),
        );
        cases.extend([0, 0x31, 0xff].map(|byte| Case::Extend { object, byte }));
        cases.push(Case::Delete { object });
        for from in (0..golden.objects.len()).filter(|from| *from != object) {
            cases.push(Case::Copy { object, from });
            if from > object && kind_of(&golden.objects[from].0) == kind_of(&golden.objects[object].0) {
                cases.push(Case::Swap {
                    one: object,
                    other: from,
                });
            }
        }
    }
    cases
}

fn is_pack(golden: &Golden, object: usize) -> bool {
    matches!(
        ObjectName::parse(golden.objects[object].0.as_str()),
        Some(ObjectName::Pack(PackKind::Data | PackKind::Meta, ..))
    )
}

/// Runs one case on the machines that it needs. Flips and truncations of packs on a machine that has the index (which is where
/// packs are read), now and then also on a fresh one; everything else on a fresh machine.
fn run_case(bench: &mut Bench<'_>, number: usize, case: &Case) -> Vec<Verdict> {
    match *case {
        Case::Flip { object, .. } => {
            let depth = if number.is_multiple_of(8) {
                Depth::Restore
            } else {
                Depth::Check
            };
            if !is_pack(bench.golden, object) {
                return vec![bench.judge_fresh(case, depth)];
            }
            let mut verdicts = vec![bench.judge_warm(case, depth)];
            if number.is_multiple_of(64) {
                verdicts.push(bench.judge_fresh(case, depth));
            }
            verdicts
        }
        Case::Truncate { object, .. } if is_pack(bench.golden, object) && !number.is_multiple_of(8) => {
            vec![bench.judge_warm(case, Depth::Restore)]
        }
        Case::Truncate { .. } => vec![bench.judge_fresh(case, Depth::Restore)],
        Case::Copy { object, from } => {
            // Bytes of another kind do not even parse.
            let alike = kind_of(&bench.golden.objects[object].0) == kind_of(&bench.golden.objects[from].0);
            let depth = if alike || number.is_multiple_of(8) {
                Depth::Restore
            } else {
                Depth::Check
            };
            vec![bench.judge_fresh(case, depth)]
        }
        Case::Extend { .. } | Case::Delete { .. } | Case::Swap { .. } => {
            vec![bench.judge_fresh(case, Depth::Everything)]
        }
    }
}

fn attack(golden: &Golden, cases: &[Case]) {
    count_panics();
    let panics_before = PANICS.load(Ordering::SeqCst);
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let tallies: Mutex<BTreeMap<&'static str, Tally>> = Mutex::default();
    let problems: Mutex<Vec<String>> = Mutex::default();
    let threads = std::thread::available_parallelism()
        .map_or(2, |count| count.get())
        .min(8);
    let running: Vec<Mutex<Option<(Instant, Case)>>> = (0..threads).map(|_| Mutex::new(None)).collect();
    let workers_left = AtomicUsize::new(threads);
    std::thread::scope(|scope| {
        for running in &running {
            scope.spawn(|| {
                let mut bench = Bench::new(golden);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else { break };
                    let begun = Instant::now();
                    *running.lock().unwrap() = Some((begun, *case));
                    let result = catch_unwind(AssertUnwindSafe(|| run_case(&mut bench, number, case)));
                    *running.lock().unwrap() = None;
                    let mut found = Vec::new();
                    let mut tallies = tallies.lock().unwrap();
                    let tally = tallies.entry(case.class()).or_default();
                    tally.cases += 1;
                    tally.slowest = tally.slowest.max(begun.elapsed());
                    tally.spent += begun.elapsed();
                    match result {
                        Err(_) => {
                            found.push("panic".to_owned());
                            bench = Bench::new(golden);
                        }
                        Ok(verdicts) => {
                            for verdict in verdicts {
                                tally.refused += u64::from(verdict.refused.is_some());
                                tally.noticed += u64::from(verdict.noticed);
                                tally.restored += verdict.restored;
                                tally.failed += verdict.failed;
                                if verdict.refused.is_none() && !verdict.noticed {
                                    match not_noticed_by_design(case, golden) {
                                        Some(_) => tally.by_design += 1,
                                        None => found.push("undetected".into()),
                                    }
                                }
                                found.extend(verdict.wrong);
                            }
                        }
                    }
                    drop(tallies);
                    if !found.is_empty() {
                        problems
                            .lock()
                            .unwrap()
                            .push(format!("{}: {}", case.describe(golden), found.join("; ")));
                    }
                }
                workers_left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        // A hang cannot be turned into a failure of one case, so it ends the whole process, with a name.
        scope.spawn(|| {
            while workers_left.load(Ordering::SeqCst) > 0 {
                std::thread::sleep(Duration::from_millis(50));
                for running in &running {
                    if let Some((begun, case)) = *running.lock().unwrap()
                        && begun.elapsed() > HANG
                    {
                        eprintln!("hang: {}", case.describe(golden));
                        #[expect(
                            clippy::disallowed_methods,
                            reason = "a case that hangs cannot be stopped in any other way"
                        )]
                        std::process::exit(99);
                    }
                }
            }
        });
    });
    let panics = PANICS.load(Ordering::SeqCst) - panics_before;
    for (class, tally) in tallies.into_inner().unwrap() {
        eprintln!(
            "{class:>12}: {:7} cases, {:7} refused to open, {:7} noticed by check, {} unnoticed by design; snapshots: {} \
             restored exactly, {} failed with a word; {:.1} ms each, slowest {} ms",
            tally.cases,
            tally.refused,
            tally.noticed,
            tally.by_design,
            tally.restored,
            tally.failed,
            tally.spent.as_secs_f64() * 1000.0 / tally.cases as f64,
            tally.slowest.as_millis()
        );
    }
    let problems = problems.into_inner().unwrap();
    eprintln!(
        "{} cases in {:.0} s on {threads} threads: {} problems, {panics} panics",
        cases.len(),
        started.elapsed().as_secs_f64(),
        problems.len()
    );
    let shown: Vec<&String> = problems.iter().take(40).collect();
    assert!(
        problems.is_empty() && panics == 0,
        "{} problems, {panics} panics: {shown:#?}",
        problems.len()
    );
}

fn stride(default: usize) -> usize {
    std::env::var("LARDER_DAMAGE_STRIDE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
        .max(1)
}

#[test]
fn no_change_to_any_object_goes_unnoticed() {
    let golden = Golden::make();
    golden.assert_complete();
    attack(&golden, &all_cases(&golden, stride(1024)));
}

#[test]
#[ignore = "all bits and lengths; run by scripts/nightly"]
fn no_change_to_any_object_goes_unnoticed_exhaustively() {
    let golden = Golden::make();
    golden.assert_complete();
    attack(&golden, &all_cases(&golden, stride(1)));
}

/// X5, X6: what the fresh machine cannot know, the one that was there knows.
#[test]
fn machine_that_saw_an_outcome_misses_it() {
    let golden = Golden::make();
    let mut bench = Bench::new(&golden);
    for (object, (key, _)) in golden.objects.iter().enumerate() {
        if !key.as_str().starts_with("snap/") {
            continue;
        }
        let dir = scratch();
        let repo = try_open(&bench.store, dir.path(), &admin()).unwrap();
        assert!(repo.sync_history().unwrap().gaps.is_empty());
        bench.with(&Case::Delete { object }, |bench| {
            let repo = try_open(&bench.store, dir.path(), &admin()).unwrap();
            let report = run_check(&repo).unwrap();
            assert!(
                report.findings.iter().any(|finding| finding.tamper),
                "{key} is gone and nobody says so"
            );
            // A machine that comes later notices as well, unless it was the newest of its writer.
            if !golden.is_newest_outcome(object) {
                let fresh = scratch();
                let repo = try_open(&bench.store, fresh.path(), &admin()).unwrap();
                let report = run_check(&repo).unwrap();
                assert!(
                    report.findings.iter().any(|finding| finding.tamper),
                    "{key} is gone, a new machine is content"
                );
            }
        });
    }
}

/// Two hosts with one key (a clone) make two outcomes with one number; taking one away leaves no gap in the numbers.
#[test]
fn outcome_missing_from_a_fork_is_noticed_by_its_successor() {
    let dir = scratch();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let store = MemoryStore::new();
    SmallRepo::init(&store, &admin()).unwrap();
    let back_up = |store: &MemoryStore, machine: &str| {
        let repo = try_open(store, &dir.path().join(machine), &admin()).unwrap();
        let (roots, walk, excludes) = (vec![source.clone()], WalkOptions::default(), ExcludesBuilder::default());
        let input = backup::Input::Paths { roots, walk, excludes };
        backup::run(&repo, input, &options(), &Progress::default())
            .unwrap()
            .snapshot
            .unwrap()
    };
    back_up(&store, "machine");
    let cloned = store.fork();
    let twins = [back_up(&store, "machine"), back_up(&cloned, "clone")];
    for (key, body) in objects(&cloned) {
        store.overwrite(&key, body);
    }
    let successor = back_up(&store, "machine");
    let findings = |machine: &str| {
        run_check(&try_open(&store, &dir.path().join(machine), &admin()).unwrap())
            .unwrap()
            .findings
    };
    assert!(findings("reader").is_empty(), "{:?}", findings("reader"));
    // Either of the two may be the one that the third follows.
    let repo = try_open(&store, &dir.path().join("reader"), &admin()).unwrap();
    let followed = repo.fetch_outcome(&successor).unwrap().0.outcome.previous;
    let is_followed = |twin: &&SessionId| Some(repo.fetch_outcome(twin).unwrap().0.hash) == followed;
    let victim = twins.iter().find(is_followed).unwrap();
    store
        .remove(&[StoreKey::new(format!("snap/{victim}")).unwrap()])
        .unwrap();
    let found = findings("another reader");
    assert!(found.iter().any(|finding| finding.tamper), "{found:?}");
}

/// X5: an older state of everything, complete in itself.
#[test]
fn machine_that_saw_later_days_notices_an_older_copy_of_the_repository() {
    let golden = Golden::make();
    for machine in ["admin", "writer"] {
        let credential = if machine == "admin" { admin() } else { writer() };
        let repo = try_open(&golden.earlier, &golden.dir.path().join(machine), &credential).unwrap();
        let state = repo.sync_history().unwrap();
        assert!(!state.gaps.is_empty(), "{machine} sees an older copy and says nothing");
        let report = run_check(&repo).unwrap();
        assert!(
            report.findings.iter().any(|finding| finding.tamper),
            "{:?}",
            report.findings
        );
    }
}

/// Anybody who can write to the store can make a file called `drop/…`; only a signed one forgets a snapshot.
#[test]
fn forged_drop_does_not_hide_a_snapshot() {
    let golden = Golden::make();
    let store = golden.store.fork();
    let victim = golden.snapshots[0].id;
    let name = StoreKey::new(format!("drop/{victim}")).unwrap();
    let real = StoreKey::new(format!("drop/{}", golden.dropped)).unwrap();
    for body in [Bytes::from_static(b"x"), store.read(&real, Part::Whole).unwrap()] {
        store.overwrite(&name, body);
        for cache in ["reader", "fresh"] {
            let repo = try_open(&store, &golden.dir.path().join(cache), &admin()).unwrap();
            repo.sync_history().unwrap();
            assert_eq!(dump_tar(&repo, &victim).unwrap(), golden.snapshots[0].tar);
            assert!(matches!(
                find(&repo, &golden.dropped),
                Err(RepoError::NoSuchSnapshot(_))
            ));
            let report = run_check(&repo).unwrap();
            assert!(
                report.findings.iter().any(|finding| finding.object == name.as_str()),
                "{:?}",
                report.findings
            );
        }
    }
}

/// H17: one pack is gone, everything else comes back, and what does not is named.
#[test]
fn missing_data_pack_costs_only_the_files_in_it() {
    let golden = Golden::make();
    let mut bench = Bench::new(&golden);
    let mut partial = 0;
    for (object, (key, _)) in golden.objects.iter().enumerate() {
        if !key.as_str().starts_with("data/") {
            continue;
        }
        bench.with(&Case::Delete { object }, |bench| {
            for expected in &golden.snapshots {
                let target = bench.dir.path().join("partial");
                let report = restore_to(&bench.warm, &expected.id, &golden.source(), &target, false).unwrap();
                let found = tree(&target);
                for (path, bytes) in &found {
                    assert_eq!(Some(bytes), expected.tree.get(path), "{}", path.display());
                }
                assert_eq!(report.failed_total, 0, "{:?}", report.failed);
                assert_eq!(report.damaged.len() as u64, report.damaged_total);
                let missing: Vec<_> = expected.tree.keys().filter(|path| !found.contains_key(*path)).collect();
                // A hard link to a damaged file is missing, too, and both are named.
                assert_eq!(
                    missing.len() as u64,
                    report.damaged_total,
                    "{missing:?} {:?}",
                    report.damaged
                );
                partial += usize::from(!missing.is_empty());
                std::fs::remove_dir_all(&target).unwrap();
            }
            let check = run_check(&bench.warm).unwrap();
            assert!(check.damaged_files_total > 0, "check names no file");
        });
    }
    assert!(partial > 0, "no snapshot lost a file");
}

/// Backs the source up as it is on a new machine, without a parent, after `damage`; returns whether all of it comes back.
fn heals_after(golden: &Golden, damage: &dyn Fn(&MemoryStore)) -> bool {
    let store = golden.store.fork();
    damage(&store);
    let dir = scratch();
    let repo = try_open(&store, &dir.path().join("writer"), &admin()).unwrap();
    let (roots, walk, excludes) = (
        vec![golden.source()],
        WalkOptions::default(),
        ExcludesBuilder::default(),
    );
    let input = backup::Input::Paths { roots, walk, excludes };
    let options = backup::Options {
        parent: backup::ParentChoice::None,
        threads: 1,
        ..options()
    };
    let report = backup::run(&repo, input, &options, &Progress::default()).unwrap();
    drop(repo);
    let repo = try_open(&store, &dir.path().join("reader"), &admin()).unwrap();
    repo.sync_history().unwrap();
    let target = dir.path().join("healed");
    let snapshot = report.snapshot.unwrap();
    match restore_to(&repo, &snapshot, &golden.source(), &target, true) {
        Ok(restored) => restored.damaged_total + restored.failed_total == 0 && tree(&target) == tree(&golden.source()),
        Err(_) => false,
    }
}

fn lose(store: &MemoryStore, golden: &Golden, folder: &str) {
    for (key, _) in golden
        .objects
        .iter()
        .filter(|(key, _)| key.as_str().starts_with(folder))
    {
        store.remove(std::slice::from_ref(key)).unwrap();
    }
}

/// A3, half of it: what a lost or unreadable run described is unknown, so it is stored again.
#[test]
fn next_backup_stores_again_what_lost_runs_described() {
    let golden = Golden::make();
    assert!(heals_after(&golden, &|store| lose(store, &golden, "idx/")));
    assert!(heals_after(&golden, &|store| {
        for (key, body) in golden
            .objects
            .iter()
            .filter(|(key, _)| key.as_str().starts_with("idx/"))
        {
            store.overwrite(key, body.slice(..body.len() - 1));
        }
    }));
}

/// A3, the other half: a pack that the store lost is not deduplicated against. More of it in `lost_packs.rs`.
#[test]
fn next_backup_stores_again_what_lost_packs_held() {
    let golden = Golden::make();
    assert!(heals_after(&golden, &|store| lose(store, &golden, "data/")));
    assert!(heals_after(&golden, &|store| lose(store, &golden, "meta/")));
}

#[test]
#[ignore = "where the time of a case goes"]
fn cost_of_a_case() {
    let golden = Golden::make();
    golden.assert_complete();
    let bench = Bench::new(&golden);
    let rounds = 100;
    let mut spent = [Duration::ZERO; 6];
    for round in 0..rounds {
        let mut mark = Instant::now();
        let mut lap = |at: usize| {
            spent[at] += mark.elapsed();
            mark = Instant::now();
        };
        let cache = bench.dir.path().join(format!("cost{round}"));
        let repo = try_open(&bench.store, &cache, &admin()).unwrap();
        lap(0);
        run_check(&repo).unwrap();
        lap(1);
        drop(repo);
        std::fs::remove_dir_all(&cache).unwrap();
        lap(2);
        run_check(&bench.warm).unwrap();
        lap(3);
        for expected in &golden.snapshots {
            dump_tar(&bench.warm, &expected.id).unwrap();
        }
        lap(4);
        let mut verdict = Verdict::default();
        for expected in &golden.snapshots {
            restore_and_compare(&bench.warm, &golden, expected, bench.dir.path(), &mut verdict);
        }
        lap(5);
    }
    for (what, spent) in [
        "fresh open",
        "fresh check",
        "close",
        "warm check",
        "tar of all",
        "restore of all",
    ]
    .iter()
    .zip(spent)
    {
        eprintln!("{what}: {:.2} ms", spent.as_secs_f64() * 1000.0 / f64::from(rounds));
    }
}
