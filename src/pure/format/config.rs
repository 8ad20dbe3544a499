//! The repository configuration (format-spec chapter on config): plaintext, signed, numbered.

use super::FormatError;
use super::blob::Padding;
use super::cbor::{Fields, Value};
use super::codec::{Malformed, malformed};
use super::name::ObjectName;
use super::parity::Shape;
use super::protector::{frame, unframe};
use super::signed::{self, SignedMap};
use crate::pure::base::{LockMode, Timestamp};
use crate::pure::chunk::Profile;
use crate::pure::crypto::{Signer, Verifier, sign::WriterKey, sign::role};
use crate::pure::id::{KeyId, ObjectHash, PlaceId, RepoId};
use std::collections::BTreeSet;

const MAGIC: &[u8; 8] = b"LARDERC1";
/// Writers stay below this, bytes: a larger target would make packs that readers refuse.
const PACK_BYTES_MAX: u64 = 1 << 30;
/// More open packs per kind than this would only cost memory.
const LANES_MAX: u32 = 64;
/// Highest level that the compressor offers.
const ZSTD_LEVEL_MAX: u32 = 19;
/// A lock for longer, days, is a mistake; and nobody could undo it.
const LOCK_DAYS_MAX: u32 = 36_500;

/// A configuration, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub admin: KeyId,
    pub created: Timestamp,
    pub repo: RepoId,
    pub sequence: u64,
    pub previous: Option<ObjectHash>,
    pub features: Features,
    pub epoch: u32,
    /// The chunker profiles that this version knows, in order. Where there are none of `other_chunkers`, the place in here is
    /// the number that roots name.
    pub chunkers: Vec<Profile>,
    /// Profiles of algorithms that this version does not know, with their place among all. Readers need none of them.
    pub other_chunkers: Vec<(usize, Value)>,
    pub data_pack_bytes: u64,
    pub meta_pack_bytes: u64,
    pub lanes: u32,
    pub zstd_level: u32,
    pub tree: TreeParams,
    pub padding: Padding,
    pub dedup_trust: u32,
    pub gc: GcParams,
    pub checksum: Checksum,
    pub writers: Vec<WriterKey>,
    /// What the secrets of the current epoch have to fit ([`crate::pure::crypto::EpochSecrets::check`]). None before the first rotation.
    pub epoch_check: Option<[u8; 32]>,
    /// Whether objects in a directory have a sidecar, and with how much parity (format-spec chapter 18).
    pub parity: Option<Shape>,
    /// Whether the store locks what it is given, and for how long.
    pub lock: Option<ObjectLock>,
    /// The one place that writers may write to; `None` for the place without a mark of a replica (format-spec chapter 4.1).
    pub primary: Option<PlaceId>,
}

/// Feature bitmaps (config key 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    pub compat: u64,
    pub ro_compat: u64,
    pub gc_compat: u64,
    pub incompat: u64,
}

/// Tree parameters (config key 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeParams {
    pub leaf_bits: u32,
    pub inner_bits: u32,
    pub node_bytes_max: u32,
    pub inline_bytes: u32,
    pub inline_list: u32,
    pub list_bits: u32,
    pub list_max: u32,
}

impl TreeParams {
    /// Of new repositories. Smaller leaves than the default: a night's changes are scattered, and each rewrites its leaf
    /// (ADR-0017).
    pub const NEW: TreeParams = TreeParams {
        leaf_bits: 4,
        ..TreeParams::DEFAULT
    };
    /// Where a config says nothing.
    const DEFAULT: TreeParams = TreeParams {
        leaf_bits: 6,
        inner_bits: 8,
        node_bytes_max: 262_144,
        inline_bytes: 512,
        inline_list: 64,
        list_bits: 10,
        list_max: 4096,
    };
}

impl Default for TreeParams {
    fn default() -> Self {
        TreeParams::DEFAULT
    }
}

/// Liveness intervals (config key 14), seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcParams {
    pub dead_seconds: u64,
    pub grace_seconds: u64,
    pub pack_age_seconds: u64,
    pub conditional_writes: bool,
    pub input_delay_seconds: u64,
}

impl Default for GcParams {
    fn default() -> Self {
        GcParams {
            dead_seconds: 259_200,
            grace_seconds: 0,
            pack_age_seconds: 259_200,
            conditional_writes: true,
            input_delay_seconds: 86_400,
        }
    }
}

/// Object Lock (config key 19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectLock {
    pub mode: LockMode,
    /// For so long an object is locked when it is written, and when its lock is extended.
    pub retain_days: u32,
    /// What is needed, and locked for less than this, is locked anew by maintenance.
    pub extend_below_days: u32,
}

impl ObjectLock {
    /// Checks the numbers. Where nothing is said, a lock is extended when half of it is over.
    pub fn new(mode: LockMode, retain_days: u32, extend_below_days: Option<u32>) -> Option<ObjectLock> {
        let extend_below_days = extend_below_days.unwrap_or(retain_days / 2);
        ((1..=LOCK_DAYS_MAX).contains(&retain_days) && extend_below_days <= retain_days).then_some(ObjectLock {
            mode,
            retain_days,
            extend_below_days,
        })
    }

    fn encode(&self) -> Value {
        let mode = match self.mode {
            LockMode::Governance => 1,
            LockMode::Compliance => 2,
        };
        numbers([mode, self.retain_days.into(), self.extend_below_days.into()])
    }

    fn decode(value: Value) -> Result<Option<ObjectLock>, FormatError> {
        let what = "object lock";
        let mut fields = Fields::new(value, what)?;
        let mode = match fields.uint_or(0, 0, what)? {
            0 => return Ok(None),
            1 => LockMode::Governance,
            2 => LockMode::Compliance,
            _ => return Ok(malformed(what)?),
        };
        let days = fields.u32(1, what)?;
        let below = fields.optional(2).map(|value| value.into_u32(what)).transpose()?;
        match ObjectLock::new(mode, days, below) {
            Some(lock) => Ok(Some(lock)),
            None => Ok(malformed(what)?),
        }
    }
}

/// Checksum that is sent with every PUT (config key 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    None = 0,
    Crc64Nvme = 1,
    Sha256 = 2,
    Crc32c = 3,
    ContentMd5 = 4,
}

/// Fields that may be absent, with their defaults.
struct Advice {
    data_pack_bytes: u64,
    meta_pack_bytes: u64,
    lanes: u32,
    zstd_level: u32,
}

const ADVICE: Advice = Advice {
    data_pack_bytes: 32 << 20,
    meta_pack_bytes: 8 << 20,
    lanes: 2,
    zstd_level: 3,
};

impl Config {
    /// A new repository's first configuration with the defaults of the spec.
    pub fn first(repo: RepoId, created: Timestamp, admin: WriterKey) -> Config {
        Config {
            admin: admin.kid,
            created,
            repo,
            sequence: 0,
            previous: None,
            features: Features::default(),
            epoch: 1,
            chunkers: vec![Profile::NEW],
            other_chunkers: vec![],
            data_pack_bytes: ADVICE.data_pack_bytes,
            meta_pack_bytes: ADVICE.meta_pack_bytes,
            lanes: ADVICE.lanes,
            zstd_level: ADVICE.zstd_level,
            tree: TreeParams::NEW,
            padding: Padding::None,
            dedup_trust: 0,
            gc: GcParams::default(),
            checksum: Checksum::Crc64Nvme,
            writers: vec![admin],
            epoch_check: None,
            parity: None,
            lock: None,
            primary: None,
        }
    }

    /// Encodes and signs under the name `config/<sequence>`. The admin that is written is the signer.
    pub fn encode(&self, signer: &Signer) -> Vec<u8> {
        let Features {
            compat,
            ro_compat,
            gc_compat,
            incompat,
        } = self.features;
        let mut fields = vec![
            (3, Value::bytes(self.repo.as_bytes())),
            (4, Value::Uint(self.sequence)),
            (
                5,
                self.previous
                    .as_ref()
                    .map_or(Value::Null, |hash| Value::bytes(hash.as_bytes())),
            ),
            (6, Value::array([compat, ro_compat, gc_compat, incompat], Value::Uint)),
            (7, Value::Uint(self.epoch.into())),
            (8, encode_profiles(&self.chunkers, &self.other_chunkers)),
            (
                9,
                numbers([self.data_pack_bytes, self.meta_pack_bytes, self.lanes.into()]),
            ),
            (10, numbers([1, self.zstd_level.into()])),
            (11, self.tree.encode()),
            (
                12,
                Value::Uint(match self.padding {
                    Padding::None => 0,
                    Padding::Padme => 1,
                }),
            ),
            (13, Value::Uint(self.dedup_trust.into())),
            (14, self.gc.encode()),
            (16, Value::Uint(self.checksum as u64)),
            (17, Value::array(&self.writers, encode_writer)),
        ];
        fields.extend(self.lock.map(|lock| (19, lock.encode())));
        fields.extend(self.parity.map(|shape| (20, numbers(shape.numbers()))));
        fields.extend(self.epoch_check.as_ref().map(|check| (21, Value::bytes(check))));
        fields.extend(self.primary.map(|place| (22, Value::bytes(place.as_bytes()))));
        frame(
            MAGIC,
            &signed::sign(fields, self.created, &ObjectName::Config(self.sequence), signer),
        )
    }

    /// Decodes and verifies: self-signed by an admin of its own writers, and, where `trusted` (the previous configuration's
    /// verifier) is given, by an admin of that as well.
    ///
    /// # Errors
    /// [`FormatError::TooNew`] for unknown incompatible features; else if the bytes do not follow the format, belong to another
    /// sequence, or are not signed by an admin who is not revoked.
    pub fn decode(bytes: &[u8], sequence: u64, trusted: Option<&Verifier>) -> Result<Config, FormatError> {
        let name = ObjectName::Config(sequence);
        let mut map = SignedMap::parse(unframe(MAGIC, bytes, "configuration")?, "configuration")?;
        let fields = &mut map.fields;
        // Features come first: what a newer version changed may not fit the checks below.
        let features = Features::decode(fields.required(6, "feature bitmaps")?)?;
        let repo = RepoId(fields.byte_array(3, "repository")?);
        if fields.uint(4, "sequence")? != sequence {
            return Ok(malformed("sequence differs from the name")?);
        }
        let previous = match fields.required(5, "previous configuration")? {
            Value::Null => None,
            value => Some(ObjectHash(value.into_byte_array("previous configuration")?)),
        };
        if previous.is_none() != (sequence == 0) {
            return Ok(malformed("previous configuration does not fit the sequence")?);
        }
        let epoch = fields.u32(7, "epoch")?;
        if epoch == 0 {
            return Ok(malformed("epoch 0")?);
        }
        let advice = Advice::decode(fields)?;
        let (chunkers, other_chunkers) = decode_profiles(fields.required(8, "chunker profiles")?)?;
        let config = Config {
            admin: map.kid,
            created: map.created,
            repo,
            sequence,
            previous,
            features,
            epoch,
            chunkers,
            other_chunkers,
            data_pack_bytes: advice.data_pack_bytes,
            meta_pack_bytes: advice.meta_pack_bytes,
            lanes: advice.lanes,
            zstd_level: advice.zstd_level,
            tree: TreeParams::decode(fields.required(11, "tree parameters")?)?,
            padding: match fields.uint_or(12, 0, "padding")? {
                0 => Padding::None,
                1 => Padding::Padme,
                _ => return Ok(malformed("padding")?),
            },
            dedup_trust: match fields.uint_or(13, 0, "deduplication trust")? {
                trust @ 0..=2 => trust as u32,
                _ => return Ok(malformed("deduplication trust")?),
            },
            gc: fields.optional(14).map_or(Ok(GcParams::default()), GcParams::decode)?,
            checksum: match fields.uint_or(16, 1, "checksum")? {
                0 => Checksum::None,
                1 => Checksum::Crc64Nvme,
                2 => Checksum::Sha256,
                3 => Checksum::Crc32c,
                4 => Checksum::ContentMd5,
                _ => return Ok(malformed("checksum")?),
            },
            writers: decode_writers(fields.required(17, "writers")?)?,
            epoch_check: fields
                .optional(21)
                .map(|value| value.into_byte_array("check of the epoch"))
                .transpose()?,
            lock: match fields.optional(19) {
                Some(value) => ObjectLock::decode(value)?,
                None => None,
            },
            parity: fields.optional(20).map(decode_shape).transpose()?,
            primary: fields
                .optional(22)
                .map(|value| value.into_byte_array("primary place"))
                .transpose()?
                .map(PlaceId),
        };
        map.verify(&config.verifier(), role::ADMIN, &name)?;
        if let Some(trusted) = trusted {
            // An admin may have been revoked since.
            map.verify_even_if_revoked(trusted, role::ADMIN, &name)?;
        }
        Ok(config)
    }

    /// Returns what knows every public key and role of this configuration.
    pub fn verifier(&self) -> Verifier {
        Verifier {
            writers: self.writers.clone(),
        }
    }

    /// Returns the first chunker profile that this version can cut with, and the number by which roots name it.
    pub fn chunker(&self) -> Option<(u64, Profile)> {
        let taken = |place: &usize| self.other_chunkers.iter().any(|(other, _)| other == place);
        let place = (0..).find(|place| !taken(place))?;
        Some((place as u64, *self.chunkers.first()?))
    }

    /// Whether this version may write (unknown ro_compat bits forbid it).
    pub fn writable(&self) -> bool {
        self.features.ro_compat == 0
    }
}

impl Features {
    /// Version 1 reserves some incompatible features and builds none, so any bit is one too many.
    fn decode(value: Value) -> Result<Features, FormatError> {
        let what = "feature bitmaps";
        let [compat, ro_compat, gc_compat, incompat] = value.into_row(what)?;
        let features = Features {
            compat: compat.into_uint(what)?,
            ro_compat: ro_compat.into_uint(what)?,
            gc_compat: gc_compat.into_uint(what)?,
            incompat: incompat.into_uint(what)?,
        };
        if features.incompat != 0 {
            return Err(FormatError::TooNew {
                what: format!("incompatible features {:#x}", features.incompat),
            });
        }
        Ok(features)
    }
}

impl Advice {
    fn decode(fields: &mut Fields) -> Result<Advice, FormatError> {
        let mut advice = ADVICE;
        if let Some(value) = fields.optional(9) {
            let mut packs = Fields::new(value, "pack targets")?;
            advice.data_pack_bytes = packs.uint_or(0, ADVICE.data_pack_bytes, "data pack target")?;
            advice.meta_pack_bytes = packs.uint_or(1, ADVICE.meta_pack_bytes, "meta pack target")?;
            advice.lanes = to_u32(packs.uint_or(2, ADVICE.lanes.into(), "lanes")?, "lanes")?;
        }
        if let Some(value) = fields.optional(10) {
            let mut compression = Fields::new(value, "compression")?;
            compression.uint_or(0, 1, "codec")?;
            advice.zstd_level = to_u32(
                compression.uint_or(1, ADVICE.zstd_level.into(), "zstd level")?,
                "zstd level",
            )?;
        }
        let targets = [advice.data_pack_bytes, advice.meta_pack_bytes];
        if !targets.iter().all(|target| (1..=PACK_BYTES_MAX).contains(target)) {
            return Ok(malformed("pack target")?);
        }
        if !(1..=LANES_MAX).contains(&advice.lanes) || !(1..=ZSTD_LEVEL_MAX).contains(&advice.zstd_level) {
            return Ok(malformed("lanes or zstd level")?);
        }
        Ok(advice)
    }
}

impl TreeParams {
    fn encode(&self) -> Value {
        let all = [
            self.leaf_bits,
            self.inner_bits,
            self.node_bytes_max,
            self.inline_bytes,
            self.inline_list,
            self.list_bits,
            self.list_max,
        ];
        numbers(all.map(u64::from))
    }

    fn decode(value: Value) -> Result<TreeParams, FormatError> {
        let mut fields = Fields::new(value, "tree parameters")?;
        let mut number = |key, range: std::ops::RangeInclusive<u32>| {
            let value = fields.u32(key, "tree parameter")?;
            if range.contains(&value) {
                Ok(value)
            } else {
                malformed("tree parameter out of range")
            }
        };
        Ok(TreeParams {
            leaf_bits: number(0, 4..=10)?,
            inner_bits: number(1, 4..=12)?,
            node_bytes_max: number(2, 262_144..=262_144)?,
            inline_bytes: number(3, 0..=512)?,
            inline_list: number(4, 1..=64)?,
            list_bits: number(5, 4..=16)?,
            list_max: number(6, 256..=4096)?,
        })
    }
}

impl GcParams {
    fn encode(&self) -> Value {
        Value::map(vec![
            (0, Value::Uint(self.dead_seconds)),
            (1, Value::Uint(self.grace_seconds)),
            (2, Value::Uint(self.pack_age_seconds)),
            (3, Value::Bool(self.conditional_writes)),
            (4, Value::Uint(self.input_delay_seconds)),
        ])
    }

    fn decode(value: Value) -> Result<GcParams, FormatError> {
        let what = "liveness intervals";
        let mut fields = Fields::new(value, what)?;
        let default = GcParams::default();
        Ok(GcParams {
            dead_seconds: fields.uint_or(0, default.dead_seconds, what)?,
            grace_seconds: fields.uint_or(1, default.grace_seconds, what)?,
            pack_age_seconds: fields.uint_or(2, default.pack_age_seconds, what)?,
            conditional_writes: match fields.optional(3) {
                None => default.conditional_writes,
                Some(Value::Bool(value)) => value,
                Some(_) => return Ok(malformed(what)?),
            },
            input_delay_seconds: fields.uint_or(4, default.input_delay_seconds, what)?,
        })
    }
}

/// A map of numbers with keys from 0.
fn numbers<const N: usize>(all: [u64; N]) -> Value {
    Value::map((0..).zip(all.map(Value::Uint)).collect())
}

fn to_u32(number: u64, what: &'static str) -> Result<u32, Malformed> {
    Value::Uint(number).into_u32(what)
}

fn encode_profile(profile: &Profile) -> Value {
    let Profile {
        algorithm,
        min,
        center,
        max,
        mask_s,
        mask_l,
    } = *profile;
    numbers([algorithm as u64, min.into(), center.into(), max.into(), mask_s, mask_l])
}

/// Puts the profiles of unknown algorithms back to where they were.
fn encode_profiles(known: &[Profile], other: &[(usize, Value)]) -> Value {
    let mut all: Vec<Value> = known.iter().map(encode_profile).collect();
    for (place, value) in other {
        all.insert((*place).min(all.len()), value.clone());
    }
    Value::Array(all)
}

/// Profiles of chunkers 1 and 3, and those of unknown algorithms with their place: a reader takes lengths from trees and lists.
#[allow(clippy::type_complexity)]
fn decode_profiles(value: Value) -> Result<(Vec<Profile>, Vec<(usize, Value)>), FormatError> {
    let (mut known, mut other) = (Vec::new(), Vec::new());
    let all = value.into_array("chunker profiles")?;
    if all.is_empty() {
        return Ok(malformed("no chunker profile")?);
    }
    for (place, value) in all.into_iter().enumerate() {
        let what = "chunker profile";
        let mut fields = Fields::new(value.clone(), what)?;
        let algorithm = fields.uint(0, what)?;
        let mut number = |key| fields.uint(key, what);
        let (min, center, max, mask_s, mask_l) = (number(1)?, number(2)?, number(3)?, number(4)?, number(5)?);
        let size = |number| to_u32(number, what);
        let profile = match algorithm {
            1 => Profile::new(size(min)?, size(center)?, size(max)?, mask_s, mask_l),
            3 if mask_s == mask_l => Profile::lowest(size(min)?, size(center)?, size(max)?, mask_s),
            3 => None,
            _ => {
                other.push((place, value));
                continue;
            }
        };
        match profile {
            Some(profile) => known.push(profile),
            None => return Ok(malformed("chunker profile out of range")?),
        }
    }
    Ok((known, other))
}

fn encode_writer(writer: &WriterKey) -> Value {
    let mut fields = vec![
        (0, Value::bytes(writer.kid.as_bytes())),
        (1, Value::bytes(&writer.public_key)),
        (2, Value::Uint(writer.roles.into())),
        (3, Value::Uint(writer.from_config)),
    ];
    fields.extend(writer.revoked_at.map(|sequence| (4, Value::Uint(sequence))));
    fields.extend(writer.chain_end.map(|(sequence, hash)| {
        (
            5,
            Value::Array(vec![Value::Uint(sequence), Value::bytes(hash.as_bytes())]),
        )
    }));
    Value::map(fields)
}

fn decode_writers(value: Value) -> Result<Vec<WriterKey>, FormatError> {
    let what = "writer";
    let (mut writers, mut tags) = (Vec::new(), BTreeSet::new());
    for value in value.into_array("writers")? {
        let mut fields = Fields::new(value, what)?;
        let writer = WriterKey {
            kid: KeyId(fields.byte_array(0, what)?),
            public_key: fields.byte_array(1, what)?,
            roles: fields.u32(2, what)?,
            from_config: fields.uint(3, what)?,
            revoked_at: fields.optional(4).map(|value| value.into_uint(what)).transpose()?,
            chain_end: fields.optional(5).map(decode_chain_end).transpose()?,
        };
        if writer.chain_end.is_some() && writer.revoked_at.is_none() {
            return Ok(malformed("end of the chain of a writer that is not revoked")?);
        }
        // A session belongs to the one key whose tag it carries.
        let [a, b, c, d, ..] = writer.kid.0;
        if !tags.insert([a, b, c, d]) {
            return Ok(malformed("two writers with one tag")?);
        }
        writers.push(writer);
    }
    Ok(writers)
}

fn decode_chain_end(value: Value) -> Result<(u64, ObjectHash), Malformed> {
    let what = "end of a writer's chain";
    let [sequence, hash] = value.into_row(what)?;
    Ok((sequence.into_uint(what)?, ObjectHash(hash.into_byte_array(what)?)))
}

fn decode_shape(value: Value) -> Result<Shape, FormatError> {
    let what = "parity";
    let mut fields = Fields::new(value, what)?;
    let (k, m, block) = (fields.u32(0, what)?, fields.u32(1, what)?, fields.u32(2, what)?);
    let shape = u16::try_from(k).ok().zip(u16::try_from(m).ok());
    match shape.and_then(|(k, m)| Shape::new(k, m, block)) {
        Some(shape) => Ok(shape),
        None => Ok(malformed(what)?),
    }
}

#[cfg(test)]
mod tests {
    use super::signed::fixture::*;
    use super::*;
    use crate::pure::id::from_hex;

    const VECTOR: &str = "4c41524445524331b20001015011111111222222222222222222222222021b17979cfe362a00000350101112131415161718191a1b1c1d1e1f040005f606840000000007010881a60001011a00080000021a00100000031a00400000041b7ffffe0000000000051b7fffe0000000000009a3001a02000000011a0080000002020aa2000101030ba700060108021a0004000003190200041840050a061910000c000d000ea5001a0003f4800100021a0003f48003f5041a000151800f5840dcee96b4fdfcaa1713d1b2cd0cbf49634f171dd882a8b87595debb04334fa42bc791c81419055a53bf57732ef562b993f6050ccbd0c13cf3be229b5610582b0610011181a4005011111111222222222222222222222222015820b33893bb7fd8aa9d2cab3f4128acdf61d31e8293c1ba3b9446647240ba2553040218400300ab52ad22eb476c6da3c40b5e38e37ba4339627fa3ea2727294f837e9090747d2";

    /// With all defaults, as the vectors have it.
    fn first() -> Config {
        Config {
            tree: TreeParams::default(),
            chunkers: vec![Profile::DEFAULT],
            ..Config::first(REPO, START, writer(&signer(), role::ADMIN))
        }
    }

    fn second() -> Config {
        let mut config = Config {
            sequence: 1,
            previous: Some(ObjectHash([7; 32])),
            epoch: 2,
            ..first()
        };
        config.features = Features {
            compat: 1,
            ro_compat: 2,
            gc_compat: 4,
            incompat: 0,
        };
        config
            .chunkers
            .push(Profile::new(64, 256, 1024, 0x7fe0_0000_0000_0000, 0x7e00_0000_0000_0000).unwrap());
        (
            config.data_pack_bytes,
            config.meta_pack_bytes,
            config.lanes,
            config.zstd_level,
        ) = (1 << 30, 1, 64, 19);
        config.tree = TreeParams {
            leaf_bits: 4,
            inner_bits: 12,
            inline_bytes: 0,
            inline_list: 1,
            list_bits: 16,
            list_max: 256,
            ..config.tree
        };
        (config.padding, config.dedup_trust, config.checksum) = (Padding::Padme, 2, Checksum::ContentMd5);
        config.gc = GcParams {
            dead_seconds: 1,
            grace_seconds: 2,
            pack_age_seconds: 3,
            conditional_writes: false,
            input_delay_seconds: 4,
        };
        config.writers.push(WriterKey {
            revoked_at: Some(1),
            chain_end: Some((7, ObjectHash([9; 32]))),
            ..writer(&other_signer(), role::WRITE | role::READ_META)
        });
        config
    }

    #[test]
    fn first_configuration_has_the_bytes_of_the_vectors() {
        let bytes = first().encode(&signer());
        assert_eq!(bytes, from_hex(VECTOR).unwrap());
        assert_eq!(Config::decode(&bytes, 0, None), Ok(first()));
        assert!(first().writable());
    }

    #[test]
    fn configurations_round_trip_under_their_own_sequence_only() {
        let bytes = second().encode(&signer());
        assert_eq!(Config::decode(&bytes, 1, Some(&first().verifier())), Ok(second()));
        assert!(!second().writable());
        assert!(Config::decode(&bytes, 2, None).is_err());
        for wrong in [
            Config {
                sequence: 0,
                ..second()
            },
            Config {
                previous: None,
                ..second()
            },
        ] {
            assert!(Config::decode(&wrong.encode(&signer()), wrong.sequence, None).is_err());
        }
    }

    #[test]
    fn any_change_is_refused() {
        assert_fragile(&first().encode(&signer()), 0, |bytes| Config::decode(bytes, 0, None));
        assert!(Config::decode(&frame(MAGIC, &vec![0; 1 << 20]), 0, None).is_err());
    }

    #[test]
    fn signer_must_be_an_admin_here_and_before() {
        let bytes = second().encode(&signer());
        assert_needs_role(role::ADMIN, |trusted| Config::decode(&bytes, 1, Some(trusted)));
        // An admin that has been revoked since was one when it signed.
        assert!(Config::decode(&bytes, 1, Some(&revoked(role::ADMIN))).is_ok());

        let mut plain = first();
        plain.writers[0].roles = role::WRITE | role::MAINTAIN;
        assert!(Config::decode(&plain.encode(&signer()), 0, None).is_err());
        let mut revoked = first();
        revoked.writers[0].revoked_at = Some(0);
        assert!(Config::decode(&revoked.encode(&signer()), 0, None).is_err());
        assert!(Config::decode(&first().encode(&other_signer()), 0, None).is_err());
        assert!(
            Config::decode(
                &Config {
                    writers: vec![],
                    ..first()
                }
                .encode(&signer()),
                0,
                None
            )
            .is_err()
        );
    }

    #[test]
    fn incompatible_features_are_named() {
        let mut config = first();
        config.features.incompat = 2;
        let error = Config::decode(&config.encode(&signer()), 0, None).unwrap_err();
        assert_eq!(
            error,
            FormatError::TooNew {
                what: "incompatible features 0x2".into()
            }
        );
    }

    fn with(key: u64, value: Option<Value>) -> Result<Config, FormatError> {
        let bytes = first().encode(&signer());
        let body = crate::pure::format::cbor::decode(unframe(MAGIC, &bytes, "configuration").unwrap()).unwrap();
        let Value::Map(entries) = body else { panic!("not a map") };
        let entries = entries
            .into_iter()
            .map(|(key, value)| (key.into_uint("key").unwrap(), value));
        let mut fields: Vec<_> = entries
            .filter(|(present, _)| *present > 2 && ![15, key].contains(present))
            .collect();
        fields.extend(value.map(|value| (key, value)));
        Config::decode(
            &frame(MAGIC, &signed::sign(fields, START, &ObjectName::Config(0), &signer())),
            0,
            None,
        )
    }

    #[test]
    fn absent_advice_means_the_default_and_required_fields_are_required() {
        for key in [9, 10, 12, 13, 14, 16] {
            assert_eq!(with(key, None), Ok(first()), "key {key}");
        }
        for key in [3, 4, 5, 6, 7, 8, 11, 17] {
            assert!(with(key, None).is_err(), "key {key}");
        }
        for key in (3..=17).filter(|key| *key != 15).chain([19, 20]) {
            assert!(with(key, Some(Value::text("x"))).is_err(), "key {key}");
        }
    }

    #[test]
    fn unknown_keys_are_ignored_unless_critical() {
        assert_eq!(with(0x7fff, Some(Value::Null)), Ok(first()));
        assert!(matches!(
            with(0x8000, Some(Value::Null)),
            Err(FormatError::TooNew { .. })
        ));
        let lock = |key| Value::map(vec![(key, Value::Uint(0))]);
        assert_eq!(with(19, Some(lock(0))), Ok(first()));
        assert!(matches!(with(19, Some(lock(0x8000))), Err(FormatError::TooNew { .. })));
        assert!(matches!(with(9, Some(lock(0x8000))), Err(FormatError::TooNew { .. })));
    }

    #[test]
    fn a_lock_round_trips_and_half_of_it_is_the_default() {
        let lock = |mode, days, below| ObjectLock::new(mode, days, below);
        for lock in [
            lock(LockMode::Governance, 1, Some(1)),
            lock(LockMode::Compliance, 36_500, Some(0)),
            lock(LockMode::Compliance, 30, None),
        ] {
            let config = Config { lock, ..first() };
            assert!(lock.is_some());
            assert_eq!(Config::decode(&config.encode(&signer()), 0, None), Ok(config));
        }
        let without = with(19, Some(numbers([2, 31]))).unwrap();
        assert_eq!(without.lock, lock(LockMode::Compliance, 31, Some(15)));
        assert_eq!(with(19, Some(numbers([0, 30, 15]))).unwrap().lock, None);
        assert_eq!(lock(LockMode::Governance, 0, None), None);
        assert_eq!(lock(LockMode::Governance, 30, Some(31)), None);
    }

    #[test]
    fn profiles_of_unknown_algorithms_are_kept_in_their_place_and_not_used() {
        let unknown = || numbers([2, 7, 7, 7, 0, u64::MAX]);
        let profile = || encode_profile(&Profile::DEFAULT);
        let config = with(8, Some(Value::Array(vec![unknown(), profile(), unknown()]))).unwrap();
        assert_eq!(config.chunker(), Some((1, Profile::DEFAULT)));
        let again = Config::decode(&config.encode(&signer()), 0, None).unwrap();
        assert_eq!(again, config);
        assert_eq!(config.other_chunkers, [(0, unknown()), (2, unknown())]);
        let none = with(8, Some(Value::Array(vec![unknown()]))).unwrap();
        assert_eq!(none.chunker(), None);
        assert_eq!(first().chunker(), Some((0, Profile::DEFAULT)));
    }

    #[test]
    fn end_of_a_chain_belongs_to_a_revoked_writer() {
        let mut config = first();
        config.writers.push(WriterKey {
            chain_end: Some((7, ObjectHash([9; 32]))),
            ..writer(&other_signer(), role::WRITE)
        });
        assert!(Config::decode(&config.encode(&signer()), 0, None).is_err());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (key, value) in [
            (7, Value::Uint(0)),
            (7, Value::Uint(1 << 32)),
            (8, Value::Array(vec![])),
            (8, Value::Array(vec![numbers([1, 63, 64, 128, 1, 1])])),
            (9, numbers([0, 1, 1])),
            (9, numbers([1, (1 << 30) + 1, 1])),
            (9, numbers([1, 1, 0])),
            (9, numbers([1, 1, 65])),
            (10, numbers([1, 0])),
            (10, numbers([1, 20])),
            (11, numbers([3, 8, 262_144, 512, 64, 10, 4096])),
            (11, numbers([6, 13, 262_144, 512, 64, 10, 4096])),
            (11, numbers([6, 8, 262_143, 512, 64, 10, 4096])),
            (11, numbers([6, 8, 262_144, 513, 64, 10, 4096])),
            (11, numbers([6, 8, 262_144, 512, 65, 10, 4096])),
            (11, numbers([6, 8, 262_144, 512, 64, 17, 4096])),
            (11, numbers([6, 8, 262_144, 512, 64, 10, 255])),
            (12, Value::Uint(2)),
            (13, Value::Uint(3)),
            (16, Value::Uint(5)),
            (19, numbers([3, 30, 15])),
            (19, numbers([1, 0, 0])),
            (19, numbers([1, 36_501, 15])),
            (19, numbers([2, 30, 31])),
            (19, numbers([1])),
            (20, numbers([0, 4, 4096])),
            (20, numbers([253, 4, 4096])),
            (20, numbers([100, 4, 63])),
            (20, numbers([65_636, 4, 4096])),
        ] {
            assert!(with(key, Some(value.clone())).is_err(), "{key}: {value:?}");
        }
        assert!(with(8, Some(Value::Array(vec![numbers([2, 64, 64, 128, 1])]))).is_err());
        let admin = || encode_writer(&writer(&signer(), role::ADMIN));
        assert!(with(17, Some(Value::Array(vec![admin()]))).is_ok());
        assert!(with(17, Some(Value::Array(vec![admin(), admin()]))).is_err());
    }
}
