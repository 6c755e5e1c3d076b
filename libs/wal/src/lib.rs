//! A sealed, segmented, append-only log: bytes in, bytes out. The server's log and the
//! forwarder's queue alike.
//!
//! Owns: the segment and frame formats, group commit, recovery, trim.
//! Never: interprets a payload; knows a tenant or a row; retries a failed sync; appends to a
//! segment that an earlier start wrote.
//! Invariants: D1 a [`Synced`] exists only after the sync that covers it; T6 a (key, nonce) pair
//! is used once; a synced page is never written again, except to destroy it.

mod frame;
mod keys;
mod recovery;
mod segment;
mod writer;

pub use keys::{KeyRef, KeyRefError, SegmentKeys, TenantSegmentKeys};
pub use recovery::{Damage, Frame, Recovery, Replayed, Scanned};
pub use segment::{HEADER_BYTES, PAGE_BYTES};
pub use writer::{Options, PAYLOAD_BYTES_MAX, Synced, TrimReport, Wal, WalError};

#[cfg(test)]
mod tests;
