//! `check`: a sound set-up is healthy, and each thing that can be wrong is found and told with the next step.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use support::archive::{Run, contents, run};
use support::fault_proxy::{Fault, FaultProxy};
use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, copy_tree};
use support::program::walhold_command;
use support::site::Site;
use support::stores::{ACCESS_KEY, BUCKET, Conditions, S3Server, SECRET_KEY};

/// A report and the exit status.
struct Report {
    json: Value,
    run: Run,
}

impl Report {
    fn of(command: &mut Command) -> Report {
        let run = run(command);
        let json = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("no JSON: {run:?}"));
        Report { json, run }
    }

    fn findings(&self) -> &[Value] {
        self.json["findings"].as_array().expect("findings")
    }

    #[track_caller]
    fn finding(&self, check: &str) -> &Value {
        let found = self.findings().iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("no finding {check}: {:#}", self.json))
    }

    /// Asserts how one thing is, that these words say so, and that what is not right comes with a hint.
    #[track_caller]
    fn says(&self, check: &str, level: &str, words: &str) {
        let finding = self.finding(check);
        assert_eq!(finding["level"], level, "{check}: {finding:#}");
        let text = finding["text"].as_str().expect("a text");
        assert!(text.contains(words), "{check} says {text:?}, not {words:?}");
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(finding["hint"].is_string(), level != "ok", "{check}: {finding:#}");
        let is_bad = self.findings().iter().any(|finding| finding["level"] == "bad");
        assert_eq!(self.json["healthy"], !is_bad);
        assert_eq!(self.run.status, Some(if is_bad { 4 } else { 0 }), "{:?}", self.run);
    }
}

/// What is asked again and again leaves the WAL alone.
fn asked(site: &Site, arguments: &[&str]) -> Report {
    Report::of(&mut site.command(&[&["check", "--json", "--no-wal-round-trip"], arguments].concat()))
}

fn reload(site: &Site, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        site.cluster.execute(&format!("ALTER SYSTEM SET {name} = '{}'", value.replace('\'', "''")));
    }
    let stamp = site.cluster.value("SELECT pg_conf_load_time()");
    site.cluster.execute("SELECT pg_reload_conf()");
    site.cluster.wait_for("the reload", &format!("SELECT pg_conf_load_time() > '{stamp}'"));
}

#[test]
fn a_sound_set_up_is_healthy() {
    let site = Site::start(Cluster::builder(17).checksums(true).setting("summarize_wal", "on"));
    // The tests' servers have it off.
    reload(&site, &[("fsync", "on")]);
    let segment = site.cluster.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let report = Report::of(&mut site.command(&["check", "--json"]));
    for (check, words) in [
        ("server", "PostgreSQL 17."),
        ("version", "PostgreSQL 17 is supported"),
        ("role", "role postgres may take backups"),
        ("wal_level", "replica"),
        ("archive_mode", "on"),
        ("archive_command", " wal-push into this repository"),
        ("archive_timeout", "1 min 0 s"),
        ("archiver", " was archived "),
        ("backlog", "0 files"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("summarize_wal", "on"),
        ("data directory", "mode 0700"),
        ("encryption key", "not encrypted"),
        ("state directory", "can be written"),
        ("agent", "no agent runs here"),
        ("repository", "is a walhold repository"),
        ("round trip", " ms"),
        ("absence", "says plainly"),
        ("create-only", "refuses to replace"),
        ("deletion", "may delete"),
        ("server's clock", "agree"),
        ("store's clock", "agree"),
        ("cluster", "is this server's"),
        ("newest backup", "can be opened"),
        ("WAL round trip", &format!("{segment} was archived and read back")),
    ] {
        report.says(check, "ok", words);
    }
    assert_eq!(report.findings().len(), 26, "{:#}", report.json);
    assert!(report.finding("WAL round trip")["text"].as_str().expect("text").ends_with("what is in pg_wal"));
    let litter: Vec<String> = contents(&site.directory.join("repository"))
        .into_keys()
        .filter(|path| path.contains(".walhold-tmp"))
        .collect();
    assert!(litter.is_empty(), "{litter:?}");

    let text = site.walhold(&["check", "--no-wal-round-trip"]);
    text.expect_success();
    let lines: Vec<&str> = text.stdout.lines().collect();
    assert!(
        lines.iter().any(|line| line.starts_with("ok       wal_level         wal_level is replica")),
        "{text:?}"
    );
    assert_eq!(lines.last(), Some(&"healthy"));
    assert!(!text.stdout.contains("WAL round trip"), "{text:?}");
}

#[test]
fn every_supported_server_is_understood() {
    for major in [14, 16, 18] {
        let site = Site::start(Cluster::builder(major).wal_segment_mib(1));
        let report = Report::of(&mut site.command(&["check", "--json"]));
        report.says("version", "ok", &format!("PostgreSQL {major} is supported"));
        report.says("role", "ok", "may take backups");
        report.says("WAL round trip", "ok", "byte for byte what is in pg_wal");
        assert_eq!(report.json["healthy"], true, "{:#}", report.json);
    }
}

#[test]
fn settings_that_cost_data_are_found() {
    let site = Site::start(Cluster::builder(15));
    let report = asked(&site, &[]);
    report.says("data_checksums", "warning", "go into backups unnoticed");
    report.says("fsync", "warning", "fsync is off");
    reload(&site, &[("full_page_writes", "off"), ("archive_timeout", "0")]);
    let report = asked(&site, &[]);
    report.says("full_page_writes", "bad", "torn pages");
    report.says("archive_timeout", "warning", "archive_timeout is 0");
    for (timeout, words) in
        [("50", "more than half of status.max_archive_age"), ("300", "longer than status.max_archive_age")]
    {
        reload(&site, &[("archive_timeout", timeout)]);
        let mut command = site.command(&["check", "--json", "--no-wal-round-trip"]);
        let report = Report::of(command.env("WALHOLD_STATUS_MAX_ARCHIVE_AGE", "90s"));
        report.says("archive_timeout", "warning", words);
        assert_eq!(report.finding("archive_timeout")["hint"], "set archive_timeout = 45");
    }
    let text = site.walhold(&["check", "--no-wal-round-trip"]);
    assert_eq!(text.status, Some(4), "{text:?}");
    assert!(text.stdout.ends_with("\nunhealthy\n"), "{text:?}");
    assert!(text.error_line().starts_with("unhealthy: full_page_writes is off: "), "{text:?}");
}

#[test]
fn servers_that_do_not_archive_are_found() {
    for (setting, value, check, words) in [
        ("archive_mode", "off", "archive_mode", "nothing is archived"),
        ("wal_level", "minimal", "wal_level", "wal_level is minimal"),
    ] {
        let mut site = Site::start(Cluster::builder(15));
        site.cluster.configure("archive_mode", "off");
        site.cluster.configure("max_wal_senders", "0");
        site.cluster.configure(setting, value);
        site.cluster.restart();
        asked(&site, &[]).says(check, "bad", words);
    }
}

#[test]
fn an_archive_command_that_is_not_this_one_is_found() {
    let site = Site::start(Cluster::builder(15));
    let program = walhold_command().get_program().to_string_lossy().into_owned();
    let configuration = site.directory.join("walhold.toml").display().to_string();
    let elsewhere = site.cluster.directory("elsewhere");
    let copy = elsewhere.join("walhold");
    fs::copy(&program, &copy).expect("copy walhold");
    let copy = copy.display().to_string();
    for (command, level, words) in [
        (String::new(), "bad", "archive_command is empty"),
        ("cp %p /archive/%f".to_owned(), "warning", "not simply walhold wal-push"),
        (format!("{program} --config {configuration} wal-push"), "bad", "%p is missing"),
        (format!("{program} wal-push %p"), "warning", "archive_command names no repository"),
        (
            format!("{program} --config {configuration} --repository file:///srv/other wal-push %p"),
            "bad",
            "archive_command archives into file:///srv/other, cluster main, but",
        ),
        (
            format!("WALHOLD_CLUSTER=other {program} --config {configuration} wal-push %p"),
            "bad",
            "cluster other, but",
        ),
        (
            format!("{program} --config /nowhere/walhold.toml wal-push %p"),
            "bad",
            "own settings cannot be used",
        ),
        (
            format!("WALHOLD_COLOUR=red {program} --config {configuration} wal-push %p"),
            "bad",
            "WALHOLD_COLOUR",
        ),
        (
            format!("/nowhere/walhold --config {configuration} wal-push %p"),
            "bad",
            "/nowhere/walhold, which is not there",
        ),
        (
            format!("{copy} --config {configuration} wal-push %p"),
            "warning",
            "another file than the one that runs now",
        ),
        (format!("{program} --config={configuration} wal-push '%p'"), "ok", "into this repository"),
    ] {
        reload(&site, &[("archive_command", &command)]);
        let report = asked(&site, &[]);
        // The server's environment can be seen from here, and says nothing.
        let (level, words) = match words {
            "archive_command names no repository" => {
                ("bad", "archive_command archives into no repository at all")
            }
            _ => (level, words),
        };
        report.says("archive_command", level, words);
    }
    reload(&site, &[("archive_library", "basic_archive")]);
    asked(&site, &[]).says("archive_command", "bad", "archive_library is basic_archive");
}

#[test]
fn wal_that_does_not_arrive_is_found() {
    let site = Site::start(Cluster::builder(15).wal_segment_mib(1));
    // It says that it has archived, and has not.
    reload(&site, &[("archive_command", "true")]);
    let mut command = site.command(&["check", "--json"]);
    // What the archiver may take is fixed; what an upload may take is not.
    command.env("WALHOLD_WAL_PUSH_DEADLINE", "1s");
    let report = Report::of(&mut command);
    report.says("WAL round trip", "bad", "PostgreSQL reports no failure: archive_command archives elsewhere");

    reload(&site, &[("archive_command", "false")]);
    for _ in 0..12 {
        site.cluster.switch_wal();
    }
    let fails = "SELECT failed_count > 3 FROM pg_stat_archiver";
    site.cluster.wait_for("the archiver to fail", fails);
    let report = Report::of(&mut site.command(&["check", "--json"]));
    report.says("archiver", "bad", " fails, ");
    report.says("backlog", "warning", " files in pg_wal wait for the archiver");
    report.says("WAL round trip", "bad", " fails");
}

#[test]
fn roles_directories_and_servers_that_do_not_fit_are_found() {
    let site = Site::start(Cluster::builder(15));
    site.cluster.execute("CREATE ROLE plain LOGIN");
    let mut command = site.command(&["check", "--json", "--no-wal-round-trip"]);
    let report = Report::of(command.env("PGUSER", "plain"));
    report.says(
        "role",
        "bad",
        "role plain may not execute pg_backup_start(text, boolean), pg_backup_stop(boolean), pg_switch_wal()",
    );
    let hint = report.finding("role")["hint"].as_str().expect("a hint");
    assert!(
        hint.starts_with("GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO plain; "),
        "{hint}"
    );

    let other = Cluster::builder(15).create();
    let report = asked(&site, &["--pgdata", &other.data_directory().display().to_string()]);
    report.says("pgdata", "bad", " belongs to system ");
    let report = asked(&site, &["--pgdata", "/nowhere"]);
    report.says("pgdata", "bad", "/nowhere/global/pg_control: No such file or directory");

    // Nobody answers: what needs no server is looked at all the same.
    let report = asked(&site, &["--connection", "host=/nowhere"]);
    report.says("server", "bad", "connect to PostgreSQL at /nowhere:5432");
    report.says("create-only", "ok", "refuses to replace");

    let standby = Cluster::standby_of(&site.cluster);
    let mut command =
        site.command(&["check", "--json", "--pgdata", &standby.data_directory().display().to_string()]);
    let report = Report::of(command.envs(standby.environment()));
    report.says("archive_mode", "warning", "after a promotion nothing would be archived");
    report.says("WAL round trip", "ok", "left out");
}

#[test]
fn files_that_others_may_touch_are_found() {
    let site = Site::start(Cluster::builder(15));
    let data = site.cluster.data_directory().to_owned();
    let mode = |path: &std::path::Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("change the mode");
    };
    mode(&data, 0o755);
    asked(&site, &[]).says("data directory", "bad", "is open to others (mode 0755)");
    mode(&data, 0o700);

    let state = site.directory.join("state");
    fs::create_dir_all(&state).expect("the state directory");
    ServerUser::get().own(&state);
    mode(&state, 0o777);
    asked(&site, &[]).says("state directory", "bad", "can be written by others (mode 0777)");
    mode(&state, 0o500);
    asked(&site, &[]).says("state directory", "warning", "cannot be written");
    mode(&state, 0o700);

    // An agent that is gone, and one that anybody may speak to.
    let socket = state.join("agent.socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    ServerUser::get().own(&socket);
    mode(&socket, 0o600);
    asked(&site, &[]).says("agent", "warning", "no agent answers at ");
    mode(&socket, 0o666);
    asked(&site, &[]).says("agent", "bad", "is open to others (mode 0666)");

    let key = site.directory.join("key");
    let made = run(walhold_command().arg("keygen"));
    fs::write(&key, made.stdout).expect("write a key");
    ServerUser::get().own(&key);
    mode(&key, 0o644);
    let with_key = || {
        let mut command = site.command(&[
            "check",
            "--json",
            "--no-wal-round-trip",
            "--pgdata",
            &data.display().to_string(),
        ]);
        Report::of(command.env("WALHOLD_ENCRYPTION_KEY_FILE", &key))
    };
    with_key().says("encryption key", "bad", "is open to others than its owner (mode 0644)");
    mode(&key, 0o600);
    let report = with_key();
    report.says("encryption key", "ok", "can be read");
    // The backup that is there was not encrypted with it.
    report.says("newest backup", "bad", "is not encrypted, although a key is configured");
    report.says("archive_command", "warning", "other encryption keys");
}

#[test]
fn a_repository_that_is_not_this_server_s_is_found() {
    let site = Site::start(Cluster::builder(15));
    let report = asked(&site, &["--repository", "file:///nowhere/at/all"]);
    report.says("repository", "bad", "no walhold repository at file:///nowhere/at/all");
    let report = asked(&site, &["--cluster", "unknown"]);
    report.says("cluster", "warning", "nothing was ever archived under the name unknown");
    report.says("newest backup", "warning", "there is no backup");
    let identity = site.repository("identity");
    let own = fs::read_dir(&identity).expect("list").flatten().next().expect("one").path();
    fs::rename(&own, identity.join("7000000000000000001.json")).expect("make it another's");
    asked(&site, &[]).says(
        "cluster",
        "bad",
        "belongs to another cluster: system 7000000000000000001, this server is ",
    );
    fs::copy(identity.join("7000000000000000001.json"), &own).expect("both");
    asked(&site, &[]).says("cluster", "warning", "2 clusters archive under the name main");
}

#[test]
fn a_store_that_cannot_be_relied_on_is_found() {
    let server = S3Server::start(Conditions::Enforced);
    let proxy = FaultProxy::start(server.addr());
    let check = |endpoint: std::net::SocketAddr, verb: &str| {
        let mut command = walhold_command();
        command
            .env("WALHOLD_REPOSITORY", format!("s3://{BUCKET}/prefix"))
            .env("AWS_ENDPOINT_URL", format!("http://{endpoint}"))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("PGHOST", "/nowhere")
            .args([verb, "--json"]);
        command
    };
    run(&mut check(proxy.addr(), "init")).expect_success();
    let look = || Report::of(&mut check(proxy.addr(), "check"));
    let report = look();
    report.says("server", "bad", "connect to PostgreSQL");
    for finding in ["repository", "round trip", "absence", "create-only", "deletion", "store's clock"] {
        report.says(finding, "ok", "");
    }
    // Credentials without the right to list.
    proxy.set_matching("HEAD /bucket/prefix/.walhold-tmp/", 1, Fault::Status(403));
    let report = look();
    report.says("absence", "bad", "a recovery to the end of WAL would never end");
    let hint = report.finding("absence")["hint"].as_str().expect("a hint").to_owned();
    assert!(hint.contains("s3:ListBucket"), "{hint}");
    proxy.set_matching("DELETE ", usize::MAX, Fault::Status(403));
    let report = look();
    report.says("deletion", "ok", "may not delete objects");
    report.says("create-only", "ok", "refuses to replace");
    proxy.set_matching("PUT ", usize::MAX, Fault::Status(403));
    look().says("create-only", "bad", "the store refuses: HTTP 403");
    proxy.set_matching("HEAD ", usize::MAX, Fault::Delay(std::time::Duration::from_millis(600)));
    look().says("round trip", "warning", "the store answers in 0.6");
    proxy.set(Fault::None);

    // The same repository behind a server that replaces what lies there.
    let lax = S3Server::start(Conditions::Ignored);
    copy_tree(&server.bucket_directory().join("prefix"), &lax.bucket_directory().join("prefix"), &|_| false);
    let report = Report::of(&mut check(lax.addr(), "check"));
    report.says("create-only", "bad", "it refused to when the repository was created");
}
