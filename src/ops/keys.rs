//! Passwords and key files of a key (format-spec chapter on keys): several may open it, and none can be lost by a mistake here.

use super::OpError;
use crate::edge::store::Created;
use crate::pure::base::Timestamp;
use crate::pure::crypto::Secret;
use crate::pure::crypto::kdf::Cost;
use crate::pure::format::name::ObjectName;
use crate::pure::format::protector::{Protector, ProtectorKind};
use crate::repo::error::{object_error, store_error};
use crate::repo::open::{Credential, list_names, make_protector, read_whole, store_key};
use crate::repo::{Repo, RepoError};
use bytes::Bytes;

/// How often a number that was taken meanwhile is replaced by the next.
const NUMBERS_TRIED_MAX: usize = 16;

/// One way to open the key that the repository was opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownProtector {
    pub number: u32,
    pub created: Option<Timestamp>,
    /// "password", "key file", or what else it is.
    pub kind: String,
    pub hint: Option<String>,
    pub is_in_use: bool,
    /// Why it cannot be used, if so.
    pub problem: Option<String>,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub protector: KnownProtector,
    /// Until then it is locked in the store: nobody finds it by its name, and whoever may read old versions still can.
    pub hidden_until: Option<Timestamp>,
}

fn kind_of(kind: &ProtectorKind) -> String {
    match kind {
        ProtectorKind::Passphrase { cost, .. } => {
            format!(
                "password (Argon2id, {} MiB, {} passes)",
                cost.memory_kib >> 10,
                cost.passes
            )
        }
        ProtectorKind::KeyFile => "key file".into(),
        ProtectorKind::Command => "key command".into(),
        ProtectorKind::Other { kind } => format!("kind {kind}, not known to this version"),
    }
}

/// Lists what opens this key, by number.
///
/// # Errors
/// When the repository cannot be read.
pub fn list(repo: &Repo) -> Result<Vec<KnownProtector>, OpError> {
    let mut known = Vec::new();
    for (name, _) in list_names(&*repo.store, &format!("keys/{}/", repo.kid))? {
        let ObjectName::Protector(kid, number) = &name else {
            continue;
        };
        let is_in_use = name == repo.protector;
        let bytes = read_whole(&*repo.store, &name, "a key")?;
        known.push(match Protector::decode(&bytes, kid) {
            Ok(protector) => KnownProtector {
                number: *number,
                created: Some(protector.created),
                kind: kind_of(&protector.kind),
                hint: protector.hint,
                is_in_use,
                problem: None,
            },
            Err(error) => KnownProtector {
                number: *number,
                created: None,
                kind: "unreadable".into(),
                hint: None,
                is_in_use,
                problem: Some(super::check::chain(&error)),
            },
        });
    }
    known.sort_by_key(|protector| protector.number);
    Ok(known)
}

/// Adds a password or key file for this key, and makes sure that what is stored opens with it.
///
/// # Errors
/// When it cannot be written, or does not open afterwards.
pub fn add(repo: &Repo, credential: &Credential, hint: Option<String>) -> Result<u32, OpError> {
    repo.require_primary()?;
    let protector = make_protector(
        &repo.config.repo,
        repo.kid,
        &repo.kid_secret,
        credential,
        Cost::DEFAULT,
        hint,
    )?;
    let body = protector.encode();
    let taken = list_names(&*repo.store, &format!("keys/{}/", repo.kid))?;
    let last = taken.iter().filter_map(|(name, _)| match name {
        ObjectName::Protector(_, number) => Some(*number),
        _ => None,
    });
    let mut number = last.max().map_or(0, |last| last.saturating_add(1));
    for _ in 0..NUMBERS_TRIED_MAX {
        let name = ObjectName::Protector(repo.kid, number);
        let created = repo
            .store
            .create(&store_key(&name), Bytes::from(body.clone()))
            .map_err(store_error("writing the new key"))?;
        if created == Created::New {
            confirm(repo, &name, credential)?;
            return Ok(number);
        }
        number = number.saturating_add(1);
    }
    Err(RepoError::Internal("every number for a new key was taken meanwhile".into()).into())
}

/// Reads the stored protector back and opens it.
fn confirm(repo: &Repo, name: &ObjectName, credential: &Credential) -> Result<(), OpError> {
    let bytes = read_whole(&*repo.store, name, "the new key")?;
    let protector = Protector::decode(&bytes, &repo.kid).map_err(object_error("reading back", name))?;
    confirm_opens(repo, &protector, credential, &repo.kid_secret)
}

/// Makes sure that a protector opens with `credential` to the key holder's `secret`.
pub(super) fn confirm_opens(
    repo: &Repo,
    protector: &Protector,
    credential: &Credential,
    secret: &Secret,
) -> Result<(), OpError> {
    let ikm = match credential.ikm(&protector.kind) {
        Some(ikm) => ikm.map_err(|error| RepoError::Internal(error.to_string()))?,
        None => return Err(RepoError::Internal("the new key was stored as another kind".into()).into()),
    };
    if protector.unwrap(&repo.config.repo, &ikm).ok().as_ref() != Some(secret) {
        return Err(
            RepoError::Internal("the new key does not open what it should; it must not be relied on".into()).into(),
        );
    }
    Ok(())
}

/// Removes a password or key file of this key. The last readable one always stays; the one in use only goes if `force`.
///
/// # Errors
/// When that would be refused, when there is none of this number, or when it cannot be deleted.
pub fn remove(repo: &Repo, number: u32, force: bool) -> Result<Removed, OpError> {
    let known = list(repo)?;
    let Some(chosen) = known.iter().find(|protector| protector.number == number).cloned() else {
        return Err(OpError::Usage(format!(
            "there is no password or key file with number {number}; see `larder repo key list`"
        )));
    };
    // Kinds that this version cannot open do not count: whether they can be opened is not known here.
    let openable = |protector: &&KnownProtector| protector.problem.is_none() && !protector.kind.starts_with("kind ");
    let others = known
        .iter()
        .filter(|protector| protector.number != number)
        .filter(openable)
        .count();
    if others == 0 {
        return Err(OpError::Refused {
            what: "this is the last password or key file of this key; without it, nobody could open the repository"
                .into(),
            hint: "add another one first: `larder repo key add`".into(),
        });
    }
    if chosen.is_in_use && !force {
        return Err(OpError::Refused {
            what: "this is the password or key file that is in use".into(),
            hint: "open the repository with another one, which shows that it works, and remove this one then; or use --force".into(),
        });
    }
    let name = ObjectName::Protector(repo.kid, number);
    let hidden_until = repo.erase_or_hide(&[store_key(&name)], "removing the key")?;
    repo.index.forget(&name.to_string())?;
    Ok(Removed {
        protector: chosen,
        hidden_until,
    })
}
