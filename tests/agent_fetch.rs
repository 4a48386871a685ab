//! `walhold agent` and wal-fetch: windows, whole files, proofs of absence; and whatever the agent does, nothing wrong is delivered.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use support::agent::{Agent, cloud, push, status};
use support::archive::{Archive, Run};
use support::cloud::Cloud;
use support::fault_proxy::Fault;
use support::postgres::installation::ServerUser;
use support::wal_files::small_files;

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
    let Cloud { server: _server, proxy, archive } = cloud(files);
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
    let Cloud { server: _server, proxy, mut archive } = cloud(files);
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

#[test]
fn it_keeps_windows_and_takes_them_with_it() {
    let archive = Archive::new(small_files());
    let segments = small_files().synthetic(12, 0);
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
