//! Causes of failure and the exit status that each one has.
//!
//! `docs/exit-status.md` is the table. PostgreSQL reads the statuses of `wal-push` and `wal-fetch`:
//! - `wal-push`: above 125 kills the archiver process, so a cause's number is used as it is, 1 to 125.
//! - `wal-fetch`: 1 means "proven absent" and ends archive recovery; above 125 aborts it. So a cause's number is
//!   used plus 200.

use std::ffi::OsString;

use crate::config::schema;
use crate::pg::ArchiveFileName;

/// What went wrong, as far as an operator's next step depends on it. One number per cause, fixed for good.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// The command line is wrong.
    Usage,
    /// A setting is missing, unknown or out of range, or a key file cannot be used.
    Configuration,
    /// A local file that should be there is not.
    FileMissing,
    /// A local file or directory may not be read or written, or reading it failed.
    FileUnusable,
    /// No space on a local file system.
    LocalFull,
    /// The file is not what its name says: wrong size, wrong page, torn, recycled, unknown name.
    NotWal,
    /// The file belongs to another cluster.
    OtherCluster,
    /// Another content is stored under this name.
    Conflict,
    /// The repository's marker is not there: wrong address, unmounted disk, `init` not run.
    NoRepository,
    /// The store refuses: permissions, credentials.
    Denied,
    /// The store is full.
    RepositoryFull,
    /// The store cannot be reached, answers with errors, or did not answer in time.
    Unreachable,
    /// A stored object is damaged or is not what its name says.
    Damaged,
    /// No key, or not the right one, for an encrypted object; or plain where encryption is required.
    Key,
    /// Something is missing that later objects prove must have been there.
    Gap,
    /// Ended by a signal.
    Interrupted,
    /// PostgreSQL refused or cannot be reached.
    Server,
    /// A plan that cannot work, or a target that must not be touched.
    Refused,
    /// Checks found the repository or the configuration unhealthy.
    Unhealthy,
    /// What was asked for does not exist (a backup id, a segment in a listing).
    NotFound,
    /// A mistake in walhold itself.
    Internal,
}

impl Cause {
    /// Every cause, by number.
    pub const ALL: [Cause; 21] = [
        Cause::Usage,
        Cause::Configuration,
        Cause::FileMissing,
        Cause::FileUnusable,
        Cause::LocalFull,
        Cause::NotWal,
        Cause::OtherCluster,
        Cause::Conflict,
        Cause::NoRepository,
        Cause::Denied,
        Cause::RepositoryFull,
        Cause::Unreachable,
        Cause::Damaged,
        Cause::Key,
        Cause::Gap,
        Cause::Interrupted,
        Cause::Server,
        Cause::Refused,
        Cause::Unhealthy,
        Cause::NotFound,
        Cause::Internal,
    ];

    /// The word for it in JSON lines and in docs/exit-status.md.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Usage => "usage",
            Cause::Configuration => "configuration",
            Cause::FileMissing => "file-missing",
            Cause::FileUnusable => "file-unusable",
            Cause::LocalFull => "local-full",
            Cause::NotWal => "not-wal",
            Cause::OtherCluster => "other-cluster",
            Cause::Conflict => "conflict",
            Cause::NoRepository => "no-repository",
            Cause::Denied => "denied",
            Cause::RepositoryFull => "repository-full",
            Cause::Unreachable => "unreachable",
            Cause::Damaged => "damaged",
            Cause::Key => "key",
            Cause::Gap => "gap",
            Cause::Interrupted => "interrupted",
            Cause::Server => "server",
            Cause::Refused => "refused",
            Cause::Unhealthy => "unhealthy",
            Cause::NotFound => "not-found",
            Cause::Internal => "internal",
        }
    }

    /// The number that `wal-push` exits with, and `wal-fetch` plus 200.
    pub const fn number(self) -> u8 {
        match self {
            Cause::Usage => 2,
            Cause::Configuration => 3,
            Cause::FileMissing => 4,
            Cause::FileUnusable => 5,
            Cause::LocalFull => 6,
            Cause::NotWal => 7,
            Cause::OtherCluster => 8,
            Cause::Conflict => 9,
            Cause::NoRepository => 10,
            Cause::Denied => 11,
            Cause::RepositoryFull => 12,
            Cause::Unreachable => 13,
            Cause::Damaged => 14,
            Cause::Key => 15,
            Cause::Gap => 16,
            Cause::Interrupted => 17,
            Cause::Server => 18,
            Cause::Refused => 19,
            Cause::Unhealthy => 20,
            Cause::NotFound => 21,
            Cause::Internal => 22,
        }
    }
}

/// How a command that did not fail ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Status 0.
    Done,
    /// `wal-fetch`: the file is proven absent, or the operator allows it to be taken for absent. Status 1.
    Absent,
}

/// The command family, because each reads statuses differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusRule {
    /// `wal-push`, and a command line without a known verb that looks like an `archive_command`.
    Push,
    /// `wal-fetch`, and a command line without a known verb that looks like a `restore_command` or like neither
    /// but begins with `wal-`.
    Fetch,
    /// Every other command.
    Operator,
}

impl StatusRule {
    /// The status that `cause` ends a command of this family with.
    pub const fn status(self, cause: Cause) -> u8 {
        match self {
            StatusRule::Push => cause.number(),
            StatusRule::Fetch => 200 + cause.number(),
            StatusRule::Operator => match cause {
                Cause::Usage => 2,
                Cause::Refused => 3,
                Cause::Unhealthy => 4,
                _ => 1,
            },
        }
    }

    /// The family of a command line that clap has not seen yet, because its usage errors must end with the right
    /// status too: a `restore_command` with a misspelt verb or flag that exits with 2 would tell PostgreSQL that
    /// the archive ends here, and the server would be promoted early.
    ///
    /// The first known verb decides. Without one, the arguments that PostgreSQL fills in do: `restore_command`
    /// passes a bare WAL file name (`%f`), `archive_command` a path to one (`%p`). What is left and begins with
    /// `wal-` counts as a fetch, because a wrong "absent" loses data, where a status above 125 from an
    /// `archive_command` only restarts the archiver.
    pub fn of_command_line(arguments: &[OsString]) -> StatusRule {
        let words = words_of(arguments);
        match words.iter().find_map(|word| known_verb(word)) {
            Some("wal-push") => return StatusRule::Push,
            Some("wal-fetch") => return StatusRule::Fetch,
            Some(_) => return StatusRule::Operator,
            None => {}
        }
        let names_wal = |text: &str| text.parse::<ArchiveFileName>().is_ok();
        if words.iter().any(|word| names_wal(word)) {
            StatusRule::Fetch
        } else if words.iter().any(|word| word.rsplit('/').next().is_some_and(names_wal)) {
            StatusRule::Push
        } else if words.iter().any(|word| word.starts_with("wal-")) {
            StatusRule::Fetch
        } else {
            StatusRule::Operator
        }
    }
}

/// The verb on a command line, as far as it is one.
pub fn verb_of(arguments: &[OsString]) -> Option<&'static str> {
    words_of(arguments).iter().find_map(|word| known_verb(word))
}

/// Every verb there is or will be, with its other names.
const VERBS: [&str; 22] = [
    "init",
    "wal-push",
    "wal-fetch",
    "wal-prefetch",
    "wal-show",
    "wal-verify",
    "backup-push",
    "backup-list",
    "backup-show",
    "backup-mark",
    "restore",
    "backup-fetch",
    "expire",
    "delete",
    "verify",
    "status",
    "check",
    "config",
    "keygen",
    "agent",
    "man",
    "completions",
];

fn known_verb(word: &str) -> Option<&'static str> {
    VERBS.into_iter().find(|verb| *verb == word)
}

/// What stands on the command line beside flags and their values.
fn words_of(arguments: &[OsString]) -> Vec<String> {
    let takes_value = |flag: &str| flag == "--config" || schema::by_flag(flag).is_some();
    let mut words = Vec::new();
    let mut rest = arguments.iter().skip(1).map(|argument| argument.to_string_lossy());
    while let Some(word) = rest.next() {
        if takes_value(&word) {
            rest.next();
        } else if !word.starts_with('-') {
            words.push(word.into_owned());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_never_says_absent_by_mistake() {
        assert!(StatusRule::Fetch.status(Cause::Usage) > 125);
        assert!(StatusRule::Fetch.status(Cause::Internal) > 200);
    }

    #[test]
    fn a_push_never_kills_the_archiver() {
        assert!((1..=125).contains(&StatusRule::Push.status(Cause::Internal)));
    }

    #[test]
    fn numbers_and_names_are_unique_and_in_order() {
        let numbers: Vec<u8> = Cause::ALL.into_iter().map(Cause::number).collect();
        assert_eq!(numbers, (2..=22).collect::<Vec<u8>>());
        let mut names: Vec<&str> = Cause::ALL.into_iter().map(Cause::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Cause::ALL.len());
    }

    fn rule(line: &str) -> StatusRule {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        StatusRule::of_command_line(&arguments)
    }

    #[test]
    fn the_verb_decides_wherever_it_stands() {
        assert_eq!(rule("walhold wal-push pg_wal/000000010000000000000001"), StatusRule::Push);
        assert_eq!(rule("walhold --cluster wal-fetch wal-push 000000010000000000000001"), StatusRule::Push);
        assert_eq!(rule("walhold --cluster=x wal-fetch --jbos 3"), StatusRule::Fetch);
        assert_eq!(rule("walhold --repositry file:///x wal-fetch a b"), StatusRule::Fetch);
        assert_eq!(rule("walhold backup-show wal-fetch"), StatusRule::Operator);
        assert_eq!(rule("walhold wal-verify"), StatusRule::Operator);
        assert_eq!(rule("walhold"), StatusRule::Operator);
    }

    #[test]
    fn a_misspelt_verb_is_known_by_its_arguments() {
        assert_eq!(rule("walhold wal-psuh pg_wal/000000010000000000000001"), StatusRule::Push);
        assert_eq!(rule("walhold archive /data/pg_wal/00000002.history"), StatusRule::Push);
        assert_eq!(rule("walhold wal-fecth 000000010000000000000001 pg_wal/RECOVERYXLOG"), StatusRule::Fetch);
        assert_eq!(rule("walhold walfetch 00000002.history pg_wal/RECOVERYHISTORY"), StatusRule::Fetch);
        assert_eq!(rule("walhold 000000010000000000000001 pg_wal/RECOVERYXLOG"), StatusRule::Fetch);
        assert_eq!(rule("walhold wal-anything x"), StatusRule::Fetch);
        assert_eq!(rule("walhold backup-lits"), StatusRule::Operator);
    }
}
