//! The memory of one query, inside the memory of all.
//!
//! Owns: two limits on one reservation: the query's own and that of all queries together.
//! Spilling is off, so memory is given to whoever asks first and not divided among operators that
//! might spill. Invariant: when a query has ended, nothing of it is reserved.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use datafusion::{
    error::{DataFusionError, Result},
    execution::memory_pool::{
        GreedyMemoryPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
    },
};

/// What all queries have reserved, bytes.
#[derive(Debug, Clone)]
pub(crate) struct SharedMemory {
    reserved: Arc<AtomicUsize>,
    max: usize,
}

impl SharedMemory {
    pub(crate) fn new(max: usize) -> Self {
        Self { reserved: Arc::default(), max }
    }

    pub(crate) fn reserved(&self) -> usize {
        self.reserved.load(Ordering::Acquire)
    }

    fn try_add(&self, bytes: usize) -> bool {
        let add = |now: usize| now.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
    }
}

/// See the module head.
#[derive(Debug)]
pub(crate) struct QueryMemory {
    own: GreedyMemoryPool,
    all: SharedMemory,
}

impl QueryMemory {
    pub(crate) fn new(max: usize, all: SharedMemory) -> Self {
        Self { own: GreedyMemoryPool::new(max), all }
    }
}

impl fmt::Display for QueryMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query({})", self.own)
    }
}

impl MemoryPool for QueryMemory {
    fn name(&self) -> &str {
        "query"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.own.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.own.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.own.grow(reservation, additional);
        self.all.reserved.fetch_add(additional, Ordering::AcqRel);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.own.shrink(reservation, shrink);
        self.all.reserved.fetch_sub(shrink, Ordering::AcqRel);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.own.try_grow(reservation, additional)?;
        if !self.all.try_add(additional) {
            self.own.shrink(reservation, additional);
            return Err(DataFusionError::ResourcesExhausted(
                "the memory of all queries together is used up".to_owned(),
            ));
        }
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.own.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.own.memory_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_queries_share_and_give_back() {
        let all = SharedMemory::new(100);
        let pool = |max| -> Arc<dyn MemoryPool> { Arc::new(QueryMemory::new(max, all.clone())) };
        let (a, b) = (pool(80), pool(80));
        let first = MemoryConsumer::new("a").register(&a);
        let second = MemoryConsumer::new("b").register(&b);
        assert!(first.try_grow(81).is_err(), "its own limit");
        first.try_grow(70).unwrap();
        assert!(second.try_grow(31).is_err(), "the limit of both");
        assert_eq!((a.reserved(), b.reserved(), all.reserved()), (70, 0, 70));
        second.try_grow(30).unwrap();
        drop(first);
        assert_eq!(all.reserved(), 30);
        drop(second);
        assert_eq!(all.reserved(), 0);
    }
}
