//! `snapshot list`, `snapshot show`, `snapshot tag`; the way to the others.

use super::{forget, hold};
use crate::cli::args::{FilterArgs, ListArgs, SnapshotCommand};
use crate::cli::context::Context;
use crate::cli::error::Failure;
use crate::cli::names::{DayEdge, local_time, rfc3339, time_argument, took};
use crate::cli::output::{count, printable, put_path};
use crate::pure::base::Kind;
use crate::pure::base::size::format_bytes;
use crate::pure::format::manifest::{RootKind, SourceProblem, Stats};
use crate::pure::format::outcome::{OutcomeKind, flag};
use crate::pure::id::SessionId;
use crate::repo::marks::KnownHold;
use crate::repo::snapshots::{HistoryState, Snapshot, replaced};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

pub fn run(context: &Context, command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::List(args) => list(context, &args),
        SnapshotCommand::Show { snapshot, filter } => show(context, &snapshot, &filter),
        SnapshotCommand::Tag {
            snapshot,
            add,
            remove,
            filter,
        } => tag(context, &snapshot, &add, &remove, &filter),
        SnapshotCommand::Forget(args) => forget::run(context, &args),
        SnapshotCommand::Hold {
            snapshot,
            reason,
            until,
            filter,
        } => hold::hold(context, &snapshot, &reason, until.as_deref(), &filter),
        SnapshotCommand::Release {
            snapshot,
            after,
            filter,
        } => hold::release(context, &snapshot, after, &filter),
    }
}

fn list(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    let since = args
        .since
        .as_deref()
        .map(|text| time_argument(text, DayEdge::Start))
        .transpose()?;
    let until = args
        .until
        .as_deref()
        .map(|text| time_argument(text, DayEdge::End))
        .transpose()?;
    let (repo, mut history) = context.repo_with_history()?;
    let filter = args.filter.to_filter();
    let mut broken = Vec::new();
    let all = repo.snapshots_noting(&mut broken)?;
    // A key that can only write sees that there are snapshots, and what is in those that this machine has made itself.
    let sealed = match repo.is_write_only() {
        true => broken.extract_if(.., |(_, error)| error.is_missing_key()).count() as u64,
        false => 0,
    };
    context.tell_broken(&broken);
    history.broken.append(&mut broken);
    let holds = hold::active(context, &repo, &mut history.broken)?;
    let replaced = replaced(&all);
    let mut snapshots: Vec<&Snapshot> = all.iter().collect();
    snapshots.retain(|snapshot| {
        let start = snapshot.manifest.start;
        filter.accepts(snapshot) && since.is_none_or(|since| start >= since) && until.is_none_or(|until| start <= until)
    });
    let output = &context.output;
    if output.json {
        let row = |snapshot: &&Snapshot| {
            let mut row = snapshot_json(snapshot, &all);
            row["replaced_by"] = json!(replaced.get(&snapshot.id).map(ToString::to_string));
            row["holds"] = hold::to_json(&holds, &snapshot.id);
            row
        };
        let rows: Vec<Value> = snapshots.iter().map(row).collect();
        output.json(&json!({
            "type": "snapshots", "version": 1, "snapshots": rows, "unreadable": sealed, "gaps": history.gaps,
            "broken": history.broken.iter().map(|(name, error)| {
                json!({"object": name, "problem": crate::ops::check::chain(error)})
            }).collect::<Vec<_>>(),
        }))?;
    } else {
        table(context, &snapshots, &all, &replaced, &holds)?;
    }
    if sealed > 0 {
        context.output.note(format!(
            "{} not shown: this key can only write, and knows no more of them than this machine has kept",
            count(sealed, "more snapshot is", "more snapshots are")
        ));
    }
    verdict(&history)
}

/// A list that is not the whole list must not look like one.
fn verdict(history: &HistoryState) -> Result<(), Failure> {
    if let Some(gap) = history.gaps.first() {
        return Err(Failure::new(Kind::Tamper, format!("the list is not complete: {gap}")).with_hint(
            "the listing is stale, or snapshots were removed by somebody who may not: compare with the store's own records",
        ));
    }
    match history.broken.first() {
        Some((_, error)) => {
            use crate::pure::base::Explain;
            let failure = Failure::new(
                error.kind(),
                format!(
                    "{} cannot be used",
                    count(history.broken.len() as u64, "snapshot", "snapshots")
                ),
            );
            Err(failure.with_hint("see the warnings, and run `larder repo check`"))
        }
        None => Ok(()),
    }
}

fn table(
    context: &Context,
    snapshots: &[&Snapshot],
    all: &[Snapshot],
    replaced: &HashMap<SessionId, SessionId>,
    holds: &[KnownHold],
) -> Result<(), Failure> {
    let output = &context.output;
    if snapshots.is_empty() {
        return output.say("no snapshots");
    }
    let rows: Vec<[String; 6]> = snapshots
        .iter()
        .map(|snapshot| {
            let manifest = &snapshot.manifest;
            let bytes = manifest
                .roots
                .iter()
                .fold(0u64, |sum, root| sum.saturating_add(root.bytes));
            let mut remarks: Vec<String> = manifest.tags.iter().map(|tag| printable(tag.as_bytes())).collect();
            remarks.extend(state(snapshot, all).into_iter().map(|word| format!("({word})")));
            remarks.extend(hold::remark(holds, &snapshot.id));
            // Changing its tags was interrupted; doing so again drops it.
            let by = replaced.get(&snapshot.id).map(SessionId::short);
            remarks.extend(by.map(|by| format!("(replaced by {by})")));
            [
                snapshot.id.short(),
                local_time(manifest.start),
                printable(manifest.source.host.as_bytes()),
                printable(manifest.source.label.as_bytes()),
                format_bytes(bytes),
                remarks.join(" "),
            ]
        })
        .collect();
    let heads = ["ID", "Time", "Host", "Source", "Size", "Tags"].map(str::to_owned);
    let mut widths = [0; 6];
    for row in rows.iter().chain([&heads]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(at, cell)| match at {
                4 => format!("{cell:>width$}", width = widths[at]),
                _ => format!("{cell:<width$}", width = widths[at]),
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    output.say(line(&heads))?;
    rows.iter().try_for_each(|row| output.line(line(row)))?;
    output.say(count(snapshots.len() as u64, "snapshot", "snapshots"))
}

/// What is not ordinary about a snapshot, in words.
fn state(snapshot: &Snapshot, all: &[Snapshot]) -> Vec<&'static str> {
    let mut words = Vec::new();
    if snapshot.kind == OutcomeKind::Checkpoint {
        words.push("checkpoint");
    }
    if snapshot.flags & flag::PARTIAL != 0 {
        words.push("partial");
    }
    if snapshot.is_superseded(all) {
        words.push("superseded");
    }
    if snapshot.flags & flag::ERRORS != 0 {
        words.push("incomplete");
    }
    words
}

fn stats_json(stats: &Stats) -> Value {
    json!({
        "files_new": stats.files_new, "files_changed": stats.files_changed, "files_unmodified": stats.files_unmodified,
        "dirs": stats.dirs, "bytes_processed": stats.bytes_processed, "bytes_read": stats.bytes_read,
        "bytes_new": stats.bytes_new, "bytes_stored": stats.bytes_stored, "bytes_delta": stats.bytes_delta,
        "packs_uploaded": stats.packs_uploaded,
        "chunks_new": stats.chunks_new, "chunks_reused": stats.chunks_reused, "requests": stats.requests,
    })
}

/// Makes the JSON objects of problems.
pub fn problems_json(problems: &[SourceProblem]) -> Vec<Value> {
    problems
        .iter()
        .map(|problem| {
            let mut object = serde_json::Map::new();
            put_path(&mut object, "path", &problem.path);
            object.insert("code".into(), json!(problem.code));
            object.insert("text".into(), json!(problem.text));
            Value::Object(object)
        })
        .collect()
}

fn root_kind(kind: RootKind) -> &'static str {
    match kind {
        RootKind::Posix => "posix",
        RootKind::ObjectMap => "objects",
        RootKind::StreamSet => "streams",
        RootKind::Windows => "windows",
    }
}

fn snapshot_json(snapshot: &Snapshot, all: &[Snapshot]) -> Value {
    let manifest = &snapshot.manifest;
    let roots: Vec<Value> = manifest
        .roots
        .iter()
        .map(|root| {
            let mut object = serde_json::Map::new();
            put_path(&mut object, "path", &root.path);
            object.insert("kind".into(), json!(root_kind(root.kind)));
            object.insert("entries".into(), json!(root.entries));
            object.insert("bytes".into(), json!(root.bytes));
            Value::Object(object)
        })
        .collect();
    json!({
        "id": snapshot.id.to_string(),
        "short_id": snapshot.id.short(),
        "time": rfc3339(manifest.start),
        "time_ns": manifest.start.0,
        "end": rfc3339(manifest.end),
        "host": manifest.source.host,
        "user": manifest.source.user,
        "source": manifest.source.label,
        "roots": roots,
        "tags": manifest.tags,
        "flags": state(snapshot, all),
        "kind": if snapshot.kind == OutcomeKind::Checkpoint { "checkpoint" } else { "commit" },
        "parents": manifest.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "problems_total": manifest.problems_total,
        "tool": manifest.tool,
        "stats": stats_json(&manifest.stats),
    })
}

fn tag(context: &Context, text: &str, add: &[String], remove: &[String], filter: &FilterArgs) -> Result<(), Failure> {
    let (repo, _) = context.repo_with_history()?;
    let snapshot = context.snapshot(&repo, text, filter)?;
    let id = crate::ops::tag::run(&repo, &snapshot, add, remove)?;
    if context.output.json {
        return context.output.json(
            &json!({"type": "tagged", "version": 1, "snapshot": id.to_string(), "was": snapshot.id.to_string()}),
        );
    }
    if id == snapshot.id {
        context
            .output
            .line(format!("snapshot {} has these tags already", id.short()))
    } else {
        context
            .output
            .line(format!("snapshot {} is now {}", snapshot.id.short(), id.short()))
    }
}

fn show(context: &Context, text: &str, filter: &FilterArgs) -> Result<(), Failure> {
    let (repo, _) = context.repo_with_history()?;
    let snapshot = context.snapshot(&repo, text, filter)?;
    let all = repo.snapshots_noting(&mut Vec::new())?;
    let holds = hold::active(context, &repo, &mut Vec::new())?;
    let manifest = &snapshot.manifest;
    let output = &context.output;
    if output.json {
        let mut object = snapshot_json(&snapshot, &all);
        object["type"] = json!("snapshot");
        object["version"] = json!(1);
        object["key_id"] = json!(snapshot.kid.to_string());
        object["problems"] = Value::Array(problems_json(&manifest.problems));
        object["holds"] = hold::to_json(&holds, &snapshot.id);
        return output.json(&object);
    }
    let length = u64::try_from(manifest.end.0.saturating_sub(manifest.start.0)).unwrap_or(0);
    output.line(format!("snapshot  {}  ({})", snapshot.id, snapshot.id.short()))?;
    output.line(format!(
        "time      {}, took {}",
        local_time(manifest.start),
        took(Duration::from_nanos(length))
    ))?;
    output.line(format!(
        "source    {} on {}, by {}",
        printable(manifest.source.label.as_bytes()),
        printable(manifest.source.host.as_bytes()),
        printable(manifest.source.user.as_bytes())
    ))?;
    for root in &manifest.roots {
        let path = if root.path.is_empty() {
            "(streams)".to_owned()
        } else {
            printable(&root.path)
        };
        output.line(format!(
            "root      {path}: {}, {}",
            count(root.entries, "entry", "entries"),
            format_bytes(root.bytes)
        ))?;
    }
    if !manifest.tags.is_empty() {
        let tags: Vec<String> = manifest.tags.iter().map(|tag| printable(tag.as_bytes())).collect();
        output.line(format!("tags      {}", tags.join(" ")))?;
    }
    for word in state(&snapshot, &all) {
        let meaning = match word {
            "checkpoint" => ": made by a run that had not ended",
            "partial" => ": only what was done by then is in it",
            "superseded" => ": a complete snapshot of the source was made later",
            _ => ": some of the source could not be read",
        };
        output.line(format!("state     {word}{meaning}"))?;
    }
    for text in hold::texts(&holds, &snapshot.id) {
        output.line(format!("held      {text}"))?;
    }
    for parent in &manifest.parents {
        output.line(format!("parent    {parent}"))?;
    }
    let stats = &manifest.stats;
    output.line(format!(
        "files     {} new, {} changed, {} unmodified; {}",
        stats.files_new,
        stats.files_changed,
        stats.files_unmodified,
        count(stats.dirs, "directory", "directories")
    ))?;
    output.line(format!(
        "data      {} in all, {} read, {} new, {} stored in {}",
        format_bytes(stats.bytes_processed),
        format_bytes(stats.bytes_read),
        format_bytes(stats.bytes_new),
        format_bytes(stats.bytes_stored),
        count(stats.packs_uploaded, "pack", "packs")
    ))?;
    output.line(format!(
        "made by   {}, key {}",
        printable(manifest.tool.as_bytes()),
        snapshot.kid
    ))?;
    if manifest.problems_total > 0 {
        output.line(format!("problems  {}", manifest.problems_total))?;
        for problem in &manifest.problems {
            output.line(format!(
                "  {}: {}",
                printable(&problem.path),
                printable(problem.text.as_bytes())
            ))?;
        }
    }
    Ok(())
}
