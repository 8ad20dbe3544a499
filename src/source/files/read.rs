//! Reading what a walk found: content with its holes, extended attributes, flags; and whether it changed meanwhile.
//!
//! Regular files are opened without following links and without blocking, and must be the file that the walk saw.
//! Sockets, pipes, devices and links are never opened, only referred to (`O_PATH`). No source is ever mapped into
//! memory: it may shrink at any time.

use super::walk::{Found, PlaceName, StatKey};
use super::{ProblemKind, SourceError, SourceProblem};
use crate::edge::fs::directory::DIRECTORY_FLAGS;
use crate::edge::fs::xattr::Access;
use crate::edge::fs::{FileKind, Status, flags, open_quietly};
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::{Attributes, EntryKind, HardLink};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, OFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FILE_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOATIME)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// Values up to this size stand in the entry itself (format-spec chapter on entries).
const INLINE_VALUE_BYTES_MAX: usize = 4096;
/// All of them together must leave room in a leaf value of 64 KiB.
const INLINE_BYTES_MAX: usize = 32 << 10;
/// Files from here on are announced to the kernel as read from front to back.
const SEQUENTIAL_BYTES_MIN: u64 = 1 << 20;
/// Files from here on are read without staying in the page cache, except for what was there before.
const UNCACHED_BYTES_MIN: u64 = 8 << 20;
/// `RWF_DONTCACHE` (Linux 6.14): drops the pages that this read brought in, and only those. `POSIX_FADV_DONTNEED` would
/// drop also what others keep hot, and telling them apart by `mincore` needs a mapping.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// After an unreadable place, reading goes on at the next multiple of this.
const UNREADABLE_BYTES: u64 = 4096;

/// How long after an edit another one may leave the same times: on file systems of this machine a few clock ticks, on
/// others (FAT, network) up to two seconds.
const SETTLE_FINE: Duration = Duration::from_millis(40);
const SETTLE_COARSE: Duration = Duration::from_secs(2);

/// Returns how long to wait before reading a file, so that an edit after the read cannot leave the same times as before.
/// Times in the future count as just now: nothing better can be known, and the wait stays bounded.
///
/// Where times are fine, the change time alone decides: every edit sets it from the clock, and nobody else can set it, so
/// a modification time in the future costs nothing. A change time in whole seconds is what a file system writes that has no
/// room for more (ext4 with inodes of 128 bytes), whatever others of its kind do.
pub fn settle_wait(now: FileTime, mtime: FileTime, ctime: FileTime, has_fine_stamps: bool) -> Duration {
    let nanos = |time: FileTime| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let (window, newest) = match has_fine_stamps {
        true if ctime.nanos != 0 => (SETTLE_FINE, nanos(ctime)),
        true => (SETTLE_COARSE, nanos(ctime)),
        false => (SETTLE_COARSE, nanos(mtime).max(nanos(ctime))),
    };
    let age = u64::try_from((nanos(now) - newest).max(0)).map_or(Duration::MAX, Duration::from_nanos);
    if chaos!("times-are-not-settled") {
        return Duration::ZERO;
    }
    window.saturating_sub(age)
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes to be read; fewer than `len` come when the file shrinks.
    Data { len: u64 },
    /// Bytes that are zero and take no space.
    Hole { len: u64 },
}

/// Whether a file stayed what it was while it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recheck {
    Unchanged,
    Changed,
}

/// What only opening tells about an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Sorted by name, values up to 4096 bytes, 32 KiB together.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Larger values, and those beyond 32 KiB; to be stored out of line.
    pub large_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// See [`crate::edge::fs::flags::MEANINGFUL`]; `None` when there is none.
    pub flags: Option<u64>,
    /// What could not be read. The entry is stored all the same.
    pub problems: Vec<SourceProblem>,
}

impl Gathered {
    /// Puts what fits into an entry's attributes; what is to be stored out of line and the problems are left.
    pub fn put_into(&mut self, attributes: &mut Attributes) {
        attributes.xattrs = std::mem::take(&mut self.xattrs);
        attributes.flags = self.flags;
    }
}

impl Found {
    /// Returns the raw path below the root, joined by `/`; empty for the root itself.
    pub fn path(&self) -> Vec<u8> {
        let Some(end) = self.key.iter().rposition(|&byte| byte == 0) else {
            return self.key.clone();
        };
        let mut path: Vec<u8> = self.key[..end]
            .iter()
            .map(|&byte| if byte == 0 { b'/' } else { byte })
            .collect();
        path.extend_from_slice(&self.key[end + 1..]);
        path
    }

    /// Opens the content of a regular file, after waiting until its times are settled.
    ///
    /// # Errors
    /// `Vanished`, `Replaced` when something else stands there now, or `Open`.
    pub fn open(&self) -> Result<SourceFile, SourceError> {
        if !matches!(self.entry.kind, EntryKind::File { .. }) {
            return Err(self.failed(Errno::INVAL));
        }
        let fd = self.open_with(FILE_FLAGS)?;
        let mut status = self.verified(&fd)?;
        let wait = settle_wait(
            now(),
            status.mtime,
            status.ctime,
            self.place.directory.file_system().has_fine_stamps,
        );
        if !wait.is_zero() {
            std::thread::sleep(wait);
            status = self.verified(&fd)?;
        }
        if status.size >= SEQUENTIAL_BYTES_MIN {
            // A hint; not every file system takes it.
            let _ = rustix::fs::fadvise(&fd, 0, NonZeroU64::new(status.size), Advice::Sequential);
        }
        Ok(SourceFile {
            is_sparse: status.allocated < status.size,
            is_uncached: status.size >= UNCACHED_BYTES_MIN,
            end: status.size,
            path: self.path(),
            fd,
            status,
            position: 0,
            piece_end: 0,
        })
    }

    /// Reads extended attributes and flags of an entry of any type. Of a regular file that is opened anyway, ask the
    /// [`SourceFile`].
    ///
    /// # Errors
    /// `Vanished`, `Replaced` when something else stands there now, or `Open`. What is unreadable of an entry that can be
    /// opened is no error but among the problems.
    pub fn attributes(&self) -> Result<Gathered, SourceError> {
        let open_flags = match self.entry.kind {
            EntryKind::Dir => DIRECTORY_FLAGS,
            EntryKind::File { .. } => FILE_FLAGS,
            _ => OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        };
        let fd = match self.open_with(open_flags) {
            // Not readable, but its attributes may be.
            Err(SourceError::Open {
                error: Errno::ACCESS, ..
            }) => {
                let fd = self.open_with(OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
                self.verified(&fd)?;
                return Ok(gather(&Access::path(&fd), None::<&OwnedFd>, self.path()));
            }
            other => other?,
        };
        self.verified(&fd)?;
        Ok(match self.entry.kind {
            EntryKind::Dir | EntryKind::File { .. } => gather(&Access::open(&fd), Some(&fd), self.path()),
            _ => gather(&Access::path(&fd), None::<&OwnedFd>, self.path()),
        })
    }

    fn open_with(&self, flags: OFlags) -> Result<OwnedFd, SourceError> {
        let directory = self.place.directory.descriptor().map_err(|error| self.failed(error))?;
        let name = match &self.place.name {
            PlaceName::InKey(start) => &self.key[*start..],
            PlaceName::Root(name) => name,
            PlaceName::Itself => b".",
        };
        open_quietly(&*directory, name, flags).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: Errno) -> SourceError {
        let path = self.path();
        match error {
            Errno::NOENT => SourceError::Vanished { path },
            Errno::LOOP | Errno::NOTDIR | Errno::STALE | Errno::NXIO => SourceError::Replaced { path },
            error => SourceError::Open { path, error },
        }
    }

    /// Looks at what was opened, which must be what the walk saw.
    fn verified(&self, fd: &OwnedFd) -> Result<Status, SourceError> {
        let status = Status::of(fd).map_err(|error| self.failed(error))?;
        let is_kind = match status.kind {
            FileKind::File => matches!(self.entry.kind, EntryKind::File { .. }),
            FileKind::Directory => self.entry.kind == EntryKind::Dir,
            FileKind::Symlink => matches!(self.entry.kind, EntryKind::Symlink { .. }),
            FileKind::Fifo => self.entry.kind == EntryKind::Fifo,
            FileKind::Socket => self.entry.kind == EntryKind::Socket,
            FileKind::CharDevice => matches!(self.entry.kind, EntryKind::CharDevice { .. }),
            FileKind::BlockDevice => matches!(self.entry.kind, EntryKind::BlockDevice { .. }),
            FileKind::Unknown => false,
        };
        if is_kind && status.identity() == (self.stat.dev, self.stat.ino) {
            Ok(status)
        } else {
            Err(SourceError::Replaced { path: self.path() })
        }
    }
}

fn now() -> FileTime {
    // Before 1970 the clock is wrong; then everything counts as recent.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    FileTime {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

/// Reads attributes through one descriptor, and flags through another where that can be asked.
fn gather(access: &Access<'_>, flags_from: Option<impl AsFd>, path: Vec<u8>) -> Gathered {
    let mut gathered = Gathered::default();
    let problem = |error, attribute| SourceProblem {
        kind: ProblemKind::Metadata,
        path: path.clone(),
        error: Some(error),
        attribute,
    };
    let names = access.names().unwrap_or_else(|error| {
        gathered.problems.push(problem(error, None));
        Vec::new()
    });
    let mut inline_bytes = 0;
    for name in names {
        let value = match access.value(&name) {
            Ok(value) => value,
            // Removed since it was listed.
            Err(Errno::NODATA) => continue,
            Err(error) => {
                gathered.problems.push(problem(error, Some(name.into_bytes())));
                continue;
            }
        };
        let name = name.into_bytes();
        let bytes = name.len() + value.len() + 16;
        if value.len() <= INLINE_VALUE_BYTES_MAX && inline_bytes + bytes <= INLINE_BYTES_MAX {
            inline_bytes += bytes;
            gathered.xattrs.push((name, value));
        } else {
            gathered.large_xattrs.push((name, value));
        }
    }
    if let Some(fd) = flags_from {
        match flags::read(fd) {
            Ok(0) => {}
            Ok(flags) => gathered.flags = Some(flags.into()),
            Err(error) => gathered.problems.push(problem(error, None)),
        }
    }
    gathered
}

/// A regular file that is being read, front to back: ask for a piece, read it until it ends, ask for the next.
#[derive(Debug)]
pub struct SourceFile {
    fd: OwnedFd,
    path: Vec<u8>,
    /// As it was before the first byte was read.
    status: Status,
    position: u64,
    /// Where the present piece ends.
    piece_end: u64,
    /// Where reading ends: the size when it was opened, or less when it was seen to shrink.
    end: u64,
    is_sparse: bool,
    is_uncached: bool,
}

impl SourceFile {
    /// Returns what the file was like before the first byte was read; this is what belongs into the entry.
    pub fn stat(&self) -> StatKey {
        StatKey::from(&self.status)
    }

    /// Returns how many bytes will come, unless the file shrinks.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Brings a walk's finding up to date, because the file may have changed between the walk and its being opened.
    pub fn update(&self, found: &mut Found) {
        found.stat = self.stat();
        let entry = &mut found.entry;
        if let EntryKind::File { size, .. } = &mut entry.kind {
            *size = self.status.size;
        }
        (entry.mode, entry.uid, entry.gid) = (self.status.mode, self.status.uid, self.status.gid);
        (entry.mtime, entry.ctime) = (self.status.mtime, self.status.ctime);
        let hard_link = HardLink {
            device: self.status.device,
            links: self.status.links,
        };
        entry.attributes.hard_link = (self.status.links > 1).then_some(hard_link);
    }

    /// Goes to the next piece, skipping what is left of the present one; `None` at the end.
    ///
    /// # Errors
    /// As `lseek` and `fstat`.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, SourceError> {
        self.position = self.piece_end.min(self.end);
        if self.position >= self.end {
            return Ok(None);
        }
        if !self.is_sparse {
            self.piece_end = self.end;
            return Ok(Some(Piece::Data {
                len: self.end - self.position,
            }));
        }
        match rustix::fs::seek(&self.fd, SeekFrom::Data(self.position)) {
            Ok(data) if data > self.position => Ok(self.hole_until(data)),
            Ok(_) => {
                let hole = rustix::fs::seek(&self.fd, SeekFrom::Hole(self.position)).unwrap_or(self.end);
                // A piece of no length would never end.
                self.piece_end = if hole > self.position {
                    hole.min(self.end)
                } else {
                    self.end
                };
                Ok(Some(Piece::Data {
                    len: self.piece_end - self.position,
                }))
            }
            // No data from here to the end, wherever that is by now.
            Err(Errno::NXIO) => {
                let size = Status::of(&self.fd).map_err(|error| self.unreadable(error))?.size;
                self.end = self.end.min(size);
                Ok(self.hole_until(self.end))
            }
            // A file system that does not know.
            Err(_) => {
                self.is_sparse = false;
                self.next_piece()
            }
        }
    }

    /// Goes back to the first byte.
    pub fn rewind(&mut self) {
        self.position = 0;
        self.piece_end = 0;
    }

    fn hole_until(&mut self, end: u64) -> Option<Piece> {
        let start = self.position;
        self.piece_end = end.min(self.end).max(start);
        self.position = self.piece_end;
        (self.piece_end > start).then_some(Piece::Hole {
            len: self.piece_end - start,
        })
    }

    /// Reads on in the present piece; 0 at its end. The buffer is filled as far as the piece goes.
    ///
    /// # Errors
    /// `Read` with the offset that cannot be read; what comes before it was returned. See [`Self::skip_unreadable`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let left = usize::try_from(self.piece_end - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let mut filled = 0;
        while filled < wanted {
            match self.read_once(&mut buffer[filled..wanted]) {
                Ok(0) => {
                    // The file has shrunk. What it had is all there is; the recheck tells that it changed.
                    self.end = self.position;
                    self.piece_end = self.position;
                    break;
                }
                Ok(length) => {
                    filled += length;
                    self.position += length as u64;
                }
                Err(Errno::INTR) => {}
                // The next call meets the error again and reports it.
                Err(_) if filled > 0 => break,
                Err(error) => return Err(self.unreadable(error)),
            }
        }
        Ok(filled)
    }

    fn read_once(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        if self.is_uncached {
            match rustix::io::preadv2(&self.fd, &mut [IoSliceMut::new(buffer)], self.position, DONT_CACHE) {
                // The kernel, or this file system, does not have it.
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.is_uncached = false,
                other => return other,
            }
        }
        rustix::io::pread(&self.fd, buffer, self.position)
    }

    fn unreadable(&self, error: Errno) -> SourceError {
        SourceError::Read {
            path: self.path.clone(),
            offset: self.position,
            error,
        }
    }

    /// After a read error, goes on behind the block that cannot be read, within the present piece. Returns how many bytes
    /// that leaves out; they count as bytes of the file and are to be stored as zeros, and the entry as incomplete.
    pub fn skip_unreadable(&mut self) -> u64 {
        let block_end = (self.position / UNREADABLE_BYTES + 1).saturating_mul(UNREADABLE_BYTES);
        let skipped = block_end.min(self.piece_end) - self.position;
        self.position += skipped;
        skipped
    }

    /// Reads extended attributes and flags.
    pub fn attributes(&self) -> Gathered {
        gather(&Access::open(&self.fd), Some(&self.fd), self.path.clone())
    }

    /// Looks whether size and times are still those from before the first byte was read. A file that grew counts as
    /// changed, although only its bytes up to the first size were read.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn recheck(&self) -> Result<Recheck, SourceError> {
        let status = Status::of(&self.fd).map_err(|error| self.unreadable(error))?;
        let told = |status: &Status| (status.size, status.mtime, status.ctime);
        let is_same = told(&status) == told(&self.status) && self.end == self.status.size;
        Ok(if is_same || chaos!("changes-while-reading-are-missed") {
            Recheck::Unchanged
        } else {
            Recheck::Changed
        })
    }
}
