//! A line-protocol file that grows: read from where the last durable row ended.
//!
//! Owns: which file is read and from where. Never: leaves a file that was renamed before its end
//! was read; takes the middle of a rewritten file for its continuation.
//! Position (opaque to the queue): version 1, flags (1: inside a line that is too long), inode,
//! offset, and a fingerprint of the up to 64 bytes before the offset; little endian.
//! Renamed and made anew: the open file is read to its end, a last line without a line feed
//! included, then the new one; after a restart the renamed file is looked for in its directory.
//! Cut short, or cut and filled again (the fingerprint tells): read from the beginning, with a gap
//! record, because nobody knows what was between.

use std::{
    fs::File,
    hash::BuildHasher,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_platform::map::Seeded;

use super::{
    Sink,
    lines::{self, LINE_BYTES_MAX},
};
use crate::gap::Cause;

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(250);
/// Bytes before the offset that the fingerprint covers.
const PRINT_BYTES: usize = 64;

/// Where the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    inode: u64,
    offset: u64,
    print: u64,
    skipping: bool,
}

impl Place {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![1, u8::from(self.skipping)];
        for number in [self.inode, self.offset, self.print] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let ([1, flags], numbers) = bytes.split_first_chunk::<2>()? else { return None };
        let ([inode, offset, print], []) = numbers.as_chunks::<8>() else { return None };
        let number = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        Some(Self {
            inode: number(inode),
            offset: number(offset),
            print: number(print),
            skipping: *flags == 1,
        })
    }
}

fn print(before: &[u8]) -> u64 {
    let from = before.len().saturating_sub(PRINT_BYTES);
    Seeded::default().hash_one(before.get(from..).unwrap_or_default())
}

/// What a look at the file gave.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// Whole lines, and the up to 64 bytes before them.
    Text { before: Vec<u8>, text: Vec<u8> },
    /// Something is missing.
    Gap(Cause, String),
    /// The place moved over the rest of a line that was too long.
    Moved,
    /// Nothing new.
    Nothing,
}

/// Follows one path.
#[derive(Debug)]
struct Follower {
    path: PathBuf,
    place: Place,
    file: Option<File>,
}

#[expect(clippy::disallowed_methods, reason = "a foreign file: the disk trait knows no inodes")]
fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    match std::fs::metadata(path) {
        // Opening a pipe would wait for its writer.
        Ok(meta) if !meta.is_file() => {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    }
    let file = File::open(path)?;
    let inode = file.metadata()?.ino();
    Ok(Some((file, inode)))
}

#[expect(clippy::disallowed_methods, reason = "a foreign folder: the disk trait knows no inodes")]
fn find(folder: &Path, inode: u64) -> Option<File> {
    let entries = std::fs::read_dir(folder).ok()?;
    let same = |e: &std::fs::DirEntry| e.metadata().is_ok_and(|m| m.is_file() && m.ino() == inode);
    let found = entries.flatten().find(same)?;
    open(&found.path()).ok()?.filter(|(_, ino)| *ino == inode).map(|(file, _)| file)
}

impl Follower {
    fn new(path: PathBuf, start: Option<&[u8]>) -> Self {
        let place = start.and_then(Place::decode).unwrap_or_default();
        Self { path, place, file: None }
    }

    /// Starts at the beginning of another file.
    fn begin(&mut self, file: File, inode: u64) {
        self.place = Place { inode, offset: 0, print: print(&[]), skipping: false };
        self.file = Some(file);
    }

    /// Finds the file of the stored place; `Some` if there is something to say instead.
    fn reopen(&mut self) -> io::Result<Option<Look>> {
        let now = open(&self.path)?;
        let known = self.place.inode;
        match now {
            Some((file, inode)) if known == 0 => self.begin(file, inode),
            Some((file, inode)) if inode == known => self.file = Some(file),
            None if known == 0 => return Ok(Some(Look::Nothing)),
            other => {
                let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty());
                if let Some(file) = find(folder.unwrap_or(Path::new(".")), known) {
                    self.file = Some(file);
                    return Ok(None);
                }
                let Some((file, inode)) = other else { return Ok(Some(Look::Nothing)) };
                self.begin(file, inode);
                let what = "the file was replaced before its end was read, and is gone";
                return Ok(Some(Look::Gap(Cause::SourceOverrun, what.to_owned())));
            }
        }
        Ok(None)
    }

    /// Looks once. Blocks on the disk.
    fn look(&mut self) -> io::Result<Look> {
        if self.file.is_none()
            && let Some(look) = self.reopen()?
        {
            return Ok(look);
        }
        let Some(file) = &self.file else { return Ok(Look::Nothing) };
        let len = file.metadata()?.len();
        let offset = self.place.offset;
        let start = offset.saturating_sub(PRINT_BYTES as u64);
        let head = usize::try_from(offset - start).unwrap_or(PRINT_BYTES);
        let mut bytes = vec![0u8; head + LINE_BYTES_MAX];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(bytes.get_mut(read..).unwrap_or_default(), start + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(read);
        let before: Vec<u8> = bytes.drain(..head.min(read)).collect();
        if len < offset || before.len() < head || print(&before) != self.place.print {
            let inode = self.place.inode;
            self.place = Place { inode, offset: 0, print: print(&[]), skipping: false };
            let what = format!("the file was cut or written anew; {offset} bytes of it were read");
            return Ok(Look::Gap(Cause::SourceOverrun, what));
        }
        self.lines(before, bytes)
    }

    fn lines(&mut self, mut before: Vec<u8>, mut text: Vec<u8>) -> io::Result<Look> {
        // A file that was renamed gets no more lines: its last may lack the line feed.
        let next = if text.len() < LINE_BYTES_MAX { self.successor()? } else { None };
        let ends = next.is_some();
        let mut skipping = self.place.skipping;
        let cut = lines::cut(&text, &mut skipping, ends);
        let moved = cut.skip > 0;
        let skipped: Vec<u8> = text.drain(..cut.skip).collect();
        before.extend_from_slice(&skipped);
        before.drain(..before.len().saturating_sub(PRINT_BYTES));
        self.place.skipping = skipping;
        self.place.offset += cut.skip as u64;
        self.place.print = print(&before);
        if cut.too_long {
            return Ok(Look::Gap(Cause::Rejected, "a line is longer than 1 MiB".to_owned()));
        }
        text.truncate(cut.take);
        if !text.is_empty() {
            return Ok(Look::Text { before, text });
        }
        if moved {
            return Ok(Look::Moved);
        }
        if let Some((file, inode)) = next {
            self.begin(file, inode);
            return Ok(Look::Moved);
        }
        Ok(Look::Nothing)
    }

    /// The file that took this one's path, if one did.
    fn successor(&self) -> io::Result<Option<(File, u64)>> {
        Ok(open(&self.path)?.filter(|(_, inode)| *inode != self.place.inode))
    }

    /// The place behind the first `taken` bytes of a text.
    fn behind(place: Place, before: &[u8], text: &[u8], taken: usize) -> Place {
        let text = text.get(..taken).unwrap_or(text);
        let all = [before, text.get(text.len().saturating_sub(PRINT_BYTES)..).unwrap_or(text)];
        Place { offset: place.offset + taken as u64, print: print(&all.concat()), ..place }
    }
}

/// Follows the file for ever. `start` is the last durable position.
pub async fn run(sink: Sink, path: PathBuf, start: Option<Vec<u8>>) {
    let mut follower = Follower::new(path, start.as_deref());
    let mut backoff = sink.backoff();
    loop {
        // On a thread for blocking calls: a file on a dead network mount must not stop others.
        let looked = tokio::task::spawn_blocking(move || {
            let look = follower.look();
            (follower, look)
        });
        let Ok((back, look)) = looked.await else { return };
        follower = back;
        match look {
            Ok(Look::Nothing) => sink.clock.sleep(POLL).await,
            Ok(Look::Moved) => {}
            Ok(Look::Gap(cause, detail)) => {
                let rows = u64::from(cause == Cause::Rejected);
                sink.gap(cause, rows, &detail, Some(follower.place.encode())).await;
            }
            Ok(Look::Text { before, text }) => {
                let place = follower.place;
                let position =
                    |taken: usize| Some(Follower::behind(place, &before, &text, taken).encode());
                let done = sink.lines(&text, &position, false).await;
                follower.place = Follower::behind(place, &before, &text, done);
                if done < text.len() {
                    sink.clock.sleep(backoff.pause(sink.entropy.as_ref())).await;
                } else {
                    backoff.reset();
                }
            }
            Err(error) => {
                tracing::warn!(source = sink.name, %error, "the file cannot be read now");
                sink.clock.sleep(backoff.pause(sink.entropy.as_ref())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
