//! Tree keys: `/c1/…/ck/name` is `c1 00 c2 00 … ck 00 00 name`; the root itself is `00`.

use crate::pure::format::Malformed;

/// Key of an entry from its path components (raw bytes); no components: the root itself.
pub fn from_components(_components: &[&[u8]]) -> Vec<u8> { todo!() }
/// Components of a key. Refuses empty components, `.`, `..`, `/`, and components longer than 4096 bytes, keys longer than 65 535, depth above 4096.
pub fn components(_key: &[u8]) -> Result<Vec<&[u8]>, Malformed> { todo!() }
/// The path of a key below its root, joined by `/` (empty for the root itself).
pub fn path(_key: &[u8]) -> Result<Vec<u8>, Malformed> { todo!() }
/// Key of an entry from a path relative to the root (`a/b/c`, raw bytes, no leading slash; empty: the root).
pub fn from_path(_path: &[u8]) -> Vec<u8> { todo!() }
/// Prefix that all direct children of a directory share, given the directory's components.
pub fn children_prefix(_dir: &[&[u8]]) -> Vec<u8> { todo!() }
/// Prefix that everything below a directory shares (children and their subtrees).
pub fn subtree_prefix(_dir: &[&[u8]]) -> Vec<u8> { todo!() }
