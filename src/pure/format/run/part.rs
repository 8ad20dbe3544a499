//! Runs of level 1 and above (format-spec chapter 8.3): one object for slots, one for packs, and one for each range of chunk ids;
//! or several, where one would be too large.

use super::{Place, RunChunk, RunContent, RunDelta, RunPack, assemble_as, check_chunks, check_deltas, check_pack};
use super::{check_slots, check_writer_tag, decode_object};
use crate::pure::base::Timestamp;
use crate::pure::crypto::sign::role;
use crate::pure::crypto::{KeyRing, Signer, Slot, Verifier};
use crate::pure::format::codec::malformed;
use crate::pure::format::name::{ObjectName, PartKind};
use crate::pure::format::{FormatError, Malformed};
use crate::pure::id::{KeyId, SessionId};

/// What one part of a run holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartContent {
    /// `first`: index of the first slot within the whole run.
    Slots { first: u32, slots: Vec<Slot> },
    /// `first`: rank of the first pack within the whole run.
    Packs { first: u32, packs: Vec<RunPack> },
    /// Never empty. Delta records go with their chunk records.
    Chunks {
        chunks: Vec<RunChunk>,
        deltas: Vec<RunDelta>,
    },
}

/// Whose part it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartIdentity {
    pub kid: KeyId,
    pub created: Timestamp,
    /// 1 to 9.
    pub level: u8,
    pub session: SessionId,
    /// Among the parts of its kind.
    pub number: u32,
}

/// Returns the name under which a run of level 1 and above is known, for instance to those that absorb it. No object has it.
pub fn run_name(level: u8, session: &SessionId) -> String {
    format!("idx/{level}-{session}")
}

/// Encodes, signs and seals a part; returns the end of its name with it. `object_id` is random.
///
/// # Errors
/// The content breaks a rule that a reader would refuse it for, the identity is not the signer's, or the key ring cannot seal
/// runs.
pub fn encode(
    content: &PartContent,
    identity: &PartIdentity,
    keys: &KeyRing,
    signer: &Signer,
    object_id: [u8; 16],
) -> Result<(String, Vec<u8>), FormatError> {
    if identity.kid != signer.kid() {
        malformed("run signed by another key")?;
    }
    check_writer_tag(&identity.session, &identity.kid)?;
    check_alone(content)?;
    let mut whole = RunContent::default();
    let (part, first_index) = match content {
        PartContent::Packs { first, packs } => {
            whole.packs.clone_from(packs);
            (1, Some(*first))
        }
        PartContent::Slots { first, slots } => {
            whole.slots.clone_from(slots);
            (2, Some(*first))
        }
        PartContent::Chunks { chunks, deltas } => {
            whole.chunks.clone_from(chunks);
            whole.deltas.clone_from(deltas);
            (3, None)
        }
    };
    let suffix = suffix(content, identity.number);
    let name = ObjectName::RunPart(identity.level, identity.session, suffix.clone());
    if ObjectName::parse(&name.to_string()) != Some(name.clone()) {
        malformed("name of a part of the run")?;
    }
    let place = Place {
        kid: identity.kid,
        created: identity.created,
        level: identity.level,
        session: identity.session,
        number: 0,
        part,
        part_number: Some(identity.number),
        first_index,
    };
    let sealed = assemble_as(&whole, &place, &name.to_string(), keys, signer, object_id)?;
    Ok((suffix, sealed))
}

fn suffix(content: &PartContent, number: u32) -> String {
    match content {
        PartContent::Packs { .. } => format!("p{number:04}"),
        PartContent::Slots { .. } => format!("s{number:04}"),
        PartContent::Chunks { chunks, .. } => {
            let bound = |chunk: Option<&RunChunk>| {
                let id = chunk.map_or([0; 32], |chunk| chunk.id.0);
                u16::from_be_bytes([id[0], id[1]])
            };
            format!(
                "c{number:04}-{:04x}-{:04x}",
                bound(chunks.first()),
                bound(chunks.last())
            )
        }
    }
}

/// Opens, verifies and decodes a part. `name` is the object's name. Whether chunks and packs fit together is seen when all parts
/// are there: [`check_head`] and [`check_part`].
///
/// # Errors
/// Anything that is not exactly a part of that name by a key that may maintain; one revoked since is accepted, as for L0 runs.
pub fn decode(
    bytes: &[u8],
    name: &str,
    keys: &KeyRing,
    verifier: &Verifier,
) -> Result<(PartIdentity, PartContent), FormatError> {
    let Some(object_name @ ObjectName::RunPart(level, session, _)) = ObjectName::parse(name) else {
        return Ok(malformed("name of a part of a run")?);
    };
    let ObjectName::RunPart(_, _, part) = &object_name else {
        return Ok(malformed("name of a part of a run")?);
    };
    let Some((kind, number)) = PartKind::parse(part) else {
        return Ok(malformed("name of a part of a run")?);
    };
    let (header, content) = decode_object(bytes, name, &object_name, role::MAINTAIN, keys, verifier)?;
    let first = header.first_index.unwrap_or(0);
    let content = match kind {
        PartKind::Packs => PartContent::Packs {
            first,
            packs: content.packs,
        },
        PartKind::Slots => PartContent::Slots {
            first,
            slots: content.slots,
        },
        PartKind::Chunks { first, last } => {
            // Whoever looks for an id goes by the names.
            let within = |chunk: &RunChunk| (first..=last).contains(&[chunk.id.0[0], chunk.id.0[1]]);
            if !content.chunks.iter().all(within) {
                malformed("run chunk beyond the bounds of its part")?;
            }
            PartContent::Chunks {
                chunks: content.chunks,
                deltas: content.deltas,
            }
        }
    };
    check_alone(&content)?;
    let identity = PartIdentity {
        kid: header.kid,
        created: header.created,
        level,
        session,
        number,
    };
    Ok((identity, content))
}

/// What can be checked of a part by itself.
fn check_alone(content: &PartContent) -> Result<(), Malformed> {
    match content {
        PartContent::Slots { .. } => Ok(()),
        PartContent::Packs { packs, .. } => {
            if !packs.is_sorted_by(|left, right| left.pack < right.pack) {
                return malformed("run pack order");
            }
            packs.iter().try_for_each(check_pack)
        }
        PartContent::Chunks { chunks, deltas } => {
            if chunks.is_empty() {
                return malformed("run part without chunks");
            }
            if !chunks.is_sorted_by(|left, right| (left.id, left.pack_ix) < (right.id, right.pack_ix)) {
                return malformed("run chunk order");
            }
            check_deltas(chunks, deltas)
        }
    }
}

/// Checks the slots and packs of all parts together: `head` has them in the order of the part numbers.
///
/// # Errors
/// A pack out of order, or one whose slots are not there or of another kind.
pub fn check_head(head: &RunContent) -> Result<(), Malformed> {
    if !head.packs.is_sorted_by(|left, right| left.pack < right.pack) {
        return malformed("run pack order");
    }
    head.packs.iter().try_for_each(|pack| check_slots(pack, &head.slots))
}

/// Checks chunks against the packs of the whole run, and that they come behind `after`, the last chunk of the part before.
///
/// # Errors
/// A chunk out of order, or one that no pack can hold.
pub fn check_part(chunks: &[RunChunk], head: &RunContent, after: Option<&RunChunk>) -> Result<(), Malformed> {
    if let (Some(after), Some(first)) = (after, chunks.first())
        && (after.id, after.pack_ix) >= (first.id, first.pack_ix)
    {
        return malformed("run chunk order");
    }
    check_chunks(chunks, &head.packs)
}

#[cfg(test)]
mod tests {
    use super::super::StoredAs;
    use super::*;
    use crate::pure::crypto::Domain;
    use crate::pure::crypto::vectors::*;
    use crate::pure::format::name::PackKind;
    use crate::pure::id::{ChunkId, PackId};

    const OBJECT_ID: [u8; 16] = [7; 16];

    fn identity(number: u32) -> PartIdentity {
        PartIdentity {
            kid: kid(),
            created: Timestamp(5),
            level: 1,
            session: SESSION,
            number,
        }
    }

    fn maintainer() -> Verifier {
        verifier(role::MAINTAIN)
    }

    fn pack(number: u8) -> RunPack {
        RunPack {
            pack: PackId([number; 16]),
            session: SESSION,
            size: 100_000,
            blob_count: 9,
            kind: PackKind::Data,
            slots: 0..1,
            crc64nvme: 1,
            body_hash24: [number; 24],
        }
    }

    fn chunk(first: u8, pack_ix: u32, stored_as: StoredAs) -> RunChunk {
        let mut id = [9; 32];
        id[0] = first;
        RunChunk {
            id: ChunkId(id),
            pack_ix,
            offset: 64,
            stored_as,
            stored_len: 500,
        }
    }

    fn parts() -> Vec<PartContent> {
        let slot = keys()
            .wrap_session_key(Domain::Data, &session_key_data(), &counting(0x40))
            .unwrap();
        let delta = chunk(4, 1, StoredAs::Delta);
        vec![
            PartContent::Slots {
                first: 0,
                slots: vec![slot],
            },
            PartContent::Packs {
                first: 0,
                packs: vec![pack(1), pack(2)],
            },
            PartContent::Chunks {
                chunks: vec![chunk(3, 0, StoredAs::Data), delta],
                deltas: vec![RunDelta {
                    id: delta.id,
                    pack_ix: 1,
                    base: chunk(3, 0, StoredAs::Data).id,
                }],
            },
        ]
    }

    fn sealed(part: &PartContent) -> (String, Vec<u8>) {
        let (suffix, bytes) = encode(part, &identity(0), &keys(), &signer(), OBJECT_ID).unwrap();
        (format!("idx/1-{SESSION}-{suffix}"), bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        for (part, suffix) in parts().iter().zip(["s0000", "p0000", "c0000-0309-0409"]) {
            let (name, bytes) = sealed(part);
            assert!(name.ends_with(suffix), "{name}");
            assert_eq!(
                decode(&bytes, &name, &keys(), &maintainer()),
                Ok((identity(0), part.clone()))
            );
        }
    }

    #[test]
    fn a_part_has_one_name_and_a_maintainer_signs_it() {
        let (name, bytes) = sealed(&parts()[2]);
        for other in ["c0001-0309-0409", "c0000-0309-0410", "c0000-0300-0409", "p0000"] {
            let other = format!("idx/1-{SESSION}-{other}");
            assert!(decode(&bytes, &other, &keys(), &maintainer()).is_err(), "{other}");
        }
        assert!(decode(&bytes, &name.replace("/1-", "/2-"), &keys(), &maintainer()).is_err());
        assert!(decode(&bytes, &name, &keys(), &verifier(role::WRITE)).is_err());
        for byte in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 1;
            assert!(decode(&damaged, &name, &keys(), &maintainer()).is_err(), "{byte}");
        }
    }

    #[test]
    fn content_that_breaks_a_rule_is_not_written() {
        let refused = |part: PartContent| encode(&part, &identity(0), &keys(), &signer(), OBJECT_ID).is_err();
        assert!(refused(PartContent::Chunks {
            chunks: Vec::new(),
            deltas: Vec::new()
        }));
        assert!(refused(PartContent::Chunks {
            chunks: vec![chunk(4, 0, StoredAs::Data), chunk(3, 0, StoredAs::Data)],
            deltas: Vec::new()
        }));
        assert!(
            refused(PartContent::Chunks {
                chunks: vec![chunk(4, 0, StoredAs::Delta)],
                deltas: Vec::new()
            }),
            "a delta without a base"
        );
        assert!(refused(PartContent::Packs {
            first: 0,
            packs: vec![pack(2), pack(2)]
        }));
    }

    #[test]
    fn parts_are_checked_against_the_whole() {
        let PartContent::Slots { slots, .. } = &parts()[0] else {
            unreachable!()
        };
        let head = |packs: Vec<RunPack>| RunContent {
            slots: slots.clone(),
            packs,
            ..RunContent::default()
        };
        let whole = head(vec![pack(1), pack(2)]);
        assert_eq!(check_head(&whole), Ok(()));
        assert!(check_head(&head(vec![pack(2), pack(1)])).is_err(), "out of order");
        let beyond = RunPack { slots: 0..2, ..pack(3) };
        assert!(check_head(&head(vec![beyond])).is_err(), "a slot that is not there");
        let meta = RunPack {
            kind: PackKind::Meta,
            ..pack(3)
        };
        assert!(check_head(&head(vec![meta])).is_err(), "a slot of the other domain");

        let chunks = [chunk(3, 0, StoredAs::Data), chunk(4, 1, StoredAs::Data)];
        assert_eq!(check_part(&chunks, &whole, None), Ok(()));
        assert_eq!(check_part(&chunks, &whole, Some(&chunk(2, 5, StoredAs::Data))), Ok(()));
        assert!(check_part(&chunks, &whole, Some(&chunks[0])).is_err(), "not behind it");
        assert!(check_part(&[chunk(3, 2, StoredAs::Data)], &whole, None).is_err());
        assert!(check_part(&[chunk(3, 0, StoredAs::Node)], &whole, None).is_err());
        let long = RunChunk {
            stored_len: 99_900,
            ..chunk(3, 0, StoredAs::Data)
        };
        assert!(check_part(&[long], &whole, None).is_err());
    }
}
