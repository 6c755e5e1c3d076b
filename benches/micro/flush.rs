//! Stage: rows in memory to sealed column files and one manifest commit.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "criterion generates the harness, and a benchmark stops at the first surprise"
)]

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_benches::fixture;
use millrace_storage::{Engine, Origin, WriteRequest};

const HOSTS: usize = 1000;
const ROWS: usize = 200_000;

async fn fill(engine: &Engine) {
    for tables in fixture::batches(HOSTS, ROWS, 10_000) {
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
    group.bench_function("200,000 TSBS rows", |b| {
        b.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let folder = fixture::folder().expect("a folder");
                runtime.block_on(async {
                    let engine = fixture::engine(folder.path(), 1 << 30).await.expect("opens");
                    fill(&engine).await;
                    let started = Instant::now();
                    engine.flush().await.expect("flushes");
                    took += started.elapsed();
                    engine.close();
                });
            }
            took
        });
    });
    group.finish();
}

criterion_group!(benches, flush);
criterion_main!(benches);
