//! Does everything fit together: server, settings, files, clocks, store, and WAL on its way there and back?
//!
//! In: the configuration, and whatever of server and store answers. Out: findings, each one line with the next step. What must hold: nothing of the
//! server's or the archive's is changed, but for what a WAL round trip leaves, a restore point and a segment that ended early; an object that probes
//! the store is removed again where the credentials allow it.

mod archive_command;
mod archiving;
mod clock;
mod permissions;
mod round_trip;
mod server;
mod shell_words;
mod store;

use serde::Serialize;

use crate::config::Config;
use crate::error::Explain;
use crate::format::ClusterName;

/// Whether WAL is sent on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoundTrip {
    /// Write a restore point, end the segment, wait for it in the repository, read it back.
    Make,
    /// Leave the server's WAL alone.
    LeaveOut,
}

/// All that was looked at.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// The repository's URL, without secrets.
    pub repository: String,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// When, by this machine's clock.
    pub checked_at: jiff::Timestamp,
    /// False if a finding is bad.
    pub healthy: bool,
    /// In the order in which things were looked at.
    pub findings: Vec<Finding>,
}

/// What one look found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a stable word.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// One line.
    pub text: String,
    /// The next step, if one is worth taking.
    pub hint: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or could not be looked at.
    Warning,
    /// Something is lost, or recovery fails, if it stays so.
    Bad,
}

impl Level {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Bad => "bad",
        }
    }
}

/// Collects findings.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &'static str, level: Level, text: impl Into<String>, hint: Option<String>) {
        self.0.push(Finding { check, level, text: text.into(), hint });
    }

    fn ok(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(check, Level::Ok, text, None);
    }

    fn warning(&mut self, check: &'static str, text: impl Into<String>, hint: impl Into<String>) {
        self.add(check, Level::Warning, text, Some(hint.into()));
    }

    fn bad(&mut self, check: &'static str, text: impl Into<String>, hint: impl Into<String>) {
        self.add(check, Level::Bad, text, Some(hint.into()));
    }

    /// A failure in its own words.
    fn failed(&mut self, check: &'static str, error: &(impl Explain + ?Sized)) {
        self.add(check, Level::Bad, error.to_string(), error.hint());
    }
}

/// Looks at everything.
pub fn check(config: &Config, trip: RoundTrip) -> CheckReport {
    let mut findings = Findings::default();
    let mut server = server::look(config, &mut findings);
    if let Some(server) = &mut server {
        archiving::look(server, config, &mut findings);
    }
    let keys = permissions::look(config, server.as_ref(), &mut findings);
    let store = store::look(config, &mut findings);
    clock::look(server.as_mut(), store.as_ref(), &mut findings);
    if let Some(store) = &store {
        store::look_at_cluster(store, server.as_ref(), keys.as_ref(), config, &mut findings);
        match (&mut server, &keys, trip) {
            (Some(server), Some(keys), RoundTrip::Make) => {
                round_trip::look(server, &store.repository, keys, config, &mut findings);
            }
            // What is missing for it was told already.
            (None, ..) | (_, None, _) | (.., RoundTrip::LeaveOut) => {}
        }
    }
    CheckReport {
        repository: crate::repository::display_url(&config.repository),
        cluster: config.cluster.clone(),
        checked_at: jiff::Timestamp::now(),
        healthy: findings.0.iter().all(|finding| finding.level != Level::Bad),
        findings: findings.0,
    }
}

/// The report for people: one line each, the hint below it.
pub fn text(report: &CheckReport) -> String {
    let width = report.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in &report.findings {
        text += &format!("{:<7}  {:<width$}  {}\n", finding.level.word(), finding.check, finding.text);
        if let Some(hint) = &finding.hint {
            text += &format!("{:<7}  {:<width$}  HINT: {hint}\n", "", "");
        }
    }
    text += if report.healthy { "healthy\n" } else { "unhealthy\n" };
    text
}
