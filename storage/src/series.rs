//! The series of a table: ids, collision check, order.
//!
//! Owns: which series id stands for which tags, inside one tenant and table.
//! Never: forgets a series while a row of it exists; gives two tag sets one id.

pub(crate) mod dictionary;
pub(crate) mod id;
pub(crate) mod section;
