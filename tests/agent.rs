//! `walhold agent`: what it does for wal-push and wal-fetch, and that nobody depends on it.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::archive::{Archive, Run, contents};
use support::fault_proxy::{Fault, FaultProxy};
use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, StopMode};
use support::program::{describe, walhold, walhold_command};
use support::stores::{ACCESS_KEY, BUCKET, Conditions, S3Server, SECRET_KEY};
use support::wal_files::{WalFiles, default_files, small_files};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent; killed when dropped.
struct Agent {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Agent {
    fn start(archive: &Archive) -> Agent {
        Agent::start_with(archive, &[])
    }

    fn start_with(archive: &Archive, environment: &[(&str, &str)]) -> Agent {
        let mut command = archive.command(["agent"]);
        command.current_dir("/").envs(environment.iter().copied());
        // A pipe that nobody reads would stop it when it is full.
        let said = fs::File::create(archive.path("agent.log")).expect("create its log");
        let child = command.stdout(Stdio::null()).stderr(said).spawn().expect("start the agent");
        let agent =
            Agent { child, socket: archive.path("state/agent.socket"), log: archive.path("agent.log") };
        // Its name is there a moment before it listens.
        agent.wait_for("the agent", || UnixStream::connect(&agent.socket).is_ok());
        agent
    }

    fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "{what} did not come");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal the agent");
    }

    /// Waits until it has ended; its exit status and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        while self.child.try_wait().expect("wait for the agent").is_none() {
            assert!(begun.elapsed() < PATIENCE, "the agent did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let said = fs::read_to_string(&self.log).expect("read its log");
        (self.child.wait().expect("its status").code(), said)
    }

    fn memory(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.trim().trim_end_matches("kB").trim().parse().expect("a number")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mark_waiting(archive: &Archive, name: &str, bytes: &[u8]) {
    let status = archive.path("data/pg_wal/archive_status");
    fs::create_dir_all(&status).unwrap();
    fs::write(status.join(format!("{name}.ready")), "").unwrap();
    archive.offer(name, bytes);
    ServerUser::get().own(&status);
}

/// As PostgreSQL does when the file is archived.
fn mark_done(archive: &Archive, name: &str) {
    let status = archive.path("data/pg_wal/archive_status");
    fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done"))).unwrap();
}

fn push(archive: &Archive, name: &str) -> Run {
    archive.walhold(["wal-push", &format!("pg_wal/{name}")])
}

fn was_by_agent(run: &Run, name: &str) -> bool {
    run.status == Some(0) && run.stderr.contains(&format!("INFO: archived {name} by the agent: "))
}

#[track_caller]
fn is_stored(archive: &Archive, name: &str, bytes: &[u8]) {
    archive.fetch(name).expect_success();
    assert!(archive.fetched() == bytes, "{name} came back different");
}

fn status(archive: &Archive) -> serde_json::Value {
    let run = archive.walhold(["agent", "status", "--json"]);
    run.expect_success();
    serde_json::from_str(&run.stdout).expect("JSON")
}

/// Segments of 1 MiB (or of the given files' size) that follow each other.
fn synthetic(files: &WalFiles, count: u64, random: usize) -> Vec<(String, Vec<u8>)> {
    let first = files.segment(0);
    let number = u64::from_str_radix(&first[16..], 16).unwrap();
    let size = files.bytes(first).len() as u64;
    let mut bytes = files.bytes(first).to_vec();
    let mut state = 1_u64;
    for page in bytes[8192..].chunks_mut(8192) {
        for byte in &mut page[..random] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
    }
    let of = |n: u64| {
        let mut bytes = bytes.clone();
        bytes[8..16].copy_from_slice(&((number + n) * size).to_le_bytes());
        let last = bytes.len() - 8;
        bytes[last..].copy_from_slice(&n.to_le_bytes());
        (format!("{}{:08X}", &first[..16], number + n), bytes)
    };
    (0..count).map(of).collect()
}

#[test]
fn it_archives_what_is_asked_and_what_waits() {
    let archive = Archive::new(small_files());
    let agent = Agent::start(&archive);
    let segments = synthetic(small_files(), 20, 0);
    for (name, bytes) in &segments {
        mark_waiting(&archive, name, bytes);
    }
    assert!(was_by_agent(&push(&archive, &segments[0].0), &segments[0].0));
    agent.wait_for("look-ahead", || {
        archive.stored().keys().filter(|path| path.contains("/00000001/")).count() == 20
    });
    mark_done(&archive, &segments[0].0);
    for (name, _) in &segments[1..] {
        let run = push(&archive, name);
        assert!(was_by_agent(&run, name) && run.stderr.contains("by the agent: ahead"), "{run:?}");
        mark_done(&archive, name);
    }
    for (name, bytes) in &segments {
        is_stored(&archive, name, bytes);
    }
    // What is no segment goes the same way.
    let files = small_files();
    for name in
        files.names(".history").into_iter().chain(files.names(".partial")).chain(files.names(".backup"))
    {
        archive.offer(name, files.bytes(name));
        assert!(was_by_agent(&push(&archive, name), name));
    }
    let status = status(&archive);
    assert_eq!(status["archives"][0]["cluster"], "main");
    assert_eq!(status["archives"][0]["failures"], 0);
    assert!(status["archives"][0]["ahead"].as_u64().unwrap() >= 19, "{status}");
    let text = archive.walhold(["agent", "status"]);
    assert!(text.stdout.contains("last asked"), "{text:?}");
}

#[test]
fn what_it_refuses_is_refused_in_the_same_words() {
    let files = small_files();
    let archive = Archive::new(files);
    let _agent = Agent::start(&archive);
    let segment = files.segment(0);
    archive.offer(segment, files.bytes(segment));
    assert!(was_by_agent(&push(&archive, segment), segment));
    let mut other = files.bytes(segment).to_vec();
    let last = other.len() - 1;
    other[last] ^= 1;
    archive.offer(segment, &other);
    let run = push(&archive, segment);
    assert_eq!(run.status, Some(9), "{run:?}");
    assert!(run.error_line().contains("holds other content under this name"), "{run:?}");
    assert_eq!(archive.push(segment, &other[..1000]).status, Some(7));
    assert_eq!(status(&archive)["archives"][0]["failures"], 1);
}

#[test]
fn what_is_known_of_a_file_says_nothing_of_another_one_under_its_name() {
    let files = small_files();
    let archive = Archive::new(files);
    let agent = Agent::start(&archive);
    let [first, second, third] = [0, 1, 2].map(|n| files.segment(n));
    for name in [first, second, third] {
        mark_waiting(&archive, name, files.bytes(name));
    }
    assert!(was_by_agent(&push(&archive, first), first));
    agent.wait_for("look-ahead", || archive.stored().len() == 5);
    // Rewritten in place; restored from a copy.
    let mut other = files.bytes(second).to_vec();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(archive.path("data/pg_wal").join(second), &other).unwrap();
    assert_eq!(push(&archive, second).status, Some(9));
    fs::remove_file(archive.path("data/pg_wal").join(third)).unwrap();
    archive.offer(third, files.bytes(third));
    let run = push(&archive, third);
    assert!(run.stderr.contains("by the agent: already archived with the same content"), "{run:?}");
}

#[test]
fn a_kill_at_any_moment_costs_nothing_but_time() {
    let files = small_files();
    let names = [0, 1, 2].map(|n| files.segment(n));
    for place in [
        "agent: asked",
        "push: mid-write",
        "agent: after publish",
        "agent: before answer",
        "agent: after one ahead",
    ] {
        let archive = Archive::new(files);
        for name in names {
            mark_waiting(&archive, name, files.bytes(name));
        }
        let agent = Agent::start_with(&archive, &[("WALHOLD_TEST_KILL_AT", place)]);
        for name in names {
            push(&archive, name).expect_success();
            archive.stored_path(name);
        }
        assert_eq!(agent.end().0, None, "{place}: the agent was not killed");
        for name in names {
            is_stored(&archive, name, files.bytes(name));
        }
        // Its place is taken by the next one.
        let _agent = Agent::start(&archive);
        let segment = files.segment(3);
        archive.offer(segment, files.bytes(segment));
        let begun = Instant::now();
        while !was_by_agent(&push(&archive, segment), segment) {
            assert!(begun.elapsed() < PATIENCE, "{place}: the next agent does not answer");
        }
    }
}

#[test]
fn one_that_hangs_is_passed_over_in_bounded_time() {
    let files = small_files();
    let archive = Archive::new(files);
    let agent = Agent::start(&archive);
    agent.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    let segment = files.segment(0);
    let run = archive.push(segment, files.bytes(segment));
    run.expect_success();
    assert!(run.stderr.contains("INFO: without the agent: it does not answer"), "{run:?}");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    is_stored(&archive, segment, files.bytes(segment));
    agent.signal(Signal::SIGCONT);
}

#[test]
fn one_that_takes_no_questions_any_more_is_passed_over_at_once() {
    let files = small_files();
    let archive = Archive::new(files);
    let socket = archive.path("state/agent.socket");
    // As after many calls to one that hangs: its queue is full.
    let listener = UnixListener::bind(&socket).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    ServerUser::get().own(&socket);
    let segment = files.segment(0);
    let mut full = false;
    for _ in 0..4 {
        let begun = Instant::now();
        let run = archive.push(segment, files.bytes(segment));
        run.expect_success();
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
        full |= run.stderr.contains("it takes no more questions: it hangs");
    }
    assert!(full, "the queue was never full");
    drop(listener);
    let run = archive.push(segment, files.bytes(segment));
    assert!(run.stderr.contains("nobody listens there any more"), "{run:?}");
}

#[test]
fn variables_that_lead_nowhere_do_not_keep_anybody_from_it() {
    let files = small_files();
    let (_server, _proxy, mut archive) = cloud(files);
    archive.set("WALHOLD_WAL_PUSH_DEADLINE", "30s");
    let _agent = Agent::start(&archive);
    archive.set("AWS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt");
    archive.set("AWS_PAGER", "");
    let segment = files.segment(0);
    archive.offer(segment, files.bytes(segment));
    assert!(was_by_agent(&push(&archive, segment), segment));
    // One that it does not have and that the client reads is another matter.
    archive.set("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false");
    let run = push(&archive, segment);
    let why = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST is not set in the agent's environment";
    assert!(run.stderr.contains(&format!("WARNING: without the agent: {why}")), "{run:?}");
    assert_eq!(status(&archive)["last_refusal"]["why"], why);
}

#[test]
fn one_with_other_settings_is_not_used() {
    let files = small_files();
    let mut archive = Archive::new(files);
    let _agent = Agent::start(&archive);
    let other = format!("file://{}", archive.path("other").display());
    archive.set("WALHOLD_REPOSITORY", &other);
    archive.walhold(["init"]).expect_success();
    let segment = files.segment(0);
    let run = archive.push(segment, files.bytes(segment));
    assert!(run.stderr.contains("WARNING: without the agent: the agent has other settings"), "{run:?}");
    assert!(contents(&archive.path("other")).keys().any(|path| path.ends_with(segment)));
    assert!(!archive.stored().keys().any(|path| path.ends_with(segment)));
    let status = status(&archive);
    assert_eq!(
        (&status["refused"], &status["last_refusal"]["why"]),
        (&1.into(), &"the agent has other settings".into())
    );
    let text = archive.walhold(["agent", "status"]);
    assert!(text.stdout.contains("1 questions were not answered"), "{text:?}");
}

#[test]
fn whoever_else_listens_there_acknowledges_nothing() {
    let files = small_files();
    let archive = Archive::new(files);
    let socket = archive.path("state/agent.socket");
    let segment = files.segment(0);
    let answers = [
        "{\"archived\":{\"name\":\"000000010000000000000099\",\"how\":\"not yours\"}}\n",
        "{\"archived\":{\"name\":\"",
        "\"done\"\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "",
    ];
    for answer in answers {
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        ServerUser::get().own(&socket);
        let impostor = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            let _ = (&stream).write_all(answer.as_bytes());
        });
        let run = archive.push(segment, files.bytes(segment));
        run.expect_success();
        assert!(!run.stderr.contains("by the agent"), "{answer:?}: {run:?}");
        archive.stored_path(segment);
        impostor.join().unwrap();
    }
}

#[test]
fn it_serves_several_clusters() {
    let files = small_files();
    let mut archive = Archive::new(files);
    let _agent = Agent::start(&archive);
    let segment = files.segment(0);
    for cluster in ["blue", "green"] {
        archive.set("WALHOLD_CLUSTER", cluster);
        archive.offer(segment, files.bytes(segment));
        assert!(was_by_agent(&push(&archive, segment), segment));
        assert!(
            archive
                .stored()
                .keys()
                .any(|path| path.starts_with(&format!("{cluster}/wal/")) && path.ends_with(segment))
        );
    }
    assert_eq!(status(&archive)["archives"].as_array().unwrap().len(), 2);
}

#[test]
fn it_tells_systemd_and_ends_in_good_order() {
    let files = small_files();
    let archive = Archive::new(files);
    let notified = archive.path("out/notify");
    let systemd = UnixDatagram::bind(&notified).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    ServerUser::get().own(&notified);
    let agent = Agent::start_with(&archive, &[("NOTIFY_SOCKET", &notified.display().to_string())]);
    let heard = || {
        let mut buffer = [0; 64];
        let length = systemd.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(heard(), "READY=1");
    // A second one does not take its place.
    let second = archive.walhold(["agent"]);
    assert_eq!(second.status, Some(1), "{second:?}");
    assert!(second.error_line().contains("another agent listens there"), "{second:?}");
    let segment = files.segment(0);
    archive.offer(segment, files.bytes(segment));
    assert!(was_by_agent(&push(&archive, segment), segment));
    agent.signal(Signal::SIGTERM);
    assert_eq!(heard(), "STOPPING=1");
    let (code, said) = agent.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the agent ended"), "{said}");
    assert!(!archive.path("state/agent.socket").exists());
    let run = archive.walhold(["agent", "status"]);
    assert_eq!(run.status, Some(4), "{run:?}");
    push(&archive, segment).expect_success();
}

#[test]
fn it_keeps_windows_and_takes_them_with_it() {
    let archive = Archive::new(small_files());
    let segments = synthetic(small_files(), 12, 0);
    let agent = Agent::start(&archive);
    for (name, bytes) in &segments {
        archive.offer(name, bytes);
        push(&archive, name).expect_success();
        fs::remove_file(archive.path("data/pg_wal").join(name)).unwrap();
    }
    fs::write(archive.path("data/recovery.signal"), "").unwrap();
    let window = archive.path("data/pg_wal/.walhold");
    let mut ready = 0;
    for (name, bytes) in &segments[..8] {
        let run = archive.fetch(name);
        run.expect_success();
        ready += usize::from(run.stderr.contains("which was ready"));
        assert!(archive.fetched() == *bytes);
        agent.wait_for("the window", || window.join("socket").exists());
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(ready >= 5, "only {ready} of 8 were ready");
    assert_eq!(status(&archive)["windows"].as_array().unwrap().len(), 1);
    // It was the agent, and no process of its own.
    fs::remove_file(archive.path("data/recovery.signal")).unwrap();
    agent.wait_for("the end of the window", || !window.exists());
    fs::write(archive.path("data/recovery.signal"), "").unwrap();
    archive.fetch(&segments[0].0).expect_success();
    agent.wait_for("the window", || window.exists());
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.end().0, Some(0));
    assert!(!window.exists());
}

fn was_fetched_by_agent(run: &Run, name: &str) -> bool {
    run.status == Some(0) && run.stderr.contains(&format!("INFO: fetched {name} by the agent: "))
}

fn litter(archive: &Archive) -> Vec<String> {
    let names = fs::read_dir(archive.path("data/pg_wal")).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("walhold") || name.starts_with("RECOVERY")).collect()
}

#[test]
fn it_fetches_what_is_asked_and_proves_what_is_not_there() {
    let files = small_files();
    let archive = Archive::new(files);
    for (name, bytes) in &files.files {
        archive.push(name, bytes).expect_success();
    }
    let mut agent = Agent::start(&archive);
    for (name, bytes) in &files.files {
        let run = archive.fetch(name);
        assert!(was_fetched_by_agent(&run, name), "{run:?}");
        assert!(archive.fetched() == *bytes, "{name} came back different");
        assert_eq!(litter(&archive), ["RECOVERYXLOG"]);
    }
    assert_eq!(status(&archive)["fetched"], files.files.len());
    let absent = archive.fetch("0000000A.history");
    assert_eq!(absent.status, Some(1), "{absent:?}");
    assert!(absent.stderr.contains("0000000A.history is not in the archive"), "{absent:?}");
    // A damaged object is told by whoever looks at it alone.
    let object = archive.stored_path(files.segment(0));
    let mut bytes = fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&object, bytes).unwrap();
    let run = archive.fetch(files.segment(0));
    assert_eq!(run.status, Some(214), "{run:?}");
    // Without its marker it is no repository any more: nothing is called absent.
    fs::remove_file(archive.repository().join("walhold.json")).unwrap();
    assert_eq!(archive.fetch("0000000A.history").status, Some(210));
    assert!(agent.child.try_wait().unwrap().is_none());
}

#[test]
fn a_fetch_survives_whatever_the_agent_does() {
    let files = small_files();
    let [first, second] = [0, 1].map(|n| files.segment(n));
    let fetch_both = |archive: &Archive, what: &str| {
        for name in [first, second] {
            let begun = Instant::now();
            let run = archive.fetch(name);
            run.expect_success();
            assert!(archive.fetched() == files.bytes(name), "{what}: {name} came back different");
            assert!(begun.elapsed() < Duration::from_secs(6), "{what}: {:?}", begun.elapsed());
            assert_eq!(litter(archive), ["RECOVERYXLOG"], "{what}");
        }
    };
    let stored = || {
        let archive = Archive::new(files);
        [first, second].iter().for_each(|name| archive.push(name, files.bytes(name)).expect_success());
        archive
    };
    for place in ["agent: asked", "agent: fetched", "agent: before answer"] {
        let archive = stored();
        let agent = Agent::start_with(&archive, &[("WALHOLD_TEST_KILL_AT", place)]);
        fetch_both(&archive, place);
        assert_eq!(agent.end().0, None, "{place}: the agent was not killed");
    }
    let mut archive = stored();
    let agent = Agent::start(&archive);
    agent.signal(Signal::SIGSTOP);
    fetch_both(&archive, "hung");
    agent.signal(Signal::SIGCONT);
    archive.set("WALHOLD_COMPRESSION_LEVEL", "3");
    fetch_both(&archive, "other settings");
    assert_eq!(status(&archive)["last_refusal"]["why"], "the agent has other settings");
}

#[test]
fn an_agent_that_wakes_late_changes_nothing() {
    let files = small_files();
    let (_server, proxy, archive) = cloud(files);
    let segment = files.segment(0);
    archive.push(segment, files.bytes(segment)).expect_success();
    let agent = Agent::start(&archive);
    assert!(was_fetched_by_agent(&archive.fetch(segment), segment));
    proxy.set_matching(segment, 1, Fault::Delay(Duration::from_millis(1500)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            agent.wait_for("the agent's request", || proxy.requests() > 0);
            agent.signal(Signal::SIGSTOP);
        });
        let begun = Instant::now();
        let run = archive.fetch(segment);
        run.expect_success();
        assert!(run.stderr.contains("without the agent: it does not answer"), "{run:?}");
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    });
    assert!(archive.fetched() == files.bytes(segment));
    fs::remove_file(archive.path("data/pg_wal/RECOVERYXLOG")).unwrap();
    agent.signal(Signal::SIGCONT);
    // Its own fetch is over when it answers again after that.
    agent.wait_for("the agent's fetch", || status(&archive)["fetched"] == 2);
    assert!(litter(&archive).is_empty(), "{:?}", litter(&archive));
}

#[test]
fn an_outage_is_never_an_absence_through_the_agent() {
    let files = small_files();
    let (_server, proxy, mut archive) = cloud(files);
    archive.set("WALHOLD_WAL_FETCH_DEADLINE", "2s");
    archive.set("WALHOLD_WAL_HISTORY_DEADLINE", "2s");
    let segment = files.segment(0);
    archive.push(segment, files.bytes(segment)).expect_success();
    let _agent = Agent::start(&archive);
    assert!(was_fetched_by_agent(&archive.fetch(segment), segment));
    assert_eq!(archive.fetch("00000009.history").status, Some(1));
    for (fault, expected) in [(Fault::Status(503), 213), (Fault::Status(403), 211), (Fault::Refuse, 213)] {
        proxy.set(fault);
        for name in [segment, "00000009.history", "0000000100000000000000FF"] {
            let run = archive.fetch(name);
            assert_eq!(run.status, Some(expected), "{fault:?} {name}: {run:?}");
        }
    }
    proxy.set(Fault::None);
    assert_eq!(archive.fetch("00000009.history").status, Some(1));
}

#[test]
fn whoever_else_listens_there_delivers_nothing_wrong() {
    let files = small_files();
    let archive = Archive::new(files);
    let socket = archive.path("state/agent.socket");
    let segment = files.segment(0);
    archive.push(segment, files.bytes(segment)).expect_success();
    let answers = [
        format!("{{\"fetched\":{{\"name\":\"{segment}\",\"length\":1048576,\"stored_length\":9}}}}\n"),
        format!("{{\"fetched\":{{\"name\":\"{segment}\",\"length\":0,\"stored_length\":9}}}}\n"),
        "{\"absent\":{\"name\":\"000000010000000000000099\",\"later\":null}}\n".to_owned(),
        "{\"archived\":{\"name\":\"x\",\"how\":\"y\"}}\n".to_owned(),
        "{\"fetched\":{".to_owned(),
        String::new(),
    ];
    for answer in answers {
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        ServerUser::get().own(&socket);
        let said = answer.clone();
        let impostor = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            let _ = (&stream).write_all(said.as_bytes());
        });
        let run = archive.fetch(segment);
        run.expect_success();
        assert!(!run.stderr.contains("by the agent"), "{answer:?}: {run:?}");
        assert!(archive.fetched() == files.bytes(segment), "{answer:?}");
        assert_eq!(litter(&archive), ["RECOVERYXLOG"], "{answer:?}");
        impostor.join().unwrap();
    }
}

/// An S3 server and a proxy before it.
fn cloud(files: &WalFiles) -> (S3Server, FaultProxy, Archive) {
    let server = S3Server::start(Conditions::Enforced);
    let proxy = FaultProxy::start(server.addr());
    let mut archive = Archive::without_repository(files);
    archive.set("WALHOLD_REPOSITORY", &format!("s3://{BUCKET}/prefix"));
    archive.set("AWS_ENDPOINT_URL", &format!("http://{}", proxy.addr()));
    archive.set("AWS_REGION", "us-east-1");
    archive.set("AWS_ACCESS_KEY_ID", ACCESS_KEY);
    archive.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    archive.set("WALHOLD_WAL_PUSH_DEADLINE", "4s");
    archive.walhold(["init"]).expect_success();
    (server, proxy, archive)
}

#[test]
fn an_outage_is_told_and_a_repository_that_changed_gets_no_acknowledgement() {
    let files = small_files();
    let (server, proxy, mut archive) = cloud(files);
    let agent = Agent::start(&archive);
    // Only the agent has the secret.
    archive.unset("AWS_SECRET_ACCESS_KEY");
    let [first, second, third] = [0, 1, 2].map(|n| files.segment(n));
    archive.offer(first, files.bytes(first));
    assert!(was_by_agent(&push(&archive, first), first));
    proxy.set(Fault::Status(503));
    archive.offer(second, files.bytes(second));
    let run = push(&archive, second);
    assert_eq!(run.status, Some(13), "{run:?}");
    proxy.set(Fault::None);
    assert!(was_by_agent(&push(&archive, second), second));
    // Another endpoint is another repository.
    archive.set("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    archive.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    archive.offer(third, files.bytes(third));
    let run = push(&archive, third);
    assert_eq!(run.status, Some(13), "{run:?}");
    assert!(run.stderr.contains("AWS_ENDPOINT_URL has another value in the agent's environment"), "{run:?}");
    archive.set("AWS_ENDPOINT_URL", &format!("http://{}", proxy.addr()));

    // Not even what is known to have been stored is acknowledged when the repository is gone.
    let fourth = files.segment(3);
    mark_waiting(&archive, third, files.bytes(third));
    mark_waiting(&archive, fourth, files.bytes(fourth));
    assert!(was_by_agent(&push(&archive, third), third));
    let stored = || contents(&server.bucket_directory());
    agent.wait_for("look-ahead", || stored().keys().any(|path| path.ends_with(fourth)));
    let marker = stored().into_keys().find(|path| path.ends_with("prefix/walhold.json"));
    fs::remove_file(server.bucket_directory().join(marker.unwrap())).unwrap();
    std::thread::sleep(Duration::from_secs(11));
    let run = push(&archive, fourth);
    assert_eq!(run.status, Some(10), "{run:?}");
}

#[test]
fn a_long_request_is_waited_for() {
    let files = small_files();
    let (_server, proxy, archive) = cloud(files);
    let _agent = Agent::start(&archive);
    proxy.set_matching("PUT ", 1, Fault::Delay(Duration::from_millis(3500)));
    let segment = files.segment(0);
    archive.offer(segment, files.bytes(segment));
    let run = push(&archive, segment);
    assert!(was_by_agent(&run, segment), "{run:?}");
}

#[test]
fn its_memory_is_bounded_while_a_backlog_drains() {
    let files = default_files();
    let (server, _proxy, mut archive) = cloud(files);
    archive.set("AWS_ENDPOINT_URL", &format!("http://{}", server.addr()));
    archive.set("WALHOLD_WAL_PUSH_DEADLINE", "60s");
    let agent = Agent::start(&archive);
    let before = agent.memory("VmRSS:");
    let segments = synthetic(files, 40, 2048);
    for (name, bytes) in &segments {
        mark_waiting(&archive, name, bytes);
    }
    for (name, _) in &segments {
        assert!(was_by_agent(&push(&archive, name), name));
        mark_done(&archive, name);
    }
    let peak = agent.memory("VmHWM:");
    println!("{before} kB before, {peak} kB at most, {} kB now", agent.memory("VmRSS:"));
    assert!(peak <= before + (24 << 10), "{before} kB before, {peak} kB at most");
}

#[test]
fn it_does_not_leak() {
    let archive = Archive::new(small_files());
    let agent = Agent::start(&archive);
    let count = 600;
    let segments = synthetic(small_files(), 1, 0);
    let number = u64::from_str_radix(&segments[0].0[16..], 16).unwrap();
    let mut early = 0;
    for n in 0..count {
        let mut bytes = segments[0].1.clone();
        bytes[8..16].copy_from_slice(&((number + n) << 20).to_le_bytes());
        let name = format!("{}{:08X}", &segments[0].0[..16], number + n);
        archive.offer(&name, &bytes);
        let run = push(&archive, &name);
        assert!(was_by_agent(&run, &name), "{n}: {run:?}");
        fs::remove_file(archive.path("data/pg_wal").join(&name)).unwrap();
        if n == count / 3 {
            early = agent.memory("VmRSS:");
        }
    }
    let late = agent.memory("VmRSS:");
    let open = fs::read_dir(format!("/proc/{}/fd", agent.child.id())).unwrap().count();
    println!("{early} kB after a third, {late} kB at the end, {open} descriptors");
    assert!(late <= early + (3 << 10), "{early} kB after a third, {late} kB at the end");
    assert!(open < 20, "{open} descriptors are open");
}

#[test]
fn postgresql_archives_through_it_while_it_is_killed_and_comes_back() {
    let mut cluster = Cluster::builder(16).wal_segment_mib(1).create();
    let directory = cluster.directory("walhold");
    let repository = format!("file://{}/repository", directory.display());
    let state = directory.join("state").display().to_string();
    let environment = [("WALHOLD_REPOSITORY", repository.as_str()), ("WALHOLD_STATE_DIR", state.as_str())];
    let run = |arguments: &[&str]| {
        let output = walhold_command().envs(environment).args(arguments).output().expect("run walhold");
        assert!(output.status.success(), "{}", describe(&output));
    };
    let start_agent = || {
        let mut command = walhold_command();
        command.envs(environment).arg("agent").stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("start the agent")
    };
    run(&["init"]);
    cluster.archive_with(walhold(), &environment);
    cluster.start();
    cluster.execute("CREATE TABLE t (i int, word text)");
    let mut backup = walhold_command();
    let data = cluster.data_directory().display().to_string();
    backup.envs(cluster.environment()).envs(environment).args(["backup-push", "--pgdata", &data]);
    let output = backup.output().expect("back up");
    assert!(output.status.success(), "{}", describe(&output));
    for round in 0..4 {
        let mut agent = start_agent();
        for _ in 0..6 {
            cluster.execute("INSERT INTO t SELECT i, md5(random()::text) FROM generate_series(1, 20000) i");
        }
        if round == 2 {
            cluster.kill9();
            cluster.start();
        }
        agent.kill().expect("kill the agent");
        agent.wait().expect("wait for the agent");
        cluster.execute("INSERT INTO t SELECT i, md5(random()::text) FROM generate_series(1, 20000) i");
    }
    cluster.archive_now();
    let log = cluster.log();
    assert!(log.contains("by the agent: ahead"), "{}", cluster.log_tail());
    let expected = cluster.row_digest("postgres");
    let mut agent = start_agent();
    let copy = cluster.directory("copy").join("data");
    run(&["restore", "--clone", "--pgdata", &copy.display().to_string()]);
    let mut copy = Cluster::from_data_directory(16, &copy);
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.row_digest("postgres"), expected);
    let ready = copy.log().matches("which was ready").count();
    assert!(ready > 5, "only {ready} were ready\n{}", copy.log_tail());
    assert!(!copy.data_directory().join("pg_wal/.walhold").exists());
    agent.kill().expect("kill the agent");
    agent.wait().expect("wait for the agent");
    cluster.stop(StopMode::Fast);
}
