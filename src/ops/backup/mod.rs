//! Backing up: walk, compare with the parent, store what is new, build the trees, publish.
//!
//! ```text
//! planner thread   walk + parent tree, side by side   ─┬─ unchanged ─────────────┐
//! worker threads   read, cut, hash, compress, seal  ◄──┴─ to be read ─ finished ─┤
//! this thread      entries in key order ─► tree nodes                          ◄─┘
//! upload threads   seal packs, decode them again, upload
//! ```

mod blobs;
mod cut;
mod file;
mod plan;
mod work;

use super::look::{Appetite, open_reader};
use super::{OpError, Progress};
use crate::edge::host;
use crate::pure::chunk::Cutter;
use crate::pure::format::entry::EntryKind;
use crate::pure::format::manifest::{Hint, Manifest, Root, RootKind, Source, SourceProblem, Stats};
use crate::pure::format::name::PackKind;
use crate::pure::format::outcome::{OutcomeKind, flag};
use crate::pure::format::session::SessionRole;
use crate::pure::id::{ChunkId, SessionId, SourceId};
use crate::pure::tree::build::{BuiltTree, TreeBuilder};
use crate::repo::error::object_error;
use crate::repo::lock::HostLock;
use crate::repo::session::{OutcomeLabel, Session};
use crate::repo::snapshots::{HistoryState, Snapshot};
use crate::repo::{Repo, RepoError};
use crate::source::files::{ExcludesBuilder, WalkOptions};
use crate::source::stream::Stream;
use blobs::{BlobWorker, NodeWriter};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use file::{Finished, Shared};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Inner nodes whose place is written into the manifest.
const HINTS_MAX: usize = 512;
/// Source problems named in the manifest …
const PROBLEMS_MAX: usize = 1000;
/// … with this much text in all: a manifest must stay far below its 16 MiB, whatever paths somebody makes up.
const PROBLEM_BYTES_MAX: usize = 1 << 20;
/// Longest path and longest text of one problem, bytes.
const PROBLEM_PATH_MAX: usize = 4096;
const PROBLEM_TEXT_MAX: usize = 1024;
/// Entries that may wait between planner and tree builder.
const ORDER_MAX: usize = 1024;

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

/// Which snapshot is compared against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ParentChoice {
    /// The newest of the same source.
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
    pub dry_run: bool,
}

/// What a backup did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// `None` after a dry run.
    pub snapshot: Option<SessionId>,
    pub parent: Option<SessionId>,
    pub stats: Stats,
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

    /// Takes how many there were, and those that are named.
    pub(crate) fn take(&self) -> (u64, Vec<SourceProblem>) {
        let list = std::mem::take(&mut *self.inner.lock());
        (list.total, list.named)
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
    let history = repo.sync_history()?;
    let mut report = Report {
        gaps: history.gaps.clone(),
        ..Report::default()
    };
    report.notes.extend(describe(&history));
    let parent = choose_parent(repo, &source, &options.parent)?;
    if options.dry_run {
        return plan::dry_run(repo, input, parent, report, progress);
    }
    let mut session = Session::begin(
        repo,
        parent.as_ref().map(|parent| parent.id),
        SessionRole::Backup,
        options.uploads,
        listed,
    )?;
    report.notes.extend(session.take_notes());
    let parent = parent.filter(|parent| session.parent() == Some(parent.id));
    report.parent = parent.as_ref().map(|parent| parent.id);
    let outcome = write(repo, &mut session, input, options, parent.as_ref(), source, progress);
    match outcome {
        Ok((manifest, hints)) => publish(repo, session, manifest, hints, source, report),
        Err(error) => {
            // The first repository error is the cause; what the threads saw afterwards are its consequences.
            let cause = session.writer().take_cause();
            session.abandon();
            Err(cause.map_or(error, OpError::Repo))
        }
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

fn choose_parent(repo: &Repo, source: &SourceId, choice: &ParentChoice) -> Result<Option<Snapshot>, OpError> {
    let wanted = match choice {
        ParentChoice::None => None,
        ParentChoice::Given(session) => Some(*session),
        ParentChoice::Newest => repo
            .outcomes_by_age()?
            .into_iter()
            .map(|aged| aged.outcome)
            .filter(|known| !known.dropped && known.source.as_ref() == Some(source))
            .filter(|known| matches!(known.kind, OutcomeKind::Commit | OutcomeKind::Checkpoint))
            .next_back()
            .map(|known| known.session),
    };
    match wanted {
        None => Ok(None),
        // A parent that cannot be opened costs time, not the backup.
        Some(session) => Ok(repo.snapshot(&session).ok()),
    }
}

/// Everything between registration and publication.
fn write(
    repo: &Repo,
    session: &mut Session<'_>,
    input: Input,
    options: &Options,
    parent: Option<&Snapshot>,
    source: SourceId,
    progress: &Progress,
) -> Result<(Manifest, Vec<ChunkId>), OpError> {
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
    let (offers, chunk_tasks) = bounded(2 * threads);
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
        stop: AtomicBool::new(false),
        stream_failure: Mutex::new(None),
    };
    let counts = plan::Counts::default();
    let parent_nodes = Arc::new(Mutex::new(HashSet::new()));
    let readers = std::sync::atomic::AtomicUsize::new(0);
    // The parent's nodes come from the local cache; where it has lost them, from the repository.
    let parent_reader = match parent {
        Some(parent) => Some(open_reader(repo, parent, Appetite::Little)?),
        None => None,
    };
    let stream_name = match &input {
        Input::Stream(stream) => Some(stream.name().to_vec()),
        Input::Paths { .. } => None,
    };
    let roots: Vec<Vec<u8>> = match &input {
        Input::Paths { roots, .. } => roots.iter().map(|root| plan::bytes_of(root)).collect(),
        Input::Stream(stream) => vec![stream.name().to_vec()],
    };
    let mut trees: Vec<BuiltTree> = Vec::new();
    let mut inner = Vec::new();
    let writer = session.writer_arc();
    let built: Result<(), OpError> = std::thread::scope(|scope| {
        let mut workers = Vec::with_capacity(threads);
        for _ in 0..threads {
            let (jobs, chunk_tasks) = (jobs.clone(), chunk_tasks.clone());
            let (shared, problems, readers, writer) = (&shared, &problems, &readers, &*writer);
            let stream_reading = &counts.bytes_read;
            workers.push(scope.spawn(move || {
                let worker = BlobWorker::new(&repo.keys, writer, level);
                work::run(worker, shared, &jobs, &chunk_tasks, readers, problems, stream_reading);
            }));
        }
        drop(chunk_tasks);
        drop(jobs);
        let planner = {
            let (parent_nodes, problems, counts) = (parent_nodes.clone(), &problems, &counts);
            let reader = parent_reader.as_ref();
            scope.spawn(move || {
                let plan = plan::Planner {
                    repo,
                    parent,
                    reader,
                    parent_nodes,
                    problems,
                    counts,
                    progress,
                };
                plan.run(input, &job_sender, &order_sender);
            })
        };
        let worker = BlobWorker::new(&repo.keys, &writer, level);
        let mut nodes = NodeWriter::new(worker, parent_nodes, &repo.nodes, progress);
        let result = build_trees(repo, session, &order, &mut nodes, &mut trees, &shared);
        // Lets the planner and the workers run out when the tree could not be built.
        drop(order);
        if result.is_err() {
            shared.stop.store(true, Ordering::Release);
        }
        if planner.join().is_err() {
            return Err(RepoError::Internal("the planning thread panicked".into()).into());
        }
        let panicked = workers.into_iter().filter_map(|worker| worker.join().err()).count();
        if panicked > 0 {
            return Err(RepoError::Internal(format!("{panicked} worker threads panicked")).into());
        }
        inner = std::mem::take(&mut nodes.inner);
        result?;
        nodes.flush();
        Ok(())
    });
    if let Some(failure) = shared.stream_failure.lock().take() {
        return Err(failure.into());
    }
    built?;
    let (problems_total, mut problems) = problems.take();
    problems.sort_by(|a, b| a.path.cmp(&b.path));
    let kind = if stream_name.is_some() {
        RootKind::StreamSet
    } else {
        RootKind::Posix
    };
    let roots = roots
        .into_iter()
        .zip(&trees)
        .map(|(path, tree)| Root {
            path: if stream_name.is_some() { Vec::new() } else { path },
            kind,
            node: tree.root,
            height: tree.height,
            entries: tree.entries,
            bytes: tree.bytes,
            chunker,
        })
        .collect();
    let mut tags = options.tags.clone();
    tags.sort();
    tags.dedup();
    let manifest = Manifest {
        source: Source {
            id: source,
            kind: kind as u64,
            host: options.host.clone(),
            user: host::user_name(),
            label: options.label.clone(),
        },
        start,
        end: host::now(),
        roots,
        tags,
        parents: parent.map(|parent| parent.id).into_iter().collect(),
        users: BTreeMap::new(),
        groups: BTreeMap::new(),
        problems_total,
        problems,
        hints: Vec::new(),
        stats: counts.stats(),
        resume: None,
        tool: concat!("larder ", env!("CARGO_PKG_VERSION")).into(),
        options_digest: None,
    };
    Ok((manifest, inner))
}

/// Takes entries in key order and builds one tree for each root.
fn build_trees(
    repo: &Repo,
    session: &mut Session<'_>,
    order: &Receiver<Slot>,
    nodes: &mut NodeWriter<'_>,
    trees: &mut Vec<BuiltTree>,
    shared: &Shared<'_>,
) -> Result<(), OpError> {
    let progress = shared.progress;
    const TICK: Duration = Duration::from_secs(1);
    let split_key = repo
        .keys
        .split_key()
        .map_err(|error| object_error("using", "the tree key")(error.into()))?
        .clone();
    let mut builder: Option<TreeBuilder> = None;
    let mut ticked = Instant::now();
    loop {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        if ticked.elapsed() >= TICK {
            session.tick()?;
            ticked = Instant::now();
        }
        let slot = match order.recv_timeout(TICK) {
            Ok(slot) => slot,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        match slot {
            Slot::RootStart => builder = Some(TreeBuilder::new(repo.config.tree, split_key.clone())),
            Slot::Ready(entries) => {
                let builder = builder
                    .as_mut()
                    .ok_or_else(|| RepoError::Internal("an entry outside of a root".into()))?;
                for (key, value, bytes) in entries {
                    push(builder, &key, &value, bytes, nodes, shared.problems)?;
                }
            }
            Slot::Waiting(key, reply) => {
                let finished = loop {
                    match reply.recv_timeout(TICK) {
                        Ok(finished) => break finished?,
                        Err(RecvTimeoutError::Timeout) if progress.is_cancelled() => return Err(OpError::Interrupted),
                        Err(RecvTimeoutError::Timeout) => session.tick()?,
                        Err(RecvTimeoutError::Disconnected) if progress.is_cancelled() => {
                            return Err(OpError::Interrupted);
                        }
                        Err(RecvTimeoutError::Disconnected) => {
                            return Err(RepoError::Internal("a worker thread ended early".into()).into());
                        }
                    }
                };
                if let Some(finished) = finished {
                    let builder = builder
                        .as_mut()
                        .ok_or_else(|| RepoError::Internal("an entry outside of a root".into()))?;
                    push(
                        builder,
                        &key,
                        &finished.value,
                        finished.file_bytes,
                        nodes,
                        shared.problems,
                    )?;
                }
            }
            Slot::RootEnd => {
                let builder = builder
                    .take()
                    .ok_or_else(|| RepoError::Internal("a root ended twice".into()))?;
                trees.push(builder.finish(nodes)?);
            }
            Slot::Failed(error) => return Err(error),
        }
    }
}

/// Adds an entry; one that the format has no room for is reported and left out.
fn push(
    builder: &mut TreeBuilder,
    key: &[u8],
    value: &[u8],
    file_bytes: u64,
    nodes: &mut NodeWriter<'_>,
    problems: &Problems,
) -> Result<(), OpError> {
    if let Err(limit) = builder.check(key, value, file_bytes) {
        problems.add(key.to_vec(), "limit", format!("it cannot be stored: {limit}"));
        return Ok(());
    }
    Ok(builder.push(key, value, file_bytes, nodes)?)
}

/// Makes everything durable, completes the manifest and commits.
fn publish(
    repo: &Repo,
    mut session: Session<'_>,
    mut manifest: Manifest,
    inner: Vec<ChunkId>,
    source: SourceId,
    mut report: Report,
) -> Result<Report, OpError> {
    let durable = match session.make_durable() {
        Ok(durable) => durable,
        Err(error) => {
            session.abandon();
            return Err(error.into());
        }
    };
    manifest.hints = hints(repo, &manifest, inner);
    let counts = session.writer().counts();
    let stats = &mut manifest.stats;
    stats.chunks_new = counts.chunks_new.load(Ordering::Relaxed);
    stats.chunks_reused = counts.chunks_reused.load(Ordering::Relaxed);
    stats.bytes_new = counts.bytes_new.load(Ordering::Relaxed);
    stats.bytes_stored = counts.bytes_stored.load(Ordering::Relaxed);
    stats.packs_uploaded = counts.packs_uploaded.load(Ordering::Relaxed);
    stats.requests = repo.store.requests();
    let incomplete = manifest.problems_total > 0;
    let label = OutcomeLabel {
        kind: OutcomeKind::Commit,
        source: Some(source),
        flags: if incomplete { flag::ERRORS } else { 0 },
    };
    let published = session.publish(durable, &manifest, &label)?;
    report.notes.extend(published.notes);
    manifest.stats.bytes_stored = published.bytes_stored;
    manifest.stats.requests = repo.store.requests();
    report.snapshot = Some(published.session);
    report.stats = manifest.stats;
    report.problems_total = manifest.problems_total;
    report.problems = manifest.problems;
    report.incomplete = incomplete;
    Ok(report)
}

/// Where the roots and the inner nodes lie, so that one file is found without asking the index for them. Without them it takes
/// longer, so a local index that fails is no reason to fail.
fn hints(repo: &Repo, manifest: &Manifest, inner: Vec<ChunkId>) -> Vec<Hint> {
    let mut wanted: Vec<ChunkId> = manifest.roots.iter().map(|root| root.node).collect();
    // The last inner nodes are the highest.
    wanted.extend(inner.into_iter().rev().take(HINTS_MAX));
    wanted.sort_unstable();
    wanted.dedup();
    let places = repo.index.find_many(&wanted).unwrap_or_default();
    wanted
        .into_iter()
        .zip(places)
        .filter_map(|(node, place)| {
            let place = place.filter(|place| place.kind == PackKind::Meta)?;
            Some(Hint {
                pack: place.pack,
                session: place.session,
                pack_size: place.pack_size,
                slot: *place.slots.first()?,
                offset: place.offset,
                len: place.stored_len,
                node,
            })
        })
        .collect()
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
        let (total, named) = problems.take();
        assert_eq!(total, 2000);
        assert!(named.len() > 100);
        let bytes: usize = named
            .iter()
            .map(|problem| problem.path.len() + problem.text.len())
            .sum();
        assert!(bytes <= PROBLEM_BYTES_MAX, "{bytes}");
        let problems = Problems::default();
        problems.add(b"/short".to_vec(), "changed", "text");
        assert_eq!(problems.take().1[0].path, b"/short");
    }
}
