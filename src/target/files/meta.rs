//! Metadata: owner, extended attributes, capabilities, mode, times, in this order, each by descriptor.
//!
//! The order matters. A change of owner drops set-id bits and capabilities, so those come after it, and only if the owner
//! is the one they were meant for: a set-user-id file of somebody else's would hand out the wrong rights (catalogue H6).
//! The mode comes after the attributes, because it opens the file to others. Flags that forbid changes come last of all
//! (`TargetDir::finish`). The time of creation cannot be set.

use super::{RefusedKind, TargetError, TargetProblem};
use crate::edge::fs::xattr::Access;
use crate::edge::fs::{Status, magic_path};
use crate::pure::base::time::FileTime;
use crate::pure::format::entry::{Entry, EntryKind};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use std::ffi::{CStr, CString};

const CAPABILITY: &CStr = c"security.capability";
const SET_ID_BITS: u32 = 0o6000;

/// Which metadata a restore sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaPolicy {
    /// Owners; sensible for root only.
    pub chown: bool,
    pub xattrs: bool,
    pub flags: bool,
    /// Device nodes are created; sensible for root only, and only for whole systems.
    pub devices: bool,
}

impl MetaPolicy {
    /// Returns what is sensible for the user who runs this: everything for root, no owners and devices for others.
    pub fn sensible() -> MetaPolicy {
        let is_root = rustix::process::geteuid().is_root();
        MetaPolicy {
            chown: is_root,
            xattrs: true,
            flags: true,
            devices: is_root,
        }
    }
}

/// An entry with everything that is needed to give its metadata to a file.
#[derive(Clone, Copy, Debug)]
pub struct Meta<'a> {
    pub entry: &'a Entry,
    /// Values of `xattrs_outline`, by name.
    pub large_xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Meta<'a> {
    /// For entries without attributes out of line.
    pub fn of(entry: &'a Entry) -> Meta<'a> {
        Meta {
            entry,
            large_xattrs: &[],
        }
    }
}

/// What is to get metadata.
pub(super) enum Subject<'a> {
    /// A file or directory that is open.
    Open(&'a OwnedFd),
    /// Anything else, opened with `O_PATH`.
    Path(&'a OwnedFd),
}

impl Subject<'_> {
    fn fd(&self) -> &OwnedFd {
        match self {
            Subject::Open(fd) | Subject::Path(fd) => fd,
        }
    }

    fn access(&self) -> Access<'_> {
        match self {
            Subject::Open(fd) => Access::open(*fd),
            Subject::Path(fd) => Access::path(*fd),
        }
    }

    fn chown(&self, owner: Option<Uid>, group: Option<Gid>) -> Result<(), Errno> {
        match self {
            Subject::Open(fd) => rustix::fs::fchown(fd, owner, group),
            Subject::Path(fd) => rustix::fs::chownat(fd, c"", owner, group, AtFlags::EMPTY_PATH),
        }
    }

    fn chmod(&self, mode: Mode) -> Result<(), Errno> {
        match self {
            Subject::Open(fd) => rustix::fs::fchmod(fd, mode),
            Subject::Path(fd) => rustix::fs::chmodat(CWD, magic_path(fd), mode, AtFlags::empty()),
        }
    }

    fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        match self {
            Subject::Open(fd) => rustix::fs::futimens(fd, times),
            Subject::Path(fd) => rustix::fs::utimensat(CWD, magic_path(fd), times, AtFlags::empty()),
        }
    }
}

/// Makes a problem of what was refused, unless it makes going on pointless.
pub(super) fn refused(kind: RefusedKind, path: &[u8], error: Errno) -> Result<TargetProblem, TargetError> {
    // An attribute that has no room in the file system's blocks says "no space" on an empty disk; a full disk shows with the
    // next write of content.
    if matches!(error, Errno::NOSPC | Errno::DQUOT) {
        return Ok(TargetProblem {
            kind,
            path: path.to_vec(),
            error: Some(error),
            attribute: None,
        });
    }
    match TargetError::new("setting metadata of", path.to_vec(), error) {
        TargetError::Io { path, error, .. } => Ok(TargetProblem {
            kind,
            path,
            error: Some(error),
            attribute: None,
        }),
        hard => Err(hard),
    }
}

/// Gives everything but flags; returns what was refused, and what it is like now.
pub(super) fn apply(
    subject: &Subject<'_>,
    meta: &Meta<'_>,
    policy: &MetaPolicy,
    path: &[u8],
) -> Result<(Vec<TargetProblem>, Status), TargetError> {
    let mut problems = Vec::new();
    let entry = meta.entry;
    let is_owned = set_owner(subject, entry, policy, path, &mut problems)?;
    if policy.xattrs {
        set_attributes(subject, meta, is_owned, path, &mut problems)?;
    }
    if !matches!(entry.kind, EntryKind::Symlink { .. }) {
        let mut mode = entry.mode & 0o7777;
        if mode & SET_ID_BITS != 0 && !is_owned && !chaos!("set-id-bits-without-owner") {
            mode &= !SET_ID_BITS;
            let path = path.to_vec();
            problems.push(TargetProblem {
                kind: RefusedKind::SetIdBits,
                path,
                error: None,
                attribute: None,
            });
        }
        if let Err(error) = subject.chmod(Mode::from_raw_mode(mode)) {
            problems.push(refused(RefusedKind::Mode, path, error)?);
        }
    }
    let status = set_times(subject, entry.mtime, path, &mut problems)?;
    Ok((problems, status))
}

/// Sets the owner where that is wanted; returns whether it is the right one in the end.
fn set_owner(
    subject: &Subject<'_>,
    entry: &Entry,
    policy: &MetaPolicy,
    path: &[u8],
    problems: &mut Vec<TargetProblem>,
) -> Result<bool, TargetError> {
    let is_right = || Status::of(subject.fd()).is_ok_and(|now| (now.uid, now.gid) == (entry.uid, entry.gid));
    if is_right() {
        return Ok(true);
    }
    if !policy.chown {
        return Ok(false);
    }
    // The number −1 means "leave it" to the system, so it can be nobody's.
    let owner = (entry.uid != u32::MAX).then(|| Uid::from_raw(entry.uid));
    let group = (entry.gid != u32::MAX).then(|| Gid::from_raw(entry.gid));
    if let Err(error) = subject.chown(owner, group) {
        problems.push(refused(RefusedKind::Owner, path, error)?);
        // Everyone may give a file to a group that they are in.
        let _ = subject.chown(None, group);
    } else if !is_right() {
        let path = path.to_vec();
        problems.push(TargetProblem {
            kind: RefusedKind::Owner,
            path,
            error: None,
            attribute: None,
        });
    }
    Ok(is_right())
}

fn set_attributes(
    subject: &Subject<'_>,
    meta: &Meta<'_>,
    is_owned: bool,
    path: &[u8],
    problems: &mut Vec<TargetProblem>,
) -> Result<(), TargetError> {
    let access = subject.access();
    let mut report = |name: &[u8], error| -> Result<(), TargetError> {
        let mut problem = refused(RefusedKind::Attribute, path, error)?;
        problem.attribute = Some(name.to_vec());
        problems.push(problem);
        Ok(())
    };
    let attributes = || meta.entry.attributes.xattrs.iter().chain(meta.large_xattrs);
    // A new file may have inherited an access list from its directory, an old one may have had anything.
    for name in access.names().unwrap_or_default() {
        let is_wanted = attributes().any(|(wanted, _)| wanted == name.to_bytes());
        if !is_wanted && is_ours(name.to_bytes()) {
            match access.remove(&name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => report(name.to_bytes(), error)?,
            }
        }
    }
    let (capabilities, others): (Vec<_>, Vec<_>) = attributes().partition(|(name, _)| name == CAPABILITY.to_bytes());
    for (name, value) in others {
        let outcome = CString::new(&**name)
            .map_err(|_| Errno::INVAL)
            .and_then(|name| access.set(&name, value));
        if let Err(error) = outcome {
            report(name, error)?;
        }
    }
    for (name, value) in capabilities {
        let outcome = if is_owned {
            access.set(CAPABILITY, value)
        } else {
            Err(Errno::PERM)
        };
        if let Err(error) = outcome {
            report(name, error)?;
        }
    }
    Ok(())
}

/// Whether an attribute that an entry does not have is to be removed. Labels and the like belong to the system.
fn is_ours(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name.starts_with(b"system.posix_acl_")
        || name == CAPABILITY.to_bytes()
}

fn set_times(
    subject: &Subject<'_>,
    mtime: FileTime,
    path: &[u8],
    problems: &mut Vec<TargetProblem>,
) -> Result<Status, TargetError> {
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access: omit,
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanos.min(999_999_999).into(),
        },
    };
    let refusal = subject.set_times(&times).err();
    let status = Status::of(subject.fd()).map_err(|error| TargetError::new("looking at", path.to_vec(), error))?;
    match refusal {
        Some(error) => problems.push(refused(RefusedKind::Times, path, error)?),
        // File systems quietly take the nearest time that they can keep.
        None if status.mtime != mtime => problems.push(TargetProblem {
            kind: RefusedKind::Times,
            path: path.to_vec(),
            error: None,
            attribute: None,
        }),
        None => {}
    }
    Ok(status)
}
