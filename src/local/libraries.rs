//! The libraries that decide how text is sorted: glibc and ICU.
//!
//! In: a running server's process, or its program. Out: versions as the libraries' files have them, or nothing where they cannot be seen.
//! Indexes on text are sorted by these libraries' rules; another version may sort differently, and an index that was sorted by the old rules then misses rows.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The part of ICU that collates; its file is called `libicui18n.so.72.1`.
const ICU_LIBRARY: &str = "libicui18n.so.";

/// `2.36`: what the collations of a server depend on, if it runs on this machine's libraries.
pub fn glibc_version() -> Option<String> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.trim().strip_prefix("glibc ")?;
    output.status.success().then(|| version.to_owned())
}

/// `72.1`: the ICU that a process has loaded, as its memory map names the file. `None` too where another user's process may not be looked at.
pub fn icu_of_process(pid: u32) -> Option<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    maps.lines().find_map(|line| icu_version(Path::new(line.get(line.find('/')?..)?)))
}

/// `72.1`: the ICU that a program would load here. `None` if it uses none, or has it built in.
pub fn icu_of_program(program: &Path) -> Option<String> {
    let output = Command::new("ldd").arg(program).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let library = text.lines().find(|line| line.trim_start().starts_with(ICU_LIBRARY))?;
    // `libicui18n.so.72 => /lib/x86_64-linux-gnu/libicui18n.so.72 (0x00007f…)`
    let path = PathBuf::from(library.split_whitespace().find(|word| word.starts_with('/'))?);
    // The name that programs ask for is a link to the file that has the whole version in its name.
    icu_version(&path.canonicalize().unwrap_or(path))
}

fn icu_version(library: &Path) -> Option<String> {
    let version = library.file_name()?.to_str()?.strip_prefix(ICU_LIBRARY)?;
    let is_version = version.starts_with(|c: char| c.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_digit() || c == '.');
    is_version.then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_stands_in_the_files_name() {
        let version = |path: &str| icu_version(Path::new(path));
        assert_eq!(version("/usr/lib/x86_64-linux-gnu/libicui18n.so.72.1").as_deref(), Some("72.1"));
        assert_eq!(version("/usr/lib/libicui18n.so.60").as_deref(), Some("60"));
        for other in
            ["/usr/lib/libicuuc.so.72.1", "/usr/lib/libicui18n.so.72.1 (deleted)", "/usr/lib/libicui18n.so."]
        {
            assert_eq!(version(other), None, "{other}");
        }
    }

    #[test]
    fn what_uses_no_icu_has_none() {
        assert_eq!(icu_of_process(std::process::id()), None);
        assert_eq!(icu_of_program(Path::new("/bin/sh")), None);
        assert_eq!(icu_of_program(Path::new("/nowhere/postgres")), None);
        assert!(glibc_version().is_some_and(|version| version.starts_with("2.")));
    }
}
