//! `walhold agent`: memory, descriptors and what it leaves in the store.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use support::agent::{Agent, cloud, mark_done, mark_waiting, push, status, was_by_agent};
use support::archive::Archive;
use support::cloud::Cloud;
use support::fault_proxy::Fault;
use support::program::walhold;
use walhold::agent::client::push_through_agent;
use walhold::config::Config;
use walhold::wal::archive_file::ArchiveFile;

use support::wal_files::{default_files, large_files, small_files};

#[test]
fn its_memory_is_bounded_while_a_backlog_drains() {
    let files = default_files();
    let Cloud { server, proxy: _proxy, mut archive } = cloud(files);
    archive.set("AWS_ENDPOINT_URL", &format!("http://{}", server.addr()));
    archive.set("WALHOLD_WAL_PUSH_DEADLINE", "60s");
    let agent = Agent::start(&archive);
    let before = agent.memory("VmRSS:");
    let segments = files.synthetic(40, 2048);
    for (name, bytes) in &segments {
        mark_waiting(&archive, name, bytes);
    }
    for (name, _) in &segments {
        assert!(was_by_agent(&push(&archive, name), name));
        mark_done(&archive, name);
    }
    let peak = agent.memory("VmHWM:");
    println!("{before} kB before, {peak} kB at most, {} kB now", agent.memory("VmRSS:"));
    // 10 MB on their way, two files being encoded, connections: 19 MB in a release build. The rest is an unoptimised program's own code.
    assert!(peak <= before + (28 << 10), "{before} kB before, {peak} kB at most");
}

/// Archives so many segments of 1 MiB through the agent, from this process, a few waiting behind each; its memory after the first `early`, at the end, and its open descriptors then.
fn archive_many(count: u64, early: u64) -> (u64, u64, usize) {
    let archive = Archive::new(small_files());
    // As the user of this process, who would trust no other.
    let mut command = Command::new(walhold());
    for (name, value) in archive.command(["agent"]).get_envs() {
        value.map(|value| command.env(name, value));
    }
    command.arg("agent");
    let agent = Agent::run(&archive, command);
    let text = format!(
        "repository = \"{}\"\nstate_dir = \"{}\"\npgdata = \"{}\"\n",
        archive.url(),
        archive.path("state").display(),
        archive.path("data").display()
    );
    let config = Config::from_toml(&text, Path::new("test.toml")).unwrap();
    let first = small_files().segment(0);
    let number = u64::from_str_radix(&first[16..], 16).unwrap();
    let mut bytes = small_files().bytes(first).to_vec();
    let name_of = |n: u64| {
        let position = (number + n) << 20;
        format!("{}{:08X}{:08X}", &first[..8], position >> 32, (position & 0xFFFF_FFFF) >> 20)
    };
    let mut offered = 0;
    let mut after_early = 0;
    for n in 0..count {
        while offered < count.min(n + 4) {
            bytes[8..16].copy_from_slice(&((number + offered) << 20).to_le_bytes());
            mark_waiting(&archive, &name_of(offered), &bytes);
            offered += 1;
        }
        let path = archive.path("data/pg_wal").join(name_of(n));
        let file = ArchiveFile::open(&path, config.pgdata.as_deref(), config.pgdata_origin).unwrap();
        let how = push_through_agent(&config, &file).unwrap();
        assert!(how.is_some(), "{n} was not archived by the agent: {}", status(&archive)["last_refusal"]);
        fs::remove_file(path).unwrap();
        mark_done(&archive, &name_of(n));
        fs::remove_file(archive.path("data/pg_wal/archive_status").join(format!("{}.done", name_of(n))))
            .unwrap();
        if n + 1 == early {
            after_early = agent.memory("VmRSS:");
        }
    }
    let open = fs::read_dir(format!("/proc/{}/fd", agent.child.id())).unwrap().count();
    let late = agent.memory("VmRSS:");
    println!("{count} segments: {after_early} kB after {early}, {late} kB at the end, {open} descriptors");
    (after_early, late, open)
}

#[test]
fn it_does_not_leak() {
    let (early, late, open) = archive_many(1000, 300);
    assert!(late <= early + (3 << 10), "{early} kB after 300, {late} kB at the end");
    assert!(open < 20, "{open} descriptors are open");
}

#[test]
#[ignore = "takes minutes: make soak"]
fn it_does_not_leak_over_10000_segments() {
    let (early, late, open) = archive_many(10_000, 500);
    assert!(late <= early + (3 << 10), "{early} kB after 500, {late} kB at the end");
    assert!(open < 20, "{open} descriptors are open");
}

#[test]
fn told_to_end_in_the_middle_of_a_large_upload_it_leaves_no_parts() {
    let Cloud { server: _server, proxy, archive } = cloud(large_files());
    let segments = large_files().synthetic(2, 8192);
    let [(first, _), (second, _)] = &segments[..] else { unreachable!() };
    for (name, bytes) in &segments {
        mark_waiting(&archive, name, bytes);
    }
    let mut archive = archive;
    archive.set("WALHOLD_WAL_PUSH_DEADLINE", "60s");
    let agent = Agent::start(&archive);
    let part = format!("{second}?partNumber=3&");
    proxy.set_matching(&part, usize::MAX, Fault::Delay(Duration::from_secs(60)));
    assert!(was_by_agent(&push(&archive, first), first));
    agent.wait_for("the third part", || proxy.seen().iter().any(|line| line.contains(&part)));
    agent.signal(Signal::SIGTERM);
    let (code, said) = agent.end();
    assert_eq!(code, Some(0), "{said}");
    let aborted =
        |line: &String| line.starts_with("DELETE ") && line.contains(&format!("{second}?uploadId="));
    assert!(proxy.seen().iter().any(aborted), "{:?}", proxy.seen());
    assert!(!said.contains("were cut off"), "{said}");
}
