//! Identifiers as types, so that one cannot stand for another.
//!
//! Owns: their text and byte forms. Random ids are 128 bits, shown as 32 hex digits.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An identifier that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a valid {what}: {expected}")]
pub struct InvalidId {
    /// What was being parsed.
    pub what: &'static str,
    /// The offending text, cut to 64 characters.
    pub given: String,
    /// What would have been valid.
    pub expected: &'static str,
}

fn invalid(what: &'static str, given: &str, expected: &'static str) -> InvalidId {
    InvalidId { what, given: given.chars().take(64).collect(), expected }
}

macro_rules! random_id {
    ($(#[doc = $doc:literal])+ $name:ident, $what:literal) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(self.0))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                let mut out = [0u8; 16];
                hex::decode_to_slice(s, &mut out)
                    .map_err(|_| invalid($what, s, "32 hexadecimal digits"))?;
                Ok(Self(out))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = String::deserialize(d)?;
                s.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

random_id!(
    /// A customer organisation.
    TenantId, "tenant id");
random_id!(
    /// One edge forwarder, kept across hardware replacements.
    DeviceId, "device id");

/// The name of a stream of one device, for instance `host` or `press-7/live`: 1 to 128 bytes of
/// `[A-Za-z0-9._/-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct StreamId(String);

impl StreamId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StreamId {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-');
        if s.is_empty() || s.len() > 128 || !s.bytes().all(fine) {
            return Err(invalid("stream id", s, "1 to 128 characters of A-Z a-z 0-9 . _ / -"));
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StreamId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! number_id {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// The life of one forwarder queue: random, new at enrolment, at queue loss and at a fork.
    Epoch);
number_id!(
    /// A row's number in its stream and epoch, counted from 1 without holes.
    SeqNo);
number_id!(
    /// Position of a record in a shard's log, counted from 1; never reused, never backward.
    Lsn);
number_id!(
    /// Keyed hash of a series' canonical tags inside one tenant and table.
    SeriesId);
