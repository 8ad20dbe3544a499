//! Whether every entry of a path tree is in a directory of that tree (format-spec chapter 12.1). No node can say so by itself:
//! it is a rule of whole trees. A tree that differs little from one that keeps the rule is compared with that one, and only
//! what differs is looked up, so that a check of many snapshots does not read each of them from end to end.

use super::key;
use super::rules::Ancestors;
use super::walk::{Difference, NodeSource, TreeWalk, diff, lookup};
use crate::pure::format::entry::{Entry, EntryType};
use crate::pure::format::{FormatError, Malformed};
use crate::pure::id::ChunkId;

/// Walks all of a tree.
///
/// # Errors
/// Those of the source; [`FormatError`] if an entry may not be where it is.
pub fn check<S: NodeSource>(tree: (ChunkId, u8), source: &mut S) -> Result<(), S::Error> {
    let mut walk = TreeWalk::new(tree.0, tree.1, &[]);
    let mut ancestors = Ancestors::new();
    while let Some((key, value)) = walk.next_ref(source)? {
        let components = key::components(key).map_err(FormatError::from)?;
        ancestors
            .admit(&components, is_directory(value)?)
            .map_err(FormatError::from)?;
    }
    Ok(())
}

/// Checks a tree given another one that keeps the rule. `source` and `lookups` give the same nodes.
///
/// # Errors
/// As [`check`].
pub fn check_against<S: NodeSource>(
    sound: (ChunkId, u8),
    tree: (ChunkId, u8),
    source: &mut S,
    lookups: &mut S,
) -> Result<(), S::Error> {
    // Entries of one directory come one after the other.
    let mut present: Option<Vec<u8>> = None;
    diff(sound, tree, source, &mut |difference| match difference {
        Difference::Added { key, .. } => {
            let Some(parent) = parent_of(&key)? else { return Ok(()) };
            if present.as_ref() != Some(&parent) {
                let value = lookup(tree.0, tree.1, &parent, lookups)?;
                let is_there = value.map(|value| is_directory(&value)).transpose()?.unwrap_or(false);
                if !is_there {
                    return Err(refused("tree: an entry whose parent is not there as a directory").into());
                }
                present = Some(parent);
            }
            Ok(())
        }
        Difference::Removed { key, value: old } => has_nothing_below(tree, &key, &old, lookups),
        Difference::Changed { key, old, new } if !is_directory(&new)? => has_nothing_below(tree, &key, &old, lookups),
        Difference::Changed { .. } => Ok(()),
    })
}

/// Refuses what is still in a directory that is none any more. What is deeper has a parent that was removed as well.
fn has_nothing_below<S: NodeSource>(
    tree: (ChunkId, u8),
    key: &[u8],
    old: &[u8],
    source: &mut S,
) -> Result<(), S::Error> {
    if !is_directory(old)? {
        return Ok(());
    }
    let components = key::components(key).map_err(FormatError::from)?;
    let prefix = key::children_prefix(&components);
    let mut walk = TreeWalk::new(tree.0, tree.1, &prefix);
    while let Some((found, _)) = walk.next_ref(source)? {
        if !found.starts_with(&prefix) {
            break;
        }
        // The root's own key is also what its children begin with.
        if found != key {
            return Err(refused("tree: an entry whose parent is not there as a directory").into());
        }
    }
    Ok(())
}

fn parent_of(key: &[u8]) -> Result<Option<Vec<u8>>, FormatError> {
    let components = key::components(key)?;
    Ok(components
        .split_last()
        .map(|(_, directories)| key::from_components(directories)))
}

fn is_directory(value: &[u8]) -> Result<bool, FormatError> {
    Ok(Entry::peek(value)?.entry_type == EntryType::Dir)
}

fn refused(what: &'static str) -> FormatError {
    FormatError::Malformed(Malformed { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::format::entry::tests::{directory, encoded};
    use crate::pure::tree::build::tests::{Map, MemoryNodes, SMALL, built, file};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Paths of up to three short names; whether each is a directory.
    type Paths = BTreeMap<Vec<u8>, bool>;

    fn some_paths() -> impl Strategy<Value = Paths> {
        let path = prop::collection::vec(prop::sample::select(vec![b"a", b"b", b"c"]), 0..4);
        prop::collection::btree_map(path, any::<bool>(), 0..30).prop_map(|paths| {
            paths
                .into_iter()
                .map(|(names, is_directory)| {
                    let names: Vec<&[u8]> = names.iter().map(|name| name.as_slice()).collect();
                    (key::from_components(&names), is_directory)
                })
                .collect()
        })
    }

    /// Adds what is missing for the rule to hold.
    fn completed(mut paths: Paths) -> Paths {
        let parents: BTreeSet<Vec<u8>> = paths
            .keys()
            .flat_map(|key| {
                let components = key::components(key).unwrap();
                (0..components.len())
                    .map(|depth| key::from_components(&components[..depth]))
                    .collect::<Vec<_>>()
            })
            .collect();
        paths.extend(parents.into_iter().map(|parent| (parent, true)));
        paths
    }

    fn tree_of(paths: &Paths, nodes: &mut MemoryNodes) -> (ChunkId, u8) {
        let map: Map = paths
            .iter()
            .map(|(key, is_directory)| match is_directory {
                true => (key.clone(), (encoded(&directory()), 0)),
                false => (key.clone(), file(vec![1; key.len()])),
            })
            .collect();
        let tree = built(SMALL, &map, nodes);
        (tree.root, tree.height)
    }

    fn keeps_the_rule(paths: &Paths) -> bool {
        paths.keys().all(|key| match parent_of(key).unwrap() {
            Some(parent) => paths.get(&parent) == Some(&true),
            None => true,
        })
    }

    proptest! {
        #[test]
        fn both_ways_find_what_is_not_in_a_directory(old in some_paths(), new in some_paths(), whole in any::<bool>()) {
            let (old, new) = (completed(old), if whole { completed(new) } else { new });
            let mut nodes = MemoryNodes::new();
            let (old, tree) = (tree_of(&old, &mut nodes), tree_of(&new, &mut nodes));
            let mut lookups = MemoryNodes::new();
            lookups.nodes.clone_from(&nodes.nodes);
            prop_assert_eq!(check(old, &mut nodes), Ok(()));
            prop_assert_eq!(check(tree, &mut nodes).is_ok(), keeps_the_rule(&new));
            prop_assert_eq!(check_against(old, tree, &mut nodes, &mut lookups).is_ok(), keeps_the_rule(&new));
        }

        /// One entry is taken away or becomes something else, in a tree that shares most of its nodes with the old one.
        #[test]
        fn one_change_is_enough(old in some_paths(), which in any::<prop::sample::Index>(), remove in any::<bool>()) {
            let old = completed(old);
            prop_assume!(!old.is_empty());
            let mut new = old.clone();
            let key = new.keys().nth(which.index(new.len())).unwrap().clone();
            if remove {
                new.remove(&key);
            } else {
                new.insert(key, false);
            }
            let mut nodes = MemoryNodes::new();
            let (old, tree) = (tree_of(&old, &mut nodes), tree_of(&new, &mut nodes));
            let mut lookups = MemoryNodes::new();
            lookups.nodes.clone_from(&nodes.nodes);
            prop_assert_eq!(check_against(old, tree, &mut nodes, &mut lookups).is_ok(), keeps_the_rule(&new));
        }
    }
}
