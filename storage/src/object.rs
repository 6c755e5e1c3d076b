//! Object stores of our own: the durable local one.

pub mod local;
