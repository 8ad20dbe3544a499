//! Writing a lost index anew: every pack that no run describes any more is read at its end, and listed in a run of this session
//! (format-spec chapter 16.8). The outcome says which runs these stand for, so that those need not be there any more.

use super::heal;
use crate::ops::check::{self, chain};
use crate::ops::{OpError, Progress};
use crate::pure::crypto::sign::role;
use crate::pure::format::name::ObjectName;
use crate::pure::format::session::SessionRole;
use crate::repo::at_once::so_many_at_once;
use crate::repo::index::OwnPack;
use crate::repo::reindex::LostRuns;
use crate::repo::session::{Maintained, Session};
use crate::repo::trailers::ListedPack;
use crate::repo::{Repo, RepoError};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Packs whose ends are read between two looks at what else is due.
const PACKS_IN_A_STEP: usize = 1024;
/// Ends that are read at a time: most of the time is waiting.
const REMOTE_READS: usize = 64;
const LOCAL_READS: usize = 8;
/// Records in a run, about.
const RUN_RECORDS: usize = 65_536;

/// What was found.
#[derive(Debug)]
pub struct Plan {
    /// Runs that count and cannot be read.
    pub lost: LostRuns,
    /// Packs that no run describes.
    pub packs: Vec<ListedPack>,
    /// Objects of lost runs that parity rebuilds.
    pub healable: Vec<ObjectName>,
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether nothing is amiss.
    pub fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.packs.is_empty()
    }
}

/// What was done, or would be.
#[derive(Debug, Default)]
pub struct Report {
    /// Objects of runs that parity has rebuilt.
    pub healed: Vec<ObjectName>,
    /// Packs that no run described, and the blobs in them.
    pub packs: u64,
    pub blobs: u64,
    /// Packs that do not say what is in them, and why.
    pub unreadable: Vec<(ObjectName, String)>,
    /// Runs that were written.
    pub runs: u64,
    /// What a check says afterwards, if something was done: a pack may be lost together with the run that described it.
    pub after: Option<check::Report>,
}

/// Looks what the index lacks. Writes to the local cache only.
///
/// # Errors
/// When the key may not maintain, or the store fails.
pub fn plan(repo: &Repo, progress: &Progress) -> Result<Plan, OpError> {
    repo.require(role::MAINTAIN, "write the index of this repository anew")?;
    let state = repo.sync_history()?;
    let mut notes = state.notes;
    notes.extend(state.gaps);
    let broken = state.broken.iter();
    notes.extend(broken.map(|(name, error)| format!("{name} cannot be used: {}", chain(error))));
    repo.sync_condemned()?;
    progress.set_current("reading the index");
    let lost = repo.lost_runs()?;
    let packs = repo.undescribed_packs()?;
    let mut objects: Vec<ObjectName> = Vec::new();
    for name in lost.names() {
        // That of an object, or what the names of all its parts begin with.
        objects.extend(heal::with_sidecar(repo, &name)?);
    }
    let healable = heal::healable(repo, objects, progress)?;
    Ok(Plan {
        lost,
        packs,
        healable,
        notes,
    })
}

/// Puts back what parity rebuilds, and lists again what no run lists then.
///
/// # Errors
/// When the store fails. Running it again completes it.
pub fn run(repo: &Repo, plan: &Plan, threads: usize, progress: &Progress) -> Result<Report, OpError> {
    let mut report = Report::default();
    if plan.is_empty() {
        return Ok(report);
    }
    report.healed = heal::heal(repo, plan.healable.iter().cloned(), progress)?;
    if report.healed.is_empty() {
        write(repo, plan, &mut report, progress)?;
    } else {
        let left = self::plan(repo, progress)?;
        if !left.is_empty() {
            write(repo, &left, &mut report, progress)?;
        }
    }
    let options = check::Options {
        threads,
        ..check::Options::default()
    };
    report.after = Some(check::run(repo, &options, progress)?);
    Ok(report)
}

/// Reads what would be listed, and writes nothing.
///
/// # Errors
/// When the store fails.
pub fn dry_run(repo: &Repo, plan: &Plan, progress: &Progress) -> Result<Report, OpError> {
    let mut report = Report {
        healed: plan.healable.clone(),
        ..Report::default()
    };
    describe_all(repo, &plan.packs, &mut report, progress, &mut |_| Ok(()))?;
    Ok(report)
}

fn write(repo: &Repo, plan: &Plan, report: &mut Report, progress: &Progress) -> Result<(), OpError> {
    let mut session = Session::begin(repo, None, SessionRole::Repair, 1, Instant::now())?;
    if let Err(error) = fill(repo, &mut session, &plan.packs, report, progress) {
        session.abandon();
        return Err(error);
    }
    let durable = match session.make_durable() {
        Ok(durable) => durable,
        Err(error) => {
            session.abandon();
            return Err(error.into());
        }
    };
    let id = session.id();
    if !session.publish_maintenance(durable, Maintained::replacing(plan.lost.names()))? {
        return Err(RepoError::Fenced(id).into());
    }
    // What was listed is found on this machine from here on.
    repo.sync_index()?;
    Ok(())
}

/// Lists what the packs say, in runs of this session.
fn fill(
    repo: &Repo,
    session: &mut Session<'_>,
    packs: &[ListedPack],
    report: &mut Report,
    progress: &Progress,
) -> Result<(), OpError> {
    let (mut found, mut records, mut runs) = (Vec::new(), 0, 0);
    describe_all(repo, packs, report, progress, &mut |described| {
        for pack in described {
            records += pack.records.len();
            found.push(pack);
            if records >= RUN_RECORDS {
                session.list_found(std::mem::take(&mut found))?;
                (records, runs) = (0, runs + 1);
            }
        }
        Ok(session.tick()?)
    })?;
    if !found.is_empty() {
        session.list_found(found)?;
        runs += 1;
    }
    report.runs = runs;
    Ok(())
}

/// Reads the ends of all packs and hands out what they say. One that is gone by now has been deleted by a sweep.
fn describe_all(
    repo: &Repo,
    packs: &[ListedPack],
    report: &mut Report,
    progress: &Progress,
    each: &mut dyn FnMut(Vec<OwnPack>) -> Result<(), OpError>,
) -> Result<(), OpError> {
    progress.set_current("reading what packs say about themselves");
    let bytes = packs.iter().map(|pack| pack.size).sum();
    progress.bytes_total.store(bytes, Ordering::Relaxed);
    progress.totals_final.store(true, Ordering::Relaxed);
    let many = if repo.store.is_local() {
        LOCAL_READS
    } else {
        REMOTE_READS
    };
    for step in packs.chunks(PACKS_IN_A_STEP) {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        let mut described = Vec::with_capacity(step.len());
        for (listed, read) in step.iter().zip(so_many_at_once(many, step, |pack| repo.describe(pack))) {
            match read {
                Ok(pack) => {
                    report.packs += 1;
                    report.blobs += pack.records.len() as u64;
                    described.push(pack);
                }
                Err(error) if error.is_absence() => {}
                Err(error) if error.is_damage() => {
                    report.unreadable.push((listed.name(), chain(&error)));
                }
                Err(error) => return Err(error.into()),
            }
            progress.file_done(listed.size);
        }
        each(described)?;
    }
    Ok(())
}
