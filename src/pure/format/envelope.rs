//! The envelope around every small sealed object and every run (format-spec chapter on envelopes).
//!
//! ```text
//! "LARDERO1" | type u8 | version u8 | flags u16 | epoch u32 | R 16 | object id 16 | sections u32 | 12 zeros
//! sections × (offset u32 from the end of this table | length u32 with its tag), contiguous from 0
//! the sealed sections
//! H(everything before) | "LARDERE1"
//! ```

use super::codec::{Reader, malformed};
use super::{FormatError, Malformed};
use crate::pure::crypto::seal::TAG_LEN;
use crate::pure::crypto::{Sealer, Secret, hash, keyed_hash};
use crate::pure::id::RepoId;
use std::ops::Range;

const MAGIC: &[u8; 8] = b"LARDERO1";
const END_MAGIC: &[u8; 8] = b"LARDERE1";
const VERSION: u8 = 1;
/// Bytes before the section table.
pub const HEADER_LEN: usize = 64;
/// Bytes of one row of the section table.
const ROW_LEN: usize = 8;
/// Hash and magic at the end.
const FOOTER_LEN: usize = 40;
/// Most sections of an envelope.
pub const SECTIONS_MAX: usize = 65_536;
/// Largest object in an envelope; only runs come near it.
pub const OBJECT_BYTES_MAX: usize = 1 << 30;

/// Type byte of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EnvelopeKind {
    Run = 1,
    Outcome = 2,
    Session = 3,
    Gc = 4,
    Drop = 5,
    Hold = 6,
    Grant = 7,
    Attest = 8,
}

/// Returns how long an object with sections of these plaintext lengths will be.
pub fn sealed_len(plaintext_lens: impl Iterator<Item = usize>) -> usize {
    plaintext_lens.fold(HEADER_LEN + FOOTER_LEN, |sum, len| sum + ROW_LEN + len + TAG_LEN)
}

/// Seals sections under KH(class_key, object_id). `object_id` is 16 random bytes; `name` is bound as AAD.
///
/// # Panics
/// On no section, more than 65 536, or more than 1 GiB in all: the kinds of objects have limits of their own below these,
/// which their encoders check.
#[allow(clippy::too_many_arguments)]
pub fn seal(
    kind: EnvelopeKind,
    epoch: u32,
    repo: &RepoId,
    object_id: [u8; 16],
    class_key: &Secret,
    name: &str,
    sections: &[&[u8]],
) -> Vec<u8> {
    assert!(
        (1..=SECTIONS_MAX).contains(&sections.len()),
        "an envelope has 1 to 65 536 sections"
    );
    let total = sealed_len(sections.iter().map(|section| section.len()));
    assert!(total <= OBJECT_BYTES_MAX, "an envelope has at most 1 GiB");

    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8] = kind as u8;
    header[9] = VERSION;
    header[12..16].copy_from_slice(&epoch.to_le_bytes());
    header[16..32].copy_from_slice(repo.as_bytes());
    header[32..48].copy_from_slice(&object_id);
    header[48..52].copy_from_slice(&(sections.len() as u32).to_le_bytes());

    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&header);
    let mut offset = 0u32;
    for section in sections {
        let len = (section.len() + TAG_LEN) as u32;
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        offset += len;
    }
    let sealer = object_sealer(class_key, &object_id);
    for (index, section) in sections.iter().enumerate() {
        let start = out.len();
        out.extend_from_slice(section);
        sealer.seal_in_place(&nonce(index), &mut out, start, &aad(&header, index, name));
    }
    let digest = hash(&out);
    out.extend_from_slice(&digest);
    out.extend_from_slice(END_MAGIC);
    out
}

fn object_sealer(class_key: &Secret, object_id: &[u8]) -> Sealer {
    Sealer::new(&Secret::new(keyed_hash(class_key, &[object_id])))
}

/// LE32(section) ‖ 0⁸: one key for each object, so the section number is enough.
fn nonce(section: usize) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&(section as u32).to_le_bytes());
    nonce
}

/// Header ‖ LE32(section) ‖ name: neither a section nor an object opens anywhere else.
fn aad(header: &[u8; HEADER_LEN], section: usize, name: &str) -> Vec<u8> {
    let name = if chaos!("objects-are-not-bound-to-names") {
        ""
    } else {
        name
    };
    [&header[..], &(section as u32).to_le_bytes(), name.as_bytes()].concat()
}

/// Whether an object ends with its own hash: what anybody can see without a key, of any kind and version.
pub fn is_intact(bytes: &[u8]) -> bool {
    bytes
        .split_last_chunk::<FOOTER_LEN>()
        .is_some_and(|(body, footer)| footer[32..] == *END_MAGIC && footer[..32] == hash(body))
}

/// An envelope whose frame has been checked: magic, kind, repo, section table, footer hash. Nothing is opened yet.
#[derive(Debug)]
pub struct Envelope<'a> {
    bytes: &'a [u8],
    head: EnvelopeHead,
}

impl<'a> Envelope<'a> {
    /// Checks a whole object.
    ///
    /// # Errors
    /// [`FormatError::TooNew`] for a later version of this kind, otherwise [`FormatError::Malformed`].
    pub fn parse(bytes: &'a [u8], kind: EnvelopeKind, repo: &RepoId) -> Result<Envelope<'a>, FormatError> {
        if bytes.len() > OBJECT_BYTES_MAX {
            malformed("object larger than 1 GiB")?;
        }
        let Some((body, footer)) = bytes.split_last_chunk::<FOOTER_LEN>() else {
            return Ok(malformed("envelope length")?);
        };
        // Magic, kind and repository before the hash: an object of something else is named as that.
        let Some(head) = EnvelopeHead::parse(body, kind, repo)? else {
            return Ok(malformed("envelope section table")?);
        };
        if footer[32..] != *END_MAGIC {
            malformed("envelope end")?;
        }
        if head.end != body.len() as u64 {
            malformed("envelope length")?;
        }
        if footer[..32] != hash(body) {
            malformed("envelope hash")?;
        }
        Ok(Envelope { bytes, head })
    }

    /// Returns the epoch whose keys seal the sections.
    pub fn epoch(&self) -> u32 {
        self.head.epoch()
    }

    /// Returns the random id of the object.
    pub fn object_id(&self) -> [u8; 16] {
        self.head.object_id()
    }

    /// Returns how many sections there are, at least one.
    pub fn sections(&self) -> usize {
        self.head.sections()
    }

    /// Returns the sealed length of a section; 0 if it is not there.
    pub fn section_len(&self, section: usize) -> usize {
        let range = self.head.range(section);
        (range.end - range.start) as usize
    }

    /// Opens one section.
    ///
    /// # Errors
    /// [`FormatError::CannotOpen`] for another key, another name or a section that is not there.
    pub fn open(&self, section: usize, class_key: &Secret, name: &str) -> Result<Vec<u8>, FormatError> {
        let range = self.head.range(section);
        // Inside of `bytes`: `parse` compared the end of the table's last row with the length.
        let sealed = &self.bytes[range.start as usize..range.end as usize];
        self.head.open(section, sealed, class_key, name)
    }
}

/// The head of an envelope that is read by ranges (runs): header and section table from the first bytes of the object.
#[derive(Clone, Debug)]
pub struct EnvelopeHead {
    header: [u8; HEADER_LEN],
    /// End of each sealed section, from the start of the object.
    ends: Vec<u64>,
    /// Where the footer starts.
    end: u64,
}

impl EnvelopeHead {
    /// Parses a prefix of the object. Returns `Ok(None)` when more than `prefix.len()` bytes are needed for the table.
    ///
    /// # Errors
    /// [`FormatError::TooNew`] for a later version of this kind, otherwise [`FormatError::Malformed`].
    pub fn parse(prefix: &[u8], kind: EnvelopeKind, repo: &RepoId) -> Result<Option<EnvelopeHead>, FormatError> {
        let Some((header, rest)) = prefix.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let count = section_count(header, kind, repo)?;
        let Some(table) = rest.get(..count * ROW_LEN) else {
            return Ok(None);
        };
        let start = (HEADER_LEN + table.len()) as u64;
        let mut rows = Reader::new(table);
        let mut ends = Vec::with_capacity(count);
        let mut end = 0u32;
        for _ in 0..count {
            let offset = rows.u32("envelope section offset")?;
            let len = rows.u32("envelope section length")?;
            if offset != end || (len as usize) < TAG_LEN {
                malformed("envelope section table")?;
            }
            end = end.checked_add(len).ok_or(Malformed {
                what: "envelope section length",
            })?;
            ends.push(start + u64::from(end));
        }
        let end = start + u64::from(end);
        if end > OBJECT_BYTES_MAX as u64 {
            malformed("object larger than 1 GiB")?;
        }
        Ok(Some(EnvelopeHead {
            header: *header,
            ends,
            end,
        }))
    }

    /// Returns the epoch whose keys seal the sections.
    pub fn epoch(&self) -> u32 {
        u32::from_le_bytes([self.header[12], self.header[13], self.header[14], self.header[15]])
    }

    /// Returns the random id of the object.
    pub fn object_id(&self) -> [u8; 16] {
        std::array::from_fn(|index| self.header[32 + index])
    }

    /// Returns how many sections there are, at least one.
    pub fn sections(&self) -> usize {
        self.ends.len()
    }

    /// Byte range of a sealed section within the object; empty for a section that is not there.
    pub fn range(&self, section: usize) -> Range<u64> {
        let first = (HEADER_LEN + self.ends.len() * ROW_LEN) as u64;
        match self.ends.get(section) {
            Some(end) => section.checked_sub(1).map_or(first, |before| self.ends[before])..*end,
            None => first..first,
        }
    }

    /// Opens the bytes of a section.
    ///
    /// # Errors
    /// [`FormatError::CannotOpen`] for another key, another name, another section or changed bytes.
    pub fn open(&self, section: usize, sealed: &[u8], class_key: &Secret, name: &str) -> Result<Vec<u8>, FormatError> {
        let sealer = object_sealer(class_key, &self.header[32..48]);
        Ok(sealer.open(&nonce(section), sealed, &aad(&self.header, section, name))?)
    }
}

/// Returns the bytes up to the end of the section table, judged from the header, and up to the end of section 0 if the
/// first row of the table is there.
pub(super) fn prefix_lens(prefix: &[u8]) -> Result<(usize, Option<usize>), Malformed> {
    let mut reader = Reader::new(prefix);
    let header: [u8; HEADER_LEN] = reader.array("envelope header")?;
    let count = u32::from_le_bytes([header[48], header[49], header[50], header[51]]) as usize;
    if !(1..=SECTIONS_MAX).contains(&count) {
        return malformed("envelope section count");
    }
    let table_end = HEADER_LEN + count * ROW_LEN;
    let section_end = match reader.array::<ROW_LEN>("envelope section table") {
        Ok(row) => Some(table_end.saturating_add(u32::from_le_bytes([row[4], row[5], row[6], row[7]]) as usize)),
        Err(_) => None,
    };
    Ok((table_end, section_end))
}

fn section_count(header: &[u8; HEADER_LEN], kind: EnvelopeKind, repo: &RepoId) -> Result<usize, FormatError> {
    let mut reader = Reader::new(header);
    if reader.array::<8>("envelope magic")? != *MAGIC {
        malformed("envelope magic")?;
    }
    if reader.u8("envelope type")? != kind as u8 {
        malformed("envelope type")?;
    }
    match reader.u8("envelope version")? {
        VERSION => {}
        0 => malformed("envelope version")?,
        version => {
            return Err(FormatError::TooNew {
                what: format!("version {version} of this kind of object"),
            });
        }
    }
    if reader.u16("envelope flags")? != 0 {
        malformed("envelope flags")?;
    }
    reader.u32("envelope epoch")?;
    if reader.array::<16>("envelope repository")? != repo.0 {
        malformed("envelope of another repository")?;
    }
    reader.array::<16>("envelope object id")?;
    let count = reader.u32("envelope section count")? as usize;
    if !(1..=SECTIONS_MAX).contains(&count) {
        malformed("envelope section count")?;
    }
    if reader.array::<12>("envelope reserved bytes")? != [0; 12] {
        malformed("envelope reserved bytes")?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::crypto::ObjectClass;
    use crate::pure::crypto::vectors::*;

    const NAME: &str = "sess/11111111111111111111111111111111/0000";
    const VECTOR: &str = "4c41524445524f310301000001000000101112131415161718191a1b1c1d1e1f808182838485868788898a8b8c8d8e8f010000000000000000000000000000000000000011000000201c0e674e5e07ea3184762db35cd717051ebb3f54db9e8935199b85942175339155998e536e2d91be3af37d499b4de33c4c41524445524531";

    fn class_key() -> Secret {
        keys().object_key(1, ObjectClass::Session).unwrap().clone()
    }

    fn sealed(sections: &[&[u8]]) -> Vec<u8> {
        seal(
            EnvelopeKind::Session,
            1,
            &REPO,
            counting(0x80),
            &class_key(),
            NAME,
            sections,
        )
    }

    /// Opens everything; `None` if anything is wrong.
    fn open_all(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        let envelope = Envelope::parse(bytes, EnvelopeKind::Session, &REPO).ok()?;
        (0..envelope.sections())
            .map(|section| envelope.open(section, &class_key(), NAME).ok())
            .collect()
    }

    /// Replaces the footer by one that fits, so that a test reaches what lies behind the hash.
    fn rehashed(bytes: &[u8]) -> Vec<u8> {
        let body = &bytes[..bytes.len() - 40];
        [body, &hash(body), END_MAGIC].concat()
    }

    #[test]
    fn the_published_envelope_is_made_and_opened() {
        let bytes = sealed(&[b"\xa0"]);
        assert_eq!(bytes, hex(VECTOR));
        assert_eq!(open_all(&bytes), Some(vec![b"\xa0".to_vec()]));
        let envelope = Envelope::parse(&bytes, EnvelopeKind::Session, &REPO).unwrap();
        assert_eq!(
            (envelope.epoch(), envelope.object_id(), envelope.sections()),
            (1, counting(0x80), 1)
        );
    }

    #[test]
    fn sections_of_any_length_come_back_whole_or_by_range() {
        let long = noise("section", 70_000);
        let plain: [&[u8]; 4] = [b"", b"x", &long, b""];
        let bytes = sealed(&plain);
        assert_eq!(bytes.len(), sealed_len(plain.iter().map(|section| section.len())));
        assert_eq!(open_all(&bytes).unwrap(), plain);
        let head = EnvelopeHead::parse(&bytes[..64 + 32], EnvelopeKind::Session, &REPO)
            .unwrap()
            .unwrap();
        for (section, plain) in plain.iter().enumerate() {
            let range = head.range(section);
            let part = &bytes[range.start as usize..range.end as usize];
            assert_eq!(head.open(section, part, &class_key(), NAME).unwrap(), *plain);
            assert!(head.open(section + 1, part, &class_key(), NAME).is_err());
        }
        assert!(head.range(4).is_empty());
        for len in 0..64 + 32 {
            let part = EnvelopeHead::parse(&bytes[..len], EnvelopeKind::Session, &REPO);
            assert!(matches!(part, Ok(None)), "{len}");
        }
        assert_eq!(prefix_lens(&bytes[..64]).unwrap(), (96, None));
        assert_eq!(prefix_lens(&bytes).unwrap(), (96, Some(96 + 16)));
        assert!(prefix_lens(&bytes[..63]).is_err());
    }

    #[test]
    fn every_single_bit_counts_even_under_a_fitting_hash() {
        let bytes = sealed(&[b"\xa0", b"second"]);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open_all(&damaged), None, "bit {bit}");
            if bit / 8 < bytes.len() - 40 {
                assert_eq!(open_all(&rehashed(&damaged)), None, "bit {bit}, hash repaired");
            }
        }
    }

    #[test]
    fn truncation_and_extension_are_refused() {
        let bytes = sealed(&[b"\xa0", b"second"]);
        for len in 0..bytes.len() {
            assert_eq!(open_all(&bytes[..len]), None);
            if len >= 40 {
                assert_eq!(open_all(&rehashed(&bytes[..len])), None);
            }
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(open_all(&longer), None);
        longer.splice(bytes.len() - 40..bytes.len() - 40, [0]);
        assert_eq!(open_all(&rehashed(&longer[..bytes.len() + 1])), None);
    }

    #[test]
    fn another_name_key_kind_or_repository_does_not_open() {
        let bytes = hex(VECTOR);
        let envelope = Envelope::parse(&bytes, EnvelopeKind::Session, &REPO).unwrap();
        assert!(
            envelope
                .open(0, &class_key(), "sess/11111111111111111111111111111111/0001")
                .is_err()
        );
        assert!(envelope.open(0, &class_key(), "").is_err());
        assert!(envelope.open(0, &Secret::new([0; 32]), NAME).is_err());
        assert!(envelope.open(1, &class_key(), NAME).is_err());
        assert!(Envelope::parse(&bytes, EnvelopeKind::Run, &REPO).is_err());
        assert!(Envelope::parse(&bytes, EnvelopeKind::Session, &RepoId([0; 16])).is_err());
    }

    #[test]
    fn a_later_version_is_named_as_such() {
        let mut bytes = hex(VECTOR);
        bytes[9] = 2;
        let error = Envelope::parse(&rehashed(&bytes), EnvelopeKind::Session, &REPO).err();
        assert!(matches!(error, Some(FormatError::TooNew { .. })));
    }

    #[test]
    fn sections_cannot_be_swapped_or_overlap() {
        let bytes = sealed(&[b"aa", b"bb"]);
        let mut swapped = bytes.clone();
        let (first, second) = (bytes[80..98].to_vec(), bytes[98..116].to_vec());
        swapped[80..98].copy_from_slice(&second);
        swapped[98..116].copy_from_slice(&first);
        assert_eq!(open_all(&rehashed(&swapped)), None);
        let mut overlapping = bytes.clone();
        overlapping[72..76].copy_from_slice(&0u32.to_le_bytes());
        assert_eq!(open_all(&rehashed(&overlapping)), None);
        let mut huge = bytes;
        huge[76..80].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(open_all(&rehashed(&huge)), None);
    }
}
