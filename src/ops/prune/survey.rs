//! What is where: every pack with what is alive in it, and every live chunk with the copy that will be kept
//! (format-spec chapter 16.3, steps 7 and 8). Goes through the live ids and the index side by side, both sorted, so memory grows
//! with the number of packs only.

use super::ids::{IdCollector, SortedIds};
use super::mark::no_room;
use crate::edge::store::{Failure, StoreError};
use crate::ops::OpError;
use crate::pure::base::Timestamp;
use crate::pure::format::blob::BlobType;
use crate::pure::format::name::{ObjectName, PackKind};
use crate::pure::format::pack;
use crate::pure::format::run::StoredAs;
use crate::pure::id::{ChunkId, PackId, SessionId};
use crate::repo::Repo;
use crate::repo::at_once::at_once;
use crate::repo::error::store_error;
use crate::repo::index::{IndexedChunk, PackState};
use crate::repo::open::{prefix, store_key};
use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;

/// Chunks without any copy that are named; the others are counted.
const NAMED_MAX: usize = 20;

/// A pack as the store lists it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListedPack {
    pub pack: PackId,
    pub session: SessionId,
    pub kind: PackKind,
    /// Bytes.
    pub size: u64,
    pub modified: Option<Timestamp>,
}

impl ListedPack {
    pub(super) fn name(&self) -> ObjectName {
        ObjectName::Pack(self.kind, self.pack, self.session)
    }
}

/// Lists all packs, sorted by id.
///
/// # Errors
/// When the store cannot be listed.
pub(super) fn list_packs(repo: &Repo) -> Result<Vec<ListedPack>, OpError> {
    let mut packs = Vec::new();
    for under in ["data/", "meta/"] {
        repo.store
            .list(&prefix(under), &mut |row| {
                if let Some(ObjectName::Pack(kind, pack, session)) = ObjectName::parse(row.key.as_str()) {
                    packs.push(ListedPack {
                        pack,
                        session,
                        kind,
                        size: row.size,
                        modified: row.modified,
                    });
                }
            })
            .map_err(store_error(format!("listing {under} of the repository")))?;
    }
    packs.sort_unstable_by_key(|listed| listed.pack);
    Ok(packs)
}

/// What a pack is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Valid runs describe it, it is not condemned, and it is there.
    Stays,
    /// The same, but it was damaged when it was read last: what has no other copy is looked for here.
    Damaged,
    /// Condemned, and there.
    Condemned,
    /// Not there, or nothing that counts describes it.
    Useless,
}

/// A pack that the index knows.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub handle: u32,
    pub pack: PackId,
    pub session: SessionId,
    pub kind: PackKind,
    pub size: u32,
    pub standing: Standing,
    /// A run that counts describes it, or one of this machine's will.
    pub is_described: bool,
    /// Stored bytes of the copies in it that are kept, and how many there are.
    pub live: u64,
    pub live_blobs: u64,
}

impl Account {
    /// Bytes of a pack that would hold what is alive in this one, and nothing else.
    pub(super) fn needed(&self) -> u64 {
        self.live.saturating_add(pack::overhead(self.live_blobs))
    }

    /// Returns the name of the pack.
    pub(super) fn name(&self) -> ObjectName {
        ObjectName::Pack(self.kind, self.pack, self.session)
    }
}

/// A copy that is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub id: ChunkId,
    pub copy: IndexedChunk,
}

/// Chunks that are alive and only in condemned packs, or nowhere.
#[derive(Debug, Default)]
pub(super) struct Homeless {
    pub rescue: Vec<(ChunkId, BlobType)>,
    /// The first of those that are nowhere.
    pub nowhere: Vec<ChunkId>,
    pub nowhere_total: u64,
    /// How many are nowhere and declared lost: that is no news.
    pub lost: u64,
}

/// All packs that the index knows, by handle.
pub(super) struct Survey {
    pub packs: Vec<Account>,
    /// What deltas that are kept are deltas against: kept as well, as full copies.
    bases: IdCollector,
}

/// What becomes of a chunk that is alive.
enum Choice {
    Keep(IndexedChunk),
    Rescue(BlobType),
    Nowhere,
}

impl Survey {
    /// Takes in all packs. One that the listing does not have is asked for by name before it counts as absent.
    ///
    /// # Errors
    /// When the index or the store fails.
    pub(super) fn begin(repo: &Repo, listed: &[ListedPack]) -> Result<Survey, OpError> {
        let size_of = |pack: &PackId| {
            let place = listed.binary_search_by_key(pack, |listed| listed.pack).ok()?;
            Some(listed[place].size)
        };
        // From the condemnations themselves: what they name is deleted, whatever the row of the pack says.
        let condemned = all_condemned(repo)?;
        let mut packs: Vec<Account> = Vec::new();
        let mut unlisted = Vec::new();
        repo.index.packs(&mut |info| {
            let is_there = size_of(&info.pack) == Some(u64::from(info.size));
            let is_sound = info.verified.is_none_or(|ledger| ledger.sound);
            let standing = match info.state {
                _ if condemned.contains(&info.pack) => match is_there {
                    true => Standing::Condemned,
                    false => Standing::Useless,
                },
                PackState::Live | PackState::Absent if is_there && is_sound => Standing::Stays,
                PackState::Live | PackState::Absent if is_there => Standing::Damaged,
                PackState::Condemned if is_there => Standing::Condemned,
                _ => Standing::Useless,
            };
            let is_condemned = condemned.contains(&info.pack);
            if info.state == PackState::Live && !is_condemned && size_of(&info.pack).is_none() {
                unlisted.push(packs.len());
            }
            packs.push(Account {
                handle: info.handle,
                pack: info.pack,
                session: info.session,
                kind: info.kind,
                size: info.size,
                standing,
                is_described: info.state != PackState::Gone,
                live: 0,
                live_blobs: 0,
            });
        })?;
        let stats = at_once(&unlisted, |place| {
            Ok(repo.store.stat(&store_key(&packs[*place].name())))
        });
        for (place, stat) in unlisted.into_iter().zip(stats) {
            match stat? {
                Ok(stat) if stat.size == u64::from(packs[place].size) => packs[place].standing = Standing::Stays,
                Ok(_) => {}
                Err(StoreError {
                    class: Failure::NotFound,
                    ..
                }) => {}
                Err(error) => return Err(store_error("looking for a pack")(error).into()),
            }
        }
        Ok(Survey {
            packs,
            bases: IdCollector::new(&repo.state_dir),
        })
    }

    /// Chooses the copy of every live chunk that is kept, and counts it for its pack.
    ///
    /// # Errors
    /// When the index fails, or there is no room for sorting.
    pub(super) fn take_in(&mut self, repo: &Repo, ids: &mut IdCollector) -> Result<Homeless, OpError> {
        if repo.index.has_deltas()? && !chaos!("bases-are-not-kept") {
            self.collect_bases(repo, ids)?;
        }
        let Survey { packs, bases } = self;
        let mut homeless = Homeless::default();
        let mut live = vec![(0u64, 0u64); packs.len()];
        each_needed(repo, ids, bases, &mut |id, needs_full, copies| {
            match choose(packs, copies, needs_full) {
                Choice::Keep(copy) => {
                    if let Some(place) = place(packs, copy.pack) {
                        live[place].0 += u64::from(copy.stored_len);
                        live[place].1 += 1;
                    }
                }
                Choice::Rescue(ty) => homeless.rescue.push((id, ty)),
                Choice::Nowhere if repo.index.is_lost(&id)? => homeless.lost += 1,
                Choice::Nowhere => {
                    homeless.nowhere_total += 1;
                    if homeless.nowhere.len() < NAMED_MAX {
                        homeless.nowhere.push(id);
                    }
                }
            }
            Ok(())
        })?;
        for (account, live) in packs.iter_mut().zip(live) {
            (account.live, account.live_blobs) = live;
        }
        Ok(homeless)
    }

    /// Returns the copies that are kept and lie in the packs with these handles, in the order of packs and offsets.
    ///
    /// # Errors
    /// As [`Self::take_in`].
    pub(super) fn kept_in(
        &mut self,
        repo: &Repo,
        ids: &mut IdCollector,
        handles: &HashSet<u32>,
    ) -> Result<Vec<Kept>, OpError> {
        let Survey { packs, bases } = self;
        let mut kept = Vec::new();
        each_needed(repo, ids, bases, &mut |id, needs_full, copies| {
            if let Choice::Keep(copy) = choose(packs, copies, needs_full)
                && handles.contains(&copy.pack)
            {
                kept.push(Kept { id, copy });
            }
            Ok(())
        })?;
        kept.sort_unstable_by_key(|kept| (kept.copy.pack, kept.copy.offset));
        Ok(kept)
    }

    fn collect_bases(&mut self, repo: &Repo, ids: &mut IdCollector) -> Result<(), OpError> {
        let Survey { packs, bases } = self;
        let mut none = IdCollector::new(&repo.state_dir);
        each_needed(repo, ids, &mut none, &mut |id, _, copies| {
            if let Choice::Keep(copy) = choose(packs, copies, false)
                && copy.stored_as == StoredAs::Delta
                && let Some(place) = place(packs, copy.pack)
            {
                // One without a base in the index needs a full copy of itself, which there is not: that stops the run.
                let base = repo.index.base_of(&id, &packs[place].pack)?.unwrap_or(id);
                bases.extend(&[base]).map_err(no_room)?;
            }
            Ok(())
        })
    }
}

/// The packs that any generation names.
///
/// # Errors
/// When the index fails.
pub(super) fn all_condemned(repo: &Repo) -> Result<HashSet<PackId>, OpError> {
    let mut condemned = HashSet::new();
    for generation in repo.index.known_gcs()? {
        condemned.extend(repo.index.condemned_by(&generation)?);
    }
    Ok(condemned)
}

fn place(packs: &[Account], handle: u32) -> Option<usize> {
    packs.binary_search_by_key(&handle, |account| account.handle).ok()
}

/// Chooses among the copies of a live chunk: a full one in a pack that stays and is sound, then a delta, then the same in packs
/// that were damaged. The same choice each time.
fn choose(packs: &[Account], copies: &[IndexedChunk], needs_full: bool) -> Choice {
    let standing =
        |copy: &IndexedChunk| place(packs, copy.pack).map_or(Standing::Useless, |place| packs[place].standing);
    let rank = |copy: &&IndexedChunk| {
        let is_delta = copy.stored_as == StoredAs::Delta;
        let rank = match (standing(copy), is_delta) {
            (_, true) if needs_full && !chaos!("delta-serves-as-base") => return None,
            (Standing::Stays, false) => 0,
            (Standing::Stays, true) => 1,
            (Standing::Damaged, false) => 2 * u8::from(!chaos!("damaged-copy-is-kept")),
            (Standing::Damaged, true) => 3,
            (Standing::Condemned | Standing::Useless, _) => return None,
        };
        Some((rank, copy.pack, copy.offset))
    };
    let best = copies
        .iter()
        .filter_map(|copy| Some((rank(&copy)?, copy)))
        .min_by_key(|(rank, _)| *rank);
    let condemned = copies.iter().find(|copy| standing(copy) == Standing::Condemned);
    match (best, condemned) {
        (Some(((0 | 1, ..), copy)), _) | (Some((_, copy)), None) => Choice::Keep(*copy),
        // The condemned copy may be the only one that can be read.
        (_, Some(copy)) => Choice::Rescue(blob_type(copy.stored_as)),
        (None, None) => Choice::Nowhere,
    }
}

/// Returns the type of a blob by how it is stored.
pub(in crate::ops) fn blob_type(stored_as: StoredAs) -> BlobType {
    match stored_as {
        StoredAs::Data | StoredAs::Delta => BlobType::Data,
        StoredAs::Node => BlobType::Node,
        StoredAs::List => BlobType::List,
        StoredAs::Manifest => BlobType::Manifest,
    }
}

/// Live ids and bases in one ascending order, each once, and whether a full copy is needed.
struct Needed<'c> {
    live: SortedIds<'c>,
    bases: SortedIds<'c>,
    next: Option<ChunkId>,
    next_base: Option<ChunkId>,
}

impl Needed<'_> {
    fn begin<'c>(ids: &'c mut IdCollector, bases: &'c mut IdCollector) -> io::Result<Needed<'c>> {
        let (mut live, mut bases) = (ids.sorted(), bases.sorted());
        let (next, next_base) = (live.take()?, bases.take()?);
        Ok(Needed {
            live,
            bases,
            next,
            next_base,
        })
    }

    fn take(&mut self) -> io::Result<Option<(ChunkId, bool)>> {
        let id = match (self.next, self.next_base) {
            (None, None) => return Ok(None),
            (Some(id), None) | (None, Some(id)) => id,
            (Some(id), Some(base)) => id.min(base),
        };
        let is_base = self.next_base == Some(id);
        if is_base {
            self.next_base = self.bases.take()?;
        }
        if self.next == Some(id) {
            self.next = self.live.take()?;
        }
        Ok(Some((id, is_base)))
    }
}

/// Shows every live chunk and every base with all copies that the index has of it.
fn each_needed(
    repo: &Repo,
    ids: &mut IdCollector,
    bases: &mut IdCollector,
    each: &mut dyn FnMut(ChunkId, bool, &[IndexedChunk]) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let mut needed = Needed::begin(ids, bases).map_err(no_room)?;
    let mut current = needed.take().map_err(no_room)?;
    let mut copies: Vec<IndexedChunk> = Vec::new();
    let mut failed = None;
    // Rows come in the order of ids. What is needed and below the row's id has all its copies in `copies`, or has none.
    let mut pass = |below: Option<ChunkId>, copies: &[IndexedChunk]| -> Result<(), OpError> {
        while let Some((id, is_base)) = current.filter(|(id, _)| below.is_none_or(|below| *id < below)) {
            let are_of_it = copies.first().is_some_and(|copy| copy.id == id);
            each(id, is_base, if are_of_it { copies } else { &[] })?;
            current = needed.take().map_err(no_room)?;
        }
        Ok(())
    };
    repo.index.chunks_in_id_order(&mut |row| {
        if copies.first().is_some_and(|copy| copy.id != row.id) {
            if let Err(error) = pass(Some(row.id), &copies) {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            copies.clear();
        }
        copies.push(row);
        ControlFlow::Continue(())
    })?;
    match failed {
        Some(error) => Err(error),
        None => pass(None, &copies),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs() -> Vec<Account> {
        let standings = [
            Standing::Stays,
            Standing::Stays,
            Standing::Damaged,
            Standing::Condemned,
            Standing::Useless,
        ];
        let account = |(handle, standing): (usize, Standing)| Account {
            handle: handle as u32,
            pack: PackId([handle as u8; 16]),
            session: SessionId([1; 16]),
            kind: PackKind::Data,
            size: 1000,
            standing,
            is_described: true,
            live: 0,
            live_blobs: 0,
        };
        standings.into_iter().enumerate().map(account).collect()
    }

    /// Copies in these packs; a negative number stands for a delta.
    fn chosen(copies: &[i32], needs_full: bool) -> Option<Result<u32, BlobType>> {
        let copies: Vec<IndexedChunk> = copies
            .iter()
            .map(|pack| IndexedChunk {
                id: ChunkId([7; 32]),
                pack: pack.unsigned_abs() % 10,
                offset: 64,
                stored_as: if *pack < 0 { StoredAs::Delta } else { StoredAs::Data },
                stored_len: 100,
            })
            .collect();
        match choose(&packs(), &copies, needs_full) {
            Choice::Keep(copy) => Some(Ok(copy.pack)),
            Choice::Rescue(ty) => Some(Err(ty)),
            Choice::Nowhere => None,
        }
    }

    #[test]
    fn the_copy_that_is_kept_is_full_sound_and_in_a_pack_that_stays() {
        // Ten stands for pack 0, so that it can be negative.
        assert_eq!(chosen(&[1, 10], false), Some(Ok(0)), "the older one, always");
        assert_eq!(chosen(&[-10, 1], false), Some(Ok(1)), "full before delta");
        assert_eq!(
            chosen(&[2, -1], false),
            Some(Ok(1)),
            "a sound delta before what was damaged"
        );
        assert_eq!(chosen(&[2, 4], false), Some(Ok(2)), "damaged before nothing");
        assert_eq!(chosen(&[-10, 2], true), Some(Ok(2)), "a base is a full copy");
        assert_eq!(chosen(&[4, 3], false), Some(Err(BlobType::Data)), "copied out");
        assert_eq!(
            chosen(&[2, 3], false),
            Some(Err(BlobType::Data)),
            "what is condemned may be the only sound copy"
        );
        assert_eq!(chosen(&[10, 3], false), Some(Ok(0)));
        assert_eq!(chosen(&[4], false), None);
        assert_eq!(chosen(&[-10], true), None);
        assert_eq!(chosen(&[], false), None);
    }
}
