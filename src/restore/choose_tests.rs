use super::super::prove::StopAt;
use super::super::synthetic::{Archive, backup, lsn, second, segment, tli};
use super::super::time_text::TargetTime;
use super::*;
use crate::error::Explain;

fn time(seconds: i64) -> Target {
    Target::Time(TargetTime {
        moment: second(seconds),
        given: String::new(),
        zone: jiff::tz::TimeZone::UTC,
        assumed_zone: None,
    })
}

fn question(target: Target) -> Question {
    Question {
        target,
        inclusion: TargetInclusion::Inclusive,
        timeline: TargetTimeline::Latest,
        backup: BackupRequest::Auto,
        role: Role::Replacement,
        gap: GapPolicy::Refuse,
    }
}

fn ask(archive: &Archive, backups: &[BackupSummary], question: &Question) -> Result<Choice, String> {
    choose(backups, &archive.view, archive, question)
        .map_err(|error| format!("{error} HINT: {}", error.hint().unwrap_or_default()))
}

fn refusal(archive: &Archive, backups: &[BackupSummary], question: &Question) -> String {
    match ask(archive, backups, question) {
        Ok(choice) => panic!("not refused: {choice:?}"),
        Err(text) => text,
    }
}

/// Two backups (complete at second 20 and 40) and transactions 701 to 706.
fn archive() -> (Archive, Vec<BackupSummary>) {
    let archive = Archive::new()
        .segment(1, 2, &[(0x80, 700, 19), (0x1000, 701, 25)])
        .segment(1, 3, &[(0x1000, 702, 30), (-0x2000, 703, 35)])
        .segment(1, 4, &[(0x1000, 704, 50), (0x2000, 705, 48)])
        .segment(1, 5, &[(0x1000, 706, 60)]);
    (archive, vec![backup(1, 2, 20), backup(1, 4, 40)])
}

#[test]
fn the_newest_backup_before_a_time_is_used_and_replay_stops_at_the_first_later_transaction() {
    let (archive, backups) = archive();
    let choice = ask(&archive, &backups, &question(time(55))).unwrap();
    assert_eq!(choice.backup.id, backups[1].id);
    assert_eq!((choice.stop.lsn, choice.stop.last_kept.unwrap().xid), (lsn("0/5001000"), 705));
    assert!(matches!(choice.stop.at, StopAt::Before(end) if end.xid == 706));
    // Times are not monotonic: 704 at second 50 comes first and stops replay, though 705 ended at 48.
    let choice = ask(&archive, &backups, &question(time(49))).unwrap();
    assert_eq!((choice.stop.lsn, choice.stop.last_kept), (lsn("0/4001000"), None));
    // An abort stops replay as well.
    let choice = ask(&archive, &backups, &question(time(32))).unwrap();
    assert_eq!(choice.backup.id, backups[0].id);
    assert!(matches!(choice.stop.at, StopAt::Before(end) if end.xid == 703));
    assert_eq!(
        choice.notes,
        [
            "backup 20000101T000039Z-00000001-0000000000000004 is not used: it was complete only at 2000-01-01 00:00:40.000000+00, after the target"
        ]
    );
}

#[test]
fn an_exclusive_time_stops_at_a_transaction_of_that_very_moment() {
    let (archive, backups) = archive();
    let exclusive = Question { inclusion: TargetInclusion::Exclusive, ..question(time(60)) };
    let choice = ask(&archive, &backups, &exclusive).unwrap();
    assert!(matches!(choice.stop.at, StopAt::Before(end) if end.xid == 706));
    assert!(refusal(&archive, &backups, &question(time(60))).contains("is after the end of the archive"));
}

#[test]
fn a_time_outside_the_archive_is_refused_with_the_nearest_moment() {
    let (archive, backups) = archive();
    assert_eq!(
        refusal(&archive, &backups, &question(time(61))),
        "the target time 2000-01-01 00:01:01.000000+00 is after the end of the archive: it reaches to 0/6000000, \
         where the last transaction ended at 2000-01-01 00:01:00.000000+00 \
         HINT: leave the target out to recover to the end of the archive, or archive more WAL first (SELECT pg_switch_wal())"
    );
    assert_eq!(
        refusal(&archive, &backups, &question(time(19))),
        "time 2000-01-01 00:00:19.000000+00 is before the first backup 20000101T000019Z-00000001-0000000000000002 was complete: \
         the earliest moment that can be reached is 2000-01-01 00:00:20.000000+00 (0/2000100) \
         HINT: choose a later target; --target-immediate recovers to a backup's own end"
    );
}

#[test]
fn a_later_transaction_before_consistency_needs_an_older_backup() {
    // Transaction 710's commit record carries second 45, and lies before the second backup's stop.
    let archive = Archive::new().segment(1, 2, &[(0x1000, 701, 25)]).segment(1, 3, &[]).segment(
        1,
        4,
        &[(0x90, 710, 45), (0x1000, 711, 47)],
    );
    let backups = [backup(1, 2, 20), backup(1, 4, 40)];
    let choice = ask(&archive, &backups, &question(time(44))).unwrap();
    assert_eq!(choice.backup.id, backups[0].id);
    assert_eq!(
        choice.notes,
        [
            "backup 20000101T000039Z-00000001-0000000000000004 is not used: replay would stop at transaction 710 (0/4000090), before it is consistent at 0/4000100"
        ]
    );
}

#[test]
fn a_gap_is_refused_with_the_last_moment_before_it() {
    let (whole, backups) = archive();
    let mut archive = Archive::new().segment(1, 2, &[(0x80, 700, 19), (0x1000, 701, 25)]).segment(
        1,
        4,
        &[(0x1000, 704, 50)],
    );
    let expected = "cannot be reached: WAL segment 000000010000000000000003 is missing although 000000010000000000000004 is stored; \
         the last transaction before it ended at 2000-01-01 00:00:25.000000+00 (0/2001000) \
         HINT: push the missing segment if a copy exists, or recover to just before it with --target-lsn 0/2001000";
    let only_first = &backups[..1];
    assert_eq!(
        refusal(&archive, only_first, &question(Target::EndOfWal)),
        format!("the end of the archive {expected}")
    );
    assert_eq!(
        refusal(&archive, only_first, &question(Target::Lsn(lsn("0/4001000")))),
        format!("the target position 0/4001000 {expected}")
    );
    let before = ask(&archive, only_first, &question(Target::Lsn(lsn("0/2001000")))).unwrap();
    assert_eq!(before.stop.last_kept.unwrap().xid, 701);
    let allowed = Question { gap: GapPolicy::EndOfArchive, ..question(Target::EndOfWal) };
    assert_eq!(ask(&archive, only_first, &allowed).unwrap().stop.lsn, lsn("0/3000000"));
    archive = archive.segment(1, 3, &[]);
    assert!(ask(&archive, only_first, &question(Target::EndOfWal)).is_ok());
    assert!(ask(&whole, &backups, &question(Target::EndOfWal)).is_ok());
}

#[test]
fn damage_and_minimal_wal_are_not_taken_for_the_end_of_wal() {
    let (archive, backups) = archive();
    let archive = archive.damaged(1, 5, "0/5000800");
    assert_eq!(
        refusal(&archive, &backups, &question(Target::EndOfWal)),
        "the end of the archive cannot be reached: WAL segment 000000010000000000000005 is damaged at 0/5000800 (wrong CRC), \
         PostgreSQL would take that for the end of WAL; the last transaction before it ended at 2000-01-01 00:00:48.000000+00 (0/4002000) \
         HINT: recover to just before it with --target-lsn 0/4002000"
    );
    assert!(refusal(&archive, &backups, &question(time(55))).contains("is damaged at 0/5000800"));
    let archive = archive.change(1, 5, |index| index.wal_levels.push((lsn("0/5000400"), 0)));
    assert!(
        refusal(&archive, &backups, &question(Target::EndOfWal))
            .contains("from 0/5000400 on WAL was written with wal_level=minimal")
    );
}

#[test]
fn a_transaction_is_found_whichever_backup_it_needs() {
    let (archive, backups) = archive();
    let found = |xid| ask(&archive, &backups, &question(Target::Xid(xid)));
    let choice = found(704).unwrap();
    assert_eq!((choice.backup.id, choice.stop.lsn), (backups[1].id.clone(), lsn("0/4001030")));
    assert_eq!(choice.stop.first_left_out.unwrap().xid, 705);
    let choice = found(701).unwrap();
    assert_eq!((choice.backup.id, choice.stop.last_kept.unwrap().xid), (backups[0].id.clone(), 701));
    let exclusive = Question { inclusion: TargetInclusion::Exclusive, ..question(Target::Xid(701)) };
    assert_eq!(ask(&archive, &backups, &exclusive).unwrap().stop.last_kept.unwrap().xid, 700);
    assert_eq!(
        found(703).unwrap_err(),
        "transaction 703 was rolled back at 2000-01-01 00:00:35.000000+00 (0/3002000): there is nothing of it to recover \
         HINT: to recover to that moment all the same, use --target-lsn 0/3002000"
    );
    assert_eq!(
        found(799).unwrap_err(),
        "transaction 799 neither committed nor was rolled back in the WAL that is archived since backup 20000101T000019Z-00000001-0000000000000002 \
         HINT: a subtransaction's number is never a target, and a transaction that still ran has no end: use --target-time or --target-lsn"
    );
    assert!(found(700).unwrap_err().starts_with("transaction 700 is before the first backup"));
}

#[test]
fn a_name_that_says_two_moments_is_refused() {
    let (archive, backups) = archive();
    let archive = archive.restore_point(1, 4, "0/4003000", "before");
    let name = question(Target::Name("before".to_owned()));
    let choice = ask(&archive, &backups, &name).unwrap();
    assert_eq!((choice.backup.id, choice.stop.lsn), (backups[1].id.clone(), lsn("0/4003068")));
    let archive = archive.restore_point(1, 3, "0/3003000", "before");
    assert_eq!(
        refusal(&archive, &backups, &name),
        "restore point \"before\" was used 2 times: at 2000-01-01 00:00:07.000000+00 (0/3003000), at 2000-01-01 00:00:07.000000+00 (0/4003000) \
         HINT: say which one is meant: --target-lsn 0/3003000 or --target-lsn 0/4003000"
    );
    // From the second backup on, it says one moment.
    let named = Question { backup: BackupRequest::Id(backups[1].id.clone()), ..name };
    assert_eq!(ask(&archive, &backups, &named).unwrap().stop.lsn, lsn("0/4003068"));
    assert_eq!(
        refusal(&archive, &backups, &question(Target::Name("after".to_owned()))),
        "restore point \"after\" is not in the WAL that is archived since backup 20000101T000019Z-00000001-0000000000000002 \
         HINT: names are compared letter by letter; use --target-time or --target-lsn if it was never archived"
    );
}

#[test]
fn a_position_needs_a_record_at_or_after_it() {
    let (archive, backups) = archive();
    let at = |text: &str| ask(&archive, &backups, &question(Target::Lsn(lsn(text))));
    assert_eq!(at("0/4000100").unwrap().backup.id, backups[1].id);
    assert_eq!(at("0/40000FF").unwrap().backup.id, backups[0].id);
    assert!(at("0/5FFFF00").is_ok());
    assert!(
        at("0/5FFFF01")
            .unwrap_err()
            .contains("the target position 0/5FFFF01 is after the end of the archive")
    );
    assert!(at("0/20000FF").unwrap_err().starts_with("position 0/20000FF is before the first backup"));
    // The last record goes on in a segment that is not stored: it cannot be replayed.
    let archive = archive.change(1, 5, |index| index.tail.record = lsn("0/5FFFF00"));
    assert!(
        refusal(&archive, &backups, &question(Target::Lsn(lsn("0/5FFFF00"))))
            .contains("reaches to 0/5FFFF00")
    );
}

/// Timeline 2 left timeline 1 at 0/3001800, between transactions 702 and 703; both went on.
fn forked() -> (Archive, Vec<BackupSummary>) {
    let (archive, backups) = archive();
    let archive = archive
        .history(2, "1\t0/3001800\tbefore")
        .segment(2, 3, &[(0x1000, 702, 30), (0x2000, 800, 70)])
        .segment(2, 4, &[(0x1000, 801, 80)]);
    (archive, backups)
}

#[test]
fn the_latest_timeline_is_followed_past_backups_that_it_left_behind() {
    let (archive, backups) = forked();
    let choice = ask(&archive, &backups, &question(Target::EndOfWal)).unwrap();
    assert_eq!((&choice.backup.id, choice.stop.last_kept.unwrap().xid), (&backups[0].id, 801));
    assert_eq!(choice.recovery_timeline, TargetTimeline::Id(tli(2)));
    assert_eq!(
        choice.notes,
        [
            "backup 20000101T000039Z-00000001-0000000000000004 is not used: it ends at 0/4000100 on timeline 1, which timeline 2 left before, at 0/3001800"
        ]
    );
    assert_eq!(
        choice.warnings,
        [
            "backup 20000101T000039Z-00000001-0000000000000004 is newer, but lies on timeline 1 beside the line that is followed (timeline 2); to follow that one use --timeline 1"
        ]
    );
    let old = Question { timeline: TargetTimeline::Id(tli(1)), ..question(Target::EndOfWal) };
    let choice = ask(&archive, &backups, &old).unwrap();
    assert_eq!((&choice.backup.id, choice.stop.last_kept.unwrap().xid), (&backups[1].id, 706));
    let current = Question { timeline: TargetTimeline::Current, ..question(Target::EndOfWal) };
    assert_eq!(ask(&archive, &backups, &current).unwrap().recovery_timeline, TargetTimeline::Id(tli(1)));
}

#[test]
fn a_time_that_both_lines_have_is_told() {
    let (archive, backups) = forked();
    let choice = ask(&archive, &backups, &question(time(55))).unwrap();
    assert!(matches!(choice.stop.at, StopAt::Before(end) if end.xid == 800));
    assert_eq!(choice.stop.last_kept.unwrap().xid, 702);
    assert_eq!(
        choice.warnings.last().unwrap(),
        "timeline 1 went on after timeline 2 left it at 0/3001800: transaction 703 ended there at 2000-01-01 00:00:35.000000+00, before the target, \
         and is not on this line; to follow timeline 1 use --timeline 1"
    );
}

#[test]
fn a_target_before_the_switch_is_recovered_along_the_old_timeline() {
    let (archive, backups) = forked();
    let choice = ask(&archive, &backups, &question(time(26))).unwrap();
    assert!(matches!(choice.stop.at, StopAt::Before(end) if end.xid == 702));
    assert_eq!(choice.recovery_timeline, TargetTimeline::Id(tli(1)));
    // Where only the new timeline's copy of the segment is stored, it has to be followed.
    let archive = Archive::new()
        .segment(1, 2, &[(0x1000, 701, 25)])
        .segment(2, 3, &[(0x1000, 702, 30), (0x2000, 800, 70)])
        .history(2, "1\t0/3001800\tbefore");
    let choice = ask(&archive, &backups[..1], &question(time(26))).unwrap();
    assert_eq!(choice.recovery_timeline, TargetTimeline::Id(tli(2)));
    assert_eq!(choice.path.segments[1].name, segment(2, 3));
}

#[test]
fn an_unreachable_timeline_is_refused() {
    let (archive, backups) = forked();
    let on = |timeline| Question {
        timeline: TargetTimeline::Id(tli(timeline)),
        backup: BackupRequest::Id(backups[1].id.clone()),
        ..question(Target::EndOfWal)
    };
    assert_eq!(
        refusal(&archive, &backups, &on(2)),
        "backup 20000101T000039Z-00000001-0000000000000004 cannot be used: it ends at 0/4000100 on timeline 1, which timeline 2 left before, at 0/3001800 \
         HINT: choose another line with --timeline (walhold wal-show) or another backup with --backup (walhold backup-list)"
    );
    assert_eq!(refusal(&archive, &backups, &on(7)), "timeline 7 is not in the archive HINT: there are: 1, 2");
}

#[test]
fn a_new_timeline_of_which_nothing_is_stored_is_not_passed_off_as_recovered() {
    let (archive, backups) = archive();
    let archive = archive.history(2, "1\t0/3001800\tbefore");
    assert_eq!(
        refusal(&archive, &backups[..1], &question(Target::EndOfWal)),
        "the end of the archive cannot be reached: timeline 2 begins at 0/3001800, but its first segment 000000020000000000000003 is not stored; \
         the last transaction before it ended at 2000-01-01 00:00:30.000000+00 (0/3001000) \
         HINT: let the server on timeline 2 archive it (SELECT pg_switch_wal()), name another line with --timeline, or recover to just before it with --target-lsn 0/3001000"
    );
    assert_eq!(ask(&archive, &backups[..1], &question(time(26))).unwrap().stop.last_kept.unwrap().xid, 701);
}

#[test]
fn a_timeline_whose_history_is_not_stored_is_named_as_current() {
    let archive = Archive::new().segment(3, 2, &[(0x1000, 701, 25)]).segment(3, 3, &[]);
    let choice = ask(&archive, &[backup(3, 2, 20)], &question(Target::EndOfWal)).unwrap();
    assert_eq!(choice.recovery_timeline, TargetTimeline::Current);
}

#[test]
fn a_partial_end_is_told_and_a_standby_takes_what_there_is() {
    let (mut archive, backups) = archive();
    archive.view.add_partial(segment(1, 6));
    let choice = ask(&archive, &backups, &question(Target::EndOfWal)).unwrap();
    assert!(choice.warnings[0].contains("000000010000000000000006.partial"), "{:?}", choice.warnings);
    let gap = Archive::new().segment(1, 4, &[]).segment(1, 6, &[]);
    let standby = Question { role: Role::Standby, ..question(Target::EndOfWal) };
    let choice = ask(&gap, &backups[1..], &standby).unwrap();
    assert_eq!((choice.recovery_timeline, choice.stop.lsn), (TargetTimeline::Latest, lsn("0/5000000")));
}

#[test]
fn clusters_that_share_a_name_are_not_mixed() {
    let (archive, mut backups) = archive();
    backups[0].system_identifier = crate::pg::SystemIdentifier::new(1);
    assert!(
        refusal(&archive, &backups, &question(Target::EndOfWal))
            .contains("backups of different clusters lie under this name")
    );
    assert!(
        refusal(&archive, &[], &question(Target::EndOfWal))
            .starts_with("there is no complete backup to restore")
    );
}

/// PostgreSQL stops at consistency only before a further record or after a commit; a backup of a standby may end where WAL does.
#[test]
fn the_backup_s_own_end_needs_a_record_after_it() {
    let (archive, mut backups) = archive();
    backups[1].from_standby = true;
    backups[1].stop_lsn = lsn("0/6000000");
    let immediate = question(Target::Immediate);
    let refused = refusal(&archive, &backups[1..], &immediate);
    assert_eq!(
        refused,
        "recovery cannot stop at the backup's end at 0/6000000: PostgreSQL stops before the record that follows, and none can be read HINT: leave --target-immediate out: nothing later is archived on this line"
    );
    let to_the_end = ask(&archive, &backups[1..], &question(Target::EndOfWal)).unwrap();
    assert_eq!(to_the_end.stop.lsn, lsn("0/6000000"));
    // With WAL behind a hole.
    let later = archive.segment(1, 7, &[]);
    let refused = refusal(&later, &backups[1..], &immediate);
    assert!(refused.contains("set wal.allow_gap"), "{refused}");
    let with_gap = Question { gap: GapPolicy::EndOfArchive, ..question(Target::EndOfWal) };
    assert_eq!(ask(&later, &backups[1..], &with_gap).unwrap().stop.lsn, lsn("0/6000000"));
    // A segment more, or a commit as the last record.
    let longer = later.segment(1, 6, &[]);
    assert_eq!(ask(&longer, &backups[1..], &immediate).unwrap().stop.at, StopAt::Consistency);
    backups[1].stop_lsn = lsn("0/5001030");
    assert_eq!(ask(&longer, &backups[1..], &immediate).unwrap().stop.at, StopAt::Consistency);
}
