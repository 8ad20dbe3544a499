//! Promises of the local index: a model of what must be found, damage, several writers, and speed.

use super::bulk::BulkImport;
use super::catalog::PackState;
use super::*;
use crate::pure::base::Timestamp;
use crate::pure::crypto::Slot;
use crate::pure::format::blob::BlobType;
use crate::pure::format::name::PackKind;
use crate::pure::format::outcome::OutcomeKind;
use crate::pure::format::pack::PackRecord;
use crate::pure::format::run::{RunChunk, RunContent, RunDelta, RunPack, StoredAs};
use crate::pure::id::{KeyId, ObjectHash, PackId, SourceId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::ops::ControlFlow;

const REPO: RepoId = RepoId([0x10; 16]);
const KID: KeyId = KeyId([0x20; 16]);
const FILTER: u64 = 1 << 20;

fn chunk_id(number: u64) -> ChunkId {
    ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn pack_id(number: u64) -> PackId {
    PackId::from_slice(&blake3::hash(format!("pack {number}").as_bytes()).as_bytes()[..16]).unwrap()
}

fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

/// The session that pack `number` belongs to.
fn session_of(number: u64) -> SessionId {
    session(1 + (number % 2) as u8)
}

fn slot_of(session: SessionId) -> Slot {
    Slot([session.0[0]; 88])
}

/// Pack `number` of the tests' little world: always with the same chunks, some of which other packs have as well, and some
/// of which are deltas.
fn own_pack(number: u64) -> OwnPack {
    let mut offset = 64;
    let mut numbers: Vec<u64> = (0..4).map(|i| (number * 3 + i * 5) % 17).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let records = numbers
        .into_iter()
        .map(|chunk| {
            let stored_len = 100 + chunk as u32;
            offset += stored_len;
            PackRecord {
                ty: BlobType::Data,
                id: chunk_id(chunk),
                offset: offset - stored_len,
                stored_len,
                raw_len: 1000 + chunk as u32,
                base: (chunk + number).is_multiple_of(3).then(|| chunk_id(chunk + 100)),
            }
        })
        .collect();
    OwnPack {
        pack: pack_id(number),
        session: session_of(number),
        kind: PackKind::Data,
        size: 10_000 + number as u32,
        slots: vec![slot_of(session_of(number))],
        crc64nvme: u64::MAX - number,
        body_hash24: [number as u8; 24],
        records,
    }
}

/// A run that describes these packs.
fn run_of(packs: &BTreeSet<u64>) -> RunContent {
    let mut content = RunContent::default();
    let mut own: Vec<OwnPack> = packs.iter().map(|&number| own_pack(number)).collect();
    own.sort_by_key(|pack| pack.pack);
    for (index, pack) in own.iter().enumerate() {
        let pack_ix = index as u32;
        content.slots.extend_from_slice(&pack.slots);
        content.packs.push(RunPack {
            pack: pack.pack,
            session: pack.session,
            size: pack.size,
            blob_count: pack.records.len() as u32,
            kind: pack.kind,
            slots: pack_ix..pack_ix + 1,
            crc64nvme: pack.crc64nvme,
            body_hash24: pack.body_hash24,
        });
        for record in &pack.records {
            let stored_as = if record.base.is_some() {
                StoredAs::Delta
            } else {
                StoredAs::Data
            };
            let (id, offset, stored_len) = (record.id, record.offset, record.stored_len);
            content.chunks.push(RunChunk {
                id,
                pack_ix,
                offset,
                stored_as,
                stored_len,
            });
            content
                .deltas
                .extend(record.base.map(|base| RunDelta { id, pack_ix, base }));
        }
    }
    content.chunks.sort();
    content.deltas.sort();
    content
}

fn open(directory: &Path) -> LocalIndex {
    LocalIndex::open(directory, &REPO, IndexShare::with_filter(FILTER)).unwrap()
}

/// What the index must answer, told in the plainest way.
#[derive(Default)]
struct Model {
    described: BTreeSet<u64>,
    imported: BTreeMap<String, BTreeSet<u64>>,
    listed: BTreeMap<String, (SessionId, u32, BTreeSet<u64>)>,
    owner: BTreeMap<u64, SessionId>,
    condemned: BTreeSet<u64>,
    current: BTreeSet<SessionId>,
}

impl Model {
    fn usable(&self, pack: u64) -> bool {
        !self.condemned.contains(&pack)
            && (self.imported.values().any(|packs| packs.contains(&pack))
                || self.owner.get(&pack).is_some_and(|owner| self.current.contains(owner)))
    }

    fn import(&mut self, name: String, packs: BTreeSet<u64>) {
        self.listed.remove(&name);
        self.described.extend(&packs);
        self.owner.retain(|pack, _| !packs.contains(pack));
        self.imported.insert(name, packs);
    }

    fn unlisted(&self, session: SessionId) -> BTreeSet<u64> {
        let taken = |pack: &u64| {
            self.condemned.contains(pack)
                || self.imported.values().any(|packs| packs.contains(pack))
                || self.listed.values().any(|(_, _, packs)| packs.contains(pack))
        };
        self.owner
            .iter()
            .filter(|(pack, owner)| **owner == session && !taken(pack))
            .map(|(pack, _)| *pack)
            .collect()
    }

    fn check(&self, index: &LocalIndex) {
        let ids: Vec<ChunkId> = (0..20).map(chunk_id).collect();
        let found = index.find_many(&ids).unwrap();
        for (number, (id, found)) in ids.iter().zip(found).enumerate() {
            let mut expected = BTreeMap::new();
            for pack in self.described.iter().filter(|pack| self.usable(**pack)) {
                for record in own_pack(*pack).records.iter().filter(|record| record.id == *id) {
                    expected.insert(pack_id(*pack), (record.offset, record.stored_len, record.base, *pack));
                }
            }
            let all = index.find_all(id).unwrap();
            assert_eq!(
                all.iter().map(|place| place.pack).collect::<BTreeSet<_>>(),
                expected.keys().copied().collect(),
                "copies of chunk {number}"
            );
            assert_eq!(all.len(), expected.len());
            for place in &all {
                let (offset, stored_len, base, pack) = expected[&place.pack];
                assert_eq!((place.offset, place.stored_len), (offset, stored_len));
                assert_eq!(index.base_of(id, &place.pack).unwrap(), base);
                assert_eq!(place.stored_as == StoredAs::Delta, base.is_some());
                assert_eq!(
                    (place.session, place.pack_size),
                    (session_of(pack), 10_000 + pack as u32)
                );
                assert_eq!(*place.slots, [slot_of(place.session)]);
            }
            assert_eq!(found, index.find(id).unwrap());
            assert_eq!(found.is_some(), !expected.is_empty());
            if let Some(found) = found {
                assert!(all.contains(&found) && index.maybe(id));
                let full_exists = expected.values().any(|(_, _, base, _)| base.is_none());
                assert_eq!(
                    found.stored_as != StoredAs::Delta,
                    full_exists,
                    "full copies are preferred"
                );
            }
        }
        for owner in [session(1), session(2), session(3)] {
            let packs: Vec<_> = self.unlisted(owner).into_iter().map(own_pack).collect();
            let mut unlisted = index.unlisted_packs(&owner).unwrap();
            unlisted.sort_by_key(|pack| packs.iter().position(|p| p.pack == pack.pack));
            assert_eq!(unlisted, packs);
        }
        assert_eq!(index.known_runs().unwrap(), self.imported.keys().cloned().collect());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Import(u8, BTreeSet<u64>),
    ImportInParts(u8, BTreeSet<u64>),
    Relabel(u8, Vec<u8>, BTreeSet<u64>),
    Retain(BTreeSet<u8>),
    Start(u8),
    End(u8),
    AddPack(u64),
    List(u8, u32),
    Accept(u8, u32),
    Adopt(u8, u8),
    Forget(u64),
    Condemn(BTreeSet<u64>),
    Tidy,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let packs = || prop::collection::btree_set(0u64..12, 1..5);
    let step = prop_oneof![
        3 => (0u8..4, packs()).prop_map(|(run, packs)| Step::Import(run, packs)),
        1 => (0u8..4, packs()).prop_map(|(run, packs)| Step::ImportInParts(run, packs)),
        1 => (4u8..6, prop::collection::vec(0u8..4, 1..3), packs()).prop_map(|(r, i, d)| Step::Relabel(r, i, d)),
        2 => prop::collection::btree_set(0u8..6, 0..6).prop_map(Step::Retain),
        2 => (1u8..4).prop_map(Step::Start),
        1 => (1u8..4).prop_map(Step::End),
        4 => (0u64..12).prop_map(Step::AddPack),
        2 => (1u8..4, 0u32..3).prop_map(|(s, n)| Step::List(s, n)),
        2 => (1u8..4, 0u32..3).prop_map(|(s, n)| Step::Accept(s, n)),
        1 => (1u8..4, 1u8..4).prop_map(|(from, to)| Step::Adopt(from, to)),
        1 => (0u64..12).prop_map(Step::Forget),
        1 => prop::collection::btree_set(0u64..12, 0..2).prop_map(Step::Condemn),
        1 => Just(Step::Tidy),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..25)
}

fn run_name(run: u8) -> String {
    format!("idx/0-run-{run:04}")
}

fn own_run_name(session: SessionId, number: u32) -> String {
    format!("idx/0-{session}-{number:04}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, the index finds exactly the copies that may be referred to.
    #[test]
    fn finds_exactly_what_the_model_says(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let mut index = Some(open(directory.path()));
        let mut model = Model::default();
        for step in steps {
            let db = index.as_ref().unwrap();
            match step {
                Step::Import(run, packs) => {
                    db.import_run(&run_name(run), 0, session(9), KID, &run_of(&packs)).unwrap();
                    if !model.imported.contains_key(&run_name(run)) {
                        model.import(run_name(run), packs);
                    }
                }
                Step::ImportInParts(run, packs) => {
                    let mut whole = run_of(&packs);
                    let chunks = std::mem::take(&mut whole.chunks);
                    let deltas = std::mem::take(&mut whole.deltas);
                    let mut parts = chunks.chunks(3).map(|part| RunContent {
                        chunks: part.to_vec(),
                        deltas: deltas.iter().filter(|d| part.iter().any(|c| c.id == d.id && c.pack_ix == d.pack_ix)).copied().collect(),
                        ..RunContent::default()
                    });
                    db.import_run_in_parts::<IndexError>(&run_name(run), 1, session(9), KID, &whole, &mut || Ok(parts.next())).unwrap();
                    if !model.imported.contains_key(&run_name(run)) {
                        model.import(run_name(run), packs);
                    }
                }
                Step::Relabel(run, inputs, dropped) => {
                    let names: Vec<_> = inputs.iter().map(|&input| run_name(input)).collect();
                    let gone: Vec<_> = dropped.iter().map(|&pack| pack_id(pack)).collect();
                    let done = db.relabel_runs(&run_name(run), 1, session(9), KID, &names, &gone).unwrap();
                    let known = model.imported.contains_key(&run_name(run));
                    prop_assert_eq!(done, known || names.iter().all(|name| model.imported.contains_key(name)));
                    if done && !known {
                        let packs = names.iter().flat_map(|name| model.imported[name].clone()).filter(|pack| !dropped.contains(pack)).collect();
                        model.import(run_name(run), packs);
                    }
                }
                Step::Retain(runs) => {
                    let mut valid: HashSet<_> = runs.into_iter().map(run_name).collect();
                    // Accepted runs of own sessions come and go with the others.
                    valid.extend(model.imported.keys().filter(|name| name.ends_with('1')).cloned());
                    let before = model.imported.len();
                    model.imported.retain(|name, _| valid.contains(name));
                    prop_assert_eq!(db.retain_runs(&db.known_runs().unwrap(), &valid).unwrap(), before - model.imported.len());
                }
                Step::Start(number) => {
                    db.start_session(&session(number), b"machine", b"boot", 1, Timestamp(0)).unwrap();
                    model.current.insert(session(number));
                }
                Step::End(number) => {
                    db.end_session(&session(number), SessionEnd::Ended).unwrap();
                    model.current.remove(&session(number));
                }
                Step::AddPack(pack) => {
                    db.add_pack(&own_pack(pack)).unwrap();
                    model.described.insert(pack);
                    model.owner.insert(pack, session_of(pack));
                }
                Step::List(number, run) => {
                    let name = own_run_name(session(number), run);
                    let packs = model.unlisted(session(number));
                    if packs.is_empty() || model.imported.contains_key(&name) || model.listed.contains_key(&name) {
                        continue;
                    }
                    let ids: Vec<_> = packs.iter().map(|&pack| pack_id(pack)).collect();
                    db.packs_listed(&name, &session(number), &KID, run, &ids).unwrap();
                    model.listed.insert(name, (session(number), run, packs));
                }
                Step::Accept(number, last) => {
                    db.accept_session(&session(number), &[(0, last)]).unwrap();
                    let listed = std::mem::take(&mut model.listed);
                    for (name, (owner, run, packs)) in listed {
                        if owner != session(number) {
                            model.listed.insert(name, (owner, run, packs));
                        } else if run <= last {
                            model.import(name, packs);
                        }
                    }
                }
                Step::Adopt(from, to) => {
                    let packs = model.unlisted(session(from));
                    let ids: Vec<_> = packs.iter().map(|&pack| pack_id(pack)).collect();
                    prop_assert_eq!(db.adopt_packs(&ids, &session(from), &session(to)).unwrap(), ids);
                    packs.into_iter().for_each(|pack| { model.owner.insert(pack, session(to)); });
                }
                Step::Forget(pack) => {
                    db.forget_pack(&pack_id(pack)).unwrap();
                    model.owner.remove(&pack);
                }
                Step::Condemn(packs) => {
                    let ids: Vec<_> = packs.iter().map(|&pack| pack_id(pack)).collect();
                    let gc = session(100 + packs.len() as u8);
                    db.add_condemned(&gc, &KID, &ids, &[chunk_id(7)]).unwrap();
                    prop_assert!(db.known_gcs().unwrap().contains(&gc) && db.is_lost(&chunk_id(7)).unwrap());
                    model.condemned.extend(packs);
                }
                Step::Tidy => {
                    db.tidy().unwrap();
                    // Packs that nothing refers to are not known any more; nobody can tell.
                }
                Step::Reopen => {
                    drop(index.take());
                    index = Some(open(directory.path()));
                    prop_assert!(index.as_ref().unwrap().was_rebuilt().is_none());
                    model.current.clear();
                }
            }
            model.check(index.as_ref().unwrap());
        }
    }
}

/// Found by the model: own packs that a compacted run describes are not waiting for a run any more.
#[test]
fn relabelled_packs_are_nobodys_to_list() {
    let index = LocalIndex::open_temporary(&REPO, IndexShare::DEFAULT).unwrap();
    index
        .import_run(&run_name(0), 0, session(9), KID, &run_of(&[8].into()))
        .unwrap();
    index.add_pack(&own_pack(8)).unwrap();
    assert!(
        index
            .relabel_runs(&run_name(4), 1, session(9), KID, &[run_name(0)], &[])
            .unwrap()
    );
    index
        .retain_runs(&index.known_runs().unwrap(), &HashSet::new())
        .unwrap();
    assert_eq!(index.unlisted_packs(&session_of(8)).unwrap(), []);
}

/// A small index with live, condemned, gone and own packs; closed again.
fn sample(directory: &Path) -> Model {
    let index = open(directory);
    let mut model = Model::default();
    for (name, packs) in [(0, 0..6), (1, 3..9), (2, 6..12)] {
        let packs: BTreeSet<u64> = packs.collect();
        index
            .import_run(&run_name(name), 0, session(9), KID, &run_of(&packs))
            .unwrap();
        model.import(run_name(name), packs);
    }
    let filler = RunContent {
        chunks: (1000..4000)
            .map(|n| RunChunk {
                id: chunk_id(n),
                pack_ix: 0,
                offset: 64,
                stored_as: StoredAs::Data,
                stored_len: 99,
            })
            .collect(),
        ..run_of(&[20].into())
    };
    index.import_run(&run_name(3), 0, session(9), KID, &filler).unwrap();
    model.imported.insert(run_name(3), [20].into());
    let valid = [0, 1, 3].map(run_name).into();
    index.retain_runs(&index.known_runs().unwrap(), &valid).unwrap();
    model.imported.remove(&run_name(2));
    index
        .add_condemned(&session(50), &KID, &[pack_id(1), pack_id(2)], &[chunk_id(9)])
        .unwrap();
    model.condemned = [1, 2].into();
    index.add_pack(&own_pack(13)).unwrap();
    index.raise_head(&KID, 4, &ObjectHash([4; 32])).unwrap();
    index.remember("config", b"bytes").unwrap();
    model
}

/// Asks everything; true if the index said that something was wrong with it.
fn ask_everything(index: &LocalIndex, model: &Model) -> bool {
    let mut failed = false;
    let mut note = |ok: bool| failed |= !ok;
    for number in (0..20).chain((1000..4000).step_by(7)) {
        match index.find_all(&chunk_id(number)) {
            Ok(places) => places.iter().for_each(|place| {
                // A pack whose id is damaged does not exist at the store, which is noticed; one that may not be referred
                // to and exists is what must never be handed out.
                if let Some(pack) = (0..21).find(|&pack| pack_id(pack) == place.pack) {
                    assert!(model.usable(pack), "chunk {number} in pack {pack}, which is not usable");
                }
            }),
            Err(_) => note(false),
        }
        let _ = index.maybe(&chunk_id(number));
    }
    note(index.known_runs().is_ok());
    note(index.open_sessions().is_ok());
    note(index.unlisted_packs(&session_of(13)).is_ok());
    note(index.outcomes().is_ok());
    note(index.heads().is_ok());
    note(index.recall("config").is_ok());
    note(index.packs(&mut |_| {}).is_ok());
    note(index.chunks_in_pack_order(&mut |_| ControlFlow::Continue(())).is_ok());
    note(index.chunks_in_id_order(&mut |_| ControlFlow::Continue(())).is_ok());
    note(index.stats().is_ok());
    failed
}

/// Goal: a damaged database never makes a backup refer to what must not be referred to, never stops the program, and is
/// replaced by a fresh one at the latest at the open after the damage was met.
/// Method: one changed byte, a zeroed page or a cut at many offsets of a small index.
#[test]
fn damage_anywhere_is_noticed_or_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let model = sample(directory.path());
    let path = directory.path().join("index.db");
    let whole = fs::read(&path).unwrap();
    assert!(
        !directory.path().join("index.db-wal").exists(),
        "closing empties the WAL"
    );
    let mut noticed = 0;
    let mut offsets: Vec<usize> = (0..512).step_by(3).collect();
    offsets.extend((512..whole.len()).step_by(whole.len() / 400));
    for (round, &at) in offsets.iter().enumerate() {
        let mut damaged = whole.clone();
        match round % 4 {
            0 => damaged[at] ^= 1 << (round / 4 % 8),
            1 => damaged[at] = !damaged[at],
            2 => damaged[at / 4096 * 4096..][..4096].fill(0),
            _ => damaged.truncate(at),
        }
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("index.db"), &damaged).unwrap();
        let index = open(home.path());
        let rebuilt = index.was_rebuilt().is_some();
        let failed = ask_everything(&index, &model);
        drop(index);
        if failed {
            assert!(!rebuilt, "a fresh index is sound");
            assert!(
                open(home.path()).was_rebuilt().is_some(),
                "offset {at}: damage was met and the file is used again"
            );
        }
        noticed += usize::from(failed || rebuilt);
        // Whatever it was: it can be filled again.
        let index = open(home.path());
        if index
            .import_run(&run_name(9), 0, session(9), KID, &run_of(&[0, 3].into()))
            .is_err()
        {
            drop(index);
            let index = open(home.path());
            assert!(index.was_rebuilt().is_some());
            index
                .import_run(&run_name(9), 0, session(9), KID, &run_of(&[0, 3].into()))
                .unwrap();
        }
    }
    assert!(noticed * 3 > offsets.len(), "{noticed} of {} noticed", offsets.len());
}

#[test]
fn a_flipped_bit_in_a_chunk_row_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    sample(directory.path());
    let connection = Connection::open(directory.path().join("index.db")).unwrap();
    connection
        .execute(
            "UPDATE chunk SET pack = pack + 1 WHERE id = ?1",
            [chunk_id(1001).as_bytes()],
        )
        .unwrap();
    drop(connection);
    let index = open(directory.path());
    assert!(index.find(&chunk_id(1000)).unwrap().is_some());
    assert!(matches!(index.find(&chunk_id(1001)), Err(IndexError::Damaged { .. })));
    drop(index);
    assert!(open(directory.path()).was_rebuilt().is_some());
}

#[test]
fn the_index_of_another_repository_is_moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    sample(directory.path());
    let index = LocalIndex::open(directory.path(), &RepoId([0x11; 16]), IndexShare::with_filter(FILTER)).unwrap();
    assert!(index.was_rebuilt().unwrap().exists());
    assert_eq!(index.find(&chunk_id(0)).unwrap(), None);
    assert!(!index.maybe(&chunk_id(1000)));
}

#[test]
fn what_is_not_a_file_system_for_it_leaves_a_temporary_one() {
    let index = LocalIndex::open_temporary(&REPO, IndexShare::DEFAULT).unwrap();
    let directory = index.path.parent().unwrap().to_owned();
    index
        .import_run(&run_name(0), 0, session(9), KID, &run_of(&[0].into()))
        .unwrap();
    assert!(index.find(&own_pack(0).records[0].id).unwrap().is_some());
    drop(index);
    assert!(!directory.exists());
}

#[test]
fn several_threads_and_two_handles_write_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let handles = [open(directory.path()), open(directory.path())];
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let index = &handles[thread as usize % 2];
            scope.spawn(move || {
                for round in 0..25 {
                    let base = 10_000 + thread * 1000 + round * 10;
                    let mut pack = own_pack(base);
                    pack.records
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, r)| r.id = chunk_id(base + i as u64));
                    pack.session = session(1);
                    index.add_pack(&pack).unwrap();
                    index.find(&chunk_id(base)).unwrap();
                }
            });
        }
    });
    for index in &handles {
        index
            .start_session(&session(1), b"machine", b"boot", 1, Timestamp(5))
            .unwrap();
        for thread in 0..4 {
            for round in 0..25 {
                let place = index
                    .find(&chunk_id(10_000 + thread * 1000 + round * 10))
                    .unwrap()
                    .unwrap();
                assert_eq!(place.pack, pack_id(10_000 + thread * 1000 + round * 10));
            }
        }
    }
    drop(handles);
    // Neither of the two filters was whole, so neither was kept as the truth.
    let index = open(directory.path());
    assert!((0..4).all(|thread| (0..25).all(|round| index.maybe(&chunk_id(10_000 + thread * 1000 + round * 10)))));
}

/// The other process of `two_processes_write_at_once`; does nothing on its own.
#[test]
fn child_process_writes() {
    let Ok(directory) = std::env::var("LARDER_TEST_INDEX") else {
        return;
    };
    let index = open(Path::new(&directory));
    for number in 0..40 {
        index
            .import_run(
                &format!("child-{number}"),
                0,
                session(9),
                KID,
                &run_of(&[100 + number].into()),
            )
            .unwrap();
    }
}

#[test]
fn two_processes_write_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "repo::index::tests::child_process_writes"])
        .env("LARDER_TEST_INDEX", directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let index = open(directory.path());
    for number in 0..40 {
        index
            .import_run(
                &format!("parent-{number}"),
                0,
                session(9),
                KID,
                &run_of(&[200 + number].into()),
            )
            .unwrap();
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(index.known_runs().unwrap().len(), 80);
    let mut handles = HashMap::new();
    index
        .packs(&mut |pack| assert_eq!(handles.insert(pack.pack, pack.handle), None))
        .unwrap();
    assert_eq!(handles.len(), 80);
    assert_eq!(handles.values().collect::<HashSet<_>>().len(), 80);
}

#[test]
fn filter_is_kept_rebuilt_and_grown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("filter.bin");
    let index = LocalIndex::open(directory.path(), &REPO, IndexShare::with_filter(8 << 20)).unwrap();
    let chunks: u32 = 900_000;
    let mut content = run_of(&[0].into());
    // Says nothing true about the number of its chunks.
    content.packs[0].blob_count = 4;
    content.deltas.clear();
    content.chunks = (0..u64::from(chunks))
        .map(|n| RunChunk {
            id: chunk_id(n),
            pack_ix: 0,
            offset: 64,
            stored_as: StoredAs::Data,
            stored_len: 50,
        })
        .collect();
    content.chunks.sort();
    let before = index.stats().unwrap().filter_bytes;
    index.import_run(&run_name(0), 0, session(9), KID, &content).unwrap();
    let stats = index.stats().unwrap();
    assert!(stats.filter_bytes > before && stats.filter_keys > 890_000, "{stats:?}");
    let all_there = |index: &LocalIndex| (0..u64::from(chunks)).step_by(101).all(|n| index.maybe(&chunk_id(n)));
    let false_positives = |index: &LocalIndex| (0..10_000).filter(|n| index.maybe(&chunk_id((1 << 40) + n))).count();
    assert!(all_there(&index) && false_positives(&index) < 300);
    drop(index);
    let saved = fs::read(&file).unwrap();
    assert!(all_there(
        &LocalIndex::open(directory.path(), &REPO, IndexShare::with_filter(8 << 20)).unwrap()
    ));
    assert_eq!(
        fs::read(&file).unwrap(),
        saved,
        "nothing has changed, nothing is written"
    );
    // One that is damaged, and one that is of an earlier state.
    let mut damaged = saved.clone();
    damaged[5000] ^= 0x40;
    for stale in [damaged, b"".to_vec(), saved] {
        let index = LocalIndex::open(directory.path(), &REPO, IndexShare::with_filter(8 << 20)).unwrap();
        let number = 1 + stale.len() as u8 % 7 + index.known_runs().unwrap().len() as u8 * 10;
        index
            .import_run(
                &run_name(number),
                0,
                session(9),
                KID,
                &run_of(&[300 + u64::from(number)].into()),
            )
            .unwrap();
        drop(index);
        fs::write(&file, stale).unwrap();
        let index = LocalIndex::open(directory.path(), &REPO, IndexShare::with_filter(8 << 20)).unwrap();
        assert!(all_there(&index) && false_positives(&index) < 300);
    }
    // The cap is kept, at the price of false positives.
    let index = LocalIndex::open(directory.path(), &REPO, IndexShare::with_filter(1 << 19)).unwrap();
    assert!(index.stats().unwrap().filter_bytes <= 1 << 19 && all_there(&index));
}

#[test]
fn tidy_forgets_what_is_gone_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let model = sample(directory.path());
    let index = open(directory.path());
    let count = |index: &LocalIndex| {
        let mut count = 0;
        index
            .chunks_in_id_order(&mut |_| {
                count += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        count
    };
    let before = count(&index);
    assert_eq!(index.tidy().unwrap(), 3);
    let gone: usize = (9..12).map(|pack| own_pack(pack).records.len()).sum();
    assert_eq!(count(&index), before - gone);
    assert_eq!(index.tidy().unwrap(), 0);
    assert!(!ask_everything(&index, &model));
    let mut states = BTreeMap::new();
    index
        .packs(&mut |pack| {
            states.insert(pack.pack, pack.state);
        })
        .unwrap();
    assert_eq!(states[&pack_id(0)], PackState::Live);
    assert_eq!(states[&pack_id(1)], PackState::Condemned);
    assert_eq!(states[&pack_id(13)], PackState::Mine);
    assert!(!states.contains_key(&pack_id(10)));
}

#[test]
fn walks_show_every_copy_in_order() {
    let directory = tempfile::tempdir().unwrap();
    sample(directory.path());
    let index = open(directory.path());
    let mut by_id = Vec::new();
    let mut by_pack = Vec::new();
    let _ = index.chunks_in_id_order(&mut |chunk| {
        by_id.push(chunk);
        // A caller may look things up in between.
        index.find(&chunk.id).unwrap();
        ControlFlow::Continue(())
    });
    let _ = index.chunks_in_pack_order(&mut |chunk| {
        by_pack.push(chunk);
        ControlFlow::Continue(())
    });
    assert!(by_id.is_sorted_by_key(|chunk| chunk.id));
    assert!(by_pack.is_sorted_by_key(|chunk| (chunk.pack, chunk.offset)));
    let expected: usize = (0..12).chain([13]).map(|pack| own_pack(pack).records.len()).sum();
    assert_eq!((by_id.len(), by_pack.len()), (expected + 3000, expected + 3000));
    let records = own_pack(4).records;
    let chunks = index.chunks_of_pack(&pack_id(4)).unwrap();
    assert_eq!(
        chunks
            .iter()
            .map(|chunk| (chunk.id, chunk.offset, chunk.stored_len))
            .collect::<Vec<_>>(),
        records
            .iter()
            .map(|record| (record.id, record.offset, record.stored_len))
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_run_that_contradicts_itself_changes_nothing() {
    let index = LocalIndex::open_temporary(&REPO, IndexShare::DEFAULT).unwrap();
    let good = run_of(&[0, 1].into());
    let mut bad = vec![good.clone(), good.clone(), good.clone(), good.clone()];
    bad[0].chunks[0].pack_ix = 2;
    bad[1].packs[0].slots = 1..9;
    bad[2].chunks[1].stored_len = u32::MAX;
    bad[3].deltas[0].pack_ix = u32::MAX;
    for run in bad {
        let failed = index.import_run("run", 0, session(9), KID, &run);
        assert!(matches!(failed, Err(IndexError::Inconsistent { .. })));
    }
    assert_eq!(index.stats().unwrap().packs_gone, 0);
    assert!(index.known_runs().unwrap().is_empty());
}

#[test]
fn outcomes_heads_sessions_and_the_ledger_are_remembered() {
    let directory = tempfile::tempdir().unwrap();
    sample(directory.path());
    let outcome = |number: u8, source: Option<SourceId>| KnownOutcome {
        session: session(number),
        kind: OutcomeKind::Commit,
        kid: KID,
        sequence: u64::MAX - u64::from(number),
        hash: ObjectHash([number; 32]),
        source,
        created: Timestamp(i64::from(number)),
        flags: 1 << 63,
        mark: Mark::None,
        start: Some(Timestamp(-1)),
        accepted: vec![(0, 3), (7, u32::MAX)],
    };
    let (first, second) = (outcome(1, Some(SourceId([3; 16]))), outcome(2, None));
    {
        let index = open(directory.path());
        index.put_outcome(&second, b"second").unwrap();
        index.put_outcome(&first, b"first").unwrap();
        let marks = [(session(2), Mark::Held), (session(77), Mark::Dropped)];
        index.set_marks(&HashMap::from(marks)).unwrap();
        index.raise_head(&KID, 9, &ObjectHash([9; 32])).unwrap();
        index.raise_head(&KID, 8, &ObjectHash([8; 32])).unwrap();
        index
            .start_session(&session(5), b"machine", b"boot", 77, Timestamp(1))
            .unwrap();
        index.set_next_run(&session(5), 3).unwrap();
        index
            .start_session(&session(6), b"machine", b"boot", 77, Timestamp(2))
            .unwrap();
        index.end_session(&session(6), SessionEnd::Superseded).unwrap();
        index.record_verified(&pack_id(0), 2, Timestamp(99), true).unwrap();
        index.record_verified(&pack_id(999), 2, Timestamp(99), true).unwrap();
    }
    let index = open(directory.path());
    assert_eq!(
        index.outcomes().unwrap(),
        [
            first.clone(),
            KnownOutcome {
                mark: Mark::Held,
                ..second
            }
        ]
    );
    assert_eq!(index.outcome_bytes(&session(2)).unwrap().unwrap(), b"second");
    index.set_marks(&HashMap::new()).unwrap();
    assert!(
        index
            .outcomes()
            .unwrap()
            .iter()
            .all(|outcome| outcome.mark == Mark::None)
    );
    // Kept once more (its bytes were damaged here): what is forgotten stays forgotten.
    index.set_marks(&HashMap::from([(session(1), Mark::Dropped)])).unwrap();
    index.put_outcome(&first, b"first").unwrap();
    assert_eq!(index.outcomes().unwrap()[0].mark, Mark::Dropped);
    index.set_marks(&HashMap::new()).unwrap();
    index.forget_outcomes(&[session(2)].into()).unwrap();
    assert_eq!(index.outcomes().unwrap(), [first]);
    assert_eq!(index.outcome_bytes(&session(2)).unwrap(), None);
    assert_eq!(index.head(&KID).unwrap(), Some((9, ObjectHash([9; 32]))));
    let open = index.open_sessions().unwrap();
    let expected = OpenSession {
        session: session(5),
        machine: b"machine".to_vec(),
        boot_id: b"boot".to_vec(),
        pid: 77,
        started: Timestamp(1),
        next_run: 3,
    };
    assert_eq!(open, [expected]);
    assert_eq!(index.sessions_with_packs().unwrap(), [session_of(13)]);
    let verified = Verified {
        depth: 2,
        at: Timestamp(99),
        sound: true,
    };
    assert_eq!(index.verified(&pack_id(0)).unwrap(), Some(verified));
    assert_eq!(index.verified(&pack_id(999)).unwrap(), None);
    assert_eq!(index.recall("config").unwrap().unwrap(), b"bytes");
    index.forget("config").unwrap();
    assert_eq!(index.recall("config").unwrap(), None);
    assert!(index.is_sound().unwrap());
}

/// `cargo test --release --no-default-features index::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "prints rates, which only mean something in a release build on a quiet machine"]
fn speed() {
    let resident = || -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let directory = tempfile::tempdir().unwrap();
    let index = LocalIndex::open(directory.path(), &REPO, IndexShare::with_filter(128 << 20)).unwrap();
    let mut runs = 0;
    for (runs_at_once, chunks_per_run) in [(1, 1_000_000u64), (8, 131_072), (1, 4_000_000)] {
        for _ in 0..runs_at_once {
            runs += 1;
            let packs: BTreeSet<u64> = (0..chunks_per_run / 64).map(|n| runs * 1_000_000 + n).collect();
            let mut content = run_of(&packs);
            content.deltas.clear();
            content.chunks = (0..chunks_per_run)
                .map(|n| RunChunk {
                    id: chunk_id(runs << 32 | n),
                    pack_ix: (n / 64) as u32,
                    offset: 64 + (n % 64) as u32 * 700_000,
                    stored_as: StoredAs::Data,
                    stored_len: 700_000,
                })
                .collect();
            content.chunks.sort_unstable();
            content.packs.iter_mut().for_each(|pack| pack.blob_count = 64);
            let start = std::time::Instant::now();
            index
                .import_run(&format!("run-{runs}"), 0, session(9), KID, &content)
                .unwrap();
            let rate = chunks_per_run as f64 / start.elapsed().as_secs_f64();
            drop(content);
            println!("import of {chunks_per_run}: {rate:.0} rows/s, RSS {} MiB", resident());
        }
    }
    let ids: Vec<ChunkId> = (0..200_000)
        .map(|n| chunk_id((runs << 32) | (n * 17 % 4_000_000)))
        .collect();
    for batch in [1024, 200_000] {
        let start = std::time::Instant::now();
        for ids in ids.chunks(batch) {
            assert!(index.find_many(ids).unwrap().iter().all(Option::is_some));
        }
        println!(
            "hits, {batch} at once: {:.0}/s",
            ids.len() as f64 / start.elapsed().as_secs_f64()
        );
    }
    let start = std::time::Instant::now();
    ids.iter()
        .take(50_000)
        .for_each(|id| assert!(index.find(id).unwrap().is_some()));
    println!("single hits: {:.0}/s", 50_000.0 / start.elapsed().as_secs_f64());
    let missing: Vec<ChunkId> = (0..100_000).map(|n| chunk_id(1 << 60 | n)).collect();
    let start = std::time::Instant::now();
    assert!(index.find_many(&missing).unwrap().iter().all(Option::is_none));
    println!("misses: {:.0}/s", missing.len() as f64 / start.elapsed().as_secs_f64());
    let start = std::time::Instant::now();
    let passed = missing.iter().filter(|id| index.maybe(id)).count();
    let nanoseconds = start.elapsed().as_nanos() / missing.len() as u128;
    println!("filter: {nanoseconds} ns, {passed} of {} pass", missing.len());
    let start = std::time::Instant::now();
    let mut rows = 0u64;
    index
        .chunks_in_pack_order(&mut |_| {
            rows += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    println!(
        "pack order: {:.0} rows/s, RSS {} MiB",
        rows as f64 / start.elapsed().as_secs_f64(),
        resident()
    );
    println!("{} bytes for each row", index.stats().unwrap().database_bytes / rows);
    drop(index);
    let start = std::time::Instant::now();
    drop(LocalIndex::open(directory.path(), &REPO, IndexShare::with_filter(128 << 20)).unwrap());
    println!("open with filter.bin: {:?}", start.elapsed());
    fs::remove_file(directory.path().join("filter.bin")).unwrap();
    let start = std::time::Instant::now();
    drop(LocalIndex::open(directory.path(), &REPO, IndexShare::with_filter(128 << 20)).unwrap());
    println!("open without: {:?} for {rows} rows", start.elapsed());
}

/// A pack that the store was seen to lack is no target of references, whatever runs come and go; it can still be tried.
#[test]
fn absent_packs_are_not_referred_to_until_they_are_back() {
    let directory = tempfile::tempdir().unwrap();
    let index = open(directory.path());
    let packs = BTreeSet::from([0, 1]);
    index
        .import_run("idx/0-a-0000", 0, session(1), KID, &run_of(&packs))
        .unwrap();
    let only_in_first = own_pack(0)
        .records
        .into_iter()
        .find(|record| own_pack(1).records.iter().all(|other| other.id != record.id))
        .unwrap();
    let state = |index: &LocalIndex| index.pack(&pack_id(0)).unwrap().unwrap().state;
    assert!(!index.has_absent().unwrap());
    index.mark_absent(&pack_id(0)).unwrap();
    drop(index);
    let index = open(directory.path());
    assert!(index.has_absent().unwrap());
    // Another run that describes the same pack does not bring it back.
    index
        .import_run("idx/1-b", 1, session(2), KID, &run_of(&BTreeSet::from([0])))
        .unwrap();
    index
        .retain_runs(&index.known_runs().unwrap(), &HashSet::from(["idx/1-b".to_owned()]))
        .unwrap();
    assert_eq!(state(&index), PackState::Absent);
    assert_eq!(index.find(&only_in_first.id).unwrap(), None);
    assert_eq!(index.find_many(&[only_in_first.id]).unwrap(), [None]);
    let copies = index.find_all(&only_in_first.id).unwrap();
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].pack, pack_id(0));
    index.mark_there(&pack_id(0)).unwrap();
    assert!(!index.has_absent().unwrap());
    assert_eq!(state(&index), PackState::Live);
    assert!(index.find(&only_in_first.id).unwrap().is_some());
    // Once no run describes it, it is gone, absent or not.
    index.mark_absent(&pack_id(0)).unwrap();
    index
        .retain_runs(&index.known_runs().unwrap(), &HashSet::new())
        .unwrap();
    assert_eq!(state(&index), PackState::Gone);
    index
        .import_run("idx/0-c-0000", 0, session(1), KID, &run_of(&packs))
        .unwrap();
    assert_eq!(state(&index), PackState::Live);
    // What is condemned stays so.
    index.mark_absent(&pack_id(0)).unwrap();
    index.add_condemned(&session(9), &KID, &[pack_id(0)], &[]).unwrap();
    index.mark_there(&pack_id(0)).unwrap();
    assert_eq!(state(&index), PackState::Condemned);
}

/// What the paths of a backup pay for each item: `cargo nextest run --run-ignored only --no-capture cost_of_a_question`.
#[test]
#[ignore = "measures, asserts nothing"]
fn cost_of_a_question() {
    let directory = tempfile::tempdir().unwrap();
    let index = open(directory.path());
    let filler = RunContent {
        chunks: (0..50_000)
            .map(|n| RunChunk {
                id: chunk_id(n),
                pack_ix: 0,
                offset: 64,
                stored_as: StoredAs::Data,
                stored_len: 99,
            })
            .collect(),
        ..run_of(&[20].into())
    };
    index.import_run(&run_name(0), 0, session(9), KID, &filler).unwrap();
    let measure = |what: &str, question: &dyn Fn(u64)| {
        let started = std::time::Instant::now();
        (0..50_000).for_each(question);
        eprintln!("{what}: {} ns", started.elapsed().as_nanos() / 50_000);
    };
    measure("whether anything is lost", &|_| assert!(!index.has_lost()));
    measure("the same, asked of the database", &|_| index.look_for_lost().unwrap());
    measure("whether a chunk is lost", &|n| {
        assert!(!index.is_lost(&chunk_id(n)).unwrap())
    });
    measure("where a chunk is", &|n| {
        assert!(index.find(&chunk_id(n)).unwrap().is_some())
    });
    let ids: Vec<ChunkId> = (0..50_000).map(chunk_id).collect();
    let started = std::time::Instant::now();
    assert!(index.find_many(&ids).unwrap().iter().all(Option::is_some));
    eprintln!(
        "where a chunk is, many at once: {} ns",
        started.elapsed().as_nanos() / 50_000
    );
}

#[test]
fn many_runs_at_once_come_to_the_same_as_one_after_the_other() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one_by_one, at_once) = (open(first.path()), open(second.path()));
    // Some describe the same packs, and several packs have the same chunks.
    let runs: Vec<(String, RunContent)> = (0..40u64)
        .map(|number| {
            (
                format!("idx/0-{number:032}-0000"),
                run_of(&(number..number + 1 + number % 3).collect()),
            )
        })
        .collect();
    at_once
        .import_run(&runs[7].0, 0, session_of(7), KeyId([1; 16]), &runs[7].1)
        .unwrap();
    let mut bulk = BulkImport::begin(&at_once).unwrap();
    for (number, (name, content)) in runs.iter().enumerate() {
        let session = session_of(number as u64);
        one_by_one
            .import_run(name, 0, session, KeyId([1; 16]), content)
            .unwrap();
        bulk.add(name, session, KeyId([1; 16]), content).unwrap();
    }
    let mut bad = runs[3].1.clone();
    bad.packs.pop();
    assert!(matches!(
        bulk.add("idx/0-bad-0000", session_of(99), KeyId([1; 16]), &bad),
        Err(IndexError::Inconsistent { .. })
    ));
    assert_eq!(
        at_once.known_runs().unwrap().len(),
        1,
        "none counts before its rows are there"
    );
    bulk.finish().unwrap();
    assert_eq!(at_once.known_runs().unwrap(), one_by_one.known_runs().unwrap());
    let all = |index: &LocalIndex| {
        let mut ids = BTreeSet::new();
        index
            .chunks_in_id_order(&mut |chunk| {
                ids.insert(chunk.id);
                ControlFlow::Continue(())
            })
            .unwrap();
        let mut found = Vec::new();
        for id in ids {
            assert!(index.maybe(&id));
            let mut copies: Vec<_> = index.find_all(&id).unwrap();
            copies.sort_by_key(|copy| (copy.pack, copy.offset));
            let bases: Vec<_> = copies
                .iter()
                .map(|copy| index.base_of(&id, &copy.pack).unwrap())
                .collect();
            found.push((id, copies, bases));
        }
        found
    };
    let expected = all(&one_by_one);
    assert!(expected.iter().any(|(_, copies, _)| copies.len() > 1), "several copies");
    assert_eq!(all(&at_once), expected);
    assert_eq!(
        at_once.stats().unwrap().packs_live,
        one_by_one.stats().unwrap().packs_live
    );
}
