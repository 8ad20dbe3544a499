//! Forgetting snapshots: by a policy, or by name. Forgetting writes a mark, `drop/<session>` (format-spec chapter 9.4), and deletes
//! nothing: that is for prune.
//!
//! First everything is decided and can be shown, then it is written. Each mark stands for itself, so a run that dies in between has
//! forgotten some, and the next one forgets the others. What a policy is asked about is [`crate::pure::plan`].

use super::{OpError, Progress};
use crate::pure::base::Timestamp;
use crate::pure::crypto::hash;
use crate::pure::crypto::sign::role;
use crate::pure::format::manifest::{Manifest, Root};
use crate::pure::format::outcome::flag;
use crate::pure::id::{SessionId, SourceId};
use crate::pure::plan::policy::Policy;
use crate::pure::plan::reason::Reason;
use crate::pure::plan::retention::{self, Decision, Grade, Held, Point, Refusal};
use crate::pure::plan::times::{Claim, Clock, Judged, judge_times};
use crate::repo::at_once::at_once;
use crate::repo::index::KnownOutcome;
use crate::repo::marks::KnownHold;
use crate::repo::snapshots::{Broken, Filter, HistoryState, Snapshot, replaced};
use crate::repo::{Repo, RepoError};
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Published so long after it was completed, a snapshot was published again: making a manifest and publishing it takes seconds.
const AGAIN_NS: i64 = 60_000_000_000;
/// Marks that are written before somebody who wants to stop is heard.
const MARKS_AT_ONCE: usize = 64;

/// Which snapshots are to be forgotten.
#[derive(Clone, Debug)]
pub enum Choice {
    /// Those that no rule keeps.
    Policy(Box<Policy>),
    /// Just these. They may be all that a source has only if somebody says so.
    Named {
        snapshots: Vec<SessionId>,
        allow_last: bool,
    },
}

/// What belongs together: what all of these are equal of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupBy {
    /// The identity of the source: its host and its name when it was first backed up.
    pub source: bool,
    /// The name of the source.
    pub name: bool,
    pub host: bool,
}

impl GroupBy {
    /// Snapshots of one source, and only these, are versions of each other.
    pub const SOURCE: GroupBy = GroupBy {
        source: true,
        name: false,
        host: false,
    };
}

/// How to forget.
#[derive(Clone, Debug)]
pub struct Options {
    pub choice: Choice,
    /// Only these are looked at, and so only these can be forgotten. For a policy.
    pub filter: Filter,
    pub group_by: GroupBy,
    /// Of a group of more than eight, how many of a hundred may be forgotten at once.
    pub removal_percent_max: u32,
    pub now: Timestamp,
    /// What days are counted by.
    pub zone: TimeZone,
}

/// A snapshot and what becomes of it.
#[derive(Clone, Debug)]
pub struct Row {
    pub snapshot: Snapshot,
    pub judged: Judged,
    pub decision: Decision,
}

/// Snapshots that were decided about together, oldest first.
#[derive(Clone, Debug)]
pub struct Group {
    /// Host and name of the source of the newest.
    pub host: String,
    pub source: String,
    pub rows: Vec<Row>,
}

impl Group {
    /// Returns how many are forgotten.
    pub fn removed(&self) -> usize {
        self.rows.iter().filter(|row| !row.decision.keep).count()
    }
}

/// What is to be done, and why it is not done, if so.
#[derive(Debug)]
pub struct Plan {
    pub groups: Vec<Group>,
    /// What is against it, and what to do then.
    pub refusals: Vec<(String, String)>,
    pub history: HistoryState,
    now: Timestamp,
    zone: TimeZone,
}

impl Plan {
    /// Fails if what the plan was made from may not be all there is: doubt stops deletion (I-8).
    ///
    /// # Errors
    /// The first gap, or the error of the first object that cannot be used.
    pub fn require_sound(&mut self) -> Result<(), OpError> {
        Ok(self.history.require_sound()?)
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub forgotten: Vec<SessionId>,
    /// Somebody has held these since the plan was made.
    pub held: Vec<SessionId>,
}

/// Decides what to forget, and writes nothing. `history` is what the listing just before has found.
///
/// # Errors
/// When the key may not forget, no rule says what to keep, or the repository cannot be read.
pub fn plan(repo: &Repo, mut history: HistoryState, options: &Options) -> Result<Plan, OpError> {
    repo.require(role::FORGET, "forget snapshots")?;
    if let Choice::Policy(policy) = &options.choice
        && policy.is_empty()
    {
        return Err(OpError::Usage(
            "no rule says what to keep, so everything would be forgotten".into(),
        ));
    }
    let known = Known::read(repo, &mut history.broken, options.now)?;
    let (groups, refusals) = match &options.choice {
        Choice::Policy(policy) => known.by_policy(policy, options),
        Choice::Named { snapshots, allow_last } => known.by_name(snapshots, *allow_last, options)?,
    };
    Ok(Plan {
        groups,
        refusals,
        history,
        now: options.now,
        zone: options.zone.clone(),
    })
}

/// Forgets what a plan says. What somebody has held meanwhile is left, and if something that the plan keeps was forgotten by
/// somebody else meanwhile, nothing is forgotten.
///
/// # Errors
/// When the plan was refused, the history is in doubt, the plan is out of date, or a mark cannot be written; then some may have
/// been.
pub fn carry_out(repo: &Repo, mut plan: Plan, progress: &Progress) -> Result<Report, OpError> {
    plan.require_sound()?;
    if let Some((what, hint)) = plan
        .refusals
        .first()
        .cloned()
        .filter(|_| !chaos!("refusals-are-no-matter"))
    {
        return Err(OpError::Refused { what, hint });
    }
    let rows = || plan.groups.iter().flat_map(|group| &group.rows);
    if rows().all(|row| row.decision.keep) {
        return Ok(Report::default());
    }
    let (dropped, held) = marks_now(repo, plan.now)?;
    if rows().any(|row| row.decision.keep && dropped.contains(&row.snapshot.id)) {
        return Err(OpError::Refused {
            what: "somebody else has forgotten snapshots since this was planned".into(),
            hint: "run it again".into(),
        });
    }
    let mut report = Report::default();
    // Suspect ones first, and the others when these are gone: after a run that died in between, a suspect one must not be there
    // without what it was measured by.
    let mut doomed: [Vec<(SessionId, String)>; 2] = Default::default();
    for row in rows().filter(|row| !row.decision.keep) {
        let id = row.snapshot.id;
        if held.contains(&id) && !chaos!("held-meanwhile-is-forgotten") {
            report.held.push(id);
        } else if !dropped.contains(&id) {
            let reasons: Vec<String> = row
                .decision
                .reasons
                .iter()
                .map(|reason| reason.text(&plan.zone))
                .collect();
            let is_suspect = matches!(row.decision.grade, Grade::Suspect(_));
            doomed[usize::from(!is_suspect)].push((id, reasons.join(", ")));
        }
    }
    let drop = |(session, reason): &(SessionId, String)| match repo.drop_snapshot(session, reason) {
        // A mark takes a little space, and is what frees much.
        Err(error) if error.is_full() => {
            repo.store.give_up_reserve();
            repo.drop_snapshot(session, reason)
        }
        done => done,
    };
    for some in doomed.iter().flat_map(|doomed| doomed.chunks(MARKS_AT_ONCE)) {
        if progress.is_cancelled() {
            return Err(RepoError::Interrupted.into());
        }
        for result in at_once(some, drop) {
            result?;
        }
        report.forgotten.extend(some.iter().map(|(session, _)| *session));
    }
    repo.sync_marks()?;
    Ok(report)
}

/// Returns what is dropped and what is held as of now.
fn marks_now(repo: &Repo, now: Timestamp) -> Result<(HashSet<SessionId>, HashSet<SessionId>), OpError> {
    repo.sync_marks()?;
    let outcomes = repo.index.outcomes()?.into_iter();
    let dropped = outcomes.filter(|known| known.is_dropped()).map(|known| known.session);
    let dropped = dropped.collect();
    let mut broken = Broken::new();
    let holds = repo.holds(&mut broken)?;
    if let Some((_, error)) = broken.pop() {
        return Err(error.into());
    }
    let held = holds.iter().filter(|hold| hold.is_active(now));
    Ok((dropped, held.map(|hold| hold.session).collect()))
}

/// The snapshots of a repository, and what their fate depends on.
struct Known {
    snapshots: Vec<Snapshot>,
    /// Where each is.
    places: HashMap<SessionId, usize>,
    judged: HashMap<SessionId, Judged>,
    points: HashMap<SessionId, Point>,
}

impl Known {
    fn read(repo: &Repo, broken: &mut Broken, now: Timestamp) -> Result<Known, OpError> {
        let snapshots = repo.snapshots_noting(broken)?;
        let mut named = Broken::new();
        let holds = repo.holds(&mut named)?;
        // What is dropped as well was looked at before.
        named.retain(|(name, _)| !broken.iter().any(|(other, _)| other == name));
        broken.append(&mut named);
        let pinned = repo.pinned(now)?;
        let claims = claims(repo, &snapshots)?;
        let numbers: HashMap<SessionId, u64> = claims.iter().map(|claim| (claim.id, claim.sequence)).collect();
        let judged = judge_times(&claims, now);
        let replaced = replaced(&snapshots);
        let mut points = HashMap::with_capacity(snapshots.len());
        for snapshot in &snapshots {
            let id = snapshot.id;
            let Some(judged) = judged.get(&id) else {
                return Err(RepoError::Internal(format!("snapshot {id} has no outcome")).into());
            };
            let roots = &snapshot.manifest.roots;
            let sum = |part: fn(&Root) -> u64| roots.iter().fold(0u64, |sum, root| sum.saturating_add(part(root)));
            let point = Point {
                id,
                source: snapshot.manifest.source.id,
                writer: (snapshot.kid, numbers.get(&id).copied().unwrap_or(0)),
                time: judged.time,
                published: judged.published,
                content: content(&snapshot.manifest),
                tags: snapshot.manifest.tags.clone(),
                is_partial: snapshot.is_partial(),
                has_errors: snapshot.flags & flag::ERRORS != 0,
                bytes: sum(|root| root.bytes),
                entries: sum(|root| root.entries),
                held: longest(&holds, &id, now),
                pinned_by: pinned.get(&id).copied(),
                replaced_by: replaced.get(&id).copied(),
            };
            points.insert(id, point);
        }
        let places = (0..).zip(&snapshots).map(|(place, snapshot)| (snapshot.id, place));
        Ok(Known {
            places: places.collect(),
            snapshots,
            judged,
            points,
        })
    }

    fn by_policy(&self, policy: &Policy, options: &Options) -> (Vec<Group>, Vec<(String, String)>) {
        let by = options.group_by;
        let mut members: BTreeMap<_, Vec<&Snapshot>> = BTreeMap::new();
        for snapshot in self
            .snapshots
            .iter()
            .filter(|snapshot| options.filter.accepts(snapshot))
        {
            let source = &snapshot.manifest.source;
            let key = (
                by.name.then_some(&source.label),
                by.host.then_some(&source.host),
                by.source.then_some(source.id),
            );
            members.entry(key).or_default().push(snapshot);
        }
        let mut groups = Vec::new();
        let mut decided = Vec::new();
        for members in members.into_values() {
            let points: Vec<Point> = members.iter().map(|member| self.points[&member.id].clone()).collect();
            let decisions = retention::decide(&points, policy, options.now, &options.zone);
            groups.push(self.group(decisions.clone()));
            decided.push(decisions);
        }
        let refusals = retention::refusals(policy, &decided, options.removal_percent_max)
            .into_iter()
            .map(|refusal| refusal_text(refusal, &groups))
            .collect();
        groups.sort_by(|a: &Group, b| (&a.host, &a.source).cmp(&(&b.host, &b.source)));
        (groups, refusals)
    }

    fn by_name(
        &self,
        named: &[SessionId],
        allow_last: bool,
        options: &Options,
    ) -> Result<(Vec<Group>, Vec<(String, String)>), OpError> {
        let removed: HashSet<SessionId> = named.iter().copied().collect();
        let mut refusals = Vec::new();
        let mut by_source: BTreeMap<SourceId, Vec<Decision>> = BTreeMap::new();
        for snapshot in self.snapshots.iter().filter(|snapshot| removed.contains(&snapshot.id)) {
            let point = &self.points[&snapshot.id];
            let mut decision = Decision {
                id: point.id,
                keep: false,
                reasons: vec![Reason::Named],
                grade: Grade::Good,
            };
            if let Some(held) = &point.held {
                decision.keep = true;
                decision.reasons = vec![Reason::Held {
                    until: held.until,
                    reason: held.reason.clone(),
                }];
                let id = point.id.short();
                let why = decision.reasons[0].text(&options.zone);
                let hint = format!("`larder snapshot release {id}` ends that");
                refusals.push((format!("snapshot {id} is {why}"), hint));
            }
            by_source.entry(point.source).or_default().push(decision);
        }
        if let Some(missing) = named.iter().find(|id| !self.points.contains_key(id)) {
            return Err(RepoError::NoSuchSnapshot(missing.to_string()).into());
        }
        let all: Vec<Point> = self.points.values().cloned().collect();
        let left_without = retention::left_without(&all, &removed, options.now);
        for source in left_without.iter().filter(|_| !allow_last) {
            let of_source = |snapshot: &&Snapshot| snapshot.manifest.source.id == *source;
            let label = self
                .snapshots
                .iter()
                .find(of_source)
                .map_or("", |snapshot| &snapshot.manifest.source.label);
            refusals.push((
                format!("no good snapshot of {label} would be left"),
                "say --yes-remove-last to forget the last one".into(),
            ));
        }
        let groups = by_source.into_values().map(|decisions| self.group(decisions)).collect();
        Ok((groups, refusals))
    }

    fn group(&self, decisions: Vec<Decision>) -> Group {
        let rows: Vec<Row> = decisions
            .into_iter()
            .map(|decision| Row {
                snapshot: self.snapshots[self.places[&decision.id]].clone(),
                judged: self.judged[&decision.id],
                decision,
            })
            .collect();
        let source = rows.last().map(|row| &row.snapshot.manifest.source);
        Group {
            host: source.map_or_else(String::new, |source| source.host.clone()),
            source: source.map_or_else(String::new, |source| source.label.clone()),
            rows,
        }
    }
}

fn refusal_text(refusal: Refusal, groups: &[Group]) -> (String, String) {
    match refusal {
        Refusal::EmptyPolicy => (
            "no rule says what to keep".into(),
            "give at least one --keep option".into(),
        ),
        Refusal::NothingLeft { group } => (
            format!("nothing of {} would be left", groups[group].source),
            "this is a defect of larder: please report it".into(),
        ),
        Refusal::TooMany { group, removed, of } => (
            format!(
                "{removed} of the {of} snapshots of {} would be forgotten at once",
                groups[group].source
            ),
            "look at the plan with --dry-run; if that is what you want, say --yes-remove-many".into(),
        ),
    }
}

/// What all outcomes of the repository say of their times, and what the store says.
fn claims(repo: &Repo, snapshots: &[Snapshot]) -> Result<Vec<Claim>, OpError> {
    let by_id: HashMap<SessionId, &Snapshot> = snapshots.iter().map(|snapshot| (snapshot.id, snapshot)).collect();
    let received = repo.received()?;
    let claim = |outcome: KnownOutcome| {
        let again = by_id
            .get(&outcome.session)
            .filter(|snapshot| snapshot.pins.len() == 1 && repo.verifier.has_role(&outcome.kid, role::FORGET))
            .map(|snapshot| snapshot.manifest.end)
            .filter(|end| outcome.created.0.saturating_sub(end.0) > AGAIN_NS);
        Claim {
            id: outcome.session,
            kid: outcome.kid,
            sequence: outcome.sequence,
            start: outcome.start.unwrap_or(outcome.created),
            created: outcome.created,
            received: received.get(&outcome.session).copied(),
            again,
        }
    };
    Ok(repo.index.outcomes()?.into_iter().map(claim).collect())
}

/// Of the holds on a snapshot that are not past, the one that lasts longest.
fn longest(holds: &[KnownHold], id: &SessionId, now: Timestamp) -> Option<Held> {
    holds
        .iter()
        .filter(|hold| hold.session == *id && hold.is_active(now))
        .max_by_key(|hold| hold.lasts())
        .map(|hold| Held {
            until: hold.until,
            reason: hold.reason.clone(),
        })
}

/// Names what the roots hold: equal for equal trees under equal paths.
fn content(manifest: &Manifest) -> [u8; 32] {
    let mut roots: Vec<Vec<u8>> = manifest
        .roots
        .iter()
        .map(|root| {
            let mut bytes = (root.path.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(&root.path);
            bytes.extend_from_slice(root.node.as_bytes());
            bytes.extend_from_slice(&[root.kind as u8, root.height]);
            bytes
        })
        .collect();
    roots.sort_unstable();
    hash(&roots.concat())
}

impl Row {
    /// Says whether the time that the snapshot claims is not the one that it is counted by.
    pub fn is_clock_wrong(&self) -> bool {
        self.judged.clock != Clock::Right
    }
}
