//! The manifest: which files, series, columns and stream watermarks exist, as numbered records.
//!
//! Owns: state.rs (what a manifest says), record.rs (its sealed bytes), store.rs (claims, loads,
//! commits, fences), parts.rs (how its owner keeps it in memory), invariants.rs (what a commit may
//! not break).
//! Never: more than one writer; a commit that overwrites.

pub mod invariants;
pub(crate) mod parts;
pub mod record;
pub mod state;
pub mod store;

pub use state::{
    Delta, FileEntry, Manifest, SeriesSection, StreamState, TableDelta, TableManifest, TenantDelta,
    TenantManifest,
};
pub use store::{CommitError, ManifestError, ManifestStore};
