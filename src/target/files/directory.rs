//! Directories of the target, reached from its root beneath which everything stays.

use super::meta::{self, Meta, MetaPolicy, Subject};
use super::{Overwrite, TargetError, TargetProblem};
use crate::edge::fs::{FileKind, Status, flags, magic_path, open_beneath, open_path};
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{HashSet, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Directories opened lately that are kept open, so that going deeper step by step costs one step each.
const RECENT_MAX: usize = 32;
/// How often a directory that somebody removes at the same time is created.
const TRIES_MAX: u32 = 4;
/// A directory is opened for reading, because metadata cannot be set through `O_PATH`.
pub(super) const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// The directory into which a restore writes.
#[derive(Debug)]
pub struct TargetDir {
    root: Arc<DirHandle>,
    pub(super) overwrite: Overwrite,
    pub(super) policy: MetaPolicy,
    recent: Mutex<VecDeque<Arc<DirHandle>>>,
    /// Flags that forbid changes, to be set when all is done.
    deferred: Mutex<Vec<Deferred>>,
    /// What was made where names may collide, by device and inode.
    pub(super) made: Mutex<HashSet<(u64, u64)>>,
}

#[derive(Debug)]
struct Deferred {
    path: Vec<u8>,
    identity: (u64, u64),
    flags: u32,
}

/// An open directory of the target.
#[derive(Debug)]
pub struct DirHandle {
    pub(super) fd: OwnedFd,
    /// Raw path below the target, joined by `/`; empty for the target itself.
    pub(super) path: Vec<u8>,
    /// Whether names that differ may mean the same (`A` and `a`).
    pub(super) is_folding: bool,
    /// Whether this restore has made it: nothing is in it but what is put there now.
    pub(super) is_new: bool,
}

impl DirHandle {
    fn new(fd: OwnedFd, path: Vec<u8>) -> DirHandle {
        let is_folding = flags::folds_names(&fd);
        DirHandle {
            fd,
            path,
            is_folding,
            is_new: false,
        }
    }

    /// Whether no name in it can have been there before this restore. Not known of all of which it is so.
    pub(super) fn is_vacant(&self) -> bool {
        self.is_new && !self.is_folding
    }

    /// Returns the raw path below the target, joined by `/`; empty for the target itself.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() {
            name.to_vec()
        } else {
            [&self.path, &b"/"[..], name].concat()
        }
    }
}

/// Refuses what is not the name of a file.
pub(super) fn check_name(name: &[u8]) -> Result<(), TargetError> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(TargetError::BadName { name: name.to_vec() });
    }
    Ok(())
}

/// Gives us all rights in a directory of ours, until its metadata is set. Returns whether that changed anything.
fn make_usable(fd: &OwnedFd) -> bool {
    let user = rustix::process::geteuid();
    match Status::of(fd) {
        Ok(status) if !user.is_root() && status.uid == user.as_raw() && status.mode & 0o700 != 0o700 => {
            let mode = Mode::from_raw_mode(status.mode | 0o700);
            rustix::fs::chmodat(CWD, magic_path(fd), mode, AtFlags::empty()).is_ok()
        }
        _ => false,
    }
}

impl TargetDir {
    /// Opens the target; `create` makes it, and what leads to it, when it is not there. Links in the path are followed:
    /// the user named it.
    ///
    /// # Errors
    /// When it is not there, is no directory, or cannot be created.
    pub fn open(path: &Path, create: bool, overwrite: Overwrite, policy: MetaPolicy) -> Result<TargetDir, TargetError> {
        let bytes = path.as_os_str().as_bytes();
        if create {
            std::fs::create_dir_all(path).map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                TargetError::new("creating the target", bytes.to_vec(), errno)
            })?;
        }
        let fd = open_path(bytes, FLAGS - OFlags::NOFOLLOW)
            .map_err(|error| TargetError::new("opening the target", bytes.to_vec(), error))?;
        Ok(TargetDir {
            root: Arc::new(DirHandle::new(fd, Vec::new())),
            overwrite,
            policy,
            recent: Mutex::default(),
            deferred: Mutex::default(),
            made: Mutex::default(),
        })
    }

    /// Returns the target directory itself.
    pub fn root(&self) -> &Arc<DirHandle> {
        &self.root
    }

    /// Returns how many bytes ordinary users may still write.
    pub fn free_bytes(&self) -> Result<u64, TargetError> {
        let stat = rustix::fs::fstatvfs(&self.root.fd)
            .map_err(|error| TargetError::new("asking for the free space of", b".".to_vec(), error))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Opens a directory below the target, creating it and its ancestors (mode 0700, until their metadata is set) where
    /// they are missing. Something else in the way is removed, unless nothing may be overwritten.
    ///
    /// # Errors
    /// `BadName`, `InTheWay`, or what the system says.
    pub fn make_dir(&self, components: &[&[u8]]) -> Result<Arc<DirHandle>, TargetError> {
        components.iter().try_for_each(|name| check_name(name))?;
        let (mut handle, mut depth) = self.nearest(components);
        if components.len() - depth > 1
            && let Ok(fd) = open_beneath(&handle.fd, &components[depth..], FLAGS)
        {
            make_usable(&fd);
            handle = Arc::new(DirHandle::new(fd, components.join(&b'/')));
            depth = components.len();
            self.remember(&handle);
        }
        for name in &components[depth..] {
            handle = Arc::new(self.make_child(&handle, name)?);
            self.remember(&handle);
        }
        Ok(handle)
    }

    /// Opens a directory that is there.
    ///
    /// # Errors
    /// `BadName`, or what the system says: `ENOENT` when it is not there, `ELOOP` or `ENOTDIR` when something else is.
    pub fn open_dir(&self, components: &[&[u8]]) -> Result<Arc<DirHandle>, TargetError> {
        components.iter().try_for_each(|name| check_name(name))?;
        let (handle, depth) = self.nearest(components);
        if depth == components.len() {
            return Ok(handle);
        }
        let path = components.join(&b'/');
        match open_beneath(&handle.fd, &components[depth..], FLAGS) {
            Ok(fd) => Ok(Arc::new(DirHandle::new(fd, path))),
            Err(error) => Err(TargetError::new("opening", path, error)),
        }
    }

    fn make_child(&self, parent: &DirHandle, name: &[u8]) -> Result<DirHandle, TargetError> {
        let path = parent.path_of(name);
        let failed = |error| TargetError::new("creating the directory", path.clone(), error);
        let mut is_new = false;
        for _ in 0..TRIES_MAX {
            match open_beneath(&parent.fd, &[name], FLAGS) {
                Ok(fd) => {
                    make_usable(&fd);
                    let handle = DirHandle::new(fd, path);
                    return Ok(DirHandle { is_new, ..handle });
                }
                Err(Errno::NOENT) => {}
                Err(Errno::ACCESS) => match open_beneath(&parent.fd, &[name], OFlags::PATH | OFlags::DIRECTORY) {
                    // Of what an earlier restore has finished, the owner may not have all rights.
                    Ok(fd) if make_usable(&fd) => continue,
                    _ => return Err(failed(Errno::ACCESS)),
                },
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                    if self.overwrite == Overwrite::Never {
                        return Err(TargetError::InTheWay { path });
                    }
                    match rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(error) => return Err(failed(error)),
                    }
                }
                Err(error) => return Err(failed(error)),
            }
            match rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU) {
                Ok(()) => is_new = true,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(TargetError::Replaced { path })
    }

    /// Returns the directory opened lately that is nearest to the one wanted, and its depth.
    fn nearest(&self, components: &[&[u8]]) -> (Arc<DirHandle>, usize) {
        let wanted = components.join(&b'/');
        let recent = self.recent.lock();
        let is_above = |path: &[u8]| {
            wanted
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        let nearest = recent
            .iter()
            .filter(|handle| is_above(&handle.path))
            .max_by_key(|handle| handle.path.len());
        match nearest {
            Some(handle) => (handle.clone(), handle.path.split(|&byte| byte == b'/').count()),
            None => (self.root.clone(), 0),
        }
    }

    fn remember(&self, handle: &Arc<DirHandle>) {
        let mut recent = self.recent.lock();
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(handle.clone());
    }

    /// Forgets directories opened lately; after some may have been removed or replaced.
    pub(super) fn forget_recent(&self) {
        self.recent.lock().clear();
    }

    /// Gives a directory its metadata. To be done when nothing will be written in it any more, deepest first.
    ///
    /// # Errors
    /// Only `Full` and `ReadOnly`; everything else that is refused is among the problems.
    pub fn set_meta(&self, directory: &DirHandle, meta: &Meta<'_>) -> Result<Vec<TargetProblem>, TargetError> {
        let (mut problems, _) = meta::apply(&Subject::Open(&directory.fd), meta, &self.policy, &directory.path)?;
        problems.extend(self.set_flags(&directory.fd, meta, &directory.path)?);
        Ok(problems)
    }

    /// Sets flags that do no harm, and keeps those for the end that forbid further changes.
    pub(super) fn set_flags(
        &self,
        fd: &OwnedFd,
        meta: &Meta<'_>,
        path: &[u8],
    ) -> Result<Option<TargetProblem>, TargetError> {
        let Some(wanted) = meta.entry.attributes.flags.filter(|_| self.policy.flags) else {
            return Ok(None);
        };
        // The format has 64 bits, Linux 32; those it does not know cannot be set.
        let wanted = wanted as u32 & flags::MEANINGFUL;
        if wanted & flags::FORBIDDING != 0
            && let Ok(status) = Status::of(fd)
        {
            let path = path.to_vec();
            self.deferred.lock().push(Deferred {
                path,
                identity: status.identity(),
                flags: wanted,
            });
        }
        match flags::write(fd, wanted & !flags::FORBIDDING) {
            Ok(()) => Ok(None),
            Err(error) => meta::refused(super::RefusedKind::Flags, path, error).map(Some),
        }
    }

    /// Ends the restore: sets the flags that forbid changes, then waits until the target's file system has everything on
    /// disk.
    ///
    /// # Errors
    /// When the system reports that something could not be written.
    pub fn finish(&self) -> Result<Vec<TargetProblem>, TargetError> {
        let mut problems = Vec::new();
        self.forget_recent();
        for item in std::mem::take(&mut *self.deferred.lock()) {
            let components: Vec<&[u8]> = item
                .path
                .split(|&byte| byte == b'/')
                .filter(|part| !part.is_empty())
                .collect();
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
            let outcome = open_beneath(&self.root.fd, &components, flags).and_then(|fd| {
                let status = Status::of(&fd)?;
                let is_it =
                    status.identity() == item.identity && matches!(status.kind, FileKind::File | FileKind::Directory);
                if is_it {
                    flags::write(&fd, item.flags)
                } else {
                    Err(Errno::STALE)
                }
            });
            if let Err(error) = outcome {
                problems.push(meta::refused(super::RefusedKind::Flags, &item.path, error)?);
            }
        }
        rustix::fs::syncfs(&self.root.fd).map_err(|error| TargetError::new("syncing", b".".to_vec(), error))?;
        Ok(problems)
    }
}
