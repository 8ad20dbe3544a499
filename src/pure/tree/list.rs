//! Building and reading list trees (format-spec chapter 13): the pieces of a large file, in order.

use super::build::first_u64;
use crate::pure::format::codec::malformed;
use crate::pure::format::entry::{ChunkRef, Content, sum};
use crate::pure::format::list::{LIST_LEVEL_MAX, ListNode, put_element};
use crate::pure::format::node::join;
use crate::pure::format::{FormatError, Malformed, config::TreeParams};
use crate::pure::id::ChunkId;
use std::ops::Range;

/// Takes finished list nodes; returns their ids.
pub trait ListSink {
    /// Why a node was not taken.
    type Error;
    /// Takes an encoded list node and returns its id.
    fn put_list(&mut self, node: Vec<u8>) -> Result<ChunkId, Self::Error>;
}

/// Streaming builder of a file's content: inline list while it fits, list tree beyond. Memory is bounded by one open
/// node per level.
pub struct ContentBuilder {
    params: TreeParams,
    /// The pieces so far, while they fit the entry.
    inline: Vec<ChunkRef>,
    /// Empty while the pieces are inline.
    levels: Vec<Level>,
    count: u64,
    size: u64,
}

/// One level: its open node, and how many were closed.
#[derive(Default)]
struct Level {
    body: Vec<u8>,
    count: u32,
    total: u64,
    closed: u64,
    last_closed: Option<ChunkId>,
}

impl Level {
    fn close<S: ListSink>(&mut self, level: u8, sink: &mut S) -> Result<(ChunkId, u64), S::Error> {
        let id = sink.put_list(join(level, self.count.into(), &self.body))?;
        let total = self.total;
        self.body.clear();
        (self.count, self.total) = (0, 0);
        self.closed += 1;
        self.last_closed = Some(id);
        Ok((id, total))
    }
}

impl ContentBuilder {
    /// Starts an empty content.
    pub fn new(params: TreeParams) -> ContentBuilder {
        ContentBuilder {
            params,
            inline: Vec::new(),
            levels: Vec::new(),
            count: 0,
            size: 0,
        }
    }

    /// Adds a piece. The caller merges adjacent holes. After an error of the sink the builder can only be dropped.
    ///
    /// # Errors
    /// Those of the sink.
    ///
    /// # Panics
    /// If the piece has no bytes, is a chunk longer than 16 MiB, or takes the size beyond 64 bits: the caller made it.
    pub fn push<S: ListSink>(&mut self, piece: ChunkRef, sink: &mut S) -> Result<(), S::Error> {
        piece.check().expect("the caller makes pieces of 1 byte to 16 MiB");
        self.size = self
            .size
            .checked_add(piece.len)
            .expect("the size of a file fits 64 bits");
        self.count += 1;
        if self.levels.is_empty() {
            if self.inline.len() < self.params.inline_list as usize {
                self.inline.push(piece);
                return Ok(());
            }
            for earlier in std::mem::take(&mut self.inline) {
                self.add(0, earlier.id, earlier.len, sink)?;
            }
        }
        self.add(0, piece.id, piece.len, sink)
    }

    /// Returns total bytes and the content form. Without any piece: empty inline content.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish<S: ListSink>(mut self, sink: &mut S) -> Result<(u64, Content), S::Error> {
        if self.count == 0 {
            return Ok((0, Content::Inline(Vec::new())));
        }
        if self.levels.is_empty() {
            return Ok((self.size, Content::Chunks(self.inline)));
        }
        let mut level = 0;
        loop {
            let open = &mut self.levels[usize::from(level)];
            let root = match (open.closed, open.count) {
                (0, _) => Some(open.close(level, sink)?.0),
                (1, 0) => open.last_closed,
                (_, 0) => None,
                (_, _) => {
                    self.close(level, sink)?;
                    None
                }
            };
            if let Some(root) = root {
                return Ok((
                    self.size,
                    Content::List {
                        root,
                        height: level,
                        count: self.count,
                    },
                ));
            }
            // Two nodes were closed here, so the level above has begun.
            level += 1;
        }
    }

    fn add<S: ListSink>(&mut self, level: u8, id: ChunkId, len: u64, sink: &mut S) -> Result<(), S::Error> {
        let index = usize::from(level);
        if index == self.levels.len() {
            // Ids are keyed hashes, so nodes have close to 2^list_bits elements; 2^32 chunks are a file of petabytes.
            assert!(level <= LIST_LEVEL_MAX, "a list has at most 8 levels");
            self.levels.push(Level::default());
        }
        let open = &mut self.levels[index];
        put_element(&mut open.body, &id, len);
        open.count += 1;
        // Cannot overflow: a part of `size`.
        open.total += len;
        let count_min = if level == 0 { 1 } else { 2 };
        // The id of a hole is 0, which would make every hole a boundary.
        let is_boundary = id != ChunkId::HOLE
            && open.count >= count_min
            && first_u64(id.as_bytes()) <= u64::MAX >> self.params.list_bits;
        if is_boundary || open.count >= self.params.list_max {
            self.close(level, sink)?;
        }
        Ok(())
    }

    /// Closes the open node of a level and adds it to the level above.
    fn close<S: ListSink>(&mut self, level: u8, sink: &mut S) -> Result<(), S::Error> {
        let (id, total) = self.levels[usize::from(level)].close(level, sink)?;
        self.add(level + 1, id, total, sink)
    }
}

/// Fetches list nodes by id.
pub trait ListSource {
    /// Why a node could not be had, or was not accepted.
    type Error: From<FormatError>;
    /// Returns the verified bytes of a list node.
    fn list_node(&mut self, id: &ChunkId) -> Result<Vec<u8>, Self::Error>;
}

/// Calls `each(offset, piece)` for every piece of a content that overlaps `range`, in order; pieces are given whole,
/// also at the ends of the range. Inline content has no pieces. Only list nodes that overlap the range are read.
///
/// Checks that lengths add up: of the content to `size`, of each list node that is read to what is said above it, and
/// of all elements to the count of the entry when the range covers the whole content.
///
/// # Errors
/// Those of the source and of `each`; [`FormatError::Malformed`] if a check fails.
pub fn for_each_piece<S: ListSource>(
    content: &Content,
    size: u64,
    range: Range<u64>,
    source: &mut S,
    each: &mut dyn FnMut(u64, ChunkRef) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    content.check(size).map_err(FormatError::from)?;
    let range = range.start..range.end.min(size);
    if range.is_empty() {
        return Ok(());
    }
    let mut pieces = Pieces {
        range,
        count: 0,
        count_max: 0,
        source,
        each,
    };
    match content {
        Content::Inline(_) => Ok(()),
        Content::Chunks(chunks) => {
            pieces.count_max = chunks.len() as u64;
            pieces.leaf(chunks, 0)
        }
        Content::List { root, height, count } => {
            pieces.count_max = *count;
            pieces.list(root, *height, size, 0)?;
            if pieces.range == (0..size) && pieces.count != *count {
                return refuse("list: number of elements is not that of the entry");
            }
            Ok(())
        }
    }
}

fn refuse<T, E: From<FormatError>>(what: &'static str) -> Result<T, E> {
    Err(FormatError::from(Malformed { what }).into())
}

/// The state of one [`for_each_piece`].
struct Pieces<'a, S: ListSource> {
    range: Range<u64>,
    /// Elements of the leaves that were read.
    count: u64,
    count_max: u64,
    source: &'a mut S,
    #[allow(clippy::type_complexity)]
    each: &'a mut dyn FnMut(u64, ChunkRef) -> Result<(), S::Error>,
}

impl<S: ListSource> Pieces<'_, S> {
    /// Visits the list node `id`, which holds `total` bytes from `offset` on. Descends `level` ≤ 7 levels at most.
    fn list(&mut self, id: &ChunkId, level: u8, total: u64, offset: u64) -> Result<(), S::Error> {
        match open_node(&self.source.list_node(id)?, level, total)? {
            ListNode::Leaf(pieces) => self.leaf(&pieces, offset),
            ListNode::Inner { level, children } => {
                let mut start = offset;
                for (child, bytes) in &children {
                    // Cannot overflow: the sum is `total`, and the root's total is a size of 64 bits.
                    let end = start + bytes;
                    if start >= self.range.end {
                        break;
                    }
                    if end > self.range.start {
                        self.list(child, level - 1, *bytes, start)?;
                    }
                    start = end;
                }
                Ok(())
            }
        }
    }

    fn leaf(&mut self, pieces: &[ChunkRef], offset: u64) -> Result<(), S::Error> {
        self.count = self.count.saturating_add(pieces.len() as u64);
        if self.count > self.count_max {
            return refuse("list: number of elements is not that of the entry");
        }
        let mut start = offset;
        for piece in pieces {
            let end = start + piece.len;
            if start >= self.range.end {
                break;
            }
            if end > self.range.start {
                (self.each)(start, *piece)?;
            }
            start = end;
        }
        Ok(())
    }
}

/// Decodes a list node and checks its level and its total, as said above it.
///
/// # Errors
/// Names the rule that is broken.
pub fn open_node(bytes: &[u8], level: u8, total: u64) -> Result<ListNode, FormatError> {
    let node = ListNode::decode(bytes)?;
    let (found_level, found_total) = match &node {
        ListNode::Leaf(pieces) => (0, sum(pieces.iter().map(|piece| piece.len))),
        ListNode::Inner { level, children } => (*level, sum(children.iter().map(|(_, bytes)| *bytes))),
    };
    if found_level != level {
        return Ok(malformed("list: a node is on the wrong level")?);
    }
    if found_total != Some(total) {
        return Ok(malformed("list: bytes of a node are not what is said above it")?);
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::crypto::{KeyRing, vectors::keys};
    use proptest::prelude::*;
    use std::collections::HashMap;

    struct MemoryLists {
        nodes: HashMap<ChunkId, Vec<u8>>,
        put: usize,
        read: usize,
        keys: KeyRing,
    }

    impl MemoryLists {
        fn new() -> MemoryLists {
            MemoryLists {
                nodes: HashMap::new(),
                put: 0,
                read: 0,
                keys: keys(),
            }
        }
    }

    impl ListSink for MemoryLists {
        type Error = FormatError;
        fn put_list(&mut self, node: Vec<u8>) -> Result<ChunkId, FormatError> {
            let id = self.keys.meta_id(&node).unwrap();
            self.nodes.insert(id, node);
            self.put += 1;
            Ok(id)
        }
    }

    impl ListSource for MemoryLists {
        type Error = FormatError;
        fn list_node(&mut self, id: &ChunkId) -> Result<Vec<u8>, FormatError> {
            self.read += 1;
            self.nodes.get(id).cloned().ok_or(FormatError::WrongId)
        }
    }

    /// Short lists, so that a hundred pieces make a tree of several levels.
    const SMALL: TreeParams = super::super::build::tests::SMALL;

    fn built(params: TreeParams, pieces: &[ChunkRef], sink: &mut MemoryLists) -> (u64, Content) {
        let mut builder = ContentBuilder::new(params);
        pieces.iter().for_each(|piece| builder.push(*piece, sink).unwrap());
        builder.finish(sink).unwrap()
    }

    /// The rules of chapter 13.2 written down level by level.
    fn naive(params: TreeParams, pieces: &[ChunkRef], sink: &mut MemoryLists) -> (u64, Content) {
        let size = pieces.iter().map(|piece| piece.len).sum();
        if pieces.is_empty() {
            return (0, Content::Inline(Vec::new()));
        }
        if pieces.len() <= params.inline_list as usize {
            return (size, Content::Chunks(pieces.to_vec()));
        }
        let mut elements: Vec<(ChunkId, u64)> = pieces.iter().map(|piece| (piece.id, piece.len)).collect();
        for level in 0.. {
            let mut groups: Vec<Vec<(ChunkId, u64)>> = vec![Vec::new()];
            for element in elements {
                let open = groups.last_mut().unwrap();
                open.push(element);
                let number = u64::from_le_bytes(element.0.0[..8].try_into().unwrap());
                let closes = element.0 != ChunkId::HOLE
                    && u128::from(number) < 1u128 << (64 - params.list_bits)
                    && (level == 0 || open.len() >= 2);
                if closes || open.len() == params.list_max as usize {
                    groups.push(Vec::new());
                }
            }
            groups.retain(|group| !group.is_empty());
            let encode = |group: &Vec<(ChunkId, u64)>| match level {
                0 => ListNode::Leaf(group.iter().map(|&(id, len)| ChunkRef { id, len }).collect()).encode(),
                _ => ListNode::Inner {
                    level,
                    children: group.clone(),
                }
                .encode(),
            };
            elements = groups
                .iter()
                .map(|group| {
                    (
                        sink.put_list(encode(group)).unwrap(),
                        group.iter().map(|element| element.1).sum(),
                    )
                })
                .collect();
            if let [(root, _)] = elements.as_slice() {
                return (
                    size,
                    Content::List {
                        root: *root,
                        height: level,
                        count: pieces.len() as u64,
                    },
                );
            }
        }
        unreachable!("levels shrink")
    }

    fn found(
        content: &Content,
        size: u64,
        range: Range<u64>,
        source: &mut MemoryLists,
    ) -> Result<Vec<(u64, ChunkRef)>, FormatError> {
        let mut found = Vec::new();
        for_each_piece(content, size, range, source, &mut |offset, piece| {
            found.push((offset, piece));
            Ok(())
        })?;
        Ok(found)
    }

    fn with_offsets(pieces: &[ChunkRef]) -> Vec<(u64, ChunkRef)> {
        let mut offset = 0;
        let place = |piece: &ChunkRef| {
            offset += piece.len;
            (offset - piece.len, *piece)
        };
        pieces.iter().map(place).collect()
    }

    fn pieces() -> impl Strategy<Value = Vec<ChunkRef>> {
        let piece = prop_oneof![
            4 => (any::<[u8; 32]>(), 1u64..50).prop_map(|(id, len)| ChunkRef { id: ChunkId(id), len }),
            1 => (1u64..200).prop_map(|len| ChunkRef { id: ChunkId::HOLE, len }),
        ];
        prop::collection::vec(piece, 0..120)
    }

    proptest! {
        #[test]
        fn streaming_gives_what_the_rules_say(pieces in pieces()) {
            let (mut sink, mut naive_sink) = (MemoryLists::new(), MemoryLists::new());
            prop_assert_eq!(built(SMALL, &pieces, &mut sink), naive(SMALL, &pieces, &mut naive_sink));
            prop_assert_eq!(&sink.nodes, &naive_sink.nodes, "no node more, no node less");
        }

        #[test]
        fn pieces_come_back_whole_or_by_range(pieces in pieces(), from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
            let mut lists = MemoryLists::new();
            let (size, content) = built(SMALL, &pieces, &mut lists);
            let all = with_offsets(&pieces);
            prop_assert_eq!(found(&content, size, 0..u64::MAX, &mut lists).unwrap(), all.clone());
            prop_assert_eq!(lists.read, lists.put, "every node is read once");
            let (from, to) = (from.index(size as usize + 2) as u64, to.index(size as usize + 2) as u64);
            let inside = |(offset, piece): &&(u64, ChunkRef)| from < to && *offset < to && offset + piece.len > from;
            let expected: Vec<_> = all.iter().filter(inside).copied().collect();
            prop_assert_eq!(found(&content, size, from..to, &mut lists).unwrap(), expected);
        }

        #[test]
        fn corrupt_lists_never_give_more_than_the_size(pieces in pieces(), victim in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut lists = MemoryLists::new();
            let (size, content) = built(SMALL, &pieces, &mut lists);
            let mut ids: Vec<ChunkId> = lists.nodes.keys().copied().collect();
            ids.sort();
            if !ids.is_empty() {
                let node = lists.nodes.get_mut(&ids[victim.index(ids.len())]).unwrap();
                let at = at.index(node.len());
                node[at] = byte;
                if let Ok(pieces) = found(&content, size, 0..size, &mut lists) {
                    prop_assert_eq!(pieces.iter().map(|(_, piece)| piece.len).sum::<u64>(), size);
                }
            }
        }
    }

    fn chunk(seed: u64, len: u64) -> ChunkRef {
        ChunkRef {
            id: keys().data_id(seed.to_string().as_bytes()).unwrap(),
            len,
        }
    }

    #[test]
    fn lists_are_those_of_the_other_implementation() {
        // Printed by build_list of format-spec/vectors/forge.py for the same elements.
        let keys = keys();
        let piece = |index: u64| match index % 1000 {
            7 => ChunkRef {
                id: ChunkId::HOLE,
                len: 1 << 33,
            },
            _ => ChunkRef {
                id: keys.data_id(index.to_string().as_bytes()).unwrap(),
                len: 1 + index,
            },
        };
        let pieces: Vec<ChunkRef> = (0..20_000).map(piece).collect();
        let mut sink = MemoryLists::new();
        let root = "269ed8c7fcae2555be4269caa9178afc7a3c3e7095915bb5826a812e5592be39"
            .parse()
            .unwrap();
        let list = Content::List {
            root,
            height: 1,
            count: 20_000,
        };
        assert_eq!(
            built(TreeParams::default(), &pieces, &mut sink),
            (171_998_511_680, list)
        );
        assert_eq!(sink.put, 25);

        let mut sink = MemoryLists::new();
        let holes = vec![
            ChunkRef {
                id: ChunkId::HOLE,
                len: 5
            };
            9000
        ];
        let root = "72172d1033e8b615170b3dac23dfd639495baabbaa48fa0b393142d21ee00820"
            .parse()
            .unwrap();
        let list = Content::List {
            root,
            height: 1,
            count: 9000,
        };
        assert_eq!(built(TreeParams::default(), &holes, &mut sink), (45_000, list));
        assert_eq!(sink.put, 4, "a hole closes no node, the limit does");
    }

    #[test]
    fn sixty_four_pieces_are_in_the_entry_and_one_more_makes_a_list() {
        let pieces: Vec<ChunkRef> = (0..65).map(|seed| chunk(seed, 10)).collect();
        let mut sink = MemoryLists::new();
        let entry = built(TreeParams::default(), &pieces[..64], &mut sink);
        assert_eq!(entry, (640, Content::Chunks(pieces[..64].to_vec())));
        assert_eq!(sink.put, 0);
        let (size, content) = built(TreeParams::default(), &pieces, &mut sink);
        assert!(matches!(content, Content::List { count: 65, .. }));
        assert_eq!(
            found(&content, size, 0..size, &mut sink).unwrap(),
            with_offsets(&pieces)
        );
        assert_eq!(
            built(TreeParams::default(), &[], &mut sink),
            (0, Content::Inline(Vec::new()))
        );
    }

    #[test]
    fn a_range_reads_only_the_nodes_above_it() {
        let pieces: Vec<ChunkRef> = (0..20_000).map(|seed| chunk(seed, 1000)).collect();
        let mut lists = MemoryLists::new();
        let (size, content) = built(TreeParams::default(), &pieces, &mut lists);
        assert_eq!(
            found(&content, size, 12_345_678..12_345_679, &mut lists).unwrap(),
            [(12_345_000, pieces[12_345])]
        );
        assert_eq!(lists.read, 2);
        lists.read = 0;
        for range in [5..5, size..u64::MAX, u64::MAX..u64::MAX] {
            assert_eq!(found(&content, size, range, &mut lists).unwrap(), []);
        }
        assert_eq!(lists.read, 0);
    }

    #[test]
    fn contents_that_do_not_add_up_are_refused() {
        let mut lists = MemoryLists::new();
        let lists = &mut lists;
        let says = |what| Err(FormatError::Malformed(Malformed { what }));
        let (one, two) = (chunk(1, 10), chunk(2, 20));
        assert!(found(&Content::Chunks(vec![one, two]), 30, 0..30, lists).is_ok());
        for (content, size) in [
            (Content::Chunks(vec![one, two]), 29),
            (Content::Chunks(vec![one, two]), 31),
            (Content::Chunks(vec![]), 0),
            (
                Content::Chunks(vec![
                    ChunkRef {
                        len: u64::MAX,
                        id: ChunkId::HOLE,
                    },
                    two,
                ]),
                19,
            ),
            (Content::Chunks(vec![ChunkRef { len: 17 << 20, ..one }]), 17 << 20),
            (Content::Inline(vec![1, 2]), 3),
            (
                Content::List {
                    root: one.id,
                    height: 8,
                    count: 1,
                },
                10,
            ),
        ] {
            assert!(found(&content, size, 0..size, lists).is_err(), "{content:?} {size}");
        }

        let leaf = lists.put_list(ListNode::Leaf(vec![one, two]).encode()).unwrap();
        let list = |root, height, count| Content::List { root, height, count };
        assert!(found(&list(leaf, 0, 2), 30, 0..30, lists).is_ok());
        let wrong_count = says("list: number of elements is not that of the entry");
        assert_eq!(found(&list(leaf, 0, 1), 30, 0..30, lists), wrong_count);
        assert_eq!(found(&list(leaf, 0, 3), 30, 0..30, lists), wrong_count);
        assert!(
            found(&list(leaf, 0, 3), 30, 0..29, lists).is_ok(),
            "a part does not tell the count"
        );
        let wrong_total = says("list: bytes of a node are not what is said above it");
        assert_eq!(found(&list(leaf, 0, 2), 31, 0..31, lists), wrong_total);
        let wrong_level = says("list: a node is on the wrong level");
        assert_eq!(found(&list(leaf, 1, 2), 30, 0..30, lists), wrong_level);

        // A node cannot be below itself, but the level would end that too.
        let mut child = (leaf, 30u64);
        for level in 1..=7 {
            child.0 = lists
                .put_list(
                    ListNode::Inner {
                        level,
                        children: vec![child],
                    }
                    .encode(),
                )
                .unwrap();
        }
        assert!(found(&list(child.0, 7, 2), 30, 0..30, lists).is_ok());
        let false_total = ListNode::Inner {
            level: 1,
            children: vec![(leaf, 29)],
        };
        let root = lists.put_list(false_total.encode()).unwrap();
        assert_eq!(found(&list(root, 1, 2), 29, 0..29, lists), wrong_total);
        let overflow = ListNode::Inner {
            level: 1,
            children: vec![(leaf, u64::MAX), (leaf, 31)],
        };
        let root = lists.put_list(overflow.encode()).unwrap();
        assert_eq!(found(&list(root, 1, 4), 30, 0..30, lists), wrong_total);
    }

    #[test]
    fn lists_that_multiply_end_at_the_count_of_the_entry() {
        // 4096 times the same node on each of three levels: 2^36 pieces, of which the entry admits a thousand.
        let mut lists = MemoryLists::new();
        let mut node = ListNode::Leaf(vec![chunk(1, 1); 4096]);
        let mut total = 4096u64;
        for level in 1..=2 {
            let id = lists.put_list(node.encode()).unwrap();
            node = ListNode::Inner {
                level,
                children: vec![(id, total); 4096],
            };
            total *= 4096;
        }
        let root = lists.put_list(node.encode()).unwrap();
        assert!(
            found(
                &Content::List {
                    root,
                    height: 2,
                    count: 1000
                },
                total,
                0..total,
                &mut lists
            )
            .is_err()
        );
        assert_eq!(lists.read, 3);
    }
}
