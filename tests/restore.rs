//! Restores of a real server: what plans say and refuse, what a restore writes, what the started server does.

mod support;

#[path = "restore/tablespaces.rs"]
mod tablespaces;

use std::fs;
use std::path::Path;

use support::archive::{contents, run};
use support::postgres::Cluster;
use support::postgres::installation::ServerUser;
use support::program::{walhold, walhold_command};
use support::site::{Site, count, show};

#[test]
fn a_plan_is_printed_and_nothing_is_written() {
    let site = Site::start(Cluster::builder(15).setting("timezone", "Europe/Berlin"));
    let moment = site.moment();
    site.cluster.archive_now();
    let target = site.target("planned");

    // A time without an offset is the server's own.
    let local = site
        .cluster
        .value(&format!("SELECT to_char('{}'::timestamptz, 'YYYY-MM-DD HH24:MI:SS.US')", moment.time));
    let utc = site.cluster.value(&format!(
        "SELECT to_char('{}'::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
        moment.time
    ));
    let run = site.restore(&target, &["--plan", "--target-time", &local]);
    run.expect_success();
    let line = |name: &str| {
        let found = run.stdout.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        found.unwrap_or_else(|| panic!("no line {name:?} in {}", run.stdout)).to_owned()
    };
    assert!(line("backup").starts_with(&format!("{} (full, PostgreSQL 15.", site.backup)), "{}", run.stdout);
    let offset = site.cluster.value(&format!("SELECT to_char('{}'::timestamptz, 'TZH:TZM')", moment.time));
    assert_eq!(
        line("target"),
        format!(
            "time {local}{offset} ({utc}+00), read in the server's time zone Europe/Berlin, then promote"
        )
    );
    assert_eq!(line("timeline"), "1");
    assert!(line("WAL").ends_with("segments without a gap"), "{}", run.stdout);
    assert!(line("stops").starts_with("before the commit of transaction "), "{}", run.stdout);
    assert!(
        line("last kept").starts_with(&format!("transaction {}, committed at ", moment.xid)),
        "{}",
        run.stdout
    );
    assert_eq!(line("directory"), format!("{} (to be made)", target.display()));
    assert!(!target.exists());

    let run = site.restore(
        &target,
        &["--plan", "--json", "--target-xid", &moment.xid, "--target-exclusive", "--clone"],
    );
    run.expect_success();
    let plan: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(plan["backup"]["id"], *site.backup);
    assert_eq!(plan["target"]["kind"], "xid");
    assert_eq!(plan["target"]["value"], *moment.xid);
    assert_eq!(plan["target"]["inclusive"], false);
    assert_eq!(plan["stop"]["reason"], "before-transaction");
    assert_eq!(plan["stop"]["first_left_out"]["xid"].to_string(), moment.xid);
    assert_eq!(plan["role"], "clone");
    assert_eq!(plan["timeline"]["recovery_target_timeline"], "1");
    let settings = plan["settings"].as_array().expect("settings");
    let setting = |name: &str| {
        settings.iter().find(|setting| setting["name"] == name).map(|setting| setting["value"].clone())
    };
    assert_eq!(setting("archive_mode").unwrap(), "off");
    let command = setting("restore_command").unwrap();
    let expected =
        format!("{} --config {}/walhold.toml wal-fetch %f %p", walhold().display(), site.directory.display());
    assert_eq!(command, *expected);
    assert!(!target.exists());

    // Clocks were set back at three on 2026-10-25.
    site.refuses(
        &["--target-time", "2026-10-25 02:30:00"],
        "--target-time: the local time \"2026-10-25 02:30:00\" happens twice in Europe/Berlin, because clocks were changed  \
         HINT: say which is meant: '2026-10-25 02:30:00+02:00' (00:30:00 UTC) or '2026-10-25 02:30:00+01:00' (01:30:00 UTC)",
    );
}

#[test]
fn the_started_server_reaches_every_kind_of_target() {
    let site = Site::start(Cluster::builder(15));
    let moment = site.moment();
    let (rows, before) = (moment.rows.clone(), (moment.rows.parse::<u64>().unwrap() - 1).to_string());
    site.cluster.value("SELECT pg_create_restore_point('milestone')");
    site.cluster.execute("INSERT INTO items SELECT i, 'last' FROM generate_series(1, 7) i");
    site.cluster.archive_now();
    let all = site.cluster.value("SELECT count(*) FROM items");

    site.started("time", &["--clone", "--target-time", &moment.time], |run, client| {
        assert_eq!(count(client), rows);
        assert!(
            run.stdout.contains("target reached: recovery stopping before commit of transaction "),
            "{run:?}"
        );
        assert!(run.stdout.contains("the server accepts connections on timeline 2; it logs to "), "{run:?}");
        assert_eq!(show(client, "SHOW archive_mode"), "off");
        assert_eq!(show(client, "SELECT pg_is_in_recovery()::text"), "false");
        // The next recovery of this cluster inherits nothing.
        let auto = fs::read_to_string(site.target("time").join("postgresql.auto.conf"))
            .expect("postgresql.auto.conf");
        assert!(!auto.contains("recovery_target") && !auto.contains("restore_command"), "{auto}");
        assert!(auto.contains("archive_mode = 'off'"), "{auto}");
    });
    site.started("lsn", &["--clone", "--target-lsn", &moment.lsn, "--target-exclusive"], |_, client| {
        assert_eq!(count(client), rows);
    });
    site.started("xid", &["--clone", "--target-xid", &moment.xid, "--target-exclusive"], |run, client| {
        assert_eq!(count(client), before);
        let expected = format!("recovery stopping before commit of transaction {}", moment.xid);
        assert!(run.stdout.contains(&expected), "{run:?}");
    });
    site.started(
        "name",
        &["--clone", "--target-name", "milestone", "--target-action", "pause"],
        |run, client| {
            assert_eq!(show(client, "SELECT pg_is_in_recovery()::text"), "true");
            assert!(run.stdout.contains("recovery stopping at restore point \"milestone\""), "{run:?}");
            assert!(run.stdout.contains("the server is paused at the target, read-only"), "{run:?}");
        },
    );
    site.started("immediate", &["--clone", "--target-immediate"], |run, client| {
        assert_eq!(count(client), "1000");
        assert!(run.stdout.contains("recovery stopping after reaching consistency"), "{run:?}");
    });
    site.started("end", &["--clone"], |run, client| {
        assert_eq!(count(client), all);
        assert!(run.stdout.contains("the end of the archive is reached"), "{run:?}");
    });
    site.started("standby", &["--standby"], |run, client| {
        assert_eq!(show(client, "SELECT pg_is_in_recovery()::text"), "true");
        assert_eq!(show(client, "SHOW recovery_target_timeline"), "latest");
        assert!(run.stdout.contains("the standby accepts read-only connections"), "{run:?}");
    });
    let target = site.target("shutdown");
    let run = site.restore(
        &target,
        &["--clone", "--start", "--target-time", &moment.time, "--target-action", "shutdown"],
    );
    run.expect_success();
    assert!(run.stdout.contains("the server has shut down at the target"), "{run:?}");
    assert!(!target.join("postmaster.pid").exists());
}

/// A server that walhold recovered and started is backed up with the log of that recovery.
#[test]
fn the_verdict_is_never_that_of_an_earlier_recovery() {
    let mut site = Site::start(Cluster::builder(15));
    let log = site.cluster.data_directory().join("walhold-recovery.log");
    let of_another = "2026-11-21 01:00:00.000 UTC [7] LOG:  restored log file \"000000010000000000000003\" from archive\n\
         2026-11-21 01:00:00.000 UTC [7] LOG:  redo done at 0/3000060 system usage: CPU\n\
         2026-11-21 01:00:00.000 UTC [7] LOG:  last completed transaction was at log time 2001-02-03 04:05:06.2+00\n\
         2026-11-21 01:00:00.000 UTC [7] LOG:  selected new timeline ID: 9\n\
         2026-11-21 01:00:00.000 UTC [7] LOG:  archive recovery complete\n\
         2026-11-21 01:00:00.000 UTC [7] LOG:  database system is ready to accept connections\n";
    fs::write(&log, of_another).expect("write a log");
    ServerUser::get().own(&log);
    site.backup = site.back_up();
    let moment = site.moment();
    site.cluster.archive_now();
    // It is not the server's: backups are without it.
    site.restore(&site.target("plain"), &["--clone", "--target-immediate"]).expect_success();
    assert!(log.exists() && !site.target("plain").join("walhold-recovery.log").exists());
    site.started("again", &["--clone", "--target-time", &moment.time], |run, client| {
        assert_eq!(count(client), moment.rows);
        assert!(run.stdout.contains("target reached: recovery stopping before commit"), "{run:?}");
        assert!(!run.stdout.contains("timeline 9") && !run.stdout.contains("2001-02-03"), "{run:?}");
        let log = fs::read_to_string(site.target("again").join("walhold-recovery.log")).expect("the log");
        assert!(!log.contains("timeline ID: 9"), "{log}");
    });
}

#[test]
fn another_icu_is_warned_of_and_an_unknown_one_is_said() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::start(Cluster::builder(15));
    let shown = site.walhold(&["backup-show", "latest", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).expect("JSON");
    let then = shown["server"]["icu_library"].as_str().expect("Debian's server uses ICU").to_owned();
    let tools = site.cluster.directory("tools");
    let target = site.target("planned").display().to_string();
    let plan = |ldd_says: Option<&str>| {
        let mut command = site.command(&["restore", "--plan", "--pgdata", &target]);
        if let Some(words) = ldd_says {
            let program = tools.join("ldd");
            fs::write(&program, format!("#!/bin/sh\necho '{words}'\n")).expect("write a program");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("make it a program");
            command.env("PATH", format!("{}:/usr/bin:/bin", tools.display()));
        }
        let run = run(&mut command);
        run.expect_success();
        run.stdout
    };
    let same = plan(None);
    assert!(!same.contains("ICU"), "{same}");
    let other = plan(Some("\tlibicui18n.so.99 => /opt/lib/libicui18n.so.99.1 (0x00007f0000000000)"));
    let warning = format!(
        "WARNING: the server that was backed up had ICU {then}, PostgreSQL on this machine has 99.1: where indexes use ICU collations and their order changed, they must be rebuilt (REINDEX)"
    );
    assert!(other.contains(&warning), "{other}");
    let unknown = plan(Some("\tnot a dynamic executable"));
    let note = format!(
        "note: ICU was not compared: the server that was backed up had {then}, that of PostgreSQL on this machine could not be seen"
    );
    assert!(unknown.contains(&note), "{unknown}");
}

#[test]
fn what_is_restored_is_what_was_backed_up_and_recovers_by_itself() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let site = Site::start(Cluster::builder(15));
    let moment = site.moment();
    site.cluster.execute("ALTER SYSTEM SET work_mem = '7MB'");
    site.cluster.archive_now();
    let target = site.target("complete");
    let run = site.restore(&target, &["--target-time", &moment.time, "--backup", &site.backup]);
    run.expect_success();
    assert!(run.stdout.contains("start the server on it (pg_ctl start -D "), "{run:?}");
    let metadata = fs::metadata(&target).expect("the target");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o700);
    assert_eq!(metadata.uid(), ServerUser::get().uid.as_raw());
    for name in ["backup_label", "recovery.signal", "global/pg_control", "postgresql.auto.conf"] {
        let metadata = fs::metadata(target.join(name)).expect(name);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        assert_eq!(metadata.uid(), ServerUser::get().uid.as_raw(), "{name}");
    }
    assert!(!target.join("walhold-restore-unfinished").exists());
    assert!(!target.join("standby.signal").exists());
    let auto = fs::read_to_string(target.join("postgresql.auto.conf")).expect("postgresql.auto.conf");
    assert!(auto.contains("recovery_target_time = '20"), "{auto}");
    assert!(!auto.contains("archive_mode"), "{auto}");
    // Nothing of the environment is needed, and recovery goes on without walhold watching.
    let mut copy = Cluster::from_data_directory(15, &target);
    copy.option("archive_command", "exit 1");
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.value("SELECT count(*) FROM items"), moment.rows);
    assert_eq!(copy.value("SHOW archive_mode"), "on", "a replacement archives on");
}

#[test]
fn root_restores_for_the_owner_of_the_directory() {
    use std::os::unix::fs::MetadataExt;
    assert!(nix::unistd::Uid::effective().is_root(), "this test looks at what root does");
    let site = Site::start(Cluster::builder(15));
    let as_root = |target: &Path, arguments: &[&str]| {
        let mut command = std::process::Command::new(walhold());
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .arg("--config")
            .arg(site.directory.join("walhold.toml"));
        run(command.arg("restore").arg("--pgdata").arg(target).args(arguments))
    };
    let target = site.target("by-root");
    as_root(&target, &["--target-immediate"]).expect_success();
    let owner = ServerUser::get().uid.as_raw();
    let mut directories = vec![target.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("read the target") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("metadata");
            assert_eq!(metadata.uid(), owner, "{}", path.display());
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    assert_eq!(fs::metadata(&target).expect("the target").uid(), owner);

    let of_root = site.cluster.directory("of-root");
    std::os::unix::fs::chown(&of_root, Some(0), Some(0)).expect("chown");
    let target = of_root.join("data");
    as_root(&target, &["--target-immediate", "--start"]).expect_failure(
        3,
        &format!(
            "the files in {0} would belong to root, and PostgreSQL does not run as root  HINT: make the directory for the server's user first: \
             install -d -o postgres -g postgres -m 700 {0}",
            target.display()
        ),
    );
    assert!(!target.exists());
    let planned = as_root(&target, &["--target-immediate", "--plan"]);
    planned.expect_success();
    assert!(planned.stdout.contains("WARNING: the files will belong to root"), "{planned:?}");
}

#[test]
fn segments_without_an_index_are_read_whole() {
    use walhold::codec::decode::{Expected, decode_object};
    use walhold::codec::encode::{ChunkSource, SinkError, encode_object};
    use walhold::codec::{Compression, KeyRing, Sealing};
    use walhold::format::ObjectKey;
    use walhold::format::envelope::{CHUNK_SIZE, ObjectFacts, ObjectKind};
    struct Memory(Vec<u8>, usize);
    impl ChunkSource for Memory {
        fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError> {
            let end = (self.1 + CHUNK_SIZE).min(self.0.len());
            chunk.clear();
            chunk.extend_from_slice(&self.0[self.1..end]);
            self.1 = end;
            Ok(end == self.0.len())
        }
    }
    struct Stored(Vec<u8>);
    impl walhold::codec::decode::ObjectSource for Stored {
        fn stored_length(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
            Ok(self.0[offset as usize..offset as usize + length].to_vec())
        }
    }
    let site = Site::start(Cluster::builder(15));
    let moment = site.moment();
    let name = site.cluster.archive_now();
    let path = site.stored(&name);
    let relative = path.strip_prefix(site.directory.join("repository")).expect("below the repository");
    let key = ObjectKey::from_listing(relative.display().to_string());
    let system = site.cluster.value("SELECT system_identifier FROM pg_control_system()");
    let facts = ObjectFacts {
        kind: ObjectKind::WalSegment,
        name,
        system_identifier: system.parse().expect("a system identifier"),
        segment_size: walhold::pg::WalSegmentSize::new(16 << 20),
    };
    let mut segment = Vec::new();
    let expected = Expected { facts: &facts, key: &key };
    decode_object(
        &Stored(fs::read(&path).expect("the object")),
        &expected,
        &KeyRing::default(),
        &mut |bytes| {
            segment.extend_from_slice(bytes);
            Ok(())
        },
    )
    .expect("decode the segment");
    let sealing = Sealing { compression: Compression::Zstd(1), key: None, workers: Some(1) };
    let mut stored: Vec<u8> = Vec::new();
    encode_object(Memory(segment, 0), &facts, &key, &sealing, |_| Vec::new(), &mut stored)
        .expect("encode it again");
    fs::write(&path, stored).expect("store it without an index");
    let run = site.restore(&site.target("planned"), &["--plan", "--target-xid", &moment.xid]);
    run.expect_success();
    assert!(run.stdout.contains(&format!("note: segment {} has no usable index (", facts.name)), "{run:?}");
    assert!(run.stdout.contains(&format!("after the commit of transaction {}", moment.xid)), "{run:?}");
}

#[test]
fn configuration_outside_the_data_directory_is_brought_along() {
    let mut site = Site::start(Cluster::builder(15));
    let data = site.cluster.data_directory().to_owned();
    let etc = site.cluster.directory("etc");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data.join(name), etc.join(name)).expect("move the configuration");
    }
    fs::create_dir(etc.join("conf.d")).expect("conf.d");
    fs::write(etc.join("conf.d/mine.conf"), "work_mem = '5MB'\n").expect("write a file");
    // Whatever sets nothing is not in the backup, and the server does not start without it.
    fs::create_dir(etc.join("empty.d")).expect("empty.d");
    for silent in ["silent.conf", "conf.d/silent"] {
        fs::write(etc.join(silent), "# nothing\n").expect("write a file");
    }
    let mut lines = fs::read_to_string(etc.join("postgresql.conf")).expect("postgresql.conf");
    lines += &format!(
        "\ndata_directory = '{}'\nhba_file = '{1}/pg_hba.conf'\nident_file = '{1}/pg_ident.conf'\ninclude_dir = 'conf.d'\ninclude_dir = 'empty.d'\ninclude 'conf.d/silent'\ninclude 'silent.conf'\n",
        data.display(),
        etc.display()
    );
    fs::write(etc.join("postgresql.conf"), lines).expect("write postgresql.conf");
    ServerUser::get().own(&etc);
    site.cluster.option("config_file", &etc.join("postgresql.conf").display().to_string());
    site.cluster.restart();
    // What an earlier restore left there, and no server reads.
    fs::write(data.join("postgresql.conf"), "work_mem = '1MB'\ninclude_dir = 'gone.d'\n").expect("write it");
    ServerUser::get().own(&data.join("postgresql.conf"));
    site.back_up();
    site.cluster.archive_now();
    let before = contents(&etc);
    site.started("copy", &["--clone"], |_, client| {
        let target = site.target("copy");
        assert_eq!(show(client, "SHOW data_directory"), target.display().to_string());
        assert_eq!(show(client, "SHOW hba_file"), target.join("pg_hba.conf").display().to_string());
        assert_eq!(show(client, "SHOW work_mem"), "5MB");
    });
    assert_eq!(contents(&etc), before);
}

/// A server that was recovered in place to an earlier moment, on timeline 2, while timeline 1 had gone on.
#[test]
fn lines_of_history_are_followed_explained_and_kept_apart() {
    let mut site = Site::start(Cluster::builder(15));
    let first = site.moment();
    let abandoned = site.moment();
    site.cluster.archive_now();
    site.cluster.stop(support::postgres::StopMode::Fast);
    let data = site.cluster.data_directory().to_owned();
    fs::rename(&data, data.with_extension("broken")).expect("move the old directory away");
    site.restore(&data, &["--target-xid", &first.xid]).expect_success();
    site.cluster.start();
    site.cluster.wait_promoted();
    site.cluster.execute("INSERT INTO items VALUES (-2, 'on timeline 2')");
    let on_two = site.moment();
    site.cluster.archive_now();
    assert_eq!(site.cluster.value("SELECT timeline_id FROM pg_control_checkpoint()"), "2");

    // The time lies on both lines; the newest is followed, and the other one is named.
    let plan = site.restore(&site.target("planned"), &["--plan", "--target-time", &abandoned.time]);
    plan.expect_success();
    let warning = "WARNING: timeline 1 went on after timeline 2 left it at 0/";
    assert!(plan.stdout.contains(warning), "{plan:?}");
    assert!(plan.stdout.contains("to follow timeline 1 use --timeline 1"), "{plan:?}");
    site.started("one", &["--clone", "--timeline", "1", "--target-time", &abandoned.time], |_, client| {
        assert_eq!(count(client), abandoned.rows);
    });
    site.started("two", &["--clone", "--target-time", &on_two.time], |run, client| {
        assert_eq!(count(client), on_two.rows);
        assert!(run.stdout.contains("on timeline 3"), "{run:?}");
    });

    // Before the switch: the old timeline is named, so that the new one's history does not run backwards.
    let early = site.restore(&site.target("planned"), &["--plan", "--target-immediate"]);
    early.expect_success();
    assert!(
        early.stdout.contains(
            "the target lies on timeline 1, before timeline 2 leaves it: recovery follows timeline 1"
        ),
        "{early:?}"
    );

    // Where only timeline 2's copy of that segment is left, it has to be followed; PostgreSQL then writes such a history.
    let fork = fs::read_to_string(data.join("pg_wal/00000002.history")).expect("the history");
    let fork = fork.split_whitespace().nth(1).expect("the switch point").to_owned();
    let segment = site.cluster.value(&format!("SELECT '00000001' || substr(pg_walfile_name('{fork}'), 9)"));
    fs::remove_file(site.stored(&segment)).expect("remove timeline 1's copy");
    let target = site.target("backwards");
    site.started(
        "backwards",
        &["--clone", "--target-xid", &first.xid, "--target-exclusive"],
        |run, client| {
            assert_eq!(count(client), "1000");
            assert!(run.stdout.contains("on timeline 3"), "{run:?}");
        },
    );
    let history = fs::read_to_string(target.join("pg_wal/00000003.history")).expect("the history");
    let points: Vec<walhold::pg::Lsn> =
        history.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
    assert!(matches!(points.as_slice(), [first, second] if second < first), "not backwards: {history}");
    let parsed = walhold::pg::TimelineHistory::parse(walhold::pg::TimelineId::new(3).expect("3"), &history);
    assert!(parsed.is_ok(), "{history}: {parsed:?}");

    // A timeline that was begun but not archived yet is not taken for recovered.
    fs::remove_file(site.stored(&format!("00000002{}", &segment[8..]))).expect("remove timeline 2's copy");
    let run = site.restore(&site.target("refused"), &[]);
    assert_eq!(run.status, Some(3), "{run:?}");
}

#[test]
fn an_interrupted_restore_cannot_be_started_and_is_recognised() {
    use std::os::unix::process::ExitStatusExt;
    let site = Site::start(Cluster::builder(15));
    let places = ["laid out", "mid-fetch", "fetched", "synced", "before pg_control"];
    for place in places {
        let target = site.target("killed");
        let mut command = walhold_command();
        command.env("WALHOLD_TEST_KILL_AT", format!("restore: {place}"));
        command.arg("--config").arg(site.directory.join("walhold.toml"));
        let killed = command.arg("restore").arg("--pgdata").arg(&target).output().expect("run walhold");
        assert_eq!(killed.status.signal(), Some(9), "{place}: {killed:?}");
        assert!(!target.join("global/pg_control").exists(), "{place}");
        let mut server = ServerUser::get().command(site.cluster.installation.program("postgres"));
        let started = server.arg("-D").arg(&target).output().expect("run postgres");
        assert!(!started.status.success(), "{place}: {started:?}");

        let again = site.restore(&target, &[]);
        assert_eq!(again.status, Some(3), "{place}: {again:?}");
        let expected =
            format!("{} holds an unfinished restore (backup {} of system ", target.display(), site.backup);
        assert!(again.error_line().starts_with(&expected), "{place}: {}", again.error_line());
        fs::remove_dir_all(&target).expect("empty the directory");
    }
    site.restore(&site.target("killed"), &[]).expect_success();
}
