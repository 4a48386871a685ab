//! Reads encryption keys from files or from a command.
//!
//! Nothing here ever puts a key, or a line that could be one, into a message.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::load::Effective;
use super::{Config, ConfigError, schema};
use crate::codec::encrypt::KeyError;
use crate::codec::{KeyRing, MasterKey};
use crate::error::{Explain, Failure, system_words};
use crate::exit_status::Cause;
use crate::interrupt;

/// A key file or a command's output larger than this is something else.
const MOST_BYTES: u64 = 4096;

/// How long `encryption.key_command` may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// Why the keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    /// The file cannot be read.
    #[error("read encryption key file {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        problem: String,
    },
    /// Others than the owner may read or write the file.
    #[error("encryption key file {} is open to others than its owner (mode {mode:04o})", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody who could replace it.
    #[error(
        "encryption key file {} belongs to user {owner}, not to root or to the user that runs walhold ({user})",
        path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
        /// Our own.
        user: u32,
    },
    /// The file holds no key.
    #[error("read encryption key file {}: {problem}", path.display())]
    NoKeyInFile {
        /// The file.
        path: PathBuf,
        /// Without the key.
        problem: KeyError,
    },
    /// The command failed.
    #[error("run encryption.key_command: {problem}")]
    Command {
        /// How it ended and what it said on standard error.
        problem: String,
    },
    /// A signal came while the command ran.
    #[error("run encryption.key_command: interrupted by {0}")]
    Interrupted(nix::sys::signal::Signal),
    /// The command printed no key.
    #[error("read what encryption.key_command printed: {problem}")]
    NoKeyFromCommand {
        /// Without the key.
        problem: KeyError,
    },
}

impl Explain for KeySourceError {
    fn exit_cause(&self) -> Cause {
        match self {
            KeySourceError::File { .. } | KeySourceError::Command { .. } => Cause::Key,
            KeySourceError::Interrupted(_) => Cause::Interrupted,
            KeySourceError::Open { .. }
            | KeySourceError::Owner { .. }
            | KeySourceError::NoKeyInFile { .. }
            | KeySourceError::NoKeyFromCommand { .. } => Cause::Configuration,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            KeySourceError::File { .. } => Some(
                "encryption.key_file names it; it must be readable by the user that runs walhold".to_owned(),
            ),
            KeySourceError::Open { path, .. } => Some(format!("chmod 600 {}", path.display())),
            KeySourceError::Owner { path, .. } => {
                Some(format!("chown it: chown root {0} or chown postgres {0}", path.display()))
            }
            KeySourceError::NoKeyInFile { problem, .. } => problem.hint(),
            KeySourceError::Command { .. } => Some(
                "run it by hand as the user that runs walhold; it must print the key within 30 seconds"
                    .to_owned(),
            ),
            KeySourceError::Interrupted(_) => None,
            KeySourceError::NoKeyFromCommand { .. } => Some(
                "it must print one key per line, as walhold keygen prints them, and nothing else".to_owned(),
            ),
        }
    }
}

/// Files and a command at once: which key would write is nobody's guess.
pub(super) fn refuse_two_key_sources(effective: &Effective) -> Result<(), ConfigError> {
    match (effective.get(&schema::KEY_FILE), effective.get(&schema::KEY_COMMAND)) {
        (Some(files), Some(command)) => Err(ConfigError::Exclusive {
            first: schema::KEY_FILE.key,
            first_origin: files.origin.clone(),
            second: schema::KEY_COMMAND.key,
            second_origin: command.origin.clone(),
        }),
        _ => Ok(()),
    }
}

impl Config {
    /// Reads the keys: from the files in their order, or from the command; none of both is an empty ring.
    pub fn key_ring(&self) -> Result<KeyRing, Failure> {
        let keys = match &self.encryption.key_command {
            Some(command) => keys_from_command(command, COMMAND_DEADLINE)?,
            None => {
                let keys: Result<Vec<_>, _> =
                    self.encryption.key_files.iter().map(|path| key_from_file(path)).collect();
                keys?
            }
        };
        Ok(KeyRing::new(keys))
    }
}

fn key_from_file(path: &Path) -> Result<MasterKey, KeySourceError> {
    let unreadable =
        |error: std::io::Error| KeySourceError::File { path: path.to_owned(), problem: system_words(&error) };
    let file = File::open(path).map_err(unreadable)?;
    // The open file is asked, not the path, which may name another one by now.
    let facts = file.metadata().map_err(unreadable)?;
    if !facts.is_file() {
        return Err(KeySourceError::File { path: path.to_owned(), problem: "it is not a file".to_owned() });
    }
    let mode = facts.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeySourceError::Open { path: path.to_owned(), mode });
    }
    let user = nix::unistd::geteuid().as_raw();
    if facts.uid() != 0 && facts.uid() != user {
        return Err(KeySourceError::Owner { path: path.to_owned(), owner: facts.uid(), user });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MOST_BYTES as usize));
    file.take(MOST_BYTES).read_to_end(&mut text).map_err(unreadable)?;
    parse_key(&text).map_err(|problem| KeySourceError::NoKeyInFile { path: path.to_owned(), problem })
}

fn parse_key(text: &[u8]) -> Result<MasterKey, KeyError> {
    MasterKey::parse(std::str::from_utf8(text).map_err(|_| KeyError::Encoding)?)
}

fn keys_from_command(command: &str, deadline: Duration) -> Result<Vec<MasterKey>, KeySourceError> {
    let printed = run_key_command(command, deadline).map_err(|problem| match interrupt::requested() {
        Some(signal) => KeySourceError::Interrupted(signal),
        None => KeySourceError::Command { problem },
    })?;
    let lines = printed.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let keys: Result<Vec<_>, _> = lines.map(parse_key).collect();
    match keys {
        Ok(keys) if keys.is_empty() => {
            Err(KeySourceError::Command { problem: "it printed nothing".to_owned() })
        }
        Ok(keys) => Ok(keys),
        Err(problem) => Err(KeySourceError::NoKeyFromCommand { problem }),
    }
}

/// What the command prints on standard output; or how it failed, in words.
fn run_key_command(command: &str, deadline: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
    let until = Instant::now() + deadline;
    // A process group of its own, so that at the deadline whatever the shell started ends with it.
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| system_words(&error))?;
    let printed = read_aside(child.stdout.take());
    let said = read_aside(child.stderr.take());
    let status = wait_until(&mut child, until);
    let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(10));
    // A command that ended may have left a child behind that holds the pipe.
    let ended = status.and_then(|status| Some((status, printed.recv_timeout(left()).ok()?)));
    let Some((status, printed)) = ended else {
        end_group(&mut child);
        return Err(format!("it did not end within {} seconds", deadline.as_secs()));
    };
    if status.success() {
        return Ok(printed);
    }
    let said = said.recv_timeout(left()).unwrap_or_default();
    Err(match without_secrets(&String::from_utf8_lossy(&said)) {
        said if said.is_empty() => format!("{status}"),
        said => format!("{status}: {said}"),
    })
}

/// Reads a pipe to its end on a thread of its own, so that a full pipe never stops the command.
fn read_aside(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_BYTES as usize));
        if let Some(mut pipe) = pipe {
            let _ = pipe.by_ref().take(MOST_BYTES).read_to_end(&mut bytes);
            // The rest is drained unread: the command must be able to end.
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        let _ = sender.send(bytes);
    });
    receiver
}

fn wait_until(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    let mut pause = Duration::from_micros(200);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until && interrupt::requested().is_none() => {
                std::thread::sleep(pause)
            }
            Ok(None) | Err(_) => return None,
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn end_group(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let group = nix::unistd::Pid::from_raw(group);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// Standard error on one line, at most 300 characters, without words that look like keys.
fn without_secrets(said: &str) -> String {
    let looks_like_a_key = |word: &str| {
        word.len() >= 32 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte))
    };
    let words: Vec<&str> = said
        .split_whitespace()
        .map(|word| if looks_like_a_key(word) { super::redact::HIDDEN } else { word })
        .collect();
    words.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_output_is_what_it_prints() {
        let printed = run_key_command("printf abc", Duration::from_secs(10)).unwrap();
        assert_eq!(printed.as_slice(), b"abc");
    }

    #[test]
    fn a_failing_commands_words_are_shown_without_keys() {
        let key = "0123456789abcdef0123456789abcdef";
        let problem =
            run_key_command(&format!("echo no {key} >&2; exit 3"), Duration::from_secs(10)).unwrap_err();
        assert_eq!(problem, "exit status: 3: no (hidden)");
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let started = Instant::now();
        let problem = run_key_command("sleep 60 & sleep 60", Duration::from_millis(300)).unwrap_err();
        assert!(problem.starts_with("it did not end within"), "{problem}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_command_that_prints_without_end_is_cut() {
        let printed = run_key_command("yes | head -c 1000000", Duration::from_secs(10)).unwrap();
        assert_eq!(printed.len(), 4096);
    }
}
