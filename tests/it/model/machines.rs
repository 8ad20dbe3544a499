//! The state machines of production, as numbers: a machine's state is looked up in a table, and what it does with an event is asked
//! once and remembered. So a state of the model stays small, and every step of a backup or of a sweep is still decided by the code that
//! decides it in production.

use super::world::{CONDEMNERS, GENERATIONS, Generations, SESSIONS, SNAPSHOTS, Sessions, Snapshots, each};
use larder::pure::id::SessionId;
use larder::pure::protocol::backup::{self, BackupProtocol};
use larder::pure::protocol::maintain::{self, MaintenanceProtocol, Purpose, Unended};
use std::collections::HashMap;
use std::hash::Hash;

/// What a backup has to do next: [`backup::Action`] with sets of bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Doing {
    #[default]
    Nothing,
    Register {
        pins: Snapshots,
    },
    ListDrops,
    StatParent {
        parent: u8,
    },
    ListCondemned,
    Acknowledge {
        acked: Generations,
    },
    SyncIndex,
    Work {
        parents: Snapshots,
    },
    Publish,
    Ended,
}

/// What a backup is told: [`backup::Event`] with sets of bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Told {
    Begin {
        parents: Snapshots,
    },
    Registered,
    Drops(Snapshots),
    ParentExists(bool),
    Condemned(Generations),
    Acknowledged,
    IndexSynced,
    PollDue,
    Polled {
        generations: Generations,
        touched: Generations,
    },
    Durable,
    DurableSoFar {
        ending: u8,
    },
    OutcomeCreated,
    Fenced,
}

/// What maintenance has to do next: [`maintain::Action`] with sets of bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Duty {
    #[default]
    Nothing,
    ListDrops,
    ListSessions,
    ListSnapshots,
    Mark {
        live: Snapshots,
    },
    SyncIndex,
    Resolve,
    Publish,
    Condemn,
    Delete {
        generations: Generations,
    },
    Ended,
}

/// What maintenance is told: [`maintain::Event`] with sets of bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Heard {
    Begun(Generations),
    Dropped(Snapshots),
    Sessions {
        open: Sessions,
        pins: [Snapshots; SESSIONS],
        acked: [Generations; SESSIONS],
    },
    Snapshots(Snapshots),
    Marked,
    IndexSynced,
    Resolved,
    Published {
        ours: bool,
    },
    Condemned,
}

/// All states of one kind of machine that were met, and what follows from each.
#[derive(Debug)]
struct Table<Machine, Event, Action> {
    numbers: HashMap<Machine, u16>,
    machines: Vec<Machine>,
    steps: HashMap<(u16, Event), (u16, Action)>,
}

impl<Machine: Clone + Eq + Hash, Event: Copy + Eq + Hash, Action: Copy> Table<Machine, Event, Action> {
    fn new() -> Self {
        Table {
            numbers: HashMap::new(),
            machines: Vec::new(),
            steps: HashMap::new(),
        }
    }

    fn number(&mut self, machine: Machine) -> u16 {
        let next = self.machines.len() as u16;
        *self.numbers.entry(machine).or_insert_with_key(|machine| {
            assert!(next < u16::MAX, "too many states of a machine");
            self.machines.push(machine.clone());
            next
        })
    }

    fn step(&mut self, number: u16, event: Event, step: impl FnOnce(&mut Machine) -> Action) -> (u16, Action) {
        if let Some(done) = self.steps.get(&(number, event)) {
            return *done;
        }
        let mut machine = self.machines[usize::from(number)].clone();
        let action = step(&mut machine);
        let done = (self.number(machine), action);
        self.steps.insert((number, event), done);
        done
    }
}

/// The machines of everybody.
#[derive(Debug)]
pub struct Machines {
    backups: Table<BackupProtocol, Told, Doing>,
    maintenance: Table<MaintenanceProtocol, Heard, Duty>,
}

impl Machines {
    pub fn new() -> Machines {
        Machines {
            backups: Table::new(),
            maintenance: Table::new(),
        }
    }

    /// How many different states of machines there were: of backups, of maintenance.
    pub fn counts(&self) -> (usize, usize) {
        (self.backups.machines.len(), self.maintenance.machines.len())
    }

    pub fn new_backup(&mut self) -> u16 {
        self.backups.number(BackupProtocol::new())
    }

    pub fn new_maintenance(&mut self, purpose: Purpose, session: usize) -> u16 {
        self.maintenance.number(MaintenanceProtocol::new(purpose, id(session)))
    }

    /// One step of a backup.
    pub fn backup(&mut self, machine: u16, told: Told) -> (u16, Doing) {
        self.backups.step(machine, told, |machine| {
            doing(
                machine
                    .step(backup_event(told))
                    .expect("the model's driver keeps the order"),
            )
        })
    }

    /// One step of maintenance.
    pub fn maintain(&mut self, machine: u16, heard: Heard) -> (u16, Duty) {
        self.maintenance.step(machine, heard, |machine| {
            duty(
                machine
                    .step(maintenance_event(heard))
                    .expect("the model's driver keeps the order"),
            )
        })
    }
}

fn id(session: usize) -> SessionId {
    SessionId([session as u8; 16])
}

fn number(session: &SessionId) -> usize {
    usize::from(session.0[0])
}

fn ids(set: Sessions) -> Vec<SessionId> {
    each(set).map(id).collect()
}

fn generation_ids(set: Generations) -> Vec<SessionId> {
    each(set.into()).map(|generation| id(CONDEMNERS[generation])).collect()
}

fn snapshot_set(ids: &[SessionId]) -> Snapshots {
    ids.iter().fold(0, |set, id| {
        assert!(number(id) < SNAPSHOTS);
        set | 1 << number(id)
    })
}

fn generation_set(ids: &[SessionId]) -> Generations {
    ids.iter().fold(0, |set, id| {
        let generation = (0..GENERATIONS).find(|generation| CONDEMNERS[*generation] == number(id));
        set | 1 << generation.expect("only condemners condemn")
    })
}

fn backup_event(told: Told) -> backup::Event {
    use backup::Event;
    match told {
        Told::Begin { parents } => Event::Begin {
            parents: ids(parents.into()),
        },
        Told::Registered => Event::Registered,
        Told::Drops(dropped) => Event::Drops {
            dropped: ids(dropped.into()),
        },
        Told::ParentExists(exists) => Event::ParentExists(exists),
        Told::Condemned(generations) => Event::Condemned {
            generations: generation_ids(generations),
        },
        Told::Acknowledged => Event::Acknowledged,
        Told::IndexSynced => Event::IndexSynced,
        Told::PollDue => Event::PollDue,
        Told::Polled { generations, touched } => Event::Polled {
            generations: generation_ids(generations),
            touched: generation_ids(touched),
        },
        Told::Durable => Event::Durable,
        Told::DurableSoFar { ending } => Event::DurableSoFar {
            ending: id(ending.into()),
        },
        Told::OutcomeCreated => Event::OutcomeCreated,
        Told::Fenced => Event::OutcomeExists { ours: false },
    }
}

fn doing(action: backup::Action) -> Doing {
    use backup::Action;
    match action {
        Action::Register { pins } => Doing::Register {
            pins: snapshot_set(&pins),
        },
        Action::ListDrops => Doing::ListDrops,
        Action::StatParent { parent } => Doing::StatParent {
            parent: number(&parent) as u8,
        },
        Action::ListCondemned => Doing::ListCondemned,
        Action::Acknowledge { acked } => Doing::Acknowledge {
            acked: generation_set(&acked),
        },
        Action::SyncIndex => Doing::SyncIndex,
        Action::Work { parents } => Doing::Work {
            parents: snapshot_set(&parents),
        },
        Action::PublishOutcome => Doing::Publish,
        Action::Finish(_) => Doing::Ended,
    }
}

fn maintenance_event(heard: Heard) -> maintain::Event {
    use maintain::Event;
    match heard {
        Heard::Begun(generations) => Event::Begun {
            generations: generation_ids(generations),
        },
        Heard::Dropped(dropped) => Event::Dropped {
            dropped: ids(dropped.into()),
        },
        Heard::Sessions { open, pins, acked } => Event::Sessions {
            unended: each(open)
                .map(|session| Unended {
                    session: id(session),
                    pins: ids(pins[session].into()),
                    acked: generation_ids(acked[session]),
                })
                .collect(),
        },
        Heard::Snapshots(snapshots) => Event::Snapshots {
            snapshots: ids(snapshots.into()),
        },
        Heard::Marked => Event::Marked,
        Heard::IndexSynced => Event::IndexSynced,
        Heard::Resolved => Event::Resolved,
        Heard::Published { ours } => Event::Published { ours },
        Heard::Condemned => Event::Condemned,
    }
}

fn duty(action: maintain::Action) -> Duty {
    use maintain::Action;
    match action {
        Action::ListDrops => Duty::ListDrops,
        Action::ListSessions => Duty::ListSessions,
        Action::ListSnapshots => Duty::ListSnapshots,
        Action::Mark { live } => Duty::Mark {
            live: snapshot_set(&live),
        },
        Action::SyncIndex => Duty::SyncIndex,
        Action::Resolve => Duty::Resolve,
        Action::Publish => Duty::Publish,
        Action::Condemn => Duty::Condemn,
        Action::Delete { generations } => Duty::Delete {
            generations: generation_set(&generations),
        },
        Action::Finish(_) => Duty::Ended,
    }
}
