//! Retention: what a tenant's plan keeps, what queries show of it, and when files go.
//!
//! Owns: rules.rs (from plans and holds to limits, purely), clock.rs (the only notion of now that may
//! delete anything), book.rs (what was told from outside and what waits for an answer), due.rs (when
//! to look at which tenant again), forecast.rs (which files go, when, and the fuse), driver.rs
//! (does it).
//! Never: deletes by the wall clock alone; deletes what a hold keeps; has a timer for each tenant.
//! Invariants: R1 nothing leaves before its limit; R2 what a shorter plan would take stays 30 days
//! visible and 7 days more.

pub(crate) mod book;
pub(crate) mod clock;
pub(crate) mod driver;
pub(crate) mod due;
pub(crate) mod forecast;
pub(crate) mod rules;

pub use book::{Blocked, Book};
pub use clock::{ClockMark, ClockState, MARGIN_NS};
pub use driver::RetentionReport;
pub use forecast::{Forecast, Fuse, Leaving};
pub use rules::{GRACE_NS, HIDDEN_NS, Holds, Limit, Rules, TableName, Terms};

/// One day, ns.
pub const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
