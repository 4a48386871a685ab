//! Settings: where they come from, which are refused and with what words, and that secrets stay hidden.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use walhold::config::Config;
use walhold::config::schema::{Fallback, SETTINGS};

/// A directory with a configuration file, and the binary run under it with nothing else in its environment.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new(toml: &str) -> Scene {
        let directory = tempfile::tempdir().expect("make a directory");
        fs::write(directory.path().join("walhold.toml"), toml).expect("write the configuration");
        Scene { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_walhold"))
            .env_clear()
            .env("WALHOLD_CONFIG", self.path("walhold.toml"))
            .envs(variables.iter().copied())
            .current_dir(self.directory.path())
            .args(arguments)
            .output()
            .expect("run walhold")
    }

    /// Standard error of a run that fails because of its configuration, the directory's name replaced by `DIR`.
    fn refusal(&self, variables: &[(&str, &str)], arguments: &[&str]) -> String {
        let output = self.run(variables, arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        text(&output.stderr).replace(&self.directory.path().display().to_string(), "DIR")
    }

    /// The line of `walhold config` for one setting: value and origin.
    fn setting(&self, variables: &[(&str, &str)], arguments: &[&str], key: &str) -> (String, String) {
        let output = self.run(variables, &[arguments, &["config", "--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("config prints JSON");
        let settings = shown["settings"].as_array().expect("a list of settings");
        let setting = settings.iter().find(|setting| setting["key"] == key).expect("the setting is shown");
        let place = setting["where"].as_str().unwrap_or_default();
        let place = place.replace(&self.directory.path().display().to_string(), "DIR");
        let value = setting["value"].as_str().unwrap_or("null").to_owned();
        (value, format!("{} {place}", setting["origin"].as_str().expect("an origin")).trim_end().to_owned())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("walhold prints UTF-8")
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let key = "cluster";
    let scene = Scene::new("# a comment\ncluster = \"from-file\"\n");
    let variable = [("WALHOLD_CLUSTER", "from-variable")];
    let flag = ["--cluster", "from-flag"];
    let expect = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(scene.setting(&variable, &flag, key), expect("from-flag", "flag --cluster"));
    assert_eq!(scene.setting(&variable, &[], key), expect("from-variable", "variable WALHOLD_CLUSTER"));
    assert_eq!(scene.setting(&[], &[], key), expect("from-file", "file DIR/walhold.toml:2"));
    assert_eq!(Scene::new("").setting(&[], &[], key), expect("main", "default"));
}

#[test]
fn pgdata_of_the_environment_is_weaker_than_anything_said_to_walhold() {
    let scene = Scene::new("pgdata = \"/from/file\"\n");
    let pgdata = [("PGDATA", "/from/environment")];
    assert_eq!(scene.setting(&pgdata, &[], "pgdata").0, "/from/file");
    let (value, origin) = Scene::new("").setting(&pgdata, &[], "pgdata");
    assert_eq!((value.as_str(), origin.as_str()), ("/from/environment", "variable PGDATA"));
    assert_eq!(Scene::new("").setting(&[("PGDATA", "")], &[], "pgdata").0, "null");
}

#[test]
fn a_file_named_by_a_flag_wins_over_one_named_by_a_variable() {
    let scene = Scene::new("cluster = \"a\"\n");
    fs::write(scene.path("other.toml"), "cluster = \"b\"\n").expect("write the other file");
    assert_eq!(scene.setting(&[], &["--config", "other.toml"], "cluster").0, "b");
}

#[test]
fn the_working_directory_is_never_read() {
    let scene = Scene::new("");
    fs::write(scene.path("empty.toml"), "").expect("write an empty file");
    fs::write(scene.path("walhold.toml"), "cluster = \"planted\"\n").expect("plant a file");
    let empty = scene.path("empty.toml").display().to_string();
    assert_eq!(scene.setting(&[("WALHOLD_CONFIG", &empty)], &[], "cluster").0, "main");
}

#[test]
fn the_short_form_of_the_repository_is_read() {
    let scene = Scene::new("repository = \"file:///srv/walhold\"\n");
    assert_eq!(scene.setting(&[], &[], "repository.url").0, "file:///srv/walhold");
}

/// TOML text and the one line that refuses it.
const REFUSED_FILES: &[(&str, &str)] = &[
    (
        "colour = 1",
        "unknown setting colour (DIR/walhold.toml:1)  HINT: docs/configuration.md lists every setting; walhold config shows those in effect",
    ),
    (
        "\n[encryption]\nkey_fiel = \"/etc/walhold/key\"",
        "unknown setting encryption.key_fiel (DIR/walhold.toml:3)  HINT: did you mean encryption.key_file?",
    ),
    (
        "[encrytion]\nkey_file = \"/etc/walhold/key\"",
        "unknown setting encrytion (DIR/walhold.toml:1)  HINT: did you mean [encryption]?",
    ),
    (
        "key_file = \"/etc/walhold/key\"",
        "unknown setting key_file (DIR/walhold.toml:1)  HINT: did you mean encryption.key_file?",
    ),
    (
        "wal = 3",
        "setting wal (DIR/walhold.toml:1): expected a table, [wal], found integer  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[backup]\njobs = \"4\"",
        "setting backup.jobs (DIR/walhold.toml:2): expected a whole number from 1 to 256, found \"4\"  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[backup]\njobs = 0",
        "setting backup.jobs (DIR/walhold.toml:2): expected a whole number from 1 to 256, found 0  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[backup]\nrate_limit = \"50 mb\"",
        "setting backup.rate_limit (DIR/walhold.toml:2): expected a size from 64kB to 1TB (units: B, kB, MB, GB, TB), found \"50 mb\"  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[compression]\nlevel = 20",
        "setting compression.level (DIR/walhold.toml:2): expected a whole number from -7 to 19, found 20  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "compression.codec = \"lz4\"",
        "setting compression.codec (DIR/walhold.toml:1): expected zstd or none, found \"lz4\"  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[wal]\npush_deadline = 60",
        "setting wal.push_deadline (DIR/walhold.toml:2): expected a duration from 1s to 1d (units: ms, s, min, h, d), found 60  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[wal]\nallow_gap = \"yes\"",
        "setting wal.allow_gap (DIR/walhold.toml:2): expected true or false, found \"yes\"  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "cluster = \"a/b\"",
        "setting cluster (DIR/walhold.toml:1): expected 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit, found \"a/b\"  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "repository = \"/srv/walhold\"",
        "setting repository.url (DIR/walhold.toml:1): a directory is written as a URL: file:///srv/walhold  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "repository = \"ftp://host/walhold\"",
        "setting repository.url (DIR/walhold.toml:1): scheme \"ftp\" is not known; expected file:///, s3://, gs:// or az://  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[repository.options]\nregion = [\"eu\"]",
        "setting repository.options.region (DIR/walhold.toml:2): expected text, a whole number or true or false, found array  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[encryption]\nkey_file = \"key\"",
        "setting encryption.key_file (DIR/walhold.toml:2): expected absolute paths, as a list in TOML or separated by colons, found something else  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[encryption]\nkey_file = []",
        "setting encryption.key_file (DIR/walhold.toml:2): the value is empty; expected absolute paths, as a list in TOML or separated by colons  HINT: docs/configuration.md lists every setting with what it takes",
    ),
    (
        "[encryption]\nkey_file = \"/key\"\nkey_command = \"print-key\"",
        "settings encryption.key_file (DIR/walhold.toml:2) and encryption.key_command (DIR/walhold.toml:3) exclude each other  HINT: remove one of them",
    ),
    (
        "cluster = \"a\"\ncluster = \"b\"",
        "read configuration file DIR/walhold.toml:2: duplicate key  HINT: write each setting once: name = \"text\" or name = 4, below its [section]",
    ),
    (
        "cluster",
        "read configuration file DIR/walhold.toml:1: key with no value, expected `=`  HINT: write each setting once: name = \"text\" or name = 4, below its [section]",
    ),
];

#[test]
fn files_are_refused_to_the_letter() {
    for (toml, expected) in REFUSED_FILES {
        assert_eq!(
            Scene::new(toml).refusal(&[], &["config"]),
            format!("walhold: ERROR: {expected}\n"),
            "for {toml:?}"
        );
    }
}

#[test]
fn variables_are_refused_to_the_letter() {
    let scene = Scene::new("");
    for (variable, value, expected) in [
        (
            "WALHOLD_REPOSITRY",
            "file:///x",
            "unknown environment variable WALHOLD_REPOSITRY  HINT: did you mean WALHOLD_REPOSITORY?",
        ),
        (
            "WALHOLD_COLOUR",
            "red",
            "unknown environment variable WALHOLD_COLOUR  HINT: docs/configuration.md lists every setting; walhold config shows those in effect",
        ),
        (
            "WALHOLD_ENCRYPTION_KEY_FILE",
            "",
            "setting encryption.key_file (variable WALHOLD_ENCRYPTION_KEY_FILE): the value is empty; expected absolute paths, as a list in TOML or separated by colons, or unset the variable  HINT: docs/configuration.md lists every setting with what it takes",
        ),
        (
            "WALHOLD_STATE_DIR",
            "state",
            "setting state_dir (variable WALHOLD_STATE_DIR): expected an absolute path, found \"state\"  HINT: docs/configuration.md lists every setting with what it takes",
        ),
        (
            "WALHOLD_CONFIG",
            "",
            "setting configuration file (variable WALHOLD_CONFIG): the value is empty; expected a path, or unset the variable  HINT: docs/configuration.md lists every setting with what it takes",
        ),
        (
            "WALHOLD_CONFIG",
            "/nowhere/walhold.toml",
            "read configuration file /nowhere/walhold.toml: No such file or directory  HINT: the file was named by --config or WALHOLD_CONFIG, or is the default file",
        ),
    ] {
        assert_eq!(scene.refusal(&[(variable, value)], &["config"]), format!("walhold: ERROR: {expected}\n"));
    }
}

#[test]
fn kubernetes_may_describe_a_service_called_walhold() {
    let variables = [
        ("WALHOLD_SERVICE_HOST", "10.0.0.1"),
        ("WALHOLD_SERVICE_PORT", "8080"),
        ("WALHOLD_SERVICE_PORT_METRICS", "8080"),
        ("WALHOLD_PORT", "tcp://10.0.0.1:8080"),
        ("WALHOLD_PORT_8080_TCP_ADDR", "10.0.0.1"),
    ];
    assert!(Scene::new("").run(&variables, &["config"]).status.success());
}

#[test]
fn flags_are_refused_to_the_letter() {
    let refusal = Scene::new("").refusal(&[], &["--log-level", "loud", "config"]);
    let expected = "setting log.level (flag --log-level): expected error, warn, info, debug or trace, found \"loud\"  HINT: docs/configuration.md lists every setting with what it takes";
    assert_eq!(refusal, format!("walhold: ERROR: {expected}\n"));
}

#[test]
fn bad_settings_never_read_as_an_answer_to_postgresql() {
    let scene = Scene::new("colour = 1\n");
    let push = scene.run(&[], &["wal-push", "pg_wal/000000010000000000000001"]);
    assert_eq!(push.status.code(), Some(3), "{push:?}");
    let fetch = scene.run(&[], &["wal-fetch", "000000010000000000000001", "pg_wal/RECOVERYXLOG"]);
    assert_eq!(fetch.status.code(), Some(203), "{fetch:?}");
}

#[test]
fn a_missing_repository_is_said() {
    let refusal = Scene::new("").refusal(&[], &["backup-list"]);
    assert_eq!(
        refusal,
        "walhold: ERROR: no repository is configured  HINT: set WALHOLD_REPOSITORY, --repository or repository.url in \
         /etc/walhold/walhold.toml, for example to file:///srv/walhold or s3://bucket/prefix\n"
    );
}

#[test]
fn config_hides_secrets() {
    let toml = r#"
connection = "host=db user=me password=geheim1"

[repository]
url = "s3://bucket/prefix"

[repository.options]
aws_access_key_id = "geheim2"
aws_secret_access_key = "geheim3"
aws_session_token = "geheim4"
azure_storage_sas_key = "geheim5"
region = "eu-central-1"

[encryption]
key_command = "vault read -token=geheim6 secret/walhold"
"#;
    let scene = Scene::new(toml);
    for arguments in [&["config"][..], &["config", "--json"]] {
        let output = scene.run(&[], arguments);
        assert!(output.status.success(), "{output:?}");
        let shown = text(&output.stdout);
        assert!(!shown.contains("geheim"), "{shown}");
        assert!(
            shown.contains("eu-central-1") && shown.contains("host=db") && shown.contains("vault"),
            "{shown}"
        );
    }
    let config = Config::from_toml(toml, Path::new("walhold.toml")).expect("the settings are right");
    assert_eq!(config.repository.options["aws_secret_access_key"], "geheim3");
    let debug = format!("{config:?} {:?} {:?}", config.encryption, config.repository);
    assert!(!debug.contains("geheim"), "{debug}");
}

#[test]
fn a_secret_in_a_bad_value_is_not_quoted() {
    let key = "3b1f".repeat(16);
    for toml in [
        format!("[encryption]\nkey_file = \"{key}\""),
        format!("[encryption]\nkey_file = [\"/key\", \"{key}\"]"),
        format!("repository = \"s3://user:{key}@bucket\""),
        format!("repository = \"az://container?sig={key}\""),
    ] {
        let refusal = Scene::new(&toml).refusal(&[], &["config"]);
        assert!(!refusal.contains(&key), "{refusal}");
    }
}

/// Writes a key file and reads it as walhold would; the failure's text with the directory's name replaced.
fn read_key(bytes: &[u8], mode: u32) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("make a directory");
    let path = directory.path().join("key");
    fs::write(&path, bytes).expect("write the key file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set its mode");
    let toml = format!("[encryption]\nkey_file = {:?}", path.display().to_string());
    let config = Config::from_toml(&toml, Path::new("walhold.toml")).expect("the settings are right");
    match config.key_ring() {
        Ok(ring) => {
            assert!(ring.encrypts());
            Ok(())
        }
        Err(failure) => Err(failure.to_string().replace(&directory.path().display().to_string(), "DIR")),
    }
}

#[test]
fn keys_are_read_and_refused_to_the_letter() {
    let good = format!("{}\n", "3b".repeat(32));
    assert_eq!(read_key(good.as_bytes(), 0o600), Ok(()));
    assert_eq!(read_key(good.as_bytes(), 0o400), Ok(()));
    let hint = "HINT: make one with: walhold keygen > FILE; chmod 600 FILE";
    for (bytes, mode, expected) in [
        (
            good.as_bytes(),
            0o640,
            "encryption key file DIR/key is open to others than its owner (mode 0640) HINT: chmod 600 DIR/key".to_owned(),
        ),
        (
            good.as_bytes(),
            0o604,
            "encryption key file DIR/key is open to others than its owner (mode 0604) HINT: chmod 600 DIR/key".to_owned(),
        ),
        (
            "3b".repeat(31).as_bytes(),
            0o600,
            format!("read encryption key file DIR/key: an encryption key has 32 bytes (64 hexadecimal digits or 44 of base64), this one has 31 {hint}"),
        ),
        (
            b"\xff\xfe",
            0o600,
            format!("read encryption key file DIR/key: an encryption key is 64 hexadecimal digits or 44 characters of base64 {hint}"),
        ),
    ] {
        assert_eq!(read_key(bytes, mode), Err(expected));
    }
}

/// A key that is a byte short, or open to others, ends every command before it does anything. (wal-push and wal-fetch: tests/wal_push.rs.)
#[test]
fn a_wrong_key_ends_every_command() {
    let scene = Scene::new("");
    let key = scene.path("key");
    let url = format!("file://{}", scene.path("repository").display());
    let variables = [
        ("WALHOLD_REPOSITORY", url.as_str()),
        ("WALHOLD_ENCRYPTION_KEY_FILE", key.to_str().expect("a path in UTF-8")),
    ];
    let make = "  HINT: make one with: walhold keygen > FILE; chmod 600 FILE";
    for (text, mode, expected) in [
        (
            "3b".repeat(31),
            0o600,
            format!("read encryption key file DIR/key: an encryption key has 32 bytes (64 hexadecimal digits or 44 of base64), this one has 31{make}"),
        ),
        (
            "3b".repeat(32),
            0o644,
            "encryption key file DIR/key is open to others than its owner (mode 0644)  HINT: chmod 600 DIR/key".to_owned(),
        ),
    ] {
        fs::write(&key, &text).expect("write the key file");
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("set its mode");
        let pgdata = scene.directory.path().join("data").display().to_string();
        for arguments in [vec!["backup-list"], vec!["restore", "--pgdata", &pgdata]] {
            let output = scene.run(&variables, &arguments);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
            let said = text_without(&output.stderr, &scene);
            assert_eq!(said, format!("walhold: ERROR: {expected}\n"), "{arguments:?}");
            assert!(!said.contains("3b3b"));
            assert!(!scene.path("data").exists() && !scene.path("repository").exists());
        }
    }
}

fn text_without(bytes: &[u8], scene: &Scene) -> String {
    text(bytes).replace(&scene.directory.path().display().to_string(), "DIR")
}

#[test]
fn a_key_file_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    let directory = tempfile::tempdir().expect("make a directory");
    let path = directory.path().join("key");
    fs::write(&path, "3b".repeat(32)).expect("write the key file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set its mode");
    std::os::unix::fs::chown(&path, Some(4242), None).expect("give it away");
    let toml = format!("[encryption]\nkey_file = {:?}", path.display().to_string());
    let config = Config::from_toml(&toml, Path::new("walhold.toml")).expect("the settings are right");
    let failure = config.key_ring().expect_err("it is another user's").to_string();
    assert!(failure.contains("belongs to user 4242, not to root"), "{failure}");
}

#[test]
fn a_key_command_is_asked() {
    let ring = |command: &str| {
        let toml = format!("[encryption]\nkey_command = {command:?}");
        Config::from_toml(&toml, Path::new("walhold.toml")).expect("the settings are right").key_ring()
    };
    let (first, second) = ("3b".repeat(32), "4c".repeat(32));
    let both = ring(&format!("echo {first}; echo {second}")).expect("two keys");
    let only_first = ring(&format!("echo {first}")).expect("one key");
    let writing = |ring: &walhold::codec::KeyRing| ring.writing_key().map(|key| key.id());
    assert_eq!(writing(&both), writing(&only_first));
    let failure = |command: &str| ring(command).expect_err("no key").to_string();
    assert_eq!(
        failure("echo vault is sealed >&2; exit 2"),
        "run encryption.key_command: exit status: 2: vault is sealed HINT: run it by hand as the user that runs \
         walhold; it must print the key within 30 seconds"
    );
    assert!(failure("true").starts_with("run encryption.key_command: it printed nothing"));
    let wrong = failure(&format!("echo {}", "3b".repeat(31)));
    assert!(
        wrong.starts_with("read what encryption.key_command printed: ") && !wrong.contains("3b3b"),
        "{wrong}"
    );
}

#[test]
fn settings_can_be_carried_to_another_process() {
    let sources = walhold::config::Sources {
        flags: vec![("--repository", "file:///srv/walhold".into())],
        config_flag: None,
        variables: vec![
            ("WALHOLD_ENCRYPTION_KEY_FILE".into(), "/a:/b".into()),
            ("WALHOLD_CONNECTION".into(), "password=geheim".into()),
            ("WALHOLD_WAL_FETCH_DEADLINE".into(), "90s".into()),
        ],
        default_file: None,
    };
    let carried = Config::load(&sources).expect("the settings are right").carried_variables();
    let expected = [
        ("WALHOLD_REPOSITORY", "file:///srv/walhold"),
        ("WALHOLD_ENCRYPTION_KEY_FILE", "/a:/b"),
        ("WALHOLD_WAL_FETCH_DEADLINE", "90s"),
    ];
    assert_eq!(carried, expected.map(|(name, value)| (name, value.to_owned())));
}

/// The rows of the table in docs/configuration.md.
fn documented_table() -> String {
    let code = |text: &str| format!("`{text}`");
    let mut table =
        "| TOML key | variable | flag | allowed | default | meaning |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for setting in SETTINGS {
        let variable = match setting.foreign_variable {
            Some(foreign) => format!("`{}`, else `{foreign}`", setting.variable),
            None => code(setting.variable),
        };
        let default = match setting.default {
            Fallback::Unset => "not set".to_owned(),
            Fallback::Text(text) => code(text),
            Fallback::Computed(text) => text.to_owned(),
        };
        table.push_str(&format!(
            "| `{}` | {variable} | {} | {} | {default} | {} |\n",
            setting.key,
            setting.flag.map(code).unwrap_or_default(),
            setting.kind.allowed(),
            setting.meaning
        ));
    }
    table
}

/// `UPDATE_DOCS=1 cargo test --test config` rewrites the table.
#[test]
fn the_documented_table_is_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let document = fs::read_to_string(&path).expect("read docs/configuration.md");
    let (begin, end) = ("<!-- settings: begin -->\n", "<!-- settings: end -->");
    let (before, rest) = document.split_once(begin).expect("the table's begin");
    let (table, after) = rest.split_once(end).expect("the table's end");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{begin}{}{end}{after}", documented_table()))
            .expect("write the document");
        return;
    }
    assert_eq!(table, documented_table(), "run: UPDATE_DOCS=1 cargo test --test config");
}
