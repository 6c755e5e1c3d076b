//! How many queries of one tenant run and wait.
//!
//! Owns: the counts. Invariants: a query is counted from its arrival to its end, however it ends;
//! it runs only while it holds a permit.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use millrace_platform::map::Map;
use millrace_protocol::ids::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{engine::QueryLimits, error::QueryError};

#[derive(Debug)]
struct Gate {
    running: Arc<Semaphore>,
    present: AtomicUsize,
}

/// All tenants' gates.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    gates: Mutex<Map<TenantId, Arc<Gate>>>,
}

/// A query that has arrived.
#[derive(Debug)]
pub(crate) struct Present(Arc<Gate>);

/// A query that may run.
#[derive(Debug)]
pub(crate) struct Admitted {
    _present: Present,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Admission {
    /// Counts a query, or refuses it if too many are there.
    pub(crate) fn arrive(
        &self,
        tenant: TenantId,
        limits: &QueryLimits,
    ) -> Result<Present, QueryError> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(tenant).or_insert_with(|| {
            Arc::new(Gate {
                running: Arc::new(Semaphore::new(limits.running)),
                present: AtomicUsize::new(0),
            })
        });
        let before = gate.present.fetch_add(1, Ordering::AcqRel);
        let present = Present(Arc::clone(gate));
        if before >= limits.running + limits.queued {
            return Err(QueryError::Busy { running: limits.running, queued: limits.queued });
        }
        Ok(present)
    }
}

impl Present {
    /// Waits for a permit.
    pub(crate) async fn admitted(self) -> Result<Admitted, QueryError> {
        let permit = Arc::clone(&self.0.running).acquire_owned().await;
        let permit = permit.map_err(|_| QueryError::Internal("admission".into()))?;
        Ok(Admitted { _present: self, _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn limits() -> QueryLimits {
        QueryLimits { running: 2, queued: 1, ..QueryLimits::default() }
    }

    #[test]
    fn one_too_many_is_refused_and_leaves_no_trace() {
        let (admission, tenant) = (Admission::default(), TenantId([1; 16]));
        let arrive = || admission.arrive(tenant, &limits());
        let first = arrive().unwrap().admitted().now_or_never().unwrap().unwrap();
        let second = arrive().unwrap().admitted().now_or_never().unwrap().unwrap();
        let mut third = Box::pin(arrive().unwrap().admitted());
        assert!((&mut third).now_or_never().is_none(), "it waits");
        for _ in 0..3 {
            assert_eq!(arrive().unwrap_err().code().0, "too_many_queries");
        }
        drop(first);
        let third = third.now_or_never().unwrap().unwrap();
        drop((second, third));
        assert!(arrive().unwrap().admitted().now_or_never().unwrap().is_ok());
    }

    #[test]
    fn a_waiting_query_that_goes_away_makes_room() {
        let (admission, tenant) = (Admission::default(), TenantId([1; 16]));
        let arrive = || admission.arrive(tenant, &limits());
        let here = [arrive().unwrap(), arrive().unwrap(), arrive().unwrap()];
        assert!(arrive().is_err());
        drop(here);
        assert!(arrive().is_ok());
    }

    #[test]
    fn tenants_do_not_share_their_gates() {
        let admission = Admission::default();
        let full: Vec<_> =
            (0..3).map(|_| admission.arrive(TenantId([1; 16]), &limits()).unwrap()).collect();
        assert!(admission.arrive(TenantId([1; 16]), &limits()).is_err());
        assert!(admission.arrive(TenantId([2; 16]), &limits()).is_ok());
        drop(full);
    }
}
