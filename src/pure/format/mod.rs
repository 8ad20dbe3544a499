//! What the bytes mean: one file for each kind of object, each naming its chapter of `format-spec/`.

pub mod blob;
pub mod cbor;
pub mod codec;
pub mod condemn;
pub mod config;
pub mod entry;
pub mod envelope;
pub mod grant;
pub mod list;
pub mod manifest;
pub mod mark;
pub mod name;
pub mod node;
pub mod outcome;
pub mod pack;
pub mod parity;
pub mod protector;
pub mod replica;
pub mod run;
pub mod sealed;
pub mod session;
pub mod signed;

pub use codec::Malformed;

use crate::pure::crypto::{CannotOpen, MissingKey, sign::BadSignature};

/// Why a stored object was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes do not follow the format.
    #[error("malformed")]
    Malformed(#[from] Malformed),
    /// The seal does not open.
    #[error("sealed with another key, or damaged")]
    CannotOpen(#[from] CannotOpen),
    /// This holder lacks a key.
    #[error("a key is missing")]
    MissingKey(#[from] MissingKey),
    /// The signature is not valid.
    #[error("the signature is not valid")]
    Signature(#[from] BadSignature),
    /// Compressed bytes do not decode.
    #[error("compressed bytes do not decode")]
    Undecodable(#[from] crate::pure::compress::Undecodable),
    /// The plaintext is not what its id says.
    #[error("the content does not match its id")]
    WrongId,
    /// Written by a newer larder.
    #[error("written by a newer version of larder ({what})")]
    TooNew { what: String },
}
