//! The resume token of an agent: which run of it, and the next number to ask for.
//!
//! Owns: its bytes, and what a document says about numbers that will not come. Never: moves back
//! within a run of the agent.

use crate::gap::{Cause, Gap};

const VERSION: u8 = 1;

/// See the module head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The run of the agent.
    pub instance: u64,
    /// The next number.
    pub next: u64,
    /// When the newest observation was stored, ns since the Unix epoch by our clock.
    pub last_ns: i64,
}

impl Token {
    /// As bytes.
    pub fn encode(self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.instance.to_le_bytes());
        out.extend_from_slice(&self.next.to_le_bytes());
        out.extend_from_slice(&self.last_ns.to_le_bytes());
        out
    }

    /// From bytes; `None` if they are not ours.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[version], rest) = bytes.split_first_chunk()?;
        let (instance, rest) = rest.split_first_chunk()?;
        let (next, rest) = rest.split_first_chunk()?;
        let last_ns = i64::from_le_bytes(rest.try_into().ok()?);
        let (instance, next) = (u64::from_le_bytes(*instance), u64::from_le_bytes(*next));
        (version == VERSION).then_some(Self { instance, next, last_ns })
    }

    /// The gap of numbers `self.next` to `last`, which will not come.
    pub fn lost(self, source: &str, last: u64, now_ns: i64, detail: &str) -> Gap {
        let rows = (last + 1).saturating_sub(self.next);
        let gap = Gap::new(source, Cause::SourceOverrun, now_ns, rows, detail);
        self.since(gap).numbers(self.instance, self.next, last)
    }

    /// The gap of an agent that began anew: how many numbers it had given meanwhile nobody knows.
    pub fn restarted(self, source: &str, instance: u64, now_ns: i64) -> Gap {
        let detail = format!(
            "the agent began anew as instance {instance}; what instance {} had from number {} on is gone",
            self.instance, self.next
        );
        self.since(Gap::new(source, Cause::SourceRestart, now_ns, 0, &detail))
    }

    fn since(self, mut gap: Gap) -> Gap {
        gap.from_ns = self.last_ns.min(gap.to_ns);
        gap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_bytes_and_others_are_none() {
        let token = Token { instance: 7, next: 9, last_ns: -3 };
        assert_eq!(Token::decode(&token.encode()), Some(token));
        assert_eq!(Token::decode(&token.encode()[1..]), None);
        assert_eq!(Token::decode(&[]), None);
    }

    #[test]
    fn e8_a_lost_span_is_counted_exactly() {
        let token = Token { instance: 7, next: 10, last_ns: 5 };
        let gap = token.lost("s", 19, 8, "");
        assert_eq!((gap.rows, gap.first, gap.last, gap.epoch), (10, 10, 19, 7));
        assert_eq!((gap.from_ns, gap.to_ns), (5, 8));
    }
}
