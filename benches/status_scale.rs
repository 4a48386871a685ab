//! `status`, `wal-show`'s lighter sister, on an archive of 100,000 segments and 400 backups behind 40 ms per round trip.
//!
//! Started again by itself as the store. Only what `status` reads of an object is real: manifests, and the newest segments.
//! Run: `cargo bench --bench status_scale`.

#[path = "peers/object_server.rs"]
#[allow(dead_code)]
mod object_server;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use walhold::codec::encode::{ChunkSource, ObjectSink, SinkError, encode_object};
use walhold::codec::{Compression, Sealing};
use walhold::format::envelope::{ObjectFacts, ObjectKind};
use walhold::format::manifest::{BackupKind, BackupSummary};
use walhold::format::marker::{CreateOnly, Identity, Marker};
use walhold::format::wal_index::{Outcome, TransactionEnd, TransactionSpan, WalIndex};
use walhold::format::{BackupId, ClusterName, ObjectKey, keys};
use walhold::pg::{
    ArchiveFileName, PgTimestamp, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentNumber,
    WalSegmentSize,
};

const SEGMENTS: u64 = 100_000;
const BACKUPS: u64 = 400;
const FIRST: u64 = 1_000;
const DELAY: Duration = Duration::from_millis(40);
const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_371_000_000_000_000_000);
const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).map(String::as_str) == Some("--serve-objects") {
        object_server::serve_objects(DELAY, archive());
    }
    let server = object_server::ObjectServer::start(DELAY);
    let directory = tempfile::tempdir().expect("make a directory");
    let configuration = directory.path().join("walhold.toml");
    let text = format!(
        "[repository]\nurl = \"s3://{}/scale\"\n[repository.options]\nendpoint = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"x\"\nsecret_access_key = \"y\"\n",
        object_server::BUCKET,
        server.endpoint
    );
    std::fs::write(&configuration, text).expect("write the configuration");
    for _ in 0..5 {
        let begun = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_walhold"))
            .env_clear()
            .env("WALHOLD_CONFIG", &configuration)
            .args(["status", "--json"])
            .output()
            .expect("run walhold");
        let elapsed = begun.elapsed();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let system = &report["systems"][0];
        assert_eq!(system["wal_segments"], SEGMENTS, "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(system["windows"][0]["backups"], BACKUPS, "{report}");
        assert!(system["last_commit"].is_string(), "{report}");
        println!("status: {:.2} s, exit status {:?}", elapsed.as_secs_f64(), output.status.code());
    }
}

type Objects = BTreeMap<String, Arc<Vec<u8>>>;

fn archive() -> Objects {
    let cluster = ClusterName::default();
    let mut objects = Objects::new();
    let mut put = |key: &ObjectKey, bytes: Arc<Vec<u8>>| {
        objects.insert(format!("scale/{key}"), bytes);
    };
    let marker = Marker {
        format_version: 1,
        repository_id: "0123456789abcdef0123456789abcdef".to_owned(),
        created: jiff::Timestamp::now(),
        create_only: CreateOnly::Enforced,
    };
    put(&keys::marker(), Arc::new(serde_json::to_vec(&marker).expect("JSON")));
    let identity =
        Identity { system_identifier: SYSTEM, postgresql_major: 18, first_seen: jiff::Timestamp::now() };
    put(&keys::identity(&cluster, SYSTEM), Arc::new(serde_json::to_vec(&identity).expect("JSON")));
    let unread = Arc::new(vec![0; 100]);
    for number in FIRST..FIRST + SEGMENTS {
        let name = WalSegmentName::new(TimelineId::FIRST, WalSegmentNumber::new(number), SIZE);
        let key = keys::wal(&cluster, SYSTEM, ArchiveFileName::Segment(name));
        let is_read = number + 20 > FIRST + SEGMENTS;
        put(&key, if is_read { segment(name, &key) } else { Arc::clone(&unread) });
    }
    for step in 0..BACKUPS {
        let summary = backup(step);
        let key = keys::manifest(&cluster, &summary.id);
        let index = summary.to_json().expect("JSON");
        put(&key, object(ObjectKind::Manifest, "manifest", &key, index));
        let intent = keys::intent(&cluster, &summary.id, summary.id.started());
        put(&intent, Arc::clone(&unread));
        put(&keys::pack(&cluster, &summary.id, 0), Arc::clone(&unread));
    }
    objects
}

/// When segment `number` was written: the last one just now, one every five minutes before.
fn written(number: u64) -> PgTimestamp {
    let now = PgTimestamp::from_jiff(jiff::Timestamp::now()).get();
    PgTimestamp::new(now - (FIRST + SEGMENTS - number) as i64 * 300_000_000)
}

fn segment(name: WalSegmentName, key: &ObjectKey) -> Arc<Vec<u8>> {
    let number = name.number(SIZE).expect("a number");
    let (start, time) = (number.start_lsn(SIZE), written(number.get()));
    let end = TransactionEnd {
        lsn: start.plus(64),
        end: start.plus(96),
        xid: 7,
        time,
        outcome: Outcome::Committed,
    };
    let span = TransactionSpan {
        count: 1,
        least_time: time,
        greatest_time: time,
        first: end,
        last: end,
        last_commit: Some(end),
    };
    let index = WalIndex {
        start,
        end: start.plus(SIZE.bytes()),
        valid_until: start.plus(SIZE.bytes()),
        transactions: Some(span),
        ..WalIndex::default()
    };
    object(ObjectKind::WalSegment, &name.to_string(), key, index.encode())
}

fn backup(step: u64) -> BackupSummary {
    let number = FIRST + step * (SEGMENTS / BACKUPS) + SEGMENTS / BACKUPS - 12;
    let number = WalSegmentNumber::new(number);
    let (start, time) = (number.start_lsn(SIZE), written(number.get()));
    let name = WalSegmentName::new(TimelineId::FIRST, number, SIZE);
    BackupSummary {
        id: BackupId::new(time.to_jiff().expect("a moment"), name),
        system_identifier: SYSTEM,
        server_version: 180_001,
        kind: BackupKind::Full,
        base: None,
        from_standby: false,
        start_timeline: TimelineId::FIRST,
        stop_timeline: TimelineId::FIRST,
        start_lsn: start.plus(0x28),
        checkpoint_lsn: start.plus(0x60),
        stop_lsn: start.plus(0x100),
        start_time: time,
        stop_time: time,
        wal_segment_size: SIZE,
        block_size: 8192,
        data_checksums: true,
        cluster_bytes: 1 << 30,
        file_count: 1000,
        new_bytes: 1 << 28,
        repository_bytes: 1 << 28,
        resumed: None,
        damaged_pages: 0,
        encrypted: false,
        changes_from: "full".to_owned(),
        time_zone: "UTC".to_owned(),
        walhold_version: "0.1.0".to_owned(),
    }
}

struct OneByte;

impl ChunkSource for OneByte {
    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError> {
        chunk.clear();
        chunk.push(7);
        Ok(true)
    }
}

struct Bytes(Vec<u8>);

impl ObjectSink for Bytes {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn object(kind: ObjectKind, name: &str, key: &ObjectKey, index: Vec<u8>) -> Arc<Vec<u8>> {
    let facts =
        ObjectFacts { kind, name: name.to_owned(), system_identifier: SYSTEM, segment_size: Some(SIZE) };
    let sealing = Sealing { compression: Compression::Zstd(1), key: None, workers: Some(1) };
    let mut bytes = Bytes(Vec::new());
    encode_object(OneByte, &facts, key, &sealing, |_| index, &mut bytes).expect("encode an object");
    Arc::new(bytes.0)
}
