//! The tenant's store over the in-memory store: what it seals, checks, refuses and passes on.

mod tamper;

use std::collections::BTreeMap;

use futures::executor::block_on;
use millrace_platform::sim::SimEntropy;
use object_store::{Attribute, GetRange, TagSet, memory::InMemory};
use proptest::prelude::*;

use super::*;
use crate::{
    key::{Key256, KeyError, TenantKeys},
    sealed_file::{CHUNK_BYTES, sealed_len},
};

const A: [u8; 16] = [0xaa; 16];
const B: [u8; 16] = [0xbb; 16];
const CHUNK: usize = CHUNK_BYTES as usize;

/// Version 1 of every tenant's key.
struct Ring(BTreeMap<[u8; 16], Arc<TenantKeys>>);

impl TenantKeySource for Ring {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        let keys = self.0.get(tenant).map(Arc::clone);
        keys.ok_or_else(|| KeyError::Gone { tenant: hex::encode(tenant) })
    }

    fn version(&self, tenant: &[u8; 16], _: u32) -> Result<Arc<TenantKeys>, KeyError> {
        self.current(tenant)
    }
}

struct World {
    below: Arc<InMemory>,
    a: TenantStore,
    b: TenantStore,
}

fn world() -> World {
    let below = Arc::new(InMemory::new());
    let keys = |t: [u8; 16]| (t, Arc::new(TenantKeys::new(t, 1, Key256::new([t[0]; 32]))));
    let ring: Arc<dyn TenantKeySource> = Arc::new(Ring([A, B].map(keys).into()));
    let entropy: Arc<dyn Entropy> = Arc::new(SimEntropy::seeded(4));
    let store = |tenant| {
        let below = Arc::clone(&below) as Arc<dyn ObjectStore>;
        TenantStore::new(below, Arc::clone(&ring), Arc::clone(&entropy), tenant)
    };
    let (a, b) = (store(A), store(B));
    World { below, a, b }
}

fn at(store: &TenantStore, name: &str) -> Path {
    Path::from(format!("{}/{name}", store.prefix()))
}

fn plaintext(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    SimEntropy::seeded(99).fill(&mut out);
    out
}

async fn read(store: &TenantStore, path: &Path) -> Result<Bytes> {
    store.get(path).await?.bytes().await
}

#[test]
fn it_keeps_the_contract_of_a_store_with_plaintext_sizes() {
    block_on(async {
        let World { a: store, .. } = world();
        let (path, other) = (at(&store, "a/b/c.bin"), at(&store, "a/d.bin"));
        assert!(matches!(store.get(&path).await, Err(Error::NotFound { .. })));
        store.put(&path, PutPayload::from_static(b"0123456789")).await.unwrap();
        assert_eq!(store.get_range(&path, 2..5).await.unwrap(), "234");
        assert_eq!(store.get_range(&path, 8..99).await.unwrap(), "89", "cut at the end");
        assert!(store.get_range(&path, 10..11).await.is_err());
        assert_eq!(read(&store, &path).await.unwrap(), "0123456789");
        let last = GetOptions { range: Some(GetRange::Suffix(3)), ..GetOptions::default() };
        let got = store.get_opts(&path, last).await.unwrap();
        assert_eq!((got.range.clone(), got.meta.size), (7..10, 10));
        assert_eq!(got.bytes().await.unwrap(), "789");
        let ranges = store.get_ranges(&path, &[7..9, 0..1, 3..3]).await.unwrap();
        assert_eq!(ranges, ["78", "0", ""]);
        let head = store.head(&path).await.unwrap();
        assert_eq!((head.size, &head.location), (10, &path));
        store.copy(&path, &other).await.unwrap();
        assert_eq!(read(&store, &other).await.unwrap(), "0123456789");
        store.put(&path, PutPayload::from_static(b"new")).await.unwrap();
        assert_eq!(read(&store, &path).await.unwrap(), "new");
        let mut all: Vec<_> =
            store.list(None).map_ok(|m| (m.location, m.size)).try_collect().await.unwrap();
        all.sort();
        assert_eq!(all, [(path.clone(), 3), (other.clone(), 10)]);
        let after: Vec<_> =
            store.list_with_offset(None, &path).map_ok(|m| m.location).try_collect().await.unwrap();
        assert_eq!(after, std::slice::from_ref(&other));
        let top = store.list_with_delimiter(Some(&at(&store, "a"))).await.unwrap();
        assert_eq!(top.common_prefixes, [at(&store, "a/b")]);
        assert_eq!(top.objects.iter().map(|o| o.size).collect::<Vec<_>>(), [10]);
        store.rename(&other, &path).await.unwrap();
        store.rename(&path, &path).await.unwrap();
        assert_eq!(read(&store, &path).await.unwrap(), "0123456789");
        assert!(matches!(store.head(&other).await, Err(Error::NotFound { .. })));
        store.delete(&path).await.unwrap();
        assert!(matches!(store.head(&path).await, Err(Error::NotFound { .. })));
    });
}

#[test]
fn create_only_puts_copies_and_renames_leave_what_is_there() {
    block_on(async {
        let World { a: store, .. } = world();
        let (path, other) = (at(&store, "one"), at(&store, "two"));
        let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        store.put_opts(&path, PutPayload::from_static(b"first"), create()).await.unwrap();
        let again = store.put_opts(&path, PutPayload::from_static(b"second"), create()).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
        store.put(&other, PutPayload::from_static(b"other")).await.unwrap();
        let copied = store.copy_if_not_exists(&other, &path).await;
        assert!(matches!(copied, Err(Error::AlreadyExists { .. })), "{copied:?}");
        let moved = store.rename_if_not_exists(&other, &path).await;
        assert!(matches!(moved, Err(Error::AlreadyExists { .. })), "{moved:?}");
        assert_eq!(read(&store, &path).await.unwrap(), "first");
        assert_eq!(read(&store, &other).await.unwrap(), "other");
    });
}

#[test]
fn an_upload_in_parts_appears_whole_or_not_at_all() {
    block_on(async {
        let World { a: store, .. } = world();
        let path = at(&store, "parts");
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part(PutPayload::from_static(b"part ")).await.unwrap();
        upload.put_part(PutPayload::from_static(b"two")).await.unwrap();
        assert!(!format!("{upload:?}").contains(&format!("{:?}", b"two")[1..]), "shows its parts");
        assert!(store.head(&path).await.is_err(), "nothing is seen before the end");
        upload.complete().await.unwrap();
        assert_eq!(read(&store, &path).await.unwrap(), "part two");
        assert!(upload.complete().await.is_err() && upload.put_part("x".into()).await.is_err());
        let mut dropped = store.put_multipart(&at(&store, "dropped")).await.unwrap();
        dropped.put_part("x".into()).await.unwrap();
        dropped.abort().await.unwrap();
        assert!(dropped.complete().await.is_err());
        let long = at(&store, "long");
        let mut long = SealedUpload::new(store.clone(), long, PutOptions::default()).with_max(10);
        long.put_part("0123456789".into()).await.unwrap();
        let e = long.put_part("x".into()).await.unwrap_err().to_string();
        assert!(e.contains("exceeds 10 bytes"), "{e}");
        assert!(long.complete().await.is_err(), "an object without its last part");
        assert_eq!(store.list(None).count().await, 1);
    });
}

#[test]
fn d6_no_way_in_or_out_reaches_outside_of_the_tenant() {
    block_on(async {
        let World { below, a, b } = world();
        let foreign = at(&b, "secret");
        b.put(&foreign, PutPayload::from_static(b"b's")).await.unwrap();
        let mine = at(&a, "mine");
        a.put(&mine, PutPayload::from_static(b"a's")).await.unwrap();
        let longer = Path::from(format!("{}0/x", a.prefix()));
        let above = [Path::default(), Path::from("tenant"), a.prefix().clone()];
        for path in above.iter().chain([&foreign, &longer, &Path::from("data/0/x.b")]) {
            let refused = |found: Result<()>, what: &str| {
                let refused = matches!(found, Err(Error::PermissionDenied { .. }));
                assert!(refused, "{what} {path}: {found:?}");
            };
            refused(a.put(path, "x".into()).await.map(drop), "put");
            refused(a.put_multipart(path).await.map(drop), "put in parts");
            refused(a.get(path).await.map(drop), "get");
            refused(a.get_range(path, 0..1).await.map(drop), "get a range of");
            let ranges = [0..1, 0..1];
            refused(a.get_ranges(path, &ranges).await.map(drop), "get ranges of");
            refused(a.head(path).await.map(drop), "head");
            refused(a.delete(path).await, "delete");
            refused(a.copy(&mine, path).await, "copy to");
            refused(a.copy(path, &mine).await, "copy from");
            refused(a.rename(&mine, path).await, "rename to");
            refused(a.rename(path, path).await, "rename");
            if path != a.prefix() {
                let listed = a.list(Some(path)).try_collect::<Vec<_>>().await;
                refused(listed.map(drop), "list");
                let listed = a.list_with_offset(Some(path), &mine).try_collect::<Vec<_>>().await;
                refused(listed.map(drop), "list after");
                refused(a.list_with_delimiter(Some(path)).await.map(drop), "list by folder");
            }
        }
        let listed: Vec<_> = a.list(None).map_ok(|m| m.location).try_collect().await.unwrap();
        assert_eq!(listed, std::slice::from_ref(&mine));
        let paths = stream::iter([Ok(foreign.clone()), Ok(mine.clone())]).boxed();
        let deleted: Vec<_> = a.delete_stream(paths).collect().await;
        assert!(deleted[0].is_err() && deleted[1].is_ok());
        assert_eq!(read(&b, &foreign).await.unwrap(), "b's");
        let left = below.list(None).map_ok(|m| m.location).try_collect::<Vec<_>>().await;
        assert_eq!(left.unwrap(), [foreign]);
    });
}

#[test]
fn d6_nothing_of_the_plaintext_reaches_the_store_below() {
    const CANARY: &[u8] = b"canary-7f3a91c2e8b04d56";
    block_on(async {
        let World { below, a, .. } = world();
        let plain = Bytes::from(CANARY.repeat(10_000));
        a.put(&at(&a, "1"), plain.clone().into()).await.unwrap();
        a.copy(&at(&a, "1"), &at(&a, "2")).await.unwrap();
        a.rename(&at(&a, "2"), &at(&a, "3")).await.unwrap();
        let mut upload = a.put_multipart(&at(&a, "4")).await.unwrap();
        upload.put_part(plain.clone().into()).await.unwrap();
        upload.complete().await.unwrap();
        let objects: Vec<_> = below.list(None).try_collect().await.unwrap();
        assert_eq!(objects.len(), 3);
        for object in objects {
            let got = below.get(&object.location).await.unwrap();
            assert!(got.attributes.is_empty());
            let bytes = got.bytes().await.unwrap();
            assert_eq!(bytes.len() as u64, sealed_len(plain.len() as u64));
            assert!(!bytes.windows(8).any(|w| w == &CANARY[..8]), "{}", object.location);
        }
    });
}

#[test]
fn d6_attributes_and_tags_are_refused_because_nothing_would_seal_them() {
    block_on(async {
        let World { below, a, .. } = world();
        let attributes: Attributes =
            [(Attribute::ContentDisposition, "name of a machine")].into_iter().collect();
        let mut tags = TagSet::default();
        tags.push("site", "hall 3");
        for opts in [
            PutOptions { attributes, ..PutOptions::default() },
            PutOptions { tags, ..PutOptions::default() },
        ] {
            let found = a.put_opts(&at(&a, "x"), "x".into(), opts).await;
            assert!(matches!(found, Err(Error::NotSupported { .. })), "{found:?}");
        }
        assert_eq!(below.list(None).count().await, 0);
    });
}

#[test]
fn a_store_shows_its_prefix_and_nothing_secret() {
    let World { a, .. } = world();
    assert_eq!(a.to_string(), format!("TenantStore(tenant/{})", "aa".repeat(16)));
    assert!(format!("{a:?}").starts_with("TenantStore { prefix: Path"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_ranges_of_any_object_equal_the_slices(
        len in prop_oneof![0..200usize, (1..4usize).prop_map(|n| n * CHUNK), 0..4 * CHUNK],
        asked in proptest::collection::vec((0.0..=1.0f64, 0.0..=1.0f64), 1..6),
    ) {
        let World { a: store, .. } = world();
        let (plain, path) = (plaintext(len), at(&store, "x"));
        let place = |share: f64| (share * len as f64) as u64;
        let ranges: Vec<Range<u64>> = asked
            .into_iter()
            .map(|(a, b)| place(a.min(b))..place(a.max(b)))
            .collect();
        block_on(async {
            store.put(&path, plain.clone().into()).await.unwrap();
            assert_eq!(store.head(&path).await.unwrap().size, len as u64);
            assert_eq!(read(&store, &path).await.unwrap(), plain);
            let found = store.get_ranges(&path, &ranges).await.unwrap();
            for (range, bytes) in ranges.iter().zip(found) {
                let slice = &plain[range.start as usize..range.end as usize];
                assert_eq!(bytes, slice, "{range:?} of {len}");
                if !range.is_empty() {
                    assert_eq!(store.get_range(&path, range.clone()).await.unwrap(), slice);
                }
            }
        });
    }
}
