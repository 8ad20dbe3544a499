//! Why a snapshot is kept or forgotten, for people and for programs.

use super::policy::{Period, Span, UNLIMITED, Unit, moment};
use crate::pure::base::Timestamp;
use crate::pure::id::SessionId;
use jiff::tz::TimeZone;

/// A reason; the last five are for forgetting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The newest complete one of its source.
    Newest,
    /// One of the newest, counted from 1.
    Last {
        number: u32,
        of: u32,
    },
    /// The oldest of a row with the same content, counted from 1.
    Distinct {
        number: u32,
        of: u32,
    },
    /// The oldest good one of a period, counted from 1.
    Period {
        unit: Unit,
        period: Period,
        number: u32,
        of: u32,
    },
    Within {
        span: Span,
    },
    /// The oldest good one of a period.
    PeriodWithin {
        unit: Unit,
        period: Period,
        span: Span,
    },
    /// It is suspect: it stands beside those that a rule keeps, and takes the place of none.
    Beside {
        rule: Rule,
    },
    /// A suspect one that is kept was measured by it.
    Measure {
        of: SessionId,
    },
    Tag(String),
    Held {
        until: Option<Timestamp>,
        reason: String,
    },
    /// A running session relies on it.
    Pinned {
        by: SessionId,
    },
    /// Its time is still to come: it takes part in nothing.
    NotYet,
    /// A part of a snapshot that has not been completed since.
    Unfinished,
    NoRule,
    /// Somebody wants it to be forgotten.
    Named,
    /// A part of a snapshot, of which a complete one exists.
    Superseded {
        by: SessionId,
    },
    /// A part of a snapshot, and another part is what the next run goes on from.
    Unneeded {
        beside: SessionId,
    },
    /// Its tags were changed, and that was interrupted before it was dropped.
    Replaced {
        by: SessionId,
    },
}

/// A rule that a suspect snapshot stands beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Last,
    Distinct,
    Period(Unit),
}

impl Rule {
    fn name(self) -> &'static str {
        match self {
            Rule::Last => "last",
            Rule::Distinct => "distinct",
            Rule::Period(unit) => unit.adjective(),
        }
    }
}

impl Reason {
    /// Returns the word that programs read.
    pub fn code(&self) -> &'static str {
        match self {
            Reason::Newest => "newest",
            Reason::Last { .. } => "last",
            Reason::Distinct { .. } => "distinct",
            Reason::Period { unit, .. } | Reason::PeriodWithin { unit, .. } => unit.adjective(),
            Reason::Within { .. } => "within",
            Reason::Beside { .. } => "beside",
            Reason::Measure { .. } => "measure",
            Reason::Tag(_) => "tag",
            Reason::Held { .. } => "held",
            Reason::Pinned { .. } => "pinned",
            Reason::NotYet => "not_yet",
            Reason::Unfinished => "unfinished",
            Reason::NoRule => "no_rule",
            Reason::Named => "named",
            Reason::Superseded { .. } => "superseded",
            Reason::Unneeded { .. } => "unneeded",
            Reason::Replaced { .. } => "replaced",
        }
    }

    /// Returns it in words; times in `zone`. Tags and reasons of holds are what somebody has written: print with care.
    pub fn text(&self, zone: &TimeZone) -> String {
        match self {
            Reason::Newest => "newest".into(),
            Reason::Last { number, of } => format!("last {}", place(*number, *of)),
            Reason::Distinct { number, of } => format!("distinct {}", place(*number, *of)),
            Reason::Period {
                unit,
                period,
                number,
                of,
            } => format!("{} {} ({})", unit.adjective(), place(*number, *of), period.name(*unit)),
            Reason::Within { span } => format!("within {span}"),
            Reason::PeriodWithin { unit, period, span } => {
                format!("{} within {span} ({})", unit.adjective(), period.name(*unit))
            }
            Reason::Beside { rule } => format!("beside the {} ones", rule.name()),
            Reason::Measure { of } => format!("what suspect {} is measured by", of.short()),
            Reason::Tag(tag) => format!("tag {tag}"),
            Reason::Held { until, reason } => {
                let until = until.map_or_else(String::new, |until| {
                    let until = moment(until).to_zoned(zone.clone());
                    format!(" until {}", until.strftime("%Y-%m-%d %H:%M"))
                });
                match reason.as_str() {
                    "" => format!("held{until}"),
                    reason => format!("held{until}: {reason}"),
                }
            }
            Reason::Pinned { by } => format!("session {} is running and relies on it", by.short()),
            Reason::NotYet => "its time is still to come".into(),
            Reason::Unfinished => "unfinished, and no complete one came later".into(),
            Reason::NoRule => "no rule keeps it".into(),
            Reason::Named => "named".into(),
            Reason::Superseded { by } => format!("unfinished, and a complete one came later: {}", by.short()),
            Reason::Unneeded { beside } => format!("unfinished, and the next run goes on from {}", beside.short()),
            Reason::Replaced { by } => format!("replaced by {}, which has other tags", by.short()),
        }
    }
}

fn place(number: u32, of: u32) -> String {
    match of {
        UNLIMITED => number.to_string(),
        of => format!("{number} of {of}"),
    }
}
