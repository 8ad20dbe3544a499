//! Which index runs there are, and which of them count (format-spec chapters 8 and 9.2.2).

use super::error::RepoError;
use super::open::{Repo, list_names};
use super::snapshots::HistoryState;
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::{OutcomeKind, RunDescriptor};
use crate::pure::format::run::part::run_name;
use crate::pure::id::{PackId, SessionId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A run as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRun {
    /// 0: one object, written by the session that stored what it describes. Above: united from others, in parts.
    pub level: u8,
    pub session: SessionId,
    /// Among the L0 runs of the session; 0 otherwise.
    pub number: u32,
    /// Its objects with their sizes in bytes, sorted by name.
    pub objects: Vec<(ObjectName, u64)>,
}

impl ListedRun {
    /// Returns the name under which the index, outcomes and reports know it.
    pub fn name(&self) -> String {
        match self.level {
            0 => ObjectName::Run(self.session, self.number).to_string(),
            level => run_name(level, &self.session),
        }
    }

    /// Bytes of all objects.
    pub fn size(&self) -> u64 {
        self.objects.iter().map(|(_, size)| size).sum()
    }
}

/// Runs that count, as a listing and the outcomes together say.
#[derive(Debug, Default)]
pub struct ValidRuns {
    /// They count, they are there as a whole, and none that does has absorbed them: all that has to be read.
    pub tops: Vec<ListedRun>,
    /// They count and are there, and another one of those has absorbed them.
    pub absorbed: Vec<ListedRun>,
    /// No outcome accepts them, or not like this. That of their session may not have been there yet: see `ended`.
    pub not_accepted: Vec<ListedRun>,
    /// The sessions that have said, or of which somebody has said, what is accepted of them.
    pub ended: HashSet<SessionId>,
    /// Accepted by an outcome, neither there nor absorbed by one that is.
    pub missing: Vec<String>,
    /// What outcomes say of the runs of level 1 and above, by name.
    pub descriptors: HashMap<String, RunDescriptor>,
}

impl ValidRuns {
    /// Returns the names of all L0 runs and others that a run has absorbed, those absorbed by the ones that it absorbed among them,
    /// and the packs that were left out on the way.
    pub fn absorbed_by(&self, name: &str) -> (HashSet<String>, HashSet<PackId>) {
        let (mut names, mut dropped) = (HashSet::new(), HashSet::new());
        let mut open = vec![name];
        while let Some(descriptor) = open.pop().and_then(|name| self.descriptors.get(name)) {
            dropped.extend(descriptor.dropped_packs.iter().copied());
            for input in &descriptor.inputs {
                if names.insert(input.clone()) && self.descriptors.contains_key(input) {
                    open.push(input);
                }
            }
        }
        (names, dropped)
    }
}

impl Repo {
    /// Lists `idx/`, and what belongs together as one run. Whether it counts is another matter.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn list_runs(&self) -> Result<Vec<ListedRun>, RepoError> {
        let mut runs: BTreeMap<(u8, SessionId, u32), Vec<(ObjectName, u64)>> = BTreeMap::new();
        for (name, row) in list_names(&*self.store, "idx/")? {
            let run = match &name {
                ObjectName::Run(session, number) => (0, *session, *number),
                ObjectName::RunPart(level, session, _) => (*level, *session, 0),
                _ => continue,
            };
            runs.entry(run).or_default().push((name, row.size));
        }
        let listed = |((level, session, number), objects)| ListedRun {
            level,
            session,
            number,
            objects,
        };
        Ok(runs.into_iter().map(listed).collect())
    }

    /// Lists `idx/` and sorts the runs into those that count and those that do not. Needs the outcomes to be in sync.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn valid_runs(&self) -> Result<ValidRuns, RepoError> {
        // Before the listing: whatever an outcome accepts was durable before it, so the listing has it.
        let accepted = self.accepted_runs()?;
        let valid = sort_runs(accepted, self.list_runs()?);
        if valid.missing.is_empty() || chaos!("short-listing-is-believed") {
            return Ok(valid);
        }
        // It may have been absorbed by a run that was made since; and a bad listing must not pass for a loss (I-8).
        self.sync_outcomes(&mut HistoryState::default())?;
        Ok(sort_runs(self.accepted_runs()?, self.list_runs()?))
    }

    fn accepted_runs(&self) -> Result<Accepted, RepoError> {
        let voided = self.voided()?;
        let mut accepted = Accepted {
            ended: voided.clone(),
            ..Accepted::default()
        };
        for known in self.index.outcomes()? {
            accepted.ended.insert(known.session);
            // Nothing of a voided session is accepted, whatever its outcome says.
            if voided.contains(&known.session) {
                continue;
            }
            accepted.level0.push((known.session, known.accepted));
            if known.kind == OutcomeKind::Maintenance
                && let Some(stored) = self.stored_outcome(&known.session)?
                && let Some(descriptor) = stored.outcome.run
            {
                let name = run_name(descriptor.level, &known.session);
                accepted.descriptors.insert(name, descriptor);
            }
        }
        Ok(accepted)
    }
}

/// What the outcomes accept.
#[derive(Default)]
struct Accepted {
    /// Inclusive ranges of numbers of L0 runs.
    level0: Vec<(SessionId, Vec<(u32, u32)>)>,
    descriptors: HashMap<String, RunDescriptor>,
    ended: HashSet<SessionId>,
}

impl Accepted {
    fn names(&self) -> HashSet<String> {
        let level0 = self.level0.iter().flat_map(|(session, ranges)| {
            let numbers = ranges.iter().flat_map(|(first, last)| *first..=*last);
            numbers.map(|number| ObjectName::Run(*session, number).to_string())
        });
        level0.chain(self.descriptors.keys().cloned()).collect()
    }

    /// The objects of a run of level 1 and above are those that its outcome states. Their hashes are compared when they are read.
    fn is_whole(&self, run: &ListedRun) -> bool {
        let Some(descriptor) = self.descriptors.get(&run.name()) else {
            return run.level == 0;
        };
        descriptor.parts.iter().all(|(suffix, size, _)| {
            let name = ObjectName::RunPart(run.level, run.session, suffix.clone());
            run.objects.iter().any(|object| *object == (name.clone(), *size))
        })
    }
}

fn sort_runs(accepted: Accepted, listed: Vec<ListedRun>) -> ValidRuns {
    let mut missing = accepted.names();
    let mut valid = ValidRuns::default();
    let mut there = Vec::new();
    for run in listed {
        let name = run.name();
        if !missing.contains(&name) && !chaos!("every-run-counts") {
            valid.not_accepted.push(run);
        } else if accepted.is_whole(&run) {
            missing.remove(&name);
            there.push(run);
        }
    }
    valid.descriptors = accepted.descriptors;
    valid.ended = accepted.ended;
    // One without parts is no run: a repair says which runs its own of level 0 stand for (format-spec chapter 9.2.2).
    let is_replacement = |name: &&String| valid.descriptors.get(*name).is_some_and(|run| run.parts.is_empty());
    let replacements: Vec<String> = missing.iter().filter(is_replacement).cloned().collect();
    missing.retain(|name| !replacements.contains(name));
    let united = there.iter().filter(|run| run.level > 0).map(ListedRun::name);
    let mut absorbed = HashSet::new();
    for name in united.chain(replacements) {
        let (names, _) = valid.absorbed_by(&name);
        // Whoever absorbs itself, over however many others, would leave none of them.
        if !names.contains(&name) {
            absorbed.extend(names);
        }
    }
    (valid.absorbed, valid.tops) = there.into_iter().partition(|run| absorbed.contains(&run.name()));
    valid.missing = missing.into_iter().filter(|name| !absorbed.contains(name)).collect();
    valid.missing.sort_unstable();
    valid
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::id::ObjectHash;

    fn sid(byte: u8) -> SessionId {
        SessionId([byte; 16])
    }

    fn l0(byte: u8) -> ListedRun {
        ListedRun {
            level: 0,
            session: sid(byte),
            number: 0,
            objects: vec![(ObjectName::Run(sid(byte), 0), 100)],
        }
    }

    fn compacted(level: u8, byte: u8) -> ListedRun {
        let part = |suffix: &str| (ObjectName::RunPart(level, sid(byte), suffix.into()), 100);
        ListedRun {
            level,
            session: sid(byte),
            number: 0,
            objects: vec![part("p0000"), part("s0000")],
        }
    }

    fn accepted(level0: &[u8], compacted: &[(u8, u8, &[String])]) -> Accepted {
        let part = |suffix: &str| (suffix.to_owned(), 100, ObjectHash([0; 32]));
        Accepted {
            level0: level0.iter().map(|byte| (sid(*byte), vec![(0, 0)])).collect(),
            descriptors: compacted
                .iter()
                .map(|(level, byte, inputs)| {
                    let descriptor = RunDescriptor {
                        level: *level,
                        parts: vec![part("p0000"), part("s0000")],
                        inputs: inputs.to_vec(),
                        dropped_packs: vec![PackId([*byte; 16])],
                    };
                    (run_name(*level, &sid(*byte)), descriptor)
                })
                .collect(),
            ended: level0.iter().map(|byte| sid(*byte)).collect(),
        }
    }

    fn names(runs: &[ListedRun]) -> Vec<String> {
        runs.iter().map(ListedRun::name).collect()
    }

    #[test]
    fn what_a_run_that_is_there_has_absorbed_need_not_be_there() {
        let inputs = [l0(1).name(), l0(2).name()];
        let says = || accepted(&[1, 2, 3], &[(1, 9, &inputs)]);
        let valid = sort_runs(says(), vec![l0(2), l0(3), compacted(1, 9)]);
        assert_eq!(names(&valid.tops), [l0(3).name(), compacted(1, 9).name()]);
        assert_eq!(names(&valid.absorbed), [l0(2).name()]);
        assert_eq!(valid.missing, [] as [String; 0]);

        let valid = sort_runs(says(), vec![l0(2), l0(3)]);
        assert_eq!(names(&valid.tops), [l0(2).name(), l0(3).name()]);
        assert_eq!(valid.missing, [l0(1).name(), compacted(1, 9).name()]);
    }

    #[test]
    fn a_run_without_one_of_its_parts_absorbs_nothing() {
        let inputs = [l0(1).name()];
        let mut torn = compacted(1, 9);
        torn.objects.pop();
        let valid = sort_runs(accepted(&[1], &[(1, 9, &inputs)]), vec![l0(1), torn.clone()]);
        assert_eq!(names(&valid.tops), [l0(1).name()]);
        assert_eq!(valid.missing, [torn.name()]);
        let mut other = compacted(1, 9);
        other.objects[0].1 += 1;
        let valid = sort_runs(accepted(&[1], &[(1, 9, &inputs)]), vec![l0(1), other]);
        assert_eq!(valid.missing, [torn.name()], "one of another size is none");
    }

    #[test]
    fn absorbing_reaches_through_runs_that_are_gone() {
        let (first, second) = ([l0(1).name()], [compacted(1, 8).name(), l0(2).name()]);
        let says = accepted(&[1, 2], &[(1, 8, &first), (2, 9, &second)]);
        let valid = sort_runs(says, vec![compacted(2, 9)]);
        assert_eq!(names(&valid.tops), [compacted(2, 9).name()]);
        assert_eq!(valid.missing, [] as [String; 0]);
        let (names, dropped) = valid.absorbed_by(&compacted(2, 9).name());
        assert_eq!(names.len(), 3);
        assert_eq!(dropped.len(), 2);
    }

    #[test]
    fn runs_that_absorb_each_other_absorb_nothing() {
        let (first, second) = ([compacted(1, 9).name()], [compacted(1, 8).name()]);
        let says = || accepted(&[], &[(1, 8, &first), (1, 9, &second)]);
        assert_eq!(sort_runs(says(), Vec::new()).missing.len(), 2);
        let valid = sort_runs(says(), vec![compacted(1, 8), compacted(1, 9)]);
        assert_eq!(valid.tops.len(), 2, "and neither hides the other");
    }

    #[test]
    fn what_no_outcome_accepts_does_not_count() {
        let valid = sort_runs(accepted(&[1], &[]), vec![l0(1), l0(2), compacted(1, 9)]);
        assert_eq!(names(&valid.not_accepted), [l0(2).name(), compacted(1, 9).name()]);
        assert_eq!(names(&valid.tops), [l0(1).name()]);
    }
}
