//! The store: what it was seen to do, and what a bucket is set to.

use super::Finding;
use crate::edge::store::{Store, StoreError};
use crate::pure::base::with_causes;

/// Tries the store out. `expects_conditions` is what the repository's configuration says, where it is known.
pub fn store(store: &dyn Store, expects_conditions: Option<bool>) -> Vec<Finding> {
    let abilities = match store.probe() {
        Ok(abilities) => abilities,
        Err(error) => return vec![not_tried(&error)],
    };
    let mut findings = Vec::new();
    findings.push(match (abilities.conditional_create, expects_conditions) {
        (true, Some(false)) => Finding::note(
            "conditional_writes",
            "the store creates an object only if its name is free; the repository was made when it did not, and keeps to its weaker mode",
        ),
        (true, _) => Finding::ok("conditional_writes", "the store creates an object only if its name is free"),
        (false, Some(true)) => Finding::problem(
            "conditional_writes",
            "the store overwrites objects, though the repository relies on it not to: two machines at once can lose each other's snapshots",
            "find out what has changed: a proxy, or another server behind the same address",
        ),
        (false, _) => Finding::warning(
            "conditional_writes",
            "the store cannot create an object only if its name is free",
            "give each machine a key of its own: `larder repo key add-writer`",
        ),
    });
    if !store.is_local() {
        findings.push(match abilities.verifies_checksums {
            true => Finding::ok("checksums", "the store refuses an upload that does not have the checksum that was sent with it"),
            false => Finding::warning(
                "checksums",
                "the store accepts uploads with a wrong checksum: larder asks for the size of each, and damage on the way is only found by reading",
                "run `larder repo check --read-data-subset` regularly",
            ),
        });
    }
    if !abilities.strong_listing {
        findings.push(Finding::problem(
            "listing",
            "an object that was just written is not listed at once: a prune could miss a snapshot",
            "do not prune in this store; ask its maker for consistent listings",
        ));
    }
    findings
}

fn not_tried(error: &StoreError) -> Finding {
    Finding::unknown(
        "conditional_writes",
        format!("the store could not be tried out: {}", with_causes(error)),
        "use credentials that may write and delete below tmp/",
        true,
    )
}

#[cfg(feature = "s3")]
pub use of_s3::bucket;

#[cfg(feature = "s3")]
mod of_s3 {
    use super::super::Finding;
    use crate::edge::store::s3::settings::{Answer, Settings};
    use crate::pure::format::config::ObjectLock;
    use crate::pure::plan::lifecycle::{Effect, judge, old_versions_kept};

    const MINUTE_NS: i64 = 60_000_000_000;
    const ASK: &str = "use credentials that may read the settings of the bucket, or look yourself";

    /// Judges what a bucket is set to.
    /// `wanted` is what the configuration of the repository says about Object Lock.
    pub fn bucket(settings: &Settings, wanted: Option<ObjectLock>) -> Vec<Finding> {
        let mut findings = lifecycle(settings);
        findings.push(match settings.is_plain {
            false => Finding::ok("tls", "requests are encrypted on the way"),
            true => Finding::warning(
                "tls",
                "requests go over plain http: the data is encrypted, names, sizes and times are not, and answers can be changed on the way",
                "use https",
            ),
        });
        findings.push(clock(settings));
        findings.extend([versions(settings), lock(settings, wanted)]);
        findings.extend(old_versions(settings, wanted));
        findings.extend(public(settings));
        findings.extend([policy(settings), encryption(settings), replication(settings)]);
        findings
    }

    /// What is no question of loss may be left unanswered.
    fn asked<T>(
        subject: &'static str,
        what: &str,
        answer: &Answer<T>,
        matters: bool,
        judge: impl FnOnce(&T) -> Finding,
    ) -> Finding {
        match answer {
            Answer::Is(value) => judge(value),
            Answer::NotSupported => Finding::ok(subject, format!("the service has no {what}")),
            Answer::Unknown(why) => Finding::unknown(subject, format!("{what}: {why}"), ASK, matters),
        }
    }

    fn lifecycle(settings: &Settings) -> Vec<Finding> {
        let rules = match &settings.lifecycle {
            Answer::Is(rules) => rules,
            other => {
                return vec![asked("lifecycle", "lifecycle rules", other, true, |_| {
                    Finding::ok("lifecycle", "")
                })];
            }
        };
        let mut findings = Vec::new();
        for rule in rules {
            match judge(rule, &settings.prefix) {
                Effect::Harmless => {}
                Effect::Costly(what) => findings.push(Finding::warning(
                    "lifecycle",
                    format!(
                        "the rule {:?} {what}: small objects become dearer there, and reading and early deletion are charged",
                        rule.id
                    ),
                    "have it apply to data/ of the repository only, or not at all",
                )),
                Effect::Destructive(what) => findings.push(Finding::problem(
                    "lifecycle",
                    format!(
                        "the rule {:?} {what}. The oldest objects of a repository are those that all snapshots need: this rule destroys it",
                        rule.id
                    ),
                    "remove the rule, or have it apply to other names; `larder snapshot forget` and `repo prune` delete what is not needed",
                )),
            }
        }
        if findings.is_empty() {
            findings.push(Finding::ok(
                "lifecycle",
                "no lifecycle rule deletes or moves objects of the repository",
            ));
        }
        findings
    }

    fn clock(settings: &Settings) -> Finding {
        asked(
            "clock",
            "the time of the service",
            &settings.clock_ahead,
            false,
            |ahead| {
                let seconds = ahead.saturating_abs() / 1_000_000_000;
                let side = if *ahead > 0 { "ahead of" } else { "behind" };
                if ahead.saturating_abs() > 5 * MINUTE_NS {
                    Finding::problem(
                        "clock",
                        format!(
                            "the clock of this machine is {seconds} seconds {side} that of the store: services refuse requests beyond 15 minutes, and snapshots get wrong times"
                        ),
                        "set the clock, with NTP",
                    )
                } else if ahead.saturating_abs() > MINUTE_NS {
                    Finding::warning(
                        "clock",
                        format!("the clock of this machine is {seconds} seconds {side} that of the store"),
                        "set the clock, with NTP",
                    )
                } else {
                    Finding::ok("clock", "this machine and the store agree about the time")
                }
            },
        )
    }

    fn versions(settings: &Settings) -> Finding {
        asked("versions", "versioning", &settings.versions, false, |kept| match kept {
            true => Finding::ok(
                "versions",
                "versions are kept: what somebody deletes or overwrites can be brought back",
            ),
            false => Finding::warning(
                "versions",
                "versions are not kept: what is deleted with these credentials, by whomever, is gone",
                "turn versioning on, with a rule that removes old versions after some weeks; or keep a replica under another account",
            ),
        })
    }

    /// `wanted`: what the configuration of the repository says.
    fn lock(settings: &Settings, wanted: Option<ObjectLock>) -> Finding {
        let subject = "object_lock";
        match (&settings.lock, wanted) {
            (Answer::Is(None) | Answer::NotSupported, Some(_)) => Finding::problem(
                subject,
                "the repository has its objects locked, and the bucket has no Object Lock: nothing can be written",
                "turn it on in the bucket, or off in the repository: `larder repo object-lock off`",
            ),
            (Answer::Unknown(why), wanted) => {
                Finding::unknown(subject, format!("Object Lock: {why}"), ASK, wanted.is_some())
            }
            (Answer::Is(Some(default)), Some(lock)) => {
                let also = match default {
                    Some((mode, time)) => {
                        format!("; whatever else is written is locked for {time} ({mode}) by default")
                    }
                    None => String::new(),
                };
                Finding::ok(
                    subject,
                    format!(
                        "objects are locked for {} days when they are written ({}), and prune extends the locks of what is needed \
                         when less than {} days are left{also}",
                        lock.retain_days, lock.mode, lock.extend_below_days
                    ),
                )
            }
            (Answer::NotSupported, None) => Finding::ok(subject, "the service has no Object Lock"),
            (Answer::Is(None), None) => Finding::note(subject, "the bucket has no Object Lock"),
            (Answer::Is(Some(None)), None) => Finding::note(
                subject,
                "the bucket can lock objects, and the repository does not ask for it: `larder repo object-lock` does",
            ),
            (Answer::Is(Some(Some((mode, time)))), None) => Finding::warning(
                subject,
                format!(
                    "every object is locked for {time} ({mode}) when it is written, and the lock is not extended: what is older can be deleted though it is needed, and a prune hides what is younger, which goes on costing"
                ),
                "`larder repo object-lock` with as many days: prune extends locks then, and erases what is not needed when they are over",
            ),
        }
    }

    /// What becomes of versions that are hidden or replaced.
    fn old_versions(settings: &Settings, wanted: Option<ObjectLock>) -> Option<Finding> {
        let subject = "old_versions";
        let (Answer::Is(rules), Answer::Is(true)) = (&settings.lifecycle, &settings.versions) else {
            return None;
        };
        Some(match (old_versions_kept(rules, &settings.prefix), wanted) {
            (Some(days), Some(lock)) if i64::from(days) < i64::from(lock.retain_days) => Finding::warning(
                subject,
                format!(
                    "a rule deletes old versions after {days} days: what somebody hides is gone then, unless its lock lasts longer"
                ),
                format!(
                    "let it be {} days, as long as locks are, or none: prune erases what is not needed itself",
                    lock.retain_days
                ),
            ),
            (Some(days), _) => Finding::ok(
                subject,
                format!("a rule deletes old versions after {days} days: until then, `--as-of` reads what was deleted"),
            ),
            (None, Some(_)) => Finding::ok(
                subject,
                "no rule deletes old versions: prune erases what is not needed itself, and what others hide stays",
            ),
            (None, None) => Finding::note(
                subject,
                "no rule deletes old versions: what a prune deletes goes on costing; have one that does after some weeks",
            ),
        })
    }

    fn public(settings: &Settings) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.push(asked(
            "access_list",
            "the access list",
            &settings.open_to,
            false,
            |groups| match groups.as_slice() {
                [] => Finding::ok("access_list", "the access list gives nothing to everybody"),
                groups => Finding::problem(
                    "access_list",
                    format!(
                        "the access list gives access to {}: everybody can see or change what is there",
                        groups.join(" and ")
                    ),
                    "remove these grants, and block public access",
                ),
            },
        ));
        findings.push(asked(
            "public_policy",
            "the status of the policy",
            &settings.is_public_by_policy,
            false,
            |public| match public {
                Some(true) => Finding::problem(
                    "public_policy",
                    "the policy of the bucket makes it public",
                    "remove it, and block public access",
                ),
                _ => Finding::ok("public_policy", "the policy does not make the bucket public"),
            },
        ));
        findings.push(asked(
            "public_access",
            "the block of public access",
            &settings.blocks_public,
            false,
            |blocked| match blocked {
                Some(true) => Finding::ok("public_access", "public access is blocked"),
                _ => Finding::warning(
                    "public_access",
                    "public access is not blocked: one wrong grant opens the bucket",
                    "block it, in all four ways",
                ),
            },
        ));
        findings
    }

    fn policy(settings: &Settings) -> Finding {
        asked(
            "tls_policy",
            "the policy of the bucket",
            &settings.requires_tls,
            false,
            |requires| match requires {
                Some(true) => Finding::ok("tls_policy", "the policy is about TLS"),
                _ => Finding::note("tls_policy", "no policy refuses requests without TLS"),
            },
        )
    }

    fn encryption(settings: &Settings) -> Finding {
        asked(
            "encryption",
            "default encryption",
            &settings.encryption,
            false,
            |algorithm| match algorithm {
                Some(algorithm) => Finding::ok(
                    "encryption",
                    format!("the service encrypts what it stores ({algorithm}); larder does so itself, too"),
                ),
                None => Finding::note(
                    "encryption",
                    "the service does not encrypt what it stores; larder does so itself",
                ),
            },
        )
    }

    fn replication(settings: &Settings) -> Finding {
        asked(
            "replication",
            "replication by the provider",
            &settings.replicates_deletes,
            false,
            |deletes| match deletes {
                None => Finding::ok("replication", "the provider does not replicate the bucket"),
                Some(false) => Finding::note(
                    "replication",
                    "the provider replicates the bucket, in no order: a copy can show snapshots that it cannot restore. `larder repo replicate` keeps the order",
                ),
                Some(true) => Finding::warning(
                    "replication",
                    "the provider replicates the bucket, deletions included: who deletes here, deletes there",
                    "turn off the replication of delete markers, or use `larder repo replicate`",
                ),
            },
        )
    }
}
