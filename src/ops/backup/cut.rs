//! From a stream of bytes to chunks: a window that is filled by reading and emptied by cutting.

use crate::pure::chunk::Cutter;

/// Collects bytes until the next cut is certain.
pub struct Window<'c> {
    cutter: &'c Cutter,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'c> Window<'c> {
    /// Makes an empty window of twice the largest chunk.
    pub fn new(cutter: &'c Cutter) -> Window<'c> {
        let max = cutter.profile().max as usize;
        Window {
            cutter,
            buffer: vec![0; 2 * max],
            start: 0,
            end: 0,
        }
    }

    /// Forgets what has not been cut.
    pub fn reset(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Returns room to read into; never empty.
    pub fn room(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.end < self.buffer.len() / 8 && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `count` bytes of the room have been filled.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// Returns the next chunk if its end is certain: enough bytes are there, or the extent has ended (`at_end`).
    pub fn next_chunk(&mut self, at_end: bool) -> Option<&[u8]> {
        let available = self.end - self.start;
        if available == 0 || (!at_end && available < self.cutter.profile().max as usize) {
            return None;
        }
        let length = self.cutter.cut(&self.buffer[self.start..self.end]);
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
        let data: Vec<u8> = (0..100_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
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
    }
}
