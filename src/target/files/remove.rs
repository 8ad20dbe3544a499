//! Removing what a snapshot does not have (`restore --delete`), with everything below, but never across a mount point.

use super::directory::{DirHandle, FLAGS, TargetDir};
use super::{RefusedKind, TargetError, TargetProblem};
use crate::edge::fs::listing::ListingBuffer;
use crate::edge::fs::{FileKind, Listing, Status, open_beneath};
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use rustix::io::Errno;

/// Levels of a deep tree that are open at once; the others are opened again from below.
const OPEN_LEVELS_MAX: usize = 64;

/// What was removed, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files, directories and others.
    pub count: u64,
    pub problems: Vec<TargetProblem>,
}

/// A directory that is being emptied.
struct Level {
    /// `None` while it is closed to save descriptors.
    fd: Option<OwnedFd>,
    identity: (u64, u64),
    mount: u64,
    name: Vec<u8>,
    path: Vec<u8>,
    directories: Vec<Vec<u8>>,
    problems_before: usize,
}

impl TargetDir {
    /// Removes from a directory whatever `keep` does not want, by name, with all that is below.
    ///
    /// # Errors
    /// When the directory cannot be listed, or its file system is read-only. What cannot be removed is among the problems.
    pub fn remove_unlisted(&self, directory: &DirHandle, keep: &dyn Fn(&[u8]) -> bool) -> Result<Removed, TargetError> {
        self.forget_recent();
        let mut removal = Removal {
            removed: Removed::default(),
            buffer: ListingBuffer::default(),
        };
        let failed = |error| TargetError::new("listing", directory.path.clone(), error);
        // Its own descriptor, because listing moves the position of the one it uses.
        let fd = open_beneath(&directory.fd, &[], FLAGS).map_err(failed)?;
        let mut base = removal
            .open_level(fd, Vec::new(), directory.path.clone(), keep)
            .map_err(failed)?;
        while let Some(name) = base.directories.pop() {
            let path = directory.path_of(&name);
            removal.remove_tree(&directory.fd, &base, name, path);
        }
        let read_only = removal
            .removed
            .problems
            .iter()
            .find(|problem| problem.error == Some(Errno::ROFS));
        match read_only {
            Some(problem) => Err(TargetError::ReadOnly {
                path: problem.path.clone(),
                error: Errno::ROFS,
            }),
            None => Ok(removal.removed),
        }
    }
}

impl TargetDir {
    /// Counts what [`Self::remove_unlisted`] would remove.
    ///
    /// # Errors
    /// When a directory cannot be listed.
    pub fn count_unlisted(&self, directory: &DirHandle, keep: &dyn Fn(&[u8]) -> bool) -> Result<Removed, TargetError> {
        let mut buffer = ListingBuffer::default();
        let mut removed = Removed::default();
        // Paths of directories to list. Each is opened anew from the top, so that no depth needs many descriptors.
        let mut waiting: Vec<Vec<Vec<u8>>> = vec![Vec::new()];
        while let Some(place) = waiting.pop() {
            let parts: Vec<&[u8]> = place.iter().map(Vec::as_slice).collect();
            let path = join(&directory.path, &place.join(&b'/'));
            let failed = |error| TargetError::new("listing", path.clone(), error);
            let fd = open_beneath(&directory.fd, &parts, FLAGS).map_err(failed)?;
            let mut listing = Listing::default();
            listing.read(&fd, &mut buffer).map_err(failed)?;
            for index in 0..listing.len() {
                let child = listing.name(index);
                if place.is_empty() && keep(child.to_bytes()) {
                    continue;
                }
                removed.count += 1;
                let is_directory = match listing.kind(index) {
                    FileKind::Unknown => Status::at(&fd, child).is_ok_and(|status| status.kind == FileKind::Directory),
                    kind => kind == FileKind::Directory,
                };
                if is_directory {
                    let mut below = place.clone();
                    below.push(child.to_bytes().to_vec());
                    waiting.push(below);
                }
            }
        }
        Ok(removed)
    }

    /// Whether a directory stands under this name.
    pub fn has_directory(&self, directory: &DirHandle, name: &[u8]) -> bool {
        Status::at(&directory.fd, name).is_ok_and(|status| status.kind == FileKind::Directory)
    }
}

struct Removal {
    removed: Removed,
    buffer: ListingBuffer,
}

impl Removal {
    fn refused(&mut self, kind: RefusedKind, path: Vec<u8>, error: Option<Errno>) {
        self.removed.problems.push(TargetProblem {
            kind,
            path,
            error,
            attribute: None,
        });
    }

    /// Lists a directory and removes all in it that is no directory and not to be kept.
    fn open_level(
        &mut self,
        fd: OwnedFd,
        name: Vec<u8>,
        path: Vec<u8>,
        keep: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Level, Errno> {
        let problems_before = self.removed.problems.len();
        let status = Status::of(&fd)?;
        let mut listing = Listing::default();
        listing.read(&fd, &mut self.buffer)?;
        let mut directories = Vec::new();
        for index in 0..listing.len() {
            let child = listing.name(index);
            if keep(child.to_bytes()) {
                continue;
            }
            // Unlinking first would remove directories on some old systems; on Linux it says EISDIR.
            let is_directory = match listing.kind(index) {
                FileKind::Unknown => Status::at(&fd, child).is_ok_and(|status| status.kind == FileKind::Directory),
                kind => kind == FileKind::Directory,
            };
            if is_directory {
                directories.push(child.to_bytes().to_vec());
                continue;
            }
            match rustix::fs::unlinkat(&fd, child, AtFlags::empty()) {
                Ok(()) => self.removed.count += 1,
                Err(Errno::NOENT) => {}
                Err(error) => self.refused(RefusedKind::Removal, join(&path, child.to_bytes()), Some(error)),
            }
        }
        let (identity, mount) = (status.identity(), status.mount);
        Ok(Level {
            fd: Some(fd),
            identity,
            mount,
            name,
            path,
            directories,
            problems_before,
        })
    }

    /// Opens a sub-directory to empty it; `None` (and a problem) when it must not be.
    fn descend(&mut self, parent: &OwnedFd, above: &Level, name: Vec<u8>, path: Vec<u8>) -> Option<Level> {
        let fd = match open_beneath(parent, &[&name], FLAGS) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return None,
            Err(error) => {
                self.refused(RefusedKind::Removal, path, Some(error));
                return None;
            }
        };
        if Status::of(&fd).is_ok_and(|status| (status.device, status.mount) != (above.identity.0, above.mount)) {
            self.refused(RefusedKind::MountPoint, path, None);
            return None;
        }
        match self.open_level(fd, name, path.clone(), &|_| false) {
            Ok(level) => Some(level),
            Err(error) => {
                self.refused(RefusedKind::Removal, path, Some(error));
                None
            }
        }
    }

    fn remove_tree(&mut self, base: &OwnedFd, above: &Level, name: Vec<u8>, path: Vec<u8>) {
        let mut levels = Vec::new();
        levels.extend(self.descend(base, above, name, path));
        while let Some(level) = levels.last_mut() {
            let Some(fd) = level.fd.take() else { return };
            if let Some(name) = level.directories.pop() {
                let path = join(&level.path, &name);
                let child = self.descend(&fd, level, name, path);
                level.fd = Some(fd);
                if let Some(child) = child {
                    levels.push(child);
                    if levels.len() > OPEN_LEVELS_MAX {
                        let index = levels.len() - 1 - OPEN_LEVELS_MAX;
                        levels[index].fd = None;
                    }
                }
                continue;
            }
            let done = levels.pop().expect("it was the last one just now");
            let parent = match levels.last_mut() {
                None => base,
                Some(parent) => {
                    if parent.fd.is_none() {
                        parent.fd = open_parent(&fd, parent.identity);
                    }
                    match &parent.fd {
                        Some(fd) => fd,
                        None => return self.refused(RefusedKind::Removal, done.path, Some(Errno::STALE)),
                    }
                }
            };
            match rustix::fs::unlinkat(parent, &*done.name, AtFlags::REMOVEDIR) {
                Ok(()) => self.removed.count += 1,
                Err(Errno::NOENT) => {}
                // It is not empty because of what was reported already.
                Err(Errno::NOTEMPTY) if self.removed.problems.len() > done.problems_before => {}
                Err(error) => self.refused(RefusedKind::Removal, done.path, Some(error)),
            }
        }
    }
}

/// Goes up from a directory, to the one it was reached from and no other.
fn open_parent(fd: &OwnedFd, identity: (u64, u64)) -> Option<OwnedFd> {
    let parent = rustix::fs::openat(fd, c"..", FLAGS, rustix::fs::Mode::empty()).ok()?;
    Status::of(&parent)
        .is_ok_and(|status| status.identity() == identity)
        .then_some(parent)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}
