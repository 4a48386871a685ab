//! Which objects a deep run has read already, in a local file, so that an interrupted run goes on where it was.
//!
//! One line per object: its path, size and modification time, then nothing or what is wrong. A line that is cut off is not counted.
//! Losing the file costs time; a wrong one can only come from this user.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::repository::StoredObject;

/// A run that was interrupted longer ago begins anew.
const LONGEST_BREAK: Duration = Duration::from_secs(7 * 86_400);

/// What is known of a run that may have been interrupted.
pub struct Journal {
    path: PathBuf,
    known: HashMap<String, Option<String>>,
    file: Option<Mutex<File>>,
}

fn name_of(object: &StoredObject) -> String {
    format!("{}\t{}\t{}", object.path, object.size, object.modified)
}

impl Journal {
    /// Opens the journal of this repository and cluster, whose `name` is unique; without one where the directory cannot be written.
    pub fn open(state_dir: &Path, name: &str) -> Journal {
        let path = state_dir.join("verify").join(name);
        let fresh = fs::metadata(&path)
            .and_then(|facts| facts.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < LONGEST_BREAK));
        let text = if fresh { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        let known = whole.lines().filter_map(parse_line).collect();
        if let Some(parent) = path.parent() {
            let _ = fs::create_dir_all(parent);
        }
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let opened = opened.and_then(|file| {
            // What is not counted must not stand in front of what follows.
            file.set_len(if whole.is_empty() { 0 } else { whole.len() as u64 + 1 })?;
            Ok(file)
        });
        if let Err(error) = &opened {
            tracing::warn!("{}: {error}: if this run is interrupted it begins anew", path.display());
        }
        Journal { path, known, file: opened.ok().map(Mutex::new) }
    }

    /// What an earlier run found: `None` if it did not read this object.
    pub fn result(&self, object: &StoredObject) -> Option<Option<String>> {
        self.known.get(&name_of(object)).cloned()
    }

    /// How many objects were read already.
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// Notes a result.
    pub fn note(&self, object: &StoredObject, problem: Option<&str>) {
        let Some(file) = &self.file else { return };
        let problem = problem.unwrap_or_default().replace(['\n', '\t'], " ");
        let line = format!("{}\t{problem}\n", name_of(object));
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        // Without the line the object is read again.
        let _ = file.write_all(line.as_bytes());
    }

    /// The run is complete: the next one begins anew.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn parse_line(line: &str) -> Option<(String, Option<String>)> {
    let (name, problem) = line.rsplit_once('\t')?;
    (name.matches('\t').count() == 2)
        .then(|| (name.to_owned(), Some(problem.to_owned()).filter(|problem| !problem.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ObjectKey;

    fn object(path: &str, size: u64) -> StoredObject {
        StoredObject {
            key: ObjectKey::from_listing(path),
            path: path.to_owned(),
            size,
            modified: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn an_interrupted_run_goes_on_and_a_changed_object_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), "name");
        journal.note(&object("a", 1), None);
        journal.note(&object("b", 2), Some("it is\ncut off"));
        drop(journal);
        let file = directory.path().join("verify/name");
        let torn = fs::read_to_string(&file).unwrap() + "c\t3\t1970-01";
        fs::write(&file, torn).unwrap();
        let journal = Journal::open(directory.path(), "name");
        assert_eq!(journal.result(&object("a", 1)), Some(None));
        assert_eq!(journal.result(&object("b", 2)), Some(Some("it is cut off".to_owned())));
        assert_eq!(journal.result(&object("a", 7)), None);
        assert_eq!(journal.known(), 2);
        journal.note(&object("d", 4), None);
        drop(journal);
        let journal = Journal::open(directory.path(), "name");
        assert_eq!((journal.known(), journal.result(&object("d", 4))), (3, Some(None)));
        journal.remove();
        assert_eq!(Journal::open(directory.path(), "name").known(), 0);
    }
}
