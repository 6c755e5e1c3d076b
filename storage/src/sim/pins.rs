//! Files that a running query reads outlive the merge that replaced them.

use std::time::Duration;

use futures::executor::block_on;

use super::{
    rows,
    world::{TENANT, World},
};
use crate::ScanRequest;

fn objects(w: &World) -> usize {
    w.disk.paths().iter().filter(|p| p.starts_with("/data/data")).count()
}

#[test]
fn d1_files_of_a_held_snapshot_are_not_removed_however_long_it_is_held() {
    held_snapshot(6);
}

/// A snapshot is held while its files are merged away and swept.
pub fn held_snapshot(seed: u64) {
    let mut w = World::seeded(seed);
    w.open().unwrap();
    // The first flushes also store the series, which stay; the later ones hold rows alone.
    for _ in 0..8 {
        let rows = w.some_rows(12);
        assert!(w.write(rows) && w.flush());
    }
    let held = w.shard().snapshot(TENANT).unwrap();
    let expected = rows::read(&held, ScanRequest::all);
    while block_on(w.shard().compact_once()).unwrap() {}
    let before = objects(&w);
    let years = Duration::from_secs(1 << 30);
    let swept = block_on(w.shard().sweep(years, Duration::ZERO)).unwrap();
    assert_eq!(swept, 0, "the snapshot still needs them");
    assert_eq!(objects(&w), before);
    assert_eq!(rows::read(&held, ScanRequest::all), expected);
    drop(held);
    let swept = block_on(w.shard().sweep(years, Duration::ZERO)).unwrap();
    assert!(swept > 0, "nobody needs them any more");
    w.check("after the sweep");
}
