//! Commits manifest records, one writer at a time.
//!
//! Owns: the epoch claim, the chain of records, checkpoints. Needs only create-if-absent of its
//! store.
//! Crash order: sections are stored -> record n+1 is created -> the highest epoch claim is read
//! again -> installed. Any prefix is a legal start: an unreferenced object is an orphan, a record
//! that exists is committed.
//! Needs of its store, beyond create-if-absent: `AlreadyExists` is answered only when what stands
//! there is durable. A record that merely reads may still be lost with the power, so an unknown
//! outcome is settled by asking for the create again and never by reading alone.
//! Fencing: a start claims the next epoch and writes a fence record at the next number. An older
//! owner then loses its create, or finds the higher claim after it, and refuses to go on.
//! Invariants: a number is written once; epochs never fall along the chain; each record names
//! the digest of the one before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::TryStreamExt;
use millrace_crypto::key::TenantKeySource;
use millrace_platform::{
    entropy::{Entropy, random_bytes},
    invariant::Broken,
};
use millrace_protocol::ids::TenantId;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};

use super::{
    invariants,
    parts::{Objects, Packed, Parts},
    record::{self, Digest, Head, Heading, RecordError},
    state::{Delta, Manifest, TenantDelta, TenantManifest},
};
use crate::{
    planted::{Bug, planted},
    retention::ClockMark,
};

/// Checkpoints kept; older ones and the records before them are removed.
const ROOTS_KEPT: usize = 2;
/// Attempts to write the fence record against an owner that is still committing.
const FENCE_ATTEMPTS: usize = 16;

/// Why the manifest does not load. The server does not start with less than was committed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The store.
    #[error("the manifest cannot be read: {0}")]
    Store(#[from] object_store::Error),
    /// A record.
    #[error("manifest record {name} does not read: {source}; restore it from a backup")]
    Record {
        /// Its path.
        name: String,
        /// Why.
        source: RecordError,
    },
    /// The chain.
    #[error("the manifest chain is broken at {name}: {detail}; restore it from a backup")]
    Chain {
        /// The path.
        name: String,
        /// What is wrong.
        detail: String,
    },
    /// Another server keeps committing.
    #[error("another server is committing to this shard; stop it first")]
    Contended,
    /// The fence could not be committed.
    #[error(transparent)]
    Fence(Box<CommitError>),
}

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another server owns the shard now; this one must stop.
    #[error(
        "another server has taken over this shard (epoch {seen}, ours is {ours}); this one has stopped committing"
    )]
    Fenced {
        /// The higher epoch.
        seen: u64,
        /// Ours.
        ours: u64,
    },
    /// The store; the record was not written and the commit may be tried again.
    #[error("the manifest record could not be written: {0}")]
    Store(object_store::Error),
    /// Whether the record is durable cannot be told; this owner has stopped committing.
    #[error(
        "whether manifest record {name} is durable is not known ({detail}); this server has stopped committing, nothing acknowledged is lost; check the disk and restart the server"
    )]
    Unknown {
        /// The record's path.
        name: String,
        /// The first failure.
        detail: String,
    },
    /// This shard was opened to read only.
    #[error("the shard was opened without room to claim it; it is claimed when there is space")]
    Unclaimed,
    /// Encoding or keys.
    #[error("the manifest record could not be made: {0}")]
    Record(#[from] RecordError),
    /// The delta would break the manifest.
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl ManifestError {
    /// Why the disk took no claim, if it is full or may only be read, so that the shard can be
    /// read but not owned.
    pub(crate) fn takes_no_claim(&self) -> Option<std::io::ErrorKind> {
        match self {
            Self::Store(e) => takes_nothing(e),
            Self::Fence(e) => match e.as_ref() {
                CommitError::Store(e) => takes_nothing(e),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The kind of an error that says that the disk is full or may only be read.
fn takes_nothing(e: &object_store::Error) -> Option<std::io::ErrorKind> {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let object_store::Error::Generic { source, .. } = e else { return None };
    let kind = source.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind.filter(|kind| matches!(kind, StorageFull | QuotaExceeded | ReadOnlyFilesystem))
}

pub(crate) fn record_name(shard: u32, number: u64) -> String {
    format!("shard/{shard}/m/{number:020}")
}

pub(crate) fn root_name(shard: u32, number: u64) -> String {
    format!("shard/{shard}/c/{number:020}")
}

fn claim_name(shard: u32, epoch: u64) -> String {
    format!("shard/{shard}/epoch/{epoch:010}")
}

/// Why this owner commits no more, for good.
#[derive(Debug, Clone)]
enum Stop {
    /// A higher epoch, or a record of another owner where ours should be.
    Fenced(u64),
    /// The outcome of the commit of this record.
    Unknown { name: String, detail: String },
    /// The shard was never claimed.
    Unclaimed,
}

impl Stop {
    fn error(&self, ours: u64) -> CommitError {
        match self.clone() {
            Self::Fenced(seen) => CommitError::Fenced { seen, ours },
            Self::Unknown { name, detail } => CommitError::Unknown { name, detail },
            Self::Unclaimed => CommitError::Unclaimed,
        }
    }
}

/// See the module head.
pub struct ManifestStore {
    store: Arc<dyn ObjectStore>,
    keys: Arc<dyn TenantKeySource>,
    entropy: Arc<dyn Entropy>,
    shard: u32,
    epoch: u64,
    checkpoint_every: u64,
    last_root: u64,
    last_digest: Digest,
    /// The last record's.
    number: u64,
    /// Of the last record.
    flushed_lsn: u64,
    parts: Parts,
    clock: Option<ClockMark>,
    stopped: Option<Stop>,
}

impl std::fmt::Debug for ManifestStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManifestStore")
            .field("number", &self.number)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// Numbers of the objects in a folder, ascending.
pub(crate) async fn numbers(
    store: &dyn ObjectStore,
    folder: &str,
) -> Result<Vec<u64>, object_store::Error> {
    let objects: Vec<_> = store.list(Some(&Path::from(folder))).try_collect().await?;
    let mut out: Vec<u64> =
        objects.iter().filter_map(|m| m.location.filename().and_then(|n| n.parse().ok())).collect();
    out.sort_unstable();
    Ok(out)
}

pub(crate) async fn fetch(
    store: &dyn ObjectStore,
    name: &str,
) -> Result<bytes::Bytes, object_store::Error> {
    store.get(&Path::from(name)).await?.bytes().await
}

async fn create(
    store: &dyn ObjectStore,
    name: &str,
    bytes: Vec<u8>,
) -> Result<(), object_store::Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(&Path::from(name), bytes.into(), options).await.map(|_| ())
}

/// A manifest as loaded: what it says, the last record's digest, the root it started from.
#[derive(Default)]
struct Loaded {
    number: u64,
    epoch: u64,
    flushed_lsn: u64,
    parts: Parts,
    digest: Digest,
    root: u64,
    clock: Option<ClockMark>,
}

/// All that is committed, open at once: for checks, not for a server.
pub(crate) async fn load_all(
    store: &dyn ObjectStore,
    keys: &dyn TenantKeySource,
    shard: u32,
) -> Result<Manifest, ManifestError> {
    let loaded = load(store, keys, shard).await?;
    let head = (loaded.number, loaded.epoch, loaded.flushed_lsn);
    let name = record_name(shard, loaded.number);
    let whole = loaded.parts.into_manifest(head);
    whole.map_err(|source| ManifestError::Record { name, source })
}

async fn load(
    store: &dyn ObjectStore,
    keys: &dyn TenantKeySource,
    shard: u32,
) -> Result<Loaded, ManifestError> {
    let roots = numbers(store, &format!("shard/{shard}/c")).await?;
    let records = numbers(store, &format!("shard/{shard}/m")).await?;
    let mut loaded = Loaded::default();
    if let Some(root) = roots.last() {
        let name = root_name(shard, *root);
        let bytes = fetch(store, &name).await?;
        let head =
            record::decode_leaves(&name, &bytes, keys, |id, json| loaded.parts.put_leaf(id, json))
                .map_err(|source| ManifestError::Record { name, source })?;
        loaded = Loaded { digest: head.previous, root: *root, clock: head.clock, ..loaded };
        (loaded.number, loaded.epoch, loaded.flushed_lsn) =
            (head.number, head.epoch, head.flushed_lsn);
    }
    let mut changed = BTreeSet::new();
    for number in records.iter().copied().filter(|n| *n > loaded.root) {
        let name = record_name(shard, number);
        if number != loaded.number + 1 {
            let detail = format!("record {} is missing before it", loaded.number + 1);
            return Err(ManifestError::Chain { name, detail });
        }
        let bytes = fetch(store, &name).await?;
        let (head, tenants) = record::decode::<TenantDelta>(&name, &bytes, keys)
            .map_err(|source| ManifestError::Record { name: name.clone(), source })?;
        let follows = head.previous == loaded.digest || planted(Bug::ChecksumIgnored);
        if !follows || head.epoch < loaded.epoch {
            let detail = "it does not follow the record before it".to_owned();
            return Err(ManifestError::Chain { name, detail });
        }
        let whose = |source| ManifestError::Record { name: name.clone(), source };
        put_deltas(&mut loaded.parts, &tenants).map_err(whose)?;
        changed.extend(tenants.into_keys());
        (loaded.number, loaded.epoch, loaded.flushed_lsn) =
            (head.number, head.epoch, head.flushed_lsn);
        loaded.clock = head.clock;
        loaded.digest = record::digest_of(&bytes);
    }
    // Those of the last records stay open until the end, or each record would pack them again.
    for id in &changed {
        let name = record_name(shard, loaded.number);
        loaded.parts.pack(id).map_err(|source| ManifestError::Record { name, source })?;
    }
    Ok(loaded)
}

/// Puts what a record says in the place of what was there.
fn put_deltas(
    parts: &mut Parts,
    tenants: &BTreeMap<TenantId, TenantDelta>,
) -> Result<(), RecordError> {
    for (id, delta) in tenants {
        let before = parts.get(id)?.unwrap_or_default();
        parts.put(*id, Arc::new(before.with(delta)))?;
    }
    Ok(())
}

pub(crate) fn apply(
    now: &Manifest,
    head: &Head,
    tenants: &BTreeMap<TenantId, TenantDelta>,
) -> Manifest {
    let mut next = now.clone();
    next.number = head.number;
    next.epoch = head.epoch;
    next.flushed_lsn = head.flushed_lsn;
    for (id, delta) in tenants {
        let before = next.tenants.get(id).cloned().unwrap_or_default();
        next.tenants.insert(*id, Arc::new(before.with(delta)));
    }
    next
}

impl ManifestStore {
    /// Claims the next epoch, loads, and fences older owners.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        keys: Arc<dyn TenantKeySource>,
        entropy: Arc<dyn Entropy>,
        shard: u32,
        checkpoint_every: u64,
    ) -> Result<Self, ManifestError> {
        let mut epoch = highest_claim(store.as_ref(), shard).await? + 1;
        loop {
            match create(store.as_ref(), &claim_name(shard, epoch), Vec::new()).await {
                Ok(()) => break,
                Err(object_store::Error::AlreadyExists { .. }) => epoch += 1,
                Err(e) => return Err(e.into()),
            }
        }
        for _ in 0..FENCE_ATTEMPTS {
            let loaded = load(store.as_ref(), keys.as_ref(), shard).await?;
            let mut this = Self {
                store: Arc::clone(&store),
                keys: Arc::clone(&keys),
                entropy: Arc::clone(&entropy),
                shard,
                epoch,
                checkpoint_every: checkpoint_every.max(1),
                last_root: loaded.root,
                last_digest: loaded.digest,
                number: loaded.number,
                flushed_lsn: loaded.flushed_lsn,
                parts: loaded.parts,
                clock: loaded.clock,
                stopped: None,
            };
            let fence = Delta { flushed_lsn: this.flushed_lsn, tenants: BTreeMap::new() };
            match this.commit(fence).await {
                Ok(_) => {
                    this.remove_old_claims().await?;
                    return Ok(this);
                }
                // The older owner took the number first: load what it wrote and try the next.
                Err(CommitError::Fenced { seen, .. }) if seen < epoch => {}
                Err(e) => return Err(ManifestError::Fence(Box::new(e))),
            }
        }
        Err(ManifestError::Contended)
    }

    /// Loads without a claim, for a disk that takes none: everything can be read, and nothing is
    /// committed until the shard is opened again.
    pub async fn load_unclaimed(
        store: Arc<dyn ObjectStore>,
        keys: Arc<dyn TenantKeySource>,
        entropy: Arc<dyn Entropy>,
        shard: u32,
    ) -> Result<Self, ManifestError> {
        let loaded = load(store.as_ref(), keys.as_ref(), shard).await?;
        Ok(Self {
            store,
            keys,
            entropy,
            shard,
            epoch: 0,
            checkpoint_every: u64::MAX,
            last_root: loaded.root,
            last_digest: loaded.digest,
            number: loaded.number,
            flushed_lsn: loaded.flushed_lsn,
            parts: loaded.parts,
            clock: loaded.clock,
            stopped: Some(Stop::Unclaimed),
        })
    }

    /// Whether this owner has stopped for a reason that opening the shard again mends.
    pub(crate) fn wants_reopening(&self) -> bool {
        matches!(self.stopped, Some(Stop::Unknown { .. } | Stop::Unclaimed))
    }

    /// The number of the last record.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Log records up to here are in files.
    pub fn flushed_lsn(&self) -> u64 {
        self.flushed_lsn
    }

    /// What is committed of one tenant; `None` if nothing is.
    pub fn tenant(&self, id: &TenantId) -> Result<Option<Arc<TenantManifest>>, RecordError> {
        self.parts.get(id)
    }

    /// Tenants of which something is committed.
    pub fn tenants(&self) -> Vec<TenantId> {
        self.parts.ids().copied().collect()
    }

    /// The trusted clock of the last record.
    pub fn clock(&self) -> Option<ClockMark> {
        self.clock
    }

    /// What the records from the next one on say of the clock.
    pub(crate) fn set_clock(&mut self, mark: Option<ClockMark>) {
        self.clock = mark.or(self.clock);
    }

    fn heading(&self, number: u64, nonce: [u8; 16], flushed_lsn: u64) -> Heading {
        let (epoch, previous, clock) = (self.epoch, self.last_digest, self.clock);
        Heading { number, epoch, nonce, previous, flushed_lsn, clock }
    }

    /// Keeps a tenant's part small until it is changed again.
    pub(crate) fn pack(&mut self, id: &TenantId) -> Result<Option<Packed>, RecordError> {
        self.parts.pack(id)
    }

    /// What names the objects in the store.
    pub(crate) fn objects(&self) -> &Objects {
        self.parts.objects()
    }

    /// All that is committed, open at once.
    #[cfg(test)]
    pub(crate) fn current(&self) -> Manifest {
        let head = (self.number, self.epoch, self.flushed_lsn);
        self.parts.clone().into_manifest(head).expect("what was packed opens")
    }

    /// The tenants that a delta changes, as they are.
    fn touched(&self, delta: &Delta) -> Result<Manifest, RecordError> {
        let (number, epoch, flushed_lsn) = (self.number, self.epoch, self.flushed_lsn);
        let mut tenants = BTreeMap::new();
        for id in delta.tenants.keys() {
            tenants.extend(self.parts.get(id)?.map(|part| (*id, part)));
        }
        Ok(Manifest { number, epoch, flushed_lsn, tenants })
    }

    /// Commits a delta; returns the record's number.
    pub async fn commit(&mut self, delta: Delta) -> Result<u64, CommitError> {
        if let Some(stop) = &self.stopped {
            return Err(stop.error(self.epoch));
        }
        invariants::check(&self.touched(&delta)?, &delta)?;
        let number = self.number + 1;
        let name = record_name(self.shard, number);
        let nonce: [u8; 16] = random_bytes(self.entropy.as_ref());
        let head = self.heading(number, nonce, delta.flushed_lsn);
        let bytes =
            record::encode(&name, head, &delta.tenants, self.keys.as_ref(), self.entropy.as_ref())?;
        let digest = record::digest_of(&bytes);
        if let Err(e) = create(self.store.as_ref(), &name, bytes.clone()).await {
            self.settle(&name, &nonce, bytes, e).await?;
        }
        self.check_owner().await?;
        if let Err(e) = put_deltas(&mut self.parts, &delta.tenants) {
            // Committed, but what it changed cannot be told here any more.
            return Err(self.stop(Stop::Unknown { name, detail: e.to_string() }));
        }
        (self.number, self.flushed_lsn, self.last_digest) = (number, delta.flushed_lsn, digest);
        if number >= self.last_root + self.checkpoint_every
            && let Err(error) = self.checkpoint().await
        {
            // The records are the truth; a checkpoint only makes the next start shorter.
            tracing::warn!(%error, "a manifest checkpoint failed and is tried after the next commit");
        }
        Ok(number)
    }

    /// Fails, now and for ever, if another owner has claimed a higher epoch. Whatever is decided
    /// from a listing made before this call is decided against the newest owner's objects too.
    pub(crate) async fn check_owner(&mut self) -> Result<(), CommitError> {
        if planted(Bug::EpochCheckSkipped) {
            return Ok(());
        }
        if let Some(stop) = &self.stopped {
            return Err(stop.error(self.epoch));
        }
        match highest_claim(self.store.as_ref(), self.shard).await {
            Ok(highest) if highest > self.epoch => Err(self.stop(Stop::Fenced(highest))),
            Ok(_) => Ok(()),
            // Perhaps written, and perhaps no owner any more.
            Err(e) => {
                let name = record_name(self.shard, self.number + 1);
                Err(self.stop(Stop::Unknown { name, detail: e.to_string() }))
            }
        }
    }

    fn stop(&mut self, stop: Stop) -> CommitError {
        let error = stop.error(self.epoch);
        self.stopped = Some(stop);
        error
    }

    /// A create that failed: was it ours after all, somebody else's, or did nothing happen?
    async fn settle(
        &mut self,
        name: &str,
        nonce: &[u8; 16],
        bytes: Vec<u8>,
        error: object_store::Error,
    ) -> Result<(), CommitError> {
        let unknown = |e: &object_store::Error| Stop::Unknown {
            name: name.to_owned(),
            detail: e.to_string(),
        };
        if !matches!(error, object_store::Error::AlreadyExists { .. }) {
            match create(self.store.as_ref(), name, bytes).await {
                Ok(()) => return Ok(()),
                Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(_) => match self.store.head(&Path::from(name)).await {
                    Err(object_store::Error::NotFound { .. }) => {
                        return Err(CommitError::Store(error));
                    }
                    // It reads, but nothing says that it stays.
                    Ok(_) | Err(_) => return Err(self.stop(unknown(&error))),
                },
            }
        }
        let found = match fetch(self.store.as_ref(), name).await {
            Ok(found) => found,
            Err(e) => return Err(self.stop(unknown(&e))),
        };
        let head = match record::decode::<TenantDelta>(name, &found, self.keys.as_ref()) {
            Ok((head, _)) => head,
            Err(e) => {
                let detail = e.to_string();
                return Err(self.stop(Stop::Unknown { name: name.to_owned(), detail }));
            }
        };
        if head.nonce == *nonce {
            return Ok(());
        }
        if head.epoch == self.epoch {
            // An earlier attempt of this owner, thought lost, has landed after all.
            return Err(self.stop(unknown(&error)));
        }
        Err(self.stop(Stop::Fenced(head.epoch)))
    }

    async fn checkpoint(&mut self) -> Result<(), CommitError> {
        let number = self.number;
        let name = root_name(self.shard, number);
        let nonce = random_bytes(self.entropy.as_ref());
        let head = self.heading(number, nonce, self.flushed_lsn);
        let mut leaves = self.parts.leaves();
        let _missed = planted(Bug::CheckpointIncomplete).then(|| leaves.next_back());
        let (keys, entropy) = (self.keys.as_ref(), self.entropy.as_ref());
        let bytes = record::encode_leaves(&name, head, leaves, keys, entropy)?;
        create(self.store.as_ref(), &name, bytes).await.map_err(CommitError::Store)?;
        self.last_root = number;
        self.remove_before_kept_roots().await.map_err(CommitError::Store)
    }

    /// Records that no kept root needs, oldest first, so that a crash leaves no hole.
    async fn remove_before_kept_roots(&self) -> Result<(), object_store::Error> {
        let roots = numbers(self.store.as_ref(), &format!("shard/{}/c", self.shard)).await?;
        let Some(oldest) = roots.iter().rev().nth(ROOTS_KEPT - 1) else { return Ok(()) };
        let records = numbers(self.store.as_ref(), &format!("shard/{}/m", self.shard)).await?;
        for number in records.iter().filter(|n| *n <= oldest) {
            self.store.delete(&Path::from(record_name(self.shard, *number))).await?;
        }
        for root in roots.iter().filter(|r| *r < oldest) {
            self.store.delete(&Path::from(root_name(self.shard, *root))).await?;
        }
        Ok(())
    }

    async fn remove_old_claims(&self) -> Result<(), object_store::Error> {
        let claims = numbers(self.store.as_ref(), &format!("shard/{}/epoch", self.shard)).await?;
        for old in claims.iter().filter(|e| **e + 1 < self.epoch) {
            self.store.delete(&Path::from(claim_name(self.shard, *old))).await?;
        }
        Ok(())
    }
}

async fn highest_claim(store: &dyn ObjectStore, shard: u32) -> Result<u64, object_store::Error> {
    let claims = numbers(store, &format!("shard/{shard}/epoch")).await?;
    Ok(claims.last().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests;
