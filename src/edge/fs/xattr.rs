//! Extended attributes: all of them, byte for byte, from a descriptor of any kind of file.

use super::magic_path;
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::ffi::{CStr, CString};

/// The kernel's limit for a list of names and for a value.
const BYTES_MAX: usize = 64 << 10;

/// How a file's attributes are reached.
pub enum Access<'fd> {
    /// Through a descriptor that was opened for reading or writing.
    Open(BorrowedFd<'fd>),
    /// Through `/proc`, for a descriptor that was opened with `O_PATH`.
    Path(String),
}

impl<'fd> Access<'fd> {
    /// For a descriptor that was opened for reading or writing.
    pub fn open(fd: &'fd impl AsFd) -> Access<'fd> {
        Access::Open(fd.as_fd())
    }

    /// For a descriptor that was opened with `O_PATH` (symbolic links, pipes, sockets, devices). It must stay open.
    pub fn path(fd: &'fd impl AsFd) -> Access<'fd> {
        Access::Path(magic_path(fd))
    }

    /// Returns the names of all attributes, sorted; none where the file system has no such thing.
    pub fn names(&self) -> Result<Vec<CString>, Errno> {
        let list = self.fetch(256, |access, buffer| match access {
            Access::Open(fd) => rustix::fs::flistxattr(fd, spare_capacity(buffer)),
            Access::Path(path) => rustix::fs::listxattr(path.as_str(), spare_capacity(buffer)),
        });
        let list = match list {
            Ok(list) => list,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names: Vec<CString> = list
            .split_inclusive(|&byte| byte == 0)
            .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
            .filter(|name| !name.is_empty())
            .map(CStr::to_owned)
            .collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Returns the value of an attribute.
    pub fn value(&self, name: &CStr) -> Result<Vec<u8>, Errno> {
        self.fetch(256, |access, buffer| match access {
            Access::Open(fd) => rustix::fs::fgetxattr(fd, name, spare_capacity(buffer)),
            Access::Path(path) => rustix::fs::getxattr(path.as_str(), name, spare_capacity(buffer)),
        })
    }

    /// Sets an attribute.
    pub fn set(&self, name: &CStr, value: &[u8]) -> Result<(), Errno> {
        match self {
            Access::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Access::Path(path) => rustix::fs::setxattr(path.as_str(), name, value, XattrFlags::empty()),
        }
    }

    /// Removes an attribute.
    pub fn remove(&self, name: &CStr) -> Result<(), Errno> {
        match self {
            Access::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Access::Path(path) => rustix::fs::removexattr(path.as_str(), name),
        }
    }

    /// Reads with a buffer that grows once to the kernel's limit, so that sizes that change meanwhile cannot loop.
    fn fetch(
        &self,
        expected: usize,
        read: impl Fn(&Access<'fd>, &mut Vec<u8>) -> Result<usize, Errno>,
    ) -> Result<Vec<u8>, Errno> {
        let mut buffer = Vec::with_capacity(expected);
        match read(self, &mut buffer) {
            Err(Errno::RANGE) => {
                buffer = Vec::with_capacity(BYTES_MAX);
                read(self, &mut buffer)?;
            }
            other => {
                other?;
            }
        }
        Ok(buffer)
    }
}
