//! Whose key seals a frame, and where segment keys come from.
//!
//! Owns: [`KeyRef`], the [`SegmentKeys`] trait and its implementation over tenant keys.
//! Never: holds key bytes itself; asks for the same sealer twice (T6): the writer asks once for
//! each (key, segment), and a segment belongs to one start of one process.

use std::{fmt, sync::Arc};

use millrace_crypto::{
    aead::{FrameOpener, FrameSealer},
    key::{Key256, KeyError, TenantKeySource},
};

/// Names a key: an owner (a tenant, a device) and a version of its key. The log gives it no
/// further meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRef {
    /// 16 bytes that name the owner.
    pub owner: [u8; 16],
    /// The version of the owner's key, from 1.
    pub version: u32,
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key version {} of ", self.version)?;
        self.owner.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Why a key cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefError {
    /// Destroyed for good: frames under it can never be read again and are skipped.
    #[error("the key is gone")]
    Gone,
    /// Cannot be had now; nothing is skipped.
    #[error("the key cannot be had now: {0}")]
    Unavailable(String),
}

/// What a segment key is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentContext {
    /// The segment's random salt.
    pub salt: [u8; 32],
    /// The segment's number.
    pub segment: u64,
    /// The start of the process that writes the segment.
    pub incarnation: u64,
}

impl SegmentContext {
    /// The bytes that a derived key is bound to, beside the salt.
    pub fn info(&self) -> [u8; 16] {
        let mut out = [0u8; 16];
        out[..8].copy_from_slice(&self.segment.to_le_bytes());
        out[8..].copy_from_slice(&self.incarnation.to_le_bytes());
        out
    }
}

/// Makes the keys of one segment.
pub trait SegmentKeys: Send + Sync {
    /// A sealer whose counter starts at 0. Called at most once for each (key, segment).
    fn sealer(&self, key: KeyRef, context: &SegmentContext) -> Result<FrameSealer, KeyRefError>;
    /// The opener of what that sealer sealed.
    fn opener(&self, key: KeyRef, context: &SegmentContext) -> Result<FrameOpener, KeyRefError>;
}

/// Segment keys derived from tenant keys: HKDF-SHA-256 of the tenant key with the segment's salt,
/// bound to tenant, segment and start.
pub struct TenantSegmentKeys {
    source: Arc<dyn TenantKeySource>,
}

impl TenantSegmentKeys {
    /// Takes where tenant keys come from.
    pub fn new(source: Arc<dyn TenantKeySource>) -> Self {
        Self { source }
    }

    fn segment_key(&self, key: KeyRef, context: &SegmentContext) -> Result<Key256, KeyRefError> {
        let keys = self.source.version(&key.owner, key.version).map_err(|e| match e {
            KeyError::Gone { .. } => KeyRefError::Gone,
            // A version that was never made is a ledger that went back, not a shredded tenant:
            // skipping its frames would lose them in silence.
            other @ (KeyError::Unlisted { .. }
            | KeyError::UnknownVersion { .. }
            | KeyError::Unavailable(_)) => KeyRefError::Unavailable(other.to_string()),
        })?;
        Ok(keys.segment_key(&context.salt, &context.info()))
    }
}

impl SegmentKeys for TenantSegmentKeys {
    fn sealer(&self, key: KeyRef, context: &SegmentContext) -> Result<FrameSealer, KeyRefError> {
        Ok(FrameSealer::new(&self.segment_key(key, context)?))
    }

    fn opener(&self, key: KeyRef, context: &SegmentContext) -> Result<FrameOpener, KeyRefError> {
        Ok(FrameOpener::new(&self.segment_key(key, context)?))
    }
}
