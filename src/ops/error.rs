//! Errors of the verbs.

use crate::pure::base::{Explain, Kind};
use crate::repo::RepoError;
use crate::repo::index::IndexError;
use crate::source::{SourceError, StreamError};
use crate::target::TargetError;

/// Why a verb did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The stream that results are written to failed.
    #[error("writing the output failed")]
    Output(#[source] std::io::Error),
    #[error("{0}")]
    Usage(String),
    #[error("{what}")]
    Refused { what: String, hint: String },
    /// Something is not as it must be before anything may be deleted.
    #[error("{what}, so nothing was deleted")]
    InDoubt {
        what: String,
        #[source]
        source: Option<Box<RepoError>>,
        /// What decides about the exit code.
        kind: Kind,
        hint: &'static str,
    },
    /// The copies of a repository do not go together, or cannot be brought together now.
    #[error("{what}")]
    Copies { what: String, kind: Kind, hint: String },
    #[error("interrupted; no snapshot was completed")]
    Interrupted,
    #[error("the time limit was reached")]
    TimeLimit,
}

impl From<IndexError> for OpError {
    fn from(error: IndexError) -> OpError {
        OpError::Repo(error.into())
    }
}

impl Explain for OpError {
    fn kind(&self) -> Kind {
        match self {
            OpError::Repo(error) => error.kind(),
            OpError::Source(error) => error.kind(),
            OpError::Stream(error) => error.kind(),
            OpError::Target(error) => error.kind(),
            OpError::Output(_) => Kind::Unavailable,
            OpError::Usage(_) => Kind::Usage,
            OpError::Refused { .. } => Kind::Refused,
            OpError::InDoubt { kind, .. } | OpError::Copies { kind, .. } => *kind,
            OpError::Interrupted => Kind::Interrupted,
            OpError::TimeLimit => Kind::TimeLimit,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            OpError::Repo(error) => error.hint(),
            OpError::Source(error) => error.hint(),
            OpError::Stream(error) => error.hint(),
            OpError::Target(error) => error.hint(),
            OpError::Output(_) | OpError::Usage(_) => None,
            OpError::Refused { hint, .. } | OpError::Copies { hint, .. } => Some(hint.clone()),
            OpError::InDoubt { hint, .. } => Some((*hint).to_owned()),
            OpError::Interrupted => Some("run the same command again: what was uploaded is used again".into()),
            OpError::TimeLimit => Some("run the same command again: it goes on where it stopped".into()),
        }
    }
}
