//! Which objects have a sidecar, and making an object again from one (format-spec chapter 18). What is rebuilt counts only if it opens, with
//! the keys, as what its name says; then it is, byte for byte, what was stored.

use super::error::{RepoError, object_error, store_error};
use super::open::{Repo, bytes_max, prefix, store_key};
use super::parity::sidecar_key;
use crate::edge::store::{Failure, Part, Store, StoreKey};
use crate::pure::crypto::ObjectClass;
use crate::pure::format::condemn::Condemnation;
use crate::pure::format::mark::{Drop, Hold};
use crate::pure::format::name::ObjectName;
use crate::pure::format::parity;
use crate::pure::format::run::{self, part};
use crate::pure::format::{FormatError, outcome::Outcome, pack, sealed};
use bytes::Bytes;
use std::collections::HashMap;

/// Read at a time of what may be damaged …
const PIECE_BYTES: u64 = 1 << 20;
/// … and at a time where that fails: a sector of a disk, and a block of parity.
const SECTOR_BYTES: u64 = 4096;

/// Prefixes of what can have a sidecar and is not part of packs or index.
pub const SMALL: [&str; 7] = ["config/", "grants/", "snap/", "gc/", "drop/", "hold/", "attest/"];

/// What a listing shows of an object and its sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// The object, its bytes, and those of its sidecar if it has one.
    Object(ObjectName, u64, Option<u64>),
    /// A sidecar whose object is not there.
    Alone(ObjectName),
}

/// Lists all objects that can have a sidecar, and the sidecars, in parts that fit into memory.
///
/// # Errors
/// When the store cannot be listed.
pub fn survey(store: &dyn Store, each: &mut dyn FnMut(Beside) -> Result<(), RepoError>) -> Result<(), RepoError> {
    let digits = (0..16).flat_map(|digit| ["data", "meta"].map(|kind| format!("{kind}/{digit:x}")));
    for under in SMALL.into_iter().chain(["idx/"]).map(str::to_owned).chain(digits) {
        survey_part(store, &under, each)?;
    }
    Ok(())
}

/// As [`survey`], for the objects under one prefix.
///
/// # Errors
/// When the store cannot be listed.
pub fn survey_part(
    store: &dyn Store,
    under: &str,
    each: &mut dyn FnMut(Beside) -> Result<(), RepoError>,
) -> Result<(), RepoError> {
    let mut sidecars: HashMap<ObjectName, u64> = HashMap::new();
    let mut objects: Vec<(ObjectName, u64)> = Vec::new();
    let listing = |what: &str| store_error(format!("listing {what} of the repository"));
    // Sidecars first: one whose object comes between the two listings is not one without an object.
    let beside = parity::sidecar_name(under);
    store
        .list(&prefix(&beside), &mut |row| {
            let object = row.key.as_str().strip_prefix("par/").and_then(ObjectName::parse);
            sidecars.extend(object.map(|name| (name, row.size)));
        })
        .map_err(listing(&beside))?;
    store
        .list(&prefix(under), &mut |row| {
            if let Some(name) = ObjectName::parse(row.key.as_str()).filter(parity::has_sidecar) {
                objects.push((name, row.size));
            }
        })
        .map_err(listing(under))?;
    for (name, size) in objects {
        let sidecar = sidecars.remove(&name);
        each(Beside::Object(name, size, sidecar))?;
    }
    let mut alone: Vec<ObjectName> = sidecars.into_keys().collect();
    alone.sort_unstable();
    alone.into_iter().try_for_each(|name| each(Beside::Alone(name)))
}

impl Repo {
    /// Makes a damaged or lost object again from its sidecar. Writes nothing. `None` if there is no sidecar, too much is damaged, or the
    /// object opens as it is: whatever is wrong with that, parity does not help.
    ///
    /// # Errors
    /// When the store fails in another way than by damage.
    pub fn rebuild(&self, name: &ObjectName) -> Result<Option<Bytes>, RepoError> {
        let key = store_key(name);
        let Some(beside) = sidecar_key(&key).filter(|_| self.store.is_local()) else {
            return Ok(None);
        };
        let Some(sidecar) = read_what_is_left(&*self.store, &beside, bytes_max(name))? else {
            return Ok(None);
        };
        let left = read_what_is_left(&*self.store, &key, bytes_max(name))?;
        if let Some(left) = &left
            && self.is_it(name, left)?
        {
            return Ok(None);
        }
        let Ok(rebuilt) = parity::rebuild(&sidecar, left.as_deref().unwrap_or_default(), bytes_max(name)) else {
            return Ok(None);
        };
        Ok(self.is_it(name, &rebuilt)?.then(|| rebuilt.into()))
    }

    /// Puts an object back under its name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn put_back(&self, name: &ObjectName, body: Bytes) -> Result<(), RepoError> {
        self.store
            .put_back(&store_key(name), body)
            .map_err(store_error("putting back what was damaged"))
    }

    fn is_it(&self, name: &ObjectName, bytes: &[u8]) -> Result<bool, RepoError> {
        Ok(self.open_as(name, bytes).is_ok() && self.is_as_described(name, bytes)?)
    }

    /// Opens an object as what its name says, as far as this key can.
    fn open_as(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), FormatError> {
        let (keys, verifier) = (&self.keys, &self.verifier);
        sealed::check(name, &self.config.repo, bytes)?;
        match name {
            ObjectName::Pack(..) => {
                let parts = pack::check_whole(bytes)?;
                parts
                    .open(keys.object_key(parts.header.epoch, ObjectClass::Trailer)?)
                    .map(drop)
            }
            ObjectName::Run(..) => run::decode_l0(bytes, &name.to_string(), keys, verifier).map(drop),
            ObjectName::RunPart(..) => part::decode(bytes, &name.to_string(), keys, verifier).map(drop),
            ObjectName::Outcome(session) => Outcome::decode(bytes, session, keys, verifier).map(drop),
            ObjectName::Condemnation(session) => Condemnation::decode(bytes, session, keys, verifier).map(drop),
            ObjectName::Drop(session) => Drop::decode(bytes, session, keys, verifier).map(drop),
            ObjectName::Hold(session, label) => Hold::decode(bytes, session, label, keys, verifier).map(drop),
            // Small, and opened by whoever uses them: what is not what its name says is refused there.
            _ => Ok(()),
        }
    }

    /// Whether a pack is the one that runs describe, if they do: they are signed.
    fn is_as_described(&self, name: &ObjectName, bytes: &[u8]) -> Result<bool, RepoError> {
        let ObjectName::Pack(_, pack, _) = name else {
            return Ok(true);
        };
        let Some(info) = self.index.pack(pack)? else {
            return Ok(true);
        };
        let hash = sealed::stated_hash(name, bytes, bytes.len() as u64);
        let is_same = hash.is_ok_and(|hash| hash[..24] == info.body_hash24);
        Ok(is_same && u64::from(info.size) == bytes.len() as u64)
    }
}

/// Reads an object of which some may be unreadable: zeros are in the place of that. `None` if it is not there at all, or far larger than
/// it can be.
///
/// # Errors
/// When the store fails in another way.
fn read_what_is_left(store: &dyn Store, key: &StoreKey, bytes_max: u64) -> Result<Option<Vec<u8>>, RepoError> {
    let failed = store_error("reading what is left of an object");
    let size = match store.stat(key) {
        Ok(stat) => stat.size,
        Err(error) if error.class == Failure::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if size > bytes_max {
        return Ok(None);
    }
    let mut left = Vec::with_capacity(size as usize);
    while (left.len() as u64) < size {
        let start = left.len() as u64;
        let piece = start..size.min(start + PIECE_BYTES);
        match store.read(key, Part::Range(piece.clone())) {
            Ok(bytes) => left.extend_from_slice(&bytes),
            Err(error) if error.class == Failure::Unreadable => {
                for start in piece.clone().step_by(SECTOR_BYTES as usize) {
                    let sector = start..piece.end.min(start + SECTOR_BYTES);
                    match store.read(key, Part::Range(sector.clone())) {
                        Ok(bytes) => left.extend_from_slice(&bytes),
                        Err(error) if error.class == Failure::Unreadable => {
                            left.resize(sector.end as usize, 0);
                        }
                        Err(error) => return Err(store_error("reading what is left of an object")(error)),
                    }
                }
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(Some(left))
}

/// Reads an object that is to get a sidecar: whole, or what is wrong with it. `None` if it is not there any more.
///
/// # Errors
/// When the store fails in another way than by damage.
pub fn read_sound(repo: &Repo, name: &ObjectName) -> Result<Option<Result<Bytes, RepoError>>, RepoError> {
    let mut last = None;
    for _ in 0..super::again::READS_BEFORE_DAMAGE {
        let read = repo.store.read(&store_key(name), Part::AtMost(bytes_max(name)));
        let error = match read {
            Ok(bytes) => match sealed::check(name, &repo.config.repo, &bytes) {
                Ok(()) => return Ok(Some(Ok(bytes))),
                Err(error) => object_error("reading", name)(error),
            },
            Err(error) if error.class == Failure::NotFound => return Ok(None),
            Err(error) => store_error(format!("reading {name}"))(error),
        };
        if !error.is_about_one_object() {
            return Err(error);
        }
        last = Some(error);
    }
    Ok(last.map(Err))
}
