//! Taking in what others wrote: condemnations and index runs (format-spec chapters on runs and concurrency).

use super::at_once::at_once;
use super::compacted::CompactedRun;
use super::error::{RepoError, object_error};
use super::index::bulk::BulkImport;
use super::open::{Repo, list_names, read_whole};
use super::runs::{ListedRun, ValidRuns};
use crate::pure::format::condemn::Condemnation;
use crate::pure::format::name::ObjectName;
use crate::pure::format::run::{self, RunContent};
use crate::pure::id::{KeyId, PackId, SessionId};
use std::collections::HashSet;

/// Listings of condemnations of which one was removed before it was read.
const LISTINGS_MAX: u32 = 5;
/// Runs that are fetched before they are imported; each has up to about 12 MB.
const RUNS_IN_MEMORY: usize = 8;
/// More runs than this are sorted outside of memory and taken in together.
const RUNS_ONE_BY_ONE: usize = 32;

/// What a sync did.
#[derive(Debug, Default)]
pub struct IndexSync {
    pub imported: u64,
    /// The runs that were read and verified for that. One that takes the place of others that were known is imported unread.
    pub read: HashSet<String>,
    pub broken: Vec<(String, RepoError)>,
    pub missing: Vec<String>,
}

impl Repo {
    /// Lists `gc/` and takes in generations not seen before. Returns all generations.
    ///
    /// # Errors
    /// When the listing or an object cannot be read: a condemnation must never be overlooked.
    pub fn sync_condemned(&self) -> Result<Vec<SessionId>, RepoError> {
        let mut tries = 1;
        loop {
            match self.try_sync_condemned() {
                // A prune removes those of which nothing is left. One that is still listed is another matter.
                Err(error) if error.is_absence() && tries < LISTINGS_MAX => tries += 1,
                done => return done,
            }
        }
    }

    fn try_sync_condemned(&self) -> Result<Vec<SessionId>, RepoError> {
        let known: HashSet<SessionId> = self.index.known_gcs()?;
        let mut generations = Vec::new();
        for (name, _) in list_names(&*self.store, "gc/")? {
            let ObjectName::Condemnation(session) = name else {
                continue;
            };
            generations.push(session);
            if !known.contains(&session) && !chaos!("condemnations-are-overlooked") {
                let bytes = read_whole(&*self.store, &name, "a list of condemned packs")?;
                let condemned = Condemnation::decode(&bytes, &session, &self.keys, &self.verifier)
                    .map_err(object_error("opening", &name))?;
                let packs: Vec<PackId> = condemned.packs.iter().map(|pack| pack.pack).collect();
                if condemned.is_accepted {
                    self.index.accept_losses(&condemned.lost)?;
                }
                self.index
                    .add_condemned(&session, &condemned.kid, &packs, &condemned.lost)?;
            }
        }
        self.index.look_for_lost()?;
        Ok(generations)
    }

    /// Brings the index up to date. Runs that cannot be opened are reported, not imported: what they describe is unknown, and
    /// will be uploaded again.
    ///
    /// # Errors
    /// When the listing fails or an object cannot be fetched.
    pub fn sync_index(&self) -> Result<IndexSync, RepoError> {
        // Before the listing, so that what another process takes in meanwhile is not taken for gone.
        let known = self.index.known_runs()?;
        let valid = self.valid_runs()?;
        let mut sync = IndexSync::default();
        let mut names = HashSet::with_capacity(valid.tops.len());
        let mut level0: Vec<&ListedRun> = valid.tops.iter().filter(|run| run.level == 0).collect();
        let mut compacted: Vec<&ListedRun> = valid.tops.iter().filter(|run| run.level > 0).collect();
        while let Some(run) = compacted.pop() {
            let name = run.name();
            if known.contains(&name) {
                names.insert(name);
                continue;
            }
            match self.take_in_parts(run, &name, &valid, &known) {
                Ok(is_read) => {
                    sync.imported += 1;
                    if is_read {
                        sync.read.insert(name.clone());
                    }
                    names.insert(name);
                }
                Err(error) if error.is_damage() => {
                    // What it was made of may still be there.
                    let (absorbed, _) = valid.absorbed_by(&name);
                    for run in valid.absorbed.iter().filter(|run| absorbed.contains(&run.name())) {
                        match run.level {
                            0 => level0.push(run),
                            _ => compacted.push(run),
                        }
                    }
                    sync.broken.push((name, error));
                }
                Err(error) => return Err(error),
            }
        }
        level0.sort_unstable_by_key(|run| (run.session, run.number));
        level0.dedup();
        let unseen = level0.into_iter().filter(|run| {
            let name = run.name();
            let is_known = known.contains(&name);
            if is_known {
                names.insert(name);
            }
            !is_known
        });
        let unseen: Vec<&ListedRun> = unseen.collect();
        self.take_in_level0(&unseen, &mut names, &mut sync)?;
        sync.missing = valid.missing;
        self.index.retain_runs(&known, &names)?;
        self.index.forget_healed()?;
        Ok(sync)
    }

    fn take_in_level0(
        &self,
        unseen: &[&ListedRun],
        names: &mut HashSet<String>,
        sync: &mut IndexSync,
    ) -> Result<(), RepoError> {
        let mut bulk = match unseen.len() > RUNS_ONE_BY_ONE {
            true => Some(BulkImport::begin(&self.index)?),
            false => None,
        };
        for some in unseen.chunks(RUNS_IN_MEMORY) {
            let fetched = at_once(some, |run| self.fetch_run(run));
            for (run, fetched) in some.iter().zip(fetched) {
                let name = run.name();
                let imported = fetched.and_then(|(kid, content)| {
                    let imported = match &mut bulk {
                        Some(bulk) => bulk.add(&name, run.session, kid, &content),
                        None => self.index.import_run(&name, 0, run.session, kid, &content),
                    };
                    Ok(imported?)
                });
                match imported {
                    Ok(()) => {
                        sync.imported += 1;
                        sync.read.insert(name.clone());
                        names.insert(name);
                    }
                    Err(error) if error.is_damage() => sync.broken.push((name, error)),
                    Err(error) => return Err(error),
                }
            }
        }
        if let Some(bulk) = bulk {
            bulk.finish()?;
        }
        Ok(())
    }

    /// Reads and verifies an L0 run.
    ///
    /// # Errors
    /// When it cannot be read or does not open.
    pub fn fetch_run(&self, run: &ListedRun) -> Result<(KeyId, RunContent), RepoError> {
        let name = ObjectName::Run(run.session, run.number);
        let bytes = read_whole(&*self.store, &name, "an index run")?;
        let (identity, content) = run::decode_l0(&bytes, &name.to_string(), &self.keys, &self.verifier)
            .map_err(object_error("opening", &name))?;
        Ok((identity.kid, content))
    }

    /// Takes in a run of level 1 or above: by its name alone if everything that it was made of has been taken in before. Returns
    /// whether it was read.
    fn take_in_parts(
        &self,
        run: &ListedRun,
        name: &str,
        valid: &ValidRuns,
        known: &HashSet<String>,
    ) -> Result<bool, RepoError> {
        if let Some(descriptor) = valid.descriptors.get(name) {
            let (_, dropped) = valid.absorbed_by(name);
            let dropped: Vec<PackId> = dropped.into_iter().collect();
            let kid = self.signer_of(&run.session)?;
            let inputs = known_inputs(&descriptor.inputs, valid, known);
            if let Some(inputs) = inputs
                && self
                    .index
                    .relabel_runs(name, run.level, run.session, kid, &inputs, &dropped)?
            {
                return Ok(false);
            }
        }
        let mut parts = CompactedRun::open(self, run, valid)?;
        let (kid, head) = (parts.kid, parts.take_head());
        let next = &mut || match parts.next_part(self, &head)? {
            None => Ok::<_, RepoError>(None),
            Some((chunks, deltas)) => Ok(Some(RunContent {
                chunks,
                deltas,
                ..RunContent::default()
            })),
        };
        self.index
            .import_run_in_parts(name, run.level, run.session, kid, &head, next)?;
        Ok(true)
    }

    fn signer_of(&self, session: &SessionId) -> Result<KeyId, RepoError> {
        let stored = self.stored_outcome(session)?;
        stored
            .map(|stored| stored.outcome.kid)
            .ok_or_else(|| RepoError::Internal(format!("the outcome of {session} was there a moment ago")))
    }
}

/// Returns the runs of `known` that describe together what these inputs describe; `None` if there are none.
fn known_inputs(inputs: &[String], valid: &ValidRuns, known: &HashSet<String>) -> Option<Vec<String>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut open: Vec<&String> = inputs.iter().collect();
    while let Some(input) = open.pop() {
        if !seen.insert(input) {
            continue;
        }
        if known.contains(input) {
            found.push(input.clone());
        } else {
            open.extend(&valid.descriptors.get(input)?.inputs);
        }
    }
    Some(found)
}
