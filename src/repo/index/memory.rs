//! What this machine remembers besides chunks: outcomes as they were stored, the rollback memory, own sessions, the
//! verification ledger, and small values by name (format-spec chapter on client-local state).

use super::catalog::pack_handle;
use super::{IndexError, LocalIndex, Trouble};
use crate::pure::base::Timestamp;
use crate::pure::format::outcome::OutcomeKind;
use crate::pure::id::{KeyId, ObjectHash, PackId, SessionId, SourceId};
use rusqlite::{OptionalExtension, params};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What the mirror knows of one outcome without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownOutcome {
    pub session: SessionId,
    pub kind: OutcomeKind,
    /// Who signed it.
    pub kid: KeyId,
    pub sequence: u64,
    /// Of the stored object.
    pub hash: ObjectHash,
    pub source: Option<SourceId>,
    pub created: Timestamp,
    pub flags: u64,
    pub mark: Mark,
    /// When the snapshot was begun; `None` if there is none, or its manifest cannot be opened with this key.
    pub start: Option<Timestamp>,
    /// The L0 runs of its session that count, as inclusive ranges of their numbers.
    pub accepted: Vec<(u32, u32)>,
}

/// What drops and holds say about an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// There is no drop.
    None = 0,
    /// Dropped: neither shown nor live.
    Dropped = 1,
    /// Dropped, and kept by a hold: shown and live as long as that lasts.
    Held = 2,
}

impl KnownOutcome {
    /// Whether it is dropped and no hold keeps it.
    pub fn is_dropped(&self) -> bool {
        self.mark == Mark::Dropped
    }
}

/// A session of this machine's that has not ended, as far as is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSession {
    pub session: SessionId,
    /// Of the machine that runs it: this one, unless the local state was copied.
    pub machine: Vec<u8>,
    pub boot_id: Vec<u8>,
    pub pid: u32,
    pub started: Timestamp,
    /// Number of its next L0 run.
    pub next_run: u32,
}

/// What became of an own session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// Its outcome is published.
    Ended = 1,
    /// Somebody else has ended it (a fence).
    Superseded = 2,
}

/// When and how thoroughly a pack was verified last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// As the caller counts it: more is more thorough.
    pub depth: u8,
    pub at: Timestamp,
    pub sound: bool,
}

impl LocalIndex {
    /// Remembers a value by name, in place of an earlier one.
    ///
    /// # Errors
    /// If the database fails.
    pub fn remember(&self, key: &str, value: &[u8]) -> Result<(), IndexError> {
        self.write(|connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('m/' || ?1, ?2)")?
                .execute(params![key, value])?;
            Ok(())
        })
    }

    /// Returns what [`Self::remember`] was given.
    ///
    /// # Errors
    /// If the database fails.
    pub fn recall(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached("SELECT v FROM meta WHERE k = 'm/' || ?1")?
                .query_row([key], |row| row.get(0))
                .optional()?)
        })
    }

    /// Forgets a value.
    ///
    /// # Errors
    /// If the database fails.
    pub fn forget(&self, key: &str) -> Result<(), IndexError> {
        self.write(|connection| {
            connection
                .prepare_cached("DELETE FROM meta WHERE k = 'm/' || ?1")?
                .execute([key])?;
            Ok(())
        })
    }

    /// Notes that this process works on a session: its packs can be referred to from now on.
    ///
    /// # Errors
    /// If the database fails. Only recovery after a crash needs the row: the session can go on.
    pub fn start_session(
        &self,
        session: &SessionId,
        machine: &[u8],
        boot_id: &[u8],
        pid: u32,
        now: Timestamp,
    ) -> Result<(), IndexError> {
        Arc::make_mut(&mut self.current.write()).insert(*session);
        self.write(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO mysession VALUES (?1, ?2, ?3, ?4, ?5, 0, 0)",
                params![session.as_bytes(), now.0, machine, boot_id, pid],
            )?;
            Ok(())
        })
    }

    /// Notes that an own session is over. Packs of its that no accepted run lists cannot be referred to any more, until
    /// they are adopted.
    ///
    /// # Errors
    /// If the database fails.
    pub fn end_session(&self, session: &SessionId, end: SessionEnd) -> Result<(), IndexError> {
        Arc::make_mut(&mut self.current.write()).remove(session);
        self.write(|connection| {
            connection.execute(
                "UPDATE mysession SET state = ?2 WHERE sid = ?1",
                params![session.as_bytes(), end as i64],
            )?;
            Ok(())
        })
    }

    /// Returns the sessions of this machine's that have not ended, oldest first: those of this process, of others that
    /// are running, and of dead ones.
    ///
    /// # Errors
    /// If the database fails.
    pub fn open_sessions(&self) -> Result<Vec<OpenSession>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT sid, machine, boot_id, pid, started_ns, next_run FROM mysession WHERE state = 0 ORDER BY started_ns, sid",
            )?;
            let sessions = statement.query_map([], |row| {
                Ok(OpenSession {
                    session: SessionId(row.get(0)?),
                    machine: row.get(1)?,
                    boot_id: row.get(2)?,
                    pid: row.get(3)?,
                    started: Timestamp(row.get(4)?),
                    next_run: row.get(5)?,
                })
            })?;
            Ok(sessions.collect::<Result<_, _>>()?)
        })
    }

    /// Returns the sessions that left packs behind that no accepted run lists: open ones, and dead ones whose packs wait
    /// for adoption.
    ///
    /// # Errors
    /// If the database fails.
    pub fn sessions_with_packs(&self) -> Result<Vec<SessionId>, IndexError> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT DISTINCT owner FROM pack WHERE owner IS NOT NULL ORDER BY owner")?;
            let sessions = statement.query_map([], |row| row.get(0).map(SessionId))?;
            Ok(sessions.collect::<Result<_, _>>()?)
        })
    }

    /// Sets the number of the next L0 run of an own session. Before the run is stored, so that no number is used twice.
    ///
    /// # Errors
    /// If the database fails.
    pub fn set_next_run(&self, session: &SessionId, next_run: u32) -> Result<(), IndexError> {
        self.write(|connection| {
            connection.execute(
                "UPDATE mysession SET next_run = ?2 WHERE sid = ?1",
                params![session.as_bytes(), next_run],
            )?;
            Ok(())
        })
    }

    /// Keeps an outcome: what is known of it, and the object exactly as stored (sealed). One that is kept already stays
    /// dropped if it was.
    ///
    /// # Errors
    /// If the database fails.
    pub fn put_outcome(&self, outcome: &KnownOutcome, object: &[u8]) -> Result<(), IndexError> {
        self.write(|connection| {
            connection
                .prepare_cached(
                    "INSERT INTO snap VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (sid) DO UPDATE SET
                     kind = ?2, kid = ?3, seq = ?4, hash = ?5, source = ?6, created = ?7, flags = ?8, accepted = ?10,
                     start = ?11",
                )?
                .execute(params![
                    outcome.session.as_bytes(),
                    outcome.kind as i64,
                    outcome.kid.as_bytes(),
                    outcome.sequence as i64,
                    outcome.hash.as_bytes(),
                    outcome.source.as_ref().map(SourceId::as_bytes),
                    outcome.created.0,
                    outcome.flags as i64,
                    outcome.mark as i64,
                    accepted_column(&outcome.session, &outcome.accepted),
                    outcome.start.map(|start| start.0)
                ])?;
            connection
                .prepare_cached("INSERT OR REPLACE INTO snap_object (sid, object) VALUES (?1, ?2)")?
                .execute(params![outcome.session.as_bytes(), object])?;
            Ok(())
        })
    }

    /// Returns every outcome that is kept, oldest first.
    ///
    /// # Errors
    /// If the database fails.
    pub fn outcomes(&self) -> Result<Vec<KnownOutcome>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT sid, kind, kid, seq, hash, source, created, flags, dropped, accepted, start FROM snap ORDER BY created, sid",
            )?;
            let mut rows = statement.query([])?;
            let mut outcomes = Vec::new();
            while let Some(row) = rows.next()? {
                let session = SessionId(row.get(0)?);
                outcomes.push(KnownOutcome {
                    session,
                    kind: outcome_kind(row.get(1)?)?,
                    kid: KeyId(row.get(2)?),
                    sequence: row.get::<_, i64>(3)? as u64,
                    hash: ObjectHash(row.get(4)?),
                    source: row.get::<_, Option<_>>(5)?.map(SourceId),
                    created: Timestamp(row.get(6)?),
                    flags: row.get::<_, i64>(7)? as u64,
                    mark: mark_of(row.get(8)?)?,
                    accepted: accepted_from(&session, row.get_ref(9)?.as_blob().unwrap_or_default())?,
                    start: row.get::<_, Option<i64>>(10)?.map(Timestamp),
                });
            }
            Ok(outcomes)
        })
    }

    /// Returns an outcome as it was stored. The seal is the check.
    ///
    /// # Errors
    /// If the database fails.
    pub fn outcome_bytes(&self, session: &SessionId) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached("SELECT object FROM snap_object WHERE sid = ?1")?
                .query_row([session.as_bytes()], |row| row.get(0))
                .optional()?)
        })
    }

    /// Sets what drops and holds say: outcomes that are not in `marks` have no drop.
    ///
    /// # Errors
    /// If the database fails.
    pub fn set_marks(&self, marks: &HashMap<SessionId, Mark>) -> Result<(), IndexError> {
        self.write(|connection| {
            let mut statement = connection.prepare_cached("SELECT sid, dropped FROM snap")?;
            let known = statement
                .query_map([], |row| Ok((SessionId(row.get(0)?), row.get::<_, i64>(1)?)))?
                .collect::<Result<Vec<_>, _>>()?;
            let mut update = connection.prepare_cached("UPDATE snap SET dropped = ?2 WHERE sid = ?1")?;
            for (session, before) in known {
                let now = marks.get(&session).copied().unwrap_or(Mark::None) as i64;
                if now != before {
                    update.execute(params![session.as_bytes(), now])?;
                }
            }
            Ok(())
        })
    }

    /// Forgets outcomes: they are not in the repository any more.
    ///
    /// # Errors
    /// If the database fails.
    pub fn forget_outcomes(&self, gone: &HashSet<SessionId>) -> Result<(), IndexError> {
        self.write(|connection| {
            for session in gone {
                connection
                    .prepare_cached("DELETE FROM snap WHERE sid = ?1")?
                    .execute([session.as_bytes()])?;
                connection
                    .prepare_cached("DELETE FROM snap_object WHERE sid = ?1")?
                    .execute([session.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Returns the highest outcome that was ever seen of a writer.
    ///
    /// # Errors
    /// If the database fails.
    pub fn head(&self, kid: &KeyId) -> Result<Option<(u64, ObjectHash)>, IndexError> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached("SELECT seq, hash FROM head WHERE kid = ?1")?
                .query_row([kid.as_bytes()], |row| {
                    Ok((row.get::<_, i64>(0)? as u64, ObjectHash(row.get(1)?)))
                })
                .optional()?)
        })
    }

    /// Returns [`Self::head`] of every writer.
    ///
    /// # Errors
    /// If the database fails.
    pub fn heads(&self) -> Result<Vec<(KeyId, u64, ObjectHash)>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT kid, seq, hash FROM head ORDER BY kid")?;
            let heads = statement.query_map([], |row| {
                Ok((
                    KeyId(row.get(0)?),
                    row.get::<_, i64>(1)? as u64,
                    ObjectHash(row.get(2)?),
                ))
            })?;
            Ok(heads.collect::<Result<_, _>>()?)
        })
    }

    /// Remembers an outcome of a writer, if it is higher than the highest so far.
    ///
    /// # Errors
    /// If the database fails.
    pub fn raise_head(&self, kid: &KeyId, sequence: u64, hash: &ObjectHash) -> Result<(), IndexError> {
        self.write(|connection| {
            let known: Option<i64> = connection
                .prepare_cached("SELECT seq FROM head WHERE kid = ?1")?
                .query_row([kid.as_bytes()], |row| row.get(0))
                .optional()?;
            if known.is_none_or(|known| sequence > known as u64) {
                connection
                    .prepare_cached("INSERT OR REPLACE INTO head VALUES (?1, ?2, ?3)")?
                    .execute(params![kid.as_bytes(), sequence as i64, hash.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Notes in the ledger that a pack was verified. Does nothing for a pack that is not known.
    ///
    /// # Errors
    /// If the database fails.
    pub fn record_verified(&self, pack: &PackId, depth: u8, now: Timestamp, sound: bool) -> Result<(), IndexError> {
        self.write(|connection| {
            if let Some(handle) = pack_handle(connection, pack)? {
                connection
                    .prepare_cached("INSERT OR REPLACE INTO scrub VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![handle, depth, now.0, sound])?;
            }
            Ok(())
        })
    }

    /// Returns what the ledger says about a pack.
    ///
    /// # Errors
    /// If the database fails.
    pub fn verified(&self, pack: &PackId) -> Result<Option<Verified>, IndexError> {
        Ok(self.pack(pack)?.and_then(|info| info.verified))
    }
}

fn mark_of(number: i64) -> Result<Mark, Trouble> {
    [Mark::None, Mark::Dropped, Mark::Held]
        .into_iter()
        .find(|mark| *mark as i64 == number)
        .ok_or(Trouble::Damaged("a mark is of no known kind"))
}

/// Column `accepted`: pairs of numbers, and eight bytes of check, because it decides which chunks may be referred to.
fn accepted_column(session: &SessionId, accepted: &[(u32, u32)]) -> Vec<u8> {
    let mut column: Vec<u8> = accepted
        .iter()
        .flat_map(|(first, last)| [first.to_le_bytes(), last.to_le_bytes()])
        .flatten()
        .collect();
    let check = accepted_check(session, &column);
    column.extend_from_slice(&check);
    column
}

fn accepted_from(session: &SessionId, column: &[u8]) -> Result<Vec<(u32, u32)>, Trouble> {
    let damaged = Trouble::Damaged("the runs of an outcome do not have the check that belongs to them");
    let Some((pairs, check)) = column.split_last_chunk::<8>() else {
        return Err(damaged);
    };
    let (pairs, []) = pairs.as_chunks::<8>() else {
        return Err(damaged);
    };
    if accepted_check(session, pairs.as_flattened()) != *check {
        return Err(damaged);
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
    Ok(pairs
        .iter()
        .map(|pair| (number(&pair[..4]), number(&pair[4..])))
        .collect())
}

fn accepted_check(session: &SessionId, pairs: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(session.as_bytes()).update(pairs);
    let mut check = [0; 8];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    check
}

fn outcome_kind(number: i64) -> Result<OutcomeKind, Trouble> {
    Ok(match number {
        1 => OutcomeKind::Commit,
        2 => OutcomeKind::Checkpoint,
        3 => OutcomeKind::Maintenance,
        4 => OutcomeKind::Fence,
        5 => OutcomeKind::Abandon,
        _ => return Err(Trouble::Damaged("an outcome is of no known kind")),
    })
}
