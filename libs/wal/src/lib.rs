//! The sealed, segmented, append-only log: bytes in, bytes out. The server's write-ahead log and
//! the forwarder's queue are this crate.
//!
//! Owns: the byte layout (`docs/formats/wal.md`), group commit, recovery, trim.
//! Never: knows tenants, rows or what a payload means; a frame names an owner and a key version
//! and nothing else. Appends to a segment of an earlier start, rewrites a synced page, or syncs a
//! file again whose sync has failed.
//! Invariants:
//! - D1 what [`Wal::commit`] has answered with [`Synced`] is read back after any crash, once, in
//!   order; everything else is read back as a prefix of what was appended, or not at all.
//! - T6 a (key, nonce) pair seals once: each segment has its own salt, so its own keys, and a
//!   segment is written by one start of one process only.
//! - A changed bit is an error or has no effect; it is never another payload, and it never makes
//!   an acknowledged frame go missing in silence.
//!
//! One process at a time may have a directory open; the caller holds the lock.

mod error;
mod frame;
mod keys;
mod planted;
mod reader;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;
mod trim;
mod writer;

pub use error::{Damage, WalError};
pub use frame::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_MAX};
pub use keys::{KeyRef, KeyRefError, SegmentContext, SegmentKeys, TenantSegmentKeys};
pub use reader::{LogCursor, Scanned, scan_quarantine};
pub use recovery::{Frame, Recovery, Replayed};
pub use segment::{PAGE_BYTES, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES};
pub use trim::TrimReport;
pub use writer::{OnDamage, Options, Synced, Wal};
