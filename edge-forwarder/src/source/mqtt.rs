//! MQTT 3.1.1 and 5: topics of a broker, each message acknowledged only when its rows are durable.
//!
//! Owns: the session, which is the resume token: the broker keeps what was not acknowledged.
//! Never: acknowledges a message whose rows and gaps are not durable; has more than one connection.
//! Invariants: D2 a message that the broker sends again after a crash makes no second row; E8 one
//! that makes no row is counted in a gap; a lost session is a gap.

pub mod client;
pub mod codec;
pub mod payload;
pub mod session;

use std::{borrow::Cow, path::PathBuf, sync::Arc, time::Duration};

use millrace_platform::net::Dialer;

use super::{
    Pending, Sink,
    peer::{self, Peer},
    rate::Rate,
};
use crate::{
    backoff::Backoff,
    gap::{Cause, Gap},
    mapping::{
        Item, Mapping,
        pattern::Pattern,
        row::{Rows, Units, escaped},
        time::TimeFormat,
    },
};
use client::{Client, Dial, MqttError};
use codec::{Connect, Packet, Publish, Version};
use payload::{Kind, Payload};
use session::{KEPT, Session, digest};

/// What rules of MQTT sources may name beside captures and pointers into JSON.
pub const ATTRIBUTES: [&str; 3] = ["topic", "field", "retained"];
/// Messages and bytes of rows that are stored together.
const BATCH: (usize, usize) = (KEPT / 2, 512 * 1024);
/// First and longest pause between attempts to connect.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// What a topic's messages are.
#[derive(Debug, Clone, PartialEq)]
pub struct Topic {
    /// As the broker wants it.
    pub filter: String,
    /// The same, to find it again.
    pub pattern: Pattern,
    /// What a payload is.
    pub payload: Kind,
    /// Where in it the time is; `None`: the time of arrival.
    pub time: Option<String>,
    /// How it is written.
    pub time_format: TimeFormat,
}

/// A broker and what to take from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// The source's name is `mqtt-` and this.
    pub name: String,
    /// Where.
    pub peer: Peer,
    /// The protocol.
    pub version: Version,
    /// The session's name.
    pub client_id: Option<String>,
    /// Who.
    pub user: Option<String>,
    /// And where the proof is.
    pub password_file: Option<PathBuf>,
    /// Keep-alive.
    pub keep_alive_s: u16,
    /// How long the broker keeps the session without us.
    pub session_expiry_s: u32,
    /// Bytes of a message at most.
    pub message_max: usize,
    /// Rows per second at most.
    pub rows_per_s: u64,
    /// What to subscribe to.
    pub topics: Vec<Topic>,
    /// Where it goes.
    pub mapping: Mapping,
}

/// A filter as a pattern: both have `+` and `#`.
pub fn pattern(filter: &str) -> Result<Pattern, String> {
    let fine = !filter.is_empty() && filter.len() <= 1024 && !filter.contains(['{', '}', '\0']);
    let levels: Vec<&str> = filter.split('/').collect();
    let alone = levels.iter().all(|l| l.len() == 1 || !l.contains(['+', '#']));
    if !fine || !alone {
        return Err(format!("`{filter}` is no topic filter"));
    }
    Pattern::parse(filter)
}

/// Messages that wait to be stored together.
#[derive(Debug, Default)]
struct Batch {
    rows: Vec<String>,
    gaps: Vec<Gap>,
    bytes: usize,
    /// Of messages that must be acknowledged: after how many rows, number, digest.
    ids: Vec<(usize, u16, u64)>,
    /// To acknowledge, also of messages that make no row.
    acks: Vec<u16>,
    rejected: u64,
    why: String,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.acks.len() >= BATCH.0 || self.bytes >= BATCH.1 || self.rows.len() >= 4_096
    }

    fn reject(&mut self, rows: u64, why: String) {
        self.rejected += rows;
        self.why = why;
    }
}

/// The source while it runs.
struct Reader<'a> {
    sink: &'a Sink,
    broker: &'a Broker,
    session: Session,
    units: Units,
    /// The newest time that was given: rows of one series never share one by chance.
    last_ns: i64,
}

impl Reader<'_> {
    fn now_ns(&mut self) -> i64 {
        self.last_ns = self.sink.clock.now_ns().max(self.last_ns + 1);
        self.last_ns
    }

    /// A message's rows. What makes none is counted.
    fn take(&mut self, message: &Publish, batch: &mut Batch) {
        let mut parts: Vec<&[u8]> = vec![message.topic.as_bytes(), &message.payload];
        // Of a message that was too long there is only its length.
        let len = message.too_long.map(usize::to_le_bytes);
        parts.extend(len.as_ref().map(|l| l.as_slice()));
        let digest = digest(&parts);
        if let Some(id) = message.id {
            batch.acks.push(id);
            if self.session.has(id, digest, message.dup) {
                return;
            }
        }
        let before = (batch.rows.len(), batch.rejected);
        if let Some(bytes) = message.too_long {
            batch.reject(1, format!("{}: a message of {bytes} bytes", message.topic));
        } else if let Err(why) = self.map(message, batch) {
            batch.reject(1, format!("{}: {why}", message.topic));
        }
        // A message that says nothing to us is only acknowledged.
        if before != (batch.rows.len(), batch.rejected)
            && let Some(id) = message.id
        {
            batch.ids.push((batch.rows.len(), id, digest));
        }
    }

    fn map(&mut self, message: &Publish, batch: &mut Batch) -> Result<(), String> {
        let now = self.now_ns();
        let mut topics = self.broker.topics.iter();
        let Some(topic) = topics.find(|t| t.pattern.captures(&message.topic).is_some()) else {
            return Ok(());
        };
        let payload = Payload::read(topic.payload, &message.payload)?;
        let time = match &topic.time {
            Some(pointer) => payload.time(pointer, topic.time_format)?,
            None => now,
        };
        let mut rows = Rows::default();
        let mut wrong = (0, String::new());
        for (path, value) in payload.values(topic.time.as_deref())? {
            let field = if path.is_empty() { "value".to_owned() } else { path.replace('/', "_") };
            let attribute = |name: &str| match name {
                "topic" => Some(Cow::Borrowed(message.topic.as_str())),
                "field" => Some(Cow::Owned(field.clone())),
                "retained" => Some(Cow::Borrowed(if message.retain { "true" } else { "false" })),
                pointer if pointer.starts_with('/') => payload.at(pointer).map(Cow::Owned),
                _ => None,
            };
            let whole = match path.as_str() {
                "" => message.topic.clone(),
                path => format!("{}/{path}", message.topic),
            };
            let item = Item { path: &whole, value, unit: None, attribute: &attribute };
            match self.broker.mapping.apply(item) {
                Ok(Some(mapped)) => {
                    if let Some(unit) = &mapped.unit {
                        let told = self.units.row(&mapped.table, &mapped.field, unit, now);
                        batch.rows.extend(told);
                    }
                    rows.add(mapped, time);
                }
                Ok(None) => {}
                Err(fault) => wrong = (wrong.0 + 1, fault.to_string()),
            }
        }
        let lines = rows.into_lines();
        batch.bytes += lines.iter().map(String::len).sum::<usize>();
        // A row with holes is a row; its holes are named without a count.
        if wrong.0 > 0 {
            batch.reject(u64::from(lines.is_empty()), wrong.1.clone());
            if !lines.is_empty() {
                let now = self.sink.clock.now_ns();
                batch.gaps.push(Gap::new(&self.sink.name, Cause::Rejected, now, 0, &wrong.1));
            }
        }
        batch.rows.extend(lines);
        Ok(())
    }

    /// Makes a batch durable, then acknowledges it.
    async fn store(&mut self, client: &mut Client, mut batch: Batch) -> Result<(), MqttError> {
        let now = self.sink.clock.now_ns();
        if batch.rejected > 0 {
            let gap = Gap::new(&self.sink.name, Cause::Rejected, now, batch.rejected, &batch.why);
            batch.gaps.push(gap);
        }
        let before = self.session.clone();
        let position = |rows: usize| {
            let mut session = before.clone();
            let stored = batch.ids.iter().filter(|(end, _, _)| *end <= rows);
            stored.for_each(|(_, id, digest)| session.add(*id, *digest, now));
            Some(session.encode())
        };
        let mut pending = Pending::new(self.sink, &batch.rows, &batch.gaps);
        while let Some(pause) = self.sink.attempt(&mut pending, &position).await {
            self.sink.clock.sleep(pause).await;
            client.keep_alive().await?;
        }
        for (_, id, digest) in &batch.ids {
            self.session.add(*id, *digest, now);
        }
        client.stood_still();
        client.ack(batch.acks.into_iter()).await
    }

    /// What a new session means, made durable with it: whether it is the first or another was lost.
    async fn begin(&mut self, filters: u64) {
        let now = self.now_ns();
        let known = self.session.filters != 0;
        let mut gaps = Vec::new();
        if known {
            let why = "the broker has no session any more; what it kept for us is lost";
            let mut gap = Gap::new(&self.sink.name, Cause::SessionLost, now, 0, why);
            gap.from_ns = if self.session.last_ns == 0 { now } else { self.session.last_ns };
            gaps.push(gap);
        }
        self.session.begin(filters);
        let name = escaped(&self.sink.name);
        let event = if known { "lost" } else { "started" };
        let row = format!("edge_sessions,source={name} event=\"{event}\" {now}\n");
        let bytes = self.session.encode();
        self.sink.store(&[row], &gaps, &|_| Some(bytes.clone())).await;
    }

    /// One connection, from its beginning to its end.
    async fn connection(
        &mut self,
        dial: &Dial,
        rate: &mut Rate,
        worked: &mut bool,
    ) -> Result<(), MqttError> {
        let broker = self.broker;
        // What is durable counts, not what a broken connection has left behind.
        let durable = self.sink.queue.position(&self.sink.name);
        self.session = Session::decode(durable.as_deref());
        let connect = Connect {
            version: broker.version,
            client_id: client_id(self.sink, broker),
            clean: false,
            keep_alive_s: broker.keep_alive_s,
            session_expiry_s: broker.session_expiry_s,
            receive_max: u16::try_from(KEPT).unwrap_or(u16::MAX),
            packet_max: u32::try_from(broker.message_max).unwrap_or(u32::MAX),
            user: broker.user.clone(),
            password: match &broker.password_file {
                Some(path) => Some(peer::secret(path).await?),
                None => None,
            },
            will: None,
        };
        let (mut client, present) = Client::connect(dial, &connect).await?;
        let filters: Vec<String> = broker.topics.iter().map(|t| t.filter.clone()).collect();
        let parts: Vec<&[u8]> = filters.iter().map(String::as_bytes).collect();
        let wanted = digest(&parts).max(1);
        if !present {
            client.subscribe(&filters, true).await?;
            self.begin(wanted).await;
        } else if self.session.filters != wanted {
            client.subscribe(&filters, true).await?;
            self.session.filters = wanted;
        }
        tracing::info!(source = self.sink.name, resumed = present, "connected to the broker");
        loop {
            let mut batch = Batch::default();
            let mut next = Some(client.next().await?);
            while let Some(packet) = next {
                if let Packet::Publish(message) = packet {
                    self.take(&message, &mut batch);
                }
                next = if batch.is_full() { None } else { client.next_now()? };
            }
            let rows = batch.rows.len() as u64;
            self.store(&mut client, batch).await?;
            *worked = true;
            let pause = rate.take(rows, self.sink.clock.monotonic());
            if !pause.is_zero() {
                self.sink.clock.sleep(pause).await;
                client.stood_still();
            }
        }
    }
}

/// The session's name: a copy of the configuration on another device must not take it over.
fn client_id(sink: &Sink, broker: &Broker) -> String {
    let own = || format!("millrace-{}-{}", sink.device, broker.name);
    broker.client_id.clone().unwrap_or_else(own)
}

/// Reads for ever.
pub async fn run(sink: Sink, broker: Broker, dialer: Arc<dyn Dialer>) {
    let dial = Dial {
        peer: broker.peer.clone(),
        dialer,
        clock: Arc::clone(&sink.clock),
        message_max: broker.message_max,
    };
    let mut rate = Rate::new(broker.rows_per_s);
    let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
    let session = Session::decode(sink.queue.position(&sink.name).as_deref());
    let last_ns = session.last_ns;
    let mut reader =
        Reader { sink: &sink, broker: &broker, session, units: Units::default(), last_ns };
    loop {
        let mut worked = false;
        if let Err(error) = reader.connection(&dial, &mut rate, &mut worked).await {
            tracing::warn!(source = sink.name, %error, "not connected to the broker");
        }
        if worked {
            backoff.reset();
        }
        sink.clock.sleep(backoff.pause(sink.entropy.as_ref())).await;
    }
}

#[cfg(test)]
pub(super) mod mosquitto;
#[cfg(test)]
mod tests;
