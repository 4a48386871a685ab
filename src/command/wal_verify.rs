//! `wal-verify`: whether the archive holds the WAL that its backups need.
//!
//! 1. Open the repository; list the backups.
//! 2. Ask the server where it is, if it answers.
//! 3. Look at the archive.
//! 4. Print what was found, for people or as JSON; status 4 if anything is wrong.

use super::backup_list::PATIENCE;
use crate::backup::list::Catalogue;
use crate::config::Config;
use crate::error::{Explain, Failure};
use crate::exit_status::{Cause, Outcome};
use crate::output::{human_size, print, print_json};
use crate::pg::PgTimestamp;
use crate::repository::{Patience, Repository};
use crate::wal::verify::{
    BackupSpan, Cost, Depth, Finding, Question, ServerPosition, SystemVerification, Verification, verify,
};

/// Check that the archive holds all the WAL that its backups need
#[derive(Debug, clap::Args)]
pub struct WalVerifyArgs {
    /// Read every object to its last byte, not only its index
    #[arg(long)]
    pub deep: bool,
    /// Leave the server alone: look at the archive only
    #[arg(long)]
    pub offline: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: WalVerifyArgs, config: &Config) -> Result<Outcome, Failure> {
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let backups = backups(&Catalogue { repository: &repository, cluster: &config.cluster, keys: &keys })?;
    let server = if args.offline {
        Err("not asked".to_owned())
    } else {
        ServerPosition::ask(&config.connection).map_err(|error| error.to_string())
    };
    let question = Question {
        repository: &repository,
        cluster: &config.cluster,
        keys: &keys,
        backups: &backups,
        depth: if args.deep { Depth::Objects } else { Depth::Indexes },
        jobs: config.jobs,
    };
    let found = verify(&question, server)?;
    match args.json {
        true => print_json(&found)?,
        false => print(&render(&found))?,
    }
    let count =
        found.findings.len() + found.systems.iter().map(|system| system.findings.len()).sum::<usize>();
    match count {
        0 => Ok(Outcome::Done),
        1 => Err(Failure::new(Cause::Unhealthy, "the WAL archive is not as it should be: 1 finding")),
        _ => Err(Failure::new(
            Cause::Unhealthy,
            format!("the WAL archive is not as it should be: {count} findings"),
        )),
    }
}

/// A backup that cannot be read is an error: what it needs would not be known.
fn backups(catalogue: &Catalogue<'_>) -> Result<Vec<BackupSpan>, Failure> {
    let mut spans = Vec::new();
    for listed in catalogue.list()? {
        let summary = listed.summary.map_err(|error| {
            let failure = Failure::new(error.exit_cause(), error.to_string());
            error.hint().into_iter().fold(failure, Failure::with_hint)
        })?;
        spans.push(BackupSpan::of(&summary));
    }
    Ok(spans)
}

fn render(found: &Verification) -> String {
    let mut text = String::new();
    if found.systems.is_empty() {
        text.push_str(&format!(
            "nothing is archived under the name {} in {}\n",
            found.cluster, found.repository
        ));
    }
    for system in &found.systems {
        text.push_str(&render_system(found, system));
    }
    match (&found.server, &found.server_problem) {
        (Some(server), _) => text.push_str(&format!(
            "server at {}: timeline {}, {}; not archived: {} finished segments, {}{}\n",
            server.address,
            server.timeline.get(),
            server.lsn,
            server.lag_segments,
            human_size(server.lag_bytes),
            server.lag_seconds.map(|seconds| format!(", waiting for {seconds:.0} s")).unwrap_or_default(),
        )),
        (None, Some(problem)) => text.push_str(&format!("server: {problem}\n")),
        (None, None) => {}
    }
    found.findings.iter().for_each(|finding| text.push_str(&render_finding(finding)));
    text.push_str(if found.healthy { "healthy\n" } else { "NOT healthy\n" });
    text
}

fn render_system(found: &Verification, system: &SystemVerification) -> String {
    let mut text = format!("cluster {}, system identifier {}", found.cluster, system.system_identifier);
    if let Some(from) = system.needed_from {
        text.push_str(&format!(": WAL is needed from {from} on"));
    }
    text.push('\n');
    for timeline in &system.timelines {
        text.push_str(&format!(
            "  timeline {}: {} to {}, {} segments, {} missing\n",
            timeline.timeline.get(),
            timeline.first,
            timeline.last,
            timeline.segments,
            timeline.missing
        ));
    }
    if let Some(newest) = system.newest_commit {
        text.push_str(&format!("  newest archived commit: {newest}\n"));
    }
    if found.depth == Depth::Objects {
        text.push_str(&format!("  {} objects were read to their last byte\n", system.objects_decoded));
    }
    system.findings.iter().for_each(|finding| text.push_str(&render_finding(finding)));
    text
}

fn render_finding(finding: &Finding) -> String {
    let mut text = format!("PROBLEM: {}\n", finding.problem);
    if let Some(cost) = &finding.cost {
        text.push_str(&render_cost(cost));
    }
    text
}

fn render_cost(cost: &Cost) -> String {
    let time = |time: Option<PgTimestamp>, none: &str| time.map_or(none.to_owned(), |time| time.to_string());
    let names = |ids: &[crate::format::BackupId]| {
        ids.iter().map(crate::format::BackupId::as_str).collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    if !cost.backups_lost.is_empty() {
        text.push_str(&format!("  cannot be restored: {}\n", names(&cost.backups_lost)));
    }
    if !cost.backups_cut.is_empty() {
        text.push_str(&format!(
            "  can be recovered no further than {}: {}\n",
            cost.lost_from,
            names(&cost.backups_cut)
        ));
    }
    text.push_str(&format!(
        "  moments that no backup reaches: after {}, until {}\n",
        time(cost.lost_after, "the beginning"),
        time(cost.lost_until, "the next backup (there is none behind it)")
    ));
    text
}
