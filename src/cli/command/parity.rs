//! `repo parity`.

use super::repo::SHOWN_MAX;
use crate::cli::args::ParityArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::output::{count, printable};
use crate::ops::parity::{self, Options, Report};
use crate::pure::base::Kind;
use crate::pure::base::size::format_bytes;
use serde_json::{Value, json};
use std::time::Instant;

pub fn run(context: &Context, args: &ParityArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let repo = context.repo()?;
    if args.remove {
        let removed = context
            .run("deleting parity", |progress| {
                parity::remove(&repo, args.dry_run, progress)
            })
            .doing("deleting parity")?;
        if context.output.json {
            return context.output.json(&json!({
                "type": "parity_removed", "version": 1, "dry_run": args.dry_run, "turned_off": removed.turned_off,
                "sidecars": removed.sidecars, "bytes": removed.bytes, "seconds": started.elapsed().as_secs_f64(),
            }));
        }
        return context.output.say(format!(
            "{} {} ({}); parity is {}",
            if args.dry_run { "would delete" } else { "deleted" },
            count(removed.sidecars, "sidecar", "sidecars"),
            format_bytes(removed.bytes),
            if args.dry_run && removed.turned_off {
                "still on"
            } else {
                "off"
            },
        ));
    }
    let options = Options {
        dry_run: args.dry_run,
        verify: args.verify,
    };
    let report = context
        .run("writing parity", |progress| parity::run(&repo, options, progress))
        .doing("writing parity")?;
    match context.output.json {
        true => context.output.json(&to_json(&report, args, started))?,
        false => tell(context, &report, args)?,
    }
    match report.damaged.len() as u64 {
        0 => Ok(()),
        damaged => Err(Failure::new(
            Kind::Damage,
            format!(
                "{} damaged, and without parity",
                count(damaged, "object is", "objects are")
            ),
        )
        .with_hint("run `larder repo check --read-data`, and then what it says of `larder repo repair`")),
    }
}

fn to_json(report: &Report, args: &ParityArgs, started: Instant) -> Value {
    let damaged = report.damaged.iter();
    let damaged: Vec<Value> = damaged
        .map(|(name, what)| json!({"object": name.to_string(), "what": what}))
        .collect();
    json!({
        "type": "parity", "version": 1, "dry_run": args.dry_run, "turned_on": report.turned_on, "objects": report.objects,
        "bytes": report.bytes, "written": report.written, "bytes_written": report.bytes_written, "replaced": report.replaced,
        "damaged": damaged, "sidecars_alone": report.alone, "seconds": started.elapsed().as_secs_f64(),
    })
}

fn tell(context: &Context, report: &Report, args: &ParityArgs) -> Result<(), Failure> {
    let output = &context.output;
    for (name, what) in report.damaged.iter().take(SHOWN_MAX) {
        output.line(format!("DAMAGE  {name}: {}", printable(what.as_bytes())))?;
    }
    let more = report.damaged.len().saturating_sub(SHOWN_MAX);
    if more > 0 {
        output.line(format!("… and {more} more; --json has all"))?;
    }
    output.say(format!(
        "{} {} ({}) for {} ({}); {} damaged before",
        if args.dry_run { "would write" } else { "wrote" },
        count(report.written, "sidecar", "sidecars"),
        format_bytes(report.bytes_written),
        count(report.objects, "object", "objects"),
        format_bytes(report.bytes),
        count(report.replaced, "was", "were"),
    ))?;
    if report.turned_on {
        output.say(match args.dry_run {
            true => "parity would be turned on",
            false => "parity is on: what is written from now on has it",
        })?;
    }
    if report.alone > 0 {
        output.say(format!(
            "{} of objects that are not there; `larder repo repair` puts back what is needed",
            count(report.alone, "sidecar is", "sidecars are")
        ))?;
    }
    Ok(())
}
