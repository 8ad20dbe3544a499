//! Key holders: a key of its own for each machine or person, with no more roles than it needs (format-spec chapters 3.3, 3.4 and 10).

use super::OpError;
use crate::edge::host;
use crate::edge::store::Created;
use crate::pure::crypto::kdf::Cost;
use crate::pure::crypto::sign::{WriterKey, role};
use crate::pure::crypto::{EpochSecrets, Secret, Signer};
use crate::pure::format::FormatError;
use crate::pure::format::config::Config;
use crate::pure::format::grant::{self, Grant, KidRow};
use crate::pure::format::name::ObjectName;
use crate::pure::format::protector::Protector;
use crate::pure::id::KeyId;
use crate::repo::error::{object_error, store_error};
use crate::repo::open::{Credential, create_new, list_names, make_protector, read_whole, store_key};
use crate::repo::{Repo, RepoError};
use bytes::Bytes;

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
    repo.require(role::ADMIN, "add keys")?;
    if !repo.config.writable() {
        return Err(object_error("changing", "the configuration")(FormatError::TooNew {
            what: "a feature that allows reading only".into(),
        })
        .into());
    }
    if label.is_empty() {
        return Err(OpError::Usage(
            "a key needs a label, for instance the name of its machine".into(),
        ));
    }
    // Adding one that was interrupted leaves a row of a key that the configuration does not have: that is nobody's label.
    let is_holder = |row: &&KidRow| repo.verifier.writer(&row.kid).is_some();
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
    let config = with_holder(
        repo,
        WriterKey {
            kid,
            public_key: signer.public_key(),
            roles: duty.roles(),
            from_config: repo.config.sequence + 1,
            revoked_at: None,
            chain_end: None,
        },
    )?;
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
    let published = write_grants(repo, &row, duty, &signer).and_then(|()| publish(repo, &config));
    match published {
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
        Some(row) if writer.revoked_at.is_none() => newest_grant(repo, row)?.1,
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

/// Writes the next configuration. False if somebody else has written one.
fn publish(repo: &Repo, config: &Config) -> Result<bool, OpError> {
    let name = store_key(&ObjectName::Config(config.sequence));
    let created = repo
        .store
        .create(&name, Bytes::from(config.encode(&repo.signer)))
        .map_err(store_error("writing the configuration"))?;
    Ok(created == Created::New)
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

fn with_holder(repo: &Repo, holder: WriterKey) -> Result<Config, OpError> {
    let name = ObjectName::Config(repo.config.sequence);
    let current = read_whole(&*repo.store, &name, "the configuration")?;
    let mut config = repo.config.clone();
    config.sequence += 1;
    config.previous = Some(Repo::object_hash(&current));
    config.created = host::now();
    config.writers.push(holder);
    Ok(config)
}

/// Writes the grant of the new holder, and those of all admins anew: they list all holders.
fn write_grants(repo: &Repo, new: &KidRow, duty: Duty, signer: &Signer) -> Result<(), OpError> {
    let is_admin = duty == Duty::Admin;
    let mut admin_keys = repo.grant.admin_keys.clone();
    if is_admin {
        admin_keys.push(signer.public_key());
    }
    let of = |row: &KidRow, roles: u32, epochs: Vec<EpochSecrets>, table: Vec<KidRow>| Grant {
        issuer: repo.kid,
        created: host::now(),
        roles,
        repo: repo.config.repo,
        config_sequence: repo.config.sequence,
        admin_keys: admin_keys.clone(),
        epochs,
        label: Some(row.label.clone()),
        kid_table: table,
    };
    let seal = |row: &KidRow, number: u64, grant: &Grant| {
        Bytes::from(grant.encode(&row.kid, number, &row.grant_key, &repo.signer, host::random()))
    };
    let create = |row: &KidRow, number: u64, body: Bytes| {
        repo.store
            .create(&store_key(&ObjectName::Grant(row.kid, number)), body)
            .map_err(store_error("writing a grant"))
    };
    let epochs = secrets_for(repo, duty.roles());
    let mut table = repo.grant.kid_table.clone();
    table.push(new.clone());
    let grant = of(new, duty.roles(), epochs, if is_admin { table } else { Vec::new() });
    if create(new, 0, seal(new, 0, &grant))? != Created::New {
        return Err(RepoError::Internal(format!("the new key {} has a grant already", new.kid)).into());
    }
    for row in admins(repo) {
        // Somebody else may add a holder at the same moment: nobody's row may be lost, so each grant goes on from the one before it.
        let mut written = false;
        while !written {
            let (number, newest) = newest_grant(repo, row)?;
            let mut table = newest.map_or_else(|| repo.grant.kid_table.clone(), |newest| newest.kid_table);
            table.push(new.clone());
            let roles = repo
                .verifier
                .writer(&row.kid)
                .map_or(role::ADMIN, |writer| writer.roles);
            let grant = of(row, roles, repo.grant.epochs.clone(), table);
            written = create(row, number, seal(row, number, &grant))? == Created::New;
        }
    }
    if duty == Duty::PutOnly {
        for row in &repo.grant.kid_table {
            complete_grant(repo, row)?;
        }
    }
    Ok(())
}

/// The part of all epochs that goes with some roles.
fn secrets_for(repo: &Repo, roles: u32) -> Vec<EpochSecrets> {
    let epochs = repo.grant.epochs.iter();
    epochs.map(|epoch| epoch.for_roles(&repo.config.repo, roles)).collect()
}

/// Readers that were added before there were put-only writers do not hold what opens what those write.
fn complete_grant(repo: &Repo, row: &KidRow) -> Result<(), OpError> {
    loop {
        let (number, newest) = newest_grant(repo, row)?;
        let lacks = |held: &EpochSecrets| held.meta.is_some() && held.psk.is_none();
        let Some(newest) = newest.filter(|newest| newest.epochs.iter().any(lacks)) else {
            return Ok(());
        };
        let grant = Grant {
            issuer: repo.kid,
            created: host::now(),
            config_sequence: repo.config.sequence,
            admin_keys: repo.grant.admin_keys.clone(),
            epochs: secrets_for(repo, newest.roles),
            ..newest
        };
        let body = grant.encode(&row.kid, number, &row.grant_key, &repo.signer, host::random());
        let name = store_key(&ObjectName::Grant(row.kid, number));
        let created = repo
            .store
            .create(&name, Bytes::from(body))
            .map_err(store_error("writing a grant"))?;
        if created == Created::New {
            return Ok(());
        }
    }
}

/// The admins that the configuration has, as the grant of this one lists them.
fn admins(repo: &Repo) -> impl Iterator<Item = &KidRow> {
    repo.grant.kid_table.iter().filter(|row| {
        let writer = repo.verifier.writer(&row.kid);
        writer.is_some_and(|writer| writer.roles & role::ADMIN != 0 && writer.revoked_at.is_none())
    })
}

/// Returns the next number for a grant of a holder, and the newest one that opens.
fn newest_grant(repo: &Repo, row: &KidRow) -> Result<(u64, Option<Grant>), OpError> {
    let mut numbers: Vec<u64> = list_names(&*repo.store, &format!("grants/{}/", row.kid))?
        .into_iter()
        .filter_map(|(name, _)| match name {
            ObjectName::Grant(_, number) => Some(number),
            _ => None,
        })
        .collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let next = numbers.first().map_or(0, |last| last.saturating_add(1));
    for number in numbers {
        let bytes = read_whole(&*repo.store, &ObjectName::Grant(row.kid, number), "a grant")?;
        if let Ok(grant) = Grant::decode(
            &bytes,
            &row.kid,
            number,
            &row.grant_key,
            &repo.config.repo,
            &repo.verifier,
        ) {
            return Ok((next, Some(grant)));
        }
    }
    Ok((next, None))
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
