//! Work that leads to more work, for several threads: what was added last is done first, so that little waits.

use super::OpError;
use parking_lot::{Condvar, Mutex};

/// Tasks that wait, and how many are being done.
pub(in crate::ops) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: Vec<T>,
    /// Tasks that were taken and may still add others.
    taken: usize,
    stopped: bool,
}

/// A task that is being done; dropping it says that it is done.
pub(in crate::ops) struct Taken<'q, T> {
    queue: &'q Queue<T>,
    more: Vec<T>,
}

impl<T> Queue<T> {
    /// Starts with these tasks, the last of which is done first.
    pub(in crate::ops) fn new(waiting: Vec<T>) -> Queue<T> {
        Queue {
            state: Mutex::new(State {
                waiting,
                taken: 0,
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Returns the next task, waiting for one if need be; `None` when all are done, or after [`stop`](Self::stop).
    pub(in crate::ops) fn take(&self) -> Option<(T, Taken<'_, T>)> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(task) = state.waiting.pop() {
                state.taken += 1;
                let taken = Taken {
                    queue: self,
                    more: Vec::new(),
                };
                return Some((task, taken));
            }
            if state.taken == 0 {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Lets every thread end.
    pub(in crate::ops) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }
}

impl<T> Taken<'_, T> {
    /// Says that the task is done and what has to be done next, in this order.
    pub(in crate::ops) fn done(mut self, more: Vec<T>) {
        self.more = more;
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.waiting.extend(self.more.drain(..).rev());
        state.taken -= 1;
        // A task that panicked will not add what it should have: the others must not wait for it.
        state.stopped |= std::thread::panicking();
        self.queue.changed.notify_all();
    }
}

/// Runs `work` on so many threads, and waits for all of them.
///
/// # Errors
/// The error of one that failed.
pub(in crate::ops) fn on_threads(threads: usize, work: impl Fn() -> Result<(), OpError> + Sync) -> Result<(), OpError> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let ends: Vec<_> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        ends.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_task_is_done_once_by_some_thread() {
        let queue = Queue::new(vec![1u64]);
        let (done, sum) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some((task, taken)) = queue.take() {
                        done.fetch_add(1, Ordering::Relaxed);
                        sum.fetch_add(task, Ordering::Relaxed);
                        let below = [2 * task, 2 * task + 1];
                        taken.done(below.into_iter().filter(|task| *task < 1000).collect());
                    }
                });
            }
        });
        assert_eq!((done.into_inner(), sum.into_inner()), (999, 999 * 500));
    }

    #[test]
    fn what_was_added_last_comes_first_and_in_its_order() {
        let queue = Queue::new(vec!["last", "first"]);
        let (task, taken) = queue.take().unwrap();
        assert_eq!(task, "first");
        taken.done(vec!["a", "b"]);
        let order: Vec<_> = std::iter::from_fn(|| queue.take().map(|(task, _)| task)).collect();
        assert_eq!(order, ["a", "b", "last"]);
    }

    #[test]
    fn stopping_ends_it_with_work_left() {
        let queue = Queue::new(vec![1, 2]);
        queue.stop();
        assert!(queue.take().is_none());
    }
}
