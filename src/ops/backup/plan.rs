//! Deciding what has to be read: the walk and the parent tree, side by side, both in key order.

use super::file::Reply;
use super::work::Job;
use super::{Input, Problems, Report, Slot};
use crate::ops::{OpError, Progress};
use crate::pure::base::Explain;
use crate::pure::format::entry::{ChunkRef, Content, Entry, EntryKind};
use crate::pure::format::manifest::{Root, RootKind, Stats};
use crate::pure::id::ChunkId;
use crate::pure::tree::list::for_each_piece;
use crate::pure::tree::walk::{NodeSource, TreeWalk};
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, RepoError};
use crate::source::files::{FileWalk, Found, SourceError, WalkEvent};
use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
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

/// The planning thread.
pub struct Planner<'a, 'r> {
    pub repo: &'a Repo,
    pub parent: Option<&'a Snapshot>,
    pub reader: Option<&'a BlobReader<'r>>,
    /// Ids of the parent's nodes that the walk has come past.
    pub parent_nodes: Arc<Mutex<HashSet<ChunkId>>>,
    pub problems: &'a Problems,
    pub counts: &'a Counts,
    pub progress: &'a Progress,
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

/// The parent's tree of one root, moving along with the walk.
struct ParentTree<'a, 'r> {
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

/// What the parent says about something that was found.
enum Before {
    /// It was not there.
    Absent,
    Changed,
    /// The value that it has in the parent.
    Same(Vec<u8>),
}

impl<'a, 'r> Planner<'a, 'r> {
    /// Sends every entry of the input, in order. Returns when done, when nobody listens any more, or after a failure was sent.
    pub fn run(self, input: Input, jobs: &Sender<Job>, order: &Sender<Slot>) {
        let outcome = match input {
            Input::Paths { roots, walk, excludes } => roots.iter().try_for_each(|root| {
                let mut options = walk.clone();
                options.excludes = excludes
                    .build(root)
                    .map_err(|error| OpError::Usage(error.to_string()))?;
                let walk = FileWalk::open(root, options)?;
                self.root(&bytes_of(root), walk, jobs, order)
            }),
            Input::Stream(stream) => self.stream(stream, jobs, order),
        };
        if let Err(error) = outcome {
            let _ = order.send(Slot::Failed(error));
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
        jobs.send(Job::Stream { stream, reply })
            .map_err(|_| OpError::Interrupted)?;
        order.send(Slot::Waiting(key, waiting)).map_err(gone)?;
        order.send(Slot::RootEnd).map_err(|_| OpError::Interrupted)
    }

    fn parent_tree(&self, path: &[u8]) -> Option<ParentTree<'a, 'r>> {
        let parent = self.parent?;
        let root: &Root = parent
            .manifest
            .roots
            .iter()
            .find(|root| root.kind == RootKind::Posix && root.path == path)?;
        Some(ParentTree {
            walk: TreeWalk::new(root.node, root.height, &[]),
            nodes: NotingReader {
                nodes: TreeReader::new(self.reader?),
                seen: self.parent_nodes.clone(),
            },
            end: i128::from(parent.manifest.end.0),
        })
    }

    fn root(&self, path: &[u8], mut walk: FileWalk, jobs: &Sender<Job>, order: &Sender<Slot>) -> Result<(), OpError> {
        let gone = |_| OpError::Interrupted;
        order.send(Slot::RootStart).map_err(gone)?;
        let root_path: Arc<[u8]> = path.into();
        let mut parent = self.parent_tree(path);
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
            let before = match &mut parent {
                None => Before::Absent,
                Some(tree) => match self.compare(&found, tree) {
                    Ok(before) => before,
                    Err(error) => {
                        parent = self.give_up_parent(error)?;
                        Before::Changed
                    }
                },
            };
            match before {
                Before::Same(value) => {
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
                Before::Changed => self.count_read(&found, true),
                Before::Absent => self.count_read(&found, false),
            }
            if !ready.is_empty() {
                order.send(Slot::Ready(std::mem::take(&mut ready))).map_err(gone)?;
            }
            let (reply, waiting): (Reply, _) = bounded(1);
            let key = found.key.clone();
            jobs.send(Job::Entry {
                found,
                root: root_path.clone(),
                reply,
            })
            .map_err(|_| OpError::Interrupted)?;
            order.send(Slot::Waiting(key, waiting)).map_err(gone)?;
        }
        if !ready.is_empty() {
            order.send(Slot::Ready(ready)).map_err(gone)?;
        }
        order.send(Slot::RootEnd).map_err(gone)
    }

    /// A parent that turns out to be damaged costs reading the rest again; a store that fails ends the run.
    fn give_up_parent(&self, error: RepoError) -> Result<Option<ParentTree<'a, 'r>>, OpError> {
        if !error.is_damage() {
            return Err(error.into());
        }
        self.progress.note(format!(
            "the parent snapshot cannot be read, so everything is read again: {}",
            crate::ops::check::chain(&error)
        ));
        Ok(None)
    }

    fn count_kind(&self, found: &Found) {
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
            return Ok(Before::Absent);
        };
        let before = Entry::decode(value)?;
        let (now, stat) = (&found.entry, &found.stat);
        let changed_at = i128::from(stat.ctime.seconds) * 1_000_000_000 + i128::from(stat.ctime.nanos);
        let same_kind = match (&now.kind, &before.kind) {
            (EntryKind::File { .. }, EntryKind::File { size, .. }) => stat.size == *size,
            (a, b) => a == b,
        };
        if !same_kind
            || (now.mode, now.uid, now.gid, now.mtime, now.ctime, now.ino)
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
            return Ok(Before::Changed);
        }
        let value = value.to_vec();
        match self.content_is_there(&before, tree)? {
            true => Ok(Before::Same(value)),
            false => Ok(Before::Changed),
        }
    }

    /// A file whose chunks were declared lost is read again, which heals every snapshot that has it.
    fn content_is_there(&self, entry: &Entry, tree: &mut ParentTree<'_, '_>) -> Result<bool, RepoError> {
        if !self.repo.index.has_lost() {
            return Ok(true);
        }
        let mut lost = false;
        let check = |piece: &ChunkRef| self.repo.index.is_lost(&piece.id);
        if let Some(content) = entry.content()
            && !matches!(content, Content::Inline(_))
        {
            let size = entry.size();
            for_each_piece(content, size, 0..size, &mut tree.nodes.nodes, &mut |_, piece| {
                lost |= check(&piece)?;
                Ok::<(), RepoError>(())
            })?;
        }
        Ok(!lost)
    }
}

/// Says what a run would read, without reading or writing anything.
pub fn dry_run(
    repo: &Repo,
    input: Input,
    parent: Option<Snapshot>,
    mut report: Report,
    progress: &Progress,
) -> Result<Report, OpError> {
    let Input::Paths { .. } = &input else {
        return Err(OpError::Usage(
            "--dry-run works with paths only: a stream cannot be looked at without reading it".into(),
        ));
    };
    let reader = match &parent {
        Some(parent) => Some(crate::ops::look::open_reader(
            repo,
            parent,
            crate::ops::look::Appetite::Little,
        )?),
        None => None,
    };
    let (problems, counts) = (Problems::default(), Counts::default());
    let (job_sender, jobs) = bounded::<Job>(64);
    let (order_sender, order) = bounded::<Slot>(64);
    let mut failure = None;
    let mut read = 0u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let planner = Planner {
                repo,
                parent: parent.as_ref(),
                reader: reader.as_ref(),
                parent_nodes: Arc::default(),
                problems: &problems,
                counts: &counts,
                progress,
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
    let (total, problems) = problems.take();
    report.parent = parent.map(|parent| parent.id);
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
