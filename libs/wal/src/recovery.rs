//! Reading a log after a start: which segments count, where each ends, what is damage.
//!
//! Owns: the rule that tells a torn tail from damage. Only the last segment of the chain may end
//! in a torn block: the bytes after its last valid frame are cut silently if no later block is
//! valid, because a block is written only after the sync of the one before. Everything else that
//! does not read is [`WalError::Damaged`] and the caller must not go on without telling.
//! Never: skips a frame silently, except of an owner whose key is destroyed (`KeyGone`).

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_crypto::aead::FrameOpener;
use millrace_platform::disk::{Disk, OpenMode, read_exact_at};

use crate::{
    frame::{self, At, RawFrame},
    keys::{KeyRef, KeyRefError, SegmentKeys},
    segment::{self, HEADER_BYTES, PAGE_BYTES, Page, SegmentHeader},
    writer::WalError,
};

/// An opened frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Log position.
    pub lsn: u64,
    /// Whose key sealed it.
    pub key: KeyRef,
    /// The bytes that were appended.
    pub payload: Vec<u8>,
}

/// What replay sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// A frame.
    Frame(Frame),
    /// A frame whose owner's key is destroyed.
    KeyGone {
        /// Log position.
        lsn: u64,
        /// Whose key it was.
        key: KeyRef,
    },
}

/// A stretch of a segment that does not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Segment number.
    pub segment: u64,
    /// Bytes from the first invalid one to the next valid block, or to the end.
    pub bytes: Range<u64>,
    /// Log positions that may be in it: after the last good frame, before the next one.
    pub lsns: Range<u64>,
}

/// What a scan past damage sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    /// As in replay.
    Replayed(Replayed),
    /// A stretch that does not read; the scan goes on after it.
    Damage(Damage),
}

#[derive(Debug, Clone)]
pub(crate) struct KnownSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) file_bytes: u64,
    /// Where its valid bytes end, recorded by its successor; `None` for the last.
    pub(crate) end: Option<u64>,
    /// The last log position in it; for the last segment found by scanning.
    pub(crate) last_lsn: u64,
}

/// A log as it was found at start.
pub struct Recovery {
    disk: Arc<dyn Disk>,
    keys: Arc<dyn SegmentKeys>,
    pub(crate) segments: Vec<KnownSegment>,
    /// Bytes of a torn tail that were cut.
    torn_bytes: u64,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery").field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> WalError + '_ {
    move |source| WalError::io("read", path, source)
}

fn read_segment(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>, WalError> {
    let file = disk.open(path, OpenMode::Read).map_err(io(path))?;
    let len = file.len().map_err(io(path))?;
    let mut bytes = vec![0u8; usize::try_from(len).unwrap_or(0)];
    read_exact_at(file.as_ref(), &mut bytes, 0).map_err(io(path))?;
    Ok(bytes)
}

fn first_page(disk: &dyn Disk, path: &Path) -> Result<(Page, u64), WalError> {
    let file = disk.open(path, OpenMode::Read).map_err(io(path))?;
    let len = file.len().map_err(io(path))?;
    let mut page = vec![0u8; PAGE_BYTES.min(len) as usize];
    read_exact_at(file.as_ref(), &mut page, 0).map_err(io(path))?;
    Ok((segment::decode(&page), len))
}

/// Whether any block of a segment is valid: then its header was synced once and must read.
fn has_blocks(bytes: &[u8]) -> bool {
    next_block(bytes, HEADER_BYTES as usize).is_some()
}

/// The first page at or after `from` where a valid block starts.
fn next_block(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from.next_multiple_of(PAGE_BYTES as usize).max(HEADER_BYTES as usize);
    while at < bytes.len() {
        if let At::Frame(f) = frame::read_at(bytes, at)
            && u64::from(f.header.block_page) * PAGE_BYTES == at as u64
        {
            return Some(at);
        }
        at += PAGE_BYTES as usize;
    }
    None
}

/// Walks the frames of a segment from `at`; stops at the first byte that is neither a frame nor
/// padding, or at the end. Returns where it stopped and whether that was the orderly end.
fn walk(
    bytes: &[u8],
    mut at: usize,
    end: Option<usize>,
    each: &mut dyn FnMut(RawFrame),
) -> (usize, bool) {
    let stop = end.unwrap_or(bytes.len()).min(bytes.len());
    let mut tag: Option<[u8; 16]> = (at == HEADER_BYTES as usize).then_some([0; 16]);
    while at < stop {
        match frame::read_at(bytes, at) {
            At::Frame(f) if f.end <= stop && tag.is_none_or(|t| t == f.header.previous_tag) => {
                tag = Some(frame::tag_of(bytes.get(f.sealed_at()..f.end).unwrap_or_default()));
                at = f.end;
                each(f);
            }
            At::Nothing => {
                let page = PAGE_BYTES as usize;
                if at.is_multiple_of(page) {
                    // An untouched page: the end, unless the successor says otherwise.
                    return (at, end.is_none());
                }
                at = at.next_multiple_of(page);
            }
            _ => return (at, false),
        }
    }
    (at.min(stop.max(at)), true)
}

impl Recovery {
    /// Lists the segments, removes remnants, finds the chain and the end of the last one.
    pub(crate) fn find(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keys: Arc<dyn SegmentKeys>,
    ) -> Result<Self, WalError> {
        let mut live: BTreeMap<u64, (SegmentHeader, PathBuf, u64)> = BTreeMap::new();
        let mut odd: Vec<(u64, PathBuf)> = Vec::new();
        let mut remnants: Vec<PathBuf> = Vec::new();
        for entry in disk.list(dir).map_err(io(dir))? {
            let Some(number) = segment::number(&entry.name) else { continue };
            let path = dir.join(&entry.name);
            match first_page(disk.as_ref(), &path)? {
                (Page::Live(header), len) if header.number == number => {
                    live.insert(number, (header, path, len));
                }
                (Page::Destroyed, _) => remnants.push(path),
                _ => odd.push((number, path)),
            }
        }
        for (number, path) in odd {
            // A crash while a segment was being made leaves a file without a header and without
            // blocks. With blocks, the header was durable once: that is damage.
            let bytes = read_segment(disk.as_ref(), &path)?;
            let named = live.values().any(|(h, _, _)| h.previous == number);
            if named || has_blocks(&bytes) {
                return Err(WalError::Damaged {
                    segment: number,
                    byte: 0,
                    detail: "its header does not read".to_owned(),
                });
            }
            remnants.push(path);
        }
        for path in &remnants {
            disk.remove(path).map_err(|e| WalError::io("remove", path, e))?;
        }
        if !remnants.is_empty() {
            disk.sync_dir(dir).map_err(|e| WalError::io("sync", dir, e))?;
        }
        let mut segments = Vec::new();
        let headers: Vec<(SegmentHeader, PathBuf, u64)> = live.into_values().collect();
        for (index, (header, path, len)) in headers.iter().enumerate() {
            let next = headers.get(index + 1).map(|(h, _, _)| h);
            if let Some(next) = next
                && next.previous != header.number
            {
                return Err(WalError::Damaged {
                    segment: next.number,
                    byte: 72,
                    detail: format!(
                        "it follows segment {}, but the one before it here is {}; a segment is missing",
                        next.previous, header.number
                    ),
                });
            }
            segments.push(KnownSegment {
                header: header.clone(),
                path: path.clone(),
                file_bytes: *len,
                end: next.map(|n| n.previous_end),
                last_lsn: next.map_or(header.previous_lsn, |n| n.previous_lsn),
            });
        }
        let mut recovery = Self { disk, keys, segments, torn_bytes: 0 };
        recovery.find_tail()?;
        Ok(recovery)
    }

    fn find_tail(&mut self) -> Result<(), WalError> {
        let Some(last) = self.segments.last_mut() else { return Ok(()) };
        let bytes = read_segment(self.disk.as_ref(), &last.path)?;
        let mut last_lsn = last.header.previous_lsn;
        let mut end = HEADER_BYTES as usize;
        let (stopped, orderly) = walk(&bytes, HEADER_BYTES as usize, None, &mut |f| {
            last_lsn = f.header.lsn;
            end = f.end;
        });
        if let Some(block) = next_block(&bytes, stopped + 1)
            && (!orderly || block > stopped)
        {
            return Err(WalError::Damaged {
                segment: last.header.number,
                byte: stopped as u64,
                detail: format!("bytes here do not read, but a later block at {block} does"),
            });
        }
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |p| p + 1);
        self.torn_bytes = used.saturating_sub(end) as u64;
        last.last_lsn = last_lsn;
        last.end = Some(end as u64);
        Ok(())
    }

    /// The first log position that this log can still tell about: every acknowledged position
    /// from here on is in it. 1 for a log that was never trimmed.
    pub fn covers_from(&self) -> u64 {
        self.segments.first().map_or(1, |s| s.header.previous_lsn + 1)
    }

    /// The last log position found; 0 for an empty log.
    pub fn last_lsn(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.last_lsn)
    }

    /// Bytes of a torn tail that were ignored: never acknowledged.
    pub fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    /// Gives every frame from `from_lsn` on, in order. Damage is an error.
    pub fn read<E: From<WalError>>(
        &self,
        from_lsn: u64,
        each: &mut dyn FnMut(Replayed) -> Result<(), E>,
    ) -> Result<(), E> {
        self.scan(from_lsn, &mut |scanned| match scanned {
            Scanned::Replayed(r) => each(r),
            Scanned::Damage(d) => Err(E::from(WalError::Damaged {
                segment: d.segment,
                byte: d.bytes.start,
                detail: format!(
                    "bytes {} to {} do not read; log positions {} to {} may be in them",
                    d.bytes.start,
                    d.bytes.end,
                    d.lsns.start,
                    d.lsns.end.saturating_sub(1)
                ),
            })),
        })
    }

    /// As [`Self::read`], but reports damage and goes on at the next valid block: for a queue
    /// that quarantines and never wipes.
    pub fn scan<E: From<WalError>>(
        &self,
        from_lsn: u64,
        each: &mut dyn FnMut(Scanned) -> Result<(), E>,
    ) -> Result<(), E> {
        for known in self.segments.iter().filter(|s| s.last_lsn >= from_lsn) {
            self.scan_segment(known, from_lsn, each)?;
        }
        Ok(())
    }

    fn scan_segment<E: From<WalError>>(
        &self,
        known: &KnownSegment,
        from_lsn: u64,
        each: &mut dyn FnMut(Scanned) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = read_segment(self.disk.as_ref(), &known.path).map_err(E::from)?;
        let end = known.end.map(|e| e as usize);
        let stop = end.unwrap_or(bytes.len());
        let mut openers: BTreeMap<KeyRef, Result<FrameOpener, KeyRefError>> = BTreeMap::new();
        let context = known.header.key_context();
        let mut at = HEADER_BYTES as usize;
        let mut last_lsn = known.header.first_lsn.saturating_sub(1);
        while at < stop {
            let mut frames = Vec::new();
            let (stopped, orderly) = walk(&bytes, at, Some(stop), &mut |f| frames.push(f));
            let mut damaged_at = (!orderly).then_some(stopped);
            for raw in frames {
                let lsn = raw.header.lsn;
                let key = raw.header.key;
                if lsn < from_lsn {
                    last_lsn = lsn;
                    continue;
                }
                let opener = openers
                    .entry(key)
                    .or_insert_with(|| self.keys.opener(key, &known.header.salt, &context));
                let replayed = match opener {
                    Err(KeyRefError::Gone) => Replayed::KeyGone { lsn, key },
                    Err(KeyRefError::Unavailable(why)) => {
                        return Err(E::from(WalError::Keys(why.clone())));
                    }
                    Ok(opener) => {
                        let sealed = bytes.get_mut(raw.sealed_at()..raw.end).unwrap_or_default();
                        match opener.open(raw.header.counter, &raw.header.aad(), sealed) {
                            Ok(payload) => {
                                Replayed::Frame(Frame { lsn, key, payload: payload.to_vec() })
                            }
                            Err(_) => {
                                damaged_at = Some(raw.at);
                                break;
                            }
                        }
                    }
                };
                each(Scanned::Replayed(replayed))?;
                last_lsn = lsn;
            }
            let Some(from) = damaged_at else { return Ok(()) };
            let next = next_block(&bytes, from + 1).filter(|b| *b < stop);
            let next_lsn = match next.map(|b| frame::read_at(&bytes, b)) {
                Some(At::Frame(f)) => f.header.lsn,
                _ => known.last_lsn + 1,
            };
            at = next.unwrap_or(stop);
            each(Scanned::Damage(Damage {
                segment: known.header.number,
                bytes: from as u64..at as u64,
                lsns: last_lsn + 1..next_lsn,
            }))?;
        }
        Ok(())
    }
}
