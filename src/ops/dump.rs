//! Writing one file, or a directory as a tar archive, to a stream.

use super::look::{self, Appetite, open_reader};
use super::restore::{for_each_chunk, read_chunk, read_content};
use super::{OpError, Progress};
use crate::pure::format::blob::Opener;
use crate::pure::format::entry::{ChunkRef, Content, Entry, EntryKind};
use crate::pure::format::manifest::Manifest;
use crate::repo::reader::{BlobReader, TreeReader};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, RepoError};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
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
        return Err(not_whole(path, 1));
    }
    Ok(())
}

/// The error for what was written as it is in the snapshot, which is not whole.
fn not_whole(path: &[u8], count: u64) -> OpError {
    let others = match count {
        1 => String::new(),
        _ => format!(" (and {} more)", count - 1),
    };
    RepoError::Missing {
        object: path.escape_ascii().to_string() + &others,
        why: "it could not be read completely when it was backed up".into(),
    }
    .into()
}

fn write_content(
    reader: &BlobReader<'_>,
    entry: &Entry,
    nodes: &mut TreeReader<'_, '_>,
    threads: usize,
    out: &mut dyn Write,
    progress: &Progress,
) -> Result<(), OpError> {
    let mut writer = InOrder { out, progress, at: 0 };
    match entry.content() {
        Some(Content::Inline(bytes)) => return writer.out.write_all(bytes).map_err(output),
        // Most files: not worth a thread.
        Some(Content::Chunks(chunks)) if chunks.len() < 2 => {
            let mut opener = Opener::new();
            for_each_chunk(entry, nodes, &mut |offset, piece| {
                writer.write(offset, decode(reader, &piece, &mut opener)?)?;
                Ok(ControlFlow::Continue(()))
            })?;
        }
        _ => decode_ahead(reader, entry, nodes, threads.max(1), &mut writer)?,
    }
    write_zeros(writer.out, entry.size() - writer.at)
}

/// Writes pieces of a file one behind the other, zeros between them.
struct InOrder<'o> {
    out: &'o mut dyn Write,
    progress: &'o Progress,
    at: u64,
}

impl InOrder<'_> {
    fn write(&mut self, offset: u64, plain: Vec<u8>) -> Result<(), OpError> {
        if self.progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        write_zeros(self.out, offset - self.at)?;
        self.out.write_all(&plain).map_err(output)?;
        self.progress.bytes.fetch_add(plain.len() as u64, Ordering::Relaxed);
        self.at = offset + plain.len() as u64;
        Ok(())
    }
}

fn decode(reader: &BlobReader<'_>, piece: &ChunkRef, opener: &mut Opener) -> Result<Vec<u8>, RepoError> {
    let mut plain = Vec::new();
    read_chunk(reader, piece, opener, &mut plain)?;
    Ok(plain)
}

/// Decodes on several threads, a few pieces ahead of what is written. The list of pieces is read along the way.
fn decode_ahead(
    reader: &BlobReader<'_>,
    entry: &Entry,
    nodes: &mut TreeReader<'_, '_>,
    threads: usize,
    writer: &mut InOrder<'_>,
) -> Result<(), OpError> {
    type Reply = Result<Vec<u8>, RepoError>;
    let (tasks, queue) = bounded::<(ChunkRef, Sender<Reply>)>(AHEAD * threads);
    // The scope owns the queue: however it ends, the threads end.
    std::thread::scope(move |scope| {
        for _ in 0..threads {
            let queue = queue.clone();
            scope.spawn(move || {
                let mut opener = Opener::new();
                for (piece, reply) in queue {
                    // Nobody waits any more when writing has failed.
                    let _ = reply.send(decode(reader, &piece, &mut opener));
                }
            });
        }
        drop(queue);
        let gone = || OpError::Repo(RepoError::Internal("a decoding thread panicked".into()));
        let mut ahead: VecDeque<(u64, Receiver<Reply>)> = VecDeque::new();
        let mut write_first = |ahead: &mut VecDeque<(u64, Receiver<Reply>)>| match ahead.pop_front() {
            Some((offset, reply)) => writer.write(offset, reply.recv().map_err(|_| gone())??),
            None => Ok(()),
        };
        for_each_chunk(entry, nodes, &mut |offset, piece| {
            if ahead.len() == AHEAD * threads {
                write_first(&mut ahead)?;
            }
            let (reply, decoded) = bounded(1);
            tasks.send((piece, reply)).map_err(|_| gone())?;
            ahead.push_back((offset, decoded));
            Ok(ControlFlow::Continue(()))
        })?;
        while !ahead.is_empty() {
            write_first(&mut ahead)?;
        }
        Ok(())
    })
}

fn write_zeros(out: &mut dyn Write, count: u64) -> Result<(), OpError> {
    io::copy(&mut io::repeat(0).take(count), out).map(drop).map_err(output)
}

/// Writes everything at and below a path as a POSIX tar archive (pax headers for what does not fit), with owners, modes,
/// times and links. Extended attributes go into `SCHILY.xattr` records, as GNU tar and bsdtar read them.
///
/// # Errors
/// When the path is not there or something cannot be read. Where a part of the tree cannot be read, the archive goes on behind
/// it; an error at the end says so, and also when a file was not whole in the snapshot already.
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
    let mut incomplete: Option<(Vec<u8>, u64)> = None;
    let mut broken_off = false;
    let mut append = |full: &[u8], entry: &Entry| -> Result<(), OpError> {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        if entry.attributes.incomplete.is_some() {
            incomplete.get_or_insert_with(|| (full.to_vec(), 0)).1 += 1;
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
        .inspect_err(|_| broken_off = true)
    };
    // Where there is nothing at the path itself, roots may lie below it.
    if let Some(location) = path.and_then(|path| look::locate(snapshot, path).ok())
        && let Some(entry) = look::entry_at(&location, &mut nodes)?
        && entry.kind == EntryKind::Dir
    {
        append(&look::full_path(location.root, &look::key_of(&location))?, &entry)?;
    }
    let listed = look::list(snapshot, path, true, &mut nodes, &mut append);
    // What could be had is an archive all the same.
    if !broken_off {
        archive.finish().map_err(output)?;
        archive.get_mut().flush().map_err(output)?;
    }
    listed?;
    match incomplete {
        Some((path, count)) => Err(not_whole(&path, count)),
        None => Ok(()),
    }
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
