//! A small HTTP/1.1 client for sources: one request on a connection of its own.
//!
//! Owns: the request, limits of the answer. Never: follows redirects; waits for ever; keeps more of
//! a body than its cap.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use millrace_platform::{clock::Clock, net::Dialer};

use super::peer::Peer;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The network.
    #[error("{0}")]
    Network(String),
    /// Nothing came.
    #[error("no answer within {0} s")]
    Silent(u64),
    /// More than allowed.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

fn network(e: impl std::fmt::Display) -> HttpError {
    HttpError::Network(e.to_string())
}

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where.
    pub peer: Peer,
    /// The network.
    pub dialer: Arc<dyn Dialer>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// An answer whose body is read piece by piece.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    body: Incoming,
    clock: Arc<dyn Clock>,
}

impl Http {
    /// Asks for a path with its query; the answer's head is due within `patience`.
    pub async fn get(&self, path: &str, patience: Duration) -> Result<Answer, HttpError> {
        let asked = async {
            let stream = self.peer.dial(self.dialer.as_ref()).await.map_err(network)?;
            let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
                .max_buf_size(64 * 1024)
                .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(network)?;
            // Ends when the answer is dropped or read.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to a source ended");
                }
            });
            let host = match self.peer.host.contains(':') {
                true => format!("[{}]:{}", self.peer.host, self.peer.port),
                false => format!("{}:{}", self.peer.host, self.peer.port),
            };
            let request = hyper::Request::get(format!("{}{path}", self.peer.path))
                .header("host", host)
                .header("accept", "text/xml, application/xml, multipart/x-mixed-replace")
                .header("connection", "close")
                .body(Empty::new())
                .map_err(network)?;
            sender.send_request(request).await.map_err(network)
        };
        let answer = tokio::select! {
            answer = asked => answer?,
            () = self.clock.sleep(patience) => return Err(HttpError::Silent(patience.as_secs())),
        };
        let content_type = answer.headers().get("content-type").and_then(|v| v.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let (status, clock) = (answer.status().as_u16(), Arc::clone(&self.clock));
        Ok(Answer { status, content_type, body: answer.into_body(), clock })
    }
}

impl Answer {
    /// The next piece; `None` at the end.
    pub async fn piece(&mut self, patience: Duration) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::select! {
                frame = self.body.frame() => frame,
                () = self.clock.sleep(patience) => {
                    return Err(HttpError::Silent(patience.as_secs()));
                }
            };
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(network(e)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, of at most `max` bytes; each piece is due within `patience`.
    pub async fn whole(mut self, max: usize, patience: Duration) -> Result<Bytes, HttpError> {
        let mut out = BytesMut::new();
        while let Some(piece) = self.piece(patience).await? {
            if out.len() + piece.len() > max {
                return Err(HttpError::TooLong(max));
            }
            out.extend_from_slice(&piece);
        }
        Ok(out.freeze())
    }
}
