//! Advisory locks of one machine (flock). They save work and keep a writer's chain of outcomes free of forks; safety never
//! rests on them.

use super::RepoError;
use std::fs::File;
use std::path::Path;

/// A held lock; released when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct HostLock {
    _file: File,
}

impl HostLock {
    fn open(path: &Path) -> Result<File, RepoError> {
        use std::os::unix::fs::OpenOptionsExt;
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| RepoError::Local {
                what: format!("opening the lock file {}", path.display()),
                source,
            })
    }

    /// Takes the lock or returns `None` when another process holds it.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn try_take(path: &Path) -> Result<Option<HostLock>, RepoError> {
        let file = Self::open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(HostLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(RepoError::Local {
                what: format!("locking {}", path.display()),
                source: error.into(),
            }),
        }
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// When the lock file cannot be opened or locked.
    pub fn take(path: &Path) -> Result<HostLock, RepoError> {
        let file = Self::open(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|error| RepoError::Local {
            what: format!("locking {}", path.display()),
            source: error.into(),
        })?;
        Ok(HostLock { _file: file })
    }
}
