//! Retention over years: real backups of a server whose clock is moved, random policies, and a simple model of what they keep.
//!
//! PostgreSQL and walhold run under libfaketime, which answers their questions for the time from a file; nothing of it is in walhold. The
//! backups are taken as if at moments of the last four years, also right before and after the ends of days, weeks and years in some zone. Policies
//! are applied at the real present, because files in the repository have real times.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::site::Site;
use crate::support::postgres::Cluster;
use crate::support::program::describe;
use crate::support::random::{Random, number};
use crate::{expire, listed, plan};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Auckland", "Pacific/Kiritimati"];

/// The clock of the server and of walhold.
struct Clock(PathBuf);

impl Clock {
    fn of(site: &mut Site) -> Clock {
        let clock = Clock(site.cluster.directory("clock").join("offset"));
        clock.set(Timestamp::now());
        for (name, value) in [
            ("LD_PRELOAD", library()),
            ("FAKETIME_TIMESTAMP_FILE", clock.0.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ] {
            site.cluster.variable(name, &value);
            site.variables.push((name.to_owned(), value));
        }
        clock
    }

    /// It goes on from there.
    fn set(&self, time: Timestamp) {
        let offset = time.as_second() - Timestamp::now().as_second();
        let part = self.0.with_extension("part");
        fs::write(&part, format!("{offset:+}\n")).expect("write the clock");
        fs::rename(&part, &self.0).expect("set the clock");
    }
}

fn library() -> String {
    let folders = fs::read_dir("/usr/lib").expect("read /usr/lib").flatten();
    let found =
        folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketime is not installed: tests/prepare.sh servers").display().to_string()
}

/// When backups are taken, oldest first, at least some minutes apart.
fn moments(random: &mut Random, now: Timestamp) -> Vec<Timestamp> {
    let mut seconds = Vec::new();
    let mut at = now.as_second() - 4 * 365 * DAY;
    while at < now.as_second() - HOUR {
        seconds.push(at);
        let (least, most) = *random.pick(&[
            (HOUR / 3, 9 * HOUR),
            (20 * HOUR, 30 * HOUR),
            (2 * DAY, 9 * DAY),
            (20 * DAY, 40 * DAY),
            (60 * DAY, 220 * DAY),
        ]);
        at += random.between(least as u64, most as u64) as i64;
    }
    seconds.push(now.as_second() - 30 * MINUTE);
    let year = now.to_zoned(TimeZone::UTC).year();
    for (years_ago, text) in [
        (3, "12-31T09:50:00Z"),
        (3, "12-31T22:50:00Z"),
        (3, "12-31T23:20:00Z"),
        (2, "01-01T00:40:00Z"),
        (2, "01-01T03:40:00Z"),
        // A Monday or the day before lies among these, and the last week of a year that is the next one's first.
        (2, "12-28T23:30:00Z"),
        (2, "12-29T23:30:00Z"),
        (2, "12-30T12:00:00Z"),
        // Clocks change.
        (1, "03-30T00:30:00Z"),
        (1, "03-30T22:30:00Z"),
    ] {
        let time: Timestamp = format!("{}-{text}", year - years_ago).parse().expect("a time");
        seconds.push(time.as_second());
    }
    seconds.sort_unstable();
    seconds.dedup_by(|later, earlier| *later - *earlier < 5 * MINUTE);
    seconds.into_iter().map(|second| Timestamp::from_second(second).expect("a time")).collect()
}

/// A backup, and a moment after it.
struct Taken {
    id: String,
    stopped: Timestamp,
    is_pinned: bool,
    /// By the server's clock, with nothing committed until the next backup.
    moment: String,
    /// How many rows there were when it ended; at the moment there is one more.
    rows: u64,
}

struct Policy {
    last: Option<usize>,
    within: Option<i64>,
    /// Days, weeks, months, years.
    periods: [Option<usize>; 4],
    zone: &'static str,
}

impl Policy {
    fn random(random: &mut Random) -> Policy {
        let within = random.chance(40).then(|| *random.pick(&[2, 10, 45, 200, 500, 900]) * DAY);
        let mut periods = [(); 4].map(|()| random.chance(45).then(|| random.between(1, 9) as usize));
        if within.is_none() && periods.iter().all(Option::is_none) {
            periods[random.below(4) as usize] = Some(3);
        }
        Policy {
            last: random.chance(30).then(|| random.between(1, 5) as usize),
            within,
            periods,
            zone: random.pick::<&str>(&ZONES),
        }
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec![format!("--time-zone={}", self.zone)];
        words.extend(self.last.map(|count| format!("--keep-last={count}")));
        words.extend(self.within.map(|seconds| format!("--keep-within={seconds}s")));
        for (name, count) in ["daily", "weekly", "monthly", "yearly"].iter().zip(self.periods) {
            words.extend(count.map(|count| format!("--{name}={count}")));
        }
        words
    }

    /// What stays of these, oldest first; and of them the oldest from which on every moment can be recovered.
    fn kept(&self, taken: &[Taken], now: Timestamp) -> (BTreeSet<usize>, usize) {
        let newest = taken.len() - 1;
        let mut kept = BTreeSet::from([newest]);
        kept.extend((0..taken.len()).rev().take(self.last.unwrap_or(0)));
        let zone = TimeZone::get(self.zone).expect("a time zone");
        for (kind, count) in self.periods.iter().enumerate() {
            let mut seen = BTreeSet::new();
            for at in (0..taken.len()).rev() {
                if seen.len() < count.unwrap_or(0) && seen.insert(period(kind, taken[at].stopped, &zone)) {
                    kept.insert(at);
                }
            }
        }
        let mut continuous_from = *kept.first().expect("the newest");
        if let Some(within) = self.within {
            let start = now - SignedDuration::from_secs(within);
            // The one before the window, if any, is what its first moments are recovered from.
            let first = (0..taken.len()).rev().find(|at| taken[*at].stopped <= start).unwrap_or(0);
            kept.extend(first..taken.len());
            continuous_from = first;
        }
        kept.extend((0..taken.len()).filter(|at| taken[*at].is_pinned));
        (kept, continuous_from)
    }

    /// Whether the window begins too close to a backup for it to matter how long this takes.
    fn is_close(&self, taken: &[Taken], now: Timestamp) -> bool {
        let Some(within) = self.within else { return false };
        let start = now.as_second() - within;
        taken.iter().any(|backup| (backup.stopped.as_second() - start).abs() < HOUR / 2)
    }
}

/// A number that only this day, week, month or year has, by the calendar of the zone.
fn period(kind: usize, at: Timestamp, zone: &TimeZone) -> i64 {
    let date = at.to_zoned(zone.clone()).date();
    let (year, month) = (i64::from(date.year()), i64::from(date.month()));
    // Days since 1970-01-01, which was a Thursday.
    let day = date.to_zoned(TimeZone::UTC).expect("midnight").timestamp().as_second().div_euclid(DAY);
    match kind {
        0 => day,
        1 => (day + 3).div_euclid(7),
        2 => year * 12 + month,
        _ => year,
    }
}

/// A cluster with a backup at each of these moments. The clock is right again at the end.
fn over_years(random: &mut Random) -> (Site, Vec<Taken>) {
    let mut site = Site::create(Cluster::builder(16).wal_segment_mib(1).setting("autovacuum", "off"));
    let clock = Clock::of(&mut site);
    let now = Timestamp::now();
    let moments = moments(random, now);
    clock.set(moments[0]);
    site.cluster.start();
    site.cluster.execute("CREATE TABLE steps (step int)");
    let mut taken: Vec<Taken> = Vec::new();
    for (step, moment) in moments.iter().enumerate() {
        clock.set(*moment);
        site.cluster.execute(&format!("INSERT INTO steps VALUES ({step})"));
        let backup = site.back_up();
        let stopped: Timestamp = backup["stop_time"].as_str().expect("a time").parse().expect("a time");
        let late = stopped.as_second() - moment.as_second();
        assert!((0..5 * MINUTE).contains(&late), "the clock does not stand where it should: {backup}");
        site.cluster.execute("INSERT INTO steps VALUES (-1)");
        std::thread::sleep(std::time::Duration::from_millis(20));
        taken.push(Taken {
            id: backup["id"].as_str().expect("an id").to_owned(),
            stopped,
            is_pinned: false,
            moment: site.cluster.value("SELECT clock_timestamp()"),
            rows: step as u64 * 2 + 1,
        });
    }
    clock.set(now + SignedDuration::from_secs(Timestamp::now().as_second() - now.as_second()));
    site.cluster.execute("INSERT INTO steps VALUES (-2)");
    site.cluster.archive_now();
    for _ in 0..2 {
        let pinned = random.below(taken.len() as u64) as usize;
        site.ok(&["backup-mark", &taken[pinned].id, "--permanent"]);
        taken[pinned].is_pinned = true;
    }
    (site, taken)
}

/// The ids that a plan keeps.
fn stays(plan: &Value) -> BTreeSet<String> {
    let backups = plan["systems"][0]["backups"].as_array().expect("backups");
    let kept = backups.iter().filter(|backup| !backup["keep"].as_array().expect("reasons").is_empty());
    kept.map(|backup| backup["id"].as_str().expect("an id").to_owned()).collect()
}

/// Restores this backup as of its end, or as of the moment after it, and counts.
fn assert_restores(site: &Site, name: &str, target: &[&str], rows: u64) {
    let place = site.cluster.directory(name).join("data");
    let data = place.display().to_string();
    let output = site.run(&[&["restore", "--clone", "--pgdata", &data], target].concat());
    assert!(output.status.success(), "{target:?}: {}", describe(&output));
    let mut copy = Cluster::from_data_directory(site.cluster.major(), &place);
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.value("SELECT count(*) FROM steps"), rows.to_string(), "{target:?}");
}

/// Applies the policy, and looks at all that must still be possible. WAL is continuous from the end of the backup that ended at `from` on.
fn apply(site: &Site, taken: &mut Vec<Taken>, policy: &Policy, from: &mut Timestamp, random: &mut Random) {
    let words = policy.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (kept, continuous_from) = policy.kept(taken, Timestamp::now());
    *from = taken[continuous_from].stopped.max(*from);
    expire(site, &words);
    let mut at = 0..;
    taken.retain(|_| kept.contains(&at.next().expect("a number")));
    let left: Vec<String> = taken.iter().map(|backup| backup.id.clone()).collect();
    assert_eq!(listed(site), left, "{words:?}");
    site.ok(&["verify"]);
    let place = site.cluster.directory("planned").join("data").display().to_string();
    let recoverable: Vec<&Taken> = taken.iter().filter(|backup| backup.stopped >= *from).collect();
    for backup in &recoverable {
        let target = ["restore", "--plan", "--pgdata", &place, "--target-time", &backup.moment];
        let output = site.run(&target);
        assert!(output.status.success(), "{words:?}, {}: {}", backup.moment, describe(&output));
    }
    let some = random.pick(taken);
    for (number, backup) in [&taken[0], some].into_iter().enumerate() {
        let target = ["--backup", &backup.id, "--target-immediate"];
        assert_restores(site, &format!("end-{number}-{}", taken.len()), &target, backup.rows);
    }
    let backup = random.pick(&recoverable);
    let target = ["--target-time", backup.moment.as_str()];
    assert_restores(site, &format!("moment-{}", taken.len()), &target, backup.rows + 1);
    // Or they would keep what they were of.
    fs::remove_dir_all(site.repository.join("main/leases")).expect("forget the restores");
}

#[test]
fn policies_keep_what_a_calendar_says() {
    let mut random = Random::new(number("SOAK_SEED").unwrap_or(1));
    let (site, mut taken) = over_years(&mut random);
    let mut policy = || loop {
        let policy = Policy::random(&mut random);
        if !policy.is_close(&taken, Timestamp::now()) {
            break policy;
        }
    };
    let mut policies: Vec<Policy> = (0..25).map(|_| policy()).collect();
    let mut counts = BTreeSet::new();
    for policy in &policies {
        let words = policy.words();
        let (kept, _) = policy.kept(&taken, Timestamp::now());
        let expected: BTreeSet<String> = kept.iter().map(|at| taken[*at].id.clone()).collect();
        let made = plan(&site, &words.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(stays(&made), expected, "{words:?}");
        counts.insert(kept.len());
    }
    println!("{} backups, policies keep {counts:?}", taken.len());
    assert!(counts.len() > 5, "the policies hardly differ: {counts:?}");
    // The most generous first, so that something is left for the next.
    policies.sort_by_key(|policy| std::cmp::Reverse(policy.kept(&taken, Timestamp::now()).0.len()));
    let mut from = taken[0].stopped;
    for number in [2, 12, 23] {
        apply(&site, &mut taken, &policies[number], &mut from, &mut random);
    }
}
