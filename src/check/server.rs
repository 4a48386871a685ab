//! The server: whether it answers, what it is, whether this role may do what backups need, and whose directory is here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Findings;
use crate::config::Config;
use crate::pg::client::Session;
use crate::pg::control::ControlFile;
use crate::pg::{SystemIdentifier, WalSegmentSize};

/// The majors under test.
const TESTED: std::ops::RangeInclusive<u32> = 14..=18;
/// The oldest one whose WAL and backups are understood.
const OLDEST: u32 = 13;

const SETTINGS: [&str; 12] = [
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "data_checksums",
    "data_directory",
    "full_page_writes",
    "summarize_wal",
    "wal_level",
    "wal_log_hints",
    "wal_segment_size",
    "fsync",
];

/// A server that answered.
pub struct Server {
    /// The connection.
    pub session: Session,
    /// Whose it is.
    pub system: SystemIdentifier,
    /// Whether it is a standby, or still recovering.
    pub in_recovery: bool,
    /// Its settings, as far as this role sees them.
    pub settings: BTreeMap<String, String>,
    /// Its segment size.
    pub segment_size: WalSegmentSize,
    /// Its data directory, if it is on this machine.
    pub pgdata: Option<PathBuf>,
}

impl Server {
    /// A setting; empty if it is not known.
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// Connects and asks.
pub fn look(config: &Config, findings: &mut Findings) -> Option<Server> {
    let mut session = match Session::connect(&config.connection) {
        Ok(session) => session,
        Err(error) => {
            findings.failed("server", &error);
            return None;
        }
    };
    let asked = session
        .system_identifier()
        .and_then(|system| Ok((system, session.in_recovery()?, session.settings(&SETTINGS)?)));
    let (system, in_recovery, settings) = match asked {
        Ok(answers) => answers,
        Err(error) => {
            findings.failed("server", &error);
            return None;
        }
    };
    let role = if in_recovery { "in recovery: a standby" } else { "a primary" };
    findings.ok(
        "server",
        format!(
            "PostgreSQL {} at {}, {role}, system {system}",
            version_text(&mut session),
            session.address()
        ),
    );
    look_at_version(session.server_major(), findings);
    look_at_role(&mut session, findings);
    let segment_size = settings.get("wal_segment_size").and_then(|size| size.parse().ok());
    let segment_size = segment_size.and_then(WalSegmentSize::new).unwrap_or(WalSegmentSize::DEFAULT);
    let pgdata = find_pgdata(config, settings.get("data_directory").map(Path::new), system, findings);
    Some(Server { session, system, in_recovery, settings, segment_size, pgdata })
}

fn version_text(session: &mut Session) -> String {
    session.show("server_version").unwrap_or_else(|_| session.server_major().to_string())
}

fn look_at_version(major: u32, findings: &mut Findings) {
    let tested = format!("PostgreSQL {} to {} are tested", TESTED.start(), TESTED.end());
    match major {
        major if TESTED.contains(&major) => findings.ok("version", format!("PostgreSQL {major} is supported")),
        major if major < OLDEST => findings.bad(
            "version",
            format!("PostgreSQL {major} is too old for walhold"),
            format!("upgrade the server: {tested}"),
        ),
        major => findings.warning(
            "version",
            format!("PostgreSQL {major} is not tested with this walhold: {tested}"),
            "upgrade the older of the two; until then verify recovery yourself (walhold restore --clone --start)",
        ),
    }
}

/// What a backup calls on the server.
fn look_at_role(session: &mut Session, findings: &mut Findings) {
    let functions: [&str; 3] = match session.server_major() {
        15.. => ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)", "pg_switch_wal()"],
        _ => {
            ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)", "pg_switch_wal()"]
        }
    };
    let sql = "SELECT f FROM unnest($1::text[]) AS f WHERE NOT has_function_privilege(f, 'EXECUTE')";
    let user = session.show("session_authorization").unwrap_or_default();
    match session.client().query(sql, &[&functions.as_slice()]) {
        Ok(rows) if rows.is_empty() => {
            findings.ok("role", format!("role {user} may take backups"));
        }
        Ok(rows) => {
            let missing: Vec<String> =
                rows.iter().filter_map(|row| row.try_get::<_, String>(0).ok()).collect();
            let grants: Vec<String> = missing
                .iter()
                .map(|function| format!("GRANT EXECUTE ON FUNCTION {function} TO {user}"))
                .collect();
            findings.bad(
                "role",
                format!("role {user} may not execute {}: backups and WAL switches fail", missing.join(", ")),
                format!("{}; and GRANT pg_read_all_settings TO {user}", grants.join("; ")),
            );
        }
        Err(error) => findings
            .failed("role", &crate::pg::client::ClientError::query("ask for the role's rights", &error)),
    }
}

/// The server's own directory, if it lies on this machine.
fn find_pgdata(
    config: &Config,
    data_directory: Option<&Path>,
    system: SystemIdentifier,
    findings: &mut Findings,
) -> Option<PathBuf> {
    let control_of = |pgdata: &Path| {
        let bytes = std::fs::read(pgdata.join("global/pg_control"));
        bytes.map(|bytes| ControlFile::parse(&bytes).ok().map(|control| control.system_identifier))
    };
    if let Some(configured) = config.pgdata.as_deref() {
        match control_of(configured) {
            Ok(Some(found)) if found == system => {}
            Ok(Some(found)) => {
                findings.bad(
                    "pgdata",
                    format!(
                        "{} belongs to system {found}, but the connected server is {system}",
                        configured.display()
                    ),
                    "let PGDATA (--pgdata) and PGHOST, PGPORT (--connection) mean the same server",
                );
                return None;
            }
            Ok(None) => {}
            Err(error) => {
                findings.bad(
                    "pgdata",
                    format!("read {}/global/pg_control: {}", configured.display(), crate::error::system_words(&error)),
                    "--pgdata (PGDATA) names the directory that postgres -D names; run walhold as the user that owns it",
                );
                return None;
            }
        }
        return Some(configured.to_owned());
    }
    let directory = data_directory?;
    match control_of(directory) {
        Ok(Some(found)) if found == system => Some(directory.to_owned()),
        _ => {
            findings.warning(
                "pgdata",
                format!(
                    "the server's data directory {} cannot be read here: files are not looked at",
                    directory.display()
                ),
                "run walhold check on the server's own machine, as the user that PostgreSQL runs as",
            );
            None
        }
    }
}
