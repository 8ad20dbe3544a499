//! Copying blobs into packs of the session's own: out of condemned packs, and out of packs that are rewritten. Everything is
//! verified on the way (invariant I-11): a copy that does not open is not copied, and its pack stays.

use super::survey::{Kept, blob_type};
use crate::ops::{OpError, Progress};
use crate::pure::compress::Compressor;
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::id::ChunkId;
use crate::repo::RepoError;
use crate::repo::at_once::at_once;
use crate::repo::index::ChunkPlace;
use crate::repo::pack_writer::PackWriter;
use crate::repo::reader::BlobReader;
use crate::repo::session::Session;
use crate::repo::spans::{self, Spans};
use std::collections::HashSet;
use std::sync::atomic::Ordering;

/// What copying did.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Stored bytes.
    pub bytes: u64,
    /// Packs with a copy that could not be read: they stay as they are.
    pub unreadable: HashSet<u32>,
}

/// Copies whose places are looked up at a time.
const BATCH: usize = 1024;
/// Copies that lie together are read together, no more than this at once …
const SPAN_BYTES_MAX: u64 = 8 << 20;
/// … and of a remote store so many times that.
const SPANS_AT_ONCE: usize = 4;

/// A copy and where it is.
struct Placed {
    kept: Kept,
    place: ChunkPlace,
}

/// Copies what is kept of packs that are rewritten, coded as it is. `kept` is in the order of packs and offsets.
///
/// # Errors
/// When the store fails; the session must not publish then.
pub(super) fn rewrite(
    reader: &BlobReader<'_>,
    session: &mut Session<'_>,
    kept: &[Kept],
    progress: &Progress,
) -> Result<Copied, OpError> {
    let mut copied = Copied::default();
    let is_local = reader.repo().store.is_local();
    let limits = Spans::of(is_local).no_longer_than(SPAN_BYTES_MAX);
    let (mut opener, mut frame) = (Opener::new(), Vec::new());
    for batch in kept.chunks(BATCH) {
        let mut placed = Vec::with_capacity(batch.len());
        for kept in batch {
            match reader.repo().index.find_copy(&kept.id, kept.copy.pack)? {
                Some(place) => placed.push(Placed { kept: *kept, place }),
                None => drop(copied.unreadable.insert(kept.copy.pack)),
            }
        }
        let spans: Vec<&[Placed]> = spans_of(&placed, limits);
        for spans in spans.chunks(if is_local { 1 } else { SPANS_AT_ONCE }) {
            let fetched = at_once(spans, |span| Span::fetch(reader, span));
            for (placed, fetched) in spans.iter().zip(fetched) {
                let span = match fetched {
                    // What is at fault is found copy by copy.
                    Err(error) if !error.is_outage() => None,
                    fetched => Some(fetched?),
                };
                for Placed { kept, place } in *placed {
                    if progress.is_cancelled() {
                        return Err(OpError::Interrupted);
                    }
                    if copied.unreadable.contains(&kept.copy.pack) {
                        continue;
                    }
                    let ty = blob_type(kept.copy.stored_as);
                    let in_span = span.as_ref().and_then(|span| span.frame(place));
                    let reopened = in_span.map_or(Err(RepoError::UnknownChunk(kept.id)), |sealed| {
                        reader.reopen(ty, &kept.id, place, sealed, &mut opener, &mut frame)
                    });
                    // What does not open is read again before it counts as damaged.
                    let reopened =
                        reopened.or_else(|_| reader.reopen_copy(ty, &kept.id, place, &mut opener, &mut frame));
                    let (codec, raw_len) = match reopened {
                        Ok(reopened) => reopened,
                        Err(error) if error.is_damage() => {
                            copied.unreadable.insert(kept.copy.pack);
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    };
                    session.writer().add(ty, &kept.id, codec, raw_len, &mut frame)?;
                    let stored = u64::from(kept.copy.stored_len);
                    copied.bytes += stored;
                    progress.bytes.fetch_add(stored, Ordering::Relaxed);
                    session.tick()?;
                }
            }
        }
    }
    Ok(copied)
}

/// Cuts copies, which are in the order of packs and offsets, into those that are read together.
fn spans_of(placed: &[Placed], limits: Spans) -> Vec<&[Placed]> {
    let (mut spans, mut start) = (Vec::new(), 0);
    for next in 1..placed.len() {
        if !limits.admit(&placed[start].place, &placed[next - 1].place, &placed[next].place) {
            spans.push(&placed[start..next]);
            start = next;
        }
    }
    spans.extend((start < placed.len()).then(|| &placed[start..]));
    spans
}

/// Neighbouring frames of a pack.
struct Span {
    bytes: Vec<u8>,
    /// Where in `bytes` the first of them begins …
    skip: usize,
    /// … and where in the pack.
    start: u64,
}

impl Span {
    fn fetch(reader: &BlobReader<'_>, placed: &[Placed]) -> Result<Span, RepoError> {
        let (Some(first), Some(last)) = (placed.first(), placed.last()) else {
            return Err(RepoError::Internal("a span without copies".into()));
        };
        let start = u64::from(first.place.offset);
        let mut bytes = Vec::new();
        let skip = reader.fetch_span(&first.place, start..spans::end(&last.place), &mut bytes)?;
        Ok(Span { bytes, skip, start })
    }

    fn frame(&self, place: &ChunkPlace) -> Option<&[u8]> {
        let from = self.skip + usize::try_from(u64::from(place.offset).checked_sub(self.start)?).ok()?;
        self.bytes.get(from..from + place.stored_len as usize)
    }
}

/// Copies chunks that are alive and only in condemned packs. They become full copies. Returns those that cannot be read and are
/// declared lost.
///
/// # Errors
/// When another one cannot be read: nothing may be deleted then.
pub(super) fn rescue(
    reader: &BlobReader<'_>,
    session: &mut Session<'_>,
    chunks: &[(ChunkId, BlobType)],
    progress: &Progress,
) -> Result<Vec<ChunkId>, OpError> {
    let index = &reader.repo().index;
    let mut lost = Vec::new();
    let level = reader.repo().config.zstd_level.clamp(1, 19);
    let mut compressor = Compressor::new(level as i32);
    let (mut opener, mut plain, mut frame) = (Opener::new(), Vec::new(), Vec::new());
    let chunks = if chaos!("nothing-is-rescued") {
        &chunks[..0]
    } else {
        chunks
    };
    for (id, ty) in chunks {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        match reader.read(*ty, id, &mut opener, &mut plain) {
            Ok(()) => {}
            Err(error) if error.is_damage() && index.is_lost(id)? => {
                lost.push(*id);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let codec = PackWriter::begin_full(&mut frame, &mut compressor, &plain);
        session.writer().add(*ty, id, codec, plain.len() as u32, &mut frame)?;
        session.tick()?;
    }
    Ok(lost)
}
