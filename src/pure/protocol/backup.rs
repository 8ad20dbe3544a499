//! A backup session, step by step (format-spec chapter 16: B1 to B10). The order of the actions is the safety argument; the driver in
//! `repo::session` only carries them out.

use crate::pure::id::SessionId;
use std::collections::BTreeSet;

/// What the driver has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// B2: create `sess/S/0000` with these pins.
    Register { pins: Vec<SessionId> },
    /// B3, first half: list `drop/`.
    ListDrops,
    /// B3, second half: does `snap/P` still exist?
    StatParent { parent: SessionId },
    /// B4 and B9: list `gc/` and fetch what is new.
    ListCondemned,
    /// B5 and B9: create the next `sess/S/n` that acknowledges all of these.
    Acknowledge { acked: Vec<SessionId> },
    /// B6: list `idx/` and import.
    SyncIndex,
    /// B7: walk and upload. The parent, if any, is pinned and validated. Feed polls in between.
    Work { parent: Option<SessionId> },
    /// B10: packs and runs are durable; create `snap/S`.
    PublishOutcome,
    /// The end.
    Finish(Finish),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The outcome is ours: committed.
    Committed,
    /// Maintenance declared the session dead first: not committed.
    Fenced,
}

/// What the driver reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// B1 is done; this is the parent that was chosen.
    Begin {
        parent: Option<SessionId>,
    },
    Registered,
    Drops {
        dropped: Vec<SessionId>,
    },
    ParentExists(bool),
    /// Generations that exist now.
    Condemned {
        generations: Vec<SessionId>,
    },
    Acknowledged,
    IndexSynced,
    /// During work: time to look at `gc/` again.
    PollDue,
    /// During work: these generations exist now; `touched` are those that condemn a pack which this session has used.
    Polled {
        generations: Vec<SessionId>,
        touched: Vec<SessionId>,
    },
    /// All packs and runs of the session are durable.
    Durable,
    OutcomeCreated,
    /// The name was taken: by an object with our object id, or by another one (a fence).
    OutcomeExists {
        ours: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Registering,
    ListingDrops,
    CheckingParent,
    ListingCondemned,
    Acknowledging,
    Syncing,
    Working,
    Polling,
    LateAcknowledging,
    Publishing,
    Ended,
}

/// A backup session's position in the protocol.
#[derive(Clone, Debug)]
pub struct BackupProtocol {
    state: State,
    parent: Option<SessionId>,
    acked: BTreeSet<SessionId>,
}

/// An event came that does not fit the state: a defect of the driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol event {event} in state {state}")]
pub struct OutOfOrder {
    state: String,
    event: String,
}

impl Default for BackupProtocol {
    fn default() -> Self {
        Self::new()
    }
}

impl BackupProtocol {
    /// Starts before B2.
    pub fn new() -> BackupProtocol {
        BackupProtocol {
            state: State::New,
            parent: None,
            acked: BTreeSet::new(),
        }
    }

    /// Returns the generations that this session has acknowledged: their packs count as absent for it.
    pub fn acked(&self) -> impl Iterator<Item = &SessionId> {
        self.acked.iter()
    }

    /// Takes what happened, returns what to do.
    ///
    /// # Errors
    /// When the event cannot come in this state; the session must not publish then.
    pub fn step(&mut self, event: Event) -> Result<Action, OutOfOrder> {
        let (state, action) = match (self.state, event) {
            (State::New, Event::Begin { parent }) => {
                self.parent = parent;
                (
                    State::Registering,
                    Action::Register {
                        pins: parent.into_iter().collect(),
                    },
                )
            }
            // The pin is published before the parent is trusted; drops are listed before the parent is looked for.
            (State::Registering, Event::Registered) => (State::ListingDrops, Action::ListDrops),
            (State::ListingDrops, Event::Drops { dropped }) => {
                match self.parent.filter(|parent| !dropped.contains(parent)) {
                    Some(parent) => (State::CheckingParent, Action::StatParent { parent }),
                    None => {
                        self.parent = None;
                        (State::ListingCondemned, Action::ListCondemned)
                    }
                }
            }
            (State::CheckingParent, Event::ParentExists(exists)) => {
                if !exists {
                    self.parent = None;
                }
                (State::ListingCondemned, Action::ListCondemned)
            }
            // The index is listed after gc: what gc condemns before that is never looked up.
            (State::ListingCondemned, Event::Condemned { generations }) => {
                self.acked.extend(generations);
                if self.acked.is_empty() {
                    (State::Syncing, Action::SyncIndex)
                } else {
                    (
                        State::Acknowledging,
                        Action::Acknowledge {
                            acked: self.acked.iter().copied().collect(),
                        },
                    )
                }
            }
            (State::Acknowledging, Event::Acknowledged) => (State::Syncing, Action::SyncIndex),
            (State::Syncing, Event::IndexSynced) | (State::LateAcknowledging, Event::Acknowledged) => {
                (State::Working, Action::Work { parent: self.parent })
            }
            (State::Working, Event::PollDue) => (State::Polling, Action::ListCondemned),
            // A generation that condemns a pack in use is not acknowledged: its sweep waits for this session.
            (State::Polling, Event::Polled { generations, touched }) => {
                let before = self.acked.len();
                self.acked.extend(
                    generations
                        .into_iter()
                        .filter(|generation| !touched.contains(generation)),
                );
                if self.acked.len() == before {
                    (State::Working, Action::Work { parent: self.parent })
                } else {
                    (
                        State::LateAcknowledging,
                        Action::Acknowledge {
                            acked: self.acked.iter().copied().collect(),
                        },
                    )
                }
            }
            (State::Working, Event::Durable) => (State::Publishing, Action::PublishOutcome),
            (State::Publishing, Event::OutcomeCreated | Event::OutcomeExists { ours: true }) => {
                (State::Ended, Action::Finish(Finish::Committed))
            }
            (State::Publishing, Event::OutcomeExists { ours: false }) => (State::Ended, Action::Finish(Finish::Fenced)),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sid(byte: u8) -> SessionId {
        SessionId([byte; 16])
    }

    #[test]
    fn parent_is_pinned_before_it_is_validated_and_index_comes_after_condemnations() {
        let mut protocol = BackupProtocol::new();
        assert_eq!(
            protocol.step(Event::Begin { parent: Some(sid(1)) }),
            Ok(Action::Register { pins: vec![sid(1)] })
        );
        assert_eq!(protocol.step(Event::Registered), Ok(Action::ListDrops));
        assert_eq!(
            protocol.step(Event::Drops { dropped: vec![] }),
            Ok(Action::StatParent { parent: sid(1) })
        );
        assert_eq!(protocol.step(Event::ParentExists(true)), Ok(Action::ListCondemned));
        assert_eq!(
            protocol.step(Event::Condemned {
                generations: vec![sid(7)]
            }),
            Ok(Action::Acknowledge { acked: vec![sid(7)] })
        );
        assert_eq!(protocol.step(Event::Acknowledged), Ok(Action::SyncIndex));
        assert_eq!(
            protocol.step(Event::IndexSynced),
            Ok(Action::Work { parent: Some(sid(1)) })
        );
        assert_eq!(protocol.step(Event::Durable), Ok(Action::PublishOutcome));
        assert_eq!(
            protocol.step(Event::OutcomeExists { ours: false }),
            Ok(Action::Finish(Finish::Fenced))
        );
    }

    #[test]
    fn dropped_or_vanished_parent_is_not_used() {
        for vanish in [false, true] {
            let mut protocol = BackupProtocol::new();
            protocol.step(Event::Begin { parent: Some(sid(1)) }).unwrap();
            protocol.step(Event::Registered).unwrap();
            let dropped = if vanish { vec![] } else { vec![sid(1)] };
            let action = protocol.step(Event::Drops { dropped }).unwrap();
            if vanish {
                assert_eq!(action, Action::StatParent { parent: sid(1) });
                assert_eq!(protocol.step(Event::ParentExists(false)), Ok(Action::ListCondemned));
            } else {
                assert_eq!(action, Action::ListCondemned);
            }
            protocol.step(Event::Condemned { generations: vec![] }).unwrap();
            assert_eq!(protocol.step(Event::IndexSynced), Ok(Action::Work { parent: None }));
        }
    }

    #[test]
    fn generation_that_condemns_a_used_pack_is_not_acknowledged() {
        let mut protocol = BackupProtocol::new();
        protocol.step(Event::Begin { parent: None }).unwrap();
        protocol.step(Event::Registered).unwrap();
        protocol.step(Event::Drops { dropped: vec![] }).unwrap();
        protocol.step(Event::Condemned { generations: vec![] }).unwrap();
        protocol.step(Event::IndexSynced).unwrap();
        assert_eq!(protocol.step(Event::PollDue), Ok(Action::ListCondemned));
        let polled = Event::Polled {
            generations: vec![sid(3)],
            touched: vec![sid(3)],
        };
        assert_eq!(protocol.step(polled), Ok(Action::Work { parent: None }));
        protocol.step(Event::PollDue).unwrap();
        let polled = Event::Polled {
            generations: vec![sid(3), sid(4)],
            touched: vec![sid(3)],
        };
        assert_eq!(protocol.step(polled), Ok(Action::Acknowledge { acked: vec![sid(4)] }));
    }

    #[test]
    fn nothing_is_published_out_of_order() {
        let mut protocol = BackupProtocol::new();
        assert!(protocol.step(Event::Durable).is_err());
        protocol.step(Event::Begin { parent: None }).unwrap();
        assert!(protocol.step(Event::IndexSynced).is_err());
    }
}
