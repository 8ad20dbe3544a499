//! Finding chunks, and walking through everything that is known (format-spec chapter on client-local state).

use super::catalog::{PackState, StoredCopy, base_of, kind_from_number, pack_handle, slots_of};
use super::memory::Verified;
use super::{IndexError, LocalIndex, Trouble};
use crate::pure::crypto::Slot;
use crate::pure::format::name::PackKind;
use crate::pure::format::run::StoredAs;
use crate::pure::id::{ChunkId, PackId, SessionId};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Ids looked up in one read transaction.
const BATCH: usize = 1024;

/// Where one copy of a chunk lies, with all that is needed to fetch and open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    pub pack: PackId,
    /// The session in the pack's name.
    pub session: SessionId,
    pub kind: PackKind,
    pub offset: u32,
    /// Length of the whole frame.
    pub stored_len: u32,
    pub stored_as: StoredAs,
    /// The pack's slots in frame order.
    pub slots: Arc<[Slot]>,
    pub pack_size: u32,
}

/// One known pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackInfo {
    /// Stands for the pack in [`IndexedChunk::pack`]. Only means something to this index.
    pub handle: u32,
    pub pack: PackId,
    pub session: SessionId,
    pub kind: PackKind,
    pub state: PackState,
    pub size: u32,
    pub blob_count: u32,
    pub crc64nvme: u64,
    pub body_hash24: [u8; 24],
    pub verified: Option<Verified>,
}

/// One copy of a chunk, in a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexedChunk {
    pub id: ChunkId,
    /// [`PackInfo::handle`].
    pub pack: u32,
    pub offset: u32,
    pub stored_as: StoredAs,
    pub stored_len: u32,
}

/// Counts that can be had without reading every row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    pub runs: u64,
    pub packs_live: u64,
    pub packs_mine: u64,
    pub packs_condemned: u64,
    pub packs_gone: u64,
    pub packs_absent: u64,
    /// Copies in live packs, data and metadata.
    pub data_blobs: u64,
    pub meta_blobs: u64,
    /// Bytes of live packs.
    pub data_bytes: u64,
    pub meta_bytes: u64,
    pub filter_keys: u64,
    pub filter_bytes: u64,
    /// Bytes of the database file.
    pub database_bytes: u64,
}

impl LocalIndex {
    /// Returns the best copy of a chunk that may be referred to, a full one before a delta: in a live pack, or in one that an
    /// own session of this process still has to list.
    ///
    /// # Errors
    /// If the database fails.
    pub fn find(&self, id: &ChunkId) -> Result<Option<ChunkPlace>, IndexError> {
        let current = Arc::clone(&self.current.read());
        self.read(|connection| {
            best_copy(connection, id, &current)?
                .map(|copy| self.place(connection, &copy))
                .transpose()
        })
    }

    /// Whether there is a copy that may be referred to: a full one, or a delta and a full copy of its base.
    ///
    /// # Errors
    /// If the database fails.
    pub fn is_stored(&self, id: &ChunkId) -> Result<bool, IndexError> {
        let Some(place) = self.find(id)? else {
            return Ok(false);
        };
        if place.stored_as != StoredAs::Delta {
            return Ok(true);
        }
        let Some(base) = self.base_of(id, &place.pack)? else {
            return Ok(false);
        };
        Ok(self.find(&base)?.is_some_and(|full| full.stored_as != StoredAs::Delta))
    }

    /// Returns every copy of a chunk that may be readable, full ones first and those in absent packs last; for when the first
    /// one turns out to be damaged.
    ///
    /// # Errors
    /// If the database fails.
    pub fn find_all(&self, id: &ChunkId) -> Result<Vec<ChunkPlace>, IndexError> {
        let current = Arc::clone(&self.current.read());
        let with_absent = self.has_absent()?;
        self.read(|connection| {
            let mut copies = usable_copies(connection, id, &current, Purpose::Refer)?;
            copies.sort_by_key(|copy| !copy.is_full());
            if with_absent {
                let mut absent = usable_copies(connection, id, &current, Purpose::Read)?;
                absent.retain(|copy| !copies.contains(copy));
                absent.sort_by_key(|copy| !copy.is_full());
                copies.append(&mut absent);
            }
            copies.iter().map(|copy| self.place(connection, copy)).collect()
        })
    }

    /// Returns the copies of a chunk in condemned packs: they can be read as long as the packs are there, and not referred to.
    ///
    /// # Errors
    /// If the database fails.
    pub fn find_condemned(&self, id: &ChunkId) -> Result<Vec<ChunkPlace>, IndexError> {
        let current = HashSet::new();
        self.read(|connection| {
            let mut copies = usable_copies(connection, id, &current, Purpose::Rescue)?;
            copies.sort_by_key(|copy| !copy.is_full());
            copies.iter().map(|copy| self.place(connection, copy)).collect()
        })
    }

    /// Returns where the copy of a chunk in one pack lies; `None` if the index knows none there.
    ///
    /// # Errors
    /// If the database fails.
    pub fn find_copy(&self, id: &ChunkId, pack: u32) -> Result<Option<ChunkPlace>, IndexError> {
        let current = Arc::clone(&self.current.read());
        self.read(|connection| {
            let copies = usable_copies(connection, id, &current, Purpose::Refer)?;
            let copy = copies.iter().find(|copy| copy.pack == pack);
            copy.map(|copy| self.place(connection, copy)).transpose()
        })
    }

    /// Returns what [`Self::find`] returns for each of `ids`, in their order; several times faster for many.
    ///
    /// # Errors
    /// If the database fails.
    pub fn find_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkPlace>>, IndexError> {
        let current = Arc::clone(&self.current.read());
        let mut order: Vec<usize> = (0..ids.len()).collect();
        // Neighbours in the table share pages.
        order.sort_unstable_by_key(|&index| ids[index]);
        let mut places = vec![None; ids.len()];
        for batch in order.chunks(BATCH) {
            self.read(|connection| {
                for &index in batch {
                    if let Some(copy) = best_copy(connection, &ids[index], &current)? {
                        places[index] = Some(self.place(connection, &copy)?);
                    }
                }
                Ok(())
            })?;
        }
        Ok(places)
    }

    /// Returns what the index says about each of `ids` in one pack, whatever the state of the pack.
    ///
    /// # Errors
    /// If the database fails.
    pub fn find_in_pack(&self, ids: &[ChunkId], pack: u32) -> Result<Vec<Option<IndexedChunk>>, IndexError> {
        let mut found = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH) {
            self.read(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT off, tl FROM chunk WHERE id = ?1 AND pack = ?2
                     UNION ALL SELECT off, tl FROM chunk_dup WHERE id = ?1 AND pack = ?2",
                )?;
                for id in batch {
                    let row = statement
                        .query_row(params![id.as_bytes(), pack], |row| Ok((row.get(0)?, row.get(1)?)))
                        .optional()?;
                    let copy = row
                        .map(|(off, tl)| StoredCopy::from_columns(id, pack.into(), off, tl))
                        .transpose()?;
                    found.push(copy.map(|copy| IndexedChunk {
                        id: *id,
                        pack,
                        offset: copy.offset,
                        stored_as: copy.stored_as,
                        stored_len: copy.stored_len,
                    }));
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Returns what the copy of `id` in `pack` is a delta against; `None` if it is a full copy or not known.
    ///
    /// # Errors
    /// If the database fails.
    pub fn base_of(&self, id: &ChunkId, pack: &PackId) -> Result<Option<ChunkId>, IndexError> {
        self.read(|connection| match pack_handle(connection, pack)? {
            Some(handle) => base_of(connection, id, handle),
            None => Ok(None),
        })
    }

    /// Shows every known pack to `each`, whatever its state, in the order in which they became known.
    ///
    /// # Errors
    /// If the database fails.
    pub fn packs(&self, each: &mut dyn FnMut(PackInfo)) -> Result<(), IndexError> {
        let mut after = 0;
        loop {
            // In steps: a long transaction would keep the WAL from being emptied, and `each` may take its time.
            let step = self.read(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT h, id, sid, kind, state, size, nblob, crc64, bhash, depth, verified_ns, sound
                     FROM pack LEFT JOIN scrub ON scrub.pack = pack.h WHERE h > ?1 ORDER BY h LIMIT ?2",
                )?;
                let mut rows = statement.query(params![after, BATCH as i64])?;
                let mut step = Vec::new();
                while let Some(row) = rows.next()? {
                    step.push(pack_info(row)?);
                }
                Ok(step)
            })?;
            match step.last() {
                Some(last) => after = last.handle,
                None => return Ok(()),
            }
            step.into_iter().for_each(&mut *each);
        }
    }

    /// Returns what is known of one pack.
    ///
    /// # Errors
    /// If the database fails.
    pub fn pack(&self, pack: &PackId) -> Result<Option<PackInfo>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT h, id, sid, kind, state, size, nblob, crc64, bhash, depth, verified_ns, sound
                 FROM pack LEFT JOIN scrub ON scrub.pack = pack.h WHERE id = ?1",
            )?;
            let mut rows = statement.query([pack.as_bytes()])?;
            rows.next()?.map(pack_info).transpose()
        })
    }

    /// Whether any copy is known that is stored as a delta.
    ///
    /// # Errors
    /// If the database fails.
    pub fn has_deltas(&self) -> Result<bool, IndexError> {
        self.read(|connection| {
            let any = connection.query_row("SELECT EXISTS (SELECT 1 FROM delta)", [], |row| row.get(0))?;
            Ok(any)
        })
    }

    /// Returns the slots of a pack in frame order; `None` if the pack is not known.
    ///
    /// # Errors
    /// If the database fails.
    pub fn slots_of_pack(&self, pack: &PackId) -> Result<Option<Arc<[Slot]>>, IndexError> {
        self.read(|connection| match pack_handle(connection, pack)? {
            Some(handle) => Ok(Some(self.packs.known(connection, handle)?.slots.clone())),
            None => Ok(None),
        })
    }

    /// Shows every copy of every chunk to `each`, sorted by id; copies in packs of any state.
    ///
    /// # Errors
    /// If the database fails.
    pub fn chunks_in_id_order(&self, each: &mut dyn FnMut(IndexedChunk) -> ControlFlow<()>) -> Result<(), IndexError> {
        // Both tables are in this order already: SQLite merges them without sorting.
        let sql = "SELECT id, pack, off, tl FROM chunk UNION ALL SELECT id, pack, off, tl FROM chunk_dup ORDER BY id";
        self.walk(sql, &mut |chunk| each(chunk))
    }

    /// Shows every copy of every chunk to `each`, pack by pack, in the order of the frames in the pack; packs of any
    /// state. Sorts all rows in temporary files (44 bytes for each), so it takes a while to begin.
    ///
    /// # Errors
    /// If the database fails.
    pub fn chunks_in_pack_order(
        &self,
        each: &mut dyn FnMut(IndexedChunk) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        let sql = "SELECT id, pack, off, tl FROM (SELECT id, pack, off, tl FROM chunk
                   UNION ALL SELECT id, pack, off, tl FROM chunk_dup) ORDER BY pack, off & 4294967295";
        self.walk(sql, &mut |chunk| each(chunk))
    }

    /// Returns the chunks of one pack in the order of its frames. Reads every row of the index: for one damaged pack, not
    /// for many.
    ///
    /// # Errors
    /// If the database fails.
    pub fn chunks_of_pack(&self, pack: &PackId) -> Result<Vec<IndexedChunk>, IndexError> {
        let Some(handle) = self.read(|connection| pack_handle(connection, pack))? else {
            return Ok(Vec::new());
        };
        let sql = format!(
            "SELECT id, pack, off, tl FROM chunk WHERE pack = {handle}
             UNION ALL SELECT id, pack, off, tl FROM chunk_dup WHERE pack = {handle}"
        );
        let mut chunks = Vec::new();
        self.walk(&sql, &mut |chunk| {
            chunks.push(chunk);
            ControlFlow::Continue(())
        })?;
        chunks.sort_unstable_by_key(|chunk| chunk.offset);
        Ok(chunks)
    }

    fn walk(&self, sql: &str, each: &mut dyn FnMut(IndexedChunk) -> ControlFlow<()>) -> Result<(), IndexError> {
        let connection = self.connect()?;
        let mut walk = || -> Result<(), Trouble> {
            // A sort must not take memory in proportion to the repository.
            connection.pragma_update(None, "temp_store", "FILE")?;
            let mut statement = connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let id = ChunkId(row.get(0)?);
                let copy = StoredCopy::from_columns(&id, row.get(1)?, row.get(2)?, row.get(3)?)?;
                let StoredCopy {
                    pack,
                    offset,
                    stored_as,
                    stored_len,
                } = copy;
                if each(IndexedChunk {
                    id,
                    pack,
                    offset,
                    stored_as,
                    stored_len,
                })
                .is_break()
                {
                    break;
                }
            }
            Ok(())
        };
        let done = walk();
        self.settled(done)
    }

    /// Counts what is known.
    ///
    /// # Errors
    /// If the database fails.
    pub fn stats(&self) -> Result<IndexStats, IndexError> {
        let mut stats = self.read(|connection| {
            let runs = connection.query_row("SELECT count(*) FROM run", [], |row| row.get::<_, i64>(0))? as u64;
            let mut stats = IndexStats {
                runs,
                ..IndexStats::default()
            };
            let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
            let page: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
            stats.database_bytes = pages.saturating_mul(page) as u64;
            let mut statement = connection
                .prepare_cached("SELECT state, kind, count(*), sum(nblob), sum(size) FROM pack GROUP BY state, kind")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (state, kind) = (PackState::from_number(row.get(0)?)?, kind_from_number(row.get(1)?)?);
                let (packs, blobs) = (row.get::<_, i64>(2)? as u64, row.get::<_, i64>(3)? as u64);
                let bytes = row.get::<_, i64>(4)? as u64;
                match state {
                    PackState::Live => stats.packs_live += packs,
                    PackState::Mine => stats.packs_mine += packs,
                    PackState::Condemned => stats.packs_condemned += packs,
                    PackState::Gone => stats.packs_gone += packs,
                    PackState::Absent => stats.packs_absent += packs,
                }
                match (state, kind) {
                    (PackState::Live, PackKind::Data) => (stats.data_blobs, stats.data_bytes) = (blobs, bytes),
                    (PackState::Live, PackKind::Meta) => (stats.meta_blobs, stats.meta_bytes) = (blobs, bytes),
                    _ => {}
                }
            }
            Ok(stats)
        })?;
        if let Some(filter) = self.filter.read().as_ref() {
            (stats.filter_keys, stats.filter_bytes) = (filter.keys(), filter.bytes());
        }
        Ok(stats)
    }

    fn place(&self, connection: &Connection, copy: &StoredCopy) -> Result<ChunkPlace, Trouble> {
        let pack = self.packs.known(connection, copy.pack)?;
        Ok(ChunkPlace {
            pack: pack.id,
            session: pack.session,
            kind: pack.kind,
            offset: copy.offset,
            stored_len: copy.stored_len,
            stored_as: copy.stored_as,
            slots: pack.slots.clone(),
            pack_size: pack.size,
        })
    }
}

fn pack_info(row: &rusqlite::Row<'_>) -> Result<PackInfo, Trouble> {
    let depth: Option<u8> = row.get(9)?;
    Ok(PackInfo {
        handle: row.get(0)?,
        pack: PackId(row.get(1)?),
        session: SessionId(row.get(2)?),
        kind: kind_from_number(row.get(3)?)?,
        state: PackState::from_number(row.get(4)?)?,
        size: row.get(5)?,
        blob_count: row.get(6)?,
        crc64nvme: row.get::<_, i64>(7)? as u64,
        body_hash24: row.get(8)?,
        verified: match depth {
            Some(depth) => Some(Verified {
                depth,
                at: crate::pure::base::Timestamp(row.get(10)?),
                sound: row.get::<_, i64>(11)? == 1,
            }),
            None => None,
        },
    })
}

const PREFERRED: &str = "SELECT c.pack, c.off, c.tl, p.state, p.owner FROM chunk c LEFT JOIN pack p ON p.h = c.pack
     WHERE c.id = ?1";
const FURTHER: &str = "SELECT c.pack, c.off, c.tl, p.state, p.owner FROM chunk_dup c LEFT JOIN pack p ON p.h = c.pack
     WHERE c.id = ?1";

/// What a copy is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be referred to by a new snapshot: absent packs do not count.
    Refer,
    /// To be read, if it can be: absent packs are tried.
    Read,
    /// To be read out of a condemned pack, while that exists; others do not count.
    Rescue,
}

/// Adds the usable copies that one of the two tables has; false if the table has no copy at all.
fn collect_usable(
    connection: &Connection,
    sql: &str,
    id: &ChunkId,
    current: &HashSet<SessionId>,
    purpose: Purpose,
    copies: &mut Vec<StoredCopy>,
) -> Result<bool, Trouble> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([id.as_bytes()])?;
    let mut any = false;
    while let Some(row) = rows.next()? {
        any = true;
        let copy = StoredCopy::from_columns(id, row.get(0)?, row.get(1)?, row.get(2)?)?;
        // A pack that is gone for long has no row any more.
        let state: Option<i64> = row.get(3)?;
        let usable = match state.map(PackState::from_number).transpose()? {
            Some(PackState::Live) => purpose != Purpose::Rescue,
            Some(PackState::Mine) => row
                .get::<_, Option<[u8; 16]>>(4)?
                .is_some_and(|o| current.contains(&SessionId(o))),
            Some(PackState::Absent) => purpose == Purpose::Read,
            Some(PackState::Condemned) => purpose == Purpose::Rescue,
            Some(PackState::Gone) | None => false,
        };
        if usable {
            copies.push(copy);
        }
    }
    Ok(any)
}

fn usable_copies(
    connection: &Connection,
    id: &ChunkId,
    current: &HashSet<SessionId>,
    purpose: Purpose,
) -> Result<Vec<StoredCopy>, Trouble> {
    let mut copies = Vec::new();
    if collect_usable(connection, PREFERRED, id, current, purpose, &mut copies)? {
        collect_usable(connection, FURTHER, id, current, purpose, &mut copies)?;
    }
    Ok(copies)
}

fn best_copy(
    connection: &Connection,
    id: &ChunkId,
    current: &HashSet<SessionId>,
) -> Result<Option<StoredCopy>, Trouble> {
    let mut copies = Vec::new();
    let purpose = Purpose::Refer;
    let known = collect_usable(connection, PREFERRED, id, current, purpose, &mut copies)?;
    if known && !copies.first().is_some_and(StoredCopy::is_full) {
        collect_usable(connection, FURTHER, id, current, purpose, &mut copies)?;
    }
    Ok(copies.iter().find(|copy| copy.is_full()).or(copies.first()).copied())
}

/// What a [`ChunkPlace`] needs to know of a pack; does not change while the pack exists.
#[derive(Debug)]
pub(super) struct KnownPack {
    id: PackId,
    session: SessionId,
    kind: PackKind,
    size: u32,
    slots: Arc<[Slot]>,
}

/// Recently used packs. Two generations: when the young one is full it becomes the old one, which is dropped; what is
/// used out of the old one moves to the young one.
#[derive(Default)]
pub(super) struct PackCache {
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<u32, Arc<KnownPack>>,
    old: HashMap<u32, Arc<KnownPack>>,
    /// Bytes in `young`, slots counted as if none were shared.
    young_bytes: usize,
    /// The slots of the pack that was looked up last: packs of one session share them.
    last_slots: Option<(Vec<u8>, Arc<[Slot]>)>,
}

/// Bytes of one generation; about 9 000 packs with one slot each.
const GENERATION_BYTES: usize = 2 << 20;

impl PackCache {
    pub(super) fn forget(&self, handle: u32) {
        let mut generations = self.generations.lock();
        generations.young.remove(&handle);
        generations.old.remove(&handle);
    }

    fn known(&self, connection: &Connection, handle: u32) -> Result<Arc<KnownPack>, Trouble> {
        {
            let mut generations = self.generations.lock();
            if let Some(pack) = generations.young.get(&handle) {
                return Ok(pack.clone());
            }
            if let Some(pack) = generations.old.remove(&handle) {
                generations.keep(handle, &pack);
                return Ok(pack);
            }
        }
        let row = connection
            .prepare_cached("SELECT id, sid, kind, size, slots FROM pack WHERE h = ?1")?
            .query_row([handle], |row| {
                let slots: Vec<u8> = row.get(4)?;
                Ok((
                    PackId(row.get(0)?),
                    SessionId(row.get(1)?),
                    row.get::<_, i64>(2)?,
                    row.get::<_, u32>(3)?,
                    slots,
                ))
            })
            .optional()?;
        let (id, session, kind, size, column) =
            row.ok_or(Trouble::Damaged("a chunk is in a pack that is not there"))?;
        let shared = match &self.generations.lock().last_slots {
            Some((known, slots)) if *known == column => Some(slots.clone()),
            _ => None,
        };
        let slots = match shared {
            Some(slots) => slots,
            None => slots_of(connection, &column)?.into(),
        };
        let pack = Arc::new(KnownPack {
            id,
            session,
            kind: kind_from_number(kind)?,
            size,
            slots,
        });
        let mut generations = self.generations.lock();
        generations.last_slots = Some((column, pack.slots.clone()));
        generations.keep(handle, &pack);
        Ok(pack)
    }
}

impl Generations {
    fn keep(&mut self, handle: u32, pack: &Arc<KnownPack>) {
        if self.young_bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(handle, pack.clone()).is_none() {
            self.young_bytes += 128 + pack.slots.len() * 88;
        }
    }
}
