//! The framing of an agent's stream: `multipart/x-mixed-replace`.
//!
//! Owns: finding whole parts in pieces cut anywhere. Never: hands out a part that is not whole;
//! holds more than one part's cap.

/// A stream that is no multipart, or a part over its cap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// The framing.
    #[error("the agent's stream is not framed as multipart: {0}")]
    Frame(&'static str),
    /// The size.
    #[error("a part of the agent's stream is longer than {0} bytes")]
    TooLong(usize),
}

/// See the module head.
#[derive(Debug)]
pub struct Parts {
    boundary: Vec<u8>,
    max: usize,
    buffer: Vec<u8>,
}

/// Bytes of a part's headers at most.
const HEAD_MAX: usize = 8 * 1024;

/// The boundary of a `Content-Type`; `None` if it is no multipart.
pub fn boundary(content_type: &str) -> Option<String> {
    let (kind, rest) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/x-mixed-replace") {
        return None;
    }
    let of = |p: &str| {
        let (name, value) = p.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let fine = name.trim().eq_ignore_ascii_case("boundary") && !value.is_empty();
        fine.then(|| value.trim_start_matches("--").to_owned())
    };
    rest.split(';').find_map(of).filter(|b| !b.is_empty())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

impl Parts {
    /// Parts between these boundaries, of at most `max` bytes.
    pub fn new(boundary: &str, max: usize) -> Self {
        Self { boundary: format!("--{boundary}").into_bytes(), max, buffer: Vec::new() }
    }

    /// Takes a piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole part, if there is one.
    pub fn next_part(&mut self) -> Result<Option<Vec<u8>>, PartError> {
        let Some((at, len)) = self.frame()? else { return Ok(None) };
        let part = self.buffer.get(at..at + len).unwrap_or_default().to_vec();
        self.buffer.drain(..at + len);
        Ok(Some(part))
    }

    /// Where the body of the next whole part lies, and its length.
    fn frame(&self) -> Result<Option<(usize, usize)>, PartError> {
        let Some(start) = find(&self.buffer, &self.boundary) else {
            // What is before the first boundary is nothing but line ends.
            let most = self.boundary.len() + HEAD_MAX;
            return if self.buffer.len() > most {
                Err(PartError::Frame("no boundary"))
            } else {
                Ok(None)
            };
        };
        let head_at = start + self.boundary.len();
        let rest = self.buffer.get(head_at..).unwrap_or_default();
        // Headers end at the first empty line; some agents end lines with a line feed alone.
        let crlf = find(rest, b"\r\n\r\n").map(|at| (at, 4));
        let lf = find(rest, b"\n\n").map(|at| (at, 2));
        let end = match (crlf, lf) {
            (Some(a), Some(b)) => Some(if a.0 < b.0 { a } else { b }),
            (a, b) => a.or(b),
        };
        let Some((head_len, gap)) = end else {
            return if rest.len() > HEAD_MAX {
                Err(PartError::Frame("a part's headers do not end"))
            } else {
                Ok(None)
            };
        };
        let head = String::from_utf8_lossy(rest.get(..head_len).unwrap_or_default()).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())
        });
        let body_at = head_at + head_len + gap;
        match length {
            Some(None) => Err(PartError::Frame("Content-length is no number")),
            Some(Some(length)) if length > self.max => Err(PartError::TooLong(self.max)),
            Some(Some(length)) => {
                Ok((self.buffer.len() >= body_at + length).then_some((body_at, length)))
            }
            None => {
                let body = self.buffer.get(body_at..).unwrap_or_default();
                match find(body, &self.boundary) {
                    Some(length) => Ok(Some((body_at, length))),
                    None if body.len() > self.max => Err(PartError::TooLong(self.max)),
                    None => Ok(None),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(parts: &[&str], length: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for part in parts {
            out.extend_from_slice(b"--B\r\nContent-type: text/xml\r\n");
            if length {
                out.extend_from_slice(format!("Content-length: {}\r\n", part.len()).as_bytes());
            }
            out.extend_from_slice(format!("\r\n{part}\r\n").as_bytes());
        }
        out.extend_from_slice(b"--B");
        out
    }

    proptest! {
        #[test]
        fn parts_come_whole_wherever_the_stream_is_cut(
            cuts in proptest::collection::vec(1usize..40, 1..60),
            length in any::<bool>(),
        ) {
            let wanted = ["<a>1</a>", "<b>--x\r\n\r\n</b>", "<c/>"];
            let bytes = stream(&wanted, length);
            let mut parts = Parts::new("B", 1000);
            let (mut at, mut found) = (0, Vec::new());
            for cut in cuts.iter().cycle().take(bytes.len()) {
                let end = (at + cut).min(bytes.len());
                parts.push(&bytes[at..end]);
                at = end;
                while let Some(part) = parts.next_part().unwrap() {
                    found.push(String::from_utf8(part).unwrap().trim_end().to_owned());
                }
            }
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn any_bytes_are_parts_a_fault_or_not_enough(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut parts = Parts::new("B", 50);
            parts.push(&bytes);
            while let Ok(Some(part)) = parts.next_part() {
                prop_assert!(part.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn what_is_too_long_or_no_multipart_is_said() {
        let check = |bytes: &[u8], expected: &str| {
            let mut parts = Parts::new("B", 10);
            parts.push(bytes);
            let said = parts.next_part().unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        };
        check(b"--B\r\nContent-length: 11\r\n\r\n", "longer than 10");
        check(b"--B\r\nContent-length: x\r\n\r\n", "no number");
        check(b"--B\r\n\r\naaaaaaaaaaaaaaaaaaa", "longer than 10");
        check(&[b'x'; 20_000], "no boundary");
        check(&[&b"--B"[..], &[b'x'; 20_000]].concat(), "do not end");
        assert_eq!(boundary("multipart/x-mixed-replace;boundary=abc").as_deref(), Some("abc"));
        assert_eq!(boundary("multipart/x-mixed-replace; boundary=\"a\"").as_deref(), Some("a"));
        assert_eq!(boundary("text/xml;charset=utf-8"), None);
    }
}
