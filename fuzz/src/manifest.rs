//! Manifest records and roots, as an owner of the system key could write them.
//!
//! Input: `u8` flags, `u16` length of the leaf, the leaf (JSON of one tenant), the head (JSON).
//! Flags: 1 the record is a root; 2 the head's list of leaves is left as it is, otherwise it is
//! made to fit; 4 the leaf is sealed for another record. The target seals the parts, so that the
//! input is what a decoder sees behind the seals.
//! Properties: a record is refused or loaded; what was loaded loads again to the same.

use std::sync::Arc;

use aws_lc_rs::digest;
use futures::executor::block_on;
use millrace_crypto::sealed_file::seal_object;
use millrace_platform::sim::SimEntropy;
use millrace_storage::manifest::{ManifestError, ManifestStore};
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory, path::Path};
use serde_json::{Value, json};

use crate::keys::{self, FixedKeys, TENANT, hex};

const ROOT: u8 = 1;
const LEAVES_AS_GIVEN: u8 = 2;
const LEAF_OF_ANOTHER: u8 = 4;
const SYSTEM: [u8; 16] = [0; 16];

/// The id under which a record or a tenant's leaf of it is sealed.
fn id_of(name: &str, tenant: Option<[u8; 16]>) -> [u8; 16] {
    let mut input = name.as_bytes().to_vec();
    if let Some(tenant) = tenant {
        input.push(0);
        input.extend_from_slice(&tenant);
    }
    let mut out = [0; 16];
    out.copy_from_slice(&digest::digest(&digest::SHA256, &input).as_ref()[..16]);
    out
}

/// The head with a list of leaves that fits, if it is an object at all.
fn fitted(head: &[u8], leaf_len: usize) -> Vec<u8> {
    match serde_json::from_slice(head) {
        Ok(Value::Object(mut members)) => {
            members.insert("leaves".to_owned(), json!([[hex(&TENANT), leaf_len]]));
            Value::Object(members).to_string().into_bytes()
        }
        _ => head.to_vec(),
    }
}

/// The target.
pub fn run(data: &[u8]) {
    // A refusal is as good as a load; only the properties count.
    loads(data).err();
}

/// Loads the record that an input stands for, or says why it is refused.
pub fn loads(data: &[u8]) -> Result<(), String> {
    let [flags, a, b, rest @ ..] = data else { return Err("it is too short".to_owned()) };
    let leaf_len = usize::from(u16::from_le_bytes([*a, *b])).min(rest.len());
    let (leaf, head) = rest.split_at(leaf_len);
    let name = format!("shard/0/{}/{:020}", if flags & ROOT == 0 { "m" } else { "c" }, 1);
    let entropy = SimEntropy::seeded(2);
    let leaf_name = if flags & LEAF_OF_ANOTHER == 0 { name.as_str() } else { "shard/0/m/0" };
    let leaf = seal_object(&keys::of(TENANT), &entropy, id_of(leaf_name, Some(TENANT)), leaf);
    let head = if flags & LEAVES_AS_GIVEN == 0 { fitted(head, leaf.len()) } else { head.to_vec() };
    let mut plain = (head.len() as u32).to_le_bytes().to_vec();
    plain.extend_from_slice(&head);
    plain.extend_from_slice(&leaf);
    let sealed = seal_object(&keys::of(SYSTEM), &entropy, id_of(&name, None), &plain);
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    block_on(async {
        store.put(&Path::from(name), sealed.into()).await.expect("a store in memory");
        let first = load(&store).await.map_err(|e| e.to_string())?;
        let second = load(&store).await.expect("what was loaded loads again");
        assert_eq!(first.current().tenants, second.current().tenants);
        Ok(())
    })
}

async fn load(store: &Arc<dyn ObjectStore>) -> Result<ManifestStore, ManifestError> {
    let entropy = Arc::new(SimEntropy::seeded(3));
    // A checkpoint with every record: roots are written and read back too.
    ManifestStore::open(Arc::clone(store), Arc::new(FixedKeys), entropy, 0, 1).await
}

/// A head that is right for the first record or root.
fn head() -> Value {
    json!({
        "format": 1, "number": 1, "epoch": 0, "nonce": hex(&[1; 16]), "previous": hex(&[0; 32]),
        "flushed_lsn": 7, "leaves": [],
    })
}

fn input(flags: u8, leaf: &Value, head: &Value) -> Vec<u8> {
    let leaf = leaf.to_string().into_bytes();
    let mut out = vec![flags];
    out.extend_from_slice(&(leaf.len() as u16).to_le_bytes());
    out.extend_from_slice(&leaf);
    out.extend_from_slice(head.to_string().as_bytes());
    out
}

/// Records and roots with and without tables and streams.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let section = json!({
        "object": hex(&[2; 16]), "section_id": hex(&[3; 16]), "offset": 0, "len": 300,
    });
    let schema = json!({
        "table_id": 1, "name": "cpu", "version": 1,
        "tags": [{ "id": 3, "name": "host" }], "fields": [{ "id": 4, "name": "v", "ty": "f64" }],
    });
    let file = json!({
        "id": hex(&[4; 16]), "table_id": 1, "parquet": section, "directory": section, "level": 0,
        "t_min": -5, "t_max": 9, "rows": 3, "lsn_lo": 1, "lsn_hi": 7, "bytes": 600,
    });
    let stream = json!([{ "device": hex(&[8; 16]), "stream": "cpu", "epoch": 1 }, { "hi": 12 }]);
    let series = json!([{ "section": section, "count": 2 }]);
    let delta = json!({
        "tables": { "1": {
            "database": "default", "schema": schema, "added_files": [file], "removed_files": [],
            "added_series": series,
        } },
        "streams": [stream], "next_table_id": 2,
    });
    let whole = json!({
        "tables": { "1": {
            "database": "default", "schema": schema, "files": [file], "series_sections": series,
        } },
        "streams": [stream], "next_table_id": 2,
    });
    let empty = json!({ "tables": {}, "streams": [], "next_table_id": null });
    vec![
        ("record", input(0, &delta, &head())),
        ("empty", input(0, &empty, &head())),
        ("root", input(ROOT, &whole, &head())),
        ("no-leaf", input(LEAVES_AS_GIVEN, &empty, &head())),
        ("foreign-leaf", input(LEAF_OF_ANOTHER, &delta, &head())),
    ]
}
