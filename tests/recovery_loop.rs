//! The whole loop on every supported PostgreSQL: archive, back up, change, recover to each kind of target, compare rows.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, ClusterBuilder, StopMode};
use support::program::{describe, walhold, walhold_command};

/// A cluster that archives into a repository of its own.
struct Loop {
    cluster: Cluster,
    configuration: PathBuf,
    tablespace: PathBuf,
}

#[derive(Clone, Copy, PartialEq)]
enum Encryption {
    On,
    Off,
}

/// A moment that can be recovered to, by each means that names it, and what the rows were.
struct Moment {
    time: String,
    lsn: String,
    xid: String,
    name: &'static str,
    digest: String,
}

impl Loop {
    fn start(builder: ClusterBuilder, encryption: Encryption) -> Loop {
        let cluster = builder.create();
        let directory = cluster.directory("walhold");
        let tablespace = cluster.directory("tablespace");
        let configuration = directory.join("walhold.toml");
        let mut text = format!(
            "state_dir = \"{0}/state\"\n\n[repository]\nurl = \"file://{0}/repository\"\n",
            directory.display()
        );
        if encryption == Encryption::On {
            let key = directory.join("key");
            let made = walhold_command().arg("keygen").output().expect("run keygen");
            assert!(made.status.success(), "{}", describe(&made));
            fs::write(&key, made.stdout).expect("write the key");
            text += &format!("\n[encryption]\nkey_file = \"{}\"\n", key.display());
        }
        fs::write(&configuration, text).expect("write the configuration");
        ServerUser::get().own(&directory);
        restrict(&directory.join("key"));
        let this = |cluster| Loop { cluster, configuration, tablespace };
        let configuration_text = directory.join("walhold.toml").display().to_string();
        cluster.archive_with(walhold(), &[("WALHOLD_CONFIG", &configuration_text)]);
        let mut this = this(cluster);
        this.walhold(&["init"]);
        this.cluster.start();
        this
    }

    fn try_walhold(&self, arguments: &[&str]) -> Output {
        let mut command = walhold_command();
        command.envs(self.cluster.environment()).arg("--config").arg(&self.configuration).args(arguments);
        command.output().expect("run walhold")
    }

    fn walhold(&self, arguments: &[&str]) -> String {
        let output = self.try_walhold(arguments);
        assert!(output.status.success(), "walhold {arguments:?}: {}", describe(&output));
        String::from_utf8(output.stdout).expect("UTF-8 output")
    }

    fn back_up(&self) -> String {
        let data = self.cluster.data_directory().display().to_string();
        self.walhold(&["backup-push", "--pgdata", &data]);
        let list: serde_json::Value =
            serde_json::from_str(&self.walhold(&["backup-list", "--json"])).expect("JSON");
        let backups = list.as_array().expect("an array of backups");
        backups.last().expect("a backup is listed")["id"].as_str().expect("an id").to_owned()
    }

    /// Changes rows of many kinds, then notes where that was.
    fn moment(&self, name: &'static str) -> Moment {
        let cluster = &self.cluster;
        cluster.execute(&format!(
            "INSERT INTO items SELECT i, md5(i::text || '{name}') FROM generate_series(1, 3000) i;
             UPDATE items SET body = body || '{name}' WHERE id % 7 = 0;
             DELETE FROM items WHERE id % 11 = 0;
             INSERT INTO spaced SELECT i, repeat('{name}', 50) FROM generate_series(1, 500) i;
             SELECT lo_from_bytea(0, convert_to(repeat('{name}', 3000), 'UTF8'));
             CREATE TABLE of_{name} AS SELECT nextval('numbers') AS number, '{name}' AS word FROM generate_series(1, 10);"
        ));
        // One transaction whose end every target can name: nothing else runs.
        let xid = cluster.value("WITH last AS (INSERT INTO items VALUES (0, 'last of moment') RETURNING 1) SELECT pg_current_xact_id() FROM last");
        let digest = cluster.row_digest("postgres");
        let lsn = cluster.value("SELECT pg_current_wal_insert_lsn()");
        cluster.value(&format!("SELECT pg_create_restore_point('{name}')"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        let time = cluster.value("SELECT clock_timestamp()");
        std::thread::sleep(std::time::Duration::from_millis(20));
        cluster.execute(&format!("INSERT INTO items VALUES (-1, 'after {name}')"));
        Moment { time, lsn, xid, name, digest }
    }

    /// Restores beside the living original, starts the copy and returns it.
    fn recover(&self, target: &[&str], directory: &str) -> Cluster {
        let root = self.cluster.directory(directory);
        let (data, space) = (root.join("data"), root.join("space"));
        let remap = format!("{}={}", self.tablespace.display(), space.display());
        let data_text = data.display().to_string();
        let mut arguments = vec!["restore", "--clone", "--pgdata", &data_text];
        if self.cluster.value("SELECT count(*) FROM pg_tablespace WHERE spcname = 'space'") == "1" {
            arguments.extend(["--tablespace", &remap]);
        }
        self.walhold(&[&arguments, target].concat());
        let mut copy = Cluster::from_data_directory(self.cluster.major(), &data);
        copy.start();
        copy.wait_promoted();
        copy
    }

    fn check(&self, target: &[&str], expected: &str) {
        let copy = self.recover(
            target,
            &format!("copy-{}", target.join("").replace(|c: char| !c.is_alphanumeric(), "")),
        );
        assert_eq!(copy.row_digest("postgres"), expected, "rows after recovery to {target:?}");
        assert_eq!(copy.value("SHOW archive_mode"), "off", "a clone must not archive");
    }
}

fn restrict(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if key.exists() {
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("restrict the key");
    }
}

/// Archive → full backup → changes → recovery by time, LSN, xid, name and immediate → the same rows.
fn whole_loop(builder: ClusterBuilder, encryption: Encryption) {
    let this = Loop::start(builder, encryption);
    let cluster = &this.cluster;
    cluster.execute(
        "CREATE TABLE items (id int, body text); CREATE INDEX ON items (id); CREATE SEQUENCE numbers",
    );
    cluster.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", this.tablespace.display()));
    cluster.execute("CREATE TABLE spaced (id int, body text) TABLESPACE space");
    cluster.execute("INSERT INTO items SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
    let at_backup = cluster.row_digest("postgres");
    this.back_up();
    let first = this.moment("first");
    let second = this.moment("second");
    cluster.execute("DROP TABLE spaced; TRUNCATE items");
    cluster.archive_now();

    this.check(&["--target-immediate"], &at_backup);
    this.check(&["--target-time", &first.time], &first.digest);
    this.check(&["--target-lsn", &first.lsn], &first.digest);
    this.check(&["--target-xid", &first.xid], &first.digest);
    this.check(&["--target-name", first.name], &first.digest);
    this.check(&["--target-time", &second.time], &second.digest);
    let end = this.recover(&[], "copy-end");
    assert_eq!(end.row_digest("postgres"), cluster.row_digest("postgres"), "rows at the end of the archive");
    assert_eq!(end.value("SELECT to_regclass('spaced') IS NULL"), "t", "the dropped table stays dropped");
    if this.cluster.major() == 15 {
        end.amcheck();
    }
}

#[test]
fn on_postgresql_14() {
    whole_loop(Cluster::builder(14).checksums(true), Encryption::Off);
}

#[test]
fn on_postgresql_15() {
    whole_loop(Cluster::builder(15), Encryption::On);
}

#[test]
fn on_postgresql_16_with_1_mib_segments() {
    whole_loop(Cluster::builder(16).wal_segment_mib(1).checksums(true), Encryption::On);
}

#[test]
fn on_postgresql_17_with_64_mib_segments() {
    whole_loop(Cluster::builder(17).wal_segment_mib(64).checksums(true), Encryption::Off);
}

#[test]
fn on_postgresql_18() {
    whole_loop(Cluster::builder(18), Encryption::On);
}

/// Recover in place, promote, archive on the new timeline, back up there; then recover onto each line.
fn timelines(major: u32) {
    let mut this = Loop::start(Cluster::builder(major), Encryption::Off);
    this.cluster.execute("CREATE TABLE items (id int, body text); CREATE TABLE spaced (id int, body text); CREATE SEQUENCE numbers");
    this.back_up();
    let fork = this.moment("fork");
    let abandoned = this.moment("abandoned");
    this.cluster.archive_now();

    // In place: the broken directory makes room for the restored one, under the same path.
    this.cluster.stop(StopMode::Fast);
    let data = this.cluster.data_directory().to_owned();
    fs::rename(&data, data.with_extension("broken")).expect("move the broken directory away");
    this.walhold(&["restore", "--pgdata", &data.display().to_string(), "--target-time", &fork.time]);
    this.cluster.start();
    this.cluster.wait_promoted();
    assert_eq!(this.cluster.row_digest("postgres"), fork.digest);
    assert_eq!(this.cluster.value("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    let kept = this.moment("kept");
    this.cluster.archive_now();
    let on_new_line = this.back_up();
    assert!(on_new_line.contains("-00000002-"), "{on_new_line} is on timeline 2");
    let last = this.moment("last");
    this.cluster.archive_now();

    this.check(&["--timeline", "1", "--target-time", &abandoned.time], &abandoned.digest);
    this.check(&["--timeline", "2", "--target-time", &kept.time], &kept.digest);
    this.check(&["--target-time", &last.time], &last.digest);
    let unreachable = this.try_walhold(&[
        "restore",
        "--clone",
        "--pgdata",
        &this.cluster.directory("unreachable").join("data").display().to_string(),
        "--backup",
        &on_new_line,
        "--timeline",
        "1",
        "--target-time",
        &abandoned.time,
    ]);
    assert_eq!(unreachable.status.code(), Some(3), "{}", describe(&unreachable));
    let told = String::from_utf8_lossy(&unreachable.stderr);
    let expected = format!(
        "walhold: ERROR: backup {on_new_line} cannot be used: it was taken on timeline 2, from which timeline 1 does not descend  \
         HINT: choose another line with --timeline (walhold wal-show) or another backup with --backup (walhold backup-list)\n"
    );
    assert_eq!(told, expected);
    assert!(!this.cluster.directory("unreachable").join("data").exists());
}

#[test]
fn timelines_on_postgresql_15() {
    timelines(15);
}

#[test]
fn timelines_on_postgresql_18() {
    timelines(18);
}

/// PostgreSQL looks for a transaction that was prepared in the segment in which a new timeline begins under that segment's name on the
/// older timeline; the archive has it under the newer one's. Only a hot standby looks that early: what docs/recovery.md says.
#[test]
fn a_transaction_prepared_in_the_segment_of_a_branch_is_recovered_without_hot_standby() {
    let builder = Cluster::builder(15).setting("max_prepared_transactions", "5");
    let mut this = Loop::start(builder, Encryption::Off);
    this.cluster.execute("CREATE TABLE items (id int, body text)");
    this.back_up();
    this.cluster.execute("BEGIN; INSERT INTO items VALUES (1, 'prepared'); PREPARE TRANSACTION 'kept'");
    this.cluster.execute("INSERT INTO items VALUES (2, 'committed')");
    let target = this.cluster.value("SELECT pg_current_wal_insert_lsn()");
    this.cluster.archive_now();
    this.cluster.stop(StopMode::Fast);
    let data = this.cluster.data_directory().to_owned();
    fs::remove_dir_all(&data).expect("lose the cluster");
    this.walhold(&["restore", "--pgdata", &data.display().to_string(), "--target-lsn", &target]);
    this.cluster.start();
    this.cluster.wait_promoted();
    this.cluster.execute("INSERT INTO items VALUES (3, 'on the new line')");
    this.cluster.archive_now();

    let copy = this.cluster.directory("copy").join("data");
    this.walhold(&["restore", "--clone", "--pgdata", &copy.display().to_string()]);
    let mut copy = Cluster::from_data_directory(15, &copy);
    copy.option("hot_standby", "off");
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.row_digest("postgres"), this.cluster.row_digest("postgres"));
    copy.execute("COMMIT PREPARED 'kept'");
    assert_eq!(copy.value("SELECT count(*) FROM items"), "3");
}
