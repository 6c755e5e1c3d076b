//! Machines on a shop floor: 14 fields at 1 Hz with jitter, in order or partly late.
//!
//! Owns: the rows and their manifest. Eleven gauges of three decimals that wander about a set
//! point, a tenth of them missing; a counter of parts; two texts (a state of few values, a lot of
//! many). Times are jittered by up to 50 ms. Same options, same bytes.
//! Never: reads a clock; the run says when it starts.

use crate::{
    backfill::Lateness,
    manifest::{Cell, Column, Kind, Manifest, write_line},
    random::Random,
};

/// The table, unless a run names another.
pub const TABLE: &str = "shopfloor";
/// The tag that names a series.
pub const SERIES_TAG: &str = "machine";

const fn gauge(name: &'static str) -> Column {
    Column { name, kind: Kind::Decimal(3) }
}

/// The fields, in the order in which they stand in a line.
pub const COLUMNS: [Column; 14] = [
    gauge("spindle_temp"),
    gauge("motor_temp"),
    gauge("coolant_temp"),
    gauge("coolant_pressure"),
    gauge("spindle_speed"),
    gauge("feed_rate"),
    gauge("axis_x"),
    gauge("axis_y"),
    gauge("axis_z"),
    gauge("vibration"),
    gauge("power"),
    Column { name: "parts", kind: Kind::Count },
    Column { name: "state", kind: Kind::Text },
    Column { name: "lot", kind: Kind::Text },
];
const GAUGES: usize = 11;

/// Set point and usual step of each gauge, in thousandths.
const BEHAVIOUR: [(f64, f64); GAUGES] = [
    (62_000.0, 40.0),
    (71_000.0, 30.0),
    (24_000.0, 15.0),
    (5_200.0, 8.0),
    (8_000_000.0, 2_500.0),
    (1_200_000.0, 900.0),
    (0.0, 4_000.0),
    (0.0, 4_000.0),
    (150_000.0, 1_500.0),
    (1_800.0, 60.0),
    (11_500.0, 90.0),
];
const STATES: [&str; 5] = ["running", "running", "idle", "setup", "alarm"];
/// Jitter of a row's time, µs.
const JITTER_US: usize = 50_000;
/// Of the gauges, missing in a row.
const MISSING_PERCENT: f64 = 10.0;
/// Lines that are remembered to be sent again.
const REMEMBERED: usize = 8192;

/// What is generated.
#[derive(Debug, Clone)]
pub struct Options {
    /// Same seed, same rows.
    pub seed: u64,
    /// Machines, each with one row a second.
    pub machines: usize,
    /// Seconds of the run.
    pub seconds: u64,
    /// When the run starts, seconds since the Unix epoch.
    pub start_s: u64,
    /// Of all rows, late (see [`Lateness`]).
    pub late_percent: f64,
    /// Of all rows, sent a second time some time later.
    pub resent_percent: f64,
    /// The table.
    pub table: String,
}

#[derive(Debug)]
struct Machine {
    name: String,
    /// Everything before the fields, a space at its end.
    head: String,
    gauges: [f64; GAUGES],
    parts: i64,
    state: &'static str,
    lots: u64,
    lot: String,
}

impl Machine {
    fn new(number: usize, table: &str, random: &mut Random) -> Self {
        let name = format!("m{number:04}");
        let (area, line) = (number / 50, number / 10);
        let head = format!("{table},area=a{area},line=l{line:03},{SERIES_TAG}={name} ");
        let mut gauges = BEHAVIOUR.map(|(set_point, _)| set_point);
        for (gauge, (_, step)) in gauges.iter_mut().zip(BEHAVIOUR) {
            *gauge += random.normal() * step * 10.0;
        }
        let lot = format!("L{number:04}-000000");
        Self { name, head, gauges, parts: 0, state: "running", lots: 0, lot }
    }

    fn step(&mut self, number: usize, random: &mut Random) {
        for (gauge, (set_point, step)) in self.gauges.iter_mut().zip(BEHAVIOUR) {
            *gauge += random.normal() * step + (set_point - *gauge) * 0.01;
        }
        if random.below(120) == 0 {
            self.state = STATES.get(random.below(STATES.len())).copied().unwrap_or("idle");
        }
        if self.state == "running" && random.below(30) == 0 {
            self.parts += 1;
        }
        if random.below(400) == 0 {
            self.lots += 1;
            self.lot = format!("L{number:04}-{:06}", self.lots);
        }
    }
}

/// What one call of [`ShopFloor::fill`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filled {
    /// Lines, those that were sent before included.
    pub lines: u64,
    /// Of them, lines that were sent before.
    pub resent: u64,
    /// Of the new ones, late ones.
    pub late: u64,
}

/// Writes the rows, batch by batch.
#[derive(Debug)]
pub struct ShopFloor {
    options: Options,
    lateness: Lateness,
    random: Random,
    machines: Vec<Machine>,
    second: u64,
    machine: usize,
    remembered: Vec<String>,
    manifest: Manifest,
}

impl ShopFloor {
    /// Starts at the first second.
    pub fn new(options: Options) -> Self {
        let mut random = Random::seeded(options.seed);
        let machines =
            (0..options.machines).map(|n| Machine::new(n, &options.table, &mut random)).collect();
        let lateness = Lateness::new(options.seed, options.late_percent, options.seconds);
        Self {
            lateness,
            random,
            machines,
            second: 0,
            machine: 0,
            remembered: Vec::new(),
            manifest: Manifest::default(),
            options,
        }
    }

    /// Rows of the whole run, each counted once.
    pub fn total_rows(&self) -> u64 {
        self.options.seconds * self.options.machines as u64
    }

    /// What the rows written so far add up to.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Appends about `lines` lines to `out` (one more if the last is followed by a repetition).
    pub fn fill(&mut self, out: &mut Vec<u8>, lines: usize) -> Filled {
        let mut filled = Filled::default();
        let mut line = String::with_capacity(400);
        while filled.lines < lines as u64 && self.second < self.options.seconds {
            line.clear();
            filled.late += u64::from(self.row(&mut line));
            out.extend_from_slice(line.as_bytes());
            filled.lines += 1;
            if self.options.resent_percent > 0.0 && self.again(&line, out) {
                filled.lines += 1;
                filled.resent += 1;
            }
            self.machine += 1;
            if self.machine >= self.machines.len() {
                self.machine = 0;
                self.second += 1;
            }
        }
        filled
    }

    /// Writes the next row; whether it is late.
    fn row(&mut self, line: &mut String) -> bool {
        let random = &mut self.random;
        let Some(machine) = self.machines.get_mut(self.machine) else { return false };
        machine.step(self.machine, random);
        let behind_s = self.lateness.behind_s(self.machine, self.second);
        let second = (self.options.start_s + self.second).saturating_sub(behind_s);
        let time_ns = (second * 1_000_000 + random.below(JITTER_US) as u64) as i64 * 1000;
        let mut cells = [Cell::Absent; COLUMNS.len()];
        let (gauges, others) = cells.split_at_mut(GAUGES);
        for (cell, gauge) in gauges.iter_mut().zip(machine.gauges) {
            if !random.percent(MISSING_PERCENT) {
                *cell = Cell::Number(gauge.round() as i64);
            }
        }
        let rest =
            [Cell::Number(machine.parts), Cell::Text(machine.state), Cell::Text(&machine.lot)];
        others.copy_from_slice(&rest);
        write_line(line, &machine.head, &COLUMNS, &cells, time_ns);
        self.manifest.add(&machine.name, time_ns, &cells);
        behind_s > 0
    }

    /// Remembers a line, and sends an earlier one again if it is time for one.
    fn again(&mut self, line: &str, out: &mut Vec<u8>) -> bool {
        if self.remembered.len() < REMEMBERED {
            self.remembered.push(line.to_owned());
        } else {
            let at = self.random.below(REMEMBERED);
            line.clone_into(&mut self.remembered[at]);
        }
        let resend = self.random.percent(self.options.resent_percent);
        if resend {
            let at = self.random.below(self.remembered.len());
            out.extend_from_slice(self.remembered[at].as_bytes());
        }
        resend
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millrace_protocol::{
        batch::TableBatch,
        line::{self, LineOptions},
        value::FieldValues,
    };

    use super::*;

    fn options(late: f64, resent: f64) -> Options {
        Options {
            seed: 11,
            machines: 7,
            seconds: 120,
            start_s: 1_800_000_000,
            late_percent: late,
            resent_percent: resent,
            table: TABLE.to_owned(),
        }
    }

    fn all(options: Options, batch: usize) -> (Vec<u8>, Manifest, Filled) {
        let mut floor = ShopFloor::new(options);
        let (mut out, mut sum) = (Vec::new(), Filled::default());
        loop {
            let filled = floor.fill(&mut out, batch);
            if filled.lines == 0 {
                return (out, floor.manifest().clone(), sum);
            }
            sum.lines += filled.lines;
            sum.resent += filled.resent;
            sum.late += filled.late;
        }
    }

    /// Adds up what the product's own parser sees in the bytes, each (machine, time) once.
    fn recount(bytes: &[u8]) -> Manifest {
        let parsed = line::parse(bytes, &LineOptions::default());
        assert!(parsed.refusals.is_empty(), "{:?}", parsed.refusals);
        let mut manifest = Manifest::default();
        let mut seen = BTreeSet::new();
        for table in &parsed.tables {
            assert_eq!(table.table, TABLE);
            for row in 0..table.rows() {
                let machine =
                    table.series_keys[table.series[row] as usize].get(SERIES_TAG).unwrap();
                if seen.insert((machine.to_owned(), table.time[row])) {
                    manifest.add(machine, table.time[row], &cells(table, row));
                }
            }
        }
        manifest
    }

    fn cells(table: &TableBatch, row: usize) -> [Cell<'_>; COLUMNS.len()] {
        COLUMNS.map(|column| {
            let field = table.fields.iter().find(|f| f.name == column.name).unwrap();
            match &field.values {
                _ if !field.present.get(row) => Cell::Absent,
                FieldValues::F64(all) => {
                    let value = (all[row] * 1000.0).round();
                    assert_eq!(value / 1000.0, all[row], "three decimals");
                    Cell::Number(value as i64)
                }
                FieldValues::I64(all) => Cell::Number(all[row]),
                FieldValues::Utf8(all) => Cell::Text(all.get(row)),
                other => panic!("{:?}", other.field_type()),
            }
        })
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_whatever_the_batch_size() {
        let whole = all(options(30.0, 5.0), 1_000_000);
        assert_eq!(whole, all(options(30.0, 5.0), 1));
        assert_ne!(whole.0, all(Options { seed: 12, ..options(30.0, 5.0) }, 1000).0);
    }

    #[test]
    fn the_manifest_is_what_a_naive_recount_finds() {
        for (late, resent) in [(0.0, 0.0), (30.0, 5.0), (60.0, 50.0)] {
            let (bytes, manifest, filled) = all(options(late, resent), 100);
            assert_eq!(recount(&bytes), manifest, "{late} % late, {resent} % sent again");
            assert_eq!(manifest.rows(), 7 * 120);
            assert_eq!(filled.lines - filled.resent, 7 * 120);
            assert_eq!((filled.late > 0, filled.resent > 0), (late > 0.0, resent > 0.0));
        }
    }

    #[test]
    fn a_tenth_of_the_gauges_is_missing_and_nothing_else() {
        let (_, manifest, _) = all(options(0.0, 0.0), 100);
        let gauges = manifest.values(&COLUMNS, |k| matches!(k, Kind::Decimal(_))) as f64;
        let share = gauges / (7 * 120 * GAUGES) as f64;
        assert!((0.88..0.92).contains(&share), "{share}");
        assert_eq!(manifest.values(&COLUMNS, |k| k == Kind::Text), 2 * 7 * 120);
    }
}
