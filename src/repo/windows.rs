//! Parts of packs that are kept in memory for a while. What several threads want at the same moment is asked for once.

use super::recent::Recent;
use crate::pure::id::PackId;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::collections::HashSet;

/// Windows kept in memory.
const WINDOWS_MAX: usize = 64;

/// Which window of which pack.
pub type At = (PackId, u64);

/// The last windows that were read; shared by threads.
pub struct Windows {
    state: Mutex<State>,
    settled: Condvar,
}

struct State {
    kept: Recent<At, Bytes>,
    coming: HashSet<At>,
}

impl Windows {
    /// Keeps nothing yet.
    pub fn new() -> Windows {
        Windows {
            state: Mutex::new(State {
                kept: Recent::new(WINDOWS_MAX),
                coming: HashSet::new(),
            }),
            settled: Condvar::new(),
        }
    }

    /// Returns a window: one that is kept, one that another thread is reading already, or else what `read` gives.
    ///
    /// # Errors
    /// Those of `read`. A thread that waited for another one's reading in vain reads for itself, at once: after an outage all
    /// would wait for each other's patience to end.
    pub fn get<E>(&self, at: At, read: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let mut state = self.state.lock();
        if let Some(window) = state.kept.get(&at) {
            return Ok(window);
        }
        let coming = (!state.coming.insert(at)).then(|| {
            while state.coming.contains(&at) {
                self.settled.wait(&mut state);
            }
            state.kept.get(&at)
        });
        drop(state);
        match coming {
            Some(Some(window)) => Ok(window),
            Some(None) => read(),
            None => {
                let settle = Settle { windows: self, at };
                let window = read()?;
                self.state.lock().kept.put(at, window.clone());
                drop(settle);
                Ok(window)
            }
        }
    }

    /// Forgets windows, so that they are read again.
    pub fn forget(&self, windows: impl Iterator<Item = At>) {
        let mut state = self.state.lock();
        windows.for_each(|at| state.kept.remove(&at));
    }
}

/// Ends the waiting of others, however reading ends.
struct Settle<'w> {
    windows: &'w Windows,
    at: At,
}

impl Drop for Settle<'_> {
    fn drop(&mut self) {
        self.windows.state.lock().coming.remove(&self.at);
        self.windows.settled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    const AT: At = (PackId([7; 16]), 3);
    const THREADS: usize = 8;

    /// Lets all threads ask at one moment; the first `failing` readings fail. Returns how many read, and how many got the window.
    fn ask_at_once(failing: usize) -> (usize, usize) {
        let (windows, reads, barrier) = (Windows::new(), AtomicUsize::new(0), Barrier::new(THREADS));
        let got = std::thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                windows.get(AT, || {
                    let number = reads.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(200));
                    if number < failing {
                        Err(())
                    } else {
                        Ok(Bytes::from_static(b"window"))
                    }
                })
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
            let results = threads.into_iter().map(|thread| thread.join().expect("no panic"));
            results
                .filter(|result| *result == Ok(Bytes::from_static(b"window")))
                .count()
        });
        assert!(windows.state.lock().coming.is_empty());
        (reads.into_inner(), got)
    }

    #[test]
    fn what_several_threads_want_is_read_once() {
        assert_eq!(ask_at_once(0), (1, THREADS));
    }

    #[test]
    fn who_waited_in_vain_reads_for_itself_at_once() {
        assert_eq!(ask_at_once(1), (THREADS, THREADS - 1));
    }

    #[test]
    fn a_reading_that_panics_leaves_nobody_waiting() {
        let windows = Windows::new();
        std::thread::scope(|scope| {
            let failed = scope.spawn(|| windows.get::<()>(AT, || panic!("on purpose"))).join();
            assert!(failed.is_err());
        });
        assert_eq!(windows.get::<()>(AT, || Ok(Bytes::new())), Ok(Bytes::new()));
    }

    #[test]
    fn what_is_forgotten_is_read_again() {
        let windows = Windows::new();
        let read = |bytes| windows.get::<()>(AT, || Ok(Bytes::from_static(bytes)));
        assert_eq!(
            (read(b"bad"), read(b"good")),
            (Ok(Bytes::from_static(b"bad")), Ok(Bytes::from_static(b"bad")))
        );
        windows.forget([AT].into_iter());
        assert_eq!(read(b"good"), Ok(Bytes::from_static(b"good")));
    }
}
