//! What can be said of a stored object without any key (format-spec chapters 5, 7 and 10): whether it is whole, whether it is what
//! its name says, and by which hash it goes. Rot and torn writes show; somebody who forges an object on purpose does not.

use super::codec::malformed;
use super::config::Config;
use super::envelope::{Envelope, EnvelopeKind};
use super::name::ObjectName;
use super::pack::{self, PackFooter, PackHeader};
use super::protector::Protector;
use super::replica::ReplicaMark;
use super::{FormatError, Malformed};
use crate::pure::crypto::hash;
use crate::pure::id::RepoId;

/// The last bytes of an object, which hold its hash: [`stated_hash`].
pub const TAIL_BYTES: u64 = pack::FOOTER_LEN as u64;

/// Checks that an object is whole and belongs under this name in this repository.
///
/// # Errors
/// [`FormatError::TooNew`] if a newer version wrote it, which says nothing about its soundness; otherwise what is wrong with it.
pub fn check(name: &ObjectName, repo: &RepoId, bytes: &[u8]) -> Result<(), FormatError> {
    let kind = match name {
        ObjectName::Config(number) => {
            return match Config::decode(bytes, *number, None)?.repo == *repo {
                true => Ok(()),
                false => Ok(malformed("configuration of another repository")?),
            };
        }
        ObjectName::ReplicaMark(_) => {
            return match ReplicaMark::decode(bytes)?.repo == *repo {
                true => Ok(()),
                false => Ok(malformed("mark of a replica of another repository")?),
            };
        }
        ObjectName::Protector(kid, _) => return Protector::decode(bytes, kid).map(drop),
        ObjectName::Pack(..) => return check_pack(name, repo, bytes),
        ObjectName::Grant(..) => EnvelopeKind::Grant,
        ObjectName::Run(..) | ObjectName::RunPart(..) => EnvelopeKind::Run,
        ObjectName::Session(..) => EnvelopeKind::Session,
        ObjectName::Outcome(_) => EnvelopeKind::Outcome,
        ObjectName::Condemnation(_) => EnvelopeKind::Gc,
        ObjectName::Drop(_) => EnvelopeKind::Drop,
        ObjectName::Hold(..) => EnvelopeKind::Hold,
        ObjectName::Attest(..) => EnvelopeKind::Attest,
    };
    Envelope::parse(bytes, kind, repo).map(drop)
}

fn check_pack(name: &ObjectName, repo: &RepoId, bytes: &[u8]) -> Result<(), FormatError> {
    let Some(header) = bytes.get(..pack::HEADER_LEN) else {
        return Ok(malformed("pack length")?);
    };
    let header = PackHeader::decode(header)?;
    if ObjectName::Pack(header.kind, header.pack, header.session) != *name || header.repo != *repo {
        malformed("pack differs from its name")?;
    }
    let Some(footer) = bytes.last_chunk::<{ pack::FOOTER_LEN }>() else {
        return Ok(malformed("pack length")?);
    };
    let footer = PackFooter::decode(footer, bytes.len() as u64)?;
    if footer.pack != header.pack {
        malformed("pack id in the footer")?;
    }
    // The footer was compared with the length: the body ends where it begins.
    if hash(&bytes[..bytes.len() - pack::FOOTER_LEN]) != footer.body_hash {
        malformed("pack body hash")?;
    }
    Ok(())
}

/// Returns the hash that an object states of itself, from its last [`TAIL_BYTES`] bytes (fewer if it is shorter): two objects of one
/// name that are both whole are the same exactly if these are equal. Nothing is checked but that there is one.
///
/// # Errors
/// The bytes are not the end of such an object.
pub fn stated_hash(name: &ObjectName, tail: &[u8], object_bytes: u64) -> Result<[u8; 32], FormatError> {
    let missing = Malformed {
        what: "end of the object",
    };
    match name {
        ObjectName::Pack(..) => {
            let footer = tail.last_chunk::<{ pack::FOOTER_LEN }>().ok_or(missing)?;
            Ok(PackFooter::decode(footer, object_bytes)?.body_hash)
        }
        // These are framed by magic and hash alone.
        ObjectName::Config(_) | ObjectName::ReplicaMark(_) | ObjectName::Protector(..) => {
            Ok(*tail.last_chunk::<32>().ok_or(missing)?)
        }
        _ => {
            // The hash, and the magic behind it.
            let hash = tail.last_chunk::<40>().and_then(|footer| footer.first_chunk::<32>());
            Ok(*hash.ok_or(missing)?)
        }
    }
}

/// Says whether an outcome is a snapshot's: only these have a manifest, and with it a second section. `None` if the first bytes of
/// the object, 64 at least, are not those of an outcome.
pub fn outcome_has_manifest(head: &[u8]) -> Option<bool> {
    let count = head.get(48..52)?.try_into().ok().map(u32::from_le_bytes)?;
    (head.starts_with(b"LARDERO1") && head.get(8) == Some(&(EnvelopeKind::Outcome as u8))).then_some(count == 2)
}
