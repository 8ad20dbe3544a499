//! Auditing a repository (format-spec chapter on check). Everything is read through the same code as restore; what it says is
//! fine can be restored, and what cannot be verified is never called verified.
//!
//! Memory does not grow with what is wrong, and little with what there is: 24 bytes for each tree node, 56 for each pack.

mod contents;
mod files;
mod history;
mod keys;
mod lost;
mod options;
mod packs;
mod parents;
mod parity;
mod read_data;
mod report;
mod side_by_side;
mod trees;

pub use options::{Options, Subset};
pub use report::{DamagedFile, Finding, Report, chain};

use super::{OpError, Progress};
use crate::pure::crypto::Domain;
use crate::pure::format::name::ObjectName;
use crate::repo::Repo;
use crate::repo::locate::IndexLocator;
use crate::repo::open::list_names;
use crate::repo::reader::BlobReader;
use files::name_files;
use history::{check_history, check_runs};
use keys::{check_keys, check_names};
use lost::Lost;
use packs::{check_ledger, check_packs_exist, choose_packs};
use parents::check_parents;
use parity::check_parity;
use read_data::read_packs;
use std::collections::HashSet;
use trees::check_trees;

/// How often a repository is looked at that is pruned meanwhile.
const LOOKS_MAX: u32 = 3;

/// Checks a repository. Findings are in the report; an error means that the check itself could not be done.
///
/// A prune that works beside it copies what is used out of a pack and deletes the pack, and forgotten snapshots go: what was listed at the
/// beginning is missing then, as it should be. So findings are believed only when nothing was condemned meanwhile; otherwise it looks again.
///
/// # Errors
/// When the store cannot be listed or read: nothing is known then.
pub fn run(repo: &Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    repo.require_reading(Domain::Meta, "check the repository")?;
    if options.read_data.is_some() {
        repo.require_reading(Domain::Data, "check the contents of files")?;
    }
    let mut looks = 1;
    loop {
        let before = condemnations(repo)?;
        let report = look(repo, options, progress)?;
        if report.is_sound() || looks == LOOKS_MAX || condemnations(repo)?.is_subset(&before) {
            return Ok(report);
        }
        looks += 1;
        progress.set_current("looking again, because a prune has worked beside it");
    }
}

fn condemnations(repo: &Repo) -> Result<HashSet<ObjectName>, OpError> {
    let listed = list_names(&*repo.store, "gc/")?;
    Ok(listed.into_iter().map(|(name, _)| name).collect())
}

/// One look at everything.
fn look(repo: &Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    let mut report = Report::default();
    check_names(repo, &mut report)?;
    check_keys(repo, &mut report)?;
    check_parity(repo, &mut report)?;
    let mut snapshots = check_history(repo, &mut report)?;
    if let Some(only) = &options.snapshot {
        snapshots.retain(|snapshot| snapshot.id == only.id);
    }
    report.snapshots = snapshots.len() as u64;
    let roots = snapshots
        .into_iter()
        .flat_map(|snapshot| snapshot.into_roots())
        .collect::<Vec<_>>();
    check_runs(repo, &mut report)?;
    let mut lost = Lost::default();
    check_packs_exist(repo, &mut lost, &mut report)?;

    let reader = BlobReader::new(repo, Box::new(IndexLocator));
    let is_part = options.snapshot.is_some();
    let wants_packs = is_part && options.read_data.is_some();
    let trees = check_trees(&reader, &roots, &lost, wants_packs, options.threads, progress)?;
    report.trees_read = trees.report.trees_read;
    report.absorb(trees.report);
    let mut hits = trees.hits;
    check_parents(&reader, &roots, &mut hits, &mut report, options.threads, progress)?;
    if let Some(subset) = &options.read_data {
        let wanted = wants_packs.then_some(&trees.packs);
        let packs = choose_packs(repo, subset, options, wanted, &lost)?;
        let before = lost.changes();
        read_packs(repo, &reader, &packs, options, &mut lost, &mut report, progress)?;
        if lost.changes() > before {
            // What is damaged is known only now, and what it hits has to be looked for.
            hits.add(check_trees(&reader, &roots, &lost, false, options.threads, progress)?.hits);
        }
    }
    check_ledger(repo, &lost, &mut report)?;
    if !hits.is_empty() {
        name_files(&reader, &roots, &hits, &lost, &mut report)?;
    }
    Ok(report)
}
