//! `snapshot forget`.

use crate::cli::args::{ForgetArgs, GroupArg, PruneArgs, WeekdayArg};
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{local_time, rfc3339};
use crate::cli::output::{count, printable};
use crate::edge::host;
use crate::ops::forget::{self, Choice, Group, GroupBy, Options, Plan, Report, Row};
use crate::pure::base::size::format_bytes;
use crate::pure::id::SessionId;
use crate::pure::plan::policy::Policy;
use crate::pure::plan::retention::Grade;
use crate::repo::Repo;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

pub fn run(context: &Context, args: &ForgetArgs) -> Result<(), Failure> {
    let policy = policy(args);
    match (args.snapshots.is_empty(), policy.is_empty()) {
        (true, true) => {
            return Err(
                Failure::usage("no rule says what to keep, so everything would be forgotten").with_hint(
                    "give at least one --keep option, for instance --keep-daily 30, or name the snapshots to forget",
                ),
            );
        }
        (false, false) => {
            return Err(Failure::usage(
                "either a policy decides or snapshots are named; both at once is not clear",
            ));
        }
        _ => {}
    }
    let (repo, history) = context.repo_with_history()?;
    let choice = if args.snapshots.is_empty() {
        Choice::Policy(Box::new(policy))
    } else {
        Choice::Named {
            snapshots: named(context, &repo, args)?,
            allow_last: args.yes_remove_last,
        }
    };
    let options = Options {
        choice,
        filter: args.filter.to_filter(),
        group_by: group_by(&args.group_by),
        removal_percent_max: if args.yes_remove_many { 100 } else { args.max_removal },
        now: host::now(),
        zone: TimeZone::system(),
    };
    let mut plan = forget::plan(&repo, history, &options).doing("deciding what to forget")?;
    if !context.output.json {
        show(context, &plan, &options.zone)?;
    }
    let shown = context.output.json.then(|| to_json(&plan, args.dry_run, &options.zone));
    let refused = plan.refusals.first().map(|(what, _)| what.clone());
    let removed: usize = plan.groups.iter().map(Group::removed).sum();
    if args.dry_run {
        if let Some(shown) = shown {
            context.output.json(&shown)?;
        } else if let Some(what) = refused {
            context.output.warn(format!("this would be refused: {what}"));
        }
        let removed = count(removed as u64, "snapshot", "snapshots");
        context.output.say(format!("would forget {removed}"))?;
        return plan.require_sound().doing("nothing can be forgotten");
    }
    let done = context
        .run("forget", |progress| forget::carry_out(&repo, plan, progress))
        .doing("forgetting");
    if let Some(mut shown) = shown {
        let ids = |ids: &[SessionId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        if let Ok(report) = &done {
            shown["forgotten"] = json!(ids(&report.forgotten));
            shown["held_meanwhile"] = json!(ids(&report.held));
        }
        context.output.json(&shown)?;
    }
    tell(context, &done?, args.prune)?;
    if args.prune {
        drop(repo);
        super::prune::run(context, &PruneArgs::default())?;
    }
    Ok(())
}

fn tell(context: &Context, report: &Report, prunes: bool) -> Result<(), Failure> {
    for id in &report.held {
        let id = id.short();
        context
            .output
            .note(format!("{id} has been held meanwhile, and is kept"));
    }
    let forgotten = count(report.forgotten.len() as u64, "snapshot", "snapshots");
    context.output.say(match report.forgotten.is_empty() {
        true => "nothing to forget".to_owned(),
        false if prunes => format!("forgot {forgotten}"),
        false => format!("forgot {forgotten}; `larder repo prune` frees the space"),
    })
}

fn named(context: &Context, repo: &Repo, args: &ForgetArgs) -> Result<Vec<SessionId>, Failure> {
    let mut ids = Vec::new();
    for text in &args.snapshots {
        ids.push(context.snapshot(repo, text, &args.filter)?.id);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn policy(args: &ForgetArgs) -> Policy {
    Policy {
        last: args.keep_last,
        last_distinct: args.keep_last_distinct,
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
        within: args.keep_within,
        within_hourly: args.keep_within_hourly,
        within_daily: args.keep_within_daily,
        within_weekly: args.keep_within_weekly,
        within_monthly: args.keep_within_monthly,
        within_yearly: args.keep_within_yearly,
        tags: args.keep_tag.clone(),
        week_starts: match args.week_start {
            WeekdayArg::Monday => Weekday::Monday,
            WeekdayArg::Tuesday => Weekday::Tuesday,
            WeekdayArg::Wednesday => Weekday::Wednesday,
            WeekdayArg::Thursday => Weekday::Thursday,
            WeekdayArg::Friday => Weekday::Friday,
            WeekdayArg::Saturday => Weekday::Saturday,
            WeekdayArg::Sunday => Weekday::Sunday,
        },
        month_day: args.month_day,
    }
}

fn group_by(args: &[GroupArg]) -> GroupBy {
    GroupBy {
        source: args.contains(&GroupArg::Source),
        name: args.contains(&GroupArg::Name),
        host: args.contains(&GroupArg::Host),
    }
}

fn show(context: &Context, plan: &Plan, zone: &TimeZone) -> Result<(), Failure> {
    let output = &context.output;
    if plan.groups.is_empty() {
        return output.say("no snapshots");
    }
    for group in &plan.groups {
        output.say(format!(
            "{} on {}: {}, {} to forget",
            printable(group.source.as_bytes()),
            printable(group.host.as_bytes()),
            count(group.rows.len() as u64, "snapshot", "snapshots"),
            group.removed()
        ))?;
        let rows: Vec<[String; 5]> = group.rows.iter().map(|row| cells(row, zone)).collect();
        let mut widths = [0; 5];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for [what, id, time, size, why] in &rows {
            let [what_width, id_width, time_width, size_width, _] = widths;
            output.say(format!(
                "  {what:<what_width$}  {id:<id_width$}  {time:<time_width$}  {size:>size_width$}  {why}"
            ))?;
        }
    }
    Ok(())
}

fn cells(row: &Row, zone: &TimeZone) -> [String; 5] {
    let mut why: Vec<String> = row.decision.reasons.iter().map(|reason| reason.text(zone)).collect();
    if let Grade::Suspect(suspicion) = row.decision.grade {
        why.push(format!("suspect: {}", suspicion.text()));
    }
    if row.is_clock_wrong() {
        why.push(format!("its clock said {}", local_time(row.snapshot.manifest.start)));
    }
    let roots = &row.snapshot.manifest.roots;
    let bytes = roots.iter().fold(0u64, |sum, root| sum.saturating_add(root.bytes));
    [
        if row.decision.keep { "keep" } else { "forget" }.to_owned(),
        row.snapshot.id.short(),
        local_time(row.judged.time),
        format_bytes(bytes),
        printable(why.join(", ").as_bytes()),
    ]
}

fn to_json(plan: &Plan, dry_run: bool, zone: &TimeZone) -> Value {
    let row = |row: &Row| {
        let reasons = row.decision.reasons.iter();
        let reasons: Vec<Value> = reasons
            .map(|reason| json!({"code": reason.code(), "text": reason.text(zone)}))
            .collect();
        let suspicion = match row.decision.grade {
            Grade::Suspect(suspicion) => Some(suspicion.code()),
            _ => None,
        };
        json!({
            "id": row.snapshot.id.to_string(), "short_id": row.snapshot.id.short(),
            "time": rfc3339(row.snapshot.manifest.start), "counted_as": rfc3339(row.judged.time),
            "clock_wrong": row.is_clock_wrong(), "keep": row.decision.keep, "reasons": reasons, "suspect": suspicion,
        })
    };
    let group = |group: &Group| {
        json!({
            "host": group.host, "source": group.source,
            "keep": group.rows.len() - group.removed(), "forget": group.removed(),
            "snapshots": group.rows.iter().map(row).collect::<Vec<_>>(),
        })
    };
    json!({
        "type": "forget", "version": 1, "dry_run": dry_run,
        "groups": plan.groups.iter().map(group).collect::<Vec<_>>(),
        "refused": plan.refusals.iter().map(|(what, _)| what).collect::<Vec<_>>(),
        "forgotten": null, "held_meanwhile": null,
    })
}
