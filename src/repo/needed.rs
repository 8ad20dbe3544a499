//! Which names of a bucket that keeps versions are needed, and what somebody has done to them (ADR-0027). A name is written once, so its
//! one version is the oldest. A later one, or a mark that hides what nothing of ours deletes, is tampering.

use super::{Repo, RepoError};
use crate::edge::store::{Version, Versions};
use crate::pure::format::name::ObjectName;
use crate::pure::id::PackId;
use crate::pure::plan::lock::may_be_hidden;
use crate::repo::index::PackState;
use std::collections::HashSet;

/// Tells what is needed. As far as the index is in sync: what it does not know yet is needed.
pub struct Needed<'r> {
    repo: &'r Repo,
    condemned: HashSet<PackId>,
    useless: HashSet<ObjectName>,
}

/// An object that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: ObjectName,
    /// The one that counts.
    pub version: Version,
    /// Somebody has written again under the name, or deleted it.
    pub is_tampered: bool,
}

impl<'r> Needed<'r> {
    /// Takes in what is not needed: packs that are condemned, and runs that others have absorbed, or that sessions have ended without.
    /// Of runs, in doubt, all are needed.
    ///
    /// # Errors
    /// When the index fails.
    pub fn of(repo: &'r Repo) -> Result<Needed<'r>, RepoError> {
        let mut needed = Needed {
            repo,
            condemned: HashSet::new(),
            useless: HashSet::new(),
        };
        for generation in repo.index.known_gcs()? {
            needed.condemned.extend(repo.index.condemned_by(&generation)?);
        }
        if let Ok(valid) = repo.valid_runs() {
            let refused = valid
                .not_accepted
                .iter()
                .filter(|run| valid.ended.contains(&run.session));
            let runs = valid.absorbed.iter().chain(refused);
            let objects = runs.flat_map(|run| run.objects.iter().map(|(name, _)| name.clone()));
            needed.useless = objects.collect();
        }
        Ok(needed)
    }

    /// Judges one name of a listing of versions. `None`: it is no name of the format, or not needed.
    ///
    /// # Errors
    /// When the index fails.
    pub fn judge(&self, row: &Versions) -> Result<Option<Found>, RepoError> {
        let Some(name) = ObjectName::parse(row.key.as_str()) else {
            return Ok(None);
        };
        if !self.is_needed(&name, row)? {
            return Ok(None);
        }
        // A hold that was released and made again is the one that is there now.
        let is_hold = matches!(name, ObjectName::Hold(..));
        let version = if is_hold { row.all.first() } else { row.first() };
        let Some(version) = version.filter(|version| !version.is_marker) else {
            return Ok(None);
        };
        Ok(Some(Found {
            version: version.clone(),
            is_tampered: row.is_hidden() || row.is_overwritten() && !is_hold,
            name,
        }))
    }

    /// What is hidden may have been deleted by a prune, or by somebody else though it is needed.
    fn is_needed(&self, name: &ObjectName, row: &Versions) -> Result<bool, RepoError> {
        Ok(match name {
            ObjectName::Pack(_, pack, _) if self.condemned.contains(pack) => false,
            ObjectName::Pack(_, pack, _) if row.is_hidden() => {
                let known = self.repo.index.pack(pack)?;
                known.is_some_and(|known| matches!(known.state, PackState::Live | PackState::Absent))
            }
            ObjectName::Run(..) | ObjectName::RunPart(..) => !row.is_hidden() && !self.useless.contains(name),
            name if may_be_hidden(name) => !row.is_hidden(),
            _ => true,
        })
    }
}
