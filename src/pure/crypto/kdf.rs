//! From a password to key material: Argon2id (RFC 9106) within a floor and a ceiling (format-spec chapter 2).

use super::Secret;
use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

/// Most memory that a protector may ask for: 2 GiB. More would be a way to stop the reader's machine.
pub const MEMORY_KIB_MAX: u32 = 2_097_152;
/// Most passes over the memory.
pub const PASSES_MAX: u32 = 64;
/// Most lanes.
pub const LANES_MAX: u32 = 16;

/// Cost of Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl Cost {
    /// What new protectors are written with: 56 MiB, 4 passes, 4 lanes. A guess costs as much as with RFC 9106's second
    /// recommended option (64 MiB, 3 passes): memory times the time for which it is taken is 56² · 4 against 64² · 3.
    pub const DEFAULT: Cost = Cost {
        memory_kib: 57_344,
        passes: 4,
        lanes: 4,
    };
}

/// The cost is outside of what larder accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the password protector asks for {memory_kib} KiB, {passes} passes and {lanes} lanes, which is outside of the limits"
)]
pub struct CostRefused {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

/// Stretches a password. Takes as long as `cost` says, about a tenth of a second for the default.
///
/// # Errors
/// More than 2 GiB, 64 passes or 16 lanes, or less than RFC 9106 allows (1 pass, 1 lane, 8 KiB for each lane):
/// refused before anything is allocated.
pub fn argon2id(password: &[u8], salt: &[u8; 16], cost: Cost) -> Result<Secret, CostRefused> {
    let Cost {
        memory_kib,
        passes,
        lanes,
    } = cost;
    let refused = CostRefused {
        memory_kib,
        passes,
        lanes,
    };
    let accepted = (1..=PASSES_MAX).contains(&passes)
        && (1..=LANES_MAX).contains(&lanes)
        && (8 * lanes..=MEMORY_KIB_MAX).contains(&memory_kib);
    if !accepted {
        return Err(refused);
    }
    let Ok(params) = Params::new(memory_kib, passes, lanes, Some(32)) else {
        return Err(refused);
    };
    let mut out = Zeroizing::new([0; 32]);
    match Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(password, salt, &mut *out) {
        Ok(()) => Ok(Secret::new(*out)),
        // Only a password above 4 GiB is left to be refused.
        Err(_) => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors::*;
    use super::*;

    #[test]
    fn a_guess_costs_no_less_than_the_recommended_one() {
        // Memory times the time for which it is taken.
        let product = |memory_kib: u32, passes: u32| u64::from(memory_kib).pow(2) * u64::from(passes);
        assert!(product(Cost::DEFAULT.memory_kib, Cost::DEFAULT.passes) >= product(65_536, 3));
    }

    #[test]
    fn the_published_password_gives_the_published_key() {
        let cost = Cost {
            memory_kib: 65_536,
            passes: 3,
            lanes: 4,
        };
        let ikm = argon2id(b"correct horse battery staple", &counting(0), cost).unwrap();
        assert_eq!(
            ikm.expose()[..],
            hex("853b272a44db1421c02962669a55eb0994f3cab385ed1c4c79253eee19bab49e")
        );
        let ikm_and_repo: [&[u8]; 2] = [ikm.expose(), REPO.as_bytes()];
        assert_eq!(
            super::super::derive("larder v1 protector", &ikm_and_repo).expose()[..],
            hex("73681c22e185ecb1fa97c7537cc165554d6b90b20a33608a86741ad70c96c205")
        );
        assert_eq!(
            super::super::derive("larder v1 protector commit", &ikm_and_repo).expose()[..],
            hex("317a9ca2d985fdf889d011c483218c4b1512a75391629a7ea46fa9470bdbd2a4")
        );
    }

    #[test]
    fn memory_bombs_and_nonsense_are_refused_without_running() {
        let costs = [
            (2_097_153, 1, 1),
            (u32::MAX, 1, 1),
            (64, 65, 1),
            (1 << 20, u32::MAX, 1),
            (256, 1, 17),
            (256, 0, 1),
            (256, 1, 0),
            (31, 1, 4),
            (0, 1, 1),
        ];
        for (memory_kib, passes, lanes) in costs {
            let result = argon2id(
                b"x",
                &[0; 16],
                Cost {
                    memory_kib,
                    passes,
                    lanes,
                },
            );
            assert_eq!(
                result,
                Err(CostRefused {
                    memory_kib,
                    passes,
                    lanes
                })
            );
        }
        assert!(
            argon2id(
                b"",
                &[0; 16],
                Cost {
                    memory_kib: 32,
                    passes: 1,
                    lanes: 4
                }
            )
            .is_ok()
        );
    }
}
