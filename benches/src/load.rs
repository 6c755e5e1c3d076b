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
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {}\r\n\
             content-type: {}\r\ncontent-length: {}\r\n\r\n",
            self.token,
            // Line protocol never begins with a brace.
            if body.starts_with(b"{") { "application/json" } else { "text/plain" },
            body.len()
        );
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(body)?;
        self.stream.flush()?;
        let mut answer = Answer::default();
        loop {
            let n = self.stream.read(&mut self.buffer)?;
            if n == 0 {
                return Err(Failed("the server closed the connection".into()));
            }
            if answer.take(self.buffer.get(..n).unwrap_or_default()) {
                return Ok((answer.status, answer.body));
            }
        }
    }
}

/// An answer as it arrives: each byte is looked at once, however long the body is.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    body: Vec<u8>,
    /// Bytes not yet understood: part of a head, or of a chunk's size line.
    raw: Vec<u8>,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Status line and headers.
    #[default]
    Head,
    /// So many bytes of body to go.
    Body(usize),
    /// The line with a chunk's size.
    ChunkSize,
    /// So many bytes of the chunk and its line end to go.
    Chunk(usize),
    /// The line end after the last chunk.
    End,
    Done,
}

impl Answer {
    /// Takes more bytes; whether the answer is whole.
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.raw.extend_from_slice(bytes);
        let raw = std::mem::take(&mut self.raw);
        let mut rest = raw.as_slice();
        while self.state != State::Done {
            let Some(next) = self.step(rest) else { break };
            rest = next;
        }
        self.raw = rest.to_vec();
        self.state == State::Done
    }

    /// One piece from the front of `rest`; `None` if it is not all there yet.
    fn step<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let line = || rest.windows(2).position(|w| w == b"\r\n");
        match self.state {
            State::Head => {
                let end = rest.windows(4).position(|w| w == b"\r\n\r\n")?;
                let head = String::from_utf8_lossy(rest.get(..end)?).to_lowercase();
                self.status = head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
                let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
                let length = length.and_then(|l| l.trim().parse().ok()).unwrap_or(0);
                self.state = match (head.contains("transfer-encoding: chunked"), length) {
                    (true, _) => State::ChunkSize,
                    (false, 0) => State::Done,
                    (false, length) => State::Body(length),
                };
                rest.get(end + 4..)
            }
            State::Body(left) => {
                let now = self.body_bytes(rest, left)?;
                self.state = if now == left { State::Done } else { State::Body(left - now) };
                rest.get(now..)
            }
            State::ChunkSize => {
                let end = line()?;
                let size = String::from_utf8_lossy(rest.get(..end)?).into_owned();
                let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
                self.state = if size == 0 { State::End } else { State::Chunk(size) };
                rest.get(end + 2..)
            }
            State::Chunk(0) => {
                rest.get(..2)?;
                self.state = State::ChunkSize;
                rest.get(2..)
            }
            State::Chunk(left) => {
                let now = self.body_bytes(rest, left)?;
                self.state = State::Chunk(left - now);
                rest.get(now..)
            }
            State::End => {
                let end = line()?;
                self.state = State::Done;
                rest.get(end + 2..)
            }
            State::Done => None,
        }
    }

    fn body_bytes(&mut self, rest: &[u8], left: usize) -> Option<usize> {
        let now = rest.len().min(left);
        self.body.extend_from_slice(rest.get(..now)?);
        (now > 0).then_some(now)
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

    /// The answer after all of `bytes`, given in pieces of `size`; `None` if it is not whole.
    fn read(bytes: &[u8], size: usize) -> Option<(u16, Vec<u8>)> {
        let mut answer = Answer::default();
        let whole = bytes.chunks(size).any(|piece| answer.take(piece));
        whole.then_some((answer.status, answer.body))
    }

    #[test]
    fn an_answer_is_read_when_it_is_whole_and_not_before() {
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n";
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(read(b"HTTP/1.1 204 No Content\r\n\r\n", size), Some((204, vec![])));
            assert_eq!(read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh", size), None);
            let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
            assert_eq!(read(plain, size), Some((200, b"hi".to_vec())));
            assert_eq!(read(chunked, size), Some((200, b"hi!".to_vec())));
            assert_eq!(read(&chunked[..chunked.len() - 1], size), None);
        }
    }
}
