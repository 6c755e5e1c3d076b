//! `docs/formats/wal.md`, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use super::world::{World, owner};
use crate::{
    PAGE_BYTES,
    frame::FrameHeader,
    segment::{SegmentHeader, number_of},
};

const PAGE: &str = include_str!("../../../../docs/formats/wal.md");

/// The bytes of the page's ```hex blocks: everything before `|` on a line, in order.
fn blocks() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for block in PAGE.split("```hex\n").skip(1) {
        let text = block.split("```").next().unwrap();
        let digits: String = text
            .lines()
            .map(|l| l.split('|').next().unwrap())
            .flat_map(|l| l.split_whitespace())
            .collect();
        out.push(
            (0..digits.len() / 2)
                .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
                .collect(),
        );
    }
    out
}

/// The example: seed 2026, owners 1 and 2, `hello` and `world`, one commit.
fn example() -> (World, Vec<u8>) {
    let mut w = World::seeded(2026);
    w.options.segment_bytes = 16 << 10;
    w.open().unwrap();
    let wal = w.wal.as_ref().unwrap();
    wal.append(owner(1), b"hello").unwrap();
    let lsn = wal.append(owner(2), b"world").unwrap();
    wal.commit(lsn).unwrap();
    let path = w.segments()[0].clone();
    let bytes = millrace_platform::disk::read_file(&w.disk, &path, 1 << 20).unwrap();
    (w, bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(16).fold(String::new(), |mut out, line| {
        out.extend(line.iter().map(|b| format!("{b:02x} ")));
        out.push('\n');
        out
    })
}

#[test]
fn the_example_of_the_format_page_is_what_the_log_writes() {
    let (_, bytes) = example();
    let page = PAGE_BYTES as usize;
    let found = [&bytes[..128], &bytes[page..page + 101], &bytes[page + 101..page + 202]];
    let written = blocks();
    let shown: String = found.iter().map(|b| hex(b) + "\n").collect();
    assert_eq!(written.len(), 3, "the page has three hex blocks; the log writes:\n{shown}");
    for (i, (page, log)) in written.iter().zip(found).enumerate() {
        assert!(page == log, "block {i} of the page differs; the log writes:\n{shown}");
    }
    // The rest of both pages is padding, and nothing was written behind.
    assert!(bytes[128..page].iter().chain(&bytes[page + 202..2 * page]).all(|b| *b == 0xA5));
    assert!(bytes[2 * page..].iter().all(|b| *b == 0));
}

#[test]
fn the_example_of_the_format_page_decodes_to_what_it_says() {
    let blocks = blocks();
    let Ok(segment) = SegmentHeader::decode(&[blocks[0].as_slice(), &[0xA5; 384]].concat()) else {
        panic!("the segment header does not decode");
    };
    assert_eq!((segment.number, segment.first_lsn, segment.continues_after), (1, 1, 0));
    assert_eq!((segment.carried_through, segment.incarnation, segment.allocated), (0, 1, 16384));
    let first = FrameHeader::decode(&blocks[1]).unwrap();
    let second = FrameHeader::decode(&blocks[2]).unwrap();
    assert_eq!((first.lsn, first.key, first.counter, first.body_len), (1, owner(1), 0, 21));
    assert_eq!((second.lsn, second.key, second.counter), (2, owner(2), 0));
    assert_eq!(second.previous_tag, blocks[1][85..101]);
    let reread = FrameHeader::decode(&first.encode()).unwrap();
    assert_eq!(reread, first);
}

#[test]
fn file_names_are_what_the_page_says() {
    let (w, _) = example();
    let path = w.segments()[0].clone();
    assert_eq!(path.to_str(), Some("/wal/00000000000000000001.wal"));
    assert_eq!(number_of("00000000000000000012.wal"), Some(12));
    for other in ["12.wal", "00000000000000000012.wal.tmp", "0000000000000000001x.wal", "lock"] {
        assert_eq!(number_of(other), None, "{other}");
    }
}
