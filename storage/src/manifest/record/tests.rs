//! What goes into a record comes out of it, and what a chain of deltas makes, a checkpoint says.

use std::sync::Arc;

use futures::executor::block_on;
use millrace_crypto::key::{Key256, TenantKeys};
use millrace_platform::sim::{SimDisk, SimEntropy};
use millrace_protocol::{
    ids::{DeviceId, Epoch, SeqNo},
    stream::StreamKey,
    value::FieldType,
};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    column_file::bundle::SectionRef,
    manifest::{
        Delta, FileEntry, ManifestStore, SeriesSection, StreamState, TableDelta, TenantDelta,
    },
    object::local::DurableLocalStore,
    schema::{FieldDef, TableSchema, TagColumn},
};

/// Keys of every tenant but those that are gone.
struct Keys(Vec<[u8; 16]>);

impl TenantKeySource for Keys {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], _: u32) -> Result<Arc<TenantKeys>, KeyError> {
        if self.0.contains(tenant) {
            return Err(KeyError::Gone { tenant: hex::encode(tenant) });
        }
        Ok(Arc::new(TenantKeys::new(*tenant, 1, Key256::new([1; 32]))))
    }
}

fn section() -> impl Strategy<Value = SectionRef> {
    (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u64>(), any::<u64>()).prop_map(
        |(object, section_id, offset, len)| SectionRef { object, section_id, offset, len },
    )
}

fn schema() -> impl Strategy<Value = TableSchema> {
    let types = [FieldType::F64, FieldType::I64, FieldType::U64, FieldType::Bool, FieldType::Utf8];
    let tag = (any::<u32>(), any::<String>()).prop_map(|(id, name)| TagColumn { id, name });
    let field = (any::<u32>(), any::<String>(), proptest::sample::select(types.to_vec()))
        .prop_map(|(id, name, ty)| FieldDef { id, name, ty });
    (any::<u64>(), any::<String>(), vec(tag, 0..3), vec(field, 0..3), any::<u64>()).prop_map(
        |(table_id, name, tags, fields, version)| TableSchema {
            table_id,
            name,
            tags,
            fields,
            version,
        },
    )
}

/// A file that the invariants allow: flushed at 1, sane bounds.
fn file() -> impl Strategy<Value = Arc<FileEntry>> {
    let numbers = (any::<u64>(), any::<u8>(), any::<i64>(), 0..i64::MAX, 1..u64::MAX, any::<u64>());
    (any::<[u8; 16]>(), section(), section(), numbers).prop_map(
        |(id, parquet, directory, (table_id, level, t_min, span, rows, bytes))| {
            Arc::new(FileEntry {
                id,
                table_id,
                parquet,
                directory,
                level,
                t_min,
                t_max: t_min.saturating_add(span),
                rows,
                lsn_lo: 0,
                lsn_hi: 1,
                bytes,
                erased_to: bytes % 3,
            })
        },
    )
}

fn table() -> impl Strategy<Value = TableDelta> {
    let series = (section(), any::<u64>(), any::<u32>())
        .prop_map(|(section, count, day)| SeriesSection { section, count, day });
    (any::<String>(), schema(), vec(file(), 0..3), vec(series, 0..3)).prop_map(
        |(database, schema, added_files, added_series)| TableDelta {
            added_files,
            added_series,
            ..TableDelta::of(&database, &schema)
        },
    )
}

fn tenant() -> impl Strategy<Value = TenantDelta> {
    let stream = (any::<[u8; 16]>(), "[a-z/]{1,12}", any::<u64>(), any::<u64>()).prop_filter_map(
        "a stream name",
        |(device, name, epoch, hi)| {
            let stream = name.parse().ok()?;
            let key = StreamKey { device: DeviceId(device), stream, epoch: Epoch(epoch) };
            Some((key, StreamState { hi: SeqNo(hi) }))
        },
    );
    let tables = proptest::collection::btree_map(0..5u64, table(), 0..3);
    (tables, vec(stream, 0..3), proptest::option::of(0..9u64)).prop_map(
        |(tables, streams, next_table_id)| TenantDelta {
            tables,
            streams: streams.into_iter().collect(),
            next_table_id,
            ..TenantDelta::default()
        },
    )
}

fn tenants() -> impl Strategy<Value = BTreeMap<TenantId, TenantDelta>> {
    proptest::collection::btree_map((1..4u8).prop_map(|n| TenantId([n; 16])), tenant(), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_record_comes_back_without_the_tenants_whose_keys_are_gone(
        tenants in tenants(),
        numbers in any::<(u64, u64, u64)>(),
        nonce in any::<[u8; 16]>(),
        previous in any::<[u8; 32]>(),
    ) {
        let (number, epoch, flushed_lsn) = numbers;
        let (keys, entropy) = (Keys(Vec::new()), SimEntropy::seeded(number));
        let head = Heading { number, epoch, nonce, previous, flushed_lsn, clock: None };
        let bytes = encode("m/1", head, &tenants, &keys, &entropy).unwrap();
        let (found, back) = decode::<TenantDelta>("m/1", &bytes, &keys).unwrap();
        prop_assert_eq!((found.number, found.epoch, found.flushed_lsn), numbers_of(head));
        prop_assert_eq!((found.nonce, found.previous), (nonce, previous));
        prop_assert_eq!(&back, &tenants);
        prop_assert!(decode::<TenantDelta>("m/2", &bytes, &keys).is_err());

        let gone = TenantId([1; 16]);
        let (_, back) = decode::<TenantDelta>("m/1", &bytes, &Keys(vec![gone.0])).unwrap();
        let mut left = tenants;
        left.remove(&gone);
        prop_assert_eq!(back, left);
    }

    #[test]
    fn d1_a_start_finds_what_the_owner_had_with_any_checkpoints(
        deltas in vec(tenants(), 1..6),
        every in 1..4u64,
    ) {
        let disk = Arc::new(SimDisk::new());
        let open = |seed| {
            let entropy = Arc::new(SimEntropy::seeded(seed));
            let root = std::path::Path::new("/d");
            let disk = Arc::clone(&disk);
            let store = DurableLocalStore::open(disk, root, entropy.as_ref()).unwrap();
            let keys = Arc::new(Keys(Vec::new()));
            block_on(ManifestStore::open(Arc::new(store), keys, entropy, 0, every)).unwrap()
        };
        let mut owner = open(1);
        for tenants in deltas {
            let tenants = forward_only(&owner, tenants);
            block_on(owner.commit(Delta { flushed_lsn: 1, tenants })).unwrap();
        }
        let (before, after) = (owner.current(), open(2).current());
        prop_assert_eq!(&after.tenants, &before.tenants);
        prop_assert_eq!(after.flushed_lsn, before.flushed_lsn);
    }
}

fn numbers_of(head: Heading) -> (u64, u64, u64) {
    (head.number, head.epoch, head.flushed_lsn)
}

/// Watermarks may not go back: a random one that would is left out.
fn forward_only(
    owner: &ManifestStore,
    mut tenants: BTreeMap<TenantId, TenantDelta>,
) -> BTreeMap<TenantId, TenantDelta> {
    let now = owner.current();
    for (id, delta) in &mut tenants {
        let known = now.tenants.get(id);
        delta.streams.retain(|key, state| {
            known.and_then(|t| t.streams.get(key)).is_none_or(|before| before.hi <= state.hi)
        });
    }
    tenants
}
