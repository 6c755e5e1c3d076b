//! The vocabulary that both ends of Millrace speak: ids, values, batches, line protocol, the
//! forwarder's frames and acks, error codes.
//!
//! Owns: pure values and their encodings. Never: I/O, clock, async, keys.

pub mod arrow;
pub mod batch;
pub mod device;
pub mod frame;
pub mod ids;
pub mod line;
pub mod name;
pub mod problem;
pub mod stream;
pub mod value;
