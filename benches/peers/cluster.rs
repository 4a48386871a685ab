//! The scratch cluster that the tools compete on: PostgreSQL 15 of Debian, because its pgBackRest knows no newer one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian keeps PostgreSQL 15.
pub const BIN: &str = "/usr/lib/postgresql/15/bin";

/// pgbench's transactions, each with its own commit as pgbench's client does them, but inside the server: what a client and its round trips add takes
/// most of the time and writes no WAL.
const PGBENCH_INSIDE: &str = "CREATE PROCEDURE pgbench_inside(transactions int) LANGUAGE plpgsql AS $$
DECLARE
    branches int := (SELECT count(*) FROM pgbench_branches);
    account int; branch int; teller int; change int; balance int;
BEGIN
    FOR i IN 1..transactions LOOP
        account := 1 + floor(random() * branches * 100000);
        branch := 1 + floor(random() * branches);
        teller := 1 + floor(random() * branches * 10);
        change := floor(random() * 10001) - 5000;
        UPDATE pgbench_accounts SET abalance = abalance + change WHERE aid = account;
        SELECT abalance INTO balance FROM pgbench_accounts WHERE aid = account;
        UPDATE pgbench_tellers SET tbalance = tbalance + change WHERE tid = teller;
        UPDATE pgbench_branches SET bbalance = bbalance + change WHERE bid = branch;
        INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (teller, branch, account, change, CURRENT_TIMESTAMP);
        COMMIT;
    END LOOP;
END $$";

/// A running scratch cluster; stopped when dropped.
pub struct Cluster {
    /// PGDATA.
    pub data: PathBuf,
    /// The socket's directory.
    pub socket: PathBuf,
}

/// Runs a command as `postgres`; panics with its output if it fails.
pub fn as_postgres(directory: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new("setpriv")
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups", program])
        .args(arguments)
        .current_dir(directory)
        // Whoever runs the benchmark may have variables that a tool's client would read and its daemon would not.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output()
        .expect("start setpriv");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Makes a directory that belongs to `postgres`.
pub fn directory_of_postgres(path: &Path) {
    std::fs::create_dir_all(path).expect("create a directory");
    give_to_postgres(path);
}

/// Makes `postgres` the owner.
pub fn give_to_postgres(path: &Path) {
    let owner =
        nix::unistd::User::from_name("postgres").expect("look up postgres").expect("user postgres exists");
    nix::unistd::chown(path, Some(owner.uid), Some(owner.gid)).expect("chown to postgres");
}

impl Cluster {
    /// The libpq environment of a client.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("PGHOST", text(&self.socket)),
            ("PGPORT", "54999".to_owned()),
            ("PGUSER", "postgres".to_owned()),
            ("PGDATABASE", "postgres".to_owned()),
            ("PGDATA", text(&self.data)),
            ("HOME", text(&self.socket)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// initdb and start, with data checksums.
    pub fn create(root: &Path) -> Cluster {
        let cluster = Cluster { data: root.join("data"), socket: root.join("socket") };
        directory_of_postgres(&cluster.socket);
        let data = cluster.data.display().to_string();
        as_postgres(root, &format!("{BIN}/initdb"), &["-D", &data, "-A", "trust", "--data-checksums", "-N"]);
        let settings = format!(
            "port = 54999\nlisten_addresses = ''\nunix_socket_directories = '{}'\nfsync = on\nshared_buffers = 512MB\n\
             max_wal_size = 8GB\ncheckpoint_timeout = 1h\nsynchronous_commit = off\nwal_level = replica\narchive_mode = on\narchive_command = 'true'\n\
             autovacuum = off\nwal_keep_size = 4GB\n",
            cluster.socket.display()
        );
        let file = cluster.data.join("postgresql.conf");
        let text = std::fs::read_to_string(&file).expect("read postgresql.conf") + &settings;
        std::fs::write(&file, text).expect("write postgresql.conf");
        cluster.start();
        cluster
    }

    fn start(&self) {
        let (data, log) = (self.data.display().to_string(), self.socket.join("log").display().to_string());
        as_postgres(&self.socket, &format!("{BIN}/pg_ctl"), &["-D", &data, "-l", &log, "-w", "start"]);
    }

    /// Runs SQL and returns what psql prints, unaligned.
    pub fn sql(&self, sql: &str) -> String {
        let socket = self.socket.display().to_string();
        let base = [
            "-X",
            "-q",
            "-A",
            "-t",
            "-h",
            &socket,
            "-p",
            "54999",
            "-d",
            "postgres",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            sql,
        ];
        as_postgres(&self.socket, &format!("{BIN}/psql"), &base).trim().to_owned()
    }

    /// Fills the cluster with about `gigabytes` of rows as applications have them: JSON, text, numbers, two indexes.
    pub fn fill(&self, gigabytes: f64) {
        let rows = (gigabytes * 1_550_000.0) as u64;
        self.sql(
            "CREATE TABLE events (id bigint, tenant int, at timestamptz, kind text, amount numeric(12,2), body jsonb, note text)",
        );
        let step = 250_000;
        for first in (1..=rows).step_by(step) {
            let last = (first + step as u64 - 1).min(rows);
            self.sql(&format!(
                "INSERT INTO events SELECT i, (hashint8(i) & 1023), timestamptz '2026-01-01' + i * interval '1 second', \
                 (ARRAY['order','payment','refund','login','export'])[1 + (hashint8(i) & 3)], \
                 ((hashint8(i * 7) & 1048575)::numeric / 100), \
                 jsonb_build_object('user', 'user' || (hashint8(i * 3) & 65535), 'ip', '10.' || (i & 255) || '.' || (hashint8(i) & 255) || '.7', \
                   'session', md5(i::text), 'items', jsonb_build_array(i % 97, i % 89, hashint8(i * 11) & 4095), 'status', 'completed', 'currency', 'EUR'), \
                 (SELECT string_agg((ARRAY['quick','brown','delivery','to','customer','address','order','late','paid','invoice','note','returned', \
                   'warehouse','pending','item','blue','large','express'])[1 + (hashint8(i * 13 + w) & 15)], ' ') || ' ' || md5((i * 5)::text) \
                   FROM generate_series(1, 12 + (i & 15)::int) w) \
                 FROM generate_series({first}::bigint, {last}::bigint) i"
            ));
        }
        self.sql("CREATE INDEX ON events (id)");
        self.sql("CREATE INDEX ON events (tenant, at)");
        // Frozen, as rows are that have been there for a while: commits are asynchronous here, so rows would get their hint bits by the first
        // UPDATE, and it would change half of the table's pages instead of those of its rows.
        self.sql("VACUUM (FREEZE, ANALYZE) events");
        self.sql("CHECKPOINT");
    }

    /// Makes `count` segments of pgbench traffic and returns copies of them, named as they were.
    pub fn pgbench_segments(&self, count: usize, into: &Path) -> Vec<PathBuf> {
        let first = self.begin_pgbench();
        self.write_pgbench_segments(&first, count);
        self.copy_segments(&first, count, into)
    }

    /// Makes pgbench's tables; the name of the segment that its traffic begins with.
    pub fn begin_pgbench(&self) -> String {
        let socket = self.socket.display().to_string();
        let words = ["-h", socket.as_str(), "-p", "54999", "-i", "-q", "-s", "20", "postgres"];
        as_postgres(&self.socket, &format!("{BIN}/pgbench"), &words);
        self.sql(PGBENCH_INSIDE);
        self.sql("CHECKPOINT");
        self.current_segment()
    }

    /// Lets pgbench run until `count` segments from `first` on are complete in pg_wal.
    pub fn write_pgbench_segments(&self, first: &str, count: usize) {
        while self.segments_since(first) < count + 1 {
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| self.sql("CALL pgbench_inside(10000)"));
                }
            });
        }
    }

    /// The same of rows of random text.
    pub fn random_text_segments(&self, count: usize, into: &Path) -> Vec<PathBuf> {
        self.sql("CREATE TABLE random_text (t text)");
        self.sql("CHECKPOINT");
        let first = self.current_segment();
        while self.segments_since(&first) < count + 1 {
            self.sql(
                "INSERT INTO random_text SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 20000) i, \
                 generate_series(1, 12) w GROUP BY i",
            );
        }
        self.copy_segments(&first, count, into)
    }

    /// The segment that WAL is written to now, closed first.
    fn current_segment(&self) -> String {
        self.sql("SELECT pg_switch_wal()");
        self.sql("CHECKPOINT");
        self.sql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)")
    }

    fn segments_since(&self, first: &str) -> usize {
        self.complete_segments(first).len()
    }

    /// The complete segments in pg_wal from `first` on.
    pub fn complete_segments(&self, first: &str) -> Vec<PathBuf> {
        let current = self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        let mut names: Vec<PathBuf> = std::fs::read_dir(self.data.join("pg_wal"))
            .expect("list pg_wal")
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.len() == 24 && name.as_str() >= first && name < current
            })
            .collect();
        names.sort();
        names
    }

    fn copy_segments(&self, first: &str, count: usize, into: &Path) -> Vec<PathBuf> {
        directory_of_postgres(into);
        let segments = self.complete_segments(first).into_iter().take(count);
        segments
            .map(|path| {
                let copy = into.join(path.file_name().unwrap_or_default());
                std::fs::copy(&path, &copy).expect("copy a segment");
                let owner = nix::unistd::User::from_name("postgres").ok().flatten().expect("user postgres");
                nix::unistd::chown(&copy, Some(owner.uid), Some(owner.gid)).expect("chown");
                copy
            })
            .collect()
    }

    /// The server process that calls archive_command.
    pub fn archiver(&self) -> u32 {
        let pid = self.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'");
        pid.parse().expect("the archiver runs")
    }

    /// Sets a tool's archive_command and waits until the server uses it.
    pub fn archive_with(&self, command: &str) {
        self.set_archive_command(command);
        std::thread::sleep(std::time::Duration::from_millis(300));
    }

    /// Tells the server of a new archive_command.
    pub fn set_archive_command(&self, command: &str) {
        self.sql(&format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''")));
        self.sql("SELECT pg_reload_conf()");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.data.display().to_string();
        let _ = Command::new("setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            .arg(format!("{BIN}/pg_ctl"))
            .args(["-D", &data, "-m", "immediate", "stop"])
            .output();
    }
}
