//! Condemnations `gc/<sid>` (format-spec chapter on condemnations): packs that nobody may reference any more.
//!
//! A condemnation cannot be taken back, so it stays honoured when its signer is revoked later.

use super::FormatError;
use super::cbor::Value;
use super::codec::{Malformed, Reader, malformed};
use super::envelope::EnvelopeKind;
use super::name::{ObjectName, PackKind};
use super::signed::{self, Class, Unsealed};
use crate::pure::base::Timestamp;
use crate::pure::crypto::{self, KeyRing, ObjectClass, Signer, Verifier, sign::role};
use crate::pure::id::{ChunkId, KeyId, PackId, SessionId};

const CONDEMNATION: Class = Class {
    kind: EnvelopeKind::Gc,
    class: ObjectClass::Gc,
    what: "condemnation",
};
/// Packs, or lost chunk ids, in one section at most.
const SECTION_ROWS: usize = 16_384;
/// Bytes of a condemned pack's row.
const PACK_ROW: usize = 40;
/// Flag of a row: the pack is in no valid run.
const ORPHAN: u8 = 1;

/// Why packs were condemned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CondemnKind {
    Reclaim = 0,
    /// Packs were damaged; `lost` names chunks that no copy is left of.
    Quarantine = 1,
    Rekey = 2,
}

/// A pack that nobody may reference any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CondemnedPack {
    pub pack: PackId,
    pub session: SessionId,
    pub kind: PackKind,
    pub orphan: bool,
    /// Bytes.
    pub size: u32,
}

/// `gc/<sid>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condemnation {
    pub kid: KeyId,
    pub created: Timestamp,
    pub kind: CondemnKind,
    /// The condemning session, which is also the generation.
    pub session: SessionId,
    pub reason: String,
    /// Ascending by pack id, each pack once.
    pub packs: Vec<CondemnedPack>,
    /// Chunks that no copy is left of; only where the kind is quarantine.
    pub lost: Vec<ChunkId>,
    /// An admin accepts that these are lost: nothing is kept for them any more.
    pub is_accepted: bool,
}

impl Condemnation {
    /// Signs and seals under `gc/<session>`. Packs and lost ids are written in ascending order.
    ///
    /// # Errors
    /// If the key ring cannot seal condemnations, `kid` is not the signer, the session does not carry its tag, a pack is named
    /// twice, or chunks are lost without a quarantine.
    pub fn encode(&self, keys: &KeyRing, signer: &Signer, object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> {
        signed::check_writer_tag(&self.session, &self.kid)?;
        check_lost(self.kind, !self.lost.is_empty())?;
        check_accepted(self.is_accepted, !self.lost.is_empty())?;
        let mut packs = self.packs.clone();
        packs.sort_unstable();
        check_order(&packs)?;
        let mut lost = self.lost.clone();
        lost.sort_unstable();
        lost.dedup();

        let mut sections: Vec<Vec<u8>> = packs.chunks(SECTION_ROWS).map(encode_packs).collect();
        let first_lost = sections.len() as u64 + 1;
        let ids = |ids: &[ChunkId]| ids.iter().flat_map(|id| *id.as_bytes()).collect();
        sections.extend(lost.chunks(SECTION_ROWS).map(ids));
        let mut fields = vec![
            (3, Value::Uint(self.kind as u64)),
            (4, Value::bytes(self.session.as_bytes())),
            (5, Value::Uint(packs.len() as u64)),
            (6, Value::text(&self.reason)),
            (14, Value::bytes(&digest(&sections))),
        ];
        if !lost.is_empty() {
            fields.push((7, Value::Uint(first_lost)));
        }
        if self.is_accepted {
            fields.push((8, Value::Uint(1)));
        }
        let sections: Vec<&[u8]> = sections.iter().map(Vec::as_slice).collect();
        let name = ObjectName::Condemnation(self.session);
        CONDEMNATION.encode(
            &name,
            fields,
            (self.kid, self.created),
            &sections,
            keys,
            signer,
            object_id,
        )
    }

    /// Opens and verifies.
    ///
    /// # Errors
    /// If the object is not the condemnation of exactly this session, signed by the maintainer whose tag the session carries.
    pub fn decode(
        bytes: &[u8],
        session: &SessionId,
        keys: &KeyRing,
        verifier: &Verifier,
    ) -> Result<Condemnation, FormatError> {
        let name = ObjectName::Condemnation(*session);
        let Unsealed { mut map, sections, .. } = CONDEMNATION.decode(bytes, &name, keys)?;
        let is_accepted = match map.fields.uint_or(8, 0, "acceptance of a loss")? {
            0 => false,
            1 => true,
            _ => return Ok(malformed("acceptance of a loss")?),
        };
        let needed = if is_accepted { role::ADMIN } else { role::MAINTAIN };
        map.verify_even_if_revoked(verifier, needed, &name)?;
        signed::check_writer_tag(session, &map.kid)?;
        signed::check_session(&mut map.fields, session)?;
        if map.fields.byte_array(14, "digest")? != digest(&sections) {
            return Ok(malformed("digest of the sections")?);
        }
        let kind = match map.fields.uint(3, "kind of condemnation")? {
            0 => CondemnKind::Reclaim,
            1 => CondemnKind::Quarantine,
            2 => CondemnKind::Rekey,
            _ => return Ok(malformed("kind of condemnation")?),
        };
        let first_lost = map
            .fields
            .optional(7)
            .map(|value| value.into_uint("first section of lost chunks"))
            .transpose()?;
        check_lost(kind, first_lost.is_some())?;
        check_accepted(is_accepted, first_lost.is_some())?;
        let (pack_sections, lost_sections) = split(&sections, first_lost)?;

        let mut packs = Vec::new();
        for section in pack_sections {
            parse_packs(section, &mut packs)?;
        }
        check_order(&packs)?;
        if map.fields.uint(5, "number of packs")? != packs.len() as u64 {
            return Ok(malformed("number of packs")?);
        }
        let mut lost = Vec::new();
        for section in lost_sections {
            let (ids, rest) = section.as_chunks::<32>();
            if ids.is_empty() || !rest.is_empty() {
                return Ok(malformed("section of lost chunks")?);
            }
            lost.extend(ids.iter().map(|id| ChunkId(*id)));
        }
        let reason = map.fields.text_or_empty(6, "reason")?;
        Ok(Condemnation {
            kid: map.kid,
            created: map.created,
            kind,
            session: *session,
            reason,
            packs,
            lost,
            is_accepted,
        })
    }
}

/// Parts the sections at the number (section 0 is the map) that key 7 names.
fn split(sections: &[Vec<u8>], first_lost: Option<u64>) -> Result<(&[Vec<u8>], &[Vec<u8>]), Malformed> {
    let Some(first) = first_lost else {
        return Ok((sections, &[]));
    };
    let index = first.checked_sub(1).and_then(|index| usize::try_from(index).ok());
    match index.filter(|index| *index < sections.len()) {
        Some(index) => Ok(sections.split_at(index)),
        None => malformed("first section of lost chunks"),
    }
}

fn encode_packs(packs: &[CondemnedPack]) -> Vec<u8> {
    let mut out = Vec::with_capacity(packs.len() * PACK_ROW);
    for row in packs {
        out.extend_from_slice(row.pack.as_bytes());
        out.extend_from_slice(row.session.as_bytes());
        out.extend_from_slice(&[row.kind as u8, if row.orphan { ORPHAN } else { 0 }, 0, 0]);
        out.extend_from_slice(&row.size.to_le_bytes());
    }
    out
}

fn parse_packs(section: &[u8], packs: &mut Vec<CondemnedPack>) -> Result<(), Malformed> {
    if section.is_empty() || !section.len().is_multiple_of(PACK_ROW) || section.len() > SECTION_ROWS * PACK_ROW {
        return malformed("section of condemned packs");
    }
    let what = "condemned pack";
    let mut reader = Reader::new(section);
    while reader.remaining() > 0 {
        let pack = PackId(reader.array(what)?);
        let session = SessionId(reader.array(what)?);
        let kind = match reader.u8(what)? {
            0 => PackKind::Data,
            1 => PackKind::Meta,
            _ => return malformed("kind of a condemned pack"),
        };
        let flags = reader.u8(what)?;
        if flags & !ORPHAN != 0 || reader.u16(what)? != 0 {
            return malformed("reserved bits of a condemned pack");
        }
        packs.push(CondemnedPack {
            pack,
            session,
            kind,
            orphan: flags == ORPHAN,
            size: reader.u32(what)?,
        });
    }
    Ok(())
}

fn check_order(packs: &[CondemnedPack]) -> Result<(), Malformed> {
    let ascending = packs.windows(2).all(|pair| pair[0].pack < pair[1].pack);
    if ascending {
        Ok(())
    } else {
        malformed("condemned packs out of order")
    }
}

fn check_lost(kind: CondemnKind, any: bool) -> Result<(), Malformed> {
    if any && kind != CondemnKind::Quarantine {
        malformed("lost chunks without a quarantine")
    } else {
        Ok(())
    }
}

fn check_accepted(is_accepted: bool, any_lost: bool) -> Result<(), Malformed> {
    if is_accepted && !any_lost {
        malformed("acceptance of no loss")
    } else {
        Ok(())
    }
}

/// H over the sections after section 0, each preceded by its length.
fn digest(sections: &[Vec<u8>]) -> [u8; 32] {
    let mut all = Vec::with_capacity(sections.iter().map(|section| section.len() + 8).sum());
    for section in sections {
        all.extend_from_slice(&(section.len() as u64).to_le_bytes());
        all.extend_from_slice(section);
    }
    crypto::hash(&all)
}

#[cfg(test)]
mod tests {
    use super::signed::fixture::*;
    use super::*;

    fn pack(number: u32) -> CondemnedPack {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let kind = if number.is_multiple_of(2) {
            PackKind::Data
        } else {
            PackKind::Meta
        };
        CondemnedPack {
            pack: PackId(id),
            session: SessionId([7; 16]),
            kind,
            orphan: number.is_multiple_of(3),
            size: number + 400,
        }
    }

    fn condemnation(packs: u32, lost: u8) -> Condemnation {
        Condemnation {
            kid: KID,
            created: START,
            kind: if lost > 0 {
                CondemnKind::Quarantine
            } else {
                CondemnKind::Reclaim
            },
            session: SID,
            reason: "prune".into(),
            packs: (0..packs).map(pack).collect(),
            lost: (0..lost).map(|byte| ChunkId([byte; 32])).collect(),
            is_accepted: false,
        }
    }

    fn round_trip(condemnation: &Condemnation) -> Vec<u8> {
        let bytes = condemnation.encode(&keys(), &signer(), OBJECT_ID).unwrap();
        let read = Condemnation::decode(&bytes, &SID, &keys(), &verifier(role::MAINTAIN));
        assert_eq!(read.as_ref(), Ok(condemnation));
        bytes
    }

    #[test]
    fn condemnations_round_trip_also_across_sections() {
        for (packs, lost) in [(0, 0), (1, 0), (3, 2), (0, 2), (16_384, 0), (16_385, 1)] {
            round_trip(&condemnation(packs, lost));
        }
        round_trip(&Condemnation {
            kind: CondemnKind::Rekey,
            reason: String::new(),
            ..condemnation(2, 0)
        });
        let mut reversed = condemnation(4, 0);
        reversed.packs.reverse();
        let bytes = reversed.encode(&keys(), &signer(), OBJECT_ID).unwrap();
        assert_eq!(bytes, round_trip(&condemnation(4, 0)));
    }

    #[test]
    fn any_change_another_session_and_other_roles_are_refused() {
        let (keys, maintainer) = (keys(), verifier(role::MAINTAIN));
        let bytes = round_trip(&condemnation(2, 1));
        assert_fragile(&bytes, ENVELOPE_TAIL, |bytes| {
            Condemnation::decode(bytes, &SID, &keys, &maintainer)
        });
        assert!(Condemnation::decode(&bytes, &SID_2, &keys, &maintainer).is_err());
        assert_needs_role(role::MAINTAIN, |verifier| {
            Condemnation::decode(&bytes, &SID, &keys, verifier)
        });
        assert!(Condemnation::decode(&bytes, &SID, &keys, &revoked(role::MAINTAIN)).is_ok());
        assert!(Condemnation::decode(&bytes, &SID, &keys, &revoked(role::WRITE)).is_err());
    }

    #[test]
    fn a_loss_is_accepted_by_an_admin_only() {
        let accepted = Condemnation {
            is_accepted: true,
            ..condemnation(0, 3)
        };
        let bytes = accepted.encode(&keys(), &signer(), OBJECT_ID).unwrap();
        let read = |roles| Condemnation::decode(&bytes, &SID, &keys(), &verifier(roles));
        assert_eq!(read(role::ADMIN), Ok(accepted.clone()));
        assert!(read(role::MAINTAIN).is_err());
        let of_nothing = Condemnation {
            is_accepted: true,
            ..condemnation(1, 0)
        };
        assert!(of_nothing.encode(&keys(), &signer(), OBJECT_ID).is_err());
        let name = ObjectName::Condemnation(SID);
        for value in [Value::Uint(2), Value::Null] {
            let bytes = reseal(CONDEMNATION, &bytes, &name, vec![(8, Some(value))]);
            assert!(Condemnation::decode(&bytes, &SID, &keys(), &verifier(role::ADMIN)).is_err());
        }
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let encode = |condemnation: Condemnation| condemnation.encode(&keys(), &signer(), OBJECT_ID);
        assert!(
            encode(Condemnation {
                packs: vec![pack(1), pack(1)],
                ..condemnation(0, 0)
            })
            .is_err()
        );
        assert!(
            encode(Condemnation {
                kind: CondemnKind::Reclaim,
                ..condemnation(1, 1)
            })
            .is_err()
        );
        assert!(
            encode(Condemnation {
                session: SessionId([9; 16]),
                ..condemnation(1, 0)
            })
            .is_err()
        );
        assert!(
            encode(Condemnation {
                kid: OTHER_KID,
                ..condemnation(1, 0)
            })
            .is_err()
        );
    }

    #[test]
    fn header_and_sections_must_agree() {
        let name = ObjectName::Condemnation(SID);
        let bytes = round_trip(&condemnation(2, 1));
        let with = |key, value| {
            let bytes = reseal(CONDEMNATION, &bytes, &name, vec![(key, value)]);
            Condemnation::decode(&bytes, &SID, &keys(), &verifier(role::MAINTAIN))
        };
        assert_eq!(with(0x7fff, Some(Value::Null)), Ok(condemnation(2, 1)));
        assert!(matches!(
            with(0x8000, Some(Value::Null)),
            Err(FormatError::TooNew { .. })
        ));
        for (key, value) in [
            (3, Some(Value::Uint(3))),
            (3, Some(Value::Uint(0))),
            (4, Some(Value::bytes(&SID_2.0))),
            (5, Some(Value::Uint(1))),
            (5, None),
            (7, None),
            (7, Some(Value::Uint(0))),
            (7, Some(Value::Uint(1))),
            (7, Some(Value::Uint(3))),
            (7, Some(Value::Uint(u64::MAX))),
            (14, Some(Value::Bytes(vec![0; 32]))),
            (14, None),
        ] {
            assert!(with(key, value.clone()).is_err(), "{key}: {value:?}");
        }
    }

    #[test]
    fn malformed_rows_are_refused() {
        let good = encode_packs(&[pack(1)]);
        let mut packs = Vec::new();
        assert_eq!(parse_packs(&good, &mut packs), Ok(()));
        for (index, byte) in [(32, 2), (33, 2), (34, 1), (35, 1)] {
            let mut wrong = good.clone();
            wrong[index] = byte;
            assert!(parse_packs(&wrong, &mut packs).is_err(), "byte {index}");
        }
        assert!(parse_packs(&[], &mut packs).is_err());
        assert!(parse_packs(&good[..39], &mut packs).is_err());
        assert!(check_order(&[pack(2), pack(1)]).is_err());
        assert!(check_order(&[pack(1), pack(1)]).is_err());
    }
}
