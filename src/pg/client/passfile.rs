//! pgpass (`src/interfaces/libpq/fe-connect.c`, `passwordFromFile`; the manual's "The Password File").

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a line must fit.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// As written in the settings; `localhost` for the default socket directory.
    pub host: &'a str,
    pub port: u16,
    pub database: &'a str,
    pub user: &'a str,
}

/// The password of the first line that fits. A file that is not there has none; one that others can read is not used,
/// as in libpq, and says so in the log.
pub fn find(path: &Path, wanted: Wanted) -> Option<String> {
    let facts = std::fs::metadata(path).ok()?;
    if !facts.is_file() {
        tracing::warn!("password file {} is not used: it is not a plain file", path.display());
        return None;
    }
    if facts.mode() & 0o077 != 0 {
        tracing::warn!(
            "password file {} is not used: others can read it; its permissions must be 0600 or less",
            path.display()
        );
        return None;
    }
    match std::fs::read_to_string(path) {
        Ok(text) => find_in(&text, wanted),
        Err(error) => {
            tracing::warn!("password file {} is not used: {error}", path.display());
            None
        }
    }
}

fn find_in(text: &str, wanted: Wanted) -> Option<String> {
    let port = wanted.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for value in [wanted.host, port.as_str(), wanted.database, wanted.user] {
            let (field, after) = split_field(rest)?;
            if field != "*" && unescape(field) != value {
                return None;
            }
            rest = after;
        }
        // Fields that may be added one day follow another colon.
        let password = split_field(rest).map_or(rest, |(field, _)| field);
        Some(unescape(password))
    })
}

/// Up to the first colon that no backslash escapes.
fn split_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (position, character) in text.char_indices() {
        match character {
            ':' if !escaped => return Some((text.get(..position)?, text.get(position + 1..)?)),
            _ => escaped = character == '\\' && !escaped,
        }
    }
    None
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match character {
            // A backslash at the very end stands for itself.
            '\\' => text.push(characters.next().unwrap_or('\\')),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const WANTED: Wanted = Wanted { host: "db", port: 5432, database: "my:db", user: "u" };

    #[test]
    fn the_first_line_that_fits_wins() {
        let text = "# db:5432:*:u:comment\n\
            other:5432:*:u:no\n\
            db:5433:*:u:no\n\
            db:5432:my:u:no\n\
            short:line\n\
            db:*:my\\:db:u:a\\:b\\\\c\n\
            *:*:*:*:last\n";
        assert_eq!(find_in(text, WANTED).as_deref(), Some("a:b\\c"));
        assert_eq!(find_in(text, Wanted { user: "v", ..WANTED }).as_deref(), Some("last"));
        assert_eq!(find_in("", WANTED), None);
        assert_eq!(find_in("*:*:*:*:p\r\n", WANTED).as_deref(), Some("p"));
        assert_eq!(find_in("\\*:*:*:*:p\n", WANTED), None);
        assert_eq!(find_in("*:*:*:*:with spaces and ü", WANTED).as_deref(), Some("with spaces and ü"));
    }

    #[test]
    fn a_file_that_others_can_read_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        assert_eq!(find(&path, WANTED), None);
        fs::write(&path, "*:*:*:*:p\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(find(&path, WANTED), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(find(&path, WANTED).as_deref(), Some("p"));
        assert_eq!(find(directory.path(), WANTED), None);
    }
}
