//! The process that keeps a window where there is no agent.
//!
//! In: the directory of WAL of a server that recovers, and the segment that it has just got. Out: the window in `<pg_wal>/.walhold/` and a socket there to ask it by. What must hold: one
//! process per directory (a lock), started by wal-fetch and in nobody's way: no inherited files, no terminal, no output. It goes when recovery is over (neither
//! `recovery.signal` nor `standby.signal` stands any more), when it is told to, when nobody has asked for a minute, or when the directory is gone; and it takes
//! everything with it. What a killed one leaves, the next one, or the next wal-fetch, removes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::DIRECTORY;
use super::client::binding_of;
use super::protocol::{Answer, Binding, Question, parse_question, read_line};
use super::window::{Taken, Window, WindowSettings};
use crate::config::Config;
use crate::error::Failure;
use crate::interrupt;
use crate::local::kill_point::kill_point;
use crate::pg::WalSegmentName;
use crate::repository::{Patience, Repository};
use crate::wal::server_directory::ServerDirectory;

/// A worker that nobody has asked for so long ends.
const IDLE: Duration = Duration::from_secs(60);
/// How often it looks whether it is still needed.
const LOOK: Duration = Duration::from_millis(100);
/// How often an asker is told that its segment is on its way.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Askers at once; more are sent to the archive.
const MOST_ASKERS: usize = 16;
/// How long an asker may take to say what it wants.
const PATIENCE_WITH_ASKER: Duration = Duration::from_secs(5);

/// The lock's and the socket's names in the window's directory.
pub const LOCK: &str = "lock";
/// See [`LOCK`].
pub const SOCKET: &str = "socket";

/// Leaves everything that came from the process that started this one: files, terminal, process group. A descriptor of PostgreSQL's that stayed open here would keep
/// deleted files on the disk.
pub fn detach() {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        })
        .unwrap_or_default();
    for number in open.into_iter().filter(|number| *number > 2) {
        // The directory's own is among them, and closed already.
        let _ = nix::unistd::close(number);
    }
    let _ = nix::unistd::setsid();
}

/// A window that is to be kept.
#[derive(Clone, Debug)]
pub struct WindowOrder {
    /// The server's data directory.
    pub pgdata: PathBuf,
    /// Its directory of WAL.
    pub wal_directory: PathBuf,
    /// The segment that it got last.
    pub after: WalSegmentName,
    /// Whose questions are answered; `None` for those of processes with the keeper's own settings.
    pub binding: Option<Binding>,
}

/// Keeps a window until it is not needed any more, or `told_to_end`. Returns at once if somebody else keeps one.
pub fn run(config: &Config, order: &WindowOrder, told_to_end: &AtomicBool) -> Result<(), Failure> {
    let WindowOrder { pgdata, wal_directory, after, binding } = order;
    let pgdata = std::path::absolute(pgdata).unwrap_or_else(|_| pgdata.clone());
    let located = ServerDirectory::locate(wal_directory, Some(&pgdata), crate::config::PgdataOrigin::Flag)?;
    let Some(server) = located else { return Ok(()) };
    let Some(place) = Place::claim(wal_directory)? else { return Ok(()) };
    let listener = place.listen().map_err(|error| place.failed("listen at", &error))?;
    let keys = config.key_ring()?;
    let patience = Patience::Until(Instant::now() + config.wal.fetch_deadline);
    let settings = WindowSettings {
        repository: Repository::open(&config.repository, patience)?,
        patience: config.wal.fetch_deadline,
        keys,
        cluster: config.cluster.clone(),
        system: server.control.system_identifier,
        segment_size: server.control.wal_segment_size,
        directory: place.directory.clone(),
        disk: config.wal.prefetch,
    };
    let window =
        Window::start(settings, *after).map_err(|error| place.failed("start a thread in", &error))?;
    let host = Arc::new(Host {
        window,
        binding: binding.unwrap_or_else(|| binding_of(config, server.control.system_identifier)),
        told_to_end: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        askers: AtomicUsize::new(0),
    });
    kill_point("worker: started");
    let answering = Arc::clone(&host);
    let accepting = listener.try_clone().map_err(|error| place.failed("listen at", &error))?;
    std::thread::spawn(move || accept(&answering, &accepting));
    while host.is_needed(&server, &place) && !told_to_end.load(Ordering::SeqCst) {
        interrupt::sleep(LOOK);
    }
    host.end(&listener);
    place.leave();
    Ok(())
}

/// Whether a server at `pgdata` is recovering from an archive.
pub fn is_recovering(pgdata: &Path) -> bool {
    ["recovery.signal", "standby.signal"].iter().any(|signal| pgdata.join(signal).exists())
}

/// The window's directory, held by a lock while this lives.
struct Place {
    directory: PathBuf,
    opened: File,
    lock: File,
}

impl Place {
    /// `None` if a living process has it.
    fn claim(wal_directory: &Path) -> Result<Option<Place>, Failure> {
        let directory = wal_directory.join(DIRECTORY);
        let absolute = std::path::absolute(&directory).unwrap_or(directory);
        let claimed = claim(&absolute).and_then(|lock| match lock {
            Some(lock) => {
                Ok(Some(Place { opened: File::open(&absolute)?, directory: absolute.clone(), lock }))
            }
            None => Ok(None),
        });
        claimed.map_err(|error| failed("claim", &absolute, &error))
    }

    fn failed(&self, verb: &str, error: &io::Error) -> Failure {
        failed(verb, &self.directory, error)
    }

    fn listen(&self) -> io::Result<UnixListener> {
        let listener = UnixListener::bind(self.socket_address())?;
        fs::set_permissions(self.directory.join(SOCKET), fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// A socket's path is short; the directory's need not be.
    fn socket_address(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.opened.as_raw_fd())).join(SOCKET)
    }

    /// Whether the directory still is the one that was claimed.
    fn is_there(&self) -> bool {
        let named = fs::metadata(self.directory.join(LOCK)).map(|found| (found.dev(), found.ino()));
        let held = self.lock.metadata().map(|found| (found.dev(), found.ino()));
        matches!((named, held), (Ok(named), Ok(held)) if named == held)
    }

    /// Removes the directory and all that is in it.
    fn leave(&self) {
        if self.is_there() {
            remove_window(&self.directory);
        }
    }
}

fn failed(verb: &str, directory: &Path, error: &io::Error) -> Failure {
    let words = crate::error::system_words(error);
    Failure::new(crate::exit_status::Cause::FileUnusable, format!("{verb} {}: {words}", directory.display()))
}

/// Makes the directory, locks it and empties it; `None` if a living process has the lock.
fn claim(directory: &Path) -> io::Result<Option<File>> {
    let mode = fs::metadata(directory.parent().unwrap_or(directory))?.mode() & 0o770;
    for _ in 0..10 {
        match DirBuilder::new().mode(mode).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = directory.join(LOCK);
        let lock = match File::options().write(true).create(true).truncate(false).open(&path) {
            // Its owner has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        let is_named = fs::metadata(&path).is_ok_and(|named| {
            lock.metadata().is_ok_and(|held| (named.dev(), named.ino()) == (held.dev(), held.ino()))
        });
        if is_named {
            for entry in fs::read_dir(directory)?.flatten() {
                if entry.file_name() != LOCK {
                    let _ = fs::remove_file(entry.path());
                }
            }
            return Ok(Some(lock));
        }
    }
    Ok(None)
}

/// Removes a window that no living process keeps; true if there is none any more.
pub fn remove_abandoned(wal_directory: &Path) -> bool {
    let directory = wal_directory.join(DIRECTORY);
    if !directory.exists() {
        return true;
    }
    match claim(&directory) {
        Ok(Some(_lock)) => {
            remove_window(&directory);
            true
        }
        Ok(None) | Err(_) => false,
    }
}

/// The lock goes last: until then nobody else begins here.
fn remove_window(directory: &Path) {
    for _ in 0..10 {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name() != LOCK {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::remove_file(directory.join(LOCK));
        // A thread may just have given a file its name.
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            _ => return,
        }
    }
}

struct Host {
    window: Window,
    binding: Binding,
    told_to_end: AtomicBool,
    ended: AtomicBool,
    askers: AtomicUsize,
}

impl Host {
    fn is_needed(&self, server: &ServerDirectory, place: &Place) -> bool {
        !self.told_to_end.load(Ordering::SeqCst)
            && interrupt::requested().is_none()
            && self.window.idle() < idle_limit()
            && is_recovering(&server.path)
            && place.is_there()
    }

    /// Ends the window and lets the accepting thread see that it is over. The socket may have lost its name, so it can't be knocked at.
    fn end(&self, listener: &UnixListener) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        self.window.end();
    }

    fn answer(&self, stream: &mut UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE_WITH_ASKER))?;
        stream.set_write_timeout(Some(PATIENCE_WITH_ASKER))?;
        let line = read_line(stream, &mut Vec::new())?;
        let mut say = |answer: Answer| stream.write_all(format!("{answer}\n").as_bytes());
        match line.as_deref().and_then(parse_question) {
            Some((_, Question::Clear)) => {
                self.told_to_end.store(true, Ordering::SeqCst);
                say(Answer::Done)
            }
            Some((binding, Question::Take(name))) if binding == self.binding => loop {
                match self.window.take(name, HEARTBEAT) {
                    Taken::Ready(file) => return say(Answer::Ready(file)),
                    Taken::No => return say(Answer::No),
                    Taken::NotYet => say(Answer::Wait)?,
                }
            },
            Some((_, Question::Take(_))) => {
                // The settings have changed: the next wal-fetch starts a worker that has them.
                self.told_to_end.store(true, Ordering::SeqCst);
                say(Answer::Other)
            }
            None => say(Answer::Other),
        }
    }
}

fn accept(host: &Arc<Host>, listener: &UnixListener) {
    for stream in listener.incoming() {
        if host.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(mut stream) = stream else {
            // Out of descriptors: others ask the archive for a moment.
            std::thread::sleep(LOOK);
            continue;
        };
        if host.askers.fetch_add(1, Ordering::SeqCst) >= MOST_ASKERS {
            host.askers.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let host = Arc::clone(host);
        std::thread::spawn(move || {
            // An asker that went away has no use for an answer.
            let _ = host.answer(&mut stream);
            host.askers.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Shorter in tests; not compiled into releases.
fn idle_limit() -> Duration {
    #[cfg(debug_assertions)]
    if let Some(seconds) = std::env::var("WALHOLD_TEST_IDLE_SECONDS").ok().and_then(|text| text.parse().ok())
    {
        return Duration::from_secs(seconds);
    }
    IDLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_claimed_once_and_emptied() {
        let wal = tempfile::tempdir().unwrap();
        let directory = wal.path().join(DIRECTORY);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("000000010000000000000001"), "left by a killed one").unwrap();
        let place = Place::claim(wal.path()).unwrap().unwrap();
        assert!(!directory.join("000000010000000000000001").exists());
        assert!(Place::claim(wal.path()).unwrap().is_none());
        assert!(!remove_abandoned(wal.path()));
        fs::write(directory.join("000000010000000000000002"), "fetched").unwrap();
        place.leave();
        assert!(!directory.exists());
        drop(place);
        assert!(remove_abandoned(wal.path()));
    }

    #[test]
    fn what_a_killed_worker_left_is_removed() {
        let wal = tempfile::tempdir().unwrap();
        let directory = wal.path().join(DIRECTORY);
        drop(Place::claim(wal.path()).unwrap());
        fs::write(directory.join("000000010000000000000001"), "left").unwrap();
        assert!(directory.join(LOCK).exists());
        assert!(remove_abandoned(wal.path()));
        assert!(!directory.exists());
    }

    #[test]
    fn one_does_not_remove_what_is_another_s() {
        let wal = tempfile::tempdir().unwrap();
        let first = Place::claim(wal.path()).unwrap().unwrap();
        fs::remove_dir_all(wal.path().join(DIRECTORY)).unwrap();
        let second = Place::claim(wal.path()).unwrap().unwrap();
        assert!(!first.is_there() && second.is_there());
        first.leave();
        assert!(second.is_there());
    }
}
