//! Maintenance, step by step (format-spec chapter 16.3): condemning packs and sweeping what was condemned. Both begin as every
//! session does (`super::backup`: registered, `gc/` listed and acknowledged); this is what comes after. The order of the actions is
//! the safety argument; the driver in `ops::prune` only carries them out.
//!
//! A sweep may delete because of this order: whoever can still refer to a condemned pack has either acknowledged that it is
//! condemned, or holds a pin that was seen, or registered later and so has validated its pins after the drops were listed.

use crate::pure::id::SessionId;
use std::collections::BTreeSet;

/// What a maintenance session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Naming packs that nothing live needs. Never a danger, whatever is named: a sweep looks at everything again.
    Condemn,
    /// Deleting what was condemned.
    Sweep,
}

/// A session that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unended {
    pub session: SessionId,
    /// Every pin in any of its objects.
    pub pins: Vec<SessionId>,
    /// Every generation that it has acknowledged.
    pub acked: Vec<SessionId>,
}

/// What the driver has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// W3: list `drop/` and then `hold/`.
    ListDrops,
    /// W4: list `sess/` and then `snap/`; read what the sessions that have not ended say.
    ListSessions,
    /// W5: list `snap/` again.
    ListSnapshots,
    /// W6: read every tree of these snapshots completely.
    Mark { live: Vec<SessionId> },
    /// W7: list `idx/`, import, list the packs.
    SyncIndex,
    /// W8: find a copy of every live chunk in a pack that exists and is not condemned. A sweep copies chunks out of condemned
    /// packs where there is none elsewhere; whoever condemns says which packs to condemn, and copies what is live in them.
    Resolve,
    /// W9: copies and the runs that list them are durable; create `snap/W`.
    Publish,
    /// Create `gc/M`.
    Condemn,
    /// W10: delete the packs of these generations.
    Delete { generations: Vec<SessionId> },
    /// The end.
    Finish(Finish),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    Done,
    /// These sessions have not acknowledged every generation: nothing may be deleted yet.
    Waiting(Vec<SessionId>),
    /// Somebody took this session for dead.
    Fenced,
}

/// What the driver reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is registered and has acknowledged these generations.
    Begun {
        generations: Vec<SessionId>,
    },
    /// Forgotten and not held.
    Dropped {
        dropped: Vec<SessionId>,
    },
    Sessions {
        unended: Vec<Unended>,
    },
    /// Every outcome that is a snapshot.
    Snapshots {
        snapshots: Vec<SessionId>,
    },
    Marked,
    IndexSynced,
    /// Every live chunk is in a pack that will stay; what was copied for that is durable and listed.
    Resolved,
    Published {
        ours: bool,
    },
    Condemned,
    Deleted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    New,
    ListingDrops,
    ListingSessions,
    ListingSnapshots,
    Marking,
    Syncing,
    Resolving,
    Publishing,
    Condemning,
    Deleting,
    Ended,
}

/// A maintenance session's position in the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaintenanceProtocol {
    purpose: Purpose,
    own: SessionId,
    state: State,
    generations: BTreeSet<SessionId>,
    dropped: BTreeSet<SessionId>,
    pins: BTreeSet<SessionId>,
}

/// An event came that does not fit the state: a defect of the driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("maintenance event {event} in state {state}")]
pub struct OutOfOrder {
    state: String,
    event: String,
}

impl MaintenanceProtocol {
    /// Starts after the registration of session `own`.
    pub fn new(purpose: Purpose, own: SessionId) -> MaintenanceProtocol {
        MaintenanceProtocol {
            purpose,
            own,
            state: State::New,
            generations: BTreeSet::new(),
            dropped: BTreeSet::new(),
            pins: BTreeSet::new(),
        }
    }

    /// Takes what happened, returns what to do.
    ///
    /// # Errors
    /// When the event cannot come in this state; nothing may be deleted then.
    pub fn step(&mut self, event: Event) -> Result<Action, OutOfOrder> {
        let (state, action) = match (self.state, event) {
            (State::New, Event::Begun { generations }) => {
                self.generations.extend(generations);
                (State::ListingDrops, Action::ListDrops)
            }
            // Drops are listed before pins: what is dropped later stays live for this run, and whoever registers later sees these
            // drops before it trusts a pin.
            (State::ListingDrops, Event::Dropped { dropped }) => {
                self.dropped.extend(dropped);
                (State::ListingSessions, Action::ListSessions)
            }
            (State::ListingSessions, Event::Sessions { unended }) => self.sessions(&unended),
            (State::ListingSnapshots, Event::Snapshots { snapshots }) => {
                let is_live = |session: &SessionId| !self.dropped.contains(session) || self.pins.contains(session);
                let live = snapshots.into_iter().filter(is_live).collect();
                (State::Marking, Action::Mark { live })
            }
            // The index after the snapshots: it has everything that they refer to.
            (State::Marking, Event::Marked) => (State::Syncing, Action::SyncIndex),
            (State::Syncing, Event::IndexSynced) => (State::Resolving, Action::Resolve),
            (State::Resolving, Event::Resolved) => (State::Publishing, Action::Publish),
            (State::Publishing, Event::Published { ours: false }) => (State::Ended, Action::Finish(Finish::Fenced)),
            // Copies count from here on, so what they are copies of may be condemned, or deleted.
            (State::Publishing, Event::Published { ours: true }) => match self.purpose {
                Purpose::Condemn => (State::Condemning, Action::Condemn),
                Purpose::Sweep => {
                    let generations = self.generations.iter().copied().collect();
                    (State::Deleting, Action::Delete { generations })
                }
            },
            (State::Condemning, Event::Condemned) | (State::Deleting, Event::Deleted) => {
                (State::Ended, Action::Finish(Finish::Done))
            }
            (state, event) => {
                return Err(OutOfOrder {
                    state: format!("{state:?}"),
                    event: format!("{event:?}"),
                });
            }
        };
        self.state = state;
        Ok(action)
    }

    fn sessions(&mut self, unended: &[Unended]) -> (State, Action) {
        let others = || unended.iter().filter(|other| other.session != self.own);
        let lags = |other: &&Unended| {
            let mut generations = self.generations.iter();
            generations.any(|generation| !other.acked.contains(generation))
        };
        let waiting: Vec<SessionId> = match self.purpose {
            Purpose::Condemn => Vec::new(),
            Purpose::Sweep if chaos!("sweep-waits-for-nobody") => Vec::new(),
            Purpose::Sweep => others().filter(lags).map(|other| other.session).collect(),
        };
        let pins: BTreeSet<SessionId> = others().flat_map(|other| other.pins.iter().copied()).collect();
        if !chaos!("sweep-ignores-pins") {
            self.pins = pins;
        }
        if waiting.is_empty() {
            (State::ListingSnapshots, Action::ListSnapshots)
        } else {
            (State::Ended, Action::Finish(Finish::Waiting(waiting)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sid(byte: u8) -> SessionId {
        SessionId([byte; 16])
    }

    fn begun(purpose: Purpose) -> MaintenanceProtocol {
        let mut protocol = MaintenanceProtocol::new(purpose, sid(9));
        let generations = vec![sid(1), sid(2)];
        assert_eq!(protocol.step(Event::Begun { generations }), Ok(Action::ListDrops));
        protocol
    }

    fn other(acked: &[u8], pins: &[u8]) -> Unended {
        Unended {
            session: sid(5),
            pins: pins.iter().copied().map(sid).collect(),
            acked: acked.iter().copied().map(sid).collect(),
        }
    }

    /// Up to the marking; returns what is live.
    fn live(protocol: &mut MaintenanceProtocol, unended: Vec<Unended>) -> Vec<SessionId> {
        let dropped = vec![sid(20), sid(21)];
        assert_eq!(protocol.step(Event::Dropped { dropped }), Ok(Action::ListSessions));
        assert_eq!(protocol.step(Event::Sessions { unended }), Ok(Action::ListSnapshots));
        let snapshots = vec![sid(20), sid(21), sid(22)];
        match protocol.step(Event::Snapshots { snapshots }) {
            Ok(Action::Mark { live }) => live,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sweep_goes_from_drops_to_pins_to_snapshots_to_the_index_and_deletes_last() {
        let mut protocol = begun(Purpose::Sweep);
        assert_eq!(live(&mut protocol, vec![other(&[1, 2], &[20])]), [sid(20), sid(22)]);
        assert_eq!(protocol.step(Event::Marked), Ok(Action::SyncIndex));
        assert_eq!(protocol.step(Event::IndexSynced), Ok(Action::Resolve));
        assert_eq!(protocol.step(Event::Resolved), Ok(Action::Publish));
        let generations = vec![sid(1), sid(2)];
        assert_eq!(
            protocol.step(Event::Published { ours: true }),
            Ok(Action::Delete { generations })
        );
        assert_eq!(protocol.step(Event::Deleted), Ok(Action::Finish(Finish::Done)));
        assert!(protocol.step(Event::Deleted).is_err(), "the end is the end");
    }

    #[test]
    fn a_sweep_waits_for_every_session_that_has_not_acknowledged_every_generation() {
        for acked in [&[][..], &[1], &[2], &[3]] {
            let mut protocol = begun(Purpose::Sweep);
            protocol.step(Event::Dropped { dropped: Vec::new() }).unwrap();
            let unended = vec![other(acked, &[])];
            let waiting = Finish::Waiting(vec![sid(5)]);
            assert_eq!(protocol.step(Event::Sessions { unended }), Ok(Action::Finish(waiting)));
        }
    }

    #[test]
    fn it_does_not_wait_for_itself_and_condemning_waits_for_nobody() {
        let itself = Unended {
            session: sid(9),
            ..other(&[], &[])
        };
        assert_eq!(live(&mut begun(Purpose::Sweep), vec![itself]), [sid(22)]);
        let mut protocol = begun(Purpose::Condemn);
        assert_eq!(live(&mut protocol, vec![other(&[], &[21])]), [sid(21), sid(22)]);
        for event in [Event::Marked, Event::IndexSynced, Event::Resolved] {
            protocol.step(event).unwrap();
        }
        assert_eq!(protocol.step(Event::Published { ours: true }), Ok(Action::Condemn));
        assert_eq!(protocol.step(Event::Condemned), Ok(Action::Finish(Finish::Done)));
    }

    #[test]
    fn whoever_was_fenced_deletes_nothing() {
        let mut protocol = begun(Purpose::Sweep);
        live(&mut protocol, Vec::new());
        for event in [Event::Marked, Event::IndexSynced, Event::Resolved] {
            protocol.step(event).unwrap();
        }
        assert_eq!(
            protocol.step(Event::Published { ours: false }),
            Ok(Action::Finish(Finish::Fenced))
        );
    }

    #[test]
    fn no_step_can_be_left_out() {
        let events = [
            Event::Begun {
                generations: vec![sid(1)],
            },
            Event::Dropped { dropped: Vec::new() },
            Event::Sessions { unended: Vec::new() },
            Event::Snapshots { snapshots: Vec::new() },
            Event::Marked,
            Event::IndexSynced,
            Event::Resolved,
            Event::Published { ours: true },
            Event::Deleted,
        ];
        for done in 0..events.len() {
            for next in 0..events.len() {
                let mut protocol = MaintenanceProtocol::new(Purpose::Sweep, sid(9));
                for event in &events[..done] {
                    protocol.step(event.clone()).unwrap();
                }
                assert_eq!(
                    protocol.step(events[next].clone()).is_ok(),
                    next == done,
                    "{done} {next}"
                );
            }
        }
    }
}
