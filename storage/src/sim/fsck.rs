//! What `fsck` says of a directory that schedules left behind, and of one that was damaged in
//! each way it looks for: found, by its code, with tenant, table and file.

use std::{path::Path, sync::Arc};

use futures::executor::block_on;
use millrace_platform::{
    disk::{Disk, OpenMode},
    sim::{SimDisk, SimEntropy},
};
use millrace_protocol::{batch::SeriesKey, ids::SeriesId};
use object_store::{ObjectStore, ObjectStoreExt};

use super::{
    machine::Machine,
    schedule,
    world::{TENANT, World, test_keys},
};
use crate::{
    column_file::{bundle::BundleWriter, bundle::object_path, directory::SeriesDirectory},
    erase::{Cause, Tombstone},
    fsck::{self, Code, Finding, FsckConfig, Report},
    manifest::{
        Delta, FileEntry, Manifest, ManifestStore, SeriesSection, TableDelta, TableManifest,
        TenantDelta,
        store::{load_all, record_name},
    },
    object::local::DurableLocalStore,
    run::SeriesSpan,
    series::{dictionary::SeriesDictionary, section},
};

fn check(disk: &SimDisk) -> Report {
    let config = FsckConfig {
        disk: Arc::new(disk.clone()),
        entropy: Arc::new(SimEntropy::seeded(1)),
        dir: "/data".into(),
        keys: test_keys(),
    };
    let mut shown = Vec::new();
    let report = block_on(fsck::run(config, &mut |p| shown.push(p))).unwrap();
    assert!(shown.is_sorted_by_key(|p| p.done), "progress goes forward");
    assert!(shown.iter().all(|p| p.done <= p.total), "{shown:?}");
    report
}

/// A stopped server's directory: merged files, fresh files, and rows that are in the log alone.
fn healthy() -> World {
    let mut w = World::seeded(4);
    w.open().unwrap();
    for round in 0..5 {
        let rows = w.some_rows(12);
        assert!(w.write(rows) && w.flush());
        let rows = w.some_rows(6);
        assert!(w.stream(rows));
        assert!(round != 2 || w.compact());
    }
    w.shard = None;
    w.disk.kill_process();
    w
}

fn store(disk: &SimDisk) -> Arc<dyn ObjectStore> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let entropy = SimEntropy::seeded(77);
    Arc::new(DurableLocalStore::open(disk, Path::new("/data"), &entropy).unwrap())
}

fn manifest(disk: &SimDisk) -> Manifest {
    block_on(load_all(store(disk).as_ref(), test_keys().as_ref(), 0)).unwrap()
}

fn table(manifest: &Manifest) -> &TableManifest {
    manifest.tenants[&TENANT].tables.values().find(|t| t.schema.name == "cpu").unwrap()
}

/// Exactly one kind of damage, named down to the file.
fn found(disk: &SimDisk, code: Code) -> Finding {
    let report = check(disk);
    assert!(!report.is_clean(), "{code:?} was not found");
    let finding = report.findings.iter().find(|f| f.code == code);
    finding.unwrap_or_else(|| panic!("{code:?} is not among {:?}", report.findings)).clone()
}

fn found_in_table(disk: &SimDisk, code: Code, file: &[u8; 16]) {
    let report = check(disk);
    let (table, file) = (("default".to_owned(), "cpu".to_owned()), object_path(file).to_string());
    let named = |f: &Finding| {
        let place = (f.tenant, f.table.as_ref(), f.file.as_ref());
        f.code == code && place == (Some(TENANT), Some(&table), Some(&file))
    };
    assert!(report.findings.iter().any(named), "{code:?} in {file}: {:?}", report.findings);
}

/// The file of the table with most rows.
fn biggest(table: &TableManifest) -> Arc<FileEntry> {
    Arc::clone(table.files.iter().max_by_key(|f| f.rows).unwrap())
}

fn path_of(object: &[u8; 16]) -> std::path::PathBuf {
    Path::new("/data").join(object_path(object).as_ref())
}

#[test]
fn d1_a_healthy_directory_is_clean_and_every_row_is_counted() {
    let w = healthy();
    let (report, manifest) = (check(&w.disk), manifest(&w.disk));
    assert_eq!(report.findings, []);
    let files = || manifest.tenants[&TENANT].tables.values().flat_map(|t| &t.files);
    assert_eq!(report.rows, files().map(|f| f.rows).sum::<u64>());
    assert_eq!((report.files, report.tables), (files().count() as u64, 2));
    assert!(report.frames > 0 && report.records > 3 && report.series > 3, "{report:?}");
}

#[test]
fn d1_whatever_a_schedule_leaves_behind_is_clean() {
    for seed in 0..60 {
        let mut m = Machine::seeded(seed);
        schedule::run(&mut m);
        m.stop(seed % 2 == 0);
        let report = check(&m.disk);
        assert!(report.is_clean(), "seed {seed}: {:?}", report.findings);
    }
}

#[test]
fn d1_a_check_changes_nothing() {
    let w = healthy();
    let bytes = |disk: &SimDisk| -> Vec<_> {
        let read =
            |p: &std::path::PathBuf| millrace_platform::disk::read_file(disk, p, 1 << 24).unwrap();
        disk.paths().into_iter().map(|p| (read(&p), p)).collect()
    };
    let (before, ops) = (bytes(&w.disk), w.disk.ops());
    check(&w.disk);
    assert!(bytes(&w.disk) == before);
    assert_eq!(w.disk.ops(), ops, "not even a sync");
}

#[test]
fn d1_an_object_that_nobody_names_is_a_notice() {
    let w = healthy();
    block_on(store(&w.disk).put(&object_path(&[9; 16]), vec![1, 2].into())).unwrap();
    let report = check(&w.disk);
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert_eq!(report.findings[0].code, Code::Orphan);
    assert!(report.is_clean());
}

#[test]
fn d1_changed_cut_and_lost_objects_are_found() {
    let w = healthy();
    let manifest = manifest(&w.disk);
    let file = Arc::clone(&table(&manifest).files[0]);
    let path = path_of(&file.parquet.object);
    for section in [&file.parquet, &file.directory] {
        let disk = w.disk.fork();
        disk.flip_bit(&path, section.offset + section.len - 3, 1).unwrap();
        found_in_table(&disk, Code::Seal, &section.object);
    }
    let disk = w.disk.fork();
    let end = file.parquet.offset + file.parquet.len - 1;
    disk.open(&path, OpenMode::ReadWrite).unwrap().set_len(end).unwrap();
    let report = check(&disk);
    assert!(report.findings.iter().any(|f| matches!(f.code, Code::ObjectShort | Code::Seal)));
    let disk = w.disk.fork();
    disk.remove(&path).unwrap();
    found_in_table(&disk, Code::ObjectMissing, &file.parquet.object);
    let series = &table(&manifest).series_sections[0].section;
    let disk = w.disk.fork();
    disk.flip_bit(&path_of(&series.object), series.offset + series.len - 3, 1).unwrap();
    found_in_table(&disk, Code::Seal, &series.object);
}

#[test]
fn d1_changed_and_lost_manifest_records_are_found() {
    let w = healthy();
    let newest = manifest(&w.disk).number;
    let name = record_name(0, newest);
    let disk = w.disk.fork();
    disk.flip_bit(&Path::new("/data").join(&name), 200, 1).unwrap();
    assert_eq!(found(&disk, Code::ManifestRecord).file, Some(name.clone()));
    let newest = w.disk.fork();
    let records: Vec<_> =
        w.disk.paths().into_iter().filter(|p| p.starts_with("/data/shard/0/m")).collect();
    newest.remove(&records[records.len() - 2]).unwrap();
    found(&newest, Code::ManifestChain);
}

#[test]
fn d1_a_damaged_and_a_lost_log_are_found() {
    let mut w = healthy();
    // A second start makes the end of the first segment certain.
    w.open().unwrap();
    let rows = w.some_rows(3);
    assert!(w.stream(rows));
    w.shard = None;
    w.disk.kill_process();
    let segments: Vec<_> =
        w.disk.paths().into_iter().filter(|p| p.starts_with("/data/shard/0/wal")).collect();
    let live = segments.iter().find(|s| {
        let disk = w.disk.fork();
        disk.flip_bit(s, 4096 + 100, 1).unwrap();
        let report = check(&disk);
        report.findings.iter().any(|f| f.code == Code::LogDamage)
    });
    assert!(live.is_some(), "a changed frame of some segment is found");
    for segment in &segments {
        w.disk.remove(segment).unwrap();
    }
    found(&w.disk, Code::LogGap);
}

/// Commits a change of table `cpu` that no honest server would make.
fn commit(disk: &SimDisk, change: impl FnOnce(&TableManifest, &mut TableDelta)) {
    let (store, keys) = (store(disk), test_keys());
    let entropy = Arc::new(SimEntropy::seeded(5));
    let mut manifest = block_on(ManifestStore::open(store, keys, entropy, 0, 1000)).unwrap();
    let current = manifest.current();
    let now = table(&current);
    let mut delta = TableDelta::of(&now.database, &now.schema);
    change(now, &mut delta);
    let tables = [(now.schema.table_id, delta)].into_iter().collect();
    let tenant = TenantDelta { tables, ..TenantDelta::default() };
    let tenants = [(TENANT, tenant)].into_iter().collect();
    block_on(manifest.commit(Delta { flushed_lsn: current.flushed_lsn, tenants })).unwrap();
}

/// Replaces the largest file's entry by one that lies. In two commits: one that looks like a merge
/// would not be let through.
fn lie(disk: &SimDisk, code: Code, change: impl FnOnce(&mut FileEntry)) {
    let mut file = FileEntry::clone(&biggest(table(&manifest(disk))));
    let stone = Arc::new(Tombstone {
        id: 1_000_000,
        seq: file.lsn_hi,
        t_min: i64::MIN,
        t_max: file.t_max,
        series: None,
        cause: Cause::Retention,
        made_ns: 0,
    });
    commit(disk, |_, delta| {
        delta.removed_files.push(file.id);
        delta.added_tombstones.push(stone);
    });
    commit(disk, |_, delta| delta.removed_tombstones.push(1_000_000));
    file.id = [0xee; 16];
    let object = file.parquet.object;
    change(&mut file);
    commit(disk, |_, delta| delta.added_files.push(Arc::new(file)));
    found_in_table(disk, code, &object);
}

#[test]
fn d1_entries_that_contradict_their_files_are_found() {
    let w = healthy();
    lie(&w.disk.fork(), Code::Rows, |file| file.rows += 1);
    lie(&w.disk.fork(), Code::TimeBounds, |file| file.t_max += 1);
    lie(&w.disk.fork(), Code::TimeBounds, |file| file.t_min -= 1);
    lie(&w.disk.fork(), Code::FileSize, |file| file.bytes += 1);
    // The same rows a second time, neither older nor newer.
    let disk = w.disk.fork();
    commit(&disk, |now, delta| {
        let mut file = FileEntry::clone(&now.files[0]);
        file.id = [0xee; 16];
        delta.added_files.push(Arc::new(file));
    });
    found(&disk, Code::LsnOrder);
    let disk = w.disk.fork();
    commit(&disk, |_, delta| {
        delta.schema.version += 1;
        let again = delta.schema.fields[0].clone();
        delta.schema.fields.push(again);
    });
    found(&disk, Code::Schema);
    let disk = w.disk.fork();
    commit(&disk, |_, delta| {
        delta.schema.version += 1;
        delta.schema.fields.pop();
    });
    found(&disk, Code::FileColumns);
}

/// Puts a bundle with a directory that lies about the largest file beside its true rows.
fn directory(disk: &SimDisk, code: Code, change: impl FnOnce(&mut Vec<SeriesSpan>)) {
    let manifest = manifest(disk);
    let file = biggest(table(&manifest));
    let (store, keys) = (store(disk), test_keys());
    let read = crate::column_file::reader::read_section(&store, &keys, TENANT, &file.directory);
    let mut spans = SeriesDirectory::decode(&block_on(read).unwrap()).unwrap().spans().to_vec();
    change(&mut spans);
    let mut bundle = BundleWriter::new([0xdd; 16]);
    let body = SeriesDirectory::new(spans).encode();
    let keys = keys.current(&TENANT.0).unwrap();
    let section = bundle.add(&keys, &SimEntropy::seeded(8), &body).unwrap();
    let (path, bytes) = bundle.finish();
    block_on(store.put(&path, bytes.into())).unwrap();
    lie(disk, code, |file| {
        file.bytes = file.parquet.len + section.len;
        file.directory = section;
    });
}

#[test]
fn r4_tombstones_that_cannot_be_and_deleted_rows_that_are_there_are_found() {
    let w = healthy();
    let stone = |id, seq, series: Option<Vec<SeriesId>>| {
        let cause = Cause::Statement;
        Arc::new(Tombstone { id, seq, t_min: i64::MIN, t_max: i64::MAX, series, cause, made_ns: 0 })
    };
    // One that an honest server makes is none of these.
    let disk = w.disk.fork();
    commit(&disk, |now, delta| {
        let seq = now.files[0].lsn_hi;
        delta.added_tombstones.push(stone(1, seq, None));
    });
    let report = check(&disk);
    let wrong = |f: &&Finding| matches!(f.code, Code::Tombstone | Code::DeletedRows);
    assert!(!report.findings.iter().any(|f| wrong(&f)), "{:?}", report.findings);
    let disk = w.disk.fork();
    commit(&disk, |_, delta| delta.added_tombstones.push(stone(1, 0, Some(vec![SeriesId(1)]))));
    found(&disk, Code::Tombstone);
    let disk = w.disk.fork();
    commit(&disk, |_, delta| delta.added_tombstones.push(stone(1 << 40, 0, None)));
    found(&disk, Code::Tombstone);
    // A file that says it was rewritten since, and was not.
    let disk = w.disk.fork();
    lie(&disk, Code::Rows, |file| {
        file.rows += 1;
        file.erased_to = u64::MAX;
    });
    commit(&disk, |now, delta| {
        let seq = now.files.iter().map(|f| f.lsn_hi).max().unwrap();
        delta.added_tombstones.push(stone(2_000_000, seq, None));
    });
    found(&disk, Code::DeletedRows);
}

#[test]
fn d1_directories_that_contradict_their_rows_are_found() {
    let w = healthy();
    directory(&w.disk.fork(), Code::SpanBounds, |spans| spans[0].t_max += 1);
    directory(&w.disk.fork(), Code::FileSeries, |spans| spans[0].sid = SeriesId(12345));
    directory(&w.disk.fork(), Code::Rows, |spans| {
        let last = spans.len() - 1;
        spans[last].rows += 1;
    });
    // All rows as one series: times of the second begin before those of the first end.
    directory(&w.disk.fork(), Code::RowOrder, |spans| {
        let rows = spans.iter().map(|s| s.rows).sum();
        let t_max = spans.iter().map(|s| s.t_max).max().unwrap();
        *spans = vec![SeriesSpan { rows, t_max, ..spans[0] }];
    });
}

/// Commits a further series section with one series of host `x`.
fn series(disk: &SimDisk, code: Code, sid: Option<SeriesId>, tag: &str, count: u64) {
    let keys = test_keys().current(&TENANT.0).unwrap();
    let key = SeriesKey::from_sorted([(tag, "x")]);
    let dictionary = SeriesDictionary::new(keys.series_secret());
    match sid {
        Some(sid) => drop(dictionary.restore(sid, &key, &[]).unwrap()),
        None => drop(dictionary.add(&key, &[])),
    }
    let mut bundle = BundleWriter::new([0xcc; 16]);
    let body = section::encode(&dictionary.since(0));
    let section = bundle.add(&keys, &SimEntropy::seeded(8), &body).unwrap();
    let (path, bytes) = bundle.finish();
    block_on(store(disk).put(&path, bytes.into())).unwrap();
    commit(disk, |_, delta| delta.added_series.push(SeriesSection { section, count, day: 0 }));
    found_in_table(disk, code, &[0xcc; 16]);
}

#[test]
fn d1_series_that_contradict_their_tags_are_found() {
    let w = healthy();
    series(&w.disk.fork(), Code::SeriesId, Some(SeriesId(99)), "host", 1);
    series(&w.disk.fork(), Code::SeriesCount, None, "host", 2);
    series(&w.disk.fork(), Code::SeriesTag, None, "unheard", 1);
    let known = check(&w.disk);
    assert!(known.is_clean());
    let manifest = manifest(&w.disk);
    let part = &table(&manifest).series_sections[0].section;
    let (store, keys) = (store(&w.disk), test_keys());
    let read = crate::column_file::reader::read_section(&store, &keys, TENANT, part);
    let entries = section::decode(&block_on(read).unwrap()).unwrap();
    series(&w.disk.fork(), Code::SeriesTwice, Some(entries[0].0), "host", 1);
}
