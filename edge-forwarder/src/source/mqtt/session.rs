//! What a source remembers of its session with a broker: its resume token.
//!
//! Owns: which messages are stored and perhaps not acknowledged, so that one that the broker sends
//! again makes no second row. Never: forgets a message whose acknowledgement may be lost: a broker
//! has at most [`KEPT`] on their way (version 5: it is told so; 3.1.1: brokers send 10 to 32).

use std::hash::BuildHasher;

use millrace_platform::map::Seeded;

/// Messages that are remembered, and so those that a broker may have on their way.
pub const KEPT: usize = 128;
const VERSION: u8 = 1;

/// See the module head.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    /// Of the filters that the session has subscribed to; 0: there is no session.
    pub filters: u64,
    /// The newest message that is stored, ns since the Unix epoch; 0: none.
    pub last_ns: i64,
    /// Numbers and digests of the newest messages that are stored, the newest last.
    stored: Vec<(u16, u64)>,
}

/// A digest of texts, the same at every start.
pub fn digest(parts: &[&[u8]]) -> u64 {
    let hasher = Seeded::default();
    parts.iter().fold(0, |all, part| hasher.hash_one((all, *part)))
}

impl Session {
    /// Whether this message is stored already. One that is not a repetition uses its number anew.
    pub fn has(&mut self, id: u16, digest: u64, dup: bool) -> bool {
        if dup && self.stored.contains(&(id, digest)) {
            return true;
        }
        false
    }

    /// A message is stored.
    pub fn add(&mut self, id: u16, digest: u64, now_ns: i64) {
        self.stored.retain(|(of, _)| *of != id);
        self.stored.push((id, digest));
        let over = self.stored.len().saturating_sub(KEPT);
        self.stored.drain(..over);
        self.last_ns = now_ns;
    }

    /// The broker begins anew: its numbers mean other messages.
    pub fn begin(&mut self, filters: u64) {
        self.stored.clear();
        self.filters = filters;
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.filters.to_le_bytes());
        out.extend_from_slice(&self.last_ns.to_le_bytes());
        for (id, digest) in &self.stored {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&digest.to_le_bytes());
        }
        out
    }

    /// From bytes; a new one if they are not ours.
    pub fn decode(bytes: Option<&[u8]>) -> Self {
        Self::read(bytes.unwrap_or_default()).unwrap_or_default()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (&[version], rest) = bytes.split_first_chunk()?;
        let (filters, rest) = rest.split_first_chunk()?;
        let (last_ns, rest) = rest.split_first_chunk()?;
        let pairs = rest.chunks_exact(10);
        if version != VERSION || !pairs.remainder().is_empty() {
            return None;
        }
        let stored = pairs.map(|pair| {
            let (id, digest) = pair.split_first_chunk()?;
            Some((u16::from_le_bytes(*id), u64::from_le_bytes(digest.try_into().ok()?)))
        });
        Some(Self {
            filters: u64::from_le_bytes(*filters),
            last_ns: i64::from_le_bytes(*last_ns),
            stored: stored.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d2_a_repeated_message_is_known_and_a_number_that_is_used_again_is_not() {
        let mut session = Session::default();
        let (a, b) = (digest(&[b"t", b"1"]), digest(&[b"t", b"2"]));
        assert_ne!(a, b);
        session.add(1, a, 9);
        assert!(session.has(1, a, true));
        assert!(!session.has(1, a, false), "the same payload under a number used again is new");
        assert!(!session.has(1, b, true) && !session.has(2, a, true));
        session.add(1, b, 10);
        assert!(!session.has(1, a, true) && session.has(1, b, true));
        let mut again = Session::decode(Some(&session.encode()));
        assert_eq!(again, session);
        again.begin(5);
        assert!(!again.has(1, b, true));
        for id in 0..1000 {
            again.add(id, a, 1);
        }
        assert!(again.has(999, a, true) && !again.has(800, a, true));
        assert!(again.encode().len() < 2000);
    }

    #[test]
    fn a_position_that_is_not_ours_is_no_session() {
        let whole = Session { filters: 3, last_ns: 4, stored: vec![(1, 2)] }.encode();
        for cut in 0..whole.len() {
            if cut != 17 {
                assert_eq!(Session::decode(Some(&whole[..cut])), Session::default(), "{cut}");
            }
        }
        assert_eq!(Session::decode(None), Session::default());
    }
}
