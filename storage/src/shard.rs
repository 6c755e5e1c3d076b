//! One shard: the writer that owns log, dictionaries and watermarks, and the way back from the
//! log after a crash.
//!
//! Owns: the order resolve -> log -> sync -> publish -> ack. Never: acks before the sync,
//! publishes a row that is not durable.

pub(crate) mod record;
pub(crate) mod rejected;
pub(crate) mod replay;
pub(crate) mod resolve;
pub(crate) mod table;
pub(crate) mod tenant;
pub(crate) mod watermark;
pub(crate) mod writer;
