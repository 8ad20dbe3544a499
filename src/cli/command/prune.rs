//! `repo prune` and `repo undelete`.

use crate::cli::args::PruneArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{local_time, rfc3339};
use crate::cli::output::{count, printable};
use crate::ops::prune::{self, Options, Packs, Report, undelete};
use crate::pure::base::Kind;
use crate::pure::base::size::format_bytes;
use crate::pure::plan::prune::RepackLimits;
use crate::repo::maintain::OpenSession;
use crate::repo::snapshots::Snapshot;
use serde_json::{Value, json};
use std::time::Instant;

/// Unused share of a pack above which it is rewritten, where only the amount was given.
const UNUSED_PERCENT: u32 = 20;

pub fn run(context: &Context, args: &PruneArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let repo = context.repo()?;
    let wants_repack = args.max_unused.is_some() || args.max_repack.is_some() || args.rekey;
    // Rekeying alone leaves what is used badly where it is.
    let unused_percent = match args.max_unused {
        Some(percent) => percent,
        None if args.rekey => 100,
        None => UNUSED_PERCENT,
    };
    let options = Options {
        dry_run: args.dry_run,
        grace: args.grace.unwrap_or_default(),
        repack: wants_repack.then(|| RepackLimits {
            unused_share: f64::from(unused_percent) / 100.0,
            copied_bytes_max: args.max_repack.unwrap_or(u64::MAX),
        }),
        rekey: args.rekey,
        end_sessions: args.end_session.clone(),
        uniting: Default::default(),
        threads: context.threads_with_packs(&repo)?,
        uploads: 1,
    };
    let report = context
        .run("pruning", |progress| prune::run(&repo, &options, progress))
        .doing("pruning")?;
    if context.output.json {
        context.output.json(&report_json(&report, args, started))?;
    } else {
        tell(context, &report, args)?;
    }
    verdict(&report)
}

/// What was to be rewritten and could not be read is damage, whatever else went well.
fn verdict(report: &Report) -> Result<(), Failure> {
    if let Some(runs) = report.damaged_runs.first() {
        return Err(Failure::new(
            Kind::Damage,
            format!("uniting the index: {runs} cannot be used, and nothing was taken away for it"),
        )
        .with_hint("`larder repo check` says what is damaged, `larder repo repair index` writes it anew"));
    }
    if let Some(pack) = report.damaged.first() {
        return Err(Failure::new(
            Kind::Damage,
            format!(
                "{} cannot be read, {pack} among them, and were left as they are",
                count(
                    report.damaged.len() as u64,
                    "pack that was to be rewritten",
                    "packs that were to be rewritten"
                )
            ),
        )
        .with_hint("`larder repo check --read-data` says which files and snapshots are hit"));
    }
    let extended = &report.extended;
    if let Some(name) = extended.tampered_names.first() {
        return Err(Failure::new(
            Kind::Tamper,
            format!(
                "{} written again or deleted by somebody else, {name} among them",
                count(extended.tampered, "object was", "objects were")
            ),
        )
        .with_hint(
            "the first version of each is still there: `--as-of TIME` reads the repository as it was; find out whose credentials it were",
        ));
    }
    match &extended.failure {
        None => Ok(()),
        Some((first, kind)) => Err(Failure::new(
            *kind,
            format!(
                "{} not extended, that of {first}",
                count(extended.failed, "lock was", "locks were")
            ),
        )
        .with_hint(
            "prune again before the locks end; the credentials need s3:ListBucketVersions, s3:GetObjectRetention and s3:PutObjectRetention",
        )),
    }
}

fn packs_json(packs: Packs) -> Value {
    json!({"packs": packs.packs, "bytes": packs.bytes})
}

fn report_json(report: &Report, args: &PruneArgs, started: Instant) -> Value {
    let session = |other: &OpenSession| {
        json!({
            "session": other.state.session.to_string(), "host": other.host, "began": rfc3339(other.began),
            "last_seen": other.last_seen.map(rfc3339),
        })
    };
    json!({
        "type": "prune", "version": 1, "dry_run": args.dry_run, "snapshots": report.snapshots,
        "used": packs_json(report.used), "bytes_alive": report.bytes_alive, "unused": packs_json(report.unused),
        "orphaned": packs_json(report.orphaned), "rewritten": packs_json(report.rewritten), "bytes_copied": report.bytes_copied,
        "outdated": args.rekey.then(|| packs_json(report.outdated)),
        "chunks_rescued": report.rescued, "runs_united": report.runs_united,
        "tidied": report.tidied, "deleted": packs_json(report.deleted), "waiting": packs_json(report.waiting),
        "waiting_for": report.waiting_for.iter().map(session).collect::<Vec<_>>(),
        "deletable_at": report.deletable_at.map(rfc3339),
        "fenced": report.fenced.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "damaged": report.damaged.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "damaged_runs": report.damaged_runs, "lost": report.lost,
        "kept_damaged": packs_json(report.kept_damaged),
        "locked": {
            "objects": report.locked.objects, "bytes": report.locked.bytes, "deletable_at": report.locked.until.map(rfc3339),
        },
        "locks": {
            "asked": report.extended.asked, "extended": report.extended.extended, "failed": report.extended.failed,
            "tampered": report.extended.tampered, "tampered_names": report.extended.tampered_names,
        },
        "notes": report.notes,
        "seconds": started.elapsed().as_secs_f64(),
    })
}

fn packs(packs: Packs) -> String {
    format!(
        "{} ({})",
        count(packs.packs, "pack", "packs"),
        format_bytes(packs.bytes)
    )
}

fn tell(context: &Context, report: &Report, args: &PruneArgs) -> Result<(), Failure> {
    let output = &context.output;
    for note in &report.notes {
        output.note(note);
    }
    for session in &report.fenced {
        output.note(format!(
            "session {session} had given no sign of life for days and was ended; if it is alive after all, its backup has to be run again"
        ));
    }
    let total = report.used.bytes.saturating_add(report.unused.bytes);
    output.say(format!(
        "{}: {} of {} are needed, in {}",
        count(report.snapshots, "snapshot", "snapshots"),
        format_bytes(report.bytes_alive),
        format_bytes(total),
        count(report.used.packs, "pack", "packs"),
    ))?;
    let verb = |done: &str, would: &str| {
        if args.dry_run {
            would.to_owned()
        } else {
            done.to_owned()
        }
    };
    if report.unused.packs > 0 {
        let mut line = format!(
            "{} {} that nothing needs",
            verb("condemned", "would condemn"),
            packs(report.unused)
        );
        if report.orphaned.packs > 0 {
            line.push_str(&format!(
                ", {} left behind by interrupted runs among them",
                packs(report.orphaned)
            ));
        }
        output.say(line)?;
    }
    if report.rewritten.packs > 0 {
        output.say(format!(
            "{} {}, copying {}",
            verb("rewrote", "would rewrite"),
            packs(report.rewritten),
            format_bytes(report.bytes_copied)
        ))?;
    }
    if report.outdated.packs > 0 {
        output.say(format!(
            "{} {} sealed with secrets of before the last rotation; run it again with --rekey",
            packs(report.outdated),
            verb("are still", "would still be")
        ))?;
    }
    let wasted = report.used.bytes.saturating_sub(report.rewritten.bytes);
    let alive = report.bytes_alive.saturating_sub(report.bytes_copied);
    let unused_in_used = wasted.saturating_sub(alive);
    if unused_in_used > total / 5 && args.max_unused.is_none() && args.max_repack.is_none() {
        output.say(format!(
            "{} more lie in packs that are partly used; `--max-unused 20%` rewrites those",
            format_bytes(unused_in_used)
        ))?;
    }
    if report.rescued > 0 {
        output.say(format!(
            "copied {} out of condemned packs, because snapshots need them after all",
            count(report.rescued, "chunk", "chunks")
        ))?;
    }
    if report.runs_united > 0 {
        output.say(format!(
            "{} {} into one",
            verb("united", "would unite"),
            count(report.runs_united, "index run", "index runs"),
        ))?;
    }
    if report.lost > 0 {
        output.note(format!(
            "{} that snapshots need {} declared lost: `larder repo check` names the files",
            count(report.lost, "chunk", "chunks"),
            if report.lost == 1 { "is" } else { "are" },
        ));
    }
    if args.dry_run {
        return Ok(());
    }
    if report.kept_damaged.packs > 0 {
        output.say(format!(
            "{} kept, damaged, because of what is lost: `larder repo repair packs --accept-loss` gives it up",
            packs(report.kept_damaged)
        ))?;
    }
    if report.deleted.packs > 0 {
        output.say(format!("deleted {}", packs(report.deleted)))?;
    }
    if let Some(until) = report.locked.until {
        output.say(format!(
            "{} ({}) {} locked and left: the first can be deleted on {}, by the next prune after that",
            count(
                report.locked.objects,
                "object that nothing needs",
                "objects that nothing needs"
            ),
            format_bytes(report.locked.bytes),
            if report.locked.objects == 1 { "is" } else { "are" },
            local_time(until)
        ))?;
    }
    if report.extended.extended > 0 {
        output.say(format!(
            "extended {} of what is needed",
            count(report.extended.extended, "lock", "locks")
        ))?;
    }
    if report.waiting.packs > 0 {
        output.say(format!(
            "{} condemned and not deleted yet{}",
            packs(report.waiting),
            why_later(report)
        ))?;
    }
    if report.unused.packs + report.rewritten.packs + report.deleted.packs + report.waiting.packs == 0 {
        output.say("nothing to give back")?;
    }
    Ok(())
}

/// Lists what was forgotten, or brings it back.
pub fn undelete(context: &Context, names: &[String]) -> Result<(), Failure> {
    let repo = context.repo()?;
    let forgotten = undelete::forgotten(&repo).doing("listing what was forgotten")?;
    let output = &context.output;
    if names.is_empty() {
        if output.json {
            let row = |snapshot: &Snapshot| {
                json!({
                    "id": snapshot.id.to_string(), "short_id": snapshot.id.short(), "time": rfc3339(snapshot.manifest.start),
                    "host": snapshot.manifest.source.host, "source": snapshot.manifest.source.label,
                })
            };
            let rows: Vec<Value> = forgotten.iter().map(row).collect();
            return output.json(&json!({"type": "forgotten", "version": 1, "snapshots": rows}));
        }
        for snapshot in &forgotten {
            let source = &snapshot.manifest.source;
            output.line(format!(
                "{}  {}  {}  {}",
                snapshot.id.short(),
                local_time(snapshot.manifest.start),
                printable(source.host.as_bytes()),
                printable(source.label.as_bytes())
            ))?;
        }
        return output.say(count(
            forgotten.len() as u64,
            "forgotten snapshot",
            "forgotten snapshots",
        ));
    }
    let threads = context.threads_with_packs(&repo)?;
    // All names first: half of them brought back is not what was asked for.
    let chosen: Vec<&Snapshot> = names
        .iter()
        .map(|name| named(&forgotten, name))
        .collect::<Result<_, _>>()?;
    for snapshot in chosen {
        let new = context
            .run("bringing back", |progress| {
                undelete::run(&repo, snapshot, threads, progress)
            })
            .doing("bringing a snapshot back")?;
        if output.json {
            output.json(&json!({
                "type": "undeleted", "version": 1, "was": snapshot.id.to_string(), "snapshot": new.to_string(),
            }))?;
        } else {
            output.say(format!("snapshot {} is back as {}", snapshot.id.short(), new.short()))?;
        }
    }
    Ok(())
}

fn named<'s>(forgotten: &'s [Snapshot], name: &str) -> Result<&'s Snapshot, Failure> {
    let is_meant = |snapshot: &&Snapshot| {
        !name.is_empty() && (snapshot.id.short().starts_with(name) || snapshot.id.to_string().starts_with(name))
    };
    let mut meant = forgotten.iter().filter(is_meant);
    match (meant.next(), meant.next()) {
        (Some(snapshot), None) => Ok(snapshot),
        (None, _) => Err(Failure::usage(format!("no forgotten snapshot matches {name:?}"))
            .with_hint("`larder repo undelete` lists those that were forgotten")),
        (Some(_), Some(_)) => Err(Failure::usage(format!("{name:?} is ambiguous")).with_hint("give more digits")),
    }
}

/// What has to happen before the rest can be deleted.
fn why_later(report: &Report) -> String {
    if let Some(other) = report.waiting_for.first() {
        let host = other.host.as_deref().unwrap_or("another machine");
        let more = match report.waiting_for.len() {
            1 => String::new(),
            all => format!(" and {} more", count(all as u64 - 1, "session", "sessions")),
        };
        return format!(
            ": the run on {} that began {}{more} may still need them; prune again later (if that machine is gone: --end-session {})",
            printable(host.as_bytes()),
            local_time(other.began),
            other.state.session
        );
    }
    match (report.deletable_at, report.locked.until) {
        (Some(time), _) => format!(": the first may be on {}", local_time(time)),
        (None, Some(_)) => ": they are locked".to_owned(),
        (None, None) => ": prune again later".to_owned(),
    }
}
