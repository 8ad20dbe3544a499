//! Removing from the target what the snapshot does not have (`--delete`).

use super::{LaterDir, Options, Outcome, location_below, parts_of};
use crate::ops::OpError;
use crate::ops::look::{self, Location};
use crate::pure::tree::key;
use crate::pure::tree::walk::TreeWalk;
use crate::repo::reader::TreeReader;
use crate::target::files::{DirHandle, TargetDir};
use std::collections::HashSet;

/// Names in a directory of the target that further roots are below; `None` if one is this directory.
fn names_of_roots(locations: &[Location<'_>], dir: &LaterDir) -> Option<HashSet<Vec<u8>>> {
    let here = parts_of(&dir.path);
    let mut names = HashSet::new();
    for (number, location) in locations.iter().enumerate() {
        let Some(above) = location.above.filter(|_| number != dir.root) else {
            continue;
        };
        let parts = look::split_path(&location.root.path).split_off(above);
        if parts.len() >= here.len() && here.iter().zip(&parts).all(|(here, part)| *here == part.as_slice()) {
            names.insert(parts.get(here.len())?.clone());
        }
    }
    Some(names)
}

/// Removes from a directory of the target what its snapshot does not have. Without the whole list nothing goes.
pub(super) fn unlisted(
    locations: &[Location<'_>],
    dir: &LaterDir,
    options: &Options,
    target: &TargetDir,
    nodes: &mut TreeReader<'_, '_>,
    outcome: &Outcome,
) -> Result<(), OpError> {
    // Where another root begins, this one has the empty directory that was mounted on.
    let Some(mut names) = names_of_roots(locations, dir) else {
        return Ok(());
    };
    let location = &locations[dir.root];
    let root = location.root;
    let below = location_below(location, &dir.path);
    let below: Vec<&[u8]> = below.iter().map(Vec::as_slice).collect();
    let full = look::full_path(root, &key::from_components(&below))?;
    let prefix = key::children_prefix(&below);
    let mut walk = TreeWalk::new(root.node, root.height, &prefix);
    loop {
        match walk.next(nodes) {
            Ok(Some((tree_key, _))) => match tree_key.strip_prefix(prefix.as_slice()) {
                Some(name) => names.insert(name.to_vec()),
                None => break,
            },
            Ok(None) => break,
            Err(error) => {
                // Without the whole list nothing may go.
                outcome.repo_error(&full, error);
                return Ok(());
            }
        };
    }
    let parts = parts_of(&dir.path);
    let handle = match target.open_dir(&parts) {
        Ok(handle) => handle,
        // Where nothing is made, directories may be missing.
        Err(_) if options.dry_run => return Ok(()),
        Err(error) => {
            outcome.target_error(error);
            return Ok(());
        }
    };
    let keep = |name: &[u8]| {
        // What was not selected for this restore is not its business.
        let path = [full.as_slice(), name].join(&b'/');
        names.contains(name) || !options.selection.accepts(&path, false)
    };
    remove(target, &handle, &keep, options.dry_run, outcome);
    Ok(())
}

/// Removes the directory that stands where something else is to be; links and files give way by themselves.
pub(super) fn clear_the_way(
    target: &TargetDir,
    directory: &DirHandle,
    name: &[u8],
    is_dry_run: bool,
    outcome: &Outcome,
) {
    if target.has_directory(directory, name) {
        remove(target, directory, &|other| other != name, is_dry_run, outcome);
    }
}

/// Removes, or only counts.
fn remove(
    target: &TargetDir,
    directory: &DirHandle,
    keep: &dyn Fn(&[u8]) -> bool,
    is_dry_run: bool,
    outcome: &Outcome,
) {
    let removed = if is_dry_run {
        target.count_unlisted(directory, keep)
    } else {
        target.remove_unlisted(directory, keep)
    };
    match removed {
        Ok(removed) => {
            outcome.update(|report| report.removed += removed.count);
            for problem in removed.problems {
                outcome.failed(problem.to_string());
            }
        }
        Err(error) => outcome.target_error(error),
    }
}
