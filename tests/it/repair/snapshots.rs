//! `repo repair snapshots`: an outcome does not open.

use super::{Harm, Ward, back_up, harm};
use crate::fault::{admin, try_open, writer};
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Store, StoreKey};
use larder::ops::repair::snapshots::{self, Voided};
use larder::ops::{OpError, Progress, check, prune};
use larder::pure::base::{Explain, Kind};
use larder::pure::id::SessionId;
use larder::testing::fault_store::{Fault, FaultStore};
use std::path::Path;
use std::sync::Arc;

fn void(store: Arc<dyn Store>, cache: &Path, session: &SessionId) -> Result<Voided, OpError> {
    let repo = try_open(store, cache, &admin())?;
    snapshots::void(&repo, session, 1, &Progress::default())
}

fn prune_all(store: &MemoryStore, cache: &Path) -> Result<prune::Report, OpError> {
    let repo = try_open(Arc::new(store.clone()), cache, &admin())?;
    let options = prune::Options {
        threads: 1,
        uploads: 1,
        ..Default::default()
    };
    prune::run(&repo, &options, &Progress::default())
}

/// Three nights; the outcome of one does not open. The others are what is expected of the ward from here on.
fn with_unreadable(night: usize) -> (Ward, SessionId) {
    let mut ward = Ward::with_nights();
    let (lost, _) = ward.nights.remove(night);
    harm(
        &ward.store,
        &StoreKey::new(format!("snap/{lost}")).unwrap(),
        Harm::Rotten,
    );
    (ward, lost)
}

#[test]
fn what_does_not_open_is_named_and_stops_prune_until_it_is_voided() {
    for night in 0..3 {
        for knows in [true, false] {
            let when = format!("night {night}, knows it: {knows}");
            let (ward, lost) = with_unreadable(night);
            let cache = if knows { ward.cache() } else { ward.fresh() };
            let repo = ward.open(&ward.store, &cache);
            let plan = snapshots::plan(&repo, 1, &Progress::default()).unwrap();
            assert_eq!(plan.unreadable.len(), 1, "{when}: {plan:?}");
            assert_eq!(plan.unreadable[0].session, lost, "{when}");
            assert_eq!(plan.unreadable[0].kid, Some(repo.kid), "{when}");
            assert_eq!(plan.unreadable[0].kept.is_some(), knows, "{when}");
            assert!(!plan.check.is_sound(), "{when}");
            drop(repo);
            assert!(prune_all(&ward.store, &ward.fresh()).is_err(), "{when}");
            let voided = void(Arc::new(ward.store.clone()), &cache, &lost)
                .unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            assert!(voided.packs > 0, "{when}: what it had stored is listed again");
            assert!(voided.after.is_sound(), "{when}: {:?}", voided.after.findings);
            ward.assert_sound(&ward.store, &when);
            for cache in [cache, ward.fresh()] {
                let again = back_up(Arc::new(ward.store.clone()), &cache, &admin(), &ward.source());
                assert_eq!(again.stats.chunks_new, 0, "{when}: {:?}", again.notes);
                prune_all(&ward.store, &cache).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
            }
            ward.assert_sound(&ward.store, &when);
        }
    }
}

#[test]
fn what_can_be_read_is_not_voided_and_only_an_admin_voids() {
    let (ward, lost) = with_unreadable(1);
    let refused = void(Arc::new(ward.store.clone()), &ward.cache(), &ward.nights[0].0).unwrap_err();
    assert_eq!(refused.kind(), Kind::Refused, "{refused:?}");
    let repo = try_open(Arc::new(ward.store.clone()), &ward.fresh(), &writer()).unwrap();
    let refused = snapshots::void(&repo, &lost, 1, &Progress::default()).unwrap_err();
    assert_eq!(refused.kind(), Kind::Auth, "{refused:?}");
}

/// Every call fails from then on: the other snapshots restore, and voiding again completes it.
#[test]
fn voiding_may_stop_anywhere() {
    let (ward, lost) = with_unreadable(1);
    let (store, cache) = ward.fork();
    let counted = Arc::new(FaultStore::new(store, None));
    void(counted.clone(), &cache, &lost).unwrap();
    let mut cases = 0;
    for call in (0..counted.calls()).step_by(2) {
        let fault = Fault {
            call,
            after_effect: call % 4 == 0,
            lasting: true,
        };
        let (store, cache) = ward.fork();
        let faulty = Arc::new(FaultStore::new(store.clone(), Some(fault)));
        let _ = void(faulty.clone(), &cache, &lost);
        if !faulty.has_failed() {
            continue;
        }
        cases += 1;
        let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
        assert_eq!(ward.whole(&store, &when), [true; 2], "{when}");
        void(Arc::new(store.clone()), &cache, &lost).unwrap_or_else(|error| panic!("{when}: {}", check::chain(&error)));
        ward.assert_sound(&store, &when);
        std::fs::remove_dir_all(&cache).unwrap();
    }
    eprintln!("{cases} faults in {} calls", counted.calls());
}
