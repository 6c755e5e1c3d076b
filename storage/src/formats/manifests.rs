//! `manifest.md`.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use futures::executor::block_on;
use millrace_crypto::{
    key::TenantKeySource,
    sealed_file::{open_object, seal_object},
};
use millrace_platform::{
    disk::read_file,
    sim::{SimDisk, SimEntropy},
};
use millrace_protocol::{
    ids::{DeviceId, Epoch, SeqNo, TenantId},
    stream::StreamKey,
    value::FieldType,
};

use super::{ExampleKeys, SEED, blocks, bytes_of, same_bytes, same_json};
use crate::{
    column_file::bundle::SectionRef,
    manifest::{
        Delta, FileEntry, ManifestStore, SeriesSection, StreamState, TableDelta, TenantDelta,
        record::{SYSTEM, decode, digest_of, id_of},
    },
    object::local::DurableLocalStore,
    schema::{FieldDef, TableSchema, TagColumn},
};

const PAGE: &str = include_str!("../../../docs/formats/manifest.md");
const TENANT: TenantId = TenantId([1; 16]);

/// What the page's second record commits.
fn delta() -> Delta {
    let section =
        |id: u8, offset, len| SectionRef { object: [0xb1; 16], section_id: [id; 16], offset, len };
    let file = FileEntry {
        id: [0xf1; 16],
        table_id: 1,
        parquet: section(0xa1, 0, 2000),
        directory: section(0xa2, 2000, 200),
        level: 0,
        t_min: 1_767_225_599_000_000_000,
        t_max: 1_767_225_602_000_000_000,
        rows: 5,
        lsn_lo: 1,
        lsn_hi: 3,
        bytes: 2200,
        erased_to: 0,
    };
    let schema = TableSchema {
        table_id: 1,
        name: "cpu".into(),
        tags: vec![TagColumn { id: 3, name: "host".into() }],
        fields: vec![FieldDef { id: 4, name: "usage".into(), ty: FieldType::F64 }],
        version: 2,
    };
    let table = TableDelta {
        added_files: vec![Arc::new(file)],
        added_series: vec![SeriesSection { section: section(0xa3, 2200, 260), count: 2, day: 0 }],
        ..TableDelta::of("default", &schema)
    };
    let key =
        StreamKey { device: DeviceId([0xd1; 16]), stream: "cpu".parse().unwrap(), epoch: Epoch(1) };
    let tenant = TenantDelta {
        tables: BTreeMap::from([(1, table)]),
        streams: BTreeMap::from([(key, StreamState { hi: SeqNo(5) })]),
        next_table_id: Some(2),
        ..TenantDelta::default()
    };
    Delta { flushed_lsn: 3, tenants: BTreeMap::from([(TENANT, tenant)]) }
}

/// The example's store after one start and one commit with a checkpoint.
fn example() -> SimDisk {
    let disk = SimDisk::new();
    let root = Path::new("/d");
    let entropy = SimEntropy::seeded(1);
    let store = DurableLocalStore::open(Arc::new(disk.clone()), root, &entropy).unwrap();
    let entropy = Arc::new(SimEntropy::seeded(SEED));
    let keys = Arc::new(ExampleKeys);
    let opened = ManifestStore::open(Arc::new(store), keys, entropy, 0, 2);
    block_on(block_on(opened).unwrap().commit(delta())).unwrap();
    disk
}

/// Head and leaves of the object of this name.
fn inside(name: &str, sealed: &[u8]) -> Vec<Vec<u8>> {
    let plain = open_object(&ExampleKeys, &SYSTEM, id_of(name, None), sealed).unwrap();
    let len = u32::from_le_bytes(*plain.first_chunk().unwrap()) as usize;
    let (head, leaves) = plain[4..].split_at(len);
    let mut out = vec![head.to_vec()];
    if !leaves.is_empty() {
        let id = id_of(name, Some(&TENANT));
        out.push(open_object(&ExampleKeys, &TENANT.0, id, leaves).unwrap().into());
    }
    out
}

const NAMES: [&str; 4] = [
    "shard/0/epoch/0000000001",
    "shard/0/m/00000000000000000001",
    "shard/0/m/00000000000000000002",
    "shard/0/c/00000000000000000002",
];

#[test]
fn the_example_of_the_manifest_page_is_what_the_code_makes() {
    let disk = example();
    let stored: Vec<_> = disk.paths();
    let read = |name: &str| read_file(&disk, &Path::new("/d").join(name), 1 << 20).unwrap();
    let mut names: Vec<_> = NAMES.iter().map(|n| Path::new("/d").join(n)).collect();
    names.sort();
    assert_eq!(stored, names);
    for name in NAMES {
        assert!(PAGE.contains(name), "the page names {name}");
    }
    let [claim, first, second, root] = NAMES;
    assert!(read(claim).is_empty());
    same_bytes(PAGE, &[&read(first)]);
    let json =
        [first, second, root].iter().flat_map(|name| inside(name, &read(name))).collect::<Vec<_>>();
    same_json(PAGE, &json);
}

#[test]
fn the_first_record_of_the_manifest_page_opens_and_is_what_the_second_one_follows() {
    let sealed = bytes_of(blocks(PAGE, "hex")[0]);
    let head: serde_json::Value = serde_json::from_slice(&inside(NAMES[1], &sealed)[0]).unwrap();
    assert_eq!(head["number"], 1);
    let second: serde_json::Value = serde_json::from_str(blocks(PAGE, "json")[1]).unwrap();
    assert_eq!(second["previous"], hex::encode(digest_of(&sealed)));
}

/// The first record of a server from before tombstones, as its page showed it.
const FORMAT_1: &str = include_str!("manifest_1.hex");

#[test]
fn a_record_of_format_1_is_read_and_one_of_a_format_to_come_is_refused() {
    let sealed = bytes_of(FORMAT_1);
    let (head, tenants) = decode::<TenantDelta>(NAMES[1], &sealed, &ExampleKeys).unwrap();
    assert_eq!((head.format, head.number, head.clock), (1, 1, None));
    assert!(tenants.is_empty());
    // The same, sealed anew with another number in its place.
    let plain = open_object(&ExampleKeys, &SYSTEM, id_of(NAMES[1], None), &sealed).unwrap();
    let text = String::from_utf8(plain[4..].to_vec()).unwrap();
    let json = text.replace("\"format\":1,", "\"format\":3,");
    assert_ne!(text, json);
    let mut plain = plain[..4].to_vec();
    plain.extend_from_slice(json.as_bytes());
    let keys = ExampleKeys.current(&SYSTEM).unwrap();
    let entropy = SimEntropy::seeded(SEED);
    let newer = seal_object(&keys, &entropy, id_of(NAMES[1], None), &plain);
    let refused = decode::<TenantDelta>(NAMES[1], &newer, &ExampleKeys).unwrap_err().to_string();
    assert_eq!(refused, "format 3, this server knows 2");
}
