//! Backing up: walk, compare with the parent, store what is new, build the trees, publish.
//!
//! ```text
//! planner thread   walk + parent trees, side by side   ─┬─ unchanged ─────────────┐
//! worker threads   read, cut, hash, compress, seal  ◄──┴─ to be read ─ finished ─┤
//! this thread      entries in key order ─► tree nodes                          ◄─┘
//! upload threads   seal packs, decode them again, upload
//! ```

pub(in crate::ops) mod blobs;
mod checkpoint;
pub(in crate::ops) mod cut;
mod delta;
mod file;
pub(in crate::ops) mod manifest;
mod plan;
mod work;

use super::{OpError, Progress};
use crate::edge::host;
use crate::pure::chunk::Cutter;
use crate::pure::crypto::Domain;
use crate::pure::format::entry::EntryKind;
use crate::pure::format::manifest::{Manifest, RootKind, SourceProblem, Stats};
use crate::pure::format::outcome::{OutcomeKind, flag};
use crate::pure::format::session::SessionRole;
use crate::pure::id::{SessionId, SourceId};
use crate::pure::tree::build::{BuiltTree, TreeBuilder};
use crate::repo::error::object_error;
use crate::repo::index::{KnownOutcome, Mark};
use crate::repo::locate::IndexLocator;
use crate::repo::lock::HostLock;
use crate::repo::pack_writer::Durable;
use crate::repo::reader::BlobReader;
use crate::repo::session::{OutcomeLabel, Session};
use crate::repo::snapshots::{HistoryState, Snapshot};
use crate::repo::{Repo, RepoError};
use crate::source::files::{ExcludesBuilder, WalkOptions};
use crate::source::stream::Stream;
use blobs::{BlobWorker, NodeWriter};
pub use checkpoint::Interval;
use checkpoint::{Gate, Waited, wait};
use crossbeam_channel::{Receiver, bounded};
use delta::DeltaEncoder;
use file::{Finished, Shared};
use manifest::Draft;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Source problems named in the manifest …
const PROBLEMS_MAX: usize = 1000;
/// … with this much text in all: a manifest must stay far below its 16 MiB, whatever paths somebody makes up.
const PROBLEM_BYTES_MAX: usize = 1 << 20;
/// Longest path and longest text of one problem, bytes.
const PROBLEM_PATH_MAX: usize = 4096;
const PROBLEM_TEXT_MAX: usize = 1024;
/// Entries that may wait between planner and tree builder.
const ORDER_MAX: usize = 1024;
/// How often this thread looks at the session's duties, and whether somebody wants a stop.
const TICK: Duration = Duration::from_secs(1);
/// As often, where checkpoints are wanted in quick succession.
const TICK_MIN: Duration = Duration::from_millis(10);
/// How long threads have to come to an end after a stop was asked for. Those that are in a read that does not return
/// are left behind.
const GRACE: Duration = Duration::from_secs(2);

/// What is backed up.
pub enum Input {
    /// Roots on this machine, absolute.
    Paths {
        roots: Vec<PathBuf>,
        walk: WalkOptions,
        excludes: ExcludesBuilder,
    },
    /// One stream of bytes under a name.
    Stream(Stream),
}

impl Input {
    /// The same once more; not of a stream, which is gone when it has been read.
    fn again(&self) -> Option<Input> {
        match self {
            Input::Stream(_) => None,
            Input::Paths { roots, walk, excludes } => Some(Input::Paths {
                roots: roots.clone(),
                walk: walk.clone(),
                excludes: excludes.clone(),
            }),
        }
    }
}

/// Which snapshot is compared against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ParentChoice {
    /// The newest of the same source, and the checkpoints after it.
    #[default]
    Newest,
    /// This one.
    Given(SessionId),
    /// None: everything is read.
    None,
}

/// How to back up.
#[derive(Clone, Debug)]
pub struct Options {
    pub host: String,
    /// Name of the source; sources with one host and name are versions of each other.
    pub label: String,
    pub tags: Vec<String>,
    pub parent: ParentChoice,
    pub threads: usize,
    pub uploads: usize,
    pub zstd_level: Option<u32>,
    /// Whether chunks that resemble those of the previous version of their file are stored as deltas.
    pub deltas: bool,
    /// When a run over paths publishes what it has so far; `None`: never. A stream is one piece and has no checkpoints.
    pub checkpoints: Option<Interval>,
    pub dry_run: bool,
}

/// What a backup did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// `None` after a dry run.
    pub snapshot: Option<SessionId>,
    /// The complete snapshot that was compared with.
    pub parent: Option<SessionId>,
    /// Checkpoints of interrupted runs that were compared with as well.
    pub resumed: Vec<SessionId>,
    /// Checkpoints that this run has published.
    pub checkpoints: Vec<SessionId>,
    pub stats: Stats,
    /// Chunks that are stored as deltas, of those that are new.
    pub deltas: u64,
    pub problems_total: u64,
    pub problems: Vec<SourceProblem>,
    /// Whether anything that was asked for is missing from the snapshot.
    pub incomplete: bool,
    /// Gaps in the history of the repository, in words.
    pub gaps: Vec<String>,
    pub notes: Vec<String>,
}

/// Names the source: the same host and label are the same source on every night (format-spec chapter on manifests).
pub fn source_id(repo: &Repo, host: &str, label: &str) -> Result<SourceId, RepoError> {
    let mut text = b"larder source\0".to_vec();
    text.extend_from_slice(host.as_bytes());
    text.push(0);
    text.extend_from_slice(label.as_bytes());
    let id = repo
        .keys
        .meta_id(&text)
        .map_err(|error| object_error("naming", "the source")(error.into()))?;
    let mut short = [0; 16];
    short.copy_from_slice(&id.0[..16]);
    Ok(SourceId(short))
}

/// Problems met on the way, from any thread.
#[derive(Default)]
pub(crate) struct Problems {
    inner: Mutex<ProblemList>,
}

#[derive(Default)]
struct ProblemList {
    total: u64,
    bytes: usize,
    named: Vec<SourceProblem>,
}

impl Problems {
    pub(crate) fn add(&self, mut path: Vec<u8>, code: impl Into<String>, text: impl Into<String>) {
        let (code, mut text) = (code.into(), text.into());
        if path.len() > PROBLEM_PATH_MAX {
            path.truncate(PROBLEM_PATH_MAX);
            path.extend_from_slice("…".as_bytes());
        }
        if text.len() > PROBLEM_TEXT_MAX {
            text.truncate(text.floor_char_boundary(PROBLEM_TEXT_MAX));
            text.push('…');
        }
        let mut inner = self.inner.lock();
        inner.total += 1;
        let bytes = path.len() + code.len() + text.len();
        if inner.named.len() < PROBLEMS_MAX && inner.bytes + bytes <= PROBLEM_BYTES_MAX {
            inner.bytes += bytes;
            inner.named.push(SourceProblem { path, code, text });
        }
    }

    /// Returns how many there were and the first of them.
    pub(crate) fn so_far(&self) -> (u64, Vec<SourceProblem>) {
        let list = self.inner.lock();
        (list.total, list.named.clone())
    }
}

/// What travels from planner and workers to the tree builder, in key order.
pub(crate) enum Slot {
    RootStart,
    /// Entries that need no work: key, value, file bytes.
    Ready(Vec<(Vec<u8>, Vec<u8>, u64)>),
    /// An entry that a worker is finishing.
    Waiting(Vec<u8>, Receiver<Result<Option<Finished>, RepoError>>),
    RootEnd,
    /// A root that could not be opened; the problem has been noted.
    RootUnopened,
    /// The planner could not go on.
    Failed(OpError),
}

/// Backs up and publishes one snapshot.
///
/// # Errors
/// Any repository error: nothing is published then. Source problems are in the report.
pub fn run(repo: &Repo, input: Input, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    let source = source_id(repo, &options.host, &options.label)?;
    let _overlap =
        HostLock::try_take(&repo.state_dir.join(format!("source-{source}.lock")))?.ok_or(RepoError::Overlap)?;
    let listed = Instant::now();
    let history = if options.dry_run {
        repo.sync_history()?
    } else {
        repo.sync_history_to_write()?
    };
    let mut report = Report {
        gaps: history.gaps.clone(),
        ..Report::default()
    };
    if !history.gaps.is_empty() || !history.broken.is_empty() {
        // With an outcome goes the word that its runs count.
        repo.index.set_incomplete();
    }
    report.notes.extend(describe(&history));
    report.notes.extend(describe_known_absent(repo));
    let mut parents = choose_parents(repo, &source, &options.parent)?;
    report
        .notes
        .extend(describe_unreadable(repo, &source, options, &parents)?);
    if options.dry_run {
        return plan::dry_run(repo, input, &parents, report, progress);
    }
    let begin = |parents: &[Snapshot]| {
        let parents = parents.iter().map(|parent| parent.id);
        Session::begin(repo, parents, SessionRole::Backup, options.uploads, listed)
    };
    let mut session = begin(&parents)?;
    if session.parents().len() < parents.len() && options.parent == ParentChoice::Newest {
        // One was dropped since this machine last looked. Going without it would read again what it holds.
        let others = choose_parents(repo, &source, &options.parent)?;
        if others.iter().any(|other| !session.parents().contains(&other.id)) {
            session.abandon();
            parents = others;
            session = begin(&parents)?;
        }
    }
    report.notes.extend(session.take_notes());
    parents.retain(|parent| session.parents().contains(&parent.id));
    report.compared_with(&parents);
    for checkpoint in &report.resumed {
        let id = checkpoint.short();
        report
            .notes
            .push(format!("goes on from checkpoint {id} of a run that did not end"));
    }
    let pass = Pass {
        repo,
        options,
        source,
        progress,
        interval: options.checkpoints,
        is_last: false,
    };
    let outcome = write(&pass, &mut session, input, parents, &mut report.checkpoints);
    report.notes.extend(describe_absent(&session.absent_packs()));
    let (durable, manifest) = match outcome {
        Ok(whole) => whole,
        Err(error) => {
            // The first repository error is the cause; what the threads saw afterwards are its consequences.
            let cause = session.writer().take_cause();
            session.abandon();
            if let Some(last) = report.checkpoints.last() {
                let id = last.short();
                progress.note(format!(
                    "checkpoint {id} holds what was done before; the next run goes on from it"
                ));
            }
            return Err(cause.map_or(error, OpError::Repo));
        }
    };
    publish(repo, session, durable, manifest, report)
}

/// Commits.
fn publish(
    repo: &Repo,
    session: Session<'_>,
    durable: Durable,
    manifest: Manifest,
    mut report: Report,
) -> Result<Report, OpError> {
    let incomplete = manifest.problems_total > 0;
    report.deltas = session.writer().counts().deltas.load(Ordering::Relaxed);
    let label = OutcomeLabel {
        kind: OutcomeKind::Commit,
        source: Some(manifest.source.id),
        flags: if incomplete { flag::ERRORS } else { 0 },
    };
    let published = session.publish(durable, &manifest, &label)?;
    report.notes.extend(published.notes);
    report.stats = manifest.stats;
    report.stats.bytes_stored = published.bytes_stored;
    report.stats.requests = repo.store.requests();
    report.snapshot = Some(published.session);
    report.problems_total = manifest.problems_total;
    report.problems = manifest.problems;
    report.incomplete = incomplete;
    Ok(report)
}

impl Report {
    fn compared_with(&mut self, parents: &[Snapshot]) {
        let is_whole = |parent: &&Snapshot| !parent.is_partial();
        self.parent = parents.iter().find(is_whole).map(|parent| parent.id);
        let partial = parents.iter().filter(|parent| parent.is_partial());
        self.resumed = partial.map(|parent| parent.id).collect();
    }
}

fn describe(history: &HistoryState) -> Vec<String> {
    let broken = history
        .broken
        .iter()
        .map(|(name, error)| format!("{name} cannot be used: {}", super::check::chain(error)));
    broken
        .chain(history.forks.iter().cloned())
        .chain(history.notes.iter().cloned())
        .collect()
}

/// Packs that are known to be missing or damaged before the run begins, for instance from a check on this machine.
/// An index that cannot say it has other ways to complain.
fn describe_known_absent(repo: &Repo) -> Option<String> {
    repo.index.has_absent().ok().filter(|any| *any)?;
    let packs = repo.index.stats().ok()?.packs_absent;
    Some(format!(
        "{packs} packs of this repository are known to be missing or damaged: what this backup needs of them is stored \
         again; `larder repo check --read-data` says which files are affected"
    ))
}

/// A writer that cannot read back what it has written knows only the snapshots that it has made itself, on this machine.
fn describe_unreadable(
    repo: &Repo,
    source: &SourceId,
    options: &Options,
    parents: &[Snapshot],
) -> Result<Option<String>, RepoError> {
    if !repo.is_write_only() || !parents.is_empty() || options.parent == ParentChoice::None {
        return Ok(None);
    }
    let is_before = |known: &KnownOutcome| known.mark == Mark::None && known.source.as_ref() == Some(source);
    Ok(repo.index.outcomes()?.iter().any(is_before).then(|| {
        "this key cannot read the earlier snapshots of this source, and this machine has kept none: every file is read; what is \
         stored is not uploaded again"
            .into()
    }))
}

fn describe_absent(packs: &[String]) -> Option<String> {
    let first = packs.first()?;
    let others = match packs.len() - 1 {
        0 => String::new(),
        others => format!(" (and {others} more packs)"),
    };
    Some(format!(
        "{first}{others}: what this backup needs of it was stored again; older snapshots may be damaged, \
         `larder repo check` says which"
    ))
}

/// Chooses what to compare with; the first in which an entry is unchanged counts. A parent that cannot be opened costs
/// time, not the backup.
fn choose_parents(repo: &Repo, source: &SourceId, choice: &ParentChoice) -> Result<Vec<Snapshot>, OpError> {
    match choice {
        ParentChoice::None => return Ok(Vec::new()),
        ParentChoice::Given(session) => return Ok(repo.snapshot(session).ok().into_iter().collect()),
        ParentChoice::Newest => {}
    }
    let mut known: Vec<KnownOutcome> = repo.outcomes_by_age()?.into_iter().map(|aged| aged.outcome).collect();
    known.retain(|known| known.mark == Mark::None && known.source.as_ref() == Some(source));
    let whole = known.iter().rposition(|known| known.kind == OutcomeKind::Commit);
    // A complete snapshot has all that the checkpoints before it had.
    let newer = known[whole.map_or(0, |whole| whole + 1)..]
        .iter()
        .filter(|known| known.kind == OutcomeKind::Checkpoint);
    let checkpoints: Vec<Snapshot> = newer
        .rev()
        .filter_map(|known| repo.snapshot(&known.session).ok())
        .collect();
    // The newest; and the largest, because a run that was interrupted again may not have come as far as the one before.
    let size = |snapshot: &&Snapshot| snapshot.manifest.roots.iter().map(|root| root.bytes).sum::<u64>();
    let largest = checkpoints.iter().rev().max_by_key(size);
    let mut parents: Vec<Snapshot> = checkpoints.first().into_iter().chain(largest).cloned().collect();
    parents.dedup_by_key(|parent| parent.id);
    parents.extend(whole.and_then(|whole| repo.snapshot(&known[whole].session).ok()));
    Ok(parents)
}

/// Everything between registration and publication: one pass through the source, or two.
fn write(
    first: &Pass<'_>,
    session: &mut Session<'_>,
    input: Input,
    mut parents: Vec<Snapshot>,
    checkpoints: &mut Vec<SessionId>,
) -> Result<(Durable, Manifest), OpError> {
    // What is read without a parent needs no second look, and a stream cannot have one.
    let again = input.again().filter(|_| !parents.is_empty());
    let first = Pass {
        is_last: again.is_none(),
        ..*first
    };
    let mut whole = first.run(session, input, &parents, checkpoints)?;
    if whole.is_none()
        && let Some(input) = again
    {
        // Entries that were taken over before this was known may refer to what is absent. Now they are looked up; what was
        // read in the first pass is known. What the last checkpoint holds need not even be read. It stays pinned as long as
        // no other takes its place, so this pass makes none.
        let own = checkpoints.last().and_then(|last| first.repo.snapshot(last).ok());
        parents.splice(..0, own);
        let second = Pass {
            interval: None,
            is_last: true,
            ..first
        };
        whole = second.run(session, input, &parents, checkpoints)?;
    }
    whole.ok_or_else(|| RepoError::Internal("the last pass through the source was not the last".into()).into())
}

/// One pass through the source.
struct Pass<'a> {
    repo: &'a Repo,
    options: &'a Options,
    source: SourceId,
    progress: &'a Progress,
    /// When it makes checkpoints.
    interval: Option<Interval>,
    /// Whether there can be no other.
    is_last: bool,
}

impl Pass<'_> {
    /// Reads what has changed and builds the trees. `None`: packs were found absent, so another pass has to look at what
    /// this one has taken over.
    fn run(
        &self,
        session: &mut Session<'_>,
        input: Input,
        parents: &[Snapshot],
        checkpoints: &mut Vec<SessionId>,
    ) -> Result<Option<(Durable, Manifest)>, OpError> {
        let Pass {
            repo,
            options,
            source,
            progress,
            interval,
            ..
        } = *self;
        let start = host::now();
        let (chunker, profile) = repo.config.chunker().ok_or_else(|| {
            RepoError::Internal("the configuration has no chunker profile that this version knows".into())
        })?;
        let gear = repo
            .keys
            .gear()
            .map_err(|error| object_error("using", "the chunking key")(error.into()))?;
        let cutter = Cutter::new(profile, gear);
        let level = options.zstd_level.unwrap_or(repo.config.zstd_level);
        let threads = options.threads.max(1);
        let (offers, chunk_tasks) = bounded(threads);
        let (job_sender, jobs) = bounded::<work::Job>(64 * threads);
        let (order_sender, order) = bounded::<Slot>(ORDER_MAX);
        let problems = Problems::default();
        let shared = Shared {
            cutter: &cutter,
            params: repo.config.tree,
            offers,
            buffers: Mutex::new(Vec::new()),
            progress,
            problems: &problems,
            gate: Gate::new(interval.filter(|_| !matches!(input, Input::Stream(_)))),
            stop: AtomicBool::new(false),
            stream_failure: Mutex::new(None),
        };
        let counts = plan::Counts::default();
        let parent_nodes = Arc::new(Mutex::new(HashSet::new()));
        let parent_trees: Vec<plan::Parent<'_>> = parents
            .iter()
            .map(|parent| plan::Parent::open(repo, parent))
            .collect::<Result<_, _>>()?;
        let (kind, roots, stopper) = match &input {
            Input::Paths { roots, .. } => (
                RootKind::Posix,
                roots.iter().map(|root| plan::bytes_of(root)).collect(),
                None,
            ),
            Input::Stream(stream) => (RootKind::StreamSet, vec![Vec::new()], stream.stopper()),
        };
        let draft = Draft {
            repo,
            source,
            host: &options.host,
            label: &options.label,
            tags: &options.tags,
            start,
            kind,
            roots,
            chunker,
            problems: &problems,
            counts: &counts,
        };
        // Who cannot read what is stored cannot say how something differs from it.
        let deltas = options.deltas && repo.keys.can_open(Domain::Data);
        let bases = deltas.then(|| BlobReader::new(repo, Box::new(IndexLocator)));
        let bases = bases.as_ref().filter(|_| !parents.is_empty());
        let writer = session.current_writer();
        let alive = AtomicUsize::new(threads + 1);
        let built: Result<_, OpError> = std::thread::scope(|scope| {
            let mut workers = Vec::with_capacity(threads);
            for _ in 0..threads {
                let (jobs, chunk_tasks) = (jobs.clone(), chunk_tasks.clone());
                let (shared, problems, writer, alive) = (&shared, &problems, &*writer, &alive);
                let stream_reading = &counts.bytes_read;
                workers.push(scope.spawn(move || {
                    let _alive = Alive(alive);
                    let deltas = bases.map(|bases| DeltaEncoder::new(bases, &profile));
                    let worker = BlobWorker::new(&repo.keys, writer, level).with_deltas(deltas);
                    work::run(worker, shared, &jobs, &chunk_tasks, problems, stream_reading);
                }));
            }
            drop(chunk_tasks);
            drop(jobs);
            let planner = {
                let (parent_nodes, problems, counts, alive) = (parent_nodes.clone(), &problems, &counts, &alive);
                let parents = parent_trees.as_slice();
                scope.spawn(move || {
                    let _alive = Alive(alive);
                    let plan = plan::Planner {
                        repo,
                        parents,
                        parent_nodes,
                        problems,
                        counts,
                        progress,
                        numbers: AtomicU64::new(0),
                        deltas,
                    };
                    plan.run(input, &job_sender, &order_sender);
                })
            };
            let worker = BlobWorker::new(&repo.keys, &writer, level);
            let mut assembly = Assembly {
                repo,
                session,
                shared: &shared,
                draft: &draft,
                nodes: NodeWriter::new(&repo.index, worker, parent_nodes, &repo.nodes, progress),
                trees: Vec::new(),
                builder: None,
                last_key: None,
                ticked: Instant::now(),
                tick: interval.map_or(TICK, |interval| interval.time.clamp(TICK_MIN, TICK)),
                checkpoints,
            };
            let mut result = assembly.build(&order);
            // Lets the planner and the workers run out when the tree could not be built.
            drop(order);
            if result.is_err() {
                shared.stop.store(true, Ordering::Release);
                if let Some(stopper) = &stopper {
                    stopper.stop();
                }
                if progress.is_cancelled() {
                    leave_stuck_threads(assembly.session, &alive, progress);
                }
            }
            if planner.join().is_err() {
                result = Err(RepoError::Internal("the planning thread panicked".into()).into());
            }
            let panicked = workers.into_iter().filter_map(|worker| worker.join().err()).count();
            if panicked > 0 {
                result = Err(RepoError::Internal(format!("{panicked} worker threads panicked")).into());
            }
            result?;
            assembly.nodes.flush();
            Ok((assembly.trees, assembly.nodes.inner))
        });
        if !matches!(built, Err(OpError::Interrupted))
            && let Some(failure) = shared.stream_failure.lock().take()
        {
            return Err(failure.into());
        }
        let (trees, inner) = built?;
        if !self.is_last && session.met_absent_packs() {
            return Ok(None);
        }
        let durable = session.make_durable()?;
        let parents = session.parents().to_vec();
        let manifest = draft.manifest(&trees, &parents, None, &inner, session.writer().counts());
        Ok(Some((durable, manifest)))
    }
}

/// Counts a thread of the run as long as it lives.
struct Alive<'a>(&'a AtomicUsize);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// After a stop was asked for: a thread may be in a read that never returns (a pipe without a writer, a dead network
/// file system), and threads cannot be ended from outside. Then the session is given up from here, which loses nothing
/// that is durable, and whoever asked for the stop may end the process.
fn leave_stuck_threads(session: &mut Session<'_>, alive: &AtomicUsize, progress: &Progress) {
    const LOOK: Duration = Duration::from_millis(20);
    let asked = Instant::now();
    while alive.load(Ordering::Acquire) > 0 {
        if asked.elapsed() >= GRACE {
            session.give_up();
            progress.let_go();
            return;
        }
        std::thread::sleep(LOOK);
    }
}

/// Takes entries in key order and builds one tree for each root; the session's duties are seen to in between.
struct Assembly<'a, 'r> {
    repo: &'a Repo,
    session: &'a mut Session<'r>,
    shared: &'a Shared<'a>,
    draft: &'a Draft<'a>,
    nodes: NodeWriter<'a>,
    /// Of the roots that are complete; `None` for one that could not be opened.
    trees: Vec<Option<BuiltTree>>,
    builder: Option<TreeBuilder>,
    /// The last key in the open tree.
    last_key: Option<Vec<u8>>,
    ticked: Instant,
    tick: Duration,
    checkpoints: &'a mut Vec<SessionId>,
}

impl Assembly<'_, '_> {
    fn build(&mut self, order: &Receiver<Slot>) -> Result<(), OpError> {
        let split_key = self
            .repo
            .keys
            .split_key()
            .map_err(|error| object_error("using", "the tree key")(error.into()))?
            .clone();
        while let Some(slot) = self.next(order)? {
            match slot {
                Slot::RootStart => {
                    self.builder = Some(TreeBuilder::new(self.repo.config.tree, split_key.clone()));
                    self.last_key = None;
                }
                Slot::Ready(entries) => {
                    for (key, value, bytes) in entries {
                        self.push(key, &value, bytes)?;
                    }
                }
                Slot::Waiting(key, reply) => {
                    let ended_early = || RepoError::Internal("a worker thread ended early".into());
                    let finished = self.next(&reply)?.ok_or_else(ended_early)?;
                    if let Some(finished) = finished? {
                        self.push(key, &finished.value, finished.file_bytes)?;
                    }
                }
                Slot::RootEnd => {
                    let builder = self
                        .builder
                        .take()
                        .ok_or_else(|| RepoError::Internal("a root ended twice".into()))?;
                    self.trees.push(Some(builder.finish(&mut self.nodes)?));
                }
                Slot::RootUnopened => self.trees.push(None),
                Slot::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for what comes next, and does meanwhile what has to be done. `None`: nothing comes any more.
    fn next<T>(&mut self, receiver: &Receiver<T>) -> Result<Option<T>, OpError> {
        loop {
            if self.shared.progress.is_cancelled() {
                return Err(OpError::Interrupted);
            }
            if self.ticked.elapsed() >= self.tick {
                self.session.tick()?;
                self.shared.gate.close_when_due();
                self.ticked = Instant::now();
            }
            match wait(receiver, &self.shared.gate, self.tick) {
                Waited::Arrived(value) => return Ok(Some(value)),
                Waited::Nothing => {}
                Waited::Quiet => self.checkpoint()?,
                Waited::Disconnected if self.shared.progress.is_cancelled() => return Err(OpError::Interrupted),
                Waited::Disconnected => return Ok(None),
            }
        }
    }

    /// Adds an entry; one that the format has no room for is reported and left out.
    fn push(&mut self, key: Vec<u8>, value: &[u8], file_bytes: u64) -> Result<(), OpError> {
        let builder = self
            .builder
            .as_mut()
            .ok_or_else(|| RepoError::Internal("an entry outside of a root".into()))?;
        if let Err(limit) = builder.check(&key, value, file_bytes) {
            self.shared
                .problems
                .add(key, "limit", format!("it cannot be stored: {limit}"));
            return Ok(());
        }
        builder.push(&key, value, file_bytes, &mut self.nodes)?;
        self.last_key = Some(key);
        Ok(())
    }

    /// Publishes what has been taken in so far, and lets the workers go on. Nothing else is under way: see
    /// `checkpoint`.
    fn checkpoint(&mut self) -> Result<(), OpError> {
        let mut trees = self.trees.clone();
        let mut resume = None;
        // A root without entries is not in it: it would look like an empty directory.
        if let (Some(builder), Some(last_key)) = (&self.builder, &self.last_key) {
            trees.push(Some(builder.snapshot(&mut self.nodes)?));
            resume = Some(last_key.clone());
        }
        if trees.iter().any(Option::is_some) {
            self.publish_so_far(&trees, resume)?;
        }
        self.shared.gate.open();
        Ok(())
    }

    fn publish_so_far(&mut self, trees: &[Option<BuiltTree>], resume: Option<Vec<u8>>) -> Result<(), OpError> {
        self.nodes.flush();
        let (draft, inner) = (self.draft, &self.nodes.inner);
        let parents = self.session.parents().to_vec();
        let ended = self
            .session
            .checkpoint(draft.source, flags(draft.problems), |written| {
                Ok::<_, RepoError>(draft.manifest(trees, &parents, resume, inner, written))
            })?;
        self.checkpoints.push(ended);
        Ok(())
    }
}

fn flags(problems: &Problems) -> u64 {
    if problems.so_far().0 > 0 { flag::ERRORS } else { 0 }
}

/// Whether an entry is a regular file.
pub(crate) fn is_file(kind: &EntryKind) -> bool {
    matches!(kind, EntryKind::File { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_do_not_outgrow_the_manifest_however_long_their_paths_are() {
        let problems = Problems::default();
        for number in 0..2000 {
            problems.add(
                vec![b'x'; 60_000],
                "changed",
                format!("{number} {}", "ä".repeat(40_000)),
            );
        }
        let (total, named) = problems.so_far();
        assert_eq!(total, 2000);
        assert!(named.len() > 100);
        let bytes: usize = named
            .iter()
            .map(|problem| problem.path.len() + problem.text.len())
            .sum();
        assert!(bytes <= PROBLEM_BYTES_MAX, "{bytes}");
        let problems = Problems::default();
        problems.add(b"/short".to_vec(), "changed", "text");
        assert_eq!(problems.so_far().1[0].path, b"/short");
    }
}
