//! Marks on snapshots: drops, holds and attestations (format-spec chapter on marks).
//!
//! A mark names a session of any writer, so the session does not carry the signer's tag. Marks stay honoured when their signer is
//! revoked later: `check` names them.

use super::FormatError;
use super::cbor::Value;
use super::codec::malformed;
use super::envelope::EnvelopeKind;
use super::name::ObjectName;
use super::signed::{self, Class};
use crate::pure::base::Timestamp;
use crate::pure::crypto::{KeyRing, ObjectClass, Signer, Verifier, sign::role};
use crate::pure::id::{KeyId, SessionId};

const DROP: Class = Class {
    kind: EnvelopeKind::Drop,
    class: ObjectClass::Drop,
    what: "drop",
};
const HOLD: Class = Class {
    kind: EnvelopeKind::Hold,
    class: ObjectClass::Hold,
    what: "hold",
};
const ATTEST: Class = Class {
    kind: EnvelopeKind::Attest,
    class: ObjectClass::Attest,
    what: "attestation",
};

/// Why a session's outcome no longer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropKind {
    /// The snapshot is forgotten.
    Forget = 1,
    /// The outcome is unreadable and counts as none; an admin says so.
    Void = 2,
}

impl DropKind {
    /// Role bits, one of which the signer must hold.
    fn roles(self) -> u32 {
        match self {
            DropKind::Forget => role::FORGET,
            DropKind::Void => role::ADMIN,
        }
    }
}

/// `drop/<sid>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    pub kid: KeyId,
    pub created: Timestamp,
    pub kind: DropKind,
    pub session: SessionId,
    pub reason: String,
}

/// `hold/<sid>/<name>`: the snapshot stays, whatever drops it; without `until`, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub kid: KeyId,
    pub created: Timestamp,
    pub session: SessionId,
    pub until: Option<Timestamp>,
    pub reason: String,
}

/// `attest/<sid>/<nnnn>`: these runs of a session were verified byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest {
    pub kid: KeyId,
    pub created: Timestamp,
    pub session: SessionId,
    /// Inclusive ranges of run numbers.
    pub runs: Vec<(u32, u32)>,
    pub bytes_read: u64,
}

impl Drop {
    /// Signs and seals under `drop/<session>`.
    ///
    /// # Errors
    /// If the key ring cannot seal drops, or `kid` is not the signer.
    pub fn encode(&self, keys: &KeyRing, signer: &Signer, object_id: [u8; 16]) -> Result<Vec<u8>, FormatError> {
        let mut fields = vec![
            (3, Value::Uint(self.kind as u64)),
            (4, Value::bytes(self.session.as_bytes())),
        ];
        push_reason(&mut fields, 5, &self.reason);
        DROP.encode(
            &ObjectName::Drop(self.session),
            fields,
            (self.kid, self.created),
            &[],
            keys,
            signer,
            object_id,
        )
    }

    /// Opens and verifies.
    ///
    /// # Errors
    /// If the object is not a drop of exactly this session by a forgetter, or, where it voids an outcome, by an admin.
    pub fn decode(bytes: &[u8], session: &SessionId, keys: &KeyRing, verifier: &Verifier) -> Result<Drop, FormatError> {
        let name = ObjectName::Drop(*session);
        let mut map = DROP.decode_single(bytes, &name, keys)?;
        let kind = match map.fields.uint(3, "kind of drop")? {
            1 => DropKind::Forget,
            2 => DropKind::Void,
            _ => return Ok(malformed("kind of drop")?),
        };
        map.verify_even_if_revoked(verifier, kind.roles(), &name)?;
        signed::check_session(&mut map.fields, session)?;
        let reason = map.fields.text_or_empty(5, "reason")?;
        Ok(Drop {
            kid: map.kid,
            created: map.created,
            kind,
            session: *session,
            reason,
        })
    }
}

impl Hold {
    /// Signs and seals under `hold/<session>/<name>`.
    ///
    /// # Errors
    /// If the key ring cannot seal holds, or `kid` is not the signer, or the name is not one to 64 of `a-z0-9._-`.
    pub fn encode(
        &self,
        name: &str,
        keys: &KeyRing,
        signer: &Signer,
        object_id: [u8; 16],
    ) -> Result<Vec<u8>, FormatError> {
        let name = hold_name(&self.session, name)?;
        let mut fields = vec![
            (4, Value::bytes(self.session.as_bytes())),
            (5, self.until.map_or(Value::Null, Value::time)),
        ];
        push_reason(&mut fields, 6, &self.reason);
        HOLD.encode(&name, fields, (self.kid, self.created), &[], keys, signer, object_id)
    }

    /// Opens and verifies.
    ///
    /// # Errors
    /// If the object is not exactly this hold, signed by a holder.
    pub fn decode(
        bytes: &[u8],
        session: &SessionId,
        name: &str,
        keys: &KeyRing,
        verifier: &Verifier,
    ) -> Result<Hold, FormatError> {
        let name = hold_name(session, name)?;
        let mut map = HOLD.decode_single(bytes, &name, keys)?;
        map.verify_even_if_revoked(verifier, role::HOLD, &name)?;
        signed::check_session(&mut map.fields, session)?;
        // An end that is not given is none: the hold errs on the side of keeping.
        let until = match map.fields.optional(5) {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.into_time("end of the hold")?),
        };
        let reason = map.fields.text_or_empty(6, "reason")?;
        Ok(Hold {
            kid: map.kid,
            created: map.created,
            session: *session,
            until,
            reason,
        })
    }
}

impl Attest {
    /// Signs and seals under `attest/<session>/<number>`.
    ///
    /// # Errors
    /// If the key ring cannot seal attestations, or `kid` is not the signer, or the ranges do not ascend.
    pub fn encode(
        &self,
        number: u32,
        keys: &KeyRing,
        signer: &Signer,
        object_id: [u8; 16],
    ) -> Result<Vec<u8>, FormatError> {
        signed::check_ranges(&self.runs)?;
        let fields = vec![
            (4, Value::bytes(self.session.as_bytes())),
            (5, signed::ranges(&self.runs)),
            (6, Value::Uint(self.bytes_read)),
        ];
        let name = ObjectName::Attest(self.session, number);
        ATTEST.encode(&name, fields, (self.kid, self.created), &[], keys, signer, object_id)
    }

    /// Opens and verifies.
    ///
    /// # Errors
    /// If the object is not exactly this attestation, signed by an attester.
    pub fn decode(
        bytes: &[u8],
        session: &SessionId,
        number: u32,
        keys: &KeyRing,
        verifier: &Verifier,
    ) -> Result<Attest, FormatError> {
        let name = ObjectName::Attest(*session, number);
        let mut map = ATTEST.decode_single(bytes, &name, keys)?;
        map.verify_even_if_revoked(verifier, role::ATTEST, &name)?;
        signed::check_session(&mut map.fields, session)?;
        let runs = signed::parse_ranges(map.fields.required(5, "verified runs")?)?;
        let bytes_read = map.fields.uint(6, "bytes read")?;
        Ok(Attest {
            kid: map.kid,
            created: map.created,
            session: *session,
            runs,
            bytes_read,
        })
    }
}

/// Reasons are left out where there is none.
fn push_reason(fields: &mut Vec<(u64, Value)>, key: u64, reason: &str) {
    if !reason.is_empty() {
        fields.push((key, Value::text(reason)));
    }
}

fn hold_name(session: &SessionId, name: &str) -> Result<ObjectName, FormatError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        return Ok(malformed("name of the hold")?);
    }
    Ok(ObjectName::Hold(*session, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::signed::fixture::*;
    use super::*;

    fn forget() -> Drop {
        Drop {
            kid: KID,
            created: START,
            kind: DropKind::Forget,
            session: OTHER,
            reason: "old".into(),
        }
    }

    fn hold() -> Hold {
        Hold {
            kid: KID,
            created: START,
            session: OTHER,
            until: Some(Timestamp(-5)),
            reason: "court".into(),
        }
    }

    fn attest() -> Attest {
        Attest {
            kid: KID,
            created: START,
            session: OTHER,
            runs: vec![(0, 2), (4, 4)],
            bytes_read: 1 << 40,
        }
    }

    /// A session of another writer than the signer.
    const OTHER: SessionId = SessionId([0x55; 16]);

    #[test]
    fn drops_round_trip_break_on_any_change_and_need_the_role() {
        let (keys, admin) = (keys(), verifier(role::ADMIN));
        for kind in [DropKind::Forget, DropKind::Void] {
            let drop = Drop { kind, ..forget() };
            let bytes = drop.encode(&keys, &signer(), OBJECT_ID).unwrap();
            assert_eq!(Drop::decode(&bytes, &OTHER, &keys, &admin), Ok(drop));
            assert!(Drop::decode(&bytes, &SID, &keys, &admin).is_err());
            assert_fragile(&bytes, ENVELOPE_TAIL, |bytes| {
                Drop::decode(bytes, &OTHER, &keys, &admin)
            });
            assert_needs_role(kind.roles(), |verifier| Drop::decode(&bytes, &OTHER, &keys, verifier));
            assert!(Drop::decode(&bytes, &OTHER, &keys, &revoked(kind.roles())).is_ok());
            assert!(Drop::decode(&bytes, &OTHER, &keys, &revoked(role::WRITE)).is_err());
        }
        assert!(forget().encode(&keys, &other_signer(), OBJECT_ID).is_err());
    }

    #[test]
    fn holds_round_trip_break_on_any_change_and_need_the_role() {
        let (keys, holder) = (keys(), verifier(role::HOLD));
        for hold in [
            hold(),
            Hold {
                until: None,
                reason: String::new(),
                ..hold()
            },
        ] {
            let bytes = hold.encode("case-7", &keys, &signer(), OBJECT_ID).unwrap();
            assert_eq!(Hold::decode(&bytes, &OTHER, "case-7", &keys, &holder), Ok(hold));
            assert!(Hold::decode(&bytes, &OTHER, "case-8", &keys, &holder).is_err());
            assert!(Hold::decode(&bytes, &SID, "case-7", &keys, &holder).is_err());
            assert_fragile(&bytes, ENVELOPE_TAIL, |bytes| {
                Hold::decode(bytes, &OTHER, "case-7", &keys, &holder)
            });
            assert_needs_role(role::HOLD, |verifier| {
                Hold::decode(&bytes, &OTHER, "case-7", &keys, verifier)
            });
            assert!(Hold::decode(&bytes, &OTHER, "case-7", &keys, &revoked(role::HOLD)).is_ok());
        }
        for name in ["", "Upper", "a/b", "ä", &"x".repeat(65)] {
            assert!(hold().encode(name, &keys, &signer(), OBJECT_ID).is_err(), "{name}");
        }
    }

    #[test]
    fn attestations_round_trip_break_on_any_change_and_need_the_role() {
        let (keys, attester) = (keys(), verifier(role::ATTEST));
        let bytes = attest().encode(3, &keys, &signer(), OBJECT_ID).unwrap();
        assert_eq!(Attest::decode(&bytes, &OTHER, 3, &keys, &attester), Ok(attest()));
        assert!(Attest::decode(&bytes, &OTHER, 4, &keys, &attester).is_err());
        assert!(Attest::decode(&bytes, &SID, 3, &keys, &attester).is_err());
        assert_fragile(&bytes, ENVELOPE_TAIL, |bytes| {
            Attest::decode(bytes, &OTHER, 3, &keys, &attester)
        });
        assert_needs_role(role::ATTEST, |verifier| {
            Attest::decode(&bytes, &OTHER, 3, &keys, verifier)
        });
        assert!(Attest::decode(&bytes, &OTHER, 3, &keys, &revoked(role::ATTEST)).is_ok());
        let overlapping = Attest {
            runs: vec![(0, 2), (2, 3)],
            ..attest()
        };
        assert!(overlapping.encode(3, &keys, &signer(), OBJECT_ID).is_err());
    }

    #[test]
    fn unknown_keys_are_ignored_unless_critical_and_contents_must_fit() {
        let (keys, admin) = (keys(), verifier(role::ADMIN));
        let bytes = forget().encode(&keys, &signer(), OBJECT_ID).unwrap();
        let with = |key, value| {
            let bytes = reseal(DROP, &bytes, &ObjectName::Drop(OTHER), vec![(key, Some(value))]);
            Drop::decode(&bytes, &OTHER, &keys, &admin)
        };
        assert_eq!(with(0x7fff, Value::Null), Ok(forget()));
        assert!(matches!(with(0x8000, Value::Null), Err(FormatError::TooNew { .. })));
        assert!(with(3, Value::Uint(3)).is_err());
        assert!(with(4, Value::bytes(&SID.0)).is_err());

        let bytes = hold().encode("h", &keys, &signer(), OBJECT_ID).unwrap();
        let with = |key, value| {
            let bytes = reseal(HOLD, &bytes, &ObjectName::Hold(OTHER, "h".into()), vec![(key, value)]);
            Hold::decode(&bytes, &OTHER, "h", &keys, &admin)
        };
        assert!(matches!(
            with(0x8000, Some(Value::Null)),
            Err(FormatError::TooNew { .. })
        ));
        assert_eq!(with(5, None), Ok(Hold { until: None, ..hold() }));
        assert!(with(5, Some(Value::text("soon"))).is_err());
        let bytes = attest().encode(1, &keys, &signer(), OBJECT_ID).unwrap();
        let bytes = reseal(
            ATTEST,
            &bytes,
            &ObjectName::Attest(OTHER, 1),
            vec![(0x8000, Some(Value::Null))],
        );
        assert!(matches!(
            Attest::decode(&bytes, &OTHER, 1, &keys, &admin),
            Err(FormatError::TooNew { .. })
        ));
    }
}
