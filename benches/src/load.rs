//! A client that costs little: HTTP/1.1 with keep-alive over rustls, one request at a time per
//! connection, no allocation per request beyond its body.
//!
//! Owns: sending batches over several connections and timing each answer.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use crate::server::Failed;

/// TLS settings that trust exactly one CA and offer HTTP/1.1.
pub fn tls(ca_pem: &str) -> Result<Arc<ClientConfig>, Failed> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(der?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    token: String,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a connection to `https://127.0.0.1:PORT`.
    pub fn open(base: &str, tls: &Arc<ClientConfig>, token: &str) -> Result<Self, Failed> {
        let socket = TcpStream::connect(base.trim_start_matches("https://"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(120)))?;
        let connection =
            ClientConnection::new(Arc::clone(tls), ServerName::try_from("127.0.0.1")?)?;
        let stream = StreamOwned::new(connection, socket);
        Ok(Self { stream, token: token.to_owned(), buffer: vec![0; 64 << 10] })
    }

    /// Sends one request and reads the whole answer: status and body.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(u16, Vec<u8>), Failed> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            self.token,
            body.len()
        );
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(body)?;
        self.stream.flush()?;
        let mut answer = Vec::new();
        loop {
            let n = self.stream.read(&mut self.buffer)?;
            if n == 0 {
                return Err(Failed("the server closed the connection".into()));
            }
            answer.extend_from_slice(self.buffer.get(..n).unwrap_or_default());
            if let Some(whole) = parse(&answer) {
                return Ok(whole);
            }
        }
    }
}

/// Status and body of an answer with a content-length (or with none, for 204), once it is whole;
/// chunked answers once their last chunk is there.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(answer.get(..end)?).to_lowercase();
    let status: u16 = head.get(9..12)?.parse().ok()?;
    let body = answer.get(end + 4..)?;
    if head.contains("transfer-encoding: chunked") {
        return dechunk(body).map(|body| (status, body));
    }
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
    let length: usize = length.map_or(Some(0), |l| l.trim().parse().ok())?;
    body.get(..length).map(|body| (status, body.to_vec()))
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(rest.get(..line)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        rest = rest.get(line + 2..)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

/// What sending came to.
#[derive(Debug, Default)]
pub struct Sent {
    /// Time of each acked request, from its first byte to the end of its answer.
    pub acks: Vec<Duration>,
    /// Wall time from the first byte of all to the last answer.
    pub wall: Duration,
}

/// Sends every batch, in order, over `connections` connections; each takes the next one when it
/// has its answer. Fails on the first batch that is not acked whole.
pub fn send_all(
    base: &str,
    ca_pem: &str,
    token: &str,
    path: &str,
    batches: &[Vec<u8>],
    connections: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Sent, Failed> {
    let tls = tls(ca_pem)?;
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut connection = Connection::open(base, &tls, token)?;
        // The handshake is not part of the load.
        connection.request("GET", "/health", b"")?;
        open.push(connection);
    }
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let results: Vec<Result<Vec<Duration>, Failed>> = std::thread::scope(|scope| {
        let work: Vec<_> = open
            .into_iter()
            .map(|mut connection| {
                let next = &next;
                scope.spawn(move || {
                    let mut acks = Vec::new();
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(batch) = batches.get(at) else { return Ok(acks) };
                        let begun = Instant::now();
                        let (status, body) = connection.request("POST", path, batch)?;
                        if !(200..300).contains(&status) {
                            let body = String::from_utf8_lossy(&body).into_owned();
                            return Err(Failed(format!(
                                "batch {at} was answered {status}: {body}"
                            )));
                        }
                        acks.push(begun.elapsed());
                        progress(at);
                    }
                })
            })
            .collect();
        work.into_iter()
            .map(|w| w.join().unwrap_or_else(|_| Err(Failed("a sender panicked".into()))))
            .collect()
    });
    let mut sent = Sent { acks: Vec::new(), wall: started.elapsed() };
    for acks in results {
        sent.acks.append(&mut acks?);
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_it_is_whole_and_not_before() {
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n"), Some((204, vec![])));
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh"), None);
        assert_eq!(
            parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
            Some((200, b"hi".to_vec()))
        );
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n";
        assert_eq!(parse(chunked), Some((200, b"hi!".to_vec())));
    }
}
