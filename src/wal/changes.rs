//! Which blocks changed between two positions of WAL: from the archive's indexes, and from the server's own pg_wal for what is not
//! archived yet.
//!
//! In: the stored segments of a cluster, a history of timelines, two positions, a pg_wal directory. Out: every block that a record between
//! them changes, or the reason why that cannot be shown.
//!
//! What must hold: no change is missing. So every segment between the positions is there, its index speaks of blocks, each follows on
//! the one before (links of records, pieces of records that span segments and their CRC), no record in between was written
//! with `wal_level=minimal`, and the archive's WAL is the server's own: the newest stored segment is compared with pg_wal's, because a
//! server that was set back to an older state goes on with other WAL at the same positions. Whole segments are taken in:
//! what changed a little before the start or after the stop may be named too, which costs a read and no more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::scan::SegmentScanner;
use super::stored_segments::{StoredSegments, StoredSegmentsError};
use crate::error::{Explain, system_words};
use crate::exit_status::Cause;
use crate::format::wal_index::{
    BlockChanges, CheckpointKind, IndexChain, RecordVerdict, SegmentFacts, SpanningRecord, WalIndex,
};
use crate::pg::wal_page::{LongPageHeader, WAL_PAGE_SIZE};
use crate::pg::{Lsn, TimelineHistory, TimelineId, WalSegmentName, WalSegmentNumber, WalSegmentSize};

/// Indexes that are in memory at once.
const INDEXES_AT_ONCE: usize = 64;
/// Bytes of a local segment that are read at once.
const READ_SIZE: usize = 1 << 20;

/// A stretch of WAL.
#[derive(Clone, Copy, Debug)]
pub struct WalRange<'a> {
    /// The history of the timeline that the stretch ends on.
    pub history: &'a TimelineHistory,
    /// Where the first record begins: the start of the backup that changes are counted from.
    pub start: Lsn,
    /// Where a record begins that is not counted any more: the start of the new backup.
    pub stop: Lsn,
}

/// What changed in a stretch of WAL.
#[derive(Clone, Debug)]
pub struct RangeChanges {
    /// The blocks. An error if the index of some segment says nothing about them: the rest is proven all the same.
    pub blocks: Result<BlockChanges, Unproven>,
    /// Where the server may have been started in between: settings that need that may have been others for a while.
    pub restarted: Option<Lsn>,
    /// Segments whose stored index was read.
    pub stored_segments: u64,
    /// Segments of pg_wal that were scanned because they are not archived yet.
    pub local_segments: u64,
}

/// Why the changes are not known. Nothing is wrong with the archive because of it: there are other ways to find changed blocks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// The stretch ends before it begins.
    #[error("WAL from {start} to {stop} goes backwards")]
    Backwards {
        /// Its start.
        start: Lsn,
        /// Its stop.
        stop: Lsn,
    },
    /// A segment is neither stored nor in pg_wal.
    #[error("segment {segment} is neither archived nor in pg_wal")]
    Missing {
        /// The segment.
        segment: WalSegmentName,
    },
    /// Its index is older than walhold's knowledge of blocks, or a record was not understood.
    #[error("the index of segment {segment} says nothing about blocks")]
    SaysNothing {
        /// The segment.
        segment: WalSegmentName,
    },
    /// A page or record is not valid.
    #[error("segment {segment} is damaged at {at}: {problem}")]
    Damaged {
        /// The segment.
        segment: WalSegmentName,
        /// Where.
        at: Lsn,
        /// What is wrong.
        problem: String,
    },
    /// Two segments do not fit together.
    #[error("what follows segment {segment} does not fit: {problem}")]
    Broken {
        /// The earlier one.
        segment: WalSegmentName,
        /// What is wrong.
        problem: String,
    },
    /// WAL ends before the stop.
    #[error("WAL in segment {segment} ends at {at}, before {stop}")]
    EndsEarly {
        /// The last segment.
        segment: WalSegmentName,
        /// Where it ends.
        at: Lsn,
        /// Where it should reach.
        stop: Lsn,
    },
    /// WAL of this level does not name all changes.
    #[error("from {at} on WAL was written with wal_level=minimal, which does not name every change")]
    MinimalWal {
        /// Where the level changed.
        at: Lsn,
    },
    /// The archive and the server wrote different WAL at the same positions.
    #[error(
        "segment {segment} in pg_wal is not the one that is archived: this server was set back to an older state, or archives into another one's place"
    )]
    OtherWal {
        /// The segment.
        segment: WalSegmentName,
    },
    /// A local segment cannot be read, or is none of this cluster's.
    #[error("read {path}: {problem}", path = path.display())]
    LocalUnusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Why changes could not be gathered.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// They are not known: use another way.
    #[error(transparent)]
    Unproven(#[from] Unproven),
    /// The repository failed.
    #[error(transparent)]
    Stored(#[from] StoredSegmentsError),
}

impl Explain for ChangesError {
    fn exit_cause(&self) -> Cause {
        match self {
            ChangesError::Unproven(_) => Cause::Refused,
            ChangesError::Stored(error) => error.exit_cause(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ChangesError::Unproven(_) => None,
            ChangesError::Stored(error) => error.hint(),
        }
    }
}

/// Gathers what changed in `range`. `pg_wal` is the running server's own directory; without it everything must be stored.
pub fn changes_in(
    stored: &mut StoredSegments<'_>,
    range: &WalRange<'_>,
    pg_wal: Option<&Path>,
) -> Result<RangeChanges, ChangesError> {
    if range.stop < range.start {
        return Err(Unproven::Backwards { start: range.start, stop: range.stop }.into());
    }
    if range.stop == range.start {
        let blocks = Ok(BlockChanges::default());
        return Ok(RangeChanges { blocks, restarted: None, stored_segments: 0, local_segments: 0 });
    }
    let names = segments_of(range, stored.of().segment_size);
    let places = find_all(stored, &names, pg_wal)?;
    let newest_stored = names.iter().zip(&places).rfind(|(_, place)| **place == Place::Stored);
    let newest_stored = newest_stored.map(|(name, _)| *name);
    let mut gathering = Gathering {
        range,
        names: &names,
        pushed: 0,
        done: 0,
        blocks: Ok(BlockChanges::default()),
        restarted: None,
        chain: IndexChain::new(),
    };
    let local = pg_wal.map(|directory| LocalWal { directory, stored, range });
    let everything: Vec<(WalSegmentName, Place)> = names.iter().copied().zip(places).collect();
    for part in everything.chunks(INDEXES_AT_ONCE) {
        let wanted: Vec<WalSegmentName> =
            part.iter().filter(|(_, place)| *place == Place::Stored).map(|(name, _)| *name).collect();
        let mut loaded = stored.load_indexes(&wanted)?.into_iter();
        for (name, place) in part {
            let index = match (place, &local) {
                (Place::Stored, _) => loaded.next().map(|loaded| loaded.index).unwrap_or_default(),
                (Place::Local, Some(local)) => local.scan(*name)?,
                (Place::Local, None) => return Err(Unproven::Missing { segment: *name }.into()),
            };
            if let Some(local) = local.as_ref().filter(|_| newest_stored == Some(*name)) {
                local.compare(*name, &index)?;
            }
            gathering.push(index)?;
        }
    }
    let (blocks, restarted) = gathering.finish()?;
    let stored_segments = everything.iter().filter(|(_, place)| *place == Place::Stored).count() as u64;
    let local_segments = everything.len() as u64 - stored_segments;
    Ok(RangeChanges { blocks, restarted, stored_segments, local_segments })
}

/// The files that hold the stretch: where a timeline was left within a segment, the next one's file has its bytes too.
fn segments_of(range: &WalRange<'_>, size: WalSegmentSize) -> Vec<WalSegmentName> {
    let first = WalSegmentNumber::containing(range.start, size);
    let last = WalSegmentNumber::ending_at(range.stop, size).max(first);
    let timeline_of = |number| -> TimelineId {
        let began = |timeline: &TimelineId| {
            let begins = range.history.begins_at(*timeline).unwrap_or(Lsn::MAX);
            WalSegmentNumber::containing(begins, size) <= number
        };
        range.history.timelines().rev().find(began).unwrap_or(range.history.timeline)
    };
    (first.get()..=last.get())
        .map(WalSegmentNumber::new)
        .map(|number| WalSegmentName::new(timeline_of(number), number, size))
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Stored,
    Local,
}

/// Where each segment is. One that is in neither place may have been archived and recycled since the archive was listed.
fn find_all(
    stored: &mut StoredSegments<'_>,
    names: &[WalSegmentName],
    pg_wal: Option<&Path>,
) -> Result<Vec<Place>, ChangesError> {
    let mut places = Vec::with_capacity(names.len());
    for name in names {
        let is_stored = |stored: &StoredSegments<'_>| {
            name.number(stored.of().segment_size)
                .is_some_and(|number| stored.view().has(name.timeline, number))
        };
        let is_local = || pg_wal.is_some_and(|directory| directory.join(name.to_string()).is_file());
        places.push(if is_stored(stored) {
            Place::Stored
        } else if is_local() {
            Place::Local
        } else if stored.look_again(*name)? {
            Place::Stored
        } else {
            return Err(Unproven::Missing { segment: *name }.into());
        });
    }
    Ok(places)
}

/// The server's own segments.
struct LocalWal<'a> {
    directory: &'a Path,
    stored: &'a StoredSegments<'a>,
    range: &'a WalRange<'a>,
}

impl LocalWal<'_> {
    /// Scans one: as far as the stop if that lies in it, for behind it the server is writing.
    fn scan(&self, name: WalSegmentName) -> Result<WalIndex, Unproven> {
        let path = self.directory.join(name.to_string());
        let unusable = |problem: String| Unproven::LocalUnusable { path: path.clone(), problem };
        let of = self.stored.of();
        let read = |error: std::io::Error| unusable(system_words(&error));
        let file = File::open(&path).map_err(read)?;
        let mut buffer = vec![0; READ_SIZE];
        let first = read_at(&file, 0, &mut buffer).map_err(read)?;
        let header = LongPageHeader::parse(first).map_err(|error| unusable(error.to_string()))?;
        let start = name.start_lsn(of.segment_size).ok_or_else(|| unusable("no such segment".to_owned()))?;
        if header.system_identifier != of.system_identifier
            || header.segment_size != of.segment_size
            || header.page_address != start
        {
            return Err(unusable("it is not this cluster's segment of that name".to_owned()));
        }
        let size = of.segment_size.bytes();
        let wanted = self.range.stop.bytes_since(start).min(size);
        let mut scanner = if wanted < size {
            SegmentScanner::of_partial(name, &header)
        } else {
            SegmentScanner::new(name, &header)
        };
        let until = wanted.next_multiple_of(WAL_PAGE_SIZE as u64);
        let mut position = 0;
        while position < until {
            let length = usize::try_from(until - position).unwrap_or(READ_SIZE).min(READ_SIZE);
            let bytes =
                read_at(&file, position, buffer.get_mut(..length).unwrap_or_default()).map_err(read)?;
            if bytes.is_empty() {
                break;
            }
            scanner.feed(bytes);
            position += bytes.len() as u64;
        }
        Ok(scanner.finish())
    }

    /// Checks that a stored segment is the one that this server wrote, if it still has it.
    fn compare(&self, name: WalSegmentName, stored: &WalIndex) -> Result<(), Unproven> {
        if !self.directory.join(name.to_string()).is_file() {
            return Ok(());
        }
        let whole = WalRange { stop: Lsn::MAX, ..*self.range };
        let local = LocalWal { range: &whole, ..*self }.scan(name)?;
        // An older index knows less of what lies in the segment; where its records are and when they committed, it knows.
        let core = |index: &WalIndex| WalIndex {
            blocks: None,
            files: None,
            databases_made: None,
            abridged: false,
            tail: crate::format::wal_index::Fragment { bytes: Vec::new(), ..index.tail.clone() },
            ..index.clone()
        };
        if core(&local) != core(stored) {
            return Err(Unproven::OtherWal { segment: name });
        }
        Ok(())
    }
}

/// Fills the buffer as far as the file has bytes.
fn read_at<'b>(file: &File, position: u64, buffer: &'b mut [u8]) -> std::io::Result<&'b [u8]> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, position + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer.get(..filled).unwrap_or_default())
}

/// Joins the segments and adds up their changes.
struct Gathering<'a> {
    range: &'a WalRange<'a>,
    names: &'a [WalSegmentName],
    /// Segments that went into the chain.
    pushed: usize,
    /// Segments that came out of it and were judged.
    done: usize,
    blocks: Result<BlockChanges, Unproven>,
    restarted: Option<Lsn>,
    chain: IndexChain,
}

impl Gathering<'_> {
    fn push(&mut self, index: WalIndex) -> Result<(), Unproven> {
        // Said of the damaged segment itself, not of the one that its beginning does not fit to.
        if let (RecordVerdict::Damaged { at, problem }, Some(segment)) =
            (&index.verdict, self.names.get(self.pushed).copied())
        {
            return Err(Unproven::Damaged { segment, at: *at, problem: problem.clone() });
        }
        self.pushed += 1;
        for facts in self.chain.push(index) {
            self.judge(facts)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Result<BlockChanges, Unproven>, Option<Lsn>), Unproven> {
        for facts in std::mem::take(&mut self.chain).finish() {
            self.judge(facts)?;
        }
        Ok((self.blocks, self.restarted))
    }

    fn judge(&mut self, facts: SegmentFacts) -> Result<(), Unproven> {
        let Some(segment) = self.names.get(self.done).copied() else { return Ok(()) };
        self.done += 1;
        let is_last = self.done == self.names.len();
        let index = &facts.index;
        let counted = self.range.start..self.range.stop;
        if let Some((at, _)) = index.wal_levels.iter().find(|(at, level)| *level == 0 && counted.contains(at))
        {
            return Err(Unproven::MinimalWal { at: *at });
        }
        let unfinished = facts.spanning == SpanningRecord::Unfinished;
        let reach = if unfinished { index.tail.record } else { index.valid_until };
        let wanted = if is_last { self.range.stop } else { index.end };
        match facts.break_after {
            Some(problem) if !is_last => return Err(Unproven::Broken { segment, problem }),
            _ if reach < wanted => {
                return Err(Unproven::EndsEarly { segment, at: reach, stop: self.range.stop });
            }
            _ => {}
        }
        self.restarted = self.restarted.or(restart_in(index, counted));
        match (&mut self.blocks, &index.blocks) {
            (Ok(all), Some(blocks)) => all.merge(blocks),
            (Ok(_), None) => self.blocks = Err(Unproven::SaysNothing { segment }),
            (Err(_), _) => {}
        }
        Ok(())
    }
}

/// Where the server may have been started: it writes a shutdown checkpoint before, or an end of recovery after. Of an index whose
/// lists were cut, or of a version whose checkpoints are not known, nothing can be said.
fn restart_in(index: &WalIndex, counted: std::ops::Range<Lsn>) -> Option<Lsn> {
    if index.abridged || !(13..=18).contains(&index.postgresql_major) {
        return Some(index.start);
    }
    let restarts = index.checkpoints.iter().filter(|checkpoint| checkpoint.kind != CheckpointKind::Online);
    restarts.map(|checkpoint| checkpoint.lsn).find(|at| counted.contains(at))
}
