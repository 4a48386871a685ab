//! Facts about PostgreSQL, checked against real servers of every major version.

mod support;

use support::postgres::installation::MAJORS;
use support::postgres::{Cluster, StopMode};
use walhold::pg::recovery::{Recovery, RecoveryTarget, TargetAction, recovery_settings, replace_settings};
use walhold::pg::{Lsn, PgTimestamp};

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

/// Puts these settings into postgresql.auto.conf and asks for recovery.
fn prepare_recovery(cluster: &Cluster, settings: &[(String, String)]) {
    let path = cluster.data_directory().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, replace_settings(&text, settings)).unwrap();
    std::fs::write(cluster.data_directory().join("recovery.signal"), "").unwrap();
}

#[test]
fn recovery_settings_win_over_any_leftover() {
    let command = "printf '%%s' \"it's\\\\here\" >/dev/null; false";
    let targets = [
        (RecoveryTarget::Time(PgTimestamp::new(0)), "2000-01-01 00:00:00+00"),
        (RecoveryTarget::Lsn(Lsn::new(u64::MAX)), "WAL location (LSN) \"FFFFFFFF/FFFFFFFF\""),
        (RecoveryTarget::Xid(4_000_000_000), "XID 4000000000"),
        (RecoveryTarget::Name("it's\\here".into()), "\"it's\\here\""),
        (RecoveryTarget::Immediate, "earliest consistent point"),
    ];
    for major in MAJORS {
        let mut cluster = Cluster::builder(major).wal_segment_mib(1).start();
        for (leftover, value) in
            [("recovery_target_time", "2001-01-01"), ("recovery_target_name", "leftover")]
        {
            cluster.stop(StopMode::Fast);
            cluster.configure("recovery_target_time", "");
            cluster.configure("recovery_target_name", "");
            cluster.configure(leftover, value);
            for (target, words) in &targets {
                let recovery = Recovery {
                    target: target.clone(),
                    action: TargetAction::Pause,
                    restore_command: command.to_owned(),
                    ..Recovery::default()
                };
                prepare_recovery(&cluster, &recovery_settings(&recovery));
                let logged = cluster.log().len();
                cluster.launch();
                cluster.wait_ended();
                let log = cluster.log().split_off(logged);
                let expected = format!("starting point-in-time recovery to {words}");
                assert!(log.contains(&expected), "PostgreSQL {major}, {target:?} over {leftover}: {log}");
                assert!(
                    log.contains("recovery ended before configured recovery target was reached"),
                    "{log}"
                );
                assert_eq!(cluster.configured("restore_command"), command);
            }
            // The order is what makes it work.
            let mut reversed =
                recovery_settings(&Recovery { target: RecoveryTarget::Xid(1000), ..Recovery::default() });
            reversed.reverse();
            prepare_recovery(&cluster, &reversed);
            let logged = cluster.log().len();
            cluster.launch();
            cluster.wait_ended();
            let log = cluster.log().split_off(logged);
            assert!(
                log.contains("multiple recovery targets specified"),
                "PostgreSQL {major} became lenient: {log}"
            );
            let to_the_end = Recovery { restore_command: "false".to_owned(), ..Recovery::default() };
            prepare_recovery(&cluster, &recovery_settings(&to_the_end));
            cluster.start();
            cluster.wait_promoted();
        }
    }
}
