//! Servers and directories that cannot be backed up are refused before anything is copied.

use crate::site::Site;
use crate::support::postgres::Cluster;

fn refused(site: &Site, arguments: &[&str], expected: &str) {
    let (status, line) = site.fails(arguments);
    assert_eq!((status, line.as_str()), (3, expected));
    assert!(site.objects("backups").is_empty() && site.objects("packs").is_empty());
}

#[test]
fn a_server_that_does_not_archive_is_refused() {
    let mut site = Site::create(Cluster::builder(15));
    site.cluster.configure("archive_mode", "off");
    site.cluster.start();
    refused(
        &site,
        &["backup-push"],
        "ERROR: archive_mode is off: the WAL that the backup needs would never be archived  HINT: set archive_mode = on and archive_command = 'walhold wal-push %p', and restart the server",
    );
    site.cluster.configure("archive_mode", "on");
    site.cluster.configure("archive_command", "");
    site.cluster.restart();
    refused(
        &site,
        &["backup-push"],
        "ERROR: archive_command is empty: the WAL that the backup needs would never be archived  HINT: set archive_command = 'walhold wal-push %p' and reload the server",
    );
    site.cluster.configure("archive_mode", "off");
    site.cluster.configure("wal_level", "minimal");
    site.cluster.configure("max_wal_senders", "0");
    site.cluster.restart();
    refused(
        &site,
        &["backup-push"],
        "ERROR: wal_level is minimal: WAL does not hold what a restore needs  HINT: set wal_level = replica and restart the server",
    );
}

#[test]
fn a_directory_of_another_server_is_refused() {
    let site = Site::start(Cluster::builder(15));
    let hint = "HINT: run walhold on the server's own machine, and let PGHOST, PGPORT and PGDATA (--pgdata) mean the same server";
    // Another cluster.
    let other = Cluster::builder(15).start();
    let place = other.data_directory().display().to_string();
    let identifier = |cluster: &Cluster| cluster.value("SELECT system_identifier FROM pg_control_system()");
    refused(
        &site,
        &["backup-push", "--pgdata", &place],
        &format!(
            "ERROR: {place} belongs to the cluster with system identifier {}, but the connected server's is {}  {hint}",
            identifier(&other),
            identifier(&site.cluster)
        ),
    );
    // The same cluster, but its standby.
    let standby = Cluster::standby_of(&site.cluster);
    let place = standby.data_directory().display().to_string();
    refused(
        &site,
        &["backup-push", "--pgdata", &place],
        &format!(
            "ERROR: {place} is the data directory of another server of this cluster, not of the connected one  {hint}"
        ),
    );
    let nowhere = site.cluster.directory("nowhere").display().to_string();
    let (status, line) = site.fails(&["backup-push", "--pgdata", &nowhere]);
    assert_eq!(
        (status, line),
        (
            1,
            format!(
                "ERROR: read {nowhere}/global/pg_control: No such file or directory  HINT: check --pgdata (PGDATA)"
            )
        )
    );
}

#[test]
fn a_standby_of_a_primary_without_full_page_writes_is_refused() {
    let mut site = Site::start(Cluster::builder(15).setting("full_page_writes", "off"));
    site.cluster.execute("CREATE TABLE x AS SELECT 1; CHECKPOINT");
    let mut standby = Cluster::standby_of(&site.cluster);
    std::mem::swap(&mut site.cluster, &mut standby);
    refused(
        &site,
        &["backup-push"],
        "ERROR: the primary runs with full_page_writes = off: pages copied from its standby may be torn for good  HINT: set full_page_writes = on on the primary, reload it and run CHECKPOINT there, or back up the primary",
    );
}

#[test]
fn an_unreachable_server_is_told() {
    let site = Site::create(Cluster::builder(15));
    let (status, line) = site.fails(&["backup-push"]);
    assert_eq!(status, 1);
    assert!(line.starts_with("ERROR: connect to PostgreSQL at "), "{line}");
    assert!(line.contains("HINT: is the server running?"), "{line}");
}

#[test]
fn another_cluster_under_the_same_name_is_told_and_kept_apart() {
    let site = Site::start(Cluster::builder(15));
    site.back_up();
    let mut other = Cluster::builder(15).create();
    other.archive_with(crate::support::program::walhold(), &site.variables());
    other.start();
    let other = Site {
        cluster: other,
        repository: site.repository.clone(),
        variables: site.variables.clone(),
        bucket: None,
    };
    let output = other.run(&["backup-push"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("WARNING: another cluster uses the name main in file://"), "{text}");
    let list = site.list();
    assert_eq!(list.len(), 2);
    assert_ne!(list[0]["system_identifier"], list[1]["system_identifier"]);
}

#[test]
fn a_role_with_a_few_grants_is_enough() {
    let mut site = Site::start(Cluster::builder(15));
    site.cluster.execute(
        "CREATE ROLE backup LOGIN; GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO backup",
    );
    site.variables.push(("PGUSER".to_owned(), "backup".to_owned()));
    let mut command = site.command(&["backup-push"]);
    let output = command.env_remove("PGDATA").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("the server does not tell this role where its data directory is"), "{text}");
    assert!(
        text.contains("HINT: set --pgdata (or PGDATA), or GRANT pg_read_all_settings to the role"),
        "{text}"
    );
    site.cluster.execute("GRANT pg_read_all_settings TO backup");
    let output = site.command(&["backup-push"]).env_remove("PGDATA").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(site.contents().manifest.summary.damaged_pages, 0);
}
