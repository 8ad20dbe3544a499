//! A backup session, step by step (format-spec chapter 16: B1 to B10). The order of the actions is the safety argument; the driver in
//! `repo::session` only carries them out.
//!
//! A checkpoint ends one session and goes on in the next: the next is registered, with the same pins and the ending
//! session pinned as well, *before* the ending one publishes; it validates all pins afterwards, as a new session does
//! (B3). Between the two nothing but what is reachable from the pins may be carried over, because looked-up and
//! uploaded chunks outside of them are protected by nobody.

use crate::pure::id::SessionId;
use std::collections::BTreeSet;

/// What the driver has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// B2: create `sess/S/0000` with these pins. At a checkpoint, S is the session that goes on.
    Register { pins: Vec<SessionId> },
    /// B3, first half: list `drop/`.
    ListDrops,
    /// B3, second half, for each pin: does `snap/P` still exist?
    StatParent { parent: SessionId },
    /// B4 and B9: list `gc/` and fetch what is new.
    ListCondemned,
    /// B5 and B9: create the next `sess/S/n` that acknowledges all of these.
    Acknowledge { acked: Vec<SessionId> },
    /// B6: list `idx/` and import.
    SyncIndex,
    /// B7: walk and upload. These parents are pinned and validated. Feed polls in between.
    Work { parents: Vec<SessionId> },
    /// B10: packs and runs are durable; create `snap/S`. At a checkpoint, S is the session that ends.
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
    /// A pin of the session that goes on did not hold: what the run has built on may be deleted. The checkpoint is
    /// published.
    Unpinned(SessionId),
}

/// What the driver reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// B1 is done; these are the parents that were chosen.
    Begin {
        parents: Vec<SessionId>,
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
    /// All packs and runs of the session are durable: it may end with a commit.
    Durable,
    /// All packs and runs of the session `ending` are durable, and no work is under way that its tree does not hold: it
    /// may end with a checkpoint.
    DurableSoFar {
        ending: SessionId,
    },
    OutcomeCreated,
    /// The name was taken: by an object with our object id, or by another one (a fence).
    OutcomeExists {
        ours: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    New,
    Registering,
    ListingDrops,
    CheckingParent(SessionId),
    ListingCondemned,
    Acknowledging,
    Syncing,
    Working,
    Polling,
    LateAcknowledging,
    Publishing,
    RegisteringNext,
    PublishingCheckpoint,
    Ended,
}

/// A backup session's position in the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackupProtocol {
    state: State,
    parents: Vec<SessionId>,
    /// Parents whose existence is not known yet.
    to_check: Vec<SessionId>,
    /// The checkpoint after which this session goes on: every pin has to hold then.
    checkpoint: Option<SessionId>,
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
            parents: Vec::new(),
            to_check: Vec::new(),
            checkpoint: None,
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
            (State::New, Event::Begin { parents }) => {
                self.parents = parents;
                let pins = self.parents.clone();
                (State::Registering, Action::Register { pins })
            }
            // The pins are published before they are trusted; drops are listed before the parents are looked for.
            (State::Registering, Event::Registered) => (State::ListingDrops, Action::ListDrops),
            (State::ListingDrops, Event::Drops { dropped }) => {
                let lost = self.parents.iter().find(|parent| dropped.contains(parent)).copied();
                self.parents
                    .retain(|parent| !dropped.contains(parent) || chaos!("dropped-parent-is-used"));
                self.to_check.clone_from(&self.parents);
                self.next_check(lost)
            }
            (State::CheckingParent(parent), Event::ParentExists(exists)) => {
                if !exists && !chaos!("vanished-parent-is-used") {
                    self.parents.retain(|other| *other != parent);
                }
                self.next_check((!exists).then_some(parent))
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
                (State::Working, self.work())
            }
            (State::Working, Event::PollDue) => (State::Polling, Action::ListCondemned),
            // A generation that condemns a pack in use is not acknowledged: its sweep waits for this session.
            (State::Polling, Event::Polled { generations, touched }) => {
                let before = self.acked.len();
                self.acked.extend(
                    generations
                        .into_iter()
                        .filter(|generation| !touched.contains(generation) || chaos!("used-packs-are-acknowledged")),
                );
                if self.acked.len() == before {
                    (State::Working, self.work())
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
            (State::Publishing | State::PublishingCheckpoint, Event::OutcomeExists { ours: false }) => {
                (State::Ended, Action::Finish(Finish::Fenced))
            }
            (State::Working, Event::DurableSoFar { ending }) => {
                // The new checkpoint holds all that the one before it held.
                let before = self.checkpoint.replace(ending);
                self.parents.retain(|parent| Some(*parent) != before);
                self.parents.push(ending);
                let pins = self.parents.clone();
                (State::RegisteringNext, Action::Register { pins })
            }
            // The next session is there before this one ends: at no moment is nobody un-ended.
            (State::RegisteringNext, Event::Registered) => (State::PublishingCheckpoint, Action::PublishOutcome),
            (State::PublishingCheckpoint, Event::OutcomeCreated | Event::OutcomeExists { ours: true }) => {
                self.acked.clear();
                (State::ListingDrops, Action::ListDrops)
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

    /// What comes after a pin was looked at; `lost` is one that does not hold.
    fn next_check(&mut self, lost: Option<SessionId>) -> (State, Action) {
        // A new session does without a lost parent. One that goes on has already built on it.
        if let Some(lost) = lost.filter(|_| self.checkpoint.is_some() && !chaos!("lost-pin-is-no-matter")) {
            return (State::Ended, Action::Finish(Finish::Unpinned(lost)));
        }
        match self.to_check.pop() {
            Some(parent) => (State::CheckingParent(parent), Action::StatParent { parent }),
            None => (State::ListingCondemned, Action::ListCondemned),
        }
    }

    fn work(&self) -> Action {
        Action::Work {
            parents: self.parents.clone(),
        }
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
            protocol.step(Event::Begin { parents: vec![sid(1)] }),
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
            Ok(Action::Work { parents: vec![sid(1)] })
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
            protocol.step(Event::Begin { parents: vec![sid(1)] }).unwrap();
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
            assert_eq!(protocol.step(Event::IndexSynced), Ok(Action::Work { parents: vec![] }));
        }
    }

    #[test]
    fn generation_that_condemns_a_used_pack_is_not_acknowledged() {
        let mut protocol = BackupProtocol::new();
        protocol.step(Event::Begin { parents: vec![] }).unwrap();
        protocol.step(Event::Registered).unwrap();
        protocol.step(Event::Drops { dropped: vec![] }).unwrap();
        protocol.step(Event::Condemned { generations: vec![] }).unwrap();
        protocol.step(Event::IndexSynced).unwrap();
        assert_eq!(protocol.step(Event::PollDue), Ok(Action::ListCondemned));
        let polled = Event::Polled {
            generations: vec![sid(3)],
            touched: vec![sid(3)],
        };
        assert_eq!(protocol.step(polled), Ok(Action::Work { parents: vec![] }));
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
        protocol.step(Event::Begin { parents: vec![] }).unwrap();
        assert!(protocol.step(Event::IndexSynced).is_err());
    }

    /// A protocol that works with one parent and has acknowledged one generation.
    fn working() -> BackupProtocol {
        let mut protocol = BackupProtocol::new();
        let events = [
            Event::Begin { parents: vec![sid(1)] },
            Event::Registered,
            Event::Drops { dropped: vec![] },
            Event::ParentExists(true),
            Event::Condemned {
                generations: vec![sid(7)],
            },
            Event::Acknowledged,
            Event::IndexSynced,
        ];
        for event in events {
            protocol.step(event).unwrap();
        }
        protocol
    }

    #[test]
    fn next_session_is_registered_with_all_pins_before_the_checkpoint_and_validates_after_it() {
        let mut protocol = working();
        let pins = vec![sid(1), sid(2)];
        assert_eq!(
            protocol.step(Event::DurableSoFar { ending: sid(2) }),
            Ok(Action::Register { pins: pins.clone() })
        );
        assert!(protocol.clone().step(Event::OutcomeCreated).is_err());
        assert_eq!(protocol.step(Event::Registered), Ok(Action::PublishOutcome));
        assert!(protocol.acked().eq(&[sid(7)]));
        assert_eq!(protocol.step(Event::OutcomeCreated), Ok(Action::ListDrops));
        // The session that goes on has acknowledged nothing yet.
        assert_eq!(protocol.acked().count(), 0);
        assert_eq!(
            protocol.step(Event::Drops { dropped: vec![] }),
            Ok(Action::StatParent { parent: sid(2) })
        );
        assert_eq!(
            protocol.step(Event::ParentExists(true)),
            Ok(Action::StatParent { parent: sid(1) })
        );
        assert_eq!(protocol.step(Event::ParentExists(true)), Ok(Action::ListCondemned));
        protocol.step(Event::Condemned { generations: vec![] }).unwrap();
        assert_eq!(protocol.step(Event::IndexSynced), Ok(Action::Work { parents: pins }));
        let mut again = protocol.clone();
        assert_eq!(
            again.step(Event::DurableSoFar { ending: sid(3) }),
            Ok(Action::Register {
                pins: vec![sid(1), sid(3)]
            })
        );
        assert_eq!(protocol.step(Event::Durable), Ok(Action::PublishOutcome));
        assert_eq!(
            protocol.step(Event::OutcomeCreated),
            Ok(Action::Finish(Finish::Committed))
        );
    }

    #[test]
    fn run_that_goes_on_ends_when_a_pin_does_not_hold() {
        for (dropped, lost) in [(vec![sid(1)], sid(1)), (vec![sid(2)], sid(2)), (vec![], sid(2))] {
            let mut protocol = working();
            protocol.step(Event::DurableSoFar { ending: sid(2) }).unwrap();
            protocol.step(Event::Registered).unwrap();
            protocol.step(Event::OutcomeExists { ours: true }).unwrap();
            let by_drop = !dropped.is_empty();
            let mut action = protocol.step(Event::Drops { dropped });
            if !by_drop {
                action = protocol.step(Event::ParentExists(false));
            }
            assert_eq!(action, Ok(Action::Finish(Finish::Unpinned(lost))));
            assert!(protocol.step(Event::Durable).is_err());
        }
    }

    #[test]
    fn fenced_session_publishes_no_checkpoint_and_does_not_go_on() {
        let mut protocol = working();
        protocol.step(Event::DurableSoFar { ending: sid(2) }).unwrap();
        protocol.step(Event::Registered).unwrap();
        assert_eq!(
            protocol.step(Event::OutcomeExists { ours: false }),
            Ok(Action::Finish(Finish::Fenced))
        );
        assert!(protocol.step(Event::PollDue).is_err());
    }

    #[test]
    fn of_several_parents_those_that_are_gone_are_not_used() {
        let mut protocol = BackupProtocol::new();
        let parents = vec![sid(1), sid(2), sid(3)];
        protocol.step(Event::Begin { parents }).unwrap();
        protocol.step(Event::Registered).unwrap();
        let dropped = vec![sid(2)];
        assert_eq!(
            protocol.step(Event::Drops { dropped }),
            Ok(Action::StatParent { parent: sid(3) })
        );
        assert_eq!(
            protocol.step(Event::ParentExists(false)),
            Ok(Action::StatParent { parent: sid(1) })
        );
        assert_eq!(protocol.step(Event::ParentExists(true)), Ok(Action::ListCondemned));
        protocol.step(Event::Condemned { generations: vec![] }).unwrap();
        assert_eq!(
            protocol.step(Event::IndexSynced),
            Ok(Action::Work { parents: vec![sid(1)] })
        );
    }
}
