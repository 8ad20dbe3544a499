//! Grants (format-spec chapter on keys): what a key holder may do, and the secrets for it.

use super::FormatError;
use crate::pure::base::Timestamp;
use crate::pure::crypto::{EpochSecrets, Secret, Signer, Verifier};
use crate::pure::id::{KeyId, RepoId};

/// A row of the admin's table of key holders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KidRow { pub kid: KeyId, pub grant_key: Secret, pub label: String }

/// A grant.
#[derive(Clone, Debug)]
pub struct Grant { pub issuer: KeyId, pub created: Timestamp, pub roles: u32, pub repo: RepoId, pub config_sequence: u64, pub admin_keys: Vec<[u8; 32]>, pub epochs: Vec<EpochSecrets>, pub label: Option<String>, pub kid_table: Vec<KidRow> }

/// K_g of a key holder.
pub fn grant_key(_kid_secret: &Secret, _repo: &RepoId) -> Secret { todo!() }
/// K_cache of a key holder: seals the local node cache.
pub fn cache_key(_kid_secret: &Secret, _repo: &RepoId) -> Secret { todo!() }

impl Grant {
    /// Signs and seals under `grants/<kid>/<number>`.
    pub fn encode(&self, _kid: &KeyId, _number: u64, _grant_key: &Secret, _signer: &Signer, _object_id: [u8; 16]) -> Vec<u8> { todo!() }
    pub fn decode(_bytes: &[u8], _kid: &KeyId, _number: u64, _grant_key: &Secret, _repo: &RepoId, _verifier: &Verifier) -> Result<Grant, FormatError> { todo!() }
}
