//! The disk as an argument: a narrow trait and its real implementation.
//!
//! Owns: the only use of `std::fs` in the tree. Paths are absolute or relative to the process;
//! callers own their layout.
//! Never: retries. A failed sync is reported once and the caller must treat everything unsynced
//! in that file as lost.
//! What a disk promises: after `sync_data` returns `Ok`, the bytes written to that file before
//! survive a power cut; after `sync_dir` returns `Ok`, creations, renames, links and removals in
//! that directory before survive. Nothing else survives for sure.

use std::{
    fmt::Debug,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use direct::Direct;

mod direct;

/// How an existing file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Reads only.
    Read,
    /// Reads and writes in place.
    ReadWrite,
}

/// One entry of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// File name without its directory.
    pub name: String,
    /// Length in bytes; 0 for a directory.
    pub len: u64,
    /// Whether the entry is a directory.
    pub is_dir: bool,
}

/// A held exclusive lock; dropped, it is released.
#[derive(Debug)]
pub struct DiskLock {
    _held: Box<dyn Debug + Send + Sync>,
}

impl DiskLock {
    /// Wraps whatever releases the lock when dropped.
    pub fn new(held: Box<dyn Debug + Send + Sync>) -> Self {
        Self { _held: held }
    }
}

/// A file opened for positioned reads and writes.
pub trait DiskFile: Send + Sync + Debug {
    /// Reads up to `buf.len()` bytes at `offset`; 0 means end of file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`, extending the file if needed.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes every byte written so far durable (fdatasync). After an error the caller must never
    /// sync this file again: the kernel may have dropped the dirty pages.
    fn sync_data(&self) -> io::Result<()>;
    /// Reserves `len` bytes of zeroes from offset 0, so that later writes change no metadata.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts or extends the file to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Current length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A file system, narrow enough to be simulated exactly.
pub trait Disk: Send + Sync + Debug {
    /// Creates a file that must not exist yet, readable and writable, mode 0600.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>>;
    /// Renames, replacing `to` if it exists. Durable only after `sync_dir` of the parent.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives the file a second name that must not exist yet (`AlreadyExists` otherwise): the
    /// create-only publication of a fully written file.
    fn link_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name. Durable only after `sync_dir` of the parent.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory and its parents, mode 0700, and makes each new entry durable.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Lists a directory, sorted by name.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Whether anything has this name.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Takes an exclusive advisory lock on a lock file, created if missing. `WouldBlock` if
    /// another process holds it.
    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock>;
    /// Permission bits of a file (`0o600`).
    fn mode(&self, path: &Path) -> io::Result<u32>;
    /// Bytes still free for this process on the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Last modification in nanoseconds since the Unix epoch, by the disk's own clock.
    fn modified_ns(&self, path: &Path) -> io::Result<i64>;
}

/// Reads a whole file that must not be longer than `max` bytes (`InvalidData` if it is).
pub fn read_file(disk: &dyn Disk, path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let len = file.len()?;
    if len > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is {len} bytes long, over the limit of {max}", path.display()),
        ));
    }
    let mut out = vec![0u8; usize::try_from(len).map_err(io::Error::other)?];
    read_exact_at(file.as_ref(), &mut out, 0)?;
    Ok(out)
}

/// Fills `buf` from `offset`, or fails with `UnexpectedEof`.
pub fn read_exact_at(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The machine's file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile {
    file: File,
    /// Where `file` was made or opened.
    path: PathBuf,
    /// For large writes into an allocated file.
    direct: OnceLock<Direct>,
}

impl RealFile {
    fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.to_path_buf(), direct: OnceLock::new() }
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match self.direct.get() {
            Some(direct) if direct.takes(buf, offset) => direct.write(buf, offset, &self.file),
            _ => self.file.write_all_at(buf, offset),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        // A sync is of the file, whichever handle wrote.
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => {
                if let Some(direct) = Direct::open(&self.path, &self.file) {
                    let _ = self.direct.set(direct);
                }
                Ok(())
            }
            // Some file systems (overlay, tmpfs of old kernels) have no fallocate; the file then
            // grows as it is written, which is slower but no less safe.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.file.set_len(len),
            Err(e) => Err(e.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the disk's real implementation")]
impl Disk for RealDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile::new(file, path)))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(mode == OpenMode::ReadWrite).open(path)?;
        Ok(Box::new(RealFile::new(file, path)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        if path.is_dir() {
            return Ok(());
        }
        let parent = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        self.create_dir_all(parent)?;
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(e) => return Err(e),
        }
        self.sync_dir(parent)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // Removed between the listing and the look: it is not there.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let is_dir = meta.is_dir();
            out.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                len: if is_dir { 0 } else { meta.len() },
                is_dir,
            });
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        file.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
            std::fs::TryLockError::Error(e) => e,
        })?;
        Ok(DiskLock::new(Box::new(file)))
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        use std::os::unix::fs::PermissionsExt;
        Ok(std::fs::metadata(path)?.permissions().mode() & 0o7777)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn modified_ns(&self, path: &Path) -> io::Result<i64> {
        let since = std::fs::metadata(path)?
            .modified()?
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}
