//! The one table of every setting: TOML key, variable, flag, kind, default, meaning.
//!
//! Loading, `walhold config`, the suggestions for misspelt keys and the table in docs/configuration.md all come
//! from here; a setting that is not here does not exist.

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The key in the TOML file, `section.name`.
    pub key: &'static str,
    /// walhold's own environment variable.
    pub variable: &'static str,
    /// A variable of other programs that is read when neither the file nor our own variable says anything.
    pub foreign_variable: Option<&'static str>,
    /// The command line flag.
    pub flag: Option<&'static str>,
    /// Type and range.
    pub kind: Kind,
    /// What holds when nothing is said.
    pub default: Fallback,
    /// Whether the value may be shown.
    pub secrecy: Secrecy,
    /// One or two sentences for docs/configuration.md.
    pub meaning: &'static str,
}

/// What holds when nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Nothing: the setting stays unset.
    Unset,
    /// This text, read as any other value.
    Text(&'static str),
    /// Found out when the program starts; the text describes it.
    Computed(&'static str),
}

/// Whether a value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// Shown as it is.
    Open,
    /// A libpq connection string: shown without its passwords.
    Connection,
    /// A shell command: only its first word is shown, because the rest may hold a token.
    Command,
}

/// Type and range of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A repository's address.
    RepositoryUrl,
    /// A cluster's name.
    ClusterName,
    /// A path; a relative one belongs to the working directory.
    Path,
    /// A path that must be absolute, because PostgreSQL runs walhold in its own data directory.
    AbsolutePath,
    /// One absolute path or several: a list in TOML, separated by colons in a variable.
    AbsolutePaths,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number from the first to the second.
    Number(i64, i64),
    /// Bytes, with PostgreSQL's units (kB, MB, GB, TB are powers of 1,024), from the first to the second.
    Bytes(u64, u64),
    /// Milliseconds, written with a unit, from the first to the second.
    Duration(u64, u64),
    /// true or false.
    Boolean,
    /// A time zone's name in the database that PostgreSQL uses too.
    TimeZone,
}

const SECOND: u64 = 1_000;
const DAY: u64 = 24 * 60 * 60 * SECOND;

/// What most settings have; the rest is said one by one.
const PLAIN: Setting = Setting {
    key: "",
    variable: "",
    foreign_variable: None,
    flag: None,
    kind: Kind::Text,
    default: Fallback::Unset,
    secrecy: Secrecy::Open,
    meaning: "",
};

/// Where the repository is.
pub static REPOSITORY_URL: Setting = Setting {
    key: "repository.url",
    variable: "WALHOLD_REPOSITORY",
    flag: Some("--repository"),
    kind: Kind::RepositoryUrl,
    meaning: "Where the repository is. `repository = \"file:///…\"` at the top of the file says the same.",
    ..PLAIN
};

/// The name under which the cluster's objects lie.
pub static CLUSTER: Setting = Setting {
    key: "cluster",
    variable: "WALHOLD_CLUSTER",
    flag: Some("--cluster"),
    kind: Kind::ClusterName,
    default: Fallback::Text("main"),
    meaning: "The name under which the cluster's objects lie in the repository.",
    ..PLAIN
};

/// The data directory.
pub static PGDATA: Setting = Setting {
    key: "pgdata",
    variable: "WALHOLD_PGDATA",
    foreign_variable: Some("PGDATA"),
    flag: Some("--pgdata"),
    kind: Kind::Path,
    meaning: "The server's data directory. `archive_command` and `restore_command` do not need it: PostgreSQL runs them there, and there only the flag outweighs the working directory.",
    ..PLAIN
};

/// How to reach the server.
pub static CONNECTION: Setting = Setting {
    key: "connection",
    variable: "WALHOLD_CONNECTION",
    flag: Some("--connection"),
    secrecy: Secrecy::Connection,
    meaning: "A libpq connection string or URI. What it leaves out comes from the `PG*` variables, the service file and the password file, as in psql.",
    ..PLAIN
};

/// Where notes, locks and journals lie.
pub static STATE_DIR: Setting = Setting {
    key: "state_dir",
    variable: "WALHOLD_STATE_DIR",
    kind: Kind::AbsolutePath,
    default: Fallback::Computed(
        "`/var/lib/walhold` if it can be written, else `$XDG_STATE_HOME/walhold`, else `~/.local/state/walhold`",
    ),
    meaning: "Local notes, locks and resume journals. Losing them costs time, never data.",
    ..PLAIN
};

/// How chunks are compressed.
pub static COMPRESSION_CODEC: Setting = Setting {
    key: "compression.codec",
    variable: "WALHOLD_COMPRESSION_CODEC",
    kind: Kind::Choice(&["zstd", "none"]),
    default: Fallback::Text("zstd"),
    meaning: "How new objects are compressed. Objects written with another codec or level stay readable.",
    ..PLAIN
};

/// The zstd level.
pub static COMPRESSION_LEVEL: Setting = Setting {
    key: "compression.level",
    variable: "WALHOLD_COMPRESSION_LEVEL",
    kind: Kind::Number(-7, 19),
    default: Fallback::Text("1"),
    meaning: "The zstd level; 0 is zstd's own default, 3. Levels above 9 need more memory than docs/performance.md promises for level 1.",
    ..PLAIN
};

/// Files with keys.
pub static KEY_FILE: Setting = Setting {
    key: "encryption.key_file",
    variable: "WALHOLD_ENCRYPTION_KEY_FILE",
    kind: Kind::AbsolutePaths,
    meaning: "Files with one encryption key each (`walhold keygen`), readable by their owner alone. The first key writes, all of them read. Unset: new objects are not encrypted.",
    ..PLAIN
};

/// A command that prints keys.
pub static KEY_COMMAND: Setting = Setting {
    key: "encryption.key_command",
    variable: "WALHOLD_ENCRYPTION_KEY_COMMAND",
    secrecy: Secrecy::Command,
    meaning: "Instead of files: a shell command that prints the keys within 30 seconds, one per line, the writing one first.",
    ..PLAIN
};

/// Parallel jobs.
pub static JOBS: Setting = Setting {
    key: "backup.jobs",
    variable: "WALHOLD_JOBS",
    flag: Some("--jobs"),
    kind: Kind::Number(1, 256),
    default: Fallback::Computed("the number of cores"),
    meaning: "Parallel jobs of `backup-push`, `restore` and `verify`.",
    ..PLAIN
};

/// Upload limit.
pub static RATE_LIMIT: Setting = Setting {
    key: "backup.rate_limit",
    variable: "WALHOLD_RATE_LIMIT",
    flag: Some("--rate-limit"),
    kind: Kind::Bytes(64 << 10, 1 << 40),
    meaning: "Bytes per second that `backup-push` may write to the repository, and `verify` may read. Unset: no limit.",
    ..PLAIN
};

/// Newest backups kept.
pub static KEEP_LAST: Setting = Setting {
    key: "retention.keep_last",
    variable: "WALHOLD_RETENTION_KEEP_LAST",
    flag: Some("--keep-last"),
    kind: Kind::Number(1, 100_000),
    meaning: "Keep the newest so many backups. The retention settings combine: `expire` deletes what none of them keeps. None of them set: `expire` refuses. See docs/retention.md.",
    ..PLAIN
};

/// The recovery window.
pub static KEEP_WITHIN: Setting = Setting {
    key: "retention.keep_within",
    variable: "WALHOLD_RETENTION_KEEP_WITHIN",
    flag: Some("--keep-within"),
    kind: Kind::Duration(60 * SECOND, 36_500 * DAY),
    meaning: "Keep every moment within this time recoverable: its backups, the one before them, and all WAL since. Older backups that are kept for other reasons then keep only the WAL that they need themselves.",
    ..PLAIN
};

/// Newest backup of each of so many days.
pub static DAILY: Setting = Setting {
    key: "retention.daily",
    variable: "WALHOLD_RETENTION_DAILY",
    flag: Some("--daily"),
    kind: Kind::Number(1, 100_000),
    meaning: "Keep the newest backup of each of the last so many days that have one.",
    ..PLAIN
};

/// Newest backup of each of so many weeks (Monday to Sunday).
pub static WEEKLY: Setting = Setting {
    key: "retention.weekly",
    variable: "WALHOLD_RETENTION_WEEKLY",
    flag: Some("--weekly"),
    kind: Kind::Number(1, 100_000),
    meaning: "Keep the newest backup of each of the last so many weeks (Monday to Sunday) that have one.",
    ..PLAIN
};

/// Newest backup of each of so many months.
pub static MONTHLY: Setting = Setting {
    key: "retention.monthly",
    variable: "WALHOLD_RETENTION_MONTHLY",
    flag: Some("--monthly"),
    kind: Kind::Number(1, 100_000),
    meaning: "Keep the newest backup of each of the last so many months that have one.",
    ..PLAIN
};

/// Newest backup of each of so many years.
pub static YEARLY: Setting = Setting {
    key: "retention.yearly",
    variable: "WALHOLD_RETENTION_YEARLY",
    flag: Some("--yearly"),
    kind: Kind::Number(1, 100_000),
    meaning: "Keep the newest backup of each of the last so many years that have one.",
    ..PLAIN
};

/// Where days begin.
pub static RETENTION_ZONE: Setting = Setting {
    key: "retention.time_zone",
    variable: "WALHOLD_RETENTION_TIME_ZONE",
    flag: Some("--time-zone"),
    kind: Kind::TimeZone,
    default: Fallback::Text("UTC"),
    meaning: "The time zone in which days, weeks, months and years begin.",
    ..PLAIN
};

/// Time between announcement and deletion.
pub static RETENTION_GRACE: Setting = Setting {
    key: "retention.grace",
    variable: "WALHOLD_RETENTION_GRACE",
    flag: Some("--grace"),
    kind: Kind::Duration(0, 7 * DAY),
    default: Fallback::Text("1min"),
    meaning: "How long `expire` waits between announcing what it will delete and looking again. Backups at work are safe whatever this says; it is for stores whose listings lag, and for whoever reads an old backup just now.",
    ..PLAIN
};

/// When an unfinished backup counts as dead.
pub static ATTEMPT_GRACE: Setting = Setting {
    key: "retention.attempt_grace",
    variable: "WALHOLD_RETENTION_ATTEMPT_GRACE",
    kind: Kind::Duration(600 * SECOND, 365 * DAY),
    default: Fallback::Text("1d"),
    meaning: "How long after its last sign of life an unfinished backup may still be resumed; then `expire` deletes what it stored.",
    ..PLAIN
};

/// When a backup is overdue.
pub static MAX_BACKUP_AGE: Setting = Setting {
    key: "status.max_backup_age",
    variable: "WALHOLD_STATUS_MAX_BACKUP_AGE",
    kind: Kind::Duration(60 * SECOND, 3_650 * DAY),
    default: Fallback::Text("26h"),
    meaning: "`status` calls the cluster unhealthy when its last backup is older than this.",
    ..PLAIN
};

/// When the archive lags.
pub static MAX_ARCHIVE_AGE: Setting = Setting {
    key: "status.max_archive_age",
    variable: "WALHOLD_STATUS_MAX_ARCHIVE_AGE",
    kind: Kind::Duration(SECOND, 3_650 * DAY),
    meaning: "`status` calls the cluster unhealthy when the newest WAL segment was archived longer ago than this. Unset: not judged, because an idle server without `archive_timeout` archives nothing.",
    ..PLAIN
};

/// When a verification is overdue.
pub static MAX_VERIFY_AGE: Setting = Setting {
    key: "status.max_verify_age",
    variable: "WALHOLD_STATUS_MAX_VERIFY_AGE",
    kind: Kind::Duration(60 * SECOND, 3_650 * DAY),
    meaning: "`status` calls the cluster unhealthy when the last `verify` is older than this. Unset: not judged.",
    ..PLAIN
};

/// wal-push's patience.
pub static WAL_PUSH_DEADLINE: Setting = Setting {
    key: "wal.push_deadline",
    variable: "WALHOLD_WAL_PUSH_DEADLINE",
    kind: Kind::Duration(SECOND, DAY),
    default: Fallback::Text("1min"),
    meaning: "How long `wal-push` keeps asking a failing store before it gives up (PostgreSQL then calls it again).",
    ..PLAIN
};

/// wal-fetch's patience for segments.
pub static WAL_FETCH_DEADLINE: Setting = Setting {
    key: "wal.fetch_deadline",
    variable: "WALHOLD_WAL_FETCH_DEADLINE",
    kind: Kind::Duration(SECOND, DAY),
    default: Fallback::Text("1min"),
    meaning: "How long `wal-fetch` keeps asking a failing store for a segment.",
    ..PLAIN
};

/// wal-fetch's patience for history files.
pub static WAL_HISTORY_DEADLINE: Setting = Setting {
    key: "wal.history_deadline",
    variable: "WALHOLD_WAL_HISTORY_DEADLINE",
    kind: Kind::Duration(SECOND, DAY),
    default: Fallback::Text("10min"),
    meaning: "The same for `.history` files, where a wrong answer would put two servers on one timeline.",
    ..PLAIN
};

/// What an error in wal-fetch ends with.
pub static WAL_FETCH_ON_ERROR: Setting = Setting {
    key: "wal.fetch_on_error",
    variable: "WALHOLD_WAL_FETCH_ON_ERROR",
    kind: Kind::Choice(&["auto", "abort", "absent"]),
    default: Fallback::Text("auto"),
    meaning: "What `wal-fetch` answers when it could not tell: `abort` stops recovery (status above 200), `absent` says that the archive ends here (status 1), `auto` is `abort` except for segments on a standby. See docs/exit-status.md.",
    ..PLAIN
};

/// Whether a hole ends the WAL.
pub static WAL_ALLOW_GAP: Setting = Setting {
    key: "wal.allow_gap",
    variable: "WALHOLD_WAL_ALLOW_GAP",
    kind: Kind::Boolean,
    default: Fallback::Text("false"),
    meaning: "Take a missing segment for the end of WAL although later ones are stored. Only when the host that should have archived it is lost for good.",
    ..PLAIN
};

/// How many waiting segments one wal-push archives beside the asked one.
pub static WAL_PUSH_AHEAD: Setting = Setting {
    key: "wal.push_ahead",
    variable: "WALHOLD_WAL_PUSH_AHEAD",
    kind: Kind::Number(0, 256),
    default: Fallback::Text("32"),
    meaning: "How many of the segments that wait behind the asked one `wal-push` archives in the same call; their own calls then return at once. 0: none.",
    ..PLAIN
};

/// What those may hold in memory.
pub static WAL_PUSH_AHEAD_MEMORY: Setting = Setting {
    key: "wal.push_ahead_memory",
    variable: "WALHOLD_WAL_PUSH_AHEAD_MEMORY",
    kind: Kind::Bytes(1 << 20, 1 << 30),
    default: Fallback::Text("11MB"),
    meaning: "Compressed bytes that may be on their way to a cloud store at once. The default keeps the agent and `wal-push` within 32 MiB; `wal-push` itself uses 2 MB less of it.",
    ..PLAIN
};

/// Disk space for segments that are fetched ahead.
pub static WAL_PREFETCH: Setting = Setting {
    key: "wal.prefetch",
    variable: "WALHOLD_WAL_PREFETCH",
    kind: Kind::Bytes(0, 1 << 40),
    default: Fallback::Text("256MB"),
    meaning: "How much the segments may take that are fetched ahead while a server recovers, in `pg_wal/.walhold`; one segment in any case. 0: none are.",
    ..PLAIN
};

/// Where the agent listens.
pub static AGENT_SOCKET: Setting = Setting {
    key: "agent.socket",
    variable: "WALHOLD_AGENT_SOCKET",
    kind: Kind::AbsolutePath,
    default: Fallback::Computed("`agent.socket` in the state directory"),
    meaning: "The Unix socket at which `walhold agent` listens, and at which `wal-push` and `wal-fetch` look for it.",
    ..PLAIN
};

/// Text or JSON.
pub static LOG_FORMAT: Setting = Setting {
    key: "log.format",
    variable: "WALHOLD_LOG_FORMAT",
    flag: Some("--log-format"),
    kind: Kind::Choice(&["text", "json"]),
    default: Fallback::Text("text"),
    meaning: "How messages on standard error look: text for people and PostgreSQL's log, or one JSON object per line.",
    ..PLAIN
};

/// How much is logged.
pub static LOG_LEVEL: Setting = Setting {
    key: "log.level",
    variable: "WALHOLD_LOG_LEVEL",
    flag: Some("--log-level"),
    kind: Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
    default: Fallback::Text("info"),
    meaning: "The least important messages that are still written.",
    ..PLAIN
};

/// Every setting, in the order in which they are shown.
pub static SETTINGS: [&Setting; 34] = [
    &REPOSITORY_URL,
    &CLUSTER,
    &PGDATA,
    &CONNECTION,
    &STATE_DIR,
    &COMPRESSION_CODEC,
    &COMPRESSION_LEVEL,
    &KEY_FILE,
    &KEY_COMMAND,
    &JOBS,
    &RATE_LIMIT,
    &KEEP_LAST,
    &KEEP_WITHIN,
    &DAILY,
    &WEEKLY,
    &MONTHLY,
    &YEARLY,
    &RETENTION_ZONE,
    &RETENTION_GRACE,
    &ATTEMPT_GRACE,
    &MAX_BACKUP_AGE,
    &MAX_ARCHIVE_AGE,
    &MAX_VERIFY_AGE,
    &WAL_PUSH_DEADLINE,
    &WAL_FETCH_DEADLINE,
    &WAL_HISTORY_DEADLINE,
    &WAL_FETCH_ON_ERROR,
    &WAL_ALLOW_GAP,
    &WAL_PUSH_AHEAD,
    &WAL_PUSH_AHEAD_MEMORY,
    &WAL_PREFETCH,
    &AGENT_SOCKET,
    &LOG_FORMAT,
    &LOG_LEVEL,
];

/// The table whose keys are object_store's own and pass through unseen.
pub const OPTIONS_TABLE: &str = "repository.options";

/// The variable that names the TOML file.
pub const CONFIG_VARIABLE: &str = "WALHOLD_CONFIG";

/// The TOML file that is read if it exists and no other is named.
pub const DEFAULT_FILE: &str = "/etc/walhold/walhold.toml";

/// The setting with this TOML key.
pub fn by_key(key: &str) -> Option<&'static Setting> {
    SETTINGS.into_iter().find(|setting| setting.key == key)
}

/// The setting with this flag.
pub fn by_flag(flag: &str) -> Option<&'static Setting> {
    SETTINGS.into_iter().find(|setting| setting.flag == Some(flag))
}

impl Setting {
    /// The last part of the key: what stands left of `=` in its section.
    pub fn name(&self) -> &'static str {
        self.key.rsplit('.').next().unwrap_or(self.key)
    }
}
