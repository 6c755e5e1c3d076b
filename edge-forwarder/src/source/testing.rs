//! A source's ground in tests: the real queue and its thread on a simulated disk.
//!
//! Owns: power cuts, and the books: every row and gap that is durable, as text.

use std::{path::Path, sync::Arc, time::Duration};

use millrace_platform::{
    clock::{Clock, SystemClock},
    entropy::{Entropy, OsEntropy},
    sim::{SimDisk, SimEntropy},
};
use millrace_protocol::{batch::TableBatch, ids::DeviceId, value::FieldValues};
use tokio::sync::{Notify, mpsc};

use super::Sink;
use crate::{
    crash::Keys,
    intake::{Intake, Offer},
    queue::{Ground, Next, Queue, Sizes},
};

const DEVICE: DeviceId = DeviceId([9; 16]);
const GROUPS: usize = 4;
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module head.
pub struct Bench {
    pub disk: SimDisk,
    pub queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    offers: Option<mpsc::Sender<Offer>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A gap as it is stored: cause, rows, first, last, detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub cause: String,
    pub rows: u64,
    pub first: u64,
    pub last: u64,
    pub detail: String,
}

impl Bench {
    pub fn new() -> Self {
        Self::on(SimDisk::new(), 1 << 30)
    }

    /// On this disk, with a queue of at most `cap` bytes.
    pub fn on(disk: SimDisk, cap: u64) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let ground = Ground {
            disk: Arc::new(disk.clone()),
            entropy: Arc::new(OsEntropy),
            clock: Arc::clone(&clock),
            keys: Arc::new(Keys([7; 32])),
        };
        let queue =
            Arc::new(Queue::open(&ground, DEVICE, Path::new("/q"), Sizes::default()).unwrap());
        let (offers, incoming) = mpsc::channel(GROUPS);
        let intake = Intake {
            queue: Arc::clone(&queue),
            clock: Arc::clone(&clock),
            cap,
            room: Arc::default(),
        };
        let thread = std::thread::spawn(move || intake.run(incoming, &Notify::new()));
        Self { disk, queue, clock, offers: Some(offers), thread: Some(thread) }
    }

    pub fn sink(&self, name: &str) -> Sink {
        Sink {
            name: name.to_owned(),
            device: DEVICE,
            offers: self.offers.clone().unwrap(),
            queue: Arc::clone(&self.queue),
            clock: Arc::clone(&self.clock),
            entropy: Arc::new(OsEntropy) as Arc<dyn Entropy>,
            database: "default".to_owned(),
        }
    }

    /// The power goes; every sink of before must be gone.
    pub fn power_cycle(mut self, dice: &SimEntropy) -> Self {
        self.offers = None;
        self.thread.take().unwrap().join().unwrap();
        let disk = self.disk.clone();
        drop(self);
        disk.power_cycle(dice);
        Self::on(disk, 1 << 30)
    }

    fn batches(&self) -> Vec<TableBatch> {
        self.queue.flush_gaps().unwrap();
        let mut cursor = self.queue.cursor(0);
        let mut out = Vec::new();
        while let Some(next) = self.queue.read(&mut cursor).unwrap() {
            let Next::Frame(frame) = next else { panic!("damage: {next:?}") };
            out.extend(frame.parts.into_iter().map(|p| p.batch));
        }
        out
    }

    /// Every durable row but gaps, as `table,tag=value field=value,... time`.
    pub fn rows(&self) -> Vec<String> {
        let all = self.batches().into_iter().filter(|b| b.table != "edge_gaps");
        all.flat_map(|b| (0..b.rows()).map(|n| shown(&b, n, true)).collect::<Vec<_>>()).collect()
    }

    /// The rows of one table, without their times.
    pub fn table(&self, table: &str) -> Vec<String> {
        let all = self.batches().into_iter().filter(|b| b.table == table);
        all.flat_map(|b| (0..b.rows()).map(|n| shown(&b, n, false)).collect::<Vec<_>>()).collect()
    }

    /// Every durable gap.
    pub fn gaps(&self) -> Vec<Told> {
        let all = self.batches().into_iter().filter(|b| b.table == "edge_gaps");
        let each = all.flat_map(|b| (0..b.rows()).map(|n| told(&b, n)).collect::<Vec<_>>());
        each.collect()
    }

    /// Waits until `done`; the test fails if it never is.
    pub async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = self.clock.monotonic() + PATIENCE;
        while !done(self) {
            assert!(
                self.clock.monotonic() < deadline,
                "{what} never came; rows:\n{}\ngaps:\n{:#?}",
                self.rows().join("\n"),
                self.gaps()
            );
            self.clock.sleep(Duration::from_millis(5)).await;
        }
    }
}

fn value(batch: &TableBatch, field: usize, row: usize) -> Option<String> {
    let column = &batch.fields[field];
    column.present.get(row).then(|| match &column.values {
        FieldValues::F64(v) => format!("{}", v[row]),
        FieldValues::I64(v) => format!("{}i", v[row]),
        FieldValues::U64(v) => format!("{}u", v[row]),
        FieldValues::Bool(v) => format!("{}", v[row]),
        FieldValues::Utf8(v) => format!("{:?}", v.get(row)),
    })
}

fn shown(batch: &TableBatch, row: usize, time: bool) -> String {
    let mut out = batch.table.clone();
    for (name, tag) in batch.series_keys[batch.series[row] as usize].tags() {
        out.push_str(&format!(",{name}={tag}"));
    }
    let fields = (0..batch.fields.len())
        .filter_map(|f| Some(format!("{}={}", batch.fields[f].name, value(batch, f, row)?)));
    out.push(' ');
    out.push_str(&fields.collect::<Vec<_>>().join(","));
    if time {
        out.push_str(&format!(" {}", batch.time[row]));
    }
    out
}

fn told(batch: &TableBatch, row: usize) -> Told {
    let field = |name: &str| {
        let at = batch.fields.iter().position(|f| f.name == name)?;
        value(batch, at, row)
    };
    let number =
        |name: &str| field(name).map_or(0, |text| text.trim_end_matches('u').parse().unwrap());
    let key = &batch.series_keys[batch.series[row] as usize];
    Told {
        cause: key.get("cause").unwrap().to_owned(),
        rows: number("rows"),
        first: number("first"),
        last: number("last"),
        detail: field("detail").unwrap_or_default(),
    }
}
