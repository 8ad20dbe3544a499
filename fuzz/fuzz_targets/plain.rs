//! Parsers of plaintexts: CBOR, entries, nodes, lists, manifests, object names, tree keys. Whatever they accept, they write again
//! byte for byte.
#![no_main]

use larder::pure::format::{cbor, entry::Entry, list::ListNode, manifest::Manifest, name::ObjectName, node::Node};
use larder::pure::tree::key;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 7 {
        0 => {
            if let Ok(value) = cbor::decode(bytes) {
                assert_eq!(cbor::encode(&value), bytes);
            }
        }
        1 => {
            if let Ok(entry) = Entry::decode(bytes) {
                let mut again = Vec::new();
                entry.encode(&mut again);
                assert_eq!(again, bytes);
            }
        }
        2 => {
            if let Ok(node) = Node::decode(bytes) {
                assert_eq!(Node::encode(node.level, &node.entries), bytes);
            }
        }
        3 => {
            if let Ok(list) = ListNode::decode(bytes) {
                assert_eq!(list.encode(), bytes);
            }
        }
        4 => drop(Manifest::decode(bytes)),
        5 => {
            if let Ok(components) = key::components(bytes) {
                assert_eq!(key::from_components(&components), bytes);
            }
        }
        _ => {
            if let Some(name) = std::str::from_utf8(bytes).ok().and_then(ObjectName::parse) {
                assert_eq!(name.to_string().as_bytes(), bytes);
            }
        }
    }
});
