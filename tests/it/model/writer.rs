//! A backup: `pure::protocol::backup` decides, and what `repo::session` and `repo::pack_writer` do for it is done here to the model's
//! repository, one effect or one listing at a time.

use super::machines::{Doing, Told};
use super::world::{A, B, Chunks, NEXT, Packs, Snapshots, Stage, WRITERS, World, Writer, each};
use super::{Model, Mutation, Next};

impl Model<'_> {
    pub(super) fn writer(&mut self, world: &World, number: usize, next: &mut Next) {
        next.who = ["first writer", "second writer"][number];
        let me = world.writers[number];
        let session = usize::from(me.session);
        match me.doing {
            Doing::Nothing => self.begin(world, number, next),
            Doing::Register { pins } => {
                // The mutant has looked already.
                let mut after = *world;
                let me = &mut after.writers[number];
                for told in [Told::Registered, Told::Drops(0), Told::ParentExists(true)] {
                    (me.machine, me.doing) = self.machines.backup(me.machine, told);
                }
                after.stage[session] = Stage::Open;
                after.pins[session] = pins;
                next.push("registers", after);
            }
            Doing::ListDrops => {
                let mut after = *world;
                let me = &mut after.writers[number];
                if self.has(Mutation::StatBeforeDrops) && !me.is_early {
                    (me.early, me.is_early) = (world.snapshots(), true);
                    next.push("looks for parents too early", after);
                    return;
                }
                let trusts = self.has(Mutation::CheckpointTrustsPins) && session == NEXT;
                let dropped = if trusts { 0 } else { world.dropped };
                (me.machine, me.doing) = self.machines.backup(me.machine, Told::Drops(dropped));
                end_if_ended(me);
                next.push("lists drops", after);
            }
            Doing::StatParent { parent } => {
                let mut after = *world;
                let me = &mut after.writers[number];
                let exists = match self.mutation {
                    Some(Mutation::NoStat) => true,
                    Some(Mutation::StatBeforeDrops) => me.early >> parent & 1 == 1,
                    Some(Mutation::CheckpointTrustsPins) if session == NEXT => true,
                    _ => world.stage[usize::from(parent)] == Stage::Snapshot,
                };
                (me.machine, me.doing) = self.machines.backup(me.machine, Told::ParentExists(exists));
                (me.early, me.is_early) = (0, false);
                end_if_ended(me);
                next.push("looks for a parent", after);
            }
            Doing::ListCondemned => {
                let mut after = *world;
                let me = &mut after.writers[number];
                if self.has(Mutation::IndexBeforeCondemned) && !me.is_early {
                    (me.found, me.is_early) = (world.valid(), true);
                    next.push("syncs the index too early", after);
                    return;
                }
                me.known = world.generations();
                (me.machine, me.doing) = self.machines.backup(me.machine, Told::Condemned(me.known));
                next.push("lists condemnations", after);
            }
            Doing::Acknowledge { acked } => {
                let mut after = *world;
                after.acked[session] |= acked;
                let me = &mut after.writers[number];
                (me.machine, me.doing) = self.machines.backup(me.machine, Told::Acknowledged);
                let was_polling = std::mem::take(&mut me.is_polling);
                next.push("acknowledges", after);
                // Threads go on while a poll is under way.
                if was_polling {
                    self.work(world, number, next);
                }
            }
            Doing::SyncIndex => {
                let mut after = *world;
                let me = &mut after.writers[number];
                if !std::mem::take(&mut me.is_early) {
                    me.found = world.valid();
                }
                (me.machine, me.doing) = self.machines.backup(me.machine, Told::IndexSynced);
                if let Doing::Work { parents } = me.doing {
                    me.parents = parents;
                }
                next.push("syncs the index", after);
            }
            Doing::Work { .. } => {
                self.work(world, number, next);
                self.poll(world, number, next);
                self.checkpoint(world, number, next);
                let is_whole = me.tree == self.config.wanted[number];
                if is_whole && (me.unlisted == 0 || self.has(Mutation::PublishBeforeRuns)) {
                    let mut after = *world;
                    let me = &mut after.writers[number];
                    (me.machine, me.doing) = self.machines.backup(me.machine, Told::Durable);
                    self.publish(&mut after, number);
                    next.push("publishes", after);
                }
            }
            Doing::Publish => {
                let mut after = *world;
                self.publish(&mut after, number);
                next.push("publishes the checkpoint", after);
            }
            Doing::Ended => {}
        }
    }

    /// Chooses a parent and registers with it pinned. Parents were listed at any time before, so those that are gone can be chosen too;
    /// with that, choosing and registering may be one step.
    fn begin(&mut self, world: &World, number: usize, next: &mut Next) {
        let is_hasty = self.has(Mutation::ParentBeforePin);
        let was_there = |session: &usize| match world.stage[*session] {
            Stage::Snapshot => !is_hasty || world.dropped >> session & 1 == 0,
            Stage::Removed => !is_hasty,
            _ => false,
        };
        let parents = (0..super::world::SNAPSHOTS)
            .filter(was_there)
            .map(|session| 1 << session);
        for parents in std::iter::once(0).chain(parents) {
            let mut after = *world;
            let me = &mut after.writers[number];
            let machine = self.machines.new_backup();
            (me.machine, me.doing) = self.machines.backup(machine, Told::Begin { parents });
            let Doing::Register { pins } = me.doing else {
                panic!("a backup begins with its registration");
            };
            if is_hasty && parents != 0 {
                next.push("looks at a parent before it pins it", after);
                continue;
            }
            (me.machine, me.doing) = self.machines.backup(me.machine, Told::Registered);
            if pins == 0 {
                // What is dropped does not matter to it.
                (me.machine, me.doing) = self.machines.backup(me.machine, Told::Drops(0));
            }
            let session = WRITERS[number];
            after.stage[session] = Stage::Open;
            after.pins[session] = pins;
            next.push("registers", after);
        }
    }

    /// The three kinds of reference (I-5), for each chunk that the tree does not have yet; and runs.
    fn work(&mut self, world: &World, number: usize, next: &mut Next) {
        let me = world.writers[number];
        let wanted = self.config.wanted[number];
        for chunk in [A, B] {
            if wanted & !me.tree & chunk == 0 {
                continue;
            }
            if world.held_by(me.parents) & chunk != 0 {
                let after = self.refer(world, number, chunk, 0);
                next.push("takes a chunk from its parent", after);
            }
            let copies = self.lookup(world, &me, chunk);
            for used in &copies {
                let after = self.refer(world, number, chunk, *used);
                next.push("finds a chunk", after);
            }
            if (copies.is_empty() || self.config.uploads_freely) && me.unlisted == 0 {
                self.upload(world, number, chunk, next);
            }
            if self.config.adopts && me.unlisted == 0 {
                let listed = world.runs.iter().fold(0, |listed, packs| listed | packs);
                let mut strays = world.exists & !listed & full(world, chunk);
                if !self.has(Mutation::AdoptsCondemned) {
                    strays &= !world.condemned_by(me.known);
                }
                for stray in each(strays) {
                    let mut after = self.refer(world, number, chunk, 1 << stray);
                    after.writers[number].unlisted = 1 << stray;
                    next.push("adopts a pack", after);
                }
            }
        }
        if me.unlisted != 0 {
            let mut after = *world;
            after.runs[usize::from(me.session)] |= me.unlisted;
            after.writers[number].unlisted = 0;
            next.push("writes a run", after);
        }
    }

    /// What each copy of a chunk rests on that lookup may answer with.
    fn lookup(&self, world: &World, me: &Writer, chunk: Chunks) -> Vec<Packs> {
        let usable = me.found & !world.condemned_by(me.known);
        let mut copies: Vec<Packs> = each(usable & full(world, chunk)).map(|pack| 1 << pack).collect();
        if chunk == B {
            for delta in each(usable & world.delta_b).map(|pack| 1 << pack) {
                if self.has(Mutation::BaseNotLookedFor) {
                    copies.push(delta);
                    continue;
                }
                for base in each(usable & world.full_a).map(|pack| 1 << pack) {
                    copies.push(match self.has(Mutation::BaseNotUsed) {
                        true => delta,
                        false => delta | base,
                    });
                }
            }
        }
        copies
    }

    fn upload(&mut self, world: &World, number: usize, chunk: Chunks, next: &mut Next) {
        let mut after = self.refer(world, number, chunk, 0);
        let pack = after.upload_full(chunk);
        let me = &mut after.writers[number];
        me.unlisted = pack;
        me.used |= pack;
        next.push("uploads a chunk", after);
        if chunk != B || !self.config.deltas {
            return;
        }
        let me = &world.writers[number];
        for base in each(me.found & !world.condemned_by(me.known) & world.full_a) {
            let mut after = self.refer(world, number, chunk, 0);
            let pack = after.make_pack();
            after.delta_b |= pack;
            let me = &mut after.writers[number];
            me.unlisted = pack;
            me.used |= match self.has(Mutation::BaseNotUsed) {
                true => pack,
                false => pack | 1 << base,
            };
            next.push("uploads a delta", after);
        }
    }

    fn refer(&self, world: &World, number: usize, chunk: Chunks, used: Packs) -> World {
        let mut after = *world;
        let me = &mut after.writers[number];
        me.tree |= chunk;
        me.used |= used;
        if me.tree == self.config.wanted[number] && !self.config.checkpoints {
            // Nothing is looked up any more.
            (me.found, me.known, me.parents) = (0, 0, 0);
        }
        after
    }

    /// Step B9. Listing and looking at what is used are one step; work goes on before the acknowledgement is written.
    fn poll(&mut self, world: &World, number: usize, next: &mut Next) {
        let me = &world.writers[number];
        let generations = world.generations();
        let new = generations & !world.acked[usize::from(me.session)];
        if new == 0 {
            return;
        }
        let touches = |generation: &usize| world.condemned[*generation] & me.used != 0;
        let touched = match self.has(Mutation::LateAckOfUsed) {
            true => 0,
            false => each(new.into())
                .filter(touches)
                .fold(0, |set, generation| set | 1 << generation),
        };
        let mut after = *world;
        let me = &mut after.writers[number];
        if me.found != 0 {
            me.known |= generations;
        }
        (me.machine, me.doing) = self.machines.backup(me.machine, Told::PollDue);
        (me.machine, me.doing) = self.machines.backup(me.machine, Told::Polled { generations, touched });
        me.is_polling = matches!(me.doing, Doing::Acknowledge { .. });
        next.push("polls", after);
    }

    /// Chapter 16.5: the next session is registered, then this one ends with the tree so far.
    fn checkpoint(&mut self, world: &World, number: usize, next: &mut Next) {
        let me = world.writers[number];
        if !self.config.checkpoints || number != 0 || usize::from(me.session) == NEXT || me.unlisted != 0 {
            return;
        }
        let mut after = *world;
        let me = &mut after.writers[number];
        let ending = me.session;
        (me.machine, me.doing) = self.machines.backup(me.machine, Told::DurableSoFar { ending });
        let Doing::Register { pins } = me.doing else {
            panic!("a checkpoint begins with a registration");
        };
        (me.machine, me.doing) = self.machines.backup(me.machine, Told::Registered);
        after.stage[NEXT] = Stage::Open;
        after.pins[NEXT] = match self.has(Mutation::CheckpointIsNotPinned) {
            true => pins & !(1 << ending),
            false => pins,
        };
        next.push("registers its next session", after);
    }

    /// Step B10: the outcome is created, unless there is one.
    fn publish(&mut self, after: &mut World, number: usize) {
        let session = usize::from(after.writers[number].session);
        let is_free = after.stage[session] == Stage::Open
            || after.stage[session] == Stage::Ended && self.has(Mutation::FenceDoesNotHold);
        let told = if is_free { Told::OutcomeCreated } else { Told::Fenced };
        if is_free {
            self.create_outcome(after, number);
        }
        let me = &mut after.writers[number];
        (me.machine, me.doing) = self.machines.backup(me.machine, told);
        if me.doing == Doing::ListDrops {
            me.session = NEXT as u8;
        }
        end_if_ended(me);
    }

    fn create_outcome(&self, after: &mut World, number: usize) {
        let me = &mut after.writers[number];
        let session = usize::from(me.session);
        let mut tree = me.tree;
        if self.has(Mutation::CheckpointCarriesOver) && tree != self.config.wanted[number] {
            tree = 0;
        }
        me.used = 0;
        after.stage[session] = Stage::Snapshot;
        after.accepted[session] = after.runs[session];
        after.holds[session] = tree;
    }
}

/// What an ended backup knew makes no difference to anybody.
fn end_if_ended(me: &mut Writer) {
    if me.doing == Doing::Ended {
        *me = Writer {
            doing: Doing::Ended,
            ..Writer::default()
        };
    }
}

fn full(world: &World, chunk: Chunks) -> Packs {
    if chunk == A { world.full_a } else { world.full_b }
}

/// The sets of one snapshot are the same numbers as those of one session.
const _: () = assert!(NEXT < Snapshots::BITS as usize);
