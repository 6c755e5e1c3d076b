//! Uploads in parts: held until the end, because a seal binds every chunk to the total length.
//!
//! Owns: the parts. Never: shows a part of an object; puts anything before `complete`.

use std::fmt;

use async_trait::async_trait;
use object_store::{
    Error, MultipartUpload, PutOptions, PutPayload, PutResult, Result, UploadPart, path::Path,
};

use super::{TenantStore, TenantStoreError, generic};

/// Bytes that one upload may hold: several times the largest file that a flush writes.
pub(super) const UPLOAD_BYTES_MAX: usize = 256 << 20;

pub(super) struct SealedUpload {
    store: TenantStore,
    location: Path,
    /// Gone once completed or aborted.
    held: Option<(PutOptions, Vec<u8>)>,
    max: usize,
}

/// Without the parts, which are plaintext.
impl fmt::Debug for SealedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedUpload").field("location", &self.location).finish_non_exhaustive()
    }
}

impl SealedUpload {
    pub(super) fn new(store: TenantStore, location: Path, opts: PutOptions) -> Self {
        Self { store, location, held: Some((opts, Vec::new())), max: UPLOAD_BYTES_MAX }
    }

    #[cfg(test)]
    pub(super) fn with_max(self, max: usize) -> Self {
        Self { max, ..self }
    }

    fn over(&self) -> Error {
        generic(TenantStoreError::Over { path: self.location.to_string() })
    }

    fn add(&mut self, data: &PutPayload) -> Result<()> {
        let Some((_, bytes)) = &mut self.held else { return Err(self.over()) };
        if bytes.len().saturating_add(data.content_length()) > self.max {
            // What is held is not the object any more: it must not be completed without a part.
            self.held = None;
            let (path, max) = (self.location.to_string(), self.max as u64);
            return Err(generic(TenantStoreError::TooLong { path, max }));
        }
        data.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(())
    }
}

#[async_trait]
impl MultipartUpload for SealedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let done = self.add(&data);
        Box::pin(async { done })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (opts, bytes) = self.held.take().ok_or_else(|| self.over())?;
        self.store.put_plain(&self.location, &bytes, opts).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.held = None;
        Ok(())
    }
}
