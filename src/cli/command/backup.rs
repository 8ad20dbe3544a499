//! `backup`: files, standard input, or the output of a command.

use super::snapshot::problems_json;
use crate::cli::args::{BackupArgs, DeltaArg};
use crate::cli::context::Context;
use crate::cli::env;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{Every, took};
use crate::cli::output::{count, printable};
use crate::edge::host;
use crate::edge::store::location::Location;
use crate::ops::backup::{self, Input, Interval, Options, ParentChoice, Report};
use crate::pure::base::Kind;
use crate::pure::base::size::format_bytes;
use crate::pure::crypto::Domain;
use crate::repo::Repo;
use crate::repo::snapshots::Filter;
use crate::source::SourceError;
use crate::source::files::{ExcludesBuilder, WalkOptions};
use crate::source::stream::Stream;
use rustix::io::Errno;
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Threads that list directories ahead of the walk.
const LISTING_THREADS: usize = 2;

pub fn run(context: &Context, mut args: BackupArgs) -> Result<(), Failure> {
    let started = Instant::now();
    if !args.exec {
        // After `--`, sources may begin with a hyphen.
        args.sources
            .extend(std::mem::take(&mut args.command).into_iter().map(OsString::from));
    }
    let is_stream = args.stdin || args.exec;
    if is_stream && args.dry_run {
        // Said before the command is started: it may do more than write.
        return Err(Failure::usage(
            "--dry-run works with paths only: a stream cannot be looked at without reading it",
        ));
    }
    let roots = if is_stream { Vec::new() } else { roots(context, &args)? };
    let excludes = excludes(context, &args)?;
    let mut repo = context.repo()?;
    // A base that has to be fetched would often cost more than the delta saves.
    let deltas = match args.delta {
        DeltaArg::Auto => repo.store.is_local(),
        DeltaArg::Always => true,
        DeltaArg::Never => false,
    };
    if matches!(args.delta, DeltaArg::Always) && !repo.keys.can_open(Domain::Data) {
        context
            .output
            .note("no deltas are made: this key cannot read what they would be made against");
    }
    let share = context.share_of_backup(&mut repo, args.compression_level, deltas)?;
    context
        .output
        .detail(format!("local index in {}", repo.state_dir.display()));
    let (input, label) = if is_stream {
        let name = args.name.clone().unwrap_or_default();
        (stream(&args, &name)?, name)
    } else {
        let label = args.name.clone().unwrap_or_else(|| {
            roots
                .iter()
                .map(|root| printable(root.as_os_str().as_bytes()))
                .collect::<Vec<_>>()
                .join(", ")
        });
        (
            Input::Paths {
                walk: walk(context, &args, &roots)?,
                roots,
                excludes,
            },
            label,
        )
    };
    let mut tags = context.profile.tag.clone();
    tags.extend(args.tag.iter().cloned());
    let options = Options {
        host: args.host.clone().unwrap_or_else(host::host_name),
        label,
        tags,
        parent: parent(&repo, &args)?,
        threads: share.threads,
        uploads: share.uploads,
        zstd_level: args.compression_level,
        deltas: share.deltas,
        checkpoints: match args.checkpoint_every {
            Some(Every::Never) => None,
            Some(Every::After(time)) => Some(Interval {
                time,
                ..Interval::DEFAULT
            }),
            None => Some(Interval::DEFAULT),
        },
        dry_run: args.dry_run,
    };
    let report = context
        .run("backing up", |progress| backup::run(&repo, input, &options, progress))
        .doing("backing up")?;
    tell(context, &report, started)?;
    verdict(&report)
}

/// Makes the roots absolute and drops what is named twice or is reached from another root.
fn roots(context: &Context, args: &BackupArgs) -> Result<Vec<PathBuf>, Failure> {
    if args.sources.is_empty() {
        return Err(Failure::usage("nothing to back up was named")
            .with_hint("larder backup /home /etc, or --stdin --name NAME, or --exec --name NAME -- COMMAND"));
    }
    // The device of each, `None` for one that is missing: the rest is backed up without it, and the run says so.
    let mut roots: Vec<(PathBuf, Option<u64>)> = Vec::new();
    let mut missing = None;
    for source in &args.sources {
        let path = Path::new(source);
        let status = path.symlink_metadata();
        if let Some((scheme, _)) = source.to_str().and_then(|text| text.split_once("://"))
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && status.is_err()
        {
            return Err(Failure::usage(format!("sources of the kind {scheme}:// are not known")));
        }
        let root = env::absolute(path)
            .or_else(|_| std::path::absolute(path))
            .map_err(|error| SourceError::Root {
                path: path.as_os_str().as_bytes().to_vec(),
                error: Errno::from_io_error(&error).unwrap_or(Errno::NOENT),
            })?;
        let device = match status {
            Ok(status) => Some(status.dev()),
            Err(error) => {
                missing.get_or_insert_with(|| SourceError::Root {
                    path: root.as_os_str().as_bytes().to_vec(),
                    error: Errno::from_io_error(&error).unwrap_or(Errno::NOENT),
                });
                None
            }
        };
        roots.push((root, device));
    }
    if roots.iter().all(|(_, device)| device.is_none())
        && let Some(error) = missing
    {
        return Err(error.into());
    }
    // Sorted by components, a root comes after the one that it lies in.
    roots.sort();
    roots.dedup();
    let mut kept: Vec<(PathBuf, Option<u64>)> = Vec::new();
    for (root, device) in roots {
        let above = kept.iter().rev().find(|(above, _)| root.starts_with(above));
        match above {
            // With --one-file-system the walk of the root above stops at another device.
            Some((above, above_device)) if !args.one_file_system || device == *above_device => {
                context.output.note(format!(
                    "{} lies in {} and is backed up with it",
                    root.display(),
                    above.display()
                ));
            }
            _ => kept.push((root, device)),
        }
    }
    Ok(kept.into_iter().map(|(root, _)| root).collect())
}

fn excludes(context: &Context, args: &BackupArgs) -> Result<ExcludesBuilder, Failure> {
    let mut builder = ExcludesBuilder::default();
    for pattern in &context.profile.exclude {
        builder.add(pattern.as_bytes());
    }
    for file in context.profile.exclude_file.iter().chain(&args.exclude_file) {
        builder.add_file(file)?;
    }
    for pattern in &args.exclude {
        builder.add(pattern.as_bytes());
    }
    // A pattern that is not right is told before anything is done.
    builder.build(Path::new("/"))?;
    Ok(builder)
}

fn walk(context: &Context, args: &BackupArgs, roots: &[PathBuf]) -> Result<WalkOptions, Failure> {
    let mut own = vec![("the cache", context.cache_dir()?)];
    if let Location::Directory(path) = context.location()? {
        own.push(("the repository", path));
    }
    let mut exclude_directories = Vec::new();
    for (what, path) in own {
        let Ok(status) = path.metadata() else { continue };
        let identity = (status.dev(), status.ino());
        for root in roots {
            if root
                .metadata()
                .is_ok_and(|status| (status.dev(), status.ino()) == identity)
            {
                return Err(Failure::usage(format!(
                    "{} is {what} itself, which is not backed up",
                    root.display()
                )));
            }
        }
        exclude_directories.push(identity);
    }
    Ok(WalkOptions {
        one_file_system: args.one_file_system,
        exclude_caches: args.exclude_caches,
        exclude_larger_than: args.exclude_larger_than,
        exclude_directories,
        threads_ahead: LISTING_THREADS,
        ..WalkOptions::default()
    })
}

fn stream(args: &BackupArgs, name: &str) -> Result<Input, Failure> {
    if name.is_empty() || name.len() > 4096 || name.contains('\0') || name.starts_with('/') || name.ends_with('/') {
        return Err(
            Failure::usage("a stream needs a name such as db.sql: --name").with_hint("not empty, no slash at its ends")
        );
    }
    if args.stdin {
        return Ok(Input::Stream(Stream::stdin(name.as_bytes())));
    }
    let (program, arguments) = args.command.split_first().ok_or_else(|| {
        Failure::usage("which command?").with_hint("larder backup --exec --name db.sql -- pg_dump shop")
    })?;
    Ok(Input::Stream(
        Stream::command(name.as_bytes(), program, arguments).doing("starting the command")?,
    ))
}

fn parent(repo: &Repo, args: &BackupArgs) -> Result<ParentChoice, Failure> {
    if args.force_rehash {
        return Ok(ParentChoice::None);
    }
    match &args.parent {
        None => Ok(ParentChoice::Newest),
        Some(text) => {
            repo.sync_history().doing("listing the snapshots")?;
            let filter = Filter::default();
            let zone = jiff::tz::TimeZone::system();
            let parse = |time: &str| crate::cli::names::parse_time(time, crate::cli::names::DayEdge::End, &zone);
            Ok(ParentChoice::Given(
                repo.resolve(text, &filter, &parse).doing("finding the parent")?.id,
            ))
        }
    }
}

/// Bytes of the source. Of a stream, that is what was read.
fn looked_at(report: &Report) -> u64 {
    report.stats.bytes_processed.max(report.stats.bytes_read)
}

/// How many times the bytes looked at are those that were stored.
fn ratio(report: &Report) -> Option<f64> {
    let stats = &report.stats;
    (stats.bytes_stored > 0).then(|| looked_at(report) as f64 / stats.bytes_stored as f64)
}

fn tell(context: &Context, report: &Report, started: Instant) -> Result<(), Failure> {
    let output = &context.output;
    for note in &report.notes {
        output.note(note);
    }
    for problem in report.problems.iter().take(output.shown_max()) {
        let path = String::from_utf8_lossy(&problem.path);
        output.warn(format!("{path}: {}", problem.text));
    }
    let more = report.problems_total.saturating_sub(output.shown_max() as u64);
    if more > 0 {
        output.warn(format!("{more} more problems; `larder snapshot show` names them"));
    }
    for gap in &report.gaps {
        output.warn(format!("a gap in the history of this repository: {gap}"));
    }
    let stats = &report.stats;
    if output.json {
        return output.json(&json!({
            "type": "summary",
            "version": 1,
            "snapshot": report.snapshot.map(|id| id.to_string()),
            "parent": report.parent.map(|id| id.to_string()),
            "resumed": report.resumed.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "checkpoints": report.checkpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "dry_run": report.snapshot.is_none(),
            "files_new": stats.files_new,
            "files_changed": stats.files_changed,
            "files_unmodified": stats.files_unmodified,
            "dirs": stats.dirs,
            "bytes_processed": stats.bytes_processed,
            "bytes_read": stats.bytes_read,
            "bytes_new": stats.bytes_new,
            "bytes_stored": stats.bytes_stored,
            "bytes_delta": stats.bytes_delta,
            "packs_uploaded": stats.packs_uploaded,
            "chunks_new": stats.chunks_new,
            "chunks_reused": stats.chunks_reused,
            "chunks_delta": report.deltas,
            "requests": stats.requests,
            "seconds": started.elapsed().as_secs_f64(),
            "errors": report.problems_total,
            "problems": problems_json(&report.problems),
            "gaps": report.gaps,
            "notes": report.notes,
        }));
    }
    let files = format!(
        "{} new, {} changed, {} unmodified, {}",
        count(stats.files_new, "file", "files"),
        stats.files_changed,
        stats.files_unmodified,
        count(stats.dirs, "directory", "directories")
    );
    let Some(snapshot) = report.snapshot else {
        return output.say(format!(
            "dry run: {files}; {} looked at, {} would be read; nothing was written",
            format_bytes(stats.bytes_processed),
            format_bytes(stats.bytes_read)
        ));
    };
    output.say(&files)?;
    let times = ratio(report).map_or_else(String::new, |ratio| format!(", 1 : {ratio:.1}"));
    output.say(format!(
        "{} looked at, {} read, {} new, {} stored{times}",
        format_bytes(looked_at(report)),
        format_bytes(stats.bytes_read),
        format_bytes(stats.bytes_new),
        format_bytes(stats.bytes_stored)
    ))?;
    if report.deltas > 0 {
        output.say(format!(
            "{} of {} new chunks stored as deltas",
            report.deltas, stats.chunks_new
        ))?;
    }
    let parent = report
        .parent
        .map_or_else(String::new, |parent| format!(", after {}", parent.short()));
    output.say(format!(
        "snapshot {} saved in {}{parent}",
        snapshot.short(),
        took(started.elapsed())
    ))
}

fn verdict(report: &Report) -> Result<(), Failure> {
    let named = report
        .snapshot
        .map_or_else(|| "a snapshot".to_owned(), |id| format!("snapshot {}", id.short()));
    // The graver of the two: a source that cannot be read is an everyday matter beside snapshots that vanish.
    if let Some(gap) = report.gaps.first() {
        return Err(Failure::new(Kind::Tamper, format!("{named} was saved, but the history of this repository has a gap: {gap}"))
            .with_hint("older snapshots were removed by somebody who may not, or an older copy of the repository is in its place: compare with the store's own records before anything is deleted"));
    }
    if report.incomplete || report.problems_total > 0 {
        let what = count(report.problems_total, "problem", "problems");
        let text = match report.snapshot {
            Some(_) => format!("{named} was saved, but some of the source could not be read ({what})"),
            None => format!("some of the source cannot be read ({what})"),
        };
        return Err(Failure::new(Kind::Incomplete, text)
            .with_hint("run as a user who may read everything, or exclude what need not be backed up"));
    }
    Ok(())
}
