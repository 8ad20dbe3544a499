//! Issuing grants (format-spec chapter 10.3): what every key holder may do, and the secrets for it. An admin holds every holder's grant
//! key, so all can be issued anew without anybody's password.

use super::OpError;
use crate::edge::host;
use crate::edge::store::Created;
use crate::pure::crypto::sign::{WriterKey, role};
use crate::pure::crypto::{EpochSecrets, Verifier};
use crate::pure::format::FormatError;
use crate::pure::format::config::Config;
use crate::pure::format::grant::{Grant, KidRow};
use crate::pure::format::name::ObjectName;
use crate::repo::error::{object_error, store_error};
use crate::repo::open::{list_names, read_whole, store_key};
use crate::repo::{Repo, RepoError};
use bytes::Bytes;

/// A change of the configuration, and the grants that go with it. Grants come first and the configuration last: whoever opens the
/// repository in between finds what there was, because a grant is used only if it fits the configuration.
pub(super) struct Change<'r> {
    repo: &'r Repo,
    /// The next configuration.
    pub config: Config,
    /// All secrets of all epochs.
    pub epochs: Vec<EpochSecrets>,
    /// Every holder there is or was, as an admin's grant lists them.
    pub table: Vec<KidRow>,
    /// Grants still name the admins whom this change revokes: until it counts, one of them may have signed what does.
    pub names_former_admins: bool,
}

impl<'r> Change<'r> {
    /// Begins with what there is, and the next number.
    ///
    /// # Errors
    /// When this key is not an admin's, or the repository may only be read.
    pub fn begin(repo: &'r Repo, what: &'static str) -> Result<Change<'r>, OpError> {
        repo.require(role::ADMIN, what)?;
        if !repo.config.writable() {
            return Err(object_error("changing", "the configuration")(FormatError::TooNew {
                what: "a feature that allows reading only".into(),
            })
            .into());
        }
        let name = ObjectName::Config(repo.config.sequence);
        let current = read_whole(&*repo.store, &name, "the configuration")?;
        let mut config = repo.config.clone();
        config.sequence += 1;
        config.previous = Some(Repo::object_hash(&current));
        config.created = host::now();
        Ok(Change {
            repo,
            config,
            epochs: repo.grant.epochs.clone(),
            table: repo.grant.kid_table.clone(),
            names_former_admins: false,
        })
    }

    /// What the next configuration says of a holder, unless it is revoked.
    fn holder(&self, row: &KidRow) -> Option<&WriterKey> {
        let mut writers = self.config.writers.iter();
        writers.find(|writer| writer.kid == row.kid && writer.revoked_at.is_none())
    }

    fn admin_keys(&self) -> Vec<[u8; 32]> {
        let former = self.repo.config.writers.iter().filter(|_| self.names_former_admins);
        let mut keys: Vec<[u8; 32]> = self
            .config
            .writers
            .iter()
            .chain(former)
            .filter(|writer| writer.roles & role::ADMIN != 0 && writer.revoked_at.is_none())
            .map(|writer| writer.public_key)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Issues the grants of all holders that have not what they should have: this key's first, then those of the other admins, then the
    /// others. What one interrupted run has issued, the next one finds.
    ///
    /// # Errors
    /// When there is a holder that this key does not know, or the store fails.
    pub fn issue_all(&self) -> Result<(), OpError> {
        self.require_all_known()?;
        let rank = |row: &&KidRow| {
            let is_admin = self.holder(row).is_some_and(|holder| holder.roles & role::ADMIN != 0);
            (row.kid != self.repo.kid, !is_admin)
        };
        let mut rows: Vec<&KidRow> = self.table.iter().filter(|row| self.holder(row).is_some()).collect();
        rows.sort_by_key(rank);
        rows.into_iter().try_for_each(|row| self.issue(row))
    }

    /// Issues the grants of all admins, which list all holders.
    ///
    /// # Errors
    /// As [`Self::issue_all`].
    pub fn issue_to_admins(&self) -> Result<(), OpError> {
        let is_admin = |row: &&KidRow| self.holder(row).is_some_and(|holder| holder.roles & role::ADMIN != 0);
        self.table.iter().filter(is_admin).try_for_each(|row| self.issue(row))
    }

    /// A holder that was added since this key's grant was issued would be left without what it needs.
    fn require_all_known(&self) -> Result<(), OpError> {
        let is_known = |writer: &&WriterKey| self.table.iter().any(|row| row.kid == writer.kid);
        let unrevoked = self.config.writers.iter().filter(|writer| writer.revoked_at.is_none());
        match unrevoked.clone().find(|writer| !is_known(writer)) {
            None => Ok(()),
            Some(writer) => Err(OpError::Refused {
                what: format!("key {} is in the configuration and not in this key's grant", writer.kid),
                hint: "a newer grant of this key is missing: use another admin's key, and run `larder repo check`"
                    .into(),
            }),
        }
    }

    /// Issues the grant of a holder, unless its newest one says just that.
    ///
    /// # Errors
    /// When the store fails.
    pub fn issue(&self, row: &KidRow) -> Result<(), OpError> {
        let repo = self.repo;
        let holder = self
            .holder(row)
            .ok_or_else(|| RepoError::Internal(format!("key {} is to get a grant and is no holder", row.kid)))?;
        let of_repo = &repo.config.repo;
        // Somebody else may change something at the same moment: nobody's row may be lost, so each goes on from the one before.
        loop {
            let (number, newest) = newest_grant(repo, row, &self.config.verifier())?;
            let mut grant = Grant {
                issuer: repo.kid,
                created: host::now(),
                roles: holder.roles,
                repo: *of_repo,
                config_sequence: repo.config.sequence,
                admin_keys: self.admin_keys(),
                epochs: self
                    .epochs
                    .iter()
                    .map(|all| all.for_roles(of_repo, holder.roles))
                    .collect(),
                label: Some(row.label.clone()),
                kid_table: Vec::new(),
            };
            if holder.roles & role::ADMIN != 0 {
                grant.kid_table = self.table.clone();
                let before = newest.as_ref().map_or(&[][..], |newest| &newest.kid_table);
                let others = before
                    .iter()
                    .filter(|row| self.table.iter().all(|known| known.kid != row.kid));
                grant.kid_table.extend(others.cloned());
            }
            if newest.is_some_and(|newest| says_the_same(&newest, &grant)) {
                return Ok(());
            }
            let body = grant.encode(&row.kid, number, &row.grant_key, &repo.signer, host::random());
            let name = store_key(&ObjectName::Grant(row.kid, number));
            let created = repo.store.create(&name, Bytes::from(body));
            if created.map_err(store_error("writing a grant"))? == Created::New {
                return Ok(());
            }
        }
    }

    /// Writes the configuration: from here on it counts. False if somebody else has written one.
    ///
    /// # Errors
    /// When the store fails.
    pub fn publish(&self) -> Result<bool, OpError> {
        let name = store_key(&ObjectName::Config(self.config.sequence));
        let created = self
            .repo
            .store
            .create(&name, Bytes::from(self.config.encode(&self.repo.signer)))
            .map_err(store_error("writing the configuration"))?;
        Ok(created == Created::New)
    }
}

/// Whether a holder gains nothing by another grant.
fn says_the_same(held: &Grant, wanted: &Grant) -> bool {
    let same_admins = held.admin_keys.len() == wanted.admin_keys.len()
        && wanted.admin_keys.iter().all(|key| held.admin_keys.contains(key));
    let has_rows = wanted.kid_table.iter().all(|row| held.kid_table.contains(row));
    same_admins && has_rows && held.roles == wanted.roles && held.epochs == wanted.epochs
}

/// Returns the next number for a grant of a holder, and the newest one that opens and that `verifier` accepts.
///
/// # Errors
/// When the store fails.
pub(super) fn newest_grant(repo: &Repo, row: &KidRow, verifier: &Verifier) -> Result<(u64, Option<Grant>), OpError> {
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
        let decoded = Grant::decode(&bytes, &row.kid, number, &row.grant_key, &repo.config.repo, verifier);
        if let Ok(grant) = decoded {
            return Ok((next, Some(grant)));
        }
    }
    Ok((next, None))
}
