//! What it takes to write a lost index anew (format-spec chapter 16.8): which runs cannot be read, which packs no run describes, and what
//! those packs say about themselves.

use super::RepoError;
use super::at_once::so_many_at_once;
use super::compacted::read_through;
use super::index::{OwnPack, PackState};
use super::open::{Repo, list_names};
use super::runs::ListedRun;
use super::trailers::{ListedPack, PackEnd, read_end};
use crate::pure::format::name::ObjectName;
use crate::pure::id::SessionId;
use std::collections::HashSet;

/// How often something is read before it counts as damaged (I-8).
const READS_BEFORE_DAMAGE: usize = 3;

/// Runs in memory at a time: the largest have a million rows.
const RUNS_AT_ONCE: usize = 3;

/// Runs that outcomes accept and that cannot be used.
#[derive(Debug, Default)]
pub struct LostRuns {
    pub missing: Vec<String>,
    pub damaged: Vec<(String, RepoError)>,
}

impl LostRuns {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.damaged.is_empty()
    }

    /// Returns the names of all.
    pub fn names(&self) -> Vec<String> {
        let damaged = self.damaged.iter().map(|(name, _)| name.clone());
        self.missing.iter().cloned().chain(damaged).collect()
    }
}

impl Repo {
    /// Reads every run that counts, those too that this machine has taken in before, and brings the index to what could be read. Needs
    /// the outcomes to be in sync.
    ///
    /// # Errors
    /// When the store or the index fails.
    pub fn lost_runs(&self) -> Result<LostRuns, RepoError> {
        let known = self.index.known_runs()?;
        let synced = self.sync_index()?;
        let valid = self.valid_runs()?;
        let old: Vec<&ListedRun> = valid
            .tops
            .iter()
            .filter(|run| known.contains(&run.name()) && !synced.read.contains(&run.name()))
            .collect();
        let read = |run: &&ListedRun| three_times(|| read_through(self, run, &valid));
        let mut rotten = HashSet::new();
        for (run, read) in old.iter().zip(so_many_at_once(RUNS_AT_ONCE, &old, read)) {
            match read {
                Ok(()) => {}
                Err(error) if error.is_damage() => {
                    rotten.insert(run.name());
                }
                Err(error) => return Err(error),
            }
        }
        if rotten.is_empty() {
            return Ok(LostRuns {
                missing: synced.missing,
                damaged: synced.broken,
            });
        }
        // What nobody else can take in must not count here either.
        let names = valid.tops.iter().chain(&valid.absorbed).map(ListedRun::name);
        let left = names.filter(|name| !rotten.contains(name)).collect();
        self.index.retain_runs(&rotten, &left)?;
        let synced = self.sync_index()?;
        Ok(LostRuns {
            missing: synced.missing,
            damaged: synced.broken,
        })
    }

    /// Lists the packs that no run describes, condemned ones too: they may be needed until they are deleted. Those of sessions that
    /// have not ended are theirs to list. Needs the index to be in sync.
    ///
    /// # Errors
    /// When the store or the index fails.
    pub fn undescribed_packs(&self) -> Result<Vec<ListedPack>, RepoError> {
        let unended = self.objects_of_unended_sessions()?;
        let unended: HashSet<SessionId> = unended.into_iter().map(|(session, _)| session).collect();
        let mut packs = Vec::new();
        for under in ["data/", "meta/"] {
            for (name, row) in list_names(&*self.store, under)? {
                let ObjectName::Pack(kind, pack, session) = name else {
                    continue;
                };
                let is_known = self
                    .index
                    .pack(&pack)?
                    .is_some_and(|known| known.state != PackState::Gone);
                if !is_known && !unended.contains(&session) {
                    packs.push(ListedPack {
                        kind,
                        pack,
                        session,
                        size: row.size,
                    });
                }
            }
        }
        Ok(packs)
    }

    /// Reads what a pack says about itself, as a run lists it.
    ///
    /// # Errors
    /// When it cannot be read, or does not open.
    pub fn describe(&self, listed: &ListedPack) -> Result<OwnPack, RepoError> {
        let PackEnd {
            size,
            body_hash,
            trailer,
        } = three_times(|| read_end(self, listed))?;
        let mut body_hash24 = [0; 24];
        body_hash24.copy_from_slice(&body_hash[..24]);
        Ok(OwnPack {
            pack: listed.pack,
            session: listed.session,
            kind: listed.kind,
            size,
            slots: trailer.slots,
            // Would take reading all of it.
            crc64nvme: 0,
            body_hash24,
            records: trailer.records,
        })
    }
}

/// A bad read is repeated before it is believed.
fn three_times<T>(read: impl Fn() -> Result<T, RepoError>) -> Result<T, RepoError> {
    let mut attempt = 1;
    loop {
        match read() {
            Err(error) if error.is_damage() && attempt < READS_BEFORE_DAMAGE => attempt += 1,
            done => return done,
        }
    }
}
