//! [`TableBatch`](crate::batch::TableBatch) to and from Arrow record batches, the shape that Flight carries.
//!
//! Owns: which Arrow types stand for which columns, and what clients may send.
//! Never: trusts a batch: every limit of line protocol holds here too, and a value that would
//! grow when it is copied (a view or dictionary entry used many times) is charged for each use.
//!
//! Out: `time` Timestamp(ns, "UTC"), tags Dictionary(Int32, Utf8) in name order, then the fields.
//! In: a column's role is its metadata `millrace:role` (`time`, `tag` or `field`); without it
//! `time` is the time, dictionary-encoded text is a tag and all else is a field. The schema's
//! metadata `millrace:table` is required, `millrace:database` is `default` if absent.

mod incoming;
mod ipc;
mod outgoing;
mod rendered;
#[cfg(test)]
pub(crate) mod tests;

pub use incoming::{from_record_batch, from_record_batch_listing, from_record_batch_seeded};
pub use ipc::{COLUMNS_MAX, DICTIONARY_BYTES_MAX, INFLATED_BYTES_MAX, IpcError, MessageDecoder};
pub use outgoing::to_record_batch;
pub use rendered::row_as_line;

/// What [`from_record_batch`] reads.
pub use ::arrow::array::RecordBatch;

use crate::name::BadName;

/// Key of a column's metadata: `time`, `tag` or `field`.
pub const ROLE: &str = "millrace:role";
/// Key of the schema's metadata: the database.
pub const DATABASE: &str = "millrace:database";
/// Key of the schema's metadata: the table.
pub const TABLE: &str = "millrace:table";

/// Refusals listed for one record batch; the rest are only missing from its rows.
pub const REFUSALS_LISTED_MAX: usize = 100;

/// Bytes of text that one record batch may unfold to.
pub const TEXT_BYTES_MAX: usize = 256 << 20;

/// A record batch whose columns, not rows, are wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrowShape {
    /// The schema does not say the table.
    #[error("the schema's metadata lacks `{TABLE}`: name the table there")]
    NoTable,
    /// A name that may not be.
    #[error("{what} `{name}` is refused: {why}")]
    Name {
        /// `table`, `tag` or `field`.
        what: &'static str,
        /// The name, cut to 64 characters.
        name: String,
        /// Which rule.
        why: BadName,
    },
    /// No column is the time.
    #[error("there is no column `time` of type Timestamp")]
    NoTime,
    /// Two columns say the same.
    #[error("column `{0}` occurs twice")]
    Twice(String),
    /// The role is not one of three.
    #[error("column `{column}` has role `{role}`; it is `time`, `tag` or `field`")]
    Role {
        /// The column.
        column: String,
        /// What was given.
        role: String,
    },
    /// An Arrow type without a meaning here.
    #[error("column `{column}` has type {given}; {expected}")]
    Type {
        /// The column.
        column: String,
        /// Its type.
        given: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Too many columns, rows or bytes for one batch.
    #[error("the batch has {given} {what}, at most {most} are taken: send smaller batches")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        given: usize,
        /// How many are taken.
        most: usize,
    },
    /// Arrow itself refused the columns.
    #[error("the columns do not make a record batch: {0}")]
    Columns(String),
}
