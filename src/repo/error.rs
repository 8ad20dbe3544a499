//! Errors of the repository side. There is no conversion from source or target errors: a repository error stops a
//! commit, a source error is recorded in the snapshot (invariant I-12).

use crate::edge::store::{Failure, StoreError};
use crate::pure::base::{Explain, Kind};
use crate::pure::format::FormatError;
use crate::pure::id::{ChunkId, RepoId, SessionId};
use crate::repo::index::IndexError;

/// Why something in or with the repository did not work.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    #[error("{doing}")]
    Store {
        doing: String,
        #[source]
        source: StoreError,
    },
    #[error("{doing} {object}: the stored object is not acceptable")]
    Object {
        doing: &'static str,
        object: String,
        #[source]
        source: FormatError,
    },
    #[error("{object} is missing from the repository: {why}")]
    Missing { object: String, why: String },
    #[error("chunk {0} is in no pack that the index knows")]
    UnknownChunk(ChunkId),
    #[error("{location} does not hold a larder repository")]
    NotARepository { location: String },
    #[error("{location} already holds a repository")]
    AlreadyARepository { location: String },
    #[error("{location} holds repository {found}, but on this machine it is known to hold {expected}")]
    OtherRepository {
        location: String,
        found: RepoId,
        expected: RepoId,
    },
    #[error("the password or key does not open this repository")]
    WrongKey,
    #[error("this repository has no key that can be opened with a {0}")]
    NoSuchProtector(&'static str),
    #[error("no grant for this key: it has been removed, or never finished being added")]
    NoGrant,
    #[error("this key does not hold the secrets of epoch {0}, which the repository is in")]
    NoEpoch(u32),
    #[error("this key has been revoked by configuration {0}")]
    KeyRevoked(u64),
    #[error("this key may not {0}")]
    Role(&'static str),
    #[error("this key can only write to the repository, and read nothing back: it may not {0}")]
    WriteOnly(&'static str),
    #[error("{location} is a replica, which only `larder repo replicate` writes to")]
    IsReplica { location: String },
    #[error("{location} is not the primary of this repository any more: its configuration names another place")]
    Superseded { location: String },
    #[error("the newest configuration seen before was number {seen}, now the newest is {found}")]
    ConfigRollback { seen: u64, found: u64 },
    #[error("history has a gap: {what}")]
    Gap { what: String },
    #[error("session {0} was declared dead by maintenance while it was running; nothing of it was published")]
    Fenced(SessionId),
    #[error(
        "snapshot {0}, which this run builds on, was forgotten while the run went on; what was done so far is in a checkpoint"
    )]
    Unpinned(SessionId),
    #[error("the local index cannot be used")]
    Index(#[from] IndexError),
    #[error("no snapshot matches {0:?}")]
    NoSuchSnapshot(String),
    #[error(
        "no complete snapshot matches {text:?}, only what runs left that did not end; the newest is checkpoint {newest}"
    )]
    OnlyCheckpoints { text: String, newest: String },
    #[error("{text:?} is ambiguous; it matches {}", .candidates.join(", "))]
    AmbiguousSnapshot { text: String, candidates: Vec<String> },
    #[error("another backup of the same source is running on this machine")]
    Overlap,
    #[error("interrupted")]
    Interrupted,
    #[error("an earlier error stopped this session, so nothing was published")]
    Poisoned,
    #[error("a pack did not decode before it was uploaded; its data was damaged in memory")]
    PackDidNotVerify {
        #[source]
        source: FormatError,
    },
    #[error("{what}")]
    Local {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Internal(String),
}

/// Adds what was being done to a store error.
pub fn store_error(doing: impl Into<String>) -> impl FnOnce(StoreError) -> RepoError {
    let doing = doing.into();
    move |source| RepoError::Store { doing, source }
}

/// Adds which object was being opened to a format error.
pub fn object_error(doing: &'static str, object: impl ToString) -> impl FnOnce(FormatError) -> RepoError {
    // Only an error needs the text: this is called for every chunk.
    move |source| RepoError::Object {
        doing,
        object: object.to_string(),
        source,
    }
}

impl RepoError {
    /// Whether the error says that stored data is missing or wrong (as opposed to a store that cannot be reached).
    pub fn is_damage(&self) -> bool {
        matches!(self.kind(), Kind::Damage | Kind::Tamper)
    }

    /// Whether the error says that this key does not hold the secret for it. Another key may.
    pub fn is_missing_key(&self) -> bool {
        matches!(
            self,
            RepoError::WriteOnly(_)
                | RepoError::Object {
                    source: FormatError::MissingKey(_),
                    ..
                }
        )
    }

    /// Whether the store refuses this machine's credentials what was asked for.
    pub fn is_denied(&self) -> bool {
        matches!(self, RepoError::Store { source, .. } if source.class == Failure::Denied)
    }

    /// Whether the error says that an object is not there.
    pub fn is_absence(&self) -> bool {
        matches!(self, RepoError::Store { source, .. } if source.class == Failure::NotFound)
    }

    /// Whether the error says something about what was read, and not about the store.
    pub fn is_about_one_object(&self) -> bool {
        self.is_damage() || matches!(self, RepoError::Store { source, .. } if source.class == Failure::Protocol)
    }

    /// Whether the error says that the store has no room.
    pub fn is_full(&self) -> bool {
        matches!(self, RepoError::Store { source, .. } if source.class == Failure::Full)
    }

    /// Whether the error says that nothing can be had from the store just now.
    pub fn is_outage(&self) -> bool {
        let RepoError::Store { source, .. } = self else {
            return false;
        };
        matches!(
            source.class,
            Failure::Transient | Failure::Unreachable | Failure::Cancelled
        )
    }
}

impl Explain for RepoError {
    fn kind(&self) -> Kind {
        match self {
            RepoError::Store { source, .. } if source.class == Failure::NotFound => Kind::Damage,
            RepoError::Store { source, .. } => source.kind(),
            RepoError::Object {
                source: FormatError::Signature(_),
                ..
            } => Kind::Tamper,
            RepoError::Object {
                source: FormatError::TooNew { .. },
                ..
            } => Kind::Usage,
            RepoError::Object {
                source: FormatError::MissingKey(_),
                ..
            } => Kind::Auth,
            RepoError::Object { .. } | RepoError::Missing { .. } | RepoError::UnknownChunk(_) => Kind::Damage,
            RepoError::NotARepository { .. } => Kind::Unavailable,
            RepoError::AlreadyARepository { .. } => Kind::Usage,
            RepoError::OtherRepository { .. } | RepoError::ConfigRollback { .. } | RepoError::Gap { .. } => {
                Kind::Tamper
            }
            RepoError::WrongKey
            | RepoError::NoSuchProtector(_)
            | RepoError::NoGrant
            | RepoError::NoEpoch(_)
            | RepoError::KeyRevoked(_)
            | RepoError::Role(_)
            | RepoError::WriteOnly(_) => Kind::Auth,
            RepoError::Fenced(_)
            | RepoError::Unpinned(_)
            | RepoError::IsReplica { .. }
            | RepoError::Superseded { .. } => Kind::Refused,
            RepoError::Index(_) | RepoError::Local { .. } => Kind::Unavailable,
            RepoError::NoSuchSnapshot(_) | RepoError::OnlyCheckpoints { .. } | RepoError::AmbiguousSnapshot { .. } => {
                Kind::Usage
            }
            RepoError::Overlap => Kind::Busy,
            RepoError::Interrupted => Kind::Interrupted,
            RepoError::Poisoned | RepoError::PackDidNotVerify { .. } | RepoError::Internal(_) => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            // An object that is not there, or is too short, is damage like any other.
            RepoError::Store { source, .. } if source.class != Failure::NotFound || source.hint.is_some() => {
                return source.hint();
            }
            RepoError::Object {
                source: FormatError::TooNew { .. },
                ..
            } => "install a newer version of larder",
            RepoError::Object {
                source: FormatError::Signature(_),
                ..
            } => {
                "somebody without the right key has written to this repository; compare with a copy, and run `larder repo check`"
            }
            RepoError::Object {
                source: FormatError::MissingKey(_),
                ..
            } => "use a key that holds it; an admin gives this one what it lacks with `larder repo key rotate`",
            RepoError::Store { .. }
            | RepoError::Object { .. }
            | RepoError::Missing { .. }
            | RepoError::UnknownChunk(_) => {
                "run `larder repo check --read-data` to see which files and snapshots are hit; what is damaged can often be had from an older or newer snapshot"
            }
            RepoError::NotARepository { .. } => {
                "check the address, and that the disk is mounted; a new repository is made with `larder repo init`"
            }
            RepoError::AlreadyARepository { .. } => "use it as it is, or choose another address",
            RepoError::OtherRepository { .. } => {
                "if it was replaced on purpose, remove the local cache of this repository; otherwise another disk or bucket is in its place"
            }
            RepoError::WrongKey => "check LARDER_PASSWORD, --password-file, --key-file or --key-command",
            RepoError::NoSuchProtector(_) => "`larder repo key list` shows what opens it",
            RepoError::NoGrant => "ask whoever administers the repository to add this key again",
            RepoError::NoEpoch(_) => {
                "the keys were rotated and this one was left out: an admin gives it what it lacks with `larder repo key rotate`"
            }
            RepoError::KeyRevoked(_) => "ask whoever administers the repository for a new key",
            RepoError::Role(_) => "use a key with that role",
            RepoError::WriteOnly(_) => {
                "do this with another key, and not on this machine; with this one, `larder backup` and `larder snapshot list` work"
            }
            RepoError::IsReplica { .. } => {
                "write to the primary; if that is lost for good, `larder repo promote` makes this the primary"
            }
            RepoError::Superseded { .. } => {
                "write to the new primary; `larder repo replicate` from there makes this a replica"
            }
            RepoError::ConfigRollback { .. } | RepoError::Gap { .. } => {
                "the listing is stale, or an older copy of the repository is in its place; nothing was changed. Compare with the store's own records before going on"
            }
            RepoError::Fenced(_) | RepoError::Unpinned(_) => "run the backup again: what it uploaded is used again",
            RepoError::Index(_) => "the local index is disposable: remove the cache directory and run again",
            RepoError::NoSuchSnapshot(_) => "`larder snapshot list` shows what there is",
            RepoError::OnlyCheckpoints { .. } => {
                "a checkpoint holds the part that was done when it was made: name it by its id to use it"
            }
            RepoError::AmbiguousSnapshot { .. } => "give more digits",
            RepoError::Overlap => "wait for it to end, or look for a hung process",
            RepoError::Interrupted => "run the same command again: what was uploaded is used again",
            RepoError::PackDidNotVerify { .. } => {
                "suspect this machine's memory or processor; test the hardware before trusting any new backup"
            }
            RepoError::Internal(_) => "this is a defect of larder: please report it",
            RepoError::Local { .. } | RepoError::Poisoned => return None,
        };
        Some(text.to_owned())
    }
}
