//! Facts about PostgreSQL, checked against real servers of every major version.

mod support;

use support::postgres::installation::MAJORS;
use support::postgres::{Cluster, StopMode};

#[test]
fn servers_of_every_major_start_stop_and_hold_data() {
    for major in MAJORS {
        let mut cluster = Cluster::builder(major).wal_segment_mib(1).checksums(true).start();
        assert!(cluster.value("SHOW server_version_num").starts_with(&major.to_string()));
        cluster.execute(
            "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i; CREATE SEQUENCE s",
        );
        cluster.execute("SELECT lo_from_bytea(0, 'large')");
        let before = cluster.digest();
        cluster.kill9();
        cluster.start();
        assert_eq!(cluster.digest(), before);
        cluster.execute("UPDATE t SET i = 0 WHERE i = 500");
        assert_ne!(cluster.digest(), before);
        cluster.amcheck();
        cluster.stop(StopMode::Fast);
    }
}

#[test]
fn standbys_of_every_major_stream_and_promote() {
    for major in MAJORS {
        let primary = Cluster::builder(major).wal_segment_mib(1).start();
        primary.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) i");
        let standby = Cluster::standby_of(&primary);
        primary.execute("INSERT INTO t VALUES (1001)");
        primary.wait_replayed_by(&standby);
        assert_eq!(standby.digest(), primary.digest());
        standby.promote();
        standby.execute("INSERT INTO t VALUES (1002)");
        assert_ne!(standby.digest(), primary.digest());
    }
}

#[test]
fn archiving_is_set_up_and_waited_for() {
    let mut cluster = Cluster::builder(15).wal_segment_mib(1).create();
    let archive = cluster.directory("archive's 100%");
    cluster.configure("archive_mode", "on");
    let quoted = archive.display().to_string().replace('\'', "'\\''").replace('%', "%%");
    cluster.configure("archive_command", &format!("cp %p '{quoted}'/%f"));
    cluster.start();
    let segment = cluster.archive_now();
    assert!(archive.join(&segment).exists(), "{segment} is not in the archive");
}
