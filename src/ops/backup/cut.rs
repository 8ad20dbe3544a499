//! From a stream of bytes to chunks: a window that is filled by reading and emptied by cutting.

use crate::pure::chunk::{Cuts, Cutter};

/// What is read at once at most: larger reads gain nothing, and smaller ones leave the bytes in the second-level cache.
const READ_BYTES: usize = 1 << 20;

/// Collects bytes until the next cut is certain.
pub struct Window<'c> {
    cuts: Cuts<'c>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'c> Window<'c> {
    /// Makes an empty window: the largest chunk and one read fit.
    pub fn new(cutter: &'c Cutter) -> Window<'c> {
        Window {
            cuts: cutter.cuts(),
            buffer: vec![0; cutter.profile().max as usize + READ_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// Forgets what has not been cut.
    pub fn reset(&mut self) {
        self.start = 0;
        self.end = 0;
        self.cuts.reset();
    }

    /// Returns room to read into: at most 1 MiB, and never empty once [`Self::next_chunk`] has had its turn.
    pub fn room(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.end < READ_BYTES && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let end = self.buffer.len().min(self.end + READ_BYTES);
        &mut self.buffer[self.end..end]
    }

    /// Says that `count` bytes of the room have been filled.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// Returns the next chunk if its end is certain ([`Cuts::next`]).
    pub fn next_chunk(&mut self, at_end: bool) -> Option<&[u8]> {
        let length = self.cuts.next(&self.buffer[self.start..self.end], at_end)?;
        let chunk = self.start..self.start + length;
        self.start += length;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        Some(&self.buffer[chunk])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::chunk::Profile;

    #[test]
    fn chunks_do_not_depend_on_how_the_bytes_arrive() {
        let first_match = Profile::new(64, 256, 1024, 0x7f00_0000_0000_0000, 0x7800_0000_0000_0000);
        let lowest_hash = Profile::lowest(64, 512, 1024, 0x7800_0000_0000_0000);
        for profile in [first_match, lowest_hash] {
            chunks_do_not_depend_on_reads(profile.unwrap());
        }
    }

    fn chunks_do_not_depend_on_reads(profile: Profile) {
        let mut gear = [0u64; 256];
        let mut state = 1u64;
        for word in &mut gear {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *word = state;
        }
        let cutter = Cutter::new(profile, &gear);
        let mut data: Vec<u8> = (0..100_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        // No cut but the largest chunk's.
        data[50_000..60_000].fill(0);
        let chunks_with_reads_of = |size: usize| {
            let mut window = Window::new(&cutter);
            let mut chunks = Vec::new();
            let mut rest = &data[..];
            while !rest.is_empty() {
                let room = window.room();
                let count = size.min(room.len()).min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                window.filled(count);
                while let Some(chunk) = window.next_chunk(rest.is_empty()) {
                    chunks.push(chunk.to_vec());
                }
            }
            chunks
        };
        let whole = chunks_with_reads_of(usize::MAX);
        assert!(whole.len() > 50);
        assert_eq!(whole.concat(), data);
        assert_eq!(chunks_with_reads_of(1), whole);
        assert_eq!(chunks_with_reads_of(777), whole);
        let expected: Vec<Vec<u8>> = {
            let (mut rest, mut cuts) = (&data[..], cutter.cuts());
            std::iter::from_fn(|| {
                let (chunk, after) = rest.split_at(cuts.next(rest, true)?);
                rest = after;
                Some(chunk.to_vec())
            })
            .collect()
        };
        assert_eq!(whole, expected, "what the cutter says when it sees everything");
        assert!(
            whole.iter().any(|chunk| chunk.len() > 512),
            "some are longer than the first look"
        );
    }
}
