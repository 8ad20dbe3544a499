//! Deterministic CBOR (RFC 8949 §4.2.1), the subset that the format uses (format-spec chapter 1).

use super::Malformed;

/// A value of the subset: maps have unsigned integer keys (or byte-string keys where a chapter says so), no tags, no floats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value { Uint(u64), Nint(i64), Bytes(Vec<u8>), Text(String), Array(Vec<Value>), Map(Vec<(Value, Value)>), Bool(bool), Null }

/// Encodes deterministically (map keys are sorted by their encoding).
pub fn encode(_value: &Value) -> Vec<u8> { todo!() }

/// Decodes the canonical encoding only: no trailing bytes, no indefinite lengths, shortest forms, sorted unique keys, depth ≤ 8, input ≤ 16 MiB.
pub fn decode(_bytes: &[u8]) -> Result<Value, Malformed> { todo!() }
