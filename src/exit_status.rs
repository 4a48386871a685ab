//! Causes of failure and the exit status that each one has.
//!
//! `docs/exit-status.md` is the table. PostgreSQL reads the statuses of `wal-push` and `wal-fetch`:
//! - `wal-push`: above 125 kills the archiver process, so a cause's number is used as it is, 1 to 125.
//! - `wal-fetch`: 1 means "proven absent" and ends archive recovery; above 125 aborts it. So a cause's number is
//!   used plus 200.

/// What went wrong, as far as an operator's next step depends on it. One number per cause, fixed for good.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// The command line is wrong.
    Usage,
    /// A setting is missing, unknown or out of range.
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
    /// `wal-push` and anything misspelt that begins so.
    Push,
    /// `wal-fetch`, and any misspelt verb beginning with `wal-` that is not `wal-push`, `wal-show` or `wal-verify`.
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
}
