//! What goes on in the repository: how old the newest snapshots are, what was left behind, when the data was read last.

use super::Finding;
use super::locks;
use crate::edge::store::{Prefix, Store};
use crate::ops::OpError;
use crate::pure::base::size::format_bytes;
use crate::pure::base::{Timestamp, with_causes};
use crate::repo::Repo;
use crate::repo::index::PackState;
use crate::repo::standing::Standing;
use std::collections::BTreeMap;
use std::time::Duration;

const DAY_NS: i64 = 86_400_000_000_000;
/// As long as a session may be silent before it is taken for dead (format-spec chapter 16.4).
const SILENT_NS: i64 = 3 * DAY_NS;
/// Data that has not been read for longer may have rotted for longer.
const CHECKED_NS: i64 = 35 * DAY_NS;

/// Looks for what killed writers left below `tmp/`.
pub fn leftovers(store: &dyn Store, now: Timestamp) -> Finding {
    let (mut count, mut bytes) = (0u64, 0u64);
    let under = Prefix::new("tmp/").expect("a literal prefix");
    let listed = store.list(&under, &mut |row| {
        let is_old = row.modified.is_some_and(|time| time.0 < now.0.saturating_sub(DAY_NS));
        if is_old && row.key.as_str() != "tmp/reserve" {
            count += 1;
            bytes += row.size;
        }
    });
    match listed {
        Err(error) => Finding::unknown(
            "leftovers",
            format!("tmp/ cannot be listed: {}", with_causes(&error)),
            "check the credentials",
            false,
        ),
        Ok(()) if count == 0 => Finding::ok("leftovers", "nothing was left behind by killed writers"),
        Ok(()) => Finding::note(
            "leftovers",
            format!(
                "{count} files ({}) below tmp/ were left behind by killed writers; a backup into a directory removes them",
                format_bytes(bytes)
            ),
        ),
    }
}

/// Looks into an unlocked repository. `max_age`: an older newest snapshot of a source is a problem.
///
/// # Errors
/// When it cannot be listed or read.
pub fn repository(repo: &Repo, max_age: Option<Duration>, now: Timestamp) -> Result<Vec<Finding>, OpError> {
    let mut findings = vec![standing(repo)];
    let history = repo.sync_history()?;
    for gap in &history.gaps {
        findings.push(Finding::problem(
            "history",
            format!("the history has a gap: {gap}"),
            "delete nothing; `larder repo check` says what is hit",
        ));
    }
    for (name, error) in &history.broken {
        findings.push(Finding::problem(
            "history",
            format!("{name} cannot be used: {}", with_causes(error)),
            "`larder repo check` says what is hit",
        ));
    }
    findings.extend(ages(repo, max_age, now)?);
    findings.push(sessions(repo, now)?);
    findings.push(last_check(repo, now)?);
    findings.extend(locks::locks(repo, now)?);
    Ok(findings)
}

fn standing(repo: &Repo) -> Finding {
    match repo.standing {
        Standing::Primary => Finding::ok("place", "this is the primary"),
        Standing::Replica(_) => Finding::note("place", "this is a replica: only `larder repo replicate` writes to it"),
        Standing::Superseded => Finding::warning(
            "place",
            "this was the primary: another place is it now",
            "have all machines write there",
        ),
        Standing::LeftBehind { .. } => Finding::problem(
            "place",
            "this machine has seen another place become the primary, and this one does not know of it",
            "have all machines write there; `larder repo replicate` from there makes this a replica",
        ),
    }
}

/// How old the newest complete snapshot of each source is.
fn ages(repo: &Repo, max_age: Option<Duration>, now: Timestamp) -> Result<Vec<Finding>, OpError> {
    let mut broken = Vec::new();
    let mut newest: BTreeMap<(String, String), Timestamp> = BTreeMap::new();
    for snapshot in repo.snapshots_noting(&mut broken)? {
        if snapshot.is_partial() {
            continue;
        }
        let source = &snapshot.manifest.source;
        let time = newest.entry((source.host.clone(), source.label.clone())).or_default();
        *time = (*time).max(snapshot.manifest.start);
    }
    if newest.is_empty() {
        return Ok(vec![Finding::warning(
            "snapshots",
            "there is no complete snapshot",
            "larder backup",
        )]);
    }
    let judge = |((host, label), time): ((String, String), Timestamp)| {
        let age = now.0.saturating_sub(time.0).max(0);
        let text = format!("the newest snapshot of {label} on {host} is {} old", days(age));
        let limit = max_age.map(|limit| i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX));
        match limit {
            Some(limit) if age > limit => {
                Finding::problem("snapshots", text, "look whether its backups run, and what they say")
            }
            Some(_) => Finding::ok("snapshots", text),
            None => Finding::note("snapshots", text),
        }
    };
    Ok(newest.into_iter().map(judge).collect())
}

fn days(nanos: i64) -> String {
    match nanos / DAY_NS {
        0 => format!("{} hours", nanos / 3_600_000_000_000),
        1 => "a day".to_owned(),
        days => format!("{days} days"),
    }
}

fn sessions(repo: &Repo, now: Timestamp) -> Result<Finding, OpError> {
    let open = repo.sessions_that_have_not_ended()?;
    let silent = open.iter().filter(|other| {
        let seen = other.last_seen.filter(|seen| seen.0 > 0).unwrap_or(other.began);
        seen.0 < now.0.saturating_sub(SILENT_NS)
    });
    let hosts: Vec<&str> = silent
        .map(|other| other.host.as_deref().unwrap_or("an unknown host"))
        .collect();
    Ok(match hosts.as_slice() {
        [] => Finding::ok(
            "sessions",
            format!(
                "{} sessions are running, none for long without a sign of life",
                open.len()
            ),
        ),
        hosts => Finding::note(
            "sessions",
            format!(
                "{} sessions have given no sign of life for three days ({}): the next prune ends them",
                hosts.len(),
                hosts.join(", ")
            ),
        ),
    })
}

/// When the oldest word about a pack is from, as this machine knows.
fn last_check(repo: &Repo, now: Timestamp) -> Result<Finding, OpError> {
    repo.sync_condemned()?;
    repo.sync_index()?;
    let (mut packs, mut never, mut damaged, mut oldest) = (0u64, 0u64, 0u64, now.0);
    repo.index.packs(&mut |pack| {
        if pack.state != PackState::Live {
            return;
        }
        packs += 1;
        match pack.verified {
            Some(verified) if verified.sound => oldest = oldest.min(verified.at.0),
            Some(_) => damaged += 1,
            None => never += 1,
        }
    })?;
    let advice = "run `larder repo check --read-data-subset 5%` after each backup, or --read-data once a month";
    let age = now.0.saturating_sub(oldest);
    Ok(if damaged > 0 {
        Finding::problem(
            "read_data",
            format!("{damaged} packs were damaged when they were read last"),
            "larder repo check --read-data",
        )
    } else if packs > 0 && never == packs {
        Finding::warning(
            "read_data",
            "the data has never been read and verified on this machine",
            advice,
        )
    } else if never > 0 {
        Finding::warning(
            "read_data",
            format!("{never} of {packs} packs have never been read and verified on this machine"),
            advice,
        )
    } else if age > CHECKED_NS {
        Finding::warning(
            "read_data",
            format!("some packs were read and verified {} ago", days(age)),
            advice,
        )
    } else {
        Finding::ok(
            "read_data",
            "every pack has been read and verified on this machine in the last month",
        )
    })
}
