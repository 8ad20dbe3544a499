//! Uniting the records of index runs, in memory that does not grow with them: each run goes to an unnamed file as it comes, and all are
//! merged from there. In memory are the packs, about a hundred bytes for each.

use crate::pure::crypto::Slot;
use crate::pure::format::name::ObjectName;
use crate::pure::format::run::part::PartContent;
use crate::pure::format::run::{RunChunk, RunContent, RunDelta, RunPack, StoredAs};
use crate::pure::id::{ChunkId, PackId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a record: id 32 | pack u32 | offset u32 | type << 28 | stored length u32. A delta has its base behind it.
const RECORD_BYTES: usize = 44;
/// Written to a file, or read from it, at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// How many records one object gets.
#[derive(Clone, Copy, Debug)]
pub struct PartSizes {
    pub slots: usize,
    pub packs: usize,
    pub chunks: usize,
}

impl PartSizes {
    /// About 12 MB of slots and chunks, and 21 MB of packs.
    pub(super) const DEFAULT: PartSizes = PartSizes {
        slots: 1 << 17,
        packs: 1 << 18,
        chunks: 1 << 18,
    };
}

/// Why runs were not united.
#[derive(Debug)]
pub(super) enum Trouble<E> {
    /// Two runs say different things of one pack.
    Disagree(PackId),
    /// The disk of the local state.
    Disk(io::Error),
    /// Whoever takes the parts failed.
    Sink(E),
}

/// What was united.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    pub chunks: u64,
    /// Ascending: packs that are described no more.
    pub dropped: Vec<PackId>,
}

/// A pack as all runs have it.
struct Known {
    /// `slots` of it means nothing.
    pack: RunPack,
    slots: Arc<[Slot]>,
}

/// Runs that are being united.
pub(super) struct Merger {
    directory: PathBuf,
    packs: BTreeMap<PackId, Known>,
    /// So that packs with the same slots share them.
    slot_lists: HashSet<Arc<[Slot]>>,
    inputs: Vec<Input>,
}

/// One run.
pub(super) struct Input {
    file: BufWriter<File>,
    /// By their rank in this run, with how many of its chunks lie in each.
    packs: Vec<(PackId, u32)>,
}

impl Input {
    /// Adds chunks and their deltas, in the order of the run.
    ///
    /// # Errors
    /// When there is no room for them on the disk.
    pub(super) fn add(&mut self, chunks: &[RunChunk], deltas: &[RunDelta]) -> io::Result<()> {
        let mut deltas = deltas.iter();
        for chunk in chunks {
            // Decoding has checked that there is such a pack, and a base for each delta.
            if let Some((_, count)) = self.packs.get_mut(chunk.pack_ix as usize) {
                *count += 1;
            }
            self.file.write_all(chunk.id.as_bytes())?;
            self.file.write_all(&chunk.pack_ix.to_le_bytes())?;
            self.file.write_all(&chunk.offset.to_le_bytes())?;
            let type_and_len = (chunk.stored_as as u32) << 28 | chunk.stored_len;
            self.file.write_all(&type_and_len.to_le_bytes())?;
            if chunk.stored_as == StoredAs::Delta {
                let base = deltas.next().map_or(ChunkId::HOLE, |delta| delta.base);
                self.file.write_all(base.as_bytes())?;
            }
        }
        Ok(())
    }
}

impl Merger {
    /// Begins; files are made in `directory`.
    pub(super) fn new(directory: &Path) -> Merger {
        Merger {
            directory: directory.to_owned(),
            packs: BTreeMap::new(),
            slot_lists: HashSet::new(),
            inputs: Vec::new(),
        }
    }

    /// Begins a run with the slots and packs of `head`.
    ///
    /// # Errors
    /// When it says something else of a pack than a run before it, or no file can be made.
    pub(super) fn begin<E>(&mut self, head: &RunContent) -> Result<Input, Trouble<E>> {
        for pack in &head.packs {
            let slots = head.slots.get(pack.slots.start as usize..pack.slots.end as usize);
            let slots = self.slot_list(slots.unwrap_or_default());
            let mut pack = RunPack {
                slots: 0..0,
                ..pack.clone()
            };
            let known = self.packs.entry(pack.pack).or_insert_with(|| Known {
                pack: pack.clone(),
                slots: slots.clone(),
            });
            // A repair does not know the checksum (format-spec chapter 8.2).
            if known.pack.crc64nvme == 0 {
                known.pack.crc64nvme = pack.crc64nvme;
            }
            if pack.crc64nvme == 0 {
                pack.crc64nvme = known.pack.crc64nvme;
            }
            if known.pack != pack || known.slots != slots {
                return Err(Trouble::Disagree(pack.pack));
            }
        }
        let file = tempfile::tempfile_in(&self.directory).map_err(Trouble::Disk)?;
        Ok(Input {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            packs: head.packs.iter().map(|pack| (pack.pack, 0)).collect(),
        })
    }

    fn slot_list(&mut self, slots: &[Slot]) -> Arc<[Slot]> {
        if let Some(known) = self.slot_lists.get(slots) {
            return known.clone();
        }
        let list: Arc<[Slot]> = slots.into();
        self.slot_lists.insert(list.clone());
        list
    }

    /// Ends a run.
    pub(super) fn end(&mut self, input: Input) {
        self.inputs.push(input);
    }

    /// Returns the packs of all runs, ascending.
    pub(super) fn packs(&self) -> impl Iterator<Item = ObjectName> {
        let name = |Known { pack, .. }: &Known| ObjectName::Pack(pack.kind, pack.pack, pack.session);
        self.packs.values().map(name)
    }

    /// Unites: hands out all parts, and leaves out what lies in `dropped`.
    ///
    /// # Errors
    /// When runs have different chunks for one pack, the disk fails, or `sink` does.
    pub(super) fn finish<E>(
        mut self,
        dropped: &HashSet<PackId>,
        sizes: &PartSizes,
        sink: &mut dyn FnMut(PartContent) -> Result<(), E>,
    ) -> Result<Merged, Trouble<E>> {
        let mut merged = Merged {
            chunks: 0,
            dropped: self
                .packs
                .keys()
                .filter(|pack| dropped.contains(pack))
                .copied()
                .collect(),
        };
        self.packs.retain(|pack, _| !dropped.contains(pack));
        put_head(&self.packs, sizes, sink).map_err(Trouble::Sink)?;
        let ranks: HashMap<PackId, u32> = self.packs.keys().copied().zip(0..).collect();
        let mut counts = vec![0; ranks.len()];
        let mut cursors = Vec::new();
        for input in &mut self.inputs {
            let packs = input.packs.iter().map(|(pack, _)| ranks.get(pack).copied()).collect();
            cursors.push(Cursor::begin(&mut input.file, packs).map_err(Trouble::Disk)?);
        }
        let mut heap: BinaryHeap<_> = (0..cursors.len())
            .filter_map(|index| cursors[index].key(index))
            .collect();
        let mut part = Part::default();
        while let Some(Reverse((_, _, index))) = heap.pop() {
            let Some((chunk, base)) = cursors[index].next().map_err(Trouble::Disk)? else {
                continue;
            };
            heap.extend(cursors[index].key(index));
            if part.last == Some((chunk, base)) {
                continue;
            }
            if part
                .last
                .is_some_and(|(last, _)| (last.id, last.pack_ix) == (chunk.id, chunk.pack_ix))
            {
                let pack = self.packs.keys().nth(chunk.pack_ix as usize);
                return Err(Trouble::Disagree(pack.copied().unwrap_or(PackId([0; 16]))));
            }
            if part.chunks.len() >= sizes.chunks {
                sink(part.take()).map_err(Trouble::Sink)?;
            }
            counts[chunk.pack_ix as usize] += 1;
            merged.chunks += 1;
            part.push(chunk, base);
        }
        if !part.chunks.is_empty() {
            sink(part.take()).map_err(Trouble::Sink)?;
        }
        // Every run has every chunk of each of its packs, so all of them together have as many.
        for (pack, count) in self.inputs.iter().flat_map(|input| &input.packs) {
            if ranks.get(pack).is_some_and(|rank| counts[*rank as usize] != *count) {
                return Err(Trouble::Disagree(*pack));
            }
        }
        Ok(merged)
    }
}

/// Hands out slots and packs. There is at least one part of each, so that a run without anything is one too.
fn put_head<E>(
    packs: &BTreeMap<PackId, Known>,
    sizes: &PartSizes,
    sink: &mut dyn FnMut(PartContent) -> Result<(), E>,
) -> Result<(), E> {
    let mut slots: Vec<Slot> = Vec::new();
    let mut firsts: HashMap<&[Slot], u32> = HashMap::new();
    for known in packs.values() {
        firsts.entry(&known.slots).or_insert_with(|| {
            let first = slots.len() as u32;
            slots.extend_from_slice(&known.slots);
            first
        });
    }
    let mut first = 0;
    loop {
        let end = slots.len().min(first + sizes.slots);
        sink(PartContent::Slots {
            first: first as u32,
            slots: slots[first..end].to_vec(),
        })?;
        first = end;
        if first == slots.len() {
            break;
        }
    }
    let mut rest = packs.values().peekable();
    let mut first = 0;
    loop {
        let part: Vec<RunPack> = rest
            .by_ref()
            .take(sizes.packs)
            .map(|known| {
                let start = firsts.get(&*known.slots).copied().unwrap_or_default();
                RunPack {
                    slots: start..start + known.slots.len() as u32,
                    ..known.pack.clone()
                }
            })
            .collect();
        let count = part.len() as u32;
        sink(PartContent::Packs { first, packs: part })?;
        first += count;
        if rest.peek().is_none() {
            return Ok(());
        }
    }
}

/// Chunks on their way into an object.
#[derive(Default)]
struct Part {
    chunks: Vec<RunChunk>,
    deltas: Vec<RunDelta>,
    last: Option<(RunChunk, Option<ChunkId>)>,
}

impl Part {
    fn push(&mut self, chunk: RunChunk, base: Option<ChunkId>) {
        if let Some(base) = base {
            self.deltas.push(RunDelta {
                id: chunk.id,
                pack_ix: chunk.pack_ix,
                base,
            });
        }
        self.chunks.push(chunk);
        self.last = Some((chunk, base));
    }

    fn take(&mut self) -> PartContent {
        PartContent::Chunks {
            chunks: std::mem::take(&mut self.chunks),
            deltas: std::mem::take(&mut self.deltas),
        }
    }
}

/// Reads the records of a run back, without those of packs that are left out.
struct Cursor<'f> {
    reader: BufReader<&'f mut File>,
    /// Rank of each pack of the run among all that stay.
    ranks: Vec<Option<u32>>,
    ahead: Option<(RunChunk, Option<ChunkId>)>,
}

impl<'f> Cursor<'f> {
    fn begin(file: &'f mut BufWriter<File>, ranks: Vec<Option<u32>>) -> io::Result<Cursor<'f>> {
        file.flush()?;
        let file = file.get_mut();
        file.rewind()?;
        let mut cursor = Cursor {
            reader: BufReader::with_capacity(BUFFER_BYTES, file),
            ranks,
            ahead: None,
        };
        cursor.advance()?;
        Ok(cursor)
    }

    /// What the next record is ordered by: id and pack.
    fn key(&self, index: usize) -> Option<Reverse<(ChunkId, u32, usize)>> {
        self.ahead.map(|(chunk, _)| Reverse((chunk.id, chunk.pack_ix, index)))
    }

    fn next(&mut self) -> io::Result<Option<(RunChunk, Option<ChunkId>)>> {
        let next = self.ahead.take();
        if next.is_some() {
            self.advance()?;
        }
        Ok(next)
    }

    fn advance(&mut self) -> io::Result<()> {
        while let Some((mut chunk, base)) = self.read()? {
            if let Some(rank) = self.ranks.get(chunk.pack_ix as usize).copied().flatten() {
                chunk.pack_ix = rank;
                self.ahead = Some((chunk, base));
                return Ok(());
            }
        }
        self.ahead = None;
        Ok(())
    }

    fn read(&mut self) -> io::Result<Option<(RunChunk, Option<ChunkId>)>> {
        if io::BufRead::fill_buf(&mut self.reader)?.is_empty() {
            return Ok(None);
        }
        let mut record = [0; RECORD_BYTES];
        self.reader.read_exact(&mut record)?;
        let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        let mut id = [0; 32];
        id.copy_from_slice(&record[..32]);
        let stored_as = StoredAs::from_nibble(word(40) >> 28)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a record came back as another one"))?;
        let mut base = None;
        if stored_as == StoredAs::Delta {
            let mut id = [0; 32];
            self.reader.read_exact(&mut id)?;
            base = Some(ChunkId(id));
        }
        let chunk = RunChunk {
            id: ChunkId(id),
            pack_ix: word(32),
            offset: word(36),
            stored_as,
            stored_len: word(40) & 0x0fff_ffff,
        };
        Ok(Some((chunk, base)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::format::name::PackKind;
    use crate::pure::id::SessionId;
    use std::convert::Infallible;

    const SMALL: PartSizes = PartSizes {
        slots: 2,
        packs: 2,
        chunks: 3,
    };

    fn slot(byte: u8) -> Slot {
        Slot([byte; 88])
    }

    fn pack(number: u8, slots: std::ops::Range<u32>) -> RunPack {
        RunPack {
            pack: PackId([number; 16]),
            session: SessionId([number; 16]),
            size: 1_000,
            blob_count: 1,
            kind: PackKind::Data,
            slots,
            crc64nvme: 0,
            body_hash24: [number; 24],
        }
    }

    fn chunk(id: u8, pack_ix: u32) -> RunChunk {
        RunChunk {
            id: ChunkId([id; 32]),
            pack_ix,
            offset: 64 + u32::from(id),
            stored_as: StoredAs::Data,
            stored_len: 30,
        }
    }

    fn run(slots: &[u8], packs: Vec<RunPack>, chunks: Vec<RunChunk>) -> RunContent {
        RunContent {
            slots: slots.iter().copied().map(slot).collect(),
            packs,
            chunks,
            deltas: Vec::new(),
        }
    }

    type United = Result<(Vec<PartContent>, Merged), Trouble<Infallible>>;

    fn unite(runs: &[RunContent], dropped: &[u8]) -> United {
        let mut merger = Merger::new(&std::env::temp_dir());
        for run in runs {
            let mut input = merger.begin(run)?;
            // In pieces, as the parts of a large run come.
            let (first, second) = run.chunks.split_at(run.chunks.len() / 2);
            let deltas = first.iter().filter(|chunk| chunk.stored_as == StoredAs::Delta).count();
            input.add(first, &run.deltas[..deltas]).map_err(Trouble::Disk)?;
            input.add(second, &run.deltas[deltas..]).map_err(Trouble::Disk)?;
            merger.end(input);
        }
        let dropped = dropped.iter().map(|byte| PackId([*byte; 16])).collect();
        let mut parts = Vec::new();
        let merged = merger.finish(&dropped, &SMALL, &mut |part| {
            parts.push(part);
            Ok(())
        })?;
        Ok((parts, merged))
    }

    /// All parts together.
    fn whole(parts: Vec<PartContent>) -> RunContent {
        let mut whole = RunContent::default();
        for part in parts {
            match part {
                PartContent::Slots { first, slots } => {
                    assert_eq!(first as usize, whole.slots.len());
                    assert!(slots.len() <= SMALL.slots);
                    whole.slots.extend(slots);
                }
                PartContent::Packs { first, packs } => {
                    assert_eq!(first as usize, whole.packs.len());
                    assert!(packs.len() <= SMALL.packs);
                    whole.packs.extend(packs);
                }
                PartContent::Chunks { chunks, deltas } => {
                    assert!((1..=SMALL.chunks).contains(&chunks.len()));
                    whole.chunks.extend(chunks);
                    whole.deltas.extend(deltas);
                }
            }
        }
        whole
    }

    /// Every chunk with the pack and slots that it leads to.
    fn places(run: &RunContent) -> Vec<(ChunkId, PackId, u32, Vec<Slot>)> {
        let place = |chunk: &RunChunk| {
            let pack = &run.packs[chunk.pack_ix as usize];
            let slots = run.slots[pack.slots.start as usize..pack.slots.end as usize].to_vec();
            (chunk.id, pack.pack, chunk.offset, slots)
        };
        run.chunks.iter().map(place).collect()
    }

    #[test]
    fn every_record_of_every_run_is_there_and_leads_to_the_same_place() {
        let runs = [
            run(
                &[1, 2],
                vec![pack(3, 0..1), pack(5, 1..2)],
                vec![chunk(1, 0), chunk(1, 1), chunk(4, 1)],
            ),
            run(
                &[1, 3],
                vec![pack(2, 0..2)],
                vec![chunk(0, 0), chunk(1, 0), chunk(9, 0)],
            ),
            run(&[], Vec::new(), Vec::new()),
        ];
        let (parts, merged) = unite(&runs, &[]).unwrap();
        let united = whole(parts);
        let mut expected: Vec<_> = runs.iter().flat_map(places).collect();
        expected.sort_by_key(|(id, pack, ..)| (*id, *pack));
        assert_eq!(places(&united), expected);
        assert_eq!(merged.chunks, 6);
        assert_eq!(united.packs.len(), 3);
        assert_eq!(united.slots.len(), 4, "1 | 2 | 1 3");
    }

    #[test]
    fn what_two_runs_have_is_there_once() {
        let one = run(&[1], vec![pack(3, 0..1)], vec![chunk(1, 0), chunk(2, 0)]);
        let other = run(
            &[2, 1],
            vec![pack(2, 0..1), pack(3, 1..2)],
            vec![chunk(1, 1), chunk(2, 0), chunk(2, 1)],
        );
        let (parts, merged) = unite(&[one, other], &[]).unwrap();
        assert_eq!(merged.chunks, 3);
        assert_eq!(whole(parts).packs.len(), 2);
    }

    #[test]
    fn deltas_keep_their_bases() {
        let delta = |id: u8, pack_ix: u32| RunChunk {
            stored_as: StoredAs::Delta,
            ..chunk(id, pack_ix)
        };
        let base = |id: u8, pack_ix: u32, base: u8| RunDelta {
            id: ChunkId([id; 32]),
            pack_ix,
            base: ChunkId([base; 32]),
        };
        let mut one = run(&[1], vec![pack(3, 0..1)], vec![delta(1, 0), chunk(2, 0), delta(5, 0)]);
        one.deltas = vec![base(1, 0, 70), base(5, 0, 71)];
        let mut other = run(&[1], vec![pack(2, 0..1)], vec![delta(1, 0), delta(4, 0)]);
        other.deltas = vec![base(1, 0, 72), base(4, 0, 73)];
        let united = whole(unite(&[one, other], &[]).unwrap().0);
        assert_eq!(
            united.deltas,
            [base(1, 0, 72), base(1, 1, 70), base(4, 0, 73), base(5, 1, 71)]
        );
    }

    #[test]
    fn what_lies_in_packs_that_are_left_out_is_left_out() {
        let runs = [
            run(&[1], vec![pack(3, 0..1), pack(5, 0..1)], vec![chunk(1, 0), chunk(4, 1)]),
            run(&[1], vec![pack(4, 0..1)], vec![chunk(1, 0)]),
        ];
        let (parts, merged) = unite(&runs, &[3, 9]).unwrap();
        assert_eq!(merged.dropped, [PackId([3; 16])]);
        let united = whole(parts);
        assert_eq!(
            places(&united)
                .iter()
                .map(|(id, pack, ..)| (id.0[0], pack.0[0]))
                .collect::<Vec<_>>(),
            [(1, 4), (4, 5)]
        );
        let (parts, merged) = unite(&runs, &[3, 4, 5]).unwrap();
        assert_eq!(merged.chunks, 0);
        assert_eq!(parts.len(), 2, "slots and packs, without any");
        assert_eq!(whole(parts), RunContent::default());
    }

    #[test]
    fn a_checksum_that_is_not_known_is_no_disagreement() {
        let with = |crc64nvme: u64| {
            let mut run = run(&[1], vec![pack(3, 0..1)], vec![chunk(1, 0)]);
            run.packs[0].crc64nvme = crc64nvme;
            run
        };
        for runs in [[with(0), with(7)], [with(7), with(0)]] {
            assert_eq!(whole(unite(&runs, &[]).unwrap().0).packs[0].crc64nvme, 7);
        }
        assert!(matches!(unite(&[with(6), with(7)], &[]), Err(Trouble::Disagree(_))));
    }

    #[test]
    fn runs_that_disagree_are_not_united() {
        let one = || run(&[1], vec![pack(3, 0..1)], vec![chunk(1, 0), chunk(2, 0)]);
        let disagree = |other: RunContent| matches!(unite(&[one(), other], &[]), Err(Trouble::Disagree(pack)) if pack == PackId([3; 16]));
        let mut other = one();
        other.packs[0].size += 1;
        assert!(disagree(other), "about the pack");
        let mut other = one();
        other.slots[0] = slot(9);
        assert!(disagree(other), "about its keys");
        let mut other = one();
        other.chunks[1].offset += 1;
        assert!(disagree(other), "about where a chunk is");
        let mut other = one();
        other.chunks.pop();
        assert!(disagree(other), "about which chunks there are");
    }
}
