//! Does `archive_command` run this walhold, and into this repository?
//!
//! The command's text is read as far as it is simple, and its settings are loaded as its own process would load them: from its flags and
//! variables, the server's environment where that can be seen, and its configuration file.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::server::Server;
use super::shell_words::words;
use super::{Findings, Level};
use crate::config::schema::{DEFAULT_FILE, SETTINGS};
use crate::config::{Config, Sources};
use crate::local::postmaster::noted_process;
use crate::repository::display_url;

const CHECK: &str = "archive_command";
const RIGHT: &str =
    "archive_command = 'walhold wal-push %p', with walhold's absolute path and --config where it needs them";

/// What a command that runs `wal-push` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct PushCommand {
    variables: Vec<(OsString, OsString)>,
    program: String,
    config: Option<PathBuf>,
    flags: Vec<(&'static str, OsString)>,
    /// Whether the file that PostgreSQL means is named.
    names_file: bool,
}

/// Looks at the setting.
pub fn look(server: &Server, config: &Config, findings: &mut Findings) {
    let library = server.setting("archive_library");
    if !library.is_empty() {
        findings.bad(
            CHECK,
            format!("archive_library is {library}: PostgreSQL archives through it and not through walhold"),
            "set archive_library = '' and archive_command = 'walhold wal-push %p', and reload the server",
        );
        return;
    }
    let Some(text) = server.settings.get("archive_command") else {
        findings.warning(
            CHECK,
            "the server does not show archive_command to this role",
            "GRANT pg_read_all_settings to it; the WAL round trip shows whether it works",
        );
        return;
    };
    if text.is_empty() || text == "(disabled)" {
        findings.bad(CHECK, "archive_command is empty: nothing is archived", format!("set {RIGHT}"));
        return;
    }
    match read(text) {
        Some(command) if command.names_file => judge(&command, server, config, findings),
        Some(_) => findings.bad(
            CHECK,
            format!("archive_command is \"{text}\": it does not say which file, %p is missing"),
            format!("set {RIGHT}"),
        ),
        None => findings.warning(
            CHECK,
            format!("archive_command is \"{text}\", which is not simply walhold wal-push: what it does cannot be told from here"),
            format!("the WAL round trip shows whether it archives into this repository; plainly: {RIGHT}"),
        ),
    }
}

/// `None` if the command is not `walhold wal-push` with settings around it.
fn read(text: &str) -> Option<PushCommand> {
    let mut command = PushCommand::default();
    let mut words = words(text)?.into_iter().peekable();
    while let Some((name, value)) = words.peek().and_then(|word| assignment(word)) {
        command.variables.push((name.into(), value.replace("%%", "%").into()));
        words.next();
    }
    command.program = words.next()?.replace("%%", "%");
    let mut verb = false;
    while let Some(word) = words.next() {
        match word.strip_prefix("--") {
            Some(flag) => {
                let (flag, value) = match flag.split_once('=') {
                    Some((flag, value)) => (flag.to_owned(), value.to_owned()),
                    None => (flag.to_owned(), words.next()?),
                };
                let value = value.replace("%%", "%");
                if flag == "config" {
                    command.config = Some(PathBuf::from(value));
                } else {
                    let known = SETTINGS.iter().filter_map(|setting| setting.flag);
                    let known = known.into_iter().find(|known| known.trim_start_matches("--") == flag)?;
                    command.flags.push((known, value.into()));
                }
            }
            None if word == "wal-push" && !verb => verb = true,
            None if word == "%p" && verb => command.names_file = true,
            None => return None,
        }
    }
    verb.then_some(command)
}

fn assignment(word: &str) -> Option<(String, String)> {
    let (name, value) = word.split_once('=')?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then(|| (name.to_owned(), value.to_owned()))
}

fn judge(command: &PushCommand, server: &Server, config: &Config, findings: &mut Findings) {
    let environment = server.pgdata.as_deref().and_then(environment_of_server);
    let is_known = environment.is_some();
    let mut variables = environment.unwrap_or_default();
    let path = variables.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
    variables.retain(|(name, _)| !command.variables.iter().any(|(own, _)| own == name));
    variables.extend(command.variables.iter().cloned());
    let sources = Sources {
        flags: command.flags.clone(),
        config_flag: command.config.clone(),
        variables,
        default_file: Some(PathBuf::from(DEFAULT_FILE)),
    };
    let its = match Config::load(&sources) {
        Ok(its) => its,
        Err(error) => {
            let failure = crate::error::Failure::from(error);
            findings.add(
                CHECK,
                Level::Bad,
                format!("archive_command's own settings cannot be used: {failure}"),
                failure.hint,
            );
            return;
        }
    };
    let place = |config: &Config| format!("{}, cluster {}", display_url(&config.repository), config.cluster);
    if its.repository.url.is_empty() && !is_known {
        findings.warning(
            CHECK,
            "archive_command names no repository: the server's environment must, and cannot be seen from here",
            "let archive_command name the file: walhold --config /etc/walhold/walhold.toml wal-push %p",
        );
    } else if its.repository.url != config.repository.url || its.cluster != config.cluster {
        let elsewhere =
            if its.repository.url.is_empty() { "no repository at all".to_owned() } else { place(&its) };
        findings.bad(
            CHECK,
            format!("archive_command archives into {elsewhere}, but these settings mean {}", place(config)),
            "let both read the same configuration file (--config, WALHOLD_CONFIG)",
        );
    } else if its.encryption.key_files != config.encryption.key_files
        || its.encryption.key_command != config.encryption.key_command
    {
        findings.warning(
            CHECK,
            "archive_command archives into this repository, but with other encryption keys than these settings have",
            "let both read the same configuration file (--config, WALHOLD_CONFIG)",
        );
    } else {
        judge_program(&command.program, path, server, findings);
    }
}

/// Whether the program is this one. Only where the server is on this machine.
fn judge_program(program: &str, path: Option<OsString>, server: &Server, findings: &mut Findings) {
    let works = format!("archive_command runs {program} wal-push into this repository");
    if server.pgdata.is_none() {
        findings.ok(CHECK, works);
        return;
    }
    let found = match program.contains('/') {
        true => Some(PathBuf::from(program)).filter(|program| program.exists()),
        false => {
            let path =
                path.unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
            std::env::split_paths(&path)
                .map(|directory| directory.join(program))
                .find(|program| program.exists())
        }
    };
    let Some(found) = found else {
        findings.bad(
            CHECK,
            format!("archive_command runs {program}, which is not there"),
            "name the program by its absolute path, as the server sees it",
        );
        return;
    };
    let identity = |path: &Path| path.metadata().ok().map(|facts| (facts.dev(), facts.ino()));
    let own = std::env::current_exe().ok();
    match own.as_deref().and_then(identity) == identity(&found) {
        true => findings.ok(CHECK, works),
        false => findings.warning(
            CHECK,
            format!(
                "{works}, which is another file than the one that runs now ({})",
                own.map(|own| own.display().to_string()).unwrap_or_default()
            ),
            "after an update make sure that both are of one version",
        ),
    }
}

/// The postmaster's environment; `None` if it cannot be seen.
fn environment_of_server(pgdata: &Path) -> Option<Vec<(OsString, OsString)>> {
    let environment = std::fs::read(format!("/proc/{}/environ", noted_process(pgdata)?)).ok()?;
    let variable = |bytes: &[u8]| {
        let at = bytes.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (bytes.get(..at)?, bytes.get(at + 1..)?);
        Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
    };
    Some(environment.split(|byte| *byte == 0).filter_map(variable).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_command_is_read_with_its_settings() {
        let command = read(
            "WALHOLD_CLUSTER='a b' X=1 /opt/walhold --config=/etc/w.toml --repository file:///r wal-push %p",
        );
        let command = command.expect("it is one");
        assert_eq!(command.program, "/opt/walhold");
        assert_eq!(command.variables, [("WALHOLD_CLUSTER".into(), "a b".into()), ("X".into(), "1".into())]);
        assert_eq!(command.config.as_deref(), Some(Path::new("/etc/w.toml")));
        assert_eq!(command.flags, [("--repository", "file:///r".into())]);
        assert!(command.names_file);
        assert!(!read("walhold wal-push").expect("it is one").names_file);
        for other in
            ["cp %p /archive/%f", "walhold wal-push %p && true", "walhold --what x wal-push %p", "walhold"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
