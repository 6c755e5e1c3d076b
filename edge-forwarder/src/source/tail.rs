//! A line-protocol file that grows: read from where the last durable row ended.
//!
//! Position: inode and offset. A smaller file or another inode means truncation or rotation: the
//! new file is read from its beginning. A half last line waits.

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use millrace_platform::disk::{Disk, OpenMode, RealDisk};

use super::Sink;

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(250);
/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

fn encode(inode: u64, offset: u64) -> Vec<u8> {
    [inode.to_le_bytes(), offset.to_le_bytes()].concat()
}

fn decode(bytes: &[u8]) -> Option<(u64, u64)> {
    let (inode, rest) = bytes.split_first_chunk::<8>()?;
    let offset: [u8; 8] = rest.try_into().ok()?;
    Some((u64::from_le_bytes(*inode), u64::from_le_bytes(offset)))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the inode of a foreign file; the disk trait has none"
)]
fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|m| m.ino())
}

/// Follows the file for ever. `start` is the last durable position.
pub async fn run(sink: Sink, path: std::path::PathBuf, start: Option<Vec<u8>>) {
    let (mut known, mut offset) = start.as_deref().and_then(decode).unwrap_or((0, 0));
    loop {
        let read = read_more(&path, &mut known, &mut offset);
        match read {
            Some((text, next)) => {
                let position = encode(known, next);
                while !sink.lines(&text, Some(position.clone()), false).await {
                    sink.clock.sleep(POLL).await;
                }
                offset = next;
            }
            None => sink.clock.sleep(POLL).await,
        }
    }
}

/// Whole lines after `offset`, and where they end.
fn read_more(path: &Path, known: &mut u64, offset: &mut u64) -> Option<(Vec<u8>, u64)> {
    let now = inode(path)?;
    let file = RealDisk.open(path, OpenMode::Read).ok()?;
    let len = file.len().ok()?;
    if now != *known || len < *offset {
        (*known, *offset) = (now, 0);
    }
    if len <= *offset {
        return None;
    }
    let mut text = vec![0u8; READ_BYTES];
    let n = file.read_at(&mut text, *offset).ok()?;
    text.truncate(n);
    let whole = match text.iter().rposition(|b| *b == b'\n') {
        Some(at) => at + 1,
        // A line longer than a read can never end: it is handed on to be refused.
        None if n == READ_BYTES => n,
        None => return None,
    };
    text.truncate(whole);
    Some((text, *offset + whole as u64))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "plays the program that writes the file")]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_read_once_and_a_rotated_file_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lp");
        let (mut known, mut offset) = (0, 0);
        assert!(read_more(&path, &mut known, &mut offset).is_none());
        std::fs::write(&path, "a v=1 1\nb v=").unwrap();
        let (text, next) = read_more(&path, &mut known, &mut offset).unwrap();
        assert_eq!((text.as_slice(), next), (&b"a v=1 1\n"[..], 8));
        offset = next;
        assert!(read_more(&path, &mut known, &mut offset).is_none(), "a half line waits");
        std::fs::write(&path, "a v=1 1\nb v=2 2\n").unwrap();
        assert_eq!(read_more(&path, &mut known, &mut offset).unwrap().0, b"b v=2 2\n");
        std::fs::write(&path, "c v=3 3\n").unwrap();
        offset = 16;
        assert_eq!(read_more(&path, &mut known, &mut offset).unwrap().0, b"c v=3 3\n");
        assert_eq!(decode(&encode(5, 9)), Some((5, 9)));
    }
}
