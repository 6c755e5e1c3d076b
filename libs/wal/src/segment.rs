//! A segment file: one header page, then batches of frames on page boundaries.
//!
//! ```text
//! offset size
//!      0    8  magic "MRWALSEG"
//!      8    4  version = 1
//!     12    4  page size = 4096
//!     16    8  segment number
//!     24    8  first log number that a frame here may have
//!     32    8  continues after: the last log number that counts in the segments before this one
//!     40    8  carried through: frames up to this number were synced before the file got its name
//!     48    8  start of the process that writes it (counted from 1)
//!     56   32  random salt
//!     88    8  allocated length of the file
//!     96   28  zero
//!    124    4  CRC32C of bytes 0..124
//!    128    -  filled with 0xA5 up to the page
//! ```
//! A batch is what one commit writes: frames back to back, filled with 0xA5 up to the page, so
//! that a synced page is never written again and a sector of a written page is never all zero.
//! Owns: header layout, file names, creation. Never: gives a file its name before its header and
//! the frames that it starts with are synced.
//! A trimmed segment's first sector is overwritten with "MRWALEND" and zeroes before it is unlinked.
//! Crash order: create `.tmp`, allocate, write, sync, rename, sync the directory. A crash leaves
//! a `.tmp` that the next start sweeps, or a complete segment.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_platform::{
    disk::{Disk, DiskFile, OpenMode},
    durable,
};

use crate::{
    error::{Damage, WalError, is_full},
    frame::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_MAX, NUMBER_MAX, array, u32_at, u64_at},
    keys::SegmentContext,
};

/// Bytes of a segment header.
pub const SEGMENT_HEADER_BYTES: usize = 128;
/// Unit of writing: a page is written once. 4 KiB is the sector of today's devices.
pub const PAGE_BYTES: u64 = 4096;
/// Unit of tearing: a power cut leaves a sector of this size old or new.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// The smallest segment: a header page and three more.
pub const SEGMENT_BYTES_MIN: u64 = 4 * PAGE_BYTES;
/// The server's segments: 64 MiB.
pub(crate) const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// What fills the rest of a page.
pub(crate) const PAD: u8 = 0xA5;
/// Bytes that a seal adds.
pub(crate) const TAG: usize = millrace_crypto::aead::TAG_BYTES;

const MAGIC: [u8; 8] = *b"MRWALSEG";
/// What trim writes over a header, so that salt and with it the keys are gone before the name is.
const DESTROYED: [u8; 8] = *b"MRWALEND";
const VERSION: u32 = 1;

const _: () = assert!(
    PAGE_BYTES + (FRAME_HEADER_BYTES + FRAME_PAYLOAD_MAX + TAG) as u64 <= SEGMENT_BYTES_DEFAULT,
    "the largest frame fits into a segment"
);
const _: () = assert!(SEGMENT_HEADER_BYTES as u64 <= SECTOR_BYTES, "a header never tears");

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    pub(crate) first_lsn: u64,
    pub(crate) continues_after: u64,
    pub(crate) carried_through: u64,
    pub(crate) incarnation: u64,
    pub(crate) salt: [u8; 32],
    pub(crate) allocated: u64,
}

pub(crate) enum HeaderError {
    NotAHeader,
    Version(u32),
    Destroyed,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0u8; SEGMENT_HEADER_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_lsn.to_le_bytes());
        out[32..40].copy_from_slice(&self.continues_after.to_le_bytes());
        out[40..48].copy_from_slice(&self.carried_through.to_le_bytes());
        out[48..56].copy_from_slice(&self.incarnation.to_le_bytes());
        out[56..88].copy_from_slice(&self.salt);
        out[88..96].copy_from_slice(&self.allocated.to_le_bytes());
        let crc = crc32c::crc32c(&out[..124]);
        out[124..128].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.get(..SECTOR_BYTES as usize) == Some(destroyed().as_slice()) {
            return Err(HeaderError::Destroyed);
        }
        if bytes.len() < SEGMENT_HEADER_BYTES
            || bytes[..8] != MAGIC
            || u32_at(bytes, 124) != crc32c::crc32c(&bytes[..124])
        {
            return Err(HeaderError::NotAHeader);
        }
        if u32_at(bytes, 8) != VERSION {
            return Err(HeaderError::Version(u32_at(bytes, 8)));
        }
        let header = Self {
            number: u64_at(bytes, 16),
            first_lsn: u64_at(bytes, 24),
            continues_after: u64_at(bytes, 32),
            carried_through: u64_at(bytes, 40),
            incarnation: u64_at(bytes, 48),
            salt: array(bytes, 56),
            allocated: u64_at(bytes, 88),
        };
        let numbers = [
            header.number,
            header.first_lsn,
            header.carried_through,
            header.incarnation,
            header.allocated,
        ];
        let sane = u64::from(u32_at(bytes, 12)) == PAGE_BYTES
            && numbers.iter().all(|n| *n <= NUMBER_MAX)
            && header.first_lsn > header.continues_after
            && header.carried_through + 1 >= header.first_lsn;
        if sane { Ok(header) } else { Err(HeaderError::NotAHeader) }
    }

    pub(crate) fn context(&self) -> SegmentContext {
        SegmentContext { salt: self.salt, segment: self.number, incarnation: self.incarnation }
    }
}

/// The first sector of a segment whose keys were destroyed.
fn destroyed() -> [u8; SECTOR_BYTES as usize] {
    let mut out = [0u8; SECTOR_BYTES as usize];
    out[..8].copy_from_slice(&DESTROYED);
    out
}

/// Writes over the header, so that nothing in the segment can be opened any more.
pub(crate) fn destroy(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let file = disk.open(path, OpenMode::ReadWrite)?;
    file.write_at(&destroyed(), 0)?;
    file.sync_data()
}

/// What a segment file turns out to be.
pub(crate) enum Found {
    Segment(Entry),
    Damage(Damage),
    /// Trimmed, but for its name.
    Destroyed,
}

/// A segment that is there.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    pub(crate) len: u64,
}

pub(crate) fn file_name(number: u64) -> String {
    format!("{number:020}.wal")
}

/// The number in a segment's file name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    let number = digits.parse().ok().filter(|n| *n <= NUMBER_MAX)?;
    (digits.len() == 20).then_some(number)
}

/// Reads a segment's header.
pub(crate) fn read_header(disk: &dyn Disk, path: &Path, number: u64) -> Result<Found, WalError> {
    let file = disk.open(path, OpenMode::Read).map_err(WalError::io("open", path))?;
    let len = file.len().map_err(WalError::io("measure", path))?;
    let damage = |what| Damage {
        segment: number,
        byte: 0,
        byte_end: len,
        first_lsn: 0,
        last_lsn: None,
        what,
    };
    if len < PAGE_BYTES {
        return Ok(Found::Damage(damage("the file is shorter than a segment header")));
    }
    let mut bytes = [0u8; SECTOR_BYTES as usize];
    millrace_platform::disk::read_exact_at(file.as_ref(), &mut bytes, 0)
        .map_err(WalError::io("read", path))?;
    match SegmentHeader::decode(&bytes) {
        Ok(header) if header.number == number => {
            Ok(Found::Segment(Entry { path: path.to_path_buf(), header, len }))
        }
        Ok(_) => Ok(Found::Damage(damage("the header belongs to another segment"))),
        Err(HeaderError::NotAHeader) => Ok(Found::Damage(damage("the header is not one"))),
        Err(HeaderError::Destroyed) => Ok(Found::Destroyed),
        Err(HeaderError::Version(version)) => {
            Err(WalError::UnknownVersion { path: path.to_path_buf(), version })
        }
    }
}

/// Makes a segment that starts with `carried` (a batch of whole pages, possibly none), durable
/// under its name.
pub(crate) fn create(
    disk: &dyn Disk,
    dir: &Path,
    header: &SegmentHeader,
    carried: &[u8],
) -> Result<(Arc<dyn DiskFile>, Entry), WalError> {
    let path = dir.join(file_name(header.number));
    let mut temp = path.clone().into_os_string();
    temp.push(durable::TEMP_SUFFIX);
    let temp = PathBuf::from(temp);
    if disk.exists(&path).map_err(WalError::io("look for", &path))? {
        let source = io::ErrorKind::AlreadyExists.into();
        return Err(WalError::Io { what: "create", path, source });
    }
    let made = (|| -> Result<Arc<dyn DiskFile>, (&'static str, io::Error)> {
        let file = disk.create_new(&temp).map_err(|e| ("create", e))?;
        file.allocate(header.allocated).map_err(|e| ("allocate", e))?;
        let mut first = vec![PAD; PAGE_BYTES as usize];
        first[..SEGMENT_HEADER_BYTES].copy_from_slice(&header.encode());
        file.write_at(&first, 0).map_err(|e| ("write", e))?;
        if !carried.is_empty() {
            file.write_at(carried, PAGE_BYTES).map_err(|e| ("write", e))?;
        }
        file.sync_data().map_err(|e| ("sync", e))?;
        durable::publish(disk, &temp, &path).map_err(|e| ("publish", e))?;
        Ok(Arc::from(file))
    })();
    match made {
        Ok(file) => {
            let entry = Entry { path, header: header.clone(), len: header.allocated };
            Ok((file, entry))
        }
        Err((what, source)) => {
            // Give the space back; what stays behind is swept at the next start. A segment that
            // got its name but not its directory sync holds nothing that counts: the next one
            // continues after the same number.
            for left in [&temp, &path] {
                match disk.remove(left) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(path = %left.display(), error = %e, "a half-made log segment stays");
                    }
                    _ => {}
                }
            }
            if is_full(source.kind()) {
                return Err(WalError::DiskFull {
                    dir: dir.to_path_buf(),
                    needed: header.allocated,
                    source,
                });
            }
            Err(WalError::Io { what, path, source })
        }
    }
}

/// Fills a batch up to the page.
pub(crate) fn pad(batch: &mut Vec<u8>) {
    let whole = batch.len().next_multiple_of(PAGE_BYTES as usize);
    batch.resize(whole, PAD);
}
