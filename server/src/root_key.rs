//! Where the root key lives: in a file of the data directory, or in a PKCS#11 token.
//!
//! The choice is made at the first start and stands in `keys/provider.json`, so that later starts
//! and the administrative commands need no options; it holds places, never the PIN. Another kind
//! is refused, because a ledger opens only with the provider that made its root. A token's module
//! or PIN file may move: options given at a later start replace the stored ones.
//! Owns: that file. Never: reads a PIN itself, or falls back from the token to a file.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_crypto::kms::{
    KeyProvider, KmsError,
    local::LocalKeyFile,
    pkcs11::{Pin, Pkcs11Token},
};
use millrace_platform::{
    disk::{Disk, read_file},
    durable,
    entropy::Entropy,
};
use serde::{Deserialize, Serialize};

const FILE: &str = "provider.json";
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Who holds the root key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "provider", rename_all = "lowercase", deny_unknown_fields)]
pub enum RootKey {
    /// `keys/root.key`, mode 0600.
    File,
    /// A token: an HSM, or SoftHSM.
    Pkcs11 {
        /// The PKCS#11 library.
        module: PathBuf,
        /// The token's label.
        token: String,
        /// File with the PIN, mode 0600 or tighter.
        pin_file: PathBuf,
    },
}

impl RootKey {
    const fn kind(&self) -> &'static str {
        match self {
            Self::File => "a local file",
            Self::Pkcs11 { .. } => "a PKCS#11 token",
        }
    }
}

/// Why the root key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootKeyError {
    /// The provider.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The file that says which provider.
    #[error("{path}: {detail}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// Another provider than at the first start.
    #[error(
        "the keys of this data directory were made with {stored}, not with {asked}; start it as before (keys/provider.json says how)"
    )]
    Changed {
        /// What made the keys.
        stored: &'static str,
        /// What was asked for now.
        asked: &'static str,
    },
}

/// Opens the provider of the data directory's `keys` folder. `asked` is what the options say, if
/// they say anything.
pub fn open(
    disk: &Arc<dyn Disk>,
    entropy: &Arc<dyn Entropy>,
    keys: &Path,
    asked: Option<RootKey>,
) -> Result<Arc<dyn KeyProvider>, RootKeyError> {
    let path = keys.join(FILE);
    let stored = stored(disk.as_ref(), keys, &path)?;
    if let (Some(stored), Some(asked)) = (&stored, &asked)
        && stored.kind() != asked.kind()
    {
        return Err(RootKeyError::Changed { stored: stored.kind(), asked: asked.kind() });
    }
    let chosen = asked.or_else(|| stored.clone()).unwrap_or(RootKey::File);
    let provider = provider(disk, entropy, keys, &chosen)?;
    // Only a choice that opened is kept.
    if stored.as_ref() != Some(&chosen) {
        let fail = |detail: String| RootKeyError::File { path: path.clone(), detail };
        let json = serde_json::to_vec_pretty(&chosen).map_err(|e| fail(e.to_string()))?;
        durable::replace(disk.as_ref(), &path, &json).map_err(|e| fail(e.to_string()))?;
    }
    Ok(provider)
}

fn stored(disk: &dyn Disk, keys: &Path, path: &Path) -> Result<Option<RootKey>, RootKeyError> {
    let fail = |detail: String| RootKeyError::File { path: path.to_path_buf(), detail };
    if !disk.exists(path).map_err(|e| fail(e.to_string()))? {
        // A folder from before the file was written has its key in a file.
        let made = disk.exists(&keys.join("ledger.json")).map_err(|e| fail(e.to_string()))?;
        return Ok(made.then_some(RootKey::File));
    }
    let bytes = read_file(disk, path, FILE_BYTES_MAX).map_err(|e| fail(e.to_string()))?;
    let root = serde_json::from_slice(&bytes)
        .map_err(|e| fail(format!("it does not say where the root key is: {e}")))?;
    Ok(Some(root))
}

fn provider(
    disk: &Arc<dyn Disk>,
    entropy: &Arc<dyn Entropy>,
    keys: &Path,
    chosen: &RootKey,
) -> Result<Arc<dyn KeyProvider>, KmsError> {
    Ok(match chosen {
        RootKey::File => Arc::new(LocalKeyFile::open(
            Arc::clone(disk),
            Arc::clone(entropy),
            &keys.join("root.key"),
        )?),
        RootKey::Pkcs11 { module, token, pin_file } => {
            let pin = Pin::from_file(disk.as_ref(), pin_file)?;
            Arc::new(Pkcs11Token::open(module, token, pin, Arc::clone(entropy))?)
        }
    })
}

#[cfg(test)]
mod tests {
    use millrace_platform::sim::{disk::SimDisk, entropy::SimEntropy};

    use super::*;

    fn world() -> (Arc<dyn Disk>, Arc<dyn Entropy>, PathBuf) {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let keys = PathBuf::from("/data/keys");
        disk.create_dir_all(&keys).unwrap();
        (disk, Arc::new(SimEntropy::seeded(1)), keys)
    }

    fn token() -> RootKey {
        RootKey::Pkcs11 {
            module: "/nowhere/module.so".into(),
            token: "t".into(),
            pin_file: "/data/pin".into(),
        }
    }

    #[test]
    fn d6_the_first_choice_is_kept_and_another_kind_is_refused() {
        let (disk, entropy, keys) = world();
        open(&disk, &entropy, &keys, None).unwrap();
        open(&disk, &entropy, &keys, Some(RootKey::File)).unwrap();
        let refused = open(&disk, &entropy, &keys, Some(token())).err().unwrap();
        assert!(matches!(refused, RootKeyError::Changed { .. }), "{refused}");
        assert_eq!(stored(disk.as_ref(), &keys, &keys.join(FILE)).unwrap(), Some(RootKey::File));
    }

    #[test]
    fn d6_a_token_that_cannot_be_opened_leaves_no_choice_and_no_key_file() {
        let (disk, entropy, keys) = world();
        assert!(open(&disk, &entropy, &keys, Some(token())).is_err(), "there is no PIN file");
        assert!(!disk.exists(&keys.join(FILE)).unwrap());
        assert!(!disk.exists(&keys.join("root.key")).unwrap());
    }

    #[test]
    fn a_file_that_says_nothing_useful_is_refused_by_name() {
        let (disk, entropy, keys) = world();
        durable::replace(disk.as_ref(), &keys.join(FILE), b"{\"provider\":\"cloud\"}").unwrap();
        let error = open(&disk, &entropy, &keys, None).err().unwrap().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
