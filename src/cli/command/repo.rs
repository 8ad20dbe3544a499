//! `repo init`, `info`, `stats`, `check`.

use super::key::PaperKey;
use super::object_lock;
use super::roles::role_names;
use crate::cli::args::{CheckArgs, FilterArgs, InitArgs};
use crate::cli::context::{Context, require_reading};
use crate::cli::env;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{local_time, parse_size, rfc3339, took};
use crate::cli::output::{count, printable, put_path};
use crate::ops::check::{self, Finding, Options, Report, Subset};
use crate::pure::base::size::format_bytes;
use crate::pure::base::{Kind, Timestamp};
use crate::pure::crypto::kdf::Cost;
use crate::repo::RepoError;
use crate::repo::open;
use crate::repo::snapshots::Snapshot;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// Findings that are shown; JSON has more.
pub(super) const SHOWN_MAX: usize = 100;

pub fn init(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let store = context.store()?;
    let local = context.local_options()?;
    let lock = args.object_lock.and_then(|lock| lock.0);
    if let Some(lock) = lock {
        // Before a key file is made that would open nothing.
        store
            .try_lock(lock.mode)
            .doing("trying out whether the store locks objects")?;
    }
    let credential = match &args.new_key_file {
        Some(path) => env::make_key_file(path)?,
        None => context.credential(true)?,
    };
    let made = open::init_locked(&*store, &credential, Cost::DEFAULT, lock);
    if let (Err(RepoError::AlreadyARepository { .. }), Some(path)) = (&made, &args.new_key_file) {
        // It opens nothing; left there, it would be mistaken for the key of that repository.
        let _ = std::fs::remove_file(path);
    }
    let id = made.doing("making the repository")?;
    let location = store.location();
    open::forget_location(&local.cache_dir, &location)?;
    let repo = open::connect(store, local)
        .and_then(|locked| locked.unlock(&credential))
        .doing("trying out the new repository")?;
    let paper_key = match args.paper_key {
        true => Some(PaperKey::make(&repo, "paper key".into()).doing("the repository was made, but")?),
        false => None,
    };
    let output = &context.output;
    if let Some(lock) = repo.config.lock {
        object_lock::tell(output, lock);
    }
    if !repo.config.gc.conditional_writes {
        output.warn(
            "this store cannot create an object only if its name is free; larder works in its weaker mode here: two machines must not share a key",
        );
    }
    if output.json {
        let mut row = json!({
            "type": "init", "version": 1, "repository": id.to_string(), "location": location,
            "opens_with": credential.noun(), "conditional_writes": repo.config.gc.conditional_writes,
            "object_lock": object_lock::to_json(repo.config.lock),
        });
        if let Some(key) = &paper_key {
            row["paper_key"] = Value::from(key.line().as_str());
        }
        return output.json(&row);
    }
    output.say(format!("made repository {id} at {}", printable(location.as_bytes())))?;
    if let Some(key) = &paper_key {
        output.line(format!("\n{}", *key.sheet(&repo)))?;
    }
    match &args.new_key_file {
        Some(path) => output.say(format!(
            "\nKeep the key file {} safe, and a copy of it on another machine or on paper.\nWithout it nobody can read what is backed up here, and nobody can help.",
            printable(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
        )),
        None => output.say(format!(
            "\nKeep the {} safe, in a place other than this machine.\nWithout it nobody can read what is backed up here, and nobody can help.\nA second one is added with `larder repo key add`, a key to print on paper with `larder repo key export-paper`.",
            credential.noun()
        )),
    }
}

pub fn info(context: &Context) -> Result<(), Failure> {
    let repo = context.repo()?;
    let config = &repo.config;
    let output = &context.output;
    let keys: Vec<Value> = config
        .writers
        .iter()
        .map(|writer| {
            let label = repo
                .grant
                .kid_table
                .iter()
                .find(|row| row.kid == writer.kid)
                .map(|row| row.label.clone());
            json!({
                "id": writer.kid.to_string(), "label": label, "roles": role_names(writer.roles),
                "revoked": writer.revoked_at.is_some(), "in_use": writer.kid == repo.kid,
            })
        })
        .collect();
    let chunker = config.chunkers.first();
    if output.json {
        return output.json(&json!({
            "type": "info", "version": 1, "repository": config.repo.to_string(), "location": repo.store.location(),
            "format": 1, "config": config.sequence, "config_created": rfc3339(config.created), "epoch": config.epoch,
            "chunker": chunker.map(|profile| json!({"min": profile.min, "center": profile.center, "max": profile.max})),
            "zstd_level": config.zstd_level, "data_pack_bytes": config.data_pack_bytes, "meta_pack_bytes": config.meta_pack_bytes,
            "parity": config.parity.is_some(), "object_lock": object_lock::to_json(config.lock), "conditional_writes": config.gc.conditional_writes, "writable": config.writable(), "keys": keys,
            "cache": repo.state_dir.display().to_string(),
        }));
    }
    output.line(format!("repository   {}", config.repo))?;
    output.line(format!("location     {}", printable(repo.store.location().as_bytes())))?;
    output.line(format!(
        "format       version 1, configuration {} of {}",
        config.sequence,
        local_time(config.created)
    ))?;
    if let Some(profile) = chunker {
        output.line(format!(
            "chunks       {} to {}, about {}",
            format_bytes(profile.min.into()),
            format_bytes(profile.max.into()),
            format_bytes(profile.center.into())
        ))?;
    }
    output.line(format!(
        "packs        {} of data, {} of metadata; zstd level {}",
        format_bytes(config.data_pack_bytes),
        format_bytes(config.meta_pack_bytes),
        config.zstd_level
    ))?;
    if config.parity.is_some() {
        output.line("parity       beside every object, in directories")?;
    }
    if let Some(lock) = config.lock {
        output.line(format!("object lock  {}", object_lock::words(lock)))?;
    }
    if !config.gc.conditional_writes {
        output.line("store        without conditional writes: the weaker mode")?;
    }
    if !config.writable() {
        output.line("access       read only: it uses features that this version does not write")?;
    }
    for writer in &config.writers {
        let label = repo
            .grant
            .kid_table
            .iter()
            .find(|row| row.kid == writer.kid)
            .map_or("", |row| row.label.as_str());
        let mark = if writer.kid == repo.kid { " (in use)" } else { "" };
        let revoked = if writer.revoked_at.is_some() { " (revoked)" } else { "" };
        output.line(format!(
            "key          {} {}: {}{mark}{revoked}",
            writer.kid,
            printable(label.as_bytes()),
            role_names(writer.roles).join(", ")
        ))?;
    }
    output.line(format!("local index  {}", repo.state_dir.display()))
}

#[derive(Default)]
struct SourceStats {
    snapshots: u64,
    bytes_latest: u64,
    bytes_logical: u64,
    bytes_stored: u64,
    newest: Timestamp,
}

pub fn stats(context: &Context) -> Result<(), Failure> {
    let (repo, _) = context.repo_with_history()?;
    require_reading(&repo)?;
    repo.sync_index().doing("bringing the local index up to date")?;
    let index = repo.index.stats().doing("reading the local index")?;
    let mut broken = Vec::new();
    let snapshots = repo.snapshots_noting(&mut broken)?;
    context.tell_broken(&broken);
    let mut sources: BTreeMap<(String, String), SourceStats> = BTreeMap::new();
    for (at, snapshot) in snapshots.iter().enumerate() {
        let manifest = &snapshot.manifest;
        // The figures of a run that went on are in what it came to: the same source and start, later in the list.
        let is_same_run =
            |later: &Snapshot| later.manifest.source.id == manifest.source.id && later.manifest.start == manifest.start;
        if snapshot.is_partial() && snapshots[at + 1..].iter().any(is_same_run) {
            continue;
        }
        let bytes = manifest
            .roots
            .iter()
            .fold(0u64, |sum, root| sum.saturating_add(root.bytes));
        let stats = sources
            .entry((manifest.source.host.clone(), manifest.source.label.clone()))
            .or_default();
        stats.snapshots += 1;
        // Oldest first, so the last one is the newest.
        stats.bytes_latest = bytes;
        stats.newest = manifest.start;
        stats.bytes_logical = stats.bytes_logical.saturating_add(bytes);
        stats.bytes_stored = stats.bytes_stored.saturating_add(manifest.stats.bytes_stored);
    }
    let logical = sources
        .values()
        .fold(0u64, |sum, source| sum.saturating_add(source.bytes_logical));
    let stored = index.data_bytes.saturating_add(index.meta_bytes);
    let output = &context.output;
    if output.json {
        let rows: Vec<Value> = sources
            .iter()
            .map(|((host, label), source)| {
                json!({
                    "host": host, "source": label, "snapshots": source.snapshots, "newest": rfc3339(source.newest),
                    "bytes_latest": source.bytes_latest, "bytes_logical": source.bytes_logical,
                    "bytes_added": source.bytes_stored,
                })
            })
            .collect();
        return output.json(&json!({
            "type": "stats", "version": 1, "snapshots": snapshots.len(), "bytes_logical": logical, "bytes_stored": stored,
            "data_chunks": index.data_blobs, "data_bytes": index.data_bytes, "meta_blobs": index.meta_blobs,
            "meta_bytes": index.meta_bytes, "packs": index.packs_live, "packs_condemned": index.packs_condemned,
            "index_bytes": index.database_bytes, "sources": rows,
        }));
    }
    output.line(format!(
        "{} hold {}",
        count(snapshots.len() as u64, "snapshot", "snapshots"),
        format_bytes(logical)
    ))?;
    output.line(format!(
        "stored: {} in {}: {} of data in {}, {} of metadata",
        format_bytes(stored),
        count(index.packs_live, "pack", "packs"),
        format_bytes(index.data_bytes),
        count(index.data_blobs, "chunk", "chunks"),
        format_bytes(index.meta_bytes)
    ))?;
    if stored > 0 {
        output.line(format!("that is 1 : {:.1}", logical as f64 / stored as f64))?;
    }
    for ((host, label), source) in &sources {
        output.line(format!(
            "\n{} on {}\n  {}, the newest of {} with {}\n  {} in all, {} added to the repository",
            printable(label.as_bytes()),
            printable(host.as_bytes()),
            count(source.snapshots, "snapshot", "snapshots"),
            local_time(source.newest),
            format_bytes(source.bytes_latest),
            format_bytes(source.bytes_logical),
            format_bytes(source.bytes_stored)
        ))?;
    }
    Ok(())
}

/// Reads `5%`, `2/7` or `10G`.
fn parse_subset(text: &str) -> Result<Subset, Failure> {
    let wrong = || Failure::usage(format!("{text:?} is not a part of the data")).with_hint("write 5%, 2/7 or 10G");
    if let Some(percent) = text.strip_suffix('%') {
        let share: f64 = percent.trim().parse().map_err(|_| wrong())?;
        if !(share > 0.0 && share <= 100.0) {
            return Err(wrong());
        }
        // Never rounded down to nothing.
        return Ok(Subset::Share(((share * 1000.0).round() as u32).max(1)));
    }
    if let Some((number, of)) = text.split_once('/') {
        let (number, of): (u32, u32) = (
            number.trim().parse().map_err(|_| wrong())?,
            of.trim().parse().map_err(|_| wrong())?,
        );
        if number == 0 || number > of {
            return Err(wrong());
        }
        return Ok(Subset::Part { number, of });
    }
    match parse_size(text) {
        Ok(bytes) if bytes > 0 => Ok(Subset::Bytes(bytes)),
        _ => Err(wrong()),
    }
}

pub fn check(context: &Context, args: &CheckArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let read_data = match &args.read_data_subset {
        Some(text) => Some(parse_subset(text)?),
        None => (args.read_data || args.max_time.is_some() || args.max_age.is_some()).then_some(Subset::All),
    };
    let reads_data = read_data.is_some();
    let repo = context.repo()?;
    let snapshot = match &args.snapshot {
        Some(text) => {
            repo.sync_history().doing("listing the snapshots")?;
            Some(context.snapshot(&repo, text, &FilterArgs::default())?)
        }
        None => None,
    };
    let options = Options {
        read_data,
        max_time: args.max_time,
        max_age: args.max_age,
        snapshot,
        threads: context.threads_with_packs(&repo)?,
    };
    let report = context
        .run("checking", |progress| check::run(&repo, &options, progress))
        .doing("checking the repository")?;
    if context.output.json {
        context.output.json(&report_json(&report, started))?;
    } else {
        tell(context, &report, reads_data, started)?;
    }
    verdict(&report)
}

pub(super) fn report_json(report: &Report, started: Instant) -> Value {
    let files: Vec<Value> = report
        .damaged_files
        .iter()
        .map(|file| {
            let mut object = serde_json::Map::new();
            put_path(&mut object, "path", &file.path);
            object.insert("snapshots".into(), json!(file.snapshots));
            Value::Object(object)
        })
        .collect();
    let findings = findings_json(&report.findings);
    json!({
        "type": "check", "version": 1, "sound": report.is_sound(), "snapshots": report.snapshots,
        "trees_read": report.trees_read, "packs": report.packs, "packs_read": report.packs_read, "bytes_read": report.bytes_read,
        "chunks_verified": report.chunks_verified, "packs_left": report.packs_left,
        "packs_never_verified": report.never_verified, "oldest_verified": report.oldest_verified.map(|time| rfc3339(Timestamp(time))),
        "unknown_objects_total": report.unknown_objects_total, "unknown_objects": report.unknown_objects,
        "packs_unreferenced": report.unreferenced_packs, "objects_without_parity": report.without_parity, "findings_total": report.findings_total, "findings": findings,
        "damaged_files_total": report.damaged_files_total, "damaged_files": files, "notes": report.notes,
        "seconds": started.elapsed().as_secs_f64(),
    })
}

fn tell(context: &Context, report: &Report, reads_data: bool, started: Instant) -> Result<(), Failure> {
    let output = &context.output;
    for note in &report.notes {
        output.note(note);
    }
    for object in &report.unknown_objects {
        output.note(format!("{object} is not a name of this format; it was left alone"));
    }
    let more = report.unknown_objects_total - report.unknown_objects.len() as u64;
    if more > 0 {
        output.note(format!("{more} more objects have names that are not of this format"));
    }
    tell_damage(context, report)?;
    output.say(format!(
        "looked at {}, {} and {} in {}",
        count(report.snapshots, "snapshot", "snapshots"),
        count(report.trees_read, "tree node", "tree nodes"),
        count(report.packs, "pack", "packs"),
        took(started.elapsed())
    ))?;
    if reads_data {
        output.say(format!(
            "read {} ({}) and verified {}",
            count(report.packs_read, "pack", "packs"),
            format_bytes(report.bytes_read),
            count(report.chunks_verified, "chunk", "chunks")
        ))?;
    }
    match report.oldest_verified {
        Some(time) => output.say(format!(
            "every pack has been read and verified since {}",
            local_time(Timestamp(time))
        ))?,
        None if report.never_verified > 0 => output.say(format!(
            "the data of {} has never been verified on this machine; --read-data does that",
            count(report.never_verified, "pack", "packs")
        ))?,
        None => {}
    }
    if report.is_sound() {
        output.say("no damage was found")?;
    }
    Ok(())
}

pub(super) fn findings_json(findings: &[Finding]) -> Vec<Value> {
    let row = |finding: &Finding| json!({"object": finding.object, "what": finding.what, "tamper": finding.tamper});
    findings.iter().map(row).collect()
}

/// Says what is wrong: the first of `total` findings, of which the JSON form has the first `kept`, in words.
pub(super) fn tell_findings(context: &Context, findings: &[Finding], total: u64, kept: &str) -> Result<(), Failure> {
    let output = &context.output;
    for finding in findings.iter().take(SHOWN_MAX) {
        let word = if finding.tamper { "TAMPERING" } else { "DAMAGE" };
        output.line(format!(
            "{word}  {}: {}",
            printable(finding.object.as_bytes()),
            printable(finding.what.as_bytes())
        ))?;
    }
    let more = total.saturating_sub(SHOWN_MAX as u64);
    if more > 0 {
        output.line(format!("… and {more} more; --json has the first {kept}"))?;
    }
    Ok(())
}

/// Says what is wrong, and which files it hits.
pub(super) fn tell_damage(context: &Context, report: &Report) -> Result<(), Failure> {
    let output = &context.output;
    tell_findings(context, &report.findings, report.findings_total, "ten thousand")?;
    if report.damaged_files_total > 0 {
        output.line(format!(
            "{} cannot be restored whole:",
            count(report.damaged_files_total, "file", "files")
        ))?;
        for file in report.damaged_files.iter().take(SHOWN_MAX) {
            output.line(format!("  {}  in {}", printable(&file.path), file.snapshots.join(", ")))?;
        }
        let more = report.damaged_files_total.saturating_sub(SHOWN_MAX as u64);
        if more > 0 {
            output.line(format!("  … and {more} more"))?;
        }
    }
    Ok(())
}

/// Fails if something is wrong.
pub(super) fn verdict(report: &Report) -> Result<(), Failure> {
    let found = match report.findings_total {
        // Can only be when a file was found damaged and what damages it was not.
        0 => count(report.damaged_files_total, "damaged file", "damaged files"),
        findings => count(findings, "problem", "problems"),
    };
    if report.shows_tampering {
        return Err(Failure::new(
            Kind::Tamper,
            format!("{found} found, some of which no accident explains"),
        )
        .with_hint("do not delete anything; compare with a copy and with the store's own records"));
    }
    if !report.is_sound() {
        return Err(Failure::new(Kind::Damage, format!("{found} found")).with_hint(
            "copy the repository if the disk may be failing; older or newer snapshots may have the named files whole",
        ));
    }
    if report.packs_left > 0 {
        return Err(Failure::new(
            Kind::TimeLimit,
            format!(
                "the time limit was reached with {} left; nothing wrong was found so far",
                count(report.packs_left, "pack", "packs")
            ),
        )
        .with_hint("run it again: it goes on with what was verified longest ago"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_subset("5%").unwrap(), Subset::Share(5000));
        assert_eq!(parse_subset("0.0001%").unwrap(), Subset::Share(1));
        assert_eq!(parse_subset("2/7").unwrap(), Subset::Part { number: 2, of: 7 });
        assert_eq!(parse_subset("10G").unwrap(), Subset::Bytes(10 << 30));
        for text in ["", "0%", "101%", "NaN%", "0/7", "8/7", "1/0", "x", "0", "-1%"] {
            assert!(parse_subset(text).is_err(), "{text}");
        }
    }
}
