//! One cluster, its repository, and what is known of both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

use crate::change;
use crate::site::{Home, Site};
use crate::state::{Backup, Line, Moment, State, Tally};
use crate::support::postgres::Cluster;
use crate::support::postgres::installation::{MAJORS, ServerUser};
use crate::support::random::{Random, number};

/// How the server is set up.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub major: u32,
    pub checksums: bool,
    pub summaries: bool,
    /// Without it nothing changes unless a step changes it.
    pub autovacuum: bool,
    pub log_hints: bool,
    pub encrypted: bool,
    /// Where the repository lies.
    pub home: Home,
    /// How many tablespaces there are, one at least.
    pub spaces: usize,
    /// Whether the way to the bucket is bad at times.
    pub weather: bool,
}

/// What the tablespaces are called.
const SPACES: [&str; 3] = ["space", "space_two", "space_three"];

pub struct World<'a> {
    pub server: Server,
    pub site: Site,
    pub random: Random,
    pub tally: &'a mut Tally,
    pub line: Line,
    /// In the order in which they were taken.
    pub backups: Vec<Backup>,
    pub moments: Vec<Moment>,
    /// What an earlier restore left, with a data directory and the tablespaces below.
    pub spare: Option<PathBuf>,
    /// The tablespaces' names.
    pub spaces: Vec<String>,
    /// Whether answers to the last command may have been wrong.
    pub was_lied_to: bool,
    places: u32,
}

impl<'a> World<'a> {
    pub fn start(seed: u64, tally: &'a mut Tally) -> World<'a> {
        let mut random = Random::new(seed);
        let all_weather = number("SOAK_WEATHER").is_some();
        let mut server = Server {
            major: *random.pick(&MAJORS),
            checksums: random.chance(70),
            summaries: random.chance(70),
            autovacuum: random.chance(40),
            log_hints: random.chance(30),
            encrypted: random.chance(30),
            home: if random.chance(20) { Home::Bucket } else { Home::Directory },
            spaces: if random.chance(40) { random.between(2, 3) as usize } else { 1 },
            weather: random.chance(60) || all_weather,
        };
        if all_weather {
            server.home = Home::Bucket;
        }
        server.weather &= server.home == Home::Bucket;
        let mut world = World::of(server, random, tally);
        world.back_up(&["--full"]);
        world
    }

    /// Without a backup.
    pub fn of(server: Server, random: Random, tally: &'a mut Tally) -> World<'a> {
        let on = |on: bool| if on { "on" } else { "off" };
        let mut builder = Cluster::builder(server.major)
            .wal_segment_mib(1)
            .checksums(server.checksums)
            .setting("max_prepared_transactions", "20")
            .setting("autovacuum", on(server.autovacuum))
            .setting("autovacuum_naptime", "1s")
            .setting("max_wal_size", "64MB")
            .setting("wal_log_hints", on(server.log_hints))
            .setting("archive_timeout", "0");
        if server.major >= 17 {
            builder = builder.setting("summarize_wal", on(server.summaries));
        }
        let mut site = Site::create_in(server.home, builder);
        if server.encrypted {
            site.encrypt();
        }
        site.cluster.start();
        let spaces: Vec<String> =
            SPACES.iter().take(server.spaces).map(|space| (*space).to_owned()).collect();
        change::prepare(&site.cluster, &spaces);
        tally.worlds_in_buckets += usize::from(server.home == Home::Bucket);
        tally.worlds_in_weather += usize::from(server.weather);
        tally.worlds_with_tablespaces += usize::from(server.spaces > 1);
        let line = Line::of(&site.cluster);
        World {
            server,
            site,
            random,
            tally,
            line,
            backups: Vec::new(),
            moments: Vec::new(),
            spare: None,
            spaces,
            was_lied_to: false,
            places: 0,
        }
    }

    /// A new path below which a clone has `data` and its tablespaces.
    pub fn new_place(&mut self) -> PathBuf {
        self.places += 1;
        self.site.cluster.directory(&format!("place{}", self.places))
    }

    /// Each tablespace into the directory that this says, as options of `restore`.
    pub fn mapped(&self, directory: impl Fn(&str) -> PathBuf) -> Vec<String> {
        let mapping = |space: &String| format!("--tablespace={space}={}", directory(space).display());
        self.spaces.iter().map(mapping).collect()
    }

    /// Each below this place.
    pub fn mapped_below(&self, place: &Path) -> Vec<String> {
        self.mapped(|space| place.join(space))
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.site.run(arguments)
    }

    /// All WAL so far is in the repository.
    pub fn archive(&self) {
        self.site.cluster.archive_now();
    }

    /// A moment that every kind of target can name: its transaction is the last before it, and another one follows.
    pub fn moment(&mut self, step: u64) {
        let cluster = &self.site.cluster;
        if cluster.value("SELECT count(*) FROM pg_prepared_xacts") != "0" {
            // PostgreSQL cannot replay a branching of timelines in the segment where a transaction was prepared: it looks for that
            // segment under the name that it had on the older timeline, and the archive has it under the newer one's
            // (`StandbyRecoverPreparedTransactions`, docs/recovery.md).
            cluster.switch_wal();
        }
        let xid = cluster.value(
            "WITH new AS (INSERT INTO ticks DEFAULT VALUES RETURNING 1) SELECT pg_current_xact_id() FROM new",
        );
        let state = State::of(cluster);
        let lsn = cluster.value("SELECT pg_current_wal_insert_lsn()");
        let name = format!("moment-{}-{step}", self.line.timeline);
        cluster.value(&format!("SELECT pg_create_restore_point('{name}')"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        let time = cluster.value("SELECT clock_timestamp()");
        std::thread::sleep(std::time::Duration::from_millis(20));
        cluster.execute("INSERT INTO ticks DEFAULT VALUES");
        let line = self.line.clone();
        self.moments.push(Moment { name, time, lsn, xid, line, state, taken: Instant::now() });
    }

    /// A server made from what lies in `place`, recovered and promoted, archiving nothing.
    pub fn recovered(&mut self, place: &Path) -> Cluster {
        let mut copy = Cluster::from_data_directory(self.site.cluster.major(), &place.join("data"));
        copy.start();
        copy.wait_promoted();
        copy
    }

    /// Compares, and looks for damage that rows do not show.
    pub fn check(&mut self, copy: &Cluster, state: &State, what: &str) {
        state.assert_is(&State::of(copy), &format!("{what}\n{}", copy.log_tail()));
        assert_eq!(copy.value("SELECT count(*) FROM unlogged"), "0", "{what}");
        for gid in copy.query("SELECT gid FROM pg_prepared_xacts").into_iter().flatten() {
            // Its locks would stop the checks.
            copy.execute(&format!("ROLLBACK PREPARED '{gid}'"));
        }
        for check in ["pg_check_visible", "pg_check_frozen"] {
            let found = copy.query(&format!(
                "SELECT c.oid::regclass, t.t_ctid FROM pg_class c, {check}(c.oid) t(t_ctid) WHERE relkind IN ('r', 'm', 't')"
            ));
            assert!(found.is_empty(), "{check} {what}: {found:?}");
        }
        copy.amcheck();
        self.tally.restores += 1;
    }

    /// Makes room for a restore in place.
    pub fn remove_data(&self) {
        let data = self.site.cluster.data_directory();
        fs::remove_dir_all(data).expect("lose the cluster");
    }

    pub fn own(&self, place: &Path) {
        ServerUser::get().own(place);
    }
}
