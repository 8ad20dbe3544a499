//! Reading together what lies close together in a pack: a request costs as much as a megabyte does.

use super::index::ChunkPlace;

/// Neighbouring frames are read together up to this length …
const SPAN_LOCAL: u64 = 2 << 20;
const SPAN_REMOTE: u64 = 16 << 20;
/// … if no more than this lies between them.
const GAP_LOCAL: u64 = 64 << 10;
const GAP_REMOTE: u64 = 1 << 20;

/// Which frames are read together.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    /// Length of a span, at most, unless one frame is longer.
    pub bytes: u64,
    gap: u64,
}

impl Spans {
    /// Returns what suits a store.
    pub fn of(store_is_local: bool) -> Spans {
        if store_is_local {
            Spans {
                bytes: SPAN_LOCAL,
                gap: GAP_LOCAL,
            }
        } else {
            Spans {
                bytes: SPAN_REMOTE,
                gap: GAP_REMOTE,
            }
        }
    }

    /// Returns the same with shorter spans.
    pub fn no_longer_than(self, bytes: u64) -> Spans {
        Spans {
            bytes: self.bytes.min(bytes),
            ..self
        }
    }

    /// Whether `next` is read together with a span from `first` to `last`. All are in the order of their packs and offsets.
    pub fn admit(&self, first: &ChunkPlace, last: &ChunkPlace, next: &ChunkPlace) -> bool {
        first.pack == next.pack
            && u64::from(next.offset).saturating_sub(end(last)) <= self.gap
            && end(next).saturating_sub(u64::from(first.offset)) <= self.bytes
    }
}

/// Returns where a frame ends in its pack.
pub fn end(place: &ChunkPlace) -> u64 {
    u64::from(place.offset) + u64::from(place.stored_len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::format::name::PackKind;
    use crate::pure::format::run::StoredAs;
    use crate::pure::id::{PackId, SessionId};

    #[test]
    fn neighbours_are_read_together_up_to_a_length() {
        let place = |pack, offset, stored_len| ChunkPlace {
            pack: PackId([pack; 16]),
            session: SessionId([1; 16]),
            kind: PackKind::Data,
            offset,
            stored_len,
            stored_as: StoredAs::Data,
            slots: [].into(),
            pack_size: 64 << 20,
        };
        let spans = Spans::of(false).no_longer_than(8 << 20);
        let first = place(1, 64, 1 << 20);
        let admits = |next| spans.admit(&first, &first, &next);
        assert!(admits(place(1, 64 + (1 << 20), 1000)));
        assert!(admits(place(1, 64 + (2 << 20), 1000)));
        assert!(!admits(place(1, 65 + (2 << 20), 1000)), "too far away");
        assert!(!admits(place(1, 64 + (1 << 20), 8 << 20)), "too long");
        assert!(!admits(place(2, 64 + (1 << 20), 1000)), "another pack");
    }
}
