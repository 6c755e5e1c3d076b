//! Writes and removals that survive a power cut: the only rename in the tree.
//!
//! Owns: the sequence temp file, write, sync, publish, sync of the directory.
//! Never: leaves a half-written file under its final name.
//! Crash order: any prefix of the sequence leaves either the old state or the new one, plus at
//! most a stray file whose name ends in `.tmp`, which [`sweep_temp`] removes at start-up.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::disk::{Disk, DiskFile};

/// Suffix of files that are not yet published.
pub const TEMP_SUFFIX: &str = ".tmp";

fn temp_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMP_SUFFIX);
    PathBuf::from(name)
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

fn write_temp(disk: &dyn Disk, temp: &Path, bytes: &[u8]) -> io::Result<Box<dyn DiskFile>> {
    match disk.remove(temp) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let file = disk.create_new(temp)?;
    file.write_at(bytes, 0)?;
    file.sync_data()?;
    Ok(file)
}

/// Publishes `bytes` under `path`, replacing what was there in one step.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temp = temp_path(path);
    write_temp(disk, &temp, bytes)?;
    publish(disk, &temp, path)
}

/// Gives a file that was written and synced under a temp name (`path` and [`TEMP_SUFFIX`]) its
/// final name, replacing what was there in one step. For files too large to pass as bytes.
pub fn publish(disk: &dyn Disk, temp: &Path, path: &Path) -> io::Result<()> {
    disk.rename(temp, path)?;
    disk.sync_dir(parent_of(path))
}

/// Removes `path` and makes the removal durable. A missing file is not an error.
pub fn remove(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Ok(()) => disk.sync_dir(parent_of(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes temp files that a crash left in `dir`; returns how many there were.
pub fn sweep_temp(disk: &dyn Disk, dir: &Path) -> io::Result<usize> {
    let mut swept = 0;
    for entry in disk.list(dir)? {
        if !entry.is_dir && entry.name.ends_with(TEMP_SUFFIX) {
            disk.remove(&dir.join(&entry.name))?;
            swept += 1;
        }
    }
    if swept > 0 {
        disk.sync_dir(dir)?;
    }
    Ok(swept)
}
