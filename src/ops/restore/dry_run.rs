//! What a restore would do (`--dry-run`): the target is looked at, and nothing is written.

use super::{LaterDir, Options, Outcome, count, delete, fetch, for_each_selected, parts_of};
use crate::ops::look::Location;
use crate::ops::{OpError, Progress};
use crate::pure::format::entry::{Entry, EntryKind};
use crate::repo::Repo;
use crate::repo::reader::TreeReader;
use crate::target::files::{Decision, TargetDir};

/// Counts into `outcome`. Files that a restore would compare are compared, so what is left as it is, is known.
pub(super) fn run(
    repo: &Repo,
    options: &Options,
    locations: &[Location<'_>],
    nodes: &mut TreeReader<'_, '_>,
    outcome: &Outcome,
    progress: &Progress,
) -> Result<(), OpError> {
    // A target that is not there yet has nothing that could stay or go.
    let target = if options.target.exists() {
        Some(TargetDir::open(
            &options.target,
            false,
            options.overwrite,
            options.policy,
        )?)
    } else {
        None
    };
    let mut dirs = Vec::new();
    let mut lists = TreeReader::new(nodes.blobs());
    let mut buffer = Vec::new();
    for (number, location) in locations.iter().enumerate() {
        for_each_selected(
            location,
            options,
            nodes,
            Some(outcome),
            &mut |components, _, entry, value| {
                if progress.is_cancelled() {
                    return Err(OpError::Interrupted);
                }
                if let Some(target) = &target {
                    if entry.kind == EntryKind::Dir {
                        dirs.push(LaterDir {
                            path: components.join(&b'/').into(),
                            value: value.into(),
                            root: number,
                        });
                    } else if stays(
                        repo,
                        options,
                        target,
                        &components,
                        entry,
                        &mut lists,
                        &mut buffer,
                        outcome,
                    )? {
                        outcome.update(|report| report.files_unchanged += 1);
                        return Ok(());
                    }
                }
                outcome.update(|report| count(report, entry));
                Ok(())
            },
        )?;
    }
    if let Some(target) = target.filter(|_| options.delete) {
        for dir in &dirs {
            delete::unlisted(locations, dir, options, &target, nodes, outcome)?;
        }
    }
    Ok(())
}

/// Whether a file would be left as it is.
#[allow(clippy::too_many_arguments)]
fn stays(
    repo: &Repo,
    options: &Options,
    target: &TargetDir,
    components: &[Vec<u8>],
    entry: &Entry,
    lists: &mut TreeReader<'_, '_>,
    buffer: &mut Vec<u8>,
    outcome: &Outcome,
) -> Result<bool, OpError> {
    let path = components.join(&b'/');
    let parts = parts_of(&path);
    let Some((name, parents)) = parts.split_last() else {
        return Ok(false);
    };
    // Where there is no such directory yet, everything in it would be written.
    let Ok(dir) = target.open_dir(parents) else {
        return Ok(false);
    };
    if options.delete {
        delete::clear_the_way(target, &dir, name, true, outcome);
    }
    if entry.content().is_none() {
        return Ok(false);
    }
    match target.decide(&dir, name, entry) {
        Ok(Decision::Keep) => Ok(true),
        Ok(Decision::Compare(existing)) => fetch::is_right(repo, &existing, entry, lists, buffer),
        Ok(Decision::Write) => Ok(false),
        Err(error) => {
            outcome.target_error(error);
            Ok(false)
        }
    }
}
