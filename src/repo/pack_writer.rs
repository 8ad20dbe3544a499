//! Filling packs, verifying them, and making them durable (invariants I-2, I-4, I-9, I-12). Workers add sealed frames
//! from many threads; uploader threads seal, decode again, and upload full packs. The first repository error poisons
//! the writer: from then on every call fails, so nothing can be published.

use super::error::{RepoError, store_error};
use super::index::{ChunkPlace, IndexError, LocalIndex, OwnPack};
use super::open::store_key;
use super::presence::Presence;
use crate::edge::host;
use crate::edge::store::{Created, Store};
use crate::pure::base::memory::{META_PACKS_AT_ONCE, data_packs_at_once};
use crate::pure::compress::Compressor;
use crate::pure::crypto::{BlobKey, Domain, KeyRing, ObjectClass, Secret, Slot};
use crate::pure::format::blob::{self, BlobType, Codec, Opened, Opener, Padding};
use crate::pure::format::config::Config;
use crate::pure::format::name::{ObjectName, PackKind};
use crate::pure::format::pack::{PackBuilder, PackHeader, SealedPack};
use crate::pure::format::run::StoredAs;
use crate::pure::id::{ChunkId, PackId, SessionId};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Spread of the in-flight map over locks.
const SHARDS: usize = 16;
/// A pack never holds more blobs than this, so that its trailer stays readable with one further request.
const BLOBS_MAX: usize = 65_536;
/// A pack has one session key, in its first slot.
const SLOT: u16 = 0;
/// Ids of durable blobs that the local index could not take are kept in memory up to here (about 100 MiB); beyond that the
/// session stores a few things twice.
const KEPT_IDS_MAX: u64 = 2_000_000;

/// The two session keys and their slots (format-spec chapter on keys).
pub struct SessionKeys {
    pub data: (Slot, BlobKey),
    pub meta: (Slot, BlobKey),
    /// The meta session key itself, for the manifest frame.
    pub meta_secret: Secret,
}

impl SessionKeys {
    /// Draws two independent keys and wraps them.
    ///
    /// # Errors
    /// When this key holder may not write.
    pub fn draw(keys: &KeyRing) -> Result<SessionKeys, RepoError> {
        let wrap = |domain| {
            let secret = Secret::new(host::random());
            let slot = keys
                .wrap_session_key(domain, &secret, &host::random())
                .map_err(|error| super::error::object_error("making", "session keys")(error.into()))?;
            Ok::<_, RepoError>((slot, keys.blob_key(domain, &secret), secret))
        };
        let (data_slot, data_key, _) = wrap(Domain::Data)?;
        let (meta_slot, meta_key, meta_secret) = wrap(Domain::Meta)?;
        Ok(SessionKeys {
            data: (data_slot, data_key),
            meta: (meta_slot, meta_key),
            meta_secret,
        })
    }

    fn of(&self, kind: PackKind) -> &(Slot, BlobKey) {
        match kind {
            PackKind::Data => &self.data,
            PackKind::Meta => &self.meta,
        }
    }
}

/// Figures of a writer.
#[derive(Debug, Default)]
pub struct WriterCounts {
    /// Blobs written.
    pub chunks_new: AtomicU64,
    /// Blobs that were there already.
    pub chunks_reused: AtomicU64,
    /// Plaintext bytes of new blobs.
    pub bytes_new: AtomicU64,
    /// Bytes of packs that were uploaded.
    pub bytes_stored: AtomicU64,
    pub packs_uploaded: AtomicU64,
    /// Blobs that were stored as deltas.
    pub deltas: AtomicU64,
    /// Plaintext bytes of these.
    pub bytes_delta: AtomicU64,
}

/// Whether a blob has to be written by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody has it: the caller must seal it and [`PackWriter::add`] it.
    New,
    /// The repository has it, or another thread is writing it.
    Known,
}

/// A pack from its first blob until it is stored.
struct OpenPack {
    pack: PackBuilder,
    _place: Place,
}

/// Bounds how many packs there are at once. Whoever begins a pack waits until an older one has been stored.
struct Room {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One place in a [`Room`], given back when dropped.
struct Place(Arc<Room>);

impl Room {
    fn new(places: usize) -> Arc<Room> {
        Arc::new(Room {
            free: Mutex::new(places),
            freed: Condvar::new(),
        })
    }

    fn take(self: &Arc<Room>) -> Place {
        let mut free = self.free.lock();
        while *free == 0 {
            self.freed.wait(&mut free);
        }
        *free -= 1;
        Place(self.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify_one();
    }
}

/// Proof that every pack of a writer is durable and described. Only [`PackWriter::finish`] makes one.
#[derive(Debug)]
pub struct Durable {
    _private: (),
}

struct Shared {
    store: Arc<dyn Store>,
    index: Arc<LocalIndex>,
    keys: Arc<KeyRing>,
    session_keys: SessionKeys,
    session: SessionId,
    padding: Padding,
    epoch: u32,
    targets: [usize; 2],
    lanes: [Vec<Mutex<Option<OpenPack>>>; 2],
    /// How many packs may be in memory.
    room: [Arc<Room>; 2],
    in_flight: Vec<Mutex<HashSet<ChunkId>>>,
    buffers: [Mutex<Vec<Vec<u8>>>; 2],
    poisoned: AtomicBool,
    poison: Mutex<Option<RepoError>>,
    used: Mutex<HashSet<PackId>>,
    presence: Presence,
    /// Read while a pack is looked up and noted in `used`, written by whoever compares `used` with what is condemned.
    claims: RwLock<()>,
    /// The first error of the local index. It is a cache: what it cannot tell is stored again.
    index_trouble: Mutex<Option<IndexError>>,
    /// A lookup, or adding a pack, has failed; it is not tried again (each try may wait for half a minute).
    lookups_are_off: AtomicBool,
    adding_is_off: AtomicBool,
    kept_ids: AtomicU64,
    unlisted: Mutex<Vec<OwnPack>>,
    unlisted_records: AtomicU64,
    counts: Arc<WriterCounts>,
}

/// The writer of the session that is running now. A checkpoint ends one session and puts the next one's writer in its
/// place.
pub struct CurrentWriter(RwLock<Arc<PackWriter>>);

impl CurrentWriter {
    /// Begins with the writer of the first session.
    pub fn new(writer: Arc<PackWriter>) -> CurrentWriter {
        CurrentWriter(RwLock::new(writer))
    }

    /// Returns the writer. Hold it from the claim of a blob until the blob is added, so that no session ends in
    /// between.
    pub fn get(&self) -> RwLockReadGuard<'_, Arc<PackWriter>> {
        self.0.read()
    }

    /// Waits until nobody is adding, and keeps everybody from it.
    pub fn exclusively(&self) -> RwLockWriteGuard<'_, Arc<PackWriter>> {
        self.0.write()
    }
}

/// Writes the packs of one session.
pub struct PackWriter {
    shared: Arc<Shared>,
    queue: Mutex<Option<Sender<OpenPack>>>,
    uploaders: Mutex<Vec<JoinHandle<()>>>,
}

impl PackWriter {
    /// Starts the uploader threads (`uploads` packs at once). The figures are added to `counts`.
    ///
    /// # Errors
    /// When this key may not write.
    pub fn start(
        store: Arc<dyn Store>,
        index: Arc<LocalIndex>,
        keys: Arc<KeyRing>,
        config: &Config,
        session: SessionId,
        uploads: usize,
        counts: Arc<WriterCounts>,
    ) -> Result<PackWriter, RepoError> {
        let lanes = config.lanes.clamp(1, 4) as usize;
        let uploads = uploads.max(1);
        let make_lanes = |count| (0..count).map(|_| Mutex::new(None)).collect();
        let clamp = |bytes: u64| bytes.clamp(1 << 20, 1 << 30) as usize;
        let shared = Arc::new(Shared {
            session_keys: SessionKeys::draw(&keys)?,
            presence: Presence::new(store.clone(), index.clone()),
            store,
            index,
            keys,
            session,
            padding: config.padding,
            epoch: config.epoch,
            targets: [clamp(config.data_pack_bytes), clamp(config.meta_pack_bytes)],
            // Metadata blobs are few: one open pack is enough.
            lanes: [make_lanes(lanes), make_lanes(1)],
            room: [data_packs_at_once(lanes, uploads), META_PACKS_AT_ONCE].map(Room::new),
            in_flight: (0..SHARDS).map(|_| Mutex::new(HashSet::new())).collect(),
            buffers: Default::default(),
            poisoned: AtomicBool::new(false),
            poison: Mutex::new(None),
            used: Mutex::new(HashSet::new()),
            claims: RwLock::new(()),
            index_trouble: Mutex::new(None),
            lookups_are_off: AtomicBool::new(false),
            adding_is_off: AtomicBool::new(false),
            kept_ids: AtomicU64::new(0),
            unlisted: Mutex::new(Vec::new()),
            unlisted_records: AtomicU64::new(0),
            counts,
        });
        // The queue holds nothing: a full pack waits in the hands of the thread that filled it, which bounds memory.
        let (queue, packs) = bounded(0);
        let uploaders: Vec<JoinHandle<()>> = (0..uploads)
            .map(|_| {
                let shared = shared.clone();
                let packs: Receiver<OpenPack> = packs.clone();
                std::thread::Builder::new()
                    .name("upload".into())
                    .spawn(move || shared.upload_all(&packs))
                    .map_err(|source| RepoError::Local {
                        what: "starting an upload thread".into(),
                        source,
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(PackWriter {
            shared,
            queue: Mutex::new(Some(queue)),
            uploaders: Mutex::new(uploaders),
        })
    }

    /// Returns the session keys.
    pub fn session_keys(&self) -> &SessionKeys {
        &self.shared.session_keys
    }

    /// Returns the figures so far.
    pub fn counts(&self) -> &Arc<WriterCounts> {
        &self.shared.counts
    }

    /// Returns the packs that this session has referenced by lookup or by upload. A lookup that began before the call has
    /// been noted: whoever takes a condemnation in first and calls this then sees every use of what it condemns.
    pub fn used(&self) -> HashSet<PackId> {
        drop(self.shared.claims.write());
        self.shared.used.lock().clone()
    }

    /// Returns the packs that this session wanted to refer to, or looked for, and that the store does not have, in words.
    pub fn absent_packs(&self) -> Vec<String> {
        self.shared.presence.absent()
    }

    /// Whether there are any.
    pub fn met_absent_packs(&self) -> bool {
        self.shared.presence.has_absent()
    }

    /// Takes the first error of the local index, for a note. The session goes on without asking it.
    pub fn take_index_trouble(&self) -> Option<IndexError> {
        self.shared.index_trouble.lock().take()
    }

    /// From now on everything that this session has not stored itself is new.
    pub fn stop_lookups(&self) {
        self.shared.lookups_are_off.store(true, Ordering::Release);
    }

    /// Asks whether a blob is new. `New` obliges the caller to add it. A pack that another session wrote is looked for at the
    /// store before it is first referred to: what is in one that is absent counts as new.
    ///
    /// # Errors
    /// When the store fails, or the writer is poisoned.
    pub fn claim(&self, id: &ChunkId) -> Result<Claim, RepoError> {
        let shared = &*self.shared;
        shared.check_poison()?;
        if !shared.shard(id).lock().insert(*id) {
            shared.counts.chunks_reused.fetch_add(1, Ordering::Relaxed);
            return Ok(Claim::Known);
        }
        if shared.refers_to_stored(id)? {
            shared.shard(id).lock().remove(id);
            shared.counts.chunks_reused.fetch_add(1, Ordering::Relaxed);
            return Ok(Claim::Known);
        }
        Ok(Claim::New)
    }

    /// Returns what a delta that resembles the stored chunk `id` may be made against: the chunk itself if it has a full copy,
    /// else what its copy is a delta against, so that no delta is a base. From then on the session depends on the pack of
    /// that full copy. `None`: there is none that another session has stored and that is there.
    ///
    /// # Errors
    /// When the store fails, or the writer is poisoned.
    pub fn claim_base(&self, id: &ChunkId) -> Result<Option<ChunkId>, RepoError> {
        self.shared.check_poison()?;
        self.shared.base_for(id)
    }

    /// Begins the frame of a blob in `frame`. The caller appends the payload, coded as `codec` says, and calls [`Self::add`].
    pub fn begin(frame: &mut Vec<u8>, codec: Codec, raw_len: u32) {
        frame.clear();
        blob::begin_frame(frame, SLOT, codec, raw_len);
    }

    /// Begins the frame of a full copy and appends the payload, compressed if that makes it smaller.
    pub fn begin_full(frame: &mut Vec<u8>, compressor: &mut Compressor, raw: &[u8]) -> Codec {
        let raw_len = raw.len() as u32;
        PackWriter::begin(frame, Codec::Zstd, raw_len);
        if compressor.compress(raw, frame) {
            return Codec::Zstd;
        }
        PackWriter::begin(frame, Codec::Raw, raw_len);
        frame.extend_from_slice(raw);
        Codec::Raw
    }

    /// Seals a claimed blob and puts it into an open pack. `frame` was begun with `codec` and `raw_len` and holds the payload.
    /// Blocks while uploads are behind.
    ///
    /// # Errors
    /// When the writer is poisoned.
    pub fn add(
        &self,
        ty: BlobType,
        id: &ChunkId,
        codec: Codec,
        raw_len: u32,
        frame: &mut Vec<u8>,
    ) -> Result<(), RepoError> {
        let shared = &*self.shared;
        shared.check_poison()?;
        let kind = if ty == BlobType::Data {
            PackKind::Data
        } else {
            PackKind::Meta
        };
        let (_, key) = shared.session_keys.of(kind);
        blob::end_frame(frame, 0, key, shared.keys.repo(), ty, id, shared.padding);
        shared.counts.chunks_new.fetch_add(1, Ordering::Relaxed);
        shared.counts.bytes_new.fetch_add(u64::from(raw_len), Ordering::Relaxed);
        // Ids are outputs of a keyed hash, so any byte of one picks a lane at random.
        let lanes = &shared.lanes[kind as usize];
        let number = usize::from(id.0[31]) % lanes.len();
        let mut lane = lanes[number].lock();
        let is_full = |open: &mut OpenPack| {
            let OpenPack { pack, .. } = open;
            pack.len() + frame.len() > shared.targets[kind as usize] || pack.records().len() >= BLOBS_MAX
        };
        while let Some(full) = lane.take_if(is_full) {
            // Without the lane: others may begin the next pack meanwhile.
            drop(lane);
            self.send(full)?;
            lane = lanes[number].lock();
        }
        let OpenPack { pack, .. } = lane.get_or_insert_with(|| shared.new_pack(kind));
        let base = if let Codec::Delta(base) = codec {
            shared.counts.deltas.fetch_add(1, Ordering::Relaxed);
            shared
                .counts
                .bytes_delta
                .fetch_add(u64::from(raw_len), Ordering::Relaxed);
            Some(base)
        } else {
            None
        };
        pack.push(ty, *id, raw_len, base, frame);
        Ok(())
    }

    fn send(&self, pack: OpenPack) -> Result<(), RepoError> {
        let queue = self.queue.lock().clone().ok_or(RepoError::Poisoned)?;
        queue.send(pack).map_err(|_| RepoError::Poisoned)
    }

    /// Returns how many blobs wait to be listed in a run.
    pub fn unlisted_records(&self) -> u64 {
        self.shared.unlisted_records.load(Ordering::Relaxed)
    }

    /// Takes over a pack of an interrupted run that was seen to be durable, unless a delta in it has lost its base: returns
    /// whether it did.
    ///
    /// # Errors
    /// When the store fails; then it did not.
    pub fn adopt(&self, pack: OwnPack) -> Result<bool, RepoError> {
        for base in pack.records.iter().filter_map(|record| record.base) {
            if self.shared.base_for(&base)? != Some(base) {
                return Ok(false);
            }
        }
        self.shared.presence.confirm(pack.pack);
        self.shared.used.lock().insert(pack.pack);
        self.shared
            .unlisted_records
            .fetch_add(pack.records.len() as u64, Ordering::Relaxed);
        self.shared.unlisted.lock().push(pack);
        Ok(true)
    }

    /// Takes the durable packs that no run lists yet.
    pub fn take_unlisted(&self) -> Vec<OwnPack> {
        self.shared.unlisted_records.store(0, Ordering::Relaxed);
        std::mem::take(&mut *self.shared.unlisted.lock())
    }

    /// Uploads what is still open. Blocks until every pack is durable or the writer is poisoned.
    ///
    /// # Errors
    /// The first repository error of the session.
    pub fn flush(&self) -> Result<(), RepoError> {
        for kind in [PackKind::Data, PackKind::Meta] {
            for lane in &self.shared.lanes[kind as usize] {
                let pack = lane.lock().take();
                if let Some(pack) = pack.filter(|open| !open.pack.is_empty()) {
                    self.send(pack)?;
                }
            }
        }
        Ok(())
    }

    /// Uploads what is open, waits for all uploads, and proves it.
    ///
    /// # Errors
    /// The first repository error of the session.
    pub fn finish(&self) -> Result<Durable, RepoError> {
        let flushed = self.flush();
        self.join();
        if let Some(cause) = self.shared.poison.lock().take() {
            return Err(cause);
        }
        flushed?;
        self.shared.check_poison()?;
        Ok(Durable { _private: () })
    }

    fn join(&self) {
        *self.queue.lock() = None;
        for uploader in self.uploaders.lock().drain(..) {
            if uploader.join().is_err() {
                self.shared
                    .set_poison(RepoError::Internal("an upload thread panicked".into()));
            }
        }
    }

    /// Takes the first repository error of the session, if there was one.
    pub fn take_cause(&self) -> Option<RepoError> {
        self.shared.poison.lock().take()
    }

    /// Stops the session: nothing can be published after this. Returns the error that every call meets from now on; the first
    /// cause is kept ([`Self::take_cause`]).
    pub fn poison(&self, error: RepoError) -> RepoError {
        if !matches!(error, RepoError::Poisoned) {
            self.shared.set_poison(error);
        }
        RepoError::Poisoned
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        self.join();
    }
}

impl Shared {
    fn shard(&self, id: &ChunkId) -> &Mutex<HashSet<ChunkId>> {
        &self.in_flight[usize::from(id.0[30]) % SHARDS]
    }

    /// Looks for a copy that can be referred to, and notes the packs that the session then depends on.
    fn refers_to_stored(&self, id: &ChunkId) -> Result<bool, RepoError> {
        let found = self.refer(id, |shared| {
            Ok(shared.packs_of_stored(id)?.map(|(pack, base)| ((), [Some(pack), base])))
        })?;
        Ok(found.is_some())
    }

    /// Looks for what a delta may be made against where `id` is, and notes its pack.
    fn base_for(&self, id: &ChunkId) -> Result<Option<ChunkId>, RepoError> {
        self.refer(id, |shared| {
            Ok(shared.full_copy_for(id)?.map(|(base, pack)| (base, [Some(pack), None])))
        })
    }

    /// Asks the index, unless the filter knows better, and notes the packs of what is found. When the index cannot tell, it is
    /// not asked again, and nothing is found any more.
    fn refer<T>(
        &self,
        id: &ChunkId,
        find: impl FnOnce(&Shared) -> Result<Option<(T, [Option<PackId>; 2])>, RepoError>,
    ) -> Result<Option<T>, RepoError> {
        if !self.index.maybe(id) || self.lookups_are_off.load(Ordering::Acquire) {
            return Ok(None);
        }
        let _between = self.claims.read();
        match find(self) {
            Ok(Some((found, packs))) => {
                self.used.lock().extend(packs.into_iter().flatten());
                Ok(Some(found))
            }
            Ok(None) => Ok(None),
            Err(RepoError::Index(error)) => {
                self.lookups_are_off.store(true, Ordering::Release);
                self.index_trouble.lock().get_or_insert(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What a copy that is a delta is one against, and a full copy of that (format-spec chapter 15).
    fn base_of(&self, id: &ChunkId, place: &ChunkPlace) -> Result<Option<(ChunkId, ChunkPlace)>, RepoError> {
        let Some(base) = self.index.base_of(id, &place.pack)? else {
            return Ok(None);
        };
        let full = self.confirmed(&base)?.filter(|full| full.stored_as != StoredAs::Delta);
        Ok(full.map(|full| (base, full)))
    }

    /// The chunk, or what its copy is a delta against, and the pack of a full copy of it. Own packs do not count: when a run
    /// is taken up again, its packs must stand by themselves.
    fn full_copy_for(&self, id: &ChunkId) -> Result<Option<(ChunkId, PackId)>, RepoError> {
        let full = match self.confirmed(id)? {
            Some(place) if place.stored_as == StoredAs::Delta => self.base_of(id, &place)?,
            Some(place) => Some((*id, place)),
            None => None,
        };
        let of_others = full.filter(|(_, place)| place.session != self.session);
        Ok(of_others.map(|(base, place)| (base, place.pack)))
    }

    /// The pack of a copy, and that of its base if it is a delta: it is worth nothing without.
    fn packs_of_stored(&self, id: &ChunkId) -> Result<Option<(PackId, Option<PackId>)>, RepoError> {
        // A chunk that a quarantine declares lost is in no pack that is found here, and so uploaded again under the same id: old
        // snapshots heal.
        let Some(place) = self.confirmed(id)? else {
            return Ok(None);
        };
        if place.stored_as != StoredAs::Delta {
            return Ok(Some((place.pack, None)));
        }
        let base = self.base_of(id, &place)?;
        Ok(base.map(|(_, full)| (place.pack, Some(full.pack).filter(|_| !chaos!("base-is-not-used")))))
    }

    fn check_poison(&self) -> Result<(), RepoError> {
        if self.poisoned.load(Ordering::Acquire) {
            Err(RepoError::Poisoned)
        } else {
            Ok(())
        }
    }

    /// A copy whose pack is surely at the store. Looking for one that is not takes it out of the index, so that the next
    /// lookup finds another copy, or none.
    fn confirmed(&self, id: &ChunkId) -> Result<Option<ChunkPlace>, RepoError> {
        let mut refused = None;
        while let Some(place) = self.index.find(id)? {
            if place.session == self.session || chaos!("lost-packs-are-believed") || self.presence.is_there(&place)? {
                return Ok(Some(place));
            }
            if refused.replace(place.pack) == Some(place.pack) {
                break;
            }
        }
        Ok(None)
    }

    fn set_poison(&self, error: RepoError) {
        let mut poison = self.poison.lock();
        if chaos!("repository-errors-are-forgotten") {
            return;
        }
        if !self.poisoned.swap(true, Ordering::AcqRel) {
            *poison = Some(error);
        }
    }

    /// Begins a pack. Blocks while there is no room for one.
    fn new_pack(&self, kind: PackKind) -> OpenPack {
        let place = self.room[kind as usize].take();
        let header = PackHeader {
            kind,
            epoch: self.epoch,
            repo: *self.keys.repo(),
            pack: PackId(host::random()),
            session: self.session,
        };
        let buffer = self.buffers[kind as usize].lock().pop();
        let buffer = buffer.unwrap_or_else(|| PackBuilder::buffer_for(self.targets[kind as usize]));
        OpenPack {
            pack: PackBuilder::new(header, vec![self.session_keys.of(kind).0], buffer),
            _place: place,
        }
    }

    fn upload_all(&self, packs: &Receiver<OpenPack>) {
        let mut opener = Opener::new();
        for OpenPack { pack, _place } in packs {
            if self.poisoned.load(Ordering::Acquire) {
                continue;
            }
            if let Err(error) = self.upload(pack, &mut opener) {
                self.set_poison(error);
            }
        }
    }

    fn upload(&self, pack: PackBuilder, opener: &mut Opener) -> Result<(), RepoError> {
        let trailer_key = self
            .keys
            .object_key(self.epoch, ObjectClass::Trailer)
            .map_err(|error| super::error::object_error("sealing", "a pack trailer")(error.into()))?;
        let mut sealed = pack.seal(trailer_key);
        self.verify(&sealed, opener)?;
        let name = ObjectName::Pack(sealed.header.kind, sealed.header.pack, sealed.header.session);
        let body = Bytes::from(std::mem::take(&mut sealed.bytes));
        let size = body.len();
        match self
            .store
            .create(&store_key(&name), body.clone())
            .map_err(store_error("uploading a pack"))?
        {
            Created::New => {}
            Created::Exists => {
                return Err(RepoError::Internal(format!(
                    "the new pack name {name} was taken already"
                )));
            }
        }
        let own = describe(&sealed, size as u32);
        // Durable from here on, and listed in the next run, whatever becomes of the local index.
        let is_found = self.add_to_index(&own) && !self.lookups_are_off.load(Ordering::Acquire);
        if is_found || self.kept_ids.load(Ordering::Relaxed) > KEPT_IDS_MAX {
            // The index knows these blobs; they need not be remembered as being written.
            for record in &own.records {
                self.shard(&record.id).lock().remove(&record.id);
            }
        } else {
            self.kept_ids.fetch_add(own.records.len() as u64, Ordering::Relaxed);
        }
        self.used.lock().insert(own.pack);
        self.counts.bytes_stored.fetch_add(size as u64, Ordering::Relaxed);
        self.counts.packs_uploaded.fetch_add(1, Ordering::Relaxed);
        self.unlisted_records
            .fetch_add(own.records.len() as u64, Ordering::Relaxed);
        // A fresh buffer costs more in page faults than hashing it: use it again.
        if let Ok(bytes) = body.try_into_mut() {
            self.buffers[own.kind as usize].lock().push(bytes.into());
        }
        self.unlisted.lock().push(own);
        Ok(())
    }

    fn add_to_index(&self, own: &OwnPack) -> bool {
        if self.adding_is_off.load(Ordering::Acquire) {
            return false;
        }
        self.index
            .add_pack(own)
            .map_err(|error| {
                self.adding_is_off.store(true, Ordering::Release);
                self.index_trouble.lock().get_or_insert(error);
            })
            .is_ok()
    }

    /// Decodes every frame of the finished buffer: what is uploaded is what will be read (I-9).
    fn verify(&self, sealed: &SealedPack, opener: &mut Opener) -> Result<(), RepoError> {
        if chaos!("packs-are-not-verified") {
            return Ok(());
        }
        let (_, key) = self.session_keys.of(sealed.header.kind);
        let mut decoded = Vec::new();
        for record in &sealed.records {
            let start = record.offset as usize;
            let frame = &sealed.bytes[start..start + record.stored_len as usize];
            let opened = blob::verify_frame(frame, key, &self.keys, record.ty, &record.id, opener, &mut decoded)
                .map_err(|source| RepoError::PackDidNotVerify { source })?;
            // A delta is verified by the encoder, which still holds the base.
            debug_assert!(matches!(opened, Opened::Done) || record.base.is_some());
        }
        Ok(())
    }
}

/// What the index keeps about a pack.
fn describe(sealed: &SealedPack, size: u32) -> OwnPack {
    let mut body_hash24 = [0; 24];
    body_hash24.copy_from_slice(&sealed.body_hash[..24]);
    OwnPack {
        pack: sealed.header.pack,
        session: sealed.header.session,
        kind: sealed.header.kind,
        size,
        slots: sealed.slots.clone(),
        crc64nvme: sealed.crc64nvme,
        body_hash24,
        records: sealed.records.clone(),
    }
}
