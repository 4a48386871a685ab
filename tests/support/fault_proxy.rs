//! A store that misbehaves on demand or at random: an HTTP proxy between a client and a real server.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::random::Random;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Nobody listens.
    Refuse,
    /// The request is answered with this status and never reaches the server.
    Status(u16),
    /// The same, and the client is asked to stay away for so many seconds.
    StatusRetryAfter(u16, u64),
    /// The request waits for so long, then goes on.
    Delay(Duration),
    /// The request waits until so many have come since the rule was set: who sends one after the other's answer never gets one.
    Gather(usize),
    /// Half of the answer's body comes, then nothing, on an open connection.
    HangMidBody,
    /// Half of the answer's body comes, then the connection is reset.
    ResetMidBody,
    /// Half of the answer's body comes, then the connection is closed in good order.
    TruncateBody,
    /// Half of the answer's body comes, and the head says that this is all.
    ShortBody,
    /// One bit in the middle of the answer's body is flipped.
    FlipBit,
    /// One bit in the middle of the request's body is flipped, which the server can tell by its checksum.
    FlipBitOfRequest,
    /// The server does what it is asked, but its answer is lost: the connection is reset.
    LoseAnswer,
    /// Half of the request's body reaches the server (nothing at all of a request without one), then nothing until the client is gone.
    HoldRequest,
    /// The server does what it is asked, but its answer does not come for as long as the client waits.
    HoldAnswer,
    /// The answer's body comes with so many bytes per second.
    Bandwidth(u64),
    /// The answer comes in pieces of so many bytes, each after a pause.
    Drip(usize, Duration),
    /// The request never reaches the server, and is answered with 200 and the description of an error.
    OkWithError,
    /// A listing is answered as it was up to [`STALENESS`] ago.
    StaleListing,
    /// The store finds that the client's clock is wrong.
    ClockRefused,
    /// The store's clock is wrong by so many seconds: its answers' dates say so.
    ClockOff(i64),
}

impl Fault {
    /// Its name without its numbers, to count it by.
    pub fn name(self) -> String {
        format!("{self:?}").split('(').next().unwrap_or_default().to_owned()
    }
}

/// How old a stale listing may be.
pub const STALENESS: Duration = Duration::from_secs(5);

/// The proxy; it stops when it is dropped.
pub struct FaultProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    rule: Mutex<Rule>,
    changed: Condvar,
    requests: AtomicUsize,
    held: AtomicUsize,
    /// First lines of requests since the last change.
    seen: Mutex<Vec<String>>,
    stopped: AtomicBool,
    weather: Mutex<Weather>,
    listings: Mutex<BTreeMap<String, (Instant, Message)>>,
}

/// What goes wrong at random while no rule says what.
struct Weather {
    random: Random,
    /// Of 1,000 requests, so many meet a fault.
    per_mille: u64,
    faults: Vec<Fault>,
    /// How often each was met.
    met: BTreeMap<String, usize>,
}

impl Weather {
    fn roll(&mut self) -> Fault {
        if self.faults.is_empty() || self.random.below(1000) >= self.per_mille {
            return Fault::None;
        }
        let fault = self.faults[self.random.below(self.faults.len() as u64) as usize];
        *self.met.entry(fault.name()).or_default() += 1;
        fault
    }
}

struct Rule {
    fault: Fault,
    /// For so many requests; after them nothing goes wrong.
    times: usize,
    /// Only for requests whose first line contains this.
    pattern: String,
}

impl FaultProxy {
    /// A proxy in front of `upstream`, on a port of its own, that passes everything on.
    pub fn start(upstream: SocketAddr) -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let rule = Rule { fault: Fault::None, times: 0, pattern: String::new() };
        let shared = Arc::new(Shared {
            upstream,
            rule: Mutex::new(rule),
            changed: Condvar::new(),
            requests: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            seen: Mutex::default(),
            stopped: AtomicBool::new(false),
            weather: Mutex::new(Weather {
                random: Random::new(1),
                per_mille: 0,
                faults: Vec::new(),
                met: BTreeMap::new(),
            }),
            listings: Mutex::new(BTreeMap::new()),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accept(&accepting, listener, addr));
        FaultProxy { addr, shared }
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on every request meets this.
    pub fn set(&self, fault: Fault) {
        self.set_matching("", usize::MAX, fault);
    }

    /// The next `times` requests meet this, later ones nothing.
    pub fn set_first(&self, times: usize, fault: Fault) {
        self.set_matching("", times, fault);
    }

    /// The next `times` requests whose first line (`GET /bucket/key HTTP/1.1`) contains `pattern` meet this.
    pub fn set_matching(&self, pattern: &str, times: usize, fault: Fault) {
        let was = {
            let mut rule = self.shared.rule.lock().unwrap();
            let was = rule.fault;
            *rule = Rule { fault, times, pattern: pattern.to_owned() };
            was
        };
        self.shared.changed.notify_all();
        self.shared.requests.store(0, Ordering::SeqCst);
        self.shared.held.store(0, Ordering::SeqCst);
        self.shared.seen.lock().unwrap().clear();
        if fault == Fault::Refuse {
            // Wakes the listener, and waits until it is gone.
            while TcpStream::connect(self.addr).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        } else if was == Fault::Refuse {
            while TcpStream::connect(self.addr).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// From now on every request that no rule is for meets, `per_mille` times of 1,000, one of these.
    pub fn set_weather(&self, seed: u64, per_mille: u64, faults: &[Fault]) {
        let mut weather = self.shared.weather.lock().unwrap();
        weather.random = Random::new(seed);
        weather.per_mille = per_mille;
        weather.faults = faults.to_vec();
    }

    /// How often each random fault was met so far.
    pub fn weather_met(&self) -> BTreeMap<String, usize> {
        self.shared.weather.lock().unwrap().met.clone()
    }

    /// The first lines of requests since the last change, in the order in which they came.
    pub fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Requests since the last change.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Requests since the last change that [`Fault::HoldRequest`] or [`Fault::HoldAnswer`] has got where it holds them.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(self.addr);
    }
}

impl Shared {
    fn is_refusing(&self) -> bool {
        self.rule.lock().unwrap().fault == Fault::Refuse
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn wait_for_requests(&self, count: usize) {
        while self.requests.load(Ordering::SeqCst) < count && !self.is_stopped() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn fault_for(&self, first_line: &str) -> Fault {
        let mut seen = self.seen.lock().unwrap();
        if seen.len() < 10_000 {
            seen.push(first_line.to_owned());
        }
        drop(seen);
        self.requests.fetch_add(1, Ordering::SeqCst);
        let mut rule = self.rule.lock().unwrap();
        if rule.times == 0 || rule.fault == Fault::None || !first_line.contains(&rule.pattern) {
            return self.weather.lock().unwrap().roll();
        }
        rule.times = if rule.times == usize::MAX { usize::MAX } else { rule.times - 1 };
        rule.fault
    }
}

fn accept(shared: &Arc<Shared>, listener: TcpListener, addr: SocketAddr) {
    let mut listener = Some(listener);
    while !shared.is_stopped() {
        if shared.is_refusing() {
            listener = None;
            let rule = shared.rule.lock().unwrap();
            let refusing = |rule: &mut Rule| rule.fault == Fault::Refuse && !shared.is_stopped();
            drop(shared.changed.wait_while(rule, refusing).unwrap());
            continue;
        }
        let bound = listener.get_or_insert_with(|| bind_again(addr));
        let Ok((client, _)) = bound.accept() else { continue };
        if shared.is_stopped() || shared.is_refusing() {
            continue;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || drop(serve(&shared, client)));
    }
}

/// Somebody's connection may have got this port meanwhile, for a moment.
fn bind_again(addr: SocketAddr) -> TcpListener {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(addr) {
            Ok(listener) => return listener,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "listen on {addr}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One message: its head with the empty line, and its body as it came.
#[derive(Clone)]
pub struct Message {
    pub head: Vec<u8>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn first_line(&self) -> String {
        String::from_utf8_lossy(&self.head).lines().next().unwrap_or_default().to_owned()
    }

    /// Replaces the value of a header that is there.
    fn set_header(&mut self, name: &str, value: &str) {
        let text = String::from_utf8_lossy(&self.head).into_owned();
        let beginning = format!("{name}:");
        let line = |line: &str| match line.to_ascii_lowercase().starts_with(&beginning) {
            true => format!("{name}: {value}"),
            false => line.to_owned(),
        };
        self.head = text.split("\r\n").map(line).collect::<Vec<_>>().join("\r\n").into_bytes();
    }

    /// Reads a message; `None` at the end of the connection.
    pub fn read(from: &mut impl Read, held: &mut Vec<u8>, has_body: bool) -> io::Result<Option<Message>> {
        let head_length = loop {
            if let Some(at) = held.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !fill(from, held)? {
                return Ok(None);
            }
        };
        let head: Vec<u8> = held.drain(..head_length).collect();
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let body = if !has_body {
            Vec::new()
        } else if header("transfer-encoding:").is_some_and(|value| value.contains("chunked")) {
            while !held.ends_with(b"0\r\n\r\n") {
                if !fill(from, held)? {
                    break;
                }
            }
            std::mem::take(held)
        } else {
            let length = header("content-length:").and_then(|value| value.parse().ok()).unwrap_or(0);
            while held.len() < length {
                if !fill(from, held)? {
                    break;
                }
            }
            held.drain(..length.min(held.len())).collect()
        };
        Ok(Some(Message { head, body }))
    }
}

fn fill(from: &mut impl Read, held: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 64 << 10];
    let length = from.read(&mut buffer)?;
    held.extend_from_slice(&buffer[..length]);
    Ok(length > 0)
}

fn serve(shared: &Shared, mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut from_client = Vec::new();
    while let Some(mut request) = Message::read(&mut client, &mut from_client, true)? {
        if shared.is_stopped() {
            break;
        }
        let first_line = request.first_line();
        let fault = shared.fault_for(&first_line);
        // A connection that was open before ends now.
        if fault == Fault::Refuse {
            break;
        }
        if let Some(answer) = own_answer(fault, &first_line) {
            client.write_all(answer.as_bytes())?;
            continue;
        }
        match fault {
            Fault::Delay(time) => std::thread::sleep(time),
            Fault::HoldRequest => {
                let mut server = TcpStream::connect(shared.upstream)?;
                if !request.body.is_empty() {
                    let half = &request.body[..request.body.len() / 2];
                    drop(server.write_all(&[request.head.as_slice(), half].concat()));
                }
                return hold(shared, &mut client, &mut from_client);
            }
            Fault::FlipBitOfRequest if !request.body.is_empty() => {
                let middle = request.body.len() / 2;
                request.body[middle] ^= 0x10;
            }
            Fault::Gather(count) => shared.wait_for_requests(count),
            _ => {}
        }
        // A connection for each request: a server that answers from the head alone closes it, which the client must not see.
        let (mut server, mut from_server) = (TcpStream::connect(shared.upstream)?, Vec::new());
        server.set_nodelay(true)?;
        // In one write, and its failure is no end: a server may answer from the head alone and close.
        drop(server.write_all(&[request.head.as_slice(), &request.body].concat()));
        let has_body = !first_line.starts_with("HEAD ");
        let Some(mut response) = Message::read(&mut server, &mut from_server, has_body)? else { break };
        if first_line.contains("list-type=") {
            shared.listing(&first_line, fault, &mut response);
        }
        if fault == Fault::HoldAnswer {
            return hold(shared, &mut client, &mut from_client);
        }
        if fault == Fault::HangMidBody {
            let half = response.body.len() / 2;
            if half > 0 {
                client.write_all(&response.head)?;
                client.write_all(&response.body[..half])?;
            }
            // Until the client gives up.
            while fill(&mut client, &mut from_client)? {}
            break;
        }
        if !pass_on(fault, response, &mut client)? {
            break;
        }
    }
    Ok(())
}

/// Says nothing until the client is gone.
fn hold(shared: &Shared, client: &mut TcpStream, held: &mut Vec<u8>) -> io::Result<()> {
    shared.held.fetch_add(1, Ordering::SeqCst);
    while fill(client, held)? {}
    Ok(())
}

impl Shared {
    /// Remembers how a listing was, or answers with what is remembered.
    fn listing(&self, first_line: &str, fault: Fault, response: &mut Message) {
        let mut listings = self.listings.lock().unwrap();
        let known = listings.get(first_line).filter(|(since, _)| since.elapsed() < STALENESS);
        match known {
            Some((_, earlier)) if fault == Fault::StaleListing => *response = earlier.clone(),
            Some(_) => {}
            None => drop(listings.insert(first_line.to_owned(), (Instant::now(), response.clone()))),
        }
    }
}

/// What the proxy says by itself.
fn own_answer(fault: Fault, first_line: &str) -> Option<String> {
    match fault {
        Fault::Status(status) => Some(answer(status, "")),
        Fault::StatusRetryAfter(status, seconds) => {
            Some(answer(status, &format!("Retry-After: {seconds}\r\n")))
        }
        Fault::ClockRefused => Some(error_answer(403, "RequestTimeTooSkewed", "")),
        // An answer to HEAD has no body to hold it.
        Fault::OkWithError if !first_line.starts_with("HEAD ") => Some(answer(200, "")),
        _ => None,
    }
}

/// Whether the connection stays open.
fn pass_on(fault: Fault, mut response: Message, client: &mut TcpStream) -> io::Result<bool> {
    let half = response.body.len() / 2;
    match fault {
        Fault::TruncateBody if half > 0 => {
            client.write_all(&response.head)?;
            client.write_all(&response.body[..half])?;
            return Ok(false);
        }
        Fault::ResetMidBody | Fault::LoseAnswer => {
            if fault == Fault::ResetMidBody && half > 0 {
                client.write_all(&response.head)?;
                client.write_all(&response.body[..half])?;
                // What was sent should arrive before the reset does.
                std::thread::sleep(Duration::from_millis(50));
            }
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&*client, nix::sys::socket::sockopt::Linger, &linger)?;
            return Ok(false);
        }
        Fault::ShortBody if half > 0 => {
            response.set_header("content-length", &half.to_string());
            response.body.truncate(half);
        }
        Fault::FlipBit if half > 0 => response.body[half] ^= 0x10,
        Fault::ClockOff(seconds) => {
            let now = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_secs(seconds));
            let date = now.unwrap().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            response.set_header("date", &date);
        }
        _ => {}
    }
    let bytes = [response.head.as_slice(), &response.body].concat();
    let (piece, pause) = match fault {
        Fault::Bandwidth(per_second) => ((per_second / 20).max(1) as usize, Duration::from_millis(50)),
        Fault::Drip(piece, pause) => (piece, pause),
        _ => (bytes.len().max(1), Duration::ZERO),
    };
    for piece in bytes.chunks(piece) {
        std::thread::sleep(pause);
        client.write_all(piece)?;
    }
    Ok(true)
}

fn answer(status: u16, header: &str) -> String {
    let code = match status {
        200 | 500 => "InternalError",
        403 => "AccessDenied",
        404 => "NoSuchKey",
        429 => "TooManyRequests",
        503 => "SlowDown",
        _ => "Injected",
    };
    error_answer(status, code, header)
}

fn error_answer(status: u16, code: &str, header: &str) -> String {
    let body = format!("<Error><Code>{code}</Code><Message>Injected by the test.</Message></Error>");
    format!(
        "HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\n{header}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
