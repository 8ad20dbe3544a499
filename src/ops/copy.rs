//! Copying snapshots into another repository, which has other keys (docs/adr/0024-replicas.md). Contents are read, cut and sealed anew,
//! because ids and cuts depend on the keys; what entries say besides is taken over as it is.
//!
//! The copy of an entry that has not changed since the snapshot before it, of which there is a copy, is taken from that copy: nothing of
//! it is read. Which snapshot a copy was made of is in its manifest, so a run that was interrupted goes on, and a later one does what is
//! new.

use super::backup::blobs::{BlobWorker, NodeWriter};
use super::backup::cut::Window;
use super::backup::manifest::hints;
use super::backup::source_id;
use super::look::open_synced_reader;
use super::restore::read_chunk;
use super::{OpError, Progress};
use crate::pure::chunk::Cutter;
use crate::pure::crypto::KeyRing;
use crate::pure::format::blob::Opener;
use crate::pure::format::entry::{ChunkRef, Content, Entry, EntryKind};
use crate::pure::format::manifest::{Manifest, Root};
use crate::pure::format::session::SessionRole;
use crate::pure::id::{ChunkId, RepoId, SessionId};
use crate::pure::tree::build::{BuiltTree, TreeBuilder};
use crate::pure::tree::list::{ContentBuilder, for_each_piece};
use crate::pure::tree::walk::TreeWalk;
use crate::repo::at_once::at_once;
use crate::repo::error::object_error;
use crate::repo::pack_writer::Durable;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::session::{OutcomeLabel, Session};
use crate::repo::snapshots::{Broken, Snapshot};
use crate::repo::{Repo, RepoError};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Chunks of a file that are fetched and opened at a time; each has at most 16 MiB.
const CHUNKS_AHEAD: usize = 8;
/// How often the session's duties are seen to.
const TICK: Duration = Duration::from_secs(1);

/// How to copy.
#[derive(Clone, Debug)]
pub struct Options {
    /// Copy again what has been copied and was forgotten since.
    pub again: bool,
    pub uploads: usize,
    pub zstd_level: Option<u32>,
    pub dry_run: bool,
}

/// A copy that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub of: SessionId,
    /// `None` after a dry run.
    pub copy: Option<SessionId>,
    /// Entries that were taken from the copy of the snapshot before.
    pub unchanged: u64,
    /// Entries that were copied.
    pub copied: u64,
    /// Bytes that were read from the source.
    pub bytes_read: u64,
    /// Bytes that were stored.
    pub bytes_stored: u64,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    pub copies: Vec<Copied>,
    /// Snapshots of which there were copies.
    pub there: u64,
    /// Snapshots that could not be copied whole, and why: nothing of them is visible.
    pub failed: Vec<(SessionId, String)>,
    pub notes: Vec<String>,
}

/// Copies snapshots, oldest first.
///
/// # Errors
/// When the repository that is written to fails, or the other cannot be reached. A snapshot that is damaged is left out and named.
pub fn run(
    source: &Repo,
    target: &Repo,
    mut snapshots: Vec<Snapshot>,
    options: &Options,
    progress: &Progress,
) -> Result<Report, OpError> {
    if source.config.repo == target.config.repo {
        return Err(OpError::Refused {
            what: "both places hold the same repository".into(),
            hint: "a sealed copy is kept by `larder repo replicate`".into(),
        });
    }
    source.sync_condemned()?;
    source.sync_index()?;
    snapshots.sort_by_key(|snapshot| (snapshot.manifest.start, snapshot.id));
    let mut copies = copies_of(source.config.repo, target, options.again)?;
    let mut report = Report::default();
    let all = source.snapshots_noting(&mut Broken::new())?;
    for snapshot in &snapshots {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        if copies.by_session.contains_key(&snapshot.id) {
            report.there += 1;
            continue;
        }
        if options.dry_run {
            report.copies.push(Copied {
                of: snapshot.id,
                copy: None,
                unchanged: 0,
                copied: 0,
                bytes_read: 0,
                bytes_stored: 0,
            });
            continue;
        }
        // Of the same source, the last one before it that is there on both sides.
        let before = copies.newest_before(&all, snapshot);
        match copy_one(source, target, snapshot, before, options, progress, &mut report.notes) {
            Ok(copied) => {
                if let Some(copy) = copied.copy {
                    copies.by_session.insert(snapshot.id, copy);
                }
                report.copies.push(copied);
            }
            Err(Trouble::Source(error)) if error.is_damage() => {
                report.failed.push((snapshot.id, super::check::chain(&error)));
            }
            Err(Trouble::Source(error)) => return Err(error.into()),
            Err(Trouble::Target(error)) => return Err(error),
        }
    }
    Ok(report)
}

/// Which of the two repositories failed: damage of the one leaves a snapshot out, the other ends the run.
enum Trouble {
    Source(RepoError),
    Target(OpError),
}

impl Trouble {
    fn target(error: impl Into<OpError>) -> Trouble {
        Trouble::Target(error.into())
    }
}

/// The copies that there are, by the snapshot that they are of.
struct Copies {
    by_session: HashMap<SessionId, SessionId>,
}

fn copies_of(source: RepoId, target: &Repo, visible_only: bool) -> Result<Copies, OpError> {
    let mut broken = Broken::new();
    let mut by_session = HashMap::new();
    if !visible_only {
        // Forgotten there on purpose: it does not come back every night.
        for known in target.index.outcomes()? {
            if known.is_dropped()
                && let Ok(snapshot) = target.snapshot(&known.session)
                && let Some((repo, of)) = snapshot.manifest.copied_from
                && repo == source
            {
                by_session.insert(of, known.session);
            }
        }
    }
    for snapshot in target.snapshots_noting(&mut broken)? {
        if let Some((repo, of)) = snapshot.manifest.copied_from
            && repo == source
        {
            by_session.insert(of, snapshot.id);
        }
    }
    Ok(Copies { by_session })
}

impl Copies {
    /// The newest snapshot of the same source before this one that has a copy, and the copy.
    fn newest_before(&self, all: &[Snapshot], snapshot: &Snapshot) -> Option<(Snapshot, SessionId)> {
        let before = all.iter().filter(|other| {
            other.manifest.source.id == snapshot.manifest.source.id
                && other.manifest.start <= snapshot.manifest.start
                && self.by_session.contains_key(&other.id)
        });
        let newest = before.max_by_key(|other| other.manifest.start)?;
        let copy = *self.by_session.get(&newest.id)?;
        Some((newest.clone(), copy))
    }
}

fn copy_one(
    source: &Repo,
    target: &Repo,
    snapshot: &Snapshot,
    before: Option<(Snapshot, SessionId)>,
    options: &Options,
    progress: &Progress,
    notes: &mut Vec<String>,
) -> Result<Copied, Trouble> {
    let listed = Instant::now();
    target.sync_history_to_write().map_err(Trouble::target)?;
    let pin = before.as_ref().map(|(_, copy)| *copy);
    let mut session =
        Session::begin(target, pin, SessionRole::Backup, options.uploads, listed).map_err(Trouble::target)?;
    // Only what is pinned and still there may be taken from.
    let before = before.filter(|(_, copy)| session.parents().contains(copy));
    let before = before.and_then(|(of, copy)| Some((of, target.snapshot(&copy).ok()?)));
    let mut work = Work::begin(source, target, snapshot, before.as_ref(), progress);
    let done = work.run(&mut session, options);
    notes.extend(session.take_notes());
    let (durable, manifest) = match done {
        // Entries that were taken over may refer to what is absent: everything is read then.
        Ok(_) if before.is_some() && session.met_absent_packs() => {
            session.abandon();
            return copy_one(source, target, snapshot, None, options, progress, notes);
        }
        Ok(whole) => whole,
        Err(trouble) => {
            session.abandon();
            return Err(trouble);
        }
    };
    let label = OutcomeLabel {
        kind: snapshot.kind,
        source: Some(manifest.source.id),
        flags: snapshot.flags,
    };
    let published = session.publish(durable, &manifest, &label).map_err(Trouble::target)?;
    notes.extend(published.notes);
    Ok(Copied {
        of: snapshot.id,
        copy: Some(published.session),
        unchanged: work.unchanged,
        copied: work.copied,
        bytes_read: work.bytes_read,
        bytes_stored: published.bytes_stored,
    })
}

/// The copying of one snapshot.
struct Work<'a> {
    source: &'a Repo,
    target: &'a Repo,
    snapshot: &'a Snapshot,
    /// The snapshot before it and its copy.
    before: Option<&'a (Snapshot, Snapshot)>,
    progress: &'a Progress,
    unchanged: u64,
    copied: u64,
    bytes_read: u64,
    ticked: Instant,
}

impl<'a> Work<'a> {
    fn begin(
        source: &'a Repo,
        target: &'a Repo,
        snapshot: &'a Snapshot,
        before: Option<&'a (Snapshot, Snapshot)>,
        progress: &'a Progress,
    ) -> Work<'a> {
        Work {
            source,
            target,
            snapshot,
            before,
            progress,
            unchanged: 0,
            copied: 0,
            bytes_read: 0,
            ticked: Instant::now(),
        }
    }

    fn run(&mut self, session: &mut Session<'_>, options: &Options) -> Result<(Durable, Manifest), Trouble> {
        let target = self.target;
        let (chunker, profile) = target
            .config
            .chunker()
            .ok_or_else(|| Trouble::target(RepoError::Internal("no chunker profile is known".into())))?;
        let missing = |error: crate::pure::crypto::MissingKey| {
            Trouble::target(object_error("using", "the keys of the other repository")(error.into()))
        };
        let cutter = Cutter::new(profile, target.keys.gear().map_err(missing)?);
        let split_key = target.keys.split_key().map_err(missing)?.clone();
        let level = options.zstd_level.unwrap_or(target.config.zstd_level);
        let writer = session.current_writer();
        let worker = |keys: &'a KeyRing| BlobWorker::new(keys, &writer, level);
        let mut contents = Contents {
            window: Window::new(&cutter),
            worker: worker(&target.keys),
            opener: Opener::new(),
        };
        let mut nodes = NodeWriter::new(
            &target.index,
            worker(&target.keys),
            Arc::default(),
            &target.nodes,
            self.progress,
        );
        let mut roots = Vec::with_capacity(self.snapshot.manifest.roots.len());
        let snapshot = self.snapshot;
        for root in &snapshot.manifest.roots {
            let builder = TreeBuilder::new(target.config.tree, split_key.clone());
            let tree = self.root(root, builder, &mut contents, &mut nodes, session)?;
            roots.push(Root {
                node: tree.root,
                height: tree.height,
                entries: tree.entries,
                bytes: tree.bytes,
                chunker,
                ..root.clone()
            });
        }
        nodes.flush();
        let inner = std::mem::take(&mut nodes.inner);
        drop((nodes, contents));
        let durable = session.make_durable().map_err(Trouble::target)?;
        let from = &snapshot.manifest;
        let mut manifest = Manifest {
            hints: hints(target, &roots, &inner),
            roots,
            parents: session.parents().to_vec(),
            copied_from: Some((self.source.config.repo, self.snapshot.id)),
            ..from.clone()
        };
        // The next backup of that machine into this repository goes on from it.
        manifest.source.id = source_id(target, &from.source.host, &from.source.label).map_err(Trouble::target)?;
        Ok((durable, manifest))
    }

    fn root(
        &mut self,
        root: &Root,
        mut builder: TreeBuilder,
        contents: &mut Contents<'_>,
        nodes: &mut NodeWriter<'_>,
        session: &mut Session<'_>,
    ) -> Result<BuiltTree, Trouble> {
        let (source, target) = (self.source, self.target);
        let reader = open_synced_reader(source, self.snapshot);
        let mut tree = TreeReader::new(&reader);
        let mut walk = TreeWalk::new(root.node, root.height, &[]).expecting(root.entries, root.bytes);
        let mut lists = TreeReader::new(&reader);
        let readers = self.before.map(|(of, copy)| {
            let readers = (open_synced_reader(source, of), open_synced_reader(target, copy));
            (of, copy, readers)
        });
        let mut before = readers.as_ref().and_then(|(of, copy, (of_reader, copy_reader))| {
            Some(Before {
                of: Side::open(of_reader, of, root)?,
                copy: Side::open(copy_reader, copy, root)?,
            })
        });
        while let Some((key, value)) = walk.next(&mut tree).map_err(Trouble::Source)? {
            if self.progress.is_cancelled() {
                return Err(Trouble::Target(OpError::Interrupted));
            }
            if self.ticked.elapsed() >= TICK {
                session.tick().map_err(Trouble::target)?;
                self.ticked = Instant::now();
            }
            let taken = before.as_mut().and_then(|before| before.take(&key, &value));
            let copied = match taken {
                Some(taken) => {
                    self.unchanged += 1;
                    taken
                }
                None => {
                    self.copied += 1;
                    self.entry(&value, &reader, &mut lists, contents)?
                }
            };
            let bytes = Entry::peek_size(&copied)
                .map_err(|error| Trouble::Source(object_error("reading", "an entry")(error)))?;
            builder
                .check(&key, &copied, bytes)
                .map_err(|limit| Trouble::target(RepoError::Internal(format!("an entry does not fit: {limit}"))))?;
            builder.push(&key, &copied, bytes, nodes).map_err(Trouble::target)?;
            self.progress.file_done(0);
        }
        builder.finish(nodes).map_err(Trouble::target)
    }

    /// Returns the value of an entry with its contents in the other repository.
    fn entry(
        &mut self,
        value: &[u8],
        reader: &BlobReader<'_>,
        lists: &mut TreeReader<'_, '_>,
        contents: &mut Contents<'_>,
    ) -> Result<Vec<u8>, Trouble> {
        let malformed = |error| Trouble::Source(object_error("reading", "an entry")(error));
        let mut entry = Entry::decode(value).map_err(malformed)?;
        if let EntryKind::File { size, content }
        | EntryKind::Stream { size, content }
        | EntryKind::Object { size, content } = &mut entry.kind
        {
            *content = self.content(content, *size, reader, lists, contents)?;
        }
        for (_, size, content) in &mut entry.attributes.xattrs_outline {
            *content = self.content(content, *size, reader, lists, contents)?;
        }
        let mut out = Vec::with_capacity(value.len());
        entry
            .try_encode(&mut out)
            .map_err(|limit| Trouble::Source(object_error("copying", "an entry")(limit.into())))?;
        Ok(out)
    }

    fn content(
        &mut self,
        content: &Content,
        size: u64,
        reader: &BlobReader<'_>,
        lists: &mut TreeReader<'_, '_>,
        contents: &mut Contents<'_>,
    ) -> Result<Content, Trouble> {
        if let Content::Inline(bytes) = content {
            return Ok(Content::Inline(bytes.clone()));
        }
        let mut file = File {
            builder: ContentBuilder::new(self.target.config.tree),
            hole: 0,
            contents,
        };
        let mut waiting: Vec<ChunkRef> = Vec::with_capacity(CHUNKS_AHEAD);
        let mut trouble = None;
        let walked = for_each_piece(content, size, 0..size, lists, &mut |_, piece| {
            waiting.push(piece);
            if waiting.len() < CHUNKS_AHEAD {
                return Ok(());
            }
            file.take(&mut waiting, reader, self).map_err(|error| {
                trouble = Some(error);
                RepoError::Interrupted
            })
        });
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        walked.map_err(Trouble::Source)?;
        file.take(&mut waiting, reader, self)?;
        file.finish()
    }
}

/// What is reused from file to file.
struct Contents<'a> {
    window: Window<'a>,
    worker: BlobWorker<'a>,
    opener: Opener,
}

/// A content on its way into the other repository.
struct File<'f, 'a> {
    builder: ContentBuilder,
    /// Bytes of a hole that is not in the list yet.
    hole: u64,
    contents: &'f mut Contents<'a>,
}

impl File<'_, '_> {
    /// Takes in pieces, in order; fetches several at a time.
    fn take(
        &mut self,
        pieces: &mut Vec<ChunkRef>,
        reader: &BlobReader<'_>,
        work: &mut Work<'_>,
    ) -> Result<(), Trouble> {
        let decode = |piece: &ChunkRef, opener: &mut Opener| {
            let mut plain = Vec::new();
            read_chunk(reader, piece, opener, &mut plain)?;
            Ok(plain)
        };
        let chunks: Vec<ChunkRef> = pieces
            .iter()
            .filter(|piece| piece.id != ChunkId::HOLE)
            .copied()
            .collect();
        let plain = match chunks.as_slice() {
            [] => Vec::new(),
            // Most files have one.
            [only] => vec![decode(only, &mut self.contents.opener)],
            _ => at_once(&chunks, |piece| decode(piece, &mut Opener::new())),
        };
        let mut plain = plain.into_iter();
        for piece in pieces.drain(..) {
            if piece.id == ChunkId::HOLE {
                self.cut(true)?;
                self.hole += piece.len;
                continue;
            }
            let bytes = plain
                .next()
                .unwrap_or_else(|| Ok(Vec::new()))
                .map_err(Trouble::Source)?;
            work.bytes_read += bytes.len() as u64;
            work.progress
                .bytes
                .fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
            self.end_hole()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let room = self.contents.window.room();
                let count = room.len().min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                self.contents.window.filled(count);
                self.cut(false)?;
            }
        }
        Ok(())
    }

    /// Stores the chunks whose ends are certain; at the end of an extent, what is left.
    fn cut(&mut self, at_end: bool) -> Result<(), Trouble> {
        let Contents { window, worker, .. } = &mut *self.contents;
        while let Some(chunk) = window.next_chunk(at_end) {
            let piece = worker.data(chunk, None).map_err(Trouble::target)?;
            self.builder.push(piece, worker).map_err(Trouble::target)?;
        }
        Ok(())
    }

    fn end_hole(&mut self) -> Result<(), Trouble> {
        if self.hole == 0 {
            return Ok(());
        }
        let piece = ChunkRef {
            id: ChunkId::HOLE,
            len: std::mem::take(&mut self.hole),
        };
        self.builder
            .push(piece, &mut self.contents.worker)
            .map_err(Trouble::target)
    }

    fn finish(mut self) -> Result<Content, Trouble> {
        self.cut(true)?;
        self.end_hole()?;
        self.contents.window.reset();
        let (_, content) = self
            .builder
            .finish(&mut self.contents.worker)
            .map_err(Trouble::target)?;
        Ok(content)
    }
}

/// The same root of the snapshot before and of its copy, read side by side.
struct Before<'x, 'r> {
    of: Side<'x, 'r>,
    copy: Side<'x, 'r>,
}

/// A tree that is walked along.
struct Side<'x, 'r> {
    tree: TreeReader<'x, 'r>,
    walk: TreeWalk,
    next: Option<(Vec<u8>, Vec<u8>)>,
}

impl Before<'_, '_> {
    /// Returns the value in the copy, if the entry has not changed. A tree that cannot be read costs time.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let is_same = self.of.at(key).is_some_and(|before| before == value);
        let copy = self.copy.at(key)?;
        is_same.then(|| copy.to_vec())
    }
}

impl<'x, 'r> Side<'x, 'r> {
    /// Opens the root with the same path.
    fn open(reader: &'x BlobReader<'r>, snapshot: &Snapshot, root: &Root) -> Option<Side<'x, 'r>> {
        let same = |other: &&Root| other.path == root.path && other.kind == root.kind;
        let root = snapshot.manifest.roots.iter().find(same)?;
        let mut side = Side {
            tree: TreeReader::new(reader),
            walk: TreeWalk::new(root.node, root.height, &[]),
            next: None,
        };
        side.step();
        Some(side)
    }

    /// Goes to the next entry. What cannot be read ends it.
    fn step(&mut self) {
        self.next = self.walk.next(&mut self.tree).unwrap_or_default();
    }

    /// Returns the value of an entry; keys only go up.
    fn at(&mut self, key: &[u8]) -> Option<&[u8]> {
        while self.next.as_ref()?.0.as_slice() < key {
            self.step();
        }
        let (found, value) = self.next.as_ref()?;
        (found == key).then_some(value.as_slice())
    }
}
