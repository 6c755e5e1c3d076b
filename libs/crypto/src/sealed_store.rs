//! One tenant's view of an object store: what goes in is sealed, what comes out was checked.
//!
//! Two ways in. As an [`ObjectStore`], every object below [`TenantStore::prefix`] is one sealed
//! object whose id is made of tenant and path, so objects that changed places do not open. By
//! [`TenantStore::section`], a sealed section inside an object of many tenants (a bundle), whose
//! id the manifest names; there the seal alone decides, so no prefix is asked.
//!
//! Owns: the binding of store, tenant and keys. Sizes are plaintext sizes everywhere.
//! Never: passes a plaintext byte to the store below, returns one that was not authenticated, or
//! names a path outside of the tenant's prefix. Attributes and tags are refused, because the
//! store below keeps them in the clear.
//! Invariants: each write has a data key of its own; copies are sealed anew for their new place;
//! a read whose object is replaced between two requests fails with `Precondition` where the
//! store below has e-tags, and as `Forged` where it has none.
//! Limit: an older object put back at its own path opens. Files are written once under random
//! names and named by manifests, which is what notices.

mod reader;
mod upload;

#[cfg(test)]
mod tests;

use std::{fmt, ops::Range, sync::Arc};

use async_trait::async_trait;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use millrace_platform::entropy::Entropy;
use object_store::{
    Attributes, CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
    RenameTargetMode, Result, coalesce_ranges, path::Path,
};

pub use self::reader::{ReadError, SealedReader, SealedSection};
use self::{reader::Conditions, upload::SealedUpload};
use crate::{
    key::TenantKeySource,
    sealed_file::{SealError, plaintext_len, seal_object},
};

const STORE: &str = "TenantStore";

/// What this store refuses on purpose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantStoreError {
    /// The path is not the tenant's.
    #[error("{path} is outside of {prefix}, the only place that this tenant's store can name")]
    Outside {
        /// What was asked.
        path: String,
        /// The tenant's prefix.
        prefix: String,
    },
    /// Attributes or tags.
    #[error("attributes and tags are stored unsealed; put {path} without them")]
    Unsealed {
        /// Where to.
        path: String,
    },
    /// An upload in parts grew too long to be held until it can be sealed.
    #[error("the upload of {path} exceeds {max} bytes; write several smaller objects")]
    TooLong {
        /// Where to.
        path: String,
        /// The limit, in bytes.
        max: u64,
    },
    /// An upload was used after it was completed or aborted.
    #[error("the upload of {path} is over; start another")]
    Over {
        /// Where to.
        path: String,
    },
}

fn generic(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: STORE, source: Box::new(source) }
}

/// See the module head. Clones share everything.
#[derive(Clone)]
pub struct TenantStore {
    below: Arc<dyn ObjectStore>,
    keys: Arc<dyn TenantKeySource>,
    entropy: Arc<dyn Entropy>,
    tenant: [u8; 16],
    prefix: Path,
}

impl fmt::Debug for TenantStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(STORE).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl fmt::Display for TenantStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE}({})", self.prefix)
    }
}

impl TenantStore {
    /// The store of `tenant` over `below`; its own objects are under `tenant/<hex>/`.
    pub fn new(
        below: Arc<dyn ObjectStore>,
        keys: Arc<dyn TenantKeySource>,
        entropy: Arc<dyn Entropy>,
        tenant: [u8; 16],
    ) -> Self {
        let prefix = Path::from_iter(["tenant".to_owned(), hex::encode(tenant)]);
        Self { below, keys, entropy, tenant, prefix }
    }

    /// Whose store this is.
    pub fn tenant(&self) -> &[u8; 16] {
        &self.tenant
    }

    /// The only place that the [`ObjectStore`] side can name.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Opens a sealed section of a larger object: fetches and checks its header.
    pub async fn section(&self, at: &SealedSection) -> Result<SealedReader, ReadError> {
        SealedReader::open(Arc::clone(&self.below), self.keys.as_ref(), &self.tenant, at).await
    }

    /// A whole sealed section of a larger object, in one request.
    pub async fn section_whole(&self, at: &SealedSection) -> Result<Bytes, ReadError> {
        SealedReader::whole(self.below.as_ref(), self.keys.as_ref(), &self.tenant, at).await
    }

    /// `path`, if it is the tenant's.
    fn own<'a>(&self, path: &'a Path) -> Result<&'a Path> {
        if within(path, &self.prefix) { Ok(path) } else { Err(outside(path, &self.prefix)) }
    }

    /// The prefix to list: the tenant's own if none is given.
    fn listed<'a>(&'a self, prefix: Option<&'a Path>) -> Result<&'a Path> {
        match prefix {
            None => Ok(&self.prefix),
            Some(p) if *p == self.prefix => Ok(p),
            Some(p) => self.own(p),
        }
    }

    /// The id of the object at `path`: the first half of SHA-256 over a label, tenant and path.
    fn object_id(&self, path: &Path) -> [u8; 16] {
        let mut digest = Context::new(&SHA256);
        digest.update(b"millrace object path v1");
        digest.update(&self.tenant);
        digest.update(path.as_ref().as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest.finish().as_ref()[..16]);
        id
    }

    async fn put_plain(
        &self,
        location: &Path,
        plain: &[u8],
        opts: PutOptions,
    ) -> Result<PutResult> {
        let location = self.own(location)?;
        if !opts.attributes.is_empty() || !opts.tags.encoded().is_empty() {
            let e = TenantStoreError::Unsealed { path: location.to_string() };
            return Err(Error::NotSupported { source: Box::new(e) });
        }
        let keys = self.keys.current(&self.tenant).map_err(|e| generic(SealError::Key(e)))?;
        let sealed = seal_object(&keys, self.entropy.as_ref(), self.object_id(location), plain);
        self.below.put_opts(location, sealed.into(), opts).await
    }

    /// Opens the object at `location` as it is now, and says what the store below knows of it.
    async fn open(
        &self,
        location: &Path,
        conditions: Conditions,
    ) -> Result<(SealedReader, ObjectMeta)> {
        let id = self.object_id(self.own(location)?);
        let below = Arc::clone(&self.below);
        let keys = self.keys.as_ref();
        let (reader, meta) =
            SealedReader::open_object(below, keys, &self.tenant, location, id, conditions).await?;
        let meta = ObjectMeta { size: reader.len(), ..meta };
        Ok((reader, meta))
    }
}

fn outside(path: &Path, prefix: &Path) -> Error {
    let e = TenantStoreError::Outside { path: path.to_string(), prefix: prefix.to_string() };
    Error::PermissionDenied { path: path.to_string(), source: Box::new(e) }
}

/// Whether `path` is strictly below `prefix`, part by part.
fn within(path: &Path, prefix: &Path) -> bool {
    path.prefix_match(prefix).is_some_and(|mut rest| rest.next().is_some())
}

/// What the list says of an object. A stray object that cannot be a sealed one counts 0 bytes;
/// reading it fails.
fn plain_meta(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta { size: plaintext_len(meta.size).unwrap_or(0), ..meta }
}

fn failed<T: Send + 'static>(e: Error) -> BoxStream<'static, Result<T>> {
    stream::once(async { Err(e) }).boxed()
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a default could pass the seal by")]
impl ObjectStore for TenantStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.put_plain(location, &Bytes::from(payload), opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let PutMultipartOptions { tags, attributes, extensions } = opts;
        let opts = PutOptions { mode: PutMode::Overwrite, tags, attributes, extensions };
        Ok(Box::new(SealedUpload::new(self.clone(), self.own(location)?.clone(), opts)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let GetOptions { range, head, .. } = &options;
        let (range, head) = (range.clone(), *head);
        let (reader, meta) = self.open(location, Conditions::of(options)).await?;
        let range = match range {
            Some(range) => range.as_range(meta.size).map_err(generic)?,
            None => 0..meta.size,
        };
        let bytes = if head { Bytes::new() } else { reader.read(range.clone()).await? };
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Attributes::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (reader, _) = self.open(location, Conditions::default()).await?;
        for range in ranges {
            reader.check(range)?;
        }
        let fetch = |range| async { reader.read(range).await };
        Ok(coalesce_ranges(ranges, fetch, OBJECT_STORE_COALESCE_DEFAULT).await?)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let prefix = self.prefix.clone();
        let own = move |path: Path| {
            let fine = within(&path, &prefix);
            futures::future::ready(if fine { Ok(path) } else { Err(outside(&path, &prefix)) })
        };
        self.below.delete_stream(locations.and_then(own).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.listed(prefix) {
            Ok(prefix) => self.below.list(Some(prefix)).map_ok(plain_meta).boxed(),
            Err(e) => failed(e),
        }
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.listed(prefix) {
            Ok(p) => self.below.list_with_offset(Some(p), offset).map_ok(plain_meta).boxed(),
            Err(e) => failed(e),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let found = self.below.list_with_delimiter(Some(self.listed(prefix)?)).await?;
        let objects = found.objects.into_iter().map(plain_meta).collect();
        Ok(ListResult { objects, ..found })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        // The seal is bound to the path, so a copy is read, checked and sealed for its new place.
        let plain = self.get(from).await?.bytes().await?;
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        self.put_plain(to, &plain, PutOptions { mode, ..PutOptions::default() }).await?;
        Ok(())
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let mode = match options.target_mode {
            RenameTargetMode::Overwrite => CopyMode::Overwrite,
            RenameTargetMode::Create => CopyMode::Create,
        };
        if from == to {
            // Copy and delete would lose it.
            return self.head(from).await.map(|_| ());
        }
        self.copy_opts(from, to, CopyOptions { mode, extensions: options.extensions }).await?;
        self.delete(from).await
    }
}
