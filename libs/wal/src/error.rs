//! What can go wrong with the log, and where it went wrong.
//!
//! Owns: [`WalError`] and [`Damage`]. Never: carries a payload or a key.

use std::{fmt, io, path::PathBuf};

use millrace_crypto::aead::AeadError;

use crate::keys::{KeyRef, KeyRefError};

/// A part of the log that cannot be read although it should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment's number.
    pub segment: u64,
    /// The first byte that does not make sense, from the start of the segment file.
    pub byte: u64,
    /// One past the last byte that was given up.
    pub byte_end: u64,
    /// The first log number that is lost.
    pub first_lsn: u64,
    /// The last log number that is lost, if a later frame or segment tells.
    pub last_lsn: Option<u64>,
    /// What was seen there.
    pub what: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "log segment {} is damaged from byte {} to {} ({}): ",
            self.segment, self.byte, self.byte_end, self.what
        )?;
        match self.last_lsn {
            Some(last) => write!(f, "log numbers {} to {last} cannot be read", self.first_lsn),
            None => write!(f, "log numbers from {} on cannot be read", self.first_lsn),
        }
    }
}

/// Errors of the log. None of them harms what was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk refused an operation other than the sync of a segment.
    #[error("log: cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No room for a new segment. Nothing was lost; appends work again when there is room.
    #[error(
        "log: no room for a new segment of {needed} bytes in {dir}: {source}; free space or add disk, writes go on by themselves then"
    )]
    DiskFull {
        /// The log's directory.
        dir: PathBuf,
        /// Bytes that the segment needs.
        needed: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The payload fits no frame.
    #[error("log: a record of {len} bytes is over the limit of {max}; send smaller batches")]
    TooLarge {
        /// Bytes of the payload.
        len: usize,
        /// Bytes that are allowed.
        max: usize,
    },
    /// A write or sync of the segment failed before this frame was durable. The frame is not in
    /// the log; append it again.
    #[error(
        "log: segment {segment} could not be synced ({cause}), so record {lsn} was not stored; it is safe to send it again"
    )]
    Poisoned {
        /// The segment, which is never synced again.
        segment: u64,
        /// The frame.
        lsn: u64,
        /// What the system said.
        cause: io::ErrorKind,
    },
    /// A commit of a frame that was never appended.
    #[error("log: record {lsn} was not appended; the next one is {next}")]
    NotAppended {
        /// The frame that was asked for.
        lsn: u64,
        /// The next log number.
        next: u64,
    },
    /// A part of the log cannot be read. It is refused rather than skipped.
    #[error("{0}; restore the file from a backup, or accept the loss with the quarantine scan")]
    Damaged(Box<Damage>),
    /// A segment of a newer format.
    #[error(
        "log: {path} has format version {version}, this program reads 1; use the newer program"
    )]
    UnknownVersion {
        /// The segment file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Frames were asked for that were trimmed away.
    #[error("log: record {wanted} was asked for, but the log starts at {first}")]
    Trimmed {
        /// The first log number that was asked for.
        wanted: u64,
        /// The first that is there.
        first: u64,
    },
    /// A key cannot be had.
    #[error("log: {key}: {source}")]
    Key {
        /// Whose key.
        key: KeyRef,
        /// Why not.
        source: KeyRefError,
    },
    /// A seal cannot be made.
    #[error("log: {0}")]
    Seal(#[from] AeadError),
    /// Options that cannot work.
    #[error("log: {0}")]
    Options(&'static str),
}

impl WalError {
    pub(crate) fn io(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn key(key: KeyRef) -> impl FnOnce(KeyRefError) -> Self {
        move |source| Self::Key { key, source }
    }

    /// Whether the cause is a full disk, so that the caller can say so (507) and go on reading.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } => is_full(source.kind()),
            Self::Poisoned { cause, .. } => is_full(*cause),
            _ => false,
        }
    }

    /// Whether a key is gone for good.
    pub fn is_key_gone(&self) -> bool {
        matches!(self, Self::Key { source: KeyRefError::Gone, .. })
    }
}

pub(crate) fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<Damage> for WalError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(Box::new(damage))
    }
}
