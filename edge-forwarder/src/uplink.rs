//! The shell around `delivery`: one connection to the server, Flight DoPut per stream.
//!
//! Owns: dialling, messages on the wire, reconnecting with jitter. Never: decides what is sent or
//! what an ack means; sends a stream's rows on a new call before the old call's acks are in.

mod connection;
mod encode;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arrow::datatypes::SchemaRef;
use arrow_flight::{FlightData, PutResult};
use futures::StreamExt;
use millrace_platform::{clock::Clock, disk::Disk, entropy::Entropy, net::Dialer};
use millrace_protocol::{ids::StreamId, stream::PutAck};
use tokio::sync::{Notify, mpsc};
use tonic::{Code, Status, Streaming};

use crate::{
    backoff::Backoff,
    delivery::{Action, Delivery, DeliveryError, IN_FLIGHT_MAX, Outgoing, Share},
    identity::{Identity, Renewal},
    queue::Queue,
};

pub use connection::{ConnectError, Connection, post_enrolment};

/// Messages of one stream that wait to be written to the connection: all that may be on their way,
/// so that a stream which the server lets wait never holds up this loop.
const STREAM_AHEAD: usize = IN_FLIGHT_MAX + 1;
/// First and longest pause between attempts.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How often to look whether the certificate must be renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3600);
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
    /// Who we are; another after a renewal.
    pub identity: Mutex<Arc<Identity>>,
    /// Where that is stored.
    pub home: (Arc<dyn Disk>, PathBuf),
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Jitter.
    pub entropy: Arc<dyn Entropy>,
    /// The network.
    pub dialer: Arc<dyn Dialer>,
    /// How the link is shared.
    pub share: Share,
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
    #[error("the certificate was renewed")]
    Renewed,
}

/// A DoPut that is open for one stream.
struct OpenPut {
    schema: SchemaRef,
    messages: mpsc::Sender<FlightData>,
}

/// Whose DoPut: a stream in an epoch. Backfill and live rows of one stream are two, so that the
/// server's pace for one does not hold up the other.
type PutKey = (StreamId, u64);
/// One message from an open DoPut: whose, and what.
type Answer = (PutKey, Result<PutResult, Status>);

/// What one connection keeps.
struct Session {
    connection: Connection,
    delivery: Delivery,
    puts: BTreeMap<PutKey, OpenPut>,
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
        let identity = self.identity();
        let connection = Connection::open(&identity, Arc::clone(&self.dialer)).await?;
        self.renew(&identity, &connection).await?;
        let mut looked = self.clock.monotonic();
        // Room for an answer to everything in flight, so that answers never hold up sending.
        let (answers, acked) = mpsc::channel(IN_FLIGHT_MAX * 2);
        let delivery = blocking(|| {
            Delivery::new(
                Arc::clone(&self.queue),
                Arc::clone(&self.clock),
                identity.device,
                self.share,
            )
        });
        let mut session = Session { connection, delivery, puts: BTreeMap::new(), answers, acked };
        self.see(|s| s.connected = true);
        loop {
            while let Ok((key, answer)) = session.acked.try_recv() {
                take(&mut session, &key, answer)?;
            }
            self.settle(&mut session);
            session.delivery.check_alive()?;
            if self.clock.monotonic().saturating_sub(looked) > RENEW_EVERY {
                looked = self.clock.monotonic();
                self.renew(&identity, &session.connection).await?;
            }
            match blocking(|| session.delivery.next())? {
                Action::Ask(stream, epoch) => {
                    let floor = session.connection.floor(&stream, epoch).await?;
                    session.delivery.answered(stream, epoch, floor);
                }
                Action::Send(message) => self.send(&mut session, *message).await?,
                Action::Wait => {
                    tokio::select! {
                        answer = session.acked.recv() => match answer {
                            Some((key, answer)) => take(&mut session, &key, answer)?,
                            None => return Ok(()),
                        },
                        () = self.fresh.notified() => {}
                        () = self.clock.sleep(IDLE) => {}
                    }
                }
            }
        }
    }

    fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gets the next certificate if it is time, and ends the connection so that the next uses it.
    /// A renewal that fails is tried again later: the present certificate is still good.
    async fn renew(&self, identity: &Identity, connection: &Connection) -> Result<(), Ended> {
        if !identity.is_due(self.clock.now_ns()) {
            return Ok(());
        }
        match renewed(connection, &self.home).await {
            Ok(next) => {
                tracing::info!("the certificate was renewed");
                *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
                Err(Ended::Renewed)
            }
            Err(why) => {
                tracing::warn!(why, "the certificate could not be renewed; it is tried again");
                Ok(())
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
        let key: PutKey = (message.part.stream.clone(), message.header.key.epoch.0);
        let (schema, first, data) = match encode::encode(&message) {
            Ok(encoded) => encoded,
            Err(why) => return Ok(blocking(|| session.delivery.unsendable(&message, &why))?),
        };
        let same = session.puts.get(&key).is_some_and(|p| p.schema == schema);
        if !same {
            // Closing the old call first keeps the stream's order: its acks come before ours.
            session.puts.remove(&key);
            while session.delivery.in_flight_of(&key.0, key.1) > 1 {
                session.delivery.check_alive()?;
                tokio::select! {
                    answer = session.acked.recv() => match answer {
                        Some((of, answer)) => take(session, &of, answer)?,
                        None => return Err(Ended::Closed),
                    },
                    () = self.clock.sleep(IDLE) => {}
                }
            }
            if session.delivery.in_flight_of(&key.0, key.1) == 0 {
                // Refused meanwhile: it is read again behind what was put aside.
                return Ok(());
            }
            let put = open(session, key.clone(), schema);
            session.puts.insert(key.clone(), put);
            write(session, &key, first).await;
        }
        write(session, &key, data).await;
        Ok(())
    }
}

/// The next identity, stored.
pub async fn renewed(
    connection: &Connection,
    home: &(Arc<dyn Disk>, PathBuf),
) -> Result<Identity, String> {
    let renewal = Renewal::begin().map_err(|e| e.to_string())?;
    let answer = connection.renew(&renewal.csr_pem).await?;
    let (disk, dir) = home;
    blocking(|| renewal.finish(disk.as_ref(), dir, &answer)).map_err(|e| e.to_string())
}

/// Writes to an open call. One that has ended takes nothing: its last answer, which says why, is on
/// its way.
async fn write(
    session: &mut Session,
    key: &PutKey,
    messages: impl IntoIterator<Item = FlightData>,
) {
    for message in messages {
        let Some(put) = session.puts.get(key) else { return };
        if put.messages.send(message).await.is_err() {
            session.puts.remove(key);
        }
    }
}

fn open(session: &Session, key: PutKey, schema: SchemaRef) -> OpenPut {
    let (messages, outgoing) = mpsc::channel(STREAM_AHEAD);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut client = session.connection.flight();
    let answers = session.answers.clone();
    // The call answers only when the first message has come, so it runs on its own.
    tokio::spawn(async move {
        match client.do_put(outgoing).await {
            Ok(response) => pump(response.into_inner(), key, answers).await,
            Err(status) => drop(answers.send((key, Err(status))).await),
        }
    });
    OpenPut { schema, messages }
}

/// Whether the server will never take this message, whatever the connection: the message is at
/// fault, not the server's state. A refused device and a server that is short of something are not
/// such; they pass.
fn is_final(status: &Status) -> bool {
    // A hole in the numbers is between the server and this connection; the next one asks anew.
    !status.message().starts_with("bad_sequence")
        && matches!(
            status.code(),
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::OutOfRange
        )
}

/// Takes one answer of the server.
fn take(
    session: &mut Session,
    (stream, epoch): &PutKey,
    answer: Result<PutResult, Status>,
) -> Result<(), Ended> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) if is_final(&status) => {
            // Messages of this call that are still to be written go nowhere; they are read again.
            session.puts.remove(&(stream.clone(), *epoch));
            let why = status.message();
            return Ok(blocking(|| session.delivery.refused(stream, *epoch, why))?);
        }
        Err(status) => return Err(Ended::Status(Box::new(status))),
    };
    if answer.app_metadata.is_empty() {
        return Ok(());
    }
    let ack = PutAck::from_bytes(&answer.app_metadata).map_err(|e| Ended::NoAck(e.to_string()))?;
    if ack.key.stream != *stream {
        return Err(Ended::NoAck("it names another stream".to_owned()));
    }
    Ok(session.delivery.acked(&ack)?)
}

async fn pump(mut answers: Streaming<PutResult>, key: PutKey, out: mpsc::Sender<Answer>) {
    while let Some(answer) = answers.next().await {
        let failed = answer.is_err();
        if out.send((key.clone(), answer)).await.is_err() || failed {
            return;
        }
    }
}
