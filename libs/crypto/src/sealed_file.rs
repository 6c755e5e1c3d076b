//! Sealed objects: the one seal for everything at rest.
//!
//! Layout (little endian), the same at any offset of a larger object:
//! ```text
//!   0   4  magic "MRS1"
//!   4   1  version = 1
//!   5   1  log2 of the chunk size (16: 64 KiB)
//!   6   2  zero
//!   8  16  tenant
//!  24   4  tenant key version
//!  28  16  object id
//!  44   4  random part of the chunk nonces
//!  48   8  plaintext length
//!  56  60  data key wrapped by the tenant's wrap key: 12 nonce, 32 ciphertext, 16 tag
//! 116  32  commitment: HKDF-SHA-256 of the data key, compared before anything is decrypted
//! 148   -  chunks: ciphertext of up to 64 KiB and its 16-byte tag; an empty object has one
//! ```
//! Cipher AES-256-GCM. Chunk nonce: the random part, then the chunk number (64 bits, big endian).
//! Chunk AAD: version, tenant, object id, chunk number, last flag, plaintext length.
//! Wrap AAD: the header up to the wrapped key.
//! Owns: the format. Never: returns a byte of a chunk whose tag has not been checked.
//! Invariants: the data key is random per write attempt, so no nonce repeats; a chunk opens only
//! in its own object, tenant, place and total length.

use std::ops::Range;

use aws_lc_rs::{
    aead::{Aad, LessSafeKey, Nonce},
    constant_time,
};
use bytes::Bytes;
use millrace_platform::entropy::{Entropy, random_bytes};

use crate::{
    aead::{TAG_BYTES, less_safe},
    key::{Key256, KeyError, TenantKeySource, TenantKeys},
};

/// Bytes of the header.
pub const SEALED_HEADER_BYTES: usize = 148;
/// Plaintext bytes of a chunk: 64 KiB, because 1 MiB made point look-ups 2.6 times as costly.
pub const CHUNK_BYTES: u64 = 1 << CHUNK_LOG2;
const CHUNK_LOG2: u8 = 16;
const MAGIC: &[u8; 4] = b"MRS1";
const VERSION: u8 = 1;
const WRAP_AT: usize = 56;
const COMMIT_AT: usize = 116;
const TAG: u64 = TAG_BYTES as u64;

const _: () = assert!(COMMIT_AT + 32 == SEALED_HEADER_BYTES, "the layout above adds up");
const _: () = assert!(WRAP_AT + 12 + 32 + TAG_BYTES == COMMIT_AT, "the layout above adds up");

/// Why a sealed object does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The header is not one of ours: plaintext, truncated or another format.
    #[error(
        "object {object} is not a sealed object: {what}; it was replaced or damaged, restore it from a backup"
    )]
    NotSealed {
        /// The object that was asked for, as hex.
        object: String,
        /// What gave it away.
        what: &'static str,
    },
    /// The bytes are sealed, but not for this place, or were changed.
    #[error(
        "object {object} fails authentication at {what}; it was changed, cut or swapped, restore it from a backup"
    )]
    Forged {
        /// The object that was asked for, as hex.
        object: String,
        /// Header, commitment or chunk.
        what: String,
    },
    /// Bytes outside the object were asked for.
    #[error("bytes {start} to {end} were asked of object {object}, which has {len}")]
    OutOfRange {
        /// The object, as hex.
        object: String,
        /// First byte.
        start: u64,
        /// End.
        end: u64,
        /// Plaintext length.
        len: u64,
    },
    /// The key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
}

struct ChunkContext {
    aad: [u8; 50],
    nonce: [u8; 12],
}

impl ChunkContext {
    fn new(tenant: &[u8; 16], object: &[u8; 16], nonce: &[u8; 4], len: u64) -> Self {
        let mut aad = [0u8; 50];
        aad[0] = VERSION;
        aad[1..17].copy_from_slice(tenant);
        aad[17..33].copy_from_slice(object);
        aad[42..50].copy_from_slice(&len.to_le_bytes());
        let mut prefix = [0u8; 12];
        prefix[..4].copy_from_slice(nonce);
        Self { aad, nonce: prefix }
    }

    fn at(&mut self, chunk: u64, last: bool) -> (Nonce, &[u8]) {
        self.aad[33..41].copy_from_slice(&chunk.to_le_bytes());
        self.aad[41] = u8::from(last);
        self.nonce[4..].copy_from_slice(&chunk.to_be_bytes());
        (Nonce::assume_unique_for_key(self.nonce), &self.aad)
    }
}

fn chunks_of(len: u64) -> u64 {
    len.div_ceil(CHUNK_BYTES).max(1)
}

/// Bytes that a sealed object of `len` plaintext bytes takes, header included.
pub fn sealed_len(len: u64) -> u64 {
    SEALED_HEADER_BYTES as u64 + len + chunks_of(len) * TAG
}

/// Plaintext bytes of a sealed object that takes `sealed` bytes; `None` if no object takes that
/// many. Arithmetic only: the header says the same, authenticated.
pub fn plaintext_len(sealed: u64) -> Option<u64> {
    let body = sealed.checked_sub(SEALED_HEADER_BYTES as u64)?;
    let len = body.checked_sub(body.div_ceil(CHUNK_BYTES + TAG) * TAG)?;
    (sealed_len(len) == sealed).then_some(len)
}

fn commitment(key: &Key256) -> Key256 {
    key.derive(b"millrace", &[b"sealed object commitment v1"])
}

/// Seals `plaintext` under a new random data key.
pub fn seal_object(
    keys: &TenantKeys,
    entropy: &dyn Entropy,
    object: [u8; 16],
    plaintext: &[u8],
) -> Vec<u8> {
    let len = plaintext.len() as u64;
    let data_key = Key256::random(entropy);
    let nonce: [u8; 4] = random_bytes(entropy);
    let mut out = Vec::with_capacity(usize::try_from(sealed_len(len)).unwrap_or(0));
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSION, CHUNK_LOG2, 0, 0]);
    out.extend_from_slice(keys.tenant());
    out.extend_from_slice(&keys.version().to_le_bytes());
    out.extend_from_slice(&object);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&len.to_le_bytes());
    let wrap_nonce: [u8; 12] = random_bytes(entropy);
    let mut wrapped = zeroize::Zeroizing::new(data_key.expose().to_vec());
    let tag = seal_in_place(
        &less_safe(keys.object_wrap_key()),
        Nonce::assume_unique_for_key(wrap_nonce),
        &out,
        &mut wrapped,
    );
    out.extend_from_slice(&wrap_nonce);
    out.extend_from_slice(&wrapped);
    out.extend_from_slice(&tag);
    out.extend_from_slice(commitment(&data_key).expose());
    let key = less_safe(&data_key);
    let mut context = ChunkContext::new(keys.tenant(), &object, &nonce, len);
    let count = chunks_of(len);
    for chunk in 0..count {
        let from = usize::try_from(chunk * CHUNK_BYTES).unwrap_or(usize::MAX);
        let to = plaintext.len().min(from.saturating_add(CHUNK_BYTES as usize));
        let at = out.len();
        out.extend_from_slice(plaintext.get(from..to).unwrap_or_default());
        let (nonce, aad) = context.at(chunk, chunk + 1 == count);
        let tag = seal_in_place(&key, nonce, aad, out.get_mut(at..).unwrap_or_default());
        out.extend_from_slice(&tag);
    }
    out
}

#[expect(clippy::expect_used, reason = "GCM fails only above 64 GiB; chunks are 64 KiB")]
fn seal_in_place(key: &LessSafeKey, nonce: Nonce, aad: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(aad), body)
        .expect("sealing a chunk of at most 64 KiB");
    let mut out = [0u8; TAG_BYTES];
    out.copy_from_slice(tag.as_ref());
    out
}

/// Opens ranges of one sealed object.
pub struct ObjectOpener {
    key: LessSafeKey,
    tenant: [u8; 16],
    object: [u8; 16],
    nonce: [u8; 4],
    len: u64,
}

impl std::fmt::Debug for ObjectOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectOpener").field("len", &self.len).finish_non_exhaustive()
    }
}

fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    if let Some(bytes) = header.get(at..at + N) {
        out.copy_from_slice(bytes);
    }
    out
}

impl ObjectOpener {
    /// Checks the header of the object that is expected here and unwraps its key.
    pub fn open(
        keys: &dyn TenantKeySource,
        tenant: &[u8; 16],
        object: [u8; 16],
        header: &[u8],
    ) -> Result<Self, SealError> {
        let not = |what| SealError::NotSealed { object: hex::encode(object), what };
        let forged =
            |what: &str| SealError::Forged { object: hex::encode(object), what: what.into() };
        let header = header.get(..SEALED_HEADER_BYTES).ok_or_else(|| not("it is too short"))?;
        if header.get(..4) != Some(MAGIC) {
            return Err(not("its first bytes are not MRS1"));
        }
        if field::<4>(header, 4) != [VERSION, CHUNK_LOG2, 0, 0] {
            return Err(not("its version is unknown"));
        }
        if field::<16>(header, 8) != *tenant {
            return Err(forged("the header, which names another tenant"));
        }
        if field::<16>(header, 28) != object {
            return Err(forged("the header, which names another object"));
        }
        let version = u32::from_le_bytes(field(header, 24));
        let tenant_keys = match keys.version(tenant, version) {
            // A header bit that names a version that never was is damage, not a missing key.
            Err(KeyError::UnknownVersion { .. }) => {
                return Err(forged("the header, which names an unknown key version"));
            }
            other => other?,
        };
        let mut wrapped = zeroize::Zeroizing::new(field::<48>(header, WRAP_AT + 12));
        let plain = less_safe(tenant_keys.object_wrap_key())
            .open_in_place(
                Nonce::assume_unique_for_key(field(header, WRAP_AT)),
                Aad::from(header.get(..WRAP_AT).unwrap_or_default()),
                wrapped.as_mut_slice(),
            )
            .map_err(|_| forged("the wrapped key"))?;
        let data_key = Key256::new(field(plain, 0));
        let committed = field::<32>(header, COMMIT_AT);
        constant_time::verify_slices_are_equal(commitment(&data_key).expose(), &committed)
            .map_err(|_| forged("the key commitment"))?;
        Ok(Self {
            key: less_safe(&data_key),
            tenant: *tenant,
            object,
            nonce: field(header, 44),
            len: u64::from_le_bytes(field(header, 48)),
        })
    }

    /// Plaintext bytes.
    pub fn plaintext_len(&self) -> u64 {
        self.len
    }

    /// Bytes of the whole object, header included.
    pub fn sealed_len(&self) -> u64 {
        sealed_len(self.len)
    }

    fn check(&self, plain: &Range<u64>) -> Result<(), SealError> {
        if plain.start > plain.end || plain.end > self.len {
            return Err(SealError::OutOfRange {
                object: hex::encode(self.object),
                start: plain.start,
                end: plain.end,
                len: self.len,
            });
        }
        Ok(())
    }

    /// Where the chunks that hold `plain` stand, relative to the object's first byte.
    pub fn ciphertext_range(&self, plain: Range<u64>) -> Result<Range<u64>, SealError> {
        self.check(&plain)?;
        let first = plain.start / CHUNK_BYTES;
        let end = plain.end.div_ceil(CHUNK_BYTES).max(first + 1).min(chunks_of(self.len));
        let first = first.min(end - 1);
        let header = SEALED_HEADER_BYTES as u64;
        let start = header + first * (CHUNK_BYTES + TAG);
        let stop = header + (end * CHUNK_BYTES).min(self.len) + end * TAG;
        Ok(start..stop)
    }

    /// Opens the chunks fetched by [`Self::ciphertext_range`] and returns just `plain`.
    pub fn decrypt_range(
        &self,
        plain: Range<u64>,
        ciphertext: Vec<u8>,
    ) -> Result<Bytes, SealError> {
        let expected = self.ciphertext_range(plain.clone())?;
        let forged = |what: String| SealError::Forged { object: hex::encode(self.object), what };
        if ciphertext.len() as u64 != expected.end - expected.start {
            return Err(forged("its end: bytes are missing".to_owned()));
        }
        let first = (expected.start - SEALED_HEADER_BYTES as u64) / (CHUNK_BYTES + TAG);
        let count = chunks_of(self.len);
        let mut context = ChunkContext::new(&self.tenant, &self.object, &self.nonce, self.len);
        let mut buf = ciphertext;
        let (mut read, mut write, mut chunk) = (0usize, 0usize, first);
        while read < buf.len() {
            let size = (CHUNK_BYTES + TAG) as usize;
            let end = buf.len().min(read + size);
            let (nonce, aad) = context.at(chunk, chunk + 1 == count);
            let body = buf.get_mut(read..end).unwrap_or_default();
            let plain = self
                .key
                .open_in_place(nonce, Aad::from(aad), body)
                .map_err(|_| forged(format!("chunk {chunk}")))?
                .len();
            // Close the gap that the tag of the chunk before left.
            buf.copy_within(read..read + plain, write);
            write += plain;
            read = end;
            chunk += 1;
        }
        buf.truncate(write);
        let from = usize::try_from(plain.start - first * CHUNK_BYTES).unwrap_or(usize::MAX);
        let to =
            from.saturating_add(usize::try_from(plain.end - plain.start).unwrap_or(usize::MAX));
        if to > buf.len() {
            return Err(forged("its length".to_owned()));
        }
        Ok(Bytes::from(buf).slice(from..to))
    }
}

/// Opens a whole sealed object.
pub fn open_object(
    keys: &dyn TenantKeySource,
    tenant: &[u8; 16],
    object: [u8; 16],
    sealed: &[u8],
) -> Result<Bytes, SealError> {
    let opener = ObjectOpener::open(keys, tenant, object, sealed)?;
    if sealed.len() as u64 != opener.sealed_len() {
        return Err(SealError::Forged {
            object: hex::encode(object),
            what: format!("its length {}, which should be {}", sealed.len(), opener.sealed_len()),
        });
    }
    let body = sealed.get(SEALED_HEADER_BYTES..).unwrap_or_default().to_vec();
    opener.decrypt_range(0..opener.plaintext_len(), body)
}

#[cfg(test)]
mod tests;
