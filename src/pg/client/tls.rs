//! TLS as sslmode asks for it.
//!
//! Two things differ from libpq, because rustls' certificate checks are stricter than OpenSSL's: names are taken from
//! `subjectAltName` only, never from the common name, and keys of client certificates cannot be encrypted.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::ClientError;
use super::parameters::Parameters;

/// `sslmode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server insists.
    Allow,
    /// If the server can.
    Prefer,
    /// Always, whoever the server is (with a root certificate file: as `VerifyCa`, like libpq).
    Require,
    /// The certificate must be signed by a trusted authority.
    VerifyCa,
    /// And it must be for this host's name.
    VerifyFull,
}

const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

impl SslMode {
    pub fn of(parameters: &Parameters) -> Result<SslMode, ClientError> {
        let system_roots = parameters.text("sslrootcert") == Some("system");
        let default = if system_roots { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = parameters.choice("sslmode", SSL_MODES, default)?;
        match mode {
            SslMode::VerifyFull => Ok(mode),
            // Anyone can get a certificate from a public authority.
            _ if system_roots => Err(ClientError::settings("sslrootcert=system needs sslmode=verify-full")),
            _ => Ok(mode),
        }
    }
}

/// What a TLS connection is made with.
pub fn client_config(parameters: &Parameters, mode: SslMode) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] =
        match parameters.choice("ssl_min_protocol_version", PROTOCOLS, ProtocolFloor::Tls12)? {
            ProtocolFloor::Tls12 => rustls::ALL_VERSIONS,
            ProtocolFloor::Tls13 => &[&rustls::version::TLS13],
        };
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|error| ClientError::settings(format!("set up TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier(parameters, mode, provider)?));
    match client_certificate(parameters)? {
        None => Ok(config.with_no_client_auth()),
        Some((chain, key)) => config
            .with_client_auth_cert(chain, key)
            .map_err(|error| ClientError::settings(format!("sslcert and sslkey cannot be used: {error}"))),
    }
}

#[derive(Clone, Copy)]
enum ProtocolFloor {
    Tls12,
    Tls13,
}

/// rustls knows nothing older than TLS 1.2.
const PROTOCOLS: &[(&str, ProtocolFloor)] = &[
    ("TLSv1", ProtocolFloor::Tls12),
    ("TLSv1.1", ProtocolFloor::Tls12),
    ("TLSv1.2", ProtocolFloor::Tls12),
    ("TLSv1.3", ProtocolFloor::Tls13),
];

fn verifier(
    parameters: &Parameters,
    mode: SslMode,
    provider: Arc<CryptoProvider>,
) -> Result<Verifier, ClientError> {
    let roots = match (parameters.text("sslrootcert"), parameters.certificate_file("sslrootcert", "root.crt"))
    {
        (Some("system"), _) => Some(system_roots()?),
        (_, Some(file)) => Some(read_certificates("sslrootcert", &file)?),
        (_, None) => None,
    };
    let Some(roots) = roots else {
        return match mode {
            SslMode::VerifyCa | SslMode::VerifyFull => Err(ClientError::settings(
                "sslmode verify-ca and verify-full need sslrootcert, ~/.postgresql/root.crt or sslrootcert=system",
            )),
            _ => Ok(Verifier { provider, trust: None }),
        };
    };
    let mut store = RootCertStore::empty();
    let (accepted, _) = store.add_parsable_certificates(roots.iter().cloned());
    if accepted == 0 {
        return Err(ClientError::settings("sslrootcert has no certificate that can be used"));
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .build()
        .map_err(|error| ClientError::settings(format!("sslrootcert cannot be used: {error}")))?;
    let names = if mode == SslMode::VerifyFull { NameCheck::Required } else { NameCheck::Skipped };
    Ok(Verifier { provider, trust: Some(Trust { roots, chain, names }) })
}

fn read_certificates(keyword: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let wrong = |problem: String| ClientError::settings(format!("{keyword} {}: {problem}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(wrong("it holds no certificate in PEM form".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let loaded = rustls_native_certs::load_native_certs();
    match (loaded.certs.is_empty(), loaded.errors.first()) {
        (false, _) => Ok(loaded.certs),
        (true, Some(error)) => Err(ClientError::settings(format!("sslrootcert=system: {error}"))),
        (true, None) => Err(ClientError::settings("sslrootcert=system: no certificates are installed")),
    }
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(parameters: &Parameters) -> Result<Option<ClientCertificate>, ClientError> {
    let Some(certificate) = parameters.certificate_file("sslcert", "postgresql.crt") else { return Ok(None) };
    let Some(key) = parameters.certificate_file("sslkey", "postgresql.key") else {
        return Err(ClientError::settings(
            "sslcert is given, but neither sslkey nor ~/.postgresql/postgresql.key",
        ));
    };
    let chain = read_certificates("sslcert", &certificate)?;
    let wrong = |problem: String| ClientError::settings(format!("sslkey {}: {problem}", key.display()));
    check_key_permissions(&key).map_err(wrong)?;
    let bytes = std::fs::read(&key).map_err(|error| wrong(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    Ok(Some((chain, key)))
}

/// As libpq: 0600 or less, or 0640 or less if root owns it.
fn check_key_permissions(key: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let facts = std::fs::metadata(key).map_err(|error| error.to_string())?;
    let allowed = if facts.uid() == 0 { 0o640 } else { 0o600 };
    match facts.mode() & 0o777 & !allowed {
        0 => Ok(()),
        _ => {
            Err("others can read it; its permissions must be 0600 or less (0640 if root owns it)".to_owned())
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NameCheck {
    Required,
    Skipped,
}

/// Checks the server's certificate as far as sslmode asks.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: any certificate is taken. The connection is then encrypted, but to whomever answers.
    trust: Option<Trust>,
}

#[derive(Debug)]
struct Trust {
    roots: Vec<CertificateDer<'static>>,
    chain: Arc<WebPkiServerVerifier>,
    names: NameCheck,
}

impl Trust {
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        // A self-signed server certificate that is itself the root: webpki takes no authority for a server, PostgreSQL's manual makes
        // such certificates.
        if self.roots.iter().any(|root| root == certificate) {
            return match self.names {
                NameCheck::Required => {
                    rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
                }
                NameCheck::Skipped => Ok(()),
            };
        }
        let verified = self.chain.verify_server_cert(certificate, intermediates, name, &[], now);
        match (verified, self.names) {
            // Names are checked last: the chain was found good before this error.
            (
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )),
                NameCheck::Skipped,
            ) => Ok(()),
            (verified, _) => verified.map(|_| ()),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(trust) = &self.trust {
            trust.verify(certificate, intermediates, name, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
