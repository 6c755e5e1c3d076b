//! Stage: rows in memory to sealed column files and one manifest commit.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "criterion generates the harness, and a benchmark stops at the first surprise"
)]

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_benches::{
    fixture,
    shopfloor::{Options, ShopFloor, TABLE},
};
use millrace_protocol::{batch::TableBatch, line};
use millrace_storage::{Engine, Origin, WriteRequest};

const HOSTS: usize = 1000;
const ROWS: usize = 200_000;

/// 200 machines, each row with eleven floats, a counter and two texts.
fn floor() -> Vec<Vec<TableBatch>> {
    let mut floor = ShopFloor::new(Options {
        seed: 42,
        machines: 200,
        seconds: ROWS as u64 / 200,
        start_s: 1_451_606_400,
        late_percent: 0.0,
        resent_percent: 0.0,
        table: TABLE.to_owned(),
    });
    let mut batches = Vec::new();
    loop {
        let mut body = Vec::new();
        if floor.fill(&mut body, 10_000).lines == 0 {
            return batches;
        }
        batches.push(line::parse(&body, &fixture::options()).tables);
    }
}

async fn fill(engine: &Engine, batches: Vec<Vec<TableBatch>>) {
    for tables in batches {
        let request = WriteRequest {
            tenant: fixture::tenant(),
            database: "default".to_owned(),
            origin: Origin::Plain,
            tables,
            sender: Default::default(),
        };
        engine.write(request).await.expect("durable");
    }
}

fn flush(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("flush");
    group.sample_size(10);
    group.throughput(Throughput::Elements(ROWS as u64));
    let tsbs = fixture::batches(HOSTS, ROWS, 10_000);
    for (name, batches) in [("200,000 TSBS rows", tsbs), ("200,000 shop-floor rows", floor())] {
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    let folder = fixture::folder().expect("a folder");
                    runtime.block_on(async {
                        let engine = fixture::engine(folder.path(), 1 << 30).await.expect("opens");
                        fill(&engine, batches.clone()).await;
                        let started = Instant::now();
                        engine.flush().await.expect("flushes");
                        took += started.elapsed();
                        engine.close();
                    });
                }
                took
            });
        });
    }
    group.finish();
}

criterion_group!(benches, flush);
criterion_main!(benches);
