//! What `statx` says about a file.

use crate::pure::base::time::FileTime;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, FileType, StatxFlags};
use rustix::io::Errno;

/// Types of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
    /// None that this program knows (or, in a listing, that the file system did not tell).
    Unknown,
}

impl From<FileType> for FileKind {
    fn from(kind: FileType) -> FileKind {
        match kind {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            FileType::CharacterDevice => FileKind::CharDevice,
            FileType::BlockDevice => FileKind::BlockDevice,
            FileType::Unknown => FileKind::Unknown,
        }
    }
}

/// The part of `struct statx` that backups need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub kind: FileKind,
    /// Permission bits, 07777.
    pub mode: u32,
    pub device: u64,
    pub inode: u64,
    pub links: u64,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes that are allocated.
    pub allocated: u64,
    pub mtime: FileTime,
    pub ctime: FileTime,
    /// Time of creation, where the file system keeps it.
    pub born: Option<FileTime>,
    /// Of a device node: what it stands for.
    pub node_major: u32,
    pub node_minor: u32,
    /// Identifies the mount; 0 where the kernel does not say (before 5.8).
    pub mount: u64,
}

impl Status {
    /// Looks at a name in a directory, not following a symbolic link and not triggering an automount.
    pub fn at<Name: rustix::path::Arg>(dir: impl AsFd, name: Name) -> Result<Status, Errno> {
        read(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    /// Looks at what a descriptor stands for.
    pub fn of(fd: impl AsFd) -> Result<Status, Errno> {
        read(fd, c"", AtFlags::EMPTY_PATH)
    }

    /// Returns what identifies the file as long as it exists.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

fn read<Name: rustix::path::Arg>(dir: impl AsFd, name: Name, flags: AtFlags) -> Result<Status, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(dir, name, flags, wanted)?;
    let time = |stamp: rustix::fs::StatxTimestamp| FileTime {
        seconds: stamp.tv_sec,
        // A broken file system must not make an entry that the format refuses.
        nanos: stamp.tv_nsec.min(999_999_999),
    };
    let mask = StatxFlags::from_bits_retain(stat.stx_mask);
    Ok(Status {
        kind: FileType::from_raw_mode(stat.stx_mode.into()).into(),
        mode: u32::from(stat.stx_mode) & 0o7777,
        device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        links: stat.stx_nlink.into(),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        allocated: stat.stx_blocks.saturating_mul(512),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        born: mask.contains(StatxFlags::BTIME).then(|| time(stat.stx_btime)),
        node_major: stat.stx_rdev_major,
        node_minor: stat.stx_rdev_minor,
        mount: if mask.contains(StatxFlags::MNT_ID) {
            stat.stx_mnt_id
        } else {
            0
        },
    })
}
