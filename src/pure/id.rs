//! Typed identifiers: one type for each thing that has an id, so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

/// The text is not an id: wrong length, or a character that is not lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {digits} lower-case hex digits")]
pub struct NotAnId {
    text: String,
    digits: usize,
}

/// Writes bytes as lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// Reads lower-case hex; `None` if a character is not a lower-case hex digit or the count is odd.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    bytes
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Bytes in an id of this type.
            pub const LEN: usize = $len;

            /// Returns the raw bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Takes an id out of a slice of exactly the right length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self(bytes.try_into().ok()?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;
            fn from_str(text: &str) -> Result<Self, NotAnId> {
                from_hex(text)
                    .and_then(|bytes| Self::from_slice(&bytes))
                    .ok_or_else(|| NotAnId { text: text.to_owned(), digits: $len * 2 })
            }
        }
    };
}

id!(
    /// Chosen at random when a repository is made; part of every key derivation and every AAD.
    RepoId, 16);
id!(
    /// A key holder (format-spec chapter 2).
    KeyId, 16);
id!(
    /// One run of a writing program; also the id of the snapshot that it publishes.
    SessionId, 16);
id!(
    /// A packfile. Random, never re-used.
    PackId, 16);
id!(
    /// The thing that is backed up, across nights: two snapshots with one source id are versions of each other.
    SourceId, 16);
id!(
    /// A place that holds a copy of a repository (format-spec chapter 4.1).
    PlaceId, 16);
id!(
    /// Keyed BLAKE3 of a blob's plaintext: data chunks, tree nodes, list nodes and manifests.
    ChunkId, 32);
id!(
    /// BLAKE3 of a whole stored object.
    ObjectHash, 32);

impl ChunkId {
    /// Stands for a hole in a sparse file (format-spec chapter on entries).
    pub const HOLE: ChunkId = ChunkId([0; 32]);
}

impl SessionId {
    /// Returns the writer tag: the first four bytes of the id of the key that the session belongs to.
    pub fn writer_tag(&self) -> [u8; 4] {
        [self.0[0], self.0[1], self.0[2], self.0[3]]
    }

    /// Returns the digits that people see: the eight after the writer tag, which all sessions of one key share.
    pub fn short(&self) -> String {
        to_hex(&self.0[4..8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_through_text_and_refuse_anything_else() {
        let id: PackId = "000102030405060708090a0b0c0d0eff".parse().unwrap();
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        assert!("000102030405060708090A0B0C0D0EFF".parse::<PackId>().is_err());
        assert!("0001".parse::<PackId>().is_err());
        assert!("000102030405060708090a0b0c0d0ef".parse::<PackId>().is_err());
    }
}
