//! Key holders and what each of them can do: put-only writers behind a store that lets them do no more than their policy says
//! (format-spec chapters 3.2 and 3.4; design §12.4).

use crate::fault::{admin, assert_no_false_alarm, copy_dir, try_open};
use crate::prune::{Tree, Yard, prune_options};
use crate::story::{noise, options, restore_options, tree};
use bytes::Bytes;
use larder::edge::host;
use larder::edge::store::memory::MemoryStore;
use larder::edge::store::{Abilities, Created, Failure, Listed, Part, Prefix, Stat, Store, StoreError, StoreKey};
use larder::ops::holders::{self, Duty};
use larder::ops::{OpError, Progress, backup, check, forget, hold, prune, restore, tag};
use larder::pure::base::{Explain, Kind};
use larder::pure::crypto::{Domain, EpochSecrets, KeyRing, ObjectClass, Secret};
use larder::pure::format::blob::{self, Opener};
use larder::pure::format::envelope::{Envelope, EnvelopeKind};
use larder::pure::format::grant::{Grant, KidRow};
use larder::pure::format::name::ObjectName;
use larder::pure::format::pack::check_whole;
use larder::pure::id::{KeyId, SessionId};
use larder::repo::Repo;
use larder::repo::error::RepoError;
use larder::repo::open::{Credential, create_new, store_key};
use larder::source::files::{ExcludesBuilder, WalkOptions};
use larder::testing::fault_store::{Fault, FaultStore};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn key(byte: u8) -> Credential {
    Credential::KeyFile(Secret::new([byte; 32]))
}

/// Lets one put-only writer do what the S3 policy of `repo key policy` says, and nothing else.
#[derive(Debug)]
struct PolicyStore<S> {
    inner: S,
    kid: KeyId,
}

impl<S: Store> PolicyStore<S> {
    fn denied(what: &'static str, object: impl ToString) -> StoreError {
        StoreError::new(what, object, Failure::Denied).caused_by("the policy of the test")
    }

    fn tag(&self) -> String {
        self.kid.to_string()[..8].to_owned()
    }

    fn may_read(&self, key: &StoreKey) -> Result<(), StoreError> {
        let kid = self.kid;
        let own = [
            format!("keys/{kid}/"),
            format!("grants/{kid}/"),
            format!("sess/{}", self.tag()),
        ];
        let name = key.as_str();
        let all = ["config/", "idx/", "snap/", "gc/", "drop/"];
        match all.iter().any(|under| name.starts_with(under)) || own.iter().any(|under| name.starts_with(under)) {
            true => Ok(()),
            false => Err(Self::denied("reading", key)),
        }
    }

    fn may_create(&self, key: &StoreKey) -> Result<(), StoreError> {
        let tag = self.tag();
        let name = key.as_str();
        let is_pack = name.starts_with("data/") || name.starts_with("meta/");
        let own = [format!("idx/0-{tag}"), format!("sess/{tag}"), format!("snap/{tag}")];
        match (is_pack && name.contains(&format!("-{tag}"))) || own.iter().any(|start| name.starts_with(start)) {
            true => Ok(()),
            false => Err(Self::denied("writing", key)),
        }
    }
}

impl<S: Store> Store for PolicyStore<S> {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        self.may_create(key)?;
        self.inner.create(key, body)
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        self.may_read(key)?;
        self.inner.read(key, part)
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.inner.list(prefix, each)
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.may_read(key)?;
        self.inner.stat(key)
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        Err(Self::denied("deleting", keys.len()))
    }

    fn prepare(&self) -> Result<(), StoreError> {
        Err(Self::denied("preparing", "the place"))
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        Err(Self::denied("trying out", "the store"))
    }

    fn set_conditional(&self, conditional: bool) {
        self.inner.set_conditional(conditional);
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

/// A repository with nights of an admin's machine, and a put-only key for another machine.
struct House {
    yard: Yard,
    kid: KeyId,
    source: PathBuf,
}

const WRITER: u8 = 31;
/// In names and contents of files, and nowhere else.
const MARK: &[u8] = b"marsupial-9f3c";

impl House {
    fn new() -> House {
        let yard = Yard::with_nights();
        let kid = add(&yard, "web2", Duty::PutOnly, WRITER);
        let source = yard.dir.path().join("web2");
        std::fs::create_dir_all(source.join("marsupial-9f3c-directory/below")).unwrap();
        let house = House { yard, kid, source };
        for number in 0..40u64 {
            let mut content = MARK.repeat(20);
            content.extend(noise(900 + number, 3_000));
            let name = format!("marsupial-9f3c-directory/{number:03}");
            std::fs::write(house.source.join(name), content).unwrap();
        }
        let large = noise(990, 400_000);
        std::fs::write(house.source.join("large"), &large).unwrap();
        house
    }

    /// What the writer's machine sees of a store.
    fn seen(&self, store: &MemoryStore) -> Arc<dyn Store> {
        Arc::new(PolicyStore {
            inner: store.clone(),
            kid: self.kid,
        })
    }

    fn open(&self, store: &MemoryStore, cache: &Path) -> Repo {
        try_open(self.seen(store), cache, &key(WRITER)).unwrap_or_else(|error| panic!("{}", check::chain(&error)))
    }

    /// A night of the writer's machine.
    fn night(&self, store: Arc<dyn Store>, cache: &Path) -> Result<backup::Report, OpError> {
        let repo = try_open(store, cache, &key(WRITER))?;
        night_of(&repo, &self.source, &backup::ParentChoice::Newest)
    }

    fn whole_night(&self, cache: &Path) -> backup::Report {
        self.night(self.seen(&self.yard.store), cache)
            .unwrap_or_else(|error| panic!("{}", check::chain(&error)))
    }
}

fn night_of(repo: &Repo, source: &Path, parent: &backup::ParentChoice) -> Result<backup::Report, OpError> {
    let input = backup::Input::Paths {
        roots: vec![source.to_owned()],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let options = backup::Options {
        threads: 1,
        host: "web2".into(),
        parent: parent.clone(),
        ..options()
    };
    backup::run(repo, input, &options, &Progress::default())
}

fn add(yard: &Yard, label: &str, duty: Duty, byte: u8) -> KeyId {
    let repo = try_open(Arc::new(yard.store.clone()), &yard.cache(), &admin()).unwrap();
    holders::add(&repo, label, duty, &key(byte)).unwrap_or_else(|error| panic!("{}", check::chain(&error)))
}

fn names_under(store: &MemoryStore, under: &str) -> Vec<StoreKey> {
    let mut names = Vec::new();
    store
        .list(&Prefix::new(under).unwrap(), &mut |row| names.push(row.key))
        .unwrap();
    names
}

#[test]
fn a_put_only_machine_backs_up_every_night_and_others_restore_it() {
    let house = House::new();
    let cache = house.yard.fresh();
    let first = house.whole_night(&cache);
    assert!(
        first.stats.files_new == 41 && first.stats.bytes_new > 400_000,
        "{:?}",
        first.stats
    );
    let mut made = BTreeMap::from([(first.snapshot.unwrap(), tree(&house.source))]);
    // Nothing changed: nothing is read, and no pack is written.
    let packs = names_under(&house.yard.store, "data/").len() + names_under(&house.yard.store, "meta/").len();
    let second = house.whole_night(&cache);
    assert_eq!(second.parent, first.snapshot);
    assert_eq!(
        (second.stats.files_unmodified, second.stats.bytes_read),
        (41, 0),
        "{:?}",
        second.stats
    );
    assert_eq!(second.stats.packs_uploaded, 0, "{:?}", second.stats);
    assert_eq!(
        names_under(&house.yard.store, "data/").len() + names_under(&house.yard.store, "meta/").len(),
        packs
    );
    made.insert(second.snapshot.unwrap(), tree(&house.source));
    // One file changed: that one is read. No deltas, which need what is stored.
    let mut large = std::fs::read(house.source.join("large")).unwrap();
    large[200_000] ^= 1;
    std::fs::write(house.source.join("large"), &large).unwrap();
    let third = house.whole_night(&cache);
    assert_eq!(
        (third.stats.files_unmodified, third.deltas),
        (40, 0),
        "{:?}",
        third.stats
    );
    assert!(
        third.stats.bytes_new < 200_000 && third.stats.bytes_new > 0,
        "{:?}",
        third.stats
    );
    made.insert(third.snapshot.unwrap(), tree(&house.source));
    // Without its cache it reads everything again, says why, and uploads nothing.
    let fourth = house.whole_night(&house.yard.fresh());
    assert_eq!((fourth.parent, fourth.stats.files_unmodified), (None, 0));
    assert_eq!(fourth.stats.packs_uploaded, 0, "{:?}", fourth.stats);
    assert!(
        fourth.notes.iter().any(|note| note.contains("every file is read")),
        "{:?}",
        fourth.notes
    );
    made.insert(fourth.snapshot.unwrap(), tree(&house.source));
    house.yard.assert_restores(&house.yard.store, "put-only", &made);
    // And an admin's pruning knows what its snapshots need.
    let repo = try_open(Arc::new(house.yard.store.clone()), &house.yard.fresh(), &admin()).unwrap();
    let pruned = prune::run(&repo, &prune_options(), &Progress::default()).unwrap();
    assert_eq!((pruned.snapshots, pruned.deleted.packs), (7, 0));
    house.yard.assert_restores(&house.yard.store, "put-only, pruned", &made);
}

#[test]
fn checkpoints_of_a_put_only_machine_are_gone_on_from() {
    let house = House::new();
    let cache = house.yard.fresh();
    let repo = house.open(&house.yard.store, &cache);
    let input = backup::Input::Paths {
        roots: vec![house.source.clone()],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let options = backup::Options {
        threads: 1,
        host: "web2".into(),
        checkpoints: Some(backup::Interval {
            time: std::time::Duration::ZERO,
            ..backup::Interval::DEFAULT
        }),
        ..options()
    };
    let report = backup::run(&repo, input, &options, &Progress::default()).unwrap();
    assert!(!report.checkpoints.is_empty());
    for checkpoint in &report.checkpoints {
        // Remembered by this machine, and by no other.
        assert!(repo.snapshot(checkpoint).unwrap().is_partial());
        let error = house
            .open(&house.yard.store, &house.yard.fresh())
            .snapshot(checkpoint)
            .unwrap_err();
        assert!(matches!(error, RepoError::NoSuchSnapshot(_)), "{error}");
    }
    let elsewhere = house.open(&house.yard.store, &house.yard.fresh());
    elsewhere.sync_history().unwrap();
    let error = elsewhere.snapshot(&report.checkpoints[0]).unwrap_err();
    assert!(error.is_missing_key(), "{error}");
}

#[test]
fn what_a_put_only_key_cannot_do_is_said_plainly() {
    let house = House::new();
    let cache = house.yard.fresh();
    let made = house.whole_night(&cache).snapshot.unwrap();
    let repo = house.open(&house.yard.store, &cache);
    let history = repo.sync_history().unwrap();
    let snapshot = repo.snapshot(&made).unwrap();
    let reading = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    let target = house.yard.fresh();
    let to_restore = restore_options(snapshot.clone(), None, target.clone());
    let progress = Progress::default();
    let mut out = Vec::new();
    let errors: Vec<(&str, OpError)> = vec![
        (
            "check",
            check::run(&repo, &check::Options::default(), &progress).unwrap_err(),
        ),
        ("check --read-data", check::run(&repo, &reading, &progress).unwrap_err()),
        ("restore", restore::run(&repo, &to_restore, &progress).unwrap_err()),
        (
            "dump",
            larder::ops::dump::file(
                &repo,
                &snapshot,
                house.source.join("large").as_os_str().as_encoded_bytes(),
                1,
                &mut out,
                &progress,
            )
            .unwrap_err(),
        ),
        (
            "forget",
            forget::plan(&repo, history, &forget_everything()).unwrap_err(),
        ),
        ("prune", prune::run(&repo, &prune_options(), &progress).unwrap_err()),
        ("hold", hold::hold(&repo, &made, None, "no").unwrap_err()),
        ("tag", tag::run(&repo, &snapshot, &["x".into()], &[]).unwrap_err()),
        ("add", holders::add(&repo, "more", Duty::Admin, &key(99)).unwrap_err()),
    ];
    for (what, error) in errors {
        assert_eq!(error.kind(), Kind::Auth, "{what}: {}", check::chain(&error));
        assert!(
            check::chain(&error).contains("this key can only write"),
            "{what}: {}",
            check::chain(&error)
        );
        assert!(
            error.hint().is_some_and(|hint| hint.contains("larder backup")),
            "{what}"
        );
    }
    assert!(out.is_empty() && !target.exists());
}

fn forget_everything() -> forget::Options {
    forget::Options {
        choice: forget::Choice::Named {
            snapshots: Vec::new(),
            allow_last: true,
        },
        filter: Default::default(),
        group_by: forget::GroupBy::SOURCE,
        removal_percent_max: 25,
        now: host::now(),
        zone: jiff::tz::TimeZone::UTC,
    }
}

/// Whoever has stolen the machine has its key, its cache, and may have all bytes of the repository: with every secret of the bundle
/// tried on everything, no name and no content of a file comes out.
#[test]
fn nothing_in_the_bundle_opens_a_name_or_a_content() {
    let house = House::new();
    let cache = house.yard.fresh();
    house.whole_night(&cache);
    let repo = house.open(&house.yard.store, &cache);
    let [held] = repo.grant.epochs.as_slice() else {
        panic!("not one epoch")
    };
    let mut secrets: Vec<Secret> = [&held.id, &held.cdc, &held.split, &held.idx, &held.psk]
        .map(|secret| secret.clone().expect("a put-only bundle has it"))
        .to_vec();
    assert!(held.meta.is_none() && held.data.is_none() && held.id_meta.is_none());
    secrets.extend([held.pk_data, held.pk_meta].map(|public| Secret::new(public.expect("a put-only bundle has it"))));
    secrets.extend([repo.kid_secret.clone(), Secret::new([WRITER; 32])]);
    // Each of them in the place of each secret that is missed.
    let mut rings = Vec::new();
    for tried in &secrets {
        for psk in &secrets {
            let guess = EpochSecrets {
                meta: Some(tried.clone()),
                data: Some(tried.clone()),
                psk: Some(psk.clone()),
                ..held.clone()
            };
            rings.push(KeyRing::new(repo.config.repo, vec![guess], 1).unwrap());
        }
    }
    let mut readable: Vec<(String, Vec<u8>)> = Vec::new();
    let (mut slots, mut methods, mut frames) = (0, [0, 0, 0], 0);
    let classes = [
        ("idx/", EnvelopeKind::Run, ObjectClass::Run),
        ("snap/", EnvelopeKind::Outcome, ObjectClass::Outcome),
        ("sess/", EnvelopeKind::Session, ObjectClass::Session),
    ];
    let whole = |name: &StoreKey| house.yard.store.read(name, Part::Whole).unwrap();
    for (under, kind, class) in classes {
        for name in names_under(&house.yard.store, under) {
            let bytes = whole(&name);
            let envelope = Envelope::parse(&bytes, kind, &repo.config.repo).unwrap();
            let class = repo.keys.object_key(1, class).unwrap();
            for section in 0..envelope.sections() {
                readable.push((
                    format!("{name}, section {section}"),
                    envelope.open(section, class, name.as_str()).unwrap(),
                ));
            }
        }
    }
    for name in names_under(&house.yard.store, "data/")
        .into_iter()
        .chain(names_under(&house.yard.store, "meta/"))
    {
        let bytes = whole(&name);
        let parts = check_whole(&bytes).unwrap();
        let trailer = parts
            .open(repo.keys.object_key(1, ObjectClass::Trailer).unwrap())
            .unwrap();
        for slot in &trailer.slots {
            slots += 1;
            methods[usize::from(slot.method())] += 1;
            for ring in rings.iter().chain([&*repo.keys]) {
                assert!(ring.open_slot(slot).is_err(), "{name}: a slot opens");
            }
        }
        for record in &trailer.records {
            let from = record.offset as usize;
            let frame = &bytes[from..from + record.stored_len as usize];
            frames += 1;
            for session_key in &secrets {
                for domain in [Domain::Data, Domain::Meta] {
                    let key = repo.keys.blob_key(domain, session_key);
                    let mut out = Vec::new();
                    let opened = blob::open_frame(
                        frame,
                        &key,
                        &repo.keys,
                        record.ty,
                        &record.id,
                        &mut Opener::new(),
                        &mut out,
                    );
                    assert!(opened.is_err() && out.is_empty(), "{name}: a frame opens");
                }
            }
        }
        readable.push((name.to_string(), bytes.to_vec()));
    }
    // The admin's nights are of method 1, and the writer's of method 2.
    assert!(
        methods[1] > 0 && methods[2] >= 2 && slots > 4 && frames > 40,
        "{methods:?}, {frames} frames"
    );
    for under in ["config/", "keys/", "grants/"] {
        readable.extend(
            names_under(&house.yard.store, under)
                .into_iter()
                .map(|name| (name.to_string(), whole(&name).to_vec())),
        );
    }
    for (name, bytes) in &readable {
        assert!(
            !bytes.windows(MARK.len()).any(|window| window == MARK),
            "{name} shows a name or a content"
        );
    }
    // The reader of the library, which has everything that the key has, gives out nothing either.
    let error = check::run(&repo, &check::Options::default(), &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Auth);
    // The same looks by somebody who holds the secrets do find what was looked for.
    let admin = try_open(Arc::new(house.yard.store.clone()), &house.yard.fresh(), &admin()).unwrap();
    let found = names_under(&house.yard.store, "meta/").iter().any(|name| {
        let bytes = whole(name);
        let trailer = check_whole(&bytes)
            .unwrap()
            .open(admin.keys.object_key(1, ObjectClass::Trailer).unwrap())
            .unwrap();
        trailer.records.iter().any(|record| {
            let (_, key) = admin.keys.open_slot(&trailer.slots[0]).unwrap();
            let from = record.offset as usize;
            let frame = &bytes[from..from + record.stored_len as usize];
            let mut out = Vec::new();
            blob::open_frame(
                frame,
                &key,
                &admin.keys,
                record.ty,
                &record.id,
                &mut Opener::new(),
                &mut out,
            )
            .unwrap();
            out.windows(MARK.len()).any(|window| window == MARK)
        })
    });
    assert!(found, "the test looks for something that is not there");
}

/// Every call of a put-only night fails once, and from then on: what was published restores, and the next night succeeds.
#[test]
fn a_put_only_night_that_dies_loses_nothing_and_the_next_one_goes_on() {
    let house = House::new();
    let cache = house.yard.fresh();
    let before = house.whole_night(&cache).snapshot.unwrap();
    let made = tree(&house.source);
    std::fs::write(house.source.join("large"), noise(991, 300_000)).unwrap();
    let changed = tree(&house.source);
    let mut call = 0;
    loop {
        let mut any = false;
        for fault in Fault::at(call) {
            let store = house.yard.store.fork();
            let local = house.yard.fresh();
            copy_dir(&cache, &local);
            let faulty = Arc::new(FaultStore::new(house.seen(&store), Some(fault)));
            let result = house.night(faulty.clone(), &local);
            if !faulty.has_failed() {
                result.unwrap();
                continue;
            }
            any = true;
            let when = format!("{fault:?} ({})", faulty.log()[call as usize]);
            assert_no_false_alarm(&result, &when);
            let next = house.night(house.seen(&store), &local);
            let next = next.unwrap_or_else(|error| panic!("{when}, again: {}", check::chain(&error)));
            let mut kept = BTreeMap::from([(before, made.clone()), (next.snapshot.unwrap(), changed.clone())]);
            kept.extend(
                result
                    .ok()
                    .and_then(|report| report.snapshot)
                    .map(|id| (id, changed.clone())),
            );
            assert_kept(&house, &store, &when, &kept);
            std::fs::remove_dir_all(&local).unwrap();
        }
        if !any {
            assert!(call > 8, "{call} calls");
            return;
        }
        call += 1;
    }
}

/// An admin on a machine that knows nothing restores these. Cheaper than a whole check, which others make.
fn assert_kept(house: &House, store: &MemoryStore, when: &str, kept: &BTreeMap<SessionId, Tree>) {
    let cache = house.yard.fresh();
    let repo = try_open(Arc::new(store.clone()), &cache, &admin()).unwrap();
    repo.sync_history().unwrap();
    for (id, expected) in kept {
        let target = cache.join("restored");
        let root = house.source.as_os_str().as_encoded_bytes().to_vec();
        let options = restore_options(repo.snapshot(id).unwrap(), Some(root), target.clone());
        let report = restore::run(&repo, &options, &Progress::default()).unwrap();
        assert_eq!((report.damaged_total, report.failed_total), (0, 0), "{when}");
        assert!(tree(&target) == *expected, "{when}: snapshot {id} has changed");
        std::fs::remove_dir_all(&target).unwrap();
    }
    drop(repo);
    std::fs::remove_dir_all(&cache).unwrap();
}

/// A reader that was added before there were put-only writers has no shared secret, and could not read what they write.
#[test]
fn adding_a_put_only_key_completes_the_grants_of_older_readers() {
    let yard = Yard::with_nights();
    let reader = add(&yard, "auditor", Duty::Reader, 40);
    let repo = try_open(Arc::new(yard.store.clone()), &yard.cache(), &admin()).unwrap();
    let row: KidRow = repo
        .grant
        .kid_table
        .iter()
        .find(|row| row.kid == reader)
        .unwrap()
        .clone();
    // Its grant as it was before.
    let old = Grant {
        issuer: repo.kid,
        created: host::now(),
        roles: Duty::Reader.roles(),
        repo: repo.config.repo,
        config_sequence: repo.config.sequence,
        admin_keys: repo.grant.admin_keys.clone(),
        epochs: vec![EpochSecrets {
            psk: None,
            ..repo.grant.epochs[0].for_roles(&repo.config.repo, Duty::Reader.roles())
        }],
        label: Some("auditor".into()),
        kid_table: Vec::new(),
    };
    let body = old.encode(&row.kid, 1, &row.grant_key, &repo.signer, host::random());
    create_new(&*repo.store, &ObjectName::Grant(reader, 1), body, "a grant").unwrap();
    drop(repo);
    add(&yard, "web2", Duty::PutOnly, WRITER);
    let names = names_under(&yard.store, &format!("grants/{reader}/"));
    assert_eq!(names.last().unwrap(), &store_key(&ObjectName::Grant(reader, 2)));
    let writing = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &key(WRITER)).unwrap();
    night_of(&writing, &yard.source(), &backup::ParentChoice::Newest).unwrap();
    let reading = try_open(Arc::new(yard.store.clone()), &yard.fresh(), &key(40)).unwrap();
    let everything = check::Options {
        read_data: Some(check::Subset::All),
        threads: 1,
        ..Default::default()
    };
    let report = check::run(&reading, &everything, &Progress::default()).unwrap();
    assert!(
        report.findings.is_empty() && report.snapshots == 4,
        "{:?}",
        report.findings
    );
    // Nothing is left to be completed.
    add(&yard, "web3", Duty::PutOnly, 42);
    assert_eq!(
        names_under(&yard.store, &format!("grants/{reader}/")).len(),
        names.len()
    );
}
