//! The repository configuration (format-spec chapter on config): plaintext, signed, numbered.

use super::{FormatError, blob::Padding};
use crate::pure::base::Timestamp;
use crate::pure::chunk::Profile;
use crate::pure::crypto::{Signer, Verifier, sign::WriterKey};
use crate::pure::id::{KeyId, ObjectHash, RepoId};

/// A configuration, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub admin: KeyId,
    pub created: Timestamp,
    pub repo: RepoId,
    pub sequence: u64,
    pub previous: Option<ObjectHash>,
    pub features: Features,
    pub epoch: u32,
    pub chunkers: Vec<Profile>,
    pub data_pack_bytes: u64,
    pub meta_pack_bytes: u64,
    pub lanes: u32,
    pub zstd_level: u32,
    pub tree: TreeParams,
    pub padding: Padding,
    pub dedup_trust: u32,
    pub gc: GcParams,
    pub checksum: Checksum,
    pub writers: Vec<WriterKey>,
}

/// Feature bitmaps (config key 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features { pub compat: u64, pub ro_compat: u64, pub gc_compat: u64, pub incompat: u64 }

/// Tree parameters (config key 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeParams { pub leaf_bits: u32, pub inner_bits: u32, pub node_bytes_max: u32, pub inline_bytes: u32, pub inline_list: u32, pub list_bits: u32, pub list_max: u32 }

impl Default for TreeParams {
    fn default() -> Self {
        TreeParams { leaf_bits: 6, inner_bits: 8, node_bytes_max: 262_144, inline_bytes: 512, inline_list: 64, list_bits: 10, list_max: 4096 }
    }
}

/// Liveness intervals (config key 14), seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcParams { pub dead_seconds: u64, pub grace_seconds: u64, pub pack_age_seconds: u64, pub conditional_writes: bool, pub input_delay_seconds: u64 }

/// Checksum that is sent with every PUT (config key 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum { None = 0, Crc64Nvme = 1, Sha256 = 2, Crc32c = 3, ContentMd5 = 4 }

impl Config {
    /// A new repository's first configuration with the defaults of the spec.
    pub fn first(_repo: RepoId, _created: Timestamp, _admin: WriterKey) -> Config { todo!() }
    /// Encodes and signs under the name `config/<sequence>`.
    pub fn encode(&self, _signer: &Signer) -> Vec<u8> { todo!() }
    /// Decodes and verifies: self-signed by an admin of `trusted` (the previous configuration's verifier), or of its own writers when `trusted` is `None`. Checks feature bits: unknown incompat is [`FormatError::TooNew`].
    pub fn decode(_bytes: &[u8], _sequence: u64, _trusted: Option<&Verifier>) -> Result<Config, FormatError> { todo!() }
    pub fn verifier(&self) -> Verifier { Verifier { writers: self.writers.clone() } }
    /// Whether this version may write (unknown ro_compat bits forbid it).
    pub fn writable(&self) -> bool { todo!() }
}
