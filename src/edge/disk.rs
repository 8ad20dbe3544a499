//! What the kernel says about the file system that a path is on, and about who may read a file.

use std::io;
use std::path::Path;

/// A file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its kind; `None` if this list does not have it.
    pub kind: Option<&'static str>,
    pub nature: Nature,
    /// Bytes that this user may still write.
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Files that may still be made; `None` where they are not counted.
    pub free_files: Option<u64>,
    pub is_read_only: bool,
}

/// How far a file system can be trusted with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// On a disk of this machine.
    Disk,
    /// On another machine: what is synced is believed to be there, and listings may be stale.
    Network,
    /// Behind a program: it may be anything.
    Program,
    /// Without hard links: a name is taken by other means.
    NoLinks,
    /// Gone with the next boot.
    Memory,
    Unknown,
}

/// Kinds of file systems by the number that the kernel gives them.
const KINDS: &[(u64, &str, Nature)] = &[
    (0xef53, "ext4", Nature::Disk),
    (0x5846_5342, "xfs", Nature::Disk),
    (0x9123_683e, "btrfs", Nature::Disk),
    (0x2fc1_2fc1, "zfs", Nature::Disk),
    (0xf2f5_2010, "f2fs", Nature::Disk),
    (0xca45_1a4e, "bcachefs", Nature::Disk),
    (0x3153_464a, "jfs", Nature::Disk),
    (0x794c_7630, "overlay", Nature::Disk),
    (0x5346_544e, "ntfs", Nature::Disk),
    (0x7366_746e, "ntfs", Nature::Disk),
    (0x6969, "nfs", Nature::Network),
    (0xff53_4d42, "cifs", Nature::Network),
    (0xfe53_4d42, "smb", Nature::Network),
    (0x517b, "smb", Nature::Network),
    (0x00c3_6400, "ceph", Nature::Network),
    (0x0102_1997, "9p", Nature::Network),
    (0x5346_414f, "afs", Nature::Network),
    (0x0bd0_0bd0, "lustre", Nature::Network),
    (0x0116_1970, "gfs2", Nature::Network),
    (0x6573_5546, "fuse", Nature::Program),
    (0x2011_bab0, "exfat", Nature::NoLinks),
    (0x4d44, "vfat", Nature::NoLinks),
    (0x0102_1994, "tmpfs", Nature::Memory),
    (0x8584_58f6, "ramfs", Nature::Memory),
];

/// Asks about the file system that a path is on.
///
/// # Errors
/// When the path cannot be looked at.
pub fn of(path: &Path) -> io::Result<Disk> {
    let status = rustix::fs::statfs(path)?;
    let counts = rustix::fs::statvfs(path)?;
    // Wider on some machines than on others, and with a sign; the numbers have 32 bits.
    let number = u64::from(status.f_type as u32);
    let known = KINDS.iter().find(|(kind, ..)| *kind == number);
    Ok(Disk {
        kind: known.map(|(_, name, _)| *name),
        nature: known.map_or(Nature::Unknown, |(_, _, nature)| *nature),
        free_bytes: counts.f_bavail.saturating_mul(counts.f_frsize),
        total_bytes: counts.f_blocks.saturating_mul(counts.f_frsize),
        free_files: (counts.f_files > 0).then_some(counts.f_favail),
        is_read_only: counts.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// Returns owner and permissions (the twelve bits) of a file or directory.
///
/// # Errors
/// When it cannot be looked at.
pub fn owner_and_mode(path: &Path) -> io::Result<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let status = std::fs::metadata(path)?;
    Ok((status.uid(), status.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_from_disks() {
        let root = of(Path::new("/")).expect("there is a root");
        assert!(root.total_bytes >= root.free_bytes && root.total_bytes > 0);
        if Path::new("/dev/shm").is_dir() {
            assert_eq!(of(Path::new("/dev/shm")).expect("it is there").nature, Nature::Memory);
        }
        assert!(of(Path::new("/nowhere/at/all")).is_err());
    }
}
