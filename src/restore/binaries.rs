//! The server programs that `--start` runs: found, and of the backup's major version.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::RestoreError;

/// A directory with `postgres` and `pg_ctl` of the right major version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerBinaries {
    /// The directory.
    pub directory: PathBuf,
    /// `postgres --version`, less the product's name: `15.18 (Debian 15.18-0+deb12u1)`.
    pub version: String,
}

/// Finds the programs: in `named` (`--pg-bin`) and nowhere else if it is given; else where Debian installs this major version, where
/// `pg_config` says, and in PATH.
pub fn find_binaries(major: u32, named: Option<&Path>) -> Result<ServerBinaries, RestoreError> {
    if let Some(directory) = named {
        let version = version_of(directory).map_err(|problem| {
            RestoreError::refused(
                problem,
                format!("--pg-bin names the directory with postgres and pg_ctl of PostgreSQL {major}"),
            )
        })?;
        return match major_of(&version) {
            Some(found) if found == major => Ok(ServerBinaries { directory: directory.to_owned(), version }),
            _ => Err(RestoreError::refused(
                format!(
                    "{} is PostgreSQL {version}, the backup is of PostgreSQL {major}",
                    directory.join("postgres").display()
                ),
                format!("name the directory of PostgreSQL {major}'s programs with --pg-bin"),
            )),
        };
    }
    for directory in usual_directories(major) {
        if let Ok(version) = version_of(&directory)
            && major_of(&version) == Some(major)
        {
            return Ok(ServerBinaries { directory, version });
        }
    }
    Err(RestoreError::refused(
        format!(
            "the programs of PostgreSQL {major} are not found (in /usr/lib/postgresql/{major}/bin, by pg_config, in PATH)"
        ),
        "install them, or name their directory with --pg-bin",
    ))
}

fn usual_directories(major: u32) -> Vec<PathBuf> {
    let mut directories = vec![
        PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
        PathBuf::from(format!("/usr/pgsql-{major}/bin")),
    ];
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        directories.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    directories.extend(std::env::split_paths(&path));
    directories
}

/// `15.18 (Debian …)`, or why it is not known.
fn version_of(directory: &Path) -> Result<String, String> {
    let program = directory.join("postgres");
    let output = Command::new(&program).arg("--version").output().map_err(|error| {
        format!("run {} --version: {}", program.display(), crate::error::system_words(&error))
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().strip_prefix("postgres (PostgreSQL) ");
    version
        .map(str::to_owned)
        .ok_or_else(|| format!("{} --version does not answer like PostgreSQL", program.display()))
}

/// `15` of `15.18`, `18` of `18beta1`.
fn major_of(version: &str) -> Option<u32> {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::error::Explain;

    #[test]
    fn another_majors_programs_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("postgres");
        std::fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 16.4'\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_binaries(16, Some(directory.path())).unwrap().version, "16.4");
        let error = find_binaries(15, Some(directory.path())).unwrap_err();
        assert_eq!(
            (error.to_string(), error.hint().unwrap()),
            (
                format!("{} is PostgreSQL 16.4, the backup is of PostgreSQL 15", program.display()),
                "name the directory of PostgreSQL 15's programs with --pg-bin".to_owned()
            )
        );
        let error = find_binaries(15, Some(Path::new("/nowhere"))).unwrap_err();
        assert_eq!(error.to_string(), "run /nowhere/postgres --version: No such file or directory");
    }

    #[test]
    fn majors_are_read_from_every_kind_of_version() {
        assert_eq!(major_of("15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_of("19beta1"), Some(19));
        assert_eq!(major_of("devel"), None);
    }
}
