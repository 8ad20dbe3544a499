//! List nodes (format-spec chapter 13): the chunks and holes of files with more than 64 of them.

use super::codec::{Reader, malformed, put_varint};
use super::node::{NODE_BYTES_MAX, NODE_VERSION, join};
use super::{FormatError, Malformed, entry::ChunkRef};
use crate::pure::id::ChunkId;

/// Most elements of a list node.
pub const LIST_ELEMENTS_MAX: usize = 4096;
/// Highest level of a list node.
pub const LIST_LEVEL_MAX: u8 = 7;

/// A decoded list node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListNode {
    /// Level 0: chunks and holes.
    Leaf(Vec<ChunkRef>),
    /// Level ≥ 1: child ids and the total bytes below each.
    Inner {
        /// 1 … 7.
        level: u8,
        /// Child ids and the total bytes below each.
        children: Vec<(ChunkId, u64)>,
    },
}

impl ListNode {
    /// Encodes the node.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let (level, count) = match self {
            ListNode::Leaf(pieces) => {
                pieces
                    .iter()
                    .for_each(|piece| put_element(&mut body, &piece.id, piece.len));
                (0, pieces.len())
            }
            ListNode::Inner { level, children } => {
                children
                    .iter()
                    .for_each(|(id, total)| put_element(&mut body, id, *total));
                (*level, children.len())
            }
        };
        join(level, count as u64, &body)
    }

    /// Decodes and checks version, level, count, the length of every element, and that nothing is left over.
    ///
    /// # Errors
    /// Names the rule that is broken; [`FormatError::TooNew`] for another version.
    pub fn decode(bytes: &[u8]) -> Result<ListNode, FormatError> {
        if bytes.len() > NODE_BYTES_MAX {
            return Ok(malformed("list node: longer than 262144 bytes")?);
        }
        let mut reader = Reader::new(bytes);
        let version = reader.u8("list node: version")?;
        if version != NODE_VERSION {
            return Err(FormatError::TooNew {
                what: format!("list node version {version}"),
            });
        }
        let level = reader.u8("list node: level")?;
        if level > LIST_LEVEL_MAX {
            return Ok(malformed("list node: level above 7")?);
        }
        let count = reader.length(LIST_ELEMENTS_MAX, "list node: count")?;
        if count == 0 {
            return Ok(malformed("list node: no elements")?);
        }
        if count > reader.remaining() / (ChunkId::LEN + 1) {
            return Ok(malformed("list node: more elements than bytes")?);
        }
        let node = if level == 0 {
            ListNode::Leaf((0..count).map(|_| read_piece(&mut reader)).collect::<Result<_, _>>()?)
        } else {
            let children = (0..count).map(|_| read_child(&mut reader)).collect::<Result<_, _>>()?;
            ListNode::Inner { level, children }
        };
        reader.end("list node: bytes after the last element")?;
        Ok(node)
    }
}

/// Appends an element of any level.
pub(crate) fn put_element(body: &mut Vec<u8>, id: &ChunkId, len: u64) {
    body.extend_from_slice(id.as_bytes());
    put_varint(body, len);
}

/// Reads a chunk or a hole.
pub(crate) fn read_piece(reader: &mut Reader<'_>) -> Result<ChunkRef, Malformed> {
    let piece = ChunkRef {
        id: ChunkId(reader.array("content: chunk id")?),
        len: reader.varint("content: chunk length")?,
    };
    piece.check()?;
    Ok(piece)
}

fn read_child(reader: &mut Reader<'_>) -> Result<(ChunkId, u64), Malformed> {
    let id = ChunkId(reader.array("list node: child id")?);
    let total = reader.varint("list node: bytes of a child")?;
    if total == 0 {
        return malformed("list node: child without bytes");
    }
    if id == ChunkId::HOLE {
        return malformed("list node: hole above level 0");
    }
    Ok((id, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::id::{from_hex, to_hex};
    use proptest::prelude::*;

    /// Name, whether readers accept it, bytes: from the published cases.
    #[rustfmt::skip]
    const CASES: &[(&str, bool, &str)] = &[
        ("chunk-17-mib", false, "01000101010101010101010101010101010101010101010101010101010101010101018080c008"),
        ("cut", false, "0100010101010101010101010101010101010101010101010101010101010101010101f4"),
        ("empty", false, "010000"),
        ("inner", true, "0101020101010101010101010101010101010101010101010101010101010101010101808080808020010101010101010101010101010101010101010101010101010101010101010105"),
        ("leaf", true, "0100030101010101010101010101010101010101010101010101010101010101010101050000000000000000000000000000000000000000000000000000000000000000808080808020010101010101010101010101010101010101010101010101010101010101010105"),
        ("level-8", false, "010801010101010101010101010101010101010101010101010101010101010101010105"),
        ("trailing", false, "01000101010101010101010101010101010101010101010101010101010101010101010500"),
        ("version", false, "020001010101010101010101010101010101010101010101010101010101010101010105"),
        ("zero-length", false, "010001010101010101010101010101010101010101010101010101010101010101010100"),
        ("hole-above-level-0", false, "010101000000000000000000000000000000000000000000000000000000000000000005"),
    ];

    #[test]
    fn published_lists_are_accepted_or_refused_as_they_say() {
        for (name, is_ok, hex) in CASES {
            let bytes = from_hex(hex).unwrap();
            let decoded = ListNode::decode(&bytes);
            assert_eq!(decoded.is_ok(), *is_ok, "{name}: {decoded:?}");
            if let Ok(node) = decoded {
                assert_eq!(node.encode(), bytes, "{name}");
            }
        }
    }

    #[test]
    fn published_list_node_is_made_byte_by_byte() {
        let data = ChunkRef {
            id: "51e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed"
                .parse()
                .unwrap(),
            len: 13,
        };
        let hole = ChunkRef {
            id: ChunkId::HOLE,
            len: 1 << 30,
        };
        assert_eq!(
            to_hex(&ListNode::Leaf(vec![data, hole, data]).encode()),
            "01000351e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d0000000000000000000000000000000000000000000000000000000000000000808080800451e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d"
        );
    }

    #[test]
    fn lists_hold_4096_elements_and_no_more() {
        let leaf = |count: usize| {
            ListNode::Leaf(vec![
                ChunkRef {
                    id: ChunkId([1; 32]),
                    len: 5
                };
                count
            ])
        };
        assert_eq!(ListNode::decode(&leaf(4096).encode()).unwrap(), leaf(4096));
        assert!(ListNode::decode(&leaf(4097).encode()).is_err());
        assert!(ListNode::decode(&leaf(0).encode()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_has_one_encoding(pieces in prop::collection::vec((any::<bool>(), 1u64..300), 1..4), at in any::<prop::sample::Index>(), byte in any::<u8>(), level in 0u8..3) {
            let id = |is_hole| if is_hole { ChunkId::HOLE } else { ChunkId([7; 32]) };
            let node = if level == 0 {
                ListNode::Leaf(pieces.into_iter().map(|(is_hole, len)| ChunkRef { id: id(is_hole), len }).collect())
            } else {
                ListNode::Inner { level, children: pieces.into_iter().map(|(_, len)| (id(false), len)).collect() }
            };
            let mut bytes = node.encode();
            prop_assert_eq!(ListNode::decode(&bytes).unwrap(), node);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(found) = ListNode::decode(&bytes) {
                prop_assert_eq!(found.encode(), bytes);
            }
        }
    }
}
