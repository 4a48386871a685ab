//! The files that walhold needs beside the server's: who may read and write them.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{AccessFlags, access, geteuid};

use super::Findings;
use super::server::Server;
use crate::agent::client;
use crate::codec::KeyRing;
use crate::config::Config;
use crate::error::system_words;

const AS_SERVER: &str = "run walhold check as the user that PostgreSQL runs as";

/// Looks at them; the keys, if they can be had.
pub fn look(config: &Config, server: Option<&Server>, findings: &mut Findings) -> Option<KeyRing> {
    let pgdata = server.and_then(|server| server.pgdata.as_deref()).or(config.pgdata.as_deref());
    if let Some(pgdata) = pgdata {
        look_at_pgdata(pgdata, findings);
    }
    let keys = look_at_keys(config, findings);
    look_at_state(&config.state_dir, findings);
    look_at_socket(&config.agent_socket, findings);
    keys
}

fn look_at_pgdata(pgdata: &Path, findings: &mut Findings) {
    let facts =
        match pgdata.metadata().and_then(|facts| std::fs::read_dir(pgdata.join("base")).map(|_| facts)) {
            Ok(facts) => facts,
            Err(error) => {
                findings.bad(
                    "data directory",
                    format!("{} cannot be read: {}", pgdata.display(), system_words(&error)),
                    AS_SERVER,
                );
                return;
            }
        };
    let mode = facts.permissions().mode() & 0o7777;
    if mode & 0o027 != 0 {
        findings.bad(
            "data directory",
            format!("{} is open to others (mode {mode:04o})", pgdata.display()),
            format!("chmod 700 {}: PostgreSQL does not start otherwise", pgdata.display()),
        );
    } else {
        findings.ok(
            "data directory",
            format!("{} can be read, by its owner alone (mode {mode:04o})", pgdata.display()),
        );
    }
    let user = geteuid().as_raw();
    if user != facts.uid() {
        findings.warning(
            "user",
            format!("this check runs as user {user}, the server as user {}: what one may do tells little about the other", facts.uid()),
            AS_SERVER,
        );
    }
}

fn look_at_keys(config: &Config, findings: &mut Findings) -> Option<KeyRing> {
    match config.key_ring() {
        Ok(keys) if config.encryption.encrypts() => {
            findings.ok("encryption key", "the encryption key can be read, by its owner alone");
            Some(keys)
        }
        Ok(keys) => {
            findings.ok("encryption key", "none is configured: new objects are not encrypted");
            Some(keys)
        }
        Err(failure) => {
            findings.add("encryption key", super::Level::Bad, failure.message.clone(), failure.hint);
            None
        }
    }
}

fn look_at_state(directory: &Path, findings: &mut Findings) {
    // It is made when it is first needed.
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    let mode = existing.metadata().map(|facts| facts.permissions().mode()).unwrap_or(0);
    if access(existing, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        findings.warning(
            "state directory",
            format!("{} cannot be written: notes are not kept, and every WAL push takes longer", directory.display()),
            "make it for the server's user: install -d -o postgres -m 700 /var/lib/walhold; or set WALHOLD_STATE_DIR",
        );
    } else if existing == directory && mode & 0o022 != 0 {
        findings.bad(
            "state directory",
            format!(
                "{} can be written by others (mode {:04o}): a forged note could pass for an archived segment",
                directory.display(),
                mode & 0o7777
            ),
            format!("chmod 700 {}", directory.display()),
        );
    } else {
        findings.ok("state directory", format!("{} can be written", directory.display()));
    }
}

fn look_at_socket(socket: &Path, findings: &mut Findings) {
    let Ok(facts) = socket.symlink_metadata() else {
        findings.ok("agent", "no agent runs here: WAL is archived without one");
        return;
    };
    let mode = facts.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        findings.bad(
            "agent",
            format!("its socket {} is open to others (mode {mode:04o})", socket.display()),
            "stop the agent, remove the socket, start the agent: it makes it with mode 0600",
        );
        return;
    }
    match client::status(socket) {
        Ok(status) if status.version == env!("CARGO_PKG_VERSION") => {
            findings.ok("agent", format!("an agent answers at {}, process {}", socket.display(), status.pid));
        }
        Ok(status) => findings.warning(
            "agent",
            format!(
                "the agent is walhold {}, this is {}: WAL is archived without it",
                status.version,
                env!("CARGO_PKG_VERSION")
            ),
            "restart the agent after an update",
        ),
        Err(error) => findings.warning(
            "agent",
            format!(
                "no agent answers at {}: {}; WAL is archived without it",
                socket.display(),
                system_words(&error)
            ),
            "start the agent (systemctl start walhold-agent), or remove the socket if there shall be none",
        ),
    }
}
