//! What stores know that lock objects and keep their versions: locks, and every version of a name.

use super::StoreKey;
use crate::pure::base::{LockMode, Timestamp};

/// A day, nanoseconds.
const DAY_NS: i64 = 86_400_000_000_000;

/// How the store is to lock what is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    pub mode: LockMode,
    pub days: u32,
    /// Objects whose names begin with one of these are locked, the others are not.
    pub under: &'static [&'static str],
}

impl Lock {
    /// Until when an object that is created now is locked; `None` if objects of this name are not.
    pub fn of(&self, key: &StoreKey, now: Timestamp) -> Option<Retention> {
        let is_under = self.under.iter().any(|start| key.as_str().starts_with(start));
        is_under.then(|| Retention {
            mode: self.mode,
            until: Timestamp(now.0.saturating_add(i64::from(self.days) * DAY_NS)),
        })
    }
}

/// A lock of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub mode: LockMode,
    pub until: Timestamp,
}

/// An object that the store does not delete: it is locked, or the credentials do not allow it. What it is shows its lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub key: StoreKey,
    pub version: Version,
    /// What the store said.
    pub said: String,
}

/// One version of an object, or a mark that hides those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// What the store calls it.
    pub id: String,
    pub size: u64,
    pub modified: Option<Timestamp>,
    /// It has no bytes, and says that the object was deleted.
    pub is_marker: bool,
}

/// All that the store has under one name, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    pub key: StoreKey,
    pub all: Vec<Version>,
}

impl Versions {
    /// The one that the object was created with. A name is written once, so any later one is not of us.
    pub fn first(&self) -> Option<&Version> {
        self.all.iter().rfind(|version| !version.is_marker)
    }

    /// Whether the object counts as deleted.
    pub fn is_hidden(&self) -> bool {
        self.all.first().is_some_and(|newest| newest.is_marker)
    }

    /// Whether something has been written under the name after the object was created.
    pub fn is_overwritten(&self) -> bool {
        self.all.iter().filter(|version| !version.is_marker).count() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_version_is_the_object_whatever_came_later() {
        let version = |id: &str, is_marker| Version {
            id: id.to_owned(),
            size: 1,
            modified: None,
            is_marker,
        };
        let key = StoreKey::new("snap/00").unwrap();
        let of = |all| Versions { key: key.clone(), all };
        let hidden = of(vec![version("m", true), version("b", false), version("a", false)]);
        assert_eq!(hidden.first().unwrap().id, "a");
        assert!(hidden.is_hidden() && hidden.is_overwritten());
        let whole = of(vec![version("a", false)]);
        assert!(!whole.is_hidden() && !whole.is_overwritten());
        assert_eq!(of(vec![version("m", true)]).first(), None);
    }

    #[test]
    fn only_names_that_are_meant_are_locked() {
        let lock = Lock {
            mode: LockMode::Governance,
            days: 2,
            under: &["data/", "config/"],
        };
        let of = |text: &str| lock.of(&StoreKey::new(text).unwrap(), Timestamp(5));
        assert_eq!(of("data/00/x").unwrap().until, Timestamp(5 + 2 * DAY_NS));
        assert_eq!(of("tmp/data"), None);
    }
}
