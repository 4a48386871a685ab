//! Recovery: how fast PostgreSQL replays a backlog that comes through restore_command, one call a segment.
//!
//! Every way recovers its own copy of one base backup up to the same position and then shuts down.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::backlog::{Backlog, Way};
use crate::cluster::{BIN, Cluster, as_postgres};
use crate::tools::{Bench, Store};

/// A base backup from before the backlog, and where recovery ends.
pub struct Replay {
    base: PathBuf,
    target: String,
}

impl Replay {
    /// Takes the base backup; the backlog is written after it.
    pub fn base_backup(cluster: &Cluster, into: &Path) -> PathBuf {
        let socket = cluster.socket.display().to_string();
        let words =
            ["-h", &socket, "-p", "54999", "-D", &into.display().to_string(), "-X", "stream", "-c", "fast"];
        as_postgres(&cluster.socket, &format!("{BIN}/pg_basebackup"), &words);
        into.to_owned()
    }

    /// Recovery of `base` up to the end of the backlog.
    pub fn new(base: PathBuf, cluster: &Cluster, backlog: &Backlog) -> Replay {
        let last = backlog.segments.last().expect("a backlog has segments");
        // A little before its end: the record that stops recovery must be in the archive.
        let target = cluster.sql(&format!(
            "SELECT pg_lsn('0/0') + (('x' || substr('{last}', 9, 8))::bit(32)::bigint * 4294967296 \
             + ('x' || substr('{last}', 17, 8))::bit(32)::bigint * 16777216 + 16000000)"
        ));
        Replay { base, target }
    }

    /// Recovers once by each way, and once with `cp` from local files.
    pub fn run(&self, bench: &Bench, cluster: &Cluster, backlog: &Backlog) {
        println!("\n## Recovery of {} segments, {:?}\n", backlog.segments.len(), bench.store);
        let by_copy = format!("cp {}/%f %p", cluster.data.join("pg_wal").display());
        let reference = self.recover(bench, "cp", &by_copy);
        println!("{:<18}{reference:>7.2} s", "cp");
        // The agent keeps the same windows; pgBackRest wants a configuration for each recovering directory.
        let ways = Way::all(&bench.store).into_iter();
        for way in ways.filter(|way| matches!(way, Way::WalholdAlone | Way::WalRusDaemon)) {
            let own = bench.fresh(way.name(), cluster);
            let call = own.fetch(way.tool(), cluster, "%f", "%p");
            let seconds = self.recover(bench, way.name(), &own.as_command(&call));
            println!("{:<18}{seconds:>7.2} s  {:.2} x cp", way.name(), seconds / reference);
        }
    }

    fn recover(&self, bench: &Bench, name: &str, restore_command: &str) -> f64 {
        let store = match bench.store {
            Store::Directory => "directory",
            Store::S3(_) => "s3",
        };
        let data = bench.root.join(format!("replay-{store}-{}", name.replace(' ', "-")));
        let path = data.display().to_string();
        as_postgres(&bench.root, "cp", &["-a", &self.base.display().to_string(), &path]);
        let settings = format!(
            "port = 54998\narchive_mode = off\nrestore_command = '{}'\nrecovery_target_lsn = '{}'\nrecovery_target_action = 'shutdown'\n",
            restore_command.replace('\'', "''"),
            self.target
        );
        let file = data.join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&file).expect("read postgresql.auto.conf") + &settings;
        std::fs::write(&file, text).expect("write postgresql.auto.conf");
        let signal = data.join("recovery.signal");
        std::fs::write(&signal, "").expect("write recovery.signal");
        crate::cluster::give_to_postgres(&signal);
        nix::unistd::sync();
        let log = std::fs::File::create(bench.root.join(format!("replay-{store}-{name}.log")))
            .expect("create a log");
        let started = Instant::now();
        let status = Command::new("setpriv")
            .args([
                "--reuid=postgres",
                "--regid=postgres",
                "--init-groups",
                &format!("{BIN}/postgres"),
                "-D",
                &path,
            ])
            .current_dir(&bench.root)
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .status()
            .expect("start postgres");
        let seconds = started.elapsed().as_secs_f64();
        let text = std::fs::read_to_string(bench.root.join(format!("replay-{store}-{name}.log")))
            .unwrap_or_default();
        assert!(
            status.success() && text.contains("recovery stopping"),
            "recovery through {name} ended with {status}: {}",
            text.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
        );
        std::fs::remove_dir_all(&data).expect("remove the recovered cluster");
        seconds
    }
}
