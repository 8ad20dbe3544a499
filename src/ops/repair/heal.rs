//! What parity brings back (format-spec chapter 18): before anything is copied, listed again or declared lost, damaged and lost objects are
//! put back under their names, byte for byte as they were. What a sidecar cannot do is left to the rest of repair.

use crate::ops::{OpError, Progress};
use crate::pure::format::name::ObjectName;
use crate::repo::Repo;
use crate::repo::sidecars::{Beside, survey_part};

/// Returns those of the objects that their sidecars rebuild. Writes nothing.
///
/// # Errors
/// When the store fails.
pub(super) fn healable(
    repo: &Repo,
    names: impl IntoIterator<Item = ObjectName>,
    progress: &Progress,
) -> Result<Vec<ObjectName>, OpError> {
    let mut healable = Vec::new();
    for name in names {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        // Rebuilt again when it is put back: there may be many, and none is kept in memory.
        if repo.rebuild(&name)?.is_some() {
            healable.push(name);
        }
    }
    Ok(healable)
}

/// Returns the objects under a prefix that have a sidecar, also those that are lost.
///
/// # Errors
/// When the store cannot be listed.
pub(super) fn with_sidecar(repo: &Repo, under: &str) -> Result<Vec<ObjectName>, OpError> {
    let mut names = Vec::new();
    if !repo.store.is_local() {
        return Ok(names);
    }
    survey_part(&*repo.store, under, &mut |beside| {
        match beside {
            Beside::Object(name, _, Some(_)) | Beside::Alone(name) => names.push(name),
            Beside::Object(_, _, None) => {}
        }
        Ok(())
    })?;
    Ok(names)
}

/// Puts objects back that their sidecars rebuild; returns which.
///
/// # Errors
/// When the store fails. What was put back by then is whole, and everything else as it was.
pub(super) fn heal(
    repo: &Repo,
    names: impl IntoIterator<Item = ObjectName>,
    progress: &Progress,
) -> Result<Vec<ObjectName>, OpError> {
    let mut healed = Vec::new();
    for name in names {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        if let Some(body) = repo.rebuild(&name)? {
            progress.set_current(format!("putting back {name}"));
            repo.put_back(&name, body)?;
            healed.push(name);
        }
    }
    Ok(healed)
}
