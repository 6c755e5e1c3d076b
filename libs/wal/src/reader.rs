//! Walking segments: from one frame to the next, across segments, past damage if told so.
//!
//! Owns: what counts as a frame, the difference between a torn tail and damage, opening seals.
//! Never: writes; hands out a payload whose seal did not open; moves on past damage unless the
//! policy is quarantine; keeps more than a window of one segment in memory.
//!
//! Which frames count. A segment's frames count up to the number that the next segment says it
//! continues after; whatever lies behind (a torn tail, frames of a failed sync) is void. So a
//! bad frame in a segment that has a successor is damage. In the last segment, the first bad
//! frame ends the log if it was torn, and is damage otherwise:
//! - a later page whose frame carries a durable mark at or above it: it was synced, so damage;
//! - no sector of it is all zero: every sector of it had been written, so it was changed, damage
//!   (a sector that was written is never all zero, because padding is not);
//! - else some of it never reached the disk, so no sync covers it: torn.

use std::{path::Path, sync::Arc};

use millrace_crypto::aead::FrameOpener;
use millrace_platform::{
    disk::{Disk, DiskFile, OpenMode, read_exact_at},
    map::Map,
};

use crate::{
    error::{Damage, WalError},
    frame::{FRAME_AAD_BYTES, FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader},
    keys::{KeyRef, KeyRefError, SegmentKeys},
    planted::{Bug, planted},
    recovery::{Frame, load_table},
    segment::{Entry, PAD, PAGE_BYTES, SECTOR_BYTES, SEGMENT_HEADER_BYTES, TAG},
    writer::OnDamage,
};

/// Bytes read at a time; a frame larger than this is read whole.
const WINDOW_BYTES: u64 = 256 << 10;

/// What a walk over the log meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    /// A frame.
    Frame(Frame),
    /// A frame whose key is gone for good.
    KeyGone {
        /// Its log number.
        lsn: u64,
        /// Its key.
        key: KeyRef,
    },
    /// A part that cannot be read. Only under [`OnDamage::Quarantine`].
    Damage(Damage),
}

/// Bytes that are not the next frame.
#[derive(Debug, Clone, Copy)]
struct Broken {
    at: u64,
    /// Bytes that the frame covers, as far as they are known.
    extent: u64,
    what: &'static str,
}

enum Step {
    Frame(FrameHeader, u64),
    Broken(Broken),
}

/// How the last segment of the log ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail {
    /// The last frame that is there.
    pub(crate) last_lsn: u64,
    /// Frames up to this number are known to be synced.
    pub(crate) durable: u64,
    /// Bytes cut off.
    pub(crate) torn_bytes: u64,
    /// Whether damage was passed on the way (quarantine only).
    pub(crate) damaged: bool,
    /// No frame of a later segment may have a lower number.
    pub(crate) next_lsn: u64,
}

/// A walk over one segment.
pub(crate) struct SegmentScan {
    file: Box<dyn DiskFile>,
    entry: Entry,
    file_len: u64,
    window: Vec<u8>,
    window_at: u64,
    /// Whether the window was filled since the last step: what a live log wrote meanwhile may be
    /// missing from an older one.
    fresh: bool,
    position: u64,
    expected: u64,
    /// `None` behind damage: anything may have been before.
    previous_tag: Option<[u8; 16]>,
    durable: u64,
}

impl SegmentScan {
    pub(crate) fn open(disk: &dyn Disk, entry: &Entry) -> Result<Self, WalError> {
        let file =
            disk.open(&entry.path, OpenMode::Read).map_err(WalError::io("open", &entry.path))?;
        let file_len = file.len().map_err(WalError::io("measure", &entry.path))?;
        Ok(Self {
            file,
            file_len,
            window: Vec::new(),
            window_at: 0,
            fresh: false,
            position: PAGE_BYTES,
            expected: entry.header.first_lsn,
            previous_tag: Some([0; 16]),
            durable: entry.header.carried_through,
            entry: entry.clone(),
        })
    }

    /// Makes the window hold `len` bytes at `at`, fewer at the end of the file; returns where in
    /// the window they are.
    fn load(&mut self, at: u64, len: u64) -> Result<std::ops::Range<usize>, WalError> {
        let end = at.saturating_add(len).min(self.file_len);
        if at >= end {
            return Ok(0..0);
        }
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if at < held.start || end > held.end {
            let from = at - at % SECTOR_BYTES;
            let want = (end - from).max(WINDOW_BYTES).min(self.file_len - from);
            self.window.resize(want as usize, 0);
            self.window_at = from;
            self.fresh = true;
            let read = read_exact_at(self.file.as_ref(), &mut self.window, from);
            if let Err(source) = read {
                self.window.clear();
                return Err(WalError::Io { what: "read", path: self.entry.path.clone(), source });
            }
        }
        Ok((at - self.window_at) as usize..(end - self.window_at) as usize)
    }

    fn bytes(&mut self, at: u64, len: u64) -> Result<&[u8], WalError> {
        let range = self.load(at, len)?;
        Ok(&self.window[range])
    }

    /// The next frame, or what is there instead. The body's checksum is looked at for frames from
    /// `needed` on.
    fn step(&mut self, needed: u64) -> Result<Step, WalError> {
        self.fresh = false;
        let step = self.step_once(needed)?;
        if matches!(step, Step::Broken(_)) && !self.fresh {
            self.window.clear();
            return self.step_once(needed);
        }
        Ok(step)
    }

    fn step_once(&mut self, needed: u64) -> Result<Step, WalError> {
        let at = self.skip_padding()?;
        let header_bytes = self.bytes(at, FRAME_HEADER_BYTES as u64)?;
        let extent = FRAME_HEADER_BYTES as u64;
        let broken = |what| Ok(Step::Broken(Broken { at, extent, what }));
        let Some(header) = FrameHeader::decode(header_bytes) else {
            return broken("no frame header");
        };
        let has_body = header.body_len as usize >= TAG;
        if has_body == header.is_gone() || header.frame_bytes() > self.file_len.saturating_sub(at) {
            return broken("impossible frame length");
        }
        if header.lsn != self.expected {
            return broken("unexpected log number");
        }
        if self.previous_tag.is_some_and(|tag| tag != header.previous_tag) {
            return broken("the frame before is missing");
        }
        let body = self.body(&header, at)?;
        let tag = body.last_chunk::<TAG>().copied().unwrap_or_default();
        if header.lsn >= needed
            && crc32c::crc32c(body) != header.body_crc
            && !planted(Bug::ChecksumIgnored)
        {
            let extent = header.frame_bytes();
            return Ok(Step::Broken(Broken { at, extent, what: "wrong checksum" }));
        }
        self.position = at + header.frame_bytes();
        self.expected = header.lsn + 1;
        self.previous_tag = Some(tag);
        self.durable = self.durable.max(header.durable);
        Ok(Step::Frame(header, at))
    }

    fn body(&mut self, header: &FrameHeader, at: u64) -> Result<&[u8], WalError> {
        self.bytes(at + FRAME_HEADER_BYTES as u64, u64::from(header.body_len))
    }

    /// The position of the next frame: behind the padding of a batch, if there is some here.
    fn skip_padding(&mut self) -> Result<u64, WalError> {
        let at = self.position;
        let page_end = at.next_multiple_of(PAGE_BYTES);
        let rest = self.bytes(at, page_end - at)?;
        // The first sector says whether the batch ended; padding sectors behind it may be lost
        // with nothing lost.
        let first = (at.next_multiple_of(SECTOR_BYTES) - at) as usize;
        let first = if first == 0 { (SECTOR_BYTES as usize).min(rest.len()) } else { first };
        let padded = !rest.is_empty()
            && rest.iter().take(first).all(|b| *b == PAD)
            && rest.iter().skip(first).all(|b| *b == PAD || *b == 0);
        Ok(if padded { page_end } else { at })
    }

    /// Whether a sector of these bytes is all zero, so that it was never written.
    fn has_unwritten_sector(&mut self, broken: &Broken) -> Result<bool, WalError> {
        let end = (broken.at + broken.extent).min(self.file_len);
        let mut sector = broken.at - broken.at % SECTOR_BYTES;
        while sector < end {
            if self.bytes(sector, SECTOR_BYTES)?.iter().all(|b| *b == 0) {
                return Ok(true);
            }
            sector += SECTOR_BYTES;
        }
        Ok(false)
    }

    /// Whether a page behind `at` starts with a frame that knows `lsn` to be synced; and where
    /// the last byte that is not zero is.
    fn later_mark(&mut self, at: u64, lsn: u64) -> Result<(bool, u64), WalError> {
        let mut page = at - at % PAGE_BYTES;
        let mut marked = false;
        let mut written = at;
        while page < self.file_len {
            let bytes = self.bytes(page, PAGE_BYTES)?;
            if let Some(last) = bytes.iter().rposition(|b| *b != 0) {
                written = written.max(page + last as u64 + 1);
                marked |= page > at
                    && FrameHeader::decode(bytes).is_some_and(|h| h.lsn > lsn && h.durable >= lsn);
            }
            page += PAGE_BYTES;
        }
        Ok((marked, written))
    }

    /// The next whole frame with a number in `lsns` at or behind `from`.
    fn resync(
        &mut self,
        from: u64,
        lsns: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<(FrameHeader, u64)>, WalError> {
        let mut at = from;
        while at < self.file_len {
            let chunk = self.bytes(at, WINDOW_BYTES / 2)?;
            let Some(hit) = chunk.iter().position(|b| *b == FRAME_MAGIC[0]) else {
                at += chunk.len() as u64;
                continue;
            };
            at += hit as u64;
            if let Some(header) = FrameHeader::decode(self.bytes(at, FRAME_HEADER_BYTES as u64)?)
                && lsns.contains(&header.lsn)
                && header.frame_bytes() <= self.file_len - at
            {
                let body = self.body(&header, at)?;
                if crc32c::crc32c(body) == header.body_crc {
                    return Ok(Some((header, at)));
                }
            }
            at += 1;
        }
        Ok(None)
    }

    /// Moves to a frame that [`Self::resync`] found.
    fn go_to(&mut self, header: &FrameHeader, at: u64) {
        self.position = at;
        self.expected = header.lsn;
        self.previous_tag = None;
    }

    fn damage(&mut self, broken: &Broken, upto: u64) -> Result<Damage, WalError> {
        let found = self.resync(broken.at + 1, self.expected..=upto)?;
        Ok(self.describe(broken, found, upto))
    }

    fn describe(&self, broken: &Broken, found: Option<(FrameHeader, u64)>, upto: u64) -> Damage {
        Damage {
            segment: self.entry.header.number,
            byte: broken.at,
            byte_end: found.map_or(self.file_len, |(_, at)| at),
            first_lsn: self.expected,
            last_lsn: found.map(|(h, _)| h.lsn - 1).or((upto < u64::MAX).then_some(upto)),
            what: broken.what,
        }
    }

    /// Walks the last segment of the log to its end.
    pub(crate) fn tail(mut self, policy: OnDamage) -> Result<Tail, WalError> {
        let mut damaged = false;
        let first = self.entry.header.first_lsn;
        let short = self.file_len < self.entry.header.allocated;
        if short && policy == OnDamage::Refuse {
            return Err(Damage {
                segment: self.entry.header.number,
                byte: self.file_len,
                byte_end: self.entry.header.allocated,
                first_lsn: first,
                last_lsn: None,
                what: "the file is shorter than it was made",
            }
            .into());
        }
        loop {
            let broken = match self.step(0)? {
                Step::Frame(..) => continue,
                Step::Broken(broken) => broken,
            };
            let next_lsn = self.expected;
            let (marked, written) = self.later_mark(broken.at, next_lsn)?;
            let mut tail = Tail {
                last_lsn: next_lsn - 1,
                durable: self.durable,
                torn_bytes: written.saturating_sub(broken.at),
                damaged,
                next_lsn,
            };
            let ends = broken.at >= self.file_len || self.has_unwritten_sector(&broken)?;
            if ends && !marked && !short && next_lsn > self.entry.header.carried_through {
                return Ok(tail);
            }
            if planted(Bug::ReplayErrorSwallowed) {
                return Ok(tail);
            }
            if policy == OnDamage::Refuse {
                return Err(self.damage(&broken, u64::MAX)?.into());
            }
            damaged = true;
            match self.resync(broken.at + 1, next_lsn..=u64::MAX)? {
                Some((header, at)) => self.go_to(&header, at),
                None => {
                    // Nobody knows how many frames were in the damaged bytes, so at least one is
                    // reported lost and no number is used again that one of them may have had.
                    let lost = self.entry.header.allocated.max(written).saturating_sub(broken.at);
                    tail.damaged = true;
                    tail.last_lsn = next_lsn;
                    tail.next_lsn = next_lsn + lost / FRAME_HEADER_BYTES as u64 + 1;
                    return Ok(tail);
                }
            }
        }
    }
}

/// The highest number of a frame header anywhere in a file whose own header cannot be read.
pub(crate) fn highest_lsn(disk: &dyn Disk, path: &Path) -> Result<Option<u64>, WalError> {
    let file = disk.open(path, OpenMode::Read).map_err(WalError::io("open", path))?;
    let len = file.len().map_err(WalError::io("measure", path))?;
    let mut buf = vec![0u8; WINDOW_BYTES as usize];
    let mut at = 0u64;
    let mut highest = None;
    while at < len {
        let want = (len - at).min(WINDOW_BYTES) as usize;
        read_exact_at(file.as_ref(), &mut buf[..want], at).map_err(WalError::io("read", path))?;
        for start in 0..want {
            if buf[start] == FRAME_MAGIC[0]
                && let Some(header) = FrameHeader::decode(&buf[start..want])
            {
                highest = highest.max(Some(header.lsn));
            }
        }
        if want < FRAME_HEADER_BYTES {
            break;
        }
        // Windows overlap, so that a header across their border is seen.
        at += (want - FRAME_HEADER_BYTES + 1) as u64;
    }
    Ok(highest)
}

/// The AAD of a frame: its segment's header and the authenticated part of its own.
pub(crate) fn aad(
    segment: &[u8; SEGMENT_HEADER_BYTES],
    frame: &[u8; FRAME_HEADER_BYTES],
) -> [u8; SEGMENT_HEADER_BYTES + FRAME_AAD_BYTES] {
    let mut out = [0u8; SEGMENT_HEADER_BYTES + FRAME_AAD_BYTES];
    out[..SEGMENT_HEADER_BYTES].copy_from_slice(segment);
    out[SEGMENT_HEADER_BYTES..].copy_from_slice(&frame[..FRAME_AAD_BYTES]);
    out
}

/// The last number that counts in `table[index]`, when the log as a whole counts up to `through`.
pub(crate) fn live_end(table: &[Entry], index: usize, through: u64) -> u64 {
    table.get(index + 1).map_or(through, |next| next.header.continues_after)
}

struct Open {
    scan: SegmentScan,
    header_bytes: [u8; SEGMENT_HEADER_BYTES],
    /// `None`: the key is gone.
    openers: Map<KeyRef, Option<FrameOpener>>,
}

/// A walk over the log from a number on.
pub(crate) struct LogReader {
    disk: Arc<dyn Disk>,
    keys: Arc<dyn SegmentKeys>,
    policy: OnDamage,
    next_lsn: u64,
    open: Option<Open>,
}

impl LogReader {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        keys: Arc<dyn SegmentKeys>,
        policy: OnDamage,
        from_lsn: u64,
    ) -> Self {
        Self { disk, keys, policy, next_lsn: from_lsn, open: None }
    }

    /// What comes next in `table`, up to number `through`. After an error the same call may be
    /// made again.
    pub(crate) fn next(
        &mut self,
        table: &[Entry],
        through: u64,
    ) -> Result<Option<Scanned>, WalError> {
        let next = self.advance(table, through);
        if next.is_err() {
            self.open = None;
        }
        next
    }

    fn advance(&mut self, table: &[Entry], through: u64) -> Result<Option<Scanned>, WalError> {
        loop {
            if self.next_lsn > through {
                return Ok(None);
            }
            let held = self.open.as_ref().map(|o| o.scan.entry.header.number);
            let index = match held.and_then(|n| table.iter().position(|e| e.header.number == n)) {
                Some(index) => index,
                None => match self.locate(table, through)? {
                    Located::Segment(index) => index,
                    Located::Missing(damage) => return Ok(Some(Scanned::Damage(damage))),
                    Located::Nothing => return Ok(None),
                },
            };
            let end = live_end(table, index, through);
            let Some(open) = self.open.as_mut() else { return Ok(None) };
            if open.scan.expected > end || self.next_lsn > end {
                self.open = None;
                continue;
            }
            match open.scan.step(self.next_lsn)? {
                Step::Frame(header, _) if header.lsn < self.next_lsn => {}
                Step::Frame(header, at) => {
                    let scanned = self.unseal(&header, at)?;
                    self.next_lsn = header.lsn + 1;
                    return Ok(Some(scanned));
                }
                Step::Broken(broken) => {
                    if let Some(damage) = self.broken(&broken, end)? {
                        return Ok(Some(Scanned::Damage(damage)));
                    }
                }
            }
        }
    }

    /// Passes damage, if the policy allows it; `None` if nothing that was asked for is lost.
    fn broken(&mut self, broken: &Broken, end: u64) -> Result<Option<Damage>, WalError> {
        let Some(open) = self.open.as_mut() else { return Ok(None) };
        let found = open.scan.resync(broken.at + 1, open.scan.expected..=end)?;
        let mut damage = open.scan.describe(broken, found, end);
        if planted(Bug::ReplayErrorSwallowed) {
            self.next_lsn = end + 1;
            return Ok(None);
        }
        if self.policy == OnDamage::Refuse {
            return Err(damage.into());
        }
        damage.first_lsn = damage.first_lsn.max(self.next_lsn);
        let resume = match found {
            Some((header, at)) => {
                open.scan.go_to(&header, at);
                header.lsn
            }
            None => {
                self.open = None;
                end + 1
            }
        };
        let lost = resume > self.next_lsn;
        self.next_lsn = self.next_lsn.max(resume);
        Ok(lost.then_some(damage))
    }

    /// Opens the segment that holds the next number.
    fn locate(&mut self, table: &[Entry], through: u64) -> Result<Located, WalError> {
        self.open = None;
        let holds = |i: &usize| {
            let end = live_end(table, *i, through);
            end >= self.next_lsn && table.get(*i).is_some_and(|e| end >= e.header.first_lsn)
        };
        if table.is_empty() && self.policy == OnDamage::Quarantine {
            let damage = Damage {
                segment: 0,
                byte: 0,
                byte_end: 0,
                first_lsn: self.next_lsn,
                last_lsn: Some(through),
                what: "no segment of the log can be read",
            };
            self.next_lsn = through + 1;
            return Ok(Located::Missing(damage));
        }
        let Some(index) = (0..table.len()).find(holds) else { return Ok(Located::Nothing) };
        let Some(entry) = table.get(index) else { return Ok(Located::Nothing) };
        let header = &entry.header;
        if self.next_lsn <= header.continues_after {
            let first = header.continues_after + 1;
            if self.policy == OnDamage::Refuse {
                return Err(WalError::Trimmed { wanted: self.next_lsn, first });
            }
            let damage = Damage {
                segment: header.number,
                byte: 0,
                byte_end: 0,
                first_lsn: self.next_lsn,
                last_lsn: Some(header.continues_after),
                what: "the segments before this one are missing",
            };
            self.next_lsn = first;
            return Ok(Located::Missing(damage));
        }
        // Numbers between were given to frames of a failed sync; nobody waits for them.
        self.next_lsn = self.next_lsn.max(header.first_lsn);
        let scan = match SegmentScan::open(self.disk.as_ref(), entry) {
            Err(WalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(WalError::Trimmed {
                    wanted: self.next_lsn,
                    first: live_end(table, index, through) + 1,
                });
            }
            other => other?,
        };
        self.open = Some(Open { scan, header_bytes: header.encode(), openers: Map::default() });
        Ok(Located::Segment(index))
    }

    fn unseal(&mut self, header: &FrameHeader, at: u64) -> Result<Scanned, WalError> {
        let Some(open) = self.open.as_mut() else { return Err(WalError::Options("no segment")) };
        let key = header.key;
        if !open.openers.contains_key(&key) {
            let opener = match self.keys.opener(key, &open.scan.entry.header.context()) {
                Ok(opener) => Some(opener),
                Err(KeyRefError::Gone) => None,
                Err(e @ KeyRefError::Unavailable(_)) => return Err(WalError::key(key)(e)),
            };
            open.openers.insert(key, opener);
        }
        let gone = Scanned::KeyGone { lsn: header.lsn, key };
        let Some(Some(opener)) = open.openers.get(&key) else { return Ok(gone) };
        let mut what = "the frame says that its key is gone, but the key is there";
        if !header.is_gone() {
            let aad = aad(&open.header_bytes, &header.encode());
            let mut payload = open.scan.body(header, at)?.to_vec();
            match opener.open(header.counter, &aad, &mut payload) {
                Ok(plain) => {
                    let len = plain.len();
                    payload.truncate(len);
                    return Ok(Scanned::Frame(Frame { lsn: header.lsn, key, payload }));
                }
                Err(_) if planted(Bug::ChecksumIgnored) => {
                    payload.truncate(payload.len() - TAG);
                    return Ok(Scanned::Frame(Frame { lsn: header.lsn, key, payload }));
                }
                Err(_) => what = "the seal does not open",
            }
        }
        let damage = Damage {
            segment: open.scan.entry.header.number,
            byte: at,
            byte_end: at + header.frame_bytes(),
            first_lsn: header.lsn,
            last_lsn: Some(header.lsn),
            what,
        };
        match self.policy {
            OnDamage::Refuse => Err(damage.into()),
            OnDamage::Quarantine => Ok(Scanned::Damage(damage)),
        }
    }
}

enum Located {
    Segment(usize),
    Missing(Damage),
    Nothing,
}

/// A place in a log that is being written; see `Wal::cursor`.
pub struct LogCursor(pub(crate) LogReader);

impl LogCursor {
    /// The number that is read next.
    pub fn next_lsn(&self) -> u64 {
        self.0.next_lsn
    }
}

/// Reads a log that nobody writes from `from_lsn` on (0: all there is), past damage, and reports
/// each damaged part once, in its place among the frames. Changes nothing on disk. For a log that
/// is being written, open it with [`OnDamage::Quarantine`] and use a cursor.
pub fn scan_quarantine<E: From<WalError>>(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    keys: &Arc<dyn SegmentKeys>,
    from_lsn: u64,
    each: &mut dyn FnMut(Scanned) -> Result<(), E>,
) -> Result<(), E> {
    let table = load_table(disk.as_ref(), dir, OnDamage::Quarantine)?;
    let from = if from_lsn == 0 { table.scan_from() } else { from_lsn };
    let mut reader = LogReader::new(Arc::clone(disk), Arc::clone(keys), OnDamage::Quarantine, from);
    while let Some(scanned) = reader.next(&table.entries, table.through)? {
        each(scanned)?;
    }
    Ok(())
}
