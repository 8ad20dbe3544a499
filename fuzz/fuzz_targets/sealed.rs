//! Parsers of what is sealed and signed: runs, outcomes, sessions, condemnations, marks, grants. What the fuzzer makes up is sealed
//! and signed here first, as somebody who has the keys could do it: else it would never get past the tags.
#![no_main]

use larder::pure::base::Timestamp;
use larder::pure::crypto::Secret;
use larder::pure::crypto::keys::{EpochSecrets, KeyRing, ObjectClass};
use larder::pure::crypto::sign::{Signer, Verifier, WriterKey};
use larder::pure::format::cbor::{self, Value};
use larder::pure::format::condemn::Condemnation;
use larder::pure::format::envelope::{self, EnvelopeHead, EnvelopeKind};
use larder::pure::format::grant::Grant;
use larder::pure::format::mark::{Attest, Drop, Hold};
use larder::pure::format::name::ObjectName;
use larder::pure::format::outcome::Outcome;
use larder::pure::format::run::{self, RunHead};
use larder::pure::format::session::{Acknowledgement, Registration};
use larder::pure::format::signed;
use larder::pure::id::{KeyId, RepoId, SessionId};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

const REPO: RepoId = RepoId([0x10; 16]);
const KID: KeyId = KeyId([0x11; 16]);
const SESSION: SessionId = SessionId([0x11; 16]);
const OBJECT: [u8; 16] = [0x80; 16];
/// The largest key of a map that a fuzzer may choose: 15 is the signature.
const FIELD_MAX: u64 = 14;

struct World {
    keys: KeyRing,
    signer: Signer,
    verifier: Verifier,
    grant_key: Secret,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let secret = |byte| Secret::new([byte; 32]);
    let epoch = EpochSecrets {
        epoch: 1,
        id: Some(secret(1)),
        cdc: Some(secret(2)),
        split: Some(secret(3)),
        idx: Some(secret(4)),
        meta: Some(secret(5)),
        data: Some(secret(6)),
        psk: Some(secret(7)),
        pk_meta: None,
        pk_data: None,
        id_meta: None,
    };
    let signer = Signer::new(KID, &secret(8), &REPO);
    let writer = WriterKey {
        kid: KID,
        public_key: signer.public_key(),
        roles: u32::MAX,
        from_config: 0,
        revoked_at: None,
        chain_end: None,
    };
    World {
        keys: KeyRing::new(REPO, vec![epoch], 1).expect("one epoch"),
        signer,
        verifier: Verifier { writers: vec![writer] },
        grant_key: secret(9),
    }
});

/// Two sections out of one input: the first two bytes say where the first ends.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return (bytes, &[]) };
    rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()))
}

/// Signs what the fuzzer made up, if it is a map at all.
fn signed_map(bytes: &[u8], name: &ObjectName) -> Option<Vec<u8>> {
    let Ok(Value::Map(entries)) = cbor::decode(bytes) else { return None };
    let fields = entries
        .into_iter()
        .filter_map(|(key, value)| match key {
            Value::Uint(key) if (3..=FIELD_MAX).contains(&key) => Some((key, value)),
            _ => None,
        })
        .collect();
    Some(signed::sign(fields, Timestamp(1_700_000_000_000_000_000), name, &WORLD.signer))
}

fn seal(kind: EnvelopeKind, key: &Secret, name: &str, sections: &[&[u8]]) -> Vec<u8> {
    envelope::seal(kind, 1, &REPO, OBJECT, key, name, sections)
}

fuzz_target!(|data: &[u8]| {
    let Some((number, bytes)) = data.split_first() else { return };
    let World { keys, signer: _, verifier, grant_key } = &*WORLD;
    let class = |class| keys.object_key(1, class).expect("a key");
    let (first, second) = split(bytes);
    let sealed = |kind, key, name: &ObjectName, whole: bool| {
        let map = signed_map(if whole { bytes } else { first }, name)?;
        let sections: &[&[u8]] = if whole || second.is_empty() { &[&map] } else { &[&map, second] };
        Some(seal(kind, key, &name.to_string(), sections))
    };
    match number % 9 {
        0 => {
            let name = ObjectName::Outcome(SESSION);
            if let Some(object) = sealed(EnvelopeKind::Outcome, class(ObjectClass::Outcome), &name, false) {
                if let Ok(outcome) = Outcome::decode(&object, &SESSION, keys, verifier) {
                    let _ = outcome.manifest(keys);
                }
            }
        }
        1 => {
            let name = ObjectName::Session(SESSION, 0);
            if let Some(object) = sealed(EnvelopeKind::Session, class(ObjectClass::Session), &name, true) {
                let _ = Registration::decode(&object, &SESSION, keys, verifier);
            }
        }
        2 => {
            let name = ObjectName::Session(SESSION, 1);
            if let Some(object) = sealed(EnvelopeKind::Session, class(ObjectClass::Session), &name, true) {
                let _ = Acknowledgement::decode(&object, &SESSION, 1, keys, verifier);
            }
        }
        3 => {
            let name = ObjectName::Condemnation(SESSION);
            if let Some(object) = sealed(EnvelopeKind::Gc, class(ObjectClass::Gc), &name, false) {
                let _ = Condemnation::decode(&object, &SESSION, keys, verifier);
            }
        }
        4 => {
            let name = ObjectName::Drop(SESSION);
            if let Some(object) = sealed(EnvelopeKind::Drop, class(ObjectClass::Drop), &name, true) {
                let _ = Drop::decode(&object, &SESSION, keys, verifier);
            }
        }
        5 => {
            let name = ObjectName::Hold(SESSION, "ab".into());
            if let Some(object) = sealed(EnvelopeKind::Hold, class(ObjectClass::Hold), &name, true) {
                let _ = Hold::decode(&object, &SESSION, "ab", keys, verifier);
            }
        }
        6 => {
            let name = ObjectName::Attest(SESSION, 1);
            if let Some(object) = sealed(EnvelopeKind::Attest, class(ObjectClass::Attest), &name, true) {
                let _ = Attest::decode(&object, &SESSION, 1, keys, verifier);
            }
        }
        7 => {
            let name = ObjectName::Grant(KID, 0);
            if let Some(map) = signed_map(bytes, &name) {
                let object = seal(EnvelopeKind::Grant, grant_key, &name.to_string(), &[&map]);
                let _ = Grant::decode(&object, &KID, 0, grant_key, &REPO, verifier);
            }
        }
        _ => {
            // A run is signed inside of its header, so only the ranged reader, which leaves that out, goes deeper than that.
            let name = ObjectName::Run(SESSION, 1).to_string();
            let sections: &[&[u8]] = if second.is_empty() { &[first] } else { &[first, second] };
            let object = seal(EnvelopeKind::Run, class(ObjectClass::Run), &name, sections);
            let _ = run::decode_l0(&object, &name, keys, verifier);
            let head = EnvelopeHead::parse(&object, EnvelopeKind::Run, &REPO);
            if let (Ok(Some(run)), Ok(Some(envelope))) = (RunHead::parse(&object, &name, keys), head) {
                for section in 1..envelope.sections() {
                    let range = envelope.range(section);
                    let Some(part) = object.get(range.start as usize..range.end as usize) else { continue };
                    let _ = run.open_chunks(section, part, keys);
                    let _ = run.open_packs(section, part, keys);
                    let _ = run.open_slots(section, part, keys);
                    let _ = run.open_deltas(section, part, keys);
                }
            }
        }
    }
});
