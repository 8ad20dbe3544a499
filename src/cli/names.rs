//! How people write snapshots, times, durations and sizes, and how times are shown to them.

use super::error::Failure;
use crate::pure::base::size::parse_bytes;
use crate::pure::base::time::FileTime;
use crate::pure::base::{LockMode, Timestamp};
use crate::pure::format::config::ObjectLock;
use crate::pure::id::SessionId;
use crate::pure::plan::policy::{Span, UNLIMITED};
use jiff::civil;
use jiff::tz::TimeZone;
use std::ffi::OsStr;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// A snapshot, and perhaps a path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPath {
    pub snapshot: String,
    pub path: Option<Vec<u8>>,
}

/// Splits `SNAPSHOT[:PATH]`. A path begins at the first `:/`. A colon before anything else belongs to the snapshot after
/// `latest` (its source) and in a time (`@2026-11-20T03:00Z`), and begins a path after an id.
///
/// # Errors
/// When the snapshot's part is not text.
pub fn split_snapshot(text: &OsStr) -> Result<SnapshotPath, Failure> {
    let bytes = text.as_bytes();
    let is_id = !bytes.starts_with(b"@") && !bytes.starts_with(b"latest");
    let colon = if is_id {
        bytes.iter().position(|byte| *byte == b':')
    } else {
        bytes.windows(2).position(|pair| pair == b":/")
    };
    let (snapshot, path) = match colon {
        Some(at) => (&bytes[..at], Some(bytes[at + 1..].to_vec())),
        None => (bytes, None),
    };
    let snapshot = std::str::from_utf8(snapshot).map_err(|_| Failure::usage("the name of a snapshot is text"))?;
    Ok(SnapshotPath {
        snapshot: snapshot.to_owned(),
        path: path.filter(|path| !path.is_empty()),
    })
}

/// Which moment of a day a date without a time means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DayEdge {
    Start,
    End,
}

/// Reads `2026-11-20T03:00Z`, `2026-11-20T03:00` (local time), `2026-11-20 03:00` or `2026-11-20`.
pub fn parse_time(text: &str, edge: DayEdge, zone: &TimeZone) -> Option<Timestamp> {
    let text = text.trim();
    let time = if let Ok(time) = text.parse::<jiff::Timestamp>() {
        time
    } else if let Ok(date) = text.parse::<civil::Date>()
        && text.len() <= "2026-11-20".len()
    {
        let day = if edge == DayEdge::Start {
            date
        } else {
            date.tomorrow().ok()?
        };
        day.to_zoned(zone.clone()).ok()?.timestamp()
    } else {
        text.parse::<civil::DateTime>()
            .ok()?
            .to_zoned(zone.clone())
            .ok()?
            .timestamp()
    };
    let nanos = i64::try_from(time.as_nanosecond()).ok()?;
    // The end of a day is the last moment before the next.
    let is_end = edge == DayEdge::End && text.parse::<jiff::Timestamp>().is_err() && text.len() <= "2026-11-20".len();
    Some(Timestamp(if is_end { nanos - 1 } else { nanos }))
}

/// Reads a time of the command line in this machine's time zone.
///
/// # Errors
/// When it is none.
pub fn time_argument(text: &str, edge: DayEdge) -> Result<Timestamp, Failure> {
    parse_time(text, edge, &TimeZone::system()).ok_or_else(|| {
        Failure::usage(format!("{text:?} is not a time"))
            .with_hint("write 2026-11-20, 2026-11-20T03:00 or 2026-11-20T03:00Z")
    })
}

/// Reads `90s`, `15m`, `1h30m`, `7d`, `2w`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a duration; write 90s, 15m, 1h30m, 7d or 2w");
    let mut rest = text.trim();
    let mut seconds = 0u64;
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|character: char| !character.is_ascii_digit())
            .ok_or_else(error)?;
        let number: u64 = rest[..digits].parse().map_err(|_| error())?;
        let unit = rest[digits..].chars().next().ok_or_else(error)?;
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            _ => return Err(error()),
        };
        seconds = number
            .checked_mul(factor)
            .and_then(|part| seconds.checked_add(part))
            .ok_or_else(error)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    Ok(Duration::from_secs(seconds))
}

/// How often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    Never,
    After(Duration),
}

/// Reads a duration or `never`.
pub fn parse_every(text: &str) -> Result<Every, String> {
    if text.trim() == "never" {
        return Ok(Every::Never);
    }
    parse_duration(text).map(Every::After)
}

/// Takes a tag that is to be given: one that nobody could read or type again is refused.
pub fn parse_tag(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err(format!("{text:?} is not a tag; write a word or KEY=VALUE"));
    }
    Ok(text.to_owned())
}

/// Takes words that somebody else is going to read.
pub fn parse_words(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err("write a few words on one line".into());
    }
    Ok(text.to_owned())
}

/// A lock, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockArg(pub Option<ObjectLock>);

/// Reads a lock: `governance:30`, `compliance:90` or `off`.
///
/// # Errors
/// When it is none.
pub fn parse_lock(text: &str) -> Result<LockArg, String> {
    let error = || format!("{text:?} is not a lock; write governance:30, compliance:90 or off, with 1 to 36500 days");
    if text == "off" {
        return Ok(LockArg(None));
    }
    let (mode, days) = text.split_once(':').ok_or_else(error)?;
    let mode = match mode {
        "governance" => LockMode::Governance,
        "compliance" => LockMode::Compliance,
        _ => return Err(error()),
    };
    let lock = days.parse().ok().and_then(|days| ObjectLock::new(mode, days, None));
    Ok(LockArg(Some(lock.ok_or_else(error)?)))
}

/// Reads how many are to be kept: a number, or `all`.
pub fn parse_count(text: &str) -> Result<u32, String> {
    match text.trim() {
        "all" => Ok(UNLIMITED),
        number => number
            .parse()
            .map_err(|_| format!("{text:?} is not a number; write 30, or: all")),
    }
}

/// Reads a span of the calendar: `36h`, `30d`, `12w`, `6mo`, `7y`, `1y6mo`.
///
/// # Errors
/// When it is none. `m` alone is refused: elsewhere it means minutes.
pub fn parse_span(text: &str) -> Result<Span, String> {
    let error = || format!("{text:?} is not a span of time; write 36h, 30d, 12w, 6mo, 7y or 1y6mo");
    let mut rest = text.trim();
    let mut span = Span::default();
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let unit_at = rest
            .find(|character: char| !character.is_ascii_digit())
            .ok_or_else(error)?;
        let number: u32 = rest[..unit_at].parse().map_err(|_| error())?;
        rest = &rest[unit_at..];
        let unit_end = rest
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(rest.len());
        let (part, factor) = match &rest[..unit_end] {
            "y" => (&mut span.months, 12),
            "mo" => (&mut span.months, 1),
            "w" => (&mut span.days, 7),
            "d" => (&mut span.days, 1),
            "h" => (&mut span.hours, 1),
            _ => return Err(error()),
        };
        *part = number
            .checked_mul(factor)
            .and_then(|more| part.checked_add(more))
            .ok_or_else(error)?;
        rest = &rest[unit_end..];
    }
    Ok(span)
}

/// Reads a share: 1 to 100, with or without a percent sign.
pub fn parse_percent(text: &str) -> Result<u32, String> {
    let number = text.trim().trim_end_matches('%');
    let percent = number.parse().ok().filter(|percent| (1..=100).contains(percent));
    percent.ok_or_else(|| format!("{text:?} is not a share; write 1% to 100%"))
}

/// Reads a size: `500M`, `1.5 GiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("{text:?} is not a size; write 500M or 1.5GiB"))
}

/// Slowest rate that is taken: below it nothing but time-outs would come of it.
const RATE_MIN: u64 = 1 << 10;

/// Reads the id of a session, 32 digits.
///
/// # Errors
/// When it is none.
pub fn parse_session(text: &str) -> Result<SessionId, String> {
    text.parse()
        .map_err(|_| "give all 32 digits of the session, as `repo prune` shows it".into())
}

/// Reads a rate in bytes per second: `500K`, `1.5MiB`, `2M/s`.
///
/// # Errors
/// When it is none, or too slow to work.
pub fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let trimmed = text.trim();
    let bytes = parse_bytes(trimmed.strip_suffix("/s").unwrap_or(trimmed))
        .ok_or_else(|| format!("{text:?} is not a rate; write 500K or 1.5MiB, in bytes per second"))?;
    NonZeroU64::new(bytes)
        .filter(|bytes| bytes.get() >= RATE_MIN)
        .ok_or_else(|| format!("{text:?} is too slow; at least 1K (bytes per second) is needed"))
}

fn moment(time: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(time.0.into())
        .expect("64 bits of nanoseconds lie within the years that jiff knows")
}

/// Writes a time for programs: RFC 3339 in UTC.
pub fn rfc3339(time: Timestamp) -> String {
    moment(time).to_string()
}

/// Writes a time for people: local, to the second.
pub fn local_time(time: Timestamp) -> String {
    moment(time)
        .to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// Writes the time of a file for people; what no calendar has is written as seconds.
pub fn local_file_time(time: FileTime) -> String {
    match jiff::Timestamp::from_second(time.seconds) {
        Ok(moment) => moment
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => format!("@{}", time.seconds),
    }
}

/// Writes how long something took.
pub fn took(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=59 => format!("{:.1} s", duration.as_secs_f64()),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> (String, Option<String>) {
        let parts = split_snapshot(OsStr::new(text)).unwrap();
        (parts.snapshot, parts.path.map(|path| String::from_utf8(path).unwrap()))
    }

    #[test]
    fn tags_can_be_read() {
        assert_eq!(parse_tag("kind=nightly"), Ok("kind=nightly".to_owned()));
        for text in ["", "  ", "a\nb", "\u{1b}[31m"] {
            assert!(parse_tag(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn counts_spans_and_shares_are_read_strictly() {
        assert_eq!((parse_count("30"), parse_count("all")), (Ok(30), Ok(UNLIMITED)));
        for text in ["", "-1", "30d", "x", "99999999999"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
        let span = |months, days, hours| Ok(Span { months, days, hours });
        assert_eq!(parse_span("1y6mo"), span(18, 0, 0));
        assert_eq!(parse_span("12w1d36h"), span(0, 85, 36));
        for text in ["", "30", "d", "5m", "5mo2", "1x", "-5d", "4294967295y", "5 d", "3é"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
        assert_eq!((parse_percent("25%"), parse_percent("100")), (Ok(25), Ok(100)));
        for text in ["0", "101%", "", "-5"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
        assert!(parse_words(" \t").is_err() && parse_words("a\nb").is_err() && parse_words("a b").is_ok());
    }

    #[test]
    fn rates_are_sizes_per_second() {
        let rate = |text| parse_rate(text).map(NonZeroU64::get);
        assert_eq!(rate("500K"), Ok(512_000));
        assert_eq!(rate("1.5MiB/s"), Ok(1_572_864));
        for wrong in ["0", "512", "fast", "", "/s", "2M/h"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_is_told_from_a_source_and_from_a_time() {
        let some = |snapshot: &str, path: &str| (snapshot.to_owned(), Some(path.to_owned()));
        let only = |snapshot: &str| (snapshot.to_owned(), None);
        assert_eq!(split("latest"), only("latest"));
        assert_eq!(split("latest:home"), only("latest:home"));
        assert_eq!(split("latest:/etc"), some("latest", "/etc"));
        assert_eq!(split("latest:home:/etc"), some("latest:home", "/etc"));
        assert_eq!(split("@2026-11-20T03:00Z"), only("@2026-11-20T03:00Z"));
        assert_eq!(split("@2026-11-20T03:00Z:/etc"), some("@2026-11-20T03:00Z", "/etc"));
        assert_eq!(split("1a2b:db.sql"), some("1a2b", "db.sql"));
        assert_eq!(split("1a2b:/etc:x"), some("1a2b", "/etc:x"));
        assert_eq!(split("1a2b:"), only("1a2b"));
    }

    #[test]
    fn times_are_read_with_and_without_a_zone() {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let at = |text: &str, edge| parse_time(text, edge, &zone).map(rfc3339);
        assert_eq!(
            at("2026-11-20T03:00Z", DayEdge::End).as_deref(),
            Some("2026-11-20T03:00:00Z")
        );
        assert_eq!(
            at("2026-11-20T03:00", DayEdge::End).as_deref(),
            Some("2026-11-20T02:00:00Z")
        );
        assert_eq!(
            at("2026-11-20 03:00:07", DayEdge::Start).as_deref(),
            Some("2026-11-20T02:00:07Z")
        );
        assert_eq!(
            at("2026-11-20", DayEdge::Start).as_deref(),
            Some("2026-11-19T23:00:00Z")
        );
        assert_eq!(
            at("2026-11-20", DayEdge::End).as_deref(),
            Some("2026-11-20T22:59:59.999999999Z")
        );
        assert_eq!(at("yesterday", DayEdge::End), None);
        assert_eq!(at("", DayEdge::End), None);
    }

    #[test]
    fn never_is_not_a_duration_of_nothing() {
        assert_eq!(parse_every("never"), Ok(Every::Never));
        assert_eq!(parse_every("0s"), Ok(Every::After(Duration::ZERO)));
        assert!(parse_every("often").is_err());
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("2w"), Ok(Duration::from_secs(14 * 86_400)));
        for text in [
            "",
            "5",
            "h",
            "5x",
            "-5s",
            "99999999999999999999s",
            "18446744073709551615w",
            "5é",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
