//! What can happen next.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::change::{During, change};
use crate::pages;
use crate::state::{Backup, Line, State, lsn};
use crate::support::postgres::{Cluster, StopMode};
use crate::support::program::describe;
use crate::world::{Server, World};

/// What to restore, what it must be, and how it is asked for.
struct Wish {
    arguments: Vec<String>,
    state: State,
    what: String,
}

impl World<'_> {
    /// One step; what it was.
    pub fn step(&mut self, step: u64) -> String {
        for _ in 0..self.random.between(1, 6) {
            change(&self.site.cluster, &mut self.random, step, During::Peace);
        }
        match self.random.below(20) {
            0..=4 => self.any_backup(step),
            5 | 6 => {
                self.tally.did("moment");
                self.moment(step);
                "moment".to_owned()
            }
            7..=11 => self.restore(),
            12 => self.expire(),
            13 => self.crash(),
            14 => self.promote(),
            15 | 16 => self.recover_in_place(step),
            17 => self.interrupted_backup(),
            18 => self.twins(),
            _ => self.verify(),
        }
    }

    /// The end of a world: whatever it was, its newest state can be restored.
    pub fn last(&mut self) -> String {
        self.moment(999);
        self.restore_wish(Wishes::LastMoment)
    }

    // --- backups ----------------------------------------------------------------------------------------------------

    fn any_backup(&mut self, step: u64) -> String {
        let source = *self.random.pick(&["auto", "auto", "index", "summaries", "scan", "compare", "full"]);
        let extent: &[&str] = if source == "full" { &["--full"] } else { &["--changes-from", source] };
        match self.random.below(10) {
            0..=2 => self.back_up_under_writes(extent, step),
            3 => self.crash_under_backup(extent),
            _ => self.back_up(extent),
        }
    }

    /// A backup while nothing else writes.
    pub fn back_up(&mut self, extent: &[&str]) -> String {
        self.tally.did("backup");
        let state = Some(State::of(&self.site.cluster));
        let tried = self.brave(&[&["backup-push", "--json"], extent].concat());
        // A source that cannot be trusted here is refused by name.
        let refused = tried.as_ref().is_some_and(|output| output.status.code() == Some(3));
        let output = match tried {
            Some(output) if !refused => output,
            _ => {
                self.notice_backups(state.as_ref());
                self.run(&["backup-push", "--json"])
            }
        };
        assert!(output.status.success(), "{extent:?}: {}", describe(&output));
        let told = self.listed(&output.stdout, state);
        format!("backup {}{told}", if refused { format!("({extent:?} refused) ") } else { String::new() })
    }

    /// A backup that was reported as failed may be there all the same: its last answer was lost. Then it is one.
    fn notice_backups(&mut self, state: Option<&State>) {
        for summary in self.site.list() {
            if self.backups.iter().all(|known| summary["id"] != known.id.as_str()) {
                let told = self.listed(summary.to_string().as_bytes(), state.cloned());
                println!("    is there although it failed: {told}");
            }
        }
    }

    /// Takes note of a backup that was taken.
    fn listed(&mut self, json: &[u8], state: Option<State>) -> String {
        let summary: Value = serde_json::from_slice(json).expect("JSON");
        let text = |field: &str| summary[field].as_str().unwrap_or_default().to_owned();
        assert_eq!(summary["damaged_pages"], 0, "{summary}");
        let backup = Backup {
            id: text("id"),
            timeline: summary["stop_timeline"].as_u64().expect("a timeline") as u32,
            start: lsn(&text("start_lsn")),
            stop: lsn(&text("stop_lsn")),
            state,
            taken: Instant::now(),
            stopped: text("stop_time").parse().expect("a time"),
        };
        let told = format!("{} from {}", backup.id, text("changes_from"));
        *self.tally.backups.entry(text("changes_from")).or_default() += 1;
        self.backups.push(backup);
        told
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.site.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("start walhold")
    }

    fn back_up_under_writes(&mut self, extent: &[&str], step: u64) -> String {
        self.tally.did("backup under writes");
        self.begin_weather();
        let mut child = self.spawn(&[&["backup-push", "--json"], extent].concat());
        while child.try_wait().expect("look after it").is_none() {
            change(&self.site.cluster, &mut self.random, step, During::Backup);
        }
        let output = child.wait_with_output().expect("its output");
        self.end_weather();
        let Some(output) = self.endured(output) else {
            self.notice_backups(None);
            return "backup under writes, in vain".to_owned();
        };
        if output.status.code() == Some(3) {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let said = text.lines().last().unwrap_or_default();
            return format!("backup under writes: {extent:?} refused: {said}");
        }
        assert!(output.status.success(), "{extent:?}: {}", describe(&output));
        let told = self.listed(&output.stdout, None);
        // It is not known what it holds, but what comes after it is.
        self.moment(step);
        format!("backup under writes: {told}")
    }

    fn crash_under_backup(&mut self, extent: &[&str]) -> String {
        self.tally.did("crash under backup");
        let child = self.spawn(&[&["backup-push", "--json"], extent].concat());
        std::thread::sleep(Duration::from_millis(self.random.below(1500)));
        self.site.cluster.kill9();
        self.tally.kills += 1;
        self.site.cluster.start();
        let output = child.wait_with_output().expect("its output");
        // It may have ended before.
        match output.status.success() {
            true => format!("backup before a crash: {}", self.listed(&output.stdout, None)),
            false => format!("crash under a backup: {}", output.status),
        }
    }

    fn interrupted_backup(&mut self) -> String {
        self.tally.did("interrupted backup");
        let mut child = self.spawn(&["backup-push", "--json"]);
        std::thread::sleep(Duration::from_millis(self.random.below(1500)));
        let _ = child.kill();
        self.tally.kills += 1;
        let output = child.wait_with_output().expect("its output");
        match output.status.success() {
            true => format!("backup: {}", self.listed(&output.stdout, None)),
            false => "interrupted backup".to_owned(),
        }
    }

    /// An incremental and a full backup of the same moment.
    fn twins(&mut self) -> String {
        if self.server.autovacuum {
            return self.back_up(&[]);
        }
        self.tally.did("twins");
        let told = self.back_up(&[]);
        let compared = self.compare_with_full();
        format!("twins of {} pages, {} with other hints: {told}", compared.pages, compared.masked)
    }

    /// Takes a full backup too, and compares every page of both.
    pub fn compare_with_full(&mut self) -> pages::Compared {
        let since = self.backups[self.backups.len() - 1].start;
        // Nothing else may read meanwhile.
        let text = self.site.ok(&["backup-push", "--json", "--full"]);
        self.listed(text.as_bytes(), None);
        let kinds = pages::Kinds::of(&self.site.cluster);
        let twins = [self.backups.len() - 2, self.backups.len() - 1].map(|at| {
            let backup = &self.backups[at];
            let (id, timeline) = (backup.id.clone(), backup.timeline.to_string());
            let place = self.new_place();
            let arguments = ["--backup", &id, "--target-immediate", "--timeline", &timeline];
            let output = self.restored(&place, &arguments.map(str::to_owned), &[]);
            assert!(output.status.success(), "{}", describe(&output));
            place
        });
        let tolerance = match self.server {
            _ if self.line.timeline > 1 => pages::Tolerance::Replay,
            Server { checksums: false, log_hints: false, .. } => pages::Tolerance::Hints,
            _ => pages::Tolerance::Nothing,
        };
        let compared = pages::assert_same(&twins[0], &twins[1], &kinds, tolerance, since);
        self.tally.pages_compared += compared.pages;
        twins.iter().for_each(|place| fs::remove_dir_all(place).expect("remove a twin"));
        compared
    }

    // --- verification --------------------------------------------------------------------------------------------

    fn verify(&mut self) -> String {
        self.tally.did("verify");
        self.archive();
        let depth: &[&str] = if self.random.chance(30) { &["--deep"] } else { &[] };
        let arguments = [&["verify"], depth].concat();
        if let Some(output) = self.brave(&arguments) {
            assert!(output.status.success(), "{}", describe(&output));
        }
        self.verify_now(&arguments);
        arguments.join(" ")
    }

    /// Nothing is wrong with the repository.
    pub fn verify_now(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", describe(&output));
    }

    // --- the server's own fate --------------------------------------------------------------------------------------

    fn crash(&mut self) -> String {
        self.tally.did("crash");
        self.tally.kills += 1;
        self.site.cluster.kill9();
        self.site.cluster.start();
        "crash".to_owned()
    }

    /// A standby from the repository takes over; the old primary is lost.
    fn promote(&mut self) -> String {
        self.tally.did("promote");
        let state = State::of(&self.site.cluster);
        let last = self.site.cluster.value("SELECT pg_current_wal_insert_lsn()");
        self.archive();
        let place = self.new_place();
        let (data, spaces) = (place.join("data").display().to_string(), self.mapped_below(&place));
        let mut arguments = vec!["restore", "--standby", "--pgdata", &data];
        arguments.extend(spaces.iter().map(String::as_str));
        self.restore_in_weather(&place.join("data"), &arguments);
        let mut standby = Cluster::from_data_directory(self.site.cluster.major(), &place.join("data"));
        standby.start();
        standby.wait_for("replay", &format!("SELECT pg_last_wal_replay_lsn() >= '{last}'"));
        if self.random.chance(40) {
            self.back_up_standby(&standby, state.clone());
        }
        match self.random.chance(50) {
            true => self.site.cluster.stop(StopMode::Fast),
            false => self.site.cluster.kill9(),
        }
        standby.promote();
        standby.stop(StopMode::Fast);
        drop(standby);
        self.remove_data();
        fs::rename(place.join("data"), self.site.cluster.data_directory())
            .expect("put the standby in its place");
        self.go_on(&state, "after a promotion");
        format!("promoted to timeline {}", self.line.timeline)
    }

    fn back_up_standby(&mut self, standby: &Cluster, state: State) {
        self.tally.did("backup of a standby");
        let mut command = self.site.command(&["backup-push", "--json"]);
        command.envs(standby.environment());
        let output = match self.brave_with(&mut command) {
            Some(output) => output,
            None => {
                self.notice_backups(Some(&state));
                command.output().expect("run walhold")
            }
        };
        assert!(output.status.success(), "{}", describe(&output));
        self.listed(&output.stdout, Some(state));
    }

    /// Recovers the cluster itself to an earlier moment.
    fn recover_in_place(&mut self, step: u64) -> String {
        if self.random.chance(30) || !self.moments.iter().any(|m| self.backups.iter().any(|b| m.is_after(b)))
        {
            self.moment(step);
        }
        self.tally.did("recovery in place");
        self.archive();
        let Some(wish) = self.wish(Wishes::AnyMoment) else { return "nothing to recover to".to_owned() };
        let data = self.site.cluster.data_directory().to_owned();
        let delta = self.random.chance(50);
        let location = |space: &str| {
            let sql =
                format!("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = '{space}'");
            PathBuf::from(self.site.cluster.value(&sql))
        };
        let mut spaces = self.mapped(location);
        match self.random.chance(50) {
            true => self.site.cluster.stop(StopMode::Fast),
            false => self.site.cluster.kill9(),
        }
        if !delta {
            self.remove_data();
            let place = self.new_place();
            spaces = self.mapped_below(&place);
        }
        let place = data.display().to_string();
        let mut arguments = vec!["restore", "--pgdata", &place];
        arguments.extend(spaces.iter().map(String::as_str));
        arguments.extend(delta.then_some("--delta"));
        arguments.extend(wish.arguments.iter().map(String::as_str));
        self.restore_in_weather(&data, &arguments);
        self.go_on(&wish.state, &wish.what);
        format!(
            "recovered in place{} to {}, timeline {}",
            if delta { " by delta" } else { "" },
            wish.what,
            self.line.timeline
        )
    }

    /// The data directory has another history now.
    fn go_on(&mut self, state: &State, what: &str) {
        let data = self.site.cluster.data_directory().to_owned();
        self.own(&data);
        self.site.cluster.start();
        self.site.cluster.wait_promoted();
        state.assert_is(&State::of(&self.site.cluster), what);
        self.line = Line::of(&self.site.cluster);
        self.tally.restores += 1;
    }

    // --- restores ---------------------------------------------------------------------------------------------------

    fn restore(&mut self) -> String {
        self.restore_wish(Wishes::Any)
    }

    fn restore_wish(&mut self, wishes: Wishes) -> String {
        self.archive();
        let Some(wish) = self.wish(wishes) else { return "nothing to restore".to_owned() };
        self.tally.did("restore");
        let spare = self.spare.take().filter(|_| self.random.chance(60));
        let (place, how) = match spare {
            Some(place) => (place, "over an older one"),
            None => (self.new_place(), "into an empty directory"),
        };
        let mut options: Vec<&str> = if how.starts_with("over") { vec!["--delta"] } else { vec![] };
        if self.random.chance(20) {
            self.interrupted_restore(&place, &wish.arguments, &options);
            if place.join("data").exists() {
                options = vec!["--delta"];
            }
        }
        let all = self.clone_into(&place, &wish.arguments, &options);
        self.restore_in_weather(&place.join("data"), &all.iter().map(String::as_str).collect::<Vec<_>>());
        let mut copy = self.recovered(&place);
        let what = format!("{} {how}", wish.what);
        self.check(&copy, &wish.state, &what);
        self.leave(&mut copy, place);
        format!("restored {what}")
    }

    fn restored(&self, place: &Path, arguments: &[String], options: &[&str]) -> std::process::Output {
        let all = self.clone_into(place, arguments, options);
        self.run(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn clone_into(&self, place: &Path, arguments: &[String], options: &[&str]) -> Vec<String> {
        let data = place.join("data").display().to_string();
        let mut all = ["restore", "--clone", "--pgdata", &data].map(str::to_owned).to_vec();
        all.extend(self.mapped_below(place));
        all.extend(arguments.iter().cloned());
        all.extend(options.iter().map(|option| (*option).to_owned()));
        all
    }

    /// Succeeds, if not at once then the second time. What a failure leaves cannot be started by accident.
    fn restore_in_weather(&mut self, data: &Path, arguments: &[&str]) {
        let was_there = data.exists();
        if let Some(output) = self.brave(arguments) {
            return assert!(output.status.success(), "{arguments:?}: {}", describe(&output));
        }
        assert!(was_there || !data.join("global/pg_control").exists(), "{arguments:?}");
        let mut again = arguments.to_vec();
        if data.exists() && !again.contains(&"--delta") {
            again.push("--delta");
        }
        let output = self.run(&again);
        assert!(output.status.success(), "{again:?}: {}", describe(&output));
    }

    /// What it leaves cannot be started by accident.
    fn interrupted_restore(&mut self, place: &Path, arguments: &[String], options: &[&str]) {
        let all = self.clone_into(place, arguments, options);
        let mut child = self.spawn(&all.iter().map(String::as_str).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(self.random.below(600)));
        let _ = child.kill();
        self.tally.kills += 1;
        self.tally.did("interrupted restore");
        let _ = child.wait_with_output();
    }

    /// A directory for a later delta restore: as it is, or ahead of what it was, or crashed.
    fn leave(&mut self, copy: &mut Cluster, place: PathBuf) {
        if !self.random.chance(70) {
            copy.kill9();
            return fs::remove_dir_all(&place).expect("remove a copy");
        }
        if self.random.chance(50) {
            for step in 0..4 {
                change(copy, &mut self.random, step, During::Peace);
            }
        }
        match self.random.chance(50) {
            true => copy.stop(StopMode::Fast),
            false => copy.kill9(),
        }
        if let Some(older) = self.spare.replace(place) {
            fs::remove_dir_all(older).expect("remove an older copy");
        }
    }

    fn wish(&mut self, wishes: Wishes) -> Option<Wish> {
        // A standby's backup may end where a segment does, and its line with it: then there is no record before which replay could
        // stop, and the plan says so.
        let has_end = |backup: &Backup| backup.state.is_some() && !backup.stop.is_multiple_of(1 << 20);
        let quiet: Vec<usize> = (0..self.backups.len()).filter(|at| has_end(&self.backups[*at])).collect();
        let reachable: Vec<(usize, usize)> = (0..self.moments.len())
            .flat_map(|m| (0..self.backups.len()).map(move |b| (m, b)))
            .filter(|(m, b)| self.moments[*m].is_after(&self.backups[*b]))
            .collect();
        let of_backup = match wishes {
            Wishes::Any => reachable.is_empty() || (!quiet.is_empty() && self.random.chance(35)),
            Wishes::AnyMoment | Wishes::LastMoment => false,
        };
        if of_backup {
            let backup = &self.backups[*quiet.get(self.random.below(quiet.len().max(1) as u64) as usize)?];
            let arguments =
                ["--backup", &backup.id, "--target-immediate", "--timeline", &backup.timeline.to_string()];
            let arguments = arguments.map(str::to_owned).to_vec();
            return Some(Wish {
                arguments,
                state: backup.state.clone()?,
                what: format!("the end of {}", backup.id),
            });
        }
        let chosen = match wishes {
            Wishes::LastMoment => reachable.iter().rev().find(|(m, _)| *m + 1 == self.moments.len())?,
            _ if reachable.is_empty() => return None,
            _ => self.random.pick(&reachable),
        };
        let (moment, backup) = (&self.moments[chosen.0], &self.backups[chosen.1]);
        let target: &[&str] = match self.random.below(4) {
            0 => &["--target-name", &moment.name],
            1 => &["--target-lsn", &moment.lsn],
            2 => &["--target-xid", &moment.xid],
            _ => &["--target-time", &moment.time],
        };
        let timeline = moment.line.timeline.to_string();
        let mut arguments: Vec<&str> = [target, &["--timeline", &timeline]].concat();
        if self.random.chance(60) {
            arguments.extend(["--backup", &backup.id]);
        }
        Some(Wish {
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            state: moment.state.clone(),
            what: format!("{} by {} from {}", moment.name, target[0], backup.id),
        })
    }
}

/// Which restores are meant.
#[derive(Clone, Copy, PartialEq)]
enum Wishes {
    Any,
    AnyMoment,
    LastMoment,
}
