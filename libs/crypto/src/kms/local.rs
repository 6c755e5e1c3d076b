//! Root keys in one local file: for development and single sites.
//!
//! Format of the file (mode 0600, refused if looser): JSON `{"version":1,"keys":{id: hex}}`.
//! Owns: the file. Never: logs or returns its keys; keeps a destroyed key.
//! Limit, stated plainly: whoever can read this file can read the data; a real deployment keeps
//! roots in an HSM or a KMS.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::aead::{Aad, Nonce};
use millrace_platform::{
    disk::{Disk, read_file},
    durable,
    entropy::{Entropy, random_bytes},
};
use zeroize::{Zeroize, Zeroizing};

use super::{KeyProvider, KmsError, RootKeyId, WrapContext, WrappedKey};
use crate::{aead::less_safe, key::Key256};

const FILE_BYTES_MAX: u64 = 1 << 20;

/// See the module head.
pub struct LocalKeyFile {
    disk: Arc<dyn Disk>,
    entropy: Arc<dyn Entropy>,
    path: PathBuf,
    keys: Mutex<BTreeMap<String, Key256>>,
}

impl std::fmt::Debug for LocalKeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalKeyFile").field("path", &self.path).finish_non_exhaustive()
    }
}

fn unavailable(path: &Path, e: impl std::fmt::Display) -> KmsError {
    KmsError::Unavailable(format!("{}: {e}", path.display()))
}

impl LocalKeyFile {
    /// Opens the file, or starts without keys if there is none.
    pub fn open(
        disk: Arc<dyn Disk>,
        entropy: Arc<dyn Entropy>,
        path: &Path,
    ) -> Result<Self, KmsError> {
        let mut keys = BTreeMap::new();
        if disk.exists(path).map_err(|e| unavailable(path, e))? {
            let mode = disk.mode(path).map_err(|e| unavailable(path, e))?;
            if mode & 0o077 != 0 {
                return Err(KmsError::Loose { path: path.display().to_string(), mode });
            }
            let bytes =
                read_file(disk.as_ref(), path, FILE_BYTES_MAX).map_err(|e| unavailable(path, e))?;
            keys = decode(&Zeroizing::new(bytes)).ok_or_else(|| {
                unavailable(
                    path,
                    "it is not a Millrace root key file; restore it from its escrow copy",
                )
            })?;
        }
        Ok(Self { disk, entropy, path: path.to_path_buf(), keys: Mutex::new(keys) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Key256>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, keys: &BTreeMap<String, Key256>) -> Result<(), KmsError> {
        let mut text = Zeroizing::new(String::from("{\"version\":1,\"keys\":{"));
        for (i, (id, key)) in keys.iter().enumerate() {
            let mut digits = hex::encode(key.expose());
            if i > 0 {
                text.push(',');
            }
            text.push_str(&format!("\"{id}\":\""));
            text.push_str(&digits);
            text.push('"');
            digits.zeroize();
        }
        text.push_str("}}\n");
        durable::replace(self.disk.as_ref(), &self.path, text.as_bytes())
            .map_err(|e| unavailable(&self.path, e))
    }
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<String, Key256>> {
    #[derive(serde::Deserialize)]
    struct File {
        version: u32,
        keys: BTreeMap<String, String>,
    }
    let file: File = serde_json::from_slice(bytes).ok()?;
    if file.version != 1 {
        return None;
    }
    file.keys
        .into_iter()
        .map(|(id, mut digits)| {
            let mut key = Zeroizing::new([0u8; 32]);
            let done = hex::decode_to_slice(&digits, key.as_mut_slice());
            digits.zeroize();
            done.ok().map(|()| (id, Key256::new(*key)))
        })
        .collect()
}

impl KeyProvider for LocalKeyFile {
    fn create(&self) -> Result<RootKeyId, KmsError> {
        let mut keys = self.lock();
        let id = format!("local-{}", hex::encode(random_bytes::<8>(self.entropy.as_ref())));
        keys.insert(id.clone(), Key256::random(self.entropy.as_ref()));
        if let Err(e) = self.save(&keys) {
            keys.remove(&id);
            return Err(e);
        }
        Ok(RootKeyId(id))
    }

    fn wrap(
        &self,
        root: &RootKeyId,
        key: &Key256,
        context: &WrapContext,
    ) -> Result<WrappedKey, KmsError> {
        let keys = self.lock();
        let root_key = keys.get(&root.0).ok_or_else(|| KmsError::Gone(root.0.clone()))?;
        let nonce: [u8; 12] = random_bytes(self.entropy.as_ref());
        let mut body = Zeroizing::new(key.expose().to_vec());
        less_safe(root_key)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.aad()),
                &mut *body,
            )
            .map_err(|_| KmsError::Unavailable("sealing failed".to_owned()))?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&body);
        Ok(WrappedKey { root: root.clone(), bytes })
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &WrapContext) -> Result<Key256, KmsError> {
        let keys = self.lock();
        let root_key =
            keys.get(&wrapped.root.0).ok_or_else(|| KmsError::Gone(wrapped.root.0.clone()))?;
        let (nonce, body) = wrapped.bytes.split_first_chunk::<12>().ok_or(KmsError::Forged)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain = less_safe(root_key)
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(context.aad()),
                &mut body,
            )
            .map_err(|_| KmsError::Forged)?;
        let key: [u8; 32] = plain.as_ref().try_into().map_err(|_| KmsError::Forged)?;
        Ok(Key256::new(key))
    }

    fn destroy(&self, root: &RootKeyId) -> Result<(), KmsError> {
        let mut keys = self.lock();
        if let Some(key) = keys.remove(&root.0)
            && let Err(e) = self.save(&keys)
        {
            keys.insert(root.0.clone(), key);
            return Err(e);
        }
        Ok(())
    }

    fn is_destroyed(&self, root: &RootKeyId) -> Result<bool, KmsError> {
        Ok(!self.lock().contains_key(&root.0))
    }
}

#[cfg(test)]
mod tests {
    use millrace_platform::{
        disk::RealDisk,
        entropy::OsEntropy,
        sim::{SimDisk, SimEntropy},
    };

    use super::*;

    #[test]
    fn the_local_file_keeps_the_provider_contract() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/k")).unwrap();
        let open = || {
            LocalKeyFile::open(
                Arc::new(disk.clone()),
                Arc::new(SimEntropy::seeded(1)),
                Path::new("/k/root.key"),
            )
            .unwrap()
        };
        super::super::contract::check(&open());
        let provider = open();
        let id = provider.create().unwrap();
        disk.power_cycle(&SimEntropy::seeded(2));
        assert!(!open().is_destroyed(&id).unwrap(), "a created root key survives a power cut");
    }

    #[test]
    fn d6_a_key_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.key");
        let open = || LocalKeyFile::open(Arc::new(RealDisk), Arc::new(OsEntropy), &path);
        open().unwrap().create().unwrap();
        assert_eq!(RealDisk.mode(&path).unwrap(), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(open(), Err(KmsError::Loose { mode: 0o640, .. })));
    }
}
