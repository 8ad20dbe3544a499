//! Looking into snapshots: opening a tree for reading, listing, finding, comparing.

use super::OpError;
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::{Entry, EntryKind};
use crate::pure::format::manifest::{Root, RootKind};
use crate::pure::format::name::ObjectName;
use crate::pure::id::{ChunkId, SessionId};
use crate::pure::tree::key;
use crate::pure::tree::walk::{self, Difference, TreeWalk};
use crate::repo::index::ChunkPlace;
use crate::repo::locate::{IndexLocator, Locate, RunLocator};
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, RepoError};
use std::sync::OnceLock;

/// Runs whose import would cost more than this are searched by ranged reads instead, when only a little is wanted.
const IMPORT_BYTES_MAX: u64 = 4 << 20;

/// How much of a snapshot an operation will read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appetite {
    /// A few files: a machine without an index does not fetch it.
    Little,
    /// Most of it: the index pays for itself.
    Much,
}

/// Prepares to read a snapshot's blobs. For much of it, the index is brought up to date first; for a little of it, only when
/// something is not found without.
///
/// # Errors
/// When the repository cannot be read.
pub fn open_reader<'r>(repo: &'r Repo, snapshot: &Snapshot, appetite: Appetite) -> Result<BlobReader<'r>, OpError> {
    let locator: Box<dyn Locate> = match appetite {
        Appetite::Much => {
            repo.sync_index()?;
            return Ok(open_synced_reader(repo, snapshot));
        }
        Appetite::Little => {
            let mut near = vec![snapshot.id];
            near.extend_from_slice(&snapshot.manifest.parents);
            Box::new(LazyLocator {
                near,
                late: OnceLock::new(),
            })
        }
    };
    Ok(BlobReader::new(repo, locator).with_hints(&snapshot.manifest.hints))
}

/// As [`open_reader`] for much of a snapshot, when the caller has just brought the index up to date.
pub fn open_synced_reader<'r>(repo: &'r Repo, snapshot: &Snapshot) -> BlobReader<'r> {
    BlobReader::new(repo, Box::new(IndexLocator)).with_hints(&snapshot.manifest.hints)
}

/// The local index as it is; when it does not know a chunk, what the repository lists now: imported if that is cheap, else
/// searched by ranged reads.
struct LazyLocator {
    /// Sessions whose runs are asked first.
    near: Vec<SessionId>,
    late: OnceLock<Option<RunLocator>>,
}

impl LazyLocator {
    fn late(&self, repo: &Repo) -> Result<&Option<RunLocator>, RepoError> {
        if let Some(late) = self.late.get() {
            return Ok(late);
        }
        // What is found is verified by its own seal and id, so a run serves whether it counts or not.
        let mut runs = repo.valid_runs()?.listed;
        let known = repo.index.known_runs()?;
        let unseen: u64 = runs
            .iter()
            .filter(|(session, number, _)| !known.contains(&ObjectName::Run(*session, *number).to_string()))
            .map(|(_, _, size)| size)
            .sum();
        let late = if unseen > IMPORT_BYTES_MAX {
            let rank = |session: &SessionId| {
                self.near
                    .iter()
                    .position(|near| near == session)
                    .unwrap_or(self.near.len())
            };
            runs.sort_by_key(|(session, number, _)| (rank(session), std::cmp::Reverse(*number)));
            Some(RunLocator::new(runs))
        } else {
            repo.sync_index()?;
            None
        };
        Ok(self.late.get_or_init(|| late))
    }
}

impl Locate for LazyLocator {
    fn copies(&self, repo: &Repo, id: &ChunkId) -> Result<Vec<ChunkPlace>, RepoError> {
        let copies = repo.index.find_all(id)?;
        if !copies.is_empty() {
            return Ok(copies);
        }
        match self.late(repo)? {
            Some(runs) => runs.copies(repo, id),
            None => Ok(repo.index.find_all(id)?),
        }
    }
}

/// A place in a snapshot: a root, and a path below it.
#[derive(Clone, Debug)]
pub struct Location<'s> {
    pub root: &'s Root,
    /// Components below the root; none: the root itself.
    pub below: Vec<Vec<u8>>,
}

/// Splits a path into components; empty ones and `.` are skipped.
pub fn split_path(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

/// Finds the root that a path lies in (the deepest one that fits), and what is left below it.
///
/// # Errors
/// When no root contains the path.
pub fn locate<'s>(snapshot: &'s Snapshot, path: &[u8]) -> Result<Location<'s>, OpError> {
    let wanted = split_path(path);
    let mut best: Option<(usize, Location<'s>)> = None;
    for root in &snapshot.manifest.roots {
        let prefix = match root.kind {
            RootKind::StreamSet | RootKind::ObjectMap => Vec::new(),
            _ => split_path(&root.path),
        };
        if wanted.starts_with(&prefix) && best.as_ref().is_none_or(|(length, _)| prefix.len() >= *length) {
            let below = wanted[prefix.len()..].to_vec();
            best = Some((prefix.len(), Location { root, below }));
        }
    }
    best.map(|(_, location)| location).ok_or_else(|| {
        let roots: Vec<String> = snapshot
            .manifest
            .roots
            .iter()
            .map(|root| String::from_utf8_lossy(&root.path).into_owned())
            .collect();
        OpError::Usage(format!(
            "{} is in no root of this snapshot; its roots are: {}",
            String::from_utf8_lossy(path),
            roots.join(", ")
        ))
    })
}

/// Key of a location in its root's tree.
pub fn key_of(location: &Location<'_>) -> Vec<u8> {
    match location.root.kind {
        RootKind::StreamSet | RootKind::ObjectMap => location.below.join(&b'/'),
        _ => {
            let parts: Vec<&[u8]> = location.below.iter().map(Vec::as_slice).collect();
            key::from_components(&parts)
        }
    }
}

/// Reads the entry at a location.
///
/// # Errors
/// When there is none, or the repository cannot be read.
pub fn entry_at(location: &Location<'_>, nodes: &mut TreeReader<'_, '_>) -> Result<Option<Entry>, OpError> {
    let root = location.root;
    if root.kind == RootKind::StreamSet && location.below.is_empty() {
        return Ok(None);
    }
    match walk::lookup(root.node, root.height, &key_of(location), nodes)? {
        Some(value) => Ok(Some(Entry::decode(&value).map_err(RepoError::from)?)),
        None => Err(OpError::Usage(format!(
            "{}/{} is not in this snapshot",
            String::from_utf8_lossy(&root.path),
            String::from_utf8_lossy(&location.below.join(&b'/'))
        ))),
    }
}

/// Full path of a key of a root, as people write it.
pub fn full_path(root: &Root, tree_key: &[u8]) -> Result<Vec<u8>, RepoError> {
    match root.kind {
        RootKind::StreamSet | RootKind::ObjectMap => Ok(tree_key.to_vec()),
        _ => {
            let below =
                key::path(tree_key).map_err(|error| RepoError::from(crate::pure::format::FormatError::from(error)))?;
            let mut path = root.path.clone();
            if !below.is_empty() {
                if path.last() != Some(&b'/') {
                    path.push(b'/');
                }
                path.extend_from_slice(&below);
            }
            Ok(path)
        }
    }
}

/// Calls `each` with full path and entry for everything at and below a path (only the direct children unless `recursive`).
///
/// # Errors
/// When the path is not there, or the repository cannot be read.
pub fn list(
    snapshot: &Snapshot,
    path: Option<&[u8]>,
    recursive: bool,
    nodes: &mut TreeReader<'_, '_>,
    each: &mut dyn FnMut(&[u8], &Entry) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let locations = match path {
        Some(path) => vec![locate(snapshot, path)?],
        None => snapshot
            .manifest
            .roots
            .iter()
            .map(|root| Location {
                root,
                below: Vec::new(),
            })
            .collect(),
    };
    for location in locations {
        let root = location.root;
        let prefix = match entry_at(&location, nodes)? {
            Some(entry) if !matches!(entry.kind, EntryKind::Dir) || path.is_none() => {
                each(&full_path(root, &key_of(&location))?, &entry)?;
                if !matches!(entry.kind, EntryKind::Dir) {
                    continue;
                }
                subtree(&location, recursive)
            }
            Some(_) => subtree(&location, recursive),
            None => Vec::new(),
        };
        let mut walk = TreeWalk::new(root.node, root.height, &prefix);
        while let Some((tree_key, value)) = walk.next(nodes)? {
            if !tree_key.starts_with(&prefix) {
                break;
            }
            // The root's own entry has been shown.
            if tree_key == [0] && root.kind == RootKind::Posix {
                continue;
            }
            let entry = Entry::decode(&value).map_err(RepoError::from)?;
            each(&full_path(root, &tree_key)?, &entry)?;
        }
    }
    Ok(())
}

fn subtree(location: &Location<'_>, recursive: bool) -> Vec<u8> {
    let parts: Vec<&[u8]> = location.below.iter().map(Vec::as_slice).collect();
    if recursive {
        key::subtree_prefix(&parts)
    } else {
        key::children_prefix(&parts)
    }
}

/// What differs between two entries at one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Removed,
    Content,
    Kind,
    Metadata,
}

/// Calls `each` for every path that differs between two snapshots, roots matched by path.
///
/// # Errors
/// When the repository cannot be read.
pub fn diff(
    old: &Snapshot,
    new: &Snapshot,
    below: Option<&[u8]>,
    nodes: &mut TreeReader<'_, '_>,
    each: &mut dyn FnMut(Change, &[u8], Option<&Entry>, Option<&Entry>) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let within = |path: &[u8]| {
        below.is_none_or(|below| {
            let below = below.strip_suffix(b"/").unwrap_or(below);
            path.strip_prefix(below)
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        })
    };
    for root in &new.manifest.roots {
        let Some(before) = old
            .manifest
            .roots
            .iter()
            .find(|other| other.path == root.path && other.kind == root.kind)
        else {
            let mut walk = TreeWalk::new(root.node, root.height, &[]);
            while let Some((tree_key, value)) = walk.next(nodes)? {
                let path = full_path(root, &tree_key)?;
                if within(&path) {
                    each(
                        Change::Added,
                        &path,
                        None,
                        Some(&Entry::decode(&value).map_err(RepoError::from)?),
                    )?;
                }
            }
            continue;
        };
        let mut found = Vec::new();
        walk::diff(
            (before.node, before.height),
            (root.node, root.height),
            nodes,
            &mut |difference| {
                found.push(difference);
                Ok::<(), RepoError>(())
            },
        )?;
        for difference in found {
            let decode = |value: &[u8]| Entry::decode(value).map_err(RepoError::from);
            match difference {
                Difference::Added { key, value } => {
                    let path = full_path(root, &key)?;
                    if within(&path) {
                        each(Change::Added, &path, None, Some(&decode(&value)?))?;
                    }
                }
                Difference::Removed { key, value } => {
                    let path = full_path(root, &key)?;
                    if within(&path) {
                        each(Change::Removed, &path, Some(&decode(&value)?), None)?;
                    }
                }
                Difference::Changed { key, old, new } => {
                    let path = full_path(root, &key)?;
                    if within(&path) {
                        let (old, new) = (decode(&old)?, decode(&new)?);
                        each(classify(&old, &new), &path, Some(&old), Some(&new))?;
                    }
                }
            }
        }
    }
    for root in &old.manifest.roots {
        if new
            .manifest
            .roots
            .iter()
            .any(|other| other.path == root.path && other.kind == root.kind)
        {
            continue;
        }
        let mut walk = TreeWalk::new(root.node, root.height, &[]);
        while let Some((tree_key, value)) = walk.next(nodes)? {
            let path = full_path(root, &tree_key)?;
            if within(&path) {
                each(
                    Change::Removed,
                    &path,
                    Some(&Entry::decode(&value).map_err(RepoError::from)?),
                    None,
                )?;
            }
        }
    }
    Ok(())
}

fn classify(old: &Entry, new: &Entry) -> Change {
    if std::mem::discriminant(&old.kind) != std::mem::discriminant(&new.kind) {
        Change::Kind
    } else if old.kind != new.kind {
        Change::Content
    } else {
        Change::Metadata
    }
}

/// Says whether a file is newer than a time.
pub fn newer_than(entry: &Entry, limit: FileTime) -> bool {
    entry.mtime > limit
}
