//! Taking in what others wrote: condemnations and index runs (format-spec chapters on runs and concurrency).

use super::error::{RepoError, object_error};
use super::open::{Repo, list_names, read_whole};
use crate::pure::format::condemn::Condemnation;
use crate::pure::format::name::ObjectName;
use crate::pure::format::run;
use crate::pure::id::{PackId, SessionId};
use std::collections::{HashMap, HashSet};

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
    /// Lists `gc/` and takes in generations not seen before. Returns all generations and, for each new one, its packs.
    ///
    /// # Errors
    /// When the listing or an object cannot be read: a condemnation must never be overlooked.
    pub fn sync_condemned(&self) -> Result<(Vec<SessionId>, HashMap<SessionId, Vec<PackId>>), RepoError> {
        let known: HashSet<SessionId> = self.index.known_gcs()?;
        let mut generations = Vec::new();
        let mut fresh = HashMap::new();
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
                fresh.insert(session, packs);
            }
        }
        Ok((generations, fresh))
    }

    /// Lists `idx/` and sorts the runs into those that count and those that do not. Needs the outcomes to be in sync.
    pub fn valid_runs(&self) -> Result<ValidRuns, RepoError> {
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
        for known in self.index.outcomes()? {
            // Nothing of a voided session is accepted, whatever its outcome says: its runs stay among those that are not.
            if voided.contains(&known.session) {
                continue;
            }
            let Some(accepted) = self.accepted_runs(&known.session)? else {
                continue;
            };
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

    fn accepted_runs(&self, session: &SessionId) -> Result<Option<Vec<(u32, u32)>>, RepoError> {
        Ok(self.stored_outcome(session)?.map(|stored| stored.outcome.accepted))
    }

    /// Brings the index up to date. Runs that cannot be opened are reported, not imported: what they describe is unknown, and
    /// will be uploaded again.
    ///
    /// # Errors
    /// When the listing fails or an object cannot be fetched.
    pub fn sync_index(&self) -> Result<IndexSync, RepoError> {
        let valid = self.valid_runs()?;
        let known = self.index.known_runs()?;
        let mut sync = IndexSync {
            missing: valid.missing,
            ..IndexSync::default()
        };
        let mut names = HashSet::with_capacity(valid.level0.len());
        for (session, number, _) in &valid.level0 {
            let name = ObjectName::Run(*session, *number).to_string();
            if !known.contains(&name) {
                match self.import_run(*session, *number) {
                    Ok(()) => sync.imported += 1,
                    Err(error) if error.is_damage() => {
                        sync.broken.push((name, error));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            names.insert(name);
        }
        self.index.retain_runs(&names)?;
        Ok(sync)
    }

    fn import_run(&self, session: SessionId, number: u32) -> Result<(), RepoError> {
        let name = ObjectName::Run(session, number);
        let bytes = read_whole(&*self.store, &name, "an index run")?;
        let text = name.to_string();
        let (identity, content) =
            run::decode_l0(&bytes, &text, &self.keys, &self.verifier).map_err(object_error("opening", &text))?;
        self.index.import_run(&text, 0, session, identity.kid, &content)?;
        Ok(())
    }
}
