//! One shard: the writer that owns log, dictionaries and watermarks, and the way back from the
//! log after a crash.
//!
//! Owns: the order resolve -> log -> sync -> publish -> ack. Never: acks before the sync,
//! publishes a row that is not durable.

pub mod record;
pub mod replay;
pub mod resolve;
pub mod table;
pub mod tenant;
pub mod watermark;
pub mod writer;
