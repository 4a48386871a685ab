//! WAL on its way: out of the server, into the repository, and back.
//!
//! The server writes a restore point and ends its segment; `archive_command` does what it does; the segment is waited for, fetched as `restore_command` would
//! fetch it, and compared with the file in pg_wal.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Findings;
use super::server::Server;
use crate::codec::KeyRing;
use crate::config::Config;
use crate::error::system_words;
use crate::interrupt;
use crate::output::human_duration;
use crate::pg::client::ClientError;
use crate::pg::{ArchiveFileName, WalSegmentName};
use crate::repository::Repository;
use crate::wal::absence::Archive;
use crate::wal::fetch::fetch_if_stored;

const CHECK: &str = "WAL round trip";
/// How often the repository is looked at.
const POLL: Duration = Duration::from_millis(200);
/// What the archiver may take to come to this segment.
const ARCHIVER: Duration = Duration::from_secs(30);

/// Makes the trip, unless it cannot be made from here.
pub fn look(
    server: &mut Server,
    repository: &Repository,
    keys: &KeyRing,
    config: &Config,
    findings: &mut Findings,
) {
    if server.in_recovery {
        findings.ok(CHECK, "left out: a server in recovery writes no WAL; run walhold check on the primary");
        return;
    }
    if !matches!(server.setting("archive_mode"), "on" | "always") {
        // Told already.
        return;
    }
    let segment = match end_segment(server) {
        Ok(segment) => segment,
        Err(error) => {
            findings.failed(CHECK, &error);
            return;
        }
    };
    let fetched = match temporary_directory() {
        Ok(directory) => directory,
        Err(error) => {
            findings.bad(
                CHECK,
                format!("make a temporary directory: {}", system_words(&error)),
                "set TMPDIR to a directory with room for one WAL segment",
            );
            return;
        }
    };
    travel(server, repository, keys, config, segment, &fetched.0, findings);
}

fn travel(
    server: &mut Server,
    repository: &Repository,
    keys: &KeyRing,
    config: &Config,
    segment: WalSegmentName,
    directory: &Path,
    findings: &mut Findings,
) {
    let archive = Archive {
        repository,
        keys,
        cluster: &config.cluster,
        system: server.system,
        segment_size: server.segment_size,
    };
    let path = directory.join(segment.to_string());
    let begun = Instant::now();
    let deadline = begun + ARCHIVER + config.wal.push_deadline;
    loop {
        match fetch_if_stored(&archive, segment, &path) {
            Ok(Some(_)) => break,
            Ok(None) => {}
            Err(error) => {
                findings.failed(CHECK, &error);
                return;
            }
        }
        let failed = last_failure(server, segment);
        if failed.is_some() || Instant::now() >= deadline {
            let how_long = human_duration(begun.elapsed());
            let why = failed.unwrap_or_else(|| {
                "PostgreSQL reports no failure: archive_command archives elsewhere".to_owned()
            });
            findings.bad(
                CHECK,
                format!("{segment} did not arrive in {} within {how_long}: {why}", repository.url()),
                "the server's log has archive_command's own words; it must be told the same repository and cluster as this check",
            );
            return;
        }
        if !interrupt::sleep(POLL) {
            findings.warning(CHECK, "it was interrupted before the segment arrived", "run it again");
            return;
        }
    }
    let time = human_duration(begun.elapsed());
    let arrived = format!("{segment} was archived and read back within {time}");
    match compare(server, segment, &path) {
        Compared::Same => findings.ok(CHECK, format!("{arrived}, byte for byte what is in pg_wal")),
        Compared::NotThere => findings.ok(CHECK, format!("{arrived}, whole and with the right digest")),
        Compared::Different => findings.bad(
            CHECK,
            format!("{segment} came back different from the file in pg_wal"),
            "two servers archive under one name, or this server's disk or memory fails: give each its own WALHOLD_CLUSTER, and compare both files with pg_waldump",
        ),
    }
}

/// Writes a restore point and ends its segment: that segment's name.
fn end_segment(server: &mut Server) -> Result<WalSegmentName, ClientError> {
    let what = "write a restore point and end its WAL segment";
    // On a server that is idle pg_switch_wal alone would end nothing.
    let sql = "SELECT pg_walfile_name(pg_create_restore_point('walhold check')), pg_switch_wal()::text";
    let row =
        server.session.client().query_one(sql, &[]).map_err(|error| ClientError::query(what, &error))?;
    let name: String = row.try_get(0).map_err(|error| ClientError::query(what, &error))?;
    name.parse().map_err(|_| ClientError::unexpected(what, &name))
}

/// What PostgreSQL says if it tried to archive this segment, or one before it, and failed: nothing comes past that.
fn last_failure(server: &mut Server, segment: WalSegmentName) -> Option<String> {
    let sql = "SELECT last_failed_wal FROM pg_stat_archiver \
               WHERE last_failed_time > coalesce(last_archived_time, '-infinity') AND last_failed_wal <= $1 \
               AND last_failed_time > clock_timestamp() - interval '2 minutes' AND failed_count > 2";
    let row = server.session.client().query_opt(sql, &[&segment.to_string()]).ok().flatten()?;
    let failed: String = row.try_get(0).ok()?;
    Some(format!("archiving {failed} fails"))
}

/// How the fetched segment and the server's own compare.
enum Compared {
    Same,
    Different,
    /// The server has recycled it, or is elsewhere.
    NotThere,
}

fn compare(server: &Server, segment: WalSegmentName, fetched: &Path) -> Compared {
    let Some(pgdata) = &server.pgdata else { return Compared::NotThere };
    let own = pgdata.join("pg_wal").join(ArchiveFileName::Segment(segment).to_string());
    match same_content(&own, fetched) {
        Ok(true) => Compared::Same,
        // Recycled files are renamed, but one that was opened before that reads as another segment.
        Ok(false) if own.exists() => Compared::Different,
        Ok(false) | Err(_) => Compared::NotThere,
    }
}

fn same_content(one: &Path, other: &Path) -> std::io::Result<bool> {
    use std::io::Read;
    let (mut one, mut other) = (std::fs::File::open(one)?, std::fs::File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        let right = right.get_mut(..count).unwrap_or_default();
        other.read_exact(right)?;
        if left.get(..count) != Some(&*right) {
            return Ok(false);
        }
    }
}

/// A directory of its own, removed with what is in it.
struct TemporaryDirectory(std::path::PathBuf);

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn temporary_directory() -> std::io::Result<TemporaryDirectory> {
    use std::os::unix::fs::DirBuilderExt;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let name = format!("walhold-check-{}", crate::format::digest::to_hex(&random));
    let path = std::env::temp_dir().join(name);
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(TemporaryDirectory(path))
}
