//! The store: whether it does what everything else relies on, and whether the repository in it is this server's.

use std::time::Duration;

use jiff::Timestamp;

use super::Findings;
use super::server::Server;
use crate::backup::list::{BackupName, Catalogue};
use crate::codec::KeyRing;
use crate::config::Config;
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::marker::CreateOnly;
use crate::output::human_duration;
use crate::repository::{Patience, Repository, RepositoryError, StoreLook};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than that, and a WAL push is mostly waiting.
const FAR_MILLISECONDS: u128 = 500;

/// A repository that was opened.
pub struct StoreSeen {
    /// The repository.
    pub repository: Repository,
    /// The store's time of an object, and this machine's before and after it was written.
    pub stored_at: Option<(Timestamp, Timestamp, Timestamp)>,
}

/// Opens the repository and probes its store.
pub fn look(config: &Config, findings: &mut Findings) -> Option<StoreSeen> {
    let repository = match Repository::open(&config.repository, Patience::PerRequest(PATIENCE)) {
        Ok(repository) => repository,
        Err(error) => {
            findings.failed("repository", &error);
            return None;
        }
    };
    findings.ok(
        "repository",
        format!("{} is a walhold repository, id {}", repository.url(), repository.marker().repository_id),
    );
    let look = repository.look_at_store();
    look_at_round_trip(&look, findings);
    look_at_absence(&look, &repository, findings);
    look_at_probe(&look, &repository, findings);
    look_at_deletion(&look, findings);
    Some(StoreSeen { repository, stored_at: look.stored_at })
}

fn look_at_round_trip(look: &StoreLook, findings: &mut Findings) {
    match &look.round_trip {
        Ok(time) if time.as_millis() <= FAR_MILLISECONDS => {
            findings.ok("round trip", format!("the store answers in {}", milliseconds(*time)));
        }
        Ok(time) => findings.warning(
            "round trip",
            format!("the store answers in {}", human_duration(*time)),
            "use a store that is nearer; until then the agent and wal.push_ahead hide most of it (docs/wal.md)",
        ),
        Err(error) => findings.failed("round trip", error),
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Without the right to list, S3 answers 403 for what is not there, and wal-fetch can never say that WAL ends.
fn look_at_absence(look: &StoreLook, repository: &Repository, findings: &mut Findings) {
    match &look.absent {
        Ok(()) => findings.ok("absence", "the store says plainly when an object is not there"),
        Err(error @ RepositoryError::Denied { .. }) => findings.bad(
            "absence",
            format!("the store refuses to say that an object is not there ({error}): a recovery to the end of WAL would never end"),
            format!(
                "grant the right to list: S3 s3:ListBucket on the bucket itself (not on its objects), Google storage.objects.list, Azure List; for {}",
                repository.url()
            ),
        ),
        Err(error) => findings.failed("absence", error),
    }
}

fn look_at_probe(look: &StoreLook, repository: &Repository, findings: &mut Findings) {
    match (&look.probe, repository.marker().create_only) {
        (Ok(CreateOnly::Suffixed), CreateOnly::Enforced) => findings.bad(
            "create-only",
            "the store replaces objects, but it refused to when the repository was created: stored WAL could be overwritten",
            "find out what changed (another server behind the same address, an upgrade), and have it refuse again; or begin a new repository there (walhold init)",
        ),
        (Ok(CreateOnly::Enforced), _) => {
            findings.ok("create-only", "the store can be written, read and listed, and refuses to replace an object");
        }
        (Ok(CreateOnly::Suffixed), CreateOnly::Suffixed) => findings.ok(
            "create-only",
            "the store can be written, read and listed; it replaces objects, which walhold knows: names carry digests",
        ),
        (Err(error), _) => findings.failed("create-only", error),
    }
}

fn look_at_deletion(look: &StoreLook, findings: &mut Findings) {
    match &look.deleted {
        None => {}
        Some(Ok(())) => findings.ok("deletion", "these credentials may delete objects: expire can run with them"),
        Some(Err(RepositoryError::Denied { .. })) => findings.ok(
            "deletion",
            "these credentials may not delete objects: safe from an intruder here, and expire must run with others; the probe's object stays until then",
        ),
        Some(Err(error)) => findings.failed("deletion", error),
    }
}

/// Whether what lies under the cluster's name is this server's, and whether the key opens it.
pub fn look_at_cluster(
    store: &StoreSeen,
    server: Option<&Server>,
    keys: Option<&KeyRing>,
    config: &Config,
    findings: &mut Findings,
) {
    let no_keys = KeyRing::default();
    let catalogue =
        Catalogue { repository: &store.repository, cluster: &config.cluster, keys: keys.unwrap_or(&no_keys) };
    let systems = match catalogue.systems() {
        Ok(systems) => systems,
        Err(error) => {
            findings.failed("cluster", &error);
            return;
        }
    };
    let name = &config.cluster;
    match server.map(|server| server.system) {
        Some(own) if systems.is_empty() => findings.warning(
            "cluster",
            format!("nothing was ever archived under the name {name}; this server is system {own}"),
            "on a new repository that is no wonder; else check WALHOLD_REPOSITORY and WALHOLD_CLUSTER",
        ),
        Some(own) if !systems.contains(&own) => findings.bad(
            "cluster",
            format!("the name {name} belongs to another cluster: system {}, this server is {own}", systems.first().map(ToString::to_string).unwrap_or_default()),
            "after pg_upgrade or a new initdb that is right and ends with the first archived segment; else give each cluster its own WALHOLD_CLUSTER",
        ),
        Some(own) if systems.len() > 1 => findings.warning(
            "cluster",
            format!("{} clusters archive under the name {name}; this server, system {own}, is one of them", systems.len()),
            "after pg_upgrade that is right; else give each cluster its own WALHOLD_CLUSTER",
        ),
        Some(own) => findings.ok("cluster", format!("what lies under the name {name} is this server's, system {own}")),
        None => {}
    }
    if keys.is_none() {
        return;
    }
    match catalogue.find(&BackupName::Latest) {
        Ok((id, object)) => match catalogue.read_summary(&id, &object, &systems) {
            Ok(_) => findings.ok("newest backup", format!("{id} can be opened")),
            Err(error) => findings.failed("newest backup", &error),
        },
        Err(error) if error.exit_cause() == Cause::NotFound => findings.warning(
            "newest backup",
            "there is no backup: nothing can be recovered",
            "take one: walhold backup-push",
        ),
        Err(error) => findings.failed("newest backup", &error),
    }
}
