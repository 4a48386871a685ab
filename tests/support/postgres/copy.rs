//! Copies of data directories.

use std::fs;
use std::path::Path;

use super::{Cluster, query};

impl Cluster {
    /// Copies the data directory as a base backup would, but with cp's means; `begun` runs before anything is copied.
    pub fn copy_while_running(&self, target: &Path, begun: impl FnOnce()) {
        assert_eq!(
            self.value("SELECT count(*) FROM pg_tablespace"),
            "2",
            "a plain copy would share tablespaces"
        );
        let mut session = self.connect("postgres");
        let (start, stop) = match self.major() {
            15.. => ("pg_backup_start('copy', true)", "pg_backup_stop(false)"),
            _ => ("pg_start_backup('copy', true, false)", "pg_stop_backup(false, false)"),
        };
        query(&mut session, &format!("SELECT {start}")).expect("start a backup");
        begun();
        let contents_skipped = [
            "pg_wal",
            "pg_replslot",
            "pg_stat_tmp",
            "pg_subtrans",
            "pg_notify",
            "pg_serial",
            "pg_snapshots",
            "pg_dynshmem",
        ];
        copy_tree(&self.data, target, &|path| {
            let parent = path.parent().and_then(Path::to_str).unwrap_or_default();
            let name = path.to_str().unwrap_or_default();
            contents_skipped.contains(&parent)
                || ["postmaster.pid", "postmaster.opts", "global/pg_control"].contains(&name)
        });
        let control = fs::read(self.data.join("global/pg_control")).expect("read pg_control");
        fs::write(target.join("global/pg_control"), control).expect("write pg_control");
        let stopped = query(&mut session, &format!("SELECT labelfile FROM {stop}")).expect("stop the backup");
        fs::write(target.join("backup_label"), &stopped[0][0]).expect("write backup_label");
        fs::create_dir_all(target.join("pg_wal/archive_status")).expect("create archive_status");
    }
}

/// Copies what is there; what vanishes meanwhile is not needed. `skip` sees paths relative to `from`.
pub fn copy_tree(from: &Path, to: &Path, skip: &dyn Fn(&Path) -> bool) {
    fn copy(from: &Path, to: &Path, relative: &Path, skip: &dyn Fn(&Path) -> bool) -> std::io::Result<()> {
        let (source, target) = (from.join(relative), to.join(relative));
        let facts = fs::symlink_metadata(&source)?;
        if facts.is_symlink() {
            return std::os::unix::fs::symlink(fs::read_link(&source)?, &target);
        }
        if facts.is_file() {
            return fs::copy(&source, &target).map(|_| ());
        }
        fs::create_dir(&target)?;
        fs::set_permissions(&target, facts.permissions())?;
        for entry in fs::read_dir(&source)? {
            let path = relative.join(entry?.file_name());
            if skip(&path) {
                continue;
            }
            match copy(from, to, &path, skip) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
    copy(from, to, Path::new(""), skip)
        .unwrap_or_else(|e| panic!("copy {} to {}: {e}", from.display(), to.display()));
}
