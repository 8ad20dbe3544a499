//! Where to cut (format-spec chapter on chunking): keyed-gear FastCDC, 2020 two-byte form.

pub mod gear;

/// A chunker profile (config key 8), valid by construction through [`Profile::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile { pub min: u32, pub center: u32, pub max: u32, pub mask_s: u64, pub mask_l: u64 }

impl Profile {
    /// Profile 0: 512 KiB, 1 MiB, 4 MiB, NC2, masks of 22 and 18 ones from bit 62 downwards.
    pub const DEFAULT: Profile = Profile { min: 524_288, center: 1_048_576, max: 4_194_304, mask_s: 0x7fff_fe00_0000_0000, mask_l: 0x7fff_e000_0000_0000 };
    /// Checks the limits of the format: even sizes, 64 ≤ min ≤ center ≤ max ≤ 16 MiB, masks not empty, bit 63 free.
    pub fn new(_min: u32, _center: u32, _max: u32, _mask_s: u64, _mask_l: u64) -> Option<Profile> { todo!() }
}

/// Finds cut points with a repository's gear table.
pub struct Cutter { _private: () }

impl Cutter {
    /// Prepares both tables.
    pub fn new(_profile: Profile, _gear: &[u64; 256]) -> Cutter { todo!() }
    pub fn profile(&self) -> &Profile { todo!() }
    /// Returns the length of the first chunk of `bytes`. `bytes` must hold at least `max` bytes unless it ends the file; not empty.
    pub fn cut(&self, _bytes: &[u8]) -> usize { todo!() }
}
