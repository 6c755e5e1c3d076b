//! Which files to merge next: a pure function of a table's files.
//!
//! Owns: the choice and its order: too much overlap, small hot files, late files, sealed windows.
//! Levels (level.rs): a row in order is written by its flush, once as part of its hot window,
//! once as part of its day and once as part of 8 or 32 days: at most 4 times. Late rows stay
//! apart on top of the base of their window, are merged among themselves in growing tiers, and
//! go into the base only when they are a good part of it: the more often they have been merged
//! already, the larger, so that at most 8 bytes are written for one of theirs.
//! Invariants: one file in the place of the inputs changes no order of versions (overlap.rs); a
//! job's rows and bytes are capped; every job makes one run of several and raises its level, but
//! for the last tier, so that planning comes to an end.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    history::Reason,
    level,
    overlap::{deepest, keeps_order, version},
    territory::{Home, Territory},
};
use crate::{
    erase::{Cause, Tombstone},
    limits::EngineLimits,
    manifest::FileEntry,
};

/// Late runs over one point of time at most.
const LATE_MAX: usize = 8;

/// Files to merge.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The inputs, oldest first: at least two, or one from which deleted rows are left out.
    pub inputs: Vec<Arc<FileEntry>>,
    /// Level of the outputs.
    pub level: u8,
    /// Why.
    pub reason: Reason,
}

impl Job {
    /// Sealed bytes of the inputs.
    pub(crate) fn bytes(&self) -> u64 {
        self.inputs.iter().map(|f| f.bytes).sum()
    }
}

/// Files of one version and level in one window: a flush's, or what one merge wrote side by side.
#[derive(Debug, Default)]
struct Run {
    files: Vec<Arc<FileEntry>>,
    level: u8,
    bytes: u64,
    rows: u64,
}

struct Table<'a> {
    files: &'a [Arc<FileEntry>],
    limits: &'a EngineLimits,
    territory: Territory,
    /// By window, oldest first.
    homes: BTreeMap<Home, Vec<Run>>,
}

/// The first job worth doing, if any. `now` in ns since 1970.
pub(crate) fn plan(files: &[Arc<FileEntry>], limits: &EngineLimits, now: i64) -> Option<Job> {
    if files.len() < 2 {
        return None;
    }
    let table = Table::new(files, limits, now);
    table.relief().or_else(|| table.hot()).or_else(|| table.late()).or_else(|| table.seal())
}

/// A file of which rows were deleted at or before `made_ns`, to be written again without them.
pub(crate) fn rewrite(
    files: &[Arc<FileEntry>],
    tombstones: &[Arc<Tombstone>],
    made_ns: i64,
) -> Option<Job> {
    let due = |t: &&Arc<Tombstone>| t.cause == Cause::Statement && t.made_ns <= made_ns;
    let due: Vec<_> = tombstones.iter().filter(due).collect();
    let file = files.iter().find(|f| due.iter().any(|t| t.concerns(f)))?;
    Some(Job { inputs: vec![Arc::clone(file)], level: file.level, reason: Reason::Erase })
}

/// How many late files of one tier, told by how often they have been merged, make a merge.
fn fan(merges: u8, limits: &EngineLimits) -> usize {
    let files = limits.merge_files.max(2);
    match merges {
        0 => files.saturating_mul(2),
        1 => files,
        2 => (files - 1).max(2),
        _ => 2,
    }
}

/// How many bytes of base one late byte may drag along when it has been merged `merges` times:
/// flush, those merges, this one and that of the longer window make at most 8 together.
fn drag(merges: u8) -> u64 {
    u64::from(5u8.saturating_sub(merges)).clamp(1, 4)
}

impl<'a> Table<'a> {
    fn new(files: &'a [Arc<FileEntry>], limits: &'a EngineLimits, now: i64) -> Self {
        let newest = files.iter().map(|f| f.t_max).max().unwrap_or(now).min(now);
        let territory = Territory::new(files, limits, newest);
        let mut by_version: BTreeMap<(Home, (u64, u64), u8), Run> = BTreeMap::new();
        for file in files {
            let home = territory.home(file.t_min, file.t_max);
            let run = by_version.entry((home, version(file), file.level)).or_default();
            run.level = file.level;
            run.bytes += file.bytes;
            run.rows += file.rows;
            run.files.push(Arc::clone(file));
        }
        let mut homes: BTreeMap<Home, Vec<Run>> = BTreeMap::new();
        for ((home, _, _), run) in by_version {
            homes.entry(home).or_default().push(run);
        }
        Self { files, limits, territory, homes }
    }

    fn in_caps(&self, runs: &[&Run]) -> bool {
        runs.iter().map(|r| r.rows).sum::<u64>() <= self.limits.merge_rows_max
            && runs.iter().map(|r| r.bytes).sum::<u64>() <= self.limits.merge_bytes_max
    }

    /// The job, if it is one: several versions, within the caps, in an order that stays.
    fn job(&self, runs: &[&Run], level: u8, reason: Reason) -> Option<Job> {
        if runs.len() < 2 || !self.in_caps(runs) {
            return None;
        }
        let mut inputs: Vec<Arc<FileEntry>> =
            runs.iter().flat_map(|r| r.files.iter().cloned()).collect();
        inputs.sort_by_key(|f| version(f));
        let refs: Vec<&FileEntry> = inputs.iter().map(AsRef::as_ref).collect();
        let left = self.files.iter().map(AsRef::as_ref);
        let left = left.filter(|f: &&FileEntry| !refs.iter().any(|i| i.id == f.id));
        keeps_order(&refs, left).then_some(Job { inputs, level, reason })
    }

    /// Whether merging brings something: files that are small, or that lie over one another.
    fn worth(&self, runs: &[&Run]) -> bool {
        let bytes: u64 = runs.iter().map(|r| r.bytes).sum();
        if bytes / (runs.len() as u64).max(1) < self.limits.merge_small_bytes {
            return true;
        }
        let files: Vec<_> = runs.iter().flat_map(|r| r.files.iter().cloned()).collect();
        deepest(&files).0 >= self.limits.merge_files.max(2)
    }

    /// The longest possible merge of neighbours among `runs`, of at least `least`.
    fn longest(&self, runs: &[&Run], least: usize, level: u8, reason: Reason) -> Option<Job> {
        (least..=runs.len()).rev().find_map(|len| {
            runs.windows(len).find_map(|part| {
                if self.worth(part) { self.job(part, level, reason) } else { None }
            })
        })
    }

    /// Too many versions over one point of time, or too many late ones.
    fn relief(&self) -> Option<Job> {
        let (depth, at) = deepest(self.files);
        if depth >= self.limits.overlap_relief.max(2)
            && let Some(job) = self.relieve(at, 0)
        {
            return Some(job);
        }
        let late: Vec<_> = self.files.iter().filter(|f| f.level > level::LATE).cloned().collect();
        let (depth, at) = deepest(&late);
        if depth > LATE_MAX { self.relieve(at, level::LATE + 1) } else { None }
    }

    /// The merge of runs of `least` level and above over a point of time that costs least for
    /// each version that it saves.
    fn relieve(&self, at: i64, least: u8) -> Option<Job> {
        let covers = |run: &&Run| {
            run.level >= least && run.files.iter().any(|f| f.t_min <= at && f.t_max >= at)
        };
        let mut runs: Vec<&Run> = self.homes.values().flatten().filter(covers).collect();
        runs.sort_by_key(|r| r.files.first().map(|f| version(f)));
        let hot = self.territory.is_hot(self.territory.home(at, at));
        let mut found: Option<(u64, Job)> = None;
        for len in 2..=runs.len() {
            for part in runs.windows(len) {
                let highest = part.iter().map(|r| r.level).max().unwrap_or(0);
                let level = match highest {
                    level::L0 if hot => level::HOT,
                    level::HOT if hot => level::DAY,
                    _ if part.iter().any(|r| level::is_base(r.level)) => {
                        let bases = part.iter().map(|r| r.level).filter(|l| level::is_base(*l));
                        bases.max().unwrap_or(level::DAY)
                    }
                    late => level::late_above(late),
                };
                let bytes: u64 = part.iter().map(|r| r.bytes).sum();
                let cost = bytes / (len as u64 - 1);
                if found.as_ref().is_none_or(|(best, _)| cost < *best)
                    && let Some(job) = self.job(part, level, Reason::Overlap)
                {
                    found = Some((cost, job));
                }
            }
        }
        found.map(|(_, job)| job)
    }

    /// Flushes of a hot window.
    fn hot(&self) -> Option<Job> {
        let hot = self.homes.iter().filter(|(home, _)| self.territory.is_hot(**home));
        let mut windows: Vec<Vec<&Run>> =
            hot.map(|(_, runs)| runs.iter().filter(|r| r.level == level::L0).collect()).collect();
        windows.sort_by_key(|runs: &Vec<&Run>| std::cmp::Reverse(runs.len()));
        let least = self.limits.merge_files.max(2);
        windows.iter().find_map(|runs| self.longest(runs, least, level::HOT, Reason::Small))
    }

    /// Late files: among themselves, or into the base that they touch.
    fn late(&self) -> Option<Job> {
        let old = self.homes.iter().filter(|(home, _)| !self.territory.is_hot(**home));
        old.into_iter().find_map(|(_, runs)| {
            (0..=level::LATE_MERGES_MAX).find_map(|merges| self.late_tier(runs, merges))
        })
    }

    fn late_tier(&self, runs: &[Run], merges: u8) -> Option<Job> {
        let in_tier = |run: &&Run| match merges {
            0 => run.level == level::L0,
            _ => run.level == level::LATE + merges,
        };
        let tier: Vec<&Run> = runs.iter().filter(in_tier).collect();
        let least = fan(merges, self.limits);
        if tier.len() < least {
            return None;
        }
        if merges > 0
            && let Some(job) = self.job_into_base(runs)
        {
            return Some(job);
        }
        let above = level::late_above(level::LATE + merges);
        // Before there is a base, the files of a window are in order, or late and few.
        let based = runs.iter().any(|r| level::is_base(r.level));
        self.longest(&tier, least, above, if based { Reason::Late } else { Reason::Small })
    }

    /// Everything late of a window into the part of its base that it touches, if it is enough.
    fn job_into_base(&self, runs: &[Run]) -> Option<Job> {
        let late: Vec<&Run> = runs.iter().filter(|r| !level::is_base(r.level)).collect();
        let meets = |base: &&Run| {
            let meet = |b: &FileEntry, r: &Run| r.files.iter().any(|f| super::overlap::meet(b, f));
            base.files.iter().any(|b| late.iter().any(|r| meet(b, r)))
        };
        let touched: Vec<&Run> =
            runs.iter().filter(|r| level::is_base(r.level)).filter(meets).collect();
        let base_bytes: u64 = touched.iter().map(|r| r.bytes).sum();
        let late_bytes: u64 = late.iter().map(|r| r.bytes).sum();
        let merges = late.iter().map(|r| level::late_merges(r.level)).max().unwrap_or(0);
        if touched.is_empty() || base_bytes > late_bytes.saturating_mul(drag(merges)) {
            return None;
        }
        let level = touched.iter().map(|r| r.level).max().unwrap_or(level::DAY);
        let mut all = touched;
        all.extend(late);
        self.job(&all, level, Reason::LateIntoBase)
    }

    /// Windows for which no more rows in order are to come.
    fn seal(&self) -> Option<Job> {
        self.seal_wide().or_else(|| self.seal_days())
    }

    fn seal_days(&self) -> Option<Job> {
        let least = self.limits.merge_files.max(2);
        self.homes.iter().find_map(|(home, runs)| {
            let based = runs.iter().any(|r| level::is_base(r.level));
            if based || home.0 > self.territory.day() || !self.territory.sealed(*home) {
                return None;
            }
            let runs: Vec<&Run> = runs.iter().collect();
            let wanted = runs.len() >= least && self.worth(&runs);
            if wanted { self.job(&runs, level::DAY, Reason::Seal) } else { None }
        })
    }

    /// Small days into a longer window, once.
    fn seal_wide(&self) -> Option<Job> {
        let least = self.limits.merge_files.max(2);
        let max = self.limits.wide_bytes_max;
        let [days_32, days_8] = self.territory.lengths();
        // A window of 8 days waits for its 32 days if those may become small enough.
        for (length, level, bytes_min) in
            [(days_32, level::DAYS_32, 0), (days_8, level::DAYS_8, max / 4)]
        {
            let mut windows: BTreeMap<i64, Vec<&Run>> = BTreeMap::new();
            for ((len, start), runs) in &self.homes {
                if *len <= length {
                    let window = super::territory::floor(*start, length);
                    windows.entry(window).or_default().extend(runs);
                }
            }
            for (start, runs) in windows {
                let bytes: u64 = runs.iter().map(|r| r.bytes).sum();
                let right = self.territory.sealed((length, start))
                    && runs.len() >= least
                    && (bytes_min..=max).contains(&bytes)
                    && !runs.iter().any(|r| matches!(r.level, level::DAYS_8 | level::DAYS_32));
                if right && let Some(job) = self.job(&runs, level, Reason::Seal) {
                    return Some(job);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
