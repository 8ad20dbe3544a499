//! Checkpoints: when one is due, and how work comes to a stop for it (format-spec chapter 16.5).
//!
//! A checkpoint ends the session, and afterwards only what its tree holds may be referred to. So the workers finish the
//! files that they are reading and begin no others, until the tree builder has taken in everything that was finished.
//! What was begun is then always the first so many entries, in the order of the tree: if a later one could be finished
//! while an earlier one was not begun, its chunks would be in no tree.

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// When a long run publishes a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// After this time …
    pub time: Duration,
    /// … or when files of so many bytes have been begun, whichever comes first.
    pub bytes: u64,
}

impl Interval {
    /// 6 hours or 256 GiB: what is lost then is a night's work at most, and a run of a week leaves a few dozen.
    pub const DEFAULT: Interval = Interval {
        time: Duration::from_secs(6 * 3600),
        bytes: 256 << 30,
    };
}

/// The gate through which every worker goes before it reads an entry. It closes when a checkpoint is due.
pub struct Gate {
    interval: Option<Interval>,
    state: Mutex<State>,
    /// Read without the lock by whoever only wants to know.
    is_closed: AtomicBool,
}

struct State {
    working: usize,
    /// How many entries were begun in the whole run, and what number follows the highest of them.
    begun: u64,
    end: u64,
    /// Begun since the last checkpoint.
    entries: u64,
    bytes: u64,
    since: Instant,
}

impl Gate {
    /// Makes an open gate. Without an interval it never closes.
    pub fn new(interval: Option<Interval>) -> Arc<Gate> {
        Arc::new(Gate {
            interval,
            state: Mutex::new(State {
                working: 0,
                begun: 0,
                end: 0,
                entries: 0,
                bytes: 0,
                since: Instant::now(),
            }),
            is_closed: AtomicBool::new(false),
        })
    }

    /// Lets a worker begin the entry with this number, of so many bytes. Not when the gate is closed, unless a later
    /// entry has begun already. The pass is held until the entry is on its way to the tree.
    pub fn enter(self: &Arc<Gate>, number: u64, bytes: u64) -> Option<Pass> {
        let mut state = self.state.lock();
        if self.is_closed() && number >= state.end {
            return None;
        }
        state.working += 1;
        state.begun += 1;
        state.end = state.end.max(number + 1);
        state.entries += 1;
        state.bytes = state.bytes.saturating_add(bytes);
        if self.interval.is_some_and(|interval| state.bytes >= interval.bytes) {
            self.is_closed.store(true, Ordering::Release);
        }
        Some(Pass(self.clone()))
    }

    /// Closes the gate when it is time for it. Never before something was begun that would have to be read again.
    pub fn close_when_due(&self) {
        let Some(interval) = self.interval else { return };
        let state = self.state.lock();
        if state.entries > 0 && state.since.elapsed() >= interval.time {
            self.is_closed.store(true, Ordering::Release);
        }
    }

    /// Work goes on, and counting begins anew.
    pub fn open(&self) {
        let mut state = self.state.lock();
        state.entries = 0;
        state.bytes = 0;
        state.since = Instant::now();
        self.is_closed.store(false, Ordering::Release);
    }

    /// Whether a checkpoint is being waited for.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Whether the gate is closed and nobody is beyond it or may still go through: it stays so until it is opened.
    pub fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        self.is_closed() && state.working == 0 && state.begun == state.end
    }

    /// Whether an entry is being worked on.
    pub fn is_busy(&self) -> bool {
        self.state.lock().working > 0
    }
}

/// Permission to work on one entry.
pub struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.state.lock().working -= 1;
    }
}

/// What waiting for the next piece of finished work came to.
pub enum Waited<T> {
    Arrived(T),
    /// Nothing yet, and it is time to look after other things.
    Nothing,
    /// Nothing is there and nothing is under way, so everything that was begun has been taken in.
    Quiet,
    Disconnected,
}

/// Waits a while for what workers or planner send.
pub fn wait<T>(receiver: &Receiver<T>, gate: &Gate, tick: Duration) -> Waited<T> {
    /// While all wait for a checkpoint, nobody works.
    const CLOSED: Duration = Duration::from_millis(5);
    let time = if gate.is_closed() { CLOSED } else { tick };
    match receiver.recv_timeout(time) {
        Ok(value) => Waited::Arrived(value),
        Err(RecvTimeoutError::Disconnected) => Waited::Disconnected,
        // Quiet first, then empty: what was finished before the quiet has been sent by then.
        Err(RecvTimeoutError::Timeout) if gate.is_quiet() && receiver.is_empty() => Waited::Quiet,
        Err(RecvTimeoutError::Timeout) => Waited::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    const NEVER: Duration = Duration::from_secs(1 << 40);

    fn gate(time: Duration, bytes: u64) -> Arc<Gate> {
        Gate::new(Some(Interval { time, bytes }))
    }

    #[test]
    fn gate_closes_after_time_or_bytes_and_never_for_nothing() {
        let by_bytes = gate(NEVER, 100);
        drop(by_bytes.enter(0, 99));
        by_bytes.close_when_due();
        assert!(!by_bytes.is_closed());
        drop(by_bytes.enter(1, 1));
        assert!(by_bytes.is_closed() && by_bytes.enter(2, 0).is_none());
        by_bytes.open();
        assert!(by_bytes.enter(2, 99).is_some());
        assert!(!by_bytes.is_closed());
        let by_time = gate(Duration::ZERO, u64::MAX);
        by_time.close_when_due();
        assert!(!by_time.is_closed());
        drop(by_time.enter(0, 0));
        by_time.close_when_due();
        assert!(by_time.is_closed());
        let never = Gate::new(None);
        drop(never.enter(0, u64::MAX));
        never.close_when_due();
        assert!(!never.is_closed());
    }

    #[test]
    fn gate_is_quiet_only_when_closed_and_nobody_is_beyond_it() {
        let gate = gate(NEVER, 1);
        assert!(!gate.is_quiet());
        let pass = gate.enter(0, 1).unwrap();
        assert!(gate.is_closed() && gate.is_busy() && !gate.is_quiet());
        drop(pass);
        assert!(gate.is_quiet() && !gate.is_busy());
        gate.open();
        assert!(!gate.is_quiet());
    }

    /// One worker has the first entry in hand, another has overtaken it.
    #[test]
    fn what_was_begun_is_a_beginning_of_the_order() {
        let gate = gate(NEVER, 1);
        drop(gate.enter(1, 1).unwrap());
        assert!(gate.is_closed() && !gate.is_quiet());
        assert!(gate.enter(2, 0).is_none());
        drop(gate.enter(0, 0).unwrap());
        assert!(gate.is_quiet() && gate.enter(2, 0).is_none());
    }

    #[test]
    fn what_was_finished_is_taken_in_before_it_is_quiet() {
        let gate = gate(NEVER, 1);
        let (sender, receiver) = bounded(1);
        let pass = gate.enter(0, 1);
        assert!(matches!(wait(&receiver, &gate, Duration::ZERO), Waited::Nothing));
        sender.send(7).unwrap();
        drop(pass);
        assert!(matches!(wait(&receiver, &gate, Duration::ZERO), Waited::Arrived(7)));
        assert!(matches!(wait(&receiver, &gate, Duration::ZERO), Waited::Quiet));
        drop(sender);
        assert!(matches!(wait(&receiver, &gate, Duration::ZERO), Waited::Disconnected));
    }
}
