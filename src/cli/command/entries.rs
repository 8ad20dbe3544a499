//! How entries of snapshots are shown.

use crate::cli::error::Failure;
use crate::cli::names::local_file_time;
use crate::cli::output::{Output, printable, put_path};
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::{Entry, EntryKind};
use crate::pure::format::manifest::Manifest;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Names of users and groups where a snapshot was made.
#[derive(Clone, Copy)]
pub struct Names<'m> {
    users: &'m BTreeMap<u32, String>,
    groups: &'m BTreeMap<u32, String>,
}

impl<'m> Names<'m> {
    /// Takes those of a snapshot.
    pub fn of(manifest: &'m Manifest) -> Names<'m> {
        Names {
            users: &manifest.users,
            groups: &manifest.groups,
        }
    }
}

/// Prints one entry.
///
/// # Errors
/// When the output is closed or full.
pub fn show(output: &Output, names: Names<'_>, path: &[u8], entry: &Entry, long: bool) -> Result<(), Failure> {
    if output.json {
        return output.json_row(&entry_json(names, path, entry));
    }
    if !long {
        return output.line(printable(path));
    }
    let target = match &entry.kind {
        EntryKind::Symlink { target } => format!(" -> {}", printable(target)),
        _ => String::new(),
    };
    let size = match entry.kind {
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => format!("{major},{minor}"),
        _ => entry.size().to_string(),
    };
    output.line(format!(
        "{} {:<8} {:<8} {size:>12} {} {}{target}",
        mode(entry),
        owner(names.users, entry.uid),
        owner(names.groups, entry.gid),
        local_file_time(entry.mtime),
        printable(path)
    ))
}

/// Returns the name that a user or group had where the snapshot was made, else the number.
fn owner(names: &BTreeMap<u32, String>, id: u32) -> String {
    names
        .get(&id)
        .map_or_else(|| id.to_string(), |name| printable(name.as_bytes()))
}

/// Returns the word for what an entry is.
pub fn kind_name(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::File { .. } => "file",
        EntryKind::Dir => "dir",
        EntryKind::Symlink { .. } => "symlink",
        EntryKind::Fifo => "fifo",
        EntryKind::Socket => "socket",
        EntryKind::CharDevice { .. } => "char_device",
        EntryKind::BlockDevice { .. } => "block_device",
        EntryKind::Object { .. } => "object",
        EntryKind::Stream { .. } => "stream",
    }
}

fn time(time: FileTime) -> Value {
    match jiff_time(time) {
        Some(text) => json!(text),
        // No calendar has it, so it is given as a number.
        None => json!(time.seconds),
    }
}

fn jiff_time(time: FileTime) -> Option<String> {
    jiff::Timestamp::new(time.seconds, i32::try_from(time.nanos).ok()?)
        .ok()
        .map(|time| time.to_string())
}

/// Makes the JSON object of an entry.
pub fn entry_json(names: Names<'_>, path: &[u8], entry: &Entry) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("type".into(), json!("entry"));
    object.insert("version".into(), json!(1));
    put_path(&mut object, "path", path);
    object.insert("kind".into(), json!(kind_name(&entry.kind)));
    object.insert("mode".into(), json!(format!("{:04o}", entry.mode)));
    object.insert("uid".into(), json!(entry.uid));
    object.insert("gid".into(), json!(entry.gid));
    object.insert("user".into(), json!(names.users.get(&entry.uid)));
    object.insert("group".into(), json!(names.groups.get(&entry.gid)));
    object.insert("size".into(), json!(entry.size()));
    object.insert("mtime".into(), time(entry.mtime));
    object.insert("ctime".into(), time(entry.ctime));
    object.insert("inode".into(), json!(entry.ino));
    match &entry.kind {
        EntryKind::Symlink { target } => put_path(&mut object, "target", target),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            object.insert("device".into(), json!([major, minor]));
        }
        _ => {}
    }
    let attributes = &entry.attributes;
    if let Some(link) = attributes.hard_link {
        object.insert("links".into(), json!(link.links));
    }
    if attributes.changed_while_read {
        object.insert("changed_while_read".into(), json!(true));
    }
    if attributes.incomplete.is_some() {
        object.insert("incomplete".into(), json!(true));
    }
    Value::Object(object)
}

/// Writes type and permissions as `ls -l` does.
fn mode(entry: &Entry) -> String {
    let kind = match entry.kind {
        EntryKind::File { .. } | EntryKind::Stream { .. } | EntryKind::Object { .. } => '-',
        EntryKind::Dir => 'd',
        EntryKind::Symlink { .. } => 'l',
        EntryKind::Fifo => 'p',
        EntryKind::Socket => 's',
        EntryKind::CharDevice { .. } => 'c',
        EntryKind::BlockDevice { .. } => 'b',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = entry.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (entry.mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::format::entry::Attributes;

    fn entry(kind: EntryKind, mode: u32) -> Entry {
        let time = FileTime { seconds: 0, nanos: 0 };
        Entry {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: time,
            ctime: time,
            ino: 1,
            attributes: Attributes::default(),
        }
    }

    #[test]
    fn modes_look_as_in_ls() {
        assert_eq!(mode(&entry(EntryKind::Dir, 0o1777)), "drwxrwxrwt");
        assert_eq!(mode(&entry(EntryKind::Fifo, 0o4640)), "prwSr-----");
        assert_eq!(mode(&entry(EntryKind::Socket, 0o2711)), "srwx--s--x");
    }

    #[test]
    fn times_beyond_every_calendar_are_numbers() {
        let mut entry = entry(EntryKind::Dir, 0);
        entry.mtime.seconds = i64::MAX;
        let (users, groups) = (BTreeMap::from([(0, "root".to_owned())]), BTreeMap::new());
        let names = Names {
            users: &users,
            groups: &groups,
        };
        let row = entry_json(names, b"/x", &entry);
        assert_eq!(row["mtime"], json!(i64::MAX));
        assert_eq!(
            (&row["user"], &row["group"]),
            (&json!("root"), &Value::Null),
            "a name where there is one"
        );
    }
}
