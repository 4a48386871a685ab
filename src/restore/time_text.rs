//! Moments as people write them: `2026-11-20 22:46`, with or without an offset or a zone.
//!
//! In: text and the zone that a text without one is read in. Out: exactly one moment, or a reason; a local time
//! that a clock change made ambiguous or skipped is never guessed.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

use crate::pg::PgTimestamp;

/// A moment with the words it was given in.
#[derive(Clone, PartialEq, Debug)]
pub struct TargetTime {
    /// The moment.
    pub moment: PgTimestamp,
    /// What the operator typed.
    pub given: String,
    /// The zone it was read in, for printing it back.
    pub zone: TimeZone,
    /// Where the zone comes from: `None` if the text named it.
    pub assumed_zone: Option<String>,
}

impl TargetTime {
    /// The moment in its own zone, `2026-11-20 23:46:13.000000+01:00`.
    pub fn local(&self) -> String {
        show_in(self.moment, &self.zone)
    }
}

/// A moment in a zone, with its offset.
pub fn show_in(moment: PgTimestamp, zone: &TimeZone) -> String {
    match moment.to_jiff() {
        Some(moment) => moment.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.6f%:z").to_string(),
        None => moment.to_string(),
    }
}

/// Why a text is not a moment, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimeProblem {
    /// One line.
    pub problem: String,
    /// The next step.
    pub hint: String,
}

const EXPECTED: &str =
    "write it like '2026-11-20 22:46:13', '2026-11-20 22:46:13.5+01:00' or '2026-11-20 22:46 Europe/Berlin'";

/// Reads `YYYY-MM-DD HH:MM[:SS[.ffffff]]` (a `T` may stand for the space), then nothing, `Z`, an offset (`+02`, `+0200`,
/// `+02:00`) or a zone's name. Without either it is read in `default_zone`, the `TimeZone` of the server.
pub fn parse_target_time(text: &str, default_zone: &str) -> Result<TargetTime, TimeProblem> {
    let malformed =
        || TimeProblem { problem: format!("{text:?} is not a moment"), hint: EXPECTED.to_owned() };
    let given = text.trim();
    let (civil, rest) = split_civil(given).ok_or_else(malformed)?;
    let named = rest.trim();
    let (zone, assumed_zone) = match named {
        "" => {
            let zone = find_zone(default_zone).ok_or_else(|| TimeProblem {
                problem: format!(
                    "{text:?} has no UTC offset, and the server's TimeZone {default_zone:?} is not known here"
                ),
                hint: "add the offset, as in '2026-11-20 22:46:13+01:00'".to_owned(),
            })?;
            (zone, Some(default_zone.to_owned()))
        }
        "Z" | "z" => (TimeZone::UTC, None),
        offset if offset.starts_with(['+', '-']) => {
            (TimeZone::fixed(parse_offset(offset).ok_or_else(malformed)?), None)
        }
        name => {
            let zone = TimeZone::get(name).map_err(|_| TimeProblem {
                problem: format!("{text:?} names the time zone {name:?}, which is not known"),
                hint: "use an offset like +01:00, or a name of the IANA database like Europe/Berlin"
                    .to_owned(),
            })?;
            (zone, None)
        }
    };
    let moment = unambiguous(civil, &zone, given, assumed_zone.as_deref())?;
    Ok(TargetTime { moment, given: given.to_owned(), zone, assumed_zone })
}

/// A zone as PostgreSQL's `TimeZone` setting names it: a name of the database, or a POSIX rule.
pub fn find_zone(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).or_else(|_| TimeZone::posix(name)).ok()
}

/// A clock change makes a local time happen twice or never: both readings are named, none is taken.
fn unambiguous(
    civil: DateTime,
    zone: &TimeZone,
    given: &str,
    assumed: Option<&str>,
) -> Result<PgTimestamp, TimeProblem> {
    let ambiguous = zone.to_ambiguous_zoned(civil);
    let (what, first, second) = match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => {
            return ambiguous.compatible().map(|zoned| PgTimestamp::from_jiff(zoned.timestamp())).map_err(
                |_| TimeProblem { problem: format!("{given:?} is out of range"), hint: EXPECTED.to_owned() },
            );
        }
        AmbiguousOffset::Gap { before, after } => ("does not exist", before, after),
        AmbiguousOffset::Fold { before, after } => ("happens twice", before, after),
    };
    let zone_name = assumed.or(zone.iana_name()).unwrap_or("that zone").to_owned();
    let reading = |offset: Offset| {
        let text = civil.strftime("%Y-%m-%d %H:%M:%S%.f");
        let utc = offset.to_timestamp(civil).map(|moment| moment.strftime("%H:%M:%S UTC").to_string());
        format!("'{text}{}' ({})", show_offset(offset), utc.unwrap_or_default())
    };
    Err(TimeProblem {
        problem: format!("the local time {given:?} {what} in {zone_name}, because clocks were changed"),
        hint: format!("say which is meant: {} or {}", reading(first), reading(second)),
    })
}

fn show_offset(offset: Offset) -> String {
    let seconds = offset.seconds();
    let (hours, minutes) = (seconds.abs() / 3600, seconds.abs() / 60 % 60);
    format!("{}{hours:02}:{minutes:02}", if seconds < 0 { '-' } else { '+' })
}

/// The date and time at the beginning of `text`, and what follows.
fn split_civil(text: &str) -> Option<(DateTime, &str)> {
    let digits = |range: std::ops::Range<usize>| -> Option<i32> {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let separator =
        |at: usize, allowed: &[u8]| text.as_bytes().get(at).filter(|b| allowed.contains(b)).map(|_| ());
    let year = digits(0..4)?;
    separator(4, b"-")?;
    let month = digits(5..7)?;
    separator(7, b"-")?;
    let day = digits(8..10)?;
    separator(10, b" Tt")?;
    let hour = digits(11..13)?;
    separator(13, b":")?;
    let minute = digits(14..16)?;
    let mut end = 16;
    let (mut second, mut nanosecond) = (0, 0);
    if separator(16, b":").is_some() {
        second = digits(17..19)?;
        end = 19;
        if separator(19, b".").is_some() {
            let fraction: String = text.get(20..)?.chars().take_while(char::is_ascii_digit).collect();
            if !(1..=6).contains(&fraction.len()) {
                return None;
            }
            end = 20 + fraction.len();
            nanosecond = format!("{fraction:0<9}").parse().ok()?;
        }
    }
    let narrow = |value: i32| i8::try_from(value).ok();
    let civil = DateTime::new(
        i16::try_from(year).ok()?,
        narrow(month)?,
        narrow(day)?,
        narrow(hour)?,
        narrow(minute)?,
        narrow(second)?,
        nanosecond,
    );
    Some((civil.ok()?, text.get(end..)?))
}

/// `+02`, `+0200`, `+02:00` or their negatives.
fn parse_offset(text: &str) -> Option<Offset> {
    let negative = text.starts_with('-');
    let digits: String = text.get(1..)?.chars().collect();
    let digits = match digits.len() {
        5 if digits.as_bytes().get(2) == Some(&b':') => digits.replacen(':', "", 1),
        _ => digits,
    };
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let hours: i32 = digits.get(..2)?.parse().ok()?;
    let minutes: i32 = digits.get(2..).filter(|rest| !rest.is_empty()).map_or(Ok(0), str::parse).ok()?;
    if hours > 15 || minutes > 59 {
        return None;
    }
    let seconds = hours * 3600 + minutes * 60;
    Offset::from_seconds(if negative { -seconds } else { seconds }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str, zone: &str) -> String {
        match parse_target_time(text, zone) {
            Ok(time) => time.moment.to_string(),
            Err(problem) => problem.problem,
        }
    }

    #[test]
    fn reads_what_people_write() {
        for (text, zone, expected) in [
            ("2026-11-20 22:46", "UTC", "2026-11-20 22:46:00.000000+00"),
            ("2026-11-20T22:46:13", "Etc/UTC", "2026-11-20 22:46:13.000000+00"),
            ("2026-11-20 22:46:13", "Europe/Berlin", "2026-11-20 21:46:13.000000+00"),
            ("2026-07-20 22:46:13.5", "Europe/Berlin", "2026-07-20 20:46:13.500000+00"),
            ("2026-11-20 22:46:13.123456+01:00", "UTC", "2026-11-20 21:46:13.123456+00"),
            ("2026-11-20 22:46:13 +0530", "UTC", "2026-11-20 17:16:13.000000+00"),
            ("2026-11-20 22:46:13-08", "UTC", "2026-11-21 06:46:13.000000+00"),
            ("2026-11-20 22:46:13Z", "Europe/Berlin", "2026-11-20 22:46:13.000000+00"),
            ("2026-11-20 22:46 America/New_York", "UTC", "2026-11-21 03:46:00.000000+00"),
            ("2026-11-20 22:46", "PST8PDT,M3.2.0,M11.1.0", "2026-11-21 06:46:00.000000+00"),
        ] {
            assert_eq!(utc(text, zone), expected, "{text} in {zone}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_moment() {
        for text in [
            "",
            "now",
            "2026-11-20",
            "2026-13-20 22:46",
            "2026-11-20 24:00",
            "2026-11-20 22:46:13.",
            "20261120 2246",
            "2026-11-20 22:46:13.1234567",
            "2026-11-20 22:46+1",
            "2026-11-20 22:46+16:00",
            "2026-11-20 22:46 +01:00 x",
        ] {
            assert_eq!(utc(text, "UTC"), format!("{text:?} is not a moment"));
        }
        assert_eq!(
            utc("2026-11-20 22:46 Europe/Atlantis", "UTC"),
            "\"2026-11-20 22:46 Europe/Atlantis\" names the time zone \"Europe/Atlantis\", which is not known"
        );
        assert_eq!(
            utc("2026-11-20 22:46", "Mars"),
            "\"2026-11-20 22:46\" has no UTC offset, and the server's TimeZone \"Mars\" is not known here"
        );
    }

    #[test]
    fn names_both_readings_of_an_ambiguous_time() {
        let problem = parse_target_time("2026-10-25 02:30:00", "Europe/Berlin").unwrap_err();
        assert_eq!(
            problem.problem,
            "the local time \"2026-10-25 02:30:00\" happens twice in Europe/Berlin, because clocks were changed"
        );
        assert_eq!(
            problem.hint,
            "say which is meant: '2026-10-25 02:30:00+02:00' (00:30:00 UTC) or '2026-10-25 02:30:00+01:00' (01:30:00 UTC)"
        );
        let problem = parse_target_time("2026-03-29 02:30", "Europe/Berlin").unwrap_err();
        assert!(problem.problem.contains("does not exist in Europe/Berlin"), "{}", problem.problem);
    }

    #[test]
    fn prints_back_in_the_zone_that_was_meant() {
        let time = parse_target_time("2026-11-20 22:46", "Europe/Berlin").unwrap();
        assert_eq!(time.local(), "2026-11-20 22:46:00.000000+01:00");
        assert_eq!(time.assumed_zone.as_deref(), Some("Europe/Berlin"));
    }
}
