//! `repo repair index`, `packs` and `snapshots`.

use super::repo::{SHOWN_MAX, report_json, tell_damage, verdict};
use crate::cli::args::{RepairCommand, RepairPacksArgs};
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{local_time, rfc3339};
use crate::cli::output::{count, printable};
use crate::ops::check::{self, Subset, chain};
use crate::ops::repair::{self, Bad, Loss, Why, index, packs, snapshots};
use crate::pure::base::Kind;
use crate::pure::base::size::format_bytes;
use crate::pure::format::name::ObjectName;
use crate::pure::id::{PackId, SessionId};
use serde_json::{Value, json};
use std::time::Instant;

pub fn run(context: &Context, command: &RepairCommand) -> Result<(), Failure> {
    match command {
        RepairCommand::Index { dry_run } => repair_index(context, *dry_run),
        RepairCommand::Packs(args) => match &args.accept_loss {
            None => repair_packs(context, args),
            Some(code) => accept_loss(context, code),
        },
        RepairCommand::Snapshots { void: None, dry_run } => repair_snapshots(context, *dry_run),
        RepairCommand::Snapshots {
            void: Some(session), ..
        } => void(context, session),
    }
}

fn repair_index(context: &Context, dry_run: bool) -> Result<(), Failure> {
    let started = Instant::now();
    let repo = context.repo()?;
    let threads = context.threads_with_packs(&repo)?;
    let plan = context
        .run("looking at the index", |progress| index::plan(&repo, progress))
        .doing("looking at the index")?;
    tell_index_plan(context, &plan)?;
    let report = context
        .run("writing the index", |progress| match dry_run {
            true => index::dry_run(&repo, &plan, progress),
            false => index::run(&repo, &plan, threads, progress),
        })
        .doing("writing the index anew")?;
    let output = &context.output;
    if output.json {
        output.json(&index_json(&plan, &report, dry_run, started))?;
    } else if plan.is_empty() {
        output.say("every index run is there and whole, and every pack is described")?;
    } else {
        tell_healed(context, &report.healed, "run", "runs", dry_run)?;
        if report.packs > 0 || report.healed.is_empty() {
            let done = if dry_run { "would list" } else { "listed" };
            output.say(format!(
                "{done} {} of {} again{}",
                count(report.blobs, "blob", "blobs"),
                count(report.packs, "pack", "packs"),
                if dry_run {
                    String::new()
                } else {
                    format!(" in {}", count(report.runs, "run", "runs"))
                },
            ))?;
        }
        for (name, why) in report.unreadable.iter().take(SHOWN_MAX) {
            output.line(format!("lost: {name} does not say what is in it: {why}"))?;
        }
        if let Some(after) = &report.after {
            tell_damage(context, after)?;
        }
    }
    let hint = "run `larder repo repair packs`, and back up the sources again: what is still there is stored again, and older snapshots have it \
                then as well";
    if let Some(after) = &report.after {
        verdict(after).map_err(|failure| match failure.kind {
            Kind::Damage => failure.with_hint(hint),
            _ => failure,
        })?;
    }
    match report.unreadable.len() as u64 {
        0 => Ok(()),
        lost => {
            let what = format!("{} cannot be listed", count(lost, "pack", "packs"));
            Err(Failure::new(Kind::Damage, what).with_hint(hint))
        }
    }
}

fn tell_index_plan(context: &Context, plan: &index::Plan) -> Result<(), Failure> {
    let output = &context.output;
    for note in &plan.notes {
        output.note(note);
    }
    if output.json || plan.is_empty() {
        return Ok(());
    }
    for name in plan.lost.missing.iter().take(SHOWN_MAX) {
        output.line(format!("{name} is missing"))?;
    }
    for (name, error) in plan.lost.damaged.iter().take(SHOWN_MAX) {
        output.line(format!("{name} cannot be used: {}", chain(error)))?;
    }
    output.say(format!(
        "{} cannot be read, and no other one describes {}",
        count(plan.lost.names().len() as u64, "index run", "index runs"),
        count(plan.packs.len() as u64, "pack", "packs"),
    ))
}

fn index_json(plan: &index::Plan, report: &index::Report, dry_run: bool, started: Instant) -> Value {
    let damaged = plan.lost.damaged.iter();
    let damaged: Vec<Value> = damaged
        .map(|(name, error)| json!({"run": name, "what": chain(error)}))
        .collect();
    let unreadable = report.unreadable.iter();
    let unreadable: Vec<Value> = unreadable
        .map(|(name, why)| json!({"pack": name.to_string(), "what": why}))
        .collect();
    json!({
        "type": "repair_index", "version": 1, "dry_run": dry_run, "runs_missing": plan.lost.missing, "runs_damaged": damaged,
        "healed": names(&report.healed), "packs_listed": report.packs, "blobs_listed": report.blobs, "packs_unreadable": unreadable, "runs_written": report.runs,
        "check": report.after.as_ref().map(|after| report_json(after, started)), "notes": plan.notes, "seconds": started.elapsed().as_secs_f64(),
    })
}

/// Reads the name of a pack, or its id.
fn parse_pack(text: &str) -> Result<PackId, Failure> {
    match ObjectName::parse(text) {
        Some(ObjectName::Pack(_, pack, _)) => Ok(pack),
        _ => text.parse().map_err(|_| {
            Failure::usage(format!("{text:?} is not the name of a pack"))
                .with_hint("give it as `larder repo check` shows it, or the 32 digits of its id")
        }),
    }
}

fn repair_packs(context: &Context, args: &RepairPacksArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let named = args
        .packs
        .iter()
        .map(|text| parse_pack(text))
        .collect::<Result<_, _>>()?;
    let repo = context.repo()?;
    let options = packs::Options {
        read_data: args.read_data.then_some(Subset::All),
        named,
        threads: context.threads_with_packs(&repo)?,
        uploads: 1,
    };
    let plan = context
        .run("looking for damage", |progress| packs::plan(&repo, &options, progress))
        .doing("looking for damaged packs")?;
    let bad = plan.packs.clone();
    tell_packs_plan(context, &bad, &plan.check)?;
    let report = context
        .run("mending packs", |progress| match args.dry_run {
            true => plan.dry_run(&repo, progress),
            false => plan.carry_out(&repo, &options, progress),
        })
        .doing("mending damaged packs")?;
    if context.output.json {
        context.output.json(&packs_json(&bad, &report, args.dry_run, started))?;
    } else {
        tell_packs(context, &bad, &report, args.dry_run)?;
    }
    verdict(&report.after).map_err(|failure| match failure.kind {
        Kind::Damage if !args.dry_run => failure.with_hint(
            "back up the sources again: what is still there is stored again, and older snapshots have it then as well. What stays lost: \
             `larder repo repair packs --accept-loss`",
        ),
        _ => failure,
    })
}

fn tell_packs_plan(context: &Context, bad: &[Bad], check: &check::Report) -> Result<(), Failure> {
    let output = &context.output;
    for note in &check.notes {
        output.note(note);
    }
    if output.json {
        return Ok(());
    }
    for bad in bad.iter().take(SHOWN_MAX) {
        output.line(format!("{} {}", bad.name(), why(bad)))?;
    }
    output.say(match bad.len() as u64 {
        0 => "no pack that snapshots rely on is missing or known to be damaged".to_owned(),
        all => format!("{} missing or damaged", count(all, "pack is", "packs are")),
    })
}

fn why(bad: &Bad) -> String {
    match bad.why {
        Why::Missing => "is missing".to_owned(),
        Why::Size(size) => format!("has {size} bytes instead of {}", bad.info.size),
        Why::Damaged => "is damaged".to_owned(),
    }
}

fn tell_packs(context: &Context, bad: &[Bad], report: &packs::Report, dry_run: bool) -> Result<(), Failure> {
    let output = &context.output;
    let verb = |done: &'static str, would: &'static str| if dry_run { would } else { done };
    tell_healed(context, &report.healed, "pack", "packs", dry_run)?;
    if bad.len() > report.healed.len() {
        output.say(format!(
            "{} {} ({}); {} in other packs as well",
            verb("copied", "would copy"),
            count(report.copied, "blob", "blobs"),
            format_bytes(report.bytes_copied),
            count(report.elsewhere, "is", "are"),
        ))?;
    }
    if !report.lost.is_empty() {
        output.line(format!(
            "{} in no pack any more{}",
            count(report.lost.len() as u64, "chunk is", "chunks are"),
            verb(": declared lost", ""),
        ))?;
    }
    tell_damage(context, &report.after)?;
    if report.after.is_sound() {
        output.say("every snapshot is whole")?;
    }
    Ok(())
}

fn packs_json(bad: &[Bad], report: &packs::Report, dry_run: bool, started: Instant) -> Value {
    let bad: Vec<Value> = bad
        .iter()
        .map(|bad| json!({"pack": bad.name().to_string(), "what": why(bad)}))
        .collect();
    let lost: Vec<String> = report.lost.iter().map(ToString::to_string).collect();
    json!({
        "type": "repair_packs", "version": 1, "dry_run": dry_run, "packs": bad, "healed": names(&report.healed), "blobs_copied": report.copied,
        "bytes_copied": report.bytes_copied, "blobs_elsewhere": report.elsewhere, "chunks_lost": lost,
        "check": report_json(&report.after, started), "seconds": started.elapsed().as_secs_f64(),
    })
}

/// Shows what is lost for good, or accepts it.
fn accept_loss(context: &Context, code: &str) -> Result<(), Failure> {
    let started = Instant::now();
    let repo = context.repo()?;
    let loss = repair::loss(&repo).doing("listing what is lost")?;
    let options = check::Options {
        threads: context.threads_with_packs(&repo)?,
        ..check::Options::default()
    };
    if code.is_empty() {
        let report = context
            .run("checking", |progress| check::run(&repo, &options, progress))
            .doing("checking which files are hit")?;
        return tell_loss(context, &loss, &report, started);
    }
    if loss.chunks.is_empty() || loss.code != code {
        return Err(Failure::usage(format!("{code:?} does not stand for what is lost now"))
            .with_hint("`larder repo repair packs --accept-loss` shows what is lost, and the code for it"));
    }
    repair::accept(&repo, &loss).doing("accepting what is lost")?;
    let output = &context.output;
    let chunks = loss.chunks.len() as u64;
    if output.json {
        return output.json(&json!({"type": "loss_accepted", "version": 1, "chunks": chunks}));
    }
    output.say(format!("accepted the loss of {}", count(chunks, "chunk", "chunks")))
}

fn tell_loss(context: &Context, loss: &Loss, report: &check::Report, started: Instant) -> Result<(), Failure> {
    let output = &context.output;
    let chunks: Vec<String> = loss.chunks.iter().map(ToString::to_string).collect();
    if output.json {
        return output.json(&json!({
            "type": "loss", "version": 1, "chunks": chunks, "code": loss.code, "check": report_json(report, started),
        }));
    }
    if chunks.is_empty() {
        return output.say("nothing is declared lost that has not been stored again or accepted");
    }
    for chunk in chunks.iter().take(SHOWN_MAX) {
        output.line(format!("chunk {chunk} is lost"))?;
    }
    tell_damage(context, report)?;
    output.say(format!(
        "{} lost. A backup may still have them: back up the sources again first. To accept that they are gone: larder repo repair packs --accept-loss {}",
        count(chunks.len() as u64, "chunk is", "chunks are"),
        loss.code
    ))
}

/// Says what parity has put back, or would.
fn tell_healed(context: &Context, healed: &[ObjectName], one: &str, many: &str, dry_run: bool) -> Result<(), Failure> {
    if healed.is_empty() {
        return Ok(());
    }
    for name in healed.iter().take(SHOWN_MAX) {
        context.output.line(format!("{name}: parity rebuilds it"))?;
    }
    let done = if dry_run { "would put back" } else { "put back" };
    context
        .output
        .say(format!("{done} {} as before", count(healed.len() as u64, one, many)))
}

fn names(objects: &[ObjectName]) -> Vec<String> {
    objects.iter().map(ToString::to_string).collect()
}

/// Puts back what parity rebuilds, and says which snapshots cannot be read then, and which files of the others are lost.
fn repair_snapshots(context: &Context, dry_run: bool) -> Result<(), Failure> {
    let started = Instant::now();
    let repo = context.repo()?;
    let threads = context.threads_with_packs(&repo)?;
    let look = || {
        context
            .run("looking at snapshots", |progress| {
                snapshots::plan(&repo, threads, progress)
            })
            .doing("looking at snapshots")
    };
    let mut plan = look()?;
    let mut healed = plan.healable.clone();
    if !dry_run && !healed.is_empty() {
        healed = context
            .run("putting back", |progress| snapshots::put_back(&repo, &plan, progress))
            .doing("putting back what is damaged")?;
        plan = look()?;
    }
    let output = &context.output;
    if output.json {
        let row = |unreadable: &snapshots::Unreadable| {
            json!({
                "session": unreadable.session.to_string(), "what": unreadable.why, "received": unreadable.received.map(rfc3339),
                "key_id": unreadable.kid.map(|kid| kid.to_string()),
                "time": unreadable.kept.as_ref().map(|kept| rfc3339(kept.manifest.start)),
                "host": unreadable.kept.as_ref().map(|kept| kept.manifest.source.host.clone()),
                "source": unreadable.kept.as_ref().map(|kept| kept.manifest.source.label.clone()),
            })
        };
        let rows: Vec<Value> = plan.unreadable.iter().map(row).collect();
        output.json(&json!({
            "type": "repair_snapshots", "version": 1, "dry_run": dry_run, "healed": names(&healed), "unreadable": rows, "check": report_json(&plan.check, started),
        }))?;
    } else {
        tell_healed(context, &healed, "object", "objects", dry_run)?;
        for unreadable in &plan.unreadable {
            tell_unreadable(context, unreadable)?;
        }
        tell_damage(context, &plan.check)?;
        if plan.check.is_sound() {
            output.say("every snapshot can be read, and is whole")?;
        }
    }
    verdict(&plan.check).map_err(|failure| match plan.unreadable.is_empty() {
        true => failure,
        false => failure.with_hint(
            "look for a good copy of what does not open; where there is none, `larder repo repair snapshots --void SESSION`",
        ),
    })
}

fn tell_unreadable(context: &Context, unreadable: &snapshots::Unreadable) -> Result<(), Failure> {
    let mut line = format!("snap/{} cannot be read: {}", unreadable.session, unreadable.why);
    if let Some(received) = unreadable.received {
        line.push_str(&format!("; the store received it {}", local_time(received)));
    }
    if let Some(kid) = unreadable.kid {
        line.push_str(&format!("; written with key {kid}"));
    }
    if let Some(kept) = &unreadable.kept {
        let source = &kept.manifest.source;
        line.push_str(&format!(
            "; this machine knows that it is of {} on {}, from {}",
            printable(source.label.as_bytes()),
            printable(source.host.as_bytes()),
            local_time(kept.manifest.start)
        ));
    }
    context.output.line(line)
}

fn void(context: &Context, session: &SessionId) -> Result<(), Failure> {
    let started = Instant::now();
    let repo = context.repo()?;
    let threads = context.threads_with_packs(&repo)?;
    let voided = context
        .run("voiding", |progress| snapshots::void(&repo, session, threads, progress))
        .doing("voiding a snapshot that cannot be read")?;
    let output = &context.output;
    if output.json {
        output.json(&json!({
            "type": "voided", "version": 1, "session": session.to_string(), "packs_listed": voided.packs,
            "check": report_json(&voided.after, started),
        }))?;
    } else {
        output.say(format!(
            "session {session} counts as one without an outcome from now on; {} listed again",
            count(voided.packs, "pack of it is", "packs of it are")
        ))?;
        tell_damage(context, &voided.after)?;
    }
    verdict(&voided.after)
}
