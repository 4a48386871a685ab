//! What tells whether two runs of walhold write to the same place in the same way.
//!
//! In: the effective settings, and what of the environment leads a store's client elsewhere. Out: a digest, which goes into local notes and into what an
//! agent is asked. What must hold: two runs that would not find each other's objects have different digests; no secret goes in.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{Config, redact};
use crate::format::Digest;
use crate::repository;

/// Collects fields so that no two lists of fields give the same bytes.
#[derive(Default)]
pub struct Fields(blake3::Hasher);

impl Fields {
    /// Adds one field.
    pub fn add(&mut self, bytes: &[u8]) -> &mut Fields {
        self.0.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        self
    }

    /// The digest of all of them.
    pub fn digest(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

impl Config {
    /// Repository, options, the store's environment, compression, where keys come from, and this version of walhold. Not the cluster's name: one agent serves
    /// several clusters.
    pub fn fingerprint(&self) -> Digest {
        let mut fields = Fields::default();
        fields.add(&self.settings_fingerprint().0);
        if !self.repository.url.starts_with("file:") {
            add_store_environment(&mut fields, &self.repository.url);
        }
        fields.digest()
    }

    /// [`Config::fingerprint`] without the environment, which an agent need not share with PostgreSQL: see [`store_variables`].
    pub fn settings_fingerprint(&self) -> Digest {
        let mut fields = Fields::default();
        fields.add(env!("CARGO_PKG_VERSION").as_bytes());
        fields.add(self.repository.url.as_bytes());
        for (key, value) in &self.repository.options {
            let value = if redact::is_secret_option(key) { "" } else { value };
            fields.add(key.as_bytes()).add(value.as_bytes());
        }
        fields.add(format!("{:?}", self.compression).as_bytes());
        for path in &self.encryption.key_files {
            fields.add(path.as_os_str().as_encoded_bytes());
            add_file_facts(&mut fields, path);
        }
        fields.add(self.encryption.key_command.as_deref().unwrap_or_default().as_bytes());
        fields.digest()
    }
}

/// The variables that lead the client of this repository's store somewhere and hold no secret, in order. Those that it does not read (`AWS_CA_BUNDLE` is in many environments) say nothing.
pub fn store_variables(url: &str) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .filter(|(name, _)| repository::reads_variable(url, name))
        .filter(|(name, _)| !redact::is_secret_option(name))
        .collect();
    variables.sort();
    variables
}

fn add_store_environment(fields: &mut Fields, url: &str) {
    for (name, value) in store_variables(url) {
        fields.add(name.as_bytes()).add(value.as_bytes());
    }
    // A profile may name another endpoint.
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    for (variable, default) in
        [("AWS_CONFIG_FILE", ".aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")]
    {
        let path = std::env::var_os(variable).map_or_else(|| home.join(default), PathBuf::from);
        add_file_facts(fields, &path);
    }
}

/// Which file a path leads to and when it was last changed, unread.
fn add_file_facts(fields: &mut Fields, path: &std::path::Path) {
    let facts = fs::metadata(path)
        .map(|found| (found.dev(), found.ino(), found.len(), found.ctime(), found.ctime_nsec()));
    fields.add(format!("{:?}", facts.ok()).as_bytes());
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn other_settings_have_another_fingerprint_and_a_secret_has_none() {
        let of = |text: &str| Config::from_toml(text, Path::new("x.toml")).unwrap().fingerprint();
        let plain = of("repository = \"file:///a\"");
        assert_eq!(plain, of("repository = \"file:///a\"\ncluster = \"blue\""));
        assert_ne!(plain, of("repository = \"file:///b\""));
        assert_ne!(plain, of("repository = \"file:///a\"\n[compression]\nlevel = 3"));
        assert_ne!(plain, of("repository = \"file:///a\"\n[encryption]\nkey_file = \"/k\""));
        let options =
            |options: &str| of(&format!("[repository]\nurl = \"s3://b/p\"\n[repository.options]\n{options}"));
        assert_ne!(options("endpoint = \"http://a\""), options("endpoint = \"http://b\""));
        assert_eq!(options("secret_access_key = \"a\""), options("secret_access_key = \"b\""));
    }

    #[test]
    fn fields_do_not_run_together() {
        let of = |parts: &[&str]| {
            let mut fields = Fields::default();
            for part in parts {
                fields.add(part.as_bytes());
            }
            fields.digest()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    }
}
