//! The workers of a restore: fetch runs of neighbouring frames, decode, write, and finish files.

use super::{Outcome, pieces_of};
use crate::ops::{OpError, Progress};
use crate::pure::base::memory::FetchShare;
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::{ChunkRef, Content, Entry};
use crate::pure::id::ChunkId;
use crate::repo::index::ChunkPlace;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::{Repo, RepoError};
use crate::target::TargetError;
use crate::target::files::{DirHandle, ExistingFile, Meta, OpenTarget, Restored, TargetDir};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A batch is sorted and sent when it has this many pieces or bytes.
const BATCH_PIECES: usize = 4096;
const BATCH_BYTES: u64 = 256 << 20;
/// Neighbouring frames are read together up to this length …
const SPAN_LOCAL: u64 = 2 << 20;
const SPAN_REMOTE: u64 = 16 << 20;
/// … if no more than this lies between them.
const GAP_LOCAL: u64 = 64 << 10;
const GAP_REMOTE: u64 = 1 << 20;
/// Workers that fetch from a remote store at least, because they mostly wait.
const REMOTE_WORKERS: usize = 8;

/// Returns how to fetch when memory is no matter.
pub fn fetch_share(store_is_local: bool, threads: usize) -> FetchShare {
    if store_is_local {
        FetchShare {
            workers: threads.max(1),
            span_bytes: SPAN_LOCAL,
        }
    } else {
        FetchShare {
            workers: threads.max(REMOTE_WORKERS),
            span_bytes: SPAN_REMOTE,
        }
    }
}

/// A file that is being restored.
pub struct FilePlan<'t> {
    full: Vec<u8>,
    entry: Entry,
    dir: Arc<DirHandle>,
    name: Vec<u8>,
    large_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    open: Mutex<Option<Arc<OpenTarget<'t>>>>,
    /// Pieces not written yet, plus one while pieces are being added.
    outstanding: AtomicUsize,
    broken: AtomicBool,
}

impl<'t> FilePlan<'t> {
    /// Plans a file; nothing is created yet.
    pub fn new(
        full: &[u8],
        entry: Entry,
        dir: Arc<DirHandle>,
        name: &[u8],
        large_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> FilePlan<'t> {
        FilePlan {
            full: full.to_vec(),
            entry,
            dir,
            name: name.to_vec(),
            large_xattrs,
            open: Mutex::new(None),
            outstanding: AtomicUsize::new(1),
            broken: AtomicBool::new(false),
        }
    }

    fn meta(&self) -> Meta<'_> {
        Meta {
            entry: &self.entry,
            large_xattrs: &self.large_xattrs,
        }
    }

    fn opened(&self, target: &'t TargetDir) -> Result<Arc<OpenTarget<'t>>, TargetError> {
        let mut open = self.open.lock();
        if let Some(file) = &*open {
            return Ok(file.clone());
        }
        let file = Arc::new(target.create_temp(&self.dir, &self.name, self.entry.size())?);
        *open = Some(file.clone());
        Ok(file)
    }
}

/// One piece of one file, and where to get it.
struct Wanted<'t> {
    file: Arc<FilePlan<'t>>,
    offset: u64,
    piece: ChunkRef,
    place: ChunkPlace,
}

/// Work for one worker.
enum Task<'t> {
    /// Pieces in one pack, sorted by offset, close enough to be read at once.
    Span(Vec<Wanted<'t>>),
    /// A file without pieces to fetch: inline, empty, or only holes.
    Whole(Arc<FilePlan<'t>>),
    /// A file of the right size is there: what is right in it is used.
    Compare(Arc<FilePlan<'t>>, ExistingFile, Vec<(u64, ChunkRef)>),
}

/// What all workers share.
pub struct Fetcher<'a, 'r, 't> {
    pub repo: &'a Repo,
    pub reader: &'a BlobReader<'r>,
    pub target: &'t TargetDir,
    pub outcome: &'a Outcome,
    pub progress: &'a Progress,
}

/// Collects pieces, sorts them, and sends them to the workers.
pub struct Batches<'b, 't> {
    repo: &'b Repo,
    reader: &'b BlobReader<'b>,
    outcome: &'b Outcome,
    progress: &'b Progress,
    tasks: Sender<Task<'t>>,
    span_bytes: u64,
    pieces: Vec<(Arc<FilePlan<'t>>, u64, ChunkRef)>,
    open_files: Vec<Arc<FilePlan<'t>>>,
    bytes: u64,
}

impl<'t> Batches<'_, 't> {
    /// Adds a file with its pieces (without holes).
    ///
    /// # Errors
    /// When the run is over.
    pub fn add(
        &mut self,
        file: FilePlan<'t>,
        pieces: Vec<(u64, ChunkRef)>,
        existing: Option<ExistingFile>,
    ) -> Result<(), OpError> {
        let file = Arc::new(file);
        if let Some(existing) = existing {
            return self.send(Task::Compare(file, existing, pieces));
        }
        if pieces.is_empty() {
            return self.send(Task::Whole(file));
        }
        file.outstanding.fetch_add(pieces.len(), Ordering::AcqRel);
        self.open_files.push(file.clone());
        for (offset, piece) in pieces {
            self.bytes += piece.len;
            self.pieces.push((file.clone(), offset, piece));
            if self.pieces.len() >= BATCH_PIECES || self.bytes >= BATCH_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn send(&self, task: Task<'t>) -> Result<(), OpError> {
        if self.progress.is_cancelled() || self.outcome.is_over() {
            return Err(OpError::Interrupted);
        }
        self.tasks.send(task).map_err(|_| OpError::Interrupted)
    }

    /// Finds where the pieces lie, sorts them by that, and sends neighbours together.
    fn flush(&mut self) -> Result<(), OpError> {
        let pieces = std::mem::take(&mut self.pieces);
        self.bytes = 0;
        let ids: Vec<ChunkId> = pieces.iter().map(|(_, _, piece)| piece.id).collect();
        let places = self.repo.index.find_many(&ids).map_err(RepoError::from)?;
        let mut wanted = Vec::with_capacity(pieces.len());
        for ((file, offset, piece), place) in pieces.into_iter().zip(places) {
            let place = match place {
                Some(place) => place,
                None => match self.reader.copies(&piece.id) {
                    Ok(mut copies) => copies.swap_remove(0),
                    Err(error) => {
                        if !file.broken.swap(true, Ordering::AcqRel) {
                            self.outcome.repo_error(&file.full, error);
                        }
                        continue;
                    }
                },
            };
            wanted.push(Wanted {
                file,
                offset,
                piece,
                place,
            });
        }
        wanted.sort_by_key(|wanted| (wanted.place.pack, wanted.place.offset));
        let is_local = self.repo.store.is_local();
        let gap_max = if is_local { GAP_LOCAL } else { GAP_REMOTE };
        let mut span: Vec<Wanted<'t>> = Vec::new();
        for next in wanted {
            if let (Some(first), Some(last)) = (span.first(), span.last()) {
                let start = u64::from(first.place.offset);
                let end = u64::from(last.place.offset) + u64::from(last.place.stored_len);
                let next_start = u64::from(next.place.offset);
                let next_end = next_start + u64::from(next.place.stored_len);
                let joins = first.place.pack == next.place.pack
                    && next_start.saturating_sub(end) <= gap_max
                    && next_end - start <= self.span_bytes;
                if !joins {
                    self.send(Task::Span(std::mem::take(&mut span)))?;
                }
            }
            span.push(next);
        }
        if !span.is_empty() {
            self.send(Task::Span(span))?;
        }
        // Files whose pieces have all been sent are finished by whoever writes their last piece.
        for file in std::mem::take(&mut self.open_files) {
            self.send(Task::Whole(file))?;
        }
        Ok(())
    }
}

impl<'r, 't> Fetcher<'_, 'r, 't> {
    /// Runs workers while `plan` hands files over.
    ///
    /// # Errors
    /// What `plan` returns.
    pub fn run<R>(
        &self,
        share: FetchShare,
        plan: impl FnOnce(&mut Batches<'_, 't>) -> Result<R, OpError>,
    ) -> Result<R, OpError> {
        let workers = share.workers.max(1);
        let (tasks, queue) = bounded::<Task<'t>>(4 * workers);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let queue: Receiver<Task<'t>> = queue.clone();
                scope.spawn(move || {
                    let mut worker = Worker {
                        fetcher: self,
                        opener: Opener::new(),
                        buffer: Vec::new(),
                        plain: Vec::new(),
                    };
                    for task in queue {
                        if !self.outcome.is_over() && !self.progress.is_cancelled() {
                            worker.task(task);
                        }
                    }
                });
            }
            drop(queue);
            let mut batches = Batches {
                repo: self.repo,
                reader: self.reader,
                outcome: self.outcome,
                progress: self.progress,
                tasks,
                span_bytes: share.span_bytes,
                pieces: Vec::new(),
                open_files: Vec::new(),
                bytes: 0,
            };
            let planned = plan(&mut batches);
            let flushed = if planned.is_ok() { batches.flush() } else { Ok(()) };
            drop(batches);
            flushed.and(planned)
        })
    }
}

struct Worker<'f, 'a, 'r, 't> {
    fetcher: &'f Fetcher<'a, 'r, 't>,
    opener: Opener,
    buffer: Vec<u8>,
    plain: Vec<u8>,
}

impl<'t> Worker<'_, '_, '_, 't> {
    fn task(&mut self, task: Task<'t>) {
        match task {
            Task::Span(wanted) => self.span(wanted),
            Task::Whole(file) => self.one_done(&file),
            Task::Compare(file, existing, pieces) => self.compare(&file, &existing, pieces),
        }
    }

    fn span(&mut self, wanted: Vec<Wanted<'t>>) {
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else {
            return;
        };
        let start = u64::from(first.place.offset);
        let end = u64::from(last.place.offset) + u64::from(last.place.stored_len);
        let fetched = self
            .fetcher
            .reader
            .fetch_span(&first.place, start..end, &mut self.buffer);
        let fetched_ok = fetched.is_ok();
        let mut previous: Option<ChunkId> = None;
        for wanted in &wanted {
            if self.fetcher.outcome.is_over() {
                return;
            }
            if wanted.file.broken.load(Ordering::Acquire) {
                self.one_done(&wanted.file);
                continue;
            }
            // Several files may want the same chunk; it is decoded once.
            if previous != Some(wanted.piece.id) {
                let from = (u64::from(wanted.place.offset) - start) as usize;
                let frame = self
                    .buffer
                    .get(from..from + wanted.place.stored_len as usize)
                    .filter(|_| fetched_ok);
                let reader = self.fetcher.reader;
                let (id, place) = (&wanted.piece.id, &wanted.place);
                let opened = match frame {
                    Some(frame) => reader.open(BlobType::Data, id, place, frame, &mut self.opener, &mut self.plain),
                    None => Err(RepoError::UnknownChunk(*id)),
                };
                // What did not open is read again, and then from every other copy, before it counts as damaged.
                let opened = opened.or_else(|_| reader.read(BlobType::Data, id, &mut self.opener, &mut self.plain));
                if let Err(error) = opened {
                    previous = None;
                    self.broken(&wanted.file, error);
                    self.one_done(&wanted.file);
                    continue;
                }
                previous = Some(wanted.piece.id);
            }
            self.write(wanted);
            self.one_done(&wanted.file);
        }
    }

    fn broken(&self, file: &FilePlan<'t>, error: RepoError) {
        if !file.broken.swap(true, Ordering::AcqRel) {
            self.fetcher.outcome.repo_error(&file.full, error);
        }
    }

    fn write(&self, wanted: &Wanted<'t>) {
        let file = &wanted.file;
        if self.plain.len() as u64 != wanted.piece.len {
            let why = format!("it has {} bytes, the file says {}", self.plain.len(), wanted.piece.len);
            self.broken(
                file,
                RepoError::Missing {
                    object: format!("chunk {}", wanted.piece.id),
                    why,
                },
            );
            return;
        }
        let written = file
            .opened(self.fetcher.target)
            .and_then(|open| open.write_at(wanted.offset, &self.plain));
        match written {
            Ok(()) => {
                self.fetcher
                    .progress
                    .bytes
                    .fetch_add(self.plain.len() as u64, Ordering::Relaxed);
            }
            Err(error) => {
                if !file.broken.swap(true, Ordering::AcqRel) {
                    self.fetcher.outcome.target_error(error);
                }
            }
        }
    }

    /// Counts a piece; the last one finishes the file.
    fn one_done(&self, file: &FilePlan<'t>) {
        if file.outstanding.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        if file.broken.load(Ordering::Acquire) {
            // The temporary file goes; what had the name before stays.
            file.open.lock().take();
            return;
        }
        match self.finish(file) {
            Ok(restored) => {
                self.fetcher.outcome.update(|report| {
                    report.files += 1;
                    report.bytes += file.entry.size();
                });
                self.fetcher.progress.files.fetch_add(1, Ordering::Relaxed);
                self.fetcher.outcome.restored(&file.entry, restored);
            }
            Err(error) => self.fetcher.outcome.target_error(error),
        }
    }

    fn finish(&self, file: &FilePlan<'t>) -> Result<Restored, TargetError> {
        let open = file.opened(self.fetcher.target)?;
        file.open.lock().take();
        if let Some(Content::Inline(bytes)) = file.entry.content() {
            open.write_at(0, bytes)?;
        }
        match Arc::try_unwrap(open) {
            Ok(open) => open.commit(&file.meta()),
            Err(_) => Err(TargetError::Replaced {
                path: file.full.clone(),
            }),
        }
    }

    fn compare(&mut self, file: &Arc<FilePlan<'t>>, existing: &ExistingFile, pieces: Vec<(u64, ChunkRef)>) {
        match self.compare_and_write(file, existing, pieces) {
            Ok(()) => {}
            Err(OpError::Repo(error)) => self.fetcher.outcome.repo_error(&file.full, error),
            Err(OpError::Target(error)) => self.fetcher.outcome.target_error(error),
            Err(error) => {
                self.fetcher.outcome.fatal.lock().get_or_insert(error);
            }
        }
    }

    /// Keeps a file whose content is right; otherwise writes it anew, taking from it what is right.
    fn compare_and_write(
        &mut self,
        file: &Arc<FilePlan<'t>>,
        existing: &ExistingFile,
        pieces: Vec<(u64, ChunkRef)>,
    ) -> Result<(), OpError> {
        let fetcher = self.fetcher;
        let mut wrong = Vec::new();
        for (offset, piece) in &pieces {
            if !piece_is_right(fetcher.repo, existing, *offset, piece, &mut self.plain)? {
                wrong.push((*offset, *piece));
            }
        }
        let inline_right = match file.entry.content() {
            Some(Content::Inline(bytes)) => {
                self.plain.resize(bytes.len(), 0);
                existing.read_at(0, &mut self.plain)? == bytes.len() && self.plain == *bytes
            }
            _ => holes_are_right(existing, &pieces, file.entry.size(), &mut self.plain)?,
        };
        if wrong.is_empty() && inline_right {
            let restored = fetcher.target.keep_existing(existing, &file.meta())?;
            fetcher.outcome.update(|report| report.files_unchanged += 1);
            fetcher.progress.file_done(file.entry.size());
            fetcher.outcome.restored(&file.entry, restored);
            return Ok(());
        }
        let open = fetcher.target.create_temp(&file.dir, &file.name, file.entry.size())?;
        if let Some(Content::Inline(bytes)) = file.entry.content() {
            open.write_at(0, bytes)?;
        }
        let mut next_wrong = wrong.iter().peekable();
        for (offset, piece) in &pieces {
            if next_wrong.peek().is_some_and(|(at, _)| at == offset) {
                next_wrong.next();
                fetcher
                    .reader
                    .read(BlobType::Data, &piece.id, &mut self.opener, &mut self.plain)?;
            } else if !piece_is_right(fetcher.repo, existing, *offset, piece, &mut self.plain)? {
                // It changed under us; the repository's copy is the one that counts.
                fetcher
                    .reader
                    .read(BlobType::Data, &piece.id, &mut self.opener, &mut self.plain)?;
            }
            open.write_at(*offset, &self.plain)?;
            fetcher.progress.bytes.fetch_add(piece.len, Ordering::Relaxed);
        }
        let restored = open.commit(&file.meta())?;
        fetcher.outcome.update(|report| {
            report.files += 1;
            report.bytes += file.entry.size();
        });
        fetcher.outcome.restored(&file.entry, restored);
        Ok(())
    }
}

/// Whether a piece of a file in the target holds what the snapshot says; its bytes are then in `buffer`.
fn piece_is_right(
    repo: &Repo,
    existing: &ExistingFile,
    offset: u64,
    piece: &ChunkRef,
    buffer: &mut Vec<u8>,
) -> Result<bool, OpError> {
    buffer.resize(piece.len as usize, 0);
    let right = existing.read_at(offset, buffer)? as u64 == piece.len
        && repo.keys.data_id(buffer).is_ok_and(|found| found == piece.id);
    Ok(right)
}

/// Whether everything between the pieces is zero.
fn holes_are_right(
    existing: &ExistingFile,
    pieces: &[(u64, ChunkRef)],
    size: u64,
    buffer: &mut Vec<u8>,
) -> Result<bool, OpError> {
    const STEP: u64 = 1 << 20;
    let mut at = 0;
    let ends = pieces
        .iter()
        .map(|(offset, piece)| (*offset, offset + piece.len))
        .chain(std::iter::once((size, size)));
    for (next, end) in ends {
        while at < next {
            let length = STEP.min(next - at);
            buffer.resize(length as usize, 0);
            if existing.read_at(at, buffer)? as u64 != length || buffer.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += length;
        }
        at = end;
    }
    Ok(true)
}

/// Whether a file in the target has the content that the snapshot says.
///
/// # Errors
/// When the repository or the target cannot be read.
pub fn is_right(
    repo: &Repo,
    existing: &ExistingFile,
    entry: &Entry,
    lists: &mut TreeReader<'_, '_>,
    buffer: &mut Vec<u8>,
) -> Result<bool, OpError> {
    if existing.size() != entry.size() {
        return Ok(false);
    }
    if let Some(Content::Inline(bytes)) = entry.content() {
        buffer.resize(bytes.len(), 0);
        return Ok(existing.read_at(0, buffer)? == bytes.len() && buffer == bytes);
    }
    let pieces = pieces_of(entry, lists)?;
    for (offset, piece) in &pieces {
        if !piece_is_right(repo, existing, *offset, piece, buffer)? {
            return Ok(false);
        }
    }
    holes_are_right(existing, &pieces, entry.size(), buffer)
}

/// Writes one file by itself.
///
/// # Errors
/// When the repository or the target fails.
pub fn write_alone(
    reader: &BlobReader<'_>,
    target: &TargetDir,
    dir: &Arc<DirHandle>,
    name: &[u8],
    meta: &Meta<'_>,
    lists: &mut TreeReader<'_, '_>,
    opener: &mut Opener,
) -> Result<Restored, OpError> {
    let open = target.create_temp(dir, name, meta.entry.size())?;
    if let Some(Content::Inline(bytes)) = meta.entry.content() {
        open.write_at(0, bytes)?;
    }
    let mut plain = Vec::new();
    for (offset, piece) in pieces_of(meta.entry, lists)? {
        reader.read(BlobType::Data, &piece.id, opener, &mut plain)?;
        open.write_at(offset, &plain)?;
    }
    Ok(open.commit(meta)?)
}
