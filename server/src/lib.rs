//! The Millrace server: settings to components to listeners, and the command line.
//!
//! Owns: TLS, HTTP, Flight, admission. Never: a plaintext listener; a row or a secret in a log;
//! a decision about rights (control) or a byte of storage (storage).

mod api;
pub mod cli;
mod demo;
mod ingest;
mod listener;
mod root_key;
mod settings;
mod startup;
mod tls;
