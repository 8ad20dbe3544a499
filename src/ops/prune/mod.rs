//! Giving space back: packs that no live snapshot needs are condemned, and deleted when every running session has acknowledged that
//! (format-spec chapter 16.3, [`crate::pure::protocol::maintain`]). Backups go on meanwhile, on this machine and on others; nothing is
//! locked. Whatever cannot be read or is missing stops the run before anything is deleted.
//!
//! 1. *Condemn*: mark what is alive, see what each pack holds, copy what is alive out of packs that are rewritten, and publish
//!    `gc/<session>`. From then on nobody refers to those packs any more.
//! 2. *Sweep*: look at everything again, from listings made in the right order, save what is alive in condemned packs only, and delete.
//!
//! Both look at the same trees, so the second reads only what has been published since.
//!
//! 3. *Compact*: unite index runs when there are many.
//! 4. *Tidy*: remove small objects that nobody needs any more.
//! 5. *Keep*: where objects are locked, extend the locks of what is needed.

pub mod compact;
mod condemn;
mod copy;
pub(in crate::ops) mod ids;
mod locks;
pub(in crate::ops) mod mark;
mod merge;
mod steps;
pub(in crate::ops) mod survey;
mod sweep;
mod tidy;
pub mod undelete;

use super::{OpError, Progress};
use crate::pure::base::{Explain, Kind, Timestamp};
use crate::pure::crypto::sign::role;
use crate::pure::format::name::ObjectName;
use crate::pure::id::SessionId;
use crate::pure::plan::prune::RepackLimits;
use crate::repo::Repo;
use crate::repo::maintain::OpenSession;
pub use locks::{Extended, Held};
use mark::{CHECK_HINT, Marker, Unreadable};
use std::time::Duration;
use survey::Homeless;

/// What to do, and how far to go.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Packs are kept this long after they were condemned, by the store's clock.
    pub grace: Duration,
    /// Rewrite packs that are used badly; `None`: only delete those that are not used at all.
    pub repack: Option<RepackLimits>,
    /// Among those that are rewritten are all that are sealed with secrets of before the last rotation, however well they are used.
    pub rekey: bool,
    /// Sessions that somebody knows to be dead: they are ended now and not waited for.
    pub end_sessions: Vec<SessionId>,
    pub uniting: compact::Uniting,
    pub threads: usize,
    /// Packs that are uploaded at a time.
    pub uploads: usize,
}

/// How many packs, and how many bytes they have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packs {
    pub packs: u64,
    pub bytes: u64,
}

impl Packs {
    fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// What was done, or would be.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Snapshots that are kept, and how many trees, chunks and lists they reach.
    pub snapshots: u64,
    /// Packs in which something is alive, and how many bytes of them are.
    pub used: Packs,
    pub bytes_alive: u64,
    /// Packs in which nothing is alive, those that no run describes among them: condemned by this run.
    pub unused: Packs,
    /// Packs that an interrupted run left behind and nobody listed; part of `unused`.
    pub orphaned: Packs,
    /// Packs that were rewritten because too little of them was used, and the bytes copied out of them.
    pub rewritten: Packs,
    pub bytes_copied: u64,
    /// Packs in which something is alive and that are sealed with secrets of before the last rotation, when this run was over. Only
    /// counted where they were to be rewritten.
    pub outdated: Packs,
    /// Chunks that were copied out of condemned packs because a snapshot needs them after all.
    pub rescued: u64,
    /// Chunks that snapshots need, that are in no pack any more, and that are declared lost.
    pub lost: u64,
    /// Condemned packs that stay because of such a chunk.
    pub kept_damaged: Packs,
    /// Deleted by this run.
    pub deleted: Packs,
    /// Condemned and still there.
    pub waiting: Packs,
    /// Sessions whose acknowledgement is waited for.
    pub waiting_for: Vec<OpenSession>,
    /// When the first packs that wait for their time may be deleted.
    pub deletable_at: Option<Timestamp>,
    /// Sessions that had not given a sign of life for long and were ended.
    pub fenced: Vec<SessionId>,
    /// Index runs that were united, and how many chunks they describe together.
    pub runs_united: u64,
    pub chunks_united: u64,
    /// Small objects that had served and were removed.
    pub tidied: u64,
    /// What was to be deleted and is locked: packs, and index runs that have served. The next prunes try again.
    pub locked: Held,
    /// What came of extending locks.
    pub extended: Extended,
    /// Packs that were to be rewritten and cannot be read: they were left as they are.
    pub damaged: Vec<ObjectName>,
    /// Index runs that cannot be read or do not fit together, in words: what they describe, and what they were made of, was left as it is.
    pub damaged_runs: Vec<String>,
    pub notes: Vec<String>,
}

/// What both halves of a run work with.
struct Work<'r, 'a> {
    repo: &'r Repo,
    options: &'a Options,
    progress: &'a Progress,
    marker: Marker<'r>,
    report: Report,
}

/// Prunes a repository.
///
/// # Errors
/// When the key may not maintain, something is in doubt, or the store fails. Nothing is deleted then that anybody needs, and
/// running it again completes it.
pub fn run(repo: &Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    repo.require(role::MAINTAIN, "prune this repository")?;
    if repo.config.features.gc_compat != 0 {
        return Err(OpError::InDoubt {
            what: "this repository uses a feature that this version does not know, which may rely on packs in ways that it cannot see"
                .into(),
            source: None,
            kind: Kind::Usage,
            hint: "install a newer version of larder",
        });
    }
    let done = match condemn_and_sweep(repo, options, progress) {
        // Freeing space takes a little of it.
        Err(OpError::Repo(error)) if error.is_full() && repo.store.give_up_reserve() => {
            condemn_and_sweep(repo, options, progress)
        }
        done => done,
    };
    match done {
        _ if options.dry_run || repo.config.lock.is_none() => done,
        Ok(mut report) => {
            locks::extend(repo, &mut report, progress)?;
            Ok(report)
        }
        // Nothing is deleted now, and locks go on running out.
        Err(error) if matches!(error.kind(), Kind::Damage | Kind::Tamper) => {
            let mut report = Report::default();
            progress.note(match locks::extend(repo, &mut report, progress) {
                Ok(()) if report.extended.failed == 0 => format!(
                    "nothing was deleted, and {} locks were extended meanwhile",
                    report.extended.extended
                ),
                _ => "the locks of what is needed could not all be extended: they run out".to_owned(),
            });
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn condemn_and_sweep(repo: &Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    let mut work = Work {
        repo,
        options,
        progress,
        marker: Marker::new(
            repo,
            options.threads,
            Unreadable::Accepted(repo.index.accepted_losses()?),
        ),
        report: Report::default(),
    };
    let listed = condemn::run(&mut work)?;
    let listed = sweep::run(&mut work, listed)?;
    compact::run(&mut work, &listed)?;
    tidy::run(&mut work, &listed)?;
    Ok(work.report)
}

/// Ends the run if something that is alive has no copy anywhere.
fn refuse_homeless(homeless: &Homeless) -> Result<(), OpError> {
    if homeless.nowhere_total == 0 || chaos!("missing-chunks-are-no-matter") {
        return Ok(());
    }
    let named: Vec<String> = homeless.nowhere.iter().take(3).map(ToString::to_string).collect();
    Err(OpError::InDoubt {
        what: format!(
            "{} chunks that snapshots need are in no pack that is there ({}{})",
            homeless.nowhere_total,
            named.join(", "),
            if homeless.nowhere_total > 3 { ", …" } else { "" },
        ),
        source: None,
        kind: Kind::Damage,
        hint: CHECK_HINT,
    })
}
