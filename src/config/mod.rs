//! Settings: flag, then `WALHOLD_*`, then the TOML file, then default. See docs/configuration.md.
//!
//! [`schema`] is the table of all settings, [`load`] collects their values with their origins, [`Config`] is what
//! the rest of walhold sees. Nothing here reads the working directory: under PostgreSQL that is the data directory.

pub mod error;
pub mod fingerprint;
pub mod keys;
pub mod load;
pub mod redact;
pub mod schema;
pub mod suggest;
pub mod value;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::{ConfigError, Origin};
pub use load::Sources;

use self::load::{Effective, Found};
use self::schema::{Fallback, SETTINGS, Secrecy, Setting};
use self::value::Value;
use crate::codec::Compression;
use crate::error::Failure;
use crate::exit_status::Cause;
use crate::format::ClusterName;
use crate::pg::client::ConnectionSettings;
use crate::repository::RepositorySettings;

/// Who named the data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PgdataOrigin {
    /// The command line of this run.
    Flag,
    /// The environment or a file, which may serve several servers; or nobody.
    Setting,
}

/// The effective settings of one run, checked. `Debug` shows no secrets.
#[derive(Clone)]
pub struct Config {
    /// The TOML file that was read, if any.
    pub file: Option<PathBuf>,
    /// Where the repository is; its URL is empty if none is configured, and opening it then says so. Commands
    /// that need it begin with [`Config::require_repository`].
    pub repository: RepositorySettings,
    /// The name under which the cluster's objects lie.
    pub cluster: ClusterName,
    /// `--pgdata`, `WALHOLD_PGDATA`, TOML, `PGDATA`; `None` if none is set. See [`Config::data_directory`].
    pub pgdata: Option<PathBuf>,
    /// Whether `pgdata` was named for this run alone, by the flag: then no working directory outweighs it.
    pub pgdata_origin: PgdataOrigin,
    /// How to reach the server.
    pub connection: ConnectionSettings,
    /// Where notes, locks and journals lie.
    pub state_dir: PathBuf,
    /// How new objects are compressed.
    pub compression: Compression,
    /// Where keys come from, unread: [`Config::key_ring`] reads them.
    pub encryption: EncryptionSettings,
    /// Parallel jobs of backup and restore; default the cores.
    pub jobs: usize,
    /// Bytes per second that a backup may write to the repository; `None` for no limit.
    pub rate_limit: Option<u64>,
    /// What `expire` keeps.
    pub retention: RetentionSettings,
    /// What `status` calls unhealthy.
    pub status: StatusSettings,
    /// WAL settings.
    pub wal: WalSettings,
    /// Where the agent listens.
    pub agent_socket: PathBuf,
    /// How logs are written.
    pub log: LogSettings,
    /// Every setting as `walhold config` shows it, in the schema's order, then the repository's options.
    pub table: Vec<ShownSetting>,
}

/// One line of `walhold config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownSetting {
    /// The TOML key.
    pub key: String,
    /// The value as far as it may be shown; `None` if unset.
    pub value: Option<String>,
    /// True if something of the value is hidden.
    pub hidden: bool,
    /// Where the value comes from.
    pub origin: Origin,
    /// The whole value, for [`Config::carried_variables`].
    carried: Option<(&'static str, String)>,
}

/// `[encryption]`.
#[derive(Clone, Default)]
pub struct EncryptionSettings {
    /// Files with one key each; the first writes.
    pub key_files: Vec<PathBuf>,
    /// A command whose standard output is a key; instead of files.
    pub key_command: Option<String>,
}

impl EncryptionSettings {
    /// Whether they name a key: new objects are then encrypted.
    pub fn encrypts(&self) -> bool {
        !self.key_files.is_empty() || self.key_command.is_some()
    }
}

impl fmt::Debug for EncryptionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptionSettings")
            .field("key_files", &self.key_files)
            .field("key_command", &self.key_command.as_deref().map(redact::command_name))
            .finish()
    }
}

/// `[retention]`. The policies combine: what one of them keeps is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionSettings {
    /// The newest so many.
    pub keep_last: Option<u32>,
    /// Every moment within this time.
    pub keep_within: Option<Duration>,
    /// The newest of each of so many days.
    pub daily: Option<u32>,
    /// Of weeks.
    pub weekly: Option<u32>,
    /// Of months.
    pub monthly: Option<u32>,
    /// Of years.
    pub yearly: Option<u32>,
    /// Where days begin.
    pub time_zone: String,
    /// Between announcing and deleting.
    pub grace: Duration,
    /// After which an unfinished backup without a sign of life is dead.
    pub attempt_grace: Duration,
}

/// `[status]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSettings {
    /// A last backup older than this is overdue.
    pub max_backup_age: Duration,
    /// A newest segment archived longer ago than this is late; `None`: not judged.
    pub max_archive_age: Option<Duration>,
    /// A last verification older than this is overdue; `None`: not judged.
    pub max_verify_age: Option<Duration>,
}

/// `[wal]`.
#[derive(Clone, Debug)]
pub struct WalSettings {
    /// How long wal-push asks a failing store again: 60 s.
    pub push_deadline: Duration,
    /// How long wal-fetch does for segments: 60 s.
    pub fetch_deadline: Duration,
    /// How long wal-fetch does for `.history` files: 10 min.
    pub history_deadline: Duration,
    /// What an error in wal-fetch ends with.
    pub fetch_on_error: FetchOnError,
    /// Treats a hole before stored segments as the end of WAL: only for a host that is lost for good.
    pub allow_gap: bool,
    /// How many waiting segments one wal-push archives beside the asked one: 32.
    pub push_ahead: usize,
    /// Compressed bytes of those that may be on their way to a cloud store at once: 10 MB.
    pub push_ahead_memory: u64,
    /// Bytes that segments fetched ahead may take on a recovering server's disk: 256 MB; 0 for none.
    pub prefetch: u64,
}

/// `wal.fetch_on_error`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchOnError {
    /// Abort recovery, except for segments where `standby.signal` stands.
    Auto,
    /// Always exit above 125.
    Abort,
    /// Always exit 1.
    Absent,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Text or JSON lines.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people, and for PostgreSQL's log.
    Text,
    /// One object per line.
    Json,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |setting: &ShownSetting| {
            (setting.key.clone(), setting.value.clone().unwrap_or_default(), setting.origin.to_string())
        };
        f.debug_struct("Config")
            .field("file", &self.file)
            .field("settings", &self.table.iter().map(shown).collect::<Vec<_>>())
            .finish()
    }
}

impl Config {
    /// Collects and checks all settings. A repository need not be configured: see [`Config::require_repository`].
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        Config::from_effective(load::collect(sources)?, sources)
    }

    /// The settings that a TOML text and the defaults give, without flags, variables or other files. `path` is
    /// the name for messages.
    pub fn from_toml(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let nothing =
            Sources { flags: Vec::new(), config_flag: None, variables: Vec::new(), default_file: None };
        let mut effective = Effective::default();
        load::collect_file(text, path, &mut effective)?;
        load::collect_defaults(&mut effective)?;
        Config::from_effective(effective, &nothing)
    }

    fn from_effective(effective: Effective, sources: &Sources) -> Result<Config, ConfigError> {
        keys::refuse_two_key_sources(&effective)?;
        let state_dir = effective.path(&schema::STATE_DIR).unwrap_or_else(|| default_state_dir(sources));
        let jobs = match effective.value(&schema::JOBS) {
            Some(Value::Number(jobs)) => usize::try_from(*jobs).unwrap_or(1),
            _ => std::thread::available_parallelism().map_or(1, usize::from).min(256),
        };
        let options = effective.options.iter().map(|(key, (value, _))| (key.clone(), value.clone()));
        Ok(Config {
            table: shown_settings(&effective, &state_dir, jobs),
            agent_socket: effective
                .path(&schema::AGENT_SOCKET)
                .unwrap_or_else(|| state_dir.join("agent.socket")),
            repository: RepositorySettings {
                url: effective.text(&schema::REPOSITORY_URL).unwrap_or_default(),
                options: options.collect(),
            },
            cluster: match effective.value(&schema::CLUSTER) {
                Some(Value::Cluster(name)) => name.clone(),
                _ => ClusterName::default(),
            },
            pgdata: effective.path(&schema::PGDATA),
            pgdata_origin: effective.pgdata_origin(),
            connection: ConnectionSettings { connection: effective.text(&schema::CONNECTION) },
            state_dir,
            compression: effective.compression(),
            encryption: EncryptionSettings {
                key_files: match effective.value(&schema::KEY_FILE) {
                    Some(Value::Paths(paths)) => paths.clone(),
                    _ => Vec::new(),
                },
                key_command: effective.text(&schema::KEY_COMMAND),
            },
            jobs,
            rate_limit: match effective.value(&schema::RATE_LIMIT) {
                Some(Value::Bytes(bytes)) => Some(*bytes),
                _ => None,
            },
            retention: effective.retention(),
            status: effective.status(),
            wal: effective.wal(),
            log: effective.log(),
            file: effective.file,
        })
    }

    /// Fails with a hint if no repository is configured.
    pub fn require_repository(&self) -> Result<(), Failure> {
        if !self.repository.url.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Cause::Configuration, "no repository is configured").with_hint(
            "set WALHOLD_REPOSITORY, --repository or repository.url in /etc/walhold/walhold.toml, for example to \
             file:///srv/walhold or s3://bucket/prefix",
        ))
    }

    /// The server's data directory: `pgdata` if it is set, else the working directory if it is one, which it is
    /// for everything that PostgreSQL runs.
    pub fn data_directory(&self) -> Result<PathBuf, Failure> {
        if let Some(pgdata) = &self.pgdata {
            return Ok(pgdata.clone());
        }
        match std::env::current_dir() {
            Ok(here) if here.join("global/pg_control").is_file() => Ok(here),
            _ => Err(Failure::new(
                Cause::Configuration,
                "the data directory is not known: pgdata is not set and the working directory is not one",
            )
            .with_hint("set --pgdata, PGDATA or pgdata in the configuration file")),
        }
    }

    /// What another process needs beside `file` to see the same settings, as variables with absolute paths:
    /// everything that came from a flag or a variable. `restore` writes them into `restore_command`. The
    /// connection is left out: it may hold a password, and nothing that PostgreSQL runs needs it.
    pub fn carried_variables(&self) -> Vec<(&'static str, String)> {
        self.table.iter().filter_map(|setting| setting.carried.clone()).collect()
    }
}

/// Values as the rest of walhold knows them. The schema's kinds and defaults make sure that each is there and of its
/// type (see the test); what stands in for the impossible is the default.
impl Effective {
    fn value(&self, setting: &Setting) -> Option<&Value> {
        self.get(setting).map(|found| &found.value)
    }

    fn text(&self, setting: &Setting) -> Option<String> {
        match self.value(setting) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn path(&self, setting: &Setting) -> Option<PathBuf> {
        match self.value(setting) {
            Some(Value::Path(path)) => Some(path.clone()),
            _ => None,
        }
    }

    fn pgdata_origin(&self) -> PgdataOrigin {
        match self.get(&schema::PGDATA).map(|found| &found.origin) {
            Some(Origin::Flag(_)) => PgdataOrigin::Flag,
            _ => PgdataOrigin::Setting,
        }
    }

    fn duration(&self, setting: &Setting, default: Duration) -> Duration {
        match self.value(setting) {
            Some(Value::Duration(length)) => *length,
            _ => default,
        }
    }

    fn optional_duration(&self, setting: &Setting) -> Option<Duration> {
        match self.value(setting) {
            Some(Value::Duration(length)) => Some(*length),
            _ => None,
        }
    }

    fn count(&self, setting: &Setting) -> Option<u32> {
        match self.value(setting) {
            Some(Value::Number(number)) => u32::try_from(*number).ok(),
            _ => None,
        }
    }

    fn retention(&self) -> RetentionSettings {
        RetentionSettings {
            keep_last: self.count(&schema::KEEP_LAST),
            keep_within: self.optional_duration(&schema::KEEP_WITHIN),
            daily: self.count(&schema::DAILY),
            weekly: self.count(&schema::WEEKLY),
            monthly: self.count(&schema::MONTHLY),
            yearly: self.count(&schema::YEARLY),
            time_zone: self.text(&schema::RETENTION_ZONE).unwrap_or_else(|| "UTC".to_owned()),
            grace: self.duration(&schema::RETENTION_GRACE, Duration::from_secs(60)),
            attempt_grace: self.duration(&schema::ATTEMPT_GRACE, Duration::from_secs(86_400)),
        }
    }

    fn status(&self) -> StatusSettings {
        StatusSettings {
            max_backup_age: self.duration(&schema::MAX_BACKUP_AGE, Duration::from_secs(26 * 3_600)),
            max_archive_age: self.optional_duration(&schema::MAX_ARCHIVE_AGE),
            max_verify_age: self.optional_duration(&schema::MAX_VERIFY_AGE),
        }
    }

    fn compression(&self) -> Compression {
        match (self.text(&schema::COMPRESSION_CODEC).as_deref(), self.value(&schema::COMPRESSION_LEVEL)) {
            (Some("none"), _) => Compression::None,
            (_, Some(Value::Number(level))) => Compression::Zstd(i32::try_from(*level).unwrap_or(1)),
            _ => Compression::Zstd(1),
        }
    }

    fn wal(&self) -> WalSettings {
        WalSettings {
            push_deadline: self.duration(&schema::WAL_PUSH_DEADLINE, Duration::from_secs(60)),
            fetch_deadline: self.duration(&schema::WAL_FETCH_DEADLINE, Duration::from_secs(60)),
            history_deadline: self.duration(&schema::WAL_HISTORY_DEADLINE, Duration::from_secs(600)),
            fetch_on_error: match self.text(&schema::WAL_FETCH_ON_ERROR).as_deref() {
                Some("abort") => FetchOnError::Abort,
                Some("absent") => FetchOnError::Absent,
                _ => FetchOnError::Auto,
            },
            allow_gap: matches!(self.value(&schema::WAL_ALLOW_GAP), Some(Value::Boolean(true))),
            push_ahead: match self.value(&schema::WAL_PUSH_AHEAD) {
                Some(Value::Number(count)) => usize::try_from(*count).unwrap_or(0),
                _ => 32,
            },
            push_ahead_memory: match self.value(&schema::WAL_PUSH_AHEAD_MEMORY) {
                Some(Value::Bytes(bytes)) => *bytes,
                _ => 8 << 20,
            },
            prefetch: match self.value(&schema::WAL_PREFETCH) {
                Some(Value::Bytes(bytes)) => *bytes,
                _ => 256 << 20,
            },
        }
    }

    fn log(&self) -> LogSettings {
        LogSettings {
            format: match self.text(&schema::LOG_FORMAT).as_deref() {
                Some("json") => LogFormat::Json,
                _ => LogFormat::Text,
            },
            level: self.text(&schema::LOG_LEVEL).unwrap_or_default(),
        }
    }
}

/// Builds the rows of `walhold config`.
fn shown_settings(effective: &Effective, state_dir: &Path, jobs: usize) -> Vec<ShownSetting> {
    let computed = |setting: &Setting| match setting.key {
        key if key == schema::STATE_DIR.key => Some(state_dir.display().to_string()),
        key if key == schema::AGENT_SOCKET.key => Some(state_dir.join("agent.socket").display().to_string()),
        key if key == schema::JOBS.key => Some(jobs.to_string()),
        _ => None,
    };
    let mut rows: Vec<ShownSetting> = SETTINGS
        .into_iter()
        .map(|setting| match effective.get(setting) {
            Some(found) => shown_setting(setting, found),
            None => ShownSetting {
                key: setting.key.to_owned(),
                value: if matches!(setting.default, Fallback::Computed(_)) {
                    computed(setting)
                } else {
                    None
                },
                hidden: false,
                origin: Origin::Default,
                carried: None,
            },
        })
        .collect();
    rows.extend(effective.options.iter().map(|(key, (value, origin))| {
        let hidden = redact::is_secret_option(key);
        ShownSetting {
            key: format!("{}.{key}", schema::OPTIONS_TABLE),
            value: Some(if hidden { redact::HIDDEN.to_owned() } else { value.clone() }),
            hidden,
            origin: origin.clone(),
            carried: None,
        }
    }));
    rows
}

fn shown_setting(setting: &'static Setting, found: &Found) -> ShownSetting {
    let whole = found.value.to_text();
    let shown = redact::shown(setting.secrecy, &whole);
    let said_here = matches!(found.origin, Origin::Flag(_) | Origin::Variable(_));
    let carried = said_here && setting.key != schema::CONNECTION.key && setting.key != schema::PGDATA.key;
    ShownSetting {
        key: setting.key.to_owned(),
        hidden: match setting.secrecy {
            // Its pairs come back sorted, without the secret ones.
            Secrecy::Connection => ["pass", "_key", "@"].iter().any(|word| whole.contains(word)),
            Secrecy::Open | Secrecy::Command => shown != whole,
        },
        value: Some(shown),
        origin: found.origin.clone(),
        carried: carried.then_some((setting.variable, whole)),
    }
}

/// `/var/lib/walhold` for the service; a home directory's for a person.
fn default_state_dir(sources: &Sources) -> PathBuf {
    let system = Path::new("/var/lib/walhold");
    let place = if system.exists() { system } else { Path::new("/var/lib") };
    if nix::unistd::access(place, nix::unistd::AccessFlags::W_OK).is_ok() {
        return system.to_owned();
    }
    let variable = |name: &str| {
        let (_, value) = sources.variables.iter().find(|(variable, _)| variable == name)?;
        Some(PathBuf::from(value)).filter(|path| path.is_absolute())
    };
    variable("XDG_STATE_HOME")
        .map(|directory| directory.join("walhold"))
        .or_else(|| Some(variable("HOME")?.join(".local/state/walhold")))
        .unwrap_or_else(|| system.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_reaches_the_configuration() {
        let toml = r#"
            cluster = "blue"
            pgdata = "/data"
            connection = "host=db"
            state_dir = "/state"
            repository = "file:///srv/walhold"
            [compression]
            level = -3
            [encryption]
            key_file = "/key:1"
            [backup]
            jobs = 3
            rate_limit = "50MB"
            [retention]
            keep_last = 2
            keep_within = "7d"
            daily = 3
            weekly = 4
            monthly = 5
            yearly = 6
            time_zone = "Europe/Berlin"
            grace = "0s"
            attempt_grace = "2d"
            [status]
            max_backup_age = "8d"
            max_archive_age = "1h"
            max_verify_age = "30d"
            [wal]
            push_deadline = "2s"
            fetch_deadline = "3s"
            history_deadline = "4s"
            fetch_on_error = "abort"
            allow_gap = true
            push_ahead = 7
            push_ahead_memory = "3MB"
            prefetch = "1GB"
            [agent]
            socket = "/run/walhold/agent"
            [log]
            format = "json"
            level = "debug"
        "#;
        let config = Config::from_toml(toml, Path::new("walhold.toml")).unwrap();
        assert_eq!(config.repository.url, "file:///srv/walhold");
        assert_eq!(config.cluster.as_str(), "blue");
        assert_eq!(config.pgdata.as_deref(), Some(Path::new("/data")));
        assert_eq!(config.connection.connection.as_deref(), Some("host=db"));
        assert_eq!(config.state_dir, Path::new("/state"));
        assert_eq!(config.compression, Compression::Zstd(-3));
        assert_eq!(config.encryption.key_files, [Path::new("/key:1")]);
        assert_eq!((config.jobs, config.rate_limit), (3, Some(50 << 20)));
        let retention = &config.retention;
        assert_eq!(
            (retention.keep_last, retention.keep_within),
            (Some(2), Some(Duration::from_secs(604_800)))
        );
        let periods = [retention.daily, retention.weekly, retention.monthly, retention.yearly];
        assert_eq!(periods, [Some(3), Some(4), Some(5), Some(6)]);
        assert_eq!((retention.time_zone.as_str(), retention.grace), ("Europe/Berlin", Duration::ZERO));
        assert_eq!(retention.attempt_grace, Duration::from_secs(172_800));
        let status = &config.status;
        assert_eq!(status.max_backup_age, Duration::from_secs(691_200));
        assert_eq!(status.max_archive_age, Some(Duration::from_secs(3_600)));
        assert_eq!(status.max_verify_age, Some(Duration::from_secs(2_592_000)));
        let seconds = |length: Duration| length.as_secs();
        let wal = &config.wal;
        assert_eq!([wal.push_deadline, wal.fetch_deadline, wal.history_deadline].map(seconds), [2, 3, 4]);
        assert_eq!((wal.fetch_on_error, wal.allow_gap), (FetchOnError::Abort, true));
        assert_eq!(config.agent_socket, Path::new("/run/walhold/agent"));
        assert_eq!((wal.push_ahead, wal.push_ahead_memory, wal.prefetch), (7, 3 << 20, 1 << 30));
        assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Json, "debug"));
        let said = |row: &&ShownSetting| matches!(row.origin, Origin::File { .. });
        assert_eq!(config.table.iter().filter(said).count(), SETTINGS.len() - 2);
    }

    #[test]
    fn the_defaults_are_those_of_the_documents() {
        let config = Config::from_toml("", Path::new("walhold.toml")).unwrap();
        assert_eq!(config.compression, Compression::Zstd(1));
        assert_eq!(config.wal.push_deadline, Duration::from_secs(60));
        assert_eq!(config.wal.fetch_deadline, Duration::from_secs(60));
        assert_eq!(config.wal.history_deadline, Duration::from_secs(600));
        assert_eq!((config.wal.fetch_on_error, config.wal.allow_gap), (FetchOnError::Auto, false));
        assert_eq!((config.wal.push_ahead, config.wal.push_ahead_memory), (32, 11 << 20));
        assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Text, "info"));
        assert_eq!((config.cluster.as_str(), config.rate_limit), ("main", None));
        assert!(config.jobs >= 1 && config.encryption.key_files.is_empty());
        assert!(config.require_repository().is_err());
    }
}
