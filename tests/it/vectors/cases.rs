//! `cases/*.vec`: each input has at most one defect; the head of `cases.py` explains the keys.

use super::{Fixture, hex, slots, spec};
use larder::pure::crypto::ObjectClass;
use larder::pure::format::blob::{self, BlobType, Opened, Opener};
use larder::pure::format::codec::Reader;
use larder::pure::format::config::Config;
use larder::pure::format::entry::Entry;
use larder::pure::format::envelope::{Envelope, EnvelopeKind};
use larder::pure::format::grant::{self, Grant};
use larder::pure::format::list::ListNode;
use larder::pure::format::manifest::{Manifest, RootKind};
use larder::pure::format::mark::Drop;
use larder::pure::format::name::{ObjectName, PackKind};
use larder::pure::format::node::Node;
use larder::pure::format::outcome::Outcome;
use larder::pure::format::protector::Protector;
use larder::pure::format::session::{Acknowledgement, Registration};
use larder::pure::format::{cbor, pack, run};
use larder::pure::id::ChunkId;
use larder::pure::tree::rules;
use larder::repo::open::Credential;
use std::collections::BTreeMap;

/// How many there are: one that is lost, or not looked at, is noticed.
const CASES: usize = 484;

struct Case {
    file: String,
    fields: BTreeMap<String, String>,
}

type Verdict = Result<(), String>;

fn why(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

impl Case {
    fn read(path: &std::path::Path) -> Case {
        let text = std::fs::read_to_string(path).unwrap();
        let field = |line: &str| {
            let (key, value) = line
                .split_once(':')
                .unwrap_or_else(|| panic!("{}: {line:?}", path.display()));
            (key.to_owned(), value.trim_start().to_owned())
        };
        Case {
            file: path.file_name().unwrap().to_string_lossy().into_owned(),
            fields: text.lines().map(field).collect(),
        }
    }

    fn text(&self, key: &str) -> &str {
        self.fields
            .get(key)
            .unwrap_or_else(|| panic!("{}: no {key}", self.file))
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> T {
        self.text(key)
            .parse()
            .unwrap_or_else(|_| panic!("{}: {key} is no number", self.file))
    }

    fn bytes(&self) -> Vec<u8> {
        hex(self.text("bytes"))
    }

    fn name(&self) -> Result<ObjectName, String> {
        ObjectName::parse(self.text("name")).ok_or_else(|| "not a name".into())
    }

    fn root(&self) -> RootKind {
        [
            RootKind::Posix,
            RootKind::ObjectMap,
            RootKind::StreamSet,
            RootKind::Windows,
        ][self.number::<usize>("root")]
    }

    /// Reads the input as its kind says. Every kind has its reader here; one without is a panic, not a pass.
    fn verdict(&self, fixture: &Fixture) -> Verdict {
        match self.text("kind") {
            "varint" => self.varint(),
            "zigzag" => self.zigzag(),
            "cbor" => cbor::decode(&self.bytes()).map(drop).map_err(why),
            "envelope" => self.envelope(fixture),
            "slot" => self.slot(fixture),
            "blob" => self.blob(fixture),
            "trailer" => self.trailer(),
            "pack" => self.pack(fixture),
            "run" => run::decode_l0(&self.bytes(), self.text("name"), &fixture.keys, &fixture.verifier)
                .map(drop)
                .map_err(why),
            "session" => self.session(fixture),
            "outcome" => self.outcome(fixture),
            "drop" => self.dropped(fixture),
            "config" => self.config(),
            "protector" => Protector::decode(&self.bytes(), &fixture.kid).map(drop).map_err(why),
            "grant" => self.grant(fixture),
            "key-file" => Credential::from_key_file(&self.bytes())
                .map(drop)
                .ok_or_else(|| "not a key file".into()),
            "tree-key" => rules::check_key(self.root(), &self.bytes()).map_err(why),
            "entry" => self.entry(),
            "node" => self.node(),
            "list" => ListNode::decode(&self.bytes()).map(drop).map_err(why),
            "manifest" => Manifest::decode(&self.bytes()).map(drop).map_err(why),
            kind => panic!("{}: nothing reads {kind:?}", self.file),
        }
    }

    fn varint(&self) -> Verdict {
        let bytes = self.bytes();
        let mut reader = Reader::new(&bytes);
        let value = reader.varint("number").map_err(why)?;
        reader.end("number").map_err(why)?;
        if self.text("expect") == "ok" {
            assert_eq!(value, self.number::<u64>("value"), "{}", self.file);
        }
        Ok(())
    }

    fn zigzag(&self) -> Verdict {
        let bytes = self.bytes();
        let mut reader = Reader::new(&bytes);
        let value = reader.zigzag("number").map_err(why)?;
        reader.end("number").map_err(why)?;
        assert_eq!(value, self.number::<i64>("value"), "{}", self.file);
        Ok(())
    }

    fn envelope(&self, fixture: &Fixture) -> Verdict {
        let bytes = self.bytes();
        let envelope = Envelope::parse(&bytes, EnvelopeKind::Session, &fixture.repo).map_err(why)?;
        let key = fixture
            .keys
            .object_key(envelope.epoch(), ObjectClass::Session)
            .map_err(why)?;
        (0..envelope.sections())
            .try_for_each(|section| envelope.open(section, key, self.text("name")).map(drop).map_err(why))
    }

    fn slot(&self, fixture: &Fixture) -> Verdict {
        let slot = larder::pure::crypto::Slot::from_slice(&self.bytes()).ok_or("not 88 bytes")?;
        fixture.keys.open_slot(&slot).map(drop).map_err(why)
    }

    fn blob(&self, fixture: &Fixture) -> Verdict {
        let frame = self.bytes();
        let slots = slots(&hex(self.text("slots")));
        let ty = BlobType::from_byte(self.number("type")).ok_or("type")?;
        let id: ChunkId = self.text("id").parse().map_err(why)?;
        let base = self.fields.get("base").map(|base| hex(base));
        open(fixture, &frame, &slots, ty, &id, &|_| base.clone()).map(drop)
    }

    fn trailer(&self) -> Verdict {
        let kind = PackKind::from_byte(self.number("pack-kind")).ok_or("kind")?;
        let trailer = pack::decode_trailer(kind, &self.bytes()).map_err(why)?;
        // What `check_whole` and `open` of a pack compare with the footer.
        let frames = trailer.frames_end() - pack::HEADER_LEN as u64;
        if frames == self.number::<u64>("frames") {
            Ok(())
        } else {
            Err("frames do not add up".into())
        }
    }

    fn pack(&self, fixture: &Fixture) -> Verdict {
        let ObjectName::Pack(kind, id, session) = self.name()? else {
            return Err("not a pack".into());
        };
        let bytes = self.bytes();
        let parts = pack::check_whole(&bytes).map_err(why)?;
        let header = parts.header;
        if (header.kind, header.pack, header.session, header.repo) != (kind, id, session, fixture.repo) {
            return Err("the header is not what the name says".into());
        }
        let key = fixture
            .keys
            .object_key(header.epoch, ObjectClass::Trailer)
            .map_err(why)?;
        let trailer = parts.open(key).map_err(why)?;
        let mut contents: BTreeMap<ChunkId, Vec<u8>> = BTreeMap::new();
        for record in &trailer.records {
            let frame = &bytes[record.offset as usize..][..record.stored_len as usize];
            let base = |id: &ChunkId| contents.get(id).cloned();
            let (raw, base) = open(fixture, frame, &trailer.slots, record.ty, &record.id, &base)?;
            if base != record.base || raw.len() != record.raw_len as usize {
                return Err("record and frame disagree".into());
            }
            contents.insert(record.id, raw);
        }
        Ok(())
    }

    fn session(&self, fixture: &Fixture) -> Verdict {
        let ObjectName::Session(session, number) = self.name()? else {
            return Err("not a session".into());
        };
        let (bytes, keys, verifier) = (self.bytes(), &fixture.keys, &fixture.verifier);
        match number {
            0 => Registration::decode(&bytes, &session, keys, verifier)
                .map(drop)
                .map_err(why),
            _ => Acknowledgement::decode(&bytes, &session, number, keys, verifier)
                .map(drop)
                .map_err(why),
        }
    }

    fn outcome(&self, fixture: &Fixture) -> Verdict {
        let ObjectName::Outcome(session) = self.name()? else {
            return Err("not an outcome".into());
        };
        let stored = Outcome::decode(&self.bytes(), &session, &fixture.keys, &fixture.verifier).map_err(why)?;
        stored.manifest(&fixture.keys).map(drop).map_err(why)
    }

    fn dropped(&self, fixture: &Fixture) -> Verdict {
        let ObjectName::Drop(session) = self.name()? else {
            return Err("not a drop".into());
        };
        Drop::decode(&self.bytes(), &session, &fixture.keys, &fixture.verifier)
            .map(drop)
            .map_err(why)
    }

    fn config(&self) -> Verdict {
        let ObjectName::Config(sequence) = self.name()? else {
            return Err("not a config".into());
        };
        Config::decode(&self.bytes(), sequence, None).map(drop).map_err(why)
    }

    fn grant(&self, fixture: &Fixture) -> Verdict {
        let ObjectName::Grant(kid, number) = self.name()? else {
            return Err("not a grant".into());
        };
        let key = grant::grant_key(&fixture.kid_secret, &fixture.repo);
        Grant::decode(&self.bytes(), &kid, number, &key, &fixture.repo, &fixture.verifier)
            .map(drop)
            .map_err(why)
    }

    fn entry(&self) -> Verdict {
        let entry = rules::decode_entry(self.root(), &self.bytes()).map_err(why)?;
        let flags = [
            (entry.attributes.has_unknown_critical(), "unknown-critical-tlv"),
            (entry.attributes.changed_while_read, "changed-while-read"),
            (entry.attributes.incomplete.is_some(), "content-incomplete"),
        ];
        let flags: Vec<&str> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        let wanted: Vec<&str> = self.fields.get("flag").iter().map(|flag| flag.as_str()).collect();
        assert_eq!(flags, wanted, "{}", self.file);
        let mut again = Vec::new();
        Entry::encode(&entry, &mut again);
        assert_eq!(again, self.bytes(), "{}: another encoding", self.file);
        Ok(())
    }

    fn node(&self) -> Verdict {
        let node = Node::decode(&self.bytes()).map_err(why)?;
        for (key, value) in &node.entries {
            rules::check_key(self.root(), key).map_err(why)?;
            if node.level == 0 {
                rules::decode_entry(self.root(), value).map_err(why)?;
            }
        }
        Ok(())
    }
}

/// Plaintext of a frame, and its base if it is a delta. `base` gives the plaintext of a base.
pub fn open(
    fixture: &Fixture,
    frame: &[u8],
    slots: &[larder::pure::crypto::Slot],
    ty: BlobType,
    id: &ChunkId,
    base: &dyn Fn(&ChunkId) -> Option<Vec<u8>>,
) -> Result<(Vec<u8>, Option<ChunkId>), String> {
    let index = blob::slot_index(frame).map_err(why)?;
    let slot = slots.get(usize::from(index)).ok_or("no such slot")?;
    let (_, key) = fixture.keys.open_slot(slot).map_err(why)?;
    let (mut opener, mut raw) = (Opener::new(), Vec::new());
    let opened = blob::open_frame(frame, &key, &fixture.keys, ty, id, &mut opener, &mut raw).map_err(why)?;
    let Opened::NeedsBase { base: base_id, .. } = &opened else {
        return Ok((raw, None));
    };
    let base = base(base_id).ok_or("the base is not there")?;
    blob::finish_delta(&opened, &base, &fixture.keys, id, &mut opener, &mut raw).map_err(why)?;
    Ok((raw, Some(*base_id)))
}

#[test]
fn every_published_case_is_read_or_refused_as_the_specification_says() {
    let fixture = Fixture::new();
    let mut paths: Vec<_> = std::fs::read_dir(spec("vectors/cases"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let mut wrong = Vec::new();
    let mut used = 0;
    for path in &paths {
        let case = Case::read(path);
        let wanted = match case.text("expect") {
            "ok" => true,
            "fail" => false,
            other => panic!("{}: expect {other:?}", case.file),
        };
        let verdict = case.verdict(&fixture);
        used += 1;
        if verdict.is_ok() != wanted {
            wrong.push(format!(
                "{}: {} ({}), but {verdict:?}",
                case.file,
                case.text("expect"),
                case.text("why")
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {used}:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(
        (used, paths.len()),
        (CASES, CASES),
        "cases came or went: change the number here with them"
    );
}
