//! Parts of a request as handlers want them, refused in our own words.
//!
//! Owns: bodies, query strings, and what happens to a body that nobody read. Never: lets a
//! framework's plain-text refusal out, or reads past [`LEFTOVER_BYTES_MAX`] for nobody.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody},
    extract::{
        FromRequest, FromRequestParts, Query, Request,
        rejection::{BytesRejection, FailedToBufferBody, JsonRejection},
    },
    http::{header, request::Parts},
};
use futures::{Stream, StreamExt};
use millrace_platform::clock::Clock;
use serde::de::DeserializeOwned;

use super::{Code, Problem};
use crate::ingest::decode::WIRE_BYTES_MAX;

/// Bytes of an unread body that are still taken off the wire after the answer.
const LEFTOVER_BYTES_MAX: usize = 64 << 20;
/// How long they may take.
const LEFTOVER_TIME: Duration = Duration::from_secs(10);

fn too_large() -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("the body is over {WIRE_BYTES_MAX} bytes on the wire; send smaller batches"),
    )
}

fn body_problem(e: &BytesRejection) -> Problem {
    match e {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => too_large(),
        _ => Problem::new(Code::BadBody, "the body ended before its length; send it again"),
    }
}

/// What is wrong with a JSON body.
pub(crate) fn json_problem(e: JsonRejection) -> Problem {
    match e {
        JsonRejection::MissingJsonContentType(_) => {
            Problem::new(Code::BadContentType, "send JSON with content-type: application/json")
        }
        JsonRejection::BytesRejection(e) => body_problem(&e),
        other => Problem::new(Code::BadJson, other.body_text()),
    }
}

/// A whole body, or why there is none: the handler decides when to say so.
#[derive(Debug)]
pub(crate) struct Payload(pub(crate) Result<Bytes, Problem>);

impl<S: Send + Sync> FromRequest<S> for Payload {
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Infallible> {
        // Who says beforehand that it is too much need not be waited for.
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
        if length.is_some_and(|n| n > WIRE_BYTES_MAX as u64) {
            return Ok(Self(Err(too_large())));
        }
        let body = Bytes::from_request(request, state).await;
        Ok(Self(body.map_err(|e| body_problem(&e))))
    }
}

/// The query string.
#[derive(Debug)]
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(e) => Err(Problem::new(Code::BadParameter, e.body_text())),
        }
    }
}

/// Gives the request a body that is read to its end after the answer, within bounds. A server
/// that answers and then closes on unread bytes resets the connection, and the client may never
/// see why it was refused.
pub(crate) fn read_leftovers(clock: Arc<dyn Clock>, request: Request) -> Request {
    request.map(|body| {
        if body.is_end_stream() {
            return body;
        }
        Body::from_stream(Leftovers { body: Some(body.into_data_stream()), clock })
    })
}

/// A body whose rest is read in the background once nobody wants it any more.
struct Leftovers {
    body: Option<BodyDataStream>,
    clock: Arc<dyn Clock>,
}

impl Stream for Leftovers {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let piece = std::task::ready!(Pin::new(body).poll_next(cx));
        if !matches!(piece, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(piece)
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let clock = Arc::clone(&self.clock);
        runtime.spawn(async move {
            tokio::select! {
                () = read_and_forget(body) => {}
                () = clock.sleep(LEFTOVER_TIME) => {}
            }
        });
    }
}

async fn read_and_forget(mut body: BodyDataStream) {
    let mut left = LEFTOVER_BYTES_MAX;
    while let Some(Ok(piece)) = body.next().await {
        match left.checked_sub(piece.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
