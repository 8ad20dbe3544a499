//! A bucket that keeps versions, as it was at a time (ADR-0029): for getting back after somebody has deleted or overwritten. Only listing
//! versions and reading them is needed (`s3:ListBucketVersions`, `s3:GetObjectVersion`); nothing is written.

use super::{S3Store, Said, timestamp_text};
use crate::edge::store::{Failure, Listed, Prefix, Stat, StoreError, StoreKey, Version, Versions};
use crate::pure::base::Timestamp;
use aws_sdk_s3::error::ProvideErrorMetadata;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

/// Names whose versions are remembered, so that reading what was listed takes one request.
const REMEMBERED_MAX: usize = 100_000;
/// How a bucket calls what it wrote when it kept no versions.
const NULL: &str = "null";

/// A time, and what was there.
#[derive(Debug)]
pub(super) struct AsOf {
    pub time: Timestamp,
    known: Mutex<HashMap<StoreKey, Version>>,
}

impl AsOf {
    pub(super) fn new(time: Timestamp) -> AsOf {
        AsOf {
            time,
            known: Mutex::default(),
        }
    }

    fn remember(&self, key: &StoreKey, version: &Version) {
        let mut known = self.known.lock();
        if known.len() == REMEMBERED_MAX {
            known.clear();
        }
        known.insert(key.clone(), version.clone());
    }
}

/// Chooses what an object was at a time. `None`: it was not there.
///
/// Whether it was there, the newest of what came until then says. What it was, the oldest does: a name is written once. Holds are an
/// exception, because one that was released can be made again under its name.
fn choose(row: &Versions, time: Timestamp) -> Option<&Version> {
    let until_then = || {
        let all = row.all.iter();
        all.filter(|version| version.modified.is_some_and(|modified| modified <= time))
    };
    if until_then().next()?.is_marker {
        return None;
    }
    match row.key.as_str().starts_with("hold/") {
        true => until_then().take_while(|version| !version.is_marker).last(),
        false => until_then().rfind(|version| !version.is_marker),
    }
}

fn no_versions(location: &impl ToString) -> StoreError {
    StoreError::new("reading as of a time", location.to_string(), Failure::Permanent)
        .caused_by(Said(
            "the bucket keeps no versions: what was deleted or overwritten in it is gone".into(),
        ))
        .with_hint("leave out --as-of; a replica may have what is gone here")
}

impl S3Store {
    /// The error of everything that would write.
    pub(super) fn require_now(&self, what: &'static str, object: &impl ToString) -> Result<(), StoreError> {
        match &self.as_of {
            None => Ok(()),
            Some(_) => Err(StoreError::new(what, object.to_string(), Failure::ReadOnly)
                .caused_by(Said("what was is only read".into()))
                .with_hint("leave out --as-of")),
        }
    }

    /// Lists what was there.
    pub(super) fn pages_as_of(
        &self,
        as_of: &AsOf,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        let hide_tmp = !prefix.as_str().starts_with("tmp");
        let (mut rows, mut with_versions) = (0u64, 0u64);
        let listed = self.version_pages(prefix, after, &mut |row| {
            rows += 1;
            with_versions += u64::from(row.all.iter().any(|version| version.id != NULL));
            if hide_tmp && row.key.as_str().starts_with("tmp/") {
                return;
            }
            let Some(version) = choose(&row, as_of.time) else {
                return;
            };
            as_of.remember(&row.key, version);
            each(Listed {
                key: row.key.clone(),
                size: version.size,
                modified: version.modified,
            });
        });
        listed?;
        // All may be from before the bucket began to keep them.
        if rows > 0 && with_versions == 0 && !self.keeps_versions()? {
            return Err(no_versions(&self.location));
        }
        Ok(())
    }

    fn keeps_versions(&self) -> Result<bool, StoreError> {
        let call = self.client.get_bucket_versioning().bucket(&self.bucket).send();
        let answer = self.run(self.watched(
            "looking whether versions are kept in",
            &self.location,
            &AtomicU64::new(0),
            call,
        ))?;
        match answer {
            Ok(output) => Ok(output.status().is_some()),
            // Not to be told is no sign that there are any.
            Err(error) if error.as_service_error().and_then(|service| service.code()) == Some("AccessDenied") => {
                Ok(false)
            }
            Err(error) => Err(self
                .failed("looking whether versions are kept in", &self.location, error)
                .0),
        }
    }

    /// Finds the version of an object that is read.
    pub(super) async fn version_as_of(&self, as_of: &AsOf, key: &StoreKey) -> Result<Version, StoreError> {
        if let Some(version) = as_of.known.lock().get(key) {
            return Ok(version.clone());
        }
        let all = self.versions_of_one(key).await?;
        let row = Versions { key: key.clone(), all };
        match choose(&row, as_of.time) {
            Some(version) => {
                as_of.remember(key, version);
                Ok(version.clone())
            }
            None => Err(StoreError::new("reading", key, Failure::NotFound)
                .caused_by(Said(format!("it was not there at {}", timestamp_text(as_of.time))))),
        }
    }

    pub(super) async fn stat_as_of(&self, as_of: &AsOf, key: &StoreKey) -> Result<Stat, StoreError> {
        let version = self.version_as_of(as_of, key).await?;
        Ok(Stat {
            size: version.size,
            modified: version.modified,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions with their times, the newest first; a negative one is a marker.
    fn row(key: &str, times: &[i64]) -> Versions {
        let version = |time: &i64| Version {
            id: time.to_string(),
            size: 1,
            modified: Some(Timestamp(time.abs())),
            is_marker: *time < 0,
        };
        Versions {
            key: StoreKey::new(key).unwrap(),
            all: times.iter().map(version).collect(),
        }
    }

    fn at(key: &str, times: &[i64], time: i64) -> Option<String> {
        choose(&row(key, times), Timestamp(time)).map(|version| version.id.clone())
    }

    #[test]
    fn what_came_later_is_not_seen_and_the_oldest_is_the_object() {
        let pack = "data/00/x";
        assert_eq!(at(pack, &[5], 4), None, "not yet");
        assert_eq!(at(pack, &[5], 5).as_deref(), Some("5"));
        assert_eq!(at(pack, &[-9, 5], 8).as_deref(), Some("5"), "deleted later");
        assert_eq!(at(pack, &[-9, 5], 9), None, "deleted then");
        assert_eq!(at(pack, &[9, 5], 8).as_deref(), Some("5"), "overwritten later");
        assert_eq!(
            at(pack, &[9, 5], 10).as_deref(),
            Some("5"),
            "and before: the first counts"
        );
        assert_eq!(
            at(pack, &[9, -7, 5], 10).as_deref(),
            Some("5"),
            "written anew after it was deleted"
        );
        assert_eq!(at(pack, &[9, -7, 5], 8), None);
        assert_eq!(
            at("hold/x/y", &[11, 9, -7, 5], 12).as_deref(),
            Some("9"),
            "a hold is made again"
        );
        assert_eq!(at("hold/x/y", &[9, -7, 5], 6).as_deref(), Some("5"));
    }
}
