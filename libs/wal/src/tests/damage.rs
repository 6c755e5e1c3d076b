//! Changed bits, cut files, lost sectors and pages, missing segments, keys that are gone.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_platform::{
    disk::{Disk, OpenMode},
    sim::{SimDisk, SimEntropy},
};

use super::{
    seeds,
    world::{DIR, World, owner},
};
use crate::{
    Damage, OnDamage, PAGE_BYTES, Replayed, Scanned, SegmentKeys, WalError, scan_quarantine,
};

/// A log of several starts and segments, all of it acknowledged.
fn written(seed: u64) -> World {
    let mut w = World::seeded(seed);
    w.open().unwrap();
    w.trace(false).unwrap();
    w.check_live().unwrap();
    for round in 0..3 {
        let mut last = 0;
        for _ in 0..=round {
            last = w.append().unwrap();
        }
        w.commit(last).unwrap();
    }
    w.wal = None;
    w
}

/// Opens and reads a copy of the disk as it is.
fn read_back(w: &World, disk: &SimDisk) -> Result<BTreeMap<u64, Vec<u8>>, WalError> {
    let keys: Arc<dyn SegmentKeys> = Arc::clone(&w.keys) as _;
    let entropy = SimEntropy::seeded(99);
    let (_, recovery) = crate::Wal::open(
        Arc::new(disk.clone()),
        Path::new(DIR),
        keys,
        &entropy,
        w.options.clone(),
    )?;
    let mut out = BTreeMap::new();
    recovery.read(w.floor, &mut |r| -> Result<(), WalError> {
        if let Replayed::Frame(f) = r {
            out.insert(f.lsn, f.payload);
        }
        Ok(())
    })?;
    Ok(out)
}

/// An error, or exactly what was written.
fn verdict(w: &World, disk: &SimDisk) -> Result<bool, String> {
    let expected: BTreeMap<u64, Vec<u8>> =
        w.acked.range(w.floor..).map(|(l, p)| (*l, p.clone())).collect();
    match read_back(w, disk) {
        Ok(found) if found == expected => Ok(true),
        Ok(found) if found.len() < expected.len() => {
            Err(format!("{} frames went missing in silence", expected.len() - found.len()))
        }
        Ok(_) => Err("other payloads came back".into()),
        Err(WalError::Damaged(_) | WalError::UnknownVersion { .. } | WalError::Trimmed { .. }) => {
            Ok(false)
        }
        Err(e) => Err(format!("the wrong error: {e}")),
    }
}

/// Flips `count` bits, one at a time, in places drawn from `seed`.
pub(super) fn flips(seed: u64, count: u64) -> Result<(), String> {
    let w = written(seed);
    let dice = SimEntropy::seeded(seed ^ 0xf11b);
    let segments = w.segments();
    for _ in 0..count {
        let path = &segments[dice.below(segments.len() as u64) as usize];
        let len = w.disk.open(path, OpenMode::Read).unwrap().len().unwrap();
        // Headers and the first frames are where the sense is; draw them more often.
        let byte = if dice.below(2) == 0 { dice.below(len) } else { dice.below(6000) };
        let bit = dice.below(8) as u8;
        let disk = w.disk.fork();
        disk.flip_bit(path, byte, bit).map_err(|e| e.to_string())?;
        verdict(&w, &disk).map_err(|e| format!("{} byte {byte} bit {bit}: {e}", path.display()))?;
    }
    Ok(())
}

pub(super) fn undamaged(seed: u64) -> Result<(), String> {
    let w = written(seed);
    match verdict(&w, &w.disk.fork())? {
        true => Ok(()),
        false => Err("an undamaged log is refused".into()),
    }
}

#[test]
fn d1_a_flipped_bit_is_an_error_or_changes_nothing() {
    for seed in seeds(10) {
        undamaged(seed).unwrap();
        flips(seed, 500).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn d1_every_bit_of_a_small_log_may_flip() {
    let mut w = World::seeded(1);
    w.options.segment_bytes = 16 << 10;
    w.open().unwrap();
    for len in [0usize, 1, 40, 600] {
        let wal = w.wal.as_ref().unwrap();
        let payload = vec![b'p'; len];
        let lsn = wal.append(owner(1), &payload).unwrap();
        if len != 1 {
            wal.commit(lsn).unwrap();
        }
        w.acked.insert(lsn, payload);
    }
    w.wal = None;
    let path = w.segments()[0].clone();
    let mut refused = 0u64;
    for byte in 0..4 * PAGE_BYTES {
        // Padding and what was never written gets one bit per byte, frames get all eight.
        let dense = byte % PAGE_BYTES < 900;
        for bit in if dense { 0..8 } else { (byte % 8) as u8..(byte % 8) as u8 + 1 } {
            let disk = w.disk.fork();
            disk.flip_bit(&path, byte, bit).unwrap();
            match verdict(&w, &disk) {
                Ok(same) => refused += u64::from(!same),
                Err(e) => panic!("byte {byte} bit {bit}: {e}"),
            }
        }
    }
    // The header and four frames with their heads: at least these bits must have been noticed.
    assert!(refused > 8 * (128 + 4 * 96 + 641), "{refused}");
}

#[test]
fn d1_a_file_cut_at_any_length_is_an_error_or_changes_nothing() {
    for seed in seeds(2) {
        let w = written(seed);
        for path in w.segments() {
            let len = w.disk.open(&path, OpenMode::Read).unwrap().len().unwrap();
            for cut in
                (0..len).step_by(if seed == 0 { 61 } else { 509 }).chain([len - 1, 4096, 8192])
            {
                let disk = w.disk.fork();
                let file = disk.open(&path, OpenMode::ReadWrite).unwrap();
                file.set_len(cut).unwrap();
                verdict(&w, &disk)
                    .unwrap_or_else(|e| panic!("seed {seed} {} cut to {cut}: {e}", path.display()));
            }
        }
    }
}

#[test]
fn d1_a_lost_page_or_sector_of_what_was_synced_is_an_error_except_at_the_very_end() {
    for seed in seeds(4) {
        let w = written(seed);
        let segments = w.segments();
        let last = segments.last().unwrap();
        for path in &segments {
            let len = w.disk.open(path, OpenMode::Read).unwrap().len().unwrap();
            for unit in [512, PAGE_BYTES] {
                for at in (0..len).step_by(unit as usize) {
                    let disk = w.disk.fork();
                    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
                    file.write_at(&vec![0; unit as usize], at).unwrap();
                    let verdict = verdict(&w, &disk);
                    // Nothing on disk tells a lost last batch from one that was never synced.
                    if path != last {
                        verdict.unwrap_or_else(|e| {
                            panic!("seed {seed} {} at {at}: {e}", path.display())
                        });
                    }
                }
            }
        }
    }
}

/// Puts `value` into a field of a header and makes its checksum right again.
fn forge(disk: &SimDisk, path: &Path, at: u64, checksum: usize, field: usize, value: u64) {
    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
    let mut header = vec![0u8; checksum + 4];
    file.read_at(&mut header, at).unwrap();
    let width = 8.min(checksum - field);
    header[field..field + width].copy_from_slice(&value.to_le_bytes()[..width]);
    let crc = crc32c::crc32c(&header[..checksum]);
    header[checksum..].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&header, at).unwrap();
}

#[test]
fn forged_headers_with_right_checksums_never_panic_and_never_change_a_payload() {
    for seed in seeds(3) {
        let w = written(seed);
        let dice = SimEntropy::seeded(seed ^ 0xf0f0);
        let segments = w.segments();
        for _ in 0..800 {
            let path = &segments[dice.below(segments.len() as u64) as usize];
            let disk = w.disk.fork();
            let value = match dice.below(6) {
                0 => 0,
                1 => 1,
                2 => u64::MAX,
                3 => 1 << 62,
                4 => dice.below(200),
                _ => dice.next_u64(),
            };
            let (at, checksum) = if dice.below(2) == 0 { (0, 124) } else { (PAGE_BYTES, 76) };
            let field = 4 * (1 + dice.below(checksum / 4 - 1) as usize);
            forge(&disk, path, at, checksum as usize, field, value);
            if let Ok(found) = read_back(&w, &disk) {
                for (lsn, payload) in found {
                    assert_eq!(w.acked.get(&lsn), Some(&payload), "seed {seed}: frame {lsn}");
                }
            }
            // A version that is not known is refused in both ways of reading.
            let Ok((frames, _)) = try_scan(&w, &disk) else { continue };
            for (lsn, payload) in frames {
                if lsn >= w.floor {
                    assert_eq!(w.acked.get(&lsn), Some(&payload), "seed {seed}: frame {lsn}");
                }
            }
        }
    }
}

#[test]
fn a_missing_segment_is_an_error() {
    let mut missed = 0;
    for seed in seeds(6) {
        let w = written(seed);
        let segments = w.segments();
        for path in &segments[..segments.len() - 1] {
            let disk = w.disk.fork();
            disk.remove(path).unwrap();
            // A segment of which no frame counts is not missed.
            match verdict(&w, &disk) {
                Ok(same) => missed += u64::from(!same),
                Err(e) => panic!("seed {seed}, without {}: {e}", path.display()),
            }
        }
    }
    assert!(missed > 6, "{missed}");
}

#[test]
fn a_zero_length_file_is_refused_by_name() {
    let w = written(3);
    for path in w.segments() {
        let disk = w.disk.fork();
        disk.open(&path, OpenMode::ReadWrite).unwrap().set_len(0).unwrap();
        let error = read_back(&w, &disk).unwrap_err().to_string();
        assert!(error.contains("is damaged from byte 0"), "{error}");
    }
}

#[test]
fn a_swapped_segment_is_refused() {
    let (a, b) = (written(4), written(5));
    let both = |p: &&PathBuf| b.segments().contains(p);
    let path = a.segments().iter().find(both).unwrap().clone();
    let other = path.clone();
    let bytes = millrace_platform::disk::read_file(&b.disk, &other, 1 << 20).unwrap();
    let disk = a.disk.fork();
    disk.open(&path, OpenMode::ReadWrite).unwrap().write_at(&bytes, 0).unwrap();
    assert_eq!(verdict(&a, &disk), Ok(false));
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let w = written(6);
    let path = w.segments()[0].clone();
    let disk = w.disk.fork();
    let mut header = [0u8; 128];
    let file = disk.open(&path, OpenMode::ReadWrite).unwrap();
    file.read_at(&mut header, 0).unwrap();
    header[8] = 2;
    let crc = crc32c::crc32c(&header[..124]);
    header[124..].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&header, 0).unwrap();
    assert!(matches!(read_back(&w, &disk), Err(WalError::UnknownVersion { version: 2, .. })));
}

fn scan(w: &World, disk: &SimDisk) -> (BTreeMap<u64, Vec<u8>>, Vec<Damage>) {
    try_scan(w, disk).unwrap()
}

type ScannedAll = (BTreeMap<u64, Vec<u8>>, Vec<Damage>);

fn try_scan(w: &World, disk: &SimDisk) -> Result<ScannedAll, WalError> {
    let keys: Arc<dyn SegmentKeys> = Arc::clone(&w.keys) as _;
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut frames, mut damage) = (BTreeMap::new(), Vec::new());
    scan_quarantine(&disk, Path::new(DIR), &keys, 0, &mut |s| -> Result<(), WalError> {
        match s {
            Scanned::Frame(f) => {
                frames.insert(f.lsn, f.payload);
            }
            Scanned::KeyGone { .. } => {}
            Scanned::Damage(d) => damage.push(d),
        }
        Ok(())
    })?;
    Ok((frames, damage))
}

#[test]
fn e7_quarantine_goes_on_behind_damage_and_names_what_is_lost() {
    for seed in seeds(6) {
        let w = written(seed);
        let (all, none) = scan(&w, &w.disk);
        assert!(none.is_empty());
        let dice = SimEntropy::seeded(seed ^ 0xda3a);
        for _ in 0..60 {
            let segments = w.segments();
            let path = &segments[dice.below(segments.len() as u64) as usize];
            let byte = dice.below(20_000);
            let disk = w.disk.fork();
            disk.flip_bit(path, byte, dice.below(8) as u8).unwrap();
            let (found, damage) = scan(&w, &disk);
            for (lsn, payload) in &all {
                match found.get(lsn) {
                    Some(p) => assert_eq!(p, payload, "seed {seed}: frame {lsn}"),
                    None => assert!(
                        damage
                            .iter()
                            .any(|d| (d.first_lsn..=d.last_lsn.unwrap_or(u64::MAX)).contains(lsn)),
                        "seed {seed}, {} byte {byte}: frame {lsn} is lost, {damage:?} does not say so",
                        path.display()
                    ),
                }
            }
            assert!(found.len() <= all.len());
            // A whole header takes its segment along; anything else takes one frame.
            if byte >= 128 {
                assert!(
                    all.len() - found.len() <= 1,
                    "seed {seed}: {} byte {byte}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn e7_quarantine_of_cut_files_names_what_is_lost_too() {
    for seed in seeds(2) {
        let w = written(seed);
        let (all, _) = scan(&w, &w.disk);
        for path in w.segments() {
            for cut in (0..24 << 10).step_by(331) {
                let disk = w.disk.fork();
                disk.open(&path, OpenMode::ReadWrite).unwrap().set_len(cut).unwrap();
                let (found, damage) = scan(&w, &disk);
                let said = |lsn: &u64| {
                    damage
                        .iter()
                        .any(|d| d.first_lsn <= *lsn && d.last_lsn.is_none_or(|l| l >= *lsn))
                };
                let silent = all.keys().filter(|l| !found.contains_key(l)).find(|l| !said(l));
                let whole_last = w.segments().last() == Some(&path);
                // Of a last segment cut inside its frames, at least the first lost one is named.
                assert!(
                    silent.is_none() || whole_last && (!damage.is_empty() || cut < PAGE_BYTES),
                    "seed {seed}: {} cut to {cut}: {silent:?} is lost in silence, {damage:?}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn e7_a_queue_of_which_no_segment_reads_says_so_and_goes_on_with_new_numbers() {
    let mut w = World::seeded(11);
    w.open().unwrap();
    let lsn = w.append().unwrap();
    w.commit(lsn).unwrap();
    w.wal = None;
    w.disk.flip_bit(&w.segments()[0], 60, 1).unwrap();
    let (found, damage) = scan(&w, &w.disk);
    assert!(found.is_empty());
    assert!(matches!(damage.as_slice(), [d] if d.first_lsn == 1 && d.last_lsn == Some(lsn)));
    w.options.on_damage = OnDamage::Quarantine;
    assert_eq!(w.try_open().unwrap().next_lsn(), lsn + 1);
}

#[test]
fn e7_a_forwarder_opens_a_damaged_queue_appends_to_it_and_never_uses_a_number_twice() {
    for seed in seeds(30) {
        let mut w = written(seed);
        let dice = SimEntropy::seeded(seed ^ 0x0e7);
        let segments = w.segments();
        let path = &segments[dice.below(segments.len() as u64) as usize];
        w.disk.flip_bit(path, dice.below(12_000), 3).unwrap();
        w.options.on_damage = OnDamage::Quarantine;
        let recovery = w.try_open().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let highest = w.acked.keys().next_back().copied().unwrap();
        assert!(recovery.next_lsn() > highest, "seed {seed}");
        let (mut found, mut lost) = (0u64, 0u64);
        recovery
            .scan(w.floor.max(recovery.first_lsn()), &mut |s| -> Result<(), WalError> {
                match s {
                    Scanned::Frame(f) => {
                        assert_eq!(w.acked.get(&f.lsn), Some(&f.payload), "seed {seed}");
                        found += 1;
                    }
                    Scanned::Damage(_) => lost += 1,
                    Scanned::KeyGone { .. } => panic!("no key is gone"),
                }
                Ok(())
            })
            .unwrap();
        assert!(found == w.acked.len() as u64 || lost > 0, "seed {seed}: silent loss");
        let wal = w.wal.as_ref().unwrap();
        let lsn = wal.append(owner(1), b"after").unwrap();
        wal.commit(lsn).unwrap();
        w.power_cut();
        let (frames, _) = scan(&w, &w.disk);
        assert_eq!(frames.get(&lsn).map(Vec::as_slice), Some(b"after".as_slice()), "seed {seed}");
    }
}

#[test]
fn frames_of_a_destroyed_key_are_skipped_and_said_so_also_when_carried_over() {
    let mut w = World::seeded(7);
    w.open().unwrap();
    let wal = w.wal.as_ref().unwrap();
    let kept = wal.append(owner(1), b"kept").unwrap();
    let shredded = wal.append(owner(2), b"shredded").unwrap();
    let last = wal.append(owner(1), b"last").unwrap();
    wal.commit(last).unwrap();
    w.keys.gone.lock().unwrap().insert([2; 16]);
    for _ in 0..3 {
        w.kill();
        let recovery = w.try_open().unwrap();
        let mut seen = Vec::new();
        recovery
            .read(1, &mut |r| -> Result<(), WalError> {
                seen.push(match r {
                    Replayed::Frame(f) => (f.lsn, f.payload),
                    Replayed::KeyGone { lsn, key } => {
                        (lsn, format!("gone {}", key.owner[0]).into())
                    }
                });
                Ok(())
            })
            .unwrap();
        let expected =
            [(kept, b"kept".to_vec()), (shredded, b"gone 2".to_vec()), (last, b"last".to_vec())];
        assert_eq!(seen, expected);
    }
    assert!(w.wal.as_ref().unwrap().append(owner(2), b"x").is_err_and(|e| e.is_key_gone()));
    // A stand-in whose key is there after all is no licence to skip.
    w.keys.gone.lock().unwrap().clear();
    let recovery = w.try_open().unwrap();
    let read = recovery.read(1, &mut |_| -> Result<(), WalError> { Ok(()) });
    assert!(matches!(read, Err(WalError::Damaged(d)) if d.first_lsn == shredded));
}

#[test]
fn a_key_that_cannot_be_had_now_stops_the_start_and_loses_nothing() {
    let mut w = written(8);
    *w.keys.away.lock().unwrap() = true;
    assert!(matches!(w.try_open(), Err(WalError::Key { .. })));
    *w.keys.away.lock().unwrap() = false;
    w.open().unwrap();
}

#[test]
fn reading_below_what_was_trimmed_is_an_error() {
    let mut w = World::seeded(9);
    w.open().unwrap();
    let mut last = 0;
    for _ in 0..60 {
        last = w.append().unwrap();
        w.commit(last).unwrap();
    }
    let wal = w.wal.as_ref().unwrap();
    let report = wal.trim_below(last).unwrap();
    assert!(report.segments > 0 && report.bytes == report.segments * (24 << 10));
    let first = wal.first_lsn();
    assert!(first > 1 && first <= last);
    w.kill();
    let recovery = w.try_open().unwrap();
    assert_eq!(recovery.first_lsn(), first);
    let read = recovery.read(first - 1, &mut |_| -> Result<(), WalError> { Ok(()) });
    assert!(matches!(read, Err(WalError::Trimmed { .. })));
}

#[test]
fn trim_destroys_keys_before_names_and_a_start_accepts_any_prefix_of_that() {
    let mut w = World::seeded(10);
    w.open().unwrap();
    for _ in 0..40 {
        let lsn = w.append().unwrap();
        w.commit(lsn).unwrap();
    }
    let segments = w.segments();
    crate::segment::destroy(&w.disk, &segments[0]).unwrap();
    let bytes = millrace_platform::disk::read_file(&w.disk, &segments[0], 1 << 20).unwrap();
    assert!(bytes[8..512].iter().all(|b| *b == 0), "the salt is gone");
    w.floor = w.wal.as_ref().unwrap().entries()[1].header.first_lsn;
    w.acked = w.acked.split_off(&w.floor);
    w.kill();
    w.open().unwrap();
    assert!(!w.segments().contains(&segments[0]));
}
