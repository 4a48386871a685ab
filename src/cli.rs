//! The command line: what clap parses, and how its errors become one line.
//!
//! Settings have flags here without types: their texts go through [`crate::config`] like any other source, so that
//! a bad value is refused in the same words wherever it comes from.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use crate::command::agent::AgentArgs;
use crate::command::backup_list::BackupListArgs;
use crate::command::backup_mark::BackupMarkArgs;
use crate::command::backup_push::BackupPushArgs;
use crate::command::backup_show::BackupShowArgs;
use crate::command::check::CheckArgs;
use crate::command::completions::CompletionsArgs;
use crate::command::config::ConfigArgs;
use crate::command::expire::ExpireArgs;
use crate::command::init::InitArgs;
use crate::command::keygen::KeygenArgs;
use crate::command::man::ManArgs;
use crate::command::restore::RestoreArgs;
use crate::command::status::StatusArgs;
use crate::command::verify::VerifyArgs;
use crate::command::wal_fetch::WalFetchArgs;
use crate::command::wal_prefetch::WalPrefetchArgs;
use crate::command::wal_push::WalPushArgs;
use crate::command::wal_show::WalShowArgs;
use crate::command::wal_verify::WalVerifyArgs;
use crate::config::Sources;
use crate::config::suggest;
use crate::error::Failure;
use crate::exit_status::Cause;

/// Keeps PostgreSQL recoverable: WAL archiving, base backups and point-in-time recovery
#[derive(Debug, Parser)]
#[command(
    name = "walhold",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 100,
    after_help = "Settings come from flags, then WALHOLD_* variables, then the TOML file, then defaults: \
                  walhold config shows them."
)]
pub struct CommandLine {
    /// Settings that every command takes.
    #[command(flatten)]
    pub settings: SettingFlags,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of settings that every command takes.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingFlags {
    /// Read settings from this TOML file [default: /etc/walhold/walhold.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the repository is: file:///dir, s3://bucket/prefix, gs://…, az://…
    #[arg(long, global = true, value_name = "URL")]
    pub repository: Option<OsString>,
    /// The cluster's name in the repository [default: main]
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<OsString>,
    /// The server's data directory
    #[arg(long, global = true, value_name = "DIR")]
    pub pgdata: Option<OsString>,
    /// How to reach the server: a libpq connection string or URI
    #[arg(long, global = true, value_name = "STRING")]
    pub connection: Option<OsString>,
    /// How messages look: text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<OsString>,
    /// The least important messages: error, warn, info, debug or trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<OsString>,
}

// Flags of settings that only commands with parallel jobs take. No doc comment: clap would take it for the command's.
#[allow(missing_docs)]
#[derive(Debug, Default, clap::Args)]
pub struct JobsFlag {
    /// Parallel jobs [default: the number of cores]
    #[arg(long, value_name = "N")]
    pub jobs: Option<OsString>,
}

// Flags of settings that only `backup-push` and `verify` take.
#[allow(missing_docs)]
#[derive(Debug, Default, clap::Args)]
pub struct RateLimitFlag {
    /// Bytes per second to write to the repository at most (verify: to read), such as 50MB [default: no limit]
    #[arg(long, value_name = "SIZE")]
    pub rate_limit: Option<OsString>,
}

// Flags of settings that only `expire` takes.
#[allow(missing_docs)]
#[derive(Debug, Default, clap::Args)]
pub struct RetentionFlags {
    /// Keep the newest so many backups
    #[arg(long, value_name = "N")]
    pub keep_last: Option<OsString>,
    /// Keep every moment within this time recoverable, such as 7d
    #[arg(long, value_name = "TIME")]
    pub keep_within: Option<OsString>,
    /// Keep the newest backup of each of the last so many days that have one
    #[arg(long, value_name = "N")]
    pub daily: Option<OsString>,
    /// The same for weeks
    #[arg(long, value_name = "N")]
    pub weekly: Option<OsString>,
    /// The same for months
    #[arg(long, value_name = "N")]
    pub monthly: Option<OsString>,
    /// The same for years
    #[arg(long, value_name = "N")]
    pub yearly: Option<OsString>,
    /// The time zone in which days begin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<OsString>,
    /// How long to wait between announcing and deleting [default: 1min]
    #[arg(long, value_name = "TIME")]
    pub grace: Option<OsString>,
}

/// The commands.
#[derive(Debug, clap::Subcommand)]
#[command(subcommand_value_name = "COMMAND", subcommand_help_heading = "Commands")]
#[allow(missing_docs)] // clap would show these docs instead of those of the arguments
pub enum Verb {
    Init(InitArgs),
    WalPush(WalPushArgs),
    WalFetch(WalFetchArgs),
    WalShow(WalShowArgs),
    WalVerify(WalVerifyArgs),
    BackupPush {
        #[command(flatten)]
        args: BackupPushArgs,
        #[command(flatten)]
        jobs: JobsFlag,
        #[command(flatten)]
        rate_limit: RateLimitFlag,
    },
    BackupList(BackupListArgs),
    BackupShow(BackupShowArgs),
    BackupMark(BackupMarkArgs),
    #[command(visible_alias = "delete")]
    Expire {
        #[command(flatten)]
        args: ExpireArgs,
        #[command(flatten)]
        retention: Box<RetentionFlags>,
    },
    Status(StatusArgs),
    Verify {
        #[command(flatten)]
        args: VerifyArgs,
        #[command(flatten)]
        jobs: JobsFlag,
        #[command(flatten)]
        rate_limit: RateLimitFlag,
    },
    #[command(visible_alias = "backup-fetch")]
    Restore {
        #[command(flatten)]
        args: Box<RestoreArgs>,
        #[command(flatten)]
        jobs: JobsFlag,
    },
    Check(CheckArgs),
    Agent(AgentArgs),
    Config(ConfigArgs),
    Keygen(KeygenArgs),
    #[command(hide = true)]
    WalPrefetch(WalPrefetchArgs),
    #[command(hide = true)]
    Man(ManArgs),
    #[command(hide = true)]
    Completions(CompletionsArgs),
}

impl CommandLine {
    /// The sources of this process's settings.
    pub fn sources(&mut self) -> Sources {
        let settings = std::mem::take(&mut self.settings);
        let (jobs, rate_limit) = match &mut self.verb {
            Verb::BackupPush { jobs, rate_limit, .. } => (jobs.jobs.take(), rate_limit.rate_limit.take()),
            Verb::Verify { jobs, rate_limit, .. } => (jobs.jobs.take(), rate_limit.rate_limit.take()),
            Verb::Restore { jobs, .. } => (jobs.jobs.take(), None),
            _ => (None, None),
        };
        let retention = match &mut self.verb {
            Verb::Expire { retention, .. } => std::mem::take(&mut **retention),
            _ => RetentionFlags::default(),
        };
        let flags = [
            ("--repository", settings.repository),
            ("--cluster", settings.cluster),
            ("--pgdata", settings.pgdata),
            ("--connection", settings.connection),
            ("--log-format", settings.log_format),
            ("--log-level", settings.log_level),
            ("--jobs", jobs),
            ("--rate-limit", rate_limit),
            ("--keep-last", retention.keep_last),
            ("--keep-within", retention.keep_within),
            ("--daily", retention.daily),
            ("--weekly", retention.weekly),
            ("--monthly", retention.monthly),
            ("--yearly", retention.yearly),
            ("--time-zone", retention.time_zone),
            ("--grace", retention.grace),
        ];
        let given = flags.into_iter().filter_map(|(flag, text)| Some((flag, text?)));
        Sources::of_process(given.collect(), settings.config)
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// A command.
    Command(Box<CommandLine>),
    /// Text for standard output: help or the version.
    Text(String),
}

/// Parses a command line, the program's name first.
pub fn parse(arguments: &[OsString]) -> Result<Parsed, Failure> {
    match CommandLine::try_parse_from(arguments) {
        Ok(line) => Ok(Parsed::Command(Box::new(line))),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                Ok(Parsed::Text(error.render().to_string()))
            }
            _ => Err(usage_failure(&error)),
        },
    }
}

/// The whole command line for man pages and completions.
pub fn definition() -> clap::Command {
    CommandLine::command()
}

fn usage_failure(error: &clap::Error) -> Failure {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::new(Cause::Usage, "no command is given")
            .with_hint("walhold --help lists the commands");
    }
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(verb) = context(ContextKind::InvalidSubcommand)
    {
        return unknown_verb(verb);
    }
    let rendered = error.render().to_string();
    let paragraph = rendered.split("\n\n").next().unwrap_or_default();
    let message = paragraph.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    // How a value that looks like a flag is passed helps nobody here: no value does.
    let mut tips = rendered.lines().filter_map(|line| line.trim_start().strip_prefix("tip: "));
    let tip = tips.find(|tip| !tip.starts_with("to pass "));
    let usage = rendered.lines().find_map(|line| line.strip_prefix("Usage: "));
    let hint = match (tip, usage) {
        (Some(tip), _) => tip.to_owned(),
        (None, Some(usage)) => format!("usage: {usage}"),
        (None, None) => "walhold --help lists the commands and their arguments".to_owned(),
    };
    Failure::new(Cause::Usage, message).with_hint(hint)
}

fn unknown_verb(verb: &str) -> Failure {
    let commands = definition();
    let names =
        commands.get_subcommands().filter(|command| !command.is_hide_set()).map(clap::Command::get_name);
    let failure = Failure::new(Cause::Usage, format!("unknown command {verb:?}"));
    failure.with_hint(match suggest::nearest(verb, names) {
        Some(name) => format!("did you mean {name}?"),
        None => "walhold --help lists the commands".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn every_flag_of_a_setting_is_on_the_command_line() {
        let definition = definition();
        let flags: Vec<String> = definition
            .get_arguments()
            .chain(definition.get_subcommands().flat_map(clap::Command::get_arguments))
            .filter_map(|argument| argument.get_long().map(|long| format!("--{long}")))
            .collect();
        for setting in schema::SETTINGS {
            if let Some(flag) = setting.flag {
                assert!(flags.iter().any(|known| known == flag), "{flag} is not on the command line");
            }
        }
    }
}
