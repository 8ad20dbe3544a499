//! Key holders: a key of its own for each machine or person, with no more roles than it needs (format-spec chapters 3.3, 3.4 and 10).

use super::OpError;
use super::grants::{Change, newest_grant};
use crate::edge::host;
use crate::pure::crypto::kdf::Cost;
use crate::pure::crypto::sign::{WriterKey, role};
use crate::pure::crypto::{Secret, Signer};
use crate::pure::format::config::Config;
use crate::pure::format::grant::{self, KidRow};
use crate::pure::format::name::ObjectName;
use crate::pure::format::protector::Protector;
use crate::pure::id::KeyId;
use crate::repo::error::object_error;
use crate::repo::open::{Credential, create_new, make_protector, read_whole, store_key};
use crate::repo::{Repo, RepoError};

/// What somebody who gets a key is to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Back up, and read nothing back: for a machine that may fall into wrong hands.
    PutOnly,
    /// Back up, and restore: what a machine needs.
    Backup,
    /// Look, check and restore.
    Reader,
    /// Forget, hold, prune and check.
    Maintainer,
    /// Everything, keys included.
    Admin,
}

impl Duty {
    /// Returns the role bits (format-spec chapter 3.4).
    pub fn roles(self) -> u32 {
        match self {
            Duty::PutOnly => role::WRITE,
            Duty::Backup => role::WRITE | role::READ_META | role::READ_DATA,
            Duty::Reader => role::READ_META | role::READ_DATA,
            Duty::Maintainer => role::MAINTAIN | role::FORGET | role::HOLD | role::READ_META | role::READ_DATA,
            Duty::Admin => role::ADMIN,
        }
    }
}

/// Adds a key holder, and makes sure that what is stored opens with `credential`. Nothing counts until the configuration, which is
/// written last.
///
/// # Errors
/// When this key is not an admin's, the label is taken, somebody else changes the configuration at the same moment, or the store fails.
pub fn add(repo: &Repo, label: &str, duty: Duty, credential: &Credential) -> Result<KeyId, OpError> {
    let mut change = Change::begin(repo, "add keys")?;
    if label.is_empty() {
        return Err(OpError::Usage(
            "a key needs a label, for instance the name of its machine".into(),
        ));
    }
    // Adding one that was interrupted leaves a row of a key that the configuration does not have: that is nobody's label.
    // The label of a key that was revoked can be given again.
    let is_holder = |row: &&KidRow| {
        repo.verifier
            .writer(&row.kid)
            .is_some_and(|writer| writer.revoked_at.is_none())
    };
    if repo
        .grant
        .kid_table
        .iter()
        .filter(is_holder)
        .any(|row| row.label == label)
    {
        return Err(OpError::Usage(format!(
            "there is a key with the label {label:?} already; choose another one"
        )));
    }
    let kid = draw_kid(&repo.config);
    let secret = Secret::new(host::random());
    let signer = Signer::new(kid, &secret, &repo.config.repo);
    change.config.writers.push(WriterKey {
        kid,
        public_key: signer.public_key(),
        roles: duty.roles(),
        from_config: change.config.sequence,
        revoked_at: None,
        chain_end: None,
    });
    let row = KidRow {
        kid,
        grant_key: grant::grant_key(&secret, &repo.config.repo),
        label: label.to_owned(),
    };
    let protector = make_protector(
        &repo.config.repo,
        kid,
        &secret,
        credential,
        Cost::DEFAULT,
        Some(label.to_owned()),
    )?;
    let name = ObjectName::Protector(kid, 0);
    create_new(&*repo.store, &name, protector.encode(), "the new key")?;
    change.table.push(row.clone());
    let granted = change.issue(&row).and_then(|()| change.issue_to_admins());
    let granted = granted.and_then(|()| match duty {
        // Readers that were added before there were put-only writers do not hold what opens what those write.
        Duty::PutOnly => change.issue_all(),
        _ => Ok(()),
    });
    match granted.and_then(|()| change.publish()) {
        Ok(true) => {}
        // Without the configuration it opens nothing. Left there, it would only be tried at every unlock.
        Ok(false) => {
            let _ = repo.store.remove(&[store_key(&name)]);
            return Err(OpError::Refused {
                what: "somebody else has changed the configuration at the same moment, so no key was added".into(),
                hint: "run the command again".into(),
            });
        }
        // The configuration may have been written all the same, and then the key needs its protector.
        Err(error) => return Err(error),
    }
    confirm(repo, &name, credential, &secret)?;
    Ok(kid)
}

/// A key holder, as far as the key in use can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHolder {
    pub kid: KeyId,
    /// Admins know it.
    pub label: Option<String>,
    pub roles: u32,
    /// The newest epoch whose secrets its grant holds: it can use the repository if that is the current one.
    pub epoch: Option<u32>,
    /// The configuration that revoked it.
    pub revoked_at: Option<u64>,
    pub is_in_use: bool,
}

/// Lists the key holders. An admin looks into their grants, which costs a request or two for each.
///
/// # Errors
/// When the repository cannot be read.
pub fn list(repo: &Repo) -> Result<Vec<KnownHolder>, OpError> {
    repo.config.writers.iter().map(|writer| known(repo, writer)).collect()
}

fn known(repo: &Repo, writer: &WriterKey) -> Result<KnownHolder, OpError> {
    let row = repo.grant.kid_table.iter().find(|row| row.kid == writer.kid);
    let is_in_use = writer.kid == repo.kid;
    let grant = match row {
        _ if is_in_use => Some(repo.grant.clone()),
        Some(row) if writer.revoked_at.is_none() => newest_grant(repo, row, &repo.verifier)?.1,
        _ => None,
    };
    Ok(KnownHolder {
        kid: writer.kid,
        label: row
            .map(|row| row.label.clone())
            .or(grant.as_ref().and_then(|grant| grant.label.clone())),
        roles: writer.roles,
        epoch: grant.and_then(|grant| grant.epochs.last().map(|held| held.epoch)),
        revoked_at: writer.revoked_at,
        is_in_use,
    })
}

/// Finds a key holder by its label, or by the beginning of its id; without either it is the key in use.
///
/// # Errors
/// When there is none, or several.
pub fn find(repo: &Repo, text: Option<&str>) -> Result<KnownHolder, OpError> {
    let is_it = |writer: &&WriterKey| match text {
        None => writer.kid == repo.kid,
        Some(text) => {
            let of_row = |row: &KidRow| row.kid == writer.kid && row.label == text;
            let of_own = writer.kid == repo.kid && repo.grant.label.as_deref() == Some(text);
            let is_id = text.len() >= 8 && writer.kid.to_string().starts_with(text);
            is_id || of_own || repo.grant.kid_table.iter().any(of_row)
        }
    };
    let mut found: Vec<&WriterKey> = repo.config.writers.iter().filter(is_it).collect();
    // A label can be given again when its key has been revoked.
    if found.len() > 1 {
        found.retain(|writer| writer.revoked_at.is_none());
    }
    match found.as_slice() {
        [writer] => known(repo, writer),
        found => {
            let text = text.unwrap_or_default();
            let why = if found.is_empty() {
                "no key has"
            } else {
                "several keys have"
            };
            let mut hint = "`larder repo key list` shows all".to_owned();
            if repo.grant.kid_table.is_empty() {
                hint.push_str("; only an admin's key knows the labels of others");
            }
            Err(OpError::Refused {
                what: format!("{why} the label or id {text:?}"),
                hint,
            })
        }
    }
}

/// No two holders may have the same tag, which is how names show whose session it is.
fn draw_kid(config: &Config) -> KeyId {
    loop {
        let kid = KeyId(host::random());
        if config.writers.iter().all(|writer| writer.kid.0[..4] != kid.0[..4]) {
            return kid;
        }
    }
}

/// Reads the stored protector back and opens it.
fn confirm(repo: &Repo, name: &ObjectName, credential: &Credential, secret: &Secret) -> Result<(), OpError> {
    let ObjectName::Protector(kid, _) = name else {
        return Err(RepoError::Internal(format!("{name} is not the name of a key")).into());
    };
    let bytes = read_whole(&*repo.store, name, "the new key")?;
    let protector = Protector::decode(&bytes, kid).map_err(object_error("reading back", name))?;
    super::keys::confirm_opens(repo, &protector, credential, secret)
}
