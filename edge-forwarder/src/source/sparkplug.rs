//! Sparkplug B as primary host: nodes of a broker, their births, data and deaths.
//!
//! Owns: the connection, the STATE message that says whether we take data: retained, with a will,
//! so that nodes that know us hold theirs while we are away. Never: says *online* before it has
//! subscribed, or while the queue takes no rows.
//! Invariant: E8 messages come at QoS 0, so what was sent while no connection was there is a gap.

pub mod nodes;
pub mod proto;

use std::{path::PathBuf, sync::Arc, time::Duration};

use millrace_platform::net::Dialer;

use super::{
    Pending, Sink,
    mqtt::{
        client::{Client, Dial, MqttError},
        codec::{Connect, Message, Packet, Publish, Version},
    },
    peer::{self, Peer},
    rate::Rate,
};
use crate::{
    backoff::Backoff,
    gap::{Cause, Gap},
    mapping::Mapping,
};
use nodes::{Moment, Nodes, Out, SPACE};

/// First and longest pause between attempts to connect.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Bytes and rows that are stored together.
const BATCH: (usize, usize) = (512 * 1024, 4_096);
/// After so long without room nodes are told to hold their data.
const PATIENCE: Duration = Duration::from_secs(10);

/// A broker and the groups of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// The source's name is `sparkplug-` and this.
    pub name: String,
    /// Where.
    pub peer: Peer,
    /// The protocol.
    pub version: Version,
    /// Our name as a host.
    pub host_id: String,
    /// Who.
    pub user: Option<String>,
    /// And where the proof is.
    pub password_file: Option<PathBuf>,
    /// Keep-alive.
    pub keep_alive_s: u16,
    /// Bytes of a message at most.
    pub message_max: usize,
    /// Rows per second at most.
    pub rows_per_s: u64,
    /// Groups; `+` is all.
    pub groups: Vec<String>,
    /// Where it goes.
    pub mapping: Mapping,
}

/// Our STATE: retained, so that a node that comes later knows too.
fn state(host: &Host, online: bool, since_ms: i64) -> Message {
    Message {
        topic: format!("{SPACE}/STATE/{}", host.host_id),
        payload: format!("{{\"online\":{online},\"timestamp\":{since_ms}}}").into_bytes(),
        at_least_once: true,
        retain: true,
    }
}

/// The resume token: when the newest message came. Nothing can be asked for again.
fn encode(last_ns: i64) -> Vec<u8> {
    let mut out = vec![1];
    out.extend_from_slice(&last_ns.to_le_bytes());
    out
}

fn decode(bytes: Option<&[u8]>) -> Option<i64> {
    let (version, rest) = bytes?.split_first()?;
    (*version == 1).then(|| rest.try_into().ok().map(i64::from_le_bytes))?
}

struct Reader<'a> {
    sink: &'a Sink,
    host: &'a Host,
    nodes: Nodes<'a>,
}

impl Reader<'_> {
    async fn connect(&self, dial: &Dial, since_ms: i64) -> Result<Client, MqttError> {
        let host = self.host;
        let password = match &host.password_file {
            Some(path) => Some(peer::secret(path).await?),
            None => None,
        };
        let connect = Connect {
            version: host.version,
            client_id: format!("millrace-{}-{}", self.sink.device, host.name),
            clean: true,
            keep_alive_s: host.keep_alive_s,
            session_expiry_s: 0,
            receive_max: 100,
            packet_max: u32::try_from(host.message_max).unwrap_or(u32::MAX),
            user: host.user.clone(),
            password,
            will: Some(state(host, false, since_ms)),
        };
        let (mut client, _) = Client::connect(dial, &connect).await?;
        let mut filters: Vec<String> =
            host.groups.iter().map(|g| format!("{SPACE}/{g}/#")).collect();
        filters.push(format!("{SPACE}/STATE/{}", host.host_id));
        client.subscribe(&filters, false).await?;
        client.publish(&state(host, true, since_ms)).await?;
        Ok(client)
    }

    /// What was sent while nobody listened is a gap, from the newest message that is stored.
    async fn tell_away(&self) {
        let now = self.sink.clock.now_ns();
        let Some(last) = decode(self.sink.queue.position(&self.sink.name).as_deref()) else {
            return;
        };
        let why = "not connected to the broker; nodes that know their primary host hold their data";
        let mut gap = Gap::new(&self.sink.name, Cause::SessionLost, now, 0, why);
        gap.from_ns = last.min(now);
        let bytes = encode(now);
        self.sink.store(&[], &[gap], &|_| Some(bytes.clone())).await;
    }

    /// Makes rows durable; tells nodes to hold theirs if that takes long.
    async fn store(
        &self,
        client: &mut Client,
        mut out: Out,
        since_ms: i64,
    ) -> Result<(), MqttError> {
        let now = self.sink.clock.now_ns();
        if out.rejected > 0 {
            let gap = Gap::new(&self.sink.name, Cause::Rejected, now, out.rejected, &out.why);
            out.gaps.push(gap);
        }
        let bytes = encode(now);
        let position = |_| Some(bytes.clone());
        let started = self.sink.clock.monotonic();
        let mut held = false;
        let mut pending = Pending::new(self.sink, &out.lines, &out.gaps);
        while let Some(pause) = self.sink.attempt(&mut pending, &position).await {
            if !held && self.sink.clock.monotonic().saturating_sub(started) > PATIENCE {
                held = true;
                client.publish(&state(self.host, false, since_ms)).await?;
            }
            self.sink.clock.sleep(pause).await;
            client.keep_alive().await?;
        }
        if held {
            client.publish(&state(self.host, true, since_ms)).await?;
        }
        client.stood_still();
        for command in &out.commands {
            client.publish(command).await?;
        }
        Ok(())
    }

    async fn connection(
        &mut self,
        dial: &Dial,
        rate: &mut Rate,
        worked: &mut bool,
    ) -> Result<(), MqttError> {
        let since_ms = self.sink.clock.now_ns() / 1_000_000;
        self.nodes.forget();
        let mut client = self.connect(dial, since_ms).await?;
        self.tell_away().await;
        tracing::info!(source = self.sink.name, "connected to the broker as a host");
        let own = format!("{SPACE}/STATE/{}", self.host.host_id);
        loop {
            let mut batch = Out::default();
            let mut bytes = 0;
            let mut next = Some(client.next().await?);
            while let Some(packet) = next {
                if let Packet::Publish(message) = packet {
                    if message.topic == own {
                        if String::from_utf8_lossy(&message.payload).contains("\"online\":false") {
                            // The will of a connection of ours that the broker ended late.
                            client.publish(&state(self.host, true, since_ms)).await?;
                        }
                    } else {
                        bytes += message.payload.len();
                        self.take(&message, &mut batch);
                    }
                }
                let full = bytes >= BATCH.0 || batch.lines.len() >= BATCH.1;
                next = if full { None } else { client.next_now()? };
            }
            let rows = batch.lines.len() as u64;
            self.store(&mut client, batch, since_ms).await?;
            *worked = true;
            let pause = rate.take(rows, self.sink.clock.monotonic());
            if !pause.is_zero() {
                self.sink.clock.sleep(pause).await;
                client.stood_still();
            }
        }
    }

    fn take(&mut self, message: &Publish, batch: &mut Out) {
        if let Some(bytes) = message.too_long {
            batch.rejected += 1;
            batch.why = format!("{}: a message of {bytes} bytes", message.topic);
            return;
        }
        let clock = &self.sink.clock;
        let at = Moment { now_ns: clock.now_ns(), monotonic: clock.monotonic() };
        let out = self.nodes.take(&message.topic, &message.payload, at);
        batch.lines.extend(out.lines);
        batch.gaps.extend(out.gaps);
        batch.commands.extend(out.commands);
        if out.rejected > 0 {
            batch.rejected += out.rejected;
            batch.why = out.why;
        }
    }
}

/// Reads for ever.
pub async fn run(sink: Sink, host: Host, dialer: Arc<dyn Dialer>) {
    let dial = Dial {
        peer: host.peer.clone(),
        dialer,
        clock: Arc::clone(&sink.clock),
        message_max: host.message_max,
    };
    let mut rate = Rate::new(host.rows_per_s);
    let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
    let nodes = Nodes::new(&sink.name, &host.mapping);
    let mut reader = Reader { sink: &sink, host: &host, nodes };
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
mod tests;
