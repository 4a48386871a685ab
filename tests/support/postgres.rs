//! Real PostgreSQL servers for tests.
//!
//! A [`Cluster`] is a data directory with its own socket directory and log below a temporary directory. Dropping it stops the
//! server and removes everything. Servers are children of the test process, run as [`ServerUser`], and see none of its environment.

mod copy;
pub mod digest;
pub mod installation;
pub mod process;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "not every test copies")]
pub use self::copy::copy_tree;
use self::installation::{Installation, ServerUser, create_open_directory, debian_program, run};
use self::process::Server;
pub use self::process::StopMode;

/// Longer than anything that works takes, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The superuser of every cluster.
pub const SUPERUSER: &str = "postgres";

/// What a new cluster is made with.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    major: u32,
    initdb: Vec<String>,
    settings: Vec<(String, String)>,
    tcp: bool,
    authentication: &'static str,
}

impl ClusterBuilder {
    /// `--wal-segsize`, in MiB.
    pub fn wal_segment_mib(self, mib: u32) -> Self {
        self.initdb(&format!("--wal-segsize={mib}"))
    }

    /// `--data-checksums`; without a call, PostgreSQL's default (on from 18).
    pub fn checksums(self, on: bool) -> Self {
        match on {
            true => self.initdb("--data-checksums"),
            false if self.major >= 18 => self.initdb("--no-data-checksums"),
            false => self,
        }
    }

    /// Any other option of initdb.
    pub fn initdb(mut self, option: &str) -> Self {
        self.initdb.push(option.to_owned());
        self
    }

    /// A line of postgresql.conf.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// fsync on: slower, and only needed where durability itself is looked at.
    pub fn durable(self) -> Self {
        self.setting("fsync", "on")
    }

    /// Listens on a free port of 127.0.0.1 as well.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// How TCP connections authenticate (`scram-sha-256` …); the socket always trusts.
    pub fn authentication(mut self, method: &'static str) -> Self {
        self.authentication = method;
        self
    }

    /// initdb, without a start.
    pub fn create(self) -> Cluster {
        let cluster = Cluster::prepare(self.major, None, self.tcp);
        let mut initdb = ServerUser::get().command(cluster.installation.program("initdb"));
        initdb.current_dir(&cluster.root).arg("-D").arg(&cluster.data).args([
            "-U",
            SUPERUSER,
            "--no-sync",
            "--encoding=UTF8",
        ]);
        if !self.initdb.iter().any(|o| o.starts_with("--locale")) {
            initdb.arg("--locale=C");
        }
        initdb
            .arg("--auth-local=trust")
            .arg(format!("--auth-host={}", self.authentication))
            .args(&self.initdb);
        if self.authentication != "trust" {
            let file = cluster.root.join("password");
            fs::write(&file, PASSWORD).expect("write the password file");
            ServerUser::get().own(&file);
            initdb.arg("--pwfile").arg(&file);
        }
        run(&mut initdb);
        for (name, value) in FAST_SETTINGS {
            cluster.configure(name, value);
        }
        for (name, value) in &self.settings {
            cluster.configure(name, value);
        }
        cluster
    }

    /// initdb and start.
    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        cluster.start();
        cluster
    }
}

/// The superuser's password where connections need one.
pub const PASSWORD: &str = "correct horse: battery\\staple";

const FAST_SETTINGS: [(&str, &str); 9] = [
    ("fsync", "off"),
    ("shared_buffers", "32MB"),
    ("max_connections", "20"),
    ("jit", "off"),
    ("wal_level", "replica"),
    ("timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %q%a "),
    ("log_checkpoints", "on"),
    // In the data directory, which goes with the test: what a killed server leaves in /dev/shm stays.
    ("dynamic_shared_memory_type", "mmap"),
];

/// A data directory and, while started, its server.
#[derive(Debug)]
pub struct Cluster {
    pub installation: Installation,
    /// Removed when dropped; holds `data`, `socket`, `server.log` and whatever a test puts there.
    root: PathBuf,
    data: PathBuf,
    /// Options of `postgres -c`, which no configuration file overrides.
    options: Vec<(String, String)>,
    /// Of the server's environment.
    variables: Vec<(String, String)>,
    port: u16,
    tcp: bool,
    server: Option<Server>,
    _temporary: tempfile::TempDir,
}

impl Cluster {
    pub fn builder(major: u32) -> ClusterBuilder {
        ClusterBuilder {
            major,
            initdb: Vec::new(),
            settings: Vec::new(),
            tcp: false,
            authentication: "trust",
        }
    }

    /// A restored or copied data directory, not started. It is given to the server's user and stays when the cluster is dropped.
    pub fn from_data_directory(major: u32, data: &Path) -> Cluster {
        let cluster = Cluster::prepare(major, Some(data), false);
        ServerUser::get().own(data);
        cluster
    }

    fn prepare(major: u32, data: Option<&Path>, tcp: bool) -> Cluster {
        let installation = Installation::of(major);
        let temporary = temporary_directory();
        let root = temporary.path().to_owned();
        let socket = root.join("socket");
        fs::create_dir(&socket).expect("create the socket directory");
        ServerUser::get().own(&root);
        let socket_name = socket.join(".s.PGSQL.65535");
        assert!(
            socket_name.as_os_str().len() < 107,
            "TMPDIR is too long for a socket: {}",
            socket_name.display()
        );
        let port = if tcp { free_port() } else { 5432 };
        let data = data.map(Path::to_owned).unwrap_or_else(|| root.join("data"));
        Cluster {
            installation,
            root,
            data,
            options: Vec::new(),
            variables: Vec::new(),
            port,
            tcp,
            server: None,
            _temporary: temporary,
        }
    }

    /// A running standby of a running cluster without tablespaces, streaming from it.
    pub fn standby_of(primary: &Cluster) -> Cluster {
        let mut standby = Cluster::prepare(primary.installation.major, None, false);
        primary.copy_while_running(&standby.data, || {});
        standby.configure(
            "primary_conninfo",
            &format!("host={} port={} user={SUPERUSER}", primary.socket_directory().display(), primary.port),
        );
        standby.configure("archive_mode", "off");
        fs::write(standby.data.join("standby.signal"), "").expect("write standby.signal");
        ServerUser::get().own(&standby.data);
        standby.start();
        standby
    }

    pub fn major(&self) -> u32 {
        self.installation.major
    }

    pub fn data_directory(&self) -> &Path {
        &self.data
    }

    /// For whatever belongs to this cluster and must go with it: owned by the server's user, entered by everyone.
    pub fn directory(&self, name: &str) -> PathBuf {
        let directory = self.root.join(name);
        create_open_directory(&directory);
        ServerUser::get().own(&directory);
        directory
    }

    pub fn socket_directory(&self) -> PathBuf {
        self.root.join("socket")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A libpq connection URI over the socket.
    pub fn url(&self, database: &str) -> String {
        let socket = self.socket_directory().display().to_string().replace('/', "%2F");
        format!("postgresql://{SUPERUSER}@{socket}:{}/{database}", self.port)
    }

    /// What libpq's programs need to reach this server.
    pub fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("PGHOST".into(), self.socket_directory().display().to_string()),
            ("PGPORT".into(), self.port.to_string()),
            ("PGUSER".into(), SUPERUSER.into()),
            ("PGDATABASE".into(), "postgres".into()),
            ("PGDATA".into(), self.data.display().to_string()),
        ]
    }

    /// One of Debian's clients (`psql`, `pgbench`, `pg_amcheck` …) set up to reach this server.
    pub fn client_program(&self, name: &str) -> Command {
        let mut command = ServerUser::get().command(debian_program(name));
        command.current_dir(&self.root).envs(self.environment());
        command
    }

    // --- settings ---------------------------------------------------------------------------------------------------

    /// Appends to postgresql.conf; the last line wins.
    pub fn configure(&self, name: &str, value: &str) {
        let path = self.data.join("postgresql.conf");
        let file = File::options().append(true).open(&path);
        let mut file = file.unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
        let value = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n");
        writeln!(file, "{name} = '{value}'").expect("append to postgresql.conf");
    }

    /// A setting as the configuration files have it, without a running server (`postgres -C`).
    pub fn configured(&self, name: &str) -> String {
        let mut command = ServerUser::get().command(self.installation.program("postgres"));
        run(command.arg("-D").arg(&self.data).args(["-C", name])).trim_end_matches('\n').to_owned()
    }

    /// A setting on the server's command line, from the next start on.
    pub fn option(&mut self, name: &str, value: &str) {
        self.options.push((name.to_owned(), value.to_owned()));
    }

    /// A variable of the server's environment, from the next start on.
    pub fn variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Archives with `program wal-push` under these variables, from the next start on.
    pub fn archive_with(&self, program: &Path, environment: &[(&str, &str)]) {
        self.configure("archive_mode", "on");
        self.configure("archive_command", &command_line(program, environment, "wal-push %p"));
        self.configure("archive_timeout", "60s");
    }

    /// Recovers with `program wal-fetch` under these variables, from the next start on.
    pub fn restore_with(&self, program: &Path, environment: &[(&str, &str)]) {
        self.configure("restore_command", &command_line(program, environment, "wal-fetch %f %p"));
    }

    // --- the server -------------------------------------------------------------------------------------------------

    /// Starts and waits until connections are accepted.
    pub fn start(&mut self) {
        if let Err(problem) = self.try_start() {
            panic!("start PostgreSQL {}: {problem}\n{}", self.major(), self.log_tail());
        }
    }

    /// Starts and waits until connections are accepted or the server has ended.
    pub fn try_start(&mut self) -> Result<(), String> {
        self.launch();
        let ready = self.wait_ready();
        if !self.is_running() {
            self.server = None;
        }
        ready
    }

    /// Starts without waiting.
    pub fn launch(&mut self) {
        assert!(self.server.is_none(), "the server is running already");
        let log =
            File::options().create(true).append(true).open(self.log_path()).expect("open the server's log");
        let mut command = ServerUser::get().command(self.installation.program("postgres"));
        command.arg("-D").arg(&self.data).current_dir(&self.root);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let fixed = [
            ("unix_socket_directories".to_owned(), self.socket_directory().display().to_string()),
            ("port".to_owned(), self.port.to_string()),
            ("listen_addresses".to_owned(), if self.tcp { "127.0.0.1".to_owned() } else { String::new() }),
            ("logging_collector".to_owned(), "off".to_owned()),
        ];
        for (name, value) in fixed.iter().chain(&self.options) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        self.server = Some(Server::spawn(command, log, &self.data));
    }

    /// Waits until the launched server accepts connections (hot standby included); an error if it ended instead.
    pub fn wait_ready(&mut self) -> Result<(), String> {
        self.running().wait_ready(PATIENCE)
    }

    /// Waits until the server has ended by itself; its exit status.
    pub fn wait_ended(&mut self) -> std::process::ExitStatus {
        let status = self.running().wait_ended(PATIENCE);
        let status = status.unwrap_or_else(|| panic!("the server did not end\n{}", self.log_tail()));
        self.server = None;
        status
    }

    pub fn stop(&mut self, mode: StopMode) {
        self.running().signal(mode);
        self.wait_ended();
    }

    /// `kill -9` of the postmaster and of everything it started, as a power loss without one.
    pub fn kill9(&mut self) {
        self.running().kill();
        self.server = None;
    }

    pub fn restart(&mut self) {
        self.stop(StopMode::Fast);
        self.start();
    }

    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(Server::is_running)
    }

    fn running(&mut self) -> &mut Server {
        self.server.as_mut().expect("the server was started")
    }

    /// Promotes a standby or ends a paused recovery, and waits until it is done.
    pub fn promote(&self) {
        self.execute("SELECT pg_promote(false)");
        self.wait_promoted();
    }

    /// Waits until the server has left recovery.
    pub fn wait_promoted(&self) {
        self.wait_for("the end of recovery", "SELECT NOT pg_is_in_recovery()");
    }

    pub fn log_path(&self) -> PathBuf {
        self.root.join("server.log")
    }

    /// All that the server wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
        format!("--- {} ---\n{}\n---", self.log_path().display(), tail.join("\n"))
    }

    // --- SQL --------------------------------------------------------------------------------------------------------

    /// A superuser's session over the socket.
    pub fn connect(&self, database: &str) -> postgres::Client {
        let mut config = postgres::Config::new();
        config.host_path(self.socket_directory()).port(self.port).user(SUPERUSER).dbname(database);
        config
            .connect(postgres::NoTls)
            .unwrap_or_else(|e| panic!("connect to {database}: {e:?}\n{}", self.log_tail()))
    }

    /// The same, if the server accepts it.
    pub fn try_connect(&self, database: &str) -> Option<postgres::Client> {
        let mut config = postgres::Config::new();
        config.host_path(self.socket_directory()).port(self.port).user(SUPERUSER).dbname(database);
        config.connect(postgres::NoTls).ok()
    }

    /// Rows as text, NULL as an empty string, from database postgres.
    pub fn query(&self, sql: &str) -> Vec<Vec<String>> {
        self.query_in("postgres", sql)
    }

    pub fn query_in(&self, database: &str, sql: &str) -> Vec<Vec<String>> {
        query(&mut self.connect(database), sql)
            .unwrap_or_else(|e| panic!("{sql}: {e:?}\n{}", self.log_tail()))
    }

    /// The only column of the only row.
    pub fn value(&self, sql: &str) -> String {
        let rows = self.query(sql);
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone(),
            _ => panic!("{sql}: one value was expected, got {rows:?}"),
        }
    }

    pub fn execute(&self, sql: &str) {
        self.execute_in("postgres", sql);
    }

    pub fn execute_in(&self, database: &str, sql: &str) {
        let result = self.connect(database).batch_execute(sql);
        result.unwrap_or_else(|e| panic!("{sql}: {e:?}\n{}", self.log_tail()));
    }

    /// Repeats a query until it says `t`.
    pub fn wait_for(&self, what: &str, sql: &str) {
        let begun = Instant::now();
        while self.value(sql) != "t" {
            assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}: {sql}\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until `standby` has replayed everything written here so far.
    pub fn wait_replayed_by(&self, standby: &Cluster) {
        let lsn = self.value("SELECT pg_current_wal_insert_lsn()");
        standby.wait_for("replay", &format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"));
    }

    // --- WAL --------------------------------------------------------------------------------------------------------

    /// Ends the current WAL segment, after writing something into it; its name.
    pub fn switch_wal(&self) -> String {
        self.execute("SELECT pg_logical_emit_message(true, 'test', 'switch')");
        self.value("SELECT pg_walfile_name(pg_switch_wal())")
    }

    /// Waits until the archiver has had success with `segment`.
    pub fn wait_archived(&self, segment: &str) {
        let begun = Instant::now();
        let status = self.data.join("pg_wal/archive_status");
        let ready = || status.join(format!("{segment}.ready")).exists();
        let done = || {
            status.join(format!("{segment}.done")).exists()
                || !self.data.join("pg_wal").join(segment).exists()
        };
        while ready() || !done() {
            if begun.elapsed() > PATIENCE {
                panic!(
                    "{segment} was not archived: {:?}\n{}",
                    self.query("SELECT * FROM pg_stat_archiver"),
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the current segment and waits until it is archived; its name.
    pub fn archive_now(&self) -> String {
        let segment = self.switch_wal();
        self.wait_archived(&segment);
        segment
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill();
        }
        if std::thread::panicking() {
            // Through the test harness's capture, so that it stands beside the failure.
            println!("{}", self.log_tail());
        }
    }
}

/// A temporary directory that the server's user owns and everyone can enter.
pub fn temporary_directory() -> tempfile::TempDir {
    let temporary =
        tempfile::Builder::new().prefix("walhold-").tempdir().expect("create a temporary directory");
    create_open_directory(temporary.path());
    ServerUser::get().own(temporary.path());
    temporary
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("find a free port");
    listener.local_addr().expect("read the port").port()
}

/// A command for archive_command or restore_command.
fn command_line(program: &Path, environment: &[(&str, &str)], arguments: &str) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "'\\''").replace('%', "%%"));
    let variables: String =
        environment.iter().map(|(name, value)| format!("{name}={} ", quote(value))).collect();
    format!("{variables}{} {arguments}", quote(&program.display().to_string()))
}

/// Rows as text, NULL as an empty string.
pub fn query(client: &mut postgres::Client, sql: &str) -> Result<Vec<Vec<String>>, postgres::Error> {
    let mut rows = Vec::new();
    for message in client.simple_query(sql)? {
        if let postgres::SimpleQueryMessage::Row(row) = message {
            rows.push((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect());
        }
    }
    Ok(rows)
}
