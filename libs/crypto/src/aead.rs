//! AES-256-GCM with nonces that cannot be resumed.
//!
//! Owns: the counter of each sealing key. A [`FrameSealer`] starts at 0 and its counter is never
//! stored: after a restart or a failed write the log opens a new segment under a new salt, so a
//! (key, nonce) pair is used once (T6).
//! Nonce: 32-bit purpose, 64-bit counter, big endian (NIST SP 800-38D 8.2.1).
//! Limits: 2^32 frames per key, refused by type of error, far above what a segment holds.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::key::Key256;

/// Bytes that a seal adds.
pub const TAG_BYTES: usize = 16;
/// Frames that one key may seal.
pub const FRAMES_MAX: u64 = 1 << 32;

/// What a key seals; part of every nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// A log frame.
    LogFrame = 1,
    /// A chunk of a sealed object.
    ObjectChunk = 2,
}

/// A seal that does not open or cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AeadError {
    /// Wrong key, wrong context or changed bytes.
    #[error("the seal does not open: the bytes were changed, or belong to another key or place")]
    Forged,
    /// The key has sealed as much as it may.
    #[error("this key has sealed its last frame; a new segment is needed")]
    Exhausted,
}

#[expect(clippy::expect_used, reason = "a 32-byte key always fits AES-256")]
pub(crate) fn less_safe(key: &Key256) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.expose()).expect("AES-256 key"))
}

pub(crate) fn nonce(purpose: u32, counter: u64) -> Nonce {
    let mut bytes = [0u8; 12];
    bytes[..4].copy_from_slice(&purpose.to_be_bytes());
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Seals the frames of one (tenant, segment, start). Made once per such triple.
pub struct FrameSealer {
    key: LessSafeKey,
    next: AtomicU64,
}

impl std::fmt::Debug for FrameSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameSealer").finish_non_exhaustive()
    }
}

impl FrameSealer {
    /// A sealer whose counter starts at 0; the key must be new.
    pub fn new(key: &Key256) -> Self {
        Self { key: less_safe(key), next: AtomicU64::new(0) }
    }

    /// Seals `buf[from..]` in place and appends the tag; returns the frame's counter, which the
    /// opener needs.
    pub fn seal_from(&self, aad: &[u8], buf: &mut Vec<u8>, from: usize) -> Result<u64, AeadError> {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        self.seal_at(counter, aad, buf, from)?;
        Ok(counter)
    }

    /// The counter of the next frame.
    pub fn next_counter(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn seal_at(
        &self,
        counter: u64,
        aad: &[u8],
        buf: &mut Vec<u8>,
        from: usize,
    ) -> Result<(), AeadError> {
        if counter >= FRAMES_MAX {
            return Err(AeadError::Exhausted);
        }
        let body = buf.get_mut(from..).ok_or(AeadError::Forged)?;
        let tag = self
            .key
            .seal_in_place_separate_tag(
                nonce(Purpose::LogFrame as u32, counter),
                Aad::from(aad),
                body,
            )
            .map_err(|_| AeadError::Exhausted)?;
        buf.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// Opens frames of one (tenant, segment, start).
pub struct FrameOpener {
    key: LessSafeKey,
}

impl std::fmt::Debug for FrameOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameOpener").finish_non_exhaustive()
    }
}

impl FrameOpener {
    /// An opener for the key that sealed.
    pub fn new(key: &Key256) -> Self {
        Self { key: less_safe(key) }
    }

    /// Opens `sealed` (ciphertext and tag) in place; returns the plaintext.
    pub fn open<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], AeadError> {
        self.key
            .open_in_place(nonce(Purpose::LogFrame as u32, counter), Aad::from(aad), sealed)
            .map_err(|_| AeadError::Forged)
    }
}
