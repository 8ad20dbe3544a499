//! What a root's kind says about its entries (format-spec chapter 12.1): the form of keys, the types, and that a directory is
//! there before what is in it.

use super::key;
use super::walk::{NodeSource, Skipped, TreeWalk};
use crate::pure::format::codec::malformed;
use crate::pure::format::entry::{Entry, EntryKind, EntryType};
use crate::pure::format::manifest::{Root, RootKind};
use crate::pure::format::node::KEY_BYTES_MAX;
use crate::pure::format::{FormatError, Malformed};
use crate::pure::id::ChunkId;
use std::collections::VecDeque;

/// Longest name of a stream, in bytes.
pub const STREAM_NAME_BYTES_MAX: usize = 4096;

/// Checks that a root of this kind may have an entry under this key.
///
/// # Errors
/// Names the rule that is broken; for paths as [`key::components`].
pub fn check_key(kind: RootKind, key: &[u8]) -> Result<(), Malformed> {
    match kind {
        RootKind::Posix | RootKind::Windows => key::components(key).map(drop),
        _ if key.is_empty() => malformed("tree key: empty"),
        RootKind::StreamSet if key.len() > STREAM_NAME_BYTES_MAX => malformed("tree key: stream name above 4096 bytes"),
        _ if key.len() > KEY_BYTES_MAX => malformed("tree key: longer than 65535 bytes"),
        RootKind::ObjectMap | RootKind::StreamSet => Ok(()),
    }
}

/// Whether a root of this kind may have entries of this type.
pub fn admits(kind: RootKind, entry_type: EntryType) -> bool {
    match entry_type {
        EntryType::Object => kind == RootKind::ObjectMap,
        EntryType::Stream => kind == RootKind::StreamSet,
        _ => is_path_tree(kind),
    }
}

/// Decodes an entry of a root of this kind.
///
/// # Errors
/// As [`Entry::decode`]; and if the type does not belong there.
pub fn decode_entry(kind: RootKind, value: &[u8]) -> Result<Entry, FormatError> {
    let entry = Entry::decode(value)?;
    if admits(kind, entry.kind.entry_type()) {
        Ok(entry)
    } else {
        Ok(malformed("entry: type that this root does not have")?)
    }
}

/// One entry of a walk.
#[derive(Clone, Debug)]
pub struct Visited {
    pub key: Vec<u8>,
    pub entry: Entry,
    /// The entry as stored.
    pub value: Vec<u8>,
}

/// Walks entries of a root in key order and refuses what may not be in it. Everything that shows a tree or restores from it
/// goes through here, so that no reader meets a link where a directory must be.
///
/// After an error, [`skip_failed`](Self::skip_failed) goes on behind what failed.
pub struct RootWalk {
    kind: RootKind,
    node: ChunkId,
    height: u8,
    walk: TreeWalk,
    part: Part,
    /// Of path trees.
    ancestors: Option<Ancestors>,
    /// The key of the entry that was refused by the last call.
    refused: Option<Vec<u8>>,
    ended: bool,
}

/// Which entries of a root are walked.
enum Part {
    /// The one with this key.
    One(Vec<u8>),
    /// Those whose keys begin so.
    Below(Vec<u8>),
}

impl Part {
    fn start(&self) -> &[u8] {
        match self {
            Part::One(key) | Part::Below(key) => key,
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        match self {
            Part::One(one) => key == one,
            Part::Below(prefix) => key.starts_with(prefix),
        }
    }
}

/// What a walk has passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// A part of the tree that could not be read.
    Lost(Skipped),
    /// The entry with this key, which is malformed or may not be where it is.
    Refused(Vec<u8>),
}

impl RootWalk {
    /// Walks all of a root; of a path tree, its own entry comes first.
    pub fn whole(root: &Root) -> RootWalk {
        RootWalk::new(root, Part::Below(Vec::new()), Ancestors::new())
    }

    /// Walks what is below a directory of a path tree that has been looked up: everything, or only what is directly in it.
    pub fn below(root: &Root, directory: &[&[u8]], recursive: bool) -> RootWalk {
        let prefix = if recursive {
            key::subtree_prefix(directory)
        } else {
            key::children_prefix(directory)
        };
        RootWalk::new(root, Part::Below(prefix), Ancestors::below(directory))
    }

    /// Walks a single entry of a path tree, which is not its root. The directories above it are not looked at.
    pub fn one(root: &Root, components: &[&[u8]]) -> RootWalk {
        let above = components.split_last().map_or(&[][..], |(_, above)| above);
        RootWalk::new(
            root,
            Part::One(key::from_components(components)),
            Ancestors::below(above),
        )
    }

    /// Goes on, after the end of a walk of this [`one`](Self::one) entry, with everything that is below it.
    pub fn into_below(mut self, components: &[&[u8]]) -> RootWalk {
        let prefix = key::subtree_prefix(components);
        self.walk = TreeWalk::new(self.node, self.height, &prefix);
        self.part = Part::Below(prefix);
        self.refused = None;
        self.ended = false;
        self
    }

    fn new(root: &Root, part: Part, ancestors: Ancestors) -> RootWalk {
        RootWalk {
            kind: root.kind,
            node: root.node,
            height: root.height,
            walk: TreeWalk::new(root.node, root.height, part.start()),
            part,
            ancestors: is_path_tree(root.kind).then_some(ancestors),
            refused: None,
            ended: false,
        }
    }

    /// Returns the next entry, or `None` at the end.
    ///
    /// # Errors
    /// Those of the source; [`FormatError`] if an entry may not be where it is.
    pub fn next<S: NodeSource>(&mut self, source: &mut S) -> Result<Option<Visited>, S::Error> {
        self.refused = None;
        while !self.ended {
            let Some((key, value)) = self.walk.next(source)? else {
                break;
            };
            if !self.part.contains(&key) {
                break;
            }
            // The children of the root directory share a prefix that is also the root's own key.
            if key == key::ROOT && self.part.start() == key::ROOT && self.ancestors.is_some() {
                continue;
            }
            return match self.admit(&key, &value) {
                Ok(entry) => Ok(Some(Visited { key, entry, value })),
                Err(error) => {
                    self.refused = Some(key);
                    Err(error.into())
                }
            };
        }
        self.ended = true;
        Ok(None)
    }

    /// Whether the last call failed at an entry, and not at reading.
    pub fn has_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Goes on behind what the last call failed at, to be called after an error only. `None`: that was beyond what is walked,
    /// of which nothing more comes.
    pub fn skip_failed(&mut self) -> Option<Failed> {
        if let Some(key) = self.refused.take() {
            return Some(Failed::Refused(key));
        }
        let skipped = self.walk.skip_failed();
        let is_beyond = |key: &Vec<u8>| key.as_slice() > self.part.start() && !self.part.contains(key);
        if skipped.first_key.as_ref().is_some_and(is_beyond) {
            self.ended = true;
            return None;
        }
        if let Some(ancestors) = &mut self.ancestors {
            ancestors.lose();
        }
        Some(Failed::Lost(skipped))
    }

    fn admit(&mut self, key: &[u8], value: &[u8]) -> Result<Entry, FormatError> {
        check_key(self.kind, key)?;
        let decoded = decode_entry(self.kind, value);
        if let Some(ancestors) = &mut self.ancestors {
            // What cannot be decoded may have been a directory: what is in it comes back all the same.
            let is_directory = decoded.as_ref().map_or(true, |entry| entry.kind == EntryKind::Dir);
            let admitted = ancestors.admit(&key::components(key)?, is_directory);
            let entry = decoded?;
            admitted?;
            return Ok(entry);
        }
        decoded
    }
}

/// Whether keys of such a root are paths.
pub fn is_path_tree(kind: RootKind) -> bool {
    matches!(kind, RootKind::Posix | RootKind::Windows)
}

/// Checks, entry by entry in key order, that the root comes first and that every parent is there as a directory. Otherwise a
/// link could stand where a directory is expected, and a restore would write through it.
///
/// Keeps the names of the directories on the way down that are still to be entered, and no others.
#[derive(Clone, Debug, Default)]
pub struct Ancestors {
    started: bool,
    /// The directory of the last entry.
    path: Vec<Vec<u8>>,
    /// For each directory on the way to it, itself included: those in it that have not been entered, in order. Empty when the
    /// root is no directory.
    waiting: Vec<VecDeque<Vec<u8>>>,
    /// A part of the tree could not be read.
    lossy: bool,
}

impl Ancestors {
    /// For a walk that begins with the root's own entry.
    pub fn new() -> Ancestors {
        Ancestors::default()
    }

    /// For a walk of what is below a directory that has been looked up.
    pub fn below(directory: &[&[u8]]) -> Ancestors {
        Ancestors {
            started: true,
            path: directory.iter().map(|name| name.to_vec()).collect(),
            waiting: vec![VecDeque::new(); directory.len() + 1],
            lossy: false,
        }
    }

    /// Takes note that a part of the tree could not be read. A parent that has not been seen may have been in it, so from
    /// now on it is taken for a directory; where it is not one, whoever writes must not follow it.
    pub fn lose(&mut self) {
        self.lossy = true;
    }

    /// Takes the next entry, given the components of its path.
    ///
    /// # Errors
    /// If it may not be where it is; nothing has changed then.
    pub fn admit(&mut self, components: &[&[u8]], is_directory: bool) -> Result<(), Malformed> {
        let Some((name, parent)) = components.split_last() else {
            if self.started {
                return malformed("tree: the root's entry is not the first");
            }
            self.started = true;
            self.waiting = if is_directory {
                vec![VecDeque::new()]
            } else {
                Vec::new()
            };
            return Ok(());
        };
        if !self.started && !self.lossy {
            return malformed("tree: the root has no entry");
        }
        if !self.started {
            self.started = true;
            self.waiting = vec![VecDeque::new()];
        }
        if self.waiting.is_empty() {
            return malformed("tree: an entry below a root that is no directory");
        }
        let shared = self
            .path
            .iter()
            .zip(parent)
            .take_while(|(have, want)| have.as_slice() == **want)
            .count();
        // Only one directory below the shared ones can have been seen: what is deeper has not begun.
        let [first_new, deeper @ ..] = &parent[shared..] else {
            self.leave_to(shared);
            return self.add(name, is_directory);
        };
        let place = self.waiting[shared].iter().position(|waiting| waiting == first_new);
        let place = place.filter(|_| deeper.is_empty());
        if place.is_none() && !self.lossy {
            return malformed("tree: an entry whose parent is not there as a directory");
        }
        self.leave_to(shared);
        if let Some(place) = place {
            // Those before it have nothing in them, since keys ascend.
            self.waiting[shared].drain(..=place);
        }
        for directory in &parent[shared..] {
            self.path.push(directory.to_vec());
            self.waiting.push(VecDeque::new());
        }
        self.add(name, is_directory)
    }

    fn leave_to(&mut self, depth: usize) {
        self.path.truncate(depth);
        self.waiting.truncate(depth + 1);
    }

    fn add(&mut self, name: &[u8], is_directory: bool) -> Result<(), Malformed> {
        if is_directory && let Some(waiting) = self.waiting.last_mut() {
            waiting.push_back(name.to_vec());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(entries: &[(&str, bool)]) -> Result<(), Malformed> {
        let mut paths: Vec<(Vec<&[u8]>, bool)> = entries
            .iter()
            .map(|(path, is_directory)| {
                (
                    path.split('/')
                        .filter(|name| !name.is_empty())
                        .map(str::as_bytes)
                        .collect(),
                    *is_directory,
                )
            })
            .collect();
        paths.sort_by_key(|(components, _)| key::from_components(components));
        let mut ancestors = Ancestors::new();
        paths
            .iter()
            .try_for_each(|(components, is_directory)| ancestors.admit(components, *is_directory))
    }

    #[test]
    fn whole_trees_are_admitted() {
        let tree = [
            ("", true),
            ("a", true),
            ("a.x", true),
            ("b", false),
            ("z", true),
            ("a/b", true),
            ("a/c", true),
            ("a/d", false),
            ("a/c/e", true),
            ("a/c/e/f", false),
            ("a.x/q", false),
            ("z/last", false),
        ];
        admitted(&tree).unwrap();
        admitted(&[("", false)]).unwrap();
        // Without any one of the directories that hold something, or with a file or link in its place, it is refused.
        for (index, (path, is_directory)) in tree.iter().enumerate() {
            let has_children = tree.iter().any(|(other, _)| match other.strip_prefix(path) {
                Some(rest) => !rest.is_empty() && (path.is_empty() || rest.starts_with('/')),
                None => false,
            });
            let mut without = tree.to_vec();
            without.remove(index);
            assert_eq!(admitted(&without).is_err(), has_children, "without {path}");
            if *is_directory {
                let mut replaced = tree.to_vec();
                replaced[index].1 = false;
                assert_eq!(admitted(&replaced).is_err(), has_children, "file instead of {path}");
            }
        }
    }

    #[test]
    fn walks_of_a_part_begin_in_their_directory() {
        let mut ancestors = Ancestors::below(&[b"a", b"b"]);
        ancestors.admit(&[b"a", b"b", b"c"], true).unwrap();
        ancestors.admit(&[b"a", b"b", b"c", b"d"], false).unwrap();
        assert!(ancestors.admit(&[b"a", b"x", b"c"], false).is_err());
        assert!(ancestors.admit(&[b"a", b"b", b"e", b"d"], false).is_err());
    }

    #[test]
    fn after_a_loss_a_parent_may_have_been_in_what_was_lost() {
        let mut ancestors = Ancestors::new();
        ancestors.lose();
        ancestors.admit(&[b"a", b"b", b"c"], true).unwrap();
        ancestors.admit(&[b"a", b"b", b"c", b"d"], false).unwrap();
        assert!(ancestors.admit(&[], true).is_err());
        let mut below_a_file = Ancestors::new();
        below_a_file.admit(&[], false).unwrap();
        below_a_file.lose();
        assert!(below_a_file.admit(&[b"a"], false).is_err());
    }

    #[test]
    fn types_and_keys_belong_to_the_kind_of_the_root() {
        assert!(admits(RootKind::Posix, EntryType::Socket) && admits(RootKind::Windows, EntryType::Dir));
        assert!(!admits(RootKind::Posix, EntryType::Stream) && !admits(RootKind::StreamSet, EntryType::Symlink));
        assert!(check_key(RootKind::ObjectMap, &[b'k'; 65_535]).is_ok());
        assert!(check_key(RootKind::StreamSet, &[b'k'; 4096]).is_ok());
        assert!(check_key(RootKind::StreamSet, &[b'k'; 4097]).is_err());
        assert!(check_key(RootKind::StreamSet, b"").is_err());
        assert!(check_key(RootKind::Posix, b"a").is_err());
    }
}
