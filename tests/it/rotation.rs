//! Keys that are taken back, and secrets that are drawn anew (format-spec chapters 3.6 and 10.1.3): what is written before and after is
//! one repository, whoever dies or interferes on the way.

use crate::fault::{admin, assert_no_false_alarm, try_open, writer};
use crate::prune::{Yard, back_up, keys, other_source, prune_options};
use crate::story::{noise, tree};
use larder::edge::host;
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Part, Store};
use larder::ops::holders::{self, Duty};
use larder::ops::{OpError, Progress, check, prune, revoke, rotate};
use larder::pure::base::{Explain, Kind};
use larder::pure::crypto::Secret;
use larder::pure::format::config::Config;
use larder::pure::format::name::ObjectName;
use larder::pure::format::outcome::OutcomeKind;
use larder::pure::format::pack::PackHeader;
use larder::pure::format::session::SessionRole;
use larder::pure::id::KeyId;
use larder::pure::plan::prune::RepackLimits;
use larder::repo::Repo;
use larder::repo::error::RepoError;
use larder::repo::open::{Credential, create_new, store_key};
use larder::repo::session::Session;
use larder::testing::fault_store::{Fault, FaultStore};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

fn key(byte: u8) -> Credential {
    Credential::KeyFile(Secret::new([byte; 32]))
}

fn open(yard: &Yard, store: &MemoryStore, credential: &Credential) -> Result<Repo, RepoError> {
    try_open(Arc::new(store.clone()), &yard.fresh(), credential)
}

fn opened(yard: &Yard, credential: &Credential) -> Repo {
    open(yard, &yard.store, credential).unwrap_or_else(|error| panic!("{}", check::chain(&error)))
}

fn add(yard: &Yard, label: &str, duty: Duty, byte: u8) -> KeyId {
    holders::add(&opened(yard, &admin()), label, duty, &key(byte))
        .unwrap_or_else(|error| panic!("{}", check::chain(&error)))
}

/// Epochs of the packs that are there.
fn pack_epochs(store: &MemoryStore) -> BTreeMap<u32, usize> {
    let mut epochs = BTreeMap::new();
    for under in ["data/", "meta/"] {
        for name in keys(store, under).into_keys() {
            let header = store.read(&name, Part::Range(0..64)).unwrap();
            *epochs.entry(PackHeader::decode(&header).unwrap().epoch).or_default() += 1;
        }
    }
    epochs
}

#[test]
fn what_is_written_before_and_after_a_rotation_is_one_repository() {
    let mut yard = Yard::with_nights();
    add(&yard, "web2", Duty::PutOnly, 31);
    add(&yard, "auditor", Duty::Reader, 32);
    add(&yard, "cleaner", Duty::Maintainer, 33);
    let before = pack_epochs(&yard.store);
    assert_eq!(before.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(rotate::run(&opened(&yard, &admin())).unwrap(), 2);
    // What is there is recognised: of the whole source, the one changed file is uploaded.
    yard.write("of the night", &noise(44, 700_000));
    let night = back_up(Arc::new(yard.store.clone()), &yard.cache(), &admin(), &yard.source()).unwrap();
    yard.nights.push((night.snapshot.unwrap(), tree(&yard.source())));
    assert!((700_000..900_000).contains(&night.stats.bytes_new), "{:?}", night.stats);
    assert_eq!(night.stats.files_unmodified, 2, "{:?}", night.stats);
    assert_eq!(pack_epochs(&yard.store)[&1], before[&1]);
    assert!(pack_epochs(&yard.store)[&2] > 0);
    let (other, content) = other_source(&yard);
    let mut also = BTreeMap::new();
    for credential in [writer(), key(31)] {
        let report = back_up(Arc::new(yard.store.clone()), &yard.fresh(), &credential, &other).unwrap();
        also.insert(report.snapshot.unwrap(), content.clone());
    }
    yard.assert_restores(&yard.store, "after a rotation", &also);
    // And once more; then old packs are rewritten by somebody who only maintains.
    assert_eq!(rotate::run(&opened(&yard, &admin())).unwrap(), 3);
    yard.write("of the night", &noise(45, 700_000));
    yard.night();
    yard.forget(0);
    yard.forget(1);
    let options = prune::Options {
        repack: Some(RepackLimits {
            unused_share: 0.0,
            copied_bytes_max: u64::MAX,
        }),
        ..prune_options()
    };
    let report = prune::run(&opened(&yard, &key(33)), &options, &Progress::default()).unwrap();
    assert!(report.deleted.packs > 0, "{report:?}");
    assert!(pack_epochs(&yard.store)[&3] > 0);
    yard.assert_restores(&yard.store, "pruned across epochs", &also);
    let everything = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    let report = check::run(&opened(&yard, &key(32)), &everything, &Progress::default()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// In parts, beside a put-only machine whose packs are wrapped in another way, with deltas and nodes.
#[test]
fn rekeying_leaves_nothing_under_the_secrets_of_before() {
    let mut yard = Yard::with_nights();
    add(&yard, "web2", Duty::PutOnly, 31);
    let (other, content) = other_source(&yard);
    let made = back_up(Arc::new(yard.store.clone()), &yard.fresh(), &key(31), &other).unwrap();
    let also = BTreeMap::from([(made.snapshot.unwrap(), content)]);
    assert_eq!(rotate::run(&opened(&yard, &admin())).unwrap(), 2);
    yard.write("of the night", &noise(46, 400_000));
    yard.night();
    let kept = yard.assert_restores(&yard.store, "rotated", &also);
    let options = |copied_bytes_max| prune::Options {
        repack: Some(RepackLimits {
            unused_share: 1.0,
            copied_bytes_max,
        }),
        rekey: true,
        ..prune_options()
    };
    let run = |options: &prune::Options| prune::run(&opened(&yard, &admin()), options, &Progress::default()).unwrap();
    let dry = prune::Options {
        dry_run: true,
        ..options(u64::MAX)
    };
    let would = run(&dry);
    assert!(would.rewritten.packs > 3 && would.outdated.packs == 0, "{would:?}");
    let some = run(&options(1_000_000));
    assert!(some.rewritten.packs > 0 && some.outdated.packs > 0, "{some:?}");
    assert_eq!(some.rewritten.packs + some.outdated.packs, would.rewritten.packs);
    assert_eq!(yard.assert_restores(&yard.store, "rekeyed in part", &also), kept);
    let rest = run(&options(u64::MAX));
    assert_eq!((rest.rewritten, rest.outdated.packs), (some.outdated, 0), "{rest:?}");
    run(&prune_options());
    assert_eq!(pack_epochs(&yard.store).into_keys().collect::<Vec<_>>(), [2]);
    assert_eq!(yard.assert_restores(&yard.store, "rekeyed", &also), kept);
    assert_eq!(
        run(&options(u64::MAX)).rewritten.packs,
        0,
        "there is nothing left to do"
    );
    // And what is there is recognised.
    let again = back_up(Arc::new(yard.store.clone()), &yard.fresh(), &admin(), &yard.source()).unwrap();
    assert_eq!(again.stats.chunks_new, 0, "{:?}", again.stats);
}

#[test]
fn a_revoked_key_keeps_its_snapshots_and_gets_no_further() {
    let yard = Yard::with_nights();
    let (other, content) = other_source(&yard);
    let made = back_up(Arc::new(yard.store.clone()), &yard.fresh(), &writer(), &other)
        .unwrap()
        .snapshot
        .unwrap();
    let also = BTreeMap::from([(made, content)]);
    let thief = opened(&yard, &writer());
    let kid = thief.kid;
    // One session that goes on, and one that was left.
    let running = Session::begin(&thief, None, SessionRole::Backup, 1, Instant::now()).unwrap();
    let admins = opened(&yard, &admin());
    let report = revoke::run(&admins, &kid, false).unwrap();
    assert_eq!((report.was_revoked, report.outcomes), (false, 1), "{report:?}");
    assert_eq!(report.ended, [running.id()]);
    running.abandon();
    let error = open(&yard, &yard.store, &writer()).unwrap_err();
    assert!(
        matches!(error, RepoError::KeyRevoked(_)) && error.kind() == Kind::Auth,
        "{}",
        check::chain(&error)
    );
    yard.assert_restores(&yard.store, "revoked", &also);
    // Whoever had opened the repository before can still write, and nobody counts it.
    let secretly = other.join("secretly");
    std::fs::write(&secretly, noise(5, 20_000)).unwrap();
    let late = {
        let input = larder::ops::backup::Input::Paths {
            roots: vec![other.clone()],
            walk: Default::default(),
            excludes: Default::default(),
        };
        let report = larder::ops::backup::run(&thief, input, &crate::story::options(), &Progress::default());
        report.unwrap().snapshot.unwrap()
    };
    std::fs::remove_file(&secretly).unwrap();
    let found = yard.assert_restores(&yard.store, "a late snapshot", &also);
    assert!(!found.contains(&late) && found.contains(&made), "{found:?}");
    let seen = opened(&yard, &admin());
    let history = seen.sync_history().unwrap();
    assert!(
        history.notes.iter().any(|note| note.contains("had been revoked")),
        "{:?}",
        history.notes
    );
    // It is no reason to keep anything, and no obstacle.
    yard.forget(0);
    let pruned = prune::run(&opened(&yard, &admin()), &prune_options(), &Progress::default()).unwrap();
    assert_eq!(pruned.snapshots, 3, "{pruned:?}");
    yard.assert_restores(&yard.store, "pruned", &also);
    let again = revoke::run(&opened(&yard, &admin()), &kid, false).unwrap();
    assert!(again.was_revoked && again.ended.is_empty(), "{again:?}");
    // Rotated, what it has kept opens nothing that is written now.
    rotate::run(&opened(&yard, &admin())).unwrap();
    let after = opened(&yard, &admin());
    assert_eq!(after.keys.current_epoch(), 2);
    assert!(thief.grant.epochs.iter().all(|held| held.epoch == 1));
    // The label can be given again, and an admin is never left without one.
    add(&yard, "other", Duty::Backup, 50);
    let own = opened(&yard, &admin());
    assert_eq!(revoke::run(&own, &own.kid, false).unwrap_err().kind(), Kind::Refused);
    let error = revoke::run(&opened(&yard, &key(50)), &own.kid, false).unwrap_err();
    assert_eq!(error.kind(), Kind::Auth);
}

#[test]
fn a_revoked_admin_is_trusted_no_more_and_locks_nobody_out() {
    let yard = Yard::with_nights();
    let former = add(&yard, "second admin", Duty::Admin, 60);
    // What the second admin has issued and signed.
    let second = opened(&yard, &key(60));
    holders::add(&second, "web3", Duty::Backup, &key(61)).unwrap();
    let second = opened(&yard, &key(60));
    revoke::run(&opened(&yard, &admin()), &former, false).unwrap();
    let config = |store: &MemoryStore| {
        let number = keys(store, "config/").len() as u64 - 1;
        let name = ObjectName::Config(number);
        (number, store.read(&store_key(&name), Part::Whole).unwrap())
    };
    for credential in [admin(), writer(), key(61)] {
        opened(&yard, &credential);
    }
    yard.assert_sound(&yard.store, "an admin revoked");
    // A configuration by which it makes itself an admin again.
    let (number, current) = config(&yard.store);
    let mut forged: Config = second.config.clone();
    forged.sequence = number + 1;
    forged.previous = Some(Repo::object_hash(&current));
    forged.created = host::now();
    let body = forged.encode(&second.signer);
    create_new(
        &yard.store,
        &ObjectName::Config(number + 1),
        body,
        "a forged configuration",
    )
    .unwrap();
    for credential in [admin(), writer(), key(61)] {
        let error = open(&yard, &yard.store, &credential).unwrap_err();
        assert_eq!(error.kind(), Kind::Tamper, "{}", check::chain(&error));
    }
}

/// Whatever has happened: each of these opens the repository and backs up, and all of it restores.
fn assert_all_work(yard: &Yard, store: &MemoryStore, holders: &[Credential], when: &str) {
    let (other, content) = other_source(yard);
    let mut also = BTreeMap::new();
    for credential in holders {
        let report = back_up(Arc::new(store.clone()), &yard.fresh(), credential, &other)
            .unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        also.insert(report.snapshot.unwrap(), content.clone());
    }
    let found = yard.assert_restores(store, when, &also);
    assert!(found.is_superset(&yard.ids(0..yard.nights.len())), "{when}");
    assert!(also.keys().all(|made| found.contains(made)), "{when}");
}

/// A repository of one night, cheap to look at again and again, with a put-only machine and a second admin.
fn small_yard() -> Yard {
    let mut yard = Yard::new(|_| {});
    yard.write("stays", &noise(1, 60_000));
    yard.night();
    add(&yard, "web2", Duty::PutOnly, 31);
    add(&yard, "second admin", Duty::Admin, 60);
    yard
}

/// Every call of `run` fails once, and from then on: `holders` can work before it is run again, and after.
fn every_call_may_fail(
    yard: &Yard,
    holders: &[Credential],
    run: &dyn Fn(Arc<dyn Store>) -> Result<(), OpError>,
    done: &dyn Fn(&Repo),
) {
    let mut call = 0;
    loop {
        let mut any = false;
        for fault in Fault::at(call) {
            let store = yard.store.fork();
            let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
            let result = run(faulty.clone());
            if !faulty.has_failed() {
                result.unwrap();
                continue;
            }
            any = true;
            let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
            assert_no_false_alarm(&result, &when);
            // Every way leaves one of two states, so each is looked at closely once: here, and when it has been run again.
            if fault.lasting && fault.after_effect {
                assert_all_work(yard, &store.fork(), holders, &format!("{when}, at once"));
            }
            run(Arc::new(store.clone())).unwrap_or_else(|error| panic!("{when}, again: {}", check::chain(&error)));
            done(&open(yard, &store, &admin()).unwrap());
            if fault.lasting && !fault.after_effect {
                assert_all_work(yard, &store, holders, &format!("{when}, again"));
            }
            for credential in holders {
                open(yard, &store, credential).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            }
        }
        if !any {
            assert!(call > 8, "{call} calls");
            return;
        }
        call += 1;
    }
}

#[test]
fn a_rotation_that_dies_locks_nobody_out_and_can_be_repeated() {
    let yard = small_yard();
    let run = |store: Arc<dyn Store>| rotate::run(&try_open(store, &yard.fresh(), &admin())?).map(drop);
    every_call_may_fail(&yard, &[writer(), key(31)], &run, &|repo| {
        assert!(repo.config.epoch >= 2)
    });
}

#[test]
fn revoking_that_dies_locks_nobody_out_and_can_be_repeated() {
    let yard = small_yard();
    let kid = opened(&yard, &writer()).kid;
    let run = |store: Arc<dyn Store>| revoke::run(&try_open(store, &yard.fresh(), &admin())?, &kid, false).map(drop);
    every_call_may_fail(&yard, &[key(31)], &run, &|repo| {
        assert!(repo.verifier.writer(&kid).unwrap().revoked_at.is_some());
    });
    let kid = opened(&yard, &key(60)).kid;
    let run = |store: Arc<dyn Store>| revoke::run(&try_open(store, &yard.fresh(), &admin())?, &kid, false).map(drop);
    every_call_may_fail(&yard, &[key(31)], &run, &|repo| {
        assert!(repo.verifier.writer(&kid).unwrap().revoked_at.is_some());
    });
}

/// Another admin does the same between any two calls. One of them comes second, and is told; what one has drawn is what all use.
#[test]
fn two_rotations_at_once_leave_one_epoch_for_all() {
    let yard = small_yard();
    let mut call = 0;
    loop {
        let store = yard.store.fork();
        let (others, cache) = (store.clone(), yard.fresh());
        let second = move || {
            rotate::run(&try_open(Arc::new(others), &cache, &key(60)).unwrap()).unwrap();
        };
        let visited = Arc::new(FaultStore::visited_at(store.clone(), call, second));
        let result = try_open(visited.clone(), &yard.fresh(), &admin())
            .map_err(OpError::from)
            .and_then(|repo| rotate::run(&repo));
        if visited.calls() <= call {
            assert!(call > 8);
            return;
        }
        let when = format!("before call {call} ({})", visited.log()[call as usize]);
        match &result {
            Ok(epoch) => assert!([2, 3].contains(epoch), "{when}"),
            Err(error) => assert!(
                matches!(error.kind(), Kind::Refused | Kind::Tamper),
                "{when}: {}",
                check::chain(error)
            ),
        }
        assert_all_work(&yard, &store, &[writer(), key(31), admin(), key(60)], &when);
        let epochs: BTreeSet<u32> = [admin(), writer(), key(31), key(60)]
            .map(|credential| open(&yard, &store, &credential).unwrap().config.epoch)
            .into();
        assert_eq!(epochs.len(), 1, "{when}");
        call += 1;
    }
}

#[test]
fn the_end_of_a_revoked_chain_keeps_all_that_share_the_last_number() {
    let yard = Yard::with_nights();
    let image = yard.fresh();
    let (other, content) = other_source(&yard);
    let before = yard.store.fork();
    let one = back_up(Arc::new(yard.store.clone()), &yard.fresh(), &writer(), &other)
        .unwrap()
        .snapshot
        .unwrap();
    let two = back_up(Arc::new(before.clone()), &image, &writer(), &other)
        .unwrap()
        .snapshot
        .unwrap();
    for name in keys(&before, "").into_keys() {
        if !keys(&yard.store, "").contains_key(&name) {
            let _ = yard
                .store
                .create(&name, before.read(&name, Part::Whole).unwrap())
                .unwrap();
        }
    }
    let kid = {
        let repo = opened(&yard, &writer());
        let history = repo.sync_history().unwrap();
        assert_eq!(history.forks.len(), 1, "{:?}", history.forks);
        assert!(
            repo.index
                .outcomes()
                .unwrap()
                .iter()
                .any(|known| known.kind == OutcomeKind::Commit)
        );
        repo.kid
    };
    let report = revoke::run(&opened(&yard, &admin()), &kid, false).unwrap();
    assert_eq!((report.outcomes, report.refused.len()), (2, 0));
    let found = yard.assert_restores(
        &yard.store,
        "revoked",
        &BTreeMap::from([(one, content.clone()), (two, content)]),
    );
    assert!(found.contains(&one) && found.contains(&two), "{found:?}");
}
