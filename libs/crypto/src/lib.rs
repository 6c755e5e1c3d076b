//! Keys and seals: nothing else in the tree touches a key. Small enough to audit in a day.
//!
//! Owns: key types, derivation, AEAD with nonces that cannot be resumed, sealed objects, the
//! wrapped-key ledger and its providers, signatures.
//! Never: logs, shows or returns a key; reads a byte of a file before its seal is checked.

pub mod aead;
pub mod key;
pub mod kms;
pub mod ledger;
pub mod sealed_file;
pub mod sealed_store;
pub mod sign;
