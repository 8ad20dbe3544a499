//! Trees: every node that snapshots reach is there and holds what it should, and so does every piece of every file.

use super::packs::Bad;
use super::report::Report;
use crate::ops::{OpError, Progress};
use crate::pure::format::entry::{Content, Entry};
use crate::pure::format::list::ListNode;
use crate::pure::format::node::{Child, Node};
use crate::pure::id::ChunkId;
use crate::pure::tree::list::{ListSource, for_each_piece};
use crate::pure::tree::walk::{NodeSource, TreeWalk};
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::{Snapshot, short_id};
use crate::repo::{Repo, RepoError};
use std::collections::HashSet;

/// Reads every tree node that the snapshots reach, and checks that every piece of every file is in the index and that sizes
/// add up. With `collect`, returns the chunks that are reached.
pub(super) fn check_trees(
    repo: &Repo,
    reader: &BlobReader<'_>,
    snapshots: &[Snapshot],
    bad: &mut Bad,
    report: &mut Report,
    progress: &Progress,
    collect: bool,
) -> Result<Option<HashSet<ChunkId>>, OpError> {
    let mut trees = TreeChecker {
        repo,
        nodes: TreeReader::uncached(reader),
        seen: HashSet::new(),
        wanted: collect.then(HashSet::new),
        bad,
        read: 0,
    };
    for snapshot in snapshots {
        progress.set_current(format!("trees of snapshot {}", short_id(&snapshot.id)));
        for root in &snapshot.manifest.roots {
            if progress.is_cancelled() {
                return Err(OpError::Interrupted);
            }
            if let Err(error) = trees.root(root.node, root.height, root.entries, root.bytes) {
                let name = format!(
                    "snapshot {}, root {}",
                    short_id(&snapshot.id),
                    String::from_utf8_lossy(&root.path)
                );
                match error {
                    OpError::Repo(error) if error.is_damage() => report.error(name, &error),
                    error => return Err(error),
                }
            }
        }
    }
    report.trees_read = trees.read;
    Ok(trees.wanted)
}

struct TreeChecker<'a, 'r> {
    repo: &'a Repo,
    nodes: TreeReader<'a, 'r>,
    /// Nodes that have been checked, with what lies below them: (entries, file bytes).
    seen: HashSet<ChunkId>,
    wanted: Option<HashSet<ChunkId>>,
    bad: &'a mut Bad,
    read: u64,
}

impl TreeChecker<'_, '_> {
    fn root(&mut self, node: ChunkId, height: u8, entries: u64, bytes: u64) -> Result<(), OpError> {
        let (found_entries, found_bytes) = self.totals(&node, height)?;
        if (found_entries, found_bytes) != (entries, bytes) {
            return Err(RepoError::Missing {
                object: format!("tree {node}"),
                why: format!("it holds {found_entries} entries and {found_bytes} bytes, not {entries} and {bytes}"),
            }
            .into());
        }
        // Order across nodes, levels and keys are checked by walking, like restore does; nodes are in memory or quick to read.
        if self.seen.insert(node) {
            self.subtree(&node, height)?;
            let mut walk = TreeWalk::new(node, height, &[]);
            while walk.next(&mut self.nodes)?.is_some() {}
        }
        Ok(())
    }

    /// What a node says lies below it.
    fn totals(&mut self, id: &ChunkId, height: u8) -> Result<(u64, u64), OpError> {
        let node = self.decode(id)?;
        let mut entries = 0u64;
        let mut bytes = 0u64;
        for (_, value) in &node.entries {
            let (below, size) = if height == 0 {
                (1, Entry::decode(value).map_err(RepoError::from)?.size())
            } else {
                let child = Child::decode(value).map_err(RepoError::from)?;
                (child.leaf_entries, child.file_bytes)
            };
            entries = entries.saturating_add(below);
            bytes = bytes.saturating_add(size);
        }
        Ok((entries, bytes))
    }

    fn decode(&mut self, id: &ChunkId) -> Result<Node, OpError> {
        let bytes = self.nodes.node(id)?;
        Ok(Node::decode(&bytes).map_err(RepoError::from)?)
    }

    /// Checks everything below a node that has not been checked. Depth is at most 15, so recursion is bounded.
    fn subtree(&mut self, id: &ChunkId, height: u8) -> Result<(), OpError> {
        self.read += 1;
        if let Some(wanted) = &mut self.wanted {
            wanted.insert(*id);
        }
        let node = self.decode(id)?;
        for (_, value) in &node.entries {
            if height == 0 {
                let entry = Entry::decode(value).map_err(RepoError::from)?;
                self.entry(&entry)?;
                continue;
            }
            let child = Child::decode(value).map_err(RepoError::from)?;
            let totals = self.totals(&child.id, height - 1)?;
            if totals != (child.leaf_entries, child.file_bytes) {
                return Err(RepoError::Missing {
                    object: format!("tree node {}", child.id),
                    why: "it does not hold what its parent says".into(),
                }
                .into());
            }
            if self.seen.insert(child.id) {
                self.subtree(&child.id, height - 1)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), OpError> {
        if let Some(content) = entry.content() {
            self.content(content, entry.size())?;
        }
        for (_, size, content) in &entry.attributes.xattrs_outline {
            self.content(content, *size)?;
        }
        Ok(())
    }

    fn content(&mut self, content: &Content, size: u64) -> Result<(), OpError> {
        let mut pieces = Vec::new();
        for_each_piece(content, size, 0..size, &mut self.nodes, &mut |_, piece| {
            pieces.push(piece);
            Ok::<(), RepoError>(())
        })?;
        if let (Content::List { root, .. }, Some(wanted)) = (content, &mut self.wanted) {
            collect_lists(root, &mut self.nodes, wanted)?;
        }
        for piece in pieces {
            if piece.id == ChunkId::HOLE {
                continue;
            }
            if let Some(wanted) = &mut self.wanted {
                wanted.insert(piece.id);
            }
            if !self.bad.contains_key(&piece.id) && self.repo.index.find(&piece.id)?.is_none() {
                self.bad.insert(piece.id, "no index run lists it".into());
            }
        }
        Ok(())
    }
}

fn collect_lists(root: &ChunkId, nodes: &mut TreeReader<'_, '_>, wanted: &mut HashSet<ChunkId>) -> Result<(), OpError> {
    let mut open = vec![*root];
    while let Some(id) = open.pop() {
        if wanted.insert(id)
            && let ListNode::Inner { children, .. } =
                ListNode::decode(&nodes.list_node(&id)?).map_err(RepoError::from)?
        {
            open.extend(children.iter().map(|(child, _)| *child));
        }
    }
    Ok(())
}
