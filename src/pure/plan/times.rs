//! When snapshots were made, as far as that can be believed, for deciding which are kept.
//!
//! What a snapshot says of its time is a claim: clocks are wrong, and whoever holds a key that writes can claim anything. Two
//! things are known besides. Numbers: no outcome was published before one of the same writer that has a lower number. And the
//! store's clock: it received the outcome no earlier than it was made. Between the two a claim is believed. So
//!
//! * a claim of the future is cut off at the moment when the store received it (give or take a tick of that clock);
//! * a claim of the past cannot go back before what the same writer published earlier, and one that tries is no evidence of
//!   anything: the store's clock counts, where there is one;
//! * nothing that comes later changes the time of what came earlier, however many there are;
//! * a repository that was copied, where the store's times are all that of the copy, keeps the times that were claimed.
//!
//! What is left: in a copy, a claim that is wrong and lies before the moment of the copy is believed, and claims after it that
//! contradict it are not. A writer can place snapshots into the time since it last published.

use crate::pure::base::Timestamp;
use crate::pure::id::{KeyId, SessionId};
use std::collections::HashMap;

/// Clocks that differ by less agree: an hour is also what a wrong daylight saving setting makes.
pub const SLACK_NS: i64 = 3_600_000_000_000;

/// Clocks of stores tick: they say whole seconds, or are some milliseconds behind.
const TICK_NS: i64 = 2_000_000_000;

/// What an outcome, dropped or not, snapshot or not, says of its time, and what the store says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub id: SessionId,
    pub kid: KeyId,
    /// Of the writer.
    pub sequence: u64,
    /// When it was begun.
    pub start: Timestamp,
    /// When it was published.
    pub created: Timestamp,
    /// When the store received it; `None` where it does not say.
    pub received: Option<Timestamp>,
    /// Where an older snapshot was published once more, with other tags: when that one was completed. Only for outcomes of a
    /// key that may forget: it can make older snapshots disappear in any case, so what it says of their age is believed.
    pub again: Option<Timestamp>,
}

/// When an outcome was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// When it was begun.
    pub time: Timestamp,
    /// When it was published.
    pub published: Timestamp,
    /// Whether the clock of its writer was wrong by more than [`SLACK_NS`].
    pub clock: Clock,
}

/// What is known of a writer's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Nothing speaks against it.
    Right,
    /// It was ahead of the store's.
    Ahead,
    /// It was behind what the writer had published before.
    Behind,
}

/// Judges the times of all outcomes of a repository. `now` is only needed for stores without a clock: what claims to be from
/// after `now` there keeps its time, so that it can be told from the rest.
pub fn judge_times(claims: &[Claim], now: Timestamp) -> HashMap<SessionId, Judged> {
    let mut ordered: Vec<&Claim> = claims.iter().collect();
    ordered.sort_by_key(|claim| (claim.kid, claim.sequence, claim.id));
    let mut judged = HashMap::with_capacity(claims.len());
    for writer in ordered.chunk_by(|a, b| a.kid == b.kid) {
        let mut floor = Floor::default();
        for claim in writer {
            judged.insert(claim.id, floor.judge(claim, now));
        }
    }
    judged
}

/// What a writer has done so far, by claims that nothing contradicted.
struct Floor {
    published: Timestamp,
    time: Timestamp,
}

impl Default for Floor {
    fn default() -> Floor {
        Floor {
            published: Timestamp(i64::MIN),
            time: Timestamp(i64::MIN),
        }
    }
}

impl Floor {
    fn judge(&mut self, claim: &Claim, now: Timestamp) -> Judged {
        let received = claim.received.unwrap_or(Timestamp(now.0.max(claim.created.0)));
        let cap = Timestamp(received.0.saturating_add(TICK_NS));
        // What came before was published before this was received.
        self.published = self.published.min(cap);
        self.time = self.time.min(cap);
        if let Some(completed) = claim.again {
            return Judged {
                time: claim.start.min(completed).min(cap),
                published: completed.min(cap),
                clock: Clock::Right,
            };
        }
        let (published, clock) = if claim.created.0 < self.published.0.saturating_sub(SLACK_NS) {
            (claim.received.unwrap_or(self.published), Clock::Behind)
        } else if claim.created.0 > cap.0.saturating_add(SLACK_NS) {
            (received, Clock::Ahead)
        } else {
            (claim.created.clamp(self.published, cap), Clock::Right)
        };
        // How long it took is right even where the clock is not.
        let took = claim.created.0.saturating_sub(claim.start.0).max(0);
        let begun = Timestamp(published.0.saturating_sub(took));
        let time = begun.max(self.time).min(published);
        // A time that is still to come is no floor: what follows would be judged by it when it has come. Nor is one that was
        // found to be wrong.
        if clock == Clock::Right && published <= now {
            self.published = published;
            self.time = time;
        }
        Judged { time, published, clock }
    }
}
