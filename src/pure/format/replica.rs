//! The mark of a replica, `config/replica-<place>` (format-spec chapter 4.1): plaintext, and not signed, because whoever copies a
//! repository needs no key of it. That it is there is what counts; what it says keeps two repositories from being copied to one place.

use super::FormatError;
use super::cbor::{self, Fields, Value};
use super::protector::{frame, unframe};
use super::signed;
use crate::pure::base::Timestamp;
use crate::pure::id::RepoId;

const MAGIC: &[u8; 8] = b"LARDERM1";

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaMark {
    pub repo: RepoId,
    pub created: Timestamp,
    /// Where the first copy came from, for people.
    pub copied_from: String,
}

impl ReplicaMark {
    /// Returns the bytes as stored.
    pub fn encode(&self) -> Vec<u8> {
        let map = Value::map(vec![
            (0, Value::Uint(1)),
            (1, Value::bytes(self.repo.as_bytes())),
            (2, Value::time(self.created)),
            (3, Value::text(&self.copied_from)),
        ]);
        frame(MAGIC, &cbor::encode(&map))
    }

    /// Decodes a mark.
    ///
    /// # Errors
    /// The bytes do not follow the format.
    pub fn decode(bytes: &[u8]) -> Result<ReplicaMark, FormatError> {
        let what = "mark of a replica";
        let mut fields = Fields::new(cbor::decode(unframe(MAGIC, bytes, what)?)?, what)?;
        signed::check_version(&mut fields, what)?;
        Ok(ReplicaMark {
            repo: RepoId(fields.byte_array(1, what)?),
            created: fields.time(2, what)?,
            copied_from: fields.required(3, what)?.into_text(what)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip_and_no_bit_may_change() {
        let mark = ReplicaMark {
            repo: RepoId([3; 16]),
            created: Timestamp(1_700_000_000_000_000_000),
            copied_from: "s3://bucket/prefix".into(),
        };
        let bytes = mark.encode();
        assert_eq!(ReplicaMark::decode(&bytes), Ok(mark));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(ReplicaMark::decode(&changed).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(ReplicaMark::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
