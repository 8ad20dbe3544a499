//! zstd with early detection of data that will not shrink (format-spec chapters on blobs and on deltas).
//!
//! What is read may come from anybody who holds a key, so a frame is looked at before zstd sees it: exactly one standard
//! frame, no dictionary, a window within the limit, a declared size that is the expected one. Output goes into a slice
//! of the expected length; there is nothing that could grow.

use std::io::Cursor;
use zstd_safe::{CCtx, CParameter, DCtx};

/// Largest window, as a power of two, that the format allows.
const WINDOW_LOG_MAX: u32 = 27;
/// First bytes of a standard frame. Skippable and legacy frames have others and are refused.
const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// First bytes of a trained dictionary, which zstd treats specially unless told that it is only content.
const DICTIONARY_MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];

/// Room behind the last byte that zstd may write: its bit streams give up some bytes before the end.
const FRAME_SLACK: usize = 64;

/// Chunks below this are simply tried: the probe would cost as much as it saves.
const PROBE_BYTES_MIN: usize = 32 << 10;
/// The probe looks at this many pieces …
const PROBE_PIECES: usize = 16;
/// … of this many bytes, spread evenly over the chunk.
const PROBE_PIECE_BYTES: usize = 1 << 10;
/// Bits per byte above which data counts as incompressible. 16 KiB of pure noise measure about 7.99.
const PROBE_BITS_MAX: f64 = 7.95;

/// Reusable compression state: one per worker thread.
pub struct Compressor {
    level: i32,
    context: CCtx<'static>,
}

impl Compressor {
    /// Makes a compressor for a zstd level (1 … 19).
    pub fn new(level: i32) -> Compressor {
        let mut context = CCtx::create();
        configure(&mut context, level);
        Compressor { level, context }
    }

    /// Appends one zstd frame holding `raw` to `out` and returns true, or leaves `out` as it was and returns false when the
    /// sampled entropy or the result says that less than 3 % would be saved. No checksum, content size in the frame.
    pub fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        if looks_incompressible(raw) {
            return false;
        }
        append_if_smaller(&mut self.context, raw, out)
    }

    /// Appends a frame made with `base` as reference prefix (format-spec chapter on deltas), or leaves `out` as it was
    /// and returns false when it would not be at least 3 % smaller than `raw`.
    pub fn compress_delta(&mut self, raw: &[u8], base: &[u8], out: &mut Vec<u8>) -> bool {
        if base.is_empty() {
            return false;
        }
        // A prefix is borrowed for the life of its context, so each delta has a context of its own. That costs little:
        // the tables of a context are cleared for each prefix anyway.
        let mut context = CCtx::create();
        configure(&mut context, self.level);
        let reach = raw.len().saturating_add(base.len());
        let window_log = reach
            .checked_next_power_of_two()
            .map_or(WINDOW_LOG_MAX, usize::trailing_zeros);
        let parameters = [
            CParameter::WindowLog(window_log.clamp(10, WINDOW_LOG_MAX)),
            CParameter::EnableLongDistanceMatching(true),
        ];
        for parameter in parameters {
            if context.set_parameter(parameter).is_err() {
                return false;
            }
        }
        context.ref_prefix(base).is_ok() && append_if_smaller(&mut context, raw, out)
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compressor(level {})", self.level)
    }
}

fn configure(context: &mut CCtx<'_>, level: i32) {
    let parameters = [
        CParameter::CompressionLevel(level),
        CParameter::ChecksumFlag(false),
        CParameter::ContentSizeFlag(true),
        CParameter::DictIdFlag(false),
    ];
    for parameter in parameters {
        context
            .set_parameter(parameter)
            .expect("zstd clamps levels and knows its own flags");
    }
}

/// A fresh destination is hardly longer than a frame may be, so zstd itself gives up when it does not get there.
fn append_if_smaller(context: &mut CCtx<'_>, raw: &[u8], out: &mut Vec<u8>) -> bool {
    let frame_bytes_max = raw.len() - (raw.len() * 3).div_ceil(100);
    let start = out.len();
    // Only room, not bytes: what a chunk does not need is not touched.
    out.reserve(frame_bytes_max + FRAME_SLACK);
    let mut end = Cursor::new(&mut *out);
    end.set_position(start as u64);
    let is_small = matches!(context.compress2(&mut end, raw), Ok(written) if written <= frame_bytes_max);
    if !is_small {
        out.truncate(start);
    }
    is_small
}

/// Whether the order-0 entropy of a sample says that compressing is a waste of time.
fn looks_incompressible(raw: &[u8]) -> bool {
    if raw.len() < PROBE_BYTES_MIN {
        return false;
    }
    let mut counts = [0u32; 256];
    let stride = (raw.len() - PROBE_PIECE_BYTES) / (PROBE_PIECES - 1);
    for piece in 0..PROBE_PIECES {
        let start = piece * stride;
        for byte in &raw[start..start + PROBE_PIECE_BYTES] {
            counts[usize::from(*byte)] += 1;
        }
    }
    let total = (PROBE_PIECES * PROBE_PIECE_BYTES) as f64;
    let bits: f64 = counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| {
            let share = f64::from(*count) / total;
            -share * share.log2()
        })
        .sum();
    bits > PROBE_BITS_MAX
}

/// Reusable decompression state: one per worker thread.
pub struct Decompressor {
    context: DCtx<'static>,
}

/// Stored bytes do not decode to what they declare.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compressed data does not decode to the {declared} bytes that it declares")]
pub struct Undecodable {
    pub declared: usize,
}

impl Decompressor {
    /// Makes a decompressor; its window is limited to 2^27 bytes.
    pub fn new() -> Decompressor {
        Decompressor {
            context: DCtx::create(),
        }
    }

    /// Decodes exactly one frame of exactly `raw_len` bytes into `out` (cleared first; never grows past `raw_len`).
    ///
    /// # Errors
    /// Anything else; `out` is then empty.
    pub fn decompress(&mut self, frame: &[u8], raw_len: usize, out: &mut Vec<u8>) -> Result<(), Undecodable> {
        decode(frame, raw_len, out, |out| self.context.decompress(out, frame))
    }

    /// As [`Self::decompress`], for a frame made with `base` as reference prefix.
    ///
    /// # Errors
    /// Anything that is not exactly such a frame; `out` is then empty.
    pub fn decompress_delta(
        &mut self,
        frame: &[u8],
        base: &[u8],
        raw_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Undecodable> {
        decode(frame, raw_len, out, |out| {
            if base.starts_with(&DICTIONARY_MAGIC) {
                // The quick way below would read such a base as a dictionary. It is content like any other.
                let mut context = DCtx::create();
                context.ref_prefix(base)?;
                return context.decompress(out, frame);
            }
            self.context.decompress_using_dict(out, frame, base)
        })
    }
}

impl Default for Decompressor {
    fn default() -> Self {
        Decompressor::new()
    }
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor")
    }
}

/// Checks the frame, then lets `run` decode it into exactly `raw_len` bytes.
fn decode(
    frame: &[u8],
    raw_len: usize,
    out: &mut Vec<u8>,
    run: impl FnOnce(&mut Vec<u8>) -> Result<usize, usize>,
) -> Result<(), Undecodable> {
    let undecodable = Undecodable { declared: raw_len };
    out.clear();
    if frame_len(frame, raw_len) != Some(frame.len()) {
        return Err(undecodable);
    }
    // zstd writes into the capacity, without zeros being put there first.
    out.reserve_exact(raw_len);
    if run(out) == Ok(raw_len) {
        return Ok(());
    }
    out.clear();
    Err(undecodable)
}

/// Returns the length of the frame at the start of `bytes` if it is one that the format allows and it does not declare
/// another size than `raw_len`. The blocks are walked, not decoded.
pub(crate) fn frame_len(bytes: &[u8], raw_len: usize) -> Option<usize> {
    if !header_is_allowed(bytes, raw_len) {
        return None;
    }
    let len = zstd_safe::find_frame_compressed_size(bytes).ok()?;
    (len <= bytes.len()).then_some(len)
}

/// RFC 8878 section 3.1.1.1. Looked at here because zstd in one pass does not check the window, and would follow a
/// dictionary id.
fn header_is_allowed(bytes: &[u8], raw_len: usize) -> bool {
    let Some((descriptor, rest)) = bytes.strip_prefix(&FRAME_MAGIC).and_then(<[u8]>::split_first) else {
        return false;
    };
    let single_segment = descriptor & 0x20 != 0;
    let reserved = descriptor & 0x08;
    let dictionary_id = descriptor & 0x03;
    if reserved != 0 || dictionary_id != 0 {
        return false;
    }
    let mut rest = rest;
    if !single_segment {
        let Some((window, after)) = rest.split_first() else {
            return false;
        };
        let base = 1u64 << (10 + u32::from(window >> 3));
        let size = base + base / 8 * u64::from(window & 7);
        if size > 1 << WINDOW_LOG_MAX {
            return false;
        }
        rest = after;
    }
    let declared = match (descriptor >> 6, single_segment) {
        (0, false) => return true,
        (0, true) => rest.first().map(|byte| u64::from(*byte)),
        (1, _) => rest
            .first_chunk()
            .map(|bytes| u64::from(u16::from_le_bytes(*bytes)) + 256),
        (2, _) => rest.first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes))),
        _ => rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)),
    };
    declared == Some(raw_len as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::crypto::vectors::{hex, noise};

    fn text(len: usize) -> Vec<u8> {
        (0u32..)
            .flat_map(|line| format!("{line}: the quick brown fox {}\n", line.wrapping_mul(77) % 913).into_bytes())
            .take(len)
            .collect()
    }

    fn compressed(raw: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        assert!(Compressor::new(3).compress(raw, &mut frame));
        frame
    }

    #[test]
    fn content_comes_back_at_every_size_and_level() {
        let mut decompressor = Decompressor::new();
        for level in [1, 3, 19] {
            let mut compressor = Compressor::new(level);
            for len in [64, 100, 255, 256, 257, 4_096, 65_791, 65_792, 300_000] {
                let raw = text(len);
                let mut frame = b"before".to_vec();
                assert!(compressor.compress(&raw, &mut frame), "{len}");
                assert_eq!(frame[..6], *b"before");
                let mut out = vec![7; 500];
                decompressor.decompress(&frame[6..], len, &mut out).unwrap();
                assert_eq!(out, raw);
            }
        }
    }

    #[test]
    fn frames_declare_their_size_and_have_no_checksum() {
        let frame = compressed(&text(5_000));
        assert_eq!(zstd_safe::get_frame_content_size(&frame).unwrap(), Some(5_000));
        assert_eq!(frame[4] & 0x04, 0);
    }

    #[test]
    fn what_does_not_shrink_by_three_percent_is_left_alone() {
        let mut compressor = Compressor::new(3);
        for len in [0, 1, 2, 31, 32, 1_000, 32_767, 32_768, 1 << 20] {
            let mut out = b"before".to_vec();
            assert!(!compressor.compress(&noise("incompressible", len), &mut out), "{len}");
            assert_eq!(out, b"before");
        }
        // The context survives a refusal.
        assert!(compressor.compress(&text(1_000), &mut Vec::new()));
    }

    #[test]
    fn the_limit_is_three_percent_exactly() {
        // Noise with a run of zeros as long as what is to be saved, and the frame's own overhead.
        let mut compressor = Compressor::new(3);
        let mut seen = [false, false];
        for zeros in (100..600).step_by(5) {
            let mut raw = noise("limit", 10_000);
            raw[..zeros].fill(0);
            let mut kept = Vec::new();
            let is_kept = compressor.compress(&raw, &mut kept);
            let mut context = CCtx::create();
            configure(&mut context, 3);
            let mut whole = vec![0; 20_000];
            let len = context.compress2(&mut whole[..], &raw).unwrap();
            assert_eq!(is_kept, len * 100 <= raw.len() * 97, "{zeros} zeros give {len} bytes");
            seen[usize::from(is_kept)] = true;
        }
        assert_eq!(seen, [true, true]);
    }

    #[test]
    fn noise_is_recognised_by_a_sample_and_text_is_not() {
        assert!(looks_incompressible(&noise("sample", 32 << 10)));
        assert!(looks_incompressible(&noise("sample", (1 << 20) + 7)));
        assert!(!looks_incompressible(&noise("sample", (32 << 10) - 1)));
        assert!(!looks_incompressible(&text(1 << 20)));
        // Half noise: worth a try.
        let mut half = noise("sample", 1 << 20);
        half[..1 << 19].fill(b' ');
        assert!(!looks_incompressible(&half));
    }

    #[test]
    fn another_length_than_declared_is_refused_either_way_and_releases_nothing() {
        let raw = text(5_000);
        let frame = compressed(&raw);
        let mut decompressor = Decompressor::new();
        for raw_len in [0, 1, 4_999, 5_001, 16 << 20] {
            let mut out = b"left over".to_vec();
            let result = decompressor.decompress(&frame, raw_len, &mut out);
            assert_eq!(result, Err(Undecodable { declared: raw_len }));
            assert!(out.is_empty());
        }
    }

    /// A frame without a content size field, as a foreign writer may make: only the decoder can find out.
    fn without_content_size(raw: &[u8], checksum: bool) -> Vec<u8> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::ContentSizeFlag(false)).unwrap();
        context.set_parameter(CParameter::ChecksumFlag(checksum)).unwrap();
        let mut frame = vec![0; raw.len() + 1_000];
        let len = context.compress2(&mut frame[..], raw).unwrap();
        frame.truncate(len);
        frame
    }

    #[test]
    fn a_bomb_stops_at_the_declared_length() {
        let mut decompressor = Decompressor::new();
        let frame = without_content_size(&vec![0; 8 << 20], false);
        assert!(frame.len() < 1_000);
        let mut out = Vec::new();
        assert!(decompressor.decompress(&frame, 1_000, &mut out).is_err());
        assert!(out.is_empty() && out.capacity() <= 1_000);
        assert!(decompressor.decompress(&frame, (8 << 20) + 1, &mut out).is_err());
        assert!(decompressor.decompress(&frame, 8 << 20, &mut out).is_ok());
        assert_eq!((out.len(), out.capacity()), (8 << 20, (8 << 20) + 1));
    }

    #[test]
    fn a_checksum_is_allowed_and_checked() {
        let raw = text(3_000);
        let mut frame = without_content_size(&raw, true);
        let mut out = Vec::new();
        Decompressor::new().decompress(&frame, 3_000, &mut out).unwrap();
        assert_eq!(out, raw);
        *frame.last_mut().unwrap() ^= 1;
        assert!(Decompressor::new().decompress(&frame, 3_000, &mut out).is_err());
    }

    #[test]
    fn truncated_frames_trailing_bytes_and_second_frames_are_refused() {
        let raw = text(2_000);
        let frame = compressed(&raw);
        let mut decompressor = Decompressor::new();
        let mut out = Vec::new();
        for len in 0..frame.len() {
            assert!(
                decompressor.decompress(&frame[..len], 2_000, &mut out).is_err(),
                "{len}"
            );
        }
        let empty_frame = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x00, 0x01, 0x00, 0x00];
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        for tail in [&[0][..], &empty_frame, &skippable] {
            assert!(
                decompressor
                    .decompress(&[&frame, tail].concat(), 2_000, &mut out)
                    .is_err()
            );
            assert!(
                decompressor
                    .decompress(&[tail, &frame].concat(), 2_000, &mut out)
                    .is_err()
            );
        }
        assert!(decompressor.decompress(&frame, 2_000, &mut out).is_ok());
    }

    #[test]
    fn dictionary_ids_reserved_bits_and_large_windows_are_refused() {
        // One raw block with one byte in it, under several headers.
        let body = [0x09, 0x00, 0x00, b'x'];
        let frame = |header: &[u8]| [&FRAME_MAGIC[..], header, &body].concat();
        let decodes = |header: &[u8]| {
            let mut out = Vec::new();
            Decompressor::new().decompress(&frame(header), 1, &mut out).is_ok() && out == b"x"
        };
        assert!(decodes(&[0x20, 1]));
        assert!(decodes(&[0x00, 17 << 3]), "a window of 2^27");
        assert!(!decodes(&[0x00, (17 << 3) | 1]), "a window of 2^27 and an eighth");
        assert!(!decodes(&[0x00, 18 << 3]));
        assert!(!decodes(&[0x21, 9, 1]), "a dictionary id");
        assert!(!decodes(&[0x28, 1]), "the reserved bit");
        assert!(!decodes(&[0x20, 2]), "another content size");
        assert!(!decodes(&[]));
        // Magic of a legacy frame (v0.7).
        let mut legacy = frame(&[0x20, 1]);
        legacy[0] = 0x27;
        assert!(Decompressor::new().decompress(&legacy, 1, &mut Vec::new()).is_err());
    }

    #[test]
    fn damaged_frames_never_decode_to_another_length_and_never_panic() {
        let raw = text(1_500);
        let frame = compressed(&raw);
        let mut decompressor = Decompressor::new();
        let mut out = Vec::new();
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            match decompressor.decompress(&damaged, 1_500, &mut out) {
                Ok(()) => assert_eq!(out.len(), 1_500),
                Err(_) => assert!(out.is_empty()),
            }
        }
        decompressor.decompress(&frame, 1_500, &mut out).unwrap();
        assert_eq!(out, raw);
    }

    #[test]
    fn the_published_frames_decode() {
        let mut out = Vec::new();
        let mut decompressor = Decompressor::new();
        decompressor
            .decompress(&hex("28b52ffd60e8024d00001000000100e32b8005"), 1_000, &mut out)
            .unwrap();
        assert_eq!(out, vec![0; 1_000]);
        let base = noise("larder delta base", 512);
        let delta = hex("28b52ffd601001e50000806f6e65206368616e67656420726f770a0200fa1304b5fd01940002");
        decompressor.decompress_delta(&delta, &base, 528, &mut out).unwrap();
        assert_eq!(out, [&base[..256], b"one changed row\n", &base[256..]].concat());
    }

    #[test]
    fn deltas_are_small_and_come_back_whatever_the_sizes() {
        let mut compressor = Compressor::new(3);
        let mut decompressor = Decompressor::new();
        for (base_len, changed) in [(512, 2), (60_000, 7), (1 << 20, 40), (4 << 20, 90)] {
            // Noise, so that only the base can make it smaller.
            let base = noise("base", base_len);
            let mut raw = base.clone();
            for change in 0..changed {
                let at = raw.len() / changed * change;
                raw.splice(at..at, format!("row {change}").into_bytes());
            }
            let mut frame = vec![1, 2, 3];
            assert!(compressor.compress_delta(&raw, &base, &mut frame));
            assert_eq!(frame[..3], [1, 2, 3]);
            assert!(
                frame.len() < 100 + changed * 90,
                "{} bytes for {changed} changes in {base_len}",
                frame.len()
            );
            let mut out = Vec::new();
            decompressor
                .decompress_delta(&frame[3..], &base, raw.len(), &mut out)
                .unwrap();
            assert_eq!(out, raw);
            let other = noise("another base", base_len);
            let wrong = decompressor.decompress_delta(&frame[3..], &other, raw.len(), &mut out);
            assert!(wrong.is_err() || out != raw);
            assert!(decompressor.decompress(&frame[3..], raw.len(), &mut out).is_err() || out != raw);
            assert!(
                decompressor
                    .decompress_delta(&frame[3..], &base, raw.len() - 1, &mut out)
                    .is_err()
            );
        }
    }

    /// The far end of a large base is only in reach with a window of base and content together.
    #[test]
    fn a_delta_reaches_the_whole_base() {
        let base = noise("far", 16 << 20);
        let mut raw = noise("near", 1 << 20);
        raw.extend_from_slice(&base[..1 << 20]);
        raw.extend_from_slice(&base[15 << 20..]);
        let mut frame = Vec::new();
        assert!(Compressor::new(3).compress_delta(&raw, &base, &mut frame));
        assert!(frame.len() < (1 << 20) + 10_000, "{}", frame.len());
        let mut out = Vec::new();
        Decompressor::new()
            .decompress_delta(&frame, &base, raw.len(), &mut out)
            .unwrap();
        assert_eq!(out, raw);
    }

    #[test]
    fn a_base_that_looks_like_a_dictionary_is_content_like_any_other() {
        let mut base = noise("dictionary", 10_000);
        base[..4].copy_from_slice(&DICTIONARY_MAGIC);
        let mut raw = base.clone();
        raw.extend_from_slice(b"one more row");
        let mut frame = Vec::new();
        assert!(Compressor::new(3).compress_delta(&raw, &base, &mut frame));
        assert!(frame.len() < 100);
        let mut out = Vec::new();
        Decompressor::new()
            .decompress_delta(&frame, &base, raw.len(), &mut out)
            .unwrap();
        assert_eq!(out, raw);
    }

    #[test]
    fn content_that_has_nothing_in_common_with_its_base_makes_no_delta() {
        let mut out = b"before".to_vec();
        assert!(!Compressor::new(3).compress_delta(&noise("a", 50_000), &noise("b", 50_000), &mut out));
        assert!(!Compressor::new(3).compress_delta(&text(5_000), b"", &mut out));
        assert_eq!(out, b"before");
    }
}
