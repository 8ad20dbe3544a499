//! Auditing a repository (format-spec chapter on check). Everything is read through the same code as restore; what it says is
//! fine can be restored, and what cannot be verified is never called verified.

mod files;
mod history;
mod keys;
mod options;
mod packs;
mod read_data;
mod report;
mod trees;

pub use options::{Options, Subset};
pub use report::{DamagedFile, Finding, Report, chain};

use super::{OpError, Progress};
use crate::repo::Repo;
use crate::repo::locate::IndexLocator;
use crate::repo::reader::BlobReader;
use crate::repo::snapshots::Snapshot;
use files::name_files;
use history::{check_history, check_runs};
use keys::{check_keys, check_names};
use packs::{check_packs_exist, choose_packs, note_ages};
use read_data::read_packs;
use trees::check_trees;

/// Checks a repository. Findings are in the report; an error means that the check itself could not be done.
///
/// # Errors
/// When the store cannot be listed or read: nothing is known then.
pub fn run(repo: &Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    let mut report = Report::default();
    check_names(repo, &mut report)?;
    check_keys(repo, &mut report)?;
    let snapshots = check_history(repo, &mut report)?;
    check_runs(repo, &mut report)?;
    let mut bad = check_packs_exist(repo, &mut report)?;
    let snapshots: Vec<Snapshot> = match &options.snapshot {
        Some(only) => snapshots
            .into_iter()
            .filter(|snapshot| snapshot.id == only.id)
            .collect(),
        None => snapshots,
    };
    report.snapshots = snapshots.len() as u64;
    let reader = BlobReader::new(repo, Box::new(IndexLocator));
    let wanted = check_trees(
        repo,
        &reader,
        &snapshots,
        &mut bad,
        &mut report,
        progress,
        options.snapshot.is_some(),
    )?;
    if let Some(subset) = &options.read_data {
        let packs = choose_packs(repo, subset, options, wanted.as_ref())?;
        read_packs(repo, &reader, packs, options, &mut bad, &mut report, progress)?;
    }
    note_ages(repo, &mut report)?;
    if !bad.is_empty() {
        name_files(&reader, &snapshots, &bad, &mut report)?;
    }
    Ok(report)
}
