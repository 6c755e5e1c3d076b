//! MQTT 3.1.1 and 5 on the wire: the packets that a subscriber needs.
//!
//! Owns: encoding and decoding. Never: trusts a length; holds more of a message than its cap: of
//! a longer one only topic and number are read, so that it can be refused and acknowledged.

/// The protocol's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1.
    V4,
    /// 5.
    V5,
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where.
    pub topic: String,
    /// What.
    pub payload: Vec<u8>,
    /// At least once instead of at most once.
    pub at_least_once: bool,
    /// Kept by the broker for later subscribers.
    pub retain: bool,
}

/// What CONNECT says.
#[derive(Debug, Clone)]
pub struct Connect {
    /// The version.
    pub version: Version,
    /// The session's name.
    pub client_id: String,
    /// Begin a new session.
    pub clean: bool,
    /// Seconds.
    pub keep_alive_s: u16,
    /// How long the broker keeps the session, seconds; only in version 5.
    pub session_expiry_s: u32,
    /// Unacknowledged messages at most; only in version 5.
    pub receive_max: u16,
    /// Bytes of a packet at most; only in version 5.
    pub packet_max: u32,
    /// Who.
    pub user: Option<String>,
    /// And its proof.
    pub password: Option<String>,
    /// Published by the broker when we vanish.
    pub will: Option<Message>,
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publish {
    /// Where.
    pub topic: String,
    /// What; empty if it was too long.
    pub payload: Vec<u8>,
    /// Its number, if it must be acknowledged.
    pub id: Option<u16>,
    /// Sent before.
    pub dup: bool,
    /// Kept by the broker from before we subscribed.
    pub retain: bool,
    /// Bytes, if it was longer than allowed.
    pub too_long: Option<usize>,
}

/// What comes from a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The answer to CONNECT.
    ConnAck {
        /// It kept our session.
        session_present: bool,
        /// 0: fine.
        code: u8,
        /// The broker's own keep-alive, seconds.
        keep_alive_s: Option<u16>,
    },
    /// A message.
    Publish(Publish),
    /// Our message has arrived.
    PubAck(u16),
    /// The answer to SUBSCRIBE: one code for each filter; 128 and more: refused.
    SubAck(u16, Vec<u8>),
    /// The answer to PINGREQ.
    PingResp,
    /// The broker ends the connection; version 5 says why.
    Disconnect(u8),
}

/// What the front of the bytes is.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Not whole yet.
    More,
    /// A packet; so many bytes of the buffer are used, and so many that follow are to be skipped.
    Packet(Packet, usize, usize),
}

/// The broker does not speak MQTT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker sent what is no MQTT: {0}")]
pub struct Malformed(pub &'static str);

/// Takes bytes from the front.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) =
            self.0.split_at_checked(len).ok_or(Malformed("a packet is too short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from(self.u8()?) << 8 | u16::from(self.u8()?))
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = usize::from(self.u16()?);
        std::str::from_utf8(self.take(len)?).map_err(|_| Malformed("a text is no UTF-8"))
    }

    fn varint(&mut self) -> Result<usize, Malformed> {
        match varint(self.0) {
            Ok(Some((value, used))) => self.take(used).map(|_| value),
            _ => Err(Malformed("a length does not end")),
        }
    }

    /// Walks properties; tells `see` about those of two bytes.
    fn properties(&mut self, mut see: impl FnMut(u8, u16)) -> Result<(), Malformed> {
        let len = self.varint()?;
        let mut inner = Rest(self.take(len)?);
        while !inner.0.is_empty() {
            let id = inner.u8()?;
            match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => drop(inner.u8()?),
                0x13 | 0x21..=0x23 => see(id, inner.u16()?),
                0x02 | 0x11 | 0x18 | 0x27 => drop(inner.take(4)?),
                0x0b => drop(inner.varint()?),
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => {
                    let len = usize::from(inner.u16()?);
                    inner.take(len)?;
                }
                0x26 => {
                    for _ in 0..2 {
                        let len = usize::from(inner.u16()?);
                        inner.take(len)?;
                    }
                }
                _ => return Err(Malformed("a property is not known")),
            }
        }
        Ok(())
    }
}

/// A length at the front: value and bytes; `None` if more are needed.
fn varint(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut value = 0usize;
    for (n, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Ok(Some((value, n + 1)));
        }
    }
    if bytes.len() >= 4 { Err(Malformed("a length has more than four bytes")) } else { Ok(None) }
}

fn publish(
    flags: u8,
    version: Version,
    body: &[u8],
    too_long: Option<usize>,
) -> Result<(Publish, usize), Malformed> {
    let mut rest = Rest(body);
    let topic = rest.text()?.to_owned();
    if topic.is_empty() {
        return Err(Malformed("a message has no topic; we allow no aliases"));
    }
    let id = match flags >> 1 & 3 {
        0 => None,
        1 => Some(rest.u16()?),
        _ => return Err(Malformed("a message came with QoS 2, which was not asked for")),
    };
    if id == Some(0) {
        return Err(Malformed("a message has the number 0"));
    }
    let (dup, retain) = (flags & 8 != 0, flags & 1 != 0);
    let mut out = Publish { topic, payload: Vec::new(), id, dup, retain, too_long };
    if too_long.is_none() {
        if version == Version::V5 {
            rest.properties(|_, _| {})?;
        }
        out.payload = rest.0.to_vec();
        rest.0 = &[];
    }
    Ok((out, body.len() - rest.0.len()))
}

fn body(kind: u8, flags: u8, version: Version, bytes: &[u8]) -> Result<Packet, Malformed> {
    let mut rest = Rest(bytes);
    let v5 = version == Version::V5;
    Ok(match kind {
        2 => {
            let session_present = rest.u8()? & 1 == 1;
            let code = rest.u8()?;
            let mut keep_alive_s = None;
            // An old broker refuses version 5 with the short answer of version 3.1.1.
            if v5 && !rest.0.is_empty() {
                rest.properties(|id, value| {
                    if id == 0x13 {
                        keep_alive_s = Some(value);
                    }
                })?;
            }
            Packet::ConnAck { session_present, code, keep_alive_s }
        }
        3 => Packet::Publish(publish(flags, version, bytes, None)?.0),
        4 => Packet::PubAck(rest.u16()?),
        9 => {
            let id = rest.u16()?;
            if v5 {
                rest.properties(|_, _| {})?;
            }
            Packet::SubAck(id, rest.0.to_vec())
        }
        13 => Packet::PingResp,
        14 if v5 => Packet::Disconnect(rest.u8().unwrap_or(0)),
        _ => return Err(Malformed("a packet of a kind that no broker sends")),
    })
}

/// Reads the front of `bytes`. A message of more than `max` bytes is read without its payload.
pub fn decode(bytes: &[u8], version: Version, max: usize) -> Result<Decoded, Malformed> {
    let Some((first, rest)) = bytes.split_first() else { return Ok(Decoded::More) };
    let Some((len, used)) = varint(rest)? else { return Ok(Decoded::More) };
    let (kind, flags) = (first >> 4, first & 15);
    let here = rest.get(used..).unwrap_or_default();
    if len > max {
        if kind != 3 {
            return Err(Malformed("a packet is too long"));
        }
        // A topic has at most 65,535 bytes.
        let wanted = match here {
            [a, b, ..] => (usize::from(*a) << 8 | usize::from(*b)) + 4,
            _ => return Ok(Decoded::More),
        };
        if here.len() < wanted.min(len) {
            return Ok(Decoded::More);
        }
        let front = here.get(..wanted.min(len)).unwrap_or_default();
        let (publish, read) = publish(flags, version, front, Some(len))?;
        return Ok(Decoded::Packet(Packet::Publish(publish), 1 + used + read, len - read));
    }
    match here.get(..len) {
        Some(whole) => Ok(Decoded::Packet(body(kind, flags, version, whole)?, 1 + used + len, 0)),
        None => Ok(Decoded::More),
    }
}

fn put_len(len: usize, out: &mut Vec<u8>) {
    let mut len = len;
    loop {
        let byte = u8::try_from(len & 0x7f).unwrap_or(0);
        len >>= 7;
        out.push(if len > 0 { byte | 0x80 } else { byte });
        if len == 0 {
            return;
        }
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // Names and passwords are checked to be short; what is longer is cut, and so refused.
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes.get(..usize::from(len)).unwrap_or_default());
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    put_len(body.len(), &mut out);
    out.extend_from_slice(body);
    out
}

/// CONNECT.
pub fn connect(c: &Connect) -> Vec<u8> {
    let v5 = c.version == Version::V5;
    let mut body = Vec::new();
    put_bytes(b"MQTT", &mut body);
    body.push(if v5 { 5 } else { 4 });
    let mut flags = u8::from(c.clean) << 1;
    if let Some(will) = &c.will {
        flags |= 0x04 | u8::from(will.at_least_once) << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(c.user.is_some()) << 7;
    flags |= u8::from(c.user.is_some() && c.password.is_some()) << 6;
    body.push(flags);
    body.extend_from_slice(&c.keep_alive_s.to_be_bytes());
    if v5 {
        let mut properties = vec![0x11];
        properties.extend_from_slice(&c.session_expiry_s.to_be_bytes());
        properties.push(0x21);
        properties.extend_from_slice(&c.receive_max.to_be_bytes());
        properties.push(0x27);
        properties.extend_from_slice(&c.packet_max.to_be_bytes());
        put_len(properties.len(), &mut body);
        body.extend_from_slice(&properties);
    }
    put_bytes(c.client_id.as_bytes(), &mut body);
    if let Some(will) = &c.will {
        if v5 {
            body.push(0);
        }
        put_bytes(will.topic.as_bytes(), &mut body);
        put_bytes(&will.payload, &mut body);
    }
    if let Some(user) = &c.user {
        put_bytes(user.as_bytes(), &mut body);
        if let Some(password) = &c.password {
            put_bytes(password.as_bytes(), &mut body);
        }
    }
    packet(0x10, &body)
}

/// SUBSCRIBE to filters at QoS 1 or 0.
pub fn subscribe(version: Version, id: u16, filters: &[String], at_least_once: bool) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    for filter in filters {
        put_bytes(filter.as_bytes(), &mut body);
        // Version 5: what was retained comes only if the subscription is new.
        let retained = if version == Version::V5 { 0x10 } else { 0 };
        body.push(u8::from(at_least_once) | retained);
    }
    packet(0x82, &body)
}

/// PUBLISH.
pub fn message(version: Version, id: u16, message: &Message) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(message.topic.as_bytes(), &mut body);
    if message.at_least_once {
        body.extend_from_slice(&id.to_be_bytes());
    }
    if version == Version::V5 {
        body.push(0);
    }
    body.extend_from_slice(&message.payload);
    let flags = u8::from(message.at_least_once) << 1 | u8::from(message.retain);
    packet(0x30 | flags, &body)
}

/// PUBACK.
pub fn puback(id: u16) -> Vec<u8> {
    packet(0x40, &id.to_be_bytes())
}

/// PINGREQ.
pub fn ping() -> Vec<u8> {
    packet(0xc0, &[])
}

/// DISCONNECT: the broker forgets our will.
pub fn disconnect() -> Vec<u8> {
    packet(0xe0, &[])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn published(topic: &str, id: u16, payload: &[u8], version: Version) -> Vec<u8> {
        let at_least_once = id > 0;
        let m =
            Message { topic: topic.into(), payload: payload.into(), at_least_once, retain: false };
        message(version, id, &m)
    }

    #[test]
    fn a_message_is_read_when_it_is_whole() {
        for version in [Version::V4, Version::V5] {
            let bytes = published("a/b", 7, b"12.5", version);
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut], version, 1000).unwrap(), Decoded::More, "{cut}");
            }
            let Decoded::Packet(Packet::Publish(p), used, 0) =
                decode(&bytes, version, 1000).unwrap()
            else {
                panic!("a message")
            };
            assert_eq!(
                (p.topic.as_str(), p.payload.as_slice(), p.id),
                ("a/b", &b"12.5"[..], Some(7))
            );
            assert_eq!(used, bytes.len());
        }
    }

    #[test]
    fn of_a_message_that_is_too_long_only_its_name_is_read() {
        let bytes = published("a/b", 7, &[b'x'; 5000], Version::V4);
        let decoded = decode(&bytes[..20], Version::V4, 100).unwrap();
        let Decoded::Packet(Packet::Publish(p), used, skip) = decoded else { panic!("a message") };
        assert_eq!((p.topic.as_str(), p.id, p.payload.len()), ("a/b", Some(7), 0));
        assert_eq!(p.too_long, Some(5007));
        assert_eq!(used + skip, bytes.len());
    }

    #[test]
    fn answers_of_both_versions_are_read() {
        let check = |bytes: &[u8], version, expected| {
            assert_eq!(
                decode(bytes, version, 100).unwrap(),
                Decoded::Packet(expected, bytes.len(), 0)
            );
        };
        let fine = |session_present, keep_alive_s| Packet::ConnAck {
            session_present,
            code: 0,
            keep_alive_s,
        };
        check(&[0x20, 2, 1, 0], Version::V4, fine(true, None));
        check(&[0x20, 6, 0, 0, 3, 0x13, 0, 9], Version::V5, fine(false, Some(9)));
        check(&[0x90, 3, 0, 1, 0x80], Version::V4, Packet::SubAck(1, vec![0x80]));
        check(&[0x90, 4, 0, 1, 0, 1], Version::V5, Packet::SubAck(1, vec![1]));
        check(&[0xd0, 0], Version::V4, Packet::PingResp);
        check(&[0xe0, 1, 0x8e], Version::V5, Packet::Disconnect(0x8e));
        check(&[0x40, 2, 0, 5], Version::V5, Packet::PubAck(5));
        for bad in [
            &[0x20, 1, 0][..],
            &[0x30, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x30, 2, 0, 0],
            &[0x34, 5, 0, 1, b'a', 0, 1],
            &[0x32, 5, 0, 1, b'a', 0, 0],
            &[0x30, 3, 0, 1, 0xff],
            &[0x10, 0],
        ] {
            assert!(decode(bad, Version::V4, 100).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_packet_a_fault_or_not_enough(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            v5 in any::<bool>(),
            max in 0usize..200,
        ) {
            let version = if v5 { Version::V5 } else { Version::V4 };
            if let Ok(Decoded::Packet(packet, used, skip)) = decode(&bytes, version, max) {
                prop_assert!(used > 0 && used <= bytes.len());
                if let Packet::Publish(p) = packet {
                    prop_assert!(p.payload.len() <= max);
                    prop_assert!(skip == 0 || p.too_long.is_some());
                }
            }
        }
    }
}
