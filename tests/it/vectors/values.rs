//! `vectors.txt`: named values. Those that larder writes are made again, the others are derived or read. A name that nothing
//! here looks at fails the test, so that no value is passed over silently.

use super::{Fixture, counting, hex, slots};
use larder::pure::base::Timestamp;
use larder::pure::base::time::FileTime;
use larder::pure::chunk::{Cutter, Profile};
use larder::pure::crypto::kdf::{self, Cost};
use larder::pure::crypto::paper;
use larder::pure::crypto::sign::role;
use larder::pure::crypto::{self, Domain, KeyRing, ObjectClass, Secret, Slot};
use larder::pure::format::blob::{self, BlobType, Codec, Padding};
use larder::pure::format::config::Config;
use larder::pure::format::entry::{ChunkRef, Content, Entry, EntryKind};
use larder::pure::format::envelope::{self, Envelope, EnvelopeKind};
use larder::pure::format::grant::{self, Grant};
use larder::pure::format::list::ListNode;
use larder::pure::format::manifest::Manifest;
use larder::pure::format::name::{ObjectName, PackKind};
use larder::pure::format::node::{Child, Node};
use larder::pure::format::outcome::Outcome;
use larder::pure::format::pack::{self, PackBuilder, PackHeader};
use larder::pure::format::parity::{Shape, code, encode};
use larder::pure::format::protector::{Protector, ProtectorKind};
use larder::pure::format::run::{self, StoredAs};
use larder::pure::format::session::Registration;
use larder::pure::id::{ChunkId, PackId, to_hex};
use larder::pure::tree::key;
use larder::repo::open::Credential;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Words about other values.
const SAID: [&str; 6] = [
    "S_id/S_cdc/S_split/S_idx/S_meta/S_data/S_psk",
    "zstd raw",
    "delta base",
    "delta raw",
    "cdc input",
    "cdc text input",
];

const OBJECT_ID: [u8; 16] = {
    let mut id = [0; 16];
    let mut index = 0;
    while index < 16 {
        id[index] = 0x80 + index as u8;
        index += 1;
    }
    id
};
const START: Timestamp = Timestamp(1_700_000_000_000_000_000);
const HELLO: &[u8] = b"hello larder\n";

struct Values {
    fixture: Fixture,
    used: RefCell<BTreeSet<String>>,
}

impl Values {
    fn text(&self, name: &str) -> &str {
        self.used.borrow_mut().insert(name.to_owned());
        self.fixture.text(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        hex(self.text(name))
    }

    #[track_caller]
    fn is(&self, name: &str, value: impl AsRef<[u8]>) {
        assert_eq!(to_hex(value.as_ref()), self.text(name), "{name}");
    }

    #[track_caller]
    fn says(&self, name: &str, value: impl ToString) {
        assert_eq!(value.to_string(), self.text(name), "{name}");
    }
}

fn xof(seed: &str, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

fn delta_base() -> Vec<u8> {
    xof("larder delta base", 512)
}

fn delta_raw() -> Vec<u8> {
    let base = delta_base();
    [&base[..256], b"one changed row\n", &base[256..]].concat()
}

#[test]
fn every_published_value_is_made_derived_or_read() {
    let values = Values {
        fixture: Fixture::new(),
        used: RefCell::default(),
    };
    keys(&values);
    blobs(&values);
    packs_and_runs(&values);
    trees(&values);
    objects(&values);
    protectors(&values);
    chunking(&values);
    parity(&values);
    let used = values.used.into_inner();
    let all = values.fixture.values.keys();
    let missed: Vec<_> = all
        .filter(|name| !used.contains(*name) && !SAID.contains(&name.as_str()))
        .collect();
    assert!(missed.is_empty(), "nothing looks at {missed:#?}");
}

fn parity(values: &Values) {
    let matrix: Vec<Vec<u8>> = (0..2)
        .map(|row| (0..3).map(|column| code::coefficient(2, row, column)).collect())
        .collect();
    values.says("RS Cauchy m=2 k=3 matrix", format!("{matrix:?}"));
    let mut blocks = [[0; 4]; 2];
    for (row, parity) in blocks.iter_mut().enumerate() {
        for (column, block) in [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]].iter().enumerate() {
            code::add(2, row, column, parity, block);
        }
    }
    let [first, second] = blocks.map(|block| to_hex(&block));
    values.says(
        "RS parity of 01020304,05060708,090a0b0c",
        format!("['{first}', '{second}']"),
    );
    let object: Vec<u8> = (0..100_000u64).map(|at| ((at * at) >> 5) as u8).collect();
    let sidecar = encode(Shape::STANDARD, &object);
    values.says("parity sidecar of 100000 bytes (i*i >> 5) & 255, len", sidecar.len());
    values.is(
        "parity sidecar of 100000 bytes (i*i >> 5) & 255, blake3",
        crypto::hash(&sidecar),
    );
}

fn keys(values: &Values) {
    let Fixture {
        keys,
        repo,
        kid,
        signer,
        kid_secret,
        ..
    } = &values.fixture;
    let derived = |context| *crypto::derive(context, &[&[1; 32], repo.as_bytes()]).expose();
    values.is("repo_id", repo.as_bytes());
    values.is("K_id_data", derived("larder v1 chunk-id data"));
    values.is("K_id_meta", derived("larder v1 chunk-id meta"));
    values.is("id(data,\"\")", keys.data_id(b"").unwrap().as_bytes());
    values.is("id(data,\"hello larder\\n\")", keys.data_id(HELLO).unwrap().as_bytes());
    values.is("id(meta,\"hello larder\\n\")", keys.meta_id(HELLO).unwrap().as_bytes());
    values.is(
        "id(data,1MiB zeros)",
        keys.data_id(&vec![0; 1 << 20]).unwrap().as_bytes(),
    );
    for index in [0usize, 1, 255] {
        values.says(
            &format!("gear[{index}]"),
            format!("{:016x}", keys.gear().unwrap()[index]),
        );
    }
    let session_key = Secret::new(counting(0xa0));
    values.is("session_key", session_key.expose());
    let slot = keys
        .wrap_session_key(Domain::Data, &session_key, &counting(0x40))
        .unwrap();
    values.is("slot(method=1,domain=data,epoch=1)", slot.0);
    values.is("slot_id", slot.id());
    let put_only = values.fixture.secrets.for_roles(repo, role::WRITE);
    values.is("pk_data", put_only.pk_data.unwrap());
    values.is("pk_meta", put_only.pk_meta.unwrap());
    let put_only = KeyRing::new(*repo, vec![put_only], 1).unwrap();
    let wrapped = put_only
        .wrap_session_key(Domain::Meta, &Secret::new(counting(0x60)), &counting(0x40))
        .unwrap();
    values.is(
        "slot(method=2 HPKE mode_psk, domain=meta, epoch=1, skE=DeriveKeyPair(40..5f))",
        wrapped.0,
    );
    // Its ephemeral key is one that no key material leads to: it can only be opened.
    let foreign = "slot(method=2 HPKE mode_psk, domain=data, epoch=1, skE=77*32)";
    let [foreign] = slots(&values.bytes(foreign))[..] else {
        panic!("not one slot")
    };
    for (slot, session_key) in [(foreign, &session_key), (wrapped, &Secret::new(counting(0x60)))] {
        let (domain, opened) = keys.open_slot(&slot).unwrap();
        let expected = keys.blob_key(domain, session_key);
        assert_eq!(
            opened.sealer.seal(&[0; 12], b"x", b""),
            expected.sealer.seal(&[0; 12], b"x", b"")
        );
    }
    values.is(
        "blob_key(data)",
        crypto::derive("larder v1 blob data", &[session_key.expose(), repo.as_bytes()]).expose(),
    );
    values.is("kid", kid.as_bytes());
    values.is("writer ed25519 pk (kid_secret = 08*32)", signer.public_key());
    values.is("K_g", grant::grant_key(kid_secret, repo).expose());
}

fn blobs(values: &Values) {
    let Fixture { keys, repo, .. } = &values.fixture;
    let key = keys.blob_key(Domain::Data, &Secret::new(counting(0xa0)));
    let slot = slots(&values.bytes("slot(method=1,domain=data,epoch=1)"));
    let seal = |id: &ChunkId, codec, raw_len: usize, payload: &[u8]| {
        let mut frame = Vec::new();
        blob::seal_frame(
            &mut frame,
            &key,
            repo,
            0,
            BlobType::Data,
            id,
            codec,
            raw_len as u32,
            payload,
            Padding::None,
        );
        frame
    };
    let opened = |frame: &[u8], id: &ChunkId| {
        super::cases::open(&values.fixture, frame, &slot, BlobType::Data, id, &|_| {
            Some(delta_base())
        })
        .unwrap()
    };
    // Plaintext and associated data are inside of `seal_frame`: a frame is what it is only if they are these.
    let plaintext = |frame: &[u8], id: &ChunkId, aad: &[u8]| {
        let nonce = std::array::from_fn(|index| id.0[index]);
        key.sealer.open(&nonce, &frame[2..], aad).unwrap()
    };
    let aad = |id: &ChunkId| [&b"LBLB\x01\x00"[..], repo.as_bytes(), id.as_bytes()].concat();

    let hello = keys.data_id(HELLO).unwrap();
    let frame = seal(&hello, Codec::Raw, HELLO.len(), HELLO);
    values.is("blob frame", &frame);
    values.is("blob aad", aad(&hello));
    values.is("blob plaintext", plaintext(&frame, &hello, &values.bytes("blob aad")));

    let zeros = vec![0; 1000];
    let id = keys.data_id(&zeros).unwrap();
    values.is("zstd id", id.as_bytes());
    let plain = values.bytes("zstd blob plaintext");
    let frame = seal(&id, Codec::Zstd, 1000, &plain[5..]);
    values.is("zstd blob frame", &frame);
    assert_eq!(plaintext(&frame, &id, &aad(&id)), plain);
    assert_eq!(opened(&frame, &id), (zeros, None));

    let (base, id) = (
        keys.data_id(&delta_base()).unwrap(),
        keys.data_id(&delta_raw()).unwrap(),
    );
    values.is("delta base id", base.as_bytes());
    values.is("delta id", id.as_bytes());
    let zstd = values.bytes("delta zstd frame");
    let frame = seal(&id, Codec::Delta(base), delta_raw().len(), &zstd);
    values.is("delta blob frame", &frame);
    values.is("delta blob plaintext", plaintext(&frame, &id, &aad(&id)));
    assert_eq!(opened(&frame, &id), (delta_raw(), Some(base)));
    let padded = values.bytes("delta blob frame with 7 bytes of padding");
    assert_eq!(padded.len(), frame.len() + 7);
    assert_eq!(opened(&padded, &id), (delta_raw(), Some(base)));
}

fn packs_and_runs(values: &Values) {
    let Fixture {
        keys, repo, session, ..
    } = &values.fixture;
    let slot = slots(&values.bytes("slot(method=1,domain=data,epoch=1)"));
    let trailer_key = keys.object_key(1, ObjectClass::Trailer).unwrap();
    let sealed = |pack, session, blobs: &[(ChunkId, usize, Option<ChunkId>, Vec<u8>)]| {
        let header = PackHeader {
            kind: PackKind::Data,
            epoch: 1,
            repo: *repo,
            pack,
            session,
        };
        let mut builder = PackBuilder::new(header, slot.clone(), Vec::new());
        for (id, raw_len, base, frame) in blobs {
            builder.push(BlobType::Data, *id, *raw_len as u32, *base, frame);
        }
        builder.seal(trailer_key)
    };
    let hello = keys.data_id(HELLO).unwrap();
    let frame = values.bytes("blob frame");
    let plain = sealed(
        PackId(counting(0xc0)),
        *session,
        &[(hello, HELLO.len(), None, frame.clone())],
    );
    values.is("pack hex", &plain.bytes);
    values.says("pack (complete, 1 blob) len", plain.bytes.len());
    values.says("footer len", pack::FOOTER_LEN);
    values.is("pack blake3", crypto::hash(&plain.bytes));
    values.says("pack crc64nvme", format!("{:016x}", plain.crc64nvme));

    let (base, delta) = (
        keys.data_id(&delta_base()).unwrap(),
        keys.data_id(&delta_raw()).unwrap(),
    );
    let zeros = keys.data_id(&vec![0; 1000]).unwrap();
    let name = ObjectName::parse(values.text("pack with a delta name")).unwrap();
    let ObjectName::Pack(PackKind::Data, pack_id, delta_session) = name else {
        panic!("{name:?}")
    };
    let key = keys.blob_key(Domain::Data, &Secret::new(counting(0xa0)));
    let mut base_frame = Vec::new();
    let base_raw = delta_base();
    blob::seal_frame(
        &mut base_frame,
        &key,
        repo,
        0,
        BlobType::Data,
        &base,
        Codec::Raw,
        512,
        &base_raw,
        Padding::None,
    );
    let with_delta = sealed(
        pack_id,
        delta_session,
        &[
            (base, 512, None, base_frame),
            (delta, delta_raw().len(), Some(base), values.bytes("delta blob frame")),
            (zeros, 1000, None, values.bytes("zstd blob frame")),
        ],
    );
    values.is("pack with a delta", &with_delta.bytes);
    let trailer = pack::decode_trailer(PackKind::Data, &values.bytes("trailer plaintext with a delta")).unwrap();
    assert_eq!(
        (&trailer.records, &trailer.slots),
        (&with_delta.records, &with_delta.slots)
    );

    for (session, number_of_chunks) in [(*session, 1), (delta_session, 3)] {
        let name = format!("idx/0-{session}-0000");
        let object = values.bytes(&format!("object {name}"));
        let (identity, content) = run::decode_l0(&object, &name, keys, &values.fixture.verifier).unwrap();
        assert_eq!(
            (identity.session, content.packs.len(), content.chunks.len()),
            (session, 1, number_of_chunks)
        );
        let envelope = Envelope::parse(&object, EnvelopeKind::Run, repo).unwrap();
        let open = |section| {
            envelope
                .open(section, keys.object_key(1, ObjectClass::Run).unwrap(), &name)
                .unwrap()
        };
        assert_eq!(open(1), slot[0].0);
        if number_of_chunks == 1 {
            values.is("run header CBOR (signed)", open(0));
            values.is("pack record", open(2));
            values.is("chunk record (pack_ix 0, off 64)", open(3));
            values.says(&format!("object {name} len"), object.len());
            values.is(&format!("object {name} blake3"), crypto::hash(&object));
            let again = run::encode_l0(&content, &identity, keys, &values.fixture.signer, OBJECT_ID).unwrap();
            assert_eq!(again, object, "a run is written otherwise");
            let frame_len = frame.len() as u32;
            assert_eq!(
                (content.chunks[0].offset, content.chunks[0].stored_len),
                (64, frame_len)
            );
        } else {
            // The features that follow are not kept, so this object is read only.
            values.is("run header with deltas CBOR (signed)", open(0));
            values.is("chunk records with a delta", open(3));
            values.is("delta block", open(4));
            values.is("feature block", open(5));
            let stored: Vec<_> = content
                .chunks
                .iter()
                .filter(|chunk| chunk.stored_as == StoredAs::Delta)
                .collect();
            assert_eq!((stored.len(), stored[0].id), (1, delta));
            assert_eq!((content.deltas[0].id, content.deltas[0].base), (delta, base));
        }
    }
}

fn trees(values: &Values) {
    let keys = &values.fixture.keys;
    for path in ["a", "a.x", "z", "a/b", "a/c", "a/b/d", "a.x/q"] {
        values.is(&format!("key /{path}"), key::from_path(path.as_bytes()));
    }
    let split = |path: &[u8]| {
        let hash = crypto::keyed_hash(keys.split_key().unwrap(), &[&[0], &key::from_path(path)]);
        u64::from_le_bytes(std::array::from_fn(|index| hash[index]))
    };
    let closes = |value: u64| value < 1 << 58;
    for path in ["a", "a/b", "z"] {
        let value = split(path.as_bytes());
        let closes = if closes(value) { "True" } else { "False" };
        values.says(
            &format!("split_hash level0 /{path}"),
            format!("{value:016x} boundary={closes}"),
        );
    }
    let first = (0u32..)
        .find(|number| closes(split(format!("dir/f{number:06}").as_bytes())))
        .unwrap();
    let value = split(format!("dir/f{first:06}").as_bytes());
    values.says(
        "first boundary among /dir/f000000.. at level 0",
        format!("f{first:06} hash={value:016x}"),
    );

    let leaf = values.bytes("leaf node bytes");
    let node = Node::decode(&leaf).unwrap();
    assert_eq!(Node::encode(0, &node.entries), leaf);
    let id = keys.meta_id(&leaf).unwrap();
    values.is("leaf node id", id.as_bytes());
    let bytes = node
        .entries
        .iter()
        .map(|(_, value)| Entry::peek_size(value).unwrap())
        .sum();
    let child = Child {
        id,
        leaf_entries: node.entries.len() as u64,
        file_bytes: bytes,
    };
    values.is(
        "inner node bytes",
        Node::encode(1, &[(node.entries[0].0.clone(), child.encode())]),
    );

    let read = |name: &str| {
        let bytes = values.bytes(name);
        let entry = Entry::decode(&bytes).unwrap();
        let mut again = Vec::new();
        entry.encode(&mut again);
        assert_eq!(again, bytes, "{name}");
        entry
    };
    let full = read("entry with every TLV of v1");
    assert_eq!(
        (full.mode, full.mtime),
        (
            0o4755,
            FileTime {
                seconds: -2,
                nanos: 999_999_999
            }
        )
    );
    let attributes = &full.attributes;
    assert_eq!((attributes.xattrs.len(), attributes.xattrs_outline.len()), (2, 1));
    assert!(attributes.born.is_some() && attributes.hard_link.is_some() && attributes.flags == Some(0x10));
    assert!(attributes.changed_while_read && attributes.incomplete == Some(5) && attributes.unknown.is_empty());
    assert_eq!(
        read("entry symlink").kind,
        EntryKind::Symlink {
            target: b"../target".to_vec()
        }
    );
    assert_eq!(
        read("entry block device").kind,
        EntryKind::BlockDevice { major: 8, minor: 1 }
    );
    let hello = ChunkRef {
        id: keys.data_id(HELLO).unwrap(),
        len: 13,
    };
    assert_eq!(
        read("entry stream").kind,
        EntryKind::Stream {
            size: 13,
            content: Content::Chunks(vec![hello])
        }
    );
    let content = Content::List {
        root: ChunkId([0xab; 32]),
        height: 1,
        count: 130,
    };
    assert_eq!(
        read("entry file with a list").kind,
        EntryKind::File { size: 130_000, content }
    );
    let hole = ChunkRef {
        id: ChunkId::HOLE,
        len: 1 << 30,
    };
    values.is(
        "list node level 0 (data, hole, data)",
        ListNode::Leaf(vec![hello, hole, hello]).encode(),
    );
}

/// Small objects: what is read from the published bytes is written as the same bytes.
fn objects(values: &Values) {
    let Fixture {
        keys,
        repo,
        kid,
        kid_secret,
        signer,
        verifier,
        session,
        ..
    } = &values.fixture;
    let section = |name: &str, kind, class: &Secret, section| {
        let object = values.bytes(&format!("object {name}"));
        Envelope::parse(&object, kind, repo)
            .unwrap()
            .open(section, class, name)
            .unwrap()
    };
    let class = |class| keys.object_key(1, class).unwrap();

    let name = format!("sess/{session}/0000");
    let empty = envelope::seal(
        EnvelopeKind::Session,
        1,
        repo,
        OBJECT_ID,
        class(ObjectClass::Session),
        &name,
        &[&[0xa0]],
    );
    values.is("envelope(session, section0 = CBOR {} )", &empty);
    values.says("envelope(session, section0 = CBOR {} ) len", empty.len());
    let object = values.bytes(&format!("object {name}"));
    let registration = Registration::decode(&object, session, keys, verifier).unwrap();
    assert_eq!(registration.encode(session, keys, signer, OBJECT_ID).unwrap(), object);
    values.is(
        "session CBOR (signed)",
        section(&name, EnvelopeKind::Session, class(ObjectClass::Session), 0),
    );

    let name = format!("snap/{session}");
    let object = values.bytes(&format!("object {name}"));
    let stored = Outcome::decode(&object, session, keys, verifier).unwrap();
    let manifest = values.bytes("manifest CBOR");
    assert_eq!(stored.manifest(keys).unwrap().unwrap().encode(), manifest);
    assert_eq!(Manifest::decode(&manifest).unwrap().encode(), manifest);
    values.is("manifest id", keys.meta_id(&manifest).unwrap().as_bytes());
    let session_key = Secret::new(counting(0x60));
    let slot: Slot = keys
        .wrap_session_key(Domain::Meta, &session_key, &counting(0x20))
        .unwrap();
    let again = stored
        .outcome
        .encode(Some((&manifest, &slot, &session_key)), keys, signer, OBJECT_ID)
        .unwrap();
    assert_eq!(again, object);
    values.is(
        "outcome CBOR (signed)",
        section(&name, EnvelopeKind::Outcome, class(ObjectClass::Outcome), 0),
    );
    values.says(&format!("object {name} len"), object.len());
    values.is("outcome hash (next prev)", stored.hash.as_bytes());

    let object = values.bytes("object config/00000000");
    let config = Config::decode(&object, 0, None).unwrap();
    assert_eq!(config.encode(signer), object);
    values.is("config CBOR (signed)", &object[8..object.len() - 32]);
    values.is("config hash (next key 5)", crypto::hash(&object));

    let name = format!("grants/{kid}/00000000");
    let object = values.bytes(&format!("object {name}"));
    let grant_key = grant::grant_key(kid_secret, repo);
    let grant = Grant::decode(&object, kid, 0, &grant_key, repo, verifier).unwrap();
    values.is(
        "grant CBOR (signed)",
        section(&name, EnvelopeKind::Grant, &grant_key, 0),
    );
    assert_eq!(grant.encode(kid, 0, &grant_key, signer, OBJECT_ID), object);
    assert_eq!((grant.kid_table[0].kid, grant.epochs[0].epoch), (*kid, 1));
}

fn protectors(values: &Values) {
    let Fixture {
        repo, kid, kid_secret, ..
    } = &values.fixture;
    let salt: [u8; 16] = counting(0);
    let cost = Cost {
        memory_kib: 65_536,
        passes: 3,
        lanes: 4,
    };
    let ikm = kdf::argon2id(b"correct horse battery staple", &salt, cost).unwrap();
    values.is(
        "argon2id(m=65536KiB,t=3,p=4,salt=000102..0f,\"correct horse battery staple\")",
        ikm.expose(),
    );
    let of_ikm = |context| *crypto::derive(context, &[ikm.expose(), repo.as_bytes()]).expose();
    values.is("protector key", of_ikm("larder v1 protector"));
    values.is("protector commitment", of_ikm("larder v1 protector commit"));
    let text = values.text("key file").strip_suffix("\\n").unwrap().to_owned() + "\n";
    let Some(Credential::KeyFile(key_file)) = Credential::from_key_file(text.as_bytes()) else {
        panic!("no key file")
    };
    assert_eq!(key_file.expose(), &counting::<32>(0));
    let paper: String = paper::write(&key_file).split_whitespace().collect();
    assert_eq!(paper, values.text("paper key"));
    assert_eq!(paper::read(paper.as_bytes()), paper::Reading::Key(key_file.clone()));
    let passphrase = ProtectorKind::Passphrase { salt, cost };
    for (number, kind, ikm) in [(0, passphrase, &ikm), (1, ProtectorKind::KeyFile, &key_file)] {
        let object = values.bytes(&format!("object keys/{kid}/{number:04}"));
        let protector = Protector::decode(&object, kid).unwrap();
        assert_eq!(protector.unwrap(repo, ikm).unwrap().expose(), kid_secret.expose());
        assert_eq!(
            Protector::wrap(repo, *kid, START, kind, None, ikm, kid_secret).encode(),
            object
        );
    }
}

fn chunking(values: &Values) {
    let gear = values.fixture.keys.gear().unwrap();
    let lengths = |bytes: &[u8], profile| {
        let cutter = Cutter::new(profile, gear);
        let (mut rest, mut cuts, mut lengths) = (bytes, cutter.cuts(), Vec::new());
        while let Some(cut) = cuts.next(rest, true) {
            lengths.push(cut);
            rest = &rest[cut..];
        }
        format!("{lengths:?}")
    };
    let profile = |name: &str| {
        let numbers: Vec<&str> = values.text(name).split(' ').collect();
        let [min, center, max, small, large] = numbers[..] else {
            panic!("{name}")
        };
        let size = |text: &str| text.parse().unwrap();
        let mask = |text| u64::from_str_radix(text, 16).unwrap();
        Profile::new(size(min), size(center), size(max), mask(small), mask(large)).unwrap()
    };
    assert_eq!(
        profile("cdc profile 0 (min center max mask_s mask_l)"),
        Profile::DEFAULT
    );
    let input = xof("larder cdc test", 8 << 20);
    values.says("cdc lengths", lengths(&input, Profile::DEFAULT));
    values.says(
        "cdc lengths of the first 524288 bytes",
        lengths(&input[..524_288], Profile::DEFAULT),
    );
    values.says(
        "cdc lengths of the first 524289 bytes",
        lengths(&input[..524_289], Profile::DEFAULT),
    );
    values.says(
        "cdc lengths of 5 MiB zeros",
        lengths(&vec![0; 5 << 20], Profile::DEFAULT),
    );
    let text: String = (0..100_000)
        .map(|number| format!("{number:08}\tthe quick brown fox\n"))
        .collect();
    values.says("cdc text lengths", lengths(text.as_bytes(), Profile::DEFAULT));
    let small = profile("cdc small profile (min center max mask_s mask_l)");
    values.says(
        "cdc small profile lengths of the first 8192 bytes",
        lengths(&input[..8192], small),
    );
    let lowest = |name: &str| {
        let numbers: Vec<&str> = values.text(name).split(' ').collect();
        let [min, center, max, mask] = numbers[..] else {
            panic!("{name}")
        };
        let size = |text: &str| text.parse().unwrap();
        Profile::lowest(
            size(min),
            size(center),
            size(max),
            u64::from_str_radix(mask, 16).unwrap(),
        )
        .unwrap()
    };
    assert_eq!(lowest("cdc lowest profile (min center max mask)"), Profile::NEW);
    values.says("cdc lowest lengths", lengths(&input, Profile::NEW));
    values.says(
        "cdc lowest lengths of 5 MiB zeros",
        lengths(&vec![0; 5 << 20], Profile::NEW),
    );
    values.says("cdc lowest text lengths", lengths(text.as_bytes(), Profile::NEW));
    let small = lowest("cdc lowest small profile (min center max mask)");
    values.says(
        "cdc lowest small profile lengths of the first 8192 bytes",
        lengths(&input[..8192], small),
    );
}
