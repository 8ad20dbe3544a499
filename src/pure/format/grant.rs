//! Grants (format-spec chapter on keys): what a key holder may do, and the secrets for it.

use super::FormatError;
use super::cbor::{Fields, Value};
use super::codec::malformed;
use super::envelope::{self, Envelope, EnvelopeKind};
use super::name::ObjectName;
use super::protector::OBJECT_BYTES_MAX;
use super::signed::{self, SignedMap};
use crate::pure::base::Timestamp;
use crate::pure::crypto::{self, EpochSecrets, Secret, Signer, Verifier, sign::role};
use crate::pure::id::{KeyId, RepoId};
use zeroize::Zeroizing;

/// A row of the admin's table of key holders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KidRow {
    pub kid: KeyId,
    pub grant_key: Secret,
    pub label: String,
}

/// A grant.
#[derive(Clone, Debug)]
pub struct Grant {
    pub issuer: KeyId,
    pub created: Timestamp,
    pub roles: u32,
    pub repo: RepoId,
    pub config_sequence: u64,
    /// Public keys whose configurations the holder trusts.
    pub admin_keys: Vec<[u8; 32]>,
    /// Ascending by epoch, at least one.
    pub epochs: Vec<EpochSecrets>,
    pub label: Option<String>,
    /// Empty unless the holder is an admin.
    pub kid_table: Vec<KidRow>,
}

/// K_g of a key holder.
pub fn grant_key(kid_secret: &Secret, repo: &RepoId) -> Secret {
    crypto::derive("larder v1 grant key", &[kid_secret.expose(), repo.as_bytes()])
}

/// K_cache of a key holder: seals the local node cache.
pub fn cache_key(kid_secret: &Secret, repo: &RepoId) -> Secret {
    crypto::derive("larder v1 local cache", &[kid_secret.expose(), repo.as_bytes()])
}

impl Grant {
    /// Signs and seals under `grants/<kid>/<number>`. The issuer that is written is the signer; the epoch in the header is the
    /// highest that the grant holds.
    pub fn encode(
        &self,
        kid: &KeyId,
        number: u64,
        grant_key: &Secret,
        signer: &Signer,
        object_id: [u8; 16],
    ) -> Vec<u8> {
        let mut epochs: Vec<&EpochSecrets> = self.epochs.iter().collect();
        epochs.sort_by_key(|secrets| secrets.epoch);
        let current = epochs.last().map_or(0, |secrets| secrets.epoch);
        let mut fields = vec![
            (3, Value::Uint(self.roles.into())),
            (4, Value::bytes(self.repo.as_bytes())),
            (5, Value::Uint(self.config_sequence)),
            (6, Value::array(&self.admin_keys, |key| Value::bytes(key))),
            (7, Value::array(epochs, encode_epoch)),
        ];
        fields.extend(self.label.as_deref().map(|label| (8, Value::text(label))));
        if !self.kid_table.is_empty() {
            fields.push((9, Value::array(&self.kid_table, encode_row)));
        }
        let name = ObjectName::Grant(*kid, number);
        let map = Zeroizing::new(signed::sign(fields, self.created, &name, signer));
        envelope::seal(
            EnvelopeKind::Grant,
            current,
            &self.repo,
            object_id,
            grant_key,
            &name.to_string(),
            &[&map],
        )
    }

    /// Opens and verifies.
    ///
    /// # Errors
    /// If the object is not exactly this grant, of this repository, issued by an admin whose public key the grant itself names.
    pub fn decode(
        bytes: &[u8],
        kid: &KeyId,
        number: u64,
        grant_key: &Secret,
        repo: &RepoId,
        verifier: &Verifier,
    ) -> Result<Grant, FormatError> {
        if bytes.len() > OBJECT_BYTES_MAX {
            return Ok(malformed("grant larger than 1 MiB")?);
        }
        let name = ObjectName::Grant(*kid, number);
        let envelope = Envelope::parse(bytes, EnvelopeKind::Grant, repo)?;
        if envelope.sections() != 1 {
            return Ok(malformed("more than one section")?);
        }
        let plaintext = Zeroizing::new(envelope.open(0, grant_key, &name.to_string())?);
        let mut map = SignedMap::parse(&plaintext, "grant")?;
        map.verify(verifier, role::ADMIN, &name)?;
        let fields = &mut map.fields;
        if fields.byte_array(4, "repository")? != repo.0 {
            return Ok(malformed("grant of another repository")?);
        }
        let admin_keys: Vec<[u8; 32]> = match fields.optional(6) {
            Some(value) => value
                .into_array("admin keys")?
                .into_iter()
                .map(|key| key.into_byte_array("admin key"))
                .collect::<Result<_, _>>()?,
            None => return Ok(malformed("admin keys")?),
        };
        // The holder takes its trust in configurations from these keys, so the issuer must be one of them.
        let issued_by_named = verifier
            .writers
            .iter()
            .any(|writer| writer.kid == map.kid && admin_keys.contains(&writer.public_key));
        if !issued_by_named {
            return Ok(malformed("issuer is not among the admin keys")?);
        }
        let mut epochs: Vec<EpochSecrets> = Vec::new();
        for value in fields.required(7, "epochs")?.into_array("epochs")? {
            epochs.push(parse_epoch(value)?);
        }
        if epochs.is_empty() || epochs.windows(2).any(|pair| pair[0].epoch >= pair[1].epoch) {
            return Ok(malformed("epochs missing or out of order")?);
        }
        let mut kid_table = Vec::new();
        for value in fields.array_or_empty(9, "table of key holders")? {
            kid_table.push(parse_row(value)?);
        }
        Ok(Grant {
            issuer: map.kid,
            created: map.created,
            roles: fields.u32(3, "roles")?,
            repo: *repo,
            config_sequence: fields.uint(5, "sequence of the configuration")?,
            admin_keys,
            epochs,
            label: fields.optional(8).map(|value| value.into_text("label")).transpose()?,
            kid_table,
        })
    }
}

fn encode_epoch(secrets: &EpochSecrets) -> Value {
    let held = [
        (1, &secrets.id),
        (2, &secrets.cdc),
        (3, &secrets.split),
        (4, &secrets.idx),
        (5, &secrets.meta),
        (6, &secrets.data),
        (7, &secrets.psk),
        (10, &secrets.id_meta),
    ];
    let mut fields = vec![(0, Value::Uint(secrets.epoch.into()))];
    for (key, secret) in held {
        fields.extend(secret.as_ref().map(|secret| (key, Value::bytes(secret.expose()))));
    }
    let public = [(8, &secrets.pk_meta), (9, &secrets.pk_data)];
    for (key, public) in public {
        fields.extend(public.as_ref().map(|public| (key, Value::bytes(public))));
    }
    Value::map(fields)
}

fn parse_epoch(value: Value) -> Result<EpochSecrets, FormatError> {
    let mut fields = Fields::new(value, "epoch")?;
    let epoch = fields.u32(0, "epoch")?;
    if epoch == 0 {
        return Ok(malformed("epoch 0")?);
    }
    let mut public = |key| {
        fields
            .optional(key)
            .map(|value| value.into_byte_array::<32>("public key of the epoch"))
            .transpose()
    };
    let (pk_meta, pk_data) = (public(8)?, public(9)?);
    let mut secret = |key| {
        fields
            .optional(key)
            .map(|value| value.into_secret("secret of the epoch"))
            .transpose()
    };
    Ok(EpochSecrets {
        epoch,
        id: secret(1)?,
        cdc: secret(2)?,
        split: secret(3)?,
        idx: secret(4)?,
        meta: secret(5)?,
        data: secret(6)?,
        psk: secret(7)?,
        pk_meta,
        pk_data,
        id_meta: secret(10)?,
    })
}

fn encode_row(row: &KidRow) -> Value {
    Value::Array(vec![
        Value::bytes(row.kid.as_bytes()),
        Value::bytes(row.grant_key.expose()),
        Value::text(&row.label),
    ])
}

fn parse_row(value: Value) -> Result<KidRow, FormatError> {
    let what = "row of the table of key holders";
    let [kid, grant_key, label] = value.into_row(what)?;
    Ok(KidRow {
        kid: KeyId(kid.into_byte_array(what)?),
        grant_key: grant_key.into_secret(what)?,
        label: label.into_text(what)?,
    })
}

#[cfg(test)]
mod tests {
    use super::signed::fixture::*;
    use super::*;
    use crate::pure::crypto::sign::BadSignature;
    use crate::pure::id::from_hex;

    const VECTOR: &str = "4c41524445524f310701000001000000101112131415161718191a1b1c1d1e1f808182838485868788898a8b8c8d8e8f01000000000000000000000000000000000000001502000076cd1024582009e4045dfa8f251a2a98c4aeb872dff1ad3565c85c40ede6cab8c153511d475f291d92c45457d3178231552b373bfd98119fc6a47d1fbd02e71a7950aad00a584895597517cd2e4425f712a2564eb051550bcd33623d989ae5d191ef55f0544a85dbd03f801600d8ba237497205c771c23cc13c040f3eb763d4f77e4cf9fef6ff695a6201c85adbdd3f78c99805fba63f85e8900463cbd4f73a0945d219313b5657a0975f626612d8ca2da4281ff590b3c800e6f56b0230e256c033599f9be12260756adb1498e08db4594e9d154c3f05b3f4c281343aa33e59f98d27b4ee018a566c074ec4d486b1be2fa90c394fd9b4ffca33225480d975afbaff2c7a3e2434ed63bb5696452b0df64e2da10793c211ed732c6d5d028064d61246e0e2ffc762c2fad3c48a02695d0d14d4db39f1c7fdfeeab8c37d6a286bb4f1c10856fb16851602cf6123ebbb1128e9397bbd74bba0f33ae002d53e33640b7ec5d6368736132a2047bb4f4d0eaa2c0ab79fb9323377a730af5d6a52a1e7ec6891b72299b539454fff800a2c5dbe4fde0a9172059fa4725a628f50961d2bdbeb3191874b6b9bbb19b79522041a12fa6f4053f593a9b275b679a265e0ce2c70505e8d868dd866952d17baa68d32aa1ebc9a153fc8e7c5d593d8a794bd859acce48619f7cd48a638d1918568b843adbef166d6019957ea63d8575b3f57b0f5b039d92adc00a585056a2177f66800628f23ea384021f77d11725dc08826baf827a54511e4be5a8a6b7d35557bf5143a9f1f6bd488be14c41524445524531";
    const K_G: &str = "528ea1adc17b232b8d8a1ea28d71451aab1b8915099a587e41438e5ef408a815";
    const K_ID_META: &str = "771a1cedc1fdb8de66ec1fab17203cb8611f53ed60ac2367d0cfb3dff53adcc3";

    fn key() -> Secret {
        grant_key(&secret(8), &REPO)
    }

    fn hex_secret(hex: &str) -> Secret {
        Secret::from_slice(&from_hex(hex).unwrap()).unwrap()
    }

    fn admin_grant() -> Grant {
        Grant {
            issuer: KID,
            created: START,
            roles: role::ADMIN,
            repo: REPO,
            config_sequence: 0,
            admin_keys: vec![signer().public_key()],
            epochs: vec![EpochSecrets {
                id_meta: Some(hex_secret(K_ID_META)),
                ..epoch(1)
            }],
            label: Some("first key".into()),
            kid_table: vec![KidRow {
                kid: KID,
                grant_key: key(),
                label: "first key".into(),
            }],
        }
    }

    fn decode(bytes: &[u8], verifier: &Verifier) -> Result<Grant, FormatError> {
        Grant::decode(bytes, &KID, 0, &key(), &REPO, verifier)
    }

    fn assert_same(left: &Grant, right: &Grant) {
        let secrets = |epoch: &EpochSecrets| {
            let EpochSecrets {
                epoch,
                id,
                cdc,
                split,
                idx,
                meta,
                data,
                psk,
                pk_meta,
                pk_data,
                id_meta,
            } = epoch.clone();
            (epoch, [id, cdc, split, idx, meta, data, psk, id_meta], pk_meta, pk_data)
        };
        assert_eq!(
            left.epochs.iter().map(secrets).collect::<Vec<_>>(),
            right.epochs.iter().map(secrets).collect::<Vec<_>>()
        );
        assert_eq!(
            (left.issuer, left.created, left.roles, left.repo),
            (right.issuer, right.created, right.roles, right.repo)
        );
        assert_eq!((&left.admin_keys, &left.label), (&right.admin_keys, &right.label));
        assert_eq!(
            (left.config_sequence, &left.kid_table),
            (right.config_sequence, &right.kid_table)
        );
    }

    #[test]
    fn grant_has_the_bytes_of_the_vectors() {
        assert_eq!(key(), hex_secret(K_G));
        let bytes = admin_grant().encode(&KID, 0, &key(), &signer(), OBJECT_ID);
        assert_eq!(bytes, from_hex(VECTOR).unwrap());
        assert_same(&decode(&bytes, &verifier(role::ADMIN)).unwrap(), &admin_grant());
    }

    #[test]
    fn partial_grants_of_several_epochs_round_trip_in_order() {
        let held = EpochSecrets {
            id: None,
            cdc: None,
            data: None,
            pk_data: Some([7; 32]),
            ..epoch(2)
        };
        let grant = Grant {
            roles: role::WRITE,
            label: None,
            kid_table: vec![],
            epochs: vec![epoch(1), held.clone()],
            config_sequence: 7,
            ..admin_grant()
        };
        let reversed = Grant {
            epochs: vec![held, epoch(1)],
            ..grant.clone()
        };
        let bytes = reversed.encode(&KID, 0, &key(), &signer(), OBJECT_ID);
        assert_same(&decode(&bytes, &verifier(role::ADMIN)).unwrap(), &grant);
        assert_eq!(Envelope::parse(&bytes, EnvelopeKind::Grant, &REPO).unwrap().epoch(), 2);
    }

    #[test]
    fn any_change_and_any_other_place_is_refused() {
        let admin = verifier(role::ADMIN);
        let bytes = admin_grant().encode(&KID, 0, &key(), &signer(), OBJECT_ID);
        assert_fragile(&bytes, ENVELOPE_TAIL, |bytes| decode(bytes, &admin));
        assert!(Grant::decode(&bytes, &OTHER_KID, 0, &key(), &REPO, &admin).is_err());
        assert!(Grant::decode(&bytes, &KID, 1, &key(), &REPO, &admin).is_err());
        assert!(Grant::decode(&bytes, &KID, 0, &secret(9), &REPO, &admin).is_err());
        assert!(Grant::decode(&bytes, &KID, 0, &key(), &RepoId([0; 16]), &admin).is_err());
    }

    #[test]
    fn only_an_admin_whom_the_grant_names_may_issue() {
        let bytes = admin_grant().encode(&KID, 0, &key(), &signer(), OBJECT_ID);
        assert_needs_role(role::ADMIN, |verifier| decode(&bytes, verifier));
        assert_eq!(
            decode(&bytes, &revoked(role::ADMIN)).unwrap_err(),
            FormatError::Signature(BadSignature::Revoked(KID))
        );
        let unnamed = Grant {
            admin_keys: vec![other_signer().public_key()],
            ..admin_grant()
        };
        let bytes = unnamed.encode(&KID, 0, &key(), &signer(), OBJECT_ID);
        assert!(matches!(
            decode(&bytes, &verifier(role::ADMIN)),
            Err(FormatError::Malformed(_))
        ));
    }

    #[test]
    fn epochs_must_be_there_ascending_and_unknown_critical_keys_refused() {
        let with = |epochs: Vec<EpochSecrets>| {
            let bytes = Grant {
                epochs,
                ..admin_grant()
            }
            .encode(&KID, 0, &key(), &signer(), OBJECT_ID);
            decode(&bytes, &verifier(role::ADMIN)).is_ok()
        };
        assert!(with(vec![epoch(1), epoch(3)]));
        assert!(!with(vec![]));
        assert!(!with(vec![epoch(1), epoch(1)]));
        assert!(!with(vec![epoch(0)]));

        let with_key = |unknown: u64| {
            let name = ObjectName::Grant(KID, 0);
            let fields = vec![
                (3, Value::Uint(0)),
                (4, Value::bytes(&REPO.0)),
                (5, Value::Uint(0)),
                (6, Value::array([signer().public_key()], |key| Value::bytes(&key))),
                (7, Value::array([epoch(1)], |secrets| encode_epoch(&secrets))),
                (unknown, Value::Null),
            ];
            let map = signed::sign(fields, START, &name, &signer());
            let bytes = envelope::seal(
                EnvelopeKind::Grant,
                1,
                &REPO,
                OBJECT_ID,
                &key(),
                &name.to_string(),
                &[&map],
            );
            decode(&bytes, &verifier(role::ADMIN))
        };
        assert!(with_key(0x7fff).is_ok());
        assert!(matches!(with_key(0x8000), Err(FormatError::TooNew { .. })));
    }
}
