//! Key providers: who holds the root keys that wrap everything else.
//!
//! Owns: the trait and its contract. Providers: a local file (`kms/local.rs`) and any PKCS#11
//! token (`kms/pkcs11.rs`).
//! Never: returns a root key; wraps without a context.

#[cfg(test)]
mod contract;
pub mod local;
pub mod pkcs11;

use serde::{Deserialize, Serialize};

use crate::key::Key256;

/// Which root key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RootKeyId(pub String);

/// A key wrapped by a root key. Not secret, but useless without the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The root key that unwraps it.
    pub root: RootKeyId,
    /// Provider-specific bytes.
    pub bytes: Vec<u8>,
}

/// What a wrapped key is for; authenticated, so a wrap cannot stand elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapContext {
    /// What the key does, for instance `tenant-key`.
    pub purpose: &'static str,
    /// Whose it is.
    pub tenant: [u8; 16],
    /// Which version.
    pub version: u32,
}

impl WrapContext {
    /// The bytes that are authenticated.
    pub fn aad(&self) -> Vec<u8> {
        let mut out = b"millrace wrap v1".to_vec();
        out.extend_from_slice(&(self.purpose.len() as u32).to_le_bytes());
        out.extend_from_slice(self.purpose.as_bytes());
        out.extend_from_slice(&self.tenant);
        out.extend_from_slice(&self.version.to_le_bytes());
        out
    }
}

/// Why a provider cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KmsError {
    /// The root key is destroyed or was never made.
    #[error("root key `{0}` does not exist or is destroyed")]
    Gone(String),
    /// The wrapped bytes or their context were changed.
    #[error("the wrapped key does not open: it was changed or belongs elsewhere")]
    Forged,
    /// The key file may be read by others.
    #[error(
        "{path} has mode {mode:o}; it must be 600 so that only its owner can read it: chmod 600 {path}"
    )]
    Loose {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The provider cannot be reached or refuses.
    #[error("the key provider cannot be used: {0}")]
    Unavailable(String),
}

/// Holds root keys and wraps other keys under them.
pub trait KeyProvider: Send + Sync {
    /// Makes a root key that has not existed before.
    fn create(&self) -> Result<RootKeyId, KmsError>;
    /// Wraps `key` for `context`.
    fn wrap(
        &self,
        root: &RootKeyId,
        key: &Key256,
        context: &WrapContext,
    ) -> Result<WrappedKey, KmsError>;
    /// Unwraps; fails with [`KmsError::Forged`] in another context.
    fn unwrap(&self, wrapped: &WrappedKey, context: &WrapContext) -> Result<Key256, KmsError>;
    /// Destroys a root key for good. Destroying it again is fine.
    fn destroy(&self, root: &RootKeyId) -> Result<(), KmsError>;
    /// Whether a root key is destroyed (or never was).
    fn is_destroyed(&self, root: &RootKeyId) -> Result<bool, KmsError>;
}
