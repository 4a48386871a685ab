//! Which relation a file below PGDATA belongs to.
//!
//! Follows `src/common/relpath.c` (`GetRelationPath`): `global/<number>`, `base/<database>/<number>`,
//! `pg_tblspc/<tablespace>/PG_<version>/<database>/<number>`, each with `_<fork>` and `.<segment>`.

use super::pgdata_walk::RelationFileName;
use crate::pg::wal_record::{ForkNumber, RelFileLocator};

/// The tablespace `pg_default`, whose files lie in `base`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// The tablespace `pg_global`, whose files lie in `global`.
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// A file of a permanent relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationFile {
    /// The relation.
    pub relation: RelFileLocator,
    /// Which of its forks.
    pub fork: ForkNumber,
    /// Which of the fork's segment files, from 0 on.
    pub segment: u32,
}

/// The relation of the file at `path` (relative to PGDATA); `None` for all other files.
pub fn relation_of(path: &[u8]) -> Option<RelationFile> {
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let (tablespace, database, name) = match segments.as_slice() {
        [b"global", name] => (GLOBAL_TABLESPACE, 0, name),
        [b"base", database, name] => (DEFAULT_TABLESPACE, number(database)?, name),
        [b"pg_tblspc", tablespace, _, database, name] => (number(tablespace)?, number(database)?, name),
        _ => return None,
    };
    let file = RelationFileName::parse(name)?;
    let fork = match file.fork {
        None => ForkNumber::MAIN,
        Some(b"fsm") => ForkNumber(1),
        Some(b"vm") => ForkNumber(2),
        Some(_) => ForkNumber(3),
    };
    let relation = RelFileLocator { tablespace, database, relation: number(file.number)? };
    Some(RelationFile { relation, fork, segment: file.segment })
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_relations() {
        let parsed = |path: &str| {
            relation_of(path.as_bytes()).map(|file| {
                let relation = file.relation;
                (relation.tablespace, relation.database, relation.relation, file.fork.0, file.segment)
            })
        };
        assert_eq!(parsed("base/5/16384"), Some((1663, 5, 16384, 0, 0)));
        assert_eq!(parsed("base/5/16384_vm.3"), Some((1663, 5, 16384, 2, 3)));
        assert_eq!(parsed("base/5/16384_fsm"), Some((1663, 5, 16384, 1, 0)));
        assert_eq!(parsed("base/5/16384_init"), Some((1663, 5, 16384, 3, 0)));
        assert_eq!(parsed("global/1262.1"), Some((1664, 0, 1262, 0, 1)));
        assert_eq!(parsed("pg_tblspc/16500/PG_15_202209061/5/7"), Some((16500, 5, 7, 0, 0)));
        for path in [
            "base/5/PG_VERSION",
            "base/x/1",
            "global/pg_control",
            "16384",
            "log/16384",
            "base/5/6/7",
            "base/5/99999999999",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }
}
