//! From settings to a store: which backend an address means, and which options it takes.

use std::path::PathBuf;

use super::cloud::CloudStore;
use super::directory::{DirectoryStore, MarkerRule, StagingRule};
use super::providers;
use super::store::Store;
use super::{RepositoryError, RepositorySettings};

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Directory(PathBuf),
    Cloud { provider: Provider, bucket: String, prefix: String },
}

/// Who keeps the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    S3,
    Google,
    Azure,
}

/// Connects, without asking the store anything yet.
pub(super) fn connect(settings: &RepositorySettings, marker: MarkerRule) -> Result<Store, RepositoryError> {
    let url = without_secrets(&settings.url);
    let refuse = |problem| RepositoryError::Address { url: url.clone(), problem };
    match parse(&settings.url).map_err(refuse)? {
        Address::Directory(root) => {
            let staging = directory_options(settings).map_err(refuse)?;
            Ok(Store::Directory(DirectoryStore::new(root, &url, staging, marker)))
        }
        Address::Cloud { provider, bucket, prefix } => {
            let client = providers::client(provider, &bucket, &settings.options).map_err(refuse)?;
            let store = CloudStore::new(client, prefix, &url);
            store.map(Store::Cloud).map_err(|error| refuse(format!("start its runtime: {error}")))
        }
    }
}

/// The address for messages: what stands before an `@` in its authority, or in a query, may be a secret.
pub(super) fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            match authority.rsplit_once('@') {
                Some((_, host)) => format!("{scheme}://***@{host}{path}"),
                None => url.to_owned(),
            }
        }
        None => url.to_owned(),
    }
}

/// Reads an address. Everything that could be meant otherwise is refused.
pub(super) fn parse(url: &str) -> Result<Address, String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(match url.strip_prefix('/') {
            Some(path) => format!("a directory is written as a URL: file:///{path}"),
            None if url.is_empty() => "it is empty".to_owned(),
            None => "it has no scheme; expected file:///, s3://, gs:// or az://".to_owned(),
        });
    };
    if rest.contains(['?', '#']) {
        return Err("it has a query or a fragment; options belong into [repository.options]".to_owned());
    }
    let provider = match scheme {
        "file" => return parse_directory(rest).map(Address::Directory),
        "s3" => Provider::S3,
        "gs" => Provider::Google,
        "az" => Provider::Azure,
        "s3a" => return Err("S3 is written s3://bucket/prefix".to_owned()),
        "gcs" => return Err("Google Cloud Storage is written gs://bucket/prefix".to_owned()),
        "azure" | "abfs" | "abfss" | "wasb" | "adl" => {
            return Err("Azure is written az://container/prefix, and the account is an option".to_owned());
        }
        "http" | "https" => {
            return Err("a store is named by its scheme: s3://bucket/prefix with the option \
                        endpoint (or AWS_ENDPOINT_URL) for this address"
                .to_owned());
        }
        other => {
            return Err(format!("scheme {other:?} is not known; expected file:///, s3://, gs:// or az://"));
        }
    };
    parse_bucket(provider, rest)
}

fn parse_directory(rest: &str) -> Result<PathBuf, String> {
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(format!("file:// is followed by an absolute path: file:///{path}"));
    }
    let decoded = percent_decoded(path).ok_or("% is followed by two hexadecimal digits; itself it is %25")?;
    if decoded.split('/').any(|segment| segment == "..") || decoded.contains('\0') {
        return Err("a directory's path has no .. in it".to_owned());
    }
    Ok(PathBuf::from(decoded))
}

fn parse_bucket(provider: Provider, rest: &str) -> Result<Address, String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        return Err("credentials do not belong into the address: use the environment, a profile or \
                    [repository.options]"
            .to_owned());
    }
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if bucket.is_empty() || !bucket.bytes().all(is_name) {
        return Err(format!("{bucket:?} cannot be the name of a bucket or container"));
    }
    let prefix = prefix.trim_end_matches('/');
    let is_prefix = prefix.is_empty()
        || prefix.split('/').all(|segment| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|b| is_name(b) || matches!(b, b'=' | b'+' | b',' | b':' | b'@'))
        });
    if !is_prefix {
        return Err(format!(
            "{prefix:?} cannot be a prefix; its segments are letters, digits and any of . _ - = + , : @"
        ));
    }
    Ok(Address::Cloud { provider, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The options of a directory: `staging`, which is `auto` or `named`.
fn directory_options(settings: &RepositorySettings) -> Result<StagingRule, String> {
    let mut staging = StagingRule::default();
    for (name, value) in &settings.options {
        staging = match (name.as_str(), value.as_str()) {
            ("staging", "auto") => StagingRule::Auto,
            ("staging", "named") => StagingRule::Named,
            ("staging", other) => {
                return Err(format!("option staging is auto or named, not {other:?}"));
            }
            (other, _) => {
                return Err(format!("option {other:?} is not known to a directory; there is: staging"));
            }
        };
    }
    Ok(staging)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_mean_what_they_say() {
        assert_eq!(parse("file:///srv/wal%20hold").unwrap(), Address::Directory("/srv/wal hold".into()));
        assert_eq!(parse("file://localhost/srv").unwrap(), Address::Directory("/srv".into()));
        let cloud = |provider, bucket: &str, prefix: &str| Address::Cloud {
            provider,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!(parse("s3://backups/pg/main/").unwrap(), cloud(Provider::S3, "backups", "pg/main"));
        assert_eq!(parse("gs://b").unwrap(), cloud(Provider::Google, "b", ""));
        assert_eq!(parse("az://c/x").unwrap(), cloud(Provider::Azure, "c", "x"));
    }

    #[test]
    fn a_bad_address_says_what_is_wrong() {
        for (url, problem) in [
            ("", "it is empty"),
            ("/srv/walhold", "a directory is written as a URL: file:///srv/walhold"),
            ("srv", "it has no scheme; expected file:///, s3://, gs:// or az://"),
            ("file://srv/walhold", "file:// is followed by an absolute path: file:///srv/walhold"),
            ("file:///srv/../etc", "a directory's path has no .. in it"),
            ("file:///srv/100%", "% is followed by two hexadecimal digits; itself it is %25"),
            ("ftp://x/y", "scheme \"ftp\" is not known; expected file:///, s3://, gs:// or az://"),
            ("s3:///prefix", "\"\" cannot be the name of a bucket or container"),
            ("s3://b?x=1", "it has a query or a fragment; options belong into [repository.options]"),
        ] {
            assert_eq!(parse(url).unwrap_err(), problem, "{url}");
        }
        for url in
            ["s3://b/a//b", "s3://b/../c", "s3://b/a b", "s3://b/ä", "s3://key:secret@b/c", "https://x"]
        {
            assert!(parse(url).is_err(), "{url} was accepted");
        }
    }

    #[test]
    fn messages_carry_no_secret() {
        assert_eq!(without_secrets("s3://AKIA:geheim@bucket/x?token=geheim"), "s3://***@bucket/x");
        assert_eq!(without_secrets("file:///srv/a@b"), "file:///srv/a@b");
        let settings = RepositorySettings {
            url: "s3://a:geheim@b".to_owned(),
            options: [("aws_secret_access_key".to_owned(), "geheim".to_owned())].into(),
        };
        let text = format!("{settings:?}");
        assert!(!text.contains("geheim") && text.contains("aws_secret_access_key"), "{text}");
    }

    #[test]
    fn an_unknown_option_is_named() {
        let settings = |name: &str, value: &str| RepositorySettings {
            url: "file:///srv".to_owned(),
            options: [(name.to_owned(), value.to_owned())].into(),
        };
        assert_eq!(directory_options(&settings("staging", "named")), Ok(StagingRule::Named));
        assert!(directory_options(&settings("stageing", "named")).unwrap_err().contains("\"stageing\""));
        assert!(directory_options(&settings("staging", "x")).unwrap_err().contains("\"x\""));
    }
}
