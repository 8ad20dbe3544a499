//! Blob frames (format-spec chapter on blobs): sealing and opening one chunk, node, list node or manifest.
//!
//! ```text
//! slot index u16 | Seal(blob key, id[0..12], plaintext, aad)
//! plaintext = codec u8 | raw length u32 | base id 32, deltas only | payload | zeros
//! aad       = "LBLB" | 1 | type u8 | R 16 | id 32
//! ```

use super::FormatError;
use super::codec::{Reader, malformed};
use crate::pure::compress::{Decompressor, Undecodable, frame_len};
use crate::pure::crypto::seal::TAG_LEN;
use crate::pure::crypto::{BlobKey, Domain, KeyRing};
use crate::pure::id::{ChunkId, RepoId};

/// Bytes that a frame has beyond its payload: slot index, codec, length, tag.
pub const FRAME_OVERHEAD: usize = SLOT_INDEX_LEN + 5 + 16;
/// The slot index stands before the sealed part.
const SLOT_INDEX_LEN: usize = 2;
/// Largest plaintext of a blob.
pub const RAW_BYTES_MAX: usize = 16 << 20;
/// Largest plaintext of a tree node or list node.
pub const NODE_BYTES_MAX: usize = 262_144;
/// Largest frame.
pub const STORED_BYTES_MAX: usize = 1 << 25;

/// What a blob holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobType {
    Data = 0,
    Node = 1,
    List = 2,
    Manifest = 3,
}

impl BlobType {
    /// Reads the byte that stands for a type.
    pub fn from_byte(byte: u8) -> Option<BlobType> {
        Some(match byte {
            0 => BlobType::Data,
            1 => BlobType::Node,
            2 => BlobType::List,
            3 => BlobType::Manifest,
            _ => return None,
        })
    }

    /// Returns the domain whose keys seal blobs of this type.
    pub fn domain(self) -> Domain {
        match self {
            BlobType::Data => Domain::Data,
            BlobType::Node | BlobType::List | BlobType::Manifest => Domain::Meta,
        }
    }

    /// Returns the largest plaintext of a blob of this type.
    pub fn raw_bytes_max(self) -> usize {
        match self {
            BlobType::Data | BlobType::Manifest => RAW_BYTES_MAX,
            BlobType::Node | BlobType::List => NODE_BYTES_MAX,
        }
    }
}

/// How the payload of a blob is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Raw,
    Zstd,
    Delta(ChunkId),
}

const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const CODEC_DELTA: u8 = 2;

/// Whether frames are padded (config key 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    None,
    Padme,
}

impl Padding {
    /// Returns the length that a plaintext of `len` bytes is padded to. Padmé adds at most 12 % and leaves the length
    /// with O(log log len) bits of information.
    pub fn padded_len(self, len: usize) -> usize {
        match (self, len.checked_ilog2().unwrap_or(0)) {
            (Padding::None, _) | (Padding::Padme, 0) => len,
            (Padding::Padme, exponent) => {
                let kept_bits = exponent.ilog2() + 1;
                let mask = (1 << exponent.saturating_sub(kept_bits)) - 1;
                (len + mask) & !mask
            }
        }
    }
}

/// Appends one sealed frame to `out` and returns its length.
///
/// The payload is what the codec made of the `raw_len` bytes whose id is `id`; nothing is checked here, because packs are
/// verified before they are uploaded.
#[allow(clippy::too_many_arguments)]
pub fn seal_frame(
    out: &mut Vec<u8>,
    key: &BlobKey,
    repo: &RepoId,
    slot_index: u16,
    ty: BlobType,
    id: &ChunkId,
    codec: Codec,
    raw_len: u32,
    payload: &[u8],
    padding: Padding,
) -> usize {
    let start = out.len();
    begin_frame(out, slot_index, codec, raw_len);
    out.extend_from_slice(payload);
    end_frame(out, start, key, repo, ty, id, padding);
    out.len() - start
}

/// Begins a frame at the end of `out`. The payload is appended next, then [`end_frame`] seals it: so a compressor writes to where
/// its result is sealed.
pub fn begin_frame(out: &mut Vec<u8>, slot_index: u16, codec: Codec, raw_len: u32) {
    let (codec_byte, base): (u8, &[u8]) = match &codec {
        Codec::Raw => (CODEC_RAW, &[]),
        Codec::Zstd => (CODEC_ZSTD, &[]),
        Codec::Delta(base) => (CODEC_DELTA, base.as_bytes()),
    };
    out.extend_from_slice(&slot_index.to_le_bytes());
    out.push(codec_byte);
    out.extend_from_slice(&raw_len.to_le_bytes());
    out.extend_from_slice(base);
}

/// Pads and seals the frame that began at `start` and ends `out`.
pub fn end_frame(
    out: &mut Vec<u8>,
    start: usize,
    key: &BlobKey,
    repo: &RepoId,
    ty: BlobType,
    id: &ChunkId,
    padding: Padding,
) {
    let plaintext_start = start + SLOT_INDEX_LEN;
    let plaintext_end = plaintext_start + padding.padded_len(out.len() - plaintext_start);
    out.reserve(plaintext_end + TAG_LEN - out.len());
    out.resize(plaintext_end, 0);
    key.sealer
        .seal_in_place(&nonce(id), out, plaintext_start, &aad(ty, repo, id));
}

/// The first bytes of the id: equal nonces mean equal content.
fn nonce(id: &ChunkId) -> [u8; 12] {
    std::array::from_fn(|index| if chaos!("nonce-is-constant") { 0 } else { id.0[index] })
}

fn aad(ty: BlobType, repo: &RepoId, id: &ChunkId) -> [u8; 54] {
    let mut aad = [0; 54];
    aad[..4].copy_from_slice(b"LBLB");
    aad[4] = 1;
    aad[5] = ty as u8;
    aad[6..22].copy_from_slice(repo.as_bytes());
    if !chaos!("frames-are-not-bound-to-ids") {
        aad[22..].copy_from_slice(id.as_bytes());
    }
    aad
}

/// Reusable buffers for opening frames: one per worker thread.
#[derive(Debug)]
pub struct Opener {
    pub decompressor: Decompressor,
    pub scratch: Vec<u8>,
    /// Plaintext of the base of a delta.
    pub base: Vec<u8>,
}

impl Opener {
    /// Makes empty buffers; they grow to the largest frame that is opened.
    pub fn new() -> Opener {
        Opener {
            decompressor: Decompressor::new(),
            scratch: Vec::new(),
            base: Vec::new(),
        }
    }
}

impl Default for Opener {
    fn default() -> Self {
        Opener::new()
    }
}

/// A frame that has been opened.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// The plaintext is in `out` and its id has been verified.
    Done,
    /// A delta: call [`finish_delta`] with the plaintext of `base`.
    NeedsBase {
        base: ChunkId,
        raw_len: u32,
        frame: Vec<u8>,
        /// Of the key that opened it.
        epoch: u32,
    },
}

/// Returns the slot index of a frame (unauthenticated; a wrong one makes the open fail).
///
/// # Errors
/// When the frame is too short to have one.
pub fn slot_index(frame: &[u8]) -> Result<u16, FormatError> {
    Ok(Reader::new(frame).u16("blob slot index")?)
}

/// Opens a frame into `out`, decodes it and verifies its id. For a delta, `out` stays empty and the caller continues with
/// [`finish_delta`].
///
/// # Errors
/// The seal does not open, the plaintext is malformed, does not decode, or is not what `id` says; or this holder cannot
/// compute ids of that type. `out` is then empty.
pub fn open_frame(
    frame: &[u8],
    key: &BlobKey,
    keys: &KeyRing,
    ty: BlobType,
    id: &ChunkId,
    opener: &mut Opener,
    out: &mut Vec<u8>,
) -> Result<Opened, FormatError> {
    open_with(frame, key, keys, ty, id, opener, out, Use::Content)
}

/// As [`open_frame`], for those who only want to know whether it opens: what was not compressed is verified where it is.
///
/// # Errors
/// As `open_frame`.
pub fn verify_frame(
    frame: &[u8],
    key: &BlobKey,
    keys: &KeyRing,
    ty: BlobType,
    id: &ChunkId,
    opener: &mut Opener,
    decoded: &mut Vec<u8>,
) -> Result<Opened, FormatError> {
    open_with(frame, key, keys, ty, id, opener, decoded, Use::Verdict)
}

/// Opens and decodes the frame of a full copy without verifying its id: only for what is made of it to be verified, which
/// [`finish_delta`] does.
///
/// # Errors
/// It does not open, or is no full copy. `out` is then empty.
pub fn decode_base(
    frame: &[u8],
    key: &BlobKey,
    keys: &KeyRing,
    id: &ChunkId,
    opener: &mut Opener,
    out: &mut Vec<u8>,
) -> Result<(), FormatError> {
    match open_with(frame, key, keys, BlobType::Data, id, opener, out, Use::Base)? {
        Opened::Done => Ok(()),
        Opened::NeedsBase { .. } => Ok(malformed("a delta as the base of a delta")?),
    }
}

/// What a frame is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Content,
    /// To know whether it opens: content that was not compressed is not copied.
    Verdict,
    /// As the base of a delta, of which the result is verified.
    Base,
}

#[allow(clippy::too_many_arguments)]
fn open_with(
    frame: &[u8],
    key: &BlobKey,
    keys: &KeyRing,
    ty: BlobType,
    id: &ChunkId,
    opener: &mut Opener,
    out: &mut Vec<u8>,
    purpose: Use,
) -> Result<Opened, FormatError> {
    out.clear();
    let Opener {
        decompressor, scratch, ..
    } = opener;
    if !(FRAME_OVERHEAD + 1..=STORED_BYTES_MAX).contains(&frame.len()) {
        return Ok(malformed("blob frame length")?);
    }
    if key.domain != ty.domain() {
        return Ok(malformed("blob sealed with a key of the other domain")?);
    }
    key.sealer
        .open_into(&nonce(id), &frame[2..], &aad(ty, keys.repo(), id), scratch)?;

    let mut plaintext = Reader::new(scratch);
    let codec = plaintext.u8("blob codec")?;
    let raw_len = plaintext.u32("blob length")?;
    let raw_bytes = raw_len as usize;
    if !(1..=ty.raw_bytes_max()).contains(&raw_bytes) {
        return Ok(malformed("blob length")?);
    }
    match codec {
        CODEC_RAW => {
            let raw = plaintext.take(raw_bytes, "blob payload")?;
            padding_is_zero(&mut plaintext)?;
            if purpose != Use::Base {
                verify_id(keys, key.epoch, ty, id, raw)?;
            }
            if purpose != Use::Verdict {
                out.extend_from_slice(raw);
            }
            Ok(Opened::Done)
        }
        CODEC_ZSTD => {
            let frame = take_zstd_frame(&mut plaintext, raw_bytes)?;
            decompressor.decompress(frame, raw_bytes, out)?;
            if purpose != Use::Base {
                verified(keys, key.epoch, ty, id, out)?;
            }
            Ok(Opened::Done)
        }
        CODEC_DELTA if ty == BlobType::Data => {
            let base = ChunkId(plaintext.array("blob base id")?);
            if base == *id || base == ChunkId::HOLE {
                return Ok(malformed("blob base id")?);
            }
            let frame = take_zstd_frame(&mut plaintext, raw_bytes)?.to_vec();
            Ok(Opened::NeedsBase {
                base,
                raw_len,
                frame,
                epoch: key.epoch,
            })
        }
        _ => Ok(malformed("blob codec")?),
    }
}

/// Opens the seal of a frame and begins another one with what is in it, coded as it is: for copying a blob into another pack.
/// `out` is then as after [`begin_frame`] and the payload, padding included. Nothing is decoded: verify the blob first.
///
/// # Errors
/// The seal does not open, or what is in it is no coded blob. `out` is then empty.
#[allow(clippy::too_many_arguments)]
pub fn reopen_frame(
    frame: &[u8],
    key: &BlobKey,
    repo: &RepoId,
    slot_index: u16,
    ty: BlobType,
    id: &ChunkId,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(Codec, u32), FormatError> {
    out.clear();
    if !(FRAME_OVERHEAD + 1..=STORED_BYTES_MAX).contains(&frame.len()) {
        return Ok(malformed("blob frame length")?);
    }
    key.sealer
        .open_into(&nonce(id), &frame[SLOT_INDEX_LEN..], &aad(ty, repo, id), scratch)?;
    let mut plaintext = Reader::new(scratch);
    let codec = plaintext.u8("blob codec")?;
    let raw_len = plaintext.u32("blob length")?;
    let codec = match codec {
        CODEC_RAW => Codec::Raw,
        CODEC_ZSTD => Codec::Zstd,
        CODEC_DELTA => Codec::Delta(ChunkId(plaintext.array("blob base id")?)),
        _ => return Ok(malformed("blob codec")?),
    };
    out.extend_from_slice(&slot_index.to_le_bytes());
    out.extend_from_slice(scratch);
    Ok((codec, raw_len))
}

/// Decodes a delta against the plaintext of its base into `out` and verifies the id.
///
/// # Errors
/// `opened` is not a delta, does not decode with this base, or the result is not what `id` says. `out` is then empty.
pub fn finish_delta(
    opened: &Opened,
    base: &[u8],
    keys: &KeyRing,
    id: &ChunkId,
    opener: &mut Opener,
    out: &mut Vec<u8>,
) -> Result<(), FormatError> {
    out.clear();
    let Opened::NeedsBase {
        raw_len, frame, epoch, ..
    } = opened
    else {
        return Ok(malformed("not a delta")?);
    };
    opener
        .decompressor
        .decompress_delta(frame, base, *raw_len as usize, out)?;
    verified(keys, *epoch, BlobType::Data, id, out)
}

/// The one zstd frame of a payload, behind which only padding may follow.
fn take_zstd_frame<'a>(plaintext: &mut Reader<'a>, raw_bytes: usize) -> Result<&'a [u8], FormatError> {
    let rest = plaintext.take(plaintext.remaining(), "blob payload")?;
    let len = frame_len(rest, raw_bytes).ok_or(Undecodable { declared: raw_bytes })?;
    // `frame_len` never returns more than there is.
    let (frame, padding) = rest.split_at(len);
    padding_is_zero(&mut Reader::new(padding))?;
    Ok(frame)
}

fn padding_is_zero(rest: &mut Reader<'_>) -> Result<(), FormatError> {
    let padding = rest.take(rest.remaining(), "blob padding")?;
    if padding.iter().any(|byte| *byte != 0) {
        malformed("blob padding")?;
    }
    Ok(())
}

/// Verifies what was decoded, and takes it back when it is wrong.
fn verified(keys: &KeyRing, epoch: u32, ty: BlobType, id: &ChunkId, out: &mut Vec<u8>) -> Result<(), FormatError> {
    verify_id(keys, epoch, ty, id, out).inspect_err(|_| out.clear())
}

fn verify_id(keys: &KeyRing, epoch: u32, ty: BlobType, id: &ChunkId, raw: &[u8]) -> Result<(), FormatError> {
    if keys.id_in(epoch, ty.domain(), raw)? == *id || chaos!("ids-are-not-verified") {
        Ok(())
    } else {
        Err(FormatError::WrongId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::compress::Compressor;
    use crate::pure::crypto::vectors::*;
    use crate::pure::crypto::{EpochSecrets, Secret};

    fn key(ty: BlobType) -> BlobKey {
        keys().blob_key(ty.domain(), &session_key_data())
    }

    fn open(frame: &[u8], ty: BlobType, id: &ChunkId) -> Result<(Opened, Vec<u8>), FormatError> {
        let mut out = b"left over".to_vec();
        let result = open_frame(frame, &key(ty), &keys(), ty, id, &mut Opener::new(), &mut out);
        assert!(result == Ok(Opened::Done) || out.is_empty(), "plaintext was released");
        result.map(|opened| (opened, out))
    }

    /// Seals any plaintext, well-formed or not.
    fn sealed_plaintext(ty: BlobType, id: &ChunkId, plaintext: &[u8]) -> Vec<u8> {
        [
            &[0, 0][..],
            &key(ty).sealer.seal(&nonce(id), plaintext, &aad(ty, &REPO, id)),
        ]
        .concat()
    }

    fn plaintext(codec: u8, raw_len: u32, rest: &[&[u8]]) -> Vec<u8> {
        [&[codec][..], &raw_len.to_le_bytes(), &rest.concat()].concat()
    }

    fn seal_one(ty: BlobType, id: &ChunkId, codec: Codec, raw_len: usize, payload: &[u8], padding: Padding) -> Vec<u8> {
        let mut out = Vec::new();
        let len = seal_frame(
            &mut out,
            &key(ty),
            &REPO,
            0,
            ty,
            id,
            codec,
            raw_len as u32,
            payload,
            padding,
        );
        assert_eq!(len, out.len());
        out
    }

    const HELLO: &[u8] = b"hello larder\n";
    const HELLO_FRAME: &str = "00004f6a1c623dd8e4c57d4721410a289264d483fa81c810bb12a11d664622e882b073ab";
    const ZSTD_FRAME: &str = "000021b5a552e14edba3a5f1838559f948c641de7cb5c65e8416f5b11801bbebf5d253518d223ac930f3";
    const DELTA_FRAME: &str = "00005ecf553308e5475b1d7915148309f9e1a9cae3aa2da30be98288577cb303d7fafdca7a2b57594e75c618f45db211b3825f38199d7ffb6e73e10124fc41ae22918068cd36cbad2c1a91c9df9b6842ba1c65dcc3d5c0fb1a426c687d";
    const DELTA_FRAME_PADDED: &str = "000020282d2fca1c42f8cd15dd8ffe3ca571ce049df469997862f026d09b7119da36ad5e7ea13b2b579e7e03ff8ab9ebfcc128ca3574b91e92cc0cc20c46d31b1168d76c18b9a5e95118d70a6a52bf3db212570632b3675c37a3ce7c5e8280f9f3dac5b8";
    const DELTA_ZSTD: &str = "28b52ffd601001e50000806f6e65206368616e67656420726f770a0200fa1304b5fd01940002";

    fn delta_base() -> Vec<u8> {
        noise("larder delta base", 512)
    }

    fn delta_raw() -> Vec<u8> {
        let base = delta_base();
        [&base[..256], b"one changed row\n", &base[256..]].concat()
    }

    #[test]
    fn the_published_frames_are_made_and_opened() {
        let keys = keys();
        let id = keys.data_id(HELLO).unwrap();
        let frame = seal_one(BlobType::Data, &id, Codec::Raw, HELLO.len(), HELLO, Padding::None);
        assert_eq!(frame, hex(HELLO_FRAME));
        assert_eq!(slot_index(&frame), Ok(0));
        assert_eq!(open(&frame, BlobType::Data, &id), Ok((Opened::Done, HELLO.to_vec())));

        let zeros = [0; 1_000];
        let id = keys.data_id(&zeros).unwrap();
        let payload = hex("28b52ffd60e8024d00001000000100e32b8005");
        let frame = seal_one(BlobType::Data, &id, Codec::Zstd, 1_000, &payload, Padding::None);
        assert_eq!(frame, hex(ZSTD_FRAME));
        assert_eq!(open(&frame, BlobType::Data, &id), Ok((Opened::Done, zeros.to_vec())));

        let (base, raw) = (delta_base(), delta_raw());
        let base_id = keys.data_id(&base).unwrap();
        let id = keys.data_id(&raw).unwrap();
        let payload = hex(DELTA_ZSTD);
        let frame = seal_one(
            BlobType::Data,
            &id,
            Codec::Delta(base_id),
            raw.len(),
            &payload,
            Padding::None,
        );
        assert_eq!(frame, hex(DELTA_FRAME));
        for frame in [frame, hex(DELTA_FRAME_PADDED)] {
            let (opened, _) = open(&frame, BlobType::Data, &id).unwrap();
            let expected = Opened::NeedsBase {
                base: base_id,
                raw_len: 528,
                frame: payload.clone(),
                epoch: 1,
            };
            assert_eq!(opened, expected);
            let mut out = b"left over".to_vec();
            finish_delta(&opened, &base, &keys, &id, &mut Opener::new(), &mut out).unwrap();
            assert_eq!(out, raw);
            let wrong = finish_delta(&opened, &raw, &keys, &id, &mut Opener::new(), &mut out);
            assert!(wrong.is_err() && out.is_empty());
        }
        let mut out = Vec::new();
        assert!(finish_delta(&Opened::Done, &base, &keys, &id, &mut Opener::new(), &mut out).is_err());
    }

    #[test]
    fn ids_are_of_the_epoch_that_the_slot_names() {
        let old = secrets(1);
        let new = EpochSecrets {
            epoch: 2,
            id: Some(Secret::new([0x77; 32])),
            ..secrets(1)
        };
        let before = KeyRing::new(REPO, vec![old.clone()], 1).unwrap();
        let after = KeyRing::new(REPO, vec![old, new], 2).unwrap();
        let id = before.data_id(HELLO).unwrap();
        assert_ne!(after.data_id(HELLO).unwrap(), id);
        let slot = before
            .wrap_session_key(Domain::Data, &session_key_data(), &counting(0x40))
            .unwrap();
        let (_, key) = after.open_slot(&slot).unwrap();
        let mut out = Vec::new();
        let opened = open_frame(
            &hex(HELLO_FRAME),
            &key,
            &after,
            BlobType::Data,
            &id,
            &mut Opener::new(),
            &mut out,
        );
        assert_eq!((opened, out.as_slice()), (Ok(Opened::Done), HELLO));
    }

    #[test]
    fn every_bit_but_those_of_the_slot_index_keeps_a_frame_shut() {
        let keys = keys();
        let frames = [
            (HELLO_FRAME, keys.data_id(HELLO).unwrap()),
            (ZSTD_FRAME, keys.data_id(&[0; 1_000]).unwrap()),
            (DELTA_FRAME, keys.data_id(&delta_raw()).unwrap()),
        ];
        for (frame, id) in frames {
            let frame = hex(frame);
            for bit in 0..frame.len() * 8 {
                let mut damaged = frame.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                if bit < 16 {
                    assert_eq!(slot_index(&damaged), Ok(1 << bit));
                } else {
                    assert!(open(&damaged, BlobType::Data, &id).is_err(), "bit {bit}");
                }
            }
            for len in 0..frame.len() {
                assert!(open(&frame[..len], BlobType::Data, &id).is_err());
            }
            let longer = [&frame[..], &[0]].concat();
            assert!(open(&longer, BlobType::Data, &id).is_err());
            for bit in 0..256 {
                let mut other = id;
                other.0[bit / 8] ^= 1 << (bit % 8);
                assert!(open(&frame, BlobType::Data, &other).is_err());
            }
        }
        assert!(slot_index(&[0]).is_err());
    }

    #[test]
    fn a_frame_belongs_to_one_type_key_and_repository() {
        let id = keys().data_id(HELLO).unwrap();
        let frame = hex(HELLO_FRAME);
        for ty in [BlobType::Node, BlobType::List, BlobType::Manifest] {
            assert!(open(&frame, ty, &id).is_err());
        }
        let mut out = Vec::new();
        let mut opener = Opener::new();
        let other = key(BlobType::Node);
        assert!(open_frame(&frame, &other, &keys(), BlobType::Data, &id, &mut opener, &mut out).is_err());
        let other = keys().blob_key(Domain::Data, &Secret::new([0; 32]));
        assert!(open_frame(&frame, &other, &keys(), BlobType::Data, &id, &mut opener, &mut out).is_err());
        let elsewhere = KeyRing::new(RepoId([0; 16]), vec![secrets(1)], 1).unwrap();
        assert!(
            open_frame(
                &frame,
                &key(BlobType::Data),
                &elsewhere,
                BlobType::Data,
                &id,
                &mut opener,
                &mut out
            )
            .is_err()
        );
    }

    #[test]
    fn content_of_every_type_and_codec_comes_back_through_reused_buffers() {
        let keys = keys();
        let mut opener = Opener::new();
        let mut compressor = Compressor::new(3);
        let mut out = Vec::new();
        let mut frames = Vec::new();
        for (round, len) in [1, 2, 13, 700, 65_536, 262_144, 1_500_000, 3].into_iter().enumerate() {
            for ty in [BlobType::Data, BlobType::Node, BlobType::List, BlobType::Manifest] {
                if len > ty.raw_bytes_max() {
                    continue;
                }
                for padding in [Padding::None, Padding::Padme] {
                    let mut raw = noise(&format!("{round}"), len);
                    raw[..len / 2].fill(b'a');
                    let id = match ty {
                        BlobType::Data => keys.data_id(&raw).unwrap(),
                        _ => keys.meta_id(&raw).unwrap(),
                    };
                    let mut payload = Vec::new();
                    let codec = match compressor.compress(&raw, &mut payload) {
                        true => Codec::Zstd,
                        false => {
                            payload = raw.clone();
                            Codec::Raw
                        }
                    };
                    let start = frames.len();
                    let key = key(ty);
                    let written = seal_frame(
                        &mut frames,
                        &key,
                        &REPO,
                        7,
                        ty,
                        &id,
                        codec,
                        len as u32,
                        &payload,
                        padding,
                    );
                    assert_eq!(written, frames.len() - start);
                    assert_eq!(written, 2 + padding.padded_len(5 + payload.len()) + 16);
                    let frame = &frames[start..];
                    assert_eq!(slot_index(frame), Ok(7));
                    let opened = open_frame(frame, &key, &keys, ty, &id, &mut opener, &mut out);
                    assert_eq!(opened, Ok(Opened::Done));
                    assert_eq!(out, raw);
                    let verified = verify_frame(frame, &key, &keys, ty, &id, &mut opener, &mut out);
                    assert_eq!(verified, Ok(Opened::Done));
                    let of_another = verify_frame(frame, &key, &keys, ty, &ChunkId([1; 32]), &mut opener, &mut out);
                    assert!(of_another.is_err());
                }
            }
        }
    }

    #[test]
    fn padding_follows_the_published_formula() {
        // L: E = floor(log2 L), S = floor(log2 E) + 1, m = 2^(E-S) - 1, padded = (L + m) & ~m.
        for (len, padded) in [
            (5, 5),
            (6, 6),
            (7, 7),
            (8, 8),
            (9, 10),
            (15, 16),
            (16, 16),
            (17, 18),
            (31, 32),
            (33, 36),
            (100, 104),
            (1_000, 1_024),
            (1_025, 1_088),
            (65_537, 67_584),
            (1 << 20, 1 << 20),
            ((1 << 20) + 1, (1 << 20) + (1 << 15)),
        ] {
            assert_eq!(Padding::Padme.padded_len(len), padded, "{len}");
            assert_eq!(Padding::None.padded_len(len), len);
        }
        for len in (5..2_000_000).step_by(37) {
            let padded = Padding::Padme.padded_len(len);
            assert!(
                padded >= len && padded * 100 <= len * 112 + 100,
                "{len} became {padded}"
            );
        }
        assert_eq!(Padding::Padme.padded_len(0), 0);
        assert_eq!(Padding::Padme.padded_len(1), 1);
    }

    #[test]
    fn malformed_plaintexts_are_refused_although_they_are_sealed_well() {
        let keys = keys();
        let id = keys.data_id(HELLO).unwrap();
        let opens = |ty: BlobType, id: &ChunkId, plaintext: &[u8]| open(&sealed_plaintext(ty, id, plaintext), ty, id);
        let data = |plaintext: Vec<u8>| opens(BlobType::Data, &id, &plaintext).map(|(_, out)| out);
        let mut zstd = Vec::new();
        let long = HELLO.repeat(20);
        let long_id = keys.data_id(&long).unwrap();
        assert!(Compressor::new(3).compress(&long, &mut zstd));

        assert!(data(plaintext(0, 13, &[HELLO])).is_ok());
        assert!(data(plaintext(0, 13, &[HELLO, &[0; 100]])).is_ok(), "padding");
        for (case, plaintext) in [
            ("nothing", vec![]),
            ("half a header", vec![0, 13, 0]),
            ("length zero", plaintext(0, 0, &[])),
            ("one byte more declared", plaintext(0, 14, &[HELLO])),
            ("one byte less declared", plaintext(0, 12, &[HELLO])),
            ("padding that is not zero", plaintext(0, 13, &[HELLO, &[0, 0, 1]])),
            ("an unknown codec", plaintext(3, 13, &[HELLO])),
            ("another content", plaintext(0, 13, &[b"hello larder!"])),
            ("too long", plaintext(0, (16 << 20) + 1, &[HELLO])),
            ("far too long", plaintext(0, u32::MAX, &[HELLO])),
            ("no zstd frame", plaintext(1, 13, &[HELLO])),
        ] {
            assert!(data(plaintext).is_err(), "{case}");
        }

        let zstd_data = |plaintext: Vec<u8>| opens(BlobType::Data, &long_id, &plaintext).map(|(_, out)| out);
        let long_len = long.len() as u32;
        assert_eq!(zstd_data(plaintext(1, long_len, &[&zstd, &[0; 9]])), Ok(long.clone()));
        for (case, plaintext) in [
            ("declared shorter", plaintext(1, long_len - 1, &[&zstd])),
            ("declared longer", plaintext(1, long_len + 1, &[&zstd])),
            ("padding that is not zero", plaintext(1, long_len, &[&zstd, &[0, 7]])),
            ("a second frame", plaintext(1, long_len, &[&zstd, &zstd])),
            (
                "an empty second frame",
                plaintext(1, long_len, &[&zstd, &hex("28b52ffd2000010000")]),
            ),
            ("a cut frame", plaintext(1, long_len, &[&zstd[..zstd.len() - 1]])),
            ("a delta without a base id", plaintext(2, long_len, &[&zstd])),
            (
                "a delta of itself",
                plaintext(2, long_len, &[long_id.as_bytes(), &zstd]),
            ),
            ("a delta of a hole", plaintext(2, long_len, &[&[0; 32], &zstd])),
            ("a delta with half a base id", plaintext(2, long_len, &[&[1; 31]])),
        ] {
            assert!(zstd_data(plaintext).is_err(), "{case}");
        }
        let delta = plaintext(2, long_len, &[&[1; 32], &zstd]);
        assert!(zstd_data(delta.clone()).is_ok());
        for ty in [BlobType::Node, BlobType::List, BlobType::Manifest] {
            assert!(opens(ty, &long_id, &delta).is_err(), "only data is stored as deltas");
        }
        // The content of a poisoned delta is refused when its base is there.
        let (opened, _) = open(
            &sealed_plaintext(BlobType::Data, &id, &plaintext(2, long_len, &[&[1; 32], &zstd])),
            BlobType::Data,
            &id,
        )
        .unwrap();
        let mut out = Vec::new();
        assert_eq!(
            finish_delta(&opened, b"base", &keys, &id, &mut Opener::new(), &mut out),
            Err(FormatError::WrongId)
        );
        assert!(out.is_empty());
    }

    #[test]
    fn nodes_are_limited_more_tightly_than_data() {
        let keys = keys();
        let raw = vec![b'n'; NODE_BYTES_MAX + 1];
        let mut payload = Vec::new();
        assert!(Compressor::new(3).compress(&raw, &mut payload));
        let id = keys.meta_id(&raw).unwrap();
        for (ty, is_accepted) in [
            (BlobType::Node, false),
            (BlobType::List, false),
            (BlobType::Manifest, true),
        ] {
            let frame = seal_one(ty, &id, Codec::Zstd, raw.len(), &payload, Padding::None);
            assert_eq!(open(&frame, ty, &id).is_ok(), is_accepted);
        }
    }

    #[test]
    fn without_the_id_key_nothing_is_released() {
        let id = keys().data_id(HELLO).unwrap();
        let mut held = secrets(1);
        held.id = None;
        held.id_meta = Some(Secret::new([1; 32]));
        let maintainer = KeyRing::new(REPO, vec![held], 1).unwrap();
        let mut out = Vec::new();
        let result = open_frame(
            &hex(HELLO_FRAME),
            &key(BlobType::Data),
            &maintainer,
            BlobType::Data,
            &id,
            &mut Opener::new(),
            &mut out,
        );
        assert!(matches!(result, Err(FormatError::MissingKey(_))));
        assert!(out.is_empty());
    }
}
