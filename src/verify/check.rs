//! Finds what is wrong: quickly from listings, deeply by reading objects whole.
//!
//! In: an inventory with the packs that each backup points to. Out: findings. A deep read opens every chunk (CRC or authentication tag),
//! compares the whole with its digest and with what its name says it is, and parses what is inside. What must hold: an object that could not be read because
//! the store failed is an error of the run, never a finding, and never passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::journal::Journal;
use crate::backup::BackupError;
use crate::backup::list::{BackupName, Catalogue};
use crate::backup::rate_limit::RateLimit;
use crate::codec::KeyRing;
use crate::codec::decode::{DecodeError, Expected, ObjectSource, decode_with_workers};
use crate::codec::encode::SinkError;
use crate::error::Failure;
use crate::exit_status::Cause;
use crate::fan_out;
use crate::format::envelope::{ObjectFacts, ObjectKind};
use crate::format::manifest::BackupSummary;
use crate::format::wal_index::{RecordVerdict, WalIndex};
use crate::format::{BackupId, keys};
use crate::interrupt;
use crate::pg::{ArchiveFileName, SystemIdentifier, TimelineHistory, WalSegmentName};
use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError, StoredObject};
use crate::retention::inventory::Inventory;
use crate::retention::keep_wal::ConsistencyRange;
use crate::wal::verify::{BackupSpan, missing};

/// What an object is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Item {
    /// A backup's manifest.
    Manifest {
        /// The backup.
        id: BackupId,
    },
    /// A pack.
    Pack {
        /// The backup that wrote it.
        id: BackupId,
        /// Its number there.
        number: u32,
    },
    /// An archived file.
    Wal {
        /// The cluster.
        system_identifier: SystemIdentifier,
        /// Its name.
        name: String,
    },
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Found {
    /// Where it lies, or should lie.
    pub path: String,
    /// What it is.
    pub item: Item,
    /// What is wrong.
    pub problem: String,
}

/// What listings tell.
pub fn quick(inventory: &Inventory<'_>) -> Vec<Found> {
    let mut found: BTreeSet<Found> = BTreeSet::new();
    for (id, backup) in &inventory.backups {
        let item = Item::Manifest { id: id.clone() };
        match &backup.summary {
            Err(error) => {
                found.insert(Found { path: backup.manifest.path.clone(), item, problem: error.to_string() });
            }
            Ok(summary) if !inventory.systems.contains_key(&summary.system_identifier) => {
                let problem =
                    "its cluster's identity is not recorded, and none of its WAL is stored".to_owned();
                found.insert(Found { path: backup.manifest.path.clone(), item, problem });
            }
            Ok(_) => {}
        }
        for pack in backup.packs.iter().flatten() {
            let stored = inventory.packs.get(&pack.backup).and_then(|packs| packs.get(&pack.number));
            let problem = match stored {
                Some(object) if object.size == pack.stored_length => continue,
                Some(object) => format!("it has {} bytes, not {}", object.size, pack.stored_length),
                None => "it is missing".to_owned(),
            };
            let path = keys::pack(inventory.cluster, &pack.backup, pack.number).to_string();
            let item = Item::Pack { id: pack.backup.clone(), number: pack.number };
            found.insert(Found { path, item, problem });
        }
    }
    for (system, wal) in &inventory.systems {
        let item = |name: String| Item::Wal { system_identifier: *system, name };
        for (name, objects) in wal.stored.objects() {
            if let [first, second, ..] = objects.as_slice() {
                let problem = format!("{} has the same name and another content", second.path);
                found.insert(Found { path: first.path.clone(), item: item(name.to_string()), problem });
            }
        }
        for (timeline, problem) in &wal.stored.view().unusable_histories {
            let name = ArchiveFileName::TimelineHistory(*timeline);
            let path = keys::wal(inventory.cluster, *system, name).to_string();
            found.insert(Found { path, item: item(name.to_string()), problem: problem.clone() });
        }
        found.extend(missing_wal(inventory, *system));
    }
    found.into_iter().collect()
}

/// Segments that the recovery of a backup has to pass: the first of each gap, and those without which a backup is lost.
fn missing_wal(inventory: &Inventory<'_>, system: SystemIdentifier) -> Vec<Found> {
    let Some(wal) = inventory.systems.get(&system) else { return Vec::new() };
    let view = wal.stored.view();
    let of_this = inventory.readable().filter(|(_, _, summary)| summary.system_identifier == system);
    let summaries: Vec<&BackupSummary> = of_this.map(|(_, _, summary)| summary).collect();
    let spans: Vec<BackupSpan> = summaries.iter().map(|summary| BackupSpan::of(summary)).collect();
    let mut problems: BTreeMap<WalSegmentName, String> = BTreeMap::new();
    for gap in missing(view, &spans.iter().collect::<Vec<_>>()) {
        let problem = match gap.first == gap.last {
            true => "it is missing".to_owned(),
            false => format!("it is missing, and so is all up to {}", gap.last),
        };
        problems.insert(gap.first, problem);
        for summary in summaries.iter().filter(|summary| gap.backups_lost.contains(&summary.id)) {
            let range = ConsistencyRange::of(summary);
            let mut number = range.first;
            while number <= range.last {
                let name = view.name(gap.first.timeline, number);
                if (gap.first..=gap.last).contains(&name) {
                    problems.entry(name).or_insert_with(|| "it is missing, and a backup needs it".to_owned());
                }
                number = number.next();
            }
        }
    }
    let found = problems.into_iter().map(|(name, problem)| Found {
        path: keys::wal(inventory.cluster, system, ArchiveFileName::Segment(name)).to_string(),
        item: Item::Wal { system_identifier: system, name: name.to_string() },
        problem,
    });
    found.collect()
}

/// Every stored object that a deep run reads, in path order.
pub fn items(inventory: &Inventory<'_>) -> Vec<(Item, StoredObject)> {
    let manifests = inventory
        .backups
        .iter()
        .map(|(id, backup)| (Item::Manifest { id: id.clone() }, backup.manifest.clone()));
    let packs = inventory.packs.iter().flat_map(|(id, packs)| {
        packs.iter().map(|(number, object)| (Item::Pack { id: id.clone(), number: *number }, object.clone()))
    });
    let wal = inventory.systems.iter().flat_map(|(system, wal)| {
        let segments = wal
            .stored
            .objects()
            .iter()
            .flat_map(|(name, objects)| objects.iter().map(|object| (name.to_string(), object.clone())));
        let others = wal.others.iter().map(|(name, object)| (name.to_string(), object.clone()));
        segments.chain(others).map(|(name, object)| (Item::Wal { system_identifier: *system, name }, object))
    });
    let mut items: Vec<(Item, StoredObject)> = manifests.chain(packs).chain(wal).collect();
    items.sort_by(|a, b| a.1.path.cmp(&b.1.path));
    items
}

/// Reads objects whole.
pub struct DeepCheck<'a> {
    /// The repository and the cluster.
    pub inventory: &'a Inventory<'a>,
    /// What opens them.
    pub keys: &'a KeyRing,
    /// How many are read at once.
    pub jobs: usize,
    /// Stored bytes per second at most.
    pub limit: Option<RateLimit>,
    /// What an interrupted run read already; `None` to remember nothing.
    pub journal: Option<&'a Journal>,
}

/// What a deep run read.
#[derive(Debug, Default)]
pub struct DeepResult {
    /// What is wrong.
    pub found: Vec<Found>,
    /// Objects that were read, now or by the run that was interrupted.
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

impl DeepCheck<'_> {
    /// Reads these objects; fails if one could not be read for a reason that is not its own.
    pub fn run(&self, items: &[(Item, StoredObject)]) -> Result<DeepResult, Failure> {
        let total: u64 = items.iter().map(|(_, object)| object.size).sum();
        let progress = Progress::new("verify", total);
        let read = |(item, object): &(Item, StoredObject)| -> Result<Option<String>, Failure> {
            if interrupt::requested().is_some() {
                return Ok(None);
            }
            if let Some(known) = self.journal.and_then(|journal| journal.result(object)) {
                progress.add(object.size);
                return Ok(known);
            }
            let problem = self.problem_of(item, object)?;
            if let Some(journal) = self.journal {
                journal.note(object, problem.as_deref());
            }
            progress.add(object.size);
            Ok(problem)
        };
        let results = fan_out::try_map(items, self.jobs, read);
        progress.finish();
        let results = results?;
        if interrupt::requested().is_some() {
            return Err(Failure::new(Cause::Interrupted, "interrupted by a signal")
                .with_hint("the same command goes on where this run was"));
        }
        let mut result = DeepResult::default();
        for ((item, object), problem) in items.iter().zip(results) {
            result.objects += 1;
            result.bytes += object.size;
            if let Some(problem) = problem {
                result.found.push(Found { path: object.path.clone(), item: item.clone(), problem });
            }
        }
        Ok(result)
    }

    /// What is wrong with an object; an error if that could not be found out.
    fn problem_of(&self, item: &Item, object: &StoredObject) -> Result<Option<String>, Failure> {
        match item {
            Item::Manifest { id } => self.manifest_problem(id, object),
            Item::Pack { .. } => {
                let name = object.key.name().to_owned();
                let systems: Vec<SystemIdentifier> = self.inventory.systems.keys().copied().collect();
                // Whose pack it is only its header tells.
                let mut last = None;
                for system in systems {
                    let facts = ObjectFacts {
                        kind: ObjectKind::Pack,
                        name: name.clone(),
                        system_identifier: system,
                        segment_size: None,
                    };
                    match self.read(object, &facts, &mut |_| ()) {
                        Err(error @ DecodeError::OtherCluster { .. }) => last = Some(error.to_string()),
                        Err(error) => return settle(error),
                        Ok(_) => return Ok(None),
                    }
                }
                Ok(last)
            }
            Item::Wal { system_identifier, name } => self.wal_problem(*system_identifier, name, object),
        }
    }

    fn manifest_problem(&self, id: &BackupId, object: &StoredObject) -> Result<Option<String>, Failure> {
        if let Some(limit) = &self.limit {
            limit.wait_for(usize::try_from(object.size).unwrap_or(usize::MAX));
        }
        let inventory = self.inventory;
        let catalogue =
            Catalogue { repository: inventory.repository, cluster: inventory.cluster, keys: self.keys };
        match catalogue.manifest(&BackupName::Id(id.clone())) {
            Ok(_) => Ok(None),
            Err(BackupError::BadManifest { problem, .. }) => Ok(Some(problem)),
            Err(BackupError::Decode(error)) => settle(error),
            // Expired meanwhile.
            Err(BackupError::NoSuchBackup { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn wal_problem(
        &self,
        system: SystemIdentifier,
        name: &str,
        object: &StoredObject,
    ) -> Result<Option<String>, Failure> {
        let name = match name.parse::<ArchiveFileName>() {
            Ok(name) => name,
            Err(problem) => return Ok(Some(problem.to_string())),
        };
        let mut text = Vec::new();
        let facts = ObjectFacts::of_archive_file(name, system, None);
        let read = self.read(object, &facts, &mut |bytes| {
            if facts.kind == ObjectKind::TimelineHistory {
                text.extend_from_slice(bytes);
            }
        });
        let index = match read {
            Ok(None) => return Ok(None),
            Ok(Some(index)) => index,
            Err(error) => return settle(error),
        };
        match name {
            ArchiveFileName::TimelineHistory(timeline) => {
                let parsed = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text));
                Ok(parsed.err().map(|error| error.to_string()))
            }
            ArchiveFileName::Segment(_) | ArchiveFileName::Partial(_) if !index.is_empty() => {
                match WalIndex::decode(&index) {
                    Ok(WalIndex { verdict: RecordVerdict::Damaged { at, problem }, .. }) => {
                        Ok(Some(format!("it was archived damaged: at {at}: {problem}")))
                    }
                    Ok(_) => Ok(None),
                    Err(error) => Ok(Some(format!("its index: {error}"))),
                }
            }
            _ => Ok(None),
        }
    }

    /// Decodes an object whole; its index area, or `None` if it is gone.
    fn read(
        &self,
        object: &StoredObject,
        facts: &ObjectFacts,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<Option<Vec<u8>>, DecodeError> {
        let gone = AtomicBool::new(false);
        let source = LimitedSource {
            repository: self.inventory.repository,
            object,
            limit: self.limit.as_ref(),
            gone: &gone,
        };
        let expected = Expected { facts, key: &object.key };
        let tail = decode_with_workers(&source, &expected, self.keys, 1, &mut |bytes| {
            take(bytes);
            Ok(())
        });
        match tail {
            Ok(tail) => Ok(Some(tail.index)),
            // Expired since it was listed. What is missing and needed, listings tell.
            Err(_) if gone.load(Ordering::Relaxed) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a failed read says something about the object, or about the way to it.
fn settle(error: DecodeError) -> Result<Option<String>, Failure> {
    if error.is_damage() { Ok(Some(error.to_string())) } else { Err(error.into()) }
}

/// An object that is read no faster than allowed.
struct LimitedSource<'a> {
    repository: &'a Repository,
    object: &'a StoredObject,
    limit: Option<&'a RateLimit>,
    gone: &'a AtomicBool,
}

impl ObjectSource for LimitedSource<'_> {
    fn stored_length(&self) -> u64 {
        self.object.size
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        if let Some(limit) = self.limit {
            limit.wait_for(length);
        }
        let read = self.repository.read_range(self.object, offset, length);
        read.map_err(|error| {
            if matches!(error, RepositoryError::Missing { .. }) {
                self.gone.store(true, Ordering::Relaxed);
            }
            Box::new(error) as SinkError
        })
    }
}
