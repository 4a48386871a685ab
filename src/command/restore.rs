//! `restore`: plans a recovery, and carries it out.
//!
//! 1. Understand what is asked for.
//! 2. Open the repository and make the plan; it only reads, and refuses what cannot work.
//! 3. Print the plan; with `--plan` that is all.
//! 4. Lay out, fetch, finish; with `--start`, run the server and watch it reach the target.
//! 5. Say what was done.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::output;
use crate::pg::Lsn;
use crate::pg::recovery::{TargetAction, TargetInclusion, TargetTimeline};
use crate::repository::{Patience, Repository};
use crate::restore::delta::Over;
use crate::restore::target::{BackupRequest, Role, TablespaceMapping, TargetRequest, parse_timeline};
use crate::restore::{RestoreRequest, StartRequest, make_plan, render, restore};

/// How long a failing store is asked again for each request: a restore has hours, an outage minutes.
const PATIENCE: Duration = Duration::from_secs(300);

/// Plan and run a recovery
///
/// Restores a backup into an empty directory (--pgdata), or over an existing one (--delta), and sets it up to recover to a moment. Everything that cannot work is refused
/// before anything is written; --plan shows what would happen and stops.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// Recover what was committed up to this time: '2026-11-20 22:46:13', with an offset (+01:00) or a zone (Europe/Berlin),
    /// else in the time zone of the server
    #[arg(long, value_name = "TIME", group = "target")]
    target_time: Option<String>,
    /// Recover up to this WAL position
    #[arg(long, value_name = "LSN", group = "target")]
    target_lsn: Option<Lsn>,
    /// Recover up to the end of this transaction
    #[arg(long, value_name = "XID", group = "target")]
    target_xid: Option<u64>,
    /// Recover up to this restore point (pg_create_restore_point)
    #[arg(long, value_name = "NAME", group = "target")]
    target_name: Option<String>,
    /// Recover only until the backup is consistent
    #[arg(long, group = "target")]
    target_immediate: bool,
    /// Stop just before the target instead of just after it
    #[arg(long)]
    target_exclusive: bool,
    /// What the server does at the target
    #[arg(long, value_name = "ACTION", value_enum, default_value = "promote")]
    target_action: ActionArg,
    /// The line of history to follow: latest, current (the backup's) or a number
    #[arg(long, value_name = "TIMELINE", value_parser = parse_timeline, default_value = "latest")]
    timeline: TargetTimeline,
    /// The backup to restore: auto (the newest that can reach the target) or an id
    #[arg(long, value_name = "ID", default_value = "auto")]
    backup: BackupRequest,
    /// Put a tablespace elsewhere: its directory, name or oid, then the new directory (repeatable)
    #[arg(long, value_name = "OLD=NEW")]
    tablespace: Vec<TablespaceMapping>,
    /// Take over an existing, stopped data directory of this cluster: what is right in it stays, everything else is replaced or removed
    #[arg(long)]
    delta: bool,
    /// With --delta: also take over a data directory of another cluster, or a damaged one
    #[arg(long, requires = "delta")]
    other_cluster: bool,
    /// Make a standby that follows the original
    #[arg(long, conflicts_with_all = ["clone", "target"])]
    standby: bool,
    /// The standby's primary_conninfo
    #[arg(long, value_name = "STRING", requires = "standby")]
    primary_conninfo: Option<String>,
    /// Make a second copy beside the living original: it archives nothing
    #[arg(long)]
    clone: bool,
    /// Start the server and watch it recover
    #[arg(long)]
    start: bool,
    /// The directory with the server's programs [default: where this major version is installed]
    #[arg(long, value_name = "DIR", requires = "start")]
    pg_bin: Option<PathBuf>,
    /// An option for the started server, such as --start-option=-p5433 (repeatable)
    #[arg(long, value_name = "OPTION", requires = "start", allow_hyphen_values = true)]
    start_option: Vec<String>,
    /// Show the plan and stop
    #[arg(long)]
    plan: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `--target-action`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ActionArg {
    /// Stay read-only until told to go on
    Pause,
    /// Become a primary on a new timeline
    Promote,
    /// Shut down
    Shutdown,
}

/// Runs the command.
pub fn run(args: RestoreArgs, config: &Config) -> Result<Outcome, Failure> {
    let (show_only, json) = (args.plan, args.json);
    let request = args.into_request(config)?;
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let plan = make_plan(config, &repository, &keys, request)?;
    match (show_only, json) {
        (true, true) => output::print_json(&plan.to_json())?,
        (_, false) => output::print(&plan.to_text())?,
        (false, true) => {}
    }
    if show_only {
        return Ok(Outcome::Done);
    }
    let restored = restore(&plan, &repository, &config.cluster, &keys, config.jobs)?;
    if json {
        output::print_json(&serde_json::json!({ "plan": plan.to_json(), "restored": restored }))?;
    } else {
        output::print(&render::outcome_text(&plan, &restored))?;
    }
    Ok(Outcome::Done)
}

impl RestoreArgs {
    fn into_request(self, config: &Config) -> Result<RestoreRequest, Failure> {
        let pgdata = config.pgdata.clone().ok_or_else(|| {
            Failure::new(Cause::Usage, "the directory to restore into is not given")
                .with_hint("add --pgdata DIR")
        })?;
        let target = match (self.target_time, self.target_lsn, self.target_xid, self.target_name) {
            (Some(time), ..) => TargetRequest::Time(time),
            (_, Some(lsn), ..) => TargetRequest::Lsn(lsn),
            (_, _, Some(xid), _) => TargetRequest::xid(xid)?,
            (.., Some(name)) => TargetRequest::Name(name),
            _ if self.target_immediate => TargetRequest::Immediate,
            _ => TargetRequest::EndOfWal,
        };
        let start = match self.start {
            true => StartRequest::Yes { programs: self.pg_bin, options: self.start_option },
            false => StartRequest::No,
        };
        Ok(RestoreRequest {
            target,
            inclusion: if self.target_exclusive {
                TargetInclusion::Exclusive
            } else {
                TargetInclusion::Inclusive
            },
            action: match self.target_action {
                ActionArg::Pause => TargetAction::Pause,
                ActionArg::Promote => TargetAction::Promote,
                ActionArg::Shutdown => TargetAction::Shutdown,
            },
            timeline: self.timeline,
            backup: self.backup,
            role: match (self.standby, self.clone) {
                (true, _) => Role::Standby,
                (_, true) => Role::Clone,
                _ => Role::Replacement,
            },
            pgdata,
            over: match (self.delta, self.other_cluster) {
                (false, _) => Over::Nothing,
                (true, false) => Over::SameCluster,
                (true, true) => Over::AnyCluster,
            },
            tablespaces: self.tablespace,
            primary_conninfo: self.primary_conninfo,
            start,
        })
    }
}
