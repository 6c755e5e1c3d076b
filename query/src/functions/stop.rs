//! A flag that tells running functions that nobody waits any more.
//!
//! Owns: the flag. A task that computes cannot be interrupted from outside; functions that take
//! long look here between slices. Never: blocks.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use datafusion::error::{DataFusionError, Result};

/// Shared by one query's functions. All flags are equal, so that two expressions with the same
/// function compare as the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Tells everybody.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// An error once the query has ended.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Acquire) {
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
