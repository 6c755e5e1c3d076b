//! Admission: bytes are reserved while a body is read, piece by piece, and before it is decoded.
//!
//! Owns: the node's ingest pool. Never: lets more of a body be kept than was reserved.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of bodies, compressed and not, that may be in flight at once.
const POOL_KIB: usize = 512 * 1024;
/// What one request reserves: its wire bytes and, if compressed, what they may become.
const KIB: usize = 1024;

/// The pool.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Semaphore>);

impl Default for Admission {
    fn default() -> Self {
        Self::of_kib(POOL_KIB)
    }
}

impl Admission {
    /// A pool of so many KiB.
    pub fn of_kib(kib: usize) -> Self {
        Self(Arc::new(Semaphore::new(kib)))
    }

    /// Reserves `bytes`, or `None` when the pool is full.
    pub fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(KIB).clamp(1, POOL_KIB)).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(kib).ok()
    }
}
