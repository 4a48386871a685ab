//! Changed blocks and files that come and go, compared with what the server says: record by record (`pg_walinspect`, 15 and later), by its
//! own summaries (17 and 18), and, on every version, by the pages themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use walhold::format::wal_index::{BlockChanges, SegmentFacts, TablespaceEventKind};
use walhold::pg::wal_record::{ForkNumber, RelFileLocator};
use walhold::pg::wal_storage::DatabaseDirectory;
use walhold::pg::{Lsn, TimelineId};

use crate::blocks_workload::run_random;
use crate::support::postgres::{Cluster, StopMode};
use crate::{Scanned, builder, chain, finished_segments};

/// Tablespace, database, relation, fork.
type Fork = (u32, u32, u32, u8);

/// A limit block, and the blocks that were changed since it was set or below it.
type Changes = BTreeMap<Fork, (Option<u32>, BTreeSet<u32>)>;

/// How the limit of a visibility map is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MapLimit {
    /// The first block of the map that changed, the one included whose last bits were cleared.
    FirstChanged,
    /// The map's new length, as the server's summaries have it.
    NewLength,
}

/// A record as far as it changes files or pages.
struct Record {
    lsn: Lsn,
    kind: String,
    description: String,
    blocks: Vec<(Fork, u32)>,
}

fn records(cluster: &Cluster, begin: Lsn, end: Lsn) -> Vec<Record> {
    cluster.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect");
    let rows = cluster.query(&format!(
        "SELECT start_lsn, resource_manager || ' ' || record_type, description, coalesce(block_ref, '')
         FROM pg_get_wal_records_info('{begin}', '{end}') WHERE start_lsn < '{end}' ORDER BY start_lsn"
    ));
    let record = |row: Vec<String>| Record {
        lsn: row[0].parse().expect("an LSN"),
        kind: row[1].clone(),
        description: row[2].clone(),
        blocks: row[3].split("blkref #").skip(1).map(block_reference).collect(),
    };
    rows.into_iter().map(record).collect()
}

/// `0: rel 1663/5/16384 fork vm blk 12 (FPW); hole: …`
fn block_reference(text: &str) -> (Fork, u32) {
    let word_after = |word: &str| {
        let mut words = text.split([' ', '\t', ',', ';', '\n']);
        words.by_ref().find(|found| *found == word)?;
        words.next()
    };
    let relation: Vec<u32> = word_after("rel")
        .unwrap_or_else(|| panic!("no relation: {text}"))
        .split('/')
        .map(|number| number.parse().expect("a number"))
        .collect();
    let fork = fork_number(word_after("fork").unwrap_or("main"));
    let block =
        word_after("blk").and_then(|block| block.parse().ok()).unwrap_or_else(|| panic!("no block: {text}"));
    ((relation[0], relation[1], relation[2], fork), block)
}

fn fork_number(name: &str) -> u8 {
    match name {
        "main" => 0,
        "fsm" => 1,
        "vm" => 2,
        "init" => 3,
        other => panic!("fork {other}"),
    }
}

/// `base/5/16384_vm`, `global/1260`, `pg_tblspc/16400/PG_15_202209061/5/16384.1`
fn path_of(text: &str) -> Fork {
    let text = text.trim_end_matches([';', ',']);
    let parts: Vec<&str> = text.split('/').collect();
    let (tablespace, database, file) = match parts.as_slice() {
        ["global", file] => (1664, 0, *file),
        ["base", database, file] => (1663, database.parse().expect("a database"), *file),
        ["pg_tblspc", tablespace, _, database, file] => {
            (tablespace.parse().expect("a tablespace"), database.parse().expect("a database"), *file)
        }
        _ => panic!("a path? {text}"),
    };
    let (number, fork) = file.split_once('_').unwrap_or((file, "main"));
    (tablespace, database, number.parse().unwrap_or_else(|_| panic!("a relation? {text}")), fork_number(fork))
}

/// What the records do, told from their descriptions alone.
#[derive(Default)]
struct Model {
    changes: Changes,
    removed: Vec<(u32, u32, u32)>,
    dropped_databases: Vec<u32>,
    /// Tablespace and database, of the new directory and of the one that it is copied from.
    made_databases: Vec<(String, Option<String>)>,
    tablespaces: Vec<String>,
}

impl Model {
    fn of<'r>(records: impl IntoIterator<Item = &'r Record>, counting: MapLimit) -> Model {
        let mut model = Model::default();
        for record in records {
            model.add(record, counting);
        }
        model
    }

    fn limit(&mut self, fork: Fork, limit: u32) {
        let (known, blocks) = self.changes.entry(fork).or_default();
        *known = Some(known.map_or(limit, |known| known.min(limit)));
        blocks.retain(|block| *block < limit);
    }

    fn add(&mut self, record: &Record, counting: MapLimit) {
        let text = record.description.as_str();
        match record.kind.as_str() {
            "Storage CREATE" => {
                let fork = path_of(text.split(' ').next().expect("a path"));
                if fork.3 != 1 {
                    self.limit(fork, 0);
                }
            }
            "Storage TRUNCATE" => {
                let words: Vec<&str> = text.split(' ').collect();
                let (tablespace, database, relation, _) = path_of(words[0]);
                let blocks: u32 = words[2].parse().expect("blocks");
                let flags: u32 = words[5].parse().expect("flags");
                if flags & 1 != 0 {
                    self.limit((tablespace, database, relation, 0), blocks);
                }
                if flags & 2 != 0 {
                    let blocks = match counting {
                        MapLimit::FirstChanged => blocks / 32_672,
                        MapLimit::NewLength => blocks.div_ceil(32_672),
                    };
                    self.limit((tablespace, database, relation, 2), blocks);
                }
            }
            kind if kind.starts_with("Transaction COMMIT") || kind.starts_with("Transaction ABORT") => {
                let relations =
                    text.split_once("; rels: ").map_or("", |(_, rest)| rest.split(';').next().unwrap_or(""));
                for path in relations.split_whitespace() {
                    let (tablespace, database, relation, _) = path_of(path);
                    [0, 2, 3]
                        .into_iter()
                        .for_each(|fork| self.limit((tablespace, database, relation, fork), 0));
                    if kind.contains("COMMIT") {
                        self.removed.push((tablespace, database, relation));
                    }
                }
            }
            // Tablespace first, then database.
            "Database CREATE_FILE_COPY" | "Database CREATE_WAL_LOG" | "Database DROP" => {
                let mut places: Vec<&str> = text.split(' ').filter(|word| word.contains('/')).collect();
                let origin =
                    (record.kind == "Database CREATE_FILE_COPY").then(|| places.remove(0).to_owned());
                if record.kind != "Database DROP" {
                    self.made_databases.push((places[0].to_owned(), origin));
                }
                assert!(!places.is_empty(), "{text}");
                for place in &places {
                    let (tablespace, database) = place.split_once('/').expect("a directory");
                    let number = |text: &str| text.parse::<u32>().expect("a number");
                    self.limit((number(tablespace), number(database), 0, 0), 0);
                }
                if record.kind == "Database DROP" {
                    self.dropped_databases
                        .push(places[0].split_once('/').expect("one").1.parse().expect("a number"));
                }
            }
            kind if kind.starts_with("Tablespace ") => {
                let (oid, path) = text.split_once(' ').unwrap_or((text, ""));
                self.tablespaces.push(format!("{oid} {}", path.trim_matches('"')));
            }
            _ => {}
        }
        for (fork, block) in &record.blocks {
            if fork.3 != 1 {
                self.changes.entry(*fork).or_default().1.insert(*block);
            }
        }
    }
}

fn as_changes(blocks: &BlockChanges) -> Changes {
    let one = |fork: walhold::format::wal_index::NamedFork| {
        let key = (fork.relation.tablespace, fork.relation.database, fork.relation.relation, fork.fork.0);
        (key, (fork.limit, fork.runs.iter().flat_map(|(first, last)| *first..=*last).collect()))
    };
    blocks.forks().into_iter().map(one).collect()
}

fn below_limits(mut changes: Changes) -> Changes {
    for (limit, blocks) in changes.values_mut() {
        blocks.retain(|block| limit.is_none_or(|limit| *block < limit));
    }
    changes
}

fn assert_same(found: &Changes, expected: &Changes, what: &dyn std::fmt::Display) {
    for (fork, changes) in expected {
        assert_eq!(found.get(fork), Some(changes), "{what}: {fork:?}");
    }
    let more: Vec<_> = found.keys().filter(|fork| !expected.contains_key(*fork)).collect();
    assert!(more.is_empty(), "{what}: too many {more:?}");
}

/// Each segment's index says what the records that begin in it do, no more and no less.
fn compare_with_records(records: &[Record], facts: &[SegmentFacts]) {
    let mut limits = 0;
    for facts in facts {
        let index = &facts.index;
        let own = records.iter().filter(|record| index.start <= record.lsn && record.lsn < index.end);
        let model = Model::of(own, MapLimit::FirstChanged);
        let blocks = index.blocks.as_ref().unwrap_or_else(|| panic!("{}: blocks are not known", index.start));
        assert_same(&as_changes(blocks), &model.changes, &index.start);
        limits += model.changes.values().filter(|(limit, _)| limit.is_some_and(|limit| limit > 0)).count();
        let files = index.files.as_ref().expect("files are known");
        let removed: Vec<_> = files.removals.iter().flat_map(|removal| &removal.relations).collect();
        let removed: Vec<_> = removed.iter().map(|r| (r.tablespace, r.database, r.relation)).collect();
        assert_eq!(removed, model.removed, "{}", index.start);
        let dropped: Vec<u32> = files.databases.iter().map(|removal| removal.database).collect();
        assert_eq!(dropped, model.dropped_databases, "{}", index.start);
        let made = index.databases_made.as_ref().expect("databases that were made are known");
        let path = |directory: &DatabaseDirectory| format!("{}/{}", directory.tablespace, directory.database);
        let made: Vec<_> =
            made.iter().map(|m| (path(&m.directory), m.copied_from.as_ref().map(path))).collect();
        assert_eq!(made, model.made_databases, "{}", index.start);
        let tablespaces: Vec<String> = files
            .tablespaces
            .iter()
            .map(|event| match &event.kind {
                TablespaceEventKind::Created { path } => format!("{} {path}", event.tablespace),
                TablespaceEventKind::Dropped => format!("{} ", event.tablespace),
            })
            .collect();
        assert_eq!(tablespaces, model.tablespaces, "{}", index.start);
    }
    assert!(limits > 0, "no relation was cut to a length above 0");
}

/// `pg_get_wal_block_info` says the same as the block references of the records.
fn compare_with_block_info(cluster: &Cluster, records: &[Record], begin: Lsn, end: Lsn) {
    let rows = cluster.query(&format!(
        "SELECT start_lsn, reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber
         FROM pg_get_wal_block_info('{begin}', '{end}') WHERE start_lsn < '{end}'"
    ));
    let number = |text: &String| text.parse::<u32>().expect("a number");
    let found: BTreeSet<(Lsn, Fork, u32)> = rows
        .iter()
        .map(|row| {
            let fork = (number(&row[1]), number(&row[2]), number(&row[3]), number(&row[4]) as u8);
            (row[0].parse().expect("an LSN"), fork, number(&row[5]))
        })
        .collect();
    let expected: BTreeSet<(Lsn, Fork, u32)> = records
        .iter()
        .flat_map(|record| record.blocks.iter().map(|(fork, block)| (record.lsn, *fork, *block)))
        .collect();
    assert_eq!(found, expected);
}

/// The server's summaries are what the same model makes of the same records, but for the limit of visibility maps, and for blocks above a
/// limit, which are new anyway: a cut above the limit forgets blocks here, but not in a summary.
fn compare_with_summaries(cluster: &Cluster, records: &[Record]) {
    let last = records.last().expect("records").lsn;
    cluster.execute("CHECKPOINT");
    cluster.wait_for(
        "the summaries",
        &format!("SELECT coalesce(max(end_lsn), '0/0') > '{last}' FROM pg_available_wal_summaries()"),
    );
    let first = records.first().expect("records").lsn;
    let mut compared = 0;
    for row in
        cluster.query("SELECT tli, start_lsn, end_lsn FROM pg_available_wal_summaries() ORDER BY start_lsn")
    {
        let (start, end): (Lsn, Lsn) = (row[1].parse().expect("an LSN"), row[2].parse().expect("an LSN"));
        if start < first || end > last {
            continue;
        }
        let mut summary = Changes::new();
        for row in cluster.query(&format!(
            "SELECT reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block
             FROM pg_wal_summary_contents({}, '{start}', '{end}')",
            row[0]
        )) {
            let number = |at: usize| row[at].parse::<u32>().expect("a number");
            let entry = summary.entry((number(0), number(1), number(2), number(3) as u8)).or_default();
            if row[5].starts_with('t') {
                entry.0 = Some(number(4));
            } else {
                entry.1.insert(number(4));
            }
        }
        let own = || records.iter().filter(|record| start <= record.lsn && record.lsn < end);
        let model = Model::of(own(), MapLimit::NewLength).changes;
        for (fork, (limit, blocks)) in &model {
            let above = |block: &&u32| limit.is_some_and(|limit| **block >= limit);
            let theirs = &summary.get(fork).unwrap_or_else(|| panic!("summary from {start}: no {fork:?}")).1;
            assert!(blocks.iter().filter(above).all(|block| theirs.contains(block)), "{start}: {fork:?}");
        }
        assert_same(&below_limits(summary), &below_limits(model), &format!("summary from {start}"));
        compared += 1;
    }
    assert!(compared >= 3, "{compared} summaries");
}

/// Every page on disk that was written since has an LSN that says so: it must be among the changed ones.
fn compare_with_pages(cluster: &Cluster, since: Lsn, segments: &[Scanned], facts: &[SegmentFacts]) {
    let first = segments.iter().position(|segment| segment.index.start >= since).expect("a segment");
    let begin = segments[first].index.first_record.expect("a record");
    let end = segments[segments.len() - 1].index.end;
    let mut all = BlockChanges::default();
    facts
        .iter()
        .skip(first)
        .for_each(|facts| all.merge(facts.index.blocks.as_ref().expect("blocks are known")));
    let mut seen = (0u32, 0u32);
    let mut look = |path: &Path, tablespace: u32, database: u32| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (stem, part) = name.split_once('.').unwrap_or((name, "0"));
        let (number, fork) = stem.split_once('_').unwrap_or((stem, "main"));
        let (Ok(relation), Ok(part)) = (number.parse::<u32>(), part.parse::<u32>()) else { return };
        if fork == "fsm" {
            return;
        }
        let locator = RelFileLocator { tablespace, database, relation };
        let changes = all.of(locator, ForkNumber(fork_number(fork)));
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for (at, page) in bytes.chunks_exact(8192).enumerate() {
            let word =
                |at: usize| u64::from(u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes")));
            let lsn = Lsn::new(word(0) << 32 | word(4));
            let block = part * 131_072 + at as u32;
            if begin < lsn && lsn <= end {
                seen.0 += 1;
                assert!(
                    changes.contains(block),
                    "{} block {block} with LSN {lsn} is missing",
                    path.display()
                );
            } else if !changes.contains(block) {
                seen.1 += 1;
            }
        }
    };
    let data = cluster.data_directory();
    for path in files_in(&data.join("global")) {
        look(&path, 1664, 0);
    }
    for database in files_in(&data.join("base")) {
        let number = database.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        files_in(&database).iter().for_each(|path| look(path, 1663, number.unwrap_or_default()));
    }
    for tablespace in files_in(&data.join("pg_tblspc")) {
        let oid: u32 =
            tablespace.file_name().and_then(|name| name.to_str()).expect("a name").parse().expect("an oid");
        for database in files_in(&tablespace).iter().flat_map(|version| files_in(version)) {
            let number =
                database.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            files_in(&database).iter().for_each(|path| look(path, oid, number.unwrap_or_default()));
        }
    }
    // How many there are depends on the seed; that there are some is what makes this a test.
    assert!(seen.0 > 50, "{} changed pages", seen.0);
    assert!(seen.1 > 50, "only {} pages are known to be unchanged", seen.1);
}

fn files_in(directory: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.expect("read a directory").path()).collect()
}

fn blocks_agree_with_the_server(major: u32) {
    let seed = crate::blocks_workload::seed();
    println!("seed {seed}");
    let builder = builder(major).setting("allow_in_place_tablespaces", "on");
    let builder = if major >= 15 { builder } else { crate::builder(major) };
    let mut cluster =
        if major >= 17 { builder.setting("summarize_wal", "on").start() } else { builder.start() };
    cluster.switch_wal();
    let since: Lsn = cluster.value("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
    run_random(&mut cluster, seed);
    cluster.switch_wal();
    cluster.execute("CHECKPOINT");
    let segments = finished_segments(&cluster, TimelineId::FIRST);
    let facts = chain(&segments);
    assert!(segments.len() > 8, "{} segments", segments.len());
    assert!(facts.iter().all(|facts| facts.break_after.is_none()));
    assert!(segments.iter().any(|segment| segment.index.tail.exists()), "no record spans segments");
    compare_with_pages(&cluster, since, &segments, &facts);
    if major >= 15 {
        let begin = segments[0].index.first_record.expect("a record");
        let end = segments[segments.len() - 1].index.end;
        let records = records(&cluster, begin, end);
        compare_with_records(&records, &facts);
        if major >= 16 {
            compare_with_block_info(&cluster, &records, begin, end);
        }
        if major >= 17 {
            compare_with_summaries(&cluster, &records);
        }
    }
    cluster.stop(StopMode::Fast);
}

#[test]
fn blocks_agree_with_postgresql_14() {
    blocks_agree_with_the_server(14);
}

#[test]
fn blocks_agree_with_postgresql_15() {
    blocks_agree_with_the_server(15);
}

#[test]
fn blocks_agree_with_postgresql_16() {
    blocks_agree_with_the_server(16);
}

#[test]
fn blocks_agree_with_postgresql_17() {
    blocks_agree_with_the_server(17);
}

#[test]
fn blocks_agree_with_postgresql_18() {
    blocks_agree_with_the_server(18);
}
