//! One history of a shard beside another one of the same start: pieces of one are put into the
//! other, as a careless restore does. Every piece is sealed with the right keys and stands under
//! its own name, so only the chain can tell.

use std::path::{Path, PathBuf};

use millrace_platform::disk::{Disk, OpenMode, read_file};

use super::world::World;

fn records(w: &World) -> Vec<PathBuf> {
    let folder = Path::new("/data/shard/0/m");
    w.disk.paths().into_iter().filter(|p| p.parent() == Some(folder)).collect()
}

/// Two histories part; one middle record of the second is put into the first.
pub fn swapped_record(seed: u64) {
    let mut w = World::seeded(seed);
    w.open().unwrap();
    let rows = w.some_rows(5);
    assert!(w.stream(rows) && w.flush());
    w.shard = None;
    w.disk.kill_process();
    let mut other = World::seeded(seed + 1000);
    other.disk = w.disk.fork();
    let shared = records(&w).len();
    for history in [&mut w, &mut other] {
        history.open().unwrap();
        let before = history.seq.max(5);
        history.seq = before;
        for _ in 0..2 {
            let rows = history.some_rows(5);
            assert!(history.stream(rows) && history.flush());
        }
        history.shard = None;
        history.disk.kill_process();
    }
    let (mine, theirs) = (records(&w), records(&other));
    assert_eq!(mine, theirs, "seed {seed}: both wrote the same numbers");
    let candidates = &mine[shared..mine.len() - 1];
    let name = &candidates[w.dice.below(candidates.len() as u64) as usize];
    let bytes = read_file(&other.disk, name, 1 << 20).unwrap();
    let file = w.disk.open(name, OpenMode::ReadWrite).unwrap();
    file.set_len(0).unwrap();
    file.write_at(&bytes, 0).unwrap();
    file.sync_data().unwrap();
    match w.open() {
        Ok(()) => w.check("after a record of another history"),
        Err(e) => {
            let text = e.to_string();
            assert!(text.contains("chain is broken at shard/0/m/"), "seed {seed}: {text}");
            assert!(text.contains("restore it from a backup"), "seed {seed}: {text}");
        }
    }
}

#[test]
fn d1_a_record_of_another_history_is_refused_by_name() {
    for seed in 0..10 {
        swapped_record(seed);
    }
}

/// Manifest folders as they are now, with their bytes.
fn manifest(w: &World) -> Vec<(PathBuf, Vec<u8>)> {
    let folders = ["/data/shard/0/m", "/data/shard/0/c"];
    let paths = w.disk.paths().into_iter().filter(|p| folders.iter().any(|f| p.starts_with(f)));
    paths.map(|p| (p.clone(), read_file(&w.disk, &p, 1 << 20).unwrap())).collect()
}

/// The manifest is put back as it once was: the log tells, or it still has the rows.
#[test]
fn d1_an_older_manifest_is_refused_or_the_log_has_every_row_since() {
    let (mut refused, mut whole) = (0, 0);
    for (seed, (writes, rows)) in (0..12).zip([(1, 5), (8, 400)].into_iter().cycle()) {
        let mut w = World::seeded(seed);
        w.open().unwrap();
        let mut older = Vec::new();
        for round in 0..4 {
            // Large writes fill log segments, which the flush behind them trims.
            for _ in 0..writes {
                let rows = w.some_rows(rows);
                assert!(w.stream(rows));
            }
            assert!(w.flush());
            if round == seed % 3 {
                older = manifest(&w);
            }
        }
        w.shard = None;
        w.disk.kill_process();
        for (path, _) in manifest(&w) {
            w.disk.remove(&path).unwrap();
        }
        for (path, bytes) in older {
            let file = w.disk.create_new(&path).unwrap();
            file.write_at(&bytes, 0).unwrap();
            file.sync_data().unwrap();
        }
        match w.open() {
            Ok(()) => {
                w.check("after an older manifest was put back");
                whole += 1;
            }
            Err(e) => {
                assert!(e.to_string().contains("the log starts at"), "seed {seed}: {e}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && whole > 0, "{refused} refused, {whole} whole: both must occur");
}
