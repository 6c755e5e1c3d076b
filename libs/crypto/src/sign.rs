//! Ed25519 signatures (RFC 8032), each for one purpose: heads of manifests and the like.
//!
//! What is signed: `millrace signature v1`, the length of the context's name (4 bytes, little
//! endian), the name, the message. So a signature made for one purpose proves nothing for
//! another, and none is a plain Ed25519 signature of something else.
//!
//! Owns: the key types and that framing. A signing key that must outlive the process is derived
//! from a tenant's keys ([`SigningKey::of`]), so the ledger holds it already, it rotates with
//! them and dies with them; or its seed, a [`Key256`], is wrapped by any
//! [`KeyProvider`](crate::kms::KeyProvider).
//! Never: shows, copies or returns a signing key; signs without a context:
//!
//! ```
//! fn named<T>() {}
//! named::<millrace_crypto::sign::SigningKey>();
//! ```
//! ```compile_fail
//! fn shown<T: std::fmt::Debug>() {}
//! shown::<millrace_crypto::sign::SigningKey>();
//! ```
//! ```compile_fail
//! fn copied<T: Clone>() {}
//! copied::<millrace_crypto::sign::SigningKey>();
//! ```
//! Invariants: signing is deterministic, so it needs no randomness and can leak none; the
//! library erases its copy of the key when it frees it.

#[cfg(test)]
mod tests;

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use millrace_platform::entropy::Entropy;

use crate::key::{Key256, TenantKeys};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of a verifying key.
pub const VERIFYING_KEY_BYTES: usize = 32;
const LABEL: &[u8] = b"millrace signature v1";

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SigningContext(&'static str);

impl SigningContext {
    /// The head of a manifest.
    pub const MANIFEST_HEAD: Self = Self::new("manifest head");

    /// A purpose by its name, which must be no other's.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    fn framed(self, message: &[u8]) -> Vec<u8> {
        let name = self.0.as_bytes();
        let mut out = Vec::with_capacity(LABEL.len() + 4 + name.len() + message.len());
        out.extend_from_slice(LABEL);
        out.extend_from_slice(&(name.len() as u32).to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(message);
        out
    }
}

/// Why a signature proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// It does not fit.
    #[error(
        "the signature of this {context} does not fit key {key}: it or what it signs was changed, or is of another key or purpose; restore it from a backup"
    )]
    Forged {
        /// What it should be for.
        context: &'static str,
        /// The verifying key, as hex.
        key: String,
    },
    /// Not the length of a signature or key.
    #[error("{what} has {expected} bytes, not {found}")]
    Length {
        /// A signature or a verifying key.
        what: &'static str,
        /// How many it should have.
        expected: usize,
        /// How many it has.
        found: usize,
    },
}

/// A signature, not secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; SIGNATURE_BYTES]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", hex::encode(self.0))
    }
}

impl Signature {
    /// The stored form.
    pub fn to_bytes(self) -> [u8; SIGNATURE_BYTES] {
        self.0
    }

    /// From the stored form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignError> {
        exactly("a signature", bytes).map(Self)
    }
}

fn exactly<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], SignError> {
    let found = bytes.len();
    bytes.try_into().map_err(|_| SignError::Length { what, expected: N, found })
}

/// The public half: whoever has it can check, and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifyingKey([u8; VERIFYING_KEY_BYTES]);

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", hex::encode(self.0))
    }
}

impl VerifyingKey {
    /// The stored form.
    pub fn to_bytes(self) -> [u8; VERIFYING_KEY_BYTES] {
        self.0
    }

    /// From the stored form, which must come from where it cannot be changed: who chooses the
    /// key chooses what it proves. Bytes that are no key verify nothing.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignError> {
        exactly("a verifying key", bytes).map(Self)
    }

    /// Whether `signature` was made over `message` for `context` by the key's other half.
    pub fn verify(
        &self,
        context: SigningContext,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), SignError> {
        if self.fits(&context.framed(message), signature) {
            return Ok(());
        }
        Err(SignError::Forged { context: context.0, key: hex::encode(self.0) })
    }

    fn fits(&self, framed: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(framed, &signature.0).is_ok()
    }
}

/// The secret half.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// The key of a seed; the same seed gives the same key.
    #[expect(clippy::expect_used, reason = "any 32 bytes are an Ed25519 seed")]
    pub fn from_seed(seed: &Key256) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed.expose()).expect("a seed of 32 bytes"))
    }

    /// A new random key, gone with the process.
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self::from_seed(&Key256::random(entropy))
    }

    /// The key that a tenant (or the system) signs with for `context`: one for each version of
    /// its keys, derived and never stored.
    pub fn of(keys: &TenantKeys, context: SigningContext) -> Self {
        let version = keys.version().to_le_bytes();
        let purpose = [b"ed25519 seed v1", &version[..], context.0.as_bytes()].concat();
        Self::from_seed(&keys.purpose_key(&purpose))
    }

    /// The public half.
    #[expect(clippy::expect_used, reason = "an Ed25519 public key has 32 bytes")]
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.public_key().as_ref().try_into().expect("32 bytes"))
    }

    /// Signs `message` for `context`.
    pub fn sign(&self, context: SigningContext, message: &[u8]) -> Signature {
        self.sign_framed(&context.framed(message))
    }

    #[expect(clippy::expect_used, reason = "an Ed25519 signature has 64 bytes")]
    fn sign_framed(&self, framed: &[u8]) -> Signature {
        Signature(self.0.sign(framed).as_ref().try_into().expect("64 bytes"))
    }
}
