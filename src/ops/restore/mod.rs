//! Restoring: plan in tree order, fetch in pack order, write beneath the target.
//!
//! This thread walks the tree and makes directories, links and devices. Files go to the workers in batches; each batch is
//! sorted by where its chunks lie, so that neighbours in a pack are read together. A file takes its name only when all of it
//! is right.

mod fetch;
mod owners;
mod select;

use super::look::{self, Appetite, Location, open_reader};
use super::{OpError, Progress};
use crate::edge::fs::raise_open_files;
use crate::pure::base::memory::FetchShare;
use crate::pure::format::blob::Opener;
use crate::pure::format::entry::{ChunkRef, Content, Entry, EntryKind};
use crate::pure::format::manifest::RootKind;
use crate::pure::id::ChunkId;
use crate::pure::tree::key;
use crate::pure::tree::list::for_each_piece;
use crate::pure::tree::walk::TreeWalk;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, RepoError};
use crate::target::TargetError;
use crate::target::files::{Decision, DirHandle, LinkSource, Meta, MetaPolicy, Overwrite, Restored, TargetDir};
use fetch::{Fetcher, FilePlan};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

pub use fetch::fetch_share;
pub use owners::OwnerMap;
pub use select::Selection;

/// Problems that are kept in words; the count goes on.
const PROBLEMS_MAX: usize = 1000;

/// What to restore, and how.
pub struct Options {
    pub snapshot: Snapshot,
    /// Restore the contents of this path into the target; everything under full paths otherwise.
    pub path: Option<Vec<u8>>,
    pub target: PathBuf,
    pub selection: Selection,
    /// Remove what the snapshot does not have.
    pub delete: bool,
    pub overwrite: Overwrite,
    /// Read everything back and compare.
    pub verify: bool,
    pub dry_run: bool,
    /// How many fetch, and how much each.
    pub fetch: FetchShare,
    pub policy: MetaPolicy,
    pub owners: OwnerMap,
}

/// What a restore did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub files: u64,
    pub files_unchanged: u64,
    pub dirs: u64,
    /// Links, devices, pipes, sockets.
    pub others: u64,
    pub bytes: u64,
    pub removed: u64,
    pub verified: u64,
    /// Files that could not be restored because the repository is damaged, with the reason.
    pub damaged: Vec<String>,
    pub damaged_total: u64,
    /// Entries that could not be written, and entries that were incomplete in the backup.
    pub failed: Vec<String>,
    pub failed_total: u64,
    /// Metadata that the system refused.
    pub refused: Vec<String>,
    pub refused_total: u64,
}

/// Collects what happens, from any thread.
#[derive(Default)]
pub(crate) struct Outcome {
    report: Mutex<Report>,
    links: Mutex<HashMap<(u64, u64), LinkSource>>,
    /// The first error after which going on is pointless.
    fatal: Mutex<Option<OpError>>,
}

fn keep(list: &mut Vec<String>, text: String) {
    if list.len() < PROBLEMS_MAX {
        list.push(text);
    }
}

impl Outcome {
    pub(crate) fn update(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock());
    }

    pub(crate) fn damaged(&self, path: &[u8], error: &dyn std::error::Error) {
        let mut report = self.report.lock();
        report.damaged_total += 1;
        keep(
            &mut report.damaged,
            format!("{}: {}", path.escape_ascii(), super::check::chain(error)),
        );
    }

    pub(crate) fn failed(&self, text: String) {
        let mut report = self.report.lock();
        report.failed_total += 1;
        keep(&mut report.failed, text);
    }

    fn refused(&self, text: String) {
        let mut report = self.report.lock();
        report.refused_total += 1;
        keep(&mut report.refused, text);
    }

    /// Takes in a repository error about one file: damage is listed, anything else ends the run.
    pub(crate) fn repo_error(&self, path: &[u8], error: RepoError) {
        if error.is_damage() {
            self.damaged(path, &error);
        } else {
            self.fatal.lock().get_or_insert(error.into());
        }
    }

    /// Takes in a target error about one entry: a full or read-only target ends the run.
    pub(crate) fn target_error(&self, error: TargetError) {
        if error.is_final() {
            self.fatal.lock().get_or_insert(error.into());
        } else {
            self.failed(super::check::chain(&error));
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.fatal.lock().is_some()
    }

    /// Takes in what became of an entry, and remembers it if other names may link to it.
    pub(crate) fn restored(&self, entry: &Entry, restored: Restored) {
        for problem in &restored.problems {
            self.refused(problem.to_string());
        }
        if let (Some(link), Some(source)) = (entry.attributes.hard_link, restored.source) {
            self.links.lock().insert((link.device, entry.ino), source);
        }
    }
}

/// A directory that gets its metadata at the end.
struct LaterDir {
    components: Vec<Vec<u8>>,
    value: Vec<u8>,
    /// Root number and key prefix of its children, for `--delete`.
    root: usize,
    below: Vec<Vec<u8>>,
}

/// Another name of a file that this restore writes.
struct LaterLink {
    group: (u64, u64),
    components: Vec<Vec<u8>>,
    value: Vec<u8>,
}

/// Restores.
///
/// # Errors
/// When the repository cannot be read or the target cannot be used. Damage and refusals are in the report.
pub fn run(repo: &Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    raise_open_files();
    let appetite = if options.path.is_some() {
        Appetite::Little
    } else {
        Appetite::Much
    };
    let reader = open_reader(repo, &options.snapshot, appetite)?;
    let mut nodes = TreeReader::new(&reader);
    let locations = match &options.path {
        Some(path) => vec![look::locate(&options.snapshot, path)?],
        None => options
            .snapshot
            .manifest
            .roots
            .iter()
            .map(|root| Location {
                root,
                below: Vec::new(),
            })
            .collect(),
    };
    let outcome = Outcome::default();
    if options.dry_run {
        for location in &locations {
            for_each_selected(location, options, &mut nodes, &mut |_, _, entry, _| {
                outcome.update(|report| count(report, entry));
                Ok(())
            })?;
        }
        return Ok(outcome.report.into_inner());
    }
    let target = TargetDir::open(&options.target, true, options.overwrite, options.policy)?;
    let mut later = Later::default();
    {
        let fetcher = Fetcher {
            repo,
            reader: &reader,
            target: &target,
            outcome: &outcome,
            progress,
        };
        let walked: Result<(), OpError> = fetcher.run(options.fetch, |files| {
            for (number, location) in locations.iter().enumerate() {
                place(
                    location, number, options, &target, &mut nodes, &outcome, files, &mut later,
                )?;
            }
            Ok(())
        });
        walked?;
    }
    if let Some(error) = outcome.fatal.lock().take() {
        return Err(error);
    }
    let mut opener = Opener::new();
    for link in std::mem::take(&mut later.links) {
        make_link(&reader, &target, &mut nodes, &mut opener, &outcome, &link)?;
    }
    if options.delete {
        for dir in &later.dirs {
            delete_unlisted(&locations[dir.root], dir, options, &target, &mut nodes, &outcome)?;
        }
    }
    // Deepest first: a directory that must not be written to gets that mode when everything below it is done.
    for dir in later.dirs.iter().rev() {
        finish_dir(&reader, &target, &mut nodes, &mut opener, &outcome, dir)?;
    }
    for problem in target.finish()? {
        outcome.refused(problem.to_string());
    }
    if options.verify {
        verify(repo, &locations, options, &target, &mut nodes, &outcome, progress)?;
    }
    if let Some(error) = outcome.fatal.lock().take() {
        return Err(error);
    }
    Ok(outcome.report.into_inner())
}

#[derive(Default)]
struct Later {
    dirs: Vec<LaterDir>,
    links: Vec<LaterLink>,
}

fn count(report: &mut Report, entry: &Entry) {
    match entry.kind {
        EntryKind::File { size, .. } | EntryKind::Stream { size, .. } | EntryKind::Object { size, .. } => {
            report.files += 1;
            report.bytes += size;
        }
        EntryKind::Dir => report.dirs += 1,
        _ => report.others += 1,
    }
}

/// Where in the target an entry goes.
fn components_of(location: &Location<'_>, options: &Options, tree_key: &[u8]) -> Result<Vec<Vec<u8>>, RepoError> {
    let malformed =
        |error: crate::pure::format::Malformed| RepoError::from(crate::pure::format::FormatError::from(error));
    let root = location.root;
    let below: Vec<Vec<u8>> = match root.kind {
        RootKind::StreamSet | RootKind::ObjectMap => look::split_path(tree_key),
        _ => key::components(tree_key)
            .map_err(malformed)?
            .into_iter()
            .map(<[u8]>::to_vec)
            .collect(),
    };
    if options.path.is_none() {
        let mut components = look::split_path(&root.path);
        components.extend(below);
        return Ok(components);
    }
    let rest = below.get(location.below.len()..).unwrap_or_default().to_vec();
    if rest.is_empty() {
        // The path itself. Of a directory the contents are wanted, of anything else the thing under its own name.
        let name = below.last().cloned().or_else(|| look::split_path(&root.path).pop());
        return Ok(name.into_iter().collect());
    }
    Ok(rest)
}

/// Calls `each` with components in the target, full path, entry and stored value for every selected entry of a location.
fn for_each_selected(
    location: &Location<'_>,
    options: &Options,
    nodes: &mut TreeReader<'_, '_>,
    each: &mut dyn FnMut(Vec<Vec<u8>>, &[u8], &Entry, &[u8]) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let root = location.root;
    let own_key = look::key_of(location);
    let parts: Vec<&[u8]> = location.below.iter().map(Vec::as_slice).collect();
    let is_path_tree = !matches!(root.kind, RootKind::StreamSet | RootKind::ObjectMap);
    let mut ranges: Vec<Vec<u8>> = Vec::new();
    let whole = location.below.is_empty();
    if whole {
        ranges.push(Vec::new());
    } else {
        let entry = look::entry_at(location, nodes)?;
        if let Some(mut entry) = entry {
            options.owners.apply(&mut entry);
            let mut value = Vec::new();
            entry.encode(&mut value);
            let full = look::full_path(root, &own_key)?;
            let is_dir = entry.kind == EntryKind::Dir;
            let mut components = components_of(location, options, &own_key)?;
            if is_dir {
                components.clear();
            }
            if options.selection.accepts(&full, is_dir) {
                each(components, &full, &entry, &value)?;
            }
            if is_dir && is_path_tree {
                ranges.push(key::subtree_prefix(&parts));
            }
        }
    }
    for prefix in ranges {
        let mut walk = TreeWalk::new(root.node, root.height, &prefix);
        while let Some((tree_key, mut value)) = walk.next(nodes)? {
            if !tree_key.starts_with(&prefix) {
                break;
            }
            let mut entry = Entry::decode(&value).map_err(RepoError::from)?;
            if options.owners.apply(&mut entry) {
                value.clear();
                entry.encode(&mut value);
            }
            let full = look::full_path(root, &tree_key)?;
            let is_dir = entry.kind == EntryKind::Dir;
            if !options.selection.accepts(&full, is_dir) {
                continue;
            }
            let mut components = components_of(location, options, &tree_key)?;
            // The contents of the root are wanted, so the root itself is the target.
            if options.path.is_some() && is_dir && tree_key == own_key && is_path_tree {
                components.clear();
            }
            each(components, &full, &entry, &value)?;
        }
    }
    Ok(())
}

/// Makes everything that is not a regular file, and hands files over.
#[allow(clippy::too_many_arguments)]
fn place<'t>(
    location: &Location<'_>,
    number: usize,
    options: &Options,
    target: &'t TargetDir,
    nodes: &mut TreeReader<'_, '_>,
    outcome: &Outcome,
    files: &mut fetch::Batches<'_, 't>,
    later: &mut Later,
) -> Result<(), OpError> {
    let mut groups: HashSet<(u64, u64)> = HashSet::new();
    let mut list_nodes = TreeReader::new(nodes.blobs());
    let mut opener = Opener::new();
    let reader = nodes.blobs();
    for_each_selected(location, options, nodes, &mut |components, full, entry, value| {
        if outcome.is_over() {
            return Err(OpError::Interrupted);
        }
        let parts: Vec<&[u8]> = components.iter().map(Vec::as_slice).collect();
        if entry.attributes.incomplete.is_some() {
            outcome.failed(format!(
                "{}: it could not be read completely when it was backed up",
                full.escape_ascii()
            ));
        }
        if entry.attributes.unknown.iter().any(|(tag, _)| tag % 2 == 1) {
            outcome.failed(format!(
                "{}: it has attributes that this version does not know",
                full.escape_ascii()
            ));
        }
        if entry.kind == EntryKind::Dir {
            match target.make_dir(&parts) {
                Ok(_) => {
                    outcome.update(|report| report.dirs += 1);
                    let below = location_below(location, options, &components);
                    later.dirs.push(LaterDir {
                        components: components.clone(),
                        value: value.to_vec(),
                        root: number,
                        below,
                    });
                }
                Err(error) => outcome.target_error(error),
            }
            return Ok(());
        }
        let Some((name, parents)) = parts.split_last() else {
            return Err(OpError::Usage(
                "the root of this snapshot has no name to restore it under".into(),
            ));
        };
        let dir = match target.make_dir(parents) {
            Ok(dir) => dir,
            Err(error) => {
                outcome.target_error(error);
                return Ok(());
            }
        };
        if let Some(link) = entry.attributes.hard_link {
            let group = (link.device, entry.ino);
            if !groups.insert(group) {
                later.links.push(LaterLink {
                    group,
                    components: components.clone(),
                    value: value.to_vec(),
                });
                return Ok(());
            }
        }
        let large = match large_xattrs(reader, entry, &mut list_nodes, &mut opener) {
            Ok(large) => large,
            Err(error) => {
                outcome.repo_error(full, error);
                return Ok(());
            }
        };
        match &entry.kind {
            EntryKind::File { .. } | EntryKind::Stream { .. } | EntryKind::Object { .. } => {
                let pieces = match pieces_of(entry, &mut list_nodes) {
                    Ok(pieces) => pieces,
                    Err(error) => {
                        outcome.repo_error(full, error);
                        return Ok(());
                    }
                };
                match target.decide(&dir, name, entry) {
                    Ok(Decision::Keep) => outcome.update(|report| report.files_unchanged += 1),
                    Ok(Decision::Write) => {
                        files.add(FilePlan::new(full, entry.clone(), dir, name, large), pieces, None)?;
                    }
                    Ok(Decision::Compare(existing)) => {
                        files.add(
                            FilePlan::new(full, entry.clone(), dir, name, large),
                            pieces,
                            Some(existing),
                        )?;
                    }
                    Err(error) => outcome.target_error(error),
                }
            }
            _ => match target.make_node(
                &dir,
                name,
                &Meta {
                    entry,
                    large_xattrs: &large,
                },
            ) {
                Ok(restored) => {
                    outcome.update(|report| report.others += 1);
                    outcome.restored(entry, restored);
                }
                Err(error) => outcome.target_error(error),
            },
        }
        Ok(())
    })?;
    Ok(())
}

/// Components below the location's root of a directory that goes to `components` in the target.
fn location_below(location: &Location<'_>, options: &Options, components: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if options.path.is_none() {
        let skip = look::split_path(&location.root.path).len();
        return components.get(skip..).unwrap_or_default().to_vec();
    }
    let mut below = location.below.clone();
    below.extend_from_slice(components);
    below
}

/// Every piece of a file with its offset, holes left out.
pub(crate) fn pieces_of(entry: &Entry, nodes: &mut TreeReader<'_, '_>) -> Result<Vec<(u64, ChunkRef)>, RepoError> {
    let mut pieces = Vec::new();
    if let Some(content) = entry.content() {
        let size = entry.size();
        for_each_piece(content, size, 0..size, nodes, &mut |offset, piece| {
            if piece.id != ChunkId::HOLE {
                pieces.push((offset, piece));
            }
            Ok::<(), RepoError>(())
        })?;
    }
    Ok(pieces)
}

/// Reads attribute values that are stored out of line.
fn large_xattrs(
    reader: &BlobReader<'_>,
    entry: &Entry,
    nodes: &mut TreeReader<'_, '_>,
    opener: &mut Opener,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RepoError> {
    let mut values = Vec::new();
    for (name, size, content) in &entry.attributes.xattrs_outline {
        values.push((name.clone(), read_content(reader, content, *size, nodes, opener)?));
    }
    Ok(values)
}

/// Reads a whole content into memory; for small things.
pub(crate) fn read_content(
    reader: &BlobReader<'_>,
    content: &Content,
    size: u64,
    nodes: &mut TreeReader<'_, '_>,
    opener: &mut Opener,
) -> Result<Vec<u8>, RepoError> {
    if let Content::Inline(bytes) = content {
        return Ok(bytes.clone());
    }
    let mut pieces = Vec::new();
    for_each_piece(content, size, 0..size, nodes, &mut |_, piece| {
        pieces.push(piece);
        Ok::<(), RepoError>(())
    })?;
    let mut bytes = Vec::new();
    let mut plain = Vec::new();
    for piece in pieces {
        if piece.id == ChunkId::HOLE {
            bytes.resize(bytes.len() + piece.len as usize, 0);
        } else {
            reader.read(crate::pure::format::blob::BlobType::Data, &piece.id, opener, &mut plain)?;
            bytes.extend_from_slice(&plain);
        }
    }
    Ok(bytes)
}

/// Gives a further name to a file that has been restored; where that is not possible, writes its content once more.
fn make_link(
    reader: &BlobReader<'_>,
    target: &TargetDir,
    nodes: &mut TreeReader<'_, '_>,
    opener: &mut Opener,
    outcome: &Outcome,
    link: &LaterLink,
) -> Result<(), OpError> {
    let parts: Vec<&[u8]> = link.components.iter().map(Vec::as_slice).collect();
    let Some((name, parents)) = parts.split_last() else {
        return Ok(());
    };
    let source = outcome.links.lock().get(&link.group).cloned();
    let dir: Arc<DirHandle> = match target.make_dir(parents) {
        Ok(dir) => dir,
        Err(error) => {
            outcome.target_error(error);
            return Ok(());
        }
    };
    if let Some(source) = source
        && target.link(&source, &dir, name).is_ok()
    {
        outcome.update(|report| report.files += 1);
        return Ok(());
    }
    let entry = Entry::decode(&link.value).map_err(RepoError::from)?;
    let full = link.components.join(&b'/');
    let large = large_xattrs(reader, &entry, nodes, opener)?;
    let meta = Meta {
        entry: &entry,
        large_xattrs: &large,
    };
    if entry.content().is_none() {
        match target.make_node(&dir, name, &meta) {
            Ok(restored) => outcome.restored(&entry, restored),
            Err(error) => outcome.target_error(error),
        }
        return Ok(());
    }
    let written = fetch::write_alone(reader, target, &dir, name, &meta, nodes, opener);
    match written {
        Ok(restored) => {
            outcome.update(|report| {
                report.files += 1;
                report.bytes += entry.size();
            });
            outcome.restored(&entry, restored);
        }
        Err(OpError::Repo(error)) => outcome.repo_error(&full, error),
        Err(OpError::Target(error)) => outcome.target_error(error),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn delete_unlisted(
    location: &Location<'_>,
    dir: &LaterDir,
    options: &Options,
    target: &TargetDir,
    nodes: &mut TreeReader<'_, '_>,
    outcome: &Outcome,
) -> Result<(), OpError> {
    let root = location.root;
    let below: Vec<&[u8]> = dir.below.iter().map(Vec::as_slice).collect();
    let prefix = key::children_prefix(&below);
    let mut names: HashSet<Vec<u8>> = HashSet::new();
    let mut walk = TreeWalk::new(root.node, root.height, &prefix);
    while let Some((tree_key, _)) = walk.next(nodes)? {
        match tree_key.strip_prefix(prefix.as_slice()) {
            Some(name) => names.insert(name.to_vec()),
            None => break,
        };
    }
    let full = look::full_path(root, &key::from_components(&below))?;
    let parts: Vec<&[u8]> = dir.components.iter().map(Vec::as_slice).collect();
    let handle = match target.open_dir(&parts) {
        Ok(handle) => handle,
        Err(error) => {
            outcome.target_error(error);
            return Ok(());
        }
    };
    let keep = |name: &[u8]| {
        // What was not selected for this restore is not its business.
        let path = [full.as_slice(), name].join(&b'/');
        names.contains(name) || !options.selection.accepts(&path, false)
    };
    match target.remove_unlisted(&handle, &keep) {
        Ok(removed) => {
            outcome.update(|report| report.removed += removed.count);
            for problem in removed.problems {
                outcome.failed(problem.to_string());
            }
        }
        Err(error) => outcome.target_error(error),
    }
    Ok(())
}

fn finish_dir(
    reader: &BlobReader<'_>,
    target: &TargetDir,
    nodes: &mut TreeReader<'_, '_>,
    opener: &mut Opener,
    outcome: &Outcome,
    dir: &LaterDir,
) -> Result<(), OpError> {
    let entry = Entry::decode(&dir.value).map_err(RepoError::from)?;
    let large = match large_xattrs(reader, &entry, nodes, opener) {
        Ok(large) => large,
        Err(error) => {
            outcome.repo_error(&dir.components.join(&b'/'), error);
            return Ok(());
        }
    };
    let parts: Vec<&[u8]> = dir.components.iter().map(Vec::as_slice).collect();
    let result = target.open_dir(&parts).and_then(|handle| {
        target.set_meta(
            &handle,
            &Meta {
                entry: &entry,
                large_xattrs: &large,
            },
        )
    });
    match result {
        Ok(problems) => problems.iter().for_each(|problem| outcome.refused(problem.to_string())),
        Err(error) => outcome.target_error(error),
    }
    Ok(())
}

/// Reads every restored file back and compares it chunk by chunk.
fn verify(
    repo: &Repo,
    locations: &[Location<'_>],
    options: &Options,
    target: &TargetDir,
    nodes: &mut TreeReader<'_, '_>,
    outcome: &Outcome,
    progress: &Progress,
) -> Result<(), OpError> {
    let mut lists = TreeReader::new(nodes.blobs());
    let mut buffer = Vec::new();
    for location in locations {
        for_each_selected(location, options, nodes, &mut |components, full, entry, _| {
            if progress.is_cancelled() {
                return Err(OpError::Interrupted);
            }
            if entry.content().is_none() {
                return Ok(());
            }
            let parts: Vec<&[u8]> = components.iter().map(Vec::as_slice).collect();
            let Some((name, parents)) = parts.split_last() else {
                return Ok(());
            };
            let existing = target
                .open_dir(parents)
                .and_then(|dir| target.open_existing(&dir, name));
            let fine = match existing {
                Ok(Some(existing)) => fetch::is_right(repo, &existing, entry, &mut lists, &mut buffer)?,
                Ok(None) => false,
                Err(error) => {
                    outcome.target_error(error);
                    return Ok(());
                }
            };
            if fine {
                outcome.update(|report| report.verified += 1);
            } else {
                outcome.failed(format!(
                    "{}: what is in the target is not what is in the snapshot",
                    full.escape_ascii()
                ));
            }
            Ok(())
        })?;
    }
    Ok(())
}
