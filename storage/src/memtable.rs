//! Rows that are logged and synced but not yet in column files.
//!
//! Owns: chunks as they arrived and the way to sorted runs. Never: holds a row that is not
//! durable in the log.

pub(crate) mod chunk;
pub(crate) mod sort;
