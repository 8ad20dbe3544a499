//! The file attributes of `chattr` (`FS_IOC_GETFLAGS`).

use rustix::fd::AsFd;
use rustix::fs::IFlags;
use rustix::io::Errno;

/// `FS_DAX_FL`, which rustix does not name.
const DAX: u32 = 0x0200_0000;

/// Flags that forbid changes: they are set last, after everything else.
pub const FORBIDDING: u32 = IFlags::IMMUTABLE.bits() | IFlags::APPEND.bits();

/// Flags that say how the owner wants the file treated. All others describe how the file system happens to keep it
/// (extents, inline data, encryption, verity, …) and mean nothing elsewhere.
pub const MEANINGFUL: u32 = IFlags::APPEND
    .union(IFlags::COMPRESSED)
    .union(IFlags::DIRSYNC)
    .union(IFlags::IMMUTABLE)
    .union(IFlags::JOURNALING)
    .union(IFlags::NOATIME)
    .union(IFlags::NOCOW)
    .union(IFlags::NODUMP)
    .union(IFlags::NOTAIL)
    .union(IFlags::PROJECT_INHERIT)
    .union(IFlags::SECURE_REMOVAL)
    .union(IFlags::SYNC)
    .union(IFlags::TOPDIR)
    .union(IFlags::UNRM)
    .bits()
    | DAX;

/// `FS_CASEFOLD_FL`, which rustix does not name.
const CASEFOLD: u32 = 0x4000_0000;

/// Whether a directory may take different names for the same one: it says so itself, or lies on a file system where that
/// is usual (or, with FUSE, possible).
pub fn folds_names(directory: impl AsFd) -> bool {
    let directory = directory.as_fd();
    if rustix::fs::ioctl_getflags(directory).is_ok_and(|flags| flags.bits() & CASEFOLD != 0) {
        return true;
    }
    let magic = rustix::fs::fstatfs(directory).map_or(0, |stat| stat.f_type as u32);
    matches!(
        magic,
        0x0000_4d44 // FAT
        | 0x2011_bab0 // exFAT
        | 0x5346_544e // NTFS
        | 0x7366_746e // NTFS (ntfs3)
        | 0xff53_4d42 // CIFS
        | 0xfe53_4d42 // SMB 2
        | 0x0000_517b // SMB 1
        | 0x0000_482b // HFS+
        | 0x6573_5546 // FUSE
        | 0x0102_1997 // 9p
    )
}

/// Returns the meaningful flags of an open file or directory; 0 where the file system has none.
pub fn read(fd: impl AsFd) -> Result<u32, Errno> {
    match rustix::fs::ioctl_getflags(fd) {
        Ok(flags) => Ok(flags.bits() & MEANINGFUL),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Sets the meaningful flags of an open file or directory; the others stay. Does nothing when they are right already.
pub fn write(fd: impl AsFd, flags: u32) -> Result<(), Errno> {
    let fd = fd.as_fd();
    let present = match rustix::fs::ioctl_getflags(fd) {
        Ok(flags) => flags.bits(),
        Err(Errno::NOTTY) if flags & MEANINGFUL == 0 => return Ok(()),
        Err(error) => return Err(error),
    };
    let wanted = (present & !MEANINGFUL) | (flags & MEANINGFUL);
    if wanted == present {
        Ok(())
    } else {
        rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(wanted))
    }
}
