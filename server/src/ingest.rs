//! From a request body to stored rows: admit, decode, parse, store.

pub mod admit;
pub mod budget;
pub mod decode;
pub mod locate;
pub mod raw;

pub use admit::Admission;
pub use budget::{Budgets, OverBudget};
