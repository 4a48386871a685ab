//! `expire`: deletes backups and WAL that no retention policy keeps.
//!
//! 1. Open the repository; no server is needed.
//! 2. Read what there is and plan: what goes, what stays and why.
//! 3. Print the plan; without `--confirm` that is all.
//! 4. Announce, wait, look again, delete.

use super::backup_list::PATIENCE;
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::format::BackupId;
use crate::output::{self, human_size};
use crate::pg::SystemIdentifier;
use crate::repository::{Patience, Repository};
use crate::retention::apply::Expiring;
use crate::retention::inventory::{Depth, Inventory};
use crate::retention::plan::{ExpireRequest, make_plan};
use crate::retention::policy::Policy;
use crate::retention::render;

/// Delete backups and WAL that no retention policy keeps; shows the plan unless --confirm is given
#[derive(Debug, clap::Args)]
pub struct ExpireArgs {
    /// Delete what the plan says
    #[arg(long)]
    pub confirm: bool,
    /// Give up a backup that cannot be read or restored any more (repeatable)
    #[arg(long, value_name = "ID")]
    pub drop_damaged: Vec<BackupId>,
    /// Give up a cluster that another one took the place of, as after pg_upgrade (repeatable)
    #[arg(long, value_name = "SYSTEM-IDENTIFIER")]
    pub drop_system: Vec<SystemIdentifier>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: ExpireArgs, config: &Config) -> Result<Outcome, Failure> {
    let request = ExpireRequest { drop_damaged: args.drop_damaged, drop_system: args.drop_system };
    let policy = Policy::new(&config.retention).ok_or_else(|| {
        Failure::new(Cause::Refused, "no retention policy is configured: nothing says what may go").with_hint(
            "say what to keep, for example --keep-within 14d --monthly 6, or set retention.keep_within and its like (docs/retention.md)",
        )
    })?;
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let plan = {
        let inventory = Inventory::take(&repository, &config.cluster, &keys, Depth::Packs)?;
        make_plan(&inventory, &policy, &request)?
    };
    if !args.json {
        output::print(&render::plan_text(&plan))?;
    }
    if !args.confirm {
        if args.json {
            output::print_json(&plan)?;
        } else if plan.objects > 0 {
            output::print_line("nothing was deleted: add --confirm to delete")?;
        }
        return Ok(Outcome::Done);
    }
    let expiring = Expiring {
        repository: &repository,
        cluster: &config.cluster,
        keys: &keys,
        policy: &policy,
        request: &request,
    };
    let outcome = expiring.run(&plan)?;
    if args.json {
        output::print_json(&serde_json::json!({ "plan": plan, "done": outcome }))?;
    } else {
        output::print_line(&format!(
            "deleted {} objects, {} are free",
            outcome.deleted_objects,
            human_size(outcome.freed_bytes)
        ))?;
        if outcome.spared_objects > 0 {
            output::print_line(&format!(
                "{} announced objects stayed: they are needed by now",
                outcome.spared_objects
            ))?;
        }
    }
    outcome.into_failure().map_or(Ok(Outcome::Done), Err)
}
