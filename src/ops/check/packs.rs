//! Packs: whether each is there, which of them to read, and how long ago each was read.

use super::options::{Options, Subset};
use super::report::Report;
use crate::edge::host;
use crate::edge::store::Failure;
use crate::ops::OpError;
use crate::pure::format::name::{ObjectName, PackKind};
use crate::pure::id::{ChunkId, PackId};
use crate::repo::Repo;
use crate::repo::error::store_error;
use crate::repo::index::{IndexedChunk, PackInfo};
use crate::repo::open::{list_names, store_key};
use crate::repo::reader::pack_name;
use std::collections::{HashMap, HashSet};

/// Chunks that cannot be restored, and why.
pub(super) type Bad = HashMap<ChunkId, String>;

/// Every pack of a valid run is in the listing with its size. Returns the chunks of those that are not.
pub(super) fn check_packs_exist(repo: &Repo, report: &mut Report) -> Result<Bad, OpError> {
    let mut sizes: HashMap<(PackKind, PackId), u64> = HashMap::new();
    for under in ["data/", "meta/"] {
        for (name, listed) in list_names(&*repo.store, under)? {
            if let ObjectName::Pack(kind, pack, _) = name {
                sizes.insert((kind, pack), listed.size);
            }
        }
    }
    let mut known: Vec<PackInfo> = Vec::new();
    repo.index.packs(&mut |pack| known.push(pack))?;
    let mut bad = Bad::new();
    for pack in &known {
        report.packs += 1;
        let name = pack_name(pack.kind, pack.pack, pack.session);
        let found = match sizes.remove(&(pack.kind, pack.pack)) {
            Some(size) => Some(size),
            // A listing may lag: absence is believed only when asking for the object says so too.
            None => match repo.store.stat(&store_key(&name)) {
                Ok(stat) => Some(stat.size),
                Err(error) if error.class == Failure::NotFound => None,
                Err(error) => return Err(store_error("looking for a pack")(error).into()),
            },
        };
        let what = match found {
            Some(size) if size == u64::from(pack.size) => continue,
            Some(size) => format!("it has {size} bytes instead of {}", pack.size),
            None => "it is missing".to_owned(),
        };
        report.damage(&name, &what);
        for IndexedChunk { id, .. } in repo.index.chunks_of_pack(&pack.pack)? {
            let elsewhere = repo.index.find_all(&id)?.iter().any(|place| place.pack != pack.pack);
            if !elsewhere {
                bad.insert(id, format!("{name}: {what}"));
            }
        }
    }
    report.unreferenced_packs = sizes.len() as u64;
    Ok(bad)
}

/// Chooses the packs to read, those verified longest ago first.
pub(super) fn choose_packs(
    repo: &Repo,
    subset: &Subset,
    options: &Options,
    wanted: Option<&HashSet<ChunkId>>,
) -> Result<Vec<PackInfo>, OpError> {
    let mut packs = Vec::new();
    repo.index.packs(&mut |pack| packs.push(pack))?;
    if let Some(wanted) = wanted {
        let mut needed = HashSet::new();
        for id in wanted {
            needed.extend(repo.index.find_all(id)?.iter().map(|place| place.pack));
        }
        packs.retain(|pack| needed.contains(&pack.pack));
    }
    let mut aged = Vec::with_capacity(packs.len());
    for pack in packs {
        let verified = repo.index.verified(&pack.pack)?.map_or(i64::MIN, |ledger| ledger.at.0);
        aged.push((verified, pack));
    }
    if let Some(max_age) = options.max_age {
        let limit = host::now()
            .0
            .saturating_sub(i64::try_from(max_age.as_nanos()).unwrap_or(i64::MAX));
        aged.retain(|(verified, _)| *verified < limit);
    }
    aged.sort_by_key(|(verified, pack)| (*verified, pack.pack));
    let total: u64 = aged.iter().map(|(_, pack)| u64::from(pack.size)).sum();
    let take_bytes = |limit: u64| {
        let mut bytes = 0u64;
        aged.iter()
            .take_while(|(_, pack)| {
                let room = bytes < limit;
                bytes += u64::from(pack.size);
                room
            })
            .map(|(_, pack)| pack.clone())
            .collect::<Vec<_>>()
    };
    Ok(match subset {
        Subset::All => aged.into_iter().map(|(_, pack)| pack).collect(),
        Subset::Part { number, of } => aged
            .into_iter()
            .map(|(_, pack)| pack)
            .filter(|pack| {
                let bytes = pack.pack.0;
                u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) % of == number - 1
            })
            .collect(),
        Subset::Bytes(bytes) => take_bytes(*bytes),
        Subset::Share(share) => take_bytes((u128::from(total) * u128::from(*share) / 100_000) as u64),
    })
}

pub(super) fn note_ages(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    let mut packs = Vec::new();
    repo.index.packs(&mut |pack| packs.push(pack.pack))?;
    let mut oldest: Option<i64> = None;
    for pack in packs {
        match repo.index.verified(&pack)? {
            Some(ledger) if ledger.sound => {
                oldest = Some(oldest.map_or(ledger.at.0, |time: i64| time.min(ledger.at.0)));
            }
            _ => report.never_verified += 1,
        }
    }
    report.oldest_verified = oldest.filter(|_| report.never_verified == 0);
    Ok(())
}
