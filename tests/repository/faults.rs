//! An S3 store that fails on demand: what is asked again, what is not, and that patience ends.

use std::time::{Duration, Instant};

use walhold::error::Explain;
use walhold::repository::{Naming, Patience, Published, Repository, RepositoryError, StoredObject, init};

use crate::clouds::unpublished_files;
use crate::conformance::{PATIENCE, created, key, noise, stream};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::stores::{Conditions, S3Server, s3_settings};

/// An S3 repository behind a proxy, with an object in it.
struct Behind {
    proxy: FaultProxy,
    repository: Repository,
    object: StoredObject,
    content: Vec<u8>,
    server: S3Server,
}

fn behind_proxy() -> Behind {
    let server = S3Server::start(Conditions::Enforced);
    let proxy = FaultProxy::start(server.addr());
    let settings = s3_settings(proxy.addr(), "pg");
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    let content = noise(300_000, 3);
    let object = created(&repository, "main/x", Naming::ByStore, &content);
    Behind { proxy, repository, object, content, server }
}

#[test]
fn a_store_that_fails_a_few_times_is_asked_again() {
    let store = behind_proxy();
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::ResetMidBody,
        Fault::TruncateBody,
        Fault::LoseAnswer,
        Fault::OkWithError,
    ] {
        let again = || store.proxy.set_first(2, fault);
        again();
        assert!(store.repository.read(&store.object).unwrap() == store.content, "{fault:?}");
        assert_eq!(store.proxy.requests(), 3, "{fault:?}");
        again();
        let (found, _) =
            store.repository.find_and_read(&key("main/x"), Naming::ByStore, 10).unwrap().unwrap();
        assert_eq!(found, store.object);
        again();
        assert_eq!(store.repository.list("main").unwrap(), std::slice::from_ref(&store.object), "{fault:?}");
        again();
        assert_eq!(store.repository.list_folders("").unwrap(), ["main"], "{fault:?}");
        again();
        let path = format!("main/{fault:?}");
        let put = store.repository.put(&key(&path), Naming::ByStore, b"new").unwrap();
        // Also if the first attempt did it and could not say so.
        assert!(matches!(put, Published::Created), "{fault:?}: {put:?}");
        again();
        match store.repository.put(&key(&path), Naming::ByStore, b"old").unwrap() {
            Published::Exists(object) => assert_eq!(store.repository.read(&object).unwrap(), b"new"),
            Published::Created => panic!("{fault:?}: it was replaced"),
        }
        again();
        let object = store.repository.find(&key(&path), Naming::ByStore).unwrap().unwrap();
        again();
        store.repository.delete(&object).unwrap();
        again();
        store.repository.prove_present().unwrap();
    }
}

#[test]
fn a_large_object_survives_lost_answers_at_every_step() {
    let store = behind_proxy();
    let content = noise(26 << 20, 4);
    for (number, pattern) in ["uploads", "partNumber=2", "uploadId", "main/large"].into_iter().enumerate() {
        for (fault, naming) in [
            (Fault::Status(503), Naming::ByStore),
            (Fault::LoseAnswer, Naming::Unique),
            (Fault::ResetMidBody, Naming::ByStore),
        ] {
            let path = format!("main/large-{number}-{fault:?}");
            store.proxy.set_matching(pattern, 1, fault);
            let published = stream(&store.repository, &path, naming, &content);
            store.proxy.set(Fault::None);
            if let Err(error) = &published {
                panic!("{pattern} {fault:?}: {error}");
            }
            let object = store.repository.find(&key(&path), naming).unwrap().unwrap();
            assert!(store.repository.read_range(&object, 0, content.len()).unwrap() == content);
        }
    }
    let left: Vec<_> = unpublished_files(&store.server);
    assert!(left.iter().all(|name| !name.contains(".walhold-tmp/")), "{left:?}");
}

#[test]
fn patience_ends_whatever_the_store_does() {
    let store = behind_proxy();
    for fault in
        [Fault::Refuse, Fault::HangMidBody, Fault::Status(503), Fault::Delay(Duration::from_secs(30))]
    {
        store.proxy.set(fault);
        let begun = Instant::now();
        let hurried = store.repository.with_patience(Patience::Until(begun + Duration::from_secs(2)));
        let answers = [
            hurried.read(&store.object).map(drop),
            hurried.find(&key("main/x"), Naming::ByStore).map(drop),
            hurried.put(&key("main/y"), Naming::ByStore, b"y").map(drop),
            hurried.list("main").map(drop),
            hurried.prove_present(),
            hurried.delete(&store.object),
            stream(&hurried, "main/z", Naming::Unique, &store.content).map(drop),
        ];
        // A busy machine may be late; without the deadline it would be never.
        assert!(begun.elapsed() < Duration::from_secs(8), "{fault:?} took {:?}", begun.elapsed());
        for answer in answers {
            let is_told = matches!(answer, Err(RepositoryError::Unreachable { .. }));
            assert!(is_told, "{fault:?}: {answer:?}");
        }
        // The answer to an open must not be "no repository" either.
        let patience = Patience::PerRequest(Duration::from_millis(300));
        let error = Repository::open(&s3_settings(store.proxy.addr(), "pg"), patience).err().unwrap();
        assert!(matches!(error, RepositoryError::Unreachable { .. }), "{fault:?}: {error}");
    }
    store.proxy.set(Fault::Refuse);
    let hurried = store.repository.with_patience(Patience::PerRequest(Duration::from_millis(200)));
    let text = hurried.read(&store.object).map(drop).unwrap_err().to_string();
    assert!(text.ends_with(&format!("{}: Connection refused", store.proxy.addr())), "{text}");
}

#[test]
fn a_hang_is_noticed_before_the_patience_is_over() {
    let store = behind_proxy();
    store.proxy.set_first(1, Fault::HangMidBody);
    let begun = Instant::now();
    assert!(store.repository.read(&store.object).unwrap() == store.content);
    let took = begun.elapsed();
    assert!((14..28).contains(&took.as_secs()), "took {took:?}");
}

#[test]
fn a_refusal_is_not_repeated() {
    let store = behind_proxy();
    for fault in [Fault::Status(403), Fault::Status(401)] {
        store.proxy.set(fault);
        for answer in [
            store.repository.read(&store.object).map(drop),
            store.repository.find(&key("main/x"), Naming::ByStore).map(drop),
            store.repository.put(&key("main/y"), Naming::ByStore, b"y").map(drop),
            store.repository.list("main").map(drop),
            store.repository.list_folders("main").map(drop),
            store.repository.delete(&store.object),
        ] {
            assert!(matches!(answer, Err(RepositoryError::Denied { .. })), "{answer:?}");
        }
        assert_eq!(store.proxy.requests(), 6);
    }
    store.proxy.set(Fault::Status(403));
    assert_eq!(
        store.repository.read(&store.object).map(drop).unwrap_err().to_string(),
        "read main/x: the store refuses: HTTP 403 AccessDenied: Injected by the test"
    );
    store.proxy.set(Fault::ClockRefused);
    let refused = store.repository.read(&store.object).unwrap_err();
    let hint = refused.hint().unwrap_or_default();
    assert!(hint.starts_with("this machine's clock and the store's differ too much"), "{hint}");
}

#[test]
fn a_store_that_asks_for_time_gets_it() {
    let store = behind_proxy();
    store.proxy.set_first(1, Fault::StatusRetryAfter(429, 2));
    let begun = Instant::now();
    store.repository.prove_present().unwrap();
    assert!((2..20).contains(&begun.elapsed().as_secs()), "took {:?}", begun.elapsed());
}
