//! The shell around `delivery`: one connection to the server, Flight DoPut per stream.
//!
//! Owns: dialling, messages on the wire, reconnecting with jitter. Never: decides what is sent or
//! what an ack means; sends a stream's rows on a new call before the old call's acks are in.

mod connection;
mod encode;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arrow::datatypes::SchemaRef;
use arrow_flight::{FlightData, PutResult};
use futures::StreamExt;
use millrace_platform::{clock::Clock, entropy::Entropy, net::Dialer};
use millrace_protocol::{ids::StreamId, stream::PutAck};
use tokio::sync::{Notify, mpsc};
use tonic::{Status, Streaming};

use crate::{
    backoff::Backoff,
    delivery::{Action, Delivery, DeliveryError, IN_FLIGHT_MAX, Outgoing},
    identity::Identity,
    queue::Queue,
};

pub use connection::{ConnectError, Connection, post_enrolment};

/// Messages of one stream that wait to be written to the connection.
const STREAM_AHEAD: usize = 8;
/// First and longest pause between attempts.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How long to wait for rows or acks before looking again.
const IDLE: Duration = Duration::from_millis(500);

/// What the supervisor sees of the uplink.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Whether the server answers.
    pub connected: bool,
    /// The last error.
    pub last_error: Option<String>,
    /// Messages in flight.
    pub in_flight: usize,
}

/// Parts of the uplink.
pub struct Uplink {
    /// The queue.
    pub queue: Arc<Queue>,
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Jitter.
    pub entropy: Arc<dyn Entropy>,
    /// The network.
    pub dialer: Arc<dyn Dialer>,
    /// Told when rows become durable.
    pub fresh: Arc<Notify>,
    /// For the status file.
    pub seen: Arc<Mutex<Seen>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    #[error("the server ended a stream: {}", .0.message())]
    Status(Box<Status>),
    #[error("the server's answer is no ack: {0}")]
    NoAck(String),
    #[error("the server closed the connection")]
    Closed,
}

/// A DoPut that is open for one stream.
struct OpenPut {
    schema: SchemaRef,
    messages: mpsc::Sender<FlightData>,
}

/// One message from an open DoPut: whose, and what.
type Answer = (StreamId, Result<PutResult, Status>);

/// What one connection keeps.
struct Session {
    connection: Connection,
    delivery: Delivery,
    puts: BTreeMap<StreamId, OpenPut>,
    answers: mpsc::Sender<Answer>,
    acked: mpsc::Receiver<Answer>,
}

/// Calls that wait for the disk, on a thread that may wait.
fn blocking<T>(f: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(f)
}

impl Uplink {
    fn see(&self, f: impl FnOnce(&mut Seen)) {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Delivers for ever.
    pub async fn run(&self) {
        let mut backoff = Backoff::new(BACK_OFF.0, BACK_OFF.1);
        loop {
            let before = self.queue.rows_acknowledged();
            let why = match self.connection().await {
                Ok(()) => Ended::Closed.to_string(),
                Err(e) => e.to_string(),
            };
            tracing::warn!(why, "not connected to the server; rows wait in the queue");
            self.see(|s| {
                s.connected = false;
                s.last_error = Some(why);
                s.in_flight = 0;
            });
            // Only delivery counts as success: a server that accepts and fails is no server.
            if self.queue.rows_acknowledged() > before {
                backoff.reset();
            }
            self.clock.sleep(backoff.pause(self.entropy.as_ref())).await;
        }
    }

    async fn connection(&self) -> Result<(), Ended> {
        let connection = Connection::open(&self.identity, Arc::clone(&self.dialer)).await?;
        // Room for an answer to everything in flight, so that answers never hold up sending.
        let (answers, acked) = mpsc::channel(IN_FLIGHT_MAX * 2);
        let delivery =
            Delivery::new(Arc::clone(&self.queue), Arc::clone(&self.clock), self.identity.device);
        let mut session = Session { connection, delivery, puts: BTreeMap::new(), answers, acked };
        self.see(|s| s.connected = true);
        loop {
            while let Ok((stream, answer)) = session.acked.try_recv() {
                take(&mut session, &stream, answer)?;
            }
            self.settle(&mut session);
            session.delivery.check_alive()?;
            match blocking(|| session.delivery.next())? {
                Action::Ask(stream, epoch) => {
                    let floor = session.connection.floor(&stream, epoch).await?;
                    session.delivery.answered(stream, epoch, floor);
                }
                Action::Send(message) => self.send(&mut session, *message).await?,
                Action::Wait => {
                    tokio::select! {
                        answer = session.acked.recv() => match answer {
                            Some((stream, answer)) => take(&mut session, &stream, answer)?,
                            None => return Ok(()),
                        },
                        () = self.fresh.notified() => {}
                        () = self.clock.sleep(IDLE) => {}
                    }
                }
            }
        }
    }

    /// Floors and gaps to disk. A disk that refuses does not end the connection: acks go on, and
    /// giving up segments is what makes room.
    fn settle(&self, session: &mut Session) {
        let in_flight = session.delivery.in_flight();
        self.see(|s| s.in_flight = in_flight);
        if let Err(error) = blocking(|| session.delivery.settle(false)) {
            tracing::warn!(%error, "what was acknowledged could not be stored yet");
        }
    }

    /// Sends a message.
    async fn send(&self, session: &mut Session, message: Outgoing) -> Result<(), Ended> {
        let stream = message.part.stream.clone();
        let (schema, first, data) = match encode::encode(&message) {
            Ok(encoded) => encoded,
            Err(why) => return Ok(blocking(|| session.delivery.unsendable(&message, &why))?),
        };
        let same = session.puts.get(&stream).is_some_and(|p| p.schema == schema);
        if !same {
            // Closing the old call first keeps the stream's order: its acks come before ours.
            session.puts.remove(&stream);
            while session.delivery.in_flight_of(&stream) > 1 {
                session.delivery.check_alive()?;
                tokio::select! {
                    answer = session.acked.recv() => match answer {
                        Some((stream, answer)) => take(session, &stream, answer)?,
                        None => return Err(Ended::Closed),
                    },
                    () = self.clock.sleep(IDLE) => {}
                }
            }
            let put = open(session, stream.clone(), schema);
            if let Some(message) = first {
                put.messages.send(message).await.map_err(|_| Ended::Closed)?;
            }
            session.puts.insert(stream.clone(), put);
        }
        let Some(put) = session.puts.get(&stream) else { return Err(Ended::Closed) };
        for message in data {
            put.messages.send(message).await.map_err(|_| Ended::Closed)?;
        }
        Ok(())
    }
}

fn open(session: &Session, stream: StreamId, schema: SchemaRef) -> OpenPut {
    let (messages, outgoing) = mpsc::channel(STREAM_AHEAD);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut client = session.connection.flight();
    let answers = session.answers.clone();
    // The call answers only when the first message has come, so it runs on its own.
    tokio::spawn(async move {
        match client.do_put(outgoing).await {
            Ok(response) => pump(response.into_inner(), stream, answers).await,
            Err(status) => drop(answers.send((stream, Err(status))).await),
        }
    });
    OpenPut { schema, messages }
}

/// Takes one answer of the server.
fn take(
    session: &mut Session,
    stream: &StreamId,
    answer: Result<PutResult, Status>,
) -> Result<(), Ended> {
    let answer = answer.map_err(|status| Ended::Status(Box::new(status)))?;
    if answer.app_metadata.is_empty() {
        return Ok(());
    }
    let ack = PutAck::from_bytes(&answer.app_metadata).map_err(|e| Ended::NoAck(e.to_string()))?;
    if ack.key.stream != *stream {
        return Err(Ended::NoAck("it names another stream".to_owned()));
    }
    Ok(session.delivery.acked(&ack)?)
}

async fn pump(mut answers: Streaming<PutResult>, stream: StreamId, out: mpsc::Sender<Answer>) {
    while let Some(answer) = answers.next().await {
        let failed = answer.is_err();
        if out.send((stream.clone(), answer)).await.is_err() || failed {
            return;
        }
    }
}
