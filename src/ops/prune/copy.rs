//! Copying blobs into packs of the session's own: out of condemned packs, and out of packs that are rewritten. Everything is
//! verified on the way (invariant I-11): a copy that does not open is not copied, and its pack stays.

use super::survey::{Kept, blob_type};
use crate::ops::{OpError, Progress};
use crate::pure::compress::Compressor;
use crate::pure::format::blob::{BlobType, Codec, Opener};
use crate::pure::format::run::StoredAs;
use crate::pure::id::ChunkId;
use crate::repo::RepoError;
use crate::repo::index::ChunkPlace;
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

/// Copies chunks that are alive and only in condemned packs. They become full copies.
///
/// # Errors
/// When one cannot be read: nothing may be deleted then.
pub(super) fn rescue(
    reader: &BlobReader<'_>,
    session: &mut Session<'_>,
    chunks: &[(ChunkId, BlobType)],
    progress: &Progress,
) -> Result<(), OpError> {
    let mut compressor = Compressor::new(RESCUE_LEVEL);
    let (mut opener, mut plain, mut frame) = (Opener::new(), Vec::new(), Vec::new());
    for (id, ty) in chunks {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        read_condemned(reader, *ty, id, &mut opener, &mut plain)?;
        let raw_len = plain.len() as u32;
        let mut codec = Codec::Zstd;
        PackWriter::begin(&mut frame, codec, raw_len);
        if !compressor.compress(&plain, &mut frame) {
            codec = Codec::Raw;
            PackWriter::begin(&mut frame, codec, raw_len);
            frame.extend_from_slice(&plain);
        }
        session.writer().add(*ty, id, codec, raw_len, &mut frame)?;
        session.tick()?;
    }
    Ok(())
}

/// As a backup compresses by default.
const RESCUE_LEVEL: i32 = 3;

/// Reads a chunk wherever there is a copy, a delta against a base that may lie in a condemned pack as well.
fn read_condemned(
    reader: &BlobReader<'_>,
    ty: BlobType,
    id: &ChunkId,
    opener: &mut Opener,
    out: &mut Vec<u8>,
) -> Result<(), RepoError> {
    let index = &reader.repo().index;
    let mut trouble = RepoError::UnknownChunk(*id);
    for place in every_copy(reader, id)? {
        let read = if place.stored_as == StoredAs::Delta {
            match index.base_of(id, &place.pack)? {
                Some(base) => {
                    let mut plain = Vec::new();
                    read_full(reader, &base, opener, &mut plain)
                        .and_then(|()| reader.read_delta(id, &place, &plain, opener, out))
                }
                None => Err(RepoError::UnknownChunk(*id)),
            }
        } else {
            reader.read_copy(ty, id, &place, opener, out)
        };
        match read {
            Ok(()) => return Ok(()),
            Err(error) => trouble = error,
        }
    }
    Err(trouble)
}

fn read_full(reader: &BlobReader<'_>, id: &ChunkId, opener: &mut Opener, out: &mut Vec<u8>) -> Result<(), RepoError> {
    let mut trouble = RepoError::UnknownChunk(*id);
    for place in every_copy(reader, id)? {
        if place.stored_as == StoredAs::Delta {
            continue;
        }
        match reader.read_copy(BlobType::Data, id, &place, opener, out) {
            Ok(()) => return Ok(()),
            Err(error) => trouble = error,
        }
    }
    Err(trouble)
}

fn every_copy(reader: &BlobReader<'_>, id: &ChunkId) -> Result<Vec<ChunkPlace>, RepoError> {
    let index = &reader.repo().index;
    let mut copies = index.find_all(id)?;
    copies.append(&mut index.find_condemned(id)?);
    Ok(copies)
}
