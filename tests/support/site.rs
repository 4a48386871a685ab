//! A running cluster with a repository of its own and one backup, and restores of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::{Run, contents, run};
use super::postgres::installation::ServerUser;
use super::postgres::{Cluster, ClusterBuilder};
use super::program::{walhold, walhold_command};

/// A cluster that archives into a repository of its own, with one backup.
pub struct Site {
    pub cluster: Cluster,
    pub directory: PathBuf,
    pub backup: String,
}

/// A moment, by each means that names it.
pub struct Moment {
    pub time: String,
    pub lsn: String,
    pub xid: String,
    pub rows: String,
}

impl Site {
    /// A table `items` with 1,000 rows, then the backup.
    pub fn start(builder: ClusterBuilder) -> Site {
        let mut site = Site::archiving(builder);
        site.cluster.execute(
            "CREATE TABLE items AS SELECT i AS id, md5(i::text) AS body FROM generate_series(1, 1000) i",
        );
        site.backup = site.back_up();
        site
    }

    /// A server that archives, without a backup.
    pub fn archiving(builder: ClusterBuilder) -> Site {
        let cluster = builder.create();
        let directory = cluster.directory("walhold");
        let text = format!(
            "state_dir = \"{0}/state\"\n\n[repository]\nurl = \"file://{0}/repository\"\n",
            directory.display()
        );
        fs::write(directory.join("walhold.toml"), text).expect("write the configuration");
        ServerUser::get().own(&directory);
        let configuration = directory.join("walhold.toml").display().to_string();
        cluster.archive_with(walhold(), &[("WALHOLD_CONFIG", &configuration)]);
        let mut site = Site { cluster, directory, backup: String::new() };
        site.walhold(&["init"]).expect_success();
        site.cluster.start();
        site
    }

    /// `walhold` with this site's settings, as the server's user.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = walhold_command();
        command.envs(self.cluster.environment());
        command.arg("--config").arg(self.directory.join("walhold.toml")).args(arguments);
        command
    }

    pub fn walhold(&self, arguments: &[&str]) -> Run {
        run(&mut self.command(arguments))
    }

    pub fn back_up(&self) -> String {
        self.back_up_with(&[])
    }

    /// A backup with these options; its id.
    pub fn back_up_with(&self, options: &[&str]) -> String {
        let data = self.cluster.data_directory().display().to_string();
        self.walhold(&[&["backup-push", "--pgdata", &data], options].concat()).expect_success();
        let list = self.walhold(&["backup-list", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("JSON");
        list.as_array().and_then(|all| all.last()).expect("a backup")["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    }

    /// Inserts one row in a transaction of its own and says where that was; then inserts another.
    pub fn moment(&self) -> Moment {
        let cluster = &self.cluster;
        let xid = cluster.value("WITH new AS (INSERT INTO items VALUES (0, 'x') RETURNING 1) SELECT pg_current_xact_id() FROM new");
        let lsn = cluster.value("SELECT pg_current_wal_insert_lsn()");
        let rows = cluster.value("SELECT count(*) FROM items");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let time = cluster.value("SELECT clock_timestamp()");
        std::thread::sleep(std::time::Duration::from_millis(20));
        cluster.execute("INSERT INTO items VALUES (-1, 'after')");
        Moment { time, lsn, xid, rows }
    }

    /// A path that does not exist, in a directory of the server's user.
    pub fn target(&self, name: &str) -> PathBuf {
        self.cluster.directory(name).join("data")
    }

    pub fn restore(&self, target: &Path, arguments: &[&str]) -> Run {
        let directory = target.display().to_string();
        self.walhold(&[&["restore", "--pgdata", &directory], arguments].concat())
    }

    /// A clone of its own, recovered and promoted.
    pub fn recover(&self, name: &str, arguments: &[&str]) -> Cluster {
        let target = self.target(name);
        self.restore(&target, &[&["--clone"], arguments].concat()).expect_success();
        let mut copy = Cluster::from_data_directory(self.cluster.major(), &target);
        copy.start();
        copy.wait_promoted();
        copy
    }

    /// Asserts that this is refused with these words, and that nothing was written.
    #[track_caller]
    pub fn refuses(&self, arguments: &[&str], line: &str) {
        let target = self.target("refused");
        let run = self.restore(&target, arguments);
        run.expect_failure(3, line);
        assert!(!target.exists(), "{} was made", target.display());
    }

    /// Restores a clone, starts it by walhold itself, hands it to `check` as a running server, and stops it.
    pub fn started(&self, name: &str, arguments: &[&str], check: impl FnOnce(&Run, &mut postgres::Client)) {
        let target = self.target(name);
        let socket = self.cluster.directory(&format!("{name}-socket"));
        let options = [
            "--start-option=-c".to_owned(),
            format!("--start-option=unix_socket_directories={}", socket.display()),
            "--start-option=-c".to_owned(),
            "--start-option=listen_addresses=".to_owned(),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let run = self.restore(&target, &[&["--start"], options.as_slice(), arguments].concat());
        let stop = StopOnDrop { cluster: &self.cluster, data: target.clone() };
        run.expect_success();
        let parameters =
            format!("host={} port={} user=postgres dbname=postgres", socket.display(), self.cluster.port());
        let mut client =
            postgres::Client::connect(&parameters, postgres::NoTls).expect("connect to the restored server");
        check(&run, &mut client);
        drop(client);
        drop(stop);
    }

    pub fn repository(&self, below: &str) -> PathBuf {
        self.directory.join("repository/main").join(below)
    }

    /// The stored object whose path ends so.
    pub fn stored(&self, ending: &str) -> PathBuf {
        let root = self.directory.join("repository");
        let found: Vec<String> = contents(&root).into_keys().filter(|path| path.ends_with(ending)).collect();
        match found.as_slice() {
            [path] => root.join(path),
            _ => panic!("one object {ending} was expected, found {found:?}"),
        }
    }
}

/// Stops a server that walhold started.
struct StopOnDrop<'a> {
    cluster: &'a Cluster,
    data: PathBuf,
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        let mut command = ServerUser::get().command(self.cluster.installation.program("pg_ctl"));
        let _ = command.args(["stop", "-m", "immediate", "-w", "-D"]).arg(&self.data).output();
    }
}

pub fn count(client: &mut postgres::Client) -> String {
    client.query_one("SELECT count(*)::text FROM items", &[]).expect("count rows").get(0)
}

pub fn show(client: &mut postgres::Client, sql: &str) -> String {
    client.query_one(sql, &[]).expect("ask the restored server").get(0)
}
