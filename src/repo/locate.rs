//! Where a chunk lies: from the local index, or, on a machine that has none, straight from the runs by ranged reads.

use super::error::{RepoError, object_error, store_error};
use super::index::ChunkPlace;
use super::open::{Repo, store_key};
use crate::edge::store::Part;
use crate::pure::format::name::ObjectName;
use crate::pure::format::run::{RunChunk, RunHead};
use crate::pure::id::{ChunkId, SessionId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// First read of a run: header, section table and fan-out of almost every run fit.
const HEAD_BYTES: u64 = 64 << 10;

/// Finds copies of chunks.
pub trait Locate: Send + Sync {
    /// Returns every copy that is known, best first.
    ///
    /// # Errors
    /// When the index or a run cannot be read.
    fn copies(&self, repo: &Repo, id: &ChunkId) -> Result<Vec<ChunkPlace>, RepoError>;
}

/// The local index, in sync with the repository.
pub struct IndexLocator;

impl Locate for IndexLocator {
    fn copies(&self, repo: &Repo, id: &ChunkId) -> Result<Vec<ChunkPlace>, RepoError> {
        Ok(repo.index.find_all(id)?)
    }
}

/// Asks each valid run by ranged reads: one for its head (kept), one for the block that may hold the id. A chunk from a run
/// that is not verified as a whole is still verified by its own seal and id.
pub struct RunLocator {
    runs: Vec<RunReader>,
}

struct RunReader {
    session: SessionId,
    number: u32,
    size: u64,
    head: Mutex<Option<Arc<RunHead>>>,
    blocks: Mutex<HashMap<usize, Arc<Vec<RunChunk>>>>,
    /// Sealed pack and slot blocks by section: few, and asked for again and again.
    sealed: Mutex<HashMap<usize, bytes::Bytes>>,
}

impl RunLocator {
    /// Prepares to search these runs in this order.
    pub fn new(runs: Vec<(SessionId, u32, u64)>) -> RunLocator {
        let runs = runs
            .into_iter()
            .map(|(session, number, size)| RunReader {
                session,
                number,
                size,
                head: Mutex::new(None),
                blocks: Mutex::new(HashMap::new()),
                sealed: Mutex::new(HashMap::new()),
            })
            .collect();
        RunLocator { runs }
    }
}

impl RunReader {
    fn name(&self) -> ObjectName {
        ObjectName::Run(self.session, self.number)
    }

    fn read(&self, repo: &Repo, range: Range<u64>) -> Result<bytes::Bytes, RepoError> {
        let end = range.end.min(self.size);
        repo.store
            .read(&store_key(&self.name()), Part::Range(range.start..end))
            .map_err(store_error("reading a part of an index run"))
    }

    fn head(&self, repo: &Repo) -> Result<Arc<RunHead>, RepoError> {
        let mut kept = self.head.lock();
        if let Some(head) = &*kept {
            return Ok(head.clone());
        }
        let name = self.name().to_string();
        let damaged = || object_error("opening", &name);
        let mut prefix = self.read(repo, 0..HEAD_BYTES)?;
        let head = match RunHead::parse(&prefix, &name, &repo.keys).map_err(damaged())? {
            Some(head) => head,
            None => {
                let needed = RunHead::prefix_needed(&prefix).map_err(damaged())?;
                prefix = self.read(repo, 0..needed as u64)?;
                RunHead::parse(&prefix, &name, &repo.keys)
                    .map_err(damaged())?
                    .ok_or_else(|| RepoError::Missing {
                        object: name.clone(),
                        why: "it is shorter than its own section table says".into(),
                    })?
            }
        };
        let head = Arc::new(head);
        *kept = Some(head.clone());
        Ok(head)
    }

    fn chunks(&self, repo: &Repo, section: usize, range: Range<u64>) -> Result<Arc<Vec<RunChunk>>, RepoError> {
        if let Some(block) = self.blocks.lock().get(&section) {
            return Ok(block.clone());
        }
        let head = self.head(repo)?;
        let sealed = self.read(repo, range)?;
        let block = Arc::new(
            head.open_chunks(section, &sealed, &repo.keys)
                .map_err(object_error("opening", self.name()))?,
        );
        self.blocks.lock().insert(section, block.clone());
        Ok(block)
    }

    fn sealed_block(&self, repo: &Repo, section: usize, range: Range<u64>) -> Result<bytes::Bytes, RepoError> {
        if let Some(block) = self.sealed.lock().get(&section) {
            return Ok(block.clone());
        }
        let block = self.read(repo, range)?;
        self.sealed.lock().insert(section, block.clone());
        Ok(block)
    }

    fn place(&self, repo: &Repo, chunk: &RunChunk) -> Result<ChunkPlace, RepoError> {
        let damaged = || object_error("opening", self.name());
        let head = self.head(repo)?;
        let (section, range) = head.pack_block(chunk.pack_ix);
        let sealed = self.sealed_block(repo, section, range)?;
        let (first, packs) = head.open_packs(section, &sealed, &repo.keys).map_err(damaged())?;
        let pack = chunk
            .pack_ix
            .checked_sub(first)
            .and_then(|rank| packs.get(rank as usize))
            .ok_or_else(|| RepoError::Missing {
                object: self.name().to_string(),
                why: "a chunk names a pack that is not in it".into(),
            })?;
        let mut slots = Vec::new();
        for (section, range) in head.slot_blocks(&pack.slots) {
            let sealed = self.sealed_block(repo, section, range)?;
            let (first, block) = head.open_slots(section, &sealed, &repo.keys).map_err(damaged())?;
            for (index, slot) in block.iter().enumerate() {
                if pack.slots.contains(&(first + index as u32)) {
                    slots.push(*slot);
                }
            }
        }
        Ok(ChunkPlace {
            pack: pack.pack,
            session: pack.session,
            kind: pack.kind,
            offset: chunk.offset,
            stored_len: chunk.stored_len,
            stored_as: chunk.stored_as,
            slots: slots.into(),
            pack_size: pack.size,
        })
    }
}

impl Locate for RunLocator {
    fn copies(&self, repo: &Repo, id: &ChunkId) -> Result<Vec<ChunkPlace>, RepoError> {
        let mut copies = Vec::new();
        for run in &self.runs {
            let head = run.head(repo)?;
            for (section, range) in head.chunk_blocks(id) {
                let block = run.chunks(repo, section, range)?;
                let first = block.partition_point(|chunk| chunk.id < *id);
                for chunk in block[first..].iter().take_while(|chunk| chunk.id == *id) {
                    copies.push(run.place(repo, chunk)?);
                }
            }
            // One copy is enough to try; the next run is asked only when this one does not open.
            if !copies.is_empty() {
                break;
            }
        }
        Ok(copies)
    }
}
