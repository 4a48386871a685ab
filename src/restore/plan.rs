//! The plan: everything that a restore will do, made by reads only.
//!
//! `--plan` prints it and stops; the real run follows it to the letter. Whatever cannot work is refused here.

use std::path::{Path, PathBuf};

use super::archive_view::ArchiveView;
use super::binaries::{ServerBinaries, find_binaries};
use super::choose::{Choice, GapPolicy, Question, choose};
use super::configuration::{
    AdoptedFile, READ_AHEAD, adopted_files, credential_variables, lowered_limits, own_places,
    recovery_end_command, restore_command,
};
use super::delta::examine::Over;
use super::delta::old_wal::{Existing, find_unarchived};
use super::error::RestoreError;
use super::includes::StandIn;
use super::packs::{FoundPack, find_packs, read_file};
use super::place::{self, DirectoryState, Place};
use super::prove::Limit;
use super::stored_wal::StoredWal;
use super::target::{BackupRequest, Role, TablespaceMapping, Target, TargetRequest};
use super::wal_path::PathEnd;
use crate::backup::list::{BackupName, Catalogue, ListedBackup};
use crate::codec::KeyRing;
use crate::config::Config;
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::BackupId;
use crate::format::manifest::{BackupSummary, FileEntry, Manifest, Root};
use crate::local::libraries;
use crate::pg::control::ControlFile;
use crate::pg::recovery::{
    Recovery, RecoveryMode, TargetAction, TargetInclusion, TargetTimeline, parse_settings, setting,
};
use crate::repository::Repository;

/// What the operator asks for.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The moment.
    pub target: TargetRequest,
    /// Whether it is replayed itself.
    pub inclusion: TargetInclusion,
    /// What the server does there.
    pub action: TargetAction,
    /// The line of history.
    pub timeline: TargetTimeline,
    /// The backup.
    pub backup: BackupRequest,
    /// What the restored server will be.
    pub role: Role,
    /// Where to.
    pub pgdata: PathBuf,
    /// What may be there.
    pub over: Over,
    /// Tablespaces that go elsewhere.
    pub tablespaces: Vec<TablespaceMapping>,
    /// Written for a standby.
    pub primary_conninfo: Option<String>,
    /// Whether and with what the server is started.
    pub start: StartRequest,
}

/// `--start`, `--pg-bin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartRequest {
    /// Leave the server to the operator.
    No,
    /// Start it and watch it reach the target.
    Yes {
        /// Where its programs are, if the operator says so.
        programs: Option<PathBuf>,
        /// More options of `postgres`.
        options: Vec<String>,
    },
}

/// What a restore will do.
pub struct RestorePlan {
    /// What was asked for.
    pub request: RestoreRequest,
    /// The moment, understood.
    pub target: Target,
    /// The backup, the line and where replay ends.
    pub choice: Choice,
    /// The backup's files.
    pub manifest: Manifest,
    /// Their packs, found whole.
    pub packs: Vec<FoundPack>,
    /// The directories.
    pub place: Place,
    /// The cluster that is taken over, if one is.
    pub existing: Option<Existing>,
    /// `global/pg_control`, written last.
    pub control: Vec<u8>,
    /// Configuration from outside PGDATA that goes into it.
    pub adopted: Vec<AdoptedFile>,
    /// What the configuration includes and nobody has.
    pub stand_ins: Vec<StandIn>,
    /// Lines for postgresql.conf that undo what names the original's files.
    pub own_places: Vec<(String, String)>,
    /// What the server recovers with.
    pub recovery: Recovery,
    /// Other settings for postgresql.auto.conf.
    pub extra_settings: Vec<(String, String)>,
    /// The programs for `--start`.
    pub binaries: Option<ServerBinaries>,
    /// Why it is so.
    pub notes: Vec<String>,
    /// What may not be what the operator expects.
    pub warnings: Vec<String>,
}

/// Makes the plan.
pub fn make_plan(
    config: &Config,
    repository: &Repository,
    keys: &KeyRing,
    request: RestoreRequest,
) -> Result<RestorePlan, RestoreError> {
    check_request(&request)?;
    let catalogue = Catalogue { repository, cluster: &config.cluster, keys };
    let (mut summaries, mut passed_over) = usable_backups(catalogue.list()?, &request.backup)?;
    let reference = reference_backup(&summaries, &request.backup).cloned();
    let zone = reference.as_ref().map_or("UTC", |backup| backup.time_zone.as_str());
    let target = request.target.resolve(zone)?;
    let question = Question {
        target: target.clone(),
        inclusion: request.inclusion,
        timeline: request.timeline,
        backup: request.backup.clone(),
        role: request.role,
        gap: if config.wal.allow_gap { GapPolicy::EndOfArchive } else { GapPolicy::Refuse },
    };
    let stored_wal = match &reference {
        Some(backup) => StoredWal::open(repository, &config.cluster, keys, backup)?,
        None => return Err(choose_without_backups(&question)),
    };
    let (choice, manifest) =
        choose_readable(&catalogue, &mut summaries, &stored_wal, &question, &mut passed_over)?;
    let packs = find_packs(repository, &config.cluster, &manifest)?;
    let place =
        place::examine(&request.pgdata, &manifest, &request.tablespaces, wal_room(&choice), request.over)?;
    let existing = match place.pgdata_state {
        DirectoryState::Existing => {
            Some(find_unarchived(&place.pgdata, repository, &config.cluster, keys, &manifest)?)
        }
        DirectoryState::Absent | DirectoryState::Empty => None,
    };
    let binaries = find_programs(&request, &manifest, &place)?;
    let control = read_control(repository, &packs, keys, &manifest)?;
    let mut plan = RestorePlan {
        adopted: adopted_files(&manifest),
        stand_ins: Vec::new(),
        own_places: Vec::new(),
        recovery: Recovery::default(),
        extra_settings: extra_settings(&request),
        notes: choice.notes.clone(),
        warnings: choice.warnings.clone(),
        request,
        target,
        choice,
        manifest,
        packs,
        place,
        existing,
        control,
        binaries,
    };
    plan.notes.extend(stored_wal.notes());
    plan.warnings.extend(passed_over);
    plan.set_recovery(config)?;
    plan.look_into_configuration(repository, keys)?;
    plan.look_for_later_tablespaces(&stored_wal)?;
    plan.add_warnings();
    Ok(plan)
}

/// The readable backups, and a warning for each other one. The one that was asked for must be readable, and so must one
/// at least.
fn usable_backups(
    listed: Vec<ListedBackup>,
    request: &BackupRequest,
) -> Result<(Vec<BackupSummary>, Vec<String>), RestoreError> {
    let asked = |id: &BackupId| matches!(request, BackupRequest::Id(asked) if asked == id);
    let (mut usable, mut warnings, mut failure) = (Vec::new(), Vec::new(), None);
    for backup in listed {
        match backup.summary {
            Ok(summary) => usable.push(summary),
            Err(error) if asked(&backup.id) => return Err(error.into()),
            Err(error) => {
                warnings.push(format!("backup {} is passed over: {error}", backup.id));
                failure = Some(error);
            }
        }
    }
    match failure {
        Some(error) if usable.is_empty() => Err(error.into()),
        _ => Ok((usable, warnings)),
    }
}

/// The backup whose cluster's WAL and time zone count: the one that was asked for, which may be of a system that was there before an upgrade, or
/// the newest.
fn reference_backup<'a>(
    summaries: &'a [BackupSummary],
    request: &BackupRequest,
) -> Option<&'a BackupSummary> {
    let asked = |backup: &&BackupSummary| match request {
        BackupRequest::Id(id) => backup.id == *id,
        BackupRequest::Auto => true,
    };
    summaries.iter().filter(asked).max_by_key(|backup| (backup.stop_time, &backup.id))
}

/// The backup that fits best among those whose whole manifest can be read: a listing reads only its end. One that was asked for by its id
/// is not replaced by another.
fn choose_readable(
    catalogue: &Catalogue<'_>,
    summaries: &mut Vec<BackupSummary>,
    stored_wal: &StoredWal<'_>,
    question: &Question,
    passed_over: &mut Vec<String>,
) -> Result<(Choice, Manifest), RestoreError> {
    let mut damage: Option<RestoreError> = None;
    loop {
        let choice = match choose(summaries, stored_wal.view(), stored_wal, question) {
            Ok(choice) => choice,
            // Without the damaged one nothing reaches the target: the damage is the reason.
            Err(error) => return Err(damage.unwrap_or(error)),
        };
        let id = choice.backup.id.clone();
        match catalogue.manifest(&BackupName::Id(id.clone())) {
            Ok(manifest) => return Ok((choice, manifest)),
            Err(error) if question.backup == BackupRequest::Auto && error.exit_cause() == Cause::Damaged => {
                passed_over.push(format!("backup {id} is passed over: {error}"));
                summaries.retain(|backup| backup.id != id);
                damage.get_or_insert(error.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What cannot be meant, whatever the repository holds.
fn check_request(request: &RestoreRequest) -> Result<(), RestoreError> {
    if request.role == Role::Standby && request.target != TargetRequest::EndOfWal {
        return Err(RestoreError::refused(
            "a standby has no recovery target: it follows the original",
            "leave out --standby to recover to a moment, or the target to get a standby",
        ));
    }
    if request.role == Role::Standby && request.timeline != TargetTimeline::Latest {
        return Err(RestoreError::refused(
            "a standby follows the latest timeline, whichever that will be",
            "leave out --timeline, or --standby",
        ));
    }
    if request.primary_conninfo.is_some() && request.role != Role::Standby {
        return Err(RestoreError::refused(
            "--primary-conninfo is for a standby",
            "add --standby, or leave it out",
        ));
    }
    Ok(())
}

fn choose_without_backups(question: &Question) -> RestoreError {
    let view = ArchiveView::new(crate::pg::WalSegmentSize::DEFAULT);
    match choose(&[], &view, &super::stored_wal::NoWal, question) {
        Err(error) => error,
        Ok(_) => RestoreError::refused(
            "there is no complete backup to restore",
            "take one with walhold backup-push",
        ),
    }
}

/// Restored WAL is recycled as replay goes; this much of it is expected to lie in pg_wal at a time.
fn wal_room(choice: &Choice) -> u64 {
    let size = choice.backup.wal_segment_size.bytes();
    let archived = size.saturating_mul(choice.path.segments.len() as u64);
    archived.clamp(3 * size, (1 << 30).max(3 * size))
}

fn find_programs(
    request: &RestoreRequest,
    manifest: &Manifest,
    place: &Place,
) -> Result<Option<ServerBinaries>, RestoreError> {
    let StartRequest::Yes { programs, .. } = &request.start else { return Ok(None) };
    let binaries = find_binaries(server_major(manifest), programs.as_deref())?;
    if place.owner.uid == 0 {
        return Err(RestoreError::refused(
            format!(
                "the files in {} would belong to root, and PostgreSQL does not run as root",
                place.pgdata.display()
            ),
            format!(
                "make the directory for the server's user first: install -d -o postgres -g postgres -m 700 {}",
                place.pgdata.display()
            ),
        ));
    }
    Ok(Some(binaries))
}

/// Reads and checks pg_control: the first chunk that is opened, so that a wrong key shows here too.
fn read_control(
    repository: &Repository,
    packs: &[FoundPack],
    keys: &KeyRing,
    manifest: &Manifest,
) -> Result<Vec<u8>, RestoreError> {
    let file = find_file(manifest, b"global/pg_control");
    let (_, file) = file.ok_or_else(|| RestoreError::Damaged {
        object: format!("the manifest of backup {}", manifest.summary.id),
        problem: "global/pg_control is not in it".to_owned(),
    })?;
    let bytes = read_file(repository, packs, keys, file)?;
    let damaged = |problem: String| RestoreError::Damaged {
        object: format!("global/pg_control of backup {}", manifest.summary.id),
        problem,
    };
    let control = ControlFile::parse(&bytes).map_err(|error| damaged(error.to_string()))?;
    if control.system_identifier != manifest.summary.system_identifier {
        return Err(damaged(format!("it is of system {}", control.system_identifier)));
    }
    Ok(bytes)
}

/// A file of PGDATA by its path.
pub fn find_file<'a>(manifest: &'a Manifest, path: &[u8]) -> Option<(usize, &'a FileEntry)> {
    manifest.files.iter().enumerate().find(|(_, file)| file.root == Root::DataDirectory && file.path == path)
}

fn extra_settings(request: &RestoreRequest) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    if request.role == Role::Clone {
        settings.push(("archive_mode".to_owned(), "off".to_owned()));
    }
    if let Some(primary) = &request.primary_conninfo {
        settings.push(("primary_conninfo".to_owned(), primary.clone()));
    }
    settings
}

impl RestorePlan {
    fn set_recovery(&mut self, config: &Config) -> Result<(), RestoreError> {
        let binary = std::env::current_exe()
            .map_err(|error| RestoreError::local("find", Path::new("walhold's own binary"), &error))?;
        let gap = matches!(self.choice.path.end, PathEnd::Gap { .. }) && self.request.role != Role::Standby;
        let (command, left_out) = restore_command(&binary, config);
        let damage = matches!(self.choice.limit, Limit::Damage { .. } | Limit::MinimalWal { .. });
        if (gap || damage) && self.manifest.summary.server_version >= 150_000 {
            // Read-ahead (15 and later) would ask for what is missing behind the target, and stop there. Taking the gap for the
            // end of WAL instead would let a server promote early if the target were misjudged.
            self.extra_settings.push((READ_AHEAD.to_owned(), "off".to_owned()));
            self.notes.push(format!(
                "{READ_AHEAD} is off in this recovery, because WAL is missing or damaged behind the target and reading ahead would stop there"
            ));
        }
        for variable in left_out {
            self.warnings.push(format!(
                "{variable} holds a secret and is not written into restore_command: the server's environment must have it"
            ));
        }
        if config.repository.options.iter().any(|(key, _)| crate::config::redact::is_secret_option(key))
            && config.file.is_none()
        {
            self.warnings.push(
                "the repository's secret options are not written into restore_command: put them into a configuration file".to_owned(),
            );
        }
        if !config.repository.url.starts_with("file:") {
            let found = credential_variables(std::env::vars().map(|(name, _)| name));
            if !found.is_empty() {
                self.warnings.push(format!(
                    "credentials come from this shell's environment ({}): the server's environment must have them too, or restore_command fails",
                    found.join(", ")
                ));
            }
        }
        self.recovery = Recovery {
            mode: if self.request.role == Role::Standby {
                RecoveryMode::Standby
            } else {
                RecoveryMode::Recovery
            },
            target: self.target.to_recovery_target(),
            inclusion: self.request.inclusion,
            action: self.request.action,
            timeline: self.choice.recovery_timeline,
            restore_command: command,
            recovery_end_command: recovery_end_command(&binary, config),
        };
        Ok(())
    }

    /// Reads the configuration files that will count, for what must be changed or warned of.
    fn look_into_configuration(
        &mut self,
        repository: &Repository,
        keys: &KeyRing,
    ) -> Result<(), RestoreError> {
        let adopted_main = self.adopted.iter().find(|adopted| adopted.to == Path::new("postgresql.conf"));
        let own = find_file(&self.manifest, b"postgresql.conf").map(|(_, file)| file);
        let main = adopted_main.and_then(|adopted| self.manifest.files.get(adopted.file)).or(own);
        let Some(main) = main else {
            self.warnings.push(
                "the backup holds no postgresql.conf: provide one before the server is started".to_owned(),
            );
            return Ok(());
        };
        let read = |file| read_file(repository, &self.packs, keys, file);
        let text = String::from_utf8_lossy(&read(main)?).into_owned();
        let auto = match find_file(&self.manifest, b"postgresql.auto.conf") {
            Some((_, file)) => String::from_utf8_lossy(&read(file)?).into_owned(),
            None => String::new(),
        };
        let has = |name: &str| {
            find_file(&self.manifest, name.as_bytes()).is_some()
                || self.adopted.iter().any(|adopted| adopted.to == Path::new(name))
        };
        let own_places = own_places(&text, &self.place.pgdata, has);
        let mut settings = parse_settings(&text).unwrap_or_default();
        settings.extend(parse_settings(&auto).unwrap_or_default());
        self.warnings.extend(lowered_limits(&settings, &self.manifest));
        let follows = setting(&settings, "primary_conninfo").is_some_and(|value| !value.is_empty());
        if self.request.role == Role::Standby && self.request.primary_conninfo.is_none() && !follows {
            self.notes.push(
                "primary_conninfo is not set: the standby follows through the archive alone, a segment behind".to_owned(),
            );
        }
        self.own_places = own_places;
        for adopted in &self.adopted {
            self.notes.push(format!(
                "{} was outside the data directory: restored as {}",
                adopted.from.display(),
                self.place.pgdata.join(&adopted.to).display()
            ));
        }
        for (name, value) in &self.own_places {
            self.notes.push(format!(
                "postgresql.conf gets {name} = '{value}', because it names a file of the original"
            ));
        }
        self.look_for_included(&settings, repository, keys)
    }

    fn add_warnings(&mut self) {
        let hot_standby = self.manifest.server.settings.get("hot_standby").map(String::as_str);
        let has_target = self.target != Target::EndOfWal;
        if self.request.action == TargetAction::Pause && has_target {
            if hot_standby == Some("off") {
                self.warnings.push(
                    "hot_standby is off: at the target the server shuts down instead of pausing".to_owned(),
                );
            }
            self.notes.push(
                "at the target the server stays read-only until SELECT pg_wal_replay_resume(), which promotes it".to_owned(),
            );
        }
        if self.request.role == Role::Replacement && self.target != Target::EndOfWal {
            self.notes.push(
                "the restored server archives into the same repository, on a new timeline; for a second copy beside a living original use --clone".to_owned(),
            );
        }
        if self.place.owner.uid == 0 {
            self.warnings.push(format!(
                "the files will belong to root, and PostgreSQL does not run as root: chown -R postgres: {} before it is started",
                self.place.pgdata.display()
            ));
        }
        let here = libraries::glibc_version();
        if let (Some(then), Some(now)) = (&self.manifest.server.glibc_version, &here)
            && then != now
        {
            self.warnings.push(format!(
                "the server that was backed up had glibc {then}, this machine has {now}: where sort orders changed, indexes on text must be rebuilt (REINDEX)"
            ));
        }
        self.compare_icu();
        if self.choice.backup.damaged_pages > 0 {
            self.warnings.push(format!(
                "the backup found {} damaged pages; walhold backup-show {} lists them",
                self.choice.backup.damaged_pages, self.choice.backup.id
            ));
        }
    }

    /// Without a running server the library's version is all that can be compared, and not even that everywhere: then the plan says so.
    fn compare_icu(&mut self) {
        let server = &self.manifest.server;
        let Some(then) = server.icu_library.as_ref().or(server.icu_version.as_ref()) else { return };
        let programs = match &self.binaries {
            Some(binaries) => Some(binaries.directory.clone()),
            None => find_binaries(server_major(&self.manifest), None).ok().map(|found| found.directory),
        };
        let here = programs.and_then(|directory| libraries::icu_of_program(&directory.join("postgres")));
        match (&server.icu_library, here) {
            (Some(then), Some(now)) if *then == now => {}
            (Some(then), Some(now)) => self.warnings.push(format!(
                "the server that was backed up had ICU {then}, PostgreSQL on this machine has {now}: where indexes use ICU collations and their order changed, they must be rebuilt (REINDEX)"
            )),
            (None, _) => self.notes.push(format!(
                "ICU was not compared: the backup knows its collations' version ({then}), not the library's; after the start compare collversion in pg_collation with pg_collation_actual_version(oid)"
            )),
            (Some(_), None) => self.notes.push(format!(
                "ICU was not compared: the server that was backed up had {then}, that of PostgreSQL on this machine could not be seen; after the start compare collversion in pg_collation with pg_collation_actual_version(oid)"
            )),
        }
    }
}

fn server_major(manifest: &Manifest) -> u32 {
    manifest.summary.server_version / 10_000
}
