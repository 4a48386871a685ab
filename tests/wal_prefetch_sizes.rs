//! The window with segments of 64 MiB and of 1 GiB: the right bytes, and disk space and memory within bounds.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use support::agent::{Agent, PATIENCE};
use support::archive::Archive;
use support::postgres::installation::ServerUser;
use support::wal_files::small_files;

const MIB: u64 = 1 << 20;
/// `offsetof(ControlFileData, xlog_seg_size)` and, in PostgreSQL 15, `crc`.
const CONTROL_SEGMENT_SIZE: usize = 228;

/// Archived segments of a size that no server of the tests has, and a data directory in recovery.
struct Recovery {
    archive: Archive,
    size: u64,
    names: Vec<String>,
}

impl Recovery {
    /// `count` segments of `mib` MiB; all but their first page and their last MiB is a hole.
    fn start(mib: u64, count: u64) -> Recovery {
        let mut archive = Archive::new(small_files());
        let size = mib * MIB;
        set_control_segment_size(&archive.path("data/global/pg_control"), size as u32);
        archive.set("WALHOLD_WAL_PUSH_DEADLINE", "300s");
        archive.set("WALHOLD_WAL_FETCH_DEADLINE", "300s");
        let mut names = Vec::new();
        for number in 2..2 + count {
            let position = number * size;
            let name = format!("00000001{:08X}{:08X}", position >> 32, (position & 0xFFFF_FFFF) / size);
            let original = archive.path("originals").join(&name);
            fs::create_dir_all(original.parent().unwrap()).unwrap();
            write_segment(&original, position, size);
            let place = archive.path("data/pg_wal").join(&name);
            fs::hard_link(&original, &place).unwrap();
            ServerUser::get().own(&place);
            archive.walhold(["wal-push", &format!("pg_wal/{name}")]).expect_success();
            fs::remove_file(&place).unwrap();
            names.push(name);
        }
        fs::write(archive.path("data/recovery.signal"), "").unwrap();
        Recovery { archive, size, names }
    }

    fn window(&self) -> PathBuf {
        self.archive.path("data/pg_wal/.walhold")
    }

    /// Named segments in the window, and the disk space that they take.
    fn ready(&self) -> (usize, u64) {
        let entries = fs::read_dir(self.window()).into_iter().flatten().flatten();
        let segments = entries.filter(|entry| entry.file_name().len() == 24);
        let sizes: Vec<u64> = segments.filter_map(|entry| Some(entry.metadata().ok()?.len())).collect();
        (sizes.len(), sizes.iter().sum())
    }

    /// Fetches a segment and compares it; true if it came from the window.
    #[track_caller]
    fn fetch(&self, name: &str) -> bool {
        let run = self.archive.fetch(name);
        run.expect_success();
        let fetched = File::open(self.archive.path("data/pg_wal/RECOVERYXLOG")).unwrap();
        let original = File::open(self.archive.path("originals").join(name)).unwrap();
        assert_eq!(fetched.metadata().unwrap().size(), self.size);
        let (mut one, mut other) = (vec![0; 16 << 20], vec![0; 16 << 20]);
        for offset in (0..self.size).step_by(one.len()) {
            fetched.read_exact_at(&mut one, offset).unwrap();
            original.read_exact_at(&mut other, offset).unwrap();
            assert!(one == other, "{name} differs near {offset}");
        }
        run.stderr.contains("which was ready")
    }

    fn end(&self, agent: &Agent) {
        fs::remove_file(self.archive.path("data/recovery.signal")).unwrap();
        agent.wait_for("the end of the window", || !self.window().exists());
    }
}

fn set_control_segment_size(path: &Path, size: u32) {
    let mut bytes = fs::read(path).unwrap();
    let crc_at = |bytes: &[u8]| {
        let fits = |at: &usize| crc32c::crc32c(&bytes[..*at]).to_le_bytes() == bytes[*at..*at + 4];
        (CONTROL_SEGMENT_SIZE..400).step_by(4).find(fits).expect("the control file's checksum")
    };
    let at = crc_at(&bytes);
    bytes[CONTROL_SEGMENT_SIZE..CONTROL_SEGMENT_SIZE + 4].copy_from_slice(&size.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

fn write_segment(path: &Path, position: u64, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut page = small_files().bytes(small_files().segment(0))[..8192].to_vec();
    // `XLogPageHeaderData.xlp_pageaddr` and `XLogLongPageHeaderData.xlp_seg_size`.
    page[8..16].copy_from_slice(&position.to_le_bytes());
    page[32..36].copy_from_slice(&(size as u32).to_le_bytes());
    file.write_all_at(&page, 0).unwrap();
    let mut state = position;
    let noise: Vec<u8> = (0..MIB / 8)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()
        })
        .collect();
    file.write_all_at(&noise, size - MIB).unwrap();
}

#[test]
fn segments_of_64_mib_come_right_within_the_space_they_may_take() {
    let mut recovery = Recovery::start(64, 6);
    recovery.archive.set("WALHOLD_WAL_PREFETCH", "128MB");
    let agent = Agent::start(&recovery.archive);
    let before = agent.memory("VmRSS:");
    let mut ready = 0;
    for (n, name) in recovery.names.iter().enumerate() {
        ready += usize::from(recovery.fetch(name));
        let left = recovery.names.len() - n - 1;
        let begun = std::time::Instant::now();
        while recovery.ready().0 < left.min(1) {
            assert!(begun.elapsed() < 2 * PATIENCE, "nothing was fetched ahead of {name}");
            let (count, bytes) = recovery.ready();
            assert!(count <= 2 && bytes <= 128 * MIB, "{count} segments, {bytes} bytes");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    assert_eq!(ready, 5);
    let peak = agent.memory("VmHWM:");
    assert!(peak <= before + (24 << 10), "{before} kB before, {peak} kB at most");
    recovery.end(&agent);
}

#[test]
fn a_segment_of_1_gib_comes_right_and_is_the_only_one_that_lies_ready() {
    let recovery = Recovery::start(1024, 3);
    let agent = Agent::start(&recovery.archive);
    let before = agent.memory("VmRSS:");
    // By the agent, but not from a window yet.
    assert!(!recovery.fetch(&recovery.names[0]));
    let begun = std::time::Instant::now();
    while recovery.ready().0 == 0 {
        assert!(begun.elapsed() < 4 * PATIENCE, "nothing was fetched ahead");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // Larger than the space for all, so one at a time, whatever else is stored.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(recovery.ready(), (1, recovery.size));
    assert!(recovery.fetch(&recovery.names[1]));
    let peak = agent.memory("VmHWM:");
    println!("{before} kB before, {peak} kB at most");
    assert!(peak <= before + (24 << 10), "{before} kB before, {peak} kB at most");
    recovery.end(&agent);
}
