//! A state that is stored whole now and then, and its changes since as one small file each: a
//! change costs the same however large the state is.
//!
//! Layout: the whole under its own name, with the number of the last change in it; beside it a
//! folder with files `{number:020}`. Changes up to that number are in the whole and count for
//! nothing; those after it follow each other without a hole.
//! Owns: the numbers' order, and when the changes are many enough to be folded into the whole.
//! Never: knows what a change is; makes a file but by `durable::replace`.
//! Crash order: a change is its file. Folding: whole, then removals; any prefix reads the same.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    disk::{Disk, read_file},
    durable,
};

/// Bytes of one change at most.
const CHANGE_BYTES_MAX: u64 = 16 << 20;
/// Changes that are kept beside even the smallest state.
const KEPT_MIN: usize = 64;
/// A state of n entries is stored whole again after n / this many changes, so that storing it
/// costs each change a few entries.
const PART: usize = 4;

/// The changes of one state.
#[derive(Debug)]
pub struct Changes {
    dir: PathBuf,
    /// Files that are there and not in the whole yet.
    kept: usize,
}

/// The name of a change in its folder.
fn name_of(number: u64) -> String {
    format!("{number:020}")
}

/// A change's number and its bytes.
pub type Change = (u64, Vec<u8>);

impl Changes {
    /// Reads the changes in `dir` that come after number `last`, oldest first; older ones, which
    /// the whole has, are removed. A folder that is not there is made.
    pub fn open(disk: &dyn Disk, dir: &Path, last: u64) -> io::Result<(Self, Vec<Change>)> {
        disk.create_dir_all(dir)?;
        durable::sweep_temp(disk, dir)?;
        let mut numbers = Vec::new();
        for entry in disk.list(dir)? {
            let number = entry.name.parse().map_err(|_| {
                let what =
                    format!("{} is no change of this server", dir.join(&entry.name).display());
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            numbers.push(number);
        }
        let mut out = Vec::new();
        for number in numbers.into_iter().filter(|n| *n > last) {
            let due = last + out.len() as u64 + 1;
            if number != due {
                let what = format!(
                    "{} is missing, and a later change is there; put it back, or the newest copy of all",
                    dir.join(name_of(due)).display()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            out.push((number, read_file(disk, &dir.join(name_of(number)), CHANGE_BYTES_MAX)?));
        }
        let mut this = Self { dir: dir.to_path_buf(), kept: out.len() };
        this.remove_to(disk, last)?;
        this.kept = out.len();
        Ok((this, out))
    }

    /// Stores change `number`, which must be one more than the last.
    pub fn append(&mut self, disk: &dyn Disk, number: u64, bytes: &[u8]) -> io::Result<()> {
        durable::replace(disk, &self.dir.join(name_of(number)), bytes)?;
        self.kept += 1;
        Ok(())
    }

    /// Whether a state of `entries` should be stored whole instead of with one more change.
    pub fn fold_due(&self, entries: usize) -> bool {
        self.kept >= KEPT_MIN.max(entries / PART)
    }

    /// The whole has been stored, with all changes up to `last` in it: their files go.
    pub fn folded(&mut self, disk: &dyn Disk, last: u64) -> io::Result<()> {
        self.kept = 0;
        self.remove_to(disk, last)
    }

    fn remove_to(&mut self, disk: &dyn Disk, last: u64) -> io::Result<()> {
        let mut removed = false;
        for entry in disk.list(&self.dir)? {
            if entry.name.parse::<u64>().is_ok_and(|number| number <= last) {
                disk.remove(&self.dir.join(&entry.name))?;
                removed = true;
            }
        }
        if removed { disk.sync_dir(&self.dir) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{SimDisk, SimEntropy, disk::Faults};

    const DIR: &str = "/d/changes";

    fn whole(disk: &SimDisk) -> u64 {
        let bytes = read_file(disk, Path::new("/d/whole"), 8).unwrap_or_default();
        bytes.try_into().map_or(0, u64::from_le_bytes)
    }

    /// The number that whole and changes add up to: each change carries its own.
    fn read(disk: &SimDisk) -> io::Result<(Changes, u64)> {
        let last = whole(disk);
        let (changes, list) = Changes::open(disk, Path::new(DIR), last)?;
        for (number, bytes) in &list {
            assert_eq!(bytes, &number.to_le_bytes());
        }
        Ok((changes, list.last().map_or(last, |(n, _)| *n)))
    }

    /// Makes changes until the disk fails or `to` are made, folding every third.
    fn run(disk: &SimDisk, to: u64) -> u64 {
        let Ok((mut changes, mut done)) = read(disk) else { return 0 };
        while done < to {
            let next = done + 1;
            let stored = if next.is_multiple_of(3) {
                durable::replace(disk, Path::new("/d/whole"), &next.to_le_bytes())
            } else {
                changes.append(disk, next, &next.to_le_bytes())
            };
            if stored.is_err() {
                break;
            }
            done = next;
            if next.is_multiple_of(3) && changes.folded(disk, next).is_err() {
                break;
            }
        }
        done
    }

    #[test]
    fn d1_a_change_that_was_stored_is_read_after_a_power_cut_at_every_operation() {
        for cut in 0..120 {
            for seed in 0..4 {
                let disk = SimDisk::new();
                disk.create_dir_all(Path::new("/d")).unwrap();
                disk.set_faults(Faults { cut_after: Some(cut), ..Faults::default() });
                let done = run(&disk, 8);
                disk.power_cycle(&SimEntropy::seeded(cut * 10 + seed));
                let (_, found) = read(&disk).unwrap_or_else(|e| panic!("cut {cut}: {e}"));
                assert!(found == done || found == done + 1, "cut {cut}: {found} of {done}");
                assert_eq!(run(&disk, 12), 12, "cut {cut}: it goes on");
            }
        }
    }

    #[test]
    fn a_hole_is_refused_by_name_and_so_is_a_file_of_somebody_else() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        assert_eq!(run(&disk, 2), 2);
        disk.remove(&Path::new(DIR).join(name_of(1))).unwrap();
        let error = read(&disk).unwrap_err().to_string();
        assert!(error.contains("00000000000000000001 is missing"), "{error}");
        durable::replace(&disk, &Path::new(DIR).join("x"), b"").unwrap();
        assert!(read(&disk).unwrap_err().to_string().contains("/x is no change"));
    }

    #[test]
    fn a_state_is_stored_whole_after_a_part_of_its_size() {
        let disk = SimDisk::new();
        let (mut changes, _) = Changes::open(&disk, Path::new(DIR), 0).unwrap();
        for number in 1..=64 {
            assert!(!changes.fold_due(0), "{number}");
            changes.append(&disk, number, b"").unwrap();
        }
        assert!(changes.fold_due(0) && changes.fold_due(256) && !changes.fold_due(260));
        changes.folded(&disk, 64).unwrap();
        assert!(!changes.fold_due(0));
        assert!(disk.list(Path::new(DIR)).unwrap().is_empty());
    }
}
