//! Azurite and a Google Cloud Storage emulator: real server processes, fetched once into the tests' cache.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use walhold::repository::RepositorySettings;

use super::gcs_gateway::{Gateway, Reports};
use super::postgres::installation::{cache_directory, create_open_directory, lock, run};
use super::stores::{BUCKET, settings};

const AZURITE: &str = "3.35.0";
const GCS_EMULATOR: &str = "2026.7.19";
/// Azurite's own account; its key is public.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Creates a container: object_store cannot.
const CREATE_CONTAINER: &str = r#"
const [port, account, key, container] = process.argv.slice(1);
const date = new Date().toUTCString(), version = "2021-08-06";
const text = `PUT${"\n".repeat(12)}x-ms-date:${date}\nx-ms-version:${version}\n` +
    `/${account}/${account}/${container}\nrestype:container`;
const signature = require("crypto").createHmac("sha256", Buffer.from(key, "base64")).update(text).digest("base64");
const headers = { "x-ms-date": date, "x-ms-version": version, "Content-Length": 0,
    "Authorization": `SharedKey ${account}:${signature}` };
const path = `/${account}/${container}?restype=container`;
const request = require("http").request({ host: "127.0.0.1", port, path, method: "PUT", headers }, (answer) => {
    if (answer.statusCode !== 201) { console.error(answer.statusCode, answer.statusMessage); process.exit(1); }
    answer.resume();
});
request.end();
"#;

/// A server that ends with the test.
struct Process(Child);

impl Process {
    /// Starts a server and waits until it listens.
    fn start(command: &mut Command, addr: SocketAddr) -> Process {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut process = Process(child.unwrap_or_else(|e| panic!("start {command:?}: {e}")));
        let begun = Instant::now();
        while TcpStream::connect(addr).is_err() {
            if let Some(status) = process.0.try_wait().expect("look after the server") {
                panic!("{command:?} ended: {status}");
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{command:?} does not listen on {addr}");
            std::thread::sleep(Duration::from_millis(50));
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that dies with the thread that starts it, so that an aborted test leaves no server behind.
fn bound_to_test(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

/// Fills a directory of the cache once, whoever comes first.
fn installed(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let directory = cache_directory().join(name);
    let complete = directory.join("complete");
    let _lock = lock(name);
    if !complete.exists() {
        let _ = std::fs::remove_dir_all(&directory);
        create_open_directory(&directory);
        install(&directory);
        std::fs::write(complete, "").expect("mark the installation as complete");
    }
    directory
}

/// Azure's emulator with one empty container.
pub struct Azurite {
    addr: SocketAddr,
    _process: Process,
    _data: tempfile::TempDir,
}

impl Azurite {
    /// Starts it on a port of its own.
    pub fn start() -> Azurite {
        let installation = installed(&format!("azurite-{AZURITE}"), |directory| {
            let package = format!("azurite@{AZURITE}");
            let arguments = ["install", "--silent", "--no-audit", "--no-fund", "--omit=optional", &package];
            run(Command::new("npm").current_dir(directory).args(arguments));
        });
        let data = tempfile::tempdir().expect("a temporary directory");
        let addr = free_address();
        let program = installation.join("node_modules/azurite/dist/src/blob/main.js");
        let mut command = bound_to_test(Path::new("node"));
        command.arg(program).args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location"]);
        command.arg(data.path()).args(["--blobHost", "127.0.0.1", "--blobPort", &addr.port().to_string()]);
        let process = Process::start(&mut command, addr);
        let port = addr.port().to_string();
        run(Command::new("node").args(["-e", CREATE_CONTAINER, &port, ACCOUNT, ACCOUNT_KEY, BUCKET]));
        Azurite { addr, _process: process, _data: data }
    }

    /// A repository under this prefix.
    pub fn settings(&self, prefix: &str) -> RepositorySettings {
        let endpoint = format!("http://{}/{ACCOUNT}", self.addr);
        let options = [("account_name", ACCOUNT), ("access_key", ACCOUNT_KEY), ("endpoint", &endpoint)];
        settings(&format!("az://{BUCKET}/{prefix}"), &options)
    }
}

/// A Google Cloud Storage emulator with one empty bucket. It speaks Google's JSON interface alone, and object_store
/// the XML one: a gateway stands between them.
pub struct GcsEmulator {
    gateway: Gateway,
    _process: Process,
}

impl GcsEmulator {
    /// Starts it on a port of its own.
    pub fn start(reports: Reports) -> GcsEmulator {
        let installation = installed(&format!("gcp-storage-emulator-{GCS_EMULATOR}"), |directory| {
            run(Command::new("python3").args(["-m", "venv"]).arg(directory.join("venv")));
            let package = format!("gcp-storage-emulator=={GCS_EMULATOR}");
            run(Command::new(directory.join("venv/bin/pip")).args(["install", "--quiet", &package]));
        });
        let addr = free_address();
        let mut command = bound_to_test(&installation.join("venv/bin/python"));
        command.args(["-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--in-memory"]);
        command.args(["--port", &addr.port().to_string(), "--default-bucket", BUCKET]);
        let process = Process::start(&mut command, addr);
        GcsEmulator { gateway: Gateway::start(addr, reports), _process: process }
    }

    /// A repository under this prefix.
    pub fn settings(&self, prefix: &str) -> RepositorySettings {
        let base_url = format!("http://{}", self.gateway.addr());
        let options = [("base_url", base_url.as_str()), ("bearer_token", "token")];
        settings(&format!("gs://{BUCKET}/{prefix}"), &options)
    }
}
