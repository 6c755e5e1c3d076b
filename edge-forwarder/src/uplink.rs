//! Delivery: reads durable frames, sends them by Flight DoPut, moves the floor on acks.
//!
//! Owns: the connection, what is in flight, reconnecting. Never: counts anything but a valid
//! `PutAck` as an ack; sends a frame that the server is known to have.
//! Order of a connection: ask the floor of a stream before its first frame, skip what is known,
//! send the rest in queue order, at most [`IN_FLIGHT_MAX`] frames ahead of the acks.
//! Invariant: D2 numbers of a stream are sent in order and without holes; a stream whose server
//! knows less than was acknowledged here goes on under a new epoch, with a gap record.

mod connection;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_flight::{FlightData, PutResult, utils::batches_to_flight_data};
use futures::StreamExt;
use millrace_platform::{
    clock::Clock,
    entropy::{Entropy, random_u64},
    net::Dialer,
};
use millrace_protocol::{
    arrow::to_record_batch,
    ids::{Epoch, SeqNo, StreamId},
    stream::{PutAck, PutHeader, StreamKey},
};
use tokio::sync::{Notify, mpsc};
use tonic::{Status, Streaming};

use crate::{
    gap::{self, Cause},
    identity::Identity,
    queue::{Incoming, Next, Queue, Queued},
};

pub use connection::{ConnectError, Connection, post_enrolment};

/// Frames sent and not yet acknowledged, over all streams.
const IN_FLIGHT_MAX: usize = 64;
/// Frames of one stream that wait to be written to the connection.
const STREAM_AHEAD: usize = 8;
/// First and longest pause between attempts.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How long to wait for new rows before looking at acks again.
const IDLE: Duration = Duration::from_millis(500);

/// What the supervisor sees of the uplink.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Whether the server answers.
    pub connected: bool,
    /// The last error.
    pub last_error: Option<String>,
    /// Frames in flight.
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
    /// Gap records go back into the queue.
    pub gaps: mpsc::Sender<Incoming>,
    /// For the status file.
    pub seen: Arc<Mutex<Seen>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Queue(#[from] crate::queue::QueueError),
    #[error("the server ended a stream: {}", .0.message())]
    Status(Box<Status>),
    #[error("the server's answer is no ack: {0}")]
    NoAck(String),
    #[error("rows cannot be encoded: {0}")]
    Encode(String),
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
    puts: BTreeMap<StreamId, OpenPut>,
    /// Floors that the server named on this connection.
    floors: BTreeMap<(StreamId, u64), u64>,
    /// lsn -> stream, epoch as queued, number of its last row.
    in_flight: BTreeMap<u64, (StreamId, u64, u64)>,
    answers: mpsc::Sender<Answer>,
    acked: mpsc::Receiver<Answer>,
    /// Floors to store with the next trim.
    moved: BTreeMap<(StreamId, u64), u64>,
    /// Streams that go on under another epoch: (stream, queued epoch) -> (sent epoch, offset).
    forks: BTreeMap<(StreamId, u64), (u64, u64)>,
    /// The lowest frame that is not acknowledged.
    next_lsn: u64,
}

/// Tag columns as plain text: each message then stands alone.
fn plain(batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let schema = batch.schema();
    let mut fields = Vec::with_capacity(schema.fields().len());
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if matches!(field.data_type(), DataType::Dictionary(_, _)) {
            let plain = Field::new(field.name(), DataType::Utf8, field.is_nullable());
            fields.push(plain.with_metadata(field.metadata().clone()));
            columns.push(cast(column, &DataType::Utf8)?);
        } else {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
        }
    }
    let schema = Schema::new_with_metadata(fields, schema.metadata().clone());
    RecordBatch::try_new(Arc::new(schema), columns)
}

impl Uplink {
    fn see(&self, f: impl FnOnce(&mut Seen)) {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Delivers for ever.
    pub async fn run(self) {
        let mut pause = BACK_OFF.0;
        loop {
            let started = self.clock.monotonic();
            let ended = self.connection().await;
            let why = match ended {
                Ok(()) => Ended::Closed.to_string(),
                Err(e) => e.to_string(),
            };
            tracing::warn!(why, "not connected to the server; rows wait in the queue");
            self.see(|s| {
                s.connected = false;
                s.last_error = Some(why);
                s.in_flight = 0;
            });
            if self.clock.monotonic().saturating_sub(started) > BACK_OFF.1 {
                pause = BACK_OFF.0;
            }
            // Up to half again, so that a fleet does not come back as one.
            let jitter = random_u64(self.entropy.as_ref()) % (pause.as_millis() as u64 / 2 + 1);
            self.clock.sleep(pause + Duration::from_millis(jitter)).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    async fn connection(&self) -> Result<(), Ended> {
        let connection = Connection::open(&self.identity, Arc::clone(&self.dialer)).await?;
        let (answers, acked) = mpsc::channel(IN_FLIGHT_MAX * 2);
        let first = self.queue.first_lsn();
        let mut session = Session {
            connection,
            puts: BTreeMap::new(),
            floors: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            answers,
            acked,
            moved: BTreeMap::new(),
            forks: BTreeMap::new(),
            next_lsn: first,
        };
        let mut cursor = self.queue.cursor(first);
        self.see(|s| s.connected = true);
        loop {
            while let Ok((stream, answer)) = session.acked.try_recv() {
                self.take(&mut session, &stream, answer).await?;
            }
            if session.in_flight.len() >= IN_FLIGHT_MAX {
                self.settle(&mut session)?;
                match session.acked.recv().await {
                    Some((stream, answer)) => self.take(&mut session, &stream, answer).await?,
                    None => return Ok(()),
                }
                continue;
            }
            match self.queue.read(&mut cursor)? {
                Some(Next::Frame(frame)) => {
                    session.next_lsn = frame.lsn + 1;
                    self.send(&mut session, *frame).await?;
                }
                Some(Next::Lost { what, frames }) => self.lost(&what, frames).await,
                None => {
                    self.settle(&mut session)?;
                    tokio::select! {
                        answer = session.acked.recv() => match answer {
                            Some((stream, answer)) => self.take(&mut session, &stream, answer).await?,
                            None => return Ok(()),
                        },
                        () = self.fresh.notified() => {}
                        () = self.clock.sleep(IDLE) => {}
                    }
                }
            }
        }
    }

    async fn lost(&self, what: &str, frames: u64) {
        tracing::error!(what, "a stretch of the queue does not read; it is reported as a gap");
        let now = self.clock.now_ns();
        if let Some(record) = gap::record("queue", Cause::Quarantine, now, now, frames, what) {
            // A full channel means that gaps are being reported already.
            drop(self.gaps.send(record).await);
        }
    }

    /// Sends a frame, unless the server has it.
    async fn send(&self, session: &mut Session, mut frame: Queued) -> Result<(), Ended> {
        let known = (frame.stream.clone(), frame.epoch);
        let local = self.queue.floor(&frame.stream, frame.epoch);
        if frame.seq_hi() <= local {
            return Ok(());
        }
        let (sent_epoch, offset) = match session.forks.get(&known) {
            Some(fork) => *fork,
            None => {
                let floor = self.floor(session, &frame).await?;
                if floor + 1 < frame.seq_lo {
                    self.fork(session, &frame, floor).await
                } else {
                    (frame.epoch, 0)
                }
            }
        };
        let server = session.floors.get(&(frame.stream.clone(), sent_epoch)).copied().unwrap_or(0);
        let hi = frame.seq_hi();
        if hi - offset <= server {
            session.moved.insert(known, hi);
            return Ok(());
        }
        let key = StreamKey {
            device: self.identity.device,
            stream: frame.stream.clone(),
            epoch: Epoch(sent_epoch),
        };
        let header =
            PutHeader { key, seq_lo: SeqNo(frame.seq_lo - offset), seq_hi: SeqNo(hi - offset) };
        frame.batch.line = (1..).take(frame.batch.rows()).collect();
        let batch = to_record_batch(&frame.batch, &frame.database)
            .map_err(|e| Ended::Encode(e.to_string()))?;
        let batch = plain(&batch).map_err(|e| Ended::Encode(e.to_string()))?;
        let schema = batch.schema();
        let mut messages = batches_to_flight_data(&schema, vec![batch])
            .map_err(|e| Ended::Encode(e.to_string()))?
            .into_iter();
        let schema_message = messages.next();
        let same = session.puts.get(&frame.stream).is_some_and(|p| p.schema == schema);
        if !same {
            // Closing the old call first keeps the stream's order: its acks come before ours.
            session.puts.remove(&frame.stream);
            self.drain(session, &frame.stream).await?;
            let put = self.open(session, frame.stream.clone(), schema).await?;
            if let Some(message) = schema_message {
                put.messages.send(message).await.map_err(|_| Ended::Closed)?;
            }
            session.puts.insert(frame.stream.clone(), put);
        }
        session.in_flight.insert(frame.lsn, (frame.stream.clone(), frame.epoch, hi));
        let Some(put) = session.puts.get(&frame.stream) else { return Err(Ended::Closed) };
        for mut message in messages {
            message.app_metadata = header.to_bytes().into();
            put.messages.send(message).await.map_err(|_| Ended::Closed)?;
        }
        Ok(())
    }

    /// Waits until nothing of a stream is in flight.
    async fn drain(&self, session: &mut Session, stream: &StreamId) -> Result<(), Ended> {
        while session.in_flight.values().any(|(s, _, _)| s == stream) {
            match session.acked.recv().await {
                Some((stream, answer)) => self.take(session, &stream, answer).await?,
                None => return Err(Ended::Closed),
            }
        }
        Ok(())
    }

    /// What the server has of a frame's stream, asked once per connection.
    async fn floor(&self, session: &mut Session, frame: &Queued) -> Result<u64, Ended> {
        let key = (frame.stream.clone(), frame.epoch);
        if let Some(floor) = session.floors.get(&key) {
            return Ok(*floor);
        }
        let floor = session.connection.floor(&frame.stream, frame.epoch).await?;
        session.floors.insert(key, floor);
        Ok(floor)
    }

    /// The server knows less than was acknowledged: rows in between are gone here, so the rest of
    /// the stream goes on under a new epoch and the hole is recorded.
    async fn fork(&self, session: &mut Session, frame: &Queued, floor: u64) -> (u64, u64) {
        let offset = frame.seq_lo - 1;
        // Derived, so that every reconnect forks to the same epoch and stays exactly once.
        let epoch = frame.epoch ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        tracing::error!(stream = %frame.stream, floor, offset, "the server lost acknowledged rows; the stream goes on in a new epoch");
        let now = self.clock.now_ns();
        let detail = "the server knows less than it had acknowledged";
        if let Some(record) =
            gap::record(frame.stream.as_str(), Cause::Fork, now, now, offset - floor, detail)
        {
            drop(self.gaps.send(record).await);
        }
        let server = session.connection.floor(&frame.stream, epoch).await.unwrap_or(0);
        session.floors.insert((frame.stream.clone(), epoch), server);
        session.forks.insert((frame.stream.clone(), frame.epoch), (epoch, offset));
        (epoch, offset)
    }

    async fn open(
        &self,
        session: &mut Session,
        stream: StreamId,
        schema: SchemaRef,
    ) -> Result<OpenPut, Ended> {
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
        Ok(OpenPut { schema, messages })
    }

    /// Takes one answer of the server.
    async fn take(
        &self,
        session: &mut Session,
        stream: &StreamId,
        answer: Result<PutResult, Status>,
    ) -> Result<(), Ended> {
        let answer = answer.map_err(|status| Ended::Status(Box::new(status)))?;
        if answer.app_metadata.is_empty() {
            return Ok(());
        }
        let ack =
            PutAck::from_bytes(&answer.app_metadata).map_err(|e| Ended::NoAck(e.to_string()))?;
        if ack.key.device != self.identity.device || ack.key.stream != *stream {
            return Err(Ended::NoAck("it names another stream".to_owned()));
        }
        if ack.refused > 0 {
            // Recorded before the floor moves.
            let first = ack.refusals.first().map(|r| r.reason.clone()).unwrap_or_default();
            let now = self.clock.now_ns();
            if stream.as_str() != gap::STREAM
                && let Some(record) =
                    gap::record(stream.as_str(), Cause::Rejected, now, now, ack.refused, &first)
            {
                drop(self.gaps.send(record).await);
            }
        }
        let fork = session
            .forks
            .iter()
            .find(|((s, _), (epoch, _))| s == stream && *epoch == ack.key.epoch.0);
        let (epoch, hi) = match fork {
            Some(((_, epoch), (_, offset))) => (*epoch, ack.hi.0 + offset),
            None => (ack.key.epoch.0, ack.hi.0),
        };
        session.floors.insert((stream.clone(), ack.key.epoch.0), ack.hi.0);
        session.in_flight.retain(|_, (s, e, last)| s != stream || *e != epoch || *last > hi);
        session.moved.insert((stream.clone(), epoch), hi);
        if session.moved.len() >= IN_FLIGHT_MAX {
            self.settle(session)?;
        }
        Ok(())
    }

    /// Stores the floors that moved and trims the queue below the oldest frame in flight.
    fn settle(&self, session: &mut Session) -> Result<(), Ended> {
        self.see(|s| s.in_flight = session.in_flight.len());
        if session.moved.is_empty() {
            return Ok(());
        }
        let floors: Vec<(StreamId, u64, u64)> = std::mem::take(&mut session.moved)
            .into_iter()
            .map(|((stream, epoch), hi)| (stream, epoch, hi))
            .collect();
        let oldest = session.in_flight.keys().next().copied().unwrap_or(session.next_lsn);
        self.queue.acknowledge(&floors, oldest)?;
        Ok(())
    }
}

async fn pump(mut answers: Streaming<PutResult>, stream: StreamId, out: mpsc::Sender<Answer>) {
    while let Some(answer) = answers.next().await {
        let failed = answer.is_err();
        if out.send((stream.clone(), answer)).await.is_err() || failed {
            return;
        }
    }
}
