//! What is known of the server before its backup begins, and whether it can be backed up from here.
//!
//! In: a session and, if set, the data directory. Out: [`ServerState`], or a refusal with the next step. What must hold:
//! the directory that will be read is the connected server's own. The same cluster may run twice on one machine (a primary
//! and its standby), so its system identifier alone proves nothing.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::BackupError;
use super::control;
use crate::error::system_words;
use crate::format::manifest::ServerFacts;
use crate::local::libraries;
use crate::local::postmaster::noted_process;
use crate::pg::SystemIdentifier;
use crate::pg::client::{ClientError, Session};
use crate::pg::control::{ClusterState, ControlFile};

/// A server that can be backed up.
#[derive(Clone, Debug)]
pub struct ServerState {
    /// Its data directory, on this machine.
    pub pgdata: PathBuf,
    /// Its control file, when it was looked at.
    pub control: ControlFile,
    /// `server_version_num`.
    pub version: u32,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Its `TimeZone`.
    pub time_zone: String,
    /// What the manifest records.
    pub facts: ServerFacts,
    /// Configuration files outside PGDATA, absolute.
    pub external_files: Vec<PathBuf>,
    /// How it archives.
    archiving: Archiving,
}

#[derive(Clone, Debug)]
struct Archiving {
    mode: String,
    command: String,
    library: String,
}

impl ServerState {
    /// The cluster's identity.
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.control.system_identifier
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }

    /// The directory in each tablespace that is this server's.
    pub fn tablespace_directory(&self) -> String {
        format!("PG_{}_{}", self.major(), self.control.catalog_version)
    }
}

/// Settings that the manifest records, as far as the session may read them. None of them can hold a secret.
const RECORDED_SETTINGS: [&str; 20] = [
    "archive_mode",
    "data_checksums",
    "data_directory_mode",
    "full_page_writes",
    "hot_standby",
    "lc_messages",
    "listen_addresses",
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
    "port",
    "server_encoding",
    "shared_buffers",
    "shared_preload_libraries",
    "track_commit_timestamp",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
];

/// Settings that name configuration files.
const FILE_SETTINGS: [&str; 3] = ["config_file", "hba_file", "ident_file"];

/// Settings that decide what is done here.
const DECIDING_SETTINGS: [&str; 4] = ["archive_command", "archive_library", "data_directory", "TimeZone"];

/// Asks the server and looks at its directory.
pub fn learn(session: &mut Session, pgdata: Option<&Path>) -> Result<ServerState, BackupError> {
    let names = [&RECORDED_SETTINGS[..], &FILE_SETTINGS, &DECIDING_SETTINGS].concat();
    let settings = session.settings(&names)?;
    let setting = |name: &str| settings.get(name).cloned().unwrap_or_default();
    let pgdata = find_pgdata(pgdata, settings.get("data_directory").map(String::as_str))?;
    let control = control::read(&pgdata)?.file;
    let in_recovery = session.in_recovery()?;
    prove_own_directory(session, &pgdata, &control, in_recovery)?;
    let external_files = external_files(session, &settings, &pgdata);
    let recorded = |name: &&str| Some(((*name).to_owned(), settings.get(*name)?.clone()));
    let facts = ServerFacts {
        version_text: word(session, "ask for the server's version", "SELECT version()")?,
        data_directory: setting("data_directory"),
        external_configuration: external_files.iter().map(|path| path.display().to_string()).collect(),
        glibc_version: libraries::glibc_version(),
        icu_version: icu_version(session),
        icu_library: icu_library(&pgdata),
        catalog_version: control.catalog_version,
        settings: RECORDED_SETTINGS.iter().filter_map(recorded).collect(),
        damaged_blocks: Vec::new(),
    };
    Ok(ServerState {
        version: session.server_version_num(),
        in_recovery,
        time_zone: setting("TimeZone"),
        facts,
        external_files,
        archiving: Archiving {
            mode: setting("archive_mode"),
            command: setting("archive_command"),
            library: setting("archive_library"),
        },
        pgdata,
        control,
    })
}

/// Refuses a server whose backup could never be completed or restored, before anything is copied.
pub fn check(session: &mut Session, state: &ServerState) -> Result<(), BackupError> {
    let wal_level = state.facts.settings.get("wal_level").map(String::as_str).unwrap_or_default();
    if wal_level == "minimal" {
        return Err(refused(
            "wal_level is minimal: WAL does not hold what a restore needs",
            "set wal_level = replica and restart the server",
        ));
    }
    if state.in_recovery {
        return check_standby(session, state);
    }
    if !matches!(state.archiving.mode.as_str(), "on" | "always") {
        let problem = format!(
            "archive_mode is {}: the WAL that the backup needs would never be archived",
            state.archiving.mode
        );
        return Err(refused(
            problem,
            "set archive_mode = on and archive_command = 'walhold wal-push %p', and restart the server",
        ));
    }
    let unset = |text: &str| text.is_empty() || text == "(disabled)";
    if unset(&state.archiving.command) && unset(&state.archiving.library) {
        return Err(refused(
            "archive_command is empty: the WAL that the backup needs would never be archived",
            "set archive_command = 'walhold wal-push %p' and reload the server",
        ));
    }
    Ok(())
}

/// A standby's WAL is archived by its primary, or by itself with `archive_mode = always`: which of the two shows only
/// when it arrives. Its pages are only safe to copy if the primary logs full pages.
fn check_standby(session: &mut Session, state: &ServerState) -> Result<(), BackupError> {
    if state.control.state != ClusterState::InArchiveRecovery {
        return Err(refused(
            "the server is still recovering from a crash",
            "wait until it accepts connections as a standby or as a primary",
        ));
    }
    let sql = "SELECT full_page_writes::text FROM pg_control_checkpoint()";
    if word(session, "ask for the last checkpoint", sql)? != "true" {
        return Err(refused(
            "the primary runs with full_page_writes = off: pages copied from its standby may be torn for good",
            "set full_page_writes = on on the primary, reload it and run CHECKPOINT there, or back up the primary",
        ));
    }
    Ok(())
}

fn refused(problem: impl Into<String>, hint: impl Into<String>) -> BackupError {
    BackupError::Refused { problem: problem.into(), hint: hint.into() }
}

/// The only value of the only row.
fn word(session: &mut Session, what: &str, sql: &str) -> Result<String, BackupError> {
    let row = session.client().query_one(sql, &[]).and_then(|row| row.try_get(0));
    row.map_err(|error| BackupError::Client(ClientError::query(what, &error)))
}

fn find_pgdata(configured: Option<&Path>, data_directory: Option<&str>) -> Result<PathBuf, BackupError> {
    if let Some(configured) = configured {
        return Ok(configured.to_owned());
    }
    match data_directory {
        Some(directory) => Ok(PathBuf::from(directory)),
        None => Err(refused(
            "the server does not tell this role where its data directory is",
            "set --pgdata (or PGDATA), or GRANT pg_read_all_settings to the role",
        )),
    }
}

/// Refuses a directory that is not the connected server's own.
fn prove_own_directory(
    session: &mut Session,
    pgdata: &Path,
    control: &ControlFile,
    in_recovery: bool,
) -> Result<(), BackupError> {
    let identifier = session.system_identifier()?;
    let other = |problem: String| {
        refused(
            problem,
            "run walhold on the server's own machine, and let PGHOST, PGPORT and PGDATA (--pgdata) mean the same server",
        )
    };
    if identifier != control.system_identifier {
        let local = control.system_identifier;
        let place = pgdata.display();
        return Err(other(format!(
            "{place} belongs to the cluster with system identifier {local}, but the connected server's is {identifier}"
        )));
    }
    let path = pgdata.join("postmaster.pid");
    let local = std::fs::read_to_string(&path).map_err(|error| {
        other(format!(
            "{} is not the connected server's data directory: read {}: {}",
            pgdata.display(),
            path.display(),
            system_words(&error)
        ))
    })?;
    let same = match session.client().query_one("SELECT pg_read_file('postmaster.pid')", &[]) {
        Ok(row) => same_postmaster(&local, row.try_get(0).unwrap_or_default()),
        // This role may not read the server's files: its start time and its state have to do.
        Err(_) => {
            let sql = "SELECT floor(extract(epoch FROM pg_postmaster_start_time()))::bigint::text";
            let started: i64 =
                word(session, "ask when the server was started", sql)?.parse().unwrap_or_default();
            let same_state = in_recovery == (control.state == ClusterState::InArchiveRecovery);
            started_at(&local).is_some_and(|local| (0..=60).contains(&(started - local))) && same_state
        }
    };
    if same {
        return Ok(());
    }
    Err(other(format!(
        "{} is the data directory of another server of this cluster, not of the connected one",
        pgdata.display()
    )))
}

/// Whether two texts of `postmaster.pid` are of one server: process, directory, start, port, socket and address; the
/// lines after them may change while it runs.
fn same_postmaster(one: &str, other: &str) -> bool {
    let lines = |text: &str| text.lines().take(6).map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    lines(one).len() >= 4 && lines(one) == lines(other)
}

/// The start time in `postmaster.pid`, seconds since 1970 (`LOCK_FILE_LINE_START_TIME`).
fn started_at(postmaster_pid: &str) -> Option<i64> {
    postmaster_pid.lines().nth(2)?.trim().parse().ok()
}

/// Configuration files that lie outside PGDATA, and files that they include.
fn external_files(session: &mut Session, settings: &BTreeMap<String, String>, pgdata: &Path) -> Vec<PathBuf> {
    if !settings.contains_key("config_file") {
        tracing::warn!(
            "the server does not tell this role where its configuration files are: those outside the data directory are not part of the backup; GRANT pg_read_all_settings to it"
        );
    }
    let mut files: Vec<String> =
        FILE_SETTINGS.iter().filter_map(|name| settings.get(*name).cloned()).collect();
    // Superusers only, and only files that set something; the rest of them the administrator knows.
    if let Ok(rows) = session.client().query("SELECT DISTINCT sourcefile FROM pg_file_settings", &[]) {
        files.extend(rows.iter().filter_map(|row| row.try_get::<_, Option<String>>(0).ok().flatten()));
    }
    let real_pgdata = pgdata.canonicalize().unwrap_or_else(|_| pgdata.to_owned());
    let mut external: Vec<PathBuf> =
        files.iter().filter_map(|file| external_file(Path::new(file), &real_pgdata)).collect();
    external.sort();
    external.dedup();
    external
}

/// The file's path if it does not lie below `pgdata`: as it is configured, unless that has `..` in it.
fn external_file(file: &Path, pgdata: &Path) -> Option<PathBuf> {
    let real = file.canonicalize().ok()?;
    if real.starts_with(pgdata) {
        return None;
    }
    // A link inside PGDATA is not saved, but what it leads to is, where it lies.
    let plain = file.is_absolute()
        && !file.starts_with(pgdata)
        && file.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    Some(if plain { file.to_owned() } else { real })
}

/// The ICU that the server has loaded.
fn icu_library(pgdata: &Path) -> Option<String> {
    libraries::icu_of_process(noted_process(pgdata)?)
}

/// The collation version that ICU reports for its root collation.
fn icu_version(session: &mut Session) -> Option<String> {
    let sql = "SELECT pg_collation_actual_version(oid) FROM pg_collation WHERE collprovider = 'i' ORDER BY collname = 'und-x-icu' DESC LIMIT 1";
    session.client().query_opt(sql, &[]).ok()??.try_get(0).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_apart_by_their_pid_files() {
        let one = "123\n/data\n1763650000\n5432\n/tmp\nlocalhost\n  5432001  12\nready   \n";
        assert!(same_postmaster(one, &one.replace("ready   ", "stopping")));
        for (from, to) in
            [("123\n", "124\n"), ("1763650000", "1763650001"), ("5432\n", "5433\n"), ("/tmp", "/run")]
        {
            assert!(!same_postmaster(one, &one.replace(from, to)), "{from}");
        }
        assert!(!same_postmaster("", ""));
        assert_eq!(started_at(one), Some(1_763_650_000));
    }

    #[test]
    fn configuration_inside_pgdata_is_not_external() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let pgdata = root.join("data");
        std::fs::create_dir(&pgdata).unwrap();
        for file in ["data/inside.conf", "outside.conf"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        std::os::unix::fs::symlink(root.join("outside.conf"), pgdata.join("link.conf")).unwrap();
        let external = |file: &str| external_file(&root.join(file), &pgdata);
        assert_eq!(external("data/inside.conf"), None);
        assert_eq!(external("outside.conf"), Some(root.join("outside.conf")));
        assert_eq!(external("data/../outside.conf"), Some(root.join("outside.conf")));
        assert_eq!(external("missing.conf"), None);
        assert_eq!(external("data/link.conf"), Some(root.join("outside.conf")));
    }
}
