//! Everybody else: who compacts runs, retires generations and tidies up snapshots (production has no machines for these yet, so these
//! are the model's own, after format-spec chapter 16.4), and who may come at any time: fences, drops, holds.

use super::world::{COMPACTORS, Compactor, GENERATIONS, SESSIONS, SNAPSHOTS, Stage, World, each};
use super::{Model, Mutation, Next};

impl Model<'_> {
    pub(super) fn compactor(&self, world: &World, number: usize, next: &mut Next) {
        next.who = ["first compactor", "second compactor"][number];
        let session = COMPACTORS[number];
        let mut after = *world;
        let me = &mut after.compactors[number];
        match me.step {
            0 => {
                me.acked = world.generations();
                me.step = 1;
                after.stage[session] = Stage::Open;
                after.acked[session] = world.generations();
                next.push("registers", after);
            }
            1 => {
                me.listed = world.runs;
                me.step = 2;
                next.push("lists runs", after);
            }
            2 => {
                for (other, listed) in me.listed.iter_mut().enumerate() {
                    *listed &= if world.has_ended(other) {
                        world.accepted[other]
                    } else {
                        0
                    };
                }
                let condemned = world.condemned_by(me.acked);
                // Condemned packs that are there stay listed: somebody may have to rescue what is in them.
                let left_out = match self.has(Mutation::CompactionDropsCondemned) {
                    true => condemned,
                    false => condemned & !world.exists,
                };
                me.kept = me.listed.iter().fold(0, |kept, listed| kept | listed) & !left_out;
                me.acked = 0;
                me.step = 3;
                next.push("reads outcomes and packs", after);
            }
            3 => {
                after.runs[session] = std::mem::take(&mut me.kept);
                me.step = 4;
                next.push("writes a run", after);
            }
            4 => {
                if world.stage[session] == Stage::Open {
                    me.step = 5;
                    after.stage[session] = Stage::Ended;
                    after.accepted[session] = after.runs[session];
                } else {
                    *me = Compactor {
                        step: 6,
                        ..Compactor::default()
                    };
                }
                next.push("publishes", after);
            }
            5 => {
                for other in (0..SESSIONS).filter(|other| *other != session && me.listed[*other] != 0) {
                    let mut after = *world;
                    let listed = std::mem::take(&mut after.compactors[number].listed[other]);
                    after.runs[other] &= !listed;
                    next.push("deletes runs", after);
                }
            }
            _ => {}
        }
    }

    /// Fences at any moment, within the budget; who lists the runs may take any time to create the outcome.
    pub(super) fn fence(&self, world: &World, next: &mut Next) {
        next.who = "somebody";
        let mut after = *world;
        if let Some((session, runs)) = world.fence {
            let session = usize::from(session);
            if world.stage[session] == Stage::Open {
                after.stage[session] = Stage::Ended;
                after.accepted[session] = runs;
            }
            after.fence = None;
            after.fences += 1;
            next.push("fences a session", after);
        } else if world.fences < self.config.fences {
            for session in (0..SESSIONS).filter(|session| world.stage[*session] == Stage::Open) {
                after.fence = Some((session as u8, world.runs[session]));
                next.push("takes a session for dead", after);
            }
        }
    }

    pub(super) fn marks(&self, world: &World, next: &mut Next) {
        next.who = "somebody";
        if self.config.drops {
            for snapshot in each(u16::from(world.snapshots() & !world.dropped)) {
                let mut after = *world;
                after.dropped |= 1 << snapshot;
                next.push("drops a snapshot", after);
            }
        }
        if !self.config.holds {
            return;
        }
        if let Some(snapshot) = world.holding {
            let mut after = *world;
            after.holding = None;
            let is_there = world.snapshots() & !world.dropped & 1 << snapshot != 0;
            if is_there || self.has(Mutation::HoldOfDropped) {
                after.held_for_sure |= 1 << snapshot;
            }
            next.push("looks whether a hold came in time", after);
        } else if !world.has_held {
            for snapshot in each(world.snapshots().into()) {
                let mut after = *world;
                after.held |= 1 << snapshot;
                after.holding = Some(snapshot as u8);
                after.has_held = true;
                next.push("holds a snapshot", after);
            }
        }
    }

    /// The list of what was condemned goes when nothing can refer to it any more.
    pub(super) fn retire(&self, world: &World, next: &mut Next) {
        next.who = "who retires generations";
        let (step, generation) = world.retiring;
        let mut after = *world;
        let condemned = world.condemned[usize::from(generation)];
        match step {
            0 => {
                for generation in 0..GENERATIONS {
                    let is_there = world.generations() >> generation & 1 == 1;
                    if is_there && world.condemned[generation] & world.exists == 0 {
                        after.retiring = (1, generation as u8);
                        next.push("sees that all packs are gone", after);
                    }
                }
            }
            1 => {
                let compacts = COMPACTORS.iter().any(|session| world.stage[*session] == Stage::Open);
                if !compacts || self.has(Mutation::RetireDuringCompaction) {
                    after.retiring.0 = 2;
                    next.push("sees that nobody compacts", after);
                }
            }
            2 => {
                if world.valid() & condemned == 0 {
                    after.retiring.0 = 3;
                    next.push("sees that no run lists them", after);
                }
            }
            _ => {
                after.retired |= 1 << generation;
                after.retiring = (0, 0);
                next.push("deletes a generation", after);
            }
        }
    }

    /// A dropped snapshot goes: its outcome, then its drop.
    pub(super) fn tidy(&self, world: &World, next: &mut Next) {
        next.who = "who tidies up";
        let (step, snapshot) = world.tidying;
        let snapshot = usize::from(snapshot);
        let mut after = *world;
        let outcome_goes = (step == 2) != self.has(Mutation::DropGoesFirst);
        match step {
            0 => {
                for snapshot in each(u16::from(world.snapshots() & world.dropped)) {
                    after.tidying = (1, snapshot as u8);
                    next.push("sees that a snapshot is dropped", after);
                }
            }
            1 => {
                let is_held = world.held >> snapshot & 1 == 1 && !self.has(Mutation::TidyIgnoresHolds);
                after.tidying = if is_held { (0, 0) } else { (5, snapshot as u8) };
                next.push("looks for holds", after);
            }
            5 => {
                let pins =
                    |session: usize| world.stage[session] == Stage::Open && world.pins[session] >> snapshot & 1 == 1;
                let is_pinned = (0..SNAPSHOTS).any(pins) && !self.has(Mutation::TidyIgnoresPins);
                after.tidying = if is_pinned { (0, 0) } else { (2, snapshot as u8) };
                next.push("looks for pins", after);
            }
            2 if world.runs[snapshot] != 0 => {}
            2 | 3 => {
                match outcome_goes {
                    true => after.stage[snapshot] = Stage::Removed,
                    false => after.dropped &= !(1 << snapshot),
                }
                after.tidying = if step == 2 { (3, snapshot as u8) } else { (4, 0) };
                next.push("deletes an outcome, and its drop", after);
            }
            _ => {}
        }
    }
}
