//! Archiving and recovery over a store that fails at random, while processes are killed at random.
//!
//! Each round makes a real PostgreSQL under pgbench that archives through walhold into an S3 server behind
//! [`support::fault_proxy`], with an agent that comes and goes. Faults and kills follow a seed (what they hit depends on the
//! machine). Then the faults stop, archiving drains, and it must hold that
//! - every segment that PostgreSQL was told is archived is in the repository byte for byte. The archive_command copies it
//!   aside after walhold has said 0, and never before;
//! - a recovery from the repository, with faults and kills again, ends with the primary's rows: no segment was called
//!   absent that is not, and none delivered with a wrong byte. The restore_command compares each with the copy;
//! - nothing of walhold's runs or lies about afterwards.
//!
//! A short run has fixed seeds. `SOAK_SECONDS` makes it as long as that (`make soak`), `SOAK_SEED` repeats the round that
//! printed it. With `SOAK_KEEP=directory` what a failed round left is copied there.

mod support;

#[path = "soak_wal/archive.rs"]
mod archive;
#[path = "soak_wal/chaos.rs"]
mod chaos;
#[path = "soak_wal/processes.rs"]
mod processes;
#[path = "soak_wal/recovery.rs"]
mod recovery;
#[path = "soak_wal/site.rs"]
mod site;

use std::time::{Duration, Instant};

use support::random::{Random, number};

use site::{Mode, Setup, Site, Tally};
use support::stores::Conditions;

/// The rounds of a short run.
const SHORT: [Setup; 2] = [
    Setup {
        major: 15,
        conditions: Conditions::Enforced,
        mib: 1,
        encrypted: true,
        agent: true,
        deadline: 3,
        mode: Mode::Recovery,
    },
    Setup {
        major: 18,
        conditions: Conditions::Ignored,
        mib: 1,
        encrypted: false,
        agent: false,
        deadline: 2,
        mode: Mode::Standby,
    },
];

/// One round.
fn round(setup: Setup, seed: u64, how_long: Duration, tally: &mut Tally) {
    println!("SOAK_SEED={seed}: {setup:?}");
    let begun = Instant::now();
    let told = |what: &str| println!("  {:.0?} {what}", begun.elapsed());
    let mut random = Random::new(seed);
    let mut site = Site::start(setup, &mut random);
    site.first_backup(&mut random);
    told("backed up");
    chaos::archive(&mut site, &mut random, how_long, tally);
    told("faults stop");
    archive::drain(&mut site);
    told("drained");
    archive::check(&site, tally);
    recovery::check(&mut site, &mut random, how_long / 2, tally);
    told("recovered");
    tally.add_faults(&site.proxy.weather_met());
    tally.rounds += 1;
}

#[test]
fn whatever_fails_what_was_acknowledged_is_there_and_recovers() {
    let mut tally = Tally::default();
    let begun = Instant::now();
    let any = |seed: u64| Setup::random(&mut Random::new(seed ^ 0x5EED));
    match (number("SOAK_SECONDS"), number("SOAK_SEED")) {
        (None, None) => SHORT
            .iter()
            .zip(1..)
            .for_each(|(setup, seed)| round(*setup, seed, Duration::from_secs(5), &mut tally)),
        (None, Some(seed)) => round(any(seed), seed, Duration::from_secs(20), &mut tally),
        (Some(seconds), seed) => {
            let mut seed = seed.unwrap_or_else(|| jiff::Timestamp::now().as_second().unsigned_abs());
            while begun.elapsed() < Duration::from_secs(seconds) {
                round(any(seed), seed, Duration::from_secs(20), &mut tally);
                println!("  after {} s: {tally}", begun.elapsed().as_secs());
                seed += 1;
            }
        }
    }
    println!("{tally}");
    assert!(tally.segments > 0 && tally.fetched > 0, "nothing was archived or fetched: {tally}");
}
