//! `find`: files by name, in all snapshots.

use super::entries;
use crate::cli::args::FindArgs;
use crate::cli::context::{Context, require_reading};
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{DayEdge, local_time, time_argument};
use crate::cli::output::printable;
use crate::ops::OpError;
use crate::ops::look;
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::EntryKind;
use crate::repo::reader::TreeReader;
use crate::repo::snapshots::Snapshot;
use crate::source::files::{Excludes, ExcludesBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub fn run(context: &Context, args: &FindArgs) -> Result<(), Failure> {
    let pattern = pattern(&args.pattern)?;
    let newer = args
        .newer
        .as_deref()
        .map(|text| time_argument(text, DayEdge::Start))
        .transpose()?;
    let newer = newer.map(|time| FileTime {
        seconds: time.0.div_euclid(1_000_000_000),
        nanos: u32::try_from(time.0.rem_euclid(1_000_000_000)).unwrap_or(0),
    });
    let (repo, _) = context.repo_with_history()?;
    require_reading(&repo)?;
    let snapshots = match &args.snapshot {
        Some(text) => vec![context.snapshot(&repo, text, &args.filter)?],
        None => {
            let filter = args.filter.to_filter();
            let mut broken = Vec::new();
            let snapshots = repo.snapshots_noting(&mut broken)?;
            context.tell_broken(&broken);
            snapshots
                .into_iter()
                .filter(|snapshot| filter.accepts(snapshot))
                .collect()
        }
    };
    repo.sync_index().doing("bringing the local index up to date")?;
    for snapshot in &snapshots {
        let reader = look::open_synced_reader(&repo, snapshot);
        let names = entries::Names::of(&snapshot.manifest);
        let mut nodes = TreeReader::new(&reader);
        let (mut closed, mut shown) = (None, false);
        let listed = look::list(snapshot, None, true, &mut nodes, &mut |path, entry| {
            let below = path.strip_prefix(b"/").unwrap_or(path);
            let hit = pattern.exclude(below, entry.kind == EntryKind::Dir)
                && newer.is_none_or(|limit| look::newer_than(entry, limit));
            if !hit {
                return Ok(());
            }
            let first = !std::mem::replace(&mut shown, true);
            heading(context, snapshot, first)
                .and_then(|()| match context.output.json {
                    true => {
                        let mut row = entries::entry_json(names, path, entry);
                        row["snapshot"] = snapshot.id.to_string().into();
                        context.output.json_row(&row)
                    }
                    false => entries::show(&context.output, names, path, entry, args.long),
                })
                .map_err(|failure| {
                    closed = Some(failure);
                    OpError::Interrupted
                })
        });
        match closed {
            Some(failure) => return Err(failure),
            None => listed.doing(format!("searching snapshot {}", snapshot.id.short()))?,
        }
    }
    Ok(())
}

/// Says which snapshot the next lines are about.
fn heading(context: &Context, snapshot: &Snapshot, first: bool) -> Result<(), Failure> {
    if !first {
        return Ok(());
    }
    let source = &snapshot.manifest.source;
    context.output.say(format!(
        "snapshot {} of {}, {} on {}:",
        snapshot.id.short(),
        local_time(snapshot.manifest.start),
        printable(source.label.as_bytes()),
        printable(source.host.as_bytes())
    ))
}

/// The pattern language is that of excludes, but a pattern here never means "not" or a comment.
fn pattern(text: &OsStr) -> Result<Excludes, Failure> {
    let bytes = text.as_bytes();
    let mut pattern = bytes.to_vec();
    if matches!(bytes.first(), Some(b'!' | b'#')) {
        pattern.insert(0, b'\\');
    }
    let mut builder = ExcludesBuilder::default();
    builder.add(&pattern);
    let built = builder.build(Path::new("/")).doing("reading the pattern")?;
    if built.is_empty() {
        return Err(Failure::usage("the pattern is empty"));
    }
    Ok(built)
}
