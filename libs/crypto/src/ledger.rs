//! The key ledger: every tenant's wrapped keys.
//!
//! Format: JSON `{"version":2,"generation":n,"root":id,"keys":{tenant: [{version, wrapped}]},
//! "destroyed":[tenant]}`, and the tenants made since generation n as one change each
//! (platform's changes.rs) in `changes/`, JSON `{"root":id,"tenant":tenant,"keys":[...]}`. Each key
//! is wrapped by the provider with its tenant and version as authenticated context, so entries
//! cannot be swapped. A destruction stores the whole and removes the changes, before it counts.
//! Owns: creation, look-up and destruction of tenant keys, and the cache of unwrapped ones.
//! Never: keeps a destroyed tenant's key in memory or in the file; gives a destroyed tenant a new
//! one. The tenant of sixteen zero bytes is the system's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_platform::{
    changes::Changes,
    disk::{Disk, read_file},
    durable,
    entropy::Entropy,
};
use serde::{Deserialize, Serialize};

use crate::{
    key::{Key256, KeyError, TenantKeySource, TenantKeys},
    kms::{KeyProvider, KmsError, RootKeyId, WrapContext, WrappedKey},
};

/// The system's own tenant id.
pub const SYSTEM: [u8; 16] = [0; 16];
/// The folder of the changes, beside the ledger.
const CHANGES: &str = "changes";
const LEDGER_BYTES_MAX: u64 = 256 << 20;
/// 1 had no changes beside it.
const FORMAT: u32 = 2;
const PURPOSE: &str = "tenant-key";

/// Why the ledger cannot be opened or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The file.
    #[error("the key ledger {path} cannot be used: {detail}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// The provider.
    #[error(transparent)]
    Provider(#[from] KmsError),
    /// The tenant's keys were destroyed; its id is never used again.
    #[error("the keys of this tenant are destroyed; they cannot be made again")]
    Destroyed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    version: u32,
    wrapped: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct File {
    version: u32,
    generation: u64,
    root: RootKeyId,
    keys: BTreeMap<String, Vec<Entry>>,
    destroyed: BTreeSet<String>,
}

/// One tenant's first key.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Made {
    root: RootKeyId,
    tenant: String,
    keys: Vec<Entry>,
}

struct State {
    file: File,
    changes: Changes,
    open: BTreeMap<([u8; 16], u32), Arc<TenantKeys>>,
}

/// See the module head.
pub struct KeyLedger {
    disk: Arc<dyn Disk>,
    entropy: Arc<dyn Entropy>,
    provider: Arc<dyn KeyProvider>,
    path: PathBuf,
    state: Mutex<State>,
}

impl std::fmt::Debug for KeyLedger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyLedger").field("path", &self.path).finish_non_exhaustive()
    }
}

impl KeyLedger {
    /// Opens the ledger, or makes one with a new root key and the system's keys.
    pub fn open(
        disk: Arc<dyn Disk>,
        entropy: Arc<dyn Entropy>,
        provider: Arc<dyn KeyProvider>,
        path: &Path,
    ) -> Result<Self, LedgerError> {
        let fail = |detail: String| LedgerError::File { path: path.to_path_buf(), detail };
        let exists = disk.exists(path).map_err(|e| fail(e.to_string()))?;
        let mut file = if exists {
            let bytes = read_file(disk.as_ref(), path, LEDGER_BYTES_MAX)
                .map_err(|e| fail(e.to_string()))?;
            let file: File = serde_json::from_slice(&bytes).map_err(|e| {
                fail(format!("{e}; restore it from a backup, without it no data can be read"))
            })?;
            if !(1..=FORMAT).contains(&file.version) {
                return Err(fail(format!("version {} is unknown", file.version)));
            }
            file
        } else {
            File {
                version: FORMAT,
                generation: 0,
                root: provider.create()?,
                keys: BTreeMap::new(),
                destroyed: BTreeSet::new(),
            }
        };
        let dir = path.with_file_name(CHANGES);
        let (changes, made) =
            Changes::open(disk.as_ref(), &dir, file.generation).map_err(|e| fail(e.to_string()))?;
        for (number, bytes) in made {
            let damaged = |e: String| fail(format!("its change {number} does not read: {e}"));
            let made: Made = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
            if made.root != file.root {
                return Err(damaged("it belongs to another ledger".to_owned()));
            }
            file.keys.insert(made.tenant, made.keys);
            file.generation = number;
        }
        let state = Mutex::new(State { file, changes, open: BTreeMap::new() });
        let ledger = Self { disk, entropy, provider, path: path.to_path_buf(), state };
        ledger.create(&SYSTEM)?;
        Ok(ledger)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, e: &dyn std::fmt::Display) -> LedgerError {
        LedgerError::File { path: self.path.clone(), detail: e.to_string() }
    }

    /// Stores the whole.
    fn save(&self, file: &File) -> Result<(), LedgerError> {
        let fail = |detail: String| LedgerError::File { path: self.path.clone(), detail };
        let json = serde_json::to_vec_pretty(file).map_err(|e| fail(e.to_string()))?;
        durable::replace(self.disk.as_ref(), &self.path, &json).map_err(|e| fail(e.to_string()))
    }

    /// Makes a tenant's first key, durably. A tenant that has one keeps it.
    pub fn create(&self, tenant: &[u8; 16]) -> Result<(), LedgerError> {
        let mut state = self.lock();
        let id = hex::encode(tenant);
        if state.file.destroyed.contains(&id) {
            return Err(LedgerError::Destroyed);
        }
        if state.file.keys.contains_key(&id) {
            return Ok(());
        }
        let key = Key256::random(self.entropy.as_ref());
        let context = WrapContext { purpose: PURPOSE, tenant: *tenant, version: 1 };
        let wrapped = self.provider.wrap(&state.file.root, &key, &context)?;
        let keys = vec![Entry { version: 1, wrapped: hex::encode(&wrapped.bytes) }];
        let number = state.file.generation + 1;
        // The first one makes the file itself; one of an older format does not say that it has changes.
        let whole = number == 1 || state.file.version < FORMAT;
        if whole || state.changes.fold_due(state.file.keys.len()) {
            let mut next = state.file.clone();
            (next.version, next.generation) = (FORMAT, number);
            next.keys.insert(id, keys);
            self.save(&next)?;
            state.file = next;
            // What the whole has counts for nothing any more: the next start removes it, too.
            if let Err(e) = state.changes.folded(self.disk.as_ref(), number) {
                tracing::warn!(error = %e, "changes of the key ledger stay until the next start");
            }
            return Ok(());
        }
        let made = Made { root: state.file.root.clone(), tenant: id, keys };
        let json = serde_json::to_vec(&made).map_err(|e| self.fail(&e))?;
        state.changes.append(self.disk.as_ref(), number, &json).map_err(|e| self.fail(&e))?;
        state.file.generation = number;
        state.file.keys.insert(made.tenant, made.keys);
        Ok(())
    }

    /// Destroys all keys of a tenant, durably: whatever they sealed can never be read again.
    pub fn destroy(&self, tenant: &[u8; 16]) -> Result<(), LedgerError> {
        let mut state = self.lock();
        let id = hex::encode(tenant);
        let mut next = state.file.clone();
        (next.version, next.generation) = (FORMAT, next.generation + 1);
        next.keys.remove(&id);
        next.destroyed.insert(id);
        self.save(&next)?;
        let last = next.generation;
        state.file = next;
        state.open.retain(|(owner, _), _| owner != tenant);
        // One of the changes may hold the key: it is gone when its file is.
        state.changes.folded(self.disk.as_ref(), last).map_err(|e| self.fail(&e))
    }

    /// Whether any tenant but the system itself has, or had, keys here.
    pub fn has_tenants(&self) -> bool {
        let state = self.lock();
        let system = hex::encode(SYSTEM);
        !state.file.destroyed.is_empty() || state.file.keys.keys().any(|id| *id != system)
    }

    /// How often the ledger has changed.
    pub fn generation(&self) -> u64 {
        self.lock().file.generation
    }

    fn open_key(
        &self,
        state: &mut State,
        tenant: &[u8; 16],
        version: Option<u32>,
    ) -> Result<Arc<TenantKeys>, KeyError> {
        let id = hex::encode(tenant);
        if state.file.destroyed.contains(&id) {
            return Err(KeyError::Gone { tenant: id });
        }
        let entries =
            state.file.keys.get(&id).ok_or_else(|| KeyError::Unlisted { tenant: id.clone() })?;
        let entry = match version {
            None => entries.last(),
            Some(v) => entries.iter().find(|e| e.version == v),
        };
        let entry =
            entry.ok_or(KeyError::UnknownVersion { tenant: id, version: version.unwrap_or(0) })?;
        let version = entry.version;
        if let Some(open) = state.open.get(&(*tenant, version)) {
            return Ok(Arc::clone(open));
        }
        let bytes =
            hex::decode(&entry.wrapped).map_err(|e| KeyError::Unavailable(e.to_string()))?;
        let wrapped = WrappedKey { root: state.file.root.clone(), bytes };
        let context = WrapContext { purpose: PURPOSE, tenant: *tenant, version };
        let key = self
            .provider
            .unwrap(&wrapped, &context)
            .map_err(|e| KeyError::Unavailable(e.to_string()))?;
        let keys = Arc::new(TenantKeys::new(*tenant, version, key));
        state.open.insert((*tenant, version), Arc::clone(&keys));
        Ok(keys)
    }
}

impl TenantKeySource for KeyLedger {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.open_key(&mut self.lock(), tenant, None)
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        self.open_key(&mut self.lock(), tenant, Some(version))
    }
}

#[cfg(test)]
mod tests {
    use millrace_platform::sim::{SimDisk, SimEntropy, disk::Faults};

    use super::*;
    use crate::kms::local::LocalKeyFile;

    fn open(disk: &SimDisk, seed: u64) -> Result<KeyLedger, LedgerError> {
        let entropy: Arc<dyn Entropy> = Arc::new(SimEntropy::seeded(seed));
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let root = Path::new("/keys/root.key");
        let provider = LocalKeyFile::open(Arc::clone(&disk), Arc::clone(&entropy), root)?;
        KeyLedger::open(disk, entropy, Arc::new(provider), Path::new("/keys/ledger.json"))
    }

    fn secret(ledger: &KeyLedger, tenant: &[u8; 16]) -> Option<u64> {
        ledger.current(tenant).ok().map(|k| k.series_secret())
    }

    #[test]
    fn d6_created_keys_survive_and_destroyed_keys_stay_gone_at_every_power_cut() {
        let (kept, doomed) = ([1u8; 16], [2u8; 16]);
        for cut in 0..60 {
            let disk = SimDisk::new();
            disk.create_dir_all(Path::new("/keys")).unwrap();
            let (mut created, mut destroyed, mut value) = (false, false, None);
            disk.set_faults(Faults { cut_after: Some(cut), ..Faults::default() });
            if let Ok(ledger) = open(&disk, 1) {
                created = ledger.create(&kept).is_ok() && ledger.create(&doomed).is_ok();
                if created {
                    value = secret(&ledger, &kept);
                    destroyed = ledger.destroy(&doomed).is_ok();
                    if destroyed {
                        assert!(matches!(ledger.current(&doomed), Err(KeyError::Gone { .. })));
                    }
                }
            }
            disk.power_cycle(&SimEntropy::seeded(cut));
            let ledger = open(&disk, 2).unwrap_or_else(|e| panic!("cut {cut}: {e}"));
            if created {
                assert_eq!(secret(&ledger, &kept), value, "cut {cut}: a tenant's key is lost");
            }
            if destroyed {
                assert!(secret(&ledger, &doomed).is_none(), "cut {cut}: a destroyed key is back");
                assert!(matches!(ledger.create(&doomed), Err(LedgerError::Destroyed)));
            }
        }
    }

    #[test]
    fn d6_a_tenant_that_the_ledger_does_not_list_is_not_taken_for_a_destroyed_one() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/keys")).unwrap();
        let ledger = open(&disk, 1).unwrap();
        let older = read_file(&disk, Path::new("/keys/ledger.json"), 1 << 20).unwrap();
        ledger.create(&[1; 16]).unwrap();
        ledger.destroy(&[2; 16]).unwrap();
        assert!(matches!(ledger.current(&[2; 16]), Err(KeyError::Gone { .. })));
        durable::replace(&disk, Path::new("/keys/ledger.json"), &older).unwrap();
        let ledger = open(&disk, 2).unwrap();
        for tenant in [[1; 16], [2; 16]] {
            assert!(matches!(ledger.current(&tenant), Err(KeyError::Unlisted { .. })));
        }
    }

    fn numbered(n: u32) -> [u8; 16] {
        let mut out = [9; 16];
        out[..4].copy_from_slice(&n.to_le_bytes());
        out
    }

    #[test]
    fn making_a_tenant_costs_the_same_however_many_there_are() {
        use millrace_platform::sim::disk::Op;
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/keys")).unwrap();
        let ledger = open(&disk, 1).unwrap();
        let written = |disk: &SimDisk| -> usize {
            let write = |op| if let Op::Write(_, _, len) = op { len } else { 0 };
            disk.trace().into_iter().map(write).sum()
        };
        let mut costs = Vec::new();
        for round in 0..3u32 {
            let before = written(&disk);
            (0..500).for_each(|n| ledger.create(&numbered(round * 500 + n)).unwrap());
            costs.push(written(&disk) - before);
        }
        // About 240 bytes for the change, and as much for each of a few that are stored again.
        assert!(costs.iter().all(|bytes| *bytes < 500 * 3000), "{costs:?}");
        let values: Vec<_> = (0..1500).map(|n| secret(&ledger, &numbered(n))).collect();
        let generation = ledger.generation();
        drop(ledger);
        let ledger = open(&disk, 2).unwrap();
        assert_eq!(ledger.generation(), generation);
        assert!((0..1500).all(|n| secret(&ledger, &numbered(n)) == values[n as usize]));
    }

    #[test]
    fn d6_a_destroyed_key_is_in_no_file_not_even_wrapped() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/keys")).unwrap();
        let ledger = open(&disk, 1).unwrap();
        (0..5).for_each(|n| ledger.create(&numbered(n)).unwrap());
        let bytes = read_file(&disk, Path::new("/keys/changes/00000000000000000003"), 4096);
        let made: Made = serde_json::from_slice(&bytes.unwrap()).unwrap();
        assert_eq!(made.tenant, hex::encode(numbered(1)));
        ledger.destroy(&numbered(1)).unwrap();
        for path in disk.paths() {
            let bytes = read_file(&disk, &path, 1 << 20).unwrap();
            let key = made.keys[0].wrapped.as_bytes();
            assert!(!bytes.windows(key.len()).any(|w| w == key), "{} has it", path.display());
        }
        ledger.create(&numbered(7)).unwrap();
        drop(ledger);
        let ledger = open(&disk, 2).unwrap();
        assert!(secret(&ledger, &numbered(7)).is_some() && secret(&ledger, &numbered(0)).is_some());
        assert!(matches!(ledger.current(&numbered(1)), Err(KeyError::Gone { .. })));
    }

    #[test]
    fn a_ledger_of_the_first_format_is_taken_and_says_so_before_it_has_changes() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/keys")).unwrap();
        drop(open(&disk, 1).unwrap());
        let path = Path::new("/keys/ledger.json");
        let text = String::from_utf8(read_file(&disk, path, 1 << 20).unwrap()).unwrap();
        let old = text.replace("\"version\": 2", "\"version\": 1");
        assert_ne!(old, text);
        durable::replace(&disk, path, old.as_bytes()).unwrap();
        open(&disk, 2).unwrap().create(&[1; 16]).unwrap();
        let file: File = serde_json::from_slice(&read_file(&disk, path, 1 << 20).unwrap()).unwrap();
        assert_eq!((file.version, file.generation, file.keys.len()), (2, 2, 2));
    }

    #[test]
    fn d6_keys_cannot_be_swapped_between_tenants_in_the_file() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/keys")).unwrap();
        let ledger = open(&disk, 1).unwrap();
        ledger.create(&[1; 16]).unwrap();
        ledger.create(&[2; 16]).unwrap();
        let change = |number| PathBuf::from(format!("/keys/changes/{number:020}"));
        let read = |number| -> Made {
            let bytes = read_file(&disk, &change(number), 1 << 20).unwrap();
            serde_json::from_slice(&bytes).unwrap()
        };
        let swapped = Made { keys: read(2).keys, ..read(3) };
        durable::replace(&disk, &change(3), &serde_json::to_vec(&swapped).unwrap()).unwrap();
        let ledger = open(&disk, 3).unwrap();
        assert!(ledger.current(&[1; 16]).is_ok());
        assert!(matches!(ledger.current(&[2; 16]), Err(KeyError::Unavailable(_))));
    }
}
