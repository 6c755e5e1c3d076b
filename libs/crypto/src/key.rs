//! Keys as types: erased when dropped, never shown, never copied by accident.
//!
//! Owns: [`Key256`], a tenant's key with what is derived from it, and where they come from.
//! Never: implements Debug, Clone, Display or Serialize for a key:
//!
//! ```
//! fn named<T>() {}
//! named::<millrace_crypto::key::Key256>();
//! ```
//! ```compile_fail
//! fn shown<T: std::fmt::Debug>() {}
//! shown::<millrace_crypto::key::Key256>();
//! ```
//! ```compile_fail
//! fn copied<T: Clone>() {}
//! copied::<millrace_crypto::key::Key256>();
//! ```

use std::sync::Arc;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use millrace_platform::entropy::{Entropy, random_bytes};
use zeroize::Zeroize;

/// 256 secret bits, zeroed when dropped.
pub struct Key256([u8; 32]);

impl Drop for Key256 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Key256 {
    /// Takes the bytes; the caller erases its own copy.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new random key.
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self(random_bytes(entropy))
    }

    /// A second copy, said out loud.
    pub fn duplicate(&self) -> Self {
        Self(self.0)
    }

    /// The secret bytes, for seals and wraps only.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// HKDF-SHA-256 (RFC 5869) of this key; `info` names the purpose and everything that the
    /// derived key is bound to.
    pub fn derive(&self, salt: &[u8], info: &[&[u8]]) -> Self {
        let mut out = [0u8; 32];
        self.derive_into(salt, info, &mut out);
        Self(out)
    }

    #[expect(
        clippy::expect_used,
        reason = "HKDF fails only for outputs over 8160 bytes; this is 32"
    )]
    fn derive_into(&self, salt: &[u8], info: &[&[u8]], out: &mut [u8; 32]) {
        struct Len;
        impl KeyType for Len {
            fn len(&self) -> usize {
                32
            }
        }
        Salt::new(HKDF_SHA256, salt)
            .extract(&self.0)
            .expand(info, Len)
            .and_then(|okm| okm.fill(out))
            .expect("HKDF of 32 bytes");
    }
}

/// Why a tenant's key cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Destroyed on purpose: nothing under it can ever be read again, so what it sealed may be
    /// dropped. Nothing but a record of the destruction may say this.
    #[error("the keys of tenant {tenant} are gone")]
    Gone {
        /// The tenant, as hex.
        tenant: String,
    },
    /// The ledger knows nothing of the tenant: it is not the one that belongs to the data. Never
    /// a reason to drop anything.
    #[error(
        "the key ledger does not know tenant {tenant}; it is older than the data or of another server, restore the newest one from a backup"
    )]
    Unlisted {
        /// The tenant, as hex.
        tenant: String,
    },
    /// The version was never made.
    #[error("tenant {tenant} has no key version {version}")]
    UnknownVersion {
        /// The tenant, as hex.
        tenant: String,
        /// The version.
        version: u32,
    },
    /// The key provider or the ledger cannot be reached now; try again.
    #[error("keys cannot be reached: {0}")]
    Unavailable(String),
}

/// One version of one tenant's key, with what is derived from it.
pub struct TenantKeys {
    tenant: [u8; 16],
    version: u32,
    key: Key256,
    wrap: Key256,
    series_secret: u64,
}

impl std::fmt::Debug for TenantKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantKeys").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The two keys erase themselves; the seed of the series hash is a secret too.
impl Drop for TenantKeys {
    fn drop(&mut self) {
        self.series_secret.zeroize();
    }
}

impl TenantKeys {
    /// Derives everything from a tenant key.
    pub fn new(tenant: [u8; 16], version: u32, key: Key256) -> Self {
        let wrap = key.derive(&tenant, &[b"millrace object wrap v1"]);
        let secret = key.derive(&tenant, &[b"millrace series hash v1"]);
        let mut first = [0u8; 8];
        first.copy_from_slice(&secret.expose()[..8]);
        Self { tenant, version, key, wrap, series_secret: u64::from_le_bytes(first) }
    }

    /// Whose.
    pub fn tenant(&self) -> &[u8; 16] {
        &self.tenant
    }

    /// Which version, from 1.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Wraps the data keys of sealed objects.
    pub(crate) fn object_wrap_key(&self) -> &Key256 {
        &self.wrap
    }

    /// Seeds the series hash.
    pub fn series_secret(&self) -> u64 {
        self.series_secret
    }

    /// The key of this tenant's frames in one log segment; `context` is whatever the log binds
    /// it to (segment number, start).
    pub fn segment_key(&self, salt: &[u8; 32], context: &[u8]) -> Key256 {
        self.key.derive(salt, &[b"millrace log segment v1", &self.tenant, context])
    }

    /// A key for another purpose, for instance `b"catalog"`.
    pub fn purpose_key(&self, purpose: &[u8]) -> Key256 {
        self.key.derive(&self.tenant, &[b"millrace purpose v1", purpose])
    }
}

/// Where tenant keys come from. Implementations purge their caches when a key is destroyed.
pub trait TenantKeySource: Send + Sync {
    /// The version that new data is sealed under.
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError>;
    /// One version, to read what was sealed under it.
    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError>;
}
