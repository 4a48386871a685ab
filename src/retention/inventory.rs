//! Everything that lies under a cluster's name, read in a few parallel listings: what plans, `status` and `verify` are made of.
//!
//! What must hold: whatever is there and could not be listed or read is an error or is told; nothing is left out in silence.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::backup::BackupError;
use crate::backup::intent::Intent;
use crate::backup::list::Catalogue;
use crate::backup::marks::{self, Mark};
use crate::backup::tombstone::{self, Tombstone};
use crate::codec::KeyRing;
use crate::error::{Explain, Failure};
use crate::exit_status::Cause;
use crate::fan_out;
use crate::format::manifest::{BackupSummary, PackEntry};
use crate::format::{BackupId, ClusterName, keys};
use crate::pg::{ArchiveFileName, SystemIdentifier, WalSegmentSize};
use crate::repository::{Naming, Repository, RepositoryError, StoredObject};
use crate::restore::lease;
use crate::wal::stored_segments::{StoredSegments, WalOf};

/// Requests that are under way at once: what costs is the way there.
pub const THREADS: usize = 64;

/// Manifests that are read whole at once: each takes a little memory.
const MANIFEST_READERS: usize = 4;

/// What lies under a cluster's name.
pub struct Inventory<'a> {
    /// Where it lies.
    pub repository: &'a Repository,
    /// The name.
    pub cluster: &'a ClusterName,
    /// This machine's clock when reading began.
    pub taken_at: jiff::Timestamp,
    /// Backups with a manifest, by id.
    pub backups: BTreeMap<BackupId, StoredBackup>,
    /// Announcements, by id; with and without a manifest.
    pub intents: BTreeMap<BackupId, Vec<StoredObject>>,
    /// Packs by the backup that wrote them.
    pub packs: BTreeMap<BackupId, BTreeMap<u32, StoredObject>>,
    /// Leases that restores took, by backup.
    pub leases: BTreeMap<BackupId, Vec<StoredObject>>,
    /// Marks by backup.
    pub marks: HashMap<BackupId, Mark>,
    /// The clusters that archive under this name, and their WAL.
    pub systems: BTreeMap<SystemIdentifier, SystemWal<'a>>,
    /// What earlier runs of expire announced.
    pub tombstones: Vec<(StoredObject, Tombstone)>,
    /// Objects that are none of walhold's, and are left alone.
    pub strangers: Vec<String>,
}

/// A complete backup.
pub struct StoredBackup {
    /// Its manifest.
    pub manifest: StoredObject,
    /// Whether its newest mark says permanent.
    pub permanent: bool,
    /// What the manifest says, or why it cannot be read.
    pub summary: Result<BackupSummary, BackupError>,
    /// The packs that it points to, once those were read.
    pub packs: Option<Vec<PackEntry>>,
}

/// One cluster's WAL.
pub struct SystemWal<'a> {
    /// Segments and histories.
    pub stored: StoredSegments<'a>,
    /// Bytes per segment; a guess if nothing tells.
    pub segment_size: WalSegmentSize,
    /// Everything else with an archived file's name.
    pub others: Vec<(ArchiveFileName, StoredObject)>,
    /// Stored bytes of all of it.
    pub stored_bytes: u64,
}

/// How much is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Listings and summaries.
    Summaries,
    /// Also which packs each backup points to.
    Packs,
}

/// The parts of an inventory that are listed independently of each other.
enum Part {
    Packs(Vec<StoredObject>),
    Leases(Vec<StoredObject>),
    Marks(HashMap<BackupId, Mark>),
    Tombstones(Vec<(StoredObject, Tombstone)>),
    Wal(Vec<(SystemIdentifier, Vec<StoredObject>)>),
    Summaries(Vec<(BackupId, Result<BackupSummary, BackupError>)>),
}

impl<'a> Inventory<'a> {
    /// Reads what there is.
    pub fn take(
        repository: &'a Repository,
        cluster: &'a ClusterName,
        keys: &'a KeyRing,
        depth: Depth,
    ) -> Result<Inventory<'a>, Failure> {
        let catalogue = Catalogue { repository, cluster, keys };
        let mut inventory = Inventory {
            repository,
            cluster,
            taken_at: jiff::Timestamp::now(),
            backups: BTreeMap::new(),
            intents: BTreeMap::new(),
            packs: BTreeMap::new(),
            leases: BTreeMap::new(),
            marks: HashMap::new(),
            systems: BTreeMap::new(),
            tombstones: Vec::new(),
            strangers: Vec::new(),
        };
        let (backups, systems) = begin(&catalogue)?;
        // Before packs and WAL: a backup that completes meanwhile shows packs without a manifest, never the other way round, and
        // one that begins meanwhile shows packs that are young.
        inventory.sort_backups(backups)?;
        let mut wal = Vec::new();
        for part in list_parts(&catalogue, &inventory.backups, &systems, depth) {
            match part? {
                Part::Packs(objects) => inventory.sort_packs(objects),
                Part::Leases(objects) => inventory.sort_leases(objects),
                Part::Marks(marks) => inventory.marks = marks,
                Part::Tombstones(tombstones) => inventory.tombstones = tombstones,
                Part::Wal(listed) => wal = listed,
                Part::Summaries(summaries) => inventory.sort_summaries(summaries),
            }
        }
        for (id, backup) in &mut inventory.backups {
            backup.permanent = inventory.marks.get(id) == Some(&Mark::Permanent);
        }
        if depth == Depth::Packs {
            inventory.read_packs(&catalogue)?;
        }
        inventory.settle_unreadable()?;
        for (system, objects) in wal {
            inventory.sort_wal(keys, system, objects)?;
        }
        Ok(inventory)
    }

    fn sort_backups(&mut self, objects: Vec<StoredObject>) -> Result<(), RepositoryError> {
        for object in objects {
            let mut segments = object.key.as_str().split('/').skip(2);
            let id = segments.next().and_then(|id| id.parse::<BackupId>().ok());
            match (id, segments.next(), segments.next()) {
                (Some(id), Some("manifest"), None) => {
                    let permanent = false;
                    let summary = Err(BackupError::JobLost);
                    let backup = StoredBackup { manifest: object, permanent, summary, packs: None };
                    let path = backup.manifest.path.clone();
                    if let Some(other) = self.backups.insert(id, backup) {
                        return Err(RepositoryError::TwoObjects {
                            key: other.manifest.key.to_string(),
                            first: other.manifest.path,
                            second: path,
                        });
                    }
                }
                (Some(id), Some("intent"), Some(_)) => self.intents.entry(id).or_default().push(object),
                _ => self.strangers.push(object.path),
            }
        }
        Ok(())
    }

    fn sort_packs(&mut self, objects: Vec<StoredObject>) {
        for object in objects {
            let mut segments = object.key.as_str().split('/').skip(2);
            let id = segments.next().and_then(|id| id.parse::<BackupId>().ok());
            let number = segments.next().and_then(|number| number.parse::<u32>().ok());
            match (id, number, segments.next()) {
                (Some(id), Some(number), None) => {
                    self.packs.entry(id).or_default().insert(number, object);
                }
                _ => self.strangers.push(object.path),
            }
        }
    }

    fn sort_leases(&mut self, objects: Vec<StoredObject>) {
        for object in objects {
            match object.key.as_str().split('/').nth(2).map(str::parse::<BackupId>) {
                Some(Ok(id)) => self.leases.entry(id).or_default().push(object),
                _ => self.strangers.push(object.path),
            }
        }
    }

    /// Whether a restore reads this backup, as far as its leases tell.
    pub fn is_leased(&self, id: &BackupId) -> bool {
        let is_fresh = |lease: &StoredObject| {
            // One from the future is fresh: clocks never agree.
            let age = Duration::try_from(self.taken_at.duration_since(lease.modified));
            age.unwrap_or_default() <= lease::LENGTH
        };
        self.leases.get(id).is_some_and(|leases| leases.iter().any(is_fresh))
    }

    fn sort_summaries(&mut self, summaries: Vec<(BackupId, Result<BackupSummary, BackupError>)>) {
        for (id, summary) in summaries {
            if let Some(backup) = self.backups.get_mut(&id) {
                backup.summary = summary;
            }
        }
    }

    /// Reads which packs the readable backups point to. A manifest whose end can be read but not its body counts as
    /// unreadable from here on.
    fn read_packs(&mut self, catalogue: &Catalogue<'_>) -> Result<(), BackupError> {
        let found: Vec<(BackupId, StoredObject, SystemIdentifier)> = self
            .backups
            .iter()
            .filter_map(|(id, backup)| {
                let summary = backup.summary.as_ref().ok()?;
                Some((id.clone(), backup.manifest.clone(), summary.system_identifier))
            })
            .collect();
        let read = fan_out::map(&found, MANIFEST_READERS, |(id, manifest, system)| {
            catalogue.packs_of(id, manifest, &[*system])
        });
        for ((id, ..), packs) in found.iter().zip(read) {
            let Some(backup) = self.backups.get_mut(id) else { continue };
            match packs {
                Ok(packs) => backup.packs = Some(packs),
                Err(error) => backup.summary = Err(error),
            }
        }
        Ok(())
    }

    /// A manifest that is gone by now was expired meanwhile. One that could not be read for a reason that is not its own (no key, no
    /// answer) is no damaged backup but the end of this reading.
    fn settle_unreadable(&mut self) -> Result<(), Failure> {
        let mut gone = Vec::new();
        for (id, backup) in &self.backups {
            let Err(error) = &backup.summary else { continue };
            if !matches!(error.exit_cause(), Cause::Damaged | Cause::OtherCluster) {
                return Err(Failure {
                    cause: error.exit_cause(),
                    message: format!("read the manifest of backup {id}: {error}"),
                    hint: error.hint(),
                    reader_gone: false,
                });
            }
            if self.repository.find(&keys::manifest(self.cluster, id), Naming::ByStore)?.is_none() {
                gone.push(id.clone());
            }
        }
        gone.iter().for_each(|id| drop(self.backups.remove(id)));
        Ok(())
    }

    fn sort_wal(
        &mut self,
        keys: &'a KeyRing,
        system: SystemIdentifier,
        objects: Vec<StoredObject>,
    ) -> Result<(), Failure> {
        let stored_bytes = objects.iter().map(|object| object.size).sum();
        let mut others = Vec::new();
        for object in &objects {
            match object.key.name().parse::<ArchiveFileName>() {
                Ok(ArchiveFileName::Segment(_)) => {}
                Ok(name) => others.push((name, object.clone())),
                Err(_) => self.strangers.push(object.path.clone()),
            }
        }
        let of_this = self.backups.values().filter_map(|backup| backup.summary.as_ref().ok());
        let known = of_this
            .filter(|summary| summary.system_identifier == system)
            .map(|summary| summary.wal_segment_size)
            .next();
        let segment_size = match known {
            Some(size) => size,
            None => crate::wal::show::segment_size_of(self.repository, keys, system, &objects)?
                .unwrap_or(WalSegmentSize::DEFAULT),
        };
        let stored = StoredSegments::from_objects(
            self.repository,
            keys,
            WalOf { cluster: self.cluster, system_identifier: system, segment_size },
            objects,
        )?;
        self.systems.insert(system, SystemWal { stored, segment_size, others, stored_bytes });
        Ok(())
    }

    /// Backups whose manifest can be read, oldest first by id.
    pub fn readable(&self) -> impl Iterator<Item = (&BackupId, &StoredBackup, &BackupSummary)> {
        self.backups.iter().filter_map(|(id, backup)| Some((id, backup, backup.summary.as_ref().ok()?)))
    }

    /// What an unfinished backup announced: read from its newest announcement.
    pub fn intent(&self, id: &BackupId) -> Result<Option<Intent>, Failure> {
        let Some(object) = self.intents.get(id).and_then(|intents| intents.last()) else { return Ok(None) };
        let text = self.repository.read(object)?;
        let intent = serde_json::from_slice(&text).map_err(|error| {
            Failure::new(Cause::Damaged, format!("read {}: {error}", object.path))
                .with_hint("it says what a backup at work builds on; delete it by hand once no backup runs")
        })?;
        Ok(Some(intent))
    }

    /// Why a readable backup cannot be restored as it is, as far as listings tell; needs [`Depth::Packs`] to see packs.
    pub fn defect(&self, backup: &StoredBackup, summary: &BackupSummary) -> Option<String> {
        let missing = |pack: &&PackEntry| {
            let stored = self.packs.get(&pack.backup).and_then(|packs| packs.get(&pack.number));
            stored.is_none_or(|object| object.size != pack.stored_length)
        };
        let mut bad = backup.packs.iter().flatten().filter(missing);
        if let Some(first) = bad.next() {
            let key = keys::pack(self.cluster, &first.backup, first.number);
            return Some(match bad.count() {
                0 => format!("pack {key} is missing or has another size"),
                others => format!("pack {key} and {others} more are missing or have another size"),
            });
        }
        let range = super::keep_wal::ConsistencyRange::of(summary);
        let Some(wal) = self.systems.get(&summary.system_identifier) else {
            return Some("none of its cluster's WAL is stored".to_owned());
        };
        let view = wal.stored.view();
        let line = view.history(summary.stop_timeline);
        let mut number = range.first;
        while number <= range.last {
            if !line.timelines().any(|timeline| view.has(timeline, number)) {
                return Some(format!("WAL segment {} is missing", view.name(summary.stop_timeline, number)));
            }
            number = number.next();
        }
        None
    }
}

/// What the first requests bring, side by side.
enum Beginning {
    Proof,
    Backups(Vec<StoredObject>),
    Systems(Vec<SystemIdentifier>),
}

/// Manifests and announcements, and the clusters of this name; and that the repository itself answers.
fn begin(catalogue: &Catalogue<'_>) -> Result<(Vec<StoredObject>, Vec<SystemIdentifier>), Failure> {
    let (repository, cluster) = (catalogue.repository, catalogue.cluster);
    let proof = || {
        repository.prove_present()?;
        Ok(Beginning::Proof)
    };
    let backups = || Ok(Beginning::Backups(repository.list(&keys::backups(cluster))?));
    let systems = || Ok(Beginning::Systems(catalogue.systems()?));
    let parts: [&(dyn Fn() -> Result<Beginning, Failure> + Sync); 3] = [&proof, &backups, &systems];
    let (mut found, mut names) = (Vec::new(), Vec::new());
    // In this order: a missing marker says more than what follows from it.
    for part in fan_out::map(&parts, parts.len(), |part| part()) {
        match part? {
            Beginning::Proof => {}
            Beginning::Backups(objects) => found = objects,
            Beginning::Systems(systems) => names = systems,
        }
    }
    Ok((found, names))
}

/// The rest, side by side. Packs only where they are asked for.
fn list_parts(
    catalogue: &Catalogue<'_>,
    backups: &BTreeMap<BackupId, StoredBackup>,
    systems: &[SystemIdentifier],
    depth: Depth,
) -> Vec<Result<Part, Failure>> {
    let (repository, cluster) = (catalogue.repository, catalogue.cluster);
    let wal = || {
        let mut listed = Vec::new();
        for system in systems {
            let folder = keys::wal_folder(cluster, *system);
            listed.push((*system, repository.list_in_parallel(&folder, 2, THREADS)?));
        }
        Ok(Part::Wal(listed))
    };
    let packs = || match depth {
        Depth::Summaries => Ok(Part::Packs(Vec::new())),
        Depth::Packs => Ok(Part::Packs(repository.list_in_parallel(&keys::packs(cluster), 1, THREADS)?)),
    };
    let marks = || Ok(Part::Marks(marks::newest(repository, cluster)?));
    let tombstones = || Ok(Part::Tombstones(tombstone::list(repository, cluster)?));
    let found: Vec<(&BackupId, &StoredBackup)> = backups.iter().collect();
    let summaries = || {
        let read = fan_out::map(&found, THREADS, |(id, backup)| {
            ((*id).clone(), catalogue.read_summary(id, &backup.manifest, systems))
        });
        Ok(Part::Summaries(read))
    };
    let leases = || Ok(Part::Leases(repository.list(&keys::leases(cluster))?));
    let parts: [&(dyn Fn() -> Result<Part, Failure> + Sync); 6] =
        [&wal, &packs, &marks, &tombstones, &leases, &summaries];
    fan_out::map(&parts, parts.len(), |part| part())
}
