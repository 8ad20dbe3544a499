//! From a password to key material: Argon2id (RFC 9106) within a floor and a ceiling.

use super::Secret;

/// Cost of Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl Cost {
    /// What new protectors are written with: RFC 9106's second recommended option (64 MiB, 3 passes, 4 lanes).
    pub const DEFAULT: Cost = Cost { memory_kib: 65_536, passes: 3, lanes: 4 };
}

/// The cost is outside of what larder accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password protector asks for {memory_kib} KiB, {passes} passes and {lanes} lanes, which is outside of the limits")]
pub struct CostRefused { pub memory_kib: u32, pub passes: u32, pub lanes: u32 }

/// Stretches a password. Refuses more than 2 GiB, 64 passes or 16 lanes, before allocating.
pub fn argon2id(_password: &[u8], _salt: &[u8; 16], _cost: Cost) -> Result<Secret, CostRefused> { todo!() }
