//! millrace-wal.
