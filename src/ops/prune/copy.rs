//! Copying blobs into packs of the session's own: out of condemned packs, and out of packs that are rewritten. Everything is
//! verified on the way (invariant I-11): a copy that does not open is not copied, and its pack stays.

use super::survey::{Kept, blob_type};
use crate::ops::{OpError, Progress};
use crate::pure::compress::Compressor;
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::id::ChunkId;
use crate::repo::RepoError;
use crate::repo::pack_writer::PackWriter;
use crate::repo::reader::BlobReader;
use crate::repo::session::Session;
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

/// Copies what is kept of packs that are rewritten, coded as it is.
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
    let (mut opener, mut frame) = (Opener::new(), Vec::new());
    for kept in kept {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        if copied.unreadable.contains(&kept.copy.pack) {
            continue;
        }
        let place = reader.repo().index.find_copy(&kept.id, kept.copy.pack)?;
        let ty = blob_type(kept.copy.stored_as);
        let reopened = match &place {
            Some(place) => reader.reopen_copy(ty, &kept.id, place, &mut opener, &mut frame),
            None => Err(RepoError::UnknownChunk(kept.id)),
        };
        let (codec, raw_len) = match reopened {
            Ok(reopened) => reopened,
            Err(error) if error.is_damage() => {
                copied.unreadable.insert(kept.copy.pack);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        session.writer().add(ty, &kept.id, codec, raw_len, &mut frame)?;
        copied.bytes += u64::from(kept.copy.stored_len);
        progress
            .bytes
            .fetch_add(u64::from(kept.copy.stored_len), Ordering::Relaxed);
        session.tick()?;
    }
    Ok(copied)
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
