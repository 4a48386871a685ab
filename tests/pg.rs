//! Facts about PostgreSQL, checked against real servers of every major version.

mod support;

use support::postgres::installation::MAJORS;
use support::postgres::installation::{ServerUser, debian_program, run};
use support::postgres::{Cluster, PASSWORD, SUPERUSER, StopMode};
use walhold::pg::backup_label::BackupLabel;
use walhold::pg::client::{ClientError, ConnectionSettings, Session, StartCheckpoint, Surroundings};
use walhold::pg::control::{ClusterState, ControlFile};
use walhold::pg::page_checksum::{PageState, check_page, page_lsn};
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

fn control_file(cluster: &Cluster) -> ControlFile {
    let bytes = std::fs::read(cluster.data_directory().join("global/pg_control")).unwrap();
    ControlFile::parse(&bytes).unwrap()
}

#[test]
fn pg_control_is_read_as_the_server_reads_it() {
    for major in MAJORS {
        let mut cluster = Cluster::builder(major)
            .wal_segment_mib(4)
            .checksums(true)
            .setting("wal_level", "logical")
            .start();
        cluster.execute("CREATE TABLE t AS SELECT generate_series(1, 100); CHECKPOINT");
        let control = control_file(&cluster);
        let mut rows = cluster.query(
            "SELECT system_identifier, pg_control_version, catalog_version_no, extract(epoch FROM pg_control_last_modified)::bigint,
                    checkpoint_lsn, redo_lsn, c.timeline_id, database_block_size, blocks_per_segment, bytes_per_wal_segment,
                    data_page_checksum_version, min_recovery_end_lsn, min_recovery_end_timeline
             FROM pg_control_system(), pg_control_checkpoint() c, pg_control_init(), pg_control_recovery()",
        );
        let expected = [
            control.system_identifier.to_string(),
            control.control_version.to_string(),
            control.catalog_version.to_string(),
            control.time.to_jiff().unwrap().as_second().to_string(),
            control.checkpoint.to_string(),
            control.checkpoint_redo.to_string(),
            control.checkpoint_timeline.get().to_string(),
            control.block_size.to_string(),
            control.relation_segment_blocks.to_string(),
            control.wal_segment_size.bytes().to_string(),
            control.data_checksum_version.to_string(),
            control.min_recovery_point.to_string(),
            control.min_recovery_timeline.map_or(0, |timeline| timeline.get()).to_string(),
        ];
        assert_eq!(rows.remove(0), expected, "PostgreSQL {major}");
        assert_eq!(control.postgresql_major, Some(major));
        assert_eq!(control.state, ClusterState::InProduction);
        assert_eq!(control.wal_level, 2);
        let limits = "max_connections max_worker_processes max_wal_senders max_prepared_transactions max_locks_per_transaction";
        let limits =
            limits.split(' ').map(|name| cluster.value(&format!("SHOW {name}")).parse::<u32>().unwrap());
        assert_eq!(limits.collect::<Vec<_>>(), control.standby_limits);

        let mut standby = Cluster::standby_of(&cluster);
        assert_eq!(control_file(&standby).state, ClusterState::InArchiveRecovery);
        standby.stop(StopMode::Fast);
        let stopped = control_file(&standby);
        assert_eq!(stopped.state, ClusterState::ShutDownInRecovery);
        assert!(
            stopped.min_recovery_point.is_valid()
                && stopped.min_recovery_timeline == Some(control.checkpoint_timeline)
        );
        assert_eq!(stopped.system_identifier, control.system_identifier);
        cluster.stop(StopMode::Fast);
        assert_eq!(control_file(&cluster).state, ClusterState::ShutDown);
    }
}

/// A session's surroundings: these variables, this home directory, nothing of the process.
fn surroundings(variables: &[(String, String)], home: &std::path::Path) -> Surroundings {
    Surroundings {
        variables: variables.iter().cloned().collect(),
        home: Some(home.to_owned()),
        user: Some("nobody".into()),
    }
}

fn connect(
    connection: &str,
    variables: &[(String, String)],
    home: &std::path::Path,
) -> Result<Session, ClientError> {
    let connection = (!connection.is_empty()).then(|| connection.to_owned());
    Session::connect_in(&ConnectionSettings { connection }, surroundings(variables, home))
}

fn refusal(result: Result<Session, ClientError>) -> (String, Option<String>) {
    use walhold::error::Explain;
    match result {
        Ok(session) => panic!("connected to {}", session.address()),
        Err(error) => (error.to_string(), error.hint()),
    }
}

#[test]
fn sessions_answer_the_questions_of_a_backup_on_every_major() {
    let home = tempfile::tempdir().unwrap();
    for major in MAJORS {
        let cluster = Cluster::builder(major).wal_segment_mib(1).start();
        let space = cluster.directory("space with \\backslash");
        let location = space.display().to_string();
        cluster.execute(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", location));
        cluster.execute("CREATE DATABASE other");
        cluster.execute_in("other", "CREATE TABLE there (i int PRIMARY KEY) TABLESPACE elsewhere");
        cluster.execute("ALTER ROLE postgres SET statement_timeout = '2s'");
        let mut session = connect("", &cluster.environment(), home.path()).unwrap();

        assert_eq!(session.server_major(), major);
        assert_eq!(session.show("statement_timeout").unwrap(), "0");
        assert_eq!(session.show("application_name").unwrap(), "walhold");
        assert!(!session.in_recovery().unwrap());
        assert_eq!(session.system_identifier().unwrap(), control_file(&cluster).system_identifier);
        let away = session.now().unwrap().get() - PgTimestamp::from_jiff(jiff::Timestamp::now()).get();
        assert!(away.abs() < 60_000_000, "the clocks differ by {away} microseconds");
        let settings = session.settings(&["max_connections", "wal_segment_size", "no_such_setting"]).unwrap();
        assert_eq!(settings.into_values().collect::<Vec<_>>(), ["20", "1048576"]);
        let error = session.show("no_such_setting").unwrap_err().to_string();
        assert_eq!(
            error,
            "read the setting no_such_setting: ERROR: unrecognized configuration parameter \"no_such_setting\""
        );

        let tablespaces = session.tablespaces().unwrap();
        assert_eq!(
            (tablespaces.len(), &tablespaces[0].name, &tablespaces[0].location),
            (1, &"elsewhere".to_owned(), &location)
        );
        let other =
            session.databases().unwrap().into_iter().find(|database| database.name == "other").unwrap();
        assert!(other.connectable);
        let relations = session.connect_to("other").unwrap().relations().unwrap();
        let table = relations.iter().find(|relation| relation.name == "there").unwrap();
        assert_eq!(
            (table.schema.as_str(), table.kind, table.tablespace),
            ("public", 'r', tablespaces[0].oid)
        );
        let file = cluster.query_in("other", "SELECT pg_relation_filepath('there')").remove(0).remove(0);
        assert!(file.ends_with(&format!("/{}/{}", other.oid, table.relfilenode)), "{file}");

        let start = session.start_backup("it's a test", StartCheckpoint::Fast).unwrap();
        cluster.execute("SELECT pg_logical_emit_message(true, 'a', 'b')");
        let stopped = session.stop_backup().unwrap();
        let label = BackupLabel::parse(&stopped.label).unwrap();
        assert_eq!(
            (label.start_lsn, label.label.as_str(), label.from_standby),
            (start, "it's a test", false)
        );
        assert!(stopped.lsn > start);
        let map = walhold::pg::backup_label::parse_tablespace_map(&stopped.tablespace_map).unwrap();
        assert_eq!(map, [(tablespaces[0].oid, location)]);
        assert!(session.switch_wal().unwrap() > start);
        assert!(session.stop_backup().unwrap_err().to_string().starts_with("stop the backup: ERROR: "));
    }
}

#[test]
fn connections_are_configured_as_libpq_does_it() {
    let home = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(15).tcp().authentication("scram-sha-256").start();
    let port = cluster.port().to_string();
    let tcp = |extra: &[(&str, &str)]| -> Vec<(String, String)> {
        let base = [("PGHOST", "localhost"), ("PGPORT", port.as_str()), ("PGUSER", SUPERUSER)];
        base.iter().chain(extra).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };

    connect("", &tcp(&[("PGPASSWORD", PASSWORD)]), home.path()).unwrap();
    let (message, hint) = refusal(connect("", &tcp(&[("PGPASSWORD", "hush")]), home.path()));
    let expected = format!(
        "connect to PostgreSQL at localhost:{port}: FATAL: password authentication failed for user \"postgres\""
    );
    assert_eq!(message, expected);
    assert!(hint.unwrap().contains("pgpass"));
    let (message, hint) = refusal(connect("", &tcp(&[]), home.path()));
    assert!(message.ends_with("password missing"), "{message}");
    assert!(hint.unwrap().contains("~/.pgpass"));

    // pgpass in the home directory, with escapes, below lines that do not fit.
    let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    let pgpass = home.path().join(".pgpass");
    std::fs::write(
        &pgpass,
        format!("# comment\nlocalhost:1:*:*:wrong\nlocalhost:{port}:*:postgres:{escaped}\n"),
    )
    .unwrap();
    std::fs::set_permissions(&pgpass, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    connect("", &tcp(&[]), home.path()).unwrap();
    std::fs::set_permissions(&pgpass, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    refusal(connect("", &tcp(&[]), home.path()));

    // A service file; a URI; several hosts of which the last one works.
    let services = home.path().join(".pg_service.conf");
    std::fs::write(
        &services,
        format!(
            "[here]\nhost=localhost\nport={port}\nuser=postgres\npassword={PASSWORD}\ndbname=template1\n"
        ),
    )
    .unwrap();
    let mut session = connect("service=here", &[], home.path()).unwrap();
    assert_eq!(session.show("application_name").unwrap(), "walhold");
    connect("", &[("PGSERVICE".to_owned(), "here".to_owned())], home.path()).unwrap();
    let database: String = session.client().query_one("SELECT current_database()::text", &[]).unwrap().get(0);
    assert_eq!(database, "template1");
    let mut session =
        connect(&format!("{}?application_name=named", cluster.url("postgres")), &[], home.path()).unwrap();
    assert_eq!(session.show("application_name").unwrap(), "named");
    let several = format!(
        "host=/nonexistent,127.0.0.1,{} port=1,1,{port} user=postgres",
        cluster.socket_directory().display()
    );
    let session = connect(&several, &[], home.path()).unwrap();
    assert_eq!(session.address(), format!("{}:{port}", cluster.socket_directory().display()));

    // What cannot be reached is named, and what to do.
    let (message, hint) = refusal(connect("host=/nonexistent user=u", &[], home.path()));
    assert_eq!(
        message,
        "connect to PostgreSQL at /nonexistent:5432: error connecting to server: No such file or directory (os error 2)"
    );
    assert!(hint.unwrap().starts_with("is the server running?"));
    let (message, _) = refusal(connect("target_session_attrs=standby", &cluster.environment(), home.path()));
    assert!(message.ends_with("the server is not a standby (target_session_attrs)"), "{message}");
    connect("target_session_attrs=prefer-standby", &cluster.environment(), home.path()).unwrap();
    connect("target_session_attrs=read-write", &cluster.environment(), home.path()).unwrap();
    let (message, _) = refusal(connect("sslmode=require", &tcp(&[("PGPASSWORD", PASSWORD)]), home.path()));
    assert!(message.ends_with("server does not support TLS"), "{message}");

    // A port that accepts and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address =
        format!("host=127.0.0.1 port={} user=u connect_timeout=1", silent.local_addr().unwrap().port());
    let (message, _) = refusal(connect(&address, &[], home.path()));
    assert!(message.ends_with("timed out after 2 s"), "{message}");
}

#[test]
fn tls_is_as_strict_as_sslmode_says() {
    let home = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::builder(15).tcp().create();
    let keys = cluster.directory("keys");
    let openssl = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        run(command.current_dir(&keys).args(arguments.split(' ')));
    };
    openssl("req -new -x509 -days 9 -nodes -newkey rsa:2048 -subj /CN=authority -keyout ca.key -out ca.crt");
    openssl(
        "req -new -x509 -days 9 -nodes -newkey rsa:2048 -subj /CN=other -keyout other.key -out other.crt",
    );
    openssl("req -new -nodes -newkey rsa:2048 -subj /CN=localhost -keyout server.key -out server.csr");
    std::fs::write(keys.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        "x509 -req -days 9 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names -out server.crt",
    );
    openssl("req -new -nodes -newkey rsa:2048 -subj /CN=postgres -keyout client.key -out client.csr");
    openssl(
        "x509 -req -days 9 -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names -out client.crt",
    );
    openssl(
        "req -new -x509 -days 9 -nodes -newkey rsa:2048 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout self.key -out self.crt",
    );
    for key in ["server.key", "self.key", "client.key"] {
        std::fs::set_permissions(keys.join(key), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
    }
    ServerUser::get().own(&keys);
    let file = |name: &str| keys.join(name).display().to_string();
    cluster.configure("ssl", "on");
    cluster.configure("ssl_cert_file", &file("server.crt"));
    cluster.configure("ssl_key_file", &file("server.key"));
    cluster.configure("ssl_ca_file", &file("ca.crt"));
    cluster.start();

    let port = cluster.port();
    let address = |host: &str| format!("host={host} port={port} user=postgres");
    let encrypted = |settings: &str| -> Result<bool, String> {
        let settings = format!("{} {settings}", address("localhost"));
        let mut session = connect(&settings, &[], home.path()).map_err(|error| error.to_string())?;
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        Ok(session.client().query_one(sql, &[]).unwrap().get(0))
    };
    let (ca, other) = (file("ca.crt"), file("other.crt"));
    assert_eq!(encrypted(""), Ok(true));
    assert_eq!(encrypted("sslmode=disable"), Ok(false));
    assert_eq!(encrypted("sslmode=allow"), Ok(false));
    assert_eq!(encrypted("sslmode=require"), Ok(true));
    assert_eq!(encrypted(&format!("sslmode=verify-full sslrootcert={ca}")), Ok(true));
    assert_eq!(
        encrypted(&format!("sslmode=verify-full ssl_min_protocol_version=TLSv1.3 sslrootcert={ca}")),
        Ok(true)
    );
    // Another authority: prefer falls back as libpq does, the rest refuse.
    assert_eq!(encrypted(&format!("sslmode=prefer sslrootcert={other}")), Ok(false));
    for mode in ["require", "verify-ca", "verify-full"] {
        let problem = encrypted(&format!("sslmode={mode} sslrootcert={other}")).unwrap_err();
        assert!(problem.contains("invalid peer certificate: UnknownIssuer"), "{mode}: {problem}");
    }
    let problem = encrypted("sslmode=verify-full").unwrap_err();
    assert!(problem.contains("need sslrootcert"), "{problem}");
    let problem = encrypted("sslmode=require sslrootcert=system").unwrap_err();
    assert_eq!(problem, "connection settings: sslrootcert=system needs sslmode=verify-full");
    // Another name: only verify-full looks at it.
    let by_address = |mode: &str| {
        connect(&format!("{} sslmode={mode} sslrootcert={ca}", address("127.0.0.1")), &[], home.path())
    };
    by_address("verify-ca").unwrap();
    let (problem, _) = refusal(by_address("verify-full"));
    assert!(problem.contains("not valid for name"), "{problem}");

    // Only encrypted connections with a client certificate are let in.
    let hba = cluster.data_directory().join("pg_hba.conf");
    std::fs::write(&hba, "local all all trust\nhostssl all all all cert\n").unwrap();
    cluster.execute("SELECT pg_reload_conf()");
    let with_certificate = format!("sslcert={} sslkey={}", file("client.crt"), file("client.key"));
    assert_eq!(encrypted(&format!("sslmode=allow {with_certificate}")), Ok(true));
    assert!(encrypted("sslmode=require").is_err());
    std::fs::set_permissions(keys.join("client.key"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    let problem = encrypted(&with_certificate).unwrap_err();
    assert!(problem.contains("others can read it"), "{problem}");

    // A self-signed server certificate is its own root.
    std::fs::write(&hba, "local all all trust\nhost all all all trust\n").unwrap();
    cluster.configure("ssl_cert_file", &file("self.crt"));
    cluster.configure("ssl_key_file", &file("self.key"));
    cluster.restart();
    assert_eq!(encrypted(&format!("sslmode=verify-full sslrootcert={}", file("self.crt"))), Ok(true));
}

/// Every segment file of every relation fork below `base` and `global`.
fn relation_files(cluster: &Cluster) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut directories =
        vec![cluster.data_directory().join("global"), cluster.data_directory().join("base")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => directories.push(entry.path()),
                false if name.starts_with(|c: char| c.is_ascii_digit()) => files.push(entry.path()),
                false => {}
            }
        }
    }
    files
}

#[test]
fn page_checksums_are_those_of_the_server() {
    for major in MAJORS {
        let mut cluster = Cluster::builder(major).wal_segment_mib(1).checksums(true).start();
        cluster.execute("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 50000) i; CREATE INDEX ON t (i)");
        cluster.execute("VACUUM t");
        let end = cluster.value("SELECT pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap();
        let victim = cluster.data_directory().join(cluster.value("SELECT pg_relation_filepath('t')"));
        cluster.stop(StopMode::Fast);
        let mut valid = 0;
        for file in relation_files(&cluster) {
            let bytes = std::fs::read(&file).unwrap();
            for (number, page) in bytes.chunks(8192).enumerate() {
                match check_page(page, u32::try_from(number).unwrap()) {
                    PageState::Valid => valid += 1,
                    PageState::New => continue,
                    PageState::Mismatch => panic!("PostgreSQL {major}: block {number} of {}", file.display()),
                }
                assert!(
                    page_lsn(page) <= end.plus(1 << 20),
                    "block {number} of {} is from the future",
                    file.display()
                );
            }
        }
        assert!(valid > 500, "only {valid} pages were looked at");
        if major == 15 {
            flipped_bits_show_as_pg_checksums_sees_them(&cluster, &victim);
        }
    }
}

fn flipped_bits_show_as_pg_checksums_sees_them(cluster: &Cluster, file: &std::path::Path) {
    let check = || {
        let mut command = ServerUser::get().command(debian_program("pg_checksums"));
        command.arg("--check").arg("-D").arg(cluster.data_directory()).output().unwrap().status.success()
    };
    assert!(check());
    let good = std::fs::read(file).unwrap();
    for (block, bit) in [(0, 0), (1, 8 * 8), (2, 8 * 8191 + 7), (3, 8 * 100)] {
        let mut bad = good.clone();
        bad[block * 8192 + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            check_page(&bad[block * 8192..][..8192], u32::try_from(block).unwrap()),
            PageState::Mismatch
        );
        std::fs::write(file, &bad).unwrap();
        assert!(!check(), "pg_checksums misses bit {bit} of block {block}");
    }
    std::fs::write(file, &good).unwrap();
    assert!(check());
}
