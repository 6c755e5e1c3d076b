//! Open column files: footer and series directory decoded once, kept in a bounded cache.
//!
//! Owns: the cache. Its keys carry the tenant; [`FileCache::purge`] empties a tenant's part when
//! its keys are destroyed. Never: holds decoded rows.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use millrace_crypto::key::TenantKeySource;
use millrace_protocol::ids::TenantId;
use object_store::ObjectStore;

use crate::{
    column_file::reader::{ColumnFile, ColumnFileError},
    manifest::FileEntry,
};

type Key = (TenantId, [u8; 16]);

#[derive(Debug, Default)]
struct Cached {
    files: BTreeMap<Key, (u64, Arc<ColumnFile>)>,
    clock: u64,
}

/// Open files, least recently used out first.
#[derive(Debug)]
pub(crate) struct FileCache {
    cached: Mutex<Cached>,
    max: usize,
}

impl FileCache {
    /// A cache of at most `max` files.
    pub(crate) fn new(max: usize) -> Self {
        Self { cached: Mutex::default(), max: max.max(1) }
    }

    fn get(&self, key: &Key) -> Option<Arc<ColumnFile>> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.clock += 1;
        let now = cached.clock;
        let (used, file) = cached.files.get_mut(key)?;
        *used = now;
        Some(Arc::clone(file))
    }

    fn put(&self, key: Key, file: Arc<ColumnFile>) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.clock += 1;
        let now = cached.clock;
        cached.files.insert(key, (now, file));
        while cached.files.len() > self.max {
            let oldest = cached.files.iter().min_by_key(|(_, (used, _))| *used).map(|(k, _)| *k);
            match oldest {
                Some(key) => cached.files.remove(&key),
                None => break,
            };
        }
    }

    /// Forgets files that are no longer in the manifest.
    pub(crate) fn forget(&self, tenant: TenantId, ids: &[[u8; 16]]) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            cached.files.remove(&(tenant, *id));
        }
    }

    /// Forgets everything of a tenant.
    pub(crate) fn purge(&self, tenant: TenantId) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.files.retain(|(owner, _), _| *owner != tenant);
    }
}

/// What a reader needs to open one tenant's files.
#[derive(Clone)]
pub(crate) struct FileAccess {
    pub(crate) tenant: TenantId,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) keys: Arc<dyn TenantKeySource>,
    pub(crate) cache: Arc<FileCache>,
}

impl fmt::Debug for FileAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileAccess").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl FileAccess {
    /// The open file of an entry.
    pub(crate) async fn open(&self, entry: &FileEntry) -> Result<Arc<ColumnFile>, ColumnFileError> {
        let key = (self.tenant, entry.id);
        if let Some(file) = self.cache.get(&key) {
            return Ok(file);
        }
        let file = ColumnFile::open(
            Arc::clone(&self.store),
            Arc::clone(&self.keys),
            self.tenant,
            entry.parquet.clone(),
            entry.directory.clone(),
        )
        .await?;
        let file = Arc::new(file);
        self.cache.put(key, Arc::clone(&file));
        Ok(file)
    }
}
