//! Admission: bytes are reserved while a body is read, piece by piece, and before it is decoded.
//!
//! Owns: what a request asks of the memory budget. Never: lets more of a body be kept than was
//! reserved; waits (whoever is refused comes back later).

use std::sync::Arc;

use millrace_platform::budget::{Held, MemoryBudget, MemoryClass, Room};

/// See the module head.
#[derive(Debug, Clone)]
pub struct Admission(Arc<MemoryBudget>);

impl Admission {
    /// Admission to this budget.
    pub fn new(budget: Arc<MemoryBudget>) -> Self {
        Self(budget)
    }

    /// Reserves `bytes`, or `None` when writers have to wait.
    pub fn reserve(&self, bytes: usize) -> Option<Held> {
        self.0.admit(bytes)
    }

    /// Reserves what a body of `wire` bytes may become when it is unpacked: twenty times as much,
    /// as far as anybody can tell beforehand, but never so much that it could not be had.
    pub fn reserve_unpacked(&self, wire: usize, max: usize) -> Option<Held> {
        self.reserve(max.min(wire.saturating_mul(20)).min(self.0.soft() / 8))
    }

    /// Counts what is there already.
    pub fn hold(&self, bytes: usize) -> Held {
        self.0.hold(MemoryClass::Parse, bytes)
    }

    /// Ready when writers need not wait.
    pub fn room(&self) -> Room {
        self.0.room()
    }
}
