//! Building a prolly tree from entries in ascending key order (format-spec chapter 12.2): the same entries give the
//! same bytes, whatever the history.
//!
//! Each level holds one open node as the bytes it will have, so an entry costs one keyed hash and one copy, and no
//! allocation. A closed node becomes an entry of the level above; the level above stays empty until then, which is how
//! the lowest level with a single node comes out as the root.

use crate::pure::crypto::{Secret, keyed_hash};
use crate::pure::format::config::TreeParams;
use crate::pure::format::node::{
    Child, KEY_BYTES_MAX, LEVEL_MAX, VALUE_BYTES_MAX, entry_len, join, node_len, put_entry, shared_prefix,
};
use crate::pure::id::ChunkId;

/// Takes finished nodes; returns their ids. Called from the lowest level upwards, children before parents.
pub trait NodeSink {
    /// Why a node was not taken.
    type Error;
    /// Takes an encoded node and returns its id.
    fn put_node(&mut self, level: u8, node: Vec<u8>) -> Result<ChunkId, Self::Error>;
}

/// A finished tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltTree {
    /// Id of the root node.
    pub root: ChunkId,
    /// Level of the root node.
    pub height: u8,
    /// Entries of all leaves.
    pub entries: u64,
    /// Bytes of all files, objects and streams.
    pub bytes: u64,
}

/// Why a tree cannot hold an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unacceptable {
    /// The key does not come after the one before.
    #[error("the key does not come after the one before")]
    Order,
    /// The key is empty or longer than 65 535 bytes.
    #[error("the path is longer than 65535 bytes")]
    Key,
    /// The value is longer than 65 536 bytes.
    #[error("the attributes are longer than 65536 bytes")]
    Value,
    /// The sizes of all files do not fit 64 bits (some are sparse).
    #[error("the sizes of all files add up to more than 2^64")]
    Total,
}

/// Streaming builder; memory is bounded by one open node per level.
#[derive(Clone)]
pub struct TreeBuilder {
    params: TreeParams,
    split_key: Secret,
    levels: Vec<Level>,
    /// Everything pushed so far.
    totals: Totals,
    /// `level ‖ key`, the input of the split hash: kept so that it is allocated once.
    split_input: Vec<u8>,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    entries: u64,
    bytes: u64,
}

/// One level: its open node, and how many were closed.
#[derive(Clone, Default)]
struct Level {
    /// Encoded entries of the open node.
    body: Vec<u8>,
    count: u64,
    first_key: Vec<u8>,
    /// The key that came last, also when its node is closed: the next one must be greater.
    last_key: Vec<u8>,
    totals: Totals,
    closed: u64,
    /// The node that was closed last: the root, if it stays the only one.
    last_closed: Option<Child>,
}

impl Level {
    /// Whether the open node would be too long with this entry.
    fn is_full_for(&self, key: &[u8], value: &[u8], node_bytes_max: u32) -> bool {
        let entry = entry_len(shared_prefix(&self.last_key, key), key, value);
        self.count > 0 && node_len(self.count + 1, self.body.len() + entry) > node_bytes_max as usize
    }

    fn put(&mut self, key: &[u8], value: &[u8], below: Totals) {
        // The first key of a node shares nothing.
        let previous: &[u8] = if self.count == 0 { &[] } else { &self.last_key };
        put_entry(&mut self.body, previous, key, value);
        if self.count == 0 {
            self.first_key.clear();
            self.first_key.extend_from_slice(key);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.count += 1;
        // Cannot overflow: these are parts of the builder's totals, which `check` keeps within 64 bits.
        self.totals.entries += below.entries;
        self.totals.bytes += below.bytes;
    }

    /// Hands the open node to the sink and begins a new one. The first key of the closed node stays in `first_key`.
    fn close<S: NodeSink>(&mut self, level: u8, sink: &mut S) -> Result<Child, S::Error> {
        let id = sink.put_node(level, join(level, self.count, &self.body))?;
        let child = Child {
            id,
            leaf_entries: self.totals.entries,
            file_bytes: self.totals.bytes,
        };
        self.body.clear();
        self.count = 0;
        self.totals = Totals::default();
        self.closed += 1;
        self.last_closed = Some(child);
        Ok(child)
    }
}

impl TreeBuilder {
    /// Starts an empty tree. `split_key` is `K_split`; the parameters are those of the configuration.
    pub fn new(params: TreeParams, split_key: Secret) -> TreeBuilder {
        let levels = vec![Level::default()];
        TreeBuilder {
            params,
            split_key,
            levels,
            totals: Totals::default(),
            split_input: Vec::new(),
        }
    }

    /// Checks that [`push`](Self::push) will accept an entry. A source asks before it pushes what a file system gave
    /// it, and reports the entry if not.
    ///
    /// # Errors
    /// Says which limit the entry breaks.
    pub fn check(&self, key: &[u8], value: &[u8], file_bytes: u64) -> Result<(), Unacceptable> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(Unacceptable::Key);
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(Unacceptable::Value);
        }
        if self.totals.bytes.checked_add(file_bytes).is_none() {
            return Err(Unacceptable::Total);
        }
        // Before the first entry the last key is empty, and so less than any.
        if key <= self.levels[0].last_key.as_slice() {
            return Err(Unacceptable::Order);
        }
        Ok(())
    }

    /// Returns how many entries were pushed.
    pub fn entries(&self) -> u64 {
        self.totals.entries
    }

    /// Adds an entry; `file_bytes` is the size of its content, 0 for types that have none. After an error of the sink
    /// the builder has lost a node and can only be dropped.
    ///
    /// # Errors
    /// Those of the sink.
    ///
    /// # Panics
    /// If [`check`](Self::check) refuses the entry: keys must ascend strictly and be within the limits.
    pub fn push<S: NodeSink>(
        &mut self,
        key: &[u8],
        value: &[u8],
        file_bytes: u64,
        sink: &mut S,
    ) -> Result<(), S::Error> {
        self.check(key, value, file_bytes)
            .expect("the caller pushes only what `check` accepts");
        self.totals.entries += 1;
        self.totals.bytes += file_bytes;
        self.add(
            0,
            key,
            value,
            Totals {
                entries: 1,
                bytes: file_bytes,
            },
            sink,
        )
    }

    /// Closes every level. A tree without entries is one empty leaf.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish<S: NodeSink>(mut self, sink: &mut S) -> Result<BuiltTree, S::Error> {
        let mut level = 0;
        loop {
            let open = &mut self.levels[usize::from(level)];
            let root = match (open.closed, open.count) {
                // The only node of the lowest level that has no second one.
                (0, _) => Some(open.close(level, sink)?),
                (1, 0) => open.last_closed,
                (_, 0) => None,
                (_, _) => {
                    self.close(level, sink)?;
                    None
                }
            };
            if let Some(Child {
                id,
                leaf_entries,
                file_bytes,
            }) = root
            {
                return Ok(BuiltTree {
                    root: id,
                    height: level,
                    entries: leaf_entries,
                    bytes: file_bytes,
                });
            }
            // Two nodes were closed here, so the level above has begun.
            level += 1;
        }
    }

    /// Closes a copy of the open spine without ending the build: the root of everything pushed so far (for
    /// checkpoints).
    ///
    /// # Errors
    /// Those of the sink; the build itself is not touched.
    pub fn snapshot<S: NodeSink>(&self, sink: &mut S) -> Result<BuiltTree, S::Error> {
        self.clone().finish(sink)
    }

    fn add<S: NodeSink>(
        &mut self,
        level: u8,
        key: &[u8],
        value: &[u8],
        below: Totals,
        sink: &mut S,
    ) -> Result<(), S::Error> {
        let index = usize::from(level);
        if index == self.levels.len() {
            // A node holds three of the longest entries at least, and the split key is secret: this many levels would
            // need more nodes than there are bytes on any machine.
            assert!(level <= LEVEL_MAX, "a tree has at most 16 levels");
            self.levels.push(Level::default());
        }
        if self.levels[index].is_full_for(key, value, self.params.node_bytes_max) {
            self.close(level, sink)?;
        }
        self.levels[index].put(key, value, below);
        let count_min = if level == 0 { 1 } else { 2 };
        if self.levels[index].count >= count_min && self.is_boundary(level, key) {
            self.close(level, sink)?;
        }
        Ok(())
    }

    /// Closes the open node of a level and adds it to the level above.
    fn close<S: NodeSink>(&mut self, level: u8, sink: &mut S) -> Result<(), S::Error> {
        let closing = &mut self.levels[usize::from(level)];
        let child = closing.close(level, sink)?;
        let first_key = std::mem::take(&mut closing.first_key);
        let below = Totals {
            entries: child.leaf_entries,
            bytes: child.file_bytes,
        };
        self.add(level + 1, &first_key, &child.encode(), below, sink)
    }

    fn is_boundary(&mut self, level: u8, key: &[u8]) -> bool {
        let bits = if level == 0 {
            self.params.leaf_bits
        } else {
            self.params.inner_bits
        };
        self.split_input.clear();
        self.split_input.push(level);
        self.split_input.extend_from_slice(key);
        split_value(&self.split_key, &self.split_input) <= u64::MAX >> bits
    }
}

/// Returns the number that decides about a boundary: `LE64(KH(K_split, level ‖ key)[0..8])`.
fn split_value(split_key: &Secret, level_and_key: &[u8]) -> u64 {
    first_u64(&keyed_hash(split_key, &[level_and_key]))
}

/// Returns the first eight of 32 bytes as a little-endian number; lists (chapter 13.2) split by it as well.
pub(super) fn first_u64(bytes: &[u8; 32]) -> u64 {
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = *bytes;
    u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pure::crypto::vectors::keys;
    use crate::pure::format::FormatError;
    use crate::pure::format::entry::tests::{directory, encoded};
    use crate::pure::format::entry::{Content, Entry, EntryKind};
    use crate::pure::format::node::{NODE_BYTES_MAX, Node};
    use crate::pure::tree::walk::NodeSource;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Arc;

    /// Keeps nodes in memory and counts what is put and read.
    pub(in crate::pure::tree) struct MemoryNodes {
        pub nodes: HashMap<ChunkId, Arc<[u8]>>,
        pub put: Vec<(u8, ChunkId)>,
        pub read: Vec<ChunkId>,
        keys: crate::pure::crypto::KeyRing,
    }

    impl MemoryNodes {
        pub fn new() -> MemoryNodes {
            MemoryNodes {
                nodes: HashMap::new(),
                put: Vec::new(),
                read: Vec::new(),
                keys: keys(),
            }
        }

        pub fn insert(&mut self, node: Vec<u8>) -> ChunkId {
            let id = self.keys.meta_id(&node).unwrap();
            self.nodes.insert(id, node.into());
            id
        }
    }

    impl NodeSink for MemoryNodes {
        type Error = FormatError;
        fn put_node(&mut self, level: u8, node: Vec<u8>) -> Result<ChunkId, FormatError> {
            let id = self.insert(node);
            self.put.push((level, id));
            Ok(id)
        }
    }

    impl NodeSource for MemoryNodes {
        type Error = FormatError;
        fn node(&mut self, id: &ChunkId) -> Result<Arc<[u8]>, FormatError> {
            self.read.push(*id);
            self.nodes.get(id).cloned().ok_or(FormatError::WrongId)
        }
    }

    pub(in crate::pure::tree) type Map = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

    /// Small nodes, so that a few hundred entries make a tree of several levels.
    pub(in crate::pure::tree) const SMALL: TreeParams = TreeParams {
        leaf_bits: 2,
        inner_bits: 1,
        node_bytes_max: 400,
        inline_bytes: 512,
        inline_list: 4,
        list_bits: 1,
        list_max: 4,
    };

    pub(in crate::pure::tree) fn builder(params: TreeParams) -> TreeBuilder {
        TreeBuilder::new(params, keys().split_key().unwrap().clone())
    }

    pub(in crate::pure::tree) fn built(params: TreeParams, map: &Map, sink: &mut MemoryNodes) -> BuiltTree {
        let mut builder = builder(params);
        for (key, (value, bytes)) in map {
            builder.push(key, value, *bytes, sink).unwrap();
        }
        builder.finish(sink).unwrap()
    }

    /// The rules of chapter 12.2 written down level by level, with whole nodes encoded at every step.
    fn naive(params: TreeParams, map: &Map, sink: &mut MemoryNodes) -> BuiltTree {
        type Item = (Vec<u8>, Vec<u8>, u64, u64);
        let keys = keys();
        let split_key = keys.split_key().unwrap();
        let pairs = |items: &[Item]| {
            items
                .iter()
                .map(|item| (item.0.clone(), item.1.clone()))
                .collect::<Vec<_>>()
        };
        let mut items: Vec<Item> = map
            .iter()
            .map(|(key, (value, bytes))| (key.clone(), value.clone(), 1, *bytes))
            .collect();
        for level in 0.. {
            let (bits, count_min) = if level == 0 {
                (params.leaf_bits, 1)
            } else {
                (params.inner_bits, 2)
            };
            let mut groups: Vec<Vec<Item>> = vec![Vec::new()];
            for item in items {
                let open = groups.last_mut().unwrap();
                open.push(item.clone());
                if open.len() > 1 && Node::encode(level, &pairs(open)).len() > params.node_bytes_max as usize {
                    open.pop();
                    groups.push(vec![item.clone()]);
                }
                let hash = keyed_hash(split_key, &[&[level], &item.0]);
                let number = u64::from_le_bytes(hash[..8].try_into().unwrap());
                if groups.last().unwrap().len() >= count_min && u128::from(number) < 1u128 << (64 - bits) {
                    groups.push(Vec::new());
                }
            }
            if groups.len() > 1 && groups.last().unwrap().is_empty() {
                groups.pop();
            }
            items = groups
                .iter()
                .map(|group| {
                    let id = sink.insert(Node::encode(level, &pairs(group)));
                    let (leaf_entries, file_bytes) = (group.iter().map(|i| i.2).sum(), group.iter().map(|i| i.3).sum());
                    let first_key = group.first().map(|item| item.0.clone()).unwrap_or_default();
                    let mut value = id.0.to_vec();
                    crate::pure::format::codec::put_varint(&mut value, leaf_entries);
                    crate::pure::format::codec::put_varint(&mut value, file_bytes);
                    (first_key, value, leaf_entries, file_bytes)
                })
                .collect();
            if let [(_, value, entries, bytes)] = items.as_slice() {
                let root = ChunkId::from_slice(&value[..32]).unwrap();
                return BuiltTree {
                    root,
                    height: level,
                    entries: *entries,
                    bytes: *bytes,
                };
            }
        }
        unreachable!("levels shrink")
    }

    pub(in crate::pure::tree) fn file(bytes: Vec<u8>) -> (Vec<u8>, u64) {
        let size = bytes.len() as u64;
        let kind = EntryKind::File {
            size,
            content: Content::Inline(bytes),
        };
        (
            encoded(&Entry {
                kind,
                mode: 0o644,
                ..directory()
            }),
            size,
        )
    }

    /// The tree of `/dir/f000000` …, as format-spec/vectors/forge.py makes it.
    pub(in crate::pure::tree) fn forged(files: usize) -> Map {
        let directory = (encoded(&directory()), 0);
        let mut map = Map::from([(b"\0".to_vec(), directory.clone()), (b"\0dir".to_vec(), directory)]);
        for index in 0..files {
            let content = vec![(index % 251) as u8; index % 512];
            map.insert(format!("dir\0\0f{index:06}").into_bytes(), file(content));
        }
        map
    }

    pub(in crate::pure::tree) fn small_map() -> impl Strategy<Value = Map> {
        let key = prop::collection::vec(0u8..6, 1..12);
        let value = (prop::collection::vec(any::<u8>(), 0..120), 0u64..1000);
        prop::collection::btree_map(key, value, 0..250)
    }

    #[test]
    fn split_hashes_are_those_of_the_vectors() {
        let keys = keys();
        let split_key = keys.split_key().unwrap();
        assert_eq!(split_value(split_key, b"\0\0a"), 0x7a8f_8ccc_65f9_8c41);
        assert_eq!(split_value(split_key, b"\0a\0\0b"), 0xa59d_aaee_0dae_4b8a);
        assert_eq!(split_value(split_key, b"\0\0z"), 0xd211_41ef_dec7_559e);
        let mut builder = builder(TreeParams::default());
        let mut names = (0..).map(|index| format!("f{index:06}"));
        let first = names.find(|name| builder.is_boundary(0, format!("dir\0\0{name}").as_bytes()));
        assert_eq!(first.as_deref(), Some("f000003"));
        assert!(
            !builder.is_boundary(0, b"\0a") && !builder.is_boundary(0, b"a\0\0b") && !builder.is_boundary(0, b"\0z")
        );
    }

    #[test]
    fn trees_are_those_of_the_other_implementation() {
        // Printed by build_tree of format-spec/vectors/forge.py for the same entries.
        for (files, root, height, bytes, nodes) in [
            (
                2_000,
                "539732dc44284efcd04d3f0ffa759c06cf2af4439235974cef9037c08deb809c",
                1,
                499_864,
                37,
            ),
            (
                40_000,
                "95137aacfa3f700f8ec39ab215f1d17c20535088920e6fecb2a94bbc4b6bc93e",
                2,
                10_205_664,
                612,
            ),
        ] {
            let mut sink = MemoryNodes::new();
            let tree = built(TreeParams::default(), &forged(files), &mut sink);
            assert_eq!(tree.root.to_string(), root);
            assert_eq!(
                (tree.height, tree.entries, tree.bytes),
                (height, files as u64 + 2, bytes)
            );
            assert_eq!(sink.put.len(), nodes, "no node is made that is not in the tree");
        }
    }

    #[test]
    fn no_entries_are_one_empty_leaf() {
        let mut sink = MemoryNodes::new();
        let tree = built(TreeParams::default(), &Map::new(), &mut sink);
        assert_eq!((tree.height, tree.entries, tree.bytes), (0, 0, 0));
        assert_eq!(*sink.nodes[&tree.root], [1, 0, 0]);
    }

    #[test]
    fn a_node_is_filled_to_the_last_byte_and_not_beyond() {
        let params = TreeParams {
            leaf_bits: 63,
            inner_bits: 63,
            ..TreeParams::default()
        };
        let value = |len| (vec![0; len], 0);
        for (last, leaves) in [(65_509, 1), (65_510, 2)] {
            let mut sink = MemoryNodes::new();
            let map = Map::from([
                (b"a".to_vec(), value(65_536)),
                (b"b".to_vec(), value(65_536)),
                (b"c".to_vec(), value(65_536)),
                (b"d".to_vec(), value(last)),
            ]);
            let tree = built(params, &map, &mut sink);
            assert_eq!(sink.put.iter().filter(|(level, _)| *level == 0).count(), leaves);
            assert_eq!(tree, naive(params, &map, &mut sink));
            let longest = sink.nodes.values().map(|node| node.len()).max();
            assert_eq!(longest == Some(NODE_BYTES_MAX), leaves == 1);
        }
    }

    #[test]
    fn long_values_split_at_the_real_limit_as_the_rules_say() {
        let map: Map = (0u32..400)
            .map(|index| {
                (
                    format!("k{index:05}").into_bytes(),
                    (vec![index as u8; (index as usize * 7919) % 65_536], 1),
                )
            })
            .collect();
        let mut sink = MemoryNodes::new();
        let tree = built(TreeParams::default(), &map, &mut sink);
        assert_eq!(tree, naive(TreeParams::default(), &map, &mut sink));
        assert!(sink.nodes.values().all(|node| node.len() <= NODE_BYTES_MAX));
        assert!(
            sink.nodes.values().any(|node| node.len() > NODE_BYTES_MAX - 65_536),
            "the limit was met"
        );
    }

    #[test]
    fn what_a_tree_cannot_hold_is_told_before_it_is_pushed() {
        let mut sink = MemoryNodes::new();
        // Every entry closes its node: the order is checked across nodes too.
        let mut builder = builder(TreeParams { leaf_bits: 0, ..SMALL });
        builder.push(b"m", b"", u64::MAX - 5, &mut sink).unwrap();
        assert_eq!(builder.check(b"n", b"", 5), Ok(()));
        assert_eq!(builder.check(b"n", b"", 6), Err(Unacceptable::Total));
        assert_eq!(builder.check(b"m", b"", 0), Err(Unacceptable::Order));
        assert_eq!(builder.check(b"l", b"", 0), Err(Unacceptable::Order));
        assert_eq!(builder.check(b"", b"", 0), Err(Unacceptable::Key));
        assert_eq!(builder.check(&[b'n'; 65_536], b"", 0), Err(Unacceptable::Key));
        assert_eq!(builder.check(&[b'n'; 65_535], b"", 0), Ok(()));
        assert_eq!(builder.check(b"n", &[0; 65_537], 0), Err(Unacceptable::Value));
    }

    #[test]
    #[should_panic(expected = "the caller pushes only what `check` accepts")]
    fn keys_that_descend_are_a_defect() {
        let mut sink = MemoryNodes::new();
        let mut builder = builder(SMALL);
        builder.push(b"b", b"", 0, &mut sink).unwrap();
        let _ = builder.push(b"a", b"", 0, &mut sink);
    }

    proptest! {
        #[test]
        fn streaming_gives_what_the_rules_say(map in small_map()) {
            let (mut sink, mut naive_sink) = (MemoryNodes::new(), MemoryNodes::new());
            let tree = built(SMALL, &map, &mut sink);
            prop_assert_eq!(tree, naive(SMALL, &map, &mut naive_sink));
            let ids = |sink: &MemoryNodes| sink.nodes.keys().copied().collect::<std::collections::BTreeSet<_>>();
            prop_assert_eq!(ids(&sink), ids(&naive_sink), "no node more, no node less");
            prop_assert_eq!(sink.put.last(), Some(&(tree.height, tree.root)));
            for (level, id) in &sink.put {
                let node = Node::decode(&sink.nodes[id]).unwrap();
                prop_assert_eq!(node.level, *level);
                for (_, value) in node.entries.iter().filter(|_| *level > 0) {
                    let child = Child::decode(value).unwrap().id;
                    let position = |id| sink.put.iter().position(|put| put.1 == id);
                    prop_assert!(position(child) < position(*id), "children come before parents");
                }
            }
        }

        #[test]
        fn checkpoints_are_trees_of_their_own_and_do_not_disturb(map in small_map(), at in any::<prop::sample::Index>()) {
            let mut sink = MemoryNodes::new();
            let at = at.index(map.len() + 1);
            let mut builder = builder(SMALL);
            for (index, (key, (value, bytes))) in map.iter().enumerate() {
                if index == at {
                    let begun: Map = map.clone().into_iter().take(at).collect();
                    prop_assert_eq!(builder.snapshot(&mut sink).unwrap(), naive(SMALL, &begun, &mut MemoryNodes::new()));
                }
                builder.push(key, value, *bytes, &mut sink).unwrap();
            }
            prop_assert_eq!(builder.snapshot(&mut sink).unwrap(), built(SMALL, &map, &mut sink));
            prop_assert_eq!(builder.finish(&mut sink).unwrap(), built(SMALL, &map, &mut sink));
        }
    }
}
