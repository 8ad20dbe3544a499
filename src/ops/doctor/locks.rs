//! Whether what is needed is locked, for how long still, and whether somebody has written or deleted under names that are ours (ADR-0027).
//! One listing of all versions, and a question about the locks of the oldest objects: they are those whose locks end first.

use super::Finding;
use crate::edge::store::{Failure, StoreKey, Version};
use crate::ops::OpError;
use crate::pure::base::{Timestamp, with_causes};
use crate::pure::format::config::ObjectLock;
use crate::pure::plan::lock::LOCKED;
use crate::repo::Repo;
use crate::repo::at_once::at_once;
use crate::repo::error::store_error;
use crate::repo::needed::Needed;
use crate::repo::open::{prefix, store_key};
use std::collections::BTreeMap;

const DAY_NS: i64 = 86_400_000_000_000;
/// Of each kind of object, so many of the oldest are asked about.
const ASKED_OF_EACH: usize = 8;
/// Names that are told.
const NAMED_MAX: usize = 3;

/// What one listing of all versions has shown.
#[derive(Default)]
struct Seen {
    /// Whether the bucket keeps any: one that does not lists one version of each name.
    has_versions: bool,
    tampered: u64,
    tampered_names: Vec<String>,
    /// The oldest of each kind, by time.
    oldest: Vec<BTreeMap<(Option<Timestamp>, StoreKey), Version>>,
}

/// Looks at versions and locks. Nothing where the store keeps no versions.
pub(super) fn locks(repo: &Repo, now: Timestamp) -> Result<Vec<Finding>, OpError> {
    let needed = Needed::of(repo)?;
    let mut seen = Seen::default();
    for under in LOCKED {
        let (mut failed, mut oldest) = (None, BTreeMap::new());
        let listed = repo
            .store
            .list_versions(&prefix(under), None, &mut |row| match needed.judge(&row) {
                Ok(Some(found)) => {
                    seen.has_versions |= found.version.id != "null";
                    if found.is_tampered {
                        seen.tampered += 1;
                        if seen.tampered_names.len() < NAMED_MAX {
                            seen.tampered_names.push(found.name.to_string());
                        }
                    }
                    oldest.insert((found.version.modified, store_key(&found.name)), found.version);
                    if oldest.len() > ASKED_OF_EACH {
                        oldest.pop_last();
                    }
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            });
        match (listed, repo.config.lock) {
            (Ok(()), _) => {}
            (Err(error), None) if error.class == Failure::Permanent => return Ok(Vec::new()),
            (Err(error), lock) => {
                return Ok(vec![Finding::unknown(
                    "tampering",
                    format!("versions cannot be listed: {}", with_causes(&error)),
                    "use credentials that may list versions",
                    lock.is_some(),
                )]);
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        seen.oldest.push(oldest);
    }
    if !seen.has_versions && repo.config.lock.is_none() {
        return Ok(Vec::new());
    }
    let mut findings = vec![tampering(&seen)];
    if let Some(lock) = repo.config.lock {
        findings.push(ends(repo, lock, &seen, now)?);
    }
    Ok(findings)
}

fn tampering(seen: &Seen) -> Finding {
    match seen.tampered {
        0 => Finding::ok(
            "tampering",
            "nothing was written or deleted under a name that was taken",
        ),
        many => Finding::problem(
            "tampering",
            format!(
                "{many} objects were written again or deleted by somebody else: {}{}",
                seen.tampered_names.join(", "),
                if many > NAMED_MAX as u64 { ", …" } else { "" }
            ),
            "find out whose credentials it were, and take them away; `--as-of TIME` reads the repository as it was before",
        ),
    }
}

/// When the first lock of what is needed ends, as far as the oldest objects tell.
fn ends(repo: &Repo, lock: ObjectLock, seen: &Seen, now: Timestamp) -> Result<Finding, OpError> {
    let subject = "locks";
    let asked: Vec<(&StoreKey, &Version)> = seen
        .oldest
        .iter()
        .flat_map(|oldest| oldest.iter().map(|((_, key), version)| (key, version)))
        .collect();
    let answers = at_once(&asked, |(key, version)| Ok(repo.store.retention(key, version)));
    let (mut first, mut open) = (None, 0u64);
    for ((key, _), answer) in asked.iter().zip(answers) {
        let until = match answer? {
            Ok(found) => found.map(|found| found.until),
            Err(error) if error.class == Failure::NotFound => continue,
            Err(error) => {
                let error = store_error("looking at a lock")(error);
                return Ok(Finding::unknown(
                    subject,
                    format!("the lock of {key}: {}", with_causes(&error)),
                    "use credentials with s3:GetObjectRetention",
                    true,
                ));
            }
        };
        match until {
            Some(until) if until > now => first = Some(first.map_or(until, |first: Timestamp| first.min(until))),
            _ => open += 1,
        }
    }
    let advice = match lock.extend_below_days {
        0 => "run `larder repo prune` every day, or lock for longer".to_owned(),
        days => format!("run `larder repo prune`, at least every {days} days"),
    };
    let left = first.map_or(0, |first| first.0.saturating_sub(now.0) / DAY_NS);
    Ok(match first {
        _ if open > 0 => Finding::problem(
            subject,
            format!(
                "of the {} oldest objects that are needed, {open} are not locked: whoever may delete can delete them for good",
                asked.len()
            ),
            advice,
        ),
        None => Finding::note(subject, "there is nothing yet that could be locked"),
        Some(_) if left < i64::from(lock.extend_below_days / 2) => Finding::warning(
            subject,
            format!("the first locks of what is needed end in {left} days, and no prune has extended them"),
            advice,
        ),
        Some(_) if lock.extend_below_days == 0 => Finding::warning(
            subject,
            format!(
                "locks are for {} days, and extended only when they are over",
                lock.retain_days
            ),
            "have them extended earlier: `larder repo object-lock` with --extend-below",
        ),
        Some(_) => Finding::ok(
            subject,
            format!("the oldest objects that are needed are locked for {left} days at least"),
        ),
    })
}
