//! Which files of which snapshots damage hits.

use super::packs::Bad;
use super::report::{DamagedFile, Report};
use crate::ops::OpError;
use crate::ops::look::full_path;
use crate::pure::format::entry::{Content, Entry};
use crate::pure::tree::list::for_each_piece;
use crate::pure::tree::walk::TreeWalk;
use crate::repo::RepoError;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::{Snapshot, short_id};
use std::collections::{BTreeMap, BTreeSet};

/// At most this many damaged files are named; the count goes on.
const FILES_NAMED_MAX: usize = 1000;

/// Names the files that damaged chunks belong to, and the snapshots that they are in.
pub(super) fn name_files(
    reader: &BlobReader<'_>,
    snapshots: &[Snapshot],
    bad: &Bad,
    report: &mut Report,
) -> Result<(), OpError> {
    let mut nodes = TreeReader::uncached(reader);
    let mut files: BTreeMap<Vec<u8>, BTreeSet<String>> = BTreeMap::new();
    for snapshot in snapshots {
        let label = short_id(&snapshot.id);
        for root in &snapshot.manifest.roots {
            let mut walk = TreeWalk::new(root.node, root.height, &[]);
            loop {
                let (tree_key, value) = match walk.next(&mut nodes) {
                    Ok(Some(next)) => next,
                    Ok(None) => break,
                    Err(error) if error.is_damage() => {
                        let mut path = root.path.clone();
                        path.extend_from_slice(b" (a part of its tree)");
                        files.entry(path).or_default().insert(label.clone());
                        break;
                    }
                    Err(error) => return Err(error.into()),
                };
                let entry = Entry::decode(&value).map_err(RepoError::from)?;
                if uses_bad(&entry, bad, &mut nodes)? {
                    files
                        .entry(full_path(root, &tree_key)?)
                        .or_default()
                        .insert(label.clone());
                }
            }
        }
    }
    report.damaged_files_total = files.len() as u64;
    report.damaged_files = files
        .into_iter()
        .take(FILES_NAMED_MAX)
        .map(|(path, snapshots)| DamagedFile {
            path,
            snapshots: snapshots.into_iter().collect(),
        })
        .collect();
    Ok(())
}

fn uses_bad(entry: &Entry, bad: &Bad, nodes: &mut TreeReader<'_, '_>) -> Result<bool, OpError> {
    let mut contents: Vec<(&Content, u64)> = entry
        .content()
        .map(|content| (content, entry.size()))
        .into_iter()
        .collect();
    contents.extend(
        entry
            .attributes
            .xattrs_outline
            .iter()
            .map(|(_, size, content)| (content, *size)),
    );
    for (content, size) in contents {
        let mut hit = matches!(content, Content::List { root, .. } if bad.contains_key(root));
        let walked = for_each_piece(content, size, 0..size, nodes, &mut |_, piece| {
            hit |= bad.contains_key(&piece.id);
            Ok::<(), RepoError>(())
        });
        match walked {
            Ok(()) if hit => return Ok(true),
            Ok(()) => {}
            Err(error) if error.is_damage() => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
