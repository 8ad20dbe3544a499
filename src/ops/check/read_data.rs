//! Reading packs whole, and verifying every blob in them.
//!
//! Few packs are in memory at a time, however many cores there are: several threads open the frames of one pack.

use super::lost::Lost;
use super::options::Options;
use super::packs::{Chosen, counts};
use super::report::{Report, chain};
use super::side_by_side::side_by_side;
use crate::edge::host;
use crate::edge::store::Failure;
use crate::ops::{OpError, Progress};
use crate::pure::crypto::{ObjectClass, Slot};
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::name::ObjectName;
use crate::pure::format::pack::{self, PackRecord, PackTrailer};
use crate::pure::format::run::StoredAs;
use crate::pure::id::{ChunkId, PackId};
use crate::repo::error::store_error;
use crate::repo::index::{ChunkPlace, IndexedChunk, PackInfo};
use crate::repo::open::store_key;
use crate::repo::reader::{BlobReader, pack_name};
use crate::repo::{Repo, RepoError};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Depth of verification in the ledger: every byte was read and decoded.
const DATA_READ: u8 = 3;

/// Packs in memory at a time have no more bytes than this together; one is, whatever its size.
const PACKS_BYTES_MAX: u64 = 160 << 20;

/// Rows of the index that are held for packs whose own description cannot be read (48 bytes each).
const ROWS_MAX: u64 = 1 << 20;

/// How often a pack is read before it counts as damaged (I-8).
const READS_BEFORE_DAMAGE: usize = 3;

/// Reads packs and verifies every blob in them.
pub(super) fn read_packs(
    repo: &Repo,
    reader: &BlobReader<'_>,
    packs: &[Chosen],
    options: &Options,
    lost: &mut Lost,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), OpError> {
    progress
        .bytes_total
        .store(packs.iter().map(|pack| u64::from(pack.size)).sum(), Ordering::Relaxed);
    progress.totals_final.store(true, Ordering::Relaxed);
    let threads = options.threads.max(1);
    let largest = packs.iter().map(|pack| u64::from(pack.size)).max().unwrap_or(0);
    let at_once = usize::try_from(PACKS_BYTES_MAX / largest.max(1)).map_or(threads, |fit| fit.clamp(1, threads));
    let work = Work {
        repo,
        reader,
        threads_per_pack: threads.div_ceil(at_once),
        started: Instant::now(),
        options,
        progress,
        next: AtomicUsize::new(0),
        results: Mutex::new(Results {
            lost,
            report,
            undescribed: Vec::new(),
            condemned: 0,
            error: None,
        }),
    };
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(packs.len()) {
            scope.spawn(|| work.run(packs));
        }
    });
    if progress.is_cancelled() {
        return Err(OpError::Interrupted);
    }
    let Results {
        lost,
        report,
        undescribed,
        condemned,
        error,
    } = work.results.into_inner();
    if let Some(error) = error {
        return Err(error);
    }
    report.packs_left = packs.len() as u64 - report.packs_read - condemned;
    salvage(repo, reader, &undescribed, threads, lost, report)
}

/// What the threads share.
struct Work<'w, 'r> {
    repo: &'w Repo,
    reader: &'w BlobReader<'r>,
    threads_per_pack: usize,
    started: Instant,
    options: &'w Options,
    progress: &'w Progress,
    next: AtomicUsize,
    results: Mutex<Results<'w>>,
}

struct Results<'w> {
    lost: &'w mut Lost,
    report: &'w mut Report,
    /// Packs whose trailer does not open.
    undescribed: Vec<PackId>,
    /// Packs that do not count any more when their turn comes: another process has taken in that they are condemned.
    condemned: u64,
    error: Option<OpError>,
}

impl Work<'_, '_> {
    fn run(&self, packs: &[Chosen]) {
        let mut buffer = Vec::new();
        loop {
            let is_late = self
                .options
                .max_time
                .is_some_and(|limit| self.started.elapsed() >= limit);
            if is_late || self.progress.is_cancelled() || self.results.lock().error.is_some() {
                return;
            }
            let Some(pack) = packs.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            if let Err(error) = self.one(pack, &mut buffer) {
                self.results.lock().error.get_or_insert(error);
                return;
            }
            self.progress.file_done(u64::from(pack.size));
        }
    }

    fn one(&self, chosen: &Chosen, buffer: &mut Vec<u8>) -> Result<(), OpError> {
        let Some(pack) = self.repo.index.pack(&chosen.pack)?.filter(counts) else {
            self.results.lock().condemned += 1;
            return Ok(());
        };
        let name = pack_name(pack.kind, pack.pack, pack.session);
        let verdict = self.verify(&pack, &name, buffer)?;
        let is_sound = verdict.problem.is_none() && verdict.bad.is_empty();
        self.repo
            .index
            .record_verified(&pack.pack, DATA_READ, host::now(), is_sound)?;
        // What is damaged is not referred to again: the next backup stores what of it is still at hand.
        if is_sound {
            self.repo.index.mark_there(&pack.pack)?;
        } else {
            self.repo.index.mark_absent(&pack.pack)?;
        }
        let other_copies = damaged_elsewhere(self.repo, self.reader, &verdict.bad, &pack.pack)?;
        let mut results = self.results.lock();
        let Results {
            lost,
            report,
            undescribed,
            ..
        } = &mut *results;
        report.packs_read += 1;
        report.bytes_read += u64::from(pack.size);
        report.chunks_verified += verdict.chunks;
        if let Some(problem) = &verdict.problem {
            report.damage(&name, problem);
            lost.add_frames(pack.pack, []);
        }
        if verdict.is_undescribed {
            undescribed.push(pack.pack);
        }
        note_bad(&pack, &name, &verdict, lost, report);
        for (pack, offset) in other_copies {
            lost.add_frames(pack, [offset]);
        }
        Ok(())
    }

    /// # Errors
    /// When the store cannot be read: then nothing is known about the pack, which is not the same as damage.
    fn verify(&self, pack: &PackInfo, name: &ObjectName, buffer: &mut Vec<u8>) -> Result<Verdict, OpError> {
        let mut attempt = 1;
        let trailer = loop {
            match self.fetch_trailer(name, pack, buffer)? {
                Ok(trailer) => break trailer,
                Err(_) if attempt < READS_BEFORE_DAMAGE => attempt += 1,
                Err(problem) => {
                    return Ok(Verdict {
                        problem: Some(problem),
                        is_undescribed: true,
                        ..Verdict::default()
                    });
                }
            }
        };
        let frames = frames_of_trailer(pack, &trailer);
        let mut verdict = open_frames(self.reader, &frames, Some(buffer.as_slice()), self.threads_per_pack)?;
        verdict.problem = disagreement(self.repo, pack, &trailer.records)?;
        Ok(verdict)
    }

    /// Reads the pack and opens its trailer; the inner error is damage, in words.
    fn fetch_trailer(
        &self,
        name: &ObjectName,
        pack: &PackInfo,
        buffer: &mut Vec<u8>,
    ) -> Result<Result<PackTrailer, String>, OpError> {
        // The size is that of the object: other packs are not chosen.
        buffer.resize(pack.size as usize, 0);
        let fetched = self
            .repo
            .store
            .read_into(&store_key(name), 0, buffer)
            .map_err(store_error("reading a pack"));
        match fetched {
            Ok(()) => Ok(open_trailer(self.repo, pack, buffer)),
            Err(error) if is_about_the_pack(&error) => Ok(Err(chain(&error))),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether an error says something about what was read, and not about the store.
fn is_about_the_pack(error: &RepoError) -> bool {
    error.is_damage() || matches!(error, RepoError::Store { source, .. } if source.class == Failure::Protocol)
}

/// Header, footer, body hash and trailer of a pack.
fn open_trailer(repo: &Repo, pack: &PackInfo, bytes: &[u8]) -> Result<PackTrailer, String> {
    let parts = pack::check_whole(bytes).map_err(|error| chain(&error))?;
    let header = parts.header;
    if header.pack != pack.pack || header.session != pack.session || header.kind != pack.kind {
        return Err("it is another pack under this name".into());
    }
    let key = repo
        .keys
        .object_key(header.epoch, ObjectClass::Trailer)
        .map_err(|error| chain(&error))?;
    parts
        .open(key)
        .map_err(|error| format!("its trailer: {}", chain(&error)))
}

/// What reading one pack showed.
#[derive(Default)]
struct Verdict {
    chunks: u64,
    /// What is wrong with the pack as a whole.
    problem: Option<String>,
    /// The pack does not say what is in it.
    is_undescribed: bool,
    bad: Vec<BadFrame>,
}

struct BadFrame {
    id: ChunkId,
    offset: u32,
    what: Arc<str>,
}

fn note_bad(pack: &PackInfo, name: &ObjectName, verdict: &Verdict, lost: &mut Lost, report: &mut Report) {
    let Some(first) = verdict.bad.first() else { return };
    let count = verdict.bad.len() as u64;
    let of = verdict.chunks + count;
    let what = format!(
        "{count} of {of} chunks do not open; the first is {}: {}",
        first.id, first.what
    );
    report.damage(name, what);
    if verdict.chunks == 0 {
        lost.add_pack(pack.pack);
    } else {
        lost.add_frames(pack.pack, verdict.bad.iter().map(|frame| frame.offset));
    }
}

/// A chunk whose frame in one pack is damaged may have another copy. Whether that opens decides which files are named. Returns
/// pack and offset of those that do not.
fn damaged_elsewhere(
    repo: &Repo,
    reader: &BlobReader<'_>,
    bad: &[BadFrame],
    pack: &PackId,
) -> Result<Vec<(PackId, u32)>, OpError> {
    let mut opener = Opener::new();
    let mut plain = Vec::new();
    let mut damaged = Vec::new();
    for frame in bad {
        let copies = repo.index.find_all(&frame.id)?;
        for place in copies.iter().filter(|place| place.pack != *pack) {
            let ty = type_of(place.stored_as);
            match reader.read_copy(ty, &frame.id, place, &mut opener, &mut plain) {
                Ok(()) => {}
                Err(error) if is_about_the_pack(&error) => damaged.push((place.pack, place.offset)),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(damaged)
}

fn frames_of_trailer(pack: &PackInfo, trailer: &PackTrailer) -> Vec<(ChunkId, ChunkPlace)> {
    let slots: Arc<[Slot]> = trailer.slots.clone().into();
    let stored_as = |record: &PackRecord| match (record.base, record.ty) {
        (Some(_), _) => StoredAs::Delta,
        (None, BlobType::Data) => StoredAs::Data,
        (None, BlobType::Node) => StoredAs::Node,
        (None, BlobType::List) => StoredAs::List,
        (None, BlobType::Manifest) => StoredAs::Manifest,
    };
    let place = |record: &PackRecord| ChunkPlace {
        pack: pack.pack,
        session: pack.session,
        kind: pack.kind,
        offset: record.offset,
        stored_len: record.stored_len,
        stored_as: stored_as(record),
        slots: slots.clone(),
        pack_size: pack.size,
    };
    trailer
        .records
        .iter()
        .map(|record| (record.id, place(record)))
        .collect()
}

/// Opens frames of one pack: out of its bytes where they are at hand, and what does not open there once more by itself.
///
/// # Errors
/// When the store cannot be read.
fn open_frames(
    reader: &BlobReader<'_>,
    frames: &[(ChunkId, ChunkPlace)],
    bytes: Option<&[u8]>,
    threads: usize,
) -> Result<Verdict, OpError> {
    let parts: Vec<_> = frames.chunks(frames.len().div_ceil(threads).max(1)).collect();
    let mut verdict = Verdict::default();
    for part in side_by_side(&parts, threads, |part| open_some(reader, part, bytes)) {
        let part = part?;
        verdict.chunks += part.chunks;
        verdict.bad.extend(part.bad);
    }
    Ok(verdict)
}

fn open_some(
    reader: &BlobReader<'_>,
    frames: &[(ChunkId, ChunkPlace)],
    bytes: Option<&[u8]>,
) -> Result<Verdict, OpError> {
    let mut opener = Opener::new();
    let mut plain = Vec::new();
    let mut verdict = Verdict::default();
    let mut last: Option<Arc<str>> = None;
    for (id, place) in frames {
        let ty = type_of(place.stored_as);
        let start = place.offset as usize;
        let at_hand = bytes.and_then(|bytes| bytes.get(start..start + place.stored_len as usize));
        let opened = match at_hand {
            Some(frame) => reader.open(ty, id, place, frame, &mut opener, &mut plain),
            None => Err(RepoError::UnknownChunk(*id)),
        };
        if opened.is_ok() {
            verdict.chunks += 1;
            continue;
        }
        match reader.read_copy(ty, id, place, &mut opener, &mut plain) {
            Ok(()) => verdict.chunks += 1,
            Err(error) if is_about_the_pack(&error) && is_left_over(reader.repo(), id, place)? => {}
            Err(error) if is_about_the_pack(&error) => {
                let text = chain(&error);
                // Most have the same story to tell.
                let what = match last.take() {
                    Some(same) if *same == *text => same,
                    _ => text.into(),
                };
                last = Some(what.clone());
                verdict.bad.push(BadFrame {
                    id: *id,
                    offset: place.offset,
                    what,
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(verdict)
}

/// Whether this is a delta against what no pack holds any more: a prune has deleted its base, because nobody needed either, and left the
/// pack for what else is in it. A file that needs it all the same is found when trees are walked.
fn is_left_over(repo: &Repo, id: &ChunkId, place: &ChunkPlace) -> Result<bool, OpError> {
    if place.stored_as != StoredAs::Delta {
        return Ok(false);
    }
    match repo.index.base_of(id, &place.pack)? {
        Some(base) => Ok(repo.index.find_all(&base)?.is_empty()),
        None => Ok(false),
    }
}

fn type_of(stored_as: StoredAs) -> BlobType {
    match stored_as {
        StoredAs::Data | StoredAs::Delta => BlobType::Data,
        StoredAs::Node => BlobType::Node,
        StoredAs::List => BlobType::List,
        StoredAs::Manifest => BlobType::Manifest,
    }
}

/// Whether the index says the same about the pack as its trailer. What it says about the chunks elsewhere, and whether the pack
/// may be used, does not matter.
fn disagreement(repo: &Repo, pack: &PackInfo, records: &[PackRecord]) -> Result<Option<String>, OpError> {
    if records.len() != pack.blob_count as usize {
        return Ok(Some(format!(
            "it holds {} blobs, the index says {}",
            records.len(),
            pack.blob_count
        )));
    }
    let ids: Vec<ChunkId> = records.iter().map(|record| record.id).collect();
    let found = repo.index.find_in_pack(&ids, pack.handle)?;
    let is_it = |record: &PackRecord, listed: &Option<IndexedChunk>| {
        listed.as_ref().is_some_and(|listed| {
            listed.offset == record.offset
                && listed.stored_len == record.stored_len
                && type_of(listed.stored_as) == record.ty
                && (listed.stored_as == StoredAs::Delta) == record.base.is_some()
        })
    };
    Ok(records
        .iter()
        .zip(&found)
        .find(|&(record, listed)| !is_it(record, listed))
        .map(|(record, _)| format!("its trailer and the index disagree about chunk {}", record.id)))
}

/// For packs whose own description cannot be read: what the index says is in them, as far as that still opens. Each reading of
/// the whole index serves many packs.
fn salvage(
    repo: &Repo,
    reader: &BlobReader<'_>,
    packs: &[PackId],
    threads: usize,
    lost: &mut Lost,
    report: &mut Report,
) -> Result<(), OpError> {
    let mut left = packs.iter();
    loop {
        let mut batch: HashMap<u32, (PackInfo, Vec<IndexedChunk>)> = HashMap::new();
        let mut rows = 0;
        while rows < ROWS_MAX
            && let Some(pack) = left.next()
        {
            if let Some(pack) = repo.index.pack(pack)? {
                rows += u64::from(pack.blob_count);
                batch.insert(pack.handle, (pack, Vec::new()));
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        repo.index.chunks_in_id_order(&mut |chunk| {
            if let Some((_, chunks)) = batch.get_mut(&chunk.pack) {
                chunks.push(chunk);
            }
            ControlFlow::Continue(())
        })?;
        for (pack, chunks) in batch.into_values() {
            let frames = frames_of_index(repo, &pack, chunks)?;
            let verdict = open_frames(reader, &frames, None, threads)?;
            report.chunks_verified += verdict.chunks;
            let name = pack_name(pack.kind, pack.pack, pack.session);
            note_bad(&pack, &name, &verdict, lost, report);
            for (pack, offset) in damaged_elsewhere(repo, reader, &verdict.bad, &pack.pack)? {
                lost.add_frames(pack, [offset]);
            }
        }
    }
}

fn frames_of_index(
    repo: &Repo,
    pack: &PackInfo,
    mut chunks: Vec<IndexedChunk>,
) -> Result<Vec<(ChunkId, ChunkPlace)>, OpError> {
    chunks.sort_unstable_by_key(|chunk| chunk.offset);
    let slots = repo.index.slots_of_pack(&pack.pack)?.unwrap_or_default();
    let place = |chunk: &IndexedChunk| ChunkPlace {
        pack: pack.pack,
        session: pack.session,
        kind: pack.kind,
        offset: chunk.offset,
        stored_len: chunk.stored_len,
        stored_as: chunk.stored_as,
        slots: slots.clone(),
        pack_size: pack.size,
    };
    Ok(chunks.iter().map(|chunk| (chunk.id, place(chunk))).collect())
}
