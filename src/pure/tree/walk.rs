//! Walking and comparing trees (format-spec chapter 12.2, "Reading"): entries in key order, skipping what two trees
//! share.
//!
//! What a walk checks on its way: the level of every node, that the first key of a node is the one its parent gives,
//! that keys ascend through the whole walk, and that totals of every node that is read are those said above it. Leaves
//! are decoded entry by entry into one buffer; inner nodes, one in a hundred, are decoded whole.

use crate::pure::format::entry::{Entry, sum};
use crate::pure::format::node::{Child, LEVEL_MAX, NodeCursor};
use crate::pure::format::{FormatError, Malformed};
use crate::pure::id::ChunkId;
use std::cmp::Ordering;
use std::sync::Arc;

/// Fetches verified node bytes by id.
pub trait NodeSource {
    /// Why a node could not be had, or was not accepted.
    type Error: From<FormatError>;
    /// Returns the bytes of a node.
    fn node(&mut self, id: &ChunkId) -> Result<Arc<[u8]>, Self::Error>;
}

/// A position in a tree: yields (key, value) in ascending order. Checks levels, key order across nodes, entry and byte
/// counts.
///
/// After an error the position is still before what failed: calling again tries again, and
/// [`skip_failed`](Self::skip_failed) goes on behind it, for a restore that saves what can be saved.
pub struct TreeWalk {
    root: Link,
    /// Keys less than this are passed over; taken when the root has been opened.
    from: Option<Vec<u8>>,
    checks_sizes: bool,
    /// From the root downwards: inner nodes and, perhaps, one leaf. Empty before the start and after the end.
    stack: Vec<Frame>,
    started: bool,
    /// The greatest key that was seen in what was left or skipped: everything else is greater.
    last_key: Vec<u8>,
}

/// A node that has not been opened.
#[derive(Clone, Debug)]
struct Link {
    /// What its parent says about its first key; the root has no parent.
    first_key: Option<Vec<u8>>,
    id: ChunkId,
    level: u8,
    /// Entries and bytes below it, as its parent says.
    totals: Option<(u64, u64)>,
}

/// What a walk has passed over because it could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// The node that could not be opened; `None` for the rest of a leaf that is malformed.
    pub node: Option<ChunkId>,
    /// The first key in it, or one before; `None` for the whole tree.
    pub first_key: Option<Vec<u8>>,
    /// How many entries are in it, where that is known.
    pub entries: Option<u64>,
}

impl Link {
    fn skipped(&self) -> Skipped {
        Skipped {
            node: Some(self.id),
            first_key: self.first_key.clone(),
            entries: self.totals.map(|(entries, _)| entries),
        }
    }
}

enum Frame {
    Inner {
        children: Vec<Link>,
        next: usize,
    },
    Leaf {
        cursor: NodeCursor<Arc<[u8]>>,
        has_entry: bool,
    },
}

/// What lies at the position.
enum Head {
    Node,
    Entry,
    End,
}

impl TreeWalk {
    /// Starts at the first key ≥ `from`. `height` and totals are checked against what the nodes say.
    pub fn new(root: ChunkId, height: u8, from: &[u8]) -> TreeWalk {
        TreeWalk {
            root: Link {
                first_key: None,
                id: root,
                level: height,
                totals: None,
            },
            from: (!from.is_empty()).then(|| from.to_vec()),
            checks_sizes: false,
            stack: Vec::new(),
            started: false,
            last_key: Vec::new(),
        }
    }

    /// Also checks the totals of the root, as the manifest states them.
    pub fn expecting(mut self, entries: u64, bytes: u64) -> TreeWalk {
        self.root.totals = Some((entries, bytes));
        self
    }

    /// Also checks the byte totals of leaves, which takes a look into every value: for checking a repository.
    pub fn checking_sizes(mut self) -> TreeWalk {
        self.checks_sizes = true;
        self
    }

    /// Returns the next entry, or `None` at the end.
    ///
    /// # Errors
    /// Those of the source; [`FormatError`] if a check fails.
    #[allow(clippy::type_complexity)]
    pub fn next<S: NodeSource>(&mut self, source: &mut S) -> Result<Option<(Vec<u8>, Vec<u8>)>, S::Error> {
        Ok(self
            .next_ref(source)?
            .map(|(key, value)| (key.to_vec(), value.to_vec())))
    }

    /// Returns the next entry, or `None` at the end, without copying it.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    #[allow(clippy::type_complexity)]
    pub fn next_ref<S: NodeSource>(&mut self, source: &mut S) -> Result<Option<(&[u8], &[u8])>, S::Error> {
        self.descend(source)?;
        Ok(self.take_entry())
    }

    /// Returns what [`next_ref`](Self::next_ref) will return, without passing it: for merging with another sequence.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    #[allow(clippy::type_complexity)]
    pub fn peek_ref<S: NodeSource>(&mut self, source: &mut S) -> Result<Option<(&[u8], &[u8])>, S::Error> {
        self.descend(source)?;
        Ok(self.entry())
    }

    /// Moves forward to the first key ≥ `key` without visiting what lies between. A key that has been passed moves
    /// nothing.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn seek<S: NodeSource>(&mut self, key: &[u8], source: &mut S) -> Result<(), S::Error> {
        self.start(source)?;
        self.seek_started(key, source)
    }

    /// Goes on behind the node, or the rest of the leaf, at which the last call failed. To be called after an error only.
    pub fn skip_failed(&mut self) -> Skipped {
        if !self.started {
            self.started = true;
            return self.root.skipped();
        }
        match self.stack.last_mut() {
            Some(Frame::Inner { children, next }) => {
                let skipped = children.get(*next).map_or_else(Skipped::default, Link::skipped);
                *next = next.saturating_add(1).min(children.len());
                skipped
            }
            Some(Frame::Leaf { .. }) => {
                self.leave_leaf();
                Skipped {
                    first_key: Some(self.last_key.clone()),
                    ..Skipped::default()
                }
            }
            None => Skipped::default(),
        }
    }

    /// Opens the root and goes to where the walk begins; does nothing later on.
    fn start<S: NodeSource>(&mut self, source: &mut S) -> Result<(), S::Error> {
        if !self.started {
            let frame = self.read(&self.root, source)?;
            self.stack.push(frame);
            self.started = true;
        }
        if let Some(from) = self.from.take()
            && let Err(error) = self.seek_started(&from, source)
        {
            self.from = Some(from);
            return Err(error);
        }
        Ok(())
    }

    fn seek_started<S: NodeSource>(&mut self, key: &[u8], source: &mut S) -> Result<(), S::Error> {
        loop {
            let lies_beyond = self.first_key_beyond().is_some_and(|bound| bound <= key);
            match self.stack.last_mut() {
                None => return Ok(()),
                Some(Frame::Inner { children, next }) => {
                    let left = &children[*next..];
                    let not_greater = left.partition_point(|child| child.first_key.as_deref() <= Some(key));
                    if not_greater == left.len() && lies_beyond {
                        self.stack.pop();
                    } else if not_greater == 0 {
                        return Ok(());
                    } else {
                        // The last child that begins at or before the key is the only one that can hold it.
                        *next += not_greater - 1;
                        self.open(source)?;
                    }
                }
                Some(Frame::Leaf { .. }) if lies_beyond => self.leave_leaf(),
                Some(Frame::Leaf { cursor, has_entry }) => {
                    if *has_entry && cursor.key() >= key {
                        return Ok(());
                    }
                    *has_entry = false;
                    if cursor.step()? {
                        *has_entry = true;
                    } else {
                        self.leave_leaf();
                    }
                }
            }
        }
    }

    /// Returns the first key that follows everything below the top of the stack.
    fn first_key_beyond(&self) -> Option<&[u8]> {
        let below_top = self.stack.len().saturating_sub(1);
        self.stack[..below_top].iter().rev().find_map(|frame| match frame {
            Frame::Inner { children, next } => children.get(*next)?.first_key.as_deref(),
            Frame::Leaf { .. } => None,
        })
    }

    /// Opens nodes until the position is an entry or the end.
    fn descend<S: NodeSource>(&mut self, source: &mut S) -> Result<(), S::Error> {
        while let Head::Node = self.settle(source)? {
            self.open(source)?;
        }
        Ok(())
    }

    /// Makes the next node or entry the top of the stack, without opening a node.
    fn settle<S: NodeSource>(&mut self, source: &mut S) -> Result<Head, S::Error> {
        self.start(source)?;
        loop {
            match self.stack.last_mut() {
                None => return Ok(Head::End),
                Some(Frame::Inner { children, next }) if *next < children.len() => return Ok(Head::Node),
                Some(Frame::Inner { .. }) => {
                    self.stack.pop();
                }
                Some(Frame::Leaf { has_entry: true, .. }) => return Ok(Head::Entry),
                Some(Frame::Leaf { cursor, has_entry }) => {
                    if cursor.step()? {
                        *has_entry = true;
                        return Ok(Head::Entry);
                    }
                    self.leave_leaf();
                }
            }
        }
    }

    /// Returns the node at the position. Only after `settle` said that there is one.
    fn link(&self) -> Option<&Link> {
        match self.stack.last() {
            Some(Frame::Inner { children, next }) => children.get(*next),
            _ => None,
        }
    }

    /// Returns the entry at the position.
    fn entry(&self) -> Option<(&[u8], &[u8])> {
        match self.stack.last() {
            Some(Frame::Leaf {
                cursor,
                has_entry: true,
            }) => Some((cursor.key(), cursor.value())),
            _ => None,
        }
    }

    /// Returns the entry at the position and passes it.
    fn take_entry(&mut self) -> Option<(&[u8], &[u8])> {
        match self.stack.last_mut() {
            Some(Frame::Leaf { cursor, has_entry }) if *has_entry => {
                *has_entry = false;
                Some((cursor.key(), cursor.value()))
            }
            _ => None,
        }
    }

    /// Passes the node at the position without opening it.
    fn skip(&mut self) {
        if let Some(Frame::Inner { children, next }) = self.stack.last_mut() {
            if let Some(first_key) = children.get(*next).and_then(|link| link.first_key.as_ref()) {
                self.last_key.clone_from(first_key);
            }
            *next += 1;
        }
    }

    /// Opens the node at the position. If that fails, the position stays.
    fn open<S: NodeSource>(&mut self, source: &mut S) -> Result<(), S::Error> {
        if let Some(link) = self.link() {
            let frame = self.read(link, source)?;
            if let Some(Frame::Inner { next, .. }) = self.stack.last_mut() {
                *next += 1;
            }
            self.stack.push(frame);
        }
        Ok(())
    }

    fn leave_leaf(&mut self) {
        if let Some(Frame::Leaf { cursor, .. }) = self.stack.pop() {
            self.last_key = cursor.into_key();
        }
    }

    fn read<S: NodeSource>(&self, link: &Link, source: &mut S) -> Result<Frame, S::Error> {
        if link.level > LEVEL_MAX {
            return Err(refused("tree: higher than 16 levels").into());
        }
        let bytes = source.node(&link.id)?;
        let is_root = self.stack.is_empty();
        Ok(open_frame(bytes, link, is_root, &self.last_key, self.checks_sizes)?)
    }
}

fn refused(what: &'static str) -> FormatError {
    FormatError::Malformed(Malformed { what })
}

/// Decodes the beginning of a node and checks what its parent says about it.
fn open_frame(
    bytes: Arc<[u8]>,
    link: &Link,
    is_root: bool,
    last_key: &[u8],
    checks_sizes: bool,
) -> Result<Frame, FormatError> {
    let mut cursor = NodeCursor::open(Arc::clone(&bytes))?;
    if cursor.level() != link.level {
        return Err(refused("tree: a node is on the wrong level"));
    }
    let entries = cursor.left() as u64;
    if entries == 0 && !is_root {
        return Err(refused("tree: an empty node below the root"));
    }
    let has_entry = cursor.step()?;
    if link
        .first_key
        .as_deref()
        .is_some_and(|first_key| first_key != cursor.key())
    {
        return Err(refused("tree: the first key of a node is not the one above it"));
    }
    if has_entry && !last_key.is_empty() && cursor.key() <= last_key {
        return Err(refused("tree: keys do not ascend from node to node"));
    }
    if link.level > 0 {
        let children = read_children(cursor)?;
        let totals = (
            add_up(&children, |totals| totals.0)?,
            add_up(&children, |totals| totals.1)?,
        );
        check_totals(link, totals)?;
        return Ok(Frame::Inner { children, next: 0 });
    }
    let bytes_below = if checks_sizes { Some(sizes_of(&bytes)?) } else { None };
    check_totals(
        link,
        (entries, bytes_below.or(link.totals.map(|totals| totals.1)).unwrap_or(0)),
    )?;
    Ok(Frame::Leaf { cursor, has_entry })
}

/// Reads the children of an inner node; the cursor stands at the first.
fn read_children(mut cursor: NodeCursor<Arc<[u8]>>) -> Result<Vec<Link>, FormatError> {
    let mut children = Vec::with_capacity(cursor.left() + 1);
    loop {
        let Child {
            id,
            leaf_entries,
            file_bytes,
        } = Child::decode(cursor.value())?;
        children.push(Link {
            first_key: Some(cursor.key().to_vec()),
            id,
            level: cursor.level() - 1,
            totals: Some((leaf_entries, file_bytes)),
        });
        if !cursor.step()? {
            return Ok(children);
        }
    }
}

fn add_up(children: &[Link], part: impl Fn(&(u64, u64)) -> u64) -> Result<u64, FormatError> {
    sum(children.iter().filter_map(|child| child.totals.as_ref()).map(part))
        .ok_or_else(|| refused("tree: totals beyond 64 bits"))
}

fn check_totals(link: &Link, found: (u64, u64)) -> Result<(), FormatError> {
    match link.totals {
        Some(stated) if stated != found => Err(refused("tree: totals of a node are not those above it")),
        _ => Ok(()),
    }
}

/// Adds up the sizes of the contents of a leaf.
fn sizes_of(leaf: &[u8]) -> Result<u64, FormatError> {
    let mut cursor = NodeCursor::open(leaf)?;
    let mut bytes = 0u64;
    while cursor.step()? {
        let size = Entry::peek_size(cursor.value())?;
        bytes = bytes
            .checked_add(size)
            .ok_or_else(|| refused("tree: totals beyond 64 bits"))?;
    }
    Ok(bytes)
}

/// Looks one key up.
///
/// # Errors
/// Those of the source; [`FormatError`] if a node on the way is corrupt.
pub fn lookup<S: NodeSource>(
    root: ChunkId,
    height: u8,
    key: &[u8],
    source: &mut S,
) -> Result<Option<Vec<u8>>, S::Error> {
    let mut walk = TreeWalk::new(root, height, key);
    walk.start(source)?;
    // Not `next`: a key that is not there must not make it open the leaf behind.
    Ok(walk
        .entry()
        .filter(|(found, _)| *found == key)
        .map(|(_, value)| value.to_vec()))
}

/// Visits every distinct node once, parents before children, skipping ids for which `enter` returns false.
///
/// Leaves are visited but not read: they have no children, and who needs their entries reads them later, many at once.
/// First keys ascend over the whole visit, so that no corrupt tree can lead to an inner node again and again; only a
/// leaf may be named by several keys.
///
/// # Errors
/// Those of the source and of `enter`; [`FormatError`] if an inner node is corrupt.
#[allow(clippy::type_complexity)]
pub fn for_each_node<S: NodeSource>(
    root: ChunkId,
    height: u8,
    source: &mut S,
    enter: &mut dyn FnMut(&ChunkId, u8) -> Result<bool, S::Error>,
) -> Result<(), S::Error> {
    if height > LEVEL_MAX {
        return Err(refused("tree: higher than 16 levels").into());
    }
    // At most one node's children for each level are waiting.
    let mut waiting = vec![Link {
        first_key: None,
        id: root,
        level: height,
        totals: None,
    }];
    let mut before: Option<(Vec<u8>, u8)> = None;
    while let Some(mut link) = waiting.pop() {
        if let (Some((last_key, last_level)), Some(first_key)) = (&before, &link.first_key) {
            // A node one level below the one before is its first child, and begins with the same key.
            let is_first_child = link.level < *last_level;
            if first_key < last_key || (first_key == last_key && !is_first_child) {
                return Err(refused("tree: keys do not ascend from node to node").into());
            }
        }
        if enter(&link.id, link.level)? && link.level > 0 {
            let bytes = source.node(&link.id)?;
            let is_root = link.first_key.is_none();
            if let Frame::Inner { children, .. } = open_frame(bytes, &link, is_root, &[], false)? {
                waiting.extend(children.into_iter().rev());
            }
        }
        before = link.first_key.take().map(|first_key| (first_key, link.level));
    }
    Ok(())
}

/// A difference between two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Only the new tree has the key.
    Added { key: Vec<u8>, value: Vec<u8> },
    /// Only the old tree has the key.
    Removed { key: Vec<u8>, value: Vec<u8> },
    /// The values differ.
    Changed { key: Vec<u8>, old: Vec<u8>, new: Vec<u8> },
}

/// Calls `each` for every difference in key order; subtrees with equal ids are not read.
///
/// Both positions move through nodes that are not open yet. A node is opened only if the other tree cannot have the
/// same one at its position: the one that begins first, or of two that begin with one key the higher, or both. So a
/// shared node is found also where heights differ or boundaries have moved.
///
/// # Errors
/// Those of the source and of `each`; [`FormatError`] if a node is corrupt.
pub fn diff<S: NodeSource>(
    old: (ChunkId, u8),
    new: (ChunkId, u8),
    source: &mut S,
    each: &mut dyn FnMut(Difference) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    if old == new {
        return Ok(());
    }
    let mut old = TreeWalk::new(old.0, old.1, &[]);
    let mut new = TreeWalk::new(new.0, new.1, &[]);
    loop {
        let heads = (old.settle(source)?, new.settle(source)?);
        match heads {
            (Head::End, Head::End) => return Ok(()),
            (Head::Node, Head::End) => old.open(source)?,
            (Head::End, Head::Node) => new.open(source)?,
            (Head::Entry, Head::End) => each(removed(&mut old))?,
            (Head::End, Head::Entry) => each(added(&mut new))?,
            (Head::Node, Head::Node) => meet(&mut old, &mut new, source)?,
            (Head::Node, Head::Entry) => match order(&old, &new) {
                Ordering::Greater => each(added(&mut new))?,
                _ => old.open(source)?,
            },
            (Head::Entry, Head::Node) => match order(&old, &new) {
                Ordering::Less => each(removed(&mut old))?,
                _ => new.open(source)?,
            },
            (Head::Entry, Head::Entry) => match order(&old, &new) {
                Ordering::Less => each(removed(&mut old))?,
                Ordering::Greater => each(added(&mut new))?,
                Ordering::Equal => {
                    if let (Some((key, before)), Some((_, after))) = (old.take_entry(), new.take_entry())
                        && before != after
                    {
                        each(Difference::Changed {
                            key: key.to_vec(),
                            old: before.to_vec(),
                            new: after.to_vec(),
                        })?;
                    }
                }
            },
        }
    }
}

/// Moves on where both trees stand before a node.
fn meet<S: NodeSource>(old: &mut TreeWalk, new: &mut TreeWalk, source: &mut S) -> Result<(), S::Error> {
    let (Some(left), Some(right)) = (old.link(), new.link()) else {
        return Ok(());
    };
    if left.id == right.id && left.level == right.level {
        old.skip();
        new.skip();
        return Ok(());
    }
    let levels = left.level.cmp(&right.level);
    match order(old, new).then(levels.reverse()) {
        Ordering::Less => old.open(source),
        Ordering::Greater => new.open(source),
        Ordering::Equal => {
            old.open(source)?;
            new.open(source)
        }
    }
}

/// Compares the keys at two positions.
fn order(old: &TreeWalk, new: &TreeWalk) -> Ordering {
    old.head_key().cmp(&new.head_key())
}

impl TreeWalk {
    fn head_key(&self) -> Option<&[u8]> {
        self.link()
            .and_then(|link| link.first_key.as_deref())
            .or_else(|| self.entry().map(|(key, _)| key))
    }
}

fn removed(old: &mut TreeWalk) -> Difference {
    let (key, value) = old.take_entry().expect("the walk stands before an entry");
    Difference::Removed {
        key: key.to_vec(),
        value: value.to_vec(),
    }
}

fn added(new: &mut TreeWalk) -> Difference {
    let (key, value) = new.take_entry().expect("the walk stands before an entry");
    Difference::Added {
        key: key.to_vec(),
        value: value.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::format::config::TreeParams;
    use crate::pure::format::node::Node;
    use crate::pure::tree::build::BuiltTree;
    use crate::pure::tree::build::tests::{Map, MemoryNodes, SMALL, built, file, forged, small_map};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn pairs_of<'a>(map: impl IntoIterator<Item = (&'a Vec<u8>, &'a (Vec<u8>, u64))>) -> Pairs {
        map.into_iter()
            .map(|(key, (value, _))| (key.clone(), value.clone()))
            .collect()
    }

    fn rest(walk: &mut TreeWalk, source: &mut MemoryNodes) -> Result<Pairs, FormatError> {
        let mut pairs = Vec::new();
        while let Some(pair) = walk.next(source)? {
            pairs.push(pair);
        }
        assert_eq!(walk.next(source), Ok(None), "the end stays the end");
        Ok(pairs)
    }

    fn map_diff(old: &Map, new: &Map) -> Vec<Difference> {
        let keys: BTreeSet<&Vec<u8>> = old.keys().chain(new.keys()).collect();
        let one = |key: &Vec<u8>| match (old.get(key), new.get(key)) {
            (Some((old, _)), Some((new, _))) if old == new => None,
            (Some((old, _)), Some((new, _))) => Some(Difference::Changed {
                key: key.clone(),
                old: old.clone(),
                new: new.clone(),
            }),
            (Some((value, _)), None) => Some(Difference::Removed {
                key: key.clone(),
                value: value.clone(),
            }),
            (None, Some((value, _))) => Some(Difference::Added {
                key: key.clone(),
                value: value.clone(),
            }),
            (None, None) => None,
        };
        keys.into_iter().filter_map(one).collect()
    }

    fn tree_diff(old: BuiltTree, new: BuiltTree, source: &mut MemoryNodes) -> Vec<Difference> {
        let mut differences = Vec::new();
        diff(
            (old.root, old.height),
            (new.root, new.height),
            source,
            &mut |difference| {
                differences.push(difference);
                Ok(())
            },
        )
        .unwrap();
        differences
    }

    proptest! {
        #[test]
        fn a_walk_is_the_map(map in small_map(), from in prop::collection::vec(0u8..6, 0..4)) {
            let mut nodes = MemoryNodes::new();
            let tree = built(SMALL, &map, &mut nodes);
            let mut walk = TreeWalk::new(tree.root, tree.height, &[]).expecting(tree.entries, tree.bytes);
            prop_assert_eq!(rest(&mut walk, &mut nodes).unwrap(), pairs_of(&map));
            prop_assert_eq!(nodes.read.len(), nodes.put.len(), "every node is read once");
            let mut walk = TreeWalk::new(tree.root, tree.height, &from);
            prop_assert_eq!(rest(&mut walk, &mut nodes).unwrap(), pairs_of(map.range(from..)));
        }

        #[test]
        fn a_seek_goes_to_the_first_key_that_is_not_less(map in small_map(), targets in prop::collection::vec((prop::collection::vec(0u8..6, 0..5), 0usize..3), 1..8)) {
            let mut nodes = MemoryNodes::new();
            let tree = built(SMALL, &map, &mut nodes);
            let mut walk = TreeWalk::new(tree.root, tree.height, &[]);
            let mut left = pairs_of(&map);
            for (target, steps) in targets {
                walk.seek(&target, &mut nodes).unwrap();
                left.retain(|(key, _)| *key >= target);
                for _ in 0..steps.min(left.len()) {
                    let expected = left.remove(0);
                    prop_assert_eq!(walk.peek_ref(&mut nodes).unwrap(), Some((expected.0.as_slice(), expected.1.as_slice())));
                    prop_assert_eq!(walk.next_ref(&mut nodes).unwrap(), Some((expected.0.as_slice(), expected.1.as_slice())));
                }
            }
            prop_assert_eq!(rest(&mut walk, &mut nodes).unwrap(), left);
        }

        #[test]
        fn lookups_find_what_is_there(map in small_map(), key in prop::collection::vec(0u8..6, 1..4)) {
            let mut nodes = MemoryNodes::new();
            let tree = built(SMALL, &map, &mut nodes);
            for key in map.keys().chain([&key]) {
                nodes.read.clear();
                let found = lookup(tree.root, tree.height, key, &mut nodes).unwrap();
                prop_assert_eq!(found.as_ref(), map.get(key).map(|(value, _)| value));
                prop_assert!(nodes.read.len() <= usize::from(tree.height) + 1);
            }
        }

        #[test]
        fn a_diff_is_the_difference_of_the_maps(old in small_map(), new in small_map()) {
            let mut nodes = MemoryNodes::new();
            let (old_tree, new_tree) = (built(SMALL, &old, &mut nodes), built(SMALL, &new, &mut nodes));
            prop_assert_eq!(tree_diff(old_tree, new_tree, &mut nodes), map_diff(&old, &new));
            prop_assert_eq!(tree_diff(new_tree, old_tree, &mut nodes), map_diff(&new, &old));
        }

        #[test]
        fn a_diff_after_edits_reads_no_node_that_both_trees_have(
            old in small_map(),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            added in prop::collection::btree_map(prop::collection::vec(0u8..6, 1..12), (prop::collection::vec(any::<u8>(), 0..20), 0u64..9), 0..4),
        ) {
            let mut new = old.clone();
            for index in removed.iter().filter(|_| !old.is_empty()) {
                new.remove(old.keys().nth(index.index(old.len())).unwrap());
            }
            new.extend(added);
            let (mut nodes, mut old_nodes, mut new_nodes) = (MemoryNodes::new(), MemoryNodes::new(), MemoryNodes::new());
            built(SMALL, &old, &mut old_nodes);
            built(SMALL, &new, &mut new_nodes);
            let (old_tree, new_tree) = (built(SMALL, &old, &mut nodes), built(SMALL, &new, &mut nodes));
            prop_assert_eq!(tree_diff(old_tree, new_tree, &mut nodes), map_diff(&old, &new));
            let shared_reads = nodes
                .read
                .iter()
                .filter(|id| old_nodes.nodes.contains_key(id) && new_nodes.nodes.contains_key(id))
                .filter(|id| **id != old_tree.root && **id != new_tree.root);
            prop_assert_eq!(shared_reads.count(), 0);
        }

        #[test]
        fn every_node_is_visited_once_and_parents_come_first(map in small_map()) {
            let mut nodes = MemoryNodes::new();
            let tree = built(SMALL, &map, &mut nodes);
            let mut visited = Vec::new();
            for_each_node(tree.root, tree.height, &mut nodes, &mut |id, level| {
                visited.push((level, *id));
                Ok(true)
            })
            .unwrap();
            prop_assert_eq!(visited[0], (tree.height, tree.root));
            let mut put = nodes.put.clone();
            prop_assert_eq!(nodes.read.len(), put.iter().filter(|(level, _)| *level > 0).count(), "leaves are not read");
            visited.sort();
            put.sort();
            prop_assert_eq!(visited, put);
        }

        #[test]
        fn corrupt_nodes_are_refused_or_read_in_order(
            map in small_map(),
            victim in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut nodes = MemoryNodes::new();
            let tree = built(SMALL, &map, &mut nodes);
            let id = nodes.put[victim.index(nodes.put.len())].1;
            let mut bytes = nodes.nodes[&id].to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            nodes.nodes.insert(id, bytes.into());
            if let Ok(found) = rest(&mut TreeWalk::new(tree.root, tree.height, &[]), &mut nodes) {
                prop_assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0));
                prop_assert_eq!(found.len(), map.len());
            }
            let _ = lookup(tree.root, tree.height, b"\x03", &mut nodes);
        }
    }

    #[test]
    fn a_walk_through_a_big_tree_checks_every_total() {
        let map = forged(40_000);
        let mut nodes = MemoryNodes::new();
        let tree = built(TreeParams::default(), &map, &mut nodes);
        let walk = || TreeWalk::new(tree.root, tree.height, &[]).checking_sizes();
        let found = rest(&mut walk().expecting(tree.entries, tree.bytes), &mut nodes).unwrap();
        assert_eq!(found, pairs_of(&map));
        assert!(walk().expecting(tree.entries + 1, tree.bytes).next(&mut nodes).is_err());
        assert!(walk().expecting(tree.entries, tree.bytes + 1).next(&mut nodes).is_err());
    }

    #[test]
    fn a_seek_skips_whole_subtrees() {
        let mut nodes = MemoryNodes::new();
        let tree = built(TreeParams::default(), &forged(40_000), &mut nodes);
        let mut walk = TreeWalk::new(tree.root, tree.height, &[]);
        walk.next(&mut nodes).unwrap();
        for target in ["dir\0\0f000001", "dir\0\0f020000", "dir\0\0f039999"] {
            nodes.read.clear();
            walk.seek(target.as_bytes(), &mut nodes).unwrap();
            assert!(nodes.read.len() <= 3, "{} nodes read", nodes.read.len());
            assert_eq!(walk.next_ref(&mut nodes).unwrap().unwrap().0, target.as_bytes());
        }
        walk.seek(b"dir\0\0g", &mut nodes).unwrap();
        assert_eq!(walk.next(&mut nodes), Ok(None));
    }

    #[test]
    fn one_edit_in_a_big_tree_is_found_with_a_few_reads() {
        let (old, mut nodes) = (forged(40_000), MemoryNodes::new());
        let mut new = old.clone();
        new.insert(b"dir\0\0f020000".to_vec(), file(b"changed".to_vec()));
        new.insert(b"dir\0\0f030000x".to_vec(), file(b"added".to_vec()));
        let trees = (
            built(TreeParams::default(), &old, &mut nodes),
            built(TreeParams::default(), &new, &mut nodes),
        );
        assert_eq!(tree_diff(trees.0, trees.1, &mut nodes), map_diff(&old, &new));
        assert!(nodes.read.len() <= 14, "{} nodes read", nodes.read.len());
    }

    #[test]
    fn trees_of_different_height_share_their_nodes_in_a_diff() {
        let (old, new, mut nodes) = (forged(2_000), forged(40_000), MemoryNodes::new());
        let trees = (
            built(TreeParams::default(), &old, &mut nodes),
            built(TreeParams::default(), &new, &mut nodes),
        );
        assert_eq!((trees.0.height, trees.1.height), (1, 2));
        assert_eq!(tree_diff(trees.0, trees.1, &mut nodes).len(), 38_000);
        let reads_of_shared = nodes.read.len() - nodes.read.iter().collect::<BTreeSet<_>>().len();
        assert_eq!(reads_of_shared, 0, "no node is read for both sides");
    }

    /// A leaf of entries without values, and what its parent says about it.
    fn leaf(keys: &[&[u8]], nodes: &mut MemoryNodes) -> (Vec<u8>, Child) {
        let entries: Pairs = keys.iter().map(|key| (key.to_vec(), Vec::new())).collect();
        let id = nodes.insert(Node::encode(0, &entries));
        (
            keys.first().map(|key| key.to_vec()).unwrap_or_default(),
            Child {
                id,
                leaf_entries: keys.len() as u64,
                file_bytes: 0,
            },
        )
    }

    fn inner(level: u8, children: &[(Vec<u8>, Child)], nodes: &mut MemoryNodes) -> (Vec<u8>, Child) {
        let entries: Pairs = children
            .iter()
            .map(|(key, child)| (key.clone(), child.encode()))
            .collect();
        let id = nodes.insert(Node::encode(level, &entries));
        let leaf_entries = children
            .iter()
            .fold(0u64, |sum, (_, child)| sum.saturating_add(child.leaf_entries));
        (
            children[0].0.clone(),
            Child {
                id,
                leaf_entries,
                file_bytes: 0,
            },
        )
    }

    fn walked(root: &(Vec<u8>, Child), height: u8, nodes: &mut MemoryNodes) -> Result<usize, FormatError> {
        rest(&mut TreeWalk::new(root.1.id, height, &[]), nodes).map(|pairs| pairs.len())
    }

    fn says(what: &'static str) -> Result<usize, FormatError> {
        Err(FormatError::Malformed(Malformed { what }))
    }

    #[test]
    fn trees_that_do_not_hold_together_are_refused() {
        let nodes = &mut MemoryNodes::new();
        let (first, second) = (leaf(&[b"a", b"b"], nodes), leaf(&[b"c", b"d"], nodes));
        let good = inner(1, &[first.clone(), second.clone()], nodes);
        assert_eq!(walked(&good, 1, nodes), Ok(4));
        // The entry of the manifest, or of a parent, names another level.
        assert_eq!(walked(&good, 2, nodes), says("tree: a node is on the wrong level"));
        assert_eq!(walked(&good, 0, nodes), says("tree: a node is on the wrong level"));
        assert_eq!(walked(&good, 16, nodes), says("tree: higher than 16 levels"));
        let skipped_level = inner(2, &[first.clone(), second.clone()], nodes);
        assert_eq!(
            walked(&skipped_level, 2, nodes),
            says("tree: a node is on the wrong level")
        );

        let renamed = inner(1, &[first.clone(), (b"bb".to_vec(), second.1)], nodes);
        assert_eq!(
            walked(&renamed, 1, nodes),
            says("tree: the first key of a node is not the one above it")
        );
        let reaches_over = leaf(&[b"a", b"c"], nodes);
        let overlapping = inner(1, &[reaches_over, second.clone()], nodes);
        assert_eq!(
            walked(&overlapping, 1, nodes),
            says("tree: keys do not ascend from node to node")
        );
        let miscounted = Child {
            leaf_entries: 3,
            ..second.1
        };
        let wrong_count = inner(1, &[first.clone(), (second.0.clone(), miscounted)], nodes);
        assert_eq!(
            walked(&wrong_count, 1, nodes),
            says("tree: totals of a node are not those above it")
        );
        let wrong_sum = inner(
            2,
            &[(
                good.0.clone(),
                Child {
                    leaf_entries: 5,
                    ..good.1
                },
            )],
            nodes,
        );
        assert_eq!(
            walked(&wrong_sum, 2, nodes),
            says("tree: totals of a node are not those above it")
        );
        let endless = Child {
            leaf_entries: u64::MAX,
            ..second.1
        };
        let overflowing = inner(1, &[first, (second.0.clone(), endless)], nodes);
        assert_eq!(walked(&overflowing, 1, nodes), says("tree: totals beyond 64 bits"));
        let empty = leaf(&[], nodes);
        let hollow = inner(
            1,
            &[(
                b"c".to_vec(),
                Child {
                    leaf_entries: 1,
                    ..empty.1
                },
            )],
            nodes,
        );
        assert_eq!(walked(&hollow, 1, nodes), says("tree: an empty node below the root"));
        assert_eq!(walked(&empty, 0, nodes), Ok(0));
    }

    #[test]
    fn byte_totals_of_leaves_are_checked_on_demand() {
        let nodes = &mut MemoryNodes::new();
        let (value, size) = file(b"twelve bytes".to_vec());
        let id = nodes.insert(Node::encode(0, &[(b"a".to_vec(), value)]));
        for (file_bytes, is_ok) in [(size, true), (size + 1, false)] {
            let root = inner(
                1,
                &[(
                    b"a".to_vec(),
                    Child {
                        id,
                        leaf_entries: 1,
                        file_bytes,
                    },
                )],
                nodes,
            );
            let mut walk = TreeWalk::new(root.1.id, 1, &[]).checking_sizes();
            assert_eq!(rest(&mut walk, nodes).is_ok(), is_ok);
            assert!(rest(&mut TreeWalk::new(root.1.id, 1, &[]), nodes).is_ok());
        }
    }

    #[test]
    fn nodes_that_name_the_same_children_again_and_again_are_refused() {
        // Both nodes of a level have both nodes of the level below: 2^15 ways to the lowest ones.
        let nodes = &mut MemoryNodes::new();
        let mut pair = [leaf(&[&[200]], nodes), leaf(&[&[201]], nodes)];
        for level in 1..=15u8 {
            pair = [200 - 2 * level, 201 - 2 * level].map(|key| {
                // A first child of its own gives each node a first key of its own.
                let own = (1..level).fold(leaf(&[&[key]], nodes), |child, level| inner(level, &[child], nodes));
                inner(level, &[own, pair[0].clone(), pair[1].clone()], nodes)
            });
        }
        nodes.read.clear();
        let refused = says("tree: keys do not ascend from node to node");
        assert_eq!(walked(&pair[0], 15, nodes), refused);
        assert!(nodes.read.len() < 200, "{} reads", nodes.read.len());
        let mut visits = 0;
        let visited = for_each_node(pair[0].1.id, 15, nodes, &mut |_, _| {
            visits += 1;
            Ok(true)
        });
        assert_eq!(visited.map(|()| 0), refused);
        assert!(visits < 200, "{visits} visits");
    }

    #[test]
    fn a_walk_goes_on_behind_a_node_that_is_lost() {
        let map = forged(2_000);
        let mut nodes = MemoryNodes::new();
        let tree = built(TreeParams::default(), &map, &mut nodes);
        let lost = nodes.put[3].1;
        let lost_entries: Pairs = Node::decode(&nodes.nodes.remove(&lost).unwrap()).unwrap().entries;
        let mut walk = TreeWalk::new(tree.root, tree.height, &[]);
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        loop {
            match walk.next(&mut nodes) {
                Ok(Some(pair)) => found.push(pair),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(walk.next(&mut nodes), Err(error), "trying again tries the same node");
                    let skipped = walk.skip_failed();
                    assert_eq!(skipped.first_key.as_ref(), lost_entries.first().map(|(key, _)| key));
                    assert_eq!(skipped.entries, Some(lost_entries.len() as u64));
                    failures.push(skipped.node);
                }
            }
        }
        assert_eq!(failures, [Some(lost)]);
        found.extend(lost_entries);
        found.sort();
        assert_eq!(found, pairs_of(&map));

        nodes.nodes.remove(&tree.root);
        let mut walk = TreeWalk::new(tree.root, tree.height, b"x");
        assert!(walk.next(&mut nodes).is_err());
        assert_eq!(walk.skip_failed().node, Some(tree.root));
        assert_eq!(walk.next(&mut nodes), Ok(None));
    }

    #[test]
    fn a_subtree_that_is_not_entered_is_not_read() {
        let mut nodes = MemoryNodes::new();
        let tree = built(TreeParams::default(), &forged(40_000), &mut nodes);
        for_each_node(tree.root, tree.height, &mut nodes, &mut |id, _| Ok(*id == tree.root)).unwrap();
        assert_eq!(nodes.read, [tree.root]);
    }
}
