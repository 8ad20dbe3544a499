//! This machine: the disk of a local repository, the cache, and who may read passwords and keys.

use super::Finding;
use crate::edge::disk::{self, Disk, Nature};
use crate::pure::base::size::format_bytes;
use std::io;
use std::path::{Path, PathBuf};

/// Less free space than this, and the next backup may not fit.
const REPOSITORY_FREE_MIN: u64 = 1 << 30;
/// The same for the cache.
const CACHE_FREE_MIN: u64 = 256 << 20;

/// Looks at the directory of a local repository.
pub fn directory(path: &Path) -> Vec<Finding> {
    let disk = match disk::of(path) {
        Ok(disk) => disk,
        Err(error) => return vec![unreadable("disk", path, &error, true)],
    };
    let mut findings = vec![
        kind(&disk),
        space("disk_space", &disk, REPOSITORY_FREE_MIN, "the repository"),
    ];
    findings.push(private(
        "repository_access",
        path,
        "the repository",
        "names, sizes and times",
    ));
    findings
}

fn kind(disk: &Disk) -> Finding {
    let name = disk.kind.unwrap_or("of a kind that larder does not know");
    if disk.is_read_only {
        return Finding::problem(
            "file_system",
            format!("the file system ({name}) is mounted read-only"),
            "look for errors of the disk in the system's log",
        );
    }
    match disk.nature {
        Nature::Disk => Finding::ok("file_system", format!("the file system is {name}")),
        Nature::Network => Finding::warning(
            "file_system",
            format!(
                "the file system is on another machine ({name}): whether what is synced is durable is decided there, and listings may be some seconds old"
            ),
            "export it with sync, and prune with --grace 1d",
        ),
        Nature::Program => Finding::warning(
            "file_system",
            format!(
                "the file system is a program ({name}): whether it keeps what was synced when power fails is not known"
            ),
            "look into its documentation for fsync and hard links",
        ),
        Nature::NoLinks => Finding::warning(
            "file_system",
            format!(
                "the file system ({name}) has no hard links and no journal: two machines must not write at once, and pulling the cable can damage what was written last"
            ),
            "use ext4, xfs or another file system with a journal for a disk that stays",
        ),
        Nature::Memory => Finding::problem(
            "file_system",
            format!("the file system is in memory ({name}): the repository is gone with the next boot"),
            "move it to a disk",
        ),
        Nature::Unknown => Finding::warning(
            "file_system",
            format!("the file system is {name}"),
            "make sure that it keeps what was synced when power fails",
        ),
    }
}

fn space(subject: &'static str, disk: &Disk, enough: u64, of: &str) -> Finding {
    let free = format!(
        "{} of {} are free on the disk of {of}",
        format_bytes(disk.free_bytes),
        format_bytes(disk.total_bytes)
    );
    if disk.free_bytes < enough / 16 || disk.free_files.is_some_and(|files| files < 100) {
        return Finding::problem(
            subject,
            format!("{free}: it is full"),
            "make room; `larder repo prune` works on a full disk, too",
        );
    }
    if disk.free_bytes < enough || disk.free_files.is_some_and(|files| files < 10_000) {
        return Finding::warning(
            subject,
            free,
            "make room: `larder snapshot forget` with a policy, and `larder repo prune`",
        );
    }
    Finding::ok(subject, free)
}

/// Looks at where the cache is. It is made when it is needed.
pub fn cache(path: &Path) -> Vec<Finding> {
    if !path.exists() {
        return vec![Finding::note(
            "cache",
            format!("there is no cache yet: {}", path.display()),
        )];
    }
    let mut findings = vec![private(
        "cache_access",
        path,
        "the cache",
        "sizes of snapshots and when they were made",
    )];
    match disk::of(path) {
        Ok(disk) => findings.push(space("cache_space", &disk, CACHE_FREE_MIN, "the cache")),
        Err(error) => findings.push(unreadable("cache_space", path, &error, false)),
    }
    findings
}

/// Looks at who may read a directory that is only for its owner.
fn private(subject: &'static str, path: &Path, what: &str, shows: &str) -> Finding {
    match disk::owner_and_mode(path) {
        Ok((_, mode)) if mode & 0o022 != 0 => Finding::problem(
            subject,
            format!("{what} can be changed by others ({mode:04o}): they can delete it"),
            format!("chmod go-rwx {}", path.display()),
        ),
        Ok((_, mode)) if mode & 0o077 != 0 => Finding::warning(
            subject,
            format!("{what} can be read by others ({mode:04o}), which shows them {shows}"),
            format!("chmod go-rwx {}", path.display()),
        ),
        Ok(_) => Finding::ok(subject, format!("{what} is for its owner only")),
        Err(error) => unreadable(subject, path, &error, false),
    }
}

/// Looks at files that hold passwords and keys.
pub fn secrets(files: &[PathBuf]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in files {
        findings.push(match disk::owner_and_mode(path) {
            Ok((_, mode)) if mode & 0o077 != 0 => Finding::problem(
                "key_file",
                format!(
                    "{} can be read by others ({mode:04o}): whoever reads it reads the backups",
                    path.display()
                ),
                format!(
                    "chmod 0600 {}, and consider it known: `larder repo key add` another one and remove this",
                    path.display()
                ),
            ),
            Ok(_) => Finding::ok("key_file", format!("{} is for its owner only", path.display())),
            Err(error) => unreadable("key_file", path, &error, true),
        });
    }
    findings
}

fn unreadable(subject: &'static str, path: &Path, error: &io::Error, matters: bool) -> Finding {
    Finding::unknown(
        subject,
        format!("{} cannot be looked at: {error}", path.display()),
        "check the path, and who may read it",
        matters,
    )
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_that_others_can_read_is_a_problem() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        std::fs::write(&path, "secret").expect("writing");
        for (mode, level) in [
            (0o600, Level::Ok),
            (0o400, Level::Ok),
            (0o644, Level::Problem),
            (0o640, Level::Problem),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            assert_eq!(secrets(std::slice::from_ref(&path))[0].level, level, "{mode:o}");
        }
        assert_eq!(secrets(&[dir.path().join("gone")])[0].level, Level::Unknown);
    }

    #[test]
    fn disks_are_judged() {
        let disk = Disk {
            kind: Some("ext4"),
            nature: Nature::Disk,
            free_bytes: 100 << 30,
            total_bytes: 200 << 30,
            free_files: Some(1_000_000),
            is_read_only: false,
        };
        assert_eq!(kind(&disk).level, Level::Ok);
        assert_eq!(space("disk_space", &disk, 1 << 30, "it").level, Level::Ok);
        let of = |change: &dyn Fn(&mut Disk)| {
            let mut other = disk.clone();
            change(&mut other);
            other
        };
        assert_eq!(kind(&of(&|disk| disk.nature = Nature::Memory)).level, Level::Problem);
        assert_eq!(kind(&of(&|disk| disk.nature = Nature::NoLinks)).level, Level::Warning);
        assert_eq!(kind(&of(&|disk| disk.is_read_only = true)).level, Level::Problem);
        let judge = |disk: &Disk| space("disk_space", disk, 1 << 30, "it").level;
        assert_eq!(judge(&of(&|disk| disk.free_bytes = 500 << 20)), Level::Warning);
        assert_eq!(judge(&of(&|disk| disk.free_bytes = 10 << 20)), Level::Problem);
        assert_eq!(judge(&of(&|disk| disk.free_files = Some(3))), Level::Problem);
    }
}
