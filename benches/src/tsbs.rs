//! The cpu-only workload of the Time Series Benchmark Suite, generated here: ten tags, ten integer
//! fields that walk between 0 and 100, one row per host every ten seconds, in order of time.
//!
//! Owns: the rows and the manifest of what a query must find. Same seed, same bytes.
//! Never: reads a clock. The data starts on 2016-01-01 as the suite's own does.

use std::fmt::Write;

use crate::random::Random;

/// Start of the data: 2016-01-01T00:00:00Z, in seconds.
pub const START_S: u64 = 1_451_606_400;
/// Seconds between two rows of a host.
pub const STEP_S: u64 = 10;
/// The table.
pub const TABLE: &str = "cpu";
/// The fields, in the order in which they stand in a line.
pub const FIELDS: [&str; 10] = [
    "usage_user",
    "usage_system",
    "usage_idle",
    "usage_nice",
    "usage_iowait",
    "usage_irq",
    "usage_softirq",
    "usage_steal",
    "usage_guest",
    "usage_guest_nice",
];

const REGIONS: [(&str, &[&str]); 9] = [
    ("us-east-1", &["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1e"]),
    ("us-west-1", &["us-west-1a", "us-west-1b"]),
    ("us-west-2", &["us-west-2a", "us-west-2b", "us-west-2c"]),
    ("eu-west-1", &["eu-west-1a", "eu-west-1b", "eu-west-1c"]),
    ("eu-central-1", &["eu-central-1a", "eu-central-1b"]),
    ("ap-southeast-1", &["ap-southeast-1a", "ap-southeast-1b"]),
    ("ap-southeast-2", &["ap-southeast-2a", "ap-southeast-2b"]),
    ("ap-northeast-1", &["ap-northeast-1a", "ap-northeast-1c"]),
    ("sa-east-1", &["sa-east-1a", "sa-east-1b", "sa-east-1c"]),
];
const SYSTEMS: [&str; 3] = ["Ubuntu15.10", "Ubuntu16.10", "Ubuntu16.04LTS"];
const MACHINES: [&str; 2] = ["x64", "x86"];
const TEAMS: [&str; 4] = ["SF", "NYC", "LON", "CHI"];
const STAGES: [&str; 3] = ["production", "staging", "test"];

/// What a field's column must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldManifest {
    /// Sum over all rows.
    pub sum: i64,
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
    /// Sum over the hosts of the value at the last time.
    pub last: i64,
}

/// What a query over the whole table must find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Rows.
    pub rows: u64,
    /// Hosts.
    pub hosts: u64,
    /// The last time, ns since the Unix epoch.
    pub last_time_ns: u64,
    /// One entry per field, in the order of [`FIELDS`].
    pub fields: [FieldManifest; 10],
}

#[derive(Debug)]
struct Host {
    /// `cpu,hostname=…,…,service_environment=… `: everything before the fields.
    head: String,
    walk: [f64; 10],
}

/// Writes the rows, batch by batch.
#[derive(Debug)]
pub struct Generator {
    hosts: Vec<Host>,
    random: Random,
    steps: u64,
    step: u64,
    host: usize,
    manifest: Manifest,
}

impl Generator {
    /// A generator over `hosts` hosts for `hours` hours.
    pub fn new(seed: u64, hosts: usize, hours: f64) -> Self {
        let mut random = Random::seeded(seed);
        let steps = (hours * 3600.0 / STEP_S as f64).round() as u64;
        let hosts: Vec<Host> = (0..hosts).map(|n| host(n, &mut random)).collect();
        let none = FieldManifest { sum: 0, min: i64::MAX, max: i64::MIN, last: 0 };
        let manifest =
            Manifest { rows: 0, hosts: hosts.len() as u64, last_time_ns: 0, fields: [none; 10] };
        Self { hosts, random, steps, step: 0, host: 0, manifest }
    }

    /// Rows that the whole run will have.
    pub fn total_rows(&self) -> u64 {
        self.steps * self.hosts.len() as u64
    }

    /// What the rows written so far add up to.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Appends up to `rows` lines to `out` and returns how many; 0 at the end.
    pub fn fill(&mut self, out: &mut Vec<u8>, rows: usize) -> usize {
        let mut written = 0;
        let mut line = String::with_capacity(400);
        while written < rows && self.step < self.steps {
            let time_ns = (START_S + self.step * STEP_S) * 1_000_000_000;
            let last_step = self.step + 1 == self.steps;
            let Some(host) = self.hosts.get_mut(self.host) else { break };
            line.clear();
            line.push_str(&host.head);
            for (n, (name, walk)) in FIELDS.iter().zip(&mut host.walk).enumerate() {
                if self.step > 0 {
                    *walk = (*walk + self.random.normal()).clamp(0.0, 100.0);
                }
                let value = *walk as i64;
                if let Some(field) = self.manifest.fields.get_mut(n) {
                    field.sum += value;
                    field.min = field.min.min(value);
                    field.max = field.max.max(value);
                    field.last += if last_step { value } else { 0 };
                }
                let comma = if n == 0 { "" } else { "," };
                // Writing to a String cannot fail.
                write!(line, "{comma}{name}={value}i").ok();
            }
            writeln!(line, " {time_ns}").ok();
            out.extend_from_slice(line.as_bytes());
            self.manifest.rows += 1;
            self.manifest.last_time_ns = time_ns;
            written += 1;
            self.host += 1;
            if self.host == self.hosts.len() {
                self.host = 0;
                self.step += 1;
            }
        }
        written
    }
}

fn host(n: usize, random: &mut Random) -> Host {
    fn pick<'a>(random: &mut Random, from: &[&'a str]) -> &'a str {
        from.get(random.below(from.len())).copied().unwrap_or_default()
    }
    let (region, zones) = REGIONS.get(random.below(REGIONS.len())).copied().unwrap_or_default();
    let zone = pick(random, zones);
    let (rack, service, version) = (random.below(100), random.below(20), random.below(2));
    let system = pick(random, &SYSTEMS);
    let machine = pick(random, &MACHINES);
    let team = pick(random, &TEAMS);
    let stage = pick(random, &STAGES);
    let head = format!(
        "{TABLE},hostname=host_{n},region={region},datacenter={zone},rack={rack},os={system},arch={machine},\
         team={team},service={service},service_version={version},service_environment={stage} "
    );
    let mut walk = [0.0; 10];
    for value in &mut walk {
        *value = random.unit() * 100.0;
    }
    Host { head, walk }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_whatever_the_batch_size() {
        let all = |batch: usize| {
            let mut generator = Generator::new(7, 10, 0.1);
            let mut out = Vec::new();
            while generator.fill(&mut out, batch) > 0 {}
            (out, generator.manifest().clone())
        };
        assert_eq!(all(1), all(1000));
        assert_eq!(all(33).1.rows, 360);
    }

    #[test]
    fn the_manifest_says_what_the_lines_say() {
        let mut generator = Generator::new(1, 5, 0.05);
        let mut out = Vec::new();
        while generator.fill(&mut out, 7) > 0 {}
        let text = String::from_utf8(out).unwrap();
        let value = |line: &str| -> i64 {
            let from = line.find("usage_idle=").unwrap() + "usage_idle=".len();
            line[from..].split('i').next().unwrap().parse().unwrap()
        };
        let idle = generator.manifest().fields[2];
        assert_eq!(text.lines().map(value).sum::<i64>(), idle.sum);
        assert_eq!(text.lines().map(value).max(), Some(idle.max));
        let last: i64 = text.lines().rev().take(5).map(value).sum();
        assert_eq!(last, idle.last);
        let length = text.len() / text.lines().count();
        assert!((300..380).contains(&length), "a row is about 346 bytes, here {length}");
    }
}
