//! From options and environment to a client of one provider.
//!
//! The environment is read as object_store reads it (`AWS_*`, `GOOGLE_*`, `AZURE_*`); AWS profiles are added where no
//! key is given otherwise; `[repository.options]` override both. Whatever the order, object_store's own retries are
//! off (ours know the deadline), and S3 checksums every upload.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3CopyIfNotExists};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

use super::aws_profile;
use super::connect::Provider;
use super::transport::Connector;

/// One client behind the three interfaces that are used of it.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) provider: Provider,
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) uploads: Arc<dyn MultipartStore>,
    pub(super) listing: Arc<dyn PaginatedListStore>,
    lists: Option<Arc<Lists>>,
}

/// A client that deletes in lists: made when there is something to delete, because few commands do.
struct Lists {
    builder: AmazonS3Builder,
    client: OnceLock<Option<Arc<dyn ObjectStore>>>,
}

impl Client {
    fn of<S>(provider: Provider, store: S) -> Client
    where
        S: ObjectStore + MultipartStore + PaginatedListStore + Clone,
    {
        Client {
            provider,
            objects: Arc::new(store.clone()),
            uploads: Arc::new(store.clone()),
            listing: Arc::new(store),
            lists: None,
        }
    }

    /// A client whose `delete_stream` sends lists of objects; `None` where there are no lists.
    pub(super) fn deleting_lists(&self) -> Option<Arc<dyn ObjectStore>> {
        let lists = self.lists.as_ref()?;
        let make = || {
            let builder = lists.builder.clone().with_disable_bulk_delete(false);
            builder.build().ok().map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
        };
        lists.client.get_or_init(make).clone()
    }
}

/// Makes a client; nothing is sent yet. An error is one line without secrets.
pub(super) fn client(
    provider: Provider,
    bucket: &str,
    options: &BTreeMap<String, String>,
) -> Result<Client, String> {
    match provider {
        Provider::S3 => s3(bucket, options),
        Provider::Google => google(bucket, options),
        Provider::Azure => azure(bucket, options),
    }
}

/// Whether a client of this provider reads an environment variable: object_store's `from_env` by its own names, and what [`super::aws_profile`] adds.
pub(super) fn reads_variable(provider: Provider, name: &str) -> bool {
    const PROFILE: [&str; 4] =
        ["AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"];
    let key = name.to_ascii_lowercase();
    match provider {
        Provider::S3 => {
            PROFILE.contains(&name) || (name.starts_with("AWS_") && key.parse::<AmazonS3ConfigKey>().is_ok())
        }
        Provider::Google => {
            name == "SERVICE_ACCOUNT"
                || (name.starts_with("GOOGLE_") && key.parse::<GoogleConfigKey>().is_ok())
        }
        Provider::Azure => name.starts_with("AZURE_") && key.parse::<AzureConfigKey>().is_ok(),
    }
}

fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

fn s3(bucket: &str, options: &BTreeMap<String, String>) -> Result<Client, String> {
    let options = parsed::<AmazonS3ConfigKey>("S3", options)?;
    // An operator who names it knows better than a probe.
    let wants_lists = !options.iter().any(|(key, value)| {
        *key == AmazonS3ConfigKey::DisableBulkDelete && value.eq_ignore_ascii_case("true")
    });
    let is_given = |key: &AmazonS3ConfigKey| options.iter().any(|(given, _)| given == key);
    let mut builder = AmazonS3Builder::from_env()
        .with_retry(no_retries())
        .with_http_connector(Connector)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_copy_if_not_exists(S3CopyIfNotExists::Multipart)
        // Not every S3-compatible store takes lists; this client deletes one by one, `deleting_lists` does not.
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true");
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let has_key = variable("AWS_ACCESS_KEY_ID").is_some() || is_given(&AmazonS3ConfigKey::AccessKeyId);
    let has_role = variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && variable("AWS_PROFILE").is_none();
    if !has_key && !has_role && !is_given(&AmazonS3ConfigKey::SkipSignature) {
        builder = with_profile(builder, &aws_profile::from_environment(variable)?.unwrap_or_default());
    }
    for (key, value) in options {
        refuse_place(&key, &[AmazonS3ConfigKey::Bucket])?;
        builder = builder.with_config(key, value);
    }
    let endpoint = builder
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp), "true");
    }
    let builder = builder.with_bucket_name(bucket);
    let store = builder.clone().build().map_err(words)?;
    let lists = Arc::new(Lists { builder, client: OnceLock::new() });
    Ok(Client { lists: wants_lists.then_some(lists), ..Client::of(Provider::S3, store) })
}

/// A profile's key goes together; its region and endpoint count where nothing else gives them.
fn with_profile(mut builder: AmazonS3Builder, profile: &aws_profile::Profile) -> AmazonS3Builder {
    if let (Some(id), Some(secret)) = (&profile.access_key_id, &profile.secret_access_key) {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        if let Some(token) = &profile.session_token {
            builder = builder.with_token(token);
        }
    }
    let gap = |key| builder.get_config_value(&key).is_none();
    let region = profile.region.as_ref().filter(|_| gap(AmazonS3ConfigKey::Region)).cloned();
    let needs_endpoint = gap(AmazonS3ConfigKey::Endpoint) && gap(AmazonS3ConfigKey::S3Endpoint);
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    match &profile.endpoint_url {
        Some(endpoint) if needs_endpoint => builder.with_endpoint(endpoint),
        _ => builder,
    }
}

fn google(bucket: &str, options: &BTreeMap<String, String>) -> Result<Client, String> {
    let mut builder =
        GoogleCloudStorageBuilder::from_env().with_retry(no_retries()).with_http_connector(Connector);
    for (key, value) in parsed::<GoogleConfigKey>("Google Cloud Storage", options)? {
        refuse_place(&key, &[GoogleConfigKey::Bucket])?;
        builder = builder.with_config(key, value);
    }
    let store = builder.with_bucket_name(bucket).build();
    store.map(|store| Client::of(Provider::Google, store)).map_err(words)
}

fn azure(container: &str, options: &BTreeMap<String, String>) -> Result<Client, String> {
    let mut builder =
        MicrosoftAzureBuilder::from_env().with_retry(no_retries()).with_http_connector(Connector);
    for (key, value) in parsed::<AzureConfigKey>("Azure", options)? {
        refuse_place(&key, &[AzureConfigKey::ContainerName])?;
        builder = builder.with_config(key, value);
    }
    let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.with_config(AzureConfigKey::Client(ClientConfigKey::AllowHttp), "true");
    }
    let store = builder.with_container_name(container).build();
    store.map(|store| Client::of(Provider::Azure, store)).map_err(words)
}

/// The options by key; one that is not known, or would have no effect, is refused by name.
fn parsed<K: std::str::FromStr + AsRef<str>>(
    provider: &str,
    options: &BTreeMap<String, String>,
) -> Result<Vec<(K, String)>, String> {
    let parse = |(name, value): (&String, &String)| {
        let Ok(key) = name.to_ascii_lowercase().parse::<K>() else {
            return Err(format!("option {name:?} is not known to {provider}"));
        };
        match key.as_ref() {
            "timeout" | "read_timeout" | "connect_timeout" => {
                Err(format!("option {name:?} has no effect: walhold sets its own deadlines"))
            }
            _ => Ok((key, value.clone())),
        }
    };
    options.iter().map(parse).collect()
}

/// The bucket or container is part of the address.
fn refuse_place<K: AsRef<str> + PartialEq>(key: &K, places: &[K]) -> Result<(), String> {
    if places.contains(key) {
        return Err(format!("option {:?} belongs into the address", key.as_ref()));
    }
    Ok(())
}

/// object_store's words about a setting, without the value: it may be a secret.
fn words(error: object_store::Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    match text.split_once('"') {
        Some((before, _)) => format!("{}…", before.trim_end()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str, value: &str) -> BTreeMap<String, String> {
        [(name.to_owned(), value.to_owned())].into()
    }

    #[test]
    fn an_option_is_known_or_refused() {
        let refused = |provider, name| client(provider, "b", &options(name, "x")).err().unwrap();
        assert_eq!(refused(Provider::S3, "aws_regoin"), "option \"aws_regoin\" is not known to S3");
        assert_eq!(refused(Provider::Azure, "region"), "option \"region\" is not known to Azure");
        assert_eq!(refused(Provider::S3, "bucket"), "option \"aws_bucket\" belongs into the address");
        assert_eq!(
            refused(Provider::Google, "timeout"),
            "option \"timeout\" has no effect: walhold sets its own deadlines"
        );
        assert!(client(Provider::S3, "b", &options("AWS_REGION", "eu-west-1")).is_ok());
    }

    #[test]
    fn only_variables_that_are_read_lead_anywhere() {
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_REGION", "AWS_PROFILE", "AWS_ALLOW_HTTP"] {
            assert!(reads_variable(Provider::S3, name), "{name}");
        }
        for name in ["AWS_CA_BUNDLE", "AWS_PAGER", "AWS_EXECUTION_ENV", "GOOGLE_BUCKET", "aws_region", "PATH"]
        {
            assert!(!reads_variable(Provider::S3, name), "{name}");
        }
        assert!(reads_variable(Provider::Google, "GOOGLE_APPLICATION_CREDENTIALS"));
        assert!(reads_variable(Provider::Google, "SERVICE_ACCOUNT"));
        assert!(reads_variable(Provider::Azure, "AZURE_STORAGE_ACCOUNT_NAME"));
        assert!(!reads_variable(Provider::Azure, "AZURE_CONFIG_DIR"));
    }

    /// The names in the table of docs/configuration.md, in its three rows.
    #[test]
    fn documented_names_are_read() {
        let document = include_str!("../../docs/configuration.md");
        let table = document.split("## Credentials of the repository").nth(1).unwrap();
        // Read by aws_profile.rs.
        let own = ["AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"];
        for (scheme, known) in [
            ("`s3://", (|name| name.parse::<AmazonS3ConfigKey>().is_ok()) as fn(&str) -> bool),
            ("`gs://", |name| name.parse::<GoogleConfigKey>().is_ok()),
            ("`az://", |name| name.parse::<AzureConfigKey>().is_ok()),
        ] {
            let row = table.lines().find(|line| line.starts_with(&format!("| {scheme}"))).unwrap();
            let is_name = |word: &&str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            let names: Vec<&str> = row.split('`').skip(1).step_by(2).filter(is_name).collect();
            assert!(names.len() > 5, "{row}");
            for name in names.into_iter().filter(|name| !own.contains(name)) {
                assert!(known(&name.to_ascii_lowercase()), "object_store does not know {name}");
            }
        }
        for not_read in ["azure_storage_account", "azure_storage_key", "azure_storage_connection_string"] {
            assert!(not_read.parse::<AzureConfigKey>().is_err(), "{not_read}");
        }
    }
}
