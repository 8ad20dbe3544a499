//! Whether the packs that a session refers to by lookup are still at the store (format-spec chapter 16.2, ADR-0016).
//!
//! The index says what runs describe, and a store may have lost a pack since. A snapshot that refers to such a pack would be
//! damaged from its first day, while what it needs is still at hand. So every pack is confirmed before it is first referred to,
//! once in a session: by a request of its own while these are few, by a listing of all packs when they become many. Absence is
//! believed only from a request for the very object; listings may lag. When one pack is absent, all are looked for.

use super::error::{RepoError, store_error};
use super::index::{ChunkPlace, LocalIndex, PackInfo, PackState};
use super::open::{list_names, prefix, store_key};
use crate::edge::store::{Failure, Store, StoreKey};
use crate::pure::format::name::{ObjectName, PackKind};
use crate::pure::id::PackId;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// So many packs are asked for one by one, whatever the repository's size …
const ASKED_MIN: u64 = 8;
/// … and so many for each page that a listing would have: a page takes about as long as this many requests for one object.
const ASKED_FOR_PAGE: u64 = 4;
/// Names on a page of a listing.
const PAGE_NAMES: u64 = 1000;
/// With more packs than this nothing is listed only because it is faster: the names of so many take 40 MB of memory.
const LISTED_MAX: u64 = 500_000;

/// Asks for packs on behalf of one session; shared by its threads.
pub struct Presence {
    store: Arc<dyn Store>,
    index: Arc<LocalIndex>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    there: HashSet<PackId>,
    absent: HashMap<PackId, String>,
    /// Packs that a thread is asking for; others wait for its answer.
    asking: HashSet<PackId>,
    asked: u64,
    /// How many are asked for before all are listed; `None` until it matters.
    asked_max: Option<u64>,
    listing: bool,
    listed: bool,
}

impl Presence {
    /// Knows nothing yet.
    pub fn new(store: Arc<dyn Store>, index: Arc<LocalIndex>) -> Presence {
        Presence {
            store,
            index,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// Takes note of a pack that was seen or made.
    pub fn confirm(&self, pack: PackId) {
        self.state.lock().there.insert(pack);
    }

    /// Returns the packs that were found absent, in words.
    pub fn absent(&self) -> Vec<String> {
        let mut absent: Vec<String> = self.state.lock().absent.values().cloned().collect();
        absent.sort();
        absent
    }

    /// Whether any pack was found absent.
    pub fn has_absent(&self) -> bool {
        !self.state.lock().absent.is_empty()
    }

    /// Whether a pack is at the store with the size that runs state. One that is not is marked in the index, so that lookups
    /// do not find it any more. Blocks while the store is asked.
    ///
    /// # Errors
    /// When the store cannot be asked: then nothing is known.
    pub fn is_there(&self, place: &ChunkPlace) -> Result<bool, RepoError> {
        let mut state = self.state.lock();
        loop {
            if state.there.contains(&place.pack) {
                return Ok(true);
            }
            if state.absent.contains_key(&place.pack) {
                return Ok(false);
            }
            if state.listing || state.asking.contains(&place.pack) {
                self.changed.wait(&mut state);
                continue;
            }
            if !state.listed && self.is_listing_due(&mut state)? {
                self.look_for_all(&mut state)?;
                continue;
            }
            state.asking.insert(place.pack);
            state.asked += 1;
            let name = ObjectName::Pack(place.kind, place.pack, place.session);
            let answer = parking_lot::MutexGuard::unlocked(&mut state, || self.look_for(&name, place.pack_size));
            state.asking.remove(&place.pack);
            self.changed.notify_all();
            match answer? {
                None => {
                    state.there.insert(place.pack);
                }
                Some(what) => {
                    self.index.mark_absent(&place.pack)?;
                    state.absent.insert(place.pack, format!("{name}: {what}"));
                    // A store that has lost one pack may have lost others, which the parent snapshot may need.
                    if !state.listed && !state.listing {
                        self.look_for_all(&mut state)?;
                    }
                }
            }
        }
    }

    /// On a local store a listing looks at every file, so it is no faster than looking at those that are needed.
    fn is_listing_due(&self, state: &mut State) -> Result<bool, RepoError> {
        if state.asked < ASKED_MIN || self.store.is_local() {
            return Ok(false);
        }
        let asked_max = match state.asked_max {
            Some(max) => max,
            None => {
                let packs = self.index.stats()?.packs_live;
                // Data and metadata are listed apart.
                let pages = packs.div_ceil(PAGE_NAMES) + 1;
                if packs > LISTED_MAX {
                    u64::MAX
                } else {
                    (ASKED_FOR_PAGE * pages).max(ASKED_MIN)
                }
            }
        };
        state.asked_max = Some(asked_max);
        Ok(state.asked >= asked_max)
    }

    /// Lists all packs; others wait. Every pack that runs describe is there or absent afterwards.
    fn look_for_all(&self, state: &mut parking_lot::MutexGuard<'_, State>) -> Result<(), RepoError> {
        state.listing = true;
        let survey = parking_lot::MutexGuard::unlocked(state, || self.survey());
        state.listing = false;
        self.changed.notify_all();
        let (there, absent) = survey?;
        state.listed = true;
        state.there.extend(there);
        state.absent.extend(absent);
        Ok(())
    }

    fn survey(&self) -> Result<(Vec<PackId>, HashMap<PackId, String>), RepoError> {
        let mut sizes: HashMap<(PackKind, PackId), u64> = HashMap::new();
        for under in ["data/", "meta/"] {
            for (name, listed) in list_names(&*self.store, under)? {
                if let ObjectName::Pack(kind, pack, _) = name {
                    sizes.insert((kind, pack), listed.size);
                }
            }
        }
        let (mut there, mut missing) = (Vec::new(), Vec::<PackInfo>::new());
        self.index.packs(&mut |pack| {
            if pack.state == PackState::Live {
                if sizes.get(&(pack.kind, pack.pack)) == Some(&u64::from(pack.size)) {
                    there.push(pack.pack);
                } else {
                    missing.push(pack);
                }
            }
        })?;
        let mut absent = HashMap::new();
        for pack in missing {
            let name = ObjectName::Pack(pack.kind, pack.pack, pack.session);
            match self.look_for(&name, pack.size)? {
                None => there.push(pack.pack),
                Some(what) => {
                    self.index.mark_absent(&pack.pack)?;
                    absent.insert(pack.pack, format!("{name}: {what}"));
                }
            }
        }
        Ok((there, absent))
    }

    /// Asks for one object; says what is wrong with it, if anything.
    fn look_for(&self, name: &ObjectName, size: u32) -> Result<Option<String>, RepoError> {
        let key = store_key(name);
        let found = stored_size(&*self.store, &key)?;
        Ok(match found {
            Some(found) if found == u64::from(size) => None,
            Some(found) => Some(format!("it has {found} bytes instead of {size}")),
            None => Some("it is missing".to_owned()),
        })
    }
}

/// Returns the size of a pack at the store; `None` if it is not there. Who may write and list but not read packs is refused an answer
/// about the object, and can still list the one name.
///
/// # Errors
/// When the store cannot be asked: then nothing is known.
pub fn stored_size(store: &dyn Store, key: &StoreKey) -> Result<Option<u64>, RepoError> {
    match store.stat(key) {
        Ok(stat) => return Ok(Some(stat.size)),
        Err(error) if error.class == Failure::NotFound => return Ok(None),
        Err(error) if error.class == Failure::Denied => {}
        Err(error) => return Err(store_error("looking for a pack")(error)),
    }
    let mut size = None;
    store
        .list(&prefix(key.as_str()), &mut |listed| {
            if listed.key == *key {
                size = Some(listed.size);
            }
        })
        .map_err(store_error("looking for a pack"))?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::store::Created;
    use crate::edge::store::counting::CountingStore;
    use crate::edge::store::memory::MemoryStore;
    use crate::pure::crypto::Slot;
    use crate::pure::format::run::{RunChunk, RunContent, RunPack, StoredAs};
    use crate::pure::id::{ChunkId, KeyId, RepoId, SessionId};
    use bytes::Bytes;

    const SESSION: SessionId = SessionId([3; 16]);

    fn pack_id(number: u32) -> PackId {
        let mut id = [7; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        PackId(id)
    }

    fn chunk_id(number: u32) -> ChunkId {
        let mut id = [9; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        ChunkId(id)
    }

    struct Scene {
        _dir: tempfile::TempDir,
        memory: MemoryStore,
        store: Arc<CountingStore<MemoryStore>>,
        index: Arc<LocalIndex>,
    }

    /// A store and an index with `count` packs of one chunk each.
    fn scene(count: u32) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let index = LocalIndex::open(
            dir.path(),
            &RepoId([1; 16]),
            crate::pure::base::memory::IndexShare::with_filter(1 << 20),
        )
        .unwrap();
        let memory = MemoryStore::new();
        let mut content = RunContent {
            slots: vec![Slot([5; 88])],
            ..RunContent::default()
        };
        for number in 0..count {
            let name = ObjectName::Pack(PackKind::Data, pack_id(number), SESSION);
            let created = memory.create(&store_key(&name), Bytes::from_static(b"12345678"));
            assert_eq!(created.unwrap(), Created::New);
            content.packs.push(RunPack {
                pack: pack_id(number),
                session: SESSION,
                size: 8,
                blob_count: 1,
                kind: PackKind::Data,
                slots: 0..1,
                crc64nvme: 0,
                body_hash24: [0; 24],
            });
            content.chunks.push(RunChunk {
                id: chunk_id(number),
                pack_ix: number,
                offset: 0,
                stored_as: StoredAs::Data,
                stored_len: 8,
            });
        }
        index
            .import_run("idx/0-run", 0, SESSION, KeyId([2; 16]), &content)
            .unwrap();
        Scene {
            _dir: dir,
            store: Arc::new(CountingStore::new(memory.clone())),
            memory,
            index: Arc::new(index),
        }
    }

    impl Scene {
        fn presence(&self) -> Presence {
            Presence::new(self.store.clone(), self.index.clone())
        }

        fn place(&self, number: u32) -> ChunkPlace {
            self.index.find_all(&chunk_id(number)).unwrap().remove(0)
        }

        fn remove(&self, number: u32) {
            let name = ObjectName::Pack(PackKind::Data, pack_id(number), SESSION);
            self.memory.remove(&[store_key(&name)]).unwrap();
        }
    }

    #[test]
    fn each_pack_is_asked_for_once_however_many_threads_want_it() {
        let scene = scene(4);
        let presence = scene.presence();
        let places: Vec<ChunkPlace> = (0..4).map(|number| scene.place(number)).collect();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for place in &places {
                        assert!(presence.is_there(place).unwrap());
                    }
                });
            }
        });
        let counts = scene.store.counts();
        assert_eq!((counts.stats, counts.lists), (4, 0));
    }

    #[test]
    fn many_packs_are_listed_instead_of_asked_for_one_by_one() {
        let scene = scene(3000);
        let presence = scene.presence();
        for number in 0..3000 {
            assert!(presence.is_there(&scene.place(number)).unwrap());
        }
        let counts = scene.store.counts();
        // Three pages of data packs and one of metadata.
        assert_eq!((counts.stats, counts.lists), (16, 2));
    }

    #[test]
    fn one_absent_pack_is_reason_to_look_for_all() {
        let scene = scene(50);
        let places: Vec<ChunkPlace> = (0..50).map(|number| scene.place(number)).collect();
        scene.remove(5);
        scene.remove(40);
        let presence = scene.presence();
        assert!(presence.is_there(&places[0]).unwrap());
        assert!(!scene.index.has_absent().unwrap());
        assert!(!presence.is_there(&places[5]).unwrap());
        assert!(scene.index.has_absent().unwrap());
        assert_eq!(presence.absent().len(), 2);
        for number in 0..50 {
            let lost = number == 5 || number == 40;
            assert_eq!(presence.is_there(&places[number as usize]).unwrap(), !lost);
            assert_eq!(scene.index.find(&chunk_id(number)).unwrap().is_none(), lost);
            assert_eq!(scene.index.find_all(&chunk_id(number)).unwrap().len(), 1);
        }
    }
}
