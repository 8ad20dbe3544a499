//! What the process does about itself: permissions of what it makes, core dumps, signals.

use super::error::Failure;
use super::output::print_failure;
use crate::ops::Progress;
use crate::pure::base::Kind;
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Keeps keys out of core dumps and other users out of what is made. Best effort: an old kernel is no reason to stop.
pub fn harden() {
    umask(Mode::from_raw_mode(0o077));
    let _ = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    );
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Turns signals into a clean stop where the running verb can do that, else into an end.
pub struct Interrupt {
    /// Figures of the running verb; cancelled by the first signal.
    pub progress: Arc<Progress>,
    /// Ends waiting between attempts at a store.
    pub waits: Arc<AtomicBool>,
    /// Whether the running verb looks at `progress`.
    stops_cleanly: Arc<AtomicBool>,
}

impl Interrupt {
    /// Starts to listen.
    ///
    /// # Errors
    /// When signals cannot be handled or no thread can be started.
    pub fn listen(json: bool) -> Result<Interrupt, Failure> {
        let interrupt = Interrupt {
            progress: Arc::default(),
            waits: Arc::default(),
            stops_cleanly: Arc::default(),
        };
        let failed = |error: std::io::Error| Failure::new(Kind::Internal, format!("cannot handle signals: {error}"));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
        let (progress, waits, stops_cleanly) = (
            interrupt.progress.clone(),
            interrupt.waits.clone(),
            interrupt.stops_cleanly.clone(),
        );
        let listen = move || {
            for _ in signals.forever() {
                if progress.is_cancelled() || !stops_cleanly.load(Ordering::Acquire) {
                    signal_hook::low_level::exit(Kind::Interrupted.exit_code().into());
                }
                waits.store(true, Ordering::Release);
                progress.cancel();
                let progress = progress.clone();
                // Without this thread, a second signal ends what hangs.
                let _ = std::thread::Builder::new()
                    .name("stopping".into())
                    .spawn(move || end_when_let_go(&progress, json));
            }
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(listen)
            .map_err(failed)?;
        Ok(interrupt)
    }

    /// From now on, the first signal only asks for a stop; the second ends the process.
    pub fn stop_cleanly(&self) {
        self.stops_cleanly.store(true, Ordering::Release);
    }

    /// Gives a failure that follows from a signal that signal's kind.
    pub fn explain(&self, failure: Failure) -> Failure {
        // What went wrong because of the stop is no news; damage found before it is.
        let from_stop = matches!(failure.kind, Kind::Unavailable | Kind::Internal);
        if self.progress.is_cancelled() && from_stop {
            return Failure::new(Kind::Interrupted, "interrupted").with_hint("run the same command again");
        }
        failure
    }
}

/// Ends the process when the verb has let go: it has done what it could, but a thread of it hangs in a read that may
/// never return.
fn end_when_let_go(progress: &Progress, json: bool) {
    const LOOK: Duration = Duration::from_millis(20);
    while !progress.is_let_go() {
        std::thread::sleep(LOOK);
    }
    let mut failure = Failure::new(Kind::Interrupted, "interrupted; no snapshot was completed")
        .with_hint("run the same command again: what was uploaded is used again");
    failure
        .causes
        .push("a read from the source did not return and was left behind".into());
    print_failure(&failure, json);
    // Not `std::process::exit`: what that runs could wait for the thread that hangs.
    signal_hook::low_level::exit(Kind::Interrupted.exit_code().into());
}
