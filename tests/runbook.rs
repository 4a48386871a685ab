//! The runbook's own commands, taken from docs/recovery.md and run: what an operator copies at night must work as it stands.
//!
//! Only places and moments are replaced: the data directory, scratch directories, the socket and the time of the accident.
//! `pg_ctlcluster`, which knows Debian's clusters alone, is a script that calls `pg_ctl`.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use support::archive::Run;
use support::postgres::installation::{ServerUser, debian_program};
use support::postgres::{Cluster, StopMode};
use support::program::walhold;
use support::site::Site;

const RUNBOOK: &str = include_str!("../docs/recovery.md");

/// The shell blocks below a heading, without the indentation of lists.
fn blocks(heading: &str) -> Vec<String> {
    let (_, rest) = RUNBOOK.split_once(heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let section = rest.split("\n## ").next().unwrap_or(rest);
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in section.lines() {
        let text = line.trim_start();
        match &mut block {
            None if text == "```sh" => block = Some(String::new()),
            None => {}
            Some(_) if text == "```" => blocks.extend(block.take()),
            Some(block) => {
                block.push_str(line.strip_prefix("   ").unwrap_or(line));
                block.push('\n');
            }
        }
    }
    assert!(!blocks.is_empty(), "{heading} has no commands");
    blocks
}

/// A server that runs by its configuration file alone, as a service would, and what the runbook calls.
struct Night {
    site: Site,
    scratch: PathBuf,
}

impl Night {
    fn begin() -> Night {
        let site = Site::start(Cluster::builder(15));
        for (name, value) in [
            ("unix_socket_directories", site.cluster.socket_directory().display().to_string()),
            ("listen_addresses", String::new()),
        ] {
            site.cluster.configure(name, &value);
        }
        site.back_up();
        let scratch = site.cluster.directory("night");
        let night = Night { site, scratch };
        let programs = debian_program("pg_ctl").parent().expect("its directory").display().to_string();
        night.script("pg_ctlcluster", &format!(
            "#!/bin/sh\naction=$3; shift 3\nexec {programs}/pg_ctl \"$action\" -w -D '{}' -l '{}' \"$@\"\n",
            night.data().display(),
            night.scratch.join("service.log").display(),
        ));
        std::os::unix::fs::symlink(walhold(), night.scratch.join("walhold")).expect("link walhold");
        night
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.scratch.join(name);
        fs::write(&path, text).expect("write a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it a program");
    }

    fn data(&self) -> &Path {
        self.site.cluster.data_directory()
    }

    fn socket(&self) -> String {
        self.site.cluster.socket_directory().display().to_string()
    }

    /// Runs one block as the server's user; the first command that fails ends it.
    #[track_caller]
    fn run(&self, block: &str, replaced: &[(&str, &str)]) -> Run {
        let mut script = block.replace("/var/lib/postgresql/15/main", &self.data().display().to_string());
        for (from, to) in replaced {
            assert!(script.contains(from), "the runbook does not say {from:?}:\n{script}");
            script = script.replace(from, to);
        }
        let configuration = self.site.directory.join("walhold.toml");
        let programs = debian_program("pg_ctl").parent().expect("its directory").display().to_string();
        let mut command = ServerUser::get().command("/bin/bash");
        command
            .args(["-euc", &script])
            .current_dir(&self.scratch)
            .envs(self.site.cluster.environment())
            .env("WALHOLD_CONFIG", configuration)
            .env("PATH", format!("{}:{programs}:/usr/bin:/bin", self.scratch.display()));
        // A server that stays holds pipes open: into files.
        let file = |name: &str| fs::File::create(self.scratch.join(name)).expect("create a file");
        command.stdout(file("stdout")).stderr(file("stderr"));
        let status = command.status().expect("run the commands");
        let text = |name: &str| fs::read_to_string(self.scratch.join(name)).expect("read what it said");
        let run = Run { status: status.code(), signal: None, stdout: text("stdout"), stderr: text("stderr") };
        assert_eq!(run.status, Some(0), "{script}\n{}\n{}", run.stdout, run.stderr);
        run
    }

    /// What all rows are, on the server that listens on this port of the cluster's socket.
    fn rows(&self, port: u16) -> String {
        let parameters = format!("host={} port={port} user=postgres dbname=postgres", self.socket());
        let mut client = postgres::Client::connect(&parameters, postgres::NoTls).expect("connect");
        // Recovery may still be going on where nobody waited for it.
        let recovering = "SELECT pg_is_in_recovery()";
        while client.query_one(recovering, &[]).expect("ask for recovery").get(0) {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let sql = "SELECT count(*) || ' ' || coalesce(md5(string_agg(id || body, ',' ORDER BY id, body)), '') FROM items";
        client.query_one(sql, &[]).expect("digest the rows").get(0)
    }
}

impl Drop for Night {
    fn drop(&mut self) {
        for data in
            [self.data().to_owned(), self.scratch.join("rescue/main"), self.scratch.join("clean/main")]
        {
            if data.join("postmaster.pid").exists() {
                let mut stop = ServerUser::get().command(debian_program("pg_ctl"));
                let _ = stop.args(["stop", "-m", "immediate", "-D"]).arg(&data).output();
            }
        }
    }
}

#[test]
fn accidental_deletion() {
    let mut night = Night::begin();
    let moment = night.site.moment();
    night.site.cluster.execute("DELETE FROM items");
    night.site.cluster.archive_now();
    let lost = moment.rows.clone();
    let [beside, in_place] = blocks("## 1. Accidental deletion").try_into().expect("two blocks");

    let time = ("2026-11-20 22:44:59+00", moment.time.as_str());
    let rescue = night.scratch.join("rescue");
    fs::create_dir(&rescue).expect("make the clone's parent");
    ServerUser::get().own(&rescue);
    let (rescue, socket) = (rescue.display().to_string(), night.socket());
    let replaced = [
        time,
        ("/srv/rescue", rescue.as_str()),
        ("-k/tmp", &format!("-k{socket}")),
        ("-h /tmp", &format!("-h {socket}")),
        ("-t accounts app", "-t items postgres"),
    ];
    night.run(&beside, &replaced);
    let dump = fs::read_to_string(night.scratch.join("accounts.sql")).expect("the dump");
    let copied = dump.lines().skip_while(|line| !line.starts_with("COPY public.items")).skip(1);
    let copied = copied.take_while(|line| *line != "\\.").count();
    assert_eq!(copied.to_string(), lost);
    assert_eq!(night.site.cluster.value("SELECT count(*) FROM items"), "0");

    night.run(&in_place, &[time]);
    night.site.cluster.wait_ended();
    assert!(night.rows(5432).starts_with(&format!("{lost} ")), "{}", night.rows(5432));
}

#[test]
fn corruption() {
    let mut night = Night::begin();
    let id = night.site.back_up();
    night.site.moment();
    night.site.cluster.archive_now();
    let rows = night.rows(5432);
    // A backup of the damage, which must not be what is restored.
    let items = night.site.cluster.value("SELECT pg_relation_filepath('items')");
    night.site.cluster.execute("CHECKPOINT");
    fs::write(night.data().join(items), vec![0xAA; 16384]).expect("damage a table");
    night.site.back_up();
    let [commands] = blocks("## 2. Corruption").try_into().expect("one block");
    night.run(&commands, &[("20261120T020000Z-00000001-0000000A000000FE", &id)]);
    night.site.cluster.wait_ended();
    assert_eq!(night.rows(5432), rows);
}

#[test]
fn total_loss_of_the_host() {
    let mut night = Night::begin();
    night.site.moment();
    night.site.cluster.archive_now();
    let archived = night.rows(5432);
    night
        .site
        .cluster
        .execute("INSERT INTO items SELECT i, 'in the last segment' FROM generate_series(1, 100) i");
    let all = night.rows(5432);
    assert_ne!(archived, all);
    night.site.cluster.kill9();
    let data = night.data().to_owned();
    let disk = night.scratch.join("old-disk");
    fs::rename(&data, &disk).expect("lose the host");
    let [restore, with_disk, _debian, _gap] =
        blocks("## 3. Total loss of the host").try_into().expect("four blocks");
    // Nothing is left but repository, configuration and key.
    let run = night.run(&restore, &[]);
    assert!(run.stdout.contains("the end of the archive is reached"), "{run:?}");
    assert_eq!(night.rows(5432), archived);

    // The same with the old disk at hand, from the beginning: nothing at all is lost.
    night.run(&format!("pg_ctl stop -D {} -m immediate", data.display()), &[]);
    fs::remove_dir_all(&data).expect("begin again");
    for history in support::archive::contents(&night.site.repository("wal")).into_keys() {
        if history.contains("/00000002") {
            fs::remove_file(night.site.repository("wal").join(history)).expect("forget the first attempt");
        }
    }
    let disk = disk.display().to_string();
    night.run(&with_disk, &[("/mnt/old-disk/postgresql/15/main", &disk)]);
    assert_eq!(night.rows(5432), all);
}

#[test]
fn ransomware() {
    let mut night = Night::begin();
    let moment = night.site.moment();
    night.site.cluster.execute("UPDATE items SET body = 'encrypted by somebody'");
    night.site.cluster.archive_now();
    night.site.cluster.stop(StopMode::Immediate);
    let [restore, anew] = blocks("## 4. Ransomware").try_into().expect("two blocks");
    let clean = night.scratch.join("clean");
    fs::create_dir(&clean).expect("make the clone's parent");
    ServerUser::get().own(&clean);
    let clean = clean.display().to_string();
    let place = ("/srv/clean", clean.as_str());
    let run = night.run(&restore, &[("2026-11-18 03:00:00+00", &moment.time), place]);
    assert!(run.stdout.contains("target reached: "), "{run:?}");
    let rows = night.rows(5432);
    assert!(rows.starts_with(&format!("{} ", moment.rows)), "{rows}");

    let before = support::archive::contents(&night.site.directory.join("repository"));
    let etc = night.scratch.join("etc").display().to_string();
    fs::create_dir(&etc).expect("make a directory");
    ServerUser::get().own(Path::new(&etc));
    let url = format!("file://{}/another", night.scratch.display());
    ServerUser::get().own(&night.scratch);
    let program = walhold().display().to_string();
    let state = format!("state_dir = \"{etc}\"\n[repository]");
    night.run(
        &anew,
        &[
            place,
            ("/etc/walhold", &etc),
            ("s3://another-bucket/pg-main", &url),
            ("/usr/local/bin/walhold", &program),
            ("[repository]", &state),
        ],
    );
    assert_eq!(night.rows(5432), rows);
    let after = support::archive::contents(&night.site.directory.join("repository"));
    assert!(before.keys().eq(after.keys()), "the old repository was written to");
    let backups = support::archive::contents(&night.scratch.join("another/main/backups"));
    assert_eq!(backups.keys().filter(|path| path.ends_with("/manifest")).count(), 1, "{:?}", backups.keys());
}
