//! Index runs (format-spec chapter on runs): which chunk lies in which pack, sorted.
//!
//! A run is an envelope whose section 0 is a signed map and whose other sections are blocks of records: slots, packs, chunks,
//! deltas, features, in this order. Every block but the last of its kind is full, so the counts in the map decide how many
//! sections there are and how long each one is.

use super::blob::{FRAME_OVERHEAD, STORED_BYTES_MAX};
use super::cbor::{self, Value};
use super::codec::{Reader, malformed};
use super::envelope::{self, Envelope, EnvelopeHead, EnvelopeKind, OBJECT_BYTES_MAX, SECTIONS_MAX};
use super::name::{ObjectName, PackKind, PartKind};
use super::pack::{self, FOOTER_LEN, HEADER_LEN, PACK_LEN_MIN, TRAILER_LEN_MIN};
use super::{FormatError, Malformed};
use crate::pure::base::Timestamp;
use crate::pure::crypto::seal::TAG_LEN;
use crate::pure::crypto::sign::role;
use crate::pure::crypto::{KeyRing, ObjectClass, Secret, Signer, Slot, Verifier};
use crate::pure::id::{ChunkId, KeyId, PackId, SessionId};
use std::ops::Range;

pub mod part;

/// What a chunk record says about the blob: type nibble of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredAs {
    Data = 0,
    Node = 1,
    List = 2,
    Manifest = 3,
    Delta = 8,
}

impl StoredAs {
    /// Reads a nibble that may stand in a run. Manifests are in no pack, so in no run.
    pub fn from_nibble(nibble: u32) -> Option<StoredAs> {
        match nibble {
            0 => Some(StoredAs::Data),
            1 => Some(StoredAs::Node),
            2 => Some(StoredAs::List),
            8 => Some(StoredAs::Delta),
            _ => None,
        }
    }

    fn pack_kind(self) -> Option<PackKind> {
        match self {
            StoredAs::Data | StoredAs::Delta => Some(PackKind::Data),
            StoredAs::Node | StoredAs::List => Some(PackKind::Meta),
            StoredAs::Manifest => None,
        }
    }
}

/// One pack of a run (80 bytes stored).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPack {
    pub pack: PackId,
    pub session: SessionId,
    pub size: u32,
    pub blob_count: u32,
    pub kind: PackKind,
    /// Indexes into [`RunContent::slots`], in the pack's own slot order: a contiguous range.
    pub slots: Range<u32>,
    pub crc64nvme: u64,
    pub body_hash24: [u8; 24],
}

/// One chunk of a run (44 bytes stored).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunChunk {
    pub id: ChunkId,
    pub pack_ix: u32,
    pub offset: u32,
    pub stored_as: StoredAs,
    pub stored_len: u32,
}

/// A delta's base (68 bytes stored).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunDelta {
    pub id: ChunkId,
    pub pack_ix: u32,
    pub base: ChunkId,
}

/// Header fields beyond what the content decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunIdentity {
    pub kid: KeyId,
    pub created: Timestamp,
    pub session: SessionId,
    pub number: u32,
}

/// The content of an L0 run. Packs sorted by id, chunks by (id, pack_ix), deltas by (id, pack_ix).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RunContent {
    pub slots: Vec<Slot>,
    pub packs: Vec<RunPack>,
    pub chunks: Vec<RunChunk>,
    pub deltas: Vec<RunDelta>,
}

/// Encodes, signs and seals an L0 run under its name. `object_id` is random.
///
/// # Errors
/// The content breaks a rule that a reader would refuse it for, or is too large for one run; the identity is not the
/// signer's; or the key ring cannot seal runs.
pub fn encode_l0(
    content: &RunContent,
    identity: &RunIdentity,
    keys: &KeyRing,
    signer: &Signer,
    object_id: [u8; 16],
) -> Result<Vec<u8>, FormatError> {
    if identity.kid != signer.kid() {
        malformed("run signed by another key")?;
    }
    check_writer_tag(&identity.session, &identity.kid)?;
    check_content(content)?;
    let counts = [
        content.slots.len(),
        content.packs.len(),
        content.chunks.len(),
        content.deltas.len(),
        0,
    ];
    let layout = Layout::new(counts.map(|count| count as u64))?;
    let blocks_len = layout.section_lens().map(|len| len + TAG_LEN + 8).sum::<usize>();
    // What the header has beyond its fan-outs is far below a kilobyte.
    let header_len_max = 1_024 + layout.sections() * 8;
    if blocks_len + header_len_max + TAG_LEN + 200 > OBJECT_BYTES_MAX {
        malformed("run larger than 1 GiB")?;
    }

    assemble(content, identity, keys, signer, object_id)
}

/// Encodes, signs and seals content that has been checked.
fn assemble(
    content: &RunContent,
    identity: &RunIdentity,
    keys: &KeyRing,
    signer: &Signer,
    object_id: [u8; 16],
) -> Result<Vec<u8>, FormatError> {
    let name = ObjectName::Run(identity.session, identity.number).to_string();
    assemble_as(content, &Place::of(identity), &name, keys, signer, object_id)
}

/// The same for any object of a run: what it is of its run says `place`.
fn assemble_as(
    content: &RunContent,
    place: &Place,
    name: &str,
    keys: &KeyRing,
    signer: &Signer,
    object_id: [u8; 16],
) -> Result<Vec<u8>, FormatError> {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    put_blocks(&mut blocks, SLOT, &content.slots, |out, slot| {
        out.extend_from_slice(&slot.0)
    });
    put_blocks(&mut blocks, PACK, &content.packs, put_pack);
    put_blocks(&mut blocks, CHUNK, &content.chunks, put_chunk);
    put_blocks(&mut blocks, DELTA, &content.deltas, put_delta);

    let mut digest = Digest::default();
    blocks.iter().for_each(|block| digest.add(block));
    let header = encode_header(content, place, digest.finish(), signer, name);

    let mut sections: Vec<&[u8]> = vec![&header];
    sections.extend(blocks.iter().map(Vec::as_slice));
    let epoch = keys.current_epoch();
    let class_key = keys.object_key(epoch, ObjectClass::Run)?;
    Ok(envelope::seal(
        EnvelopeKind::Run,
        epoch,
        keys.repo(),
        object_id,
        class_key,
        name,
        &sections,
    ))
}

/// Opens, verifies (digest, signature, writer tag rule, sortedness, index ranges) and decodes a whole L0 run. `name` is the object's name.
///
/// A signer that has been revoked since is accepted: whether a run counts is said by the outcome that accepts it, and a
/// snapshot that stays valid needs its index.
///
/// # Errors
/// Anything that is not exactly a run of that name by a key that may write it.
pub fn decode_l0(
    bytes: &[u8],
    name: &str,
    keys: &KeyRing,
    verifier: &Verifier,
) -> Result<(RunIdentity, RunContent), FormatError> {
    let Some(object_name @ ObjectName::Run(session, number)) = ObjectName::parse(name) else {
        return Ok(malformed("name of an L0 run")?);
    };
    let may_write = role::WRITE | role::MAINTAIN;
    let (header, content) = decode_object(bytes, name, &object_name, may_write, keys, verifier)?;
    check_content(&content)?;
    let foreign = content
        .packs
        .iter()
        .any(|pack| pack.session.writer_tag() != header.session.writer_tag());
    if foreign && !verifier.has_role(&header.kid, role::MAINTAIN) {
        malformed("run that speaks of another writer's packs")?;
    }
    Ok((
        RunIdentity {
            kid: header.kid,
            created: header.created,
            session,
            number,
        },
        content,
    ))
}

/// Opens one object of a run and takes its records; what holds for each of them and for their order has been checked.
fn decode_object(
    bytes: &[u8],
    name: &str,
    object_name: &ObjectName,
    roles: u32,
    keys: &KeyRing,
    verifier: &Verifier,
) -> Result<(Header, RunContent), FormatError> {
    let envelope = Envelope::parse(bytes, EnvelopeKind::Run, keys.repo())?;
    let class_key = keys.object_key(envelope.epoch(), ObjectClass::Run)?;
    let (header, body) = Header::decode(&envelope.open(0, class_key, name)?)?;
    verifier.verify_even_if_revoked(&header.kid, roles, name, &body, &header.signature)?;
    header.check_name(object_name)?;
    check_writer_tag(&header.session, &header.kid)?;
    header.check_sections(envelope.sections(), |section| envelope.section_len(section))?;

    let mut digest = Digest::default();
    let mut content = RunContent {
        slots: Vec::with_capacity(header.layout.slots.records),
        packs: Vec::with_capacity(header.layout.packs.records),
        chunks: Vec::with_capacity(header.layout.chunks.records),
        deltas: Vec::with_capacity(header.layout.deltas.records),
    };
    let mut last_feature = None;
    for section in 1..envelope.sections() {
        let block = envelope.open(section, class_key, name)?;
        digest.add(&block);
        header.check_fan_out(section, &block)?;
        match header.layout.kind_of(section) {
            Some(Kind::Slots) => content.slots.extend(take_slots(&block)),
            Some(Kind::Packs) => take_packs(&block, &mut content.packs)?,
            Some(Kind::Chunks) => take_chunks(&block, &mut content.chunks)?,
            Some(Kind::Deltas) => take_deltas(&block, &mut content.deltas)?,
            Some(Kind::Features) => check_features(&block, &mut last_feature)?,
            None => malformed("run section count")?,
        }
    }
    if digest.finish() != header.digest {
        malformed("run digest")?;
    }
    Ok((header, content))
}

/// The session id starts with the writer tag of the key that signs for it.
fn check_writer_tag(session: &SessionId, kid: &KeyId) -> Result<(), Malformed> {
    if session.writer_tag()[..] == kid.as_bytes()[..4] {
        Ok(())
    } else {
        malformed("session of another writer")
    }
}

/// Everything about the content of an L0 run that can be checked without keys.
fn check_content(content: &RunContent) -> Result<(), Malformed> {
    let RunContent {
        slots,
        packs,
        chunks,
        deltas,
    } = content;
    if !packs.is_sorted_by(|left, right| left.pack < right.pack) {
        return malformed("run pack order");
    }
    for pack in packs {
        check_pack(pack)?;
        check_slots(pack, slots)?;
    }
    check_chunks(chunks, packs)?;
    check_deltas(chunks, deltas)
}

/// The slots of a pack are there, and such as its kind has.
fn check_slots(pack: &RunPack, slots: &[Slot]) -> Result<(), Malformed> {
    let Some(slots) = slots.get(pack.slots.start as usize..pack.slots.end as usize) else {
        return malformed("run slot range");
    };
    let belongs = |slot: &Slot| slot.domain() == Some(pack::domain(pack.kind)) && slot.keyset() == 0;
    match slots.iter().all(belongs) {
        true => Ok(()),
        false => malformed("run slot domain"),
    }
}

/// Chunks are in order, and each lies within a pack of its kind that is there.
fn check_chunks(chunks: &[RunChunk], packs: &[RunPack]) -> Result<(), Malformed> {
    if !chunks.is_sorted_by(|left, right| (left.id, left.pack_ix) < (right.id, right.pack_ix)) {
        return malformed("run chunk order");
    }
    for chunk in chunks {
        let Some(pack) = packs.get(chunk.pack_ix as usize) else {
            return malformed("run pack index");
        };
        if chunk.stored_as.pack_kind() != Some(pack.kind) {
            return malformed("run chunk type");
        }
        check_chunk(chunk)?;
        let end = u64::from(chunk.offset) + u64::from(chunk.stored_len);
        if end > u64::from(pack.size) - (TRAILER_LEN_MIN + FOOTER_LEN) as u64 {
            return malformed("run chunk beyond its pack");
        }
    }
    Ok(())
}

/// One delta record for each chunk stored as one: both are in the same order.
fn check_deltas(chunks: &[RunChunk], deltas: &[RunDelta]) -> Result<(), Malformed> {
    let stored_as_delta = chunks.iter().filter(|chunk| chunk.stored_as == StoredAs::Delta);
    if !stored_as_delta
        .map(|chunk| (chunk.id, chunk.pack_ix))
        .eq(deltas.iter().map(|delta| (delta.id, delta.pack_ix)))
    {
        return malformed("run delta records");
    }
    deltas.iter().try_for_each(check_delta)
}

/// What a pack record says about its pack alone.
fn check_pack(pack: &RunPack) -> Result<(), Malformed> {
    if (pack.size as usize) < PACK_LEN_MIN {
        return malformed("run pack size");
    }
    if !(1..=pack::BLOBS_MAX).contains(&(pack.blob_count as usize)) {
        return malformed("run pack blob count");
    }
    if pack.slots.is_empty() || pack.slots.len() > pack::SLOTS_MAX {
        return malformed("run slot range");
    }
    Ok(())
}

/// What a chunk record says about its frame alone.
fn check_chunk(chunk: &RunChunk) -> Result<(), Malformed> {
    if (chunk.offset as usize) < HEADER_LEN {
        return malformed("run chunk offset");
    }
    if !(FRAME_OVERHEAD + 1..=STORED_BYTES_MAX).contains(&(chunk.stored_len as usize)) {
        return malformed("run stored length");
    }
    Ok(())
}

fn check_delta(delta: &RunDelta) -> Result<(), Malformed> {
    if delta.base == delta.id || delta.base == ChunkId::HOLE {
        malformed("run delta base")
    } else {
        Ok(())
    }
}

// ------------------------------------------------------------------------------------------------ blocks

/// Shape of the blocks of one kind.
#[derive(Clone, Copy, Debug)]
struct Shape {
    records_per_block: usize,
    record_len: usize,
}

const SLOT: Shape = Shape {
    records_per_block: 512,
    record_len: Slot::LEN,
};
const PACK: Shape = Shape {
    records_per_block: 512,
    record_len: 80,
};
const CHUNK: Shape = Shape {
    records_per_block: 1_024,
    record_len: 44,
};
const DELTA: Shape = Shape {
    records_per_block: 512,
    record_len: 68,
};
const FEATURE: Shape = Shape {
    records_per_block: 1_024,
    record_len: 56,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Slots,
    Packs,
    Chunks,
    Deltas,
    Features,
}

/// The blocks of one kind within an object.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    shape: Shape,
    /// Section of the first block.
    first: usize,
    /// Records in all.
    records: usize,
}

impl Blocks {
    fn count(&self) -> usize {
        self.records.div_ceil(self.shape.records_per_block)
    }

    fn sections(&self) -> Range<usize> {
        self.first..self.first + self.count()
    }

    /// Which block a section is, if it is one of these.
    fn block(&self, section: usize) -> Option<usize> {
        self.sections().contains(&section).then(|| section - self.first)
    }

    /// Records before a block.
    fn records_before(&self, block: usize) -> usize {
        block * self.shape.records_per_block
    }

    /// Bytes of a block's plaintext: all but the last are full.
    fn block_len(&self, block: usize) -> usize {
        let records = (self.records - self.records_before(block)).min(self.shape.records_per_block);
        records * self.shape.record_len
    }
}

/// Where the blocks of each kind are, as the counts in the header say.
#[derive(Clone, Copy, Debug)]
struct Layout {
    slots: Blocks,
    packs: Blocks,
    chunks: Blocks,
    deltas: Blocks,
    features: Blocks,
}

impl Layout {
    /// Counts of slots, packs, chunks, deltas and features.
    fn new(counts: [u64; 5]) -> Result<Layout, Malformed> {
        let mut first = 1;
        let mut blocks = |shape: Shape, records: u64| {
            let records = u32::try_from(records).or_else(|_| malformed("run record count"))? as usize;
            let blocks = Blocks { shape, first, records };
            first += blocks.count();
            if first > SECTIONS_MAX {
                malformed("run record count")
            } else {
                Ok(blocks)
            }
        };
        Ok(Layout {
            slots: blocks(SLOT, counts[0])?,
            packs: blocks(PACK, counts[1])?,
            chunks: blocks(CHUNK, counts[2])?,
            deltas: blocks(DELTA, counts[3])?,
            features: blocks(FEATURE, counts[4])?,
        })
    }

    fn all(&self) -> [(Kind, Blocks); 5] {
        [
            (Kind::Slots, self.slots),
            (Kind::Packs, self.packs),
            (Kind::Chunks, self.chunks),
            (Kind::Deltas, self.deltas),
            (Kind::Features, self.features),
        ]
    }

    /// Sections in all, the header included.
    fn sections(&self) -> usize {
        self.features.sections().end
    }

    fn kind_of(&self, section: usize) -> Option<Kind> {
        self.all()
            .into_iter()
            .find(|(_, blocks)| blocks.block(section).is_some())
            .map(|(kind, _)| kind)
    }

    /// Plaintext length of each section but the header, in order.
    fn section_lens(&self) -> impl Iterator<Item = usize> {
        self.all()
            .into_iter()
            .flat_map(|(_, blocks)| (0..blocks.count()).map(move |block| blocks.block_len(block)))
    }
}

fn put_blocks<T>(blocks: &mut Vec<Vec<u8>>, shape: Shape, records: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    for records in records.chunks(shape.records_per_block) {
        let mut block = Vec::with_capacity(records.len() * shape.record_len);
        records.iter().for_each(|record| put(&mut block, record));
        debug_assert_eq!(block.len(), records.len() * shape.record_len);
        blocks.push(block);
    }
}

fn put_pack(out: &mut Vec<u8>, pack: &RunPack) {
    out.extend_from_slice(pack.pack.as_bytes());
    out.extend_from_slice(pack.session.as_bytes());
    out.extend_from_slice(&pack.size.to_le_bytes());
    out.extend_from_slice(&pack.blob_count.to_le_bytes());
    out.extend_from_slice(&[pack.kind as u8, 0]);
    // `check_pack` has limited the length of the range to 16 bits.
    out.extend_from_slice(&(pack.slots.len() as u16).to_le_bytes());
    out.extend_from_slice(&pack.slots.start.to_le_bytes());
    out.extend_from_slice(&pack.crc64nvme.to_le_bytes());
    out.extend_from_slice(&pack.body_hash24);
}

fn put_chunk(out: &mut Vec<u8>, chunk: &RunChunk) {
    out.extend_from_slice(chunk.id.as_bytes());
    out.extend_from_slice(&chunk.pack_ix.to_le_bytes());
    out.extend_from_slice(&chunk.offset.to_le_bytes());
    out.extend_from_slice(&((chunk.stored_as as u32) << 28 | chunk.stored_len).to_le_bytes());
}

fn put_delta(out: &mut Vec<u8>, delta: &RunDelta) {
    out.extend_from_slice(delta.id.as_bytes());
    out.extend_from_slice(&delta.pack_ix.to_le_bytes());
    out.extend_from_slice(delta.base.as_bytes());
}

fn take_slots(block: &[u8]) -> impl Iterator<Item = Slot> {
    block.as_chunks::<{ Slot::LEN }>().0.iter().map(|bytes| Slot(*bytes))
}

fn take_packs(block: &[u8], packs: &mut Vec<RunPack>) -> Result<(), Malformed> {
    let mut reader = Reader::new(block);
    while reader.remaining() > 0 {
        let pack = PackId(reader.array("run pack id")?);
        let session = SessionId(reader.array("run pack session")?);
        let size = reader.u32("run pack size")?;
        let blob_count = reader.u32("run pack blob count")?;
        let kind = PackKind::from_byte(reader.u8("run pack kind")?).ok_or(Malformed { what: "run pack kind" })?;
        if reader.u8("run pack flags")? != 0 {
            return malformed("run pack flags");
        }
        let slot_count = u32::from(reader.u16("run slot range")?);
        let slot_first = reader.u32("run slot range")?;
        let slot_end = slot_first
            .checked_add(slot_count)
            .ok_or(Malformed { what: "run slot range" })?;
        let crc64nvme = reader.u64("run pack checksum")?;
        let body_hash24 = reader.array("run pack body hash")?;
        let record = RunPack {
            pack,
            session,
            size,
            blob_count,
            kind,
            slots: slot_first..slot_end,
            crc64nvme,
            body_hash24,
        };
        check_pack(&record)?;
        if packs.last().is_some_and(|last| last.pack >= pack) {
            return malformed("run pack order");
        }
        packs.push(record);
    }
    Ok(())
}

fn take_chunks(block: &[u8], chunks: &mut Vec<RunChunk>) -> Result<(), Malformed> {
    let mut reader = Reader::new(block);
    while reader.remaining() > 0 {
        let id = ChunkId(reader.array("run chunk id")?);
        let pack_ix = reader.u32("run pack index")?;
        let offset = reader.u32("run chunk offset")?;
        let packed = reader.u32("run stored length")?;
        let stored_as = StoredAs::from_nibble(packed >> 28).ok_or(Malformed { what: "run chunk type" })?;
        let record = RunChunk {
            id,
            pack_ix,
            offset,
            stored_as,
            stored_len: packed & 0x0fff_ffff,
        };
        check_chunk(&record)?;
        if chunks
            .last()
            .is_some_and(|last| (last.id, last.pack_ix) >= (id, pack_ix))
        {
            return malformed("run chunk order");
        }
        chunks.push(record);
    }
    Ok(())
}

fn take_deltas(block: &[u8], deltas: &mut Vec<RunDelta>) -> Result<(), Malformed> {
    let mut reader = Reader::new(block);
    while reader.remaining() > 0 {
        let record = RunDelta {
            id: ChunkId(reader.array("run delta id")?),
            pack_ix: reader.u32("run delta pack index")?,
            base: ChunkId(reader.array("run delta base")?),
        };
        check_delta(&record)?;
        if deltas
            .last()
            .is_some_and(|last| (last.id, last.pack_ix) >= (record.id, record.pack_ix))
        {
            return malformed("run delta order");
        }
        deltas.push(record);
    }
    Ok(())
}

/// Features are only advice, so beyond their order nothing about them is refused.
fn check_features(block: &[u8], last: &mut Option<ChunkId>) -> Result<(), Malformed> {
    let mut reader = Reader::new(block);
    while reader.remaining() > 0 {
        let id = ChunkId(reader.array("run feature id")?);
        reader.array::<24>("run features")?;
        if last.is_some_and(|last| last >= id) {
            return malformed("run feature order");
        }
        *last = Some(id);
    }
    Ok(())
}

/// H over the plaintexts of all blocks, each preceded by its length.
#[derive(Default)]
struct Digest(blake3::Hasher);

impl Digest {
    fn add(&mut self, block: &[u8]) {
        self.0.update(&(block.len() as u64).to_le_bytes()).update(block);
    }

    fn finish(&self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

// ------------------------------------------------------------------------------------------------ header

/// Section 0.
#[derive(Clone, Debug)]
struct Header {
    kid: KeyId,
    created: Timestamp,
    level: u64,
    session: SessionId,
    number: u64,
    /// 0 whole, 1 packs, 2 slots, 3 chunks.
    part: u64,
    part_number: Option<u64>,
    /// Index, in the whole run, of the first slot or pack here.
    first_index: Option<u32>,
    layout: Layout,
    pack_fan_out: FanOut,
    chunk_fan_out: FanOut,
    delta_fan_out: FanOut,
    digest: [u8; 32],
    signature: [u8; 64],
}

/// First 8 bytes of the first id of each block, as big-endian numbers so that they compare like ids.
type FanOut = Vec<u64>;

fn fan_out_key(id: &[u8]) -> u64 {
    id.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// What an object is of its run, as its header says.
struct Place {
    kid: KeyId,
    created: Timestamp,
    level: u8,
    session: SessionId,
    /// Of an L0 run; 0 otherwise.
    number: u32,
    /// 0 whole, 1 packs, 2 slots, 3 chunks.
    part: u64,
    part_number: Option<u32>,
    /// Index, in the whole run, of the first slot or pack here.
    first_index: Option<u32>,
}

impl Place {
    fn of(identity: &RunIdentity) -> Place {
        Place {
            kid: identity.kid,
            created: identity.created,
            level: 0,
            session: identity.session,
            number: identity.number,
            part: 0,
            part_number: None,
            first_index: None,
        }
    }
}

fn encode_header(content: &RunContent, place: &Place, digest: [u8; 32], signer: &Signer, name: &str) -> Vec<u8> {
    let count = |records: usize| Value::Uint(records as u64);
    let RunContent {
        slots,
        packs,
        chunks,
        deltas,
    } = content;
    let created = place.created.0;
    let mut map = vec![
        (0, Value::Uint(1)),
        (1, Value::Bytes(place.kid.0.to_vec())),
        (2, u64::try_from(created).map_or(Value::Nint(created), Value::Uint)),
        (3, Value::Uint(place.level.into())),
        (4, Value::Bytes(place.session.0.to_vec())),
        (5, Value::Uint(place.number.into())),
        (
            6,
            Value::Array(vec![count(slots.len()), count(packs.len()), count(chunks.len())]),
        ),
        (9, Value::Uint(place.part)),
        (14, Value::Bytes(digest.to_vec())),
    ];
    let optional = [(10, place.part_number), (11, place.first_index)];
    map.extend(
        optional
            .into_iter()
            .filter_map(|(key, value)| Some((key, Value::Uint(value?.into())))),
    );
    let mut fan_out = |key: u64, firsts: Vec<&[u8]>| {
        if !firsts.is_empty() {
            map.push((
                key,
                Value::Bytes(firsts.iter().flat_map(|id| &id[..8]).copied().collect()),
            ));
        }
    };
    fan_out(
        7,
        packs
            .chunks(PACK.records_per_block)
            .map(|block| &block[0].pack.0[..])
            .collect(),
    );
    fan_out(
        8,
        chunks
            .chunks(CHUNK.records_per_block)
            .map(|block| &block[0].id.0[..])
            .collect(),
    );
    fan_out(
        13,
        deltas
            .chunks(DELTA.records_per_block)
            .map(|block| &block[0].id.0[..])
            .collect(),
    );
    if !deltas.is_empty() {
        map.push((12, Value::Array(vec![count(deltas.len()), count(0)])));
    }
    map.sort_by_key(|(key, _)| *key);
    let mut map: Vec<(Value, Value)> = map.into_iter().map(|(key, value)| (Value::Uint(key), value)).collect();
    let signature = signer.sign(name, &cbor::encode(&Value::Map(map.clone())));
    map.push((Value::Uint(15), Value::Bytes(signature.to_vec())));
    cbor::encode(&Value::Map(map))
}

impl Header {
    /// Decodes the map; returns with it the bytes that the signature is over.
    fn decode(plaintext: &[u8]) -> Result<(Header, Vec<u8>), FormatError> {
        let Value::Map(mut map) = cbor::decode(plaintext)? else {
            return Ok(malformed("run header")?);
        };
        let is_critical = |(key, _): &(Value, Value)| !matches!(key, Value::Uint(..0x8000));
        if map.iter().any(is_critical) {
            return Err(FormatError::TooNew {
                what: "a run with a key that must not be ignored".to_owned(),
            });
        }
        let mut signature = None;
        map.retain(|(key, value)| {
            let is_signature = *key == Value::Uint(15);
            if is_signature {
                signature = Some(value.clone());
            }
            !is_signature
        });
        let body = Value::Map(map);
        let signed = cbor::encode(&body);
        let Value::Map(map) = body else {
            return Ok(malformed("run header")?);
        };
        let fields = Fields { map };

        if fields.uint(0)? != Some(1) {
            malformed("run header version")?;
        }
        let counts = fields.counts::<3>(6)?.ok_or(Malformed {
            what: "run record counts",
        })?;
        let more = fields.counts::<2>(12)?.unwrap_or([0, 0]);
        let layout = Layout::new([counts[0], counts[1], counts[2], more[0], more[1]])?;
        let header = Header {
            kid: KeyId(fields.bytes(1)?),
            created: fields.time(2)?,
            level: fields.uint(3)?.ok_or(Malformed { what: "run level" })?,
            session: SessionId(fields.bytes(4)?),
            number: fields.uint(5)?.ok_or(Malformed { what: "run number" })?,
            part: fields.uint(9)?.ok_or(Malformed { what: "run part" })?,
            part_number: fields.uint(10)?,
            first_index: match fields.uint(11)? {
                Some(index) => Some(u32::try_from(index).or_else(|_| malformed("run first index"))?),
                None => None,
            },
            pack_fan_out: fields.fan_out(7, &layout.packs)?,
            chunk_fan_out: fields.fan_out(8, &layout.chunks)?,
            delta_fan_out: fields.fan_out(13, &layout.deltas)?,
            layout,
            digest: fields.bytes(14)?,
            signature: match signature {
                Some(Value::Bytes(bytes)) => bytes.try_into().or_else(|_| malformed("run signature"))?,
                _ => malformed("run signature")?,
            },
        };
        // All indexes of records stay within 32 bits.
        let most = layout.slots.records.max(layout.packs.records) as u64;
        if u64::from(header.first_index.unwrap_or(0)) + most > u64::from(u32::MAX) {
            malformed("run first index")?;
        }
        Ok((header, signed))
    }

    /// The header says of itself what the name says, and a part holds only what its kind holds.
    fn check_name(&self, name: &ObjectName) -> Result<(), Malformed> {
        let Layout {
            slots,
            packs,
            chunks,
            deltas,
            features,
        } = &self.layout;
        let (level, session, number, part, part_number) = match name {
            ObjectName::Run(session, number) => (0, session, *number, 0, None),
            ObjectName::RunPart(level, session, part) => {
                let (kind, number) = PartKind::parse(part).ok_or(Malformed { what: "run part name" })?;
                let part = match kind {
                    PartKind::Packs => 1,
                    PartKind::Slots => 2,
                    PartKind::Chunks { .. } => 3,
                };
                (u64::from(*level), session, 0, part, Some(u64::from(number)))
            }
            _ => return malformed("run name"),
        };
        let agrees = self.level == level
            && self.session == *session
            && self.number == u64::from(number)
            && self.part == part
            && self.part_number == part_number;
        if !agrees {
            return malformed("run under another name");
        }
        let is_empty = |blocks: &[&Blocks]| blocks.iter().all(|blocks| blocks.records == 0);
        let fits = match part {
            0 => self.first_index.is_none(),
            1 => is_empty(&[slots, chunks, deltas, features]),
            2 => is_empty(&[packs, chunks, deltas, features]),
            _ => is_empty(&[slots, packs]) && self.first_index.is_none(),
        };
        if fits {
            Ok(())
        } else {
            malformed("run part with records of another part")
        }
    }

    /// The sections of the object are those that the counts call for.
    fn check_sections(&self, sections: usize, sealed_len: impl Fn(usize) -> usize) -> Result<(), Malformed> {
        if sections != self.layout.sections() {
            return malformed("run section count");
        }
        let fits = self
            .layout
            .section_lens()
            .zip(1..)
            .all(|(len, section)| sealed_len(section) == len + TAG_LEN);
        if fits { Ok(()) } else { malformed("run section length") }
    }

    /// The fan-out names the first record of the block.
    fn check_fan_out(&self, section: usize, block: &[u8]) -> Result<(), Malformed> {
        let Layout {
            packs, chunks, deltas, ..
        } = &self.layout;
        let kinds = [
            (packs, &self.pack_fan_out),
            (chunks, &self.chunk_fan_out),
            (deltas, &self.delta_fan_out),
        ];
        let fits = kinds.iter().all(|(blocks, fan_out)| {
            blocks
                .block(section)
                .is_none_or(|index| fan_out.get(index) == Some(&fan_out_key(block)))
        });
        if fits { Ok(()) } else { malformed("run fan-out") }
    }
}

/// The map of a header, its signature taken out.
struct Fields {
    map: Vec<(Value, Value)>,
}

impl Fields {
    fn get(&self, key: u64) -> Option<&Value> {
        self.map
            .iter()
            .find(|(present, _)| *present == Value::Uint(key))
            .map(|(_, value)| value)
    }

    fn uint(&self, key: u64) -> Result<Option<u64>, Malformed> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Uint(value)) => Ok(Some(*value)),
            Some(_) => malformed("run header number"),
        }
    }

    fn time(&self, key: u64) -> Result<Timestamp, Malformed> {
        match self.get(key) {
            Some(Value::Nint(value)) => Ok(Timestamp(*value)),
            Some(Value::Uint(value)) => i64::try_from(*value).map(Timestamp).or_else(|_| malformed("run time")),
            _ => malformed("run time"),
        }
    }

    fn bytes<const N: usize>(&self, key: u64) -> Result<[u8; N], Malformed> {
        match self.get(key) {
            Some(Value::Bytes(bytes)) => bytes.as_slice().try_into().or_else(|_| malformed("run header bytes")),
            _ => malformed("run header bytes"),
        }
    }

    fn counts<const N: usize>(&self, key: u64) -> Result<Option<[u64; N]>, Malformed> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Array(items) = value else {
            return malformed("run record counts");
        };
        let counts: Option<Vec<u64>> = items
            .iter()
            .map(|item| {
                if let Value::Uint(count) = item {
                    Some(*count)
                } else {
                    None
                }
            })
            .collect();
        match counts.map(<[u64; N]>::try_from) {
            Some(Ok(counts)) => Ok(Some(counts)),
            _ => malformed("run record counts"),
        }
    }

    fn fan_out(&self, key: u64, blocks: &Blocks) -> Result<FanOut, Malformed> {
        let bytes: &[u8] = match self.get(key) {
            None => &[],
            Some(Value::Bytes(bytes)) => bytes,
            Some(_) => return malformed("run fan-out"),
        };
        if bytes.len() != blocks.count() * 8 {
            return malformed("run fan-out");
        }
        let fan_out: FanOut = bytes.chunks_exact(8).map(fan_out_key).collect();
        if fan_out.is_sorted() {
            Ok(fan_out)
        } else {
            malformed("run fan-out")
        }
    }
}

// ------------------------------------------------------------------------------------------------ ranged reads

/// The head of a run that is read by ranges: enough to find the block that may hold an id.
///
/// Signature and digest are not verified here: a ranged read relies on the seal of each block and on the id check of the
/// blob that it leads to.
#[derive(Clone, Debug)]
pub struct RunHead {
    name: String,
    envelope: EnvelopeHead,
    header: Header,
}

impl RunHead {
    /// Parses the first bytes of a run (64 KiB are normally enough). `Ok(None)`: more bytes are needed, see [`Self::prefix_needed`].
    ///
    /// `name` is that of an L0 run or of a part of a higher level.
    ///
    /// # Errors
    /// Anything that is not the head of a run of that name.
    pub fn parse(prefix: &[u8], name: &str, keys: &KeyRing) -> Result<Option<RunHead>, FormatError> {
        let Some(object_name) = ObjectName::parse(name) else {
            return Ok(malformed("run name")?);
        };
        let Some(envelope) = EnvelopeHead::parse(prefix, EnvelopeKind::Run, keys.repo())? else {
            return Ok(None);
        };
        let range = envelope.range(0);
        let Some(sealed) = prefix.get(range.start as usize..range.end as usize) else {
            return Ok(None);
        };
        let class_key = keys.object_key(envelope.epoch(), ObjectClass::Run)?;
        let (header, _) = Header::decode(&envelope.open(0, sealed, class_key, name)?)?;
        header.check_name(&object_name)?;
        header.check_sections(envelope.sections(), |section| {
            let range = envelope.range(section);
            (range.end - range.start) as usize
        })?;
        Ok(Some(RunHead {
            name: name.to_owned(),
            envelope,
            header,
        }))
    }

    /// Bytes of prefix that [`Self::parse`] needs, judged from the first 64 bytes (upper bound for headers without unknown
    /// keys). Exact when at least 72 bytes are given.
    ///
    /// # Errors
    /// The bytes are not the start of a run.
    pub fn prefix_needed(first_64: &[u8]) -> Result<usize, FormatError> {
        let (table_end, section_end) = envelope::prefix_lens(first_64)?;
        // Fan-outs have 8 bytes for each section at most, as the table has; the rest of a header is below 512 bytes.
        let needed = section_end.unwrap_or(2 * table_end + 512);
        if needed > OBJECT_BYTES_MAX {
            Ok(malformed("run header length")?)
        } else {
            Ok(needed)
        }
    }

    /// Sections (with byte ranges) of the chunk blocks that may hold `id`, usually one.
    pub fn chunk_blocks(&self, id: &ChunkId) -> Vec<(usize, Range<u64>)> {
        self.blocks_of(id, &self.header.layout.chunks, &self.header.chunk_fan_out)
    }

    /// Section and byte range of the pack block that holds the pack with rank `pack_ix`; section 0 with an empty range when
    /// there is none here, which then does not open.
    pub fn pack_block(&self, pack_ix: u32) -> (usize, Range<u64>) {
        let packs = &self.header.layout.packs;
        let index = pack_ix.checked_sub(self.first_index()).map(|index| index as usize);
        match index.filter(|index| *index < packs.records) {
            Some(index) => self.with_range(packs.first + index / packs.shape.records_per_block),
            None => (0, 0..0),
        }
    }

    /// Sections and byte ranges of the slot blocks that hold `slots`, as far as they are here.
    pub fn slot_blocks(&self, slots: &Range<u32>) -> Vec<(usize, Range<u64>)> {
        let blocks = &self.header.layout.slots;
        let local = |index: u32| (index.saturating_sub(self.first_index()) as usize).min(blocks.records);
        let (start, end) = (local(slots.start), local(slots.end));
        if start >= end {
            return Vec::new();
        }
        let per_block = blocks.shape.records_per_block;
        (start / per_block..end.div_ceil(per_block))
            .map(|block| self.with_range(blocks.first + block))
            .collect()
    }

    /// Sections of the delta blocks that may hold `id`.
    pub fn delta_blocks(&self, id: &ChunkId) -> Vec<(usize, Range<u64>)> {
        self.blocks_of(id, &self.header.layout.deltas, &self.header.delta_fan_out)
    }

    /// Opens a chunk block.
    ///
    /// # Errors
    /// The section is not a chunk block, does not open, or breaks a rule.
    pub fn open_chunks(&self, section: usize, sealed: &[u8], keys: &KeyRing) -> Result<Vec<RunChunk>, FormatError> {
        let (_, block) = self.open(section, sealed, &self.header.layout.chunks, keys)?;
        let mut chunks = Vec::with_capacity(block.len() / CHUNK.record_len);
        take_chunks(&block, &mut chunks)?;
        let packs = self.header.layout.packs.records;
        if self.header.part == 0 && chunks.iter().any(|chunk| chunk.pack_ix as usize >= packs) {
            malformed("run pack index")?;
        }
        Ok(chunks)
    }

    /// Opens a pack block; the rank of its first pack comes with it.
    ///
    /// # Errors
    /// The section is not a pack block, does not open, or breaks a rule.
    pub fn open_packs(
        &self,
        section: usize,
        sealed: &[u8],
        keys: &KeyRing,
    ) -> Result<(u32, Vec<RunPack>), FormatError> {
        let (before, block) = self.open(section, sealed, &self.header.layout.packs, keys)?;
        let mut packs = Vec::with_capacity(block.len() / PACK.record_len);
        take_packs(&block, &mut packs)?;
        let slots = self.header.layout.slots.records;
        if self.header.part == 0 && packs.iter().any(|pack| pack.slots.end as usize > slots) {
            malformed("run slot range")?;
        }
        Ok((self.first_index() + before, packs))
    }

    /// Opens a slot block; the index of its first slot comes with it.
    ///
    /// # Errors
    /// The section is not a slot block or does not open.
    pub fn open_slots(&self, section: usize, sealed: &[u8], keys: &KeyRing) -> Result<(u32, Vec<Slot>), FormatError> {
        let (before, block) = self.open(section, sealed, &self.header.layout.slots, keys)?;
        Ok((self.first_index() + before, take_slots(&block).collect()))
    }

    /// Opens a delta block.
    ///
    /// # Errors
    /// The section is not a delta block, does not open, or breaks a rule.
    pub fn open_deltas(&self, section: usize, sealed: &[u8], keys: &KeyRing) -> Result<Vec<RunDelta>, FormatError> {
        let (_, block) = self.open(section, sealed, &self.header.layout.deltas, keys)?;
        let mut deltas = Vec::with_capacity(block.len() / DELTA.record_len);
        take_deltas(&block, &mut deltas)?;
        Ok(deltas)
    }

    /// Rank of the first slot or pack here within the whole run; 0 for an L0 run.
    fn first_index(&self) -> u32 {
        self.header.first_index.unwrap_or(0)
    }

    fn with_range(&self, section: usize) -> (usize, Range<u64>) {
        (section, self.envelope.range(section))
    }

    /// The blocks from the last that starts before the id to the last that starts at it: several records of one id may
    /// lie across a border, and the fan-out has only 8 of the 32 bytes.
    fn blocks_of(&self, id: &ChunkId, blocks: &Blocks, fan_out: &FanOut) -> Vec<(usize, Range<u64>)> {
        let key = fan_out_key(id.as_bytes());
        let first = fan_out.partition_point(|start| *start < key).saturating_sub(1);
        let end = fan_out.partition_point(|start| *start <= key);
        (first..end)
            .map(|block| self.with_range(blocks.first + block))
            .collect()
    }

    /// Opens a block of one kind; the number of records before it comes with it.
    fn open(
        &self,
        section: usize,
        sealed: &[u8],
        blocks: &Blocks,
        keys: &KeyRing,
    ) -> Result<(u32, Vec<u8>), FormatError> {
        let Some(index) = blocks.block(section) else {
            return Ok(malformed("run section of another kind")?);
        };
        let class_key: &Secret = keys.object_key(self.envelope.epoch(), ObjectClass::Run)?;
        let block = self.envelope.open(section, sealed, class_key, &self.name)?;
        // A sealed block of another length cannot be, but everything below counts on it.
        if block.len() != blocks.block_len(index) {
            malformed("run section length")?;
        }
        self.header.check_fan_out(section, &block)?;
        Ok((blocks.records_before(index) as u32, block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::crypto::vectors::*;
    use crate::pure::crypto::{Domain, hash};

    const NAME: &str = "idx/0-11111111111111111111111111111111-0000";
    const RUN: &str = "4c41524445524f310101000001000000101112131415161718191a1b1c1d1e1f808182838485868788898a8b8c8d8e8f0400000000000000000000000000000000000000c6000000c6000000680000002e010000600000008e0100003c00000089c18422ad4d69fd44f9d2d58b74949af063658d44ee5e746323a016260e354e1f4fe510e2d3b890d504c09232b8267218238e63072eda05020f5b143a650fb68d42d7afb3f0484b2e3fd602877ccfc9b06d42c39d007e621a107f81cc90dae4b2017eabcbe95b6bd2d56c69f7cc6474fee40c8d3ef12b897f2ebeb43f9db7f82e0b97eec96f41e3dc9d5206ea93171bc7b268ccb41db5e1aec6b51768e40b88daccf7a9368e7196153a162d858a34e6c034a131662e24588663fa0f226edbe8ad045ec661a81c6ba2e27bd4e176b80970b265c773d1cf8c079d77b5b71cd12035b8cdb76860823740978d2516373575b4e85718b355c02bd0e6ebfc0e8199389b72eb4ec52cb6d4d925ce8239ba977ea2c5f6bd88ded8e61cf922c9e190d99bb7b027c5fd7e235b4d971b1f3f7547b33c132ddf5578ec501dc9ea36ab3d020d52c03ea68cf4745c84051347eeaa4c1a953ca83f5c8e05c57458cba3466582a2cc2d0f83c7e07dbd3b933ce137c1c671467c61baf44155c5cbe5b8d516975106502877275f2fa9736d07ab2876fa9687a5118827122daa21b530400ce5aa5524b4345284d782d0097fb39f1aab5dbf06448a48692d621451c29ed46c58dd8841454e3acfa18aa1a4a2cb949072c576253b3a2f35333806d05af2d8c5fc3197252c18687ec5820c4a47234c41524445524531";
    const RUN_WITH_DELTAS: &str = "4c41524445524f310101000001000000101112131415161718191a1b1c1d1e1f808182838485868788898a8b8c8d8e8f0600000000000000000000000000000000000000d4000000d4000000680000003c010000600000009c0100009400000030020000540000008402000080000000c8373b19e34b5c264372eb6ecee1509c81c2f42477b455263559f54e9a38e54606937cb5a75dab01a701c6d75e0e6aa01b43d775fd7f8811944458953413365b3ee559dc385557a6bd753f17d2ff28fbe36b719d2d8b9f74813c0efc5dbc498fd100837d3d303b69438acd37caaf7c233a078061297cf0776fae50d6ddf7c437a21398d552484d459fc28fe53751068730630526b6a1b66b064131ba0fddeda6e650d825e02081247fbd2b8f8bcc98d519281c29d9bca666afd684856fe4dec562af84c6465f486cc62a44d1b0ba313c028112cc704906e5be0f25cb1dfcb51048fa3eb8bb41f9076aa8fc020fcf658e061fce34db57ed677c7428a6e75539be4fed35550293b98fb40f66c673847d532c8b76c334f69c6096d44a8bc4b36924c1d7df43b7362b5384e099e47cb54194c1174fc7eaa1be77e35c864ffa4d3343815526e3a5eae621991985eb06b4c3288f50140d77ca40681ae668ccb687b20ce24ad8fcf20e9c8e6d987411c68a326c45c12a1fa7af8d546b7f788a04fe83c90d4a7528bb0a9bfd00bc09183ceba1eeafe77dfd31f3fcec8b9d324f0f374ffd9786fcd520e388769d7ed43ed32fead4d42be2d5789f46f448b1947c899be46426c107ccbc4f03e2a1fca28ef23eaeb8e232a989a22744b9e8357f9f8626f4c1e1ba9b654c100d43d1a83dd03504572e07f2f14d612ad1adaeaa1fe86e33d235b6d4a43f35db5b475a658bef14e173fb0796553ebeab943f6a9e2d2d86461020eb677f001bc5becf11d2c04e6ef144ec7f208129da1f8ddb1d5496be7272812fc06750c58f812eb3ac723b9e084a17f5bcda951e1e8277183591bfd9fe1b1bb3e6d73f65cd1adb1e75b83fc949a2e218ed42c625b6351b8094552ea1f56d553996fe3d64512e6a1b07385f8e9f1a61f4b7867c93477afa7efe18b4e98147f56c683d4dd712b1571e840c8e33e1e8109d9e02e9b83f0a659fcc7f05e0454bd44d818be658b455298fd2ebd145d1d9321cd7706273abb1cb29ca2139a93f448bde96882078c453991a38c319a7f65f1314226efe9c96f404ddcce13b5af9fc88aec12a8bfd484cc7ebc6c46d2debeb6bde439144fd59f761f621ff3bbea8ddf8fe1f02f2934c41524445524531";
    const DELTAS_NAME: &str = "idx/0-11111111444444444444444444444444-0000";
    const OBJECT_ID: [u8; 16] = [
        128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143,
    ];

    fn identity() -> RunIdentity {
        RunIdentity {
            kid: kid(),
            created: Timestamp(1_700_000_001_000_000_000),
            session: SESSION,
            number: 0,
        }
    }

    fn slot(domain: Domain) -> Slot {
        keys()
            .wrap_session_key(domain, &session_key_data(), &counting(0x40))
            .unwrap()
    }

    fn published_content() -> RunContent {
        let pack: PackId = "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf".parse().unwrap();
        RunContent {
            slots: vec![slot(Domain::Data)],
            packs: vec![RunPack {
                pack,
                session: SESSION,
                size: 348,
                blob_count: 1,
                kind: PackKind::Data,
                slots: 0..1,
                crc64nvme: 0x2112_beda_3175_8bff,
                body_hash24: hex("e4807cabbf409dc0e5eed3e998434e33cc0a4836944a2ff3")
                    .try_into()
                    .unwrap(),
            }],
            chunks: vec![RunChunk {
                id: keys().data_id(b"hello larder\n").unwrap(),
                pack_ix: 0,
                offset: 64,
                stored_as: StoredAs::Data,
                stored_len: 36,
            }],
            deltas: Vec::new(),
        }
    }

    fn decode(bytes: &[u8], name: &str) -> Result<(RunIdentity, RunContent), FormatError> {
        decode_l0(bytes, name, &keys(), &verifier(role::WRITE))
    }

    /// Replaces the footer by one that fits, so that a test reaches what lies behind the hash.
    fn rehashed(bytes: &[u8]) -> Vec<u8> {
        let body = &bytes[..bytes.len() - 40];
        [body, &hash(body), b"LARDERE1"].concat()
    }

    #[test]
    fn the_published_run_is_made_and_read() {
        let bytes = encode_l0(&published_content(), &identity(), &keys(), &signer(), OBJECT_ID).unwrap();
        assert_eq!(bytes, hex(RUN));
        assert_eq!(decode(&bytes, NAME), Ok((identity(), published_content())));
    }

    #[test]
    fn the_published_run_with_deltas_and_features_is_read() {
        let (identity, content) = decode(&hex(RUN_WITH_DELTAS), DELTAS_NAME).unwrap();
        assert_eq!(
            ObjectName::Run(identity.session, identity.number).to_string(),
            DELTAS_NAME
        );
        let base = keys().data_id(&noise("larder delta base", 512)).unwrap();
        let stored: Vec<StoredAs> = content.chunks.iter().map(|chunk| chunk.stored_as).collect();
        assert_eq!(stored, [StoredAs::Data, StoredAs::Delta, StoredAs::Data]);
        assert_eq!(
            content.deltas,
            [RunDelta {
                id: content.chunks[1].id,
                pack_ix: 0,
                base
            }]
        );
        // Without its features it is written again as any other.
        let again = encode_l0(&content, &identity, &keys(), &signer(), OBJECT_ID).unwrap();
        assert_eq!(decode(&again, DELTAS_NAME), Ok((identity, content)));
        let head = RunHead::parse(&hex(RUN_WITH_DELTAS), DELTAS_NAME, &keys())
            .unwrap()
            .unwrap();
        assert_eq!(head.envelope.sections(), 6);
    }

    #[test]
    fn every_single_bit_counts_even_under_a_fitting_hash() {
        let bytes = hex(RUN_WITH_DELTAS);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, DELTAS_NAME).is_err(), "bit {bit}");
            if bit / 8 < bytes.len() - 40 {
                assert!(
                    decode(&rehashed(&damaged), DELTAS_NAME).is_err(),
                    "bit {bit}, hash repaired"
                );
            }
        }
    }

    #[test]
    fn truncated_runs_are_refused() {
        let bytes = hex(RUN_WITH_DELTAS);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], DELTAS_NAME).is_err());
            if len >= 40 {
                assert!(decode(&rehashed(&bytes[..len]), DELTAS_NAME).is_err());
            }
            // A prefix never makes a head panic or say more than it knows.
            if let Ok(Some(head)) = RunHead::parse(&bytes[..len], DELTAS_NAME, &keys()) {
                assert!(head.envelope.range(0).end <= len as u64);
            }
        }
    }

    #[test]
    fn a_run_has_one_name_and_belongs_to_its_signer() {
        let bytes = hex(RUN);
        for name in [
            "idx/0-11111111111111111111111111111111-0001",
            "idx/0-11111111111111111111111111111112-0000",
            "idx/1-11111111111111111111111111111111-p0000",
            "snap/11111111111111111111111111111111",
            "",
        ] {
            assert!(decode(&bytes, name).is_err(), "{name}");
            assert!(RunHead::parse(&bytes, name, &keys()).is_err(), "{name}");
        }
        let with = |verifier: &Verifier| decode_l0(&bytes, NAME, &keys(), verifier).is_ok();
        assert!(with(&verifier(role::WRITE)));
        assert!(with(&verifier(role::MAINTAIN)));
        assert!(with(&verifier(role::ADMIN)));
        assert!(!with(&verifier(
            role::READ_DATA | role::READ_META | role::FORGET | role::HOLD | role::ATTEST
        )));
        assert!(!with(&Verifier::default()));
        let mut revoked = verifier(role::WRITE);
        revoked.writers[0].revoked_at = Some(3);
        assert!(with(&revoked), "what a key wrote before it was revoked is still needed");
        let mut other = identity();
        other.kid = KeyId([0x11; 16]);
        assert!(encode_l0(&published_content(), &other, &keys(), &signer(), OBJECT_ID).is_err());
        let mut other = identity();
        other.session = SessionId([0x12; 16]);
        assert!(encode_l0(&published_content(), &other, &keys(), &signer(), OBJECT_ID).is_err());
        // Made by hand, with a fitting name and signature, it is still not this writer's session.
        let forged = assemble(&published_content(), &other, &keys(), &signer(), OBJECT_ID).unwrap();
        assert!(decode(&forged, "idx/0-12121212121212121212121212121212-0000").is_err());
    }

    #[test]
    fn only_a_maintainer_speaks_of_packs_of_others() {
        let mut content = published_content();
        content.packs[0].session = SessionId([0x77; 16]);
        let bytes = encode_l0(&content, &identity(), &keys(), &signer(), OBJECT_ID).unwrap();
        let accepted = |roles| decode_l0(&bytes, NAME, &keys(), &verifier(roles)).is_ok();
        assert!(!accepted(role::WRITE));
        assert!(accepted(role::MAINTAIN));
        assert!(accepted(role::WRITE | role::ADMIN));
        // Another session of the same writer is its own.
        content.packs[0].session.0[4..].fill(9);
        content.packs[0].session.0[..4].fill(0x11);
        let bytes = encode_l0(&content, &identity(), &keys(), &signer(), OBJECT_ID).unwrap();
        assert!(decode(&bytes, NAME).is_ok());
    }

    #[test]
    fn an_empty_run_is_a_run() {
        let bytes = encode_l0(&RunContent::default(), &identity(), &keys(), &signer(), OBJECT_ID).unwrap();
        assert_eq!(decode(&bytes, NAME), Ok((identity(), RunContent::default())));
        let head = RunHead::parse(&bytes, NAME, &keys()).unwrap().unwrap();
        assert!(head.chunk_blocks(&ChunkId([7; 32])).is_empty());
        let (section, range) = head.pack_block(0);
        assert!(range.is_empty());
        assert!(head.open_packs(section, &[], &keys()).is_err());
        assert!(head.slot_blocks(&(0..1)).is_empty());
    }

    #[test]
    fn content_that_breaks_a_rule_is_neither_written_nor_read() {
        let refused = |case: &str, change: &dyn Fn(&mut RunContent)| {
            let mut content = published_content();
            let chunk = content.chunks[0];
            content.packs.push(RunPack {
                pack: PackId([0xd0; 16]),
                kind: PackKind::Meta,
                slots: 1..2,
                ..content.packs[0].clone()
            });
            content.slots.push(slot(Domain::Meta));
            content.chunks.push(RunChunk {
                id: ChunkId([0x60; 32]),
                pack_ix: 1,
                stored_as: StoredAs::Node,
                ..chunk
            });
            content.chunks.push(RunChunk {
                id: ChunkId([0x70; 32]),
                stored_as: StoredAs::Delta,
                ..chunk
            });
            content.deltas.push(RunDelta {
                id: ChunkId([0x70; 32]),
                pack_ix: 0,
                base: ChunkId([0x71; 32]),
            });
            let good = encode_l0(&content, &identity(), &keys(), &signer(), OBJECT_ID).unwrap();
            assert_eq!(decode(&good, NAME), Ok((identity(), content.clone())));
            change(&mut content);
            assert!(
                encode_l0(&content, &identity(), &keys(), &signer(), OBJECT_ID).is_err(),
                "{case}"
            );
            let sealed = assemble(&content, &identity(), &keys(), &signer(), OBJECT_ID).unwrap();
            assert!(decode(&sealed, NAME).is_err(), "{case}");
        };
        refused("packs out of order", &|c| c.packs.swap(0, 1));
        refused("one pack twice", &|c| c.packs[1].pack = c.packs[0].pack);
        refused("a pack too small", &|c| c.packs[0].size = PACK_LEN_MIN as u32 - 1);
        refused("a pack without blobs", &|c| c.packs[0].blob_count = 0);
        refused("a pack with too many blobs", &|c| c.packs[0].blob_count = (1 << 20) + 1);
        refused("a pack without slots", &|c| c.packs[0].slots = 0..0);
        refused("slots that are not there", &|c| c.packs[0].slots = 0..3);
        refused("slots far away", &|c| c.packs[0].slots = u32::MAX - 1..u32::MAX);
        refused("slots of the other domain", &|c| c.packs[0].slots = 1..2);
        refused("slots of a keyset", &|c| c.slots[0].0[2] = 1);
        refused("chunks out of order", &|c| c.chunks.swap(0, 1));
        refused("one chunk twice", &|c| c.chunks[1] = c.chunks[0]);
        refused("a pack index beyond the packs", &|c| c.chunks[0].pack_ix = 2);
        refused("a node in a data pack", &|c| c.chunks[0].stored_as = StoredAs::Node);
        refused("data in a metadata pack", &|c| c.chunks[1].stored_as = StoredAs::Data);
        refused("a manifest in a pack", &|c| c.chunks[1].stored_as = StoredAs::Manifest);
        refused("a frame in the header", &|c| c.chunks[0].offset = 63);
        refused("a frame in the trailer", &|c| c.chunks[0].offset = 65);
        refused("a frame behind the pack", &|c| c.chunks[0].offset = u32::MAX);
        refused("a frame too short", &|c| c.chunks[0].stored_len = 23);
        refused("a frame too long", &|c| c.chunks[0].stored_len = (1 << 25) + 1);
        refused("a delta without its record", &|c| c.deltas.clear());
        refused("a delta record without its delta", &|c| {
            c.chunks[2].stored_as = StoredAs::Data
        });
        refused("a delta record of another copy", &|c| c.deltas[0].pack_ix = 1);
        refused("a delta of itself", &|c| c.deltas[0].base = c.deltas[0].id);
        refused("a delta of a hole", &|c| c.deltas[0].base = ChunkId::HOLE);
        refused("one delta record twice", &|c| c.deltas.push(c.deltas[0]));
    }

    /// Seals any header map and any blocks as a run: well signed, with a right digest unless the map has one.
    fn forged(name: &str, fields: Vec<(u64, Value)>, blocks: &[Vec<u8>]) -> Vec<u8> {
        let mut map: Vec<(u64, Value)> = vec![
            (0, Value::Uint(1)),
            (1, Value::Bytes(kid().0.to_vec())),
            (2, Value::Uint(5)),
            (4, Value::Bytes(SESSION.0.to_vec())),
        ];
        map.extend(fields);
        if !map.iter().any(|(key, _)| *key == 14) {
            let mut digest = Digest::default();
            blocks.iter().for_each(|block| digest.add(block));
            map.push((14, Value::Bytes(digest.finish().to_vec())));
        }
        map.sort_by_key(|(key, _)| *key);
        let mut map: Vec<(Value, Value)> = map.into_iter().map(|(key, value)| (Value::Uint(key), value)).collect();
        let signature = signer().sign(name, &cbor::encode(&Value::Map(map.clone())));
        if !map.iter().any(|(key, _)| *key == Value::Uint(15)) {
            map.push((Value::Uint(15), Value::Bytes(signature.to_vec())));
        }
        let header = cbor::encode(&Value::Map(map));
        let sections: Vec<&[u8]> = [&header[..]]
            .into_iter()
            .chain(blocks.iter().map(Vec::as_slice))
            .collect();
        let class_key = keys().object_key(1, ObjectClass::Run).unwrap().clone();
        envelope::seal(EnvelopeKind::Run, 1, &REPO, OBJECT_ID, &class_key, name, &sections)
    }

    fn uints(numbers: &[u64]) -> Value {
        Value::Array(numbers.iter().map(|number| Value::Uint(*number)).collect())
    }

    fn blocks_of(content: &RunContent) -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        put_blocks(&mut blocks, SLOT, &content.slots, |out, slot| {
            out.extend_from_slice(&slot.0)
        });
        put_blocks(&mut blocks, PACK, &content.packs, put_pack);
        put_blocks(&mut blocks, CHUNK, &content.chunks, put_chunk);
        put_blocks(&mut blocks, DELTA, &content.deltas, put_delta);
        blocks
    }

    #[test]
    fn headers_that_break_a_rule_are_refused_although_they_are_signed_well() {
        let content = published_content();
        let blocks = blocks_of(&content);
        let good = || -> Vec<(u64, Value)> {
            vec![
                (3, Value::Uint(0)),
                (5, Value::Uint(0)),
                (6, uints(&[1, 1, 1])),
                (7, Value::Bytes(content.packs[0].pack.0[..8].to_vec())),
                (8, Value::Bytes(content.chunks[0].id.0[..8].to_vec())),
                (9, Value::Uint(0)),
            ]
        };
        let with = |key: u64, value: Option<Value>| {
            let mut fields = good();
            fields.retain(|(present, _)| *present != key);
            fields.extend(value.map(|value| (key, value)));
            decode(&forged(NAME, fields, &blocks), NAME)
        };
        assert!(decode(&forged(NAME, good(), &blocks), NAME).is_ok());
        assert!(
            with(0x7fff, Some(Value::Null)).is_ok(),
            "an unknown key that may be ignored, but is signed"
        );
        assert!(with(12, Some(uints(&[0, 0]))).is_ok());
        assert!(with(13, Some(Value::Bytes(vec![]))).is_ok());
        assert!(matches!(
            with(0x8000, Some(Value::Null)),
            Err(FormatError::TooNew { .. })
        ));
        for (key, value) in [
            (3, None),
            (3, Some(Value::Uint(1))),
            (3, Some(Value::Null)),
            (5, None),
            (5, Some(Value::Uint(1))),
            (6, None),
            (6, Some(uints(&[1, 1]))),
            (6, Some(uints(&[1, 1, 1, 0]))),
            (6, Some(uints(&[1, 1, 2]))),
            (6, Some(uints(&[1, 1, 0]))),
            (6, Some(uints(&[1, 1, u64::MAX]))),
            (6, Some(uints(&[1 << 31, 1 << 31, 1 << 31]))),
            (6, Some(Value::Array(vec![Value::Null, Value::Uint(1), Value::Uint(1)]))),
            (7, None),
            (7, Some(Value::Bytes(vec![0; 8]))),
            (7, Some(Value::Bytes(vec![0; 7]))),
            (8, None),
            (8, Some(Value::Bytes(vec![0; 8]))),
            (8, Some(Value::Bytes(vec![0; 16]))),
            (8, Some(Value::Text("12345678".into()))),
            (9, None),
            (9, Some(Value::Uint(1))),
            (10, Some(Value::Uint(0))),
            (11, Some(Value::Uint(0))),
            (12, Some(uints(&[1, 0]))),
            (12, Some(uints(&[0, 1]))),
            (12, Some(uints(&[0]))),
            (13, Some(Value::Bytes(vec![0; 8]))),
            (14, Some(Value::Bytes(vec![0; 32]))),
            (14, Some(Value::Bytes(vec![0; 31]))),
            (15, Some(Value::Bytes(vec![0; 64]))),
            (15, Some(Value::Bytes(vec![0; 63]))),
            (15, Some(Value::Null)),
        ] {
            assert!(with(key, value.clone()).is_err(), "key {key}: {value:?}");
        }
        let mut more = blocks.clone();
        more.push(vec![0; 56]);
        assert!(
            decode(&forged(NAME, good(), &more), NAME).is_err(),
            "a section too many"
        );
        let mut less = blocks.clone();
        less.pop();
        assert!(decode(&forged(NAME, good(), &less), NAME).is_err(), "a section too few");
        let mut longer = blocks.clone();
        longer[0].push(0);
        assert!(
            decode(&forged(NAME, good(), &longer), NAME).is_err(),
            "a byte too many in a section"
        );
        let mut flagged = blocks.clone();
        flagged[1][41] = 1;
        assert!(
            decode(&forged(NAME, good(), &flagged), NAME).is_err(),
            "flags of a pack"
        );
        let mut nibble = blocks.clone();
        for value in [3u8, 4, 7, 9, 15] {
            nibble[2][43] = value << 4;
            assert!(decode(&forged(NAME, good(), &nibble), NAME).is_err(), "nibble {value}");
        }
    }

    #[test]
    fn features_are_checked_for_their_order_only() {
        let content = published_content();
        let with = |ids: &[u8]| {
            let mut blocks = blocks_of(&content);
            blocks.push(
                ids.iter()
                    .flat_map(|id| [vec![*id; 32], vec![0xff; 24]].concat())
                    .collect(),
            );
            let fields = vec![
                (3, Value::Uint(0)),
                (5, Value::Uint(0)),
                (6, uints(&[1, 1, 1])),
                (7, Value::Bytes(content.packs[0].pack.0[..8].to_vec())),
                (8, Value::Bytes(content.chunks[0].id.0[..8].to_vec())),
                (9, Value::Uint(0)),
                (12, uints(&[0, ids.len() as u64])),
            ];
            decode(&forged(NAME, fields, &blocks), NAME)
        };
        assert_eq!(
            with(&[1, 2, 9]),
            Ok((
                RunIdentity {
                    created: Timestamp(5),
                    ..identity()
                },
                content.clone()
            ))
        );
        assert!(with(&[2, 1]).is_err());
        assert!(with(&[2, 2]).is_err());
    }

    /// A run with several blocks of every kind: 1 200 packs, 1 100 slots, 5 000 chunks, every third one a delta.
    fn large() -> RunContent {
        let noise_id = |seed: String| -> [u8; 32] { hash(seed.as_bytes()) };
        let mut content = RunContent {
            slots: vec![slot(Domain::Data); 1_100],
            ..RunContent::default()
        };
        let mut packs: Vec<PackId> = (0..1_200)
            .map(|n| PackId(noise_id(format!("pack {n}"))[..16].try_into().unwrap()))
            .collect();
        packs.sort();
        content.packs = (0u32..)
            .zip(packs)
            .map(|(n, pack)| RunPack {
                pack,
                session: SESSION,
                size: 30_000_000 + n,
                blob_count: 1 + n,
                kind: PackKind::Data,
                slots: n % 1_000..n % 1_000 + 1 + n % 100,
                crc64nvme: u64::from(n) << 40,
                body_hash24: [n as u8; 24],
            })
            .collect();
        for n in 0..4_000u32 {
            let id = ChunkId(noise_id(format!("chunk {n}")));
            // Some ids have copies in several packs, one has more than a block can hold.
            let copies = if n == 77 { 1_001 } else { 1 };
            for copy in 0..copies {
                let stored_as = if n % 3 == 0 { StoredAs::Delta } else { StoredAs::Data };
                let offset = 64 + n * 1_000;
                content.chunks.push(RunChunk {
                    id,
                    pack_ix: (n + copy) % 1_200,
                    offset,
                    stored_as,
                    stored_len: 24 + n,
                });
            }
        }
        content.chunks.sort();
        content.chunks.sort_by_key(|chunk| (chunk.id, chunk.pack_ix));
        content.deltas = content
            .chunks
            .iter()
            .filter(|chunk| chunk.stored_as == StoredAs::Delta)
            .map(|chunk| RunDelta {
                id: chunk.id,
                pack_ix: chunk.pack_ix,
                base: ChunkId([1; 32]),
            })
            .collect();
        content
    }

    #[test]
    fn a_large_run_comes_back_whole() {
        let content = large();
        let identity = RunIdentity {
            created: Timestamp(-7),
            number: 12_345,
            ..identity()
        };
        let bytes = encode_l0(&content, &identity, &keys(), &signer(), OBJECT_ID).unwrap();
        let name = ObjectName::Run(SESSION, 12_345).to_string();
        assert_eq!(decode(&bytes, &name), Ok((identity, content)));
    }

    #[test]
    fn every_record_is_found_by_ranged_reads() {
        let content = large();
        let bytes = encode_l0(&content, &identity(), &keys(), &signer(), OBJECT_ID).unwrap();
        let keys = keys();
        let first_64: [u8; 64] = bytes[..64].try_into().unwrap();
        let needed = RunHead::prefix_needed(&first_64).unwrap();
        let exact = RunHead::prefix_needed(&bytes[..1_000]).unwrap();
        assert!(exact <= needed && needed < 2_000, "{exact} {needed}");
        assert!(matches!(RunHead::parse(&bytes[..exact - 1], NAME, &keys), Ok(None)));
        let head = RunHead::parse(&bytes[..exact], NAME, &keys).unwrap().unwrap();
        let part = |range: &Range<u64>| &bytes[range.start as usize..range.end as usize];

        let mut blocks_read = 0;
        for wanted in content.chunks.iter().step_by(7) {
            let mut found = Vec::new();
            let blocks = head.chunk_blocks(&wanted.id);
            blocks_read += blocks.len();
            for (section, range) in blocks {
                let chunks = head.open_chunks(section, part(&range), &keys).unwrap();
                found.extend(chunks.into_iter().filter(|chunk| chunk.id == wanted.id));
            }
            let expected: Vec<RunChunk> = content
                .chunks
                .iter()
                .filter(|chunk| chunk.id == wanted.id)
                .copied()
                .collect();
            assert_eq!(found, expected);
        }
        assert!(
            blocks_read < content.chunks.len() / 7 * 2,
            "one block is enough for most ids"
        );
        for wanted in content.deltas.iter().step_by(11) {
            let found = head
                .delta_blocks(&wanted.id)
                .into_iter()
                .any(|(section, range)| head.open_deltas(section, part(&range), &keys).unwrap().contains(wanted));
            assert!(found);
        }
        for (rank, wanted) in content.packs.iter().enumerate() {
            let (section, range) = head.pack_block(rank as u32);
            let (first, packs) = head.open_packs(section, part(&range), &keys).unwrap();
            assert_eq!(packs[rank - first as usize], *wanted);
            let mut covered = 0;
            for (section, range) in head.slot_blocks(&wanted.slots) {
                let (first, slots) = head.open_slots(section, part(&range), &keys).unwrap();
                let last = first + slots.len() as u32;
                covered += wanted.slots.end.min(last) - wanted.slots.start.max(first);
            }
            assert_eq!(covered as usize, wanted.slots.len());
        }
        assert!(head.pack_block(1_200).1.is_empty());
        assert!(head.pack_block(u32::MAX).1.is_empty());
        // An id that is not there costs one block at most.
        assert!(head.chunk_blocks(&ChunkId([0x5a; 32])).len() <= 1);
        assert!(head.chunk_blocks(&ChunkId::HOLE).is_empty());

        let (section, range) = head.pack_block(0);
        let sealed = part(&range);
        assert!(
            head.open_chunks(section, sealed, &keys).is_err(),
            "a section of another kind"
        );
        assert!(head.open_packs(section + 1, sealed, &keys).is_err(), "another section");
        assert!(head.open_packs(section, &sealed[1..], &keys).is_err());
        let mut damaged = sealed.to_vec();
        damaged[5] ^= 1;
        assert!(head.open_packs(section, &damaged, &keys).is_err());
        assert!(RunHead::prefix_needed(&bytes[..63]).is_err());
    }

    #[test]
    fn parts_of_higher_levels_count_through_the_whole_run() {
        let content = published_content();
        let keys = keys();
        let blocks = blocks_of(&content);
        let (slots, packs, chunks) = (&blocks[0], &blocks[1], &blocks[2]);
        let name = |part: &str| format!("idx/2-11111111111111111111111111111111-{part}");
        let fields = |counts: [u64; 3], part: u64, number: u64| -> Vec<(u64, Value)> {
            vec![
                (3, Value::Uint(2)),
                (5, Value::Uint(0)),
                (6, uints(&counts)),
                (9, Value::Uint(part)),
                (10, Value::Uint(number)),
            ]
        };
        let head = |part: &str, fields: Vec<(u64, Value)>, blocks: &[Vec<u8>]| {
            let bytes = forged(&name(part), fields, blocks);
            RunHead::parse(&bytes, &name(part), &keys).map(|head| (head.unwrap(), bytes))
        };

        let mut pack_fields = fields([0, 1, 0], 1, 3);
        pack_fields.push((7, Value::Bytes(content.packs[0].pack.0[..8].to_vec())));
        pack_fields.push((11, Value::Uint(1_536)));
        let (part, bytes) = head("p0003", pack_fields.clone(), std::slice::from_ref(packs)).unwrap();
        let (section, range) = part.pack_block(1_536);
        let opened = part.open_packs(section, &bytes[range.start as usize..range.end as usize], &keys);
        assert_eq!(opened, Ok((1_536, content.packs.clone())));
        assert!(part.pack_block(1_535).1.is_empty() && part.pack_block(1_537).1.is_empty());
        assert!(
            head("p0004", pack_fields.clone(), std::slice::from_ref(packs)).is_err(),
            "another part number"
        );
        pack_fields.pop();
        pack_fields.push((11, Value::Uint(u32::MAX.into())));
        assert!(
            head("p0003", pack_fields, std::slice::from_ref(packs)).is_err(),
            "indexes beyond 32 bits"
        );

        let mut slot_fields = fields([1, 0, 0], 2, 0);
        slot_fields.push((11, Value::Uint(512)));
        let (part, bytes) = head("s0000", slot_fields.clone(), std::slice::from_ref(slots)).unwrap();
        assert!(part.slot_blocks(&(0..512)).is_empty());
        let (section, range) = part.slot_blocks(&(500..600)).remove(0);
        let opened = part.open_slots(section, &bytes[range.start as usize..range.end as usize], &keys);
        assert_eq!(opened, Ok((512, content.slots.clone())));
        assert!(
            head("p0000", slot_fields, std::slice::from_ref(slots)).is_err(),
            "another kind of part"
        );

        let mut chunk_fields = fields([0, 0, 1], 3, 0);
        chunk_fields.push((8, Value::Bytes(content.chunks[0].id.0[..8].to_vec())));
        let (part, bytes) = head("c0000-51e1-51e1", chunk_fields.clone(), std::slice::from_ref(chunks)).unwrap();
        let (section, range) = part.chunk_blocks(&content.chunks[0].id).remove(0);
        let opened = part.open_chunks(section, &bytes[range.start as usize..range.end as usize], &keys);
        assert_eq!(opened, Ok(content.chunks.clone()));
        assert!(
            decode(&bytes, &name("c0000-51e1-51e1")).is_err(),
            "a part is not an L0 run"
        );

        let mut mixed = fields([1, 0, 1], 3, 0);
        mixed.push((8, Value::Bytes(content.chunks[0].id.0[..8].to_vec())));
        assert!(head("c0000-51e1-51e1", mixed, &[slots.clone(), chunks.clone()]).is_err());
    }
}
