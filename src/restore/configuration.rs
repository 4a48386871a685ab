//! The restored server's configuration: what it recovers with, and what must not point at the original.
//!
//! Pure: texts of configuration files in, texts and findings out.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::format::manifest::{FileEntry, Manifest, Root};
use crate::pg::recovery::{
    RECOVERY_SETTINGS, Recovery, Setting, command_word, parse_settings, quote_value, recovery_settings,
    remove_settings, replace_settings, setting,
};

/// `restore_command`: this binary by its absolute path, and all that it needs to find the repository without any environment, but no
/// secrets. Returns what is left out and must stand in the server's environment as well.
pub fn restore_command(binary: &Path, config: &Config) -> (String, Vec<String>) {
    command_of_server(binary, config, "wal-fetch %f %p")
}

/// `recovery_end_command`: removes what was fetched ahead and is not needed any more.
pub fn recovery_end_command(binary: &Path, config: &Config) -> String {
    command_of_server(binary, config, "wal-prefetch --clear").0
}

fn command_of_server(binary: &Path, config: &Config, arguments: &str) -> (String, Vec<String>) {
    let mut words = Vec::new();
    let mut left_out = Vec::new();
    let hidden =
        |variable: &str| config.table.iter().any(|row| row.hidden && variable_of(&row.key) == variable);
    for (variable, value) in config.carried_variables() {
        if hidden(variable) {
            left_out.push(variable.to_owned());
        } else {
            words.push(format!("{variable}={}", command_word(&value)));
        }
    }
    words.push(command_word(&binary.to_string_lossy()));
    if let Some(file) = &config.file {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        words.push(format!("--config {}", command_word(&file.to_string_lossy())));
    }
    words.push(arguments.to_owned());
    (words.join(" "), left_out)
}

/// The variable of a setting's key: `repository.url` has a name of its own in the schema.
fn variable_of(key: &str) -> &'static str {
    crate::config::schema::SETTINGS
        .iter()
        .find(|setting| setting.key == key)
        .map_or("", |setting| setting.variable)
}

/// Variables that clouds' tools read and that hold or name credentials, as far as they are set here.
pub fn credential_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let prefixes = ["AWS_", "GOOGLE_", "AZURE_"];
    let mut found: Vec<String> =
        names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))).collect();
    found.sort();
    found
}

/// Off where what lies behind the target cannot be read.
pub const READ_AHEAD: &str = "recovery_prefetch";

/// The new `postgresql.auto.conf`: the restored one without any recovery setting, then those that are wanted. The file may be in
/// any encoding, so bytes are kept as they are.
pub fn auto_conf(restored: &[u8], recovery: &Recovery, extra: &[(String, String)]) -> Vec<u8> {
    let mut settings = recovery_settings(recovery);
    settings.extend_from_slice(extra);
    for (_, value) in &mut settings {
        *value = as_characters(value.as_bytes());
    }
    let text = remove_settings(&as_characters(restored), &RECOVERY_SETTINGS);
    as_bytes(&replace_settings(&text, &settings))
}

/// The file without any recovery setting and without `other`.
pub fn without_recovery_settings(text: &[u8], other: &str) -> Vec<u8> {
    let names: Vec<&str> = RECOVERY_SETTINGS.into_iter().chain([other]).collect();
    as_bytes(&remove_settings(&as_characters(text), &names))
}

/// One character per byte, so that text functions leave bytes of any encoding alone.
fn as_characters(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn as_bytes(characters: &str) -> Vec<u8> {
    characters.chars().map(|character| character as u8).collect()
}

/// Settings that name files of the original server.
const PLACES: [(&str, Option<&str>); 4] = [
    ("data_directory", Some("")),
    ("hba_file", Some("pg_hba.conf")),
    ("ident_file", Some("pg_ident.conf")),
    ("external_pid_file", None),
];

/// Lines to be added to a restored `postgresql.conf` so that the copy uses its own files: started with the original's
/// `data_directory`, it would run on the original's data. `has` says which files the copy will have.
pub fn own_places(text: &str, pgdata: &Path, has: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let settings = parse_settings(text).unwrap_or_default();
    let mut lines = Vec::new();
    for (name, file) in PLACES {
        let Some(value) = setting(&settings, name).filter(|value| !value.is_empty()) else { continue };
        let wanted = match file {
            Some("") => pgdata.to_owned(),
            Some(file) if has(file) => pgdata.join(file),
            Some(_) => continue,
            None => PathBuf::new(),
        };
        let current = Path::new(&value);
        if current.is_absolute()
            && current != wanted
            && (name == "data_directory" || !current.starts_with(pgdata))
        {
            lines.push((name.to_owned(), wanted.display().to_string()));
        }
    }
    lines
}

/// The text of those lines, to be appended.
pub fn own_places_text(lines: &[(String, String)]) -> String {
    let mut text =
        "\n# Added by walhold restore: the lines above name files of the server that was backed up.\n"
            .to_owned();
    for (name, value) in lines {
        text.push_str(&format!("{name} = {}\n", quote_value(value)));
    }
    text
}

/// A configuration file from outside PGDATA and its place in the restored PGDATA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptedFile {
    /// Index into the manifest's files.
    pub file: usize,
    /// Where it was.
    pub from: PathBuf,
    /// Relative to PGDATA.
    pub to: PathBuf,
}

/// Which files from outside PGDATA are restored into it: `postgresql.conf` and what lies beside or below it (Debian keeps all of it in
/// `/etc/postgresql`). A file of that name in PGDATA is not what the server used, perhaps what an earlier restore left, and gives way to
/// it. Nothing is ever written to where they were.
pub fn adopted_files(manifest: &Manifest) -> Vec<AdoptedFile> {
    let external = |file: &&FileEntry| file.root == Root::External;
    let path_of = |file: &FileEntry| PathBuf::from("/").join(String::from_utf8_lossy(&file.path).as_ref());
    let is_main = |path: &Path| path.file_name().is_some_and(|name| name == "postgresql.conf");
    let main = manifest.files.iter().filter(external).map(&path_of).find(|path| is_main(path));
    let home = main.as_deref().and_then(Path::parent).map(Path::to_owned);
    let mut adopted = Vec::new();
    for (index, file) in manifest.files.iter().enumerate().filter(|(_, file)| file.root == Root::External) {
        let from = path_of(file);
        let beside = home.as_ref().and_then(|home| from.strip_prefix(home).ok()).map(Path::to_owned);
        let by_name = ["pg_hba.conf", "pg_ident.conf"]
            .iter()
            .find(|name| from.file_name().is_some_and(|file_name| file_name == **name))
            .map(PathBuf::from);
        let Some(to) = beside.or(by_name) else { continue };
        if !adopted.iter().any(|other: &AdoptedFile| other.to == to) {
            adopted.push(AdoptedFile { file: index, from, to });
        }
    }
    adopted
}

/// Settings that a server in recovery must have at least as high as the one that wrote the WAL (manual, "Hot Standby", "Administrator's
/// Overview").
pub const STANDBY_LIMITS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Warnings about settings that are lower than they were on the server that was backed up. `settings` are the restored ones, the last line
/// wins.
pub fn lowered_limits(settings: &[Setting], manifest: &Manifest) -> Vec<String> {
    let number = |text: &str| text.parse::<u64>().ok();
    let mut warnings = Vec::new();
    for name in STANDBY_LIMITS {
        let before = manifest.server.settings.get(name).and_then(|value| number(value));
        let after = setting(settings, name).and_then(|value| number(&value));
        if let (Some(before), Some(after)) = (before, after)
            && after < before
        {
            warnings.push(format!(
                "the restored configuration sets {name} = {after}, the server that was backed up had {before}: recovery stops or pauses if the WAL needs more"
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::recovery::RecoveryTarget;

    #[test]
    fn the_restore_command_needs_no_environment() {
        let text = "[repository]\nurl = \"file:///srv/wal hold\"\n";
        let mut config = Config::from_toml(text, Path::new("/etc/walhold/walhold.toml")).unwrap();
        config.file = Some(PathBuf::from("/etc/it's 100%.toml"));
        let (command, left_out) = restore_command(Path::new("/usr/local/bin/walhold"), &config);
        assert_eq!(command, r"/usr/local/bin/walhold --config '/etc/it'\''s 100%%.toml' wal-fetch %f %p");
        assert!(left_out.is_empty());
        assert_eq!(
            recovery_end_command(Path::new("/usr/local/bin/walhold"), &config),
            r"/usr/local/bin/walhold --config '/etc/it'\''s 100%%.toml' wal-prefetch --clear"
        );
        let sources = crate::config::Sources {
            flags: vec![("--repository", "file:///srv/wal hold".into()), ("--cluster", "blue".into())],
            config_flag: None,
            variables: Vec::new(),
            default_file: None,
        };
        let (command, _) = restore_command(Path::new("/w"), &Config::load(&sources).unwrap());
        assert_eq!(
            command,
            "WALHOLD_REPOSITORY='file:///srv/wal hold' WALHOLD_CLUSTER=blue /w wal-fetch %f %p"
        );
    }

    #[test]
    fn leftover_recovery_settings_are_removed() {
        let restored =
            "# comment\nwork_mem = '8MB'\nrecovery_target_time = '2020-01-01'\nprimary_conninfo = 'x'\n";
        let recovery = Recovery { target: RecoveryTarget::Xid(745), ..Recovery::default() };
        let bytes =
            auto_conf(restored.as_bytes(), &recovery, &[("archive_mode".to_owned(), "off".to_owned())]);
        let text = String::from_utf8(bytes).unwrap();
        assert!(
            text.starts_with("# comment\nwork_mem = '8MB'\nprimary_conninfo = 'x'\nrestore_command = ''\n"),
            "{text}"
        );
        assert!(text.ends_with("recovery_target_xid = '745'\narchive_mode = 'off'\n"), "{text}");
        assert_eq!(text.matches("recovery_target_time =").count(), 1);
        let recovery = Recovery { restore_command: "/\u{e9}/walhold".to_owned(), ..Recovery::default() };
        let bytes = auto_conf(b"# \xe9\n", &recovery, &[]);
        assert!(bytes.starts_with(b"# \xe9\nrestore_command = '/\xc3\xa9/walhold'\n"));
    }

    #[test]
    fn a_copy_never_uses_the_originals_files() {
        let debian = "data_directory = '/var/lib/postgresql/15/main'\nhba_file = '/etc/postgresql/15/main/pg_hba.conf'\n\
             ident_file = '/etc/postgresql/15/main/pg_ident.conf'\nexternal_pid_file = '/var/run/postgresql/15-main.pid'\n";
        let lines = own_places(debian, Path::new("/srv/copy"), |file| file == "pg_hba.conf");
        assert_eq!(
            own_places_text(&lines),
            "\n# Added by walhold restore: the lines above name files of the server that was backed up.\n\
             data_directory = '/srv/copy'\nhba_file = '/srv/copy/pg_hba.conf'\nexternal_pid_file = ''\n"
        );
        assert!(
            own_places("#data_directory = 'x'\nport = 5433\n", Path::new("/srv/copy"), |_| true).is_empty()
        );
        assert!(own_places("data_directory = '/srv/copy'\n", Path::new("/srv/copy"), |_| true).is_empty());
    }

    #[test]
    fn credentials_in_the_environment_are_named() {
        let names = ["PATH", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY", "LAWS_X"].map(String::from);
        assert_eq!(credential_variables(names.into_iter()), ["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY"]);
    }
}
