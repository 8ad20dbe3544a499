//! `diff`: what changed between two snapshots.

use crate::cli::args::DiffArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::output::{count, printable, with_path};
use crate::ops::OpError;
use crate::ops::look::{self, Appetite, Change};
use crate::pure::base::size::format_bytes;
use crate::pure::format::entry::Entry;
use crate::repo::reader::TreeReader;
use serde_json::json;
use std::os::unix::ffi::OsStrExt;

#[derive(Default)]
struct Counts {
    added: u64,
    removed: u64,
    modified: u64,
    retyped: u64,
    metadata: u64,
    bytes_added: u64,
    bytes_removed: u64,
}

impl Counts {
    fn add(&mut self, change: Change, old: Option<&Entry>, new: Option<&Entry>) {
        match change {
            Change::Added => self.added += 1,
            Change::Removed => self.removed += 1,
            Change::Content => self.modified += 1,
            Change::Kind => self.retyped += 1,
            Change::Metadata => {
                self.metadata += 1;
                return;
            }
        }
        self.bytes_added = self.bytes_added.saturating_add(new.map_or(0, Entry::size));
        self.bytes_removed = self.bytes_removed.saturating_add(old.map_or(0, Entry::size));
    }
}

pub fn run(context: &Context, args: &DiffArgs) -> Result<(), Failure> {
    let (repo, _) = context.repo_with_history()?;
    let old = context.snapshot(&repo, &args.old, &args.filter)?;
    let new = context.snapshot(&repo, &args.new, &args.filter)?;
    let reader = look::open_reader(&repo, &new, Appetite::Little)?;
    let mut nodes = TreeReader::new(&reader);
    let output = &context.output;
    let below = args.path.as_ref().map(|path| path.as_bytes());
    if let Some(path) = below {
        let mut is_in = |snapshot| look::holds(snapshot, path, &mut nodes).doing("looking for the path");
        if !is_in(&new)? && !is_in(&old)? {
            return Err(Failure::usage(format!("{} is in neither snapshot", printable(path)))
                .with_hint("`larder ls -R SNAPSHOT` shows what there is"));
        }
    }
    let (mut counts, mut closed) = (Counts::default(), None);
    let compared = look::diff(&old, &new, below, &mut nodes, &mut |change, path, before, after| {
        counts.add(change, before, after);
        if change == Change::Metadata && !args.metadata {
            return Ok(());
        }
        let (letter, word) = match change {
            Change::Added => ('+', "added"),
            Change::Removed => ('-', "removed"),
            Change::Content => ('M', "content"),
            Change::Kind => ('T', "type"),
            Change::Metadata => ('U', "metadata"),
        };
        let printed = if output.json {
            let row = json!({"type": "change", "version": 1, "change": word,
                "size_old": before.map(Entry::size), "size_new": after.map(Entry::size)});
            output.json_row(&with_path(row, path))
        } else {
            output.line(format!("{letter}    {}", printable(path)))
        };
        printed.map_err(|failure| {
            closed = Some(failure);
            OpError::Interrupted
        })
    });
    match closed {
        Some(failure) => return Err(failure),
        None => compared.doing("comparing the snapshots")?,
    }
    if output.json {
        return output.json(&json!({
            "type": "diff", "version": 1, "old": old.id.to_string(), "new": new.id.to_string(),
            "added": counts.added, "removed": counts.removed, "content": counts.modified, "type_changed": counts.retyped,
            "metadata": counts.metadata, "bytes_added": counts.bytes_added, "bytes_removed": counts.bytes_removed,
        }));
    }
    output.say(format!(
        "\n{} added, {} removed, {} changed in content, {} in type, {} in metadata only; {} came, {} went",
        counts.added,
        counts.removed,
        counts.modified,
        counts.retyped,
        count(counts.metadata, "entry", "entries"),
        format_bytes(counts.bytes_added),
        format_bytes(counts.bytes_removed)
    ))
}
