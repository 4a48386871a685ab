//! Changed blocks over a stretch of WAL of real servers: part archived, part in pg_wal, across promotions; and every case in which they must
//! not be believed.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, ClusterBuilder, StopMode, copy_tree};
use support::site::Site;
use support::stores::settings;
use walhold::codec::KeyRing;
use walhold::format::ClusterName;
use walhold::pg::wal_record::{ForkNumber, RelFileLocator};
use walhold::pg::{Lsn, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentSize};
use walhold::repository::{Patience, Repository};
use walhold::wal::changes::{ChangesError, RangeChanges, Unproven, WalRange, changes_in};
use walhold::wal::stored_segments::{StoredSegments, WalOf};

fn builder(major: u32) -> ClusterBuilder {
    Cluster::builder(major)
        .wal_segment_mib(1)
        .setting("autovacuum", "off")
        .setting("checkpoint_timeout", "1h")
        .setting("wal_keep_size", "1GB")
}

/// A cluster with segments of 1 MiB and a table.
fn site_with_table(builder: ClusterBuilder) -> Site {
    let site = Site::archiving(builder);
    site.cluster.execute(
        "CREATE TABLE t AS SELECT i AS id, repeat('x', 500) AS body FROM generate_series(1, 3000) i",
    );
    site.cluster.execute("CREATE INDEX ON t (id)");
    site.cluster.execute("VACUUM t");
    site
}

impl Site {
    fn pg_wal(&self) -> PathBuf {
        self.cluster.data_directory().join("pg_wal")
    }

    fn changes(
        &self,
        cluster: &Cluster,
        start: Lsn,
        stop: Lsn,
        pg_wal: Option<&Path>,
    ) -> Result<RangeChanges, ChangesError> {
        let settings = settings(&format!("file://{}/repository", self.directory.display()), &[]);
        let repository =
            Repository::open(&settings, Patience::PerRequest(Duration::from_secs(10))).expect("a repository");
        let name: ClusterName = "main".parse().expect("a name");
        let system: SystemIdentifier = cluster
            .value("SELECT system_identifier FROM pg_control_system()")
            .parse()
            .expect("an identifier");
        let of = WalOf {
            cluster: &name,
            system_identifier: system,
            segment_size: WalSegmentSize::new(1 << 20).expect("a size"),
        };
        let keys = KeyRing::default();
        let mut stored = StoredSegments::open(&repository, &keys, of).expect("an archive");
        let timeline =
            cluster.value("SELECT timeline_id FROM pg_control_checkpoint()").parse().expect("a number");
        let timeline = TimelineId::new(timeline).expect("a timeline");
        let history = fs::read_to_string(cluster.data_directory().join(format!("pg_wal/{timeline}.history")));
        let history = match history {
            Ok(text) => TimelineHistory::parse(timeline, &text).expect("a history"),
            Err(_) => TimelineHistory::without_ancestors(timeline),
        };
        changes_in(&mut stored, &WalRange { history: &history, start, stop }, pg_wal)
    }

    /// Why there is no answer.
    #[track_caller]
    fn unproven(&self, start: Lsn, stop: Lsn, pg_wal: Option<&Path>) -> Unproven {
        match self.changes(&self.cluster, start, stop, pg_wal) {
            Err(ChangesError::Unproven(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// Where redo would start from now on.
fn checkpoint(cluster: &Cluster) -> Lsn {
    cluster.execute("CHECKPOINT");
    cluster.value("SELECT redo_lsn FROM pg_control_checkpoint()").parse().expect("an LSN")
}

fn block_of(cluster: &Cluster, id: u32) -> u32 {
    cluster
        .value(&format!("SELECT (ctid::text::point)[0]::int FROM t WHERE id = {id}"))
        .parse()
        .expect("a block")
}

fn table(cluster: &Cluster) -> RelFileLocator {
    let number = |sql: &str| cluster.value(sql).parse().expect("a number");
    RelFileLocator {
        tablespace: 1663,
        database: number("SELECT oid FROM pg_database WHERE datname = 'postgres'"),
        relation: number("SELECT pg_relation_filenode('t')"),
    }
}

fn write_a_segment(cluster: &Cluster) {
    cluster
        .execute("SELECT pg_logical_emit_message(true, '', repeat('x', 300000)) FROM generate_series(1, 5)");
}

/// Updates a row and says which blocks of the table that changed.
fn update(cluster: &Cluster, id: u32) -> [u32; 2] {
    let before = block_of(cluster, id);
    cluster.execute(&format!("UPDATE t SET body = repeat('y', 500) WHERE id = {id}"));
    [before, block_of(cluster, id)]
}

#[test]
fn archived_and_local_wal_are_joined() {
    for major in [14, 18] {
        let site = site_with_table(builder(major));
        let cluster = &site.cluster;
        // Whole segments count: nothing that came before may lie in the first one.
        cluster.switch_wal();
        let start = checkpoint(cluster);
        let mut changed = Vec::new();
        for id in [1, 700, 1400] {
            changed.extend(update(cluster, id));
            write_a_segment(cluster);
        }
        cluster.archive_now();
        cluster.configure("archive_command", "false");
        cluster.execute("SELECT pg_reload_conf()");
        for id in [1401, 2000] {
            changed.extend(update(cluster, id));
            write_a_segment(cluster);
        }
        let stop = checkpoint(cluster);
        let late = update(cluster, 2999)[0];
        let found = site.changes(cluster, start, stop, Some(&site.pg_wal())).expect("changes");
        assert!(found.stored_segments >= 3 && found.local_segments >= 2, "{major}: {found:?}");
        let changes = found.blocks.as_ref().expect("blocks").of(table(cluster), ForkNumber::MAIN);
        assert_eq!(changes.limit, None);
        for block in &changed {
            assert!(changes.contains(*block), "{major}: block {block} is missing");
        }
        for id in [300, 1000, 1700, 2500] {
            assert!(!changes.contains(block_of(cluster, id)), "{major}: row {id} was not touched");
        }
        assert!(!changes.contains(late), "{major}: after the stop");
        // Without pg_wal, what is not archived is missing; an empty stretch changes nothing.
        let reason = site.unproven(start, stop, None);
        assert!(matches!(reason, Unproven::Missing { .. }), "{reason:?}");
        let nothing = site.changes(cluster, stop, stop, None).expect("nothing");
        assert_eq!(nothing.blocks.expect("blocks").fork_count(), 0);
        assert!(matches!(site.unproven(stop, start, None), Unproven::Backwards { .. }));
    }
}

#[test]
fn a_promotion_in_between_is_followed() {
    let site = site_with_table(builder(15));
    let standby = Cluster::standby_of(&site.cluster);
    site.cluster.switch_wal();
    let start = checkpoint(&site.cluster);
    let mut changed = update(&site.cluster, 1).to_vec();
    write_a_segment(&site.cluster);
    site.cluster.archive_now();
    changed.extend(update(&site.cluster, 700));
    site.cluster.wait_replayed_by(&standby);
    standby.promote();
    changed.extend(update(&standby, 1400));
    write_a_segment(&standby);
    let stop = checkpoint(&standby);
    let pg_wal = standby.data_directory().join("pg_wal");
    let found = site.changes(&standby, start, stop, Some(&pg_wal)).expect("changes");
    let changes = found.blocks.as_ref().expect("blocks").of(table(&standby), ForkNumber::MAIN);
    assert!(changed.iter().all(|block| changes.contains(*block)), "{changed:?}");
    assert!(!changes.contains(block_of(&standby, 2500)));
    assert!(found.stored_segments > 0);
}

#[test]
fn a_lost_or_damaged_segment_is_no_silence() {
    let site = site_with_table(builder(15));
    let cluster = &site.cluster;
    let start = checkpoint(cluster);
    for id in [1, 700, 1400] {
        update(cluster, id);
        write_a_segment(cluster);
    }
    cluster.archive_now();
    let stop = checkpoint(cluster);
    let name = cluster.value(&format!("SELECT pg_walfile_name('{start}'::pg_lsn + 2 * 1024 * 1024)"));
    let object = find(&site.directory.join("repository"), &name);
    let bytes = fs::read(&object).expect("read the object");
    // The index is unreadable: damage, which no other copy hides.
    let mut damaged = bytes.clone();
    let at = damaged.len() - 100;
    damaged[at] ^= 1;
    fs::write(&object, &damaged).expect("damage the object");
    let reason = site.unproven(start, stop, Some(&site.pg_wal()));
    assert!(
        matches!(&reason, Unproven::Damaged { segment, .. } if segment.to_string() == name),
        "{reason:?}"
    );
    // Lost from the archive, but still in pg_wal; then lost there too.
    fs::remove_file(&object).expect("lose the object");
    let found = site.changes(cluster, start, stop, Some(&site.pg_wal())).expect("changes");
    assert!(
        found
            .blocks
            .as_ref()
            .expect("blocks")
            .of(table(cluster), ForkNumber::MAIN)
            .contains(block_of(cluster, 700))
    );
    let elsewhere = cluster.directory("elsewhere").join(&name);
    fs::rename(site.pg_wal().join(&name), &elsewhere).expect("lose the segment");
    let reason = site.unproven(start, stop, Some(&site.pg_wal()));
    assert!(matches!(&reason, Unproven::Missing { segment } if segment.to_string() == name), "{reason:?}");
    // Another segment under this name.
    let other = cluster.value(&format!("SELECT pg_walfile_name('{start}'::pg_lsn + 1024 * 1024)"));
    fs::copy(site.pg_wal().join(&other), site.pg_wal().join(&name)).expect("put another one there");
    let reason = site.unproven(start, stop, Some(&site.pg_wal()));
    assert!(matches!(&reason, Unproven::LocalUnusable { .. }), "{reason:?}");
    // A bit of a record.
    let mut bytes = fs::read(&elsewhere).expect("read the segment");
    bytes[500_000] ^= 4;
    fs::write(site.pg_wal().join(&name), bytes).expect("damage the segment");
    let reason = site.unproven(start, stop, Some(&site.pg_wal()));
    assert!(
        matches!(&reason, Unproven::Damaged { segment, .. } if segment.to_string() == name),
        "{reason:?}"
    );
    fs::rename(&elsewhere, site.pg_wal().join(&name)).expect("put it back");
}

/// PGDATA is set back to an older copy: the server writes other WAL at positions that are archived already.
#[test]
fn a_server_that_was_set_back_is_noticed() {
    let mut site = site_with_table(builder(15));
    let start = checkpoint(&site.cluster);
    update(&site.cluster, 1);
    site.cluster.archive_now();
    site.cluster.stop(StopMode::Fast);
    let copy = site.cluster.directory("copy").join("data");
    let data = site.cluster.data_directory().to_path_buf();
    copy_tree(&data, &copy, &|_| false);
    site.cluster.start();
    update(&site.cluster, 700);
    site.cluster.archive_now();
    site.cluster.stop(StopMode::Fast);
    fs::remove_dir_all(&data).expect("remove the data directory");
    copy_tree(&copy, &data, &|_| false);
    ServerUser::get().own(&data);
    site.cluster.start();
    update(&site.cluster, 1400);
    site.cluster.switch_wal();
    update(&site.cluster, 2000);
    let stop = checkpoint(&site.cluster);
    let reason = site.unproven(start, stop, Some(&site.pg_wal()));
    assert!(matches!(&reason, Unproven::OtherWal { .. } | Unproven::Broken { .. }), "{reason:?}");
}

#[test]
fn minimal_wal_in_between_is_noticed() {
    let mut site = site_with_table(builder(15));
    let start = checkpoint(&site.cluster);
    update(&site.cluster, 1);
    for (level, senders, mode) in [("minimal", "0", "off"), ("replica", "10", "on")] {
        site.cluster.configure("wal_level", level);
        site.cluster.configure("max_wal_senders", senders);
        site.cluster.configure("archive_mode", mode);
        site.cluster.restart();
        write_a_segment(&site.cluster);
    }
    let stop = checkpoint(&site.cluster);
    let reason = site.unproven(start, stop, Some(&site.pg_wal()));
    assert!(matches!(&reason, Unproven::MinimalWal { .. }), "{reason:?}");
}

fn find(directory: &Path, name: &str) -> PathBuf {
    let found = support::archive::contents(directory).into_keys().find(|path| path.ends_with(name));
    directory.join(found.unwrap_or_else(|| panic!("no object {name}")))
}
