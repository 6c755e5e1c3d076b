//! Large writes into an allocated file, past the page cache.
//!
//! Owns: the handle with `O_DIRECT`, alignment, and when it is used. A log is written once and
//! read after a crash only, so a copy of it in the page cache costs the copy and the pages of
//! files that queries do read.
//! Never: makes a write fail that would succeed through the page cache: a file system that has no
//! direct writes, or stops taking them, gets all later ones through the other handle.
//! Direct or not, nothing is durable before the file is synced.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// What addresses, offsets and lengths are multiples of: the sector of today's devices.
const ALIGN: usize = 4096;
/// Smaller writes go through the page cache: they wait for the device at the sync, and only once.
const BYTES_MIN: usize = 64 * 1024;
/// Bytes that are brought to an aligned address and written at once; the memory that is kept.
const PIECE_BYTES: usize = 1 << 20;

/// See the module head.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    refused: AtomicBool,
    /// Room for a piece at an aligned address.
    piece: Mutex<Vec<u8>>,
}

impl Direct {
    /// A second handle of the file that `plain` is and that was made at `path`; `None` where there
    /// is no such thing.
    #[expect(clippy::disallowed_methods, reason = "this is part of the disk's real implementation")]
    pub(super) fn open(path: &Path, plain: &File) -> Option<Self> {
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path).ok()?;
        // The path may name another file by now.
        let (a, b) = (plain.metadata().ok()?, file.metadata().ok()?);
        let same = a.dev() == b.dev() && a.ino() == b.ino();
        same.then(|| Self { file, refused: AtomicBool::new(false), piece: Mutex::default() })
    }

    /// Whether this write is one for this handle.
    pub(super) fn takes(&self, bytes: &[u8], offset: u64) -> bool {
        bytes.len() >= BYTES_MIN
            && bytes.len().is_multiple_of(ALIGN)
            && offset.is_multiple_of(ALIGN as u64)
            && !self.refused.load(Ordering::Relaxed)
    }

    /// Writes all of `bytes`; what this handle does not take goes through `plain`.
    pub(super) fn write(&self, bytes: &[u8], offset: u64, plain: &File) -> io::Result<()> {
        let mut piece = self.piece.lock().unwrap_or_else(PoisonError::into_inner);
        piece.resize(PIECE_BYTES + ALIGN, 0);
        let start = piece.as_ptr().align_offset(ALIGN);
        let mut at = offset;
        for part in bytes.chunks(PIECE_BYTES) {
            let aligned = piece.get_mut(start..).and_then(|room| room.get_mut(..part.len()));
            let Some(aligned) = aligned else { return plain.write_all_at(part, at) };
            aligned.copy_from_slice(part);
            self.put(aligned, at, plain)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn put(&self, aligned: &[u8], at: u64, plain: &File) -> io::Result<()> {
        match self.file.write_all_at(aligned, at) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                self.refused.store(true, Ordering::Relaxed);
                plain.write_all_at(aligned, at)
            }
            written => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Disk, OpenMode, RealDisk, read_exact_at};
    use super::*;

    #[test]
    fn large_and_small_writes_of_any_alignment_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = RealDisk.create_new(&path).unwrap();
        let len = 5 * PIECE_BYTES;
        file.allocate(len as u64).unwrap();
        let mut expected = vec![0u8; len];
        let bytes = |n: usize, seed: usize| -> Vec<u8> {
            (0..n).map(|i| ((i * 31 + seed) % 251) as u8).collect()
        };
        let writes = [
            (0, ALIGN),
            (ALIGN, BYTES_MIN),
            (3 * ALIGN, 2 * PIECE_BYTES + ALIGN),
            (5, 2 * BYTES_MIN),
            (2 * ALIGN, BYTES_MIN + 1),
            (0, 3 * PIECE_BYTES),
            (100, 10),
        ];
        for (seed, (at, n)) in writes.into_iter().enumerate() {
            // From an address that is aligned to nothing.
            let source = bytes(n + 1, seed);
            file.write_at(&source[1..], at as u64).unwrap();
            expected[at..at + n].copy_from_slice(&source[1..]);
            let mut found = vec![0; len];
            read_exact_at(file.as_ref(), &mut found, 0).unwrap();
            assert!(found == expected, "write {seed}");
        }
        file.sync_data().unwrap();
        let again = RealDisk.open(&path, OpenMode::Read).unwrap();
        let mut found = vec![0; len];
        read_exact_at(again.as_ref(), &mut found, 0).unwrap();
        assert!(found == expected);
    }

    #[test]
    fn a_device_that_refuses_loses_nothing_and_other_errors_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        RealDisk.create_new(&path).unwrap();
        #[expect(clippy::disallowed_methods, reason = "the handle beside the direct one")]
        let plain = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // Where the file system has no direct writes there is nothing to refuse.
        if let Some(direct) = Direct::open(&path, &plain) {
            assert!(direct.takes(&[1; BYTES_MIN], 0));
            assert!(!direct.takes(&[1; BYTES_MIN], 512));
            assert!(!direct.takes(&[1; BYTES_MIN - ALIGN], 0));
            // No device takes an offset of 7; one with larger sectors would not take ours.
            direct.put(&[7; BYTES_MIN], 7, &plain).unwrap();
            let mut found = vec![0; BYTES_MIN + 7];
            plain.read_exact_at(&mut found, 0).unwrap();
            assert!(found[7..] == [7; BYTES_MIN]);
            assert!(!direct.takes(&[1; BYTES_MIN], 0), "it is not asked again");
        }
        let file = File::open(&path).unwrap();
        let read_only = Direct { file, refused: AtomicBool::new(false), piece: Mutex::default() };
        assert!(read_only.write(&[1; BYTES_MIN], 0, &plain).is_err());
    }

    #[test]
    fn a_name_that_means_another_file_by_now_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        RealDisk.create_new(&path).unwrap();
        let plain = File::open(&path).unwrap();
        RealDisk.rename(&path, &dir.path().join("other")).unwrap();
        assert!(Direct::open(&path, &plain).is_none());
        RealDisk.create_new(&path).unwrap();
        assert!(Direct::open(&path, &plain).is_none());
    }
}
