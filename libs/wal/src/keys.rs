//! Which key seals which frame: the log knows owners by reference only.

use std::sync::Arc;

use millrace_crypto::{
    aead::{FrameOpener, FrameSealer},
    key::{KeyError, TenantKeySource},
};

/// Whose key, and which version of it. In the clear in every frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRef {
    /// The owner, 128 bits.
    pub owner: [u8; 16],
    /// The version of the owner's key.
    pub version: u32,
}

/// Why a frame's key cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefError {
    /// Destroyed: the frame can never be read again, which is not damage.
    #[error("the key is destroyed")]
    Gone,
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

/// Makes the key of one (owner, segment). `context` binds it to the segment's number and start.
pub trait SegmentKeys: Send + Sync {
    /// A sealer whose counter starts at 0; the log asks once per owner and segment.
    fn sealer(
        &self,
        key: KeyRef,
        salt: &[u8; 32],
        context: &[u8],
    ) -> Result<FrameSealer, KeyRefError>;
    /// The matching opener.
    fn opener(
        &self,
        key: KeyRef,
        salt: &[u8; 32],
        context: &[u8],
    ) -> Result<FrameOpener, KeyRefError>;
}

/// Segment keys derived from tenant keys.
pub struct TenantSegmentKeys(Arc<dyn TenantKeySource>);

impl std::fmt::Debug for TenantSegmentKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TenantSegmentKeys")
    }
}

impl TenantSegmentKeys {
    /// Derives from this source.
    pub fn new(source: Arc<dyn TenantKeySource>) -> Self {
        Self(source)
    }

    fn key(
        &self,
        key: KeyRef,
        salt: &[u8; 32],
        context: &[u8],
    ) -> Result<millrace_crypto::key::Key256, KeyRefError> {
        match self.0.version(&key.owner, key.version) {
            Ok(keys) => Ok(keys.segment_key(salt, context)),
            Err(KeyError::Gone { .. }) => Err(KeyRefError::Gone),
            Err(e) => Err(KeyRefError::Unavailable(e.to_string())),
        }
    }
}

impl SegmentKeys for TenantSegmentKeys {
    fn sealer(
        &self,
        key: KeyRef,
        salt: &[u8; 32],
        context: &[u8],
    ) -> Result<FrameSealer, KeyRefError> {
        self.key(key, salt, context).map(|k| FrameSealer::new(&k))
    }

    fn opener(
        &self,
        key: KeyRef,
        salt: &[u8; 32],
        context: &[u8],
    ) -> Result<FrameOpener, KeyRefError> {
        self.key(key, salt, context).map(|k| FrameOpener::new(&k))
    }
}
