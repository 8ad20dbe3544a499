//! Named bytes somewhere: the store contract. Every store and wrapper passes `contract.rs`.

pub mod key;
pub mod local;
pub mod location;
pub mod memory;
pub mod retry;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "testing")]
pub mod contract;
pub mod counting;

pub use key::{Prefix, StoreKey};

use crate::pure::base::{Explain, Kind, Timestamp};
use bytes::Bytes;
use std::ops::Range;

/// What became of a create-if-absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Created {
    /// The object is durable and holds our bytes (also when an earlier attempt of this very call turned out to have landed).
    New,
    /// The name was taken by somebody else; nothing was written.
    Exists,
}

/// One row of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed { pub key: StoreKey, pub size: u64, pub modified: Option<Timestamp> }

/// Size and store time of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat { pub size: u64, pub modified: Option<Timestamp> }

/// Which bytes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part { Whole, Range(Range<u64>), /// The last n bytes (all of a shorter object).
    Suffix(u64) }

/// What a store was seen to do (probe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities { pub conditional_create: bool, pub verifies_checksums: bool, pub strong_listing: bool }

/// Why a store call failed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {object} failed ({class:?})")]
pub struct StoreError {
    /// What was being done: "reading", "writing", "listing", "deleting", "connecting to".
    pub what: &'static str,
    /// Key, prefix or location.
    pub object: String,
    pub class: Failure,
    /// Next step, where there is one.
    pub hint: Option<String>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Classes of failure that callers act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The object is not there (404), or the range lies outside of it.
    NotFound,
    /// Credentials missing, wrong or expired; or access denied (403). Never means "absent".
    Denied,
    /// No space, quota, or read-only.
    Full,
    ReadOnly,
    /// The bucket, directory or host does not exist or cannot be reached.
    Unreachable,
    /// Throttled or temporary (retry with back-off).
    Transient,
    /// The answer breaks the protocol (short body, wrong range, unsorted listing…).
    Protocol,
    /// Anything that trying again will not cure.
    Permanent,
    /// The call was cancelled by a signal.
    Cancelled,
}

impl Explain for StoreError {
    fn kind(&self) -> Kind {
        match self.class {
            Failure::Denied => Kind::Auth,
            Failure::Cancelled => Kind::Interrupted,
            _ => Kind::Unavailable,
        }
    }
    fn hint(&self) -> Option<String> { self.hint.clone() }
}

/// Named, write-once bytes. Calls block; every implementation may be used from many threads at once.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Creates an object if its name is free. On `New` the object is durable (I-4). Never overwrites.
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError>;
    /// Reads exactly the part asked for (a range must lie inside the object).
    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError>;
    /// As `read` of a range, into a buffer of exactly the range's length.
    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let bytes = self.read(key, Part::Range(offset..offset + buffer.len() as u64))?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    }
    /// Calls `each` for every object whose key starts with `prefix`, keys strictly ascending.
    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError>;
    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError>;
    /// Deletes objects; absent ones are fine.
    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError>;
    /// Prepares an empty place for a repository (directories, or a check that the bucket is there).
    fn prepare(&self) -> Result<(), StoreError>;
    /// Tries out what the store does under `tmp/` and cleans up.
    fn probe(&self) -> Result<Abilities, StoreError>;
    /// How the user addressed it, without secrets.
    fn location(&self) -> String;
    /// Where exact ranges leak nothing and cost nothing (local disks): reads need not be aligned.
    fn is_local(&self) -> bool { false }
    /// Requests so far, where they are counted.
    fn requests(&self) -> u64 { 0 }
}
