//! One vocabulary for disasters: a shard on a simulated disk beside a reference model.

use std::{path::PathBuf, sync::Arc};

use futures::executor::block_on;
use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::sim::{SimClock, SimDisk, SimEntropy, disk::Faults};
use millrace_protocol::{
    ids::{DeviceId, Epoch, SeqNo, TenantId},
    stream::{PutHeader, StreamKey},
};

use super::{
    machine::idle_after,
    model::{Model, Row},
    rows,
};
use crate::{EngineConfig, EngineLimits, OpenError, Origin, ScanRequest, Shard, WriteRequest};

pub const TENANT: TenantId = TenantId([7; 16]);
const HOUR_NS: i64 = 3600 * 1_000_000_000;

pub struct World {
    pub disk: SimDisk,
    pub dice: SimEntropy,
    pub keys: Arc<dyn TenantKeySource>,
    pub shard: Option<Shard>,
    pub model: Model,
    /// Writes whose answer was an error: each may be there as a whole or not at all.
    pub unknown: Vec<Vec<Row>>,
    pub seq: u64,
    pub seed: u64,
    pub opens: u64,
    /// Faults that stay on through power cuts.
    pub planted: Faults,
    /// Frames acknowledged so far: first number and rows.
    pub frames: Vec<(u64, Vec<Row>)>,
}

pub fn limits() -> EngineLimits {
    EngineLimits {
        window_ns: 2 * HOUR_NS,
        merge_files: 2,
        segment_bytes: 64 << 10,
        checkpoint_every: 3,
        ..EngineLimits::default()
    }
}

impl World {
    pub fn seeded(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(),
            dice: SimEntropy::seeded(seed),
            keys: test_keys(),
            shard: None,
            model: Model::default(),
            unknown: Vec::new(),
            seq: 0,
            seed,
            opens: 0,
            planted: Faults::default(),
            frames: Vec::new(),
        }
    }

    pub fn open(&mut self) -> Result<(), OpenError> {
        let config = self.config();
        self.shard = Some(block_on(Shard::open(config))?);
        Ok(())
    }

    /// The configuration of the next opening.
    pub fn config(&mut self) -> EngineConfig {
        self.opens += 1;
        if self.planted != Faults::default() {
            self.disk.set_faults(self.planted);
        }
        EngineConfig {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(SimClock::at(1000 * HOUR_NS)),
            entropy: Arc::new(SimEntropy::seeded(self.seed * 1000 + self.opens)),
            dir: PathBuf::from("/data"),
            keys: Arc::clone(&self.keys),
            limits: EngineLimits { idle_after: idle_after(self.seed + self.opens), ..limits() },
        }
    }

    pub fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().expect("the shard is open")
    }

    /// Rows drawn from a small space, so that series, times and fields collide often.
    pub fn some_rows(&self, n: u64) -> Vec<Row> {
        (0..n)
            .map(|_| {
                let d = |below| self.dice.below(below);
                let (a, b) = (d(3) > 0, d(3) == 0);
                Row {
                    table: if d(4) == 0 { "press" } else { "cpu" },
                    host: format!("h{}", d(4)),
                    time: d(20) as i64 * HOUR_NS / 2,
                    a: (a || !b).then(|| d(1000) as f64 / 10.0),
                    b: b.then(|| format!("s{}", d(10))),
                }
            })
            .collect()
    }

    /// Writes rows without a sequence; remembers what the answer means.
    pub fn write(&mut self, rows: Vec<Row>) -> bool {
        self.request(Origin::Plain, rows)
    }

    /// Writes rows as the next frame of the one stream.
    pub fn stream(&mut self, rows: Vec<Row>) -> bool {
        let header = self.header(self.seq + 1, rows.len() as u64);
        let hi = header.seq_hi.0;
        let lo = self.seq + 1;
        let acked = self.request(Origin::Stream(header), rows.clone());
        if acked {
            self.seq = hi;
            self.frames.push((lo, rows));
        }
        acked
    }

    /// Sends an old frame again, as a forwarder does that missed the ack.
    pub fn resend(&mut self) {
        if self.frames.is_empty() {
            return;
        }
        let (lo, rows) = self.frames[self.dice.below(self.frames.len() as u64) as usize].clone();
        let request = WriteRequest {
            tenant: TENANT,
            database: "default".into(),
            origin: Origin::Stream(self.header(lo, rows.len() as u64)),
            tables: rows::batches(&rows),
            sender: Default::default(),
        };
        if let Ok(receipt) = self.shard().write(vec![request]).remove(0) {
            assert!(receipt.duplicate(), "seed {}: a known frame must be a duplicate", self.seed);
        }
    }

    pub fn header(&self, lo: u64, rows: u64) -> PutHeader {
        let key = StreamKey {
            device: DeviceId([3; 16]),
            stream: "press".parse().unwrap(),
            epoch: Epoch(5),
        };
        PutHeader { key, seq_lo: SeqNo(lo), seq_hi: SeqNo(lo + rows - 1) }
    }

    pub fn request(&mut self, origin: Origin, rows: Vec<Row>) -> bool {
        let request = WriteRequest {
            tenant: TENANT,
            database: "default".into(),
            origin,
            tables: rows::batches(&rows),
            sender: Default::default(),
        };
        let answer = self.shard().write(vec![request]).remove(0);
        match answer {
            Ok(receipt) => {
                assert_eq!(receipt.refused(), 0);
                if !receipt.duplicate() {
                    self.model.apply(&rows);
                }
                true
            }
            Err(_) => {
                self.unknown.push(rows);
                false
            }
        }
    }

    pub fn flush(&mut self) -> bool {
        block_on(self.shard().flush()).is_ok()
    }

    pub fn compact(&mut self) -> bool {
        block_on(self.shard().compact_once()).is_ok()
    }

    pub fn cut_power_after(&self, ops: u64) {
        let at = self.disk.ops() + ops;
        self.disk.set_faults(Faults { cut_after: Some(at), ..self.planted });
    }

    /// The operation `nth` from here fails with EIO; those after it succeed.
    pub fn fail_operation(&mut self, nth: u64) {
        let at = self.disk.ops() + nth;
        self.disk.set_faults(Faults { fail_op: Some(at), ..self.planted });
    }

    /// The power fails; what was not synced may be gone.
    pub fn crash(&mut self) {
        self.shard = None;
        self.disk.power_cycle(&self.dice);
    }

    /// Compares the store with the model; settles what unknown writes became.
    pub fn check(&mut self, when: &str) {
        let seen = self.read();
        let mut candidates = vec![self.model.clone()];
        for rows in std::mem::take(&mut self.unknown) {
            let with: Vec<Model> = candidates.iter().map(|m| m.with(&rows)).collect();
            candidates.extend(with);
        }
        let Some(found) = candidates.iter().find(|m| **m == seen) else {
            let expected = &candidates[0];
            let missing: Vec<_> =
                expected.0.iter().filter(|(k, v)| seen.0.get(*k) != Some(*v)).take(5).collect();
            let extra: Vec<_> =
                seen.0.iter().filter(|(k, _)| !expected.0.contains_key(*k)).take(5).collect();
            panic!(
                "seed {}, {when}: missing or different {missing:?}, phantom {extra:?}",
                self.seed
            );
        };
        self.model = found.clone();
        if let Some(shard) = &self.shard {
            let durable = shard.watermark(TENANT, &self.header(1, 1).key).0;
            assert!(durable >= self.seq, "seed {}, {when}: the watermark went back", self.seed);
            self.seq = durable;
        }
    }

    pub fn read(&mut self) -> Model {
        let snapshot = self.shard().snapshot(TENANT).expect("the tenant's keys are there");
        let whole = rows::read(&snapshot, ScanRequest::all);
        let small = rows::read(&snapshot, |columns| ScanRequest {
            group_rows: 3,
            partitions: 3,
            ..ScanRequest::all(columns)
        });
        assert_eq!(whole, small, "the size of groups must not change an answer");
        let range = 3 * HOUR_NS..7 * HOUR_NS;
        let part = rows::read(&snapshot, |columns| ScanRequest {
            time: range.clone(),
            ..ScanRequest::all(columns)
        });
        let mut expected = whole.clone();
        expected.0.retain(|cell, _| range.contains(&cell.2));
        assert_eq!(part, expected, "a pruned and an unpruned scan must agree");
        whole
    }
}

/// Fixed keys: simulation protects nothing.
pub fn test_keys() -> Arc<dyn TenantKeySource> {
    struct Fixed;
    impl TenantKeySource for Fixed {
        fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
            self.version(tenant, 1)
        }

        fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
            if version != 1 {
                let tenant = format!("{tenant:?}");
                return Err(KeyError::UnknownVersion { tenant, version });
            }
            Ok(Arc::new(TenantKeys::new(*tenant, 1, Key256::new([42; 32]))))
        }
    }
    Arc::new(Fixed)
}
