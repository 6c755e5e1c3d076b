//! The Millrace server: settings to components to listeners, and the command line.
//!
//! Owns: TLS, HTTP, Flight, PostgreSQL's protocol, admission. Never: a plaintext listener; a row or a secret in a log;
//! a decision about rights (control) or a byte of storage (storage).

mod api;
pub mod cli;
mod demo;
mod ingest;
mod listener;
mod pgwire;
mod retention;
mod root_key;
mod settings;
mod startup;
mod tls;

/// Rows come and go in pieces of megabytes, on several threads. This allocator gives large
/// ones back at once and small ones soon (docs/decisions/0008-allocator.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
