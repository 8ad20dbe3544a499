//! Protectors (format-spec chapter on keys): a key holder's secret, wrapped for one password, key file or key command.
//!
//! A protector is read before anything is unlocked, so nothing in it is trusted but what the seal covers, and the cost that it
//! asks for is limited before it is paid.

use super::FormatError;
use super::cbor::{self, Fields, Value};
use super::codec::{Malformed, malformed};
use super::signed;
use crate::pure::base::Timestamp;
use crate::pure::crypto::{self, Sealer, Secret, kdf::Cost};
use crate::pure::id::{KeyId, RepoId};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"LARDERK1";
/// Largest protector, configuration or grant, bytes.
pub const OBJECT_BYTES_MAX: usize = 1 << 20;
/// One message per key, so one nonce.
const NONCE: [u8; 12] = [0; 12];

/// How the 32-byte input of a protector is obtained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtectorKind {
    Passphrase {
        salt: [u8; 16],
        cost: Cost,
    },
    KeyFile,
    /// A program prints the 32 bytes. Which one is said by the local configuration, never by the repository.
    Command,
    /// KMS (2) or X25519 recipient (3): read and shown, not opened by this version. Its parameters are not kept, so it must
    /// not be written again.
    Other {
        kind: u8,
    },
}

impl ProtectorKind {
    /// The type as stored.
    fn number(&self) -> u8 {
        match self {
            ProtectorKind::Passphrase { .. } => 1,
            ProtectorKind::KeyFile => 4,
            ProtectorKind::Command => 5,
            ProtectorKind::Other { kind } => *kind,
        }
    }

    fn parse(kind: u64, params: Value) -> Result<ProtectorKind, FormatError> {
        let mut params = Fields::new(params, "parameters of the protector")?;
        match kind {
            1 => {
                let salt = params.byte_array(0, "salt")?;
                let mut number = |key| params.u32(key, "cost of Argon2id");
                let cost = Cost {
                    memory_kib: number(1)?,
                    passes: number(2)?,
                    lanes: number(3)?,
                };
                check_cost(cost)?;
                Ok(ProtectorKind::Passphrase { salt, cost })
            }
            4 => Ok(ProtectorKind::KeyFile),
            5 => Ok(ProtectorKind::Command),
            2 | 3 => Ok(ProtectorKind::Other { kind: kind as u8 }),
            _ => Ok(malformed("type of the protector")?),
        }
    }
}

/// Refuses what would exhaust memory or time: anybody who can write to the store can write a protector.
fn check_cost(cost: Cost) -> Result<(), Malformed> {
    let Cost {
        memory_kib,
        passes,
        lanes,
    } = cost;
    let fits = (1..=16).contains(&lanes) && (1..=64).contains(&passes) && (8 * lanes..=2_097_152).contains(&memory_kib);
    if fits {
        Ok(())
    } else {
        malformed("cost of Argon2id out of bounds")
    }
}

/// A protector as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protector {
    pub kid: KeyId,
    pub created: Timestamp,
    pub kind: ProtectorKind,
    /// The sealed secret, 48 bytes.
    pub wrapped: Vec<u8>,
    pub commitment: [u8; 32],
    pub hint: Option<String>,
}

/// The password or key file is not the one of this protector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key does not fit this protector")]
pub struct WrongKey;

impl Protector {
    /// Wraps `kid_secret` with the 32 bytes `ikm`.
    pub fn wrap(
        repo: &RepoId,
        kid: KeyId,
        created: Timestamp,
        kind: ProtectorKind,
        hint: Option<String>,
        ikm: &Secret,
        kid_secret: &Secret,
    ) -> Protector {
        let aad = aad(repo, &kid, &kind);
        let wrapped = wrapping_sealer(repo, ikm).seal(&NONCE, kid_secret.expose(), &aad);
        Protector {
            kid,
            created,
            kind,
            wrapped,
            commitment: *commitment(repo, ikm).expose(),
            hint,
        }
    }

    /// Compares the commitment in constant time, then opens.
    ///
    /// # Errors
    /// If `ikm` is not what the protector was made with, or the protector belongs to another repository or key.
    pub fn unwrap(&self, repo: &RepoId, ikm: &Secret) -> Result<Secret, WrongKey> {
        // The seal alone does not commit to its key: without this, one protector could open with two passwords.
        if commitment(repo, ikm) != Secret::new(self.commitment) {
            return Err(WrongKey);
        }
        let opened = wrapping_sealer(repo, ikm).open(&NONCE, &self.wrapped, &aad(repo, &self.kid, &self.kind));
        let opened = Zeroizing::new(opened.map_err(|_| WrongKey)?);
        Secret::from_slice(&opened).ok_or(WrongKey)
    }

    /// Encodes for `keys/<kid>/<nnnn>`.
    pub fn encode(&self) -> Vec<u8> {
        let params = match &self.kind {
            ProtectorKind::Passphrase { salt, cost } => vec![
                (0, Value::bytes(salt)),
                (1, Value::Uint(cost.memory_kib.into())),
                (2, Value::Uint(cost.passes.into())),
                (3, Value::Uint(cost.lanes.into())),
            ],
            ProtectorKind::KeyFile | ProtectorKind::Command | ProtectorKind::Other { .. } => Vec::new(),
        };
        let mut fields = vec![
            (0, Value::Uint(1)),
            (1, Value::bytes(self.kid.as_bytes())),
            (2, Value::time(self.created)),
            (3, Value::Uint(self.kind.number().into())),
            (4, Value::map(params)),
            (5, Value::bytes(&self.wrapped)),
            (6, Value::bytes(&self.commitment)),
        ];
        fields.extend(self.hint.as_deref().map(|hint| (7, Value::text(hint))));
        frame(MAGIC, &cbor::encode(&Value::map(fields)))
    }

    /// Decodes the protector of `kid`.
    ///
    /// # Errors
    /// If the bytes do not follow the format, belong to another key holder, or ask for a cost out of bounds.
    pub fn decode(bytes: &[u8], kid: &KeyId) -> Result<Protector, FormatError> {
        let what = "protector";
        let mut fields = Fields::new(cbor::decode(unframe(MAGIC, bytes, what)?)?, what)?;
        signed::check_version(&mut fields, what)?;
        if fields.byte_array(1, "key holder")? != kid.0 {
            return Ok(malformed("key holder differs from the name")?);
        }
        let created = fields.time(2, "time of creation")?;
        let number = fields.uint(3, "type of the protector")?;
        let kind = ProtectorKind::parse(number, fields.required(4, "parameters of the protector")?)?;
        Ok(Protector {
            kid: *kid,
            created,
            kind,
            wrapped: fields.byte_array::<48>(5, "wrapped secret")?.to_vec(),
            commitment: fields.byte_array(6, "commitment")?,
            hint: fields.optional(7).map(|value| value.into_text("hint")).transpose()?,
        })
    }
}

fn wrapping_sealer(repo: &RepoId, ikm: &Secret) -> Sealer {
    Sealer::new(&crypto::derive("larder v1 protector", &[ikm.expose(), repo.as_bytes()]))
}

fn commitment(repo: &RepoId, ikm: &Secret) -> Secret {
    crypto::derive("larder v1 protector commit", &[ikm.expose(), repo.as_bytes()])
}

fn aad(repo: &RepoId, kid: &KeyId, kind: &ProtectorKind) -> Vec<u8> {
    [b"LKEY".as_slice(), repo.as_bytes(), kid.as_bytes(), &[kind.number()]].concat()
}

/// Frames a plaintext object: magic ‖ CBOR ‖ H(all before).
pub(super) fn frame(magic: &[u8; 8], body: &[u8]) -> Vec<u8> {
    let mut out = [magic.as_slice(), body].concat();
    out.extend_from_slice(&crypto::hash(&out));
    out
}

/// Whether a framed object, a configuration or protector, ends with its own hash.
pub fn is_intact(bytes: &[u8]) -> bool {
    bytes
        .split_last_chunk::<32>()
        .is_some_and(|(framed, hash)| crypto::hash(framed) == *hash)
}

/// Returns the CBOR of a framed object after checking size, magic and hash. `what` names the object.
pub(super) fn unframe<'a>(magic: &[u8; 8], bytes: &'a [u8], what: &'static str) -> Result<&'a [u8], Malformed> {
    if bytes.len() > OBJECT_BYTES_MAX {
        return malformed("object larger than 1 MiB");
    }
    let Some((framed, hash)) = bytes.split_last_chunk::<32>() else {
        return malformed(what);
    };
    match framed.strip_prefix(magic) {
        Some(body) if crypto::hash(framed) == *hash => Ok(body),
        Some(_) => malformed("hash of the object"),
        None => malformed(what),
    }
}

#[cfg(test)]
mod tests {
    use super::super::signed::fixture::*;
    use super::*;
    use crate::pure::id::from_hex;

    const PASSPHRASE: &str = "4c41524445524b31a70001015011111111222222222222222222222222021b17979cfe362a0000030104a40050000102030405060708090a0b0c0d0e0f011a0001000002030304055830406a3fcf5b83372be5374417b29d296a1cf8329ca49dc3c1ea6c6a36f241cff6abf973544719266a6b21bf0d9466353a065820317a9ca2d985fdf889d011c483218c4b1512a75391629a7ea46fa9470bdbd2a416036d058921ce39626e3ed32b67d7e8b061247a76137fe1eaaf6e00c5838c60";
    const KEY_FILE: &str = "4c41524445524b31a70001015011111111222222222222222222222222021b17979cfe362a0000030404a0055830da3dcaa7088eb79e7db375001444e72192f8fdadb1c7f42d98f1f0b649d368da4630e78108a7fc7f8e785b385e5bbe7d06582009c3ef0e7ad8e5eb66d5ab42680d406a6992c1bfc95a0c9f62de3b1732ae3b7848360c3d64960fc6eef9135c3af35f1721a47167d8c9eee3476f2ecd9440bdce";
    /// What Argon2id makes of the passphrase of the vector.
    const IKM: &str = "853b272a44db1421c02962669a55eb0994f3cab385ed1c4c79253eee19bab49e";

    fn passphrase() -> ProtectorKind {
        let salt = std::array::from_fn(|index| index as u8);
        ProtectorKind::Passphrase {
            salt,
            cost: Cost {
                memory_kib: 65_536,
                passes: 3,
                lanes: 4,
            },
        }
    }

    fn ikm() -> Secret {
        Secret::from_slice(&from_hex(IKM).unwrap()).unwrap()
    }

    #[test]
    fn protectors_have_the_bytes_of_the_vectors_and_open() {
        let key_file = Secret::new(std::array::from_fn(|index| index as u8));
        for (hex, kind, ikm) in [
            (PASSPHRASE, passphrase(), ikm()),
            (KEY_FILE, ProtectorKind::KeyFile, key_file),
        ] {
            let protector = Protector::wrap(&REPO, KID, START, kind, None, &ikm, &secret(8));
            let bytes = protector.encode();
            assert_eq!(bytes, from_hex(hex).unwrap());
            let read = Protector::decode(&bytes, &KID).unwrap();
            assert_eq!(read, protector);
            assert_eq!(read.unwrap(&REPO, &ikm), Ok(secret(8)));
        }
        let command = Protector::wrap(&REPO, KID, START, ProtectorKind::Command, None, &ikm(), &secret(8));
        let read = Protector::decode(&command.encode(), &KID).unwrap();
        assert_eq!((read.unwrap(&REPO, &ikm()), read), (Ok(secret(8)), command));
    }

    #[test]
    fn protector_opens_with_its_own_key_repository_holder_and_type_only() {
        let protector = Protector::wrap(&REPO, KID, START, passphrase(), Some("hint".into()), &ikm(), &secret(8));
        assert_eq!(Protector::decode(&protector.encode(), &KID).unwrap(), protector);
        assert_eq!(protector.unwrap(&REPO, &secret(1)), Err(WrongKey));
        assert_eq!(protector.unwrap(&RepoId([0; 16]), &ikm()), Err(WrongKey));
        assert_eq!(
            Protector {
                kid: OTHER_KID,
                ..protector.clone()
            }
            .unwrap(&REPO, &ikm()),
            Err(WrongKey)
        );
        let other_kind = Protector {
            kind: ProtectorKind::KeyFile,
            ..protector.clone()
        };
        assert_eq!(other_kind.unwrap(&REPO, &ikm()), Err(WrongKey));
        assert!(Protector::decode(&protector.encode(), &OTHER_KID).is_err());
        // The commitment alone must be enough to refuse, and the seal alone too.
        for bit in 0..256 {
            let mut changed = protector.clone();
            changed.commitment[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(changed.unwrap(&REPO, &ikm()), Err(WrongKey));
        }
        for bit in 0..48 * 8 {
            let mut changed = protector.clone();
            changed.wrapped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(changed.unwrap(&REPO, &ikm()), Err(WrongKey));
        }
    }

    #[test]
    fn damaged_protector_is_refused() {
        let bytes = from_hex(PASSPHRASE).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Protector::decode(&flipped, &KID).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Protector::decode(&bytes[..len], &KID).is_err(), "truncated to {len}");
        }
        assert!(Protector::decode(&frame(MAGIC, &vec![0; OBJECT_BYTES_MAX]), &KID).is_err());
    }

    fn with_params(kind: u64, params: Vec<(u64, Value)>, extra: Vec<(u64, Value)>) -> Result<Protector, FormatError> {
        let mut fields = vec![
            (0, Value::Uint(1)),
            (1, Value::bytes(&KID.0)),
            (2, Value::time(START)),
            (3, Value::Uint(kind)),
            (4, Value::map(params)),
            (5, Value::Bytes(vec![0; 48])),
            (6, Value::Bytes(vec![0; 32])),
        ];
        fields.extend(extra);
        Protector::decode(&frame(MAGIC, &cbor::encode(&Value::map(fields))), &KID)
    }

    #[test]
    fn cost_out_of_bounds_is_refused_before_it_is_paid() {
        let cost = |memory, passes, lanes| {
            let params = vec![
                (0, Value::Bytes(vec![0; 16])),
                (1, Value::Uint(memory)),
                (2, Value::Uint(passes)),
                (3, Value::Uint(lanes)),
            ];
            with_params(1, params, vec![]).is_ok()
        };
        for (memory, passes, lanes) in [(65_536, 3, 4), (8, 1, 1), (128, 64, 16), (2_097_152, 1, 1)] {
            assert!(cost(memory, passes, lanes), "{memory} {passes} {lanes}");
        }
        let refused = [
            (2_097_153, 1, 1),
            (u64::MAX, 1, 1),
            (1 << 32, 1, 1),
            (65_536, 0, 4),
            (65_536, 65, 4),
            (65_536, 3, 0),
            (65_536, 3, 17),
            (65_536, 3, 1 << 31),
            (7, 1, 1),
            (127, 1, 16),
        ];
        for (memory, passes, lanes) in refused {
            assert!(!cost(memory, passes, lanes), "{memory} {passes} {lanes}");
        }
    }

    #[test]
    fn other_types_are_read_but_unknown_ones_and_critical_keys_are_not() {
        for kind in [2, 3] {
            assert_eq!(
                with_params(kind, vec![], vec![]).unwrap().kind,
                ProtectorKind::Other { kind: kind as u8 }
            );
        }
        for kind in [0, 6, 260] {
            assert!(with_params(kind, vec![], vec![]).is_err(), "type {kind}");
        }
        assert!(with_params(4, vec![], vec![(0x7fff, Value::Null)]).is_ok());
        assert!(matches!(
            with_params(4, vec![], vec![(0x8000, Value::Null)]),
            Err(FormatError::TooNew { .. })
        ));
        assert!(matches!(
            with_params(4, vec![(0x8000, Value::Null)], vec![]),
            Err(FormatError::TooNew { .. })
        ));
    }
}
