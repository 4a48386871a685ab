//! Putting the jobs' pieces together: every file's ranges, stored and kept, and the packs that they are in.

use std::collections::HashSet;

use super::{Copied, CopyPlan, JobResult, ReadRange};
use crate::backup::BackupError;
use crate::backup::relation_file::SuspectPage;
use crate::backup::reuse::Reuse;
use crate::format::manifest::{FileEntry, FileRange, PackEntry, RangeSource};

/// What all jobs did, taken together.
#[derive(Default)]
struct Together {
    /// By index into the plan's files.
    opened: Vec<bool>,
    /// Likewise; packs are numbers of this backup's own.
    stored: Vec<Vec<FileRange>>,
    /// Likewise; packs are indexes into the base's.
    kept: Vec<Vec<FileRange>>,
    /// Likewise; packs are indexes into those of earlier attempts.
    resumed: Vec<Vec<FileRange>>,
    packs: Vec<PackEntry>,
    suspects: Vec<(u32, SuspectPage)>,
    has_control: bool,
}

impl Together {
    fn of(files: usize, results: Vec<JobResult>) -> Together {
        let mut together = Together {
            opened: vec![false; files],
            stored: vec![Vec::new(); files],
            kept: vec![Vec::new(); files],
            resumed: vec![Vec::new(); files],
            ..Together::default()
        };
        for result in results {
            for file in result.opened {
                if let Some(opened) = together.opened.get_mut(file as usize) {
                    *opened = true;
                }
            }
            sort_in(&mut together.stored, result.ranges);
            sort_in(&mut together.kept, result.kept);
            sort_in(&mut together.resumed, result.resumed);
            together.packs.extend(result.packs);
            together.suspects.extend(result.suspects);
            together.has_control |= result.has_control;
        }
        together.packs.sort_by_key(|pack| pack.number);
        together.suspects.sort_by_key(|(file, page)| (*file, page.block));
        together
    }
}

fn sort_in(files: &mut [Vec<FileRange>], ranges: Vec<ReadRange>) {
    for ReadRange { file, range } in ranges {
        if let Some(ranges) = files.get_mut(file as usize) {
            ranges.push(range);
        }
    }
}

/// Puts the jobs' pieces together.
pub(super) fn assemble(plan: &CopyPlan<'_>, results: Vec<JobResult>) -> Result<Copied, BackupError> {
    let together = Together::of(plan.files.len(), results);
    if !together.has_control {
        return Err(BackupError::JobLost);
    }
    let own_packs = together.packs.len();
    let mut packs = together.packs;
    packs.extend(plan.reuse.iter().flat_map(|reuse| reuse.base.packs.iter().cloned()));
    let of_others = packs.len();
    packs.extend(plan.resumed.packs.iter().cloned());
    let mut files = Vec::with_capacity(plan.files.len());
    let taken_over = together.kept.into_iter().zip(together.resumed);
    let pieces = together.opened.into_iter().zip(together.stored).zip(taken_over);
    for ((index, file), ((opened, mut ranges), (mut kept, mut resumed))) in
        (0u32..).zip(plan.files).zip(pieces)
    {
        if let Some(Reuse::Known { base, read }) = plan.reuse_of(index) {
            // A file of which nothing had to be read was seen by the walk: that has to do.
            if !opened && !read.is_empty() {
                continue;
            }
            kept = plan.reuse.map(|reuse| reuse.kept(*base, read, file.found.size)).unwrap_or_default();
        } else if !opened {
            continue;
        }
        kept.iter_mut().for_each(|range| move_pack(range, |pack| pack + own_packs as u32));
        ranges.append(&mut kept);
        resumed.iter_mut().for_each(|range| move_pack(range, |pack| pack + of_others as u32));
        ranges.append(&mut resumed);
        let (size, ranges) = without_holes(ranges).ok_or(BackupError::JobLost)?;
        files.push(FileEntry {
            root: file.root,
            path: file.found.path.clone(),
            mode: file.found.mode,
            size,
            modified: file.found.modified,
            ranges,
        });
    }
    files.sort_by(|a, b| (a.root, &a.path).cmp(&(b.root, &b.path)));
    let packs = without_unused(packs, own_packs, &mut files);
    let all_bytes = chunk_bytes(&files, |_| true);
    let is_resumed = |pack: u32| {
        let pack = packs.get(pack as usize);
        pack.is_some_and(|pack| plan.resumed.attempts().contains(&pack.backup))
    };
    let resumed_bytes = chunk_bytes(&files, is_resumed);
    Ok(Copied { files, packs, own_packs, chunk_bytes: all_bytes, resumed_bytes, suspects: together.suspects })
}

fn move_pack(range: &mut FileRange, to: impl Fn(u32) -> u32) {
    if let RangeSource::Chunk { pack, .. } = &mut range.source {
        *pack = to(*pack);
    }
}

/// Leaves out the packs of the base that no range points into. This backup's own stay: all of them were just written.
fn without_unused(packs: Vec<PackEntry>, own: usize, files: &mut [FileEntry]) -> Vec<PackEntry> {
    let mut used: Vec<bool> = (0..packs.len()).map(|index| index < own).collect();
    for range in files.iter().flat_map(|file| &file.ranges) {
        if let RangeSource::Chunk { pack, .. } = range.source
            && let Some(used) = used.get_mut(pack as usize)
        {
            *used = true;
        }
    }
    let mut places = Vec::with_capacity(packs.len());
    let mut next = 0;
    for used in &used {
        places.push(next);
        next += u32::from(*used);
    }
    for range in files.iter_mut().flat_map(|file| &mut file.ranges) {
        move_pack(range, |pack| places.get(pack as usize).copied().unwrap_or(u32::MAX));
    }
    packs.into_iter().zip(used).filter(|(_, used)| *used).map(|(pack, _)| pack).collect()
}

/// Stored bytes of the chunks that files point to in packs that count, each counted once.
fn chunk_bytes(files: &[FileEntry], counts: impl Fn(u32) -> bool) -> u64 {
    let mut counted = HashSet::new();
    let mut bytes = 0;
    for range in files.iter().flat_map(|file| &file.ranges) {
        if let RangeSource::Chunk { pack, number, stored_length, .. } = range.source
            && counts(pack)
            && counted.insert((pack, number))
        {
            bytes += u64::from(stored_length);
        }
    }
    bytes
}

/// Ranges in order, and the file's size. A file that was truncated and extended again while several jobs read it may
/// have a hole between what they saw: its pages are written by replay, until then they are zero. `None` if ranges overlap,
/// which only a mistake in the plan can make.
fn without_holes(mut ranges: Vec<FileRange>) -> Option<(u64, Vec<FileRange>)> {
    ranges.sort_by_key(|range| range.offset);
    let mut whole: Vec<FileRange> = Vec::with_capacity(ranges.len());
    let mut end = 0;
    for range in ranges {
        while end < range.offset {
            let length = u32::try_from(range.offset - end).unwrap_or(1 << 30);
            append(&mut whole, FileRange { offset: end, length, source: RangeSource::Zeros });
            end += u64::from(length);
        }
        if range.offset < end {
            return None;
        }
        end += u64::from(range.length);
        append(&mut whole, range);
    }
    Some((end, whole))
}

/// Neighbouring zeros become one range as long as its length has room.
fn append(whole: &mut Vec<FileRange>, range: FileRange) {
    if let Some(last) = whole.last_mut()
        && (last.source, range.source) == (RangeSource::Zeros, RangeSource::Zeros)
        && let Some(length) = last.length.checked_add(range.length)
    {
        last.length = length;
        return;
    }
    whole.push(range);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_become_zeros() {
        let zeros = |offset, length| FileRange { offset, length, source: RangeSource::Zeros };
        assert_eq!(without_holes(Vec::new()), Some((0, Vec::new())));
        assert_eq!(without_holes(vec![zeros(100, 20), zeros(0, 10)]), Some((120, vec![zeros(0, 120)])));
        assert_eq!(without_holes(vec![zeros(9, 20), zeros(0, 10)]), None);
        let (size, ranges) = without_holes(vec![zeros(5 << 30, 1)]).unwrap();
        assert_eq!(size, (5 << 30) + 1);
        assert_eq!(ranges.iter().map(|range| u64::from(range.length)).sum::<u64>(), size);
    }
}
