//! Storing the content of one file: read, cut, hand chunks to whoever is free, and finish the entry when the last is
//! stored.
//!
//! A worker that reads a large file does not store its chunks alone: it offers them to the others, and stores one
//! itself whenever nobody takes it. So one large file uses every core, and many small ones do too, without a thread per
//! role.

use super::Problems;
use super::blobs::BlobWorker;
use super::checkpoint::{Gate, Pass};
use super::cut::Window;
use super::delta::{Near, Previous};
use crate::ops::Progress;
use crate::pure::chunk::Cutter;
use crate::pure::format::config::TreeParams;
use crate::pure::format::entry::{ChunkRef, Content, Entry, EntryKind};
use crate::pure::id::ChunkId;
use crate::pure::tree::list::ContentBuilder;
use crate::repo::RepoError;
use crate::source::StreamError;
use crossbeam_channel::{Sender, TrySendError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A finished entry: what the tree stores for it.
#[derive(Debug)]
pub struct Finished {
    pub value: Vec<u8>,
    pub file_bytes: u64,
}

/// Where the finished entry is waited for. `None`: the file turned out not to be there.
pub type Reply = Sender<Result<Option<Finished>, RepoError>>;

/// The duty to finish an entry. While it is there, no checkpoint is made.
pub struct Duty {
    reply: Reply,
    _pass: Pass,
}

impl Duty {
    /// Takes over an entry.
    pub fn new(reply: Reply, pass: Pass) -> Duty {
        Duty { reply, _pass: pass }
    }

    /// Hands the entry to the tree builder.
    pub fn fulfil(self, outcome: Result<Option<Finished>, RepoError>) {
        // Nobody waits any more when the run is being torn down.
        let _ = self.reply.send(outcome);
    }
}

/// A chunk that waits to be stored.
pub struct ChunkTask {
    raw: Vec<u8>,
    /// Its place in the file.
    offset: u64,
    file: Arc<FileInProgress>,
    index: usize,
    is_done: bool,
}

/// A file whose chunks are being stored, maybe by several workers.
pub struct FileInProgress {
    previous: Option<Arc<Previous>>,
    pieces: Mutex<Vec<ChunkRef>>,
    /// Chunks not stored yet, plus one while the reader is not done.
    outstanding: AtomicUsize,
    failure: Mutex<Option<RepoError>>,
    end: Mutex<Option<FileEnd>>,
}

/// What the reader knows when it is done.
pub struct FileEnd {
    pub entry: Entry,
    /// For reports.
    pub path: Vec<u8>,
    pub duty: Duty,
}

/// What all workers share.
pub struct Shared<'a> {
    pub cutter: &'a Cutter,
    pub params: TreeParams,
    pub offers: Sender<ChunkTask>,
    /// Buffers of chunks that have been stored.
    pub buffers: Mutex<Vec<Vec<u8>>>,
    pub progress: &'a Progress,
    pub problems: &'a Problems,
    /// Whoever begins an entry goes through here.
    pub gate: Arc<Gate>,
    /// The tree builder has given up: whoever reads may stop.
    pub stop: AtomicBool,
    /// Why the stream did not end well; the session is given up then.
    pub stream_failure: Mutex<Option<StreamError>>,
}

impl Shared<'_> {
    /// Whether reading on is pointless.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.progress.is_cancelled()
    }
}

/// Collects the pieces of one file while it is being read.
pub struct FileWriter<'s, 'a> {
    shared: &'s Shared<'a>,
    window: Window<'a>,
    file: Arc<FileInProgress>,
    /// Bytes that have been cut so far, holes included.
    offset: u64,
}

impl<'s, 'a> FileWriter<'s, 'a> {
    /// Makes a writer; [`Self::restart`] prepares it for each file.
    pub fn new(shared: &'s Shared<'a>) -> FileWriter<'s, 'a> {
        FileWriter {
            shared,
            window: Window::new(shared.cutter),
            file: FileInProgress::new(None),
            offset: 0,
        }
    }

    /// Forgets what has been read: for the next file, or to read the same one again.
    pub fn restart(&mut self, previous: Option<Arc<Previous>>) {
        self.window.reset();
        self.file = FileInProgress::new(previous);
        self.offset = 0;
    }

    /// Returns room to read into.
    pub fn room(&mut self) -> &mut [u8] {
        self.window.room()
    }

    /// Takes `count` bytes that were read into the room.
    ///
    /// # Errors
    /// When the repository fails.
    pub fn filled(&mut self, count: usize, worker: &mut BlobWorker<'_>) -> Result<(), RepoError> {
        self.window.filled(count);
        self.drain(false, worker)
    }

    /// Ends an extent of data: what is left becomes a chunk.
    ///
    /// # Errors
    /// When the repository fails.
    pub fn end_extent(&mut self, worker: &mut BlobWorker<'_>) -> Result<(), RepoError> {
        self.drain(true, worker)
    }

    /// Adds a hole.
    ///
    /// # Errors
    /// When the repository fails.
    pub fn hole(&mut self, len: u64, worker: &mut BlobWorker<'_>) -> Result<(), RepoError> {
        self.drain(true, worker)?;
        self.offset += len;
        let mut pieces = self.file.pieces.lock();
        match pieces.last_mut() {
            Some(last) if last.id == ChunkId::HOLE => last.len += len,
            _ => pieces.push(ChunkRef { id: ChunkId::HOLE, len }),
        }
        Ok(())
    }

    fn drain(&mut self, at_end: bool, worker: &mut BlobWorker<'_>) -> Result<(), RepoError> {
        let shared = self.shared;
        while let Some(chunk) = self.window.next_chunk(at_end) {
            let index = {
                let mut pieces = self.file.pieces.lock();
                // The id is filled in when the chunk is stored; it is never left as a hole.
                pieces.push(ChunkRef {
                    id: ChunkId([0xff; 32]),
                    len: chunk.len() as u64,
                });
                pieces.len() - 1
            };
            let offset = self.offset;
            self.offset += chunk.len() as u64;
            if shared.offers.is_full() {
                self.file.store(index, offset, chunk, shared, worker);
                continue;
            }
            let mut raw = shared.buffers.lock().pop().unwrap_or_default();
            raw.clear();
            raw.extend_from_slice(chunk);
            self.file.outstanding.fetch_add(1, Ordering::AcqRel);
            let task = ChunkTask {
                raw,
                offset,
                file: self.file.clone(),
                index,
                is_done: false,
            };
            match shared.offers.try_send(task) {
                Ok(()) => {}
                // Another reader was quicker.
                Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) => task.run(shared, worker),
            }
        }
        if self.file.failure.lock().is_some() {
            Err(RepoError::Poisoned)
        } else {
            Ok(())
        }
    }

    /// Ends the file: the entry is completed when the last chunk is stored.
    pub fn finish(&mut self, end: FileEnd, worker: &mut BlobWorker<'_>) {
        *self.file.end.lock() = Some(end);
        self.file.one_done(self.shared, worker);
    }
}

impl FileInProgress {
    fn new(previous: Option<Arc<Previous>>) -> Arc<FileInProgress> {
        Arc::new(FileInProgress {
            previous,
            pieces: Mutex::new(Vec::new()),
            outstanding: AtomicUsize::new(1),
            failure: Mutex::new(None),
            end: Mutex::new(None),
        })
    }

    /// Stores the chunk at `offset`, number `index` of the pieces.
    fn store(&self, index: usize, offset: u64, raw: &[u8], shared: &Shared<'_>, worker: &mut BlobWorker<'_>) {
        let near = self.previous.as_deref().map(|previous| Near { previous, offset });
        match worker.data(raw, near) {
            Ok(piece) => self.pieces.lock()[index] = piece,
            Err(error) => {
                self.failure.lock().get_or_insert(error);
            }
        }
        shared.progress.bytes.fetch_add(raw.len() as u64, Ordering::Relaxed);
    }

    /// Counts one part as done; returns what has to be finished if it was the last.
    fn take_end(&self) -> Option<FileEnd> {
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) > 1 {
            return None;
        }
        self.end.lock().take()
    }

    fn one_done(&self, shared: &Shared<'_>, worker: &mut BlobWorker<'_>) {
        let Some(end) = self.take_end() else { return };
        let outcome = match self.failure.lock().take() {
            Some(error) => Err(error),
            None => finish_entry(end.entry, &end.path, &self.pieces.lock(), shared, worker),
        };
        end.duty.fulfil(outcome);
    }
}

impl ChunkTask {
    /// Stores the chunk.
    pub fn run(mut self, shared: &Shared<'_>, worker: &mut BlobWorker<'_>) {
        self.file.store(self.index, self.offset, &self.raw, shared, worker);
        shared.buffers.lock().push(std::mem::take(&mut self.raw));
        self.is_done = true;
        self.file.one_done(shared, worker);
    }
}

impl Drop for ChunkTask {
    /// A thread that panics over a chunk, or a chunk that nobody took, must not leave the tree builder waiting for ever.
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let lost = || RepoError::Internal("a worker thread ended before it had stored a chunk".into());
        self.file.failure.lock().get_or_insert_with(lost);
        if let Some(end) = self.file.take_end() {
            let failure = self.file.failure.lock().take().unwrap_or_else(lost);
            end.duty.fulfil(Err(failure));
        }
    }
}

fn finish_entry(
    mut entry: Entry,
    path: &[u8],
    pieces: &[ChunkRef],
    shared: &Shared<'_>,
    worker: &mut BlobWorker<'_>,
) -> Result<Option<Finished>, RepoError> {
    let mut builder = ContentBuilder::new(shared.params);
    for piece in pieces {
        builder.push(*piece, worker)?;
    }
    let (size, content) = builder.finish(worker)?;
    Ok(encode_with(&mut entry, size, content, path, shared))
}

/// Puts the content into an entry and encodes it. An entry that breaks a limit of the format is reported and left out.
pub fn encode_with(
    entry: &mut Entry,
    new_size: u64,
    new_content: Content,
    path: &[u8],
    shared: &Shared<'_>,
) -> Option<Finished> {
    match &mut entry.kind {
        EntryKind::File { size, content }
        | EntryKind::Stream { size, content }
        | EntryKind::Object { size, content } => {
            *size = new_size;
            *content = if new_size == 0 {
                Content::Inline(Vec::new())
            } else {
                new_content
            };
        }
        _ => {}
    }
    let mut value = Vec::with_capacity(128);
    match entry.try_encode(&mut value) {
        Ok(()) => Some(Finished {
            value,
            file_bytes: entry.size(),
        }),
        Err(limit) => {
            shared.progress.problems.fetch_add(1, Ordering::Relaxed);
            shared
                .problems
                .add(path.to_vec(), "limit", format!("it cannot be stored: {limit}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::base::time::FileTime;
    use crate::pure::format::entry::Attributes;
    use crossbeam_channel::bounded;

    #[test]
    fn a_chunk_that_nobody_stores_is_an_error_and_not_a_wait_for_ever() {
        let file = FileInProgress::new(None);
        file.outstanding.fetch_add(1, Ordering::AcqRel);
        let task = ChunkTask {
            raw: vec![1; 100],
            offset: 0,
            file: file.clone(),
            index: 0,
            is_done: false,
        };
        let (reply, waiting) = bounded(1);
        let entry = Entry {
            kind: EntryKind::Dir,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: FileTime { seconds: 0, nanos: 0 },
            ctime: FileTime { seconds: 0, nanos: 0 },
            ino: 0,
            attributes: Attributes::default(),
        };
        let path = b"file".to_vec();
        let gate = Gate::new(None);
        let duty = Duty::new(reply, gate.enter(0, 0).unwrap());
        *file.end.lock() = Some(FileEnd { entry, path, duty });
        // The reader of the file is done; the thread that had the chunk is unwound.
        assert!(file.take_end().is_none());
        let unwound = std::thread::spawn(move || {
            let _task = task;
            panic!("on purpose");
        });
        assert!(unwound.join().is_err());
        assert!(matches!(waiting.try_recv(), Ok(Err(RepoError::Internal(_)))));
        assert!(!gate.is_busy());
    }
}
