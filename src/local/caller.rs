//! Whether the PostgreSQL process that ran this command still waits for it.
//!
//! In: `/proc`. What must hold: a command that outlived its server gives nothing to the next one. PostgreSQL passes its own signals on
//! to the commands that it runs, but one whose process is killed alone (`kill -9`, out of memory) leaves its `restore_command` behind, and that delivers
//! to the same path as the call of the server started since: the wrong segment under the right name ends recovery there.

use std::sync::OnceLock;

/// The processes above this one up to PostgreSQL's own: shells between them may outlive it.
static NOTED: OnceLock<Vec<Process>> = OnceLock::new();

/// As high as anybody looks.
const HIGHEST: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    /// In ticks since the system's start: tells a process from a later one of the same number.
    began: u64,
}

/// Notes who runs this command. Without it, and where it is not PostgreSQL, [`is_gone`] is never so.
pub fn note() {
    let _ = NOTED.set(up_to_postgres(std::process::id()).unwrap_or_default());
}

/// Whether a process of PostgreSQL's was noted.
pub fn is_postgres() -> bool {
    NOTED.get().is_some_and(|noted| !noted.is_empty())
}

/// Whether the noted process has ended, or no longer waits for this one.
pub fn is_gone() -> bool {
    match NOTED.get() {
        Some(noted) if !noted.is_empty() => up_to_postgres(std::process::id()).as_ref() != Some(noted),
        _ => false,
    }
}

/// `None` if no PostgreSQL is above `process`, or the system does not say.
fn up_to_postgres(process: u32) -> Option<Vec<Process>> {
    let mut chain = Vec::new();
    let mut id = parent_of(&stat_of(process)?)?;
    while id > 1 && chain.len() < HIGHEST {
        let stat = stat_of(id)?;
        chain.push(Process { id, began: fields_of(&stat)?.nth(19)?.parse().ok()? });
        if name_of(&stat)?.contains("postgres") {
            return Some(chain);
        }
        id = parent_of(&stat)?;
    }
    None
}

/// proc_pid_stat(5): `number (name) state parent …`; a name may hold anything.
fn stat_of(process: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{process}/stat")).ok()
}

fn name_of(stat: &str) -> Option<&str> {
    Some(stat.split_once('(')?.1.rsplit_once(')')?.0)
}

/// From the third field on.
fn fields_of(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace())
}

fn parent_of(stat: &str) -> Option<u32> {
    fields_of(stat)?.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let stat = "12 (a) (postgres) R) S 34 12 12 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 5678 9 10";
        assert_eq!(name_of(stat), Some("a) (postgres) R"));
        assert_eq!(parent_of(stat), Some(34));
        assert_eq!(fields_of(stat).unwrap().nth(19), Some("5678"));
        for nonsense in ["", "12", "12 (a", "12 (a)", "12 (a) S x"] {
            assert_eq!(parent_of(nonsense), None, "{nonsense}");
        }
        let own = stat_of(std::process::id()).unwrap();
        assert_eq!(parent_of(&own), Some(std::os::unix::process::parent_id()));
    }
}
