//! A repository in a bucket, reached through a proxy that can fail.

use std::path::PathBuf;

use super::archive::{Archive, contents};
use super::fault_proxy::FaultProxy;
use super::stores::{ACCESS_KEY, BUCKET, Conditions, S3Server, SECRET_KEY};
use super::wal_files::WalFiles;

/// An S3 server, a proxy before it, and a data directory whose WAL goes there.
pub struct Cloud {
    pub server: S3Server,
    pub proxy: FaultProxy,
    pub archive: Archive,
}

impl Cloud {
    /// With a repository. These settings hold from the beginning.
    pub fn start(files: &WalFiles, conditions: Conditions, settings: &[(&str, &str)]) -> Cloud {
        let server = S3Server::start(conditions);
        let proxy = FaultProxy::start(server.addr());
        let mut archive = Archive::without_repository(files);
        archive.set("WALHOLD_REPOSITORY", &format!("s3://{BUCKET}/prefix"));
        archive.set("AWS_ENDPOINT_URL", &format!("http://{}", proxy.addr()));
        archive.set("AWS_REGION", "us-east-1");
        archive.set("AWS_ACCESS_KEY_ID", ACCESS_KEY);
        archive.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        for (name, value) in settings {
            archive.set(name, value);
        }
        archive.walhold(["init"]).expect_success();
        Cloud { server, proxy, archive }
    }

    /// Past the proxy from now on.
    pub fn go_directly(&mut self) {
        self.archive.set("AWS_ENDPOINT_URL", &format!("http://{}", self.server.addr()));
    }

    /// The paths of all objects in the bucket.
    pub fn stored(&self) -> Vec<String> {
        let stored = contents(&self.server.bucket_directory());
        // The server's own notes lie beside the objects.
        stored.into_keys().filter(|path| path.starts_with("prefix/")).collect()
    }

    /// The file of the object whose path ends so.
    pub fn object(&self, ending: &str) -> PathBuf {
        let path = self.stored().into_iter().find(|path| path.ends_with(ending));
        self.server.bucket_directory().join(path.unwrap_or_else(|| panic!("{ending} is not stored")))
    }
}
