//! Condemning and sweeping: `pure::protocol::maintain` decides, and what `ops::prune` does for it is done here to the model's repository.
//! A plan is any set of packs, so what a condemner reads makes no difference, and is read in one step. Registering, listing
//! generations and acknowledging them are one step too: until it has acknowledged, a session only keeps others from deleting.

use super::machines::{Doing, Duty, Heard, Told};
use super::world::{
    A, B, CONDEMNERS, Chunks, Generations, Maintainer, Packs, SESSIONS, SWEEPERS, Sessions, Stage, World, each,
};
use super::{Model, Mutation, Next};
use larder::pure::protocol::maintain::Purpose;

/// What becomes of live chunks.
struct Resolved {
    rescue: Chunks,
    is_nowhere: bool,
}

impl Model<'_> {
    pub(super) fn condemner(&mut self, world: &World, number: usize, next: &mut Next) {
        next.who = ["first condemner", "second condemner"][number];
        let session = CONDEMNERS[number];
        let mut after = *world;
        let me = &mut after.condemners[number];
        match me.duty {
            Duty::Nothing => {
                self.register(&mut after, session, Purpose::Condemn);
                let me = &mut after.condemners[number];
                let machine = self.machines.new_maintenance(Purpose::Condemn, session);
                let nobody = Heard::Sessions {
                    open: 0,
                    pins: [0; SESSIONS],
                    acked: [0; SESSIONS],
                };
                let read = [
                    Heard::Dropped(0),
                    nobody,
                    Heard::Snapshots(0),
                    Heard::Marked,
                    Heard::IndexSynced,
                ];
                (me.machine, me.duty) = self.machines.maintain(machine, Heard::Begun(0));
                for heard in read {
                    (me.machine, me.duty) = self.machines.maintain(me.machine, heard);
                }
                next.push("registers", after);
            }
            Duty::Resolve => {
                (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::Resolved);
                let ours = world.stage[session] == Stage::Open;
                (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::Published { ours });
                end_if_ended(me);
                if ours {
                    end(&mut after, session);
                }
                next.push("publishes", after);
            }
            Duty::Condemn => {
                (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::Condemned);
                end_if_ended(me);
                after.published |= 1 << number;
                let mut plan = world.exists;
                while plan != 0 {
                    after.condemned[number] = plan;
                    next.push("condemns", after);
                    plan = (plan - 1) & world.exists;
                }
            }
            _ => {}
        }
    }

    /// Registers a session of maintenance, with the machine that registers a backup; returns what it acknowledges.
    fn register(&mut self, after: &mut World, session: usize, purpose: Purpose) -> Generations {
        let generations = match purpose {
            Purpose::Condemn | Purpose::Sweep => after.generations(),
        };
        let machine = self.machines.new_backup();
        let (machine, _) = self.machines.backup(machine, Told::Begin { parents: 0 });
        let (machine, _) = self.machines.backup(machine, Told::Registered);
        let (machine, _) = self.machines.backup(machine, Told::Drops(0));
        let (_, doing) = self.machines.backup(machine, Told::Condemned(generations));
        let acked = match doing {
            Doing::Acknowledge { acked } => acked,
            _ => 0,
        };
        after.stage[session] = Stage::Open;
        after.acked[session] = acked;
        acked
    }

    pub(super) fn sweeper(&mut self, world: &World, number: usize, next: &mut Next) {
        next.who = ["first sweeper", "second sweeper"][number];
        let session = SWEEPERS[number];
        let mut after = *world;
        let me = &mut after.sweepers[number];
        match me.duty {
            Duty::Nothing => {
                if world.generations() == 0 {
                    return;
                }
                let acked = self.register(&mut after, session, Purpose::Sweep);
                let me = &mut after.sweepers[number];
                let machine = self.machines.new_maintenance(Purpose::Sweep, session);
                (me.machine, me.duty) = self.machines.maintain(machine, Heard::Begun(acked));
                me.acked = acked;
                next.push("registers", after);
            }
            Duty::ListDrops => self.list_drops(world, number, next),
            Duty::ListSessions if !me.has_listed => {
                // `sess/` first; what a session has acknowledged is what was listed here.
                me.registered = members(|other| world.stage[other] != Stage::Absent);
                me.lagging = members(|other| me.acked & !world.acked[other] != 0) & me.registered;
                me.has_listed = true;
                next.push("lists sessions", after);
            }
            Duty::ListSessions => {
                let heard = self.sessions(world, me);
                (me.early, me.registered, me.lagging, me.has_listed) = (0, 0, 0, false);
                (me.machine, me.duty) = self.machines.maintain(me.machine, heard);
                if me.duty == Duty::Ended {
                    // Somebody is waited for. A later sweep begins anew.
                    end_if_ended(me);
                    end(&mut after, session);
                }
                next.push("lists which of them have ended", after);
            }
            Duty::ListSnapshots => {
                (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::Snapshots(world.snapshots()));
                let Duty::Mark { live } = me.duty else {
                    panic!("snapshots are listed to be marked");
                };
                me.needed = world.held_by(live);
                me.ended = world.ended();
                (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::Marked);
                next.push("lists snapshots", after);
            }
            Duty::SyncIndex => {
                // Outcomes are those of the listing before.
                me.found = if me.needed == 0 { 0 } else { world.valid_of(me.ended) };
                me.ended = 0;
                (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::IndexSynced);
                next.push("syncs the index", after);
            }
            Duty::Resolve => self.resolve(world, number, next),
            Duty::Publish => {
                if me.unlisted != 0 {
                    after.runs[session] |= me.unlisted;
                    me.unlisted = 0;
                    next.push("writes a run", after);
                } else {
                    self.publish_sweep(&mut after, number);
                    next.push("publishes", after);
                }
            }
            Duty::Delete { generations } => {
                for pack in each(world.condemned_by(generations) & world.exists) {
                    let mut after = *world;
                    after.exists &= !(1 << pack);
                    next.push("deletes a pack", after);
                }
            }
            _ => {}
        }
    }

    /// Step W3: `drop/`, and then `hold/`.
    fn list_drops(&mut self, world: &World, number: usize, next: &mut Next) {
        let mut after = *world;
        let me = &mut after.sweepers[number];
        if self.has(Mutation::DropsAfterPins) && !me.has_listed {
            let is_open = |other| other != SWEEPERS[number] && world.stage[other] == Stage::Open;
            let open = members(is_open);
            if each(open).any(|other| me.acked & !world.acked[other] != 0) {
                return;
            }
            me.early = each(open).fold(0, |pins, other| pins | world.pins[other]);
            me.has_listed = true;
            next.push("lists sessions too early", after);
            return;
        }
        if self.config.holds && !me.has_listed && !self.has(Mutation::DropsAfterPins) {
            me.drops = match self.has(Mutation::HoldsBeforeDrops) {
                true => world.held,
                false => world.dropped,
            };
            me.has_listed = true;
            next.push("lists drops", after);
            return;
        }
        let dropped = match self.mutation {
            Some(Mutation::HoldsBeforeDrops) => world.dropped & !me.drops,
            Some(Mutation::HoldIgnored) => me.drops,
            _ if self.config.holds => me.drops & !world.held,
            _ => world.dropped,
        };
        (me.drops, me.has_listed) = (0, false);
        (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::Dropped(dropped));
        next.push("lists drops and holds", after);
    }

    fn sessions(&self, world: &World, me: &Maintainer) -> Heard {
        let mut open = me.registered & members(|session| world.stage[session] == Stage::Open);
        let (mut pins, mut acked) = ([0; SESSIONS], [0; SESSIONS]);
        for session in each(open) {
            pins[session] = world.pins[session];
            acked[session] = if me.lagging >> session & 1 == 1 { 0 } else { me.acked };
        }
        match self.mutation {
            Some(Mutation::DropsAfterPins) => {
                open = 1;
                (pins[0], acked[0]) = (me.early, me.acked);
            }
            Some(Mutation::AcksIgnored) => acked = [me.acked; SESSIONS],
            Some(Mutation::PinsIgnored) => pins = [0; SESSIONS],
            _ => {}
        }
        Heard::Sessions { open, pins, acked }
    }

    /// Step W8. Where nothing has to be copied, this and publishing are one step: between the two, the session only keeps others from
    /// deleting.
    fn resolve(&mut self, world: &World, number: usize, next: &mut Next) {
        let mut after = *world;
        let resolved = self.resolved(world, number);
        let me = &mut after.sweepers[number];
        if resolved.is_nowhere {
            *me = Maintainer {
                duty: Duty::Ended,
                ..Maintainer::default()
            };
            end(&mut after, SWEEPERS[number]);
            next.push("is in doubt and gives up", after);
            return;
        }
        (me.needed, me.found) = (0, 0);
        (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::Resolved);
        if resolved.rescue == 0 {
            self.publish_sweep(&mut after, number);
            next.push("finds everything and publishes", after);
        } else {
            let pack = after.upload_full(resolved.rescue);
            after.sweepers[number].unlisted = pack;
            next.push("rescues chunks", after);
        }
    }

    /// As `ops::prune::survey` chooses.
    fn resolved(&self, world: &World, number: usize) -> Resolved {
        let me = &world.sweepers[number];
        let there = me.found & world.exists;
        let condemned = match self.has(Mutation::OnlyOwnGeneration) {
            true => world.condemned[number],
            false => world.condemned_by(me.acked),
        };
        let (stays, going) = (there & !condemned, there & condemned);
        let mut needed = me.needed;
        let mut resolved = Resolved {
            rescue: 0,
            is_nowhere: false,
        };
        if needed & B != 0 && stays & world.full_b == 0 {
            if stays & world.delta_b != 0 {
                if !self.has(Mutation::BasesIgnored) {
                    needed |= A;
                }
            } else if world.readable(going) & B != 0 || going & world.delta_b != 0 && there & world.full_a != 0 {
                resolved.rescue |= B;
            } else {
                resolved.is_nowhere = true;
            }
        }
        if needed & A != 0 && stays & world.full_a == 0 {
            match going & world.full_a != 0 {
                true => resolved.rescue |= A,
                false => resolved.is_nowhere = true,
            }
        }
        resolved
    }

    fn publish_sweep(&mut self, after: &mut World, number: usize) {
        let session = SWEEPERS[number];
        let is_open = after.stage[session] == Stage::Open;
        if is_open {
            end(after, session);
        }
        let ours = is_open || self.has(Mutation::FencedSweepDeletes);
        let me = &mut after.sweepers[number];
        (me.machine, me.duty) = self.machines.maintain(me.machine, Heard::Published { ours });
        me.acked = 0;
        end_if_ended(me);
    }
}

fn end(after: &mut World, session: usize) {
    if after.stage[session] == Stage::Open {
        after.stage[session] = Stage::Ended;
        after.accepted[session] = after.runs[session];
    }
}

fn end_if_ended(me: &mut Maintainer) {
    if me.duty == Duty::Ended {
        *me = Maintainer {
            duty: Duty::Ended,
            ..Maintainer::default()
        };
    }
}

/// The sessions of which this is true.
fn members(is_member: impl Fn(usize) -> bool) -> Sessions {
    (0..SESSIONS)
        .filter(|session| is_member(*session))
        .fold(0, |members, session| members | 1 << session)
}

/// Packs and generations are sets of their own.
const _: () = assert!(Packs::BITS >= Generations::BITS);
