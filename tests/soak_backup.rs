//! Random sequences of everything that can happen to a cluster and its backups; each restore must be what was recorded live.
//!
//! Each world is a real PostgreSQL with databases, tablespaces, indexes, large objects, sequences and prepared transactions, and a
//! repository in a directory or on an S3 server. Its steps follow a seed: changes, moments whose state is recorded, backups from every source (quiet, under writes, killed, with
//! the server killed under them), expire, crashes, a standby that is promoted and takes over, recovery of the cluster itself to an
//! earlier moment, and restores of any backup to any moment that must be reachable, on abandoned lines too: into an empty directory,
//! over a directory that is older, ahead or crashed, and after an interrupted restore.
//!
//! Between walhold and some of the buckets there is weather: a command then succeeds and is right, or fails as documented and leaves nothing
//! wrong ([`weather`]).
//!
//! A restored server must have the rows, large objects, sequences and prepared transactions of that moment, pass pg_amcheck with
//! heaps against their indexes, and pg_visibility must find nothing. [`pages`] compares bits.
//!
//! A short run has fixed seeds, chosen so that their worlds have what worlds can have. `SOAK_SECONDS` makes it as long as that (`make soak`), and then every step is followed by a pause
//! of its own length, so that it needs half a core; `SOAK_SEED` repeats the world that printed it, and `SOAK_WEATHER=1` puts every
//! world into a bucket with bad weather.

mod support;

#[path = "soak_backup/change.rs"]
mod change;
#[path = "soak_backup/expire.rs"]
mod expire;
#[path = "soak_backup/pages.rs"]
mod pages;
#[path = "backup/site.rs"]
#[allow(dead_code, reason = "shared with the tests of full backups")]
mod site;
#[path = "soak_backup/state.rs"]
mod state;
#[path = "soak_backup/steps.rs"]
mod steps;
#[path = "soak_backup/weather.rs"]
mod weather;
#[path = "soak_backup/world.rs"]
mod world;

use std::time::{Duration, Instant};

use support::random::{Random, number};

use site::Home;
use state::Tally;
use world::{Server, World};

/// The seeds of a short run: among their worlds are one in a bucket with bad weather and one with several tablespaces.
const SHORT: [u64; 2] = [108, 2];

/// Steps of one world. With an end in sight it rests after each step, for as long as that took.
fn world(seed: u64, steps: u64, end: Option<Instant>, tally: &mut Tally) {
    println!("SOAK_SEED={seed}");
    let mut world = World::start(seed, tally);
    println!("  {:?}", world.server);
    for step in 1..=steps {
        if end.is_some_and(|end| Instant::now() > end) {
            break;
        }
        let begun = Instant::now();
        let what = world.step(step);
        println!("  {step}: {what} ({:.1?})", begun.elapsed());
        if end.is_some() {
            std::thread::sleep(begun.elapsed().min(Duration::from_secs(60)));
        }
    }
    println!("  {}", world.last());
    if end.is_none() {
        println!("  {}", world.expire_by_periods());
    }
    tally.worlds += 1;
}

#[test]
fn whatever_happens_a_restore_is_what_was_there() {
    let mut tally = Tally::default();
    let begun = Instant::now();
    let steps = number("SOAK_STEPS");
    match (number("SOAK_SECONDS"), number("SOAK_SEED")) {
        (None, None) => {
            SHORT.iter().for_each(|seed| world(*seed, 4, None, &mut tally));
            assert!(tally.worlds_in_weather > 0 && tally.worlds_with_tablespaces > 0, "{tally}");
            assert!(tally.commands_in_weather > 0, "{tally}");
        }
        (None, Some(seed)) => world(seed, steps.unwrap_or(30), None, &mut tally),
        (Some(seconds), seed) => {
            let mut seed = seed.unwrap_or_else(|| jiff::Timestamp::now().as_second().unsigned_abs());
            let end = begun + Duration::from_secs(seconds);
            while Instant::now() < end {
                world(seed, steps.unwrap_or(30), Some(end), &mut tally);
                println!("  after {} s: {tally}", begun.elapsed().as_secs());
                seed += 1;
            }
        }
    }
    println!("{tally}");
    assert!(tally.restores > 0, "nothing was restored: {tally}");
}

/// The pages of an incremental backup that come from its base are those that a full one reads from the disk.
fn pages_are_those_of_a_full_backup(major: u32, source: &str, checksums: bool) {
    let mut tally = Tally::default();
    let server = Server {
        major,
        checksums,
        summaries: true,
        autovacuum: false,
        log_hints: false,
        encrypted: false,
        home: Home::Directory,
        spaces: 2,
        weather: false,
    };
    let mut world = World::of(server, Random::new(7), &mut tally);
    world.site.ok(&["backup-push"]);
    // Reads rows that nobody has read since they were written: their pages get hints.
    world.moment(1);
    world.site.cluster.execute(
        "UPDATE t0 SET x = 'new' WHERE id % 900 = 0; DELETE FROM t1 WHERE id > 3000; CREATE TABLE more AS SELECT * FROM t2",
    );
    world.site.cluster.execute("VACUUM (TRUNCATE) t1");
    let told = world.back_up(&["--changes-from", source]);
    assert!(told.ends_with(&format!("from {source}")), "{told}");
    let compared = world.compare_with_full();
    assert!(compared.pages > 1000, "{compared:?}");
    // Or the comparison would not show that hints were left behind.
    assert_eq!(compared.masked > 0, !checksums, "{compared:?}");
}

#[test]
fn pages_from_summaries_are_those_of_a_full_backup() {
    pages_are_those_of_a_full_backup(17, "summaries", true);
}

#[test]
fn pages_from_the_index_are_those_of_a_full_backup() {
    pages_are_those_of_a_full_backup(15, "index", true);
}

#[test]
fn pages_from_the_index_without_checksums_are_those_of_a_full_backup_but_for_hints() {
    pages_are_those_of_a_full_backup(14, "index", false);
}

#[test]
fn pages_from_a_scan_are_those_of_a_full_backup() {
    pages_are_those_of_a_full_backup(16, "scan", true);
}
