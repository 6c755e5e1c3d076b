//! `column-file.md`, `series-directory.md`, `bundle.md`.

use std::fmt::Write as _;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};
use bytes::Bytes;
use millrace_crypto::{
    key::TenantKeySource,
    sealed_file::{open_object, sealed_len},
};
use millrace_platform::sim::SimEntropy;
use millrace_protocol::{ids::SeriesId, value::FieldType};
use parquet::file::{
    reader::{FileReader, SerializedFileReader},
    serialized_reader::ReadOptionsBuilder,
};

use super::{ExampleKeys, SEED, blocks, bytes_of, same_bytes, same_json};
use crate::{
    column_file::{
        bundle::{BundleWriter, SectionRef, object_path},
        directory::SeriesDirectory,
        writer::{FileProfile, write_column_file},
    },
    run::{Run, SeriesSpan},
    schema::{FieldDef, TableSchema, TagColumn},
};

const COLUMN_FILE: &str = include_str!("../../../docs/formats/column-file.md");
const DIRECTORY: &str = include_str!("../../../docs/formats/series-directory.md");
const BUNDLE: &str = include_str!("../../../docs/formats/bundle.md");

/// 2026-01-01T00:00:00Z in nanoseconds.
const NEW_YEAR: i64 = 1_767_225_600_000_000_000;
const SECOND: i64 = 1_000_000_000;

/// Two series: three rows a second apart, then two rows, the first a second before the others.
fn spans() -> Vec<SeriesSpan> {
    let span = |sid, start, rows, t_min, t_max| SeriesSpan {
        sid: SeriesId(sid),
        start,
        rows,
        t_min,
        t_max,
    };
    vec![
        span(0x1122_3344_5566_7788, 0, 3, NEW_YEAR, NEW_YEAR + 2 * SECOND),
        span(0x99aa_bbcc_ddee_ff00, 3, 2, NEW_YEAR - SECOND, NEW_YEAR + SECOND),
    ]
}

#[test]
fn the_example_of_the_series_directory_page_is_what_the_code_makes() {
    let directory = SeriesDirectory::new(spans());
    let bytes = directory.encode();
    same_bytes(DIRECTORY, &[&bytes]);
    let page = SeriesDirectory::decode(&bytes_of(blocks(DIRECTORY, "hex")[0])).unwrap();
    assert_eq!(page.spans(), spans());
}

/// `hello` of tenant 1 and `world` of tenant 2.
fn bundle() -> (Vec<SectionRef>, String, Vec<u8>) {
    let entropy = SimEntropy::seeded(SEED);
    let mut bundle = BundleWriter::new([0xb1; 16]);
    let sections = [(1, "hello"), (2, "world")]
        .map(|(tenant, text)| {
            let keys = ExampleKeys.current(&[tenant; 16]).unwrap();
            bundle.add(&keys, &entropy, text.as_bytes()).unwrap()
        })
        .to_vec();
    let (path, bytes) = bundle.finish();
    (sections, path.to_string(), bytes)
}

#[test]
fn the_example_of_the_bundle_page_is_what_the_code_makes() {
    let (sections, path, bytes) = bundle();
    let middle = sections[1].offset as usize;
    same_bytes(BUNDLE, &[&bytes[..middle], &bytes[middle..]]);
    let json: Vec<_> = sections.iter().map(|s| serde_json::to_vec(s).unwrap()).collect();
    same_json(BUNDLE, &json);
    assert!(BUNDLE.contains(&path), "the page names {path}");
    assert_eq!(path, object_path(&[0xb1; 16]).to_string());
}

#[test]
fn the_example_of_the_bundle_page_opens_to_what_it_says() {
    let references = blocks(BUNDLE, "json");
    assert_eq!(references.len(), 2);
    let bytes: Vec<u8> = blocks(BUNDLE, "hex").iter().flat_map(|b| bytes_of(b)).collect();
    for ((reference, tenant), text) in references.iter().zip([1, 2]).zip(["hello", "world"]) {
        let at: SectionRef = serde_json::from_str(reference).unwrap();
        let (start, end) = (at.offset as usize, (at.offset + at.len) as usize);
        let opened = open_object(&ExampleKeys, &[tenant; 16], at.section_id, &bytes[start..end]);
        assert_eq!(opened.unwrap(), text);
        assert_eq!(at.len, sealed_len(text.len() as u64));
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
            field(5, "state", FieldType::Utf8),
            field(6, "errors", FieldType::I64),
            field(7, "bytes", FieldType::U64),
            field(8, "up", FieldType::Bool),
            field(9, "noise", FieldType::F64),
        ],
        version: 7,
    }
}

fn run() -> Run {
    let times = [0, 1, 2, -1, 1].map(|s| NEW_YEAR + s * SECOND);
    let columns: Vec<ArrayRef> = vec![
        std::sync::Arc::new(Float64Array::from_iter([Some(0.5), Some(0.5), None, Some(0.5), None])),
        std::sync::Arc::new(StringArray::from_iter([Some("ok"), None, Some("ok"), None, None])),
        std::sync::Arc::new(Int64Array::from_iter_values([0, 0, -1, 2, 2])),
        std::sync::Arc::new(arrow::array::UInt64Array::from_iter_values([1, 2, 3, 4, 5])),
        std::sync::Arc::new(BooleanArray::from(vec![true, true, false, true, true])),
        std::sync::Arc::new(Float64Array::from_iter_values(
            [1.0, 2.0, 4.0, 5.0, 7.0].map(|n| n / 3.0),
        )),
    ];
    Run::new(times.to_vec(), vec![4, 5, 6, 7, 8, 9], columns, spans()).unwrap()
}

/// What a stock Parquet reader says of the example.
fn description(parquet: &[u8]) -> String {
    let options = ReadOptionsBuilder::new().with_page_index().build();
    let bytes = Bytes::copy_from_slice(parquet);
    let reader = SerializedFileReader::new_with_options(bytes, options).unwrap();
    let metadata = reader.metadata();
    let file = metadata.file_metadata();
    let keys: Vec<_> =
        file.key_value_metadata().into_iter().flatten().map(|pair| pair.key.as_str()).collect();
    let mut out = String::new();
    writeln!(
        out,
        "version {}, {} rows, {} row group, offset index {}, key-value metadata: {}",
        file.version(),
        file.num_rows(),
        metadata.num_row_groups(),
        if metadata.offset_index().is_some() { "yes" } else { "no" },
        keys.join(", "),
    )
    .unwrap();
    for column in metadata.row_group(0).columns() {
        let description = column.column_descr();
        let info = description.self_type().get_basic_info();
        let mut encodings: Vec<_> = column.encodings().map(|e| e.to_string()).collect();
        encodings.sort();
        let logical = info.logical_type_ref().map_or("none".to_owned(), |t| format!("{t:?}"));
        writeln!(
            out,
            "{:<7} id {}  {:?}, {:?}, {}; {}; {}; nulls {}",
            description.name(),
            info.id(),
            info.repetition(),
            description.physical_type(),
            logical,
            encodings.join(" "),
            column.compression(),
            column.statistics().and_then(|s| s.null_count_opt()).map_or(-1, |n| n as i64),
        )
        .unwrap();
    }
    out
}

#[test]
fn the_example_of_the_column_file_page_is_what_a_stock_reader_sees() {
    let parts = write_column_file(&run(), &schema(), FileProfile::Hot).unwrap();
    let made = description(&parts.parquet);
    assert_eq!(blocks(COLUMN_FILE, "text")[0], made, "the code makes:\n{made}");
    let len = parts.parquet.len();
    same_bytes(COLUMN_FILE, &[&parts.parquet[..4], &parts.parquet[len - 4..], &parts.directory]);
    assert_eq!(
        (parts.rows, parts.t_min, parts.t_max),
        (5, NEW_YEAR - SECOND, NEW_YEAR + 2 * SECOND)
    );
}
