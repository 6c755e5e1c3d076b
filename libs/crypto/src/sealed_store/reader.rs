//! Ranged, authenticated reads of one sealed object, at any offset of the object that holds it.
//!
//! Owns: the way from a plaintext range to a request and back.
//! Never: keeps plaintext; returns a byte whose chunk was not checked.
//! Costs: one request and one unwrap to open, one request for each read; chunks of 64 KiB, so a
//! read fetches up to 128 KiB more than was asked.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use object_store::{
    Error, Extensions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path,
};

use super::generic;
use crate::{
    key::TenantKeySource,
    sealed_file::{ObjectOpener, SEALED_HEADER_BYTES, SealError, open_object},
};

const HEADER: u64 = SEALED_HEADER_BYTES as u64;

/// Why a sealed object cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its seal, or its key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store below.
    #[error("sealed object {object} cannot be fetched: {source}")]
    Store {
        /// The object's id, as hex.
        object: String,
        /// Why.
        source: Error,
    },
}

impl From<ReadError> for Error {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Seal(e) => generic(e),
            ReadError::Store { source, .. } => source,
        }
    }
}

/// Where a sealed section stands and which one it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSection {
    /// The object that holds it.
    pub path: Path,
    /// The section's own id, bound into its seal.
    pub id: [u8; 16],
    /// Offset of its first byte, in bytes.
    pub offset: u64,
    /// Sealed bytes.
    pub len: u64,
}

impl SealedSection {
    /// Bytes `of` the section, as bytes of the object that holds it.
    fn within(&self, of: Range<u64>) -> Range<u64> {
        self.offset.saturating_add(of.start)..self.offset.saturating_add(of.end)
    }

    fn fail(&self, source: Error) -> ReadError {
        ReadError::Store { object: hex::encode(self.id), source }
    }
}

/// Which state of an object a read accepts; all of the caller's options but range and head.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions(GetOptions);

impl Conditions {
    pub(super) fn of(options: GetOptions) -> Self {
        Self(GetOptions { range: None, head: false, ..options })
    }

    /// Exactly the object that `meta` describes, if the store below can tell.
    fn same(meta: &ObjectMeta, version: Option<String>, extensions: Extensions) -> Self {
        let if_match = meta.e_tag.clone();
        Self(GetOptions { if_match, version, extensions, ..GetOptions::default() })
    }

    fn at(&self, range: Range<u64>) -> GetOptions {
        GetOptions { range: Some(GetRange::Bounded(range)), ..self.0.clone() }
    }
}

/// A sealed object that is open for reads of any range.
#[derive(Clone)]
pub struct SealedReader {
    below: Arc<dyn ObjectStore>,
    at: SealedSection,
    opener: Arc<ObjectOpener>,
    conditions: Conditions,
}

impl fmt::Debug for SealedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedReader")
            .field("at", &self.at)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

fn wrong_length(at: &SealedSection, opener: &ObjectOpener) -> SealError {
    SealError::Forged {
        object: hex::encode(at.id),
        what: format!("its length {}, which should be {}", at.len, opener.sealed_len()),
    }
}

impl SealedReader {
    /// Opens a section of `tenant` in `below`: fetches its header, checks it, and that the length
    /// fits. For readers that have no use for a whole [`TenantStore`](super::TenantStore).
    pub async fn open(
        below: Arc<dyn ObjectStore>,
        keys: &dyn TenantKeySource,
        tenant: &[u8; 16],
        at: &SealedSection,
    ) -> Result<Self, ReadError> {
        let head = at.within(0..at.len.clamp(1, HEADER));
        let header = below.get_range(&at.path, head).await.map_err(|e| at.fail(e))?;
        let opener = ObjectOpener::open(keys, tenant, at.id, &header)?;
        if opener.sealed_len() != at.len {
            return Err(wrong_length(at, &opener).into());
        }
        let conditions = Conditions::default();
        Ok(Self { below, at: at.clone(), opener: Arc::new(opener), conditions })
    }

    /// Opens a whole stored object, and pins the reads that follow to what it is now.
    pub(super) async fn open_object(
        below: Arc<dyn ObjectStore>,
        keys: &dyn TenantKeySource,
        tenant: &[u8; 16],
        path: &Path,
        id: [u8; 16],
        conditions: Conditions,
    ) -> Result<(Self, ObjectMeta), ReadError> {
        let mut at = SealedSection { path: path.clone(), id, offset: 0, len: 0 };
        let got = below.get_opts(path, conditions.at(0..HEADER)).await.map_err(|e| at.fail(e))?;
        let meta = got.meta.clone();
        at.len = meta.size;
        let header = got.bytes().await.map_err(|e| at.fail(e))?;
        let opener = ObjectOpener::open(keys, tenant, id, &header)?;
        if opener.sealed_len() != at.len {
            return Err(wrong_length(&at, &opener).into());
        }
        let conditions = Conditions::same(&meta, conditions.0.version, conditions.0.extensions);
        Ok((Self { below, at, opener: Arc::new(opener), conditions }, meta))
    }

    /// The object's id.
    pub fn id(&self) -> &[u8; 16] {
        &self.at.id
    }

    /// Plaintext bytes.
    #[expect(clippy::len_without_is_empty, reason = "a length in bytes, not a collection")]
    pub fn len(&self) -> u64 {
        self.opener.plaintext_len()
    }

    /// Whether `plain` lies inside the object.
    pub(super) fn check(&self, plain: &Range<u64>) -> Result<(), ReadError> {
        self.opener.ciphertext_range(plain.clone())?;
        Ok(())
    }

    /// Bytes `plain` of the plaintext.
    pub async fn read(&self, plain: Range<u64>) -> Result<Bytes, ReadError> {
        let at = self.at.within(self.opener.ciphertext_range(plain.clone())?);
        let fail = |e| self.at.fail(e);
        let got = self.below.get_opts(&self.at.path, self.conditions.at(at)).await.map_err(fail)?;
        let sealed = got.bytes().await.map_err(fail)?;
        Ok(self.opener.decrypt_range(plain, sealed.into())?)
    }

    /// A whole section in one request.
    pub async fn whole(
        below: &dyn ObjectStore,
        keys: &dyn TenantKeySource,
        tenant: &[u8; 16],
        at: &SealedSection,
    ) -> Result<Bytes, ReadError> {
        let sealed = below.get_range(&at.path, at.within(0..at.len.max(1))).await;
        Ok(open_object(keys, tenant, at.id, &sealed.map_err(|e| at.fail(e))?)?)
    }
}
