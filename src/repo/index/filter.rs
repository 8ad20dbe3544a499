//! A blocked Bloom filter over chunk ids: "certainly new" without asking SQLite (format-spec chapter on client-local
//! state, hot path).
//!
//! Held in memory and written to `filter.bin` when the index is closed. A map of the file would save the read (60 ms for
//! the largest one) but another process that truncates a mapped file kills us, and a kernel crash may lose some bits of
//! a mapped file and keep others; a file that is written whole carries a hash and the generation of the index it belongs
//! to, and is simply not used if either differs.
//!
//! One key touches one block of 64 bytes, which is one cache line. Its bits are taken from the id itself, which is a
//! keyed hash already.

use crate::pure::id::{ChunkId, RepoId};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a block.
const BLOCK: usize = 64;
/// Words of a block.
const BLOCK_WORDS: usize = BLOCK / 8;
/// Bits that a key sets in its block.
const BITS_PER_KEY: u32 = 6;
/// Keys per block at which about 1 % of unknown ids pass (10 bits for each key).
const KEYS_PER_BLOCK: u64 = (BLOCK as u64 * 8) / 10;
/// The smallest filter: 1 MiB, 830 thousand keys.
const BYTES_MIN: u64 = 1 << 20;

const MAGIC: &[u8; 8] = b"LARDERF2";
const HEADER: usize = 8 + 16 + 8 + 8 + 8;
const HASH: usize = 32;

/// The filter. Shared by all threads; bits are only ever set.
pub struct Filter {
    words: Box<[AtomicU64]>,
    keys: AtomicU64,
}

impl Filter {
    /// Makes an empty filter that is large enough for `keys`, but not larger than `bytes_max` (at least 64).
    pub fn with_room_for(keys: u64, bytes_max: u64) -> Filter {
        let wanted = keys
            .div_ceil(KEYS_PER_BLOCK)
            .saturating_mul(BLOCK as u64)
            .max(BYTES_MIN);
        let blocks = (wanted.min(bytes_max) / BLOCK as u64).max(1);
        Filter::empty(blocks as usize)
    }

    fn empty(blocks: usize) -> Filter {
        Filter {
            words: (0..blocks * BLOCK_WORDS).map(|_| AtomicU64::new(0)).collect(),
            keys: AtomicU64::new(0),
        }
    }

    /// Adds an id; true if it was certainly not there before.
    pub fn insert(&self, id: &ChunkId) -> bool {
        let (block, bits) = self.place(id);
        let mut masks = [0u64; BLOCK_WORDS];
        for bit in bits {
            masks[bit / 64] |= 1 << (bit % 64);
        }
        let mut new = false;
        for (word, mask) in self.words[block..block + BLOCK_WORDS].iter().zip(masks) {
            if mask != 0 {
                new |= word.fetch_or(mask, Ordering::Relaxed) & mask != mask;
            }
        }
        if new {
            self.keys.fetch_add(1, Ordering::Relaxed);
        }
        new
    }

    /// Returns false if the id was certainly never added.
    pub fn maybe(&self, id: &ChunkId) -> bool {
        let (block, bits) = self.place(id);
        bits.iter()
            .all(|bit| self.words[block + bit / 64].load(Ordering::Relaxed) >> (bit % 64) & 1 == 1)
    }

    /// Bytes that the filter takes.
    pub fn bytes(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// About how many ids were added.
    pub fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// True if more ids were added than it is made for, and a larger one is allowed.
    pub fn should_grow(&self, bytes_max: u64) -> bool {
        let blocks = (self.words.len() / BLOCK_WORDS) as u64;
        self.keys() > blocks * KEYS_PER_BLOCK && self.bytes() + BLOCK as u64 <= bytes_max
    }

    /// First word of the block of an id, and the bits in it.
    fn place(&self, id: &ChunkId) -> (usize, [usize; BITS_PER_KEY as usize]) {
        let bytes = id.as_bytes();
        let word = |at: usize| {
            u64::from_le_bytes(
                bytes[at..at + 8]
                    .try_into()
                    .expect("an id has 32 bytes, and `at` is 0 or 8"),
            )
        };
        let blocks = (self.words.len() / BLOCK_WORDS) as u128;
        let block = ((u128::from(word(0)) * blocks) >> 64) as usize;
        let bits = word(8);
        (
            block * BLOCK_WORDS,
            std::array::from_fn(|i| (bits >> (9 * i) & 511) as usize),
        )
    }

    /// Writes the filter to `path` by way of a neighbour, so that a half-written one never has the name.
    pub fn save(&self, path: &Path, repo: &RepoId, generation: u64) -> io::Result<()> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        let mut hasher = blake3::Hasher::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(bytes);
            file.write_all(bytes)
        };
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(repo.as_bytes());
        header.extend_from_slice(&generation.to_le_bytes());
        header.extend_from_slice(&((self.words.len() / BLOCK_WORDS) as u64).to_le_bytes());
        header.extend_from_slice(&self.keys().to_le_bytes());
        put(&header)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        for words in self.words.chunks(BUFFER / 8) {
            buffer.clear();
            words
                .iter()
                .for_each(|word| buffer.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes()));
            put(&buffer)?;
        }
        file.write_all(hasher.finalize().as_bytes())?;
        file.persist(path)?;
        Ok(())
    }

    /// Reads the filter at `path`; `None` if there is none, or not that of this repository and generation, or damaged.
    pub fn load(path: &Path, repo: &RepoId, generation: u64, bytes_max: u64) -> Option<Filter> {
        let mut file = File::open(path).ok()?;
        let mut hasher = blake3::Hasher::new();
        let mut header = [0; HEADER];
        file.read_exact(&mut header).ok()?;
        hasher.update(&header);
        let number =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("the header has a number there"));
        let blocks = number(32);
        let bytes = blocks.checked_mul(BLOCK as u64)?;
        let as_told = header[..8] == *MAGIC && header[8..24] == *repo.as_bytes() && number(24) == generation;
        let size = file.metadata().ok()?.len();
        if !as_told || blocks == 0 || bytes > bytes_max || size != bytes + (HEADER + HASH) as u64 {
            return None;
        }
        let filter = Filter::empty(usize::try_from(blocks).ok()?);
        filter.keys.store(number(40), Ordering::Relaxed);
        let mut buffer = vec![0; BUFFER];
        for words in filter.words.chunks(BUFFER / 8) {
            let part = &mut buffer[..words.len() * 8];
            file.read_exact(part).ok()?;
            hasher.update(part);
            for (word, bytes) in words.iter().zip(part.chunks_exact(8)) {
                word.store(
                    u64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes")),
                    Ordering::Relaxed,
                );
            }
        }
        let mut hash = [0; HASH];
        file.read_exact(&mut hash).ok()?;
        (*hasher.finalize().as_bytes() == hash).then_some(filter)
    }
}

/// Bytes read or written at a time.
const BUFFER: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    const REPO: RepoId = RepoId([7; 16]);

    fn id(number: u64) -> ChunkId {
        ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    #[test]
    fn knows_every_id_that_was_added_and_few_others() {
        let filter = Filter::with_room_for(200_000, 1 << 30);
        let room = filter.bytes() / 64 * KEYS_PER_BLOCK;
        (0..room).for_each(|number| {
            filter.insert(&id(number));
        });
        assert!((0..room).all(|number| filter.maybe(&id(number))));
        let false_positives = (0..100_000)
            .filter(|number| filter.maybe(&id((1 << 40) + number)))
            .count();
        assert!(false_positives < 2_000, "{false_positives} of 100 000");
        assert!(filter.keys() > room * 97 / 100 && filter.keys() <= room);
        assert!(!filter.should_grow(filter.bytes()), "the cap holds");
        (0..room / 2).for_each(|number| {
            filter.insert(&id((1 << 41) + number));
        });
        assert!(filter.should_grow(1 << 30));
    }

    #[test]
    fn a_hundred_million_keys_fit_128_mib() {
        assert!(100_000_000_u64.div_ceil(KEYS_PER_BLOCK) * 64 <= 128 << 20);
        assert!(Filter::with_room_for(u64::MAX, 1 << 20).bytes() <= 1 << 20);
    }

    #[test]
    fn comes_back_from_its_file_only_whole_and_for_the_same_generation_and_repository() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("filter.bin");
        let filter = Filter::with_room_for(0, 1 << 30);
        (0..1000).for_each(|number| {
            filter.insert(&id(number));
        });
        filter.save(&path, &REPO, 42).unwrap();
        let back = Filter::load(&path, &REPO, 42, 1 << 30).unwrap();
        assert!((0..1000).all(|number| back.maybe(&id(number))));
        assert_eq!(back.keys(), filter.keys());
        assert!(Filter::load(&path, &REPO, 43, 1 << 30).is_none());
        assert!(Filter::load(&path, &RepoId([8; 16]), 42, 1 << 30).is_none());
        assert!(Filter::load(&path, &REPO, 42, 1 << 19).is_none(), "larger than allowed");
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 97) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            assert!(Filter::load(&path, &REPO, 42, 1 << 30).is_none(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(Filter::load(&path, &REPO, 42, 1 << 30).is_none(), "cut at {at}");
        }
    }
}
