//! Drops, holds and voids (format-spec chapters 9.4 and 9.5), and which configuration is trusted (10.1.4).

use crate::story::{World, credential, noise};
use larder::edge::host;
use larder::edge::store::{Store, memory::MemoryStore};
use larder::ops::check;
use larder::pure::base::{Explain, Kind, Timestamp};
use larder::pure::crypto::Secret;
use larder::pure::crypto::sign::role;
use larder::pure::format::mark::{Drop, DropKind, Hold};
use larder::pure::format::name::ObjectName;
use larder::pure::id::SessionId;
use larder::repo::Repo;
use larder::repo::error::RepoError;
use larder::repo::open::{self, Credential, LocalOptions, create_new, store_key};
use larder::testing::small::SmallRepo;
use std::path::Path;
use std::sync::Arc;

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("source")).unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    SmallRepo::init(&*store, &credential()).unwrap();
    let world = World { dir, store };
    change(&world, 0);
    world
}

/// Something new, so that every night has a run and a pack of its own.
fn change(world: &World, night: u64) {
    std::fs::write(world.source().join("file"), noise(night, 3000)).unwrap();
}

fn put_drop(repo: &Repo, session: SessionId, kind: DropKind) {
    let name = ObjectName::Drop(session);
    let drop = Drop {
        kid: repo.kid,
        created: host::now(),
        kind,
        session,
        reason: "test".into(),
    };
    let body = drop.encode(&repo.keys, &repo.signer, host::random()).unwrap();
    create_new(&*repo.store, &name, body, "a drop").unwrap();
}

fn put_hold(repo: &Repo, session: SessionId, label: &str, seconds: Option<i64>) {
    let hold = Hold {
        kid: repo.kid,
        created: host::now(),
        session,
        until: seconds.map(|seconds| Timestamp(host::now().0 + seconds * 1_000_000_000)),
        reason: "court".into(),
    };
    let body = hold.encode(label, &repo.keys, &repo.signer, host::random()).unwrap();
    create_new(&*repo.store, &ObjectName::Hold(session, label.into()), body, "a hold").unwrap();
}

/// What a machine sees, one that knows nothing and one that was there.
fn shown(world: &World) -> Vec<SessionId> {
    let see = |machine: &str| {
        let repo = world.open(machine);
        let history = repo.sync_history().unwrap();
        assert!(history.broken.is_empty(), "{:?}", history.broken);
        repo.snapshots()
            .unwrap()
            .iter()
            .map(|snapshot| snapshot.id)
            .collect::<Vec<_>>()
    };
    let known = see("machine");
    let fresh = see("fresh");
    std::fs::remove_dir_all(world.dir.path().join("fresh")).unwrap();
    assert_eq!(known, fresh);
    known
}

#[test]
fn dropped_snapshot_that_is_held_is_live_until_the_hold_is_past() {
    let world = world();
    let first = world.backup("machine").snapshot.unwrap();
    change(&world, 1);
    let second = world.backup("machine").snapshot.unwrap();
    let repo = world.open("machine");
    put_drop(&repo, first, DropKind::Forget);
    assert_eq!(shown(&world), [second]);
    // A hold that is past, one on another snapshot, and one that nobody can read hold nothing.
    put_hold(&repo, first, "past", Some(-1));
    put_hold(&repo, second, "other", None);
    assert_eq!(shown(&world), [second]);
    put_hold(&repo, first, "court", Some(3600));
    assert_eq!(shown(&world), [first, second]);
    let (report, _) = world.restore("another", &first, "target");
    assert_eq!((report.damaged_total, report.failed_total), (0, 0));
    let check = world.check("checker");
    assert!(
        check.findings.is_empty() && check.snapshots == 2,
        "{:?}",
        check.findings
    );
    // Backups do not list holds, and go on knowing them.
    change(&world, 2);
    let third = world.backup("machine").snapshot.unwrap();
    let known = repo.index.outcomes().unwrap();
    let held: Vec<bool> = known.iter().map(|known| known.is_dropped()).collect();
    assert_eq!(held, [false; 3]);
    // Holds can be taken away.
    let name = ObjectName::Hold(first, "court".into());
    world.store.remove(&[store_key(&name)]).unwrap();
    assert_eq!(shown(&world), [second, third]);
    put_hold(&repo, first, "for-ever", None);
    assert_eq!(shown(&world), [first, second, third]);
}

#[test]
fn hold_that_does_not_verify_holds_nothing_and_is_named() {
    let world = world();
    let first = world.backup("machine").snapshot.unwrap();
    change(&world, 1);
    let second = world.backup("machine").snapshot.unwrap();
    let repo = world.open("machine");
    put_drop(&repo, first, DropKind::Forget);
    let name = ObjectName::Hold(first, "forged".into());
    create_new(&*world.store, &name, b"forged".to_vec(), "a hold").unwrap();
    let history = repo.sync_history().unwrap();
    assert_eq!(history.broken.len(), 1);
    assert_eq!(history.broken[0].0, name.to_string());
    let ids: Vec<_> = repo.snapshots().unwrap().iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, [second]);
}

/// A parent that was dropped by somebody else since this machine last looked is not used, another one is; and one that is held
/// counts as dropped there.
#[test]
fn dropped_parent_gives_way_to_another() {
    for held in [false, true] {
        let world = world();
        let first = world.backup("machine").snapshot.unwrap();
        change(&world, 1);
        let second = world.backup("machine").snapshot.unwrap();
        let other = world.open("other");
        put_drop(&other, second, DropKind::Forget);
        if held {
            put_hold(&other, second, "court", None);
        }
        let third = world.backup("machine");
        assert_eq!(third.parent, Some(first), "{held}");
        let expected = if held { vec![first, second] } else { vec![first] };
        assert_eq!(shown(&world), [expected, vec![third.snapshot.unwrap()]].concat());
        assert!(world.check("checker").findings.is_empty());
    }
}

#[test]
fn voided_outcome_counts_as_none_and_its_runs_are_not_accepted() {
    let world = world();
    let first = world.backup("machine").snapshot.unwrap();
    change(&world, 1);
    let second = world.backup("machine").snapshot.unwrap();
    // It cannot be read any more.
    let name = ObjectName::Outcome(second);
    world.store.remove(&[store_key(&name)]).unwrap();
    create_new(&*world.store, &name, b"not an outcome".to_vec(), "an outcome").unwrap();
    let repo = world.open("reader");
    let history = repo.sync_history().unwrap();
    assert_eq!(history.broken.len(), 1);
    put_drop(&repo, second, DropKind::Void);
    // A hold makes no snapshot of what is none.
    put_hold(&repo, second, "court", None);
    for machine in ["reader", "another"] {
        let repo = world.open(machine);
        let history = repo.sync_history().unwrap();
        assert!(history.broken.is_empty(), "{:?}", history.broken);
        assert_eq!(repo.voided().unwrap(), [second].into());
        let runs = repo.valid_runs().unwrap();
        assert!(runs.tops.iter().all(|run| run.session == first));
        assert!(runs.not_accepted.iter().any(|run| run.session == second));
        assert!(runs.missing.is_empty());
    }
    let check = world.check("checker");
    assert!(
        !check.notes.iter().any(|note| note.contains("interrupted")),
        "a voided session has ended: {:?}",
        check.notes
    );
}

/// Also where the outcome can be read, as on a machine that kept it: what is voided counts for nobody.
#[test]
fn void_counts_on_machines_that_know_the_outcome() {
    let world = world();
    let first = world.backup("machine").snapshot.unwrap();
    change(&world, 1);
    let second = world.backup("machine").snapshot.unwrap();
    let repo = world.open("machine");
    put_drop(&repo, second, DropKind::Void);
    assert_eq!(shown(&world), [first]);
    repo.sync_index().unwrap();
    let runs = repo.index.known_runs().unwrap();
    assert!(runs.iter().all(|name| name.contains(&first.to_string())), "{runs:?}");
    // What it had uploaded is stored again rather than referred to.
    let third = world.backup("machine");
    assert!(third.stats.chunks_new > 0);
    let (report, _) = world.restore("another", &third.snapshot.unwrap(), "target");
    assert_eq!((report.damaged_total, report.failed_total), (0, 0));
}

fn unlock(store: &MemoryStore, cache: &Path, credential: &Credential) -> Result<Repo, RepoError> {
    let options = LocalOptions {
        cache_dir: cache.to_owned(),
        index: larder::pure::base::memory::IndexShare::with_filter(1 << 20),
        node_cache_bytes_max: 1 << 20,
    };
    open::connect(Arc::new(store.clone()), options)?.unlock(credential)
}

fn key_file(byte: u8) -> Credential {
    Credential::KeyFile(Secret::new([byte; 32]))
}

/// A repository whose second holder becomes an administrator and signs two configurations. The first holder's grant, and that of
/// the third, name only the first one.
fn rotated(store: &MemoryStore) -> SmallRepo {
    let mut small = SmallRepo::init(store, &key_file(1)).unwrap();
    small.add_writer(store, "second", &key_file(2)).unwrap();
    small.add_writer(store, "third", &key_file(3)).unwrap();
    let second = small.holders[1].kid;
    small
        .change_config(store, |config| {
            let writer = config.writers.iter_mut().find(|writer| writer.kid == second).unwrap();
            writer.roles |= role::ADMIN;
        })
        .unwrap();
    small
        .change_config_as(store, 1, |config| config.zstd_level = 5)
        .unwrap();
    small
        .change_config_as(store, 1, |config| config.zstd_level = 6)
        .unwrap();
    small
}

#[test]
fn configuration_is_trusted_through_the_ones_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = MemoryStore::new();
    let small = rotated(&store);
    for holder in [1, 3] {
        for _ in 0..2 {
            let repo = unlock(&store, &dir.path().join(format!("{holder}")), &key_file(holder)).unwrap();
            assert_eq!((repo.config.zstd_level, repo.config.admin), (6, small.holders[1].kid));
        }
    }
    // Without the one in between there is no telling who may sign.
    let last = small.config.sequence;
    store.remove(&[store_key(&ObjectName::Config(last - 1))]).unwrap();
    let error = unlock(&store, &dir.path().join("fresh"), &key_file(3)).unwrap_err();
    assert_eq!(error.kind(), Kind::Tamper, "{}", check::chain(&error));
    let text = check::chain(&error);
    assert!(text.contains(&format!("configuration {}", last - 1)), "{text}");
    // A machine that has seen it goes on.
    unlock(&store, &dir.path().join("3"), &key_file(3)).unwrap();
}

/// A writer makes configurations in which it is an administrator.
#[test]
fn configuration_of_a_self_made_administrator_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for alters_history in [false, true] {
        let store = MemoryStore::new();
        let mut small = SmallRepo::init(&store, &key_file(1)).unwrap();
        small.add_writer(&store, "second", &key_file(2)).unwrap();
        let second = small.holders[1].kid;
        if alters_history {
            // The one before is replaced by one that makes him an administrator, too.
            let number = small.config.sequence;
            store.remove(&[store_key(&ObjectName::Config(number))]).unwrap();
            small.config.sequence -= 1;
            small
                .change_config_as(&store, 1, |config| {
                    let writer = config.writers.iter_mut().find(|writer| writer.kid == second).unwrap();
                    writer.roles |= role::ADMIN;
                })
                .unwrap();
        }
        small
            .change_config_as(&store, 1, |config| {
                let writer = config.writers.iter_mut().find(|writer| writer.kid == second).unwrap();
                writer.roles |= role::ADMIN;
            })
            .unwrap();
        let error = unlock(&store, &dir.path().join(format!("{alters_history}")), &key_file(1)).unwrap_err();
        assert!(matches!(error, RepoError::Gap { .. }), "{}", check::chain(&error));
        assert_eq!(error.kind(), Kind::Tamper);
    }
}
