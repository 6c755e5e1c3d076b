//! SQL over one tenant's snapshot. DataFusion lives here and nothing else knows it.
//!
//! Owns: guards before planning, the session (one scope, one catalogue, one deadline), the table
//! provider with its pruning, result encoders. Public functions return boxed futures and streams,
//! so that no other crate compiles DataFusion's futures again.
//! Never: sees another tenant's catalogue; registers a file or network store; spills plaintext
//! (spilling is off).

mod admission;
mod delete;
#[cfg(test)]
mod documented;
mod engine;
mod error;
#[cfg(test)]
mod fixture;
mod functions;
mod guard;
#[cfg(test)]
mod hostile;
mod interrupt;
mod listing;
mod operator;
mod params;
mod pool;
pub mod postgres;
mod provider;
mod prune;
pub mod result;
mod scan;
mod session;
#[cfg(test)]
mod slt;
mod system;

pub use delete::{Deletion, DeletionError};
pub use engine::{Described, Listed, Place, QueryAnswer, QueryEngine, QueryLimits};
pub use error::QueryError;
pub use params::Params;
pub use result::Format;
