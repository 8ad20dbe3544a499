//! Manifests (format-spec chapter on manifests): what a snapshot holds.
//!
//! Optional fields are left out where they are empty or zero, so a small snapshot has a small manifest.

use super::FormatError;
use super::cbor::{self, Fields, Value};
use super::codec::{Malformed, malformed};
use super::signed;
use crate::pure::base::Timestamp;
use crate::pure::crypto::Slot;
use crate::pure::id::{ChunkId, PackId, RepoId, SessionId, SourceId};
use std::collections::BTreeMap;

/// Problems that are listed at most; `problems_total` counts all.
pub const PROBLEMS_MAX: usize = 1000;
/// Highest level of a root node.
const HEIGHT_MAX: u8 = 15;

/// Who and what was backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub id: SourceId,
    pub kind: u64,
    pub host: String,
    pub user: String,
    pub label: String,
}

/// What the keys of a root tree are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootKind {
    Posix = 0,
    ObjectMap = 1,
    StreamSet = 2,
    Windows = 3,
}

impl RootKind {
    fn from_number(number: u64) -> Option<RootKind> {
        Some(match number {
            0 => RootKind::Posix,
            1 => RootKind::ObjectMap,
            2 => RootKind::StreamSet,
            3 => RootKind::Windows,
            _ => return None,
        })
    }
}

/// One root tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub path: Vec<u8>,
    pub kind: RootKind,
    pub node: ChunkId,
    pub height: u8,
    pub entries: u64,
    pub bytes: u64,
    /// Index of the chunker profile in the configuration.
    pub chunker: u64,
}

/// Where an inner node lies, so that one file is found with few requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    pub pack: PackId,
    pub offset: u32,
    pub len: u32,
    pub node: ChunkId,
    /// The rest of the pack's name, its size, and the slot of the frame.
    pub session: SessionId,
    pub pack_size: u32,
    pub slot: Slot,
}

/// A source-side problem that was recorded: path, short code, text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceProblem {
    pub path: Vec<u8>,
    pub code: String,
    pub text: String,
}

/// Figures of the run that wrote the snapshot. Advisory: nothing is decided by them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub files_new: u64,
    pub files_changed: u64,
    pub files_unmodified: u64,
    pub dirs: u64,
    pub bytes_processed: u64,
    pub bytes_read: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    /// Plaintext bytes of new chunks that are stored as deltas.
    pub bytes_delta: u64,
    pub chunks_new: u64,
    pub chunks_reused: u64,
    pub packs_uploaded: u64,
    pub requests: u64,
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub source: Source,
    pub start: Timestamp,
    pub end: Timestamp,
    pub roots: Vec<Root>,
    /// `key=value` or plain words. Stored sorted.
    pub tags: Vec<String>,
    pub parents: Vec<SessionId>,
    pub users: BTreeMap<u32, String>,
    pub groups: BTreeMap<u32, String>,
    pub problems_total: u64,
    /// At most 1000.
    pub problems: Vec<SourceProblem>,
    pub hints: Vec<Hint>,
    pub stats: Stats,
    /// Checkpoints: the last key that was completed in the root being written, which is the last of `roots`.
    pub resume: Option<Vec<u8>>,
    pub tool: String,
    pub options_digest: Option<[u8; 32]>,
    /// Repository and snapshot that this is a copy of (application data `copied-from`).
    pub copied_from: Option<(RepoId, SessionId)>,
}

/// Name of the application data that says what a snapshot is a copy of.
const COPIED_FROM: &str = "copied-from";

impl Manifest {
    /// Encodes the plaintext of a manifest blob. Tags are sorted; problems beyond the first 1000 are only counted.
    pub fn encode(&self) -> Vec<u8> {
        let mut tags = self.tags.clone();
        tags.sort_unstable();
        let mut fields = vec![
            (0, Value::Uint(1)),
            (1, self.source.encode()),
            (2, Value::time(self.start)),
            (3, Value::time(self.end)),
            (4, Value::array(&self.roots, Root::encode)),
            (5, Value::array(tags, Value::Text)),
        ];
        let mut push = |wanted: bool, key: u64, value: Value| {
            if wanted {
                fields.push((key, value));
            }
        };
        push(!self.parents.is_empty(), 6, signed::session_ids(&self.parents));
        push(!self.users.is_empty(), 7, encode_names(&self.users));
        push(!self.groups.is_empty(), 8, encode_names(&self.groups));
        let total = self.problems_total.max(self.problems.len() as u64);
        let problems = Value::array(self.problems.iter().take(PROBLEMS_MAX), SourceProblem::encode);
        push(total > 0, 9, Value::Array(vec![Value::Uint(total), problems]));
        push(!self.hints.is_empty(), 10, Value::array(&self.hints, Hint::encode));
        push(self.stats != Stats::default(), 11, self.stats.encode());
        if let Some(key) = &self.resume {
            let root = self.roots.len().saturating_sub(1) as u64;
            push(
                true,
                12,
                Value::map(vec![(0, Value::Uint(root)), (1, Value::bytes(key))]),
            );
        }
        push(!self.tool.is_empty(), 15, Value::text(&self.tool));
        if let Some(digest) = &self.options_digest {
            push(true, 17, Value::bytes(digest));
        }
        if let Some((repo, session)) = &self.copied_from {
            let value = Value::bytes(&[*repo.as_bytes(), *session.as_bytes()].concat());
            let row = Value::Array(vec![Value::text(COPIED_FROM), value]);
            push(true, 13, Value::Array(vec![row]));
        }
        cbor::encode(&Value::map(fields))
    }

    /// Decodes the plaintext of a manifest blob.
    ///
    /// # Errors
    /// If the bytes do not follow the format.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, FormatError> {
        let what = "manifest";
        let mut fields = Fields::new(cbor::decode(bytes)?, what)?;
        signed::check_version(&mut fields, what)?;
        let source = Source::decode(fields.required(1, "source")?)?;
        let (start, end) = (fields.time(2, "start")?, fields.time(3, "end")?);
        let roots = fields.required(4, "roots")?.into_array("roots")?;
        let roots = roots.into_iter().map(Root::decode).collect::<Result<Vec<_>, _>>()?;
        let tags = fields.array_or_empty(5, "tags")?;
        let (problems_total, problems) = decode_problems(fields.optional(9))?;
        let resume = fields
            .optional(12)
            .map(|value| decode_resume(value, roots.len()))
            .transpose()?
            .flatten();
        let copied_from = decode_copied_from(&mut fields)?;
        signed::take_session_ids(&mut fields, 14, "members")?;
        Ok(Manifest {
            source,
            start,
            end,
            roots,
            tags: tags
                .into_iter()
                .map(|tag| tag.into_text("tag"))
                .collect::<Result<_, _>>()?,
            parents: signed::take_session_ids(&mut fields, 6, "parents")?,
            users: decode_names(fields.optional(7))?,
            groups: decode_names(fields.optional(8))?,
            problems_total,
            problems,
            hints: fields
                .array_or_empty(10, "hints")?
                .into_iter()
                .map(Hint::decode)
                .collect::<Result<_, _>>()?,
            stats: fields.optional(11).map_or(Ok(Stats::default()), Stats::decode)?,
            resume,
            tool: fields.text_or_empty(15, "tool")?,
            options_digest: fields
                .optional(17)
                .map(|value| value.into_byte_array("digest of options"))
                .transpose()?,
            copied_from,
        })
    }
}

impl Source {
    fn encode(&self) -> Value {
        let mut fields = vec![(0, Value::bytes(self.id.as_bytes())), (1, Value::Uint(self.kind))];
        for (key, text) in [(2, &self.host), (3, &self.user), (4, &self.label)] {
            if !text.is_empty() {
                fields.push((key, Value::text(text)));
            }
        }
        Value::map(fields)
    }

    fn decode(value: Value) -> Result<Source, FormatError> {
        let mut fields = Fields::new(value, "source")?;
        Ok(Source {
            id: SourceId(fields.byte_array(0, "source id")?),
            kind: fields.uint(1, "kind of source")?,
            host: fields.text_or_empty(2, "host")?,
            user: fields.text_or_empty(3, "user")?,
            label: fields.text_or_empty(4, "label")?,
        })
    }
}

impl Root {
    fn encode(&self) -> Value {
        let mut fields = vec![
            (0, Value::bytes(&self.path)),
            (1, Value::Uint(self.kind as u64)),
            (2, Value::bytes(self.node.as_bytes())),
            (3, Value::Uint(self.height.into())),
            (4, Value::Uint(self.entries)),
            (5, Value::Uint(self.bytes)),
        ];
        if self.chunker != 0 {
            fields.push((6, Value::Uint(self.chunker)));
        }
        Value::map(fields)
    }

    fn decode(value: Value) -> Result<Root, FormatError> {
        let mut fields = Fields::new(value, "root")?;
        let path = fields.required(0, "path of the root")?.into_bytes("path of the root")?;
        let Some(kind) = RootKind::from_number(fields.uint(1, "kind of root")?) else {
            return Ok(malformed("kind of root")?);
        };
        let node = ChunkId(fields.byte_array(2, "root node")?);
        let height = u8::try_from(fields.uint(3, "height of the root")?)
            .ok()
            .filter(|height| *height <= HEIGHT_MAX);
        let Some(height) = height else {
            return Ok(malformed("height of the root")?);
        };
        Ok(Root {
            path,
            kind,
            node,
            height,
            entries: fields.uint(4, "entries of the root")?,
            bytes: fields.uint(5, "bytes of the root")?,
            chunker: fields.uint_or(6, 0, "chunker profile of the root")?,
        })
    }
}

impl Hint {
    fn encode(&self) -> Value {
        Value::Array(vec![
            Value::bytes(self.pack.as_bytes()),
            Value::Uint(self.offset.into()),
            Value::Uint(self.len.into()),
            Value::bytes(self.node.as_bytes()),
            Value::bytes(self.session.as_bytes()),
            Value::Uint(self.pack_size.into()),
            Value::bytes(&self.slot.0),
        ])
    }

    fn decode(value: Value) -> Result<Hint, Malformed> {
        let what = "hint";
        let [pack, offset, len, node, session, pack_size, slot] = value.into_row(what)?;
        Ok(Hint {
            pack: PackId(pack.into_byte_array(what)?),
            offset: offset.into_u32(what)?,
            len: len.into_u32(what)?,
            node: ChunkId(node.into_byte_array(what)?),
            session: SessionId(session.into_byte_array(what)?),
            pack_size: pack_size.into_u32(what)?,
            slot: Slot(slot.into_byte_array(what)?),
        })
    }
}

impl SourceProblem {
    fn encode(&self) -> Value {
        Value::Array(vec![
            Value::bytes(&self.path),
            Value::text(&self.code),
            Value::text(&self.text),
        ])
    }

    fn decode(value: Value) -> Result<SourceProblem, Malformed> {
        let what = "recorded problem";
        let [path, code, text] = value.into_row(what)?;
        Ok(SourceProblem {
            path: path.into_bytes(what)?,
            code: code.into_text(what)?,
            text: text.into_text(what)?,
        })
    }
}

fn decode_problems(value: Option<Value>) -> Result<(u64, Vec<SourceProblem>), Malformed> {
    let what = "recorded problems";
    let Some(value) = value else {
        return Ok((0, Vec::new()));
    };
    let [total, listed] = value.into_row(what)?;
    let (total, listed) = (total.into_uint(what)?, listed.into_array(what)?);
    if listed.len() > PROBLEMS_MAX || total < listed.len() as u64 {
        return malformed(what);
    }
    Ok((
        total,
        listed
            .into_iter()
            .map(SourceProblem::decode)
            .collect::<Result<_, _>>()?,
    ))
}

impl Stats {
    /// Keys 0 to 5 are the format's; those from 6 on split them further.
    fn encode(&self) -> Value {
        let figures = [
            (0, self.files_new.saturating_add(self.files_changed)),
            (1, self.files_unmodified),
            (2, self.bytes_new),
            (3, self.bytes_stored),
            (4, self.requests),
            (5, self.bytes_delta),
            (6, self.files_changed),
            (7, self.dirs),
            (8, self.bytes_processed),
            (9, self.bytes_read),
            (10, self.chunks_new),
            (11, self.chunks_reused),
            (12, self.packs_uploaded),
        ];
        let present = figures.into_iter().filter(|(_, figure)| *figure != 0);
        Value::map(present.map(|(key, figure)| (key, Value::Uint(figure))).collect())
    }

    fn decode(value: Value) -> Result<Stats, FormatError> {
        let mut fields = Fields::new(value, "figures")?;
        let mut figure = |key| fields.uint_or(key, 0, "figure");
        let files_changed = figure(6)?;
        Ok(Stats {
            files_new: figure(0)?.saturating_sub(files_changed),
            files_changed,
            files_unmodified: figure(1)?,
            dirs: figure(7)?,
            bytes_processed: figure(8)?,
            bytes_read: figure(9)?,
            bytes_new: figure(2)?,
            bytes_stored: figure(3)?,
            bytes_delta: figure(5)?,
            chunks_new: figure(10)?,
            chunks_reused: figure(11)?,
            packs_uploaded: figure(12)?,
            requests: figure(4)?,
        })
    }
}

/// Names of users or groups: a data map, so the rule for unknown keys does not apply to its numbers.
fn encode_names(names: &BTreeMap<u32, String>) -> Value {
    Value::map(
        names
            .iter()
            .map(|(number, name)| (u64::from(*number), Value::text(name)))
            .collect(),
    )
}

fn decode_names(value: Option<Value>) -> Result<BTreeMap<u32, String>, Malformed> {
    let what = "names of users or groups";
    match value {
        None => Ok(BTreeMap::new()),
        Some(Value::Map(entries)) => entries
            .into_iter()
            .map(|(key, name)| Ok((key.into_u32(what)?, name.into_text(what)?)))
            .collect(),
        Some(_) => malformed(what),
    }
}

/// Returns the last key, unless it belongs to another root than the last or comes with pending content: then the checkpoint is
/// still a good parent, but not a place to go on from.
fn decode_resume(value: Value, roots: usize) -> Result<Option<Vec<u8>>, FormatError> {
    let what = "resume";
    let mut fields = Fields::new(value, what)?;
    let root = fields.uint_or(0, 0, what)?;
    let key = fields.optional(1).map(|value| value.into_bytes(what)).transpose()?;
    let mut pending = false;
    for row in fields.array_or_empty(2, what)? {
        let [id, raw_len] = row.into_row(what)?;
        id.into_byte_array::<32>(what)?;
        raw_len.into_uint(what)?;
        pending = true;
    }
    Ok(key.filter(|_| !pending && root == roots.saturating_sub(1) as u64))
}

/// Reads the application data, of which this version knows one.
fn decode_copied_from(fields: &mut Fields) -> Result<Option<(RepoId, SessionId)>, FormatError> {
    let what = "application data";
    let mut copied_from = None;
    for row in fields.array_or_empty(13, what)? {
        let [key, value] = row.into_row(what)?;
        let key = key.into_text(what)?;
        match value {
            Value::Bytes(bytes) if key == COPIED_FROM => {
                let halves = bytes.split_at_checked(RepoId::LEN);
                let ids = halves
                    .and_then(|(repo, session)| Some((RepoId::from_slice(repo)?, SessionId::from_slice(session)?)));
                match ids {
                    Some(ids) => copied_from = Some(ids),
                    None => return Ok(malformed(what)?),
                }
            }
            Value::Text(_) | Value::Bytes(_) => {}
            _ => return Ok(malformed(what)?),
        }
    }
    Ok(copied_from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::id::from_hex;

    const VECTOR: &str = "a6000101a300503333333333333333333333333333333301000264686f7374021b17979cfe362a0000031b17979cfead5f94000481a600412f0100025820110c97835c3e0bda4d75b53cd406e55aeb98fd6f773465bc8396221bf9c980340300040305100580";

    fn small() -> Manifest {
        let node = "110c97835c3e0bda4d75b53cd406e55aeb98fd6f773465bc8396221bf9c98034"
            .parse()
            .unwrap();
        Manifest {
            source: Source {
                id: SourceId([0x33; 16]),
                kind: 0,
                host: "host".into(),
                user: String::new(),
                label: String::new(),
            },
            start: Timestamp(1_700_000_000_000_000_000),
            end: Timestamp(1_700_000_002_000_000_000),
            roots: vec![Root {
                path: b"/".to_vec(),
                kind: RootKind::Posix,
                node,
                height: 0,
                entries: 3,
                bytes: 16,
                chunker: 0,
            }],
            tags: vec![],
            parents: vec![],
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
            problems_total: 0,
            problems: vec![],
            hints: vec![],
            stats: Stats::default(),
            resume: None,
            tool: String::new(),
            options_digest: None,
            copied_from: None,
        }
    }

    fn full() -> Manifest {
        let mut manifest = small();
        manifest.source.user = "user".into();
        manifest.source.label = "label".into();
        manifest.start = Timestamp(-1);
        manifest.roots.push(Root {
            path: vec![0xff],
            kind: RootKind::Windows,
            height: 15,
            chunker: 2,
            ..manifest.roots[0].clone()
        });
        manifest.tags = vec!["a=1".into(), "b".into()];
        manifest.parents = vec![SessionId([4; 16])];
        manifest.users = BTreeMap::from([(0, "root".into()), (0x8000, "high".into()), (u32::MAX, "nobody".into())]);
        manifest.groups = BTreeMap::from([(70_000, "staff".into())]);
        manifest.problems_total = 5000;
        manifest.problems = vec![SourceProblem {
            path: b"/x".to_vec(),
            code: "EACCES".into(),
            text: "denied".into(),
        }];
        manifest.hints = vec![Hint {
            pack: PackId([1; 16]),
            offset: 64,
            len: u32::MAX,
            node: ChunkId([2; 32]),
            session: SessionId([6; 16]),
            pack_size: 70_000,
            slot: Slot([7; 88]),
        }];
        manifest.stats = Stats {
            files_new: 1,
            files_changed: 2,
            files_unmodified: 3,
            dirs: 4,
            bytes_processed: 5,
            bytes_read: 6,
            bytes_new: 7,
            bytes_stored: 8,
            chunks_new: 9,
            chunks_reused: 10,
            packs_uploaded: 11,
            requests: 12,
            bytes_delta: 13,
        };
        manifest.resume = Some(b"dir\0\0last".to_vec());
        manifest.tool = "larder/1".into();
        manifest.options_digest = Some([9; 32]);
        manifest.copied_from = Some((RepoId([7; 16]), SessionId([8; 16])));
        manifest
    }

    #[test]
    fn small_manifest_has_the_bytes_of_the_vectors() {
        assert_eq!(small().encode(), from_hex(VECTOR).unwrap());
    }

    #[test]
    fn manifests_round_trip_and_break_when_cut() {
        for manifest in [small(), full()] {
            let bytes = manifest.encode();
            assert_eq!(Manifest::decode(&bytes), Ok(manifest));
            for len in 0..bytes.len() {
                assert!(Manifest::decode(&bytes[..len]).is_err(), "truncated to {len}");
            }
        }
    }

    #[test]
    fn figures_keep_the_meaning_that_the_format_gives_them() {
        let Value::Map(entries) = full().stats.encode() else {
            panic!("not a map")
        };
        let figure = |key| {
            entries
                .iter()
                .find(|entry| entry.0 == Value::Uint(key))
                .map(|entry| entry.1.clone())
        };
        assert_eq!(figure(0), Some(Value::Uint(3)), "new or changed");
        assert_eq!(figure(1), Some(Value::Uint(3)), "reused");
        assert_eq!(figure(2), Some(Value::Uint(7)), "raw bytes of new chunks");
        assert_eq!(figure(3), Some(Value::Uint(8)), "bytes stored");
        assert_eq!(figure(4), Some(Value::Uint(12)), "requests");
        assert_eq!(figure(5), Some(Value::Uint(13)), "raw bytes stored as deltas");
    }

    #[test]
    fn problems_beyond_a_thousand_are_only_counted() {
        let mut manifest = full();
        manifest.problems_total = 0;
        manifest.problems = vec![manifest.problems[0].clone(); 1001];
        let read = Manifest::decode(&manifest.encode()).unwrap();
        assert_eq!((read.problems_total, read.problems.len()), (1001, 1000));
    }

    fn with(key: u64, value: Option<Value>) -> Result<Manifest, FormatError> {
        let Value::Map(mut entries) = cbor::decode(&full().encode()).unwrap() else {
            panic!("not a map")
        };
        entries.retain(|entry| entry.0 != Value::Uint(key));
        entries.extend(value.map(|value| (Value::Uint(key), value)));
        Manifest::decode(&cbor::encode(&Value::Map(entries)))
    }

    #[test]
    fn unknown_keys_are_ignored_unless_critical_but_not_among_user_ids() {
        assert_eq!(with(0x7fff, Some(Value::Null)), Ok(full()));
        assert!(matches!(
            with(0x8000, Some(Value::Null)),
            Err(FormatError::TooNew { .. })
        ));
        let source = Value::map(vec![
            (0, Value::Bytes(vec![0; 16])),
            (1, Value::Uint(0)),
            (0x8000, Value::Null),
        ]);
        assert!(matches!(with(1, Some(source)), Err(FormatError::TooNew { .. })));
        assert_eq!(full().users[&0x8000], "high");
    }

    #[test]
    fn fields_of_the_wrong_form_are_refused() {
        for key in 0..5 {
            assert!(with(key, None).is_err(), "key {key} is missing");
        }
        for key in (0..=15).filter(|key| *key != 16).chain([17]) {
            assert!(with(key, Some(Value::Bool(true))).is_err(), "key {key} is true");
        }
        let names = |key| Value::map(vec![(key, Value::text("x"))]);
        assert!(with(7, Some(names(u32::MAX.into()))).is_ok());
        assert!(with(7, Some(names(1 << 32))).is_err());
        assert!(
            with(
                9,
                Some(Value::Array(vec![Value::Uint(0), Value::Array(vec![Value::Null])]))
            )
            .is_err()
        );
        let root = |key, value| {
            let mut fields = vec![
                (0, Value::bytes(b"/")),
                (1, Value::Uint(0)),
                (2, Value::Bytes(vec![0; 32])),
            ];
            fields.extend((3..6).map(|key| (key, Value::Uint(0))));
            fields.retain(|(present, _)| *present != key);
            fields.push((key, Value::Uint(value)));
            with(4, Some(Value::Array(vec![Value::map(fields)])))
        };
        assert!(root(3, 15).is_ok());
        assert!(root(3, 16).is_err());
        assert!(root(1, 4).is_err());
    }

    #[test]
    fn resume_counts_only_for_the_last_root_without_pending_content() {
        let resume = |root, pending: bool| {
            let rows = if pending {
                vec![Value::Array(vec![Value::Bytes(vec![1; 32]), Value::Uint(5)])]
            } else {
                vec![]
            };
            let map = Value::map(vec![
                (0, Value::Uint(root)),
                (1, Value::bytes(b"k")),
                (2, Value::Array(rows)),
            ]);
            with(12, Some(map)).unwrap().resume
        };
        assert_eq!(resume(1, false), Some(b"k".to_vec()));
        assert_eq!(resume(0, false), None);
        assert_eq!(resume(1, true), None);
    }
}
