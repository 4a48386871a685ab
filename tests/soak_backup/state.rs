//! What is recorded of a live server, and where in history that was.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;

use crate::support::postgres::Cluster;

/// What a restored server must have.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    rows: BTreeMap<String, String>,
    /// The last value that was given out, and where the sequence stands.
    numbers: (i64, i64),
    prepared: Vec<String>,
}

impl State {
    pub fn of(cluster: &Cluster) -> State {
        let number = |sql| cluster.value(sql).parse().expect("a number");
        State {
            rows: cluster.digest(),
            numbers: (
                number("SELECT coalesce(max(number), 0) FROM given"),
                number("SELECT coalesce(last_value, 0) FROM pg_sequences WHERE sequencename = 'numbers'"),
            ),
            prepared: cluster
                .query("SELECT gid FROM pg_prepared_xacts ORDER BY 1")
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    /// A sequence may stand elsewhere, but never before a value that was given out: PostgreSQL logs up to 32 values before they are
    /// used, so replay leaves it ahead of what it was; and a backup after a recovery may have its page from before, where it was not
    /// ahead yet.
    #[track_caller]
    pub fn assert_is(&self, restored: &State, what: &str) {
        assert_eq!(restored.rows, self.rows, "rows {what}");
        assert_eq!(restored.prepared, self.prepared, "prepared transactions {what}");
        let (given, stood) = self.numbers;
        let stands = restored.numbers.1;
        assert!(
            (given..=stood + 32).contains(&stands),
            "{stands} after {given} was given out, of {stood} {what}"
        );
    }
}

/// `X/Y` as a number.
pub fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap_or_else(|| panic!("{text} is no WAL position"));
    let parse = |part| u64::from_str_radix(part, 16).unwrap_or_else(|_| panic!("{text} is no WAL position"));
    parse(high) << 32 | parse(low)
}

/// A line of history: a timeline, and where its ancestors ended.
#[derive(Clone, Debug)]
pub struct Line {
    pub timeline: u32,
    ancestors: BTreeMap<u32, u64>,
}

impl Line {
    /// Of a server that has left recovery.
    pub fn of(cluster: &Cluster) -> Line {
        let name = cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())");
        let timeline = u32::from_str_radix(&name[..8], 16).expect("a timeline");
        Line { timeline, ancestors: ancestors(cluster.data_directory(), timeline) }
    }

    /// Whether this position of this timeline is in its past.
    pub fn passes(&self, timeline: u32, position: u64) -> bool {
        timeline == self.timeline || self.ancestors.get(&timeline).is_some_and(|end| position <= *end)
    }
}

fn ancestors(data: &Path, timeline: u32) -> BTreeMap<u32, u64> {
    if timeline == 1 {
        return BTreeMap::new();
    }
    let text = fs::read_to_string(data.join(format!("pg_wal/{timeline:08X}.history"))).expect("its history");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut fields = line.split_whitespace();
            let timeline = fields.next().and_then(|field| field.parse().ok()).expect("a timeline");
            (timeline, lsn(fields.next().expect("a position")))
        })
        .collect()
}

/// A listed backup.
pub struct Backup {
    pub id: String,
    pub timeline: u32,
    pub start: u64,
    pub stop: u64,
    /// Unless the server was written to while it was taken.
    pub state: Option<State>,
    pub taken: Instant,
    /// When it was complete, by the server's clock.
    pub stopped: Timestamp,
}

/// A moment that can be recovered to by each means that names it.
pub struct Moment {
    pub name: String,
    pub time: String,
    pub lsn: String,
    pub xid: String,
    pub line: Line,
    pub state: State,
    pub taken: Instant,
}

impl Moment {
    pub fn is_after(&self, backup: &Backup) -> bool {
        let position = lsn(&self.lsn);
        self.line.passes(backup.timeline, backup.stop) && backup.stop <= position
    }
}

/// What happened, to be told at the end.
#[derive(Default)]
pub struct Tally {
    pub worlds: usize,
    pub restores: usize,
    pub kills: usize,
    pub steps: BTreeMap<&'static str, usize>,
    pub backups: BTreeMap<String, usize>,
    pub pages_compared: usize,
    pub worlds_in_buckets: usize,
    pub worlds_in_weather: usize,
    pub commands_in_weather: usize,
    pub failed_in_weather: usize,
    pub worlds_with_tablespaces: usize,
}

impl Tally {
    pub fn did(&mut self, what: &'static str) {
        *self.steps.entry(what).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} worlds ({} in buckets, {} in bad weather, {} with several tablespaces), {} restores checked, {} kills, {} of {} commands failed in bad weather, {} pages compared, backups {:?}, steps {:?}",
            self.worlds,
            self.worlds_in_buckets,
            self.worlds_in_weather,
            self.worlds_with_tablespaces,
            self.restores,
            self.kills,
            self.failed_in_weather,
            self.commands_in_weather,
            self.pages_compared,
            self.backups,
            self.steps
        )
    }
}
