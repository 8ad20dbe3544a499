//! `repo doctor`.

use crate::cli::args::DoctorArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::output::printable;
use crate::edge::host;
use crate::edge::store::location::Location;
use crate::ops::doctor::{self, Finding, Level};
use crate::pure::base::{Explain, Kind};
use crate::pure::format::config::ObjectLock;
use crate::repo::open;
use serde_json::{Value, json};

pub fn run(context: &Context, args: &DoctorArgs) -> Result<(), Failure> {
    let now = host::now();
    let location = context.location()?;
    let store = context.store()?;
    let connected = open::connect(store.clone(), context.local_options()?);
    let lock = connected.as_ref().ok().and_then(|locked| locked.config().lock);
    let mut findings = place(context, &location, lock)?;
    findings.extend(doctor::cache(&context.cache_dir()?));
    findings.extend(doctor::secrets(&context.secret_files()));
    let mut expects_conditions = None;
    match connected {
        Err(error) => findings.push(cannot_open(error.kind(), &Failure::from(error))),
        Ok(locked) => {
            expects_conditions = Some(locked.config().gc.conditional_writes);
            let opened = context
                .credential(false)
                .and_then(|credential| locked.unlock(&credential).doing("opening the repository"));
            match opened {
                Ok(repo) => {
                    findings.extend(doctor::repository(&repo, args.max_age, now).doing("looking into the repository")?)
                }
                Err(failure) => findings.push(cannot_open(failure.kind, &failure)),
            }
        }
    }
    findings.extend(doctor::store(&*store, expects_conditions));
    findings.push(doctor::leftovers(&*store, now));
    tell(context, &findings)?;
    verdict(&findings)
}

/// The disk or bucket.
fn place(context: &Context, location: &Location, lock: Option<ObjectLock>) -> Result<Vec<Finding>, Failure> {
    match location {
        Location::Directory(path) => Ok(doctor::directory(path)),
        #[cfg(feature = "s3")]
        Location::S3 { bucket, prefix } => {
            let settings = crate::edge::store::s3::settings::read(bucket, prefix, &context.store_options()?)
                .doing("connecting to the bucket")?;
            Ok(doctor::bucket(&settings, lock))
        }
        #[cfg(not(feature = "s3"))]
        Location::S3 { .. } => {
            let _ = (context, lock);
            Ok(Vec::new())
        }
    }
}

/// Without a password, the rest is looked at all the same.
fn cannot_open(kind: Kind, failure: &Failure) -> Finding {
    let mut text = failure.message.clone();
    for cause in &failure.causes {
        text.push_str(": ");
        text.push_str(cause);
    }
    let advice = failure.hint.clone().unwrap_or_else(|| "see above".into());
    let has_no_password = kind == Kind::Auth && failure.doing.is_empty();
    Finding::unknown(
        "repository",
        format!("it was not opened: {text}"),
        advice,
        !has_no_password,
    )
}

fn tell(context: &Context, findings: &[Finding]) -> Result<(), Failure> {
    let output = &context.output;
    if output.json {
        let rows: Vec<Value> = findings
            .iter()
            .map(|finding| {
                json!({
                    "subject": finding.subject, "level": finding.level.word(), "what": finding.what, "advice": finding.advice,
                    "matters": finding.level != Level::Unknown || finding.matters,
                })
            })
            .collect();
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        return output.json(&json!({
            "type": "doctor", "version": 1, "problems": count(Level::Problem), "warnings": count(Level::Warning),
            "unknown": count(Level::Unknown), "findings": rows,
        }));
    }
    for finding in findings {
        let word = finding.level.word();
        let what = printable(finding.what.as_bytes());
        match finding.level {
            Level::Ok | Level::Note => output.say(format!("{word:<14}  {what}"))?,
            _ => output.line(format!("{word:<14}  {what}"))?,
        }
        if let Some(advice) = &finding.advice {
            output.line(format!("{:<14}  → {}", "", printable(advice.as_bytes())))?;
        }
    }
    Ok(())
}

fn verdict(findings: &[Finding]) -> Result<(), Failure> {
    let problems = findings
        .iter()
        .filter(|finding| finding.level == Level::Problem)
        .count() as u64;
    if problems > 0 {
        return Err(Failure::new(
            Kind::Usage,
            format!("{} found", crate::cli::output::count(problems, "problem", "problems")),
        )
        .with_hint("what each means and what to do is said above"));
    }
    let unknown = findings
        .iter()
        .filter(|finding| finding.level == Level::Unknown && finding.matters)
        .count() as u64;
    if unknown > 0 {
        return Err(Failure::new(
            Kind::Incomplete,
            format!(
                "no problem was found, but {} that may hide one could not be looked at",
                crate::cli::output::count(unknown, "thing", "things")
            ),
        ));
    }
    Ok(())
}
