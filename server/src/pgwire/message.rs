//! PostgreSQL's frontend/backend protocol 3.0, as bytes.
//!
//! Owns: reading of messages within bounds, and writing. A message is a kind (one byte), a length
//! (four, itself included) and that many bytes; the first one of a connection has no kind.
//! Never: takes room for bytes that a client merely announces; believes a count inside a message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a connection's first message, as in PostgreSQL.
pub(super) const STARTUP_BYTES_MAX: usize = 10_000;
/// Bytes of a password.
pub(super) const PASSWORD_BYTES_MAX: usize = 1024;
/// Bytes of any other message.
pub(super) const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Room that is taken before bytes have come.
const PIECE: usize = 16 * 1024;

/// First messages that are no start-up, and the start-up's own major version.
pub(super) const CANCEL: u32 = 80_877_102;
pub(super) const SSL: u32 = 80_877_103;
pub(super) const GSS: u32 = 80_877_104;
pub(super) const MAJOR: u32 = 3;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The other side is gone.
    #[error("the connection ended")]
    Gone(#[from] std::io::Error),
    /// These bytes are not the protocol.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frontend {
    Query(String),
    Parse {
        name: String,
        sql: String,
        types: Vec<u32>,
    },
    Bind(Bind),
    Describe {
        portal: bool,
        name: String,
    },
    Execute {
        portal: String,
        rows_max: u32,
    },
    Close {
        portal: bool,
        name: String,
    },
    Flush,
    Sync,
    Terminate,
    /// Known and not offered: copies and function calls.
    Other,
}

/// Values for a statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bind {
    pub(super) portal: String,
    pub(super) statement: String,
    /// 0 text, 1 binary: none, one for all, or one each.
    pub(super) formats: Vec<u16>,
    pub(super) values: Vec<Option<Bytes>>,
    /// Of the results, likewise.
    pub(super) results: Vec<u16>,
}

/// Reads `count` bytes, with room for what has come only.
async fn exactly<R: AsyncRead + Unpin>(from: &mut R, count: usize) -> Result<Bytes, Broken> {
    let mut out = BytesMut::with_capacity(count.min(PIECE));
    while out.len() < count {
        let piece = (count - out.len()).min(PIECE);
        if from.take(piece as u64).read_buf(&mut out).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok(out.freeze())
}

async fn body<R: AsyncRead + Unpin>(from: &mut R, max: usize) -> Result<Bytes, Broken> {
    let length = from.read_u32().await? as usize;
    let Some(length) = length.checked_sub(4).filter(|l| *l <= max) else {
        return Err(Broken::Protocol("a message is shorter than its head or too long"));
    };
    exactly(from, length).await
}

/// A connection's first message: its code, and what follows that.
pub(super) async fn first<R: AsyncRead + Unpin>(from: &mut R) -> Result<(u32, Bytes), Broken> {
    let mut body = body(from, STARTUP_BYTES_MAX).await?;
    if body.len() < 4 {
        return Err(Broken::Protocol("the first message has no code"));
    }
    Ok((body.get_u32(), body))
}

/// The names and values of a start-up message.
pub(super) fn startup(mut body: Bytes) -> Result<Vec<(String, String)>, Broken> {
    let mut out = Vec::new();
    loop {
        let name = text(&mut body)?;
        if name.is_empty() {
            return Ok(out);
        }
        out.push((name, text(&mut body)?));
    }
}

/// The password message.
pub(super) async fn password<R: AsyncRead + Unpin>(from: &mut R) -> Result<String, Broken> {
    if from.read_u8().await? != b'p' {
        return Err(Broken::Protocol("a password was expected"));
    }
    text(&mut body(from, PASSWORD_BYTES_MAX).await?)
}

/// The next message.
pub(super) async fn next<R: AsyncRead + Unpin>(from: &mut R) -> Result<Frontend, Broken> {
    let kind = from.read_u8().await?;
    let body = body(from, MESSAGE_BYTES_MAX).await?;
    decode(kind, body)
}

fn text(body: &mut Bytes) -> Result<String, Broken> {
    let end = body.iter().position(|b| *b == 0);
    let end = end.ok_or(Broken::Protocol("a text has no end"))?;
    let bytes = body.split_to(end);
    body.advance(1);
    String::from_utf8(bytes.to_vec()).map_err(|_| Broken::Protocol("a text is not UTF-8"))
}

fn short() -> Broken {
    Broken::Protocol("a message ends too early")
}

fn u16_of(body: &mut Bytes) -> Result<u16, Broken> {
    body.try_get_u16().map_err(|_| short())
}

fn u32_of(body: &mut Bytes) -> Result<u32, Broken> {
    body.try_get_u32().map_err(|_| short())
}

fn numbers<T>(
    body: &mut Bytes,
    one: fn(&mut Bytes) -> Result<T, Broken>,
) -> Result<Vec<T>, Broken> {
    let count = u16_of(body)?;
    (0..count).map(|_| one(body)).collect()
}

fn value(body: &mut Bytes) -> Result<Option<Bytes>, Broken> {
    let length = u32_of(body)?;
    if length == u32::MAX {
        return Ok(None);
    }
    let length = length as usize;
    if length > body.len() {
        return Err(short());
    }
    Ok(Some(body.split_to(length)))
}

fn decode(kind: u8, mut body: Bytes) -> Result<Frontend, Broken> {
    let body = &mut body;
    let portal = |body: &mut Bytes| match body.try_get_u8() {
        Ok(b'P') => Ok(true),
        Ok(b'S') => Ok(false),
        _ => Err(Broken::Protocol("neither a statement nor a portal")),
    };
    let out = match kind {
        b'Q' => Frontend::Query(text(body)?),
        b'P' => {
            let (name, sql) = (text(body)?, text(body)?);
            Frontend::Parse { name, sql, types: numbers(body, u32_of)? }
        }
        b'B' => Frontend::Bind(Bind {
            portal: text(body)?,
            statement: text(body)?,
            formats: numbers(body, u16_of)?,
            values: numbers(body, value)?,
            results: numbers(body, u16_of)?,
        }),
        b'D' => Frontend::Describe { portal: portal(body)?, name: text(body)? },
        b'E' => Frontend::Execute { portal: text(body)?, rows_max: u32_of(body)? },
        b'C' => Frontend::Close { portal: portal(body)?, name: text(body)? },
        b'H' => Frontend::Flush,
        b'S' => Frontend::Sync,
        b'X' => Frontend::Terminate,
        b'F' | b'd' | b'c' | b'f' | b'p' => {
            body.clear();
            Frontend::Other
        }
        _ => return Err(Broken::Protocol("a message of an unknown kind")),
    };
    if body.is_empty() { Ok(out) } else { Err(Broken::Protocol("a message is too long")) }
}

/// What goes to the client, until it is sent.
#[derive(Debug, Default)]
pub(super) struct Out {
    pub(super) buffer: BytesMut,
}

impl Out {
    /// A message of this kind, whose body `fill` writes.
    pub(super) fn message(&mut self, kind: u8, fill: impl FnOnce(&mut BytesMut)) {
        self.buffer.put_u8(kind);
        let at = self.buffer.len();
        self.buffer.put_u32(0);
        fill(&mut self.buffer);
        let length = (self.buffer.len() - at) as u32;
        if let Some(place) = self.buffer.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// A message without a body.
    pub(super) fn bare(&mut self, kind: u8) {
        self.message(kind, |_| {});
    }

    /// A setting that is told.
    pub(super) fn parameter(&mut self, name: &str, value: &str) {
        self.message(b'S', |out| {
            put_text(out, name);
            put_text(out, value);
        });
    }

    /// The end of a statement.
    pub(super) fn complete(&mut self, tag: &str) {
        self.message(b'C', |out| put_text(out, tag));
    }
}

/// A text with its end; a zero inside cannot be sent.
pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().filter(|b| *b != 0));
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        out.extend(body);
        out
    }

    fn read(bytes: &[u8]) -> Result<Frontend, Broken> {
        futures::executor::block_on(next(&mut &bytes[..]))
    }

    #[test]
    fn every_kind_of_message_is_read() {
        for (kind, body, expected) in [
            (b'Q', &b"SELECT 1\0"[..], Frontend::Query("SELECT 1".to_owned())),
            (
                b'P',
                b"a\0SELECT $1\0\0\x01\0\0\0\x14",
                Frontend::Parse { name: "a".into(), sql: "SELECT $1".into(), types: vec![20] },
            ),
            (
                b'B',
                b"\0a\0\0\x01\0\x01\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\0",
                Frontend::Bind(Bind {
                    portal: String::new(),
                    statement: "a".into(),
                    formats: vec![1],
                    values: vec![Some(Bytes::from_static(b"x")), None],
                    results: Vec::new(),
                }),
            ),
            (b'D', b"Sa\0", Frontend::Describe { portal: false, name: "a".into() }),
            (b'E', b"\0\0\0\0\x05", Frontend::Execute { portal: String::new(), rows_max: 5 }),
            (b'C', b"Pp\0", Frontend::Close { portal: true, name: "p".into() }),
            (b'S', b"", Frontend::Sync),
            (b'X', b"", Frontend::Terminate),
            (b'd', b"anything", Frontend::Other),
        ] {
            assert_eq!(read(&message(kind, body)).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
        for bytes in [
            &b"Q\0\0\0\x03"[..],
            b"Q\x7f\xff\xff\xff",
            b"Q\xff\xff\xff\xff",
            b"Q\0\0\0\x05x",
            b"Q\0\0\0\x06\xff\0",
            b"Q\0\0\0\x07a\0b",
            b"B\0\0\0\x08\0\0\xff\xff",
            b"D\0\0\0\x06Z\0",
            b"\0\0\0\0\x04",
            b"B\0\0\0\x0e\0\0\0\0\0\x01\x7f\xff\xff\xff",
        ] {
            assert!(matches!(read(bytes), Err(Broken::Protocol(_))), "{bytes:?}");
        }
        assert!(matches!(read(b"Q\0\0\0\x09abc"), Err(Broken::Gone(_))));
        assert!(matches!(read(b""), Err(Broken::Gone(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(read(&bytes));
            drop(futures::executor::block_on(first(&mut &bytes[..])));
            drop(startup(Bytes::from(bytes.clone())));
            for kind in *b"QPBDECHSX" {
                drop(decode(kind, Bytes::from(bytes.clone())));
            }
        }
    }
}
