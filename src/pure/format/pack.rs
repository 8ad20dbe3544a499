//! Packs (format-spec chapter on packs): frames back to back, a sealed trailer that describes them, a plaintext footer.
//!
//! ```text
//! header 64: "LARDERP1" | version u8 | kind u8 | flags u16 | epoch u32 | R 16 | pack id 16 | session id 16
//! frames
//! trailer: Seal(KH(trailer key, pack id), 0, plaintext, header)
//!   plaintext = slots u16 | 0 u16 | blobs u32 | slots × 88
//!             | blobs × (type u8 | flags u8 | 0 u16 | stored length u32 | raw length u32 | id 32)
//!             | deltas u32 | deltas × (record index u32 | base id 32)
//! footer 88: trailer offset u64 | trailer length u32 | 0 u32 | H(all before the footer) 32 | pack id 16 | 12 zeros
//!          | crc32c(footer so far | "LARDERF1") u32 | "LARDERF1"
//! ```

use super::blob::{BlobType, FRAME_OVERHEAD, STORED_BYTES_MAX};
use super::codec::{Reader, malformed};
use super::name::PackKind;
use super::{FormatError, Malformed};
use crate::pure::crypto::seal::TAG_LEN;
use crate::pure::crypto::{Domain, Sealer, Secret, Slot, hash, keyed_hash};
use crate::pure::id::{ChunkId, PackId, RepoId, SessionId};

pub const HEADER_LEN: usize = 64;
pub const FOOTER_LEN: usize = 88;
/// Most blobs in a pack.
pub const BLOBS_MAX: usize = 1 << 20;
/// Most slots in a pack.
pub const SLOTS_MAX: usize = 65_535;

const HEADER_MAGIC: &[u8; 8] = b"LARDERP1";
const FOOTER_MAGIC: &[u8; 8] = b"LARDERF1";
const VERSION: u8 = 1;
const TRAILER_HEAD_LEN: usize = 8;
const RECORD_LEN: usize = 44;
const DELTA_LEN: usize = 36;

/// Sealed length of the smallest trailer: one slot, one blob, no delta.
pub const TRAILER_LEN_MIN: usize = TRAILER_HEAD_LEN + Slot::LEN + RECORD_LEN + 4 + TAG_LEN;
/// Length of the smallest pack.
pub const PACK_LEN_MIN: usize = HEADER_LEN + FRAME_OVERHEAD + 1 + TRAILER_LEN_MIN + FOOTER_LEN;

/// Bytes of a pack beside the frames of so many blobs, none of them a delta, under one session's key.
pub fn overhead(blobs: u64) -> u64 {
    let fixed = HEADER_LEN + TRAILER_LEN_MIN - RECORD_LEN + FOOTER_LEN;
    (fixed as u64).saturating_add(blobs.saturating_mul(RECORD_LEN as u64))
}

/// The 64 plaintext bytes at the start of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHeader {
    pub kind: PackKind,
    pub epoch: u32,
    pub repo: RepoId,
    pub pack: PackId,
    pub session: SessionId,
}

impl PackHeader {
    /// Returns the bytes as stored.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(HEADER_MAGIC);
        bytes[8] = VERSION;
        bytes[9] = self.kind as u8;
        bytes[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..32].copy_from_slice(self.repo.as_bytes());
        bytes[32..48].copy_from_slice(self.pack.as_bytes());
        bytes[48..64].copy_from_slice(self.session.as_bytes());
        bytes
    }

    /// Decodes the first 64 bytes of a pack. The caller compares repository, ids and kind with what it asked for.
    ///
    /// # Errors
    /// [`FormatError::TooNew`] for a later version, otherwise [`FormatError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<PackHeader, FormatError> {
        let mut reader = Reader::new(bytes);
        if reader.array::<8>("pack magic")? != *HEADER_MAGIC {
            malformed("pack magic")?;
        }
        match reader.u8("pack version")? {
            VERSION => {}
            0 => malformed("pack version")?,
            version => {
                return Err(FormatError::TooNew {
                    what: format!("version {version} of packs"),
                });
            }
        }
        let kind = PackKind::from_byte(reader.u8("pack kind")?).ok_or(Malformed { what: "pack kind" })?;
        if reader.u16("pack flags")? != 0 {
            malformed("pack flags")?;
        }
        let header = PackHeader {
            kind,
            epoch: reader.u32("pack epoch")?,
            repo: RepoId(reader.array("pack repository")?),
            pack: PackId(reader.array("pack id")?),
            session: SessionId(reader.array("pack session")?),
        };
        reader.end("pack header length")?;
        Ok(header)
    }
}

/// One blob of a pack, in frame order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRecord {
    pub ty: BlobType,
    pub id: ChunkId,
    /// Offset of the frame in the pack (implied by order; filled in on decode).
    pub offset: u32,
    /// Length of the whole frame.
    pub stored_len: u32,
    pub raw_len: u32,
    /// The base, if the frame is a delta.
    pub base: Option<ChunkId>,
}

/// Slots and records of a trailer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackTrailer {
    pub slots: Vec<Slot>,
    pub records: Vec<PackRecord>,
}

impl PackTrailer {
    /// Returns where the last frame ends, in bytes from the start of the pack: the trailer must start there.
    pub fn frames_end(&self) -> u64 {
        self.records.last().map_or(HEADER_LEN as u64, |record| {
            u64::from(record.offset) + u64::from(record.stored_len)
        })
    }
}

/// The 88 plaintext bytes at the end of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackFooter {
    pub trailer_offset: u64,
    pub trailer_len: u32,
    pub body_hash: [u8; 32],
    pub pack: PackId,
}

impl PackFooter {
    /// Decodes the last 88 bytes of a pack of `pack_len` bytes; checks the crc and that the trailer ends where the footer starts.
    ///
    /// # Errors
    /// [`FormatError::Malformed`].
    pub fn decode(bytes: &[u8], pack_len: u64) -> Result<PackFooter, FormatError> {
        let mut reader = Reader::new(bytes);
        let trailer_offset = reader.u64("pack trailer offset")?;
        let trailer_len = reader.u32("pack trailer length")?;
        let zero = reader.u32("pack footer reserved bytes")?;
        let body_hash = reader.array("pack body hash")?;
        let pack = PackId(reader.array("pack id in the footer")?);
        let zeros: [u8; 12] = reader.array("pack footer reserved bytes")?;
        let crc = reader.u32("pack footer crc")?;
        let magic: [u8; 8] = reader.array("pack footer magic")?;
        reader.end("pack footer length")?;
        if magic != *FOOTER_MAGIC {
            malformed("pack footer magic")?;
        }
        if crc != footer_crc(&bytes[..76]) {
            malformed("pack footer crc")?;
        }
        if zero != 0 || zeros != [0; 12] {
            malformed("pack footer reserved bytes")?;
        }
        if !(PACK_LEN_MIN as u64..=u64::from(u32::MAX)).contains(&pack_len) {
            malformed("pack length")?;
        }
        let trailer_end = trailer_offset.checked_add(u64::from(trailer_len));
        if trailer_offset < (HEADER_LEN + FRAME_OVERHEAD + 1) as u64
            || (trailer_len as usize) < TRAILER_LEN_MIN
            || trailer_end != Some(pack_len - FOOTER_LEN as u64)
        {
            malformed("pack trailer offset")?;
        }
        Ok(PackFooter {
            trailer_offset,
            trailer_len,
            body_hash,
            pack,
        })
    }

    fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        bytes[..8].copy_from_slice(&self.trailer_offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.trailer_len.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.body_hash);
        bytes[48..64].copy_from_slice(self.pack.as_bytes());
        let crc = footer_crc(&bytes[..76]);
        bytes[76..80].copy_from_slice(&crc.to_le_bytes());
        bytes[80..].copy_from_slice(FOOTER_MAGIC);
        bytes
    }
}

/// crc32c over the footer before the crc, and the magic behind it.
fn footer_crc(head: &[u8]) -> u32 {
    let mut bytes = [0; 84];
    let (first, magic) = bytes.split_at_mut(76);
    first.copy_from_slice(head);
    magic.copy_from_slice(FOOTER_MAGIC);
    crc_fast::crc32_iscsi(&bytes)
}

/// Opens a sealed trailer. `trailer_key` is the object key of class Trailer for the header's epoch.
///
/// The caller that knows where the trailer starts compares that with [`PackTrailer::frames_end`]; [`PackParts::open`]
/// does both.
///
/// # Errors
/// The header is malformed, the seal does not open, or what is in it breaks a rule of the format.
pub fn open_trailer(
    header: &[u8; HEADER_LEN],
    sealed: &[u8],
    trailer_key: &Secret,
) -> Result<PackTrailer, FormatError> {
    let decoded = PackHeader::decode(header)?;
    let plaintext = trailer_sealer(trailer_key, &decoded.pack).open(&[0; 12], sealed, header)?;
    Ok(decode_trailer(decoded.kind, &plaintext)?)
}

fn trailer_sealer(trailer_key: &Secret, pack: &PackId) -> Sealer {
    Sealer::new(&Secret::new(keyed_hash(trailer_key, &[pack.as_bytes()])))
}

/// Decodes the plaintext of a trailer of a pack of this kind.
///
/// # Errors
/// A rule of the format is broken. Where the frames end is for the caller to compare, see [`open_trailer`].
pub fn decode_trailer(kind: PackKind, plaintext: &[u8]) -> Result<PackTrailer, Malformed> {
    let mut reader = Reader::new(plaintext);
    let slot_count = usize::from(reader.u16("trailer slot count")?);
    let reserved = reader.u16("trailer reserved bytes")?;
    let blob_count = reader.u32("trailer blob count")? as usize;
    if reserved != 0 {
        return malformed("trailer reserved bytes");
    }
    if slot_count == 0 {
        return malformed("trailer slot count");
    }
    if !(1..=BLOBS_MAX).contains(&blob_count) {
        return malformed("trailer blob count");
    }
    // Both tables are there before anything is allocated for them.
    let slots = reader.take(slot_count * Slot::LEN, "trailer slots")?;
    let records = reader.take(blob_count * RECORD_LEN, "trailer records")?;
    let slots = slots
        .as_chunks::<{ Slot::LEN }>()
        .0
        .iter()
        .map(|bytes| Slot(*bytes))
        .collect::<Vec<_>>();
    if slots
        .iter()
        .any(|slot| slot.domain() != Some(domain(kind)) || slot.keyset() != 0)
    {
        return malformed("trailer slot domain");
    }
    let mut records = decode_records(kind, records)?;

    let delta_count = reader.u32("trailer delta count")? as usize;
    if delta_count > blob_count || (delta_count > 0 && kind == PackKind::Meta) {
        return malformed("trailer delta count");
    }
    let mut next_index = 0;
    for _ in 0..delta_count {
        let index = reader.u32("trailer delta record")? as usize;
        let base = ChunkId(reader.array("trailer delta base")?);
        if index < next_index {
            return malformed("trailer delta order");
        }
        let record = records.get_mut(index).ok_or(Malformed {
            what: "trailer delta record",
        })?;
        if base == record.id || base == ChunkId::HOLE {
            return malformed("trailer delta base");
        }
        record.base = Some(base);
        next_index = index + 1;
    }
    reader.end("trailer length")?;
    Ok(PackTrailer { slots, records })
}

fn decode_records(kind: PackKind, table: &[u8]) -> Result<Vec<PackRecord>, Malformed> {
    let mut reader = Reader::new(table);
    let mut records = Vec::with_capacity(table.len() / RECORD_LEN);
    let mut offset = HEADER_LEN as u32;
    while reader.remaining() > 0 {
        let ty = BlobType::from_byte(reader.u8("trailer blob type")?).ok_or(Malformed {
            what: "trailer blob type",
        })?;
        if kind_of(ty) != Some(kind) {
            return malformed("trailer blob type");
        }
        if reader.u8("trailer record flags")? != 0 || reader.u16("trailer record reserved bytes")? != 0 {
            return malformed("trailer record flags");
        }
        let stored_len = reader.u32("trailer stored length")?;
        if !(FRAME_OVERHEAD + 1..=STORED_BYTES_MAX).contains(&(stored_len as usize)) {
            return malformed("trailer stored length");
        }
        let raw_len = reader.u32("trailer raw length")?;
        if !(1..=ty.raw_bytes_max()).contains(&(raw_len as usize)) {
            return malformed("trailer raw length");
        }
        let id = ChunkId(reader.array("trailer chunk id")?);
        if id == ChunkId::HOLE {
            return malformed("trailer chunk id");
        }
        records.push(PackRecord {
            ty,
            id,
            offset,
            stored_len,
            raw_len,
            base: None,
        });
        offset = offset.checked_add(stored_len).ok_or(Malformed {
            what: "trailer stored length",
        })?;
    }
    if has_duplicates(&records) {
        return malformed("a pack that holds one id twice");
    }
    Ok(records)
}

/// Which kind of pack blobs of a type live in; manifests live in outcomes.
fn kind_of(ty: BlobType) -> Option<PackKind> {
    match ty {
        BlobType::Data => Some(PackKind::Data),
        BlobType::Node | BlobType::List => Some(PackKind::Meta),
        BlobType::Manifest => None,
    }
}

/// Returns the domain of the slots of packs of a kind.
pub(super) fn domain(kind: PackKind) -> Domain {
    match kind {
        PackKind::Data => Domain::Data,
        PackKind::Meta => Domain::Meta,
    }
}

fn has_duplicates(records: &[PackRecord]) -> bool {
    let mut ids: Vec<&ChunkId> = records.iter().map(|record| &record.id).collect();
    ids.sort_unstable();
    ids.windows(2).any(|pair| pair[0] == pair[1])
}

/// Parts of a whole pack whose frame checks have passed (header, footer, body hash).
#[derive(Clone, Debug)]
pub struct PackParts<'a> {
    pub header: PackHeader,
    pub footer: PackFooter,
    pub sealed_trailer: &'a [u8],
}

impl PackParts<'_> {
    /// Opens the trailer and checks that its frames fill the space between header and trailer.
    ///
    /// # Errors
    /// As [`open_trailer`], or the frames do not end where the trailer starts.
    pub fn open(&self, trailer_key: &Secret) -> Result<PackTrailer, FormatError> {
        let trailer = open_trailer(&self.header.encode(), self.sealed_trailer, trailer_key)?;
        if trailer.frames_end() != self.footer.trailer_offset {
            malformed("trailer stored lengths")?;
        }
        Ok(trailer)
    }
}

/// Checks a whole pack without keys: header, footer, body hash.
///
/// # Errors
/// [`FormatError::TooNew`] for a later version, otherwise [`FormatError::Malformed`].
pub fn check_whole(bytes: &[u8]) -> Result<PackParts<'_>, FormatError> {
    let Some((body, footer_bytes)) = bytes.split_last_chunk::<FOOTER_LEN>() else {
        return Ok(malformed("pack length")?);
    };
    let header = PackHeader::decode(body.get(..HEADER_LEN).unwrap_or(body))?;
    let footer = PackFooter::decode(footer_bytes, bytes.len() as u64)?;
    if footer.pack != header.pack {
        malformed("pack id in the footer")?;
    }
    if footer.body_hash != hash(body) {
        malformed("pack body hash")?;
    }
    // The footer has been checked to say that the trailer ends where the body does.
    let sealed_trailer = &body[footer.trailer_offset as usize..];
    Ok(PackParts {
        header,
        footer,
        sealed_trailer,
    })
}

/// Builds a pack in one buffer.
#[derive(Debug)]
pub struct PackBuilder {
    header: PackHeader,
    slots: Vec<Slot>,
    records: Vec<PackRecord>,
    buffer: Vec<u8>,
}

/// A finished pack.
#[derive(Debug)]
pub struct SealedPack {
    pub header: PackHeader,
    pub bytes: Vec<u8>,
    pub slots: Vec<Slot>,
    pub records: Vec<PackRecord>,
    pub body_hash: [u8; 32],
    pub crc64nvme: u64,
}

impl PackBuilder {
    /// Starts a pack in `buffer` (cleared; its capacity is kept).
    ///
    /// A buffer from [`Self::buffer_for`] does not move while the pack grows.
    pub fn new(header: PackHeader, slots: Vec<Slot>, mut buffer: Vec<u8>) -> PackBuilder {
        buffer.clear();
        buffer.extend_from_slice(&header.encode());
        PackBuilder {
            header,
            slots,
            records: Vec::new(),
            buffer,
        }
    }

    /// Makes a buffer that holds a pack which is closed when it has reached `target_bytes`: the last frame may lie beyond,
    /// and the trailer too. Memory that is not written to is not taken from the machine.
    pub fn buffer_for(target_bytes: usize) -> Vec<u8> {
        // A trailer has about 44 bytes for each blob; an eighth of the target is enough for blobs of 350 bytes.
        Vec::with_capacity(target_bytes + target_bytes / 8 + (1 << 20))
    }

    /// Appends a frame that is already sealed.
    ///
    /// # Panics
    /// When the pack would reach 4 GiB: the caller closes it at its target long before.
    pub fn push(&mut self, ty: BlobType, id: ChunkId, raw_len: u32, base: Option<ChunkId>, frame: &[u8]) {
        debug_assert_eq!(kind_of(ty), Some(self.header.kind), "a blob of another kind of pack");
        let offset = u32::try_from(self.buffer.len()).expect("packs are closed at their target, far below 4 GiB");
        let stored_len = u32::try_from(frame.len()).expect("frames are at most 32 MiB");
        self.buffer.extend_from_slice(frame);
        self.records.push(PackRecord {
            ty,
            id,
            offset,
            stored_len,
            raw_len,
            base,
        });
    }

    /// Bytes so far, header included, trailer not.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether no frame has been appended yet.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether no further frame can be appended: a pack holds at most 2^20 blobs.
    pub fn is_full(&self) -> bool {
        self.records.len() >= BLOBS_MAX
    }

    /// Returns what has been appended, in order.
    pub fn records(&self) -> &[PackRecord] {
        &self.records
    }

    /// Writes trailer and footer.
    ///
    /// # Panics
    /// On a pack without slots or blobs, with more of them than the format allows, or of 4 GiB.
    pub fn seal(self, trailer_key: &Secret) -> SealedPack {
        let PackBuilder {
            header,
            slots,
            records,
            buffer: mut bytes,
        } = self;
        assert!((1..=SLOTS_MAX).contains(&slots.len()), "a pack has 1 to 65 535 slots");
        assert!((1..=BLOBS_MAX).contains(&records.len()), "a pack has 1 to 2^20 blobs");
        debug_assert!(!has_duplicates(&records), "a pack holds an id once");

        let deltas: Vec<(u32, ChunkId)> = (0u32..)
            .zip(&records)
            .filter_map(|(index, record)| Some((index, record.base?)))
            .collect();
        let trailer_offset = bytes.len();
        let trailer_len = TRAILER_HEAD_LEN
            + slots.len() * Slot::LEN
            + records.len() * RECORD_LEN
            + 4
            + deltas.len() * DELTA_LEN
            + TAG_LEN;
        bytes.reserve_exact(trailer_len + FOOTER_LEN);
        bytes.extend_from_slice(&(slots.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&(records.len() as u32).to_le_bytes());
        for slot in &slots {
            bytes.extend_from_slice(&slot.0);
        }
        for record in &records {
            bytes.extend_from_slice(&[record.ty as u8, 0, 0, 0]);
            bytes.extend_from_slice(&record.stored_len.to_le_bytes());
            bytes.extend_from_slice(&record.raw_len.to_le_bytes());
            bytes.extend_from_slice(record.id.as_bytes());
        }
        bytes.extend_from_slice(&(deltas.len() as u32).to_le_bytes());
        for (index, base) in &deltas {
            bytes.extend_from_slice(&index.to_le_bytes());
            bytes.extend_from_slice(base.as_bytes());
        }
        trailer_sealer(trailer_key, &header.pack).seal_in_place(&[0; 12], &mut bytes, trailer_offset, &header.encode());
        debug_assert_eq!(bytes.len(), trailer_offset + trailer_len);
        assert!(
            bytes.len() + FOOTER_LEN <= u32::MAX as usize,
            "a pack is shorter than 4 GiB"
        );

        let body_hash = hash(&bytes);
        let footer = PackFooter {
            trailer_offset: trailer_offset as u64,
            trailer_len: trailer_len as u32,
            body_hash,
            pack: header.pack,
        };
        bytes.extend_from_slice(&footer.encode());
        let crc64nvme = crc_fast::crc64_nvme(&bytes);
        SealedPack {
            header,
            bytes,
            slots,
            records,
            body_hash,
            crc64nvme,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blob::{Codec, Opened, Opener, Padding, finish_delta, open_frame, seal_frame, slot_index};
    use super::*;
    use crate::pure::crypto::vectors::*;
    use crate::pure::crypto::{BlobKey, ObjectClass};

    const PACK: &str = "4c415244455250310100000001000000101112131415161718191a1b1c1d1e1fc0c1c2c3c4c5c6c7c8c9cacbcccdcecf1111111111111111111111111111111100004f6a1c623dd8e4c57d4721410a289264d483fa81c810bb12a11d664622e882b073ab64fd2955d8be108ad2221deeab5785d2a291534ae3e0f937cb7bbaa87f10549562ec74b2a0b2f7fa512a94b833ce5df8d090c3114b386518c692100b0fa104619c2f1137ca091ddd401767936a55117514096b622c4c2db58fef9bf48e9711a899718e114a3a0061a08adfe1301b90168ffd6d4aee735cc5a7362b6c24abbd26a5c6577dd376b327766b484bb63c9e723da8ecbd25596ca35575f5f88f7701946400000000000000a000000000000000e4807cabbf409dc0e5eed3e998434e33cc0a4836944a2ff3c6e363735249288bc0c1c2c3c4c5c6c7c8c9cacbcccdcecf000000000000000000000000037d80664c41524445524631";
    const PACK_WITH_DELTA: &str = "4c415244455250310100000001000000101112131415161718191a1b1c1d1e1fd0d1d2d3d4d5d6d7d8d9dadbdcdddedf111111114444444444444444444444440000a2b03b2177de3d0f838bf59b98ae3ac297e278a7aac5af06b0330e7ae828537d18d2364c9bde0e45223e8e3945d14dd12215f39bad4d7299ea5a9d8031a188ea7c98e16bed7df4b08d5539d6b3f386414bec8e302eb676afd2f4f6bbe88fc5edf27fc6a1f4add922f8e07a737061e13ba2d3b60a288fab3d29e4ce5542674d29adc6e0828cea065c6f7fbe6504acd14d2e078f2fb846a8518ebe79bfb4f09ad6d99a7bc5d4df77b0d1e574a066c21cb332386c2f9a11e85d611299ea7b83a3363d6ce2828354f4ce99ad84be2b817c29b663ea642186751d6606f638d53a2a5b69a66d50e63031f1fe9b187d3f4da378c078f00e60c368c336a3b1781a4cdbf90032d16b6052e191f3dbf102b8667a4b495ec8147b72744dd3f09e533625b86146841d0e2dc926807d2c430735f4b0249ac9fc47f3ddef4ec25fa5a5a22859577372b4040b201e2b4dea2e5985d063ae22f8277cab2b184b488eea518f776cd526f9b14c120ef493f6dea137ceee2c33bf6f824070fff41257b84fd800b65df9af210dd4ed0a64f74384c0310d2b17bae2cb92104c860f195ff7b26c0cabc58c971ab5f2ca40bcd106f44aaefd6e8d8d3a2260427ae25b576617539c53310aa539e6b99db9cefe01b3c40772a2c3ee66a650d5f172d3237faefaeb45bd5e215f646a9d22d7e5c4684daff5a78146672c080f374658efb47c1a1fc9364d2af80098651a1609affbf12969263264e18f046ab0a2546400005ecf553308e5475b1d7915148309f9e1a9cae3aa2da30be98288577cb303d7fafdca7a2b57594e75c618f45db211b3825f38199d7ffb6e73e10124fc41ae22918068cd36cbad2c1a91c9df9b6842ba1c65dcc3d5c0fb1a426c687d000021b5a552e14edba3a5f1838559f948c641de7cb5c65e8416f5b11801bbebf5d253518d223ac930f3c9e0035183631d41e3e20825bb22a325caba6766328ffc21d9f034b58032537c84bffb5caaf7cece5e7b84fcb54b147e4e97d2a619caa21c3dd0bcb91b6b70620631b45b3dda9db1b0d10f825671f2f1cd6be1b0d885197414b28f2798621bcc64256ec6d5d2d2609f081bc3c53ae7c592653d5c0a120d5683775854f0fa4fc4ec070b53b12f8d0207593490b44d6790dffaecd3504d6885ff1c27ccdee6bf3c383d5d5f724dd3449eb2ec319ae745ec9343c494aea3d53788827267a45466d8bb2455409996d83a75d73b475e5e0b9e35f54f9b95e028e541beb044d73432dd75948de8fce89080585336a14680ba0c0bc8b15b145d3c240ab3bb451daba9d799ea25f06b625d8672e70ea97723035f28b358d611be13952b07d5e6de020000000000001c01000000000000acd008a8d727f700779dcacaf8d1bf9115d2c3cc2a25b304fbb13d91fa038ddad0d1d2d3d4d5d6d7d8d9dadbdcdddedf00000000000000000000000077ac24724c41524445524631";

    const PACK_ID: PackId = PackId([
        192, 193, 194, 195, 196, 197, 198, 199, 200, 201, 202, 203, 204, 205, 206, 207,
    ]);

    fn header(kind: PackKind) -> PackHeader {
        PackHeader {
            kind,
            epoch: 1,
            repo: REPO,
            pack: PACK_ID,
            session: SESSION,
        }
    }

    fn trailer_key() -> Secret {
        keys().object_key(1, ObjectClass::Trailer).unwrap().clone()
    }

    fn slot(domain: Domain) -> Slot {
        keys()
            .wrap_session_key(domain, &session_key_data(), &counting(0x40))
            .unwrap()
    }

    fn key(domain: Domain) -> BlobKey {
        keys().blob_key(domain, &session_key_data())
    }

    fn frame_of(raw: &[u8]) -> (ChunkId, Vec<u8>) {
        let id = keys().data_id(raw).unwrap();
        let mut frame = Vec::new();
        let key = key(Domain::Data);
        seal_frame(
            &mut frame,
            &key,
            &REPO,
            0,
            BlobType::Data,
            &id,
            Codec::Raw,
            raw.len() as u32,
            raw,
            Padding::None,
        );
        (id, frame)
    }

    /// A data pack of chunks of noise with these lengths.
    fn pack_of(lens: &[usize]) -> SealedPack {
        let mut builder = PackBuilder::new(header(PackKind::Data), vec![slot(Domain::Data)], vec![1, 2, 3]);
        for (index, len) in lens.iter().enumerate() {
            let raw = noise(&format!("blob {index}"), *len);
            let (id, frame) = frame_of(&raw);
            builder.push(BlobType::Data, id, raw.len() as u32, None, &frame);
        }
        builder.seal(&trailer_key())
    }

    fn opened(bytes: &[u8]) -> Result<PackTrailer, FormatError> {
        check_whole(bytes)?.open(&trailer_key())
    }

    /// Replaces the footer by one that fits, so that a test reaches what lies behind hash and crc.
    fn refooted(bytes: &[u8]) -> Option<Vec<u8>> {
        let (body, footer) = bytes.split_last_chunk::<FOOTER_LEN>()?;
        let mut footer = PackFooter {
            trailer_offset: u64::from_le_bytes(footer[..8].try_into().unwrap()),
            trailer_len: u32::from_le_bytes(footer[8..12].try_into().unwrap()),
            body_hash: hash(body),
            pack: PackId(footer[48..64].try_into().unwrap()),
        };
        footer.trailer_len = (body.len() as u64)
            .checked_sub(footer.trailer_offset)?
            .try_into()
            .ok()?;
        Some([body, &footer.encode()].concat())
    }

    #[test]
    fn the_published_pack_is_made_and_opened() {
        let (id, frame) = frame_of(b"hello larder\n");
        let mut builder = PackBuilder::new(header(PackKind::Data), vec![slot(Domain::Data)], Vec::new());
        assert!(builder.is_empty() && builder.len() == 64);
        builder.push(BlobType::Data, id, 13, None, &frame);
        assert_eq!(
            (builder.is_empty(), builder.len(), builder.records().len()),
            (false, 64 + 36, 1)
        );
        let pack = builder.seal(&trailer_key());
        assert_eq!(pack.bytes, hex(PACK));
        assert_eq!(
            hash(&pack.bytes)[..],
            hex("8a4b453586a4aa3c7ee01a137a1566f70ee40cc6474314d4c2fad25bfd506f55")
        );
        assert_eq!(pack.crc64nvme, 0x2112_beda_3175_8bff);
        let parts = check_whole(&pack.bytes).unwrap();
        assert_eq!(parts.header, header(PackKind::Data));
        assert_eq!(parts.footer.body_hash, pack.body_hash);
        let trailer = parts.open(&trailer_key()).unwrap();
        assert_eq!((&trailer.slots, &trailer.records), (&pack.slots, &pack.records));
        let expected = PackRecord {
            ty: BlobType::Data,
            id,
            offset: 64,
            stored_len: 36,
            raw_len: 13,
            base: None,
        };
        assert_eq!(trailer.records, [expected]);
    }

    #[test]
    fn the_published_pack_with_a_delta_gives_back_all_its_chunks() {
        let bytes = hex(PACK_WITH_DELTA);
        let parts = check_whole(&bytes).unwrap();
        let trailer = parts.open(&trailer_key()).unwrap();
        let keys = keys();
        let base = noise("larder delta base", 512);
        let raw = [&base[..256], b"one changed row\n", &base[256..]].concat();
        let base_id = keys.data_id(&base).unwrap();
        let contents = [base.clone(), raw, vec![0; 1_000]];
        assert_eq!(trailer.records.len(), 3);
        assert_eq!(
            trailer.records.iter().map(|record| record.base).collect::<Vec<_>>(),
            [None, Some(base_id), None]
        );
        let (mut opener, mut out) = (Opener::new(), Vec::new());
        let mut builder = PackBuilder::new(parts.header, trailer.slots.clone(), Vec::new());
        for (record, content) in trailer.records.iter().zip(&contents) {
            let frame = &bytes[record.offset as usize..][..record.stored_len as usize];
            let slot = &trailer.slots[usize::from(slot_index(frame).unwrap())];
            let (_, key) = keys.open_slot(slot).unwrap();
            let state = open_frame(frame, &key, &keys, record.ty, &record.id, &mut opener, &mut out).unwrap();
            if state != Opened::Done {
                finish_delta(&state, &base, &keys, &record.id, &mut opener, &mut out).unwrap();
            }
            assert_eq!(out, *content);
            assert_eq!(record.raw_len as usize, content.len());
            builder.push(record.ty, record.id, record.raw_len, record.base, frame);
        }
        // Moved verbatim, as a maintainer does without data keys, it is the same pack.
        assert_eq!(builder.seal(&trailer_key()).bytes, bytes);
    }

    #[test]
    fn every_single_bit_counts_with_and_without_a_fitting_footer() {
        let whole = hex(PACK_WITH_DELTA);
        let trailer = opened(&whole).unwrap();
        let frames = HEADER_LEN..trailer.frames_end() as usize;
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(check_whole(&damaged).is_err(), "bit {bit}");
            // Somebody who can write may repair hash and crc; then the seals must hold. Frames have their own seals.
            let in_body = bit / 8 < whole.len() - FOOTER_LEN;
            if in_body && !frames.contains(&(bit / 8)) {
                assert!(
                    opened(&refooted(&damaged).unwrap()).is_err(),
                    "bit {bit}, footer repaired"
                );
            }
        }
    }

    #[test]
    fn truncation_and_extension_are_refused() {
        let whole = hex(PACK);
        for len in 0..whole.len() {
            assert!(check_whole(&whole[..len]).is_err());
            if let Some(repaired) = refooted(&whole[..len]) {
                assert!(opened(&repaired).is_err());
            }
        }
        assert!(check_whole(&[&whole[..], &[0]].concat()).is_err());
        let mut longer = whole.clone();
        longer.insert(HEADER_LEN, 0);
        assert!(opened(&refooted(&longer).unwrap()).is_err());
    }

    #[test]
    fn a_footer_must_fit_the_length_of_its_pack() {
        let whole = hex(PACK);
        let footer = &whole[whole.len() - FOOTER_LEN..];
        let len = whole.len() as u64;
        assert!(PackFooter::decode(footer, len).is_ok());
        for wrong in [0, 87, 88, len - 1, len + 1, u64::from(u32::MAX), u64::MAX] {
            assert!(PackFooter::decode(footer, wrong).is_err(), "{wrong}");
        }
        let decoded = PackFooter::decode(footer, len).unwrap();
        for (trailer_offset, trailer_len) in [(u64::MAX, 1), (0, whole.len() as u32 - 88), (len - 88, 0)] {
            let encoded = PackFooter {
                trailer_offset,
                trailer_len,
                ..decoded
            }
            .encode();
            assert!(PackFooter::decode(&encoded, len).is_err());
        }
        // Beyond 4 GiB, even if all agrees.
        let long = u64::from(u32::MAX) + 1;
        let encoded = PackFooter {
            trailer_offset: long - 88 - 200,
            trailer_len: 200,
            ..decoded
        }
        .encode();
        assert!(PackFooter::decode(&encoded, long).is_err());
        assert!(PackFooter::decode(&encoded, long - 1).is_err());
    }

    #[test]
    fn packs_of_many_sizes_come_back() {
        for lens in [&[1][..], &[5_000, 1, 70_000, 13], &[300; 2_000]] {
            let pack = pack_of(lens);
            let trailer = opened(&pack.bytes).unwrap();
            assert_eq!(trailer.records, pack.records);
            assert_eq!(trailer.slots, pack.slots);
            let last = trailer.records.last().unwrap();
            assert_eq!(trailer.frames_end(), u64::from(last.offset + last.stored_len));
            let (mut opener, mut out) = (Opener::new(), Vec::new());
            for (index, record) in trailer.records.iter().enumerate() {
                let frame = &pack.bytes[record.offset as usize..][..record.stored_len as usize];
                let key = key(Domain::Data);
                open_frame(frame, &key, &keys(), record.ty, &record.id, &mut opener, &mut out).unwrap();
                assert_eq!(out, noise(&format!("blob {index}"), lens[index]));
            }
        }
    }

    #[test]
    fn a_prepared_buffer_does_not_move() {
        let buffer = PackBuilder::buffer_for(1 << 20);
        let (address, capacity) = (buffer.as_ptr(), buffer.capacity());
        let mut builder = PackBuilder::new(header(PackKind::Data), vec![slot(Domain::Data)], buffer);
        let mut index = 0u32;
        while builder.len() < 1 << 20 {
            let mut id = ChunkId([1; 32]);
            id.0[..4].copy_from_slice(&index.to_le_bytes());
            builder.push(BlobType::Data, id, 400, None, &[0; 423]);
            index += 1;
        }
        let pack = builder.seal(&trailer_key());
        assert_eq!((pack.bytes.as_ptr(), pack.bytes.capacity()), (address, capacity));
    }

    #[test]
    fn a_trailer_belongs_to_one_pack_and_one_key() {
        let whole = hex(PACK);
        let parts = check_whole(&whole).unwrap();
        assert!(parts.open(&Secret::new([0; 32])).is_err());
        let mut other = parts.clone();
        other.header.session = SessionId([0x12; 16]);
        assert!(other.open(&trailer_key()).is_err());
        let mut other = parts.clone();
        other.header.pack = PackId([0; 16]);
        assert!(other.open(&trailer_key()).is_err());
    }

    /// A trailer plaintext in pieces, to break one rule at a time.
    #[derive(Clone)]
    struct Trailer {
        slots: Vec<Slot>,
        slot_count: u16,
        reserved: u16,
        blob_count: u32,
        records: Vec<(u8, u8, u16, u32, u32, [u8; 32])>,
        deltas: Vec<(u32, [u8; 32])>,
        tail: Vec<u8>,
    }

    impl Trailer {
        fn good() -> Trailer {
            Trailer {
                slots: vec![slot(Domain::Data)],
                slot_count: 1,
                reserved: 0,
                blob_count: 2,
                records: vec![(0, 0, 0, 30, 7, [1; 32]), (0, 0, 0, 40, 17, [2; 32])],
                deltas: vec![(1, [1; 32])],
                tail: Vec::new(),
            }
        }

        fn is_accepted(&self, kind: PackKind) -> bool {
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&self.slot_count.to_le_bytes());
            bytes.extend_from_slice(&self.reserved.to_le_bytes());
            bytes.extend_from_slice(&self.blob_count.to_le_bytes());
            self.slots.iter().for_each(|slot| bytes.extend_from_slice(&slot.0));
            for (ty, flags, reserved, stored, raw, id) in &self.records {
                bytes.extend_from_slice(&[*ty, *flags]);
                bytes.extend_from_slice(&reserved.to_le_bytes());
                bytes.extend_from_slice(&stored.to_le_bytes());
                bytes.extend_from_slice(&raw.to_le_bytes());
                bytes.extend_from_slice(id);
            }
            bytes.extend_from_slice(&(self.deltas.len() as u32).to_le_bytes());
            for (index, base) in &self.deltas {
                bytes.extend_from_slice(&index.to_le_bytes());
                bytes.extend_from_slice(base);
            }
            bytes.extend_from_slice(&self.tail);
            let header = header(kind).encode();
            let sealed = trailer_sealer(&trailer_key(), &PACK_ID).seal(&[0; 12], &bytes, &header);
            open_trailer(&header, &sealed, &trailer_key()).is_ok()
        }
    }

    #[test]
    fn trailers_that_break_a_rule_are_refused_although_they_are_sealed_well() {
        assert!(Trailer::good().is_accepted(PackKind::Data));
        let refused = |case: &str, change: &dyn Fn(&mut Trailer)| {
            let mut trailer = Trailer::good();
            change(&mut trailer);
            assert!(!trailer.is_accepted(PackKind::Data), "{case}");
        };
        refused("no slots", &|t| (t.slots, t.slot_count) = (vec![], 0));
        refused("fewer slots than counted", &|t| t.slot_count = 2);
        refused("more slots than there can be", &|t| t.slot_count = u16::MAX);
        refused("reserved bytes", &|t| t.reserved = 1);
        refused("no blobs", &|t| {
            (t.records, t.deltas, t.blob_count) = (vec![], vec![], 0)
        });
        refused("fewer blobs than counted", &|t| t.blob_count = 3);
        refused("blobs beyond the limit", &|t| t.blob_count = u32::MAX);
        refused("slot of the other domain", &|t| t.slots = vec![slot(Domain::Meta)]);
        refused("slot of a keyset", &|t| t.slots[0].0[2] = 1);
        refused("metadata in a data pack", &|t| t.records[0].0 = 1);
        refused("a manifest", &|t| t.records[0].0 = 3);
        refused("a dictionary", &|t| t.records[0].0 = 4);
        refused("record flags", &|t| t.records[0].1 = 1);
        refused("record reserved bytes", &|t| t.records[0].2 = 1);
        refused("a frame too short", &|t| t.records[0].3 = 23);
        refused("a frame too long", &|t| t.records[0].3 = (1 << 25) + 1);
        refused("no content", &|t| t.records[0].4 = 0);
        refused("too much content", &|t| t.records[0].4 = (16 << 20) + 1);
        refused("the id of holes", &|t| t.records[0].5 = [0; 32]);
        refused("one id twice", &|t| (t.records[1].5, t.deltas) = ([1; 32], vec![]));
        refused("delta of a blob that is not there", &|t| t.deltas[0].0 = 2);
        refused("delta of itself", &|t| t.deltas[0].1 = [2; 32]);
        refused("delta of a hole", &|t| t.deltas[0].1 = [0; 32]);
        refused("deltas out of order", &|t| t.deltas = vec![(1, [9; 32]), (0, [9; 32])]);
        refused("one delta twice", &|t| t.deltas = vec![(1, [9; 32]), (1, [9; 32])]);
        refused("bytes behind the end", &|t| t.tail = vec![0]);

        let mut meta = Trailer::good();
        meta.slots = vec![slot(Domain::Meta)];
        meta.records[0].0 = 1;
        meta.records[1].0 = 2;
        assert!(!meta.is_accepted(PackKind::Meta), "a delta in a metadata pack");
        meta.deltas.clear();
        assert!(meta.is_accepted(PackKind::Meta));
        meta.records[0].4 = 262_145;
        assert!(!meta.is_accepted(PackKind::Meta), "a node too large");
    }

    #[test]
    fn offsets_never_leave_four_gigabytes() {
        let mut trailer = Trailer::good();
        trailer.deltas.clear();
        trailer.records = (0..128u32)
            .map(|n| (0, 0, 0, 1 << 25, 1, hash(&n.to_le_bytes())))
            .collect();
        trailer.blob_count = 128;
        assert!(!trailer.is_accepted(PackKind::Data));
        trailer.records.pop();
        trailer.blob_count = 127;
        assert!(trailer.is_accepted(PackKind::Data));
    }

    #[test]
    fn headers_name_kind_epoch_and_ids() {
        let header = header(PackKind::Meta);
        assert_eq!(PackHeader::decode(&header.encode()), Ok(header));
        for (at, value) in [(0, b'X'), (8, 0), (9, 2), (10, 1), (11, 1)] {
            let mut bytes = header.encode();
            bytes[at] = value;
            assert!(PackHeader::decode(&bytes).is_err());
        }
        let mut newer = header.encode();
        newer[8] = 2;
        assert!(matches!(PackHeader::decode(&newer), Err(FormatError::TooNew { .. })));
        assert!(PackHeader::decode(&header.encode()[..63]).is_err());
        assert!(PackHeader::decode(&[&header.encode()[..], &[0]].concat()).is_err());
    }
}
