//! Taking in what others wrote: condemnations and index runs (format-spec chapters on runs and concurrency).

use super::at_once::at_once;
use super::error::{RepoError, object_error};
use super::index::KnownOutcome;
use super::index::bulk::BulkImport;
use super::open::{Repo, list_names, read_whole};
use crate::pure::format::condemn::Condemnation;
use crate::pure::format::name::ObjectName;
use crate::pure::format::run::{self, RunContent};
use crate::pure::id::{KeyId, PackId, SessionId};
use std::collections::{HashMap, HashSet};

/// Runs that are fetched before they are imported; each has up to about 12 MB.
const RUNS_IN_MEMORY: usize = 8;
/// More runs than this are sorted outside of memory and taken in together.
const RUNS_ONE_BY_ONE: usize = 32;

/// Runs that count, as a listing and the outcomes together say.
#[derive(Debug, Default)]
pub struct ValidRuns {
    /// L0 runs accepted by an ended session: session, number, size in bytes.
    pub level0: Vec<(SessionId, u32, u64)>,
    /// Runs of sessions that have not ended, or that their outcome does not accept.
    pub not_accepted: Vec<String>,
    /// Accepted by an outcome, but not in the listing.
    pub missing: Vec<String>,
    /// Every L0 run that is listed, whether it counts or not.
    pub listed: Vec<(SessionId, u32, u64)>,
}

/// What a sync did.
#[derive(Debug, Default)]
pub struct IndexSync {
    pub imported: u64,
    pub broken: Vec<(String, RepoError)>,
    pub missing: Vec<String>,
}

impl Repo {
    /// Lists `gc/` and takes in generations not seen before. Returns all generations.
    ///
    /// # Errors
    /// When the listing or an object cannot be read: a condemnation must never be overlooked.
    pub fn sync_condemned(&self) -> Result<Vec<SessionId>, RepoError> {
        let known: HashSet<SessionId> = self.index.known_gcs()?;
        let mut generations = Vec::new();
        for (name, _) in list_names(&*self.store, "gc/")? {
            let ObjectName::Condemnation(session) = name else {
                continue;
            };
            generations.push(session);
            if !known.contains(&session) {
                let bytes = read_whole(&*self.store, &name, "a list of condemned packs")?;
                let condemned = Condemnation::decode(&bytes, &session, &self.keys, &self.verifier)
                    .map_err(object_error("opening", &name))?;
                let packs: Vec<PackId> = condemned.packs.iter().map(|pack| pack.pack).collect();
                self.index
                    .add_condemned(&session, &condemned.kid, &packs, &condemned.lost)?;
            }
        }
        self.index.look_for_lost()?;
        Ok(generations)
    }

    /// Lists `idx/` and sorts the runs into those that count and those that do not. Needs the outcomes to be in sync.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn valid_runs(&self) -> Result<ValidRuns, RepoError> {
        // Before the listing: whatever an outcome accepts was durable before it, so the listing has it.
        let outcomes = self.index.outcomes()?;
        let valid = self.sort_runs(&outcomes)?;
        if valid.missing.is_empty() {
            return Ok(valid);
        }
        // A bad listing must not pass for a loss (I-8).
        self.sort_runs(&outcomes)
    }

    fn sort_runs(&self, outcomes: &[KnownOutcome]) -> Result<ValidRuns, RepoError> {
        let mut listed: HashMap<SessionId, Vec<(u32, u64)>> = HashMap::new();
        let mut valid = ValidRuns::default();
        for (name, row) in list_names(&*self.store, "idx/")? {
            match name {
                ObjectName::Run(session, number) => {
                    listed.entry(session).or_default().push((number, row.size));
                    valid.listed.push((session, number, row.size));
                }
                ObjectName::RunPart(..) => {
                    return Err(RepoError::Internal(
                        "the repository has compacted index runs, which this version does not read".into(),
                    ));
                }
                _ => {}
            }
        }
        let voided = self.voided()?;
        for known in outcomes {
            // Nothing of a voided session is accepted, whatever its outcome says: its runs stay among those that are not.
            if voided.contains(&known.session) {
                continue;
            }
            let accepted = &known.accepted;
            let present = listed.remove(&known.session).unwrap_or_default();
            let mut found = HashSet::new();
            for (number, size) in present {
                if accepted.iter().any(|(first, last)| (*first..=*last).contains(&number)) {
                    found.insert(number);
                    valid.level0.push((known.session, number, size));
                } else {
                    valid
                        .not_accepted
                        .push(ObjectName::Run(known.session, number).to_string());
                }
            }
            for number in accepted.iter().flat_map(|(first, last)| *first..=*last) {
                if !found.contains(&number) {
                    valid.missing.push(ObjectName::Run(known.session, number).to_string());
                }
            }
        }
        for (session, numbers) in listed {
            valid.not_accepted.extend(
                numbers
                    .iter()
                    .map(|(number, _)| ObjectName::Run(session, *number).to_string()),
            );
        }
        Ok(valid)
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
        let mut sync = IndexSync {
            missing: valid.missing,
            ..IndexSync::default()
        };
        let mut names = HashSet::with_capacity(valid.level0.len());
        let mut unseen = Vec::new();
        for (session, number, _) in valid.level0 {
            let name = ObjectName::Run(session, number).to_string();
            if known.contains(&name) {
                names.insert(name);
            } else {
                unseen.push((session, number, name));
            }
        }
        let mut bulk = match unseen.len() > RUNS_ONE_BY_ONE {
            true => Some(BulkImport::begin(&self.index)?),
            false => None,
        };
        for some in unseen.chunks(RUNS_IN_MEMORY) {
            let fetched = at_once(some, |(session, number, name)| self.fetch_run(session, *number, name));
            for ((session, _, name), fetched) in some.iter().zip(fetched) {
                let imported = fetched.and_then(|(kid, content)| {
                    let imported = match &mut bulk {
                        Some(bulk) => bulk.add(name, *session, kid, &content),
                        None => self.index.import_run(name, 0, *session, kid, &content),
                    };
                    Ok(imported?)
                });
                match imported {
                    Ok(()) => {
                        sync.imported += 1;
                        names.insert(name.clone());
                    }
                    Err(error) if error.is_damage() => sync.broken.push((name.clone(), error)),
                    Err(error) => return Err(error),
                }
            }
        }
        if let Some(bulk) = bulk {
            bulk.finish()?;
        }
        self.index.retain_runs(&known, &names)?;
        Ok(sync)
    }

    fn fetch_run(&self, session: &SessionId, number: u32, text: &str) -> Result<(KeyId, RunContent), RepoError> {
        let name = ObjectName::Run(*session, number);
        let bytes = read_whole(&*self.store, &name, "an index run")?;
        let (identity, content) =
            run::decode_l0(&bytes, text, &self.keys, &self.verifier).map_err(object_error("opening", text))?;
        Ok((identity.kid, content))
    }
}
