//! What a bucket is set to: lifecycle rules, versions, Object Lock, who may look in. Only read, one request for each.

use super::{S3Store, StoreError, StoreOptions};
use crate::edge::host;
use crate::pure::plan::lifecycle::{Rule, When};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::{
    BucketVersioningStatus, DeleteMarkerReplicationStatus, ExpirationStatus, LifecycleRule, ObjectLockEnabled,
    ReplicationRuleStatus,
};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;

/// What came of a question. What could not be asked is never taken for "all is well".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    Is(T),
    /// The service does not have such a thing.
    NotSupported,
    /// Access denied, or any other failure, in words.
    Unknown(String),
}

/// Groups that a bucket may be open to.
const EVERYBODY: [&str; 2] = ["AllUsers", "AuthenticatedUsers"];

/// The settings of a bucket.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the repository within the bucket; empty, or ends in a slash.
    pub prefix: String,
    /// Whether requests go over plain http.
    pub is_plain: bool,
    pub lifecycle: Answer<Vec<Rule>>,
    /// Whether versions are kept.
    pub versions: Answer<bool>,
    /// Object Lock: absent, or with the default mode and days, if there is one.
    pub lock: Answer<Option<Option<(String, String)>>>,
    /// Whether public access is blocked in all four ways; `None` if nothing is said about it.
    pub blocks_public: Answer<Option<bool>>,
    /// Whether the policy makes it public; `None` if there is no policy.
    pub is_public_by_policy: Answer<Option<bool>>,
    /// Whether a policy refuses requests without TLS; `None` if there is no policy.
    pub requires_tls: Answer<Option<bool>>,
    /// Groups of everybody that the access list grants something.
    pub open_to: Answer<Vec<String>>,
    /// The default encryption, if there is one.
    pub encryption: Answer<Option<String>>,
    /// Whether the provider replicates the bucket, delete markers included; `None` if it does not.
    pub replicates_deletes: Answer<Option<bool>>,
    /// How far this machine's clock is ahead of the service's, nanoseconds.
    pub clock_ahead: Answer<i64>,
}

/// Reads the settings of the bucket that a repository is in.
///
/// # Errors
/// When nothing can be asked at all: no credentials, no such address.
pub fn read(bucket: &str, prefix: &str, options: &StoreOptions) -> Result<Settings, StoreError> {
    let store = S3Store::open(bucket, prefix, options)?;
    Ok(store.settings())
}

/// Notes what time it is for the service.
#[derive(Debug, Default)]
struct Clock(Arc<Mutex<Option<i64>>>);

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "larder clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        let time = date.and_then(|date| i64::try_from(date.as_nanos()).ok());
        *self.0.lock() = time.map(|time| host::now().0.saturating_sub(time));
        Ok(())
    }
}

impl S3Store {
    fn settings(&self) -> Settings {
        let (client, bucket) = (&self.client, &self.bucket);
        let ahead = Arc::new(Mutex::new(None));
        let versions = client
            .get_bucket_versioning()
            .bucket(bucket)
            .customize()
            .interceptor(Clock(ahead.clone()));
        let versions = self.ask(versions.send(), &[], |got| {
            got.is_some_and(|got| got.status() == Some(&BucketVersioningStatus::Enabled))
        });
        let lifecycle = client.get_bucket_lifecycle_configuration().bucket(bucket);
        let policy = client.get_bucket_policy().bucket(bucket);
        let status = client.get_bucket_policy_status().bucket(bucket);
        let clock_ahead = match *ahead.lock() {
            Some(ahead) => Answer::Is(ahead),
            None => Answer::Unknown("the service did not say what time it is".into()),
        };
        Settings {
            prefix: self.prefix.clone(),
            is_plain: self.sign_payload,
            lifecycle: self.ask(lifecycle.send(), &["NoSuchLifecycleConfiguration"], |got| {
                got.map_or_else(Vec::new, |got| got.rules().iter().map(rule).collect())
            }),
            versions,
            lock: self.ask(
                client.get_object_lock_configuration().bucket(bucket).send(),
                &["ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration"],
                |got| {
                    let lock = got?.object_lock_configuration?;
                    (lock.object_lock_enabled() == Some(&ObjectLockEnabled::Enabled)).then(|| {
                        let default = lock.rule?.default_retention?;
                        let time = match (default.days, default.years) {
                            (Some(days), _) => format!("{days} days"),
                            (None, Some(years)) => format!("{years} years"),
                            (None, None) => return None,
                        };
                        Some((default.mode?.as_str().to_owned(), time))
                    })
                },
            ),
            blocks_public: self.ask(
                client.get_public_access_block().bucket(bucket).send(),
                &["NoSuchPublicAccessBlockConfiguration"],
                |got| {
                    let block = got?.public_access_block_configuration?;
                    let all = [
                        block.block_public_acls,
                        block.ignore_public_acls,
                        block.block_public_policy,
                        block.restrict_public_buckets,
                    ];
                    Some(all.iter().all(|blocked| *blocked == Some(true)))
                },
            ),
            is_public_by_policy: self.ask(status.send(), &["NoSuchBucketPolicy"], |got| {
                Some(got?.policy_status?.is_public.unwrap_or(false))
            }),
            requires_tls: self.ask(policy.send(), &["NoSuchBucketPolicy"], |got| {
                Some(got?.policy?.contains("aws:SecureTransport"))
            }),
            open_to: self.ask(client.get_bucket_acl().bucket(bucket).send(), &[], |got| {
                got.map_or_else(Vec::new, |got| {
                    let groups = got.grants().iter().filter_map(|grant| grant.grantee()?.uri());
                    let last = groups.map(|uri| uri.rsplit('/').next().unwrap_or(uri).to_owned());
                    last.filter(|group| EVERYBODY.contains(&group.as_str())).collect()
                })
            }),
            encryption: self.ask(
                client.get_bucket_encryption().bucket(bucket).send(),
                &["ServerSideEncryptionConfigurationNotFoundError"],
                |got| {
                    let rules = got?.server_side_encryption_configuration?.rules;
                    let default = rules.into_iter().next()?.apply_server_side_encryption_by_default?;
                    Some(default.sse_algorithm.as_str().to_owned())
                },
            ),
            replicates_deletes: self.ask(
                client.get_bucket_replication().bucket(bucket).send(),
                &["ReplicationConfigurationNotFoundError"],
                |got| {
                    let rules = got?.replication_configuration?.rules;
                    Some(rules.iter().any(|rule| {
                        rule.status == ReplicationRuleStatus::Enabled
                            && rule.delete_marker_replication().and_then(|deletes| deletes.status())
                                == Some(&DeleteMarkerReplicationStatus::Enabled)
                    }))
                },
            ),
            clock_ahead,
        }
    }

    /// Makes one request. `absent` are the codes that say that there is none of what was asked for.
    pub(super) fn ask<T, E, R>(
        &self,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        absent: &[&str],
        take: impl FnOnce(Option<T>) -> R,
    ) -> Answer<R>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let timed = async { tokio::time::timeout(self.stall_timeout, call).await };
        let error = match self.run(timed) {
            Ok(Ok(got)) => return Answer::Is(take(Some(got))),
            Ok(Err(error)) => error,
            Err(_) => return Answer::Unknown("no answer in time".into()),
        };
        let code = error
            .as_service_error()
            .and_then(|service| service.code())
            .unwrap_or_default();
        let status = error.raw_response().map(|response| response.status().as_u16());
        if absent.contains(&code) {
            return Answer::Is(take(None));
        }
        match (status, code) {
            (Some(501 | 405), _) | (_, "NotImplemented" | "MethodNotAllowed") => Answer::NotSupported,
            (Some(403), _) => Answer::Unknown("access denied".into()),
            (Some(status), code) => Answer::Unknown(format!("HTTP {status} {code}").trim_end().to_owned()),
            (None, _) => Answer::Unknown(super::in_one_line(&error)),
        }
    }
}

fn when(days: Option<i32>, date: Option<&DateTime>) -> Option<When> {
    match (days, date) {
        (Some(days), _) => Some(When::Days(days)),
        (None, Some(date)) => Some(When::Date(
            date.fmt(DateTimeFormat::DateTime)
                .unwrap_or_else(|_| "a certain day".into()),
        )),
        (None, None) => None,
    }
}

fn rule(rule: &LifecycleRule) -> Rule {
    let filter = rule.filter();
    let and = filter.and_then(|filter| filter.and());
    #[allow(deprecated)]
    let outer = rule.prefix();
    let prefix = filter
        .and_then(|filter| filter.prefix())
        .or(and.and_then(|and| and.prefix()))
        .or(outer);
    let expires = rule.expiration();
    Rule {
        id: rule.id().unwrap_or("without a name").to_owned(),
        is_enabled: rule.status() != &ExpirationStatus::Disabled,
        prefix: prefix.unwrap_or_default().to_owned(),
        needs_tags: filter.is_some_and(|filter| filter.tag().is_some())
            || and.is_some_and(|and| !and.tags().is_empty()),
        expires_old: rule
            .noncurrent_version_expiration()
            .and_then(|old| old.noncurrent_days()),
        expires: expires.and_then(|expires| when(expires.days(), expires.date())),
        moves: rule
            .transitions()
            .iter()
            .filter_map(|step| {
                let class = step.storage_class().map_or("another class", |class| class.as_str());
                Some((when(step.days(), step.date())?, class.to_owned()))
            })
            .collect(),
    }
}
