//! Deciding what has to be read: the walk and the parent tree, side by side, both in key order.

use super::delta::Previous;
use super::file::Reply;
use super::work::Job;
use super::{Input, Problems, Report, Slot};
use crate::ops::look::{Appetite, open_reader};
use crate::ops::{OpError, Progress};
use crate::pure::base::Explain;
use crate::pure::format::entry::{Entry, EntryKind};
use crate::pure::format::manifest::{Root, RootKind, Stats};
use crate::pure::id::{ChunkId, SessionId};
use crate::pure::tree::list::{ListSource, for_each_piece};
use crate::pure::tree::rules;
use crate::pure::tree::walk::{NodeSource, TreeWalk, lookup};
use crate::repo::index::LocalIndex;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, RepoError};
use crate::source::files::{ExcludesBuilder, FileWalk, Found, SourceError, WalkEvent, WalkOptions};
use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Unchanged entries travel in batches of at most this many.
const BATCH: usize = 64;

/// Figures of a run, from any thread.
#[derive(Debug, Default)]
pub struct Counts {
    pub files_new: AtomicU64,
    pub files_changed: AtomicU64,
    pub files_unmodified: AtomicU64,
    pub dirs: AtomicU64,
    pub bytes_processed: AtomicU64,
    pub bytes_read: AtomicU64,
    pub owners: Mutex<Owners>,
}

/// Users and groups whose names a snapshot has at most; a tree with more has numbers that are nobody's.
const OWNERS_MAX: usize = 65_536;

/// Whose the entries are, those that did not change too.
#[derive(Debug, Default)]
pub struct Owners {
    pub users: BTreeSet<u32>,
    pub groups: BTreeSet<u32>,
}

impl Owners {
    fn add(&mut self, user: u32, group: u32) {
        for (seen, id) in [(&mut self.users, user), (&mut self.groups, group)] {
            if seen.len() < OWNERS_MAX {
                seen.insert(id);
            }
        }
    }
}

impl Counts {
    /// Returns them as the manifest stores them.
    pub fn stats(&self) -> Stats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            files_new: get(&self.files_new),
            files_changed: get(&self.files_changed),
            files_unmodified: get(&self.files_unmodified),
            dirs: get(&self.dirs),
            bytes_processed: get(&self.bytes_processed),
            bytes_read: get(&self.bytes_read),
            ..Stats::default()
        }
    }
}

/// Returns the raw bytes of a path.
pub fn bytes_of(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// Joins a root and a path below it.
pub fn join(root: &[u8], below: &[u8]) -> Vec<u8> {
    let mut path = root.to_vec();
    if !below.is_empty() {
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(below);
    }
    path
}

/// A snapshot that is compared with.
pub struct Parent<'r> {
    snapshot: Snapshot,
    reader: BlobReader<'r>,
}

impl<'r> Parent<'r> {
    /// Prepares to read a snapshot: its nodes come from the local cache, and where that has lost them, from the
    /// repository.
    ///
    /// # Errors
    /// When the local index cannot be used.
    pub fn open(repo: &'r Repo, snapshot: &Snapshot) -> Result<Parent<'r>, OpError> {
        Ok(Parent {
            snapshot: snapshot.clone(),
            reader: open_reader(repo, snapshot, Appetite::Little)?,
        })
    }
}

/// The planning thread.
pub struct Planner<'a, 'r> {
    pub repo: &'a Repo,
    /// The first that has an unchanged entry counts.
    pub parents: &'a [Parent<'r>],
    /// Ids of the parents' nodes that the walk has come past.
    pub parent_nodes: Arc<Mutex<HashSet<ChunkId>>>,
    pub problems: &'a Problems,
    pub counts: &'a Counts,
    pub progress: &'a Progress,
    /// Of entries that have to be read.
    pub numbers: AtomicU64,
    /// Whether anybody wants to know what the parents have of an entry that changed.
    pub deltas: bool,
}

/// Notes every node that is read, because the tree that is being built may contain it again.
struct NotingReader<'a, 'r> {
    nodes: TreeReader<'a, 'r>,
    seen: Arc<Mutex<HashSet<ChunkId>>>,
}

impl NodeSource for NotingReader<'_, '_> {
    type Error = RepoError;
    fn node(&mut self, id: &ChunkId) -> Result<Arc<[u8]>, RepoError> {
        let node = self.nodes.node(id)?;
        self.seen.lock().insert(*id);
        Ok(node)
    }
}

/// What the parents say about an entry.
enum Before {
    /// It was not there.
    Unknown,
    /// What it was, if it had content.
    Changed(Option<Previous>),
    /// The value that it has in a parent.
    Unchanged(Vec<u8>),
}

/// A parent's tree of one root, moving along with the walk.
struct ParentTree<'a, 'r> {
    snapshot: SessionId,
    walk: TreeWalk,
    nodes: NotingReader<'a, 'r>,
    /// Nothing that claims to have changed after this can be trusted (clocks that ran ahead).
    end: i128,
}

impl ParentTree<'_, '_> {
    /// Returns the parent's value for a key. Keys must ascend from call to call.
    fn value(&mut self, key: &[u8]) -> Result<Option<&[u8]>, RepoError> {
        while let Some((found, _)) = self.walk.peek_ref(&mut self.nodes)? {
            match found.cmp(key) {
                std::cmp::Ordering::Less => {
                    self.walk.next_ref(&mut self.nodes)?;
                }
                std::cmp::Ordering::Equal => break,
                std::cmp::Ordering::Greater => return Ok(None),
            }
        }
        // It stays there until a greater key is asked for.
        Ok(self.walk.peek_ref(&mut self.nodes)?.map(|(_, value)| value))
    }
}

impl<'a, 'r> Planner<'a, 'r> {
    /// Sends every entry of the input, in order. Returns when done, when nobody listens any more, or after a failure
    /// was sent.
    pub fn run(self, input: Input, jobs: &Sender<Job>, order: &Sender<Slot>) {
        let outcome = match input {
            Input::Paths { roots, walk, excludes } => self.paths(&roots, &walk, &excludes, jobs, order),
            Input::Stream(stream) => self.stream(stream, jobs, order),
        };
        if let Err(error) = outcome {
            let _ = order.send(Slot::Failed(error));
        }
    }

    /// A root that cannot be opened (a disk that is not mounted) is a problem of the source: the others are backed up. Only
    /// when none can be opened is there no snapshot.
    fn paths(
        &self,
        roots: &[PathBuf],
        walk: &WalkOptions,
        excludes: &ExcludesBuilder,
        jobs: &Sender<Job>,
        order: &Sender<Slot>,
    ) -> Result<(), OpError> {
        let mut unopened = Vec::new();
        for root in roots {
            let mut options = walk.clone();
            options.excludes = excludes
                .build(root)
                .map_err(|error| OpError::Usage(error.to_string()))?;
            match FileWalk::open(root, options) {
                Ok(walk) => self.root(&bytes_of(root), walk, jobs, order)?,
                Err(error) => {
                    self.progress.problems.fetch_add(1, Ordering::Relaxed);
                    self.problems
                        .add(bytes_of(root), error_code(&error), crate::ops::check::chain(&error));
                    order.send(Slot::RootUnopened).map_err(|_| OpError::Interrupted)?;
                    unopened.push(error);
                }
            }
        }
        let none_is_there = unopened.len() == roots.len();
        match unopened.into_iter().next() {
            Some(error) if none_is_there => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn stream(
        &self,
        stream: crate::source::stream::Stream,
        jobs: &Sender<Job>,
        order: &Sender<Slot>,
    ) -> Result<(), OpError> {
        let (reply, waiting): (Reply, _) = bounded(1);
        self.counts.files_new.fetch_add(1, Ordering::Relaxed);
        let key = stream.name().to_vec();
        let gone = |_| OpError::Interrupted;
        order.send(Slot::RootStart).map_err(|_| OpError::Interrupted)?;
        let previous = self.previous_stream(&key).map(Arc::new);
        jobs.send(Job::Stream {
            stream,
            previous,
            reply,
        })
        .map_err(|_| OpError::Interrupted)?;
        order.send(Slot::Waiting(key, waiting)).map_err(gone)?;
        order.send(Slot::RootEnd).map_err(|_| OpError::Interrupted)
    }

    fn previous_of(&self, entry: Entry) -> Option<Previous> {
        let size = entry.size();
        match entry.kind {
            EntryKind::File { content, .. } | EntryKind::Stream { content, .. } if self.deltas => {
                Previous::new(size, content)
            }
            _ => None,
        }
    }

    /// What the newest parent has under the name of a stream. It only helps to store less, so it need not be readable.
    fn previous_stream(&self, key: &[u8]) -> Option<Previous> {
        if !self.deltas {
            return None;
        }
        self.parents.iter().find_map(|parent| {
            let roots = &parent.snapshot.manifest.roots;
            let root = roots.iter().find(|root| root.kind == RootKind::StreamSet)?;
            let mut nodes = TreeReader::new(&parent.reader);
            let value = lookup(root.node, root.height, key, &mut nodes).ok()??;
            self.previous_of(rules::decode_entry(root.kind, &value).ok()?)
        })
    }

    /// Opens this root's tree in every parent that has it.
    fn parent_trees(&self, path: &[u8]) -> Vec<ParentTree<'a, 'r>> {
        let mut trees = Vec::new();
        for parent in self.parents {
            let manifest = &parent.snapshot.manifest;
            let is_same = |root: &&Root| root.kind == RootKind::Posix && root.path == path;
            let Some(root) = manifest.roots.iter().find(is_same) else {
                continue;
            };
            trees.push(ParentTree {
                snapshot: parent.snapshot.id,
                walk: TreeWalk::new(root.node, root.height, &[]),
                nodes: NotingReader {
                    nodes: TreeReader::new(&parent.reader),
                    seen: self.parent_nodes.clone(),
                },
                end: i128::from(manifest.end.0),
            });
        }
        trees
    }

    /// Asks the parents about an entry, one after the other. One that cannot be read is asked no more.
    fn before(&self, found: &Found, trees: &mut Vec<ParentTree<'a, 'r>>) -> Result<Before, OpError> {
        let mut answer = Before::Unknown;
        let mut at = 0;
        while let Some(tree) = trees.get_mut(at) {
            match self.compare(found, tree) {
                Ok(Before::Unknown) => at += 1,
                Ok(Before::Changed(previous)) => {
                    // The first parent is the nearest one.
                    if !matches!(answer, Before::Changed(Some(_))) {
                        answer = Before::Changed(previous);
                    }
                    at += 1;
                }
                Ok(unchanged) => return Ok(unchanged),
                Err(error) => {
                    self.give_up_parent(&trees.remove(at), error)?;
                }
            }
        }
        Ok(answer)
    }

    fn root(&self, path: &[u8], mut walk: FileWalk, jobs: &Sender<Job>, order: &Sender<Slot>) -> Result<(), OpError> {
        let gone = |_| OpError::Interrupted;
        order.send(Slot::RootStart).map_err(gone)?;
        let root_path: Arc<[u8]> = path.into();
        let mut parents = self.parent_trees(path);
        let mut ready: Vec<(Vec<u8>, Vec<u8>, u64)> = Vec::new();
        while let Some(event) = walk.next() {
            if self.progress.is_cancelled() {
                return Err(OpError::Interrupted);
            }
            let found = match event {
                WalkEvent::Entry(found) => found,
                WalkEvent::Problem(problem) => {
                    let path = join(path, &problem.path);
                    if problem.is_note() {
                        self.progress
                            .note(format!("{}: not entered, the kernel makes it up", path.escape_ascii()));
                    } else {
                        let text = problem.error.map_or_else(String::new, |error| format!(": {error}"));
                        self.progress.problems.fetch_add(1, Ordering::Relaxed);
                        self.problems
                            .add(path, format!("{:?}", problem.kind), format!("{:?}{text}", problem.kind));
                    }
                    continue;
                }
            };
            self.count_kind(&found);
            let previous = match self.before(&found, &mut parents)? {
                Before::Unchanged(value) => {
                    let bytes = found.stat.size * u64::from(super::is_file(&found.entry.kind));
                    if super::is_file(&found.entry.kind) {
                        self.counts.files_unmodified.fetch_add(1, Ordering::Relaxed);
                        self.progress.file_done(bytes);
                    }
                    ready.push((found.key, value, bytes));
                    if ready.len() == BATCH {
                        order.send(Slot::Ready(std::mem::take(&mut ready))).map_err(gone)?;
                    }
                    continue;
                }
                Before::Changed(previous) => {
                    self.count_read(&found, true);
                    previous
                }
                Before::Unknown => {
                    self.count_read(&found, false);
                    None
                }
            };
            if !ready.is_empty() {
                order.send(Slot::Ready(std::mem::take(&mut ready))).map_err(gone)?;
            }
            let (reply, waiting): (Reply, _) = bounded(1);
            let key = found.key.clone();
            // The slot before the job: what a worker has finished is never without its place in the order
            // (`checkpoint::wait`).
            order.send(Slot::Waiting(key, waiting)).map_err(gone)?;
            jobs.send(Job::Entry {
                number: self.numbers.fetch_add(1, Ordering::Relaxed),
                found,
                root: root_path.clone(),
                previous: previous.map(Arc::new),
                reply,
            })
            .map_err(|_| OpError::Interrupted)?;
        }
        if !ready.is_empty() {
            order.send(Slot::Ready(ready)).map_err(gone)?;
        }
        order.send(Slot::RootEnd).map_err(gone)
    }

    /// A parent that turns out to be damaged costs reading the rest again; a store that fails ends the run.
    fn give_up_parent(&self, tree: &ParentTree<'a, 'r>, error: RepoError) -> Result<(), OpError> {
        let snapshot = tree.snapshot.short();
        if error.is_missing_key() {
            self.progress.note(format!(
                "this machine does not have all of snapshot {snapshot} at hand, and its key cannot read it from the repository: the \
                 rest of the files is read again; what is stored is not uploaded again"
            ));
            return Ok(());
        }
        if !error.is_damage() {
            return Err(error.into());
        }
        self.progress.note(format!(
            "the parent snapshot {snapshot} cannot be read, so what it holds is read again: {}",
            crate::ops::check::chain(&error)
        ));
        Ok(())
    }

    fn count_kind(&self, found: &Found) {
        self.counts.owners.lock().add(found.entry.uid, found.entry.gid);
        match found.entry.kind {
            EntryKind::Dir => {
                self.counts.dirs.fetch_add(1, Ordering::Relaxed);
            }
            EntryKind::File { .. } => {
                self.counts
                    .bytes_processed
                    .fetch_add(found.stat.size, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn count_read(&self, found: &Found, known: bool) {
        if super::is_file(&found.entry.kind) {
            let count = if known {
                &self.counts.files_changed
            } else {
                &self.counts.files_new
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says whether the parent's entry still describes what is there, content included. The change time is set by the kernel on
    /// every edit and cannot be set by users; files are read only after it has settled (see `source::files::read`), so equal
    /// times mean equal content (catalogue E7).
    fn compare(&self, found: &Found, tree: &mut ParentTree<'_, '_>) -> Result<Before, RepoError> {
        let end = tree.end;
        let Some(value) = tree.value(&found.key)? else {
            return Ok(Before::Unknown);
        };
        let before = Entry::decode(value)?;
        let (now, stat) = (&found.entry, &found.stat);
        let changed_at = i128::from(stat.ctime.seconds) * 1_000_000_000 + i128::from(stat.ctime.nanos);
        let same_kind = match (&now.kind, &before.kind) {
            (EntryKind::File { .. }, EntryKind::File { size, .. }) => stat.size == *size,
            (a, b) => a == b,
        };
        let ctime = if chaos!("change-times-are-not-compared") {
            before.ctime
        } else {
            now.ctime
        };
        if !same_kind
            || (now.mode, now.uid, now.gid, now.mtime, ctime, now.ino)
                != (
                    before.mode,
                    before.uid,
                    before.gid,
                    before.mtime,
                    before.ctime,
                    before.ino,
                )
            || now.attributes.hard_link != before.attributes.hard_link
            || before.attributes.changed_while_read
            || before.attributes.incomplete.is_some()
            || changed_at > end
        {
            return Ok(Before::Changed(self.previous_of(before)));
        }
        let value = value.to_vec();
        match self.content_is_there(&before, tree)? {
            true => Ok(Before::Unchanged(value)),
            false => Ok(Before::Changed(self.previous_of(before))),
        }
    }

    /// A file is read again when a chunk of it was declared lost, or lay in a pack that is known to be absent and nowhere else:
    /// this heals every snapshot that has the file. As long as no such thing is known, nothing is looked up here.
    fn content_is_there(&self, entry: &Entry, tree: &mut ParentTree<'_, '_>) -> Result<bool, RepoError> {
        let index = &*self.repo.index;
        // An index that cannot tell is no reason to fail: the file is read again.
        if !index.may_lack().unwrap_or(true) {
            return Ok(true);
        }
        let contents = entry.content().map(|content| (content, entry.size()));
        let attributes = &entry.attributes.xattrs_outline;
        let outline = attributes.iter().map(|(_, size, content)| (content, *size));
        let mut lists = CheckedLists {
            nodes: &mut tree.nodes.nodes,
            index,
            missing: false,
        };
        let mut missing = false;
        for (content, size) in contents.into_iter().chain(outline) {
            for_each_piece(content, size, 0..size, &mut lists, &mut |_, piece| {
                missing |= piece.id != ChunkId::HOLE && is_missing(index, &piece.id);
                Ok::<(), RepoError>(())
            })?;
        }
        Ok(!missing && !lists.missing)
    }
}

fn is_missing(index: &LocalIndex, id: &ChunkId) -> bool {
    !index.is_stored(id).unwrap_or(false)
}

/// Reads list nodes, and notes whether the repository lacks one: the local cache may still have it.
struct CheckedLists<'n, 'a, 'r> {
    nodes: &'n mut TreeReader<'a, 'r>,
    index: &'n LocalIndex,
    missing: bool,
}

impl ListSource for CheckedLists<'_, '_, '_> {
    type Error = RepoError;
    fn list_node(&mut self, id: &ChunkId) -> Result<Vec<u8>, RepoError> {
        self.missing |= is_missing(self.index, id);
        self.nodes.list_node(id)
    }
}

/// Says what a run would read, without reading or writing anything.
pub fn dry_run(
    repo: &Repo,
    input: Input,
    parents: &[Snapshot],
    mut report: Report,
    progress: &Progress,
) -> Result<Report, OpError> {
    let Input::Paths { .. } = &input else {
        return Err(OpError::Usage(
            "--dry-run works with paths only: a stream cannot be looked at without reading it".into(),
        ));
    };
    let parents: Vec<Parent<'_>> = parents
        .iter()
        .map(|parent| Parent::open(repo, parent))
        .collect::<Result<_, _>>()?;
    let (problems, counts) = (Problems::default(), Counts::default());
    let (job_sender, jobs) = bounded::<Job>(64);
    let (order_sender, order) = bounded::<Slot>(64);
    let mut failure = None;
    let mut read = 0u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let planner = Planner {
                repo,
                parents: &parents,
                parent_nodes: Arc::default(),
                problems: &problems,
                counts: &counts,
                progress,
                numbers: AtomicU64::new(0),
                deltas: false,
            };
            planner.run(input, &job_sender, &order_sender);
            drop((job_sender, order_sender));
        });
        let read = &mut read;
        scope.spawn(move || {
            for job in jobs {
                if let Job::Entry { found, .. } = job {
                    *read += found.stat.size * u64::from(super::is_file(&found.entry.kind));
                }
            }
        });
        for slot in order {
            if let Slot::Failed(error) = slot {
                failure = Some(error);
            }
        }
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let (total, problems) = problems.so_far();
    report.stats = Stats {
        bytes_read: read,
        ..counts.stats()
    };
    report.problems_total = total;
    report.incomplete = total > 0;
    report.problems = problems;
    Ok(report)
}

/// A short code for a source error, for the manifest.
pub fn error_code(error: &SourceError) -> String {
    match error.errno() {
        Some(errno) => format!("errno {errno}"),
        None => format!("{:?}", error.kind()),
    }
}
