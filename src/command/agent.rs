//! `agent`: the process that stays. See docs/agent.md.
//!
//! 1. Start anew with one heap.
//! 2. Read the keys: without them nothing can be written.
//! 3. Listen, and answer until a signal asks us to end.
//!
//! `agent status` asks a running one how it is.

use std::time::Duration;

use crate::agent::protocol::ArchiveStatus;
use crate::agent::{client, server};
use crate::codec::{Compression, Sealing};
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::interrupt;
use crate::local::heap;
use crate::output::{self, Align, Table, human_duration, human_size};
use crate::pg::PgTimestamp;
use crate::wal::push::Writing;

/// Archive and prefetch for every wal-push and wal-fetch of this host
#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// What to do instead of running
    #[command(subcommand)]
    pub action: Option<AgentAction>,
}

/// What can be asked of a running agent.
#[derive(Debug, clap::Subcommand)]
pub enum AgentAction {
    /// Show how the running agent is
    Status {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn run(args: AgentArgs, config: &Config) -> Result<Outcome, Failure> {
    match args.action {
        None => {
            keep_the_heap_small();
            server::run(config, writing(config)?)?;
            Ok(Outcome::Done)
        }
        Some(AgentAction::Status { json }) => show_status(config, json),
    }
}

/// Starts the program anew, once, with one heap for all threads.
fn keep_the_heap_small() {
    use std::os::unix::process::CommandExt;
    if heap::is_decided() || interrupt::requested().is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let mut command = std::process::Command::new(program);
        // Returns only if it fails, and then this process goes on as it is.
        let error = command.args(std::env::args_os().skip(1)).envs(heap::ONE_HEAP).exec();
        tracing::debug!("start anew: {}", crate::error::system_words(&error));
    }
}

/// Several objects wait for the store at once: the memory of a larger crew goes to them.
fn writing(config: &Config) -> Result<Writing, Failure> {
    let keys = config.key_ring()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match config.compression {
        Compression::None | Compression::Zstd(..=6) => cores.min(2),
        Compression::Zstd(_) => 1,
    };
    let key = keys.writing_key().cloned();
    Ok(Writing { sealing: Sealing { compression: config.compression, key, workers: Some(workers) }, keys })
}

/// `2026-11-21 20:49:13 UTC, 4 s ago`
fn newest_commit(archive: &ArchiveStatus) -> String {
    let moment = archive.newest_commit.and_then(PgTimestamp::to_jiff);
    let age = archive.newest_commit_age_seconds.map(|age| human_duration(Duration::from_secs(age)));
    match (moment, age) {
        (Some(moment), Some(age)) => format!("{}, {age} ago", moment.strftime("%Y-%m-%d %H:%M:%S UTC")),
        _ => String::new(),
    }
}

fn show_status(config: &Config, json: bool) -> Result<Outcome, Failure> {
    let socket = &config.agent_socket;
    let status = client::status(socket).map_err(|error| {
        let words = crate::error::system_words(&error);
        Failure::new(Cause::Unhealthy, format!("no agent answers at {}: {words}", socket.display()))
            .with_hint("start it with walhold agent, as the user that PostgreSQL runs as; until then every wal-push and wal-fetch does its own work")
    })?;
    if json {
        output::print_json(&status)?;
        return Ok(Outcome::Done);
    }
    output::print_line(&format!(
        "walhold {} as process {} since {}, {} of memory, repository {}",
        status.version,
        status.pid,
        status.since.strftime("%Y-%m-%d %H:%M:%S UTC"),
        human_size(status.memory_bytes),
        status.repository
    ))?;
    if let Some(refusal) = &status.last_refusal {
        output::print_line(&format!(
            "{} questions were not answered, and who asked went on alone; the last at {}: {}",
            status.refused,
            refusal.time.strftime("%Y-%m-%d %H:%M:%S UTC"),
            refusal.why
        ))?;
    }
    let mut table = Table::new([
        ("cluster", Align::Left),
        ("last asked", Align::Left),
        ("archived", Align::Right),
        ("ahead", Align::Right),
        ("waiting", Align::Right),
        ("failures", Align::Right),
        ("newest commit", Align::Left),
        ("directory", Align::Left),
    ]);
    for archive in &status.archives {
        table.add([
            archive.cluster.clone(),
            archive.last_asked.clone().unwrap_or_default(),
            archive.acknowledged.to_string(),
            archive.ahead.to_string(),
            archive.waiting.to_string(),
            archive.failures.to_string(),
            newest_commit(archive),
            archive.directory.display().to_string(),
        ]);
    }
    if !table.is_empty() {
        table.print()?;
    }
    for archive in &status.archives {
        if let Some(failure) = &archive.last_failure {
            output::print_line(&format!("{}: last failure: {failure}", archive.cluster))?;
        }
    }
    for window in &status.windows {
        output::print_line(&format!("fetching ahead into {}", window.display()))?;
    }
    Ok(Outcome::Done)
}
