//! `walhold agent`: what it does for wal-push, and that nobody depends on it. See agent_fetch.rs for wal-fetch, agent_bounds.rs for memory.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::agent::{
    Agent, PATIENCE, cloud, is_stored, mark_done, mark_waiting, push, status, was_by_agent,
};
use support::archive::{Archive, contents};
use support::cloud::Cloud;
use support::fault_proxy::Fault;
use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, StopMode};
use support::program::{describe, walhold, walhold_command};
use support::stores::SECRET_KEY;
use support::wal_files::small_files;

#[test]
fn it_archives_what_is_asked_and_what_waits() {
    let archive = Archive::new(small_files());
    let agent = Agent::start(&archive);
    let segments = small_files().synthetic(20, 0);
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
    let Cloud { server: _server, proxy: _proxy, mut archive } = cloud(files);
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
fn it_answers_at_the_socket_that_systemd_made() {
    let files = small_files();
    let archive = Archive::new(files);
    let socket = archive.path("state/agent.socket");
    let listener = UnixListener::bind(&socket).unwrap();
    ServerUser::get().own(&socket);
    let inherit = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(&listener, inherit).unwrap();
    let start = |pid: &str| {
        let script = format!(
            "exec 3<&{}; LISTEN_FDS=1 LISTEN_PID={pid} exec {} agent",
            listener.as_raw_fd(),
            walhold().display()
        );
        let mut command = ServerUser::get().command("/bin/bash");
        for (name, value) in archive.command([]).get_envs() {
            value.map(|value| command.env(name, value));
        }
        command.current_dir("/").args(["-c", &script]);
        Agent::run(&archive, command)
    };
    let segment = files.segment(0);
    archive.offer(segment, files.bytes(segment));
    // One can connect to that socket long before the agent takes anybody from its queue.
    let answered = || (0..10).any(|_| was_by_agent(&push(&archive, segment), segment));
    let agent = start("$$");
    assert!(answered());
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.end().0, Some(0));
    // It is systemd's to remove, and whoever asks meanwhile waits in its queue for a bounded time.
    assert!(socket.exists());
    push(&archive, segment).expect_success();
    let agent = start("$$");
    assert!(answered());
    drop(agent);
    // Variables that speak of another process mean nothing: it makes its own socket.
    let agent = start("1");
    assert!(answered());
    agent.signal(Signal::SIGTERM);
    agent.end();
    assert!(!socket.exists());
}

#[test]
fn an_upload_that_hangs_is_left_to_its_asker_when_it_ends() {
    let files = small_files();
    let Cloud { server: _server, proxy, mut archive } = cloud(files);
    archive.set("WALHOLD_WAL_PUSH_DEADLINE", "60s");
    let agent = Agent::start(&archive);
    let segment = files.segment(0);
    archive.offer(segment, files.bytes(segment));
    proxy.set_matching(segment, 1, Fault::HoldAnswer);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| push(&archive, segment));
        agent.wait_for("the upload", || proxy.held() == 1);
        agent.signal(Signal::SIGTERM);
        let (code, said) = agent.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("cut off"), "{said}");
        let run = asker.join().expect("push");
        run.expect_success();
        assert!(run.stderr.contains("without the agent: ") && run.stderr.contains("interrupted"), "{run:?}");
    });
    is_stored(&archive, segment, files.bytes(segment));
}

#[test]
fn an_outage_is_told_and_a_repository_that_changed_gets_no_acknowledgement() {
    let files = small_files();
    let Cloud { server, proxy, mut archive } = cloud(files);
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
    let Cloud { server: _server, proxy, archive } = cloud(files);
    let _agent = Agent::start(&archive);
    proxy.set_matching("PUT ", 1, Fault::Delay(Duration::from_millis(3500)));
    let segment = files.segment(0);
    archive.offer(segment, files.bytes(segment));
    let run = push(&archive, segment);
    assert!(was_by_agent(&run, segment), "{run:?}");
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
        // Once PostgreSQL lets several segments come together, however fast they are archived.
        let stopped = (round == 0).then(|| {
            let begun = Instant::now();
            while UnixStream::connect(directory.join("state/agent.socket")).is_err() {
                assert!(begun.elapsed() < PATIENCE, "the agent did not come");
                std::thread::sleep(Duration::from_millis(10));
            }
            let archiver = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'";
            let pid = Pid::from_raw(cluster.query(archiver)[0][0].parse().expect("a process"));
            kill(pid, Signal::SIGSTOP).expect("stop the archiver");
            pid
        });
        for _ in 0..6 {
            cluster.execute("INSERT INTO t SELECT i, md5(random()::text) FROM generate_series(1, 20000) i");
        }
        if let Some(archiver) = stopped {
            kill(archiver, Signal::SIGCONT).expect("let the archiver go on");
            cluster.archive_now();
            let [agent, repository] = [["agent", "status"].as_slice(), &["wal-verify"]].map(|words| {
                let mut command = walhold_command();
                let output = command.envs(environment).args(words).arg("--json").output().expect("ask");
                serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
            });
            let newest = &agent["archives"][0]["newest_commit"];
            assert!(newest.is_string() && *newest == repository["systems"][0]["newest_commit"], "{agent}");
            assert!(agent["archives"][0]["newest_commit_age_seconds"].as_u64().unwrap() < 600, "{agent}");
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
