//! Parts of a request as handlers want them, refused in our own words.
//!
//! Owns: bodies, query strings, how slow a body may be, and what happens to one that nobody read.
//! Never: lets a framework's plain-text refusal out, or reads past [`LEFTOVER_BYTES_MAX`] for nobody.

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
use bytes::BytesMut;
use futures::{Stream, StreamExt};
use millrace_platform::{
    budget::Held,
    clock::{Clock, Sleep},
};
use millrace_protocol::ids::TenantId;
use serde::de::DeserializeOwned;

use super::{Code, Problem, State};
use crate::ingest::{Admission, decode::WIRE_BYTES_MAX};

/// Bytes of an unread body that are still taken off the wire after the answer.
const LEFTOVER_BYTES_MAX: usize = 64 << 20;
/// How long they may take.
const LEFTOVER_TIME: Duration = Duration::from_secs(10);
/// Slowest body that is waited for, after [`SLOW_GRACE`].
const SLOW_BYTES_PER_S: u64 = 1000;
/// Time that every body has.
const SLOW_GRACE: Duration = Duration::from_secs(20);

/// A body that trickles holds a connection and its memory for nothing.
#[derive(Debug, thiserror::Error)]
#[error("the body came slower than {SLOW_BYTES_PER_S} bytes per second")]
struct TooSlow;

fn too_large() -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("the body is over {WIRE_BYTES_MAX} bytes on the wire; send smaller batches"),
    )
}

fn cut_short() -> Problem {
    Problem::new(
        Code::BadBody,
        "the body ended before its length or came too slowly; send it again",
    )
}

fn body_problem(e: &BytesRejection) -> Problem {
    match e {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => too_large(),
        _ => cut_short(),
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

/// A whole body with the room that was reserved for it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    /// Given back when dropped.
    pub(crate) room: Option<Held>,
}

/// A whole body, or why there is none: the handler decides when to say so.
#[derive(Debug)]
pub(crate) struct Payload(pub(crate) Result<Received, Problem>);

pub(crate) fn no_room() -> Problem {
    Problem::new(Code::Busy, "memory for rows is full until a flush is done; send this again")
        .retry_after(1)
}

/// What a body's memory is at least once it has any.
const BODY_ROOM_MIN: usize = 64 * 1024;

/// How large a body's memory becomes when it must take `needed` bytes: twice that, or the length
/// if the sender said one, but no more than 64 times what did come. So a large body is copied
/// hardly at all, and a promise alone is worth little.
fn grown(needed: usize, claimed: Option<usize>) -> usize {
    let wanted = match claimed {
        Some(claimed) => {
            let most =
                if needed > BODY_ROOM_MIN { needed.saturating_mul(64) } else { BODY_ROOM_MIN };
            most.min(claimed)
        }
        None => needed.saturating_mul(2),
    };
    wanted.max(needed)
}

/// Reads a body, with room for each piece before the next one is asked for: what many requests
/// keep together is bounded, whatever lengths they claim.
async fn receive(
    body: Body,
    claimed: Option<usize>,
    admission: &Admission,
) -> Result<Received, Problem> {
    let mut bytes = BytesMut::new();
    let mut room: Option<Held> = None;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| cut_short())?;
        if bytes.len().saturating_add(piece.len()) > WIRE_BYTES_MAX {
            return Err(too_large());
        }
        let needed = bytes.len() + piece.len();
        if needed > bytes.capacity() {
            let (had, wanted) = (bytes.capacity(), grown(needed, claimed));
            // Nothing is taken for bytes that a sender merely promises, when memory is short.
            let more = admission.reserve(wanted - had).map(|more| (more, wanted));
            let more = more.or_else(|| Some((admission.reserve(needed - had)?, needed)));
            let (more, size) = more.ok_or_else(no_room)?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.reserve(size - bytes.len());
            if let Some(room) = &mut room {
                room.resize(bytes.capacity());
            }
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Received { bytes: bytes.freeze(), room })
}

impl FromRequest<Arc<State>> for Payload {
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, Infallible> {
        // Who says beforehand that it is too much need not be waited for.
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
        if length.is_some_and(|n| n > WIRE_BYTES_MAX) {
            return Ok(Self(Err(too_large())));
        }
        if let Some(tenant) = request.extensions().get::<TenantId>()
            && let Err(over) = state.budgets.check(*tenant)
        {
            return Ok(Self(Err(over.into())));
        }
        Ok(Self(receive(request.into_body(), length, &state.admission).await))
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
        let started = clock.monotonic();
        let body = Some(body.into_data_stream());
        Body::from_stream(Leftovers { body, clock, started, bytes: 0, late: None })
    })
}

/// A body whose rest is read in the background once nobody wants it any more.
struct Leftovers {
    body: Option<BodyDataStream>,
    clock: Arc<dyn Clock>,
    started: Duration,
    bytes: u64,
    /// Ready when the body is too slow; made when it first has to be waited for.
    late: Option<Sleep>,
}

impl Leftovers {
    /// When the bytes so far are too few: [`SLOW_GRACE`] and then a second for each
    /// [`SLOW_BYTES_PER_S`].
    fn deadline(&self) -> Duration {
        let earned = Duration::from_millis(self.bytes.saturating_mul(1000) / SLOW_BYTES_PER_S);
        self.started.saturating_add(SLOW_GRACE).saturating_add(earned)
    }
}

impl Stream for Leftovers {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        match Pin::new(body).poll_next(cx) {
            Poll::Ready(piece) => {
                match &piece {
                    Some(Ok(bytes)) => self.bytes = self.bytes.saturating_add(bytes.len() as u64),
                    _ => self.body = None,
                }
                self.late = None;
                Poll::Ready(piece)
            }
            Poll::Pending => {
                let wait = self.deadline().saturating_sub(self.clock.monotonic());
                let clock = Arc::clone(&self.clock);
                let late = self.late.get_or_insert_with(|| clock.sleep(wait));
                std::task::ready!(late.as_mut().poll(cx));
                // Nobody waits for the rest of it either: the connection ends.
                self.body = None;
                Poll::Ready(Some(Err(axum::Error::new(TooSlow))))
            }
        }
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

#[cfg(test)]
mod tests {
    use futures::{FutureExt, stream};
    use millrace_platform::{budget::MemoryBudget, sim::clock::SimClock};

    use super::*;

    fn body(pieces: impl Stream<Item = Result<Bytes, axum::Error>> + Send + 'static) -> Request {
        Request::new(Body::from_stream(pieces))
    }

    #[test]
    fn bodies_keep_no_more_than_there_is_room_for_and_give_it_back() {
        // Writers wait at half of a budget.
        let admission = Admission::new(MemoryBudget::new(16 << 10));
        let pieces = |n: usize| {
            let piece = || Ok::<_, TooSlow>(Bytes::from(vec![0; 4096]));
            Body::from_stream(stream::iter((0..n).map(move |_| piece())))
        };
        let read = |n| {
            receive(pieces(n), Some(1 << 20), &admission)
                .now_or_never()
                .expect("nothing to wait for")
        };
        assert_eq!(read(3).unwrap_err().code, Code::Busy);
        let held = read(2).unwrap();
        assert_eq!(held.bytes.len(), 8192);
        assert_eq!(read(1).unwrap_err().code, Code::Busy);
        drop(held);
        assert!(read(2).is_ok());
    }

    #[test]
    fn a_body_that_trickles_is_given_up_and_one_that_keeps_coming_is_not() {
        let clock = Arc::new(SimClock::at(0));
        let sent = stream::iter([Ok(Bytes::from(vec![0; 5000]))]).chain(stream::pending());
        let request = read_leftovers(Arc::clone(&clock) as _, body(sent));
        let mut read = request.into_body().into_data_stream();
        assert_eq!(read.next().now_or_never().unwrap().unwrap().unwrap().len(), 5000);
        assert!(read.next().now_or_never().is_none());
        // 5,000 bytes have earned five seconds on top of what every body has.
        clock.advance(SLOW_GRACE + Duration::from_secs(4));
        assert!(read.next().now_or_never().is_none());
        clock.advance(Duration::from_secs(2));
        let ended = read.next().now_or_never().expect("it is over").expect("with an error");
        assert!(ended.is_err());
        assert!(read.next().now_or_never().unwrap().is_none());
    }
}
