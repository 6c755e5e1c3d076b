//! Bytes on a TLS connection, for requests that no HTTP client would send.
//!
//! Owns: a blocking TLS connection to the server, and reading whatever comes back.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

/// What a server sent before it closed or fell silent.
pub type Bytes = Vec<u8>;

/// Client settings that trust exactly one CA.
pub fn settings(ca_pem: &str, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(der.expect("a PEM certificate")).expect("a usable CA");
    }
    let config = ClientConfig::builder_with_provider(crate::http::provider())
        .with_protocol_versions(versions)
        .expect("versions that the provider has")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// Opens a TLS connection to `127.0.0.1:PORT` (taken from `https://…`).
pub fn connect(
    base: &str,
    config: Arc<ClientConfig>,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let socket = tcp(base)?;
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let connection = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.flush()?;
    Ok(stream)
}

/// Opens a plain TCP connection to the server's port.
pub fn tcp(base: &str) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect(base.trim_start_matches("https://"))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Sends raw bytes over TLS and returns the head and body of the first answer, or what came.
pub fn exchange(base: &str, ca_pem: &str, request: &[u8]) -> std::io::Result<Bytes> {
    let mut stream = connect(base, settings(ca_pem, rustls::ALL_VERSIONS))?;
    // The server may answer and close before it has read everything.
    drop(stream.write_all(request).and_then(|()| stream.flush()));
    let mut answer = Vec::new();
    let mut part = [0u8; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return Ok(answer),
            Ok(n) => answer.extend_from_slice(&part[..n]),
        }
        if complete(&answer) {
            return Ok(answer);
        }
    }
}

/// Whether an HTTP/1.1 answer is whole, by its content-length.
fn complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return false };
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("content-length:"))
        .and_then(|l| l.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= head.len() + 4 + length)
}

/// The status of a raw HTTP/1.1 answer; 0 if it is none.
pub fn status(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    text.strip_prefix("HTTP/1.1 ")
        .and_then(|t| t.get(..3))
        .and_then(|s| s.parse().ok())
        .unwrap_or(0)
}
