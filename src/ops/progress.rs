//! What a running verb has done so far, for whoever watches, and the wish that it stop.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Figures of a running verb. All counts only grow, except the totals, which are estimates until `totals_final`.
#[derive(Debug, Default)]
pub struct Progress {
    pub files: AtomicU64,
    pub bytes: AtomicU64,
    pub files_total: AtomicU64,
    pub bytes_total: AtomicU64,
    pub totals_final: AtomicBool,
    /// Plaintext bytes of chunks that were new.
    pub bytes_new: AtomicU64,
    /// Bytes sent to the repository.
    pub bytes_stored: AtomicU64,
    pub problems: AtomicU64,
    current: Mutex<String>,
    notes: Mutex<Vec<String>>,
    cancelled: AtomicBool,
    let_go: AtomicBool,
}

impl Progress {
    /// Asks the verb to stop at the next safe point.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Says whether somebody asked for a stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Says that the verb has stopped as well as it can, but waits for a thread that may never end: nothing is lost
    /// when the process is ended now.
    pub fn let_go(&self) {
        self.let_go.store(true, Ordering::Release);
    }

    /// Whether the process may be ended at any moment.
    pub fn is_let_go(&self) -> bool {
        self.let_go.load(Ordering::Acquire)
    }

    /// Adds one finished file.
    pub fn file_done(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells what is being worked on.
    pub fn set_current(&self, text: impl Into<String>) {
        *self.current.lock() = text.into();
    }

    /// Returns what is being worked on.
    pub fn current(&self) -> String {
        self.current.lock().clone()
    }

    /// Leaves a note for the user.
    pub fn note(&self, text: impl Into<String>) {
        self.notes.lock().push(text.into());
    }

    /// Takes the notes so far.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock())
    }
}
