//! All connection parameters of one run and where each came from (`src/interfaces/libpq/fe-connect.c`, `PQconninfoOptions`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{ClientError, ConnectionSettings, connection_string, service};

/// What the process brings along; a value, so that tests need not change their own environment.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Environment variables.
    pub variables: BTreeMap<String, String>,
    /// The home directory, for `~/.pgpass` and its kin.
    pub home: Option<PathBuf>,
    /// The operating system's user, the default role.
    pub user: Option<String>,
}

impl Surroundings {
    /// Those of this process. Variables that are not UTF-8 are left out.
    pub fn of_process() -> Surroundings {
        let account = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten();
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = variables.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        Surroundings {
            home: home.or_else(|| account.as_ref().map(|account| account.dir.clone())),
            user: account.map(|account| account.name),
            variables,
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A file in the home directory.
    fn home_file(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(name))
    }
}

/// What happens to a keyword.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Support {
    /// It is obeyed.
    Used,
    /// It makes no difference here.
    Ignored,
    /// It asks for something that walhold cannot give; this value alone is fine.
    RefusedUnless(&'static str),
}

/// Keyword, variable, support. libpq's list; what is not here is unknown.
const KEYWORDS: &[(&str, Option<&str>, Support)] = &[
    ("host", Some("PGHOST"), Support::Used),
    ("hostaddr", Some("PGHOSTADDR"), Support::Used),
    ("port", Some("PGPORT"), Support::Used),
    ("dbname", Some("PGDATABASE"), Support::Used),
    ("user", Some("PGUSER"), Support::Used),
    ("password", Some("PGPASSWORD"), Support::Used),
    ("passfile", Some("PGPASSFILE"), Support::Used),
    ("service", Some("PGSERVICE"), Support::Used),
    ("servicefile", Some("PGSERVICEFILE"), Support::Used),
    ("options", Some("PGOPTIONS"), Support::Used),
    ("application_name", Some("PGAPPNAME"), Support::Used),
    ("fallback_application_name", None, Support::Ignored),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT"), Support::Used),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS"), Support::Used),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), Support::Ignored),
    ("channel_binding", Some("PGCHANNELBINDING"), Support::Used),
    ("keepalives", None, Support::Used),
    ("keepalives_idle", None, Support::Used),
    ("keepalives_interval", None, Support::Used),
    ("keepalives_count", None, Support::Used),
    ("tcp_user_timeout", None, Support::Used),
    ("sslmode", Some("PGSSLMODE"), Support::Used),
    ("sslrootcert", Some("PGSSLROOTCERT"), Support::Used),
    ("sslcert", Some("PGSSLCERT"), Support::Used),
    ("sslkey", Some("PGSSLKEY"), Support::Used),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION"), Support::Used),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION"), Support::Ignored),
    ("sslcompression", Some("PGSSLCOMPRESSION"), Support::Ignored),
    ("sslsni", Some("PGSSLSNI"), Support::Ignored),
    ("sslkeylogfile", None, Support::RefusedUnless("")),
    ("sslpassword", None, Support::RefusedUnless("")),
    ("sslcrl", Some("PGSSLCRL"), Support::RefusedUnless("")),
    ("sslcrldir", Some("PGSSLCRLDIR"), Support::RefusedUnless("")),
    ("sslcertmode", Some("PGSSLCERTMODE"), Support::RefusedUnless("allow")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION"), Support::RefusedUnless("postgres")),
    ("requirepeer", Some("PGREQUIREPEER"), Support::RefusedUnless("")),
    ("require_auth", Some("PGREQUIREAUTH"), Support::RefusedUnless("")),
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION"), Support::Ignored),
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), Support::Ignored),
    ("gssencmode", Some("PGGSSENCMODE"), Support::Ignored),
    ("krbsrvname", Some("PGKRBSRVNAME"), Support::Ignored),
    ("gsslib", Some("PGGSSLIB"), Support::Ignored),
    ("gssdelegation", Some("PGGSSDELEGATION"), Support::Ignored),
    ("client_encoding", Some("PGCLIENTENCODING"), Support::Ignored),
    ("replication", None, Support::RefusedUnless("")),
];

/// Keyword to value and origin. Values may be secret: no `Debug`.
pub struct Parameters {
    values: BTreeMap<&'static str, (String, String)>,
    /// The effective surroundings, for what has a default place in the home directory.
    surroundings: Surroundings,
}

/// A place to try, and how to name it in a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub host: Host,
    pub port: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    /// The directory of a Unix socket, or `@…` for an abstract one.
    Socket(PathBuf),
    /// A name or address as it was written, and the address to use instead of looking the name up.
    Tcp(String, Option<IpAddr>),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Socket(directory) => write!(f, "{}:{}", directory.display(), self.port),
            Host::Tcp(name, _) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Where sockets lie unless something else is said: Debian's place, then PostgreSQL's own.
pub const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const DEFAULT_PORT: u16 = 5432;

/// libpq would wait for ever.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

impl Parameters {
    /// Connection string, then service, then environment: the first that says something counts.
    pub fn collect(
        settings: &ConnectionSettings,
        surroundings: Surroundings,
    ) -> Result<Parameters, ClientError> {
        let mut parameters = Parameters { values: BTreeMap::new(), surroundings };
        if let Some(text) = &settings.connection {
            let pairs = connection_string::parse(text).map_err(ClientError::settings)?;
            // Within one string the last mention counts, unlike between origins.
            parameters.add_missing(pairs.into_iter().rev(), "the connection string")?;
        }
        let service = parameters.text("service").map(str::to_owned);
        let service = service.or_else(|| parameters.surroundings.variable("PGSERVICE").map(str::to_owned));
        if let Some(service) = service.filter(|service| !service.is_empty()) {
            let files = parameters.service_files();
            let files: Vec<_> = files.iter().map(PathBuf::as_path).collect();
            let pairs = service::find(&files, &service).map_err(ClientError::settings)?;
            parameters.add_missing(pairs, &format!("service {service:?}"))?;
        }
        for (keyword, variable, _) in KEYWORDS {
            let value = variable.and_then(|variable| {
                Some((variable, parameters.surroundings.variable(variable)?.to_owned()))
            });
            if let Some((variable, value)) = value.filter(|(_, value)| !value.is_empty()) {
                parameters.values.entry(keyword).or_insert((value, variable.to_owned()));
            }
        }
        parameters.refuse_unsupported()?;
        Ok(parameters)
    }

    fn add_missing(
        &mut self,
        pairs: impl IntoIterator<Item = (String, String)>,
        origin: &str,
    ) -> Result<(), ClientError> {
        for (keyword, value) in pairs {
            let known = KEYWORDS.iter().find(|(known, ..)| *known == keyword);
            let (known, ..) = known.ok_or_else(|| {
                ClientError::settings(format!("{origin} has an unknown keyword {keyword:?}"))
            })?;
            self.values.entry(known).or_insert((value, origin.to_owned()));
        }
        Ok(())
    }

    fn refuse_unsupported(&self) -> Result<(), ClientError> {
        for (keyword, _, support) in KEYWORDS {
            let Some((value, origin)) = self.values.get(keyword) else { continue };
            match support {
                Support::RefusedUnless(harmless) if !value.is_empty() && value != harmless => {
                    return Err(ClientError::settings(format!("{keyword} (from {origin}) is not supported")));
                }
                Support::Ignored if *keyword == "gssencmode" && value == "require" => {
                    return Err(ClientError::settings(format!(
                        "{keyword}=require (from {origin}) is not supported"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn service_files(&self) -> Vec<PathBuf> {
        let named = self.text("servicefile").or(self.surroundings.variable("PGSERVICEFILE"));
        let own = named.filter(|file| !file.is_empty()).map(PathBuf::from);
        let own = own.or_else(|| self.surroundings.home_file(".pg_service.conf"));
        let directory = self.surroundings.variable("PGSYSCONFDIR").unwrap_or("/etc/postgresql-common");
        own.into_iter().chain([PathBuf::from(directory).join("pg_service.conf")]).collect()
    }

    /// What a parameter is set to; an empty value counts as not set.
    pub fn text(&self, keyword: &str) -> Option<&str> {
        self.values.get(keyword).map(|(value, _)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn wrong(&self, keyword: &str, expected: &str) -> ClientError {
        let (value, origin) =
            self.values.get(keyword).map(|(v, o)| (v.as_str(), o.as_str())).unwrap_or_default();
        ClientError::settings(format!("{keyword} (from {origin}) is {value:?}; expected {expected}"))
    }

    /// A parameter that is one of a few words.
    pub fn choice<T: Copy>(
        &self,
        keyword: &str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, ClientError> {
        let Some(text) = self.text(keyword) else { return Ok(default) };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                Err(self.wrong(keyword, &format!("one of {}", words.join(", "))))
            }
        }
    }

    /// A parameter that is a number.
    pub fn number<T: FromStr>(&self, keyword: &str) -> Result<Option<T>, ClientError> {
        let parse = |text: &str| text.trim().parse().map_err(|_| self.wrong(keyword, "a number"));
        self.text(keyword).map(parse).transpose()
    }

    /// How long one place may take to let us in; `None` for as long as it wants.
    pub fn connect_timeout(&self) -> Result<Option<Duration>, ClientError> {
        Ok(match self.number::<i32>("connect_timeout")? {
            None => Some(DEFAULT_CONNECT_TIMEOUT),
            // libpq rounds 1 up too.
            Some(seconds @ 1..) => Some(Duration::from_secs(u64::from(seconds.unsigned_abs().max(2)))),
            Some(_) => None,
        })
    }

    pub fn user(&self) -> Result<&str, ClientError> {
        let user = self.text("user").or(self.surroundings.user.as_deref());
        user.ok_or_else(|| ClientError::settings("no user: set PGUSER, this process's user has no name"))
    }

    /// Unlike libpq's programs, `postgres` where nothing is said: walhold's questions are about the cluster.
    pub fn database(&self) -> &str {
        self.text("dbname").unwrap_or("postgres")
    }

    /// A file that is named, or lies in `~/.postgresql` and exists.
    pub fn certificate_file(&self, keyword: &str, default: &str) -> Option<PathBuf> {
        match self.text(keyword) {
            Some(named) => Some(PathBuf::from(named)),
            None => {
                self.surroundings.home_file(&format!(".postgresql/{default}")).filter(|file| file.exists())
            }
        }
    }

    /// `passfile`, `PGPASSFILE` or `~/.pgpass`.
    pub fn passfile(&self) -> Option<PathBuf> {
        self.text("passfile").map(PathBuf::from).or_else(|| self.surroundings.home_file(".pgpass"))
    }

    /// The places to try, in order.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, ClientError> {
        let split =
            |keyword: &str| self.text(keyword).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>());
        let (hosts, addresses) = (split("host"), split("hostaddr"));
        let count = addresses.as_ref().or(hosts.as_ref()).map_or(1, Vec::len);
        if hosts.as_ref().is_some_and(|hosts| hosts.len() != count) {
            return Err(self.wrong("hostaddr", "as many addresses as host has names"));
        }
        let ports = split("port").unwrap_or_default();
        if ports.len() > 1 && ports.len() != count {
            return Err(self.wrong("port", "one port, or as many as there are hosts"));
        }
        let mut endpoints = Vec::new();
        for index in 0..count {
            let of = |list: &Option<Vec<&str>>| {
                list.as_ref().and_then(|list| list.get(index).copied()).unwrap_or_default().to_owned()
            };
            let port = self.port(ports.get(index).or(ports.first()).copied().unwrap_or_default())?;
            self.add_endpoint(&mut endpoints, &of(&hosts), &of(&addresses), port)?;
        }
        Ok(endpoints)
    }

    fn port(&self, text: &str) -> Result<u16, ClientError> {
        match text {
            "" => Ok(DEFAULT_PORT),
            _ => text.parse().ok().filter(|port| *port != 0).ok_or_else(|| self.wrong("port", "1 to 65535")),
        }
    }

    fn add_endpoint(
        &self,
        to: &mut Vec<Endpoint>,
        host: &str,
        address: &str,
        port: u16,
    ) -> Result<(), ClientError> {
        let address: Option<IpAddr> = match address {
            "" => None,
            _ => Some(address.parse().map_err(|_| self.wrong("hostaddr", "an IPv4 or IPv6 address"))?),
        };
        let is_socket = host.starts_with('/') || host.starts_with('@');
        match (host, address) {
            (_, Some(address)) if is_socket || host.is_empty() => {
                to.push(Endpoint { host: Host::Tcp(address.to_string(), Some(address)), port });
            }
            (_, None) if is_socket => to.push(Endpoint { host: Host::Socket(host.into()), port }),
            ("", None) => {
                to.extend(
                    SOCKET_DIRECTORIES
                        .map(|directory| Endpoint { host: Host::Socket(directory.into()), port }),
                );
            }
            (name, address) => to.push(Endpoint { host: Host::Tcp(name.to_owned(), address), port }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(variables: &[(&str, &str)]) -> Surroundings {
        Surroundings {
            variables: variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            home: Some("/nonexistent".into()),
            user: Some("os-user".into()),
        }
    }

    fn collect(connection: &str, variables: &[(&str, &str)]) -> Result<Parameters, ClientError> {
        let settings =
            ConnectionSettings { connection: (!connection.is_empty()).then(|| connection.to_owned()) };
        Parameters::collect(&settings, surroundings(variables))
    }

    fn endpoints(connection: &str, variables: &[(&str, &str)]) -> Vec<String> {
        let parameters = collect(connection, variables).unwrap_or_else(|e| panic!("{e}"));
        parameters.endpoints().unwrap().iter().map(Endpoint::to_string).collect()
    }

    fn problem(connection: &str, variables: &[(&str, &str)]) -> String {
        match collect(connection, variables)
            .and_then(|p| p.endpoints().and_then(|_| p.connect_timeout()).map(|_| ()))
        {
            Ok(()) => panic!("{connection} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn defaults_are_those_of_a_local_server() {
        let parameters = collect("", &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(parameters.user().unwrap(), "os-user");
        assert_eq!(parameters.database(), "postgres");
        assert_eq!(parameters.connect_timeout().unwrap(), Some(DEFAULT_CONNECT_TIMEOUT));
        assert_eq!(endpoints("", &[]), ["/var/run/postgresql:5432", "/tmp:5432"]);
    }

    #[test]
    fn the_string_wins_over_the_service_over_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("services");
        std::fs::write(&file, "[s]\nuser=from-service\nport=3\ndbname=from-service\n").unwrap();
        let file = file.to_str().unwrap();
        let variables = [
            ("PGSERVICEFILE", file),
            ("PGUSER", "from-env"),
            ("PGPORT", "2"),
            ("PGHOST", "h"),
            ("PGPASSWORD", "p"),
        ];
        let parameters =
            collect("service=s user=from-string user=last", &variables).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(parameters.user().unwrap(), "last");
        assert_eq!(parameters.database(), "from-service");
        assert_eq!(parameters.text("password"), Some("p"));
        assert_eq!(parameters.endpoints().unwrap()[0].to_string(), "h:3");
        let by_variable = [&variables[..], &[("PGSERVICE", "s")]].concat();
        let parameters = collect("", &by_variable).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(parameters.user().unwrap(), "from-service");
    }

    #[test]
    fn places_are_tried_in_order() {
        assert_eq!(endpoints("host=a,/run,@x port=1,2,3", &[]), ["a:1", "/run:2", "@x:3"]);
        assert_eq!(endpoints("host=a,b", &[("PGPORT", "7")]), ["a:7", "b:7"]);
        assert_eq!(endpoints("hostaddr=127.0.0.1,::1", &[]), ["127.0.0.1:5432", "::1:5432"]);
        let parameters = collect("host=name hostaddr=10.0.0.1", &[]).unwrap_or_else(|e| panic!("{e}"));
        let endpoint = &parameters.endpoints().unwrap()[0];
        assert_eq!(endpoint.host, Host::Tcp("name".into(), Some("10.0.0.1".parse().unwrap())));
    }

    #[test]
    fn wrong_settings_are_named_with_their_origin() {
        for (connection, variables, expected) in [
            ("hosst=x", &[][..], "the connection string has an unknown keyword \"hosst\""),
            ("", &[("PGPORT", "x")], "port (from PGPORT) is \"x\"; expected 1 to 65535"),
            (
                "port=1,2 host=a",
                &[],
                "port (from the connection string) is \"1,2\"; expected one port, or as many as there are hosts",
            ),
            (
                "hostaddr=x",
                &[],
                "hostaddr (from the connection string) is \"x\"; expected an IPv4 or IPv6 address",
            ),
            (
                "",
                &[("PGCONNECT_TIMEOUT", "1m")],
                "connect_timeout (from PGCONNECT_TIMEOUT) is \"1m\"; expected a number",
            ),
            ("", &[("PGREQUIREAUTH", "scram-sha-256")], "require_auth (from PGREQUIREAUTH) is not supported"),
            ("gssencmode=require", &[], "gssencmode=require (from the connection string) is not supported"),
            ("replication=true", &[], "replication (from the connection string) is not supported"),
        ] {
            assert_eq!(problem(connection, variables), format!("connection settings: {expected}"));
        }
        let text = problem("service=x", &[("PGSYSCONFDIR", "/nonexistent")]);
        assert!(text.ends_with(
            "service \"x\" is not defined in /nonexistent/.pg_service.conf or /nonexistent/pg_service.conf"
        ));
    }
}
