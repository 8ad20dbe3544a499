//! The doctor before real buckets: `LARDER_TEST_S3_CEPH` and `LARDER_TEST_S3_MINISTACK` are addresses of servers, credentials come from
//! `AWS_*`. Each test makes a bucket of its own.
#![cfg(feature = "s3")]

use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, BucketVersioningStatus, ExpirationStatus,
    LifecycleExpiration, LifecycleRule, LifecycleRuleFilter, NoncurrentVersionExpiration, Transition,
    TransitionStorageClass, VersioningConfiguration,
};
use larder::edge::store::location::StoreOptions;
use larder::edge::store::s3::settings::{self, Answer};
use larder::ops::doctor::{self, Finding, Level};

pub(crate) struct Bucket {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) client: aws_sdk_s3::Client,
    pub(crate) name: String,
    pub(crate) endpoint: String,
}

impl Bucket {
    pub(crate) fn make(endpoint: &str) -> Bucket {
        Bucket::make_with(endpoint, false)
    }

    /// `locks`: with Object Lock.
    pub(crate) fn make_with(endpoint: &str, locks: bool) -> Bucket {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(async {
            let shared = aws_config::defaults(aws_config::BehaviorVersion::latest())
                .endpoint_url(endpoint)
                .load()
                .await;
            aws_sdk_s3::Client::from_conf(
                aws_sdk_s3::config::Builder::from(&shared)
                    .force_path_style(true)
                    .build(),
            )
        });
        let name = format!("larder-doctor-{:08x}", u32::from_le_bytes(larder::edge::host::random()));
        let call = client
            .create_bucket()
            .bucket(&name)
            .set_object_lock_enabled_for_bucket(locks.then_some(true));
        runtime.block_on(call.send()).unwrap();
        Bucket {
            runtime,
            client,
            name,
            endpoint: endpoint.to_owned(),
        }
    }

    fn set_rules(&self, rules: Vec<LifecycleRule>) {
        let rules = BucketLifecycleConfiguration::builder()
            .set_rules(Some(rules))
            .build()
            .unwrap();
        let call = self
            .client
            .put_bucket_lifecycle_configuration()
            .bucket(&self.name)
            .lifecycle_configuration(rules);
        self.runtime.block_on(call.send()).unwrap();
    }

    fn look(&self, prefix: &str) -> Vec<Finding> {
        let options = StoreOptions {
            endpoint: Some(self.endpoint.clone()),
            ..StoreOptions::default()
        };
        let settings = settings::read(&self.name, prefix, &options).unwrap();
        assert!(
            matches!(settings.clock_ahead, Answer::Is(ahead) if ahead.abs() < 60_000_000_000),
            "{settings:?}"
        );
        doctor::bucket(&settings, None)
    }
}

fn rule(id: &str, prefix: &str) -> aws_sdk_s3::types::builders::LifecycleRuleBuilder {
    LifecycleRule::builder()
        .id(id)
        .status(ExpirationStatus::Enabled)
        .filter(LifecycleRuleFilter::builder().prefix(prefix).build())
}

fn level(findings: &[Finding], subject: &str) -> Level {
    findings
        .iter()
        .filter(|finding| finding.subject == subject)
        .map(|finding| finding.level)
        .max()
        .unwrap_or_else(|| panic!("nothing about {subject}: {findings:?}"))
}

pub(crate) fn servers(test: &str) -> Vec<String> {
    let servers: Vec<String> = ["LARDER_TEST_S3_CEPH", "LARDER_TEST_S3_MINISTACK"]
        .iter()
        .filter_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .collect();
    if servers.is_empty() {
        eprintln!("SKIPPED: {test}: neither LARDER_TEST_S3_CEPH nor LARDER_TEST_S3_MINISTACK is set");
    }
    servers
}

#[test]
fn a_rule_that_destroys_is_found_and_harmless_ones_are_not() {
    for endpoint in servers("lifecycle rules") {
        let bucket = Bucket::make(&endpoint);
        let findings = bucket.look("backup");
        assert_eq!(level(&findings, "lifecycle"), Level::Ok, "{endpoint}: {findings:?}");
        assert_eq!(level(&findings, "versions"), Level::Warning, "{endpoint}: {findings:?}");
        // The tiering that manuals for backup buckets recommend.
        let expires = LifecycleExpiration::builder().days(2555).build();
        let step = |days, class: &str| {
            Transition::builder()
                .days(days)
                .storage_class(TransitionStorageClass::from(class))
                .build()
        };
        bucket.set_rules(vec![
            rule("backup-lifecycle", "")
                .expiration(expires.clone())
                .build()
                .unwrap(),
        ]);
        let findings = bucket.look("backup");
        assert_eq!(
            level(&findings, "lifecycle"),
            Level::Problem,
            "{endpoint}: {findings:?}"
        );
        assert!(
            findings
                .iter()
                .any(|finding| finding.what.contains("backup-lifecycle") && finding.what.contains("2555"))
        );
        let tiering = rule("tiering", "backup/").set_transitions(Some(vec![
            step(30, "STANDARD_IA"),
            step(90, "GLACIER"),
            step(365, "DEEP_ARCHIVE"),
        ]));
        let tiering = tiering.build().unwrap();
        let other = rule("logs", "logs/").expiration(expires).build().unwrap();
        let old_versions = rule("old versions", "")
            .noncurrent_version_expiration(NoncurrentVersionExpiration::builder().noncurrent_days(30).build())
            .build()
            .unwrap();
        let unfinished = rule("unfinished", "")
            .abort_incomplete_multipart_upload(
                AbortIncompleteMultipartUpload::builder()
                    .days_after_initiation(7)
                    .build(),
            )
            .build()
            .unwrap();
        bucket.set_rules(vec![other.clone(), old_versions.clone(), unfinished.clone()]);
        let findings = bucket.look("backup");
        assert_eq!(level(&findings, "lifecycle"), Level::Ok, "{endpoint}: {findings:?}");
        assert_eq!(
            level(&bucket.look(""), "lifecycle"),
            Level::Problem,
            "{endpoint}: the whole bucket is ours"
        );
        // Not every server knows these storage classes.
        let rules = BucketLifecycleConfiguration::builder()
            .set_rules(Some(vec![tiering, other]))
            .build()
            .unwrap();
        let call = bucket
            .client
            .put_bucket_lifecycle_configuration()
            .bucket(&bucket.name)
            .lifecycle_configuration(rules);
        match bucket.runtime.block_on(call.send()) {
            Ok(_) => {
                let findings = bucket.look("backup");
                assert_eq!(
                    level(&findings, "lifecycle"),
                    Level::Problem,
                    "{endpoint}: {findings:?}"
                );
                assert_eq!(level(&bucket.look("elsewhere"), "lifecycle"), Level::Ok, "{endpoint}");
            }
            Err(error) => eprintln!("SKIPPED: transitions at {endpoint}: {error:?}"),
        }
        let versions = VersioningConfiguration::builder()
            .status(BucketVersioningStatus::Enabled)
            .build();
        let call = bucket
            .client
            .put_bucket_versioning()
            .bucket(&bucket.name)
            .versioning_configuration(versions);
        bucket.runtime.block_on(call.send()).unwrap();
        assert_eq!(level(&bucket.look("backup"), "versions"), Level::Ok, "{endpoint}");
        eprintln!(
            "{endpoint}: {:#?}",
            bucket
                .look("backup")
                .iter()
                .map(|finding| (finding.subject, finding.level, finding.what.clone()))
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn what_may_not_be_asked_is_unknown_and_never_good() {
    for endpoint in servers("refused questions") {
        let bucket = Bucket::make(&endpoint);
        let options = StoreOptions {
            endpoint: Some(endpoint.clone()),
            identity: Some(larder::edge::store::location::Identity::Keys {
                id: "nobody".into(),
                secret: zeroize::Zeroizing::new("nothing".into()),
                token: None,
            }),
            ..StoreOptions::default()
        };
        let settings = settings::read(&bucket.name, "backup", &options).unwrap();
        if !matches!(settings.lifecycle, Answer::Unknown(_)) {
            eprintln!("SKIPPED: refused questions at {endpoint}: it does not check keys");
            continue;
        }
        let findings = doctor::bucket(&settings, None);
        let lifecycle = findings.iter().find(|finding| finding.subject == "lifecycle").unwrap();
        assert!(lifecycle.level == Level::Unknown && lifecycle.matters, "{lifecycle:?}");
        let good = findings.iter().filter(|finding| finding.level == Level::Ok);
        assert!(
            good.clone().all(|finding| ["tls", "clock"].contains(&finding.subject)),
            "{:?}",
            good.collect::<Vec<_>>()
        );
    }
}
