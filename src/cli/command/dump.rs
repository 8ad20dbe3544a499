//! `dump`: one file, or an archive, to standard output.

use crate::cli::args::DumpArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::split_snapshot;
use crate::ops::{OpError, dump};
use std::io;
use std::os::unix::ffi::OsStrExt;

pub fn run(context: &Context, args: &DumpArgs) -> Result<(), Failure> {
    let wanted = split_snapshot(&args.snapshot)?;
    let path = match (&args.path, wanted.path) {
        (Some(_), Some(_)) => {
            return Err(Failure::usage(
                "the path was given twice: after the colon and as an argument",
            ));
        }
        (Some(path), None) => Some(path.as_bytes().to_vec()),
        (None, path) => path,
    };
    if args.archive.is_some() && context.output.is_terminal() {
        return Err(Failure::usage("an archive is not written to a terminal").with_hint("redirect it: `> archive.tar`"));
    }
    if args.archive.is_none() && path.is_none() {
        return Err(Failure::usage("which file of the snapshot?")
            .with_hint("larder dump SNAPSHOT PATH, or everything: larder dump SNAPSHOT --archive tar"));
    }
    let (repo, snapshot) = context.repo_with_snapshot(&wanted.snapshot, &args.filter)?;
    let threads = context.threads_with_chunks(&repo)?;
    // No bar: the terminal may be where the file goes.
    context.interrupt.stop_cleanly();
    let progress = &context.interrupt.progress;
    let dumped = context.output.with_raw(|out| match (args.archive, &path) {
        (None, Some(path)) => dump::file(&repo, &snapshot, path, threads, out, progress),
        (_, path) => dump::tar(&repo, &snapshot, path.as_deref(), threads, out, progress),
    });
    match dumped {
        // Not asked to stop: the reader has gone away.
        Err(OpError::Interrupted) if !progress.is_cancelled() => {
            Err(Failure::output(&io::ErrorKind::BrokenPipe.into()))
        }
        dumped => dumped.doing("reading from the snapshot"),
    }
}
