//! wal-fetch's side of the window: take a segment from it, start somebody who keeps one, clear it.
//!
//! In: what PostgreSQL asks for. Out: the file at its destination, or the word that the archive itself must be asked. What must hold: whatever the other side says or does, only a file
//! that is the segment asked for is delivered, and the wait for it is bounded.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::DIRECTORY;
use super::protocol::{Answer, Binding, Question, WindowFile, question_line, read_line};
use super::worker::{SOCKET, remove_abandoned};
use crate::agent::client::keep_window_in_agent;
use crate::config::Config;
use crate::config::fingerprint::Fields;
use crate::interrupt;

use crate::local::durable::parent_of;
use crate::local::heap;
use crate::local::kill_point::kill_point;
use crate::local::socket;
use crate::pg::{SystemIdentifier, WalSegmentName, WalSegmentSize};
use crate::wal::delivery_turn::DeliveryTurn;
use crate::wal::first_page::{check_first_page, read_first_page};
use crate::wal::server_directory::ServerDirectory;

/// A keeper that has said nothing for so long is stuck.
const SILENCE: Duration = Duration::from_secs(2);
/// A segment that has been on its way for so long is fetched directly as well.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How often a wait looks for signals.
const LOOK: Duration = Duration::from_millis(100);

/// A request to the window.
#[derive(Clone, Copy, Debug)]
pub struct WindowRequest<'a> {
    /// What is wanted.
    pub name: WalSegmentName,
    /// Where it goes, in the server's own pg_wal.
    pub destination: &'a Path,
    /// The server's cluster.
    pub system: SystemIdentifier,
    /// Its segment size.
    pub segment_size: WalSegmentSize,
    /// The asker's settings.
    pub binding: Binding,
    /// When the whole fetch must be done.
    pub deadline: Instant,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// The file lies at its destination.
    Delivered,
    /// Somebody keeps a window, but has not this segment.
    NotThere,
    /// Nobody keeps a window, or not for us.
    NoWindow,
}

/// Settings, cluster and identity: who has others is no partner.
pub fn binding_of(config: &Config, system: SystemIdentifier) -> Binding {
    let mut fields = Fields::default();
    fields.add(&config.fingerprint().0);
    fields.add(config.cluster.as_str().as_bytes());
    fields.add(system.to_string().as_bytes());
    fields.add(config.wal.prefetch.to_string().as_bytes());
    fields.digest()
}

/// Takes a segment from the window and moves it to its destination.
pub fn take(request: &WindowRequest<'_>) -> Delivery {
    let directory = parent_of(request.destination).join(DIRECTORY);
    let Ok(stream) = socket::connect(&directory.join(SOCKET)) else { return Delivery::NoWindow };
    let path = directory.join(request.name.to_string());
    match ask(stream, request) {
        Ok(Some(Answer::Ready(file))) => match deliver(&path, &file, request) {
            Ok(delivery) => delivery,
            Err(problem) => {
                tracing::warn!("{} was not taken from {}: {problem}", request.name, directory.display());
                let _ = fs::remove_file(&path);
                Delivery::NotThere
            }
        },
        Ok(Some(Answer::No)) => Delivery::NotThere,
        // Stuck or ending: whoever it is still has the place.
        Ok(_) | Err(_) => Delivery::NotThere,
    }
}

/// The keeper's last word; `None` if it has none within the time it has.
fn ask(mut stream: UnixStream, request: &WindowRequest<'_>) -> io::Result<Option<Answer>> {
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.write_all(question_line(&request.binding, Question::Take(request.name)).as_bytes())?;
    let end = request.deadline.min(Instant::now() + LONGEST_WAIT);
    let mut heard = Instant::now();
    let mut held = Vec::new();
    while Instant::now() < end && heard.elapsed() < SILENCE && interrupt::requested().is_none() {
        match read_line(&mut stream, &mut held) {
            Ok(Some(line)) => match line.parse() {
                Ok(Answer::Wait) => heard = Instant::now(),
                Ok(answer) => return Ok(Some(answer)),
                Err(_) => return Ok(None),
            },
            Ok(None) => return Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Moves the file after the checks that cost nothing: still the one that was checked, the segment that its name says, and somebody waits
/// for it. A failure is the file's own.
fn deliver(path: &Path, expected: &WindowFile, request: &WindowRequest<'_>) -> Result<Delivery, String> {
    let words = |error: io::Error| crate::error::system_words(&error);
    let file = File::open(path).map_err(words)?;
    let found = file.metadata().map_err(words)?;
    if !found.is_file() || WindowFile::of(&found) != *expected {
        return Err("it is not the file that was fetched".to_owned());
    }
    if found.len() != request.segment_size.bytes() {
        return Err(format!("it has {} bytes", found.len()));
    }
    let page = read_first_page(&file).map_err(words)?;
    check_first_page(request.name, &page, expected.length(), Some(request.system))
        .map_err(|problem| problem.to_string())?;
    kill_point("window: before delivery");
    // Nothing is wrong with the segment where it is no longer asked for: the server started since may want it. Whoever fetches it instead says why.
    let Ok(turn) = DeliveryTurn::take(request.destination) else { return Ok(Delivery::NotThere) };
    fs::rename(path, request.destination).map_err(words)?;
    kill_point("window: after delivery");
    if turn.end().is_err() {
        return Ok(Delivery::NotThere);
    }
    Ok(Delivery::Delivered)
}

/// Lets the agent keep a window after `last`, or starts a process that does, and does not wait for it.
pub fn start_worker(config: &Config, server: &ServerDirectory, wal_directory: &Path, last: WalSegmentName) {
    if keep_window_in_agent(config, server, wal_directory, last) {
        return;
    }
    let started = worker_command(config, server, wal_directory, last).and_then(|mut command| command.spawn());
    if let Err(error) = started {
        tracing::debug!("no prefetch: {}", crate::error::system_words(&error));
    }
}

fn worker_command(
    config: &Config,
    server: &ServerDirectory,
    wal_directory: &Path,
    last: WalSegmentName,
) -> io::Result<Command> {
    let absolute = |path: &Path| -> io::Result<PathBuf> { std::path::absolute(path) };
    let mut command = Command::new(std::env::current_exe()?);
    // Settings that this process has from flags.
    command.envs(config.carried_variables());
    if !heap::is_decided() {
        command.envs(heap::ONE_HEAP);
    }
    if let Some(file) = &config.file {
        command.arg("--config").arg(absolute(file)?);
    }
    command.arg("--pgdata").arg(absolute(&server.path)?);
    command.arg("wal-prefetch").arg("--wal-directory").arg(absolute(wal_directory)?);
    command.arg("--after").arg(last.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// Ends the window in `wal_directory`, whoever keeps it, and removes what is there; false if something is left after all.
pub fn clear(wal_directory: &Path) -> bool {
    let directory = wal_directory.join(DIRECTORY);
    let until = Instant::now() + Duration::from_secs(5);
    while directory.exists() {
        if let Ok(mut stream) = socket::connect(&directory.join(SOCKET)) {
            let asked = stream.set_read_timeout(Some(SILENCE)).and_then(|()| {
                stream.write_all(question_line(&Binding::of(b""), Question::Clear).as_bytes())
            });
            if asked.is_ok() {
                let _ = read_line(&mut stream, &mut Vec::new());
            }
        }
        if remove_abandoned(wal_directory) {
            return true;
        }
        if Instant::now() >= until || !interrupt::sleep(Duration::from_millis(50)) {
            return false;
        }
    }
    true
}
