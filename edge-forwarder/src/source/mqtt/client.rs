//! One connection to a broker.
//!
//! Owns: the handshake, keep-alive, what was read and not yet handed on. Never: acknowledges by
//! itself; reads on while the caller does not ask; keeps more than one message too many.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use millrace_platform::{
    clock::Clock,
    net::{Dialer, Stream},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::codec::{self, Connect, Decoded, Malformed, Message, Packet, Publish, Version};
use crate::source::peer::Peer;

/// Bytes of one read.
const READ: usize = 16 * 1024;
/// How long the broker may take for an answer, and the network for a write.
const ANSWER: Duration = Duration::from_secs(15);
/// Messages that may come before the answer to SUBSCRIBE.
const EARLY_MAX: usize = 10_000;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    /// The network.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The broker's bytes.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The broker said no.
    #[error("the broker refused: {0}")]
    Refused(String),
    /// Nothing came.
    #[error("the broker did not answer within {} s", ANSWER.as_secs())]
    Silent,
    /// The connection was closed.
    #[error("the broker closed the connection")]
    Closed,
}

/// How a connection is made.
#[derive(Debug, Clone)]
pub struct Dial {
    /// Where.
    pub peer: Peer,
    /// The network.
    pub dialer: Arc<dyn Dialer>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Bytes of a message at most.
    pub message_max: usize,
}

/// See the module head.
pub struct Client {
    stream: Box<dyn Stream>,
    clock: Arc<dyn Clock>,
    version: Version,
    message_max: usize,
    keep_alive: Duration,
    read: Vec<u8>,
    skip: usize,
    early: VecDeque<Publish>,
    last_sent: Duration,
    last_read: Duration,
    next_id: u16,
}

/// What CONNACK's code means.
fn refusal(code: u8) -> String {
    let words = match code {
        1 | 0x84 => "it does not speak this version of MQTT; set version",
        2 | 0x85 => "it does not take this client_id",
        3 | 0x88 => "it is not available now",
        4 | 0x86 => "user or password is wrong",
        5 | 0x87 => "this user may not connect",
        0x97 => "a quota is exceeded",
        0x9f => "too many connections",
        _ => "no reason that is known",
    };
    format!("{words} (code {code})")
}

impl Client {
    /// Connects. The client, and whether the broker kept our session.
    pub async fn connect(dial: &Dial, connect: &Connect) -> Result<(Self, bool), MqttError> {
        let clock = Arc::clone(&dial.clock);
        let open = async {
            let stream = dial.peer.dial(dial.dialer.as_ref()).await?;
            let now = dial.clock.monotonic();
            let mut client = Self {
                stream,
                clock: Arc::clone(&dial.clock),
                version: connect.version,
                message_max: dial.message_max,
                keep_alive: Duration::from_secs(u64::from(connect.keep_alive_s.max(1))),
                read: Vec::new(),
                skip: 0,
                early: VecDeque::new(),
                last_sent: now,
                last_read: now,
                next_id: 0,
            };
            client.write(&codec::connect(connect)).await?;
            match client.packet().await? {
                Packet::ConnAck { session_present, code: 0, keep_alive_s } => {
                    if let Some(seconds @ 1..) = keep_alive_s {
                        client.keep_alive = Duration::from_secs(u64::from(seconds));
                    }
                    Ok((client, session_present))
                }
                Packet::ConnAck { code, .. } => Err(MqttError::Refused(refusal(code))),
                _ => Err(Malformed("the first packet is no CONNACK").into()),
            }
        };
        tokio::select! {
            done = open => done,
            () = clock.sleep(ANSWER) => Err(MqttError::Silent),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), MqttError> {
        let clock = Arc::clone(&self.clock);
        tokio::select! {
            done = async { self.stream.write_all(bytes).await?; self.stream.flush().await } => done?,
            () = clock.sleep(ANSWER) => return Err(MqttError::Silent),
        }
        self.last_sent = self.clock.monotonic();
        Ok(())
    }

    /// The next packet of what was read; `None` if it is not whole.
    fn buffered(&mut self) -> Result<Option<Packet>, MqttError> {
        let drop_now = self.skip.min(self.read.len());
        self.read.drain(..drop_now);
        self.skip -= drop_now;
        if self.skip > 0 {
            return Ok(None);
        }
        match codec::decode(&self.read, self.version, self.message_max)? {
            Decoded::More => Ok(None),
            Decoded::Packet(packet, used, skip) => {
                self.read.drain(..used);
                self.skip = skip;
                Ok(Some(packet))
            }
        }
    }

    /// The next packet. May be dropped and called again: nothing is lost.
    async fn packet(&mut self) -> Result<Packet, MqttError> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(packet);
            }
            self.read.reserve(READ);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(MqttError::Closed);
            }
            self.last_read = self.clock.monotonic();
        }
    }

    /// A PINGREQ if one is due.
    pub async fn keep_alive(&mut self) -> Result<(), MqttError> {
        let now = self.clock.monotonic();
        if now.saturating_sub(self.last_sent) >= self.keep_alive / 2 {
            self.write(&codec::ping()).await?;
        }
        Ok(())
    }

    /// The next packet that is no PINGRESP; pings meanwhile.
    pub async fn next(&mut self) -> Result<Packet, MqttError> {
        if let Some(early) = self.early.pop_front() {
            return Ok(Packet::Publish(early));
        }
        loop {
            self.keep_alive().await?;
            let pause = self.clock.sleep(self.keep_alive / 4);
            tokio::select! {
                packet = self.packet() => match packet? {
                    Packet::PingResp => {}
                    Packet::Disconnect(code) => {
                        return Err(MqttError::Refused(format!("it ended the connection, code {code}")));
                    }
                    packet => return Ok(packet),
                },
                () = pause => {}
            }
            // An answer to each ping is due within half a keep-alive.
            let silent = self.clock.monotonic().saturating_sub(self.last_read);
            if silent > self.keep_alive * 3 / 2 {
                return Err(MqttError::Silent);
            }
        }
    }

    /// A packet that is there already.
    pub fn next_now(&mut self) -> Result<Option<Packet>, MqttError> {
        if let Some(early) = self.early.pop_front() {
            return Ok(Some(Packet::Publish(early)));
        }
        loop {
            match self.buffered()? {
                Some(Packet::PingResp) => {}
                Some(Packet::Disconnect(code)) => {
                    return Err(MqttError::Refused(format!(
                        "it ended the connection, code {code}"
                    )));
                }
                packet => return Ok(packet),
            }
        }
    }

    /// What the caller stood still for is not the broker's silence.
    pub fn stood_still(&mut self) {
        self.last_read = self.clock.monotonic();
    }

    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    /// Subscribes, and waits until the broker has agreed to every filter.
    pub async fn subscribe(&mut self, filters: &[String], qos1: bool) -> Result<(), MqttError> {
        let id = self.id();
        self.write(&codec::subscribe(self.version, id, filters, qos1)).await?;
        let clock = Arc::clone(&self.clock);
        let answer = async {
            loop {
                match self.packet().await? {
                    Packet::SubAck(of, codes) if of == id => return Ok::<_, MqttError>(codes),
                    Packet::Publish(p) if self.early.len() < EARLY_MAX => self.early.push_back(p),
                    Packet::Publish(_) => return Err(MqttError::Silent),
                    _ => {}
                }
            }
        };
        let codes = tokio::select! {
            codes = answer => codes?,
            () = clock.sleep(ANSWER) => return Err(MqttError::Silent),
        };
        for (filter, code) in filters.iter().zip(&codes) {
            if *code >= 0x80 {
                return Err(MqttError::Refused(format!("filter `{filter}` (code {code})")));
            }
            if qos1 && *code == 0 {
                return Err(MqttError::Refused(format!("filter `{filter}` only at QoS 0")));
            }
        }
        if codes.len() < filters.len() {
            return Err(Malformed("SUBACK has too few codes").into());
        }
        Ok(())
    }

    /// Acknowledges messages, in this order.
    pub async fn ack(&mut self, ids: impl Iterator<Item = u16>) -> Result<(), MqttError> {
        let bytes: Vec<u8> = ids.flat_map(codec::puback).collect();
        if bytes.is_empty() { Ok(()) } else { self.write(&bytes).await }
    }

    /// Publishes. Its PUBACK, if there is one, comes as a packet like others.
    pub async fn publish(&mut self, message: &Message) -> Result<(), MqttError> {
        let id = if message.at_least_once { self.id() } else { 0 };
        let bytes = codec::message(self.version, id, message);
        self.write(&bytes).await
    }

    /// Says good-bye, as far as it is heard.
    pub async fn disconnect(mut self) {
        drop(self.write(&codec::disconnect()).await);
        drop(self.stream.shutdown().await);
    }
}
