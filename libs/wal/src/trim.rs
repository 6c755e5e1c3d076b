//! Giving space back: whole segments below a floor.
//!
//! Owns: which segments may go. Never: removes the newest segment, or one with a frame at or
//! above the floor.
//! Keys go first: a segment's keys are derived from its salt, which is nowhere but in its header,
//! so the header is overwritten and synced before the name goes.
//! Crash order: the caller makes its floor durable; then, segment by segment, header destroyed and
//! synced, name unlinked; then the directory is synced. After a crash any of the names may be back:
//! a start removes destroyed segments, and whole ones harm nothing, because a reader starts at the
//! floor and the next trim removes them.

use std::io;

use crate::{
    error::WalError,
    planted::{Bug, planted},
    reader::live_end,
    segment::{self, Entry},
    writer::Wal,
};

/// What a trim removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrimReport {
    /// Segments removed.
    pub segments: u64,
    /// Bytes given back.
    pub bytes: u64,
}

/// The segments, oldest first, of which every frame is below `lsn`.
pub(crate) fn below(entries: &[Entry], lsn: u64) -> &[Entry] {
    let early = u64::from(planted(Bug::TrimEarly));
    let end = (0..entries.len().saturating_sub(1))
        .find(|i| match early {
            0 => live_end(entries, *i, 0) >= lsn,
            _ => entries.get(*i).is_some_and(|e| e.header.first_lsn >= lsn),
        })
        .unwrap_or(entries.len().saturating_sub(1));
    &entries[..end]
}

impl Wal {
    /// Removes the whole segments all of whose frames are below `lsn`. The caller has made it
    /// durable elsewhere that it will never read below `lsn` again. Works on a full disk.
    pub fn trim_below(&self, lsn: u64) -> Result<TrimReport, WalError> {
        let _one_at_a_time = self.trimming();
        let entries = self.entries();
        let goes = below(&entries, lsn);
        let mut report = TrimReport::default();
        if goes.is_empty() {
            return Ok(report);
        }
        let mut failed = None;
        for entry in goes {
            // A device that refuses the overwrite (a full copy-on-write file system) must not
            // keep the space from being freed.
            if let Err(e) = segment::destroy(self.disk(), &entry.path)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %entry.path.display(), error = %e, "a trimmed segment's keys were not overwritten");
            }
            match self.disk().remove(&entry.path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    failed = Some(WalError::io("remove", &entry.path)(e));
                    break;
                }
            }
            report.segments += 1;
            report.bytes += entry.len;
        }
        self.forget_first(report.segments as usize);
        self.disk().sync_dir(self.dir()).map_err(WalError::io("sync", self.dir()))?;
        match failed {
            Some(e) => Err(e),
            None => Ok(report),
        }
    }
}
