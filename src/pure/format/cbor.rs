//! Deterministic CBOR (RFC 8949 §4.2.1), the subset that the format uses (format-spec chapter 1).
//!
//! One value has one encoding and the decoder accepts no other, so that bytes can be rebuilt from a value: signatures depend
//! on that. [`Fields`] reads a map that has a schema, with the rule for unknown keys.

use super::FormatError;
use super::codec::{Malformed, Reader, malformed};
use crate::pure::base::Timestamp;
use crate::pure::crypto::Secret;
use zeroize::Zeroize;

/// Largest input of [`decode`], bytes.
pub const INPUT_BYTES_MAX: usize = 16 << 20;
/// Containers inside each other at most; the outermost is depth 1.
pub const DEPTH_MAX: usize = 8;
/// Unknown keys from here on make a schema map unreadable; those below are ignored.
pub const CRITICAL_KEY: u64 = 0x8000;
/// Elements that a declared length may reserve ahead: the rest is allocated as it is read.
const RESERVED_MAX: usize = 1024;

/// A value of the subset: maps have unsigned integer keys, no tags, no floats. `Nint` holds a negative number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Uint(u64),
    Nint(i64),
    Bytes(Vec<u8>),
    Text(String),
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Bool(bool),
    Null,
}

impl Value {
    /// Makes a map with unsigned keys.
    pub fn map(entries: Vec<(u64, Value)>) -> Value {
        Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| (Value::Uint(key), value))
                .collect(),
        )
    }

    /// Makes an array out of anything that can become values.
    pub fn array<T>(items: impl IntoIterator<Item = T>, value: impl FnMut(T) -> Value) -> Value {
        Value::Array(items.into_iter().map(value).collect())
    }

    /// Copies a byte string.
    pub fn bytes(bytes: &[u8]) -> Value {
        Value::Bytes(bytes.to_vec())
    }

    /// Copies a text.
    pub fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    /// Makes an integer of either sign.
    pub fn int(value: i64) -> Value {
        u64::try_from(value).map_or(Value::Nint(value), Value::Uint)
    }

    /// Makes a point in time.
    pub fn time(time: Timestamp) -> Value {
        Value::int(time.0)
    }

    /// Returns the number, if this is an unsigned one.
    pub fn into_uint(self, what: &'static str) -> Result<u64, Malformed> {
        if let Value::Uint(value) = self {
            Ok(value)
        } else {
            malformed(what)
        }
    }

    /// Returns the number, if this is an unsigned one of 32 bits.
    pub fn into_u32(self, what: &'static str) -> Result<u32, Malformed> {
        u32::try_from(self.into_uint(what)?).or_else(|_| malformed(what))
    }

    /// Returns the point in time, if this is an integer of 64 bits with sign.
    pub fn into_time(self, what: &'static str) -> Result<Timestamp, Malformed> {
        match self {
            Value::Nint(value) => Ok(Timestamp(value)),
            other => i64::try_from(other.into_uint(what)?)
                .map(Timestamp)
                .or_else(|_| malformed(what)),
        }
    }

    /// Returns the byte string, if this is one.
    pub fn into_bytes(self, what: &'static str) -> Result<Vec<u8>, Malformed> {
        if let Value::Bytes(bytes) = self {
            Ok(bytes)
        } else {
            malformed(what)
        }
    }

    /// Returns the byte string, if this is one of exactly `N` bytes.
    pub fn into_byte_array<const N: usize>(self, what: &'static str) -> Result<[u8; N], Malformed> {
        self.into_bytes(what)?.try_into().or_else(|_| malformed(what))
    }

    /// Returns the text, if this is one.
    pub fn into_text(self, what: &'static str) -> Result<String, Malformed> {
        if let Value::Text(text) = self {
            Ok(text)
        } else {
            malformed(what)
        }
    }

    /// Returns the elements, if this is an array.
    pub fn into_array(self, what: &'static str) -> Result<Vec<Value>, Malformed> {
        if let Value::Array(items) = self {
            Ok(items)
        } else {
            malformed(what)
        }
    }

    /// Returns the elements, if this is an array of exactly `N`.
    pub fn into_row<const N: usize>(self, what: &'static str) -> Result<[Value; N], Malformed> {
        self.into_array(what)?.try_into().or_else(|_| malformed(what))
    }

    /// Returns the 32 bytes as a secret and wipes the value.
    pub fn into_secret(self, what: &'static str) -> Result<Secret, Malformed> {
        let mut bytes = self.into_bytes(what)?;
        let secret = Secret::from_slice(&bytes);
        bytes.zeroize();
        secret.map_or_else(|| malformed(what), Ok)
    }
}

impl Zeroize for Value {
    fn zeroize(&mut self) {
        match self {
            Value::Bytes(bytes) => bytes.zeroize(),
            Value::Text(text) => text.zeroize(),
            Value::Array(items) => items.iter_mut().for_each(Zeroize::zeroize),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.zeroize()),
            Value::Uint(_) | Value::Nint(_) | Value::Bool(_) | Value::Null => {}
        }
    }
}

/// Encodes deterministically (map keys are sorted by their encoding).
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, value);
    out
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Uint(number) => put_head(out, 0, *number),
        // A number that is not negative has its one encoding as an unsigned one.
        Value::Nint(number) if *number >= 0 => put_head(out, 0, number.unsigned_abs()),
        Value::Nint(number) => put_head(out, 1, !*number as u64),
        Value::Bytes(bytes) => {
            put_head(out, 2, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
        Value::Text(text) => {
            put_head(out, 3, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        Value::Array(items) => {
            put_head(out, 4, items.len() as u64);
            items.iter().for_each(|item| put(out, item));
        }
        Value::Map(entries) => {
            put_head(out, 5, entries.len() as u64);
            let mut order: Vec<(Vec<u8>, &Value)> = entries.iter().map(|(key, value)| (encode(key), value)).collect();
            order.sort_by(|left, right| left.0.cmp(&right.0));
            for (key, value) in order {
                out.extend_from_slice(&key);
                put(out, value);
            }
        }
        Value::Bool(false) => out.push(0xf4),
        Value::Bool(true) => out.push(0xf5),
        Value::Null => out.push(0xf6),
    }
}

fn put_head(out: &mut Vec<u8>, major: u8, number: u64) {
    let major = major << 5;
    let bytes = number.to_be_bytes();
    match number {
        0..24 => out.push(major | bytes[7]),
        24..0x100 => out.extend_from_slice(&[major | 24, bytes[7]]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend_from_slice(&bytes[6..]);
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend_from_slice(&bytes[4..]);
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&bytes);
        }
    }
}

/// Decodes the canonical encoding only: no trailing bytes, no indefinite lengths, shortest forms, unsigned map keys in strictly
/// ascending order, depth ≤ 8, input ≤ 16 MiB.
pub fn decode(bytes: &[u8]) -> Result<Value, Malformed> {
    if bytes.len() > INPUT_BYTES_MAX {
        return malformed("CBOR longer than 16 MiB");
    }
    let mut reader = Reader::new(bytes);
    let value = item(&mut reader, 0)?;
    reader.end("bytes after the CBOR value")?;
    Ok(value)
}

/// Reads one item that lies inside of `depth` containers.
fn item(reader: &mut Reader<'_>, depth: usize) -> Result<Value, Malformed> {
    let first = reader.u8("CBOR ends early")?;
    let major = first >> 5;
    if major == 7 {
        return match first {
            0xf4 => Ok(Value::Bool(false)),
            0xf5 => Ok(Value::Bool(true)),
            0xf6 => Ok(Value::Null),
            _ => malformed("CBOR float or simple value"),
        };
    }
    let number = argument(reader, first & 31)?;
    match major {
        0 => return Ok(Value::Uint(number)),
        1 => {
            return i64::try_from(number)
                .map(|number| Value::Nint(!number))
                .or_else(|_| malformed("CBOR number below 64 bits"));
        }
        6 => return malformed("CBOR tag"),
        _ => {}
    }
    let Some(len) = usize::try_from(number).ok().filter(|len| *len <= reader.remaining()) else {
        return malformed("CBOR length beyond the end");
    };
    match major {
        2 => return Ok(Value::Bytes(reader.take(len, "CBOR ends early")?.to_vec())),
        3 => {
            let text = std::str::from_utf8(reader.take(len, "CBOR ends early")?);
            return text
                .map(Value::text)
                .or_else(|_| malformed("CBOR text that is not UTF-8"));
        }
        _ => {}
    }
    if depth == DEPTH_MAX {
        return malformed("CBOR nested too deeply");
    }
    if major == 4 {
        let mut items = Vec::with_capacity(len.min(RESERVED_MAX));
        for _ in 0..len {
            items.push(item(reader, depth + 1)?);
        }
        return Ok(Value::Array(items));
    }
    let mut entries = Vec::with_capacity(len.min(RESERVED_MAX));
    let mut last = None;
    for _ in 0..len {
        let Value::Uint(key) = item(reader, depth + 1)? else {
            return malformed("CBOR map key that is not unsigned");
        };
        if last.is_some_and(|last| key <= last) {
            return malformed("CBOR map keys out of order");
        }
        last = Some(key);
        entries.push((Value::Uint(key), item(reader, depth + 1)?));
    }
    Ok(Value::Map(entries))
}

/// Reads the number that belongs to an initial byte, in its shortest form only.
fn argument(reader: &mut Reader<'_>, short: u8) -> Result<u64, Malformed> {
    let what = "CBOR number cut short";
    let (number, least) = match short {
        0..24 => return Ok(u64::from(short)),
        24 => (u64::from(reader.u8(what)?), 24),
        25 => (u64::from(u16::from_be_bytes(reader.array(what)?)), 0x100),
        26 => (u64::from(u32::from_be_bytes(reader.array(what)?)), 0x1_0000),
        27 => (u64::from_be_bytes(reader.array(what)?), 0x1_0000_0000),
        _ => return malformed("CBOR indefinite or reserved length"),
    };
    if number < least {
        malformed("CBOR number not in its shortest form")
    } else {
        Ok(number)
    }
}

/// A map with a schema, while it is read: known keys are taken out one by one, what is left is ignored.
///
/// A key from [`CRITICAL_KEY`] on that version 1 does not know (it knows none) makes the map unreadable.
#[derive(Debug)]
pub struct Fields {
    entries: Vec<(u64, Value)>,
}

impl Fields {
    /// Takes a map over. `what` names it in the error.
    ///
    /// # Errors
    /// If the value is not a map with unsigned keys, or has a critical key.
    pub fn new(value: Value, what: &'static str) -> Result<Fields, FormatError> {
        let Value::Map(map) = value else {
            return Ok(malformed(what)?);
        };
        let mut entries = Vec::with_capacity(map.len());
        for (key, value) in map {
            let key = key.into_uint(what)?;
            if key >= CRITICAL_KEY {
                return Err(FormatError::TooNew {
                    what: format!("{what}: unknown key {key:#x}"),
                });
            }
            entries.push((key, value));
        }
        Ok(Fields { entries })
    }

    /// Takes a field that may be absent.
    pub fn optional(&mut self, key: u64) -> Option<Value> {
        let index = self.entries.binary_search_by_key(&key, |entry| entry.0).ok()?;
        Some(self.entries.remove(index).1)
    }

    /// Takes a field that must be there.
    pub fn required(&mut self, key: u64, what: &'static str) -> Result<Value, Malformed> {
        self.optional(key).map_or_else(|| malformed(what), Ok)
    }

    /// Takes an unsigned number that must be there.
    pub fn uint(&mut self, key: u64, what: &'static str) -> Result<u64, Malformed> {
        self.required(key, what)?.into_uint(what)
    }

    /// Takes an unsigned number, `default` where absent.
    pub fn uint_or(&mut self, key: u64, default: u64, what: &'static str) -> Result<u64, Malformed> {
        self.optional(key).map_or(Ok(default), |value| value.into_uint(what))
    }

    /// Takes an unsigned number of 32 bits that must be there.
    pub fn u32(&mut self, key: u64, what: &'static str) -> Result<u32, Malformed> {
        self.required(key, what)?.into_u32(what)
    }

    /// Takes a point in time that must be there.
    pub fn time(&mut self, key: u64, what: &'static str) -> Result<Timestamp, Malformed> {
        self.required(key, what)?.into_time(what)
    }

    /// Takes a byte string of exactly `N` bytes that must be there.
    pub fn byte_array<const N: usize>(&mut self, key: u64, what: &'static str) -> Result<[u8; N], Malformed> {
        self.required(key, what)?.into_byte_array(what)
    }

    /// Takes a text, empty where absent.
    pub fn text_or_empty(&mut self, key: u64, what: &'static str) -> Result<String, Malformed> {
        self.optional(key)
            .map_or(Ok(String::new()), |value| value.into_text(what))
    }

    /// Takes the elements of an array, none where absent.
    pub fn array_or_empty(&mut self, key: u64, what: &'static str) -> Result<Vec<Value>, Malformed> {
        self.optional(key)
            .map_or(Ok(Vec::new()), |value| value.into_array(what))
    }

    /// Takes an array of byte strings of exactly `N` bytes, none where absent.
    pub fn byte_arrays_or_empty<const N: usize>(
        &mut self,
        key: u64,
        what: &'static str,
    ) -> Result<Vec<[u8; N]>, Malformed> {
        self.array_or_empty(key, what)?
            .into_iter()
            .map(|value| value.into_byte_array(what))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::id::from_hex;

    #[test]
    fn every_kind_of_value_round_trips() {
        let value = Value::map(vec![
            (0, Value::Uint(u64::MAX)),
            (23, Value::int(-1)),
            (24, Value::Nint(i64::MIN)),
            (0xff, Value::bytes(b"")),
            (0x100, Value::bytes(&[7; 300])),
            (0xffff, Value::text("ümläut")),
            (
                0x1_0000,
                Value::Array(vec![Value::Bool(true), Value::Bool(false), Value::Null]),
            ),
            (u64::MAX, Value::map(vec![(0, Value::Array(vec![]))])),
        ]);
        let bytes = encode(&value);
        assert_eq!(decode(&bytes).unwrap(), value);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "truncated to {len}");
        }
    }

    #[test]
    fn numbers_take_their_shortest_form() {
        let table: [(i64, &str); 12] = [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (255, "18ff"),
            (256, "190100"),
            (65_535, "19ffff"),
            (65_536, "1a00010000"),
            (1 << 32, "1b0000000100000000"),
            (-1, "20"),
            (-24, "37"),
            (-25, "3818"),
            (i64::MIN, "3b7fffffffffffffff"),
        ];
        for (number, hex) in table {
            assert_eq!(encode(&Value::int(number)), from_hex(hex).unwrap(), "{number}");
            assert_eq!(decode(&from_hex(hex).unwrap()).unwrap(), Value::int(number));
        }
        assert_eq!(encode(&Value::Nint(5)), [5]);
    }

    #[test]
    fn map_keys_are_sorted_whatever_order_they_are_given_in() {
        let one = Value::map(vec![(0x100, Value::Null), (3, Value::Null), (24, Value::Null)]);
        assert_eq!(encode(&one), from_hex("a303f61818f6190100f6").unwrap());
    }

    #[test]
    fn anything_but_the_canonical_encoding_is_refused() {
        let table = [
            ("", "nothing"),
            ("0000", "trailing byte"),
            ("1817", "number not shortest, 1 byte"),
            ("1900ff", "number not shortest, 2 bytes"),
            ("1a0000ffff", "number not shortest, 4 bytes"),
            ("1b00000000ffffffff", "number not shortest, 8 bytes"),
            ("1c", "reserved length"),
            ("1f", "indefinite number"),
            ("3b8000000000000000", "negative number below 64 bits"),
            ("3800", "negative number not shortest"),
            ("5800", "byte string length not shortest"),
            ("5f4100ff", "indefinite byte string"),
            ("41", "byte string cut short"),
            ("5bffffffffffffffff", "byte string of 2^64 bytes"),
            ("61ff", "text that is not UTF-8"),
            ("7f6161ff", "indefinite text"),
            ("9f00ff", "indefinite array"),
            ("9bffffffffffffffff", "array of 2^64 elements"),
            ("9a7fffffff00", "array longer than the input"),
            ("8100f6", "bytes after an array"),
            ("bf00f6ff", "indefinite map"),
            ("a1f6f6", "map key that is null"),
            ("a120f6", "map key that is negative"),
            ("a14100f6", "map key that is a byte string"),
            ("a200f600f6", "map key twice"),
            ("a201f600f6", "map keys out of order"),
            ("a100", "map cut short"),
            ("c000", "tag"),
            ("f7", "undefined"),
            ("f0", "simple value"),
            ("f820", "simple value of two bytes"),
            ("f90000", "half float"),
            ("fa00000000", "float"),
            ("fb0000000000000000", "double"),
            ("ff", "break"),
        ];
        for (hex, what) in table {
            assert!(decode(&from_hex(hex).unwrap()).is_err(), "{what}: {hex}");
        }
    }

    #[test]
    fn nesting_ends_at_depth_eight() {
        let nested = |depth: usize| [vec![0x81; depth - 1], vec![0x80]].concat();
        assert!(decode(&nested(8)).is_ok());
        assert!(decode(&nested(9)).is_err());
        assert!(decode(&vec![0x81; 1 << 20]).is_err());
        let maps = |depth: usize| [b"\xa1\x00".repeat(depth - 1), vec![0xa0]].concat();
        assert!(decode(&maps(8)).is_ok());
        assert!(decode(&maps(9)).is_err());
    }

    #[test]
    fn input_above_the_limit_is_refused() {
        let mut bytes = encode(&Value::Bytes(vec![0; INPUT_BYTES_MAX - 5]));
        assert_eq!(bytes.len(), INPUT_BYTES_MAX);
        assert!(decode(&bytes).is_ok());
        bytes = encode(&Value::Bytes(vec![0; INPUT_BYTES_MAX - 4]));
        assert!(decode(&bytes).is_err());
    }

    #[test]
    fn unknown_keys_are_ignored_below_the_critical_ones_and_refused_from_there() {
        let map = |key| Value::map(vec![(1, Value::Uint(7)), (key, Value::Null)]);
        assert_eq!(Fields::new(map(0x7fff), "test").unwrap().uint(1, "field"), Ok(7));
        for key in [0x8000, u64::MAX] {
            assert!(matches!(Fields::new(map(key), "test"), Err(FormatError::TooNew { .. })));
        }
    }
}
