//! From parameters to an open connection: every place in turn, every kind of encryption that sslmode allows.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use postgres::config::{ChannelBinding, SslMode as Encryption};
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::parameters::{Endpoint, Host, Parameters, SOCKET_DIRECTORIES};
use super::tls::{self, SslMode};
use super::{ClientError, passfile, server_words};

/// `target_session_attrs`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

const WANTED: &[(&str, Wanted)] = &[
    ("any", Wanted::Any),
    ("read-write", Wanted::ReadWrite),
    ("read-only", Wanted::ReadOnly),
    ("primary", Wanted::Primary),
    ("standby", Wanted::Standby),
    ("prefer-standby", Wanted::PreferStandby),
];

const CHANNEL_BINDINGS: &[(&str, ChannelBinding)] = &[
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];

/// Connects to `database` at the first place that lets us in and is what `target_session_attrs` asks for.
pub fn connect(parameters: &Parameters, database: &str) -> Result<(Client, Endpoint), ClientError> {
    let endpoints = parameters.endpoints()?;
    match parameters.choice("target_session_attrs", WANTED, Wanted::Any)? {
        Wanted::PreferStandby => connect_to_any(parameters, database, &endpoints, Wanted::Standby)
            .or_else(|_| connect_to_any(parameters, database, &endpoints, Wanted::Any)),
        wanted => connect_to_any(parameters, database, &endpoints, wanted),
    }
}

fn connect_to_any(
    parameters: &Parameters,
    database: &str,
    endpoints: &[Endpoint],
    wanted: Wanted,
) -> Result<(Client, Endpoint), ClientError> {
    let mut problems = Vec::new();
    for endpoint in endpoints {
        match connect_to(parameters, database, endpoint)? {
            Ok(mut client) => match mismatch(&mut client, wanted) {
                None => return Ok((client, endpoint.clone())),
                Some(problem) => problems.push((endpoint, problem)),
            },
            Err(problem) => problems.push((endpoint, problem)),
        }
    }
    Err(join(&problems))
}

fn join(problems: &[(&Endpoint, String)]) -> ClientError {
    match problems {
        [(endpoint, problem)] => {
            ClientError::Connect { address: endpoint.to_string(), problem: problem.clone() }
        }
        _ => ClientError::Connect {
            address: problems.iter().map(|(endpoint, _)| endpoint.to_string()).collect::<Vec<_>>().join(", "),
            problem: problems
                .iter()
                .map(|(endpoint, p)| format!("{endpoint}: {p}"))
                .collect::<Vec<_>>()
                .join("; "),
        },
    }
}

/// Why this server is not the wanted one.
fn mismatch(client: &mut Client, wanted: Wanted) -> Option<String> {
    if wanted == Wanted::Any {
        return None;
    }
    let row = match client
        .query_one("SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'", &[])
    {
        Ok(row) => row,
        Err(error) => return Some(server_words(&error)),
    };
    let (standby, read_only) = match (row.try_get::<_, bool>(0), row.try_get::<_, bool>(1)) {
        (Ok(standby), Ok(read_only)) => (standby, read_only),
        (Err(error), _) | (_, Err(error)) => return Some(server_words(&error)),
    };
    let problem = match wanted {
        Wanted::ReadWrite if standby || read_only => "the session is read-only",
        Wanted::ReadOnly if !standby && !read_only => "the session is not read-only",
        Wanted::Primary if standby => "the server is a standby",
        Wanted::Standby if !standby => "the server is not a standby",
        _ => return None,
    };
    Some(format!("{problem} (target_session_attrs)"))
}

/// One place. The outer error ends the search: other places share the settings.
fn connect_to(
    parameters: &Parameters,
    database: &str,
    endpoint: &Endpoint,
) -> Result<Result<Client, String>, ClientError> {
    let mode = match endpoint.host {
        // libpq ignores sslmode here too.
        Host::Socket(_) => SslMode::Disable,
        Host::Tcp(..) => SslMode::of(parameters)?,
    };
    let order: &[Encryption] = match mode {
        SslMode::Disable => &[Encryption::Disable],
        SslMode::Allow => &[Encryption::Disable, Encryption::Require],
        SslMode::Prefer => &[Encryption::Prefer, Encryption::Disable],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Encryption::Require],
    };
    let mut problems: Vec<String> = Vec::new();
    for &encryption in order {
        let mut config = configure(parameters, database, endpoint)?;
        config.ssl_mode(encryption);
        let tls = match encryption {
            Encryption::Disable => None,
            _ => Some(MakeRustlsConnect::new(tls::client_config(parameters, mode)?)),
        };
        match connect_within(parameters.connect_timeout()?, config, tls) {
            Ok(client) => return Ok(Ok(client)),
            Err(attempt) => {
                if !problems.contains(&attempt.problem) {
                    problems.push(attempt.problem);
                }
                if !attempt.other_encryption_may_help {
                    break;
                }
            }
        }
    }
    Ok(Err(problems.join("; ")))
}

struct FailedAttempt {
    problem: String,
    other_encryption_may_help: bool,
}

/// The whole way in has one deadline: tokio-postgres's own ends when the socket is open, and a server that is stopped
/// or a port that something else listens on would then hold us for ever.
fn connect_within(
    timeout: Option<Duration>,
    mut config: Config,
    tls: Option<MakeRustlsConnect>,
) -> Result<Client, FailedAttempt> {
    if let Some(timeout) = timeout {
        config.connect_timeout(timeout);
    }
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let result = match tls {
            Some(tls) => config.connect(tls),
            None => config.connect(NoTls),
        };
        // Nobody waits any more after the deadline.
        let _ = sender.send(result);
    });
    let received = match timeout {
        Some(timeout) => receiver.recv_timeout(timeout),
        None => receiver.recv().map_err(RecvTimeoutError::from),
    };
    match received {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(FailedAttempt {
            problem: server_words(&error),
            other_encryption_may_help: other_encryption_may_help(&error),
        }),
        Err(_) => Err(FailedAttempt {
            problem: format!("timed out after {} s", timeout.unwrap_or_default().as_secs()),
            other_encryption_may_help: false,
        }),
    }
}

/// As libpq: after a failed handshake, and where pg_hba.conf has no line for this kind of connection.
fn other_encryption_may_help(error: &postgres::Error) -> bool {
    match error.code() {
        Some(code) => *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        // The only way to tell: tokio-postgres keeps its kinds of error to itself.
        None => error.to_string().contains("TLS handshake"),
    }
}

fn configure(parameters: &Parameters, database: &str, endpoint: &Endpoint) -> Result<Config, ClientError> {
    let mut config = Config::new();
    match &endpoint.host {
        Host::Socket(directory) => config.host_path(directory),
        Host::Tcp(name, None) => config.host(name),
        Host::Tcp(name, Some(address)) => config.host(name).hostaddr(*address),
    };
    config.port(endpoint.port).user(parameters.user()?).dbname(database);
    config.application_name(parameters.text("application_name").unwrap_or("walhold"));
    if let Some(password) = password(parameters, database, endpoint)? {
        config.password(password);
    }
    if let Some(options) = parameters.text("options") {
        config.options(options);
    }
    config.channel_binding(parameters.choice("channel_binding", CHANNEL_BINDINGS, ChannelBinding::Prefer)?);
    config.keepalives(parameters.number::<i32>("keepalives")? != Some(0));
    // A backup's session is silent for hours, and firewalls forget silent connections in minutes.
    config.keepalives_idle(seconds(parameters, "keepalives_idle")?.unwrap_or(Duration::from_secs(60)));
    if let Some(interval) = seconds(parameters, "keepalives_interval")? {
        config.keepalives_interval(interval);
    }
    if let Some(count @ 1..) = parameters.number::<u32>("keepalives_count")? {
        config.keepalives_retries(count);
    }
    if let Some(milliseconds @ 1..) = parameters.number::<u64>("tcp_user_timeout")? {
        config.tcp_user_timeout(Duration::from_millis(milliseconds));
    }
    Ok(config)
}

/// 0 stands for the system's default.
fn seconds(parameters: &Parameters, keyword: &str) -> Result<Option<Duration>, ClientError> {
    Ok(parameters.number::<u64>(keyword)?.filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

fn password(
    parameters: &Parameters,
    database: &str,
    endpoint: &Endpoint,
) -> Result<Option<String>, ClientError> {
    if let Some(password) = parameters.text("password") {
        return Ok(Some(password.to_owned()));
    }
    let Some(file) = parameters.passfile() else { return Ok(None) };
    let host = match &endpoint.host {
        Host::Tcp(name, _) => name.clone(),
        // libpq's own default directory goes by the name of localhost.
        Host::Socket(directory) if directory.as_os_str() == SOCKET_DIRECTORIES[0] => "localhost".to_owned(),
        Host::Socket(directory) => directory.display().to_string(),
    };
    let wanted = passfile::Wanted { host: &host, port: endpoint.port, database, user: parameters.user()? };
    Ok(passfile::find(&file, wanted))
}

/// A session's parameters and the place that it is connected to.
#[derive(Clone)]
pub struct Origin {
    pub parameters: Arc<Parameters>,
    pub endpoint: Endpoint,
}

impl Origin {
    /// Another database of the same server.
    pub fn connect(&self, database: &str) -> Result<Client, ClientError> {
        let connected = connect_to(&self.parameters, database, &self.endpoint)?;
        connected.map_err(|problem| join(&[(&self.endpoint, problem)]))
    }
}
