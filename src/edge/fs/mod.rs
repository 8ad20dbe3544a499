//! Files, directories and what belongs to them, by descriptor: no call here follows a symbolic link in a last component,
//! and no call needs a path longer than one name.

pub mod directory;
pub mod flags;
pub mod listing;
pub mod status;
pub mod xattr;

pub use directory::{Directory, OpenDirectories};
pub use listing::Listing;
pub use status::{FileKind, Status};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// Longest piece of a path that is given to one system call; PATH_MAX is 4096 with the terminating zero.
const PIECE_BYTES_MAX: usize = 2048;

/// Raises the limit of open files to what the administrator allows, and returns it. Does no harm when it is refused.
pub fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, wanted);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Opens a path of any length, relative to the working directory. `flags` say whether the last component is followed;
/// all the others are, as for every path that a user names.
pub fn open_path(path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut base: Option<OwnedFd> = None;
    let mut rest = path;
    while rest.len() > PIECE_BYTES_MAX {
        let Some(cut) = rest[..PIECE_BYTES_MAX]
            .iter()
            .rposition(|&byte| byte == b'/')
            .filter(|&cut| cut > 0)
        else {
            return Err(Errno::NAMETOOLONG);
        };
        let next = open_at(base.as_ref(), &rest[..cut], OFlags::PATH | OFlags::DIRECTORY)?;
        base = Some(next);
        rest = &rest[cut..];
        while let [b'/', tail @ ..] = rest {
            rest = tail;
        }
    }
    open_at(base.as_ref(), if rest.is_empty() { b"." } else { rest }, flags)
}

fn open_at(base: Option<&OwnedFd>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    match base {
        Some(base) => open_quietly(base, path, flags),
        None => open_quietly(CWD, path, flags),
    }
}

/// Opens relative to a directory; gives up `O_NOATIME` where only the owner may ask for it.
pub fn open_quietly<Name: rustix::path::Arg + Copy>(
    dir: impl AsFd,
    name: Name,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let dir = dir.as_fd();
    let open = |flags| rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty()));
    match open(flags) {
        Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => open(flags - OFlags::NOATIME),
        other => other,
    }
}

/// The path under which the kernel gives access to exactly what a descriptor stands for. Needed where a system call has
/// no form that takes an `O_PATH` descriptor.
pub fn magic_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Returns a name for a file that is not finished: `.larder-` and 16 random hexadecimal digits.
///
/// # Errors
/// When the system gives no random bytes.
pub fn temporary_name() -> Result<String, Errno> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
    Ok(format!(".larder-{:016x}", u64::from_le_bytes(random)))
}

/// Opens something below a directory by its components, never leaving the directory and never following a link.
/// The components must be names: not empty, not `.` or `..`, without slash.
///
/// # Errors
/// As `openat2`: `ELOOP` for a symbolic link on the way, `ENOTDIR` for another thing that is no directory.
pub fn open_beneath(base: impl AsFd, components: &[&[u8]], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut current: Option<OwnedFd> = None;
    let mut rest = components;
    loop {
        let mut piece = Vec::new();
        let mut count = 0;
        for component in rest {
            if count > 0 && piece.len() + component.len() >= PIECE_BYTES_MAX {
                break;
            }
            if count > 0 {
                piece.push(b'/');
            }
            piece.extend_from_slice(component);
            count += 1;
        }
        if piece.is_empty() {
            piece.push(b'.');
        }
        let is_last = count == rest.len();
        let piece_flags = if is_last {
            flags
        } else {
            OFlags::PATH | OFlags::DIRECTORY
        };
        let next = match &current {
            Some(fd) => open_piece(fd.as_fd(), &piece, &rest[..count], piece_flags)?,
            None => open_piece(base.as_fd(), &piece, &rest[..count], piece_flags)?,
        };
        if is_last {
            return Ok(next);
        }
        rest = &rest[count..];
        current = Some(next);
    }
}

fn open_piece(base: BorrowedFd<'_>, piece: &[u8], components: &[&[u8]], flags: OFlags) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::io::retry_on_intr(|| rustix::fs::openat2(base, piece, flags, Mode::empty(), resolve)) {
        // Not known to the kernel, or forbidden by a sandbox that does not know it; EAGAIN: somebody renamed on the way.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => open_step_by_step(base, components, flags),
        other => other,
    }
}

/// The same without `openat2`: each component by itself, none followed.
pub(crate) fn open_step_by_step(base: BorrowedFd<'_>, components: &[&[u8]], flags: OFlags) -> Result<OwnedFd, Errno> {
    let Some((last, parents)) = components.split_last() else {
        return open_quietly(base, c".", flags);
    };
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut current: Option<OwnedFd> = None;
    for parent in parents {
        let next = match &current {
            Some(fd) => open_quietly(fd, *parent, step)?,
            None => open_quietly(base, *parent, step)?,
        };
        current = Some(next);
    }
    match &current {
        Some(fd) => open_quietly(fd, *last, flags),
        None => open_quietly(base, *last, flags),
    }
}
