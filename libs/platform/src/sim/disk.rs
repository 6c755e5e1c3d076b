//! A disk in memory that loses what was not synced.
//!
//! Fault model. Bytes: each write since the last successful `sync_data` may, at a power cut,
//! be kept, lost, or torn at a 512-byte boundary, independently of the others (reordering).
//! Names: each create, link, rename or removal since the last `sync_dir` of its directory may be
//! kept or undone, in any combination that the file system could have written (an operation on a
//! name is only kept if all earlier kept ones on the same name are applied in order).
//! `sync_data` that fails drops the dirty bytes' promise: they may or may not be there.
//! What was synced is never harmed, unless a test flips bits on purpose.
//! Every operation counts; a test may cut the power at the n-th one, or make the n-th fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::disk::{DirEntry, Disk, DiskFile, DiskLock, OpenMode};

use super::SimEntropy;

/// What an operation did, as a test sees it in the trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A file was created.
    Create(PathBuf),
    /// Bytes were written: path, offset, length.
    Write(PathBuf, u64, usize),
    /// A file was synced.
    Sync(PathBuf),
    /// Space was reserved or the length set.
    Resize(PathBuf, u64),
    /// A rename.
    Rename(PathBuf, PathBuf),
    /// A second name.
    Link(PathBuf, PathBuf),
    /// A removal.
    Remove(PathBuf),
    /// A directory sync.
    SyncDir(PathBuf),
}

/// Faults that a test switches on. All off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The power fails when this many operations have been done; every later one is an error.
    pub cut_after: Option<u64>,
    /// The n-th operation (counted from 1) fails with EIO; a failed sync loses its promise.
    pub fail_op: Option<u64>,
    /// Writes that would take the disk over this many bytes fail with ENOSPC.
    pub capacity: Option<u64>,
    /// From this operation on (counted from 1) the disk fails like this, until it is cured.
    pub fails_from: Option<(u64, Failing)>,
    /// Planted bug: `sync_data` does nothing and says `Ok`.
    pub skip_sync: bool,
    /// Planted bug: `sync_dir` does nothing and says `Ok`.
    pub skip_sync_dir: bool,
}

/// How a disk fails for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// ENOSPC: nothing is created, named or written; removals and syncs work.
    Full,
    /// EROFS: nothing is changed.
    ReadOnly,
    /// EIO: nothing is changed.
    Broken,
}

impl Failing {
    fn error(self, op: &Op) -> Option<io::Error> {
        let takes_space = matches!(
            op,
            Op::Create(_) | Op::Write(..) | Op::Resize(..) | Op::Link(..) | Op::Rename(..)
        );
        match self {
            Self::Full => takes_space.then(|| io::ErrorKind::StorageFull.into()),
            Self::ReadOnly => Some(io::ErrorKind::ReadOnlyFilesystem.into()),
            Self::Broken => Some(eio("input/output error")),
        }
    }
}

#[derive(Debug, Clone)]
struct Pending {
    offset: u64,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    volatile: Vec<u8>,
    pending: Vec<Pending>,
    /// Lengths set since the last sync, oldest first.
    modified_ns: i64,
}

#[derive(Debug, Clone)]
enum NameOp {
    Bind(PathBuf, u64),
    Unbind(PathBuf),
    Move(PathBuf, PathBuf, u64),
}

#[derive(Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    name_ops: Vec<NameOp>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    faults: Faults,
    ops: u64,
    dead: bool,
    trace: Vec<Op>,
    generation: u64,
}

/// A simulated disk; clones are handles on the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
    path: PathBuf,
    writable: bool,
    generation: u64,
}

fn eio(what: &str) -> io::Error {
    io::Error::other(format!("simulated: {what}"))
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}

fn patch(into: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    let end = start + bytes.len();
    if into.len() < end {
        into.resize(end, 0);
    }
    into[start..end].copy_from_slice(bytes);
}

impl State {
    fn step(&mut self, op: Op) -> io::Result<()> {
        if self.dead {
            return Err(eio("the power is off"));
        }
        if self.faults.cut_after.is_some_and(|n| self.ops >= n) {
            self.dead = true;
            return Err(eio("the power failed"));
        }
        self.ops += 1;
        let failing = self.faults.fails_from.filter(|(from, _)| self.ops >= *from);
        let failed = failing.and_then(|(_, how)| how.error(&op));
        self.trace.push(op);
        if let Some(e) = failed {
            return Err(e);
        }
        if self.faults.fail_op == Some(self.ops) {
            return Err(eio("input/output error"));
        }
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(eio("the power is off")) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        let live: BTreeSet<u64> = self.names.values().copied().collect();
        live.iter().filter_map(|i| self.inodes.get(i)).map(|i| i.volatile.len() as u64).sum()
    }

    fn room(&self, more: u64) -> io::Result<()> {
        match self.faults.capacity {
            Some(cap) if self.used() + more > cap => {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            _ => Ok(()),
        }
    }

    fn apply(names: &mut BTreeMap<PathBuf, u64>, op: &NameOp) {
        match op {
            NameOp::Bind(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            NameOp::Unbind(path) => {
                names.remove(path);
            }
            NameOp::Move(from, to, inode) => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
        }
    }

    fn touches(op: &NameOp, dir: &Path) -> bool {
        match op {
            NameOp::Bind(p, _) | NameOp::Unbind(p) => parent(p) == dir,
            NameOp::Move(a, b, _) => parent(a) == dir || parent(b) == dir,
        }
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches faults on or off; operation counts go on from where they are.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Operations done so far (writes, syncs, name changes; not reads).
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// The operations done so far, in order.
    pub fn trace(&self) -> Vec<Op> {
        self.lock().trace.clone()
    }

    /// Bytes in named files.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Cuts the power and brings the disk back with one of the states it could have been left
    /// in, drawn from `dice`. Open files and locks are dead afterwards; faults are cleared.
    pub fn power_cycle(&self, dice: &SimEntropy) {
        let mut state = self.lock();
        let mut names = std::mem::take(&mut state.durable_names);
        for op in std::mem::take(&mut state.name_ops) {
            if dice.below(2) == 0 {
                State::apply(&mut names, &op);
            }
        }
        let ids: Vec<u64> = state.inodes.keys().copied().collect();
        for id in ids {
            if let Some(inode) = state.inodes.get_mut(&id) {
                let mut bytes = std::mem::take(&mut inode.durable);
                for write in std::mem::take(&mut inode.pending) {
                    match dice.below(3) {
                        0 => {}
                        1 => patch(&mut bytes, write.offset, &write.bytes),
                        _ => {
                            // Torn: each 512-byte sector of the write lands or does not.
                            let mut at = 0usize;
                            while at < write.bytes.len() {
                                let offset = write.offset + at as u64;
                                let sector_left = 512 - (offset % 512) as usize;
                                let end = (at + sector_left).min(write.bytes.len());
                                if dice.below(2) == 0 {
                                    patch(&mut bytes, offset, &write.bytes[at..end]);
                                }
                                at = end;
                            }
                        }
                    }
                }
                inode.durable = bytes.clone();
                inode.volatile = bytes;
            }
        }
        state.names = names.clone();
        state.durable_names = names;
        state.locks.clear();
        state.faults = Faults::default();
        state.dead = false;
        state.generation += 1;
    }

    /// The process dies but the machine does not: nothing written is lost, locks are released,
    /// open files are dead.
    pub fn kill_process(&self) {
        let mut state = self.lock();
        state.locks.clear();
        state.dead = false;
        state.faults = Faults::default();
        state.generation += 1;
    }

    /// A deep copy of the disk as it is, for trying several ends of one history.
    pub fn fork(&self) -> SimDisk {
        let s = self.lock();
        SimDisk(Arc::new(Mutex::new(State {
            inodes: s.inodes.clone(),
            next_inode: s.next_inode,
            names: s.names.clone(),
            durable_names: s.durable_names.clone(),
            name_ops: s.name_ops.clone(),
            dirs: s.dirs.clone(),
            locks: BTreeSet::new(),
            faults: s.faults,
            ops: s.ops,
            dead: s.dead,
            trace: s.trace.clone(),
            generation: s.generation,
        })))
    }

    /// Flips one bit of a file, durable and volatile alike.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) -> io::Result<()> {
        let mut state = self.lock();
        let id = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let inode = state.inodes.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        for bytes in [&mut inode.durable, &mut inode.volatile] {
            if let Some(b) = bytes.get_mut(byte as usize) {
                *b ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }

    /// All file names, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    fn file(&self, state: &State, inode: u64, path: &Path, writable: bool) -> Box<dyn DiskFile> {
        Box::new(SimFile {
            disk: self.clone(),
            inode,
            path: path.to_path_buf(),
            writable,
            generation: state.generation,
        })
    }
}

impl SimFile {
    fn with<T>(
        &self,
        op: Option<Op>,
        f: impl FnOnce(&mut State, &mut Inode) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.disk.lock();
        state.alive()?;
        if state.generation != self.generation {
            return Err(eio("this file was opened before the crash"));
        }
        let changes = op.is_some();
        let is_sync = matches!(op, Some(Op::Sync(_)));
        if changes && !self.writable && !is_sync {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if let Some(op) = op {
            state.step(op)?;
        }
        let mut inode = state.inodes.remove(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let out = f(&mut state, &mut inode);
        state.inodes.insert(self.inode, inode);
        out
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(None, |_, inode| {
            let start = (offset as usize).min(inode.volatile.len());
            let n = buf.len().min(inode.volatile.len() - start);
            buf[..n].copy_from_slice(&inode.volatile[start..start + n]);
            Ok(n)
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let op = Op::Write(self.path.clone(), offset, buf.len());
        self.with(Some(op), |state, inode| {
            let grows = (offset + buf.len() as u64).saturating_sub(inode.volatile.len() as u64);
            // `used` no longer counts this inode while it is lifted out, so add it back.
            if grows > 0 {
                state.room(inode.volatile.len() as u64 + grows)?;
            }
            patch(&mut inode.volatile, offset, buf);
            inode.pending.push(Pending { offset, bytes: buf.to_vec() });
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(Some(Op::Sync(self.path.clone())), |state, inode| {
            if !state.faults.skip_sync {
                inode.pending.clear();
                inode.durable = inode.volatile.clone();
            }
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let op = Op::Resize(self.path.clone(), len);
        self.with(Some(op), |state, inode| {
            let grows = len.saturating_sub(inode.volatile.len() as u64);
            if grows > 0 {
                state.room(inode.volatile.len() as u64 + grows)?;
                inode.volatile.resize(len as usize, 0);
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let op = Op::Resize(self.path.clone(), len);
        self.with(Some(op), |_, inode| {
            inode.volatile.resize(len as usize, 0);
            inode.pending.retain_mut(|w| {
                if w.offset >= len {
                    return false;
                }
                w.bytes.truncate((len - w.offset) as usize);
                true
            });
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(None, |_, inode| Ok(inode.volatile.len() as u64))
    }
}

#[derive(Debug)]
struct HeldLock {
    disk: SimDisk,
    path: PathBuf,
    generation: u64,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        if state.generation == self.generation {
            state.locks.remove(&self.path);
        }
    }
}

impl Disk for SimDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        state.alive()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !state.dirs.contains(&parent(path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.room(0)?;
        state.step(Op::Create(path.to_path_buf()))?;
        state.next_inode += 1;
        let id = state.next_inode;
        state.inodes.insert(id, Inode::default());
        state.names.insert(path.to_path_buf(), id);
        state.name_ops.push(NameOp::Bind(path.to_path_buf(), id));
        Ok(self.file(&state, id, path, true))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let state = self.lock();
        state.alive()?;
        let id = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(&state, id, path, mode == OpenMode::ReadWrite))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.alive()?;
        let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.step(Op::Rename(from.to_path_buf(), to.to_path_buf()))?;
        let op = NameOp::Move(from.to_path_buf(), to.to_path_buf(), id);
        State::apply(&mut state.names, &op);
        state.name_ops.push(op);
        Ok(())
    }

    fn link_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.alive()?;
        let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.step(Op::Link(from.to_path_buf(), to.to_path_buf()))?;
        state.names.insert(to.to_path_buf(), id);
        state.name_ops.push(NameOp::Bind(to.to_path_buf(), id));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.alive()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.step(Op::Remove(path.to_path_buf()))?;
        state.names.remove(path);
        state.name_ops.push(NameOp::Unbind(path.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.alive()?;
        if !state.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.step(Op::SyncDir(path.to_path_buf()))?;
        if state.faults.skip_sync_dir {
            return Ok(());
        }
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut state.name_ops)
            .into_iter()
            .partition(|op| State::touches(op, path));
        state.name_ops = waiting;
        for op in done {
            State::apply(&mut state.durable_names, &op);
        }
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        // Directories are durable at once: the real implementation syncs each new one.
        let mut state = self.lock();
        state.alive()?;
        let mut at = path.to_path_buf();
        loop {
            state.dirs.insert(at.clone());
            if !at.pop() {
                return Ok(());
            }
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.lock();
        state.alive()?;
        if !state.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name_of =
            |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut out: Vec<DirEntry> = state
            .names
            .iter()
            .filter(|(p, _)| parent(p) == path)
            .map(|(p, id)| DirEntry {
                name: name_of(p),
                len: state.inodes.get(id).map_or(0, |i| i.volatile.len() as u64),
                is_dir: false,
            })
            .chain(
                state.dirs.iter().filter(|d| *d != path && parent(d) == path).map(|d| DirEntry {
                    name: name_of(d),
                    len: 0,
                    is_dir: true,
                }),
            )
            .collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.lock();
        state.alive()?;
        Ok(state.names.contains_key(path) || state.dirs.contains(path))
    }

    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        let mut state = self.lock();
        state.alive()?;
        if !state.locks.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let generation = state.generation;
        drop(state);
        Ok(DiskLock::new(Box::new(HeldLock {
            disk: self.clone(),
            path: path.to_path_buf(),
            generation,
        })))
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        if self.exists(path)? { Ok(0o600) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.faults.capacity.map_or(u64::MAX / 2, |cap| cap.saturating_sub(state.used())))
    }

    fn modified_ns(&self, path: &Path) -> io::Result<i64> {
        let state = self.lock();
        let id = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.inodes.get(id).map_or(0, |i| i.modified_ns))
    }
}
