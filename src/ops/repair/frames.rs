//! What can be read in damaged packs: each blob is looked for in sound packs first, then read where it lies, then wherever else there
//! is a copy. What opens is copied, coded as it is.

use super::declare::{Bad, Why, bad_packs};
use crate::ops::prune::survey::blob_type;
use crate::ops::{OpError, Progress};
use crate::pure::compress::Compressor;
use crate::pure::format::blob::{BlobType, Codec, Opener};
use crate::pure::id::{ChunkId, PackId};
use crate::repo::index::{ChunkPlace, IndexedChunk, PackInfo};
use crate::repo::pack_writer::PackWriter;
use crate::repo::reader::BlobReader;
use crate::repo::session::Session;
use crate::repo::{Repo, RepoError};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Rows of the index that are held at a time (48 bytes each).
const ROWS_MAX: u64 = 1 << 20;

/// What became of the blobs of damaged packs.
#[derive(Debug, Default)]
pub(super) struct Saved {
    pub copied: u64,
    pub bytes_copied: u64,
    pub elsewhere: u64,
    /// Those that were copied, or would be.
    pub kept: HashSet<ChunkId>,
    pub lost: Vec<ChunkId>,
}

/// Copies what opens into packs of the session; without one, only looks. Packs that turn out to be damaged on the way are added to
/// `packs`, and treated as the others.
///
/// # Errors
/// When the store or the index fails; the session must not publish then.
pub(super) fn save(
    repo: &Repo,
    reader: &BlobReader<'_>,
    packs: &mut Vec<Bad>,
    session: Option<&mut Session<'_>>,
    progress: &Progress,
) -> Result<Saved, OpError> {
    let level = repo.config.zstd_level.clamp(1, 19) as i32;
    let mut saver = Saver {
        repo,
        reader,
        session,
        bad: HashSet::new(),
        missing: HashSet::new(),
        sizes: HashMap::new(),
        further: HashSet::new(),
        opener: Opener::new(),
        compressor: Compressor::new(level),
        frame: Vec::new(),
        plain: Vec::new(),
        saved: Saved::default(),
    };
    let mut done = 0;
    while done < packs.len() {
        saver.packs(&packs[done..], progress)?;
        done = packs.len();
        let further = std::mem::take(&mut saver.further);
        if !further.is_empty() {
            let mut more = bad_packs(repo, &further)?;
            more.retain(|bad| !saver.bad.contains(&bad.info.pack));
            packs.append(&mut more);
        }
    }
    Ok(saver.saved)
}

/// How many of the first packs have no more rows than may be held; one at least.
fn so_many(packs: &[Bad]) -> usize {
    let mut rows = 0;
    let fits = |bad: &&Bad| {
        rows += u64::from(bad.info.blob_count);
        rows <= ROWS_MAX
    };
    packs.iter().take_while(fits).count().max(1)
}

/// What the index says is in these packs, in the order of frames. Goes through the index once.
fn chunks_of<'b>(repo: &Repo, packs: &'b [Bad]) -> Result<Vec<(&'b PackInfo, Vec<IndexedChunk>)>, OpError> {
    let mut places = HashMap::new();
    let mut chunks: Vec<(&PackInfo, Vec<IndexedChunk>)> = Vec::with_capacity(packs.len());
    for bad in packs {
        places.insert(bad.info.handle, chunks.len());
        chunks.push((&bad.info, Vec::new()));
    }
    repo.index.chunks_in_id_order(&mut |chunk| {
        if let Some(place) = places.get(&chunk.pack) {
            chunks[*place].1.push(chunk);
        }
        ControlFlow::Continue(())
    })?;
    for (_, chunks) in &mut chunks {
        chunks.sort_unstable_by_key(|chunk| chunk.offset);
    }
    Ok(chunks)
}

struct Saver<'s, 'r, 'w> {
    repo: &'s Repo,
    reader: &'s BlobReader<'r>,
    session: Option<&'s mut Session<'w>>,
    bad: HashSet<PackId>,
    missing: HashSet<PackId>,
    /// Of packs that are shorter or longer than runs say: nothing is asked for behind the end, not even to round a request up.
    sizes: HashMap<PackId, u32>,
    /// Packs that were taken for sound.
    further: HashSet<PackId>,
    opener: Opener,
    compressor: Compressor,
    frame: Vec<u8>,
    plain: Vec<u8>,
    saved: Saved,
}

impl Saver<'_, '_, '_> {
    fn packs(&mut self, packs: &[Bad], progress: &Progress) -> Result<(), OpError> {
        for bad in packs {
            self.bad.insert(bad.info.pack);
            match bad.why {
                Why::Missing => {
                    self.missing.insert(bad.info.pack);
                }
                Why::Size(size) => {
                    let size = u32::try_from(size).unwrap_or(u32::MAX);
                    self.sizes.insert(bad.info.pack, size);
                }
                Why::Damaged => {}
            }
        }
        let mut left = packs;
        while !left.is_empty() {
            let (some, rest) = left.split_at(so_many(left));
            left = rest;
            for (info, chunks) in chunks_of(self.repo, some)? {
                progress.set_current(format!("copying what can be read of pack {}", info.pack));
                self.pack(info, &chunks, progress)?;
            }
        }
        Ok(())
    }

    fn pack(&mut self, info: &PackInfo, chunks: &[IndexedChunk], progress: &Progress) -> Result<(), OpError> {
        let slots = self.repo.index.slots_of_pack(&info.pack)?.unwrap_or_default();
        for chunk in chunks {
            if progress.is_cancelled() {
                return Err(OpError::Interrupted);
            }
            if self.saved.kept.contains(&chunk.id) {
                continue;
            }
            let own = ChunkPlace {
                pack: info.pack,
                session: info.session,
                kind: info.kind,
                offset: chunk.offset,
                stored_len: chunk.stored_len,
                stored_as: chunk.stored_as,
                slots: Arc::clone(&slots),
                pack_size: info.size,
            };
            self.chunk(&chunk.id, blob_type(chunk.stored_as), own)?;
            if let Some(session) = &mut self.session {
                session.tick()?;
            }
        }
        progress.file_done(u64::from(info.size));
        Ok(())
    }

    fn chunk(&mut self, id: &ChunkId, ty: BlobType, own: ChunkPlace) -> Result<(), OpError> {
        let copies = self.repo.index.find_all(id)?;
        for place in copies.iter().filter(|place| !self.bad.contains(&place.pack)) {
            let read = self.reader.read_copy(ty, id, place, &mut self.opener, &mut self.plain);
            if damage_or(read)? {
                self.saved.elsewhere += 1;
                return Ok(());
            }
            self.further.insert(place.pack);
        }
        let mut others = copies;
        others.retain(|place| self.bad.contains(&place.pack) && place.pack != own.pack);
        others.extend(self.repo.index.find_condemned(id)?);
        for mut place in std::iter::once(own).chain(others) {
            if let Some(size) = self.sizes.get(&place.pack) {
                place.pack_size = *size;
            }
            if !self.missing.contains(&place.pack) && self.copy(id, ty, &place)? {
                self.saved.copied += 1;
                self.saved.bytes_copied += u64::from(place.stored_len);
                self.saved.kept.insert(*id);
                return Ok(());
            }
        }
        if self.copy_cached(id, ty)? {
            self.saved.copied += 1;
            self.saved.kept.insert(*id);
            return Ok(());
        }
        self.saved.lost.push(*id);
        Ok(())
    }

    /// Nodes of the last snapshots may be in the cache of this machine.
    fn copy_cached(&mut self, id: &ChunkId, ty: BlobType) -> Result<bool, OpError> {
        let cached = match ty {
            BlobType::Node | BlobType::List => self.repo.nodes.get(id),
            BlobType::Data | BlobType::Manifest => None,
        };
        let is_it = |bytes: &Vec<u8>| self.repo.keys.meta_id(bytes).is_ok_and(|found| found == *id);
        let Some(bytes) = cached.filter(is_it) else {
            return Ok(false);
        };
        if let Some(session) = &mut self.session {
            let codec = PackWriter::begin_full(&mut self.frame, &mut self.compressor, &bytes);
            session
                .writer()
                .add(ty, id, codec, bytes.len() as u32, &mut self.frame)?;
        }
        Ok(true)
    }

    /// False if the copy does not open.
    fn copy(&mut self, id: &ChunkId, ty: BlobType, place: &ChunkPlace) -> Result<bool, OpError> {
        let Some(session) = &mut self.session else {
            let read = self.reader.read_copy(ty, id, place, &mut self.opener, &mut self.plain);
            return damage_or(read);
        };
        let reopened = self
            .reader
            .reopen_copy(ty, id, place, &mut self.opener, &mut self.frame);
        let (mut codec, raw_len) = match reopened {
            Ok(reopened) => reopened,
            Err(error) => return damage_or(Err(error)),
        };
        // A delta is worth nothing without its base, which may lie in a damaged pack, too.
        if let Codec::Delta(base) = codec
            && !self.repo.index.is_stored(&base)?
        {
            self.reader
                .read_copy(ty, id, place, &mut self.opener, &mut self.plain)?;
            codec = PackWriter::begin_full(&mut self.frame, &mut self.compressor, &self.plain);
        }
        session.writer().add(ty, id, codec, raw_len, &mut self.frame)?;
        Ok(true)
    }
}

/// False for damage of what was read; a store that fails is an error.
fn damage_or(read: Result<(), RepoError>) -> Result<bool, OpError> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.is_about_one_object() => Ok(false),
        Err(error) => Err(error.into()),
    }
}
