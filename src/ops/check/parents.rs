//! That in every tree each entry is in a directory of that tree. The first tree of a path is walked from end to end, every
//! further one is compared with the last one that was right.

use super::report::{Report, chain};
use super::side_by_side::side_by_side;
use super::trees::{Hits, SnapshotRoot, root_name};
use crate::ops::node_key::node_key;
use crate::ops::{OpError, Progress};
use crate::pure::format::manifest::RootKind;
use crate::pure::tree::parents::{check, check_against};
use crate::repo::RepoError;
use crate::repo::reader::{BlobReader, TreeReader};
use std::collections::{BTreeMap, HashSet};

/// Checks the rule for all roots that have paths. A tree that breaks it is damaged: no restore takes it whole.
///
/// # Errors
/// When the store or the index cannot be read; when the user wants it to end.
pub(super) fn check_parents(
    reader: &BlobReader<'_>,
    roots: &[SnapshotRoot],
    hits: &mut Hits,
    report: &mut Report,
    threads: usize,
    progress: &Progress,
) -> Result<(), OpError> {
    let mut by_path: BTreeMap<&[u8], Vec<&SnapshotRoot>> = BTreeMap::new();
    for root in roots {
        if matches!(root.root.kind, RootKind::Posix | RootKind::Windows) {
            by_path.entry(&root.root.path).or_default().push(root);
        }
    }
    let histories: Vec<Vec<&SnapshotRoot>> = by_path.into_values().collect();
    // A node that cannot be read is met again and again.
    let mut said = HashSet::new();
    for wrong in side_by_side(&histories, threads, |roots| check_history(reader, roots, progress)) {
        for (root, error) in wrong? {
            hits.broken.insert(node_key(&root.root.node));
            if said.insert(chain(&error)) {
                report.error(root_name(root), &error);
            }
        }
    }
    if progress.is_cancelled() {
        return Err(OpError::Interrupted);
    }
    Ok(())
}

/// Returns the roots that break the rule.
fn check_history<'s>(
    reader: &BlobReader<'_>,
    roots: &[&'s SnapshotRoot],
    progress: &Progress,
) -> Result<Vec<(&'s SnapshotRoot, RepoError)>, RepoError> {
    let mut nodes = TreeReader::uncached(reader);
    let mut lookups = TreeReader::uncached(reader);
    let mut sound = None;
    let mut wrong = Vec::new();
    for root in roots {
        if progress.is_cancelled() {
            break;
        }
        let tree = (root.root.node, root.root.height);
        let checked = match sound {
            Some(sound) if sound == tree => continue,
            Some(sound) => check_against(sound, tree, &mut nodes, &mut lookups),
            None => check(tree, &mut nodes),
        };
        match checked {
            Ok(()) => sound = Some(tree),
            Err(error) if error.is_damage() => wrong.push((*root, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(wrong)
}
