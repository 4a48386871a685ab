//! Watch: the server's replay, as its log tells it, until the target or its end.
//!
//! In: the log and the postmaster. Out: a [`Verdict`], or the server's own last words. The log is enough, and unlike a
//! connection it needs no password.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::RestoreError;
use super::plan::RestorePlan;
use super::start::StartedServer;
use super::target::Role;
use crate::pg::Lsn;
use crate::pg::control::ControlFile;
use crate::progress::Progress;

/// How a watched recovery ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryEnd {
    /// The server is a primary.
    Promoted,
    /// It waits at the target, read-only.
    Paused,
    /// It stopped at the target.
    ShutDown,
    /// It follows the original, readable.
    Following,
}

/// What became of a recovery.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// How it ended.
    pub end: RecoveryEnd,
    /// Where it stopped, in the server's words; `None` at the end of WAL.
    pub stopped: Option<String>,
    /// The last replayed record.
    pub replayed_to: Option<Lsn>,
    /// When the last replayed transaction ended, in the server's words.
    pub last_transaction: Option<String>,
    /// The server's timeline now.
    pub timeline: Option<u32>,
    /// Segments that it fetched.
    pub segments: u64,
    /// From the server's start until now.
    pub elapsed: Duration,
}

/// What the log has said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFindings {
    segments: u64,
    stopped: Option<String>,
    redo_done: Option<Lsn>,
    last_transaction: Option<String>,
    new_timeline: Option<u32>,
    consistent: bool,
    read_only: bool,
    paused: bool,
    ready: bool,
    shut_down_at_target: bool,
    /// The last FATAL or PANIC.
    fatal: Option<String>,
    /// What was said last, without a meaning of its own here: what is wrong in a configuration file is said so.
    last: Option<String>,
    /// The server's hint.
    hint: Option<String>,
    /// The last error of walhold's own wal-fetch, which writes into the server's log.
    fetch_error: Option<String>,
}

impl LogFindings {
    /// Takes one line. Prefixes differ (`log_line_prefix`), messages in `lc_messages=C` do not.
    pub fn line(&mut self, line: &str) {
        let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest.trim());
        if after("restored log file \"").is_some_and(|name| !name.contains("history")) {
            self.segments += 1;
        } else if let Some(rest) = after("LOG:  recovery stopping ") {
            self.stopped = Some(format!("recovery stopping {rest}"));
        } else if let Some(rest) = after("LOG:  redo done at ") {
            self.redo_done = rest.split_whitespace().next().and_then(|lsn| lsn.parse().ok());
        } else if let Some(rest) = after("LOG:  last completed transaction was at log time ") {
            self.last_transaction = Some(rest.to_owned());
        } else if let Some(rest) = after("LOG:  selected new timeline ID: ") {
            self.new_timeline = rest.parse().ok();
        } else if line.contains("LOG:  consistent recovery state reached") {
            self.consistent = true;
        } else if line.contains("LOG:  database system is ready to accept read") {
            // "read only connections" up to 13, "read-only connections" since 14
            self.read_only = true;
        } else if line.contains("LOG:  pausing at the end of recovery") {
            self.paused = true;
        } else if line.contains("LOG:  database system is ready to accept connections") {
            self.ready = true;
        } else if line.contains("LOG:  shutdown at recovery target") {
            self.shut_down_at_target = true;
        } else if let Some(rest) = after("walhold: ERROR: ") {
            self.fetch_error = Some(rest.to_owned());
        } else if let Some(rest) = after("FATAL:  ").or_else(|| after("PANIC:  ")) {
            // Clients that come too early are refused with FATAL as well.
            let client = [
                "the database system is ",
                "role ",
                "password authentication",
                "no pg_hba.conf entry",
                "database \"",
            ];
            if !client.iter().any(|beginning| rest.starts_with(beginning)) {
                let reason = self.last.take().filter(|_| rest.ends_with("contains errors"));
                self.fatal = Some(reason.map_or(rest.to_owned(), |reason| format!("{rest}: {reason}")));
            }
        } else if let Some(rest) = after("HINT:  ") {
            self.hint = Some(rest.to_owned());
        } else if let Some(rest) = after("LOG:  ") {
            self.last = Some(rest.to_owned());
        }
    }

    fn end(&self, role: Role) -> Option<RecoveryEnd> {
        match () {
            () if self.ready => Some(RecoveryEnd::Promoted),
            () if self.paused => Some(RecoveryEnd::Paused),
            () if role == Role::Standby && self.read_only => Some(RecoveryEnd::Following),
            () => None,
        }
    }
}

/// The log, read as it grows.
struct LogReader {
    file: File,
    position: u64,
    rest: String,
}

impl LogReader {
    fn open(path: &Path) -> Result<LogReader, RestoreError> {
        let file = File::open(path).map_err(|error| RestoreError::local("open", path, &error))?;
        Ok(LogReader { file, position: 0, rest: String::new() })
    }

    /// Hands over the lines that were completed since the last call.
    fn read(&mut self, findings: &mut LogFindings) {
        let mut bytes = Vec::new();
        if self.file.seek(SeekFrom::Start(self.position)).is_err() {
            return;
        }
        // Reading failed half-way: what came is used, the rest comes with the next call.
        let _ = self.file.by_ref().take(16 << 20).read_to_end(&mut bytes);
        self.position += bytes.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((line, rest)) = self.rest.split_once('\n') {
            findings.line(line);
            self.rest = rest.to_owned();
        }
    }
}

/// Watches until recovery has ended.
pub fn watch(plan: &RestorePlan, server: &mut StartedServer) -> Result<Verdict, RestoreError> {
    let started = Instant::now();
    let size = plan.choice.backup.wal_segment_size.bytes();
    let progress = Progress::new("replay", size.saturating_mul(plan.choice.path.segments.len() as u64));
    let mut log = LogReader::open(&server.log)?;
    let mut findings = LogFindings::default();
    loop {
        let ended = server.postmaster.try_wait().ok().flatten();
        let before = findings.segments;
        log.read(&mut findings);
        progress.add(size.saturating_mul(findings.segments - before));
        if let Some(end) = findings.end(plan.request.role) {
            return Ok(verdict(plan, end, &findings, started.elapsed()));
        }
        if let Some(status) = ended {
            if findings.shut_down_at_target {
                return Ok(verdict(plan, RecoveryEnd::ShutDown, &findings, started.elapsed()));
            }
            return Err(stopped_short(&findings, &status.to_string(), &server.log));
        }
        if !crate::interrupt::sleep(Duration::from_millis(100)) {
            return Err(RestoreError::Other {
                cause: crate::exit_status::Cause::Interrupted,
                message: "interrupted while watching: the server goes on recovering".to_owned(),
                hint: Some(format!("its log is {}", server.log.display())),
            });
        }
    }
}

fn verdict(plan: &RestorePlan, end: RecoveryEnd, findings: &LogFindings, elapsed: Duration) -> Verdict {
    let control = std::fs::read(plan.place.pgdata.join("global/pg_control")).ok();
    let control = control.and_then(|bytes| ControlFile::parse(&bytes).ok());
    let current = control.map(|control| control.checkpoint_timeline.get());
    Verdict {
        end,
        stopped: findings.stopped.clone(),
        replayed_to: findings.redo_done,
        last_transaction: findings.last_transaction.clone(),
        timeline: findings.new_timeline.or(current),
        segments: findings.segments,
        elapsed,
    }
}

fn stopped_short(findings: &LogFindings, status: &str, log: &Path) -> RestoreError {
    let words = match &findings.fatal {
        Some(fatal) => format!("it said: {fatal}"),
        None => format!("it ended with {status} and gave no reason"),
    };
    let fetch_failed =
        findings.fatal.as_ref().is_some_and(|fatal| fatal.starts_with("could not restore file"));
    let (fetch_error, fetch_hint) = match findings.fetch_error.as_deref().filter(|_| fetch_failed) {
        Some(error) => error
            .split_once("  HINT: ")
            .map_or((Some(error), None), |(error, hint)| (Some(error), Some(hint))),
        None => (None, None),
    };
    let words = fetch_error.map_or(words.clone(), |error| format!("{words}, because: {error}"));
    let hint = fetch_hint.or(findings.hint.as_deref()).map_or(String::new(), |hint| format!("{hint}; "));
    RestoreError::Server {
        message: format!("the server stopped before the target was reached: {words}"),
        hint: Some(format!("{hint}its whole log is {}", log.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> LogFindings {
        let mut findings = LogFindings::default();
        lines.lines().for_each(|line| findings.line(line));
        findings
    }

    #[test]
    fn a_promotion_is_read_from_the_log() {
        let findings = read(
            "2026-11-21 01:00:00.000 UTC [7] LOG:  starting archive recovery\n\
             2026-11-21 01:00:00.000 UTC [7] LOG:  restored log file \"00000002.history\" from archive\n\
             2026-11-21 01:00:00.000 UTC [7] LOG:  restored log file \"000000010000000000000003\" from archive\n\
             2026-11-21 01:00:00.000 UTC [7] LOG:  consistent recovery state reached at 0/3000100\n\
             2026-11-21 01:00:00.000 UTC [7] LOG:  recovery stopping before commit of transaction 745, time 2026-11-21 00:59:00.1+00\n\
             2026-11-21 01:00:00.000 UTC [7] LOG:  redo done at 0/3000D80 system usage: CPU: user: 0.00 s\n\
             2026-11-21 01:00:00.000 UTC [7] LOG:  last completed transaction was at log time 2026-11-21 00:58:00.2+00\n\
             2026-11-21 01:00:00.000 UTC [7] LOG:  selected new timeline ID: 2\n\
             2026-11-21 01:00:00.000 UTC [9] FATAL:  the database system is starting up\n\
             2026-11-21 01:00:00.000 UTC [1] LOG:  database system is ready to accept connections\n",
        );
        assert_eq!(findings.end(Role::Replacement), Some(RecoveryEnd::Promoted));
        assert_eq!(
            findings.stopped.as_deref(),
            Some("recovery stopping before commit of transaction 745, time 2026-11-21 00:59:00.1+00")
        );
        assert_eq!(findings.redo_done.unwrap().to_string(), "0/3000D80");
        assert_eq!((findings.new_timeline, findings.segments, &findings.fatal), (Some(2), 1, &None));
    }

    #[test]
    fn the_servers_own_words_say_why_it_stopped() {
        let findings = read(
            "x LOG:  restored log file \"000000010000000000000003\" from archive\n\
             x FATAL:  recovery ended before configured recovery target was reached\n\
             x LOG:  startup process (PID 7) exited with exit code 1\n",
        );
        let error = stopped_short(&findings, "exit status: 1", Path::new("/data/log"));
        assert_eq!(
            error.to_string(),
            "the server stopped before the target was reached: it said: recovery ended before configured recovery target was reached"
        );
    }

    #[test]
    fn what_is_wrong_in_the_configuration_is_told() {
        let findings = read(
            "x LOG:  could not open configuration directory \"/data/conf.d\": No such file or directory\n\
             x FATAL:  configuration file \"/data/postgresql.conf\" contains errors\n",
        );
        let error = stopped_short(&findings, "exit status: 1", Path::new("/data/log"));
        assert_eq!(
            error.to_string(),
            "the server stopped before the target was reached: it said: configuration file \"/data/postgresql.conf\" contains errors: \
             could not open configuration directory \"/data/conf.d\": No such file or directory"
        );
    }

    #[test]
    fn a_failed_fetch_is_told_with_its_reason() {
        let findings = read(
            "walhold: ERROR: object main/x is damaged: chunk 3  HINT: restore it\n\
             x FATAL:  could not restore file \"000000010000000000000003\" from archive: child process exited with exit code 214\n",
        );
        let error = stopped_short(&findings, "exit status: 1", Path::new("/data/log"));
        assert_eq!(
            error.to_string(),
            "the server stopped before the target was reached: it said: could not restore file \"000000010000000000000003\" from archive: \
             child process exited with exit code 214, because: object main/x is damaged: chunk 3"
        );
        assert_eq!(crate::error::Explain::hint(&error).unwrap(), "restore it; its whole log is /data/log");
    }

    #[test]
    fn pausing_and_following_are_told_apart() {
        assert_eq!(
            read("x LOG:  pausing at the end of recovery").end(Role::Clone),
            Some(RecoveryEnd::Paused)
        );
        let following = read("x LOG:  database system is ready to accept read-only connections");
        assert_eq!(following.end(Role::Standby), Some(RecoveryEnd::Following));
        assert_eq!(following.end(Role::Clone), None);
    }
}
