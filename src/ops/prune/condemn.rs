//! The first half: naming the packs that nothing alive needs.

use super::copy::{Copied, rewrite};
use super::steps::{Ground, finish, nanos, publish, reach_ground, unexpected};
use super::survey::{Account, ListedPack, Standing, Survey, all_condemned, list_packs};
use super::{Work, refuse_homeless};
use crate::edge::host;
use crate::ops::OpError;
use crate::pure::format::condemn::{CondemnKind, Condemnation, CondemnedPack};
use crate::pure::format::name::ObjectName;
use crate::pure::format::session::SessionRole;
use crate::pure::id::SessionId;
use crate::pure::plan::prune::{PackUse, packs_to_rewrite};
use crate::pure::protocol::maintain::{Action, Event, MaintenanceProtocol, Purpose};
use crate::repo::Repo;
use crate::repo::error::object_error;
use crate::repo::open::create_new;
use crate::repo::session::Session;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What nothing alive needs, and what was seen.
struct Plan {
    unused: Vec<CondemnedPack>,
    /// Places of the packs in the survey.
    rewrite: Vec<usize>,
    survey: Survey,
    listed: Vec<ListedPack>,
}

/// Condemns; or says what would be condemned. Returns the packs as they were listed.
pub(super) fn run(work: &mut Work<'_, '_>) -> Result<Vec<ListedPack>, OpError> {
    look_at_history(work)?;
    if work.options.dry_run {
        let ground = reach_ground(work, Purpose::Condemn, None)?;
        return Ok(look(work, &ground)?.listed);
    }
    let mut session = Session::begin(
        work.repo,
        None,
        SessionRole::Condemn,
        work.options.uploads,
        Instant::now(),
    )?;
    let (mut protocol, packs, listed) = match prepare(work, &mut session) {
        Ok((_, packs, listed)) if packs.is_empty() => {
            // Nothing to say: the session leaves nothing behind but that it has ended.
            session.abandon();
            return Ok(listed);
        }
        Ok(prepared) => prepared,
        Err(error) => {
            session.abandon();
            return Err(error);
        }
    };
    let id = session.id();
    match publish(session, &mut protocol, &mut work.report)? {
        Action::Condemn => create_condemnation(work.repo, id, packs)?,
        action => return Err(unexpected(&action)),
    }
    finish(&mut protocol, Event::Condemned)?;
    Ok(listed)
}

/// Refuses when the history is in doubt.
fn look_at_history(work: &mut Work<'_, '_>) -> Result<(), OpError> {
    let mut state = work.repo.sync_history()?;
    state.require_sound()?;
    work.report.notes.append(&mut state.notes);
    if !state.forks.is_empty() {
        work.report.notes.push(format!(
            "{} numbers are shared by several outcomes: machines use one key, or one was cloned or set back. All of them count; give each \
             machine a key of its own",
            state.forks.len()
        ));
    }
    Ok(())
}

/// Marks, looks and copies; what is left is to publish it.
fn prepare(
    work: &mut Work<'_, '_>,
    session: &mut Session<'_>,
) -> Result<(MaintenanceProtocol, Vec<CondemnedPack>, Vec<ListedPack>), OpError> {
    let ground = reach_ground(work, Purpose::Condemn, Some(session))?;
    let Plan {
        mut unused,
        rewrite,
        mut survey,
        listed,
    } = look(work, &ground)?;
    unused.extend(copy_out(work, session, &mut survey, &rewrite)?);
    Ok((ground.protocol, unused, listed))
}

fn create_condemnation(repo: &Repo, session: SessionId, packs: Vec<CondemnedPack>) -> Result<(), OpError> {
    let name = ObjectName::Condemnation(session);
    let condemnation = Condemnation {
        kid: repo.kid,
        created: host::now(),
        kind: CondemnKind::Reclaim,
        session,
        reason: "prune".into(),
        packs,
        lost: Vec::new(),
        is_accepted: false,
    };
    let body = condemnation
        .encode(&repo.keys, &repo.signer, host::random())
        .map_err(object_error("sealing", &name))?;
    create_new(&*repo.store, &name, body, "the list of condemned packs")?;
    Ok(())
}

/// Sees what every pack holds and decides what becomes of it.
fn look(work: &mut Work<'_, '_>, ground: &Ground) -> Result<Plan, OpError> {
    let Work {
        repo,
        options,
        marker,
        report,
        ..
    } = work;
    let listed = list_packs(repo)?;
    let mut survey = Survey::begin(repo, &listed)?;
    let homeless = survey.take_in(repo, marker.ids())?;
    refuse_homeless(&homeless)?;
    report.lost = homeless.lost;
    report.snapshots = ground.live as u64;
    let (mut unused, mut rewrite) = (Vec::new(), Vec::new());
    let mut used = Vec::new();
    for (place, account) in survey.packs.iter().enumerate() {
        match account.standing {
            Standing::Stays | Standing::Damaged if account.live == 0 => {
                report.unused.add(account.size.into());
                unused.push(condemned(account));
            }
            Standing::Stays | Standing::Damaged => {
                report.used.add(account.size.into());
                report.bytes_alive += account.live;
                let is_outdated = options.rekey && is_outdated(repo, account)?;
                if is_outdated {
                    report.outdated.add(account.size.into());
                }
                if account.standing == Standing::Stays {
                    used.push((place, is_outdated));
                }
            }
            Standing::Condemned | Standing::Useless => {}
        }
    }
    for orphan in orphans(repo, &survey, &listed, ground)? {
        report.unused.add(orphan.size.into());
        report.orphaned.add(orphan.size.into());
        unused.push(orphan);
    }
    if let Some(limits) = &options.repack {
        let uses: Vec<PackUse> = used
            .iter()
            .map(|(place, is_outdated)| PackUse {
                size: survey.packs[*place].size.into(),
                live: survey.packs[*place].needed(),
                is_outdated: *is_outdated,
            })
            .collect();
        for (place, is_outdated) in packs_to_rewrite(&uses, limits).into_iter().map(|chosen| used[chosen]) {
            let account = &survey.packs[place];
            report.rewritten.add(account.size.into());
            report.bytes_copied += account.live;
            if is_outdated {
                report.outdated.packs -= 1;
                report.outdated.bytes -= u64::from(account.size);
            }
            rewrite.push(place);
        }
    }
    Ok(Plan {
        unused,
        rewrite,
        survey,
        listed,
    })
}

/// Whether what a pack holds opens with secrets of before the last rotation.
fn is_outdated(repo: &Repo, account: &Account) -> Result<bool, OpError> {
    let slots = repo.index.slots_of_pack(&account.pack)?.unwrap_or_default();
    Ok(slots.iter().any(|slot| slot.epoch() < repo.config.epoch))
}

fn condemned(account: &Account) -> CondemnedPack {
    CondemnedPack {
        pack: account.pack,
        session: account.session,
        kind: account.kind,
        orphan: false,
        size: account.size,
    }
}

/// Packs that no run describes, that nobody may still be about to list, and that are old enough (format-spec chapter 16.3).
fn orphans(
    repo: &Repo,
    survey: &Survey,
    listed: &[ListedPack],
    ground: &Ground,
) -> Result<Vec<CondemnedPack>, OpError> {
    let mut known = all_condemned(repo)?;
    known.extend(
        survey
            .packs
            .iter()
            .filter(|account| account.is_described)
            .map(|account| account.pack),
    );
    let running: HashSet<SessionId> = ground.open.iter().map(|other| other.state.session).collect();
    let age_min = nanos(Duration::from_secs(repo.config.gc.pack_age_seconds));
    let is_old = |listed: &ListedPack| {
        // Without a time there is no telling.
        listed
            .modified
            .is_some_and(|modified| ground.now.0.saturating_sub(modified.0) > age_min)
    };
    Ok(listed
        .iter()
        .filter(|listed| {
            !known.contains(&listed.pack)
                && !running.contains(&listed.session)
                && (is_old(listed) || chaos!("orphans-are-condemned-at-once"))
        })
        .map(|listed| CondemnedPack {
            pack: listed.pack,
            session: listed.session,
            kind: listed.kind,
            orphan: true,
            size: u32::try_from(listed.size).unwrap_or(u32::MAX),
        })
        .collect())
}

/// Copies what is alive in packs that are rewritten; returns those that may be condemned then.
fn copy_out(
    work: &mut Work<'_, '_>,
    session: &mut Session<'_>,
    survey: &mut Survey,
    places: &[usize],
) -> Result<Vec<CondemnedPack>, OpError> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let Work {
        repo,
        options,
        progress,
        marker,
        report,
    } = work;
    let handles: HashSet<u32> = places.iter().map(|place| survey.packs[*place].handle).collect();
    let kept = survey.kept_in(repo, marker.ids(), &handles)?;
    progress.set_current("copying what is used of badly used packs");
    let Copied { bytes, unreadable } = rewrite(marker.reader(), session, &kept, progress)?;
    report.bytes_copied = bytes;
    let mut packs = Vec::new();
    for account in places.iter().map(|place| &survey.packs[*place]) {
        if unreadable.contains(&account.handle) {
            report.rewritten.packs -= 1;
            report.rewritten.bytes -= u64::from(account.size);
            if options.rekey && is_outdated(repo, account)? {
                report.outdated.add(account.size.into());
            }
            report.damaged.push(account.name());
        } else {
            packs.push(condemned(account));
        }
    }
    Ok(packs)
}
