//! Trees: every node that snapshots reach is there and holds what it should, and so does every piece of every file.
//!
//! Snapshots share most of their nodes, so each is read once, whatever number of snapshots there is. What a parent says about
//! a node (level, first key, totals) and where the next one begins is what it was checked against; all of that is remembered as
//! one number, and a node that is met with another one is looked at again, without what it refers to. So 24 bytes are kept of
//! each node, and order and totals hold in every tree, as a restore will find them.

use super::contents::Contents;
use super::lost::Lost;
use super::report::Report;
use crate::ops::node_key::{NodeKey, node_key};
use crate::ops::queue::{Queue, on_threads};
use crate::ops::{OpError, Progress};
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::Entry;
use crate::pure::format::manifest::{Root, RootKind};
use crate::pure::format::node::{Child, NodeCursor};
use crate::pure::format::{FormatError, Malformed};
use crate::pure::id::{ChunkId, PackId, SessionId};
use crate::pure::tree::rules;
use crate::repo::RepoError;
use crate::repo::reader::BlobReader;
use parking_lot::Mutex;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

/// Threads for a store that is not local: most of them wait.
const REMOTE_THREADS: usize = 16;
/// Pieces of files that are looked up together: of leaves alone, with some sixteen entries, each would read pages of its own.
const LOOKED_UP_AT_ONCE: usize = 8192;

/// A root of a snapshot that is checked.
#[derive(Clone, Debug)]
pub(super) struct SnapshotRoot {
    pub snapshot: SessionId,
    pub root: Root,
}

/// Names a root in a finding.
pub(super) fn root_name(root: &SnapshotRoot) -> String {
    let path = String::from_utf8_lossy(&root.root.path);
    format!("snapshot {}, root {path}", root.snapshot.short())
}

/// Nodes below which something cannot be restored.
#[derive(Default)]
pub(super) struct Hits {
    /// Leaves with entries that are hit.
    pub leaves: HashSet<NodeKey>,
    /// Nodes that cannot be read, or are not what they must be.
    pub broken: HashSet<NodeKey>,
}

impl Hits {
    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.broken.is_empty()
    }

    pub(super) fn add(&mut self, other: Hits) {
        self.leaves.extend(other.leaves);
        self.broken.extend(other.broken);
    }
}

/// What the walk through all trees showed.
#[derive(Default)]
pub(super) struct TreesFound {
    pub report: Report,
    pub hits: Hits,
    /// Packs that a restore of these roots reads; only if that was asked for.
    pub packs: HashSet<PackId>,
}

/// Checks every tree node that the roots reach, and that there is a sound copy of every piece of every file.
///
/// # Errors
/// When the store or the index cannot be read, which is not the same as damage; when the user wants it to end.
pub(super) fn check_trees(
    reader: &BlobReader<'_>,
    roots: &[SnapshotRoot],
    lost: &Lost,
    wants_packs: bool,
    threads: usize,
    progress: &Progress,
) -> Result<TreesFound, OpError> {
    let all = roots
        .iter()
        .enumerate()
        .rev()
        .map(|(number, of)| Visit::root(number, &of.root));
    let check = TreeCheck {
        contents: Contents::new(reader, lost, wants_packs),
        roots,
        contexts: RandomState::new(),
        queue: Queue::new(all.collect()),
        seen: Mutex::new(HashMap::new()),
        nodes: Mutex::new(Nodes::default()),
    };
    let threads = if reader.repo().store.is_local() {
        threads.max(1)
    } else {
        threads.max(REMOTE_THREADS)
    };
    on_threads(threads, || check.run(progress))?;
    if progress.is_cancelled() {
        return Err(OpError::Interrupted);
    }
    Ok(check.finish())
}

/// A node that is to be looked at, and what was said about it where it was met.
struct Visit {
    id: ChunkId,
    /// The root that led here first.
    root: usize,
    kind: RootKind,
    is_root: bool,
    level: u8,
    /// `None` for the root of a tree.
    first_key: Option<Vec<u8>>,
    /// All keys are less than this; `None` at the end of the tree.
    key_end: Option<Vec<u8>>,
    /// Entries and bytes.
    totals: (u64, u64),
}

impl Visit {
    fn root(number: usize, root: &Root) -> Visit {
        Visit {
            id: root.node,
            root: number,
            kind: root.kind,
            is_root: true,
            level: root.height,
            first_key: None,
            key_end: None,
            totals: (root.entries, root.bytes),
        }
    }
}

#[derive(Default)]
struct Nodes {
    read: u64,
    report: Report,
    hits: Hits,
}

/// What entries refer to, until it is looked up.
#[derive(Default)]
struct Needed {
    chunks: Vec<ChunkId>,
    /// Leaves, and where in `chunks` what each needs ends.
    leaves: Vec<(NodeKey, usize)>,
}

struct TreeCheck<'c, 'r> {
    contents: Contents<'c, 'r>,
    roots: &'c [SnapshotRoot],
    contexts: RandomState,
    queue: Queue<Visit>,
    /// Nodes that were met, with a hash of what they were checked against last.
    seen: Mutex<HashMap<NodeKey, u64>>,
    nodes: Mutex<Nodes>,
}

impl TreeCheck<'_, '_> {
    fn run(&self, progress: &Progress) -> Result<(), OpError> {
        let mut opener = Opener::new();
        let mut needed = Needed::default();
        while let Some((visit, taken)) = self.queue.take() {
            if visit.is_root {
                let snapshot = self.roots[visit.root].snapshot.short();
                progress.set_current(format!("trees of snapshot {snapshot}"));
            }
            let visited = self.visit(&visit, &mut needed, &mut opener).and_then(|children| {
                if needed.chunks.len() >= LOOKED_UP_AT_ONCE {
                    self.look_up(&mut needed)?;
                }
                Ok(children)
            });
            match visited {
                Ok(children) if !progress.is_cancelled() => taken.done(children),
                result => {
                    self.queue.stop();
                    return result.map(drop);
                }
            }
        }
        self.look_up(&mut needed)
    }

    /// Notes the leaves that need a chunk of which there is no sound copy.
    fn look_up(&self, needed: &mut Needed) -> Result<(), OpError> {
        let lost = self.contents.lost_of(&needed.chunks)?;
        let mut start = 0;
        for (leaf, end) in needed.leaves.drain(..) {
            if lost[start..end].contains(&true) {
                self.nodes.lock().hits.leaves.insert(leaf);
            }
            start = end;
        }
        needed.chunks.clear();
        Ok(())
    }

    fn finish(self) -> TreesFound {
        let Nodes { read, mut report, hits } = self.nodes.into_inner();
        let (of_contents, packs) = self.contents.finish();
        report.absorb(of_contents);
        report.trees_read = read;
        TreesFound { report, hits, packs }
    }

    /// Looks at a node, unless it was looked at with the same expectations; returns its children. What is wrong with it is
    /// noted and does not keep the rest from being looked at.
    fn visit(&self, visit: &Visit, needed: &mut Needed, opener: &mut Opener) -> Result<Vec<Visit>, OpError> {
        let context = self.contexts.hash_one((
            visit.kind as u64,
            visit.is_root,
            visit.level,
            &visit.first_key,
            &visit.key_end,
            visit.totals,
        ));
        let before = self.seen.lock().insert(node_key(&visit.id), context);
        if before == Some(context) {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        let mut children = Vec::new();
        let read = self.contents.read(BlobType::Node, &visit.id, opener, &mut bytes);
        let result = match read {
            Ok(()) if visit.level == 0 => {
                let checked = self.leaf(visit, &bytes, before.is_none().then_some(&mut *needed), opener);
                needed.leaves.push((node_key(&visit.id), needed.chunks.len()));
                checked
            }
            Ok(()) => inner(visit, &bytes, &mut children).map_err(|error| RepoError::from(error).into()),
            Err(error) => Err(error),
        };
        let mut nodes = self.nodes.lock();
        nodes.read += u64::from(before.is_none());
        match result {
            Ok(()) => {}
            Err(OpError::Repo(error)) if error.is_damage() => {
                nodes.hits.broken.insert(node_key(&visit.id));
                let name = format!("tree node {} of {}", visit.id, root_name(&self.roots[visit.root]));
                nodes.report.error(name, &error);
            }
            Err(error) => return Err(error),
        }
        Ok(children)
    }

    /// Checks a leaf and, the first time, adds what its entries refer to.
    fn leaf(
        &self,
        visit: &Visit,
        bytes: &[u8],
        mut needed: Option<&mut Needed>,
        opener: &mut Opener,
    ) -> Result<(), OpError> {
        let mut cursor = open(visit, bytes).map_err(RepoError::from)?;
        let count = cursor.left() as u64;
        let mut size = 0u64;
        let mut first_key = None;
        let mut problem = None;
        let mut is_hit = false;
        while cursor.step().map_err(RepoError::from)? {
            first_key.get_or_insert_with(|| cursor.key().to_vec());
            match admit(visit.kind, cursor.key(), cursor.value()) {
                Ok(entry) => {
                    size = size.saturating_add(entry.size());
                    if let Some(needed) = &mut needed {
                        is_hit |= self.contents.collect(&entry, &mut needed.chunks, opener)?;
                    }
                }
                // The other entries are looked at all the same.
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        if is_hit {
            self.nodes.lock().hits.leaves.insert(node_key(&visit.id));
        }
        problem
            .map_or(Ok(()), Err)
            .and_then(|()| compare(visit, first_key.as_deref(), cursor.key(), (count, size)))
            .map_err(|error| RepoError::from(error).into())
    }
}

/// Reads the children of an inner node. They are looked at even when it is not what was said about it.
fn inner(visit: &Visit, bytes: &[u8], children: &mut Vec<Visit>) -> Result<(), FormatError> {
    let mut cursor = open(visit, bytes)?;
    let mut totals = (0u64, 0u64);
    while cursor.step()? {
        let child = Child::decode(cursor.value())?;
        totals.0 = totals.0.saturating_add(child.leaf_entries);
        totals.1 = totals.1.saturating_add(child.file_bytes);
        if let Some(before) = children.last_mut() {
            before.key_end = Some(cursor.key().to_vec());
        }
        children.push(Visit {
            id: child.id,
            root: visit.root,
            kind: visit.kind,
            is_root: false,
            level: visit.level - 1,
            first_key: Some(cursor.key().to_vec()),
            key_end: visit.key_end.clone(),
            totals: (child.leaf_entries, child.file_bytes),
        });
    }
    let first_key = children.first().and_then(|child| child.first_key.as_deref());
    compare(visit, first_key, cursor.key(), totals)
}

fn open<'b>(visit: &Visit, bytes: &'b [u8]) -> Result<NodeCursor<&'b [u8]>, FormatError> {
    let cursor = NodeCursor::open(bytes)?;
    if cursor.level() != visit.level {
        return Err(refused("tree: a node is on the wrong level"));
    }
    if cursor.left() == 0 && !visit.is_root {
        return Err(refused("tree: an empty node below the root"));
    }
    Ok(cursor)
}

/// Compares a node with what was said about it above. That keys ascend within it was checked on the way.
fn compare(visit: &Visit, first_key: Option<&[u8]>, last_key: &[u8], totals: (u64, u64)) -> Result<(), FormatError> {
    if visit.first_key.is_some() && visit.first_key.as_deref() != first_key {
        return Err(refused("tree: the first key of a node is not the one above it"));
    }
    if visit.key_end.as_deref().is_some_and(|end| last_key >= end) {
        return Err(refused("tree: keys do not ascend from node to node"));
    }
    if totals != visit.totals {
        return Err(refused("tree: totals of a node are not those above it"));
    }
    Ok(())
}

/// Decodes an entry and checks all that can be said about it without the rest of its tree.
fn admit(kind: RootKind, key: &[u8], value: &[u8]) -> Result<Entry, FormatError> {
    rules::check_key(kind, key)?;
    rules::decode_entry(kind, value)
}

fn refused(what: &'static str) -> FormatError {
    FormatError::Malformed(Malformed { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::format::node::Node;

    fn visit(first_key: Option<&[u8]>, key_end: Option<&[u8]>, totals: (u64, u64)) -> Visit {
        Visit {
            id: ChunkId([1; 32]),
            root: 0,
            kind: RootKind::ObjectMap,
            is_root: first_key.is_none(),
            level: 1,
            first_key: first_key.map(<[u8]>::to_vec),
            key_end: key_end.map(<[u8]>::to_vec),
            totals,
        }
    }

    fn node() -> Vec<u8> {
        let child = |byte, leaf_entries, file_bytes| {
            let id = ChunkId([byte; 32]);
            Child {
                id,
                leaf_entries,
                file_bytes,
            }
            .encode()
        };
        Node::encode(1, &[(b"b".to_vec(), child(2, 3, 10)), (b"d".to_vec(), child(3, 4, 20))])
    }

    #[test]
    fn each_child_ends_where_the_next_one_begins() {
        let mut children = Vec::new();
        inner(&visit(Some(b"b"), Some(b"x"), (7, 30)), &node(), &mut children).unwrap();
        let ranges: Vec<_> = children
            .iter()
            .map(|child| (child.first_key.clone().unwrap(), child.key_end.clone().unwrap()))
            .collect();
        assert_eq!(ranges, [(b"b".to_vec(), b"d".to_vec()), (b"d".to_vec(), b"x".to_vec())]);
        assert_eq!((children[1].level, children[1].totals), (0, (4, 20)));
    }

    #[test]
    fn a_node_that_is_not_what_its_parent_says_is_refused_and_its_children_are_known() {
        let sound = [visit(None, None, (7, 30)), visit(Some(b"b"), Some(b"e"), (7, 30))];
        for visit in sound {
            inner(&visit, &node(), &mut Vec::new()).unwrap();
        }
        for visit in [
            visit(Some(b"a"), None, (7, 30)),
            visit(Some(b"b"), Some(b"d"), (7, 30)),
            visit(Some(b"b"), None, (6, 30)),
            visit(Some(b"b"), None, (7, 31)),
        ] {
            let mut children = Vec::new();
            inner(&visit, &node(), &mut children).unwrap_err();
            assert_eq!(children.len(), 2);
        }
        let mut deeper = visit(Some(b"b"), None, (7, 30));
        deeper.level = 2;
        inner(&deeper, &node(), &mut Vec::new()).unwrap_err();
    }
}
