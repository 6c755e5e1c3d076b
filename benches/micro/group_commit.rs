//! Stage: appends to the log and one sync for all who wait, by number of writers.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "criterion generates the harness, and a benchmark stops at the first surprise"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_benches::fixture::{self, OneTenant, TENANT};
use millrace_platform::{disk::RealDisk, entropy::OsEntropy};
use millrace_wal::{KeyRef, Options, TenantSegmentKeys, Wal};

/// Payload of one record: a batch of 10,000 TSBS rows is about 120 KB in the log.
const PAYLOAD: usize = 120_000;

fn log(folder: &std::path::Path) -> Wal {
    let keys = Arc::new(TenantSegmentKeys::new(Arc::new(OneTenant::default())));
    let (wal, _) = Wal::open(Arc::new(RealDisk), folder, keys, &OsEntropy, Options::default())
        .expect("an empty folder");
    wal
}

fn commits(wal: &Wal, writers: u64, each: u64) -> Duration {
    let payload = vec![7u8; PAYLOAD];
    let key = KeyRef { owner: TENANT, version: 1 };
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                for _ in 0..each {
                    let lsn = wal.append(key, &payload).expect("room on the disk");
                    wal.commit(lsn).expect("the disk syncs");
                }
            });
        }
    });
    let took = started.elapsed();
    wal.trim_below(wal.next_lsn()).expect("trims");
    took
}

fn group_commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("group_commit");
    group.sample_size(10);
    for writers in [1u64, 4, 16] {
        let folder = fixture::folder().expect("a folder");
        let wal = log(folder.path());
        group.throughput(Throughput::Elements(writers));
        group.bench_function(format!("{writers} writers"), |b| {
            b.iter_custom(|rounds| commits(&wal, writers, rounds));
        });
    }
    group.finish();
}

criterion_group!(benches, group_commit);
criterion_main!(benches);
