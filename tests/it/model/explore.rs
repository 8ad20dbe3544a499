//! Depth first through every state that can be reached. Of a state that was met, 128 bits of a hash are kept: with thirty million
//! states, the chance that two are mixed up is below one in 10²³.

use super::world::World;
use super::{Config, Model, Mutation};
use crate::model::machines::Machines;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

/// What happens, and what the world is like afterwards.
#[derive(Clone, Copy)]
pub(super) struct Happened {
    who: &'static str,
    what: &'static str,
    world: World,
}

/// Collects what can happen next.
#[derive(Default)]
pub(super) struct Next {
    pub who: &'static str,
    happenings: Vec<Happened>,
}

impl Next {
    pub(super) fn push(&mut self, what: &'static str, world: World) {
        self.happenings.push(Happened {
            who: self.who,
            what,
            world,
        });
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub states: u64,
    /// Whether there was nothing left to try.
    pub is_exhausted: bool,
    /// How a snapshot is lost, if one is.
    pub story: Option<Vec<String>>,
    /// Different states of the machines of production.
    pub machines: (usize, usize),
    pub took: Duration,
}

impl Outcome {
    pub(super) fn is_sound(&self) -> bool {
        self.is_exhausted && self.story.is_none()
    }
}

/// Tries everything, until a snapshot is lost or `limit` states were met.
pub(super) fn explore(config: &Config, mutation: Option<Mutation>, limit: u64) -> Outcome {
    let begun = Instant::now();
    let mut model = Model {
        config,
        mutation,
        machines: Machines::new(),
    };
    let mut met: HashSet<u128, BuildHasherDefault<Kept>> = HashSet::default();
    let first = config.world();
    met.insert(hash(&first));
    // What is left to try, and for each step that was taken how many of these are its alternatives and successors.
    let mut left: Vec<(Happened, usize)> = vec![(
        Happened {
            who: "nobody",
            what: "has done anything yet",
            world: first,
        },
        0,
    )];
    let mut path: Vec<Happened> = Vec::new();
    let mut next = Next::default();
    let mut outcome = Outcome {
        states: 0,
        is_exhausted: false,
        story: None,
        machines: (0, 0),
        took: Duration::ZERO,
    };
    loop {
        let Some((happened, depth)) = left.pop() else {
            outcome.is_exhausted = true;
            break;
        };
        path.truncate(depth);
        path.push(happened);
        outcome.states += 1;
        if !happened.world.is_sound() {
            outcome.story = Some(tell(&path));
            break;
        }
        if outcome.states == limit {
            break;
        }
        model.successors(&happened.world, &mut next);
        for happened in next.happenings.drain(..) {
            if met.insert(hash(&happened.world)) {
                left.push((happened, depth + 1));
            }
        }
    }
    outcome.machines = model.machines.counts();
    outcome.took = begun.elapsed();
    outcome
}

fn tell(path: &[Happened]) -> Vec<String> {
    let mut story: Vec<String> = path.iter().map(|step| format!("{} {}", step.who, step.what)).collect();
    story.extend(path.last().map(|last| format!("{:#?}", last.world)));
    story
}

fn hash(world: &World) -> u128 {
    let mut words = Words::default();
    world.hash(&mut words);
    words.end()
}

/// Folds what it is given, in two lanes with different constants.
#[derive(Default)]
struct Words {
    lanes: [u64; 2],
    waiting: u64,
    bits: u32,
}

const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];
const OFFSETS: [u64; 2] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db];

impl Words {
    fn fold(&mut self, word: u64) {
        for lane in 0..2 {
            let mixed = self.lanes[lane] ^ word ^ OFFSETS[lane];
            let wide = u128::from(mixed) * u128::from(FACTORS[lane]);
            self.lanes[lane] = (wide as u64) ^ ((wide >> 64) as u64) ^ mixed.rotate_left(29);
        }
    }

    fn take(&mut self, value: u64, bits: u32) {
        if self.bits + bits > 64 {
            self.fold(self.waiting);
            (self.waiting, self.bits) = (0, 0);
        }
        self.waiting |= if self.bits == 0 { value } else { value << self.bits };
        self.bits += bits;
    }

    fn end(mut self) -> u128 {
        self.fold(self.waiting);
        self.fold(u64::from(self.bits));
        self.fold(0x1234_5678_9abc_def1);
        u128::from(self.lanes[0]) << 64 | u128::from(self.lanes[1])
    }
}

impl Hasher for Words {
    fn write(&mut self, bytes: &[u8]) {
        for some in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..some.len()].copy_from_slice(some);
            self.take(u64::from_le_bytes(word), 8 * some.len() as u32);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.take(value.into(), 8);
    }

    fn write_u16(&mut self, value: u16) {
        self.take(value.into(), 16);
    }

    // Lengths and the numbers of variants are small here.
    fn write_usize(&mut self, value: usize) {
        self.take(value as u64 & 0xff, 8);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_usize(value as usize);
    }

    fn finish(&self) -> u64 {
        self.lanes[0]
    }
}

/// A hash is its own hash.
#[derive(Default)]
struct Kept(u64);

impl Hasher for Kept {
    fn write(&mut self, _: &[u8]) {}

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
