//! Writing one file, or a directory as a tar archive, to a stream.

use super::look::{self, Appetite, open_reader};
use super::restore::{pieces_of, read_content};
use super::{OpError, Progress};
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::{ChunkRef, Content, Entry, EntryKind};
use crate::pure::format::manifest::Manifest;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, RepoError};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::atomic::Ordering;

/// Pieces that are decoded ahead, for each thread.
const AHEAD: usize = 2;

/// The stream that is written to is gone or full.
fn output(error: io::Error) -> OpError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return OpError::Interrupted;
    }
    OpError::Output(error)
}

/// Writes the content of a file of a snapshot.
///
/// # Errors
/// When it is not there, is no file, or cannot be read whole; what was written before that is right but not all.
pub fn file(
    repo: &Repo,
    snapshot: &Snapshot,
    path: &[u8],
    threads: usize,
    out: &mut dyn Write,
    progress: &Progress,
) -> Result<(), OpError> {
    let reader = open_reader(repo, snapshot, Appetite::Little)?;
    let mut nodes = TreeReader::new(&reader);
    let location = look::locate(snapshot, path)?;
    let entry = look::entry_at(&location, &mut nodes)?
        .ok_or_else(|| OpError::Usage("a set of streams cannot be dumped as one: name the stream".into()))?;
    if entry.content().is_none() {
        return Err(OpError::Usage(format!(
            "{} is not a file; a directory can be dumped with --archive tar",
            path.escape_ascii()
        )));
    }
    write_content(&reader, &entry, &mut nodes, threads, out, progress)?;
    out.flush().map_err(output)?;
    if entry.attributes.incomplete.is_some() {
        return Err(RepoError::Missing {
            object: path.escape_ascii().to_string(),
            why: "it could not be read completely when it was backed up".into(),
        }
        .into());
    }
    Ok(())
}

fn write_content(
    reader: &BlobReader<'_>,
    entry: &Entry,
    nodes: &mut TreeReader<'_, '_>,
    threads: usize,
    out: &mut dyn Write,
    progress: &Progress,
) -> Result<(), OpError> {
    if let Some(Content::Inline(bytes)) = entry.content() {
        return out.write_all(bytes).map_err(output);
    }
    let pieces = pieces_of(entry, nodes)?;
    let mut at = 0u64;
    for group in pieces.chunks(AHEAD * threads.max(1)) {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        for (decoded, (offset, piece)) in decode(reader, group).into_iter().zip(group) {
            write_zeros(out, offset - at)?;
            let plain = decoded?;
            if plain.len() as u64 != piece.len {
                return Err(RepoError::Missing {
                    object: format!("chunk {}", piece.id),
                    why: format!("it has {} bytes, the file says {}", plain.len(), piece.len),
                }
                .into());
            }
            out.write_all(&plain).map_err(output)?;
            progress.bytes.fetch_add(piece.len, Ordering::Relaxed);
            at = offset + piece.len;
        }
    }
    write_zeros(out, entry.size() - at)
}

/// Decodes several pieces at once; results in order.
fn decode(reader: &BlobReader<'_>, group: &[(u64, ChunkRef)]) -> Vec<Result<Vec<u8>, RepoError>> {
    let read = |piece: &ChunkRef| {
        let mut plain = Vec::new();
        reader
            .read(BlobType::Data, &piece.id, &mut Opener::new(), &mut plain)
            .map(|()| plain)
    };
    if let [(_, only)] = group {
        return vec![read(only)];
    }
    std::thread::scope(|scope| {
        let handles: Vec<_> = group
            .iter()
            .map(|(_, piece)| scope.spawn(move || read(piece)))
            .collect();
        handles
            .into_iter()
            .map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|_| Err(RepoError::Internal("a decoding thread panicked".into())))
            })
            .collect()
    })
}

fn write_zeros(out: &mut dyn Write, count: u64) -> Result<(), OpError> {
    io::copy(&mut io::repeat(0).take(count), out).map(drop).map_err(output)
}

/// Writes everything at and below a path as a POSIX tar archive (pax headers for what does not fit), with owners, modes,
/// times and links. Extended attributes go into `SCHILY.xattr` records, as GNU tar and bsdtar read them.
///
/// # Errors
/// When the path is not there or something cannot be read.
pub fn tar(
    repo: &Repo,
    snapshot: &Snapshot,
    path: Option<&[u8]>,
    threads: usize,
    out: &mut dyn Write,
    progress: &Progress,
) -> Result<(), OpError> {
    let reader = open_reader(
        repo,
        snapshot,
        if path.is_some() {
            Appetite::Little
        } else {
            Appetite::Much
        },
    )?;
    let mut nodes = TreeReader::new(&reader);
    let mut contents = TreeReader::new(&reader);
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut opener = Opener::new();
    let mut archive = tar::Builder::new(&mut *out);
    let mut append = |full: &[u8], entry: &Entry| -> Result<(), OpError> {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        let name = full.strip_prefix(b"/").unwrap_or(full);
        let name = if name.is_empty() { b"." } else { name };
        append_entry(
            &mut archive,
            name,
            entry,
            &snapshot.manifest,
            &reader,
            &mut contents,
            &mut opener,
            &mut links,
            threads,
            progress,
        )
    };
    if let Some(path) = path {
        let location = look::locate(snapshot, path)?;
        if let Some(entry) = look::entry_at(&location, &mut nodes)?
            && entry.kind == EntryKind::Dir
        {
            append(&look::full_path(location.root, &look::key_of(&location))?, &entry)?;
        }
    }
    look::list(snapshot, path, true, &mut nodes, &mut append)?;
    archive.finish().map_err(output)?;
    archive.get_mut().flush().map_err(output)
}

#[allow(clippy::too_many_arguments)]
fn append_entry(
    archive: &mut tar::Builder<&mut dyn Write>,
    name: &[u8],
    entry: &Entry,
    manifest: &Manifest,
    reader: &BlobReader<'_>,
    contents: &mut TreeReader<'_, '_>,
    opener: &mut Opener,
    links: &mut HashMap<(u64, u64), Vec<u8>>,
    threads: usize,
    progress: &Progress,
) -> Result<(), OpError> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(entry.mode);
    header.set_uid(u64::from(entry.uid));
    header.set_gid(u64::from(entry.gid));
    header.set_mtime(u64::try_from(entry.mtime.seconds).unwrap_or(0));
    header.set_size(0);
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    let mtime = format!("{}.{:09}", entry.mtime.seconds, entry.mtime.nanos);
    records.push(("mtime".into(), mtime.into_bytes()));
    // Names count for those who unpack as root, unless they ask for numbers; a name that does not fit goes into a record.
    let owners = [
        ("uname", 265..297, manifest.users.get(&entry.uid)),
        ("gname", 297..329, manifest.groups.get(&entry.gid)),
    ];
    for (key, field, name) in owners {
        if let Some(name) = name
            && set_bytes(&mut header.as_mut_bytes()[field], name.as_bytes()).is_none()
        {
            records.push((key.into(), name.clone().into_bytes()));
        }
    }
    for (key, value) in &entry.attributes.xattrs {
        records.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(key)), value.clone()));
    }
    for (key, size, content) in &entry.attributes.xattrs_outline {
        let value = read_content(reader, content, *size, contents, opener)?;
        records.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(key)), value));
    }
    let mut set_path = |header: &mut tar::Header, name: &[u8]| {
        if set_bytes(&mut header.as_mut_bytes()[..100], name).is_none() {
            records.push(("path".into(), name.to_vec()));
        }
    };
    let first_link = entry
        .attributes
        .hard_link
        .and_then(|link| links.get(&(link.device, entry.ino)).cloned());
    if let Some(first) = first_link {
        header.set_entry_type(tar::EntryType::Link);
        set_path(&mut header, name);
        if set_bytes(&mut header.as_mut_bytes()[157..257], &first).is_none() {
            records.push(("linkpath".into(), first));
        }
        return append_raw(archive, &mut header, &records, &mut io::empty());
    }
    if let Some(link) = entry.attributes.hard_link {
        links.insert((link.device, entry.ino), name.to_vec());
    }
    match &entry.kind {
        EntryKind::Dir => {
            header.set_entry_type(tar::EntryType::Directory);
            set_path(&mut header, &[name, b"/"].concat());
        }
        EntryKind::Symlink { target } => {
            header.set_entry_type(tar::EntryType::Symlink);
            set_path(&mut header, name);
            if set_bytes(&mut header.as_mut_bytes()[157..257], target).is_none() {
                records.push(("linkpath".into(), target.clone()));
            }
        }
        EntryKind::Fifo => {
            header.set_entry_type(tar::EntryType::Fifo);
            set_path(&mut header, name);
        }
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            let is_char = matches!(entry.kind, EntryKind::CharDevice { .. });
            header.set_entry_type(if is_char {
                tar::EntryType::Char
            } else {
                tar::EntryType::Block
            });
            set_path(&mut header, name);
            let number = |value: &u64| u32::try_from(*value).unwrap_or(u32::MAX);
            header.set_device_major(number(major)).map_err(output)?;
            header.set_device_minor(number(minor)).map_err(output)?;
        }
        // tar has no sockets, and a socket without its server is of no use.
        EntryKind::Socket => return Ok(()),
        EntryKind::File { size, .. } | EntryKind::Stream { size, .. } | EntryKind::Object { size, .. } => {
            header.set_entry_type(tar::EntryType::Regular);
            set_path(&mut header, name);
            header.set_size(*size);
            if *size >= 8 << 30 {
                records.push(("size".into(), size.to_string().into_bytes()));
            }
            append_raw(archive, &mut header, &records, &mut io::empty())?;
            let out = archive.get_mut();
            write_content(reader, entry, contents, threads, *out, progress)?;
            return write_zeros(*out, size.next_multiple_of(512) - size);
        }
    }
    append_raw(archive, &mut header, &records, &mut io::empty())
}

/// Copies `bytes` into a header field; `None` if they do not fit.
fn set_bytes(field: &mut [u8], bytes: &[u8]) -> Option<()> {
    field.fill(0);
    let fits = bytes.len() <= field.len();
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
    fits.then_some(())
}

/// Writes a pax header, where one is needed, and the header itself.
fn append_raw(
    archive: &mut tar::Builder<&mut dyn Write>,
    header: &mut tar::Header,
    records: &[(String, Vec<u8>)],
    data: &mut dyn Read,
) -> Result<(), OpError> {
    archive
        .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
        .map_err(output)?;
    header.set_cksum();
    archive.get_mut().write_all(header.as_bytes()).map_err(output)?;
    io::copy(data, *archive.get_mut()).map(drop).map_err(output)
}
