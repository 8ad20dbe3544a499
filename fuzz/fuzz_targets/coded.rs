//! What is left when a seal is open, and what people type: zstd frames, deltas, trailers of packs, paper keys.
#![no_main]

use larder::pure::compress::Decompressor;
use larder::pure::crypto::paper;
use larder::pure::format::name::PackKind;
use larder::pure::format::pack;
use libfuzzer_sys::fuzz_target;

/// The largest chunk.
const RAW_BYTES_MAX: usize = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    let length = |bytes: &[u8]| bytes.first_chunk::<4>().map_or(0, |len| u32::from_le_bytes(*len) as usize % (RAW_BYTES_MAX + 1));
    match kind % 5 {
        0 => {
            let mut out = Vec::new();
            let raw_len = length(bytes);
            let frame = bytes.get(4..).unwrap_or_default();
            match Decompressor::new().decompress(frame, raw_len, &mut out) {
                Ok(()) => assert_eq!(out.len(), raw_len),
                Err(_) => assert!(out.is_empty()),
            }
        }
        1 => {
            let mut out = Vec::new();
            let (base, frame) = bytes.get(6..).unwrap_or_default().split_at(match bytes.get(4..6) {
                Some(len) => (usize::from(len[0]) | usize::from(len[1]) << 8).min(bytes.len() - 6),
                None => 0,
            });
            let raw_len = length(bytes);
            match Decompressor::new().decompress_delta(frame, base, raw_len, &mut out) {
                Ok(()) => assert_eq!(out.len(), raw_len),
                Err(_) => assert!(out.is_empty()),
            }
        }
        2 => drop(pack::decode_trailer(PackKind::Data, bytes)),
        3 => drop(pack::decode_trailer(PackKind::Meta, bytes)),
        _ => drop(paper::read(bytes)),
    }
});
