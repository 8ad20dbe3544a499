//! Storing a new chunk as a delta against a chunk of the previous version of the same file or stream (format-spec chapter
//! on deltas): a dump of which each page changed a little shares hardly a chunk with last night's, and nearly all bytes.
//!
//! Which base is taken is a guess: a wrong one costs bytes, never content. A delta is decoded again before it is used.

use crate::pure::chunk::Profile;
use crate::pure::compress::Compressor;
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::{ChunkRef, Content};
use crate::pure::id::ChunkId;
use crate::pure::tree::list::for_each_piece;
use crate::repo::RepoError;
use crate::repo::pack_writer::PackWriter;
use crate::repo::reader::{BlobReader, TreeReader};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// Chunks smaller than this part of the smallest that is cut (4 KiB with the usual profile) are not worth reading a base for.
const RAW_SHARE_MIN: u32 = 128;
/// A delta this many times smaller than its chunk is taken as it is …
const SURELY_SMALL: usize = 64;
/// … and others when they are this many times smaller than the compressed chunk: otherwise the chunk is a full copy, and a
/// good base for those that follow.
const SMALL_SHARE: usize = 4;
/// Nearly all of a good delta are long matches, which every level of zstd finds.
const ZSTD_LEVEL: i32 = 1;
/// Chunks of the previous version that are tried for one new chunk.
const TRIES_MAX: usize = 3;
/// After this many chunks in a row that resemble nothing …
const MISSES_MAX: u32 = 4;
/// … only every so many-th is tried.
const AFTER_MISSES: u32 = 8;

/// The version of a file or stream that the parent snapshot has.
#[derive(Debug)]
pub struct Previous {
    size: u64,
    content: Content,
    /// How far the previous version is ahead of this one at the place that resembled last: what was inserted before moves all
    /// that follows.
    drift: AtomicI64,
    /// Chunks in a row that resembled nothing.
    misses: AtomicU32,
}

/// Where a chunk comes from: its file's previous version, and its offset.
#[derive(Clone, Copy, Debug)]
pub struct Near<'p> {
    pub previous: &'p Previous,
    pub offset: u64,
}

/// A piece of a content and its offset.
type Placed = (u64, ChunkRef);

impl Previous {
    /// Takes what an entry of the parent says; `None` when there is no chunk in it.
    pub fn new(size: u64, content: Content) -> Option<Previous> {
        (!matches!(content, Content::Inline(_))).then(|| Previous {
            size,
            content,
            drift: AtomicI64::new(0),
            misses: AtomicU32::new(0),
        })
    }

    /// Returns pieces that a chunk of `len` bytes at `offset` may resemble, the likeliest first. What cannot be read has none.
    ///
    /// What moved is looked for where it should be by now, and at its own place too: a run of zeros resembles any other, and
    /// says nothing about how far the rest has moved.
    fn candidates(&self, offset: u64, len: u64, nodes: &mut TreeReader<'_, '_>) -> Vec<Placed> {
        let drift = self.drift.load(Ordering::Relaxed);
        let moved = self.pieces_near(offset.saturating_add_signed(drift), len, nodes);
        let mut here = Vec::new();
        if drift != 0 {
            here = self.pieces_near(offset, len, nodes);
        }
        let mut found: Vec<Placed> = Vec::with_capacity(TRIES_MAX);
        let order = moved
            .first()
            .into_iter()
            .chain(here.first())
            .chain(moved.get(1..).unwrap_or(&[]));
        for placed in order {
            if found.len() < TRIES_MAX && !found.contains(placed) {
                found.push(*placed);
            }
        }
        found
    }

    /// Returns the pieces around `len` bytes at `start`, the nearest first.
    fn pieces_near(&self, start: u64, len: u64, nodes: &mut TreeReader<'_, '_>) -> Vec<Placed> {
        let middle = start.saturating_add(len / 2).min(self.size.saturating_sub(1));
        let around = middle.saturating_sub(len)..middle.saturating_add(len);
        let mut pieces: Vec<Placed> = Vec::new();
        let read: Result<(), RepoError> = for_each_piece(&self.content, self.size, around, nodes, &mut |at, piece| {
            if piece.id != ChunkId::HOLE {
                pieces.push((at, piece));
            }
            Ok(())
        });
        if read.is_err() {
            return Vec::new();
        }
        pieces.sort_by_key(|(at, piece)| (at + piece.len / 2).abs_diff(middle));
        pieces
    }

    /// Whether to look for a base at all. After many misses only now and then: reading bases in vain takes as long as
    /// compressing.
    fn is_promising(&self) -> bool {
        let misses = self.misses.load(Ordering::Relaxed);
        if misses < MISSES_MAX {
            return true;
        }
        self.misses.fetch_add(1, Ordering::Relaxed).is_multiple_of(AFTER_MISSES)
    }

    fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// A chunk of `len` bytes at `offset` resembled `piece` at `at`.
    fn resembled(&self, offset: u64, len: u64, (at, piece): Placed) {
        self.misses.store(0, Ordering::Relaxed);
        let expected = offset.saturating_add_signed(self.drift.load(Ordering::Relaxed));
        let is_same = piece.len.abs_diff(len) <= len / 16;
        let is_elsewhere = at.saturating_add(piece.len) <= expected || expected.saturating_add(len) <= at;
        // A piece that was cut elsewhere says little about where the next one is.
        if is_same || is_elsewhere {
            self.drift.store(at.wrapping_sub(offset) as i64, Ordering::Relaxed);
        }
    }
}

/// Encodes deltas for one thread.
pub struct DeltaEncoder<'a> {
    reader: &'a BlobReader<'a>,
    nodes: TreeReader<'a, 'a>,
    raw_bytes_min: usize,
    compressor: Compressor,
    opener: Opener,
    base: Vec<u8>,
    trial: Vec<u8>,
    checked: Vec<u8>,
    best: Vec<u8>,
}

impl<'a> DeltaEncoder<'a> {
    /// Reads bases through `reader`.
    pub fn new(reader: &'a BlobReader<'a>, profile: &Profile) -> DeltaEncoder<'a> {
        DeltaEncoder {
            reader,
            raw_bytes_min: (profile.min / RAW_SHARE_MIN) as usize,
            nodes: TreeReader::new(reader),
            compressor: Compressor::new(ZSTD_LEVEL),
            opener: Opener::new(),
            base: Vec::new(),
            trial: Vec::new(),
            checked: Vec::new(),
            best: Vec::new(),
        }
    }

    /// Looks for a base, and returns it together with the payload when `raw` as a delta is much smaller than as a full copy.
    /// `plain` compresses the chunk by itself and says how long that is; it is called only when it matters.
    ///
    /// # Errors
    /// When the store fails, or the writer is poisoned.
    pub fn encode(
        &mut self,
        writer: &PackWriter,
        near: Near<'_>,
        raw: &[u8],
        plain: &mut dyn FnMut() -> usize,
    ) -> Result<Option<(ChunkId, &[u8])>, RepoError> {
        let Near { previous, offset } = near;
        if raw.len() < self.raw_bytes_min || !previous.is_promising() {
            return Ok(None);
        }
        let mut found: Option<(ChunkId, Placed)> = None;
        let mut tried = Vec::new();
        let len = raw.len() as u64;
        for placed in previous.candidates(offset, len, &mut self.nodes) {
            let Some(base) = writer.claim_base(&placed.1.id)? else {
                continue;
            };
            // Two pieces may be deltas against one base.
            if tried.contains(&base) {
                continue;
            }
            tried.push(base);
            if !self.try_base(&base, raw) || found.is_some() && self.trial.len() >= self.best.len() {
                continue;
            }
            std::mem::swap(&mut self.trial, &mut self.best);
            found = Some((base, placed));
            if self.best.len() <= raw.len() / SURELY_SMALL {
                break;
            }
        }
        let Some((base, placed)) = found else {
            // Where the previous version had nothing but a hole there is nothing to be learned.
            if !tried.is_empty() {
                previous.missed();
            }
            return Ok(None);
        };
        if self.best.len() > raw.len() / SURELY_SMALL {
            let plain = plain();
            if self.best.len() > plain / SMALL_SHARE {
                // A chunk that is next to nothing by itself says nothing about the others.
                if plain > raw.len() / SURELY_SMALL {
                    previous.missed();
                }
                return Ok(None);
            }
        }
        previous.resembled(offset, len, placed);
        Ok(Some((base, &self.best)))
    }

    /// Makes `trial` the delta of `raw` against `base`. Whatever goes wrong, the chunk is then stored without.
    fn try_base(&mut self, base: &ChunkId, raw: &[u8]) -> bool {
        self.trial.clear();
        let read = self.reader.read(BlobType::Data, base, &mut self.opener, &mut self.base);
        if read.is_err() || !self.compressor.compress_delta(raw, &self.base, &mut self.trial) {
            return false;
        }
        // Whoever uploads the pack has no bases, so this is where it is seen that the chunk comes back (I-9).
        let decoded = self
            .opener
            .decompressor
            .decompress_delta(&self.trial, &self.base, raw.len(), &mut self.checked);
        decoded.is_ok() && self.checked == raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn previous(lens: &[u64]) -> Previous {
        let chunks: Vec<ChunkRef> = (1u8..)
            .zip(lens)
            .map(|(number, len)| ChunkRef {
                id: ChunkId([number; 32]),
                len: *len,
            })
            .collect();
        Previous::new(lens.iter().sum(), Content::Chunks(chunks)).unwrap()
    }

    #[test]
    fn what_was_inserted_moves_what_follows() {
        let before = previous(&[1000; 10]);
        let piece = |number: u8| ChunkRef {
            id: ChunkId([number; 32]),
            len: 1000,
        };
        // Two chunks and a half were inserted in front of the fourth.
        before.resembled(5500, 1000, (3000, piece(4)));
        assert_eq!(before.drift.load(Ordering::Relaxed), -2500);
        // One that was cut elsewhere, but about where it was expected, says nothing.
        before.resembled(6500, 600, (4000, piece(5)));
        assert_eq!(before.drift.load(Ordering::Relaxed), -2500);
        // One that is nowhere near does.
        before.resembled(6500, 600, (9000, piece(10)));
        assert_eq!(before.drift.load(Ordering::Relaxed), 2500);
    }

    #[test]
    fn many_misses_make_tries_rare_and_one_hit_makes_them_usual() {
        let before = previous(&[1000]);
        let tries = |count: usize| (0..count).filter(|_| before.is_promising()).count();
        assert_eq!(tries(20), 20);
        for _ in 0..MISSES_MAX {
            before.missed();
        }
        assert_eq!(tries(80), 10);
        let piece = ChunkRef {
            id: ChunkId([1; 32]),
            len: 1000,
        };
        before.resembled(0, 1000, (0, piece));
        assert_eq!(tries(20), 20);
    }

    #[test]
    fn inline_content_has_nothing_to_resemble() {
        assert!(Previous::new(3, Content::Inline(b"abc".to_vec())).is_none());
    }
}
