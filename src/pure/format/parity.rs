//! Parity sidecars `par/<name>` (format-spec chapter 18): what brings an object back that a bad sector or a slip has damaged. Not needed
//! for reading, and never believed: whoever rebuilds an object opens it as what it should be before it counts.
//!
//! Objects below [`COPIED_BELOW`] have a plain copy, which also brings one back that is gone. Larger ones have Reed–Solomon parity in
//! stripes: neighbouring blocks are in different stripes, so that a burst of damage is spread over all of them.

pub mod code;

use super::codec::Reader;
use super::name::ObjectName;
use crate::pure::crypto::hash;
use std::collections::BTreeSet;

const MAGIC: &[u8; 8] = b"LARDERX1";
const HEADER_LEN: usize = 64;
/// Of a block's hash as it is kept: enough to see damage, which is not out to deceive.
const HASH_LEN: usize = 8;
/// H of everything before it.
const END_LEN: usize = 32;
/// Smaller objects are copied, bytes.
pub const COPIED_BELOW: u64 = 64 << 10;
/// Limits of the shape that a configuration may ask for.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 64..=1 << 20;
/// Elements of the field: every row and every column of the matrix has one of its own.
const ROWS_AND_COLUMNS_MAX: u32 = 256;

/// How much parity there is (config key 20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Data blocks in a stripe at most.
    k: u16,
    /// Parity blocks of a stripe.
    m: u16,
    block_bytes: u32,
}

impl Shape {
    /// Four blocks of 4 KiB for a hundred: 4 % more, and 0.65 MiB in a row may be lost of 16 MiB.
    pub const STANDARD: Shape = Shape {
        k: 100,
        m: 4,
        block_bytes: 4096,
    };

    /// Checks the numbers; `None` if there is no such code.
    pub fn new(k: u16, m: u16, block_bytes: u32) -> Option<Shape> {
        let fits = k > 0 && m > 0 && u32::from(k) + u32::from(m) <= ROWS_AND_COLUMNS_MAX;
        (fits && BLOCK_BYTES.contains(&block_bytes)).then_some(Shape { k, m, block_bytes })
    }

    /// Returns k, m, and the bytes of a block.
    pub fn numbers(&self) -> [u64; 3] {
        [self.k.into(), self.m.into(), self.block_bytes.into()]
    }
}

/// Whether objects of this name have a sidecar. A password that is removed must be gone, so protectors have none; what sessions say is of
/// use for some days; the mark of a replica belongs to its place.
pub fn has_sidecar(name: &ObjectName) -> bool {
    !matches!(
        name,
        ObjectName::Protector(..) | ObjectName::Session(..) | ObjectName::ReplicaMark(_)
    )
}

/// Returns the name of the sidecar of an object.
pub fn sidecar_name(object: &str) -> String {
    format!("par/{object}")
}

/// Why a sidecar does not bring an object back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hopeless {
    #[error("the sidecar is not one, or its headers are damaged")]
    NotASidecar,
    #[error("more blocks are damaged than there is parity for")]
    TooMuch,
    #[error("what was rebuilt is not what the sidecar was made of")]
    NotTheSame,
}

/// Where things are in a sidecar with parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    shape: Shape,
    object_bytes: u64,
    blocks: u64,
    stripes: u64,
}

impl Layout {
    fn new(shape: Shape, object_bytes: u64) -> Layout {
        let blocks = object_bytes.div_ceil(shape.block_bytes.into());
        Layout {
            shape,
            object_bytes,
            blocks,
            stripes: blocks.div_ceil(shape.k.into()),
        }
    }

    fn parity_blocks(&self) -> u64 {
        self.stripes * u64::from(self.shape.m)
    }

    /// Where the parity blocks begin.
    fn parity_start(&self) -> u64 {
        HEADER_LEN as u64 + (self.blocks + self.parity_blocks()) * HASH_LEN as u64
    }

    /// Of the whole sidecar. Saturating: an object size that a damaged header states may be anything.
    fn sidecar_bytes(&self) -> u64 {
        let parity = self.parity_blocks().saturating_mul(self.shape.block_bytes.into());
        self.parity_start()
            .saturating_add(parity)
            .saturating_add((HEADER_LEN + END_LEN) as u64)
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    layout: Layout,
    object_hash: [u8; 32],
}

impl Header {
    fn encode(&self) -> [u8; HEADER_LEN] {
        let Shape { k, m, block_bytes } = self.layout.shape;
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&k.to_le_bytes());
        bytes[10..12].copy_from_slice(&m.to_le_bytes());
        bytes[12..16].copy_from_slice(&block_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.layout.object_bytes.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.object_hash);
        bytes
    }

    /// Reads a header of a sidecar with this many bytes: one that states another size is damaged. So nothing is allocated that is not
    /// in proportion to what is there.
    fn decode(bytes: &[u8], sidecar_bytes: usize) -> Option<Header> {
        let mut reader = Reader::new(bytes.strip_prefix(MAGIC)?);
        let what = "parity header";
        let (k, m) = (reader.u16(what).ok()?, reader.u16(what).ok()?);
        let shape = Shape::new(k, m, reader.u32(what).ok()?)?;
        let object_bytes = reader.u64(what).ok()?;
        let object_hash = reader.array(what).ok()?;
        // Far beyond any object; below, no sum overflows.
        let is_possible = (COPIED_BELOW..1 << 40).contains(&object_bytes);
        let layout = Layout::new(shape, object_bytes);
        (is_possible && layout.sidecar_bytes() == sidecar_bytes as u64).then_some(Header { layout, object_hash })
    }
}

/// How many bytes the sidecar of an object has.
pub fn sidecar_bytes(shape: Shape, object_bytes: u64) -> u64 {
    match object_bytes < COPIED_BELOW {
        true => object_bytes,
        false => Layout::new(shape, object_bytes).sidecar_bytes(),
    }
}

/// Makes the sidecar of an object of at least [`COPIED_BELOW`] bytes; that of a smaller one is its copy.
pub fn encode(shape: Shape, object: &[u8]) -> Vec<u8> {
    let layout = Layout::new(shape, object.len() as u64);
    let header = Header {
        layout,
        object_hash: hash(object),
    };
    let (block_bytes, stripes) = (shape.block_bytes as usize, layout.stripes as usize);
    let mut sidecar = Vec::with_capacity(layout.sidecar_bytes() as usize);
    sidecar.extend_from_slice(&header.encode());
    let mut parity = vec![0; layout.parity_blocks() as usize * block_bytes];
    let mut padded = vec![0; block_bytes];
    for (number, block) in object.chunks(block_bytes).enumerate() {
        let block = match block.len() == block_bytes {
            true => block,
            false => {
                padded[..block.len()].copy_from_slice(block);
                &padded[..]
            }
        };
        sidecar.extend_from_slice(&block_hash(block));
        let (stripe, column) = (number % stripes, number / stripes);
        for row in 0..usize::from(shape.m) {
            let start = (row * stripes + stripe) * block_bytes;
            let parity = &mut parity[start..start + block_bytes];
            code::add(shape.m.into(), row, column, parity, block);
        }
    }
    for block in parity.chunks_exact(block_bytes) {
        sidecar.extend_from_slice(&block_hash(block));
    }
    sidecar.extend_from_slice(&parity);
    sidecar.extend_from_slice(&header.encode());
    let end = hash(&sidecar);
    sidecar.extend_from_slice(&end);
    sidecar
}

fn block_hash(block: &[u8]) -> [u8; HASH_LEN] {
    let [a, b, c, d, e, f, g, h, ..] = hash(block);
    [a, b, c, d, e, f, g, h]
}

/// Whether a sidecar is, byte for byte, what was written for this object.
pub fn is_intact(sidecar: &[u8], object: &[u8]) -> bool {
    if (object.len() as u64) < COPIED_BELOW {
        return sidecar == object;
    }
    let Some((body, end)) = sidecar.split_last_chunk::<END_LEN>() else {
        return false;
    };
    let header = sidecar.get(..HEADER_LEN);
    let header = header.and_then(|header| Header::decode(header, sidecar.len()));
    header.is_some_and(|header| header.object_hash == hash(object)) && hash(body) == *end
}

/// Makes an object again from its sidecar and what is left of it: nothing at all, or bytes of any number, some of which are wrong.
/// A copy is taken as it is: the caller has to see whether it is sound. Nobody has signed a sidecar, so it has no say in how much memory
/// is taken: objects have `bytes_max` at most.
///
/// # Errors
/// When it cannot be done. Never is anything returned that a sidecar with parity was not made of.
pub fn rebuild(sidecar: &[u8], left: &[u8], bytes_max: u64) -> Result<Vec<u8>, Hopeless> {
    let first = sidecar.get(..HEADER_LEN);
    let second = sidecar
        .len()
        .checked_sub(HEADER_LEN + END_LEN)
        .and_then(|start| sidecar.get(start..start + HEADER_LEN));
    let mut headers: Vec<Header> = [first, second]
        .into_iter()
        .flatten()
        .filter_map(|bytes| Header::decode(bytes, sidecar.len()))
        .collect();
    headers.dedup();
    // A sidecar with parity whose headers are both damaged may be taken for a copy here: it does not open as anything.
    if headers.is_empty() && (sidecar.len() as u64) < COPIED_BELOW && !sidecar.is_empty() {
        return Ok(sidecar.to_vec());
    }
    let mut why = Hopeless::NotASidecar;
    for header in headers
        .into_iter()
        .filter(|header| header.layout.object_bytes <= bytes_max)
    {
        match rebuild_by(&header, sidecar, left) {
            Ok(object) => return Ok(object),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// `sidecar` has the length that the header implies.
fn rebuild_by(header: &Header, sidecar: &[u8], left: &[u8]) -> Result<Vec<u8>, Hopeless> {
    let layout = &header.layout;
    let Shape { m, block_bytes, .. } = layout.shape;
    let (m, block_bytes) = (usize::from(m), block_bytes as usize);
    let (blocks, stripes) = (layout.blocks as usize, layout.stripes as usize);
    let parity_start = layout.parity_start() as usize;
    let hashes = &sidecar[HEADER_LEN..parity_start];
    let is_sound = |number: usize, block: &[u8]| hashes[number * HASH_LEN..][..HASH_LEN] == block_hash(block);
    let parity_block = |number: usize| &sidecar[parity_start + number * block_bytes..][..block_bytes];

    // What is missing at the end is zeros for now, as the padding of the last block is.
    let object_bytes = layout.object_bytes as usize;
    let mut object = vec![0; blocks * block_bytes];
    let there = left.len().min(object_bytes);
    object[..there].copy_from_slice(&left[..there]);
    let damaged: Vec<usize> = object
        .chunks_exact(block_bytes)
        .enumerate()
        .filter(|(number, block)| !is_sound(*number, block))
        .map(|(number, _)| number)
        .collect();
    let hit: BTreeSet<usize> = damaged.iter().map(|number| number % stripes).collect();
    for stripe in hit {
        let of_stripe = damaged.iter().filter(|number| *number % stripes == stripe);
        let lost: Vec<usize> = of_stripe.map(|number| number / stripes).collect();
        let parity: Vec<(usize, &[u8])> = (0..m)
            .map(|row| (row, row * stripes + stripe))
            .filter(|(_, number)| is_sound(blocks + number, parity_block(*number)))
            .map(|(row, number)| (row, parity_block(number)))
            .collect();
        let all = object.chunks_exact_mut(block_bytes);
        let mut data: Vec<&mut [u8]> = all.skip(stripe).step_by(stripes).collect();
        if !code::restore(m, &mut data, &lost, &parity) {
            return Err(Hopeless::TooMuch);
        }
    }
    object.truncate(object_bytes);
    match hash(&object) == header.object_hash {
        true => Ok(object),
        false => Err(Hopeless::NotTheSame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small enough to try everything: objects above the limit have many blocks all the same.
    const SMALL: Shape = Shape {
        k: 100,
        m: 4,
        block_bytes: 64,
    };

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn flip(bytes: &mut [u8], at: usize) {
        bytes[at] ^= 0x10;
    }

    #[test]
    fn a_sidecar_has_the_size_that_is_told_beforehand_and_is_recognised() {
        for (shape, length) in [
            (SMALL, 65_536),
            (SMALL, 65_537),
            (SMALL, 70_001),
            (Shape::STANDARD, 65_536),
            (Shape::STANDARD, 409_600),
            (Shape::STANDARD, 409_601),
            (Shape::STANDARD, 1_000_000),
        ] {
            let object = noise(1, length);
            let sidecar = encode(shape, &object);
            assert_eq!(sidecar.len() as u64, sidecar_bytes(shape, length as u64));
            assert!(is_intact(&sidecar, &object));
            assert!(!is_intact(&sidecar, &object[1..]) && !is_intact(&sidecar[1..], &object));
            for at in (0..sidecar.len()).step_by(997) {
                let mut other = sidecar.clone();
                flip(&mut other, at);
                assert!(!is_intact(&other, &object), "{at}");
                assert_eq!(rebuild(&other, &object, 1 << 30).as_ref(), Ok(&object), "{at}");
            }
            if object.len() as u64 >= COPIED_BELOW {
                let max = object.len() as u64 - 1;
                assert_eq!(rebuild(&sidecar, &object, max), Err(Hopeless::NotASidecar));
            }
            assert_eq!(rebuild(&sidecar, &object, 1 << 30), Ok(object));
        }
        assert_eq!(sidecar_bytes(Shape::STANDARD, 65_535), 65_535);
        // What the documents say: 4 % of a full pack.
        assert_eq!(
            sidecar_bytes(Shape::STANDARD, 32 << 20),
            64 + 8 * (8192 + 328) + 328 * 4096 + 96
        );
    }

    /// 4 of every 100 blocks, in a row or anywhere in their stripes; a fifth is one too many.
    #[test]
    fn bursts_come_back_up_to_m_blocks_of_every_stripe() {
        let object = noise(2, 90_000);
        let sidecar = encode(SMALL, &object);
        let stripes = 90_000usize.div_ceil(64).div_ceil(100);
        for start in (0..90_000 - stripes * 5 * 64).step_by(64 * 7) {
            for (blocks, comes_back) in [(1, true), (4, true), (5, false)] {
                let mut damaged = object.clone();
                damaged[start..start + blocks * stripes * 64].fill(0x55);
                let rebuilt = rebuild(&sidecar, &damaged, 1 << 30);
                match comes_back {
                    true => assert!(rebuilt.as_ref() == Ok(&object), "{start} {blocks}"),
                    false => assert_eq!(rebuilt, Err(Hopeless::TooMuch), "{start}"),
                }
            }
        }
    }

    #[test]
    fn every_pattern_of_losses_in_a_stripe_comes_back_up_to_m_blocks() {
        let shape = Shape::new(7, 3, 1 << 14).unwrap();
        let object = noise(3, 7 << 14);
        let sidecar = encode(shape, &object);
        let parity_start = Layout::new(shape, 7 << 14).parity_start() as usize;
        for pattern in 0u32..1 << 10 {
            let (mut damaged, mut hurt) = (object.clone(), sidecar.clone());
            for block in (0..10).filter(|block| pattern >> block & 1 == 1) {
                match block < 7 {
                    true => flip(&mut damaged, block * (1 << 14) + 77),
                    false => flip(&mut hurt, parity_start + (block - 7) * (1 << 14) + 99),
                }
            }
            let rebuilt = rebuild(&hurt, &damaged, 1 << 30);
            let lost = (pattern & 0x7f).count_ones();
            match lost + (pattern >> 7).count_ones() <= 3 || lost == 0 {
                true => assert!(rebuilt.as_ref() == Ok(&object), "{pattern:b}"),
                false => assert_eq!(rebuilt, Err(Hopeless::TooMuch), "{pattern:b}"),
            }
        }
    }

    #[test]
    fn objects_that_are_too_short_or_too_long_come_back() {
        let object = noise(4, 90_000);
        let sidecar = encode(SMALL, &object);
        let stripes = 90_000usize.div_ceil(64).div_ceil(100);
        // The last block is part of one.
        for cut in [1, 63, 64, 65, 1000, (stripes * 4 - 1) * 64] {
            assert_eq!(
                rebuild(&sidecar, &object[..90_000 - cut], 1 << 30).as_ref(),
                Ok(&object),
                "{cut}"
            );
        }
        assert_eq!(rebuild(&sidecar, &object[..60_000], 1 << 30), Err(Hopeless::TooMuch));
        assert_eq!(rebuild(&sidecar, &[], 1 << 30), Err(Hopeless::TooMuch));
        let mut longer = object.clone();
        longer.extend_from_slice(&noise(5, 70_000));
        assert_eq!(rebuild(&sidecar, &longer, 1 << 30).as_ref(), Ok(&object));
        flip(&mut longer, 12_345);
        assert_eq!(rebuild(&sidecar, &longer, 1 << 30).as_ref(), Ok(&object));
    }

    #[test]
    fn either_header_is_enough_and_one_that_lies_is_seen_through() {
        let object = noise(6, 80_000);
        let sidecar = encode(SMALL, &object);
        let mut damaged = object.clone();
        flip(&mut damaged, 40_000);
        let second = sidecar.len() - HEADER_LEN - END_LEN;
        for at in 0..HEADER_LEN {
            for start in [0, second] {
                let mut hurt = sidecar.clone();
                flip(&mut hurt, start + at);
                assert_eq!(rebuild(&hurt, &damaged, 1 << 30).as_ref(), Ok(&object), "{at}");
            }
            // Both: what it was, or nothing that could be taken for it.
            let mut hurt = sidecar.clone();
            flip(&mut hurt, at);
            flip(&mut hurt, second + (at + 1) % HEADER_LEN);
            if let Ok(rebuilt) = rebuild(&hurt, &damaged, 1 << 30) {
                assert!(rebuilt == object || rebuilt == hurt, "{at}");
            }
        }
        // Damage of the whole beginning, hashes of some blocks with it: those blocks count as damaged, and are rebuilt.
        let mut hurt = sidecar.clone();
        hurt[..HEADER_LEN + 20 * HASH_LEN].fill(0);
        assert_eq!(rebuild(&hurt, &damaged, 1 << 30).as_ref(), Ok(&object));
    }

    #[test]
    fn copies_are_given_back_and_nothing_else_is_taken_for_one() {
        assert_eq!(rebuild(b"a small object", b"", 1 << 30), Ok(b"a small object".to_vec()));
        assert!(is_intact(b"a small object", b"a small object") && !is_intact(b"a small", b"a small object"));
        assert_eq!(rebuild(b"", b"x", 1 << 30), Err(Hopeless::NotASidecar));
        assert_eq!(rebuild(&noise(7, 65_536), b"x", 1 << 30), Err(Hopeless::NotASidecar));
    }

    /// Whatever is in the place of a sidecar: no panic, and no memory beyond what is there.
    #[test]
    fn any_bytes_are_survived() {
        let object = noise(8, 66_000);
        let sidecar = encode(SMALL, &object);
        for cut in (0..sidecar.len()).step_by(61) {
            let _ = rebuild(&sidecar[..cut], &object, 1 << 30);
        }
        for field in [8..10, 10..12, 12..16, 16..24] {
            for fill in [0, 1, 0x7f, 0x80, 0xff] {
                let mut hurt = sidecar.clone();
                let second = hurt.len() - HEADER_LEN - END_LEN;
                hurt[field.clone()].fill(fill);
                hurt[second + field.start..second + field.end].fill(fill);
                let _ = rebuild(&hurt, &object, 1 << 30);
            }
        }
        for seed in 0..200 {
            let mut bytes = noise(seed, 300);
            bytes[..8].copy_from_slice(MAGIC);
            let _ = rebuild(&bytes, &object[..500], 1 << 30);
        }
    }

    #[test]
    fn shapes_that_no_code_has_are_refused() {
        assert_eq!(Shape::new(100, 4, 4096), Some(Shape::STANDARD));
        assert!(Shape::new(252, 4, 64).is_some() && Shape::new(253, 4, 64).is_none());
        for (k, m, block) in [
            (0, 4, 4096),
            (100, 0, 4096),
            (100, 4, 63),
            (100, 4, (1 << 20) + 1),
            (u16::MAX, u16::MAX, 4096),
        ] {
            assert_eq!(Shape::new(k, m, block), None);
        }
    }
}
