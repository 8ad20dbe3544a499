//! Packs: whether each is there, which of them to read, and what the ledger says about those that were not read.
//!
//! There may be millions: they are streamed, and what is kept of each is a few words.

use super::lost::Lost;
use super::options::{Options, Subset};
use super::report::Report;
use super::side_by_side::{FETCHES, side_by_side};
use crate::edge::host;
use crate::edge::store::{Failure, Stat, StoreError};
use crate::ops::OpError;
use crate::pure::base::Timestamp;
use crate::pure::format::name::{ObjectName, PackKind};
use crate::pure::id::PackId;
use crate::repo::Repo;
use crate::repo::error::store_error;
use crate::repo::index::{PackInfo, PackState, Verified};
use crate::repo::open::{prefix, store_key};
use crate::repo::reader::pack_name;
use std::collections::HashSet;

/// Packs whose presence is asked for at a time.
const ASKED_AT_ONCE: usize = 1024;

/// Whether snapshots may rely on a pack: valid runs describe it, and it is not condemned. What an interrupted or running
/// backup has uploaded is nobody's yet, and a pack that is gone may rightly be absent. One that a backup missed may be back.
pub(super) fn counts(pack: &PackInfo) -> bool {
    matches!(pack.state, PackState::Live | PackState::Absent)
}

/// The packs that the store lists, with their sizes, by id.
#[derive(Default)]
struct ListedPacks {
    data: Vec<(PackId, u64)>,
    meta: Vec<(PackId, u64)>,
}

impl ListedPacks {
    /// Lists them; names of another form go to the report.
    fn list(repo: &Repo, report: &mut Report) -> Result<ListedPacks, OpError> {
        let mut packs = ListedPacks::default();
        for under in ["data/", "meta/"] {
            repo.store
                .list(
                    &prefix(under),
                    &mut |listed| match ObjectName::parse(listed.key.as_str()) {
                        Some(ObjectName::Pack(PackKind::Data, pack, _)) => packs.data.push((pack, listed.size)),
                        Some(ObjectName::Pack(PackKind::Meta, pack, _)) => packs.meta.push((pack, listed.size)),
                        Some(_) => {}
                        None => report.unknown_name(listed.key),
                    },
                )
                .map_err(store_error(format!("listing {under} of the repository")))?;
        }
        // Names begin with the id, so normally this only looks.
        packs.data.sort_unstable();
        packs.meta.sort_unstable();
        Ok(packs)
    }

    fn len(&self) -> usize {
        self.data.len() + self.meta.len()
    }

    fn size(&self, kind: PackKind, pack: &PackId) -> Option<u64> {
        let packs = match kind {
            PackKind::Data => &self.data,
            PackKind::Meta => &self.meta,
        };
        let place = packs.binary_search_by_key(pack, |(id, _)| *id).ok()?;
        Some(packs[place].1)
    }
}

/// Every pack that counts is in the listing with its size. Those that are not are lost.
pub(super) fn check_packs_exist(repo: &Repo, lost: &mut Lost, report: &mut Report) -> Result<(), OpError> {
    let listed = ListedPacks::list(repo, report)?;
    let mut known = 0;
    let mut not_listed_yet = 0u64;
    let mut unlisted = Vec::new();
    let mut failed = None;
    repo.index.packs(&mut |pack| {
        let size = listed.size(pack.kind, &pack.pack);
        if size.is_some() && pack.state != PackState::Gone {
            known += 1;
        }
        if pack.state == PackState::Condemned && size.is_none() {
            lost.add_deleted(pack.pack);
        }
        if pack.state == PackState::Mine && size.is_some() {
            not_listed_yet += 1;
        }
        if failed.is_some() || !counts(&pack) {
            return;
        }
        report.packs += 1;
        match size {
            Some(size) => failed = compare_size(repo, &pack, size, lost, report).err(),
            None => unlisted.push(pack),
        }
        if failed.is_none() && unlisted.len() == ASKED_AT_ONCE {
            failed = ask_for(repo, &std::mem::take(&mut unlisted), lost, report).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    ask_for(repo, &unlisted, lost, report)?;
    report.unreferenced_packs = (listed.len() as u64).saturating_sub(known);
    if not_listed_yet > 0 {
        report.notes.push(format!(
            "{not_listed_yet} packs are from a backup that runs or was interrupted; the next one uses them"
        ));
    }
    Ok(())
}

fn compare_size(repo: &Repo, pack: &PackInfo, size: u64, lost: &mut Lost, report: &mut Report) -> Result<(), OpError> {
    if size != u64::from(pack.size) {
        return is_lost(
            repo,
            pack,
            format!("it has {size} bytes instead of {}", pack.size),
            lost,
            report,
        );
    }
    // One that was damaged when it was read last is there, and still not to be referred to.
    if pack.state == PackState::Absent && pack.verified.is_none_or(|ledger| ledger.sound) {
        repo.index.mark_there(&pack.pack)?;
    }
    Ok(())
}

/// The next backup on this machine stores again what of the pack is still at hand.
fn is_lost(repo: &Repo, pack: &PackInfo, why: String, lost: &mut Lost, report: &mut Report) -> Result<(), OpError> {
    report.damage(pack_name(pack.kind, pack.pack, pack.session), why);
    lost.add_pack(pack.pack);
    repo.index.mark_absent(&pack.pack)?;
    Ok(())
}

/// A listing may lag: absence is believed only when asking for the object says so too.
fn ask_for(repo: &Repo, packs: &[PackInfo], lost: &mut Lost, report: &mut Report) -> Result<(), OpError> {
    let answers: Vec<Result<Stat, StoreError>> = side_by_side(packs, FETCHES, |pack| {
        repo.store
            .stat(&store_key(&pack_name(pack.kind, pack.pack, pack.session)))
    });
    let is_missing =
        |answer: &Result<Stat, StoreError>| answer.as_ref().is_err_and(|error| error.class == Failure::NotFound);
    if answers.iter().any(is_missing) {
        // Somebody may be pruning.
        repo.sync_condemned()?;
    }
    for (pack, answer) in packs.iter().zip(answers) {
        match answer {
            Ok(stat) => compare_size(repo, pack, stat.size, lost, report)?,
            Err(error) if error.class == Failure::NotFound => {
                let now = repo.index.pack(&pack.pack)?;
                if now.is_some_and(|now| now.state == PackState::Condemned) {
                    report.packs -= 1;
                    lost.add_deleted(pack.pack);
                } else {
                    is_lost(repo, pack, "it is missing".into(), lost, report)?;
                }
            }
            Err(error) => return Err(store_error("looking for a pack")(error).into()),
        }
    }
    Ok(())
}

/// A pack to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Chosen {
    /// `i64::MIN`: never, or it was damaged then.
    verified: i64,
    pub pack: PackId,
    pub size: u32,
}

/// When the data of a pack was read and found sound. What was found damaged must be looked at again before anything else, and
/// a time that has not come yet says that the clock was wrong then or is now.
fn sound_since(verified: Option<Verified>, now: Timestamp) -> Option<i64> {
    verified
        .filter(|ledger| ledger.sound && ledger.at <= now)
        .map(|ledger| ledger.at.0)
}

/// Chooses the packs to read, those verified longest ago first. What is known to be lost is not read.
pub(super) fn choose_packs(
    repo: &Repo,
    subset: &Subset,
    options: &Options,
    wanted: Option<&HashSet<PackId>>,
    lost: &Lost,
) -> Result<Vec<Chosen>, OpError> {
    let now = host::now();
    let young_after = options.max_age.map(|max_age| {
        now.0
            .saturating_sub(i64::try_from(max_age.as_nanos()).unwrap_or(i64::MAX))
    });
    let mut chosen = Vec::new();
    repo.index.packs(&mut |pack| {
        let verified = sound_since(pack.verified, now).unwrap_or(i64::MIN);
        let is_wanted = wanted.is_none_or(|wanted| wanted.contains(&pack.pack));
        let is_young = young_after.is_some_and(|limit| verified >= limit);
        if counts(&pack) && is_wanted && !is_young && !lost.knows(&pack.pack) {
            chosen.push(Chosen {
                verified,
                pack: pack.pack,
                size: pack.size,
            });
        }
    })?;
    chosen.sort_unstable();
    let total: u64 = chosen.iter().map(|pack| u64::from(pack.size)).sum();
    match subset {
        Subset::All => {}
        Subset::These(these) => chosen.retain(|pack| these.contains(&pack.pack)),
        Subset::Part { number, of } => chosen.retain(|pack| {
            let bytes = pack.pack.0;
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) % of == number - 1
        }),
        Subset::Bytes(limit) => keep_bytes(&mut chosen, *limit),
        Subset::Share(share) => {
            let bytes = (u128::from(total) * u128::from(*share) / 100_000) as u64;
            // However small the share, something is read.
            keep_bytes(&mut chosen, bytes.max(1));
        }
    }
    Ok(chosen)
}

/// Keeps so many of the first that they have `limit` bytes at least.
fn keep_bytes(chosen: &mut Vec<Chosen>, limit: u64) {
    let mut bytes = 0u64;
    let enough = chosen
        .iter()
        .position(|pack| {
            let enough = bytes >= limit;
            bytes += u64::from(pack.size);
            enough
        })
        .unwrap_or(chosen.len());
    chosen.truncate(enough);
}

/// What the ledger says about packs that this run has not read: how old the word of the oldest is, and which were damaged when
/// they were read last. Those stay damaged until a reading shows the contrary.
pub(super) fn check_ledger(repo: &Repo, lost: &Lost, report: &mut Report) -> Result<(), OpError> {
    let now = host::now();
    let mut oldest: Option<i64> = None;
    let mut any_damaged = false;
    repo.index.packs(&mut |pack| {
        if !counts(&pack) {
            return;
        }
        if let Some(time) = sound_since(pack.verified, now) {
            oldest = Some(oldest.map_or(time, |oldest| oldest.min(time)));
            return;
        }
        let Some(ledger) = pack.verified.filter(|ledger| !ledger.sound) else {
            report.never_verified += 1;
            return;
        };
        any_damaged = true;
        if !lost.knows(&pack.pack) {
            report.damage(
                pack_name(pack.kind, pack.pack, pack.session),
                format!(
                    "it was damaged when it was read {}, and has not been read since; --read-data reads it again",
                    days_ago(ledger.at, now)
                ),
            );
        }
    })?;
    report.oldest_verified = oldest.filter(|_| report.never_verified == 0 && !any_damaged);
    Ok(())
}

fn days_ago(then: Timestamp, now: Timestamp) -> String {
    match now.0.saturating_sub(then.0) / 86_400_000_000_000 {
        ..=0 => "within the last day".to_owned(),
        1 => "a day ago".to_owned(),
        days => format!("{days} days ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sound_reading_of_the_past_counts() {
        let verified = |at, sound| {
            Some(Verified {
                depth: 3,
                at: Timestamp(at),
                sound,
            })
        };
        let now = Timestamp(100);
        assert_eq!(sound_since(verified(100, true), now), Some(100));
        assert_eq!(sound_since(verified(101, true), now), None, "the clock was ahead");
        assert_eq!(sound_since(verified(50, false), now), None, "it was damaged");
        assert_eq!(sound_since(None, now), None);
    }

    #[test]
    fn a_share_is_what_was_verified_longest_ago_and_never_less_than_asked_for() {
        let pack = |verified, size| Chosen {
            verified,
            pack: PackId([verified as u8; 16]),
            size,
        };
        let all: Vec<Chosen> = (0..5).map(|number| pack(number, 10)).collect();
        for (limit, count) in [(0, 0), (1, 1), (10, 1), (11, 2), (49, 5), (1000, 5)] {
            let mut some = all.clone();
            keep_bytes(&mut some, limit);
            assert_eq!(some, all[..count], "{limit}");
        }
    }
}
