//! Which backups the policies keep, and why.
//!
//! In: the good backups of one cluster, and the policies. Out: the reasons to keep each. Policies combine: what one of them
//! keeps is kept. Pure, so that every corner is tested without a repository.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Serialize, Serializer};

use crate::config::RetentionSettings;
use crate::format::BackupId;
use crate::pg::{PgTimestamp, TimelineId};

/// What is kept.
#[derive(Clone, Debug)]
pub struct Policy {
    /// As configured.
    pub settings: RetentionSettings,
    zone: TimeZone,
}

/// Why a backup stays.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// It is marked permanent.
    Permanent,
    /// Among the newest so many.
    Last(u32),
    /// It ended within the window.
    Within,
    /// The window's first moments are recovered from it, along this timeline.
    WindowStart(TimelineId),
    /// The newest of a day, written as the period's name.
    Daily(String),
    /// Of a week.
    Weekly(String),
    /// Of a month.
    Monthly(String),
    /// Of a year.
    Yearly(String),
    /// The newest good one that leads to this timeline.
    LastGood(TimelineId),
    /// A backup at work builds on it.
    BaseOf(BackupId),
    /// A restore reads it, or did a moment ago.
    Restored,
    /// It cannot be restored as it is, so no policy counts it; it goes only if it is named.
    Incomplete(String),
}

impl Reason {
    /// The word in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Reason::Permanent => "permanent",
            Reason::Last(_) => "last",
            Reason::Within => "within",
            Reason::WindowStart(_) => "window-start",
            Reason::Daily(_) => "daily",
            Reason::Weekly(_) => "weekly",
            Reason::Monthly(_) => "monthly",
            Reason::Yearly(_) => "yearly",
            Reason::LastGood(_) => "last-good",
            Reason::BaseOf(_) => "base",
            Reason::Restored => "restore",
            Reason::Incomplete(_) => "incomplete",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Permanent => write!(f, "permanent"),
            Reason::Last(1) => write!(f, "the newest"),
            Reason::Last(place) => write!(f, "number {place} of the newest"),
            Reason::Within => write!(f, "within the window"),
            Reason::WindowStart(timeline) => {
                write!(f, "the window on timeline {} begins with it", timeline.get())
            }
            Reason::Daily(period) => write!(f, "day {period}"),
            Reason::Weekly(period) => write!(f, "week {period}"),
            Reason::Monthly(period) => write!(f, "month {period}"),
            Reason::Yearly(period) => write!(f, "year {period}"),
            Reason::LastGood(timeline) => {
                write!(f, "the last good backup for timeline {}", timeline.get())
            }
            Reason::BaseOf(id) => write!(f, "backup {id}, which is at work, builds on it"),
            Reason::Restored => write!(f, "a restore reads it, or did within the last hour"),
            Reason::Incomplete(problem) => {
                write!(f, "cannot be restored ({problem}); --drop-damaged deletes it")
            }
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("reason", self.word())?;
        map.serialize_entry("text", &self.to_string())?;
        map.end()
    }
}

/// A good backup, as far as policies look at it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub id: BackupId,
    /// When it was complete.
    pub stopped: PgTimestamp,
    /// Timelines that are still followed, and that it leads to.
    pub leads_to: BTreeSet<TimelineId>,
}

/// How many periods, how one is named, and the reason that it gives.
type Period = (Option<u32>, &'static str, fn(String) -> Reason);

/// The reasons per backup; one that is not there, or has none, goes.
pub type Reasons = BTreeMap<BackupId, Vec<Reason>>;

impl Policy {
    /// The policies of a configuration; `None` if there are none.
    pub fn new(settings: &RetentionSettings) -> Option<Policy> {
        let said = settings.keep_last.is_some()
            || settings.keep_within.is_some()
            || [settings.daily, settings.weekly, settings.monthly, settings.yearly]
                .iter()
                .any(Option::is_some);
        let zone = TimeZone::get(&settings.time_zone).unwrap_or(TimeZone::UTC);
        said.then(|| Policy { settings: settings.clone(), zone })
    }

    /// Where the window begins; `None` without `keep_within`.
    pub fn window_start(&self, now: PgTimestamp) -> Option<PgTimestamp> {
        let length = self.settings.keep_within?;
        let microseconds = i64::try_from(length.as_micros()).unwrap_or(i64::MAX);
        Some(PgTimestamp::new(now.get().saturating_sub(microseconds)))
    }

    /// What the policies keep of these backups; `lines` are the timelines that are still followed.
    pub fn keep(&self, candidates: &[Candidate], lines: &BTreeSet<TimelineId>, now: PgTimestamp) -> Reasons {
        let mut newest_first: Vec<&Candidate> = candidates.iter().collect();
        newest_first.sort_by(|a, b| (b.stopped, &b.id).cmp(&(a.stopped, &a.id)));
        let mut reasons = Reasons::new();
        let mut add = |id: &BackupId, reason| reasons.entry(id.clone()).or_default().push(reason);
        if let Some(count) = self.settings.keep_last {
            for (place, candidate) in (1..=count).zip(&newest_first) {
                add(&candidate.id, Reason::Last(place));
            }
        }
        if let Some(start) = self.window_start(now) {
            for candidate in newest_first.iter().filter(|candidate| candidate.stopped > start) {
                add(&candidate.id, Reason::Within);
            }
            for line in lines {
                let before =
                    |candidate: &&&Candidate| candidate.stopped <= start && candidate.leads_to.contains(line);
                if let Some(anchor) = newest_first.iter().find(before) {
                    add(&anchor.id, Reason::WindowStart(*line));
                }
            }
        }
        let settings = &self.settings;
        let periods: [Period; 4] = [
            (settings.daily, "%Y-%m-%d", Reason::Daily),
            (settings.weekly, "%G-W%V", Reason::Weekly),
            (settings.monthly, "%Y-%m", Reason::Monthly),
            (settings.yearly, "%Y", Reason::Yearly),
        ];
        for (count, format, reason) in periods {
            let Some(count) = count else { continue };
            let mut seen: Vec<String> = Vec::new();
            for candidate in &newest_first {
                let period = self.period(candidate.stopped, format);
                if seen.last() == Some(&period) {
                    continue;
                }
                if seen.len() as u64 == u64::from(count) {
                    break;
                }
                add(&candidate.id, reason(period.clone()));
                seen.push(period);
            }
        }
        for line in lines {
            if let Some(newest) = newest_first.iter().find(|candidate| candidate.leads_to.contains(line)) {
                add(&newest.id, Reason::LastGood(*line));
            }
        }
        reasons
    }

    fn period(&self, at: PgTimestamp, format: &str) -> String {
        match at.to_jiff() {
            Some(moment) => moment.to_zoned(self.zone.clone()).strftime(format).to_string(),
            None => at.to_string(),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        let count = |name: &str, count: Option<u32>| count.map(|count| format!("{name} {count}"));
        let within = |length: Duration| format!("keep_within {}", crate::output::duration_exact(length));
        let parts = [
            count("keep_last", settings.keep_last),
            settings.keep_within.map(within),
            count("daily", settings.daily),
            count("weekly", settings.weekly),
            count("monthly", settings.monthly),
            count("yearly", settings.yearly),
        ];
        let text = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
        write!(f, "{text} (days begin in {})", settings.time_zone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> RetentionSettings {
        RetentionSettings {
            keep_last: None,
            keep_within: None,
            daily: None,
            weekly: None,
            monthly: None,
            yearly: None,
            time_zone: "UTC".to_owned(),
            grace: Duration::ZERO,
            attempt_grace: Duration::ZERO,
        }
    }

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn at(text: &str) -> PgTimestamp {
        PgTimestamp::from_jiff(text.parse().unwrap())
    }

    /// A backup that stopped at a moment and leads to timelines.
    fn backup(stopped: &str, leads_to: &[u32]) -> Candidate {
        let moment: jiff::Timestamp = stopped.parse().unwrap();
        let name = format!("{}-00000001-0000000A000000FE", moment.strftime("%Y%m%dT%H%M%SZ"));
        let leads_to = leads_to.iter().map(|number| tli(*number)).collect();
        Candidate { id: name.parse().unwrap(), stopped: at(stopped), leads_to }
    }

    /// Days of the backups that stay, and the words why.
    fn kept(settings: RetentionSettings, candidates: &[Candidate], lines: &[u32], now: &str) -> Vec<String> {
        let lines = lines.iter().map(|number| tli(*number)).collect();
        let reasons = Policy::new(&settings).unwrap().keep(candidates, &lines, at(now));
        let words = |reasons: &Vec<Reason>| reasons.iter().map(Reason::word).collect::<Vec<_>>().join("+");
        reasons.iter().map(|(id, reasons)| format!("{} {}", &id.as_str()[4..8], words(reasons))).collect()
    }

    fn nightly(days: std::ops::RangeInclusive<u32>) -> Vec<Candidate> {
        days.map(|day| backup(&format!("2026-11-{day:02}T23:30:00Z"), &[1])).collect()
    }

    #[test]
    fn no_policy_is_no_policy() {
        assert!(Policy::new(&settings()).is_none());
    }

    #[test]
    fn the_newest_so_many_stay() {
        let policy = RetentionSettings { keep_last: Some(2), ..settings() };
        let kept = kept(policy, &nightly(10..=15), &[1], "2026-11-16T00:00:00Z");
        assert_eq!(kept, ["1114 last", "1115 last+last-good"]);
    }

    #[test]
    fn a_window_needs_the_backup_before_it() {
        let policy = RetentionSettings { keep_within: Some(Duration::from_secs(3 * 86_400)), ..settings() };
        let kept = kept(policy, &nightly(10..=15), &[1], "2026-11-16T12:00:00Z");
        assert_eq!(kept, ["1112 window-start", "1113 within", "1114 within", "1115 within+last-good"]);
    }

    #[test]
    fn a_window_longer_than_the_archive_keeps_everything() {
        let policy = RetentionSettings { keep_within: Some(Duration::from_secs(90 * 86_400)), ..settings() };
        assert_eq!(kept(policy, &nightly(10..=15), &[1], "2026-11-16T12:00:00Z").len(), 6);
    }

    #[test]
    fn each_line_that_is_followed_keeps_its_own_start_and_last_backup() {
        // Taken after the point to which the cluster was recovered: it leads to the old line only.
        let mut backups = nightly(10..=11);
        backups.iter_mut().for_each(|backup| backup.leads_to = [tli(1), tli(2)].into());
        backups.extend(nightly(12..=13));
        let policy = RetentionSettings { keep_last: Some(1), ..settings() };
        let kept = kept(policy, &backups, &[2], "2026-11-14T00:00:00Z");
        assert_eq!(kept, ["1111 last-good", "1113 last"]);
    }

    #[test]
    fn periods_begin_in_the_given_zone() {
        // 23:30 UTC is the next day in Berlin.
        let policy =
            RetentionSettings { daily: Some(2), time_zone: "Europe/Berlin".to_owned(), ..settings() };
        let twice = [backup("2026-11-10T22:30:00Z", &[1]), backup("2026-11-10T23:30:00Z", &[1])];
        let kept = kept(policy, &twice, &[], "2026-11-12T00:00:00Z");
        assert_eq!(kept.len(), 2, "{kept:?}");
        let policy = RetentionSettings { daily: Some(2), ..settings() };
        let in_utc = super::tests::kept(policy, &twice, &[], "2026-11-12T00:00:00Z");
        assert_eq!(in_utc.len(), 1, "{in_utc:?}");
    }

    #[test]
    fn grandfather_father_and_son_combine() {
        let mut backups = nightly(1..=30);
        backups.push(backup("2025-12-31T23:00:00Z", &[1]));
        backups.push(backup("2026-10-31T23:00:00Z", &[1]));
        let policy = RetentionSettings {
            daily: Some(2),
            weekly: Some(2),
            monthly: Some(2),
            yearly: Some(2),
            ..settings()
        };
        let kept = kept(policy, &backups, &[1], "2026-12-01T12:00:00Z");
        assert_eq!(
            kept,
            [
                "1231 yearly",
                "1031 monthly",
                "1129 daily+weekly",
                "1130 daily+weekly+monthly+yearly+last-good"
            ]
        );
    }

    #[test]
    fn a_period_without_a_backup_does_not_count() {
        let backups = [backup("2026-01-05T01:00:00Z", &[1]), backup("2026-11-05T01:00:00Z", &[1])];
        let policy = RetentionSettings { monthly: Some(2), ..settings() };
        assert_eq!(kept(policy, &backups, &[1], "2026-12-01T00:00:00Z").len(), 2);
    }
}
