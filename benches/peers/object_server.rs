//! An S3 server that does next to no work, because it shares the machine with the tools that are measured: objects are kept
//! in memory, signatures and checksums are not looked at, nothing is synced. A delay per round trip stands for a
//! store that is far away: the kernel of this machine may have no way to add one.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The bucket that every path begins with.
pub const BUCKET: &str = "bucket";

/// Names in one page of a listing, as S3 gives them.
const PAGE: usize = 1000;

/// A server process; ended when dropped.
pub struct ObjectServer {
    process: Child,
    /// What clients are told.
    pub endpoint: String,
}

impl ObjectServer {
    /// Starts this program again as a server whose round trips take `delay` longer.
    pub fn start(delay: Duration) -> ObjectServer {
        let own = std::env::current_exe().expect("own path");
        let milliseconds = delay.as_millis().to_string();
        let mut process = Command::new(own)
            .args(["--serve-objects", &milliseconds])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the object server");
        let mut line = String::new();
        let output = process.stdout.take().expect("it was piped");
        BufReader::new(output).read_line(&mut line).expect("read the server's address");
        ObjectServer { process, endpoint: format!("http://{}", line.trim()) }
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Default)]
struct Store {
    objects: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<u32, Vec<u8>>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The `--serve-objects` mode: prints its address and serves until it is killed.
pub fn serve(delay: Duration) -> ! {
    serve_objects(delay, BTreeMap::new())
}

/// The same with objects that are there from the beginning.
pub fn serve_objects(delay: Duration, objects: BTreeMap<String, Arc<Vec<u8>>>) -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    println!("{}", listener.local_addr().expect("own address"));
    let store = Arc::new(Store { objects: Mutex::new(objects), uploads: Mutex::default() });
    for socket in listener.incoming().flatten() {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            // Setting up a connection is a round trip too.
            std::thread::sleep(delay);
            let _ = converse(socket, &store, delay);
        });
    }
    std::process::exit(0)
}

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: &'static str,
    headers: String,
    body: Arc<Vec<u8>>,
}

impl Answer {
    fn new(status: &'static str, headers: String, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, headers, body: Arc::new(body.into()) }
    }
}

fn converse(mut socket: TcpStream, store: &Store, delay: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut input = BufReader::with_capacity(256 << 10, socket.try_clone()?);
    while let Some(request) = read_request(&mut input, &mut socket)? {
        std::thread::sleep(delay);
        let head_only = request.method == "HEAD";
        let answer = store.answer(request);
        let head = format!("HTTP/1.1 {}\r\n{}", answer.status, answer.headers);
        let length = if head.contains("Content-Length") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", answer.body.len())
        };
        socket.write_all(
            format!("{head}{length}Last-Modified: Sat, 21 Nov 2026 00:00:00 GMT\r\n\r\n").as_bytes(),
        )?;
        if !head_only {
            socket.write_all(&answer.body)?;
        }
    }
    Ok(())
}

fn read_request(input: &mut impl BufRead, output: &mut impl Write) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let (method, target) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    if headers.contains_key("expect") {
        output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    if headers.get("x-amz-content-sha256").is_some_and(|kind| kind.starts_with("STREAMING-")) {
        body = unchunk(&body);
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = decode(path)
        .trim_start_matches('/')
        .strip_prefix(BUCKET)
        .unwrap_or_default()
        .trim_start_matches('/')
        .to_owned();
    let query = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = query.map(|(name, value)| (decode(name), decode(value))).collect();
    Ok(Some(Request { method, key, query, headers, body }))
}

/// The body of a request that is sent in signed pieces.
fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
        let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16).unwrap_or(0);
        bytes = &bytes[end + 2..];
        if length == 0 || bytes.len() < length + 2 {
            break;
        }
        body.extend_from_slice(&bytes[..length]);
        bytes = &bytes[length + 2..];
    }
    body
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let escaped =
            more.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match escaped.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Store {
    fn answer(&self, request: Request) -> Answer {
        match request.method.as_str() {
            "GET" if request.key.is_empty() => self.list(&request),
            "GET" | "HEAD" => self.get(&request),
            "PUT" if request.query.contains_key("partNumber") => {
                let number = request.query["partNumber"].parse().unwrap_or(0);
                locked(&self.uploads).entry(request.key).or_default().insert(number, request.body);
                Answer::new("200 OK", format!("ETag: \"{number}\"\r\n"), "")
            }
            "POST" if request.query.contains_key("uploads") => Answer::new(
                "200 OK",
                String::new(),
                format!(
                    "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{}</Key><UploadId>1</UploadId></InitiateMultipartUploadResult>",
                    request.key
                ),
            ),
            "POST" => {
                let parts = locked(&self.uploads).remove(&request.key).unwrap_or_default();
                let key = request.key.clone();
                // In one copy a part: collected byte by byte, 13 MB took longer than the whole upload.
                let body = parts.into_values().collect::<Vec<_>>().concat();
                let answer = self.put(Request { body, ..request });
                if answer.status.starts_with("412") {
                    return answer;
                }
                Answer::new(
                    "200 OK",
                    String::new(),
                    format!(
                        "<CompleteMultipartUploadResult><Location>x</Location><Bucket>{BUCKET}</Bucket><Key>{key}</Key><ETag>\"1\"</ETag></CompleteMultipartUploadResult>"
                    ),
                )
            }
            "PUT" => self.put(request),
            "DELETE" if request.query.contains_key("uploadId") => {
                locked(&self.uploads).remove(&request.key);
                Answer::new("204 No Content", String::new(), "")
            }
            "DELETE" => {
                locked(&self.objects).remove(&request.key);
                Answer::new("204 No Content", String::new(), "")
            }
            _ => Answer::new("405 Method Not Allowed", String::new(), ""),
        }
    }

    fn put(&self, request: Request) -> Answer {
        let mut objects = locked(&self.objects);
        if request.headers.contains_key("if-none-match") && objects.contains_key(&request.key) {
            return Answer::new(
                "412 Precondition Failed",
                String::new(),
                "<Error><Code>PreconditionFailed</Code></Error>",
            );
        }
        let from = request.headers.get("x-amz-copy-source").map(|source| decode(source));
        let from = from
            .as_deref()
            .map(|source| source.trim_start_matches('/').trim_start_matches(BUCKET).trim_start_matches('/'));
        let body = match from {
            Some(source) => objects.get(source).cloned().unwrap_or_default(),
            None => Arc::new(request.body),
        };
        objects.insert(request.key, body);
        let body =
            if from.is_some() { "<CopyObjectResult><ETag>\"1\"</ETag></CopyObjectResult>" } else { "" };
        Answer::new("200 OK", "ETag: \"1\"\r\n".to_owned(), body)
    }

    fn get(&self, request: &Request) -> Answer {
        let object = locked(&self.objects).get(&request.key).cloned();
        let Some(object) = object else {
            return Answer::new("404 Not Found", String::new(), "<Error><Code>NoSuchKey</Code></Error>");
        };
        let range =
            request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((first, last)) = range else {
            return Answer {
                status: "200 OK",
                headers: format!("ETag: \"1\"\r\nContent-Length: {}\r\n", object.len()),
                body: object,
            };
        };
        let first: usize = first.parse().unwrap_or(0);
        let end = last.parse().map_or(object.len(), |last: usize| (last + 1).min(object.len()));
        let Some(part) = object.get(first..end).filter(|part| !part.is_empty()) else {
            return Answer::new(
                "416 Range Not Satisfiable",
                String::new(),
                "<Error><Code>InvalidRange</Code></Error>",
            );
        };
        let headers = format!("ETag: \"1\"\r\nContent-Range: bytes {first}-{}/{}\r\n", end - 1, object.len());
        Answer::new("206 Partial Content", headers, part)
    }

    fn list(&self, request: &Request) -> Answer {
        let text = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let (prefix, delimiter) = (text("prefix"), text("delimiter"));
        // A page ends at a name; the next one begins behind it.
        let after = text("start-after").max(text("continuation-token"));
        let (mut contents, mut folders) = (String::new(), std::collections::BTreeSet::new());
        let (mut count, mut last, mut next) = (0, String::new(), None);
        let objects = locked(&self.objects);
        for (key, object) in objects.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            let rest = key.strip_prefix(&prefix).unwrap_or_default();
            let folder = rest.split_once('/').filter(|_| !delimiter.is_empty()).map(|(folder, _)| folder);
            let name = folder.map_or(key.clone(), |folder| format!("{prefix}{folder}/"));
            if name <= after || name == last {
                continue;
            }
            if count == PAGE {
                next = Some(last.clone());
                break;
            }
            count += 1;
            if folder.is_some() {
                folders.insert(name.clone());
            } else {
                contents.push_str(&format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-11-21T00:00:00.000Z</LastModified><ETag>\"1\"</ETag><Size>{}</Size></Contents>",
                    object.len()
                ));
            }
            last = name;
        }
        let folders: String = folders
            .iter()
            .map(|folder| format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"))
            .collect();
        Answer::new(
            "200 OK",
            "Content-Type: application/xml\r\n".to_owned(),
            format!(
                "<ListBucketResult><IsTruncated>{}</IsTruncated>{}{contents}{folders}</ListBucketResult>",
                next.is_some(),
                next.map_or(String::new(), |next| format!(
                    "<NextContinuationToken>{next}</NextContinuationToken>"
                )),
            ),
        )
    }
}
