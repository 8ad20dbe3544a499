//! What the model knows of a repository: which objects are there, as sets of bits, and where everybody stands who works on it. Small
//! and without pointers, because tens of millions of these are compared.

use super::machines::{Doing, Duty};

/// A set of packs, one bit each. Names are never used again, so bits are not either.
pub type Packs = u16;
/// A set of sessions.
pub type Sessions = u16;
/// A set of those sessions that can be snapshots: the first [`SNAPSHOTS`].
pub type Snapshots = u8;
/// A set of generations.
pub type Generations = u8;
/// A set of chunks.
pub type Chunks = u8;

pub const SESSIONS: usize = 10;
pub const SNAPSHOTS: usize = 4;
pub const PACKS: u8 = 16;
pub const GENERATIONS: usize = 2;

/// Who has which session. `FIRST` ended long ago; it is the snapshot that there is in the beginning.
pub const FIRST: usize = 0;
pub const WRITERS: [usize; 2] = [1, 2];
/// As which session the first writer goes on after a checkpoint.
pub const NEXT: usize = 3;
pub const CONDEMNERS: [usize; GENERATIONS] = [4, 5];
pub const SWEEPERS: [usize; 2] = [6, 7];
pub const COMPACTORS: [usize; 2] = [8, 9];

/// The chunk that everything is about, and one that may be stored as a delta against it.
pub const A: Chunks = 1;
pub const B: Chunks = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Stage {
    #[default]
    Absent,
    /// Registered.
    Open,
    /// Its outcome is a snapshot.
    Snapshot,
    /// Its outcome is none: maintenance, a fence.
    Ended,
    /// It was a snapshot, and its outcome was deleted.
    Removed,
}

/// A backup, driven by the machine of production.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Writer {
    pub machine: u16,
    pub doing: Doing,
    /// The session that is being written; it changes at a checkpoint.
    pub session: u8,
    pub is_polling: bool,
    /// Pinned and validated.
    pub parents: Snapshots,
    /// Packs that were valid when the index was synced.
    pub found: Packs,
    /// Generations that the local index knows.
    pub known: Generations,
    /// Packs that were looked up, or uploaded.
    pub used: Packs,
    /// Chunks that are in the tree.
    pub tree: Chunks,
    /// Uploaded, and in no run yet.
    pub unlisted: Packs,
    /// What a mutant has looked at too early.
    pub early: u8,
    pub is_early: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Maintainer {
    pub machine: u16,
    pub duty: Duty,
    pub acked: Generations,
    /// Drops that were listed, before the holds were.
    pub drops: Snapshots,
    pub has_listed: bool,
    /// Chunks that live snapshots reach.
    pub needed: Chunks,
    /// Sessions that were listed, and those of them that lack an acknowledgement.
    pub registered: Sessions,
    pub lagging: Sessions,
    /// Sessions whose outcomes were listed.
    pub ended: Sessions,
    pub found: Packs,
    pub unlisted: Packs,
    /// What a mutant has looked at too early.
    pub early: u8,
}

/// Writes all runs as one, and deletes those afterwards. Production has no machine for this yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Compactor {
    pub step: u8,
    pub acked: Generations,
    pub listed: [Packs; SESSIONS],
    pub kept: Packs,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct World {
    pub packs_made: u8,
    pub exists: Packs,
    /// Which packs have full copies of A, of B, and a copy of B that is a delta against A.
    pub full_a: Packs,
    pub full_b: Packs,
    pub delta_b: Packs,
    /// What the runs of each session list, as far as they are there.
    pub runs: [Packs; SESSIONS],
    pub stage: [Stage; SESSIONS],
    pub accepted: [Packs; SESSIONS],
    pub acked: [Generations; SESSIONS],
    pub pins: [Snapshots; SESSIONS],
    /// What each snapshot holds.
    pub holds: [Chunks; SNAPSHOTS],
    pub dropped: Snapshots,
    pub held: Snapshots,
    /// Held by somebody who was told so.
    pub held_for_sure: Snapshots,
    pub condemned: [Packs; GENERATIONS],
    pub published: Generations,
    pub retired: Generations,
    pub writers: [Writer; 2],
    pub condemners: [Maintainer; GENERATIONS],
    pub sweepers: [Maintainer; 2],
    pub compactors: [Compactor; 2],
    /// Whose fence is on its way and has listed these runs; how many there were.
    pub fence: Option<(u8, Packs)>,
    pub fences: u8,
    /// Who is about to find out whether a hold counts.
    pub holding: Option<u8>,
    pub has_held: bool,
    /// Retiring and tidying: step and object.
    pub retiring: (u8, u8),
    pub tidying: (u8, u8),
}

impl World {
    /// A snapshot, and nobody who works. What it holds lies in packs of its own, B as a delta if it is to be.
    pub fn new(holds: Chunks, chunks: Chunks, is_delta: bool) -> World {
        let mut world = World::default();
        world.full_a = world.make_pack();
        if chunks & B != 0 {
            let pack = world.make_pack();
            match is_delta {
                true => world.delta_b = pack,
                false => world.full_b = pack,
            }
        }
        world.runs[FIRST] = world.exists;
        world.accepted[FIRST] = world.exists;
        world.stage[FIRST] = Stage::Snapshot;
        world.holds[FIRST] = holds;
        for (number, writer) in world.writers.iter_mut().enumerate() {
            writer.session = WRITERS[number] as u8;
        }
        world
    }

    pub fn make_pack(&mut self) -> Packs {
        assert!(self.packs_made < PACKS, "the model has too few packs for this");
        let pack = 1 << self.packs_made;
        self.packs_made += 1;
        self.exists |= pack;
        pack
    }

    pub fn upload_full(&mut self, chunks: Chunks) -> Packs {
        let pack = self.make_pack();
        if chunks & A != 0 {
            self.full_a |= pack;
        }
        if chunks & B != 0 {
            self.full_b |= pack;
        }
        pack
    }

    pub fn has_ended(&self, session: usize) -> bool {
        matches!(self.stage[session], Stage::Snapshot | Stage::Ended)
    }

    /// Packs that runs of these ended sessions list, as far as their outcomes accept them.
    pub fn valid_of(&self, ended: Sessions) -> Packs {
        (0..SESSIONS)
            .filter(|session| ended >> session & 1 == 1 && self.has_ended(*session))
            .fold(0, |packs, session| packs | self.accepted[session] & self.runs[session])
    }

    pub fn valid(&self) -> Packs {
        self.valid_of(Sessions::MAX)
    }

    pub fn ended(&self) -> Sessions {
        (0..SESSIONS)
            .filter(|session| self.has_ended(*session))
            .fold(0, |ended, session| ended | 1 << session)
    }

    pub fn condemned_by(&self, generations: Generations) -> Packs {
        (0..GENERATIONS)
            .filter(|generation| generations >> generation & 1 == 1)
            .fold(0, |packs, generation| packs | self.condemned[generation])
    }

    pub fn generations(&self) -> Generations {
        self.published & !self.retired
    }

    pub fn snapshots(&self) -> Snapshots {
        (0..SNAPSHOTS)
            .filter(|session| self.stage[*session] == Stage::Snapshot)
            .fold(0, |snapshots, session| snapshots | 1 << session)
    }

    /// What these snapshots hold.
    pub fn held_by(&self, snapshots: Snapshots) -> Chunks {
        each(snapshots.into()).fold(0, |chunks, snapshot| chunks | self.holds[snapshot])
    }

    /// Which chunks can be read from these packs.
    pub fn readable(&self, packs: Packs) -> Chunks {
        let a = packs & self.full_a != 0;
        let b = packs & self.full_b != 0 || packs & self.delta_b != 0 && a;
        (Chunks::from(a) * A) | (Chunks::from(b) * B)
    }

    /// The promise: every snapshot that nobody has dropped, or that somebody holds, can be read.
    pub fn is_sound(&self) -> bool {
        if self.held_for_sure & !self.snapshots() != 0 {
            return false;
        }
        let kept = self.snapshots() & (!self.dropped | self.held_for_sure);
        self.held_by(kept) & !self.readable(self.valid() & self.exists) == 0
    }
}

/// The members of a set.
pub fn each(mut set: u16) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = set.trailing_zeros() as usize;
        set &= set.wrapping_sub(1);
        (next < 16).then_some(next)
    })
}
