//! Forgetting through the library: months of nights, several machines, keys that may not, marks that are written meanwhile.

use crate::story::World;
use jiff::tz::TimeZone;
use larder::edge::host;
use larder::edge::store::memory::MemoryStore;
use larder::ops::forget::{self, Choice, GroupBy, Options, Plan, Report};
use larder::ops::{OpError, Progress, hold, tag};
use larder::pure::base::{Explain, Kind, Timestamp};
use larder::pure::format::outcome::OutcomeKind;
use larder::pure::format::session::SessionRole;
use larder::pure::id::SessionId;
use larder::pure::plan::policy::Policy;
use larder::repo::Repo;
use larder::repo::open::{self, LocalOptions};
use larder::repo::session::{OutcomeLabel, Session};
use larder::repo::snapshots::{Filter, Snapshot};
use larder::testing::small::SmallRepo;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

const HOUR: i64 = 3_600_000_000_000;
const DAY: i64 = 24 * HOUR;

fn policy(policy: Policy) -> Options {
    Options {
        choice: Choice::Policy(Box::new(policy)),
        filter: Filter::default(),
        group_by: GroupBy::SOURCE,
        removal_percent_max: 100,
        now: host::now(),
        zone: TimeZone::UTC,
    }
}

fn last(count: u32) -> Options {
    policy(Policy {
        last: Some(count),
        ..Policy::default()
    })
}

fn named(snapshots: &[SessionId]) -> Options {
    Options {
        choice: Choice::Named {
            snapshots: snapshots.to_vec(),
            allow_last: false,
        },
        ..last(1)
    }
}

fn plan(repo: &Repo, options: &Options) -> Result<Plan, OpError> {
    let history = repo.sync_history()?;
    forget::plan(repo, history, options)
}

fn run(repo: &Repo, options: &Options) -> Result<Report, OpError> {
    let plan = plan(repo, options)?;
    forget::carry_out(repo, plan, &Progress::default())
}

fn newest(repo: &Repo) -> Snapshot {
    repo.sync_history().unwrap();
    repo.snapshots().unwrap().pop().unwrap()
}

fn shown(world: &World, machine: &str) -> BTreeSet<SessionId> {
    let repo = world.open(machine);
    repo.sync_history().unwrap();
    repo.snapshots().unwrap().iter().map(|snapshot| snapshot.id).collect()
}

/// Publishes a snapshot once more, as one that was begun at another time.
fn publish_at(repo: &Repo, like: &Snapshot, start: Timestamp) -> SessionId {
    let mut session = Session::begin(repo, Some(like.id), SessionRole::Backup, 1, Instant::now()).unwrap();
    let durable = session.make_durable().unwrap();
    let mut manifest = repo.snapshot(&like.id).unwrap().manifest;
    (manifest.start, manifest.end) = (start, Timestamp(start.0 + HOUR));
    let label = OutcomeLabel {
        kind: OutcomeKind::Commit,
        source: Some(manifest.source.id),
        flags: 0,
    };
    session.publish(durable, &manifest, &label).unwrap().session
}

fn world_with(nights: u64) -> (World, Vec<SessionId>) {
    let world = World::in_memory();
    let night = |number: u64| {
        std::fs::write(world.source().join("file"), format!("night {number}")).unwrap();
        world.backup("machine").snapshot.unwrap()
    };
    let ids = (0..nights).map(night).collect();
    (world, ids)
}

#[test]
fn a_quarter_of_nights_leaves_the_days_and_weeks_of_the_policy() {
    let (world, _) = world_with(1);
    let repo = world.open("machine");
    let original = newest(&repo);
    // The newest first: what counts is the time of the backup, not of publishing it.
    let midnight = original.manifest.start.0.div_euclid(DAY) * DAY;
    let nights: Vec<SessionId> = (1..=90)
        .map(|days| publish_at(&repo, &original, Timestamp(midnight - days * DAY + 3 * HOUR)))
        .collect();
    let options = policy(Policy {
        daily: Some(10),
        weekly: Some(6),
        ..Policy::default()
    });
    let report = run(&repo, &options).unwrap();
    // Today, nine nights before it, and of the weeks the Sundays that are older.
    let mut expected: BTreeSet<SessionId> = nights[..9].iter().copied().collect();
    expected.insert(original.id);
    // 1970 began on a Thursday.
    let weekday = (midnight / DAY + 4).rem_euclid(7);
    let sundays = (0..6).map(|week| weekday + 7 * week).filter(|days| *days > 0);
    expected.extend(sundays.map(|days| nights[days as usize - 1]));
    assert_eq!(shown(&world, "machine"), expected);
    assert_eq!(shown(&world, "another"), expected);
    assert_eq!(report.forgotten.len(), 91 - expected.len());
    for id in &expected {
        let (report, target) = world.restore("machine", id, &format!("target-{id}"));
        assert_eq!((report.damaged_total, report.failed_total), (0, 0));
        assert_eq!(std::fs::read(target.join("file")).unwrap(), b"night 0");
    }
    assert!(world.check("checker").findings.is_empty());
    assert_eq!(run(&repo, &options).unwrap(), Report::default());
    // Whose tags are changed stays as old as it is.
    let oldest = repo.snapshot(expected_oldest(&nights, &expected)).unwrap();
    let again = tag::run(&repo, &oldest, &["kept".into()], &[]).unwrap();
    assert_eq!(run(&repo, &options).unwrap(), Report::default());
    assert!(shown(&world, "machine").contains(&again));
}

fn expected_oldest<'i>(nights: &'i [SessionId], expected: &BTreeSet<SessionId>) -> &'i SessionId {
    nights.iter().rfind(|id| expected.contains(id)).unwrap()
}

#[test]
fn what_is_held_or_forgotten_by_others_meanwhile_is_seen_before_anything_is_written() {
    let (world, ids) = world_with(4);
    let (here, there) = (world.open("machine"), world.open("there"));
    let made = plan(&here, &last(1)).unwrap();
    hold::hold(&there, &ids[1], None, "audit").unwrap();
    let report = forget::carry_out(&here, made, &Progress::default()).unwrap();
    assert_eq!((report.forgotten, report.held), (vec![ids[0], ids[2]], vec![ids[1]]));
    assert_eq!(shown(&world, "another"), [ids[1], ids[3]].into());
    // The one that is to stay has been forgotten by somebody else.
    hold::release(&there, &ids[1], None).unwrap();
    let made = plan(&here, &last(1)).unwrap();
    run(&there, &named(&[ids[3]])).unwrap();
    let error = forget::carry_out(&here, made, &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert_eq!(shown(&world, "another"), [ids[1]].into());
}

/// A long run builds on a snapshot: without it, it could not publish.
#[test]
fn what_a_running_session_relies_on_is_kept_until_it_ends_or_is_dead() {
    let (world, ids) = world_with(3);
    let (here, there) = (world.open("machine"), world.open("there"));
    there.sync_history().unwrap();
    let session = Session::begin(&there, Some(ids[0]), SessionRole::Backup, 1, Instant::now()).unwrap();
    assert_eq!(run(&here, &last(1)).unwrap().forgotten, [ids[1]]);
    assert_eq!(shown(&world, "machine"), [ids[0], ids[2]].into());
    let mut much_later = last(1);
    much_later.now = Timestamp(host::now().0 + 4 * DAY);
    assert_eq!(plan(&here, &much_later).unwrap().groups[0].removed(), 1);
    session.abandon();
    assert_eq!(run(&here, &last(1)).unwrap().forgotten, [ids[0]]);
}

#[test]
fn a_stop_that_somebody_wants_comes_between_marks() {
    let (world, ids) = world_with(3);
    let repo = world.open("machine");
    let progress = Progress::default();
    progress.cancel();
    let made = plan(&repo, &last(1)).unwrap();
    let error = forget::carry_out(&repo, made, &progress).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(shown(&world, "machine"), ids.into_iter().collect());
}

#[test]
fn releasing_can_be_repeated_and_leaves_one_hold_that_ends() {
    let (world, ids) = world_with(2);
    let repo = world.open("machine");
    hold::hold(&repo, &ids[0], None, "one").unwrap();
    hold::hold(&repo, &ids[0], Some(Timestamp(host::now().0 + DAY)), "two").unwrap();
    assert_eq!(run(&repo, &named(&[ids[0]])).unwrap_err().kind(), Kind::Refused);
    let until = Timestamp(host::now().0 + HOUR);
    for removed in [2, 1] {
        let released = hold::release(&repo, &ids[0], Some(until)).unwrap();
        assert_eq!((released.removed, released.until), (removed, Some(until)));
        let holds = repo.holds(&mut Vec::new()).unwrap();
        assert_eq!(holds.len(), 1);
        assert_eq!((holds[0].session, holds[0].until), (ids[0], Some(until)));
    }
    // Then it is as if it had never been held.
    let mut options = last(1);
    assert_eq!(run(&repo, &options).unwrap(), Report::default());
    options.now = Timestamp(until.0 + 1);
    assert_eq!(plan(&repo, &options).unwrap().groups[0].removed(), 1);
    let released = hold::release(&repo, &ids[0], None).unwrap();
    assert_eq!((released.removed, released.until), (1, None));
    assert_eq!(hold::release(&repo, &ids[0], Some(until)).unwrap().until, None);
    let gone = SessionId([9; 16]);
    assert!(hold::hold(&repo, &gone, None, "x").is_err());
    assert!(
        repo.holds(&mut Vec::new())
            .unwrap()
            .iter()
            .all(|hold| hold.session != gone)
    );
}

#[test]
fn keys_that_may_only_write_can_neither_forget_nor_hold() {
    let dir = tempfile::tempdir().unwrap();
    let store = MemoryStore::new();
    let key = |byte| open::Credential::KeyFile(larder::pure::crypto::Secret::new([byte; 32]));
    let mut small = SmallRepo::init(&store, &key(1)).unwrap();
    small.add_writer(&store, "writer", &key(2)).unwrap();
    let options = LocalOptions {
        cache_dir: dir.path().join("cache"),
        index: larder::pure::base::memory::IndexShare::with_filter(1 << 20),
        node_cache_bytes_max: 1 << 20,
    };
    let repo = open::connect(Arc::new(store), options)
        .unwrap()
        .unlock(&key(2))
        .unwrap();
    let id = SessionId([1; 16]);
    assert_eq!(run(&repo, &last(1)).unwrap_err().kind(), Kind::Auth);
    assert_eq!(hold::hold(&repo, &id, None, "x").unwrap_err().kind(), Kind::Auth);
    assert_eq!(hold::release(&repo, &id, None).unwrap_err().kind(), Kind::Auth);
}

#[test]
fn a_policy_without_rules_is_refused_by_the_library_too() {
    let (world, ids) = world_with(2);
    let repo = world.open("machine");
    let error = run(&repo, &policy(Policy::default())).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    let error = run(&repo, &named(&[SessionId([1; 16])])).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    assert_eq!(shown(&world, "machine"), ids.into_iter().collect());
}
