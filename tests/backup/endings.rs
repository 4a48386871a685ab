//! Backups that end early leave nothing that is listed, and what they leave is recognisable.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::site::{Home, Site};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::postgres::{Cluster, PATIENCE, StopMode};

/// A cluster whose backup, limited like this, takes long.
fn slow_site() -> Site {
    let site = Site::start(Cluster::builder(15));
    site.cluster.execute("CREATE TABLE rows AS SELECT md5(i::text) || md5((i * 3)::text) AS x FROM generate_series(1, 300000) i");
    site
}

const SLOW: [&str; 3] = ["backup-push", "--rate-limit", "500kB"];

/// Starts a slow backup and waits until it has announced itself.
fn begin(site: &Site) -> std::process::Child {
    let child =
        site.command(&SLOW).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start walhold");
    let begun = Instant::now();
    while site.objects("backups").is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the backup did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn send(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("send a signal");
}

fn assert_nothing_listed(site: &Site) {
    assert!(site.list().is_empty());
    let objects = site.objects("backups");
    assert!(
        !objects.is_empty() && objects.iter().all(|object| object.path.contains("/intent/")),
        "{objects:?}"
    );
}

fn intent(site: &Site) -> serde_json::Value {
    let objects = site.objects("backups");
    serde_json::from_slice(&site.open().read(&objects[0]).unwrap()).unwrap()
}

/// The server has no backup running once it noticed that its client has gone.
fn assert_no_backup_runs(site: &Site) {
    let sessions = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'walhold'";
    site.cluster.wait_for("the session's end", sessions);
}

#[test]
fn a_killed_backup_is_not_listed_and_the_next_one_succeeds() {
    let site = slow_site();
    let mut child = begin(&site);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_nothing_listed(&site);
    assert_eq!(intent(&site)["pid"], child.id());
    assert_no_backup_runs(&site);
    site.back_up();
    assert_eq!(site.list().len(), 1);
}

#[test]
fn sigterm_ends_a_backup_cleanly() {
    let site = slow_site();
    let child = begin(&site);
    send(&child, Signal::SIGTERM);
    // One that did not listen would end well.
    let output = child.wait_with_output().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(Signal::SIGTERM as i32));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ERROR: interrupted by a signal; no backup was made"), "{text}");
    assert_nothing_listed(&site);
    assert_no_backup_runs(&site);
}

#[test]
fn a_server_that_stops_ends_the_backup() {
    let mut site = slow_site();
    let child = begin(&site);
    // It stands still while the server stops, wherever it has come to.
    send(&child, Signal::SIGSTOP);
    site.cluster.stop(StopMode::Immediate);
    send(&child, Signal::SIGCONT);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("ERROR: the session that held the backup open was lost: "), "{text}");
    assert_nothing_listed(&site);
}

#[test]
fn a_backup_whose_wal_never_arrives_is_discarded() {
    let mut site = Site::start(Cluster::builder(15));
    site.cluster.configure("archive_command", "true");
    site.cluster.restart();
    let (status, line) = site.fails(&["backup-push", "--wal-timeout", "1500ms"]);
    assert_eq!(status, 1, "{line}");
    assert!(line.starts_with("ERROR: WAL segment 0000000100000000000000"), "{line}");
    assert!(line.contains("did not arrive in the repository within 1.5"), "{line}");
    assert!(line.contains("HINT: archive_command does not archive into file://"), "{line}");
    assert_nothing_listed(&site);

    site.cluster.configure("archive_command", "false");
    site.cluster.restart();
    site.cluster.switch_wal();
    site.cluster.wait_for("a failure", "SELECT failed_count > 0 FROM pg_stat_archiver");
    let (_, line) = site.fails(&["backup-push", "--wal-timeout", "1500ms"]);
    assert!(line.contains("fails: look at the server's log for what archive_command says"), "{line}");
}

#[test]
fn the_rate_limit_holds() {
    let site = slow_site();
    let begun = Instant::now();
    let output = site.ok(&["backup-push", "--rate-limit", "4MB", "--json"]);
    let summary: serde_json::Value = serde_json::from_str(&output).unwrap();
    let stored = summary["new_bytes"].as_f64().unwrap();
    let least = stored / (4 << 20) as f64 - 1.0;
    assert!(least > 0.5, "{stored} bytes are too few to measure");
    assert!(begun.elapsed().as_secs_f64() >= least, "{stored} bytes in {:?}", begun.elapsed());
}

/// The store has what it was sent, but its answer is lost: what lies there when it is sent again is ours.
#[test]
fn lost_answers_to_uploads_do_not_end_a_backup() {
    let mut site = Site::create_in(Home::Bucket, Cluster::builder(17));
    site.encrypt();
    site.cluster.start();
    for part in ["/intent/", "/packs/", "/manifest"] {
        let uploads = || {
            let seen = proxy(&site).seen();
            seen.iter().filter(|line| line.starts_with("PUT ") && line.contains(part)).count()
        };
        proxy(&site).set_matching(part, 1, Fault::LoseAnswer);
        site.back_up();
        // Found without being sent again; an announcement is not made under another name.
        assert_eq!(uploads(), 1, "{part}");
        proxy(&site).set(Fault::None);
    }
    assert_eq!(site.list().len(), 3);
    site.ok(&["verify", "--deep"]);
}

fn proxy(site: &Site) -> &FaultProxy {
    &site.bucket.as_ref().expect("a bucket").proxy
}
