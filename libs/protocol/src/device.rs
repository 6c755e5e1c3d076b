//! device: to come.
