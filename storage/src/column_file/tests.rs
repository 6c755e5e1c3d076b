//! Column files from end to end: what is written reads back; what is damaged is an error that
//! names the file; what is hostile, though sealed with the right key, never panics.

mod encodings;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray},
    compute::concat_batches,
};
use futures::{TryStreamExt, executor::block_on};
use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::sim::SimEntropy;
use millrace_protocol::{
    ids::{SeriesId, TenantId},
    value::FieldType,
};
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use proptest::prelude::*;

use super::{
    bundle::{BundleWriter, SectionRef, object_path},
    directory::SeriesDirectory,
    reader::{ColumnFile, ColumnFileError, read_section},
    writer::{ColumnFileParts, FileProfile, write_column_file},
};
use crate::{
    run::{Run, SeriesSpan},
    schema::{FieldDef, TableSchema, TagColumn},
};

const TENANT: TenantId = TenantId([7; 16]);
const OBJECT: [u8; 16] = [0xb1; 16];

struct Fixed;

impl TenantKeySource for Fixed {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        if version != 1 {
            return Err(KeyError::UnknownVersion { tenant: hex::encode(tenant), version });
        }
        Ok(Arc::new(TenantKeys::new(*tenant, 1, Key256::new([9; 32]))))
    }
}

fn schema() -> TableSchema {
    let field = |id, name: &str, ty| FieldDef { id, name: name.into(), ty };
    TableSchema {
        table_id: 1,
        name: "cpu".into(),
        tags: vec![TagColumn { id: 3, name: "host".into() }],
        fields: vec![
            field(4, "usage", FieldType::F64),
            field(5, "count", FieldType::I64),
            field(6, "state", FieldType::Utf8),
            field(7, "up", FieldType::Bool),
        ],
        version: 5,
    }
}

const FIELDS: [(u32, FieldType); 4] =
    [(4, FieldType::F64), (5, FieldType::I64), (6, FieldType::Utf8), (7, FieldType::Bool)];

/// Three series of 3, 2 and 4 rows.
fn run() -> Run {
    let time = vec![10, 20, 30, 10, 20, 5, 10, 15, 20];
    let spans = [(11, 0, 3, 10, 30), (22, 3, 2, 10, 20), (33, 5, 4, 5, 20)];
    let series = spans
        .into_iter()
        .map(|(sid, start, rows, t_min, t_max)| SeriesSpan {
            sid: SeriesId(sid),
            start,
            rows,
            t_min,
            t_max,
        })
        .collect();
    let opt = |n: i64| (n % 3 != 0).then_some(n);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Float64Array::from_iter((0..9).map(|n| opt(n).map(|n| n as f64 / 4.0)))),
        Arc::new(Int64Array::from_iter_values(0..9)),
        Arc::new(StringArray::from_iter((0..9).map(|n| opt(n + 1).map(|n| format!("s{n}"))))),
        Arc::new(BooleanArray::from_iter((0..9).map(|n| opt(n + 2).map(|n| n % 2 == 0)))),
    ];
    Run::new(time, FIELDS.iter().map(|f| f.0).collect(), columns, series).unwrap()
}

fn parts() -> ColumnFileParts {
    write_column_file(&run(), &schema(), FileProfile::Hot).unwrap()
}

/// Two sections in one stored bundle.
struct Stored {
    store: Arc<InMemory>,
    parquet: SectionRef,
    directory: SectionRef,
    bytes: Vec<u8>,
}

fn stored(parquet: &[u8], directory: &[u8]) -> Stored {
    let (keys, entropy) = (Fixed.current(&TENANT.0).unwrap(), SimEntropy::seeded(1));
    let mut bundle = BundleWriter::new(OBJECT);
    let parquet = bundle.add(&keys, &entropy, parquet).unwrap();
    let directory = bundle.add(&keys, &entropy, directory).unwrap();
    let (path, bytes) = bundle.finish();
    let store = Arc::new(InMemory::new());
    block_on(store.put(&path, bytes.clone().into())).unwrap();
    Stored { store, parquet, directory, bytes }
}

impl Stored {
    fn dyn_store(&self) -> Arc<dyn ObjectStore> {
        Arc::<InMemory>::clone(&self.store)
    }

    fn replace(&self, bytes: Vec<u8>) {
        block_on(self.store.put(&object_path(&OBJECT), bytes.into())).unwrap();
    }

    fn open(&self) -> Result<ColumnFile, ColumnFileError> {
        self.open_as(TENANT)
    }

    fn open_as(&self, tenant: TenantId) -> Result<ColumnFile, ColumnFileError> {
        let (parquet, directory) = (self.parquet.clone(), self.directory.clone());
        let keys = Arc::new(Fixed);
        block_on(ColumnFile::open(self.dyn_store(), keys, tenant, parquet, directory))
    }

    /// Opens and reads every row of every column.
    fn read(&self) -> Result<RecordBatch, ColumnFileError> {
        let file = self.open()?;
        let rows = u32::try_from(file.directory().rows()).unwrap();
        block_on(file.read_whole(std::slice::from_ref(&(0..rows)), &FIELDS))
    }
}

/// The error says in which file, at which byte.
fn names_the_file(e: &ColumnFileError) -> bool {
    e.to_string().contains(object_path(&OBJECT).as_ref())
}

#[test]
fn a_column_file_comes_back_in_any_ranges_and_any_columns() {
    let parts = parts();
    let file = stored(&parts.parquet, &parts.directory);
    assert_eq!(file.read().unwrap(), run().batch);
    let open = file.open().unwrap();
    assert_eq!(open.directory().spans(), run().series);
    let ranges = [1..2, 4..7];
    let two = [FIELDS[3], (99, FieldType::U64), FIELDS[0]];
    let found = block_on(open.read_whole(&ranges, &two)).unwrap();
    let (first, second) = (run().batch.slice(1, 1), run().batch.slice(4, 3));
    let expected = concat_batches(&first.schema(), [&first, &second]).unwrap();
    assert_eq!(found.column(0), expected.column(0));
    assert_eq!(found.column(1), expected.column(4));
    assert_eq!(found.column(2).null_count(), 4, "a column that the file does not have is null");
    assert_eq!(found.column(3), expected.column(1));
}

#[test]
fn every_flipped_byte_of_a_bundle_is_detected_and_the_file_named() {
    let parts = parts();
    let file = stored(&parts.parquet, &parts.directory);
    for at in 0..file.bytes.len() {
        let mut bytes = file.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        file.replace(bytes);
        let error = file.read().expect_err("a flipped bit must be found");
        assert!(names_the_file(&error), "byte {at}: {error}");
    }
}

#[test]
fn cut_swapped_and_foreign_sections_are_refused_by_name() {
    let parts = parts();
    let file = stored(&parts.parquet, &parts.directory);
    let len = file.bytes.len();
    for cut in [0, 1, 100, 148, len / 2, len - 1] {
        file.replace(file.bytes[..cut].to_vec());
        let error = file.read().expect_err("a cut bundle");
        assert!(names_the_file(&error), "cut at {cut}: {error}");
    }
    file.replace(file.bytes.clone());
    let error = file.open_as(TenantId([8; 16])).expect_err("another tenant");
    assert!(names_the_file(&error) && error.to_string().contains("another tenant"), "{error}");
    let swapped = Stored {
        parquet: file.directory.clone(),
        directory: file.parquet.clone(),
        store: Arc::clone(&file.store),
        bytes: Vec::new(),
    };
    assert!(names_the_file(&swapped.read().expect_err("sections exchanged")));
    for hostile in [u64::MAX, u64::MAX - 100, 1 << 40] {
        for (offset, len) in [(hostile, file.parquet.len), (0, hostile), (hostile, hostile)] {
            let at = SectionRef { offset, len, ..file.parquet.clone() };
            let keys: Arc<dyn TenantKeySource> = Arc::new(Fixed);
            let found = block_on(read_section(&file.dyn_store(), &keys, TENANT, &at));
            assert!(names_the_file(&found.expect_err("a place that is not there")));
        }
    }
    block_on(file.store.delete(&object_path(&OBJECT))).unwrap();
    assert!(names_the_file(&file.read().expect_err("the file is gone")));
}

#[test]
fn a_directory_that_counts_other_rows_is_refused_by_name() {
    let parts = parts();
    let mut spans = run().series;
    spans[2].rows = 5;
    let file = stored(&parts.parquet, &SeriesDirectory::new(spans).encode());
    let error = file.open().expect_err("ten rows where there are nine");
    assert!(matches!(error, ColumnFileError::Rows { parquet: 9, directory: 10, .. }), "{error}");
    assert!(names_the_file(&error));
    let file = stored(&parts.parquet, &parts.directory[..parts.directory.len() - 1]);
    let error = file.open().expect_err("a directory that ends early");
    assert!(matches!(error, ColumnFileError::Directory { .. }) && names_the_file(&error));
}

/// Reads hostile sections; whatever comes back has the rows that the directory promises.
fn survives(parquet: &[u8], directory: &[u8]) {
    let file = stored(parquet, directory);
    let Ok(open) = file.open().inspect_err(|e| assert!(names_the_file(e), "{e}")) else { return };
    let rows = u32::try_from(open.directory().rows()).unwrap();
    for fields in [&FIELDS[..], &FIELDS[..1], &[]] {
        match block_on(open.read_whole(std::slice::from_ref(&(0..rows)), fields)) {
            Ok(batch) => assert_eq!(batch.num_rows(), rows as usize),
            Err(e) => assert!(names_the_file(&e), "{e}"),
        }
        let stream = open.read(&[1..2, rows - 1..rows], fields);
        if let Err(e) = block_on(stream.try_collect::<Vec<_>>()) {
            assert!(names_the_file(&e), "{e}");
        }
    }
}

#[test]
fn a_sealed_parquet_section_with_any_byte_changed_never_panics() {
    let parts = parts();
    for at in 0..parts.parquet.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut parquet = parts.parquet.clone();
            parquet[at] ^= change;
            survives(&parquet, &parts.directory);
        }
    }
    for cut in 0..parts.parquet.len() {
        survives(&parts.parquet[..cut], &parts.directory);
    }
}

proptest! {
    #[test]
    fn sealed_sections_of_hostile_bytes_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        directory in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let parts = parts();
        let mut parquet = parts.parquet.clone();
        let mut changed = parts.directory.clone();
        for (at, byte) in &changes {
            parquet[at.index(parts.parquet.len())] = *byte;
            changed[at.index(parts.directory.len())] = *byte;
        }
            survives(&parquet, &parts.directory);
            survives(&parts.parquet, &changed);
            survives(&parts.parquet, &directory);
            survives(&directory, &parts.directory);
    }
}
