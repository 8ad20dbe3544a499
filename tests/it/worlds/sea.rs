//! What lies between several machines and one store: exactly one of them goes on at a time, and who that is is drawn anew at each call
//! to the store. So a seed says in which order the calls come, as far as a machine makes them one after the other (a few reads are made
//! side by side). A machine can die at a call, be told of an error though the call has an effect, or later has one, and sleep for days.

use larder::edge::store::{
    Abilities, Created, Failure, Listed, Part, Prefix, Stat, Store, StoreError, StoreKey, memory::MemoryStore,
};
use larder::pure::base::Timestamp;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;

/// Longer than the 72 hours after which a session is taken for dead.
const DAYS: i64 = 100 * 3_600_000_000_000;
/// Calls of the log that a failure shows.
const LOGGED: usize = 400;

/// Numbers that depend on the seed only.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    pub fn of<'t, T>(&mut self, some: &'t [T]) -> Option<&'t T> {
        (!some.is_empty()).then(|| &some[self.below(some.len())])
    }
}

/// What befalls a machine during one command, at its call with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Nothing,
    /// The process dies; the call may have its effect before.
    Dies {
        call: usize,
        after_effect: bool,
    },
    /// The call fails, and goes on to the store or not.
    Fails {
        call: usize,
        after_effect: bool,
    },
    /// A write fails, and has its effect when this many calls of everybody have been made. The process may die of it.
    Late {
        call: usize,
        by: u64,
        dies: bool,
    },
    /// The machine sleeps while the others make so many calls, and days go by.
    Sleeps {
        call: usize,
        calls: u64,
    },
}

impl Trouble {
    pub fn draw(random: &mut Random) -> Trouble {
        let call = random.below(45);
        let after_effect = random.percent(50);
        match random.below(100) {
            0..45 => Trouble::Nothing,
            45..65 => Trouble::Dies { call, after_effect },
            65..75 => Trouble::Fails { call, after_effect },
            75..88 => Trouble::Late {
                call,
                by: 1 + random.below(150) as u64,
                dies: random.percent(50),
            },
            _ => Trouble::Sleeps {
                call,
                calls: 20 + random.below(150) as u64,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    Idle,
    Running,
    /// Until so many calls have been made, or nobody else runs.
    Asleep(u64),
}

#[derive(Debug)]
struct Order {
    random: Random,
    machines: Vec<Machine>,
    turn: usize,
    calls: u64,
    log: VecDeque<String>,
    late: Vec<(u64, StoreKey, bytes::Bytes)>,
    time: i64,
}

/// The order in which machines go on.
#[derive(Debug)]
pub struct Sea {
    store: MemoryStore,
    order: Mutex<Order>,
    changed: Condvar,
}

impl Sea {
    pub fn new(store: MemoryStore, machines: usize, seed: u64, now: Timestamp) -> Arc<Sea> {
        store.set_time(now);
        Arc::new(Sea {
            store,
            order: Mutex::new(Order {
                random: Random::new(seed ^ 0x5ea),
                machines: vec![Machine::Idle; machines],
                turn: 0,
                calls: 0,
                log: VecDeque::new(),
                late: Vec::new(),
                time: now.0,
            }),
            changed: Condvar::new(),
        })
    }

    /// These machines run from now on, until each is [`Self::done`].
    pub fn start(&self, machines: &[usize]) {
        let mut order = self.order.lock();
        for machine in machines {
            order.machines[*machine] = Machine::Running;
        }
        order.pass();
    }

    pub fn done(&self, machine: usize) {
        let mut order = self.order.lock();
        order.machines[machine] = Machine::Idle;
        if order.turn == machine {
            order.pass();
        }
        self.changed.notify_all();
    }

    pub fn days_go_by(&self) {
        let mut order = self.order.lock();
        self.let_days_go_by(&mut order);
    }

    fn let_days_go_by(&self, order: &mut Order) {
        order.time += DAYS;
        self.store.set_time(Timestamp(order.time));
    }

    /// What was on its way arrives.
    pub fn arrive(&self) {
        let mut order = self.order.lock();
        order.calls = u64::MAX / 2;
        self.land(&mut order);
    }

    pub fn log(&self) -> String {
        let order = self.order.lock();
        order.log.iter().fold(String::new(), |log, line| log + line + "\n")
    }

    pub fn note(&self, line: String) {
        self.order.lock().write(line);
    }

    fn land(&self, order: &mut Order) {
        let now = order.calls;
        let (due, late) = std::mem::take(&mut order.late)
            .into_iter()
            .partition(|(when, ..)| *when <= now);
        order.late = late;
        let due: Vec<(u64, StoreKey, bytes::Bytes)> = due;
        for (_, key, body) in due {
            let landed = self.store.create(&key, body).expect("memory does not fail");
            order.write(format!("(late) writing {key}: {landed:?}"));
        }
    }

    /// Waits until it is this machine's turn.
    fn turn(&self, machine: usize, verb: &str, object: &dyn Display) {
        let mut order = self.order.lock();
        if order.turn == machine {
            order.pass();
            self.changed.notify_all();
        }
        while order.turn != machine {
            self.changed.wait(&mut order);
        }
        order.calls += 1;
        order.write(format!("{machine}: {verb} {object}"));
        self.land(&mut order);
    }

    fn sleep(&self, machine: usize, calls: u64) {
        let mut order = self.order.lock();
        self.let_days_go_by(&mut order);
        let until = order.calls + calls;
        order.machines[machine] = Machine::Asleep(until);
        order.write(format!("{machine}: sleeps for days"));
        order.pass();
        self.changed.notify_all();
        while order.turn != machine {
            self.changed.wait(&mut order);
        }
    }
}

impl Order {
    fn write(&mut self, line: String) {
        if self.log.len() == LOGGED {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    /// Draws who goes on. One that has the turn keeps it half of the time, so that there are long stretches too.
    fn pass(&mut self) {
        let calls = self.calls;
        for machine in &mut self.machines {
            if matches!(machine, Machine::Asleep(until) if *until <= calls) {
                *machine = Machine::Running;
            }
        }
        let is_running = |machine: &Machine| *machine == Machine::Running;
        if !self.machines.iter().any(is_running) {
            let asleep = self.machines.iter_mut().find(|machine| **machine != Machine::Idle);
            match asleep {
                Some(machine) => *machine = Machine::Running,
                None => return,
            }
        }
        if is_running(&self.machines[self.turn]) && self.random.percent(50) {
            return;
        }
        let running: Vec<usize> = (0..self.machines.len())
            .filter(|machine| is_running(&self.machines[*machine]))
            .collect();
        self.turn = running[self.random.below(running.len())];
    }
}

#[derive(Debug, Default)]
struct Process {
    calls: usize,
    is_dead: bool,
    /// The one write that is late has been made.
    was_late: bool,
}

/// The store as one command on one machine sees it.
#[derive(Debug)]
pub struct Boat {
    sea: Arc<Sea>,
    machine: usize,
    trouble: Trouble,
    process: Mutex<Process>,
}

/// What becomes of a call.
enum Fate {
    Pass,
    Fail { has_effect: bool },
    Late { by: u64 },
}

impl Boat {
    pub fn new(sea: &Arc<Sea>, machine: usize, trouble: Trouble) -> Boat {
        Boat {
            sea: sea.clone(),
            machine,
            trouble,
            process: Mutex::default(),
        }
    }

    fn fate(&self, verb: &'static str, object: &dyn Display) -> Fate {
        if self.process.lock().is_dead {
            return Fate::Fail { has_effect: false };
        }
        self.sea.turn(self.machine, verb, object);
        let mut process = self.process.lock();
        let number = process.calls;
        process.calls += 1;
        let is_write = verb == "writing";
        match self.trouble {
            Trouble::Dies { call, after_effect } if call == number => {
                process.is_dead = true;
                Fate::Fail {
                    has_effect: after_effect,
                }
            }
            Trouble::Fails { call, after_effect } if call == number => Fate::Fail {
                has_effect: after_effect,
            },
            // Of what is written from then on, the first.
            Trouble::Late { call, by, dies } if call <= number && is_write && !process.was_late => {
                (process.is_dead, process.was_late) = (dies, true);
                Fate::Late { by }
            }
            Trouble::Sleeps { call, calls } if call == number => {
                drop(process);
                self.sea.sleep(self.machine, calls);
                Fate::Pass
            }
            _ => Fate::Pass,
        }
    }

    fn run<T>(
        &self,
        verb: &'static str,
        object: &dyn Display,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed = || Err(StoreError::new(verb, object, Failure::Unreachable).caused_by("trouble of the test"));
        match self.fate(verb, object) {
            Fate::Pass => call(),
            Fate::Fail { has_effect: false } | Fate::Late { .. } => failed(),
            Fate::Fail { has_effect: true } => {
                call()?;
                failed()
            }
        }
    }
}

impl Store for Boat {
    fn create(&self, key: &StoreKey, body: bytes::Bytes) -> Result<Created, StoreError> {
        match self.fate("writing", key) {
            Fate::Pass => self.sea.store.create(key, body),
            fate => {
                match fate {
                    Fate::Late { by } => {
                        let mut order = self.sea.order.lock();
                        let due = order.calls + by;
                        order.late.push((due, key.clone(), body));
                    }
                    Fate::Fail { has_effect: true } => drop(self.sea.store.create(key, body)?),
                    _ => {}
                }
                Err(StoreError::new("writing", key, Failure::Unreachable).caused_by("trouble of the test"))
            }
        }
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<bytes::Bytes, StoreError> {
        self.run("reading", key, || self.sea.store.read(key, part))
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.run("listing", &prefix.as_str(), || self.sea.store.list(prefix, each))
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.run("looking at", key, || self.sea.store.stat(key))
    }

    /// Each object is deleted by itself: a process can die in between.
    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        for key in keys {
            self.run("deleting", key, || self.sea.store.remove(std::slice::from_ref(key)))?;
        }
        Ok(())
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.run("preparing", &"the place", || self.sea.store.prepare())
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        self.run("trying out", &"the store", || self.sea.store.probe())
    }

    fn set_conditional(&self, _conditional: bool) {}

    fn location(&self) -> String {
        "memory".to_string()
    }
}
