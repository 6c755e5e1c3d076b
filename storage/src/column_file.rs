//! Column files: a Parquet section and a series directory section, sealed, inside a bundle.
//!
//! Owns: their formats. Never: decides what goes into a file or when it is read.

pub mod bundle;
mod choose;
mod chunk;
mod column;
mod decimal;
mod delta;
pub mod directory;
mod hybrid;
pub(crate) mod layout;
pub mod reader;
pub(crate) mod stream;
pub mod writer;

#[cfg(test)]
mod tests;
