//! An object store on a local directory that survives power cuts.
//!
//! Owns: temp file, write, sync, publish, sync of the directory; deletes are synced too. The
//! generic local store of the `object_store` crate syncs nothing in the version that DataFusion
//! uses, which is why this exists.
//! Never: shows a half-written object; overwrites on a create-only put.

use std::{
    fmt, io,
    ops::Range,
    path::{Path as FsPath, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream::BoxStream};
use millrace_platform::{
    disk::{Disk, OpenMode, read_exact_at},
    durable,
};
use object_store::{
    Attributes, CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart, path::Path,
};

const STORE: &str = "DurableLocalStore";
/// Bytes that a multipart upload may buffer before it is put as one object.
const MULTIPART_BYTES_MAX: usize = 1 << 30;

/// See the module head. Clones share the directory.
#[derive(Debug, Clone)]
pub struct DurableLocalStore {
    disk: Arc<dyn Disk>,
    root: PathBuf,
}

impl fmt::Display for DurableLocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STORE)
    }
}

fn generic(source: io::Error) -> Error {
    Error::Generic { store: STORE, source: Box::new(source) }
}

fn error(location: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => {
            Error::NotFound { path: location.to_string(), source: Box::new(source) }
        }
        io::ErrorKind::AlreadyExists => {
            Error::AlreadyExists { path: location.to_string(), source: Box::new(source) }
        }
        _ => generic(source),
    }
}

impl DurableLocalStore {
    /// A store in `root`, which is made if missing.
    pub fn open(disk: Arc<dyn Disk>, root: &FsPath) -> io::Result<Self> {
        disk.create_dir_all(root)?;
        Ok(Self { disk, root: root.to_path_buf() })
    }

    /// Where an object is. Parts are percent-encoded by `object_store`, so none is `..`.
    fn file(&self, location: &Path) -> PathBuf {
        location.parts().fold(self.root.clone(), |p, part| p.join(part.as_ref()))
    }

    fn meta(&self, location: &Path) -> Result<ObjectMeta> {
        let file = self.file(location);
        let handle = self.disk.open(&file, OpenMode::Read).map_err(|e| error(location, e))?;
        let size = handle.len().map_err(|e| error(location, e))?;
        let modified = self.disk.modified_ns(&file).map_err(|e| error(location, e))?;
        Ok(ObjectMeta {
            location: location.clone(),
            last_modified: DateTime::<Utc>::from_timestamp_nanos(modified),
            size,
            e_tag: None,
            version: None,
        })
    }

    fn write(&self, location: &Path, bytes: &[u8], mode: &PutMode) -> Result<()> {
        let file = self.file(location);
        let parent = file.parent().unwrap_or(&self.root);
        self.disk.create_dir_all(parent).map_err(|e| error(location, e))?;
        let done = match mode {
            PutMode::Create => durable::create_new(self.disk.as_ref(), &file, bytes),
            PutMode::Overwrite => durable::replace(self.disk.as_ref(), &file, bytes),
            PutMode::Update(_) => {
                return Err(Error::NotImplemented {
                    operation: "conditional update".to_owned(),
                    implementer: STORE.to_owned(),
                });
            }
        };
        done.map_err(|e| error(location, e))
    }

    fn walk(&self, dir: &FsPath, prefix: &Path, out: &mut Vec<ObjectMeta>) -> Result<()> {
        let entries = match self.disk.list(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(generic(e)),
        };
        for entry in entries {
            let location = prefix.clone().join(entry.name.as_str());
            if entry.is_dir {
                self.walk(&dir.join(&entry.name), &location, out)?;
            } else if !entry.name.ends_with(durable::TEMP_SUFFIX) {
                match self.meta(&location) {
                    Ok(meta) => out.push(meta),
                    Err(Error::NotFound { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    fn list_all(&self, prefix: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let mut out = Vec::new();
        self.walk(&self.file(&prefix), &prefix, &mut out)?;
        Ok(out)
    }
}

#[async_trait]
impl ObjectStore for DurableLocalStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let bytes: Bytes = payload.into();
        self.write(location, &bytes, &opts.mode)?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(Upload { store: self.clone(), location: location.clone(), bytes: Vec::new() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let meta = self.meta(location)?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => range
                .as_range(meta.size)
                .map_err(|source| Error::Generic { store: STORE, source: Box::new(source) })?,
            None => 0..meta.size,
        };
        let bytes = if options.head { Bytes::new() } else { self.read(location, &range)? };
        Ok(GetResult {
            payload: GetResultPayload::Stream(
                futures::stream::once(async move { Ok(bytes) }).boxed(),
            ),
            meta,
            range,
            attributes: Attributes::default(),
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        ranges.iter().map(|range| self.read(location, range)).collect()
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .map(move |location| {
                let location = location?;
                let file = store.file(&location);
                if !store.disk.exists(&file).map_err(|e| error(&location, e))? {
                    return Err(error(&location, io::ErrorKind::NotFound.into()));
                }
                durable::remove(store.disk.as_ref(), &file).map_err(|e| error(&location, e))?;
                Ok(location)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.list_all(prefix) {
            Ok(all) => futures::stream::iter(all.into_iter().map(Ok)).boxed(),
            Err(e) => futures::stream::once(async { Err(e) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let mut result = ListResult { common_prefixes: Vec::new(), objects: Vec::new() };
        let entries = match self.disk.list(&self.file(&prefix)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(result),
            Err(e) => return Err(generic(e)),
        };
        for entry in entries {
            let location = prefix.clone().join(entry.name.as_str());
            if entry.is_dir {
                result.common_prefixes.push(location);
            } else if !entry.name.ends_with(durable::TEMP_SUFFIX) {
                result.objects.push(self.meta(&location)?);
            }
        }
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let meta = self.meta(from)?;
        let bytes = self.read(from, &(0..meta.size))?;
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        self.write(to, &bytes, &mode)
    }
}

impl DurableLocalStore {
    fn read(&self, location: &Path, range: &Range<u64>) -> Result<Bytes> {
        let file =
            self.disk.open(&self.file(location), OpenMode::Read).map_err(|e| error(location, e))?;
        let len = file.len().map_err(|e| error(location, e))?;
        if range.start > range.end || range.end > len {
            let what = format!("bytes {} to {} of {len} in {location}", range.start, range.end);
            return Err(generic(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
        }
        let mut out = vec![0u8; usize::try_from(range.end - range.start).unwrap_or(0)];
        read_exact_at(file.as_ref(), &mut out, range.start).map_err(|e| error(location, e))?;
        Ok(out.into())
    }
}

#[derive(Debug)]
struct Upload {
    store: DurableLocalStore,
    location: Path,
    bytes: Vec<u8>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let done = if self.bytes.len() + data.content_length() > MULTIPART_BYTES_MAX {
            Err(generic(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("an upload is limited to {MULTIPART_BYTES_MAX} bytes"),
            )))
        } else {
            data.iter().for_each(|part| self.bytes.extend_from_slice(part));
            Ok(())
        };
        Box::pin(async { done })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let bytes = std::mem::take(&mut self.bytes);
        self.store.write(&self.location, &bytes, &PutMode::Overwrite)?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        self.bytes = Vec::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::{TryStreamExt, executor::block_on};
    use millrace_platform::sim::{SimDisk, SimEntropy};
    use object_store::{ObjectStoreExt, memory::InMemory};

    use super::*;

    /// What every store here must do; run against ours and against the crate's own in memory.
    async fn contract(store: &dyn ObjectStore) {
        let path = Path::from("a/b/c.bin");
        assert!(matches!(store.get(&path).await, Err(Error::NotFound { .. })));
        store.put(&path, PutPayload::from_static(b"0123456789")).await.unwrap();
        let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let again = store.put_opts(&path, PutPayload::from_static(b"x"), create()).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
        assert_eq!(store.get_range(&path, 2..5).await.unwrap(), "234");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "0123456789");
        assert_eq!(store.head(&path).await.unwrap().size, 10);
        store.put(&path, PutPayload::from_static(b"new")).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "new");
        let other = Path::from("a/d.bin");
        store.copy(&path, &other).await.unwrap();
        let mut all: Vec<Path> =
            store.list(Some(&Path::from("a"))).map_ok(|m| m.location).try_collect().await.unwrap();
        all.sort();
        assert_eq!(all, [path.clone(), other.clone()]);
        let top = store.list_with_delimiter(Some(&Path::from("a"))).await.unwrap();
        assert_eq!(top.common_prefixes, [Path::from("a/b")]);
        assert_eq!(top.objects.len(), 1);
        store.delete(&path).await.unwrap();
        assert!(matches!(store.head(&path).await, Err(Error::NotFound { .. })));
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part(PutPayload::from_static(b"part ")).await.unwrap();
        upload.put_part(PutPayload::from_static(b"two")).await.unwrap();
        upload.complete().await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "part two");
    }

    #[test]
    fn the_local_store_keeps_the_contract_that_the_memory_store_keeps() {
        block_on(contract(&InMemory::new()));
        let disk = SimDisk::new();
        block_on(contract(&DurableLocalStore::open(Arc::new(disk), FsPath::new("/s")).unwrap()));
    }

    #[test]
    fn d1_a_put_or_a_delete_that_returned_survives_a_power_cut() {
        for seed in 0..50 {
            let disk = SimDisk::new();
            let store = DurableLocalStore::open(Arc::new(disk.clone()), FsPath::new("/s")).unwrap();
            let (kept, gone) = (Path::from("x/kept"), Path::from("x/gone"));
            block_on(async {
                store.put(&gone, PutPayload::from_static(b"old")).await.unwrap();
                store.put(&kept, PutPayload::from_static(b"data")).await.unwrap();
                store.delete(&gone).await.unwrap();
            });
            disk.power_cycle(&SimEntropy::seeded(seed));
            block_on(async {
                assert_eq!(store.get(&kept).await.unwrap().bytes().await.unwrap(), "data");
                assert!(store.head(&gone).await.is_err(), "seed {seed}: a deleted object is back");
            });
        }
    }
}
