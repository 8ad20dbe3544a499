//! Listing directories ahead of the walk, on other threads.
//!
//! The walk needs directories one after the other in a fixed order, and waits for the disk, or the kernel's caches, at
//! each. It knows some of the next ones, though: the sub-directories waiting on its path. A few of them per level are
//! opened, listed and looked at (`statx`) in advance; the walk takes what is ready, waits for what is being done, and
//! does itself what nobody has begun. So the order stays the same, and nothing can be late for ever.
//!
//! Memory: [`WINDOW`] directories per level of the present path, each with its names and [`STATUSES_MAX`] statuses.

use super::walk::list;
use crate::edge::fs::listing::ListingBuffer;
use crate::edge::fs::{Directory, Listing, Status};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Directories of one level that are begun in advance.
pub(super) const WINDOW: usize = 16;
/// Names of one directory that are looked at in advance; 140 KiB.
const STATUSES_MAX: usize = 1024;

/// A directory to be listed.
pub(super) struct Job {
    pub parent: Arc<Directory>,
    pub name: Box<[u8]>,
    pub identity: (u64, u64),
    /// Deeper ones are needed sooner.
    pub depth: usize,
    pub skip_pseudo: bool,
}

/// What was found in a directory.
pub(super) struct Prepared {
    pub directory: Result<Arc<Directory>, Errno>,
    pub listing: Listing,
    pub outcome: Result<(), Errno>,
    /// Of the first names.
    pub statuses: Vec<Result<Status, Errno>>,
}

/// Threads that list ahead.
pub(super) struct Ahead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    tickets: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_over: bool,
    waiting: Vec<(u64, Job)>,
    running: HashSet<u64>,
    done: HashMap<u64, Prepared>,
}

impl Ahead {
    pub fn new(threads: usize) -> Ahead {
        let shared = Arc::new(Shared::default());
        let spawn = |number| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("walk-{number}"))
                .spawn(move || work(&shared))
                .ok()
        };
        let threads = (0..threads).filter_map(spawn).collect();
        Ahead {
            shared,
            threads,
            tickets: 0,
        }
    }

    /// Has a directory listed; returns what to ask for it by.
    pub fn submit(&mut self, job: Job) -> u64 {
        self.tickets += 1;
        self.shared.state.lock().waiting.push((self.tickets, job));
        self.shared.changed.notify_all();
        self.tickets
    }

    /// Returns what was found; `None` when nobody has begun, and nobody will.
    pub fn take(&self, ticket: u64) -> Option<Prepared> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(prepared) = state.done.remove(&ticket) {
                return Some(prepared);
            }
            if !state.running.contains(&ticket) {
                state.waiting.retain(|(other, _)| *other != ticket);
                return None;
            }
            self.shared.changed.wait(&mut state);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.state.lock().is_over = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Ends a job however it ends, so that the walk never waits for a thread that is gone.
struct Running<'a> {
    shared: &'a Shared,
    ticket: u64,
    prepared: Option<Prepared>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.running.remove(&self.ticket);
        if let Some(prepared) = self.prepared.take() {
            state.done.insert(self.ticket, prepared);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut buffer = ListingBuffer::default();
    loop {
        let (ticket, job) = {
            let mut state = shared.state.lock();
            loop {
                if state.is_over {
                    return;
                }
                let urgency = |(ticket, job): &(u64, Job)| (job.depth, std::cmp::Reverse(*ticket));
                let most_urgent = state
                    .waiting
                    .iter()
                    .enumerate()
                    .max_by_key(|(_, item)| urgency(item))
                    .map(|(index, _)| index);
                if let Some(index) = most_urgent {
                    let item = state.waiting.swap_remove(index);
                    state.running.insert(item.0);
                    break item;
                }
                shared.changed.wait(&mut state);
            }
        };
        let mut running = Running {
            shared,
            ticket,
            prepared: None,
        };
        running.prepared = Some(prepare(&job, &mut buffer));
    }
}

fn prepare(job: &Job, buffer: &mut ListingBuffer) -> Prepared {
    let directory = job.parent.open_child(&job.name);
    let mut prepared = Prepared {
        directory,
        listing: Listing::default(),
        outcome: Ok(()),
        statuses: Vec::new(),
    };
    let Ok(directory) = &prepared.directory else {
        return prepared;
    };
    let is_wanted =
        directory.status().identity() == job.identity && !(job.skip_pseudo && directory.file_system().is_pseudo);
    if !is_wanted {
        // The walk finds the same and reports it.
        return prepared;
    }
    match directory.descriptor() {
        Ok(descriptor) => {
            prepared.outcome = list(directory, &descriptor, &mut prepared.listing, buffer);
            let names = 0..prepared.listing.len().min(STATUSES_MAX);
            prepared.statuses = names
                .map(|index| Status::at(&*descriptor, prepared.listing.name(index)))
                .collect();
        }
        Err(error) => prepared.outcome = Err(error),
    }
    prepared
}
