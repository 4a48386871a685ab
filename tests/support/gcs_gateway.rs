//! Google Cloud Storage's XML interface, as far as object_store speaks it, in front of an emulator that speaks the JSON
//! one. Storing, listing, copying, composing and deleting are the emulator's; preconditions are decided here, one
//! request at a time, because the emulator does not know them.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::fault_proxy::Message;

/// Objects that are parts of uploads under way lie here, out of everybody's sight.
const PARTS: &str = "..parts";
/// Small, so that listings have several pages.
const PAGE: usize = 17;

/// Whether the store tells the digest of what it received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reports {
    /// As Google does.
    Md5,
    /// A store that does not: what was written must be read back.
    Nothing,
    /// A store that stores something else than it was sent, once.
    WrongContentOnce,
}

/// The gateway; it stops when it is dropped.
pub struct Gateway {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    emulator: SocketAddr,
    reports: Reports,
    spoil: AtomicBool,
    stopped: AtomicBool,
    next_upload: AtomicU64,
    one_at_a_time: Mutex<()>,
}

struct Request {
    method: String,
    bucket: String,
    object: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Gateway {
    /// A gateway on a port of its own.
    pub fn start(emulator: SocketAddr, reports: Reports) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            emulator,
            reports,
            spoil: AtomicBool::new(reports == Reports::WrongContentOnce),
            stopped: AtomicBool::new(false),
            next_upload: AtomicU64::new(1),
            one_at_a_time: Mutex::new(()),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || drop(serve(&serving, client)));
            }
        });
        Gateway { addr, shared }
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

fn serve(shared: &Shared, mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut held = Vec::new();
    while let Some(message) = Message::read(&mut client, &mut held, true)? {
        let request = Request::of(message);
        let mut answer = shared.answer(&request)?;
        if request.method == "HEAD" {
            answer.body.clear();
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
        // A HEAD's length is the object's, not that of its empty body.
        if !answer.headers.iter().any(|(name, _)| name == "Content-Length") {
            head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
        }
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        client.write_all(head.as_bytes())?;
        client.write_all(b"\r\n")?;
        client.write_all(&answer.body)?;
    }
    Ok(())
}

impl Request {
    fn of(message: Message) -> Request {
        let head = String::from_utf8_lossy(&message.head).into_owned();
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.trim_start_matches('/');
        let (bucket, object) = path.split_once('/').unwrap_or((path, ""));
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        };
        let header = |line: &str| {
            line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Request {
            method: method.to_owned(),
            bucket: decoded(bucket),
            object: decoded(object),
            query: query.split('&').filter(|text| !text.is_empty()).map(pair).collect(),
            headers: lines.filter_map(header).collect(),
            body: message.body,
        }
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }
}

impl Shared {
    fn answer(&self, request: &Request) -> io::Result<Answer> {
        let upload = request.query("uploadId");
        match (request.method.as_str(), upload) {
            ("GET", _) if request.object.is_empty() => self.list(request),
            ("GET" | "HEAD", _) => self.get(request),
            ("PUT", Some(upload)) => self.put_part(request, upload),
            ("PUT", None) => self.put(request),
            ("POST", Some(upload)) => self.complete(request, upload),
            ("POST", None) if request.query.contains_key("uploads") => {
                let id = self.next_upload.fetch_add(1, Ordering::SeqCst);
                let result = format!("<UploadId>u{id}</UploadId>");
                Ok(xml(
                    200,
                    &format!("<InitiateMultipartUploadResult>{result}</InitiateMultipartUploadResult>"),
                ))
            }
            ("DELETE", Some(upload)) => {
                self.remove_parts(request, upload)?;
                Ok(xml(204, ""))
            }
            ("DELETE", None) => {
                let answer = self.json("DELETE", &object_url(&request.bucket, &request.object), "", &[])?;
                Ok(if answer.status == 404 { error(404, "NoSuchKey") } else { xml(204, "") })
            }
            _ => Ok(error(400, "InvalidRequest")),
        }
    }

    fn put(&self, request: &Request) -> io::Result<Answer> {
        let _alone = self.one_at_a_time.lock().unwrap();
        let is_conditional = request.headers.get("x-goog-if-generation-match").is_some_and(|g| g == "0");
        if is_conditional && self.facts(&request.bucket, &request.object)?.is_some() {
            return Ok(error(412, "PreconditionFailed"));
        }
        let stored = match request.headers.get("x-goog-copy-source") {
            Some(source) => {
                let source = decoded(source);
                let (_, source) = source.split_once('/').unwrap_or_default();
                let from = object_url(&request.bucket, source);
                let url = format!("{from}/copyTo/b/{}/o/{}", request.bucket, encoded(&request.object));
                self.json("POST", &url, "application/json", b"{}")?
            }
            None => self.upload(request, &request.object)?,
        };
        self.stored(request, &request.object, stored)
    }

    fn put_part(&self, request: &Request, upload: &str) -> io::Result<Answer> {
        let number: u32 = request.query("partNumber").and_then(|text| text.parse().ok()).unwrap_or(0);
        let name = format!("{PARTS}/{upload}/{number:05}");
        let stored = self.upload(request, &name)?;
        self.stored(request, &name, stored)
    }

    fn upload(&self, request: &Request, name: &str) -> io::Result<Answer> {
        let url = format!("/upload/storage/v1/b/{}/o?name={}&uploadType=", request.bucket, encoded(name));
        let mut body = request.body.clone();
        if body.is_empty() {
            // The emulator does not take an empty body in the simple way.
            let text = "--x\r\nContent-Type: application/json\r\n\r\n{}\r\n--x\r\nContent-Type: \
                        application/octet-stream\r\n\r\n\r\n--x--\r\n";
            return self.json(
                "POST",
                &format!("{url}multipart"),
                "multipart/related; boundary=x",
                text.as_bytes(),
            );
        }
        if body.len() > 1000 && self.spoil.swap(false, Ordering::SeqCst) {
            body[500] ^= 1;
        }
        self.json("POST", &format!("{url}media"), "application/octet-stream", &body)
    }

    fn stored(&self, request: &Request, name: &str, stored: Answer) -> io::Result<Answer> {
        if stored.status != 200 {
            return Ok(error(
                stored.status,
                if stored.status == 404 { "NoSuchBucket" } else { "InvalidRequest" },
            ));
        }
        let facts = self.facts(&request.bucket, name)?.unwrap_or_default();
        Ok(Answer { status: 200, headers: self.headers(&facts), body: Vec::new() })
    }

    fn complete(&self, request: &Request, upload: &str) -> io::Result<Answer> {
        let parts = self.names(&request.bucket, &format!("{PARTS}/{upload}/"))?;
        if parts.is_empty() {
            return Ok(error(404, "NoSuchUpload"));
        }
        let sources: Vec<_> = parts.iter().map(|name| serde_json::json!({ "name": name })).collect();
        let body = serde_json::json!({ "destination": {}, "sourceObjects": sources }).to_string();
        let url = format!("{}/compose", object_url(&request.bucket, &request.object));
        let composed = self.json("POST", &url, "application/json", body.as_bytes())?;
        if composed.status != 200 {
            return Ok(error(composed.status, "InvalidPart"));
        }
        self.remove_parts(request, upload)?;
        let result = "<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>";
        Ok(xml(200, result))
    }

    fn remove_parts(&self, request: &Request, upload: &str) -> io::Result<()> {
        for name in self.names(&request.bucket, &format!("{PARTS}/{upload}/"))? {
            self.json("DELETE", &object_url(&request.bucket, &name), "", &[])?;
        }
        Ok(())
    }

    fn get(&self, request: &Request) -> io::Result<Answer> {
        let Some(facts) = self.facts(&request.bucket, &request.object)? else {
            return Ok(error(404, "NoSuchKey"));
        };
        let mut headers = self.headers(&facts);
        let size: u64 = text(&facts, "size").parse().unwrap_or(0);
        if request.method == "HEAD" {
            headers.push(("Content-Length".to_owned(), size.to_string()));
            return Ok(Answer { status: 200, headers, body: Vec::new() });
        }
        let range = request.headers.get("range").cloned().unwrap_or_default();
        let start = range.strip_prefix("bytes=").and_then(|range| range.split('-').next());
        if start.and_then(|start| start.parse::<u64>().ok()).is_some_and(|start| start >= size) {
            return Ok(error(416, "InvalidRange"));
        }
        let url = format!("{}?alt=media", object_url(&request.bucket, &request.object));
        let content = self.exchange("GET", &url, "", &[], &range)?;
        let content_range = content.headers.into_iter().filter(|(name, _)| name == "content-range");
        headers.extend(content_range);
        Ok(Answer { status: content.status, headers, body: content.body })
    }

    fn list(&self, request: &Request) -> io::Result<Answer> {
        let prefix = request.query("prefix").unwrap_or_default();
        let delimiter = request.query("delimiter").unwrap_or_default();
        let url = format!(
            "/storage/v1/b/{}/o?prefix={}&delimiter={}",
            request.bucket,
            encoded(prefix),
            encoded(delimiter)
        );
        let answer = self.json("GET", &url, "", &[])?;
        if answer.status != 200 {
            return Ok(error(404, "NoSuchBucket"));
        }
        let listing: Value = serde_json::from_slice(&answer.body)?;
        let array = |name: &str| listing[name].as_array().cloned().unwrap_or_default();
        let mut found = BTreeMap::new();
        for item in array("items") {
            let name = text(&item, "name");
            let entry = format!(
                "<Contents><Key>{name}</Key><LastModified>{}</LastModified><ETag>\"x\"</ETag><Size>{}</Size>\
                 </Contents>",
                text(&item, "updated"),
                text(&item, "size")
            );
            found.insert(name, entry);
        }
        for name in array("prefixes").iter().filter_map(Value::as_str) {
            found
                .insert(name.to_owned(), format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"));
        }
        found.retain(|name, _| !name.starts_with(PARTS));
        let after = request.query("continuation-token").unwrap_or_default();
        let mut page = found.into_iter().filter(|(name, _)| name.as_str() > after);
        let entries: Vec<_> = page.by_ref().take(PAGE).collect();
        let token = match (page.next(), entries.last()) {
            (Some(_), Some((last, _))) => {
                format!("<NextContinuationToken>{last}</NextContinuationToken>")
            }
            _ => String::new(),
        };
        let entries: String = entries.into_iter().map(|(_, entry)| entry).collect();
        Ok(xml(200, &format!("<ListBucketResult>{entries}{token}</ListBucketResult>")))
    }

    fn names(&self, bucket: &str, prefix: &str) -> io::Result<Vec<String>> {
        let answer =
            self.json("GET", &format!("/storage/v1/b/{bucket}/o?prefix={}", encoded(prefix)), "", &[])?;
        let listing: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let items = listing["items"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<_> = items.iter().map(|item| text(item, "name")).collect();
        names.sort();
        Ok(names)
    }

    fn facts(&self, bucket: &str, object: &str) -> io::Result<Option<Value>> {
        let answer = self.json("GET", &object_url(bucket, object), "", &[])?;
        Ok(match answer.status {
            200 => Some(serde_json::from_slice(&answer.body)?),
            _ => None,
        })
    }

    fn headers(&self, facts: &Value) -> Vec<(String, String)> {
        let updated: jiff::Timestamp = text(facts, "updated").parse().unwrap_or_default();
        let date = updated.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let mut headers = vec![
            ("ETag".to_owned(), format!("\"{}\"", text(facts, "etag"))),
            ("Last-Modified".to_owned(), date),
            ("x-goog-generation".to_owned(), text(facts, "generation")),
        ];
        if self.reports != Reports::Nothing {
            let hash = format!("crc32c={},md5={}", text(facts, "crc32c"), text(facts, "md5Hash"));
            headers.push(("x-goog-hash".to_owned(), hash));
        }
        headers
    }

    fn json(&self, method: &str, url: &str, content_type: &str, body: &[u8]) -> io::Result<Answer> {
        self.exchange(method, url, content_type, body, "")
    }

    fn exchange(
        &self,
        method: &str,
        url: &str,
        content_type: &str,
        body: &[u8],
        range: &str,
    ) -> io::Result<Answer> {
        let mut emulator = TcpStream::connect(self.emulator)?;
        emulator.set_nodelay(true)?;
        let mut head = format!("{method} {url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if !body.is_empty() {
            head.push_str(&format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len()));
        }
        if !range.is_empty() {
            head.push_str(&format!("Range: {range}\r\n"));
        }
        emulator.write_all(head.as_bytes())?;
        emulator.write_all(b"\r\n")?;
        emulator.write_all(body)?;
        let mut answer = Vec::new();
        emulator.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(answer.len());
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|text| text.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        Ok(Answer {
            status: status.unwrap_or(500),
            headers: headers.collect(),
            body: answer.get(end + 4..).unwrap_or_default().to_vec(),
        })
    }
}

fn object_url(bucket: &str, object: &str) -> String {
    format!("/storage/v1/b/{bucket}/o/{}", encoded(object))
}

fn text(value: &Value, name: &str) -> String {
    match &value[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn xml(status: u16, body: &str) -> Answer {
    let headers = vec![("Content-Type".to_owned(), "application/xml".to_owned())];
    Answer { status, headers, body: body.as_bytes().to_vec() }
}

fn error(status: u16, code: &str) -> Answer {
    xml(status, &format!("<Error><Code>{code}</Code><Message>From the gateway.</Message></Error>"))
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
