//! The gear table, derived per repository from S_cdc.

use crate::pure::crypto::Secret;
use crate::pure::id::RepoId;

/// 256 little-endian words of DK("larder v1 gear table", S_cdc ‖ R, 2048).
pub fn table(_cdc_secret: &Secret, _repo: &RepoId) -> Box<[u64; 256]> { todo!() }
