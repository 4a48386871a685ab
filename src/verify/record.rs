//! What a verification found, as a small immutable object in the repository: `<cluster>/verify/<time>`.
//!
//! The newest one counts. Every run looks again, whole, at what the one before found, so nothing found is forgotten by a later run that reads less.

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::exit_status::Cause;
use crate::format::{ClusterName, keys};
use crate::repository::{Naming, Repository};

/// So many findings are recorded one by one; all are counted.
pub const FINDINGS_KEPT: usize = 1000;

/// How much was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyDepth {
    /// Listings against manifests.
    Quick,
    /// Every object.
    Deep,
    /// A part of all objects.
    Sample,
}

impl VerifyDepth {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            VerifyDepth::Quick => "quick",
            VerifyDepth::Deep => "deep",
            VerifyDepth::Sample => "sample",
        }
    }
}

/// The result of one run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VerifyRecord {
    /// How much was read.
    pub depth: VerifyDepth,
    /// When the run began.
    pub started: jiff::Timestamp,
    /// When it ended.
    pub finished: jiff::Timestamp,
    /// Objects that were listed.
    pub listed_objects: u64,
    /// Objects that were read whole.
    pub read_objects: u64,
    /// Their stored bytes.
    pub read_bytes: u64,
    /// How many things are wrong.
    pub findings: u64,
    /// The first [`FINDINGS_KEPT`] of them.
    pub objects: Vec<RecordedFinding>,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordedFinding {
    /// The object.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

impl VerifyRecord {
    /// Leaves the record in the repository.
    pub fn publish(&self, repository: &Repository, cluster: &ClusterName) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        repository.put(&keys::verification(cluster, self.finished), Naming::Unique, &text)?;
        Ok(())
    }
}

/// The newest record; `None` if the repository was never verified.
pub fn newest(repository: &Repository, cluster: &ClusterName) -> Result<Option<VerifyRecord>, Failure> {
    // Names are times of one length: text order is time order.
    let Some(object) = repository.list(&keys::verifications(cluster))?.pop() else { return Ok(None) };
    let text = repository.read(&object)?;
    let record = serde_json::from_slice(&text).map_err(|error| {
        Failure::new(Cause::Damaged, format!("read {}: {error}", object.path))
            .with_hint("it is only a result: delete it and run walhold verify again")
    })?;
    Ok(Some(record))
}
