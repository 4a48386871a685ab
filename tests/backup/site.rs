//! A cluster that archives into a repository of its own, and what its backups hold.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use walhold::backup::list::{BackupName, Catalogue};
use walhold::codec::decode::{ChunkOpener, PackFacts};
use walhold::codec::{KeyRing, MasterKey};
use walhold::format::digest::ShortDigest;
use walhold::format::envelope::{ObjectFacts, ObjectKind};
use walhold::format::manifest::{FileEntry, Manifest, RangeSource, Root};
use walhold::format::{BackupId, ClusterName, keys};
use walhold::repository::{Naming, Patience, Repository, RepositorySettings, StoredObject};

use crate::support::fault_proxy::FaultProxy;
use crate::support::postgres::installation::ServerUser;
use crate::support::postgres::{Cluster, ClusterBuilder};
use crate::support::program::{describe, walhold, walhold_command};
use crate::support::stores::{Conditions, S3Server, directory, s3_settings};

/// Where in its bucket a repository lies.
const PREFIX: &str = "prefix";

/// Where a site's repository lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// In a directory.
    Directory,
    /// On an S3 server, over HTTP.
    Bucket,
}

/// An S3 server in this process, and the proxy before it that walhold is told of.
pub struct Bucket {
    pub server: S3Server,
    pub proxy: FaultProxy,
}

pub struct Site {
    pub cluster: Cluster,
    /// The directory that holds its objects as files, whatever it is for walhold.
    pub repository: PathBuf,
    /// Variables for walhold beside the server's.
    pub variables: Vec<(String, String)>,
    /// If it lies in a bucket.
    pub bucket: Option<Bucket>,
}

impl Site {
    /// initdb, `init`, archiving on; not started.
    pub fn create(builder: ClusterBuilder) -> Site {
        Site::create_in(Home::Directory, builder)
    }

    /// The same with a repository elsewhere.
    pub fn create_in(home: Home, builder: ClusterBuilder) -> Site {
        let cluster = builder.create();
        let mut site = match home {
            Home::Directory => {
                let repository = cluster.directory("repository");
                let url = format!("file://{}", repository.display());
                let variables = vec![("WALHOLD_REPOSITORY".to_owned(), url)];
                Site { cluster, repository, variables, bucket: None }
            }
            Home::Bucket => Site::in_bucket(cluster),
        };
        site.ok(&["init"]);
        site.archive();
        site
    }

    /// Settings in a file, because a restored server is told of no secrets.
    fn in_bucket(cluster: Cluster) -> Site {
        let server = S3Server::start(Conditions::Enforced);
        let proxy = FaultProxy::start(server.addr());
        let RepositorySettings { url, options } = s3_settings(proxy.addr(), PREFIX);
        let mut text = format!("[repository]\nurl = \"{url}\"\n\n[repository.options]\n");
        options.iter().for_each(|(name, value)| text.push_str(&format!("{name} = \"{value}\"\n")));
        let file = cluster.directory("configuration").join("walhold.toml");
        fs::write(&file, text).expect("write the configuration");
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("restrict the configuration");
        ServerUser::get().own(&file);
        Site {
            cluster,
            repository: server.bucket_directory().join(PREFIX),
            variables: vec![("WALHOLD_CONFIG".to_owned(), file.display().to_string())],
            bucket: Some(Bucket { server, proxy }),
        }
    }

    pub fn start(builder: ClusterBuilder) -> Site {
        let mut site = Site::create(builder);
        site.cluster.start();
        site
    }

    /// The same with an encryption key.
    pub fn start_encrypted(builder: ClusterBuilder) -> Site {
        let mut site = Site::create(builder);
        site.encrypt();
        site.cluster.start();
        site
    }

    /// What is stored from now on is encrypted. To be called before the server starts.
    pub fn encrypt(&mut self) {
        let key = self.cluster.directory("key").join("key");
        fs::write(&key, "0123456789abcdef".repeat(4)).expect("write the key");
        ServerUser::get().own(&key);
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("restrict the key");
        self.variables.push(("WALHOLD_ENCRYPTION_KEY_FILE".to_owned(), key.display().to_string()));
        self.archive();
    }

    fn archive(&mut self) {
        let variables: Vec<(&str, &str)> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.cluster.archive_with(walhold(), &variables);
    }

    pub fn variables(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = walhold_command();
        command.envs(self.cluster.environment()).envs(self.variables()).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("run walhold")
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "walhold {arguments:?}: {}", describe(&output));
        String::from_utf8(output.stdout).expect("UTF-8 output")
    }

    /// The one line on standard error that a command which must fail ends with, and its status.
    pub fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "walhold {arguments:?} did not fail: {}", describe(&output));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("walhold: ").filter(|line| line.starts_with("ERROR")));
        (output.status.code().unwrap_or(-1), line.unwrap_or_default().to_owned())
    }

    /// `backup-push --json`.
    pub fn back_up(&self) -> Value {
        serde_json::from_str(&self.ok(&["backup-push", "--json"])).expect("JSON")
    }

    /// `backup-list --json`.
    pub fn list(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.ok(&["backup-list", "--json"])).expect("JSON");
        list.as_array().expect("an array").clone()
    }

    pub fn keys(&self) -> KeyRing {
        let file = self.variables.iter().find(|(name, _)| name == "WALHOLD_ENCRYPTION_KEY_FILE");
        let key = file.map(|(_, path)| MasterKey::parse(&fs::read_to_string(path).unwrap()).unwrap());
        KeyRing::new(key.into_iter().collect())
    }

    pub fn open(&self) -> Repository {
        let settings = match &self.bucket {
            None => directory(&self.repository, &[]),
            Some(bucket) => s3_settings(bucket.server.addr(), PREFIX),
        };
        Repository::open(&settings, Patience::PerRequest(Duration::from_secs(10)))
            .expect("open the repository")
    }

    /// The latest backup, read by the library as restore reads it.
    pub fn contents(&self) -> Contents {
        let (repository, keys, cluster) = (self.open(), self.keys(), ClusterName::default());
        let catalogue = Catalogue { repository: &repository, cluster: &cluster, keys: &keys };
        let manifest = catalogue.manifest(&BackupName::Latest).expect("read the manifest");
        Contents { repository, keys, cluster, manifest }
    }

    /// Everything below a folder of the cluster's.
    pub fn objects(&self, folder: &str) -> Vec<StoredObject> {
        self.open().list(&format!("main/{folder}")).expect("list the repository")
    }
}

/// A backup's manifest, and the way to its packs.
pub struct Contents {
    repository: Repository,
    keys: KeyRing,
    cluster: ClusterName,
    pub manifest: Manifest,
}

impl Contents {
    pub fn paths(&self) -> Vec<String> {
        let in_pgdata = |file: &&FileEntry| file.root == Root::DataDirectory;
        self.manifest.files.iter().filter(in_pgdata).map(|file| text(&file.path)).collect()
    }

    pub fn file(&self, path: &str) -> &FileEntry {
        let found = self.manifest.files.iter().find(|file| text(&file.path) == path);
        found.unwrap_or_else(|| panic!("{path} is not in the backup"))
    }

    /// A file's bytes, each range checked against its digest.
    pub fn read(&self, file: &FileEntry) -> Vec<u8> {
        let mut bytes = Vec::new();
        for range in &file.ranges {
            assert_eq!(range.offset, bytes.len() as u64);
            match range.source {
                RangeSource::Zeros => bytes.resize(bytes.len() + range.length as usize, 0),
                RangeSource::Chunk {
                    pack,
                    number,
                    offset,
                    stored_length,
                    plaintext_length,
                    within,
                    digested,
                } => {
                    let chunk = self.chunk(pack, number, offset, stored_length, plaintext_length);
                    let slice =
                        |from: u32, length: u32| &chunk[from as usize..from as usize + length as usize];
                    let whole = slice(digested.within, digested.length);
                    assert_eq!(ShortDigest::of(whole), digested.digest, "{}", text(&file.path));
                    let part = slice(within, range.length);
                    bytes.extend_from_slice(part);
                }
            }
        }
        assert_eq!(bytes.len() as u64, file.size);
        bytes
    }

    fn chunk(&self, pack: u32, number: u32, offset: u64, stored: u32, plaintext_length: u32) -> Vec<u8> {
        let entry = &self.manifest.packs[pack as usize];
        let key = keys::pack(&self.cluster, &entry.backup, entry.number);
        let object = self.repository.find(&key, Naming::Unique).unwrap().expect("a pack");
        assert_eq!(object.size, entry.stored_length);
        let facts = PackFacts {
            facts: ObjectFacts {
                kind: ObjectKind::Pack,
                name: key.name().to_owned(),
                system_identifier: self.manifest.summary.system_identifier,
                segment_size: Some(self.manifest.summary.wal_segment_size),
            },
            key,
            compression: entry.compression,
            key_id: entry.key_id,
            salt: entry.salt,
        };
        let bytes = self.repository.read_range(&object, offset, stored as usize).unwrap();
        let mut plaintext = Vec::new();
        let mut opener = ChunkOpener::new(&facts, &self.keys).unwrap();
        opener.open(number, &bytes, plaintext_length, &mut plaintext).unwrap();
        plaintext
    }

    /// Lays the backup out as a data directory that recovers from the archive; tablespaces go below `spaces`.
    pub fn lay_out(&self, data: &Path, spaces: &Path) {
        let manifest = &self.manifest;
        fs::create_dir_all(data).unwrap();
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        fs::create_dir_all(spaces).unwrap();
        let mut map = String::new();
        for tablespace in &manifest.tablespaces {
            let place = spaces.join(tablespace.oid.to_string());
            fs::create_dir_all(&place).unwrap();
            std::os::unix::fs::symlink(&place, data.join(format!("pg_tblspc/{}", tablespace.oid))).unwrap();
            map += &format!("{} {}\n", tablespace.oid, place.display());
        }
        for directory in &manifest.directories {
            fs::create_dir_all(data.join(path(&directory.path))).unwrap();
        }
        for file in manifest.files.iter().filter(|file| file.root == Root::DataDirectory) {
            fs::write(data.join(path(&file.path)), self.read(file)).unwrap();
        }
        fs::write(data.join("backup_label"), &manifest.backup_label).unwrap();
        if !map.is_empty() {
            fs::write(data.join("tablespace_map"), map).unwrap();
        }
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(data, fs::Permissions::from_mode(0o700)).unwrap();
        ServerUser::get().own(spaces);
        ServerUser::get().own(data);
    }

    /// A running server recovered from the backup and all archived WAL, archiving nothing.
    pub fn recover(&self, site: &Site, name: &str) -> Cluster {
        let root = site.cluster.directory(name);
        let data = root.join("data");
        self.lay_out(&data, &root.join("spaces"));
        let mut copy = Cluster::from_data_directory(site.cluster.major(), &data);
        copy.configure("archive_mode", "off");
        copy.restore_with(walhold(), &site.variables());
        let _ = fs::remove_file(data.join("standby.signal"));
        fs::write(data.join("recovery.signal"), "").unwrap();
        ServerUser::get().own(&data);
        copy.start();
        copy.wait_promoted();
        copy
    }
}

pub fn id_of(summary: &Value) -> BackupId {
    summary["id"].as_str().expect("an id").parse().expect("a backup id")
}

pub fn text(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).expect("a UTF-8 path")
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}
