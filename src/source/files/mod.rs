//! Files as a source: a walk that emits entries in the order of tree keys, and readers for what it finds.
//!
//! Everything goes by directory descriptors and single names, never by joined paths: a path may be longer than any system
//! call takes, and somebody who can write in the tree may exchange a directory for a symbolic link at any time
//! (catalogue F5, F16, F28).

mod ahead;
pub mod exclude;
pub mod read;
pub mod walk;

pub use exclude::{ExcludeError, Excludes, ExcludesBuilder};
pub use read::{Gathered, Piece, Recheck, SourceFile, settle_wait};
pub use walk::{FileWalk, Found, Place, StatKey, WalkCounts, WalkEvent, WalkOptions};

use crate::pure::base::{Explain, Kind};
use rustix::io::Errno;

/// Why a source, or something in it, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The root that the user named is not there or cannot be opened.
    #[error("cannot open the source {}", path.escape_ascii())]
    Root {
        path: Vec<u8>,
        #[source]
        error: Errno,
    },
    /// An entry cannot be opened.
    #[error("cannot open {}", path.escape_ascii())]
    Open {
        path: Vec<u8>,
        #[source]
        error: Errno,
    },
    /// The entry is gone. Nothing to worry about below a root.
    #[error("{} vanished", path.escape_ascii())]
    Vanished { path: Vec<u8> },
    /// Something else stands at the entry's name by now.
    #[error("{} was replaced by something else while it was backed up", path.escape_ascii())]
    Replaced { path: Vec<u8> },
    /// Content cannot be read at an offset.
    #[error("cannot read {} at byte {offset}", path.escape_ascii())]
    Read {
        path: Vec<u8>,
        offset: u64,
        #[source]
        error: Errno,
    },
}

impl SourceError {
    /// Returns the system's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            SourceError::Root { error, .. } | SourceError::Open { error, .. } | SourceError::Read { error, .. } => {
                Some(error.raw_os_error())
            }
            SourceError::Vanished { .. } => Some(Errno::NOENT.raw_os_error()),
            SourceError::Replaced { .. } => Some(Errno::STALE.raw_os_error()),
        }
    }

    /// Returns the path that it is about: of a root as it was named, of an entry below its root.
    pub fn path(&self) -> &[u8] {
        match self {
            SourceError::Root { path, .. }
            | SourceError::Open { path, .. }
            | SourceError::Vanished { path }
            | SourceError::Replaced { path }
            | SourceError::Read { path, .. } => path,
        }
    }
}

impl Explain for SourceError {
    fn kind(&self) -> Kind {
        Kind::Incomplete
    }

    fn hint(&self) -> Option<String> {
        match self {
            SourceError::Root {
                error: Errno::NOENT, ..
            } => Some("check the path, and whether the file system is mounted".into()),
            SourceError::Root {
                error: Errno::ACCESS | Errno::PERM,
                ..
            }
            | SourceError::Open {
                error: Errno::ACCESS | Errno::PERM,
                ..
            } => Some("run as a user who may read it (or with CAP_DAC_READ_SEARCH), or exclude it".into()),
            SourceError::Read { error: Errno::IO, .. } => {
                Some("the disk reports a read error: check its health".into())
            }
            _ => None,
        }
    }
}

/// What kind of thing a walk or a reader could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemKind {
    /// A directory cannot be opened; what is below it is missing.
    Directory,
    /// A directory cannot be read to its end; part of what is in it may be missing.
    Listing,
    /// The status of an entry, or a link's target, cannot be read; it is missing.
    Entry,
    /// Extended attributes, or one of them, or flags cannot be read; the entry is stored without.
    Metadata,
    /// A directory is its own ancestor (a bind mount); it is not entered.
    Loop,
    /// A directory was replaced between being found and being opened; it is not entered.
    Replaced,
    /// Deeper, or with a longer path, than the format stores; it is missing.
    TooDeep,
    /// A file system that the kernel makes up; it is not entered. A note: nothing is missing.
    PseudoFileSystem,
    /// A type of file, or a name, that cannot be stored; it is missing.
    Unsupported,
}

/// Something that is not, or not completely, in the backup although it was asked for (or, for notes, seemed to be).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceProblem {
    pub kind: ProblemKind,
    /// Raw path below the root, joined by `/`; empty for the root itself.
    pub path: Vec<u8>,
    pub error: Option<Errno>,
    /// Name of an extended attribute, where it is about one.
    pub attribute: Option<Vec<u8>>,
}

impl SourceProblem {
    /// Whether nothing that could be backed up is missing.
    pub fn is_note(&self) -> bool {
        self.kind == ProblemKind::PseudoFileSystem
    }
}

impl std::fmt::Display for SourceProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path: &[u8] = if self.path.is_empty() { b"." } else { &self.path };
        let path = path.escape_ascii();
        match self.kind {
            ProblemKind::Directory => write!(f, "cannot open the directory {path}")?,
            ProblemKind::Listing => write!(f, "cannot list the whole directory {path}")?,
            ProblemKind::Entry => write!(f, "cannot look at {path}")?,
            ProblemKind::Metadata => match &self.attribute {
                Some(name) => write!(f, "cannot read the attribute {} of {path}", name.escape_ascii())?,
                None => write!(f, "cannot read the attributes of {path}")?,
            },
            ProblemKind::Loop => write!(f, "{path} is one of its own ancestors and was not entered")?,
            ProblemKind::Replaced => write!(
                f,
                "the directory {path} was replaced during the walk and was not entered"
            )?,
            ProblemKind::TooDeep => write!(f, "{path} lies too deep to be stored")?,
            ProblemKind::PseudoFileSystem => write!(f, "{path} is made up by the kernel and was not entered")?,
            ProblemKind::Unsupported => write!(f, "{path} cannot be stored")?,
        }
        match self.error {
            Some(error) => write!(f, ": {error}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
