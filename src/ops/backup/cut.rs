//! From a stream of bytes to chunks: a window that is filled by reading and emptied by cutting.

use crate::pure::chunk::{Cutter, Profile};

/// What is read at once at most: larger reads gain nothing, and smaller ones leave the bytes in the second-level cache.
const READ_BYTES: usize = 1 << 20;

/// Collects bytes until the next cut is certain.
pub struct Window<'c> {
    cutter: &'c Cutter,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// How much has to be there before a cut is looked for (again).
    enough: usize,
}

impl<'c> Window<'c> {
    /// Makes an empty window: the largest chunk and one read fit.
    pub fn new(cutter: &'c Cutter) -> Window<'c> {
        Window {
            cutter,
            buffer: vec![0; cutter.profile().max as usize + READ_BYTES],
            start: 0,
            end: 0,
            enough: first_look(cutter.profile()),
        }
    }

    /// Forgets what has not been cut.
    pub fn reset(&mut self) {
        self.start = 0;
        self.end = 0;
        self.enough = first_look(self.cutter.profile());
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

    /// Returns the next chunk if its end is certain: a cut was found, as much as the largest chunk is there, or the extent
    /// has ended (`at_end`).
    pub fn next_chunk(&mut self, at_end: bool) -> Option<&[u8]> {
        let available = self.end - self.start;
        if available == 0 || (!at_end && available < self.enough) {
            return None;
        }
        let length = self.cutter.cut(&self.buffer[self.start..self.end]);
        let max = self.cutter.profile().max as usize;
        if length == available && length < max && !at_end {
            // The end of what is there is no cut. Few chunks are so long; looking twice is enough.
            self.enough = max;
            return None;
        }
        self.enough = first_look(self.cutter.profile());
        let chunk = self.start..self.start + length;
        self.start += length;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        Some(&self.buffer[chunk])
    }
}

/// Nearly all chunks are shorter than this, so that few are looked through twice, and few bytes have to be kept.
fn first_look(profile: &Profile) -> usize {
    profile.max.min(2 * profile.center) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_do_not_depend_on_how_the_bytes_arrive() {
        let profile = Profile::new(64, 256, 1024, 0x7f00_0000_0000_0000, 0x7800_0000_0000_0000).unwrap();
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
            let mut rest = &data[..];
            std::iter::from_fn(|| {
                let (chunk, after) = rest.split_at(if rest.is_empty() { 0 } else { cutter.cut(rest) });
                rest = after;
                (!chunk.is_empty()).then(|| chunk.to_vec())
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
