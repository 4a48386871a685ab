//! A set of block numbers of one relation fork that stays small whether it is sparse or dense, and merges quickly.
//!
//! Blocks are kept by stretches of 65,536: a few as a sorted list, many as a bitmap. A stretch takes 8 KiB at most, so a set never needs
//! more than a 65,536th of the data that it speaks of.

use std::collections::BTreeMap;
use std::ops::Range;

/// From so many blocks on, a stretch is kept as a bitmap.
const LIST_LIMIT: usize = 256;
const WORDS: usize = 1024;

/// Block numbers below 2³² - 1 (`MaxBlockNumber`); a greater one can't be in a relation, and is kept all the same.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlockSet {
    stretches: BTreeMap<u16, Stretch>,
}

#[derive(Clone, Debug)]
enum Stretch {
    /// Sorted, without duplicates.
    List(Vec<u16>),
    Bitmap(Box<[u64; WORDS]>),
}

impl PartialEq for Stretch {
    /// The same blocks, however they are kept.
    fn eq(&self, other: &Stretch) -> bool {
        self.runs().eq(other.runs())
    }
}

impl Eq for Stretch {}

fn split(block: u32) -> (u16, u16) {
    ((block >> 16) as u16, block as u16)
}

impl BlockSet {
    /// Adds a block.
    #[inline]
    pub fn insert(&mut self, block: u32) {
        let (stretch, offset) = split(block);
        self.stretches.entry(stretch).or_insert_with(|| Stretch::List(Vec::new())).insert(offset);
    }

    /// Adds `first` to `last`, both included.
    pub fn insert_run(&mut self, first: u32, last: u32) {
        let (from, to) = (first >> 16, last >> 16);
        for stretch in from..=to {
            let begin = if stretch == from { first as u16 } else { 0 };
            let end = if stretch == to { last as u16 } else { u16::MAX };
            let kept = self.stretches.entry(stretch as u16).or_insert_with(|| Stretch::List(Vec::new()));
            kept.insert_run(begin, end);
        }
    }

    /// Adds every block of another set.
    pub fn merge(&mut self, other: &BlockSet) {
        for (number, theirs) in &other.stretches {
            match (self.stretches.get_mut(number), theirs) {
                (None, _) => {
                    self.stretches.insert(*number, theirs.clone());
                }
                (Some(Stretch::Bitmap(ours)), Stretch::Bitmap(theirs)) => {
                    ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours |= theirs);
                }
                (Some(ours), _) => theirs.runs().for_each(|(first, last)| ours.insert_run(first, last)),
            }
        }
    }

    /// Takes out every block from `limit` on.
    pub fn truncate(&mut self, limit: u32) {
        let (stretch, offset) = split(limit);
        self.stretches.split_off(&stretch).remove(&stretch).into_iter().for_each(|cut| {
            let mut kept = Stretch::List(Vec::new());
            for (first, last) in cut.runs() {
                if first < offset {
                    kept.insert_run(first, last.min(offset - 1));
                }
            }
            if !kept.is_empty() {
                self.stretches.insert(stretch, kept);
            }
        });
    }

    /// Whether there is no block in it.
    pub fn is_empty(&self) -> bool {
        self.stretches.values().all(Stretch::is_empty)
    }

    /// Whether the block is in it.
    pub fn contains(&self, block: u32) -> bool {
        let (stretch, offset) = split(block);
        self.stretches.get(&stretch).is_some_and(|stretch| stretch.contains(offset))
    }

    /// How many blocks there are.
    pub fn len(&self) -> u64 {
        self.runs().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    /// Runs of blocks that follow each other, `(first, last)`, in order; between two there is at least one block that is not in
    /// the set.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u32)> {
        let all = self.stretches.iter().flat_map(|(number, stretch)| {
            let base = u32::from(*number) << 16;
            stretch.runs().map(move |(first, last)| (base | u32::from(first), base | u32::from(last)))
        });
        Joined { runs: all, waiting: None }
    }

    /// The part of the set within `range`, as runs whose ends are excluded.
    pub fn runs_within(&self, range: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let (from, to) = (range.start, range.end);
        let stretches = self.stretches.range(split(from).0..).flat_map(|(number, stretch)| {
            let base = u32::from(*number) << 16;
            stretch.runs().map(move |(first, last)| (base | u32::from(first), base | u32::from(last)))
        });
        Joined { runs: stretches, waiting: None }
            .take_while(move |(first, _)| *first < to)
            .filter(move |(_, last)| *last >= from)
            .map(move |(first, last)| first.max(from)..last.saturating_add(1).min(to))
    }
}

/// Joins runs that touch across the border of two stretches.
struct Joined<I> {
    runs: I,
    waiting: Option<(u32, u32)>,
}

impl<I: Iterator<Item = (u32, u32)>> Iterator for Joined<I> {
    type Item = (u32, u32);

    fn next(&mut self) -> Option<(u32, u32)> {
        loop {
            let Some((first, last)) = self.runs.next() else { return self.waiting.take() };
            match &mut self.waiting {
                Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
                waiting => {
                    if let Some(done) = waiting.replace((first, last)) {
                        return Some(done);
                    }
                }
            }
        }
    }
}

impl Stretch {
    #[inline]
    fn insert(&mut self, offset: u16) {
        match self {
            Stretch::Bitmap(words) => set_bit(words, offset),
            Stretch::List(list) => {
                // What is touched is often touched again, and what is new often comes behind.
                if list.last().is_some_and(|last| *last == offset) {
                    return;
                }
                if list.last().is_none_or(|last| *last < offset) {
                    list.push(offset);
                } else if let Err(at) = list.binary_search(&offset) {
                    list.insert(at, offset);
                }
                if list.len() > LIST_LIMIT {
                    self.become_bitmap();
                }
            }
        }
    }

    fn insert_run(&mut self, first: u16, last: u16) {
        if usize::from(last.saturating_sub(first)) >= LIST_LIMIT {
            self.become_bitmap();
        }
        match self {
            Stretch::Bitmap(words) => set_bits(words, first, last),
            Stretch::List(_) => (first..=last).for_each(|offset| self.insert(offset)),
        }
    }

    fn become_bitmap(&mut self) {
        if let Stretch::List(list) = self {
            let mut words = Box::new([0; WORDS]);
            list.iter().for_each(|offset| set_bit(&mut words, *offset));
            *self = Stretch::Bitmap(words);
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Stretch::List(list) => list.is_empty(),
            Stretch::Bitmap(words) => words.iter().all(|word| *word == 0),
        }
    }

    fn contains(&self, offset: u16) -> bool {
        match self {
            Stretch::List(list) => list.binary_search(&offset).is_ok(),
            Stretch::Bitmap(words) => {
                words.get(usize::from(offset >> 6)).is_some_and(|word| word >> (offset & 63) & 1 == 1)
            }
        }
    }

    fn runs(&self) -> StretchRuns<'_> {
        StretchRuns { stretch: self, at: 0 }
    }
}

fn set_bit(words: &mut [u64; WORDS], offset: u16) {
    if let Some(word) = words.get_mut(usize::from(offset >> 6)) {
        *word |= 1 << (offset & 63);
    }
}

fn set_bits(words: &mut [u64; WORDS], first: u16, last: u16) {
    let (from, to) = (usize::from(first >> 6), usize::from(last >> 6));
    for (at, word) in words.iter_mut().enumerate().take(to + 1).skip(from) {
        let low = if at == from { u64::MAX << (first & 63) } else { u64::MAX };
        let high = if at == to { u64::MAX >> (63 - (last & 63)) } else { u64::MAX };
        *word |= low & high;
    }
}

/// Runs of one stretch; `at` is the place in the list, or the next bit.
struct StretchRuns<'a> {
    stretch: &'a Stretch,
    at: usize,
}

impl Iterator for StretchRuns<'_> {
    type Item = (u16, u16);

    fn next(&mut self) -> Option<(u16, u16)> {
        match self.stretch {
            Stretch::List(list) => {
                let first = *list.get(self.at)?;
                let mut last = first;
                self.at += 1;
                while let Some(next) = list.get(self.at).filter(|next| last.checked_add(1) == Some(**next)) {
                    last = *next;
                    self.at += 1;
                }
                Some((first, last))
            }
            Stretch::Bitmap(words) => {
                let first = next_bit(words, self.at, 0)?;
                let end = next_bit(words, first, u64::MAX).unwrap_or(1 << 16);
                self.at = end;
                Some((first as u16, (end - 1) as u16))
            }
        }
    }
}

/// The first set bit from `at` on, or the first clear one if every word is turned over by `flip`.
fn next_bit(words: &[u64; WORDS], at: usize, flip: u64) -> Option<usize> {
    let mut mask = u64::MAX << (at & 63);
    for (number, word) in words.iter().enumerate().skip(at >> 6) {
        let found = (word ^ flip) & mask;
        if found != 0 {
            return Some((number << 6) + found.trailing_zeros() as usize);
        }
        mask = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn runs_of(blocks: &BTreeSet<u32>) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for block in blocks {
            match runs.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(*block) => *last = *block,
                _ => runs.push((*block, *block)),
            }
        }
        runs
    }

    /// Blocks that are dense in places, sparse in others, and cross the borders of stretches and words.
    fn some_blocks(seed: u32) -> Vec<u32> {
        let mut state = seed;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((u64::from(state) * u64::from(below)) >> 32) as u32
        };
        let mut blocks: Vec<u32> = (0..900).map(|_| random(3000)).collect();
        blocks.extend((0..50).map(|_| random(u32::MAX)));
        let begin = 65_536 * 3 - 400 + random(100);
        blocks.extend(begin..begin + 700);
        blocks.extend([0, 65_535, 65_536, u32::MAX, u32::MAX - 1]);
        blocks
    }

    #[test]
    fn holds_what_was_put_in() {
        for seed in 0..20 {
            let (mut set, mut expected) = (BlockSet::default(), BTreeSet::new());
            for block in some_blocks(seed) {
                set.insert(block);
                expected.insert(block);
            }
            assert_eq!(set.runs().collect::<Vec<_>>(), runs_of(&expected), "{seed}");
            assert_eq!(set.len(), expected.len() as u64);
            assert!(expected.iter().all(|block| set.contains(*block)));
            assert!((0..4000).all(|block| set.contains(block) == expected.contains(&block)));
            let mut by_runs = BlockSet::default();
            set.runs().for_each(|(first, last)| by_runs.insert_run(first, last));
            assert_eq!(by_runs, set);
            let (from, to) = (seed * 97, 65_536 * 3 + seed * 11);
            let within: BTreeSet<u32> = expected.range(from..to).copied().collect();
            let found: Vec<(u32, u32)> =
                set.runs_within(from..to).map(|run| (run.start, run.end - 1)).collect();
            assert_eq!(found, runs_of(&within), "{seed}");
        }
    }

    #[test]
    fn merges_and_truncates() {
        for seed in 0..20 {
            let (mut one, mut other) = (BlockSet::default(), BlockSet::default());
            some_blocks(seed).into_iter().for_each(|block| one.insert(block));
            some_blocks(seed + 100).into_iter().step_by(5).for_each(|block| other.insert(block));
            let mut expected: BTreeSet<u32> = some_blocks(seed).into_iter().collect();
            expected.extend(some_blocks(seed + 100).into_iter().step_by(5));
            let mut merged = other.clone();
            merged.merge(&one);
            one.merge(&other);
            assert_eq!(one, merged);
            assert_eq!(one.runs().collect::<Vec<_>>(), runs_of(&expected));
            for limit in [u32::MAX, 65_536 * 3 + 100, 65_536 * 3, 1500, 1, 0] {
                one.truncate(limit);
                expected.retain(|block| *block < limit);
                assert_eq!(one.runs().collect::<Vec<_>>(), runs_of(&expected), "{seed} {limit}");
                assert_eq!(one.is_empty(), expected.is_empty());
            }
        }
    }

    #[test]
    fn a_run_may_cover_whole_stretches() {
        let mut set = BlockSet::default();
        set.insert(70_000);
        set.insert_run(10, 65_536 * 4 + 9);
        assert_eq!(set.runs().collect::<Vec<_>>(), [(10, 65_536 * 4 + 9)]);
        assert!(set.runs_within(0..100).eq(std::iter::once(10..100)));
    }
}
