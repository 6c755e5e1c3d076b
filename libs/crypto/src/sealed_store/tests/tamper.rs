//! A hostile store below: objects changed, cut, moved and replaced, also between two requests.

use std::sync::Mutex;

use super::*;
use crate::sealed_file::seal_object;

/// The seal's complaint, if that is what an error of the store carries.
fn seal_error(found: Result<Bytes>) -> SealError {
    match found {
        Err(Error::Generic { source, .. }) => {
            *source.downcast::<SealError>().expect("a seal's complaint")
        }
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[test]
fn d6_an_object_at_another_path_or_of_another_tenant_is_refused() {
    block_on(async {
        let World { below, a, b } = world();
        a.put(&at(&a, "one"), "a's".into()).await.unwrap();
        for (store, path) in [(&a, at(&a, "two")), (&b, at(&b, "one"))] {
            below.copy(&at(&a, "one"), &path).await.unwrap();
            let e = seal_error(read(store, &path).await);
            assert!(matches!(e, SealError::Forged { .. }), "{e}");
            let e = store.head(&path).await.unwrap_err().to_string();
            assert!(e.contains("fails authentication"), "{e}");
        }
    });
}

#[test]
fn d6_plaintext_cut_longer_and_flipped_objects_are_refused() {
    block_on(async {
        let World { below, a, .. } = world();
        let path = at(&a, "x");
        a.put(&path, plaintext(1000).into()).await.unwrap();
        let sealed = below.get(&path).await.unwrap().bytes().await.unwrap();
        let mut cases = vec![plaintext(2000), [&sealed[..], &[0]].concat()];
        cases.extend([1, 100, 148, 149, sealed.len() - 1].map(|n| sealed[..n].to_vec()));
        for at in [0, 8, 24, 28, 44, 48, 56, 68, 116, 148, 1147, 1150] {
            let mut flipped = sealed.to_vec();
            flipped[at] ^= 1;
            cases.push(flipped);
        }
        for (case, bytes) in cases.into_iter().enumerate() {
            below.put(&path, bytes.into()).await.unwrap();
            let e = seal_error(read(&a, &path).await);
            let blamed = matches!(e, SealError::Forged { .. } | SealError::NotSealed { .. });
            assert!(blamed, "case {case}: {e}");
            seal_error(a.get_range(&path, 0..1).await);
            let ranges = [0..1, 0..1];
            assert!(a.get_ranges(&path, &ranges).await.is_err(), "case {case}");
        }
        below.put(&path, PutPayload::new()).await.unwrap();
        assert!(read(&a, &path).await.is_err(), "an empty file");
    });
}

#[test]
fn d6_a_destroyed_key_is_said_as_such() {
    block_on(async {
        let World { below, a, .. } = world();
        let path = at(&a, "x");
        a.put(&path, "a's".into()).await.unwrap();
        let nobody = Ring(BTreeMap::new());
        let gone = TenantStore::new(below, Arc::new(nobody), Arc::new(SimEntropy::seeded(1)), A);
        let e = seal_error(read(&gone, &path).await);
        assert!(matches!(e, SealError::Key(KeyError::Gone { .. })), "{e}");
        let e = seal_error(gone.put(&path, "x".into()).await.map(|_| Bytes::new()));
        assert!(matches!(e, SealError::Key(KeyError::Gone { .. })), "{e}");
    });
}

/// A store below that replaces the object after the first request.
#[derive(Debug)]
struct Replacing {
    store: Arc<InMemory>,
    next: Mutex<Option<Bytes>>,
}

impl fmt::Display for Replacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Replacing")
    }
}

#[async_trait]
impl ObjectStore for Replacing {
    async fn put_opts(&self, l: &Path, p: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.store.put_opts(l, p, o).await
    }
    async fn put_multipart_opts(
        &self,
        l: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(l, o).await
    }
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let got = self.store.get_opts(location, options).await;
        let next = self.next.lock().unwrap().take();
        if let Some(next) = next {
            self.store.put(location, next.into()).await?;
        }
        got
    }
    fn delete_stream(
        &self,
        l: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(l)
    }
    fn list(&self, p: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(p)
    }
    async fn list_with_delimiter(&self, p: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(p).await
    }
    async fn copy_opts(&self, f: &Path, t: &Path, o: CopyOptions) -> Result<()> {
        self.store.copy_opts(f, t, o).await
    }
}

#[test]
fn a_read_never_mixes_an_object_with_the_one_that_replaced_it() {
    block_on(async {
        let World { below, a, .. } = world();
        let path = at(&a, "x");
        a.put(&path, "the second".into()).await.unwrap();
        let second = below.get(&path).await.unwrap().bytes().await.unwrap();
        a.put(&path, "the first!".into()).await.unwrap();
        let replacing =
            Arc::new(Replacing { store: Arc::clone(&below), next: Mutex::new(Some(second)) });
        let store = TenantStore { below: replacing, ..a.clone() };
        let found = read(&store, &path).await;
        assert!(matches!(found, Err(Error::Precondition { .. })), "{found:?}");
        assert_eq!(read(&store, &path).await.unwrap(), "the second");
    });
}

#[test]
fn conditions_of_a_get_are_those_of_the_store_below() {
    block_on(async {
        let World { a, .. } = world();
        let path = at(&a, "x");
        a.put(&path, "0123".into()).await.unwrap();
        let e_tag = a.head(&path).await.unwrap().e_tag;
        let same = GetOptions { if_match: e_tag.clone(), ..GetOptions::default() };
        let got = a.get_opts(&path, same).await.unwrap();
        assert_eq!(got.bytes().await.unwrap(), "0123");
        let other = GetOptions { if_match: Some("no".to_owned()), ..GetOptions::default() };
        assert!(matches!(a.get_opts(&path, other).await, Err(Error::Precondition { .. })));
        let known = GetOptions { if_none_match: e_tag, ..GetOptions::default() };
        assert!(matches!(a.get_opts(&path, known).await, Err(Error::NotModified { .. })));
        let from = GetOptions { range: Some(GetRange::Offset(2)), ..GetOptions::default() };
        assert_eq!(a.get_opts(&path, from).await.unwrap().bytes().await.unwrap(), "23");
    });
}

#[test]
fn d6_sections_of_a_bundle_open_for_their_tenant_and_in_their_place_only() {
    block_on(async {
        let World { below, a, b } = world();
        let path = Path::from("data/0/bundle.b");
        let plain = plaintext(CHUNK + 500);
        let mut bundle = Vec::new();
        let mut sections = Vec::new();
        for (store, id) in [(&a, [1; 16]), (&b, [2; 16]), (&a, [3; 16])] {
            let keys = store.keys.current(store.tenant()).unwrap();
            let sealed = seal_object(&keys, &SimEntropy::seeded(id[0].into()), id, &plain);
            let (offset, len) = (bundle.len() as u64, sealed.len() as u64);
            sections.push(SealedSection { path: path.clone(), id, offset, len });
            bundle.extend(sealed);
        }
        below.put(&path, bundle.into()).await.unwrap();
        for (store, section) in [(&a, &sections[0]), (&b, &sections[1]), (&a, &sections[2])] {
            let reader = store.section(section).await.unwrap();
            assert_eq!(reader.len(), plain.len() as u64);
            let range = CHUNK - 10..CHUNK + 10;
            let found = reader.read(range.start as u64..range.end as u64).await.unwrap();
            assert_eq!(found, plain[range]);
            assert_eq!(reader.read(0..0).await.unwrap(), "");
            assert!(matches!(
                reader.read(0..u64::MAX).await,
                Err(ReadError::Seal(SealError::OutOfRange { .. }))
            ));
            assert_eq!(store.section_whole(section).await.unwrap(), plain);
        }
        let first = &sections[0];
        for (what, store, section) in [
            ("another tenant", &b, first.clone()),
            ("another place", &a, SealedSection { offset: sections[2].offset, ..first.clone() }),
            ("another id", &a, SealedSection { id: [9; 16], ..first.clone() }),
            ("a shorter section", &a, SealedSection { len: first.len - 1, ..first.clone() }),
            ("a longer section", &a, SealedSection { len: first.len + 1, ..first.clone() }),
            ("an empty section", &a, SealedSection { len: 0, ..first.clone() }),
            ("an odd offset", &a, SealedSection { offset: 7, ..first.clone() }),
        ] {
            let e = store.section(&section).await.expect_err(what);
            assert!(matches!(e, ReadError::Seal(_)), "{what}: {e}");
            let e = store.section_whole(&section).await.expect_err(what);
            assert!(matches!(e, ReadError::Seal(_)), "{what}: {e}");
        }
        let nowhere = SealedSection { path: Path::from("data/0/none.b"), ..first.clone() };
        assert!(matches!(a.section(&nowhere).await, Err(ReadError::Store { .. })));
    });
}
