//! Stage: line protocol to column batches, on TSBS rows of about 346 bytes.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    reason = "criterion generates the harness and reads the clock"
)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use millrace_benches::fixture;
use millrace_protocol::{frame, line};

const ROWS: usize = 10_000;

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(ROWS as u64));
    for hosts in [100, 1000, 10_000] {
        let bodies = fixture::bodies(hosts, ROWS, ROWS);
        let body = bodies.first().map(Vec::as_slice).unwrap_or_default();
        group.bench_function(format!("lines of {hosts} hosts"), |b| {
            b.iter(|| black_box(line::parse(black_box(body), &fixture::options())));
        });
    }
    let batches = fixture::batches(1000, ROWS, ROWS);
    let batch = batches.first().and_then(|b| b.first());
    if let Some(batch) = batch {
        let mut frame = Vec::new();
        frame::encode_batch(batch, &mut frame);
        group.bench_function("encode a frame", |b| {
            b.iter_batched(
                Vec::new,
                |mut out| {
                    frame::encode_batch(black_box(batch), &mut out);
                    out
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function("decode a frame", |b| {
            b.iter(|| black_box(frame::decode_batch(black_box(&frame))));
        });
    }
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
