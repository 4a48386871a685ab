//! The physical floor: the work that no tool can leave out, in one process, with nothing around it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use walhold::pg::page_checksum::check_page;

const RUN: usize = 1 << 20;

/// Files of PGDATA that a backup must read.
pub fn data_files(directory: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in std::fs::read_dir(directory).expect("list a data directory").flatten() {
        let name = entry.file_name();
        let metadata = entry.metadata().expect("stat a data file");
        if metadata.is_dir() {
            if !matches!(name.to_str(), Some("pg_wal" | "pg_stat_tmp" | "pg_replslot")) {
                data_files(&entry.path(), files);
            }
        } else if metadata.is_file() {
            files.push((entry.path(), metadata.len()));
        }
    }
}

/// Reads every file, checks every page, digests and compresses every MiB, writes and syncs packs: seconds.
pub fn backup_floor(data: &Path, packs: &Path) -> f64 {
    std::fs::create_dir_all(packs).expect("create the floor's directory");
    let mut files = Vec::new();
    data_files(data, &mut files);
    let runs: Vec<(PathBuf, u64, usize)> = files
        .iter()
        .flat_map(|(path, length)| {
            (0..*length)
                .step_by(RUN)
                .map(move |offset| (path.clone(), offset, (length - offset).min(RUN as u64) as usize))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let digests = Mutex::new(0_u64);
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (runs, next, digests) = (&runs, &next, &digests);
            scope.spawn(move || {
                let mut compressor = zstd::bulk::Compressor::new(1).expect("a zstd context");
                let (mut raw, mut packed) =
                    (vec![0; RUN], Vec::with_capacity(zstd::zstd_safe::compress_bound(RUN)));
                let mut pack = File::create(packs.join(thread.to_string())).expect("create a pack");
                let mut open: Option<(PathBuf, File)> = None;
                let mut checked = 0_u64;
                while let Some((path, offset, length)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if open.as_ref().is_none_or(|(opened, _)| opened != path) {
                        open = Some((path.clone(), File::open(path).expect("open a data file")));
                    }
                    let Some((_, file)) = &open else { continue };
                    let bytes = &mut raw[..*length];
                    file.read_exact_at(bytes, *offset).expect("read a data file");
                    for (page, block) in bytes.chunks_exact(8192).zip(0..) {
                        checked += u64::from(check_page(page, (offset / 8192) as u32 + block) as u8);
                    }
                    checked += u64::from(blake3::hash(bytes).as_bytes()[0]);
                    packed.clear();
                    compressor.compress_to_buffer(bytes, &mut packed).expect("compress");
                    pack.write_all(&packed).expect("write a pack");
                }
                pack.sync_all().expect("sync a pack");
                *digests.lock().expect("no thread panicked") += checked;
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    std::fs::remove_dir_all(packs).expect("remove the floor's packs");
    seconds
}

/// Reads, compresses, digests, writes and syncs one segment on one thread: seconds.
pub fn push_floor(segment: &Path, directory: &Path) -> f64 {
    let started = Instant::now();
    let bytes = std::fs::read(segment).expect("read a segment");
    let digest = blake3::hash(&bytes);
    let packed = zstd::bulk::compress(&bytes, 1).expect("compress");
    let target = directory.join(digest.to_hex().as_str());
    let mut file = File::create(&target).expect("create");
    file.write_all(&packed).expect("write");
    file.sync_all().expect("sync");
    File::open(directory).expect("open").sync_all().expect("sync");
    let seconds = started.elapsed().as_secs_f64();
    std::fs::remove_file(&target).expect("remove");
    seconds
}
