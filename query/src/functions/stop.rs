//! A flag that tells running functions that nobody waits any more, and why.
//!
//! Owns: the flag and the first refusal. A task that computes cannot be interrupted from outside,
//! so functions that take long look here between slices. A refusal is kept because DataFusion
//! forgets it: it tries to fold the same constant in every pass, and each try would again make the
//! largest value that is allowed. Never: blocks.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use datafusion::error::{DataFusionError, Result};

use crate::error::QueryError;

#[derive(Debug, Default)]
struct State {
    ended: AtomicBool,
    refusal: OnceLock<QueryError>,
    constants: AtomicU64,
}

/// Shared by one query's functions. All flags are equal, so that two expressions with the same
/// function compare as the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<State>);

impl Stop {
    /// Tells everybody that the query has ended.
    pub(crate) fn set(&self) {
        self.0.ended.store(true, Ordering::Release);
    }

    /// Remembers the first refusal and returns it.
    pub(crate) fn refuse(&self, error: QueryError) -> DataFusionError {
        DataFusionError::External(Box::new(self.0.refusal.get_or_init(|| error).clone()))
    }

    /// Adds bytes of constants that functions made; returns all of this query's.
    pub(crate) fn constants(&self, bytes: u64) -> u64 {
        self.0.constants.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes)
    }

    /// An error once the query has ended or something in it was refused.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(refusal) = self.0.refusal.get() {
            return Err(DataFusionError::External(Box::new(refusal.clone())));
        }
        if self.0.ended.load(Ordering::Acquire) {
            return Err(DataFusionError::ResourcesExhausted("the query has ended".to_owned()));
        }
        Ok(())
    }
}

impl PartialEq for Stop {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Stop {}

impl Hash for Stop {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// Sets the flag when it goes out of scope, however that happens.
#[derive(Debug)]
pub(crate) struct StopOnDrop(pub(crate) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_guard_stops_every_clone() {
        let stop = Stop::default();
        let seen = stop.clone();
        let guard = StopOnDrop(stop);
        assert!(seen.check().is_ok());
        drop(guard);
        assert!(seen.check().is_err());
    }
}
