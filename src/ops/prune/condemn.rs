//! The first half: naming the packs that nothing alive needs.

use super::copy::{Copied, rewrite};
use super::mark::Marker;
use super::sessions::{nanos, sessions, store_time};
use super::survey::{Account, ListedPack, Standing, Survey, all_condemned, list_packs};
use super::{Options, Report, out_of_order, refuse_homeless, sync_index, unexpected};
use crate::edge::host;
use crate::ops::{OpError, Progress};
use crate::pure::base::Timestamp;
use crate::pure::format::condemn::{CondemnKind, Condemnation, CondemnedPack};
use crate::pure::format::name::ObjectName;
use crate::pure::format::session::SessionRole;
use crate::pure::id::SessionId;
use crate::pure::plan::prune::{PackUse, packs_to_rewrite};
use crate::pure::protocol::maintain::{Action, Event, Finish, MaintenanceProtocol, Purpose};
use crate::repo::error::object_error;
use crate::repo::maintain::OpenSession;
use crate::repo::open::create_new;
use crate::repo::session::Session;
use crate::repo::{Repo, RepoError};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What nothing alive needs.
#[derive(Default)]
struct Plan {
    unused: Vec<CondemnedPack>,
    /// Places of the packs in the survey.
    rewrite: Vec<usize>,
}

/// Condemns; or says what would be condemned.
pub(super) fn run(
    repo: &Repo,
    options: &Options,
    marker: &mut Marker<'_>,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), OpError> {
    look_at_history(repo, report)?;
    if options.dry_run {
        repo.sync_condemned()?;
        let open = repo.sessions_that_have_not_ended()?;
        let dropped = repo.forgotten()?;
        let pinned: HashSet<SessionId> = open.iter().flat_map(|other| other.state.pins.iter().copied()).collect();
        let mut live = repo.all_snapshots_without_doubt()?;
        live.retain(|session| !dropped.contains(session) || pinned.contains(session));
        report.snapshots = live.len() as u64;
        marker.mark(&live, progress)?;
        sync_index(repo)?;
        // Nothing of its own tells it what time the store has.
        look(repo, options, marker, &open, host::now(), report)?;
        return Ok(());
    }
    let mut session = Session::begin(repo, None, SessionRole::Condemn, options.uploads, Instant::now())?;
    let done = condemn(repo, options, marker, &mut session, report, progress);
    match done {
        Ok((condemned, protocol)) if !condemned.is_empty() => publish(repo, session, protocol, condemned, report),
        // Nothing to say: the session leaves nothing behind but that it has ended.
        Ok(_) => {
            session.abandon();
            Ok(())
        }
        Err(error) => {
            session.abandon();
            Err(error)
        }
    }
}

/// Refuses when the history is in doubt.
fn look_at_history(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    let mut state = repo.sync_history()?;
    report.notes.append(&mut state.notes);
    if let Some((_, error)) = state.broken.pop() {
        return Err(error.into());
    }
    if let Some(what) = state.gaps.pop() {
        return Err(RepoError::Gap { what }.into());
    }
    if !state.forks.is_empty() {
        report.notes.push(format!(
            "{} numbers are shared by several outcomes: machines use one key, or one was cloned or set back. All of them count; give each \
             machine a key of its own",
            state.forks.len()
        ));
    }
    Ok(())
}

/// Marks, looks and copies; what is left is to publish it.
fn condemn(
    repo: &Repo,
    options: &Options,
    marker: &mut Marker<'_>,
    session: &mut Session<'_>,
    report: &mut Report,
    progress: &Progress,
) -> Result<(Vec<CondemnedPack>, MaintenanceProtocol), OpError> {
    let mut protocol = MaintenanceProtocol::new(Purpose::Condemn, session.id());
    let mut open = Vec::new();
    let mut event = Event::Begun {
        generations: session.acknowledged(),
    };
    loop {
        event = match protocol.step(event).map_err(out_of_order)? {
            Action::ListDrops => Event::Dropped {
                dropped: repo.forgotten()?.into_iter().collect(),
            },
            Action::ListSessions => {
                open = sessions(repo, options, &session.id(), report)?;
                Event::Sessions {
                    unended: open.iter().map(|other| other.state.clone()).collect(),
                }
            }
            Action::ListSnapshots => Event::Snapshots {
                snapshots: repo.all_snapshots_without_doubt()?,
            },
            Action::Mark { live } => {
                report.snapshots = live.len() as u64;
                marker.mark(&live, progress)?;
                session.tick()?;
                Event::Marked
            }
            Action::SyncIndex => {
                sync_index(repo)?;
                Event::IndexSynced
            }
            Action::Resolve => {
                let now = store_time(&open, &session.id());
                let (plan, mut survey) = look(repo, options, marker, &open, now, report)?;
                let Plan { mut unused, rewrite } = plan;
                unused.extend(copy_out(
                    repo,
                    marker,
                    session,
                    &mut survey,
                    &rewrite,
                    report,
                    progress,
                )?);
                return Ok((unused, protocol));
            }
            action => return Err(unexpected(&action)),
        };
    }
}

/// Publishes the copies, and then what is condemned.
fn publish(
    repo: &Repo,
    mut session: Session<'_>,
    mut protocol: MaintenanceProtocol,
    packs: Vec<CondemnedPack>,
    report: &mut Report,
) -> Result<(), OpError> {
    let id = session.id();
    let durable = match session.make_durable() {
        Ok(durable) => durable,
        Err(error) => {
            session.abandon();
            return Err(error.into());
        }
    };
    report.notes.extend(session.take_notes());
    let mut event = Event::Resolved;
    let mut ending = Some((session, durable));
    loop {
        event = match protocol.step(event).map_err(out_of_order)? {
            Action::Publish => {
                let (session, durable) = ending.take().ok_or_else(|| unexpected(&Action::Publish))?;
                Event::Published {
                    ours: session.publish_maintenance(durable)?,
                }
            }
            Action::Condemn => {
                create_condemnation(repo, id, packs.clone())?;
                Event::Condemned
            }
            Action::Finish(Finish::Done) => return Ok(()),
            Action::Finish(Finish::Fenced) => return Err(RepoError::Fenced(id).into()),
            action => return Err(unexpected(&action)),
        };
    }
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
    };
    let body = condemnation
        .encode(&repo.keys, &repo.signer, host::random())
        .map_err(object_error("sealing", &name))?;
    create_new(&*repo.store, &name, body, "the list of condemned packs")?;
    Ok(())
}

/// Sees what every pack holds and decides what becomes of it.
fn look(
    repo: &Repo,
    options: &Options,
    marker: &mut Marker<'_>,
    open: &[OpenSession],
    now: Timestamp,
    report: &mut Report,
) -> Result<(Plan, Survey), OpError> {
    let listed = list_packs(repo)?;
    let mut survey = Survey::begin(repo, &listed)?;
    refuse_homeless(&survey.take_in(repo, marker.ids())?)?;
    let mut plan = Plan::default();
    let mut used = Vec::new();
    for (place, account) in survey.packs.iter().enumerate() {
        match account.standing {
            Standing::Stays | Standing::Damaged if account.live == 0 => {
                report.unused.add(account.size.into());
                plan.unused.push(condemned(account));
            }
            Standing::Stays | Standing::Damaged => {
                report.used.add(account.size.into());
                report.bytes_alive += account.live;
                if account.standing == Standing::Stays {
                    used.push(place);
                }
            }
            Standing::Condemned => report.waiting.add(account.size.into()),
            Standing::Useless => {}
        }
    }
    for orphan in orphans(repo, &survey, &listed, open, now)? {
        report.unused.add(orphan.size.into());
        report.orphaned.add(orphan.size.into());
        plan.unused.push(orphan);
    }
    if let Some(limits) = &options.repack {
        let uses: Vec<PackUse> = used
            .iter()
            .map(|place| PackUse {
                size: survey.packs[*place].size.into(),
                live: survey.packs[*place].needed(),
            })
            .collect();
        plan.rewrite = packs_to_rewrite(&uses, limits)
            .into_iter()
            .map(|chosen| used[chosen])
            .collect();
        for place in &plan.rewrite {
            report.rewritten.add(survey.packs[*place].size.into());
            report.bytes_copied += survey.packs[*place].live;
        }
    }
    Ok((plan, survey))
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
    open: &[OpenSession],
    now: Timestamp,
) -> Result<Vec<CondemnedPack>, OpError> {
    let mut known = all_condemned(repo)?;
    known.extend(
        survey
            .packs
            .iter()
            .filter(|account| account.is_described)
            .map(|account| account.pack),
    );
    let running: HashSet<SessionId> = open.iter().map(|other| other.state.session).collect();
    let age_min = nanos(Duration::from_secs(repo.config.gc.pack_age_seconds));
    let is_old = |listed: &ListedPack| {
        // Without a time there is no telling.
        listed
            .modified
            .is_some_and(|modified| now.0.saturating_sub(modified.0) > age_min)
    };
    Ok(listed
        .iter()
        .filter(|listed| !known.contains(&listed.pack) && !running.contains(&listed.session) && is_old(listed))
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
    repo: &Repo,
    marker: &mut Marker<'_>,
    session: &mut Session<'_>,
    survey: &mut Survey,
    places: &[usize],
    report: &mut Report,
    progress: &Progress,
) -> Result<Vec<CondemnedPack>, OpError> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
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
            report.notes.push(format!(
                "{} is damaged and was left as it is; `larder repo check --read-data` says what is hit",
                account.name()
            ));
        } else {
            packs.push(condemned(account));
        }
    }
    Ok(packs)
}
