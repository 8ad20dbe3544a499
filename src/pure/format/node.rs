//! Tree nodes (format-spec chapter 12.2): sorted entries with prefix-compressed keys.
//!
//! [`NodeCursor`] reads a node entry by entry without allocating for each: a run over an unchanged tree passes a
//! million entries through it. [`Node`] is the convenient form for everything that is not hot.

use super::FormatError;
use super::codec::{Reader, malformed, put_varint};
use crate::pure::id::ChunkId;
use std::ops::{Deref, Range};

/// Longest encoded node, in bytes.
pub const NODE_BYTES_MAX: usize = 262_144;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 65_535;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 65_536;
/// Highest level of a node.
pub const LEVEL_MAX: u8 = 15;
/// The version of the node layout.
pub const NODE_VERSION: u8 = 1;
/// Fewest bytes of an entry: two lengths, one byte of key, the length of an empty value.
const ENTRY_BYTES_MIN: usize = 4;

/// A decoded node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// 0 for a leaf.
    pub level: u8,
    /// Key and value of each entry, keys strictly ascending.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Value of an inner entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// The node one level below.
    pub id: ChunkId,
    /// Entries of all leaves below; at least 1.
    pub leaf_entries: u64,
    /// Bytes of all files, objects and streams below.
    pub file_bytes: u64,
}

impl Node {
    /// Encodes a node from sorted entries.
    pub fn encode(level: u8, entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut body = Vec::new();
        let mut previous: &[u8] = &[];
        for (key, value) in entries {
            put_entry(&mut body, previous, key, value);
            previous = key;
        }
        join(level, entries.len() as u64, &body)
    }

    /// Decodes and checks: version, level, sorted unique keys, canonical prefixes, bounds, inner values, nothing left
    /// over. Values of leaves are checked by [`Entry::decode`](super::entry::Entry::decode).
    ///
    /// # Errors
    /// Names the rule that is broken; [`FormatError::TooNew`] for another version.
    pub fn decode(bytes: &[u8]) -> Result<Node, FormatError> {
        let mut cursor = NodeCursor::open(bytes)?;
        // The cursor has checked the count against the bytes that are there.
        let mut entries = Vec::with_capacity(cursor.left());
        while cursor.step()? {
            if cursor.level() > 0 {
                Child::decode(cursor.value())?;
            }
            entries.push((cursor.key().to_vec(), cursor.value().to_vec()));
        }
        Ok(Node {
            level: cursor.level(),
            entries,
        })
    }
}

impl Child {
    /// Encodes the value of an inner entry.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ChunkId::LEN + 20);
        out.extend_from_slice(self.id.as_bytes());
        put_varint(&mut out, self.leaf_entries);
        put_varint(&mut out, self.file_bytes);
        out
    }

    /// Decodes the value of an inner entry.
    ///
    /// # Errors
    /// If it is not exactly an id and two numbers, or if nothing is below.
    pub fn decode(bytes: &[u8]) -> Result<Child, FormatError> {
        let mut reader = Reader::new(bytes);
        let id = ChunkId(reader.array("tree node: child id")?);
        let leaf_entries = reader.varint("tree node: entries of a child")?;
        let file_bytes = reader.varint("tree node: bytes of a child")?;
        reader.end("tree node: bytes after a child")?;
        if leaf_entries == 0 {
            return Ok(malformed("tree node: child without entries")?);
        }
        Ok(Child {
            id,
            leaf_entries,
            file_bytes,
        })
    }
}

/// Reads a node from front to back, checking each entry as it comes. After an error it stays where it was.
#[derive(Clone, Debug)]
pub struct NodeCursor<B> {
    bytes: B,
    level: u8,
    /// Entries that have not been read.
    left: usize,
    /// Where the next entry begins.
    position: usize,
    /// Key of the current entry: the only buffer, grown once to the longest key.
    key: Vec<u8>,
    value: Range<usize>,
}

impl<B: Deref<Target = [u8]>> NodeCursor<B> {
    /// Reads the header. [`step`](Self::step) moves to the first entry.
    ///
    /// # Errors
    /// As [`Node::decode`].
    pub fn open(bytes: B) -> Result<NodeCursor<B>, FormatError> {
        if bytes.len() > NODE_BYTES_MAX {
            return Ok(malformed("tree node: longer than 262144 bytes")?);
        }
        let mut reader = Reader::new(&bytes);
        let version = reader.u8("tree node: version")?;
        if version != NODE_VERSION {
            return Err(FormatError::TooNew {
                what: format!("tree node version {version}"),
            });
        }
        let level = reader.u8("tree node: level")?;
        let left = reader.length(NODE_BYTES_MAX, "tree node: count")?;
        if level > LEVEL_MAX {
            return Ok(malformed("tree node: level above 15")?);
        }
        if left == 0 && level > 0 {
            return Ok(malformed("tree node: inner node without children")?);
        }
        if left > reader.remaining() / ENTRY_BYTES_MIN {
            return Ok(malformed("tree node: more entries than bytes")?);
        }
        let position = bytes.len() - reader.remaining();
        if left == 0 {
            reader.end("tree node: bytes after the last entry")?;
        }
        Ok(NodeCursor {
            bytes,
            level,
            left,
            position,
            key: Vec::new(),
            value: 0..0,
        })
    }

    /// Moves to the next entry; `false` at the end.
    ///
    /// # Errors
    /// As [`Node::decode`], for this entry.
    pub fn step(&mut self) -> Result<bool, FormatError> {
        if self.left == 0 {
            return Ok(false);
        }
        let mut reader = Reader::new(&self.bytes[self.position..]);
        let shared = reader.length(KEY_BYTES_MAX, "tree node: shared prefix")?;
        let suffix_len = reader.length(KEY_BYTES_MAX, "tree node: key length")?;
        let suffix = reader.take(suffix_len, "tree node: key")?;
        let value_len = reader.length(VALUE_BYTES_MAX, "tree node: value length")?;
        let value = reader.take(value_len, "tree node: value")?;
        let Some(&first) = suffix.first() else {
            return Ok(malformed("tree node: key without a suffix")?);
        };
        if shared + suffix_len > KEY_BYTES_MAX {
            return Ok(malformed("tree node: key longer than 65535 bytes")?);
        }
        // Where the key before goes on, the first byte after the shared prefix decides: equal, and the prefix was not
        // the longest; less, and the keys descend. Where it ends, this key is longer and so greater.
        match self.key.get(shared) {
            Some(&before) if first == before => return Ok(malformed("tree node: shared prefix is not the longest")?),
            Some(&before) if first < before => return Ok(malformed("tree node: keys do not ascend")?),
            None if shared > self.key.len() => return Ok(malformed("tree node: shared prefix is too long")?),
            _ => {}
        }
        let end = self.bytes.len() - reader.remaining();
        if self.left == 1 {
            reader.end("tree node: bytes after the last entry")?;
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(suffix);
        self.value = end - value.len()..end;
        self.position = end;
        self.left -= 1;
        Ok(true)
    }

    /// Returns the level of the node.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Returns how many entries have not been read.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Returns the key of the current entry; empty before the first step.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Returns the value of the current entry; empty before the first step.
    pub fn value(&self) -> &[u8] {
        &self.bytes[self.value.clone()]
    }

    /// Gives the buffer of the current key back.
    pub(crate) fn into_key(self) -> Vec<u8> {
        self.key
    }
}

/// Returns how many bytes a number takes as varint.
pub(crate) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Returns the length of the longest common prefix.
pub(crate) fn shared_prefix(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// Returns how many bytes [`put_entry`] appends.
pub(crate) fn entry_len(shared: usize, key: &[u8], value: &[u8]) -> usize {
    let suffix_len = key.len() - shared;
    varint_len(shared as u64)
        + varint_len(suffix_len as u64)
        + suffix_len
        + varint_len(value.len() as u64)
        + value.len()
}

/// Appends an entry that follows one with the key `previous` (empty: the first).
pub(crate) fn put_entry(body: &mut Vec<u8>, previous: &[u8], key: &[u8], value: &[u8]) {
    let shared = shared_prefix(previous, key);
    put_varint(body, shared as u64);
    put_varint(body, (key.len() - shared) as u64);
    body.extend_from_slice(&key[shared..]);
    put_varint(body, value.len() as u64);
    body.extend_from_slice(value);
}

/// Returns how many bytes a node with `count` entries in `body_len` bytes has.
pub(crate) fn node_len(count: u64, body_len: usize) -> usize {
    2 + varint_len(count) + body_len
}

/// Joins header and encoded entries; list nodes (chapter 13) have the same header.
pub(crate) fn join(level: u8, count: u64, body: &[u8]) -> Vec<u8> {
    let mut node = Vec::with_capacity(node_len(count, body.len()));
    node.extend_from_slice(&[NODE_VERSION, level]);
    put_varint(&mut node, count);
    node.extend_from_slice(body);
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::crypto::vectors::keys;
    use crate::pure::format::entry::Entry;
    use crate::pure::id::{from_hex, to_hex};
    use proptest::prelude::*;

    /// Name, whether readers accept it, bytes: from the published cases.
    #[rustfmt::skip]
    const CASES: &[(&str, bool, &str)] = &[
        ("child-empty", false, "0101010001002201010101010101010101010101010101010101010101010101010101010101010000"),
        ("child-long", false, "010101000100230101010101010101010101010101010101010101010101010101010101010101031000"),
        ("child-short", false, "010101000100200101010101010101010101010101010101010101010101010101010101010101"),
        ("count-less", false, "0100010001001002ed03e807e80782c49fd50c000000010101611002ed03e807e80782c49fd50c00000001"),
        ("count-more", false, "0100020001001002ed03e807e80782c49fd50c00000001"),
        ("cut", false, "0100010001001002ed03e807e80782c49fd50c000000"),
        ("empty-map", true, "010000"),
        ("empty-suffix", false, "010002000200611002ed03e807e80782c49fd50c0000000102001002ed03e807e80782c49fd50c00000001"),
        ("empty", false, ""),
        ("huge-count", false, "0100808080808080808040"),
        ("inner-empty", false, "010100"),
        ("inner", true, "01010200010022010101010101010101010101010101010101010101010101010101010101010103100004610000622201010101010101010101010101010101010101010101010101010101010101010310"),
        ("key-twice", false, "010002000200611002ed03e807e80782c49fd50c000000010101611002ed03e807e80782c49fd50c00000001"),
        ("leaf", true, "0100030001001002ed03e807e80782c49fd50c000000010101611002ed03e807e80782c49fd50c000000010004610000621201a403e807e80782c49fd50c000000010000"),
        ("level-16", false, "0110010001002201010101010101010101010101010101010101010101010101010101010101010310"),
        ("raw-keys", true, "0100020001611208a403e807e80782c49fd50c00000001000001022f621208a403e807e80782c49fd50c000000010000"),
        ("shared-first", false, "010001010200611002ed03e807e80782c49fd50c00000001"),
        ("shared-too-long", false, "010002000200611002ed03e807e80782c49fd50c000000010301621002ed03e807e80782c49fd50c00000001"),
        ("shared-too-short", false, "010002000200611002ed03e807e80782c49fd50c00000001000200621002ed03e807e80782c49fd50c00000001"),
        ("trailing", false, "0100010001001002ed03e807e80782c49fd50c0000000100"),
        ("unsorted", false, "010002000200621002ed03e807e80782c49fd50c000000010101611002ed03e807e80782c49fd50c00000001"),
        ("version", false, "0200010001001002ed03e807e80782c49fd50c00000001"),
    ];

    #[test]
    fn published_nodes_are_accepted_or_refused_as_they_say() {
        for (name, is_ok, hex) in CASES {
            let bytes = from_hex(hex).unwrap();
            let decoded = Node::decode(&bytes);
            assert_eq!(decoded.is_ok(), *is_ok, "{name}: {decoded:?}");
            if let Ok(node) = decoded {
                assert_eq!(Node::encode(node.level, &node.entries), bytes, "{name}");
            }
        }
    }

    #[test]
    fn published_leaf_and_inner_node_are_made_byte_by_byte() {
        let leaf = "010003000200610e02ed03000080c49fd50c00000002000961000068692e7478743501a403e807e80782c49fd50c050206ac020d010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d0306696e2e74787416018003e807e80782c49fd50c000000ad020300616263";
        let bytes = from_hex(leaf).unwrap();
        let node = Node::decode(&bytes).unwrap();
        let keys_found: Vec<&[u8]> = node.entries.iter().map(|(key, _)| key.as_slice()).collect();
        assert_eq!(keys_found, [b"\0a".as_slice(), b"a\0\0hi.txt", b"a\0\0in.txt"]);
        let values = node.entries.iter().map(|(key, value)| {
            let mut again = Vec::new();
            Entry::decode(value).unwrap().encode(&mut again);
            (key.clone(), again)
        });
        assert_eq!(to_hex(&Node::encode(0, &values.collect::<Vec<_>>())), leaf);
        let id = keys().meta_id(&bytes).unwrap();
        assert_eq!(
            id.to_string(),
            "110c97835c3e0bda4d75b53cd406e55aeb98fd6f773465bc8396221bf9c98034"
        );

        let child = Child {
            id,
            leaf_entries: 3,
            file_bytes: 16,
        };
        assert_eq!(
            to_hex(&Node::encode(1, &[(b"\0a".to_vec(), child.encode())])),
            "0101010002006122110c97835c3e0bda4d75b53cd406e55aeb98fd6f773465bc8396221bf9c980340310"
        );
        assert_eq!(Child::decode(&child.encode()).unwrap(), child);
    }

    #[test]
    fn keys_and_values_have_their_limits_and_nodes_are_not_longer_than_262144_bytes() {
        let one = |key: usize, value: usize| Node::decode(&Node::encode(0, &[(vec![b'k'; key], vec![0; value])]));
        assert!(one(65_535, 65_536).is_ok());
        assert!(one(65_536, 0).is_err());
        assert!(one(1, 65_537).is_err());
        // A key of 65 536 bytes in two steps.
        let long = Node::encode(0, &[(vec![b'k'; 65_535], vec![]), (vec![b'k'; 65_536], vec![])]);
        assert!(Node::decode(&long).is_err());

        let of_len = |last: usize| {
            let value = |key: u8, len: usize| (vec![key], vec![0; len]);
            Node::encode(
                0,
                &[
                    value(b'a', 65_536),
                    value(b'b', 65_536),
                    value(b'c', 65_536),
                    value(b'd', last),
                ],
            )
        };
        assert_eq!(of_len(65_509).len(), NODE_BYTES_MAX);
        assert!(Node::decode(&of_len(65_509)).is_ok());
        assert!(Node::decode(&of_len(65_510)).is_err());
    }

    #[test]
    fn lengths_of_varints_are_known_before_they_are_written() {
        for shift in 0..64 {
            for value in [(1u64 << shift) - 1, 1 << shift, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(varint_len(value), out.len(), "{value}");
            }
        }
    }

    proptest! {
        #[test]
        fn nodes_round_trip(entries in prop::collection::btree_map(prop::collection::vec(0u8..3, 1..8), prop::collection::vec(any::<u8>(), 0..9), 0..40)) {
            let entries: Vec<_> = entries.into_iter().collect();
            let bytes = Node::encode(0, &entries);
            prop_assert_eq!(Node::decode(&bytes).unwrap(), Node { level: 0, entries });
        }

        #[test]
        fn what_is_accepted_has_one_encoding(
            entries in prop::collection::btree_map(prop::collection::vec(0u8..3, 1..8), prop::collection::vec(0u8..4, 0..3), 1..20),
            at in any::<prop::sample::Index>(),
            byte in 0u8..8,
        ) {
            let mut bytes = Node::encode(0, &entries.into_iter().collect::<Vec<_>>());
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(node) = Node::decode(&bytes) {
                prop_assert_eq!(Node::encode(node.level, &node.entries), bytes);
                prop_assert!(node.entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_harm(mut bytes in prop::collection::vec(0u8..5, 0..60)) {
            bytes.splice(0..0, [1, 0]);
            let _ = Node::decode(&bytes);
        }
    }
}
