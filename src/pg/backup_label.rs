//! `backup_label` and `tablespace_map`.

use super::{Lsn, TimelineId, WalSegmentName};

/// What a `backup_label` file says (`src/backend/access/transam/xlogbackup.c`, `build_backup_content`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupLabel {
    /// `START WAL LOCATION`.
    pub start_lsn: Lsn,
    /// The segment that it names.
    pub start_segment: WalSegmentName,
    /// `CHECKPOINT LOCATION`.
    pub checkpoint_lsn: Lsn,
    /// `BACKUP FROM: standby`.
    pub from_standby: bool,
    /// `START TIMELINE`.
    pub start_timeline: TimelineId,
    /// `LABEL`.
    pub label: String,
}

/// A backup_label that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backup_label cannot be used: {0}")]
pub struct ParseBackupLabelError(pub String);

impl BackupLabel {
    /// Parses the file's text, or that of a backup history file (`.backup`), whose further lines are skipped.
    ///
    /// A label may hold anything, line ends included; lines after it are taken from the end of the file, where
    /// PostgreSQL wrote them. A label made for an incremental backup of pg_basebackup is refused, as PostgreSQL
    /// refuses to start from one (`src/backend/access/transam/xlogrecovery.c`, `read_backup_label`).
    pub fn parse(text: &str) -> Result<BackupLabel, ParseBackupLabelError> {
        let (before_label, label_on) = match text.find("\nLABEL: ") {
            Some(position) => text.split_at(position + 1),
            None => return Err(missing("LABEL")),
        };
        let label = label_on.lines().next().and_then(|line| line.strip_prefix("LABEL: ")).unwrap_or_default();
        if last_value(label_on, "INCREMENTAL FROM LSN").is_some() {
            return Err(problem(
                "it belongs to an incremental backup that pg_combinebackup has not completed",
            ));
        }
        let (start_lsn, start_segment) = parse_location(first_value(before_label, "START WAL LOCATION")?)?;
        let start_timeline =
            parse_timeline(last_value(label_on, "START TIMELINE").ok_or_else(|| missing("START TIMELINE"))?)?;
        if start_segment.timeline != start_timeline {
            return Err(problem(format!(
                "it starts in segment {start_segment} and on timeline {}",
                start_timeline.get()
            )));
        }
        Ok(BackupLabel {
            start_lsn,
            start_segment,
            checkpoint_lsn: parse_lsn(
                "CHECKPOINT LOCATION",
                first_value(before_label, "CHECKPOINT LOCATION")?,
            )?,
            from_standby: match first_value(before_label, "BACKUP FROM")? {
                "standby" => true,
                // 13 says master.
                "primary" | "master" => false,
                other => return Err(problem(format!("it has BACKUP FROM: {other}"))),
            },
            start_timeline,
            label: label.to_owned(),
        })
    }
}

fn problem(text: impl Into<String>) -> ParseBackupLabelError {
    ParseBackupLabelError(text.into())
}

fn missing(key: &str) -> ParseBackupLabelError {
    problem(format!("it has no line {key}"))
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.strip_prefix(": ")
}

fn first_value<'a>(text: &'a str, key: &str) -> Result<&'a str, ParseBackupLabelError> {
    text.lines().find_map(|line| value(line, key)).ok_or_else(|| missing(key))
}

fn last_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    // The first line is the label's own.
    text.lines().skip(1).filter_map(|line| value(line, key)).last()
}

/// `0/2000028 (file 000000010000000000000002)`.
fn parse_location(text: &str) -> Result<(Lsn, WalSegmentName), ParseBackupLabelError> {
    let parse = || {
        let (lsn, rest) = text.split_once(" (file ")?;
        let (lsn, segment): (Lsn, WalSegmentName) =
            (lsn.parse().ok()?, rest.strip_suffix(')')?.parse().ok()?);
        // Whatever the segment size is, the middle of the name is the upper half of the position.
        (u64::from(segment.log()) == lsn.get() >> 32).then_some((lsn, segment))
    };
    parse().ok_or_else(|| problem(format!("it has START WAL LOCATION: {text}")))
}

fn parse_lsn(key: &str, text: &str) -> Result<Lsn, ParseBackupLabelError> {
    text.parse().map_err(|_| problem(format!("it has {key}: {text}")))
}

/// Decimal, unlike in file names.
fn parse_timeline(text: &str) -> Result<TimelineId, ParseBackupLabelError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.and_then(TimelineId::new).ok_or_else(|| problem(format!("it has START TIMELINE: {text}")))
}

/// A tablespace_map that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tablespace_map cannot be used: {problem} in line {line}")]
pub struct ParseTablespaceMapError {
    /// Counted from 1; a directory with a line end in its name counts as one.
    pub line: usize,
    /// What is wrong.
    pub problem: &'static str,
}

/// `tablespace_map`: link name (oid) and directory per line, with PostgreSQL's escapes for newlines and
/// backslashes (`src/backend/access/transam/xlogrecovery.c`, `read_tablespace_map`).
pub fn parse_tablespace_map(text: &str) -> Result<Vec<(u32, String)>, ParseTablespaceMapError> {
    let mut entries = Vec::new();
    let mut line = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let wrong = |problem| ParseTablespaceMapError { line: entries.len() + 1, problem };
        match character {
            '\\' => line.push(characters.next().ok_or_else(|| wrong("a backslash without a character"))?),
            // PostgreSQL skips empty lines so that `\r\n` ends one line, not two.
            '\n' | '\r' if line.is_empty() => {}
            '\n' | '\r' => {
                entries.push(parse_map_line(&line).map_err(wrong)?);
                line.clear();
            }
            other => line.push(other),
        }
    }
    match line.is_empty() {
        true => Ok(entries),
        false => Err(ParseTablespaceMapError { line: entries.len() + 1, problem: "no line end" }),
    }
}

fn parse_map_line(line: &str) -> Result<(u32, String), &'static str> {
    let (oid, path) = line.split_once(' ').ok_or("no directory")?;
    let digits = oid.bytes().all(|b| b.is_ascii_digit());
    match oid.parse() {
        Ok(oid) if digits && oid != 0 && !path.is_empty() => Ok((oid, path.to_owned())),
        Ok(_) if path.is_empty() => Err("no directory"),
        _ => Err("no tablespace oid"),
    }
}

/// The inverse of [`parse_tablespace_map`] (`src/backend/access/transam/xlog.c`, `do_pg_backup_start`).
pub fn format_tablespace_map(entries: &[(u32, String)]) -> String {
    let mut text = String::new();
    for (oid, path) in entries {
        text.push_str(&oid.to_string());
        text.push(' ');
        for character in path.chars() {
            if matches!(character, '\n' | '\r' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "START WAL LOCATION: 1A/2000028 (file 000000030000001A00000002)
CHECKPOINT LOCATION: 1A/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-20 22:46:13 UTC
LABEL: nightly
START TIMELINE: 3
";

    #[test]
    fn reads_what_the_server_writes() {
        let label = BackupLabel::parse(LABEL).unwrap();
        assert_eq!(label.start_lsn.to_string(), "1A/2000028");
        assert_eq!(label.start_segment.to_string(), "000000030000001A00000002");
        assert_eq!(label.checkpoint_lsn.to_string(), "1A/2000060");
        assert!(!label.from_standby);
        assert_eq!(label.start_timeline.get(), 3);
        assert_eq!(label.label, "nightly");
        assert!(BackupLabel::parse(&LABEL.replace("primary", "standby")).unwrap().from_standby);
        assert!(!BackupLabel::parse(&LABEL.replace("primary", "master")).unwrap().from_standby);
    }

    #[test]
    fn reads_a_backup_history_file() {
        let text = LABEL.replace(
            "CHECKPOINT",
            "STOP WAL LOCATION: 1A/3000000 (file 000000030000001A00000002)\nCHECKPOINT",
        ) + "STOP TIME: 2026-11-20 22:47:00 UTC\nSTOP TIMELINE: 3\n";
        assert_eq!(BackupLabel::parse(&text), BackupLabel::parse(LABEL));
    }

    #[test]
    fn a_label_with_line_ends_hides_nothing() {
        let text = LABEL.replace("LABEL: nightly", "LABEL: a\nSTART TIMELINE: 9\nCHECKPOINT LOCATION: 0/1");
        let label = BackupLabel::parse(&text).unwrap();
        assert_eq!(label.start_timeline.get(), 3);
        assert_eq!(label.checkpoint_lsn.to_string(), "1A/2000060");
    }

    #[test]
    fn says_what_is_wrong() {
        let message = |text: &str| BackupLabel::parse(text).unwrap_err().to_string();
        assert_eq!(message(""), "backup_label cannot be used: it has no line LABEL");
        for line in LABEL
            .lines()
            .filter(|line| !line.starts_with("BACKUP METHOD") && !line.starts_with("START TIME:"))
        {
            let key = line.split(':').next().unwrap();
            let without = LABEL.replace(&format!("{line}\n"), "");
            assert_eq!(message(&without), format!("backup_label cannot be used: it has no line {key}"));
        }
        assert_eq!(
            message(&LABEL.replace("START TIMELINE: 3", "START TIMELINE: 4")),
            "backup_label cannot be used: it starts in segment 000000030000001A00000002 and on timeline 4"
        );
        assert_eq!(
            message(&LABEL.replace("1A/2000028", "1B/2000028")),
            "backup_label cannot be used: it has START WAL LOCATION: 1B/2000028 (file 000000030000001A00000002)"
        );
        assert_eq!(
            message(&format!("{LABEL}INCREMENTAL FROM LSN: 0/28\nINCREMENTAL FROM TLI: 1\n")),
            "backup_label cannot be used: it belongs to an incremental backup that pg_combinebackup has not completed"
        );
    }

    #[test]
    fn a_map_escapes_line_ends_and_backslashes() {
        let entries = [(16400, "/srv/a b".to_owned()), (16401, "/srv/c\nd\\e\r".to_owned())];
        let text = format_tablespace_map(&entries);
        assert_eq!(text, "16400 /srv/a b\n16401 /srv/c\\\nd\\\\e\\\r\n");
        assert_eq!(parse_tablespace_map(&text).unwrap(), entries);
        assert_eq!(parse_tablespace_map("1 /a\r\n2 /b\r\n").unwrap().len(), 2);
    }

    #[test]
    fn a_map_that_cannot_be_used_is_refused() {
        for (text, problem) in [
            ("1 /a", "tablespace_map cannot be used: no line end in line 1"),
            ("1 /a\n2 /b\\", "tablespace_map cannot be used: a backslash without a character in line 2"),
            ("/a\n", "tablespace_map cannot be used: no directory in line 1"),
            ("1 \n", "tablespace_map cannot be used: no directory in line 1"),
            ("0 /a\n", "tablespace_map cannot be used: no tablespace oid in line 1"),
            ("+1 /a\n", "tablespace_map cannot be used: no tablespace oid in line 1"),
            ("4294967296 /a\n", "tablespace_map cannot be used: no tablespace oid in line 1"),
        ] {
            assert_eq!(parse_tablespace_map(text).unwrap_err().to_string(), problem);
        }
    }

    proptest! {
        #[test]
        fn every_map_survives(entries in prop::collection::vec((1u32.., "[^\\x00]{1,20}"), 0..5)) {
            prop_assert_eq!(parse_tablespace_map(&format_tablespace_map(&entries)).unwrap(), entries);
        }

        #[test]
        fn any_text_is_survived(text in "(LABEL|START WAL LOCATION|: |\\n|\\PC){0,30}") {
            let _ = BackupLabel::parse(&text);
            let _ = parse_tablespace_map(&text);
        }
    }
}
