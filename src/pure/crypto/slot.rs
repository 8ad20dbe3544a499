//! Slots: wrapped session keys, 88 bytes (format-spec chapter 2). Method 1 is written and read; others are refused by name.

/// One slot exactly as stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub [u8; 88]);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", crate::pure::id::to_hex(&self.0[..8]))
    }
}
