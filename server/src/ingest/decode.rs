//! Bodies: gzip and zstd with caps, so that a bomb is refused before it explodes.
//!
//! Owns: the caps. Never: allocates for a length that a body merely claims.

use std::io::Read;

/// Bytes of a body on the wire.
pub const WIRE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a body once decoded.
pub const DECODED_BYTES_MAX: usize = 64 << 20;
/// Decoded bytes per wire byte, above the first [`RATIO_FREE_BYTES`].
const RATIO_MAX: usize = 100;
/// Decoded bytes that need no good ratio: repetitive small batches are honest.
const RATIO_FREE_BYTES: usize = 1 << 20;
/// log2 of the largest zstd window (8 MiB).
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// An encoding that is not one of ours.
    #[error("content-encoding `{0}` is not supported; use gzip, zstd or identity")]
    Encoding(String),
    /// Too large once decoded, or a suspicious ratio.
    #[error(
        "the body is over the limit of {DECODED_BYTES_MAX} decoded bytes or {RATIO_MAX} times its compressed size; send smaller batches"
    )]
    TooLarge,
    /// Not what the header says.
    #[error("the body is not valid {0}")]
    Corrupt(&'static str),
}

/// Decodes a body by its `content-encoding`.
pub fn decode(encoding: Option<&str>, body: bytes::Bytes) -> Result<bytes::Bytes, DecodeError> {
    match encoding.map(str::trim).unwrap_or("identity") {
        "" | "identity" => {
            if body.len() > WIRE_BYTES_MAX {
                return Err(DecodeError::TooLarge);
            }
            Ok(body)
        }
        "gzip" | "x-gzip" => {
            capped(flate2::read::MultiGzDecoder::new(body.as_ref()), body.len(), "gzip")
        }
        "zstd" => {
            let mut decoder = zstd::stream::read::Decoder::new(body.as_ref())
                .map_err(|_| DecodeError::Corrupt("zstd"))?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .map_err(|_| DecodeError::Corrupt("zstd"))?;
            capped(decoder, body.len(), "zstd")
        }
        other => Err(DecodeError::Encoding(other.chars().take(40).collect())),
    }
}

fn capped(
    mut reader: impl Read,
    wire: usize,
    what: &'static str,
) -> Result<bytes::Bytes, DecodeError> {
    let cap = DECODED_BYTES_MAX.min(wire.saturating_mul(RATIO_MAX).max(RATIO_FREE_BYTES));
    let mut out = Vec::new();
    let read = reader.by_ref().take(cap as u64 + 1).read_to_end(&mut out);
    if out.len() > cap {
        return Err(DecodeError::TooLarge);
    }
    read.map_err(|_| DecodeError::Corrupt(what))?;
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn honest_bodies_come_through_and_bombs_do_not() {
        let lines = b"cpu,host=a v=1 1\n".repeat(1000);
        for (name, body) in [
            ("gzip", gzip(&lines)),
            ("zstd", zstd::bulk::compress(&lines, 1).unwrap()),
            ("identity", lines.clone()),
        ] {
            assert_eq!(decode(Some(name), body.into()).unwrap(), lines, "{name}");
        }
        let bomb = vec![b'x'; DECODED_BYTES_MAX + 1];
        for (name, body) in
            [("gzip", gzip(&bomb)), ("zstd", zstd::bulk::compress(&bomb, 3).unwrap())]
        {
            assert_eq!(decode(Some(name), body.into()), Err(DecodeError::TooLarge), "{name}");
        }
        for name in ["gzip", "zstd"] {
            let garbage = bytes::Bytes::from_static(b"not compressed at all");
            assert_eq!(decode(Some(name), garbage), Err(DecodeError::Corrupt(name)));
        }
        let cut = gzip(&lines)[..20].to_vec();
        assert_eq!(decode(Some("gzip"), cut.into()), Err(DecodeError::Corrupt("gzip")));
        assert!(matches!(decode(Some("br"), lines.into()), Err(DecodeError::Encoding(_))));
    }
}
