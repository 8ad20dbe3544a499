//! Rotating the secrets (format-spec chapter 3.6): what is written from now on is sealed with fresh ones, which those who had a key
//! before and have none any more do not get. What is there stays under its epoch, and readable with the grants of those who remain.

use super::OpError;
use super::grants::Change;
use crate::edge::host;
use crate::pure::crypto::{EpochSecrets, Secret};
use crate::repo::{Repo, RepoError};

/// Begins the next epoch, and returns its number. Grants come first and the configuration last: until then nobody uses the new secrets,
/// and running it again goes on with those that were drawn.
///
/// # Errors
/// When this key is not an admin's, somebody else changes the configuration at the same moment, or the store fails.
pub fn run(repo: &Repo) -> Result<u32, OpError> {
    let mut change = Change::begin(repo, "rotate the keys")?;
    let current = repo.config.epoch;
    let next = current
        .checked_add(1)
        .ok_or_else(|| RepoError::Internal("there is no further epoch".into()))?;
    let held = |epoch| change.epochs.iter().find(|held| held.epoch == epoch);
    let secrets = match (held(next), held(current)) {
        // Of a rotation that was interrupted: others may have been given these already.
        (Some(drawn), _) => drawn.clone(),
        (None, Some(current)) => successor(current, next),
        (None, None) => return Err(RepoError::Internal("this key does not hold the current epoch".into()).into()),
    };
    change.config.epoch = next;
    change.config.epoch_check = secrets.check(&repo.config.repo);
    change.epochs.retain(|held| held.epoch <= current);
    change.epochs.push(secrets);
    change.issue_all()?;
    if !change.publish()? {
        return Err(OpError::Refused {
            what: "somebody else has changed the configuration at the same moment, so the keys were not rotated".into(),
            hint: "run the command again".into(),
        });
    }
    Ok(next)
}

/// Fresh secrets, but for those that decide about ids and about where things are cut: with these, what is stored is recognised.
fn successor(current: &EpochSecrets, epoch: u32) -> EpochSecrets {
    let fresh = || Some(Secret::new(host::random()));
    EpochSecrets {
        id: current.id.clone(),
        cdc: current.cdc.clone(),
        split: current.split.clone(),
        idx: fresh(),
        meta: fresh(),
        data: fresh(),
        psk: fresh(),
        ..EpochSecrets::none(epoch)
    }
}
