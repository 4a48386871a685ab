//! HTTP for object_store, watched: whether bytes still move, and what the last answer said beside its body.
//!
//! object_store's own client knows one timeout for a whole request, which kills slow but healthy transfers, and drops
//! `Retry-After` and the digests that stores report. So requests go through [`Transport`]: every byte that leaves or
//! arrives is noted in the [`Attempt`] that the request belongs to, and [`watched`] ends an attempt in which nothing
//! has moved for a while, or whose time is over.
//!
//! TLS is set up on the first `https://` request only; a store on `http://` never loads a certificate.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue, IF_NONE_MATCH};

use super::listing_head::{ListingHead, ListingKind};
use crate::codec::base64;
use crate::interrupt;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

tokio::task_local! {
    static CURRENT: Arc<Attempt>;
}

/// What a request adds to what object_store sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Extra {
    Nothing,
    /// `If-None-Match: *` on the request that completes a multipart upload, which object_store knows for its own copies only.
    /// S3 wants no signature for it.
    CompleteIfAbsent,
}

/// What is known of one attempt at a request.
#[derive(Debug)]
struct Attempt {
    extra: Extra,
    state: Mutex<AttemptState>,
}

#[derive(Debug)]
struct AttemptState {
    moved: Instant,
    seen: Seen,
}

/// What the last answer of an attempt said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Who was asked.
    pub(super) host: String,
    /// The status; `None` if there was no answer.
    pub(super) status: Option<u16>,
    /// How long the store asks us to stay away.
    pub(super) retry_after: Option<Duration>,
    /// The MD5 that the store computed of what it received.
    pub(super) md5: Option<[u8; 16]>,
    /// Whether a copy is still being made (Azure).
    pub(super) copy_pending: bool,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The store, or the way to it, failed.
    Store { error: Box<object_store::Error>, seen: Seen },
    /// Nothing moved for so long.
    Stalled(Duration),
    /// The time for the whole request is over.
    OutOfTime,
}

impl Attempt {
    fn new(extra: Extra) -> Attempt {
        Attempt { extra, state: Mutex::new(AttemptState { moved: Instant::now(), seen: Seen::default() }) }
    }

    fn with<T>(&self, look: impl FnOnce(&mut AttemptState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note_bytes(&self) {
        self.with(|state| state.moved = Instant::now());
    }
}

/// How often a request looks whether we are asked to end.
const SIGNAL_LOOK: Duration = Duration::from_millis(100);
/// What a request may still take when we are: those that clean up are sent then.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// Runs one attempt until it is done, nothing has moved for `stall`, the deadline has come, or a signal asks us to end.
pub(super) async fn watched<T>(
    deadline: Instant,
    stall: Duration,
    extra: Extra,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<(T, Seen), Fault> {
    let attempt = Arc::new(Attempt::new(extra));
    let began = Instant::now();
    let mut request = pin!(CURRENT.scope(Arc::clone(&attempt), request));
    loop {
        let look = Instant::now() + SIGNAL_LOOK;
        let until = deadline.min(attempt.with(|state| state.moved) + stall).min(look);
        match tokio::time::timeout_at(until.into(), request.as_mut()).await {
            Ok(answer) => {
                let seen = attempt.with(|state| state.seen.clone());
                return answer
                    .map(|value| (value, seen.clone()))
                    .map_err(|error| Fault::Store { error: Box::new(error), seen });
            }
            Err(_) if Instant::now() >= deadline => return Err(Fault::OutOfTime),
            Err(_) if interrupt::requested().is_some() && began.elapsed() >= LAST_REQUEST => {
                return Err(Fault::OutOfTime);
            }
            Err(_) if attempt.with(|state| state.moved.elapsed()) >= stall => {
                return Err(Fault::Stalled(stall));
            }
            Err(_) => {}
        }
    }
}

/// Makes a [`Transport`] for object_store.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let transport =
            Transport { options: options.clone(), plain: OnceLock::new(), secure: OnceLock::new() };
        Ok(HttpClient::new(transport))
    }
}

#[derive(Debug)]
struct Transport {
    options: ClientOptions,
    plain: OnceLock<reqwest::Client>,
    secure: OnceLock<reqwest::Client>,
}

impl Transport {
    fn client(&self, scheme: &str) -> Result<&reqwest::Client, HttpError> {
        let slot = if scheme == "https" { &self.secure } else { &self.plain };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let client = build_client(&self.options, scheme)
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, TransportError::of(&error, "")))?;
        Ok(slot.get_or_init(|| client))
    }

    async fn send(&self, request: HttpRequest, attempt: Arc<Attempt>) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let host = parts.uri.authority().map(|authority| authority.to_string()).unwrap_or_default();
        attempt.with(|state| state.seen = Seen { host: host.clone(), ..Seen::default() });
        let url = reqwest::Url::parse(&parts.uri.to_string()).map_err(|_| {
            HttpError::new(
                HttpErrorKind::Unknown,
                TransportError(format!("the address of {host} is not a URL")),
            )
        })?;
        let client = self.client(url.scheme())?;
        let listing = url.query().filter(|_| parts.method == Method::GET).and_then(ListingKind::of);
        let mut outgoing = reqwest::Request::new(parts.method, url);
        *outgoing.headers_mut() = parts.headers;
        if attempt.extra == Extra::CompleteIfAbsent {
            outgoing.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let body = WatchedBody { body, attempt: Arc::clone(&attempt), host: host.clone(), listing: None };
        *outgoing.body_mut() = Some(reqwest::Body::wrap(body));

        let answer = client.execute(outgoing).await.map_err(|error| http_error(error, &host))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        attempt.with(|state| {
            state.moved = Instant::now();
            state.seen.status = Some(status.as_u16());
            state.seen.retry_after = retry_after(&headers);
            state.seen.md5 = reported_md5(&headers);
            state.seen.copy_pending =
                headers.get("x-ms-copy-status").is_some_and(|status| status.as_bytes() == b"pending");
        });
        let listing = listing.filter(|_| status.is_success()).map(ListingHead::new);
        let body = WatchedBody { body: reqwest::Body::from(answer), attempt, host, listing };
        let mut response = HttpResponse::new(HttpResponseBody::new(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

impl HttpService for Transport {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let attempt = CURRENT.try_with(Arc::clone).unwrap_or_else(|_| Arc::new(Attempt::new(Extra::Nothing)));
        Box::pin(self.send(request, attempt))
    }
}

fn build_client(options: &ClientOptions, scheme: &str) -> reqwest::Result<reqwest::Client> {
    // reqwest wants one even for `http://`. Somebody else in this process may have chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let is_set = |key| options.get_config_value(&key).is_some_and(|value| value == "true");
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("walhold/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        // A signature holds for one address.
        .redirect(reqwest::redirect::Policy::none());
    if scheme == "https" {
        builder = builder.tls_danger_accept_invalid_certs(is_set(ClientConfigKey::AllowInvalidCertificates));
    }
    if scheme != "https" || is_set(ClientConfigKey::NoSystemCertificates) {
        builder = builder.tls_certs_only([]);
    }
    if let Some(url) = options.get_config_value(&ClientConfigKey::ProxyUrl) {
        let mut proxy = reqwest::Proxy::all(url)?;
        if let Some(excludes) = options.get_config_value(&ClientConfigKey::ProxyExcludes) {
            proxy = proxy.no_proxy(reqwest::NoProxy::from_string(&excludes));
        }
        if let Some(pem) = options.get_config_value(&ClientConfigKey::ProxyCaCertificate) {
            builder = builder.tls_certs_merge([reqwest::Certificate::from_pem(pem.as_bytes())?]);
        }
        builder = builder.proxy(proxy);
    }
    builder.build()
}

/// A body that notes every byte that passes, and that ends with an error if it should be a listing and is none.
struct WatchedBody<B> {
    body: B,
    attempt: Arc<Attempt>,
    host: String,
    /// What a listing must still begin with.
    listing: Option<ListingHead>,
}

impl<B> Body for WatchedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if polled.is_ready() {
            this.attempt.note_bytes();
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(head), Some(bytes)) = (&mut this.listing, frame.data_ref())
                    && head.is_complete_with(bytes)
                {
                    this.listing = None;
                }
            }
            // Said once: what follows an error is the end.
            Poll::Ready(None) if this.listing.take().is_some() => {
                return Poll::Ready(Some(Err(no_listing(&this.host))));
            }
            _ => {}
        }
        polled.map_err(|error| {
            HttpError::new(HttpErrorKind::Interrupted, TransportError::of(&error, &this.host))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.listing.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What went wrong on the way, in one line and without addresses that may carry a secret.
#[derive(Debug)]
struct TransportError(String);

impl TransportError {
    /// The innermost cause: what the system or TLS said.
    fn of(error: &(dyn std::error::Error + 'static), host: &str) -> TransportError {
        let mut cause = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let words = match cause.downcast_ref::<std::io::Error>() {
            Some(error) => crate::error::system_words(error),
            None => cause.to_string(),
        };
        if host.is_empty() { TransportError(words) } else { TransportError(format!("{host}: {words}")) }
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TransportError {}

fn no_listing(host: &str) -> HttpError {
    let words = TransportError(format!("{host}: the answer to a listing is none"));
    HttpError::new(HttpErrorKind::Interrupted, words)
}

fn http_error(error: reqwest::Error, host: &str) -> HttpError {
    let kind = match (error.is_timeout(), error.is_connect()) {
        (true, _) => HttpErrorKind::Timeout,
        (_, true) => HttpErrorKind::Connect,
        _ => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, TransportError::of(&error, host))
}

/// Seconds; the other form that HTTP allows, a date, is rare and needs two clocks to agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Azure tells `Content-MD5`, Google `x-goog-hash: md5=…`, perhaps beside others.
fn reported_md5(headers: &HeaderMap) -> Option<[u8; 16]> {
    let google = headers.get_all("x-goog-hash").into_iter().filter_map(|value| value.to_str().ok());
    let google = google.flat_map(|value| value.split(',')).find_map(|hash| hash.trim().strip_prefix("md5="));
    let azure = headers.get("content-md5").and_then(|value| value.to_str().ok());
    base64::decode(google.or(azure)?)?.as_slice().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reported_digest_is_found_in_either_form() {
        let md5 = *b"\x09\x8f\x6b\xcd\x46\x21\xd3\x73\xca\xde\x4e\x83\x26\x27\xb4\xf6";
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(reqwest::header::HeaderName::from_static(name), value.parse().unwrap())])
        };
        assert_eq!(reported_md5(&headers("content-md5", "CY9rzUYh03PK3k6DJie09g==")), Some(md5));
        let google = "crc32c=n03x6A==,md5=CY9rzUYh03PK3k6DJie09g==";
        assert_eq!(reported_md5(&headers("x-goog-hash", google)), Some(md5));
        assert_eq!(reported_md5(&headers("x-goog-hash", "crc32c=n03x6A==")), None);
        assert_eq!(reported_md5(&headers("content-md5", "not base64!")), None);
    }

    #[test]
    fn a_wish_to_be_left_alone_is_read() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(reqwest::header::RETRY_AFTER, value.parse().unwrap())])
        };
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers("Fri, 20 Nov 2026 22:46:13 GMT")), None);
    }

    #[test]
    fn what_does_not_move_is_ended() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let never = || std::future::pending::<object_store::Result<()>>();
        let soon = Duration::from_millis(400);
        let fault =
            runtime.block_on(watched(Instant::now() + Duration::from_secs(9), soon, Extra::Nothing, never()));
        assert!(matches!(fault, Err(Fault::Stalled(_))), "{fault:?}");
        let fault =
            runtime.block_on(watched(Instant::now() + soon, Duration::from_secs(9), Extra::Nothing, never()));
        assert!(matches!(fault, Err(Fault::OutOfTime)), "{fault:?}");
        let moving = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(80)).await;
                CURRENT.with(|attempt| attempt.note_bytes());
            }
            Ok(())
        };
        runtime
            .block_on(watched(Instant::now() + Duration::from_secs(9), soon, Extra::Nothing, moving))
            .unwrap();
    }
}
