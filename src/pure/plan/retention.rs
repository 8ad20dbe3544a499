//! Which snapshots of a group a policy keeps, and why; and which plans are too dangerous to be carried out unasked.
//!
//! Of a period the **oldest good** snapshot is kept. So the weekly one is that of the first day of the week and the monthly one that
//! of the first day of the month, if there is one; one snapshot serves several rules; what was chosen once stays chosen; and
//! whatever is published later, however much of it, takes the place of nothing that was there. Periods without a good snapshot
//! do not count.
//!
//! **Suspect** is a complete snapshot with errors, or one with less than half of what the ones before it had: an unmounted source, an
//! emptied bucket. It takes no place from a good one, but stands beside them as long as it would have been chosen, were it good; and
//! the ones that it was measured by are kept with it. The tag [`ACCEPTED`] says that it is right after all: from then on
//! the next ones are measured by it. A source that never had a snapshot without errors is not suspect for having them.

use super::policy::Policy;
use super::reason::{Reason, Rule};
use crate::pure::base::Timestamp;
use crate::pure::id::{KeyId, SessionId, SourceId};
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The tag of a snapshot that is not suspect, whatever it looks like.
pub const ACCEPTED: &str = "accepted";
/// A time that is further ahead than this is still to come.
const FUTURE_NS: i64 = 600_000_000_000;
/// Good ones that a snapshot is measured by.
const MEASURES: usize = 5;
/// Groups up to this size may lose any share at once.
const SMALL_GROUP: usize = 8;

/// A snapshot, as far as keeping it is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub id: SessionId,
    pub source: SourceId,
    /// Who published it, as which number: of two equal times by one writer, the lower number is the older.
    pub writer: (KeyId, u64),
    /// When it was begun, as judged ([`super::times`]).
    pub time: Timestamp,
    /// When it was completed, as judged.
    pub published: Timestamp,
    /// Equal for snapshots with equal roots.
    pub content: [u8; 32],
    pub tags: Vec<String>,
    pub is_partial: bool,
    pub has_errors: bool,
    pub bytes: u64,
    pub entries: u64,
    pub held: Option<Held>,
    /// A running session that relies on it: it could not publish any more if this were dropped.
    pub pinned_by: Option<SessionId>,
    /// The snapshot that was made of this one by changing its tags.
    pub replaced_by: Option<SessionId>,
}

/// That a snapshot must be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// `None`: for ever.
    pub until: Option<Timestamp>,
    pub reason: String,
}

impl Held {
    /// Whether it is not past.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until >= now)
    }
}

/// What a snapshot is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    Good,
    Suspect(Suspicion),
    /// A part of one.
    Partial,
    /// Its time is still to come.
    Future,
    /// Another one is the same with other tags.
    Replaced,
}

/// Why a complete snapshot may not be what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Some of the source could not be read.
    Errors,
    /// It has less than half of the bytes, or of the entries, of those before it.
    Shrunk,
}

impl Suspicion {
    /// Returns it in words.
    pub fn text(self) -> &'static str {
        match self {
            Suspicion::Errors => "some of the source could not be read",
            Suspicion::Shrunk => "less than half of what came before",
        }
    }

    /// Returns the word that programs read.
    pub fn code(self) -> &'static str {
        match self {
            Suspicion::Errors => "errors",
            Suspicion::Shrunk => "shrunk",
        }
    }
}

/// What becomes of a snapshot, with at least one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub id: SessionId,
    pub keep: bool,
    pub reasons: Vec<Reason>,
    pub grade: Grade,
}

impl Decision {
    fn is_complete(&self) -> bool {
        matches!(self.grade, Grade::Good | Grade::Suspect(_) | Grade::Future)
    }
}

/// Decides about the snapshots of a group; returns them oldest first, whatever order they come in.
///
/// Rules are counted in the group; what is newest, suspect or unfinished is asked of each source in it.
pub fn decide(points: &[Point], policy: &Policy, now: Timestamp, zone: &TimeZone) -> Vec<Decision> {
    let mut group = Group::new(points, now);
    group.keep_newest();
    group.keep_last(policy.last.unwrap_or(0));
    group.keep_periods(policy, now, zone);
    group.keep_within(policy, now, zone);
    group.keep_marked(policy, now);
    group.settle_unfinished();
    // It looks at what the others keep.
    group.keep_distinct(policy.last_distinct.unwrap_or(0));
    group.keep_measures();
    group.decisions()
}

/// Returns the sources that would be left without a good snapshot, or where there was none without a complete one, if these were
/// removed.
pub fn left_without(points: &[Point], removed: &HashSet<SessionId>, now: Timestamp) -> Vec<SourceId> {
    let group = Group::new(points, now);
    let mut sources: Vec<SourceId> = Vec::new();
    for of_source in group.sources() {
        let some = |accepted: fn(Grade) -> bool| -> Vec<usize> {
            let mut some = of_source.clone();
            some.retain(|index| accepted(group.grades[*index]));
            some
        };
        let good = some(|grade| grade == Grade::Good);
        let complete = some(|grade| !matches!(grade, Grade::Partial | Grade::Replaced));
        let needed = if good.is_empty() { complete } else { good };
        let is_removed = |index: &usize| removed.contains(&group.points[*index].id);
        if !needed.is_empty() && needed.iter().all(is_removed) {
            sources.push(group.points[needed[0]].source);
        }
    }
    sources.sort_unstable();
    sources
}

/// Why a plan is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No rule keeps anything.
    EmptyPolicy,
    /// The group with this index would have no complete snapshot left. Cannot happen; would be terrible.
    NothingLeft { group: usize },
    /// Of the complete snapshots of the group with this index, too many would go at once.
    TooMany { group: usize, removed: usize, of: usize },
}

/// Looks over the decisions about all groups. Of a group of more than eight complete snapshots, no more than `percent_max` of a
/// hundred may go at once.
pub fn refusals(policy: &Policy, groups: &[Vec<Decision>], percent_max: u32) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if policy.is_empty() {
        refusals.push(Refusal::EmptyPolicy);
    }
    for (group, decisions) in groups.iter().enumerate() {
        let complete = decisions.iter().filter(|decision| decision.is_complete());
        let (kept, removed): (Vec<_>, Vec<_>) = complete.partition(|decision| decision.keep);
        let of = kept.len() + removed.len();
        if kept.is_empty() && of > 0 {
            refusals.push(Refusal::NothingLeft { group });
        }
        let is_too_many = removed.len() as u64 * 100 > of as u64 * u64::from(percent_max);
        if of > SMALL_GROUP && is_too_many {
            let removed = removed.len();
            refusals.push(Refusal::TooMany { group, removed, of });
        }
    }
    refusals
}

/// The snapshots of a group, by index.
struct Group<'p> {
    /// Oldest first.
    points: Vec<&'p Point>,
    grades: Vec<Grade>,
    /// What each suspect one was measured by.
    measures: Vec<Vec<usize>>,
    /// Why each is kept; empty: no reason was found yet.
    kept: Vec<Vec<Reason>>,
    /// Why each is not, where there is more to say than that no rule keeps it.
    not_kept: Vec<Option<Reason>>,
}

impl<'p> Group<'p> {
    fn new(points: &'p [Point], now: Timestamp) -> Group<'p> {
        let mut points: Vec<&Point> = points.iter().collect();
        points.sort_by_key(|point| (point.time, point.published, point.writer, point.id));
        let count = points.len();
        let mut group = Group {
            points,
            grades: vec![Grade::Good; count],
            measures: vec![Vec::new(); count],
            kept: vec![Vec::new(); count],
            not_kept: vec![None; count],
        };
        for source in group.sources() {
            let mut grading = Grading::default();
            group.grade(&source, now, &mut grading);
            if !source.iter().any(|index| group.grades[*index] == Grade::Good) {
                // Errors are usual here.
                let mut grading = Grading {
                    accepts_errors: true,
                    ..Grading::default()
                };
                group.grade(&source, now, &mut grading);
            }
        }
        group
    }

    /// Returns the indices of each source, oldest first.
    fn sources(&self) -> Vec<Vec<usize>> {
        let mut sources: BTreeMap<SourceId, Vec<usize>> = BTreeMap::new();
        for (index, point) in self.points.iter().enumerate() {
            sources.entry(point.source).or_default().push(index);
        }
        sources.into_values().collect()
    }

    fn grade(&mut self, source: &[usize], now: Timestamp, grading: &mut Grading) {
        for &index in source {
            let point = self.points[index];
            self.measures[index].clear();
            self.grades[index] = if point.replaced_by.is_some() {
                Grade::Replaced
            } else if point.time.0 > now.0.saturating_add(FUTURE_NS) {
                Grade::Future
            } else if point.is_partial {
                Grade::Partial
            } else {
                self.grade_complete(index, grading)
            };
        }
    }

    fn grade_complete(&mut self, index: usize, grading: &mut Grading) -> Grade {
        let point = self.points[index];
        if point.tags.iter().any(|tag| tag == ACCEPTED) {
            grading.recent.clear();
            grading.accepts_errors |= point.has_errors;
        } else if point.has_errors && !grading.accepts_errors {
            return Grade::Suspect(Suspicion::Errors);
        } else {
            let is_small = |size: fn(&Point) -> u64| {
                let mut sizes: Vec<u64> = grading.recent.iter().map(|index| size(self.points[*index])).collect();
                sizes.sort_unstable();
                // Of two in the middle, the larger one.
                let median = sizes.get(sizes.len() / 2).copied().unwrap_or(0);
                size(point) < median - median / 2
            };
            if is_small(|point| point.bytes) || is_small(|point| point.entries) {
                self.measures[index].clone_from(&grading.recent);
                return Grade::Suspect(Suspicion::Shrunk);
            }
        }
        grading.recent.push(index);
        if grading.recent.len() > MEASURES {
            grading.recent.remove(0);
        }
        Grade::Good
    }

    fn indices(&self, accepts: fn(Grade) -> bool) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.points.len()).collect();
        indices.retain(|index| accepts(self.grades[*index]));
        indices
    }

    fn good(&self) -> Vec<usize> {
        self.indices(|grade| grade == Grade::Good)
    }

    fn suspects(&self) -> Vec<usize> {
        self.indices(|grade| matches!(grade, Grade::Suspect(_)))
    }

    fn keep(&mut self, index: usize, reason: Reason) {
        self.kept[index].push(reason);
    }

    /// Keeps suspect ones from an index on.
    fn keep_beside(&mut self, from: usize, rule: Rule) {
        for index in self.suspects() {
            if index >= from {
                self.keep(index, Reason::Beside { rule });
            }
        }
    }

    /// The newest good one of each source, and the newest complete one.
    fn keep_newest(&mut self) {
        for accepts in [
            (|grade: Grade| grade == Grade::Good) as fn(Grade) -> bool,
            |grade: Grade| matches!(grade, Grade::Good | Grade::Suspect(_)),
        ] {
            let newest: HashMap<SourceId, usize> = self
                .indices(accepts)
                .into_iter()
                .map(|index| (self.points[index].source, index))
                .collect();
            for index in newest.into_values() {
                if self.kept[index].is_empty() {
                    self.keep(index, Reason::Newest);
                }
            }
        }
    }

    fn keep_last(&mut self, count: u32) {
        if count == 0 {
            return;
        }
        let good = self.good();
        let of = count;
        for (number, index) in (1..=count).zip(good.iter().rev()) {
            self.keep(*index, Reason::Last { number, of });
        }
        let is_full = good.len() >= count as usize;
        let from = if is_full { good[good.len() - count as usize] } else { 0 };
        self.keep_beside(from, Rule::Last);
    }

    fn keep_periods(&mut self, policy: &Policy, now: Timestamp, zone: &TimeZone) {
        let reference = self.reference(now);
        for rule in policy.periods() {
            let unit = rule.unit;
            let of = rule.count.unwrap_or(0);
            let span = rule.within.filter(|span| !span.is_zero());
            if of == 0 && span.is_none() {
                continue;
            }
            let cutoff = span.map(|span| span.before(reference, zone));
            // Of each period: the oldest good one, and the oldest suspect one.
            let mut periods: BTreeMap<_, (Option<usize>, Option<usize>)> = BTreeMap::new();
            for index in 0..self.points.len() {
                let grade = self.grades[index];
                if !matches!(grade, Grade::Good | Grade::Suspect(_)) {
                    continue;
                }
                let period = policy.period(unit, self.points[index].time, zone);
                let (good, suspect) = periods.entry(period).or_default();
                let place = if grade == Grade::Good { good } else { suspect };
                place.get_or_insert(index);
                if chaos!("newest-of-a-period-is-kept") {
                    *place = Some(index);
                }
            }
            let mut number = 0;
            for (period, (good, suspect)) in periods.into_iter().rev() {
                let is_counted = number < of;
                let is_within = cutoff.is_some_and(|cutoff| period.end(unit, zone) > cutoff);
                if let Some(index) = good {
                    if is_counted {
                        number += 1;
                        self.keep(
                            index,
                            Reason::Period {
                                unit,
                                period,
                                number,
                                of,
                            },
                        );
                    }
                    if let Some(span) = span.filter(|_| is_within) {
                        self.keep(index, Reason::PeriodWithin { unit, period, span });
                    }
                }
                if let Some(index) = suspect
                    && (is_counted || is_within)
                    && good.is_none_or(|good| index < good)
                {
                    let rule = Rule::Period(unit);
                    self.keep(index, Reason::Beside { rule });
                }
            }
        }
    }

    /// What spans of time are counted from: the newest snapshot, so that nothing expires when backups stop.
    fn reference(&self, now: Timestamp) -> Timestamp {
        let newest = self.good().last().or(self.suspects().last()).copied();
        newest.map_or(now, |index| self.points[index].time.min(now))
    }

    fn keep_within(&mut self, policy: &Policy, now: Timestamp, zone: &TimeZone) {
        let Some(span) = policy.within.filter(|span| !span.is_zero()) else {
            return;
        };
        let cutoff = span.before(self.reference(now), zone);
        for index in self.indices(|grade| matches!(grade, Grade::Good | Grade::Suspect(_))) {
            if self.points[index].time >= cutoff {
                self.keep(index, Reason::Within { span });
            }
        }
    }

    /// What somebody wants to keep, and what nothing is known about.
    fn keep_marked(&mut self, policy: &Policy, now: Timestamp) {
        for index in 0..self.points.len() {
            let point = self.points[index];
            for tag in policy.tags.iter().filter(|tag| point.tags.contains(tag)) {
                if self.grades[index] != Grade::Replaced {
                    self.keep(index, Reason::Tag(tag.clone()));
                }
            }
            if let Some(held) = point.held.as_ref().filter(|held| held.is_active(now)) {
                self.keep(
                    index,
                    Reason::Held {
                        until: held.until,
                        reason: held.reason.clone(),
                    },
                );
            }
            if let Some(by) = point.pinned_by.filter(|_| !chaos!("pinned-snapshots-are-forgotten")) {
                self.keep(index, Reason::Pinned { by });
            }
            if self.grades[index] == Grade::Future {
                self.keep(index, Reason::NotYet);
            }
            self.not_kept[index] = point.replaced_by.map(|by| Reason::Replaced { by });
        }
    }

    /// Parts of snapshots: forgotten when a complete one is there. Until then the newest is kept, and the largest: the next run
    /// goes on from these two.
    fn settle_unfinished(&mut self) {
        for source in self.sources() {
            let mut open: Vec<usize> = Vec::new();
            for &index in source.iter().filter(|index| self.grades[**index] == Grade::Partial) {
                let complete = source.iter().find(|other| {
                    self.grades[**other] == Grade::Good
                        && self.points[**other].published >= self.points[index].published
                });
                match complete {
                    Some(&complete) => {
                        let by = self.points[complete].id;
                        self.not_kept[index] = Some(Reason::Superseded { by });
                    }
                    None => open.push(index),
                }
            }
            let largest = open.iter().copied().max_by_key(|index| self.points[*index].bytes);
            let Some(&newest) = open.last() else { continue };
            for index in open {
                if index == newest || Some(index) == largest {
                    self.keep(index, Reason::Unfinished);
                } else {
                    let beside = self.points[newest].id;
                    self.not_kept[index] = Some(Reason::Unneeded { beside });
                }
            }
        }
    }

    fn keep_distinct(&mut self, count: u32) {
        if count == 0 {
            return;
        }
        let of = count;
        let good = self.good();
        let points = self.points.clone();
        let content = |at: usize| &points[good[at]].content;
        let mut rows: Vec<usize> = Vec::new();
        let mut end = good.len();
        while end > 0 && rows.len() < count as usize {
            let mut first = end - 1;
            while first > 0 && content(first - 1) == content(end - 1) {
                first -= 1;
            }
            rows.push(first);
            end = first;
        }
        let is_full = rows.len() == count as usize;
        self.keep_beside(if is_full { good[end] } else { 0 }, Rule::Distinct);
        self.keep_measures();
        if let Some(oldest) = rows.last_mut().filter(|_| is_full) {
            // When what lies between has gone, this row goes on to what is kept for other reasons.
            let is_kept = |at: &usize| !self.kept[good[*at]].is_empty();
            let before = (0..end).rev().filter(is_kept);
            if let Some(first) = before.take_while(|at| content(*at) == content(end)).last() {
                *oldest = first;
            }
        }
        for (number, at) in (1..).zip(rows) {
            self.keep(good[at], Reason::Distinct { number, of });
        }
    }

    /// What a suspect one that is kept was measured by, so that it stays suspect.
    fn keep_measures(&mut self) {
        for index in 0..self.points.len() {
            if self.kept[index].is_empty() {
                continue;
            }
            let of = self.points[index].id;
            for measure in self.measures[index].clone() {
                if self.kept[measure].is_empty() {
                    self.keep(measure, Reason::Measure { of });
                }
            }
        }
    }

    fn decisions(self) -> Vec<Decision> {
        let mut decisions = Vec::with_capacity(self.points.len());
        for (((point, grade), kept), not_kept) in self.points.iter().zip(self.grades).zip(self.kept).zip(self.not_kept)
        {
            let keep = !kept.is_empty();
            let reasons = if keep {
                kept
            } else {
                vec![not_kept.unwrap_or(Reason::NoRule)]
            };
            decisions.push(Decision {
                id: point.id,
                keep,
                reasons,
                grade,
            });
        }
        decisions
    }
}

/// What the snapshots of a source are measured by.
#[derive(Default)]
struct Grading {
    /// The last good ones, oldest first.
    recent: Vec<usize>,
    accepts_errors: bool,
}
