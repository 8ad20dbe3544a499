//! Several requests at a time. One after the other, a thousand small objects take as long as a thousand round trips.

use super::RepoError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests under way at a time. Each waits for a reply most of the time, so this does not depend on the cores.
const AT_ONCE: usize = 8;

/// Does `work` for each of `items` and returns the results in the order of the items.
pub fn at_once<T, R>(items: &[T], work: impl Fn(&T) -> Result<R, RepoError> + Sync) -> Vec<Result<R, RepoError>>
where
    T: Sync,
    R: Send,
{
    so_many_at_once(AT_ONCE, items, work)
}

/// As [`at_once`], with another number of requests under way.
pub fn so_many_at_once<T, R>(
    many: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R, RepoError> + Sync,
) -> Vec<Result<R, RepoError>>
where
    T: Sync,
    R: Send,
{
    if let [only] = items {
        return vec![work(only)];
    }
    let next = AtomicUsize::new(0);
    let mut results: Vec<Option<Result<R, RepoError>>> = items.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..many.min(items.len()))
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    while let Some((index, item)) = take(&next, items) {
                        done.push((index, work(item)));
                    }
                    done
                })
            })
            .collect();
        // What a thread that panicked had done is lost with it, and said below.
        for (index, result) in threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()) {
            results[index] = Some(result);
        }
    });
    let panicked = || Err(RepoError::Internal("a reading thread panicked".into()));
    results
        .into_iter()
        .map(|result| result.unwrap_or_else(panicked))
        .collect()
}

fn take<'t, T>(next: &AtomicUsize, items: &'t [T]) -> Option<(usize, &'t T)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, items.get(index)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items_and_a_panic_is_an_error() {
        let items: Vec<u32> = (0..100).collect();
        let results = at_once(&items, |item| match item {
            17 => Err(RepoError::Interrupted),
            _ => Ok(item * 2),
        });
        for (item, result) in items.iter().zip(&results) {
            assert_eq!(result.as_ref().ok(), (*item != 17).then_some(item * 2).as_ref());
        }
        let results = at_once(&items, |item| if *item == 5 { panic!("on purpose") } else { Ok(()) });
        assert_eq!(results.len(), 100);
        assert!(matches!(results[5], Err(RepoError::Internal(_))));
    }
}
