//! Removing small objects that have served (format-spec chapter 16.4): runs that others have absorbed, runs that no outcome accepts,
//! what ended sessions said while they ran, and condemnations of which nothing is left. None of it is needed by any snapshot, and each is
//! looked at anew by the next prune, so this can break off anywhere.
//!
//! Times are the store's. The latest one at which it received an outcome stands for now: it is never too late.

use super::Work;
use super::locks;
use super::steps::{nanos, sync_index};
use super::survey::ListedPack;
use super::sweep::DELETED_AT_ONCE;
use crate::edge::store::StoreKey;
use crate::ops::OpError;
use crate::pure::base::Timestamp;
use crate::pure::format::condemn::{CondemnKind, Condemnation};
use crate::pure::format::name::ObjectName;
use crate::pure::format::session::SessionRole;
use crate::pure::id::{PackId, SessionId};
use crate::repo::Repo;
use crate::repo::compacted::read_through;
use crate::repo::error::{object_error, store_error};
use crate::repo::index::PackState;
use crate::repo::open::{list_names, read_whole, store_key};
use crate::repo::parity::sidecar_key;
use crate::repo::runs::{ListedRun, ValidRuns};
use crate::repo::snapshots::HistoryState;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// What a session said is kept this long after its end: a day more than others count on.
const SESSION_KEPT: Duration = Duration::from_secs(8 * 86_400);

/// When the store received each outcome, and what time it is at least.
struct Times {
    received: HashMap<SessionId, Timestamp>,
    now: Timestamp,
}

impl Times {
    /// Whether the session ended at least so long ago.
    fn ended_before(&self, session: &SessionId, ago: Duration) -> bool {
        self.received
            .get(session)
            .is_some_and(|ended| ended.0.saturating_add(nanos(ago)) <= self.now.0)
    }
}

/// Removes what has served. `listed` are the packs that there were after the sweep.
pub(super) fn run(work: &mut Work<'_, '_>, listed: &[ListedPack]) -> Result<(), OpError> {
    let repo = work.repo;
    if work.options.dry_run {
        return Ok(());
    }
    let received = repo.received()?;
    let Some(now) = received.values().max().copied() else {
        return Ok(());
    };
    let times = Times { received, now };
    work.progress.set_current("tidying");
    remove_runs(work, &times)?;
    remove_what_sessions_said(work, &times)?;
    retire(work, listed)?;
    locks::erase_hidden(repo)
}

fn remove(work: &mut Work<'_, '_>, names: &[(ObjectName, u64)], what: &str) -> Result<(), OpError> {
    let keys: Vec<(StoreKey, u64)> = names.iter().map(|(name, size)| (store_key(name), *size)).collect();
    for some in keys.chunks(DELETED_AT_ONCE) {
        if work.progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        work.report.tidied += locks::erase(work, some, &format!("removing {what}"))?;
    }
    Ok(())
}

fn remove_runs(work: &mut Work<'_, '_>, times: &Times) -> Result<(), OpError> {
    let repo = work.repo;
    let delay = Duration::from_secs(repo.config.gc.input_delay_seconds);
    let valid = repo.valid_runs()?;
    let mut doomed: Vec<(ObjectName, u64)> = Vec::new();
    let objects = |run: &ListedRun| run.objects.clone();
    // Whoever has listed it may still be reading it, so it stays for a day.
    let there = valid.tops.iter().chain(&valid.absorbed);
    for run in there.filter(|run| run.level > 0 && times.ended_before(&run.session, delay)) {
        let (names, _) = valid.absorbed_by(&run.name());
        let inputs: Vec<&ListedRun> = valid
            .absorbed
            .iter()
            .filter(|input| names.contains(&input.name()))
            .collect();
        if inputs.is_empty() {
            continue;
        }
        // Nothing is taken away before what takes its place was seen to open.
        match read_through(repo, run, &valid) {
            Ok(()) => doomed.extend(inputs.into_iter().flat_map(objects)),
            Err(error) if error.is_damage() => {
                work.report.notes.push(format!(
                    "{} is damaged, so what it was made of stays; look at it with: larder repo check",
                    run.name()
                ));
                work.report.damaged_runs.push(run.name());
            }
            Err(error) => return Err(error.into()),
        }
    }
    // Its session has ended without it, so it can never count. That there is an outcome is not enough: one that came late was not
    // read for this.
    let never_counts = |run: &&ListedRun| valid.ended.contains(&run.session) && times.ended_before(&run.session, delay);
    let useless = valid.not_accepted.iter().filter(never_counts);
    doomed.extend(useless.flat_map(objects));
    doomed.sort_unstable();
    doomed.dedup();
    remove(work, &doomed, "index runs that others have absorbed")
}

fn remove_what_sessions_said(work: &mut Work<'_, '_>, times: &Times) -> Result<(), OpError> {
    let mut said: Vec<(ObjectName, u64)> = Vec::new();
    for (name, row) in list_names(&*work.repo.store, "sess/")? {
        if let ObjectName::Session(session, _) = name
            && times.ended_before(&session, SESSION_KEPT)
        {
            said.push((name, row.size));
        }
    }
    remove(work, &said, "what ended sessions said")
}

/// Removes condemnations of which nothing is left. In this order: their packs are absent; after that, nobody who could still write a run
/// that describes them is running; after that, no run that counts does.
fn retire(work: &mut Work<'_, '_>, listed: &[ListedPack]) -> Result<(), OpError> {
    let repo = work.repo;
    let is_there = |pack: &PackId| listed.binary_search_by_key(pack, |listed| listed.pack).is_ok();
    let mut empty: Vec<(SessionId, Vec<PackId>)> = Vec::new();
    for generation in repo.sync_condemned()? {
        let packs = repo.index.condemned_by(&generation)?;
        if !packs.iter().any(is_there) {
            empty.push((generation, packs));
        }
    }
    if empty.is_empty() {
        return Ok(());
    }
    let writes_runs = |role| matches!(role, SessionRole::Compact | SessionRole::Repair | SessionRole::Rescue);
    if repo
        .sessions_that_have_not_ended()?
        .iter()
        .any(|other| writes_runs(other.role))
    {
        return Ok(());
    }
    // After the sessions: what one of those has published that are seen to have ended counts.
    repo.sync_outcomes(&mut HistoryState::default())?;
    sync_index(repo)?;
    let described = described(repo, &repo.valid_runs()?)?;
    let mut retired = Vec::new();
    for (generation, packs) in empty {
        if packs.iter().any(|pack| described.contains(pack)) {
            continue;
        }
        let condemnation = match condemnation(repo, &generation) {
            // Another prune has removed it meanwhile.
            Err(OpError::Repo(error)) if error.is_absence() => continue,
            read => read?,
        };
        // A quarantine says which chunks are lost; that stays known.
        if condemnation.kind != CondemnKind::Quarantine {
            remove_parity(work, &condemnation)?;
            retired.push((ObjectName::Condemnation(generation), 0));
        }
    }
    remove(work, &retired, "condemnations of which nothing is left")
}

/// The packs that runs which count describe: those of the index, and what runs that are absorbed and still there say beyond it.
fn described(repo: &Repo, valid: &ValidRuns) -> Result<HashSet<PackId>, OpError> {
    let mut described = HashSet::new();
    // What a run has left out, those that it was made of still describe.
    for (name, descriptor) in &valid.descriptors {
        let (names, _) = valid.absorbed_by(name);
        if valid.absorbed.iter().any(|input| names.contains(&input.name())) {
            described.extend(descriptor.dropped_packs.iter().copied());
        }
    }
    repo.index.packs(&mut |info| {
        if info.state != PackState::Gone {
            described.insert(info.pack);
        }
    })?;
    Ok(described)
}

/// The sidecar of a pack goes with it ([`crate::repo::parity`]), unless the pack was gone before the sweep, or somebody was just writing
/// the sidecar. Nobody knows of the pack when its condemnation is retired, so that is when the last of it goes.
fn remove_parity(work: &mut Work<'_, '_>, condemnation: &Condemnation) -> Result<(), OpError> {
    if work.repo.config.parity.is_none() || !work.repo.store.is_local() {
        return Ok(());
    }
    let packs = condemnation.packs.iter();
    let names = packs.map(|pack| ObjectName::Pack(pack.kind, pack.pack, pack.session));
    let sidecars: Vec<StoreKey> = names.filter_map(|name| sidecar_key(&store_key(&name))).collect();
    for some in sidecars.chunks(DELETED_AT_ONCE) {
        work.repo
            .store
            .remove(some)
            .map_err(store_error("removing parity of packs that are gone"))?;
    }
    Ok(())
}

fn condemnation(repo: &Repo, generation: &SessionId) -> Result<Condemnation, OpError> {
    let name = ObjectName::Condemnation(*generation);
    let bytes = read_whole(&*repo.store, &name, "a list of condemned packs")?;
    Ok(Condemnation::decode(&bytes, generation, &repo.keys, &repo.verifier).map_err(object_error("opening", &name))?)
}
