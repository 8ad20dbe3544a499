//! A repository in a directory: names as paths, create-if-absent by `link(2)`, durable when it returns
//! (format-spec, "Local-directory mapping").
//!
//! An object is written under `tmp/`, synced, linked to its name (which fails if the name is taken), and the directory is
//! synced. So a name never shows anything but whole, durable content, whatever is killed and whenever the power goes.

use super::{
    Abilities, Created, Failure, Listed, Part, Prefix, Stat, Store, StoreError, StoreKey, probe_key, random_name,
    refuse_empty, too_large,
};
use crate::pure::base::Timestamp;
use bytes::Bytes;
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, AtFlags, CWD, Dir, FallocateFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags};
use rustix::io::{Errno, retry_on_intr};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Directories that every repository has. `config` doubles as the mark that the repository is there (and mounted).
const DIRECTORIES: [&str; 11] = [
    "data", "meta", "idx", "sess", "snap", "gc", "drop", "hold", "keys", "grants", "tmp",
];
const MARK: &str = "config";
/// What else a repository's directory may hold: made later, or by mkfs.
const TOLERATED: [&str; 3] = ["attest", "par", "lost+found"];

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);

/// From this size on, space is allocated before writing, so that a full disk shows before any byte is written.
const ALLOCATE_BYTES_MIN: usize = 1 << 20;
/// From this size on, a pack's pages are dropped from the page cache once durable: nobody reads them soon.
const DROP_CACHE_BYTES_MIN: usize = 4 << 20;
/// Larger files are written in pieces of this size, and the kernel is told after each that it is not needed in the cache,
/// which sets it writing at once instead of only when we wait for it. 32 MiB files on ext4, two busy cores: 120–280 MB/s
/// without, 770–1400 MB/s with it (as much as `sync_file_range` gives).
const WRITE_PIECE_BYTES: usize = 8 << 20;
/// Below `tmp/`: room for the few small objects that freeing space takes. Given up when the disk is full.
const RESERVE: &str = "tmp/reserve";
/// Enough to condemn twenty thousand packs.
const RESERVE_BYTES_MAX: u64 = 1 << 20;
/// Enough for the dozen small objects of forgetting and pruning, a block each, and as many directories that grow.
const RESERVE_BYTES_MIN: u64 = 128 << 10;
/// At most one of this many bytes that are free is taken for it.
const RESERVE_SHARE: u64 = 16;
/// Files under `tmp/` older than this belong to nobody.
const TMP_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Reading a file whole is limited to what an object can be (format-spec, "Limits").
const OBJECT_BYTES_MAX: u64 = 4 << 30;

/// How often a place that the disk cannot read is tried (I-8): drives and RAIDs often come round.
const READS_MAX: u32 = 3;
const BAD_DISK_HINT: &str =
    "the disk reports an error: look at the kernel's log, and copy the repository to another disk soon";

/// A repository in a directory. Making one touches nothing: a directory that is not there shows as
/// `Failure::Unreachable` with the first call.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    conditional: AtomicBool,
}

impl LocalStore {
    /// Names a directory. `conditional`: refuse to write where the file system can create neither by link nor by
    /// exclusive rename (else: look, then rename; safe only with a single writer per name, see "Stores without
    /// create-if-absent").
    pub fn new(root: impl Into<PathBuf>, conditional: bool) -> LocalStore {
        LocalStore {
            root: root.into(),
            conditional: AtomicBool::new(conditional),
        }
    }

    /// Removes files under `tmp/` that were last written more than 24 hours ago by the file system's own clock, and
    /// returns how many.
    fn sweep_tmp(&self) -> Result<u64, StoreError> {
        let tmp = self.root.join("tmp");
        let probe = tmp.join(random_name()?);
        let now = {
            let file = open_new(&probe).map_err(|errno| self.failed("writing", "tmp", errno))?;
            let stat = rustix::fs::fstat(&file);
            let _ = rustix::fs::unlink(&probe);
            modified(&stat.map_err(|errno| self.failed("reading", "tmp", errno))?)
        };
        let mut removed = 0;
        for entry in read_directory(&tmp).map_err(|errno| self.failed("listing", "tmp", errno))? {
            let path = tmp.join(OsStr::from_bytes(&entry.name));
            // Somebody else may sweep at the same time.
            let Ok(stat) = rustix::fs::lstat(&path) else { continue };
            let age = i128::from(now.0) - i128::from(modified(&stat).0);
            let is_file =
                FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && path != self.root.join(RESERVE);
            if is_file && age > TMP_AGE_MAX.as_nanos() as i128 && rustix::fs::unlink(&path).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Keeps some room for when the disk is full, unless it nearly is; less of it on a small disk. It may fail: nothing but comfort
    /// depends on it.
    fn keep_reserve(&self) {
        let path = self.root.join(RESERVE);
        // Blocks of 512 bytes: the file is empty, and its space is taken all the same.
        let size = rustix::fs::lstat(&path).map_or(0, |stat| stat.st_blocks.cast_unsigned().saturating_mul(512));
        let free = rustix::fs::statvfs(&self.root).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        let wanted = (free.saturating_add(size) / RESERVE_SHARE).min(RESERVE_BYTES_MAX);
        if size >= wanted || wanted < RESERVE_BYTES_MIN {
            return;
        }
        let _ = rustix::fs::unlink(&path);
        let Ok(file) = open_new(&path) else { return };
        let reserved = retry_on_intr(|| rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, wanted));
        if reserved.is_err() {
            let _ = rustix::fs::unlink(&path);
        }
    }

    fn is_conditional(&self) -> bool {
        self.conditional.load(Ordering::Acquire)
    }

    fn path(&self, key: &StoreKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Whether the repository is there at all: not so when its disk is not mounted.
    fn is_there(&self) -> bool {
        rustix::fs::stat(self.root.join(MARK))
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn unreachable(&self, what: &'static str) -> StoreError {
        StoreError::new(what, self.location(), Failure::Unreachable)
            .with_hint("there is no repository; is the disk or share mounted?")
    }

    /// Turns an error number into a store error.
    fn failed(&self, what: &'static str, object: impl ToString, errno: Errno) -> StoreError {
        let (class, hint) = match errno {
            // A missing file means a missing object only where the repository is there.
            Errno::NOENT | Errno::NOTDIR if self.is_there() => (Failure::NotFound, None),
            Errno::NOENT | Errno::NOTDIR => return self.unreachable(what).caused_by(std::io::Error::from(errno)),
            Errno::NOSPC => (
                Failure::Full,
                Some("the repository's disk is full (space or inodes): make room, or prune the repository"),
            ),
            Errno::DQUOT => (Failure::Full, Some("the quota of the repository's disk is used up")),
            Errno::FBIG => (
                Failure::Full,
                Some("the file is too large for the file system or for this process (ulimit -f)"),
            ),
            Errno::ROFS => (
                Failure::ReadOnly,
                Some("the repository's file system is mounted read-only"),
            ),
            Errno::ACCESS | Errno::PERM => (
                Failure::Denied,
                Some("this user may not do that in the repository's directory: check owner and mode"),
            ),
            // A share that went away and may come back.
            Errno::STALE | Errno::AGAIN | Errno::TIMEDOUT | Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
                (Failure::Transient, None)
            }
            Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::NOTCONN
            | Errno::NODEV => (Failure::Unreachable, Some("is the disk or share still mounted?")),
            // A failing disk, if it is still there at all.
            _ if says_unreadable(errno) && what == "reading" && self.is_there() => {
                (Failure::Unreadable, Some(BAD_DISK_HINT))
            }
            Errno::IO => (Failure::Permanent, Some(BAD_DISK_HINT)),
            _ => (Failure::Permanent, None),
        };
        let error = StoreError::new(what, object, class).caused_by(std::io::Error::from(errno));
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Makes the directories above `path` that are missing, durable, but never the root.
    fn make_parents(&self, path: &Path) -> Result<(), Errno> {
        let Some(parent) = path
            .parent()
            .filter(|parent| parent.starts_with(&self.root) && *parent != self.root)
        else {
            return Ok(());
        };
        match rustix::fs::mkdir(parent, DIRECTORY_MODE) {
            Ok(()) => {}
            // Made by somebody else a moment ago perhaps: it may not be durable yet, so its parent is synced all the same.
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => {
                self.make_parents(parent)?;
                match rustix::fs::mkdir(parent, DIRECTORY_MODE) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
        parent.parent().map_or(Ok(()), sync_directory)
    }

    /// Writes a new file under `tmp/`, durable. Nothing is left behind by a failure.
    fn write_tmp(&self, tmp: &Path, key: &StoreKey, body: &[u8]) -> Result<OwnedFd, Errno> {
        let file = match open_new(tmp) {
            Err(Errno::NOENT) if self.is_there() => {
                self.make_parents(tmp)?;
                open_new(tmp)?
            }
            other => other?,
        };
        let written = write_durably(&file, body);
        match written {
            Ok(()) => {
                // Only packs: runs and outcomes are read again soon.
                if body.len() >= DROP_CACHE_BYTES_MIN && key.as_str().starts_with("data/") {
                    let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
                }
                Ok(file)
            }
            Err(errno) => {
                let _ = rustix::fs::unlink(tmp);
                Err(errno)
            }
        }
    }

    /// Gives the written file its name. The file under `tmp/` may be left; the caller removes it.
    fn give_name(&self, file: &OwnedFd, tmp: &Path, path: &Path) -> Result<Created, Errno> {
        let name = || match link(file, tmp, path) {
            // What file systems without hard links say.
            Err(
                errno @ (Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK | Errno::INVAL | Errno::ACCESS),
            ) => self.rename_to_name(tmp, path, errno),
            other => other,
        };
        match name() {
            Err(Errno::NOENT) if self.is_there() => {
                self.make_parents(path)?;
                name()
            }
            other => other,
        }
    }

    fn rename_to_name(&self, tmp: &Path, path: &Path, link_errno: Errno) -> Result<Created, Errno> {
        match rustix::fs::renameat_with(CWD, tmp, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Created::New),
            Err(Errno::EXIST) => Ok(Created::Exists),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !self.is_conditional() => {
                match rustix::fs::lstat(path) {
                    Ok(_) => Ok(Created::Exists),
                    Err(Errno::NOENT) => rustix::fs::rename(tmp, path).map(|()| Created::New),
                    Err(errno) => Err(errno),
                }
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Err(link_errno),
            Err(errno) => Err(errno),
        }
    }

    fn open(&self, key: &StoreKey) -> Result<(OwnedFd, u64, Timestamp), StoreError> {
        let failed = |errno| self.failed("reading", key, errno);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = retry_on_intr(|| rustix::fs::open(self.path(key), flags, Mode::empty())).map_err(failed)?;
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StoreError::new("reading", key, Failure::Protocol).caused_by("not a regular file"));
        }
        Ok((file, u64::try_from(stat.st_size).unwrap_or(0), modified(&stat)))
    }

    fn read_exactly(&self, file: &OwnedFd, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let mut done = 0;
        while done < buffer.len() {
            match read_patiently(|| rustix::io::pread(file, &mut buffer[done..], offset + done as u64)) {
                Ok(0) => {
                    return Err(StoreError::new("reading", key, Failure::Protocol).caused_by("the file ends too early"));
                }
                Ok(count) => done += count,
                Err(errno) => return Err(self.failed("reading", key, errno)),
            }
        }
        Ok(())
    }

    /// Delivers the keys below a directory that start with `prefix` and come after `after`, ascending.
    fn list_directory(
        &self,
        directory: &str,
        prefix: &str,
        after: Option<&str>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        let failed = |errno| self.failed("listing", if directory.is_empty() { "/" } else { directory }, errno);
        let path = self.root.join(directory);
        let mut entries = match read_directory(&path) {
            Ok(entries) => entries,
            // Removed with its last object, or never made.
            Err(Errno::NOENT | Errno::NOTDIR) if self.is_there() => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        // A directory's keys go on with a slash, which sorts after `-` and `.` but before digits: "a-b" < "a/b" < "a0".
        for entry in &mut entries {
            if entry.file_type == FileType::Unknown
                && let Ok(stat) = rustix::fs::lstat(path.join(OsStr::from_bytes(&entry.name)))
            {
                entry.file_type = FileType::from_raw_mode(stat.st_mode);
            }
            if entry.file_type == FileType::Directory {
                entry.name.push(b'/');
            }
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let Ok(name) = std::str::from_utf8(&entry.name) else {
                continue;
            };
            let is_directory = entry.file_type == FileType::Directory;
            let text = if directory.is_empty() {
                name.to_string()
            } else {
                format!("{directory}/{name}")
            };
            if is_directory {
                let related = text.starts_with(prefix) || prefix.starts_with(text.as_str());
                let before = after.is_some_and(|after| text.as_str() < after && !after.starts_with(text.as_str()));
                let hidden = text == "tmp/" && !prefix.starts_with("tmp");
                let valid = StoreKey::new(text.trim_end_matches('/')).is_some();
                if related && !before && !hidden && valid {
                    self.list_directory(text.trim_end_matches('/'), prefix, after, each)?;
                }
                continue;
            }
            if !text.starts_with(prefix) || after.is_some_and(|after| text.as_str() <= after) {
                continue;
            }
            // Only regular files under names that we could have given are objects.
            let Some(key) = StoreKey::new(text) else { continue };
            if entry.file_type != FileType::RegularFile {
                continue;
            }
            match rustix::fs::lstat(self.path(&key)) {
                Ok(stat) => each(Listed {
                    key,
                    size: u64::try_from(stat.st_size).unwrap_or(0),
                    modified: Some(modified(&stat)),
                }),
                // Removed while we were listing.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }
}

impl Store for LocalStore {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        refuse_empty(key, &body)?;
        let failed = |errno| self.failed("writing", key, errno);
        let path = self.path(key);
        let tmp = self.root.join("tmp").join(random_name()?);
        let file = self.write_tmp(&tmp, key, &body).map_err(|errno| match errno {
            Errno::NOSPC | Errno::DQUOT => {
                let error = failed(errno);
                let hint = error.hint.clone().unwrap_or_default();
                error.with_hint(format!("{hint} ({} bytes were to be written)", body.len()))
            }
            errno => failed(errno),
        })?;
        let named = self.give_name(&file, &tmp, &path);
        let created = named.and_then(|created| {
            if created == Created::New {
                // Unless the directory is durable the name is not. A file whose name may vanish must not be believed in:
                // it is taken away again and the caller writes anew.
                path.parent().map_or(Ok(()), sync_directory).inspect_err(|_| {
                    let _ = rustix::fs::unlink(&path);
                })?;
            }
            Ok(created)
        });
        // Gone already after a rename; after a link this leaves one name. If it fails the sweep removes it.
        let _ = rustix::fs::unlink(&tmp);
        created.map_err(|errno| match errno {
            Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL if self.is_there() => failed(errno).with_hint(
                "this file system can create files neither by link nor by exclusive rename; \
                     make the repository anew here, then larder does without, or use another place",
            ),
            errno => failed(errno),
        })
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        let (file, size, _) = self.open(key)?;
        let (offset, length) = match part {
            Part::AtMost(limit) if size > limit => return Err(too_large(key, size)),
            Part::Whole | Part::AtMost(_) => (0, size),
            Part::Suffix(length) => (size - length.min(size), length.min(size)),
            Part::Range(range) if range.start <= range.end && range.end <= size => {
                (range.start, range.end - range.start)
            }
            Part::Range(_) => {
                return Err(StoreError::new("reading", key, Failure::NotFound)
                    .caused_by(format!("the range lies outside of the {size} bytes there are")));
            }
        };
        if length > OBJECT_BYTES_MAX {
            return Err(StoreError::new("reading", key, Failure::Protocol).caused_by("too large to be an object"));
        }
        let length = usize::try_from(length)
            .map_err(|_| StoreError::new("reading", key, Failure::Permanent).caused_by("too large for this machine"))?;
        let mut buffer = Vec::with_capacity(length);
        while buffer.len() < length {
            let at = offset + buffer.len() as u64;
            let count = read_patiently(|| rustix::io::pread(&file, rustix::buffer::spare_capacity(&mut buffer), at))
                .map_err(|errno| self.failed("reading", key, errno))?;
            if count == 0 {
                return Err(StoreError::new("reading", key, Failure::Protocol).caused_by("the file ends too early"));
            }
        }
        // The allocator may have given more room than was asked for, and the file may have grown into it.
        buffer.truncate(length);
        Ok(Bytes::from(buffer))
    }

    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let (file, size, _) = self.open(key)?;
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > size) {
            return Err(StoreError::new("reading", key, Failure::NotFound)
                .caused_by(format!("the range lies outside of the {size} bytes there are")));
        }
        self.read_exactly(&file, key, offset, buffer)
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.list_after(prefix, None, each)
    }

    fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        if !self.is_there() {
            return Err(self.unreachable("listing"));
        }
        let directory = prefix.as_str().rsplit_once('/').map_or("", |(directory, _)| directory);
        self.list_directory(directory, prefix.as_str(), after.map(StoreKey::as_str), each)
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        let (_, size, modified) = self.open(key)?;
        Ok(Stat {
            size,
            modified: Some(modified),
        })
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        let mut directories = std::collections::BTreeSet::new();
        for key in keys {
            let path = self.path(key);
            match rustix::fs::unlink(&path) {
                Ok(()) => {
                    directories.extend(path.parent().map(Path::to_path_buf));
                }
                Err(Errno::NOENT | Errno::NOTDIR) if self.is_there() => {}
                Err(errno) => return Err(self.failed("deleting", key, errno)),
            }
        }
        for directory in directories {
            match sync_directory(&directory) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.failed("deleting", directory.display(), errno)),
            }
        }
        Ok(())
    }

    fn put_back(&self, key: &StoreKey, body: Bytes) -> Result<(), StoreError> {
        refuse_empty(key, &body)?;
        let failed = |errno| self.failed("putting back", key, errno);
        let path = self.path(key);
        let tmp = self.root.join("tmp").join(random_name()?);
        self.write_tmp(&tmp, key, &body).map_err(failed)?;
        // Over what is there: whoever has that open goes on reading it.
        let named = match rustix::fs::rename(&tmp, &path) {
            Err(Errno::NOENT) if self.is_there() => {
                self.make_parents(&path).and_then(|()| rustix::fs::rename(&tmp, &path))
            }
            other => other,
        };
        let durable = named.and_then(|()| path.parent().map_or(Ok(()), sync_directory));
        durable.map_err(|errno| {
            let _ = rustix::fs::unlink(&tmp);
            failed(errno)
        })
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let failed = |errno| match errno {
            Errno::NOENT => StoreError::new("connecting to", self.location(), Failure::Unreachable)
                .with_hint("the directory above it does not exist; is the disk or share mounted?"),
            errno => self.failed("writing", self.location(), errno),
        };
        match rustix::fs::mkdir(&self.root, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            // Where nothing may be made, the directory may still be there.
            Err(Errno::ROFS | Errno::ACCESS) if rustix::fs::stat(&self.root).is_ok() => {}
            Err(errno) => return Err(failed(errno)),
        }
        let above = match self.root.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => Path::new("/"),
        };
        // The directory above may belong to somebody else, and then the root was made long ago.
        match sync_directory(above) {
            Ok(()) | Err(Errno::ACCESS | Errno::PERM) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let entries = read_directory(&self.root).map_err(|errno| match errno {
            Errno::NOTDIR => StoreError::new("connecting to", self.location(), Failure::Permanent)
                .with_hint("this is not a directory"),
            errno => failed(errno),
        })?;
        // An interrupted `prepare` is taken up again, anything else is somebody's.
        let known = |name: &[u8]| {
            DIRECTORIES
                .iter()
                .chain(&TOLERATED)
                .chain([&MARK])
                .any(|directory| directory.as_bytes() == name)
        };
        if let Some(foreign) = entries.iter().find(|entry| !known(&entry.name)) {
            let name = String::from_utf8_lossy(&foreign.name).into_owned();
            return Err(
                StoreError::new("connecting to", self.location(), Failure::Permanent).with_hint(format!(
                    "the directory is neither empty nor a repository (it holds {name:?}); choose an empty or new one"
                )),
            );
        }
        let make = |path: &Path| match rustix::fs::mkdir(path, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        };
        for directory in DIRECTORIES {
            make(&self.root.join(directory)).map_err(failed)?;
        }
        for kind in ["data", "meta"] {
            let directory = self.root.join(kind);
            for number in 0..=255u8 {
                make(&directory.join(format!("{number:02x}"))).map_err(failed)?;
            }
            sync_directory(&directory).map_err(failed)?;
        }
        // The mark comes last: before it there is no repository.
        sync_directory(&self.root).map_err(failed)?;
        make(&self.root.join(MARK)).map_err(failed)?;
        sync_directory(&self.root).map_err(failed)?;
        self.keep_reserve();
        Ok(())
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        let key = probe_key()?;
        let body = Bytes::from_static(b"probe");
        // Not strict: a file system that creates neither by link nor by exclusive rename is to be found out, not refused.
        let lenient = LocalStore::new(&self.root, false);
        let twice = lenient
            .create(&key, body.clone())
            .and_then(|first| Ok((first, lenient.create(&key, body.clone())?)));
        let mut listed = false;
        let prefix = Prefix::new(key.as_str()).expect("a key is a prefix");
        let listing = self.list(&prefix, &mut |row| {
            listed |= row.key == key && row.size == body.len() as u64
        });
        self.remove(&[key])?;
        listing?;
        // Without exclusive creation the second one still sees the first; what counts is how it is done.
        let conditional_create = twice? == (Created::New, Created::Exists) && self.can_link()?;
        Ok(Abilities {
            conditional_create,
            verifies_checksums: false,
            strong_listing: listed,
        })
    }

    fn sweep(&self) -> Result<u64, StoreError> {
        self.keep_reserve();
        self.sweep_tmp()
    }

    fn give_up_reserve(&self) -> bool {
        rustix::fs::unlink(self.root.join(RESERVE)).is_ok()
    }

    fn set_conditional(&self, conditional: bool) {
        self.conditional.store(conditional, Ordering::Release);
    }

    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn is_local(&self) -> bool {
        true
    }
}

impl LocalStore {
    /// Whether the file system creates by link or by exclusive rename.
    fn can_link(&self) -> Result<bool, StoreError> {
        let strict = LocalStore::new(&self.root, true);
        let key = probe_key()?;
        let created = strict.create(&key, Bytes::from_static(b"probe"));
        strict.remove(&[key])?;
        match created {
            Ok(created) => Ok(created == Created::New),
            Err(error) if matches!(error.class, Failure::Permanent | Failure::Denied) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether an error number says that the bytes at one place cannot be had: bad sectors, checksums of the file system (btrfs,
/// ZFS, dm-integrity) that do not fit.
fn says_unreadable(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::IO | Errno::UCLEAN | Errno::BADMSG | Errno::ILSEQ | Errno::NODATA
    )
}

/// Reads, and reads again where the disk cannot.
fn read_patiently(mut read: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    let mut attempt = 1;
    loop {
        match retry_on_intr(&mut read) {
            Err(errno) if says_unreadable(errno) && attempt < READS_MAX => attempt += 1,
            other => return other,
        }
    }
}

/// One name in a directory.
struct Entry {
    name: Vec<u8>,
    file_type: FileType,
}

/// Reads a directory's names afresh (network file systems cache what an open directory shows).
fn read_directory(path: &Path) -> Result<Vec<Entry>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?;
    let mut entries = Vec::new();
    for entry in Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push(Entry {
                name: name.to_vec(),
                file_type: entry.file_type(),
            });
        }
    }
    Ok(entries)
}

fn modified(stat: &rustix::fs::Stat) -> Timestamp {
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Timestamp(stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanos))
}

fn open_new(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    retry_on_intr(|| rustix::fs::open(path, flags, FILE_MODE))
}

fn write_durably(file: &OwnedFd, body: &[u8]) -> Result<(), Errno> {
    if body.len() >= ALLOCATE_BYTES_MIN {
        let length = body.len() as u64;
        match retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length)) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut done = 0;
    for piece in body.chunks(WRITE_PIECE_BYTES) {
        let mut rest = piece;
        while !rest.is_empty() {
            let count = retry_on_intr(|| rustix::io::write(file, rest))?;
            if count == 0 {
                return Err(Errno::IO);
            }
            rest = &rest[count..];
        }
        if body.len() > WRITE_PIECE_BYTES {
            let length = std::num::NonZeroU64::new(piece.len() as u64);
            let _ = rustix::fs::fadvise(file, done, length, Advice::DontNeed);
        }
        done += piece.len() as u64;
    }
    // A failed sync is not tried again: the pages it lost are clean now, and a second sync would say that all is well.
    if chaos!("files-are-not-synced") {
        return Ok(());
    }
    rustix::fs::fdatasync(file)
}

/// Syncs a directory. Some network and FUSE file systems cannot and say so; there nothing is lost by going on.
fn sync_directory(path: &Path) -> Result<(), Errno> {
    if chaos!("directories-are-not-synced") {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?;
    match retry_on_intr(|| rustix::fs::fsync(&directory)) {
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF) => Ok(()),
        other => other,
    }
}

/// Links, and finds out who won when the answer cannot be trusted: over NFS a repeated request is answered EEXIST although
/// the first one did it. Then the file has two names.
fn link(file: &OwnedFd, tmp: &Path, path: &Path) -> Result<Created, Errno> {
    if chaos!("names-are-overwritten") {
        return rustix::fs::rename(tmp, path).map(|()| Created::New);
    }
    match rustix::fs::link(tmp, path) {
        Ok(()) => Ok(Created::New),
        Err(errno) => {
            let links = match rustix::fs::statx(
                file,
                "",
                AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC,
                StatxFlags::NLINK,
            ) {
                Ok(stat) => u64::from(stat.stx_nlink),
                Err(_) => rustix::fs::fstat(file).map_or(0, |stat| stat.st_nlink),
            };
            match errno {
                _ if links == 2 => Ok(Created::New),
                Errno::EXIST => Ok(Created::Exists),
                errno => Err(errno),
            }
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::edge::store::contract;
    use crate::pure::base::{Explain, Kind};
    use rustix::fs::{Timespec, Timestamps};

    fn store() -> (tempfile::TempDir, LocalStore) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = LocalStore::new(directory.path().join("repo"), true);
        store.prepare().expect("preparing");
        (directory, store)
    }

    fn key(text: &str) -> StoreKey {
        StoreKey::new(text).expect("a key")
    }

    fn create(store: &LocalStore, text: &str, body: &[u8]) {
        assert_eq!(
            store
                .create(&key(text), Bytes::copy_from_slice(body))
                .expect("creating"),
            Created::New
        );
    }

    #[test]
    fn keeps_the_store_contract() {
        let (_directory, store) = store();
        contract::check(&store, &contract::Options::default());
    }

    #[test]
    fn what_is_put_back_takes_the_place_of_what_is_there_or_not() {
        let (directory, store) = store();
        create(&store, "snap/00", b"damaged");
        for name in ["snap/00", "par/data/00/00-00"] {
            store
                .put_back(&key(name), Bytes::from_static(b"as it was"))
                .expect("putting back");
            assert_eq!(&store.read(&key(name), Part::Whole).expect("reading")[..], b"as it was");
        }
        assert!(store.put_back(&key("snap/00"), Bytes::new()).is_err());
        let left = std::fs::read_dir(directory.path().join("repo/tmp")).expect("listing");
        let mut left = left.map(|entry| entry.expect("listing").file_name());
        assert!(left.all(|name| name == "reserve"), "nothing is left behind");
    }

    #[test]
    fn a_place_without_a_repository_is_unreachable_and_stays_untouched() {
        let directory = tempfile::tempdir().expect("a directory");
        for root in [directory.path().join("absent"), directory.path().to_path_buf()] {
            let store = LocalStore::new(&root, true);
            let snap = key("snap/00");
            let everything = Prefix::new("").expect("a prefix");
            let errors = [
                store.create(&snap, Bytes::from_static(b"x")).map(|_| ()),
                store.read(&snap, Part::Whole).map(|_| ()),
                store.stat(&snap).map(|_| ()),
                store.list(&everything, &mut |_| {}),
                store.remove(std::slice::from_ref(&snap)),
                store.put_back(&snap, Bytes::from_static(b"x")),
            ];
            for error in errors {
                let error = error.expect_err("no repository");
                assert_eq!(error.class, Failure::Unreachable, "{error}");
                assert!(error.hint.is_some_and(|hint| hint.contains("mounted")));
            }
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("listing").count(), 0);
    }

    #[test]
    fn preparing_takes_an_empty_or_half_prepared_directory_and_refuses_any_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = LocalStore::new(directory.path(), true);
        store.prepare().expect("an empty directory");
        std::fs::remove_dir(directory.path().join("config")).expect("removing");
        std::fs::remove_dir(directory.path().join("data/7f")).expect("removing");
        store.prepare().expect("half prepared");
        assert_eq!(
            std::fs::read_dir(directory.path().join("data"))
                .expect("listing")
                .count(),
            256
        );

        let other = tempfile::tempdir().expect("a directory");
        std::fs::write(other.path().join("holiday.jpg"), b"x").expect("writing");
        let error = LocalStore::new(other.path(), true)
            .prepare()
            .expect_err("somebody's directory");
        assert_eq!(error.class, Failure::Permanent);
        assert!(error.hint.expect("a hint").contains("holiday.jpg"));
        assert_eq!(std::fs::read_dir(other.path()).expect("listing").count(), 1);

        let error = LocalStore::new(other.path().join("a/b"), true)
            .prepare()
            .expect_err("nothing above");
        assert_eq!(error.class, Failure::Unreachable);
    }

    #[test]
    fn files_and_directories_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let (directory, store) = store();
        create(&store, "sess/00/0000", b"x");
        let mode = |path: &str| {
            std::fs::metadata(directory.path().join(path))
                .expect("there")
                .permissions()
                .mode()
                & 0o7777
        };
        for path in ["repo", "repo/data", "repo/data/00", "repo/sess/00"] {
            assert_eq!(mode(path), 0o700, "{path}");
        }
        assert_eq!(mode("repo/sess/00/0000"), 0o600);
    }

    #[test]
    fn nothing_is_left_under_tmp() {
        let (directory, store) = store();
        create(&store, "snap/00", b"x");
        assert_eq!(
            store
                .create(&key("snap/00"), Bytes::from_static(b"y"))
                .expect("creating"),
            Created::Exists
        );
        store.probe().expect("probing");
        assert_eq!(in_tmp(&directory), ["reserve"]);
    }

    fn in_tmp(directory: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(directory.path().join("repo/tmp")).expect("listing");
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<String> = entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn room_is_kept_given_up_once_and_made_again() {
        let (directory, store) = store();
        let reserve = directory.path().join("repo").join(RESERVE);
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&reserve).expect("the reserve"));
        assert!(blocks() * 512 >= RESERVE_BYTES_MAX, "{}", blocks());
        assert!(store.give_up_reserve() && !reserve.exists());
        assert!(!store.give_up_reserve());
        store.sweep().expect("sweeping");
        assert!(blocks() * 512 >= RESERVE_BYTES_MAX, "{}", blocks());
        let mut listed = 0;
        store
            .list(&Prefix::new("").expect("a prefix"), &mut |_| listed += 1)
            .expect("listing");
        assert_eq!(listed, 0, "it is no object");
    }

    #[test]
    fn listing_sorts_whole_keys_and_skips_what_is_no_object() {
        let (directory, store) = store();
        for text in ["idx/a/x", "idx/a-b", "idx/a0", "idx/a.b"] {
            create(&store, text, b"x");
        }
        let root = directory.path().join("repo");
        std::fs::write(root.join("idx/.DS Store"), b"x").expect("writing");
        std::fs::write(root.join("tmp/0123"), b"x").expect("writing");
        std::os::unix::fs::symlink("a0", root.join("idx/link")).expect("linking");
        std::fs::create_dir(root.join("lost+found")).expect("making");
        let mut keys = Vec::new();
        store
            .list(&Prefix::new("").expect("a prefix"), &mut |row| {
                keys.push(row.key.to_string())
            })
            .expect("listing");
        assert_eq!(keys, ["idx/a-b", "idx/a.b", "idx/a/x", "idx/a0"]);
        keys.clear();
        let after = key("idx/a.b");
        store
            .list_after(&Prefix::new("idx/a").expect("a prefix"), Some(&after), &mut |row| {
                keys.push(row.key.to_string())
            })
            .expect("listing");
        assert_eq!(keys, ["idx/a/x", "idx/a0"]);
    }

    #[test]
    fn a_link_is_not_followed_out_of_the_repository() {
        let (directory, store) = store();
        std::fs::write(directory.path().join("outside"), b"secret").expect("writing");
        std::os::unix::fs::symlink(directory.path().join("outside"), directory.path().join("repo/snap/00"))
            .expect("linking");
        assert!(store.read(&key("snap/00"), Part::Whole).is_err());
    }

    #[test]
    fn only_old_files_are_swept() {
        let (directory, store) = store();
        let tmp = directory.path().join("repo/tmp");
        std::fs::write(tmp.join("old"), b"x").expect("writing");
        std::fs::write(tmp.join("new"), b"x").expect("writing");
        let long_ago = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec - 25 * 3600;
        let time = Timespec {
            tv_sec: long_ago,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        for name in ["old", "reserve"] {
            rustix::fs::utimensat(CWD, tmp.join(name), &times, AtFlags::empty()).expect("setting the time");
        }
        assert_eq!(store.sweep_tmp().expect("sweeping"), 1);
        assert_eq!(in_tmp(&directory), ["new", "reserve"]);
    }

    #[test]
    fn a_place_that_the_disk_cannot_read_is_tried_again_and_is_damage_of_that_object() {
        let (_directory, store) = store();
        for errno in [Errno::IO, Errno::UCLEAN, Errno::BADMSG] {
            let error = store.failed("reading", "snap/00", errno);
            assert_eq!((error.class, error.kind()), (Failure::Unreadable, Kind::Damage));
            assert!(error.hint.is_some_and(|hint| hint.contains("disk")));
            let error = store.failed("writing", "snap/00", errno);
            assert_eq!(
                error.kind(),
                Kind::Unavailable,
                "a disk that cannot be written to is no damage"
            );
        }
        let mut answers = vec![Ok(7), Err(Errno::IO), Err(Errno::INTR), Err(Errno::IO)];
        assert_eq!(read_patiently(|| answers.pop().unwrap()), Ok(7));
        let mut calls = 0;
        let failing = || {
            calls += 1;
            Err(Errno::IO)
        };
        assert_eq!(read_patiently(failing), Err(Errno::IO));
        assert_eq!(calls, READS_MAX);
        let absent = LocalStore::new("/proc/nothing", true);
        assert_eq!(absent.failed("reading", "snap/00", Errno::IO).kind(), Kind::Unavailable);
    }

    #[test]
    fn a_pack_that_was_cut_off_is_not_read_as_whole() {
        let (directory, store) = store();
        create(&store, "snap/00", &[1; 1000]);
        std::fs::write(directory.path().join("repo/snap/00"), [1; 500]).expect("writing");
        let error = store
            .read(&key("snap/00"), Part::Range(0..1000))
            .expect_err("too short");
        assert_eq!(error.class, Failure::NotFound);
        assert!(store.read_into(&key("snap/00"), 400, &mut [0; 200]).is_err());
        assert!(store.read_into(&key("snap/00"), u64::MAX, &mut [0; 200]).is_err());
    }
}
