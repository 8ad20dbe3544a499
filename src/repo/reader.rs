//! Reading blobs: find a copy, fetch its bytes, open, verify; on damage try the next copy, and read again before believing it
//! (invariants I-8 and I-10). Restore, check and every look at a snapshot come through here.

use super::again::READS_BEFORE_DAMAGE;
use super::error::{RepoError, object_error, store_error};
use super::index::ChunkPlace;
use super::locate::Locate;
use super::open::{Repo, store_key};
use super::trailers::Trailers;
use super::windows::Windows;
use crate::edge::store::Part;
use crate::pure::crypto::{BlobKey, Domain, Slot};
use crate::pure::format::blob::{self, BlobType, Codec, FRAME_OVERHEAD, Opened, Opener, STORED_BYTES_MAX};
use crate::pure::format::manifest::Hint;
use crate::pure::format::name::{ObjectName, PackKind};
use crate::pure::format::pack::HEADER_LEN;
use crate::pure::format::run::StoredAs;
use crate::pure::id::{ChunkId, PackId, SessionId};
use crate::pure::tree::list::ListSource;
use crate::pure::tree::walk::NodeSource;
use bytes::Bytes;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Reads from a remote store are aligned to this, so that chunk lengths do not show on the wire (format-spec chapter 11).
const ALIGN: u64 = 256 << 10;

/// Reads and verifies blobs; shared by threads.
pub struct BlobReader<'r> {
    repo: &'r Repo,
    locator: Box<dyn Locate + 'r>,
    keys: Mutex<HashMap<Slot, Arc<BlobKey>>>,
    /// Aligned windows of packs, by pack and number.
    windows: Windows,
    trailers: Mutex<Option<Arc<Trailers>>>,
    hints: HashMap<ChunkId, Hint>,
}

/// Returns the store name of the pack that holds a copy.
pub fn pack_name(kind: PackKind, pack: PackId, session: SessionId) -> ObjectName {
    ObjectName::Pack(kind, pack, session)
}

impl<'r> BlobReader<'r> {
    /// Reads through `locator`.
    pub fn new(repo: &'r Repo, locator: Box<dyn Locate + 'r>) -> BlobReader<'r> {
        BlobReader {
            repo,
            locator,
            keys: Mutex::new(HashMap::new()),
            windows: Windows::new(),
            trailers: Mutex::new(None),
            hints: HashMap::new(),
        }
    }

    /// Takes over a manifest's hints about where inner nodes lie; those that cannot be a place of a frame are ignored.
    pub fn with_hints(mut self, hints: &[Hint]) -> BlobReader<'r> {
        let possible = hints.iter().filter(|hint| is_possible(hint));
        self.hints = possible.map(|hint| (hint.node, hint.clone())).collect();
        self
    }

    /// Returns the repository.
    pub fn repo(&self) -> &'r Repo {
        self.repo
    }

    /// Returns the best known copy of each chunk, in the order of `ids`. Where that takes requests, several are made at once.
    ///
    /// # Errors
    /// For each chunk by itself; [`RepoError::UnknownChunk`] when there is none.
    pub fn first_copies(&self, ids: &[ChunkId]) -> Vec<Result<ChunkPlace, RepoError>> {
        const AT_ONCE: usize = 8;
        let mut order: Vec<usize> = (0..ids.len()).collect();
        // Neighbours lie in one block of a run.
        order.sort_unstable_by_key(|&index| ids[index]);
        let share = ids.len().div_ceil(AT_ONCE).max(16);
        let mut places: Vec<Result<ChunkPlace, RepoError>> = ids
            .iter()
            .map(|_| Err(RepoError::Internal("a searching thread panicked".into())))
            .collect();
        std::thread::scope(|scope| {
            let find = |part: &[usize]| -> Vec<(usize, Result<ChunkPlace, RepoError>)> {
                part.iter()
                    .map(|&index| (index, self.first_copy(&ids[index])))
                    .collect()
            };
            let handles: Vec<_> = order
                .chunks(share)
                .map(|part| scope.spawn(move || find(part)))
                .collect();
            for (index, place) in handles.into_iter().flat_map(|handle| handle.join().unwrap_or_default()) {
                places[index] = place;
            }
        });
        places
    }

    fn first_copy(&self, id: &ChunkId) -> Result<ChunkPlace, RepoError> {
        let mut found = None;
        let searched = self.each_copy(id, &mut |place| {
            found = Some(place);
            ControlFlow::Break(())
        });
        found.ok_or_else(|| searched.err().unwrap_or(RepoError::UnknownChunk(*id)))
    }

    /// Shows the copies of a chunk to `each` until it breaks: those that the locator knows, and then, because the index may
    /// have been lost in part or as a whole, those of packs that it does not list.
    fn each_copy(&self, id: &ChunkId, each: &mut dyn FnMut(ChunkPlace) -> ControlFlow<()>) -> Result<(), RepoError> {
        let is_over = Cell::new(false);
        let mut each = |place| {
            let flow = each(place);
            is_over.set(flow.is_break());
            flow
        };
        let searched = self.locator.copies(self.repo, id, &mut each);
        // A store that cannot be reached would only be waited for once more.
        if !is_over.get() && !searched.as_ref().is_err_and(RepoError::is_outage) {
            self.trailers()?.copies(id, each);
        }
        searched
    }

    /// What packs say that the index does not list. Read once, and only when a chunk was in no other place.
    fn trailers(&self) -> Result<Arc<Trailers>, RepoError> {
        let mut trailers = self.trailers.lock();
        if let Some(trailers) = &*trailers {
            return Ok(trailers.clone());
        }
        let read = Arc::new(Trailers::read(self.repo)?);
        *trailers = Some(read.clone());
        Ok(read)
    }

    /// Looks at the packs anew when a chunk is in no place that the index knows: others may have written some since.
    pub fn forget_trailers(&self) {
        *self.trailers.lock() = None;
    }

    /// Shows the copies of a chunk to `read` until one of them does.
    fn read_any_copy(
        &self,
        id: &ChunkId,
        mut read: impl FnMut(&ChunkPlace) -> Result<(), RepoError>,
    ) -> Result<(), RepoError> {
        let mut done = false;
        let mut trouble: Option<RepoError> = None;
        // A copy that could not be asked for may be whole: as long as there is one, nothing is damaged.
        let weigh = |trouble: &mut Option<RepoError>, error: RepoError| match trouble {
            Some(kept) if !kept.is_damage() || error.is_damage() => {}
            _ => *trouble = Some(error),
        };
        let searched = self.each_copy(id, &mut |place| match read(&place) {
            Ok(()) => {
                done = true;
                ControlFlow::Break(())
            }
            Err(error) => {
                let is_outage = error.is_outage();
                weigh(&mut trouble, error);
                // The other copies lie in the same store.
                if is_outage {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            }
        });
        if done {
            return Ok(());
        }
        if let Err(error) = searched {
            weigh(&mut trouble, error);
        }
        Err(trouble.unwrap_or(RepoError::UnknownChunk(*id)))
    }

    /// Returns the blob key that the frame's slot wraps.
    ///
    /// # Errors
    /// When the frame names a slot that the pack does not have, or it does not open.
    pub fn blob_key(&self, place: &ChunkPlace, frame: &[u8]) -> Result<Arc<BlobKey>, RepoError> {
        let name = pack_name(place.kind, place.pack, place.session);
        let index = blob::slot_index(frame).map_err(object_error("opening a chunk of", &name))?;
        let slot = place.slots.get(usize::from(index)).ok_or_else(|| RepoError::Missing {
            object: name.to_string(),
            why: "a chunk names a key slot that the pack does not have".into(),
        })?;
        if let Some(key) = self.keys.lock().get(slot) {
            return Ok(key.clone());
        }
        let (_, key) = self
            .repo
            .keys
            .open_slot(slot)
            .map_err(|error| object_error("opening", &name)(error.into()))?;
        let key = Arc::new(key);
        self.keys.lock().insert(*slot, key.clone());
        Ok(key)
    }

    /// Fetches the bytes of one frame.
    ///
    /// # Errors
    /// When the store does not give them.
    pub fn fetch_frame(&self, place: &ChunkPlace) -> Result<Bytes, RepoError> {
        let name = store_key(&pack_name(place.kind, place.pack, place.session));
        let start = u64::from(place.offset);
        let end = start + u64::from(place.stored_len);
        if self.repo.store.is_local() {
            let mut frame = vec![0; place.stored_len as usize];
            self.repo
                .store
                .read_into(&name, start, &mut frame)
                .map_err(store_error("reading a chunk"))?;
            return Ok(Bytes::from(frame));
        }
        match self.fetch_aligned(place, start, end) {
            // What has lost its end may have the frame yet.
            Err(error) if error.is_absence() => self
                .repo
                .store
                .read(&name, Part::Range(start..end))
                .map_err(store_error("reading a chunk")),
            fetched => fetched,
        }
    }

    fn fetch_aligned(&self, place: &ChunkPlace, start: u64, end: u64) -> Result<Bytes, RepoError> {
        let name = store_key(&pack_name(place.kind, place.pack, place.session));
        let first = start / ALIGN;
        let last = (end - 1) / ALIGN;
        if first == last {
            let window = self.window(place, first)?;
            let from = (start - first * ALIGN) as usize;
            return Self::slice(&window, from..from + place.stored_len as usize, &name.to_string());
        }
        let from = first * ALIGN;
        let to = ((last + 1) * ALIGN).min(u64::from(place.pack_size));
        if to < end {
            return Err(RepoError::Missing {
                object: name.to_string(),
                why: "it is shorter than its index says".into(),
            });
        }
        let bytes = self
            .repo
            .store
            .read(&name, Part::Range(from..to))
            .map_err(store_error("reading a chunk"))?;
        Self::slice(
            &bytes,
            (start - from) as usize..(end - from) as usize,
            &name.to_string(),
        )
    }

    /// Reads a range of a pack into `buffer`, and returns where in the buffer it begins.
    ///
    /// # Errors
    /// When the store does not give it.
    pub fn fetch_span(
        &self,
        place: &ChunkPlace,
        range: std::ops::Range<u64>,
        buffer: &mut Vec<u8>,
    ) -> Result<usize, RepoError> {
        let name = store_key(&pack_name(place.kind, place.pack, place.session));
        let length = (range.end - range.start) as usize;
        if self.repo.store.is_local() {
            buffer.resize(length, 0);
            return self
                .repo
                .store
                .read_into(&name, range.start, buffer)
                .map(|()| 0)
                .map_err(store_error("reading chunks"));
        }
        let from = range.start / ALIGN * ALIGN;
        let to = range
            .end
            .div_ceil(ALIGN)
            .saturating_mul(ALIGN)
            .min(u64::from(place.pack_size))
            .max(range.end);
        let bytes = self
            .repo
            .store
            .read(&name, Part::Range(from..to))
            .map_err(store_error("reading chunks"))?;
        let skip = (range.start - from) as usize;
        Self::slice(&bytes, skip..skip + length, &name.to_string())?;
        // Nobody else has these bytes, so they are not copied.
        *buffer = bytes.into();
        Ok(skip)
    }

    fn slice(bytes: &Bytes, range: std::ops::Range<usize>, object: &str) -> Result<Bytes, RepoError> {
        if range.end > bytes.len() {
            return Err(RepoError::Missing {
                object: object.to_owned(),
                why: "it is shorter than its index says".into(),
            });
        }
        Ok(bytes.slice(range))
    }

    fn window(&self, place: &ChunkPlace, number: u64) -> Result<Bytes, RepoError> {
        self.windows.get((place.pack, number), || {
            let name = store_key(&pack_name(place.kind, place.pack, place.session));
            let from = number * ALIGN;
            let to = (from + ALIGN).min(u64::from(place.pack_size));
            self.repo
                .store
                .read(&name, Part::Range(from..to))
                .map_err(store_error("reading a chunk"))
        })
    }

    /// What did not open is read again, and nothing else.
    fn forget_windows(&self, place: &ChunkPlace) {
        let start = u64::from(place.offset);
        let end = start + u64::from(place.stored_len);
        self.windows
            .forget((start / ALIGN..=(end - 1) / ALIGN).map(|number| (place.pack, number)));
    }

    /// Reads a blob into `out` and verifies it. Tries every copy, each several times before it counts as damaged.
    ///
    /// # Errors
    /// When no copy opens: what is wrong with the first one, unless another one could not be asked for.
    pub fn read(&self, ty: BlobType, id: &ChunkId, opener: &mut Opener, out: &mut Vec<u8>) -> Result<(), RepoError> {
        // Without the key there is no use in asking the store, which may refuse it too.
        match ty {
            BlobType::Data => self.repo.require_reading(Domain::Data, "read the contents of files")?,
            _ => self.repo.require_reading(Domain::Meta, "read names of files")?,
        }
        if let Some(hint) = self.hints.get(id)
            && self.read_hinted(ty, hint, opener, out)
        {
            return Ok(());
        }
        self.read_any_copy(id, |place| self.read_copy(ty, id, place, opener, out))
    }

    /// A hint is advice: when it does not lead to the node, the index is asked.
    fn read_hinted(&self, ty: BlobType, hint: &Hint, opener: &mut Opener, out: &mut Vec<u8>) -> bool {
        let slots: Arc<[Slot]> = [hint.slot].into();
        let place = ChunkPlace {
            pack: hint.pack,
            session: hint.session,
            kind: PackKind::Meta,
            offset: hint.offset,
            stored_len: hint.len,
            stored_as: StoredAs::Node,
            slots,
            pack_size: hint.pack_size,
        };
        let Ok(frame) = self.fetch_frame(&place) else {
            return false;
        };
        self.open(ty, &hint.node, &place, &frame, opener, out).is_ok()
    }

    /// Reads one copy. Transient damage (a bad read) is told from lasting damage by reading again.
    ///
    /// # Errors
    /// When the copy cannot be fetched, or does not open.
    pub fn read_copy(
        &self,
        ty: BlobType,
        id: &ChunkId,
        place: &ChunkPlace,
        opener: &mut Opener,
        out: &mut Vec<u8>,
    ) -> Result<(), RepoError> {
        self.fetch_sound(ty, id, place, opener, out).map(drop)
    }

    /// As [`Self::read_copy`]; returns the frame that was opened.
    fn fetch_sound(
        &self,
        ty: BlobType,
        id: &ChunkId,
        place: &ChunkPlace,
        opener: &mut Opener,
        out: &mut Vec<u8>,
    ) -> Result<Bytes, RepoError> {
        let mut attempt = 1;
        loop {
            let frame = self.fetch_frame(place)?;
            match self.open(ty, id, place, &frame, opener, out) {
                Ok(()) => return Ok(frame),
                Err(error) if attempt == READS_BEFORE_DAMAGE => return Err(error),
                Err(_) => {
                    attempt += 1;
                    self.forget_windows(place);
                }
            }
        }
    }

    /// Opens a frame that has been fetched, following a delta to its base.
    ///
    /// # Errors
    /// When the frame does not open or its content does not match the id.
    pub fn open(
        &self,
        ty: BlobType,
        id: &ChunkId,
        place: &ChunkPlace,
        frame: &[u8],
        opener: &mut Opener,
        out: &mut Vec<u8>,
    ) -> Result<(), RepoError> {
        let key = self.blob_key(place, frame)?;
        let name = pack_name(place.kind, place.pack, place.session);
        let damaged = || object_error("opening a chunk of", &name);
        let opened = blob::open_frame(frame, &key, &self.repo.keys, ty, id, opener, out).map_err(damaged())?;
        match &opened {
            Opened::Done => Ok(()),
            Opened::NeedsBase { base, .. } => {
                let mut plain = std::mem::take(&mut opener.base);
                let finish = |plain: &[u8], opener: &mut Opener, out: &mut Vec<u8>| {
                    blob::finish_delta(&opened, plain, &self.repo.keys, id, opener, out).map_err(damaged())
                };
                // To hash the base as well would take as long as to hash the result, which shows whether the base was right. Whose fault
                // it is matters only when it was not.
                let quick = self.decode_base(base, opener, &mut plain);
                let finished = match quick.and_then(|()| finish(&plain, opener, out)) {
                    Err(error) if !error.is_outage() => self
                        .read_base(base, opener, &mut plain)
                        .and_then(|()| finish(&plain, opener, out)),
                    done => done,
                };
                opener.base = plain;
                finished
            }
        }
    }

    /// Decodes the best known copy of a base without verifying it.
    fn decode_base(&self, base: &ChunkId, opener: &mut Opener, plain: &mut Vec<u8>) -> Result<(), RepoError> {
        let place = self.first_copy(base)?;
        let frame = self.fetch_frame(&place)?;
        let key = self.blob_key(&place, &frame)?;
        let name = pack_name(place.kind, place.pack, place.session);
        blob::decode_base(&frame, &key, &self.repo.keys, base, opener, plain)
            .map_err(object_error("opening a chunk of", &name))
    }

    /// Reads one copy, verifies it, and begins another frame with what is in it, coded as it is.
    ///
    /// # Errors
    /// As [`Self::read_copy`].
    pub fn reopen_copy(
        &self,
        ty: BlobType,
        id: &ChunkId,
        place: &ChunkPlace,
        opener: &mut Opener,
        out: &mut Vec<u8>,
    ) -> Result<(Codec, u32), RepoError> {
        let frame = self.fetch_sound(ty, id, place, opener, out)?;
        self.reopen_sound(ty, id, place, &frame, opener, out)
    }

    /// As [`Self::reopen_copy`], of a frame that has been fetched.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn reopen(
        &self,
        ty: BlobType,
        id: &ChunkId,
        place: &ChunkPlace,
        frame: &[u8],
        opener: &mut Opener,
        out: &mut Vec<u8>,
    ) -> Result<(Codec, u32), RepoError> {
        self.open(ty, id, place, frame, opener, out)?;
        self.reopen_sound(ty, id, place, frame, opener, out)
    }

    fn reopen_sound(
        &self,
        ty: BlobType,
        id: &ChunkId,
        place: &ChunkPlace,
        frame: &[u8],
        opener: &mut Opener,
        out: &mut Vec<u8>,
    ) -> Result<(Codec, u32), RepoError> {
        let key = self.blob_key(place, frame)?;
        let name = pack_name(place.kind, place.pack, place.session);
        let repo = self.repo.keys.repo();
        blob::reopen_frame(frame, &key, repo, 0, ty, id, &mut opener.scratch, out)
            .map_err(object_error("opening a chunk of", &name))
    }

    /// A base is never itself a delta (depth one), so this does not recurse further.
    fn read_base(&self, base: &ChunkId, opener: &mut Opener, plain: &mut Vec<u8>) -> Result<(), RepoError> {
        self.read_any_copy(base, |place| {
            if place.stored_as == StoredAs::Delta {
                return Err(RepoError::UnknownChunk(*base));
            }
            self.read_copy(BlobType::Data, base, place, opener, plain)
        })
    }
}

/// Whether a frame can lie where a hint says. Whoever made the snapshot chose these numbers.
fn is_possible(hint: &Hint) -> bool {
    let end = u64::from(hint.offset) + u64::from(hint.len);
    hint.offset as usize >= HEADER_LEN
        && (FRAME_OVERHEAD + 1..=STORED_BYTES_MAX).contains(&(hint.len as usize))
        && end <= u64::from(hint.pack_size)
}

/// Nodes kept in memory by one tree reader.
const NODES_MAX: usize = 256;

/// Reads tree and list nodes, through the sealed node cache of this machine.
pub struct TreeReader<'a, 'r> {
    reader: &'a BlobReader<'r>,
    opener: Opener,
    recent: HashMap<ChunkId, Arc<[u8]>>,
    /// Whether nodes come from (and go to) the local cache. `check` reads the store itself.
    cached: bool,
    fresh: Vec<(ChunkId, Vec<u8>)>,
}

impl<'a, 'r> TreeReader<'a, 'r> {
    /// Reads through the node cache.
    pub fn new(reader: &'a BlobReader<'r>) -> TreeReader<'a, 'r> {
        TreeReader {
            reader,
            opener: Opener::new(),
            recent: HashMap::new(),
            cached: true,
            fresh: Vec::new(),
        }
    }

    /// Reads every node from the store.
    pub fn uncached(reader: &'a BlobReader<'r>) -> TreeReader<'a, 'r> {
        let mut tree = TreeReader::new(reader);
        tree.cached = false;
        tree
    }

    /// Returns the reader underneath.
    pub fn blobs(&self) -> &'a BlobReader<'r> {
        self.reader
    }

    fn load(&mut self, ty: BlobType, id: &ChunkId) -> Result<Arc<[u8]>, RepoError> {
        if let Some(node) = self.recent.get(id) {
            return Ok(node.clone());
        }
        let repo = self.reader.repo();
        if self.cached
            && let Some(bytes) = repo.nodes.get(id)
            && repo.keys.meta_id(&bytes).is_ok_and(|found| found == *id)
        {
            return Ok(self.keep(id, bytes.into()));
        }
        let mut out = Vec::new();
        self.reader.read(ty, id, &mut self.opener, &mut out)?;
        if self.cached {
            self.fresh.push((*id, out.clone()));
            if self.fresh.len() >= 64 {
                self.save();
            }
        }
        Ok(self.keep(id, out.into()))
    }

    /// The cache only saves time; losing these nodes costs reading them again.
    fn save(&mut self) {
        let nodes = self.fresh.iter().map(|(id, node)| (id, node.as_slice()));
        let _ = self.reader.repo().nodes.put_many(nodes);
        self.fresh.clear();
    }

    fn keep(&mut self, id: &ChunkId, node: Arc<[u8]>) -> Arc<[u8]> {
        if self.recent.len() >= NODES_MAX {
            self.recent.clear();
        }
        self.recent.insert(*id, node.clone());
        node
    }
}

impl Drop for TreeReader<'_, '_> {
    fn drop(&mut self) {
        if !self.fresh.is_empty() {
            self.save();
        }
    }
}

impl NodeSource for TreeReader<'_, '_> {
    type Error = RepoError;
    fn node(&mut self, id: &ChunkId) -> Result<Arc<[u8]>, RepoError> {
        self.load(BlobType::Node, id)
    }
}

impl ListSource for TreeReader<'_, '_> {
    type Error = RepoError;
    fn list_node(&mut self, id: &ChunkId) -> Result<Vec<u8>, RepoError> {
        Ok(self.load(BlobType::List, id)?.to_vec())
    }
}

impl From<crate::pure::format::FormatError> for RepoError {
    fn from(source: crate::pure::format::FormatError) -> RepoError {
        RepoError::Object {
            doing: "reading",
            object: "a tree node".into(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_that_cannot_be_a_place_are_ignored() {
        let hint = |offset, len, pack_size| Hint {
            pack: PackId([1; 16]),
            offset,
            len,
            node: ChunkId([2; 32]),
            session: SessionId([3; 16]),
            pack_size,
            slot: Slot([4; 88]),
        };
        assert!(is_possible(&hint(64, 100, 1000)));
        for (offset, len, pack_size) in [
            (0, 0, 1000),
            (0, 100, 1000),
            (64, 0, 1000),
            (64, u32::MAX, u32::MAX),
            (u32::MAX, u32::MAX, u32::MAX),
            (64, 100, 163),
        ] {
            assert!(
                !is_possible(&hint(offset, len, pack_size)),
                "{offset} {len} {pack_size}"
            );
        }
    }
}
