//! Progress of a running verb: a bar on a terminal, JSON lines where they were asked for, nothing otherwise.

use super::output::{Output, printable};
use crate::ops::Progress;
use crate::pure::base::size::format_bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Draws until it is dropped.
pub struct Display {
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Display {
    /// Starts to draw.
    pub fn start(output: &Output, progress: &Arc<Progress>, verb: &'static str) -> Display {
        if !output.bars && !output.json_progress {
            return Display { thread: None };
        }
        let (stop, stopped) = channel::<()>();
        let (output, progress) = (output.clone(), progress.clone());
        let every = if output.bars {
            Duration::from_millis(120)
        } else {
            Duration::from_secs(1)
        };
        let draw = move || {
            let started = Instant::now();
            let bar = output.bars.then(new_bar);
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                match &bar {
                    Some(bar) => update(bar, &progress, verb, started),
                    // A reader that has gone away does not stop the work.
                    None => drop(output.json(&line(&progress, verb, started))),
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        };
        // Without a thread to draw it, there is no bar.
        let thread = std::thread::Builder::new().name("progress".into()).spawn(draw).ok();
        Display {
            thread: thread.map(|thread| (stop, thread)),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
    bar.set_style(style(
        "{spinner} {prefix} {bytes} {binary_bytes_per_sec} {elapsed} {msg}",
    ));
    bar
}

fn update(bar: &ProgressBar, progress: &Progress, verb: &'static str, started: Instant) {
    let total = progress.bytes_total.load(Relaxed);
    if progress.totals_final.load(Relaxed) && bar.length() != Some(total) {
        bar.set_length(total);
        bar.set_style(style(
            "{prefix} [{bar:24}] {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta} {msg}",
        ));
    }
    bar.set_prefix(verb);
    bar.set_position(progress.bytes.load(Relaxed));
    let mut words = format!("{} files", progress.files.load(Relaxed));
    let (new, stored) = (progress.bytes_new.load(Relaxed), progress.bytes_stored.load(Relaxed));
    if new > 0 || stored > 0 {
        words.push_str(&format!(", {} new, {} stored", format_bytes(new), format_bytes(stored)));
    }
    let problems = progress.problems.load(Relaxed);
    if problems > 0 {
        words.push_str(&format!(", {problems} problems"));
    }
    let current = progress.current();
    if !current.is_empty() {
        words.push_str("  ");
        words.push_str(&printable(current.as_bytes()));
    }
    if progress.is_cancelled() {
        words = "stopping; once more to stop at once".into();
    }
    bar.set_message(words);
    let _ = started;
}

fn line(progress: &Progress, verb: &str, started: Instant) -> serde_json::Value {
    json!({
        "type": "progress",
        "version": 1,
        "verb": verb,
        "seconds": started.elapsed().as_secs_f64(),
        "files": progress.files.load(Relaxed),
        "files_total": progress.files_total.load(Relaxed),
        "bytes": progress.bytes.load(Relaxed),
        "bytes_total": progress.bytes_total.load(Relaxed),
        "totals_final": progress.totals_final.load(Relaxed),
        "bytes_new": progress.bytes_new.load(Relaxed),
        "bytes_stored": progress.bytes_stored.load(Relaxed),
        "problems": progress.problems.load(Relaxed),
    })
}
