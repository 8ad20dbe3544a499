//! Taking a key back (format-spec chapter 10.1.3): what it has published up to now counts, and nothing that it publishes later.
//!
//! It does not make anybody forget secrets: rotating keeps what is written from then on from whoever has the key
//! (`super::rotate`).

use super::OpError;
use super::grants::Change;
use crate::pure::crypto::sign::role;
use crate::pure::id::{KeyId, ObjectHash, SessionId};
use crate::repo::Repo;

/// What revoking a key did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// It had been revoked before: what was left to do was done.
    pub was_revoked: bool,
    /// Outcomes of the key that count.
    pub outcomes: u64,
    /// Its sessions that had not ended, and were ended.
    pub ended: Vec<SessionId>,
    /// Snapshots that it has published at the same moment, or later, and that do not count.
    pub refused: Vec<SessionId>,
}

/// Revokes a key. Running it again after an interruption completes it.
///
/// # Errors
/// When this key is not an admin's, or is the one to be revoked; when the history has gaps, unless `despite_gaps`, because the last snapshot
/// of the key might be what is missing; or when the store fails.
pub fn run(repo: &Repo, kid: &KeyId, despite_gaps: bool) -> Result<Report, OpError> {
    repo.require(role::ADMIN, "revoke keys")?;
    if *kid == repo.kid {
        return Err(OpError::Refused {
            what: "this is the key in use".into(),
            hint: "revoke it with another admin's key; without an admin nobody could add or revoke keys".into(),
        });
    }
    let mut report = Report::default();
    let mut change = Change::begin(repo, "revoke keys")?;
    let number = change.config.sequence;
    let mut history = repo.sync_history()?;
    if !despite_gaps && let Err(error) = history.require_sound() {
        return Err(error.into());
    }
    let (end, outcomes) = chain_end(repo, kid)?;
    report.outcomes = outcomes;
    let writer = change.config.writers.iter_mut().find(|writer| writer.kid == *kid);
    let writer = writer.ok_or_else(|| OpError::Usage(format!("there is no key {kid}")))?;
    let is_admin = writer.roles & role::ADMIN != 0;
    report.was_revoked = writer.revoked_at.is_some();
    if !report.was_revoked {
        writer.revoked_at = Some(number);
        writer.chain_end = end;
        if is_admin {
            // What it has issued would not be accepted any more.
            change.names_former_admins = true;
            change.issue_all()?;
            change.names_former_admins = false;
        }
        if !change.publish()? {
            return Err(OpError::Refused {
                what: "somebody else has changed the configuration at the same moment, so no key was revoked".into(),
                hint: "run the command again".into(),
            });
        }
    }
    if is_admin {
        // From here on nobody trusts a configuration that it signs.
        change.issue_all()?;
    }
    for session in repo.unended_sessions_of(kid)? {
        if repo.end_revoked(&session)? {
            report.ended.push(session);
        }
    }
    report.refused = published_later(repo, kid, &change)?;
    Ok(report)
}

/// The last outcome of a key that counts, and how many there are. Where several have the last number, all of them are to count, so
/// the end is put at the number after it, at an outcome that does not exist.
fn chain_end(repo: &Repo, kid: &KeyId) -> Result<(Option<(u64, ObjectHash)>, u64), OpError> {
    let own: Vec<(u64, ObjectHash)> = repo
        .index
        .outcomes()?
        .into_iter()
        .filter(|known| known.kid == *kid)
        .map(|known| (known.sequence, known.hash))
        .collect();
    let last = own.iter().map(|(sequence, _)| *sequence).max();
    let mut at_last = own.iter().filter(|(sequence, _)| Some(*sequence) == last);
    let end = match (at_last.next(), at_last.next()) {
        (Some((sequence, _)), Some(_)) => Some((sequence.saturating_add(1), ObjectHash([0; 32]))),
        (only, _) => only.copied(),
    };
    Ok((end, own.len() as u64))
}

/// What has come since the history was listed.
fn published_later(repo: &Repo, kid: &KeyId, change: &Change<'_>) -> Result<Vec<SessionId>, OpError> {
    let verifier = change.config.verifier();
    repo.sync_history()?;
    let later = repo
        .index
        .outcomes()?
        .into_iter()
        .filter(|known| known.kid == *kid && verifier.check_in_time(kid, known.sequence, &known.hash).is_err());
    Ok(later.map(|known| known.session).collect())
}
