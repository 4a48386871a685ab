//! wal-push's and wal-fetch's side: ask the agent, and know when to do without.
//!
//! What must hold: an agent's word counts only if it runs as this user or root, names the file that was asked for, and came as a whole answer in a protocol that is known. Everything else, silence above all,
//! means that the asker does the work itself.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};

use super::protocol::{
    AgentStatus, Answer, Ask, FetchAsk, LONGEST_LINE, PushAsk, Question, Settings, VERSION, WindowAsk,
    cause_of,
};
use crate::config::Config;
use crate::config::fingerprint::store_variables;
use crate::error::Failure;
use crate::exit_status::Cause;
use crate::interrupt;
use crate::local::lines::next_line;
use crate::local::socket::{self as local_socket, write_with_file};
use crate::pg::{ArchiveFileName, WalSegmentName};
use crate::wal::archive_file::ArchiveFile;
use crate::wal::destination::{Destination, Durability};
use crate::wal::first_page::{check_first_page, read_first_page};
use crate::wal::prefetch::client::binding_of;
use crate::wal::server_directory::ServerDirectory;

/// An agent that has said nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(2);
/// How often a wait looks for signals.
const LOOK: Duration = Duration::from_millis(100);
/// What an answer may take beyond the patience that the agent has with the store.
const ALLOWANCE: Duration = Duration::from_secs(5);

/// Lets the agent archive the file: in a few words how, or `None` if there is no agent for it. A failure is the store's or the file's, told as if it had happened here.
pub fn push_through_agent(config: &Config, file: &ArchiveFile) -> Result<Option<String>, Failure> {
    let Some(stream) = connect(&config.agent_socket) else { return Ok(None) };
    let Ok(path) = std::path::absolute(file.path()) else { return Ok(None) };
    let server = ServerDirectory::locate(file.path(), config.pgdata.as_deref(), config.pgdata_origin)?;
    let ask = Ask::Push(PushAsk {
        settings: settings(config),
        path,
        pgdata: server.and_then(|server| std::path::absolute(server.path).ok()),
        stamp: file.stamp(),
        patience_milliseconds: u64::try_from(config.wal.push_deadline.as_millis()).unwrap_or(u64::MAX),
    });
    let until = Instant::now() + config.wal.push_deadline + ALLOWANCE;
    match last_word(converse(stream, ask, None, until))? {
        Some(Answer::Archived { name, how }) if name == file.name.to_string() => Ok(Some(how)),
        _ => Ok(None),
    }
}

/// A file that PostgreSQL asks for.
pub struct AgentFetch<'a> {
    /// What is wanted.
    pub name: ArchiveFileName,
    /// Where it goes.
    pub destination: &'a Path,
    /// Whether it must survive power loss there.
    pub durability: Durability,
    /// Who asks.
    pub server: &'a ServerDirectory,
    /// When the whole fetch must be done.
    pub deadline: Instant,
}

/// How the agent fetched.
pub enum AgentFetched {
    /// The file lies at its destination.
    Delivered {
        /// Bytes of its object.
        stored_length: u64,
    },
    /// Not there; a later one is, where gaps are allowed.
    Absent {
        /// See [`crate::wal::fetch::Fetched::AllowedGap`].
        later: Option<WalSegmentName>,
    },
}

/// Lets the agent fetch a file into one that only this process can give a name: `None` if there is no agent for it, and whatever it may still do to that file is seen by nobody.
pub fn fetch_through_agent(config: &Config, fetch: &AgentFetch<'_>) -> Result<Option<AgentFetched>, Failure> {
    let Some(stream) = connect(&config.agent_socket) else { return Ok(None) };
    let destination = Destination::create(fetch.destination)?;
    let control = &fetch.server.control;
    let patience = fetch.deadline.saturating_duration_since(Instant::now());
    let ask = Ask::Fetch(FetchAsk {
        settings: settings(config),
        name: fetch.name.to_string(),
        destination: fetch.destination.to_owned(),
        system: control.system_identifier,
        segment_size: control.wal_segment_size,
        patience_milliseconds: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        allow_gap: config.wal.allow_gap,
    });
    let name = fetch.name.to_string();
    match last_word(converse(stream, ask, Some(destination.file()), fetch.deadline + ALLOWANCE))? {
        Some(Answer::Fetched { name: fetched, length, stored_length }) if fetched == name => {
            if let Err(problem) = check_fetched(destination.file(), length, fetch) {
                tracing::warn!("without the agent: it fetched another {name}: {problem}");
                return Ok(None);
            }
            destination.deliver(fetch.durability)?;
            Ok(Some(AgentFetched::Delivered { stored_length }))
        }
        Some(Answer::Absent { name: absent, later }) if absent == name => {
            Ok(Some(AgentFetched::Absent { later }))
        }
        _ => Ok(None),
    }
}

/// The checks that cost nothing: the agent has made the others.
fn check_fetched(file: &File, length: u64, fetch: &AgentFetch<'_>) -> Result<(), String> {
    let words = |error: io::Error| crate::error::system_words(&error);
    let found = file.metadata().map_err(words)?.len();
    if found != length {
        return Err(format!("it has {found} bytes instead of {length}"));
    }
    let (ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment)) = fetch.name else {
        return Ok(());
    };
    // The agent wrote through the same open file, which is at its end now.
    let mut file = file;
    file.rewind().map_err(words)?;
    let page = read_first_page(file).map_err(words)?;
    check_first_page(segment, &page, length, Some(fetch.server.control.system_identifier))
        .map(drop)
        .map_err(|problem| problem.to_string())
}

/// What the agent's last word means to somebody who can do without it: `None` where that has to be done.
fn last_word(said: io::Result<Answer>) -> Result<Option<Answer>, Failure> {
    match said {
        Ok(Answer::Failed { cause, message, hint }) => match cause_of(&cause) {
            // It was told to end, or made a mistake: its work can be done here.
            None | Some(Cause::Interrupted | Cause::Internal) => {
                tracing::info!("without the agent: {message}");
                Ok(None)
            }
            Some(cause) => Err(Failure { hint, ..Failure::new(cause, message) }),
        },
        // It stays so until somebody changes something: worth a warning every time.
        Ok(Answer::Other { why }) => {
            tracing::warn!("without the agent: {why}");
            Ok(None)
        }
        Ok(answer) => Ok(Some(answer)),
        Err(error) => {
            tracing::info!("without the agent: {}", crate::error::system_words(&error));
            Ok(None)
        }
    }
}

/// Lets the agent keep a window; false if there is none that does.
pub fn keep_window_in_agent(
    config: &Config,
    server: &ServerDirectory,
    wal_directory: &Path,
    after: WalSegmentName,
) -> bool {
    let Some(stream) = connect(&config.agent_socket) else { return false };
    let (Ok(pgdata), Ok(wal_directory)) =
        (std::path::absolute(&server.path), std::path::absolute(wal_directory))
    else {
        return false;
    };
    let ask = Ask::Window(WindowAsk {
        settings: settings(config),
        pgdata,
        wal_directory,
        after,
        binding: binding_of(config, server.control.system_identifier),
    });
    matches!(converse(stream, ask, None, Instant::now() + ALLOWANCE), Ok(Answer::Kept))
}

/// How the agent is; an error in the system's words if none answers.
pub fn status(socket: &Path) -> io::Result<AgentStatus> {
    let stream = local_socket::connect(socket)?;
    match converse(stream, Ask::Status {}, None, Instant::now() + ALLOWANCE)? {
        Answer::Status(status) => Ok(*status),
        Answer::Other { why } => Err(io::Error::other(why)),
        _ => Err(io::Error::other("its answer makes no sense")),
    }
}

/// `None` if nobody listens, or somebody who may not. Where there is no socket there is no agent, and nothing to say.
fn connect(socket: &Path) -> Option<UnixStream> {
    let stream = match local_socket::connect(socket) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            let why = match error.kind() {
                io::ErrorKind::ConnectionRefused => "nobody listens there any more".to_owned(),
                io::ErrorKind::WouldBlock => "it takes no more questions: it hangs".to_owned(),
                _ => crate::error::system_words(&error),
            };
            tracing::warn!("without the agent at {}: {why}", socket.display());
            return None;
        }
    };
    let own = nix::unistd::geteuid().as_raw();
    match getsockopt(&stream, sockopt::PeerCredentials) {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => Some(stream),
        // Another user's agent could acknowledge what was never archived.
        Ok(peer) => {
            tracing::warn!(
                "without the agent: what listens at {} runs as user {}",
                socket.display(),
                peer.uid()
            );
            None
        }
        Err(_) => None,
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        fingerprint: config.settings_fingerprint(),
        variables: store_variables(&config.repository.url),
        cluster: config.cluster.to_string(),
    }
}

/// Asks, and waits for the last word.
fn converse(mut stream: UnixStream, ask: Ask, lent: Option<&File>, until: Instant) -> io::Result<Answer> {
    let question = Question { version: VERSION, walhold: env!("CARGO_PKG_VERSION").to_owned(), ask };
    let mut line = serde_json::to_vec(&question).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_read_timeout(Some(LOOK))?;
    match lent {
        Some(file) => write_with_file(&stream, &line, file)?,
        None => stream.write_all(&line)?,
    }
    let mut held = Vec::new();
    let mut heard = Instant::now();
    loop {
        if interrupt::requested().is_some() {
            return Err(io::Error::other("interrupted by a signal"));
        }
        if heard.elapsed() >= SILENCE || Instant::now() >= until {
            return Err(io::Error::other("it does not answer"));
        }
        match read_line(&mut stream, &mut held) {
            Ok(line) => match serde_json::from_slice(&line) {
                Ok(Answer::Wait) => heard = Instant::now(),
                Ok(answer) => return Ok(answer),
                Err(_) => return Err(io::Error::other("its answer makes no sense")),
            },
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The next whole line.
pub(super) fn read_line(from: &mut impl io::Read, held: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    next_line(from, held, LONGEST_LINE)?
        .ok_or_else(|| io::Error::other("the other side ended in the middle, or says too much"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_cut_or_endless_are_no_answers() {
        let mut held = Vec::new();
        let mut bytes: &[u8] = b"{\"wait\"";
        assert!(read_line(&mut bytes, &mut held).is_err());
        let endless = vec![b'x'; 2 * LONGEST_LINE];
        assert!(read_line(&mut endless.as_slice(), &mut Vec::new()).is_err());
        let mut held = Vec::new();
        let mut bytes: &[u8] = b"one\ntwo\n";
        assert_eq!(read_line(&mut bytes, &mut held).unwrap(), b"one");
        assert_eq!(read_line(&mut bytes, &mut held).unwrap(), b"two");
    }
}
