//! Snapshots that cannot be read, and what of the others is lost. An outcome that does not open stops all pruning; an admin who knows that
//! there is no better copy of it may void it (format-spec chapters 9.2.4 and 16.8). Nothing that a snapshot needs is lost by that: the
//! packs of its session are listed again.

use super::{heal, index};
use crate::edge::host;
use crate::edge::store::Created;
use crate::ops::check::{self, chain};
use crate::ops::{OpError, Progress};
use crate::pure::base::Timestamp;
use crate::pure::crypto::sign::role;
use crate::pure::format::mark::{Drop, DropKind};
use crate::pure::format::name::ObjectName;
use crate::pure::id::{KeyId, ObjectHash, SessionId};
use crate::repo::Repo;
use crate::repo::error::{object_error, store_error};
use crate::repo::open::store_key;
use crate::repo::session::{ChainFloor, Maintained};
use crate::repo::sidecars::SMALL;
use crate::repo::snapshots::Snapshot;
use std::collections::{BTreeMap, BTreeSet};

/// How often an outcome is read before it counts as damaged (I-8).
const READS_BEFORE_DAMAGE: usize = 3;

/// An outcome that does not open, and what is known of it all the same.
#[derive(Debug)]
pub struct Unreadable {
    pub session: SessionId,
    pub why: String,
    /// When the store received it.
    pub received: Option<Timestamp>,
    /// Whose it was, by the session's tag.
    pub kid: Option<KeyId>,
    /// What this machine has kept of it, if it was a snapshot.
    pub kept: Option<Snapshot>,
}

/// What was found.
#[derive(Debug)]
pub struct Plan {
    /// Outcomes, and other small objects, that are damaged or lost and that parity rebuilds: [`put_back`].
    pub healable: Vec<ObjectName>,
    pub unreadable: Vec<Unreadable>,
    /// Says which files of which snapshots are lost.
    pub check: check::Report,
}

/// What voiding did.
#[derive(Debug)]
pub struct Voided {
    /// Packs that no run described any more, and that were listed again.
    pub packs: u64,
    pub after: check::Report,
}

/// Looks for outcomes that do not open, and for files that are lost.
///
/// # Errors
/// When the store cannot be listed or read.
pub fn plan(repo: &Repo, threads: usize, progress: &Progress) -> Result<Plan, OpError> {
    let mut healable = Vec::new();
    for under in SMALL {
        healable.extend(heal::healable(repo, heal::with_sidecar(repo, under)?, progress)?);
    }
    repo.sync_history()?;
    let received = repo.received()?;
    let voided = repo.voided()?;
    let mut unreadable = Vec::new();
    for session in repo.listed_outcomes()? {
        if voided.contains(&session) {
            continue;
        }
        if let Some(why) = unreadable_because(repo, &session)? {
            unreadable.push(Unreadable {
                session,
                why,
                received: received.get(&session).copied(),
                kid: kid_of(repo, &session),
                kept: repo.snapshot(&session).ok(),
            });
        }
    }
    let options = check::Options {
        threads,
        ..check::Options::default()
    };
    let check = check::run(repo, &options, progress)?;
    Ok(Plan {
        healable,
        unreadable,
        check,
    })
}

/// Puts back what parity rebuilds; returns which objects. Plan again afterwards.
///
/// # Errors
/// When the key may not maintain, or the store fails. Running it again completes it.
pub fn put_back(repo: &Repo, plan: &Plan, progress: &Progress) -> Result<Vec<ObjectName>, OpError> {
    repo.require(role::MAINTAIN, "put back what is damaged in this repository")?;
    heal::heal(repo, plan.healable.iter().cloned(), progress)
}

/// Voids an outcome that does not open, so that pruning goes on.
///
/// # Errors
/// When the key is not an admin's, the outcome can be read, or the store fails. Running it again completes it.
pub fn void(repo: &Repo, session: &SessionId, threads: usize, progress: &Progress) -> Result<Voided, OpError> {
    repo.require(role::ADMIN, "void a snapshot that cannot be read")?;
    repo.sync_history()?;
    if !repo.voided()?.contains(session) && unreadable_because(repo, session)?.is_none() {
        return Err(OpError::Refused {
            what: format!("snapshot {} can be read", session.short()),
            hint: "forget it instead: `larder snapshot forget`".into(),
        });
    }
    // What it had uploaded is listed before it stops counting, also where this machine knows nothing of it.
    let mut packs = list_again(repo, threads, progress)?;
    if let Some(floor) = floor_for(repo, session)? {
        let mut floors = super::declare::begin(repo, 1)?;
        let durable = match floors.make_durable() {
            Ok(durable) => durable,
            Err(error) => {
                floors.abandon();
                return Err(error.into());
            }
        };
        let with = Maintained {
            chain_floors: vec![floor],
            ..Maintained::default()
        };
        floors.publish_maintenance(durable, with)?;
    }
    create_void(repo, session)?;
    repo.sync_history()?;
    packs += list_again(repo, threads, progress)?;
    let options = check::Options {
        threads,
        ..check::Options::default()
    };
    let after = check::run(repo, &options, progress)?;
    Ok(Voided { packs, after })
}

fn list_again(repo: &Repo, threads: usize, progress: &Progress) -> Result<u64, OpError> {
    let plan = index::plan(repo, progress)?;
    Ok(index::run(repo, &plan, threads, progress)?.packs)
}

/// Reads an outcome, several times if it does not open; says what is wrong then.
fn unreadable_because(repo: &Repo, session: &SessionId) -> Result<Option<String>, OpError> {
    let mut attempt = 1;
    loop {
        match repo.fetch_outcome(session) {
            Ok(_) => return Ok(None),
            Err(error) if error.is_damage() && attempt < READS_BEFORE_DAMAGE => attempt += 1,
            Err(error) if error.is_damage() => return Ok(Some(chain(&error))),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The key whose tag the session has. No two keys have the same.
fn kid_of(repo: &Repo, session: &SessionId) -> Option<KeyId> {
    let has_tag = |kid: &KeyId| kid.as_bytes()[..4] == session.writer_tag()[..];
    let mut writers = repo.config.writers.iter().map(|writer| writer.kid);
    writers.find(has_tag)
}

/// The floor that says that the number of this outcome may be missing in its writer's chain. `None` if nothing shows which it is, or if more numbers are missing than outcomes are voided: that stays a gap.
fn floor_for(repo: &Repo, session: &SessionId) -> Result<Option<ChainFloor>, OpError> {
    let Some(kid) = kid_of(repo, session) else {
        return Ok(None);
    };
    let mut voided = repo.voided()?;
    voided.insert(*session);
    let of_writer = voided.iter().filter(|voided| kid_of(repo, voided) == Some(kid)).count();
    // What links to the number before it, and the numbers that are there. What only this machine has kept is not there.
    let mut links: BTreeMap<u64, ObjectHash> = BTreeMap::new();
    let mut there: BTreeSet<u64> = BTreeSet::new();
    let mut gone: BTreeSet<u64> = BTreeSet::new();
    let mut floor = 0;
    for known in repo.index.outcomes()? {
        let Some(stored) = repo.stored_outcome(&known.session)? else {
            continue;
        };
        for (of, number, _) in &stored.outcome.chain_floors {
            if *of == kid {
                floor = floor.max(number.saturating_add(1));
            }
        }
        if known.kid != kid {
            continue;
        }
        if voided.contains(&known.session) {
            // This machine has kept it: other machines miss it as soon as there is a later one.
            gone.insert(known.sequence);
            links.insert(known.sequence, known.hash);
            continue;
        }
        there.insert(known.sequence);
        if let (Some(before), Some(hash)) = (known.sequence.checked_sub(1), stored.outcome.previous) {
            links.insert(before, hash);
        }
    }
    let last = there.last().copied().unwrap_or(0);
    // A writer chooses its numbers.
    if last.saturating_sub(floor) > (there.len() + of_writer) as u64 {
        return Ok(None);
    }
    gone.extend(floor..last);
    gone.retain(|number| *number >= floor && !there.contains(number));
    let highest = gone.last().copied().filter(|_| gone.len() <= of_writer);
    Ok(highest.and_then(|number| Some((kid, number, *links.get(&number)?))))
}

fn create_void(repo: &Repo, session: &SessionId) -> Result<(), OpError> {
    let void = Drop {
        kid: repo.kid,
        created: host::now(),
        kind: DropKind::Void,
        session: *session,
        reason: "its outcome cannot be read".into(),
    };
    let name = ObjectName::Drop(*session);
    let body = void
        .encode(&repo.keys, &repo.signer, host::random())
        .map_err(object_error("sealing", &name))?;
    match repo
        .store
        .create(&store_key(&name), body.into())
        .map_err(store_error("voiding a snapshot that cannot be read"))?
    {
        Created::New => Ok(()),
        Created::Exists if repo.voided()?.contains(session) => Ok(()),
        Created::Exists => Err(OpError::Refused {
            what: format!("snapshot {} is forgotten, which cannot be changed", session.short()),
            hint: "a drop is written once".into(),
        }),
    }
}
