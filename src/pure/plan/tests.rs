//! Retention over simulated years, against references that are written in another way; clocks that lie; floods; properties.

use super::policy::{Policy, Span, UNLIMITED, Unit, timestamp};
use super::reason::Reason;
use super::retention::*;
use super::times::{Claim, Clock, Judged, judge_times};
use crate::pure::base::Timestamp;
use crate::pure::id::{KeyId, SessionId, SourceId};
use jiff::civil::{Date, Weekday, date};
use jiff::tz::TimeZone;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap, HashSet};

const MINUTE: i64 = 60_000_000_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Two o'clock comes twice in autumn and not at all in spring.
fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn at(day: Date, hour: i8, zone: &TimeZone) -> Timestamp {
    timestamp(day.at(hour, 0, 0, 0).to_zoned(zone.clone()).unwrap().timestamp())
}

fn id(number: u64) -> SessionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    SessionId(id)
}

/// A good snapshot with content of its own.
fn point(number: u64, time: Timestamp) -> Point {
    let mut content = [0; 32];
    content[..8].copy_from_slice(&number.to_be_bytes());
    Point {
        id: id(number),
        source: SourceId([1; 16]),
        writer: (KeyId([1; 16]), number),
        time,
        published: time,
        content,
        tags: Vec::new(),
        is_partial: false,
        has_errors: false,
        bytes: 1000,
        entries: 100,
        held: None,
        pinned_by: None,
        replaced_by: None,
    }
}

/// One each day at three, numbered from 0.
fn nightly(count: u64) -> Vec<Point> {
    let first = date(2026, 1, 1);
    (0..count)
        .map(|number| {
            point(
                number,
                at(
                    first.saturating_add(jiff::Span::new().days(number as i64)),
                    3,
                    &TimeZone::UTC,
                ),
            )
        })
        .collect()
}

/// An hour after the newest.
fn after(points: &[Point]) -> Timestamp {
    let newest = points.iter().map(|point| point.time).max().unwrap();
    Timestamp(newest.0 + HOUR)
}

fn run(points: &[Point], policy: &Policy) -> Vec<Decision> {
    decide(points, policy, after(points), &TimeZone::UTC)
}

fn kept(points: &[Point], policy: &Policy) -> Vec<u64> {
    let decisions = run(points, policy);
    assert!(decisions.iter().all(|decision| !decision.reasons.is_empty()));
    let number = |id: &SessionId| u64::from_be_bytes(id.0[..8].try_into().unwrap());
    decisions
        .iter()
        .filter(|decision| decision.keep)
        .map(|decision| number(&decision.id))
        .collect()
}

fn reasons(points: &[Point], policy: &Policy, number: u64) -> String {
    let decisions = run(points, policy);
    let decision = decisions.iter().find(|decision| decision.id == id(number)).unwrap();
    let texts: Vec<String> = decision
        .reasons
        .iter()
        .map(|reason| reason.text(&TimeZone::UTC))
        .collect();
    texts.join(", ")
}

fn days(count: u32) -> Span {
    Span {
        days: count,
        ..Span::default()
    }
}

/// Forgets after each snapshot, as a job that runs every night does; returns what is left.
fn simulate(times: &[Timestamp], policy: &Policy, zone: &TimeZone) -> BTreeSet<Timestamp> {
    let mut points: Vec<Point> = Vec::new();
    for (number, time) in (0..).zip(times) {
        points.push(point(number, *time));
        let decisions = decide(&points, policy, Timestamp(time.0 + HOUR), zone);
        let keep: HashSet<SessionId> = decisions
            .iter()
            .filter(|decision| decision.keep)
            .map(|decision| decision.id)
            .collect();
        points.retain(|point| keep.contains(&point.id));
    }
    points.iter().map(|point| point.time).collect()
}

// ---------------------------------------------------------------- years of nights

/// Years of backups, and a policy.
struct Years {
    zone: TimeZone,
    policy: Policy,
    first: Date,
    last: Date,
    hours: &'static [i8],
    is_missing: fn(Date) -> bool,
}

impl Years {
    fn dates(&self) -> BTreeSet<Date> {
        let mut dates = BTreeSet::new();
        let mut day = self.first;
        while day <= self.last {
            if !(self.is_missing)(day) {
                dates.insert(day);
            }
            day = day.tomorrow().unwrap();
        }
        dates
    }

    fn times(&self) -> Vec<Timestamp> {
        let dates = self.dates();
        let of_day = |day: &Date| {
            self.hours
                .iter()
                .map(|hour| at(*day, *hour, &self.zone))
                .collect::<Vec<_>>()
        };
        dates.iter().flat_map(of_day).collect()
    }

    /// What a person with a calendar would mark: goes back through the days, from one that begins a period to the one before.
    fn reference(&self) -> BTreeSet<Timestamp> {
        let dates = self.dates();
        let day_of_month = self.policy.month_day as i8;
        let begins_week = |day: Date| day.weekday() == self.policy.week_starts;
        let begins_month = |day: Date| day.day() == day_of_month;
        let begins_year = |day: Date| day.day() == day_of_month && day.month() == 1;
        let rules: [(Option<u32>, &dyn Fn(Date) -> bool); 4] = [
            (self.policy.daily, &|_| true),
            (self.policy.weekly, &begins_week),
            (self.policy.monthly, &begins_month),
            (self.policy.yearly, &begins_year),
        ];
        let mut marked = BTreeSet::new();
        for (count, begins) in rules {
            let mut left = count.unwrap_or(0);
            let mut begin = self.last;
            let mut end = self.last.tomorrow().unwrap();
            while left > 0 && end > self.first {
                while !begins(begin) {
                    begin = begin.yesterday().unwrap();
                }
                if let Some(day) = dates.range(begin..end).next() {
                    marked.insert(at(*day, self.hours[0], &self.zone));
                    left -= 1;
                }
                end = begin;
                begin = begin.yesterday().unwrap();
            }
        }
        let newest = dates.last().unwrap();
        marked.insert(at(*newest, *self.hours.last().unwrap(), &self.zone));
        marked
    }

    fn check(&self) -> BTreeSet<Timestamp> {
        let left = simulate(&self.times(), &self.policy, &self.zone);
        assert_eq!(left, self.reference());
        // Nobody needs to have run every night: at once it is the same.
        let points: Vec<Point> = (0..)
            .zip(self.times())
            .map(|(number, time)| point(number, time))
            .collect();
        let at_once: BTreeSet<SessionId> = decide(&points, &self.policy, after(&points), &self.zone)
            .into_iter()
            .filter(|decision| decision.keep)
            .map(|decision| decision.id)
            .collect();
        let times = points.iter().filter(|point| at_once.contains(&point.id));
        assert_eq!(times.map(|point| point.time).collect::<BTreeSet<_>>(), left);
        left
    }
}

fn table() -> Policy {
    Policy {
        daily: Some(30),
        weekly: Some(12),
        monthly: Some(12),
        yearly: Some(7),
        ..Policy::default()
    }
}

fn eight_years() -> Years {
    Years {
        zone: TimeZone::UTC,
        policy: table(),
        first: date(2018, 11, 27),
        last: date(2026, 11, 26),
        hours: &[3],
        is_missing: |_| false,
    }
}

#[test]
fn eight_years_of_nights_leave_exactly_the_table() {
    let left = eight_years().check();
    let has = |year, month, day| left.contains(&at(date(year, month, day), 3, &TimeZone::UTC));
    // Thirty days; Sundays; firsts of months; firsts of January.
    assert!(has(2026, 11, 26) && has(2026, 10, 28) && !has(2026, 10, 27));
    assert!(has(2026, 10, 25) && has(2026, 9, 6) && !has(2026, 8, 30));
    assert!(has(2026, 10, 1) && has(2025, 12, 1) && !has(2025, 11, 1));
    assert!(has(2026, 1, 1) && has(2020, 1, 1) && !has(2019, 1, 1) && !has(2018, 11, 27));
    assert_eq!(left.len(), 30 + 8 + 11 + 6);
}

#[test]
fn tables_with_other_numbers_days_and_zones_hold_too() {
    let ninety = Years {
        policy: Policy {
            daily: Some(90),
            weekly: None,
            ..table()
        },
        first: date(2022, 2, 3),
        ..eight_years()
    };
    assert!(ninety.check().len() > 90);
    Years {
        policy: Policy {
            week_starts: Weekday::Monday,
            month_day: 15,
            ..table()
        },
        first: date(2021, 7, 20),
        last: date(2026, 1, 7),
        ..eight_years()
    }
    .check();
    // Several a day, across changes of the clock; one of them at an hour that one night does not have.
    Years {
        zone: berlin(),
        hours: &[0, 2, 23],
        first: date(2023, 12, 30),
        last: date(2026, 3, 31),
        ..eight_years()
    }
    .check();
    // A machine that is off at weekends, on the first of each month and for a whole summer.
    Years {
        is_missing: |day| {
            day.weekday() == Weekday::Saturday
                || day.weekday() == Weekday::Sunday
                || day.day() == 1
                || (day.year() == 2025 && (5..9).contains(&day.month()))
        },
        first: date(2022, 1, 1),
        ..eight_years()
    }
    .check();
    // Without limits.
    Years {
        policy: Policy {
            weekly: Some(UNLIMITED),
            yearly: Some(UNLIMITED),
            ..Policy::default()
        },
        first: date(2020, 6, 6),
        ..eight_years()
    }
    .check();
}

#[test]
fn hours_are_counted_across_changes_of_the_clock() {
    let zone = berlin();
    let policy = Policy {
        hourly: Some(UNLIMITED),
        ..Policy::default()
    };
    for (day, hours) in [
        (date(2026, 10, 25), 25),
        (date(2026, 3, 29), 23),
        (date(2026, 7, 1), 24),
    ] {
        let begin = at(day, 0, &zone);
        let times: Vec<Timestamp> = (0..2 * hours)
            .map(|half| Timestamp(begin.0 + half * HOUR / 2))
            .collect();
        let mut left = simulate(&times, &policy, &zone);
        // The newest is not the first of its hour.
        assert!(left.remove(times.last().unwrap()));
        let expected: BTreeSet<Timestamp> = (0..hours).map(|hour| Timestamp(begin.0 + hour * HOUR)).collect();
        assert_eq!(left, expected, "{day}");
    }
    // A hundred days of hours.
    let begin = at(date(2026, 9, 1), 0, &zone);
    let times: Vec<Timestamp> = (0..2400).map(|hour| Timestamp(begin.0 + hour * HOUR)).collect();
    let policy = Policy {
        hourly: Some(48),
        daily: Some(14),
        ..Policy::default()
    };
    let left = simulate(&times, &policy, &zone);
    let newest = times.last().unwrap().0;
    assert_eq!(left.iter().filter(|time| time.0 > newest - 48 * HOUR).count(), 48);
    assert_eq!(left.len(), 48 + 12);
}

#[test]
fn periods_begin_where_the_policy_says_and_end_where_the_next_begins() {
    let zone = berlin();
    for (week_starts, month_day) in [(Weekday::Sunday, 1), (Weekday::Monday, 15), (Weekday::Saturday, 28)] {
        let policy = Policy {
            week_starts,
            month_day,
            ..Policy::default()
        };
        for unit in [Unit::Hour, Unit::Day, Unit::Week, Unit::Month, Unit::Year] {
            let mut time = at(date(2024, 12, 20), 0, &zone);
            for _ in 0..if unit == Unit::Year { 4 } else { 60 } {
                let period = policy.period(unit, time, &zone);
                let end = period.end(unit, &zone);
                assert!(end > time);
                assert_eq!(policy.period(unit, Timestamp(end.0 - 1), &zone), period);
                let next = policy.period(unit, end, &zone);
                assert!(next > period, "{} {}", period.name(unit), next.name(unit));
                time = end;
            }
        }
    }
    let policy = Policy {
        month_day: 15,
        ..Policy::default()
    };
    let name = |unit| policy.period(unit, at(date(2026, 1, 3), 7, &zone), &zone).name(unit);
    assert_eq!(
        [Unit::Hour, Unit::Day, Unit::Week, Unit::Month, Unit::Year].map(name),
        [
            "2026-01-03 07:00",
            "2026-01-03",
            "2025-12-28",
            "2025-12-15",
            "2025-01-15"
        ]
    );
    let policy = Policy::default();
    let name = |unit| policy.period(unit, at(date(2026, 1, 3), 7, &zone), &zone).name(unit);
    assert_eq!([Unit::Month, Unit::Year].map(name), ["2026-01", "2026"]);
}

// ---------------------------------------------------------------- single rules

#[test]
fn every_decision_has_its_reason() {
    let mut points = nightly(40);
    points[2].tags = vec!["release".into()];
    points[3].held = Some(Held {
        until: Some(Timestamp(points[39].time.0 + DAY)),
        reason: "court".into(),
    });
    points[5].pinned_by = Some(id(77));
    points[4].held = Some(Held {
        until: Some(points[38].time),
        reason: "past".into(),
    });
    let policy = Policy {
        daily: Some(10),
        weekly: Some(4),
        monthly: Some(UNLIMITED),
        tags: vec!["release".into()],
        ..Policy::default()
    };
    // Number 0 is the first of January 2026, a Thursday; 39 is the ninth of February.
    let reason = |number| reasons(&points, &policy, number);
    assert_eq!(reason(39), "newest, daily 1 of 10 (2026-02-09)");
    assert_eq!(reason(38), "daily 2 of 10 (2026-02-08), weekly 1 of 4 (2026-02-08)");
    assert_eq!(
        reason(31),
        "daily 9 of 10 (2026-02-01), weekly 2 of 4 (2026-02-01), monthly 1 (2026-02)"
    );
    assert_eq!(reason(17), "weekly 4 of 4 (2026-01-18)");
    assert_eq!(reason(0), "monthly 2 (2026-01)");
    assert_eq!(reason(2), "tag release");
    assert_eq!(reason(3), "held until 2026-02-10 03:00: court");
    assert_eq!(reason(4), "no rule keeps it");
    assert_eq!(
        reason(5),
        format!("session {} is running and relies on it", id(77).short())
    );
    assert_eq!(
        kept(&points, &policy),
        [0, 2, 3, 5, 17, 24, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39]
    );
}

#[test]
fn spans_are_counted_from_the_newest() {
    let points = nightly(100);
    let within = Policy {
        within: Some(days(3)),
        ..Policy::default()
    };
    assert_eq!(kept(&points, &within), [96, 97, 98, 99]);
    // Nothing expires because nothing is backed up any more.
    let much_later = Timestamp(points[99].time.0 + 3000 * DAY);
    let later = decide(&points, &within, much_later, &TimeZone::UTC);
    assert_eq!(later.iter().filter(|decision| decision.keep).count(), 4);
    // The eleventh of February belongs to the span with all of its period.
    let weekly = Policy {
        within_weekly: Some(Span {
            months: 2,
            ..Span::default()
        }),
        ..Policy::default()
    };
    assert_eq!(points[99].time, at(date(2026, 4, 10), 3, &TimeZone::UTC));
    assert_eq!(kept(&points, &weekly), [38, 45, 52, 59, 66, 73, 80, 87, 94, 99]);
    let all = Policy {
        within: Some(Span {
            months: u32::MAX,
            days: u32::MAX,
            hours: u32::MAX,
        }),
        ..Policy::default()
    };
    assert_eq!(kept(&points, &all).len(), 100);
    assert_eq!(
        Span {
            months: 18,
            days: 1,
            hours: 0
        }
        .to_string(),
        "1 year 6 months 1 day"
    );
}

#[test]
fn last_distinct_versions_are_as_many_as_were_asked_for() {
    // Thirty runs without a change, then twelve that differ.
    let mut points = nightly(42);
    for point in &mut points[..30] {
        point.content = [0xee; 32];
    }
    let ten = Policy {
        last_distinct: Some(10),
        ..Policy::default()
    };
    assert_eq!(kept(&points, &ten), (32..42).collect::<Vec<_>>());
    let thirteen = Policy {
        last_distinct: Some(13),
        ..Policy::default()
    };
    // Of the equal ones the oldest: since then it was so.
    assert_eq!(
        kept(&points, &thirteen),
        [&[0][..], &(30..42).collect::<Vec<_>>()].concat()
    );
    // The other way round, the newest is kept with the one that it equals.
    points.reverse();
    let times: Vec<Timestamp> = points.iter().rev().map(|point| point.time).collect();
    for (number, (point, time)) in (0..).zip(points.iter_mut().zip(times)) {
        (point.id, point.time, point.published) = (id(number), time, time);
        point.writer.1 = number;
    }
    assert_eq!(
        kept(&points, &ten),
        [&(3..12).collect::<Vec<_>>(), &[12, 41][..]].concat()
    );
}

#[test]
fn the_newest_good_one_is_kept_whatever_the_policy() {
    let policies = [
        Policy::default(),
        Policy {
            tags: vec!["nowhere".into()],
            ..Policy::default()
        },
        Policy {
            yearly: Some(1),
            ..Policy::default()
        },
    ];
    let mut points = nightly(3);
    points[1].source = SourceId([2; 16]);
    for policy in &policies {
        let left = kept(&points, policy);
        assert!(left.contains(&1) && left.contains(&2), "{left:?}");
    }
    points[2].is_partial = true;
    points[2].source = SourceId([3; 16]);
    assert_eq!(kept(&points, &Policy::default()), [0, 1, 2]);
}

// ---------------------------------------------------------------- unfinished and suspect ones

#[test]
fn unfinished_ones_take_no_place_and_go_when_a_complete_one_is_there() {
    let mut points = nightly(6);
    for index in [1, 3, 4, 5] {
        points[index].is_partial = true;
    }
    (points[3].bytes, points[4].bytes, points[5].bytes) = (900, 50, 60);
    let policy = Policy {
        last: Some(2),
        ..Policy::default()
    };
    // The next run goes on from the newest and from the largest.
    assert_eq!(kept(&points, &policy), [0, 2, 3, 5]);
    assert_eq!(
        reasons(&points, &policy, 1),
        format!("unfinished, and a complete one came later: {}", id(2).short())
    );
    assert_eq!(
        reasons(&points, &policy, 4),
        format!("unfinished, and the next run goes on from {}", id(5).short())
    );
    assert_eq!(
        reasons(&points, &policy, 3),
        "unfinished, and no complete one came later"
    );
    // One of another source completes nothing, and neither does one of which half is missing.
    points.push(point(6, Timestamp(points[5].time.0 + DAY)));
    points[6].source = SourceId([2; 16]);
    assert_eq!(kept(&points, &policy), [2, 3, 5, 6]);
    points[6].source = points[0].source;
    points[6].bytes = 100;
    assert_eq!(kept(&points, &policy), [0, 2, 3, 5, 6]);
    points[6].bytes = 1000;
    assert_eq!(kept(&points, &policy), [2, 6]);
    points[3].held = Some(Held {
        until: None,
        reason: String::new(),
    });
    assert_eq!(kept(&points, &policy), [2, 3, 6]);
}

/// The source is not mounted for thirty nights.
#[test]
fn snapshots_of_an_empty_source_push_nothing_out() {
    let mut points = nightly(50);
    for point in &mut points[20..] {
        (point.bytes, point.entries) = (0, 1);
    }
    for policy in [
        Policy {
            last: Some(7),
            ..Policy::default()
        },
        Policy {
            daily: Some(7),
            ..Policy::default()
        },
        Policy {
            last_distinct: Some(7),
            ..Policy::default()
        },
    ] {
        let left = kept(&points, &policy);
        assert_eq!(left, (13..50).collect::<Vec<_>>());
        let decisions = run(&points, &policy);
        assert_eq!(decisions[20].grade, Grade::Suspect(Suspicion::Shrunk));
    }
    assert_eq!(
        reasons(
            &points,
            &Policy {
                daily: Some(7),
                ..Policy::default()
            },
            20
        ),
        "beside the daily ones"
    );
    // A person says that this is how it is from now on.
    points[25].tags = vec![ACCEPTED.into()];
    let policy = Policy {
        last: Some(7),
        ..Policy::default()
    };
    assert_eq!(kept(&points, &policy), (43..50).collect::<Vec<_>>());
}

#[test]
fn suspect_ones_stand_beside_the_good_one_of_their_day() {
    let mut points = nightly(20);
    // In the night before a good one of the same day.
    let mut small = point(100, Timestamp(points[15].time.0 - HOUR));
    small.entries = 3;
    points.push(small);
    let policy = Policy {
        daily: Some(8),
        ..Policy::default()
    };
    assert_eq!(kept(&points, &policy), [10, 11, 12, 13, 14, 100, 15, 16, 17, 18, 19]);
    // After it, it would not have been chosen.
    points[20].time = Timestamp(points[15].time.0 + HOUR);
    assert_eq!(kept(&points, &policy), [12, 13, 14, 15, 16, 17, 18, 19]);
    // As the newest it is kept, with what it is measured by.
    points[20].time = Timestamp(points[19].time.0 + HOUR);
    let policy = Policy {
        yearly: Some(1),
        ..Policy::default()
    };
    assert_eq!(kept(&points, &policy), [0, 15, 16, 17, 18, 19, 100]);
    assert_eq!(
        reasons(&points, &policy, 15),
        format!("what suspect {} is measured by", id(100).short())
    );
}

#[test]
fn errors_are_suspect_unless_the_source_never_was_without() {
    let policy = Policy {
        last: Some(3),
        ..Policy::default()
    };
    let mut points = nightly(20);
    for point in &mut points[10..] {
        point.has_errors = true;
    }
    assert_eq!(kept(&points, &policy), (7..20).collect::<Vec<_>>());
    points[12].tags = vec![ACCEPTED.into()];
    assert_eq!(kept(&points, &policy), [17, 18, 19]);
    for point in &mut points {
        point.has_errors = true;
        point.tags.clear();
    }
    assert_eq!(kept(&points, &policy), [17, 18, 19]);
}

// ---------------------------------------------------------------- what is refused

#[test]
fn plans_that_remove_too_much_or_have_no_rule_are_refused() {
    let points = nightly(12);
    let group = |policy: &Policy, count| vec![run(&points[..count], policy)];
    let empty = Policy::default();
    assert!(empty.is_empty());
    assert!(
        Policy {
            daily: Some(0),
            within: Some(Span::default()),
            ..Policy::default()
        }
        .is_empty()
    );
    assert!(refusals(&empty, &group(&empty, 4), 100).contains(&Refusal::EmptyPolicy));
    let policy = |last| Policy {
        last: Some(last),
        ..Policy::default()
    };
    assert_eq!(refusals(&policy(9), &group(&policy(9), 12), 25), []);
    let too_many = Refusal::TooMany {
        group: 0,
        removed: 4,
        of: 12,
    };
    assert_eq!(refusals(&policy(8), &group(&policy(8), 12), 25), [too_many]);
    assert_eq!(refusals(&policy(8), &group(&policy(8), 12), 34), []);
    // Of a few, most may go.
    assert_eq!(refusals(&policy(1), &group(&policy(1), 8), 25), []);
    // No policy gets there; this is for the day on which a rule is wrong.
    let mut wrong = group(&policy(9), 3);
    wrong[0].iter_mut().for_each(|decision| decision.keep = false);
    assert_eq!(refusals(&policy(9), &wrong, 100), [Refusal::NothingLeft { group: 0 }]);
}

#[test]
fn the_last_good_one_of_a_source_is_told_from_the_others() {
    let mut points = nightly(6);
    points[4].is_partial = true;
    points[5].source = SourceId([2; 16]);
    points[3].bytes = 1;
    let without = |numbers: &[u64]| {
        left_without(
            &points,
            &numbers.iter().map(|number| id(*number)).collect(),
            after(&points),
        )
    };
    assert_eq!(without(&[0, 1, 4]), []);
    assert_eq!(without(&[3, 4]), []);
    // What is left of the first is suspect, and a part.
    assert_eq!(without(&[0, 1, 2]), [points[0].source]);
    assert_eq!(without(&[5, 0, 1, 2, 3, 4]), [points[0].source, points[5].source]);
}

// ---------------------------------------------------------------- clocks

/// Nights of one writer, received five seconds after they were published.
fn claims(nights: u64) -> Vec<Claim> {
    nightly(nights)
        .iter()
        .enumerate()
        .map(|(number, point)| Claim {
            id: point.id,
            kid: KeyId([1; 16]),
            sequence: number as u64,
            start: point.time,
            created: Timestamp(point.time.0 + 20 * MINUTE),
            received: Some(Timestamp(point.time.0 + 20 * MINUTE + 5_000_000_000)),
            again: None,
        })
        .collect()
}

fn end_of(claims: &[Claim]) -> Timestamp {
    Timestamp(claims.iter().filter_map(|claim| claim.received).max().unwrap().0 + HOUR)
}

fn judged_points(claims: &[Claim], now: Timestamp) -> Vec<Point> {
    let judged = judge_times(claims, now);
    let made = |(number, claim): (u64, &Claim)| {
        let Judged { time, published, .. } = judged[&claim.id];
        Point {
            id: claim.id,
            writer: (claim.kid, claim.sequence),
            published,
            ..point(number, time)
        }
    };
    (0..).zip(claims).map(made).collect()
}

fn shift(claim: &mut Claim, nanos: i64) {
    claim.start.0 += nanos;
    claim.created.0 += nanos;
}

#[test]
fn times_that_nothing_contradicts_are_believed_also_in_a_copy() {
    let mut claims = claims(30);
    let expected: HashMap<SessionId, Timestamp> = claims.iter().map(|claim| (claim.id, claim.start)).collect();
    let copied = Timestamp(claims[29].created.0 + 400 * DAY);
    for received in [None, Some(()), Some(())] {
        let judged = judge_times(&claims, copied);
        for (id, judged) in judged {
            assert_eq!((judged.time, judged.clock), (expected[&id], Clock::Right));
        }
        for claim in &mut claims {
            claim.received = received.map(|()| copied);
        }
    }
    // A clock that was in the future then is cut off, and those after it are not drawn along.
    shift(&mut claims[10], 4000 * DAY);
    let judged = judge_times(&claims, copied);
    assert_eq!(judged[&claims[10].id].clock, Clock::Ahead);
    for claim in claims.iter().filter(|claim| claim.id != claims[10].id) {
        assert_eq!(judged[&claim.id].time, claim.start);
    }
}

#[test]
fn wrong_clocks_are_put_right_by_the_store() {
    let mut claims = claims(30);
    let right = judge_times(&claims, end_of(&claims));
    shift(&mut claims[10], 3650 * DAY);
    shift(&mut claims[20], -3650 * DAY);
    let judged = judge_times(&claims, end_of(&claims));
    for (number, claim) in claims.iter().enumerate() {
        let (was, is) = (right[&claim.id], judged[&claim.id]);
        assert!((is.time.0 - was.time.0).abs() <= 5_000_000_000, "{number}: {is:?}");
        let clock = match number {
            10 => Clock::Ahead,
            20 => Clock::Behind,
            _ => Clock::Right,
        };
        assert_eq!(is.clock, clock, "{number}");
    }
    // A battery is empty: every clock from now on begins in 1970.
    for (number, claim) in (0..).zip(&mut claims[15..]) {
        let created = Timestamp(number * HOUR);
        (claim.start, claim.created) = (created, created);
    }
    for claim in &claims[15..] {
        let judged = judge_times(&claims, end_of(&claims))[&claim.id];
        assert_eq!((Some(judged.time), judged.clock), (claim.received, Clock::Behind));
    }
}

#[test]
fn what_comes_later_does_not_change_what_came_before() {
    let mut claims = claims(20);
    let now = end_of(&claims);
    let before = judge_times(&claims, now);
    let newest = claims[19].clone();
    for (number, shifted) in (20..).zip([-3650 * DAY, 0, 3650 * DAY, -DAY, -20 * DAY]) {
        let mut claim = Claim {
            id: id(number),
            sequence: number,
            ..newest.clone()
        };
        shift(&mut claim, shifted);
        claims.push(claim);
        let judged = judge_times(&claims, now);
        for (id, was) in &before {
            assert_eq!(&judged[id], was);
        }
        assert!(judged[&id(number)].time >= before[&newest.id].time);
    }
}

#[test]
fn a_time_that_is_still_to_come_is_kept_and_decides_nothing() {
    // The store says nothing, and one claims to be of next year.
    let mut claims = claims(30);
    let now = end_of(&claims);
    for claim in &mut claims {
        claim.received = None;
    }
    shift(&mut claims[10], 365 * DAY);
    let points = judged_points(&claims, now);
    let policy = Policy {
        last: Some(3),
        within: Some(days(2)),
        ..Policy::default()
    };
    let decisions = decide(&points, &policy, now, &TimeZone::UTC);
    let kept: Vec<SessionId> = decisions
        .iter()
        .filter(|decision| decision.keep)
        .map(|decision| decision.id)
        .collect();
    assert_eq!(kept, [27, 28, 29, 10].map(id));
    assert_eq!(decisions.last().unwrap().reasons, [Reason::NotYet]);
}

/// Whoever may forget publishes an old snapshot once more, with other tags: it stays as old as it is.
#[test]
fn changing_tags_does_not_make_a_snapshot_newer() {
    let mut claims = claims(20);
    let original = claims[3].clone();
    let mut again = claims[19].clone();
    (again.id, again.sequence) = (id(99), 20);
    again.start = original.start;
    again.again = Some(original.created);
    claims.push(again);
    let judged = judge_times(&claims, end_of(&claims));
    assert_eq!(judged[&id(99)].time, original.start);
    assert_eq!(judged[&id(99)].published, original.created);
}

fn is_kept_by_honest(
    points: &[Point],
    policy: &Policy,
    now: Timestamp,
    forged: &BTreeSet<usize>,
) -> BTreeSet<SessionId> {
    let forged: HashSet<SessionId> = forged.iter().map(|index| points[*index].id).collect();
    decide(points, policy, now, &TimeZone::UTC)
        .into_iter()
        .filter(|decision| decision.keep && !forged.contains(&decision.id))
        .map(|decision| decision.id)
        .collect()
}

fn with_within() -> Policy {
    Policy {
        within: Some(days(10)),
        within_weekly: Some(days(90)),
        ..table()
    }
}

#[test]
fn a_flood_with_any_clock_displaces_nothing() {
    for flood_clock in [0, 3650 * DAY, -3650 * DAY, -DAY, -30 * DAY, DAY] {
        for spread in [0, MINUTE, DAY] {
            let mut claims = claims(200);
            // In the hour after the last night, on the same day.
            let begin = claims[199].received.unwrap();
            for number in 0..1000 {
                let received = Timestamp(begin.0 + number * 3_000_000_000);
                let mut claim = Claim {
                    id: id(1000 + number as u64),
                    kid: KeyId([1; 16]),
                    sequence: 200 + number as u64,
                    start: received,
                    created: received,
                    received: Some(received),
                    again: None,
                };
                shift(&mut claim, flood_clock + (number % 17 - 8) * spread);
                claims.push(claim);
            }
            let now = end_of(&claims);
            let none = BTreeSet::new();
            let before = judged_points(&claims[..200], now);
            let before = is_kept_by_honest(&before, &with_within(), now, &none);
            let after = judged_points(&claims, now);
            let after = is_kept_by_honest(&after, &with_within(), now, &none);
            assert!(
                before.is_subset(&after),
                "{flood_clock} {spread}: {:?}",
                before.difference(&after)
            );
        }
    }
}

proptest! {
    #[test]
    fn forged_clocks_displace_no_honest_snapshot(
        forged in prop::collection::btree_map(0usize..150, -3650i64..3650, 0..40),
        night in 0i64..24,
    ) {
        let honest = claims(150);
        let now = Timestamp(end_of(&honest).0 + night * HOUR);
        let mut lying = honest.clone();
        for (index, days) in &forged {
            shift(&mut lying[*index], days * DAY);
        }
        let liars: BTreeSet<usize> = forged.keys().copied().collect();
        let before = is_kept_by_honest(&judged_points(&honest, now), &with_within(), now, &liars);
        let after = is_kept_by_honest(&judged_points(&lying, now), &with_within(), now, &liars);
        prop_assert!(before.is_subset(&after), "{:?}", before.difference(&after));
    }
}

// ---------------------------------------------------------------- properties

/// Snapshots of two sources within some weeks. The first complete one of each, with and without errors, is of usual size: what is
/// small is suspect then, whatever is forgotten.
fn some_points() -> impl Strategy<Value = Vec<Point>> {
    let one = (0..60 * 24 * 40i64, 0..10u8, 0..3u8, prop::bool::weighted(0.8));
    prop::collection::vec(one, 1..60).prop_map(|made| {
        let begin = at(date(2026, 10, 1), 0, &TimeZone::UTC);
        let mut points: Vec<Point> = (0..)
            .zip(made)
            .map(|(number, (minutes, kind, content, is_first))| {
                let mut point = point(number, Timestamp(begin.0 + minutes * MINUTE));
                point.content = [content; 32];
                point.source = SourceId([u8::from(is_first); 16]);
                match kind {
                    0 => point.is_partial = true,
                    1 => point.has_errors = true,
                    2 => point.bytes = 10,
                    3 => point.entries = 1,
                    _ => {}
                }
                point
            })
            .collect();
        points.sort_by_key(|point| (point.time, point.id));
        let mut seen = HashSet::new();
        for point in points.iter_mut().filter(|point| !point.is_partial) {
            if seen.insert((point.source, point.has_errors)) {
                (point.bytes, point.entries) = (1000, 100);
            }
        }
        points
    })
}

fn some_policy() -> impl Strategy<Value = Policy> {
    let count = || prop::option::of(0..6u32);
    let span = || prop::option::of((0..20u32).prop_map(days));
    (
        (count(), count(), count(), count(), count(), count()),
        (span(), span(), span()),
    )
        .prop_map(
            |((last, last_distinct, hourly, daily, weekly, monthly), (within, within_daily, within_weekly))| Policy {
                last,
                last_distinct,
                hourly,
                daily,
                weekly,
                monthly,
                within,
                within_daily,
                within_weekly,
                ..Policy::default()
            },
        )
}

fn is_by_period(reason: &Reason) -> bool {
    matches!(reason, Reason::Period { .. } | Reason::PeriodWithin { .. })
}

proptest! {
    #[test]
    fn forgetting_twice_forgets_nothing_more(points in some_points(), policy in some_policy()) {
        let now = after(&points);
        let decisions = decide(&points, &policy, now, &TimeZone::UTC);
        let keep: HashSet<SessionId> = decisions.iter().filter(|decision| decision.keep).map(|decision| decision.id).collect();
        let left: Vec<Point> = points.iter().filter(|point| keep.contains(&point.id)).cloned().collect();
        for decision in decide(&left, &policy, now, &TimeZone::UTC) {
            prop_assert!(decision.keep, "{decision:?}");
        }
        // Nor does a run that was stopped after some, where suspect ones go first, and unless what has become its neighbour has
        // the same content.
        let policy = Policy { last_distinct: None, ..policy };
        let decisions = decide(&points, &policy, now, &TimeZone::UTC);
        let keep: HashSet<SessionId> = decisions.iter().filter(|decision| decision.keep).map(|decision| decision.id).collect();
        let is_suspect = |decision: &&Decision| matches!(decision.grade, Grade::Suspect(_));
        let suspect: HashSet<SessionId> = decisions.iter().filter(is_suspect).map(|decision| decision.id).collect();
        let half: Vec<Point> = (0..)
            .zip(&points)
            .filter(|(number, point)| keep.contains(&point.id) || number % 2 == 0 && !suspect.contains(&point.id))
            .map(|(_, point)| point.clone())
            .collect();
        for decision in decide(&half, &policy, now, &TimeZone::UTC) {
            prop_assert!(decision.keep || !keep.contains(&decision.id), "{decision:?}");
        }
    }

    #[test]
    fn the_order_of_input_does_not_matter(points in some_points(), policy in some_policy(), seed in any::<u64>()) {
        let now = after(&points);
        let expected = decide(&points, &policy, now, &TimeZone::UTC);
        let mut shuffled = points;
        shuffled.sort_by_key(|point| u64::from_be_bytes(point.id.0[..8].try_into().unwrap()).wrapping_mul(seed | 1));
        prop_assert_eq!(decide(&shuffled, &policy, now, &TimeZone::UTC), expected);
    }

    #[test]
    fn what_was_chosen_for_a_period_stays_chosen(
        points in some_points(),
        policy in some_policy(),
        more in prop::collection::vec((0..60i64, 0..4u8, 0..3u8), 1..30),
    ) {
        // In the same hour as the newest, which is good, and after it. Spans move on with the newest, as they should.
        let policy = Policy { within: None, within_daily: None, within_weekly: None, ..policy };
        let newest = points.iter().map(|point| point.time).max().unwrap();
        let mut points = points;
        points.push(point(999, newest));
        let end = (newest.0 / HOUR + 1) * HOUR - 1;
        let now = Timestamp(end + HOUR);
        let before = decide(&points, &policy, now, &TimeZone::UTC);
        let mut all = points;
        for (number, (minutes, kind, content)) in (1000..).zip(more) {
            let mut point = point(number, Timestamp((newest.0 + minutes * MINUTE).min(end)));
            point.content = [content; 32];
            (point.has_errors, point.is_partial) = (kind == 0, kind == 1);
            all.push(point);
        }
        let after = decide(&all, &policy, now, &TimeZone::UTC);
        for decision in before.iter().filter(|decision| decision.reasons.iter().any(is_by_period)) {
            let now = after.iter().find(|other| other.id == decision.id).unwrap();
            prop_assert!(now.keep, "{decision:?} {now:?}");
        }
    }

    #[test]
    fn every_source_keeps_a_good_one_and_every_decision_has_a_reason(points in some_points(), policy in some_policy()) {
        let decisions = decide(&points, &policy, after(&points), &TimeZone::UTC);
        prop_assert_eq!(decisions.len(), points.len());
        prop_assert!(decisions.iter().all(|decision| !decision.reasons.is_empty()));
        let source: HashMap<SessionId, SourceId> = points.iter().map(|point| (point.id, point.source)).collect();
        for of in [SourceId([0; 16]), SourceId([1; 16])] {
            let good: Vec<&Decision> = decisions
                .iter()
                .filter(|decision| source[&decision.id] == of && decision.grade == Grade::Good)
                .collect();
            prop_assert!(good.last().is_none_or(|newest| newest.keep));
        }
        let nothing_left = refusals(&policy, &[decisions], 100);
        prop_assert!(nothing_left.iter().all(|refusal| *refusal == Refusal::EmptyPolicy));
    }
}
