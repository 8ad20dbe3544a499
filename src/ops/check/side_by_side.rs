//! Doing the same with many things, several at a time.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Small objects that are fetched at a time: at a remote store nearly all of the time is waiting.
pub(super) const FETCHES: usize = 16;

/// Calls `work` for each item on up to `threads` threads; returns what it returned, in the order of the items.
pub(super) fn side_by_side<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { return };
                    let result = work(item);
                    done.lock().push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_have_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        let expected: Vec<u64> = items.iter().map(|item| item * 2).collect();
        assert_eq!(side_by_side(&items, 7, |item| item * 2), expected);
        assert!(side_by_side(&[0u8; 0], 7, |_| ()).is_empty());
    }
}
