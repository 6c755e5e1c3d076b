//! What the fuzz targets do with their input, as plain functions: libFuzzer and the tests call the
//! same.
//!
//! Owns: one module per format that outside or stored bytes are read from, each with its property
//! and its seeds. A panic that nothing catches, an overflow or a broken property is a finding.
//! Never: part of the product. Clock, entropy and disk are the simulated ones, so that an input
//! does the same every time. Where a checksum or a seal would turn every mutation away at the
//! door, the target makes it good again after the mutation.

pub mod directory;
pub mod edit;
pub mod ipc;
pub mod keys;
pub mod line;
pub mod manifest;
pub mod sealed;
pub mod wal;

#[cfg(test)]
mod tests;

/// A target: its name, what it does, its seeds by name.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<(&'static str, Vec<u8>)>);

/// All targets.
pub const TARGETS: [Target; 6] = [
    ("line", line::run, line::seeds),
    ("ipc", ipc::run, ipc::seeds),
    ("wal", wal::run, wal::seeds),
    ("manifest", manifest::run, manifest::seeds),
    ("directory", directory::run, directory::seeds),
    ("sealed", sealed::run, sealed::seeds),
];
