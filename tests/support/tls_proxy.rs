//! `https://localhost` in front of a server that speaks plain HTTP. Its certificate is signed by an authority of the
//! tests' own (`tls/authority.pem`), which nobody trusts unless told to.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::fault_proxy::Message;

const IDENTITY: &[u8] = include_bytes!("tls/localhost.pem");

/// The authority's certificate, for `SSL_CERT_FILE`.
pub fn authority() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/tls/authority.pem"))
}

/// Starts a proxy on a port of its own, which serves until the process ends.
pub fn start(upstream: SocketAddr) -> SocketAddr {
    let certificates = CertificateDer::pem_slice_iter(IDENTITY).map(|found| found.expect("a certificate"));
    let key = PrivateKeyDer::from_pem_slice(IDENTITY).expect("a private key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(certificates.collect(), key)
        .expect("a usable certificate");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || drop(serve(config, client, upstream)));
        }
    });
    addr
}

fn serve(config: Arc<ServerConfig>, client: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut client = StreamOwned::new(connection, client);
    let mut server = TcpStream::connect(upstream)?;
    let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
    while let Some(request) = Message::read(&mut client, &mut from_client, true)? {
        server.write_all(&request.head)?;
        server.write_all(&request.body)?;
        let has_body = !request.first_line().starts_with("HEAD ");
        let Some(response) = Message::read(&mut server, &mut from_server, has_body)? else { break };
        client.write_all(&response.head)?;
        client.write_all(&response.body)?;
        client.flush()?;
    }
    Ok(())
}
