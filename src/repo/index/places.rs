//! Where chunks lay that were found by searching runs: kept beside tree nodes in the cache, so that a machine that does not
//! hold the index need not search again for what it has read before. Only for reading; what a backup refers to is looked
//! up in the index.

use super::{ChunkPlace, NodeCache};
use crate::edge::localdb::LocalDbError;
use crate::pure::crypto::Slot;
use crate::pure::format::codec::Reader;
use crate::pure::format::name::PackKind;
use crate::pure::format::run::StoredAs;
use crate::pure::format::{Malformed, codec};
use crate::pure::id::{ChunkId, PackId, SessionId};

/// First byte of a kept place: another version begins with another one.
const VERSION: u8 = 1;

impl NodeCache {
    /// Returns where a chunk lay when it was last searched for. The pack may be gone by now.
    pub fn place(&self, id: &ChunkId) -> Option<ChunkPlace> {
        decode(&self.get(&self.place_name(id))?).ok()
    }

    /// Keeps places.
    ///
    /// # Errors
    /// As [`NodeCache::put_many`].
    pub fn put_places(&self, places: &[(ChunkId, ChunkPlace)]) -> Result<(), LocalDbError> {
        let rows: Vec<(ChunkId, Vec<u8>)> = places
            .iter()
            .map(|(id, place)| (self.place_name(id), encode(place)))
            .collect();
        self.put_many(rows.iter().map(|(name, value)| (name, value.as_slice())))
    }
}

fn encode(place: &ChunkPlace) -> Vec<u8> {
    let mut out = vec![VERSION, place.kind as u8, place.stored_as as u8];
    out.extend_from_slice(place.pack.as_bytes());
    out.extend_from_slice(place.session.as_bytes());
    for number in [place.offset, place.stored_len, place.pack_size] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for slot in &*place.slots {
        out.extend_from_slice(&slot.0);
    }
    out
}

fn decode(bytes: &[u8]) -> Result<ChunkPlace, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8("version of a place")? != VERSION {
        return codec::malformed("version of a place");
    }
    let kind = PackKind::from_byte(reader.u8("kind of pack")?);
    let stored_as = StoredAs::from_nibble(reader.u8("form of a copy")?.into());
    let (Some(kind), Some(stored_as)) = (kind, stored_as) else {
        return codec::malformed("kind or form of a copy");
    };
    let pack = PackId(reader.array("pack")?);
    let session = SessionId(reader.array("session")?);
    let [offset, stored_len, pack_size] = [reader.u32("offset")?, reader.u32("length")?, reader.u32("pack size")?];
    if stored_len == 0 || offset.checked_add(stored_len).is_none_or(|end| end > pack_size) {
        return codec::malformed("a place outside of its pack");
    }
    let mut slots = Vec::new();
    while reader.remaining() > 0 {
        slots.push(Slot(reader.array("slot")?));
    }
    Ok(ChunkPlace {
        pack,
        session,
        kind,
        offset,
        stored_len,
        stored_as,
        slots: slots.into(),
        pack_size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> ChunkPlace {
        ChunkPlace {
            pack: PackId([1; 16]),
            session: SessionId([2; 16]),
            kind: PackKind::Data,
            offset: 64,
            stored_len: 1000,
            stored_as: StoredAs::Delta,
            slots: vec![Slot([3; 88]), Slot([4; 88])].into(),
            pack_size: 5000,
        }
    }

    #[test]
    fn a_place_comes_back_and_nothing_else_does() {
        let encoded = encode(&place());
        assert_eq!(decode(&encoded).unwrap(), place());
        for cut in (0..encoded.len()).filter(|cut| !(encoded.len() - cut).is_multiple_of(88)) {
            assert!(decode(&encoded[..cut]).is_err(), "{cut}");
        }
        for byte in 0..3 {
            let mut other = encoded.clone();
            other[byte] = 99;
            assert!(decode(&other).is_err(), "{byte}");
        }
        let outside = ChunkPlace {
            offset: 4001,
            ..place()
        };
        assert!(decode(&encode(&outside)).is_err());
    }
}
