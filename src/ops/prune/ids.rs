//! The ids of everything that is alive, sorted, in bounded memory: what does not fit goes to unnamed files, sorted pieces that are
//! merged while they are read (format-spec chapter on memory; 32 bytes for each chunk on disk).

use crate::pure::id::ChunkId;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Ids in memory before they are written out: 32 MiB.
const IN_MEMORY: usize = 1 << 20;
/// Files at a time: a process may not open many. More than this are merged into one.
const PIECES_MAX: usize = 64;
/// Ids read from a piece at a time.
const READ_AT_ONCE: usize = 1 << 11;

/// Ids, in the order in which they come.
pub(in crate::ops) struct IdCollector {
    directory: PathBuf,
    in_memory: usize,
    buffer: Vec<ChunkId>,
    pieces: Vec<Piece>,
}

/// Ids in ascending order, each once, in a file that has no name.
struct Piece {
    file: File,
    ids: u64,
}

/// Writes a piece.
struct PieceWriter {
    file: BufWriter<File>,
    ids: u64,
}

impl PieceWriter {
    fn begin(directory: &Path) -> io::Result<PieceWriter> {
        let file = tempfile::tempfile_in(directory)?;
        Ok(PieceWriter {
            file: BufWriter::with_capacity(1 << 20, file),
            ids: 0,
        })
    }

    fn push(&mut self, id: &ChunkId) -> io::Result<()> {
        self.ids += 1;
        self.file.write_all(id.as_bytes())
    }

    fn end(self) -> io::Result<Piece> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Piece { file, ids: self.ids })
    }
}

impl IdCollector {
    /// Collects nothing yet. Files are made in `directory`.
    pub(super) fn new(directory: &Path) -> IdCollector {
        IdCollector::with_room(directory, IN_MEMORY)
    }

    fn with_room(directory: &Path, in_memory: usize) -> IdCollector {
        IdCollector {
            directory: directory.to_owned(),
            in_memory,
            buffer: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Adds ids; any of them may come several times.
    ///
    /// # Errors
    /// When there is no room for them on the disk.
    pub(super) fn extend(&mut self, ids: &[ChunkId]) -> io::Result<()> {
        self.buffer.extend_from_slice(ids);
        if self.buffer.len() >= self.in_memory {
            self.sort();
            // Most may have been there already: the trees of a year have the same chunks.
            if self.buffer.len() >= self.in_memory / 2 {
                self.write_out()?;
            }
        }
        Ok(())
    }

    fn sort(&mut self) {
        self.buffer.sort_unstable();
        self.buffer.dedup();
    }

    fn write_out(&mut self) -> io::Result<()> {
        let mut writer = PieceWriter::begin(&self.directory)?;
        self.buffer.iter().try_for_each(|id| writer.push(id))?;
        self.buffer.clear();
        self.pieces.push(writer.end()?);
        if self.pieces.len() > PIECES_MAX {
            let mut writer = PieceWriter::begin(&self.directory)?;
            let mut sorted = self.sorted();
            while let Some(id) = sorted.take()? {
                writer.push(&id)?;
            }
            drop(sorted);
            self.pieces = vec![writer.end()?];
        }
        Ok(())
    }

    /// Reads all ids in ascending order, each once. More may be added afterwards.
    pub(in crate::ops) fn sorted(&mut self) -> SortedIds<'_> {
        self.sort();
        let mut cursors: Vec<Cursor<'_>> = self.pieces.iter().map(Cursor::of_piece).collect();
        cursors.push(Cursor {
            piece: None,
            buffered: Cow::Borrowed(&self.buffer),
            next: 0,
            read: 0,
        });
        SortedIds {
            heap: BinaryHeap::with_capacity(cursors.len()),
            cursors,
            begun: false,
            last: None,
        }
    }
}

struct Cursor<'c> {
    piece: Option<&'c Piece>,
    buffered: Cow<'c, [ChunkId]>,
    next: usize,
    /// Ids taken from the piece so far.
    read: u64,
}

impl<'c> Cursor<'c> {
    fn of_piece(piece: &'c Piece) -> Cursor<'c> {
        Cursor {
            piece: Some(piece),
            buffered: Cow::Owned(Vec::new()),
            next: 0,
            read: 0,
        }
    }

    fn take(&mut self) -> io::Result<Option<ChunkId>> {
        if self.next == self.buffered.len()
            && let Some(piece) = self.piece
        {
            self.refill(piece)?;
        }
        let id = self.buffered.get(self.next).copied();
        self.next += usize::from(id.is_some());
        Ok(id)
    }

    fn refill(&mut self, piece: &Piece) -> io::Result<()> {
        let count = (piece.ids - self.read).min(READ_AT_ONCE as u64) as usize;
        let mut bytes = vec![0; count * 32];
        piece.file.read_exact_at(&mut bytes, self.read * 32)?;
        self.read += count as u64;
        self.buffered = bytes.as_chunks::<32>().0.iter().copied().map(ChunkId).collect();
        self.next = 0;
        Ok(())
    }
}

/// Ids in ascending order, each once.
pub(in crate::ops) struct SortedIds<'c> {
    cursors: Vec<Cursor<'c>>,
    heap: BinaryHeap<Reverse<(ChunkId, usize)>>,
    begun: bool,
    last: Option<ChunkId>,
}

impl SortedIds<'_> {
    /// Returns the next id; `None` at the end.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(in crate::ops) fn take(&mut self) -> io::Result<Option<ChunkId>> {
        if !std::mem::replace(&mut self.begun, true) {
            for number in 0..self.cursors.len() {
                self.push_from(number)?;
            }
        }
        while let Some(Reverse((id, number))) = self.heap.pop() {
            self.push_from(number)?;
            if self.last.replace(id) != Some(id) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    fn push_from(&mut self, number: usize) -> io::Result<()> {
        if let Some(id) = self.cursors[number].take()? {
            self.heap.push(Reverse((id, number)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn id(number: u64) -> ChunkId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        ChunkId(id)
    }

    fn all(collector: &mut IdCollector) -> Vec<ChunkId> {
        let mut sorted = collector.sorted();
        std::iter::from_fn(|| sorted.take().unwrap()).collect()
    }

    #[test]
    fn every_id_comes_once_and_in_order_wherever_it_was_kept() {
        for in_memory in [7, 100, 3000, 100_000] {
            let mut collector = IdCollector::with_room(&std::env::temp_dir(), in_memory);
            let mut expected = BTreeSet::new();
            assert_eq!(all(&mut collector), []);
            for round in 0..3u64 {
                for number in 0..5000u64 {
                    // Half of them come again.
                    let id = id(number / 2 + round * 500);
                    collector.extend(&[id]).unwrap();
                    expected.insert(id);
                }
                assert!(collector.buffer.len() <= in_memory, "{in_memory}");
                assert!(collector.pieces.len() <= PIECES_MAX, "{in_memory}");
                assert!(
                    all(&mut collector).into_iter().eq(expected.iter().copied()),
                    "{in_memory}"
                );
            }
        }
    }
}
