//! Listens, answers, and ends in good order.
//!
//! In: connections of this user and of root. Out: answers. What must hold: one agent per socket (a lock beside it); a socket that only its owner may use; after SIGTERM a
//! request to the store has a second left, what is not done by then is left to its asker, and after ten seconds the agent ends in any case.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt};

use super::archiver::{Archiver, PushOrder};
use super::bounds::{Seats, locked};
use super::client::read_line;
use super::fetcher::{FetchEnd, FetchOrder, Fetcher};
use super::protocol::{
    AgentStatus, Answer, Ask, FetchAsk, PushAsk, Question, Refusal, Settings, VERSION, WindowAsk,
};
use crate::config::fingerprint::store_variables;
use crate::config::{Config, PgdataOrigin};
use crate::error::{Failure, system_words};
use crate::exit_status::Cause;
use crate::format::ClusterName;
use crate::interrupt;
use crate::local::durable::parent_of;
use crate::local::kill_point::kill_point;
use crate::local::socket::FileReceiver;
use crate::repository;
use crate::wal::archive_file::ArchiveFile;
use crate::wal::fetch::Fetched;
use crate::wal::prefetch::worker::{self, WindowOrder};
use crate::wal::push::Writing;

/// How often an asker is told that its work is under way.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How often the agent looks for signals.
const LOOK: Duration = Duration::from_millis(50);
/// How long an asker may take to say what it wants.
const PATIENCE_WITH_ASKER: Duration = Duration::from_secs(5);
/// Askers at once; more are turned away and do the work themselves.
const MOST_ASKERS: usize = 64;
/// What is under way when the agent is told to end has so long.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

struct Agent {
    config: Config,
    variables: Vec<(String, String)>,
    last_refusal: Mutex<Option<Refusal>>,
    archiver: Arc<Archiver>,
    fetcher: Fetcher,
    fetched: AtomicU64,
    windows: Mutex<HashSet<PathBuf>>,
    since: jiff::Timestamp,
    refused: AtomicU64,
    askers: Seats,
    ending: AtomicBool,
}

/// Runs until a signal asks it to end.
pub fn run(config: &Config, writing: Writing) -> Result<(), Failure> {
    share_arenas();
    let socket = &config.agent_socket;
    let failed = |verb: &str, error: &io::Error| {
        Failure::new(Cause::FileUnusable, format!("{verb} {}: {}", socket.display(), system_words(error)))
            .with_hint("agent.socket must lie in a directory that the agent's user owns")
    };
    let Listening { listener, inherited, _lock } =
        listen(socket).map_err(|error| failed("listen at", &error))?;
    let keys = writing.keys.clone();
    let archiver = Arc::new(Archiver::new(config.clone(), writing));
    let agent = Arc::new(Agent {
        config: config.clone(),
        variables: store_variables(&config.repository.url),
        last_refusal: Mutex::default(),
        fetcher: Fetcher::new(Arc::clone(&archiver), keys),
        fetched: AtomicU64::new(0),
        archiver,
        windows: Mutex::default(),
        since: jiff::Timestamp::now(),
        refused: AtomicU64::new(0),
        askers: Seats::new(MOST_ASKERS),
        ending: AtomicBool::new(false),
    });
    let answering = Arc::clone(&agent);
    let accepting = std::thread::spawn(move || accept(&answering, &listener));
    tracing::info!("the agent listens at {}", socket.display());
    notify("READY=1");
    while interrupt::sleep(Duration::from_secs(1)) {}
    notify("STOPPING=1");
    agent.ending.store(true, Ordering::SeqCst);
    // New askers find nobody and do the work themselves; at systemd's socket they are turned away, and the next agent is started for later ones.
    if !inherited {
        let _ = fs::remove_file(socket);
    }
    agent.wait_for_the_last();
    drop(accepting);
    tracing::info!("the agent ended");
    Ok(())
}

/// glibc gives up to eight threads a core an arena of their own, each of which keeps what was freed in it: a megabyte for the threads that
/// wait for a store.
fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number that the allocator reads when it next needs an arena.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 2);
    }
}

/// Where askers come from.
struct Listening {
    listener: UnixListener,
    /// Whether it was made by systemd, who keeps it.
    inherited: bool,
    /// Held while this process lives.
    _lock: File,
}

/// Takes the place of an agent that is gone, never of a living one; or the socket that systemd made.
fn listen(socket: &Path) -> io::Result<Listening> {
    DirBuilder::new().recursive(true).mode(0o700).create(parent_of(socket))?;
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    let lock = File::options().write(true).create(true).truncate(false).open(&name)?;
    if lock.try_lock().is_err() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent listens there"));
    }
    if let Some(listener) = inherited_listener(socket)? {
        return Ok(Listening { listener, inherited: true, _lock: lock });
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(Listening { listener, inherited: false, _lock: lock })
}

/// The socket that systemd passes to a service that it starts when somebody connects (sd_listen_fds(3)): descriptor 3, if the variables speak of this process.
fn inherited_listener(socket: &Path) -> io::Result<Option<UnixListener>> {
    const FIRST: RawFd = 3;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => 0,
    };
    if count == 0 {
        return Ok(None);
    }
    let flags = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
    // SAFETY: by systemd's protocol the descriptor is open and this process's own; nothing here has taken it. If the variables lie, the next calls fail.
    let descriptor = unsafe { OwnedFd::from_raw_fd(FIRST) };
    fcntl(&descriptor, flags)?;
    if count > 1 || !getsockopt(&descriptor, sockopt::AcceptConn)? {
        return Err(io::Error::other("systemd must pass one listening stream socket"));
    }
    let listener = UnixListener::from(descriptor);
    listener.set_nonblocking(false)?;
    let address = listener.local_addr()?;
    if address.as_pathname() != Some(socket) {
        let place = address.as_pathname().unwrap_or(Path::new("no path")).display().to_string();
        return Err(io::Error::other(format!(
            "systemd listens at {place}: ListenStream and agent.socket must agree"
        )));
    }
    Ok(Some(listener))
}

fn accept(agent: &Arc<Agent>, listener: &UnixListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            // Out of descriptors: others go without us for a moment.
            std::thread::sleep(LOOK);
            continue;
        };
        if agent.ending.load(Ordering::SeqCst) || !may_ask(&stream) {
            continue;
        }
        let Some(seat) = agent.askers.take() else { continue };
        let agent = Arc::clone(agent);
        std::thread::spawn(move || {
            let _seat = seat;
            // An asker that went away has no use for an answer.
            let _ = agent.answer(&mut stream);
        });
    }
}

fn may_ask(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    getsockopt(stream, sockopt::PeerCredentials).is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

impl Agent {
    fn wait_for_the_last(&self) {
        let until = Instant::now() + LAST_PATIENCE;
        let keeps_windows = || !locked(&self.windows).is_empty();
        // What is archived ahead gives up by itself now; until it has, parts of an upload lie in the store.
        let is_busy = || self.askers.taken() > 0 || self.archiver.under_way() > 0;
        while (is_busy() || keeps_windows()) && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        let left = self.archiver.under_way();
        if left > 0 {
            tracing::warn!(
                "{left} uploads were cut off, and what was sent of large ones may stay in the store as unfinished multipart uploads, which nothing reads: let a lifecycle rule of the bucket abort such after a day"
            );
        }
    }

    fn answer(self: &Arc<Self>, stream: &mut UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE_WITH_ASKER))?;
        stream.set_write_timeout(Some(PATIENCE_WITH_ASKER))?;
        let (line, lent) = {
            let mut receiver = FileReceiver::new(stream);
            (read_line(&mut receiver, &mut Vec::new())?, receiver.file)
        };
        let question = match read_question(&line) {
            Ok(question) => question,
            Err(why) => return say(stream, &self.refuse(why)),
        };
        kill_point("agent: asked");
        match question.ask {
            Ask::Status {} => say(stream, &Answer::Status(Box::new(self.status()))),
            Ask::Window(ask) => say(stream, &self.keep_window(ask)),
            Ask::Fetch(ask) => self.work(stream, move |agent| agent.fetch(&ask, lent)),
            Ask::Push(ask) => match self.order_of(&ask) {
                Err(answer) => say(stream, &answer),
                Ok(order) if self.archiver.is_known(&order) => {
                    kill_point("agent: before answer");
                    let name = order.file.name.to_string();
                    say(stream, &Answer::Archived { name, how: "ahead".to_owned() })?;
                    self.archiver.go_on(&order);
                    Ok(())
                }
                Ok(order) => self.work(stream, move |agent| agent.push(order)),
            },
        }
    }

    /// Does on another thread what may take long, and tells the asker meanwhile that it does.
    fn work(
        self: &Arc<Self>,
        stream: &mut UnixStream,
        work: impl FnOnce(&Agent) -> Answer + Send + 'static,
    ) -> io::Result<()> {
        let (report, reports) = channel();
        let agent = Arc::clone(self);
        std::thread::Builder::new().name("work".to_owned()).spawn(move || {
            let _ = report.send(work(&agent));
        })?;
        loop {
            match reports.recv_timeout(HEARTBEAT) {
                Ok(answer) => {
                    kill_point("agent: before answer");
                    return say(stream, &answer);
                }
                Err(RecvTimeoutError::Timeout) => say(stream, &Answer::Wait)?,
                Err(RecvTimeoutError::Disconnected) => {
                    return say(stream, &failed_answer(&Failure::new(Cause::Internal, "a thread died")));
                }
            }
        }
    }

    /// Why the asker is none of ours, if so.
    fn differs(&self, settings: &Settings) -> Option<String> {
        if settings.fingerprint != self.config.settings_fingerprint() {
            return Some("the agent has other settings".to_owned());
        }
        let other = settings
            .variables
            .iter()
            .find(|(name, value)| !self.variables.iter().any(|(known, own)| known == name && own == value));
        let problem = |name: &str| {
            let known = self.variables.iter().any(|(own, _)| own == name);
            let way = if known { "has another value" } else { "is not set" };
            format!("{name} {way} in the agent's environment")
        };
        other.map(|(name, _)| problem(name))
    }

    /// The cluster that is asked about, or the answer to an asker who is none of ours.
    fn cluster_of(&self, settings: &Settings) -> Result<ClusterName, Answer> {
        if let Some(why) = self.differs(settings) {
            return Err(self.refuse(why));
        }
        settings.cluster.parse().map_err(|_| self.refuse("this is no cluster's name".to_owned()))
    }

    /// What is asked, or the answer that it can't be done here.
    fn order_of(&self, ask: &PushAsk) -> Result<PushOrder, Answer> {
        let cluster = self.cluster_of(&ask.settings)?;
        let file = match ArchiveFile::open(&ask.path, ask.pgdata.as_deref(), PgdataOrigin::Flag) {
            Ok(file) if file.stamp() == ask.stamp => file,
            Ok(_) => return Err(self.refuse("the agent sees another file under this path".to_owned())),
            // Perhaps in a container: the asker could open it.
            Err(error) => return Err(self.refuse(format!("the agent cannot use the file: {error}"))),
        };
        let deadline = deadline_of(ask.patience_milliseconds);
        Ok(PushOrder { cluster, file, pgdata: ask.pgdata.clone(), deadline })
    }

    fn push(&self, order: PushOrder) -> Answer {
        let name = order.file.name.to_string();
        match self.archiver.push(order) {
            Ok(how) => Answer::Archived { name, how },
            Err(failure) => failed_answer(&failure),
        }
    }

    fn fetch(&self, ask: &FetchAsk, lent: Option<File>) -> Answer {
        let cluster = match self.cluster_of(&ask.settings) {
            Ok(cluster) => cluster,
            Err(answer) => return answer,
        };
        let (Some(file), Ok(name)) = (lent, ask.name.parse()) else {
            return self.refuse("the question makes no sense".to_owned());
        };
        let end = self.fetcher.fetch(&FetchOrder {
            cluster,
            name,
            system: ask.system,
            segment_size: ask.segment_size,
            file: &file,
            destination: &ask.destination,
            deadline: deadline_of(ask.patience_milliseconds),
            allow_gap: ask.allow_gap,
        });
        let name = name.to_string();
        match end {
            FetchEnd::Left(why) => self.refuse(why),
            FetchEnd::Done(Ok(Fetched::Delivered(tail))) => {
                self.fetched.fetch_add(1, Ordering::SeqCst);
                Answer::Fetched { name, length: tail.plaintext_length, stored_length: tail.stored_length }
            }
            FetchEnd::Done(Ok(Fetched::Absent)) => Answer::Absent { name, later: None },
            FetchEnd::Done(Ok(Fetched::AllowedGap { later })) => Answer::Absent { name, later: Some(later) },
            FetchEnd::Done(Err(failure)) => failed_answer(&failure),
        }
    }

    fn keep_window(self: &Arc<Self>, ask: WindowAsk) -> Answer {
        let cluster = match self.cluster_of(&ask.settings) {
            Ok(cluster) => cluster,
            Err(answer) => return answer,
        };
        let directory = ask.wal_directory.clone();
        if locked(&self.windows).insert(directory.clone()) {
            let agent = Arc::clone(self);
            let started = std::thread::Builder::new().name("window".to_owned()).spawn(move || {
                let config = Config { cluster, ..agent.config.clone() };
                let order = WindowOrder {
                    pgdata: ask.pgdata,
                    wal_directory: ask.wal_directory,
                    after: ask.after,
                    binding: Some(ask.binding),
                };
                if let Err(failure) = worker::run(&config, &order, &agent.ending) {
                    tracing::warn!("no prefetch in {}: {failure}", order.wal_directory.display());
                }
                locked(&agent.windows).remove(&order.wal_directory);
            });
            if started.is_err() {
                locked(&self.windows).remove(&directory);
                return self.refuse("the agent could start no thread".to_owned());
            }
        }
        Answer::Kept
    }

    /// Sends an asker on alone. It says so itself, each time; here each reason is said when it is new.
    fn refuse(&self, why: String) -> Answer {
        self.refused.fetch_add(1, Ordering::SeqCst);
        let refusal = Refusal { time: jiff::Timestamp::now(), why: why.clone() };
        let last = locked(&self.last_refusal).replace(refusal);
        if last.is_none_or(|last| last.why != why) {
            tracing::warn!("an asker goes on without the agent: {why}");
        }
        Answer::Other { why }
    }

    fn status(&self) -> AgentStatus {
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: self.since,
            repository: repository::display_url(&self.config.repository),
            memory_bytes: resident_bytes().unwrap_or(0),
            refused: self.refused.load(Ordering::SeqCst),
            last_refusal: locked(&self.last_refusal).clone(),
            archives: self.archiver.status(),
            fetched: self.fetched.load(Ordering::SeqCst),
            windows: locked(&self.windows).iter().cloned().collect(),
        }
    }
}

/// The version is looked at before anything else: another one may have other members.
fn read_question(line: &[u8]) -> Result<Question, String> {
    let value: serde_json::Value =
        serde_json::from_slice(line).map_err(|_| "the question makes no sense".to_owned())?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    let walhold = value.get("walhold").and_then(serde_json::Value::as_str).unwrap_or_default();
    if version != Some(u64::from(VERSION)) || walhold != env!("CARGO_PKG_VERSION") {
        return Err(format!("the agent is walhold {}: restart it", env!("CARGO_PKG_VERSION")));
    }
    serde_json::from_value(value).map_err(|_| "the question makes no sense".to_owned())
}

/// When an asker will have lost patience; a day at most, whatever he says.
fn deadline_of(patience_milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(patience_milliseconds.min(86_400_000))
}

fn failed_answer(failure: &Failure) -> Answer {
    Answer::Failed {
        cause: failure.cause.name().to_owned(),
        message: failure.message.clone(),
        hint: failure.hint.clone(),
    }
}

fn say(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Tells systemd, if it wants to know (`Type=notify`).
fn notify(state: &str) {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        match place.as_bytes().strip_prefix(b"@") {
            Some(name) => socket.send_to_addr(state.as_bytes(), &SocketAddr::from_abstract_name(name)?)?,
            None => socket.send_to(state.as_bytes(), Path::new(&place))?,
        };
        Ok(())
    };
    if let Err(error) = send() {
        tracing::debug!("notify systemd: {}", system_words(&error));
    }
}

/// `VmRSS`.
fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_of_other_versions_and_nonsense_are_refused() {
        let status =
            format!(r#"{{"version":2,"walhold":"{}","ask":{{"status":{{}}}}}}"#, env!("CARGO_PKG_VERSION"));
        assert!(read_question(status.as_bytes()).is_ok());
        let other = status.replace("\"version\":2", "\"version\":3");
        assert!(read_question(other.as_bytes()).unwrap_err().ends_with("restart it"));
        let older = status.replace(env!("CARGO_PKG_VERSION"), "0.0.1");
        assert!(read_question(older.as_bytes()).is_err());
        for nonsense in ["", "{}", "GET / HTTP/1.1", "[1]", &status.replace("status", "delete")] {
            assert!(read_question(nonsense.as_bytes()).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_living_agent_s_place_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.socket");
        let first = listen(&socket).unwrap();
        assert_eq!(listen(&socket).err().unwrap().to_string(), "another agent listens there");
        drop(first);
        // What a killed one left is.
        assert!(socket.exists());
        let _second = listen(&socket).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
