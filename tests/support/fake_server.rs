//! A shell that looks like PostgreSQL's process, and the `wal-fetch` that it waits for.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::archive::Archive;
use super::postgres::installation::ServerUser;
use super::program::{wait_stopped, walhold};

pub struct FakeServer {
    shell: Child,
    pub fetch: Pid,
}

impl FakeServer {
    /// Asks for a file in this data directory, as a restore_command does.
    pub fn asking(archive: &Archive, name: &str) -> FakeServer {
        let program = archive.path("state/postgres");
        if !program.exists() {
            fs::copy("/bin/sh", &program).expect("copy the shell");
        }
        let mut command = ServerUser::get().command(&program);
        for (name, value) in archive.command([]).get_envs() {
            value.map(|value| command.env(name, value));
        }
        let script =
            format!("{} wal-fetch {name} pg_wal/RECOVERYXLOG & echo $!; wait $!", walhold().display());
        command.current_dir(archive.path("data")).args(["-c", &script]);
        let mut shell =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the shell");
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("its output")).read_line(&mut line).expect("a process id");
        FakeServer { shell, fetch: Pid::from_raw(line.trim().parse().expect("a process id")) }
    }

    /// The same with a `wal-fetch` that stops at this place, and has stopped.
    pub fn stopped_at(archive: &mut Archive, place: &str, name: &str) -> FakeServer {
        archive.set("WALHOLD_TEST_STOP_AT", place);
        let server = FakeServer::asking(archive, name);
        archive.unset("WALHOLD_TEST_STOP_AT");
        wait_stopped(server.fetch);
        server
    }

    /// Dies alone, as by `kill -9`, and is waited for: else its process would still be there.
    pub fn die(&mut self) {
        self.shell.kill().expect("kill the shell");
        self.shell.wait().expect("wait for it");
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.fetch, signal).expect("signal wal-fetch");
    }

    /// The status, and what `wal-fetch` said until its end.
    pub fn ended(self) -> (Option<i32>, String) {
        let output = self.shell.wait_with_output().expect("its end");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
