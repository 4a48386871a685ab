//! Cloud stores: the suite against each, and what differs between them.

use walhold::error::Explain;
use walhold::format::Digest;
use walhold::format::marker::CreateOnly;
use walhold::repository::{Naming, Published, Repository, RepositoryError, init};

use crate::conformance::{PATIENCE, conformance, created, files_below, is_conflict, key, noise};
use crate::support::cloud_emulators::{Azurite, GcsEmulator};
use crate::support::gcs_gateway::Reports;
use crate::support::postgres::installation::cache_directory;
use crate::support::program::{describe, walhold_command};
use crate::support::stores::{ACCESS_KEY, Conditions, S3Server, SECRET_KEY};
use crate::support::tls_proxy;

#[test]
fn s3_conforms() {
    let server = S3Server::start(Conditions::Enforced);
    conformance(&server.settings("some/prefix"), CreateOnly::Enforced);
    assert_eq!(unpublished_files(&server), Vec::<String>::new());
}

#[test]
fn s3_without_prefix_conforms() {
    let server = S3Server::start(Conditions::Enforced);
    conformance(&server.settings(""), CreateOnly::Enforced);
}

#[test]
fn s3_that_replaces_silently_conforms() {
    let server = S3Server::start(Conditions::Ignored);
    conformance(&server.settings("some/prefix"), CreateOnly::Suffixed);
    assert_eq!(unpublished_files(&server), Vec::<String>::new());
    names_carry_digests(&server);
}

/// Temporary objects, and parts of uploads that were neither completed nor aborted.
pub fn unpublished_files(server: &S3Server) -> Vec<String> {
    let root = server.bucket_directory();
    let mut files = files_below(root.parent().unwrap());
    files.retain(|name| name.contains(".walhold-tmp/") || name.contains(".part-"));
    files
}

fn names_carry_digests(server: &S3Server) {
    let repository = Repository::open(&server.settings("some/prefix"), PATIENCE).unwrap();
    let path = "main/wal/8/00000001/00000000/000000010000000000000009";
    let object = created(&repository, path, Naming::ByStore, b"one server's");
    assert_eq!(object.path, format!("{path}.{}", Digest::of(b"one server's").short()));
    assert_eq!(repository.list("main/wal/8").unwrap(), std::slice::from_ref(&object));
    // Another server that looked before this one had written.
    let other = format!("{path}.{}", Digest::of(b"another's").short());
    created(&repository, &other, Naming::Unique, b"another's");
    let error = repository.find(&key(path), Naming::ByStore).unwrap_err();
    let text = error.to_string();
    assert!(is_conflict(&error) && text.contains(&object.path) && text.contains(&other), "{text}");
    assert!(is_conflict(&repository.find_and_read(&key(path), Naming::ByStore, 1).unwrap_err()));
    assert_eq!(repository.read(&object).unwrap(), b"one server's");
}

#[test]
fn what_the_store_does_not_know_is_told_apart() {
    let server = S3Server::start(Conditions::Enforced);
    let mut settings = server.settings("pg");
    let error = Repository::open(&settings, PATIENCE).err().unwrap();
    assert_eq!(error.to_string(), "no walhold repository at s3://bucket/pg: walhold.json is not there");
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    // The bucket is deleted under an open repository.
    std::fs::rename(server.bucket_directory(), server.bucket_directory().with_extension("away")).unwrap();
    assert!(matches!(repository.prove_present(), Err(RepositoryError::NoMarker { .. })));
    assert!(matches!(repository.list("main"), Err(RepositoryError::NoMarker { .. })));
    std::fs::rename(server.bucket_directory().with_extension("away"), server.bucket_directory()).unwrap();
    repository.prove_present().unwrap();

    settings.url = "s3://other-bucket/pg".to_owned();
    assert!(matches!(Repository::open(&settings, PATIENCE), Err(RepositoryError::NoMarker { .. })));

    let mut wrong = server.settings("pg");
    wrong.options.insert("secret_access_key".to_owned(), "falsch-falsch".to_owned());
    let error = Repository::open(&wrong, PATIENCE).err().unwrap();
    assert!(matches!(error, RepositoryError::Denied { .. }), "{error}");
    assert!(error.hint().unwrap().contains("s3:ListBucket"));
    let text = format!("{error} {error:?} {wrong:?}");
    assert!(!text.contains("falsch") && !text.contains(SECRET_KEY), "{text}");
}

#[test]
fn a_store_that_refuses_conditions_is_used_without_them() {
    let server = S3Server::start(Conditions::Enforced);
    let mut settings = server.settings("pg");
    settings.options.insert("conditional_put".to_owned(), "disabled".to_owned());
    assert_eq!(init(&settings, PATIENCE).unwrap().create_only, CreateOnly::Suffixed);
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    created(&repository, "main/x", Naming::ByStore, b"x");
    assert!(matches!(repository.put(&key("main/x"), Naming::ByStore, b"y").unwrap(), Published::Exists(_)));
}

#[test]
fn azure_conforms() {
    let server = Azurite::start();
    conformance(&server.settings("some/prefix"), CreateOnly::Enforced);
}

#[test]
fn google_conforms() {
    let server = GcsEmulator::start(Reports::Md5);
    conformance(&server.settings("some/prefix"), CreateOnly::Enforced);
}

#[test]
fn a_store_that_reports_no_digest_is_read_back() {
    let server = GcsEmulator::start(Reports::Nothing);
    conformance(&server.settings("some/prefix"), CreateOnly::Enforced);
}

#[test]
fn what_a_store_kept_wrongly_is_sent_again() {
    let server = GcsEmulator::start(Reports::WrongContentOnce);
    let settings = server.settings("pg");
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    let content = noise(5000, 8);
    let object = created(&repository, "main/x", Naming::ByStore, &content);
    assert_eq!(repository.read(&object).unwrap(), content);
}

/// A store with a certificate, reached by the program itself: whom it trusts is read from its environment.
#[test]
fn a_store_behind_tls_is_trusted_only_if_its_authority_is() {
    let server = S3Server::start(Conditions::Enforced);
    let endpoint = format!("https://localhost:{}", tls_proxy::start(server.addr()).port());
    let init = |variables: &[(&str, &str)]| {
        let output = walhold_command()
            .arg("init")
            .env("WALHOLD_REPOSITORY", "s3://bucket/tls")
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .envs(variables.iter().copied())
            .output()
            .expect("run walhold");
        (output.status.code(), describe(&output))
    };
    // It is asked again for so long; the one that is trusted has all the time that a busy machine needs.
    let (status, text) = init(&[("WALHOLD_WAL_PUSH_DEADLINE", "2s")]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("invalid peer certificate: UnknownIssuer"), "{text}");
    assert!(!text.contains(SECRET_KEY), "{text}");
    let (status, text) = init(&[("SSL_CERT_FILE", &readable_authority())]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("created repository s3://bucket/tls"), "{text}");
    assert!(server.bucket_directory().join("tls/walhold.json").exists());
}

/// The program runs as the server's user, who may not see the source tree.
fn readable_authority() -> String {
    let copy = cache_directory().join("test-authority.pem");
    std::fs::copy(tls_proxy::authority(), &copy).expect("copy the authority's certificate");
    copy.display().to_string()
}
