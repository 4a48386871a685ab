//! The command line: help, usage errors with the status that each reader understands, closed outputs, panics,
//! signals, and the documented table of statuses.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use walhold::exit_status::{Cause, StatusRule};

const SEGMENT: &str = "000000010000000000000001";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walhold"));
    // An empty file in place of one that this machine may have in /etc.
    command.env_clear().env("WALHOLD_CONFIG", "/dev/null").args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("run walhold")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("walhold prints UTF-8")
}

/// Runs through a shell, which knows how to close a descriptor.
fn shell(script: &str) -> Output {
    Command::new("/bin/sh")
        .env_clear()
        .env("WALHOLD_CONFIG", "/dev/null")
        .env("WALHOLD", env!("CARGO_BIN_EXE_walhold"))
        .args(["-c", script])
        .output()
        .expect("run a shell")
}

#[test]
fn help_of_every_command() {
    let commands = [
        "",
        "init",
        "wal-push",
        "wal-fetch",
        "wal-show",
        "wal-verify",
        "backup-push",
        "backup-list",
        "backup-show",
        "backup-mark",
        "status",
        "verify",
        "expire",
        "restore",
        "config",
        "keygen",
    ];
    for name in commands {
        let arguments: Vec<&str> = if name.is_empty() { vec!["--help"] } else { vec![name, "--help"] };
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let snapshot = if name.is_empty() { "help".to_owned() } else { format!("help_{name}") };
        insta::assert_snapshot!(snapshot, text(&output.stdout));
    }
}

#[test]
fn the_version_is_the_crates() {
    assert_eq!(text(&run(&["--version"]).stdout), concat!("walhold ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn usage_errors_end_with_the_status_that_the_reader_understands() {
    let path = format!("pg_wal/{SEGMENT}");
    for (arguments, status) in [
        (vec![], 2),
        (vec!["--nonsense"], 2),
        (vec!["wal-push"], 2),
        (vec!["wal-push", &path, "extra"], 2),
        (vec!["--nonsense", "wal-push", &path], 2),
        (vec!["wal-psuh", &path], 2),
        (vec!["wal-fetch"], 202),
        (vec!["wal-fetch", SEGMENT], 202),
        (vec!["wal-fetch", "--nonsense", SEGMENT, "x"], 202),
        (vec!["--clustre", "a", "wal-fetch", SEGMENT, "x"], 202),
        (vec!["wal-fecth", SEGMENT, "x"], 202),
        (vec!["walfetch", "00000002.history", "x"], 202),
        (vec![SEGMENT, "pg_wal/RECOVERYXLOG"], 202),
        (vec!["wal-nonsense"], 202),
        (vec!["wal-show", "--nonsense"], 2),
        (vec!["wal-verify", "--nonsense"], 2),
        (vec!["init", "--nonsense"], 2),
        (vec!["backup-push", "--nonsense"], 2),
        (vec!["backup-list", "--nonsense"], 2),
        (vec!["backup-show", "--nonsense"], 2),
        (vec!["backup-mark", "--nonsense"], 2),
        (vec!["restore", "--nonsense"], 2),
        (vec!["backup-fetch", "--nonsense"], 2),
        (vec!["config", "--nonsense"], 2),
        (vec!["keygen", "--nonsense"], 2),
        (vec!["status", "--nonsense"], 2),
        (vec!["verify", "--nonsense"], 2),
        (vec!["delete", "--nonsense"], 2),
        (vec!["expire", "--nonsense"], 2),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        let stderr = text(&output.stderr);
        assert!(
            stderr.starts_with("walhold: ERROR: ") && stderr.lines().count() == 1,
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains("  HINT: "), "{arguments:?}: {stderr}");
    }
}

#[test]
fn usage_errors_to_the_letter() {
    for (arguments, expected) in [
        (vec![], "no command is given  HINT: walhold --help lists the commands"),
        (vec!["wal-psuh", "x"], "unknown command \"wal-psuh\"  HINT: did you mean wal-push?"),
        (vec!["nonsense"], "unknown command \"nonsense\"  HINT: walhold --help lists the commands"),
        (vec!["chek"], "unknown command \"chek\"  HINT: did you mean check?"),
        (
            vec!["config", "--jsn"],
            "unexpected argument '--jsn' found  HINT: a similar argument exists: '--json'",
        ),
        (
            vec!["backup-mark", "--pin", "latest"],
            "unexpected argument '--pin' found  HINT: usage: walhold backup-mark [OPTIONS] <--permanent|--impermanent> <ID>",
        ),
        (
            vec!["wal-push"],
            "the following required arguments were not provided: <PATH>  HINT: usage: walhold wal-push <PATH>",
        ),
    ] {
        assert_eq!(text(&run(&arguments).stderr), format!("walhold: ERROR: {expected}\n"));
    }
}

#[test]
fn a_closed_standard_error_changes_no_status() {
    let path = format!("pg_wal/{SEGMENT}");
    assert_eq!(shell(&format!("\"$WALHOLD\" wal-push {path} 2>&-")).status.code(), Some(3));
    assert_eq!(shell(&format!("\"$WALHOLD\" wal-fetch {SEGMENT} x 2>&-")).status.code(), Some(203));
    assert_eq!(shell("\"$WALHOLD\" wal-fetch 2>&-").status.code(), Some(202));
    assert_eq!(shell(&format!("\"$WALHOLD\" wal-fetch {SEGMENT} x 2>/dev/full")).status.code(), Some(203));
    assert_eq!(shell(&format!("\"$WALHOLD\" wal-fetch {SEGMENT} x 0<&- 1>&- 2>&-")).status.code(), Some(203));
    let panic = format!("WALHOLD_TEST_PANIC=1 \"$WALHOLD\" wal-fetch {SEGMENT} x 2>&-");
    assert_eq!(shell(&panic).status.code(), Some(222));
}

#[test]
fn a_standard_output_that_cannot_be_written_is_a_failure() {
    let output = shell("\"$WALHOLD\" config >/dev/full");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "walhold: ERROR: write to standard output: No space left on device\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    use std::os::unix::process::ExitStatusExt;
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    drop(reader);
    let output = command(&["config"]).stdout(writer).stderr(Stdio::piped()).output().expect("run walhold");
    assert_eq!(output.status.signal(), Some(13), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_panic_is_one_line_and_the_status_of_its_command() {
    for (arguments, status) in
        [(vec!["wal-push", "x"], 22), (vec!["wal-fetch", SEGMENT, "x"], 222), (vec!["config"], 1)]
    {
        let output = command(&arguments).env("WALHOLD_TEST_PANIC", "1").output().expect("run walhold");
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let stderr = text(&output.stderr);
        assert!(
            stderr.starts_with("walhold: ERROR: internal error: asked to panic at src/main.rs:"),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

/// A run that waits for its key command, sent a signal; how it ended.
fn interrupted(arguments: &[&str], signal: Signal) -> Output {
    let data = tempfile::tempdir().expect("make a directory");
    fs::create_dir(data.path().join("global")).expect("make global");
    let control = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pg_control/15");
    let mut control = fs::read(control).expect("read the golden pg_control");
    control.resize(8192, 0);
    fs::write(data.path().join("global/pg_control"), control).expect("write pg_control");
    let started = data.path().join("started");
    // Whoever runs the tests in the background may have signals ignored, and walhold keeps it so.
    let child = Command::new("env")
        .args(["--default-signal", env!("CARGO_BIN_EXE_walhold")])
        .args(arguments)
        .env_clear()
        .env("WALHOLD_CONFIG", "/dev/null")
        .env("WALHOLD_REPOSITORY", format!("file://{}/repository", data.path().display()))
        .env("WALHOLD_ENCRYPTION_KEY_COMMAND", format!("touch {}; exec /bin/sleep 60", started.display()))
        .env("PATH", "/usr/bin:/bin")
        .current_dir(data.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run walhold");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !started.exists() {
        assert!(Instant::now() < deadline, "the key command was not run");
        std::thread::sleep(Duration::from_millis(5));
    }
    let process = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(process, signal).expect("send the signal");
    let sent = Instant::now();
    let output = child.wait_with_output().expect("wait for walhold");
    assert!(sent.elapsed() < Duration::from_secs(10), "it went on for {:?}", sent.elapsed());
    output
}

#[test]
fn an_interrupted_command_dies_by_the_signal_that_came() {
    use std::os::unix::process::ExitStatusExt;
    for (arguments, signal) in [
        (vec!["wal-fetch", SEGMENT, "RECOVERYXLOG"], Signal::SIGTERM),
        (vec!["wal-fetch", "00000002.history", "RECOVERYHISTORY"], Signal::SIGQUIT),
        (vec!["wal-show"], Signal::SIGINT),
    ] {
        let output = interrupted(&arguments, signal);
        assert_eq!(output.status.signal(), Some(signal as i32), "{output:?}");
        assert_eq!(
            text(&output.stderr),
            format!("walhold: ERROR: run encryption.key_command: interrupted by {signal}\n")
        );
    }
}

#[test]
fn failures_can_be_json() {
    for environment in [false, true] {
        let mut command = command(&["wal-fetch", SEGMENT, "x"]);
        match environment {
            true => command.env("WALHOLD_LOG_FORMAT", "json"),
            false => command.args(["--log-format", "json"]),
        };
        let output = command.output().expect("run walhold");
        assert_eq!(output.status.code(), Some(203));
        let line: serde_json::Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
        assert_eq!(line["level"], "error");
        assert_eq!(line["message"], "no repository is configured");
        assert_eq!(line["cause"], "configuration");
        assert_eq!(line["status"], 203);
        assert_eq!(line["verb"], "wal-fetch");
        assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("WALHOLD_REPOSITORY")));
        assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')));
    }
}

#[test]
fn keygen_makes_different_keys_and_replaces_none() {
    let (first, second) = (run(&["keygen"]), run(&["keygen"]));
    assert!(first.status.success() && second.status.success());
    let key = text(&first.stdout);
    assert_eq!(key.trim_end().len(), 64);
    assert!(key.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_ne!(first.stdout, second.stdout);

    let directory = tempfile::tempdir().expect("make a directory");
    let path = directory.path().join("key");
    let path_text = path.display().to_string();
    assert!(run(&["keygen", "--output", &path_text]).status.success());
    let written = fs::read(&path).expect("the key file is there");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).expect("its facts").permissions());
    assert_eq!(mode & 0o7777, 0o600);
    let again = run(&["keygen", "--output", &path_text]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(
        text(&again.stderr),
        format!(
            "walhold: ERROR: write key file {path_text}: File exists  HINT: a key file is never replaced: it may hold the only copy of a key that backups need; name another file\n"
        )
    );
    assert_eq!(fs::read(&path).expect("the key file is there"), written);
}

#[test]
fn manual_pages_and_completions_are_written() {
    let directory = tempfile::tempdir().expect("make a directory");
    let place = directory.path().join("new").display().to_string();
    assert!(run(&["man", "--out-dir", &place]).status.success());
    assert!(run(&["completions", "--out-dir", &place]).status.success());
    let mut names: Vec<String> = fs::read_dir(&place)
        .expect("the directory is there")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    for expected in
        ["walhold.1", "walhold-wal-push.1", "walhold-restore.1", "walhold.bash", "_walhold", "walhold.fish"]
    {
        assert!(names.iter().any(|name| name == expected), "{expected} is not among {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("completions") || name.contains("-man")), "{names:?}");
    let page = text(&run(&["man", "wal-fetch"]).stdout);
    assert!(page.contains(".TH walhold-wal-fetch 1"), "{page}");
    assert!(text(&run(&["completions", "bash"]).stdout).contains("backup-push"));
}

#[test]
fn the_documented_statuses_are_those_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/exit-status.md");
    let document = fs::read_to_string(path).expect("read docs/exit-status.md");
    for cause in Cause::ALL {
        let row = format!(
            "| {} | {} | {} | `{}` |",
            StatusRule::Push.status(cause),
            StatusRule::Fetch.status(cause),
            StatusRule::Operator.status(cause),
            cause.name()
        );
        assert!(document.contains(&row), "docs/exit-status.md has no row that begins with: {row}");
    }
}
