//! Which process serves a data directory, as the server itself noted in `postmaster.pid`.

use std::path::Path;

/// The process on the file's first line (`LOCK_FILE_LINE_PID`), whether it lives or not. `None` without the file. A server in single-user
/// mode writes its number negated (`src/backend/utils/init/miscinit.c`, `CreateLockFile`).
pub fn noted_process(pgdata: &Path) -> Option<u32> {
    let lines = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let number: i32 = lines.lines().next()?.trim().parse().ok()?;
    Some(number.unsigned_abs()).filter(|process| *process > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_both_kinds_are_found() {
        let pgdata = tempfile::tempdir().unwrap();
        assert_eq!(noted_process(pgdata.path()), None);
        for (text, process) in [
            ("123\n/data\n1763650000\n", Some(123)),
            (" 7 ", Some(7)),
            ("-123\n", Some(123)),
            ("0\n", None),
            ("", None),
        ] {
            std::fs::write(pgdata.path().join("postmaster.pid"), text).unwrap();
            assert_eq!(noted_process(pgdata.path()), process, "{text:?}");
        }
    }
}
