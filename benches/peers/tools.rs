//! How each tool is called: the same repository kind, zstd level 1, all cores.

use std::path::{Path, PathBuf};

use crate::cluster::{Cluster, as_postgres, directory_of_postgres};
use crate::measure::Invocation;
use crate::object_server::BUCKET;

/// A competitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    /// This project's release build.
    Walhold,
    /// WAL-G's Rust rewrite.
    WalRus,
    /// Debian's pgBackRest.
    PgBackRest,
}

impl Tool {
    /// All of them, walhold first.
    pub const ALL: [Tool; 3] = [Tool::Walhold, Tool::WalRus, Tool::PgBackRest];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Walhold => "walhold",
            Tool::WalRus => "WAL-RUS",
            Tool::PgBackRest => "pgBackRest",
        }
    }
}

/// Where the repositories are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Store {
    /// Directories of this machine.
    Directory,
    /// Prefixes of a bucket at this endpoint.
    S3(String),
}

impl Store {
    /// The tools that can be measured with it: pgBackRest speaks S3 over TLS alone.
    pub fn tools(&self) -> &'static [Tool] {
        match self {
            Store::Directory => &Tool::ALL,
            Store::S3(_) => &[Tool::Walhold, Tool::WalRus],
        }
    }
}

/// Programs and repositories of one benchmark run.
pub struct Bench {
    /// Where the repositories are.
    pub store: Store,
    /// What tells this set of repositories from others.
    label: String,
    /// Everything lies below it.
    pub root: PathBuf,
    walhold: PathBuf,
    walrus: PathBuf,
    cores: String,
}

impl Bench {
    /// Copies the programs where `postgres` can run them, and makes empty repositories.
    pub fn prepare(root: &Path, walhold: &Path, walrus: &Path, cluster: &Cluster) -> Bench {
        let bin = root.join("bin");
        directory_of_postgres(&bin);
        let copy = |from: &Path, name: &str| {
            let to = bin.join(name);
            std::fs::copy(from, &to).expect("copy a program");
            to
        };
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get()).to_string();
        let bench = Bench {
            store: Store::Directory,
            label: String::new(),
            root: root.to_owned(),
            walhold: copy(walhold, "walhold"),
            walrus: copy(walrus, "walrus"),
            cores,
        };
        bench.initialise(cluster);
        bench
    }

    /// The same tools with empty repositories elsewhere.
    pub fn elsewhere(&self, store: Store, cluster: &Cluster) -> Bench {
        self.with(store, self.label.clone(), cluster)
    }

    /// The same tools with empty repositories in the same store.
    pub fn fresh(&self, label: &str, cluster: &Cluster) -> Bench {
        self.with(self.store.clone(), format!("-{}", label.replace(' ', "-")), cluster)
    }

    fn with(&self, store: Store, label: String, cluster: &Cluster) -> Bench {
        let (root, walhold, walrus) = (self.root.clone(), self.walhold.clone(), self.walrus.clone());
        let bench = Bench { store, label, root, walhold, walrus, cores: self.cores.clone() };
        bench.initialise(cluster);
        bench
    }

    fn initialise(&self, cluster: &Cluster) {
        directory_of_postgres(&self.state());
        if self.store == Store::Directory {
            for tool in Tool::ALL {
                directory_of_postgres(&self.repository(tool));
            }
            self.configure_pgbackrest(cluster);
        }
        crate::measure::measure(&self.invocation(Tool::Walhold, cluster, &["init"]));
    }

    /// A tool's repository directory.
    pub fn repository(&self, tool: Tool) -> PathBuf {
        self.root.join(format!("repository-{}{}", tool.name(), self.label))
    }

    fn state(&self) -> PathBuf {
        self.root.join(format!("state{}", self.label))
    }

    fn pgbackrest_configuration(&self) -> PathBuf {
        self.root.join(format!("pgbackrest{}.conf", self.label))
    }

    fn configure_pgbackrest(&self, cluster: &Cluster) {
        let configuration = self.pgbackrest_configuration();
        let logs = self.root.join(format!("pgbackrest-log{}", self.label));
        directory_of_postgres(&logs);
        let text = format!(
            "[global]\nrepo1-path={}\ncompress-type=zst\ncompress-level=1\nprocess-max={}\nlog-path={}\nlock-path={}\nspool-path={}\n\
             start-fast=y\nlog-level-file=off\nlog-level-console=error\nrepo1-retention-full=9\narchive-check=n\n\n[main]\npg1-path={}\npg1-port=54999\npg1-socket-path={}\n",
            self.repository(Tool::PgBackRest).display(),
            self.cores,
            logs.display(),
            logs.display(),
            logs.display(),
            cluster.data.display(),
            cluster.socket.display(),
        );
        std::fs::write(&configuration, text).expect("write pgbackrest.conf");
        let option = format!("--config={}", configuration.display());
        as_postgres(&self.root, "pgbackrest", &[&option, "--stanza=main", "stanza-create"]);
    }

    /// Lets pgBackRest store blocks instead of files.
    pub fn allow_block_incrementals(&self) {
        let configuration = self.pgbackrest_configuration();
        let text = std::fs::read_to_string(&configuration).expect("read pgbackrest.conf");
        let text = text.replace("[global]\n", "[global]\nrepo1-bundle=y\nrepo1-block=y\nbeta=y\n");
        std::fs::write(&configuration, text).expect("write pgbackrest.conf");
    }

    /// A call of a tool with its settings.
    pub fn invocation(&self, tool: Tool, cluster: &Cluster, arguments: &[&str]) -> Invocation {
        let text = |path: &Path| path.display().to_string();
        let mut environment = cluster.environment();
        let mut add = |name: &str, value: String| environment.push((name.to_owned(), value));
        if let Store::S3(endpoint) = &self.store {
            for (name, value) in [
                ("AWS_ENDPOINT", endpoint.as_str()),
                ("AWS_ACCESS_KEY_ID", "benchmark"),
                ("AWS_SECRET_ACCESS_KEY", "benchmark"),
                ("AWS_REGION", "us-east-1"),
                ("AWS_ALLOW_HTTP", "true"),
                ("AWS_S3_FORCE_PATH_STYLE", "true"),
            ] {
                add(name, value.to_owned());
            }
        }
        let mut words = match tool {
            Tool::Walhold => {
                let url = match self.store {
                    Store::Directory => format!("file://{}", text(&self.repository(tool))),
                    Store::S3(_) => format!("s3://{BUCKET}/walhold{}", self.label),
                };
                add("WALHOLD_REPOSITORY", url);
                add("WALHOLD_STATE_DIR", text(&self.state()));
                vec![text(&self.walhold)]
            }
            Tool::WalRus => {
                match self.store {
                    Store::Directory => add("WALG_FILE_PREFIX", text(&self.repository(tool))),
                    Store::S3(_) => add("WALG_S3_PREFIX", format!("s3://{BUCKET}/walrus{}", self.label)),
                }
                add("WALG_COMPRESSION_METHOD", "zstd".to_owned());
                add("WALG_UPLOAD_CONCURRENCY", self.cores.clone());
                add("WALG_UPLOAD_DISK_CONCURRENCY", self.cores.clone());
                add("WALG_DOWNLOAD_CONCURRENCY", self.cores.clone());
                vec![text(&self.walrus)]
            }
            Tool::PgBackRest => {
                let config = format!("--config={}", text(&self.pgbackrest_configuration()));
                vec!["pgbackrest".to_owned(), config, "--stanza=main".to_owned()]
            }
        };
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        Invocation { words, directory: cluster.data.clone(), environment }
    }

    /// A call that fetches one segment, with whatever the tool does beside it.
    pub fn fetch(&self, tool: Tool, cluster: &Cluster, name: &str, to: &str) -> Invocation {
        let verb = if tool == Tool::PgBackRest { "archive-get" } else { "wal-fetch" };
        self.invocation(tool, cluster, &[verb, name, to])
    }

    /// A call that fetches one segment, and nothing in the background that the next fetch would profit from.
    pub fn fetch_alone(&self, tool: Tool, cluster: &Cluster, name: &str, to: &str) -> Invocation {
        let mut call = self.fetch(tool, cluster, name, to);
        if tool == Tool::WalRus {
            // Its prefetch begins at two.
            call.environment.retain(|(name, _)| name != "WALG_DOWNLOAD_CONCURRENCY");
            call.environment.push(("WALG_DOWNLOAD_CONCURRENCY".to_owned(), "1".to_owned()));
        }
        call
    }

    /// A tool's archive_command, every setting in it, since the server's environment is not ours.
    pub fn archive_command(&self, tool: Tool, cluster: &Cluster) -> String {
        let verb = match tool {
            Tool::PgBackRest => "archive-push",
            Tool::Walhold | Tool::WalRus => "wal-push",
        };
        format!("{} %p", self.as_command(&self.invocation(tool, cluster, &[verb])))
    }

    /// A call with every setting in it, for a shell without our environment.
    pub fn as_command(&self, call: &Invocation) -> String {
        let settings = call.environment.iter().map(|(name, value)| format!("{name}={value} "));
        format!("env {}{}", settings.collect::<String>(), call.words.join(" "))
    }
}
