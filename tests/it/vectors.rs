//! The published vectors of the format: `format-spec/vectors/` holds values, good and must-fail inputs, and a complete
//! repository, all made by a second implementation. What it wrote must be read, what it calls broken must be refused.

mod cases;
mod repository;
mod values;

use larder::pure::crypto::sign::{WriterKey, role};
use larder::pure::crypto::{EpochSecrets, KeyRing, Secret, Signer, Slot, Verifier};
use larder::pure::id::{KeyId, RepoId, SessionId, from_hex};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where the specification lies.
fn spec(below: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("format-spec")
        .join(below)
}

fn hex(text: &str) -> Vec<u8> {
    from_hex(text).unwrap_or_else(|| panic!("{text:?} is not hex"))
}

fn counting<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|index| first + index as u8)
}

/// The fixed values behind all vectors.
struct Fixture {
    repo: RepoId,
    secrets: EpochSecrets,
    keys: KeyRing,
    kid: KeyId,
    kid_secret: Secret,
    signer: Signer,
    /// Knows the one writer, an admin, as `config/00000000` does.
    verifier: Verifier,
    session: SessionId,
    /// `vectors.txt`.
    values: BTreeMap<String, String>,
}

impl Fixture {
    fn new() -> Fixture {
        let repo = RepoId(counting(0x10));
        let secret = |byte| Some(Secret::new([byte; 32]));
        let epoch = EpochSecrets {
            epoch: 1,
            id: secret(1),
            cdc: secret(2),
            split: secret(3),
            idx: secret(4),
            meta: secret(5),
            data: secret(6),
            psk: secret(7),
            ..EpochSecrets::none(1)
        };
        let mut kid = [0x22; 16];
        kid[..4].fill(0x11);
        let kid = KeyId(kid);
        let kid_secret = Secret::new([8; 32]);
        let signer = Signer::new(kid, &kid_secret, &repo);
        let writer = WriterKey {
            kid,
            public_key: signer.public_key(),
            roles: role::ADMIN,
            from_config: 0,
            revoked_at: None,
            chain_end: None,
        };
        let text = std::fs::read_to_string(spec("vectors/vectors.txt")).unwrap();
        let values = text.lines().map(|line| {
            let (name, value) = line.rsplit_once(" = ").unwrap_or_else(|| panic!("no value: {line}"));
            (name.to_owned(), value.to_owned())
        });
        Fixture {
            repo,
            keys: KeyRing::new(repo, vec![epoch.clone()], 1).unwrap(),
            secrets: epoch,
            kid,
            kid_secret,
            signer,
            verifier: Verifier { writers: vec![writer] },
            session: SessionId([0x11; 16]),
            values: values.collect(),
        }
    }

    fn text(&self, name: &str) -> &str {
        self.values
            .get(name)
            .unwrap_or_else(|| panic!("vectors.txt has no {name:?}"))
    }
}

fn slots(bytes: &[u8]) -> Vec<Slot> {
    assert_eq!(bytes.len() % Slot::LEN, 0);
    bytes.chunks(Slot::LEN).filter_map(Slot::from_slice).collect()
}
