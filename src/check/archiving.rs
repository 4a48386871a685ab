//! The server's settings and its archiver.

use std::time::Duration;

use super::server::Server;
use super::{Findings, archive_command};
use crate::config::Config;
use crate::output::human_duration;

/// Files that wait for the archiver on a server that is merely busy.
const BUSY: i64 = 10;
/// More than that, and pg_wal grows faster than the archive.
const FALLING_BEHIND: i64 = 100;

/// Looks at both.
pub fn look(server: &mut Server, config: &Config, findings: &mut Findings) {
    look_at_wal_level(server, findings);
    if look_at_archive_mode(server, findings) {
        archive_command::look(server, config, findings);
        look_at_timeout(server, config, findings);
        look_at_archiver(server, findings);
        look_at_backlog(server, findings);
    }
    look_at_pages(server, findings);
    look_at_summaries(server, findings);
}

fn look_at_wal_level(server: &Server, findings: &mut Findings) {
    match server.setting("wal_level") {
        level @ ("replica" | "logical") => findings.ok("wal_level", format!("wal_level is {level}")),
        level => findings.bad(
            "wal_level",
            format!("wal_level is {level}: WAL does not hold what a restore needs"),
            "set wal_level = replica and restart the server",
        ),
    }
}

/// Whether this server archives.
fn look_at_archive_mode(server: &Server, findings: &mut Findings) -> bool {
    match (server.setting("archive_mode"), server.in_recovery) {
        ("always", _) => {
            findings.ok("archive_mode", "archive_mode is always");
            true
        }
        ("on", false) => {
            findings.ok("archive_mode", "archive_mode is on");
            true
        }
        ("on", true) => {
            findings.ok(
                "archive_mode",
                "archive_mode is on: the primary archives, and this standby when it is promoted",
            );
            true
        }
        (mode, true) => {
            findings.warning(
                "archive_mode",
                format!(
                    "archive_mode is {mode} on this standby: after a promotion nothing would be archived"
                ),
                "set archive_mode = on and the primary's archive_command here too, and restart",
            );
            false
        }
        (mode, false) => {
            findings.bad(
                "archive_mode",
                format!("archive_mode is {mode}: nothing is archived"),
                "set archive_mode = on and archive_command = 'walhold wal-push %p', and restart the server",
            );
            false
        }
    }
}

/// An idle server finishes no segment: archive_timeout bounds what is lost with the host. A segment needs time on its way too, so that half of what may
/// be lost is what it should be.
fn look_at_timeout(server: &Server, config: &Config, findings: &mut Findings) {
    let seconds: u64 = server.setting("archive_timeout").parse().unwrap_or(0);
    let timeout = Duration::from_secs(seconds);
    let limit = config.status.max_archive_age;
    let advice = |limit: Duration| format!("set archive_timeout = {}", (limit.as_secs() / 2).max(1));
    match (seconds, limit) {
        (0, limit) => findings.warning(
            "archive_timeout",
            "archive_timeout is 0: on a quiet server the last commits are not archived until the segment is full",
            limit.map_or("set archive_timeout = 60: the most that is lost with the host, in seconds".to_owned(), advice),
        ),
        (_, Some(limit)) if timeout > limit => findings.warning(
            "archive_timeout",
            format!(
                "archive_timeout is {}, longer than status.max_archive_age ({}): more may be lost than is allowed",
                human_duration(timeout),
                human_duration(limit)
            ),
            advice(limit),
        ),
        (_, Some(limit)) if timeout * 2 > limit => findings.warning(
            "archive_timeout",
            format!(
                "archive_timeout is {}, more than half of status.max_archive_age ({}): the time of an upload comes on top",
                human_duration(timeout),
                human_duration(limit)
            ),
            advice(limit),
        ),
        _ => findings.ok(
            "archive_timeout",
            format!("archive_timeout is {}: so much, and one upload, is lost with the host", human_duration(timeout)),
        ),
    }
}

fn look_at_archiver(server: &mut Server, findings: &mut Findings) {
    let sql = "SELECT last_failed_time > coalesce(last_archived_time, '-infinity'), last_failed_wal, failed_count, last_archived_wal, \
               extract(epoch FROM clock_timestamp() - last_archived_time)::bigint, \
               extract(epoch FROM clock_timestamp() - last_failed_time)::bigint FROM pg_stat_archiver";
    let row = match server.session.client().query_one(sql, &[]) {
        Ok(row) => row,
        Err(error) => {
            findings
                .failed("archiver", &crate::pg::client::ClientError::query("read pg_stat_archiver", &error));
            return;
        }
    };
    let text = |at: usize| row.try_get::<_, Option<String>>(at).ok().flatten();
    let age = |at: usize| {
        let seconds = row.try_get::<_, Option<i64>>(at).ok().flatten().unwrap_or(0);
        human_duration(Duration::from_secs(seconds.max(0).unsigned_abs()))
    };
    let fails = row.try_get::<_, Option<bool>>(0).ok().flatten() == Some(true);
    match (fails, text(3)) {
        (true, _) => findings.bad(
            "archiver",
            format!("archiving {} fails, {} ago the last time", text(1).unwrap_or_default(), age(5)),
            "the server's log has archive_command's own words: what failed, why, and a hint",
        ),
        (false, Some(last)) => {
            findings.ok("archiver", format!("{last} was archived {} ago, and nothing failed since", age(4)));
        }
        (false, None) if server.in_recovery => {
            findings.ok("archiver", "this server has archived nothing since it was started: it is a standby");
        }
        (false, None) => findings.warning(
            "archiver",
            "nothing was ever archived by this server",
            "on a new server that is no wonder: SELECT pg_switch_wal() gives the archiver something to do",
        ),
    }
}

fn look_at_backlog(server: &mut Server, findings: &mut Findings) {
    let sql = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    // A role that may not look does without.
    let Ok(row) = server.session.client().query_one(sql, &[]) else { return };
    let waiting: i64 = row.try_get(0).unwrap_or(0);
    let text = format!("{waiting} files in pg_wal wait for the archiver");
    match waiting {
        waiting if waiting <= BUSY => findings.ok("backlog", text),
        waiting if waiting <= FALLING_BEHIND => findings.warning(
            "backlog",
            text,
            "watch whether it becomes less; docs/wal.md says how to archive faster",
        ),
        _ => findings.bad(
            "backlog",
            format!("{text}: pg_wal fills its disk, and all of it is lost with the host"),
            "find out why in the server's log; docs/wal.md says how to archive faster",
        ),
    }
}

fn look_at_pages(server: &Server, findings: &mut Findings) {
    match server.setting("full_page_writes") {
        "on" => findings.ok("full_page_writes", "full_page_writes is on"),
        _ => findings.bad(
            "full_page_writes",
            "full_page_writes is off: a crash, or a backup from a standby, may leave torn pages for good",
            "set full_page_writes = on and reload the server",
        ),
    }
    if server.setting("fsync") == "off" {
        findings.warning(
            "fsync",
            "fsync is off: after a power failure the data directory is lost",
            "set fsync = on and reload the server, unless this is a scratch one",
        );
    }
    match (server.setting("data_checksums"), server.setting("wal_log_hints")) {
        ("on", _) => findings.ok("data_checksums", "data checksums are on: backups verify every page"),
        (_, hints) => findings.warning(
            "data_checksums",
            "data checksums are off: damaged pages go into backups unnoticed",
            match hints {
                "on" => "stop the server, pg_checksums --enable, start it; the next backup is then a full one",
                _ => "stop the server, pg_checksums --enable, start it; until then wal_log_hints = on lets backups find changes by page LSN",
            },
        ),
    }
}

fn look_at_summaries(server: &Server, findings: &mut Findings) {
    match server.setting("summarize_wal") {
        "on" => findings.ok("summarize_wal", "summarize_wal is on: backups ask the server what has changed"),
        "off" => findings.ok(
            "summarize_wal",
            "summarize_wal is off: backups find what has changed in the archive's WAL index instead",
        ),
        // Before 17 there is none.
        _ => {}
    }
}
