//! Files, links and nodes: made under a temporary name, finished, then given their name.

use super::directory::{DirHandle, TargetDir, check_name};
use super::meta::{self, Meta, Subject};
use super::{Overwrite, RefusedKind, TargetError, TargetProblem};
use crate::edge::fs::{FileKind, Status, magic_path, open_beneath, temporary_name};
use crate::pure::format::entry::{Entry, EntryKind};
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pieces from this size on are sent to the disk at once.
const WRITTEN_BACK_MIN: usize = 256 << 10;

const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Random names that are taken: with 64 bits, somebody must be guessing.
const NAME_TRIES_MAX: u32 = 8;

/// What to do about a file that may be there already.
#[derive(Debug)]
pub enum Decision {
    /// Write it.
    Write,
    /// Leave what is there alone.
    Keep,
    /// Compare what is there; when it is the same, only set its metadata.
    Compare(ExistingFile),
}

/// An inode that this restore has made (or compared), to which links may be made.
#[derive(Clone, Debug)]
pub struct LinkSource {
    /// Raw path below the target.
    path: Vec<u8>,
    identity: (u64, u64),
}

/// What came of an entry.
#[derive(Debug)]
#[must_use]
pub struct Restored {
    pub problems: Vec<TargetProblem>,
    /// `None` when nothing was made.
    pub source: Option<LinkSource>,
}

/// A name that is removed again unless it becomes the final one.
#[derive(Debug)]
struct Temporary {
    directory: Arc<DirHandle>,
    name: String,
    /// Whether the inode may have other names.
    is_link: bool,
    is_gone: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_gone {
            // Nothing better can be done when it fails.
            let _ = rustix::fs::unlinkat(&self.directory.fd, &*self.name, AtFlags::empty());
        }
    }
}

impl Temporary {
    /// Makes something under a temporary name.
    fn make<T>(
        directory: &Arc<DirHandle>,
        mut make: impl FnMut(&OwnedFd, &str) -> Result<T, Errno>,
    ) -> Result<(Temporary, T), Errno> {
        for _ in 0..NAME_TRIES_MAX {
            let name = temporary_name()?;
            match make(&directory.fd, &name) {
                Ok(made) => {
                    return Ok((
                        Temporary {
                            directory: directory.clone(),
                            name,
                            is_link: false,
                            is_gone: false,
                        },
                        made,
                    ));
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }

    /// Gives the final name, in place of what has it; but never in place of what this restore has made, which has that
    /// name only because the directory takes two names for the same.
    fn rename(mut self, name: &[u8], target: &TargetDir) -> Result<(), TargetError> {
        let directory = &self.directory.fd;
        let path = || self.directory.path_of(name);
        if self.directory.is_folding {
            let mut made = target.made.lock();
            if Status::at(directory, name).is_ok_and(|status| made.contains(&status.identity())) {
                return Err(TargetError::InTheWay { path: path() });
            }
            made.extend(Status::at(directory, &*self.name).map(|status| status.identity()));
        }
        let overwrite = target.overwrite;
        let outcome = if overwrite == Overwrite::Never {
            match rustix::fs::renameat_with(directory, &*self.name, directory, name, RenameFlags::NOREPLACE) {
                // File systems without it: as good as it gets.
                Err(Errno::INVAL) => match Status::at(directory, name) {
                    Err(Errno::NOENT) => rustix::fs::renameat(directory, &*self.name, directory, name),
                    _ => Err(Errno::EXIST),
                },
                other => other,
            }
        } else {
            match rustix::fs::renameat(directory, &*self.name, directory, name) {
                // An empty directory may go; a full one is only removed by those who ask for that.
                Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
                        Ok(()) => rustix::fs::renameat(directory, &*self.name, directory, name),
                        Err(_) => Err(Errno::EXIST),
                    }
                }
                other => other,
            }
        };
        match outcome {
            Ok(()) => {
                // Between two names of one inode nothing is renamed, and it is there yet.
                self.is_gone = !self.is_link;
                Ok(())
            }
            Err(Errno::EXIST) => Err(TargetError::InTheWay { path: path() }),
            Err(error) => Err(TargetError::new("naming", path(), error)),
        }
    }
}

/// A file that is being written under a temporary name. Dropped without `commit`, it leaves nothing behind.
#[derive(Debug)]
pub struct OpenTarget<'target> {
    target: &'target TargetDir,
    temporary: Temporary,
    name: Vec<u8>,
    fd: OwnedFd,
    size: u64,
    /// Behind the last byte that was written.
    end: AtomicU64,
}

/// A regular file that was in the target before.
#[derive(Debug)]
pub struct ExistingFile {
    fd: OwnedFd,
    path: Vec<u8>,
    status: Status,
}

impl TargetDir {
    /// Decides about a regular file, by what is there and what may be overwritten.
    ///
    /// # Errors
    /// `BadName`, or what the system says.
    pub fn decide(&self, directory: &Arc<DirHandle>, name: &[u8], entry: &Entry) -> Result<Decision, TargetError> {
        check_name(name)?;
        if directory.is_vacant() && self.overwrite != Overwrite::Never {
            return Ok(Decision::Write);
        }
        let status = match Status::at(&directory.fd, name) {
            Err(Errno::NOENT) => return Ok(Decision::Write),
            Err(error) => return Err(TargetError::new("looking at", directory.path_of(name), error)),
            Ok(status) => status,
        };
        match self.overwrite {
            Overwrite::Never => return Ok(Decision::Keep),
            Overwrite::Always => return Ok(Decision::Write),
            Overwrite::IfNewer if status.mtime >= entry.mtime => return Ok(Decision::Keep),
            Overwrite::IfNewer | Overwrite::IfChanged => {}
        }
        Ok(match self.open_existing(directory, name)? {
            // Another name of the same file may be anywhere, so its metadata is not ours to change.
            Some(existing) if existing.status.links == 1 && existing.status.size == entry.size() => {
                Decision::Compare(existing)
            }
            _ => Decision::Write,
        })
    }

    /// Opens a regular file for comparing; `None` when there is none that can be read.
    ///
    /// # Errors
    /// `BadName`.
    pub fn open_existing(&self, directory: &Arc<DirHandle>, name: &[u8]) -> Result<Option<ExistingFile>, TargetError> {
        check_name(name)?;
        // Only regular files may be opened: opening a device can have effects.
        if !Status::at(&directory.fd, name).is_ok_and(|status| status.kind == FileKind::File) {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let Ok(fd) = open_beneath(&directory.fd, &[name], flags) else {
            return Ok(None);
        };
        let status = Status::of(&fd).ok().filter(|status| status.kind == FileKind::File);
        Ok(status.map(|status| ExistingFile {
            fd,
            path: directory.path_of(name),
            status,
        }))
    }

    /// Begins a file of `size` bytes. What is not written by then is a hole; nobody else can read it until it is committed.
    ///
    /// It has another name until then, also in a directory that this restore has made: what a killed restore left under the final name
    /// would be kept by the next one if that overwrites nothing, or only what is older.
    ///
    /// # Errors
    /// `BadName`, `Full`, `ReadOnly`, or what the system says.
    pub fn create(&self, directory: &Arc<DirHandle>, name: &[u8], size: u64) -> Result<OpenTarget<'_>, TargetError> {
        check_name(name)?;
        let failed = |error| TargetError::new("creating", directory.path_of(name), error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = |fd: &OwnedFd, temporary: &str| rustix::fs::openat(fd, temporary, flags, PRIVATE);
        let (temporary, fd) = Temporary::make(directory, make).map_err(failed)?;
        Ok(OpenTarget {
            target: self,
            temporary,
            name: name.to_vec(),
            fd,
            size,
            end: AtomicU64::new(0),
        })
    }

    /// Sets the metadata of a file whose content turned out to be right already.
    ///
    /// # Errors
    /// Only `Full` and `ReadOnly`; everything else that is refused is among the problems.
    pub fn keep_existing(&self, existing: &ExistingFile, meta: &Meta<'_>) -> Result<Restored, TargetError> {
        let (mut problems, _) = meta::apply(&Subject::Open(&existing.fd), meta, &self.policy, &existing.path)?;
        problems.extend(self.set_flags(&existing.fd, meta, &existing.path)?);
        Ok(Restored {
            problems,
            source: Some(existing.link_source()),
        })
    }

    /// Makes a symbolic link, pipe, socket or device node (nothing else), with its metadata.
    ///
    /// # Errors
    /// `BadName`, `InTheWay`, `Full`, `ReadOnly`, `Replaced`, or what the system says. A device that may not be made is a
    /// problem, not an error.
    pub fn make_node(&self, directory: &Arc<DirHandle>, name: &[u8], meta: &Meta<'_>) -> Result<Restored, TargetError> {
        check_name(name)?;
        let path = directory.path_of(name);
        if self.overwrite == Overwrite::Never && Status::at(&directory.fd, name).is_ok() {
            return Ok(Restored {
                problems: Vec::new(),
                source: None,
            });
        }
        let is_device = matches!(
            meta.entry.kind,
            EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. }
        );
        let device_refused = |error| {
            let problem = TargetProblem {
                kind: RefusedKind::Device,
                path: path.clone(),
                error,
                attribute: None,
            };
            Ok(Restored {
                problems: vec![problem],
                source: None,
            })
        };
        if is_device && !self.policy.devices {
            return device_refused(None);
        }
        let (temporary, ()) = match Temporary::make(directory, |fd, name| make_node(fd, name, &meta.entry.kind)) {
            Err(error @ (Errno::PERM | Errno::INVAL)) if is_device => return device_refused(Some(error)),
            Err(error) => return Err(TargetError::new("creating", path, error)),
            Ok(made) => made,
        };
        let opened = rustix::fs::openat(
            &directory.fd,
            &*temporary.name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let (fd, status) = match opened.and_then(|fd| Status::of(&fd).map(|status| (fd, status))) {
            // What was just made has one name. Anything else was put there by somebody.
            Ok((_, status)) if status.links != 1 || status.kind != kind_of(&meta.entry.kind) => {
                return Err(TargetError::Replaced { path });
            }
            Ok(made) => made,
            Err(error) => return Err(TargetError::new("opening", path, error)),
        };
        let (problems, _) = meta::apply(&Subject::Path(&fd), meta, &self.policy, &path)?;
        temporary.rename(name, self)?;
        Ok(Restored {
            problems,
            source: Some(LinkSource {
                path,
                identity: status.identity(),
            }),
        })
    }

    /// Gives another name to what this restore has made. Where nothing may be overwritten, what is there is left alone.
    ///
    /// # Errors
    /// `BadName`, `InTheWay`, `Replaced` when the source is not at its place any more, or what the system says (`EMLINK`,
    /// `EXDEV`, `EPERM`: then the content is to be written once more).
    pub fn link(&self, source: &LinkSource, directory: &Arc<DirHandle>, name: &[u8]) -> Result<(), TargetError> {
        check_name(name)?;
        let path = directory.path_of(name);
        let mut components: Vec<&[u8]> = source.path.split(|&byte| byte == b'/').collect();
        let source_name = components.pop().unwrap_or_default();
        let parent = self.open_dir(&components)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, source_name, flags, Mode::empty());
        let is_it = |fd: &OwnedFd| Status::of(fd).is_ok_and(|status| status.identity() == source.identity);
        let Some(fd) = fd.ok().filter(is_it) else {
            return Err(TargetError::Replaced {
                path: source.path.clone(),
            });
        };
        if Status::at(&directory.fd, name).is_ok_and(|status| status.identity() == source.identity) {
            return Ok(());
        }
        if self.overwrite == Overwrite::Never && Status::at(&directory.fd, name).is_ok() {
            return Ok(());
        }
        // The link is made from the descriptor, so that it is to what was looked at.
        let make = |directory: &OwnedFd, temporary: &str| {
            rustix::fs::linkat(CWD, magic_path(&fd), directory, temporary, AtFlags::SYMLINK_FOLLOW)
        };
        let (mut temporary, ()) =
            Temporary::make(directory, make).map_err(|error| TargetError::new("linking", path, error))?;
        temporary.is_link = true;
        temporary.rename(name, self)
    }
}

impl OpenTarget<'_> {
    /// Writes bytes at an offset. May be called from several threads for different places.
    ///
    /// # Errors
    /// `Full`, `ReadOnly`, or what the system says.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), TargetError> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::pwrite(&self.fd, &bytes[written..], offset.saturating_add(written as u64)) {
                Ok(0) => return Err(self.failed(Errno::IO)),
                Ok(length) => written += length,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        self.end
            .fetch_max(offset.saturating_add(bytes.len() as u64), Ordering::AcqRel);
        // Linux begins to write the pages to the disk when it is told that they are not needed any more: so it does while the next
        // ones are decoded, and the sync at the end has little to wait for.
        if bytes.len() >= WRITTEN_BACK_MIN {
            let _ = rustix::fs::fadvise(&self.fd, offset, NonZeroU64::new(bytes.len() as u64), Advice::DontNeed);
        }
        Ok(())
    }

    fn failed(&self, error: Errno) -> TargetError {
        TargetError::new("writing", self.temporary.directory.path_of(&self.name), error)
    }

    /// Gives the file its metadata and then its name. What had the name before is replaced at once.
    ///
    /// # Errors
    /// `InTheWay` when it must not be replaced, `Full`, `ReadOnly`, or what the system says; then nothing is left behind.
    /// Metadata that is refused is among the problems.
    pub fn commit(self, meta: &Meta<'_>) -> Result<Restored, TargetError> {
        let path = self.temporary.directory.path_of(&self.name);
        // A hole at the end; written files have their size by then, and a file system has work with it even so.
        if self.end.load(Ordering::Acquire) < self.size {
            rustix::fs::ftruncate(&self.fd, self.size).map_err(|error| self.failed(error))?;
        }
        let (mut problems, status) = meta::apply(&Subject::Open(&self.fd), meta, &self.target.policy, &path)?;
        self.temporary.rename(&self.name, self.target)?;
        problems.extend(self.target.set_flags(&self.fd, meta, &path)?);
        Ok(Restored {
            problems,
            source: Some(LinkSource {
                path,
                identity: status.identity(),
            }),
        })
    }
}

impl ExistingFile {
    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.status.size
    }

    /// Returns what it was like when it was opened.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Makes it something that links may be made to.
    pub fn link_source(&self) -> LinkSource {
        LinkSource {
            path: self.path.clone(),
            identity: self.status.identity(),
        }
    }

    /// Returns the next stretch at or behind an offset that is no hole; `None` when there are only holes. Where the file
    /// system does not say, everything is one.
    ///
    /// # Errors
    /// As `lseek`.
    pub fn data_from(&self, offset: u64) -> Result<Option<Range<u64>>, TargetError> {
        let failed = |error| TargetError::new("reading", self.path.clone(), error);
        let start = match rustix::fs::seek(&self.fd, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Some(offset..u64::MAX)),
            Err(error) => return Err(failed(error)),
        };
        let end = rustix::fs::seek(&self.fd, SeekFrom::Hole(start)).map_err(failed)?;
        Ok(Some(start..end.max(start + 1)))
    }

    /// Reads at an offset until the buffer is full or the file ends; returns the number of bytes.
    ///
    /// # Errors
    /// As `pread`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, TargetError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match rustix::io::pread(&self.fd, &mut buffer[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(Errno::INTR) => {}
                Err(error) => return Err(TargetError::new("reading", self.path.clone(), error)),
            }
        }
        Ok(filled)
    }
}

fn make_node(directory: &OwnedFd, name: &str, kind: &EntryKind) -> Result<(), Errno> {
    let node = |kind, device| rustix::fs::mknodat(directory, name, kind, PRIVATE, device);
    let device = |major: &u64, minor: &u64| {
        let number = |part: &u64| u32::try_from(*part).map_err(|_| Errno::INVAL);
        Ok(rustix::fs::makedev(number(major)?, number(minor)?))
    };
    match kind {
        EntryKind::Symlink { target } => rustix::fs::symlinkat(&target[..], directory, name),
        EntryKind::Fifo => node(FileType::Fifo, 0),
        EntryKind::Socket => node(FileType::Socket, 0),
        EntryKind::CharDevice { major, minor } => node(FileType::CharacterDevice, device(major, minor)?),
        EntryKind::BlockDevice { major, minor } => node(FileType::BlockDevice, device(major, minor)?),
        EntryKind::Dir | EntryKind::File { .. } | EntryKind::Object { .. } | EntryKind::Stream { .. } => {
            Err(Errno::INVAL)
        }
    }
}

fn kind_of(kind: &EntryKind) -> FileKind {
    match kind {
        EntryKind::File { .. } | EntryKind::Object { .. } | EntryKind::Stream { .. } => FileKind::File,
        EntryKind::Dir => FileKind::Directory,
        EntryKind::Symlink { .. } => FileKind::Symlink,
        EntryKind::Fifo => FileKind::Fifo,
        EntryKind::Socket => FileKind::Socket,
        EntryKind::CharDevice { .. } => FileKind::CharDevice,
        EntryKind::BlockDevice { .. } => FileKind::BlockDevice,
    }
}
