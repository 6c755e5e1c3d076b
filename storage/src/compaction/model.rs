//! Months of arrivals through the planner, without files: sizes, bounds and versions only.
//!
//! Owns: the reference for what merging may cost and for who wins. A file's content is, for each
//! stretch of time, the number of the flush that wrote it last; after every merge a reader that
//! goes by versions must still find the newest.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    history::Reason,
    level,
    overlap::{deepest, version},
    planner::{Job, plan},
    territory::Territory,
};
use crate::{column_file::bundle::SectionRef, limits::EngineLimits, manifest::FileEntry};

const MINUTE_NS: i64 = 60 * 1_000_000_000;
/// Rows of one stretch are told apart no further.
const STRETCH_NS: i64 = 20 * MINUTE_NS;
const ROW_BYTES: u64 = 10;

/// A file entry with these bounds and no content.
pub(crate) fn entry(id: u64, level: u8, time: (i64, i64), lsn: (u64, u64), rows: u64) -> FileEntry {
    let mut key = [0u8; 16];
    key[..8].copy_from_slice(&id.to_le_bytes());
    let section = SectionRef { object: key, section_id: key, offset: 0, len: 1 };
    FileEntry {
        id: key,
        table_id: 1,
        parquet: section.clone(),
        directory: section,
        level,
        t_min: time.0,
        t_max: time.1,
        rows,
        lsn_lo: lsn.0,
        lsn_hi: lsn.1,
        bytes: rows * ROW_BYTES,
        erased_to: 0,
    }
}

/// Numbers from a seed.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n.max(1)
    }
}

/// How rows arrive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrivals {
    /// Rows of one flush.
    pub rows: u64,
    /// Percent of them that are late.
    pub late: u64,
    /// Whether late rows are those of the last days sent again, or history of up to 4 weeks.
    pub resent: bool,
    /// Time from one flush to the next, minutes.
    pub every: i64,
}

#[derive(Debug, Default, Clone)]
struct Content {
    /// Stretch -> the flush that wrote it last.
    newest: BTreeMap<i64, u64>,
    in_order_rows: u64,
    late_rows: u64,
}

/// See the module head.
#[derive(Debug)]
pub(crate) struct Model {
    pub limits: EngineLimits,
    pub files: Vec<Arc<FileEntry>>,
    content: BTreeMap<[u8; 16], Content>,
    truth: BTreeMap<i64, u64>,
    now: i64,
    flushes: u64,
    ids: u64,
    /// Rows flushed: in order, late.
    pub flushed: (u64, u64),
    /// Rows written, flushes included: charged to rows in order, charged to late rows.
    pub written: (u64, u64),
    pub jobs: BTreeMap<&'static str, u64>,
    pub largest_job: u64,
}

impl Model {
    pub(crate) fn new(limits: EngineLimits, start: i64) -> Self {
        Self {
            limits,
            files: Vec::new(),
            content: BTreeMap::new(),
            truth: BTreeMap::new(),
            now: start,
            flushes: 0,
            ids: 0,
            flushed: (0, 0),
            written: (0, 0),
            jobs: BTreeMap::new(),
            largest_job: 0,
        }
    }

    /// Rows arrive until the next flush, which cuts them into files as the engine does.
    pub(crate) fn flush(&mut self, dice: &mut Dice, arrivals: &Arrivals) {
        self.flushes += 1;
        let before = self.now;
        self.now += arrivals.every * MINUTE_NS;
        let late_rows = arrivals.rows * arrivals.late / 100;
        let mut pieces = vec![(before, self.now - 1, arrivals.rows - late_rows, false)];
        let episodes = 1 + dice.below(6);
        for _ in 0..if late_rows > 0 { episodes } else { 0 } {
            let reach = if arrivals.resent { 2 } else { 28 * 24 };
            let behind = (4 + dice.below(reach * 60)) as i64 * MINUTE_NS + 3 * 60 * MINUTE_NS;
            let len = (1 + dice.below(90)) as i64 * MINUTE_NS;
            let from = self.now - behind;
            pieces.push((from, from + len, late_rows / episodes, true));
        }
        let newest = self.files.iter().map(|f| f.t_max).max().unwrap_or(0).max(self.now - 1);
        let territory = Territory::new(&self.files, &self.limits, newest);
        let mut slots: BTreeMap<i64, (i64, i64, Content)> = BTreeMap::new();
        for (from, to, rows, late) in pieces {
            let mut parts = Vec::new();
            let mut t = from;
            while t <= to {
                let end = to.min(super::territory::floor(t, STRETCH_NS) + STRETCH_NS - 1);
                parts.push((t, end));
                t = end + 1;
            }
            let share = (rows / parts.len() as u64).max(1);
            for (t, end) in parts {
                let slot = slots.entry(territory.slot(t)).or_insert((t, end, Content::default()));
                slot.0 = slot.0.min(t);
                slot.1 = slot.1.max(end);
                slot.2.newest.insert(t.div_euclid(STRETCH_NS), self.flushes);
                *(if late { &mut slot.2.late_rows } else { &mut slot.2.in_order_rows }) += share;
            }
        }
        for (_, (t_min, t_max, content)) in slots {
            self.truth.extend(content.newest.iter().map(|(k, v)| (*k, *v)));
            self.flushed.0 += content.in_order_rows;
            self.flushed.1 += content.late_rows;
            self.written.0 += content.in_order_rows;
            self.written.1 += content.late_rows;
            self.add(level::L0, (t_min, t_max), (self.flushes, self.flushes), content);
        }
    }

    fn add(&mut self, level: u8, time: (i64, i64), lsn: (u64, u64), content: Content) {
        self.ids += 1;
        let rows = content.in_order_rows + content.late_rows;
        let file = entry(self.ids, level, time, lsn, rows.max(1));
        self.content.insert(file.id, content);
        self.files.push(Arc::new(file));
    }

    /// Merges until nothing is wanted any more.
    pub(crate) fn settle(&mut self) {
        for _ in 0..500 {
            let Some(job) = plan(&self.files, &self.limits, self.now) else { return };
            self.apply(&job);
        }
        panic!("planning does not come to an end: {:?}", self.jobs);
    }

    fn apply(&mut self, job: &Job) {
        assert!(job.inputs.len() >= 2, "a merge of one file brings nothing");
        assert!(job.inputs.is_sorted_by_key(|f| version(f)), "oldest first");
        assert!(job.bytes() <= self.limits.merge_bytes_max);
        self.largest_job = self.largest_job.max(job.bytes());
        *self.jobs.entry(job.reason.as_str()).or_default() += 1;
        let mut merged = Content::default();
        for input in &job.inputs {
            let part = self.content.remove(&input.id).unwrap();
            merged.newest.extend(part.newest);
            merged.in_order_rows += part.in_order_rows;
            merged.late_rows += part.late_rows;
        }
        if job.reason == Reason::LateIntoBase {
            self.written.1 += merged.in_order_rows + merged.late_rows;
        } else {
            self.written.0 += merged.in_order_rows;
            self.written.1 += merged.late_rows;
        }
        self.files.retain(|f| !job.inputs.iter().any(|i| i.id == f.id));
        let t_min = job.inputs.iter().map(|f| f.t_min).min().unwrap();
        let t_max = job.inputs.iter().map(|f| f.t_max).max().unwrap();
        let lo = job.inputs.iter().map(|f| f.lsn_lo).min().unwrap();
        let hi = job.inputs.iter().map(|f| f.lsn_hi).max().unwrap();
        self.add(job.level, (t_min, t_max), (lo, hi), merged);
    }

    /// What a reader finds is what was written last.
    pub(crate) fn check_order(&self) {
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_by_key(|f| version(f));
        let mut seen: BTreeMap<i64, u64> = BTreeMap::new();
        for file in files {
            seen.extend(self.content[&file.id].newest.iter().map(|(k, v)| (*k, *v)));
        }
        assert!(seen == self.truth, "an older value wins");
    }

    /// Versions over one point of time: flushes and hot runs, late runs, bases, all.
    pub(crate) fn depths(&self) -> (usize, usize, usize, usize) {
        let of = |wanted: fn(u8) -> bool| {
            let files: Vec<_> = self.files.iter().filter(|f| wanted(f.level)).cloned().collect();
            deepest(&files).0
        };
        let all = deepest(&self.files).0;
        (of(|l| l < level::DAY), of(|l| l > level::LATE), of(level::is_base), all)
    }

    pub(crate) fn writes_per_row(&self) -> f64 {
        self.written.0 as f64 / self.flushed.0.max(1) as f64
    }

    pub(crate) fn writes_per_late_row(&self) -> f64 {
        self.written.1 as f64 / self.flushed.1.max(1) as f64
    }
}

/// Runs `days` of arrivals and holds them against the bounds; returns the model for more.
pub(crate) fn months(seed: u64, days: i64, arrivals: Arrivals) -> Model {
    let mut dice = Dice(seed * 2 + 1);
    let start = (20_000 + dice.below(64) as i64) * 24 * 60 * MINUTE_NS;
    let mut model = Model::new(EngineLimits::default(), start);
    let flushes = days * 24 * 60 / arrivals.every;
    let mut worst = (0, 0, 0, 0);
    for flush in 0..flushes {
        model.flush(&mut dice, &arrivals);
        model.settle();
        if flush % 16 == 0 {
            let now = model.depths();
            worst =
                (worst.0.max(now.0), worst.1.max(now.1), worst.2.max(now.2), worst.3.max(now.3));
        }
        if flush % 64 == 0 {
            model.check_order();
        }
    }
    model.check_order();
    let told = format!(
        "seed {seed}, {arrivals:?}: {:.2} per row, {:.2} per late byte, depths {worst:?}, {} files, {:?}, largest {}",
        model.writes_per_row(),
        model.writes_per_late_row(),
        model.files.len(),
        model.jobs,
        model.largest_job
    );
    println!("{told}");
    assert!(model.writes_per_row() <= 4.0, "{told}");
    assert!(model.writes_per_late_row() <= 8.0, "{told}");
    assert!(worst.0 <= 12 && worst.1 <= 8 && worst.3 <= 21, "{told}");
    model
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d2_months_of_arrivals_stay_within_the_bounds() {
        let mut seed = 0;
        for late in [0, 30, 60] {
            for rows in [100, 10_000, 1_000_000] {
                seed += 1;
                months(seed, 6, Arrivals { rows, late, resent: false, every: 20 });
            }
        }
        months(20, 6, Arrivals { rows: 10_000, late: 5, resent: true, every: 20 });
    }

    #[test]
    fn d2_a_table_of_a_season_stays_within_the_bounds() {
        months(30, 75, Arrivals { rows: 5_000, late: 30, resent: false, every: 120 });
        months(31, 75, Arrivals { rows: 5_000, late: 0, resent: false, every: 120 });
    }
}
