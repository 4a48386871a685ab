//! A small file system of its own: a full disk for as long as a test needs one. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::postgres::installation::ServerUser;

/// Mounted until dropped.
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Makes `path` a directory of the server's user on a file system of this size (`256k`, `8m`).
    pub fn mount(path: &Path, size: &str) -> Tmpfs {
        std::fs::create_dir_all(path).expect("create the mount point");
        let user = ServerUser::get();
        let options = format!("size={size},mode=0700,uid={},gid={}", user.uid, user.gid);
        mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], path);
        Tmpfs { path: path.to_owned() }
    }

    /// Waits until so many bytes are free: what was deleted is held while a process that another test is starting has
    /// the file open.
    #[allow(dead_code, reason = "not every test that fills a disk needs the room again")]
    pub fn wait_for_room(&self, bytes: u64) {
        let begun = Instant::now();
        loop {
            let facts = nix::sys::statvfs::statvfs(&self.path).expect("ask for the free space");
            if facts.blocks_available() * facts.fragment_size() >= bytes {
                return;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{} does not become free",
                self.path.display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Gives it another size.
    pub fn resize(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], &self.path);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.path.display());
        }
    }
}

fn mount(options: &[&str], path: &Path) {
    let output = Command::new("mount").args(options).arg(path).output().expect("run mount");
    assert!(
        output.status.success(),
        "tests of full disks must be able to mount (run them as root): {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
