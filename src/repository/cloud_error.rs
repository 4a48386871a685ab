//! What a cloud store's failure means: whether asking again can help, and what the operator is told.

use object_store::Error;

use super::RepositoryError;
use super::retry::Failed;
use super::transport::{Fault, Seen};
use crate::error::one_line;

/// Codes of 400 answers that mean "the request was damaged on its way" rather than "it can never work".
const TRANSIENT_CODES: [&str; 8] = [
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "Md5Mismatch",
    "Crc64Mismatch",
];
/// Codes that mean "full", whatever the status.
const FULL_CODES: [&str; 4] =
    ["QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"];
/// Codes of 400 answers that mean "these credentials are no good".
const DENIED_CODES: [&str; 5] =
    ["ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "AuthenticationFailed"];
/// More of a store's message is not read out.
const LONGEST_MESSAGE: usize = 200;

/// What was tried, for the error.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) verb: &'static str,
    pub(super) path: &'a str,
    pub(super) url: &'a str,
}

/// Whether the store says that there is nothing. What gives credentials cannot say that.
pub(super) fn is_absent(fault: &Fault) -> bool {
    match fault {
        Fault::Store { error, seen } => {
            (matches!(**error, Error::NotFound { .. }) || seen.status == Some(404))
                && credential_service(&seen.host).is_none()
        }
        Fault::Stalled(_) | Fault::OutOfTime => false,
    }
}

/// Decides about a failed attempt.
pub(super) fn classify(request: Request<'_>, fault: Fault) -> Failed {
    let (error, seen) = match fault {
        Fault::Stalled(time) => {
            return Failed::again(format!("nothing moved for {} s", time.as_secs()));
        }
        Fault::OutOfTime => return Failed::again("no whole answer in the time that was left"),
        Fault::Store { error, seen } => (error, seen),
    };
    let answer = Answer::read(&error, &seen);
    match error.as_ref() {
        Error::NotFound { .. } => request.by_status(&answer, None),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            request.by_status(&answer, seen.retry_after)
        }
        Error::InvalidPath { .. } => request.damaged(answer.problem).into(),
        Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::UnknownConfigurationKey { .. } => {
            request.address(answer.problem).into()
        }
        // Conflicts that the callers do not expect: another request of somebody's is under way.
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => {
            Failed::Again { problem: answer.problem, wait: seen.retry_after }
        }
        Error::JoinError { .. } => Failed::again(answer.problem),
        // The variants above are all there are today; a new one is looked at by its status too.
        _ => request.by_status(&answer, seen.retry_after),
    }
}

impl Request<'_> {
    fn by_status(self, answer: &Answer, wait: Option<std::time::Duration>) -> Failed {
        let problem = answer.problem.clone();
        let is_one_of = |codes: &[&str]| codes.contains(&answer.code.as_str());
        match answer.status {
            _ if is_one_of(&FULL_CODES) => self.full(problem).into(),
            // No answer, or an answer whose body was cut off or made no sense.
            None | Some(200..=299) => Failed::Again { problem, wait },
            Some(400) if is_one_of(&TRANSIENT_CODES) => Failed::Again { problem, wait },
            Some(400) if is_one_of(&DENIED_CODES) => self.denied(problem).into(),
            Some(401 | 403) => self.denied(problem).into(),
            Some(404) if is_one_of(&["NoSuchBucket", "ContainerNotFound"]) => self.address(problem).into(),
            Some(404 | 410) => self.missing().into(),
            Some(408 | 409 | 412 | 423 | 425 | 429) => Failed::Again { problem, wait },
            Some(416) => self.damaged("it is shorter than what was asked for".to_owned()).into(),
            Some(501 | 505) => self.address(problem).into(),
            Some(507) => self.full(problem).into(),
            Some(500..=599) => Failed::Again { problem, wait },
            Some(300..=399) => self
                .address(format!("{problem}: the bucket is in another region or at another endpoint"))
                .into(),
            Some(_) => self.address(problem).into(),
        }
    }

    pub(super) fn missing(self) -> RepositoryError {
        RepositoryError::Missing { verb: self.verb, key: self.path.to_owned() }
    }

    pub(super) fn damaged(self, problem: String) -> RepositoryError {
        RepositoryError::Damaged { verb: self.verb, key: self.path.to_owned(), problem }
    }

    fn denied(self, problem: String) -> RepositoryError {
        RepositoryError::Denied { verb: self.verb, key: self.path.to_owned(), problem }
    }

    fn full(self, problem: String) -> RepositoryError {
        RepositoryError::Full { verb: self.verb, key: self.path.to_owned(), problem }
    }

    fn address(self, problem: String) -> RepositoryError {
        let problem = format!("{} {}: {problem}", self.verb, self.path);
        RepositoryError::Address { url: self.url.to_owned(), problem }
    }
}

/// A store's answer in a few words.
struct Answer {
    status: Option<u16>,
    code: String,
    problem: String,
}

impl Answer {
    fn read(error: &Error, seen: &Seen) -> Answer {
        let text = error.to_string();
        let code = between(&text, "<Code>", "</Code>").unwrap_or_default();
        let message = between(&text, "<Message>", "</Message>")
            .or_else(|| between(&text, "\"message\": \"", "\""))
            .or_else(|| between(&text, "\"message\":\"", "\""));
        let words = match seen.status {
            Some(200..=299) => {
                format!("the answer cannot be used: {}", brief(&innermost(error)))
            }
            Some(status) => {
                let mut words = format!("HTTP {status}");
                let reason = reqwest::StatusCode::from_u16(status).ok();
                let reason = reason.and_then(|status| status.canonical_reason()).unwrap_or_default();
                for part in [if code.is_empty() { reason } else { code }, &brief(message.unwrap_or_default())]
                {
                    if !part.is_empty() {
                        words.push_str(if part == code || part == reason { " " } else { ": " });
                        words.push_str(part);
                    }
                }
                words
            }
            None => brief(&innermost(error)),
        };
        let problem = match credential_service(&seen.host) {
            Some(service) => format!("no credentials from {service} ({}): {words}", seen.host),
            None => words,
        };
        Answer { status: seen.status, code: code.to_owned(), problem }
    }
}

/// Whether a host gives credentials rather than objects.
fn credential_service(host: &str) -> Option<&'static str> {
    let is_metadata = host.starts_with("169.254.") || host.starts_with("metadata.google.internal");
    let is_login = ["sts.", "login.microsoftonline.", "oauth2.googleapis.", "iamcredentials.googleapis."]
        .iter()
        .any(|prefix| host.starts_with(prefix));
    match (is_metadata, is_login) {
        (true, _) => Some("the machine's metadata service, which is asked where no keys are configured"),
        (_, true) => Some("the token service"),
        _ => None,
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inside, _)| inside)
}

/// What the innermost cause says: the layers above it repeat the request.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The beginning of a text, on one line.
fn brief(text: &str) -> String {
    let line = one_line(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    let line = line.trim_end_matches('.');
    match line.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Explain;
    use crate::exit_status::Cause;

    fn failed(status: Option<u16>, body: &str) -> Failed {
        let error = Error::Generic { store: "S3", source: body.to_owned().into() };
        let seen = Seen { status, host: "127.0.0.1:9000".to_owned(), ..Seen::default() };
        let request = Request { verb: "read", path: "main/x", url: "s3://b" };
        classify(request, Fault::Store { error: Box::new(error), seen })
    }

    fn code(code: &str) -> String {
        format!("<?xml?><Error><Code>{code}</Code><Message>The\n words.</Message></Error>")
    }

    #[test]
    fn every_status_means_something() {
        for (status, name, cause) in [
            (Some(400), "InvalidBucketName", Some(Cause::Configuration)),
            (Some(400), "ExpiredToken", Some(Cause::Denied)),
            (Some(400), "BadDigest", None),
            (Some(401), "", Some(Cause::Denied)),
            (Some(403), "SignatureDoesNotMatch", Some(Cause::Denied)),
            (Some(403), "QuotaExceeded", Some(Cause::RepositoryFull)),
            (Some(404), "NoSuchKey", Some(Cause::Damaged)),
            (Some(404), "NoSuchBucket", Some(Cause::Configuration)),
            (Some(301), "PermanentRedirect", Some(Cause::Configuration)),
            (Some(405), "MethodNotAllowed", Some(Cause::Configuration)),
            (Some(409), "OperationAborted", None),
            (Some(416), "InvalidRange", Some(Cause::Damaged)),
            (Some(429), "TooManyRequests", None),
            (Some(500), "InternalError", None),
            (Some(501), "NotImplemented", Some(Cause::Configuration)),
            (Some(503), "SlowDown", None),
            (Some(507), "", Some(Cause::RepositoryFull)),
            (Some(200), "InternalError", None),
            (None, "", None),
        ] {
            let found = match failed(status, &code(name)) {
                Failed::Again { .. } => None,
                Failed::Final(error) => Some(error.exit_cause()),
            };
            assert_eq!(found, cause, "{status:?} {name}");
        }
    }

    #[test]
    fn the_operator_reads_the_store_s_words_and_no_more() {
        let told = |status, body: &str| match failed(status, body) {
            Failed::Again { problem, .. } => problem,
            Failed::Final(error) => error.to_string(),
        };
        assert_eq!(told(Some(503), &code("SlowDown")), "HTTP 503 SlowDown: The words");
        assert_eq!(told(Some(503), ""), "HTTP 503 Service Unavailable");
        assert_eq!(
            told(Some(403), &code("AccessDenied")),
            "read main/x: the store refuses: HTTP 403 AccessDenied: The words"
        );
        assert_eq!(told(None, "connection reset"), "connection reset");
        let google = r#"{"error": {"code": 500, "message": "Backend Error"}}"#;
        assert_eq!(told(Some(500), google), "HTTP 500 Internal Server Error: Backend Error");
        assert!(told(None, &"x".repeat(999)).len() < 210);
    }
}
