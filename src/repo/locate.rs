//! Where a chunk lies: from the local index, or, on a machine that has none, straight from the runs by ranged reads.

use super::again::until_sound;
use super::error::{RepoError, object_error, store_error};
use super::index::ChunkPlace;
use super::open::{Repo, store_key};
use super::recent::Recent;
use super::runs::ListedRun;
use crate::edge::store::Part;
use crate::pure::format::FormatError;
use crate::pure::format::name::{ObjectName, PartKind};
use crate::pure::format::run::{RunChunk, RunHead, RunPack};
use crate::pure::id::ChunkId;
use bytes::Bytes;
use parking_lot::Mutex;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// First read of a run: header, section table and fan-out of almost every run fit.
const HEAD_BYTES: u64 = 64 << 10;
/// Heads of runs that are read at once, at most.
const HEADS_AT_ONCE: usize = 16;
/// Blocks of chunks that are kept, and as many of packs and slots: some tens of megabytes, however large the index is.
const BLOCKS_MAX: usize = 256;

/// Finds copies of chunks.
pub trait Locate: Send + Sync {
    /// Shows every copy that is known to `each`, best first, until it breaks. What costs more is looked for only when the
    /// copies before did not do.
    ///
    /// # Errors
    /// When the index or a run cannot be read.
    fn copies(
        &self,
        repo: &Repo,
        id: &ChunkId,
        each: &mut dyn FnMut(ChunkPlace) -> ControlFlow<()>,
    ) -> Result<(), RepoError>;
}

/// The local index, in sync with the repository.
pub struct IndexLocator;

impl Locate for IndexLocator {
    fn copies(
        &self,
        repo: &Repo,
        id: &ChunkId,
        each: &mut dyn FnMut(ChunkPlace) -> ControlFlow<()>,
    ) -> Result<(), RepoError> {
        let flow = repo.index.find_all(id)?.into_iter().try_for_each(&mut *each);
        // A snapshot that was published while a pack was being condemned may need it until a sweep has copied out what it needs.
        if flow.is_continue() {
            let _ = repo.index.find_condemned(id)?.into_iter().try_for_each(each);
        }
        Ok(())
    }
}

/// Asks each valid run by ranged reads: one for its head (kept), one for the block that may hold the id. A chunk from a run
/// that is not verified as a whole is still verified by its own seal and id.
pub struct RunLocator {
    /// The objects of all runs.
    objects: Vec<RunReader>,
    /// Which of them are those of one run: of an L0 run one.
    runs: Vec<Range<usize>>,
    /// How many of the runs have been opened, from the first one on.
    opened: Mutex<usize>,
    blocks: Mutex<Recent<Section, Arc<Vec<RunChunk>>>>,
    /// Sealed pack and slot blocks: few, and asked for again and again.
    sealed: Mutex<Recent<Section, Bytes>>,
    bytes_read: AtomicU64,
}

/// The number of an object, and of a section of it.
type Section = (usize, usize);

/// An object of a run.
struct RunReader {
    name: ObjectName,
    /// `None`: a whole run.
    part: Option<PartKind>,
    size: u64,
    head: Mutex<Head>,
}

enum Head {
    Unread,
    Read(Arc<RunHead>),
    Damaged,
}

impl RunReader {
    /// Whether it may have records of this chunk.
    fn may_have(&self, id: &ChunkId) -> bool {
        match &self.part {
            None => true,
            Some(PartKind::Chunks { first, last }) => (*first..=*last).contains(&[id.0[0], id.0[1]]),
            Some(PartKind::Packs | PartKind::Slots) => false,
        }
    }
}

impl RunLocator {
    /// Prepares to search these runs in this order.
    pub fn new(listed: Vec<ListedRun>) -> RunLocator {
        let (mut objects, mut runs) = (Vec::new(), Vec::new());
        for run in listed {
            let first = objects.len();
            objects.extend(run.objects.into_iter().map(|(name, size)| RunReader {
                part: match &name {
                    ObjectName::RunPart(_, _, part) => PartKind::parse(part).map(|(kind, _)| kind),
                    _ => None,
                },
                name,
                size,
                head: Mutex::new(Head::Unread),
            }));
            runs.push(first..objects.len());
        }
        RunLocator {
            objects,
            runs,
            opened: Mutex::new(0),
            blocks: Mutex::new(Recent::new(BLOCKS_MAX)),
            sealed: Mutex::new(Recent::new(BLOCKS_MAX)),
            bytes_read: AtomicU64::new(0),
        }
    }

    /// Returns how many bytes of runs have been read so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    fn read(&self, repo: &Repo, run: &RunReader, range: Range<u64>) -> Result<Bytes, RepoError> {
        let end = range.end.min(run.size);
        let bytes = repo
            .store
            .read(&store_key(&run.name), Part::Range(range.start..end))
            .map_err(store_error("reading a part of an index run"))?;
        self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Opens the heads that may lead to `id` up to those of run `number`, and when more than one run has been needed already, of some
    /// behind it as well.
    fn open_heads(&self, repo: &Repo, number: usize, id: &ChunkId) {
        let mut opened = self.opened.lock();
        if number < *opened {
            return;
        }
        let ahead = (*opened).clamp(1, HEADS_AT_ONCE);
        let end = (number + ahead).min(self.runs.len());
        std::thread::scope(|scope| {
            let objects = self.runs[*opened..end].iter().cloned().flatten();
            for object in objects
                .map(|object| &self.objects[object])
                .filter(|object| object.may_have(id))
            {
                // What fails is tried again, and told, when the run is asked.
                scope.spawn(move || drop(self.head(repo, object)));
            }
        });
        *opened = end;
    }

    fn head(&self, repo: &Repo, run: &RunReader) -> Result<Arc<RunHead>, RepoError> {
        let mut kept = run.head.lock();
        match &*kept {
            Head::Read(head) => return Ok(head.clone()),
            Head::Damaged => {
                return Err(RepoError::Missing {
                    object: run.name.to_string(),
                    why: "it cannot be opened".into(),
                });
            }
            Head::Unread => {}
        }
        match until_sound(|| self.read_head(repo, run)) {
            Ok(head) => {
                let head = Arc::new(head);
                *kept = Head::Read(head.clone());
                Ok(head)
            }
            Err(error) => {
                if error.is_damage() {
                    *kept = Head::Damaged;
                }
                Err(error)
            }
        }
    }

    fn read_head(&self, repo: &Repo, run: &RunReader) -> Result<RunHead, RepoError> {
        let name = run.name.to_string();
        let damaged = || object_error("opening", &name);
        let mut prefix = self.read(repo, run, 0..HEAD_BYTES)?;
        if let Some(head) = RunHead::parse(&prefix, &name, &repo.keys).map_err(damaged())? {
            return Ok(head);
        }
        let needed = RunHead::prefix_needed(&prefix).map_err(damaged())?;
        prefix = self.read(repo, run, 0..needed as u64)?;
        RunHead::parse(&prefix, &name, &repo.keys)
            .map_err(damaged())?
            .ok_or_else(|| RepoError::Missing {
                object: name.clone(),
                why: "it is shorter than its own section table says".into(),
            })
    }

    fn chunks(
        &self,
        repo: &Repo,
        number: usize,
        section: usize,
        range: Range<u64>,
    ) -> Result<Arc<Vec<RunChunk>>, RepoError> {
        if let Some(block) = self.blocks.lock().get(&(number, section)) {
            return Ok(block);
        }
        let object = &self.objects[number];
        let head = self.head(repo, object)?;
        let block = Arc::new(until_sound(|| {
            let sealed = self.read(repo, object, range.clone())?;
            head.open_chunks(section, &sealed, &repo.keys)
                .map_err(object_error("opening", &object.name))
        })?);
        self.blocks.lock().put((number, section), block.clone());
        Ok(block)
    }

    /// Opens a block that is kept as it is stored.
    fn opened_block<T>(
        &self,
        repo: &Repo,
        number: usize,
        section: usize,
        range: Range<u64>,
        open: impl Fn(&[u8]) -> Result<T, FormatError>,
    ) -> Result<T, RepoError> {
        let object = &self.objects[number];
        let damaged = || object_error("opening", &object.name);
        let kept = self.sealed.lock().get(&(number, section));
        if let Some(block) = kept {
            return open(&block).map_err(damaged());
        }
        until_sound(|| {
            let block = self.read(repo, object, range.clone())?;
            let opened = open(&block).map_err(damaged())?;
            self.sealed.lock().put((number, section), block);
            Ok(opened)
        })
    }

    /// Returns the copies that one run knows.
    fn copies_in(&self, repo: &Repo, run: &Range<usize>, id: &ChunkId) -> Result<Vec<ChunkPlace>, RepoError> {
        let mut copies = Vec::new();
        for number in run.clone().filter(|number| self.objects[*number].may_have(id)) {
            let head = self.head(repo, &self.objects[number])?;
            for (section, range) in head.chunk_blocks(id) {
                let block = self.chunks(repo, number, section, range)?;
                let first = block.partition_point(|chunk| chunk.id < *id);
                for chunk in block[first..].iter().take_while(|chunk| chunk.id == *id) {
                    copies.push(self.place(repo, run, chunk)?);
                }
            }
        }
        Ok(copies)
    }

    fn place(&self, repo: &Repo, run: &Range<usize>, chunk: &RunChunk) -> Result<ChunkPlace, RepoError> {
        let pack = self.pack(repo, run, chunk.pack_ix)?;
        let mut slots = Vec::new();
        for number in self.parts_with(run, &PartKind::Slots) {
            let object = &self.objects[number];
            let head = self.head(repo, object)?;
            for (section, range) in head.slot_blocks(&pack.slots) {
                let open = |sealed: &[u8]| head.open_slots(section, sealed, &repo.keys);
                let (first, block) = self.opened_block(repo, number, section, range, open)?;
                for (index, slot) in block.iter().enumerate() {
                    if pack.slots.contains(&(first + index as u32)) {
                        slots.push(*slot);
                    }
                }
            }
        }
        Ok(ChunkPlace {
            pack: pack.pack,
            session: pack.session,
            kind: pack.kind,
            offset: chunk.offset,
            stored_len: chunk.stored_len,
            stored_as: chunk.stored_as,
            slots: slots.into(),
            pack_size: pack.size,
        })
    }

    /// The pack with this rank in the whole run.
    fn pack(&self, repo: &Repo, run: &Range<usize>, rank: u32) -> Result<RunPack, RepoError> {
        for number in self.parts_with(run, &PartKind::Packs) {
            let object = &self.objects[number];
            let head = self.head(repo, object)?;
            let (section, range) = head.pack_block(rank);
            if range.is_empty() {
                continue;
            }
            let open = |sealed: &[u8]| head.open_packs(section, sealed, &repo.keys);
            let (first, packs) = self.opened_block(repo, number, section, range, open)?;
            if let Some(pack) = rank.checked_sub(first).and_then(|index| packs.get(index as usize)) {
                return Ok(pack.clone());
            }
        }
        let object = self.objects.get(run.start).map(|object| object.name.to_string());
        Err(RepoError::Missing {
            object: object.unwrap_or_default(),
            why: "a chunk names a pack that is not in the run".into(),
        })
    }

    /// The objects of a run that have such records: that of an L0 run has all.
    fn parts_with(&self, run: &Range<usize>, kind: &PartKind) -> impl Iterator<Item = usize> {
        let fits = |number: &usize| self.objects[*number].part.as_ref().is_none_or(|part| part == kind);
        run.clone().filter(fits).collect::<Vec<_>>().into_iter()
    }
}

impl Locate for RunLocator {
    /// A run that cannot be opened hides nothing that another one knows: it is told only when all have been asked.
    fn copies(
        &self,
        repo: &Repo,
        id: &ChunkId,
        each: &mut dyn FnMut(ChunkPlace) -> ControlFlow<()>,
    ) -> Result<(), RepoError> {
        let mut damaged = None;
        for (number, run) in self.runs.iter().enumerate() {
            self.open_heads(repo, number, id);
            match self.copies_in(repo, run, id) {
                Ok(copies) => {
                    if copies.into_iter().try_for_each(&mut *each).is_break() {
                        return Ok(());
                    }
                }
                Err(error) if error.is_damage() => {
                    damaged.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        damaged.map_or(Ok(()), Err)
    }
}
