//! Stage: sealed column files to record batches, whole, by column and by series.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "criterion generates the harness, and a benchmark stops at the first surprise"
)]

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::StreamExt;
use millrace_benches::fixture;
use millrace_storage::{ColumnRef, Origin, ScanRequest, TableSnapshot, WriteRequest};

const HOSTS: usize = 1000;
const ROWS: usize = 400_000;

async fn rows(table: &Arc<TableSnapshot>, request: ScanRequest) -> usize {
    let scan = table.scan(request).await.expect("planned");
    let mut rows = 0;
    for mut stream in scan.streams() {
        while let Some(batch) = stream.next().await {
            rows += batch.expect("readable").num_rows();
        }
    }
    rows
}

fn scan(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folder = fixture::folder().expect("a folder");
    let (engine, table) = runtime.block_on(async {
        let engine = fixture::engine(folder.path(), 1 << 30).await.expect("opens");
        for tables in fixture::batches(HOSTS, ROWS, 10_000) {
            let database = "default".to_owned();
            let request = WriteRequest {
                tenant: fixture::tenant(),
                database,
                origin: Origin::Plain,
                tables,
                sender: Default::default(),
            };
            engine.write(request).await.expect("durable");
        }
        engine.flush().await.expect("flushes");
        let snapshot = engine.snapshot(fixture::tenant()).expect("keys are there");
        let table = snapshot.databases.get("default").and_then(|d| d.get("cpu")).cloned();
        (engine, table.expect("written above"))
    });
    let mut group = c.benchmark_group("scan");
    group.sample_size(20);
    let all: Vec<ColumnRef> = (0..10).map(ColumnRef::Field).chain([ColumnRef::Time]).collect();
    group.throughput(Throughput::Elements(ROWS as u64));
    for (name, columns) in [
        ("time and one field", vec![ColumnRef::Time, ColumnRef::Field(0)]),
        ("host, time and one field", vec![ColumnRef::Tag(0), ColumnRef::Time, ColumnRef::Field(0)]),
        ("time and ten fields", all),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let found = runtime.block_on(rows(&table, ScanRequest::all(columns.clone())));
                assert_eq!(found, ROWS);
            });
        });
    }
    let mut one = vec![false; HOSTS];
    if let Some(first) = one.first_mut() {
        *first = true;
    }
    let one = Arc::new(one);
    group.throughput(Throughput::Elements((ROWS / HOSTS) as u64));
    group.bench_function("one series", |b| {
        b.iter(|| {
            let mut request = ScanRequest::all(vec![ColumnRef::Time, ColumnRef::Field(0)]);
            request.series = Some(Arc::clone(&one));
            assert_eq!(runtime.block_on(rows(&table, request)), ROWS / HOSTS);
        });
    });
    group.finish();
    engine.close();
}

criterion_group!(benches, scan);
criterion_main!(benches);
