//! Segments of the log.
//!
//! Input: the first byte chooses a segment of a valid log (bits 0-1), whether checksums are made
//! good after the edits (16), whether damage is put in quarantine (32); the rest is an edit script
//! (see [`crate::edit`]).
//! Properties: whatever a segment holds, a start either says what is wrong or reads frames that
//! were written, with the bytes that were written, in rising order; a log that opens takes writes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use millrace_platform::{
    disk::{Disk, OpenMode, read_exact_at},
    sim::{SimClock, SimDisk, SimEntropy},
};
use millrace_wal::{
    FRAME_HEADER_BYTES, Frame, KeyRef, OnDamage, Options, PAGE_BYTES, SEGMENT_BYTES_MIN,
    SEGMENT_HEADER_BYTES, Scanned, TenantSegmentKeys, Wal, WalError,
};

use crate::{
    edit,
    keys::{FixedKeys, TENANT},
};

const DIR: &str = "/log";
const RESEAL: u8 = 16;
const QUARANTINE: u8 = 32;
const KEY: KeyRef = KeyRef { owner: TENANT, version: 1 };

/// A log of two starts and several segments.
struct Base {
    disk: SimDisk,
    segments: Vec<PathBuf>,
    written: BTreeMap<u64, Vec<u8>>,
}

fn open(
    disk: &SimDisk,
    on_damage: OnDamage,
    seed: u64,
) -> Result<(Wal, millrace_wal::Recovery), WalError> {
    let options = Options {
        segment_bytes: SEGMENT_BYTES_MIN,
        buffer_bytes: 4096,
        on_damage,
        clock: Arc::new(SimClock::default()),
    };
    let keys = Arc::new(TenantSegmentKeys::new(Arc::new(FixedKeys)));
    Wal::open(Arc::new(disk.clone()), Path::new(DIR), keys, &SimEntropy::seeded(seed), options)
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let disk = SimDisk::new();
        let mut written = BTreeMap::new();
        for start in 0..2u64 {
            let (wal, _) = open(&disk, OnDamage::Refuse, start).expect("a good log opens");
            for (n, len) in [10, 0, 3_000, 5_000, 200, 7_000].into_iter().enumerate() {
                let payload: Vec<u8> = (0..len).map(|at| (at as usize + n) as u8).collect();
                let lsn = wal.append(KEY, &payload).expect("a good disk takes frames");
                wal.commit(lsn).expect("a good disk syncs");
                written.insert(lsn, payload);
            }
        }
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|e| e == "wal");
        let segments = disk.paths().into_iter().filter(is_segment).collect();
        Base { disk, segments, written }
    })
}

/// Makes the checksums of the header and of every frame that still begins like one good again.
fn reseal(segment: &mut [u8]) {
    let crc = |bytes: &[u8]| crc32c::crc32c(bytes).to_le_bytes();
    let Some(header) = segment.get_mut(..SEGMENT_HEADER_BYTES) else { return };
    let sum = crc(&header[..124]);
    header[124..128].copy_from_slice(&sum);
    let page = PAGE_BYTES as usize;
    let mut at = page;
    while let Some(frame) = segment.get_mut(at..).filter(|f| f.len() >= FRAME_HEADER_BYTES) {
        if frame[..4] != *b"MRF1" {
            at = (at + 1).next_multiple_of(page);
            continue;
        }
        let len = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
        let end = FRAME_HEADER_BYTES.saturating_add(len).min(frame.len());
        let sum = crc(&frame[FRAME_HEADER_BYTES..end]);
        frame[72..76].copy_from_slice(&sum);
        let sum = crc(&frame[..76]);
        frame[76..80].copy_from_slice(&sum);
        at += end;
    }
}

fn edit_segment(disk: &SimDisk, path: &Path, script: &[u8], checksums: bool) {
    let file = disk.open(path, OpenMode::ReadWrite).expect("the segment is there");
    let mut bytes = vec![0; file.len().expect("a length") as usize];
    read_exact_at(file.as_ref(), &mut bytes, 0).expect("it reads");
    edit::apply(script, &mut bytes);
    if checksums {
        reseal(&mut bytes);
    }
    file.set_len(bytes.len() as u64).expect("it can be cut");
    file.write_at(&bytes, 0).expect("it can be written");
}

/// The target.
pub fn run(data: &[u8]) {
    let Some((choice, script)) = data.split_first() else { return };
    let base = base();
    let disk = base.disk.fork();
    let segment = &base.segments[usize::from(choice & 3) % base.segments.len()];
    edit_segment(&disk, segment, script, choice & RESEAL != 0);
    let on_damage = if choice & QUARANTINE == 0 { OnDamage::Refuse } else { OnDamage::Quarantine };
    let Ok((wal, recovery)) = open(&disk, on_damage, 9) else { return };
    let mut last = 0;
    let read = recovery.scan(recovery.first_lsn(), &mut |scanned| -> Result<(), WalError> {
        if let Scanned::Frame(Frame { lsn, payload, .. }) = scanned {
            assert!(lsn > last, "numbers rise");
            assert_eq!(Some(&payload), base.written.get(&lsn), "frame {lsn} has other bytes");
            last = lsn;
        }
        Ok(())
    });
    if read.is_ok() {
        let lsn = wal.append(KEY, b"after").expect("a log that opens takes frames");
        wal.commit(lsn).expect("and syncs them");
        assert!(lsn > last, "a new frame has a new number");
    }
}

/// The log as it is, and edits of every part of a segment.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with = |choice: u8, script: Vec<u8>| [vec![choice], script].concat();
    let page = PAGE_BYTES as u32;
    vec![
        ("whole", with(0, vec![])),
        ("header", with(RESEAL, edit::one(0, 24, 1))),
        ("frame-number", with(1 | RESEAL, edit::one(0, page + 8, 1))),
        ("frame-length", with(2 | RESEAL | QUARANTINE, edit::one(0, page + 5, 0x10))),
        ("body", with(1 | QUARANTINE, edit::one(0, page + 100, 0xff))),
        ("key", with(RESEAL | QUARANTINE, edit::one(1, page + 24, 0xff))),
        ("cut", with(3, edit::one(2, page + 300, 0))),
        ("moved", with(1 | RESEAL, edit::one(3, 2 * page, 255))),
    ]
}
