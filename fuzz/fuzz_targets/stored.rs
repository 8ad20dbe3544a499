//! Parsers of stored objects before any key is involved: packs, envelopes, configurations, protectors.
#![no_main]

use larder::pure::format::envelope::{Envelope, EnvelopeHead, EnvelopeKind};
use larder::pure::format::{config::Config, pack, protector::Protector};
use larder::pure::id::{KeyId, RepoId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    // That of the vectors, so that their objects get as far as they can.
    let repo = RepoId(std::array::from_fn(|n| 0x10 + n as u8));
    match kind % 5 {
        0 => drop(pack::check_whole(bytes)),
        1 => drop(Envelope::parse(bytes, EnvelopeKind::Outcome, &repo)),
        2 => drop(EnvelopeHead::parse(bytes, EnvelopeKind::Run, &repo)),
        3 => drop(Config::decode(bytes, 0, None)),
        _ => drop(Protector::decode(bytes, &KeyId([0x11; 16]))),
    }
});
