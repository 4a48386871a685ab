//! Which blocks of which relations WAL changed: what an incremental backup must read again.
//!
//! Records' block references and what records do to whole files go in, segment by segment; out comes, for any fork, from where on
//! everything is new (its *limit block*) and which blocks below that were changed. The rules are those of the server's own summaries
//! (`src/backend/postmaster/walsummarizer.c`, `src/common/blkreftable.c`): a fork that was created or removed has the limit 0, one that
//! was cut the length it was cut to; the free space map is left out, because it is not fully logged.
//!
//! What must hold: a block that WAL changed is never missing here. Too many are no harm.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::block_set::BlockSet;
use crate::pg::wal_record::{BlockReference, ForkNumber, RelFileLocator};
use crate::pg::wal_storage::StorageChange;

/// Stands for every fork of a relation that was removed: one entry instead of three for each of perhaps thousands.
pub(super) const EVERY_FORK: ForkNumber = ForkNumber(15);

/// No limit: no relation has so many blocks (`InvalidBlockNumber`).
const NO_LIMIT: u32 = u32::MAX;

/// Forks that were used last are found without the map.
const RECENT: usize = 32;

/// Blocks that were taken in last are known without their set: busy pages come again and again.
const RECENT_BLOCKS: usize = 256;

/// What changed in one fork.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fork {
    pub(super) key: ForkKey,
    /// Everything from this block on is new; [`NO_LIMIT`] if nothing is known to be.
    limit: u32,
    /// Changed blocks; those at or above the limit were written after it was set.
    blocks: BlockSet,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct ForkKey {
    pub(super) relation: RelFileLocator,
    pub(super) fork: ForkNumber,
}

impl Fork {
    pub(super) fn limit(&self) -> Option<u32> {
        Some(self.limit).filter(|limit| *limit != NO_LIMIT)
    }

    pub(super) fn blocks(&self) -> &BlockSet {
        &self.blocks
    }
}

/// A fork that changed, as listings show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedFork {
    /// The relation; number 0 is a whole database.
    pub relation: RelFileLocator,
    /// Its fork.
    pub fork: ForkNumber,
    /// From where on everything is new.
    pub limit: Option<u32>,
    /// Runs of changed blocks, both ends included.
    pub runs: Vec<(u32, u32)>,
}

/// The changes of a stretch of WAL.
#[derive(Clone, Debug, Default)]
pub struct BlockChanges {
    forks: Vec<Fork>,
    places: HashMap<ForkKey, usize, BuildHasherDefault<KeyHasher>>,
    recent: [usize; RECENT],
    /// None, or [`RECENT_BLOCKS`] places for blocks that are in their sets. Emptied when a set is cut.
    recent_blocks: Vec<(ForkKey, u32)>,
}

/// The changes of one fork as [`BlockChanges::of`] finds them.
#[derive(Clone, Copy, Debug)]
pub struct ForkChanges<'a> {
    /// Everything from this block on is new, whatever the fork's length was: read it. `None`: nothing was created, cut or removed.
    pub limit: Option<u32>,
    blocks: Option<&'a BlockSet>,
}

impl ForkChanges<'_> {
    /// Whether the block must be read again.
    pub fn contains(&self, block: u32) -> bool {
        self.limit.is_some_and(|limit| block >= limit)
            || self.blocks.is_some_and(|blocks| blocks.contains(block))
    }

    /// Whether nothing changed.
    pub fn is_unchanged(&self) -> bool {
        self.limit.is_none() && self.blocks.is_none_or(BlockSet::is_empty)
    }

    /// What must be read again of the blocks in `range`: in order, neither overlapping nor touching.
    pub fn runs_within(&self, range: Range<u32>) -> Vec<Range<u32>> {
        let limit = self.limit.unwrap_or(range.end).clamp(range.start, range.end.max(range.start));
        let mut runs: Vec<Range<u32>> =
            self.blocks.map(|blocks| blocks.runs_within(range.start..limit).collect()).unwrap_or_default();
        if limit < range.end {
            match runs.last_mut() {
                Some(last) if last.end == limit => last.end = range.end,
                _ => runs.push(limit..range.end),
            }
        }
        runs
    }
}

impl BlockChanges {
    /// Takes in a block that a record refers to.
    #[inline]
    pub fn add_block(&mut self, block: &BlockReference) {
        if block.fork != ForkNumber::FREE_SPACE_MAP {
            let touched = (ForkKey { relation: block.relation, fork: block.fork }, block.block);
            let slot = (block.relation.relation.wrapping_mul(31) ^ block.block) as usize % RECENT_BLOCKS;
            if self.recent_blocks.get(slot) != Some(&touched) {
                self.fork(touched.0).blocks.insert(touched.1);
                self.remember(slot, touched);
            }
        }
    }

    fn remember(&mut self, slot: usize, touched: (ForkKey, u32)) {
        // The first one fills every place: it is in its set, whichever place it is found in.
        self.recent_blocks.resize(RECENT_BLOCKS, touched);
        if let Some(place) = self.recent_blocks.get_mut(slot) {
            *place = touched;
        }
    }

    /// Takes in what a record does to files. Of the same record, this comes before its blocks.
    pub fn add_storage_change(&mut self, change: &StorageChange) {
        match change {
            StorageChange::Created { relation, fork } => self.set_limit(*relation, *fork, 0),
            StorageChange::Truncated { relation, fork, from } => self.set_limit(*relation, *fork, *from),
            StorageChange::Removed { relations, .. } => {
                relations.iter().for_each(|relation| self.set_limit(*relation, EVERY_FORK, 0));
            }
            StorageChange::DatabaseCreated { database, tablespace, .. } => {
                self.set_limit(whole_database(*tablespace, *database), ForkNumber::MAIN, 0);
            }
            StorageChange::DatabaseDropped { database, tablespaces } => {
                for tablespace in tablespaces {
                    self.set_limit(whole_database(*tablespace, *database), ForkNumber::MAIN, 0);
                }
            }
            StorageChange::TablespaceCreated { .. } | StorageChange::TablespaceDropped { .. } => {}
        }
    }

    /// Everything of this fork from `limit` on is new. Relation number 0 stands for the whole database.
    pub(super) fn set_limit(&mut self, relation: RelFileLocator, fork: ForkNumber, limit: u32) {
        if fork == ForkNumber::FREE_SPACE_MAP {
            return;
        }
        self.recent_blocks.clear();
        let forks: &[ForkNumber] = match fork {
            EVERY_FORK => &[ForkNumber::MAIN, ForkNumber::VISIBILITY_MAP, ForkNumber::INIT],
            _ => &[],
        };
        for fork in forks {
            if let Some(place) = self.places.get(&ForkKey { relation, fork: *fork })
                && let Some(known) = self.forks.get_mut(*place)
            {
                known.cut(limit);
            }
        }
        self.fork(ForkKey { relation, fork }).cut(limit);
    }

    /// A limit as it is kept: of this entry alone.
    pub(super) fn set_limit_as_read(&mut self, relation: RelFileLocator, fork: ForkNumber, limit: u32) {
        self.fork(ForkKey { relation, fork }).limit = limit;
    }

    /// An entry without blocks, so far.
    pub(super) fn add_fork(&mut self, relation: RelFileLocator, fork: ForkNumber) {
        self.fork(ForkKey { relation, fork });
    }

    pub(super) fn add_run(&mut self, relation: RelFileLocator, fork: ForkNumber, first: u32, last: u32) {
        self.fork(ForkKey { relation, fork }).blocks.insert_run(first, last);
    }

    /// Takes in the changes of the WAL that follows.
    pub fn merge(&mut self, later: &BlockChanges) {
        // Limits first: blocks were written after their own limit was set, or below it.
        for fork in later.forks.iter().filter(|fork| fork.limit != NO_LIMIT) {
            self.set_limit(fork.key.relation, fork.key.fork, fork.limit);
        }
        for fork in later.forks.iter().filter(|fork| !fork.blocks.is_empty()) {
            self.fork(fork.key).blocks.merge(&fork.blocks);
        }
    }

    /// What changed in this fork. Of the free space map nothing is known, ever: its limit is 0.
    pub fn of(&self, relation: RelFileLocator, fork: ForkNumber) -> ForkChanges<'_> {
        let find = |relation, fork| {
            let place = self.places.get(&ForkKey { relation, fork })?;
            self.forks.get(*place)
        };
        let limit = |relation, fork| find(relation, fork).and_then(Fork::limit);
        let unknown = (fork == ForkNumber::FREE_SPACE_MAP).then_some(0);
        let limits = [
            unknown,
            limit(relation, fork),
            limit(relation, EVERY_FORK),
            limit(whole_database(relation.tablespace, relation.database), ForkNumber::MAIN),
        ];
        ForkChanges {
            limit: limits.into_iter().flatten().min(),
            blocks: find(relation, fork).map(|fork| &fork.blocks),
        }
    }

    /// Changed blocks of all forks, without those that limits stand for.
    pub fn block_count(&self) -> u64 {
        self.forks.iter().map(|fork| fork.blocks.len()).sum()
    }

    /// How many forks changed, or were created, cut or removed.
    pub fn fork_count(&self) -> usize {
        self.forks.len()
    }

    /// Every fork that is named, in order of tablespace, database, relation and fork: its limit and its runs of changed blocks. A
    /// removed relation appears once for each of its forks but the free space map; number 0 is a whole database.
    pub fn forks(&self) -> Vec<NamedFork> {
        let mut keys: Vec<ForkKey> = Vec::with_capacity(self.forks.len());
        for ForkKey { relation, fork } in self.forks.iter().map(|fork| fork.key) {
            match fork {
                EVERY_FORK => keys.extend(
                    [ForkNumber::MAIN, ForkNumber::VISIBILITY_MAP, ForkNumber::INIT]
                        .map(|fork| ForkKey { relation, fork }),
                ),
                _ => keys.push(ForkKey { relation, fork }),
            }
        }
        keys.sort_unstable();
        keys.dedup();
        let one = |key: ForkKey| {
            let changes = self.of_named(key);
            let runs = changes.blocks.map(|blocks| blocks.runs().collect()).unwrap_or_default();
            NamedFork { relation: key.relation, fork: key.fork, limit: changes.limit, runs }
        };
        keys.into_iter().map(one).collect()
    }

    /// As [`BlockChanges::of`], without what was said of the whole database.
    fn of_named(&self, key: ForkKey) -> ForkChanges<'_> {
        let find = |fork| self.forks.get(*self.places.get(&ForkKey { relation: key.relation, fork })?);
        let limit = |fork| find(fork).and_then(Fork::limit);
        ForkChanges {
            limit: [limit(key.fork), limit(EVERY_FORK)].into_iter().flatten().min(),
            blocks: find(key.fork).map(|fork| &fork.blocks),
        }
    }

    /// As kept, in order.
    pub(super) fn sorted(&self) -> Vec<&Fork> {
        let mut forks: Vec<&Fork> = self.forks.iter().collect();
        forks.sort_unstable_by_key(|fork| fork.key);
        forks
    }

    #[inline]
    fn fork(&mut self, key: ForkKey) -> &mut Fork {
        let slot = (key.relation.relation as usize ^ (usize::from(key.fork.0) << 2)) % RECENT;
        let recent = self.recent.get(slot).copied().unwrap_or_default();
        let place = match self.forks.get(recent) {
            Some(fork) if fork.key == key => recent,
            _ => {
                let next = self.forks.len();
                let place = *self.places.entry(key).or_insert(next);
                if place == next {
                    self.forks.push(Fork { key, limit: NO_LIMIT, blocks: BlockSet::default() });
                }
                if let Some(slot) = self.recent.get_mut(slot) {
                    *slot = place;
                }
                place
            }
        };
        // Places are positions in `forks`, which never shrinks.
        &mut self.forks[place]
    }
}

impl Fork {
    fn cut(&mut self, limit: u32) {
        self.limit = self.limit.min(limit);
        self.blocks.truncate(limit);
    }
}

impl PartialEq for BlockChanges {
    fn eq(&self, other: &BlockChanges) -> bool {
        self.sorted() == other.sorted()
    }
}

impl Eq for BlockChanges {}

/// One fork in `wal-show --index --json`.
#[derive(Serialize)]
struct ForkRow {
    tablespace: u32,
    database: u32,
    relation: u32,
    fork: &'static str,
    limit_block: Option<u32>,
    blocks: Vec<(u32, u32)>,
}

impl Serialize for BlockChanges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let forks = self.forks();
        let mut rows = serializer.serialize_seq(Some(forks.len()))?;
        for named in forks {
            rows.serialize_element(&ForkRow {
                tablespace: named.relation.tablespace,
                database: named.relation.database,
                relation: named.relation.relation,
                fork: fork_name(named.fork),
                limit_block: named.limit,
                blocks: named.runs,
            })?;
        }
        rows.end()
    }
}

/// As files are called (`forkNames`, `src/common/relpath.c`).
pub fn fork_name(fork: ForkNumber) -> &'static str {
    match fork {
        ForkNumber::MAIN => "main",
        ForkNumber::FREE_SPACE_MAP => "fsm",
        ForkNumber::VISIBILITY_MAP => "vm",
        ForkNumber::INIT => "init",
        _ => "unknown",
    }
}

fn whole_database(tablespace: u32, database: u32) -> RelFileLocator {
    RelFileLocator { tablespace, database, relation: 0 }
}

/// Four numbers make a key, and a record makes a key or more: the standard hash would take longer than the rest.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u32(u32::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(23) ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(number: u32) -> RelFileLocator {
        RelFileLocator { tablespace: 1663, database: 5, relation: number }
    }

    fn block(number: u32, fork: u8, block: u32) -> BlockReference {
        BlockReference {
            id: 0,
            relation: relation(number),
            fork: ForkNumber(fork),
            block,
            will_init: false,
            data_length: 0,
            image: None,
        }
    }

    fn runs(changes: &BlockChanges, number: u32, fork: u8, range: Range<u32>) -> Vec<(u32, u32)> {
        let found = changes.of(relation(number), ForkNumber(fork)).runs_within(range);
        found.into_iter().map(|run| (run.start, run.end)).collect()
    }

    fn named(number: u32, fork: u8, limit: Option<u32>, runs: &[(u32, u32)]) -> NamedFork {
        NamedFork { relation: relation(number), fork: ForkNumber(fork), limit, runs: runs.to_vec() }
    }

    #[test]
    fn the_free_space_map_is_never_known() {
        let mut changes = BlockChanges::default();
        changes.add_block(&block(9, 1, 3));
        changes.add_storage_change(&StorageChange::Created { relation: relation(9), fork: ForkNumber(1) });
        assert_eq!(changes.fork_count(), 0);
        assert_eq!(runs(&changes, 9, 1, 0..4), [(0, 4)]);
        assert!(changes.of(relation(9), ForkNumber::MAIN).is_unchanged());
    }

    #[test]
    fn a_limit_forgets_what_lies_beyond_and_what_comes_later_is_new_again() {
        let mut changes = BlockChanges::default();
        [3, 4, 90].into_iter().for_each(|number| changes.add_block(&block(9, 0, number)));
        let cut = StorageChange::Truncated { relation: relation(9), fork: ForkNumber::MAIN, from: 50 };
        changes.add_storage_change(&cut);
        changes.add_block(&block(9, 0, 60));
        let found = changes.forks();
        assert_eq!(found, [named(9, 0, Some(50), &[(3, 4), (60, 60)])]);
        assert_eq!(runs(&changes, 9, 0, 0..100), [(3, 5), (50, 100)]);
        assert_eq!(runs(&changes, 9, 0, 4..5), [(4, 5)]);
        assert_eq!(runs(&changes, 9, 0, 0..3), []);
        assert!(changes.of(relation(9), ForkNumber::MAIN).contains(1_000_000));
        // The least limit counts.
        let cut = StorageChange::Truncated { relation: relation(9), fork: ForkNumber::MAIN, from: 70 };
        changes.add_storage_change(&cut);
        assert_eq!(changes.of(relation(9), ForkNumber::MAIN).limit, Some(50));
    }

    #[test]
    fn a_removed_relation_is_new_in_every_fork() {
        let mut changes = BlockChanges::default();
        changes.add_block(&block(9, 0, 3));
        changes.add_block(&block(9, 2, 0));
        let gone = |outcome| StorageChange::Removed { relations: vec![relation(9), relation(10)], outcome };
        changes.add_storage_change(&gone(crate::pg::wal_event::Outcome::Aborted));
        changes.add_block(&block(9, 0, 7));
        for (number, fork) in [(9, 0), (9, 2), (9, 3), (10, 0), (10, 2), (10, 3)] {
            assert_eq!(changes.of(relation(number), ForkNumber(fork)).limit, Some(0), "{number} {fork}");
        }
        let found = changes.forks();
        assert_eq!(found.len(), 6);
        assert_eq!(found[0], named(9, 0, Some(0), &[(7, 7)]));
        assert_eq!(found[1], named(9, 2, Some(0), &[]));
    }

    #[test]
    fn relation_0_is_the_whole_database() {
        let mut changes = BlockChanges::default();
        changes.add_block(&block(9, 0, 3));
        changes.add_storage_change(&StorageChange::DatabaseDropped {
            database: 5,
            tablespaces: vec![1700, 1663],
        });
        assert_eq!(runs(&changes, 9, 0, 0..10), [(0, 10)]);
        assert_eq!(runs(&changes, 12, 2, 0..10), [(0, 10)]);
        let elsewhere = RelFileLocator { tablespace: 1701, database: 5, relation: 9 };
        assert!(changes.of(elsewhere, ForkNumber::MAIN).is_unchanged());
        let other = RelFileLocator { tablespace: 1663, database: 6, relation: 9 };
        assert!(changes.of(other, ForkNumber::MAIN).is_unchanged());
        assert_eq!(changes.forks()[0].relation, relation(0));
    }

    /// Merging segment by segment must say what one pass over all of it says, but may say more.
    #[test]
    fn merging_is_like_reading_on() {
        let mut state = 7u32;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((u64::from(state) * u64::from(below)) >> 32) as u32
        };
        for round in 0..200 {
            let (mut whole, mut merged, mut part) =
                (BlockChanges::default(), BlockChanges::default(), BlockChanges::default());
            for _ in 0..60 {
                let number = random(4) + 1;
                let change = match random(12) {
                    0 => Some(StorageChange::Created { relation: relation(number), fork: ForkNumber(0) }),
                    1 => Some(StorageChange::Truncated {
                        relation: relation(number),
                        fork: ForkNumber(0),
                        from: random(50),
                    }),
                    2 => Some(StorageChange::Removed {
                        relations: vec![relation(number)],
                        outcome: crate::pg::wal_event::Outcome::Committed,
                    }),
                    _ => None,
                };
                let touched = block(number, 2 * random(2) as u8, random(60));
                for changes in [&mut whole, &mut part] {
                    change.iter().for_each(|change| changes.add_storage_change(change));
                    changes.add_block(&touched);
                }
                if random(5) == 0 {
                    merged.merge(&part);
                    part = BlockChanges::default();
                }
            }
            merged.merge(&part);
            assert_eq!(merged, whole, "{round}");
        }
    }
}
