//! `repo replicate` and `repo promote`.

use super::repo::{SHOWN_MAX, findings_json, tell_findings};
use crate::cli::args::ReplicateArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{rfc3339, took};
use crate::cli::output::{count, printable};
use crate::edge::host;
use crate::ops::replicate::remove::{self, Removed};
use crate::ops::replicate::{self, Behind, Options, Report};
use crate::ops::{Progress, promote as promoting};
use crate::pure::base::size::format_bytes;
use crate::pure::base::{Kind, Timestamp};
use crate::repo::open;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub fn run(context: &Context, args: &ReplicateArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let source = context.store()?;
    let target = context.other_store(&args.to)?;
    let (threads, bytes_in_memory) = context.share_of_copies(source.is_local() && target.is_local())?;
    let options = Options {
        dry_run: args.dry_run,
        verify: args.verify,
        threads,
        bytes_in_memory,
    };
    // Asked for before hours of copying.
    let credential = match args.delete {
        true => Some(context.credential(false)?),
        false => None,
    };
    let work = |progress: &Progress| {
        let report = replicate::run(&*source, &*target, &options, progress).doing("replicating")?;
        let Some(credential) = &credential else {
            return Ok((report, None));
        };
        let removed = open::connect(target.clone(), context.local_options()?)
            .and_then(|locked| locked.unlock(credential))
            .doing("opening the replica")
            .and_then(|replica| {
                remove::run(&*source, &replica, &report, progress)
                    .doing("deleting from the replica what the source has deleted")
            })?;
        Ok::<_, Failure>((report, Some(removed)))
    };
    let (report, removed) = context.run("replicating", work)?;
    let now = host::now();
    if context.output.json {
        context
            .output
            .json(&report_json(&report, removed.as_ref(), args, now, started))?;
    } else {
        tell(context, &report, removed.as_ref(), args, now, started)?;
    }
    verdict(&report, removed.as_ref(), args)
}

fn lag(behind: &Behind, now: Timestamp) -> Option<Duration> {
    let since = behind.since?;
    Some(Duration::from_nanos(
        u64::try_from(now.0.saturating_sub(since.0)).unwrap_or(0),
    ))
}

fn behind_json(behind: &Behind, now: Timestamp) -> Value {
    // Nothing missing is no lag; something missing of unknown age is not zero.
    let seconds = match behind.outcomes {
        0 => Some(0.0),
        _ => lag(behind, now).map(|lag| lag.as_secs_f64()),
    };
    json!({
        "outcomes": behind.outcomes, "lag_seconds": seconds, "since": behind.since.map(rfc3339),
        "newest": behind.newest.map(rfc3339),
    })
}

fn report_json(
    report: &Report,
    removed: Option<&Removed>,
    args: &ReplicateArgs,
    now: Timestamp,
    started: Instant,
) -> Value {
    let findings = findings_json(&report.findings);
    let removed = removed.map(|removed| {
        json!({
            "packs": removed.packs, "bytes": removed.bytes, "holds": removed.holds, "keys": removed.keys,
            "packs_lost_at_source": removed.lost_at_source, "postponed": removed.is_postponed,
        })
    });
    json!({
        "type": "replicate", "version": 1, "dry_run": args.dry_run,
        "objects_copied": report.objects_copied, "bytes_copied": report.bytes_copied,
        "objects_there": report.objects_there, "bytes_there": report.bytes_there,
        "objects_verified": report.objects_verified, "objects_healed": report.objects_healed, "vanished": report.vanished,
        "packs_beyond": report.packs_beyond, "bytes_beyond": report.bytes_beyond, "keys_beyond": report.keys_beyond,
        "rounds": report.rounds,
        "behind_before": behind_json(&report.behind_before, now), "behind_after": behind_json(&report.behind_after, now),
        "lost_at_source": report.lost_at_source.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "findings_total": report.findings_total, "findings": findings, "deleted": removed,
        "seconds": started.elapsed().as_secs_f64(),
    })
}

fn tell(
    context: &Context,
    report: &Report,
    removed: Option<&Removed>,
    args: &ReplicateArgs,
    now: Timestamp,
    started: Instant,
) -> Result<(), Failure> {
    let output = &context.output;
    tell_findings(context, &report.findings, report.findings_total, "thousand")?;
    for lost in report.lost_at_source.iter().take(SHOWN_MAX) {
        output.line(format!(
            "LOST  snap/{lost}: the replica has it, and the source does not any more"
        ))?;
    }
    let before = match (report.behind_before.outcomes, lag(&report.behind_before, now)) {
        (0, _) => "the replica had everything".to_owned(),
        (outcomes, None) => format!("the replica was behind by {}", count(outcomes, "session", "sessions")),
        (outcomes, Some(lag)) => format!(
            "the replica was behind by {}, the first of which ended {} ago",
            count(outcomes, "session", "sessions"),
            took(lag)
        ),
    };
    output.say(before)?;
    output.say(format!(
        "{} {} ({}) in {}; {} ({}) were there",
        if args.dry_run { "would copy" } else { "copied" },
        count(report.objects_copied, "object", "objects"),
        format_bytes(report.bytes_copied),
        took(started.elapsed()),
        report.objects_there,
        format_bytes(report.bytes_there)
    ))?;
    if args.verify && !args.dry_run {
        output.say(format!(
            "compared {}, and replaced {} that were damaged in the replica",
            count(report.objects_verified, "object", "objects"),
            report.objects_healed
        ))?;
    }
    if report.behind_after.outcomes > 0 && !args.dry_run {
        output.note(format!(
            "{} ended at the source meanwhile; the next run copies what belongs to them",
            count(report.behind_after.outcomes, "session", "sessions")
        ));
    }
    match removed {
        Some(removed) if removed.is_postponed => {
            output.note("a prune ended at the source meanwhile, so nothing was deleted this time");
        }
        Some(removed) => output.say(format!(
            "deleted {} ({}), {} and {}",
            count(removed.packs, "pack", "packs"),
            format_bytes(removed.bytes),
            count(removed.holds, "hold", "holds"),
            count(removed.keys, "password or key file", "passwords and key files")
        ))?,
        None if report.packs_beyond > 0 => output.say(format!(
            "the replica still has {} ({}) that the source does not have; --delete removes what was swept there",
            count(report.packs_beyond, "pack", "packs"),
            format_bytes(report.bytes_beyond)
        ))?,
        None => {}
    }
    if removed.is_none() && report.keys_beyond > 0 {
        output.warn(format!(
            "{} still open the replica, and the source not any more; remove them with `larder -r REPLICA repo key remove`, or use --delete",
            count(report.keys_beyond, "password or key file", "passwords or key files")
        ));
    }
    Ok(())
}

fn verdict(report: &Report, removed: Option<&Removed>, args: &ReplicateArgs) -> Result<(), Failure> {
    if report.shows_tampering() {
        let lost = report.lost_at_source.len() as u64;
        let text = match lost {
            0 => "objects of the two places differ, which no accident explains".to_owned(),
            _ => format!(
                "the source has lost {} that the replica has",
                count(lost, "outcome", "outcomes")
            ),
        };
        return Err(Failure::new(Kind::Tamper, text).with_hint(
            "the source was set back, damaged or emptied, or somebody has written to the replica; nothing was deleted, and the replica still has what it had",
        ));
    }
    if report.findings_total > 0 {
        return Err(Failure::new(
            Kind::Damage,
            format!("{} found; everything else was copied", count(report.findings_total, "problem", "problems")),
        )
        .with_hint(match args.verify {
            true => "`larder repo check --read-data` of the source says which files and snapshots are hit",
            false => "run it with --verify, which replaces what is damaged in the replica; `larder repo check --read-data` says what is hit",
        }));
    }
    match removed.map_or(0, |removed| removed.lost_at_source) {
        0 => Ok(()),
        lost => Err(Failure::new(
            Kind::Damage,
            format!(
                "the source has lost {}: the replica has them, and no condemnation names them",
                count(lost, "pack", "packs")
            ),
        )
        .with_hint("they were kept; run `larder repo check` at the source")),
    }
}

pub fn promote(context: &Context, force: bool) -> Result<(), Failure> {
    let repo = context.repo()?;
    let promoted = promoting::run(&repo, force).doing("making the replica the primary")?;
    let output = &context.output;
    for gap in &promoted.gaps {
        output.warn(format!("a gap in the history of this repository: {gap}"));
    }
    if output.json {
        return output.json(&json!({
            "type": "promoted", "version": 1, "location": repo.store.location(), "config": promoted.config,
            "place": promoted.place.to_string(), "conditional_writes": promoted.conditional_writes,
            "object_lock_ended": promoted.lock_ended, "gaps": promoted.gaps,
        }));
    }
    output.say(format!(
        "{} is the primary since configuration {}",
        printable(repo.store.location().as_bytes()),
        promoted.config
    ))?;
    if promoted.lock_ended {
        output.warn(
            "the repository had its objects locked, and this store does not lock: what is written from now on can be deleted at once",
        );
    }
    if !promoted.conditional_writes {
        output
            .warn("this store cannot create an object only if its name is free; larder works in its weaker mode here");
    }
    output.say("let all machines write here; none may write to the old primary any more")
}
