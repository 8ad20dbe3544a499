//! Names of stored objects (format-spec chapter on object names): the only place that builds or parses them.

use crate::pure::id::{KeyId, PackId, PlaceId, SessionId};
use std::str::FromStr;

/// Data or metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PackKind {
    Data = 0,
    Meta = 1,
}

impl PackKind {
    /// Reads the byte that stands for a kind.
    pub fn from_byte(byte: u8) -> Option<PackKind> {
        match byte {
            0 => Some(PackKind::Data),
            1 => Some(PackKind::Meta),
            _ => None,
        }
    }
}

/// Every name that version 1 knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    Config(u64),
    /// Says that the place is a replica, unless the configuration names it as the primary.
    ReplicaMark(PlaceId),
    Protector(KeyId, u32),
    Grant(KeyId, u64),
    Pack(PackKind, PackId, SessionId),
    /// L0 run.
    Run(SessionId, u32),
    /// Part of an L≥1 run: level, session, part name (`p0000`, `s0000`, `c0000-1a2b-3c4d`).
    RunPart(u8, SessionId, String),
    Session(SessionId, u32),
    Outcome(SessionId),
    Condemnation(SessionId),
    Drop(SessionId),
    Hold(SessionId, String),
    Attest(SessionId, u32),
}

/// What one part of an L≥1 run holds, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    Packs,
    Slots,
    /// Chunks whose ids start with these two bytes, first and last.
    Chunks {
        first: [u8; 2],
        last: [u8; 2],
    },
}

impl PartKind {
    /// Parses the part name of an L≥1 run into what it holds and its number; `None` if it is not canonical.
    pub fn parse(part: &str) -> Option<(PartKind, u32)> {
        let digits = part.get(1..)?;
        match part.as_bytes()[0] {
            b'p' => Some((PartKind::Packs, counter(digits, 4)?)),
            b's' => Some((PartKind::Slots, counter(digits, 4)?)),
            b'c' => {
                let (number, bounds) = digits.split_once('-')?;
                let (first, last) = bounds.split_once('-')?;
                let bound = |text| crate::pure::id::from_hex(text)?.try_into().ok();
                let (first, last) = (bound(first)?, bound(last)?);
                (first <= last).then_some((PartKind::Chunks { first, last }, counter(number, 4)?))
            }
            _ => None,
        }
    }
}

impl ObjectName {
    /// Parses a name; `None` for anything that version 1 does not know.
    ///
    /// Only the one spelling that [`Display`](std::fmt::Display) writes is accepted, so two names are never one object.
    pub fn parse(name: &str) -> Option<ObjectName> {
        let mut parts = name.split('/');
        let (kind, first) = (parts.next()?, parts.next()?);
        let second = parts.next();
        if parts.next().is_some() {
            return None;
        }
        Some(match (kind, second) {
            ("config", None) => match first.strip_prefix("replica-") {
                Some(place) => ObjectName::ReplicaMark(id(place)?),
                None => ObjectName::Config(counter(first, 8)?),
            },
            ("keys", Some(number)) => ObjectName::Protector(id(first)?, counter(number, 4)?),
            ("grants", Some(number)) => ObjectName::Grant(id(first)?, counter(number, 8)?),
            ("data", Some(pack)) => pack_name(PackKind::Data, first, pack)?,
            ("meta", Some(pack)) => pack_name(PackKind::Meta, first, pack)?,
            ("idx", None) => run_name(first)?,
            ("sess", Some(number)) => ObjectName::Session(id(first)?, counter(number, 4)?),
            ("snap", None) => ObjectName::Outcome(id(first)?),
            ("gc", None) => ObjectName::Condemnation(id(first)?),
            ("drop", None) => ObjectName::Drop(id(first)?),
            ("hold", Some(hold)) if is_hold_name(hold) => ObjectName::Hold(id(first)?, hold.to_owned()),
            ("attest", Some(number)) => ObjectName::Attest(id(first)?, counter(number, 4)?),
            _ => return None,
        })
    }
}

/// Whether a hold may have this name: 1 … 64 of `a-z 0-9 . _ -`, and not a name that directories use for themselves.
pub fn is_hold_name(name: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != ".."
}

fn id<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// A decimal counter, padded with zeros to `width`, longer only when it must be.
fn counter<T: FromStr>(text: &str, width: usize) -> Option<T> {
    let canonical = text.len() == width || (text.len() > width && !text.starts_with('0'));
    (canonical && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn pack_name(kind: PackKind, prefix: &str, name: &str) -> Option<ObjectName> {
    let (pack, session) = name.split_once('-')?;
    (prefix.len() == 2 && pack.starts_with(prefix)).then_some(())?;
    Some(ObjectName::Pack(kind, id(pack)?, id(session)?))
}

fn run_name(name: &str) -> Option<ObjectName> {
    let (level, rest) = name.split_once('-')?;
    let (session, part) = rest.split_once('-')?;
    match level.as_bytes() {
        [b'0'] => Some(ObjectName::Run(id(session)?, counter(part, 4)?)),
        [level @ b'1'..=b'9'] => {
            PartKind::parse(part)?;
            Some(ObjectName::RunPart(level - b'0', id(session)?, part.to_owned()))
        }
        _ => None,
    }
}

impl std::fmt::Display for ObjectName {
    /// Writes the name as stored.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ObjectName::Config(sequence) => write!(f, "config/{sequence:08}"),
            ObjectName::ReplicaMark(place) => write!(f, "config/replica-{place}"),
            ObjectName::Protector(kid, number) => write!(f, "keys/{kid}/{number:04}"),
            ObjectName::Grant(kid, number) => write!(f, "grants/{kid}/{number:08}"),
            ObjectName::Pack(kind, pack, session) => {
                let kind = match kind {
                    PackKind::Data => "data",
                    PackKind::Meta => "meta",
                };
                write!(f, "{kind}/{:02x}/{pack}-{session}", pack.as_bytes()[0])
            }
            ObjectName::Run(session, number) => write!(f, "idx/0-{session}-{number:04}"),
            ObjectName::RunPart(level, session, part) => write!(f, "idx/{level}-{session}-{part}"),
            ObjectName::Session(session, number) => write!(f, "sess/{session}/{number:04}"),
            ObjectName::Outcome(session) => write!(f, "snap/{session}"),
            ObjectName::Condemnation(session) => write!(f, "gc/{session}"),
            ObjectName::Drop(session) => write!(f, "drop/{session}"),
            ObjectName::Hold(session, name) => write!(f, "hold/{session}/{name}"),
            ObjectName::Attest(session, number) => write!(f, "attest/{session}/{number:04}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00112233445566778899aabbccddeeff";
    const SID: &str = "ffeeddccbbaa99887766554433221100";

    fn names() -> Vec<(String, ObjectName)> {
        let kid: KeyId = ID.parse().unwrap();
        let pack: PackId = ID.parse().unwrap();
        let sid: SessionId = SID.parse().unwrap();
        vec![
            ("config/00000000".into(), ObjectName::Config(0)),
            ("config/123456789".into(), ObjectName::Config(123_456_789)),
            ("config/18446744073709551615".into(), ObjectName::Config(u64::MAX)),
            (
                format!("config/replica-{ID}"),
                ObjectName::ReplicaMark(ID.parse().unwrap()),
            ),
            (format!("keys/{ID}/0000"), ObjectName::Protector(kid, 0)),
            (format!("keys/{ID}/12345"), ObjectName::Protector(kid, 12_345)),
            (format!("grants/{ID}/00000007"), ObjectName::Grant(kid, 7)),
            (
                format!("data/00/{ID}-{SID}"),
                ObjectName::Pack(PackKind::Data, pack, sid),
            ),
            (
                format!("meta/00/{ID}-{SID}"),
                ObjectName::Pack(PackKind::Meta, pack, sid),
            ),
            (format!("idx/0-{SID}-0012"), ObjectName::Run(sid, 12)),
            (
                format!("idx/1-{SID}-p0000"),
                ObjectName::RunPart(1, sid, "p0000".into()),
            ),
            (
                format!("idx/9-{SID}-s0003"),
                ObjectName::RunPart(9, sid, "s0003".into()),
            ),
            (
                format!("idx/2-{SID}-c0010-00ff-3c4d"),
                ObjectName::RunPart(2, sid, "c0010-00ff-3c4d".into()),
            ),
            (format!("sess/{SID}/0000"), ObjectName::Session(sid, 0)),
            (format!("sess/{SID}/4294967295"), ObjectName::Session(sid, u32::MAX)),
            (format!("snap/{SID}"), ObjectName::Outcome(sid)),
            (format!("gc/{SID}"), ObjectName::Condemnation(sid)),
            (format!("drop/{SID}"), ObjectName::Drop(sid)),
            (format!("hold/{SID}/a.b_c-9"), ObjectName::Hold(sid, "a.b_c-9".into())),
            (format!("attest/{SID}/0001"), ObjectName::Attest(sid, 1)),
        ]
    }

    #[test]
    fn every_name_is_written_and_read() {
        for (text, name) in names() {
            assert_eq!(name.to_string(), text);
            assert_eq!(ObjectName::parse(&text), Some(name));
        }
    }

    #[test]
    fn what_is_parsed_is_what_would_be_written() {
        // Every change of one byte either is another valid name, spelled as it would be written, or no name.
        for (text, _) in names() {
            for at in 0..text.len() {
                for byte in 0x20..0x7f {
                    let mut other = text.clone().into_bytes();
                    other[at] = byte;
                    let other = String::from_utf8(other).unwrap();
                    if let Some(name) = ObjectName::parse(&other) {
                        assert_eq!(name.to_string(), other);
                    }
                }
                let shorter = &text[..at];
                if let Some(name) = ObjectName::parse(shorter) {
                    assert_eq!(name.to_string(), shorter);
                }
            }
        }
    }

    #[test]
    fn other_spellings_and_foreign_names_are_not_known() {
        for name in [
            "".to_owned(),
            "config".into(),
            "config/".into(),
            "config/0".into(),
            "config/0000000".into(),
            "config/000000000".into(),
            "config/012345678".into(),
            "config/+0000000".into(),
            "config/18446744073709551616".into(),
            "config/00000000/".into(),
            "/config/00000000".into(),
            format!("keys/{ID}"),
            format!("keys/{ID}/000"),
            format!("keys/{ID}/4294967296"),
            format!("keys/{}/0000", ID.to_uppercase()),
            format!("data/01/{ID}-{SID}"),
            format!("data/0/{ID}-{SID}"),
            format!("data//{ID}-{SID}"),
            format!("data/00/{ID}"),
            format!("data/00/{ID}-{SID}-"),
            format!("idx/0-{SID}-p0000"),
            format!("idx/1-{SID}-0000"),
            format!("idx/10-{SID}-p0000"),
            format!("idx/a-{SID}-p0000"),
            format!("idx/1-{SID}-"),
            format!("idx/1-{SID}-c0000"),
            format!("idx/1-{SID}-c0000-0000"),
            format!("idx/1-{SID}-c0000-0001-0000"),
            format!("idx/1-{SID}-c0000-000-0001"),
            format!("idx/1-{SID}-c0000-00AA-00AB"),
            format!("idx/1-{SID}-é0000"),
            format!("hold/{SID}/"),
            format!("hold/{SID}/."),
            format!("hold/{SID}/.."),
            format!("hold/{SID}/A"),
            format!("hold/{SID}/{}", "a".repeat(65)),
            format!("hold/{SID}/a/b"),
            format!("snap/{SID}/0000"),
            format!("par/snap/{SID}"),
            "tmp/x".into(),
        ] {
            assert_eq!(ObjectName::parse(&name), None, "{name}");
        }
    }
}
