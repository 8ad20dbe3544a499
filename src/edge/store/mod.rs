//! Named bytes somewhere: the store contract. Every store and wrapper passes `contract.rs`.

#[cfg(feature = "testing")]
pub mod contract;
pub mod counting;
pub mod key;
pub mod limit;
pub mod local;
pub mod location;
pub mod lock;
pub mod memory;
pub mod retry;
#[cfg(feature = "s3")]
pub mod s3;

pub use key::{Prefix, StoreKey};
pub use lock::{Lock, Refused, Retention, Version, Versions};

use crate::pure::base::{Explain, Kind, LockMode, Timestamp};
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
pub struct Listed {
    pub key: StoreKey,
    pub size: u64,
    pub modified: Option<Timestamp>,
}

/// Size and store time of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub size: u64,
    pub modified: Option<Timestamp>,
}

/// Which bytes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The whole object, if it has no more bytes than this; else `Failure::Unreadable`, before they are fetched.
    AtMost(u64),
    Range(Range<u64>),
    /// The last n bytes (all of a shorter object).
    Suffix(u64),
}

/// What has arrived of a part so far. An attempt that breaks off leaves it to the next one.
#[derive(Debug, Default)]
pub struct Partial {
    /// The bytes, from the part's beginning.
    pub bytes: Vec<u8>,
    /// Where in the object the part begins and ends, and which version of the object it is; known after the first answer.
    pub place: Option<(Range<u64>, String)>,
}

/// What a store was seen to do (probe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    pub conditional_create: bool,
    pub verifies_checksums: bool,
    pub strong_listing: bool,
}

/// Why a store call failed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {object} failed ({class:?})")]
pub struct StoreError {
    /// What was being done: "reading", "writing", "listing", "deleting", "locking", "putting back", "connecting to".
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
    /// The store is there, but gives out the bytes of this one object no more: a bad sector, a checksum of the file system
    /// that does not fit, an archive class, or far too many bytes. Damage of the object, not an outage.
    Unreadable,
    /// Anything else that trying again will not cure.
    Permanent,
    /// The call was cancelled by a signal.
    Cancelled,
}

impl StoreError {
    /// Makes an error without hint or source.
    pub fn new(what: &'static str, object: impl ToString, class: Failure) -> StoreError {
        StoreError {
            what,
            object: object.to_string(),
            class,
            hint: None,
            source: None,
        }
    }

    /// Adds the next step for the person who reads it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> StoreError {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what lies below.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
        self.source = Some(source.into());
        self
    }
}

impl Explain for StoreError {
    fn kind(&self) -> Kind {
        match self.class {
            Failure::Denied => Kind::Auth,
            Failure::Cancelled => Kind::Interrupted,
            Failure::Unreadable => Kind::Damage,
            _ => Kind::Unavailable,
        }
    }
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
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
    /// Reads on where `partial` stands, until it holds the whole part. After a failure it holds what has arrived, and a
    /// further call goes on from there.
    fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        partial.bytes = self.read(key, part.clone())?.into();
        Ok(())
    }
    /// Calls `each` for every object whose key starts with `prefix`, keys strictly ascending. Names that are no keys are
    /// left out, and so are the files under `tmp/` unless the prefix asks for them.
    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError>;
    /// As `list`, but only keys after `after`: how a broken listing is taken up again without starting over.
    fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        self.list(prefix, &mut |row| {
            if after.is_none_or(|after| row.key > *after) {
                each(row)
            }
        })
    }
    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError>;
    /// Deletes objects; absent ones are fine.
    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError>;
    /// Gives a damaged or lost object its bytes back, under its name, all at once. The one way in which bytes of an object are ever
    /// replaced: the caller has proven that these are the ones that it was created with. Only a directory can do it.
    fn put_back(&self, key: &StoreKey, _body: Bytes) -> Result<(), StoreError> {
        Err(StoreError::new("putting back", key, Failure::Permanent)
            .caused_by("objects of this store are not replaced"))
    }
    /// Prepares an empty place for a repository (directories, or a check that the bucket is there).
    fn prepare(&self) -> Result<(), StoreError>;
    /// Tries out what the store does under `tmp/` and cleans up.
    fn probe(&self) -> Result<Abilities, StoreError>;
    /// Removes what killed writers left under `tmp/`, where nobody else does that; returns how much.
    fn sweep(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
    /// Gives up room that was kept for a full disk, so that what frees space can be written. True if there was some.
    fn give_up_reserve(&self) -> bool {
        false
    }
    /// Says whether creating may rest on the store's own "create if absent": what `probe` found when the repository was made,
    /// and its configuration says since. Without it, creating looks first and compares afterwards.
    fn set_conditional(&self, conditional: bool);
    /// Has the store lock what is created from now on. Where nothing is locked, this has no effect.
    fn set_lock(&self, _lock: Option<Lock>) {}
    /// Finds out whether the store locks objects, by locking a small one below `tmp/` for some minutes. What could not be seen
    /// is an error.
    fn try_lock(&self, _mode: LockMode) -> Result<(), StoreError> {
        Err(no_locks("locking", &self.location()))
    }
    /// Returns the lock of a version that the store has listed, over or not.
    fn retention(&self, key: &StoreKey, _version: &Version) -> Result<Option<Retention>, StoreError> {
        Err(no_locks("looking at the lock of", key))
    }
    /// Locks a version that the store has listed until a later time than it is locked for. Earlier ones are refused by the store.
    fn extend(&self, key: &StoreKey, _version: &Version, _retention: Retention) -> Result<(), StoreError> {
        Err(no_locks("locking", key))
    }
    /// Deletes objects for good. Where the store locks (`set_lock`), that is every version of them; what it refuses to delete stays
    /// as it is, and is returned. Elsewhere it is `remove`.
    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        self.remove(keys)?;
        Ok(Vec::new())
    }
    /// Calls `each` for every name that starts with `prefix` and comes after `after`, ascending, with all its versions: names that
    /// count as deleted too.
    fn list_versions(
        &self,
        prefix: &Prefix,
        _after: Option<&StoreKey>,
        _each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        Err(no_locks("listing the versions of", prefix))
    }
    /// How the user addressed it, without secrets.
    fn location(&self) -> String;
    /// Where exact ranges leak nothing and cost nothing (local disks): reads need not be aligned.
    fn is_local(&self) -> bool {
        false
    }
    /// Requests so far, where they are counted.
    fn requests(&self) -> u64 {
        0
    }
}

impl<S: Store + ?Sized> Store for std::sync::Arc<S> {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        (**self).create(key, body)
    }
    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        (**self).read(key, part)
    }
    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        (**self).read_into(key, offset, buffer)
    }
    fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        (**self).read_on(key, part, partial)
    }
    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        (**self).list(prefix, each)
    }
    fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        (**self).list_after(prefix, after, each)
    }
    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        (**self).stat(key)
    }
    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        (**self).remove(keys)
    }
    fn put_back(&self, key: &StoreKey, body: Bytes) -> Result<(), StoreError> {
        (**self).put_back(key, body)
    }
    fn prepare(&self) -> Result<(), StoreError> {
        (**self).prepare()
    }
    fn probe(&self) -> Result<Abilities, StoreError> {
        (**self).probe()
    }
    fn sweep(&self) -> Result<u64, StoreError> {
        (**self).sweep()
    }
    fn give_up_reserve(&self) -> bool {
        (**self).give_up_reserve()
    }
    fn set_conditional(&self, conditional: bool) {
        (**self).set_conditional(conditional)
    }
    fn set_lock(&self, lock: Option<Lock>) {
        (**self).set_lock(lock)
    }
    fn try_lock(&self, mode: LockMode) -> Result<(), StoreError> {
        (**self).try_lock(mode)
    }
    fn retention(&self, key: &StoreKey, version: &Version) -> Result<Option<Retention>, StoreError> {
        (**self).retention(key, version)
    }
    fn extend(&self, key: &StoreKey, version: &Version, retention: Retention) -> Result<(), StoreError> {
        (**self).extend(key, version, retention)
    }
    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        (**self).erase(keys)
    }
    fn list_versions(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        (**self).list_versions(prefix, after, each)
    }
    fn location(&self) -> String {
        (**self).location()
    }
    fn is_local(&self) -> bool {
        (**self).is_local()
    }
    fn requests(&self) -> u64 {
        (**self).requests()
    }
}

/// The error of every store for an object without bytes: all of ours end in hashes, so an empty one is a mistake.
fn refuse_empty(key: &StoreKey, body: &Bytes) -> Result<(), StoreError> {
    if body.is_empty() {
        return Err(StoreError::new("writing", key, Failure::Permanent).caused_by("an object is never empty"));
    }
    Ok(())
}

/// The error of a store that neither locks objects nor keeps their versions.
fn no_locks(what: &'static str, object: &impl ToString) -> StoreError {
    StoreError::new(what, object.to_string(), Failure::Permanent)
        .caused_by("this kind of store has no Object Lock and keeps no versions")
        .with_hint("Object Lock is for buckets that were made with it")
}

/// The error for an object that is larger than what its name says can be.
fn too_large(key: &StoreKey, size: u64) -> StoreError {
    StoreError::new("reading", key, Failure::Unreadable)
        .caused_by(format!(
            "it has {size} bytes, more than an object of that name can have"
        ))
        .with_hint("it is not what its name says: somebody may have put it there")
}

/// A random name for a file or object that is only being tried out or written.
fn random_name() -> Result<String, StoreError> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random)
        .map_err(|error| StoreError::new("writing", "tmp", Failure::Permanent).caused_by(error.to_string()))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A fresh key `tmp/probe-<random>`.
fn probe_key() -> Result<StoreKey, StoreError> {
    Ok(StoreKey::new(format!("tmp/probe-{}", random_name()?)).expect("hexadecimal digits make a key"))
}
