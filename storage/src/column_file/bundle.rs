//! Bundles: one stored object that holds many sealed sections of many tenants and tables.
//!
//! Layout: sections back to back, each a complete sealed object (docs/formats/sealed-object.md)
//! with its own id. Nothing in a bundle says where its sections are; the manifest does.
//! Why: one create and one sync per flush, however many tenants and tables it holds.

use std::fmt;

use millrace_crypto::{
    key::TenantKeys,
    sealed_file::{SEALED_HEADER_BYTES, seal_object},
    sealed_store::SealedSection,
};
use millrace_platform::entropy::{Entropy, random_bytes};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

/// Where a section is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionRef {
    /// The bundle.
    #[serde(with = "crate::text::fixed")]
    pub object: [u8; 16],
    /// The section's own id, bound into its seal.
    #[serde(with = "crate::text::fixed")]
    pub section_id: [u8; 16],
    /// Offset of its first byte in the bundle.
    pub offset: u64,
    /// Sealed bytes.
    pub len: u64,
}

impl SectionRef {
    /// The same, as the seal's reader asks for it.
    pub(crate) fn sealed(&self) -> SealedSection {
        SealedSection {
            path: object_path(&self.object),
            id: self.section_id,
            offset: self.offset,
            len: self.len,
        }
    }
}

/// As errors name it: the section, and the file in which it stands.
impl fmt::Display for SectionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, path) = (hex::encode(self.section_id), object_path(&self.object));
        write!(f, "section {id} at byte {} of {path}", self.offset)
    }
}

/// Where a bundle is stored. The name tells nothing about its content.
pub fn object_path(object: &[u8; 16]) -> Path {
    Path::from(format!("data/0/{}.b", hex::encode(object)))
}

/// Why a section could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The sealed section is shorter than its header: a bug in the seal.
    #[error("a sealed section of {0} bytes is shorter than its header")]
    Short(usize),
}

/// Collects sections.
#[derive(Debug)]
pub struct BundleWriter {
    object: [u8; 16],
    bytes: Vec<u8>,
}

impl BundleWriter {
    /// An empty bundle; `object` must be random and new.
    pub fn new(object: [u8; 16]) -> Self {
        Self { object, bytes: Vec::new() }
    }

    /// Seals `plaintext` under the tenant's keys and appends it.
    pub fn add(
        &mut self,
        keys: &TenantKeys,
        entropy: &dyn Entropy,
        plaintext: &[u8],
    ) -> Result<SectionRef, BundleError> {
        let section_id = random_bytes(entropy);
        let sealed = seal_object(keys, entropy, section_id, plaintext);
        if sealed.len() < SEALED_HEADER_BYTES {
            return Err(BundleError::Short(sealed.len()));
        }
        let offset = self.bytes.len() as u64;
        // Doubling would hold up to as much again for nothing.
        self.bytes.reserve_exact(sealed.len());
        self.bytes.extend_from_slice(&sealed);
        Ok(SectionRef { object: self.object, section_id, offset, len: sealed.len() as u64 })
    }

    /// Memory held, bytes.
    pub fn bytes_held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends a section as it is sealed already, under its own id.
    pub(crate) fn copy(&mut self, section_id: [u8; 16], sealed: &[u8]) -> SectionRef {
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(sealed);
        SectionRef { object: self.object, section_id, offset, len: sealed.len() as u64 }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The path and the bytes to store.
    pub fn finish(self) -> (Path, Vec<u8>) {
        (object_path(&self.object), self.bytes)
    }
}
