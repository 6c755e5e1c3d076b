//! The local store: the contract that every store keeps, and what a crash leaves.

use futures::{TryStreamExt, executor::block_on};
use millrace_platform::{
    disk::RealDisk,
    sim::{
        SimDisk, SimEntropy,
        disk::{Faults, Op},
    },
};
use object_store::{ObjectStoreExt, memory::InMemory};

use super::*;

fn on(disk: &SimDisk, seed: u64) -> DurableLocalStore {
    DurableLocalStore::open(Arc::new(disk.clone()), FsPath::new("/s"), &SimEntropy::seeded(seed))
        .unwrap()
}

fn create() -> PutOptions {
    PutOptions { mode: PutMode::Create, ..PutOptions::default() }
}

async fn text(store: &dyn ObjectStore, path: &Path) -> Option<String> {
    match store.get(path).await {
        Ok(found) => Some(String::from_utf8(found.bytes().await.unwrap().into()).unwrap()),
        Err(Error::NotFound { .. }) => None,
        Err(e) => panic!("{path}: {e}"),
    }
}

async fn listed(store: &dyn ObjectStore, prefix: &str) -> Vec<String> {
    let mut all: Vec<String> = store
        .list(Some(&Path::from(prefix)))
        .map_ok(|m| m.location.to_string())
        .try_collect()
        .await
        .unwrap();
    all.sort();
    all
}

/// What every store here must do; run against ours and against the crate's own in memory.
async fn contract(store: &dyn ObjectStore) {
    let path = Path::from("a/b/c.bin");
    assert!(matches!(store.get(&path).await, Err(Error::NotFound { .. })));
    store.put(&path, PutPayload::from_static(b"0123456789")).await.unwrap();
    let again = store.put_opts(&path, PutPayload::from_static(b"x"), create()).await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "0123456789");
    assert_eq!(store.head(&path).await.unwrap().size, 10);
    ranges(store, &path).await;
    store.put(&path, PutPayload::from_static(b"new")).await.unwrap();
    assert_eq!(text(store, &path).await.unwrap(), "new");
    let other = Path::from("a/d.bin");
    store.copy(&path, &other).await.unwrap();
    assert_eq!(listed(store, "a").await, ["a/b/c.bin", "a/d.bin"]);
    assert!(listed(store, "a/d.bin/under-a-file").await.is_empty());
    let top = store.list_with_delimiter(Some(&Path::from("a"))).await.unwrap();
    assert_eq!(top.common_prefixes, [Path::from("a/b")]);
    assert_eq!(top.objects.len(), 1);
    store.delete(&path).await.unwrap();
    assert!(matches!(store.head(&path).await, Err(Error::NotFound { .. })));
    let mut upload = store.put_multipart(&path).await.unwrap();
    upload.put_part(PutPayload::from_static(b"part ")).await.unwrap();
    upload.put_part(PutPayload::from_static(b"two")).await.unwrap();
    upload.complete().await.unwrap();
    assert_eq!(text(store, &path).await.unwrap(), "part two");
    odd_names(store).await;
}

async fn ranges(store: &dyn ObjectStore, path: &Path) {
    assert_eq!(store.get_range(path, 0..10).await.unwrap(), "0123456789");
    assert_eq!(store.get_range(path, 2..5).await.unwrap(), "234");
    assert_eq!(store.get_range(path, 9..10).await.unwrap(), "9");
    let many = store.get_ranges(path, &[0..1, 4..6, 9..10]).await.unwrap();
    assert_eq!(many, ["0", "45", "9"]);
    assert!(store.get_range(path, 10..11).await.is_err(), "it starts past the end");
    assert!(store.get_ranges(&Path::from("no"), &[0..1, 2..3]).await.is_err());
}

/// Names that need encoding are listed under the name by which they are found.
async fn odd_names(store: &dyn ObjectStore) {
    for name in ["a b", "50%", "x#y?", "~tilde", "\u{e9}", "..", "c:d", "%2E%2E"] {
        let path = Path::from_iter(["odd", name]);
        store.put(&path, PutPayload::from(name.to_owned())).await.unwrap();
        assert_eq!(listed(store, "odd").await, [path.to_string()], "{name}");
        assert_eq!(text(store, &path).await.as_deref(), Some(name));
        store.delete(&path).await.unwrap();
    }
}

#[test]
fn the_local_store_keeps_the_contract_that_the_memory_store_keeps() {
    block_on(contract(&InMemory::new()));
    block_on(contract(&on(&SimDisk::new(), 1)));
    let folder = tempfile::tempdir().unwrap();
    let real = DurableLocalStore::open(Arc::new(RealDisk), folder.path(), &SimEntropy::seeded(1));
    block_on(contract(&real.unwrap()));
}

#[test]
fn d1_a_put_or_a_delete_that_returned_survives_a_power_cut() {
    for seed in 0..50 {
        let disk = SimDisk::new();
        let store = on(&disk, 1);
        let (kept, gone) = (Path::from("x/kept"), Path::from("x/gone"));
        block_on(async {
            store.put(&gone, PutPayload::from_static(b"old")).await.unwrap();
            store.put(&kept, PutPayload::from_static(b"data")).await.unwrap();
            store.delete(&gone).await.unwrap();
        });
        disk.power_cycle(&SimEntropy::seeded(seed));
        block_on(async {
            assert_eq!(text(&store, &kept).await.unwrap(), "data");
            assert!(store.head(&gone).await.is_err(), "seed {seed}: a deleted object is back");
        });
    }
}

/// One step whose every operation is cut, with what may stand there before and after.
struct Step {
    before: Option<&'static str>,
    after: Option<&'static str>,
    run: fn(&DurableLocalStore, &Path) -> bool,
}

/// Longer than a page, so that a torn write shows.
const LONG: &str = concat!(
    include_str!("../../../Cargo.toml"),
    include_str!("../../../Cargo.toml"),
    include_str!("../../../Cargo.toml"),
    include_str!("../../../Cargo.toml"),
    include_str!("../../../Cargo.toml"),
    include_str!("../../../Cargo.toml")
);

fn steps() -> Vec<Step> {
    vec![
        Step {
            before: None,
            after: Some(LONG),
            run: |s, p| block_on(s.put_opts(p, LONG.into(), create())).is_ok(),
        },
        Step {
            before: Some("old"),
            after: Some(LONG),
            run: |s, p| block_on(s.put(p, LONG.into())).is_ok(),
        },
        Step { before: Some("old"), after: None, run: |s, p| block_on(s.delete(p)).is_ok() },
        Step {
            before: Some("old"),
            after: Some("old"),
            run: |s, p| {
                let refused = block_on(s.put_opts(p, LONG.into(), create()));
                matches!(refused, Err(Error::AlreadyExists { .. }))
            },
        },
    ]
}

#[test]
fn d1_a_power_cut_at_any_operation_leaves_the_old_object_or_the_new_one_and_no_temp_file() {
    let path = Path::from("x/object");
    for (number, step) in steps().iter().enumerate() {
        let mut cut = 0;
        loop {
            let mut done = false;
            for seed in 0..20 {
                let disk = SimDisk::new();
                let store = on(&disk, 1);
                if let Some(before) = step.before {
                    block_on(store.put(&path, before.into())).unwrap();
                }
                let at = disk.ops() + cut;
                disk.set_faults(Faults { cut_after: Some(at), ..Faults::default() });
                done = (step.run)(&store, &path);
                disk.power_cycle(&SimEntropy::seeded(seed));
                let store = on(&disk, 2);
                store.sweep(&Path::default()).unwrap();
                let found = block_on(text(&store, &path));
                let when = format!("step {number}, cut {cut}, seed {seed}");
                if done {
                    assert_eq!(found.as_deref(), step.after, "{when}: it had returned");
                } else {
                    let found = found.as_deref();
                    assert!(found == step.before || found == step.after, "{when}: {found:?}");
                }
                let names = disk.paths();
                assert!(names.len() <= 1, "{when}: temp files stay: {names:?}");
            }
            cut += 1;
            if done {
                break;
            }
        }
        assert!(cut >= 2, "step {number} has operations to cut");
    }
}

#[test]
fn temp_files_are_never_listed_and_a_sweep_removes_them_in_every_folder() {
    let disk = SimDisk::new();
    let store = on(&disk, 1);
    for name in ["x/y/one", "x/two", "three"] {
        let at = disk.ops() + 2;
        disk.set_faults(Faults { cut_after: Some(at), ..Faults::default() });
        assert!(block_on(store.put(&Path::from(name), "data".into())).is_err());
        disk.kill_process();
    }
    assert_eq!(disk.paths().len(), 3, "{:?}", disk.paths());
    let store = on(&disk, 2);
    assert!(block_on(listed(&store, "")).is_empty());
    assert!(block_on(store.list_with_delimiter(None)).unwrap().objects.is_empty());
    assert_eq!(store.sweep(&Path::default()).unwrap(), 3);
    assert!(disk.paths().is_empty());
    assert_eq!(store.sweep(&Path::from("nowhere")).unwrap(), 0);
}

#[test]
fn a_failed_put_gives_its_space_back() {
    let disk = SimDisk::new();
    let store = on(&disk, 1);
    disk.set_faults(Faults { capacity: Some(10), ..Faults::default() });
    assert!(block_on(store.put(&Path::from("x/large"), LONG.into())).is_err());
    assert_eq!(disk.paths().len(), 0);
    block_on(store.put(&Path::from("x/small"), "fits".into())).unwrap();
}

#[test]
fn d1_after_a_failed_sync_of_a_folder_nothing_is_written_and_nothing_is_called_durable() {
    let disk = SimDisk::new();
    let store = on(&disk, 1);
    let path = Path::from("x/object");
    // Create, write, sync, link, remove of the temp name: the sixth is the folder's sync.
    let at = disk.ops() + 6;
    disk.set_faults(Faults { fail_op: Some(at), ..Faults::default() });
    assert!(block_on(store.put_opts(&path, "data".into(), create())).is_err());
    assert!(matches!(disk.trace().last(), Some(Op::SyncDir(_))), "{:?}", disk.trace());
    assert_eq!(block_on(text(&store, &path)).as_deref(), Some("data"), "it reads");
    let again = block_on(store.put_opts(&path, "data".into(), create())).unwrap_err();
    assert!(!matches!(again, Error::AlreadyExists { .. }), "that would say that it is durable");
    assert!(again.to_string().contains("restart"), "{again}");
    assert!(block_on(store.delete(&path)).is_err());
}

#[test]
fn d1_already_exists_is_said_of_durable_objects_only() {
    for seed in 0..20 {
        let disk = SimDisk::new();
        let (first, second) = (on(&disk, 1), on(&disk, 2));
        let path = Path::from("x/object");
        // The first has linked the object and is stopped before it syncs the folder.
        let at = disk.ops() + 5;
        disk.set_faults(Faults { cut_after: Some(at), ..Faults::default() });
        assert!(block_on(first.put_opts(&path, "first".into(), create())).is_err());
        let revived = disk.fork();
        revived.set_faults(Faults::default());
        revived.kill_process();
        let second = DurableLocalStore { disk: Arc::new(revived.clone()), ..second };
        let lost = block_on(second.put_opts(&path, "second".into(), create()));
        assert!(matches!(lost, Err(Error::AlreadyExists { .. })), "{lost:?}");
        revived.power_cycle(&SimEntropy::seeded(seed));
        assert_eq!(block_on(text(&second, &path)).as_deref(), Some("first"), "seed {seed}");
    }
}

#[test]
fn of_many_creates_of_one_name_exactly_one_wins_and_its_bytes_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = Path::from(format!("race/{round}"));
        let wins: Vec<String> = std::thread::scope(|scope| {
            let runners: Vec<_> = (0..4u64)
                .map(|who| {
                    let (path, root) = (&path, folder.path());
                    scope.spawn(move || {
                        let entropy = SimEntropy::seeded(who);
                        let store =
                            DurableLocalStore::open(Arc::new(RealDisk), root, &entropy).unwrap();
                        let text = who.to_string().repeat(20_000);
                        match block_on(store.put_opts(path, text.clone().into(), create())) {
                            Ok(_) => Some(text),
                            Err(Error::AlreadyExists { .. }) => None,
                            Err(e) => panic!("{e}"),
                        }
                    })
                })
                .collect();
            runners.into_iter().filter_map(|r| r.join().unwrap()).collect()
        });
        let store =
            DurableLocalStore::open(Arc::new(RealDisk), folder.path(), &SimEntropy::seeded(9));
        assert_eq!(wins.len(), 1, "round {round}");
        assert_eq!(block_on(text(&store.unwrap(), &path)).as_ref(), wins.first());
    }
}

#[test]
fn no_name_leads_out_of_the_folder_and_none_passes_for_a_temp_file() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("store");
    let store = DurableLocalStore::open(Arc::new(RealDisk), &root, &SimEntropy::seeded(1)).unwrap();
    for hostile in ["../up", "a/../../up", "./up", "a//up", "/../up"] {
        assert!(Path::parse(hostile).is_err() || !hostile.contains(".."), "{hostile}");
        // Encoded instead of parsed: every part stays below the root.
        block_on(store.put(&Path::from(hostile), "x".into())).unwrap();
        block_on(store.put(&Path::from_iter(hostile.split('/')), "x".into())).unwrap();
    }
    let above: Vec<_> = RealDisk.list(outer.path()).unwrap();
    assert_eq!(above.len(), 1, "{above:?}");
    for name in ["", "x.tmp", "a/b.tmp"] {
        let refused = block_on(store.put(&Path::from(name), "x".into()));
        assert!(refused.is_err(), "`{name}` must be refused");
    }
}
