//! Looking into snapshots: opening a tree for reading, listing, finding, comparing.

use super::OpError;
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::{Entry, EntryKind};
use crate::pure::format::manifest::{Root, RootKind};
use crate::pure::format::{FormatError, Malformed};
use crate::pure::id::{ChunkId, SessionId};
use crate::pure::tree::key;
use crate::pure::tree::rules::{self, RootWalk};
use crate::pure::tree::walk::{self, Difference};
use crate::repo::index::ChunkPlace;
use crate::repo::locate::{IndexLocator, Locate, RunLocator};
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::runs::ListedRun;
use crate::repo::snapshots::{HistoryState, Snapshot};
use crate::repo::{Repo, RepoError};
use parking_lot::{Mutex, RwLock};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Runs whose import would cost more than this are searched by ranged reads instead, when only a little is wanted.
const IMPORT_BYTES_MAX: u64 = 4 << 20;
/// When ranged reads have cost this share of what an import would, the rest is imported: it comes in few large requests.
const RANGED_SHARE: u64 = 4;

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
            import(repo)?;
            return Ok(open_synced_reader(repo, snapshot));
        }
        Appetite::Little => {
            let mut near = vec![snapshot.id];
            near.extend_from_slice(&snapshot.manifest.parents);
            Box::new(LazyLocator {
                repo,
                near,
                late: RwLock::new(Late::Unasked),
                found: Mutex::new(Vec::new()),
            })
        }
    };
    Ok(BlobReader::new(repo, locator).with_hints(&snapshot.manifest.hints))
}

/// As [`open_reader`] for much of a snapshot, when the caller has just brought the index up to date.
pub fn open_synced_reader<'r>(repo: &'r Repo, snapshot: &Snapshot) -> BlobReader<'r> {
    BlobReader::new(repo, Box::new(IndexLocator)).with_hints(&snapshot.manifest.hints)
}

/// The local index as it is; when it does not know a chunk, or what it knows is not there any more, what the repository
/// lists now: imported if that is cheap, else searched by ranged reads, as long as that is cheaper.
///
/// What a search has found is remembered on this machine, so that the next look at the same file need not search.
struct LazyLocator<'r> {
    repo: &'r Repo,
    /// Sessions whose runs are asked first.
    near: Vec<SessionId>,
    late: RwLock<Late>,
    /// Found by searching, and not remembered yet.
    found: Mutex<Vec<(ChunkId, ChunkPlace)>>,
}

enum Late {
    /// The local index has done so far.
    Unasked,
    /// Searched by ranged reads, until they have cost so many bytes.
    Runs(Arc<RunLocator>, u64),
    /// The local index is in sync.
    Imported,
}

impl LazyLocator<'_> {
    /// A cache that cannot be written costs another search at the next look.
    fn remember(&self, found: &[(ChunkId, ChunkPlace)]) {
        let _ = self.repo.nodes.put_places(found);
    }

    fn note(&self, id: &ChunkId, place: ChunkPlace) {
        /// So many are written at once.
        const BATCH: usize = 1024;
        let mut found = self.found.lock();
        found.push((*id, place));
        if found.len() >= BATCH {
            self.remember(&found);
            found.clear();
        }
    }

    /// Returns the runs to search, or `None` when the local index is in sync.
    fn late(&self, repo: &Repo) -> Result<Option<Arc<RunLocator>>, RepoError> {
        if let Some(answer) = self.late.read().answer() {
            return Ok(answer);
        }
        let mut late = self.late.write();
        // Another thread may have been faster.
        if let Some(answer) = late.answer() {
            return Ok(answer);
        }
        *late = match *late {
            Late::Unasked => self.first_late(repo)?,
            _ => import(repo)?,
        };
        Ok(late.answer().flatten())
    }

    fn first_late(&self, repo: &Repo) -> Result<Late, RepoError> {
        // What is found is verified by its own seal and id, so a run serves whether it counts or not.
        let mut runs = repo.list_runs()?;
        let known = repo.index.known_runs()?;
        let unseen = runs.iter().filter(|run| !known.contains(&run.name()));
        let unseen: u64 = unseen.map(ListedRun::size).sum();
        if unseen <= IMPORT_BYTES_MAX {
            return import(repo);
        }
        let rank = |session: &SessionId| {
            self.near
                .iter()
                .position(|near| near == session)
                .unwrap_or(self.near.len())
        };
        // Large ones next: those that they were made of are asked last, if they are still there.
        runs.sort_by_key(|run| (rank(&run.session), std::cmp::Reverse((run.level, run.number))));
        Ok(Late::Runs(Arc::new(RunLocator::new(runs)), unseen / RANGED_SHARE))
    }
}

impl Drop for LazyLocator<'_> {
    fn drop(&mut self) {
        let found = std::mem::take(self.found.get_mut());
        if !found.is_empty() {
            self.remember(&found);
        }
    }
}

impl Late {
    /// `None`: not known yet, or too dear by now.
    fn answer(&self) -> Option<Option<Arc<RunLocator>>> {
        match self {
            Late::Runs(runs, bytes_max) if runs.bytes_read() <= *bytes_max => Some(Some(runs.clone())),
            Late::Imported => Some(None),
            Late::Unasked | Late::Runs(..) => None,
        }
    }
}

/// Brings the local index up to date. Which runs count is said by the outcomes, so these come first: of a snapshot that was
/// named on a new machine, only its own may have been read.
fn import(repo: &Repo) -> Result<Late, RepoError> {
    repo.sync_outcomes(&mut HistoryState::default())?;
    repo.sync_index()?;
    Ok(Late::Imported)
}

impl Locate for LazyLocator<'_> {
    fn copies(
        &self,
        repo: &Repo,
        id: &ChunkId,
        each: &mut dyn FnMut(ChunkPlace) -> ControlFlow<()>,
    ) -> Result<(), RepoError> {
        let mut tried = Vec::new();
        let mut each_new = |place: ChunkPlace| {
            if tried.contains(&(place.pack, place.offset)) {
                return ControlFlow::Continue(());
            }
            tried.push((place.pack, place.offset));
            each(place)
        };
        let known = repo.index.find_all(id)?;
        // Copies in packs that are known to be absent come last: they are no reason not to look for others.
        if repo.index.find(id)?.is_some() && known.iter().cloned().try_for_each(&mut each_new).is_break() {
            return Ok(());
        }
        if let Some(place) = repo.nodes.place(id)
            && each_new(place).is_break()
        {
            return Ok(());
        }
        let Some(runs) = self.late(repo)? else {
            return IndexLocator.copies(repo, id, &mut each_new);
        };
        let mut wanted = ControlFlow::Continue(());
        runs.copies(repo, id, &mut |place| {
            wanted = each_new(place.clone());
            if wanted.is_break() {
                self.note(id, place);
            }
            wanted
        })?;
        if wanted.is_continue() {
            let _ = known.into_iter().try_for_each(each_new);
        }
        Ok(())
    }
}

/// A place in a snapshot: a root, and a path below it.
#[derive(Clone, Debug)]
pub struct Location<'s> {
    pub root: &'s Root,
    /// Components below the root; none: the root itself.
    pub below: Vec<Vec<u8>>,
    /// The whole root, seen from so many components of its path; `None`: what was asked for is the root or below it.
    pub above: Option<usize>,
}

impl<'s> Location<'s> {
    fn whole(root: &'s Root, above: usize) -> Location<'s> {
        Location {
            root,
            below: Vec::new(),
            above: Some(above),
        }
    }
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
            let above = None;
            best = Some((prefix.len(), Location { root, below, above }));
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

/// Finds everything that a path names: the place in the deepest root that contains it, and the roots that lie below it. No
/// path: all roots.
///
/// # Errors
/// When there is nothing.
pub fn locate_all<'s>(snapshot: &'s Snapshot, path: Option<&[u8]>) -> Result<Vec<Location<'s>>, OpError> {
    let roots = &snapshot.manifest.roots;
    let Some(path) = path else {
        return Ok(roots.iter().map(|root| Location::whole(root, 0)).collect());
    };
    let wanted = split_path(path);
    let is_below = |root: &&Root| {
        let parts = split_path(&root.path);
        rules::is_path_tree(root.kind) && parts.len() > wanted.len() && parts.starts_with(&wanted)
    };
    let further = roots
        .iter()
        .filter(is_below)
        .map(|root| Location::whole(root, wanted.len()));
    match locate(snapshot, path) {
        Ok(location) => Ok(std::iter::once(location).chain(further).collect()),
        Err(nowhere) => Some(further.collect::<Vec<_>>())
            .filter(|further| !further.is_empty())
            .ok_or(nowhere),
    }
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
    if location.below.is_empty() && !rules::is_path_tree(root.kind) {
        return Ok(None);
    }
    match walk::lookup(root.node, root.height, &key_of(location), nodes)? {
        Some(value) => Ok(Some(rules::decode_entry(root.kind, &value).map_err(RepoError::from)?)),
        None if location.below.is_empty() => {
            let missing = Malformed {
                what: "tree: the root has no entry",
            };
            Err(RepoError::from(FormatError::from(missing)).into())
        }
        None => Err(OpError::Usage(format!(
            "{}/{} is not in this snapshot",
            String::from_utf8_lossy(&root.path),
            String::from_utf8_lossy(&location.below.join(&b'/'))
        ))),
    }
}

/// Whether a snapshot has anything at a path, or roots below it.
///
/// # Errors
/// When the repository cannot be read.
pub fn holds(snapshot: &Snapshot, path: &[u8], nodes: &mut TreeReader<'_, '_>) -> Result<bool, OpError> {
    let locations = match locate_all(snapshot, Some(path)) {
        Err(OpError::Usage(_)) => return Ok(false),
        found => found?,
    };
    for location in &locations {
        match entry_at(location, nodes) {
            Err(OpError::Usage(_)) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(true),
        }
    }
    Ok(false)
}

/// Full path of a key of a root, as people write it.
pub fn full_path(root: &Root, tree_key: &[u8]) -> Result<Vec<u8>, RepoError> {
    match root.kind {
        RootKind::StreamSet | RootKind::ObjectMap => Ok(tree_key.to_vec()),
        _ => {
            let below = key::path(tree_key).map_err(|error| RepoError::from(FormatError::from(error)))?;
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
/// What is damaged is passed over, and told when everything else has been shown.
///
/// # Errors
/// When the path is not there, or the repository cannot be read; those of `each`.
pub fn list(
    snapshot: &Snapshot,
    path: Option<&[u8]>,
    recursive: bool,
    nodes: &mut TreeReader<'_, '_>,
    each: &mut dyn FnMut(&[u8], &Entry) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let locations = locate_all(snapshot, path)?;
    let mut lost: Option<RepoError> = None;
    for location in locations {
        let root = location.root;
        let mut recursive = recursive;
        if let Some(entry) = entry_at(&location, nodes)? {
            let is_dir = entry.kind == EntryKind::Dir;
            if !is_dir || location.above.is_some() {
                each(&full_path(root, &key_of(&location))?, &entry)?;
            }
            if !is_dir && !location.below.is_empty() {
                continue;
            }
            // There is nothing below a root that is no directory; if there is, the walk says so.
            recursive |= !is_dir;
        }
        let mut walk = walk_below(&location, recursive);
        loop {
            let visited = match walk.next(nodes) {
                Ok(Some(visited)) => visited,
                Ok(None) => break,
                Err(error) if walk.has_refused() || error.is_damage() => {
                    if walk.skip_failed().is_some() {
                        lost.get_or_insert(error);
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            // The root's own entry has been shown.
            if visited.key == key::ROOT && rules::is_path_tree(root.kind) {
                continue;
            }
            each(&full_path(root, &visited.key)?, &visited.entry)?;
        }
    }
    lost.map_or(Ok(()), |error| Err(error.into()))
}

/// Walks what is below a directory, or all of a root whose keys are no paths.
fn walk_below(location: &Location<'_>, recursive: bool) -> RootWalk {
    let whole = recursive && location.below.is_empty();
    if whole || !rules::is_path_tree(location.root.kind) {
        return RootWalk::whole(location.root);
    }
    let parts: Vec<&[u8]> = location.below.iter().map(Vec::as_slice).collect();
    RootWalk::below(location.root, &parts, recursive)
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
            let mut walk = RootWalk::whole(root);
            while let Some(visited) = walk.next(nodes)? {
                let path = full_path(root, &visited.key)?;
                if within(&path) {
                    each(Change::Added, &path, None, Some(&visited.entry))?;
                }
            }
            continue;
        };
        let decode = |value: &[u8]| rules::decode_entry(root.kind, value).map_err(RepoError::from);
        let mut show = |difference: Difference| -> Result<(), OpError> {
            let (Difference::Added { key, .. } | Difference::Removed { key, .. } | Difference::Changed { key, .. }) =
                &difference;
            let path = full_path(root, key)?;
            if !within(&path) {
                return Ok(());
            }
            match &difference {
                Difference::Added { value, .. } => each(Change::Added, &path, None, Some(&decode(value)?)),
                Difference::Removed { value, .. } => each(Change::Removed, &path, Some(&decode(value)?), None),
                Difference::Changed { old, new, .. } => {
                    let (old, new) = (decode(old)?, decode(new)?);
                    each(classify(&old, &new), &path, Some(&old), Some(&new))
                }
            }
        };
        // Shown as they are found: there may be as many as there are files.
        let mut failed = None;
        let compared = walk::diff(
            (before.node, before.height),
            (root.node, root.height),
            nodes,
            &mut |difference| {
                show(difference).map_err(|error| {
                    failed = Some(error);
                    RepoError::Interrupted
                })
            },
        );
        if let Some(error) = failed {
            return Err(error);
        }
        compared?;
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
        let mut walk = RootWalk::whole(root);
        while let Some(visited) = walk.next(nodes)? {
            let path = full_path(root, &visited.key)?;
            if within(&path) {
                each(Change::Removed, &path, Some(&visited.entry), None)?;
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
