//! Objects without a parity sidecar, as a note: nothing is wrong with them. Whether a sidecar is sound is looked at by
//! `larder repo parity --verify`; its size is seen here.

use super::report::Report;
use crate::ops::OpError;
use crate::pure::format::name::ObjectName;
use crate::pure::format::parity::sidecar_bytes;
use crate::repo::Repo;
use crate::repo::error::store_error;
use crate::repo::open::prefix;
use crate::repo::sidecars::{Beside, survey};
use crate::repo::standing::Standing;

pub(super) fn check_parity(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    // A replica is mended from its primary.
    if !repo.store.is_local() || matches!(repo.standing, Standing::Replica(_)) {
        return Ok(());
    }
    let Some(shape) = repo.config.parity else {
        return note_what_is_left(repo, report);
    };
    let (mut lacking, mut alone) = (0u64, 0u64);
    survey(&*repo.store, &mut |beside| {
        match beside {
            Beside::Object(_, size, Some(sidecar)) if sidecar == sidecar_bytes(shape, size) => {}
            Beside::Object(..) => lacking += 1,
            // Outcomes are never deleted.
            Beside::Alone(name @ ObjectName::Outcome(_)) => report.damage(
                name,
                "is gone, and its parity is there: `larder repo repair snapshots` puts it back",
            ),
            Beside::Alone(_) => alone += 1,
        }
        Ok(())
    })?;
    report.without_parity = Some(lacking);
    if lacking > 0 {
        report.notes.push(format!(
            "{lacking} objects have no parity sidecar, or one of the wrong size: `larder repo parity` writes it"
        ));
    }
    if alone > 0 {
        report.notes.push(format!(
            "{alone} parity sidecars are of objects that are not there; `larder repo repair` puts back what is needed"
        ));
    }
    Ok(())
}

fn note_what_is_left(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    let mut left = 0u64;
    repo.store
        .list(&prefix("par/"), &mut |_| left += 1)
        .map_err(store_error("listing the parity sidecars"))?;
    if left > 0 {
        report.notes.push(format!(
            "parity is off, and {left} sidecars are there: `larder repo parity --remove` deletes them"
        ));
    }
    Ok(())
}
