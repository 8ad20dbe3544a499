//! Every point at which a command can die or fail, and every point at which what runs after it can die in turn. A point is a call to the
//! store and the way in which it fails. Whatever happens, every snapshot that was published and not forgotten restores on a new machine,
//! and running the command again completes it.
//!
//! CI tries every call of every command, on a machine that knows the repository in each of the four ways in which it can fail, and on one
//! that knows nothing of it in two of them by turns; `scripts/nightly crashes` tries all (`LARDER_CRASHES=all`), and every second point
//! too.

use super::yard::{PUT_ONLY, Yard};
use crate::fault::is_false_alarm;
use crate::story::restore_options;
use larder::edge::host;
use larder::edge::store::{Prefix, Store, memory::MemoryStore};
use larder::ops::holders::{self, Duty};
use larder::ops::{OpError, Progress, backup, check, hold, object_lock, prune, repair, restore, revoke, rotate, tag};
use larder::pure::base::{Explain, Kind, LockMode, Timestamp};
use larder::pure::crypto::Secret;
use larder::pure::format::config::ObjectLock;
use larder::pure::format::session::SessionRole;
use larder::pure::id::SessionId;
use larder::repo::open::Credential;
use larder::repo::session::Session;
use larder::testing::fault_store::{Fault, FaultStore};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

type Run<'y> = Box<dyn Fn(Arc<dyn Store>, &Path) -> Result<(), OpError> + Sync + 'y>;

/// A command, and the repository and the machine on which it dies.
struct Work<'y> {
    name: &'static str,
    store: MemoryStore,
    cache: PathBuf,
    run: Run<'y>,
    keeps: BTreeSet<SessionId>,
    /// The repository is damaged until the command has been carried out.
    mends: bool,
}

const HOUR: Duration = Duration::from_secs(3_600);
const DAYS_NANOS: i64 = 24 * 3_600_000_000_000;
/// Extended by every prune.
const LOCK: Option<ObjectLock> = Some(ObjectLock {
    mode: LockMode::Governance,
    retain_days: 1,
    extend_below_days: 1,
});
const ALL: [usize; 5] = [0, 1, 2, 3, 4];

fn checkpoints() -> Option<backup::Interval> {
    Some(backup::Interval {
        time: Duration::MAX,
        bytes: 2_000,
    })
}

/// One that has happened already.
fn is_done(error: &OpError) -> bool {
    error.kind() == Kind::Usage
}

fn works<'y>(yard: &'y Yard) -> Vec<Work<'y>> {
    let work = |name, (store, cache): (MemoryStore, PathBuf), forgotten: &[SessionId], run: Run<'y>| Work {
        name,
        store,
        cache,
        run,
        keeps: yard
            .first
            .iter()
            .filter(|id| !forgotten.contains(id))
            .copied()
            .collect(),
        mends: false,
    };
    let machine = |number| (yard.store.fork(), yard.copy_of(&yard.cache(number)));
    let first: Vec<SessionId> = yard.first.iter().copied().collect();
    let own = first_of(yard, 0);
    let others = *first.iter().find(|id| **id != own).unwrap();
    let writer = yard.open(&yard.shared(), &yard.cache(1), 1).unwrap().kid;
    // Two nights, one of which is forgotten: something is unused, something is used in part.
    let aged = || {
        let (store, cache) = machine(0);
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        yard.back_up(shared.clone(), &cache, 0, &[0, 4]).unwrap();
        yard.forget(shared, &cache, 0, vec![own]).unwrap();
        (store, cache)
    };
    // The same where objects are locked.
    let locked = || {
        let (store, cache) = machine(0);
        store.allow_locks();
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let repo = yard.open(&shared, &cache, 0).unwrap();
        object_lock::run(&repo, LOCK).unwrap();
        drop(repo);
        yard.prune(shared.clone(), &cache, 0, Duration::ZERO, false).unwrap();
        yard.back_up(shared.clone(), &cache, 0, &[0, 4]).unwrap();
        yard.forget(shared, &cache, 0, vec![own]).unwrap();
        (store, cache)
    };
    let condemned = || {
        let (store, cache) = aged();
        yard.prune(Arc::new(store.clone()), &cache, 0, HOUR, false).unwrap();
        (store, cache)
    };
    // A backup died when it had made this share of its calls, in percent.
    let interrupted = |percent: usize| {
        let run = |fault| {
            let (store, cache) = machine(1);
            let faulty = Arc::new(FaultStore::new(store.clone(), fault));
            let result = yard.back_up_with(faulty.clone(), &cache, 1, &ALL, checkpoints());
            (store, cache, faulty.log().len(), result.is_ok())
        };
        let (_, _, calls, is_done) = run(None);
        assert!(is_done);
        let (store, cache, _, is_done) = run(Some(Fault {
            call: (calls * percent / 100) as u64,
            after_effect: true,
            lasting: true,
        }));
        assert!(!is_done);
        (store, cache)
    };
    let back_up = |number: usize, checkpoints| -> Run<'y> {
        Box::new(move |store, cache| yard.back_up_with(store, cache, number, &ALL, checkpoints).map(drop))
    };
    let prune = |grace, rewrites| -> Run<'y> {
        Box::new(move |store, cache| yard.prune(store, cache, 0, grace, rewrites).map(drop))
    };
    vec![
        work(
            "a backup of a machine that knows nothing",
            (yard.store.fork(), yard.fresh()),
            &[],
            back_up(2, None),
        ),
        work("a backup", machine(1), &[], back_up(1, None)),
        work("a backup with checkpoints", machine(1), &[], back_up(1, checkpoints())),
        work(
            "a backup while packs are condemned",
            condemned(),
            &[own],
            back_up(0, None),
        ),
        work("a prune that waits", aged(), &[own], prune(HOUR, false)),
        work("a prune", aged(), &[own], prune(Duration::ZERO, false)),
        work("a prune that rewrites", aged(), &[own], prune(Duration::ZERO, true)),
        work("a sweep", condemned(), &[own], prune(Duration::ZERO, false)),
        work(
            "a prune that ends a dead session",
            {
                let (store, cache) = aged();
                let repo = yard
                    .open(&(Arc::new(store.clone()) as Arc<dyn Store>), &yard.fresh(), 1)
                    .unwrap();
                let session = Session::begin(&repo, None, SessionRole::Backup, 1, Instant::now()).unwrap();
                std::mem::forget(session);
                store.set_time(Timestamp(host::now().0 + 100 * 3_600_000_000_000));
                (store, cache)
            },
            &[own],
            prune(Duration::ZERO, false),
        ),
        work(
            "forgetting",
            machine(0),
            &[others],
            Box::new(move |store, cache| match yard.forget(store, cache, 0, vec![others]) {
                Err(error) if is_done(&error) => Ok(()),
                done => done.map(drop),
            }),
        ),
        work(
            "holding and releasing",
            machine(0),
            &[],
            Box::new(move |store, cache| {
                let repo = yard.open(&store, cache, 0)?;
                repo.sync_history()?;
                hold::hold(&repo, &own, None, "the auditors")?;
                hold::release(&repo, &own, None).map(drop)
            }),
        ),
        work(
            "bringing back",
            condemned(),
            &[own],
            Box::new(move |store, cache| {
                let repo = yard.open(&store, cache, 0)?;
                let forgotten = prune::undelete::forgotten(&repo)?;
                prune::undelete::run(&repo, &forgotten[0], 1, &Progress::default()).map(drop)
            }),
        ),
        work(
            "adding a key",
            machine(0),
            &[],
            Box::new(move |store, cache| {
                let repo = yard.open(&store, cache, 0)?;
                let key = Credential::KeyFile(Secret::new([77; 32]));
                match holders::add(&repo, "more", Duty::Backup, &key) {
                    Err(error) if is_done(&error) => Ok(()),
                    added => added.map(drop),
                }
            }),
        ),
        work(
            "changing tags",
            machine(0),
            &[own],
            Box::new(move |store, cache| {
                let repo = yard.open(&store, cache, 0)?;
                repo.sync_history()?;
                match repo.snapshots()?.iter().find(|known| known.id == own) {
                    Some(snapshot) => tag::run(&repo, snapshot, &["kept".into()], &[]).map(drop),
                    None => Ok(()),
                }
            }),
        ),
        work(
            "a backup after one that died early",
            interrupted(30),
            &[],
            back_up(1, checkpoints()),
        ),
        work(
            "a backup after one that died late",
            interrupted(80),
            &[],
            back_up(1, None),
        ),
        work(
            "a backup with a key that can only put",
            (yard.store.fork(), yard.fresh()),
            &[],
            back_up(PUT_ONLY, checkpoints()),
        ),
        work(
            "a prune that brings chunks to safety",
            {
                let (store, cache) = condemned();
                let repo = yard
                    .open(&(Arc::new(store.clone()) as Arc<dyn Store>), &cache, 0)
                    .unwrap();
                let forgotten = prune::undelete::forgotten(&repo).unwrap();
                prune::undelete::run(&repo, &forgotten[0], 1, &Progress::default()).unwrap();
                drop(repo);
                (store, cache)
            },
            &[own],
            prune(Duration::ZERO, false),
        ),
        work(
            "a prune that tidies",
            {
                let (store, cache) = aged();
                yard.prune(Arc::new(store.clone()), &cache, 0, Duration::ZERO, true)
                    .unwrap();
                store.set_time(Timestamp(host::now().0 + 10 * DAYS_NANOS));
                (store, cache)
            },
            &[own],
            prune(Duration::ZERO, false),
        ),
        work(
            "a prune that extends locks and leaves what is locked",
            locked(),
            &[own],
            prune(Duration::ZERO, false),
        ),
        work(
            "a prune that erases what was locked",
            {
                let (store, cache) = locked();
                yard.prune(Arc::new(store.clone()), &cache, 0, Duration::ZERO, false)
                    .unwrap();
                store.set_time(Timestamp(host::now().0 + 2 * DAYS_NANOS));
                (store, cache)
            },
            &[own],
            prune(Duration::ZERO, false),
        ),
        work(
            "turning Object Lock on, off and on",
            {
                let (store, cache) = machine(0);
                store.allow_locks();
                (store, cache)
            },
            &[],
            Box::new(move |store, cache| {
                for lock in [LOCK, None, LOCK] {
                    object_lock::run(&yard.open(&store, cache, 0)?, lock)?;
                }
                Ok(())
            }),
        ),
        work(
            "a rotation",
            machine(0),
            &[],
            Box::new(move |store, cache| rotate::run(&yard.open(&store, cache, 0)?).map(drop)),
        ),
        work(
            "a prune that rekeys",
            {
                let (store, cache) = aged();
                let repo = yard
                    .open(&(Arc::new(store.clone()) as Arc<dyn Store>), &cache, 0)
                    .unwrap();
                rotate::run(&repo).unwrap();
                drop(repo);
                (store, cache)
            },
            &[own],
            Box::new(move |store, cache| yard.rekey(store, cache, 0).map(drop)),
        ),
        work(
            "revoking a key",
            machine(0),
            &[],
            Box::new(move |store, cache| {
                let repo = yard.open(&store, cache, 0)?;
                revoke::run(&repo, &writer, false).map(drop)
            }),
        ),
        Work {
            mends: true,
            ..work(
                "a repair of the index",
                without_a_run(yard),
                &[],
                Box::new(move |store, cache| {
                    let repo = yard.open(&store, cache, 0)?;
                    let plan = repair::index::plan(&repo, &Progress::default())?;
                    repair::index::run(&repo, &plan, 1, &Progress::default()).map(drop)
                }),
            )
        },
        work(
            "a restore",
            machine(2),
            &[],
            Box::new(move |store, cache| {
                let repo = yard.open(&store, cache, 2)?;
                repo.sync_history()?;
                let target = yard.fresh();
                let options = restore_options(repo.snapshot(&own)?, None, target.clone());
                let restored = restore::run(&repo, &options, &Progress::default());
                let _ = std::fs::remove_dir_all(target);
                let report = restored?;
                assert_eq!((report.damaged_total, report.failed_total), (0, 0), "{report:?}");
                Ok(())
            }),
        ),
        work(
            "a check",
            machine(3),
            &[],
            Box::new(move |store, cache| yard.check(store, cache, 3).map(drop)),
        ),
    ]
}

/// What a run describes is known to nobody.
fn without_a_run(yard: &Yard) -> (MemoryStore, PathBuf) {
    let store = yard.store.fork();
    let mut runs = Vec::new();
    let prefix = Prefix::new("idx/").unwrap();
    store.list(&prefix, &mut |row| runs.push(row.key)).unwrap();
    store.remove(&runs[..1]).unwrap();
    (store, yard.fresh())
}

/// The snapshot that a machine made in the first night.
fn first_of(yard: &Yard, machine: usize) -> SessionId {
    let repo = yard.open(&yard.shared(), &yard.cache(machine), machine).unwrap();
    repo.sync_history().unwrap();
    let host = format!("machine{machine}");
    let snapshots = repo.snapshots().unwrap();
    snapshots
        .iter()
        .find(|known| known.manifest.source.host == host)
        .unwrap()
        .id
}

/// What a command left behind when it met a fault. `None`: it was over before.
fn meet(
    yard: &Yard,
    work: &Work<'_>,
    run: &Run<'_>,
    store: &MemoryStore,
    cache: &Path,
    fault: Fault,
) -> Option<(MemoryStore, PathBuf, String)> {
    let (store, cache) = (store.fork(), copy(yard, cache));
    let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
    let result = run(faulty.clone(), &cache);
    if !faulty.has_failed() {
        let _ = std::fs::remove_dir_all(&cache);
        return None;
    }
    let when = format!("{}: {fault:?} ({})", work.name, faulty.log()[fault.call as usize]);
    if let Err(error) = &result {
        assert!(!is_false_alarm(error), "{when}: {}", check::chain(error));
    }
    if !work.mends {
        assert_kept(yard, work, &store, &when);
    }
    Some((store, cache, when))
}

fn copy(yard: &Yard, cache: &Path) -> PathBuf {
    if cache.exists() {
        yard.copy_of(cache)
    } else {
        yard.fresh()
    }
}

fn assert_kept(yard: &Yard, work: &Work<'_>, store: &MemoryStore, when: &str) {
    let found = yard.restore_all(store, &|| when.to_owned());
    let lost: Vec<&SessionId> = work.keeps.difference(&found).collect();
    assert!(lost.is_empty(), "{when}: lost {lost:?}");
}

fn assert_repeatable(yard: &Yard, work: &Work<'_>, store: &MemoryStore, cache: &Path, when: &str) {
    (work.run)(Arc::new(store.clone()), cache)
        .unwrap_or_else(|error| panic!("{when}, again: {}", check::chain(&error)));
    assert_kept(yard, work, store, &format!("{when}, again"));
}

/// Does something for each number, on two threads, until it says that there is no more.
fn side_by_side(each: impl Fn(usize) -> bool + Sync) {
    let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end.load(Ordering::Relaxed) {
                        break;
                    }
                    if !each(number) {
                        end.fetch_min(number, Ordering::Relaxed);
                        break;
                    }
                }
            });
        }
    });
}

#[test]
fn nothing_is_lost_at_any_point_of_any_command() {
    let begun = Instant::now();
    let yard = Yard::new();
    let points = AtomicU64::new(0);
    let all = std::env::var_os("LARDER_CRASHES").is_some();
    for work in &works(&yard) {
        let unknown = yard.fresh();
        for cache in [&work.cache, &unknown] {
            if cache == &unknown && !work.cache.exists() {
                continue;
            }
            let before = points.load(Ordering::Relaxed);
            side_by_side(|call| {
                let mut is_open = false;
                for (way, fault) in Fault::at(call as u64).into_iter().enumerate() {
                    if !all && cache == &unknown && way % 2 != call % 2 {
                        continue;
                    }
                    let Some((store, cache, when)) = meet(&yard, work, &work.run, &work.store, cache, fault) else {
                        continue;
                    };
                    is_open = true;
                    points.fetch_add(1, Ordering::Relaxed);
                    assert_repeatable(&yard, work, &store, &cache, &when);
                    std::fs::remove_dir_all(&cache).unwrap();
                }
                is_open
            });
            let tried = points.load(Ordering::Relaxed) - before;
            let place = if cache == &unknown { ", on a new machine" } else { "" };
            eprintln!("{}{place}: {tried} points", work.name);
            assert!(tried >= 30, "{}: {tried}", work.name);
        }
    }
    let points = points.load(Ordering::Relaxed);
    eprintln!(
        "{points} points at depth 1, snapshots lost: 0; {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(points >= 5_000, "{points}");
}

/// After each crash of each command, what runs next crashes at each of its calls: the same command, a backup, one with
/// checkpoints, or a prune.
#[test]
#[ignore = "takes an hour or two: scripts/nightly crashes"]
fn nothing_is_lost_at_any_point_of_any_recovery() {
    let begun = Instant::now();
    let yard = Yard::new();
    let points = AtomicU64::new(0);
    let crash = |call: usize, after_effect| Fault {
        call: call as u64,
        after_effect,
        lasting: true,
    };
    for work in &works(&yard) {
        let before = points.load(Ordering::Relaxed);
        side_by_side(|call| {
            let mut is_open = false;
            for after_effect in [false, true] {
                let fault = crash(call, after_effect);
                let Some((store, cache, first)) = meet(&yard, work, &work.run, &work.store, &work.cache, fault) else {
                    continue;
                };
                is_open = true;
                let back_up: Run<'_> = Box::new(|store, cache| yard.back_up(store, cache, 0, &[0, 2]).map(drop));
                let prune: Run<'_> =
                    Box::new(|store, cache| yard.prune(store, cache, 0, Duration::ZERO, true).map(drop));
                let parts: Run<'_> =
                    Box::new(|store, cache| yard.back_up_with(store, cache, 1, &ALL, checkpoints()).map(drop));
                let (admin, writer) = (yard.cache(0), yard.cache(1));
                // The same on the same machine; others on theirs.
                let next = [
                    (&work.run, &cache),
                    (&back_up, &admin),
                    (&prune, &admin),
                    (&parts, &writer),
                ];
                for (run, machine) in next {
                    for (number, second) in (0..)
                        .flat_map(|call| [crash(call, false), crash(call, true)])
                        .enumerate()
                    {
                        let Some((store, cache, when)) = meet(&yard, work, run, &store, machine, second) else {
                            break;
                        };
                        points.fetch_add(1, Ordering::Relaxed);
                        if number % 16 == 0 && std::ptr::eq(run, &work.run) {
                            assert_repeatable(&yard, work, &store, &cache, &format!("{first}, then {when}"));
                        }
                        std::fs::remove_dir_all(&cache).unwrap();
                    }
                }
                std::fs::remove_dir_all(&cache).unwrap();
            }
            is_open
        });
        let tried = points.load(Ordering::Relaxed) - before;
        eprintln!("{}: {tried} points, {:.0} s", work.name, begun.elapsed().as_secs_f64());
    }
    let points = points.load(Ordering::Relaxed);
    eprintln!(
        "{points} points at depth 2, snapshots lost: 0; {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(points >= 200_000, "{points}");
}
