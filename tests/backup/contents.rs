//! What a backup holds.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use walhold::format::manifest::{RangeSource, Root};

use crate::site::{Site, id_of, text};
use crate::support::postgres::installation::{ServerUser, run};
use crate::support::postgres::{Cluster, ClusterBuilder, StopMode};
use crate::support::program::{describe, walhold};

/// Nothing changes files by itself.
fn quiet(major: u32) -> ClusterBuilder {
    Cluster::builder(major).checksums(true).setting("autovacuum", "off").setting("bgwriter_lru_maxpages", "0")
}

/// Everything that must be told apart: kinds of relations, a tablespace, configuration elsewhere.
fn populate(site: &Site) {
    let cluster = &site.cluster;
    let space = cluster.directory("space");
    cluster.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    cluster.execute(
        "CREATE TABLE big AS SELECT i AS id, md5(i::text) AS a, repeat(md5((i * 7)::text), 3) AS b FROM generate_series(1, 40000) i;
         CREATE INDEX ON big (id); CREATE INDEX ON big (a);
         CREATE UNLOGGED TABLE unlogged AS SELECT i FROM generate_series(1, 5000) i; CREATE INDEX ON unlogged (i);
         CREATE TABLE spaced TABLESPACE space AS SELECT i, repeat('x', 300) AS x FROM generate_series(1, 3000) i;
         CREATE UNLOGGED TABLE spaced_unlogged TABLESPACE space AS SELECT 1 AS i;
         CREATE TABLE empty (i int); CREATE SEQUENCE numbers;
         SELECT lo_from_bytea(0, convert_to(repeat('large', 5000), 'UTF8'))",
    );
    cluster.execute("CREATE DATABASE other");
}

fn settle(site: &Site) {
    for database in site.cluster.databases() {
        site.cluster.execute_in(&database, "VACUUM (FREEZE, ANALYZE)");
    }
    site.cluster.execute("CHECKPOINT");
    site.cluster.execute("CHECKPOINT");
}

/// Regular files below a directory, links followed, relative.
fn files_below(root: &Path, directory: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(root, &path, files);
        } else if path.is_file() {
            files.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn a_quiet_cluster_is_stored_byte_for_byte() {
    let site = Site::start(quiet(15).setting("wal_recycle", "off"));
    populate(&site);
    settle(&site);
    let summary = site.back_up();
    let contents = site.contents();
    assert_eq!(contents.manifest.summary.id, id_of(&summary));
    assert_eq!(summary["damaged_pages"], 0);
    assert_eq!(summary["kind"], "full");
    let mut compared = 0;
    for file in &contents.manifest.files {
        assert_eq!(file.root, Root::DataDirectory);
        let path = text(&file.path);
        let place = site.cluster.data_directory().join(&path);
        let on_disk = fs::read(&place).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(contents.read(file) == on_disk, "{path} differs");
        compared += on_disk.len() as u64;
    }
    assert_eq!(compared, contents.manifest.summary.cluster_bytes);
    assert_eq!(contents.manifest.summary.file_count, contents.manifest.files.len() as u64);
    // Small files share chunks.
    let chunks: BTreeSet<(u32, u32)> = contents
        .manifest
        .files
        .iter()
        .flat_map(|file| &file.ranges)
        .filter_map(|range| match range.source {
            RangeSource::Chunk { pack, number, .. } => Some((pack, number)),
            RangeSource::Zeros => None,
        })
        .collect();
    assert!(chunks.len() * 10 < contents.manifest.files.len(), "{} chunks", chunks.len());
    // Names for numbers.
    let filenode = site.cluster.value("SELECT pg_relation_filenode('big')");
    let named = |entry: &&walhold::format::manifest::CatalogueEntry| entry.relation == "big";
    let entry = contents.manifest.catalogue.iter().find(named).expect("the table is named");
    assert_eq!((entry.relfilenode.to_string(), entry.schema.as_str()), (filenode, "public"));
    assert!(contents.manifest.catalogue.iter().any(|entry| entry.database == "other" && entry.oid != 0));
}

#[test]
fn the_same_files_are_saved_that_pg_basebackup_saves() {
    let site = Site::start(quiet(15));
    populate(&site);
    settle(&site);
    // Leftovers and temporary things of every kind.
    let data = site.cluster.data_directory();
    for path in [
        "base/pgsql_tmp/pgsql_tmp12.0",
        "base/5/t3_99999",
        "postgresql.auto.conf.tmp",
        "pg_stat_tmp/x",
        "notes.txt",
    ] {
        fs::create_dir_all(data.join(path).parent().unwrap()).unwrap();
        fs::write(data.join(path), "x").unwrap();
    }
    ServerUser::get().own(data);
    site.back_up();
    let reference = site.cluster.directory("reference");
    let space = site.cluster.directory("space");
    let map = format!("{}={}", space.display(), reference.join("space").display());
    let mut basebackup = site.cluster.client_program("pg_basebackup");
    run(basebackup
        .args(["-X", "none", "-c", "fast", "--no-manifest", "-T", &map, "-D"])
        .arg(reference.join("data")));
    let mut expected = BTreeSet::new();
    files_below(&reference.join("data"), &reference.join("data"), &mut expected);
    expected.remove("backup_label");
    expected.remove("tablespace_map");
    let saved: BTreeSet<String> = site.contents().paths().into_iter().collect();
    assert_eq!(saved, expected);
    assert!(saved.contains("notes.txt"));
    let init = |path: &String| path.ends_with("_init");
    assert_eq!(saved.iter().filter(|path| init(path)).count(), 3, "two tables and an index are unlogged");
    let empty: Vec<String> = site.contents().manifest.directories.iter().map(|d| text(&d.path)).collect();
    for directory in ["pg_wal", "pg_wal/archive_status", "pg_replslot", "pg_notify", "pg_stat_tmp"] {
        assert!(empty.contains(&directory.to_owned()), "{directory} is kept");
    }
}

fn backup_under_load(major: u32, encrypted: bool) {
    let builder = Cluster::builder(major).checksums(true);
    let site = if encrypted { Site::start_encrypted(builder) } else { Site::start(builder) };
    populate(&site);
    let cluster = &site.cluster;
    run(cluster.client_program("pgbench").args(["-i", "-s", "5", "-q", "postgres"]));
    let load = || {
        cluster
            .client_program("pgbench")
            .args(["-n", "-c", "2", "-T", "15", "postgres"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut pgbench = load();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let summary = site.back_up();
    let during = pgbench.try_wait().unwrap().is_none();
    cluster.execute("CREATE TABLE after_backup AS SELECT 1 AS x");
    let _ = pgbench.kill();
    let _ = pgbench.wait();
    assert!(during, "the load must last longer than the backup");
    assert_eq!(summary["damaged_pages"], 0);
    assert_eq!(summary["encrypted"], encrypted);
    let expected = cluster.digest();
    cluster.archive_now();
    let copy = site.contents().recover(&site, "copy");
    assert_eq!(copy.digest(), expected);
    assert_eq!(copy.value("SELECT count(*) FROM unlogged"), "0");
    copy.amcheck();
}

#[test]
fn a_backup_under_load_recovers() {
    backup_under_load(15, false);
}

#[test]
fn an_encrypted_backup_under_load_recovers() {
    backup_under_load(17, true);
}

#[test]
fn damaged_pages_are_found_named_and_counted() {
    let site = Site::start(quiet(15));
    site.cluster.execute(
        "CREATE TABLE victim AS SELECT i, repeat(md5(i::text), 8) AS x FROM generate_series(1, 20000) i",
    );
    settle(&site);
    let path = site.cluster.value("SELECT pg_relation_filepath('victim')");
    let file =
        fs::File::options().write(true).read(true).open(site.cluster.data_directory().join(&path)).unwrap();
    file.write_all_at(b"overwritten", 7 * 8192 + 4000).unwrap();
    // An LSN from the future does not make it a page in motion.
    file.write_all_at(&[0xff; 8], 9 * 8192).unwrap();
    let (status, line) = site.fails(&["backup-push"]);
    assert_eq!(status, 1, "{line}");
    let id = id_of(&site.list()[0]);
    assert_eq!(
        line,
        format!(
            "ERROR: backup {id} is stored, but 2 pages of the cluster are damaged, the first is block 7 of {path}  HINT: walhold backup-show {id} lists them; restore an earlier backup beside the server to get the pages back, and look at the disk"
        )
    );
    assert_eq!(site.list()[0]["damaged_pages"], 2);
    let contents = site.contents();
    assert_eq!(contents.manifest.server.damaged_blocks, [(path.clone(), 7), (path.clone(), 9)]);
    assert!(
        contents.read(contents.file(&path)) == fs::read(site.cluster.data_directory().join(&path)).unwrap()
    );
    assert!(site.ok(&["backup-show", "latest"]).contains(&format!("damaged page       block 9 of {path}")));
}

#[test]
fn configuration_outside_pgdata_is_saved() {
    let mut site = Site::create(quiet(15));
    let etc = site.cluster.directory("etc");
    let data = site.cluster.data_directory().to_owned();
    fs::create_dir(etc.join("conf.d")).unwrap();
    fs::write(etc.join("conf.d/extra.conf"), "work_mem = '7MB'\n").unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::copy(data.join(name), etc.join(name)).unwrap();
    }
    let text = fs::read_to_string(etc.join("postgresql.conf")).unwrap();
    fs::write(etc.join("postgresql.conf"), format!("{text}\ninclude_dir = 'conf.d'\n")).unwrap();
    ServerUser::get().own(&etc);
    let name = |name: &str| etc.join(name).display().to_string();
    for (setting, file) in
        [("config_file", "postgresql.conf"), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")]
    {
        site.cluster.option(setting, &name(file));
    }
    site.cluster.start();
    assert_eq!(site.cluster.value("SHOW work_mem"), "7MB");
    site.back_up();
    let contents = site.contents();
    let external = contents.manifest.files.iter().filter(|file| file.root == Root::External);
    let external: Vec<String> = external.map(|file| format!("/{}", self::text(&file.path))).collect();
    let expected = ["conf.d/extra.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.conf"].map(name);
    assert_eq!(external, expected);
    assert_eq!(contents.manifest.server.external_configuration, expected);
    let extra = contents.manifest.files.iter().find(|file| text_ends(&file.path, "extra.conf")).unwrap();
    assert_eq!(contents.read(extra), b"work_mem = '7MB'\n");
}

fn text_ends(path: &[u8], end: &str) -> bool {
    path.ends_with(end.as_bytes())
}

#[test]
fn a_standby_is_backed_up() {
    let mut site = Site::start(Cluster::builder(15).checksums(true));
    site.cluster.execute("CREATE TABLE rows AS SELECT i, md5(i::text) AS x FROM generate_series(1, 30000) i");
    let mut standby = Cluster::standby_of(&site.cluster);
    site.cluster.wait_replayed_by(&standby);
    site.cluster.execute("UPDATE rows SET x = x || 'later'");
    site.cluster.wait_replayed_by(&standby);
    std::mem::swap(&mut site.cluster, &mut standby);
    let primary = standby;
    // The primary is idle: the backup makes it finish its segment.
    let summary = site.back_up();
    assert_eq!((&summary["from_standby"], &summary["damaged_pages"]), (&true.into(), &0.into()));
    let contents = site.contents();
    assert!(contents.manifest.backup_label.contains("BACKUP FROM: standby"));
    primary.execute("INSERT INTO rows VALUES (0, 'after')");
    let expected = primary.digest();
    primary.archive_now();
    let copy = contents.recover(&site, "copy");
    assert_eq!(copy.digest(), expected);
    copy.amcheck();
}

#[test]
fn a_standby_that_follows_its_primary_to_another_timeline_while_it_is_backed_up() {
    let mut site = Site::start(Cluster::builder(15).checksums(true));
    site.cluster.execute(
        "CREATE TABLE rows AS SELECT md5(i::text) || md5((i * 3)::text) AS x FROM generate_series(1, 150000) i",
    );
    let mut middle = Cluster::standby_of(&site.cluster);
    middle.archive_with(walhold(), &site.variables());
    middle.restart();
    site.cluster.wait_replayed_by(&middle);
    let last = Cluster::standby_of(&middle);
    site.cluster.archive_now();
    site.cluster.wait_replayed_by(&last);
    // The first is kept: the repository lies in its directory.
    let mut first = std::mem::replace(&mut site.cluster, last);
    let mut backup = site.command(&["backup-push", "--rate-limit", "1MB", "--json"]);
    let backup = backup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while site.objects("backups").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    first.stop(StopMode::Fast);
    middle.promote();
    middle.execute("INSERT INTO rows VALUES ('on timeline 2'); CHECKPOINT");
    middle.wait_replayed_by(&site.cluster);
    // A restartpoint moves the point up to which its pages may be newer.
    site.cluster.execute("CHECKPOINT");
    let output = backup.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["start_timeline"], &summary["stop_timeline"]), (&1.into(), &2.into()));
    assert!(site.objects("wal").iter().any(|object| object.path.ends_with("00000002.history")));
    let expected = middle.digest();
    middle.archive_now();
    let copy = site.contents().recover(&site, "copy");
    assert_eq!(copy.digest(), expected);
    copy.amcheck();
}

#[test]
fn other_majors_and_segment_sizes_are_backed_up() {
    for (major, mib) in [(14, 1), (16, 64), (18, 16)] {
        let site = Site::start(Cluster::builder(major).wal_segment_mib(mib));
        site.cluster
            .execute("CREATE TABLE rows AS SELECT i, md5(i::text) AS x FROM generate_series(1, 20000) i");
        let summary = site.back_up();
        assert_eq!(summary["server_version"].as_u64().unwrap() / 10_000, u64::from(major));
        assert_eq!(summary["wal_segment_size"], mib << 20);
        assert_eq!(summary["data_checksums"], major >= 18);
        let expected = site.cluster.digest();
        site.cluster.archive_now();
        assert_eq!(site.contents().recover(&site, "copy").digest(), expected, "PostgreSQL {major}");
    }
}
