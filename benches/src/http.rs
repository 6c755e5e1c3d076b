//! A client that costs little: HTTP/1.1 with keep-alive over rustls, one request at a time per
//! connection, no allocation per request beyond its body.
//!
//! Owns: one connection, its requests and answers, SQL over it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};

use crate::server::Failed;

/// Exactly one CA.
pub fn roots(ca_pem: &str) -> Result<RootCertStore, Failed> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(der?)?;
    }
    Ok(roots)
}

/// TLS settings that trust exactly one CA and offer HTTP/1.1.
pub fn tls(ca_pem: &str) -> Result<Arc<ClientConfig>, Failed> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// The credential of the next request; each may have another.
    pub token: String,
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

    /// Asks by SQL; the rows of the answer.
    pub fn ask(&mut self, sql: &str) -> Result<Vec<Value>, Failed> {
        let body = json!({ "db": "default", "q": sql, "format": "json" }).to_string();
        let (status, answer) = self.request("POST", "/api/v3/query_sql", body.as_bytes())?;
        if status != 200 {
            let text = String::from_utf8_lossy(&answer);
            return Err(Failed(format!("{sql}\nwas answered {status}: {text}")));
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Posts JSON; the JSON of the answer, or an error with its text.
    pub fn post_json(&mut self, path: &str, body: &Value) -> Result<Value, Failed> {
        let (status, answer) = self.request("POST", path, body.to_string().as_bytes())?;
        if (200..300).contains(&status) {
            return Ok(serde_json::from_slice(&answer)?);
        }
        let text = String::from_utf8_lossy(&answer);
        Err(Failed(format!("{path} was answered {status}: {text}")))
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
