//! The walk: entries in ascending order of their tree keys (format-spec chapter "Trees", keys).
//!
//! In a directory, first all direct children by name, then the trees below its sub-directories by name. The names of
//! one directory are read and sorted at once; each is looked at (`statx`) only when its turn comes. Sub-directories wait
//! on one stack for the whole walk. So memory is that of the names of the present directory and of the sub-directories
//! waiting on the present path, and descriptors are bounded by [`OpenDirectories`], at any depth and without recursion.
//!
//! A root that is a symbolic link is stored as the link, as `tar` and `rsync` do; with a slash at its end it is followed.

use super::ahead::{self, Ahead, Prepared};
use super::{Excludes, ProblemKind, SourceError, SourceProblem};
use crate::edge::fs::directory::DIRECTORY_FLAGS;
use crate::edge::fs::listing::ListingBuffer;
use crate::edge::fs::{Directory, FileKind, Listing, OpenDirectories, Status, open_path, open_quietly};
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::{Attributes, Content, Entry, EntryKind, HardLink};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Descriptors that a walk keeps open at most, besides one for the root and those that readers use.
const OPEN_DIRECTORIES_MAX: usize = 200;
/// Limits of the format.
const KEY_BYTES_MAX: usize = 65_535;
const DEPTH_MAX: usize = 4_096;
/// What a `CACHEDIR.TAG` begins with, by the Cache Directory Tagging Specification.
const CACHE_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
const CACHE_TAG_NAME: &[u8] = b"CACHEDIR.TAG";

/// What a walk emits and what it leaves out.
#[derive(Clone, Debug, Default)]
pub struct WalkOptions {
    /// Directories on other file systems are emitted but not entered.
    pub one_file_system: bool,
    pub excludes: Excludes,
    /// Of directories with a valid `CACHEDIR.TAG`, only themselves and the tag are emitted.
    pub exclude_caches: bool,
    /// Regular files with more bytes are left out.
    pub exclude_larger_than: Option<u64>,
    /// Directories, by device and inode, that are left out with all below (repository and cache).
    pub exclude_directories: Vec<(u64, u64)>,
    /// Threads that list directories ahead of the walk; 0 for none. The result is the same.
    pub threads_ahead: usize,
}

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkCounts {
    /// Entries that were emitted.
    pub entries: u64,
    /// Names that were gone before they were looked at.
    pub vanished: u64,
    /// Entries that were left out by a rule (not counting what is below them).
    pub excluded: u64,
}

/// What tells a changed file from an unchanged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatKey {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime: FileTime,
    pub ctime: FileTime,
    /// Permission bits, 07777.
    pub mode: u32,
    pub nlink: u64,
}

impl From<&Status> for StatKey {
    fn from(status: &Status) -> StatKey {
        StatKey {
            dev: status.device,
            ino: status.inode,
            size: status.size,
            mtime: status.mtime,
            ctime: status.ctime,
            mode: status.mode,
            nlink: status.links,
        }
    }
}

/// Where an entry can be opened: in a directory that stays reachable, at a name.
#[derive(Clone, Debug)]
pub struct Place {
    pub(super) directory: Arc<Directory>,
    pub(super) name: PlaceName,
}

/// A name; the usual one is not copied.
#[derive(Clone, Debug)]
pub(super) enum PlaceName {
    /// The end of the entry's key, from that byte on.
    InKey(usize),
    /// A root that is no directory, by its name in the directory it lies in.
    Root(Box<[u8]>),
    /// The directory itself.
    Itself,
}

/// One entry of the source.
#[derive(Clone, Debug)]
pub struct Found {
    /// Tree key.
    pub key: Vec<u8>,
    /// Without content (an empty inline one) and without what only opening tells: see `Found::attributes`.
    pub entry: Entry,
    pub stat: StatKey,
    pub place: Place,
}

/// What a walk meets next.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are entries; a box would cost an allocation for each"
)]
pub enum WalkEvent {
    Entry(Found),
    Problem(SourceProblem),
}

/// A walk over one root.
pub struct FileWalk {
    options: WalkOptions,
    counts: WalkCounts,
    root_device: u64,
    skip_pseudo: bool,
    /// What is to be emitted before going on.
    first: Option<Found>,
    problem: Option<SourceProblem>,
    current: Option<Current>,
    frames: Vec<Frame>,
    /// Sub-directories waiting, those of the deepest frame last; their names stand in `pending_names` likewise.
    pending: Vec<Pending>,
    pending_names: Vec<u8>,
    /// Device and inode of the present directory and all above it, the root first.
    ancestors: Vec<(u64, u64)>,
    /// `c1 00 … ck 00` of the present directory, and the same with slashes.
    key_prefix: Vec<u8>,
    path_prefix: Vec<u8>,
    buffer: ListingBuffer,
    /// Taken up again by the next directory.
    spare: Listing,
    ahead: Option<Ahead>,
}

/// The directory whose children are being emitted.
struct Current {
    directory: Arc<Directory>,
    descriptor: Arc<OwnedFd>,
    listing: Listing,
    next: usize,
    pending_start: usize,
    /// Of the first names, where they were looked at ahead.
    statuses: Vec<Result<Status, Errno>>,
}

/// A directory whose children were emitted and whose sub-directories are being walked.
struct Frame {
    directory: Arc<Directory>,
    prefix_length: usize,
    depth: usize,
    next: usize,
    end: usize,
    start: usize,
    /// Those before it are being listed ahead.
    submitted: usize,
}

#[derive(Clone, Copy)]
struct Pending {
    name_start: usize,
    name_length: usize,
    identity: (u64, u64),
    /// By what to ask for its listing, when that is made ahead.
    ticket: Option<u64>,
}

impl FileWalk {
    /// Opens a root: a directory, or a single entry of any other type.
    ///
    /// # Errors
    /// When the root is not there or cannot be opened.
    pub fn open(root: &Path, options: WalkOptions) -> Result<FileWalk, SourceError> {
        let path = root.as_os_str().as_bytes();
        let failed = |error| SourceError::Root {
            path: path.to_vec(),
            error,
        };
        if path.is_empty() {
            return Err(failed(Errno::NOENT));
        }
        let mut walk = FileWalk {
            options,
            counts: WalkCounts::default(),
            root_device: 0,
            skip_pseudo: true,
            first: None,
            problem: None,
            current: None,
            frames: Vec::new(),
            pending: Vec::new(),
            pending_names: Vec::new(),
            ancestors: Vec::new(),
            key_prefix: Vec::new(),
            path_prefix: Vec::new(),
            buffer: ListingBuffer::default(),
            spare: Listing::default(),
            ahead: None,
        };
        let budget = OpenDirectories::new(OPEN_DIRECTORIES_MAX);
        // `dir/`, `dir/.` and `..` can only mean what is there after following.
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let is_followed = matches!(name, b"" | b"." | b"..");
        let flags = if is_followed {
            DIRECTORY_FLAGS - OFlags::NOFOLLOW
        } else {
            DIRECTORY_FLAGS
        };
        match open_path(path, flags) {
            Ok(fd) => walk.start_directory(fd, budget).map_err(failed)?,
            Err(Errno::NOTDIR | Errno::LOOP) if !is_followed => {
                walk.start_other(path, name, budget).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(walk)
    }

    fn start_directory(&mut self, fd: OwnedFd, budget: Arc<OpenDirectories>) -> Result<(), Errno> {
        let directory = Directory::root(fd, budget)?;
        let descriptor = directory.descriptor()?;
        let status = *directory.status();
        self.root_device = status.device;
        self.skip_pseudo = !directory.file_system().is_pseudo;
        self.ancestors.push(status.identity());
        self.first = Some(Found {
            key: vec![0],
            entry: entry_of(&status, EntryKind::Dir),
            stat: StatKey::from(&status),
            place: Place {
                directory: directory.clone(),
                name: PlaceName::Itself,
            },
        });
        if self.options.threads_ahead > 0 {
            self.ahead = Some(Ahead::new(self.options.threads_ahead));
        }
        self.start_listing(directory, descriptor, None);
        Ok(())
    }

    fn start_other(&mut self, path: &[u8], name: &[u8], budget: Arc<OpenDirectories>) -> Result<(), Errno> {
        let parent = match &path[..path.len() - name.len()] {
            b"" => b".",
            parent => parent,
        };
        // Listing the parent is not needed and may not be allowed.
        let directory = Directory::root(open_path(parent, OFlags::PATH | OFlags::DIRECTORY)?, budget)?;
        let descriptor = directory.descriptor()?;
        let status = Status::at(&*descriptor, name)?;
        let kind = match status.kind {
            FileKind::Directory | FileKind::Unknown => return Err(Errno::STALE),
            _ => entry_kind(&descriptor, name, &status)?,
        };
        self.root_device = status.device;
        self.first = Some(Found {
            key: vec![0],
            entry: entry_of(&status, kind),
            stat: StatKey::from(&status),
            place: Place {
                directory,
                name: PlaceName::Root(name.into()),
            },
        });
        Ok(())
    }

    /// Returns what was seen so far.
    pub fn counts(&self) -> WalkCounts {
        self.counts
    }

    /// Returns the next entry or problem; `None` at the end.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is an iterator as well; this saves callers the import"
    )]
    pub fn next(&mut self) -> Option<WalkEvent> {
        loop {
            if let Some(found) = self.first.take() {
                self.counts.entries += 1;
                return Some(WalkEvent::Entry(found));
            }
            if let Some(problem) = self.problem.take() {
                return Some(WalkEvent::Problem(problem));
            }
            if let Some(mut current) = self.current.take() {
                while current.next < current.listing.len() {
                    let index = current.next;
                    current.next += 1;
                    if let Some(event) = self.visit(&current, index) {
                        self.current = Some(current);
                        if matches!(event, WalkEvent::Entry(_)) {
                            self.counts.entries += 1;
                        }
                        return Some(event);
                    }
                }
                self.finish_listing(current);
                continue;
            }
            let frame = self.frames.last_mut()?;
            if frame.next == frame.end {
                self.pending_names.truncate(
                    self.pending
                        .get(frame.start)
                        .map_or(self.pending_names.len(), |p| p.name_start),
                );
                self.pending.truncate(frame.start);
                self.frames.pop();
                continue;
            }
            let pending = self.pending[frame.next];
            frame.next += 1;
            let (prefix_length, depth, directory) = (frame.prefix_length, frame.depth, frame.directory.clone());
            self.ancestors.truncate(depth);
            self.key_prefix.truncate(prefix_length);
            self.path_prefix.truncate(prefix_length);
            self.submit_ahead();
            self.enter(&directory, pending);
        }
    }

    /// Opens a sub-directory and lists it.
    fn enter(&mut self, parent: &Arc<Directory>, pending: Pending) {
        let name = &self.pending_names[pending.name_start..pending.name_start + pending.name_length];
        self.key_prefix.extend_from_slice(name);
        self.key_prefix.push(0);
        self.path_prefix.extend_from_slice(name);
        let prepared = match (&self.ahead, pending.ticket) {
            (Some(ahead), Some(ticket)) => ahead.take(ticket),
            _ => None,
        };
        let opened = match &prepared {
            Some(prepared) => prepared.directory.clone(),
            None => parent.open_child(name),
        };
        let directory = match opened {
            Ok(directory) => directory,
            Err(Errno::NOENT) => {
                self.counts.vanished += 1;
                return;
            }
            Err(Errno::LOOP | Errno::NOTDIR | Errno::STALE) => return self.report(ProblemKind::Replaced, None),
            Err(error) => return self.report(ProblemKind::Directory, Some(error)),
        };
        if directory.status().identity() != pending.identity {
            // Something was mounted here, or another directory stands here now. Its own entry was not emitted.
            return self.report(ProblemKind::Replaced, None);
        }
        if self.skip_pseudo && directory.file_system().is_pseudo {
            return self.report(ProblemKind::PseudoFileSystem, None);
        }
        if self.ancestors.contains(&pending.identity) {
            return self.report(ProblemKind::Loop, None);
        }
        match directory.descriptor() {
            Ok(descriptor) => {
                self.ancestors.push(pending.identity);
                self.path_prefix.push(b'/');
                self.start_listing(directory, descriptor, prepared);
            }
            Err(error) => self.report(ProblemKind::Directory, Some(error)),
        }
    }

    fn report(&mut self, kind: ProblemKind, error: Option<Errno>) {
        let mut path = self.path_prefix.clone();
        if path.last() == Some(&b'/') {
            path.pop();
        }
        self.problem = Some(SourceProblem {
            kind,
            path,
            error,
            attribute: None,
        });
    }

    /// Has the next sub-directories of the present level listed ahead.
    fn submit_ahead(&mut self) {
        let (Some(ahead), Some(frame)) = (&mut self.ahead, self.frames.last_mut()) else {
            return;
        };
        let end = frame.end.min(frame.next + ahead::WINDOW);
        for index in frame.submitted.max(frame.next)..end {
            let pending = &mut self.pending[index];
            let name = &self.pending_names[pending.name_start..pending.name_start + pending.name_length];
            pending.ticket = Some(ahead.submit(ahead::Job {
                parent: frame.directory.clone(),
                name: name.into(),
                identity: pending.identity,
                depth: frame.depth,
                skip_pseudo: self.skip_pseudo,
            }));
        }
        frame.submitted = end.max(frame.submitted);
    }

    /// Reads the names of a directory, if that was not done ahead; the key prefix is already its own.
    fn start_listing(&mut self, directory: Arc<Directory>, descriptor: Arc<OwnedFd>, prepared: Option<Prepared>) {
        let (mut listing, outcome, mut statuses) = match prepared {
            Some(prepared) => (prepared.listing, prepared.outcome, prepared.statuses),
            None => {
                let mut listing = std::mem::take(&mut self.spare);
                let outcome = list(&directory, &descriptor, &mut listing, &mut self.buffer);
                (listing, outcome, Vec::new())
            }
        };
        if let Err(error) = outcome {
            self.report(ProblemKind::Listing, Some(error));
        }
        if self.options.exclude_caches
            && let Some(tag) = listing.find(CACHE_TAG_NAME)
            && is_cache_tag(&descriptor, listing.name(tag))
        {
            self.counts.excluded += listing.len() as u64 - 1;
            listing.keep_only(tag);
            statuses.clear();
        }
        let pending_start = self.pending.len();
        self.current = Some(Current {
            directory,
            descriptor,
            listing,
            next: 0,
            pending_start,
            statuses,
        });
    }

    /// Goes on to the sub-directories of a directory.
    fn finish_listing(&mut self, current: Current) {
        let (start, end) = (current.pending_start, self.pending.len());
        self.spare = current.listing;
        if start < end {
            self.frames.push(Frame {
                directory: current.directory,
                prefix_length: self.key_prefix.len(),
                depth: self.ancestors.len(),
                next: start,
                end,
                start,
                submitted: start,
            });
            self.submit_ahead();
        }
    }

    /// Looks at one name.
    fn visit(&mut self, current: &Current, index: usize) -> Option<WalkEvent> {
        let name = current.listing.name(index);
        let bytes = name.to_bytes();
        if bytes.contains(&b'/') {
            return self.problem_at(bytes, ProblemKind::Unsupported, None);
        }
        let look = || match current.statuses.get(index) {
            Some(status) => *status,
            None => Status::at(&*current.descriptor, name),
        };
        let mut known = None;
        if !self.options.excludes.is_empty() {
            let is_directory = match current.listing.kind(index) {
                FileKind::Unknown => match look() {
                    Ok(status) => known.insert(status).kind == FileKind::Directory,
                    Err(error) => return self.unseen(bytes, error),
                },
                kind => kind == FileKind::Directory,
            };
            let prefix_length = self.path_prefix.len();
            self.path_prefix.extend_from_slice(bytes);
            let is_excluded = self.options.excludes.exclude(&self.path_prefix, is_directory);
            self.path_prefix.truncate(prefix_length);
            if is_excluded {
                self.counts.excluded += 1;
                return None;
            }
        }
        let status = match known.map_or_else(look, Ok) {
            Ok(status) => status,
            Err(error) => return self.unseen(bytes, error),
        };
        let key_length = self.key_prefix.len() + 1 + bytes.len();
        if key_length > KEY_BYTES_MAX || self.ancestors.len() > DEPTH_MAX {
            return self.problem_at(bytes, ProblemKind::TooDeep, None);
        }
        let kind = match status.kind {
            FileKind::File => {
                if self
                    .options
                    .exclude_larger_than
                    .is_some_and(|limit| status.size > limit)
                {
                    self.counts.excluded += 1;
                    return None;
                }
                EntryKind::File {
                    size: status.size,
                    content: Content::Inline(Vec::new()),
                }
            }
            FileKind::Directory => {
                if self.options.exclude_directories.contains(&status.identity()) {
                    self.counts.excluded += 1;
                    return None;
                }
                if !self.options.one_file_system || status.device == self.root_device {
                    self.pending.push(Pending {
                        name_start: self.pending_names.len(),
                        name_length: bytes.len(),
                        identity: status.identity(),
                        ticket: None,
                    });
                    self.pending_names.extend_from_slice(bytes);
                }
                EntryKind::Dir
            }
            FileKind::Unknown => return self.problem_at(bytes, ProblemKind::Unsupported, None),
            _ => match entry_kind(&current.descriptor, bytes, &status) {
                Ok(kind) => kind,
                Err(error) => return self.unseen(bytes, error),
            },
        };
        let mut key = Vec::with_capacity(key_length);
        key.extend_from_slice(&self.key_prefix);
        key.push(0);
        key.extend_from_slice(bytes);
        let name = PlaceName::InKey(key_length - bytes.len());
        Some(WalkEvent::Entry(Found {
            key,
            entry: entry_of(&status, kind),
            stat: StatKey::from(&status),
            place: Place {
                directory: current.directory.clone(),
                name,
            },
        }))
    }

    fn unseen(&mut self, name: &[u8], error: Errno) -> Option<WalkEvent> {
        if error == Errno::NOENT {
            self.counts.vanished += 1;
            return None;
        }
        self.problem_at(name, ProblemKind::Entry, Some(error))
    }

    fn problem_at(&self, name: &[u8], kind: ProblemKind, error: Option<Errno>) -> Option<WalkEvent> {
        let path = [&self.path_prefix, name].concat();
        Some(WalkEvent::Problem(SourceProblem {
            kind,
            path,
            error,
            attribute: None,
        }))
    }
}

impl Iterator for FileWalk {
    type Item = WalkEvent;

    fn next(&mut self) -> Option<WalkEvent> {
        FileWalk::next(self)
    }
}

/// Reads the names of an open directory.
pub(super) fn list(
    directory: &Directory,
    descriptor: &OwnedFd,
    listing: &mut Listing,
    buffer: &mut ListingBuffer,
) -> Result<(), Errno> {
    listing.read(descriptor, buffer)?;
    // A directory that was changed meanwhile may have shown a name twice, or (when it was renamed) not at all: read it
    // once more. In one that changes all the time, that is as good as it gets.
    let is_same = |now: Status| (now.mtime, now.ctime) == (directory.status().mtime, directory.status().ctime);
    if Status::of(descriptor).is_ok_and(is_same) {
        return Ok(());
    }
    rustix::fs::seek(descriptor, rustix::fs::SeekFrom::Start(0))?;
    listing.read(descriptor, buffer)
}

/// What an entry that is neither a directory nor a file with content is.
fn entry_kind(directory: &OwnedFd, name: &[u8], status: &Status) -> Result<EntryKind, Errno> {
    Ok(match status.kind {
        FileKind::File => EntryKind::File {
            size: status.size,
            content: Content::Inline(Vec::new()),
        },
        FileKind::Directory => EntryKind::Dir,
        FileKind::Symlink => {
            let target = match rustix::fs::readlinkat(directory, name, Vec::new()) {
                Ok(target) if !target.is_empty() => target.into_bytes(),
                // The type has changed since: what was seen is not there any more.
                Ok(_) | Err(Errno::INVAL) => return Err(Errno::NOENT),
                Err(error) => return Err(error),
            };
            EntryKind::Symlink { target }
        }
        FileKind::Fifo => EntryKind::Fifo,
        FileKind::Socket => EntryKind::Socket,
        FileKind::CharDevice => EntryKind::CharDevice {
            major: status.node_major.into(),
            minor: status.node_minor.into(),
        },
        FileKind::BlockDevice => EntryKind::BlockDevice {
            major: status.node_major.into(),
            minor: status.node_minor.into(),
        },
        FileKind::Unknown => return Err(Errno::OPNOTSUPP),
    })
}

fn entry_of(status: &Status, kind: EntryKind) -> Entry {
    let is_linked = status.links > 1 && kind != EntryKind::Dir;
    Entry {
        kind,
        mode: status.mode,
        uid: status.uid,
        gid: status.gid,
        mtime: status.mtime,
        ctime: status.ctime,
        ino: status.inode,
        attributes: Attributes {
            born: status.born,
            hard_link: is_linked.then_some(HardLink {
                device: status.device,
                links: status.links,
            }),
            ..Attributes::default()
        },
    }
}

fn is_cache_tag(directory: &OwnedFd, name: &CStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
    let mut start = [0; CACHE_TAG.len()];
    // Only a regular file may be opened: opening others can have effects, and reading them block.
    Status::at(directory, name).is_ok_and(|status| status.kind == FileKind::File)
        && open_quietly(directory, name, flags)
            .and_then(|fd| rustix::io::pread(fd, &mut start, 0))
            .is_ok_and(|length| start[..length] == *CACHE_TAG)
}
