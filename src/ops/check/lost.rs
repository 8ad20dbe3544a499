//! What of the packs cannot be read, and what that means for a chunk. Kept by pack and offset and not by chunk: a lost pack
//! takes 40 bytes here, its chunks would take megabytes.

use crate::ops::OpError;
use crate::pure::format::run::StoredAs;
use crate::pure::id::{ChunkId, PackId};
use crate::repo::Repo;
use crate::repo::index::ChunkPlace;
use std::collections::{HashMap, HashSet};

enum LostPart {
    Whole,
    /// Offsets of the frames that do not open, ascending. Without any, only the pack as a whole is wrong.
    Frames(Vec<u32>),
}

/// Whether a quarantine says that it is lost.
fn is_declared(repo: &Repo, id: &ChunkId) -> Result<bool, OpError> {
    Ok(repo.index.has_lost() && repo.index.is_lost(id)?)
}

/// Packs that were reported as missing or damaged.
#[derive(Default)]
pub(super) struct Lost {
    packs: HashMap<PackId, LostPart>,
    /// Condemned packs that are not there any more, as it should be.
    deleted: HashSet<PackId>,
    changes: u64,
}

/// What becomes of a chunk when it is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// There is a copy that nothing wrong is known of.
    Fine,
    /// The index knows copies, and all of them are lost.
    Lost,
    /// The index knows no copy that counts.
    Unlisted,
}

impl Lost {
    /// Counts how often something was added.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether something was reported about this pack.
    pub(super) fn knows(&self, pack: &PackId) -> bool {
        self.packs.contains_key(pack)
    }

    pub(super) fn add_pack(&mut self, pack: PackId) {
        self.changes += 1;
        self.packs.insert(pack, LostPart::Whole);
    }

    /// Takes note of a condemned pack that is not there any more.
    pub(super) fn add_deleted(&mut self, pack: PackId) {
        self.deleted.insert(pack);
    }

    pub(super) fn add_frames(&mut self, pack: PackId, offsets: impl IntoIterator<Item = u32>) {
        self.changes += 1;
        if let LostPart::Frames(frames) = self.packs.entry(pack).or_insert(LostPart::Frames(Vec::new())) {
            frames.extend(offsets);
            frames.sort_unstable();
            frames.dedup();
        }
    }

    pub(super) fn holds(&self, place: &ChunkPlace) -> bool {
        match self.packs.get(&place.pack) {
            None => false,
            Some(LostPart::Whole) => true,
            Some(LostPart::Frames(frames)) => frames.binary_search(&place.offset).is_ok(),
        }
    }

    /// Says what becomes of a chunk, given the copy that the index prefers. Adds the packs that a restore
    /// reads for it to `used`.
    ///
    /// # Errors
    /// If the index fails.
    pub(super) fn fate(
        &self,
        repo: &Repo,
        id: &ChunkId,
        preferred: Option<&ChunkPlace>,
        used: Option<&mut HashSet<PackId>>,
    ) -> Result<Fate, OpError> {
        if let Some(preferred) = preferred
            && preferred.stored_as != StoredAs::Delta
            && !self.holds(preferred)
        {
            if let Some(used) = used {
                used.insert(preferred.pack);
            }
            return Ok(Fate::Fine);
        }
        let copies = self.copies(repo, id)?;
        if copies.is_empty() {
            return Ok(if is_declared(repo, id)? {
                Fate::Lost
            } else {
                Fate::Unlisted
            });
        }
        for place in copies.iter().filter(|place| !self.holds(place)) {
            let base = match place.stored_as {
                StoredAs::Delta => match self.sound_base(repo, id, place)? {
                    Some(base) => Some(base),
                    None => continue,
                },
                _ => None,
            };
            if let Some(used) = used {
                used.insert(place.pack);
                used.extend(base);
            }
            return Ok(Fate::Fine);
        }
        Ok(Fate::Lost)
    }

    /// The copies that a restore tries: those in condemned packs last, as long as they are there.
    fn copies(&self, repo: &Repo, id: &ChunkId) -> Result<Vec<ChunkPlace>, OpError> {
        let mut copies = repo.index.find_all(id)?;
        // Whoever declared it lost has tried those.
        if is_declared(repo, id)? {
            return Ok(copies);
        }
        let condemned = repo.index.find_condemned(id)?;
        copies.extend(
            condemned
                .into_iter()
                .filter(|place| !self.deleted.contains(&place.pack)),
        );
        Ok(copies)
    }

    /// Returns the pack with a full copy of the base that a delta needs.
    fn sound_base(&self, repo: &Repo, id: &ChunkId, place: &ChunkPlace) -> Result<Option<PackId>, OpError> {
        let Some(base) = repo.index.base_of(id, &place.pack)? else {
            return Ok(None);
        };
        let copies = self.copies(repo, &base)?;
        let sound = |copy: &&ChunkPlace| copy.stored_as != StoredAs::Delta && !self.holds(copy);
        Ok(copies.iter().find(sound).map(|copy| copy.pack))
    }
}
