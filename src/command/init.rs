//! `init`: creates the repository.
//!
//! 1. create it, or find that it exists, and probe its store
//! 2. print what was found
//! 3. fail if the store has become less than the repository relies on

use serde::Serialize;

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::format::marker::CreateOnly;
use crate::output::{print, print_json};
use crate::repository::{self, InitReport, Patience};

/// Create the repository and probe its store
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct InitOutput<'a> {
    repository: &'a str,
    repository_id: &'a str,
    format_version: u32,
    created: bool,
    created_at: jiff::Timestamp,
    create_only: CreateOnly,
    create_only_now: CreateOnly,
}

/// Runs the command.
pub fn run(args: InitArgs, config: &Config) -> Result<Outcome, Failure> {
    config.require_repository()?;
    let patience = Patience::PerRequest(config.wal.push_deadline);
    let report = repository::init(&config.repository, patience)?;
    let url = repository::display_url(&config.repository);
    match args.json {
        true => print_json(&output(&url, &report))?,
        false => print(&as_text(&url, &report))?,
    }
    check_promise(&url, &report)
}

fn output<'a>(url: &'a str, report: &'a InitReport) -> InitOutput<'a> {
    InitOutput {
        repository: url,
        repository_id: &report.marker.repository_id,
        format_version: report.marker.format_version,
        created: report.created,
        created_at: report.marker.created,
        create_only: report.marker.create_only,
        create_only_now: report.create_only,
    }
}

fn as_text(url: &str, report: &InitReport) -> String {
    let marker = &report.marker;
    let first = if report.created {
        format!("created repository {url}")
    } else {
        format!("repository {url} exists already (since {})", marker.created)
    };
    let naming = match marker.create_only {
        CreateOnly::Enforced => "the store refuses to replace objects: names are plain",
        CreateOnly::Suffixed => "the store replaces objects silently: names carry a digest of the content",
    };
    format!(
        "{first}\n  id: {}\n  probe: write, read, list, delete work\n  create-only: {naming}\n",
        marker.repository_id
    )
}

/// A repository with plain names on a store that replaces objects would lose them.
fn check_promise(url: &str, report: &InitReport) -> Result<Outcome, Failure> {
    match (report.marker.create_only, report.create_only) {
        (CreateOnly::Enforced, CreateOnly::Suffixed) => Err(Failure::new(
            Cause::Unhealthy,
            format!("repository {url}: its store refused to replace objects when it was created, and now replaces them"),
        )
        .with_hint("undo what changed in the store or its address, or begin a new repository on this store")),
        (CreateOnly::Enforced, CreateOnly::Enforced) | (CreateOnly::Suffixed, _) => Ok(Outcome::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::marker::Marker;

    fn report(fixed: CreateOnly, now: CreateOnly) -> InitReport {
        let marker = Marker {
            format_version: 1,
            repository_id: "0123456789abcdef0123456789abcdef".to_owned(),
            created: "2026-11-20T22:46:13Z".parse().unwrap(),
            create_only: fixed,
        };
        InitReport { marker, created: false, create_only: now }
    }

    #[test]
    fn the_report_reads_like_this() {
        let report = report(CreateOnly::Enforced, CreateOnly::Enforced);
        assert_eq!(
            as_text("file:///srv/walhold", &report),
            "repository file:///srv/walhold exists already (since 2026-11-20T22:46:13Z)\n  \
             id: 0123456789abcdef0123456789abcdef\n  probe: write, read, list, delete work\n  \
             create-only: the store refuses to replace objects: names are plain\n"
        );
        assert_eq!(
            serde_json::to_string_pretty(&output("file:///srv/walhold", &report)).unwrap(),
            "{\n  \"repository\": \"file:///srv/walhold\",\n  \"repository_id\": \
             \"0123456789abcdef0123456789abcdef\",\n  \"format_version\": 1,\n  \"created\": false,\n  \
             \"created_at\": \"2026-11-20T22:46:13Z\",\n  \"create_only\": \"enforced\",\n  \
             \"create_only_now\": \"enforced\"\n}"
        );
    }

    #[test]
    fn a_store_that_got_worse_is_told() {
        let promise = |fixed, now| check_promise("s3://b", &report(fixed, now));
        assert!(promise(CreateOnly::Suffixed, CreateOnly::Enforced).is_ok());
        let failure = promise(CreateOnly::Enforced, CreateOnly::Suffixed).unwrap_err();
        assert_eq!(failure.cause, Cause::Unhealthy);
    }
}
