//! `snapshot hold`, `snapshot release`, and how lists show holds.

use crate::cli::args::FilterArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{DayEdge, local_time, rfc3339, time_argument};
use crate::cli::output::printable;
use crate::edge::host;
use crate::pure::base::Timestamp;
use crate::pure::id::SessionId;
use crate::repo::Repo;
use crate::repo::marks::KnownHold;
use crate::repo::snapshots::Broken;
use serde_json::{Value, json};
use std::time::Duration;

pub fn hold(
    context: &Context,
    text: &str,
    reason: &str,
    until: Option<&str>,
    filter: &FilterArgs,
) -> Result<(), Failure> {
    let until = until.map(|until| time_argument(until, DayEdge::End)).transpose()?;
    let (repo, _) = context.repo_with_history()?;
    let snapshot = context.snapshot(&repo, text, filter)?;
    crate::ops::hold::hold(&repo, &snapshot.id, until, reason).doing("holding the snapshot")?;
    if context.output.json {
        return context.output.json(&json!({
            "type": "held", "version": 1, "snapshot": snapshot.id.to_string(), "until": until.map(rfc3339), "reason": reason,
        }));
    }
    let id = snapshot.id.short();
    let until = until.map_or_else(
        || format!("until `larder snapshot release {id}`"),
        |until| format!("until {}", local_time(until)),
    );
    context.output.say(format!("snapshot {id} is held {until}"))
}

pub fn release(context: &Context, text: &str, after: Option<Duration>, filter: &FilterArgs) -> Result<(), Failure> {
    let (repo, _) = context.repo_with_history()?;
    let snapshot = context.snapshot(&repo, text, filter)?;
    let until = after.filter(|after| !after.is_zero()).map(|after| {
        let nanos = i64::try_from(after.as_nanos()).unwrap_or(i64::MAX);
        Timestamp(host::now().0.saturating_add(nanos))
    });
    let released = crate::ops::hold::release(&repo, &snapshot.id, until).doing("releasing the snapshot")?;
    if context.output.json {
        return context.output.json(&json!({
            "type": "released", "version": 1, "snapshot": snapshot.id.to_string(), "holds": released.removed,
            "until": released.until.map(rfc3339),
        }));
    }
    let id = snapshot.id.short();
    context.output.say(match (released.removed, released.until) {
        (0, None) => format!("snapshot {id} is not held"),
        (_, None) => format!("snapshot {id} is not held any more"),
        (_, Some(until)) => format!("snapshot {id} is held until {} and then no more", local_time(until)),
    })
}

/// Returns the holds that are not past. What cannot be used is told, and put into `broken` if it is not there.
///
/// # Errors
/// When holds cannot be listed.
pub fn active(context: &Context, repo: &Repo, broken: &mut Broken) -> Result<Vec<KnownHold>, Failure> {
    let mut found = Broken::new();
    let mut holds = repo.holds(&mut found).doing("listing the holds")?;
    found.retain(|(name, _)| !broken.iter().any(|(other, _)| other == name));
    context.tell_broken(&found);
    broken.append(&mut found);
    let now = host::now();
    holds.retain(|hold| hold.is_active(now));
    Ok(holds)
}

fn of<'h>(holds: &'h [KnownHold], id: &SessionId) -> impl Iterator<Item = &'h KnownHold> + use<'h> {
    let id = *id;
    holds.iter().filter(move |hold| hold.session == id)
}

/// Makes the JSON list of the holds on a snapshot.
pub fn to_json(holds: &[KnownHold], id: &SessionId) -> Value {
    of(holds, id)
        .map(|hold| json!({"until": hold.until.map(rfc3339), "reason": hold.reason}))
        .collect()
}

/// Says in a word or two that a snapshot is held.
pub fn remark(holds: &[KnownHold], id: &SessionId) -> Option<String> {
    let longest = of(holds, id).max_by_key(|hold| hold.lasts())?;
    Some(match longest.until {
        None => "(held)".into(),
        Some(until) => format!("(held until {})", local_time(until)),
    })
}

/// Says until when and why a snapshot is held, for each hold.
pub fn texts(holds: &[KnownHold], id: &SessionId) -> Vec<String> {
    of(holds, id)
        .map(|hold| {
            let until = hold.until.map_or_else(
                || "until released".into(),
                |until| format!("until {}", local_time(until)),
            );
            match hold.reason.as_str() {
                "" => until,
                reason => format!("{until}: {}", printable(reason.as_bytes())),
            }
        })
        .collect()
}
