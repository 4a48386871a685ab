//! Archived files of real servers, made once per test process and kept in memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::postgres::{Cluster, PATIENCE, StopMode, query};

/// What one cluster archived, and its control file.
pub struct WalFiles {
    pub control: Vec<u8>,
    pub system_identifier: String,
    /// By name.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// Segments of 16 MiB: a backup file, a promotion's history and partial segment.
pub fn default_files() -> &'static WalFiles {
    static FILES: OnceLock<WalFiles> = OnceLock::new();
    FILES.get_or_init(|| WalFiles::make(16, Life::Long))
}

/// Another cluster's, with segments of the same names.
pub fn foreign_files() -> &'static WalFiles {
    static FILES: OnceLock<WalFiles> = OnceLock::new();
    FILES.get_or_init(|| WalFiles::make(16, Life::Short))
}

/// Segments of 1 MiB, the same story as [`default_files`].
pub fn small_files() -> &'static WalFiles {
    static FILES: OnceLock<WalFiles> = OnceLock::new();
    FILES.get_or_init(|| WalFiles::make(1, Life::Long))
}

/// Segments of 64 MiB.
pub fn large_files() -> &'static WalFiles {
    static FILES: OnceLock<WalFiles> = OnceLock::new();
    FILES.get_or_init(|| WalFiles::make(64, Life::Short))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// One segment.
    Short,
    /// Four segments, a backup, a promotion, one segment on the new timeline.
    Long,
}

impl WalFiles {
    fn make(segment_mib: u32, life: Life) -> WalFiles {
        let mut cluster = Cluster::builder(15).wal_segment_mib(segment_mib).create();
        let archive = cluster.directory("archive");
        cluster.configure("archive_mode", "on");
        let archive_path = archive.display();
        // PostgreSQL's own way of copying: the name appears when the file is whole.
        cluster.configure(
            "archive_command",
            &format!("cp %p {archive_path}/.%f && mv {archive_path}/.%f {archive_path}/%f"),
        );
        cluster.start();
        cluster.execute("CREATE TABLE t (i int, word text)");
        fill_segment(&cluster);
        if life == Life::Long {
            fill_segment(&cluster);
            back_up(&cluster, &archive);
            fill_segment(&cluster);
            promote(&mut cluster, &archive);
            fill_segment(&cluster);
        }
        let system_identifier = cluster.value("SELECT system_identifier FROM pg_control_system()");
        cluster.stop(StopMode::Fast);
        let control = fs::read(cluster.data_directory().join("global/pg_control")).expect("read pg_control");
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&archive).expect("read the archive").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.insert(name, fs::read(entry.path()).expect("read an archived file"));
        }
        WalFiles { control, system_identifier, files }
    }

    /// The names that end so, in order; complete segments for an empty ending.
    pub fn names(&self, ending: &str) -> Vec<&str> {
        let is_wanted = |name: &&str| match ending {
            "" => name.len() == 24,
            _ => name.ends_with(ending),
        };
        self.files.keys().map(String::as_str).filter(is_wanted).collect()
    }

    /// The name of the `n`th complete segment, counted from 0.
    pub fn segment(&self, n: usize) -> &str {
        self.names("")[n]
    }

    /// `count` segments that follow each other from the first one on. `incompressible` bytes at each page's beginning can't be shrunk.
    pub fn synthetic(&self, count: u64, incompressible: usize) -> Vec<(String, Vec<u8>)> {
        let first = self.segment(0);
        let number = u64::from_str_radix(&first[16..], 16).expect("a segment's name");
        let mut bytes = self.bytes(first).to_vec();
        let size = bytes.len() as u64;
        let noise = self::incompressible(bytes.len() / 8192 * incompressible);
        for (page, noise) in bytes[8192..].chunks_mut(8192).zip(noise.chunks(incompressible.max(1))) {
            page[..incompressible].copy_from_slice(&noise[..incompressible]);
        }
        let of = |n: u64| {
            let mut bytes = bytes.clone();
            bytes[8..16].copy_from_slice(&((number + n) * size).to_le_bytes());
            let last = bytes.len() - 8;
            bytes[last..].copy_from_slice(&n.to_le_bytes());
            (format!("{}{:08X}", &first[..16], number + n), bytes)
        };
        (0..count).map(of).collect()
    }

    /// The only name that ends so.
    pub fn only(&self, ending: &str) -> &str {
        match self.names(ending).as_slice() {
            [name] => name,
            names => panic!("one file {ending} was expected among {names:?} of {:?}", self.files.keys()),
        }
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        self.files.get(name).unwrap_or_else(|| panic!("{name} is not among {:?}", self.files.keys()))
    }
}

/// Bytes that zstd can't shrink, the same ones each time.
pub fn incompressible(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Writes a few hundred kB in many transactions, and ends the segment.
fn fill_segment(cluster: &Cluster) {
    let mut session = cluster.connect("postgres");
    for round in 0..20 {
        let rows = format!("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 100) i; -- {round}");
        session.batch_execute(&rows).expect("insert rows");
    }
    cluster.archive_now();
}

fn back_up(cluster: &Cluster, archive: &Path) {
    let mut session = cluster.connect("postgres");
    query(&mut session, "SELECT pg_backup_start('a backup', true)").expect("start a backup");
    query(&mut session, "SELECT * FROM pg_backup_stop(true)").expect("stop the backup");
    wait_for_file(archive, ".backup");
}

/// Ends recovery right where it begins: timeline 2, and what is left of timeline 1 becomes a partial segment.
fn promote(cluster: &mut Cluster, archive: &Path) {
    cluster.stop(StopMode::Fast);
    fs::write(cluster.data_directory().join("recovery.signal"), "").expect("write recovery.signal");
    cluster.configure("restore_command", "false");
    cluster.start();
    cluster.wait_promoted();
    wait_for_file(archive, ".history");
    wait_for_file(archive, ".partial");
}

fn wait_for_file(archive: &Path, ending: &str) {
    let begun = Instant::now();
    let there = || {
        let entries = fs::read_dir(archive).expect("read the archive");
        entries.flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.ends_with(ending) && !name.starts_with('.')
        })
    };
    while !there() {
        assert!(begun.elapsed() < PATIENCE, "no file {ending} was archived");
        std::thread::sleep(Duration::from_millis(20));
    }
}
