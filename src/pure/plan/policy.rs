//! Which snapshots are to be kept: the rules that a person gives, and the calendar that they count by.
//!
//! Periods are those of a calendar in a time zone. A week begins on a given weekday, a month on a given day, a year with its
//! first such month: so the first snapshot of a year is the first of a month and of a day, and one snapshot serves all three.

use crate::pure::base::Timestamp;
use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::{Offset, TimeZone};

/// A number of snapshots or periods that has no limit.
pub const UNLIMITED: u32 = u32::MAX;
/// Every month has this day.
const MONTH_DAY_MAX: u8 = 28;
const HOUR_NS: i64 = 3_600_000_000_000;

/// What to keep. A snapshot that at least one rule keeps is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The newest snapshots.
    pub last: Option<u32>,
    /// The newest snapshots whose content differs from that of the one before.
    pub last_distinct: Option<u32>,
    /// One snapshot for each of the newest hours, days, … that have one.
    pub hourly: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
    /// Everything that is at most so much older than the newest.
    pub within: Option<Span>,
    /// One snapshot for each hour, day, … that ends at most so long before the newest.
    pub within_hourly: Option<Span>,
    pub within_daily: Option<Span>,
    pub within_weekly: Option<Span>,
    pub within_monthly: Option<Span>,
    pub within_yearly: Option<Span>,
    /// Everything with one of these tags.
    pub tags: Vec<String>,
    pub week_starts: Weekday,
    /// Day on which a month begins, 1 to 28; larger ones count as 28.
    pub month_day: u8,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            last: None,
            last_distinct: None,
            hourly: None,
            daily: None,
            weekly: None,
            monthly: None,
            yearly: None,
            within: None,
            within_hourly: None,
            within_daily: None,
            within_weekly: None,
            within_monthly: None,
            within_yearly: None,
            tags: Vec::new(),
            week_starts: Weekday::Sunday,
            month_day: 1,
        }
    }
}

impl Policy {
    /// Whether no rule keeps anything.
    pub fn is_empty(&self) -> bool {
        let periods = self.periods();
        let mut counts = [self.last, self.last_distinct]
            .into_iter()
            .chain(periods.iter().map(|rule| rule.count));
        let mut spans = [self.within].into_iter().chain(periods.iter().map(|rule| rule.within));
        self.tags.is_empty()
            && counts.all(|count| count.is_none_or(|count| count == 0))
            && spans.all(|span| span.is_none_or(Span::is_zero))
    }

    /// Returns the rules for periods, short ones first.
    pub fn periods(&self) -> [PeriodRule; 5] {
        let rule = |unit, count, within| PeriodRule { unit, count, within };
        [
            rule(Unit::Hour, self.hourly, self.within_hourly),
            rule(Unit::Day, self.daily, self.within_daily),
            rule(Unit::Week, self.weekly, self.within_weekly),
            rule(Unit::Month, self.monthly, self.within_monthly),
            rule(Unit::Year, self.yearly, self.within_yearly),
        ]
    }

    /// Returns the period in which a moment lies.
    pub fn period(&self, unit: Unit, time: Timestamp, zone: &TimeZone) -> Period {
        let zoned = moment(time).to_zoned(zone.clone());
        let date = zoned.date();
        let start = match unit {
            Unit::Hour => {
                return Period {
                    start: date.at(zoned.hour(), 0, 0, 0),
                    // When clocks are set back an hour comes twice: the one further east came first.
                    west_seconds: -zoned.offset().seconds(),
                };
            }
            Unit::Day => date,
            Unit::Week => {
                let days = date.weekday().since(self.week_starts);
                date.saturating_sub(jiff::Span::new().days(i64::from(days)))
            }
            Unit::Month => self.month_start(date),
            Unit::Year => {
                let month = self.month_start(date);
                self.month_begin(month.year(), 1)
            }
        };
        Period {
            start: start.at(0, 0, 0, 0),
            west_seconds: 0,
        }
    }

    fn month_start(&self, date: Date) -> Date {
        let this = self.month_begin(date.year(), date.month());
        match (date >= this, date.month()) {
            (true, _) => this,
            (false, 1) => self.month_begin(date.year() - 1, 12),
            (false, month) => self.month_begin(date.year(), month - 1),
        }
    }

    fn month_begin(&self, year: i16, month: i8) -> Date {
        let day = self.month_day.clamp(1, MONTH_DAY_MAX) as i8;
        Date::new(year, month, day).expect("every month of the years 1676 to 2262 has its first 28 days")
    }
}

/// The rule for one kind of period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodRule {
    pub unit: Unit,
    pub count: Option<u32>,
    pub within: Option<Span>,
}

/// Kinds of periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Unit {
    /// Returns the word of the options.
    pub fn adjective(self) -> &'static str {
        match self {
            Unit::Hour => "hourly",
            Unit::Day => "daily",
            Unit::Week => "weekly",
            Unit::Month => "monthly",
            Unit::Year => "yearly",
        }
    }
}

/// An hour, day, week, month or year of a calendar; ordered by time among those of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    start: DateTime,
    /// Hours only: how far their clock is west of UTC, in seconds.
    west_seconds: i32,
}

impl Period {
    /// Returns the moment at which it is over; of a period without an end in the calendar, the end of time.
    pub fn end(&self, unit: Unit, zone: &TimeZone) -> Timestamp {
        let begin = jiff::Span::new();
        let length = match unit {
            Unit::Hour => {
                let begin = Offset::from_seconds(-self.west_seconds).and_then(|offset| offset.to_timestamp(self.start));
                return begin.map_or(Timestamp(i64::MAX), |begin| {
                    Timestamp(timestamp(begin).0.saturating_add(HOUR_NS))
                });
            }
            Unit::Day => begin.days(1),
            Unit::Week => begin.days(7),
            Unit::Month => begin.months(1),
            Unit::Year => begin.years(1),
        };
        self.start
            .checked_add(length)
            .and_then(|end| end.to_zoned(zone.clone()))
            .map_or(Timestamp(i64::MAX), |end| timestamp(end.timestamp()))
    }

    /// Returns its name: `2026`, `2026-11`, `2026-11-20`, `2026-11-20 03:00`. A week, and a month or year that does not begin
    /// on a first, has the name of its first day.
    pub fn name(&self, unit: Unit) -> String {
        let is_first = self.start.day() == 1;
        let format = match unit {
            Unit::Hour => "%Y-%m-%d %H:%M",
            Unit::Month if is_first => "%Y-%m",
            Unit::Year if is_first => "%Y",
            Unit::Day | Unit::Week | Unit::Month | Unit::Year => "%Y-%m-%d",
        };
        self.start.strftime(format).to_string()
    }
}

/// A length of time by the calendar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub months: u32,
    pub days: u32,
    pub hours: u32,
}

impl Span {
    /// Whether it is no time at all.
    pub fn is_zero(self) -> bool {
        self == Span::default()
    }

    /// Returns the moment that lies so long before `time`; before the beginning of time, the beginning.
    pub fn before(self, time: Timestamp, zone: &TimeZone) -> Timestamp {
        jiff::Span::new()
            .try_months(i64::from(self.months))
            .and_then(|span| span.try_days(i64::from(self.days)))
            .and_then(|span| span.try_hours(i64::from(self.hours)))
            .and_then(|span| moment(time).to_zoned(zone.clone()).checked_sub(span))
            .map_or(Timestamp(i64::MIN), |before| timestamp(before.timestamp()))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            (self.months / 12, "year"),
            (self.months % 12, "month"),
            (self.days, "day"),
            (self.hours, "hour"),
        ];
        let words: Vec<String> = parts
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, noun)| format!("{number} {noun}{}", if *number == 1 { "" } else { "s" }))
            .collect();
        f.write_str(&words.join(" "))
    }
}

pub(super) fn moment(time: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(time.0.into())
        .expect("64 bits of nanoseconds lie within the years that jiff knows")
}

/// Times that 64 bits do not hold become the nearest that they do.
pub(super) fn timestamp(moment: jiff::Timestamp) -> Timestamp {
    let nanos = moment.as_nanosecond();
    Timestamp(i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }))
}
