//! Uniting index runs (format-spec chapter 8.3), so that there are few, and so that they say no more of what is gone. What was united
//! is removed much later, by tidying: who has listed it may still be reading.

use super::Work;
pub use super::merge::PartSizes;
use super::merge::{Merged, Merger, Trouble};
use super::survey::{ListedPack, all_condemned};
use crate::edge::host;
use crate::edge::store::Failure;
use crate::ops::{OpError, Progress};
use crate::pure::crypto::hash;
use crate::pure::format::FormatError;
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::RunDescriptor;
use crate::pure::format::run::part::{self, PartContent, PartIdentity};
use crate::pure::format::session::SessionRole;
use crate::pure::id::{ObjectHash, PackId};
use crate::pure::plan::compact::{self, Compaction, Described, RunSize};
use crate::repo::at_once::at_once;
use crate::repo::compacted::CompactedRun;
use crate::repo::error::{object_error, store_error};
use crate::repo::index::PackState;
use crate::repo::open::{create_new, store_key};
use crate::repo::runs::{ListedRun, ValidRuns};
use crate::repo::session::{Maintained, Session};
use crate::repo::snapshots::HistoryState;
use crate::repo::{Repo, RepoError};
use std::collections::HashSet;
use std::time::Instant;

/// When runs are united, and into what.
#[derive(Clone, Copy, Debug)]
pub struct Uniting {
    /// Runs of level 0 that are enough.
    pub level_0_runs: usize,
    pub sizes: PartSizes,
}

impl Default for Uniting {
    fn default() -> Uniting {
        Uniting {
            level_0_runs: compact::LEVEL_0_RUNS,
            sizes: PartSizes::DEFAULT,
        }
    }
}

/// Unites runs if it is worth it, or says how many. `listed` are the packs that there are.
pub(super) fn run(work: &mut Work<'_, '_>, listed: &[ListedPack]) -> Result<(), OpError> {
    let repo = work.repo;
    let described = describe(repo, listed)?;
    let level_0_runs = work.options.uniting.level_0_runs;
    let Some(chosen) = choose(&repo.valid_runs()?, &described, level_0_runs) else {
        return Ok(());
    };
    if work.options.dry_run {
        work.report.runs_united = chosen.inputs.len() as u64;
        return Ok(());
    }
    work.progress.set_current("uniting the index");
    // For the number of the session's outcome, and for what is united.
    repo.sync_outcomes(&mut HistoryState::default())?;
    let session = Session::begin(repo, None, SessionRole::Compact, work.options.uploads, Instant::now())?;
    // Listed again: this session is registered now, and has acknowledged what is condemned.
    let valid = repo.valid_runs()?;
    let Some(chosen) = choose(&valid, &described, level_0_runs) else {
        session.abandon();
        return Ok(());
    };
    let inputs: Vec<&ListedRun> = chosen.inputs.iter().map(|place| &valid.tops[*place]).collect();
    match unite(work, &session, chosen.level, &inputs, &valid) {
        Ok(descriptor) => {
            work.report.runs_united = inputs.len() as u64;
            publish(session, descriptor)
        }
        Err(Trouble::Disagree(pack)) => {
            session.abandon();
            work.report
                .damaged_runs
                .push(format!("two index runs, which say different things of pack {pack},"));
            Ok(())
        }
        Err(Trouble::Disk(source)) => {
            session.abandon();
            Err(super::mark::no_room(source))
        }
        Err(Trouble::Sink(error)) => {
            session.abandon();
            Err(error)
        }
    }
}

fn publish(mut session: Session<'_>, descriptor: RunDescriptor) -> Result<(), OpError> {
    let id = session.id();
    let durable = match session.make_durable() {
        Ok(durable) => durable,
        Err(error) => {
            session.abandon();
            return Err(error.into());
        }
    };
    let with = Maintained {
        run: Some(descriptor),
        ..Maintained::default()
    };
    match session.publish_maintenance(durable, with)? {
        true => Ok(()),
        false => Err(RepoError::Fenced(id).into()),
    }
}

fn choose(valid: &ValidRuns, described: &Described, level_0_runs: usize) -> Option<Compaction> {
    let sizes: Vec<RunSize> = valid
        .tops
        .iter()
        .map(|run| RunSize {
            level: run.level,
            bytes: run.size(),
        })
        .collect();
    compact::choose(&sizes, described, level_0_runs)
}

/// Counts what the runs describe and what of it is gone, as far as the index and a listing tell. Nothing depends on it but whether the
/// index is written anew.
fn describe(repo: &Repo, listed: &[ListedPack]) -> Result<Described, OpError> {
    let condemned = all_condemned(repo)?;
    let is_there = |pack: &PackId| listed.binary_search_by_key(pack, |listed| listed.pack).is_ok();
    let mut described = Described::default();
    repo.index.packs(&mut |info| {
        if info.state != PackState::Gone {
            described.packs += 1;
            described.gone += u64::from(condemned.contains(&info.pack) && !is_there(&info.pack));
        }
    })?;
    for generation in repo.sync_condemned()? {
        let packs = repo.index.condemned_by(&generation)?;
        described.condemnations += usize::from(!packs.iter().any(is_there));
    }
    Ok(described)
}

/// Reads the inputs from the repository, and writes what they say together.
fn unite(
    work: &mut Work<'_, '_>,
    session: &Session<'_>,
    level: u8,
    inputs: &[&ListedRun],
    valid: &ValidRuns,
) -> Result<RunDescriptor, Trouble<OpError>> {
    let Work {
        repo,
        options,
        progress,
        ..
    } = work;
    let mut merger = Merger::new(&repo.state_dir);
    for run in inputs {
        if progress.is_cancelled() {
            return Err(Trouble::Sink(OpError::Interrupted));
        }
        take_in(repo, &mut merger, run, valid)?;
    }
    let dropped = gone(repo, merger.packs().collect()).map_err(Trouble::Sink)?;
    let mut parts = Parts {
        repo,
        progress,
        identity: PartIdentity {
            kid: repo.kid,
            created: host::now(),
            level,
            session: session.id(),
            number: 0,
        },
        numbers: [0; 3],
        written: Vec::new(),
    };
    let Merged { chunks, dropped } =
        merger.finish(&dropped, &options.uniting.sizes, &mut |content| parts.write(content))?;
    work.report.chunks_united = chunks;
    Ok(RunDescriptor {
        level,
        parts: parts.written,
        inputs: inputs.iter().map(|run| run.name()).collect(),
        dropped_packs: dropped,
    })
}

fn take_in(repo: &Repo, merger: &mut Merger, run: &ListedRun, valid: &ValidRuns) -> Result<(), Trouble<OpError>> {
    let sink = |error: RepoError| Trouble::Sink(error.into());
    if run.level == 0 {
        let (_, content) = repo.fetch_run(run).map_err(sink)?;
        let mut input = merger.begin(&content)?;
        input.add(&content.chunks, &content.deltas).map_err(Trouble::Disk)?;
        merger.end(input);
        return Ok(());
    }
    let mut parts = CompactedRun::open(repo, run, valid).map_err(sink)?;
    let head = parts.take_head();
    let mut input = merger.begin(&head)?;
    while let Some((chunks, deltas)) = parts.next_part(repo, &head).map_err(sink)? {
        input.add(&chunks, &deltas).map_err(Trouble::Disk)?;
    }
    merger.end(input);
    Ok(())
}

/// Returns those of the packs that are condemned *and* absent: each was asked for by name. Of one that is still there a sweep may have
/// to copy something out, and finds it only through the index.
fn gone(repo: &Repo, packs: Vec<ObjectName>) -> Result<HashSet<PackId>, OpError> {
    let condemned = all_condemned(repo)?;
    let is_condemned = |name: &ObjectName| matches!(name, ObjectName::Pack(_, pack, _) if condemned.contains(pack));
    let asked: Vec<ObjectName> = packs.into_iter().filter(is_condemned).collect();
    let answers = at_once(&asked, |name| match repo.store.stat(&store_key(name)) {
        Ok(_) => Ok(false),
        Err(error) if error.class == Failure::NotFound => Ok(true),
        Err(error) => Err(store_error("looking for a condemned pack")(error)),
    });
    let mut gone = HashSet::new();
    for (name, answer) in asked.iter().zip(answers) {
        if let (true, ObjectName::Pack(_, pack, _)) = (answer?, name) {
            gone.insert(*pack);
        }
    }
    Ok(gone)
}

/// Where the parts of the new run go.
struct Parts<'a> {
    repo: &'a Repo,
    progress: &'a Progress,
    identity: PartIdentity,
    /// Of the next part with slots, packs, chunks.
    numbers: [u32; 3],
    written: Vec<(String, u64, ObjectHash)>,
}

impl Parts<'_> {
    /// Seals a part, sees that it opens to the same again (I-9), and stores it.
    fn write(&mut self, content: PartContent) -> Result<(), OpError> {
        if self.progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        let repo = self.repo;
        let number = match &content {
            PartContent::Slots { .. } => &mut self.numbers[0],
            PartContent::Packs { .. } => &mut self.numbers[1],
            PartContent::Chunks { .. } => &mut self.numbers[2],
        };
        let identity = PartIdentity {
            number: *number,
            ..self.identity
        };
        *number += 1;
        let failed = |error: FormatError| object_error("sealing", "a part of an index run")(error);
        let (suffix, bytes) =
            part::encode(&content, &identity, &repo.keys, &repo.signer, host::random()).map_err(failed)?;
        let name = ObjectName::RunPart(identity.level, identity.session, suffix.clone());
        match part::decode(&bytes, &name.to_string(), &repo.keys, &repo.verifier) {
            Ok(opened) if opened == (identity, content) => {}
            Ok(_) => return Err(RepoError::Internal(format!("{name} opens to something else")).into()),
            Err(error) => return Err(failed(error).into()),
        }
        self.written
            .push((suffix, bytes.len() as u64, ObjectHash(hash(&bytes))));
        Ok(create_new(&*repo.store, &name, bytes, "a part of an index run")?)
    }
}
