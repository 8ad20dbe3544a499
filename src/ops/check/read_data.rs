//! Reading packs whole, and verifying every blob in them.

use super::options::Options;
use super::packs::Bad;
use super::report::{Report, chain};
use crate::edge::host;
use crate::edge::store::{Failure, Part};
use crate::ops::{OpError, Progress};
use crate::pure::crypto::{ObjectClass, Slot};
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::name::ObjectName;
use crate::pure::format::pack::{self, PackRecord, PackTrailer};
use crate::pure::format::run::StoredAs;
use crate::pure::id::ChunkId;
use crate::repo::error::store_error;
use crate::repo::index::{ChunkPlace, PackInfo};
use crate::repo::open::store_key;
use crate::repo::reader::{BlobReader, pack_name};
use crate::repo::{Repo, RepoError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Depth of verification in the ledger: every byte was read and decoded.
const DATA_READ: u8 = 3;

/// Reads packs whole and verifies every blob in them.
pub(super) fn read_packs(
    repo: &Repo,
    reader: &BlobReader<'_>,
    packs: Vec<PackInfo>,
    options: &Options,
    bad: &mut Bad,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), OpError> {
    let started = Instant::now();
    progress
        .bytes_total
        .store(packs.iter().map(|pack| u64::from(pack.size)).sum(), Ordering::Relaxed);
    progress.totals_final.store(true, Ordering::Relaxed);
    let next = AtomicUsize::new(0);
    let late = AtomicBool::new(false);
    let verified = AtomicU64::new(0);
    let results: Mutex<(Vec<(ObjectName, PackVerdict)>, Option<RepoError>)> = Mutex::new((Vec::new(), None));
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                let mut verifier = PackVerifier {
                    repo,
                    reader,
                    opener: Opener::new(),
                    plain: Vec::new(),
                    buffer: Vec::new(),
                };
                loop {
                    if progress.is_cancelled() || results.lock().1.is_some() {
                        return;
                    }
                    if options.max_time.is_some_and(|limit| started.elapsed() >= limit) {
                        late.store(true, Ordering::Relaxed);
                        return;
                    }
                    let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    let name = pack_name(pack.kind, pack.pack, pack.session);
                    match verifier.verify(pack) {
                        Ok(verdict) => {
                            let fine = verdict.problem.is_none() && verdict.bad.is_empty();
                            if let Err(error) = repo.index.record_verified(&pack.pack, DATA_READ, host::now(), fine) {
                                results.lock().1 = Some(error.into());
                                return;
                            }
                            verified.fetch_add(verdict.chunks, Ordering::Relaxed);
                            progress.file_done(u64::from(pack.size));
                            results.lock().0.push((name, verdict));
                        }
                        Err(error) => {
                            results.lock().1.get_or_insert(error);
                            return;
                        }
                    }
                }
            });
        }
    });
    if progress.is_cancelled() {
        return Err(OpError::Interrupted);
    }
    let (verdicts, error) = results.into_inner();
    if let Some(error) = error {
        return Err(error.into());
    }
    report.packs_read = verdicts.len() as u64;
    report.packs_left = packs.len() as u64 - report.packs_read;
    report.chunks_verified = verified.into_inner();
    for (name, verdict) in verdicts {
        report.bytes_read += verdict.bytes;
        if let Some(problem) = &verdict.problem {
            report.damage(&name, problem);
        }
        for (id, what) in verdict.bad {
            if verdict.problem.is_none() {
                report.damage(format!("chunk {id} in {name}"), &what);
            }
            let fine_elsewhere = elsewhere(repo, reader, &id, &name)?;
            if !fine_elsewhere {
                bad.insert(id, what);
            }
        }
    }
    Ok(())
}

/// Whether another copy of the chunk opens.
fn elsewhere(repo: &Repo, reader: &BlobReader<'_>, id: &ChunkId, name: &ObjectName) -> Result<bool, OpError> {
    let mut opener = Opener::new();
    let mut plain = Vec::new();
    for place in repo.index.find_all(id)? {
        let other = pack_name(place.kind, place.pack, place.session);
        if other != *name
            && reader
                .read_copy(type_of(place.stored_as), id, &place, &mut opener, &mut plain)
                .is_ok()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn type_of(stored_as: StoredAs) -> BlobType {
    match stored_as {
        StoredAs::Data | StoredAs::Delta => BlobType::Data,
        StoredAs::Node => BlobType::Node,
        StoredAs::List => BlobType::List,
        StoredAs::Manifest => BlobType::Manifest,
    }
}

fn stored_as(ty: BlobType) -> StoredAs {
    match ty {
        BlobType::Data => StoredAs::Data,
        BlobType::Node => StoredAs::Node,
        BlobType::List => StoredAs::List,
        BlobType::Manifest => StoredAs::Manifest,
    }
}

/// What reading one pack showed.
#[derive(Default)]
struct PackVerdict {
    bytes: u64,
    chunks: u64,
    /// What is wrong with the pack as a whole.
    problem: Option<String>,
    bad: Vec<(ChunkId, String)>,
}

struct PackVerifier<'a, 'r> {
    repo: &'a Repo,
    reader: &'a BlobReader<'r>,
    opener: Opener,
    plain: Vec<u8>,
    buffer: Vec<u8>,
}

impl PackVerifier<'_, '_> {
    /// # Errors
    /// When the store cannot be read: then nothing is known about the pack, which is not the same as damage.
    fn verify(&mut self, pack: &PackInfo) -> Result<PackVerdict, RepoError> {
        let name = pack_name(pack.kind, pack.pack, pack.session);
        let mut verdict = PackVerdict {
            bytes: u64::from(pack.size),
            ..PackVerdict::default()
        };
        // Damage is believed after reading again (I-8).
        let mut trailer = self.fetch_trailer(&name, pack)?;
        for _ in 0..2 {
            if trailer.is_err() {
                trailer = self.fetch_trailer(&name, pack)?;
            }
        }
        let trailer = match trailer {
            Ok(trailer) => trailer,
            Err(problem) => {
                verdict.problem = Some(problem);
                self.verify_by_index(pack, &mut verdict)?;
                return Ok(verdict);
            }
        };
        let slots: Arc<[Slot]> = trailer.slots.into();
        for record in &trailer.records {
            let place = ChunkPlace {
                pack: pack.pack,
                session: pack.session,
                kind: pack.kind,
                offset: record.offset,
                stored_len: record.stored_len,
                stored_as: if record.base.is_some() {
                    StoredAs::Delta
                } else {
                    stored_as(record.ty)
                },
                slots: slots.clone(),
                pack_size: pack.size,
            };
            self.blob(&record.id, &place, &mut verdict);
        }
        if let Some(problem) = self.disagreement(pack, &trailer.records)? {
            verdict.problem = Some(problem);
        }
        Ok(verdict)
    }

    /// Opens one blob of the pack in the buffer; on failure reads it once more by itself.
    fn blob(&mut self, id: &ChunkId, place: &ChunkPlace, verdict: &mut PackVerdict) {
        let ty = type_of(place.stored_as);
        let start = place.offset as usize;
        let opened = match self.buffer.get(start..start + place.stored_len as usize) {
            None => Err("its frame lies beyond the end of the pack".to_owned()),
            Some(frame) => match self
                .reader
                .open(ty, id, place, frame, &mut self.opener, &mut self.plain)
            {
                Ok(()) => Ok(()),
                Err(first) => self
                    .reader
                    .read_copy(ty, id, place, &mut self.opener, &mut self.plain)
                    .map_err(|_| chain(&first)),
            },
        };
        match opened {
            Ok(()) => verdict.chunks += 1,
            Err(what) => verdict.bad.push((*id, what)),
        }
    }

    /// For a pack whose own description cannot be read: what the index says is in it, as far as that still opens.
    fn verify_by_index(&mut self, pack: &PackInfo, verdict: &mut PackVerdict) -> Result<(), RepoError> {
        let slots = self.repo.index.slots_of_pack(&pack.pack)?.unwrap_or_default();
        for chunk in self.repo.index.chunks_of_pack(&pack.pack)? {
            let place = ChunkPlace {
                pack: pack.pack,
                session: pack.session,
                kind: pack.kind,
                offset: chunk.offset,
                stored_len: chunk.stored_len,
                stored_as: chunk.stored_as,
                slots: slots.clone(),
                pack_size: pack.size,
            };
            self.blob(&chunk.id, &place, verdict);
        }
        Ok(())
    }

    /// Whether the index says the same about the pack as its trailer.
    fn disagreement(&self, pack: &PackInfo, records: &[PackRecord]) -> Result<Option<String>, RepoError> {
        if records.len() != pack.blob_count as usize {
            return Ok(Some(format!(
                "it holds {} blobs, the index says {}",
                records.len(),
                pack.blob_count
            )));
        }
        let ids: Vec<ChunkId> = records.iter().map(|record| record.id).collect();
        let found = self.repo.index.find_many(&ids)?;
        for (record, preferred) in records.iter().zip(found) {
            let is_it = |place: &ChunkPlace| {
                place.pack == pack.pack
                    && place.offset == record.offset
                    && place.stored_len == record.stored_len
                    && type_of(place.stored_as) == record.ty
                    && (place.stored_as == StoredAs::Delta) == record.base.is_some()
            };
            let listed =
                preferred.as_ref().is_some_and(is_it) || self.repo.index.find_all(&record.id)?.iter().any(is_it);
            if !listed {
                return Ok(Some(format!(
                    "its trailer and the index disagree about chunk {}",
                    record.id
                )));
            }
        }
        Ok(None)
    }

    /// Reads the pack and opens its trailer; the inner error is damage, in words.
    fn fetch_trailer(&mut self, name: &ObjectName, pack: &PackInfo) -> Result<Result<PackTrailer, String>, RepoError> {
        if let Err(error) = self.fetch(name, pack) {
            return match &error {
                RepoError::Store { source, .. } if matches!(source.class, Failure::NotFound | Failure::Protocol) => {
                    self.buffer.clear();
                    Ok(Err(chain(&error)))
                }
                _ => Err(error),
            };
        }
        Ok(self.trailer(pack))
    }

    fn fetch(&mut self, name: &ObjectName, pack: &PackInfo) -> Result<(), RepoError> {
        let key = store_key(name);
        if self.repo.store.is_local() {
            self.buffer.resize(pack.size as usize, 0);
            self.repo
                .store
                .read_into(&key, 0, &mut self.buffer)
                .map_err(store_error("reading a pack"))
        } else {
            let bytes = self
                .repo
                .store
                .read(&key, Part::Whole)
                .map_err(store_error("reading a pack"))?;
            self.buffer.clear();
            self.buffer.extend_from_slice(&bytes);
            Ok(())
        }
    }

    /// Header, footer, body hash and trailer of the pack in the buffer.
    fn trailer(&self, pack: &PackInfo) -> Result<PackTrailer, String> {
        let parts = pack::check_whole(&self.buffer).map_err(|error| chain(&error))?;
        let header = parts.header;
        if header.pack != pack.pack || header.session != pack.session || header.kind != pack.kind {
            return Err("it is another pack under this name".into());
        }
        let key = self
            .repo
            .keys
            .object_key(header.epoch, ObjectClass::Trailer)
            .map_err(|error| chain(&error))?;
        parts
            .open(key)
            .map_err(|error| format!("its trailer: {}", chain(&error)))
    }
}
