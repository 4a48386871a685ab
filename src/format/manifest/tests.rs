use proptest::prelude::*;

use super::*;

pub(crate) fn summary() -> BackupSummary {
    BackupSummary {
        id: "20261120T224613Z-00000001-0000000A000000FE".parse().unwrap(),
        system_identifier: SystemIdentifier::new(7_371_000_000_000_000_000),
        server_version: 150_018,
        kind: BackupKind::Full,
        base: None,
        from_standby: false,
        start_timeline: TimelineId::FIRST,
        stop_timeline: TimelineId::FIRST,
        start_lsn: "A/FE000028".parse().unwrap(),
        checkpoint_lsn: "A/FE000060".parse().unwrap(),
        stop_lsn: "A/FE000100".parse().unwrap(),
        start_time: PgTimestamp::new(850_000_000_000_000),
        stop_time: PgTimestamp::new(850_000_010_000_001),
        wal_segment_size: WalSegmentSize::DEFAULT,
        block_size: 8192,
        data_checksums: true,
        cluster_bytes: 8192,
        file_count: 1,
        new_bytes: 1000,
        repository_bytes: 1000,
        resumed: None,
        damaged_pages: 0,
        encrypted: false,
        changes_from: "full".to_owned(),
        time_zone: "Europe/Berlin".to_owned(),
        walhold_version: "0.1.0".to_owned(),
    }
}

pub(crate) fn pack_entry() -> PackEntry {
    pack(0)
}

fn pack(number: u32) -> PackEntry {
    PackEntry {
        backup: summary().id,
        number,
        stored_length: 64 << 20,
        compression: Compression::Zstd(1),
        key_id: None,
        salt: [number as u8; 32],
    }
}

fn chunk(pack: u32, number: u32, offset: u64, plaintext_length: u32, within: u32) -> RangeSource {
    let digested = Digested {
        within,
        length: plaintext_length.saturating_sub(within),
        digest: ShortDigest::of(&offset.to_le_bytes()),
    };
    RangeSource::Chunk { pack, number, offset, stored_length: 300_000, plaintext_length, within, digested }
}

pub(crate) fn file(path: &str, ranges: Vec<FileRange>) -> FileEntry {
    let size = ranges.iter().map(|range| u64::from(range.length)).sum();
    FileEntry {
        root: Root::DataDirectory,
        path: path.into(),
        mode: 0o600,
        size,
        modified: 1_700_000_000_000_000,
        ranges,
    }
}

pub(crate) fn sample() -> Manifest {
    let directory = |path: &str| DirectoryEntry { path: path.into(), mode: 0o700 };
    let range = |offset, length, source| FileRange { offset, length, source };
    let entry = |relation: &str, oid| CatalogueEntry {
        database: "postgres".to_owned(),
        database_oid: 5,
        schema: "public".to_owned(),
        relation: relation.to_owned(),
        oid,
        relfilenode: oid + 7,
        tablespace: 0,
        kind: 'r',
    };
    Manifest {
        summary: summary(),
        server: ServerFacts { damaged_blocks: vec![("base/5/1".to_owned(), 7)], ..ServerFacts::default() },
        backup_label: "START WAL LOCATION: A/FE000028 (file 000000010000000A000000FE)\n".to_owned(),
        tablespace_map: Some("16400 /srv/space\n".to_owned()),
        tablespaces: vec![Tablespace {
            oid: 16400,
            name: "space".to_owned(),
            location: "/srv/space".to_owned(),
        }],
        catalogue: vec![entry("first", 16384), entry("second", 16385)],
        packs: vec![pack(0), pack(1)],
        directories: vec![
            directory("base"),
            directory("base/5"),
            directory("pg_tblspc"),
            directory("pg_tblspc/16400/PG_15_202209061"),
        ],
        files: vec![
            file(
                "base/5/16384",
                vec![
                    range(0, 1 << 20, chunk(0, 0, 64, 1 << 20, 0)),
                    range(1 << 20, 1 << 20, chunk(0, 1, 300_064, 1 << 20, 0)),
                    range(2 << 20, 1 << 20, RangeSource::Zeros),
                    range(3 << 20, 8192, chunk(1, 0, 64, 20_000, 0)),
                ],
            ),
            file("base/5/PG_VERSION", vec![range(0, 3, chunk(1, 0, 64, 20_000, 8192))]),
            file("empty", Vec::new()),
            file("pg_tblspc/16400/PG_15_202209061/7", vec![range(0, 3, chunk(1, 0, 64, 20_000, 9000))]),
            FileEntry { root: Root::External, ..file("etc/postgresql/15/main/postgresql.conf", Vec::new()) },
        ],
    }
}

#[test]
fn what_was_encoded_comes_back() {
    let manifest = sample();
    assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    let json = manifest.summary.to_json().unwrap();
    assert_eq!(BackupSummary::from_json(&json).unwrap(), manifest.summary);
}

#[test]
fn packs_are_found_in_a_body_that_comes_in_pieces() {
    let manifest = sample();
    let body = manifest.encode();
    for piece in [1, 7, 100, body.len()] {
        let mut scan = PackScan::default();
        body.chunks(piece).for_each(|bytes| scan.feed(bytes));
        assert_eq!(scan.finish().unwrap(), manifest.packs, "in pieces of {piece}");
    }
    let scan = |bytes: &[u8]| {
        let mut scan = PackScan::default();
        scan.feed(bytes);
        scan.finish()
    };
    assert!(scan(&body[..200]).is_err(), "a body that is cut off before its packs");
    assert!(scan(b"").is_err());
    let mut wrong = body;
    wrong[0] = b'X';
    assert!(scan(&wrong).is_err(), "another magic");
}

#[test]
fn contiguous_whole_chunks_cost_little_more_than_their_digest() {
    let mut manifest = sample();
    let long = |count: u32| {
        let ranges = (0..count).map(|number| FileRange {
            offset: u64::from(number) << 20,
            length: 1 << 20,
            source: chunk(0, number, u64::from(number) * 300_000, 1 << 20, 0),
        });
        vec![file("long", ranges.collect())]
    };
    manifest.files = long(10);
    let few = manifest.encode().len();
    manifest.files = long(210);
    assert!(manifest.encode().len() - few <= 200 * 24);
}

fn with_digested(manifest: &mut Manifest, change: fn(&mut Digested)) {
    let RangeSource::Chunk { digested, .. } = &mut manifest.files[0].ranges[0].source else { panic!() };
    change(digested);
}

/// One page rewritten in every 32, all of them gathered in one chunk; what is kept are parts of the old ones.
#[test]
fn alternating_ranges_cost_little_more_than_one_digest_each() {
    let page = 8192;
    let ranges = |count: u32| {
        (0..count).flat_map(move |run| {
            let digest = ShortDigest::of(&run.to_le_bytes());
            let new = Digested { within: run * page, length: page, digest };
            let old = Digested { within: 0, length: 1 << 20, digest: ShortDigest([7; 16]) };
            let at = u64::from(run * 32 * page);
            let source = |number, within, digested| RangeSource::Chunk {
                pack: 0,
                number,
                offset: u64::from(number) << 20,
                stored_length: 300_000,
                plaintext_length: 1 << 20,
                within,
                digested,
            };
            [
                FileRange { offset: at, length: page, source: source(9, run * page, new) },
                FileRange {
                    offset: at + u64::from(page),
                    length: 31 * page,
                    source: source(run / 4, (run % 4 * 32 + 1) * page, old),
                },
            ]
        })
    };
    let mut manifest = sample();
    manifest.files = vec![file("long", ranges(4).collect())];
    let few = manifest.encode().len();
    manifest.files = vec![file("long", ranges(104).collect())];
    let many = manifest.encode();
    assert_eq!(Manifest::decode(&many).unwrap(), manifest);
    // 100 new ranges with their digest, 100 kept ones of 25 chunks.
    assert!(many.len() - few <= 100 * 24 + 100 * 6 + 25 * 36, "{} bytes", many.len() - few);
}

/// Changes to the sample that break an invariant, and what the error says.
#[test]
fn what_breaks_an_invariant_is_refused() {
    type Change = fn(&mut Manifest);
    let cases: Vec<(&str, Change)> = vec![
        ("could leave", |m| m.files[0].path = b"base/../../etc/passwd".to_vec()),
        ("could leave", |m| m.files[0].path = b"/etc/passwd".to_vec()),
        ("could leave", |m| m.files[0].path = b"base//5".to_vec()),
        ("could leave", |m| m.files[0].path = b"base/5/x\0".to_vec()),
        ("could leave", |m| m.files[0].path = b"".to_vec()),
        ("could leave", |m| m.directories[0].path = b"./base".to_vec()),
        ("could leave", |m| m.files[4].path = b"../shadow".to_vec()),
        ("out of order", |m| m.files.swap(0, 1)),
        ("out of order", |m| m.files[1] = m.files[0].clone()),
        ("out of order", |m| m.directories.swap(0, 1)),
        ("not listed", |m| m.directories[0].path = b"bas".to_vec()),
        ("not listed", |m| m.tablespaces.clear()),
        ("is a file and a directory", |m| m.files[2].path = b"pg_tblspc".to_vec()),
        ("ranges for", |m| m.files[0].size += 1),
        ("ranges for", |m| m.files[2].size += 1),
        ("range is empty", |m| m.files[0].ranges[2].length = 0),
        ("pack is not in the list", |m| m.packs.truncate(1)),
        ("does not lie in its pack", |m| m.packs[1].stored_length = 300_063),
        ("does not lie in its chunk", |m| m.files[1].ranges[0].source = chunk(1, 0, 64, 20_000, 19_998)),
        ("larger than chunks", |m| m.files[1].ranges[0].source = chunk(1, 0, 64, 5 << 20, 19_998)),
        ("digest is not of its bytes", |m| {
            with_digested(m, |digested| (digested.within, digested.length) = (1, digested.length - 1));
        }),
        ("digest is not of its bytes", |m| with_digested(m, |digested| digested.length -= 1)),
        ("does not lie in its chunk", |m| with_digested(m, |digested| digested.length += 1)),
        ("does not lie in its chunk", |m| with_digested(m, |digested| digested.length = u32::MAX)),
        ("permission bits", |m| m.files[0].mode = 0o10000),
    ];
    for (expected, change) in cases {
        let mut manifest = sample();
        change(&mut manifest);
        let error = Manifest::decode(&manifest.encode()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn no_prefix_of_a_body_is_a_manifest() {
    let body = sample().encode();
    for length in 0..body.len() {
        assert!(Manifest::decode(&body[..length]).is_err(), "{length} of {} bytes were accepted", body.len());
    }
    assert!(Manifest::decode(&[body.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn unknown_sections_are_skipped_only_if_they_may_be() {
    let body = sample().encode();
    let (magic, sections) = body.split_at(encode::MAGIC.len());
    let with = |tag: u8| [magic, &[tag, 3, 1, 2, 3], sections].concat();
    assert_eq!(Manifest::decode(&with(200)).unwrap(), sample());
    assert!(Manifest::decode(&with(77)).unwrap_err().problem.contains("section 77"));
}

prop_compose! {
    fn any_range()(
        length in 1u32..=1 << 20, zeros: bool, pack in 0u32..3, number in 0u32..1000, offset in 0u64..60 << 20,
        stored_length in 1u32..1 << 20, slack in 0u32..1 << 20, within in 0u32..1 << 20, digest in 0u8..3,
        part: (bool, u32, u32),
    ) -> (u32, RangeSource) {
        let within = within.min(slack);
        let plaintext_length = length + slack;
        let (before, after) = match part {
            (true, before, after) => (before % (within + 1), after % (slack - within + 1)),
            (false, ..) => (0, 0),
        };
        let digested = Digested {
            within: within - before,
            length: before + length + after,
            digest: ShortDigest([digest; 16]),
        };
        let source = RangeSource::Chunk { pack, number, offset, stored_length, plaintext_length, within, digested };
        (length, if zeros { RangeSource::Zeros } else { source })
    }
}

prop_compose! {
    fn any_file()(
        external: bool, name in "[a-z0-9_.]{1,12}x", mode in 0u32..=0o7777, modified: i64,
        ranges in prop::collection::vec(any_range(), 0..8),
    ) -> FileEntry {
        let mut offset = 0;
        let place = |(length, source)| {
            let range = FileRange { offset, length, source };
            offset += u64::from(length);
            range
        };
        let ranges: Vec<FileRange> = ranges.into_iter().map(place).collect();
        let root = if external { Root::External } else { Root::DataDirectory };
        FileEntry { root, path: name.into_bytes(), mode, size: offset, modified, ranges }
    }
}

prop_compose! {
    fn any_manifest()(
        files in prop::collection::vec(any_file(), 0..20),
        packs in prop::collection::vec((0u8..2, any::<u32>(), prop::option::of(-7i32..20), prop::option::of(any::<[u8; 8]>()), any::<[u8; 32]>()), 3..6),
        names in prop::collection::vec(("[a-c]{1}", "[a-b]{1}", ".{0,12}", any::<u32>(), any::<u32>(), any::<char>()), 0..12),
        label in ".{0,40}",
        map in prop::option::of(".{1,40}"),
    ) -> Manifest {
        let mut manifest = sample();
        manifest.files = files;
        manifest.files.sort_by(|a, b| (a.root, &a.path).cmp(&(b.root, &b.path)));
        manifest.files.dedup_by(|a, b| (a.root, &a.path) == (b.root, &b.path));
        manifest.packs = packs.into_iter().map(|(other, number, level, key_id, salt)| {
            let mut entry = pack(number);
            if other == 1 {
                entry.backup = "20261121T224613Z-00000001-0000000A000000FF".parse().unwrap();
            }
            entry.compression = level.map_or(Compression::None, Compression::Zstd);
            entry.key_id = key_id.map(KeyId);
            entry.salt = salt;
            entry
        }).collect();
        manifest.catalogue = names.into_iter().map(|(database, schema, relation, oid, relfilenode, kind)| CatalogueEntry {
            database_oid: u32::from(database.as_bytes()[0]), database, schema, relation, oid, relfilenode,
            tablespace: oid % 3, kind,
        }).collect();
        manifest.backup_label = label;
        manifest.tablespace_map = map;
        manifest
    }
}

proptest! {
    #[test]
    fn any_manifest_comes_back(manifest in any_manifest()) {
        prop_assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }

    #[test]
    fn a_changed_byte_never_panics(manifest in any_manifest(), at: prop::sample::Index, value: u8) {
        let mut body = manifest.encode();
        let at = at.index(body.len());
        body[at] = value;
        if let Ok(read) = Manifest::decode(&body) {
            // What is accepted keeps the invariants: it encodes and decodes to itself.
            prop_assert_eq!(Manifest::decode(&read.encode()).unwrap(), read);
        }
    }

    #[test]
    fn any_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Manifest::decode(&[encode::MAGIC.as_slice(), &tail].concat());
    }
}
