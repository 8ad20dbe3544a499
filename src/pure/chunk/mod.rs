//! Where to cut (format-spec chapter on chunking): keyed gear hashes, through FastCDC's loop in its 2020 two-byte form.

mod cuts;

pub use cuts::Cuts;

use zeroize::Zeroize;

/// How a cut is chosen (the numbers are those of the format).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The first place whose hash fits a mask, a strict one up to the center and a lax one behind it (FastCDC).
    FirstMatch = 1,
    /// Of the places whose hash fits a mask, the one with the lowest hash.
    LowestHash = 3,
}

/// A chunker profile (config key 8), valid by construction through [`Profile::new`] and [`Profile::lowest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    pub algorithm: Algorithm,
    pub min: u32,
    pub center: u32,
    pub max: u32,
    pub mask_s: u64,
    pub mask_l: u64,
}

impl Profile {
    /// The profile of the test vectors: 512 KiB, 1 MiB, 4 MiB, masks of 22 and 18 ones from bit 62 downwards.
    pub const DEFAULT: Profile = Profile {
        algorithm: Algorithm::FirstMatch,
        min: 524_288,
        center: 1_048_576,
        max: 4_194_304,
        mask_s: 0x7fff_fe00_0000_0000,
        mask_l: 0x7fff_e000_0000_0000,
    };
    /// Of new repositories: 512 KiB to 3 MiB, 1.7 MiB on average; one place in 16 384 may be a cut (ADR-0028).
    pub const NEW: Profile = Profile {
        algorithm: Algorithm::LowestHash,
        min: 524_288,
        center: 1_572_864,
        max: 3_145_728,
        mask_s: 0x7ffe_0000_0000_0000,
        mask_l: 0x7ffe_0000_0000_0000,
    };

    /// Checks the limits of the format: even sizes, 64 ≤ min ≤ center ≤ max ≤ 16 MiB, masks not empty, bit 63 free.
    pub fn new(min: u32, center: u32, max: u32, mask_s: u64, mask_l: u64) -> Option<Profile> {
        Profile::checked(Profile {
            algorithm: Algorithm::FirstMatch,
            min,
            center,
            max,
            mask_s,
            mask_l,
        })
    }

    /// As [`Profile::new`], for [`Algorithm::LowestHash`].
    pub fn lowest(min: u32, center: u32, max: u32, mask: u64) -> Option<Profile> {
        Profile::checked(Profile {
            algorithm: Algorithm::LowestHash,
            min,
            center,
            max,
            mask_s: mask,
            mask_l: mask,
        })
    }

    fn checked(profile: Profile) -> Option<Profile> {
        let Profile { min, center, max, .. } = profile;
        let ordered = 64 <= min && min <= center && center <= max && max <= 16 << 20;
        let even = [min, center, max].iter().all(|size| size % 2 == 0);
        let masks = [profile.mask_s, profile.mask_l]
            .iter()
            .all(|mask| *mask != 0 && mask >> 63 == 0);
        (ordered && even && masks).then_some(profile)
    }
}

/// Bytes from one candidate to where the next one is looked for: a hash of 64 bits knows no more.
const CONTEXT: u32 = 64;

/// A repository's gear table and profile.
pub struct Cutter {
    profile: Profile,
    tables: Box<Tables>,
}

/// The gear table, and the same shifted left by one for the first byte of each pair.
struct Tables {
    gear: [u64; 256],
    gear_ls: [u64; 256],
}

impl Cutter {
    /// Prepares both tables.
    pub fn new(profile: Profile, gear: &[u64; 256]) -> Cutter {
        Cutter {
            profile,
            tables: Box::new(Tables {
                gear: *gear,
                gear_ls: gear.map(|word| word << 1),
            }),
        }
    }

    /// Returns the sizes and masks.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Returns what finds the cuts of one extent.
    pub fn cuts(&self) -> Cuts<'_> {
        Cuts::new(self)
    }

    /// Returns the length of the first chunk of `bytes` (not empty). Where `bytes` holds less than `max` bytes and does not end the
    /// extent, a result that is shorter than `bytes` is right if there are `center` bytes at least; one as long says nothing.
    fn first_match(&self, bytes: &[u8]) -> usize {
        let Profile { min, center, max, .. } = self.profile;
        let (_, length) = self.gear(bytes, [min, center, max], self.profile.mask_s, self.profile.mask_l);
        length
    }

    /// Returns the first place of `bytes` behind the 64th byte whose hash fits, and its hash modulo 2^63. What is as far as `bytes`
    /// reaches is not seen.
    fn next_candidate(&self, bytes: &[u8]) -> Option<(usize, u64)> {
        // Longer than anything that is looked through.
        const FAR: u32 = 1 << 30;
        let mask = self.profile.mask_s;
        let (hash, at) = self.gear(bytes, [CONTEXT, FAR, FAR], mask, mask);
        // At even places the loop has the hash shifted by one.
        let hash = if at % 2 == 0 { hash >> 1 } else { hash & (u64::MAX >> 1) };
        (at < bytes.len()).then_some((at, hash))
    }

    fn gear(&self, bytes: &[u8], [min, center, max]: [u32; 3], mask_s: u64, mask_l: u64) -> (u64, usize) {
        fastcdc::v2020::cut_gear(
            bytes,
            min as usize,
            center as usize,
            max as usize,
            mask_s,
            mask_l,
            mask_s << 1,
            mask_l << 1,
            &self.tables.gear,
            &self.tables.gear_ls,
        )
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        self.gear.zeroize();
        self.gear_ls.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::crypto::vectors::{keys, noise};

    fn lengths(profile: Profile, mut bytes: &[u8]) -> Vec<usize> {
        let cutter = Cutter::new(profile, keys().gear().unwrap());
        let (mut cuts, mut lengths) = (cutter.cuts(), Vec::new());
        while !bytes.is_empty() {
            let length = cuts.next(bytes, true).unwrap();
            lengths.push(length);
            bytes = &bytes[length..];
        }
        lengths
    }

    #[test]
    fn chunks_are_cut_where_the_vectors_say() {
        let noise = noise("larder cdc test", 8 << 20);
        let profile = Profile::DEFAULT;
        assert_eq!(
            lengths(profile, &noise),
            [1197114, 1234146, 1049286, 1565045, 1242307, 1432120, 668590]
        );
        assert_eq!(lengths(profile, &noise[..524_288]), [524_288]);
        assert_eq!(lengths(profile, &noise[..524_289]), [524_289]);
        assert_eq!(lengths(profile, &vec![0; 5 << 20]), [4_194_304, 1_048_576]);
        let text: String = (0..100_000)
            .map(|line| format!("{line:08}\tthe quick brown fox\n"))
            .collect();
        assert_eq!(lengths(profile, text.as_bytes()), [1208829, 578770, 1112401]);
        let small = Profile::new(64, 256, 1024, 0x7fe0_0000_0000_0000, 0x7e00_0000_0000_0000).unwrap();
        assert_eq!(
            lengths(small, &noise[..8192]),
            [
                274, 509, 274, 256, 442, 354, 253, 381, 294, 266, 466, 322, 292, 258, 333, 265, 201, 294, 71, 403, 116,
                265, 287, 542, 332, 282, 160
            ]
        );
    }

    /// The format is frozen independently of the crate: a plain port of the published loop must cut alike.
    #[test]
    fn the_crate_cuts_as_the_published_loop() {
        fn published(profile: &Profile, gear: &[u64; 256], b: &[u8]) -> usize {
            let rem = b.len();
            if rem <= profile.min as usize {
                return rem;
            }
            let end = rem.min(profile.max as usize);
            let c = (profile.center as usize).min(end);
            let (mut h, mut i) = (0u64, profile.min as usize / 2);
            while i < end / 2 {
                let mask = if i < c / 2 { profile.mask_s } else { profile.mask_l };
                h = (h << 2).wrapping_add(gear[b[2 * i] as usize] << 1);
                if h & (mask << 1) == 0 {
                    return 2 * i;
                }
                h = h.wrapping_add(gear[b[2 * i + 1] as usize]);
                if h & mask == 0 {
                    return 2 * i + 1;
                }
                i += 1;
            }
            end
        }
        let keys = keys();
        let gear = keys.gear().unwrap();
        let noise = noise("published loop", 20_000);
        let profile = Profile::new(64, 128, 512, 0x7f00_0000_0000_0000, 0x7800_0000_0000_0000).unwrap();
        let cutter = Cutter::new(profile, gear);
        for start in 0..2_000 {
            for len in [1, 63, 64, 65, 127, 129, 511, 512, 513, 4_001] {
                let bytes = &noise[start..start + len];
                assert_eq!(
                    cutter.first_match(bytes),
                    published(&profile, gear, bytes),
                    "start {start}, length {len}"
                );
            }
        }
    }

    #[test]
    fn a_cut_depends_on_no_byte_behind_the_maximum() {
        let noise = noise("lookahead", 3_000);
        let profile = Profile::new(64, 256, 1024, 0x7fe0_0000_0000_0000, 0x7e00_0000_0000_0000).unwrap();
        let cutter = Cutter::new(profile, keys().gear().unwrap());
        for start in 0..1_000 {
            assert_eq!(
                cutter.first_match(&noise[start..start + 1024]),
                cutter.first_match(&noise[start..])
            );
        }
    }

    #[test]
    fn profiles_outside_of_the_limits_are_refused() {
        let d = Profile::DEFAULT;
        assert_eq!(Profile::new(d.min, d.center, d.max, d.mask_s, d.mask_l), Some(d));
        for (min, center, max) in [
            (62, 64, 64),
            (65, 66, 68),
            (64, 67, 68),
            (64, 66, 69),
            (66, 64, 68),
            (64, 68, 66),
        ] {
            assert_eq!(Profile::new(min, center, max, 1, 1), None);
        }
        assert_eq!(Profile::new(64, 64, (16 << 20) + 2, 1, 1), None);
        assert!(Profile::new(64, 64, 16 << 20, 1, 1).is_some());
        assert_eq!(Profile::new(64, 64, 64, 0, 1), None);
        assert_eq!(Profile::new(64, 64, 64, 1, 1 << 63), None);
    }
}
