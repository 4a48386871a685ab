//! What commands print: lines and tables on standard output, sizes, durations and moments as people read them.
//!
//! `println!` panics where standard output is closed; these functions return an error instead, and a reader that
//! went away (`walhold backup-list | head -1`) ends the command quietly.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::error::{Explain, system_words};
use crate::exit_status::Cause;

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write to standard output: {}", system_words(.0))]
pub struct OutputError(#[from] pub io::Error);

impl Explain for OutputError {
    fn exit_cause(&self) -> Cause {
        Cause::FileUnusable
    }

    fn is_reader_gone(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

/// Prints text as it is.
pub fn print(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Prints one line.
pub fn print_line(text: &str) -> Result<(), OutputError> {
    print(&format!("{text}\n"))
}

/// Prints a value as indented JSON and a line's end.
pub fn print_json<T: serde::Serialize + ?Sized>(value: &T) -> Result<(), OutputError> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    print_line(&text)
}

/// Where a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a heading: columns as wide as their widest cell, two spaces between them.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new<'a>(columns: impl IntoIterator<Item = (&'a str, Align)>) -> Table {
        let columns = columns.into_iter().map(|(name, align)| (name.to_owned(), align)).collect();
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty, cells beyond the columns are dropped.
    pub fn add(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table's lines, each with its end.
    pub fn render(&self) -> String {
        let heading: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let all = || std::iter::once(&heading).chain(&self.rows);
        let width = |column: usize| {
            all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in all() {
            let mut line = String::new();
            for (at, ((_, align), width)) in self.columns.iter().zip(&widths).enumerate() {
                let cell = row.get(at).map(String::as_str).unwrap_or_default();
                let gap = if at == 0 { "" } else { "  " };
                line.push_str(&match align {
                    Align::Left => format!("{gap}{cell:<width$}"),
                    Align::Right => format!("{gap}{cell:>width$}"),
                });
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Prints the table.
    pub fn print(&self) -> Result<(), OutputError> {
        print(&self.render())
    }
}

const UNITS: [(&str, u32); 5] = [("TB", 40), ("GB", 30), ("MB", 20), ("kB", 10), ("B", 0)];

/// A size as PostgreSQL's units give it (1 kB is 1,024 bytes), to two or three digits: `1.7 GB`, `512 MB`, `9 B`.
pub fn human_size(bytes: u64) -> String {
    let (unit, shift) = UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0).unwrap_or(("B", 0));
    let value = bytes as f64 / (1_u64 << shift) as f64;
    if shift == 0 || value >= 99.95 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// A size that loses nothing, in the largest unit that divides it: `50MB`, `1000B`.
pub fn bytes_exact(bytes: u64) -> String {
    let (unit, shift) = UNITS
        .into_iter()
        .find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift)
        .unwrap_or(("B", 0));
    format!("{}{unit}", bytes >> shift)
}

/// A duration that loses nothing above milliseconds, in the largest unit that divides it: `10min`, `90s`.
pub fn duration_exact(length: Duration) -> String {
    let milliseconds = length.as_millis();
    for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)] {
        if milliseconds > 0 && milliseconds.is_multiple_of(factor) {
            return format!("{}{unit}", milliseconds / factor);
        }
    }
    format!("{milliseconds}ms")
}

/// How old what happened at `earlier` is. 0 for a moment in the future: two clocks never agree.
pub fn seconds_between(earlier: jiff::Timestamp, later: jiff::Timestamp) -> u64 {
    u64::try_from(later.duration_since(earlier).as_secs()).unwrap_or(0)
}

/// A duration for people: `0.25 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub fn human_duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..=9 => format!("{:.2} s", length.as_secs_f64()),
        10..=59 => format!("{seconds} s"),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A moment in the server's zone and in UTC: `2026-11-20 23:46:13+01 (22:46:13 UTC)`, to the second. `zone` is
/// the server's `TimeZone`; one that is unknown here, or UTC itself, gives UTC alone.
pub fn moment(moment: jiff::Timestamp, zone: Option<&str>) -> String {
    let utc = moment.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let Some(zone) = zone.and_then(|name| TimeZone::get(name).ok()) else { return utc };
    let there = moment.to_zoned(zone);
    if there.offset() == jiff::tz::Offset::UTC {
        return utc;
    }
    let same_day = there.strftime("%Y-%m-%d").to_string() == moment.strftime("%Y-%m-%d").to_string();
    let in_utc = if same_day { moment.strftime("%H:%M:%S UTC").to_string() } else { utc };
    format!("{}{} ({in_utc})", there.strftime("%Y-%m-%d %H:%M:%S"), short_offset(there.offset()))
}

/// An offset as PostgreSQL prints it: `+01`, `-03:30`.
fn short_offset(offset: jiff::tz::Offset) -> String {
    let seconds = offset.seconds();
    let sign = if seconds < 0 { '-' } else { '+' };
    let minutes = seconds.abs() / 60;
    match minutes % 60 {
        0 => format!("{sign}{:02}", minutes / 60),
        rest => format!("{sign}{:02}:{rest:02}", minutes / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 kB"),
            (16 << 20, "16.0 MB"),
            (1_825_361_100, "1.7 GB"),
            (300 << 20, "300 MB"),
            (u64::MAX, "16777216 TB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
        assert_eq!(bytes_exact(0), "0B");
        assert_eq!(bytes_exact(3 << 30), "3GB");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(human_duration(Duration::from_millis(250)), "0.25 s");
        assert_eq!(human_duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(human_duration(Duration::from_secs(7_500)), "2 h 5 min");
        assert_eq!(human_duration(Duration::from_secs(273_600)), "3 d 4 h");
        assert_eq!(duration_exact(Duration::from_secs(5_400)), "90min");
    }

    #[test]
    fn moments_show_the_servers_zone() {
        let at: jiff::Timestamp = "2026-11-20T22:46:13Z".parse().unwrap();
        assert_eq!(moment(at, Some("Europe/Berlin")), "2026-11-20 23:46:13+01 (22:46:13 UTC)");
        assert_eq!(moment(at, Some("Asia/Kolkata")), "2026-11-21 04:16:13+05:30 (2026-11-20 22:46:13 UTC)");
        assert_eq!(moment(at, Some("Etc/UTC")), "2026-11-20 22:46:13 UTC");
        assert_eq!(moment(at, Some("Nowhere/Land")), "2026-11-20 22:46:13 UTC");
        assert_eq!(moment(at, None), "2026-11-20 22:46:13 UTC");
    }

    #[test]
    fn tables_align() {
        let mut table = Table::new([("key", Align::Left), ("size", Align::Right)]);
        table.add(["a".to_owned(), "1".to_owned()]);
        table.add(["long name".to_owned()]);
        assert_eq!(table.render(), "key        size\na             1\nlong name\n");
    }
}
