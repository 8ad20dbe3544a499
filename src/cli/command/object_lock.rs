//! `repo object-lock`.

use crate::cli::args::ObjectLockArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::output::{Output, count};
use crate::ops::object_lock;
use crate::pure::base::LockMode;
use crate::pure::format::config::ObjectLock;
use serde_json::{Value, json};

pub fn run(context: &Context, args: &ObjectLockArgs) -> Result<(), Failure> {
    let lock = match (args.lock.0, args.extend_below) {
        (Some(lock), Some(below)) => {
            let lock = ObjectLock::new(lock.mode, lock.retain_days, Some(below));
            Some(lock.ok_or_else(|| Failure::usage("--extend-below is at most the days of the lock"))?)
        }
        (None, Some(_)) => return Err(Failure::usage("--extend-below goes with a lock, not with `off`")),
        (lock, None) => lock,
    };
    let repo = context.repo()?;
    let changed = object_lock::run(&repo, lock).doing("changing Object Lock")?;
    let output = &context.output;
    if output.json {
        return output.json(&json!({
            "type": "object_lock", "version": 1, "before": to_json(changed.before), "object_lock": to_json(changed.after),
            "config": changed.config,
        }));
    }
    match (changed.after, changed.config) {
        (None, None) => output.say("Object Lock is off, as it was"),
        (None, Some(_)) => output.say(
            "Object Lock is off: what is written from now on is not locked. Locks that are there stay until they end, and what is \
             deleted is hidden and no longer erased: have a rule of the bucket remove old versions",
        ),
        (Some(lock), None) => output.say(format!("Object Lock is on, as it was: {}", words(lock))),
        (Some(lock), Some(_)) => {
            output.say(format!("Object Lock is on: {}", words(lock)))?;
            tell(output, lock);
            if changed.before.is_some_and(|before| before.mode != lock.mode) {
                output.note("locks that are there become as firm as that when they are extended, where the service lets them");
            }
            output.say("what is there already is locked by the next `larder repo prune`")
        }
    }
}

/// Says what a lock is, in words.
pub fn words(lock: ObjectLock) -> String {
    let days = count(lock.retain_days.into(), "day", "days");
    match lock.extend_below_days {
        0 => format!("{}, {days}, extended when it is over", lock.mode),
        below => format!("{}, {days}, extended when less than {below} are left", lock.mode),
    }
}

/// Says what a lock asks of its owner.
pub fn tell(output: &Output, lock: ObjectLock) {
    if lock.mode == LockMode::Compliance {
        output.note(format!(
            "nobody can delete what is written from now on before {} passed, and nobody can take that back",
            count(lock.retain_days.into(), "day has", "days have")
        ));
    }
    output.note(match lock.extend_below_days {
        0 => "locks are extended when they end, so they can be over for a while: a prune every day, and a longer lock, keep more".to_owned(),
        days => format!(
            "`larder repo prune` extends the locks of what is needed: it has to run at least every {}",
            count(days.into(), "day", "days")
        ),
    });
}

pub fn to_json(lock: Option<ObjectLock>) -> Value {
    match lock {
        None => Value::Null,
        Some(lock) => json!({
            "mode": lock.mode.word(), "retain_days": lock.retain_days, "extend_below_days": lock.extend_below_days,
        }),
    }
}
