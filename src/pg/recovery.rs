//! Recovery settings as PostgreSQL 12+ reads them.
//!
//! In: what to recover to. Out: settings for `postgresql.auto.conf`. What must hold: PostgreSQL processes settings in the order of the
//! lines, and each `recovery_target_*` line that comes while another target is set is FATAL ("multiple recovery targets specified"),
//! *even if its value is empty* (`src/backend/access/transam/xlogrecovery.c`, `assign_recovery_target_time` and its kin). So all
//! targets are emptied first and the wanted one is set after them; `postgresql.auto.conf` is read after `postgresql.conf`, so
//! nothing left over there can come in between.

mod configuration;
mod shell;

use std::fmt;

use super::{Lsn, PgTimestamp, TimelineId};

pub use configuration::{
    ParseConfigurationError, Setting, parse_settings, quote_value, remove_settings, replace_settings, setting,
};
pub use shell::{command_word, shell_word};

/// Where recovery stops.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum RecoveryTarget {
    /// Nowhere: the end of the WAL that can be had.
    #[default]
    Latest,
    /// At the first commit or abort after this moment (`recovery_target_time`).
    Time(PgTimestamp),
    /// At this position (`recovery_target_lsn`).
    Lsn(Lsn),
    /// At the commit or abort of this transaction (`recovery_target_xid`).
    Xid(u32),
    /// At this restore point (`recovery_target_name`).
    Name(String),
    /// As soon as the cluster is consistent (`recovery_target = 'immediate'`).
    Immediate,
}

impl RecoveryTarget {
    /// The setting that names this target and its value; `None` for the end of WAL.
    fn setting(&self) -> Option<(&'static str, String)> {
        Some(match self {
            RecoveryTarget::Latest => return None,
            RecoveryTarget::Time(moment) => ("recovery_target_time", moment.to_string()),
            RecoveryTarget::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            RecoveryTarget::Xid(xid) => ("recovery_target_xid", xid.to_string()),
            RecoveryTarget::Name(name) => ("recovery_target_name", name.clone()),
            RecoveryTarget::Immediate => ("recovery_target", "immediate".to_owned()),
        })
    }
}

impl fmt::Display for RecoveryTarget {
    /// `time 2026-11-20 22:46:13.123456+00`, `LSN 0/16B3748`, `end of WAL`, …
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryTarget::Latest => f.write_str("end of WAL"),
            RecoveryTarget::Time(moment) => write!(f, "time {moment}"),
            RecoveryTarget::Lsn(lsn) => write!(f, "LSN {lsn}"),
            RecoveryTarget::Xid(xid) => write!(f, "transaction {xid}"),
            RecoveryTarget::Name(name) => write!(f, "restore point {name:?}"),
            RecoveryTarget::Immediate => f.write_str("first consistent state"),
        }
    }
}

/// The longest name of a restore point, in bytes (`MAXFNAMELEN - 1`).
pub const RESTORE_POINT_NAME_MAX: usize = 63;

/// Whether the record at the target is replayed (`recovery_target_inclusive`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TargetInclusion {
    /// Stops after it.
    #[default]
    Inclusive,
    /// Stops before it.
    Exclusive,
}

/// What the server does at the target (`recovery_target_action`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TargetAction {
    /// Stays read-only until told; with `hot_standby = off` it shuts down.
    Pause,
    /// Opens for writing, on a new timeline.
    #[default]
    Promote,
    /// Shuts down.
    Shutdown,
}

impl TargetAction {
    /// PostgreSQL's word.
    pub const fn name(self) -> &'static str {
        match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        }
    }
}

/// Which timeline recovery follows (`recovery_target_timeline`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TargetTimeline {
    /// The newest that descends from the backup's; asked for again while a standby runs.
    #[default]
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// This one.
    Id(TimelineId),
}

impl fmt::Display for TargetTimeline {
    /// As the setting takes it: in decimal, unlike in file names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetTimeline::Latest => f.write_str("latest"),
            TargetTimeline::Current => f.write_str("current"),
            TargetTimeline::Id(timeline) => write!(f, "{}", timeline.get()),
        }
    }
}

/// What the recovered server becomes: which signal file stands in its data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RecoveryMode {
    /// `recovery.signal`: recovery ends at the target.
    #[default]
    Recovery,
    /// `standby.signal`: recovery goes on until promotion.
    Standby,
}

impl RecoveryMode {
    /// The empty file that asks for this mode.
    pub const fn signal_file(self) -> &'static str {
        match self {
            RecoveryMode::Recovery => "recovery.signal",
            RecoveryMode::Standby => "standby.signal",
        }
    }
}

/// Everything that decides how a restored server recovers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// What the server becomes.
    pub mode: RecoveryMode,
    /// Where it stops.
    pub target: RecoveryTarget,
    /// Before or after the target's record.
    pub inclusion: TargetInclusion,
    /// What happens there.
    pub action: TargetAction,
    /// Which history is followed.
    pub timeline: TargetTimeline,
    /// `restore_command`, with `%f` and `%p`.
    pub restore_command: String,
    /// `recovery_end_command`; empty for none.
    pub recovery_end_command: String,
}

/// The settings that name a target. Emptied together, because any left over beside the wanted one is FATAL.
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_time",
    "recovery_target_lsn",
    "recovery_target_xid",
    "recovery_target_name",
];

/// Every setting that [`recovery_settings`] may write: what to remove from `postgresql.auto.conf` once recovery is over.
pub const RECOVERY_SETTINGS: [&str; 12] = [
    "restore_command",
    "recovery_end_command",
    "archive_cleanup_command",
    "recovery_min_apply_delay",
    "recovery_target_timeline",
    "recovery_target_inclusive",
    "recovery_target_action",
    "recovery_target",
    "recovery_target_time",
    "recovery_target_lsn",
    "recovery_target_xid",
    "recovery_target_name",
];

/// The lines for `postgresql.auto.conf`, in the order in which they must stand there ([`replace_settings`] keeps it).
///
/// In recovery mode two settings that a standby's configuration may hold are switched off: `recovery_min_apply_delay` would hold
/// recovery back for as long, and `archive_cleanup_command` would remove files from an archive that is not this server's.
pub fn recovery_settings(recovery: &Recovery) -> Vec<(String, String)> {
    let mut settings = vec![
        ("restore_command", recovery.restore_command.clone()),
        ("recovery_end_command", recovery.recovery_end_command.clone()),
    ];
    if recovery.mode == RecoveryMode::Recovery {
        settings.push(("archive_cleanup_command", String::new()));
        settings.push(("recovery_min_apply_delay", "0".to_owned()));
    }
    let inclusive = match recovery.inclusion {
        TargetInclusion::Inclusive => "on",
        TargetInclusion::Exclusive => "off",
    };
    settings.push(("recovery_target_timeline", recovery.timeline.to_string()));
    settings.push(("recovery_target_inclusive", inclusive.to_owned()));
    settings.push(("recovery_target_action", recovery.action.name().to_owned()));
    let wanted = recovery.target.setting();
    let others = TARGETS.iter().filter(|name| wanted.as_ref().is_none_or(|(wanted, _)| wanted != *name));
    settings.extend(others.map(|name| (*name, String::new())));
    settings.extend(wanted);
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(target: RecoveryTarget) -> Vec<(String, String)> {
        let recovery =
            Recovery { target, restore_command: "walhold wal-fetch %f %p".into(), ..Recovery::default() };
        recovery_settings(&recovery)
    }

    #[test]
    fn the_wanted_target_comes_after_the_emptied_ones() {
        let targets = [
            (
                RecoveryTarget::Time(PgTimestamp::new(0)),
                "recovery_target_time",
                "2000-01-01 00:00:00.000000+00",
            ),
            (RecoveryTarget::Lsn(Lsn::new(0x16B3748)), "recovery_target_lsn", "0/16B3748"),
            (RecoveryTarget::Xid(4_000_000_000), "recovery_target_xid", "4000000000"),
            (RecoveryTarget::Name("before 'it'".into()), "recovery_target_name", "before 'it'"),
            (RecoveryTarget::Immediate, "recovery_target", "immediate"),
        ];
        for (target, name, value) in targets {
            let settings = values(target);
            assert_eq!(settings.last(), Some(&(name.to_owned(), value.to_owned())));
            for other in TARGETS.iter().filter(|other| **other != name) {
                assert!(settings.contains(&((*other).to_owned(), String::new())), "{other} is not emptied");
            }
        }
        assert_eq!(values(RecoveryTarget::Latest).iter().filter(|(_, value)| value.is_empty()).count(), 7);
    }

    #[test]
    fn everything_written_can_be_removed() {
        for mode in [RecoveryMode::Recovery, RecoveryMode::Standby] {
            for (name, _) in recovery_settings(&Recovery { mode, ..Recovery::default() }) {
                assert!(RECOVERY_SETTINGS.contains(&name.as_str()), "{name} would stay");
            }
        }
    }

    #[test]
    fn a_standby_keeps_its_delay() {
        let settings = recovery_settings(&Recovery { mode: RecoveryMode::Standby, ..Recovery::default() });
        assert!(!settings.iter().any(|(name, _)| name == "recovery_min_apply_delay"));
        let timeline = TargetTimeline::Id(TimelineId::new(10).unwrap());
        assert_eq!(timeline.to_string(), "10");
    }
}
