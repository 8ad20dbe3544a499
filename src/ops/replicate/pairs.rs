//! Two listings side by side, as streams: neither is ever in memory, because a repository may have millions of packs.

use crate::edge::store::{Store, StoreKey};
use crate::repo::RepoError;
use crate::repo::error::store_error;
use crate::repo::open::prefix;

/// Rows of the replica that wait for those of the source.
const ROWS_AHEAD: usize = 4096;

/// What the two places have under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pair {
    /// Only the source: its size.
    Missing(StoreKey, u64),
    /// Both: the size at the source, and in the replica.
    Both(StoreKey, u64, u64),
    /// Only the replica: its size.
    Beyond(StoreKey, u64),
}

/// Lists both stores under a prefix and calls `each` for every name, in order.
///
/// # Errors
/// When one of the listings fails. What has been seen until then may have been wrong about the replica.
pub(super) fn side_by_side(
    source: &dyn Store,
    target: &dyn Store,
    under: &str,
    each: &mut dyn FnMut(Pair),
) -> Result<(), RepoError> {
    let under = prefix(under);
    std::thread::scope(|scope| {
        let (sender, receiver) = crossbeam_channel::bounded::<(StoreKey, u64)>(ROWS_AHEAD);
        let lister = scope.spawn(|| {
            let sender = sender;
            target.list(&under, &mut |row| {
                // Nobody takes it any more when the other listing has failed.
                let _ = sender.send((row.key, row.size));
            })
        });
        let mut next = receiver.recv().ok();
        let listed = source.list(&under, &mut |row| {
            while let Some((key, size)) = next.take_if(|(key, _)| *key < row.key) {
                each(Pair::Beyond(key, size));
                next = receiver.recv().ok();
            }
            match next.take_if(|(key, _)| *key == row.key) {
                Some((_, size)) => {
                    each(Pair::Both(row.key, row.size, size));
                    next = receiver.recv().ok();
                }
                None => each(Pair::Missing(row.key, row.size)),
            }
        });
        if listed.is_ok() {
            while let Some((key, size)) = next {
                each(Pair::Beyond(key, size));
                next = receiver.recv().ok();
            }
        }
        drop(receiver);
        let there = lister.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        listed.map_err(store_error(format!("listing {under} of the source")))?;
        there.map_err(store_error(format!("listing {under} of the replica")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::store::memory::MemoryStore;
    use bytes::Bytes;

    fn store(names: &[&str]) -> MemoryStore {
        let store = MemoryStore::new();
        for name in names {
            let key = StoreKey::new(*name).expect("a key");
            let _ = store
                .create(&key, Bytes::copy_from_slice(name.as_bytes()))
                .expect("memory");
        }
        store
    }

    #[test]
    fn every_name_of_either_side_comes_once_and_in_order() {
        let (source, target) = (store(&["x/b", "x/c", "x/d", "y"]), store(&["x/a", "x/c", "x/e", "x/f"]));
        let mut pairs = Vec::new();
        side_by_side(&source, &target, "x/", &mut |pair| pairs.push(pair)).expect("both are there");
        let key = |name| StoreKey::new(name).expect("a key");
        let expected = [
            Pair::Beyond(key("x/a"), 3),
            Pair::Missing(key("x/b"), 3),
            Pair::Both(key("x/c"), 3, 3),
            Pair::Missing(key("x/d"), 3),
            Pair::Beyond(key("x/e"), 3),
            Pair::Beyond(key("x/f"), 3),
        ];
        assert_eq!(pairs, expected);
    }
}
