//! Tree keys (format-spec chapter 12.1): `/c1/…/ck/name` is `c1 00 c2 00 … ck 00 00 name`; the root itself is `00`.
//!
//! Bytewise order of these keys puts a directory before what is in it, its direct children next to each other, and
//! everything below it next to each other. Keys of object maps and stream sets are raw bytes: nothing here is for them.

use crate::pure::format::Malformed;
use crate::pure::format::codec::malformed;
use crate::pure::format::node::KEY_BYTES_MAX;

/// Longest path component, in bytes.
pub const COMPONENT_BYTES_MAX: usize = 4096;
/// Most components of a path.
pub const DEPTH_MAX: usize = 4096;

/// The key of the root of a path-keyed tree.
pub const ROOT: &[u8] = &[0];

/// Returns the key of an entry from its path components (raw bytes); no components: the root itself.
///
/// The components are not checked here: a writer that takes names from outside checks the result with [`components`].
pub fn from_components(components: &[&[u8]]) -> Vec<u8> {
    let Some((name, directories)) = components.split_last() else {
        return ROOT.to_vec();
    };
    let mut key = children_prefix(directories);
    key.extend_from_slice(name);
    key
}

/// Returns the components of a key.
///
/// # Errors
/// Refuses keys of another form, empty components, `.`, `..`, `/`, components longer than 4096 bytes, keys longer than
/// 65 535 bytes and more than 4096 components: a restore may use what this returns as names of files.
pub fn components(key: &[u8]) -> Result<Vec<&[u8]>, Malformed> {
    if key.len() > KEY_BYTES_MAX {
        return malformed("tree key: longer than 65535 bytes");
    }
    if key == ROOT {
        return Ok(Vec::new());
    }
    let Some(marker) = key.iter().rposition(|&byte| byte == 0) else {
        return malformed("tree key: no mark before the name");
    };
    let (directories, name) = (&key[..marker], &key[marker + 1..]);
    let mut components = match directories.split_last() {
        None => Vec::new(),
        Some((0, names)) => names.split(|&byte| byte == 0).collect(),
        Some(_) => return malformed("tree key: no mark before the name"),
    };
    components.push(name);
    if components.len() > DEPTH_MAX {
        return malformed("tree key: deeper than 4096 components");
    }
    components.iter().try_for_each(|component| check_component(component))?;
    Ok(components)
}

/// Checks that a name may be a path component: 1 … 4096 bytes, no `00`, no `/`, not `.` or `..`.
///
/// # Errors
/// Names the rule that is broken.
pub fn check_component(component: &[u8]) -> Result<(), Malformed> {
    match component {
        [] => malformed("tree key: empty component"),
        b"." | b".." if !chaos!("dots-are-names") => malformed("tree key: component . or .."),
        _ if component.len() > COMPONENT_BYTES_MAX => malformed("tree key: component longer than 4096 bytes"),
        _ if component.contains(&b'/') && !chaos!("slashes-are-in-names") => {
            malformed("tree key: component with a slash")
        }
        _ if component.contains(&0) => malformed("tree key: component with a zero byte"),
        _ => Ok(()),
    }
}

/// Returns the path of a key below its root, joined by `/` (empty for the root itself).
///
/// # Errors
/// As [`components`].
pub fn path(key: &[u8]) -> Result<Vec<u8>, Malformed> {
    Ok(components(key)?.join(&b'/'))
}

/// Returns the key of an entry from a path relative to the root (`a/b/c`, raw bytes, no leading slash; empty: the
/// root).
///
/// The path is not checked: see [`from_components`].
pub fn from_path(path: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return ROOT.to_vec();
    }
    from_components(&path.split(|&byte| byte == b'/').collect::<Vec<_>>())
}

/// Returns the prefix that all direct children of a directory share, given the directory's components.
///
/// For the root directory this is `00`, which is also the root's own key: skip an exact match.
pub fn children_prefix(dir: &[&[u8]]) -> Vec<u8> {
    let mut prefix = subtree_prefix(dir);
    prefix.push(0);
    prefix
}

/// Returns the prefix that everything below a directory shares (children and their subtrees); empty for the root.
pub fn subtree_prefix(dir: &[&[u8]]) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(dir.iter().map(|component| component.len() + 1).sum::<usize>() + 64);
    for component in dir {
        prefix.extend_from_slice(component);
        prefix.push(0);
    }
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::id::to_hex;
    use proptest::prelude::*;

    #[test]
    fn keys_are_those_of_the_vectors() {
        for (path, key) in [
            ("", "00"),
            ("a", "0061"),
            ("a.x", "00612e78"),
            ("z", "007a"),
            ("a/b", "61000062"),
            ("a/c", "61000063"),
            ("a/b/d", "610062000064"),
            ("a.x/q", "612e78000071"),
        ] {
            assert_eq!(to_hex(&from_path(path.as_bytes())), key, "{path}");
            assert_eq!(super::path(&from_path(path.as_bytes())).unwrap(), path.as_bytes());
        }
    }

    #[test]
    fn keys_that_are_no_safe_path_are_refused() {
        let long = [b"\0".as_slice(), &[b'a'; 4097]].concat();
        let deep = from_components(&vec![b"a".as_slice(); 4097]);
        let wide = from_components(&vec![[b'a'; 4096].as_slice(); 16]);
        assert!(wide.len() > 65_535);
        for key in [
            b"".as_slice(),
            b"a",
            b"a\0b",
            b"a\0\0",
            b"\0\0a",
            b"\0\0",
            b"a\0\0\0b",
            b"\0.",
            b"\0..",
            b"..\0\0a",
            b".\0\0a",
            b"\0a/b",
            b"a/b\0\0c",
            &long,
            &deep,
            &wide,
        ] {
            assert!(components(key).is_err(), "{:?}", &key[..key.len().min(20)]);
        }
        assert!(components(&long[..4097]).is_ok());
        assert_eq!(
            components(&from_components(&vec![b"a".as_slice(); 4096]))
                .unwrap()
                .len(),
            4096
        );
        assert_eq!(components(b"\xff\0\0\x01").unwrap(), [b"\xff".as_slice(), b"\x01"]);
        assert_eq!(components(b"\0...").unwrap(), [b"...".as_slice()]);
    }

    proptest! {
        #[test]
        fn components_come_back_and_prefixes_hold(parts in prop::collection::vec("[a-c.]{1,3}", 0..6)) {
            let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
            let key = from_components(&parts);
            match components(&key) {
                Ok(found) => prop_assert_eq!(&found, &parts),
                Err(_) => prop_assert!(parts.contains(&b".".as_slice()) || parts.contains(&b"..".as_slice())),
            }
            prop_assert_eq!(from_path(&parts.join(&b'/')), key.clone());
            for depth in 0..parts.len() {
                let directory = &parts[..depth];
                prop_assert!(key.starts_with(&subtree_prefix(directory)));
                prop_assert_eq!(key.starts_with(&children_prefix(directory)), depth + 1 == parts.len());
            }
        }

        #[test]
        fn any_accepted_key_is_built_again_from_its_components(key in prop::collection::vec(prop::sample::select(vec![0u8, b'.', b'/', b'a']), 0..10)) {
            if let Ok(parts) = components(&key) {
                prop_assert_eq!(from_components(&parts), key);
            }
        }
    }
}
