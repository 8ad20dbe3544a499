//! Changing what can be found: runs come and go, own packs are added and listed, packs are condemned.
//!
//! A pack's state is not set but derived, in one place ([`settle_pack`]), from four facts: which valid runs describe it,
//! whether it is condemned, whether an own session still has to list it, and whether the store was seen to lack it.

use super::{IndexError, LocalIndex, Trouble};
use crate::pure::crypto::Slot;
use crate::pure::format::blob::BlobType;
use crate::pure::format::codec::Reader;
use crate::pure::format::name::PackKind;
use crate::pure::format::pack::PackRecord;
use crate::pure::format::run::{RunChunk, RunContent, RunDelta, RunPack, StoredAs};
use crate::pure::id::{ChunkId, KeyId, PackId, SessionId};
use rusqlite::{CachedStatement, Connection, OptionalExtension, Statement, params};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

/// Whether chunks in a pack may be referred to. The numbers are ASCII words: far enough apart that a flipped bit does not
/// turn one into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PackState {
    /// Described by a valid run.
    Live = 0x4c49_5645,
    /// Condemned: never to be used again, though it may still exist.
    Condemned = 0x434f_4e44,
    /// No valid run describes it any more.
    Gone = 0x474f_4e45,
    /// Valid runs describe it, but the store does not have it, or not as long as they say. No target of deduplication; readers
    /// still try it, for it may come back ([`LocalIndex::mark_there`]).
    Absent = 0x4142_5345,
    /// Durable, and waiting for a run of this machine's to be accepted.
    Mine = 0x4d49_4e45,
}

impl PackState {
    pub(super) fn from_number(number: i64) -> Result<PackState, Trouble> {
        use PackState::{Absent, Condemned, Gone, Live, Mine};
        [Live, Condemned, Gone, Absent, Mine]
            .into_iter()
            .find(|state| *state as i64 == number)
            .ok_or(Trouble::Damaged("a pack is in no known state"))
    }
}

/// Under which name the accepted losses are remembered.
const ACCEPTED: &str = "accepted-losses";

/// `run.state` of a run that this machine wrote and whose session has not ended.
const LISTED: i64 = 0x4c49_5354;
/// `run.state` of a run whose import in parts has begun: its packs do not count yet, but they are not tidied away either.
const IMPORTING: i64 = 0x494e_2e2e;
/// `run.state` of a run that is accepted and imported.
const IMPORTED: i64 = 0x494d_504f;

/// A pack of this machine's that is durable and that no accepted run lists yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPack {
    pub pack: PackId,
    /// The session in the pack's name.
    pub session: SessionId,
    pub kind: PackKind,
    pub size: u32,
    /// In frame order.
    pub slots: Vec<Slot>,
    pub crc64nvme: u64,
    pub body_hash24: [u8; 24],
    /// In frame order.
    pub records: Vec<PackRecord>,
}

/// One copy of a chunk as its row has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredCopy {
    pub pack: u32,
    pub offset: u32,
    pub stored_as: StoredAs,
    pub stored_len: u32,
}

impl StoredCopy {
    /// As [`Self::type_and_len`] and the other fields have it; `None` if these are no copy.
    pub(super) fn from_words(pack: u32, offset: u32, type_and_len: u32) -> Option<StoredCopy> {
        Some(StoredCopy {
            pack,
            offset,
            stored_as: stored_as(type_and_len)?,
            stored_len: type_and_len & 0x0fff_ffff,
        })
    }

    pub(super) fn type_and_len(&self) -> u32 {
        (self.stored_as as u32) << 28 | self.stored_len
    }

    /// Columns `off` and `tl` of the row.
    fn columns(&self, id: &ChunkId) -> (i64, i64) {
        let check = row_check(id, self.pack, self.offset, self.type_and_len());
        (
            i64::from(self.offset) | i64::from(check) << 32,
            i64::from(self.type_and_len()),
        )
    }

    /// Takes a row apart again.
    pub(super) fn from_columns(id: &ChunkId, pack: i64, off: i64, tl: i64) -> Result<StoredCopy, Trouble> {
        let damaged = Trouble::Damaged("a chunk row does not have the check that belongs to it");
        let (Ok(pack), Ok(type_and_len), Ok(off)) = (u32::try_from(pack), u32::try_from(tl), u64::try_from(off)) else {
            return Err(damaged);
        };
        let offset = off as u32;
        if off >> 32 != u64::from(row_check(id, pack, offset, type_and_len)) {
            return Err(damaged);
        }
        StoredCopy::from_words(pack, offset, type_and_len).ok_or(damaged)
    }

    pub(super) fn is_full(&self) -> bool {
        self.stored_as != StoredAs::Delta
    }
}

fn stored_as(type_and_len: u32) -> Option<StoredAs> {
    Some(match type_and_len >> 28 {
        0 => StoredAs::Data,
        1 => StoredAs::Node,
        2 => StoredAs::List,
        3 => StoredAs::Manifest,
        8 => StoredAs::Delta,
        _ => return None,
    })
}

/// Sixteen bits that notice a row whose bytes have changed. SQLite has no checksums, and a row that points at another
/// pack would make a backup refer to something that is not there. Not against malice: who can write here can do worse.
fn row_check(id: &ChunkId, pack: u32, offset: u32, type_and_len: u32) -> u16 {
    let mut sum = mixed(id);
    for word in [u64::from(pack) << 32 | u64::from(offset), u64::from(type_and_len)] {
        sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    (sum.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 48) as u16
}

fn mixed(id: &ChunkId) -> u64 {
    id.as_bytes().chunks_exact(8).fold(0x243f_6a88_85a3_08d3, |sum, bytes| {
        let word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes"));
        (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

/// Column `base` of a delta row: the base and four bytes of check.
fn base_column(id: &ChunkId, pack: u32, base: &ChunkId) -> [u8; 36] {
    let sum = (mixed(id) ^ mixed(base).rotate_left(17) ^ u64::from(pack)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let mut column = [0; 36];
    column[..32].copy_from_slice(base.as_bytes());
    column[32..].copy_from_slice(&sum.to_le_bytes()[4..]);
    column
}

/// Returns what a delta copy is a delta against.
pub(super) fn base_of(connection: &Connection, id: &ChunkId, pack: u32) -> Result<Option<ChunkId>, Trouble> {
    let column: Option<[u8; 36]> = connection
        .prepare_cached("SELECT base FROM delta WHERE id = ?1 AND pack = ?2")?
        .query_row(params![id.as_bytes(), pack], |row| row.get(0))
        .optional()?;
    column
        .map(|column| {
            let base = ChunkId::from_slice(&column[..32]).expect("the column has 36 bytes");
            match base_column(id, pack, &base) == column {
                true => Ok(base),
                false => Err(Trouble::Damaged(
                    "a delta row does not have the check that belongs to it",
                )),
            }
        })
        .transpose()
}

impl LocalIndex {
    /// Returns the names of the runs that are imported.
    pub fn known_runs(&self) -> Result<HashSet<String>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT name FROM run WHERE state = ?1")?;
            let names = statement
                .query_map([IMPORTED], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            Ok(names)
        })
    }

    /// Takes a valid run in, in one transaction. Doing it again changes nothing.
    ///
    /// `content` must be sorted, as decoding a run guarantees; unsorted content is only slower.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] if records refer to packs or slots that the run does not have.
    pub fn import_run(
        &self,
        name: &str,
        level: u8,
        session: SessionId,
        kid: KeyId,
        content: &RunContent,
    ) -> Result<(), IndexError> {
        self.add_chunks(
            |connection| {
                if run_state(connection, name)? == Some(IMPORTED) {
                    return Ok(());
                }
                let packs = describe_packs(connection, name, &content.slots, &content.packs, &self.packs)?;
                let run = put_run(
                    connection,
                    name,
                    level,
                    &session,
                    &kid,
                    0,
                    IMPORTED,
                    content.chunks.len(),
                    &packs,
                )?;
                take_over(connection, run)?;
                insert_chunks(connection, name, &content.chunks, &content.deltas, &packs)
            },
            |add| content.chunks.iter().for_each(|chunk| add(&chunk.id)),
        )
    }

    /// Takes in a run that is too large for one transaction: `head` has the slots and packs of all parts, and
    /// `next_part` hands out chunks and deltas until it returns `None`. The run counts, and its packs can be found, when
    /// this has returned; if it fails before that, calling it again continues to be right.
    ///
    /// # Errors
    /// As [`Self::import_run`], and whatever `next_part` fails with.
    pub fn import_run_in_parts<E: From<IndexError>>(
        &self,
        name: &str,
        level: u8,
        session: SessionId,
        kid: KeyId,
        head: &RunContent,
        next_part: &mut dyn FnMut() -> Result<Option<RunContent>, E>,
    ) -> Result<(), E> {
        if self.read(|connection| run_state(connection, name))? == Some(IMPORTED) {
            return Ok(());
        }
        let packs = self.write(|connection| {
            let packs = describe_packs(connection, name, &head.slots, &head.packs, &self.packs)?;
            put_run(connection, name, level, &session, &kid, 0, IMPORTING, 0, &packs)?;
            Ok(packs)
        })?;
        let mut chunks = 0;
        while let Some(part) = next_part()? {
            chunks += part.chunks.len();
            self.add_chunks(
                |connection| insert_chunks(connection, name, &part.chunks, &part.deltas, &packs),
                |add| part.chunks.iter().for_each(|chunk| add(&chunk.id)),
            )?;
        }
        self.write(|connection| {
            let run = put_run(connection, name, level, &session, &kid, 0, IMPORTED, chunks, &packs)?;
            take_over(connection, run)
        })?;
        Ok(())
    }

    /// Lets a compacted run take the place of its inputs without reading it: it describes what they describe, except for
    /// the packs that it has dropped. False, and nothing done, unless all inputs are imported.
    ///
    /// # Errors
    /// If the database fails.
    pub fn relabel_runs(
        &self,
        name: &str,
        level: u8,
        session: SessionId,
        kid: KeyId,
        inputs: &[String],
        dropped: &[PackId],
    ) -> Result<bool, IndexError> {
        self.write(|connection| {
            if run_state(connection, name)? == Some(IMPORTED) {
                return Ok(true);
            }
            for input in inputs {
                if run_state(connection, input)? != Some(IMPORTED) {
                    return Ok(false);
                }
            }
            let run = put_run(connection, name, level, &session, &kid, 0, IMPORTED, 0, &[])?;
            for input in inputs {
                connection
                    .prepare_cached(
                        "INSERT OR IGNORE INTO run_pack SELECT pack, ?1 FROM run_pack
                         WHERE run = (SELECT h FROM run WHERE name = ?2)",
                    )?
                    .execute(params![run, input])?;
            }
            for pack in dropped {
                connection
                    .prepare_cached(
                        "DELETE FROM run_pack WHERE pack = (SELECT h FROM pack WHERE id = ?1) AND run = ?2",
                    )?
                    .execute(params![pack.as_bytes(), run])?;
            }
            connection.execute(
                "UPDATE run SET npack = (SELECT count(*) FROM run_pack WHERE run = ?1),
                        nchunk = (SELECT coalesce(sum(nblob), 0) FROM run_pack JOIN pack ON pack.h = run_pack.pack WHERE run = ?1)
                 WHERE h = ?1",
                [run],
            )?;
            // As for any accepted run; normally there are none, for its inputs were accepted before.
            let mut statement = connection.prepare_cached(
                "SELECT pack FROM run_pack JOIN pack ON pack.h = run_pack.pack WHERE run = ?1 AND owner IS NOT NULL",
            )?;
            let owned = statement.query_map([run], |row| row.get(0))?.collect::<Result<Vec<u32>, _>>()?;
            owned.into_iter().try_for_each(|pack| disown(connection, pack))?;
            Ok(true)
        })
    }

    /// Forgets the runs of `known` that are not in `valid`. Packs that no valid run describes are gone from then on.
    /// Returns how many runs were forgotten. Runs of own sessions that have not ended stay.
    ///
    /// `known` is what [`Self::known_runs`] returned before the repository was asked what is valid: a run that another
    /// process has taken in since is not in that answer and is valid all the same.
    ///
    /// # Errors
    /// If the database fails.
    pub fn retain_runs(&self, known: &HashSet<String>, valid: &HashSet<String>) -> Result<usize, IndexError> {
        if known.is_subset(valid) {
            return Ok(0);
        }
        self.write(|connection| {
            let mut statement = connection.prepare_cached("SELECT h, name, state FROM run WHERE state IN (?1, ?2)")?;
            let runs = statement
                .query_map([IMPORTED, IMPORTING], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
                })?
                .collect::<Result<Vec<_>, _>>()?;
            let mut forgotten = 0;
            for (run, name, state) in runs {
                if !valid.contains(&name) && (known.contains(&name) || state == IMPORTING) {
                    forget_run(connection, run)?;
                    forgotten += 1;
                }
            }
            Ok(forgotten)
        })
    }

    /// Adds a durable pack that no run lists yet, with its chunks: from now on they are found by this process, as long as
    /// the pack's session is one that [`LocalIndex::start_session`] has started here.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] if a record cannot be one.
    pub fn add_pack(&self, pack: &OwnPack) -> Result<(), IndexError> {
        self.add_chunks(
            |connection| {
                let name = pack.pack.to_string();
                let described = RunPack {
                    pack: pack.pack,
                    session: pack.session,
                    size: pack.size,
                    blob_count: u32::try_from(pack.records.len()).unwrap_or(u32::MAX),
                    kind: pack.kind,
                    slots: 0..u32::try_from(pack.slots.len()).unwrap_or(u32::MAX),
                    crc64nvme: pack.crc64nvme,
                    body_hash24: pack.body_hash24,
                };
                let handles = describe_packs(connection, &name, &pack.slots, &[described], &self.packs)?;
                let handle = handles[0];
                connection
                    .prepare_cached("INSERT OR REPLACE INTO own_pack VALUES (?1, ?2)")?
                    .execute(params![handle, encode_records(&pack.records)])?;
                connection
                    .prepare_cached("UPDATE pack SET owner = ?2 WHERE h = ?1")?
                    .execute(params![handle, pack.session.as_bytes()])?;
                settle_pack(connection, handle)?;
                let (chunks, deltas) = as_run(&pack.records);
                insert_chunks(connection, &name, &chunks, &deltas, &handles)
            },
            |add| pack.records.iter().for_each(|record| add(&record.id)),
        )
    }

    /// Returns the packs that a session of this machine's still has to list in a run, in the order in which they were
    /// added; for the next run, or for adoption if the session is dead. Condemned ones are left out.
    ///
    /// # Errors
    /// If the database fails.
    pub fn unlisted_packs(&self, session: &SessionId) -> Result<Vec<OwnPack>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT pack.h, id, sid, kind, size, slots, crc64, bhash, records
                 FROM pack JOIN own_pack ON own_pack.pack = pack.h
                 WHERE owner = ?1 AND state = ?2 AND NOT EXISTS (SELECT 1 FROM run_pack WHERE run_pack.pack = pack.h)
                 ORDER BY pack.h",
            )?;
            let mut rows = statement.query(params![session.as_bytes(), PackState::Mine as i64])?;
            let mut packs = Vec::new();
            while let Some(row) = rows.next()? {
                packs.push(OwnPack {
                    pack: PackId(row.get(1)?),
                    session: SessionId(row.get(2)?),
                    kind: kind_from_number(row.get(3)?)?,
                    size: row.get(4)?,
                    slots: slots_of(connection, &row.get::<_, Vec<u8>>(5)?)?,
                    crc64nvme: row.get::<_, i64>(6)? as u64,
                    body_hash24: row.get(7)?,
                    records: decode_records(&row.get::<_, Vec<u8>>(8)?)?,
                });
            }
            Ok(packs)
        })
    }

    /// Hands packs that a dead session left unlisted to a session that will list them. Returns those that were handed
    /// over: not condemned, not listed by now, not handed to another session before.
    ///
    /// # Errors
    /// If the database fails.
    pub fn adopt_packs(
        &self,
        packs: &[PackId],
        dead: &SessionId,
        session: &SessionId,
    ) -> Result<Vec<PackId>, IndexError> {
        self.write(|connection| {
            let mut statement = connection.prepare_cached(
                "UPDATE pack SET owner = ?2 WHERE id = ?1 AND state = ?3 AND owner = ?4
                 AND NOT EXISTS (SELECT 1 FROM run_pack WHERE run_pack.pack = pack.h)",
            )?;
            let mut adopted = Vec::new();
            for pack in packs {
                let changed = statement.execute(params![
                    pack.as_bytes(),
                    session.as_bytes(),
                    PackState::Mine as i64,
                    dead.as_bytes()
                ])?;
                if changed > 0 {
                    adopted.push(*pack);
                }
            }
            Ok(adopted)
        })
    }

    /// Notes that `packs` are listed in the durable run `run_name` of an own session that has not ended.
    ///
    /// # Errors
    /// If the database fails.
    pub fn packs_listed(
        &self,
        run_name: &str,
        session: &SessionId,
        kid: &KeyId,
        number: u32,
        packs: &[PackId],
    ) -> Result<(), IndexError> {
        self.write(|connection| {
            if run_state(connection, run_name)? == Some(IMPORTED) {
                return Ok(());
            }
            let mut handles = Vec::with_capacity(packs.len());
            let mut chunks = 0;
            for pack in packs {
                let found: Option<(u32, i64)> = connection
                    .prepare_cached("SELECT h, nblob FROM pack WHERE id = ?1")?
                    .query_row([pack.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                if let Some((handle, blobs)) = found {
                    handles.push(handle);
                    chunks += usize::try_from(blobs).unwrap_or(0);
                }
            }
            put_run(connection, run_name, 0, session, kid, number, LISTED, chunks, &handles).map(drop)
        })
    }

    /// Notes that the outcome of an own session is published. Runs with a number in `accepted` (inclusive ranges) count
    /// from now on; packs of its other runs are unlisted again, so that another session may adopt them.
    ///
    /// # Errors
    /// If the database fails.
    pub fn accept_session(&self, session: &SessionId, accepted: &[(u32, u32)]) -> Result<(), IndexError> {
        self.write(|connection| {
            let mut statement = connection.prepare_cached("SELECT h, number FROM run WHERE sid = ?1 AND state = ?2")?;
            let runs = statement
                .query_map(params![session.as_bytes(), LISTED], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?))
                })?
                .collect::<Result<Vec<_>, _>>()?;
            for (run, number) in runs {
                if accepted.iter().any(|(first, last)| (*first..=*last).contains(&number)) {
                    connection.execute("UPDATE run SET state = ?2 WHERE h = ?1", params![run, IMPORTED])?;
                    take_over(connection, run)?;
                } else {
                    forget_run(connection, run)?;
                }
            }
            Ok(())
        })
    }

    /// Forgets that this machine has a pack to list: adoption has found that it is not at the store.
    ///
    /// # Errors
    /// If the database fails.
    pub fn forget_pack(&self, pack: &PackId) -> Result<(), IndexError> {
        self.write(|connection| match pack_handle(connection, pack)? {
            Some(handle) => disown(connection, handle),
            None => Ok(()),
        })
    }

    /// Takes a condemnation in. Its packs are never found again, whatever runs say, also those that are still unknown.
    ///
    /// # Errors
    /// If the database fails.
    pub fn add_condemned(
        &self,
        gc: &SessionId,
        kid: &KeyId,
        packs: &[PackId],
        lost: &[ChunkId],
    ) -> Result<(), IndexError> {
        self.write(|connection| {
            let mut remember = connection.prepare_cached("INSERT OR IGNORE INTO gc_pack VALUES (?1, ?2)")?;
            let mut condemn =
                connection.prepare_cached("UPDATE pack SET state = ?2 WHERE id = ?1 AND state IN (?3, ?4, ?5)")?;
            for pack in packs {
                remember.execute(params![pack.as_bytes(), gc.as_bytes()])?;
                condemn.execute(params![
                    pack.as_bytes(),
                    PackState::Condemned as i64,
                    PackState::Live as i64,
                    PackState::Mine as i64,
                    PackState::Absent as i64
                ])?;
            }
            let mut lose = connection.prepare_cached("INSERT OR IGNORE INTO lost VALUES (?1)")?;
            for id in lost {
                lose.execute([id.as_bytes()])?;
            }
            connection.execute(
                "INSERT OR REPLACE INTO gc VALUES (?1, ?2)",
                params![gc.as_bytes(), kid.as_bytes()],
            )?;
            Ok(())
        })
    }

    /// Returns the condemnations that were taken in.
    ///
    /// # Errors
    /// If the database fails.
    pub fn known_gcs(&self) -> Result<HashSet<SessionId>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT sid FROM gc")?;
            let sessions = statement
                .query_map([], |row| row.get(0).map(SessionId))?
                .collect::<Result<_, _>>()?;
            Ok(sessions)
        })
    }

    /// Returns the packs of one condemnation.
    ///
    /// # Errors
    /// If the database fails.
    pub fn condemned_by(&self, gc: &SessionId) -> Result<Vec<PackId>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT pack_id FROM gc_pack WHERE gc = ?1")?;
            let packs = statement
                .query_map([gc.as_bytes()], |row| row.get(0).map(PackId))?
                .collect::<Result<_, _>>()?;
            Ok(packs)
        })
    }

    /// True if some chunk is declared lost, as of the last [`Self::look_for_lost`]. Asked for every unchanged file, so it must
    /// not cost a transaction.
    pub fn has_lost(&self) -> bool {
        self.any_lost.load(Ordering::Acquire)
    }

    /// Looks whether any chunk is declared lost, by whichever process took that in.
    ///
    /// # Errors
    /// If the database fails.
    pub fn look_for_lost(&self) -> Result<(), IndexError> {
        let exists: i64 = self.read(|connection| {
            Ok(connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM lost)")?
                .query_row([], |row| row.get(0))?)
        })?;
        self.any_lost.store(exists != 0, Ordering::Release);
        Ok(())
    }

    /// Returns the chunks that are declared lost, ascending: those that have been stored again since are not among them.
    ///
    /// # Errors
    /// If the database fails.
    pub fn lost_chunks(&self) -> Result<Vec<ChunkId>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT id FROM lost ORDER BY id")?;
            let ids = statement
                .query_map([], |row| row.get(0).map(ChunkId))?
                .collect::<Result<_, _>>()?;
            Ok(ids)
        })
    }

    /// Forgets that chunks are lost which have been stored again since.
    ///
    /// # Errors
    /// If the database fails.
    pub fn forget_healed(&self) -> Result<(), IndexError> {
        if !self.has_lost() {
            return Ok(());
        }
        let mut healed = Vec::new();
        for id in self.lost_chunks()? {
            if self.is_stored(&id)? {
                healed.push(id);
            }
        }
        if !healed.is_empty() {
            self.write(|connection| {
                let mut heal = connection.prepare_cached("DELETE FROM lost WHERE id = ?1")?;
                for id in &healed {
                    heal.execute([id.as_bytes()])?;
                }
                Ok(())
            })?;
        }
        self.look_for_lost()
    }

    /// Takes note that an admin accepts the loss of these chunks.
    ///
    /// # Errors
    /// If the database fails.
    pub fn accept_losses(&self, ids: &[ChunkId]) -> Result<(), IndexError> {
        let mut all = self.accepted_losses()?;
        all.extend(ids);
        let bytes: Vec<u8> = all.iter().flat_map(|id| id.0).collect();
        self.remember(ACCEPTED, &bytes)
    }

    /// Returns the chunks whose loss an admin has accepted.
    ///
    /// # Errors
    /// If the database fails.
    pub fn accepted_losses(&self) -> Result<HashSet<ChunkId>, IndexError> {
        let bytes = self.recall(ACCEPTED)?.unwrap_or_default();
        let (ids, _) = bytes.as_chunks::<32>();
        Ok(ids.iter().map(|id| ChunkId(*id)).collect())
    }

    /// Whether a chunk was declared lost by a quarantine.
    ///
    /// # Errors
    /// If the database fails.
    pub fn is_lost(&self, id: &ChunkId) -> Result<bool, IndexError> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached("SELECT 1 FROM lost WHERE id = ?1")?
                .exists([id.as_bytes()])?)
        })
    }

    /// Notes that the store does not have a pack as runs describe it: it is missing, has another size, or was read and found
    /// damaged. New snapshots do not refer to it; reading tries it last.
    ///
    /// # Errors
    /// If the database fails.
    pub fn mark_absent(&self, pack: &PackId) -> Result<(), IndexError> {
        self.set_state(pack, PackState::Live, PackState::Absent)?;
        *self.any_absent.lock() = Some(true);
        Ok(())
    }

    /// Notes that a pack which was absent is at the store after all, as runs describe it.
    ///
    /// # Errors
    /// If the database fails.
    pub fn mark_there(&self, pack: &PackId) -> Result<(), IndexError> {
        self.set_state(pack, PackState::Absent, PackState::Live)?;
        *self.any_absent.lock() = None;
        Ok(())
    }

    fn set_state(&self, pack: &PackId, from: PackState, to: PackState) -> Result<(), IndexError> {
        self.write(|connection| {
            connection
                .prepare_cached("UPDATE pack SET state = ?3 WHERE id = ?1 AND state = ?2")?
                .execute(params![pack.as_bytes(), from as i64, to as i64])?;
            Ok(())
        })
    }

    /// True if a pack that runs describe is absent: what refers to it has to be stored again.
    ///
    /// # Errors
    /// If the database fails.
    pub fn has_absent(&self) -> Result<bool, IndexError> {
        let mut known = self.any_absent.lock();
        if let Some(any) = *known {
            return Ok(any);
        }
        let any = self.read(|connection| {
            // A number in the text and not a parameter, so that SQLite sees that the partial index will do.
            let sql = format!("SELECT 1 FROM pack WHERE state = {}", PackState::Absent as i64);
            Ok(connection.prepare_cached(&sql)?.exists([])?)
        })?;
        *known = Some(any);
        Ok(any)
    }

    /// Says that something is missing in the repository which would say what is where. Until the process ends, what is not
    /// known counts as absent.
    pub fn set_incomplete(&self) {
        self.incomplete.store(true, Ordering::Release);
    }

    /// True if what a snapshot refers to may be where nobody finds it: declared lost, in a pack that is absent, or in one that no run
    /// lists any more. A backup then looks up what it would otherwise take over unseen.
    ///
    /// # Errors
    /// If the database fails.
    pub fn may_lack(&self) -> Result<bool, IndexError> {
        Ok(self.incomplete.load(Ordering::Acquire) || self.has_lost() || self.has_absent()?)
    }

    /// Removes the rows of packs that are gone: reads every row, so once in a while only. Returns how many packs went.
    ///
    /// # Errors
    /// If the database fails.
    pub fn tidy(&self) -> Result<usize, IndexError> {
        let gone = self.read(|connection| {
            // A run that is not accepted yet may still need one that was forgotten meanwhile.
            let mut statement = connection.prepare(
                "SELECT h FROM pack WHERE state = ?1 AND NOT EXISTS (SELECT 1 FROM run_pack WHERE run_pack.pack = pack.h)",
            )?;
            let handles = statement
                .query_map([PackState::Gone as i64], |row| row.get(0))?
                .collect::<Result<HashSet<u32>, _>>()?;
            Ok(handles)
        })?;
        if gone.is_empty() {
            return Ok(0);
        }
        let mut after = ChunkId([0; 32]);
        // In steps, so that others get their turn.
        while let Some(last) = self.write(|connection| tidy_chunks(connection, &gone, &after))? {
            after = last;
        }
        self.write(|connection| {
            let mut removed = 0;
            for handle in &gone {
                let went = connection
                    .prepare_cached(
                        "DELETE FROM pack WHERE h = ?1 AND state = ?2
                         AND NOT EXISTS (SELECT 1 FROM run_pack WHERE run_pack.pack = pack.h)",
                    )?
                    .execute(params![handle, PackState::Gone as i64])?;
                if went > 0 {
                    removed += 1;
                    connection
                        .prepare_cached("DELETE FROM scrub WHERE pack = ?1")?
                        .execute([handle])?;
                }
            }
            Ok(removed)
        })
    }
}

/// Rows looked at in one transaction of [`LocalIndex::tidy`].
const TIDY_STEP: usize = 20_000;

/// Removes copies in packs that are gone among the ids after `after`. Returns the last id looked at, or `None` at the end.
fn tidy_chunks(connection: &Connection, gone: &HashSet<u32>, after: &ChunkId) -> Result<Option<ChunkId>, Trouble> {
    let is_gone = |pack: u32| -> Result<bool, Trouble> {
        // A run that was imported meanwhile may have brought it back.
        Ok(gone.contains(&pack)
            && connection
                .prepare_cached(
                    "SELECT 1 FROM pack WHERE h = ?1 AND state = ?2
                     AND NOT EXISTS (SELECT 1 FROM run_pack WHERE run_pack.pack = pack.h)",
                )?
                .exists(params![pack, PackState::Gone as i64])?)
    };
    let mut statement =
        connection.prepare_cached("SELECT id, pack, off, tl FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    let mut rows = statement.query(params![after.as_bytes(), TIDY_STEP as i64])?;
    let (mut last, mut stale) = (None, Vec::new());
    while let Some(row) = rows.next()? {
        let id = ChunkId(row.get(0)?);
        let copy = StoredCopy::from_columns(&id, row.get(1)?, row.get(2)?, row.get(3)?)?;
        if gone.contains(&copy.pack) {
            stale.push((id, copy.pack));
        }
        last = Some(id);
    }
    drop(rows);
    let mut duplicates = connection.prepare_cached("SELECT id, pack FROM chunk_dup WHERE id > ?1 AND id <= ?2")?;
    let mut rows = duplicates.query(params![
        after.as_bytes(),
        last.unwrap_or(ChunkId([0xff; 32])).as_bytes()
    ])?;
    let mut stale_duplicates = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, pack) = (ChunkId(row.get(0)?), row.get::<_, u32>(1)?);
        if gone.contains(&pack) {
            stale_duplicates.push((id, pack));
        }
    }
    drop(rows);
    for (id, pack) in stale_duplicates {
        if is_gone(pack)? {
            remove_copy(
                connection,
                "DELETE FROM chunk_dup WHERE id = ?1 AND pack = ?2",
                &id,
                pack,
            )?;
        }
    }
    for (id, pack) in stale {
        if !is_gone(pack)? {
            continue;
        }
        remove_copy(connection, "DELETE FROM chunk WHERE id = ?1 AND pack = ?2", &id, pack)?;
        let mut others = copies(
            &mut *connection.prepare_cached("SELECT pack, off, tl FROM chunk_dup WHERE id = ?1")?,
            &id,
        )?;
        let mut best = None;
        for copy in others.drain(..) {
            let rank = preference(&copy, state_of(connection, copy.pack)?);
            if best.is_none_or(|(known, _)| rank > known) {
                best = Some((rank, copy));
            }
        }
        if let Some((_, copy)) = best {
            connection
                .prepare_cached("DELETE FROM chunk_dup WHERE id = ?1 AND pack = ?2")?
                .execute(params![id.as_bytes(), copy.pack])?;
            put_copy(
                &mut *connection.prepare_cached("INSERT INTO chunk VALUES (?1, ?2, ?3, ?4)")?,
                &id,
                &copy,
            )?;
        }
    }
    Ok(last)
}

fn remove_copy(connection: &Connection, sql: &str, id: &ChunkId, pack: u32) -> Result<(), Trouble> {
    for sql in [sql, "DELETE FROM delta WHERE id = ?1 AND pack = ?2"] {
        connection.prepare_cached(sql)?.execute(params![id.as_bytes(), pack])?;
    }
    Ok(())
}

fn run_state(connection: &Connection, name: &str) -> Result<Option<i64>, Trouble> {
    Ok(connection
        .prepare_cached("SELECT state FROM run WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?)
}

pub(super) fn pack_handle(connection: &Connection, pack: &PackId) -> Result<Option<u32>, Trouble> {
    Ok(connection
        .prepare_cached("SELECT h FROM pack WHERE id = ?1")?
        .query_row([pack.as_bytes()], |row| row.get(0))
        .optional()?)
}

/// Writes the row of a run and which packs it describes; returns its handle.
#[allow(clippy::too_many_arguments)]
fn put_run(
    connection: &Connection,
    name: &str,
    level: u8,
    session: &SessionId,
    kid: &KeyId,
    number: u32,
    state: i64,
    chunks: usize,
    packs: &[u32],
) -> Result<i64, Trouble> {
    connection
        .prepare_cached(
            "INSERT INTO run (name, level, sid, kid, number, state, nchunk, npack) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (name) DO UPDATE SET level = ?2, sid = ?3, kid = ?4, state = ?6, nchunk = ?7, npack = ?8",
        )?
        .execute(params![
            name,
            level,
            session.as_bytes(),
            kid.as_bytes(),
            number,
            state,
            i64::try_from(chunks).unwrap_or(i64::MAX),
            i64::try_from(packs.len()).unwrap_or(i64::MAX)
        ])?;
    let run: i64 = connection
        .prepare_cached("SELECT h FROM run WHERE name = ?1")?
        .query_row([name], |row| row.get(0))?;
    let mut statement = connection.prepare_cached("INSERT OR IGNORE INTO run_pack VALUES (?1, ?2)")?;
    for pack in packs {
        statement.execute(params![pack, run])?;
    }
    Ok(run)
}

fn packs_of_run(connection: &Connection, run: i64) -> Result<Vec<u32>, Trouble> {
    let mut statement = connection.prepare_cached("SELECT pack FROM run_pack WHERE run = ?1")?;
    let packs = statement
        .query_map([run], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(packs)
}

/// The packs of an accepted run are nobody's to list any more.
fn take_over(connection: &Connection, run: i64) -> Result<(), Trouble> {
    packs_of_run(connection, run)?
        .into_iter()
        .try_for_each(|pack| disown(connection, pack))
}

fn disown(connection: &Connection, pack: u32) -> Result<(), Trouble> {
    connection
        .prepare_cached("UPDATE pack SET owner = NULL WHERE h = ?1 AND owner IS NOT NULL")?
        .execute([pack])?;
    connection
        .prepare_cached("DELETE FROM own_pack WHERE pack = ?1")?
        .execute([pack])?;
    settle_pack(connection, pack)
}

fn forget_run(connection: &Connection, run: i64) -> Result<(), Trouble> {
    let packs = packs_of_run(connection, run)?;
    connection
        .prepare_cached("DELETE FROM run_pack WHERE run = ?1")?
        .execute([run])?;
    connection
        .prepare_cached("DELETE FROM run WHERE h = ?1")?
        .execute([run])?;
    packs.into_iter().try_for_each(|pack| settle_pack(connection, pack))
}

/// Derives the state of a pack. A condemned one stays so until it is gone.
fn settle_pack(connection: &Connection, pack: u32) -> Result<(), Trouble> {
    connection
        .prepare_cached(
            "UPDATE pack SET state = CASE
               WHEN EXISTS (SELECT 1 FROM run_pack JOIN run ON run.h = run_pack.run
                            WHERE run_pack.pack = ?1 AND run.state = ?2)
               THEN iif(state = ?4 OR EXISTS (SELECT 1 FROM gc_pack WHERE pack_id = pack.id), ?4, iif(state = ?7, ?7, ?3))
               WHEN owner IS NOT NULL
               THEN iif(state = ?4 OR EXISTS (SELECT 1 FROM gc_pack WHERE pack_id = pack.id), ?4, ?5)
               ELSE ?6 END
             WHERE h = ?1",
        )?
        .execute(params![
            pack,
            IMPORTED,
            PackState::Live as i64,
            PackState::Condemned as i64,
            PackState::Mine as i64,
            PackState::Gone as i64,
            PackState::Absent as i64
        ])?;
    Ok(())
}

/// Finds or makes the rows of `packs` and of their slots; returns the handles in the same order. New ones are gone until
/// [`settle_pack`] knows better.
fn describe_packs(
    connection: &Connection,
    name: &str,
    slots: &[Slot],
    packs: &[RunPack],
    cache: &super::lookup::PackCache,
) -> Result<Vec<u32>, Trouble> {
    let wrong = |what| Trouble::Inconsistent {
        name: name.to_owned(),
        what,
    };
    let mut slot_handles: HashMap<u32, u32> = HashMap::new();
    let mut handles = Vec::with_capacity(packs.len());
    for pack in packs {
        let mut slot_column = Vec::new();
        for index in pack.slots.clone() {
            let slot = slots
                .get(index as usize)
                .ok_or_else(|| wrong("a pack uses a slot that is not there"))?;
            let handle = match slot_handles.get(&index) {
                Some(handle) => *handle,
                None => {
                    let handle = slot_handle(connection, slot)?;
                    slot_handles.insert(index, handle);
                    handle
                }
            };
            slot_column.extend_from_slice(&handle.to_le_bytes());
        }
        handles.push(describe_pack(connection, pack, &slot_column, cache)?);
    }
    Ok(handles)
}

fn slot_handle(connection: &Connection, slot: &Slot) -> Result<u32, Trouble> {
    let known: Option<u32> = connection
        .prepare_cached("SELECT h FROM slot WHERE slot = ?1")?
        .query_row([slot.0], |row| row.get(0))
        .optional()?;
    match known {
        Some(handle) => Ok(handle),
        None => {
            connection
                .prepare_cached("INSERT INTO slot (slot) VALUES (?1)")?
                .execute([slot.0])?;
            handle_from(connection.last_insert_rowid())
        }
    }
}

fn handle_from(row: i64) -> Result<u32, Trouble> {
    u32::try_from(row).map_err(|_| Trouble::Damaged("a handle is larger than it can be"))
}

fn describe_pack(
    connection: &Connection,
    pack: &RunPack,
    slots: &[u8],
    cache: &super::lookup::PackCache,
) -> Result<u32, Trouble> {
    let (id, session, kind) = (pack.pack.as_bytes(), pack.session.as_bytes(), pack.kind as i64);
    let (crc, hash) = (pack.crc64nvme as i64, &pack.body_hash24);
    let Some(handle) = pack_handle(connection, &pack.pack)? else {
        connection
            .prepare_cached(
                "INSERT INTO pack (id, sid, kind, state, size, nblob, slots, crc64, bhash)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                id,
                session,
                kind,
                PackState::Gone as i64,
                pack.size,
                pack.blob_count,
                slots,
                crc,
                hash
            ])?;
        return handle_from(connection.last_insert_rowid());
    };
    // Runs agree on a pack. If they should not, the last one to be taken in wins; a wrong one shows when it is read.
    let changed = connection
        .prepare_cached(
            "UPDATE pack SET sid = ?2, kind = ?3, size = ?4, nblob = ?5, slots = ?6, crc64 = ?7, bhash = ?8
             WHERE h = ?1 AND (sid, kind, size, nblob, slots, crc64, bhash) IS NOT (?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            handle,
            session,
            kind,
            pack.size,
            pack.blob_count,
            slots,
            crc,
            hash
        ])?;
    if changed > 0 {
        cache.forget(handle);
    }
    Ok(handle)
}

fn insert_chunks(
    connection: &Connection,
    name: &str,
    chunks: &[RunChunk],
    deltas: &[RunDelta],
    packs: &[u32],
) -> Result<(), Trouble> {
    let wrong = |what| Trouble::Inconsistent {
        name: name.to_owned(),
        what,
    };
    let handle = |index: u32| {
        packs
            .get(index as usize)
            .copied()
            .ok_or_else(|| wrong("a record uses a pack that is not there"))
    };
    let mut writer = CopyWriter::new(connection)?;
    for chunk in chunks {
        if chunk.stored_len >= 1 << 28 {
            return Err(wrong("a record is longer than any frame"));
        }
        let copy = StoredCopy {
            pack: handle(chunk.pack_ix)?,
            offset: chunk.offset,
            stored_as: chunk.stored_as,
            stored_len: chunk.stored_len,
        };
        writer.put(&chunk.id, &copy)?;
    }
    insert_deltas(connection, name, deltas, packs)
}

/// Adds copies of chunks. Runs have millions of rows, so statements are looked up once, and so is what is known of packs, which does
/// not change meanwhile.
pub(super) struct CopyWriter<'c> {
    connection: &'c Connection,
    insert: CachedStatement<'c>,
    select: CachedStatement<'c>,
    replace: CachedStatement<'c>,
    insert_other: CachedStatement<'c>,
    remove_other: CachedStatement<'c>,
    states: HashMap<u32, Option<PackState>>,
}

impl<'c> CopyWriter<'c> {
    pub(super) fn new(connection: &'c Connection) -> Result<CopyWriter<'c>, Trouble> {
        Ok(CopyWriter {
            connection,
            insert: connection.prepare_cached("INSERT INTO chunk VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING")?,
            select: connection.prepare_cached("SELECT pack, off, tl FROM chunk WHERE id = ?1")?,
            replace: connection.prepare_cached("INSERT OR REPLACE INTO chunk VALUES (?1, ?2, ?3, ?4)")?,
            insert_other: connection.prepare_cached("INSERT OR REPLACE INTO chunk_dup VALUES (?1, ?2, ?3, ?4)")?,
            remove_other: connection.prepare_cached("DELETE FROM chunk_dup WHERE id = ?1 AND pack = ?2")?,
            states: HashMap::new(),
        })
    }

    /// Adds one copy.
    pub(super) fn put(&mut self, id: &ChunkId, copy: &StoredCopy) -> Result<(), Trouble> {
        match put_copy(&mut self.insert, id, copy)? {
            0 => self.put_another(id, copy),
            _ => Ok(()),
        }
    }

    /// Adds a copy of a chunk that has one already: the better one goes to `chunk`, the other one to `chunk_dup`.
    fn put_another(&mut self, id: &ChunkId, copy: &StoredCopy) -> Result<(), Trouble> {
        let preferred = copies(&mut self.select, id)?;
        let preferred = preferred
            .first()
            .ok_or(Trouble::Damaged("a chunk row is not where its key is"))?;
        if preferred == copy {
            return Ok(());
        }
        if preferred.pack == copy.pack || self.preference(copy)? > self.preference(preferred)? {
            if preferred.pack != copy.pack {
                self.remove_other.execute(params![id.as_bytes(), copy.pack])?;
                put_copy(&mut self.insert_other, id, preferred)?;
            }
            put_copy(&mut self.replace, id, copy)?;
        } else {
            put_copy(&mut self.insert_other, id, copy)?;
        }
        Ok(())
    }

    fn preference(&mut self, copy: &StoredCopy) -> Result<(bool, bool, bool), Trouble> {
        let state = match self.states.get(&copy.pack) {
            Some(state) => *state,
            None => {
                let state = state_of(self.connection, copy.pack)?;
                self.states.insert(copy.pack, state);
                state
            }
        };
        Ok(preference(copy, state))
    }
}

/// Notes what copies of a run are deltas against.
pub(super) fn insert_deltas(
    connection: &Connection,
    name: &str,
    deltas: &[RunDelta],
    packs: &[u32],
) -> Result<(), Trouble> {
    let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO delta VALUES (?1, ?2, ?3)")?;
    for delta in deltas {
        let pack = packs
            .get(delta.pack_ix as usize)
            .copied()
            .ok_or_else(|| Trouble::Inconsistent {
                name: name.to_owned(),
                what: "a record uses a pack that is not there",
            })?;
        insert.execute(params![
            delta.id.as_bytes(),
            pack,
            base_column(&delta.id, pack, &delta.base)
        ])?;
    }
    Ok(())
}

/// Begins the import of a run of level 0 whose chunks come later: describes its packs and returns their handles.
pub(super) fn describe_run(
    connection: &Connection,
    index: &LocalIndex,
    name: &str,
    session: &SessionId,
    kid: &KeyId,
    content: &RunContent,
) -> Result<Vec<u32>, Trouble> {
    let packs = describe_packs(connection, name, &content.slots, &content.packs, &index.packs)?;
    if run_state(connection, name)? != Some(IMPORTED) {
        put_run(connection, name, 0, session, kid, 0, IMPORTING, 0, &packs)?;
    }
    Ok(packs)
}

/// Ends such an import: the run counts from then on.
pub(super) fn finish_run(
    connection: &Connection,
    name: &str,
    session: &SessionId,
    kid: &KeyId,
    chunks: usize,
    packs: &[u32],
) -> Result<(), Trouble> {
    let run = put_run(connection, name, 0, session, kid, 0, IMPORTED, chunks, packs)?;
    take_over(connection, run)
}

fn put_copy(statement: &mut Statement<'_>, id: &ChunkId, copy: &StoredCopy) -> Result<usize, Trouble> {
    let (off, tl) = copy.columns(id);
    Ok(statement.execute(params![id.as_bytes(), copy.pack, off, tl])?)
}

/// Returns the copies of one id in one of the two tables.
fn copies(statement: &mut Statement<'_>, id: &ChunkId) -> Result<Vec<StoredCopy>, Trouble> {
    let mut rows = statement.query([id.as_bytes()])?;
    let mut copies = Vec::new();
    while let Some(row) = rows.next()? {
        copies.push(StoredCopy::from_columns(id, row.get(0)?, row.get(1)?, row.get(2)?)?);
    }
    Ok(copies)
}

fn state_of(connection: &Connection, pack: u32) -> Result<Option<PackState>, Trouble> {
    let state: Option<i64> = connection
        .prepare_cached("SELECT state FROM pack WHERE h = ?1")?
        .query_row([pack], |row| row.get(0))
        .optional()?;
    state.map(PackState::from_number).transpose()
}

/// Usable before not usable, full before delta, described by a run before own. Only saves work: a lookup looks at every
/// copy before it says that there is none.
fn preference(copy: &StoredCopy, state: Option<PackState>) -> (bool, bool, bool) {
    let usable = matches!(state, Some(PackState::Live | PackState::Mine));
    (usable, copy.is_full(), state == Some(PackState::Live))
}

pub(super) fn kind_from_number(number: i64) -> Result<PackKind, Trouble> {
    match number {
        0 => Ok(PackKind::Data),
        1 => Ok(PackKind::Meta),
        _ => Err(Trouble::Damaged("a pack is of no known kind")),
    }
}

/// Looks up the slots that a pack row names.
pub(super) fn slots_of(connection: &Connection, column: &[u8]) -> Result<Vec<Slot>, Trouble> {
    let damaged = || Trouble::Damaged("a pack names a slot that is not there");
    let (handles, []) = column.as_chunks::<4>() else {
        return Err(damaged());
    };
    let mut statement = connection.prepare_cached("SELECT slot FROM slot WHERE h = ?1")?;
    handles
        .iter()
        .map(|handle| {
            let slot: Option<[u8; 88]> = statement
                .query_row([u32::from_le_bytes(*handle)], |row| row.get(0))
                .optional()?;
            slot.map(Slot).ok_or_else(damaged)
        })
        .collect()
}

/// Records of one pack as a run would have them.
fn as_run(records: &[PackRecord]) -> (Vec<RunChunk>, Vec<RunDelta>) {
    let mut chunks: Vec<RunChunk> = records
        .iter()
        .map(|record| RunChunk {
            id: record.id,
            pack_ix: 0,
            offset: record.offset,
            stored_as: match (record.base, record.ty) {
                (Some(_), _) => StoredAs::Delta,
                (None, BlobType::Data) => StoredAs::Data,
                (None, BlobType::Node) => StoredAs::Node,
                (None, BlobType::List) => StoredAs::List,
                (None, BlobType::Manifest) => StoredAs::Manifest,
            },
            stored_len: record.stored_len,
        })
        .collect();
    chunks.sort_unstable();
    let deltas = records
        .iter()
        .filter_map(|record| {
            Some(RunDelta {
                id: record.id,
                pack_ix: 0,
                base: record.base?,
            })
        })
        .collect();
    (chunks, deltas)
}

/// `ty u8 | offset u32 | stored_len u32 | raw_len u32 | id 32 | 0` or `… | 1 | base 32`, and a hash over all.
fn encode_records(records: &[PackRecord]) -> Vec<u8> {
    let mut out = Vec::with_capacity(records.len() * 46 + 32);
    for record in records {
        out.push(record.ty as u8);
        for number in [record.offset, record.stored_len, record.raw_len] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(record.id.as_bytes());
        out.push(u8::from(record.base.is_some()));
        out.extend_from_slice(record.base.as_ref().map_or(&[][..], |base| base.as_bytes()));
    }
    let hash = blake3::hash(&out);
    out.extend_from_slice(hash.as_bytes());
    out
}

fn decode_records(bytes: &[u8]) -> Result<Vec<PackRecord>, Trouble> {
    let damaged = || Trouble::Damaged("the records of an own pack do not have the hash that belongs to them");
    let (bytes, hash) = bytes.split_last_chunk::<32>().ok_or_else(damaged)?;
    if blake3::hash(bytes).as_bytes() != hash {
        return Err(damaged());
    }
    let mut reader = Reader::new(bytes);
    let mut records = Vec::with_capacity(bytes.len() / 46);
    let mut next = || -> Result<PackRecord, crate::pure::format::Malformed> {
        Ok(PackRecord {
            ty: BlobType::from_byte(reader.u8("type")?).ok_or(crate::pure::format::Malformed { what: "type" })?,
            offset: reader.u32("offset")?,
            stored_len: reader.u32("length")?,
            raw_len: reader.u32("length")?,
            id: ChunkId(reader.array("id")?),
            base: match reader.u8("base")? {
                0 => None,
                _ => Some(ChunkId(reader.array("base")?)),
            },
        })
    };
    let mut left = bytes.len();
    while left > 0 {
        let record = next().map_err(|_| damaged())?;
        left -= 46 + if record.base.is_some() { 32 } else { 0 };
        records.push(record);
    }
    Ok(records)
}
