//! The worker threads: read entries, and store chunks that others offer.

use super::Problems;
use super::blobs::BlobWorker;
use super::checkpoint::Pass;
use super::delta::{Near, Previous};
use super::file::{ChunkTask, Duty, FileEnd, FileWriter, Reply, Shared, encode_with};
use super::plan::{error_code, join};
use crate::ops::check::chain;
use crate::pure::format::entry::{Content, Entry, EntryKind};
use crate::pure::tree::list::ContentBuilder;
use crate::repo::RepoError;
use crate::source::files::{Found, Piece, Recheck, SourceError, SourceFile};
use crate::source::stream::Stream;
use crossbeam_channel::{Receiver, RecvTimeoutError, select};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A file that changes while it is read is read again, this often in all …
const READS_MAX: usize = 3;
/// … unless it is larger than this: then it is stored as it was read, and marked.
const READ_AGAIN_BYTES_MAX: u64 = 64 << 20;

/// Something to read.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are entries; a box would cost an allocation for each"
)]
pub enum Job {
    Entry {
        /// Which of all entries that have to be read it is: from 0 on, in the order of the tree.
        number: u64,
        found: Found,
        root: Arc<[u8]>,
        /// What the parent has of it, if it changed.
        previous: Option<Arc<Previous>>,
        reply: Reply,
    },
    Stream {
        stream: Stream,
        previous: Option<Arc<Previous>>,
        reply: Reply,
    },
}

impl Job {
    /// Its number, and how much there is to read as far as is known.
    fn size(&self) -> (u64, u64) {
        match self {
            Job::Entry { number, found, .. } => {
                let is_file = matches!(found.entry.kind, EntryKind::File { .. });
                (*number, if is_file { found.stat.size } else { 0 })
            }
            Job::Stream { .. } => (0, 0),
        }
    }
}

/// Runs until there are no more jobs and nobody works on a file whose chunks might still be offered.
pub fn run(
    mut worker: BlobWorker<'_>,
    shared: &Shared<'_>,
    jobs: &Receiver<Job>,
    chunks: &Receiver<ChunkTask>,
    problems: &Problems,
    bytes_read: &AtomicU64,
) {
    const IDLE: Duration = Duration::from_millis(20);
    const AT_GATE: Duration = Duration::from_millis(2);
    let mut reader = EntryReader {
        writer: FileWriter::new(shared),
        small: Vec::new(),
        shared,
        problems,
        bytes_read,
    };
    loop {
        // Chunks first: they are in memory and somebody waits for them.
        if let Ok(task) = chunks.try_recv() {
            task.run(shared, &mut worker);
            continue;
        }
        select! {
            recv(chunks) -> task => {
                if let Ok(task) = task {
                    task.run(shared, &mut worker);
                }
            }
            recv(jobs) -> job => match job {
                Ok(job) => loop {
                    let (number, bytes) = job.size();
                    if let Some(pass) = shared.gate.enter(number, bytes) {
                        reader.job(job, pass, &mut worker);
                        break;
                    }
                    if shared.is_stopped() {
                        break;
                    }
                    // A checkpoint waits for files that others still read: help them.
                    if let Ok(task) = chunks.recv_timeout(AT_GATE) {
                        task.run(shared, &mut worker);
                    }
                },
                Err(_) => {
                    // No more jobs: only chunks of files that others still read can come.
                    match chunks.recv_timeout(IDLE) {
                        Ok(task) => task.run(shared, &mut worker),
                        Err(RecvTimeoutError::Timeout) if shared.gate.is_busy() => {}
                        Err(_) => return,
                    }
                }
            }
        }
    }
}

struct EntryReader<'s, 'a> {
    writer: FileWriter<'s, 'a>,
    small: Vec<u8>,
    shared: &'s Shared<'a>,
    problems: &'s Problems,
    bytes_read: &'s AtomicU64,
}

impl EntryReader<'_, '_> {
    fn job(&mut self, job: Job, pass: Pass, worker: &mut BlobWorker<'_>) {
        match job {
            Job::Stream {
                stream,
                previous,
                reply,
            } => self.stream(stream, previous, Duty::new(reply, pass), worker),
            Job::Entry {
                found,
                root,
                previous,
                reply,
                ..
            } => {
                let duty = Duty::new(reply, pass);
                if matches!(found.entry.kind, EntryKind::File { .. }) {
                    self.file(found, &root, previous, duty, worker);
                } else {
                    duty.fulfil(self.other(found, &root, worker));
                }
            }
        }
    }

    fn problem(&self, root: &[u8], error: &SourceError) {
        self.shared.progress.problems.fetch_add(1, Ordering::Relaxed);
        self.problems
            .add(join(root, error.path()), error_code(error), chain(error));
    }

    /// Directories, links, devices: only their attributes have to be read.
    fn other(
        &self,
        found: Found,
        root: &[u8],
        worker: &mut BlobWorker<'_>,
    ) -> Result<Option<super::file::Finished>, RepoError> {
        let gathered = found.attributes();
        let is_dir = found.entry.kind == EntryKind::Dir;
        let path = join(root, &found.path());
        let mut entry = found.entry;
        match gathered {
            Ok(gathered) => self.put_attributes(gathered, &mut entry, root, worker)?,
            // What is below a directory has been listed already, so the directory stays even when it is gone by now.
            Err(SourceError::Vanished { .. }) if is_dir => {}
            Err(SourceError::Vanished { .. }) => return Ok(None),
            Err(error) => {
                self.problem(root, &error);
                if !is_dir {
                    return Ok(None);
                }
            }
        }
        Ok(encode_with(
            &mut entry,
            0,
            Content::Inline(Vec::new()),
            &path,
            self.shared,
        ))
    }

    fn put_attributes(
        &self,
        mut gathered: crate::source::files::Gathered,
        entry: &mut Entry,
        root: &[u8],
        worker: &mut BlobWorker<'_>,
    ) -> Result<(), RepoError> {
        gathered.put_into(&mut entry.attributes);
        for problem in &gathered.problems {
            let name = problem
                .attribute
                .as_ref()
                .map_or(String::new(), |name| format!(" {}", name.escape_ascii()));
            let error = problem.error.map_or(String::new(), |error| format!(": {error}"));
            self.shared.progress.problems.fetch_add(1, Ordering::Relaxed);
            self.problems.add(
                join(root, &problem.path),
                "metadata",
                format!("attribute{name} cannot be read{error}"),
            );
        }
        for (name, value) in gathered.large_xattrs {
            let mut builder = ContentBuilder::new(self.shared.params);
            builder.push(worker.data(&value, None)?, worker)?;
            let (size, content) = builder.finish(worker)?;
            entry.attributes.xattrs_outline.push((name, size, content));
        }
        Ok(())
    }

    fn file(
        &mut self,
        mut found: Found,
        root: &[u8],
        previous: Option<Arc<Previous>>,
        duty: Duty,
        worker: &mut BlobWorker<'_>,
    ) {
        for attempt in 1..=READS_MAX {
            let mut file = match found.open() {
                Ok(file) => file,
                Err(error) => {
                    if !matches!(error, SourceError::Vanished { .. }) {
                        self.problem(root, &error);
                    }
                    return duty.fulfil(Ok(None));
                }
            };
            file.update(&mut found);
            let last = attempt == READS_MAX || file.size() > READ_AGAIN_BYTES_MAX;
            match self.read_file(&found, &mut file, root, previous.as_ref(), last, worker) {
                Ok(Some(Stored::Inline(finished))) => {
                    return duty.fulfil(Ok(finished));
                }
                Ok(Some(Stored::Later(entry))) => {
                    let path = join(root, &found.path());
                    self.writer.finish(
                        FileEnd {
                            entry: *entry,
                            path,
                            duty,
                        },
                        worker,
                    );
                    self.shared.progress.files.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                // Changed while it was read: once more.
                Ok(None) => {}
                Err(error) => return duty.fulfil(Err(error)),
            }
        }
    }

    /// Reads a file once. `None`: it changed meanwhile and is to be read again (never when this is the `last` attempt).
    fn read_file(
        &mut self,
        found: &Found,
        file: &mut SourceFile,
        root: &[u8],
        previous: Option<&Arc<Previous>>,
        last: bool,
        worker: &mut BlobWorker<'_>,
    ) -> Result<Option<Stored>, RepoError> {
        let mut entry = found.entry.clone();
        self.put_attributes(file.attributes(), &mut entry, root, worker)?;
        let small = file.size() <= u64::from(self.shared.cutter.profile().min);
        let content = if small {
            self.read_small(file, root, &mut entry)?
        } else {
            None
        };
        if content.is_none() {
            self.writer.restart(previous.cloned());
            self.read_large(file, root, &mut entry, worker)?;
        }
        // Whether it can be asked or not, a file that is not surely unchanged counts as changed.
        if !matches!(file.recheck(), Ok(Recheck::Unchanged)) {
            if !last {
                return Ok(None);
            }
            entry.attributes.changed_while_read = true;
            self.shared.progress.problems.fetch_add(1, Ordering::Relaxed);
            self.problems.add(
                join(root, &found.path()),
                "changed",
                "the file changed while it was read",
            );
        }
        let Some(length) = content else {
            return Ok(Some(Stored::Later(Box::new(entry))));
        };
        self.bytes_read.fetch_add(length as u64, Ordering::Relaxed);
        self.shared.progress.file_done(length as u64);
        let raw = &self.small[..length];
        let content = if length <= self.shared.params.inline_bytes as usize {
            Content::Inline(raw.to_vec())
        } else {
            let near = previous.map(|previous| Near { previous, offset: 0 });
            Content::Chunks(vec![worker.data(raw, near)?])
        };
        let path = join(root, &found.path());
        Ok(Some(Stored::Inline(encode_with(
            &mut entry,
            length as u64,
            content,
            &path,
            self.shared,
        ))))
    }

    /// Reads a file that is one chunk whatever it holds. `None`: it has holes, which are kept.
    fn read_small(
        &mut self,
        file: &mut SourceFile,
        root: &[u8],
        entry: &mut Entry,
    ) -> Result<Option<usize>, RepoError> {
        self.small.resize(self.shared.cutter.profile().min as usize, 0);
        let mut length = 0;
        loop {
            match file.next_piece() {
                Ok(None) => return Ok(Some(length)),
                Ok(Some(Piece::Data { len })) if length == 0 && len == file.size() => {}
                // Only the first look at a file decides: nothing has been read yet.
                Ok(Some(_)) => {
                    file.rewind();
                    return Ok(None);
                }
                Err(error) => {
                    self.incomplete(&error, root, entry);
                    return Ok(Some(length));
                }
            }
            loop {
                match file.read(&mut self.small[length..]) {
                    Ok(0) => break,
                    Ok(count) => length += count,
                    Err(error) => {
                        self.incomplete(&error, root, entry);
                        let skipped = file.skip_unreadable() as usize;
                        self.small[length..length + skipped].fill(0);
                        length += skipped;
                    }
                }
            }
        }
    }

    fn incomplete(&self, error: &SourceError, root: &[u8], entry: &mut Entry) {
        entry.attributes.incomplete = Some(error.errno().map_or(5, |errno| errno.unsigned_abs().into()));
        self.problem(root, error);
    }

    fn read_large(
        &mut self,
        file: &mut SourceFile,
        root: &[u8],
        entry: &mut Entry,
        worker: &mut BlobWorker<'_>,
    ) -> Result<(), RepoError> {
        loop {
            match file.next_piece() {
                Ok(None) => return self.writer.end_extent(worker),
                Ok(Some(Piece::Hole { len })) => self.writer.hole(len, worker)?,
                Ok(Some(Piece::Data { .. })) => {
                    self.read_extent(file, root, entry, worker)?;
                    self.writer.end_extent(worker)?;
                }
                Err(error) => {
                    self.incomplete(&error, root, entry);
                    return self.writer.end_extent(worker);
                }
            }
        }
    }

    fn read_extent(
        &mut self,
        file: &mut SourceFile,
        root: &[u8],
        entry: &mut Entry,
        worker: &mut BlobWorker<'_>,
    ) -> Result<(), RepoError> {
        loop {
            if self.shared.is_stopped() {
                return Err(RepoError::Interrupted);
            }
            match file.read(self.writer.room()) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
                    self.writer.filled(count, worker)?;
                }
                Err(error) => {
                    self.incomplete(&error, root, entry);
                    let mut left = file.skip_unreadable() as usize;
                    while left > 0 {
                        let room = self.writer.room();
                        let count = left.min(room.len());
                        room[..count].fill(0);
                        self.writer.filled(count, worker)?;
                        left -= count;
                    }
                }
            }
        }
    }

    fn stream(&mut self, mut stream: Stream, previous: Option<Arc<Previous>>, duty: Duty, worker: &mut BlobWorker<'_>) {
        self.writer.restart(previous);
        match self.read_stream(&mut stream, worker) {
            Ok(()) => {
                let entry = stream.entry();
                self.shared.progress.files.fetch_add(1, Ordering::Relaxed);
                self.writer.finish(
                    FileEnd {
                        entry,
                        path: stream.name().to_vec(),
                        duty,
                    },
                    worker,
                );
            }
            Err(error) => duty.fulfil(Err(error)),
        }
    }

    fn read_stream(&mut self, stream: &mut Stream, worker: &mut BlobWorker<'_>) -> Result<(), RepoError> {
        loop {
            if self.shared.is_stopped() {
                return Err(RepoError::Interrupted);
            }
            match stream.read(self.writer.room()) {
                Ok(0) => {
                    self.writer.end_extent(worker)?;
                    // The command must have succeeded, or there is no snapshot.
                    return stream.finish().map_err(|error| self.stream_failed(error));
                }
                Ok(count) => {
                    self.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
                    self.writer.filled(count, worker)?;
                }
                Err(error) => return Err(self.stream_failed(error)),
            }
        }
    }

    /// A stream that failed must not become a snapshot, so this travels like an error of the session.
    fn stream_failed(&self, error: crate::source::stream::StreamError) -> RepoError {
        *self.shared.stream_failure.lock() = Some(error);
        RepoError::Poisoned
    }
}

/// A file that has been read.
enum Stored {
    /// Complete.
    Inline(Option<super::file::Finished>),
    /// Complete when its last chunk is stored.
    Later(Box<Entry>),
}
