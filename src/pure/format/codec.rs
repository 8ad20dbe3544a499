//! Bounded reading and writing of bytes: the only place that slices foreign bytes (format-spec chapter 1).

/// The bytes do not follow the format; `what` names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Malformed {
    pub what: &'static str,
}

/// Returns a [`Malformed`] error naming `what`.
pub fn malformed<T>(what: &'static str) -> Result<T, Malformed> {
    Err(Malformed { what })
}

/// Reads a slice from front to back; every read is checked.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        if len > self.rest.len() {
            return malformed(what);
        }
        let (head, tail) = self.rest.split_at(len);
        self.rest = tail;
        Ok(head)
    }
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.array::<1>(what)?[0])
    }
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }
    /// Unsigned LEB128, canonical, at most 10 bytes.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for index in 0..10 {
            let byte = self.u8(what)?;
            if index == 9 && byte > 1 {
                return malformed(what);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return if byte == 0 && index > 0 {
                    malformed(what)
                } else {
                    Ok(value)
                };
            }
        }
        malformed(what)
    }
    /// Zigzag varint.
    pub fn zigzag(&mut self, what: &'static str) -> Result<i64, Malformed> {
        let value = self.varint(what)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
    /// A varint that must fit `usize` and be at most `max`.
    pub fn length(&mut self, max: usize, what: &'static str) -> Result<usize, Malformed> {
        match usize::try_from(self.varint(what)?) {
            Ok(value) if value <= max => Ok(value),
            _ => malformed(what),
        }
    }
    /// Fails unless everything was read.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.rest.is_empty() || chaos!("trailing-bytes-are-accepted") {
            Ok(())
        } else {
            malformed(what)
        }
    }
}

/// Appends an unsigned LEB128 varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a zigzag varint.
pub fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(bytes: &[u8]) -> Option<u64> {
        let mut reader = Reader::new(bytes);
        let value = reader.varint("value").ok()?;
        reader.end("end").ok()?;
        Some(value)
    }

    #[test]
    fn varints_round_trip_at_every_length() {
        let mut seen = std::collections::BTreeSet::new();
        for shift in 0..64 {
            for value in [(1u64 << shift) - 1, 1 << shift, u64::MAX >> shift] {
                let mut bytes = Vec::new();
                put_varint(&mut bytes, value);
                assert_eq!(varint(&bytes), Some(value));
                seen.insert(bytes.len());
                for len in 0..bytes.len() {
                    assert_eq!(varint(&bytes[..len]), None);
                }
            }
        }
        assert!(seen.into_iter().eq(1..=10));
    }

    #[test]
    fn only_the_shortest_varint_within_64_bits_is_read() {
        assert_eq!(varint(&[0x80, 0x00]), None);
        assert_eq!(varint(&[0xff, 0x80, 0x00]), None);
        let nines = [0xff; 9];
        assert_eq!(varint(&[&nines[..], &[0x01]].concat()), Some(u64::MAX));
        assert_eq!(varint(&[&nines[..], &[0x02]].concat()), None);
        assert_eq!(varint(&[&nines[..], &[0x81, 0x00]].concat()), None);
        assert_eq!(varint(&[&nines[..], &[0x80, 0x01]].concat()), None);
        assert_eq!(varint(&[0x80; 9]), None);
        assert_eq!(varint(&[&[0x80; 9][..], &[0x00]].concat()), None);
    }

    #[test]
    fn zigzag_round_trips_at_both_ends() {
        for (value, bytes) in [
            (0, vec![0]),
            (-1, vec![1]),
            (1, vec![2]),
            (-64, vec![127]),
            (64, vec![0x80, 1]),
        ] {
            let mut out = Vec::new();
            put_zigzag(&mut out, value);
            assert_eq!(out, bytes);
        }
        for value in [i64::MIN, i64::MIN + 1, -1_000_000, 1_000_000, i64::MAX - 1, i64::MAX] {
            let mut bytes = Vec::new();
            put_zigzag(&mut bytes, value);
            assert_eq!(Reader::new(&bytes).zigzag("value"), Ok(value));
        }
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let mut reader = Reader::new(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(reader.u16("two"), Ok(0x0201));
        assert_eq!(reader.u64("eight"), malformed("eight"));
        assert_eq!(reader.remaining(), 6, "a failed read takes nothing");
        assert_eq!(reader.take(usize::MAX, "all"), malformed("all"));
        assert_eq!(reader.end("end"), malformed("end"));
        assert_eq!(reader.u32("four"), Ok(0x0605_0403));
        assert_eq!((reader.u8("one"), reader.u8("one")), (Ok(7), Ok(8)));
        assert_eq!(reader.u8("one"), malformed("one"));
        assert_eq!((reader.take(0, "none"), reader.end("end")), (Ok(&[][..]), Ok(())));
    }

    #[test]
    fn lengths_are_limited_before_they_are_used() {
        assert_eq!(Reader::new(&[0x80, 0x01]).length(128, "length"), Ok(128));
        assert_eq!(Reader::new(&[0x80, 0x01]).length(127, "length"), malformed("length"));
    }
}
