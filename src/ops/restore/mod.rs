//! Restoring: plan in tree order, fetch in pack order, write beneath the target.
//!
//! This thread walks the tree and makes directories, links and devices. Files go to the workers in batches; each batch is
//! sorted by where its chunks lie, so that neighbours in a pack are read together. A file takes its name only when all of it
//! is right.

mod delete;
mod dry_run;
mod fetch;
mod owners;
mod select;

use super::look::{self, Appetite, Location, open_reader};
use super::{OpError, Progress};
use crate::edge::fs::raise_open_files;
use crate::pure::base::memory::FetchShare;
use crate::pure::crypto::Domain;
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::{ChunkRef, Content, Entry, EntryKind};
use crate::pure::format::manifest::{Root, RootKind};
use crate::pure::id::ChunkId;
use crate::pure::tree::key;
use crate::pure::tree::list::for_each_piece;
use crate::pure::tree::rules::{Failed, RootWalk, Visited, is_path_tree};
use crate::pure::tree::walk::Skipped;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, RepoError};
use crate::target::TargetError;
use crate::target::files::{Decision, DirHandle, LinkSource, Meta, MetaPolicy, Overwrite, Restored, TargetDir};
use fetch::{Fetcher, FilePlan};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
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

    /// A part of the tree cannot be read, so what was in it is known by number at best.
    fn lost(&self, root: &Root, skipped: &Skipped, error: &RepoError) {
        let from = skipped
            .first_key
            .as_ref()
            .and_then(|key| look::full_path(root, key).ok());
        let from = from.as_deref().unwrap_or(&root.path).escape_ascii();
        let (entries, counted) = match skipped.entries {
            Some(entries) => (entries, format!("{entries} entries, from")),
            None => (1, "entries from".to_owned()),
        };
        let mut report = self.report.lock();
        report.damaged_total += entries.max(1);
        keep(
            &mut report.damaged,
            format!("{counted} {from} on: {}", super::check::chain(error)),
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

/// A directory that gets its metadata at the end. There may be millions, so no more is kept than what has to be.
struct LaterDir {
    /// Path in the target, joined by `/`.
    path: Box<[u8]>,
    value: Box<[u8]>,
    root: usize,
}

/// Another name of a file that this restore writes. Its entry is looked up again where it is needed.
struct LaterLink {
    group: (u64, u64),
    /// Path in the target, joined by `/`.
    path: Box<[u8]>,
    root: usize,
}

/// Components of a path in the target.
fn parts_of(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
        .collect()
}

/// Restores.
///
/// # Errors
/// When the repository cannot be read or the target cannot be used. Damage and refusals are in the report.
pub fn run(repo: &Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    repo.require_reading(Domain::Data, "restore files")?;
    raise_open_files();
    let appetite = if options.path.is_some() || options.selection.places().is_some() {
        Appetite::Little
    } else {
        Appetite::Much
    };
    let reader = open_reader(repo, &options.snapshot, appetite)?;
    let mut nodes = TreeReader::new(&reader);
    let locations = look::locate_all(&options.snapshot, options.path.as_deref())?;
    let outcome = Outcome::default();
    if options.dry_run {
        dry_run::run(repo, options, &locations, &mut nodes, &outcome, progress)?;
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
        // A worker's error is the cause; that the walk then found nobody to work for is its consequence.
        if let Some(error) = outcome.fatal.lock().take() {
            return Err(error);
        }
        walked?;
    }
    let mut opener = Opener::new();
    for link in std::mem::take(&mut later.links) {
        let location = &locations[link.root];
        later
            .kept
            .try_link(repo, &target, location, &mut nodes, &outcome, &link)?;
        make_link(location, &target, &mut nodes, &mut opener, &outcome, &link)?;
    }
    if options.delete {
        for dir in &later.dirs {
            delete::unlisted(&locations, dir, options, &target, &mut nodes, &outcome)?;
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
    kept: Kept,
}

/// Files with several names that were in the target and have been left alone, by device and inode of the source.
#[derive(Default)]
struct Kept(HashMap<(u64, u64), Box<[u8]>>);

impl Kept {
    /// Lets further names link to a file that was left alone, if it holds what the snapshot says; looks at it once.
    fn try_link(
        &mut self,
        repo: &Repo,
        target: &TargetDir,
        location: &Location<'_>,
        nodes: &mut TreeReader<'_, '_>,
        outcome: &Outcome,
        link: &LaterLink,
    ) -> Result<(), OpError> {
        let Some(path) = self.0.remove(&link.group) else {
            return Ok(());
        };
        let parts = parts_of(&path);
        let Some((name, parents)) = parts.split_last() else {
            return Ok(());
        };
        let opened = target
            .open_dir(parents)
            .and_then(|dir| target.open_existing(&dir, name));
        if let Ok(Some(existing)) = opened
            && let Ok(entry) = entry_of(location, &link.path, nodes)
            && fetch::is_right(repo, &existing, &entry, nodes, &mut Vec::new())?
        {
            outcome.links.lock().insert(link.group, existing.link_source());
        }
        Ok(())
    }
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
fn components_of(location: &Location<'_>, tree_key: &[u8]) -> Result<Vec<Vec<u8>>, RepoError> {
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
    if let Some(above) = location.above {
        let mut components = look::split_path(&root.path).split_off(above);
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
/// Only what can be selected is read. What cannot be read is told to `outcome`, where there is one, and passed over.
#[allow(clippy::type_complexity)]
fn for_each_selected(
    location: &Location<'_>,
    options: &Options,
    nodes: &mut TreeReader<'_, '_>,
    outcome: Option<&Outcome>,
    each: &mut dyn FnMut(Vec<Vec<u8>>, &[u8], &Entry, &[u8]) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let root = location.root;
    let own_key = look::key_of(location);
    let is_path_tree = is_path_tree(root.kind);
    let mut visit = |visited: Visited| -> Result<(), OpError> {
        let full = look::full_path(root, &visited.key)?;
        let is_dir = visited.entry.kind == EntryKind::Dir;
        if !options.selection.accepts(&full, is_dir) {
            return Ok(());
        }
        let mut components = components_of(location, &visited.key)?;
        // The contents of the directory are wanted, so the directory itself is the target.
        if location.above.is_none() && is_dir && visited.key == own_key && is_path_tree {
            components.clear();
        }
        let (mut entry, mut value) = (visited.entry, visited.value);
        if options.owners.apply(&mut entry) {
            value.clear();
            entry.encode(&mut value);
        }
        each(components, &full, &entry, &value)
    };
    let mut whole = None;
    if !location.below.is_empty() {
        // A path that is not there is an error, whatever is selected.
        let entry = look::entry_at(location, nodes)?;
        if let Some(entry) = entry.filter(|entry| entry.kind != EntryKind::Dir || !is_path_tree) {
            let mut value = Vec::new();
            entry.encode(&mut value);
            return visit(Visited {
                key: own_key.clone(),
                entry,
                value,
            });
        }
        whole = Some(location.below.clone());
    }
    let places = match options.selection.places() {
        Some(places) if is_path_tree => narrowed(location, places),
        _ => None,
    };
    let Some(places) = places.or_else(|| whole.map(|below| vec![below])) else {
        walk_selected(&mut RootWalk::whole(root), root, nodes, outcome, &mut visit)?;
        return Ok(());
    };
    for place in places {
        let parts: Vec<&[u8]> = place.iter().map(Vec::as_slice).collect();
        let mut walk = RootWalk::one(root, &parts);
        walk_selected(&mut walk, root, nodes, outcome, &mut visit)?;
        walk_selected(&mut walk.into_below(&parts), root, nodes, outcome, &mut visit)?;
    }
    Ok(())
}

/// Calls `visit` for everything that a walk comes past. What cannot be read, or may not be where it is, is told to `outcome`,
/// where there is one, and passed over.
fn walk_selected(
    walk: &mut RootWalk,
    root: &Root,
    nodes: &mut TreeReader<'_, '_>,
    outcome: Option<&Outcome>,
    visit: &mut dyn FnMut(Visited) -> Result<(), OpError>,
) -> Result<(), OpError> {
    loop {
        let error = match walk.next(nodes) {
            Ok(Some(visited)) => {
                visit(visited)?;
                continue;
            }
            Ok(None) => return Ok(()),
            Err(error) => error,
        };
        if !walk.has_refused() && !error.is_damage() {
            return Err(error.into());
        }
        let (Some(failed), Some(outcome)) = (walk.skip_failed(), outcome) else {
            continue;
        };
        match failed {
            Failed::Lost(skipped) => outcome.lost(root, &skipped, &error),
            Failed::Refused(key) => {
                // A key that is malformed is no path.
                let path = look::full_path(root, &key).unwrap_or_else(|_| [root.path.as_slice(), &key].join(&b'/'));
                outcome.damaged(&path, &error);
            }
        }
    }
}

/// The places below a root that lie at or below a location and at or below one of `places` (full paths, none below another);
/// `None`: all of the location.
fn narrowed(location: &Location<'_>, places: &[Vec<Vec<u8>>]) -> Option<Vec<Vec<Vec<u8>>>> {
    let root = look::split_path(&location.root.path);
    let here: Vec<Vec<u8>> = root.iter().chain(&location.below).cloned().collect();
    if places.iter().any(|place| here.starts_with(place)) {
        return None;
    }
    let below_here = places.iter().filter(|place| place.starts_with(&here));
    Some(below_here.map(|place| place[root.len()..].to_vec()).collect())
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
    for_each_selected(
        location,
        options,
        nodes,
        Some(outcome),
        &mut |components, full, entry, value| {
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
                        later.dirs.push(LaterDir {
                            path: components.join(&b'/').into(),
                            value: value.into(),
                            root: number,
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
            if options.delete {
                delete::clear_the_way(target, &dir, name, false, outcome);
            }
            if let Some(link) = entry.attributes.hard_link {
                let group = (link.device, entry.ino);
                if !groups.insert(group) {
                    later.links.push(LaterLink {
                        group,
                        path: components.join(&b'/').into(),
                        root: number,
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
                    match target.decide(&dir, name, entry) {
                        Ok(Decision::Keep) => {
                            outcome.update(|report| report.files_unchanged += 1);
                            if let Some(link) = entry.attributes.hard_link {
                                let path = components.join(&b'/').into();
                                later.kept.0.insert((link.device, entry.ino), path);
                            }
                        }
                        Ok(Decision::Write) => {
                            let file = FilePlan::new(full, entry.clone(), dir, name, large);
                            files.add(file, &mut list_nodes)?;
                        }
                        Ok(Decision::Compare(existing)) => {
                            let file = FilePlan::new(full, entry.clone(), dir, name, large);
                            files.compare(file, existing)?;
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
        },
    )?;
    Ok(())
}

/// Components below the location's root of what goes to this path in the target.
fn location_below(location: &Location<'_>, path: &[u8]) -> Vec<Vec<u8>> {
    let components = parts_of(path).into_iter().map(<[u8]>::to_vec);
    if let Some(above) = location.above {
        let skip = look::split_path(&location.root.path).len() - above;
        return components.skip(skip).collect();
    }
    location.below.iter().cloned().chain(components).collect()
}

/// Looks up the entry of what goes to this path in the target.
fn entry_of(location: &Location<'_>, path: &[u8], nodes: &mut TreeReader<'_, '_>) -> Result<Entry, OpError> {
    let there = Location {
        root: location.root,
        below: location_below(location, path),
        above: None,
    };
    look::entry_at(&there, nodes)?.ok_or_else(|| OpError::Usage("the root of this snapshot has no entry".into()))
}

/// Calls `each` for every chunk of a file with its offset, holes left out, until it breaks. The list of chunks is never in
/// memory as a whole.
///
/// # Errors
/// Those of `each`, and when the list cannot be read.
pub(crate) fn for_each_chunk(
    entry: &Entry,
    nodes: &mut TreeReader<'_, '_>,
    each: &mut dyn FnMut(u64, ChunkRef) -> Result<ControlFlow<()>, OpError>,
) -> Result<(), OpError> {
    let Some(content) = entry.content() else {
        return Ok(());
    };
    let size = entry.size();
    let mut ended: Option<Result<(), OpError>> = None;
    let walked = for_each_piece(content, size, 0..size, nodes, &mut |offset, piece| {
        if piece.id == ChunkId::HOLE {
            return Ok(());
        }
        let end = match each(offset, piece) {
            Ok(ControlFlow::Continue(())) => return Ok(()),
            Ok(ControlFlow::Break(())) => Ok(()),
            Err(error) => Err(error),
        };
        ended = Some(end);
        Err(RepoError::Interrupted)
    });
    match ended {
        Some(end) => end,
        None => Ok(walked?),
    }
}

/// Reads a chunk that must have the length that the file says.
///
/// # Errors
/// When it cannot be read or has another length.
pub(crate) fn read_chunk(
    reader: &BlobReader<'_>,
    piece: &ChunkRef,
    opener: &mut Opener,
    plain: &mut Vec<u8>,
) -> Result<(), RepoError> {
    reader.read(BlobType::Data, &piece.id, opener, plain)?;
    check_length(piece, plain)
}

fn check_length(piece: &ChunkRef, plain: &[u8]) -> Result<(), RepoError> {
    if plain.len() as u64 == piece.len {
        return Ok(());
    }
    Err(RepoError::Missing {
        object: format!("chunk {}", piece.id),
        why: format!("it has {} bytes, the file says {}", plain.len(), piece.len),
    })
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

/// Reads a whole content into memory; for extended attributes, which no system has larger than 64 KiB.
pub(crate) fn read_content(
    reader: &BlobReader<'_>,
    content: &Content,
    size: u64,
    nodes: &mut TreeReader<'_, '_>,
    opener: &mut Opener,
) -> Result<Vec<u8>, RepoError> {
    /// With room for systems to come; a size from outside must not decide how much memory is taken.
    const BYTES_MAX: u64 = 1 << 20;
    if let Content::Inline(bytes) = content {
        return Ok(bytes.clone());
    }
    if size > BYTES_MAX {
        return Err(RepoError::Missing {
            object: "an extended attribute".into(),
            why: format!("it is said to have {size} bytes, and none is that large"),
        });
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
            read_chunk(reader, &piece, opener, &mut plain)?;
            bytes.extend_from_slice(&plain);
        }
    }
    Ok(bytes)
}

/// Gives a further name to a file that has been restored; where that is not possible, writes its content once more.
fn make_link(
    location: &Location<'_>,
    target: &TargetDir,
    nodes: &mut TreeReader<'_, '_>,
    opener: &mut Opener,
    outcome: &Outcome,
    link: &LaterLink,
) -> Result<(), OpError> {
    let reader = nodes.blobs();
    let parts = parts_of(&link.path);
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
    let found = entry_of(location, &link.path, nodes).and_then(|entry| {
        let large = large_xattrs(reader, &entry, nodes, opener)?;
        Ok((entry, large))
    });
    let (entry, large) = match found {
        Ok(found) => found,
        Err(OpError::Repo(error)) => {
            outcome.repo_error(&link.path, error);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
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
        Err(OpError::Repo(error)) => outcome.repo_error(&link.path, error),
        Err(OpError::Target(error)) => outcome.target_error(error),
        Err(error) => return Err(error),
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
            outcome.repo_error(&dir.path, error);
            return Ok(());
        }
    };
    let parts = parts_of(&dir.path);
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
        // What cannot be read has been told by the restore itself.
        for_each_selected(location, options, nodes, None, &mut |components, full, entry, _| {
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
                Ok(Some(existing)) => match fetch::is_right(repo, &existing, entry, &mut lists, &mut buffer) {
                    Ok(right) => right,
                    Err(OpError::Repo(error)) if error.is_damage() => false,
                    Err(error) => return Err(error),
                },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::store::memory::MemoryStore;
    use crate::pure::crypto::{Secret, kdf::Cost};
    use crate::repo::locate::IndexLocator;
    use crate::repo::open::{Credential, LocalOptions, connect, init};

    #[test]
    fn the_size_of_an_attribute_does_not_decide_how_much_memory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        let credential = Credential::KeyFile(Secret::new([7; 32]));
        init(&*store, &credential, Cost::DEFAULT).unwrap();
        let options = LocalOptions {
            cache_dir: dir.path().into(),
            index: crate::pure::base::memory::IndexShare::with_filter(1 << 20),
            node_cache_bytes_max: 1 << 20,
        };
        let repo = connect(store, options).unwrap().unlock(&credential).unwrap();
        let reader = BlobReader::new(&repo, Box::new(IndexLocator));
        let mut nodes = TreeReader::new(&reader);
        let mut read = |size: u64| {
            let hole = ChunkRef {
                id: ChunkId::HOLE,
                len: size,
            };
            read_content(
                &reader,
                &Content::Chunks(vec![hole]),
                size,
                &mut nodes,
                &mut Opener::new(),
            )
        };
        assert_eq!(read(65_536).unwrap(), vec![0; 65_536]);
        assert!(read(1 << 62).unwrap_err().is_damage());
    }
}
