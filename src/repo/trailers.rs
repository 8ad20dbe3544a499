//! Finding chunks without the index: every pack says at its end what is in it (format-spec chapter 7). Runs and
//! outcomes may be lost; as long as the packs are there, what they hold can be read.

use super::again::until_sound;
use super::error::{RepoError, object_error, store_error};
use super::index::{ChunkPlace, PackState};
use super::open::{Repo, list_names, store_key};
use crate::edge::store::Part;
use crate::pure::crypto::{ObjectClass, Slot};
use crate::pure::format::blob::BlobType;
use crate::pure::format::name::{ObjectName, PackKind};
use crate::pure::format::pack::{self, PackFooter, PackHeader, PackTrailer};
use crate::pure::format::run::StoredAs;
use crate::pure::id::{ChunkId, PackId, SessionId};
use parking_lot::Mutex;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Footer and trailer of nearly every pack are within its last bytes.
const SUFFIX_BYTES: u64 = 64 << 10;
const FOOTER_BYTES: usize = 88;
const HEADER_BYTES: u64 = 64;
/// Trailers that are read at once.
const AT_ONCE: usize = 8;

/// What the trailers of those packs say that the index does not list as live. 24 bytes for each chunk.
#[derive(Default)]
pub struct Trailers {
    packs: Vec<UnlistedPack>,
    /// Sorted by the first bytes of the id. Two ids may share these: what is found is verified by its own seal and id.
    chunks: Vec<UnlistedChunk>,
}

struct UnlistedPack {
    pack: PackId,
    session: SessionId,
    kind: PackKind,
    size: u32,
    slots: Arc<[Slot]>,
}

struct UnlistedChunk {
    id_start: u64,
    pack: u32,
    offset: u32,
    stored_len: u32,
    stored_as: StoredAs,
}

fn start_of(id: &ChunkId) -> u64 {
    let mut start = [0; 8];
    start.copy_from_slice(&id.0[..8]);
    u64::from_be_bytes(start)
}

impl Trailers {
    /// Lists the packs and reads the trailer of each that the index does not list as live. A pack that cannot be read says
    /// nothing; whoever needs it is told that its chunk is in no pack. That must not be said of a store that is away.
    ///
    /// # Errors
    /// When the listing fails, the index, or the store cannot be reached.
    pub fn read(repo: &Repo) -> Result<Trailers, RepoError> {
        let mut unlisted = Vec::new();
        for folder in ["data/", "meta/"] {
            for (name, row) in list_names(&*repo.store, folder)? {
                if let ObjectName::Pack(kind, pack, session) = name
                    && !repo
                        .index
                        .pack(&pack)?
                        .is_some_and(|known| known.state == PackState::Live)
                {
                    unlisted.push((kind, pack, session, row.size));
                }
            }
        }
        let next = AtomicUsize::new(0);
        let (found, outage) = (Mutex::new(Trailers::default()), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(unlisted.len()) {
                scope.spawn(|| {
                    while let Some((kind, pack, session, size)) = unlisted.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let listed = ListedPack {
                            kind: *kind,
                            pack: *pack,
                            session: *session,
                            size: *size,
                        };
                        match until_sound(|| read_end(repo, &listed)) {
                            Ok(PackEnd { size, trailer, .. }) => {
                                found.lock().add(*kind, *pack, *session, size, trailer);
                            }
                            Err(error) if error.is_outage() && !chaos!("outage-is-damage") => {
                                outage.lock().get_or_insert(error);
                                break;
                            }
                            Err(_) => {}
                        }
                    }
                });
            }
        });
        if let Some(outage) = outage.into_inner() {
            return Err(outage);
        }
        let mut found = found.into_inner();
        found.chunks.sort_unstable_by_key(|chunk| chunk.id_start);
        Ok(found)
    }

    fn add(&mut self, kind: PackKind, pack: PackId, session: SessionId, size: u32, trailer: PackTrailer) {
        let number = self.packs.len() as u32;
        self.packs.push(UnlistedPack {
            pack,
            session,
            kind,
            size,
            slots: trailer.slots.into(),
        });
        let chunks = trailer.records.iter().filter_map(|record| {
            let stored_as = match (record.ty, record.base) {
                (BlobType::Data, None) => StoredAs::Data,
                (BlobType::Data, Some(_)) => StoredAs::Delta,
                (BlobType::Node, _) => StoredAs::Node,
                (BlobType::List, _) => StoredAs::List,
                _ => return None,
            };
            Some(UnlistedChunk {
                id_start: start_of(&record.id),
                pack: number,
                offset: record.offset,
                stored_len: record.stored_len,
                stored_as,
            })
        });
        self.chunks.extend(chunks);
    }

    /// Shows the places where a chunk may lie to `each`, until it breaks.
    pub fn copies(&self, id: &ChunkId, mut each: impl FnMut(ChunkPlace) -> ControlFlow<()>) {
        let start = start_of(id);
        let first = self.chunks.partition_point(|chunk| chunk.id_start < start);
        for chunk in self.chunks[first..].iter().take_while(|chunk| chunk.id_start == start) {
            let pack = &self.packs[chunk.pack as usize];
            let place = ChunkPlace {
                pack: pack.pack,
                session: pack.session,
                kind: pack.kind,
                offset: chunk.offset,
                stored_len: chunk.stored_len,
                stored_as: chunk.stored_as,
                slots: pack.slots.clone(),
                pack_size: pack.size,
            };
            if each(place).is_break() {
                return;
            }
        }
    }
}

/// A pack as the store lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedPack {
    pub kind: PackKind,
    pub pack: PackId,
    pub session: SessionId,
    /// Bytes.
    pub size: u64,
}

impl ListedPack {
    /// Returns the name of the pack.
    pub fn name(&self) -> ObjectName {
        ObjectName::Pack(self.kind, self.pack, self.session)
    }
}

/// What a pack says about itself at its end.
pub(super) struct PackEnd {
    pub size: u32,
    pub body_hash: [u8; 32],
    pub trailer: PackTrailer,
}

/// Reads header, footer and trailer of a pack.
pub(super) fn read_end(repo: &Repo, listed: &ListedPack) -> Result<PackEnd, RepoError> {
    let ListedPack {
        kind,
        pack,
        session,
        size,
    } = *listed;
    let name = ObjectName::Pack(kind, pack, session);
    let key = store_key(&name);
    let missing = |why: &str| RepoError::Missing {
        object: name.to_string(),
        why: why.into(),
    };
    // Nothing can be asked for of an object without bytes.
    if size < HEADER_BYTES {
        return Err(missing("it is shorter than a header"));
    }
    let read = |part| {
        repo.store
            .read(&key, part)
            .map_err(store_error("reading the trailer of a pack"))
    };
    let header_bytes = read(Part::Range(0..HEADER_BYTES))?;
    let header_bytes: &[u8; 64] = header_bytes[..]
        .try_into()
        .map_err(|_| missing("it is shorter than a header"))?;
    let header = PackHeader::decode(header_bytes).map_err(object_error("opening", &name))?;
    if (header.kind, header.pack, header.session, &header.repo) != (kind, pack, session, repo.keys.repo()) {
        return Err(missing("its header names another pack"));
    }
    let mut end = read(Part::Suffix(SUFFIX_BYTES.min(size)))?;
    let footer_at = end
        .len()
        .checked_sub(FOOTER_BYTES)
        .ok_or_else(|| missing("it is shorter than a footer"))?;
    let footer = PackFooter::decode(&end[footer_at..], size).map_err(object_error("opening", &name))?;
    let needed = u64::from(footer.trailer_len) + FOOTER_BYTES as u64;
    if (end.len() as u64) < needed {
        end = read(Part::Suffix(needed))?;
    }
    let trailer_end = end.len() - FOOTER_BYTES.min(end.len());
    let sealed = trailer_end
        .checked_sub(footer.trailer_len as usize)
        .and_then(|from| end.get(from..trailer_end))
        .ok_or_else(|| missing("it is shorter than its footer says"))?;
    let trailer_key = repo
        .keys
        .object_key(header.epoch, ObjectClass::Trailer)
        .map_err(|error| object_error("opening", &name)(error.into()))?;
    let trailer = pack::open_trailer(header_bytes, sealed, trailer_key).map_err(object_error("opening", &name))?;
    if trailer.frames_end() != footer.trailer_offset {
        return Err(missing("its frames do not end where its trailer begins"));
    }
    let size = u32::try_from(size).map_err(|_| missing("it is larger than a pack can be"))?;
    Ok(PackEnd {
        size,
        body_hash: footer.body_hash,
        trailer,
    })
}
