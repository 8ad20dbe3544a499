//! Which files of which snapshots damage hits.
//!
//! The walk through the trees says which leaves have entries that are hit; only the way to those is gone here, once for each
//! node and path of a root, and what is known of a node by then goes for every snapshot that has it.

use super::contents::Contents;
use super::lost::Lost;
use super::report::{DamagedFile, Report};
use super::trees::{Hits, SnapshotRoot};
use crate::ops::OpError;
use crate::ops::look::full_path;
use crate::ops::node_key::{NodeKey, node_key};
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::Entry;
use crate::pure::format::manifest::Root;
use crate::pure::format::node::{Child, NodeCursor};
use crate::pure::id::ChunkId;
use crate::repo::RepoError;
use crate::repo::reader::BlobReader;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher;
use std::rc::Rc;

/// At most this many damaged files are named; the count goes on.
const FILES_NAMED_MAX: usize = 1000;

/// So many different paths are counted exactly (8 bytes each).
const FILES_COUNTED_MAX: usize = 1_000_000;

/// Names the files that damage hits, and the snapshots that they are in.
///
/// # Errors
/// When the store or the index cannot be read.
pub(super) fn name_files(
    reader: &BlobReader<'_>,
    roots: &[SnapshotRoot],
    hits: &Hits,
    lost: &Lost,
    report: &mut Report,
) -> Result<(), OpError> {
    let mut namer = Namer {
        contents: Contents::new(reader, lost, false),
        hits,
        below: HashMap::new(),
        numbers: HashMap::new(),
        files: Vec::new(),
        hasher: RandomState::new(),
        counted: HashSet::new(),
        opener: Opener::new(),
    };
    let mut by_path: BTreeMap<&[u8], Vec<&SnapshotRoot>> = BTreeMap::new();
    for root in roots {
        by_path.entry(&root.root.path).or_default().push(root);
    }
    for roots in by_path.values() {
        // The same node below another root has other paths.
        namer.below.clear();
        // The newest first: when not all can be named, those are what people want to know of.
        for SnapshotRoot { snapshot, root } in roots.iter().rev() {
            let label = snapshot.short();
            for number in namer.node(root, &root.node, root.height)?.iter() {
                namer.files[*number].1.insert(label.clone());
            }
        }
    }
    report.damaged_files_total = namer.counted.len() as u64;
    report.damaged_files = namer
        .files
        .into_iter()
        .map(|(path, snapshots)| DamagedFile {
            path,
            snapshots: snapshots.into_iter().collect(),
        })
        .collect();
    report.damaged_files.sort_unstable();
    Ok(())
}

struct Namer<'n, 'r> {
    contents: Contents<'n, 'r>,
    hits: &'n Hits,
    /// For each node that was looked at, the files below it that are named: positions in `files`.
    below: HashMap<NodeKey, Rc<[usize]>>,
    numbers: HashMap<Vec<u8>, usize>,
    files: Vec<(Vec<u8>, BTreeSet<String>)>,
    hasher: RandomState,
    /// Hashes of all paths that are hit, named or not.
    counted: HashSet<u64>,
    opener: Opener,
}

impl Namer<'_, '_> {
    /// Returns the named files below a node. Descends at most sixteen levels: the node says which it is on.
    fn node(&mut self, root: &Root, id: &ChunkId, level: u8) -> Result<Rc<[usize]>, OpError> {
        if level == 0 && !self.hits.leaves.contains(&node_key(id)) && !self.hits.broken.contains(&node_key(id)) {
            return Ok(Rc::default());
        }
        if let Some(below) = self.below.get(&node_key(id)) {
            return Ok(below.clone());
        }
        let mut files = BTreeSet::new();
        let is_whole = match self.look_into(root, id, level, &mut files) {
            Ok(()) => !self.hits.broken.contains(&node_key(id)),
            Err(OpError::Repo(error)) if error.is_damage() => false,
            Err(error) => return Err(error),
        };
        if !is_whole {
            let path = [&root.path, b" (a part of its tree)".as_slice()].concat();
            files.extend(self.name(path));
        }
        let files: Rc<[usize]> = files.into_iter().collect();
        self.below.insert(node_key(id), files.clone());
        Ok(files)
    }

    fn look_into(&mut self, root: &Root, id: &ChunkId, level: u8, files: &mut BTreeSet<usize>) -> Result<(), OpError> {
        let mut bytes = Vec::new();
        self.contents.read(BlobType::Node, id, &mut self.opener, &mut bytes)?;
        let mut cursor = NodeCursor::open(bytes.as_slice()).map_err(RepoError::from)?;
        while cursor.step().map_err(RepoError::from)? {
            if level > 0 {
                let child = Child::decode(cursor.value()).map_err(RepoError::from)?;
                files.extend(self.node(root, &child.id, level - 1)?.iter());
            } else if self.is_hit(cursor.value())? {
                files.extend(self.name(full_path(root, cursor.key())?));
            }
        }
        Ok(())
    }

    fn is_hit(&mut self, value: &[u8]) -> Result<bool, OpError> {
        let entry = Entry::decode(value).map_err(RepoError::from)?;
        let mut needed = Vec::new();
        let is_hit = self.contents.collect(&entry, &mut needed, &mut self.opener)?;
        Ok(self.contents.lost_of(&needed)?.contains(&true) || is_hit)
    }

    /// Counts a file, and gives it a number if it is to be named.
    fn name(&mut self, path: Vec<u8>) -> Option<usize> {
        if self.counted.len() < FILES_COUNTED_MAX {
            self.counted.insert(self.hasher.hash_one(&path));
        }
        if let Some(number) = self.numbers.get(&path) {
            return Some(*number);
        }
        if self.files.len() == FILES_NAMED_MAX {
            return None;
        }
        let number = self.files.len();
        self.numbers.insert(path.clone(), number);
        self.files.push((path, BTreeSet::new()));
        Some(number)
    }
}
