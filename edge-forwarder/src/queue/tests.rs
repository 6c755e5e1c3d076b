//! The examples of `docs/formats/queue.md`, and what the crash suite does not look at.

use std::{path::Path, sync::Arc};

use millrace_crypto::sealed_file::open_object;
use millrace_platform::sim::{SimClock, SimDisk, SimEntropy};
use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    ids::DeviceId,
    value::{FieldType, FieldValues},
};

use super::*;
use crate::{
    crash::Keys,
    gap::{Cause, Gap},
};

const PAGE: &str = include_str!("../../../docs/formats/queue.md");
const OWNER: [u8; 16] = [9; 16];

/// The nth fenced block of the page in this language.
fn block(language: &str, nth: usize) -> &'static str {
    let mark = format!("```{language}\n");
    let from = PAGE.match_indices(&mark).nth(nth).unwrap().0 + mark.len();
    let rest = &PAGE[from..];
    &rest[..rest.find("```").unwrap()]
}

fn bytes(block: &str) -> Vec<u8> {
    let plain = block.lines().map(|l| l.split('|').next().unwrap());
    let digits: String = plain.flat_map(|l| l.chars().filter(|c| !c.is_whitespace())).collect();
    hex::decode(digits).unwrap()
}

fn example_batch() -> TableBatch {
    let mut value = FieldColumn::new("v", FieldType::I64);
    if let FieldValues::I64(values) = &mut value.values {
        values.extend([4, 5]);
    }
    value.present.push(true);
    value.present.push(true);
    TableBatch {
        table: "t".to_owned(),
        time: vec![1_000, 2_000],
        series: vec![0, 0],
        series_keys: vec![SeriesKey::from_sorted([])],
        fields: vec![value],
        line: vec![1, 2],
    }
}

fn example_group() -> Group {
    let stream = "stdin/t".parse().unwrap();
    let database = "default".to_owned();
    let parts = vec![Incoming { stream, database, batch: example_batch() }];
    Group { source: "stdin".to_owned(), position: Some(vec![0xab, 0xcd]), parts }
}

#[test]
fn the_frame_of_the_page_is_what_is_written_and_read() {
    let expected = bytes(block("hex", 0));
    let written = payload::encode(&example_group(), 42, &[101]).unwrap();
    assert_eq!(hex::encode(&written), hex::encode(&expected));
    let read = payload::decode(7, &expected).unwrap();
    assert_eq!(
        (read.source.as_str(), read.position.as_deref()),
        ("stdin", Some(&[0xab, 0xcd][..]))
    );
    let part = &read.parts[0];
    assert_eq!((part.epoch, part.seq_lo, part.seq_hi()), (42, 101, 102));
    assert_eq!((part.stream.as_str(), part.database.as_str()), ("stdin/t", "default"));
    assert_eq!(part.batch, example_batch());
}

#[test]
fn the_state_of_the_page_opens_with_the_key_of_the_page_and_says_what_the_page_says() {
    let sealed = bytes(block("hex", 1));
    let shown: State = serde_json::from_str(block("json", 0)).unwrap();
    // The same state, sealed with the dice of the page, is the same bytes.
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let entropy: Arc<dyn Entropy> = Arc::new(SimEntropy::seeded(1));
    let keys = Arc::new(Keys([7; 32]));
    let file = StateFile::new(disk, entropy, keys, OWNER, Path::new("/q"), 0);
    assert_eq!(hex::encode(file.seal(&shown).unwrap()), hex::encode(&sealed));
    let object = *b"edge-queue-state";
    let json = open_object(&Keys([7; 32]), &OWNER, object, &sealed).unwrap();
    let read: State = serde_json::from_slice(&json).unwrap();
    assert_eq!(read, shown);
    // What is written has the members of the page, no more and no fewer.
    let members = |text: &[u8]| -> std::collections::BTreeSet<String> {
        let value: serde_json::Value = serde_json::from_slice(text).unwrap();
        value.as_object().unwrap().keys().cloned().collect()
    };
    let written = serde_json::to_vec(&State::default()).unwrap();
    assert_eq!(members(&written), members(block("json", 0).as_bytes()));
}

#[test]
fn no_cut_and_no_changed_byte_of_a_frame_panics() {
    let written = payload::encode(&example_group(), 42, &[101]).unwrap();
    for cut in 0..written.len() {
        assert!(payload::decode(1, &written[..cut]).is_none(), "cut at {cut}");
    }
    for at in 0..written.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = written.clone();
            changed[at] = value;
            if let Some(read) = payload::decode(1, &changed) {
                assert!(read.parts.iter().all(|p| p.batch.rows() > 0));
            }
        }
    }
}

fn ground(disk: &SimDisk) -> Ground {
    Ground {
        disk: Arc::new(disk.clone()),
        entropy: Arc::new(SimEntropy::seeded(3)),
        clock: Arc::new(SimClock::at(5)),
        keys: Arc::new(Keys([7; 32])),
    }
}

const SIZES: Sizes = Sizes { segment: 16 << 10, reserve: 4 << 10 };

fn open(disk: &SimDisk) -> Queue {
    Queue::open(&ground(disk), DeviceId(OWNER), Path::new("/q"), SIZES).unwrap()
}

#[test]
fn a_group_that_fits_no_frame_is_said_to_be_too_large_and_uses_no_number() {
    let disk = SimDisk::new();
    let queue = open(&disk);
    let mut large = example_group();
    large.position = Some(vec![1; 20 << 10]);
    let results = queue.append(&[large, example_group()]);
    assert!(matches!(&results[0], Err(e) if e.is_too_large()), "{results:?}");
    assert!(results[1].is_ok());
    let mut long_name = example_group();
    long_name.parts[0].database = "d".repeat(300);
    assert!(matches!(&queue.append(&[long_name])[0], Err(e) if e.is_too_large()));
    let mut cursor = queue.cursor(1);
    let Some(Next::Frame(frame)) = queue.read(&mut cursor).unwrap() else { panic!("a frame") };
    assert_eq!(frame.parts[0].seq_lo, 1);
}

#[test]
fn e11_a_start_reads_what_is_behind_the_stored_state_only() {
    let disk = SimDisk::new();
    let queue = open(&disk);
    for _ in 0..2_000 {
        assert!(queue.append(&[example_group()])[0].is_ok());
    }
    drop(queue);
    disk.kill_process();
    let queue = open(&disk);
    // 2,000 groups fill many segments; only those of about the last one are read again.
    assert!(queue.rows_queued() < 400, "{} rows were read", queue.rows_queued());
    assert_eq!(queue.rows_pending(), 4_000);
    assert_eq!(queue.position("stdin"), Some(vec![0xab, 0xcd]));
}

#[test]
fn e8_gaps_of_one_kind_are_counted_together_and_never_without_bound() {
    let disk = SimDisk::new();
    let queue = open(&disk);
    for _ in 0..100 {
        queue.note(Gap::new("host", Cause::BufferFull, 5, 3, "full"));
    }
    assert_eq!(queue.lock().state.gaps.len(), 1);
    assert_eq!(queue.lock().state.gaps[0].rows, 300);
    for n in 0..5_000 {
        queue.note(Gap::new(&format!("s{n}"), Cause::Rejected, 5, 1, ""));
    }
    let rows: u64 = queue.lock().state.gaps.iter().map(|g| g.rows).sum();
    assert!(queue.lock().state.gaps.len() <= GAPS_MAX);
    assert_eq!(rows, 5_300, "none is forgotten");
}

#[test]
fn e7_nothing_of_the_rows_lies_in_clear_on_the_disk() {
    let disk = SimDisk::new();
    let queue = open(&disk);
    let mut group = example_group();
    group.parts[0].batch.table = "secret_recipe".to_owned();
    group.parts[0].stream = "stdin/secret_recipe".parse().unwrap();
    assert!(queue.append(&[group])[0].is_ok());
    queue.settle(1).unwrap();
    for path in disk.paths() {
        let bytes = millrace_platform::disk::read_file(&disk, &path, 1 << 20).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"secret"), "{}", path.display());
    }
}
