//! Systematic Cauchy Reed–Solomon over GF(2⁸) (format-spec chapter 18): `m` parity blocks for `k` data blocks, any `m` of all may be lost.
//!
//! The field has no table of products: a block is multiplied by doubling, eight times, which compilers turn into vector instructions
//! without any `unsafe`. Tables are used for the few scalars of the matrix only.

/// x⁸ + x⁴ + x³ + x² + 1, without its highest term: what a doubling adds when a bit is carried out.
const CARRY: u8 = 0x1d;
/// Bytes that are multiplied together; a few vector registers.
const LANE: usize = 32;

/// Powers of 2, twice, so that a sum of two logarithms needs no remainder; and logarithms.
const TABLES: ([u8; 512], [u8; 256]) = {
    let (mut powers, mut logarithms) = ([0; 512], [0; 256]);
    let (mut power, mut exponent) = (1u8, 0);
    while exponent < 255 {
        powers[exponent] = power;
        powers[exponent + 255] = power;
        logarithms[power as usize] = exponent as u8;
        power = double(power);
        exponent += 1;
    }
    (powers, logarithms)
};

const fn double(value: u8) -> u8 {
    let carried = if value & 0x80 != 0 { CARRY } else { 0 };
    (value << 1) ^ carried
}

fn product(a: u8, b: u8) -> u8 {
    let (powers, logarithms) = &TABLES;
    match a == 0 || b == 0 {
        true => 0,
        false => powers[usize::from(logarithms[usize::from(a)]) + usize::from(logarithms[usize::from(b)])],
    }
}

/// Of a number that is not 0.
fn inverse(value: u8) -> u8 {
    let (powers, logarithms) = &TABLES;
    powers[255 - usize::from(logarithms[usize::from(value)])]
}

/// How much of data block `column` goes into parity block `row`. `row` < m, `column` < k, and k + m are at most 256.
pub fn coefficient(m: usize, row: usize, column: usize) -> u8 {
    inverse(row as u8 ^ (m + column) as u8)
}

/// Adds `factor` times `data` to `sum`. Both have the same length.
fn add_multiple(sum: &mut [u8], data: &[u8], factor: u8) {
    // The highest bit first: double what there is, and add the data where the factor has a bit.
    let masks: [u8; 8] = std::array::from_fn(|bit| 0u8.wrapping_sub((factor >> (7 - bit)) & 1));
    let (sums, sums_left) = sum.split_at_mut(sum.len() / LANE * LANE);
    let (lanes, left) = data.split_at(data.len() / LANE * LANE);
    for (sum, data) in sums.chunks_exact_mut(LANE).zip(lanes.chunks_exact(LANE)) {
        let mut multiple = [0u8; LANE];
        for mask in masks {
            for (multiple, data) in multiple.iter_mut().zip(data) {
                let carried = 0u8.wrapping_sub(*multiple >> 7) & CARRY;
                *multiple = (*multiple << 1) ^ carried ^ (data & mask);
            }
        }
        for (sum, multiple) in sum.iter_mut().zip(multiple) {
            *sum ^= multiple;
        }
    }
    for (sum, data) in sums_left.iter_mut().zip(left) {
        *sum ^= product(*data, factor);
    }
}

/// Adds data block `column` of a stripe to one of its parity blocks, which begin as zeros.
pub fn add(m: usize, row: usize, column: usize, parity: &mut [u8], data: &[u8]) {
    add_multiple(parity, data, coefficient(m, row, column));
}

/// Computes the lost data blocks of a stripe. `data` has all blocks of the stripe, those that are lost with any content; `lost` are the
/// columns of these; `parity` are rows and blocks that are sound. False if there are fewer of those than lost blocks: nothing is changed then.
pub fn restore(m: usize, data: &mut [&mut [u8]], lost: &[usize], parity: &[(usize, &[u8])]) -> bool {
    let Some(parity) = parity.get(..lost.len()) else {
        return false;
    };
    // What the parity blocks say of the lost ones alone.
    let mut sums: Vec<Vec<u8>> = parity.iter().map(|(_, block)| block.to_vec()).collect();
    for (column, block) in data.iter().enumerate() {
        if !lost.contains(&column) {
            for (sum, (row, _)) in sums.iter_mut().zip(parity) {
                add(m, *row, column, sum, block);
            }
        }
    }
    let rows = parity.iter().map(|(row, _)| *row);
    let matrix = rows.map(|row| lost.iter().map(|column| coefficient(m, row, *column)).collect());
    let inverted = invert(matrix.collect());
    for (factors, column) in inverted.iter().zip(lost) {
        let block = &mut *data[*column];
        block.fill(0);
        for (factor, sum) in factors.iter().zip(&sums) {
            add_multiple(block, sum, *factor);
        }
    }
    true
}

/// Inverts a square part of the matrix, by elimination. Every such part has an inverse: that is what makes it a Cauchy matrix.
fn invert(mut matrix: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let size = matrix.len();
    let unit = |row: usize| (0..size).map(|column| u8::from(row == column)).collect::<Vec<u8>>();
    let mut inverted: Vec<Vec<u8>> = (0..size).map(unit).collect();
    for pivot in 0..size {
        if let Some(row) = (pivot..size).find(|row| matrix[*row][pivot] != 0) {
            matrix.swap(pivot, row);
            inverted.swap(pivot, row);
        }
        let factor = inverse(matrix[pivot][pivot]);
        for value in matrix[pivot].iter_mut().chain(&mut inverted[pivot]) {
            *value = product(*value, factor);
        }
        for row in (0..size).filter(|row| *row != pivot) {
            let factor = matrix[row][pivot];
            for column in 0..size {
                matrix[row][column] ^= product(matrix[pivot][column], factor);
                inverted[row][column] ^= product(inverted[pivot][column], factor);
            }
        }
    }
    inverted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: polynomials over GF(2).
    fn slowly(a: u8, b: u8) -> u8 {
        let mut wide = (0..8)
            .filter(|bit| b >> bit & 1 == 1)
            .fold(0u16, |sum, bit| sum ^ u16::from(a) << bit);
        for bit in (8..16).rev() {
            if wide >> bit & 1 == 1 {
                wide ^= 0x11d << (bit - 8);
            }
        }
        wide as u8
    }

    #[test]
    fn the_field_is_the_one_of_the_polynomial_0x11d() {
        for a in 0..=255u8 {
            assert_eq!(double(a), slowly(a, 2));
            if a != 0 {
                assert_eq!(slowly(a, inverse(a)), 1);
            }
            for b in 0..=255u8 {
                assert_eq!(product(a, b), slowly(a, b));
            }
        }
    }

    #[test]
    fn blocks_are_multiplied_as_numbers_are_at_every_length() {
        let data: Vec<u8> = (0..=255).collect();
        for factor in 0..=255 {
            let length = usize::from(factor) % 97 + 150;
            let mut sum: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
            let expected: Vec<u8> = sum.iter().zip(&data).map(|(s, d)| s ^ slowly(*d, factor)).collect();
            add_multiple(&mut sum, &data[..length], factor);
            assert_eq!(sum, expected, "{factor}");
        }
    }

    #[test]
    fn the_vectors_are_reproduced() {
        let matrix: Vec<Vec<u8>> = (0..2)
            .map(|row| (0..3).map(|column| coefficient(2, row, column)).collect())
            .collect();
        assert_eq!(matrix, [[142, 244, 71], [244, 142, 167]]);
        let data = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]];
        let mut parity = [[0; 4]; 2];
        for (row, parity) in parity.iter_mut().enumerate() {
            for (column, block) in data.iter().enumerate() {
                add(2, row, column, parity, block);
            }
        }
        assert_eq!(parity, [[0xc8, 0x8f, 0xb2, 0xf2], [0x8e, 0xf4, 0x29, 0x04]]);
    }

    /// Every way to lose up to m of the data and parity blocks of a stripe, and every way to lose one more.
    #[test]
    fn what_is_lost_of_a_stripe_comes_back_up_to_m_blocks() {
        for (k, m) in [(1, 1), (3, 2), (5, 4), (7, 3)] {
            let data: Vec<Vec<u8>> = (0..k)
                .map(|block| (0..40).map(|at| (block * 41 + at * at + 1) as u8).collect())
                .collect();
            let mut parity = vec![vec![0; 40]; m];
            for (row, parity) in parity.iter_mut().enumerate() {
                for (column, block) in data.iter().enumerate() {
                    add(m, row, column, parity, block);
                }
            }
            for pattern in 0u32..1 << (k + m) {
                let is_lost = |block: usize| pattern >> block & 1 == 1;
                let lost: Vec<usize> = (0..k).filter(|column| is_lost(*column)).collect();
                let sound: Vec<(usize, &[u8])> = (0..m)
                    .filter(|row| !is_lost(k + row))
                    .map(|row| (row, &parity[row][..]))
                    .collect();
                let mut damaged = data.clone();
                lost.iter().for_each(|column| damaged[*column].fill(0xee));
                let mut blocks: Vec<&mut [u8]> = damaged.iter_mut().map(Vec::as_mut_slice).collect();
                let is_restored = restore(m, &mut blocks, &lost, &sound);
                assert_eq!(is_restored, lost.len() <= sound.len(), "{pattern:b}");
                assert_eq!(damaged == data, is_restored || lost.is_empty(), "{pattern:b}");
                assert!(pattern.count_ones() as usize > m || is_restored, "{pattern:b}");
            }
        }
    }
}
