//! `repo copy`.

use crate::cli::args::CopyArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::took;
use crate::cli::output::{count, printable};
use crate::ops::copy::{self, Options, Report};
use crate::pure::base::Kind;
use crate::pure::base::size::format_bytes;
use crate::repo::open;
use crate::repo::snapshots::Broken;
use serde_json::{Value, json};
use std::time::Instant;

pub fn run(context: &Context, args: &CopyArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let (source, _) = context.repo_with_history()?;
    let store = context.other_store(&args.to)?;
    let locked = open::connect(store, context.local_options()?).doing("opening the other repository")?;
    let credential = context.other_credential(args)?;
    let mut target = locked.unlock(&credential).doing("opening the other repository")?;
    let snapshots = if args.snapshots.is_empty() {
        let mut broken = Broken::new();
        let mut all = source.snapshots_noting(&mut broken)?;
        context.tell_broken(&broken);
        let filter = args.filter.to_filter();
        all.retain(|snapshot| !snapshot.is_partial() && filter.accepts(snapshot));
        all
    } else {
        let named = args.snapshots.iter();
        named
            .map(|text| context.snapshot(&source, text, &args.filter))
            .collect::<Result<_, _>>()?
    };
    let share = context.share_of_backup(&mut target, args.zstd_level, false)?;
    let options = Options {
        again: !args.snapshots.is_empty(),
        uploads: share.uploads,
        zstd_level: args.zstd_level,
        dry_run: args.dry_run,
    };
    target
        .sync_history()
        .doing("listing the snapshots of the other repository")?;
    let report = context
        .run("copying", |progress| {
            copy::run(&source, &target, snapshots, &options, progress)
        })
        .doing("copying snapshots")?;
    if context.output.json {
        context.output.json(&report_json(&report, args, started))?;
    } else {
        tell(context, &report, args, started)?;
    }
    match report.failed.len() as u64 {
        0 => Ok(()),
        failed => Err(Failure::new(
            Kind::Damage,
            format!(
                "{} could not be copied whole, and nothing of them was published",
                count(failed, "snapshot", "snapshots")
            ),
        )
        .with_hint("`larder repo check --read-data` of the source says what is hit")),
    }
}

fn report_json(report: &Report, args: &CopyArgs, started: Instant) -> Value {
    let copies: Vec<Value> = report
        .copies
        .iter()
        .map(|copied| {
            json!({
                "of": copied.of.to_string(), "snapshot": copied.copy.map(|copy| copy.to_string()),
                "entries_unchanged": copied.unchanged, "entries_copied": copied.copied, "bytes_read": copied.bytes_read,
                "bytes_stored": copied.bytes_stored,
            })
        })
        .collect();
    let failed: Vec<Value> = report
        .failed
        .iter()
        .map(|(of, why)| json!({"of": of.to_string(), "why": why}))
        .collect();
    json!({
        "type": "copy", "version": 1, "dry_run": args.dry_run, "copies": copies, "there": report.there, "failed": failed,
        "notes": report.notes, "seconds": started.elapsed().as_secs_f64(),
    })
}

fn tell(context: &Context, report: &Report, args: &CopyArgs, started: Instant) -> Result<(), Failure> {
    let output = &context.output;
    for note in &report.notes {
        output.note(note);
    }
    for copied in &report.copies {
        match copied.copy {
            None => output.say(format!("would copy {}", copied.of.short()))?,
            Some(copy) => output.say(format!(
                "copied {} as {}: {} read, {} stored",
                copied.of.short(),
                copy.short(),
                format_bytes(copied.bytes_read),
                format_bytes(copied.bytes_stored)
            ))?,
        }
    }
    for (of, why) in &report.failed {
        output.line(format!("DAMAGE  {}: {}", of.short(), printable(why.as_bytes())))?;
    }
    output.say(format!(
        "{} {} in {}; of {} there are copies already",
        if args.dry_run { "would copy" } else { "copied" },
        count(report.copies.len() as u64, "snapshot", "snapshots"),
        took(started.elapsed()),
        report.there
    ))
}
