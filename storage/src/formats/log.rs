//! `record.md`, `series-section.md`.

use std::sync::Arc;

use millrace_crypto::key::TenantKeySource;
use millrace_protocol::{
    batch::{FieldColumn, Presence, SeriesKey, TableBatch},
    ids::{DeviceId, Epoch, SeqNo, SeriesId},
    stream::{PutHeader, StreamKey},
    value::FieldValues,
};

use super::{ExampleKeys, blocks, bytes_of, same_bytes};
use crate::{
    schema::TagColumn,
    series::{
        dictionary::{SeriesDictionary, SeriesEntry},
        section,
    },
    shard::record::{Origin, Record, RecordTable},
};

const RECORD: &str = include_str!("../../../docs/formats/record.md");
const SECTION: &str = include_str!("../../../docs/formats/series-section.md");

/// Tag `host` of two series of tenant 1.
fn series() -> Vec<Arc<SeriesEntry>> {
    let secret = ExampleKeys.current(&[1; 16]).unwrap().series_secret();
    let dictionary = SeriesDictionary::new(secret);
    for host in ["a", "b"] {
        let tags = [TagColumn { id: 3, name: "host".into() }];
        dictionary.add(&SeriesKey::from_sorted([("host", host)]), &tags);
    }
    dictionary.since(0)
}

#[test]
fn the_example_of_the_series_section_page_is_what_the_code_makes() {
    let bytes = section::encode(&series());
    same_bytes(SECTION, &[&bytes]);
    let back = section::decode(&bytes_of(blocks(SECTION, "hex")[0])).unwrap();
    let expected: Vec<_> = series().iter().map(|e| (e.sid, e.key.clone())).collect();
    assert_eq!(back, expected);
}

fn record() -> Record {
    let batch = TableBatch {
        table: "cpu".into(),
        time: vec![1, 2],
        series: vec![0, 0],
        series_keys: vec![SeriesKey::from_sorted([("host", "a")])],
        fields: vec![FieldColumn {
            name: "v".into(),
            values: FieldValues::I64(vec![3, 4]),
            present: Presence::full(2),
        }],
        line: vec![1, 2],
    };
    let key =
        StreamKey { device: DeviceId([0xd1; 16]), stream: "cpu".parse().unwrap(), epoch: Epoch(1) };
    Record {
        origin: Origin::Stream(PutHeader { key, seq_lo: SeqNo(1), seq_hi: SeqNo(2) }),
        database: "default".into(),
        tables: vec![RecordTable {
            table_id: 1,
            tags: vec![TagColumn { id: 3, name: "host".into() }],
            field_ids: vec![4],
            sids: vec![SeriesId(0x1122_3344_5566_7788)],
            batch,
        }],
    }
}

#[test]
fn the_example_of_the_record_page_is_what_the_code_makes() {
    let mut bytes = Vec::new();
    record().encode(&mut bytes);
    same_bytes(RECORD, &[&bytes]);
    assert_eq!(Record::decode(&bytes_of(blocks(RECORD, "hex")[0])).unwrap(), record());
}
