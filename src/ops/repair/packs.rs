//! Packs that are missing or damaged (format-spec chapter 16.8). Whatever opens in them is copied into new packs, and the old ones are
//! condemned together with a list of the chunks that are lost, so that nobody relies on them any more. A backup that meets such a
//! chunk in an unchanged file reads the file again and stores it under the same id: with that, every older snapshot has it again.
//!
//! Packs that parity rebuilds are put back before, and are as if nothing had been.
//!
//! A pack that was condemned for this is not deleted while it has the only copy of something that snapshots need, readable or not
//! ([`crate::ops::prune`]), so this takes nothing away, and doing it twice does no harm.

use super::declare::{Bad, bad_packs, condemn_damaged};
use super::frames::{Saved, save};
use super::heal;
use crate::ops::check::{self, Subset, chain};
use crate::ops::prune::mark::{Marker, Unreadable, no_room};
use crate::ops::{OpError, Progress};
use crate::pure::base::Kind;
use crate::pure::crypto::sign::role;
use crate::pure::format::name::ObjectName;
use crate::pure::id::{ChunkId, PackId};
use crate::repo::Repo;
use crate::repo::snapshots::Broken;
use std::collections::HashSet;

/// How often packs are put back and everything is looked at anew, before what is still damaged is copied: a disk may damage them again.
const HEALED_MAX: usize = 3;

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Read packs before, and which: what is only rotten shows in no other way.
    pub read_data: Option<Subset>,
    /// Packs that somebody knows to be damaged.
    pub named: Vec<PackId>,
    pub threads: usize,
    /// Packs that are uploaded at a time.
    pub uploads: usize,
}

impl Options {
    /// What to look at when these packs were put back, and all of `healed` were by now.
    fn after(&self, these: HashSet<PackId>, healed: &HashSet<PackId>) -> Options {
        let mut named = self.named.clone();
        named.retain(|pack| !healed.contains(pack));
        Options {
            read_data: Some(Subset::These(these)),
            named,
            ..self.clone()
        }
    }
}

fn ids(names: &[ObjectName]) -> HashSet<PackId> {
    let id = |name: &ObjectName| match name {
        ObjectName::Pack(_, pack, _) => Some(*pack),
        _ => None,
    };
    names.iter().filter_map(id).collect()
}

/// What is amiss.
pub struct Plan<'r> {
    pub check: check::Report,
    pub packs: Vec<Bad>,
    /// Those of the packs that parity rebuilds.
    pub healable: Vec<ObjectName>,
    /// What snapshots need, as far as their trees can be read.
    marker: Marker<'r>,
}

/// What was done, or would be.
#[derive(Debug, Default)]
pub struct Report {
    /// Packs that parity has rebuilt.
    pub healed: Vec<ObjectName>,
    /// Blobs that were copied out of damaged packs, and their stored bytes.
    pub copied: u64,
    pub bytes_copied: u64,
    /// Blobs of those packs that another pack has, whole.
    pub elsewhere: u64,
    /// Chunks that are in no pack any more.
    pub lost: Vec<ChunkId>,
    /// What a check says afterwards; before, of a dry run.
    pub after: check::Report,
}

/// Looks for what is missing or damaged: checks the repository, and reads all trees. Writes to the local cache only.
///
/// # Errors
/// When the key may not do all of this, the index is not whole, or the store fails.
pub fn plan<'r>(repo: &'r Repo, options: &Options, progress: &Progress) -> Result<Plan<'r>, OpError> {
    repo.require(role::MAINTAIN, "condemn damaged packs of this repository")?;
    repo.require(role::READ_DATA, "verify what is copied out of damaged packs")?;
    repo.require(role::READ_META, "verify what is copied out of damaged packs")?;
    let check_options = check::Options {
        read_data: options.read_data.clone(),
        threads: options.threads,
        ..check::Options::default()
    };
    let check = check::run(repo, &check_options, progress)?;
    require_whole_index(repo)?;
    let mut marker = Marker::new(repo, options.threads, Unreadable::Noted);
    let snapshots = repo.snapshots_noting(&mut Broken::new())?;
    let ids: Vec<_> = snapshots.iter().map(|snapshot| snapshot.id).collect();
    drop(snapshots);
    marker.mark(&ids, progress)?;
    let mut suspected: HashSet<PackId> = options.named.iter().copied().collect();
    for node in marker.unread() {
        suspected.extend(repo.index.find_all(node)?.iter().map(|place| place.pack));
    }
    let packs = bad_packs(repo, &suspected)?;
    let healable = heal::healable(repo, packs.iter().map(Bad::name), progress)?;
    Ok(Plan {
        check,
        packs,
        healable,
        marker,
    })
}

/// What is copied is listed by runs; what is lost is what no run lists. So the runs have to be there first.
fn require_whole_index(repo: &Repo) -> Result<(), OpError> {
    let mut synced = repo.sync_index()?;
    let what = match (synced.broken.pop(), synced.missing.pop()) {
        (Some((name, error)), _) => format!("{name} cannot be used: {}", chain(&error)),
        (None, Some(name)) => format!("{name} is missing"),
        (None, None) => return Ok(()),
    };
    Err(OpError::InDoubt {
        what: format!("the index is not whole ({what})"),
        source: None,
        kind: Kind::Damage,
        hint: "run `larder repo repair index` first",
    })
}

impl<'r> Plan<'r> {
    /// Reads what can be read of the packs, and writes nothing.
    ///
    /// # Errors
    /// When the store or the index fails.
    pub fn dry_run(mut self, repo: &Repo, progress: &Progress) -> Result<Report, OpError> {
        let is_healable = |bad: &Bad| self.healable.contains(&bad.name());
        let (healable, mut left): (Vec<Bad>, Vec<Bad>) =
            std::mem::take(&mut self.packs).into_iter().partition(is_healable);
        let spared = healable.iter().map(|bad| bad.info.pack).collect();
        let saved = save(repo, self.marker.reader(), &mut left, None, progress)?;
        let mut report = Report::default();
        self.take_in(repo, saved, &spared, &mut report)?;
        report.healed = self.healable;
        report.after = self.check;
        Ok(report)
    }

    /// Puts back what parity rebuilds; copies what can be read of the rest, condemns it, and says what is lost.
    ///
    /// # Errors
    /// When the store or the index fails. Running it again completes it.
    pub fn carry_out(mut self, repo: &'r Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
        let mut healed: Vec<ObjectName> = Vec::new();
        for _ in 0..HEALED_MAX {
            let now = heal::heal(repo, std::mem::take(&mut self.healable), progress)?;
            if !now.is_empty() {
                let these = ids(&now);
                healed.extend(now);
                // With whole packs more of the trees can be read, and these are read to the last byte.
                self = plan(repo, &options.after(these, &ids(&healed)), progress)?;
            }
            if self.healable.is_empty() {
                let mut report = Report::default();
                if self.copy_and_condemn(repo, options, true, &mut report, progress)? {
                    report.healed = healed;
                    return Ok(report);
                }
            }
        }
        self.healable.clear();
        let mut report = Report::default();
        self.copy_and_condemn(repo, options, false, &mut report, progress)?;
        report.healed = healed;
        Ok(report)
    }

    /// Copies what can be read, condemns the packs, and says what is lost. False, with nothing done, if packs were found damaged on the way
    /// that parity rebuilds: unless these are not to be looked for.
    fn copy_and_condemn(
        &mut self,
        repo: &Repo,
        options: &Options,
        looks_for_parity: bool,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<bool, OpError> {
        let nothing = HashSet::new();
        if self.packs.is_empty() {
            self.take_in(repo, Saved::default(), &nothing, report)?;
            if report.lost.is_empty() {
                report.after = std::mem::take(&mut self.check);
                return Ok(true);
            }
        }
        let known = self.packs.len();
        let mut session = super::declare::begin(repo, options.uploads)?;
        let gathered = save(
            repo,
            self.marker.reader(),
            &mut self.packs,
            Some(&mut session),
            progress,
        )
        .and_then(|saved| {
            let found = self.packs[known..].iter().map(Bad::name);
            if looks_for_parity {
                self.healable = heal::healable(repo, found, progress)?;
            }
            self.take_in(repo, saved, &nothing, report)
        });
        if let Err(error) = gathered {
            session.abandon();
            return Err(error);
        }
        if !self.healable.is_empty() {
            session.abandon();
            return Ok(false);
        }
        condemn_damaged(repo, session, &self.packs, &report.lost, options.uploads)?;
        repo.sync_condemned()?;
        repo.sync_index()?;
        let options = check::Options {
            threads: options.threads,
            ..check::Options::default()
        };
        report.after = check::run(repo, &options, progress)?;
        Ok(true)
    }

    /// Adds to what is lost whatever snapshots need and no pack has: runs that were lost may have listed packs that were lost too.
    /// What is in a pack that is `spared` is not lost.
    fn take_in(
        &mut self,
        repo: &Repo,
        saved: Saved,
        spared: &HashSet<PackId>,
        report: &mut Report,
    ) -> Result<(), OpError> {
        let Saved {
            copied,
            bytes_copied,
            elsewhere,
            kept,
            mut lost,
        } = saved;
        // Below a node that is lost there may be anything: then all that is lost is named. Otherwise, what nobody needs is not.
        if self.marker.unread().is_empty() {
            lost.clear();
        }
        let accepted = repo.index.accepted_losses()?;
        let mut ids = self.marker.ids().sorted();
        while let Some(id) = ids.take().map_err(no_room)? {
            if kept.contains(&id) || repo.index.is_stored(&id)? || repo.index.is_lost(&id)? {
                continue;
            }
            if !spared.is_empty()
                && repo
                    .index
                    .find_all(&id)?
                    .iter()
                    .any(|place| spared.contains(&place.pack))
            {
                continue;
            }
            lost.push(id);
            // A delta that is there, and whose base is lost.
            if let Some(place) = repo.index.find(&id)? {
                lost.extend(repo.index.base_of(&id, &place.pack)?);
            }
        }
        lost.sort_unstable();
        lost.dedup();
        lost.retain(|id| !accepted.contains(id));
        (report.copied, report.bytes_copied, report.elsewhere) = (copied, bytes_copied, elsewhere);
        report.lost = lost;
        Ok(())
    }
}
