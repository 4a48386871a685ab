//! A store that misbehaves on demand: an HTTP proxy between a client and a real server.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

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
    /// Half of the answer's body comes, then nothing, on an open connection.
    HangMidBody,
    /// Half of the answer's body comes, then the connection is reset.
    ResetMidBody,
    /// Half of the answer's body comes, then the connection is closed in good order.
    TruncateBody,
    /// One bit in the middle of the answer's body is flipped.
    FlipBit,
    /// The server does what it is asked, but its answer is lost: the connection is reset.
    LoseAnswer,
    /// Half of the request's body reaches the server (nothing at all of a request without one), then nothing until the client is gone.
    HoldRequest,
    /// The server does what it is asked, but its answer does not come for as long as the client waits.
    HoldAnswer,
}

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
    stopped: AtomicBool,
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
            stopped: AtomicBool::new(false),
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

    fn fault_for(&self, first_line: &str) -> Fault {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let mut rule = self.rule.lock().unwrap();
        if rule.times == 0 || !first_line.contains(&rule.pattern) {
            return Fault::None;
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
        let bound = listener.get_or_insert_with(|| TcpListener::bind(addr).unwrap());
        let Ok((client, _)) = bound.accept() else { continue };
        if shared.is_stopped() || shared.is_refusing() {
            continue;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || drop(serve(&shared, client)));
    }
}

/// One message: its head with the empty line, and its body as it came.
pub struct Message {
    pub head: Vec<u8>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn first_line(&self) -> String {
        String::from_utf8_lossy(&self.head).lines().next().unwrap_or_default().to_owned()
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
    while let Some(request) = Message::read(&mut client, &mut from_client, true)? {
        if shared.is_stopped() {
            break;
        }
        let first_line = request.first_line();
        let fault = shared.fault_for(&first_line);
        match fault {
            Fault::Status(status) => {
                client.write_all(answer(status, "").as_bytes())?;
                continue;
            }
            Fault::StatusRetryAfter(status, seconds) => {
                let header = format!("Retry-After: {seconds}\r\n");
                client.write_all(answer(status, &header).as_bytes())?;
                continue;
            }
            Fault::Delay(time) => std::thread::sleep(time),
            // A connection that was open before ends now.
            Fault::Refuse => break,
            Fault::HoldRequest => {
                let mut server = TcpStream::connect(shared.upstream)?;
                if !request.body.is_empty() {
                    let half = &request.body[..request.body.len() / 2];
                    drop(server.write_all(&[request.head.as_slice(), half].concat()));
                }
                return hold(shared, &mut client, &mut from_client);
            }
            _ => {}
        }
        // A connection for each request: a server that answers from the head alone closes it, which the client must not see.
        let (mut server, mut from_server) = (TcpStream::connect(shared.upstream)?, Vec::new());
        server.set_nodelay(true)?;
        // In one write, and its failure is no end: a server may answer from the head alone and close.
        drop(server.write_all(&[request.head.as_slice(), &request.body].concat()));
        let has_body = !first_line.starts_with("HEAD ");
        let Some(mut response) = Message::read(&mut server, &mut from_server, has_body)? else { break };
        let half = response.body.len() / 2;
        match fault {
            Fault::HoldAnswer => return hold(shared, &mut client, &mut from_client),
            Fault::HangMidBody => {
                if half > 0 {
                    client.write_all(&response.head)?;
                    client.write_all(&response.body[..half])?;
                }
                // Until the client gives up.
                while fill(&mut client, &mut from_client)? {}
                break;
            }
            Fault::TruncateBody if half > 0 => {
                client.write_all(&response.head)?;
                client.write_all(&response.body[..half])?;
                break;
            }
            Fault::ResetMidBody | Fault::LoseAnswer => {
                if fault == Fault::ResetMidBody && half > 0 {
                    client.write_all(&response.head)?;
                    client.write_all(&response.body[..half])?;
                    // What was sent should arrive before the reset does.
                    std::thread::sleep(Duration::from_millis(50));
                }
                let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::Linger, &linger)?;
                break;
            }
            Fault::FlipBit if half > 0 => response.body[half] ^= 0x10,
            _ => {}
        }
        client.write_all(&response.head)?;
        client.write_all(&response.body)?;
    }
    Ok(())
}

/// Says nothing until the client is gone.
fn hold(shared: &Shared, client: &mut TcpStream, held: &mut Vec<u8>) -> io::Result<()> {
    shared.held.fetch_add(1, Ordering::SeqCst);
    while fill(client, held)? {}
    Ok(())
}

fn answer(status: u16, header: &str) -> String {
    let code = match status {
        403 => "AccessDenied",
        404 => "NoSuchKey",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "SlowDown",
        _ => "Injected",
    };
    let body = format!("<Error><Code>{code}</Code><Message>Injected by the test.</Message></Error>");
    format!(
        "HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\n{header}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
