//! Bytes of stored files change under a stopped shard. A start or a read may refuse, by the name of
//! the file; it never answers with other rows, and a merge does not hide the damage.

use std::path::PathBuf;

use futures::{TryStreamExt, executor::block_on};

use super::world::{TENANT, World};
use crate::{ColumnRef, ScanRequest};

/// Reads every row of every table.
fn read_all(w: &mut World) -> Result<(), String> {
    read(w).map_err(|e| e.to_string())
}

fn read(w: &mut World) -> Result<(), Box<dyn std::error::Error>> {
    let snapshot = w.shard().snapshot(TENANT)?;
    for table in snapshot.databases.values().flat_map(|d| d.values()) {
        let fields = (0..table.schema.fields.len()).map(ColumnRef::Field);
        let columns = [ColumnRef::Tag(0), ColumnRef::Time].into_iter().chain(fields).collect();
        let scan = block_on(table.scan(ScanRequest::all(columns)))?;
        for stream in scan.streams() {
            block_on(stream.try_collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

fn objects(w: &World) -> Vec<PathBuf> {
    w.disk.paths().into_iter().filter(|p| p.starts_with("/data/data")).collect()
}

#[test]
fn d1_a_flipped_bit_in_a_data_file_is_reported_by_its_name_and_never_answered_over() {
    for seed in 0..60 {
        let mut w = World::seeded(seed);
        w.open().unwrap();
        for _ in 0..4 {
            let rows = w.some_rows(10);
            assert!(w.write(rows) && w.flush());
        }
        w.shard = None;
        w.disk.kill_process();
        let files = objects(&w);
        let file = &files[w.dice.below(files.len() as u64) as usize];
        let len = millrace_platform::disk::read_file(&w.disk, file, 1 << 20).unwrap().len();
        let at = w.dice.below(len as u64);
        w.disk.flip_bit(file, at, w.dice.below(8) as u8).unwrap();
        let name = file.strip_prefix("/data").unwrap().to_string_lossy().into_owned();
        let when = format!("seed {seed}, byte {at} of {name}");
        // Every byte of a bundle belongs to a section that a start or a full read opens.
        match w.open() {
            Err(e) => assert!(e.to_string().contains(&name), "{when}: {e}"),
            Ok(()) => {
                let error = read_all(&mut w).expect_err("a read must notice");
                assert!(error.to_string().contains(&name), "{when}: {error}");
                let before = objects(&w);
                while let Ok(true) = block_on(w.shard().compact_once()) {}
                assert!(objects(&w).contains(file), "{when}: the damaged file is still there");
                assert!(objects(&w).len() >= before.len(), "{when}: nothing was removed");
                assert!(read_all(&mut w).is_err(), "{when}: a merge hid the damage");
            }
        }
    }
}

#[test]
fn d1_a_lost_data_file_is_reported_by_its_name() {
    use millrace_platform::disk::Disk;
    let mut w = World::seeded(1);
    w.open().unwrap();
    for _ in 0..4 {
        let rows = w.some_rows(10);
        assert!(w.write(rows) && w.flush());
    }
    w.shard = None;
    w.disk.kill_process();
    for file in objects(&w) {
        let mut lost = World::seeded(1);
        lost.disk = w.disk.fork();
        lost.disk.remove(&file).unwrap();
        let name = file.strip_prefix("/data").unwrap().to_string_lossy().into_owned();
        let error = match lost.open() {
            Err(e) => e.to_string(),
            Ok(()) => read_all(&mut lost).expect_err("rows are missing").to_string(),
        };
        assert!(error.contains(&name), "{name}: {error}");
    }
}

#[test]
fn a_damaged_table_does_not_keep_others_from_being_merged() {
    let mut w = World::seeded(2);
    w.open().unwrap();
    let files = |w: &mut World, table: &str| -> Vec<PathBuf> {
        let snapshot = w.shard().snapshot(TENANT).unwrap();
        let files = snapshot.databases["default"][table].files();
        let path = |f: &std::sync::Arc<crate::manifest::FileEntry>| {
            let object = crate::column_file::bundle::object_path(&f.parquet.object);
            PathBuf::from("/data").join(object.as_ref())
        };
        files.iter().map(path).collect()
    };
    for table in ["cpu", "press"] {
        for _ in 0..4 {
            let mut rows = w.some_rows(20);
            rows.iter_mut().for_each(|row| row.table = table);
            assert!(w.write(rows) && w.flush());
        }
    }
    let (damaged, before) = (files(&mut w, "cpu"), files(&mut w, "press").len());
    for file in &damaged {
        // Sections of rows stand first in a bundle: byte 200 is inside the first one's seal.
        w.disk.flip_bit(file, 200, 0).unwrap();
    }
    let cpu = damaged.len();
    while let Ok(true) = block_on(w.shard().compact_once()) {}
    assert!(block_on(w.shard().compact_once()).is_err(), "the damage is reported");
    assert!(files(&mut w, "press").len() < before, "the other table is merged");
    assert!(files(&mut w, "cpu").len() <= cpu);
}
