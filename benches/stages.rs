//! Each stage of the write and the read path by itself, per byte: `cargo bench --bench stages`.
//!
//! Real text (the sources of larder, over and over with other line numbers in front) and noise, in chunks of 2 MiB, a little more than new
//! repositories have on average. The sum of the stages is what one core does; README.md sets it beside what whole runs take.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use larder::pure::chunk::{Cutter, Profile};
use larder::pure::compress::{Compressor, Decompressor};
use larder::pure::crypto::{BlobKey, Domain, EpochSecrets, KeyRing, Secret};
use larder::pure::format::blob::{self, BlobType, Codec, Opener, Padding};
use larder::pure::id::{ChunkId, RepoId};
use std::path::Path;

const CHUNK: usize = 2 << 20;
const REPO: RepoId = RepoId([7; 16]);

fn main() {
    divan::main();
}

/// What a stage works on.
const KINDS: [&str; 2] = ["text", "noise"];

fn chunk(kind: &str) -> Vec<u8> {
    match kind {
        "text" => text(CHUNK),
        _ => noise(CHUNK),
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(b"stages").finalize_xof().fill(&mut out);
    out
}

/// The sources, each line with a number in front, so that it is not the same file over and over.
fn text(length: usize) -> Vec<u8> {
    fn collect(place: &Path, out: &mut Vec<String>) {
        let mut entries: Vec<_> = std::fs::read_dir(place).expect("sources").flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::path);
        for entry in entries {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, out);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                out.extend(text.lines().map(str::to_owned));
            }
        }
    }
    let mut lines = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut lines);
    let numbered = lines.iter().cycle().zip(0u32..);
    let mut out: Vec<u8> = numbered
        .flat_map(|(line, number)| format!("{number}\t{line}\n").into_bytes())
        .take(length)
        .collect();
    out.truncate(length);
    out
}

fn keys() -> KeyRing {
    let secret = |byte| Some(Secret::new([byte; 32]));
    let epoch = EpochSecrets {
        id: secret(1),
        cdc: secret(2),
        split: secret(3),
        idx: secret(4),
        meta: secret(5),
        data: secret(6),
        psk: secret(7),
        ..EpochSecrets::none(1)
    };
    KeyRing::new(REPO, vec![epoch], 1).expect("all secrets")
}

fn blob_key(keys: &KeyRing) -> BlobKey {
    keys.blob_key(Domain::Data, &Secret::new([9; 32]))
}

/// Cuts with a profile, as it happens while bytes arrive.
fn cut(bencher: Bencher<'_, '_>, profile: Profile, kind: &str) {
    let keys = keys();
    let cutter = Cutter::new(profile, keys.gear().expect("the chunking key"));
    let data: Vec<u8> = match kind {
        "text" => text(16 * CHUNK),
        _ => noise(16 * CHUNK),
    };
    bencher.counter(BytesCount::new(data.len())).bench(|| {
        let (mut cuts, mut start) = (cutter.cuts(), 0);
        for there in (0..=data.len()).step_by(1 << 20) {
            while let Some(length) = cuts.next(&data[start..there], there == data.len()) {
                start += length;
            }
        }
        black_box(start)
    });
}

#[divan::bench(args = KINDS)]
fn cut_lowest_hash(bencher: Bencher<'_, '_>, kind: &str) {
    cut(bencher, Profile::NEW, kind);
}

#[divan::bench(args = KINDS)]
fn cut_first_match(bencher: Bencher<'_, '_>, kind: &str) {
    cut(bencher, Profile::DEFAULT, kind);
}

#[divan::bench]
fn name(bencher: Bencher<'_, '_>) {
    let (keys, raw) = (keys(), chunk("noise"));
    bencher.counter(BytesCount::new(raw.len())).bench(|| keys.data_id(&raw));
}

/// Noise: what it costs to see that it is noise.
#[divan::bench(args = KINDS)]
fn compress(bencher: Bencher<'_, '_>, kind: &str) {
    let (raw, mut compressor, mut out) = (chunk(kind), Compressor::new(3), Vec::new());
    bencher.counter(BytesCount::new(raw.len())).bench_local(|| {
        out.clear();
        compressor.compress(&raw, &mut out)
    });
}

/// A chunk of which one line in forty is gone, against what it was.
fn changed() -> (Vec<u8>, Vec<u8>) {
    let base = text(CHUNK);
    let lines = base.split_inclusive(|byte| *byte == b'\n').enumerate();
    let raw = lines.filter(|(number, _)| number % 40 != 7).flat_map(|(_, line)| line);
    (raw.copied().collect(), base)
}

#[divan::bench]
fn compress_delta(bencher: Bencher<'_, '_>) {
    let ((raw, base), mut compressor, mut out) = (changed(), Compressor::new(1), Vec::new());
    bencher.counter(BytesCount::new(raw.len())).bench_local(|| {
        out.clear();
        assert!(compressor.compress_delta(&raw, &base, &mut out));
    });
}

#[divan::bench]
fn decompress_delta(bencher: Bencher<'_, '_>) {
    let ((raw, base), mut frame, mut out) = (changed(), Vec::new(), Vec::new());
    assert!(Compressor::new(1).compress_delta(&raw, &base, &mut frame));
    let mut decompressor = Decompressor::new();
    bencher
        .counter(BytesCount::new(raw.len()))
        .bench_local(|| decompressor.decompress_delta(&frame, &base, raw.len(), &mut out));
}

/// Per byte that is sealed, which is what compressing left.
#[divan::bench]
fn seal(bencher: Bencher<'_, '_>) {
    let (keys, raw) = (keys(), chunk("noise"));
    let (key, id) = (blob_key(&keys), keys.data_id(&raw).expect("the id key"));
    let mut out = Vec::new();
    bencher.counter(BytesCount::new(raw.len())).bench_local(|| {
        out.clear();
        sealed(&mut out, &key, &id, Codec::Raw, &raw, raw.len())
    });
}

fn sealed(out: &mut Vec<u8>, key: &BlobKey, id: &ChunkId, codec: Codec, payload: &[u8], raw: usize) -> usize {
    blob::seal_frame(
        out,
        key,
        &REPO,
        0,
        BlobType::Data,
        id,
        codec,
        raw as u32,
        payload,
        Padding::None,
    )
}

/// The whole read path in memory: unseal, decode, verify the id. Per byte of content.
#[divan::bench(args = KINDS)]
fn open(bencher: Bencher<'_, '_>, kind: &str) {
    let (keys, raw) = (keys(), chunk(kind));
    let (key, id) = (blob_key(&keys), keys.data_id(&raw).expect("the id key"));
    let (mut frame, mut payload) = (Vec::new(), Vec::new());
    if Compressor::new(3).compress(&raw, &mut payload) {
        sealed(&mut frame, &key, &id, Codec::Zstd, &payload, raw.len());
    } else {
        sealed(&mut frame, &key, &id, Codec::Raw, &raw, raw.len());
    }
    let (mut opener, mut out) = (Opener::new(), Vec::new());
    bencher.counter(BytesCount::new(raw.len())).bench_local(|| {
        blob::open_frame(&frame, &key, &keys, BlobType::Data, &id, &mut opener, &mut out).expect("it opens")
    });
}
