//! Outcomes `snap/<sid>` (format-spec chapter on outcomes): the one commit point of a session.
//!
//! Section 0 says how the session ended and which runs count; section 1, of commits and checkpoints, is the manifest, sealed once
//! more for holders of the metadata key. What may not be read may not be written either: [`Outcome::encode`] applies the same
//! checks as [`Outcome::decode`].

use super::FormatError;
use super::blob::{self, BlobType, Codec, Opened, Opener, Padding};
use super::cbor::{Fields, Value};
use super::codec::{Malformed, malformed};
use super::envelope::EnvelopeKind;
use super::manifest::Manifest;
use super::name::ObjectName;
use super::signed::{self, Class, Unsealed};
use crate::pure::base::Timestamp;
use crate::pure::compress::Compressor;
use crate::pure::crypto::{self, Domain, KeyRing, ObjectClass, Secret, Signer, Slot, Verifier, sign::role};
use crate::pure::id::{ChunkId, KeyId, ObjectHash, PackId, SessionId, SourceId};

const OUTCOME: Class = Class {
    kind: EnvelopeKind::Outcome,
    class: ObjectClass::Outcome,
    what: "outcome",
};
/// Bytes of a slot.
const SLOT_BYTES: usize = 88;
/// Manifests are small and written once per session: a moderate level is never felt.
const MANIFEST_ZSTD_LEVEL: i32 = 3;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeKind {
    Commit = 1,
    Checkpoint = 2,
    Maintenance = 3,
    /// Written by a maintainer in the place of a session that is dead.
    Fence = 4,
    Abandon = 5,
}

impl OutcomeKind {
    fn from_number(number: u64) -> Option<OutcomeKind> {
        Some(match number {
            1 => OutcomeKind::Commit,
            2 => OutcomeKind::Checkpoint,
            3 => OutcomeKind::Maintenance,
            4 => OutcomeKind::Fence,
            5 => OutcomeKind::Abandon,
            _ => return None,
        })
    }

    /// Whether such an outcome is a snapshot, and so has a manifest.
    pub fn has_manifest(self) -> bool {
        matches!(self, OutcomeKind::Commit | OutcomeKind::Checkpoint)
    }

    /// Role bits, one of which the signer must hold.
    fn roles(self) -> u32 {
        match self {
            OutcomeKind::Commit | OutcomeKind::Checkpoint | OutcomeKind::Abandon => role::WRITE,
            OutcomeKind::Maintenance | OutcomeKind::Fence => role::MAINTAIN,
        }
    }
}

/// Flags of an outcome (key 14).
pub mod flag {
    pub const PARTIAL: u64 = 1;
    pub const ERRORS: u64 = 2;
    pub const SET: u64 = 4;
}

/// An L≥1 run, accepted by the maintenance outcome that describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDescriptor {
    pub level: u8,
    /// Name after `idx/<level>-<session>-`, size in bytes, hash of the object.
    pub parts: Vec<(String, u64, ObjectHash)>,
    pub inputs: Vec<String>,
    pub dropped_packs: Vec<PackId>,
}

/// Section 0 of an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub kid: KeyId,
    pub created: Timestamp,
    pub kind: OutcomeKind,
    pub session: SessionId,
    /// Inclusive ranges of accepted L0 run numbers.
    pub accepted: Vec<(u32, u32)>,
    pub run: Option<RunDescriptor>,
    /// Id and plaintext length of the manifest.
    pub manifest: Option<(ChunkId, u64)>,
    /// Number in the chain of the signer, from 0.
    pub sequence: u64,
    /// The signer's outcome before this one.
    pub previous: Option<ObjectHash>,
    pub acked: Vec<SessionId>,
    pub pins: Vec<SessionId>,
    pub source: Option<SourceId>,
    /// Bits of [`flag`].
    pub flags: u64,
    /// Ascending by key: outcomes of the key up to and including the number may be missing.
    pub chain_floors: Vec<(KeyId, u64, ObjectHash)>,
}

/// An outcome as read: section 0, and section 1 still sealed.
#[derive(Clone, Debug)]
pub struct StoredOutcome {
    pub outcome: Outcome,
    pub object_id: [u8; 16],
    pub hash: ObjectHash,
    pub sealed_manifest: Option<(Slot, Vec<u8>)>,
}

impl Outcome {
    /// Encodes, signs and seals. `manifest` comes with the meta slot and session key under which its frame is sealed; the
    /// outcome's `manifest` field must name its id and length.
    ///
    /// # Errors
    /// If a key is missing, or the outcome is one that [`Outcome::decode`] would refuse.
    pub fn encode(
        &self,
        manifest: Option<(&[u8], &Slot, &Secret)>,
        keys: &KeyRing,
        signer: &Signer,
        object_id: [u8; 16],
    ) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let section = match (manifest, self.manifest) {
            (Some((raw, slot, session_key)), Some(named)) => Some(seal_manifest(raw, named, slot, session_key, keys)?),
            (None, None) => None,
            _ => return Ok(malformed("manifest is missing or not named")?),
        };
        let name = ObjectName::Outcome(self.session);
        let sections: Vec<&[u8]> = section.iter().map(Vec::as_slice).collect();
        OUTCOME.encode(
            &name,
            self.fields(),
            (self.kid, self.created),
            &sections,
            keys,
            signer,
            object_id,
        )
    }

    /// Opens and verifies section 0 (signature, role by kind, writer tag rule except for fences).
    ///
    /// # Errors
    /// If the object is not the outcome of exactly this session by somebody who may write it.
    pub fn decode(
        bytes: &[u8],
        session: &SessionId,
        keys: &KeyRing,
        verifier: &Verifier,
    ) -> Result<StoredOutcome, FormatError> {
        let name = ObjectName::Outcome(*session);
        let Unsealed {
            mut map,
            sections,
            object_id,
        } = OUTCOME.decode(bytes, &name, keys)?;
        let fields = &mut map.fields;
        let Some(kind) = OutcomeKind::from_number(fields.uint(3, "kind of outcome")?) else {
            return Ok(malformed("kind of outcome")?);
        };
        let outcome = Outcome {
            kid: map.kid,
            created: map.created,
            kind,
            session: SessionId(fields.byte_array(4, "session")?),
            accepted: signed::parse_ranges(fields.required(5, "accepted runs")?)?,
            run: fields.optional(6).map(RunDescriptor::decode).transpose()?,
            manifest: decode_manifest_name(fields)?,
            sequence: fields.uint(9, "writer sequence")?,
            previous: match fields.required(10, "previous outcome")? {
                Value::Null => None,
                value => Some(ObjectHash(value.into_byte_array("previous outcome")?)),
            },
            acked: signed::take_session_ids(fields, 11, "acknowledged generations")?,
            pins: signed::take_session_ids(fields, 12, "pins")?,
            source: fields
                .optional(13)
                .map(|value| value.into_byte_array("source"))
                .transpose()?
                .map(SourceId),
            flags: fields.uint_or(14, 0, "flags")?,
            chain_floors: decode_chain_floors(fields.optional(16))?,
        };
        let hash = ObjectHash(crypto::hash(bytes));
        map.verify_even_if_revoked(verifier, kind.roles(), &name)?;
        verifier.check_in_time(&outcome.kid, outcome.sequence, &hash)?;
        outcome.check()?;
        if outcome.session != *session {
            return Ok(malformed("session differs from the name")?);
        }
        let sealed_manifest = match (kind.has_manifest(), sections.as_slice()) {
            (true, [section]) => Some(split_manifest(section)?),
            (false, []) => None,
            _ => return Ok(malformed("number of sections")?),
        };
        Ok(StoredOutcome {
            outcome,
            object_id,
            hash,
            sealed_manifest,
        })
    }

    /// Says whether an L0 run counts.
    pub fn accepts(&self, number: u32) -> bool {
        self.accepted
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// Checks what must hold between the fields.
    fn check(&self) -> Result<(), FormatError> {
        if self.kind != OutcomeKind::Fence {
            signed::check_writer_tag(&self.session, &self.kid)?;
        }
        signed::check_ranges(&self.accepted)?;
        Ok(self.check_fields()?)
    }

    fn check_fields(&self) -> Result<(), Malformed> {
        if self.previous.is_none() != (self.sequence == 0) {
            return malformed("previous outcome does not fit the writer sequence");
        }
        let is_snapshot = self.kind.has_manifest();
        if self.manifest.is_some() != is_snapshot || self.source.is_some() != is_snapshot {
            return malformed("manifest or source does not fit the kind of outcome");
        }
        if self
            .manifest
            .is_some_and(|(_, len)| len == 0 || len > blob::RAW_BYTES_MAX as u64)
        {
            return malformed("length of the manifest");
        }
        // Only maintenance replaces runs and takes outcomes away: nobody else may declare that some are rightly missing.
        if self.kind != OutcomeKind::Maintenance && (self.run.is_some() || !self.chain_floors.is_empty()) {
            return malformed("run descriptor or chain floors outside of maintenance");
        }
        if self.chain_floors.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return malformed("chain floors out of order");
        }
        self.run.as_ref().map_or(Ok(()), |run| run.check(&self.session))
    }

    /// The map without what every signed map has.
    fn fields(&self) -> Vec<(u64, Value)> {
        let mut fields = vec![
            (3, Value::Uint(self.kind as u64)),
            (4, Value::bytes(self.session.as_bytes())),
            (5, signed::ranges(&self.accepted)),
            (9, Value::Uint(self.sequence)),
            (
                10,
                self.previous
                    .as_ref()
                    .map_or(Value::Null, |hash| Value::bytes(hash.as_bytes())),
            ),
            (11, signed::session_ids(&self.acked)),
            (12, signed::session_ids(&self.pins)),
        ];
        fields.extend(self.run.as_ref().map(|run| (6, run.encode())));
        if let Some((id, len)) = &self.manifest {
            fields.push((7, Value::bytes(id.as_bytes())));
            fields.push((8, Value::Uint(*len)));
        }
        fields.extend(self.source.as_ref().map(|source| (13, Value::bytes(source.as_bytes()))));
        if self.flags != 0 {
            fields.push((14, Value::Uint(self.flags)));
        }
        if !self.chain_floors.is_empty() {
            let floors = Value::array(&self.chain_floors, |(kid, sequence, hash)| {
                Value::Array(vec![
                    Value::bytes(kid.as_bytes()),
                    Value::Uint(*sequence),
                    Value::bytes(hash.as_bytes()),
                ])
            });
            fields.push((16, floors));
        }
        fields
    }
}

impl RunDescriptor {
    fn encode(&self) -> Value {
        let parts = Value::array(&self.parts, |(suffix, size, hash)| {
            Value::Array(vec![
                Value::text(suffix),
                Value::Uint(*size),
                Value::bytes(hash.as_bytes()),
            ])
        });
        let mut fields = vec![(0, Value::Uint(self.level.into())), (1, parts)];
        if !self.inputs.is_empty() {
            fields.push((2, Value::array(&self.inputs, |name| Value::text(name))));
        }
        if !self.dropped_packs.is_empty() {
            fields.push((
                3,
                Value::Bytes(self.dropped_packs.iter().flat_map(|pack| *pack.as_bytes()).collect()),
            ));
        }
        Value::map(fields)
    }

    fn decode(value: Value) -> Result<RunDescriptor, FormatError> {
        let mut fields = Fields::new(value, "run descriptor")?;
        let Ok(level) = u8::try_from(fields.uint(0, "level of the run")?) else {
            return Ok(malformed("level of the run")?);
        };
        let mut parts = Vec::new();
        for row in fields.required(1, "parts of the run")?.into_array("parts of the run")? {
            let what = "part of the run";
            let [suffix, size, hash] = row.into_row(what)?;
            parts.push((
                suffix.into_text(what)?,
                size.into_uint(what)?,
                ObjectHash(hash.into_byte_array(what)?),
            ));
        }
        let inputs = fields.array_or_empty(2, "inputs of the run")?;
        let inputs = inputs
            .into_iter()
            .map(|name| name.into_text("input of the run"))
            .collect::<Result<_, _>>()?;
        let dropped = fields
            .optional(3)
            .map_or(Ok(Vec::new()), |value| value.into_bytes("dropped packs"))?;
        let (dropped, rest) = dropped.as_chunks::<16>();
        if !rest.is_empty() {
            return Ok(malformed("dropped packs")?);
        }
        Ok(RunDescriptor {
            level,
            parts,
            inputs,
            dropped_packs: dropped.iter().map(|id| PackId(*id)).collect(),
        })
    }

    /// Object names are made out of these texts: only those of run objects may come of it.
    fn check(&self, session: &SessionId) -> Result<(), Malformed> {
        if !(1..=9).contains(&self.level) {
            return malformed("level of the run");
        }
        for (suffix, _, _) in &self.parts {
            let part = ObjectName::RunPart(self.level, *session, suffix.clone());
            if ObjectName::parse(&part.to_string()) != Some(part) {
                return malformed("name of a part of the run");
            }
        }
        let in_index = |name: &String| {
            let rest = name.strip_prefix("idx/").unwrap_or("");
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if self.inputs.iter().all(in_index) {
            Ok(())
        } else {
            malformed("name of an input of the run")
        }
    }
}

impl StoredOutcome {
    /// Opens the manifest.
    ///
    /// # Errors
    /// If the metadata key is missing, or the manifest does not open, is not what section 0 names, or is malformed.
    pub fn manifest(&self, keys: &KeyRing) -> Result<Option<Manifest>, FormatError> {
        let (Some((slot, frame)), Some((id, len))) = (&self.sealed_manifest, &self.outcome.manifest) else {
            return Ok(None);
        };
        let (domain, key) = keys.open_slot(slot)?;
        if domain != Domain::Meta {
            return Ok(malformed("slot of the manifest")?);
        }
        let mut raw = Vec::new();
        match blob::open_frame(frame, &key, keys, BlobType::Manifest, id, &mut Opener::new(), &mut raw)? {
            Opened::Done if raw.len() as u64 == *len => Ok(Some(Manifest::decode(&raw)?)),
            Opened::Done => Ok(malformed("length of the manifest")?),
            Opened::NeedsBase { .. } => Ok(malformed("manifest stored as a delta")?),
        }
    }
}

/// Returns section 1: slot ‖ frame.
fn seal_manifest(
    raw: &[u8],
    (id, len): (ChunkId, u64),
    slot: &Slot,
    session_key: &Secret,
    keys: &KeyRing,
) -> Result<Vec<u8>, FormatError> {
    if raw.len() as u64 != len {
        return Ok(malformed("length of the manifest")?);
    }
    if keys.meta_id(raw)? != id {
        return Err(FormatError::WrongId);
    }
    let raw_len = u32::try_from(len).or_else(|_| malformed("length of the manifest"))?;
    let mut compressed = Vec::new();
    let (codec, payload) = match Compressor::new(MANIFEST_ZSTD_LEVEL).compress(raw, &mut compressed) {
        true => (Codec::Zstd, compressed.as_slice()),
        false => (Codec::Raw, raw),
    };
    let key = keys.blob_key(Domain::Meta, session_key);
    let mut section = slot.0.to_vec();
    let (repo, ty) = (keys.repo(), BlobType::Manifest);
    blob::seal_frame(
        &mut section,
        &key,
        repo,
        0,
        ty,
        &id,
        codec,
        raw_len,
        payload,
        Padding::None,
    );
    Ok(section)
}

/// Parts section 1. There is one slot, so the frame's slot index is 0.
fn split_manifest(section: &[u8]) -> Result<(Slot, Vec<u8>), FormatError> {
    let Some((slot, frame)) = section.split_first_chunk::<SLOT_BYTES>() else {
        return Ok(malformed("section of the manifest")?);
    };
    if blob::slot_index(frame)? != 0 {
        return Ok(malformed("slot index of the manifest")?);
    }
    Ok((Slot(*slot), frame.to_vec()))
}

fn decode_manifest_name(fields: &mut Fields) -> Result<Option<(ChunkId, u64)>, Malformed> {
    let what = "manifest id and length";
    match (fields.optional(7), fields.optional(8)) {
        (Some(id), Some(len)) => Ok(Some((ChunkId(id.into_byte_array(what)?), len.into_uint(what)?))),
        (None, None) => Ok(None),
        _ => malformed(what),
    }
}

fn decode_chain_floors(value: Option<Value>) -> Result<Vec<(KeyId, u64, ObjectHash)>, Malformed> {
    let what = "chain floor";
    let mut floors = Vec::new();
    for row in value.map_or(Ok(Vec::new()), |value| value.into_array(what))? {
        let [kid, sequence, hash] = row.into_row(what)?;
        floors.push((
            KeyId(kid.into_byte_array(what)?),
            sequence.into_uint(what)?,
            ObjectHash(hash.into_byte_array(what)?),
        ));
    }
    Ok(floors)
}

#[cfg(test)]
mod tests {
    use super::signed::fixture::*;
    use super::*;
    use crate::pure::crypto::sign::BadSignature;
    use crate::pure::id::from_hex;

    const VECTOR: &str = "4c41524445524f310201000001000000101112131415161718191a1b1c1d1e1f808182838485868788898a8b8c8d8e8f0200000000000000000000000000000000000000cb000000cb000000e50000005d15ab383ae5e99a02db10097d29195c0a2c7da9349fbfe7c39686314233c95c39cc66a4bdd66ec5619705451de193e0bb5f4bf06cc3a4c2a78da4032de14abc2c7863d81b99c596d15b9cc26286b282a48505dd3c44703603a91cc6feb6e9e39d40f197e3719d2cc111b5b3965fcabf112f8940a4980146518c7872e83c1978e6fb0022f323c3b1b427f9e20b5a50d8b5897077b330d952cc5a123c15cb6a444c1d806e3ee5afdb0438dc0614e9a8260222e14cf90d7a5dff68a28b2f7afc58f8556ad4c92fcf5ed762848b21af09c5c067c508705d5d3d3c27db0df99f6d920f2eed6c7454d1d3574e1be52ba5a9c0be53c20d39f3d251b7c4228d994cd0f388805aebd811c493a270a97ec00e966108172aeeb38a5558d277340aee448fd8137cde0b03619d6d855ac19c29e7da6263f185fa712a211928a2bef0d6909b14d6eba46d79a62f32d9492ab7d6445185030f2cdd183d8fe8925a8536aa250390750866e55e72c9ea8388c2002e9fb8431fc932df44691a89bb5e64e39217bf83a46bb0b6c81c111f527594229cc1f61a88f50e0d2511e430083baa9a7142977eb84f52f6c568ddf03f1bf9cd98d138f772ffb7e85196ce530b2e302bd14d94a73f8a5648924758453128f377e689bd564c41524445524531";
    const HASH: &str = "c80f37dd789169971257787981cf6ca9aa3e1aac2f367ed3bd94e6ecb0889f6e";
    const MANIFEST: &str = "a6000101a300503333333333333333333333333333333301000264686f7374021b17979cfe362a0000031b17979cfead5f94000481a600412f0100025820110c97835c3e0bda4d75b53cd406e55aeb98fd6f773465bc8396221bf9c980340300040305100580";

    fn raw() -> Vec<u8> {
        from_hex(MANIFEST).unwrap()
    }

    fn session_key() -> Secret {
        Secret::new(std::array::from_fn(|index| 0x60 + index as u8))
    }

    fn slot() -> Slot {
        let salt = std::array::from_fn(|index| 0x20 + index as u8);
        keys().wrap_session_key(Domain::Meta, &session_key(), &salt).unwrap()
    }

    fn commit() -> Outcome {
        Outcome {
            kid: KID,
            created: Timestamp(START.0 + 2_000_000_000),
            kind: OutcomeKind::Commit,
            session: SID,
            accepted: vec![(0, 0)],
            run: None,
            manifest: Some((keys().meta_id(&raw()).unwrap(), raw().len() as u64)),
            sequence: 0,
            previous: None,
            acked: vec![],
            pins: vec![],
            source: Some(SourceId([0x33; 16])),
            flags: 0,
            chain_floors: vec![],
        }
    }

    fn end(kind: OutcomeKind) -> Outcome {
        Outcome {
            kind,
            manifest: None,
            source: None,
            ..commit()
        }
    }

    fn maintenance() -> Outcome {
        let run = RunDescriptor {
            level: 1,
            parts: vec![
                ("p0000".into(), 500, ObjectHash([1; 32])),
                ("c0000-0000-ffff".into(), 7, ObjectHash([2; 32])),
            ],
            inputs: vec![format!("idx/0-{SID}-0000")],
            dropped_packs: vec![PackId([3; 16]), PackId([4; 16])],
        };
        let floor = |byte| (KeyId([byte; 16]), 5, ObjectHash([byte; 32]));
        Outcome {
            run: Some(run),
            chain_floors: vec![floor(1), floor(2)],
            ..end(OutcomeKind::Maintenance)
        }
    }

    fn encode(outcome: &Outcome) -> Result<Vec<u8>, FormatError> {
        let (raw, slot, session_key) = (raw(), slot(), session_key());
        let manifest = outcome
            .manifest
            .is_some()
            .then_some((raw.as_slice(), &slot, &session_key));
        outcome.encode(manifest, &keys(), &signer(), OBJECT_ID)
    }

    fn decode(bytes: &[u8], verifier: &Verifier) -> Result<StoredOutcome, FormatError> {
        Outcome::decode(bytes, &SID, &keys(), verifier)
    }

    #[test]
    fn commit_has_the_bytes_of_the_vectors_and_its_manifest_opens() {
        let bytes = encode(&commit()).unwrap();
        assert_eq!(bytes, from_hex(VECTOR).unwrap());
        let stored = decode(&bytes, &verifier(role::WRITE)).unwrap();
        assert_eq!(stored.outcome, commit());
        assert_eq!(stored.hash.to_string(), HASH);
        assert_eq!(stored.object_id, OBJECT_ID);
        assert_eq!(stored.manifest(&keys()).unwrap().unwrap().encode(), raw());
    }

    #[test]
    fn outcomes_of_every_kind_round_trip() {
        let later = Outcome {
            kind: OutcomeKind::Checkpoint,
            accepted: vec![(0, 3), (5, 5)],
            sequence: 9,
            previous: Some(ObjectHash([8; 32])),
            acked: vec![SessionId([1; 16])],
            pins: vec![SessionId([3; 16]), SessionId([2; 16])],
            flags: flag::PARTIAL | flag::ERRORS,
            ..commit()
        };
        for outcome in [later, maintenance(), end(OutcomeKind::Abandon), end(OutcomeKind::Fence)] {
            let stored = decode(&encode(&outcome).unwrap(), &verifier(role::ADMIN)).unwrap();
            assert_eq!(stored.outcome, outcome);
            assert_eq!(stored.manifest(&keys()).unwrap().is_some(), outcome.kind.has_manifest());
        }
    }

    #[test]
    fn large_manifest_is_compressed_and_opens() {
        let mut manifest = Manifest::decode(&raw()).unwrap();
        manifest.tags = (0..2000).map(|number| format!("tag-{number:05}")).collect();
        let raw = manifest.encode();
        let outcome = Outcome {
            manifest: Some((keys().meta_id(&raw).unwrap(), raw.len() as u64)),
            ..commit()
        };
        let bytes = outcome
            .encode(Some((&raw, &slot(), &session_key())), &keys(), &signer(), OBJECT_ID)
            .unwrap();
        assert!(bytes.len() < raw.len());
        assert_eq!(
            decode(&bytes, &verifier(role::WRITE)).unwrap().manifest(&keys()),
            Ok(Some(manifest))
        );
    }

    #[test]
    fn any_change_and_another_session_are_refused() {
        for outcome in [commit(), maintenance()] {
            let (bytes, admin, keys) = (encode(&outcome).unwrap(), verifier(role::ADMIN), keys());
            assert_fragile(&bytes, ENVELOPE_TAIL, |bytes| {
                Outcome::decode(bytes, &SID, &keys, &admin)
            });
            assert!(Outcome::decode(&bytes, &SID_2, &keys, &admin).is_err());
        }
    }

    #[test]
    fn each_kind_needs_its_role_and_a_key_that_is_not_revoked() {
        let table = [
            (commit(), role::WRITE),
            (
                Outcome {
                    kind: OutcomeKind::Checkpoint,
                    ..commit()
                },
                role::WRITE,
            ),
            (end(OutcomeKind::Abandon), role::WRITE),
            (maintenance(), role::MAINTAIN),
            (end(OutcomeKind::Fence), role::MAINTAIN),
        ];
        for (outcome, roles) in table {
            let bytes = encode(&outcome).unwrap();
            assert_needs_role(roles, |verifier| decode(&bytes, verifier));
            let error = decode(&bytes, &revoked(role::ADMIN)).unwrap_err();
            assert_eq!(error, FormatError::Signature(BadSignature::Revoked(KID)));
        }
    }

    #[test]
    fn outcomes_of_a_revoked_key_count_up_to_the_end_of_its_chain() {
        let first = encode(&commit()).unwrap();
        let second = encode(&Outcome {
            sequence: 1,
            previous: Some(ObjectHash(crypto::hash(&first))),
            ..commit()
        })
        .unwrap();
        let with_end = |sequence, hash: &[u8]| {
            let mut verifier = revoked(role::WRITE);
            verifier.writers[0].chain_end = Some((sequence, ObjectHash(crypto::hash(hash))));
            verifier
        };
        assert!(decode(&first, &with_end(0, &first)).is_ok());
        assert!(decode(&second, &with_end(0, &first)).is_err(), "later than the end");
        assert!(decode(&first, &with_end(1, &second)).is_ok());
        assert!(decode(&second, &with_end(1, &second)).is_ok());
        assert!(
            decode(&second, &with_end(1, &first)).is_err(),
            "in the place of the last"
        );
        let mut other_role = with_end(1, &second);
        other_role.writers[0].roles = role::FORGET;
        assert!(decode(&first, &other_role).is_err());
    }

    #[test]
    fn only_a_fence_may_end_another_writers_session() {
        let admin = Verifier {
            writers: vec![writer(&other_signer(), role::ADMIN)],
        };
        let encode = |kind| {
            let outcome = Outcome {
                kid: OTHER_KID,
                ..end(kind)
            };
            // Past the check of the encoder.
            let name = ObjectName::Outcome(SID);
            OUTCOME
                .encode(
                    &name,
                    outcome.fields(),
                    (OTHER_KID, START),
                    &[],
                    &keys(),
                    &other_signer(),
                    OBJECT_ID,
                )
                .unwrap()
        };
        assert!(decode(&encode(OutcomeKind::Fence), &admin).is_ok());
        assert!(decode(&encode(OutcomeKind::Abandon), &admin).is_err());
        assert!(decode(&encode(OutcomeKind::Maintenance), &admin).is_err());
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let run = |change: fn(&mut RunDescriptor)| {
            let mut outcome = maintenance();
            change(outcome.run.as_mut().unwrap());
            outcome
        };
        let floors: Vec<_> = maintenance().chain_floors.into_iter().rev().collect();
        for (outcome, what) in [
            (
                Outcome {
                    sequence: 1,
                    ..commit()
                },
                "no predecessor",
            ),
            (
                Outcome {
                    previous: Some(ObjectHash([0; 32])),
                    ..commit()
                },
                "predecessor of the first",
            ),
            (
                Outcome {
                    manifest: None,
                    ..commit()
                },
                "commit without a manifest",
            ),
            (
                Outcome {
                    source: None,
                    ..commit()
                },
                "commit without a source",
            ),
            (
                Outcome {
                    kind: OutcomeKind::Abandon,
                    ..commit()
                },
                "abandon with a manifest",
            ),
            (
                Outcome {
                    kind: OutcomeKind::Abandon,
                    ..maintenance()
                },
                "run outside of maintenance",
            ),
            (
                Outcome {
                    chain_floors: maintenance().chain_floors,
                    ..commit()
                },
                "floors outside of maintenance",
            ),
            (
                Outcome {
                    chain_floors: floors,
                    ..maintenance()
                },
                "floors out of order",
            ),
            (
                Outcome {
                    accepted: vec![(1, 0)],
                    ..commit()
                },
                "empty range",
            ),
            (
                Outcome {
                    session: SessionId([9; 16]),
                    ..commit()
                },
                "tag of another writer",
            ),
            (
                Outcome {
                    manifest: Some((ChunkId([0; 32]), raw().len() as u64)),
                    ..commit()
                },
                "another manifest",
            ),
            (run(|run| run.level = 0), "level 0"),
            (run(|run| run.level = 10), "level 10"),
            (run(|run| run.parts[0].0 = "x0000".into()), "no part"),
            (
                run(|run| run.parts[0].0 = "p0000/../../../snap".into()),
                "a part elsewhere",
            ),
            (run(|run| run.inputs[0] = "snap/x".into()), "an input elsewhere"),
        ] {
            assert!(encode(&outcome).is_err(), "{what}");
        }
        let without = commit().encode(None, &keys(), &signer(), OBJECT_ID);
        assert!(without.is_err());
    }

    #[test]
    fn contents_must_fit_and_unknown_keys_are_ignored_unless_critical() {
        let name = ObjectName::Outcome(SID);
        let bytes = encode(&commit()).unwrap();
        let with = |key, value| {
            let bytes = reseal(OUTCOME, &bytes, &name, vec![(key, value)]);
            decode(&bytes, &verifier(role::ADMIN)).map(|stored| stored.outcome)
        };
        assert!(with(0x7fff, Some(Value::Null)).is_ok());
        assert!(matches!(
            with(0x8000, Some(Value::Null)),
            Err(FormatError::TooNew { .. })
        ));
        for key in [3, 4, 5, 7, 8, 9, 10, 13] {
            assert!(with(key, None).is_err(), "key {key} is missing");
        }
        assert!(with(3, Some(Value::Uint(6))).is_err());
        assert!(with(3, Some(Value::Uint(5))).is_err());
        assert!(with(4, Some(Value::bytes(&SID_2.0))).is_err());
        assert!(with(8, Some(Value::Uint(0))).is_err());
        assert!(with(8, Some(Value::Uint((16 << 20) + 1))).is_err());
        assert!(with(14, Some(Value::Uint(u64::MAX))).is_ok());
        // The length is checked where the manifest is opened.
        let bytes = reseal(OUTCOME, &bytes, &name, vec![(8, Some(Value::Uint(5)))]);
        assert!(
            decode(&bytes, &verifier(role::WRITE))
                .unwrap()
                .manifest(&keys())
                .is_err()
        );
    }

    #[test]
    fn accepted_runs_are_inclusive() {
        let outcome = Outcome {
            accepted: vec![(1, 2), (5, 5)],
            ..commit()
        };
        let accepted: Vec<u32> = (0..7).filter(|number| outcome.accepts(*number)).collect();
        assert_eq!(accepted, [1, 2, 5]);
    }
}
