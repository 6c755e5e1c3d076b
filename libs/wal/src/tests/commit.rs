//! Group commit, limits and cursors.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

use millrace_platform::{
    disk::{DirEntry, Disk, DiskFile, DiskLock, OpenMode},
    queue,
    sim::{SimDisk, SimEntropy, disk::Op},
};

use super::world::{DIR, World, owner};
use crate::{FRAME_PAYLOAD_MAX, Options, Scanned, SegmentKeys, Wal, WalError};

/// Holds every sync until it is let through.
#[derive(Debug, Clone, Default)]
struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    waiting: usize,
}

impl Gate {
    fn set(&self, closed: bool) {
        self.0.0.lock().unwrap().closed = closed;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.waiting += 1;
        self.0.1.notify_all();
        while state.closed {
            state = self.0.1.wait(state).unwrap();
        }
        state.waiting -= 1;
    }

    fn until_somebody_waits(&self) {
        let mut state = self.0.0.lock().unwrap();
        while state.waiting == 0 {
            state = self.0.1.wait(state).unwrap();
        }
    }
}

#[derive(Debug)]
struct GatedDisk(SimDisk, Gate);
#[derive(Debug)]
struct GatedFile(Box<dyn DiskFile>, Gate);

impl DiskFile for GatedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync_data()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

impl Disk for GatedDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(GatedFile(self.0.create_new(path)?, self.1.clone())))
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        self.0.open(path, mode)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn link_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.link_new(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }
    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        self.0.lock_exclusive(path)
    }
    fn mode(&self, path: &Path) -> io::Result<u32> {
        self.0.mode(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.free_bytes(path)
    }
    fn modified_ns(&self, path: &Path) -> io::Result<i64> {
        self.0.modified_ns(path)
    }
}

fn syncs(disk: &SimDisk) -> usize {
    disk.trace().iter().filter(|op| matches!(op, Op::Sync(_))).count()
}

#[test]
fn one_sync_serves_all_who_wait() {
    let gate = Gate::default();
    let mut w = World::seeded(1);
    w.seen_by_log = Arc::new(GatedDisk(w.disk.clone(), gate.clone()));
    w.try_open().unwrap();
    let wal = Arc::new(w.wal.take().unwrap());
    let before = syncs(&w.disk);
    gate.set(true);
    let first = wal.append(owner(1), b"first").unwrap();
    let leader = std::thread::spawn({
        let wal = Arc::clone(&wal);
        move || wal.commit(first).unwrap()
    });
    gate.until_somebody_waits();
    let (appended, count) = queue::bounded::<u64>("appended", 64);
    let followers: Vec<_> = (0..20)
        .map(|n| {
            let (wal, appended) = (Arc::clone(&wal), appended.clone());
            std::thread::spawn(move || {
                let lsn = wal.append(owner(n % 3), &[n; 100]).unwrap();
                appended.send(lsn).ok().unwrap();
                let synced = wal.commit(lsn).unwrap();
                assert!(synced.through() >= lsn);
            })
        })
        .collect();
    for _ in 0..20 {
        count.recv().unwrap();
    }
    // Everybody has appended while the first sync hung: they all share the second.
    gate.set(false);
    leader.join().unwrap();
    for follower in followers {
        follower.join().unwrap();
    }
    assert_eq!(syncs(&w.disk) - before, 2, "21 commits, two syncs");
}

#[test]
fn many_threads_lose_and_double_nothing() {
    let mut w = World::seeded(2);
    w.options.segment_bytes = 64 << 10;
    w.options.buffer_bytes = 4 << 10;
    w.try_open().unwrap();
    let wal = Arc::new(w.wal.take().unwrap());
    let before = syncs(&w.disk);
    let threads: Vec<_> = (0..6u8)
        .map(|thread| {
            let wal = Arc::clone(&wal);
            std::thread::spawn(move || {
                let mut mine = Vec::new();
                for n in 0..150u16 {
                    let mut payload = vec![thread; 40 + usize::from(n)];
                    payload[..2].copy_from_slice(&n.to_le_bytes());
                    let lsn = wal.append(owner(thread % 4), &payload).unwrap();
                    wal.commit(lsn).unwrap();
                    mine.push((lsn, payload));
                }
                mine
            })
        })
        .collect();
    let mut all: Vec<(u64, Vec<u8>)> = Vec::new();
    for thread in threads {
        all.extend(thread.join().unwrap());
    }
    all.sort();
    let rotations = w.segments().len();
    println!("900 commits, {} syncs, {rotations} segments", syncs(&w.disk) - before);
    let mut cursor = wal.cursor(1);
    for (lsn, payload) in &all {
        match wal.read_next(&mut cursor).unwrap() {
            Some(Scanned::Frame(f)) => assert_eq!((&f.lsn, &f.payload), (lsn, payload)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(wal.read_next(&mut cursor).unwrap(), None);
    w.power_cut();
    w.acked = all.into_iter().collect();
    w.open().unwrap();
}

#[test]
fn a_cursor_follows_the_log_and_sees_only_what_is_durable() {
    let mut w = World::seeded(3);
    w.open().unwrap();
    let wal = w.wal.as_ref().unwrap();
    let mut cursor = wal.cursor(1);
    let mut next = 1u64;
    for round in 0..80u64 {
        let lsn = wal.append(owner(1), &vec![round as u8; 700]).unwrap();
        if round % 3 != 0 {
            continue;
        }
        assert_eq!(wal.read_next(&mut cursor).unwrap(), None, "round {round}: not yet durable");
        wal.commit(lsn).unwrap();
        while let Some(scanned) = wal.read_next(&mut cursor).unwrap() {
            match scanned {
                Scanned::Frame(f) => {
                    assert_eq!(f.lsn, next);
                    assert_eq!(f.payload, vec![(next - 1) as u8; 700]);
                    next += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(next, lsn + 1);
        assert_eq!(cursor.next_lsn(), next);
        wal.trim_below(next).unwrap();
        assert_eq!(w.segments().len(), 1, "round {round}: what was read is given back");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_size() {
    let mut w = World::seeded(4);
    w.open().unwrap();
    let wal = w.wal.as_ref().unwrap();
    let max = wal.payload_max();
    assert_eq!(max, (24 << 10) - 4096 - 96);
    match wal.append(owner(1), &vec![7; max + 1]) {
        Err(WalError::TooLarge { len, max: said }) => assert_eq!((len, said), (max + 1, max)),
        other => panic!("{other:?}"),
    }
    let lsn = wal.append(owner(1), &vec![7; max]).unwrap();
    wal.commit(lsn).unwrap();
    w.acked.insert(lsn, vec![7; max]);
    w.kill();
    w.open().unwrap();
    assert_eq!(w.wal.as_ref().unwrap().payload_max(), max);
    assert!(max < FRAME_PAYLOAD_MAX);
}

#[test]
fn options_that_cannot_work_are_refused() {
    let w = World::seeded(5);
    for segment_bytes in [0, 8192, 16385] {
        let keys: Arc<dyn SegmentKeys> = Arc::clone(&w.keys) as _;
        let options = Options { segment_bytes, ..w.options.clone() };
        let opened = Wal::open(Arc::clone(&w.seen_by_log), Path::new(DIR), keys, &w.dice, options);
        assert!(matches!(opened, Err(WalError::Options(_))));
    }
}

#[test]
fn a_commit_of_what_was_never_appended_is_an_error() {
    let mut w = World::seeded(6);
    w.open().unwrap();
    let wal = w.wal.as_ref().unwrap();
    assert!(matches!(wal.commit(1), Err(WalError::NotAppended { lsn: 1, next: 1 })));
}

#[test]
fn a_log_on_the_real_disk_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard/0/wal");
    let disk: Arc<dyn Disk> = Arc::new(millrace_platform::disk::RealDisk);
    let entropy = SimEntropy::seeded(7);
    let keys = World::seeded(7).keys;
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let mut written = Vec::new();
    for start in 0..3u8 {
        let keys: Arc<dyn SegmentKeys> = Arc::clone(&keys) as _;
        let (wal, recovery) =
            Wal::open(Arc::clone(&disk), &path, keys, &entropy, options.clone()).unwrap();
        let mut found = Vec::new();
        recovery
            .read(1, &mut |r| -> Result<(), WalError> {
                if let crate::Replayed::Frame(f) = r {
                    found.push(f.payload);
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(found, written);
        for n in 0..40u8 {
            let payload = vec![start * 40 + n; 3000];
            let lsn = wal.append(owner(1), &payload).unwrap();
            if n % 5 == 4 {
                wal.commit(lsn).unwrap();
            }
            written.push(payload);
        }
        assert!(wal.bytes_on_disk() >= 128 << 10);
    }
}
