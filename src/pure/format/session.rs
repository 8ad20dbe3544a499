//! Session objects (format-spec chapter on sessions): registration, acknowledgement, heartbeat.
//!
//! Pins and acknowledgements are what keeps maintenance from deleting under a running session, so a session object counts only
//! as a whole: opened, signed by the key whose tag the session id carries.

use super::FormatError;
use super::cbor::Value;
use super::codec::malformed;
use super::envelope::EnvelopeKind;
use super::name::ObjectName;
use super::signed::{self, ANY_ROLE, Class};
use crate::pure::base::Timestamp;
use crate::pure::crypto::{KeyRing, ObjectClass, Signer, Verifier, sign::role};
use crate::pure::id::{KeyId, SessionId};

const SESSION: Class = Class {
    kind: EnvelopeKind::Session,
    class: ObjectClass::Session,
    what: "session",
};

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionRole {
    Backup = 0,
    Condemn = 1,
    Sweep = 2,
    Compact = 3,
    Repair = 4,
    Rescue = 5,
    PinOnly = 6,
}

impl SessionRole {
    fn from_number(number: u64) -> Option<SessionRole> {
        Some(match number {
            0 => SessionRole::Backup,
            1 => SessionRole::Condemn,
            2 => SessionRole::Sweep,
            3 => SessionRole::Compact,
            4 => SessionRole::Repair,
            5 => SessionRole::Rescue,
            6 => SessionRole::PinOnly,
            _ => return None,
        })
    }

    /// Role bits, one of which the signer must hold: whoever may only read can keep snapshots from going, and no more.
    fn signers(self) -> u32 {
        match self {
            SessionRole::PinOnly => ANY_ROLE,
            _ => role::WRITE | role::MAINTAIN,
        }
    }
}

/// `sess/<sid>/0000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub kid: KeyId,
    pub created: Timestamp,
    pub role: SessionRole,
    /// Snapshots that must not be dropped under this session.
    pub pins: Vec<SessionId>,
    pub software: String,
    pub host: Option<String>,
}

/// `sess/<sid>/<n ≥ 1>`: cumulative acknowledgements, further pins, runs written so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    pub kid: KeyId,
    pub created: Timestamp,
    pub pins: Vec<SessionId>,
    /// Generations of condemnations whose packs this session no longer uses.
    pub acked: Vec<SessionId>,
    pub runs: u32,
}

impl Registration {
    /// Signs and seals under `sess/<session>/0000`.
    ///
    /// # Errors
    /// If the key ring cannot seal session objects, or `kid` is not the signer, or the session does not carry its tag.
    pub fn encode(
        &self,
        session: &SessionId,
        keys: &KeyRing,
        signer: &Signer,
        object_id: [u8; 16],
    ) -> Result<Vec<u8>, FormatError> {
        signed::check_writer_tag(session, &self.kid)?;
        let mut fields = vec![
            (3, Value::Uint(self.role as u64)),
            (4, signed::session_ids(&self.pins)),
            (5, Value::text(&self.software)),
        ];
        fields.extend(self.host.as_deref().map(|host| (6, Value::text(host))));
        let name = ObjectName::Session(*session, 0);
        SESSION.encode(&name, fields, (self.kid, self.created), &[], keys, signer, object_id)
    }

    /// Opens and verifies.
    ///
    /// # Errors
    /// If the object is not a registration of exactly this session, signed by the key whose tag the session carries.
    pub fn decode(
        bytes: &[u8],
        session: &SessionId,
        keys: &KeyRing,
        verifier: &Verifier,
    ) -> Result<Registration, FormatError> {
        let name = ObjectName::Session(*session, 0);
        let mut map = SESSION.decode_single(bytes, &name, keys)?;
        let Some(role) = SessionRole::from_number(map.fields.uint(3, "role of the session")?) else {
            return Ok(malformed("role of the session")?);
        };
        // Of a key that has been revoked since: the session may have ended before that, and else it is ended by somebody else.
        map.verify_even_if_revoked(verifier, role.signers(), &name)?;
        signed::check_writer_tag(session, &map.kid)?;
        Ok(Registration {
            kid: map.kid,
            created: map.created,
            role,
            pins: signed::take_session_ids(&mut map.fields, 4, "pins")?,
            software: map.fields.text_or_empty(5, "software")?,
            host: map
                .fields
                .optional(6)
                .map(|value| value.into_text("host"))
                .transpose()?,
        })
    }
}

impl Acknowledgement {
    /// Signs and seals under `sess/<session>/<number>`.
    ///
    /// # Errors
    /// As [`Registration::encode`]; and if `number` is 0, which is the registration's.
    pub fn encode(
        &self,
        session: &SessionId,
        number: u32,
        keys: &KeyRing,
        signer: &Signer,
        object_id: [u8; 16],
    ) -> Result<Vec<u8>, FormatError> {
        let name = acknowledgement_name(session, number)?;
        signed::check_writer_tag(session, &self.kid)?;
        let fields = vec![
            (4, signed::session_ids(&self.pins)),
            (7, signed::session_ids(&self.acked)),
            (8, Value::Uint(self.runs.into())),
        ];
        SESSION.encode(&name, fields, (self.kid, self.created), &[], keys, signer, object_id)
    }

    /// Opens and verifies.
    ///
    /// # Errors
    /// If the object is not exactly this acknowledgement, signed by the key whose tag the session carries.
    pub fn decode(
        bytes: &[u8],
        session: &SessionId,
        number: u32,
        keys: &KeyRing,
        verifier: &Verifier,
    ) -> Result<Acknowledgement, FormatError> {
        let name = acknowledgement_name(session, number)?;
        let mut map = SESSION.decode_single(bytes, &name, keys)?;
        map.verify_even_if_revoked(verifier, ANY_ROLE, &name)?;
        signed::check_writer_tag(session, &map.kid)?;
        let runs = u32::try_from(map.fields.uint_or(8, 0, "runs written")?);
        Ok(Acknowledgement {
            kid: map.kid,
            created: map.created,
            pins: signed::take_session_ids(&mut map.fields, 4, "pins")?,
            acked: signed::take_session_ids(&mut map.fields, 7, "acknowledged generations")?,
            runs: runs.or_else(|_| malformed("runs written"))?,
        })
    }
}

fn acknowledgement_name(session: &SessionId, number: u32) -> Result<ObjectName, FormatError> {
    if number == 0 {
        Ok(malformed("acknowledgement number 0")?)
    } else {
        Ok(ObjectName::Session(*session, number))
    }
}

#[cfg(test)]
mod tests {
    use super::signed::fixture::*;
    use super::*;
    use crate::pure::crypto::sign::role;
    use crate::pure::id::from_hex;

    const VECTOR: &str = "4c41524445524f310301000001000000101112131415161718191a1b1c1d1e1f808182838485868788898a8b8c8d8e8f0100000000000000000000000000000000000000800000003652f9ef4a9708d64f74c02c5c098b663a676cdb75300954432947654c856491ef497dd219e68a415411c8488b8c9219b8be019b764b53d95032ab7770ed3e4a7e3fd44117541dd152c958579accc879d3ba1af62fc94a93e7397916e4aeba0d37cad9454f6535886cb832db2bce74cbbb6d33a47999248bfd9f65fdf277fca6e5e3b9d06af75263f555bdcec32d64323150c4dd56639da045b9764ed681790d4c41524445524531";

    fn registration() -> Registration {
        Registration {
            kid: KID,
            created: START,
            role: SessionRole::Repair,
            pins: vec![SessionId([7; 16]), SessionId([3; 16])],
            software: "larder/1".into(),
            host: Some("host".into()),
        }
    }

    fn acknowledgement() -> Acknowledgement {
        Acknowledgement {
            kid: KID,
            created: START,
            pins: vec![SID],
            acked: vec![SessionId([9; 16]); 2],
            runs: 3,
        }
    }

    fn register(bytes: &[u8], verifier: &Verifier) -> Result<Registration, FormatError> {
        Registration::decode(bytes, &SID, &keys(), verifier)
    }

    #[test]
    fn registration_has_the_bytes_of_the_vectors() {
        let registration = Registration {
            role: SessionRole::Backup,
            pins: vec![],
            host: None,
            ..registration()
        };
        let bytes = registration.encode(&SID, &keys(), &signer(), OBJECT_ID).unwrap();
        assert_eq!(bytes, from_hex(VECTOR).unwrap());
        assert_eq!(register(&bytes, &verifier(role::WRITE)), Ok(registration));
    }

    #[test]
    fn session_objects_round_trip_and_break_on_any_change() {
        let keys = keys();
        let verifier = verifier(role::MAINTAIN);
        let bytes = registration().encode(&SID, &keys, &signer(), OBJECT_ID).unwrap();
        assert_eq!(register(&bytes, &verifier), Ok(registration()));
        assert_fragile(&bytes, ENVELOPE_TAIL, |bytes| {
            Registration::decode(bytes, &SID, &keys, &verifier)
        });
        assert!(Registration::decode(&bytes, &SID_2, &keys, &verifier).is_err());
        assert!(Acknowledgement::decode(&bytes, &SID, 1, &keys, &verifier).is_err());

        let bytes = acknowledgement().encode(&SID, 4, &keys, &signer(), OBJECT_ID).unwrap();
        assert_eq!(
            Acknowledgement::decode(&bytes, &SID, 4, &keys, &verifier),
            Ok(acknowledgement())
        );
        assert_fragile(&bytes, ENVELOPE_TAIL, |bytes| {
            Acknowledgement::decode(bytes, &SID, 4, &keys, &verifier)
        });
        assert!(Acknowledgement::decode(&bytes, &SID, 5, &keys, &verifier).is_err());
        assert!(Acknowledgement::decode(&bytes, &SID_2, 4, &keys, &verifier).is_err());
        assert!(acknowledgement().encode(&SID, 0, &keys, &signer(), OBJECT_ID).is_err());
    }

    #[test]
    fn any_role_may_pin_and_writers_and_maintainers_may_do_more() {
        let of = |role| Registration { role, ..registration() };
        for (role, signers) in [
            (SessionRole::PinOnly, ANY_ROLE),
            (SessionRole::Backup, role::WRITE | role::MAINTAIN),
            (SessionRole::Sweep, role::WRITE | role::MAINTAIN),
        ] {
            let bytes = of(role).encode(&SID, &keys(), &signer(), OBJECT_ID).unwrap();
            assert_needs_role(signers, |verifier| register(&bytes, verifier));
            // What it began before it was revoked can be read, to be ended.
            assert!(register(&bytes, &revoked(signers)).is_ok());
        }
    }

    #[test]
    fn session_must_carry_the_signers_tag() {
        let stranger = Registration {
            kid: OTHER_KID,
            ..registration()
        };
        assert!(stranger.encode(&SID, &keys(), &other_signer(), OBJECT_ID).is_err());
        assert!(
            registration()
                .encode(&SID, &keys(), &other_signer(), OBJECT_ID)
                .is_err()
        );
        // Sealed in spite of that by somebody who holds the keys.
        let name = ObjectName::Session(SID, 0);
        let fields = vec![(3, Value::Uint(0))];
        let bytes = SESSION
            .encode(
                &name,
                fields,
                (OTHER_KID, START),
                &[],
                &keys(),
                &other_signer(),
                OBJECT_ID,
            )
            .unwrap();
        let verifier = Verifier {
            writers: vec![writer(&other_signer(), role::ADMIN)],
        };
        assert!(matches!(register(&bytes, &verifier), Err(FormatError::Malformed(_))));
    }

    #[test]
    fn unknown_keys_are_ignored_unless_critical() {
        let verifier = verifier(role::WRITE);
        let name = ObjectName::Session(SID, 0);
        let bytes = registration().encode(&SID, &keys(), &signer(), OBJECT_ID).unwrap();
        let with = |key, value| register(&reseal(SESSION, &bytes, &name, vec![(key, value)]), &verifier);
        assert_eq!(with(0x7fff, Some(Value::Null)), Ok(registration()));
        assert!(matches!(
            with(0x8000, Some(Value::Null)),
            Err(FormatError::TooNew { .. })
        ));
        assert!(with(3, None).is_err());
        assert!(with(3, Some(Value::Uint(7))).is_err());
        assert!(with(4, Some(Value::Array(vec![Value::Bytes(vec![0; 15])]))).is_err());
    }
}
