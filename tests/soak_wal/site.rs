//! One round's store, proxy, primary, agent and the commands that PostgreSQL calls.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::archive::{Run, run};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::postgres::Cluster;
use crate::support::postgres::installation::{MAJORS, ServerUser, create_open_directory};
use crate::support::program::walhold;
use crate::support::random::Random;
use crate::support::stores::{ACCESS_KEY, BUCKET, Conditions, S3Server, SECRET_KEY};

/// What happened, to be told at the end.
#[derive(Default)]
pub struct Tally {
    pub rounds: usize,
    /// Segments and other files that were compared with what PostgreSQL had.
    pub segments: usize,
    /// Deliveries to a recovering server, each compared.
    pub fetched: usize,
    /// wal-push and wal-fetch calls that failed.
    pub failed: usize,
    pub restarts: usize,
    pub kills: BTreeMap<String, usize>,
    pub faults: BTreeMap<String, usize>,
}

impl Tally {
    pub fn killed(&mut self, what: &str) {
        *self.kills.entry(what.to_owned()).or_default() += 1;
    }

    pub fn add_faults(&mut self, met: &BTreeMap<String, usize>) {
        for (name, times) in met {
            *self.faults.entry(name.clone()).or_default() += times;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds, {} archived files compared, {} deliveries compared, {} calls failed, {} restarts of recovery, {} kills {:?}, {} faults {:?}",
            self.rounds,
            self.segments,
            self.fetched,
            self.failed,
            self.restarts,
            self.kills.values().sum::<usize>(),
            self.kills,
            self.faults.values().sum::<usize>(),
            self.faults
        )
    }
}

/// Everything that can go wrong with one request.
pub const FAULTS: &[Fault] = &[
    Fault::Status(500),
    Fault::Status(503),
    Fault::StatusRetryAfter(429, 1),
    Fault::Delay(Duration::from_millis(40)),
    Fault::Delay(Duration::from_millis(700)),
    Fault::HangMidBody,
    Fault::ResetMidBody,
    Fault::TruncateBody,
    Fault::ShortBody,
    Fault::FlipBit,
    Fault::FlipBitOfRequest,
    Fault::LoseAnswer,
    Fault::Bandwidth(200_000),
    Fault::Drip(40, Duration::from_millis(100)),
    Fault::OkWithError,
    Fault::StaleListing,
    Fault::ClockRefused,
    Fault::ClockOff(3600),
    Fault::ClockOff(-86_400),
];

/// How a copy recovers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mode {
    /// `recovery.signal`: to the end of the archive, which nothing but proof may end.
    Recovery,
    /// `standby.signal`: a segment that cannot be had is asked for again, so status 1 may mean a failure.
    Standby,
}

/// What a round is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub major: u32,
    pub conditions: Conditions,
    /// The size of segments.
    pub mib: u32,
    pub encrypted: bool,
    pub agent: bool,
    /// Of wal-push and wal-fetch, in seconds.
    pub deadline: u64,
    pub mode: Mode,
}

impl Setup {
    pub fn random(random: &mut Random) -> Setup {
        Setup {
            major: *random.pick(&MAJORS),
            conditions: *random.pick(&[Conditions::Enforced, Conditions::Enforced, Conditions::Ignored]),
            mib: *random.pick(&[1, 1, 1, 4, 16]),
            encrypted: random.chance(40),
            agent: random.chance(60),
            deadline: random.between(2, 8),
            mode: *random.pick(&[Mode::Recovery, Mode::Recovery, Mode::Recovery, Mode::Standby]),
        }
    }
}

/// Those that are over in moments, for commands whose patience is longer than a round.
pub fn short_faults() -> Vec<Fault> {
    let is_long = |fault: &Fault| matches!(fault, Fault::HangMidBody | Fault::Drip(..));
    FAULTS.iter().copied().filter(|fault| !is_long(fault)).collect()
}

pub struct Site {
    pub setup: Setup,
    pub server: S3Server,
    pub proxy: FaultProxy,
    pub primary: Cluster,
    /// This round's own copy of walhold.
    pub program: PathBuf,
    pub variables: Vec<(String, String)>,
    pub agent: Option<Child>,
    /// Whether a `wal-prefetch --clear`, which ends a recovery, was killed: then a person has to run it.
    pub clearing_was_killed: bool,
    seed_of_weather: u64,
}

impl Site {
    /// A repository and a running primary that archives into it.
    pub fn start(setup: Setup, random: &mut Random) -> Site {
        let Setup { major, conditions, mib, encrypted, .. } = setup;
        let server = S3Server::start(conditions);
        let proxy = FaultProxy::start(server.addr());
        let primary = Cluster::builder(major).wal_segment_mib(mib).checksums(true).create();
        let tools = primary.directory("tools");
        for name in ["state", "copies", "notes", "out"] {
            primary.directory(name);
        }
        let mut site = Site {
            setup,
            server,
            proxy,
            program: own_copy(&tools),
            primary,
            variables: Vec::new(),
            agent: None,
            clearing_was_killed: false,
            seed_of_weather: random.next(),
        };
        site.set_variables(setup.deadline);
        if encrypted {
            site.make_key(&tools);
        }
        site.walhold(&["init"]).expect_success();
        site.write_archive_command();
        site.primary.start();
        site
    }

    fn set_variables(&mut self, deadline: u64) {
        let deadline = format!("{deadline}s");
        let state = self.place("state").display().to_string();
        let pairs = [
            ("WALHOLD_REPOSITORY", format!("s3://{BUCKET}/prefix")),
            ("WALHOLD_STATE_DIR", state),
            ("WALHOLD_WAL_PUSH_DEADLINE", deadline.clone()),
            ("WALHOLD_WAL_FETCH_DEADLINE", deadline.clone()),
            ("WALHOLD_WAL_HISTORY_DEADLINE", deadline),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.proxy.addr())),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ];
        self.variables.extend(pairs.map(|(name, value)| (name.to_owned(), value)));
    }

    fn make_key(&mut self, tools: &Path) {
        let made = self.walhold(&["keygen"]);
        made.expect_success();
        let key = tools.join("key");
        fs::write(&key, made.stdout).expect("write the key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("close the key file");
        ServerUser::get().own(&key);
        self.variables.push(("WALHOLD_ENCRYPTION_KEY_FILE".to_owned(), key.display().to_string()));
    }

    /// Files as they were when PostgreSQL was told that they are archived.
    pub fn copies(&self) -> PathBuf {
        self.place("copies")
    }

    /// One file per kind of event, a line each.
    pub fn notes(&self) -> PathBuf {
        self.place("notes")
    }

    /// A directory that was made at the start; files come and go there.
    pub fn place(&self, name: &str) -> PathBuf {
        self.primary.data_directory().with_file_name(name)
    }

    pub fn noted(&self, what: &str) -> Vec<String> {
        let text = fs::read_to_string(self.notes().join(what)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// A shell script in the tools' directory that sees the round's variables.
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let variables: String =
            self.variables.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        let text = format!(
            "#!/bin/sh\n{variables}walhold='{}'\ncopies='{}'\nnotes='{}'\n{body}",
            self.program.display(),
            self.copies().display(),
            self.notes().display()
        );
        let path = self.place("tools").join(name);
        fs::write(&path, text).expect("write a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make the script executable");
        ServerUser::get().own(&path);
        path
    }

    /// walhold's status decides. The copy is made afterwards, while the file cannot change: PostgreSQL waits for the answer. A
    /// file that is acknowledged again must be what it was.
    fn write_archive_command(&self) {
        let script = self.script(
            "archive",
            r#"
"$walhold" wal-push "$1"
status=$?
if [ $status != 0 ]; then
    echo "$status $2" >> "$notes/push-failures"
    exit $status
fi
if [ -e "$copies/$2" ]; then
    cmp -s "$1" "$copies/$2" || { echo "$2" >> "$notes/acknowledged-twice"; exit 99; }
    exit 0
fi
cp "$1" "$copies/.$2.$$" && mv "$copies/.$2.$$" "$copies/$2" || exit 98
"#,
        );
        self.primary.configure("archive_mode", "on");
        self.primary.configure("archive_command", &format!("{} %p %f", script.display()));
        self.primary.configure("archive_timeout", "60s");
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = ServerUser::get().command(&self.program);
        command.current_dir("/").envs(self.primary.environment());
        command.envs(self.variables.iter().map(|(name, value)| (name, value))).args(arguments);
        command
    }

    pub fn walhold(&self, arguments: &[&str]) -> Run {
        run(&mut self.command(arguments))
    }

    // --- the agent --------------------------------------------------------------------------------------------------

    pub fn start_agent(&mut self) {
        if self.agent.is_some() || !self.setup.agent {
            return;
        }
        let log = fs::File::options().create(true).append(true).open(self.agent_log());
        let log = log.expect("open the agent's log");
        let child = self.command(&["agent"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.agent = Some(child.expect("start the agent"));
    }

    pub fn agent_log(&self) -> PathBuf {
        self.notes().join("agent.log")
    }

    /// Its process id, unless it has ended by itself.
    pub fn agent_pid(&mut self) -> Option<nix::unistd::Pid> {
        let agent = self.agent.as_mut()?;
        if agent.try_wait().expect("look after the agent").is_some() {
            self.agent = None;
            return None;
        }
        Some(nix::unistd::Pid::from_raw(agent.id() as i32))
    }

    /// Waits for an agent that got a signal.
    pub fn reap_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.wait().expect("wait for the agent");
        }
    }

    // --- the weather ------------------------------------------------------------------------------------------------

    pub fn calm(&self) {
        self.proxy.set(Fault::None);
        self.proxy.set_weather(1, 0, &[]);
    }

    /// Anything from a clear sky to an outage.
    pub fn change_weather(&mut self, random: &mut Random) {
        self.seed_of_weather = self.seed_of_weather.wrapping_add(1);
        let per_mille = *random.pick(&[0, 50, 100, 300, 300, 600, 900]);
        let few = [*random.pick(FAULTS), *random.pick(FAULTS), *random.pick(FAULTS)];
        let faults = if random.chance(50) { FAULTS } else { &few };
        self.proxy.set_weather(self.seed_of_weather, per_mille, faults);
        // Requests meet bursts of one status, or nobody.
        let rule = match random.below(12) {
            0 => Fault::Refuse,
            1 => Fault::Status(503),
            2 => Fault::StatusRetryAfter(429, 2),
            _ => Fault::None,
        };
        self.proxy.set(rule);
    }

    /// A backup to recover from, with faults on the way until they have had their chance.
    pub fn first_backup(&mut self, random: &mut Random) {
        self.primary.execute("CREATE TABLE bursts (round int, i int, word text); CREATE INDEX ON bursts (i)");
        let mut pgbench = self.primary.client_program("pgbench");
        run(pgbench.args(["--initialize", "--quiet", "--scale=1", "postgres"])).expect_success();
        self.proxy.set_weather(random.next(), 60, &short_faults());
        let data = self.primary.data_directory().display().to_string();
        if self.walhold(&["backup-push", "--pgdata", &data]).status != Some(0) {
            self.calm();
            self.walhold(&["backup-push", "--pgdata", &data]).expect_success();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if !std::thread::panicking() {
            return;
        }
        if let Some(keep) = std::env::var_os("SOAK_KEEP") {
            let root = self.primary.data_directory().parent().expect("the cluster's directory");
            let _ = Command::new("cp").arg("-a").arg(root).arg(&keep).status();
            let _ = Command::new("cp").arg("-a").arg(self.server.bucket_directory()).arg(&keep).status();
        }
    }
}

/// Under a name that no other process runs.
fn own_copy(directory: &Path) -> PathBuf {
    create_open_directory(directory);
    let copy = directory.join("walhold");
    fs::copy(walhold(), &copy).expect("copy walhold");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("make the copy executable");
    fs::canonicalize(&copy).expect("its real path")
}
