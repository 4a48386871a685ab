//! Random retention: what no policy may lose, and that what stays is what there is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::state::{Backup, Moment, lsn};
use crate::support::program::describe;
use crate::support::random::Random;
use crate::world::World;

/// What expire keeps: what any of these does.
#[derive(Clone, Default, Debug)]
pub struct Policy {
    last: Option<usize>,
    within: Option<Duration>,
    /// Days, weeks, months and years.
    periods: [Option<usize>; 4],
    zone: Option<&'static str>,
}

/// Midnight comes at every full hour in one of the first ones, and at other quarters in the rest. A year of backups does not fit into a
/// world, but in some worlds the date changes.
const ZONES: [&str; 30] = [
    "Etc/GMT+12",
    "Etc/GMT+11",
    "Etc/GMT+10",
    "Etc/GMT+9",
    "Etc/GMT+8",
    "Etc/GMT+7",
    "Etc/GMT+6",
    "Etc/GMT+5",
    "Etc/GMT+4",
    "Etc/GMT+3",
    "Etc/GMT+2",
    "Etc/GMT+1",
    "UTC",
    "Etc/GMT-1",
    "Etc/GMT-2",
    "Etc/GMT-3",
    "Etc/GMT-4",
    "Etc/GMT-5",
    "Etc/GMT-6",
    "Etc/GMT-7",
    "Etc/GMT-8",
    "Etc/GMT-9",
    "Etc/GMT-10",
    "Etc/GMT-11",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Eucla",
    "Pacific/Chatham",
    "America/St_Johns",
];

impl Policy {
    pub fn random(random: &mut Random) -> Policy {
        match random.below(10) {
            0..=4 => Policy { last: Some(random.between(1, 3) as usize), ..Policy::default() },
            5 | 6 => Policy { within: Some(Duration::from_secs(60)), ..Policy::default() },
            _ => Policy::of_periods(random),
        }
    }

    /// Daily, weekly, monthly and yearly, some of them, and now and then others beside them.
    pub fn of_periods(random: &mut Random) -> Policy {
        let mut periods = [(); 4].map(|()| random.chance(50).then(|| random.between(1, 3) as usize));
        if periods.iter().all(Option::is_none) {
            periods[0] = Some(1);
        }
        let zone = if random.chance(50) { *random.pick(&ZONES) } else { zone_of_last_midnight() };
        Policy {
            last: random.chance(30).then(|| random.between(1, 2) as usize),
            within: random.chance(20).then(|| Duration::from_secs(60)),
            periods,
            zone: Some(zone),
        }
    }

    fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut say =
            |name: &str, value: Option<String>| words.extend(value.map(|value| format!("{name}={value}")));
        say("--keep-last", self.last.map(|count| count.to_string()));
        say("--keep-within", self.within.map(|time| format!("{}s", time.as_secs())));
        for (name, count) in ["--daily", "--weekly", "--monthly", "--yearly"].iter().zip(self.periods) {
            say(name, count.map(|count| count.to_string()));
        }
        say("--time-zone", self.zone.map(str::to_owned));
        words
    }

    /// Those of the backups, by number, that must stay, when expire took so long.
    fn kept(&self, backups: &[Backup], took: Duration) -> BTreeSet<usize> {
        let mut newest_first: Vec<usize> = (0..backups.len()).collect();
        newest_first.sort_by_key(|at| std::cmp::Reverse((backups[*at].stopped, &backups[*at].id)));
        let mut kept: BTreeSet<usize> = newest_first.iter().copied().take(self.last.unwrap_or(0)).collect();
        if let Some(time) = self.within {
            kept.extend((0..backups.len()).filter(|at| backups[*at].taken.elapsed() + took < time));
        }
        let zone = TimeZone::get(self.zone.unwrap_or("UTC")).expect("a time zone");
        for (kind, count) in self.periods.iter().enumerate() {
            let mut seen = BTreeSet::new();
            for at in &newest_first {
                let period = period(kind, backups[*at].stopped, &zone);
                if seen.len() < count.unwrap_or(0) && seen.insert(period) {
                    kept.insert(*at);
                }
            }
        }
        kept
    }
}

/// The day, week, month or year of a moment, as numbers that only it has.
fn period(kind: usize, at: Timestamp, zone: &TimeZone) -> (i16, i8) {
    let date = at.to_zoned(zone.clone()).date();
    let week = date.iso_week_date();
    match kind {
        0 => (date.year(), i8::try_from(date.day_of_year() % 100).expect("two digits")),
        1 => (week.year(), week.week()),
        2 => (date.year(), date.month()),
        _ => (date.year(), 0),
    }
}

fn zone_of_last_midnight() -> &'static str {
    let now = Timestamp::now();
    let since_midnight = |name: &&&str| {
        let time = now.to_zoned(TimeZone::get(name).expect("a time zone")).time();
        (time.hour(), time.minute())
    };
    ZONES.iter().min_by_key(since_midnight).expect("zones")
}

impl World<'_> {
    pub fn expire(&mut self) -> String {
        let policy = Policy::random(&mut self.random);
        self.expire_by(&policy)
    }

    pub fn expire_by_periods(&mut self) -> String {
        let policy = Policy::of_periods(&mut self.random);
        self.expire_by(&policy)
    }

    fn expire_by(&mut self, policy: &Policy) -> String {
        self.tally.did(if policy.zone.is_some() { "expire by periods" } else { "expire" });
        // The last moment lies in WAL that nothing has archived yet.
        self.archive();
        if self.restores_are_long_past() {
            let _ = std::fs::remove_dir_all(self.site.repository.join("main/leases"));
        }
        let began = Instant::now();
        let words = policy.words();
        let mut arguments = vec!["expire", "--confirm", "--grace", "0s"];
        arguments.extend(words.iter().map(String::as_str));
        if self.random.chance(25) {
            // Killed somewhere, the next run finishes it.
            let mut child = self.spawn(&arguments);
            std::thread::sleep(Duration::from_millis(self.random.below(400)));
            let _ = child.kill();
            let _ = child.wait_with_output();
            self.tally.kills += 1;
        }
        let output = match self.brave(&arguments) {
            Some(output) => output,
            None => {
                // What it did before it failed, it may.
                self.what_stays(policy, began);
                self.verify_now(&["verify"]);
                self.run(&arguments)
            }
        };
        assert!(output.status.success(), "{}", describe(&output));
        let (kept, left) = self.what_stays(policy, began);
        self.forget_lost_moments(policy, &kept, began);
        let before = self.backups.len();
        self.backups.retain(|backup| left.contains(&backup.id));
        let counts = (self.backups.len(), self.moments.len());
        format!("expire {}: {} of {before} backups, {} moments left", words.join(" "), counts.0, counts.1)
    }

    /// Those of the backups, by number, that must be there, which are, and all that are.
    fn what_stays(&self, policy: &Policy, began: Instant) -> (BTreeSet<usize>, Vec<String>) {
        let kept = policy.kept(&self.backups, began.elapsed());
        let left: Vec<String> =
            self.site.list().iter().map(|backup| backup["id"].as_str().expect("an id").to_owned()).collect();
        for at in &kept {
            let id = &self.backups[*at].id;
            assert!(left.contains(id), "{id} (number {at}) is gone: {policy:?}, {left:?}");
        }
        (kept, left)
    }

    /// A moment of the line that is followed must stay if the policy says so; others may.
    fn forget_lost_moments(&mut self, policy: &Policy, kept: &BTreeSet<usize>, began: Instant) {
        let took = began.elapsed();
        let mut left = Vec::new();
        for moment in std::mem::take(&mut self.moments) {
            let is_followed = self.line.passes(moment.line.timeline, lsn(&moment.lsn));
            let mut bases = (0..self.backups.len()).filter(|at| moment.is_after(&self.backups[*at]));
            let must = is_followed
                && match policy.within {
                    // WAL is continuous in the window, whatever else stays.
                    Some(time) => moment.taken.elapsed() + took < time && bases.next().is_some(),
                    None => bases.any(|at| kept.contains(&at)),
                };
            let plan = self.plan(&moment);
            match plan.status.code() {
                Some(0) => left.push(moment),
                _ => assert!(!must, "{policy:?}: {} is lost: {}", moment.name, describe(&plan)),
            }
        }
        self.moments = left;
    }

    /// Mostly: a backup that was restored a moment ago would never go.
    fn restores_are_long_past(&self) -> bool {
        !self.backups.len().is_multiple_of(4)
    }

    fn plan(&self, moment: &Moment) -> std::process::Output {
        let place = self.site.cluster.directory("plan").join("data");
        let spaces = self.mapped(|space| place.with_extension(space));
        let (data, timeline) = (place.display().to_string(), moment.line.timeline.to_string());
        let mut arguments = vec!["restore", "--plan", "--clone", "--pgdata", &data];
        arguments.extend(["--timeline", &timeline, "--target-lsn", &moment.lsn]);
        arguments.extend(spaces.iter().map(String::as_str));
        self.run(&arguments)
    }
}
