//! What a system stands on, and what it must be able to do to be tested.
//!
//! Owns: [`System`], [`Stage`], keys that count, a disk that lies.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_crypto::{
    aead::{FrameOpener, FrameSealer},
    key::{Key256, KeyError, TenantKeySource, TenantKeys},
};
use millrace_platform::{
    disk::{DirEntry, Disk, DiskFile, DiskLock, OpenMode},
    sim::{SimDisk, SimEntropy},
};
use millrace_wal::{KeyRef, KeyRefError, SegmentContext, SegmentKeys, TenantSegmentKeys};

use crate::bug::Bug;

/// Why a system stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The disk failed or is full, or the power is off: expected, the ledger decides.
    #[error("the disk: {0}")]
    Disk(String),
    /// The system found damage and said so.
    #[error("refused: {0}")]
    Refused(String),
    /// The system handed out bytes that nobody gave it.
    #[error("changed: {0}")]
    Changed(String),
}

/// Something that stores items and must not lose them.
pub trait System: Sized {
    /// Recovers on this stage; says which items it holds.
    fn start(stage: &Stage) -> Result<(Self, Vec<u64>), Stop>;
    /// Stores a group of items; `Ok` acknowledges them.
    fn store(&mut self, stage: &Stage, items: &[u64]) -> Result<(), Stop>;
    /// Moves what is stored to its long-term place and gives space back.
    fn flush(&mut self, stage: &Stage) -> Result<(), Stop>;
    /// The items that it holds now, as a reader sees them.
    fn held(&mut self, stage: &Stage) -> Result<Vec<u64>, Stop>;
}

/// A simulated machine: disk, entropy, keys; and the bug that is planted on it.
pub struct Stage {
    /// The disk, for faults.
    pub sim: SimDisk,
    /// The disk as the system sees it.
    pub disk: Arc<dyn Disk>,
    /// Randomness of everything on the stage.
    pub dice: SimEntropy,
    /// The keys.
    pub keys: Arc<CountingKeys>,
    /// The planted bug.
    pub bug: Option<Bug>,
}

impl Stage {
    /// A new machine.
    pub fn seeded(seed: u64, bug: Option<Bug>) -> Self {
        let keys = Arc::new(CountingKeys::new(bug == Some(Bug::NonceReused)));
        Self::on(SimDisk::new(), SimEntropy::seeded(seed), keys, bug)
    }

    fn on(sim: SimDisk, dice: SimEntropy, keys: Arc<CountingKeys>, bug: Option<Bug>) -> Self {
        let disk: Arc<dyn Disk> = match bug {
            Some(Bug::FailedSyncBelieved) => Arc::new(LyingDisk(sim.clone())),
            _ => Arc::new(sim.clone()),
        };
        Self { sim, disk, dice, keys, bug }
    }

    /// A copy of the machine as it is now.
    pub fn fork(&self) -> Self {
        let dice = SimEntropy::seeded(self.dice.next_u64());
        Self::on(self.sim.fork(), dice, Arc::clone(&self.keys), self.bug)
    }

    /// Whether this bug is planted.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// Tenant keys of one tenant, fixed.
pub(crate) struct FixedTenant;

/// The tenant that all items belong to.
pub(crate) const TENANT: [u8; 16] = *b"tenant of a test";

impl TenantKeySource for FixedTenant {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        if *tenant != TENANT || version != 1 {
            return Err(KeyError::UnknownVersion { tenant: "another".into(), version });
        }
        Ok(Arc::new(TenantKeys::new(TENANT, 1, Key256::new([42; 32]))))
    }
}

/// The log's real keys, which notices a sealing key that is given out twice (T6).
pub struct CountingKeys {
    real: TenantSegmentKeys,
    one_for_all: bool,
    given: Mutex<(BTreeSet<SegmentContext>, u64)>,
}

impl CountingKeys {
    fn new(one_for_all: bool) -> Self {
        let real = TenantSegmentKeys::new(Arc::new(FixedTenant));
        Self { real, one_for_all, given: Mutex::default() }
    }

    fn context(&self, context: &SegmentContext) -> SegmentContext {
        match self.one_for_all {
            true => SegmentContext { salt: [0; 32], segment: 0, incarnation: 0 },
            false => *context,
        }
    }

    fn given(&self) -> MutexGuard<'_, (BTreeSet<SegmentContext>, u64)> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sealing keys that were given out more than once.
    pub fn repeated(&self) -> u64 {
        self.given().1
    }
}

impl SegmentKeys for CountingKeys {
    fn sealer(&self, key: KeyRef, context: &SegmentContext) -> Result<FrameSealer, KeyRefError> {
        let context = self.context(context);
        let mut given = self.given();
        if !given.0.insert(context) {
            given.1 += 1;
        }
        self.real.sealer(key, &context)
    }

    fn opener(&self, key: KeyRef, context: &SegmentContext) -> Result<FrameOpener, KeyRefError> {
        self.real.opener(key, &self.context(context))
    }
}

/// Says that every sync worked.
#[derive(Debug)]
struct LyingDisk(SimDisk);
#[derive(Debug)]
struct LyingFile(Box<dyn DiskFile>);

impl DiskFile for LyingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        match self.0.sync_data() {
            Err(e) if e.to_string().contains("power") => Err(e),
            _ => Ok(()),
        }
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

impl Disk for LyingDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(LyingFile(self.0.create_new(path)?)))
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(LyingFile(self.0.open(path, mode)?)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn link_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.link_new(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }
    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        self.0.lock_exclusive(path)
    }
    fn mode(&self, path: &Path) -> io::Result<u32> {
        self.0.mode(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.free_bytes(path)
    }
    fn modified_ns(&self, path: &Path) -> io::Result<i64> {
        self.0.modified_ns(path)
    }
}
