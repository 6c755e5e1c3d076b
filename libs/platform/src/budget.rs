//! One figure for the memory that grows with the load, and who holds how much of it.
//!
//! Owns: the sum over all classes, the soft line at which writers have to wait, the waiting.
//! Never: allocates or frees anything itself; refuses what cannot be refused. Rows that are
//! acknowledged and the flush that gets rid of them are counted whatever the sum is
//! ([`MemoryBudget::hold`]); whoever can come back later asks first ([`MemoryBudget::try_hold`],
//! [`MemoryBudget::admit`]).
//! Invariants: the sum is what the living [`Held`] say; a `Held` gives back what it took, once.
//!
//! Why a soft line: a flush needs memory to free memory. Between the soft line and the whole lies
//! what a flush of everything below the line takes for its sorted copy and its encoded files.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use crate::metric::Metric;

/// What memory is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryClass {
    /// Bodies of requests, and the batches made from them until they are stored.
    Parse,
    /// Rows that are acknowledged and in no file yet.
    Memtable,
    /// Tag values and ids of the series of all tables.
    Series,
    /// A flush's sorted copies and encoded files.
    Flush,
    /// A merge's rows and encoded files.
    Compaction,
}

impl MemoryClass {
    /// All classes.
    pub const ALL: [Self; 5] =
        [Self::Parse, Self::Memtable, Self::Series, Self::Flush, Self::Compaction];

    /// As the metric's label says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Memtable => "memtable",
            Self::Series => "series",
            Self::Flush => "flush",
            Self::Compaction => "compaction",
        }
    }
}

/// See the module head. Shared by reference.
#[derive(Debug)]
pub struct MemoryBudget {
    total: usize,
    soft: usize,
    classes: [AtomicUsize; MemoryClass::ALL.len()],
    sum: AtomicUsize,
    peak: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
    waiters: AtomicUsize,
}

impl MemoryBudget {
    /// A budget of `total` bytes; its soft line is at half of it.
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            soft: total / 2,
            classes: Default::default(),
            sum: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            waiting: Mutex::default(),
            waiters: AtomicUsize::new(0),
        })
    }

    /// A budget that counts and never refuses.
    pub fn unlimited() -> Arc<Self> {
        Self::new(usize::MAX)
    }

    /// Bytes in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Bytes above which writers have to wait.
    pub fn soft(&self) -> usize {
        self.soft
    }

    /// Bytes held now, all classes.
    pub fn held(&self) -> usize {
        self.sum.load(Ordering::Acquire)
    }

    /// Bytes held now by one class.
    pub fn held_by(&self, class: MemoryClass) -> usize {
        self.class(class).load(Ordering::Acquire)
    }

    /// The most that was ever held at once, bytes.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Acquire)
    }

    /// Holds `bytes`, whatever the sum is: for what exists already, and for work that frees
    /// memory.
    pub fn hold(self: &Arc<Self>, class: MemoryClass, bytes: usize) -> Held {
        self.add(class, bytes);
        Held { budget: Arc::clone(self), class, bytes }
    }

    /// Holds `bytes` if the sum stays within the whole budget: for work that can be done later or
    /// in smaller pieces.
    pub fn try_hold(self: &Arc<Self>, class: MemoryClass, bytes: usize) -> Option<Held> {
        self.within(self.total, class, bytes)
    }

    /// Holds `bytes` of a write if the sum stays below the soft line, or if rows hold almost
    /// nothing yet: what series and merges hold must slow writers down, not lock them out.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        if let Some(held) = self.within(self.soft, MemoryClass::Parse, bytes) {
            return Some(held);
        }
        let rows = self.held_by(MemoryClass::Memtable) + self.held_by(MemoryClass::Parse);
        if rows.saturating_add(bytes) > self.floor() {
            return None;
        }
        Some(self.hold(MemoryClass::Parse, bytes))
    }

    /// Whether writers have to wait.
    pub fn over_soft(&self) -> bool {
        let rows = self.held_by(MemoryClass::Memtable) + self.held_by(MemoryClass::Parse);
        self.held() >= self.soft && rows >= self.floor()
    }

    /// Ready once writers need not wait.
    pub fn room(self: &Arc<Self>) -> Room {
        Room(Arc::clone(self))
    }

    /// A sixteenth is always for rows.
    fn floor(&self) -> usize {
        self.total / 16
    }

    fn within(self: &Arc<Self>, line: usize, class: MemoryClass, bytes: usize) -> Option<Held> {
        let taken = self.sum.fetch_update(Ordering::AcqRel, Ordering::Acquire, |sum| {
            sum.checked_add(bytes).filter(|after| *after <= line)
        });
        let before = taken.ok()?;
        self.peak.fetch_max(before + bytes, Ordering::AcqRel);
        let now = self.class(class).fetch_add(bytes, Ordering::AcqRel) + bytes;
        show(class, now);
        Some(Held { budget: Arc::clone(self), class, bytes })
    }

    fn add(&self, class: MemoryClass, bytes: usize) {
        let sum = self.sum.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.peak.fetch_max(sum, Ordering::AcqRel);
        show(class, self.class(class).fetch_add(bytes, Ordering::AcqRel) + bytes);
    }

    fn sub(&self, class: MemoryClass, bytes: usize) {
        if bytes == 0 {
            return;
        }
        show(class, self.class(class).fetch_sub(bytes, Ordering::AcqRel) - bytes);
        self.sum.fetch_sub(bytes, Ordering::AcqRel);
        if self.waiters.load(Ordering::Acquire) > 0 && !self.over_soft() {
            let woken = std::mem::take(&mut *self.lock());
            self.waiters.store(0, Ordering::Release);
            woken.into_iter().for_each(Waker::wake);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn class(&self, class: MemoryClass) -> &AtomicUsize {
        let [parse, memtable, series, flush, compaction] = &self.classes;
        match class {
            MemoryClass::Parse => parse,
            MemoryClass::Memtable => memtable,
            MemoryClass::Series => series,
            MemoryClass::Flush => flush,
            MemoryClass::Compaction => compaction,
        }
    }
}

fn show(class: MemoryClass, bytes: usize) {
    metrics::gauge!(Metric::MemoryBytes.name(), "class" => class.name()).set(bytes as f64);
}

/// Bytes that are held; given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<MemoryBudget>,
    class: MemoryClass,
    bytes: usize,
}

impl Held {
    /// How many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds `bytes` from now on, more or fewer, whatever the sum is.
    pub fn resize(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.budget.add(self.class, bytes - self.bytes);
        } else {
            self.budget.sub(self.class, self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// Holds what `other` held as well. Both must be of one budget and class.
    pub fn merge(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.budget, &other.budget) && self.class == other.class);
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.sub(self.class, self.bytes);
    }
}

/// See [`MemoryBudget::room`].
#[derive(Debug)]
pub struct Room(Arc<MemoryBudget>);

impl Future for Room {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.0.over_soft() {
            return Poll::Ready(());
        }
        let mut waiting = self.0.lock();
        if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        self.0.waiters.store(waiting.len(), Ordering::Release);
        drop(waiting);
        // Given back between the look and the note: nobody would wake us for it.
        if self.0.over_soft() { Poll::Pending } else { Poll::Ready(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    #[test]
    fn what_is_held_is_given_back_once_and_the_peak_stays() {
        let budget = MemoryBudget::new(1000);
        let mut a = budget.hold(MemoryClass::Flush, 300);
        let b = budget.hold(MemoryClass::Flush, 100);
        a.merge(b);
        assert_eq!((a.bytes(), budget.held()), (400, 400));
        a.resize(50);
        assert_eq!((budget.held(), budget.held_by(MemoryClass::Flush)), (50, 50));
        a.resize(70);
        drop(a);
        assert_eq!((budget.held(), budget.peak()), (0, 400));
    }

    #[test]
    fn writers_stop_at_the_soft_line_and_later_work_at_the_whole() {
        let budget = MemoryBudget::new(1000);
        let rows = budget.hold(MemoryClass::Memtable, 450);
        assert!(budget.admit(51).is_none());
        let body = budget.admit(50).expect("up to the line");
        assert!(budget.over_soft());
        assert!(budget.try_hold(MemoryClass::Compaction, 501).is_none());
        let merge = budget.try_hold(MemoryClass::Compaction, 500).expect("up to the whole");
        let flush = budget.hold(MemoryClass::Flush, 200);
        assert_eq!(budget.held(), 1200, "what frees memory is never refused");
        drop((rows, body, merge, flush));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn series_alone_slow_writers_but_do_not_lock_them_out() {
        let budget = MemoryBudget::new(1600);
        let _series = budget.hold(MemoryClass::Series, 1600);
        assert!(!budget.over_soft());
        let first = budget.admit(100).expect("a sixteenth is for rows");
        assert!(budget.admit(1).is_none() && budget.over_soft());
        drop(first);
        assert!(budget.admit(100).is_some());
    }

    #[test]
    fn who_waits_for_room_is_woken_when_enough_is_given_back() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::AcqRel);
            }
        }
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let budget = MemoryBudget::new(1000);
        let mut rows = budget.hold(MemoryClass::Memtable, 700);
        let mut room = budget.room();
        for _ in 0..2 {
            assert_eq!(Pin::new(&mut room).poll(&mut cx), Poll::Pending);
        }
        rows.resize(600);
        assert_eq!(woken.0.load(Ordering::Acquire), 0, "still over the line");
        rows.resize(100);
        assert_eq!(woken.0.load(Ordering::Acquire), 1);
        assert_eq!(Pin::new(&mut room).poll(&mut cx), Poll::Ready(()));
    }
}
