//! Stage: sealing objects in 64 KiB chunks, opening them whole and by range.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "criterion generates the harness, and a benchmark stops at the first surprise"
)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_benches::fixture::{OneTenant, TENANT};
use millrace_crypto::sealed_file::{ObjectOpener, open_object, seal_object};
use millrace_platform::entropy::OsEntropy;

const BYTES: usize = 16 << 20;
const OBJECT: [u8; 16] = [1; 16];

fn seal(c: &mut Criterion) {
    let tenant = OneTenant::default();
    let plain: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
    let sealed = seal_object(tenant.keys(), &OsEntropy, OBJECT, &plain);
    let mut group = c.benchmark_group("seal");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("seal 16 MiB", |b| {
        b.iter(|| black_box(seal_object(tenant.keys(), &OsEntropy, OBJECT, black_box(&plain))));
    });
    group.bench_function("open 16 MiB", |b| {
        b.iter(|| open_object(&tenant, &TENANT, OBJECT, black_box(&sealed)).expect("untouched"));
    });
    // A footer or a page: what a point look-up reads.
    let range = 5_000_000u64..5_008_192;
    group.throughput(Throughput::Bytes(range.end - range.start));
    group.bench_function("open 8 KiB of it", |b| {
        b.iter(|| {
            let opener = ObjectOpener::open(&tenant, &TENANT, OBJECT, &sealed).expect("a header");
            let at = opener.ciphertext_range(range.clone()).expect("inside");
            let bytes = sealed.get(at.start as usize..at.end as usize).unwrap_or_default().to_vec();
            black_box(opener.decrypt_range(range.clone(), bytes).expect("untouched"))
        });
    });
    group.finish();
}

criterion_group!(benches, seal);
criterion_main!(benches);
