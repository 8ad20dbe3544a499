//! Directories that stay reachable while their descriptors come and go.
//!
//! A walk keeps directories for as long as anything below them is still to be read: one on every level of a deep tree,
//! and one for every entry that waits for a reader. Descriptors are too few for that. So a [`Directory`] knows its parent
//! and its name, and [`OpenDirectories`] closes the descriptor that was opened longest ago once there are too many.
//! Opening it again goes down from the nearest ancestor that is open, and every step must find the same device and inode
//! as the first time: a directory that was moved or replaced meanwhile is never entered.

use super::{Status, open_quietly};
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

/// How a directory is opened: for listing and as a base, whatever its name turns out to be.
pub const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOATIME)
    .union(OFlags::CLOEXEC);

/// When a long way is opened again, only the last so many directories on it keep their descriptors.
const REOPENED_KEPT: usize = 32;

/// The descriptors that directories hold, first opened first.
#[derive(Debug)]
pub struct OpenDirectories {
    limit: usize,
    queue: Mutex<VecDeque<Weak<Directory>>>,
}

impl OpenDirectories {
    /// Allows that many descriptors, besides those of roots and those in use at the moment.
    pub fn new(limit: usize) -> Arc<OpenDirectories> {
        Arc::new(OpenDirectories {
            limit: limit.max(1),
            queue: Mutex::new(VecDeque::new()),
        })
    }

    fn opened(&self, directory: &Arc<Directory>) {
        let oldest = {
            let mut queue = self.queue.lock();
            queue.push_back(Arc::downgrade(directory));
            if queue.len() > self.limit {
                queue.pop_front()
            } else {
                None
            }
        };
        if let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade()) {
            // Whoever works with it holds a clone, so it is closed when they are done.
            drop(oldest.descriptor.lock().take());
        }
    }
}

/// What kind of file system a directory lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Made up by the kernel (proc, sysfs, …): nothing to back up.
    pub is_pseudo: bool,
    /// Known to stamp files with the clock of this machine, to a few milliseconds.
    pub has_fine_stamps: bool,
}

impl FileSystem {
    /// Asks what a descriptor lies on.
    pub fn of(fd: impl rustix::fd::AsFd) -> Result<FileSystem, Errno> {
        // The type is signed on some machines, unsigned on others; magic numbers have 32 bits.
        Ok(FileSystem::from_magic(rustix::fs::fstatfs(fd)?.f_type as u32))
    }

    fn from_magic(magic: u32) -> FileSystem {
        FileSystem {
            is_pseudo: matches!(
                magic,
                0x0000_9fa0 // proc
                | 0x6265_6572 // sysfs
                | 0x6462_6720 // debugfs
                | 0x7472_6163 // tracefs
                | 0x0027_e0eb // cgroup
                | 0x6367_7270 // cgroup2
                | 0x7363_6673 // securityfs
                | 0xf97c_ff8c // selinuxfs
                | 0x4341_5d53 // smackfs
                | 0x6165_676c // pstore
                | 0x6265_6570 // configfs
                | 0xcafe_4a11 // bpf
                | 0x1980_0202 // mqueue
                | 0x4249_4e4d // binfmt_misc
                | 0x0000_1cd1 // devpts
                | 0xde5e_81e4 // efivarfs
                | 0x6573_5543 // fusectl
                | 0x6c6f_6f70 // binder
                | 0x6e73_6673 // nsfs
                | 0x5049_4446 // pidfs
                | 0x6759_6969 // rpc_pipefs
            ),
            has_fine_stamps: matches!(
                magic,
                0x0000_ef53 // ext2, ext3, ext4
                | 0x5846_5342 // xfs
                | 0x9123_683e // btrfs
                | 0x0102_1994 // tmpfs
                | 0x8584_58f6 // ramfs
                | 0xf2f5_2010 // f2fs
                | 0xca45_1a4e // bcachefs
                | 0x2fc1_2fc1 // zfs
                | 0x794c_7630 // overlay
            ),
        }
    }
}

/// A directory that was found at a name in another one (or is a root).
#[derive(Debug)]
pub struct Directory {
    budget: Arc<OpenDirectories>,
    parent: Option<Arc<Directory>>,
    name: Box<[u8]>,
    status: Status,
    file_system: FileSystem,
    descriptor: Mutex<Option<Arc<OwnedFd>>>,
}

impl Directory {
    /// Takes an open directory as a root: its descriptor stays open as long as it lives.
    pub fn root(fd: OwnedFd, budget: Arc<OpenDirectories>) -> Result<Arc<Directory>, Errno> {
        let status = Status::of(&fd)?;
        let file_system = FileSystem::of(&fd)?;
        let descriptor = Mutex::new(Some(Arc::new(fd)));
        Ok(Arc::new(Directory {
            budget,
            parent: None,
            name: Box::default(),
            status,
            file_system,
            descriptor,
        }))
    }

    /// Opens a directory by its name in this one.
    ///
    /// # Errors
    /// As `openat`; `ELOOP` or `ENOTDIR` when the name is a symbolic link or no directory; `ESTALE` when this directory
    /// had to be opened again and is not at its place any more.
    pub fn open_child(self: &Arc<Directory>, name: &[u8]) -> Result<Arc<Directory>, Errno> {
        let fd = open_quietly(&*self.descriptor()?, name, DIRECTORY_FLAGS)?;
        let status = Status::of(&fd)?;
        let file_system = if status.device == self.status.device {
            self.file_system
        } else {
            FileSystem::of(&fd)?
        };
        let child = Arc::new(Directory {
            budget: self.budget.clone(),
            parent: Some(self.clone()),
            name: name.into(),
            status,
            file_system,
            descriptor: Mutex::new(Some(Arc::new(fd))),
        });
        self.budget.opened(&child);
        Ok(child)
    }

    /// Returns what `statx` said when the directory was opened first.
    pub fn status(&self) -> &Status {
        &self.status
    }

    pub fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// Returns an open descriptor; opens the directory again where it was closed to save descriptors.
    ///
    /// # Errors
    /// As `openat`; `ESTALE` when the directory is not at its place any more.
    pub fn descriptor(self: &Arc<Directory>) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.descriptor.lock().clone() {
            return Ok(fd);
        }
        let mut closed = vec![self];
        let mut fd = loop {
            let lowest = closed.last().expect("it starts with one");
            let parent = lowest
                .parent
                .as_ref()
                .expect("the descriptor of a root is never closed");
            if let Some(fd) = parent.descriptor.lock().clone() {
                break fd;
            }
            closed.push(parent);
        };
        while let Some(directory) = closed.pop() {
            fd = Arc::new(open_quietly(&*fd, &*directory.name, DIRECTORY_FLAGS)?);
            if Status::of(&*fd)?.identity() != directory.status.identity() {
                return Err(Errno::STALE);
            }
            if closed.len() < REOPENED_KEPT {
                let before = directory.descriptor.lock().replace(fd.clone());
                if before.is_none() {
                    self.budget.opened(directory);
                }
            }
        }
        Ok(fd)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A chain of thousands of parents must not be dropped by recursion.
        let mut next = self.parent.take();
        while let Some(mut parent) = next.and_then(Arc::into_inner) {
            next = parent.parent.take();
        }
    }
}
