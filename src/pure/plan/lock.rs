//! Which objects a store is to lock, and when maintenance looks at their locks again (ADR-0027).
//!
//! To ask the store about every object each night would cost as many requests as there are objects. So what a pass over all of them has
//! found is remembered in two times: everything that was there at `seen` and is needed is locked until `until` at least. The next passes
//! look only at what is younger, until that time comes near. The memory is a cache: without it, all are asked about once.

use crate::pure::base::{LockMode, Timestamp};
use crate::pure::format::config::ObjectLock;
use crate::pure::format::name::ObjectName;

const DAY_NS: i64 = 86_400_000_000_000;
/// Clocks and listings may be behind by this much, nanoseconds: what is so young is looked at again.
const SLACK_NS: i64 = 3_600_000_000_000;

/// Names that are locked when they are created: all that a snapshot needs to be restored, and holds. Not the words of sessions and the
/// lists of condemned packs, which maintenance deletes when they have served and which no restore needs; nor drops, which protect
/// nothing; nor what is below `tmp/`.
pub const LOCKED: &[&str] = &[
    "config/", "data/", "grants/", "hold/", "idx/", "keys/", "meta/", "snap/",
];

/// Whether somebody who may change the repository deletes objects of this name before they are useless: a password that is removed, a
/// hold that is released. Their lock keeps the bytes, and their name can be hidden.
pub fn may_be_hidden(name: &ObjectName) -> bool {
    matches!(name, ObjectName::Protector(..) | ObjectName::Hold(..))
}

/// What the last pass over all objects came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What it was for; of another lock it says nothing.
    pub lock: ObjectLock,
    pub seen: Timestamp,
    pub until: Timestamp,
}

/// What a pass does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Objects that the store has had for longer are not asked about. `None`: all are.
    pub since: Option<Timestamp>,
    /// Locks that end before this are extended …
    pub below: Timestamp,
    /// … until then.
    pub until: Timestamp,
    lock: ObjectLock,
    began: Timestamp,
    known: Timestamp,
}

impl Pass {
    /// Plans a pass that begins now.
    pub fn plan(lock: ObjectLock, memory: Option<Memory>, now: Timestamp) -> Pass {
        let later = |days: i64| Timestamp(now.0.saturating_add(days.saturating_mul(DAY_NS)));
        let (days, below) = (i64::from(lock.retain_days), i64::from(lock.extend_below_days));
        let memory = memory.filter(|memory| memory.lock == lock && memory.until >= later(below));
        Pass {
            since: memory.map(|memory| memory.seen),
            // Somewhat more than must be, so that the next time at which all are asked about does not come the next day.
            below: Timestamp(later(below).0.saturating_add((days - below).saturating_mul(DAY_NS) / 2)),
            until: later(days),
            lock,
            began: now,
            known: memory.map_or(later(days), |memory| memory.until),
        }
    }

    /// Whether an object of this age is asked about. One without a time is.
    pub fn asks(&self, modified: Option<Timestamp>) -> bool {
        match (self.since, modified) {
            (Some(since), Some(modified)) => modified > since,
            _ => true,
        }
    }

    /// Whether a lock is extended; `None`: there is none.
    pub fn extends(&self, until: Option<Timestamp>) -> bool {
        until.is_none_or(|until| until < self.below)
    }

    /// Notes until when an object is locked when the pass is done with it.
    pub fn note(&mut self, until: Timestamp) {
        self.known = self.known.min(until);
    }

    /// What to remember of a pass that has come to its end without a failure.
    pub fn memory(&self) -> Memory {
        Memory {
            lock: self.lock,
            seen: Timestamp(self.began.0.saturating_sub(SLACK_NS)),
            until: self.known,
        }
    }
}

impl Memory {
    /// Puts it into bytes for the local memory.
    pub fn encode(&self) -> Vec<u8> {
        let mode = match self.lock.mode {
            LockMode::Governance => 1u8,
            LockMode::Compliance => 2,
        };
        let mut bytes = vec![mode];
        bytes.extend(self.lock.retain_days.to_le_bytes());
        bytes.extend(self.lock.extend_below_days.to_le_bytes());
        bytes.extend(self.seen.0.to_le_bytes());
        bytes.extend(self.until.0.to_le_bytes());
        bytes
    }

    /// Reads it back. What does not fit is no memory.
    pub fn decode(bytes: &[u8]) -> Option<Memory> {
        let (mode, rest) = bytes.split_first()?;
        let (days, rest) = rest.split_first_chunk::<4>()?;
        let (below, rest) = rest.split_first_chunk::<4>()?;
        let (seen, rest) = rest.split_first_chunk::<8>()?;
        let mode = match mode {
            1 => LockMode::Governance,
            2 => LockMode::Compliance,
            _ => return None,
        };
        Some(Memory {
            lock: ObjectLock::new(mode, u32::from_le_bytes(*days), Some(u32::from_le_bytes(*below)))?,
            seen: Timestamp(i64::from_le_bytes(*seen)),
            until: Timestamp(i64::from_le_bytes(rest.try_into().ok()?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(days: u32, below: u32) -> ObjectLock {
        ObjectLock::new(LockMode::Governance, days, Some(below)).unwrap()
    }

    fn day(days: i64) -> Timestamp {
        Timestamp(days * DAY_NS)
    }

    #[test]
    fn a_pass_without_a_memory_asks_about_all_and_the_next_ones_about_what_is_new() {
        let lock = lock(30, 10);
        let mut first = Pass::plan(lock, None, day(100));
        assert!(first.asks(Some(day(1))) && first.asks(None));
        assert_eq!((first.below, first.until), (day(120), day(130)));
        assert!(first.extends(None) && first.extends(Some(day(119))) && !first.extends(Some(day(120))));
        first.note(day(121));
        let memory = first.memory();
        assert_eq!(memory.until, day(121));
        let second = Pass::plan(lock, Some(memory), day(101));
        assert!(!second.asks(Some(day(99))) && second.asks(Some(day(100))) && second.asks(None));
        assert_eq!(second.memory().until, day(121), "nothing new makes it later");
        // When less than ten days are left.
        assert_eq!(Pass::plan(lock, Some(memory), day(111)).since, Some(memory.seen));
        assert_eq!(Pass::plan(lock, Some(memory), day(112)).since, None);
    }

    #[test]
    fn no_lock_of_what_is_needed_gets_shorter_than_it_may_and_passes_are_rare() {
        for (days, below) in [(30, 15), (30, 1), (7, 3), (2, 1), (365, 30)] {
            let lock = lock(days, below);
            // One object for each day; a prune each day.
            let mut locks: Vec<(i64, Timestamp)> = Vec::new();
            let (mut memory, mut full) = (None, 0);
            for today in 0..500 {
                locks.push((today, day(today + i64::from(days))));
                let mut pass = Pass::plan(lock, memory, day(today));
                full += i64::from(pass.since.is_none());
                for (made, until) in &mut locks {
                    if !pass.asks(Some(day(*made))) {
                        continue;
                    }
                    if pass.extends(Some(*until)) {
                        assert!(pass.until >= *until, "only ever later");
                        *until = pass.until;
                    }
                    pass.note(*until);
                }
                let least = locks.iter().map(|(_, until)| *until).min().unwrap();
                assert!(least >= day(today + i64::from(below)), "{days} {below}: day {today}");
                memory = Some(pass.memory());
            }
            assert!(full <= 2 + 500 * 2 / i64::from(days - below), "{days} {below}: {full}");
        }
    }

    #[test]
    fn a_memory_of_another_lock_is_none_and_one_comes_back_from_its_bytes() {
        let memory = Pass::plan(lock(30, 10), None, day(5)).memory();
        assert_eq!(Memory::decode(&memory.encode()), Some(memory));
        assert_eq!(Memory::decode(&memory.encode()[1..]), None);
        assert_eq!(Pass::plan(lock(31, 10), Some(memory), day(5)).since, None);
    }

    #[test]
    fn a_lock_that_is_to_be_extended_always_is_extended_each_time() {
        let lock = lock(1, 1);
        let pass = Pass::plan(lock, None, day(5));
        let again = Pass::plan(lock, Some(pass.memory()), Timestamp(day(5).0 + 1));
        assert_eq!(again.since, None);
        assert!(again.extends(Some(day(6))));
    }
}
