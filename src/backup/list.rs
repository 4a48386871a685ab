//! Which backups there are, from their manifests' ends alone; and whole manifests for those who need them.
//!
//! What must hold: a manifest that cannot be read is told, never skipped. Order is time order by id: marks and store
//! times play no part.

use super::BackupError;
use super::marks::{self, Mark};
use crate::codec::KeyRing;
use crate::codec::decode::{
    DecodeError, Expected, ObjectTail, decode_object, decode_with_workers, read_tail,
};
use crate::fan_out;
use crate::format::envelope::{ObjectFacts, ObjectKind};
use crate::format::manifest::{BackupSummary, Manifest, PackEntry, PackScan};
use crate::format::{BackupId, ClusterName, keys};
use crate::pg::SystemIdentifier;
use crate::repository::{Naming, Repository, RepositoryObject, StoredObject};

/// Manifests that are read at once.
const READERS: usize = 32;

/// Where backups are looked for.
#[derive(Clone, Copy)]
pub struct Catalogue<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The cluster's name.
    pub cluster: &'a ClusterName,
    /// What opens encrypted manifests.
    pub keys: &'a KeyRing,
}

/// A backup in a listing.
#[derive(Debug)]
pub struct ListedBackup {
    /// Its name.
    pub id: BackupId,
    /// Whether its newest mark says permanent.
    pub permanent: bool,
    /// Stored bytes of its manifest.
    pub manifest_bytes: u64,
    /// What its manifest says, or why that could not be read.
    pub summary: Result<BackupSummary, BackupError>,
}

/// What an operator calls a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupName {
    /// `latest`: the newest complete one.
    Latest,
    /// Its id.
    Id(BackupId),
}

impl std::str::FromStr for BackupName {
    type Err = crate::format::backup_id::ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("latest") {
            Ok(BackupName::Latest)
        } else {
            text.parse().map(BackupName::Id)
        }
    }
}

impl Catalogue<'_> {
    /// All backups, oldest first.
    pub fn list(&self) -> Result<Vec<ListedBackup>, BackupError> {
        let manifests = self.manifests()?;
        let marks = marks::newest(self.repository, self.cluster)?;
        let systems = self.systems()?;
        let mut listed = fan_out::map(&manifests, READERS, |(id, object)| ListedBackup {
            id: id.clone(),
            permanent: marks.get(id) == Some(&Mark::Permanent),
            manifest_bytes: object.size,
            summary: self.read_summary(id, object, &systems),
        });
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(listed)
    }

    /// The stored manifests by id. Two of one id (two writers on a store that cannot refuse the second) are listed as
    /// one, which then cannot be found without an error.
    fn manifests(&self) -> Result<Vec<(BackupId, StoredObject)>, BackupError> {
        let folder = keys::backups(self.cluster);
        let mut manifests: Vec<(BackupId, StoredObject)> = Vec::new();
        for object in self.repository.list(&folder)? {
            let Some(name) =
                object.key.as_str().strip_prefix(&folder).and_then(|rest| rest.strip_prefix('/'))
            else {
                continue;
            };
            let Some((id, "manifest")) = name.split_once('/') else { continue };
            match id.parse::<BackupId>() {
                Ok(id) if manifests.last().is_some_and(|(last, _)| *last == id) => {}
                Ok(id) => manifests.push((id, object)),
                Err(error) => tracing::warn!("{} is ignored: {error}", object.path),
            }
        }
        Ok(manifests)
    }

    /// The clusters that archive under this name.
    pub fn systems(&self) -> Result<Vec<SystemIdentifier>, BackupError> {
        let objects = self.repository.list(&keys::identities(self.cluster))?;
        let parse = |object: &StoredObject| object.key.name().strip_suffix(".json")?.parse().ok();
        Ok(objects.iter().filter_map(parse).collect())
    }

    /// One manifest's summary; `systems` are those of [`Catalogue::systems`].
    pub fn read_summary(
        &self,
        id: &BackupId,
        object: &StoredObject,
        systems: &[SystemIdentifier],
    ) -> Result<BackupSummary, BackupError> {
        let tail = self.of_any_system(id, systems, |expected| {
            read_tail(&RepositoryObject { repository: self.repository, object }, expected, self.keys)
        })?;
        summary_of(id, &tail)
    }

    /// Whose backup it is only its header tells, and that is checked against what we expect: so every cluster of this
    /// name is expected in turn. There is one, unless two share the name by mistake.
    fn of_any_system<T>(
        &self,
        id: &BackupId,
        systems: &[SystemIdentifier],
        mut read: impl FnMut(&Expected<'_>) -> Result<T, DecodeError>,
    ) -> Result<T, BackupError> {
        let key = keys::manifest(self.cluster, id);
        let mut last = None;
        for system in systems {
            match read(&Expected { facts: &manifest_facts(*system), key: &key }) {
                Err(error @ DecodeError::OtherCluster { .. }) => last = Some(error.into()),
                Err(error) => return Err(error.into()),
                Ok(value) => return Ok(value),
            }
        }
        Err(last.unwrap_or_else(|| BackupError::BadManifest {
            id: id.clone(),
            problem: format!("no cluster is recorded in {}", keys::identities(self.cluster)),
        }))
    }

    /// The id that a name stands for, and where its manifest is.
    pub fn find(&self, name: &BackupName) -> Result<(BackupId, StoredObject), BackupError> {
        let found = match name {
            BackupName::Latest => self.manifests()?.pop().map(|(id, _)| id),
            BackupName::Id(id) => Some(id.clone()),
        };
        let shown = match name {
            BackupName::Latest => "latest".to_owned(),
            BackupName::Id(id) => id.to_string(),
        };
        let manifest = match &found {
            Some(id) => self.repository.find(&keys::manifest(self.cluster, id), Naming::ByStore)?,
            None => None,
        };
        match (found, manifest) {
            (Some(id), Some(manifest)) => Ok((id, manifest)),
            _ => {
                self.repository.prove_present()?;
                Err(BackupError::NoSuchBackup {
                    id: shown,
                    cluster: self.cluster.to_string(),
                    url: self.repository.url().to_owned(),
                })
            }
        }
    }

    /// A backup's whole manifest.
    pub fn manifest(&self, name: &BackupName) -> Result<Manifest, BackupError> {
        let (id, object) = self.find(name)?;
        let systems = self.systems()?;
        let source = RepositoryObject { repository: self.repository, object: &object };
        let mut body = Vec::new();
        let tail = self.of_any_system(&id, &systems, |expected| {
            body.clear();
            decode_object(&source, expected, self.keys, &mut |bytes| {
                body.extend_from_slice(bytes);
                Ok(())
            })
        })?;
        let summary = summary_of(&id, &tail)?;
        let manifest = Manifest::decode(&body)
            .map_err(|error| BackupError::BadManifest { id: id.clone(), problem: error.to_string() })?;
        if manifest.summary != summary {
            let problem = "its index and its body differ".to_owned();
            return Err(BackupError::BadManifest { id, problem });
        }
        Ok(manifest)
    }

    /// The packs that a backup points to, without the rest of its manifest: that may be large.
    pub fn packs_of(
        &self,
        id: &BackupId,
        object: &StoredObject,
        systems: &[SystemIdentifier],
    ) -> Result<Vec<PackEntry>, BackupError> {
        let source = RepositoryObject { repository: self.repository, object };
        let mut scan = PackScan::default();
        let tail = self.of_any_system(id, systems, |expected| {
            scan = PackScan::default();
            decode_with_workers(&source, expected, self.keys, 1, &mut |bytes| {
                scan.feed(bytes);
                Ok(())
            })
        })?;
        summary_of(id, &tail)?;
        scan.finish().map_err(|error| BackupError::BadManifest { id: id.clone(), problem: error.to_string() })
    }

    /// Whether the newest mark of a backup says permanent.
    pub fn is_permanent(&self, id: &BackupId) -> Result<bool, BackupError> {
        Ok(marks::newest(self.repository, self.cluster)?.get(id) == Some(&Mark::Permanent))
    }
}

fn summary_of(id: &BackupId, tail: &ObjectTail) -> Result<BackupSummary, BackupError> {
    let bad = |problem: String| BackupError::BadManifest { id: id.clone(), problem };
    let summary = BackupSummary::from_json(&tail.index).map_err(|error| bad(error.to_string()))?;
    if summary.id != *id {
        return Err(bad(format!("it is the manifest of backup {}", summary.id)));
    }
    if summary.system_identifier != tail.facts.system_identifier {
        return Err(bad("its header and its summary name different clusters".to_owned()));
    }
    Ok(summary)
}

/// What a manifest's header must say.
pub fn manifest_facts(system_identifier: SystemIdentifier) -> ObjectFacts {
    ObjectFacts {
        kind: ObjectKind::Manifest,
        name: "manifest".to_owned(),
        system_identifier,
        segment_size: None,
    }
}
