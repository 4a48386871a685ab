//! A data directory as far as wal-push and wal-fetch look at one, a repository beside it, and walhold run in it as
//! PostgreSQL would run it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::postgres::installation::ServerUser;
use super::postgres::temporary_directory;
use super::program::{describe, walhold_command};
use super::wal_files::WalFiles;

/// Everything below one temporary directory.
pub struct Archive {
    root: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

/// How a run of walhold ended.
#[derive(Debug)]
pub struct Run {
    /// The exit status; `None` if it died by a signal.
    pub status: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: &Output) -> Run {
        use std::os::unix::process::ExitStatusExt;
        Run {
            status: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The line that a failure ends with, without the program's name in front.
    pub fn error_line(&self) -> &str {
        let errors: Vec<&str> =
            self.stderr.lines().filter_map(|line| line.strip_prefix("walhold: ERROR: ")).collect();
        match errors.as_slice() {
            [error] => error,
            _ => panic!("one error line was expected: {self:?}"),
        }
    }

    /// Asserts status and the whole error line.
    #[track_caller]
    pub fn expect_failure(&self, status: i32, line: &str) {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert_eq!(self.error_line(), line);
    }

    #[track_caller]
    pub fn expect_success(&self) {
        assert_eq!(self.status, Some(0), "{self:?}");
    }
}

impl Archive {
    /// A repository that was not initialised, and an empty data directory.
    pub fn without_repository(files: &WalFiles) -> Archive {
        let root = temporary_directory();
        let archive = Archive { root, environment: Vec::new() };
        for directory in ["data/global", "data/pg_wal", "state", "out"] {
            fs::create_dir_all(archive.path(directory)).expect("create a directory");
        }
        archive.set_control(files);
        ServerUser::get().own(archive.root.path());
        let mut archive = archive;
        archive.set("WALHOLD_REPOSITORY", &archive.url());
        archive.set("WALHOLD_STATE_DIR", &archive.path("state").display().to_string());
        archive
    }

    /// With a repository.
    pub fn new(files: &WalFiles) -> Archive {
        let archive = Archive::without_repository(files);
        archive.walhold(["init"]).expect_success();
        archive
    }

    /// Sets a variable of the environment that walhold sees.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// Makes the data directory that of another cluster.
    pub fn set_control(&self, files: &WalFiles) {
        let path = self.path("data/global/pg_control");
        fs::write(&path, &files.control).expect("write pg_control");
        ServerUser::get().own(&path);
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    /// The repository's directory.
    pub fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.repository().display())
    }

    /// Puts a file into pg_wal; its path as `%p` has it.
    pub fn offer(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path("data/pg_wal").join(name);
        fs::write(&path, bytes).expect("write a file into pg_wal");
        ServerUser::get().own(&path);
        format!("pg_wal/{name}")
    }

    /// `walhold` in the data directory, as the server's user.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = walhold_command();
        command.current_dir(self.path("data")).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn walhold<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Run {
        run(&mut self.command(arguments))
    }

    /// Offers the file and pushes it.
    pub fn push(&self, name: &str, bytes: &[u8]) -> Run {
        let path = self.offer(name, bytes);
        self.walhold(["wal-push", &path])
    }

    /// Fetches to the place that PostgreSQL names.
    pub fn fetch(&self, name: &str) -> Run {
        self.walhold(["wal-fetch", name, "pg_wal/RECOVERYXLOG"])
    }

    /// What the last fetch delivered.
    pub fn fetched(&self) -> Vec<u8> {
        fs::read(self.path("data/pg_wal/RECOVERYXLOG")).expect("read what was fetched")
    }

    /// Every object and whatever else lies in the repository.
    pub fn stored(&self) -> BTreeMap<String, Vec<u8>> {
        contents(&self.repository())
    }

    /// The path of the only stored object whose path ends so.
    pub fn stored_path(&self, ending: &str) -> PathBuf {
        let stored = self.stored();
        let found: Vec<&String> = stored.keys().filter(|path| path.ends_with(ending)).collect();
        match found.as_slice() {
            [path] => self.repository().join(path),
            _ => panic!("one object {ending} was expected among {:?}", stored.keys()),
        }
    }

    /// Names in pg_wal.
    pub fn pg_wal(&self) -> Vec<String> {
        contents(&self.path("data/pg_wal")).into_keys().collect()
    }
}

pub fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    assert!(output.status.code() != Some(101), "it panicked: {}", describe(&output));
    Run::of(&output)
}

/// Every file below a directory, hidden ones included, by relative path; empty if there is no such directory.
pub fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fn collect(root: &Path, directory: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries {
            let path = entry.expect("read a directory").path();
            if path.is_dir() {
                collect(root, &path, into);
            } else {
                let name = path.strip_prefix(root).expect("it lies below").display().to_string();
                into.insert(name, fs::read(&path).expect("read a file"));
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(directory, directory, &mut found);
    found
}
