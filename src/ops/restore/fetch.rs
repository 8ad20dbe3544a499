//! The workers of a restore: fetch runs of neighbouring frames, decode, write, and finish files.

use super::{Outcome, check_length, for_each_chunk, read_chunk};
use crate::ops::{OpError, Progress};
use crate::pure::base::memory::FetchShare;
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::{ChunkRef, Content, Entry};
use crate::pure::id::ChunkId;
use crate::repo::index::ChunkPlace;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::spans::{self, Spans};
use crate::repo::{Repo, RepoError};
use crate::target::TargetError;
use crate::target::files::{DirHandle, ExistingFile, Meta, OpenTarget, Restored, TargetDir};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A batch is sorted and sent when it has this many pieces or bytes.
const BATCH_PIECES: usize = 4096;
const BATCH_BYTES: u64 = 256 << 20;
/// Workers that fetch from a remote store at least, because they mostly wait.
const REMOTE_WORKERS: usize = 8;

/// Returns how to fetch when memory is no matter.
pub fn fetch_share(store_is_local: bool, threads: usize) -> FetchShare {
    FetchShare {
        workers: threads.max(if store_is_local { 1 } else { REMOTE_WORKERS }),
        span_bytes: Spans::of(store_is_local).bytes,
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
        let file = Arc::new(target.create(&self.dir, &self.name, self.entry.size())?);
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
    Compare(Arc<FilePlan<'t>>, ExistingFile),
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
    spans: Spans,
    pieces: Vec<(Arc<FilePlan<'t>>, u64, ChunkRef)>,
    open_files: Vec<Arc<FilePlan<'t>>>,
    bytes: u64,
}

impl<'t> Batches<'_, 't> {
    /// Adds a file. Its list of pieces is read along the way, so that files may be larger than memory.
    ///
    /// # Errors
    /// When the run is over.
    pub fn add(&mut self, file: FilePlan<'t>, lists: &mut TreeReader<'_, '_>) -> Result<(), OpError> {
        let file = Arc::new(file);
        let mut is_whole = true;
        let listed = for_each_chunk(&file.entry, lists, &mut |offset, piece| {
            is_whole = false;
            file.outstanding.fetch_add(1, Ordering::AcqRel);
            self.bytes += piece.len;
            self.pieces.push((file.clone(), offset, piece));
            if self.pieces.len() >= BATCH_PIECES || self.bytes >= BATCH_BYTES {
                self.flush()?;
            }
            Ok(ControlFlow::Continue(()))
        });
        match listed {
            Ok(()) => {}
            Err(OpError::Repo(error)) => {
                if !file.broken.swap(true, Ordering::AcqRel) {
                    self.outcome.repo_error(&file.full, error);
                }
            }
            Err(error) => return Err(error),
        }
        if is_whole {
            return self.send(Task::Whole(file));
        }
        self.open_files.push(file);
        Ok(())
    }

    /// Adds a file for which one of the right size is there.
    ///
    /// # Errors
    /// When the run is over.
    pub fn compare(&mut self, file: FilePlan<'t>, existing: ExistingFile) -> Result<(), OpError> {
        self.send(Task::Compare(Arc::new(file), existing))
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
        let unknown: Vec<ChunkId> = ids
            .iter()
            .zip(&places)
            .filter(|(_, place)| place.is_none())
            .map(|(id, _)| *id)
            .collect();
        let mut searched = self.reader.first_copies(&unknown).into_iter();
        let mut wanted = Vec::with_capacity(pieces.len());
        for ((file, offset, piece), place) in pieces.into_iter().zip(places) {
            let place = match place.map(Ok).or_else(|| searched.next()) {
                Some(Ok(place)) => place,
                found => {
                    let error = found.and_then(Result::err).unwrap_or(RepoError::UnknownChunk(piece.id));
                    if !file.broken.swap(true, Ordering::AcqRel) {
                        self.outcome.repo_error(&file.full, error);
                    }
                    // One piece less to wait for.
                    file.outstanding.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
            };
            wanted.push(Wanted {
                file,
                offset,
                piece,
                place,
            });
        }
        // The pieces of these files are all on their way: whoever writes the last one finishes the file.
        for file in std::mem::take(&mut self.open_files) {
            if file.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
                // Nobody has a piece of it any more.
                file.outstanding.store(1, Ordering::Release);
                self.send(Task::Whole(file))?;
            }
        }
        wanted.sort_by_key(|wanted| (wanted.place.pack, wanted.place.offset));
        let mut span: Vec<Wanted<'t>> = Vec::new();
        for next in wanted {
            if let (Some(first), Some(last)) = (span.first(), span.last())
                && !self.spans.admit(&first.place, &last.place, &next.place)
            {
                self.send(Task::Span(std::mem::take(&mut span)))?;
            }
            span.push(next);
        }
        if !span.is_empty() {
            self.send(Task::Span(span))?;
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
                        lists: TreeReader::new(self.reader),
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
                spans: Spans::of(self.repo.store.is_local()).no_longer_than(share.span_bytes),
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
    lists: TreeReader<'a, 'r>,
}

impl<'t> Worker<'_, '_, '_, 't> {
    fn task(&mut self, task: Task<'t>) {
        match task {
            Task::Span(wanted) => self.span(wanted),
            Task::Whole(file) => self.one_done(&file),
            Task::Compare(file, existing) => self.compare(&file, &existing),
        }
    }

    fn span(&mut self, wanted: Vec<Wanted<'t>>) {
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else {
            return;
        };
        let start = u64::from(first.place.offset);
        let end = spans::end(&last.place);
        let fetched = self
            .fetcher
            .reader
            .fetch_span(&first.place, start..end, &mut self.buffer);
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
                let frame = fetched.as_ref().ok().and_then(|skip| {
                    self.buffer
                        .get(skip + from..skip + from + wanted.place.stored_len as usize)
                });
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
        if let Err(error) = check_length(&wanted.piece, &self.plain) {
            return self.broken(file, error);
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

    fn compare(&mut self, file: &Arc<FilePlan<'t>>, existing: &ExistingFile) {
        match self.compare_and_write(file, existing) {
            Ok(()) => {}
            Err(OpError::Repo(error)) => self.fetcher.outcome.repo_error(&file.full, error),
            Err(OpError::Target(error)) => self.fetcher.outcome.target_error(error),
            Err(error) => {
                self.fetcher.outcome.fatal.lock().get_or_insert(error);
            }
        }
    }

    /// Keeps a file whose content is right; otherwise writes it anew, taking from it what is right.
    fn compare_and_write(&mut self, file: &Arc<FilePlan<'t>>, existing: &ExistingFile) -> Result<(), OpError> {
        let fetcher = self.fetcher;
        if is_right(fetcher.repo, existing, &file.entry, &mut self.lists, &mut self.plain)? {
            let restored = fetcher.target.keep_existing(existing, &file.meta())?;
            fetcher.outcome.update(|report| report.files_unchanged += 1);
            fetcher.progress.file_done(file.entry.size());
            fetcher.outcome.restored(&file.entry, restored);
            return Ok(());
        }
        let open = fetcher.target.create(&file.dir, &file.name, file.entry.size())?;
        if let Some(Content::Inline(bytes)) = file.entry.content() {
            open.write_at(0, bytes)?;
        }
        let (plain, opener) = (&mut self.plain, &mut self.opener);
        for_each_chunk(&file.entry, &mut self.lists, &mut |offset, piece| {
            if fetcher.progress.is_cancelled() {
                return Err(OpError::Interrupted);
            }
            if !piece_is_right(fetcher.repo, existing, offset, &piece, plain)? {
                read_chunk(fetcher.reader, &piece, opener, plain)?;
            }
            open.write_at(offset, plain)?;
            fetcher.progress.bytes.fetch_add(piece.len, Ordering::Relaxed);
            Ok(ControlFlow::Continue(()))
        })?;
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

/// Whether a stretch of a file is zero. What the file system knows to be a hole is not read: there may be terabytes of it.
fn is_zero(existing: &ExistingFile, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<bool, TargetError> {
    const STEP: u64 = 1 << 20;
    let mut at = range.start;
    while let Some(data) = existing.data_from(at)?.filter(|data| data.start < range.end) {
        at = data.start;
        let end = data.end.min(range.end);
        while at < end {
            let length = STEP.min(end - at);
            buffer.resize(length as usize, 0);
            if existing.read_at(at, buffer)? as u64 != length || buffer.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += length;
        }
        if at >= range.end {
            break;
        }
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
    let (mut right, mut at) = (true, 0);
    for_each_chunk(entry, lists, &mut |offset, piece| {
        right = is_zero(existing, at..offset, buffer)? && piece_is_right(repo, existing, offset, &piece, buffer)?;
        at = offset + piece.len;
        Ok(if right {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    Ok(right && is_zero(existing, at..entry.size(), buffer)?)
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
    let open = target.create(dir, name, meta.entry.size())?;
    if let Some(Content::Inline(bytes)) = meta.entry.content() {
        open.write_at(0, bytes)?;
    }
    let mut plain = Vec::new();
    for_each_chunk(meta.entry, lists, &mut |offset, piece| {
        read_chunk(reader, &piece, opener, &mut plain)?;
        open.write_at(offset, &plain)?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(open.commit(meta)?)
}
