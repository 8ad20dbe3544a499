//! Object Lock and versions of a bucket (ADR-0027). A bucket that locks keeps versions: a plain DELETE only hides an object, and a locked
//! version is not deleted by anybody.
//!
//! Versions are found by listing. Ceph lists from the key marker on, AWS from behind it: rows that come before are passed over.

use super::settings::Answer;
use super::{Condition, DELETE_BATCH, PAGE_KEYS, Put, S3Store, Said, not_s3, protocol, timestamp, with_optional_hint};
use crate::edge::host;
use crate::edge::store::{
    Failure, Lock, Prefix, Refused, Retention, Store, StoreError, StoreKey, Version, Versions, probe_key,
};
use crate::pure::base::{LockMode, Timestamp};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{Delete, ObjectIdentifier, ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

/// A probe is locked for this long: longer than the clocks of a service and its client may differ.
const PROBE_LOCK_NS: i64 = 20 * 60 * 1_000_000_000;
/// Versions of one name that are kept in memory. Whoever writes more of them does not make us lose the oldest.
const VERSIONS_MAX: usize = 1000;
/// How services say that there is no lock on an object.
const UNLOCKED: [&str; 2] = ["NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"];
/// How they say that an object is not deleted because it is locked, or that one must not.
const KEPT: [&str; 4] = ["AccessDenied", "InvalidRequest", "ObjectLocked", "MethodNotAllowed"];
const NO_LOCK_HINT: &str =
    "Object Lock is turned on when a bucket is made, or by its owner afterwards: see the manual of the service";

/// A page of a listing of versions.
struct Page {
    /// In the order of names, for each the newest first.
    rows: Vec<(String, Version)>,
    next: Option<(String, Option<String>)>,
}

pub(super) fn put_mode(mode: LockMode) -> ObjectLockMode {
    match mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    }
}

/// Services keep whole seconds, some by leaving the rest away.
pub(super) fn whole_seconds(time: Timestamp) -> DateTime {
    DateTime::from_secs(time.0.div_euclid(1_000_000_000) + i64::from(time.0.rem_euclid(1_000_000_000) > 0))
}

/// Adds what a refused put may have to do with the lock that it asks for.
pub(super) fn refused_put(error: StoreError, status: Option<u16>) -> StoreError {
    match (status, error.class) {
        (Some(400), Failure::Permanent) => error.with_hint(
            "the repository has its objects locked, and this bucket may be without Object Lock: look with `larder repo doctor`; \
             `larder repo object-lock off` goes without it",
        ),
        (_, Failure::Denied) => {
            let first = error.hint.clone().unwrap_or_default();
            error.with_hint(format!(
                "{first}; a repository with Object Lock also needs s3:PutObjectRetention (`larder repo key policy`)"
            ))
        }
        _ => error,
    }
}

/// A name that comes right before a key, and that no key is.
fn before(key: &str) -> String {
    let mut name = key.to_owned();
    // `~` is greater than what keys are made of, and what stands before it is smaller than what the key has there.
    let last = name.pop().map_or(0, |last| last as u8);
    name.push(char::from(last.saturating_sub(1)));
    name.push('~');
    name
}

impl S3Store {
    /// The lock that an object gets when it is created now.
    pub(super) fn lock_of(&self, key: &StoreKey) -> Option<Retention> {
        let lock: Option<Lock> = *self.lock.lock();
        lock.and_then(|lock| lock.of(key, host::now()))
    }

    pub(super) async fn retention_of(
        &self,
        key: &StoreKey,
        version: &Version,
    ) -> Result<Option<Retention>, StoreError> {
        let what = "looking at the lock of";
        let call = self
            .client
            .get_object_retention()
            .bucket(&self.bucket)
            .key(self.name(key.as_str()))
            .version_id(&version.id)
            .send();
        let output = match self.watched(what, key, &AtomicU64::new(0), call).await? {
            Ok(output) => output,
            Err(error) => {
                let code = error.as_service_error().and_then(|service| service.code());
                if code.is_some_and(|code| UNLOCKED.contains(&code)) {
                    return Ok(None);
                }
                let (error, _) = self.failed(what, key, error);
                return Err(match error.class {
                    Failure::Denied => error.with_hint("the credentials need s3:GetObjectRetention"),
                    _ => error,
                });
            }
        };
        let Some(retention) = output.retention() else {
            return Ok(None);
        };
        let mode = match retention.mode() {
            Some(ObjectLockRetentionMode::Governance) => LockMode::Governance,
            Some(ObjectLockRetentionMode::Compliance) => LockMode::Compliance,
            _ => return Err(protocol(what, key, "the lock is of a kind that is not known")),
        };
        let until = retention.retain_until_date().and_then(timestamp);
        let until = until.ok_or_else(|| protocol(what, key, "the lock has no end"))?;
        Ok(Some(Retention { mode, until }))
    }

    pub(super) async fn put_retention(
        &self,
        key: &StoreKey,
        version: &Version,
        retention: Retention,
    ) -> Result<(), StoreError> {
        let mode = match retention.mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let retention = ObjectLockRetention::builder()
            .mode(mode)
            .retain_until_date(whole_seconds(retention.until))
            .build();
        let call = self
            .client
            .put_object_retention()
            .bucket(&self.bucket)
            .key(self.name(key.as_str()))
            .version_id(&version.id)
            .retention(retention)
            .send();
        let answer = self.answered("locking", key, call).await;
        answer.map(drop).map_err(|error| match error.class {
            Failure::Denied => error.with_hint("the credentials need s3:PutObjectRetention"),
            _ => error,
        })
    }

    /// Locks an object, and looks: a service may take the headers and ignore them.
    pub(super) fn lock_a_probe(&self, mode: LockMode) -> Result<(), StoreError> {
        let failed = |class, text: &str| {
            StoreError::new("trying to lock in", &self.location, class).caused_by(Said(text.to_owned()))
        };
        let asked = self.client.get_object_lock_configuration().bucket(&self.bucket).send();
        match self.ask(asked, &UNLOCKED, |got| got.is_some()) {
            Answer::Is(true) => {}
            Answer::Is(false) | Answer::NotSupported => {
                return Err(failed(Failure::Permanent, "the bucket has no Object Lock").with_hint(NO_LOCK_HINT));
            }
            // Whether it locks shows below.
            Answer::Unknown(_) => {}
        }
        let key = probe_key()?;
        let wanted = Retention {
            mode,
            until: Timestamp(host::now().0.saturating_add(PROBE_LOCK_NS)),
        };
        let body = Bytes::from_static(b"probe");
        let sum = self.sum(&body);
        match self.run(self.put(&key, body, Condition::NameFree, sum, Some(wanted)))? {
            Put::Verified | Put::Unverified => {}
            Put::NameTaken => return Err(failed(Failure::Transient, "the random name of the probe was taken")),
        }
        let looked = self.look_at_probe(&key, wanted);
        // Hidden now, and erased by the next prune when its lock is over.
        let hidden = self.remove(std::slice::from_ref(&key));
        looked.and(match hidden {
            Err(error) if error.class != Failure::Denied => Err(error),
            _ => Ok(()),
        })
    }

    fn look_at_probe(&self, key: &StoreKey, wanted: Retention) -> Result<(), StoreError> {
        let failed = |text: String| {
            StoreError::new("trying to lock in", &self.location, Failure::Permanent)
                .caused_by(Said(text))
                .with_hint("the service takes the wish for a lock and does not fulfil it: do not rely on it")
        };
        let found = self.versions_of(std::slice::from_ref(key))?;
        let version = found.get(key).and_then(|all| all.first());
        let version = version.ok_or_else(|| failed("an object that was just locked has no version".into()))?;
        let found = self.run(self.retention_of(key, version))?;
        let is_kept = found
            .is_some_and(|found| found.mode == wanted.mode && found.until.0.abs_diff(wanted.until.0) <= 2_000_000_000);
        if !is_kept {
            return Err(failed(format!(
                "the object was to be locked ({wanted:?}), and is not ({found:?})"
            )));
        }
        let refused = self.delete_versions(&[(key.clone(), version.clone())])?;
        match refused.is_empty() {
            true => Err(failed("the store has deleted an object that was locked".into())),
            false => Ok(()),
        }
    }

    async fn version_page(&self, prefix: &str, marker: Option<&(String, Option<String>)>) -> Result<Page, StoreError> {
        let what = "listing the versions of";
        let call = self
            .client
            .list_object_versions()
            .bucket(&self.bucket)
            .prefix(prefix)
            .max_keys(PAGE_KEYS)
            .set_key_marker(marker.map(|(key, _)| key.clone()))
            .set_version_id_marker(marker.and_then(|(_, version)| version.clone()))
            .send();
        let page = self
            .answered(what, &prefix, call)
            .await
            .map_err(|error| match error.class {
                Failure::Denied => error.with_hint("the credentials need s3:ListBucketVersions"),
                _ => error,
            })?;
        let Some(is_truncated) = page.is_truncated() else {
            return Err(not_s3(what, &prefix));
        };
        let broken = |text: &str| protocol(what, &prefix, text);
        // By name, then the newest first; of one second, what hides comes after what it hides.
        let mut rows: BTreeMap<String, Vec<(bool, Version)>> = BTreeMap::new();
        for row in page.versions() {
            let (Some(key), Some(id)) = (row.key(), row.version_id()) else {
                return Err(broken("a row has no key or no version"));
            };
            let size = row.size().and_then(|size| u64::try_from(size).ok());
            rows.entry(key.to_owned()).or_default().push((
                row.is_latest() == Some(true),
                Version {
                    id: id.to_owned(),
                    size: size.ok_or_else(|| broken("a row has no size"))?,
                    modified: row.last_modified().and_then(timestamp),
                    is_marker: false,
                },
            ));
        }
        for row in page.delete_markers() {
            let (Some(key), Some(id)) = (row.key(), row.version_id()) else {
                return Err(broken("a row has no key or no version"));
            };
            rows.entry(key.to_owned()).or_default().push((
                row.is_latest() == Some(true),
                Version {
                    id: id.to_owned(),
                    size: 0,
                    modified: row.last_modified().and_then(timestamp),
                    is_marker: true,
                },
            ));
        }
        let mut sorted = Vec::new();
        for (key, mut all) in rows {
            if !key.starts_with(prefix) {
                return Err(broken(&format!("{key:?} does not belong to the listing")));
            }
            all.sort_by(|(a_latest, a), (b_latest, b)| {
                let order = (b_latest, b.modified, b.is_marker);
                order.cmp(&(a_latest, a.modified, a.is_marker))
            });
            sorted.extend(all.into_iter().map(|(_, version)| (key.clone(), version)));
        }
        let next = match (is_truncated, page.next_key_marker()) {
            (false, _) => None,
            (true, Some(key)) => {
                let version = page.next_version_id_marker().filter(|version| !version.is_empty());
                Some((key.to_owned(), version.map(str::to_owned)))
            }
            (true, None) => return Err(broken("the listing says that it goes on, but not where")),
        };
        if next.is_some() && next.as_ref() == marker {
            return Err(broken("the listing does not go on"));
        }
        Ok(Page { rows: sorted, next })
    }

    /// Delivers the names of one listing of versions.
    pub(super) fn version_pages(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        let full_prefix = self.name(prefix.as_str());
        let mut marker = after.map(|key| (self.name(key.as_str()), None));
        let mut open: Option<Versions> = None;
        loop {
            let page = self.run(self.version_page(&full_prefix, marker.as_ref()))?;
            for (name, version) in page.rows {
                let key = name.get(self.prefix.len()..).and_then(StoreKey::new);
                let Some(key) = key.filter(|key| after.is_none_or(|after| key > after)) else {
                    continue;
                };
                match &mut open {
                    Some(versions) if versions.key == key => {
                        if versions.all.len() == VERSIONS_MAX {
                            versions.all.remove(VERSIONS_MAX / 2);
                        }
                        versions.all.push(version);
                    }
                    Some(versions) if versions.key > key => {
                        return Err(protocol("listing the versions of", prefix, "the names do not ascend"));
                    }
                    _ => {
                        let all = vec![version];
                        if let Some(done) = open.replace(Versions { key, all }) {
                            each(done);
                        }
                    }
                }
            }
            marker = match page.next {
                Some(next) => Some(next),
                None => break,
            };
        }
        if let Some(done) = open {
            each(done);
        }
        Ok(())
    }

    /// All versions of one key, the newest first.
    pub(super) async fn versions_of_one(&self, key: &StoreKey) -> Result<Vec<Version>, StoreError> {
        let name = self.name(key.as_str());
        let (mut all, mut marker) = (Vec::new(), None);
        loop {
            let page = self.version_page(&name, marker.as_ref()).await?;
            let own = page.rows.into_iter().filter(|(found, _)| *found == name);
            all.extend(own.map(|(_, version)| version));
            match page.next {
                Some(next) if next.0 == name => marker = Some(next),
                _ => return Ok(all),
            }
        }
    }

    /// Finds the versions of some keys, ascending, with as many requests as keys or as pages, whichever are fewer.
    fn versions_of(&self, keys: &[StoreKey]) -> Result<BTreeMap<StoreKey, VersionsFound>, StoreError> {
        let mut found: BTreeMap<StoreKey, VersionsFound> = BTreeMap::new();
        let mut at = 0;
        while let Some(key) = keys.get(at) {
            let folder = key.as_str().split_once('/').map_or("", |(folder, _)| folder);
            let under = self.name(&format!("{folder}/"));
            let mut marker = (before(&self.name(key.as_str())), None);
            loop {
                let page = self.run(self.version_page(&under, Some(&marker)))?;
                for (name, version) in page.rows {
                    let key = name.get(self.prefix.len()..).and_then(StoreKey::new);
                    if let Some(key) = key.filter(|key| keys.binary_search(key).is_ok()) {
                        let all = found.entry(key).or_default();
                        // A page can come again where a name begins anew.
                        if !all.0.iter().any(|known| known.id == version.id) && all.0.len() < VERSIONS_MAX {
                            all.0.push(version);
                        }
                    }
                }
                let Some(next) = page.next else {
                    at += keys[at..].partition_point(|key| self.name(key.as_str()).starts_with(&under));
                    break;
                };
                at += keys[at..].partition_point(|key| self.name(key.as_str()) < next.0);
                match keys.get(at) {
                    Some(key) if self.name(key.as_str()) == next.0 => marker = next,
                    _ => break,
                }
            }
        }
        Ok(found)
    }

    /// Deletes all versions of these keys. Marks that hide an object go after it, so that nothing that is kept comes back.
    pub(super) fn erase_versions(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        let mut refused = Vec::new();
        for batch in keys.chunks(DELETE_BATCH) {
            let found = self.versions_of(batch)?;
            let all = |markers: bool| -> Vec<(StoreKey, Version)> {
                let each = found
                    .iter()
                    .flat_map(|(key, all)| all.0.iter().map(move |version| (key, version)));
                each.filter(|(_, version)| version.is_marker == markers)
                    .map(|(key, version)| (key.clone(), version.clone()))
                    .collect()
            };
            let kept = self.delete_versions(&all(false))?;
            let mut markers = all(true);
            markers.retain(|(key, _)| kept.iter().all(|kept| kept.key != *key));
            refused.extend(kept);
            refused.extend(self.delete_versions(&markers)?);
        }
        Ok(refused)
    }

    /// Deletes versions; returns those that the store keeps.
    fn delete_versions(&self, versions: &[(StoreKey, Version)]) -> Result<Vec<Refused>, StoreError> {
        let mut refused = Vec::new();
        for batch in versions.chunks(DELETE_BATCH) {
            self.run(self.delete_version_batch(batch, &mut refused))?;
        }
        Ok(refused)
    }

    async fn delete_version_batch(
        &self,
        batch: &[(StoreKey, Version)],
        refused: &mut Vec<Refused>,
    ) -> Result<(), StoreError> {
        let what = "deleting";
        let object = format!("{} versions", batch.len());
        let identifiers = batch.iter().map(|(key, version)| {
            ObjectIdentifier::builder()
                .key(self.name(key.as_str()))
                .version_id(&version.id)
                .build()
                .expect("the key is set, nothing else is needed")
        });
        let delete = Delete::builder()
            .set_objects(Some(identifiers.collect()))
            .quiet(true)
            .build()
            .expect("the objects are set, nothing else is needed");
        let call = self.client.delete_objects().bucket(&self.bucket).delete(delete).send();
        let output = self.answered(what, &object, call).await?;
        for error in output.errors() {
            let code = error.code().unwrap_or_default();
            let message = error.message().unwrap_or_default();
            if matches!(code, "NoSuchKey" | "NoSuchVersion") {
                continue;
            }
            let is_meant = |(key, version): &&(StoreKey, Version)| {
                error.key() == Some(self.name(key.as_str()).as_str()) && error.version_id() == Some(version.id.as_str())
            };
            match batch.iter().find(is_meant) {
                Some((key, version)) if KEPT.contains(&code) => refused.push(Refused {
                    key: key.clone(),
                    version: version.clone(),
                    said: format!("{code}: {message}"),
                }),
                _ => {
                    let (class, hint) = super::classify(200, Some(code), message, false, None);
                    // A failure that is not known by name is not known to be final.
                    let class = if class == Failure::Protocol {
                        Failure::Transient
                    } else {
                        class
                    };
                    let failed = StoreError::new(what, error.key().unwrap_or(&object), class)
                        .caused_by(Said(format!("{code}: {message}")));
                    return Err(with_optional_hint(failed, hint));
                }
            }
        }
        Ok(())
    }
}

/// The versions of one key, the newest first.
#[derive(Default)]
struct VersionsFound(Vec<Version>);

impl VersionsFound {
    fn first(&self) -> Option<&Version> {
        self.0.iter().rfind(|version| !version.is_marker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_begins_right_before_a_key() {
        for (key, below) in [
            ("p/data/00/ab-c0", "p/data/00/ab-c"),
            ("tmp/a", "tmp/Z"),
            ("x/b", "x/a~"),
        ] {
            assert!(before(key).as_str() < key, "{key}");
            assert!(before(key).as_str() >= below, "{key}");
        }
    }

    #[test]
    fn the_end_of_a_lock_is_rounded_up() {
        assert_eq!(whole_seconds(Timestamp(1_000_000_000)).secs(), 1);
        assert_eq!(whole_seconds(Timestamp(1_000_000_001)).secs(), 2);
    }
}
