//! Signed maps: what configurations, grants, sessions, outcomes, condemnations and marks have in common (format-spec chapters 2
//! and 4). The signature covers the object's name and the map without key 15, and is stored as key 15.

use super::cbor::{self, Fields, Value};
use super::codec::malformed;
use super::envelope::{self, Envelope, EnvelopeKind};
use super::{FormatError, name::ObjectName};
use crate::pure::base::Timestamp;
use crate::pure::crypto::sign::{BadSignature, role};
use crate::pure::crypto::{KeyRing, ObjectClass, Signer, Verifier};
use crate::pure::id::{KeyId, SessionId};
use zeroize::{Zeroize, Zeroizing};

/// Map key of the signature.
const SIGNATURE: u64 = 15;
/// Every role: for objects that any key holder may write.
pub const ANY_ROLE: u32 = role::WRITE
    | role::READ_META
    | role::READ_DATA
    | role::MAINTAIN
    | role::FORGET
    | role::HOLD
    | role::ADMIN
    | role::ATTEST;

/// Encodes a map with version, signer, time and signature. `fields` holds the other keys.
pub fn sign(mut fields: Vec<(u64, Value)>, created: Timestamp, name: &ObjectName, signer: &Signer) -> Vec<u8> {
    fields.push((0, Value::Uint(1)));
    fields.push((1, Value::bytes(signer.kid().as_bytes())));
    fields.push((2, Value::time(created)));
    let mut map = Value::map(fields);
    let body = Zeroizing::new(cbor::encode(&map));
    if let Value::Map(entries) = &mut map {
        entries.push((
            Value::Uint(SIGNATURE),
            Value::bytes(&signer.sign(&name.to_string(), &body)),
        ));
    }
    let signed = cbor::encode(&map);
    map.zeroize();
    signed
}

/// A signed map whose form has been checked, not yet its signature.
pub struct SignedMap {
    /// Who claims to have signed.
    pub kid: KeyId,
    pub created: Timestamp,
    /// The other keys.
    pub fields: Fields,
    body: Zeroizing<Vec<u8>>,
    signature: [u8; 64],
}

impl SignedMap {
    /// Decodes a map and takes version, signer, time and signature out of it. `what` names the object in errors.
    pub fn parse(bytes: &[u8], what: &'static str) -> Result<SignedMap, FormatError> {
        let Value::Map(mut entries) = cbor::decode(bytes)? else {
            return Ok(malformed(what)?);
        };
        let Ok(index) =
            entries.binary_search_by_key(&SIGNATURE, |(key, _)| if let Value::Uint(key) = key { *key } else { 0 })
        else {
            return Ok(malformed("no signature")?);
        };
        let signature = entries.remove(index).1.into_byte_array("signature")?;
        // The decoder accepts one encoding only, so encoding again gives the bytes that were signed; unknown keys stay in.
        let map = Value::Map(entries);
        let body = Zeroizing::new(cbor::encode(&map));
        let mut fields = Fields::new(map, what)?;
        check_version(&mut fields, what)?;
        let kid = KeyId(fields.byte_array(1, "signer")?);
        let created = fields.time(2, "time of creation")?;
        Ok(SignedMap {
            kid,
            created,
            fields,
            body,
            signature,
        })
    }

    /// Checks that the signer holds one of `roles`, is not revoked, and signed exactly this under exactly this name.
    pub fn verify(&self, verifier: &Verifier, roles: u32, name: &ObjectName) -> Result<(), FormatError> {
        Ok(verifier.verify(&self.kid, roles, &name.to_string(), &self.body, &self.signature)?)
    }

    /// As [`Self::verify`], but a signer that has been revoked since is honoured: a condemnation cannot be taken back, and a
    /// hold must not vanish with its holder.
    pub fn verify_even_if_revoked(
        &self,
        verifier: &Verifier,
        roles: u32,
        name: &ObjectName,
    ) -> Result<(), FormatError> {
        Ok(verifier.verify_even_if_revoked(&self.kid, roles, &name.to_string(), &self.body, &self.signature)?)
    }
}

/// Takes key 0, which must be 1.
pub fn check_version(fields: &mut Fields, what: &'static str) -> Result<(), FormatError> {
    match fields.uint(0, "version")? {
        1 => Ok(()),
        0 => Ok(malformed("version")?),
        version => Err(FormatError::TooNew {
            what: format!("{what}: version {version}"),
        }),
    }
}

/// The kinds of object that are sealed under S_idx, signed, and described by one map in section 0.
#[derive(Clone, Copy)]
pub struct Class {
    pub kind: EnvelopeKind,
    pub class: ObjectClass,
    pub what: &'static str,
}

impl Class {
    /// Signs `fields`, and seals them as section 0 in front of `sections`, in the current epoch.
    ///
    /// # Errors
    /// If `kid`, which the object names as its author, is not the signer; if the map is too large to be read again.
    #[allow(clippy::too_many_arguments)]
    pub fn encode(
        self,
        name: &ObjectName,
        fields: Vec<(u64, Value)>,
        (kid, created): (KeyId, Timestamp),
        sections: &[&[u8]],
        keys: &KeyRing,
        signer: &Signer,
        object_id: [u8; 16],
    ) -> Result<Vec<u8>, FormatError> {
        if kid != signer.kid() {
            return Err(FormatError::Signature(BadSignature::Wrong(kid)));
        }
        let map = sign(fields, created, name, signer);
        if map.len() > cbor::INPUT_BYTES_MAX {
            return Ok(malformed("section 0 longer than 16 MiB")?);
        }
        let key = keys.object_key(keys.current_epoch(), self.class)?;
        let all: Vec<&[u8]> = std::iter::once(map.as_slice())
            .chain(sections.iter().copied())
            .collect();
        Ok(envelope::seal(
            self.kind,
            keys.current_epoch(),
            keys.repo(),
            object_id,
            key,
            &name.to_string(),
            &all,
        ))
    }

    /// Opens every section. The signature of the map is still to be verified.
    pub fn decode(self, bytes: &[u8], name: &ObjectName, keys: &KeyRing) -> Result<Unsealed, FormatError> {
        let envelope = Envelope::parse(bytes, self.kind, keys.repo())?;
        let key = keys.object_key(envelope.epoch(), self.class)?;
        let name = name.to_string();
        let map = SignedMap::parse(&envelope.open(0, key, &name)?, self.what)?;
        let sections = (1..envelope.sections())
            .map(|section| envelope.open(section, key, &name))
            .collect::<Result<_, _>>()?;
        Ok(Unsealed {
            map,
            sections,
            object_id: envelope.object_id(),
        })
    }

    /// As [`Self::decode`], for objects of exactly one section.
    pub fn decode_single(self, bytes: &[u8], name: &ObjectName, keys: &KeyRing) -> Result<SignedMap, FormatError> {
        let Unsealed { map, sections, .. } = self.decode(bytes, name, keys)?;
        if sections.is_empty() {
            Ok(map)
        } else {
            Ok(malformed("more than one section")?)
        }
    }
}

/// A sealed object, opened.
pub struct Unsealed {
    pub map: SignedMap,
    /// Plaintexts of the sections after section 0.
    pub sections: Vec<Vec<u8>>,
    pub object_id: [u8; 16],
}

/// Checks that a session belongs to the key that signed for it.
pub fn check_writer_tag(session: &SessionId, kid: &KeyId) -> Result<(), FormatError> {
    if session.writer_tag() == kid.0[..4] {
        Ok(())
    } else {
        Ok(malformed("the session does not carry the signer's tag")?)
    }
}

/// Checks that the session that an object names is the one in its name.
pub fn check_session(fields: &mut Fields, session: &SessionId) -> Result<(), FormatError> {
    if fields.byte_array(4, "session")? == session.0 {
        Ok(())
    } else {
        Ok(malformed("session differs from the name")?)
    }
}

/// Encodes session ids.
pub fn session_ids(ids: &[SessionId]) -> Value {
    Value::array(ids, |id| Value::bytes(id.as_bytes()))
}

/// Takes session ids, none where absent.
pub fn take_session_ids(fields: &mut Fields, key: u64, what: &'static str) -> Result<Vec<SessionId>, FormatError> {
    Ok(fields
        .byte_arrays_or_empty(key, what)?
        .into_iter()
        .map(SessionId)
        .collect())
}

/// Encodes inclusive ranges of run numbers.
pub fn ranges(ranges: &[(u32, u32)]) -> Value {
    Value::array(ranges, |(first, last)| {
        Value::Array(vec![Value::Uint((*first).into()), Value::Uint((*last).into())])
    })
}

/// Decodes inclusive ranges of run numbers.
pub fn parse_ranges(value: Value) -> Result<Vec<(u32, u32)>, FormatError> {
    let what = "ranges of runs";
    let mut out = Vec::new();
    for row in value.into_array(what)? {
        let [first, last] = row.into_row(what)?;
        out.push((first.into_u32(what)?, last.into_u32(what)?));
    }
    check_ranges(&out)?;
    Ok(out)
}

/// Checks that ranges are not empty, ascend and do not overlap.
pub fn check_ranges(ranges: &[(u32, u32)]) -> Result<(), FormatError> {
    let fit = ranges.iter().all(|(first, last)| first <= last) && ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
    if fit {
        Ok(())
    } else {
        Ok(malformed("ranges of runs out of order")?)
    }
}

/// What the tests of signed objects share: one repository, its keys, and the ways to break an object.
#[cfg(test)]
pub mod fixture {
    use super::*;
    use crate::pure::crypto::sign::WriterKey;
    use crate::pure::crypto::{EpochSecrets, Secret, hash};
    use crate::pure::id::RepoId;

    pub const REPO: RepoId = RepoId([0x10, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]);
    pub const KID: KeyId = KeyId([
        0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
    ]);
    pub const OTHER_KID: KeyId = KeyId([0x44; 16]);
    pub const SID: SessionId = SessionId([0x11; 16]);
    /// A session of the same writer.
    pub const SID_2: SessionId = SessionId([0x11, 0x11, 0x11, 0x11, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]);
    pub const OBJECT_ID: [u8; 16] = [
        128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143,
    ];
    pub const START: Timestamp = Timestamp(1_700_000_000_000_000_000);

    pub fn secret(byte: u8) -> Secret {
        Secret::new([byte; 32])
    }

    pub fn epoch(epoch: u32) -> EpochSecrets {
        EpochSecrets {
            epoch,
            id: Some(secret(1)),
            cdc: Some(secret(2)),
            split: Some(secret(3)),
            idx: Some(secret(4)),
            meta: Some(secret(5)),
            data: Some(secret(6)),
            psk: Some(secret(7)),
            ..EpochSecrets::none(epoch)
        }
    }

    pub fn keys() -> KeyRing {
        KeyRing::new(REPO, vec![epoch(1)], 1).unwrap()
    }

    pub fn signer() -> Signer {
        Signer::new(KID, &secret(8), &REPO)
    }

    pub fn other_signer() -> Signer {
        Signer::new(OTHER_KID, &secret(9), &REPO)
    }

    pub fn writer(signer: &Signer, roles: u32) -> WriterKey {
        WriterKey {
            kid: signer.kid(),
            public_key: signer.public_key(),
            roles,
            from_config: 0,
            revoked_at: None,
            chain_end: None,
        }
    }

    /// Knows [`signer`] with these roles.
    pub fn verifier(roles: u32) -> Verifier {
        Verifier {
            writers: vec![writer(&signer(), roles)],
        }
    }

    pub fn revoked(roles: u32) -> Verifier {
        let mut verifier = verifier(roles);
        verifier.writers[0].revoked_at = Some(0);
        verifier
    }

    /// Every single-bit flip and every truncation must be refused, also when the hash at the end (`tail` bytes follow it) has
    /// been made to fit again.
    pub fn assert_fragile<T: std::fmt::Debug, E>(bytes: &[u8], tail: usize, decode: impl Fn(&[u8]) -> Result<T, E>) {
        assert!(decode(bytes).is_ok());
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "truncated to {len}");
        }
        let body = bytes.len() - tail - 32;
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
            if bit / 8 < body {
                let fitting = hash(&flipped[..body]);
                flipped[body..body + 32].copy_from_slice(&fitting);
                assert!(decode(&flipped).is_err(), "bit {bit}, with a fitting hash");
            }
        }
        let longer = [bytes, b"\0"].concat();
        assert!(decode(&longer).is_err(), "one byte more");
    }

    /// Bytes after the hash of an envelope.
    pub const ENVELOPE_TAIL: usize = 8;

    /// Only the role, or admin, will do; another key, no role and every other role will not.
    pub fn assert_needs_role<T>(roles: u32, decode: impl Fn(&Verifier) -> Result<T, FormatError>) {
        let signature = |result: Result<T, FormatError>| match result {
            Err(FormatError::Signature(error)) => error,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("accepted"),
        };
        for bit in (0..8).map(|bit| 1 << bit) {
            let result = decode(&verifier(bit));
            if bit & (roles | role::ADMIN) != 0 {
                assert!(result.is_ok(), "role {bit:#x}");
            } else {
                assert_eq!(signature(result), BadSignature::Role(KID), "role {bit:#x}");
            }
        }
        assert_eq!(signature(decode(&verifier(0))), BadSignature::Role(KID));
        assert_eq!(signature(decode(&Verifier::default())), BadSignature::UnknownKey(KID));
        let mut forged = verifier(role::ADMIN);
        forged.writers[0].public_key = other_signer().public_key();
        assert_eq!(signature(decode(&forged)), BadSignature::Wrong(KID));
    }

    /// Seals a map with these fields changed or added, otherwise as `object` has them.
    pub fn reseal(class: Class, object: &[u8], name: &ObjectName, change: Vec<(u64, Option<Value>)>) -> Vec<u8> {
        let keys = keys();
        let Unsealed { sections, .. } = class.decode(object, name, &keys).unwrap();
        let envelope = Envelope::parse(object, class.kind, &REPO).unwrap();
        let key = keys.object_key(1, class.class).unwrap();
        let Value::Map(entries) = cbor::decode(&envelope.open(0, key, &name.to_string()).unwrap()).unwrap() else {
            panic!("not a map")
        };
        let mut fields: Vec<(u64, Value)> = entries
            .into_iter()
            .map(|(key, value)| (key.into_uint("key").unwrap(), value))
            .collect();
        fields.retain(|(key, _)| *key > 2 && *key != SIGNATURE && !change.iter().any(|(changed, _)| changed == key));
        fields.extend(change.into_iter().filter_map(|(key, value)| Some((key, value?))));
        let sections: Vec<&[u8]> = sections.iter().map(Vec::as_slice).collect();
        class
            .encode(name, fields, (KID, START), &sections, &keys, &signer(), OBJECT_ID)
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::*;
    use super::*;

    #[test]
    fn signature_covers_name_and_every_key_also_unknown_ones() {
        let name = ObjectName::Config(3);
        let fields = vec![(7, Value::Uint(1)), (0x7000, Value::text("later"))];
        let bytes = sign(fields, START, &name, &signer());
        let map = SignedMap::parse(&bytes, "test").unwrap();
        map.verify(&verifier(role::WRITE), role::WRITE, &name).unwrap();
        assert!(
            map.verify(&verifier(role::WRITE), role::WRITE, &ObjectName::Config(4))
                .is_err()
        );
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let accepted = SignedMap::parse(&flipped, "test")
                .is_ok_and(|map| map.verify(&verifier(role::WRITE), role::WRITE, &name).is_ok());
            assert!(!accepted, "bit {bit}");
        }
    }

    #[test]
    fn version_and_signature_must_be_there() {
        let unsigned = cbor::encode(&Value::map(vec![(0, Value::Uint(1))]));
        assert!(SignedMap::parse(&unsigned, "test").is_err());
        let version = |version| {
            let fields = vec![
                (0, Value::Uint(version)),
                (1, Value::bytes(&KID.0)),
                (2, Value::time(START)),
                (SIGNATURE, Value::Bytes(vec![0; 64])),
            ];
            SignedMap::parse(&cbor::encode(&Value::map(fields)), "test").map(|_| ())
        };
        assert_eq!(version(1), Ok(()));
        assert!(matches!(version(0), Err(FormatError::Malformed(_))));
        assert!(matches!(version(2), Err(FormatError::TooNew { .. })));
    }

    #[test]
    fn ranges_must_ascend_without_overlap() {
        let parse = |list: &[(u32, u32)]| parse_ranges(ranges(list));
        assert_eq!(
            parse(&[(0, 0), (1, 5), (7, u32::MAX)]).unwrap(),
            [(0, 0), (1, 5), (7, u32::MAX)]
        );
        for wrong in [&[(1, 0)][..], &[(0, 3), (3, 4)], &[(5, 6), (0, 1)]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        let too_large = Value::Array(vec![Value::Array(vec![Value::Uint(0), Value::Uint(1 << 32)])]);
        assert!(parse_ranges(too_large).is_err());
    }
}
