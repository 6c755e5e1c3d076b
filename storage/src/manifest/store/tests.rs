//! The commit protocol: crashes, races, unknown outcomes, damage.

use std::sync::Mutex;

use async_trait::async_trait;
use futures::{executor::block_on, future::BoxFuture, stream::BoxStream};
use millrace_crypto::key::{Key256, KeyError, TenantKeys};
use millrace_platform::{
    disk::{Disk, OpenMode, read_file},
    sim::{SimDisk, SimEntropy, disk::Faults},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutPayload, PutResult, Result as StoreResult,
};

use super::*;
use crate::object::local::DurableLocalStore;

const TENANT: TenantId = TenantId([7; 16]);

/// Keys that follow from a number: another number is another deployment.
struct Fixed(u8);

impl TenantKeySource for Fixed {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        if version != 1 {
            return Err(KeyError::UnknownVersion { tenant: hex::encode(tenant), version });
        }
        Ok(Arc::new(TenantKeys::new(*tenant, 1, Key256::new([self.0; 32]))))
    }
}

fn local(disk: &SimDisk, seed: u64) -> Arc<dyn ObjectStore> {
    let entropy = SimEntropy::seeded(seed);
    let root = std::path::Path::new("/d");
    Arc::new(DurableLocalStore::open(Arc::new(disk.clone()), root, &entropy).unwrap())
}

async fn open_on(
    store: Arc<dyn ObjectStore>,
    deployment: u8,
    seed: u64,
) -> Result<ManifestStore, ManifestError> {
    let keys = Arc::new(Fixed(deployment));
    ManifestStore::open(store, keys, Arc::new(SimEntropy::seeded(seed)), 0, 1000).await
}

fn open(disk: &SimDisk, seed: u64) -> Result<ManifestStore, ManifestError> {
    block_on(open_on(local(disk, seed), 42, seed))
}

/// A delta that can be told from any other: its flushed position.
fn delta(flushed_lsn: u64) -> Delta {
    let part = TenantDelta { next_table_id: Some(flushed_lsn), ..TenantDelta::default() };
    Delta { flushed_lsn, tenants: BTreeMap::from([(TENANT, part)]) }
}

/// The tenant part and the flushed position move together or not at all.
fn seen(store: &ManifestStore) -> u64 {
    let now = store.current();
    let next = now.tenants.get(&TENANT).map_or(0, |t| t.next_table_id);
    assert_eq!(next, now.flushed_lsn, "a record counts as a whole");
    now.flushed_lsn
}

/// Three commits on a disk; the disk and the paths of its records.
fn three_commits() -> (SimDisk, Vec<std::path::PathBuf>) {
    let disk = SimDisk::new();
    let mut store = open(&disk, 1).unwrap();
    for lsn in 1..=3 {
        block_on(store.commit(delta(lsn))).unwrap();
    }
    let folder = std::path::Path::new("/d/shard/0/m");
    let records: Vec<_> = disk.paths().into_iter().filter(|p| p.starts_with(folder)).collect();
    assert_eq!(records.len(), 4, "a fence and three commits");
    (disk, records)
}

fn overwrite(disk: &SimDisk, path: &std::path::Path, bytes: &[u8]) {
    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
    file.set_len(0).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
}

#[test]
fn d1_a_power_cut_at_any_operation_of_a_commit_leaves_the_old_manifest_or_the_new_one() {
    // Every second commit makes a checkpoint too, and from the fourth on old records go.
    for commits in 1..6 {
        let mut cut = 0;
        let mut done = false;
        while !done {
            for seed in 0..8 {
                let disk = SimDisk::new();
                let mut store = open(&disk, 1).unwrap();
                store.checkpoint_every = 2;
                for lsn in 1..commits {
                    block_on(store.commit(delta(lsn))).unwrap();
                }
                let at = disk.ops() + cut;
                disk.set_faults(Faults { cut_after: Some(at), ..Faults::default() });
                let committed = block_on(store.commit(delta(commits)));
                // A cut in the checkpoint does not fail the commit.
                done = disk.ops() < at;
                disk.power_cycle(&SimEntropy::seeded(seed));
                let when = format!("commit {commits}, cut {cut}, seed {seed}");
                let found = seen(&open(&disk, 2).unwrap_or_else(|e| panic!("{when}: {e}")));
                let allowed =
                    if committed.is_ok() { commits..=commits } else { commits - 1..=commits };
                assert!(allowed.contains(&found), "{when}: {found}, committed {committed:?}");
            }
            cut += 1;
        }
        assert!(cut > 5, "commit {commits} has operations to cut");
    }
}

#[test]
fn d1_a_power_cut_at_any_operation_of_a_start_leaves_the_manifest_as_it_was() {
    let mut cut = 0;
    let mut started = false;
    while !started {
        for seed in 0..8 {
            let (disk, _) = three_commits();
            let at = disk.ops() + cut;
            disk.set_faults(Faults { cut_after: Some(at), ..Faults::default() });
            started = open(&disk, 2).is_ok();
            disk.power_cycle(&SimEntropy::seeded(seed));
            let again = open(&disk, 3).unwrap_or_else(|e| panic!("cut {cut}, seed {seed}: {e}"));
            assert_eq!(seen(&again), 3, "cut {cut}, seed {seed}");
        }
        cut += 1;
    }
    assert!(cut > 10, "a start has operations to cut, it had {cut}");
}

#[test]
fn d1_a_commit_that_succeeded_after_a_failed_operation_survives_a_power_cut() {
    for op in 1..=6 {
        for seed in 0..10 {
            let disk = SimDisk::new();
            let mut store = open(&disk, 1).unwrap();
            block_on(store.commit(delta(1))).unwrap();
            let at = disk.ops() + op;
            disk.set_faults(Faults { fail_op: Some(at), ..Faults::default() });
            let outcome = block_on(store.commit(delta(2)));
            let when = format!("operation {op}, seed {seed}: {outcome:?}");
            if let Err(CommitError::Unknown { .. }) = &outcome {
                let again = block_on(store.commit(delta(3)));
                assert!(matches!(again, Err(CommitError::Unknown { .. })), "{when}: it must stop");
            }
            disk.power_cycle(&SimEntropy::seeded(seed));
            let found = seen(&open(&disk, 2).unwrap_or_else(|e| panic!("{when}: {e}")));
            let least = if outcome.is_ok() { 2 } else { 1 };
            assert!((least..=2).contains(&found), "{when}: found {found}");
        }
    }
}

/// What a store does to a put of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Written, and the answer is lost.
    ErrorAfter,
    /// Not written.
    ErrorBefore,
    /// Written by a request that arrives just before the next one that gets through.
    Late,
}

type Hook = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// A store that gets into trouble at the next puts of records, or lets others act first.
struct Stage {
    inner: Arc<dyn ObjectStore>,
    troubles: Mutex<Vec<Trouble>>,
    before: Mutex<Option<Hook>>,
    after: Mutex<Option<Hook>>,
    late: Mutex<Option<(Path, PutPayload)>>,
}

impl Stage {
    fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            troubles: Mutex::default(),
            before: Mutex::default(),
            after: Mutex::default(),
            late: Mutex::default(),
        })
    }

    fn lost() -> Error {
        Error::Generic { store: "stage", source: "the answer is lost".into() }
    }

    async fn arrive(&self) {
        let late = self.late.lock().unwrap().take();
        if let Some((path, payload)) = late {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            self.inner.put_opts(&path, payload, options).await.unwrap();
        }
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stage")
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stage")
    }
}

#[async_trait]
impl ObjectStore for Stage {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> StoreResult<PutResult> {
        if !location.as_ref().starts_with("shard/0/m/") {
            return self.inner.put_opts(location, payload, opts).await;
        }
        let before = self.before.lock().unwrap().take();
        if let Some(hook) = before {
            hook().await;
        }
        let trouble = self.troubles.lock().unwrap().pop();
        let done = match trouble {
            None => {
                self.arrive().await;
                self.inner.put_opts(location, payload, opts).await
            }
            Some(Trouble::ErrorBefore) => Err(Self::lost()),
            Some(Trouble::ErrorAfter) => {
                self.inner.put_opts(location, payload, opts).await.and(Err(Self::lost()))
            }
            Some(Trouble::Late) => {
                *self.late.lock().unwrap() = Some((location.clone(), payload));
                Err(Self::lost())
            }
        };
        let after = self.after.lock().unwrap().take();
        if let Some(hook) = after {
            hook().await;
        }
        done
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A committed owner behind a stage.
fn staged() -> (Arc<Stage>, ManifestStore) {
    let stage = Stage::new(local(&SimDisk::new(), 1));
    let store: Arc<dyn ObjectStore> = Arc::<Stage>::clone(&stage);
    let mut owner = block_on(open_on(store, 42, 1)).unwrap();
    block_on(owner.commit(delta(1))).unwrap();
    (stage, owner)
}

fn reopened(stage: &Stage) -> u64 {
    seen(&block_on(open_on(Arc::clone(&stage.inner), 42, 77)).unwrap())
}

#[test]
fn d2_a_commit_whose_answer_was_lost_is_found_to_be_ours_and_counts_once() {
    let (stage, mut owner) = staged();
    *stage.troubles.lock().unwrap() = vec![Trouble::ErrorAfter];
    assert_eq!(block_on(owner.commit(delta(2))).unwrap(), 3);
    assert_eq!(block_on(owner.commit(delta(3))).unwrap(), 4);
    assert_eq!(reopened(&stage), 3);
}

#[test]
fn a_commit_that_was_not_written_is_written_at_the_second_attempt() {
    let (stage, mut owner) = staged();
    *stage.troubles.lock().unwrap() = vec![Trouble::ErrorBefore];
    assert_eq!(block_on(owner.commit(delta(2))).unwrap(), 3);
    assert_eq!(reopened(&stage), 2);
}

#[test]
fn a_commit_that_never_reached_the_store_may_be_tried_again() {
    let (stage, mut owner) = staged();
    *stage.troubles.lock().unwrap() = vec![Trouble::ErrorBefore, Trouble::ErrorBefore];
    let failed = block_on(owner.commit(delta(2)));
    assert!(matches!(failed, Err(CommitError::Store(_))), "{failed:?}");
    assert_eq!(block_on(owner.commit(delta(2))).unwrap(), 3);
    assert_eq!(reopened(&stage), 2);
}

#[test]
fn d2_a_commit_that_lands_after_it_was_given_up_stops_the_owner_and_is_not_doubled() {
    let (stage, mut owner) = staged();
    // The first request hangs, the second fails, nothing reads: it seems not to have happened.
    *stage.troubles.lock().unwrap() = vec![Trouble::ErrorBefore, Trouble::Late];
    let failed = block_on(owner.commit(delta(2)));
    assert!(matches!(failed, Err(CommitError::Store(_))), "{failed:?}");
    let again = block_on(owner.commit(delta(3)));
    assert!(matches!(again, Err(CommitError::Unknown { .. })), "{again:?}");
    let third = block_on(owner.commit(delta(4)));
    assert!(matches!(third, Err(CommitError::Unknown { .. })), "{third:?}");
    assert_eq!(reopened(&stage), 2);
}

#[test]
fn d1_of_two_owners_that_commit_at_once_exactly_one_wins() {
    for takes_over_before_the_create in [true, false] {
        let (stage, mut old) = staged();
        let inner = Arc::clone(&stage.inner);
        let slot: Arc<Mutex<Option<ManifestStore>>> = Arc::default();
        let new_owner = Arc::clone(&slot);
        let hook: Hook = Box::new(move || {
            Box::pin(async move {
                let mut owner = open_on(inner, 42, 5).await.unwrap();
                let next = owner.current().flushed_lsn + 10;
                owner.commit(delta(next)).await.unwrap();
                *new_owner.lock().unwrap() = Some(owner);
            })
        });
        let place = if takes_over_before_the_create { &stage.before } else { &stage.after };
        *place.lock().unwrap() = Some(hook);
        let refused = block_on(old.commit(delta(2)));
        assert!(matches!(refused, Err(CommitError::Fenced { seen: 2, ours: 1 })), "{refused:?}");
        let again = block_on(old.commit(delta(3)));
        assert!(matches!(again, Err(CommitError::Fenced { .. })), "{again:?}");
        // Created before the takeover, the record is part of the new owner's manifest.
        let expected = if takes_over_before_the_create { 11 } else { 12 };
        let mut new = slot.lock().unwrap().take().expect("the new owner started");
        assert_eq!(seen(&new), expected);
        block_on(new.commit(delta(20))).unwrap();
        assert_eq!(reopened(&stage), 20);
    }
}

#[test]
fn d1_of_two_starts_at_once_the_later_claim_wins() {
    let (stage, _) = staged();
    let inner = Arc::clone(&stage.inner);
    let slot: Arc<Mutex<Option<ManifestStore>>> = Arc::default();
    let later = Arc::clone(&slot);
    // The first has claimed and loaded; before it can fence, the second starts and commits.
    *stage.before.lock().unwrap() = Some(Box::new(move || {
        Box::pin(async move {
            let mut owner = open_on(inner, 42, 5).await.unwrap();
            owner.commit(delta(9)).await.unwrap();
            *later.lock().unwrap() = Some(owner);
        })
    }));
    let store: Arc<dyn ObjectStore> = Arc::<Stage>::clone(&stage);
    let first = block_on(open_on(store, 42, 4));
    assert!(
        matches!(&first, Err(ManifestError::Fence(e)) if matches!(**e, CommitError::Fenced { .. })),
        "{first:?}"
    );
    let mut later = slot.lock().unwrap().take().expect("the later one started");
    block_on(later.commit(delta(10))).unwrap();
}

#[test]
fn every_flipped_bit_of_a_record_and_of_a_checkpoint_is_detected_by_name() {
    let (disk, mut files) = three_commits();
    let mut store = open(&disk, 2).unwrap();
    block_on(store.checkpoint()).unwrap();
    let root = disk.paths().into_iter().find(|p| p.starts_with("/d/shard/0/c")).unwrap();
    files.push(root);
    let keys = Fixed(42);
    for path in files {
        let name = path.strip_prefix("/d").unwrap().to_string_lossy().into_owned();
        let bytes = read_file(&disk, &path, 1 << 20).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let record = record::decode::<TenantDelta>(&name, &flipped, &keys);
            let root = record::decode::<TenantManifest>(&name, &flipped, &keys);
            assert!(record.is_err() && root.is_err(), "{name}: bit {bit} passes");
        }
    }
}

/// The start is refused with an error that names the file and says what to do.
fn refused(disk: &SimDisk, name: &str, what: &str) {
    let error = open(disk, 9).expect_err("the start must be refused");
    let text = error.to_string();
    assert!(text.contains(name) && text.contains("restore it from a backup"), "{what}: {text}");
}

fn name_of(path: &std::path::Path) -> String {
    path.strip_prefix("/d").unwrap().to_string_lossy().into_owned()
}

#[test]
fn d1_a_missing_or_cut_record_is_refused_by_name() {
    let (disk, records) = three_commits();
    for (at, path) in records.iter().enumerate() {
        let bytes = read_file(&disk, path, 1 << 20).unwrap();
        for len in [0, 1, 147, 148, bytes.len() / 2, bytes.len() - 1] {
            let cut = disk.fork();
            overwrite(&cut, path, &bytes[..len]);
            refused(&cut, &name_of(path), "cut");
        }
        let longer = disk.fork();
        overwrite(&longer, path, &[bytes.as_slice(), b"more"].concat());
        refused(&longer, &name_of(path), "longer");
        let missing = disk.fork();
        missing.remove(path).unwrap();
        if let Some(next) = records.get(at + 1) {
            refused(&missing, &name_of(next), "missing");
        }
    }
}

#[test]
fn d1_a_record_of_another_place_or_another_deployment_is_refused_by_name() {
    let (disk, records) = three_commits();
    let other = SimDisk::new();
    let mut store = block_on(open_on(local(&other, 1), 43, 1)).unwrap();
    for lsn in 1..=3 {
        block_on(store.commit(delta(lsn))).unwrap();
    }
    for (at, path) in records.iter().enumerate() {
        let foreign = disk.fork();
        overwrite(&foreign, path, &read_file(&other, path, 1 << 20).unwrap());
        refused(&foreign, &name_of(path), "of another deployment");
        let swapped = disk.fork();
        let neighbour = &records[(at + 1) % records.len()];
        overwrite(&swapped, path, &read_file(&disk, neighbour, 1 << 20).unwrap());
        refused(&swapped, &name_of(path), "of another number");
        let plain = disk.fork();
        overwrite(&plain, path, b"{\"flushed_lsn\":1}");
        refused(&plain, &name_of(path), "not sealed");
    }
}

#[test]
fn a_leaf_of_another_tenant_is_refused_by_name() {
    let (keys, entropy) = (Fixed(42), SimEntropy::seeded(3));
    let name = record_name(0, 1);
    let part = TenantDelta::default();
    let head = record::Heading {
        number: 1,
        epoch: 1,
        nonce: [0; 16],
        previous: [0; 32],
        flushed_lsn: 0,
        clock: None,
    };
    let two = BTreeMap::from([(TENANT, part.clone()), (TenantId([8; 16]), part)]);
    let bytes = record::encode(&name, head, &two, &keys, &entropy).unwrap();
    let plain = millrace_crypto::sealed_file::open_object(
        &keys,
        &record::SYSTEM,
        record::id_of(&name, None),
        &bytes,
    )
    .unwrap();
    // The two leaves are equally long: exchange them inside a record that is sealed anew.
    let at = 4 + u32::from_le_bytes(*plain.first_chunk().unwrap()) as usize;
    let half = (plain.len() - at) / 2;
    let swapped = [&plain[..at], &plain[at + half..], &plain[at..at + half]].concat();
    let system = keys.current(&record::SYSTEM).unwrap();
    let id = record::id_of(&name, None);
    let bytes = millrace_crypto::sealed_file::seal_object(&system, &entropy, id, &swapped);
    let error = record::decode::<TenantDelta>(&name, &bytes, &keys).unwrap_err();
    assert!(error.to_string().contains("names another tenant"), "{error}");
}

#[test]
fn a_failed_checkpoint_costs_nothing_and_is_made_later() {
    let disk = SimDisk::new();
    let mut store = open(&disk, 1).unwrap();
    store.checkpoint_every = 1;
    // The first put is the record, the second the checkpoint.
    let at = disk.ops() + 8;
    disk.set_faults(Faults { fail_op: Some(at), ..Faults::default() });
    block_on(store.commit(delta(1))).unwrap();
    let roots =
        |disk: &SimDisk| disk.paths().iter().filter(|p| p.starts_with("/d/shard/0/c")).count();
    assert_eq!(roots(&disk), 0, "the checkpoint failed");
    block_on(store.commit(delta(2))).unwrap();
    assert_eq!(roots(&disk), 1);
    assert_eq!(seen(&open(&disk, 2).unwrap()), 2);
}
