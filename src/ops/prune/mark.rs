//! Marking: every chunk, tree node and list node that live snapshots reach (format-spec chapter 16.3, step 6). All of it is read,
//! and whatever cannot be read ends the run: what is below it is not known, and so nothing may be deleted.
//!
//! Snapshots share most of their nodes, so each is read once by a run, however many snapshots there are: 16 bytes are kept of each.

use super::ids::IdCollector;
use crate::ops::node_key::{NodeKey, node_key};
use crate::ops::queue::{Queue, on_threads};
use crate::ops::{OpError, Progress};
use crate::pure::base::Explain;
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::{ChunkRef, Content, Entry};
use crate::pure::format::list::ListNode;
use crate::pure::format::manifest::{Root, RootKind};
use crate::pure::format::node::{Child, NodeCursor};
use crate::pure::format::{FormatError, Malformed};
use crate::pure::id::{ChunkId, SessionId};
use crate::pure::tree::list::open_node;
use crate::pure::tree::rules;
use crate::repo::locate::IndexLocator;
use crate::repo::reader::BlobReader;
use crate::repo::{Repo, RepoError};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::atomic::Ordering;

/// Threads for a store that is not local: most of them wait.
const REMOTE_THREADS: usize = 16;
/// Ids that a thread gathers before it hands them over.
const GATHERED: usize = 4096;

/// What becomes of nodes that cannot be read.
pub(in crate::ops) enum Unreadable {
    /// They end the run.
    Refused,
    /// So they do, except for these: an admin has accepted that they, and what only they lead to, are lost.
    Accepted(HashSet<ChunkId>),
    /// They are noted, to be mended.
    Noted,
}

/// What live snapshots reach. It only grows, so a snapshot is marked once in a run.
pub(in crate::ops) struct Marker<'r> {
    reader: BlobReader<'r>,
    threads: usize,
    marked: HashSet<SessionId>,
    seen: Mutex<HashSet<NodeKey>>,
    ids: Mutex<IdCollector>,
    unreadable: Unreadable,
    unread: Mutex<Vec<ChunkId>>,
}

/// A node to be read, and what was said about it above.
struct Visit {
    id: ChunkId,
    /// Which of the roots led here.
    root: usize,
    level: u8,
}

/// The roots of what is marked now.
struct Roots<'m> {
    roots: &'m [(SessionId, Root)],
    queue: Queue<Visit>,
}

/// What one thread uses again and again.
struct Worker {
    opener: Opener,
    bytes: Vec<u8>,
    ids: Vec<ChunkId>,
}

impl<'r> Marker<'r> {
    /// Nothing is marked yet.
    pub(in crate::ops) fn new(repo: &'r Repo, threads: usize, unreadable: Unreadable) -> Marker<'r> {
        let threads = if repo.store.is_local() {
            threads.max(1)
        } else {
            threads.max(REMOTE_THREADS)
        };
        Marker {
            reader: BlobReader::new(repo, Box::new(IndexLocator)),
            threads,
            marked: HashSet::new(),
            seen: Mutex::new(HashSet::new()),
            ids: Mutex::new(IdCollector::new(&repo.state_dir)),
            unreadable,
            unread: Mutex::new(Vec::new()),
        }
    }

    /// Returns the reader.
    pub(in crate::ops) fn reader(&self) -> &BlobReader<'r> {
        &self.reader
    }

    /// Returns the nodes that could not be read, and were let pass.
    pub(in crate::ops) fn unread(&mut self) -> &[ChunkId] {
        self.unread.get_mut()
    }

    /// Whether a node that cannot be read is let pass; notes it then.
    fn lets_pass(&self, id: &ChunkId, error: &RepoError) -> bool {
        let passes = error.is_damage()
            && match &self.unreadable {
                Unreadable::Refused => false,
                Unreadable::Accepted(ids) => ids.contains(id),
                Unreadable::Noted => true,
            };
        if passes {
            self.unread.lock().push(*id);
        }
        passes
    }

    /// Returns the ids of all that was marked.
    pub(in crate::ops) fn ids(&mut self) -> &mut IdCollector {
        self.ids.get_mut()
    }

    /// Reads the trees of these snapshots and adds all that they reach.
    ///
    /// # Errors
    /// When anything of them cannot be read, or the user wants it to end.
    pub(in crate::ops) fn mark(&mut self, live: &[SessionId], progress: &Progress) -> Result<(), OpError> {
        let repo = self.reader.repo();
        // These snapshots may be younger than the index, and than what was seen of packs when the ones before were marked.
        self.reader.forget_trailers();
        let mut roots = Vec::new();
        for session in live.iter().filter(|session| !self.marked.contains(session)) {
            let snapshot = repo.snapshot(session)?;
            roots.extend(snapshot.manifest.roots.into_iter().map(|root| (*session, root)));
        }
        let visits = roots.iter().enumerate().rev().map(|(number, (_, root))| Visit {
            id: root.node,
            root: number,
            level: root.height,
        });
        let work = Roots {
            queue: Queue::new(visits.collect()),
            roots: &roots,
        };
        on_threads(self.threads, || self.run(&work, progress))?;
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        self.marked.extend(live);
        Ok(())
    }

    fn run(&self, work: &Roots<'_>, progress: &Progress) -> Result<(), OpError> {
        let mut worker = Worker {
            opener: Opener::new(),
            bytes: Vec::new(),
            ids: Vec::new(),
        };
        while let Some((visit, taken)) = work.queue.take() {
            let (snapshot, root) = &work.roots[visit.root];
            match self.visit(&visit, root.kind, &mut worker) {
                Ok(children) if !progress.is_cancelled() => taken.done(children),
                Ok(_) => {
                    work.queue.stop();
                    return Ok(());
                }
                Err(_) if chaos!("unreadable-trees-are-skipped") => taken.done(Vec::new()),
                Err(error) => {
                    work.queue.stop();
                    let path = String::from_utf8_lossy(&root.path);
                    return Err(in_doubt(error, format!("{path} of snapshot {}", snapshot.short())));
                }
            }
            if worker.ids.len() >= GATHERED {
                self.hand_over(&mut worker.ids)?;
                progress.set_current(format!("trees of snapshot {}", snapshot.short()));
            }
            progress.files.fetch_add(1, Ordering::Relaxed);
        }
        self.hand_over(&mut worker.ids)
    }

    fn hand_over(&self, ids: &mut Vec<ChunkId>) -> Result<(), OpError> {
        self.ids.lock().extend(ids).map_err(no_room)?;
        ids.clear();
        Ok(())
    }

    /// Reads a node of a tree; returns its children.
    fn visit(&self, visit: &Visit, kind: RootKind, worker: &mut Worker) -> Result<Vec<Visit>, OpError> {
        if !self.seen.lock().insert(node_key(&visit.id)) {
            return Ok(Vec::new());
        }
        worker.ids.push(visit.id);
        let mut bytes = std::mem::take(&mut worker.bytes);
        let read = self
            .reader
            .read(BlobType::Node, &visit.id, &mut worker.opener, &mut bytes);
        if let Err(error) = &read
            && self.lets_pass(&visit.id, error)
        {
            worker.bytes = bytes;
            return Ok(Vec::new());
        }
        let children = read.map_err(OpError::from).and_then(|()| {
            let mut children = Vec::new();
            let mut cursor = NodeCursor::open(&bytes[..]).map_err(RepoError::from)?;
            if cursor.level() != visit.level {
                return Err(malformed("tree: a node is on the wrong level"));
            }
            while cursor.step().map_err(RepoError::from)? {
                if visit.level > 0 {
                    let child = Child::decode(cursor.value()).map_err(RepoError::from)?;
                    children.push(Visit {
                        id: child.id,
                        root: visit.root,
                        level: visit.level - 1,
                    });
                } else {
                    let entry = rules::decode_entry(kind, cursor.value()).map_err(RepoError::from)?;
                    self.entry(&entry, &mut worker.ids, &mut worker.opener)?;
                }
            }
            Ok(children)
        });
        worker.bytes = bytes;
        children
    }

    fn entry(&self, entry: &Entry, ids: &mut Vec<ChunkId>, opener: &mut Opener) -> Result<(), OpError> {
        if let Some(content) = entry.content() {
            self.content(content, entry.size(), ids, opener)?;
        }
        for (_, size, content) in &entry.attributes.xattrs_outline {
            self.content(content, *size, ids, opener)?;
        }
        Ok(())
    }

    fn content(
        &self,
        content: &Content,
        size: u64,
        ids: &mut Vec<ChunkId>,
        opener: &mut Opener,
    ) -> Result<(), OpError> {
        match content {
            Content::Inline(_) => Ok(()),
            Content::Chunks(pieces) => {
                ids.extend(chunks(pieces));
                Ok(())
            }
            Content::List { root, height, .. } => self.list(root, *height, size, ids, opener),
        }
    }

    /// Descends at most eight levels: each node says which it is on.
    fn list(
        &self,
        id: &ChunkId,
        level: u8,
        total: u64,
        ids: &mut Vec<ChunkId>,
        opener: &mut Opener,
    ) -> Result<(), OpError> {
        if !self.seen.lock().insert(node_key(id)) {
            return Ok(());
        }
        ids.push(*id);
        let mut bytes = Vec::new();
        match self.reader.read(BlobType::List, id, opener, &mut bytes) {
            Err(error) if self.lets_pass(id, &error) => return Ok(()),
            read => read?,
        }
        match open_node(&bytes, level, total).map_err(RepoError::from)? {
            ListNode::Leaf(pieces) => ids.extend(chunks(&pieces)),
            ListNode::Inner { level, children } => {
                drop(bytes);
                for (child, bytes) in &children {
                    self.list(child, level - 1, *bytes, ids, opener)?;
                }
            }
        }
        Ok(())
    }
}

fn chunks(pieces: &[ChunkRef]) -> impl Iterator<Item = ChunkId> {
    pieces.iter().map(|piece| piece.id).filter(|id| *id != ChunkId::HOLE)
}

fn malformed(what: &'static str) -> OpError {
    RepoError::from(FormatError::Malformed(Malformed { what })).into()
}

/// Sorting what is alive needs room on this machine.
pub(in crate::ops) fn no_room(source: std::io::Error) -> OpError {
    RepoError::Local {
        what: "sorting what is alive, in the cache directory".into(),
        source,
    }
    .into()
}

/// An error of reading something that is alive ends the run. Damage needs mending first; the rest is as it is.
fn in_doubt(error: OpError, of: String) -> OpError {
    match error {
        OpError::Repo(source) if source.is_damage() => OpError::InDoubt {
            what: format!("{of} cannot be read completely"),
            kind: source.kind(),
            source: Some(Box::new(source)),
            hint: CHECK_HINT,
        },
        error => error,
    }
}

/// What to do when something alive is damaged.
pub(super) const CHECK_HINT: &str = "run `larder repo check` to see what is hit, and `larder repo repair packs`; forget the snapshots that cannot \
                                    be read any more, or let the next backups heal them, and prune again";
