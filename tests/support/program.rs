//! The walhold binary under test, where the server's user can run it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use super::postgres::installation::{self, ServerUser};

/// A copy of the binary that every user can execute: the build directory may lie below a home directory that only
/// its owner can enter.
pub fn walhold() -> &'static Path {
    static COPY: OnceLock<(PathBuf, File)> = OnceLock::new();
    &COPY.get_or_init(|| copy_of(Path::new(env!("CARGO_BIN_EXE_walhold")))).0
}

/// The copy, and the lock that says that this process uses it.
fn copy_of(built: &Path) -> (PathBuf, File) {
    let facts = fs::metadata(built).unwrap_or_else(|e| panic!("{}: {e}", built.display()));
    let copies = installation::cache_directory().join("walhold");
    let version = format!("{}-{}.{:09}", facts.len(), facts.mtime(), facts.mtime_nsec());
    let copy = copies.join(&version).join("walhold");
    let _lock = installation::lock("walhold");
    if !copy.exists() {
        remove_old_copies(&copies);
        installation::create_open_directory(copy.parent().expect("the copy lies in a directory"));
        let part = copy.with_extension("part");
        fs::copy(built, &part)
            .unwrap_or_else(|e| panic!("copy {} to {}: {e}", built.display(), part.display()));
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).expect("make the copy executable");
        fs::rename(&part, &copy).expect("publish the copy");
    }
    let used = use_of(&copy).expect("open the copy's lock");
    used.lock_shared().expect("lock the copy");
    (copy, used)
}

fn use_of(copy: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(copy.with_extension("used"))
}

/// Binaries of builds of an hour ago that no test run uses any more.
fn remove_old_copies(copies: &Path) {
    let Ok(entries) = fs::read_dir(copies) else { return };
    for entry in entries.flatten() {
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| SystemTime::now().duration_since(t).ok());
        let is_old = age.is_some_and(|age| age > Duration::from_secs(3600));
        if is_old && use_of(&entry.path().join("walhold")).is_ok_and(|used| used.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// `walhold` as the server's user would run it, with nothing of this process's environment but PATH.
pub fn walhold_command() -> Command {
    let mut command = ServerUser::get().command(walhold());
    command.current_dir("/");
    command
}

/// What a finished command printed, for messages of failed assertions.
pub fn describe(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits until a process stands still at the place where `WALHOLD_TEST_STOP_AT` stops it.
#[track_caller]
pub fn wait_stopped(process: nix::unistd::Pid) {
    let begun = std::time::Instant::now();
    while !std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| stat.contains(") T ")) {
        assert!(begun.elapsed() < super::postgres::PATIENCE, "it does not stop");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
