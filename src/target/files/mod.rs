//! A directory as the target of a restore.
//!
//! What is written may be hostile in its names, and the target may be shared with somebody hostile. So everything goes by
//! directory descriptors and single checked names, nothing follows a symbolic link (catalogue H1, H2, H5). A file is
//! written under a temporary name that only we may read, gets its metadata by descriptor, and then takes its name: under
//! a final name there is never a part of a file, nor one that others may read too early (H7, H9, H10).
//!
//! Metadata that the system refuses is no error but a [`TargetProblem`] to be reported; only what makes going on pointless
//! (no space, read-only) or leaves an entry unrestored is a [`TargetError`].

pub mod directory;
pub mod meta;
pub mod remove;
pub mod write;

pub use directory::{DirHandle, TargetDir};
pub use meta::{Meta, MetaPolicy};
pub use remove::Removed;
pub use write::{Decision, ExistingFile, LinkSource, OpenTarget, Restored};

use crate::pure::base::{Explain, Kind};
use rustix::io::Errno;

/// What becomes of things that are in the target already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// They are written anew.
    Always,
    /// They are compared and written anew where content differs; metadata is set in any case.
    #[default]
    IfChanged,
    /// Those that are as new as the entry or newer are left alone.
    IfNewer,
    /// They are left alone.
    Never,
}

/// Why an entry was not restored.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No space, no inodes or no quota left.
    #[error("no space left in the target for {}", path.escape_ascii())]
    Full {
        path: Vec<u8>,
        #[source]
        error: Errno,
    },
    #[error("the target is read-only at {}", path.escape_ascii())]
    ReadOnly {
        path: Vec<u8>,
        #[source]
        error: Errno,
    },
    /// Something is there that must not be, or cannot be, replaced.
    #[error("{} is in the way", path.escape_ascii())]
    InTheWay { path: Vec<u8> },
    /// A name that no file can have. The tree it comes from is damaged or hostile.
    #[error("{} cannot be the name of a file", name.escape_ascii())]
    BadName { name: Vec<u8> },
    /// Something else stands there than was put there.
    #[error("{} was replaced by something else during the restore", path.escape_ascii())]
    Replaced { path: Vec<u8> },
    #[error("{what} {} failed", path.escape_ascii())]
    Io {
        /// "creating", "writing", …
        what: &'static str,
        path: Vec<u8>,
        #[source]
        error: Errno,
    },
}

impl TargetError {
    fn new(what: &'static str, path: Vec<u8>, error: Errno) -> TargetError {
        match error {
            Errno::NOSPC | Errno::DQUOT => TargetError::Full { path, error },
            Errno::ROFS => TargetError::ReadOnly { path, error },
            error => TargetError::Io { what, path, error },
        }
    }

    /// Whether going on with other entries is pointless.
    pub fn is_final(&self) -> bool {
        matches!(self, TargetError::Full { .. } | TargetError::ReadOnly { .. })
    }
}

impl Explain for TargetError {
    fn kind(&self) -> Kind {
        match self {
            TargetError::Full { .. } | TargetError::ReadOnly { .. } | TargetError::Io { .. } => Kind::Unavailable,
            TargetError::InTheWay { .. } | TargetError::Replaced { .. } => Kind::Refused,
            TargetError::BadName { .. } => Kind::Damage,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            TargetError::Full { .. } => Some("free some space and run the same restore again: it goes on".into()),
            TargetError::InTheWay { .. } => Some("choose an empty target, or another --overwrite".into()),
            _ => None,
        }
    }
}

/// What kind of metadata, or change, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedKind {
    Owner,
    /// Set-user-id and set-group-id were left off, because the owner is not the one they were meant for.
    SetIdBits,
    Mode,
    Attribute,
    Times,
    Flags,
    /// A device node, because devices are not restored unless asked for, or the system refuses.
    Device,
    /// A file or directory that was to be removed.
    Removal,
    /// A mount point below a directory that was to be removed; it is left alone.
    MountPoint,
}

/// Something about an entry that is not as it was in the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetProblem {
    pub kind: RefusedKind,
    /// Raw path below the target.
    pub path: Vec<u8>,
    pub error: Option<Errno>,
    /// Name of an extended attribute, where it is about one.
    pub attribute: Option<Vec<u8>>,
}

impl std::fmt::Display for TargetProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.escape_ascii();
        match (self.kind, &self.attribute) {
            (RefusedKind::Owner, _) => write!(f, "cannot set the owner of {path}")?,
            (RefusedKind::SetIdBits, _) => write!(f, "left set-id bits off {path}: its owner is another one")?,
            (RefusedKind::Mode, _) => write!(f, "cannot set the permissions of {path}")?,
            (RefusedKind::Attribute, Some(name)) => {
                write!(f, "cannot set the attribute {} of {path}", name.escape_ascii())?
            }
            (RefusedKind::Attribute, None) => write!(f, "cannot set the attributes of {path}")?,
            (RefusedKind::Times, _) => write!(f, "cannot set the times of {path} exactly")?,
            (RefusedKind::Flags, _) => write!(f, "cannot set the flags of {path}")?,
            (RefusedKind::Device, _) => write!(f, "did not create the device node {path}")?,
            (RefusedKind::Removal, _) => write!(f, "cannot remove {path}")?,
            (RefusedKind::MountPoint, _) => write!(f, "did not remove {path}: something is mounted there")?,
        }
        match self.error {
            Some(error) => write!(f, ": {error}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
