//! An object store on a local directory that survives power cuts.
//!
//! Owns: temp file, write, sync, publish, sync of the directory; deletes are synced too. The
//! generic local store of the `object_store` crate syncs nothing in the version that DataFusion
//! uses, which is why this exists.
//! Never: shows a half-written object; overwrites on a create-only put; syncs again what failed
//! to sync once: after that it refuses every change until the process starts anew.
//! Invariants: `AlreadyExists` is answered only after the sync of the directory, so that whoever
//! loses a create stands on something durable; a temp file has one writer, because its name
//! carries a random part of the store that made it.
//! Crash order of a put: temp file, bytes, sync, name, sync of the directory; any prefix leaves
//! the old object or the new one and at most a temp file, which [`DurableLocalStore::sweep`]
//! removes at start.

use std::{
    fmt, io,
    ops::Range,
    path::{Path as FsPath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream::BoxStream};
use millrace_platform::{
    disk::{Disk, OpenMode, read_exact_at},
    durable::{self, TEMP_SUFFIX},
    entropy::{Entropy, random_bytes},
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
    /// Part of the names of temp files, so that no other store writes to them.
    tag: u32,
    temps: Arc<AtomicU64>,
    /// A sync of a directory has failed: what is durable is not known any more.
    poisoned: Arc<AtomicBool>,
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
        // A folder on the way is a file, or the object is asked for as a folder.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::NotFound { path: location.to_string(), source: Box::new(source) }
        }
        io::ErrorKind::AlreadyExists => {
            Error::AlreadyExists { path: location.to_string(), source: Box::new(source) }
        }
        _ => generic(source),
    }
}

/// The location of a directory entry: file names are encoded parts already. `None` for a name
/// that no object can have, which somebody else has put there.
fn child(prefix: &Path, name: &str) -> Option<Path> {
    let full = match prefix.as_ref() {
        "" => name.to_owned(),
        prefix => format!("{prefix}/{name}"),
    };
    Path::parse(full).ok()
}

fn is_no_folder(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl DurableLocalStore {
    /// A store in `root`, which is made if missing.
    pub fn open(disk: Arc<dyn Disk>, root: &FsPath, entropy: &dyn Entropy) -> io::Result<Self> {
        disk.create_dir_all(root)?;
        Ok(Self {
            disk,
            root: root.to_path_buf(),
            tag: u32::from_le_bytes(random_bytes(entropy)),
            temps: Arc::default(),
            poisoned: Arc::default(),
        })
    }

    /// Becomes true when nothing more is written because a sync of a directory has failed.
    pub fn poisoned(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.poisoned)
    }

    /// Removes temp files that a crash left below `folder`; returns how many. Only for a start:
    /// a put of another process that is under way fails.
    pub fn sweep(&self, folder: &Path) -> io::Result<usize> {
        self.sweep_dir(&self.file(folder))
    }

    fn sweep_dir(&self, dir: &FsPath) -> io::Result<usize> {
        if !self.disk.exists(dir)? {
            return Ok(0);
        }
        let mut swept = durable::sweep_temp(self.disk.as_ref(), dir)?;
        for entry in self.disk.list(dir)?.iter().filter(|e| e.is_dir) {
            swept += self.sweep_dir(&dir.join(&entry.name))?;
        }
        Ok(swept)
    }

    /// Where an object is. Parts are percent-encoded by `object_store`, so none is `..`.
    fn file(&self, location: &Path) -> PathBuf {
        location.parts().fold(self.root.clone(), |p, part| p.join(part.as_ref()))
    }

    /// Refuses changes after a failed sync, and names that would pass for temp files.
    fn may_change(&self, location: &Path) -> Result<()> {
        let refuse = |what: &str| generic(io::Error::new(io::ErrorKind::InvalidInput, what));
        if self.poisoned.load(Ordering::Acquire) {
            return Err(generic(io::Error::other(
                "a sync of a directory has failed before, so nothing is written any more; check the disk and restart",
            )));
        }
        match location.filename() {
            None => Err(refuse("an object needs a name")),
            Some(name) if name.ends_with(TEMP_SUFFIX) => {
                Err(refuse("names that end in .tmp are kept for files that are being written"))
            }
            Some(_) => Ok(()),
        }
    }

    fn sync_parent(&self, file: &FsPath) -> io::Result<()> {
        let synced = self.disk.sync_dir(file.parent().unwrap_or(&self.root));
        if synced.is_err() {
            self.poisoned.store(true, Ordering::Release);
        }
        synced
    }

    /// Writes and syncs the bytes under a name of their own beside `file`.
    fn write_temp(&self, file: &FsPath, bytes: &[u8]) -> io::Result<PathBuf> {
        let number = self.temps.fetch_add(1, Ordering::Relaxed);
        let mut temp = file.as_os_str().to_owned();
        temp.push(format!(".{:08x}-{number}{TEMP_SUFFIX}", self.tag));
        let temp = PathBuf::from(temp);
        let write = || {
            let handle = self.disk.create_new(&temp)?;
            handle.write_at(bytes, 0)?;
            handle.sync_data()
        };
        match write() {
            Ok(()) => Ok(temp),
            Err(e) => {
                self.drop_temp(&temp);
                Err(e)
            }
        }
    }

    /// Gives the space back; what cannot be removed now is swept at the next start.
    fn drop_temp(&self, temp: &FsPath) {
        if let Err(error) = self.disk.remove(temp)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a temp file stays until the next start");
        }
    }

    fn create(&self, file: &FsPath, bytes: &[u8]) -> io::Result<()> {
        if self.disk.exists(file)? {
            self.sync_parent(file)?;
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let temp = self.write_temp(file, bytes)?;
        let linked = self.disk.link_new(&temp, file);
        self.drop_temp(&temp);
        match linked {
            Ok(()) => self.sync_parent(file),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.sync_parent(file)?;
                Err(e)
            }
            Err(e) => Err(e),
        }
    }

    fn replace(&self, file: &FsPath, bytes: &[u8]) -> io::Result<()> {
        let temp = self.write_temp(file, bytes)?;
        // Renames, then syncs the directory: which of the two failed cannot be told from here.
        let published = durable::publish(self.disk.as_ref(), &temp, file);
        if published.is_err() {
            self.drop_temp(&temp);
            self.poisoned.store(true, Ordering::Release);
        }
        published
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
        self.may_change(location)?;
        let file = self.file(location);
        let parent = file.parent().unwrap_or(&self.root);
        self.disk.create_dir_all(parent).map_err(|e| error(location, e))?;
        let done = match mode {
            PutMode::Create => self.create(&file, bytes),
            PutMode::Overwrite => self.replace(&file, bytes),
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
            Err(e) if is_no_folder(&e) => return Ok(()),
            Err(e) => return Err(generic(e)),
        };
        for entry in entries {
            let Some(location) = child(prefix, &entry.name) else { continue };
            if entry.is_dir {
                self.walk(&dir.join(&entry.name), &location, out)?;
            } else if !entry.name.ends_with(TEMP_SUFFIX) {
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
                store.may_change(&location)?;
                let file = store.file(&location);
                store
                    .disk
                    .remove(&file)
                    .and_then(|()| store.sync_parent(&file))
                    .map_err(|e| error(&location, e))?;
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
            Err(e) if is_no_folder(&e) => return Ok(result),
            Err(e) => return Err(generic(e)),
        };
        for entry in entries {
            let Some(location) = child(&prefix, &entry.name) else { continue };
            if entry.is_dir {
                result.common_prefixes.push(location);
            } else if !entry.name.ends_with(TEMP_SUFFIX) {
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
mod tests;
