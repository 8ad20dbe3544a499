//! What is left when a seal is open, what people type, and what nobody signs: zstd frames, deltas, trailers of packs, paper keys, parity.
#![no_main]

use larder::pure::compress::Decompressor;
use larder::pure::crypto::paper;
use larder::pure::format::name::PackKind;
use larder::pure::format::pack;
use larder::pure::format::parity::{self, Shape};
use libfuzzer_sys::fuzz_target;

/// The largest chunk.
const RAW_BYTES_MAX: usize = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    let length = |bytes: &[u8]| bytes.first_chunk::<4>().map_or(0, |len| u32::from_le_bytes(*len) as usize % (RAW_BYTES_MAX + 1));
    match kind % 7 {
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
        4 => drop(paper::read(bytes)),
        5 => {
            let (sidecar, left) = bytes.split_at(bytes.len() / 2);
            drop(parity::rebuild(sidecar, left, RAW_BYTES_MAX as u64));
        }
        _ => damaged(bytes),
    }
});

/// An object and its sidecar, with damage at places that the fuzzer chooses: what is rebuilt is the object, or nothing is.
fn damaged(bytes: &[u8]) {
    let Some((&[k, m, block, size], damage)) = bytes.split_first_chunk::<4>() else { return };
    let Some(shape) = Shape::new(u16::from(k), u16::from(m % 8), 64 << (block % 8)) else { return };
    let mut object: Vec<u8> = (0..(64usize << 10) + usize::from(size) * 61).map(|n| (n * n >> 5) as u8).collect();
    let whole = object.clone();
    let mut sidecar = parity::encode(shape, &object);
    for harm in damage.chunks_exact(5) {
        let at = harm.first_chunk::<4>().map_or(0, |at| u32::from_le_bytes(*at) as usize);
        let part = if harm[4] & 1 == 0 { &mut object } else { &mut sidecar };
        if harm[4] & 2 == 0 {
            let at = at % part.len().max(1);
            part.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= harm[4]);
        } else if harm[4] & 1 == 0 {
            part.truncate(at);
        }
    }
    if let Ok(rebuilt) = parity::rebuild(&sidecar, &object, RAW_BYTES_MAX as u64) {
        // One whose headers are both damaged may be taken for a copy.
        assert!(rebuilt == whole || rebuilt == sidecar);
    }
}
