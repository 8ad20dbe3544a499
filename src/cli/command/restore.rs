//! `restore`: files into a directory.

use crate::cli::args::{OverwriteArg, RestoreArgs};
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{split_snapshot, took};
use crate::cli::output::{count, printable, with_path};
use crate::edge::store::location::Location;
use crate::ops::restore::{self, Options, OwnerMap, Report, Selection};
use crate::pure::base::Kind;
use crate::pure::base::size::format_bytes;
use crate::target::files::{MetaPolicy, Overwrite};
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub fn run(context: &Context, args: &RestoreArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let wanted = split_snapshot(&args.snapshot)?;
    let selection = Selection::new(&args.include, &args.exclude)?;
    let (repo, snapshot) = context.repo_with_snapshot(&wanted.snapshot, &args.filter)?;
    let id = snapshot.id;
    let is_partial = snapshot.is_partial();
    let problems = snapshot.manifest.problems_total;
    if problems > 0 {
        context.output.warn(format!(
            "this snapshot is incomplete: some of the source could not be read when it was made ({}); see `larder snapshot show {}`",
            count(problems, "problem", "problems"),
            id.short()
        ));
    }
    let mut policy = MetaPolicy::sensible();
    policy.chown &= !args.no_owner;
    policy.xattrs &= !args.no_xattrs;
    policy.devices &= !args.no_devices;
    if args.delete && problems > 0 {
        return Err(Failure::new(
            Kind::Refused,
            "with --delete, what the backup could not read would be removed from the target too",
        )
        .with_hint(
            "restore without --delete, or choose a complete snapshot: `larder snapshot list` marks incomplete ones",
        ));
    }
    let target = target(context, args)?;
    let owners = match args.owner_by_name {
        true => OwnerMap::by_name(&snapshot.manifest),
        false => OwnerMap::default(),
    };
    let options = Options {
        snapshot,
        path: wanted.path,
        target,
        selection,
        delete: args.delete,
        overwrite: match args.overwrite {
            OverwriteArg::Always => Overwrite::Always,
            OverwriteArg::IfChanged => Overwrite::IfChanged,
            OverwriteArg::IfNewer => Overwrite::IfNewer,
            OverwriteArg::Never => Overwrite::Never,
        },
        verify: args.verify,
        dry_run: args.dry_run,
        fetch: context.share_of_restore(&repo)?,
        policy,
        owners,
    };
    let report = context
        .run("restoring", |progress| restore::run(&repo, &options, progress))
        .doing("restoring")?;
    let output = &context.output;
    for (texts, total, what) in [
        (&report.damaged, report.damaged_total, "damaged"),
        (&report.failed, report.failed_total, "not restored"),
        (&report.refused, report.refused_total, "metadata"),
    ] {
        for text in texts.iter().take(output.shown_max()) {
            output.warn(format!("{what}: {text}"));
        }
        let more = total.saturating_sub(output.shown_max() as u64);
        if more > 0 {
            output.warn(format!("{what}: {more} more"));
        }
    }
    if output.json {
        let row = json!({
            "type": "restore", "version": 1, "snapshot": id.to_string(), "partial": is_partial, "dry_run": args.dry_run,
            "files": report.files, "files_unchanged": report.files_unchanged, "dirs": report.dirs, "others": report.others,
            "bytes": report.bytes, "removed": report.removed, "verified": report.verified,
            "damaged_total": report.damaged_total, "damaged": report.damaged,
            "failed_total": report.failed_total, "failed": report.failed,
            "refused_total": report.refused_total, "refused": report.refused,
            "seconds": started.elapsed().as_secs_f64(),
        });
        output.json(&with_path(row, options.target.as_os_str().as_bytes()))?;
    } else {
        output.say(summary(&report, &options, started))?;
    }
    verdict(&report, &policy, options.path.is_some() || !args.include.is_empty())
}

/// Makes the target absolute. Refuses what is no directory of files, and what would write into the repository or the cache,
/// or delete them.
fn target(context: &Context, args: &RestoreArgs) -> Result<PathBuf, Failure> {
    if let Some((scheme, _)) = args.target.to_str().and_then(|text| text.split_once("://"))
        && !scheme.is_empty()
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return Err(Failure::usage(format!("targets of the kind {scheme}:// are not known"))
            .with_hint("restore to a directory"));
    }
    let absolute =
        std::path::absolute(&args.target).map_err(|error| Failure::local("cannot find the target", &error))?;
    let mut own = vec![("the cache", context.cache_dir()?)];
    if let Location::Directory(path) = context.location()? {
        own.push(("the repository", path));
    }
    let target = resolved(&absolute);
    for (what, path) in own {
        let path = resolved(&path);
        if target.starts_with(&path) {
            return Err(
                Failure::new(Kind::Refused, format!("{} lies in {what}", absolute.display()))
                    .with_hint("choose another target"),
            );
        }
        if args.delete && path.starts_with(&target) {
            let text = format!("{what} lies in {}, and --delete would remove it", absolute.display());
            return Err(Failure::new(Kind::Refused, text).with_hint("restore without --delete, or to another target"));
        }
    }
    Ok(absolute)
}

/// Follows links as far as the path exists; the rest is not there yet.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut above = path;
    loop {
        if let Ok(real) = above.canonicalize() {
            return missing.iter().rev().fold(real, |path, name| path.join(name));
        }
        match (above.parent(), above.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name);
                above = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

fn summary(report: &Report, options: &Options, started: Instant) -> String {
    let verb = if options.dry_run { "would restore" } else { "restored" };
    let mut text = format!(
        "{verb} {} ({}), {} and {} from snapshot {} to {}",
        count(report.files, "file", "files"),
        format_bytes(report.bytes),
        count(report.dirs, "directory", "directories"),
        count(report.others, "other entry", "other entries"),
        options.snapshot.id.short(),
        printable(options.target.as_os_str().as_bytes())
    );
    if report.files_unchanged > 0 {
        text.push_str(&format!(
            "; {} left as they were",
            count(report.files_unchanged, "file", "files")
        ));
    }
    if options.delete {
        text.push_str(&format!("; {} removed", count(report.removed, "entry", "entries")));
    }
    if options.verify && !options.dry_run {
        text.push_str(&format!(
            "; {} read back and right",
            count(report.verified, "file", "files")
        ));
    }
    text.push_str(&format!(", in {}", took(started.elapsed())));
    text
}

/// Exit 0 only if everything that was intended happened. Owners are not intended for ordinary users, nor devices unless
/// asked for; what root is refused was intended.
fn verdict(report: &Report, policy: &MetaPolicy, narrowed: bool) -> Result<(), Failure> {
    if report.damaged_total > 0 {
        let what = format!(
            "{} could not be restored, because the repository is damaged",
            count(report.damaged_total, "file", "files")
        );
        return Err(Failure::new(Kind::Damage, what).with_hint(
            "an older or newer snapshot may have them whole; `larder repo check --read-data` names everything that is hit",
        ));
    }
    if report.failed_total > 0 {
        let what = format!(
            "{} could not be restored",
            count(report.failed_total, "entry", "entries")
        );
        return Err(Failure::new(Kind::Unavailable, what)
            .with_hint("see the warnings; the same command goes on where it stopped"));
    }
    let is_chosen = |text: &String| !policy.devices && text.starts_with("did not create the device node");
    let refused = report.refused.iter().filter(|text| !is_chosen(text)).count() as u64;
    if refused > 0 && rustix::process::geteuid().is_root() {
        let what = format!("the data was restored, but the system refused some metadata ({refused} times)");
        return Err(Failure::new(Kind::Unavailable, what)
            .with_hint("the target's file system may not support it; --no-owner and --no-xattrs restore without"));
    }
    let nothing = report.files + report.files_unchanged + report.dirs + report.others == 0;
    if nothing && narrowed {
        return Err(
            Failure::usage("nothing in the snapshot matches, so nothing was restored")
                .with_hint("`larder ls -R SNAPSHOT` shows what there is"),
        );
    }
    Ok(())
}
