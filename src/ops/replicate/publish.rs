//! The last step: the marks, and then the outcomes, which make the new snapshots visible.

use super::Outcomes;
use super::copy::Copier;
use super::pairs::Pair;
use crate::ops::OpError;
use crate::pure::base::Timestamp;
use crate::pure::format::name::ObjectName;
use crate::pure::id::SessionId;
use crate::repo::at_once::at_once;
use crate::repo::open::store_key;

/// Outcomes that are read ahead; each has some kilobytes, up to some megabytes.
const READ_AHEAD: usize = 32;

/// Copies condemnations, holds, drops and outcomes. `listed` are the outcomes for which everything has been copied, `there` those that
/// the replica had.
///
/// Holds before drops, so that what is dropped and held is shown. The drops of outcomes that are still to come before those: what was
/// forgotten, and may have been swept, is never seen. The other drops after the outcomes: `snapshot tag` replaces one by another.
pub(super) fn publish(copier: &Copier<'_>, listed: &Outcomes, there: &Outcomes) -> Result<(), OpError> {
    copier.copy_all(&["gc/"])?;
    copier.copy_all(&["hold/"])?;
    // Listed when all packs are copied: whatever was swept until now was dropped before.
    let missing = copier.missing("drop/")?;
    let is_there = |name: &ObjectName| matches!(name, ObjectName::Drop(id) if there.contains_key(id));
    let (late, early): (Vec<_>, Vec<_>) = missing.into_iter().partition(|(name, _)| is_there(name));
    copy_marks(copier, &early)?;
    copy_outcomes(copier, listed, there)?;
    copy_marks(copier, &late)
}

fn copy_marks(copier: &Copier<'_>, drops: &[(ObjectName, u64)]) -> Result<(), OpError> {
    drops.iter().try_for_each(|(name, size)| {
        copier.check_cancelled()?;
        copier.copy(name, *size)
    })
}

/// Copies the outcomes that the replica does not have in the order in which the source received them, one after the other: a chain that
/// is cut short is whole up to there.
fn copy_outcomes(copier: &Copier<'_>, listed: &Outcomes, there: &Outcomes) -> Result<(), OpError> {
    for (id, row) in listed {
        if let Some(other) = there.get(id) {
            let name = ObjectName::Outcome(*id);
            copier.pair(&name, &Pair::Both(store_key(&name), row.size, other.size))?;
        }
    }
    let mut missing: Vec<(Option<Timestamp>, SessionId, u64)> = listed
        .iter()
        .filter(|(id, _)| !there.contains_key(*id))
        .map(|(id, row)| (row.modified, *id, row.size))
        .collect();
    missing.sort_unstable();
    if copier.options.dry_run {
        return missing
            .iter()
            .try_for_each(|(_, id, size)| copier.copy(&ObjectName::Outcome(*id), *size));
    }
    for some in missing.chunks(READ_AHEAD) {
        let read = at_once(some, |(_, id, _)| copier.to_be_copied(&ObjectName::Outcome(*id)));
        for ((_, id, _), bytes) in some.iter().zip(read) {
            copier.check_cancelled()?;
            if let Some(bytes) = bytes? {
                copier.create(&ObjectName::Outcome(*id), bytes)?;
            }
        }
    }
    Ok(())
}
